"""The shape of a model (`GPTConfig`): GPT-2's names and values, and the options that turn it into Llama, Qwen, Gemma and other decoders."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Literal, Protocol, Self

from tinygpt.errors import InvalidInput, WrongType, did_you_mean
from tinygpt.fields import Json, check_fields, from_dict, multiples
from tinygpt.presets import PRESETS

Shapes = dict[str, tuple[int, ...]]

SIZES = "n_layer n_head n_embd n_positions vocab_size dropout embd_pdrop attn_pdrop qkv_bias tie_word_embeddings layer_norm_epsilon"
SIZES += " initializer_range"
"""Fields that a plain GPT-2 may set as it likes; each of the others makes another model of it (`GPTConfig.options`)."""


class ModelConfig(Protocol):
    """What files, training and reports need of a model's shape, whatever its kind: GPTConfig, or that of an encoder or an encoder-decoder."""

    @property
    def n_positions(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def tie_word_embeddings(self) -> bool: ...
    def n_parameters(self) -> int: ...
    @classmethod
    def from_dict(cls, fields: dict[str, Json]) -> Self: ...


@dataclass(frozen=True, repr=False)
class GPTConfig:
    """The shape of a GPT. Field names are those of GPT-2's `config.json`; defaults are those of GPT-2's smallest model, except dropout."""

    n_layer: int = 12
    """Number of transformer blocks."""
    n_head: int = 12
    """Attention heads per block; must divide n_embd, unless head_size is given."""
    n_embd: int = 768
    """Channels of the residual stream (C)."""
    n_positions: int = 1024
    """Context length: the most tokens the model sees at once (T)."""
    vocab_size: int = 50257
    """Number of token ids (V)."""
    dropout: float = 0.0
    """Probability of dropping embeddings, attention weights and residual branches in training; 0.1 to 0.2 against overfitting."""
    # 0, where GPT-2 had 0.1: a model that sees its text once or a few times hardly overfits, and dropout makes a step 15 % slower.
    embd_pdrop: float | None = None
    """The same for embeddings alone; default: `dropout`."""
    attn_pdrop: float | None = None
    """The same for attention weights alone; default: `dropout`."""
    qkv_bias: bool = True
    """Whether the query/key/value projection has a bias."""
    tie_word_embeddings: bool = True
    """Whether the output layer shares the token embedding's matrix."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in layer norm, to the mean square in RMS norm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""

    # Options beyond GPT-2. Which of them a published model takes: presets.py.
    norm: Literal["layer", "rms", "rms_unweighted"] = "layer"
    """Layer norm, RMS norm with a weight per channel, or RMS norm without."""
    norm_offset: float = 0.0
    """Added to RMS norm's weight before it scales; Gemma: 1."""
    norm_position: Literal["pre", "post", "output", "sandwich"] = "pre"
    """Where a branch f is normalized: pre x + f(n(x)), post n(x + f(x)), output x + n(f(x)), sandwich x + n(f(n(x)))."""
    parallel_residual: bool = False
    """Whether attention and MLP read the same x: x + a(n(x)) + m(n(x)), instead of one after the other."""
    shared_norm: bool = False
    """With parallel_residual: one norm for both branches, instead of one each."""
    embedding_norm: bool = False
    """Whether the embeddings are normalized before the first block."""
    positions: Literal["learned", "sinusoidal", "rotary", "alibi", "none"] = "learned"
    """How the order of tokens gets in: added to the embeddings (learned, sinusoidal), or in attention (rotary, alibi)."""
    rope_theta: float = 10_000.0
    """Rotary positions: the base of the wavelengths, which reach 2 pi theta tokens."""
    rope_local_theta: float | None = None
    """The same for blocks with a window; default: rope_theta."""
    rope_fraction: float = 1.0
    """Fraction of each head's channels that is rotated."""
    rope_scaling: dict[str, float | str] | None = field(default=None, hash=False)
    """Stretched rotary positions, as config.json has them: rope_type linear or llama3, factor, ...; not in blocks with rope_local_theta."""
    n_kv_head: int | None = None
    """Heads of keys and values, each shared by n_head / n_kv_head query heads; must divide n_head. Default: n_head."""
    head_size: int | None = None
    """Channels of one attention head (D); default: n_embd / n_head."""
    qk_norm: Literal["none", "head", "all"] = "none"
    """Whether queries and keys are normalized, each head by itself or all heads together."""
    activation: Literal["gelu", "gelu_exact", "relu", "silu", "squared_relu"] = "gelu"
    """The MLP's nonlinearity; gelu is GPT-2's, the approximation with tanh."""
    gated: bool = False
    """Whether the MLP's inner channels are multiplied by the activation of a second projection: SwiGLU with silu, GeGLU with gelu."""
    n_inner: int | None = None
    """Inner channels of the MLP; default: 4 n_embd."""
    attention_output_bias: bool = True
    """Whether attention's output projection has a bias."""
    mlp_bias: bool = True
    """Whether the MLP's projections have biases."""
    window: int | None = None
    """Positions that a query sees in blocks with a window, its own included; default: all. n_positions or more are all, too: published models
    have that, and so has a preset that is given a shorter context."""
    window_pattern: str = ""
    """Which blocks have the window, repeated over the blocks: S (short) with, L (long) without, as in SSSL. Default: all."""
    embedding_scale: float = 1.0
    """Factor of the token embeddings; Gemma: sqrt(n_embd)."""
    attention_scale: float | None = None
    """Factor of attention's scores; default: 1 / sqrt(head size)."""
    logit_softcap: float | None = None
    """Logits are kept between -cap and cap by cap tanh(x / cap); default: no cap."""
    attention_softcap: float | None = None
    """The same for attention's scores."""
    width_base: int = 0
    """Channels of the model whose learning rate this one takes over by the width rule, see width_rule.py; 0: no rule."""

    def __post_init__(self) -> None:
        check_fields(self, {1: "n_layer n_head n_embd n_positions vocab_size n_kv_head head_size n_inner window", 0: "width_base"})
        _check_heads(self)
        _check_ranges(self)
        _check_combinations(self)
        _check_rotary(self)

    @classmethod
    def preset(cls, name: str, **changes: Json) -> Self:
        """A named shape of `tinygpt.presets`, from gpt2 to nanochat-d20; `changes` override its fields."""
        if name not in PRESETS:
            raise InvalidInput(f"GPTConfig.preset: {name!r}, expected one of {', '.join(PRESETS)}; {did_you_mean(name, PRESETS)}")
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, fields: dict[str, Json]) -> Self:
        """A config from keys and values. Raises ValueError for an unknown key, with the nearest known one."""
        return from_dict(cls, fields)

    def __repr__(self) -> str:
        """Sizes, and the options that are taken."""
        shown = {name: getattr(self, name) for name in SIZES.split()} | self.options()
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def options(self) -> dict[str, Json]:
        """The fields that make another model than GPT-2 of it, whatever the sizes: empty for GPT-2."""
        as_gpt2 = {"n_kv_head": self.n_head, "head_size": self.n_embd / self.n_head, "n_inner": 4 * self.n_embd}
        both = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self) if f.name not in SIZES.split()}
        return {name: value for name, (value, default) in both.items() if value != default and value != as_gpt2.get(name)}

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values (H_kv)."""
        return self.n_kv_head or self.n_head

    @property
    def channels_per_head(self) -> int:
        """Channels of one attention head (D)."""
        return self.head_size or self.n_embd // self.n_head

    @property
    def inner_channels(self) -> int:
        """Channels inside the MLP."""
        return self.n_inner or 4 * self.n_embd

    @property
    def width_ratio(self) -> float:
        """m of the width rule: how many times wider than its base the model is; 1 without the rule."""
        return self.n_embd / self.width_base if self.width_base else 1.0

    @property
    def dropouts(self) -> dict[str, float]:
        """The three probabilities by GPT-2's names: of residual branches, embeddings and attention weights."""
        given = {"embd_pdrop": self.embd_pdrop, "attn_pdrop": self.attn_pdrop}
        return {"resid_pdrop": self.dropout} | {name: self.dropout if p is None else p for name, p in given.items()}

    def window_of(self, layer: int) -> int | None:
        """How many positions a query sees in the block of that number, or None: all of them."""
        pattern = self.window_pattern or "S"
        return self.window if pattern[layer % len(pattern)] == "S" else None

    def block_shapes(self) -> Shapes:
        """Shape of each parameter of a block, by its name in the block: GPT-2's names, and for what it lacks, names in their style."""
        c, d, inner = self.n_embd, self.channels_per_head, self.inner_channels
        q, kv = self.n_head * d, self.kv_heads * d
        before, after = self.norm_position != "output", self.norm_position in ("output", "sandwich")
        each = (0, 0) if self.qk_norm == "none" else (d, d) if self.qk_norm == "head" else (q, kv)
        return {
            **_norm_shapes(self, "ln_1", c if before else 0),
            **_linear_shapes("attn.c_attn", (c, q + 2 * kv), self.qkv_bias),
            **_norm_shapes(self, "attn.q_norm", each[0]),
            **_norm_shapes(self, "attn.k_norm", each[1]),
            **_linear_shapes("attn.c_proj", (q, c), self.attention_output_bias),
            **_norm_shapes(self, "ln_1_out", c if after else 0),
            **_norm_shapes(self, "ln_2", c if before and not self.shared_norm else 0),
            **(_linear_shapes("mlp.c_gate", (c, inner), self.mlp_bias) if self.gated else {}),
            **_linear_shapes("mlp.c_fc", (c, inner), self.mlp_bias),
            **_linear_shapes("mlp.c_proj", (inner, c), self.mlp_bias),
            **_norm_shapes(self, "ln_2_out", c if after else 0),
        }

    def outer_shapes(self) -> Shapes:
        """Shape of each parameter outside the blocks; a tied one once. After the last block with norms behind its sums comes no other."""
        c = self.n_embd
        return {
            "wte.weight": (self.vocab_size, c),
            **({"wpe.weight": (self.n_positions, c)} if self.positions == "learned" else {}),
            **_norm_shapes(self, "ln_e", c if self.embedding_norm else 0),
            **_norm_shapes(self, "ln_f", c if self.norm_position != "post" else 0),
            **({} if self.tie_word_embeddings else {"lm_head.weight": (self.vocab_size, c)}),
        }

    def n_parameters(self) -> int:
        """Number of weights, tied ones once. 124,439,808 for GPT-2's smallest."""
        outer, block = (sum(map(math.prod, shapes.values())) for shapes in (self.outer_shapes(), self.block_shapes()))
        return outer + self.n_layer * block


