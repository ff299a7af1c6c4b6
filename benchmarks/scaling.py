"""More weights, more text: loss and scores of four sizes and of four amounts, with the exponents of the power laws that fit them.

    python benchmarks/scaling.py                    # two seeds, 20 trainings; about half an hour on two cores
    python benchmarks/scaling.py --seeds 0          # one seed: half of it
    python benchmarks/scaling.py --updates 20 --limit 20 --output out.json --runs out     # two minutes, to see that it runs

Sizes: 2 x 64, 3 x 96, 4 x 128 and 6 x 192 (layers x channels), all of the training text, the same updates. The rates are those of the default
recipe, carried to other widths by the width rule (tinygpt/width_rule.py).
Text: an eighth, a quarter, half and all of the training documents for 4 x 128, once with the same updates, so that less text is read more often
(the weights of the best evaluation count), and once with updates in proportion to the text.

Loss is in nats per token of all validation text. Fitted is L = (scale / x)^exponent, x the weights without embeddings or the tokens of text
(Kaplan et al. 2020, arXiv:2001.08361, equations 1.1 and 1.2), and where a floor that no x passes makes the fit better than chance would
(F test, 5 %), L = floor + (scale / x)^exponent. Intervals are a bootstrap's over the points. Scores are those of `python -m tinygpt evaluate`.

Trained models are kept under --runs: a call that was stopped continues there. Needs the extra plot for the picture.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ablations import machine
from trained import Docs, Trained, answers, pyplot, shape_of, trained, training_for

from tinygpt import GPTConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.errors import InvalidInput
from tinygpt.evaluation.statistics import difference
from tinygpt.evaluation.tasks import make_task
from tinygpt.fields import PathName

SIZES = ((2, 64), (3, 96), (4, 128), (6, 192))
BASE = (4, 128)
SHARES = (0.125, 0.25, 0.5)
CURVES = {"sizes": "block_weights", "text, same updates": "tokens", "text, updates in proportion": "tokens"}
TASKS = ("next-word", "section", "summary", "copying", "arithmetic")
_F = (161.4, 18.51, 10.13, 7.709, 6.608, 5.987, 5.591, 5.318, 5.117, 4.965)  # 95 % quantile of F(1, n), n from 1
_RESAMPLES, _FLOORS = 2_000, 200


@dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = (0, 1)
    """Of weights, data order and which documents make a part."""
    updates: int = 1000
    """Of each training; fewer for parts of the text on the curve where they are in proportion to it."""
    limit: int = 500
    """At most so many items of each task."""
    processes: int = 0
    """That share a training. 0: one per core."""
    runs: PathName = "runs/benchmarks"
    """Where trained models are kept."""
    output: PathName = "benchmarks/results/scaling.json"
    """Where the results go; the picture is drawn next to them."""


class Fit(NamedTuple):
    """L = floor + (scale / x)^exponent. error: root of the mean square of the difference of log L."""

    exponent: float
    scale: float
    floor: float
    error: float

    def at(self, x: np.ndarray) -> np.ndarray:
        return self.floor + (self.scale / x) ** self.exponent


def fit(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, with_floor: bool = False) -> Fit:
    """The power law nearest to points (x, y), by least squares of log y; with a floor, the best of _FLOORS floors below all y.

    Raises ValueError for fewer different x than the law has parameters.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(np.unique(x)) < 2 + with_floor:
        raise InvalidInput(f"fit: {len(np.unique(x))} different x, expected at least {2 + with_floor}; measure more sizes")
    floors = np.linspace(0, y.min(), _FLOORS, endpoint=False)[: _FLOORS if with_floor else 1, None]  # (floors, 1)
    log_x, above = np.log(x), np.log(y - floors)  # (floors, points)
    slope = ((log_x - log_x.mean()) * above).sum(axis=1) / ((log_x - log_x.mean()) ** 2).sum()
    start = above.mean(axis=1) - slope * log_x.mean()
    errors = np.sqrt(np.mean((np.log(floors + np.exp(start[:, None] + slope[:, None] * log_x)) - np.log(y)) ** 2, axis=1))
    i = int(errors.argmin())
    log_scale = -start[i] / slope[i] if slope[i] else math.inf  # of a flat law, as few updates make it, beyond all numbers
    return Fit(-float(slope[i]), math.exp(log_scale) if abs(log_scale) < 700 else math.nan, float(floors[i, 0]), float(errors[i]))


def floor_is_seen(x: Sequence[float], y: Sequence[float]) -> bool:
    """Whether a floor lowers the squared error by more than one parameter does by chance, 5 %."""
    free = len(x) - 3
    if free < 1 or len(set(x)) < 4:
        return False
    without, with_floor = (len(x) * fit(x, y, floor).error ** 2 for floor in (False, True))
    return (without - with_floor) > _F[min(free, len(_F)) - 1] * with_floor / free


