"""A run: a directory with settings, metrics and checkpoints, and the one process that writes to it.

run = Run.create("docs")                       # runs/docs-001; or Run.resume("runs/docs-001")
run.keep_settings(config, corpus_fingerprint=...)
if run.last: run.restore(trainer)
result = run.train(trainer, reporter)          # metrics and checkpoints are written on the way
"""

import contextlib
import dataclasses
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, Unpack

from autograd import backend
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import Diverged, MissingFile, PathExists
from tinygpt.fields import Settings
from tinygpt.models.protocols import Divided
from tinygpt.parallel.communicator import check_same, tell, world
from tinygpt.parallel.launch import end_job, who
from tinygpt.runs import layout
from tinygpt.runs.checkpoint import Checkpoint, training_arrays
from tinygpt.runs.writer import CheckpointWriter, WriterOptions, explained
from tinygpt.storage.checked_json import Json, to_json
from tinygpt.storage.durable import Lock, remove_partial, replace_file
from tinygpt.storage.safetensors import Content, TensorFile
from tinygpt.training.metrics import MetricsFile, Reporter, Result
from tinygpt.training.trainer import Trainer
from tinygpt.weights.pretrained import pretrained_files


class Mergeable(Protocol):
    """An adapter, as a run sees it: checkpoints hold the model with it merged, and the best one is also kept by itself."""

    def merged(self) -> contextlib.AbstractContextManager[None]: ...
    def files(self, base: str = "") -> dict[str, Content]: ...


