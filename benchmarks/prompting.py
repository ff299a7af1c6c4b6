"""What a prompt gives: accuracy against the number of solved examples in it (shots), and wordings of a question against each other.

    python benchmarks/prompting.py                  # about ten minutes on two cores
    python benchmarks/prompting.py --models 1x32 --updates 20 --limit 10 --runs out --output out.json    # a minute, to see that it runs

Two models with a context of 512 tokens are trained on the default corpus, 2 x 64 and 4 x 128 (layers x channels), for 1,600 updates with as many
tokens as the default run's; --models takes others. Nothing is trained after that: solved examples stand in the prompt, as in Brown et al. 2020,
arXiv:2005.14165.

shots      0, 1, 2, 4 and 8 solved examples, drawn for each item, from training documents or from other draws of the seed. Passages are
           shortened, so that nine of them fit into the context (items that do not fit are counted); at all shots the items are the same, and the
           difference to no example is taken item by item
wordings   the same items asked in several ways, the difference to the first way taken item by item:
           section    the heading as it stands in a docstring, then the passage; the passage, then "Label:"; the passage, then a question
           summary    as a docstring has it; or with names in front of both parts
           yes or no  "Is the following text ..." before the text, or after it

What has been trained and scored is kept under --runs: a call that was stopped continues there. Needs the extra plot for the picture.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ablations import machine
from trained import Answers, Docs, Trained, answers, pyplot, shape_of, trained, training_for

from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.errors import InvalidInput
from tinygpt.evaluation.items import Item, Task
from tinygpt.evaluation.statistics import difference, interval
from tinygpt.evaluation.tasks import label_task, make_task
from tinygpt.fields import PathName
from tinygpt.finetuning.labeled import SECTIONS, load_labeled

CONTEXT, SHOTS = 512, (0, 1, 2, 4, 8)
TASKS = {"section": 120, "summary": 80, "next-word": 160, "copying": 0, "arithmetic": 0}  # and the characters that are kept of a passage
ASKED = "Examples"  # the section that the yes-or-no question is about
WORDING_SHOTS = (0, 4)
_COLORS = ("#0072B2", "#D55E00", "#009E73")


@dataclass(frozen=True)
class Config:
    models: tuple[str, ...] = ("2x64", "4x128")
    """Layers x channels."""
    updates: int = 1600
    """Of each training."""
    seed: int = 0
    """Of weights, data order and drawn examples."""
    limit: int = 300
    """At most so many items of each task."""
    processes: int = 0
    """That share a training. 0: one per core."""
    runs: PathName = "runs/benchmarks"
    """Where trained models and their answers are kept."""
    output: PathName = "benchmarks/results/prompting.json"
    """Where the results go; the picture is drawn next to them."""


def cut(text: str, n: int) -> str:
    """Its first n characters, to the end of a word."""
    return text if len(text) <= n else text[:n].rpartition(" ")[0] or text[:n]


def shortened(task: Task, n: int) -> Task:
    """The task with n characters of each passage: its start, or what stands before a word that is asked for. 0: as it is.

    Items two of whose contexts become equal are left out.
    """

    def short(items: Sequence[Item]) -> list[Item]:
        made = []
        for item in items:
            if item.kind == "schema":
                contexts = [cut(c.rstrip("\n"), n) + "\n\n" if c.endswith("\n\n") else c for c in item.contexts]  # or a heading
                if len(set(contexts)) == len(contexts):
                    made.append(dataclasses.replace(item, contexts=tuple(contexts), options=(cut(item.options[0], n),), passage=""))
            else:
                before = item.contexts[0][-n:]
                made.append(dataclasses.replace(item, contexts=(before.partition(" ")[2] or before,), passage=""))
        return made

    return dataclasses.replace(task, items=short(task.items), examples=short(task.examples)) if n else task


Rewrite = Callable[[Item], Item]


def as_choice(item: Item, question: str) -> Item:
    """A section item as text, then a question, then the name of a section."""
    return Item("choice", (f"{item.options[0].strip()}\n{question}",), tuple(f" {name}" for name in SECTIONS), item.right, item.group)


def named(item: Item) -> Item:
    """A summary item with a name in front of both parts."""
    contexts = tuple(f"Summary: {context.strip()}\nDescription: " for context in item.contexts)
    return dataclasses.replace(item, contexts=contexts)


def asked(item: Item, wording: str) -> Item:
    """A yes-or-no item whose text stands in the wording's braces."""
    return dataclasses.replace(item, contexts=(wording.format(cut(item.passage, 120)),), passage="")


