"""What fine-tuning a classifier and an assistant have in common: where to start from, which weights to train, and keeping the best ones."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from tinygpt.config import GPTConfig, PathName, TrainConfig
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import Tokenizer, train_tokenizer
from tinygpt.data.windows import Windows, encode_documents
from tinygpt.errors import Diverged, InvalidInput
from tinygpt.finetuning.lora import Adapter, LoraConfig, add_lora
from tinygpt.models.gpt import GPT
from tinygpt.parallel.local import workers_for
from tinygpt.runs.checkpoint import checkpoint_directory, is_pretrained, load, new_run, newest_run, save_checkpoint
from tinygpt.storage.durable import replace_file
from tinygpt.training.metrics import MetricsFile, Reporter, Result
from tinygpt.training.trainer import Record, Trainer
from tinygpt.weights.hub import HUB_NAMES

Trainable = Literal["head", "last-block", "all", "lora"]

# ---- settings ----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of every fine-tuning. The scripts' own configs add to them, and give some another default or a plainer help text."""

    data: PathName = ""
    """Name of a data set, or a file."""
    base: PathName = ""
    """Run or checkpoint to start from; "random" for random weights; default: the newest pretrained run below runs/."""
    pretrain_steps: int = 450
    """Where there is no run yet: updates of the small model that is pretrained first."""
    trainable: Trainable = "all"
    """What is trained: the last block, every weight, or thin matrices beside the frozen layers (LoRA)."""
    rank: int = 8
    """LoRA's rank."""
    alpha: float = 16.0
    """LoRA's scale: corrections count alpha / rank times."""
    lora_dropout: float = 0.0
    """Probability of dropping the inputs of LoRA's matrices while training."""
    targets: tuple[str, ...] = ("c_attn",)
    """Layers that LoRA corrects: c_attn, attn.c_proj, c_fc, mlp.c_proj; a classifier's embeddings, too: wte, wpe."""
    fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)
    """Shares of training, validation and test rows."""
    truncate: bool = False
    """Cut texts that are longer than the context; otherwise they are errors."""
    epochs: int = 3
    """Passes over the training rows, at most."""
    batch: int = 16
    """Texts per update."""
    lr: float = 5e-4
    """Peak learning rate."""
    warmup_steps: int = 50
    """Updates over which the learning rate rises from 0."""
    weight_decay: float = 0.1
    """AdamW's decay, on matrices only."""
    patience: int = 4
    """Evaluations (two per epoch) without a better one after which training ends."""
    seed: int = 0
    """Decides split, order and new weights."""
    run: PathName = ""
    """Directory of the run; default: a new one below runs/."""

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("pretrain_steps", 1), ("seed", 0)):  # TrainConfig checks the others
            if getattr(self, name) < least:
                raise InvalidInput(f"{name}: {getattr(self, name)}, expected at least {least}; leave --{name.replace('_', '-')} out")


