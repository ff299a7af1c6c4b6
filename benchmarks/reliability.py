"""Tries to lose a run, many times: kills, faults of the disk, mutated files. The figures in docs/reliability.md come from here.

    python benchmarks/reliability.py kills      200 SIGKILLs at random instants of a run that checkpoints every step
    python benchmarks/reliability.py faults     1,000 faults of the disk while checkpoints are written (the tests do 50)
    python benchmarks/reliability.py --help

The tests run shorter forms of the same functions.
"""

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from tinygpt.files import Disk, use_disk

ROOT = Path(__file__).parent.parent

# ---- kills -------------------------------------------------------------------------------------------------------------------------------


@dataclass
class Kills:
    """What came of killing a run: lost counts restarts that found fewer steps saved than the run before had announced."""

    kills: int = 0
    lost: int = 0
    equal: bool = False
    before_first_checkpoint: int = 0
    steps: int = 0
    seconds: float = 0.0


# A run that checkpoints every step and says so, as soon as the checkpoint is on the disk.
_RUN = """
import sys, time
from pathlib import Path
import numpy as np
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.checkpoint import Checkpoints, checkpoint_directory, list_checkpoints, load_training, new_run, open_run
from tinygpt.data import Windows
from tinygpt.tokenizer import CharacterTokenizer
from tinygpt.train import Trainer

class Silent:
    def update(self, metrics): pass
    def evaluated(self, step, validation_nats, best): pass
    def note(self, text): pass

run, steps, background = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "background"
tokens = np.tile(np.random.default_rng(0).integers(0, 11, 50), 10)
shape = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=11, dropout=0.1)
config = TrainConfig(steps=steps, lr=1e-2, final_lr_fraction=1.0, warmup_steps=3, micro_batch=2, tokens_per_update=32, save_every=1, eval_every=5)
trainer = Trainer(GPT(shape), config, Windows(tokens, 8, 3), Windows(tokens[:100], 8))
run = open_run(run) if (run / "checkpoints").is_dir() else new_run(run, "x")
if list_checkpoints(run):
    load_training(checkpoint_directory(run, "last"), trainer)
print("at", trainer.result.step, flush=True)
tokenizer = CharacterTokenizer.train("abcdefghijk")
checkpoints = Checkpoints(run, keep=2, background=background)

def save(best):
    checkpoints.save(trainer.result.step, trainer.model, trainer.optimizer, tokenizer, trainer.progress(), best=best)
    if not background:
        print("saved", trainer.result.step, flush=True)

trainer.run(Silent(), save)
checkpoints.finish()
print("done", flush=True)
"""


def kill_and_resume(folder: Path, n_kills: int, seed: int = 0, *, background: bool = False) -> Kills:
    """Starts a run, kills it at a random instant, starts it again, until it has been killed n_kills times; then lets it end.

    The run is long enough that it does not end before. Its last weights and moments are compared with those of a run that nobody killed.
    """
    report, rng, started = Kills(), random.Random(seed), time.perf_counter()
    mode = "background" if background else "foreground"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AUTOGRAD_BACKEND": "numpy", "OPENBLAS_NUM_THREADS": "1"}
    run = folder / "killed"
    saved, steps = 0, 100 * n_kills
    while True:
        last = report.kills == n_kills
        if last:
            steps = saved + 20
        command = [sys.executable, "-c", _RUN, str(run), str(steps), mode]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            if not last and rng.random() < 0.1:  # now and then before it has got anywhere
                time.sleep(rng.uniform(0, 0.5))
                report.before_first_checkpoint += 1
            else:
                first = process.stdout.readline().split()
                if not first or first[0] != "at":
                    raise RuntimeError(f"kills: the run could not go on after {report.kills} kills, expected it to; see the message above")
                report.lost += int(first[1]) < saved
                time.sleep(0 if last else rng.uniform(0, 0.12))
            if not last:
                process.send_signal(signal.SIGKILL)
            for line in process.stdout:
                if line.startswith("saved "):
                    saved = max(saved, int(line.split()[1]))
            process.wait()
        if last:
            break
        report.kills += 1
    unbroken = folder / "unbroken"
    subprocess.run([sys.executable, "-c", _RUN, str(unbroken), str(steps), mode], env=environment, check=True, stdout=subprocess.DEVNULL)
    report.equal = _same_end(run, unbroken)
    report.steps, report.seconds = steps, round(time.perf_counter() - started, 1)
    return report


def _same_end(one: Path, two: Path) -> bool:
    from tinygpt.checkpoint import checkpoint_directory

    ends = [checkpoint_directory(run, "last") for run in (one, two)]
    return all(len({(end / name).read_bytes() for end in ends}) == 1 for name in ("model.safetensors", "training.safetensors"))


# ---- faults of the disk ------------------------------------------------------------------------------------------------------------------