_LIST = f"{', '.join(SECTIONS[:-1])} or {SECTIONS[-1]}"
WORDINGS: dict[str, dict[str, Rewrite]] = {
    "section": {
        "heading first": lambda item: item,
        "then Label:": lambda item: as_choice(item, "Label:"),
        "then a question": lambda item: as_choice(item, f"Which section of a docstring is this, {_LIST}? It is:"),
    },
    "summary": {"as written": lambda item: item, "with names": named},
    "yes or no": {
        "question first": lambda item: asked(item, f"Is the following text '{ASKED}'? Answer with 'yes' or 'no'.\n\nText: {{}}\nAnswer:"),
        "question last": lambda item: asked(item, f"Text: {{}}\n\nIs this text '{ASKED}'? Answer with 'yes' or 'no'.\nAnswer:"),
    },
}


def reworded(task: Task, rewrite: Rewrite) -> Task:
    return dataclasses.replace(task, items=[rewrite(item) for item in task.items], examples=[rewrite(item) for item in task.examples])


def yes_or_no() -> Task:
    """Held-out rows of doc-sections: does a text come from the section ASKED? As many do as do not."""
    return dataclasses.replace(label_task(load_labeled("doc-sections"), ASKED), name="yes or no")


def tasks_of(limit: int) -> dict[str, Task]:
    return {name: shortened(make_task(name), n).limited(limit) for name, n in TASKS.items()}


def shots_of(model: Trained, tasks: dict[str, Task], seed: int) -> dict[str, Any]:
    """By task and number of shots: score, interval, the difference to no shots, and items that did not fit."""
    found: dict[str, Any] = {}
    for name, task in tasks.items():
        none = answers(model, task, 0, seed)
        found[name] = {"chance": task.chance, "items": len(task.items), "shots": {}}
        for n in SHOTS:
            entry = found[name]["shots"][str(n)] = compared(answers(model, task, n, seed), none)
            print(f"{name:12} {n} shots  {entry['score'][0]:.3f}  {shown(entry['difference'])}  {entry['n_cut']} cut", flush=True)
    return found


def compared(one: Answers, other: Answers) -> dict[str, Any]:
    """Means with their intervals, of `one` and of its difference to `other`, item by item."""
    return {
        "score": [round(x, 4) for x in interval(one.right, one.groups)], "n_cut": one.n_cut,
        "difference": [round(x, 4) for x in difference(one.right, other.right, one.groups)],
    }  # fmt: skip


def wordings_of(model: Trained, tasks: dict[str, Task], seed: int) -> dict[str, Any]:
    """By task, wording and number of shots: as in `shots_of`, the difference to the first wording; and the score by right answer, which shows
    a model that always says the same."""
    found: dict[str, Any] = {}
    for name, ways in WORDINGS.items():
        first: dict[int, Answers] = {}
        for way, rewrite in ways.items():
            task = reworded(tasks[name], rewrite)
            for n in WORDING_SHOTS:
                given = answers(model, task, n, seed)
                entry = compared(given, first.setdefault(n, given)) | {"chance": task.chance}
                answer = np.array([item.right for item in task.items])
                entry["by_answer"] = [
                    round(float(given.right[answer == i].mean()), 4) for i in range(answer.max() + 1) if (answer == i).any()
                ]
                found.setdefault(name, {}).setdefault(way, {})[str(n)] = entry
                by_answer = " ".join(f"{each:.2f}" for each in entry["by_answer"])
                print(
                    f"{name:12} {way:16} {n} shots  {entry['score'][0]:.3f}  {shown(entry['difference'])}  by answer {by_answer}",
                    flush=True,
                )
    return found


