"""How good is a model: scores on tasks, each with what guessing gives and a 95 % interval.

    python -m tinygpt evaluate                         the newest run, on the tasks that need no network
    python -m tinygpt evaluate RUN --tasks section summary --shots 2 --limit 100
    python -m tinygpt evaluate RUN --compare OTHER     both, and the difference item by item
    python -m tinygpt evaluate RUN --task-file arc.jsonl hellaswag.jsonl

Prints a table and writes evaluation.json and evaluation.png into the run's directory, or into --output. What is finished is kept in
evaluation.jsonl: a run that was stopped continues there.
"""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from autograd import backend
from tinygpt.arguments import parse_args
from tinygpt.errors import InvalidInput, MissingPackage
from tinygpt.evaluation.files import read_task
from tinygpt.evaluation.items import Item, Task, corrupted, permuted
from tinygpt.evaluation.scores import Result, Values, evaluate
from tinygpt.evaluation.statistics import Interval, difference
from tinygpt.evaluation.tasks import TASKS, make_task
from tinygpt.fields import PathName, check_fields
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import newest_run
from tinygpt.storage.checked_json import Json


@dataclass(frozen=True)
class EvaluateConfig:
    model: Annotated[PathName, tyro.conf.Positional] = ""
    """A run, a checkpoint directory, or a name on the hub; default: the newest run."""
    tasks: tuple[str, ...] = ()
    """Tasks by name; default: all that need no network, unless --task-file is given."""
    task_file: tuple[PathName, ...] = ()
    """Files of items: ARC, HellaSwag, MMLU, PIQA, LAMBADA, SQuAD, GSM8K, TruthfulQA as published, or of a --kind."""
    kind: str = ""
    """What the items of --task-file are, where their fields do not say it."""
    shots: int = 0
    """Solved examples in front of each item."""
    limit: int = 0
    """At most so many items of each task, drawn by --seed; 0: all."""
    seed: int = 0
    """Decides which examples and items are drawn."""
    compare: PathName = ""
    """Another model, scored on the same items."""
    controls: bool = True
    """Also score items whose passage has its words shuffled, and choices in another order."""
    harness: bool = False
    """Run the --tasks, names or folders of YAML files, in lm-evaluation-harness: pip install "tinygpt[eval]"."""
    output: PathName = ""
    """Directory of the results; default: that of the run, or the working one."""

    def __post_init__(self) -> None:
        check_fields(self, {0: "shots limit seed"})


def main(argv: list[str] | None = None) -> None:
    """The command `evaluate`."""
    config = parse_args(EvaluateConfig(), __doc__, argv, prog="python -m tinygpt evaluate")
    if config.harness:
        in_harness(config)
        return
    tasks = [task.limited(config.limit, config.seed) for task in _tasks(config)]
    opened = [Checkpoint.open(name) for name in (config.model or str(newest_run()), config.compare) if name]
    output = Path(config.output) if config.output else opened[0].run or Path()
    output.mkdir(parents=True, exist_ok=True)
    print(f"backend  {backend.reason}")
    evaluated = []
    for checkpoint in opened:
        print(f"model    {checkpoint.describe()}")
        evaluated.append(evaluate_all(checkpoint, tasks, config, output / "evaluation.jsonl"))
    print("\n" + score_table(evaluated[0]))
    if len(evaluated) > 1:
        print("\n" + difference_table(*evaluated))
    report = {checkpoint.describe(): [row.fields() for row in rows] for checkpoint, rows in zip(opened, evaluated, strict=True)}
    (output / "evaluation.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nresults  {output / 'evaluation.json'}")
    try:
        plot(evaluated, [str(checkpoint.run or checkpoint.path) for checkpoint in opened], output / "evaluation.png")
        print(f"picture  {output / 'evaluation.png'}")
    except MissingPackage as error:
        print(f"picture  not drawn: {error}")


