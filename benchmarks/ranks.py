"""Ranks on this machine: against threads and local processes, how they scale, what the sums cost, overlapped or not, and the planner's word.

    python benchmarks/ranks.py                          all parts, about ten minutes on two cores that nothing else uses
    python benchmarks/ranks.py --parts overlap share    some of them; the report keeps the others' last figures
    python benchmarks/ranks.py --parts sides --sizes S  two ranks against threads and processes, at one size
    python benchmarks/ranks.py --tiny                   all parts on the smallest model, in a minute: figures that mean nothing

    sides      two ranks, two that make all of the update each, two threads of one process, two local processes (tinygpt/parallel/local.py), at sizes S and M
    scaling    1, 2, 4 ranks with a thread each: the same batch (strong), a batch that grows with them (weak), at M
    share      of an update of GPT-2 124M with 1,024 tokens per rank, how much is communication
    overlap    sums of slices of the gradient that begin as layers finish, instead of one sum after the backward pass, at M, between two ranks that
               know of no memory that they share, as on two machines: over TCP, within this one
    predicted  1, 2, 4 ranks of the preset laptop: what `python -m tinygpt plan --measure` says, and what an update takes

Each side is a job of its own, and jobs take turns, so that none waits, which MPI does at full speed, while another is measured. Where there are
fewer cores than ranks, these take turns, too. Writes benchmarks/results/ranks.json and .md.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from train_step import RESULTS, SIZES, OneBatch, Size, machine

import autograd as ag
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.errors import ProcessFailed
from tinygpt.parallel.communicator import world
from tinygpt.parallel.data import DataParallel
from tinygpt.parallel.local import workers_for
from tinygpt.parallel.zero import Sharded
from tinygpt.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
PARTS = ("sides", "scaling", "share", "overlap", "predicted")
ALL_SIZES = SIZES | {
    "124M": Size(GPTConfig.preset("gpt2"), 4, 256, 1),  # 1,024 tokens per rank
    "laptop": Size(GPTConfig.preset("laptop"), 16, 128, 10),
    "tiny": Size(GPTConfig.preset("quick"), 8, 32, 3),
}


@dataclass(frozen=True)
class Config:
    parts: tuple[Literal["sides", "scaling", "share", "overlap", "predicted"], ...] = PARTS
    """What to measure."""
    sizes: tuple[Literal["S", "M"], ...] = ("S", "M")
    """Of the part `sides`."""
    rounds: int = 3
    """How often each job gets its turn."""
    tiny: bool = False
    """The smallest model everywhere, to see that the script runs."""
    worker: str = ""
    """Of the script's own use: one job's task, as JSON."""


@dataclass(frozen=True)
class Task:
    """What a job does, all ranks alike.

    rows        of an update, over all ranks; 0: those of the size
    processes   of `TrainConfig`; steps: updates that are measured, after two that are not
    apart       measure communication apart: the ranks meet before each operation, so that waiting for the slowest is not in its time
    shard       each rank updates its part of the weights, with its part of the optimizer's state (ZeRO), as on one machine they always do
    overlap     take turns between one sum and slices
    """

    size: str
    rows: int = 0
    processes: int = 1
    steps: int = 1
    apart: bool = False
    shard: bool = True
    overlap: bool = False


# A job ------------------------------------------------------------------------------------------------------------------------------------


def work(task: Task) -> dict[str, Any]:
    """Seconds of the updates; with `apart` also (seconds of operations, seconds of waiting for the others before them) per update."""
    size = ALL_SIZES[task.size]
    size = dataclasses.replace(size, batch=task.rows or size.batch)
    training = TrainConfig(lr=1e-4, warmup_steps=0, final_lr_fraction=1.0, micro_batch=size.batch, processes=task.processes)
    model = GPT(dataclasses.replace(size.config, n_positions=size.context)).train()
    ranks = world()
    workers = DataParallel(model, ranks, size.batch, shard=task.shard) if ranks.size > 1 else workers_for(model, training)
    trainer = Trainer(model, training, OneBatch(size), None, workers)
    timed(trainer, 2)
    if task.overlap:
        return compare_overlap(trainer, task.steps)
    found: dict[str, Any] = {"update_s": timed(trainer, task.steps)}
    if task.apart and isinstance(workers, DataParallel):
        workers.ranks = apart = Apart(workers.ranks)
        if isinstance(trainer.optimizer, Sharded):
            type(trainer.optimizer).ranks = apart  # type: ignore[assignment]
        timed(trainer, task.steps)
        found |= {"moving_s": apart.moving / task.steps, "waiting_s": apart.waiting / task.steps}
    trainer.close()
    return found


def timed(trainer: Trainer, n: int) -> list[float]:
    """Seconds of n updates, the slowest rank's."""
    seconds = []
    for _ in range(n):
        world().agree(0)
        started = time.perf_counter()
        float(trainer.update()[0])
        seconds.append(world().agree(time.perf_counter() - started))
    return seconds


