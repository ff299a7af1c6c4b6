"""Settings: the model's shape (`GPTConfig`, with GPT-2's names), its training (`TrainConfig`), and a run of examples/pretrain.py.

What resuming a run may change is noted at the field: `FREE` where no update depends on it, or only how many there are; `WITH_OVERRIDE`
where it changes the updates to come, but not what the weights are; nothing where it may not change.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Protocol, Self, TypeVar

from tinygpt.errors import InvalidInput, WrongType, did_you_mean

Json = Any  # the value of a setting, as JSON holds it


class Settings(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Json]]]


Config = TypeVar("Config", bound=Settings)

PATH = "path"  # a field that holds a path, or one of the names that may stand for it: on the command line `~` is expanded in it
PathName = Annotated[str, PATH]
FREE = {"resume": "free"}
WITH_OVERRIDE = {"resume": "override"}

PRESETS: dict[str, dict[str, int]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
    "laptop": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 128, "vocab_size": 4096},  # the default run; a context of 128
    # keeps it under four minutes on two cores: time and memory grow with the context. Real training takes 256 and more, GPT-2 1,024.
    "shakespeare": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64, "vocab_size": 65},  # nanoGPT's laptop setting
    "quick": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 512},  # seconds: for tests and first looks
}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. Field names are those of GPT-2's `config.json`; defaults are those of GPT-2's smallest model, except dropout."""

    n_layer: int = 12
    """Number of transformer blocks."""
    n_head: int = 12
    """Attention heads per block; must divide n_embd."""
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
    """Added to the variance in layer norm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        check_fields(self, {1: "n_layer n_head n_embd n_positions vocab_size"})
        if self.n_embd % self.n_head:
            divisors = [n for n in range(1, self.n_embd + 1) if self.n_embd % n == 0]
            heads = [n for n in divisors if n < self.n_head][-1:] + [n for n in divisors if n > self.n_head][:1]
            fix = f"try n_embd {_multiples(self.n_head, self.n_embd)}, or n_head {' or '.join(map(str, heads))}"
            raise InvalidInput(f"GPTConfig: n_embd {self.n_embd} with n_head {self.n_head}, expected n_head to divide n_embd; {fix}")
        for name in ("dropout", "embd_pdrop", "attn_pdrop"):
            p = getattr(self, name)
            if p is not None and not 0 <= p < 1:
                raise InvalidInput(f"GPTConfig.{name}: {p}, expected 0 <= {name} < 1; 0 switches it off")
        if not (self.layer_norm_epsilon > 0 and self.initializer_range > 0):
            found = f"layer_norm_epsilon {self.layer_norm_epsilon}, initializer_range {self.initializer_range}"
            raise InvalidInput(f"GPTConfig: {found}, expected both > 0; the defaults are 1e-5 and 0.02")

    @classmethod
    def preset(cls, name: str, **changes: Json) -> Self:
        """A named shape: gpt2, gpt2-medium, gpt2-large, gpt2-xl, laptop, shakespeare, quick; `changes` override its fields."""
        if name not in PRESETS:
            raise InvalidInput(f"GPTConfig.preset: {name!r}, expected one of {', '.join(PRESETS)}; {did_you_mean(name, PRESETS)}")
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, fields: dict[str, Json]) -> Self:
        """A config from keys and values. Raises ValueError for an unknown key, with the nearest known one."""
        return from_dict(cls, fields)

    @property
    def head_size(self) -> int:
        """Channels of one attention head (D)."""
        return self.n_embd // self.n_head

    @property
    def dropouts(self) -> dict[str, float]:
        """The three probabilities by GPT-2's names: of residual branches, embeddings and attention weights."""
        given = {"embd_pdrop": self.embd_pdrop, "attn_pdrop": self.attn_pdrop}
        return {"resid_pdrop": self.dropout} | {name: self.dropout if p is None else p for name, p in given.items()}

    def block_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter of a block, by its name in the block, which is GPT-2's."""
        c = self.n_embd
        attention: dict[str, tuple[int, ...]] = {"ln_1": (c,), "attn.c_attn": (c, 3 * c), "attn.c_proj": (c, c)}
        layers = attention | {"ln_2": (c,), "mlp.c_fc": (c, 4 * c), "mlp.c_proj": (4 * c, c)}
        both = {f"{name}.{kind}": n for name, shape in layers.items() for kind, n in (("weight", shape), ("bias", shape[-1:]))}
        return {name: shape for name, shape in both.items() if self.qkv_bias or name != "attn.c_attn.bias"}

    def outer_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each parameter outside the blocks; a tied one once."""
        c = self.n_embd
        shapes: dict[str, tuple[int, ...]] = {"wte.weight": (self.vocab_size, c), "wpe.weight": (self.n_positions, c)}
        head = {} if self.tie_word_embeddings else {"lm_head.weight": (self.vocab_size, c)}
        return shapes | {"ln_f.weight": (c,), "ln_f.bias": (c,)} | head

    def n_parameters(self) -> int:
        """Number of weights, tied ones once. 124,439,808 for GPT-2's smallest."""
        outer, block = (sum(map(math.prod, shapes.values())) for shapes in (self.outer_shapes(), self.block_shapes()))
        return outer + self.n_layer * block


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained: optimizer, schedule, batches, and the intervals of evaluating, saving and logging."""

    steps: int = field(default=1000, metadata=FREE)
    """Updates of the weights."""
    lr: float = field(default=1e-3, metadata=WITH_OVERRIDE)
    """Peak learning rate, reached at the end of the warm-up; from there it falls along a cosine."""
    final_lr_fraction: float = field(default=0.1, metadata=WITH_OVERRIDE)
    """Final learning rate as a fraction of the peak; 1 keeps the rate constant."""
    warmup_steps: int = field(default=50, metadata=WITH_OVERRIDE)
    """Updates over which the learning rate rises from 0."""
    betas: tuple[float, float] = field(default=(0.9, 0.95), metadata=WITH_OVERRIDE)
    """AdamW's decay rates for the running means of the gradient and its square."""
    weight_decay: float = field(default=0.1, metadata=WITH_OVERRIDE)
    """AdamW's weight decay, of matrices and embeddings only."""
    max_norm: float = field(default=1.0, metadata=WITH_OVERRIDE)
    """Maximum norm of the gradients: larger ones are scaled down to it. 0: no clipping."""
    micro_batch: int = 16
    """Windows per forward and backward pass; limited by memory."""
    tokens_per_update: int = 0
    """Tokens per update of the weights, a multiple of micro-batch x context: gradients of several micro-batches are accumulated. 0: one."""
    stride: int = 0
    """Tokens between the starts of neighboring training windows. 0: the context length (no overlap)."""
    eval_every: int = field(default=100, metadata=FREE)
    """Updates between evaluations (and checkpoints)."""
    eval_batches: int = field(default=0, metadata=FREE)
    """Validation batches per evaluation, the same each time. 0: the entire validation split."""
    save_every: int = field(default=0, metadata=FREE)
    """Updates between additional checkpoints; each evaluation is followed by one anyway. 0: none."""
    keep: int = field(default=2, metadata=FREE)
    """Newest checkpoints to keep, in addition to the best one."""
    stop_at: int = field(default=0, metadata=FREE)
    """Stop and save after this update, for time-limited jobs. 0: never."""
    on_nan: Literal["stop", "skip", "rollback"] = field(default="stop", metadata=FREE)
    """If loss or gradient is not finite: stop, skip the update, or roll back to the last checkpoint and continue with other batches."""
    patience: int = field(default=0, metadata=FREE)
    """Stop early after this many evaluations without improvement. 0: never."""
    log_every: int = field(default=10, metadata=FREE)
    """Updates between lines of metrics."""
    seed: int = 0
    """Seed of initial weights, data order, dropout and samples, each with its own random stream."""
    dtype: Literal["float32", "bfloat16"] = field(default="float32", metadata=WITH_OVERRIDE)
    """Type of activations and matrix products; bfloat16 needs a GPU. Weights and optimizer state stay float32."""
    processes: int = field(default=0, metadata=FREE)
    """Processes that share each micro-batch, on a CPU. 0: one per core for small models, where that is faster, else one."""
    recompute: bool = field(default=False, metadata=FREE)
    """Keep only each block's input for the backward pass and recompute the rest there: less memory, a third more time."""

    def __post_init__(self) -> None:
        counts = "warmup_steps tokens_per_update stride eval_batches save_every stop_at patience seed processes max_norm weight_decay"
        check_fields(self, {1: "steps micro_batch eval_every log_every keep", 0: counts})
        if self.on_nan not in ("stop", "skip", "rollback"):
            raise InvalidInput(f"TrainConfig.on_nan: {self.on_nan!r}, expected stop, skip or rollback; stop is the default")
        if not 0 <= self.final_lr_fraction <= 1:
            raise InvalidInput(f"TrainConfig.final_lr_fraction: {self.final_lr_fraction}, expected 0 to 1; 1 keeps the rate constant")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidInput(f"TrainConfig.betas: {self.betas}, expected 0 <= beta < 1 for both")
        if not self.lr > 0:
            raise InvalidInput(f"TrainConfig.lr: {self.lr}, expected > 0; 1e-3 suits small models")

    def warmup_note(self) -> str:
        """A warning if training ends within the warm-up, so that the learning rate never reaches its peak; else an empty string."""
        if self.steps >= self.warmup_steps:
            return ""
        within = f"--steps {self.steps} end within --warmup-steps {self.warmup_steps}, at {self.lr * self.steps / self.warmup_steps:.2g}"
        return f"the learning rate never reaches --lr {self.lr:g}: {within}; lower --warmup-steps"

    def accumulation(self, n_positions: int) -> int:
        """Micro-batches per update. Raises ValueError, naming legal values, if tokens_per_update is no multiple of one."""
        micro = self.micro_batch * n_positions
        if self.tokens_per_update == 0:
            return 1
        if self.tokens_per_update % micro:
            rule = f"expected a multiple of micro_batch x context = {self.micro_batch} x {n_positions} = {micro}"
            fix = f"try {_multiples(micro, self.tokens_per_update)}"
            raise InvalidInput(f"TrainConfig.tokens_per_update: {self.tokens_per_update}, {rule}; {fix}")
        return self.tokens_per_update // micro


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of `examples/pretrain.py`."""

    script: ClassVar[str] = "examples/pretrain.py"
    model: GPTConfig
    train: TrainConfig
    corpus: PathName = field(default="docs", metadata=WITH_OVERRIDE)
    """docs (text that every installation has), tinyshakespeare, the-verdict, a text file, or a folder of text files."""
    tokenizer: Literal["bpe", "characters", "words", "gpt2"] = "bpe"
    """bpe is trained on the corpus, up to --vocab-size tokens."""
    validation_fraction: float = field(default=0.1, metadata=WITH_OVERRIDE)
    """Fraction of the corpus that is held out for validation."""
    run: PathName = field(default="", metadata=FREE)
    """Directory of the run; default: a new one below runs/."""
    sample_tokens: int = field(default=120, metadata=FREE)
    """Tokens of the samples shown before and after training."""
    resume: PathName = field(default="", metadata=FREE)
    """Run directory to resume from its last intact checkpoint; its settings become the flags' defaults."""
    override: bool = field(default=False, metadata=FREE)
    """With --resume: allow other optimizer settings and other data than the run began with."""
    deterministic_check: bool = field(default=False, metadata=FREE)
    """Before training, compute one step twice and compare the results bit for bit."""


