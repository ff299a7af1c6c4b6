"""The fake `cupy.cuda.nccl`: ranks are threads of this process, and addresses those of NumPy's memory.

As on a device, a call only adds to a queue, and a communicator works through its queue in order: what is not waited for has not happened yet,
a message leaves when it is received, and calls of a group are one. What NCCL or CuPy's wrapper refuses is refused: other types, counts of 0
for a pointer, ids that are not 128 signed bytes, another rank's count or dtype.
"""

import ctypes
import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

available = True
NCCL_INT8, NCCL_UINT8, NCCL_INT32, NCCL_UINT32, NCCL_INT64, NCCL_UINT64, NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64, NCCL_BFLOAT16 = range(10)
NCCL_SUM = 0
_DTYPES = [np.dtype(d) for d in ("i1", "u1", "i4", "u4", "i8", "u8", "f2", "f4", "f8", ml_dtypes.bfloat16)]
_PATIENCE_S = 5


class NcclError(RuntimeError):
    pass


class _Meeting:
    """Where the ranks of one id meet: each call of each rank, by its number."""

    def __init__(self) -> None:
        self.changed, self.given = threading.Condition(), dict[Any, dict[int, Any]]()

    def exchange(self, key: Any, rank: int, value: Any, n: int) -> dict[int, Any]:
        """What all n have given under a key, when the last has."""
        with self.changed:
            mine = self.given.setdefault(key, {})
            mine[rank] = value
            self.changed.notify_all()
            if not self.changed.wait_for(lambda: len(mine) == n, _PATIENCE_S):
                raise NcclError(f"{key}: {sorted(mine)} of {n} ranks have come")
            return mine


_meetings: dict[tuple[int, ...], _Meeting] = {}
_numbers = itertools.count()
_streams: dict[int, list[threading.Event]] = {}
_errors: list[BaseException] = []
_group = threading.local()


def get_unique_id() -> tuple[int, ...]:
    number = next(_numbers)
    found = (*(-1 - (number >> 7 * i) % 128 for i in range(4)), *([0] * 124))  # some below 0, as CuPy's are
    _meetings[found] = _Meeting()
    return found


def groupStart() -> None:
    _group.calls = []


def groupEnd() -> None:
    calls, _group.calls = _group.calls, None
    for communicator, stream, work in calls:
        communicator._later(stream, work)


class Event:
    """Where a stream has come to. What computes is done at once here, so that nobody has to wait for it."""


class Stream:
    """An own queue, or the calling thread's."""

    def __init__(self, null: bool = False, non_blocking: bool = False, *, ptr: int = 0) -> None:
        self.ptr = ptr or 1000 + next(_numbers)

    def record(self) -> "Event":
        return Event()

    def wait_event(self, event: "Event") -> None:
        assert type(event) is Event

    def synchronize(self) -> None:
        for done in _streams.pop(self.ptr, []):
            if not done.wait(_PATIENCE_S):
                raise NcclError("a stream is not done: two ranks wait for each other")
        if _errors:
            raise _errors[0]


def _view(at: int, count: int, dtype: int) -> np.ndarray:
    assert type(at) is int and type(count) is int and count > 0, f"address {at!r}, count {count!r}"
    kind = _DTYPES[dtype]
    return np.frombuffer((ctypes.c_char * (count * kind.itemsize)).from_address(at), kind)


class NcclCommunicator:
    def __init__(self, ndev: int, commId: tuple[int, ...], rank: int) -> None:
        assert type(commId) is tuple and len(commId) == 128 and all(type(x) is int and -128 <= x < 128 for x in commId)
        assert 0 <= rank < ndev
        self.n, self.rank, self.meeting, self.numbers = ndev, rank, _meetings[commId], itertools.count()
        self.lines: dict[tuple[int, int], itertools.count[int]] = {}
        self.queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.meeting.exchange("init", rank, None, ndev)
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self.queue.get()()

    def _add(self, stream: int, work: Callable[[], None]) -> None:
        assert type(stream) is int
        if getattr(_group, "calls", None) is not None:
            _group.calls.append((self, stream, work))
        else:
            self._later(stream, work)

    def _later(self, stream: int, work: Callable[[], None]) -> None:
        done = threading.Event()
        _streams.setdefault(stream, []).append(done)

        def call() -> None:
            time.sleep(0.001)  # who does not wait reads what was there before
            try:
                work()
            except BaseException as error:
                _errors.append(error)
            done.set()

        self.queue.put(call)

    def _all(self, stream: int, what: tuple[Any, ...], at: int, then: Callable[[dict[int, np.ndarray]], None]) -> None:
        count, dtype = what[1:3]
        given = _view(at, count, dtype)
        key = next(self.numbers)

        def work() -> None:
            values = self.meeting.exchange(key, self.rank, (what, given.copy()), self.n)
            if len({other for other, _ in values.values()}) > 1:
                raise NcclError(f"ranks call different things: {[other for other, _ in values.values()]}")
            then({rank: array for rank, (_, array) in values.items()})

        self._add(stream, work)

    def allReduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, stream: int) -> None:
        out = _view(recvbuf, count, datatype)
        self._all(stream, ("allReduce", count, datatype, op), sendbuf, lambda of: _store(out, _sum(of)))

    def reduce(self, sendbuf: int, recvbuf: int, count: int, datatype: int, op: int, root: int, stream: int) -> None:
        out = _view(recvbuf, count, datatype)
        self._all(stream, ("reduce", count, datatype, op, root), sendbuf, lambda of: _store(out, _sum(of)) if self.rank == root else None)

    def broadcast(self, sendbuff: int, recvbuff: int, count: int, datatype: int, root: int, stream: int) -> None:
        out = _view(recvbuff, count, datatype)
        self._all(stream, ("broadcast", count, datatype, root), sendbuff, lambda of: _store(out, of[root]))

    def send(self, sendbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        given = _view(sendbuf, count, datatype)
        key = (self.rank, peer, next(self.lines.setdefault((self.rank, peer), itertools.count())))
        self._add(stream, lambda: self._message(key, (count, datatype), given, None))

    def recv(self, recvbuf: int, count: int, datatype: int, peer: int, stream: int) -> None:
        out = _view(recvbuf, count, datatype)
        key = (peer, self.rank, next(self.lines.setdefault((peer, self.rank), itertools.count())))
        self._add(stream, lambda: self._message(key, (count, datatype), None, out))

    def _message(self, key: Any, what: tuple[int, int], given: np.ndarray | None, out: np.ndarray | None) -> None:
        values = self.meeting.exchange(key, self.rank, (what, None if given is None else given.copy()), 2)
        if len({other for other, _ in values.values()}) > 1:
            raise NcclError(f"message {key}: {values}")
        if out is not None:
            _store(out, values[key[0]][1])


def _store(out: np.ndarray, value: np.ndarray) -> None:
    out[...] = value


def _sum(of: dict[int, np.ndarray]) -> np.ndarray:
    return sum((of[rank] for rank in sorted(of) if rank), of[0])