def _tasks(config: EvaluateConfig) -> Iterator[Task]:
    for name in config.tasks or (() if config.task_file else TASKS):
        yield make_task(name)
    for path in config.task_file:
        yield read_task(path, config.kind)


def in_harness(config: EvaluateConfig) -> None:
    """The harness's own table of its tasks, for our model."""
    try:
        from lm_eval.utils import make_table

        from tinygpt.evaluation.lm_eval import run_harness
    except ImportError as error:
        raise MissingPackage('--harness: lm_eval is missing, expected it for the harness; pip install "tinygpt[eval]"') from error
    if not config.tasks:
        raise InvalidInput(
            "--harness: no --tasks, expected names of the harness's tasks or folders of YAML files; `lm_eval ls tasks` lists them"
        )
    checkpoint = Checkpoint.open(config.model or newest_run())
    output = Path(config.output) if config.output else checkpoint.run or Path()
    output.mkdir(parents=True, exist_ok=True)
    print(f"backend  {backend.reason}\nmodel    {checkpoint.describe()}")
    results = run_harness(checkpoint.language_model(), checkpoint.tokenizer(), config.tasks, n_shots=config.shots, limit=config.limit)
    print("\n" + make_table(results))
    if results["contexts_cut"]:
        print(f"{results['contexts_cut']} contexts lost their start")
    path = output / "evaluation-harness.json"
    path.write_text(json.dumps(results["results"], indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"results  {path}")


@dataclass
class Evaluated:
    """A task's result, with those of its controls: by name."""

    result: Result
    controls: dict[str, Result]

    def fields(self) -> dict[str, Json]:
        """As JSON values."""
        r, task = self.result, self.result.task
        return {
            "task": task.name, "what": task.what, "source": task.source, "kind": task.kind, "fingerprint": task.fingerprint(),
            "items": len(task.items), "shots": r.n_shots, "metric": r.metric, "score": r.interval()._asdict(), "chance": task.chance,
            "centered": r.centered(), "all": {name: float(r.column(name).mean()) for name in next(iter(r.values.values()))},
            "contexts_cut": r.n_cut, "seconds": r.seconds,
            "controls": {name: control.interval()._asdict() for name, control in self.controls.items()},
        }  # fmt: skip


_CONTROLS = {"passage shuffled": corrupted, "options permuted": permuted}


def evaluate_all(checkpoint: Checkpoint, tasks: Sequence[Task], config: EvaluateConfig, record: Path) -> list[Evaluated]:
    """Every task and its controls. record: a file to which each finished item is added, and in which those of an earlier call are found."""
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    kept, found = _Record(record, str(checkpoint.path.resolve())), []
    from rich.progress import track

    for task in track(tasks, description="tasks", transient=True):
        results = {}
        for name, change in {"": _same, **(_CONTROLS if config.controls else {})}.items():
            if name and all(change(item) == item for item in task.items):
                continue  # has no passage, or is no choice
            key = f"{task.name}, {name}, {config.shots} shots, seed {config.seed}, {task.fingerprint()}"
            started, earlier = time.perf_counter(), kept.seconds(key)
            add = kept.adder(key)
            results[name] = evaluate(
                model, tokenizer, task, n_shots=config.shots, seed=config.seed, done=kept.values(key), finished=add, change=change
            )
            results[name].seconds = earlier + time.perf_counter() - started
            kept.flush(key, results[name].seconds)
        found.append(Evaluated(results.pop(""), results))
    return found


def _same(item: Item) -> Item:
    return item


class _Record:
    """Finished items on the disk, a line each: {model, key, item, values}. A line that a crash has cut is left out."""

    def __init__(self, path: Path, model: str) -> None:
        self.path, self.model = path, model
        self._items: dict[str, dict[int, Values]] = {}
        self._seconds: dict[str, float] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["model"] == model:
                self._items.setdefault(entry["key"], {}).update({entry["item"]: entry["values"]} if "item" in entry else {})
                self._seconds[entry["key"]] = entry.get("seconds", self._seconds.get(entry["key"], 0.0))

    def values(self, key: str) -> dict[int, Values]:
        return self._items.get(key, {})

    def seconds(self, key: str) -> float:
        return self._seconds.get(key, 0.0)

    def adder(self, key: str) -> "_Adder":
        return _Adder(self, key)

    def flush(self, key: str, seconds: float) -> None:
        self.write({"key": key, "seconds": seconds})

    def write(self, entry: dict[str, Json]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"model": self.model, **entry}) + "\n")