def _norm_shapes(config: GPTConfig, name: str, n_channels: int) -> Shapes:
    """Those of one norm's parameters; none where there is no norm (0 channels)."""
    kinds = {"layer": ("weight", "bias"), "rms": ("weight",), "rms_unweighted": ()}[config.norm]
    return {f"{name}.{kind}": (n_channels,) for kind in kinds if n_channels}


def _linear_shapes(name: str, shape: tuple[int, int], bias: bool) -> Shapes:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[1:]} if bias else {})


def _check_heads(config: GPTConfig) -> None:
    """Raises ValueError, with the nearest legal values, where channels or heads cannot be shared out evenly."""
    n_embd, n_head, n_kv_head = config.n_embd, config.n_head, config.kv_heads
    if config.head_size is None and n_embd % n_head:
        fix = f"try n_embd {multiples(n_head, n_embd)}, or n_head {_divisors_near(n_embd, n_head)}"
        raise InvalidInput(f"GPTConfig: n_embd {n_embd} with n_head {n_head}, expected n_head to divide n_embd; {fix}")
    if n_head % n_kv_head:
        fix = f"try n_kv_head {_divisors_near(n_head, n_kv_head)}"
        raise InvalidInput(f"GPTConfig: n_kv_head {n_kv_head} with n_head {n_head}, expected n_kv_head to divide n_head; {fix}")


