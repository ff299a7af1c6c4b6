"""NVIDIA GPUs through CuPy. Same names and arguments as `_numpy.py`; imported only when AUTOGRAD_BACKEND=cupy asks for it."""

import os
from collections.abc import Sequence

import numpy as np

from autograd.backend import _numpy
from autograd.backend._common import Array, ArrayLike, DType, DTypeLike, message_only

__all__ = _numpy.__all__

_BACK_TO_CPU = "unset AUTOGRAD_BACKEND (or set it to numpy) to run on the CPU"
_INSTALL = 'pip install "tinygpt[cuda13]" (CUDA 13 drivers) or pip install "tinygpt[cuda12]"'


class BackendError(RuntimeError):
    """AUTOGRAD_BACKEND=cupy cannot run; the message names the step that failed."""


def _failed(step: str, cause: object, fix: str) -> BackendError:
    return message_only(BackendError(f"AUTOGRAD_BACKEND=cupy: {step} failed ({cause}), expected a working CUDA GPU; {fix}; {_BACK_TO_CPU}"))


try:
    import cupy as xp
except ModuleNotFoundError as error:
    raise _failed("step 1, `import cupy`,", error, _INSTALL) from error
except ImportError as error:  # CuPy is there, and a library that it loads is not
    raise _failed("step 1, `import cupy`,", error, "this CuPy is broken or for another CUDA; reinstall it: " + _INSTALL) from error

try:
    import ml_dtypes

    bfloat16: DType | None = np.dtype(ml_dtypes.bfloat16)  # CuPy has bfloat16 where this package is
except ImportError:
    bfloat16 = None

device_array = xp.ndarray
out_of_memory_errors: tuple[type[BaseException], ...] = (MemoryError, xp.cuda.memory.OutOfMemoryError)

_AMPERE = 8  # the first compute capability with bfloat16 and TF32 units
_CUBLAS_TF32_TENSOR_OP_MATH = 3  # cublas_api.h


def check_backend(*, tf32: bool = False) -> str:
    """Probes CuPy before anything uses it: driver, device count, first kernel. Raises BackendError naming the step that failed.

    tf32   lets float32 matrix products round their inputs to TF32 (10 bits of mantissa), for several times the speed
    """
    try:
        n_devices = xp.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises several unrelated types for a missing or old driver
        raise _failed("step 2, the CUDA driver,", *_driver_problem(error)) from error
    if n_devices == 0:
        raise _failed("step 3, counting devices,", "no CUDA device is visible", "check `nvidia-smi` and CUDA_VISIBLE_DEVICES")
    xp.cuda.Device(_local_rank() % n_devices).use()  # ranks of one machine take turns through its GPUs
    if tf32:
        os.environ["CUPY_TF32"] = "1"  # CuPy reads it at its first product
    try:
        ones = xp.ones((2, 2), dtype=xp.float32)
        correct = float((ones @ ones + ones).sum()) == 12.0
    except out_of_memory_errors as error:
        raise _failed("step 4, the first kernel,", error, "another process fills the GPU (`nvidia-smi` lists them); stop it") from error
    except Exception as error:
        raise _failed("step 4, the first kernel,", error, "reinstall CuPy for your CUDA version: " + _INSTALL) from error
    if not correct:
        raise _failed("step 4, the first kernel,", "it computed a wrong sum", "check the device with `nvidia-smi -q`")
    name, capability = _device()
    if tf32:
        if capability < _AMPERE:
            raise _failed("AUTOGRAD_TF32=1", f"{name} has compute capability {capability}, TF32 needs {_AMPERE}", "unset AUTOGRAD_TF32")
        xp.cuda.cublas.setMathMode(xp.cuda.get_cublas_handle(), _CUBLAS_TF32_TENSOR_OP_MATH)  # for products of stacks of matrices
    return f"CuPy {xp.__version__} on {name}{', float32 products in TF32' if tf32 else ''}"


def _local_rank() -> int:
    """Which of the processes that a launcher has started on this machine this one is; 0 without."""
    names = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), 0)


def _driver_problem(error: Exception) -> tuple[object, str]:
    """(cause, fix) for a failed call of the driver: none there, or older than this CuPy."""
    nothing = (error, "install or update the NVIDIA driver (`nvidia-smi` must work), or the CuPy build for your CUDA: " + _INSTALL)
    try:
        driver, built = xp.cuda.runtime.driverGetVersion(), xp.cuda.runtime.runtimeGetVersion()
    except Exception:
        return nothing
    if "NoDevice" in str(error):
        return error, "the driver works and sees no GPU: check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
    if driver == 0:
        return f"no NVIDIA driver is installed: {error}", nothing[1]
    if driver < built:
        versions = f"the driver offers CUDA {_version(driver)}, this CuPy is built for {_version(built)}"
        return f"{versions}: {error}", "install the CuPy build for your driver's CUDA, or a newer driver: " + _INSTALL
    return nothing


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _device() -> tuple[str, int]:
    """(name, major compute capability) of the current device."""
    found = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)
    return found["name"].decode(), found["major"]