@dataclass
class _Adder:
    record: _Record
    key: str

    def __call__(self, number: int, values: Values, answer: str) -> None:
        self.record.write({"key": self.key, "item": number, "values": values} | ({"answer": answer} if answer else {}))


def score_table(rows: Sequence[Evaluated]) -> str:
    """One line per task."""
    header = ("task", "items", "score", "95 %", "chance", "centered", "shuffled", "permuted", "seconds")
    lines = []
    for row in rows:
        r, shown = row.result, row.result.interval()
        guessed = r.task.kind in ("choice", "schema")
        controls = [f"{row.controls[name].column().mean():.3f}" if name in row.controls else "" for name in _CONTROLS]
        lines.append((
            r.task.name, f"{len(r.task.items)}", f"{shown.mean:.3f}", f"{shown.low:.3f} to {shown.high:.3f}",
            f"{r.task.chance:.2f}" if guessed else "", f"{r.centered():+.3f}" if guessed else "", *controls, f"{r.seconds:.1f}",
        ))  # fmt: skip
    notes = [f"{row.result.task.name}: {row.result.metric}, {row.result.task.what}" for row in rows]
    notes += [
        f"{row.result.task.name}: {row.result.n_cut} items did not fit, and lost the start of a context or the end of a continuation"
        for row in rows
        if row.result.n_cut
    ]
    return _columns([header, *lines]) + "\n\n" + "\n".join(notes)


def difference_table(a: Sequence[Evaluated], b: Sequence[Evaluated]) -> str:
    """The first model minus the second, item by item."""
    lines: list[tuple[str, ...]] = [("task", "first", "second", "difference", "95 %")]
    for one, other in zip(a, b, strict=True):
        d: Interval = difference(one.result.column(), other.result.column(), one.result.groups())
        scores = (f"{r.result.column().mean():.3f}" for r in (one, other))
        lines.append((one.result.task.name, *scores, f"{d.mean:+.3f}", f"{d.low:+.3f} to {d.high:+.3f}"))
    return _columns(lines)


def _columns(lines: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def plot(evaluated: Sequence[Sequence[Evaluated]], names: Sequence[str], path: Path) -> None:
    """Scores with intervals, and what guessing gives. Raises ImportError, naming the extra, without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingPackage(f'{path.name}: matplotlib is missing, expected it for pictures; pip install "tinygpt[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [i for i, row in enumerate(evaluated[0]) if row.result.task.kind != "text"]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.5 * max(len(shown), 1)), dpi=120, layout="constrained")
    for m, (rows, name) in enumerate(zip(evaluated, names, strict=True)):
        scores = [rows[i].result.interval() for i in shown]
        middle = np.array([s.mean for s in scores])
        errors = np.array([[s.mean - s.low for s in scores], [s.high - s.mean for s in scores]])
        y = np.arange(len(shown)) + 0.2 * m
        axes.errorbar(middle, y, xerr=errors, fmt="o", capsize=3, color=("#0072B2", "#D55E00")[m % 2], label=name)
    for line, i in enumerate(shown):
        if chance := evaluated[0][i].result.task.chance:
            axes.plot([chance, chance], [line - 0.3, line + 0.4], color="#999999", linestyle=":")
    axes.set(
        yticks=range(len(shown)), yticklabels=[evaluated[0][i].result.task.name for i in shown], xlim=(0, 1), xlabel="score; dotted: chance"
    )
    axes.invert_yaxis()
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path)
    plt.close(figure)