class Run:
    """A run's directory, locked until this process ends. Made by `create` or `resume`. Of several ranks, the first alone writes;
    what it cannot write ends the job.

    path         the directory
    tokenizer    saved with each checkpoint; set it before training
    adapter      LoRA's, if there is one, and `base`, the model that it belongs to
    facts        what each checkpoint's training.json contains in addition to the trainer's state: fingerprints of data and tokenizer
    log(values)  writes a line of metrics.jsonl
    wait()       returns when no checkpoint is being written any more; finish(), too, or raises OSError if the last one was not written
    options      of the constructor, `create` and `resume`: those of `CheckpointWriter`
    """

    def __init__(self, path: Path, **options: Unpack[WriterOptions]) -> None:
        self.path = path
        self.writer, self.ranks = CheckpointWriter(path, **options), world()
        if self.ranks.size > 1:
            self.writer.end = lambda text: end_job(f"{who()}: {text}")
        self.wait, self.finish = self.writer.wait, self.writer.finish
        self.metrics, self._metrics_refused = MetricsFile(path / "metrics.jsonl"), False
        self.tokenizer: Tokenizer | None = None
        self.adapter: Mergeable | None = None
        self.base = ""
        self.facts: dict[str, Json] = {}

    @classmethod
    def create(cls, name: str, path: str | Path = "", **options: Unpack[WriterOptions]) -> "Run":
        """Makes a run's directory, `path` or the next free `runs/<name>-001`, and locks it until this process ends.

        Raises FileExistsError if the directory already holds a run, so that nothing is overwritten; BlockingIOError if another process
        has it; other OSErrors, saying where, if it cannot be written to.
        """
        if world().rank:
            return cls(Path(tell(world())), **options)
        while True:
            directory = Path(path).expanduser() if path else _next_free(name)
            if directory.exists() and (not directory.is_dir() or Lock.held(directory) or not _is_blank(directory)):
                fix = "choose another --run" + (f", or resume it: --resume {directory}" if (directory / "checkpoints").is_dir() else "")
                raise PathExists(f"{directory}: already holds a run (or other files), expected a new or empty directory; {fix}")
            with explained(directory):
                try:
                    directory.mkdir(parents=True, exist_ok=bool(path))
                except FileExistsError:  # another process took this number a moment ago
                    continue
                Lock(directory).acquire()
                (directory / "checkpoints").mkdir(exist_ok=True)
                layout.remember(directory)
            tell(world(), str(directory))
            return cls(directory, **options)

    @classmethod
    def resume(cls, path: str | Path, **options: Unpack[WriterOptions]) -> "Run":
        """A run to train on, locked until this process ends and cleaned of what a crash has left unfinished. Raises FileNotFoundError if
        there is no run, BlockingIOError if another process has it."""
        if world().rank:
            return cls(Path(tell(world())), **options)
        directory = Path(path).expanduser()
        if not (directory / "checkpoints").is_dir():
            fix = "check the path, or start a new run without --resume"
            raise MissingFile(f"{directory}: no checkpoints, expected the directory of a run; {fix}")
        with explained(directory):
            Lock(directory).acquire()
            for folder in (directory, directory / "checkpoints"):
                remove_partial(folder)
        tell(world(), str(directory))
        return cls(directory, **options)

    @property
    def leads(self) -> bool:
        """Whether this process writes."""
        return self.ranks.rank == 0

    def log(self, values: dict[str, Json]) -> None:
        if not self.leads:
            return
        before, self._metrics_refused = self._metrics_refused, False
        try:
            self.metrics.write(values)
        except OSError as error:
            self._metrics_refused = True
            if not before:  # said once
                self.wait()  # a checkpoint that can still be written is not lost, and one that cannot ends the job by itself
                self.writer.refused("a line of metrics.jsonl was not written", error)

    def keep_settings(self, settings: Settings, **facts: Json) -> None:
        """Writes config.json: a settings dataclass, and other facts about the run."""
        if self.leads:
            with explained(self.path):
                replace_file(self.path / "config.json", to_json(dataclasses.asdict(settings) | facts))

    @property
    def last(self) -> Checkpoint | None:
        """The last intact checkpoint; None where there is none yet."""
        return self._checkpoint("last")

    @property
    def best(self) -> Checkpoint | None:
        """The intact checkpoint with the best validation loss; None where there is none yet."""
        return self._checkpoint("best")

    def _checkpoint(self, which: str) -> Checkpoint | None:
        return Checkpoint.open(self.path, which) if layout.list_checkpoints(self.path) else None

    def train(self, trainer: Trainer, reporter: Reporter) -> Result:
        """`trainer.run`, with this run to log and save to; returns when the last checkpoint is on the disk. Raises OSError if that was not
        written, FloatingPointError, naming the last good checkpoint, for numbers that are not finite, ValueError for ranks with other `facts`."""
        check_same(self.ranks, self.facts)
        self.writer.note = reporter.note
        try:
            result = trainer.run(reporter, self)
        except FloatingPointError as error:
            self.wait()
            self.log({"step": trainer.result.step, "ended": "diverged"})
            raise Diverged(f"{error}; the last good checkpoint: {self._last_name() or 'none was written yet'}") from error
        how = "interrupted" if result.interrupted else "stopped early" if result.stopped_early else "finished"
        with _no_second_signal() if result.interrupted and self.ranks.size > 1 else contextlib.nullcontext():
            self.finish()
            self.log({"step": result.step, "ended": how})
            self.ranks.agree(0)  # all wait for the files of the first
        return result

    def add_sample(self, title: str, text: str) -> None:
        """Appends a text that the model wrote to samples.txt."""
        if not self.leads:
            return
        with explained(self.path), (self.path / "samples.txt").open("a", encoding="utf-8") as file:
            file.write(f"=== {title}\n{text}\n\n")

    def restore(self, trainer: Trainer, *, other_data: bool = False) -> dict[str, Json]:
        """Puts trainer and metrics where the last checkpoint was saved; returns what its training.json holds."""
        last = self.last
        assert last, "restore: a run without a checkpoint"
        training = last.restore(trainer, other_data=other_data)
        self.metrics.truncate_after(trainer.result.step, trainer.result, write=False)
        self.ranks.agree(0)  # all have read it
        if self.leads:
            with explained(self.path):
                self.metrics.truncate_after(trainer.result.step, Result())
        return training

    def roll_back(self, trainer: Trainer) -> str:
        """As `restore`, for an update with numbers that are not finite; returns the checkpoint's path."""
        self.wait()
        self.ranks.agree(0)
        if not self._last_name():
            raise Diverged("rollback: no checkpoint yet, expected one to go back to; lower --lr, or --save-every fewer updates")
        self.restore(trainer)
        return self._last_name()

    def restore_best(self, trainer: Trainer) -> None:
        """Gives a trainer's model the weights of the best checkpoint."""
        best = self.best
        assert best, "restore_best: a run without a checkpoint"
        best.restore_weights(trainer)

    def save(self, trainer: Trainer, *, best: bool) -> None:
        """Adds a checkpoint: copies the state and begins to write it. Waits for the one before, if that is still being written."""
        self.wait()
        arrays = training_arrays(trainer.optimizer, weights=self.adapter is not None)  # of all ranks, where they share the state
        model = trainer.model.complete() if isinstance(trainer.model, Divided) else trainer.model
        if not self.leads:
            return
        assert self.tokenizer is not None, "a run saves its tokenizer with the model"
        with self.adapter.merged() if self.adapter else contextlib.nullcontext():
            assert model is not None, "the first rank gets the complete model"
            files: dict[str, Content] = pretrained_files(model, self.tokenizer)
        adapter = self.adapter.files(self.base) if self.adapter and best else {}
        files["training.safetensors"] = TensorFile({name: backend.to_host(array) for name, array in arrays.items()})
        files["training.json"] = to_json({"n_steps": trainer.optimizer.n_steps, **trainer.state_dict(), **self.facts})
        self.writer.write(trainer.result.step, files, best=best, adapter=adapter)

    def _last_name(self) -> str:
        name = layout.read_pointer(self.path, "last")
        return str(self.path / "checkpoints" / name) if name else ""


@contextlib.contextmanager
def _no_second_signal() -> Iterator[None]:
    """Ignores Ctrl-C and SIGTERM, which reach ranks at different times: one that ended early would end the first while it writes."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _is_blank(path: Path) -> bool:
    """True for a directory without content, or with what `Run.create` makes before anything else."""
    return all(p.name == "lock" or (p.name == "checkpoints" and p.is_dir() and not any(p.iterdir())) for p in path.iterdir())


def _next_free(name: str) -> Path:
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    taken = [int(p.name.rpartition("-")[2]) for p in layout.RUNS.glob(f"{name}-[0-9][0-9][0-9]")]
    return layout.RUNS / f"{name}-{max(taken, default=0) + 1:03d}"
