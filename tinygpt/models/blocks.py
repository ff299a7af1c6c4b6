"""Blocks beyond GPT-2's: put together from norms, attention and MLP as a `GPTConfig` says. Read GPT-2's in gpt.py first.

What a model does is decided here, in the constructors; the forward passes run what they were given, without asking the config again.
With GPT-2's own settings these blocks compute the same bits as those of gpt.py, which stay the ones that GPT-2 is made of.

Parameter names are GPT-2's. What it lacks is named in its style: attn.q_norm and attn.k_norm, mlp.c_gate, ln_1_out and ln_2_out for norms on
the branches' outputs, ln_e on the embeddings. c_attn is (C, (H + 2 H_kv) D): queries of all heads, then keys, then values.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

import autograd as ag
from autograd import nn
from tinygpt.model_config import GPTConfig

if TYPE_CHECKING:
    from tinygpt.models.cache import LayerCache
    from tinygpt.models.gpt import Initializer

Attend = Callable[[ag.Tensor], ag.Tensor]


class Identity(nn.Module):
    """Where a config has no norm."""

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        return x


def norm(config: GPTConfig, n_channels: int) -> nn.Module:
    """A norm of the model's kind."""
    if config.norm == "layer":
        return nn.LayerNorm(n_channels, config.layer_norm_epsilon)
    return nn.RMSNorm(n_channels, config.layer_norm_epsilon, offset=config.norm_offset, weight=config.norm == "rms")


def last_norm(config: GPTConfig) -> nn.Module:
    """The norm after the last block; none where that block has ended with one."""
    return Identity() if config.norm_position == "post" else norm(config, config.n_embd)


def fixed_positions(config: GPTConfig) -> "SinusoidalPositions | None":
    """What is added to the embeddings in place of learned positions."""
    return SinusoidalPositions(config) if config.positions == "sinusoidal" else None


class SinusoidalPositions(nn.Module):
    """A fixed row of sines and cosines per position, instead of a learned one."""

    def __init__(self, config: GPTConfig) -> None:
        self.table = ag.Tensor(nn.sinusoidal_positions(config.n_positions, config.n_embd))

    def forward(self, positions: np.ndarray) -> ag.Tensor:
        return ag.embedding(self.table, positions)


class ComposedAttention(nn.Module):
    """Self-attention with the options of the config: fewer key heads, normalized or turned queries and keys, windows, ...

    rotary   the angles of positions by which queries and keys are turned, or None
    causal   whether a position attends to itself and earlier ones only; an encoder's attend to all
    """

    def __init__(
        self, config: GPTConfig, layer: int, rotary: nn.RotaryPositions | None, init: "Initializer", stream: ag.RandomStream,
        causal: bool = True,
    ) -> None:  # fmt: skip
        c, h, h_kv, d = config.n_embd, config.n_head, config.kv_heads, config.channels_per_head
        self.lengths, self.head_size = (h * d, h_kv * d, h_kv * d), d
        self.window = config.window_of(layer) or 0
        self.attend = partial(
            ag.scaled_dot_product_attention, causal=causal, scale=config.attention_scale, softcap=config.attention_softcap or 0.0,
            alibi=ag.alibi_slopes(h) if config.positions == "alibi" else None, dropout=config.dropouts["attn_pdrop"], stream=stream,
        )  # fmt: skip
        self.rotary = rotary
        self.turned = unturned if rotary is None else partial(turned, rotary)
        self.c_attn = nn.Linear(c, sum(self.lengths), config.qkv_bias, init=init.hidden)
        self.normed = _NORMED[config.qk_norm]
        widths = {"none": (0, 0), "head": (d, d), "all": self.lengths[:2]}[config.qk_norm]
        self.q_norm, self.k_norm = (norm(config, n) if n else Identity() for n in widths)
        self.c_proj = nn.Linear(h * d, c, config.attention_output_bias, init=init.residual)
        self.resid_dropout = nn.Dropout(config.dropout, stream)

    def forward(
        self, x: ag.Tensor, mask: ag.Array | None = None, cache: "LayerCache | None" = None, last_only: bool = False,
        positions: np.ndarray | None = None,
    ) -> ag.Tensor:  # fmt: skip
        b, t, _ = x.shape
        q, k, v = ag.split(self.c_attn(x), self.lengths)  # (B, T, H D), twice (B, T, H_kv D)
        q, k, v = self.normed(q, self.q_norm, self.head_size), self.normed(k, self.k_norm, self.head_size), by_head(v, self.head_size)
        q, k, v = (part.transpose(0, 2, 1, 3) for part in (q, k, v))  # (B, H, T, D), twice (B, H_kv, T, D)
        q, k = self.turned(q, k, positions)  # after the norm. nanochat turns first: without a weight it is the same, as lengths stay
        window = self.window
        if cache is not None:
            k, v = cache.update(k, v)  # (B, H_kv, S, D): those of earlier calls in front
            window, mask = cache.within(window, mask)
        if last_only:
            q, t = q[:, :, -1:], 1  # with keys and values of all positions
        y = self.attend(q, k, v, mask, window=window, training=self.training)  # (B, H, T, D)
        y = y.transpose(0, 2, 1, 3).reshape(b, t, self.lengths[0])  # the heads' channels concatenated
        return self.resid_dropout(self.c_proj(y))  # (B, T, C)


