"""What can be set: the model's shape (`GPTConfig`, with GPT-2's own names) and how it is trained (`TrainConfig`)."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

PRESETS: dict[str, dict[str, int]] = {
    "gpt2": {"n_layer": 12, "n_head": 12, "n_embd": 768},
    "gpt2-medium": {"n_layer": 24, "n_head": 16, "n_embd": 1024},
    "gpt2-large": {"n_layer": 36, "n_head": 20, "n_embd": 1280},
    "gpt2-xl": {"n_layer": 48, "n_head": 25, "n_embd": 1600},
    "laptop": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 128, "vocab_size": 4096},  # the default run
    "shakespeare": {"n_layer": 4, "n_head": 4, "n_embd": 128, "n_positions": 64, "vocab_size": 65},  # nanoGPT's laptop setting
    "quick": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 32, "vocab_size": 512},  # seconds: for tests and first looks
}


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. Field names are those of GPT-2's `config.json`; defaults are GPT-2's smallest model."""

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
    """Probability of dropping embeddings, attention weights and residual branches while training."""
    qkv_bias: bool = True
    """Whether the query/key/value projection has a bias."""
    tie_word_embeddings: bool = True
    """Whether the output layer shares the token embedding's matrix."""
    layer_norm_epsilon: float = 1e-5
    """Added to the variance in layer norm."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""

    def __post_init__(self) -> None:
        check_types("GPTConfig", self)
        for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"GPTConfig.{name}: {getattr(self, name)}, expected at least 1; choose a positive number")
        if self.n_embd % self.n_head:
            below = self.n_embd // self.n_head * self.n_head
            legal = [str(n) for n in (below, below + self.n_head) if n]
            heads = [str(h) for h in _nearest_divisors(self.n_embd, self.n_head)]
            raise ValueError(
                f"GPTConfig: n_embd {self.n_embd} with n_head {self.n_head}, expected n_head to divide n_embd; "
                f"try n_embd {' or '.join(legal)}, or n_head {' or '.join(heads)}"
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"GPTConfig.dropout: {self.dropout}, expected 0 <= dropout < 1; 0 switches it off")
        if not (self.layer_norm_epsilon > 0 and self.initializer_range > 0):
            raise ValueError(
                f"GPTConfig: layer_norm_epsilon {self.layer_norm_epsilon}, initializer_range {self.initializer_range}, "
                "expected both > 0; the defaults are 1e-5 and 0.02"
            )

    @classmethod
    def preset(cls, name: str, **changes: Any) -> Self:
        """A named shape: gpt2, gpt2-medium, gpt2-large, gpt2-xl, laptop, shakespeare, quick; `changes` override its fields."""
        if name not in PRESETS:
            raise ValueError(f"GPTConfig.preset: {name!r}, expected one of {', '.join(PRESETS)}; {_did_you_mean(name, PRESETS)}")
        return cls.from_dict({**PRESETS[name], **changes})

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """A config from keys and values. Raises ValueError for an unknown key, with the nearest known one."""
        return from_dict(cls, fields)

    @property
    def head_size(self) -> int:
        """Channels of one attention head (D)."""
        return self.n_embd // self.n_head

    def n_parameters(self) -> int:
        """Number of weights by formula; tied ones once. 124,439,808 for GPT-2's smallest."""
        c = self.n_embd
        attention = 3 * c * c + (3 * c if self.qkv_bias else 0) + c * c + c
        mlp = 8 * c * c + 5 * c
        tables = (self.vocab_size * (1 if self.tie_word_embeddings else 2) + self.n_positions) * c
        return tables + self.n_layer * (attention + mlp + 4 * c) + 2 * c


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained: optimizer, schedule, batches, and how often what is done."""

    steps: int = 1000
    """Updates of the weights."""
    lr: float = 1e-3
    """Peak learning rate; after the warm-up it falls along a cosine."""
    final_lr_fraction: float = 0.1
    """Where the cosine ends, as a share of the peak; 1 keeps the rate constant."""
    warmup_steps: int = 50
    """Updates over which the learning rate rises from 0."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's memory of the gradient and of its square."""
    weight_decay: float = 0.1
    """AdamW's decay, on matrices only."""
    max_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 switches clipping off."""
    micro_batch: int = 16
    """Windows per forward and backward pass: what must fit into memory."""
    tokens_per_update: int = 0
    """Tokens per update of the weights; accumulation follows from it and the micro-batch. 0: one micro-batch."""
    stride: int = 0
    """Distance between the starts of training windows, in tokens. 0: the context length (no overlap)."""
    eval_every: int = 100
    """Updates between evaluations (and checkpoints)."""
    eval_batches: int = 0
    """Validation batches per evaluation, drawn once. 0: all of the validation split."""
    save_every: int = 0
    """Updates between checkpoints besides those after evaluations. 0: none."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best one."""
    stop_at: int = 0
    """End after this update and save, as Ctrl-C does: for jobs that run in slices. 0: never."""
    on_nan: Literal["stop", "skip", "rollback"] = "stop"
    """At a loss or gradient that is not finite: stop, skip the update, or roll back to the last checkpoint and take other batches."""
    patience: int = 0
    """Evaluations in a row without a better one after which training ends. 0: never."""
    log_every: int = 10
    """Updates between lines of metrics."""
    seed: int = 0
    """Decides initial weights, data order, dropout and samples, each by a stream of its own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of activations and matrix products; bfloat16 needs a GPU. Weights and optimizer stay float32."""
    processes: int = 0
    """Processes that share each micro-batch, on a CPU. 0: one per core where the model is small and that is faster, else one."""
    recompute: bool = False
    """Keep only each block's input for the backward pass and compute the rest again: less memory, a third more time."""

    def __post_init__(self) -> None:
        check_types("TrainConfig", self)
        for name in ("steps", "micro_batch", "eval_every", "log_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"TrainConfig.{name}: {getattr(self, name)}, expected at least 1; choose a positive number")
        for name in (
            "warmup_steps",
            "tokens_per_update",
            "stride",
            "eval_batches",
            "save_every",
            "stop_at",
            "patience",
            "seed",
            "processes",
            "max_norm",
            "weight_decay",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"TrainConfig.{name}: {getattr(self, name)}, expected at least 0; choose a non-negative number")
        if self.on_nan not in ("stop", "skip", "rollback"):
            raise ValueError(f"TrainConfig.on_nan: {self.on_nan!r}, expected stop, skip or rollback; stop is the default")
        if not 0 <= self.final_lr_fraction <= 1:
            raise ValueError(f"TrainConfig.final_lr_fraction: {self.final_lr_fraction}, expected 0 to 1; 1 keeps the rate constant")
        if not self.lr > 0:
            raise ValueError(f"TrainConfig.lr: {self.lr}, expected > 0; 1e-3 suits small models")

    def accumulation(self, n_positions: int) -> int:
        """Micro-batches per update. Raises ValueError, naming legal values, if tokens_per_update is no multiple of one."""
        micro = self.micro_batch * n_positions
        if self.tokens_per_update == 0:
            return 1
        if self.tokens_per_update % micro:
            below = self.tokens_per_update // micro * micro
            legal = " or ".join(str(n) for n in (below, below + micro) if n)
            raise ValueError(
                f"TrainConfig.tokens_per_update: {self.tokens_per_update}, expected a multiple of micro_batch x context = "
                f"{self.micro_batch} x {n_positions} = {micro}; try {legal}"
            )
        return self.tokens_per_update // micro


# What an update does not depend on, and the number of updates: may change freely when a run is resumed.
FREE = (
    "steps", "stop_at", "recompute", "processes", "log_every", "eval_every", "eval_batches", "save_every", "keep", "patience", "on_nan", "sample_tokens",
    "run", "resume", "override", "deterministic_check",
)  # fmt: skip
# What changes the updates to come, but not what the weights are: may change with --override.
WITH_OVERRIDE = ("lr", "final_lr_fraction", "warmup_steps", "betas", "weight_decay", "max_norm", "dtype", "corpus", "validation_fraction")


@dataclass(frozen=True)
class PretrainConfig:
    """All that `examples/pretrain.py` can be told."""

    script: ClassVar[str] = "examples/pretrain.py"
    model: GPTConfig
    train: TrainConfig
    corpus: str = "docs"
    """docs (text that every installation has), tinyshakespeare, the-verdict, a text file, or a folder of text files."""
    tokenizer: Literal["bpe", "characters", "words", "gpt2"] = "bpe"
    """bpe is trained on the corpus, up to --vocab-size tokens."""
    validation_fraction: float = 0.1
    """Share of the corpus that is held out."""
    run: str = ""
    """Directory of the run; default: a new one below runs/."""
    sample_tokens: int = 120
    """Length of the samples shown before and after training."""
    resume: str = ""
    """Run directory to resume from its last intact checkpoint; its settings become the defaults of all flags."""
    override: bool = False
    """With --resume: allow other settings of the optimizer, and other data, than the run began with."""
    deterministic_check: bool = False
    """Before training, compute one step twice and compare the bits."""


def from_dict(cls: Any, fields: dict[str, Any]) -> Any:
    """A config dataclass from keys and values; unknown keys are errors that suggest the nearest known one."""
    known = {f.name for f in dataclasses.fields(cls)}
    for key in fields:
        if key not in known:
            raise ValueError(
                f"{cls.__name__}: unknown key {key!r}, expected one of {', '.join(sorted(known))}; {_did_you_mean(key, known)}"
            )
    return cls(**fields)


def check_types(what: str, config: Any) -> None:
    """Raises TypeError unless each int, float and bool field holds one (an int passes for a float)."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kind: Any = field.type
        legal = (float, int) if kind is float else kind
        wrong = kind in (int, float, bool) and (not isinstance(value, legal) or (isinstance(value, bool) and kind is not bool))
        if wrong:
            raise TypeError(f"{what}.{field.name}: {value!r}, expected {kind.__name__}; write it without quotes")


def _did_you_mean(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else "check the spelling"


def _nearest_divisors(n: int, near: int) -> list[int]:
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    below = [d for d in divisors if d < near][-1:]
    return below + [d for d in divisors if d > near][:1]