def compute_dtype(name: str) -> DType:
    """The dtype in which a model is to compute, float32, bfloat16 or float16. Raises ValueError, with the reason, where it cannot."""
    if name != "bfloat16":
        return np.dtype(name) if name in ("float32", "float16") else _numpy.compute_dtype(name)
    if bfloat16 is None:
        raise ValueError(
            "dtype: bfloat16, expected float32 or float16, because CuPy has no bfloat16 without the package ml_dtypes; pip install ml_dtypes"
        )
    device, capability = _device()
    if capability < _AMPERE:
        raise ValueError(
            f"dtype: bfloat16, expected float32 or float16 on {device} (compute capability {capability}), because bfloat16 units begin with "
            f"{_AMPERE}; take --dtype float16, or leave it out"
        )
    return bfloat16


def foreign_device(x: object) -> str | None:
    """Describes an array that this backend cannot use because it is on another device; None for everything else."""
    return "a NumPy array on the host" if isinstance(x, np.ndarray) else None


def memory_message(error: BaseException) -> str:
    """One line for an error out of `out_of_memory_errors`: what was asked, what is free, what to lower."""
    if not isinstance(error, xp.cuda.memory.OutOfMemoryError):
        return _numpy.memory_message(error)  # the host's memory
    free, total = xp.cuda.runtime.memGetInfo()
    return f"GPU memory: {error} {free:,} of {total:,} bytes are free, expected room for one step; lower --micro-batch or the context, --n-positions"


def to_device(array: ArrayLike, dtype: DTypeLike | None = None) -> Array:
    """Host data (array, list, number) as an array of this backend; no copy when it already is one."""
    return xp.asarray(array, dtype=dtype)


def to_host(array: ArrayLike) -> np.ndarray:
    """An array of this backend as a NumPy array; waits for the device and copies."""
    return np.asarray(xp.asnumpy(array))


def synchronize() -> None:
    """Waits until the device is idle."""
    xp.cuda.get_current_stream().synchronize()


def checked_indices(array: ArrayLike, n: int, *, what: str = "index", ignore: int | None = None) -> tuple[Array, int]:
    """Integers from the host, checked to lie in [0, n) and moved to the device; see `_numpy.checked_indices`.

    The check is on the host because CuPy wraps an index out of range in silence.
    """
    if isinstance(array, device_array):
        raise TypeError(f"{what}: an array on the device, expected host integers, which are checked before they move; pass those")
    host, counted = _numpy.checked_indices(array, n, what=what, ignore=ignore)
    return xp.asarray(host), counted


def join(parts: Sequence[Array], axis: int) -> Array:
    """As `_numpy.join`. The gradients of q, k and v, say, are parts of one array, which this gives back."""
    first, length = parts[0], 0
    for part in parts:
        here = first.data.ptr + length * first.strides[axis]
        if part.data.mem is not first.data.mem or part.data.ptr != here or part.strides != first.strides:
            return xp.concatenate(parts, axis=axis)
        length += part.shape[axis]
    shape = tuple(length if i == axis % first.ndim else n for i, n in enumerate(first.shape))
    return xp.ndarray(shape, first.dtype, first.data, first.strides)


def scatter_add(shape: Sequence[int], index: Array, values: Array) -> Array:
    """As `_numpy.scatter_add`.

    Sorting makes equal rows contiguous. Then doubling steps: after the one of length k, each position holds the sum of up to 2k
    positions of its row, itself the last, so after log2 N steps the last position of a row holds the row's sum. No atomic adds, whose
    order differs from run to run, and no shape that depends on the data, for which the host would have to wait.
    Source  Hillis and Steele 1986, Data parallel algorithms, CACM 29(12), "sum of all prefixes".
    """
    if index.size == 0:
        return xp.zeros(shape, dtype=values.dtype)
    order = xp.argsort(index, kind="stable")
    rows = index[order]
    sums = values[order].reshape(rows.size, values.size // rows.size).astype(xp.float32 if values.dtype.itemsize == 2 else values.dtype)
    k = 1
    while k < rows.size:
        same_row = (rows[k:] == rows[:-k])[:, None]
        sums[k:] += xp.where(same_row, sums[:-k], 0)
        k *= 2
    ends = xp.searchsorted(rows, xp.arange(shape[0]), side="right")  # (V,): one past the last position of each row
    starts = xp.searchsorted(rows, xp.arange(shape[0]), side="left")
    total = xp.where((ends > starts)[:, None], sums[ends - 1], 0)
    return total.reshape(shape).astype(values.dtype, copy=False)


def erf(x: Array) -> Array:
    """The error function of a float32 or float64 array."""
    from cupyx.scipy import special  # here, because it takes a while and few models need it

    return special.erf(x)


def random_bits(seed: int, draw: int, start: int, n: int) -> Array:
    """n uniform 16-bit integers: elements start .. start + n of the stream numbered (seed, draw).

    A pure function of (seed, draw, element): a 64-bit key from the host, mixed with a quarter of the element's number on the device
    by two rounds of a multiply-xorshift hash, which gives the bits of four elements. Other bits than the CPU's, by design.
    Source  Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators, figure 15 (the variant-13 mixer).
    """
    key = int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0])
    first = start // 4
    z = xp.arange(first, -(-(start + n) // 4), dtype=xp.uint64) * xp.uint64(0x9E3779B97F4A7C15) + xp.uint64(key)
    z = (z ^ (z >> xp.uint64(30))) * xp.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> xp.uint64(27))) * xp.uint64(0x94D049BB133111EB)
    return (z ^ (z >> xp.uint64(31))).view(xp.uint16)[start - 4 * first :][:n]
