"""One token per row through a GPT on the CPU, into buffers allocated once: the fast counterpart of `GPT.hidden` with a cache.

The arithmetic of `tinygpt/models/gpt.py` and `blocks.py`, layer by layer, but nothing is recorded and nothing allocated. Read the models
first. As there, what a decoder does is decided when it is made: it is a list of steps, each of which reads buffers and writes others.
docs/cache.md says what this costs and gains.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np

import autograd as ag
from autograd import inference, nn
from tinygpt.model_config import GPTConfig
from tinygpt.models import blocks
from tinygpt.models.cache import KVCache
from tinygpt.models.gpt import GPT, MLP, Block, CausalSelfAttention, OutputLayer
from tinygpt.models.protocols import Decodable

_COPIED = {
    GPT: "config dtype z_loss label_smoothing dropout_stream wte wpe ln_e embd_dropout h ln_f lm_head",
    Block: "ln_1 attn ln_2 mlp recompute",
    CausalSelfAttention: "n_head p stream c_attn c_proj resid_dropout",
    MLP: "c_fc c_proj resid_dropout",
    **dict.fromkeys(blocks.ComposedBlock.__subclasses__(), "ln_1 attn ln_1_out ln_2 mlp ln_2_out recompute"),
    blocks.ComposedAttention: "lengths head_size window attend turned c_attn normed q_norm k_norm c_proj resid_dropout rotary",
    blocks.ComposedMLP: "activation c_fc c_proj resid_dropout",
    blocks.GatedMLP: "activation activation_name c_gate c_fc c_proj resid_dropout",
    blocks.SinusoidalPositions: "table",
    blocks.Identity: "",
    OutputLayer: "weight softcap scale",
    nn.Linear: "weight bias",
    nn.LayerNorm: "weight bias eps",
    nn.RMSNorm: "weight eps offset",
    nn.Embedding: "weight",
    nn.Dropout: "p stream",  # all dropout is off when decoding
}
_ATTRIBUTES = {layer: {"training", *names.split()} for layer, names in _COPIED.items()}
"""The layers whose arithmetic `FastDecoder` repeats, and their attributes: another one may be an option that it does not know."""


def supports_fast_decoding(model: Decodable) -> TypeGuard[GPT]:
    """Whether `FastDecoder` computes the same as this model: a GPT of exactly the layers that it copies (no adapters), with no other
    attributes, in the shapes of its config and of one dtype; and fast kernels are on."""
    if not (inference.available() and type(model) is GPT):
        return False
    config = model.config
    each = {f"h.{i}.{name}": shape for i in range(config.n_layer) for name, shape in config.block_shapes().items()}
    return (
        all(vars(module).keys() <= _ATTRIBUTES.get(type(module), set()) for _, module in model.named_modules())
        and {name: p.shape for name, p in model.named_parameters()} == config.outer_shapes() | each
        and all(getattr(block.attn, "n_head", config.n_head) == config.n_head for block in model.h)
        and len({p.dtype for p in model.parameters()}) == 1
    )


@dataclass
class _Token:
    """What changes from token to token, computed once for all layers.

    slots    index of the cache's slots that the rows' keys and values go to
    n        slots that are in use, 0 .. n - 1
    seen     by window (0: none): the first slot that any row sees, and (B, 1, 1, S) booleans, True for what a row does not, or None
    angles   by `RotaryPositions`: [cos, cos] and [-sin, sin] at the rows' positions
    """

    slots: tuple[ag.Array, ...]
    n: int
    seen: dict[int, tuple[int, np.ndarray | None]] = field(default_factory=dict)
    angles: dict[nn.RotaryPositions, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)


Step = Callable[[_Token], object]


class FastDecoder:
    """Logits of the next token for `n_rows` rows at once, one token per row and call.

    The matrices are wanted in an order in memory that depends on n_rows, see `preferred_layout` in `autograd/kernels/cpu/rows.py`. Where a
    parameter has its memory for itself, its array is replaced by one in that order (same shape, same numbers), so that all exist once.
    Where it is a part of an optimizer's buffer, it must stay: the decoder then holds copies of the blocks' matrices as long as it lives,
    for GPT-2 4 bytes x 12 n_layer C^2 (0.34 GB for its smallest), for a single row a third of it; the output layer is then read in its
    stored order.
    """

    def __init__(self, model: GPT, cache: KVCache, n_rows: int) -> None:
        config, head, dtype = model.config, model.lm_head.weight, model.wte.weight.dtype
        self.model, self.rows = model, np.arange(n_rows)
        self.head = _preferred_layout(head, n_rows, out_first=True) if _owns_memory(head.data) else head.data
        self.logits = np.empty((n_rows, config.vocab_size), dtype)
        self.buffers = _Buffers(config, n_rows, cache.n_slots, dtype)
        x = self.buffers.x
        self.added = [table for table in (_position_table(model),) if table is not None]  # to the embeddings, at each row's position
        self.entry = [] if model.ln_e is None else [self.buffers.norm(model.ln_e, x, x)]
        self.steps = [step for i, block in enumerate(model.h) for step in _block_steps(block, self.buffers, cache.keys[i], cache.values[i])]
        self.steps.append(self.buffers.norm(model.ln_f, x, self.buffers.read))
        attentions = [block.attn for block in model.h if isinstance(block.attn, blocks.ComposedAttention)]
        self.windows = {0, *(attention.window for attention in attentions)}
        self.angles = {
            attention.rotary: _angles(attention.rotary, cache.n_slots) for attention in attentions if attention.rotary is not None
        }

    def step(self, tokens: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Logits (B, V) after `tokens` (B,) at `positions` (B,). The array is overwritten by the next call."""
        model, x, token = self.model, self.buffers.x, self._token(positions)
        x[...] = model.wte.weight.data[tokens]
        if model.config.embedding_scale != 1:
            x *= model.config.embedding_scale
        for table in self.added:
            x += table[positions]
        for run in self.entry:
            run(token)
        for run in self.steps:
            run(token)
        if model.lm_head.scale != 1:
            self.buffers.read *= model.lm_head.scale
        inference.linear(self.buffers.read, self.head, None, self.logits, self.buffers.scratch)
        if model.lm_head.softcap is not None:
            self.logits *= 1 / model.lm_head.softcap
            np.tanh(self.logits, out=self.logits)
            self.logits *= model.lm_head.softcap
        return self.logits

    def _token(self, positions: np.ndarray) -> _Token:
        first, n = int(positions.min()), int(positions.max()) + 1
        slots = (self.rows, slice(None), positions) if len(positions) > 1 else (0, slice(None), n - 1)  # plain numbers are found faster
        token = _Token(slots, n)
        for window in self.windows:
            start, hidden = max(0, first + 1 - window) if window else 0, None
            if first + 1 != n:
                here = np.arange(start, n)
                hidden = here > positions[:, None]
                hidden |= (here <= positions[:, None] - window) if window else False
                hidden = hidden[:, None, None]  # (B, 1, 1, S)
            token.seen[window] = start, hidden
        for rotary, (cos, sin) in self.angles.items():
            token.angles[rotary] = (cos[first], sin[first]) if first + 1 == n else (cos[positions][:, None], sin[positions][:, None])
        return token


