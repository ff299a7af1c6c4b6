"""Ranks that `mpiexec` has started, on one machine or on many.

    mpiexec -n 4 python -m mpi4py examples/pretrain.py

Arrays are sent as they are, never pickled; those in memory that the ranks of a machine share are not sent at all (`shared.py`). GPUs' arrays
pass through the host; `nccl.py` sends them from GPU to GPU.
"""

from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from autograd import Array, backend
from tinygpt.models.protocols import Communicator, Sending
from tinygpt.parallel.shared import Window, open_window
from tinygpt.parallel.watch import Watch


class MPIRank:
    """A `Communicator` over MPI: this process among those of a communicator of mpi4py's, by default all."""

    kind = "MPI"

    def __init__(self, comm: MPI.Comm | None = None, watch: Watch | None = None) -> None:
        self.comm, self.watch = MPI.COMM_WORLD if comm is None else comm, watch or Watch()
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        here = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.here, self.local_rank = here.Get_size(), here.Get_rank()
        self.all = MPI.Group.Translate_ranks(self.comm.Get_group(), None, MPI.COMM_WORLD.Get_group())  # by their numbers in the world
        self._windows: list[Window] = []

    def share(self, size: int, dtype: np.dtype) -> Window | None:
        """See `SharesMemory`."""
        window = open_window(self, size, dtype, self._meet)
        self._windows += [window] if window else []
        return window

    def close(self, window: Window) -> None:
        self._windows.remove(window)

    def _meet(self, what: str) -> None:
        with self.watch.over(what, self.all):
            self.comm.Barrier()

    def _in_window(self, array: Array) -> tuple[Window, slice] | None:
        """Where a flat array lies that the ranks share."""
        for window in self._windows:
            if part := window.part(array):
                return window, part
        return None

    def all_reduce(self, array: Array) -> None:
        if found := self._in_window(array):
            found[0].all_reduce(found[1])
            return
        host = backend.to_host(array)
        with self.watch.over("all_reduce", self.all):
            self.comm.Allreduce(MPI.IN_PLACE, host)
        _back(host, array)

    def reduce_scatter(self, array: Array, lengths: Sequence[int]) -> Array:
        if found := self._in_window(array):
            return found[0].reduce_scatter(found[1], lengths)
        host = backend.to_host(array)
        part = np.empty(lengths[self.rank], host.dtype)
        with self.watch.over("reduce_scatter", self.all):
            self.comm.Reduce_scatter(host, part, list(lengths))
        return backend.to_device(part)

    def all_gather(self, part: Array, out: Array, lengths: Sequence[int]) -> None:
        if found := self._in_window(out):
            found[0].all_gather(part, found[1], lengths)
            return
        host, mine = backend.to_host(out), backend.to_host(part)
        with self.watch.over("all_gather", self.all):
            self.comm.Allgatherv(np.array(mine), [host, list(lengths)])
        _back(host, out)

    def broadcast(self, array: Array, root: int = 0) -> None:
        host = backend.to_host(array)
        with self.watch.over("broadcast", self.all):
            self.comm.Bcast(host, root)
        _back(host, array)

    def send(self, array: Array, to: int) -> Sending:
        return _Request(self, np.ascontiguousarray(backend.to_host(array)), to)

    def receive(self, array: Array, source: int) -> None:
        host = backend.to_host(array)
        with self.watch.over("receive", [self.all[source]]):
            self.comm.Recv(host, source)
        _back(host, array)

    def agree(self, value: float) -> float:
        found = np.array([value], np.float64)
        with self.watch.over("agree", self.all):
            self.comm.Allreduce(MPI.IN_PLACE, found, MPI.MAX)
        return float(found[0])

    def split(self, color: int) -> Communicator:
        with self.watch.over("split", self.all):
            return MPIRank(self.comm.Split(color, self.rank), self.watch)


class _Request:
    """A message that MPI sends while the rank computes: two ranks that send to each other first, and wait, would wait for ever."""

    def __init__(self, ranks: MPIRank, host: np.ndarray, to: int) -> None:
        self.host, self.request = host, ranks.comm.Isend(host, to)  # MPI reads the array until `wait`
        self.watch, self.to = ranks.watch, ranks.all[to]

    def wait(self) -> None:
        with self.watch.over("send", [self.to]):
            self.request.Wait()


def _back(host: np.ndarray, array: Array) -> None:
    """What MPI has written into the host's copy of a GPU's array belongs into the array."""
    if host is not array:
        array[...] = backend.to_device(host)
