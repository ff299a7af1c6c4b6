"""What training measures and reports: metrics per update, evaluation, the result of a run, bits per byte, and the curves."""

import contextlib
import json
import math
import os
import platform
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

import numpy as np

import autograd as ag
from autograd import backend, nn
from autograd.optim import FlatOptimizer
from autograd.threads import blas, n_threads
from tinygpt.data.windows import BatchOrder, count_targets
from tinygpt.errors import MissingPackage
from tinygpt.models.protocols import Batches, Classifies, Communicator, Trainable
from tinygpt.storage.checked_json import Entries, Json
from tinygpt.storage.durable import replace_file


class Reporter(Protocol):
    """Where progress goes; `tinygpt.cli.Progress` shows it in a terminal."""

    def update(self, metrics: "Metrics") -> None: ...
    def evaluated(self, step: int, validation_nats: float, best: bool) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Metrics:
    """One logged update. Loss in nats per target (a token, or a text to classify)."""

    step: int
    loss_nats: float
    lr: float
    gradient_norm: float  # before clipping
    update_ratio: float  # norm of the step that was taken, decay aside, over the norm of the weights: near 1e-3 in a healthy run
    tokens_per_s: float
    elapsed_s: float  # of the entire run, including the time before it was resumed
    tokens_seen: int


@dataclass
class Result:
    """How far a run has come and what it reached. Losses in nats per target."""

    step: int = 0
    first_loss_nats: float = math.nan
    best_validation_nats: float = math.inf
    best_step: int = 0
    last_validation_nats: float = math.nan
    tokens_seen: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    signal: int = 0
    stopped_early: bool = False
    n_skipped: int = 0
    n_rollbacks: int = 0
    train_curve: list[tuple[int, float]] = field(default_factory=list)
    validation_curve: list[tuple[int, float]] = field(default_factory=list)
    accuracy_curve: list[tuple[int, float, float]] = field(default_factory=list)  # (step, on training items, on validation items)

    _COUNTS: ClassVar = ("step", "tokens_seen", "best_step", "n_skipped", "n_rollbacks")  # what a checkpoint stores: integers,
    _NUMBERS: ClassVar = ("first_loss_nats", "best_validation_nats", "last_validation_nats", "seconds")  # and others; not the curves

    def state_dict(self) -> dict[str, Json]:
        """What a checkpoint stores, as JSON values; the curves are in the run's metrics."""
        values = {name: getattr(self, name) for name in (*self._COUNTS, *self._NUMBERS)}
        return {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no nan

    def load_state_dict(self, entry: Entries) -> None:
        """Restores what `state_dict` gave. Raises ValueError, naming the entry, for values that it never gives."""
        for name in self._COUNTS:
            setattr(self, name, entry.integer(name))
        for name in self._NUMBERS:
            setattr(self, name, entry.number(name, default=getattr(Result, name)))


def environment(processes: int) -> dict[str, str]:
    """What else bits depend on: resumed in another environment, a run continues equally well, but not bit for bit."""
    machine = f"{platform.system()} {platform.machine()}"
    return {
        "backend": backend.reason, "kernels": backend.kernels, "threads": str(n_threads()), "blas": blas(), "processes": str(processes),
        "numpy": np.__version__, "python": platform.python_version(), "machine": machine,
    }  # fmt: skip


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per target, and for a classifier the shares of items with the right label."""

    nats: float
    accuracy: float | None = None
    training_accuracy: float | None = None


def measure(model: Trainable, items: Batches, batch_size: int, n_batches: int = 0, ranks: Communicator | None = None) -> Evaluation:
    """Loss, and a classifier's accuracy, over windows or labeled texts, without dropout.

    n_batches   0: all of them, in order; else this many batches (at most all), drawn at random but the same each time
    ranks       those that measure together, each some of the batches; None: this process alone
    """
    assert isinstance(model, nn.Module)
    rank, size = (ranks.rank, ranks.size) if ranks else (0, 1)
    sums = np.zeros(3)  # loss times targets, targets, correct ones
    order = BatchOrder(len(items), batch_size, shuffle=n_batches > 0, drop_last=False)
    with nn.evaluating(model), ag.no_grad():
        for which in islice(order, rank, n_batches or None, size):
            batch = items.batch(which)
            loss, correct = model.loss_and_correct(*batch) if isinstance(model, Classifies) else (model.loss(*batch), 0)
            n = count_targets(batch)
            sums += loss.item() * n, n, correct
    if ranks:
        ranks.all_reduce(sums)
    total, n_targets, n_correct = sums.tolist()
    return Evaluation(total / n_targets, n_correct / n_targets if isinstance(model, Classifies) else None)


def update_ratio(optimizer: FlatOptimizer, piece: int = 1 << 20) -> float:
    """Norm of what the last step changed, decay aside, over that of the weights."""
    return optimizer.update_norm(piece) / max(optimizer.weight_norm(piece), 1e-30)


def bits_per_byte(nats_per_token: float, n_tokens: int, n_bytes: int) -> float:
    """Loss per byte of text instead of per token, in bits: comparable between tokenizers."""
    return nats_per_token * n_tokens / n_bytes / math.log(2)


class MetricsFile(NamedTuple):
    """A run's metrics.jsonl: one JSON object per line, appended."""

    path: Path

    def write(self, values: dict[str, Json]) -> None:
        """Raises OSError if the line cannot be written: nothing of it is left then."""
        n_bytes = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(values) + "\n")
        except OSError:
            with contextlib.suppress(OSError):
                os.truncate(self.path, n_bytes)  # the next line would be added to a half
            raise

    def truncate_after(self, step: int, result: Result, *, write: bool = True) -> None:
        """Drops the lines after `step` (a resumed run writes them again), a line cut short, and how the run ended; fills the curves of `result`.

        write   False: the file stays as it is
        """
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        kept = []
        for line in lines:
            with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                values = json.loads(line)
                if values["step"] > step or "ended" in values:
                    continue
                for key, curve in (("loss_nats", result.train_curve), ("validation_nats", result.validation_curve)):
                    if key in values:
                        curve.append((int(values["step"]), float(values[key])))
                if "training_accuracy" in values:
                    accuracies = float(values["training_accuracy"]), float(values["validation_accuracy"])
                    result.accuracy_curve.append((int(values["step"]), *accuracies))
                kept.append(line + "\n")
        if write:
            replace_file(self.path, "".join(kept))