class Apart:
    """A communicator that measures its sums."""

    def __init__(self, ranks: Any) -> None:
        self._ranks, self.moving, self.waiting = ranks, 0.0, 0.0

    def __getattr__(self, name: str) -> Any:
        of_ranks = getattr(self._ranks, name)
        if name not in ("all_reduce", "reduce_scatter", "all_gather"):
            return of_ranks

        def apart(*arguments: Any) -> Any:
            begin = time.perf_counter()
            self._ranks.agree(0)
            together = time.perf_counter()
            result = of_ranks(*arguments)
            self.waiting += together - begin
            self.moving += time.perf_counter() - together
            return result

        return apart


class Overlapping:
    """MPI's ranks as a `SumsInBackground`: `Iallreduce` moves on at every call of MPI, so it is asked to after each gradient."""

    def __init__(self, ranks: Any) -> None:
        self._ranks, self._last = ranks, None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ranks, name)

    def begin_all_reduce(self, array: np.ndarray) -> Any:
        from mpi4py import MPI

        self._last = self._ranks.comm.Iallreduce(MPI.IN_PLACE, array)
        return types.SimpleNamespace(wait=self._last.Wait)

    def advance(self, _: ag.Tensor) -> None:
        if self._last is not None:
            self._last.Test()


def compare_overlap(trainer: Trainer, steps: int) -> dict[str, Any]:
    """Both kinds of update in turn, and whether they give the same gradients, bit for bit."""
    ranks = Overlapping(world())
    sides = {"one sum": trainer.workers, "slices": DataParallel(trainer.model, ranks, trainer.config.micro_batch)}
    before, gradients = trainer.position(), set()
    for workers in sides.values():
        trainer.workers = workers
        trainer.go_to(before)
        trainer.gradients()
        gradients.add(trainer.optimizer.gradient.tobytes())
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(steps):
        for name, workers in sides.items():
            trainer.workers = workers
            with ag.watch_gradients(ranks.advance):
                seconds[name] += timed(trainer, 1)
    return {"update_s": seconds, "equal": len(gradients) == 1}


# All jobs ---------------------------------------------------------------------------------------------------------------------------------


def job(ranks: int, task: Task, threads: int = 1, hosts: Sequence[str] = ()) -> dict[str, Any]:
    """What the first rank of a new job finds; one rank is a process without MPI. hosts: of each rank, all this machine, which MPICH takes for several."""
    several = ["-launcher", "fork", "-hosts", ",".join(hosts)] if hosts else []
    start = ["mpiexec", *several, "-n", str(ranks), sys.executable, "-m", "mpi4py"] if ranks > 1 else [sys.executable]
    command = [*start, __file__, "--worker", json.dumps(dataclasses.asdict(task))]
    return json.loads(output_of(command, threads).splitlines()[-1])


def output_of(command: list[str], threads: int) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUTOGRAD_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    environment |= {"UCX_LOG_LEVEL": "error"}  # over TCP, MPICH warns at its end, on stdout, of messages of its own
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ProcessFailed(f"{' '.join(command)}: ended with {done.returncode}, expected 0; see its error above")
    return done.stdout


