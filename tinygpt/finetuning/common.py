"""What fine-tuning a classifier and an assistant have in common: where to start from, which weights to train, and keeping the best ones."""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol, get_args

from autograd import Array
from tinygpt.config import GPTConfig, PretrainConfig, TrainConfig
from tinygpt.data.corpora import load_corpus, run_name
from tinygpt.data.tokenizer import Tokenizer, train_tokenizer
from tinygpt.data.windows import Windows, encode_documents
from tinygpt.errors import Diverged, InvalidInput
from tinygpt.fields import FREE, WITH_OVERRIDE, PathName, check_fields
from tinygpt.finetuning.classifier import TextClassifier
from tinygpt.finetuning.lora import Adapter, LoraConfig, Model, add_lora
from tinygpt.finetuning.rows import Shares
from tinygpt.models import protocols
from tinygpt.models.encoder import Encoder
from tinygpt.models.gpt import GPT
from tinygpt.parallel.local import workers_for
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import is_pretraining_run, list_checkpoints, newest_run
from tinygpt.runs.run import Run
from tinygpt.runs.settings import check_data, environment_changes
from tinygpt.storage.checked_json import Json
from tinygpt.training.metrics import Reporter, Result
from tinygpt.training.trainer import Trainer
from tinygpt.weights.config_json import ENCODER, LANGUAGE_MODEL, another_kind
from tinygpt.weights.hub import HUB_NAMES

Trainable = Literal["head", "last-block", "all", "lora"]
RANDOM = "random"  # the base of a model with random weights


@dataclass(frozen=True)
class TuningConfig:
    """Settings of everything that starts from a pretrained model. The scripts' own configs add to them, and give some another default or a
    plainer help text."""

    script: ClassVar[str] = ""
    data: PathName = ""
    """Name of a data set, or a file."""
    base: PathName = ""
    """Run or checkpoint to start from; "random" for random weights; default: the newest pretrained run below runs/."""
    pretrain_steps: int = 450
    """If there is no run yet: updates of the small model that is pretrained first."""
    trainable: Trainable = "all"
    """Weights to train: the last block, all, or low-rank adapters next to the frozen layers (LoRA)."""
    rank: int = 8
    """LoRA's rank."""
    alpha: float = 16.0
    """LoRA's scale: adapters are multiplied by alpha / rank."""
    lora_dropout: float = 0.0
    """Probability of dropping the inputs of LoRA's matrices while training."""
    targets: tuple[str, ...] = ("c_attn",)
    """Layers that get LoRA adapters, by role: q, k, v, o, up, gate, down; or by name: c_attn (q, k and v in one), attn.c_proj, c_fc,
    mlp.c_proj; a classifier's embeddings, too: wte, wpe."""
    fractions: Shares = (0.7, 0.1, 0.2)
    """Shares of training, validation and test rows."""
    epochs: int = field(default=3, metadata=FREE)
    """Passes over the training rows, at most."""
    batch: int = 16
    """Texts per update."""
    lr: float = field(default=5e-4, metadata=WITH_OVERRIDE)
    """Peak learning rate."""
    warmup_steps: int = field(default=50, metadata=WITH_OVERRIDE)
    """Updates over which the learning rate rises from 0."""
    weight_decay: float = field(default=0.1, metadata=WITH_OVERRIDE)
    """AdamW's decay, on matrices only."""
    patience: int = field(default=4, metadata=FREE)
    """Evaluations (two per epoch) without a better one after which training ends."""
    seed: int = 0
    """Seed of split, order and new weights."""
    run: PathName = field(default="", metadata=FREE)
    """Directory of the run; default: a new one below runs/."""
    resume: PathName = field(default="", metadata=FREE)
    """Run directory to resume from its last intact checkpoint; its settings become the defaults of all flags."""
    override: bool = field(default=False, metadata=FREE)
    """With --resume: allow other settings of the optimizer, and other data, than the run began with."""

    def __post_init__(self) -> None:
        check_fields(self, {1: "epochs batch pretrain_steps", 0: "seed"})  # TrainConfig and LoraConfig check the others


