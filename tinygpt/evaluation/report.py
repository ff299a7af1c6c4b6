"""What an evaluation shows: progress, tables, notes, evaluation.json and evaluation.png."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinygpt.errors import MissingPackage
from tinygpt.evaluation.overlap import Overlap
from tinygpt.evaluation.scores import Result
from tinygpt.evaluation.statistics import Interval
from tinygpt.storage.checked_json import Json

CONTROLS = ("passage shuffled", "options permuted")
_EVERY_S = 20.0  # between two plain lines of one part


class ItemProgress:
    """The items of all models, tasks and controls: a live bar in a terminal; elsewhere a line for each part that took its time."""

    def __init__(self, n_items: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.console = Console(highlight=False, soft_wrap=True)
        items = TextColumn("{task.completed:.0f}/{task.total} items")
        self.bar = Bar(items, BarColumn(), TextColumn("{task.description}"), TimeRemainingColumn(compact=True), console=self.console)
        self.shown = self.bar.add_task("", total=n_items)
        self.n_before, self.part, self.last = 0, "", 0.0
        if self.console.is_terminal:
            self.bar.start()

    def __enter__(self) -> "ItemProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.stop()

    def begin(self, part: str) -> None:
        self.part, self.last = part, time.perf_counter()
        self.bar.update(self.shown, description=part)

    def update(self, n_done: float) -> None:
        """n_done items of the part are finished."""
        self.bar.update(self.shown, completed=self.n_before + n_done)
        if not self.console.is_terminal and time.perf_counter() - self.last > _EVERY_S:
            self.last = time.perf_counter()
            self.console.print(f"         {self.n_before + n_done:.0f} of {self.bar.tasks[0].total:.0f} items: {self.part}", markup=False)

    def note(self, text: str) -> None:
        self.console.print(text, markup=False)

    def end(self, n_items: int) -> None:
        self.n_before += n_items
        self.bar.update(self.shown, completed=self.n_before)


@dataclass
class Evaluated:
    """A task's result, with those of its controls by name, and which items the training text holds (None: unknown)."""

    result: Result
    controls: dict[str, Result]
    overlap: Overlap | None = None
    differences: dict[str, Interval] = field(default_factory=dict)

    def fields(self) -> dict[str, Json]:
        """As JSON values."""
        r, task = self.result, self.result.task
        return {
            "task": task.name, "what": task.what, "source": task.source, "kind": task.kind, "fingerprint": task.fingerprint(),
            "items": len(task.items), "shots": r.n_shots, "metric": r.metric, "score": json_of(r.interval()), "chance": task.chance,
            "centered": r.centered() if task.kind in ("choice", "schema") else None, "all": r.every_metric(), "items_cut": r.n_cut,
            "seconds": r.seconds, "controls": {name: json_of(control.interval()) for name, control in self.controls.items()},
            "training_text": self._overlap_fields(),
        } | ({"minus": {name: json_of(d) for name, d in self.differences.items()}} if self.differences else {})  # fmt: skip

    def _overlap_fields(self) -> Json:
        if self.overlap is None:
            return None
        parts = {"clean": self.overlap.clean, "seen": self.overlap.seen}
        found: dict[str, Json] = {
            name: {"items": len(numbers)} | ({"score": json_of(self.result.interval(among=numbers))} if numbers else {})
            for name, numbers in parts.items()
        }
        return found | {
            "too_short": self.overlap.n_short,
            "shares": [None if math.isnan(s) else round(s, 4) for s in self.overlap.shares.tolist()],
        }


def json_of(shown: Interval) -> dict[str, Json]:
    """JSON has no nan."""
    return {name: value if math.isfinite(value) else None for name, value in shown._asdict().items()}


def bounds(shown: Interval, sign: str = "") -> str:
    """The interval as the tables show it."""
    return f"{shown.low:{sign}.3f} to {shown.high:{sign}.3f}" if math.isfinite(shown.low) else "unknown"


def score_table(rows: Sequence[Evaluated]) -> str:
    """One line per task."""
    header = ("task", "items", "score", "95 %", "chance", "centered", "shuffled", "permuted", "seconds")
    lines = []
    for row in rows:
        r, shown = row.result, row.result.interval()
        guessed = r.task.kind in ("choice", "schema")
        controls = [f"{row.controls[name].interval().mean:.3f}" if name in row.controls else "" for name in CONTROLS]
        lines.append((
            r.task.name, f"{len(r.task.items)}", f"{shown.mean:.3f}", bounds(shown),
            f"{r.task.chance:.2f}" if guessed else "", f"{r.centered():+.3f}" if guessed else "", *controls, f"{r.seconds:.1f}",
        ))  # fmt: skip
    return columns([header, *lines])


_BY = {
    "per_token": "the likeliest option per token", "sum": "the likeliest", "greedy": "each token of it is the likeliest",
    "bits_per_byte": "bits per byte of all texts together, in windows that overlap by half", "exact_match": "exact matches of generated answers",
    "f1": "words in common with generated answers (F1)", "bleu": "BLEU of generated answers, 0 to 100",
}  # fmt: skip


