"""How many threads the CPU's kernels and NumPy's BLAS use. AUTOGRAD_THREADS sets it for a process, `use_threads` for a block of code."""

from collections.abc import Iterator
from contextlib import contextmanager

from autograd import backend

__all__ = ["n_threads", "use_threads"]

if backend.name == "numpy":
    from autograd.kernels.cpu.parallel import n_threads, use_threads
else:

    def n_threads() -> int:
        """1: the device does the work, and one thread gives it out."""
        return 1

    @contextmanager
    def use_threads(n: int) -> Iterator[None]:
        """Nothing to set here."""
        yield
