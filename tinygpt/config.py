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
    """Peak learning rate, reached at the end of the warm-up; --schedule says what follows."""
    schedule: Literal["cosine", "wsd", "inverse-sqrt", "constant"] = field(default="cosine", metadata=WITH_OVERRIDE)
    """Learning rate after the warm-up. cosine: half a cosine down to the last update; wsd: stable, then a decay, and while it is stable --resume
    may extend the run; inverse-sqrt: falls as 1 / sqrt(update); constant."""
    final_lr_fraction: float = field(default=0.1, metadata=WITH_OVERRIDE)
    """With cosine and wsd: final learning rate as a fraction of the peak; 1 keeps the rate constant."""
    decay_fraction: float = field(default=0.2, metadata=WITH_OVERRIDE)
    """With wsd: share of the updates, the last ones, over which the learning rate falls."""
    decay_shape: Literal["1-sqrt", "linear"] = field(default="1-sqrt", metadata=WITH_OVERRIDE)
    """With wsd: how it falls; 1-sqrt: fastest at first."""
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
    z_loss: float = field(default=0.0, metadata=WITH_OVERRIDE)
    """Weight of a term in the training loss that keeps logits from drifting, the mean square of their logsumexp; PaLM: 1e-4. 0: none."""
    label_smoothing: float = field(default=0.0, metadata=WITH_OVERRIDE)
    """Share of the probability that the training loss spreads evenly over all tokens, or labels; original transformer: 0.1. 0: none."""
    micro_batch: int = 16
    """Windows per forward and backward pass; limited by memory."""
    tokens_per_update: int = 0
    """Tokens per update of the weights, a multiple of micro-batch x context: gradients of several micro-batches are accumulated. 0: one."""
    batch_ramp_from: int = 0
    """Tokens of the first update, if they shall grow from there to tokens-per-update: a multiple of micro-batch x context. 0: no growth."""
    batch_ramp_tokens: int = 0
    """With batch-ramp-from: tokens of training over which the tokens per update grow, linearly and by micro-batches."""
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
    shard_optimizer: bool = field(default=False, metadata=FREE)
    """Each rank that `mpiexec` started keeps the optimizer's state of its part of the weights alone (ZeRO stage 1). On one machine they always do: it is
    faster."""
    recompute: bool = field(default=False, metadata=FREE)
    """Keep only each block's input for the backward pass and recompute the rest there: less memory, a third more time."""

    def __post_init__(self) -> None:
        counts = "warmup_steps tokens_per_update stride eval_batches save_every stop_at patience seed processes max_norm weight_decay adam_lr_scale"
        counts += " batch_ramp_from batch_ramp_tokens z_loss"
        check_fields(self, {1: "steps micro_batch eval_every log_every keep", 0: counts})
        if not 0 <= self.final_lr_fraction <= 1:
            raise InvalidInput(f"TrainConfig.final_lr_fraction: {self.final_lr_fraction}, expected 0 to 1; 1 keeps the rate constant")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InvalidInput(f"TrainConfig.betas: {self.betas}, expected 0 <= beta < 1 for both")
        if not 0 <= self.momentum < 1:
            raise InvalidInput(f"TrainConfig.momentum: {self.momentum}, expected 0 <= momentum < 1; 0.95 suits Muon")
        if not self.lr > 0:
            raise InvalidInput(f"TrainConfig.lr: {self.lr}, expected > 0; 1e-3 suits small models")
        if not 0 <= self.label_smoothing < 1:
            raise InvalidInput(f"TrainConfig.label_smoothing: {self.label_smoothing}, expected 0 <= label_smoothing < 1; 0 switches it off")
        self._check_decay()
        self._check_ramp()

    def _check_decay(self) -> None:
        if not 0 < self.decay_fraction <= 1:
            rule = "expected more than 0, at most 1; a rate that does not fall is --schedule constant"
            raise InvalidInput(f"TrainConfig.decay_fraction: {self.decay_fraction}, {rule}")

    def _check_ramp(self) -> None:
        start, over, full = self.batch_ramp_from, self.batch_ramp_tokens, self.tokens_per_update
        if bool(start) != bool(over):
            given, other = ("batch_ramp_from", "batch_ramp_tokens") if start else ("batch_ramp_tokens", "batch_ramp_from")
            fix = f"set --{other.replace('_', '-')}"
            raise InvalidInput(f"TrainConfig.{given}: {start or over} with {other} 0, expected both or neither; {fix}")
        if start and not start < full:
            rule = f"expected fewer than tokens_per_update, {full}, to which they grow; set --tokens-per-update"
            raise InvalidInput(f"TrainConfig.batch_ramp_from: {start}, {rule}")

    @property
    def decay_begins(self) -> int:
        """With wsd: how many updates are made before the learning rate falls."""
        return self.steps - max(1, round(self.decay_fraction * self.steps))

    def warmup_note(self) -> str:
        """A warning if training, or its plateau, ends within the warm-up, so that the learning rate never reaches its peak; else an empty string."""
        ends, what = (self.decay_begins, "begin to decay") if self.schedule == "wsd" else (self.steps, "end")
        if ends >= self.warmup_steps:
            return ""
        within = (
            f"--steps {self.steps} {what} within --warmup-steps {self.warmup_steps}, at {self.lr * max(1, ends) / self.warmup_steps:.2g}"
        )
        return f"the learning rate never reaches --lr {self.lr:g}: {within}; lower --warmup-steps"

    def accumulation(self, n_positions: int, tokens_seen: int | None = None) -> int:
        """Micro-batches per update. Raises ValueError, naming legal values, if tokens per update are no multiple of one.

        tokens_seen   with a batch ramp: of the update that follows after so many tokens; None: after the ramp
        Source  a batch that grows linearly with the tokens seen: Brown et al. 2020, GPT-3, arXiv:2005.14165, appendix B.
        """
        micro = self.micro_batch * n_positions
        for name in ("tokens_per_update", "batch_ramp_from"):
            if (n := getattr(self, name)) % micro:
                rule = f"expected a multiple of micro_batch x context = {self.micro_batch} x {n_positions} = {micro}"
                raise InvalidInput(f"TrainConfig.{name}: {n}, {rule}; try {multiples(micro, n)}")
        n, start, over = self.tokens_per_update, self.batch_ramp_from, self.batch_ramp_tokens
        if start and tokens_seen is not None and tokens_seen < over:
            n = start + (n - start) * tokens_seen // over  # in integers: the same on every machine
        return max(1, n // micro)


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Settings of every pretraining: which text, which run."""

    script: ClassVar[str] = ""
    corpus: PathName = field(default="docs", metadata=WITH_OVERRIDE)
    """docs (text that every installation has), tinyshakespeare, the-verdict, a text file, a folder of text files, or one that curate wrote."""
    validation_fraction: float = field(default=0.1, metadata=WITH_OVERRIDE)
    """Fraction of the corpus that is held out for validation; a curated one is split already."""
    run: PathName = field(default="", metadata=FREE)
    """Directory of the run; default: a new one below runs/."""
    resume: PathName = field(default="", metadata=FREE)
    """Run directory to resume from its last intact checkpoint; its settings become the flags' defaults."""
    override: bool = field(default=False, metadata=FREE)
    """With --resume: allow other optimizer settings and other data than the run began with."""
    deterministic_check: bool = field(default=False, metadata=FREE)
    """Before training, compute one step twice and compare the results bit for bit."""


@dataclass(frozen=True)
class PretrainConfig(CorpusConfig):
    """Settings of `examples/pretrain.py`."""

    script: ClassVar[str] = "examples/pretrain.py"
    model: GPTConfig
    train: TrainConfig
    recipe: Literal["tinygpt", "gpt2"] = "gpt2"  # as in runs older than the field; the script passes the name
    """What all other flags are unless they are given. tinygpt: the lowest loss in the same minutes; gpt2: GPT-2's model, with AdamW."""
    tokenizer: Literal["bpe", "characters", "words", "gpt2"] = "bpe"
    """bpe is trained on the corpus, up to --vocab-size tokens."""
    sample_tokens: int = field(default=120, metadata=FREE)
    """Tokens of the samples shown before and after training."""
