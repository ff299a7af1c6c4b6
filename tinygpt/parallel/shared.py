"""Memory that processes of one machine share: ranks sum arrays in it in place, instead of sending them.

    window = ranks.share(n, np.dtype("float32"))      # all ranks call it; None where they cannot
    window.own[...] = gradient                        # this rank's row: n numbers, an ordinary array
    ranks.all_reduce(window.own)                      # of the row, or of a part of it

    all_reduce        each rank adds up its 1 / N of all rows, and writes the sum into all of them
    reduce_scatter    each adds up its part of all rows, and writes the sum into its own
    all_gather        each copies the others' parts into its own row

A library that sends an array copies it into shared memory and out of it, in pieces, and adds up then. Here a number is read and written once.
Each operation waits for all before it, as rows must be ready, and after it, as none may change while another rank reads it. Sums are made in
the order of the ranks, so they have the same bits in all rows, and from run to run.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from autograd import Array, backend
from autograd.optim import FlatOptimizer
from tinygpt.errors import ProcessFailed
from tinygpt.models.protocols import Communicator

_IN_MEMORY, _PAGE_BYTES, _MAX_PATH, _BLOCK = "/dev/shm", 4096, 256, 1 << 15
"""_BLOCK: numbers that are summed at once, so that they stay in a core's cache until they are written."""


@contextlib.contextmanager
def shared_file(n_bytes: int, *folders: str) -> Iterator[Path]:
    """A file of n_bytes in the first folder that has room; its name is deleted at the end of the block. Default: in memory, else on disk.

    Windows cannot delete a file that is mapped: there it stays in the folder for temporary files. (`tempfile.TemporaryDirectory` would try
    for ever.) Raises RuntimeError if there is room in none: writing to a mapped file without room would kill the process.
    """
    failed = []
    for parent in folders or (_IN_MEMORY, tempfile.gettempdir()):
        with contextlib.ExitStack() as stack:
            try:
                folder = Path(tempfile.mkdtemp(prefix="tinygpt-", dir=parent))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                with (folder / "shared").open("wb") as file:
                    file.truncate(n_bytes)
                    if hasattr(os, "posix_fallocate"):
                        os.posix_fallocate(file.fileno(), 0, n_bytes)
            except OSError as error:
                failed.append(str(error))
                continue
            yield folder / "shared"
            return
    why = f"no room for {n_bytes:,} bytes of shared memory ({'; '.join(failed)})"
    raise ProcessFailed(f"replica: {why}, expected it; train with --processes 1")


