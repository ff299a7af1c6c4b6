"""One token per row through a GPT on the CPU, into buffers allocated once: the fast counterpart of `GPT.hidden` with a cache.

The arithmetic of `tinygpt/models/gpt.py`, layer by layer, but nothing is recorded and nothing allocated. Read the model first.
docs/cache.md says what this costs and gains.
"""

from typing import TypeGuard

import numpy as np

import autograd as ag
from autograd import inference, nn
from tinygpt.models.cache import KVCache
from tinygpt.models.gpt import GPT, MLP, Block, CausalSelfAttention, OutputLayer
from tinygpt.models.protocols import Decodable

_COPIED = {
    GPT: "config dtype dropout_stream wte wpe ln_e embd_dropout h ln_f lm_head",
    Block: "ln_1 attn ln_2 mlp recompute",
    CausalSelfAttention: "n_head p stream c_attn c_proj resid_dropout",
    MLP: "c_fc c_proj resid_dropout",
    OutputLayer: "weight softcap",
    nn.Linear: "weight bias",
    nn.LayerNorm: "weight bias eps",
    nn.Embedding: "weight",
    nn.Dropout: "p stream",  # all dropout is off when decoding
}
_ATTRIBUTES = {layer: {"training", *names.split()} for layer, names in _COPIED.items()}
"""The layers whose arithmetic `FastDecoder` repeats, and their attributes: another one may be an option that it does not know."""


def supports_fast_decoding(model: Decodable) -> TypeGuard[GPT]:
    """Whether `FastDecoder` computes the same as this model: a GPT of exactly the layers that it copies (no adapters), with no other
    attributes, of GPT-2's proportions and of one dtype; and fast kernels are on."""
    if not (inference.available() and type(model) is GPT):
        return False
    config = model.config
    return (
        not config.options()
        and all(vars(module).keys() <= _ATTRIBUTES.get(type(module), set()) for _, module in model.named_modules())
        and all(
            isinstance(block, Block) and block.attn.n_head == config.n_head and block.mlp.c_fc.weight.shape[1] == 4 * config.n_embd
            for block in model.h
        )
        and len({p.dtype for p in model.parameters()}) == 1
    )


class FastDecoder:
    """Logits of the next token for `n_rows` rows at once, one token per row and call.

    The matrices are wanted in an order in memory that depends on n_rows, see `preferred_layout` in `autograd/kernels/cpu/rows.py`. Where a
    parameter has its memory for itself, its array is replaced by one in that order (same shape, same numbers), so that all exist once.
    Where it is a part of an optimizer's buffer, it must stay: the decoder then holds copies of the blocks' matrices as long as it lives,
    4 bytes x 12 n_layer C^2 (0.34 GB for GPT-2's smallest), for a single row a third of it; the output layer is then read in its stored order.
    """

    def __init__(self, model: GPT, cache: KVCache, n_rows: int) -> None:
        config, head, dtype = model.config, model.lm_head.weight, model.wte.weight.dtype
        self.model, self.cache = model, cache
        b, c, h, d = n_rows, config.n_embd, config.n_head, config.channels_per_head
        assert isinstance(model.wpe, nn.Embedding) and isinstance(model.ln_f, nn.LayerNorm)  # as `supports_fast_decoding` has found
        self.wpe, self.ln_f = model.wpe, model.ln_f
        self.layers = [_Layer(block, b) for block in model.h if isinstance(block, Block)]
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
        model, n, x = self.model, int(positions.max()) + 1, self.x
        hidden = None  # slots that a row must not see
        if int(positions.min()) + 1 != n:
            hidden = (np.arange(n) > positions[:, None])[:, None, None]  # (B, 1, 1, S)
        slots = (self.rows, slice(None), positions) if len(positions) > 1 else (0, slice(None), n - 1)  # plain numbers are found faster
        x[...] = model.wte.weight.data[tokens]
        x += self.wpe.weight.data[positions]
        for i, layer in enumerate(self.layers):
            self._attend(layer, self.cache.keys[i], self.cache.values[i], slots, n, hidden)
            self._mlp(layer)
        self._norm(self.ln_f)
        inference.linear(self.normed, self.head, None, self.logits, self.scratch)
        return self.logits

    def _attend(
        self, layer: "_Layer", keys: ag.Array, values: ag.Array, slots: tuple[ag.Array, ...], n: int, hidden: np.ndarray | None
    ) -> None:
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
        self.c_attn, self.attn_proj, self.c_fc, self.mlp_proj = (
            (_preferred_layout(layer.weight, n_rows), None if layer.bias is None else layer.bias.data)
            for layer in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)
        )


def _preferred_layout(weight: ag.Parameter, n_rows: int, *, out_first: bool = False) -> np.ndarray:
    """The weights, (out, in), as `linear` wants them for n_rows rows; the parameter takes over the new array where it may."""
    matrix = weight.data if out_first else weight.data.T
    preferred = inference.preferred_layout(matrix, n_rows)
    if preferred is not matrix and _owns_memory(weight.data):
        weight.data = preferred if out_first else preferred.T
    return preferred


def _owns_memory(array: np.ndarray) -> bool:
    """Whether the array owns its memory, so that another may replace it."""
    memory = array if array.base is None else array.base
    return isinstance(memory, np.ndarray) and memory.flags.owndata and memory.size == array.size
