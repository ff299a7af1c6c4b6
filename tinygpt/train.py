"""The training loop: batches, accumulated gradients, clipped AdamW updates, evaluation, checkpoints, and a report of all of it."""

import contextlib
import json
import math
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import autograd as ag
from autograd.optim import AdamW, warmup_cosine
from tinygpt.config import TrainConfig
from tinygpt.data import BatchOrder

IGNORED = -100
"""The target of a position that does not count: padding, or a prompt that is only to be read."""


class Batches(Protocol):
    """What a model learns from, item by item: `tinygpt.data.Windows` of a token stream, or `tinygpt.classify.LabelledBatches`.

    batch(which)   (ids, targets, ...) of the items numbered `which`: the arguments of the model's `loss`
    lengths        where items differ in length: (N,) tokens of each, so that micro-batches of similar ones can be made
    """

    def __len__(self) -> int: ...
    def batch(self, which: np.ndarray) -> tuple[np.ndarray, ...]: ...


class Reporter(Protocol):
    """Where progress goes; `tinygpt.progress` shows it in a terminal."""

    def update(self, metrics: "Metrics") -> None: ...
    def evaluated(self, step: int, validation_nats: float, best: bool) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Metrics:
    """One logged update, averaged since the last one logged. Loss in nats per target (a token, or a text to classify)."""

    step: int
    loss_nats: float
    lr: float
    gradient_norm: float
    tokens_per_s: float
    elapsed_s: float
    tokens_seen: int


@dataclass
class Result:
    """What a run came to. Losses in nats per target."""

    step: int = 0
    first_loss_nats: float = math.nan
    best_validation_nats: float = math.inf
    best_step: int = 0
    last_validation_nats: float = math.nan
    tokens_seen: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    stopped_early: bool = False
    train_curve: list[tuple[int, float]] = field(default_factory=list)
    validation_curve: list[tuple[int, float]] = field(default_factory=list)


