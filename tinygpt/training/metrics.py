"""What training reports: metrics per update, the result of a run, evaluation, bits per byte, and the loss curve."""

import json
import math
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import autograd as ag
from autograd import backend
from autograd.threads import n_threads
from tinygpt.data.windows import BatchOrder, count_targets
from tinygpt.models.protocols import Batches
from tinygpt.storage.durable import replace_file


class Reporter(Protocol):
    """Where progress goes; `tinygpt.cli.Progress` shows it in a terminal."""

    def update(self, metrics: "Metrics") -> None: ...
    def evaluated(self, step: int, validation_nats: float, best: bool) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Metrics:
    """One logged update. Loss in nats per target (a token, or a text to classify).

    gradient_norm   before clipping
    update_ratio    norm of the step that AdamW took, decay aside, over the norm of the weights: near 1e-3 in a healthy run
    elapsed_s       of the whole run, also before it was resumed
    """

    step: int
    loss_nats: float
    lr: float
    gradient_norm: float
    update_ratio: float
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
    signal: int = 0
    stopped_early: bool = False
    n_skipped: int = 0
    n_rollbacks: int = 0
    train_curve: list[tuple[int, float]] = field(default_factory=list)
    validation_curve: list[tuple[int, float]] = field(default_factory=list)


def environment(processes: int) -> dict[str, str]:
    """What else bits depend on: a run resumed under another one goes on equally well, but not bit for bit."""
    return {
        "backend": backend.reason,
        "kernels": backend.kernels,
        "threads": str(n_threads()),
        "processes": str(processes),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _or_none(x: float) -> float | None:
    return x if math.isfinite(x) else None  # JSON has no nan


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


def bits_per_byte(nats_per_token: float, n_tokens: int, n_bytes: int) -> float:
    """Loss per byte of text instead of per token, in bits: comparable between tokenizers."""
    return nats_per_token * n_tokens / n_bytes / math.log(2)


class MetricsFile:
    """A run's metrics.jsonl: one JSON object per line, appended."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(values) + "\n")

    def truncate_after(self, step: int, result: Result) -> None:
        """Drops the lines after `step` (a resumed run writes them again), a line cut short, and how the run ended; fills the curves of `result`."""
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines() if self.path.is_file() else []
        kept = []
        for line in lines:
            try:
                values = json.loads(line)
                fits = values["step"] <= step and "ended" not in values
                for key, curve in (("loss_nats", result.train_curve), ("validation_nats", result.validation_curve)):
                    if fits and key in values:
                        curve.append((int(values["step"]), float(values[key])))
            except (ValueError, TypeError, KeyError, RecursionError):
                continue
            if fits:
                kept.append(line + "\n")
        replace_file(self.path, "".join(kept))


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