def training_plan(config: FinetuneConfig, n_rows: int, batch: int, micro_batch: int, n_positions: int) -> TrainConfig:
    """The settings in updates instead of epochs: two evaluations and about eight lines of metrics per epoch.

    n_rows       training rows
    batch        rows per update, at most n_rows; computed `micro_batch` at a time, which must divide it
    n_positions  the model's context
    """
    per_epoch = n_rows // batch
    steps = config.epochs * per_epoch
    return TrainConfig(
        steps=steps,
        lr=config.lr,
        warmup_steps=min(config.warmup_steps, steps // 2),
        weight_decay=config.weight_decay,
        micro_batch=micro_batch,
        tokens_per_update=batch * n_positions,
        eval_every=-(-per_epoch // 2),  # rounded up
        patience=config.patience,
        log_every=max(per_epoch // 8, 1),
        seed=config.seed,
    )


# ---- texts and batches -------------------------------------------------------------------------------------------------------------------


def shorten(text: str, n: int) -> str:
    """The text in one line, its end left out if it has more than n characters."""
    flat = " ".join(text.split())
    return flat if len(flat) <= n else flat[: n - 4] + " ..."


def pad(sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of ids side by side, as long as the longest: ids (B, T) int64, and a mask (B, T) that is True for real tokens.

    Padding stands on the right and has id 0; any id would do, because nothing real looks at it.
    """
    lengths = np.array([len(ids) for ids in sequences])
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.zeros(mask.shape, dtype=np.int64)
    ids[mask] = np.concatenate(sequences)
    return ids, mask


# ---- which weights -----------------------------------------------------------------------------------------------------------------------


def set_trainable(model: Any, which: Trainable, lora: LoraConfig | None = None, seed: int = 0) -> Adapter | None:
    """Freezes all weights but some. Call it before an optimizer is made.

    which   "head": a classifier's head alone; "last-block": also the last block and the final norm; "all": every weight;
            "lora": the head and thin matrices that are added to the layers named by `lora`, drawn by `seed`
    Returns the adapter of "lora", else None. Raises ValueError for another choice, and for the head of a model that has none.
    """
    has_head = hasattr(model, "score")
    if which not in get_args(Trainable) or (which == "head" and not has_head):
        legal = [choice for choice in get_args(Trainable) if has_head or choice != "head"]
        raise InvalidInput(f"trainable: {which!r}, expected one of {', '.join(legal)}; fewer weights train faster, more fit better")
    adapter = add_lora(model, lora, seed) if which == "lora" else None
    thin = () if adapter is None else tuple(adapter.layers)
    inside = "transformer." if has_head else ""
    last_block = (f"{inside}h.{model.config.n_layer - 1}.", f"{inside}ln_f.")
    prefixes = {"head": (), "last-block": last_block, "all": ("",), "lora": ()}[which]
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith((*prefixes, "score.")) or (name.rpartition(".")[0] in thin and ".lora_" in name)
    return adapter


def n_trainable(model: Any) -> int:
    """How many weights are not frozen."""
    return sum(p.size for p in model.parameters() if p.requires_grad)


# ---- training ----------------------------------------------------------------------------------------------------------------------------


def fit(
    model: Any,
    train: Any,
    validation: Any,
    config: TrainConfig,
    reporter: Reporter,
    run: Record | None = None,
) -> Result:
    """Trains, and leaves the model with the weights of the best validation loss. Losses are in nats per target (a text or a token).

    train, validation   `tinygpt.models.protocols.Batches`
    config              micro_batch counts texts; `patience` stops early
    Ctrl-C and SIGTERM end it as they end `Trainer.run`; the result says so.
    run                 where metrics and checkpoints go
    """
    trainer = Trainer(model, config, train, validation, workers_for(model, config))
    kept = KeepBest(run)
    result = trainer.run(reporter, kept)
    if kept.best is not None:
        trainer.optimizer.weight[...] = kept.best
    return result


class KeepBest:
    """A `Record` that keeps a copy of the best weights and hands everything to another record, if there is one."""

    def __init__(self, run: Record | None) -> None:
        self.run = run
        self.best: Any = None

    def log(self, values: dict[str, Any]) -> None:
        if self.run:
            self.run.log(values)

    def save(self, trainer: Trainer, *, best: bool) -> None:
        if best:
            self.best = trainer.optimizer.weight.copy()  # all trainable weights lie in this one array
        if self.run:
            self.run.save(trainer, best=best)

    def roll_back(self, trainer: Trainer) -> str:
        if self.run:
            return self.run.roll_back(trainer)
        raise Diverged("roll back: no run, expected one with a checkpoint; use --on-nan skip")


# ---- the model to start from -------------------------------------------------------------------------------------------------------------


def starting_point(config: FinetuneConfig, texts: Sequence[str], reporter: Callable[[int], Any]) -> tuple[GPT, Tokenizer, str]:
    """Model, tokenizer, and their run or checkpoint ("": random weights), as `config.base` says; where there is none yet, a small model is
    pretrained first.

    texts      what the tokenizer of a model with random weights is trained on
    reporter   makes a context manager that is a `Reporter` from a number of updates, as `tinygpt.cli.Progress` does
    """
    if config.base == "random":
        tokenizer = train_tokenizer("bpe", texts, 2048)
        return GPT(GPTConfig.preset("laptop", vocab_size=tokenizer.n_vocab), seed=config.seed), tokenizer, ""
    try:
        directory = Path(config.base) if config.base else newest_run(accept=is_pretrained)
    except FileNotFoundError:
        progress = reporter(config.pretrain_steps)
        progress.note(
            "base       no pretrained run yet: pretraining a small model first (python examples/pretrain.py makes a better one)\n"
        )
        directory = pretrain_small(config.pretrain_steps, progress, config.seed)
        progress.note("")
    return *load(directory), str(directory)


def pretrain_small(steps: int, progress: Any, seed: int = 0) -> Path:
    """A minute's worth of examples/pretrain.py, where every step is explained: a small model of the default corpus. Returns its run.

    progress   a context manager that is a `Reporter`
    Raises KeyboardInterrupt if it is interrupted; nothing is kept then.
    """
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
            raise KeyboardInterrupt  # half a base would be taken for a whole one, by every fine-tuning from now on
    directory = new_run(None, "docs-small")
    save_checkpoint(directory, trainer.result.step, trainer.model, trainer.optimizer, tokenizer, trainer.state_dict(), best=True)
    return directory


# ---- the run -----------------------------------------------------------------------------------------------------------------------------


def start_run(config: FinetuneConfig, base: str, **facts: Any) -> Path:
    """Makes the run's directory, by default named after the data; its config.json holds the settings, `base` and other facts."""
    directory = new_run(config.run, Path(config.data).stem)
    record = dataclasses.asdict(config) | {"base": base} | facts
    replace_file(directory / "config.json", json.dumps(record, indent=2) + "\n")
    return directory


def save_finetuned(run: Path, trainer: Trainer, tokenizer: Tokenizer, adapter: Adapter | None, base: str, *, best: bool) -> None:
    """Adds a checkpoint to a run, LoRA's corrections merged into the weights; the best adapter is kept beside it, as `run`/adapter.

    base   run or checkpoint that training started from; "" for random weights
    """
    if adapter and best:
        adapter.save(run / "adapter", base if base in ("", *HUB_NAMES) else str(checkpoint_directory(base)))
    with adapter.merged() if adapter else contextlib.nullcontext():
        save_checkpoint(run, trainer.result.step, trainer.model, trainer.optimizer, tokenizer, trainer.state_dict(), best=best)


@dataclass
class FinetuneRecord:
    """The `Record` of a fine-tuning: metrics.jsonl, and checkpoints as `save_finetuned` writes them."""

    directory: Path
    tokenizer: Tokenizer
    adapter: Adapter | None
    base: str

    def log(self, values: dict[str, Any]) -> None:
        MetricsFile(self.directory / "metrics.jsonl").write(values)

    def save(self, trainer: Trainer, *, best: bool) -> None:
        save_finetuned(self.directory, trainer, self.tokenizer, self.adapter, self.base, best=best)

    def roll_back(self, trainer: Trainer) -> str:
        raise Diverged("roll back: not supported while fine-tuning; use --on-nan skip")
