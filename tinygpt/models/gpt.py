"""The GPT: token and position embeddings, a stack of pre-norm transformer blocks, a final norm and an output layer.

These are GPT-2's blocks. Where the config asks for others (RMS norm, rotary positions, ...), `GPT` is made of those in blocks.py.

Source  Radford et al. 2019, Language models are unsupervised multitask learners (GPT-2), section 2.3; attribute names are those
of GPT-2's published tensors (wte, wpe, h.0.attn.c_attn, ...), so `named_parameters` gives the names in the file.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

import autograd as ag
from autograd import backend, nn
from tinygpt.config import GPTConfig
from tinygpt.errors import InvalidInput
from tinygpt.models.attached import Attached
from tinygpt.models.base import Model
from tinygpt.models.blocks import ComposedBlock, composed_blocks, fixed_positions, last_norm, norm

if TYPE_CHECKING:
    from tinygpt.models.cache import LayerView, View


class CausalSelfAttention(nn.Module):
    """Every position attends to itself and all earlier ones, in several heads."""

    def __init__(self, config: GPTConfig, init: "Initializer", stream: ag.RandomStream) -> None:
        c = config.n_embd
        self.n_head = config.n_head
        self.p = config.dropouts["attn_pdrop"]
        self.stream = stream
        self.c_attn = nn.Linear(c, 3 * c, config.qkv_bias, init=init.normal)
        self.c_proj = nn.Linear(c, c, init=init.residual)
        self.resid_dropout = nn.Dropout(config.dropout, stream)

    def forward(self, x: ag.Tensor, mask: ag.Array | None = None, cache: "LayerView | None" = None, last_only: bool = False) -> ag.Tensor:
        b, t, c = x.shape
        shape = (b, t, self.n_head, c // self.n_head)
        q, k, v = (part.reshape(shape).transpose(0, 2, 1, 3) for part in ag.split(self.c_attn(x), 3))  # (B, H, T, D) each
        if cache is not None:
            k, v = cache.update(k, v)  # (B, H, S, D): those of earlier calls in front
        if last_only:
            q, t = q[:, :, -1:], 1  # with keys and values of all positions
        y = ag.scaled_dot_product_attention(q, k, v, mask, causal=True, dropout=self.p, training=self.training, stream=self.stream)
        y = y.transpose(0, 2, 1, 3).reshape(b, t, c)  # (B, H, T, D) -> (B, T, C): the heads' channels concatenated
        return self.resid_dropout(self.c_proj(y))


class MLP(nn.Module):
    """Each position by itself: widen four times, GELU, narrow again."""

    def __init__(self, config: GPTConfig, init: "Initializer", stream: ag.RandomStream) -> None:
        c = config.n_embd
        self.c_fc = nn.Linear(c, 4 * c, init=init.normal)
        self.c_proj = nn.Linear(4 * c, c, init=init.residual)
        self.resid_dropout = nn.Dropout(config.dropout, stream)

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        h = ag.gelu(self.c_fc(x))  # (B, T, 4C)
        return self.resid_dropout(self.c_proj(h))  # (B, T, C)


class Block(nn.Module):
    """Attention, then MLP, each on a normalized copy of the residual stream and added back to it."""

    def __init__(self, config: GPTConfig, init: "Initializer", stream: ag.RandomStream) -> None:
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = CausalSelfAttention(config, init, stream)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = MLP(config, init, stream)
        self.recompute = False  # True: keep only x for the backward pass, and compute the rest again there

    def forward(self, x: ag.Tensor, mask: ag.Array | None = None, cache: "LayerView | None" = None, last_only: bool = False) -> ag.Tensor:
        y = self.attn(self.ln_1(x), mask, cache, last_only)
        x = (x[:, -1:] if last_only else x) + y
        return x + self.mlp(self.ln_2(x))


class OutputLayer(nn.Module):
    """A score for each token of the vocabulary.

    weight (V, C), often the token embedding's own; softcap: see `GPTConfig.logit_softcap`; scale: factor of the logits before that,
    other than 1 by the width rule (`tinygpt/width_rule.py`).
    """

    def __init__(self, weight: ag.Parameter, softcap: float | None = None, scale: float = 1.0) -> None:
        self.weight = weight
        self.softcap, self.scale = softcap, scale

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        logits = self.scaled(x) @ nn.cast_like(self.weight, x).T  # (..., V)
        return logits if self.softcap is None else ag.soft_cap(logits, self.softcap)

    def scaled(self, x: ag.Tensor) -> ag.Tensor:
        """What the weights are multiplied with: the logits' factor is applied to x, which is smaller."""
        return x if self.scale == 1 else x * self.scale


