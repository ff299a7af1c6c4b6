"""Durable files: written so that a crash, a full disk or a second process at any moment leaves either the old file or the new one, never a mixture.

    write_file(path, chunks)          all of it on the disk, or an OSError
    replace_file(path, data)          the old content or the new one, never a mixture
    write_directory(final, files)     a directory that appears under its name only when everything in it is on the disk
    with Lock(directory): ...         one writer at a time

Every call that can fail in a way that only hardware shows goes through `Disk`; the tests put a faulty one in its place.
Source  the order write, fsync, rename, fsync of the directory: Pillai et al. 2014, "All File Systems Are Not Created Equal", OSDI.
"""

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

import numpy as np

from tinygpt.errors import InUse, WriteFailed

Chunk = bytes | np.ndarray  # an array that is contiguous
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


_real = Disk()
_disk: ContextVar[Disk] = ContextVar("disk", default=_real)
disk = _disk.get


@contextlib.contextmanager
def use_disk(faulty: Disk) -> Iterator[None]:
    """Within this block (and in threads that copy its context) all writing goes through another Disk: for tests of faults."""
    token = _disk.set(faulty)
    try:
        yield
    finally:
        _disk.reset(token)


class Written(NamedTuple):
    """What a file came to: its size and sha256, in hex."""

    n_bytes: int
    sha256: str


def write_file(path: Path, chunks: Iterable[Chunk]) -> Written:
    """Writes chunks one after the other and makes the file durable. Raises OSError if anything fails."""
    digest, n_bytes = hashlib.sha256(), 0
    with disk().open(path) as file:
        for chunk in chunks:
            view = memoryview(chunk)  # type: ignore[arg-type]
            view = view.cast("B") if view.nbytes else memoryview(b"")
            digest.update(view)
            n_bytes += view.nbytes
            while view:
                n = disk().write(file, view)
                if n <= 0:
                    raise WriteFailed(f"{path}: the disk took {n} of {view.nbytes} bytes, expected at least one; check the disk")
                view = view[n:]
        disk().sync(file.fileno())
    return Written(n_bytes, digest.hexdigest())


def read_digest(path: Path) -> Written:
    """Size and sha256 of a file, read in pieces."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
        return Written(file.tell(), digest.hexdigest())


def replace_file(path: Path, data: bytes | str | Iterable[Chunk], *, writer: str = "") -> Written:
    """Gives a file new content (all of it, or chunks): a reader finds the old or the new. `writer` tells apart those who do it at once."""
    with replacing(path, writer) as temporary:
        return write_file(temporary, [data.encode("utf-8")] if isinstance(data, str) else [data] if isinstance(data, bytes) else data)


@contextlib.contextmanager
def replacing(path: Path, writer: str = "") -> Iterator[Path]:
    """A temporary path next to `path`, for whoever writes a file: it gets its name when the block ends, or is deleted if that fails."""
    temporary = path.with_name(f"{PARTIAL}{writer}{path.name}")
    try:
        yield temporary
        disk().replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync_directory(path.parent)


def write_directory(final: Path, files: Mapping[str, Iterable[Chunk]], manifest: Callable[[dict[str, Written]], bytes]) -> None:
    """Writes files (name, or FOLDER/NAME: chunks) into a temporary directory next to `final`, makes it durable, and renames it: all or nothing.
    `manifest` makes the content of manifest.json, written last, from size and sha256 of each file."""
    temporary = final.with_name(f"{PARTIAL}{final.name}")
    try:
        temporary.mkdir()
        folders = {(temporary / name).parent for name in files} - {temporary}
        for folder in folders:
            folder.mkdir()
        written = {name: write_file(temporary / name, chunks) for name, chunks in files.items()}
        write_file(temporary / "manifest.json", [manifest(dict(sorted(written.items())))])
        for folder in (*folders, temporary):
            sync_directory(folder)
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
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


class Lock:
    """Keeps a second process out of a directory, by a lock on a file in it. The system lets go of it when the process ends, however.

    Taking a lock that this process already holds is allowed and does nothing. On network file systems it is as good as their locks are.
    """

    _held: dict[Path, "Lock"] = {}  # noqa: RUF012 (one for the process)

    def __init__(self, directory: str | Path, flag: str = "--run") -> None:
        """flag: the one that names the directory, for the message."""
        self.path, self.flag = Path(directory).resolve() / "lock", flag
        self._file: IO[str] | None = None

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
            rule = f"expected one writer at a time; wait for it or stop it, or choose another {self.flag}"
            raise InUse(f"{self.path.parent}: in use by {holder}, {rule}") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, started {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        self._file, Lock._held[self.path] = file, self
        return self

    def release(self) -> None:
        if self._file is not None:
            self._file.close()  # which lets go of the lock; the file stays: deleting it would race with the next one
            self._file = None
            Lock._held.pop(self.path, None)

    def __enter__(self) -> "Lock":
        return self.acquire()

    def __exit__(self, *exception: object) -> None:
        self.release()


def _lock(file: IO[str]) -> None:
    """An exclusive lock without waiting, or an OSError."""
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 20)  # Windows locks ranges of bytes, and a locked range cannot be read: lock one that is never read
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
