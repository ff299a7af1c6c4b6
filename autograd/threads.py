"""How many threads the CPU's kernels and NumPy's BLAS use. AUTOGRAD_THREADS sets it for a process, `use_threads` for a block of code.

The functions are those of `autograd/kernels/cpu/parallel.py`. On a GPU one host thread launches the device's work, and no BLAS is in use.
"""

from contextlib import nullcontext

from autograd import backend

__all__ = ["blas", "n_threads", "use_threads"]

if backend.name == "numpy":
    from autograd.kernels.cpu.parallel import blas, n_threads, use_threads
else:
    blas, n_threads, use_threads = (lambda: ""), (lambda: 1), nullcontext  # type: ignore[assignment]
