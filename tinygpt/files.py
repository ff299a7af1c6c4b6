"""Durable files: written so that a crash, a full disk or a second process at any instant leaves the old state or the new one, whole.

    write_file(path, chunks)          all of it on the disk, or an OSError
    replace_file(path, data)          the old content or the new one, never a mixture
    write_directory(final, fill)      a directory that appears under its name only when everything in it is on the disk
    with Lock(directory): ...         one writer at a time

Every call that can fail in a way that only hardware shows goes through `Disk`; the tests put a faulty one in its place.
Source  the order write, fsync, rename, fsync of the directory: Pillai et al. 2014, "All File Systems Are Not Created Equal", OSDI.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

PARTIAL = ".partial-"  # what is being written, or deleted, has this in front of its name


class Disk:
    """The calls to the operating system that writing needs, and nothing else."""

    def open(self, path: Path) -> BinaryIO:
        return path.open("wb", buffering=0)  # unbuffered: an error shows in the call that caused it

    def write(self, file: BinaryIO, data: memoryview) -> int:
        """Writes some of the data, at least a byte, and returns how many: a disk may take less than it was given."""
        return file.write(data) or 0

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def replace(self, old: Path, new: Path) -> None:
        os.replace(old, new)


_disk: ContextVar[Disk] = ContextVar("disk")  # no default: it would be made at import
_real = Disk()


def disk() -> Disk:
    return _disk.get(_real)


@contextlib.contextmanager
def use_disk(faulty: Disk) -> Iterator[None]:
    """Within this block (and in threads that copy its context) all writing goes through another Disk: for tests of faults."""
    token = _disk.set(faulty)
    try:
        yield
    finally:
        _disk.reset(token)


@dataclass(frozen=True)
class Written:
    """What a file came to: its size and sha256, in hex."""

    n_bytes: int
    sha256: str


def write_file(path: Path, chunks: Iterable[Any]) -> Written:
    """Writes chunks (bytes, or contiguous arrays) one after the other and makes the file durable. Raises OSError if anything fails."""
    digest, n_bytes = hashlib.sha256(), 0
    with disk().open(path) as file:
        for chunk in chunks:
            view = memoryview(chunk).cast("B") if memoryview(chunk).nbytes else memoryview(b"")
            digest.update(view)
            n_bytes += view.nbytes
            while view:
                n = disk().write(file, view)
                if n <= 0:
                    raise OSError(f"{path}: the disk took {n} of {view.nbytes} bytes, expected at least one; check the disk")
                view = view[n:]
        disk().sync(file.fileno())
    return Written(n_bytes, digest.hexdigest())


def read_digest(path: Path) -> Written:
    """Size and sha256 of a file, read in pieces."""
    digest, n_bytes = hashlib.sha256(), 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
            n_bytes += len(piece)
    return Written(n_bytes, digest.hexdigest())


def replace_file(path: Path, data: bytes | str) -> None:
    """Puts new content in a file's place: whoever reads it, at whatever instant, finds the old content or the new one."""
    temporary = path.with_name(f"{PARTIAL}{path.name}")
    try:
        write_file(temporary, [data.encode("utf-8") if isinstance(data, str) else data])
        disk().replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def write_directory(final: Path, fill: Callable[[Path], None]) -> None:
    """Lets `fill` write into a temporary directory beside `final`, makes it durable, and renames it: all of it appears, or nothing."""
    temporary = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=final.parent))
    try:
        fill(temporary)
        sync_directory(temporary)
        temporary.chmod(0o755)  # mkdtemp makes it private
        disk().rename(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(final.parent)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory durable. Windows cannot open directories: there the rename alone has to do."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        disk().sync(descriptor)
    finally:
        os.close(descriptor)


def remove_directory(path: Path) -> None:
    """Deletes a directory. It loses its name first, so a crash on the way leaves no half-empty one behind under it."""
    doomed = Path(tempfile.mkdtemp(prefix=PARTIAL, dir=path.parent))
    disk().rename(path, doomed / path.name)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_partial(directory: Path) -> None:
    """Deletes what a crash has left unfinished in a directory. Only for the one who holds its lock."""
    for path in directory.glob(PARTIAL + "*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


class Lock:
    """Keeps a second process out of a directory, by a lock on a file in it. The system lets go of it when the process ends, however.

    Taking a lock that this process already holds is allowed and does nothing. On network file systems it is as good as their locks are.
    """

    _held: dict[Path, "Lock"] = {}  # noqa: RUF012 (one for the process)

    def __init__(self, directory: str | Path) -> None:
        self.path = Path(directory).resolve() / "lock"
        self._file: Any = None

    @classmethod
    def held(cls, directory: str | Path) -> bool:
        """True if this process holds the lock of a directory."""
        return Path(directory).resolve() / "lock" in cls._held

    def acquire(self) -> "Lock":
        """Raises BlockingIOError, naming the process that holds the lock, if there is one."""
        if self.path in Lock._held:
            return Lock._held[self.path]
        file = self.path.open("a+", encoding="utf-8")
        try:
            _lock(file)
        except OSError:
            file.seek(0)
            holder = file.read(200).strip() or "another process"
            file.close()
            raise BlockingIOError(
                f"{self.path.parent}: in use by {holder}, expected one writer at a time; wait for it or stop it, or choose another --run"
            ) from None
        file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {started}")
        file.flush()
        self._file = file
        Lock._held[self.path] = self
        return self

    def release(self) -> None:
        if self._file is not None:
            self._file.close()  # which lets go of the lock; the file stays: deleting it would race with the next one
            self._file = None
            Lock._held.pop(self.path, None)

    def __enter__(self) -> "Lock":
        return self.acquire()

    def __exit__(self, *exception: Any) -> None:
        self.release()


def _lock(file: Any) -> None:
    """An exclusive lock without waiting, or an OSError."""
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 20)  # Windows locks ranges of bytes, and what is locked cannot be read: take one that nobody reads
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


# ---- tensors -------------------------------------------------------------------------------------------------------------------------------

_SAFETENSORS_DTYPES = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
}
later: ContextVar[list[Callable[[], None]] | None] = ContextVar("later", default=None)
"""Set to a list: `save_tensors` copies its arrays and leaves the writing in the list, for a thread."""