def in_turn(jobs: dict[str, tuple[int, Task, int]], rounds: int) -> dict[str, dict[str, Any]]:
    """Name -> (ranks, task, threads): the median update of all rounds, and the least communication."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, (ranks, task, threads) in jobs.items():
            found[name].append(job(ranks, task, threads))
    result = {}
    for name, turns in found.items():
        result[name] = {"update_s": statistics.median(s for turn in turns for s in turn["update_s"])}
        for key in ("moving_s", "waiting_s"):
            if key in turns[0]:
                result[name][key] = min(turn[key] for turn in turns)
        print(f"{name:28} {result[name]['update_s']:9.4f} s", flush=True)
    return result


def counted(n: int) -> str:
    return f"{n} rank" + "s" * (n > 1)


def sides(config: Config) -> dict[str, Any]:
    found = {}
    for size, steps in (("tiny", 3),) if config.tiny else [(size, {"S": 60, "M": 6}[size]) for size in config.sizes]:
        jobs = {
            "2 ranks": (2, Task(size, steps=steps), 1),
            "2 ranks, all update all": (2, Task(size, steps=steps, shard=False), 1),
            "2 threads": (1, Task(size, steps=steps), 2),
            "2 local processes": (1, Task(size, steps=steps, processes=2), 2),
        }
        found[size] = in_turn({f"{size}: {name}": each for name, each in jobs.items()}, config.rounds)
    return found


def scaling(config: Config) -> dict[str, Any]:
    size, counts = ("tiny", (1, 2)) if config.tiny else ("M", (1, 2, 4))
    rows = ALL_SIZES[size].batch
    found = {}
    for kind, of in (("strong", lambda n: rows), ("weak", lambda n: rows // 4 * n)):
        jobs = {f"{kind}: {counted(n)}": (n, Task(size, rows=of(n), steps=4, apart=n > 1), 1) for n in counts}
        found[kind] = in_turn(jobs, min(config.rounds, 2))
    return found


def share(config: Config) -> dict[str, Any]:
    size, n = ("tiny" if config.tiny else "124M"), 2
    return in_turn({f"{size}: {counted(n)}": (n, Task(size, rows=ALL_SIZES[size].batch * n, steps=3, apart=True), 1)}, 1)


def overlap(config: Config) -> dict[str, Any]:
    size = "tiny" if config.tiny else "M"
    task = Task(size, steps=3 if config.tiny else 15, shard=False, overlap=True)
    found = [job(2, task, hosts=("127.0.0.1:1", "127.0.0.2:1")) for _ in range(config.rounds)]
    result: dict[str, Any] = {"equal": all(turn["equal"] for turn in found)}
    for name in ("one sum", "slices"):
        result[name] = {"update_s": statistics.median(s for turn in found for s in turn["update_s"][name])}
    print(f"overlap: {result}")
    return result


def predicted(config: Config) -> dict[str, Any]:
    size, counts = ("tiny", (1, 2)) if config.tiny else ("laptop", (1, 2, 4))
    model, rows, context = ("quick" if config.tiny else size), ALL_SIZES[size].batch, ALL_SIZES[size].context
    found = {}
    for n in counts:
        start = ["mpiexec", "-n", str(n), sys.executable, "-m", "mpi4py"] if n > 1 else [sys.executable]
        with tempfile.TemporaryDirectory() as folder:
            plan = Path(folder) / "plan.json"
            flags = ["--model", model, "--context", str(context), "--batch-tokens", str(rows * context), "--measure", "--output", str(plan)]
            output_of([*start, "-m", "tinygpt", "plan", *flags], 1)
            said = json.loads(plan.read_text(encoding="utf-8"))
        assert said["tokens_per_update"] == rows * context
        name = counted(n)
        found |= in_turn({name: (n, Task(size, steps=10), 1)}, min(config.rounds, 2))
        found[name] |= {"predicted_s": said["step_seconds"], "predicted_parts_s": said["seconds_per_update"]}
    return found


def markdown(report: dict[str, Any]) -> str:
    m = report["machine"]
    head = f"{m['date']}, {m['processor']}, {os.cpu_count()} cores, NumPy {m['numpy']}, MPICH. `python benchmarks/ranks.py`"
    lines = [head, "", "| part | job | update, s | communication, s | share | waiting, s | predicted, s |", "|---|---|---|---|---|---|---|"]

    def row(part: str, name: str, r: dict[str, Any]) -> str:
        moving, waiting, said = (r.get(key) for key in ("moving_s", "waiting_s", "predicted_s"))
        cells = [f"{r['update_s']:.4g}", *(["-"] * 2 if moving is None else [f"{moving:.3g}", f"{moving / r['update_s']:.1%}"])]
        cells += ["-" if waiting is None else f"{waiting:.3g}"]
        cells += ["-" if said is None else f"{said:.4g} ({said / r['update_s'] - 1:+.0%})"]
        return f"| {part} | {name} | " + " | ".join(cells) + " |"

    for part, found in report["parts"].items():
        nested = found.values() if part in ("sides", "scaling") else [found]
        lines += [row(part, name, r) for rows in nested for name, r in rows.items() if isinstance(r, dict)]
        if part == "overlap":
            lines.append(f"| overlap | gradients equal bit for bit: {found['equal']} | | | | | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    config = parse_args(Config(), __doc__)
    if config.worker:
        found = work(Task(**json.loads(config.worker)))
        print(json.dumps(found))
        return
    file = (Path(tempfile.mkdtemp()) if config.tiny else RESULTS) / "ranks.json"
    report: dict[str, Any] = {"machine": machine(), "parts": {}}
    if file.exists():
        report["parts"] = json.loads(file.read_text(encoding="utf-8"))["parts"]
    measure = {"sides": sides, "scaling": scaling, "share": share, "overlap": overlap, "predicted": predicted}
    for part in config.parts:
        kept = report["parts"].get(part, {}) if part == "sides" else {}  # of other sizes
        report["parts"][part] = kept | measure[part](config)
        report["parts"] = {name: report["parts"][name] for name in PARTS if name in report["parts"]}
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(f"\n{markdown(report)}\nwritten: {file}")


if __name__ == "__main__":
    run(main)
