"""Ranks with a GPU each, whose arrays NCCL moves from GPU to GPU. Started over another communicator, MPI's, which keeps the host's arrays.

    AUTOGRAD_BACKEND=cupy mpiexec -n 8 python -m mpi4py examples/pretrain.py

NCCL joins processes that know one id: rank 0 makes it and MPI brings it to the others. CuPy's `cupy.cuda.nccl` takes addresses, numbers of
elements and a number for the dtype, so bfloat16, which `cupyx.distributed` refuses, is like any other. NCCL has no operations on parts of
different lengths: a group of reductions, one to each rank, is a reduce-scatter, and a group of broadcasts an all-gather.

It was never run on a device: a strict stand-in of CuPy's interface holds it to the laws of the other communicators.

Source  NVIDIA, NCCL 2.27 documentation, "Collective operations", "Group calls" and "Point-to-point communication".
"""

import contextlib
import warnings
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from autograd import Array, backend
from tinygpt.errors import InvalidInput
from tinygpt.models.protocols import Communicator, Sending

_DTYPES = {"float32": "NCCL_FLOAT32", "float64": "NCCL_FLOAT64", "float16": "NCCL_FLOAT16", "bfloat16": "NCCL_BFLOAT16",
           "int32": "NCCL_INT32", "int64": "NCCL_INT64", "uint8": "NCCL_UINT8", "int8": "NCCL_INT8"}  # fmt: skip
_ID_BYTES = 128


