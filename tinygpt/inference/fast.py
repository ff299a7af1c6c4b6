"""One token per row through a GPT on the CPU, in buffers that are allocated once: the fast twin of `GPT.hidden` with a cache.

Same arithmetic as `tinygpt/models/gpt.py`, layer by layer; what is different is that nothing is recorded and nothing allocated. Read the
model first, then this. docs/cache.md says what it costs and brings.
"""

from typing import Any

import numpy as np

import autograd as ag
from autograd import inference, nn
from tinygpt.models.cache import KVCache
from tinygpt.models.gpt import GPT, MLP, Block, CausalSelfAttention, Head


def can_decode(model: Any) -> bool:
    """Whether `RowDecoder` knows this model: a GPT of plain layers (no adapters inside), all of one dtype, with fast kernels on."""
    if not (inference.available() and type(model) is GPT):
        return False
    known = (GPT, Block, CausalSelfAttention, MLP, Head, nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout)
    dtypes = {p.dtype for p in model.parameters()}
    return all(type(module) in known for _, module in model.named_modules()) and len(dtypes) == 1


class RowDecoder:
    """Logits of the next token for `n_rows` rows at once, one token per row and call.

    The matrices are wanted in an order in memory that depends on n_rows, see `preferred_layout` in `autograd/kernels/cpu/rows.py`. Where a
    parameter has its memory for itself, its array is replaced by one in that order (same shape, same numbers), so that all exist once.
    Where it is a part of an optimizer's buffer, it must stay: the decoder then holds copies of the blocks' matrices as long as it lives,
    4 bytes x 12 n_layer C^2 (0.34 GB for GPT-2's smallest), for a single row a third of it; the head is then read as it lies.
    """

    def __init__(self, model: GPT, cache: KVCache, n_rows: int) -> None:
        config = model.config
        self.model, self.cache = model, cache
        dtype = model.wte.weight.dtype
        b, c, h, d = n_rows, config.n_embd, config.n_head, config.head_size
        self.layers = [_Layer(block, b) for block in model.h]
        head = model.lm_head.weight
        self.head = _preferred_layout(head, b, out_first=True) if _owns_memory(head.data) else head.data
        self.x, self.normed, self.attended = (np.empty((b, c), dtype) for _ in range(3))
        self.qkv, self.wide = np.empty((b, 3 * c), dtype), np.empty((b, 4 * c), dtype)
        self.column, self.head_column = np.empty((b, 1), dtype), np.empty((b, h, 1, 1), dtype)
        self.scores = np.empty((b, h, 1, cache.n_slots), dtype)
        self.logits = np.empty((b, config.vocab_size), dtype)
        self.scratch = np.empty(b * max(4 * c, config.vocab_size if b > 1 else 0), dtype)
        q, self.k, self.v = (self.qkv[:, i * c : (i + 1) * c].reshape(b, h, d) for i in range(3))  # views, as the next line's
        self.queries, self.answers = q[:, :, None], self.attended.reshape(b, h, 1, d)
        self.rows = np.arange(b)

    def step(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Logits (B, V) after `tokens` (B,) at `positions` (B,). The array is overwritten by the next call."""
        model, n = self.model, int(positions.max()) + 1
        hidden = None
        if int(positions.min()) + 1 != n:
            hidden = (np.arange(n) > positions[:, None])[:, None, None]  # (B, 1, 1, S)
        slots = (self.rows, slice(None), positions) if len(positions) > 1 else (0, slice(None), n - 1)  # plain numbers are found faster
        x = self.x
        x[...] = model.wte.weight.data[tokens]
        x += model.wpe.weight.data[positions]
        for i, layer in enumerate(self.layers):
            self._attend(layer, self.cache.keys[i], self.cache.values[i], slots, n, hidden)
            self._mlp(layer)
        self._norm(model.ln_f)
        inference.linear(self.normed, self.head, None, self.logits, self.scratch)
        return self.logits

    def _attend(self, layer: "_Layer", keys: Any, values: Any, slots: tuple[Any, ...], n: int, hidden: np.ndarray | None) -> None:
        """x += c_proj(attention(c_attn(ln_1(x)))), with this token's key and value added to the cache."""
        self._norm(layer.ln_1)
        inference.linear(self.normed, *layer.c_attn, self.qkv, self.scratch)
        keys[slots], values[slots] = self.k, self.v
        scores, column = self.scores[..., :n], self.head_column
        inference.attention(self.queries, keys[:, :, :n], values[:, :, :n], hidden, scores, column, self.answers)
        inference.linear(self.attended, *layer.attn_proj, self.normed, self.scratch)
        self.x += self.normed

    def _mlp(self, layer: "_Layer") -> None:
        """x += c_proj(gelu(c_fc(ln_2(x))))."""
        self._norm(layer.ln_2)
        inference.linear(self.normed, *layer.c_fc, self.wide, self.scratch)
        inference.gelu(self.wide, self.scratch)
        inference.linear(self.wide, *layer.mlp_proj, self.normed, self.scratch)
        self.x += self.normed

    def _norm(self, norm: nn.LayerNorm) -> None:
        inference.layer_norm(self.x, norm.weight.data, norm.bias.data, norm.eps, self.normed, self.column)


class _Layer:
    """A block's norms, and its four matrices, (out, in), each with its bias."""

    def __init__(self, block: Block, n_rows: int) -> None:
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        self.c_attn, self.attn_proj = _linear(block.attn.c_attn, n_rows), _linear(block.attn.c_proj, n_rows)
        self.c_fc, self.mlp_proj = _linear(block.mlp.c_fc, n_rows), _linear(block.mlp.c_proj, n_rows)


def _linear(layer: nn.Linear, n_rows: int) -> tuple[np.ndarray, np.ndarray | None]:
    return _preferred_layout(layer.weight, n_rows), None if layer.bias is None else layer.bias.data


def _preferred_layout(weight: ag.Parameter, n_rows: int, *, out_first: bool = False) -> np.ndarray:
    """The weights, (out, in), as `linear` wants them for n_rows rows; the parameter takes over the new array where it may."""
    matrix = weight.data if out_first else weight.data.T
    preferred = inference.preferred_layout(matrix, n_rows)
    if preferred is not matrix and _owns_memory(weight.data):
        weight.data = preferred if out_first else preferred.T
    return preferred


def _owns_memory(array: np.ndarray) -> bool:
    """Whether the array has its memory for itself, so that another may take its place."""
    memory = array if array.base is None else array.base
    return isinstance(memory, np.ndarray) and memory.flags.owndata and memory.size == array.size
