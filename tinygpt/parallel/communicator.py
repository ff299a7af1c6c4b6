"""What ranks say to each other: a few operations on arrays, the same for one process, for threads, for MPI and for NCCL.

A rank is one of `size` copies of the program. All of them call the same operations in the same order; each call returns when the result is
there. Threads sum in one order, and MPI libraries do for the same ranks on the same machines, as its standard recommends: then two runs have
the same bits.

    world().all_reduce(gradient)        # gradient: now the sum over all ranks

`world()` is that of this process: MPI's, where `mpiexec` started it (with a GPU for each rank: NCCL's), else a single rank, whose operations do
nothing. So one program serves both.

Source  the operations: MPI Forum 2021, MPI 4.0, chapters 3, 6 and 7.
"""

import json
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import accumulate
from typing import TypeVar

import numpy as np

from autograd import Array, backend
from tinygpt.errors import InvalidInput, ProcessFailed
from tinygpt.models.protocols import Communicator, Sending
from tinygpt.parallel.launch import connect, n_started
from tinygpt.storage.checked_json import Json

T = TypeVar("T")


class Sent:
    """A message that has left."""

    def wait(self) -> None:
        pass


class OneRank:
    """A single process: every sum is what it was before."""

    rank, size, here, kind = 0, 1, 1, "one process"

    def all_reduce(self, array: Array) -> None:
        pass

    def reduce_scatter(self, array: Array, lengths: Sequence[int]) -> Array:
        return array

    def all_gather(self, part: Array, out: Array, lengths: Sequence[int]) -> None:
        out[...] = part

    def broadcast(self, array: Array, root: int = 0) -> None:
        pass

    def send(self, array: Array, to: int) -> Sending:
        raise ProcessFailed(f"send to rank {to}: 1 rank, expected another one; start more")

    def receive(self, array: Array, source: int) -> None:
        raise ProcessFailed(f"receive from rank {source}: 1 rank, expected another one; start more")

    def agree(self, value: float) -> float:
        return value

    def split(self, color: int) -> "Communicator":
        return self


class _Board:
    """What threads share: an array of each, the messages between them, and a barrier at which all wait for all."""

    def __init__(self, size: int) -> None:
        self.arrays: list[Array] = [np.empty(0)] * size
        self.barrier = threading.Barrier(size)
        self.messages: dict[tuple[int, int], list[Array]] = {}
        self.arrived = threading.Condition()
        self.parts: dict[tuple[int, int], _Board] = {}  # by the number of the split, and color
        self.failed = False


class ThreadRank:
    """A rank that is a thread of this process: for tests, and to step through with a debugger. See `run_ranks`."""

    kind = "threads"

    def __init__(self, board: _Board, rank: int, size: int) -> None:
        self.rank, self.size, self.here, self._board, self._n_splits = rank, size, size, board, 0

    def _all(self, array: Array) -> list[Array]:
        """The arrays that all ranks give."""
        self._board.arrays[self.rank] = array
        self._board.barrier.wait()
        return list(self._board.arrays)

    def all_reduce(self, array: Array) -> None:
        total = sum(self._all(array.copy())[1:], self._board.arrays[0])
        self._board.barrier.wait()
        array[...] = total

    def reduce_scatter(self, array: Array, lengths: Sequence[int]) -> Array:
        self.all_reduce(array)
        end = list(accumulate(lengths))[self.rank]
        return array[end - lengths[self.rank] : end]

    def all_gather(self, part: Array, out: Array, lengths: Sequence[int]) -> None:
        parts = self._all(part.copy())
        self._board.barrier.wait()
        for own, end in zip(parts, accumulate(lengths), strict=True):
            out[end - own.size : end] = own

    def broadcast(self, array: Array, root: int = 0) -> None:
        given = self._all(array.copy())[root]
        self._board.barrier.wait()
        array[...] = given

    def send(self, array: Array, to: int) -> Sending:
        with self._board.arrived:
            self._board.messages.setdefault((self.rank, to), []).append(array.copy())
            self._board.arrived.notify_all()
        return Sent()

    def receive(self, array: Array, source: int) -> None:
        waiting = self._board.messages
        with self._board.arrived:
            self._board.arrived.wait_for(lambda: waiting.get((source, self.rank)) or self._board.failed)
            if not waiting.get((source, self.rank)):
                raise threading.BrokenBarrierError
            array[...] = waiting[source, self.rank].pop(0)

    def agree(self, value: float) -> float:
        found = max(float(each[0]) for each in self._all(np.array([value], np.float64)))
        self._board.barrier.wait()
        return found

    def split(self, color: int) -> Communicator:
        colors = [int(each[0]) for each in self._all(np.array([color]))]
        ranks = [rank for rank, other in enumerate(colors) if other == color]
        self._n_splits += 1
        with self._board.arrived:
            board = self._board.parts.setdefault((self._n_splits, color), _Board(len(ranks)))
        self._board.barrier.wait()
        return ThreadRank(board, ranks.index(self.rank), len(ranks))