class NCCLRank:
    """A `Communicator` over NCCL for the device's arrays, and over `host` for the host's and for what ranks agree on.

    Each operation returns when the device has done it, so that a rank that waits is one that `tinygpt.parallel.watch` sees waiting.
    Messages to higher ranks and to lower ones have communicators of their own: in one, two neighbors that both send first would wait for
    each other for ever, since a message leaves when it is received.
    """

    kind = "NCCL"

    def __init__(self, host: Communicator) -> None:
        self.host, self.rank, self.size, self.here = host, host.rank, host.size, host.here
        self.nccl = _cuda().nccl
        self._all, self._up, self._down = self._join(), self._join(), self._join()
        self._sending, self._summing = (_cuda().Stream(non_blocking=True) for _ in range(2))

    def _join(self) -> Array:
        """A communicator of CuPy's: all ranks make it at the same time."""
        number = np.zeros(_ID_BYTES, np.int8)
        if self.rank == 0:
            number[:] = self.nccl.get_unique_id()
        self.host.broadcast(number)
        with self._waiting("joining NCCL"):
            return self.nccl.NcclCommunicator(self.size, tuple(number.tolist()), self.rank)

    def _waiting(self, what: str) -> contextlib.AbstractContextManager[None]:
        watch = getattr(self.host, "watch", None)
        return watch.over(what, getattr(self.host, "all", ())) if watch else contextlib.nullcontext()

    def _dtype(self, array: Array) -> int:
        name = str(array.dtype)
        if name not in _DTYPES:
            raise InvalidInput(
                f"NCCL: an array of dtype {name}, expected one of {', '.join(_DTYPES)}; convert it, or send it from the host"
            )
        return int(getattr(self.nccl, _DTYPES[name]))

    def _finish(self, what: str) -> None:
        with self._waiting(what):
            _cuda().get_current_stream().synchronize()

    def _stream(self) -> int:
        return int(_cuda().get_current_stream().ptr)

    def all_reduce(self, array: Array) -> None:
        if isinstance(array, np.ndarray):
            self.host.all_reduce(array)
        elif array.size:
            at = _address(array)
            self._all.allReduce(at, at, array.size, self._dtype(array), self.nccl.NCCL_SUM, self._stream())
            self._finish("all_reduce")

    def begin_all_reduce(self, array: Array) -> Sending:
        """See `SumsInBackground`."""
        if array.size:
            at = _address(array)
            self._summing.wait_event(_cuda().get_current_stream().record())  # what computes the array
            self._all.allReduce(at, at, array.size, self._dtype(array), self.nccl.NCCL_SUM, self._summing.ptr)
        return _OnItsWay(self, array, self._summing, "all_reduce")

    def reduce_scatter(self, array: Array, lengths: Sequence[int]) -> Array:
        if isinstance(array, np.ndarray):
            return self.host.reduce_scatter(array, lengths)
        part, each = backend.xp.empty(lengths[self.rank], array.dtype), array.itemsize
        with self._grouped("reduce_scatter"):
            for rank, (start, length) in enumerate(zip(accumulate(lengths, initial=0), lengths, strict=False)):
                at = _address(array) + start * each
                if length:
                    to = _address(part) if rank == self.rank else at  # read on the rank that gets it alone
                    self._all.reduce(at, to, length, self._dtype(array), self.nccl.NCCL_SUM, rank, self._stream())
        return part

    def all_gather(self, part: Array, out: Array, lengths: Sequence[int]) -> None:
        if isinstance(out, np.ndarray):
            self.host.all_gather(part, out, lengths)
            return
        with self._grouped("all_gather"):
            for rank, (start, length) in enumerate(zip(accumulate(lengths, initial=0), lengths, strict=False)):
                to = _address(out) + start * out.itemsize
                if length:
                    at = _address(part) if rank == self.rank else to
                    self._all.broadcast(at, to, length, self._dtype(out), rank, self._stream())

    def broadcast(self, array: Array, root: int = 0) -> None:
        if isinstance(array, np.ndarray):
            self.host.broadcast(array, root)
        elif array.size:
            at = _address(array)
            self._all.broadcast(at, at, array.size, self._dtype(array), root, self._stream())
            self._finish("broadcast")

    def send(self, array: Array, to: int) -> Sending:
        if isinstance(array, np.ndarray):
            return self.host.send(array, to)
        array = backend.xp.ascontiguousarray(array)
        self._finish("send")  # the stream for sending does not wait for what computes the array
        line = self._up if to > self.rank else self._down
        if array.size:
            line.send(_address(array), array.size, self._dtype(array), to, self._sending.ptr)
        return _OnItsWay(self, array, self._sending, "send")

    def receive(self, array: Array, source: int) -> None:
        if isinstance(array, np.ndarray):
            self.host.receive(array, source)
        elif array.size:
            line = self._up if source < self.rank else self._down
            line.recv(_address(array), array.size, self._dtype(array), source, self._stream())
            self._finish("receive")

    def agree(self, value: float) -> float:
        return self.host.agree(value)

    def split(self, color: int) -> Communicator:
        return NCCLRank(self.host.split(color))

    def _grouped(self, what: str) -> contextlib.AbstractContextManager[object]:
        """Calls within are one operation."""
        stack = contextlib.ExitStack()
        stack.callback(self._finish, what)
        stack.callback(self.nccl.groupEnd)
        self.nccl.groupStart()
        return stack


def _cuda() -> Array:
    """CuPy's module of that name: only here is it known that the backend is CuPy's."""
    return vars(backend.xp)["cuda"]


def _address(array: Array) -> int:
    return int(array.data.ptr)


class _OnItsWay:
    """A message or a sum that the device moves while it computes."""

    def __init__(self, ranks: NCCLRank, array: Array, stream: Array, what: str) -> None:
        self.ranks, self.array, self.stream, self.what = ranks, array, stream, what  # the array is read until `wait`

    def wait(self) -> None:
        with self.ranks._waiting(self.what):
            self.stream.synchronize()


def over_gpus(host: Communicator) -> Communicator:
    """NCCL's ranks, or, with a warning that says why, `host`'s, whose arrays pass through the host's memory."""
    cuda = _cuda()
    n_devices = cuda.runtime.getDeviceCount()
    reason = ""
    if not cuda.nccl.available:
        reason = "CuPy finds no NCCL; pip install nvidia-nccl-cu13 (or -cu12)"
    elif host.here > n_devices:
        reason = f"{host.here} ranks share {n_devices} GPUs, and NCCL wants one for each; start {n_devices} on this machine"
    if not host.agree(float(bool(reason))):
        return NCCLRank(host)
    if reason and (host.rank == 0 or n_devices):
        warnings.warn(f"arrays pass through the host: {reason}", stacklevel=2)
    return host