@dataclass(frozen=True)
class FinetuneConfig(TuningConfig):
    """Settings of fine-tuning on texts, which may be longer than the context."""

    max_length: str = "context"
    """Tokens that are read of each text, longer ones cut: a number, longest-training (as many as the longest training text has), or context."""
    truncate: bool = False
    """Cut texts that are longer than the context; otherwise they are errors."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.max_length in ("context", "longest-training") or (self.max_length.isdecimal() and int(self.max_length) > 0)):
            raise InvalidInput(f"max_length: {self.max_length!r}, expected a number of tokens, longest-training or context")


def length_limit(config: FinetuneConfig, most: int, training_lengths: Sequence[int]) -> tuple[int, bool]:
    """(tokens that are read of each text, whether longer ones are cut), as `max_length` and `truncate` say.

    most   what the model's context allows: a larger `max_length` is a ValueError.  training_lengths: tokens of each training text
    """
    if config.max_length.isdecimal() and int(config.max_length) > most:
        raise InvalidInput(f"max_length: {config.max_length}, expected at most {most}, as the model's context allows; choose fewer tokens")
    if config.max_length.isdecimal():
        return int(config.max_length), True
    if config.max_length == "longest-training" and max(training_lengths) <= most:
        return max(training_lengths), True
    return most, config.truncate


def training_plan(config: TuningConfig, n_rows: int, batch: int, micro_batch: int, n_positions: int) -> TrainConfig:
    """The settings in updates instead of epochs: two evaluations and about eight lines of metrics per epoch.

    batch   rows per update, at most n_rows, the training rows; computed `micro_batch` at a time, which must divide it
    """
    per_epoch = n_rows // batch
    steps = config.epochs * per_epoch
    return TrainConfig(
        steps=steps, lr=config.lr, warmup_steps=min(config.warmup_steps, steps // 2), weight_decay=config.weight_decay,
        micro_batch=micro_batch, tokens_per_update=batch * n_positions, patience=config.patience, seed=config.seed,
        log_every=max(per_epoch // 8, 1), eval_every=-(-per_epoch // 2),  # rounded up
    )  # fmt: skip


def shorten(text: str, n: int) -> str:
    """The text in one line, its end left out if it has more than n characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= n else flat[: n - 4] + " ..."


def set_trainable(model: Model, which: Trainable, lora: LoraConfig | None = None, seed: int = 0) -> Adapter | None:
    """Freezes all weights but some. Call it before an optimizer is made.

    which   "head": a classifier's head alone (an encoder's: with its pooler); "last-block": also the last block and the final norm; "all": all;
            "lora": the head and low-rank matrices that are added to the layers named by `lora`, drawn by `seed`
    Returns the adapter of "lora", else None. Raises ValueError for another choice, and for the head of a model that has none.
    """
    has_head = isinstance(model, TextClassifier)
    if which not in get_args(Trainable) or (which == "head" and not has_head):
        legal = [choice for choice in get_args(Trainable) if has_head or choice != "head"]
        raise InvalidInput(f"trainable: {which!r}, expected one of {', '.join(legal)}; fewer weights train faster, more fit better")
    inside = "transformer." if has_head else ""
    last_block = (f"{inside}h.{model.config.n_layer - 1}.", f"{inside}ln_f.")
    prefixes = {"head": (), "last-block": last_block, "all": ("",), "lora": ()}[which]
    adapter = add_lora(model, lora, seed) if which == "lora" else None
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith((*prefixes, "score.", "transformer.pooler.")) or (adapter is not None and p.requires_grad)
    return adapter


def n_trainable(model: Model) -> int:
    """How many weights are not frozen."""
    return sum(p.size for p in model.parameters() if p.requires_grad)


def fit(
    model: protocols.Trainable, train: protocols.Batches, validation: protocols.Batches, config: TrainConfig, reporter: Reporter,
    run: Run | None = None, override: bool = False,
) -> Result:  # fmt: skip
    """Trains, and leaves the model with the weights of the best validation loss. Losses are in nats per target (a text or a token).

    config   micro_batch counts texts; `patience` stops early
    run      where metrics and checkpoints go; where it has a checkpoint already, training resumes from there, on other rows with `override`
    Ctrl-C and SIGTERM end it as they end `Trainer.run`; the result says so. Raises ValueError for other rows without `override`.
    """
    trainer = Trainer(model, config, train, validation, workers_for(model, config))
    if run and list_checkpoints(run.path):
        training = run.restore(trainer, other_data=override)
        check_data(training, "data_fingerprint", str(run.facts.get("data_fingerprint")), "data", override=override)
        print(f"resume     from step {trainer.result.step:,} of {trainer.config.steps:,}")
        if changed := environment_changes(training, trainer.processes):
            print(f"           not bit for bit, because this is another environment: {changed}")
    record = run or KeepBest()
    result = run.train(trainer, reporter) if run else trainer.run(reporter, record)
    if result.best_step:
        record.restore_best(trainer)
    return result


def fingerprint(rows: object) -> str:
    """sha256 of the rows of all parts of a split, in order."""
    return hashlib.sha256(repr(rows).encode("utf-8", "surrogatepass")).hexdigest()


class KeepBest:
    """A `Record` in memory: a copy of the best weights, for a training without a run."""

    weights: Array

    def log(self, values: dict[str, Json]) -> None:
        pass

    def save(self, trainer: Trainer, *, best: bool) -> None:
        if best:
            self.weights = trainer.optimizer.weight.copy()  # all trainable weights are in this one array

    def restore_best(self, trainer: Trainer) -> None:
        trainer.optimizer.weight[...] = self.weights

    def roll_back(self, trainer: Trainer) -> str:
        raise Diverged("rollback: no run, expected one with a checkpoint; use --on-nan skip")


