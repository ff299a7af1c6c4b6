"""The CPU: arrays are NumPy's, and the host is the device."""

import os
import threading
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from autograd.backend._common import Array, ArrayLike, DType, DTypeLike, message_only
from autograd.backend._erfc import ERFC_END as _ERFC_END
from autograd.backend._erfc import erfc_polynomial as _erfc_polynomial

__all__ = [
    "bfloat16", "check_backend", "checked_indices", "compute_dtype", "device_array", "erf", "foreign_device", "join", "memory_message",
    "out_of_memory_errors", "random_bits", "scatter_add", "synchronize", "to_device", "to_host", "xp",
]  # fmt: skip

xp = np
device_array = np.ndarray
out_of_memory_errors: tuple[type[BaseException], ...] = (MemoryError,)
bfloat16: DType | None = None  # the dtype, where arrays can have it


def check_backend(*, tf32: bool = False) -> str:
    """Describes the device; `_cupy.py` probes driver, device and a first kernel here. Raises ValueError for tf32."""
    if tf32:
        text = "AUTOGRAD_TF32: 1, expected 0 on the CPU, which has no TF32 arithmetic; unset it, or set AUTOGRAD_BACKEND=cupy"
        raise message_only(ValueError(text))
    return f"NumPy {np.__version__} on the CPU"


def compute_dtype(name: str) -> DType:
    """The dtype in which a model is to compute, float32, bfloat16 or float16. Raises ValueError, with the reason, where it cannot."""
    if name in ("bfloat16", "float16"):
        raise ValueError(
            f"dtype: {name}, expected float32 on the numpy backend, because NumPy has no {name} arithmetic: each step would be "
            "emulated, and slower than float32; leave --dtype out, or set AUTOGRAD_BACKEND=cupy on a machine with a GPU"
        )
    if name != "float32":
        raise ValueError(f"dtype: {name!r}, expected float32, bfloat16 or float16; leave it out for float32")
    return np.dtype(np.float32)


def foreign_device(x: object) -> str | None:
    """Describes an array that this backend cannot use because it is on another device; None for everything else."""
    return "an array on a GPU" if hasattr(x, "__cuda_array_interface__") else None


def memory_message(error: BaseException) -> str:
    """One line for an error out of `out_of_memory_errors`: what was asked, what is free, what to lower."""
    pages = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}) else None
    free = "" if pages is None else f"; {pages * os.sysconf('SC_PAGE_SIZE'):,} bytes are free"
    return f"memory: {str(error) or 'not enough'}{free}, expected room for one step; lower --micro-batch or the context, --n-positions"


def to_device(array: ArrayLike, dtype: DTypeLike | None = None) -> Array:
    """Host data (array, list, number) as an array of this backend; no copy when it already is one."""
    return np.asarray(array, dtype=dtype)


def to_host(array: ArrayLike) -> np.ndarray:
    """An array of this backend as a NumPy array; no copy here."""
    return np.asarray(array)


def synchronize() -> None:
    """Waits until the device is idle. The CPU is: a NumPy call returns when its work is done."""


def checked_indices(array: ArrayLike, n: int, *, what: str = "index", ignore: int | None = None) -> tuple[Array, int]:
    """Integers from the host, checked to lie in [0, n) and moved to the device.

    Entries equal to `ignore` pass unchecked and are not counted.
    Returns (int64 device array of the same shape, count of entries that are not ignored).
    Raises TypeError for anything but integers, ValueError naming the first entry out of range and its position.
    """
    host = np.asarray(array)
    if host.size == 0:
        host = host.astype(np.int64)
    if not np.issubdtype(host.dtype, np.integer):
        raise TypeError(f"{what}: {host.dtype} values, expected integers; convert with .astype(int)")
    host = host.astype(np.int64, copy=False)
    ignored = np.zeros(host.shape, bool) if ignore is None else host == ignore
    bad = ((host < 0) | (host >= n)) & ~ignored
    if bad.any():
        position = tuple(int(i) for i in np.argwhere(bad)[0])
        besides = "" if ignore is None else f" or {ignore} (ignored)"
        raise ValueError(
            f"{what}: {int(host[position])} at position {position}, expected 0 <= id < {n}{besides}; do the ids come from the tokenizer that the model was built for?"
        )
    return host, host.size - int(np.count_nonzero(ignored))


def join(parts: Sequence[Array], axis: int) -> Array:
    """Arrays joined along an axis; on a GPU without a copy where they already lie side by side."""
    return np.concatenate(parts, axis=axis)


def scatter_add(shape: Sequence[int], index: Array, values: Array) -> Array:
    """zeros(shape) with `values[i]` added to row `index[i]`; repeated rows accumulate, in a fixed order.

    index (N,) int, values (N, ...) -> (shape[0], ...).
    Sorting makes equal rows contiguous, so each row is one sum over a slice: far faster than np.add.at on rows.
    """
    total = np.zeros(shape, dtype=values.dtype)
    rows, sums = _sums_of_equal_rows(index, values)
    total[rows] = sums
    return total


def _sums_of_equal_rows(index: Array, values: Array) -> tuple[Array, Array]:
    """(the different numbers in `index` (N,), ascending; for each the sum of the values (N, ...) that have it, in their order)."""
    if index.size == 0:
        return index, values
    order = np.argsort(index, kind="stable")
    rows = index[order]
    starts = np.flatnonzero(np.concatenate(([True], rows[1:] != rows[:-1])))
    return rows[starts], np.add.reduceat(values[order], starts, axis=0, dtype=np.float32 if values.dtype == np.float16 else None)


def erf(x: Array) -> Array:
    """The error function of a float32 or float64 array, which NumPy lacks; absolute error at most 1e-14 or 3e-7."""
    z = np.minimum(np.abs(x), _ERFC_END)
    t = 1 / (1 + 0.5 * z)
    scaled_tail: Array = 0.0
    for coefficient in _erfc_polynomial(x.dtype):
        scaled_tail = scaled_tail * t + coefficient
    return np.copysign(1 - np.exp(-z * z) * scaled_tail, x)


def random_bits(seed: int, draw: int, start: int, n: int) -> Array:
    """n uniform 16-bit integers: elements start .. start + n of the stream numbered (seed, draw).

    A pure function of (seed, draw, element), so blocks, threads, recomputation and resume all see the same bits.
    PCG64 jumps to any 64-bit word in constant time (`advance`); a word holds four elements.
    Source  O'Neill 2014, PCG: A family of simple fast space-efficient statistically good algorithms, section 4.3.
    """
    if not hasattr(_thread, "source"):  # a generator per thread: making one for every draw costs ten times as much
        _thread.source = np.random.PCG64(0)
        _thread.generator = np.random.Generator(_thread.source)
    source: np.random.PCG64 = _thread.source
    source.state = _start_of(seed, draw)
    first, skip = divmod(start, 4)
    if first:
        source.advance(first)
    n_words = -(-(skip + n) // 4)
    words = _thread.generator.integers(0, 2**64, size=n_words, dtype=np.uint64)
    return words.view(np.uint16)[skip : skip + n]


_thread = threading.local()


_start_of = lru_cache(maxsize=256)(lambda seed, draw: np.random.PCG64([seed, draw]).state)
"""PCG64's state at the start of a stream; blocks and the backward pass need the same one again."""