class Trainer:
    """Trains a GPT on windows of tokens, or a classifier on labelled texts.

    model, config   what, and how
    train           items to learn from; each update takes `accumulation` micro-batches of them
    validation      items to measure on, or None
    """

    def __init__(self, model: Any, config: TrainConfig, train: Batches, validation: Batches | None) -> None:
        self.model, self.config = model.compute_in(config.dtype), config
        self.train_items, self.validation_items = train, validation
        self.accumulation = config.accumulation(model.config.n_positions)
        lengths = getattr(train, "lengths", None)
        self.order = BatchOrder(len(train), config.micro_batch, seed=config.seed + 1, lengths=lengths, together=self.accumulation)
        self.optimizer = AdamW(model, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
        self.result = Result()
        self._batches = self.order.batches()

    @property
    def tokens_per_update(self) -> int:
        return self.accumulation * self.config.micro_batch * self.model.config.n_positions

    def update(self) -> tuple[Any, Any]:
        """One update of the weights. Returns (mean loss in nats per target, gradient norm before clipping), still on the device."""
        config = self.config
        self.optimizer.lr = warmup_cosine(
            self.result.step,
            peak=config.lr,
            warmup_steps=config.warmup_steps,
            n_steps=config.steps,
            floor=config.lr * config.final_lr_fraction,
        )
        self.optimizer.zero_grad()
        total = 0.0
        batches = [self.train_items.batch(next(self._batches)) for _ in range(self.accumulation)]
        n_targets = [count_targets(batch) for batch in batches]
        for batch, n in zip(batches, n_targets, strict=True):
            loss = self.model.loss(*batch)
            self.result.tokens_seen += batch[0].size
            if self.accumulation > 1:
                loss = loss * (n / sum(n_targets))  # each target counts the same, whichever micro-batch it is in
            loss.backward()
            total = total + loss.data
        norm = self.optimizer.step(max_norm=config.max_norm or None)
        self.result.step += 1
        return total, norm

    def evaluate(self) -> float:
        """Mean loss over the validation items (or `eval_batches` batches of them), nats per target."""
        if self.validation_items is None:
            return math.nan
        return evaluate(self.model, self.validation_items, self.config.micro_batch, self.config.eval_batches)

    def run(self, reporter: Reporter, on_checkpoint: Any = None, on_metrics: Any = None) -> Result:
        """Trains to the last step, or until Ctrl-C, which ends the step at hand and saves.

        on_checkpoint(best: bool)   called after each evaluation and at the end
        on_metrics(dict)            called with each line of metrics
        Raises FloatingPointError at the first loss that is not finite, before anything is saved.
        """
        result, config = self.result, self.config
        begin = time.perf_counter()
        since_log, tokens_logged, evaluation_s = begin, result.tokens_seen, 0.0
        self.model.train()
        with _finish_step_on_interrupt() as interrupted:
            while result.step < config.steps:
                loss, norm = self.update()
                ending = result.step == config.steps or bool(interrupted)
                if result.step == 1 or result.step % config.log_every == 0 or ending:
                    loss_nats, now = float(loss), time.perf_counter()  # float() waits for the device, so the clock is right
                    if not math.isfinite(loss_nats):
                        raise FloatingPointError(
                            f"loss: {loss_nats} at step {result.step} (learning rate {self.optimizer.lr:.2e}, gradient norm {float(norm):.2e}), "
                            "expected a finite number; the last checkpoint is kept; lower --lr, or find the op with AUTOGRAD_DEBUG=1"
                        )
                    if result.step == 1:
                        result.first_loss_nats = loss_nats
                        n = self.model.n_choices
                        reporter.note(f"first loss {loss_nats:.3f} nats; an even guess among {n:,} is ln {n} = {math.log(n):.3f}")
                    result.seconds = now - begin
                    rate = (result.tokens_seen - tokens_logged) / max(now - since_log - evaluation_s, 1e-9)
                    metrics = Metrics(
                        result.step, loss_nats, self.optimizer.lr, float(norm), rate, result.seconds, result.tokens_seen
                    )  # fmt: skip
                    since_log, tokens_logged, evaluation_s = now, result.tokens_seen, 0.0
                    result.train_curve.append((result.step, loss_nats))
                    reporter.update(metrics)
                    if on_metrics:
                        on_metrics(asdict(metrics))
                if result.step % config.eval_every == 0 or ending:
                    started = time.perf_counter()
                    self._measure(reporter, on_checkpoint, on_metrics)
                    evaluation_s += time.perf_counter() - started
                    waited = result.step - result.best_step
                    if config.patience and result.validation_curve and waited >= config.patience * config.eval_every:
                        result.stopped_early = True
                        reporter.note(f"stopped early: no better validation since step {result.best_step}")
                        break
                if interrupted:
                    result.interrupted = True
                    reporter.note(f"interrupted: step {result.step} of {config.steps} finished and saved")
                    break
        result.seconds = time.perf_counter() - begin
        return result

    def _measure(self, reporter: Reporter, on_checkpoint: Any, on_metrics: Any) -> None:
        result = self.result
        nats = self.evaluate()
        result.last_validation_nats = nats
        best = nats < result.best_validation_nats
        if best:
            result.best_validation_nats, result.best_step = nats, result.step
        if not math.isnan(nats):
            result.validation_curve.append((result.step, nats))
            reporter.evaluated(result.step, nats, best)
            if on_metrics:
                on_metrics({"step": result.step, "validation_nats": nats})
        if on_checkpoint:
            on_checkpoint(best)

    def progress(self) -> dict[str, Any]:
        """What a checkpoint stores besides weights and moments, as JSON values."""
        r = self.result
        return {
            "step": r.step,
            "tokens_seen": r.tokens_seen,
            "batches_drawn": r.step * self.accumulation,
            "dropout_draw": self.model.dropout_stream.draw,
            "best_step": r.best_step,
            "best_validation_nats": r.best_validation_nats if math.isfinite(r.best_validation_nats) else None,
            "train": asdict(self.config),
        }


def evaluate(model: Any, items: Batches, batch_size: int, n_batches: int = 0) -> float:
    """Mean loss over windows or labelled texts, nats per target. Dropout is off meanwhile.

    n_batches   0: all of them, in order; else so many batches, drawn at random but the same each time
    """
    was_training = model.training
    model.eval()
    total, n = 0.0, 0
    order = BatchOrder(len(items), batch_size, shuffle=n_batches > 0, drop_last=False)
    with ag.no_grad():
        for i, which in enumerate(order):
            if n_batches and i >= n_batches:
                break
            batch = items.batch(which)
            total += float(model.loss(*batch).data) * count_targets(batch)
            n += count_targets(batch)
    model.train(was_training)
    return total / n


def count_targets(batch: tuple[np.ndarray, ...]) -> int:
    """How many targets of a batch count in the loss: those that are not IGNORED."""
    return int(np.count_nonzero(batch[1] != IGNORED))


def bits_per_byte(nats_per_token: float, n_tokens: int, n_bytes: int) -> float:
    """Loss per byte of text instead of per token, in bits: comparable between tokenizers."""
    return nats_per_token * n_tokens / n_bytes / math.log(2)


class MetricsFile:
    """Appends one JSON object per line to a run's metrics.jsonl."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(values) + "\n")


def plot_loss(
    result: Result, path: Path, *, first_guess_nats: float, bigram_nats: float | None = None, unit: str = "nats per token"
) -> None:
    """Draws the loss curves (in `unit` against updates). Raises ImportError, naming the extra, without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('loss.png: matplotlib is missing, expected it for pictures; pip install "tinygpt[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # Okabe and Ito's palette: told apart by every common form of colour vision.
    figure, axes = plt.subplots(figsize=(7, 4.2), dpi=120, layout="constrained")
    axes.plot(*np.array(result.train_curve).T, color="#0072B2", linewidth=1, label="training (one batch)")
    if result.validation_curve:
        axes.plot(*np.array(result.validation_curve).T, color="#D55E00", marker="o", markersize=3, label="validation")
    axes.axhline(first_guess_nats, color="#999999", linestyle=":", label=f"even guess, {first_guess_nats:.2f}")
    if bigram_nats is not None:
        axes.axhline(bigram_nats, color="#009E73", linestyle="--", label=f"bigram model, {bigram_nats:.2f}")
    axes.set(xlabel="updates", ylabel=f"loss ({unit})", title=f"{result.tokens_seen:,} tokens in {result.seconds / 60:.1f} minutes")
    axes.grid(alpha=0.25)
    axes.legend(framealpha=0.9, edgecolor="none")
    figure.savefig(path)
    plt.close(figure)


@contextlib.contextmanager
def _finish_step_on_interrupt() -> Iterator[list[int]]:
    """Within this block the first Ctrl-C only fills the list (the loop then finishes its step and saves); the second acts at once."""
    caught: list[int] = []
    try:
        before = signal.getsignal(signal.SIGINT)

        def handler(number: int, frame: Any) -> None:
            if caught:
                signal.signal(signal.SIGINT, before)
                raise KeyboardInterrupt
            caught.append(number)

        signal.signal(signal.SIGINT, handler)
    except ValueError:  # not the main thread: signals are somebody else's business
        yield caught
        return
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)