def plot_loss(
    result: Result, path: Path, *, first_guess_nats: float, bigram_nats: float | None = None, unit: str = "nats per token"
) -> None:
    """Draws the loss curves against updates and, for a classifier, the accuracies next to them.

    first_guess_nats   the loss of a uniform guess: ln of the number of tokens or labels
    Raises ImportError, naming the extra, without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackage('loss.png: matplotlib is missing, expected it for pictures; pip install "tinygpt[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # Okabe and Ito's palette: told apart by every common form of color vision.
    training, validation, uniform = {"color": "#0072B2"}, {"color": "#D55E00", "marker": "o", "markersize": 3}, {"color": "#999999"}
    n = 2 if result.accuracy_curve else 1
    figure, panels = plt.subplots(1, n, figsize=(7 * n, 4.2), dpi=120, layout="constrained", squeeze=False, sharex=True)
    loss, accuracy = panels[0, 0], panels[0, -1]
    loss.plot(*np.array(result.train_curve).T, **training, linewidth=1, label="training (one batch)")
    if result.validation_curve:
        loss.plot(*np.array(result.validation_curve).T, **validation, label="validation")
    loss.axhline(first_guess_nats, **uniform, linestyle=":", label=f"uniform guess, {first_guess_nats:.2f}")
    if bigram_nats is not None:
        loss.axhline(bigram_nats, color="#009E73", linestyle="--", label=f"bigram model, {bigram_nats:.2f}")
    loss.set(xlabel="updates", ylabel=f"loss ({unit})", title=f"{result.tokens_seen:,} tokens in {result.seconds / 60:.1f} minutes")
    if result.accuracy_curve:
        steps, on_training, on_validation = np.array(result.accuracy_curve).T
        accuracy.plot(steps, on_training, **training, marker="o", markersize=3, label="training (a sample)")
        accuracy.plot(steps, on_validation, **validation, label="validation")
        guess = math.exp(-first_guess_nats)
        accuracy.axhline(guess, **uniform, linestyle=":", label=f"uniform guess, {guess:.2f}")
        accuracy.set(xlabel="updates", ylabel="accuracy", ylim=(0, 1.02), title="share of texts with the right label, without dropout")
    for panel in panels[0]:
        panel.grid(alpha=0.25)
        panel.legend(framealpha=0.9, edgecolor="none")
    figure.savefig(path)
    plt.close(figure)