def notes(rows: Sequence[Evaluated]) -> str:
    """A line for each task: what was asked, what was counted, the other metrics; and what did not fit."""
    lines = []
    for row in rows:
        r, task = row.result, row.result.task
        others = {name: value for name, value in r.every_metric().items() if name not in (r.metric, "log_prob", "n_tokens", "n_bytes")}
        shown = "".join(f"; {name.replace('_', ' ')} {value:.3f}" for name, value in others.items())
        lines.append(f"{task.name}: {task.what}; {_BY[r.metric]}{shown}")
        lines += [f"{task.name}: {note}" for note in task.notes]
        if task.kind == "answer" and r.metric != "bleu":
            lines.append(f"{task.name}: {_bleu_note(r)}")
        if task.kind == "answer" and 0 < r.n_new < task.max_new_tokens:
            rule = f"at most {r.n_new} tokens instead of {task.max_new_tokens}, half of what the model reads"
            lines.append(f"{task.name}: answers are shortened, to {rule}")
        if r.n_cut:
            lines.append(f"{task.name}: {r.n_cut} items did not fit, and lost the start of a context or the end of a continuation")
    return "\n".join(lines)


def _bleu_note(result: Result) -> str:
    try:
        return f"BLEU {result.interval('bleu').mean:.1f} of 100"
    except MissingPackage as error:
        return f"BLEU not measured ({error})"


def overlap_table(rows: Sequence[Evaluated]) -> str:
    """Scores of the items that the training text does not hold, and of those that it does, with the mean share of their n-grams that it holds:
    one line per task. "" where it is not known."""
    lines = []
    for row in rows:
        if row.overlap is not None:
            clean, seen = row.overlap.clean, row.overlap.seen
            share = f"{row.overlap.shares[seen].mean():.2f}" if seen else ""
            found = [row.result.interval(among=numbers) if numbers else None for numbers in (clean, seen)]
            score, seen_score = (f"{shown.mean:.3f}" if shown else "" for shown in found)
            between, seen_between = (bounds(shown) if shown else "" for shown in found)
            name, short = row.result.task.name, f"{row.overlap.n_short}"
            lines.append((name, f"{len(clean)}", score, between, f"{len(seen)}", seen_score, seen_between, share, short))
    return columns([("task", "clean", "score", "95 %", "seen", "score", "95 %", "share", "too short"), *lines]) if lines else ""


def difference_table(names: Sequence[str], evaluated: Sequence[Sequence[Evaluated]]) -> str:
    """The first model, and each other one with the first minus it, item by item. Fills in `Evaluated.differences` of the first."""
    first, *others = names
    header = ["task", first]
    for name in others:
        header += [name, "difference", "95 %"]
    lines = [tuple(header)]
    for row, *rest in zip(*evaluated, strict=True):
        cells = [row.result.task.name, f"{row.result.interval().mean:.3f}"]
        for name, other in zip(others, rest, strict=True):
            d = row.differences[name] = row.result.minus(other.result)
            cells += [f"{other.result.interval().mean:.3f}", f"{d.mean:+.3f}", bounds(d, "+")]
        lines.append(tuple(cells))
    return columns(lines)


def columns(lines: Sequence[Sequence[str]]) -> str:
    """Rows of as many cells each as text, every column as wide as its widest cell."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def plot(evaluated: Sequence[Sequence[Evaluated]], names: Sequence[str], path: Path) -> None:
    """Scores with intervals, and what guessing gives; BLEU as a share of 100. Raises ImportError, naming the extra, without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackage(f'{path.name}: matplotlib is missing, expected it for pictures; pip install "tinygpt[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [i for i, row in enumerate(evaluated[0]) if row.result.task.kind != "text"]
    figure, axes = plt.subplots(figsize=(7, 1.6 + 0.5 * max(len(shown), 1)), dpi=120, layout="constrained")
    for m, (rows, name) in enumerate(zip(evaluated, names, strict=True)):
        scale = [100 if rows[i].result.metric == "bleu" else 1 for i in shown]
        scores = [rows[i].result.interval() for i in shown]
        middle = np.array([s.mean / k for s, k in zip(scores, scale, strict=True)])
        errors = np.array([[(s.mean - s.low) / k, (s.high - s.mean) / k] for s, k in zip(scores, scale, strict=True)]).reshape(-1, 2)
        y = np.arange(len(shown)) + 0.2 * m
        axes.errorbar(
            middle, y, xerr=np.maximum(np.nan_to_num(errors.T), 0), fmt="o", capsize=3, color=_COLORS[m % len(_COLORS)], label=name
        )
    for line, i in enumerate(shown):
        if chance := evaluated[0][i].result.task.chance:
            axes.plot([chance, chance], [line - 0.3, line + 0.2 * len(evaluated)], color="#999999", linestyle=":")
    axes.set(
        yticks=range(len(shown)), yticklabels=[evaluated[0][i].result.task.name for i in shown], xlim=(0, 1), xlabel="score; dotted: chance"
    )
    axes.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    figure.savefig(path)
    plt.close(figure)