def save_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Writes host arrays in the safetensors format: the length of a JSON header, the header, and the arrays' bytes one after the other.

    Source  https://huggingface.co/docs/safetensors, "Format"
    """
    waiting = later.get()
    if waiting is not None:  # a copy now, the writing in a thread
        copies = {name: np.array(array, order="C") for name, array in tensors.items()}
        waiting.append(lambda: _write_tensors(path, copies, metadata))
    else:
        _write_tensors(path, {name: np.ascontiguousarray(array) for name, array in tensors.items()}, metadata)


def _write_tensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None) -> None:
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _SAFETENSORS_DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
    raw = (array.reshape(-1).view(np.uint8) for array in arrays.values())
    write_file(path, [len(text).to_bytes(8, "little"), text, *raw])


# ---- JSON from files that somebody else may have written -----------------------------------------------------------------------------------

MAX_JSON_BYTES = 64 << 20  # a vocabulary of a million tokens is a third of it


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError, naming the file, for one that is too large, not UTF-8, not JSON, nested beyond reason,
    or that holds numbers JSON does not have (NaN, Infinity) or that no computer wants (thousands of digits).
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(f"{path}: {size} bytes, expected at most {MAX_JSON_BYTES}; is it the right file?")
    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}, expected valid JSON in UTF-8; restore the file") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"the number {name}")


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8")


class Entries:
    """Reads entries of a checkpoint's JSON, each checked: what is there may come from anywhere."""

    def __init__(self, values: Any, where: str) -> None:
        self.values, self.where = values, where

    def _find(self, *keys: str) -> Any:
        found = self.values
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def integer(self, *keys: str) -> int:
        found = self._find(*keys)
        if type(found) is not int or not 0 <= found < 1 << 62:
            raise ValueError(
                f"{self.where}: {'.'.join(keys)} is {found!r:.50}, expected an integer >= 0; use another checkpoint of the run"
            )
        return found

    def number(self, *keys: str, default: float) -> float:
        found = self._find(*keys)
        if found is None:
            return default
        if type(found) not in (int, float) or not abs(found) < math.inf:
            raise ValueError(
                f"{self.where}: {'.'.join(keys)} is {found!r:.50}, expected a finite number; use another checkpoint of the run"
            )
        return float(found)