def run_ranks(n: int, program: Callable[[Communicator], T]) -> list[T]:
    """Runs a program as n ranks in threads and returns what each gives. Where one raises, the others end, too, and its error is raised."""
    board, results, errors = _Board(n), dict[int, T](), list[BaseException]()

    def one(rank: int) -> None:
        try:
            results[rank] = program(ThreadRank(board, rank, n))
        except threading.BrokenBarrierError:
            pass  # another rank has failed
        except BaseException as error:
            errors.append(error)
            _break(board)

    threads = [threading.Thread(target=one, args=(rank,), daemon=True) for rank in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(n)]


def _break(board: _Board) -> None:
    """Ends the waiting of all ranks, those of split boards included."""
    with board.arrived:
        board.failed = True
        board.arrived.notify_all()
    board.barrier.abort()
    for part in board.parts.values():
        _break(part)


_world: Communicator | None = None


def world() -> Communicator:
    """All ranks of this program. Raises ImportError, naming the extra, where `mpiexec` started several and mpi4py is missing; ValueError, on
    all ranks, where one computes with another version, backend or mode than the first."""
    global _world
    if _world is None:
        ranks: Communicator = OneRank()
        if n_started() > 1:
            connect()
            from tinygpt.parallel.mpi import MPIRank

            ranks = MPIRank()
            check_same(ranks, versions())
            if backend.name == "cupy":
                from tinygpt.parallel.nccl import over_gpus

                ranks = over_gpus(ranks)
        _world = ranks
    return _world


def tell(ranks: Communicator, text: str = "", root: int = 0) -> str:
    """The text that rank `root` gives, on all ranks."""
    given = text.encode() if ranks.rank == root else b""
    length = np.array([len(given)], np.int64)
    ranks.broadcast(length, root)
    data = np.zeros(int(length[0]), np.uint8)
    data[: len(given)] = np.frombuffer(given, np.uint8)
    ranks.broadcast(data, root)
    return data.tobytes().decode()


def versions() -> dict[str, Json]:
    """What ranks compute with: where it differs, so do their weights, after a while, or what they say to each other."""
    try:
        own = metadata.version("tinygpt")
    except metadata.PackageNotFoundError:  # not installed: run from its sources
        own = "not installed"
    return {
        "tinygpt": own, "python": platform.python_version(), "numpy": np.__version__, "AUTOGRAD_BACKEND": backend.name,
        "AUTOGRAD_KERNELS": backend.kernels, "AUTOGRAD_DEBUG": int(backend.debug), "AUTOGRAD_TF32": int(backend.tf32),
    }  # fmt: skip


def check_same(ranks: Communicator, settings: Mapping[str, Json]) -> None:
    """Raises ValueError, on all ranks, where one has other settings, versions or data than the first, naming them. All call it together."""
    own = json.loads(json.dumps(settings))
    first = json.loads(tell(ranks, json.dumps(own)))
    differ = [key for key in {**first, **own} if key not in first or key not in own or first[key] != own[key]]
    if which := int(ranks.agree(ranks.size - ranks.rank if differ else 0)):
        rank = ranks.size - which
        shown = [f"{key} {_value(own, key)}, the first has {_value(first, key)}" for key in differ[:3]]
        found = tell(ranks, "; ".join(shown + ["..."] * (len(differ) > 3)), rank)
        raise InvalidInput(f"rank {rank}: {found}, expected the same settings, versions and data on all; start all with the same command")


def _value(settings: Mapping[str, Json], key: str) -> str:
    return repr(settings[key]) if key in settings else "no value"
