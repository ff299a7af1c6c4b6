"""Writing a run's checkpoints: by a thread, from a copy, so that a crash at any instant leaves the last good one intact.

Where the disk is full or fails, one process continues and tries again at the next checkpoint. N ranks end: they would cost N times as much
for updates that cannot be saved.
"""

import contextlib
import contextvars
import errno
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn, TypedDict

from tinygpt.runs import layout
from tinygpt.storage.checked_json import to_json
from tinygpt.storage.durable import Written, remove_directory, replace_file, write_directory
from tinygpt.storage.safetensors import Content, TensorFile, chunks_of


class WriterOptions(TypedDict, total=False):
    """Options of `CheckpointWriter`."""

    keep: int
    background: bool
    note: Callable[[str], None]


class CheckpointWriter:
    """Adds checkpoints to a run. One that cannot be written costs nothing but itself: what was there stays.

    keep         newest checkpoints to keep, besides the best
    background   a thread writes, from a copy, so that training continues meanwhile; False: `write` returns when all is on the disk
    note         is told of what could not be written, if training continues then
    end          says why and ends the job if something cannot be written; None, for one process: the next checkpoint is tried
    failure      why the last one was not written, or None
    """

    def __init__(self, run: Path, *, keep: int = 2, background: bool = True, note: Callable[[str], None] = print) -> None:
        self.run, self.keep, self.background, self.note = run, keep, background, note
        self.end: Callable[[str], NoReturn] | None = None
        self.failure: OSError | None = None
        self._thread: threading.Thread | None = None

    def write(self, step: int, files: Mapping[str, Content], *, best: bool, adapter: Mapping[str, Content]) -> None:
        """Begins to write a checkpoint of these files, by name, and the run's folder adapter/, once the one before is on the disk."""
        self.wait()
        if not self.background:
            self._write(step, files, best, adapter)
            return
        job = (self._write, step, _copied(files), best, _copied(adapter))
        # A daemon: a second Ctrl-C ends the program at once, and what is half-written then is not yet a checkpoint.
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=job, daemon=True)
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

    def _write(self, step: int, files: Mapping[str, Content], best: bool, adapter: Mapping[str, Content]) -> None:
        names = [f"step-{step:08d}", *(f"step-{step:08d}-{n}" for n in range(2, 10_000))]
        folder, self.failure = self.run / "checkpoints", None
        final = folder / names[0]
        try:
            final = next(folder / name for name in names if not (folder / name).exists())  # one that is there is never replaced
            write_directory(final, {name: chunks_of(content) for name, content in files.items()}, _manifest)
            _point_and_prune(self.run, final.name, best, self.keep)
            if adapter:
                (self.run / "adapter").mkdir(exist_ok=True)
            for name, content in adapter.items():
                replace_file(self.run / "adapter" / name, chunks_of(content))
        except OSError as error:
            self.failure = _explanation(self.run, error)
            self.refused(f"checkpoint {final.name} was not saved", error)

    def refused(self, what: str, error: OSError) -> None:
        """Says what could not be written and which checkpoint is left; ends the job if there is an `end`."""
        last = ""
        with contextlib.suppress(OSError):  # a disk that fails may refuse to be read, too
            last = layout.read_pointer(self.run, "last")
        left = f"the last intact checkpoint is {self.run / 'checkpoints' / last}" if last else "there is no checkpoint yet"
        if self.end is None:
            self.note(f"{what}: {_explanation(self.run, error)}; {left}; training continues")
            return
        if last:
            left += f" (step {layout.step_and_repeat(Path(last))[0]:,})"
        way_out = f"copy the run to another disk, and continue with --resume {self.run}" if last else f"{_ANOTHER}, and start again"
        self.end(f"{what}: {self.run}: {_found(error)}; {left}; {_what_to_do(error, way_out)}")


def _copied(files: Mapping[str, Content]) -> dict[str, Content]:
    return {name: content.copy() if isinstance(content, TensorFile) else content for name, content in files.items()}


def _manifest(written: dict[str, Written]) -> bytes:
    return to_json({"format": 1, "files": {name: {"bytes": w.n_bytes, "sha256": w.sha256} for name, w in written.items()}})


def _point_and_prune(run: Path, name: str, best: bool, keep: int) -> None:
    checkpoints = run / "checkpoints"
    for which in ("best", "last") if best else ("last",):
        replace_file(checkpoints / which, name + "\n")
    newest = sorted(layout.list_checkpoints(run), key=lambda p: (p.stat().st_mtime_ns, layout.step_and_repeat(p)), reverse=True)
    for old in newest[max(keep, 1) :]:
        if old.name not in (name, layout.read_pointer(run, "best")):
            remove_directory(old)


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns the system's refusals to write below `path` into an error that says what to do; a lock that is held passes as it is."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        raise _explanation(path, error) from error


def _explanation(path: Path, error: OSError) -> OSError:
    clear = type(error)(f"{path}: {_found(error)}; {_what_to_do(error, _ANOTHER)}")
    clear.errno = error.errno
    return clear


def _found(error: OSError) -> str:
    return f"{os.strerror(error.errno) if error.errno else error}, expected a directory that can be written to"


def _what_to_do(error: OSError, way_out: str) -> str:
    """The advice, with what to do where the directory cannot be used any more."""
    return _WHAT_TO_DO.get(error.errno or 0, "{}").format(way_out)


_ANOTHER = "choose another --run"
_WHAT_TO_DO = {
    errno.ENOSPC: "free some space, or {}",
    getattr(errno, "EDQUOT", errno.ENOSPC): "your quota is used up: delete something, or {}",
    errno.EROFS: "the file system is read-only: {}",
    errno.EACCES: "change its permissions, or {}",
    errno.EPERM: "change its permissions, or {}",
    errno.EFBIG: "the file is larger than the limit of this process or file system (ulimit -f): raise it, or {}",
    errno.EIO: "the disk is failing (see dmesg): save what is on it, and {}",
}