def _divisors_near(number: int, near: int) -> str:
    divisors = [n for n in range(1, number + 1) if number % n == 0]
    return " or ".join(map(str, [n for n in divisors if n < near][-1:] + [n for n in divisors if n > near][:1]))


def _check_ranges(config: GPTConfig) -> None:
    for name in ("dropout", "embd_pdrop", "attn_pdrop"):
        p = getattr(config, name)
        if p is not None and not 0 <= p < 1:
            raise InvalidInput(f"GPTConfig.{name}: {p}, expected 0 <= {name} < 1; 0 switches it off")
    if not (config.layer_norm_epsilon > 0 and config.initializer_range > 0):
        found = f"layer_norm_epsilon {config.layer_norm_epsilon}, initializer_range {config.initializer_range}"
        raise InvalidInput(f"GPTConfig: {found}, expected both > 0; the defaults are 1e-5 and 0.02")
    for name in ("rope_theta", "rope_local_theta", "embedding_scale", "attention_scale", "logit_softcap", "attention_softcap"):
        value = getattr(config, name)
        if value is not None and not value > 0:
            raise InvalidInput(f"GPTConfig.{name}: {value}, expected > 0; leave it out for the default")


def _check_combinations(config: GPTConfig) -> None:
    """Raises ValueError for an option that would have no effect, or none that anybody meant, next to the others."""
    if config.norm_offset and config.norm != "rms":
        _refuse(config, "norm_offset", "norm", "norm rms, whose weight it is added to; leave it out, or take --norm rms")
    if config.parallel_residual and config.norm_position != "pre":
        _refuse(
            config, "parallel_residual", "norm_position", "norm_position pre, where both branches read a norm of x; leave one of them out"
        )
    if config.shared_norm and not config.parallel_residual:
        _refuse(
            config, "shared_norm", "parallel_residual", "parallel_residual, where both branches normalize the same x; switch that on, too"
        )
    if config.window_pattern and (config.window is None or not set(config.window_pattern) <= set("SL") or "S" not in config.window_pattern):
        rule = "a window, and a pattern of the letters S (with the window; at least one) and L (without)"
        _refuse(config, "window_pattern", "window", f"{rule}; for instance window 256, window_pattern SSSL")
    if config.window is not None and all(config.window_of(layer) is None for layer in range(config.n_layer)):
        rule = f"an S among its first {config.n_layer} letters, or no block has the window"
        _refuse(config, "window_pattern", "n_layer", f"{rule}; leave window and window_pattern out, or add blocks")
    if config.width_base not in (0, config.n_embd) and config.attention_scale is None:
        d, m = config.channels_per_head, config.width_ratio
        fix = f"{1 / math.sqrt(d):.4g} if the base has heads of {d} channels too, {1 / math.sqrt(m * d):.4g} if it has {config.n_head} heads too"
        _refuse(config, "width_base", "attention_scale", f"sqrt(head size of the base) / {d}: {fix}; or take tinygpt.width_rule.at_width")
    if config.positions == "sinusoidal" and config.n_embd % 2:
        _refuse(config, "positions", "n_embd", "an even n_embd, a sine and a cosine for each wavelength; add a channel")