FAULTS = ("ENOSPC", "EIO", "EDQUOT", "short write", "rename", "replace", "fsync", "open")


class FaultyDisk(Disk):
    """A disk that fails once `after` calls have gone well, and from then on; or, as "short write", takes a third at a time."""

    def __init__(self, kind: str, after: int) -> None:
        self.kind, self.left, self.failed = kind, after, 0

    def _fails(self, *kinds: str) -> bool:
        if self.kind not in kinds:
            return False
        self.left -= 1
        self.failed += self.left < 0
        return self.left < 0

    def _error(self) -> OSError:
        number = {"ENOSPC": errno.ENOSPC, "EDQUOT": getattr(errno, "EDQUOT", errno.ENOSPC)}.get(self.kind, errno.EIO)
        return OSError(number, os.strerror(number))

    def open(self, path: Path) -> Any:
        if self._fails("open"):
            raise self._error()
        return super().open(path)

    def write(self, file: Any, data: memoryview) -> int:
        if self.kind == "short write":
            return super().write(file, data[: max(len(data) // 3, 1)])
        if self._fails("ENOSPC", "EIO", "EDQUOT"):
            super().write(file, data[: len(data) // 2])  # half of it arrives
            raise self._error()
        return super().write(file, data)

    def sync(self, descriptor: int) -> None:
        if self._fails("fsync"):
            raise self._error()
        super().sync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        if self._fails("rename"):
            raise self._error()
        super().rename(old, new)

    def replace(self, old: Path, new: Path) -> None:
        if self._fails("replace", "rename"):
            raise self._error()
        super().replace(old, new)


@dataclass
class Faults:
    """What came of faults: damaged counts saves after which the run had no whole last checkpoint, or an older one was not as before."""

    faults: int = 0
    damaged: int = 0
    saved_all_the_same: int = 0
    kinds: set[str] = field(default_factory=set)
    seconds: float = 0.0


def save_under_faults(folder: Path, n_faults: int, seed: int = 0) -> Faults:
    """Trains a little, saves on a disk that fails at a random call in a random way, checks every checkpoint; again and again."""
    from tinygpt import GPT, GPTConfig, TrainConfig
    from tinygpt.checkpoint import Checkpoints, checkpoint_directory, list_checkpoints, new_run, problems
    from tinygpt.data import Windows
    from tinygpt.tokenizer import CharacterTokenizer
    from tinygpt.train import Trainer

    report, rng, started = Faults(), random.Random(seed), time.perf_counter()
    tokens = np.random.default_rng(0).integers(0, 11, 500)
    trainer = Trainer(
        GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=11)),
        TrainConfig(steps=10**6, micro_batch=2),
        Windows(tokens, 8),
        None,
    )
    tokenizer = CharacterTokenizer.train("abcdefghijk")
    run = new_run(folder / "faulty", "x")
    checkpoints = Checkpoints(run, keep=2, note=lambda text: None)

    def save(best: bool) -> None:
        checkpoints.save(trainer.result.step, trainer.model, trainer.optimizer, tokenizer, trainer.progress(), best=best)
        checkpoints.wait()

    trainer.update()
    save(best=True)
    while report.faults < n_faults:
        trainer.update()
        kind = FAULTS[report.faults % len(FAULTS)]
        checkpoints.background = rng.random() < 0.5
        with use_disk(disk := FaultyDisk(kind, rng.randrange(12))):
            save(best=rng.random() < 0.5)
        if kind != "short write" and not disk.failed:  # it would have failed later than the last call
            continue
        report.faults += 1
        report.kinds.add(kind)
        report.saved_all_the_same += checkpoints.failure is None
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # falling back to another checkpoint counts as damage
            try:
                last = checkpoint_directory(run, "last")
                whole = not any(problems(directory) for directory in list_checkpoints(run)) and not problems(checkpoint_directory(run))
            except (Warning, OSError, ValueError):
                whole = False
            else:
                whole &= checkpoints.failure is not None or last.name.startswith(f"step-{trainer.result.step:08d}")
        report.damaged += not whole
    report.seconds = round(time.perf_counter() - started, 1)
    return report


# ---- the command line --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    what: Literal["kills", "faults"]
    """What to try."""
    n: int = 0
    """How often; 0: the number in docs/reliability.md."""
    seed: int = 0
    """Decides the instants, faults and mutations."""


def main() -> None:
    import tyro

    settings = tyro.cli(Settings, description=__doc__, config=(tyro.conf.PositionalRequiredArgs,))
    with TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        if settings.what == "kills":
            report: Any = kill_and_resume(Path(folder), settings.n or 200, settings.seed)
        else:
            report = save_under_faults(Path(folder), settings.n or 1000, settings.seed)
        print(json.dumps(asdict(report), default=sorted))


if __name__ == "__main__":
    main()
