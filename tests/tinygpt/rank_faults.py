"""Programs in which one rank fails; `test_rank_faults.py` runs them.

mpiexec -n 3 python [-m mpi4py] tests/tinygpt/rank_faults.py hang FILE
mpiexec -n 2 python [-m mpi4py] tests/tinygpt/rank_faults.py full_disk FOLDER
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.reliability import FaultyDisk
from tests.tinygpt.helpers import TOKENS, Notes, tiny
from tinygpt import GPT, TrainConfig, cli
from tinygpt.data.tokenizer import CharacterTokenizer
from tinygpt.data.windows import Windows
from tinygpt.parallel import launch
from tinygpt.parallel.communicator import world
from tinygpt.parallel.local import workers_for
from tinygpt.runs.run import Run
from tinygpt.storage.durable import use_disk
from tinygpt.training.trainer import Trainer


def fail(how: str) -> None:
    match how:
        case "raise":
            raise OSError("no space")
        case "exit":
            sys.exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "_exit":
            os._exit(5)
        case "hang":
            time.sleep(1000)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "compute":
            while True:
                pass
        case "deadlock" | "wait":
            world().receive(np.zeros(1), 0)


def one_fails(how: str, when: Path) -> None:
    """Rank 1 fails, and writes down when."""
    if how == "late":
        launch._START_S = 2.0
        time.sleep(100 if launch.started_rank() == 1 else 0)
    if how == "start" and launch.started_rank() == 1:
        time.sleep(1)
        when.write_text(str(time.monotonic()), encoding="utf-8")
        fail("kill")
    ranks = world()
    ranks.all_reduce(np.zeros(1))
    if ranks.rank == 1:
        when.write_text(str(time.monotonic()), encoding="utf-8")
        fail(how)
    else:
        ranks.all_reduce(np.zeros(1))
        print("not reached")


def full_disk(folder: Path) -> None:
    """A run that saves each update; after the second the first rank's disk is full, and computes for long."""
    config = TrainConfig(steps=4, micro_batch=2, warmup_steps=1, save_every=1, eval_every=10)
    model = GPT(tiny())
    trainer = Trainer(model, config, Windows(TOKENS, 8, 3), None, workers_for(model, config))

    class Filling(Run):
        def save(self, trainer: Trainer, *, best: bool) -> None:
            with use_disk(FaultyDisk("ENOSPC", 3)) if trainer.result.step > 2 and self.leads else contextlib.nullcontext():
                super().save(trainer, best=best)
            if trainer.result.step > 2 and self.leads:
                (folder / "when").write_text(str(time.monotonic()), encoding="utf-8")
                time.sleep(1000)

    run = Filling.create("x", folder / "run")
    run.tokenizer = CharacterTokenizer.train("abcdefghijk")
    run.train(trainer, Notes())


if __name__ == "__main__":
    program, argument = sys.argv[1:]
    if program == "full_disk":
        cli.run(lambda: full_disk(Path(argument)))
    else:
        one_fails(program, Path(argument))