class Initializer:
    """GPT-2's initial weights, drawn on the host so that every backend starts from the same ones.

    Matrices and embeddings: normal, `initializer_range`. Projections back into the residual stream: smaller by sqrt(2 n_layer),
    because 2 n_layer of them add up in it (GPT-2 report, section 2.3). Biases 0, norms 1 and 0.
    With the width rule (`tinygpt/width_rule.py`) the blocks' matrices are smaller by the root of the width ratio.
    """

    def __init__(self, config: GPTConfig, seed: int, empty: bool = False) -> None:
        self.config = config
        self.rng = np.random.default_rng([seed, 0])
        self.empty = empty  # the weights are about to be loaded: leave them unset

    def normal(self, shape: tuple[int, ...], scale: float = 1.0) -> ag.Array:
        if self.empty:
            return backend.to_device(np.empty(shape, dtype=np.float32))
        return self.drawn(shape, scale)

    def drawn(self, shape: tuple[int, ...], scale: float) -> ag.Array:
        values = self.rng.standard_normal(shape, dtype=np.float32)
        values *= scale * self.config.initializer_range
        return backend.to_device(values)

    def hidden(self, shape: tuple[int, ...]) -> ag.Array:
        return self.normal(shape, scale=1 / math.sqrt(self.config.width_ratio))

    def residual(self, shape: tuple[int, ...]) -> ag.Array:
        return self.normal(shape, scale=1 / math.sqrt(2 * self.config.n_layer * self.config.width_ratio))


class GPT(Model):
    """A language model: for each position, a distribution over the next token.

    config   the shape; see GPTConfig
    seed     decides the initial weights and the dropout masks
    """

    config_class = GPTConfig
    config: GPTConfig
    h: Sequence[Block | ComposedBlock]
    cross_entropy: Callable[..., ag.Tensor] = staticmethod(ag.linear_cross_entropy)

    def __init__(self, config: GPTConfig, seed: int = 0, *, _empty: bool = False, _init: Initializer | None = None) -> None:
        super().__init__(config, seed)
        init = _init or Initializer(config, seed, _empty)
        self.wte = nn.Embedding(config.vocab_size, config.n_embd, init=init.normal)
        learned = config.positions == "learned"
        self.wpe = nn.Embedding(config.n_positions, config.n_embd, init=init.normal) if learned else fixed_positions(config)
        self.ln_e = norm(config, config.n_embd) if config.embedding_norm else None
        self.embd_dropout = nn.Dropout(config.dropouts["embd_pdrop"], self.dropout_stream)
        if config.options():
            self.h = composed_blocks(config, init, self.dropout_stream)
        else:
            self.h = [Block(config, init, self.dropout_stream) for _ in range(config.n_layer)]
        self.ln_f = last_norm(config)
        tied = config.tie_word_embeddings
        weight = self.wte.weight if tied else ag.Parameter(init.normal((config.vocab_size, config.n_embd)))
        self.lm_head = OutputLayer(weight, config.logit_softcap, 1 / config.width_ratio)

    def hidden(
        self, ids: ArrayLike, attention_mask: ArrayLike | None = None, cache: "View | None" = None, last_only: bool = False
    ) -> ag.Tensor:
        """The input of the output layer: the residual stream after all blocks, normalized.

        ids              (B, T) host integers, T <= n_positions
        attention_mask   (B, T), 1 for tokens and 0 for padding (either side), or None
        cache            keys and values of earlier tokens, which `ids` then continue; see `tinygpt.models.cache`
        last_only        compute the last position alone where that suffices: in the last block, all but keys and values
        Returns (B, T, C), or (B, 1, C) with last_only. Raises ValueError for other shapes, ids out of range, or a mask with a cache.
        """
        ids = np.asarray(ids)
        if ids.ndim != 2:
            raise InvalidInput(f"GPT: ids of shape {ids.shape}, expected (batch, positions); wrap one sequence as [ids]")
        t = ids.shape[1]
        if t > self.config.n_positions:
            raise InvalidInput(f"GPT: {t} positions, expected at most n_positions = {self.config.n_positions}; shorten the input")
        positions, mask = np.arange(t), None
        if attention_mask is not None:
            real = backend.as_mask(np.asarray(attention_mask), "GPT: attention_mask")
            if real.shape != ids.shape:
                raise InvalidInput(f"GPT: attention_mask of shape {real.shape}, expected {ids.shape}, that of ids; one entry per token")
            positions = np.maximum(np.cumsum(real, axis=1) - 1, 0)  # (B, T): padding on the left does not count
            mask = backend.to_device(real[:, None, None, :])  # (B, 1, 1, S): padding is never attended to
            if cache is not None:
                raise InvalidInput(f"GPT: attention_mask of shape {real.shape} with a cache, expected None; leave padding out of ids")
        if cache is not None:
            positions, mask = cache.positions, cache.mask
        x = self.embed(ids, positions)
        turned = {"positions": positions} if self.config.positions == "rotary" else {}  # queries and keys, in the blocks
        for i, block in enumerate(self.h):
            last = last_only and i == len(self.h) - 1
            if block.recompute and cache is None:
                x = nn.recompute(partial(block, mask=mask, last_only=last, **turned), x, [self.dropout_stream])
            else:
                x = block(x, mask, None if cache is None else cache.layer(i), last, **turned)
        return self.ln_f(x)

    def embed(self, ids: ArrayLike, positions: np.ndarray) -> ag.Tensor:
        """The input of the first block, (B, T, C): tokens ids (B, T) at `positions` (T,) or (B, T)."""
        x = self.wte(ids)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.wpe is not None:  # positions that are added here, and do not act in attention
            x = x + self.wpe(positions)
        if self.ln_e is not None:
            x = self.ln_e(x)
        if self.dtype != np.float32:
            x = ag.cast(x, self.dtype)  # all that follows takes its dtype from here
        return self.embd_dropout(x)

    def forward(self, ids: ArrayLike, attention_mask: ArrayLike | None = None) -> ag.Tensor:
        """Logits (B, T, V) for ids (B, T); see `hidden` for the arguments."""
        with nn.weights_in(self, self.dtype):
            return self.lm_head(self.hidden(ids, attention_mask))

    def loss(self, ids: ArrayLike, targets: ArrayLike, attention_mask: ArrayLike | None = None, *, ignore_index: int = -100) -> ag.Tensor:
        """Mean cross-entropy of `targets` (B, T), in nats per token, as a scalar; targets equal to ignore_index do not count.

        In training mode it includes z-loss and label smoothing, where `set_z_loss` and `set_label_smoothing` have given them a weight; in
        evaluation mode it never does.
        Output layer and loss are one op, so the (B T, V) logits never exist at once.
        """
        with nn.weights_in(self, self.dtype):
            return self.loss_of(self.hidden(ids, attention_mask), targets, ignore_index=ignore_index)

    def loss_of(self, hidden: ag.Tensor, targets: ArrayLike, *, ignore_index: int = -100) -> ag.Tensor:
        """The loss, from the output (B, T, C) of `hidden`."""
        x = self.lm_head.scaled(hidden)
        return self.cross_entropy(
            x, nn.cast_like(self.lm_head.weight, x), targets, ignore_index=ignore_index, softcap=self.config.logit_softcap or 0.0,
            z_loss=self.z_loss if self.training else 0.0, label_smoothing=self.label_smoothing if self.training else 0.0,
        )  # fmt: skip

    if TYPE_CHECKING:  # of a layer above: tinygpt.inference.decoding

        def generate(self, ids: ArrayLike, max_new_tokens: int, **options: object) -> np.ndarray: ...
    else:
        generate = Attached()