def by_head(x: ag.Tensor, head_size: int) -> ag.Tensor:
    """(B, T, H D) -> (B, T, H, D)."""
    return x.reshape(*x.shape[:2], -1, head_size)


def not_normed(x: ag.Tensor, norm: nn.Module, head_size: int) -> ag.Tensor:
    return by_head(x, head_size)


def each_normed(x: ag.Tensor, norm: nn.Module, head_size: int) -> ag.Tensor:
    """As `by_head`, each head normalized by itself, with one weight for all of them: Qwen3, Gemma 3."""
    return norm(by_head(x, head_size))


def together_normed(x: ag.Tensor, norm: nn.Module, head_size: int) -> ag.Tensor:
    """As `by_head`, all heads normalized together: OLMo 2."""
    return by_head(norm(x), head_size)


_NORMED = {"none": not_normed, "head": each_normed, "all": together_normed}


def turned(rotary: nn.RotaryPositions, q: ag.Tensor, k: ag.Tensor, positions: np.ndarray | None) -> tuple[ag.Tensor, ag.Tensor]:
    """Queries and keys (B, H, T, D) with pairs of channels turned by the angles of their `positions`, (T,) or (B, T)."""
    assert positions is not None
    cos, sin = rotary.tables(positions)
    return ag.rotary_embedding(q, cos, sin), ag.rotary_embedding(k, cos, sin)


def unturned(q: ag.Tensor, k: ag.Tensor, positions: np.ndarray | None) -> tuple[ag.Tensor, ag.Tensor]:
    return q, k


class ComposedMLP(nn.Module):
    """Two linear layers with the config's activation in between, position by position."""

    def __init__(self, config: GPTConfig, init: "Initializer", stream: ag.RandomStream) -> None:
        c, inner = config.n_embd, config.inner_channels
        self.activation = nn.activation(config.activation)
        self.c_fc = nn.Linear(c, inner, config.mlp_bias, init=init.hidden)
        self.c_proj = nn.Linear(inner, c, config.mlp_bias, init=init.residual)
        self.resid_dropout = nn.Dropout(config.dropout, stream)

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        return self.resid_dropout(self.c_proj(self.activation(self.c_fc(x))))  # (B, T, C)


class GatedMLP(ComposedMLP):
    """The inner channels are multiplied by the activation of another linear layer of x, c_gate: SwiGLU, GeGLU.

    Source  Shazeer 2020, arXiv:2002.05202, section 2.
    """

    def __init__(self, config: GPTConfig, init: "Initializer", stream: ag.RandomStream) -> None:
        self.c_gate = nn.Linear(config.n_embd, config.inner_channels, config.mlp_bias, init=init.hidden)
        super().__init__(config, init, stream)
        self.activation_name = config.activation

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        h = ag.gated_product(self.c_gate(x), self.c_fc(x), self.activation_name)
        return self.resid_dropout(self.c_proj(h))  # (B, T, C)


class ComposedBlock(nn.Module):
    """Attention and MLP around a residual stream. The subclasses say which norms there are, and how all of it is put together."""

    norms: tuple[str, ...] = ()
    ln_1: nn.Module
    ln_1_out: nn.Module
    ln_2: nn.Module
    ln_2_out: nn.Module

    def __init__(
        self, config: GPTConfig, layer: int, rotary: nn.RotaryPositions | None, init: "Initializer", stream: ag.RandomStream,
        causal: bool = True,
    ) -> None:  # fmt: skip
        for name in ("ln_1", "attn", "ln_1_out", "ln_2", "mlp", "ln_2_out"):  # the order in which parameters are listed
            if name == "attn":
                self.attn = ComposedAttention(config, layer, rotary, init, stream, causal)
            elif name == "mlp":
                self.mlp = (GatedMLP if config.gated else ComposedMLP)(config, init, stream)
            elif name in self.norms:
                setattr(self, name, norm(config, config.n_embd))
        self.recompute = False  # as in gpt.py

    def forward(
        self, x: ag.Tensor, mask: ag.Array | None = None, cache: "LayerCache | None" = None, last_only: bool = False,
        positions: np.ndarray | None = None,
    ) -> ag.Tensor:  # fmt: skip
        attend = partial(self.attn, mask=mask, cache=cache, last_only=last_only, positions=positions)
        return self.combine(x, x[:, -1:] if last_only else x, attend)

    def combine(self, x: ag.Tensor, kept: ag.Tensor, attend: Attend) -> ag.Tensor:
        """The block's result. kept: the positions of x that are computed to the end."""
        raise NotImplementedError