def fitted(x: Sequence[float], y: Sequence[float], seed: int = 0) -> dict[str, Any]:
    """Both laws as JSON values, each exponent with a 95 % interval from points drawn again, and the exponents between neighbors."""
    points, rng = np.array([x, y], dtype=np.float64), np.random.default_rng(seed)
    report: dict[str, Any] = {"floor_is_seen": floor_is_seen(x, y)}
    for name, with_floor in (("power law", False), ("with a floor", True)):
        if len(set(x)) < 2 + with_floor:
            continue
        drawn = []
        for _ in range(_RESAMPLES):
            some = points[:, rng.integers(len(x), size=len(x))]
            if len(np.unique(some[0])) >= 2 + with_floor:
                drawn.append(fit(*some, with_floor))
        best = fit(x, y, with_floor)
        low, high = np.quantile([each.exponent for each in drawn], (0.025, 0.975))
        report[name] = best._asdict() | {"low": float(low), "high": float(high)}
        if with_floor:
            report[name]["floors"] = np.quantile([each.floor for each in drawn], (0.025, 0.975)).tolist()
    means = {each: statistics.mean(y[i] for i in range(len(x)) if x[i] == each) for each in sorted(set(x))}
    pairs = list(means.items())
    report["between neighbors"] = [math.log(a[1] / b[1]) / math.log(b[0] / a[0]) for a, b in pairwise(pairs)]
    return report


def points(config: Config, seed: int) -> Iterator[tuple[str, GPTConfig, int, float]]:
    """(curve, shape, updates, share of the text) of each training; all text and the base's size is on each curve."""
    for size in SIZES:
        for curve in CURVES if size == BASE else ("sizes",):
            yield curve, shape_of(*size), config.updates, 1.0
    for curve, proportional in (("text, same updates", False), ("text, updates in proportion", True)):
        for share in SHARES:
            yield curve, shape_of(*BASE), max(1, round(config.updates * (share if proportional else 1))), share


def measured(config: Config, docs: Docs) -> list[dict[str, Any]]:
    """A row for each point: its curve, seed, facts and scores."""
    tasks, rows = [make_task(name).limited(config.limit) for name in TASKS], []
    for seed in config.seeds:
        for curve, shape, updates, share in points(config, seed):
            model = trained(Path(config.runs), shape, training_for(updates, seed, processes=config.processes), docs, share)
            scores = {task.name: round(float(answers(model, task).right.mean()), 4) for task in tasks}
            rows.append({"curve": curve, "seed": seed, "share": share, "model": model.path.name, **model.facts, "scores": scores})
            found = "  ".join(f"{name} {score:.3f}" for name, score in scores.items())
            print(f"{curve:28} seed {seed}  {rows[-1][CURVES[curve]]:>9,}  {model.facts['nats']:.3f} nats  {found}", flush=True)
    return rows


def by_x(rows: Sequence[dict[str, Any]], curve: str) -> list[tuple[float, list[dict[str, Any]]]]:
    """Rows of a curve, by weights or by the mean tokens of a share (which differ a little between seeds)."""
    mine = [row for row in rows if row["curve"] == curve]
    shares = sorted({(row["block_weights"], row["share"]) for row in mine})
    groups = [[row for row in mine if (row["block_weights"], row["share"]) == each] for each in shares]
    return [(statistics.mean(row[CURVES[curve]] for row in group), group) for group in groups]