def from_dict(cls: type[Config], fields: dict[str, Json]) -> Config:
    """A config dataclass from keys and values; unknown keys are errors that suggest the nearest known one."""
    known = {f.name for f in dataclasses.fields(cls)}
    for key in [key for key in fields if key not in known]:
        raise InvalidInput(f"{cls.__name__}: unknown key {key!r}, expected one of {', '.join(sorted(known))}; {did_you_mean(key, known)}")
    return cls(**fields)


def check_fields(config: Settings, smallest: dict[int, str]) -> None:
    """Raises TypeError unless each int, float and bool field holds one (an int passes for a float), ValueError if one is not finite, or
    smaller than the key of `smallest` under which its name stands."""
    what = type(config).__name__
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        kind: Json = float if f.type == float | None and value is not None else f.type
        legal = (float, int) if kind is float else kind
        if kind in (int, float, bool) and (not isinstance(value, legal) or (isinstance(value, bool) and kind is not bool)):
            raise WrongType(f"{what}.{f.name}: {value!r}, expected {kind.__name__}; write it without quotes")
        if kind is float and not math.isfinite(value):
            raise InvalidInput(f"{what}.{f.name}: {value}, expected a finite number")
    for least, names in smallest.items():
        for name in names.split():
            if getattr(config, name) < least:
                raise InvalidInput(f"{what}.{name}: {getattr(config, name)}, expected at least {least}")


def _multiples(of: int, near: int) -> str:
    """The positive multiples of a number next to another, for a message."""
    below = near // of * of
    return " or ".join(str(n) for n in (below, below + of) if n)