class PreNormBlock(ComposedBlock):
    """Branches read a normalized copy, and nothing but sums lies on the way from input to output: GPT-2, Llama, Qwen."""

    norms = ("ln_1", "ln_2")

    def combine(self, x: ag.Tensor, kept: ag.Tensor, attend: Attend) -> ag.Tensor:
        x = kept + attend(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class PostNormBlock(ComposedBlock):
    """The sums are normalized: the first transformers, GPT-1. Xiong et al. 2020, arXiv:2002.04745, say why such a stack needs a warm-up."""

    norms = ("ln_1", "ln_2")

    def combine(self, x: ag.Tensor, kept: ag.Tensor, attend: Attend) -> ag.Tensor:
        x = self.ln_1(kept + attend(x))
        return self.ln_2(x + self.mlp(x))


class OutputNormBlock(ComposedBlock):
    """What the branches add is normalized: OLMo 2 (arXiv:2501.00656, section 3.2)."""

    norms = ("ln_1_out", "ln_2_out")

    def combine(self, x: ag.Tensor, kept: ag.Tensor, attend: Attend) -> ag.Tensor:
        x = kept + self.ln_1_out(attend(x))
        return x + self.ln_2_out(self.mlp(x))


class SandwichBlock(ComposedBlock):
    """What the branches read is normalized, and what they add: Gemma 2 and 3 (arXiv:2408.00118, section 2)."""

    norms = ("ln_1", "ln_1_out", "ln_2", "ln_2_out")

    def combine(self, x: ag.Tensor, kept: ag.Tensor, attend: Attend) -> ag.Tensor:
        x = kept + self.ln_1_out(attend(self.ln_1(x)))
        return x + self.ln_2_out(self.mlp(self.ln_2(x)))


class ParallelBlock(ComposedBlock):
    """Both branches read the same x, each its own norm of it: GPT-NeoX, Pythia, Falcon 40B."""

    norms = ("ln_1", "ln_2")

    def combine(self, x: ag.Tensor, kept: ag.Tensor, attend: Attend) -> ag.Tensor:
        return kept + attend(self.ln_1(x)) + self.mlp(self.ln_2(kept))


class SharedNormBlock(ComposedBlock):
    """Both branches read one norm of the same x: GPT-J, Falcon 7B."""

    norms = ("ln_1",)

    def combine(self, x: ag.Tensor, kept: ag.Tensor, attend: Attend) -> ag.Tensor:
        n = self.ln_1(x)
        return kept + attend(n) + self.mlp(n if kept is x else self.ln_1(kept))


_BLOCKS = {"pre": PreNormBlock, "post": PostNormBlock, "output": OutputNormBlock, "sandwich": SandwichBlock}


def composed_blocks(config: GPTConfig, init: "Initializer", stream: ag.RandomStream, causal: bool = True) -> list[ComposedBlock]:
    """The blocks of a model that is no GPT-2. Those with the same angles share their tables. causal: as in `ComposedAttention`."""
    parallel = SharedNormBlock if config.shared_norm else ParallelBlock
    block = parallel if config.parallel_residual else _BLOCKS[config.norm_position]
    everywhere, local = rotary_positions(config)
    rotary = [everywhere if config.window_of(layer) is None else local for layer in range(config.n_layer)]
    return [block(config, layer, rotary[layer], init, stream, causal) for layer in range(config.n_layer)]


def rotary_positions(config: GPTConfig) -> tuple[nn.RotaryPositions | None, nn.RotaryPositions | None]:
    """The angles in blocks that see all positions, and in those with a window; None for other kinds of positions."""
    if config.positions != "rotary":
        return None, None
    table = partial(nn.RotaryPositions, config.channels_per_head, fraction=config.rope_fraction)
    everywhere = table(theta=config.rope_theta, scaling=config.rope_scaling)
    return everywhere, everywhere if config.rope_local_theta is None else table(theta=config.rope_local_theta)