def gains(config: Config, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """By curve and task: the score of the largest size or text minus that of the smallest, item by item, means over the seeds."""
    found: dict[str, dict[str, str]] = {}
    for task in (make_task(name).limited(config.limit) for name in TASKS):
        for curve in CURVES:
            ends = [[answers(Trained(Path(config.runs) / row["model"], row), task) for row in by_x(rows, curve)[i][1]] for i in (0, -1)]
            smallest, largest = (np.mean([each.right for each in end], axis=0) for end in ends)
            d = difference(largest, smallest, ends[0][0].groups)
            found.setdefault(curve, {})[task.name] = f"{d.mean:+.3f} ({d.low:+.3f} to {d.high:+.3f})"
    return found


def report_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fit of each curve."""
    found = {}
    for curve in CURVES:
        grouped = by_x(rows, curve)
        found[curve] = fitted([x for x, group in grouped for _ in group], [row["nats"] for _, group in grouped for row in group])
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The tables of docs/prompting.md."""
    lines = []
    for curve, name in CURVES.items():
        unit = "weights without embeddings" if name == "block_weights" else "tokens of text"
        lines += ["", f"| {curve}: {unit} | updates | best at | loss | {' | '.join(TASKS)} |", "|---" * (4 + len(TASKS)) + "|"]
        for x, group in by_x(rows, curve):
            nats, best = [row["nats"] for row in group], [row["best_update"] for row in group]
            cells = [f"{x:,.0f}", f"{group[0]['updates']:,}", " ".join(map(str, best)), f"{statistics.mean(nats):.3f}"]
            cells[-1] += f" ± {max(nats) - statistics.mean(nats):.3f}" if len(nats) > 1 else ""
            cells += [f"{statistics.mean(row['scores'][task] for row in group):.3f}" for task in TASKS]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(law: dict[str, Any]) -> dict[str, str]:
    lines = {}
    for name in ("power law", "with a floor"):
        if name in law:
            f = law[name]
            floor = f", floor {f['floor']:.2f} ({f['floors'][0]:.2f} to {f['floors'][1]:.2f})" if "floors" in f else ""
            lines[name] = (
                f"exponent {f['exponent']:.3f} ({f['low']:.3f} to {f['high']:.3f}), scale {f['scale']:.2e}{floor}, error {f['error']:.2%}"
            )
    lines["floor"] = "seen" if law["floor_is_seen"] else "not seen in these points"
    lines["between neighbors"] = ", ".join(f"{each:.3f}" for each in law["between neighbors"])
    return lines


def draw(rows: Sequence[dict[str, Any]], fits: dict[str, Any], file: Path) -> None:
    """Loss above and wrong answers below, against weights and against text; all axes are logarithmic."""
    plt = pyplot(file)
    if plt is None:
        return
    figure, axes = plt.subplots(2, 2, figsize=(9, 7.5), layout="constrained", sharex="col", sharey="row")
    colors = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
    panels = {"sizes": 0, "text, same updates": 1, "text, updates in proportion": 1}
    for number, (curve, column) in enumerate(panels.items()):
        grouped, axis, color = by_x(rows, curve), axes[0][column], colors[number]
        for x, group in grouped:
            axis.plot([x] * len(group), [row["nats"] for row in group], "o", markersize=4, color=color)
        law = fits[curve]["with a floor" if fits[curve]["floor_is_seen"] else "power law"]
        line = np.geomspace(grouped[0][0], grouped[-1][0])
        label = f"{curve}: exponent {law['exponent']:.3f} ({law['low']:.3f} to {law['high']:.3f})"
        axis.plot(
            line,
            Fit(law["exponent"], law["scale"], law["floor"], 0).at(line),
            color=color,
            label=label + ", with a floor" * bool(law["floor"]),
        )
    for column, curve in enumerate(("sizes", "text, same updates")):
        grouped, axis = by_x(rows, curve), axes[1][column]
        for task, color, marker in zip(TASKS, colors, "osv^D", strict=True):
            wrong = [1 - statistics.mean(row["scores"][task] for row in group) for _, group in grouped]
            axis.plot([x for x, _ in grouped], wrong, marker=marker, markersize=4, color=color, label=task)
        ticks = [x for x, _ in grouped]
        axis.set(xscale="log")
        axis.set_xticks(ticks, labels=[f"{x / 1e6:.2g} M" for x in ticks])
        axis.minorticks_off()
    for axis in axes.flat:
        axis.set(yscale="log")
        axis.grid(alpha=0.25, which="both")
        axis.yaxis.set_minor_formatter("{x:g}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.legend(fontsize=7, frameon=False)
    axes[0][0].set(ylabel="validation loss (nats per token)", title="weights")
    axes[0][1].set(title="text")
    axes[1][0].set(ylabel="wrong answers (share)", xlabel="weights without embeddings")
    axes[1][1].set(xlabel="tokens of training text, same updates")
    figure.savefig(file, dpi=120)
    plt.close(figure)
    print("picture:", file)


def main() -> None:
    config = parse_args(Config(), __doc__)
    if not config.seeds or config.updates < 1:
        raise InvalidInput(f"scaling: seeds {config.seeds}, updates {config.updates}, expected at least one of each")
    docs = Docs.read()
    rows = measured(config, docs)
    fits, gained = report_of(rows), gains(config, rows)
    once = {(row["block_weights"], row["share"], row["updates"], row["seed"]): row for row in rows}.values()
    minutes = {key: round(sum(row[key] for row in once), 1) for key in ("minutes", "core_minutes")}
    report = {"updates": config.updates, "trainings": len(once), **minutes, "machine": machine(), "date": time.strftime("%Y-%m-%d")}
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report | {"fits": fits, "gains": gained, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    for curve, law in fits.items():
        print(table(curve, describe(law) | {f"{task}, last minus first": gain for task, gain in gained[curve].items()}))
    print(f"{markdown(rows)}\n\n{len(once)} trainings, {minutes['minutes']} minutes, {minutes['core_minutes']} of this process's core")
    draw(rows, fits, path.with_suffix(".png"))


if __name__ == "__main__":
    run(main)
