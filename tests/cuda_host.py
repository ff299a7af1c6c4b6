"""CUDA kernels on the host: a stand-in for `cupy.RawModule` that compiles with g++ over `cuda_host.h` and runs on NumPy's memory.

It runs the very text that NVRTC compiles, thread by thread with real barriers, and is as strict as it can be: an argument must
have the exact size of the kernel's parameter, arrays must be contiguous, blocks must be whole warps.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HEADER = Path(__file__).with_name("cuda_host.h")
COMPILER = shutil.which("g++")

launched: set[str] = set()
"""Names of the kernels that have run."""

descending = False
"""The order of the threads between barriers."""


@functools.cache
def _directory() -> tuple[Path, Any]:
    """(where compiled kernels lie, what removes them at exit); CUDA_HOST_CACHE names a place that several processes share."""
    if os.environ.get("CUDA_HOST_CACHE"):
        return Path(os.environ["CUDA_HOST_CACHE"]), None
    temporary = tempfile.TemporaryDirectory(prefix="cuda-host-")
    return Path(temporary.name), temporary


@functools.cache
def _library(code: str, options: tuple[str, ...]) -> ctypes.CDLL:
    if COMPILER is None:
        raise RuntimeError("CUDA on the host: no g++, expected one on PATH; install it, or skip these tests")
    names = re.findall(r'extern "C" __global__ (?:__launch_bounds__\(.*?\) )?void (\w+)\(', code)
    assert names and len(names) == code.count("__global__"), "every kernel is found by its name"
    dynamic = re.sub(r"extern __shared__ (\w+) (\w+)\[\];", r"\1* const \2 = (\1*)host::dynamic_shared;", code)
    text = f'#include "{HEADER}"\n{dynamic}\n' + "".join(f"HOST_LAUNCHER({name})\n" for name in names)
    library = _directory()[0] / (hashlib.sha256((text + " ".join(options)).encode()).hexdigest()[:16] + ".so")
    if not library.exists():
        mine = library.with_suffix(f".{os.getpid()}")
        strict = "-O1 -w -shared -fPIC -U_FORTIFY_SOURCE -fno-strict-aliasing -ffp-contract=off".split()
        command = [COMPILER, *options, *strict, "-x", "c++", "-", "-o", str(mine)]
        done = subprocess.run(command, input=text, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"CUDA on the host: {done.stderr}")
        mine.replace(library)
    return ctypes.CDLL(str(library))


class RawModule:
    """`cupy.RawModule(code=..., options=...)` for the host."""

    def __init__(self, code: str, options: Sequence[str] = ()) -> None:
        self.code, self.options = code, tuple(options)

    def get_function(self, name: str) -> Callable[..., None]:
        function = getattr(_library(self.code, self.options), f"launch_{name}")

        def kernel(grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], *, shared_mem: int = 0) -> None:
            launched.add(name)
            allowed = max(48 * 1024, kernel.max_dynamic_shared_size_bytes)  # type: ignore[attr-defined]
            if shared_mem > allowed:
                raise RuntimeError(f"{name}: {shared_mem} bytes of shared memory, expected at most {allowed}; ask for more first")
            values = [_value(argument, i, name) for i, argument in enumerate(arguments)]
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(v) for v in values))
            sizes = (ctypes.c_int * len(values))(*(ctypes.sizeof(v) for v in values))
            (threads,) = block
            dimensions = (ctypes.c_uint * 2)(*(*grid, 1)[:2])
            code = function(dimensions, ctypes.c_uint(threads), pointers, sizes, len(values), int(descending), ctypes.c_uint(shared_mem))
            if code:
                causes = {
                    1: "deadlock, some threads never reach a barrier",
                    -1000: "wrong number of arguments",
                    -1001: f"{threads} threads",
                    -1002: f"{shared_mem} bytes of shared memory",
                    -1003: "written outside of the shared memory that was asked for",
                }
                raise RuntimeError(f"{name}: {causes.get(code, f'argument {-1 - code} has the wrong size')}")

        kernel.max_dynamic_shared_size_bytes = 0  # type: ignore[attr-defined]
        return kernel


def _value(argument: Any, i: int, name: str) -> Any:
    """The bytes that the driver would copy: an array's address, a NumPy scalar's value."""
    argument = getattr(argument, "_host", argument)
    if isinstance(argument, np.ndarray):
        if not argument.flags.c_contiguous:
            raise ValueError(f"{name}: argument {i} is not contiguous, expected it to be; kernels see no strides")
        return ctypes.c_void_p(argument.ctypes.data)
    if not isinstance(argument, np.generic):
        raise TypeError(f"{name}: argument {i} is a {type(argument).__name__}, expected an array or a NumPy scalar of the exact type")
    return (ctypes.c_char * argument.dtype.itemsize).from_buffer_copy(argument.tobytes())