def window_length(n_tokens: int, n_positions: int) -> int:
    """How many of the last of n_tokens tokens the model reads.

    Learned positions cannot slide by one: every cached key would be at the wrong position. So a window that is full is cut to its last
    half, which is read again from position 0, and then grows again. The rule depends on the count alone: with or without a cache, and
    however a text is split into prompt and continuation, the model reads the same. Rotary positions and ALiBi, which know distances only,
    could drop one key at a time; but what later blocks cached was computed when the dropped token was still seen, so the same rule holds.
    """
    if n_tokens <= n_positions:
        return n_tokens
    kept = max(n_positions // 2, 1)
    return kept + (n_tokens - n_positions - 1) % (n_positions + 1 - kept)


def generate_plain(
    model: GPT, ids: Sequence[int], max_new_tokens: int, *, temperature: float = 0.8, top_k: int = 50, seed: int = 0
) -> list[int]:
    """One text continued: predict the next token, choose it, append it, and read the longer text again.

    ids           the prompt, at least one token
    temperature   divides the logits; 0: always the likeliest token (greedy)
    top_k         choose among the k likeliest tokens; 0: all
    `model.generate` gives the same tokens from the same seed, faster and with more options (`tinygpt/inference/`).
    """
    text, rng = list(ids), np.random.default_rng([seed, 0])
    with nn.evaluating(model), ag.no_grad():
        for _ in range(max_new_tokens):
            window = text[-window_length(len(text), model.config.n_positions) :]
            logits = backend.to_host(model([window]).data)[0, -1].astype(np.float64)  # (V,): the last position predicts what is new
            if temperature == 0:
                text.append(int(logits.argmax()))
                continue
            if top_k:
                logits[np.argsort(-logits, kind="stable")[top_k:]] = -np.inf
            p = np.exp((logits - logits.max()) / temperature)
            text.append(int(rng.choice(len(p), p=p / p.sum())))
    return text