class _Buffers:
    """The arrays that all layers use in turn, and steps that work on them. B rows.

    x       (B, C) the residual stream           read   (B, C) what a branch reads, where that is not x
    added   (B, C) what a branch gives, twice: parallel branches each have one
    """

    def __init__(self, config: GPTConfig, n_rows: int, n_slots: int, dtype: np.dtype) -> None:
        b, c, h, d, f = n_rows, config.n_embd, config.n_head, config.channels_per_head, config.inner_channels
        self.config, self.n_rows = config, b
        self.x, self.read, *self.added = (np.empty((b, c), dtype) for _ in range(4))
        self.qkv, self.attended = np.empty((b, (h + 2 * config.kv_heads) * d), dtype), np.empty((b, h * d), dtype)
        self.wide, self.gate = (np.empty((b, f), dtype) for _ in range(2))
        self.column, self.head_column = np.empty((b * h, 1), dtype), np.empty((b, h, 1, 1), dtype)
        self.scores = np.empty((b, h, 1, n_slots), dtype)
        self.scratch = np.empty(b * max(self.qkv.shape[1], f, c, config.vocab_size if b > 1 else 0), dtype)
        self.distances = np.arange(1 - n_slots, 1).astype(dtype)  # from the last slot

    def norm(self, norm: nn.Module, source: np.ndarray, out: np.ndarray) -> Step:
        """out, which may be source, becomes the norm of its rows."""
        column = self.column[: len(source)]
        if isinstance(norm, nn.LayerNorm):
            layer = norm
            return lambda token: inference.layer_norm(source, layer.weight.data, layer.bias.data, layer.eps, out, column)
        if isinstance(norm, nn.RMSNorm):
            eps, scale = norm.eps, None if norm.weight is None else norm.weight.data
            if scale is not None and norm.offset:
                scale = scale + norm.offset
            return lambda token: inference.rms_norm(source, scale, eps, out, column)
        return lambda token: np.copyto(out, source)

    def add(self, which: int = 0) -> Step:
        """x += what a branch gave."""
        x, added = self.x, self.added[which]
        return lambda token: np.add(x, added, out=x)

    def linear(self, layer: nn.Linear, source: np.ndarray, out: np.ndarray) -> Step:
        weight, bias, scratch = _preferred_layout(layer.weight, self.n_rows), None if layer.bias is None else layer.bias.data, self.scratch
        return lambda token: inference.linear(source, weight, bias, out, scratch)