def shown(d: Sequence[float]) -> str:
    return f"{d[0]:+.3f} ({d[1]:+.3f} to {d[2]:+.3f})"


def markdown(report: dict[str, Any]) -> Iterator[str]:
    """The tables of docs/prompting.md."""
    yield f"| task, chance | model | {' | '.join(f'{n} shots' for n in SHOTS)} | {SHOTS[-1]} against 0 |"
    yield "|---" * (3 + len(SHOTS)) + "|"
    for name in TASKS:
        for model, entry in report["models"].items():
            task = entry["shots"][name]
            scores = [f"{task['shots'][str(n)]['score'][0]:.3f}" for n in SHOTS]
            chance = f"{name}, {task['chance']:.2f}" if task["chance"] else name
            yield f"| {chance} | {model} | {' | '.join(scores)} | {shown(task['shots'][str(SHOTS[-1])]['difference'])} |"
    yield ""
    heads = [f"{n} shots | difference to the first" for n in WORDING_SHOTS]
    yield f"| task | wording | model | {' | '.join(heads)} |"
    yield "|---" * (3 + 2 * len(WORDING_SHOTS)) + "|"
    for name, ways in WORDINGS.items():
        for way in ways:
            for model, entry in report["models"].items():
                found = [entry["wordings"][name][way][str(n)] for n in WORDING_SHOTS]
                cells = [f"{each['score'][0]:.3f} | {shown(each['difference']) if way != next(iter(ways)) else ''}" for each in found]
                yield f"| {name} | {way} | {model} | {' | '.join(cells)} |"


def draw(report: dict[str, Any], file: Path) -> None:
    """A panel for each task: score against shots with its interval, and chance."""
    plt = pyplot(file)
    if plt is None:
        return
    figure, axes = plt.subplots(1, len(TASKS), figsize=(2.3 * len(TASKS), 3.4), layout="constrained", sharey=True)
    for axis, name in zip(axes, TASKS, strict=True):
        for number, (model, entry) in enumerate(report["models"].items()):
            task = entry["shots"][name]
            scores = np.array([task["shots"][str(n)]["score"] for n in SHOTS])
            errors = np.abs(scores[:, 1:] - scores[:, :1]).T
            x = np.arange(len(SHOTS)) + 0.08 * number
            axis.errorbar(
                x, scores[:, 0], yerr=errors, marker="os^"[number % 3], color=_COLORS[number % 3], markersize=4, capsize=2, label=model
            )
        if task["chance"]:
            axis.axhline(task["chance"], color="#888888", linestyle=":", label="chance")
        axis.set(title=f"{name}, {task['items']} items", xticks=range(len(SHOTS)), xticklabels=SHOTS, xlabel="solved examples", ylim=(0, 1))
        axis.grid(alpha=0.25)
    axes[0].set(ylabel="score")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(file, dpi=120)
    plt.close(figure)
    print("picture:", file)


def main() -> None:
    config = parse_args(Config(), __doc__)
    path, docs, tasks = Path(config.output), Docs.read(), tasks_of(config.limit)
    sections = {"section": tasks["section"], "summary": tasks["summary"], "yes or no": yes_or_no().limited(config.limit)}
    report: dict[str, Any] = {"models": {}, "seed": config.seed, "limit": config.limit}
    for name in config.models:
        sizes = name.split("x")
        if len(sizes) != 2 or not all(size.isdecimal() for size in sizes):
            raise InvalidInput(f"models: {name!r}, expected layers x channels, such as 4x128")
        training = training_for(config.updates, config.seed, CONTEXT, config.processes)
        model = trained(Path(config.runs), shape_of(int(sizes[0]), int(sizes[1]), CONTEXT), training, docs)
        print(
            f"model        {name}: {model.facts['block_weights']:,} weights without embeddings, {model.facts['nats']:.3f} nats", flush=True
        )
        shots = shots_of(model, tasks, config.seed)
        report["models"][name] = {"facts": model.facts, "shots": shots, "wordings": wordings_of(model, sections, config.seed)}
    report |= {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("\n" + "\n".join(markdown(report)))
    draw(report, path.with_suffix(".png"))


if __name__ == "__main__":
    run(main)
