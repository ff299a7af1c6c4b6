"""Loads CUDA kernels: each `.cu` file becomes one module per storage type, compiled when a kernel of it first runs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autograd.backend import Array, DType, xp
from autograd.ops.matmul import rows_of as rows_of

if TYPE_CHECKING:
    import cupy

HERE = Path(__file__).parent

STORAGE = {"float32": "float", "bfloat16": "bf16", "float16": "f16"}
"""The dtypes that kernels read and write, by their names in `common.cuh`."""

Constants = tuple[tuple[str, int], ...]
WARP = 32
MAX_THREADS = 1024
_FLAT_THREADS = 256
# At most this many blocks for flat arrays; each thread then takes several steps. Fixed: the bits of sums are the same on every device.
_FLAT_BLOCKS = 4096


def source(file: str) -> str:
    """The text of a `.cu` file with `common.cuh` pasted in, so that a compiler's cache, which knows the text alone, sees both."""
    include, common = '#include "common.cuh"\n', (HERE / "common.cuh").read_text(encoding="utf-8").replace("#pragma once\n", "\n")
    before, found, after = (HERE / file).read_text(encoding="utf-8").partition(include)
    assert found, f"{file} includes common.cuh"
    next_line = before.count("\n") + 2
    return f'{before}#line 1 "common.cuh"\n{common}#line {next_line} "{file}"\n{after}'


def options(storage: str, parameter: str, constants: Constants = ()) -> tuple[str, ...]:
    """Compiler options for the element types, `storage` and `parameter` being dtype names, and for constants of the kernel."""
    types = (f"-DSTORAGE={STORAGE[storage]}", f"-DPARAMETER={STORAGE[parameter]}")
    return ("-std=c++17", *types, *(f"-D{name}={value}" for name, value in constants))


def raw_module(code: str, compile_options: tuple[str, ...]) -> "cupy.RawModule":
    """A module of the CUDA driver, by CuPy; NVRTC compiles it when its first kernel is needed."""
    import cupy

    return cupy.RawModule(code=code, options=compile_options)


@cache
def _module(file: str, storage: str, parameter: str, constants: Constants) -> "cupy.RawModule":
    return raw_module(source(file), options(storage, parameter, constants))


@cache
def kernel(file: str, name: str, storage: str = "float32", parameter: str | None = None, constants: Constants = ()) -> Callable[..., None]:
    """The kernel `name` of `file` for arrays of dtype `storage` (and parameters of dtype `parameter`, by default the same).

    constants   (name, value) pairs that the file leaves to its caller, fixed when it is compiled

    Raises RuntimeError, with the compiler's message, if it does not compile or load: there is no silent fallback.
    """
    try:
        return _module(file, storage, parameter or storage, constants).get_function(name)  # type: ignore[no-any-return]
    except Exception as error:  # a compiler's, driver's or linker's own type
        raise RuntimeError(
            f"CUDA kernel {name} of {file} for {storage}: not loaded ({error}), expected it to compile for this device; "
            "AUTOGRAD_KERNELS=reference runs without kernels; is the CUDA toolkit of CuPy complete?"
        ) from error


@cache
def name_of(dtype: DType) -> str:
    """`dtype.name`, which is slow: NumPy puts it together at each call."""
    return dtype.name


@cache
def is_stored(dtype: DType) -> bool:
    """True if kernels take arrays of this dtype."""
    return dtype.name in STORAGE


def stored_as(dtype: DType) -> str:
    """The name in `common.cuh` of a dtype that kernels take."""
    return STORAGE[dtype.name]


def takes(*arrays: Array) -> bool:
    """True if kernels take these arrays: one dtype of STORAGE, contiguous, not empty, not 0-d. Any alignment will do."""
    first = arrays[0].dtype
    return is_stored(first) and all(a.dtype == first and a.flags.c_contiguous and a.size > 0 and a.ndim > 0 for a in arrays)


def width(dtype: DType) -> int:
    """Elements in 16 bytes: what a thread takes at a time."""
    return 16 // dtype.itemsize


def row_threads(n_columns: int, dtype: DType) -> int:
    """Threads of a block that works on one row: 16 bytes each if the row is short enough, a multiple of WARP, at most MAX_THREADS."""
    wanted = -(-n_columns // width(dtype))
    return min(-(-wanted // WARP) * WARP, MAX_THREADS)


def flat_grid(n: int, dtype: DType) -> tuple[tuple[int], tuple[int]]:
    """(grid, block) for n elements of a flat array."""
    return (min(-(-n // (_FLAT_THREADS * width(dtype))), _FLAT_BLOCKS),), (_FLAT_THREADS,)


def contiguous(array: Array) -> Array:
    """The array itself, or a contiguous copy; kernels ignore strides."""
    return array if array.flags.c_contiguous else xp.ascontiguousarray(array)


# Arguments travel by their bytes, so each has the exact type of the kernel's parameter: int, long long, unsigned, float.
i32, i64, u32, u64, f32 = np.int32, np.int64, np.uint32, np.uint64, np.float32