class Window:
    """A row of numbers for each rank, that all of them read and write.

    rows   (N, n); own: this rank's
    wait   returns when all ranks have called it, with what for
    """

    def __init__(self, rows: np.ndarray, rank: int, wait: Callable[[str], None]) -> None:
        self.rows, self.rank, self.own, self.wait = rows, rank, rows[rank], wait
        self._address: int = self.own.ctypes.data

    @property
    def others_bytes(self) -> int:
        """How much of the other ranks' rows this one reads and writes, and so seems to use: of each, its own part or the other's."""
        return int(self.own.nbytes) * (len(self.rows) - 1) // len(self.rows)

    def part(self, array: Array) -> slice | None:
        """Which part of the own row an array is; None if it lies elsewhere."""
        start = array.ctypes.data - self._address
        if not array.nbytes or start < 0 or start + array.nbytes > self.own.nbytes or array.dtype != self.own.dtype:
            return None
        return slice(start // array.itemsize, start // array.itemsize + array.size)

    def all_reduce(self, part: slice) -> None:
        n, length = len(self.rows), part.stop - part.start
        first, end = (part.start + length * i // n for i in (self.rank, self.rank + 1))
        self.wait("all_reduce")
        for block, total in self._sums(first, end):
            self.rows[:, block] = total
        self.wait("all_reduce")

    def reduce_scatter(self, part: slice, lengths: Sequence[int]) -> Array:
        first, end = self._bounds(part, lengths)[self.rank]
        self.wait("reduce_scatter")
        for block, total in self._sums(first, end):
            self.own[block] = total
        self.wait("reduce_scatter")
        return self.own[first:end]

    def all_gather(self, given: Array, part: slice, lengths: Sequence[int]) -> None:
        bounds = self._bounds(part, lengths)
        if self.part(given) != slice(*bounds[self.rank]):
            self.own[slice(*bounds[self.rank])] = given
        self.wait("all_gather")
        for rank, (start, stop) in enumerate(bounds):
            if rank != self.rank:
                self.own[start:stop] = self.rows[rank, start:stop]
        self.wait("all_gather")

    def _sums(self, first: int, end: int) -> Iterator[tuple[slice, Array]]:
        """(block, sum of all rows) of each block of a part."""
        for start in range(first, end, _BLOCK):
            block = slice(start, min(start + _BLOCK, end))
            with np.errstate(all="ignore"):  # as MPI's sums: a loss that is not finite is found by all ranks afterwards
                total = self.rows[0, block] + self.rows[1, block]
                for row in self.rows[2:]:
                    total += row[block]
            yield block, total

    def _bounds(self, part: slice, lengths: Sequence[int]) -> list[tuple[int, int]]:
        ends = np.cumsum([part.start, *lengths]).tolist()
        return list(pairwise(ends))


def open_window(ranks: Communicator, size: int, dtype: np.dtype, wait: Callable[[str], None]) -> Window | None:
    """A window of ranks that are all on this machine; None where its memory has no room for them. All call it together."""
    row_bytes = -(-size * dtype.itemsize // _PAGE_BYTES) * _PAGE_BYTES
    name, rows = np.zeros(_MAX_PATH, np.uint8), None
    with contextlib.ExitStack() as stack:
        if ranks.rank == 0:
            with contextlib.suppress(ProcessFailed):
                path = str(stack.enter_context(shared_file(ranks.size * row_bytes, _IN_MEMORY))).encode()
                name[: len(path)] = np.frombuffer(path, np.uint8)
        ranks.broadcast(name)
        with contextlib.suppress(OSError, ValueError):  # no name: no room
            rows = np.asarray(np.memmap(bytes(name).rstrip(b"\0").decode(), dtype, "r+", shape=(ranks.size, row_bytes // dtype.itemsize)))
        failed = ranks.agree(rows is None)  # also: all have it open now, so its name may be deleted
    return None if failed or rows is None else Window(rows[:, :size], ranks.rank, wait)


@runtime_checkable
class SharesMemory(Protocol):
    """A `Communicator` whose operations on a window's own row, or on parts of it, are made in place.

    share(size, dtype)   a new window, by all ranks together; None where their machine has no room for it
    close(window)        all ranks together: its row is an array like any other from then on
    """

    def share(self, size: int, dtype: np.dtype) -> Window | None: ...
    def close(self, window: Window) -> None: ...


def on_one_machine(ranks: Communicator) -> bool:
    """Whether arrays of these ranks can be in memory that they share."""
    return isinstance(ranks, SharesMemory) and ranks.here == ranks.size and backend.name == "numpy"


class Buffers:
    """An optimizer's flat buffers, moved to where the ranks sum them in place: where they are on one machine, and it has room."""

    def __init__(self, ranks: Communicator) -> None:
        self.ranks = ranks
        self._optimizer: FlatOptimizer | None = None
        self._windows: list[Window] = []

    def move(self, optimizer: FlatOptimizer, *, weights: bool) -> str:
        """Moves the gradients, and the weights where ranks exchange those, too. Forgets the gradients. Nothing for an optimizer that was moved.

        Returns a note where the machine has no room; else an empty string.
        """
        ranks = self.ranks
        if optimizer is self._optimizer or not on_one_machine(ranks):
            return ""
        assert isinstance(ranks, SharesMemory)
        self._optimizer, flat = optimizer, optimizer.gradient
        for window in self._windows:
            ranks.close(window)
        self._windows = []
        for move in (optimizer.move_gradients, *([optimizer.move_weights] if weights else [])):
            room = ranks.share(flat.size, flat.dtype)
            if room is None:
                n_bytes = ranks.size * flat.nbytes
                return f"no room for {n_bytes:,} bytes in {_IN_MEMORY}: ranks send their gradients instead of summing them in place, which is slower"
            self._windows.append(room)
            move(room.own)
        return ""

    @property
    def others_bytes(self) -> int:
        """Memory of other ranks that the system counts as this one's."""
        return sum(window.others_bytes for window in self._windows)
