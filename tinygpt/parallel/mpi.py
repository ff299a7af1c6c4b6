"""Ranks that `mpiexec` has started, on one machine or on many.

    mpiexec -n 4 python -m mpi4py examples/pretrain.py

Always with `-m mpi4py`: it ends the job when one rank fails. Arrays are sent as they are, never pickled. GPUs' arrays pass through the
host.
"""

from collections.abc import Sequence

import numpy as np
from mpi4py import MPI

from autograd import Array, backend
from tinygpt.models.protocols import Communicator, Sending


class MPIRank:
    """A `Communicator` over MPI: this process among those of a communicator of mpi4py's, by default all."""

    kind = "MPI"

    def __init__(self, comm: MPI.Comm | None = None) -> None:
        self.comm = MPI.COMM_WORLD if comm is None else comm
        self.rank, self.size = self.comm.Get_rank(), self.comm.Get_size()
        self.here = self.comm.Split_type(MPI.COMM_TYPE_SHARED).Get_size()

    def all_reduce(self, array: Array) -> None:
        host = backend.to_host(array)
        self.comm.Allreduce(MPI.IN_PLACE, host)
        _back(host, array)

    def reduce_scatter(self, array: Array, lengths: Sequence[int]) -> Array:
        host = backend.to_host(array)
        part = np.empty(lengths[self.rank], host.dtype)
        self.comm.Reduce_scatter(host, part, list(lengths))
        return backend.to_device(part)

    def all_gather(self, part: Array, out: Array, lengths: Sequence[int]) -> None:
        host, mine = backend.to_host(out), backend.to_host(part)
        self.comm.Allgatherv(np.array(mine), [host, list(lengths)])
        _back(host, out)

    def broadcast(self, array: Array, root: int = 0) -> None:
        host = backend.to_host(array)
        self.comm.Bcast(host, root)
        _back(host, array)

    def send(self, array: Array, to: int) -> Sending:
        return _Request(np.ascontiguousarray(backend.to_host(array)), self.comm, to)

    def receive(self, array: Array, source: int) -> None:
        host = backend.to_host(array)
        self.comm.Recv(host, source)
        _back(host, array)

    def agree(self, value: float) -> float:
        found = np.array([value], np.float64)
        self.comm.Allreduce(MPI.IN_PLACE, found, MPI.MAX)
        return float(found[0])

    def split(self, color: int) -> Communicator:
        return MPIRank(self.comm.Split(color, self.rank))


class _Request:
    """A message that MPI sends while the rank computes: two ranks that send to each other first, and wait, would wait for ever."""

    def __init__(self, host: np.ndarray, comm: MPI.Comm, to: int) -> None:
        self.host, self.request = host, comm.Isend(host, to)  # MPI reads the array until `wait`

    def wait(self) -> None:
        self.request.Wait()


def _back(host: np.ndarray, array: Array) -> None:
    """What MPI has written into the host's copy of a GPU's array belongs into the array."""
    if host is not array:
        array[...] = backend.to_device(host)