def _block_steps(block: Block | blocks.ComposedBlock, buffers: _Buffers, keys: ag.Array, values: ag.Array) -> list[Step]:
    """A block's steps, in the order in which its class puts attention, MLP and norms together."""
    x, read, (added, second) = buffers.x, buffers.read, buffers.added

    def attend(source: np.ndarray) -> list[Step]:
        return _attention_steps(block.attn, buffers, source, keys, values)

    def mlp(source: np.ndarray, out: np.ndarray = added) -> list[Step]:
        return _mlp_steps(block.mlp, buffers, source, out)

    norm, add = buffers.norm, buffers.add
    if isinstance(block, blocks.PostNormBlock):
        return [*attend(x), add(), norm(block.ln_1, x, x), *mlp(x), add(), norm(block.ln_2, x, x)]
    if isinstance(block, blocks.OutputNormBlock):
        return [*attend(x), norm(block.ln_1_out, added, added), add(), *mlp(x), norm(block.ln_2_out, added, added), add()]
    first = [norm(block.ln_1, x, read), *attend(read)]
    if isinstance(block, blocks.SandwichBlock):
        out_1, out_2 = norm(block.ln_1_out, added, added), norm(block.ln_2_out, added, added)
        return [*first, out_1, add(), norm(block.ln_2, x, read), *mlp(read), out_2, add()]
    if isinstance(block, blocks.SharedNormBlock):
        return [*first, *mlp(read, second), add(), add(1)]
    if isinstance(block, blocks.ParallelBlock):
        return [*first, norm(block.ln_2, x, read), *mlp(read, second), add(), add(1)]
    return [*first, add(), norm(block.ln_2, x, read), *mlp(read), add()]


