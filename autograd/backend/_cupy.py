"""NVIDIA GPUs through CuPy. Same names and arguments as `_numpy.py`; imported only when AUTOGRAD_BACKEND=cupy asks for it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from autograd.backend import _numpy

_BACK_TO_CPU = "unset AUTOGRAD_BACKEND (or set it to numpy) to run on the CPU"
_INSTALL = 'pip install "tinygpt[cuda13]" (CUDA 13 drivers) or pip install "tinygpt[cuda12]"'


class BackendError(RuntimeError):
    """AUTOGRAD_BACKEND=cupy was asked for and cannot run; the message names the step that failed."""


def _failed(step: str, cause: object, fix: str) -> BackendError:
    return BackendError(f"AUTOGRAD_BACKEND=cupy: {step} failed ({cause}), expected a working CUDA GPU; {fix}; {_BACK_TO_CPU}")


try:
    import cupy as xp
except ImportError as error:
    raise _failed("step 1, `import cupy`,", error, _INSTALL) from error

device_array = xp.ndarray
out_of_memory_errors: tuple[type[BaseException], ...] = (MemoryError, xp.cuda.memory.OutOfMemoryError)


def check_backend() -> str:
    """Probes CuPy before anything uses it: driver, device count, first kernel. Raises BackendError naming the step that failed."""
    try:
        n_devices = xp.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises several unrelated types for a missing or old driver
        fix = "install or update the NVIDIA driver (`nvidia-smi` must work), or the CuPy build for your CUDA: " + _INSTALL
        raise _failed("step 2, the CUDA driver,", error, fix) from error
    if n_devices == 0:
        raise _failed("step 3, counting devices,", "no CUDA device is visible", "check `nvidia-smi` and CUDA_VISIBLE_DEVICES")
    try:
        ones = xp.ones((2, 2), dtype=xp.float32)
        correct = float((ones @ ones + ones).sum()) == 12.0
    except Exception as error:
        raise _failed("step 4, the first kernel,", error, "reinstall CuPy for your CUDA version: " + _INSTALL) from error
    if not correct:
        raise _failed("step 4, the first kernel,", "it computed a wrong sum", "check the device with `nvidia-smi -q`")
    device = xp.cuda.runtime.getDeviceProperties(xp.cuda.Device().id)["name"].decode()
    return f"CuPy {xp.__version__} on {device}"


def to_device(array: Any, dtype: Any = None) -> Any:
    """Host data (array, list, number) as an array of this backend; no copy when it already is one."""
    return xp.asarray(array, dtype=dtype)


def to_host(array: Any) -> np.ndarray:
    """An array of this backend as a NumPy array; waits for the device and copies."""
    return xp.asnumpy(array)


def synchronize() -> None:
    """Waits until the device is idle."""
    xp.cuda.get_current_stream().synchronize()


def indices(array: Any, n: int, *, what: str = "index", ignore: int | None = None) -> tuple[Any, int]:
    """Integers from the host, checked to lie in [0, n) and moved to the device; see `_numpy.indices`.

    The check is on the host because CuPy wraps an index out of range in silence.
    """
    host, counted = _numpy.indices(array, n, what=what, ignore=ignore)
    return xp.asarray(host), counted


def scatter_add(shape: Sequence[int], index: Any, values: Any) -> Any:
    """zeros(shape) with `values[i]` added to row `index[i]`; repeated rows accumulate, in no fixed order (atomic adds)."""
    total = xp.zeros(shape, dtype=values.dtype)
    xp.add.at(total, index, values)
    return total


def random_bits(seed: int, draw: int, start: int, n: int) -> Any:
    """n uniform 16-bit integers: elements start .. start + n of the stream numbered (seed, draw).

    A pure function of (seed, draw, element): a 64-bit key from the host, mixed with the element's number on the device by two
    rounds of a multiply-xorshift hash. Other bits than the CPU's, by design.
    Source  Steele, Lea and Flood 2014, Fast splittable pseudorandom number generators, figure 15 (the variant-13 mixer).
    """
    key = int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0])
    z = xp.arange(start, start + n, dtype=xp.uint64) * xp.uint64(0x9E3779B97F4A7C15) + xp.uint64(key)
    z = (z ^ (z >> xp.uint64(30))) * xp.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> xp.uint64(27))) * xp.uint64(0x94D049BB133111EB)
    return (z >> xp.uint64(48)).astype(xp.uint16)