ROPE_KEYS = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
}
"""What `rope_scaling` holds in addition to rope_type, by rope_type."""


def _check_rotary(config: GPTConfig) -> None:
    """Raises ValueError for rotary options of a model without rotary positions, an odd number of rotated channels, unknown scaling."""
    if config.positions != "rotary":
        defaults = {f.name: f.default for f in dataclasses.fields(config) if f.name.startswith("rope_")}
        for name in [name for name, default in defaults.items() if getattr(config, name) != default]:
            _refuse(
                config, name, "positions", "positions rotary, the only ones it has a meaning for; leave it out, or take --positions rotary"
            )
        return
    if config.rope_local_theta is not None and config.window is None:
        _refuse(config, "rope_local_theta", "window", "a window: it is the theta of blocks that have one; set rope_theta, or a window")
    if config.rope_local_theta is not None and "L" not in config.window_pattern:
        for name, default in (("rope_theta", GPTConfig.rope_theta), ("rope_scaling", None)):
            if getattr(config, name) != default:
                rule = "the default, as every block has the window, and rope_local_theta takes its effect there"
                _refuse(config, name, "rope_local_theta", f"{rule}; leave one of them out, or take a window_pattern with L")
    d, rotated = config.channels_per_head, int(config.channels_per_head * config.rope_fraction)
    if not 0 < config.rope_fraction <= 1 or rotated < 2 or rotated % 2:
        fix = f"{rotated} channels of {d} would be rotated, change rope_fraction, or the size of a head (n_embd / n_head, or head_size)"
        raise InvalidInput(f"GPTConfig.rope_fraction: {config.rope_fraction}, expected 0 to 1, for an even number of channels; {fix}")
    if config.rope_scaling is not None:
        _check_scaling(config.rope_scaling)


def _check_scaling(scaling: Json) -> None:
    """Raises ValueError for an unknown kind, and for numbers from which no wavelengths follow; TypeError for what is no dict."""
    if not isinstance(scaling, dict):
        raise WrongType(
            f"GPTConfig.rope_scaling: {scaling!r}, expected a dict with rope_type and numbers; take it from the model's config.json"
        )
    kind = scaling.get("rope_type")
    if kind not in ROPE_KEYS:
        raise InvalidInput(f"GPTConfig.rope_scaling: rope_type {kind!r}, expected linear or llama3; no other is supported")
    numbers = {key: value for key, value in scaling.items() if key != "rope_type"}
    if numbers.keys() != ROPE_KEYS[kind] or not all(type(n) in (int, float) and 0 < n < math.inf for n in numbers.values()):
        rule = f"expected for {kind} a positive number for each of {', '.join(sorted(ROPE_KEYS[kind]))}, and nothing else"
        raise InvalidInput(f"GPTConfig.rope_scaling: {numbers}, {rule}; take them from the model's config.json")
    if kind == "llama3" and numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        found = f"low_freq_factor {numbers['low_freq_factor']} with high_freq_factor {numbers['high_freq_factor']}"
        raise InvalidInput(f"GPTConfig.rope_scaling: {found}, expected low < high; take them from the model's config.json")


def _refuse(config: GPTConfig, name: str, other: str, rule: str) -> None:
    found = f"{getattr(config, name)!r} with {other} {getattr(config, other)!r}"
    raise InvalidInput(f"GPTConfig.{name}: {found}, expected {rule}")