def _attention_steps(
    attention: CausalSelfAttention | blocks.ComposedAttention, buffers: _Buffers, source: np.ndarray, keys: ag.Array, values: ag.Array
) -> list[Step]:
    """added = c_proj(attention(c_attn(source))), with this token's key and value put into the cache."""
    config, b, d = buffers.config, buffers.n_rows, buffers.config.channels_per_head
    n_q, n_kv = config.n_head * d, config.kv_heads * d
    steps = [buffers.linear(attention.c_attn, source, buffers.qkv)]
    q, k, v = buffers.qkv[:, :n_q], buffers.qkv[:, n_q : n_q + n_kv], buffers.qkv[:, n_q + n_kv :]  # views
    turned, rotary, window = [buffers.qkv[:, : n_q + n_kv]], None, 0  # queries and keys at once
    if isinstance(attention, blocks.ComposedAttention):
        rotary, window = attention.rotary, attention.window
        if config.qk_norm != "none":
            q, k = turned = [_normed_heads(steps, buffers, norm, part) for norm, part in ((attention.q_norm, q), (attention.k_norm, k))]
    queries, keys_now, values_now = (part.reshape(b, -1, d) for part in (q, k, v))  # (B, H, D), twice (B, H_kv, D)
    one_query = queries[:, :, None]
    if rotary is not None:
        steps += [_turn(rotary, part.reshape(b, -1, d), buffers.scratch) for part in turned]
    scores, column, answers = buffers.scores, buffers.head_column, buffers.attended.reshape(b, -1, 1, d)
    scale, softcap = config.attention_scale, config.attention_softcap or 0.0
    slopes = np.array(ag.alibi_slopes(config.n_head), scores.dtype)[:, None, None] if config.positions == "alibi" else None
    bias = None if slopes is None else slopes * buffers.distances  # (H, 1, n_slots)

    def attend(token: _Token) -> None:
        keys[token.slots], values[token.slots] = keys_now, values_now
        first, hidden = token.seen[window]
        s = slice(first, token.n)
        inference.attention(
            one_query, keys[:, :, s], values[:, :, s], hidden, scores[..., : token.n - first], column, answers,
            scale=scale, softcap=softcap, bias=None if bias is None else bias[..., first - token.n :],
        )  # fmt: skip

    return [*steps, attend, buffers.linear(attention.c_proj, buffers.attended, buffers.added[0])]


def _normed_heads(steps: list[Step], buffers: _Buffers, norm: nn.Module, part: np.ndarray) -> np.ndarray:
    """Adds the steps that normalize queries or keys (B, H D), as the config says; returns the array that will hold them."""
    own = np.empty(part.shape, part.dtype)
    rows = own.reshape(-1, buffers.config.channels_per_head) if buffers.config.qk_norm == "head" else own
    steps += [lambda token: np.copyto(own, part), buffers.norm(norm, rows, rows)]
    return own


def _angles(rotary: nn.RotaryPositions, n: int) -> tuple[np.ndarray, np.ndarray]:
    """[cos, cos] and [-sin, sin] of positions 0 .. n - 1, (n, 2, R/2)."""
    cos, sin = rotary.tables(np.arange(n))
    return np.stack((cos, cos), axis=1), np.stack((-sin, sin), axis=1)


def _turn(rotary: nn.RotaryPositions, heads: np.ndarray, scratch: np.ndarray) -> Step:
    """The heads (B, H, D) are turned."""
    x, swapped = inference.halves(heads[..., : 2 * len(rotary.frequencies)])
    scratch = scratch[: x.size].reshape(x.shape)
    return lambda token: inference.rotary(x, swapped, *token.angles[rotary], scratch)


def _mlp_steps(mlp: MLP | blocks.ComposedMLP, buffers: _Buffers, source: np.ndarray, out: np.ndarray) -> list[Step]:
    """out = the MLP of source."""
    wide, gate, scratch, name = buffers.wide, buffers.gate, buffers.scratch, buffers.config.activation
    act = scratch[: gate.size].reshape(gate.shape)
    if isinstance(mlp, blocks.GatedMLP):
        steps = [buffers.linear(mlp.c_fc, source, wide), buffers.linear(mlp.c_gate, source, gate)]
        if name == "silu":
            steps.append(lambda token: inference.gated_silu(gate, wide, act))
        else:
            steps += [lambda token: inference.activate(name, gate, act), lambda token: np.multiply(wide, act, out=wide)]
    elif name == "gelu":
        steps = [buffers.linear(mlp.c_fc, source, wide), lambda token: inference.gelu(wide, scratch)]
    else:
        steps = [buffers.linear(mlp.c_fc, source, gate), lambda token: inference.activate(name, gate, wide)]
    return [*steps, buffers.linear(mlp.c_proj, wide, out)]


def _position_table(model: GPT) -> np.ndarray | None:
    """What is added to the embeddings, by position."""
    if isinstance(model.wpe, nn.Embedding):
        return model.wpe.weight.data  # type: ignore[no-any-return]
    return None if model.wpe is None else model.wpe.table.data.astype(model.wte.weight.dtype)


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
