"""Settings: of training (`TrainConfig`) and of a run of examples/pretrain.py; those of the model's shape are in model_config.py.

What resuming a run may change is noted at the field, see fields.py.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from tinygpt.errors import InvalidInput
from tinygpt.fields import FREE, WITH_OVERRIDE, PathName, check_fields, multiples
from tinygpt.model_config import GPTConfig as GPTConfig


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained: optimizer, schedule, batches, and the intervals of evaluating, saving and logging."""

    steps: int = field(default=1000, metadata=FREE)
    """Updates of the weights."""
    optimizer: Literal["adamw", "muon", "adam", "sgd"] = "adamw"
    """muon: for the blocks' matrices, AdamW for the rest; adam: weight decay as a term of the loss; sgd: with Nesterov's momentum."""
    lr: float = field(default=1e-3, metadata=WITH_OVERRIDE)
    """Peak learning rate, reached at the end of the warm-up; from there it falls along a cosine."""
    final_lr_fraction: float = field(default=0.1, metadata=WITH_OVERRIDE)
    """Final learning rate as a fraction of the peak; 1 keeps the rate constant."""
    warmup_steps: int = field(default=50, metadata=WITH_OVERRIDE)
    """Updates over which the learning rate rises from 0."""
    betas: tuple[float, float] = field(default=(0.9, 0.95), metadata=WITH_OVERRIDE)
    """AdamW's decay rates for the running means of the gradient and its square."""
    momentum: float = field(default=0.95, metadata=WITH_OVERRIDE)
    """Decay rate of Muon's and SGD's running mean of the gradient."""
    adam_lr_scale: float = field(default=1.0, metadata=WITH_OVERRIDE)
    """With Muon: the learning rate of the parameters that AdamW updates, embeddings above all, as a multiple of --lr."""
    weight_decay: float = field(default=0.1, metadata=WITH_OVERRIDE)
    """Weight decay, of matrices and embeddings only."""
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
    dtype: Literal["float32", "bfloat16", "float16"] = field(default="float32", metadata=WITH_OVERRIDE)
    """Type of activations and matrix products; 16 bits need a GPU. Weights and optimizer state stay float32; float16 scales the loss."""
    processes: int = field(default=0, metadata=FREE)
    """Processes that share each micro-batch, on a CPU. 0: one per core for small models, where that is faster, else one."""
    recompute: bool = field(default=False, metadata=FREE)
    """Keep only each block's input for the backward pass and recompute the rest there: less memory, a third more time."""

    def __post_init__(self) -> None:
        counts = "warmup_steps tokens_per_update stride eval_batches save_every stop_at patience seed processes max_norm weight_decay adam_lr_scale"
        check_fields(self, {1: "steps micro_batch eval_every log_every keep", 0: counts})
        if not 0 <= self.final_lr_fraction <= 1:
            raise InvalidInput(f"TrainConfig.final_lr_fraction: {self.final_lr_fraction}, expected 0 to 1; 1 keeps the rate constant")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidInput(f"TrainConfig.betas: {self.betas}, expected 0 <= beta < 1 for both")
        if not 0 <= self.momentum < 1:
            raise InvalidInput(f"TrainConfig.momentum: {self.momentum}, expected 0 <= momentum < 1; 0.95 suits Muon")
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
            fix = f"try {multiples(micro, self.tokens_per_update)}"
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
