"""The fake `cupy` module: what api.txt lists, as far as NumPy can imitate it. See tests/fake_cupy/__init__.py."""

import threading
import types
from typing import Any, ClassVar

import numpy as np
from cupy import _functions, _nccl
from cupy._array import API, bfloat16, ndarray, synchronize
from cupy._functions import array, asarray, asnumpy, matmul, ufunc, where

__version__ = f"{API.version} (fake: NumPy {np.__version__} inside)"
__all__ = ["array", "asarray", "asnumpy", "bfloat16", "cuda", "matmul", "ndarray", "ufunc", "where"]


class OutOfMemoryError(MemoryError):
    """As `cupy.cuda.memory.OutOfMemoryError`."""

    def __init__(self, size: int, total: int, limit: int = 0) -> None:
        super().__init__(f"Out of memory allocating {size:,} bytes (allocated so far: {total:,} bytes).")


class Device:
    """Number 0, the only one."""

    compute_capability = "90"
    cublas_handle = 0
    attributes: ClassVar = {
        "MultiProcessorCount": 132,
        "MaxSharedMemoryPerBlockOptin": 232_448,
        "MaxSharedMemoryPerMultiprocessor": 233_472,
    }

    def __init__(self, device: int = 0) -> None:
        assert device == 0
        self.id = device

    def use(self) -> "Device":
        return self

    def synchronize(self) -> None:
        synchronize()


class _CurrentStream(_nccl.Stream):
    """Each thread's own: ranks are threads here."""

    def synchronize(self) -> None:
        synchronize()
        super().synchronize()


_free_bytes, _total_bytes = 5 * 2**30, 8 * 2**30
cuda = types.SimpleNamespace(
    Device=Device,
    is_available=lambda: True,
    get_current_stream=lambda: _CurrentStream(ptr=threading.get_ident()),
    Stream=_nccl.Stream,
    nccl=_nccl,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    cublas=types.SimpleNamespace(CUBLAS_TF32_TENSOR_OP_MATH=3, setMathMode=lambda handle, mode: None),
    get_cublas_handle=lambda: 0,
    runtime=types.SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda device: {"name": b"fake device", "major": 9, "minor": 0},
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        memGetInfo=lambda: (_free_bytes, _total_bytes),
    ),
)


def __getattr__(name: str) -> Any:
    if name in API.ufuncs:
        found: Any = ufunc(name)
    elif name in API.functions:
        found = _functions.function(name)
    elif name in API.others and hasattr(np, name):
        found = getattr(np, name)  # dtypes and constants
    elif name in API.others:
        raise AttributeError(f"the fake device does not imitate cupy.{name}")
    else:
        raise AttributeError(f"module 'cupy' has no attribute {name!r}")
    globals()[name] = found
    return found
