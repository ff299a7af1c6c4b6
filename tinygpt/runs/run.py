"""A run: a directory with settings, metrics and checkpoints, and the one process that writes to it.

run = Run.create("docs")                       # runs/docs-001; or Run.resume("runs/docs-001")
run.keep_settings(config, corpus_fingerprint=...)
if run.last: run.restore(trainer)
result = run.train(trainer, reporter)          # metrics and checkpoints are written on the way
"""

import contextlib
import contextvars
import dataclasses
import errno
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from autograd import backend
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import Diverged, MissingFile, PathExists
from tinygpt.runs import layout
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.storage import durable
from tinygpt.storage.checked_json import to_json
from tinygpt.storage.durable import Lock, Written, replace_file
from tinygpt.storage.safetensors import Content, TensorFile, chunks_of
from tinygpt.training.metrics import MetricsFile, Reporter, Result
from tinygpt.weights.gpt2 import pretrained_files


class Mergeable(Protocol):
    """An adapter, as a run sees it: checkpoints hold the model with it merged, and the best one is also kept by itself."""

    def merged(self) -> contextlib.AbstractContextManager[None]: ...
    def files(self, base: str = "") -> dict[str, Content]: ...


class Run:
    """A run's directory, locked until this process ends. Made by `create` or `resume`.

    Checkpoints are written by a thread from a copy, so that training continues meanwhile. One that cannot be written is told to `note` and
    costs nothing but itself: the next one is tried, and what was there stays; `train` raises at the end if the last one was not written.

    path         the directory
    tokenizer    saved with each checkpoint; set it before training
    adapter      LoRA's, if there is one, and `base`, the model that it belongs to
    facts        what each checkpoint's training.json holds besides the trainer's state: fingerprints of data and tokenizer
    keep         newest checkpoints to keep, besides the best
    background   False: `save` returns when all is on the disk
    """

    def __init__(self, path: Path, *, keep: int = 2, background: bool = True, note: Callable[[str], None] = print) -> None:
        self.path, self.keep, self.background, self.note = path, keep, background, note
        self.tokenizer: Tokenizer | None = None
        self.adapter: Mergeable | None = None
        self.base = ""
        self.facts: dict[str, Any] = {}
        self.failure: OSError | None = None
        self.metrics = MetricsFile(path / "metrics.jsonl")
        self._thread: threading.Thread | None = None

    # ---- the directory -------------------------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, name: str, path: str | Path = "", **options: Any) -> "Run":
        """Makes a run's directory, `path` or the next free `runs/<name>-001`, and locks it until this process ends.

        Raises FileExistsError if the directory already holds a run, so that nothing is overwritten; BlockingIOError if another process
        has it; other OSErrors, saying where, if it cannot be written to.
        """
        while True:
            directory = Path(path).expanduser() if path else _next_free(name)
            if directory.exists() and (not directory.is_dir() or Lock.held(directory) or not _is_blank(directory)):
                resumable = (directory / "checkpoints").is_dir()
                raise PathExists(
                    f"{directory}: already holds a run (or other files), expected a new or empty directory; choose another --run"
                    + (f", or resume it: --resume {directory}" if resumable else "")
                )
            with explained(directory):
                try:
                    directory.mkdir(parents=True, exist_ok=bool(path))
                except FileExistsError:  # another process took this number a moment ago
                    continue
                Lock(directory).acquire()
                (directory / "checkpoints").mkdir(exist_ok=True)
                layout.remember(directory)
            return cls(directory, **options)

    @classmethod
    def resume(cls, path: str | Path, **options: Any) -> "Run":
        """A run to train on, locked until this process ends and cleaned of what a crash has left unfinished.

        Raises FileNotFoundError if there is no run, BlockingIOError if another process has it.
        """
        directory = Path(path).expanduser()
        if not (directory / "checkpoints").is_dir():
            raise MissingFile(
                f"{directory}: no checkpoints, expected the directory of a run; check the path, or start a new run without --resume"
            )
        with explained(directory):
            Lock(directory).acquire()
            for folder in (directory, directory / "checkpoints"):
                durable.remove_partial(folder)
        return cls(directory, **options)

    def keep_settings(self, settings: Any, **facts: Any) -> None:
        """Writes config.json: a settings dataclass, and other facts about the run."""
        replace_file(self.path / "config.json", to_json(dataclasses.asdict(settings) | facts))

    @property
    def last(self) -> Checkpoint | None:
        """The last intact checkpoint; None where there is none yet."""
        return Checkpoint.open(self.path, "last") if layout.list_checkpoints(self.path) else None

    @property
    def best(self) -> Checkpoint | None:
        """The one with the best validation loss, as long as none better was found."""
        return Checkpoint.open(self.path, "best") if layout.list_checkpoints(self.path) else None

    # ---- while it trains -----------------------------------------------------------------------------------------------------------------

    def train(self, trainer: Any, reporter: Reporter) -> Result:
        """`trainer.run`, with this run to log and save to; waits until the last checkpoint is on the disk.

        Raises OSError if that was not written, FloatingPointError, naming the last good checkpoint, for numbers that are not finite.
        """
        self.note = reporter.note
        try:
            result: Result = trainer.run(reporter, self)
        except FloatingPointError as error:
            self.wait()
            self.log({"step": trainer.result.step, "ended": "diverged"})
            raise Diverged(f"{error}; the last good checkpoint: {self._last_name() or 'none was written yet'}") from error
        self.finish()
        how = "interrupted" if result.interrupted else "stopped early" if result.stopped_early else "finished"
        self.log({"step": result.step, "ended": how})
        return result

    def log(self, values: dict[str, Any]) -> None:
        """A line of metrics.jsonl."""
        self.metrics.write(values)

    def add_sample(self, title: str, text: str) -> None:
        """Appends a text that the model wrote to samples.txt."""
        with (self.path / "samples.txt").open("a", encoding="utf-8") as file:
            file.write(f"=== {title}\n{text}\n\n")

    def restore(self, trainer: Any, *, other_data: bool = False) -> dict[str, Any]:
        """Puts trainer and metrics where the last checkpoint was saved; returns what its training.json holds."""
        checkpoint = self.last
        assert checkpoint is not None, "restore: a run without a checkpoint"
        training = checkpoint.restore(trainer, other_data=other_data)
        self.metrics.truncate_after(trainer.result.step, trainer.result)
        return training

    def roll_back(self, trainer: Any) -> str:
        """As `restore`, for an update with numbers that are not finite; returns the checkpoint's path."""
        self.wait()
        if not layout.list_checkpoints(self.path):
            raise Diverged("rollback: no checkpoint yet, expected one to go back to; lower --lr, or --save-every fewer updates")
        self.restore(trainer)
        return self._last_name()

    def restore_best(self, trainer: Any) -> None:
        """Gives a trainer's model the weights of the best checkpoint."""
        best = self.best
        assert best is not None, "restore_best: a run without a checkpoint"
        best.restore_weights(trainer)

    def save(self, trainer: Any, *, best: bool) -> None:
        """Adds a checkpoint: copies the state and begins to write it. Waits for the one before, if that is still being written."""
        self.wait()
        assert self.tokenizer is not None, "a run saves its tokenizer with the model"
        with self.adapter.merged() if self.adapter else contextlib.nullcontext():
            files: dict[str, Content] = pretrained_files(trainer.model, self.tokenizer)
        state = trainer.optimizer.state_dict()
        arrays = {f"{key}.{name}": backend.to_host(a) for key in ("m", "v") for name, a in state[key].items()}
        adapter: dict[str, Content] = {}
        if self.adapter:  # model.safetensors holds its weights merged into others
            arrays |= {f"w.{name}": backend.to_host(p.data) for name, p in trainer.optimizer.named}
            adapter = self.adapter.files(self.base) if best else {}
        files["training.safetensors"] = TensorFile(arrays)
        files["training.json"] = to_json({"n_steps": state["n_steps"], **trainer.state_dict(), **self.facts})
        if not self.background:
            self._write(trainer.result.step, files, adapter, best)
            return
        files, adapter = _copied(files), _copied(adapter)
        context = contextvars.copy_context()
        # A daemon: a second Ctrl-C ends the program at once, and what is half-written then is not yet a checkpoint.
        self._thread = threading.Thread(target=context.run, args=(self._write, trainer.result.step, files, adapter, best), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Waits. Raises OSError if the last checkpoint was not written."""
        self.wait()
        if self.failure is not None:
            raise self.failure

    def _write(self, step: int, files: dict[str, Content], adapter: dict[str, Content], best: bool) -> None:
        final = self.path / "checkpoints" / _free_name(self.path, step)
        try:
            with explained(self.path):
                durable.write_directory(final, {name: chunks_of(content) for name, content in files.items()}, _manifest)
                _point_and_prune(self.path, final.name, best, self.keep)
                if adapter:
                    (self.path / "adapter").mkdir(exist_ok=True)
                for name, content in adapter.items():
                    replace_file(self.path / "adapter" / name, chunks_of(content))
        except OSError as error:
            self.failure = error
            last = self._last_name()
            left = f"the last intact checkpoint is {last}" if last else "there is no checkpoint yet"
            self.note(f"checkpoint {final.name} was not saved: {error}; {left}; training continues")
        else:
            self.failure = None

    def _last_name(self) -> str:
        name = layout.read_pointer(self.path, "last")
        return str(self.path / "checkpoints" / name) if name else ""


# ---- writing -----------------------------------------------------------------------------------------------------------------------------


def _copied(files: dict[str, Content]) -> dict[str, Content]:
    return {name: content.copy() if isinstance(content, TensorFile) else content for name, content in files.items()}


def _manifest(written: dict[str, Written]) -> bytes:
    return to_json({"format": 1, "files": {name: {"bytes": w.n_bytes, "sha256": w.sha256} for name, w in written.items()}})


def _free_name(run: Path, step: int) -> str:
    """A name that no checkpoint of the run has: one that is there is never replaced."""
    names = [f"step-{step:08d}", *(f"step-{step:08d}-{n}" for n in range(2, 10_000))]
    return next(name for name in names if not (run / "checkpoints" / name).exists())


def _point_and_prune(run: Path, name: str, best: bool, keep: int) -> None:
    checkpoints = run / "checkpoints"
    for which in ("best", "last") if best else ("last",):
        replace_file(checkpoints / which, name + "\n")
    kept = {name, layout.read_pointer(run, "best")}
    newest = sorted(layout.list_checkpoints(run), key=lambda p: (p.stat().st_mtime_ns, layout.step_and_repeat(p)), reverse=True)
    kept |= {p.name for p in newest[: max(keep, 1)]}
    for old in newest:
        if old.name not in kept:
            durable.remove_directory(old)


def _is_blank(path: Path) -> bool:
    """True for a directory without content, or with what `Run.create` makes before anything else."""
    return all(p.name == "lock" or (p.name == "checkpoints" and p.is_dir() and not any(p.iterdir())) for p in path.iterdir())


def _next_free(name: str) -> Path:
    name = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    taken = [int(p.name.rpartition("-")[2]) for p in layout.RUNS.glob(f"{name}-[0-9][0-9][0-9]")]
    return layout.RUNS / f"{name}-{max(taken, default=0) + 1:03d}"


# ---- errors of the system ----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the system's refusals to write below `path` into an error that says what to do; a lock that is held passes as it is."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        what_to_do = _WHAT_TO_DO.get(error.errno or 0, "choose another --run")
        reason = os.strerror(error.errno) if error.errno else str(error)
        clear = type(error)(f"{path}: {reason}, expected a directory that can be written to; {what_to_do}")
        clear.errno = error.errno
        raise clear from error


_WHAT_TO_DO = {
    errno.ENOSPC: "free some space, or choose another --run",
    getattr(errno, "EDQUOT", errno.ENOSPC): "your quota is used up: delete something, or choose another --run",
    errno.EROFS: "the file system is read-only: choose another --run",
    errno.EACCES: "change its permissions, or choose another --run",
    errno.EPERM: "change its permissions, or choose another --run",
    errno.EFBIG: "the file is larger than the limit of this process or file system (ulimit -f): raise it, or choose another --run",
    errno.EIO: "the disk is failing (see dmesg): save what is on it, and choose another --run",
}
