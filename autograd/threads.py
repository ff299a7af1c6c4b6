"""How many threads the CPU's kernels and NumPy's BLAS use. AUTOGRAD_THREADS sets it for a process, `use_threads` for a block of code."""

from contextlib import AbstractContextManager, nullcontext

from autograd import backend

__all__ = ["blas", "n_threads", "use_threads"]

if backend.name == "numpy":
    from autograd.kernels.cpu import parallel as _parallel
else:
    _parallel = None  # type: ignore[assignment]


def n_threads() -> int:
    """The number in use; 1 on a GPU: one host thread launches the device's work."""
    return _parallel.n_threads() if _parallel else 1


def blas() -> str:
    """Name, version, kernels and threads of the BLAS in use; empty on a GPU."""
    return _parallel.blas() if _parallel else ""


def use_threads(n: int) -> AbstractContextManager[None]:
    """Within this block kernels and NumPy's BLAS use n threads in all: for work that shares the cores with other processes."""
    return _parallel.use_threads(n) if _parallel else nullcontext()