class Display(Reporter, AbstractContextManager[object], Protocol):
    """A `Reporter` that shows progress within its block, as `tinygpt.cli.Progress` does."""


def starting_point(config: TuningConfig, texts: Sequence[str], reporter: Callable[[int], Display]) -> tuple[GPT, Tokenizer, str]:
    """As `any_starting_point`, for what needs a language model. Raises ValueError for a model of another kind."""
    model, tokenizer, base = any_starting_point(config, texts, reporter, kinds=(LANGUAGE_MODEL,))
    assert isinstance(model, GPT)
    return model, tokenizer, base


def any_starting_point(
    config: TuningConfig, texts: Sequence[str], reporter: Callable[[int], Display], kinds: Sequence[str] = (LANGUAGE_MODEL, ENCODER)
) -> tuple[GPT | Encoder, Tokenizer, str]:
    """Model, tokenizer, and the checkpoint that they come from ("random": random weights), as `config.base` says; where it says nothing, the
    newest run of a language model's pretraining, and where there is none yet, a small model is pretrained first.

    texts      what the tokenizer of a model with random weights is trained on
    reporter   makes one from a number of updates
    kinds      of models that may be the base, keys of `tinygpt.weights.config_json.KINDS`. Raises ValueError for another one.
    """
    if config.base == RANDOM:
        tokenizer = train_tokenizer("bpe", texts, 2048)
        return GPT(GPTConfig.preset("laptop", vocab_size=tokenizer.n_vocab), seed=config.seed), tokenizer, RANDOM
    try:
        base = config.base or newest_run(accept=is_pretraining_run)
    except FileNotFoundError:
        progress = reporter(config.pretrain_steps)
        better = "(python examples/pretrain.py makes a better one)"
        progress.note(f"base       no pretrained run yet: pretraining a small model first {better}\n")
        base = pretrain_small(config.pretrain_steps, progress, config.seed)
        progress.note("")
    checkpoint = Checkpoint.open(base)
    if checkpoint.kind not in kinds:
        raise another_kind(checkpoint.path, checkpoint.kind, *kinds)
    model = checkpoint.model()
    assert isinstance(model, GPT | Encoder)
    print(f"base       {checkpoint.describe()}: {model.n_parameters():,} weights, context {model.config.n_positions}")
    return model, checkpoint.tokenizer(), str(base) if str(base) in HUB_NAMES else str(checkpoint.path)


def pretrain_small(steps: int, progress: Display, seed: int = 0) -> Path:
    """Pretrains a small model for a minute, as examples/pretrain.py explains; gives its run. Raises KeyboardInterrupt, keeping nothing."""
    corpus = load_corpus("docs")
    texts = [document.text for document in corpus.train]
    tokenizer = train_tokenizer("bpe", texts, 2048)
    shape = GPTConfig(n_layer=4, n_head=4, n_embd=128, n_positions=128, vocab_size=tokenizer.n_vocab)
    settings = TrainConfig(steps=steps, lr=2e-3, eval_every=steps, log_every=max(steps // 10, 1), eval_batches=20, seed=seed)
    validation = Windows(encode_documents([document.text for document in corpus.validation], tokenizer), shape.n_positions)
    model, train = GPT(shape, seed=seed), Windows(encode_documents(texts, tokenizer), shape.n_positions)
    trainer = Trainer(model, settings, train, validation, workers_for(model, settings))
    with progress:
        if trainer.run(progress).interrupted:
            raise KeyboardInterrupt  # every later fine-tuning would take an unfinished base for a finished one
    run = Run.create("docs-small", background=False)
    run.keep_settings(PretrainConfig(shape, settings), script=PretrainConfig.script, corpus_fingerprint=corpus.fingerprint)
    run.tokenizer, run.facts = tokenizer, {"corpus_fingerprint": corpus.fingerprint, "tokenizer_fingerprint": tokenizer.fingerprint()}
    run.save(trainer, best=True)
    run.ranks.agree(0)  # the file of the first is there
    return run.path


def open_run(
    config: TuningConfig, base: str, tokenizer: Tokenizer, adapter: Adapter | None, data_fingerprint: str, name: str = "", **facts: Json
) -> Run:  # fmt: skip
    """The run to write to: the one that is resumed, or a new one, by default named after the data; config.json holds settings and facts."""
    if config.resume and not list_checkpoints(Path(config.resume)):
        print(f"resume     {config.resume} has no checkpoint yet: starting from step 0")
    run = Run.resume(config.resume, keep=1) if config.resume else Run.create(name or run_name(config.data), config.run, keep=1)
    run.keep_settings(dataclasses.replace(config, base=base, run=str(run.path), resume=""), script=config.script, **{"base": base, **facts})
    run.tokenizer, run.adapter, run.base = tokenizer, adapter, "" if base == RANDOM else base
    run.facts = {"data_fingerprint": data_fingerprint, "tokenizer_fingerprint": tokenizer.fingerprint()}
    return run
