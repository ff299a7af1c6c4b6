"""The bubble of a pipeline, measured, next to (P - 1) / (M + P - 1); and its schedule, drawn from timestamps.

    mpiexec -n 2 python -m mpi4py benchmarks/pipeline.py     a minute; as many ranks as cores, on a machine that does nothing else

The model has two blocks a stage, and embeddings and output layer so small that the stages are nearly equal. Measured: the share of the time from
the first pass to the last in which the stages compute nothing, median of the updates. played: the same passes, as long as they were, played without
any waiting for messages: what is more than the formula is the unequal length of passes; what is measured beyond it are messages and the system.
Writes the report, the picture of the last update of each order, and the table of docs/pipeline-parallel.md.
"""

import dataclasses
import json
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from train_step import processor

from tinygpt import GPT, GPTConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.config import TrainConfig
from tinygpt.errors import InvalidInput
from tinygpt.fields import PathName
from tinygpt.parallel.communicator import world
from tinygpt.parallel.divided import MeshWorkers, divide
from tinygpt.parallel.mesh import Mesh, Shape
from tinygpt.parallel.pipeline import Order, Pass, bubble
from tinygpt.parallel.timeline import collected, draw, measured_bubble
from tinygpt.training.optimizers import make_optimizer

PAGE = Path(__file__).parent.parent / "docs" / "pipeline-parallel.md"
TITLES: dict[Order, str] = {"gpipe": "GPipe", "1f1b": "1F1B"}


@dataclass(frozen=True)
class Config:
    micro_batches: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Of an update."""
    draw: int = 4
    """The picture is of an update of so many micro-batches."""
    updates: int = 9
    """Of which the median is taken; the first is left out."""
    output: PathName = "benchmarks/results/pipeline.json"
    """Where the report goes."""
    picture: PathName = "docs/pipeline-schedule.png"
    """Where the picture goes."""


def main() -> None:
    config = parse_args(Config(), __doc__)
    ranks = world()
    if ranks.size < 2:
        raise InvalidInput("pipeline: 1 rank, expected at least 2 stages; mpiexec -n 2 python -m mpi4py benchmarks/pipeline.py")
    shape = GPTConfig(n_layer=2 * ranks.size, n_head=4, n_embd=256, n_positions=128, vocab_size=512)
    rows, drawn = list[dict[str, object]](), dict[str, Sequence[Sequence[Pass]]]()
    for order, title in TITLES.items():
        for n in sorted({*config.micro_batches, config.draw}):
            updates, held = measure(shape, order, n, config.updates)
            found = {"order": title, "micro_batches": n, "formula": bubble(ranks.size, n)}
            found |= {"played": statistics.median(map(played, updates)), "measured": statistics.median(map(measured_bubble, updates))}
            rows.append(found | {"held": held})
            if n == config.draw:
                drawn[f"{title}, {n} micro-batches"] = sorted(updates, key=measured_bubble)[len(updates) // 2]
            print(
                f"{title}  {n:>2} micro-batches  formula {found['formula']:.1%}  played {found['played']:.1%}  measured {found['measured']:.1%}"
            )
    if ranks.rank == 0:
        machine = f"{processor()}, {ranks.size} stages of one thread, NumPy {np.__version__}"
        report = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "model": dataclasses.asdict(shape), "rows": rows}
        Path(config.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        draw(Path(config.picture), drawn)
        text = re.sub(
            r"(?<=<!-- bubble -->\n).*?(?=<!-- end -->)", lambda _: table(report), PAGE.read_text(encoding="utf-8"), flags=re.DOTALL
        )
        PAGE.write_text(text, encoding="utf-8")


def measure(shape: GPTConfig, order: Order, n: int, n_updates: int) -> tuple[list[list[list[Pass]]], list[int]]:
    """The passes of all stages in each of some updates of n micro-batches, and how many micro-batches each stage held."""
    ranks = world()
    model = divide(GPT(shape, seed=0), Mesh(Shape(pipeline=ranks.size), ranks))
    workers = MeshWorkers(model, model.mesh, rows=4, order=order)
    workers.n_threads = 1
    optimizer = make_optimizer(model, TrainConfig(), workers.optimizer_class)
    ids = np.random.default_rng(0).integers(0, shape.vocab_size, (n, 4, shape.n_positions + 1))
    batches, updates = [(rows[:, :-1], rows[:, 1:]) for rows in ids], []
    for _ in range(n_updates + 1):
        optimizer.zero_grad()
        ranks.agree(0)  # all begin together
        workers.gradients(optimizer, batches, [1 / n] * n)
        updates.append(collected(workers.pipeline.passes, ranks))
    held = np.zeros(ranks.size)
    held[ranks.rank] = workers.pipeline.held
    ranks.all_reduce(held)
    return updates[1:], held.astype(int).tolist()


def played(stages: Sequence[Sequence[Pass]]) -> float:
    """The bubble of passes of these lengths in these orders, if each began as soon as its stage was free and its input there."""
    ends, free, queues = dict[tuple[str, int, int], float](), [0.0] * len(stages), [list(passes) for passes in stages]
    while any(queues):
        for stage, queue in enumerate(queues):
            while queue:
                kind, i, start, stop = queue[0]
                source = ("F", i, stage - 1) if kind == "F" else ("B", i, stage + 1)
                if 0 <= source[2] < len(stages) and source not in ends:
                    break
                free[stage] = ends[kind, i, stage] = max(free[stage], ends.get(source, 0.0)) + stop - start
                queue.pop(0)
    return 1 - sum(p.stop - p.start for passes in stages for p in passes) / (len(stages) * max(free))


def table(report: dict[str, object]) -> str:
    """The page's table, with what it was measured on."""
    rows = report["rows"]
    assert isinstance(rows, list)
    lines = [
        "| order | micro-batches | (P - 1) / (M + P - 1) | played | measured | held by each stage |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in rows:
        shares = " | ".join(f"{row[key]:.1%}" for key in ("formula", "played", "measured"))
        lines.append(f"| {row['order']} | {row['micro_batches']} | {shares} | {', '.join(map(str, row['held']))} |")
    return "\n".join([*lines, "", f"{report['machine']}; {report['date']}.", ""])


if __name__ == "__main__":
    run(main)
