"""The scheduler: divides rows into blocks that fit a core's cache and runs the blocks on a few threads.

NumPy's functions release the interpreter lock, so a chain of them over a small block runs like one fused loop: the block's
temporaries stay in the cache instead of going to memory and back between calls.

Each block's work depends only on the block, and sums over blocks are added in the order of the blocks: the same bits whichever thread ran
which. Block sizes do not depend on the number of threads; shares of a matrix product do (`even_parts`), so another number may round otherwise.
"""

import contextvars
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path

import numpy as np
from threadpoolctl import LibController, ThreadpoolController

from autograd.backend import Array
from autograd.backend._common import message_only
from autograd.core import within
from autograd.limits import n_cores
from autograd.ops.matmul import rows_of as rows_of

BLOCK_BYTES = 1024 * 1024
"""Size of one array's block, at most. Threads contend for the interpreter lock after each NumPy call, and the loser sleeps for tens of
microseconds: on two cores blocks of 1 MB, larger than the L2 cache takes, beat blocks of 256 KB by a fifth to a half."""

_BYTES_OF_ONE_THREAD = 512 * 1024
"""The same where one thread does all the work, and no other waits for the lock: what an operation reads and writes stays in the L2 cache."""

# Below this, submitting work to a thread (some 50 us) and contending for the lock cost more than they save.
_THREADS_PAY_BYTES = 1024 * 1024
_THREADS_PAY_FLOPS = 10_000_000  # the same for matrix products, which do about 100 operations per nanosecond

_threads: ContextVar[int] = ContextVar("threads", default=0)


def n_threads() -> int:
    """Those of `use_threads`; else AUTOGRAD_THREADS (ValueError if it is no positive number), or the cores that this process may use."""
    return _threads.get() or _default_threads()


@contextmanager
def use_threads(n: int) -> Iterator[None]:
    """Within this block kernels and NumPy's BLAS use n threads in all: for work that shares the cores with other processes."""
    with within(_threads, n), _blas_threads(n):
        yield


@cache
def _default_threads() -> int:
    asked = os.environ.get("AUTOGRAD_THREADS", "").strip()
    if not asked:
        return n_cores()
    if not asked.isdecimal() or int(asked) < 1:
        raise message_only(ValueError(f"AUTOGRAD_THREADS: {asked!r}, expected a positive whole number; unset it to use every core"))
    return int(asked)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, _default_threads() - 1), thread_name_prefix="autograd")


@cache
def _blas() -> list[LibController]:
    """The BLAS that NumPy calls: the one in NumPy's own folder, as wheels bring it, else all in this process (PyTorch brings another)."""
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return [library for library in libraries if "numpy" in Path(library.filepath).parent.name] or libraries


if os.environ.get("AUTOGRAD_THREADS"):  # products of few numbers are left to BLAS, on its own threads
    for each in _blas():
        each.set_num_threads(min(_default_threads(), each.get_num_threads()))


def blas() -> str:
    """Name, version, kernels and threads of the BLAS that NumPy calls: what the rounding of a matrix product depends on."""
    return ", ".join(f"{b.internal_api} {b.version} {getattr(b, 'architecture', '')}, threads {b.get_num_threads()}" for b in _blas())


def for_each(n: int, work: Callable[[int], object], *, threaded: bool) -> None:
    """Calls work(i) for i in 0 .. n - 1, on all threads if `threaded`: each takes the next free number.

    An exception in any of them is raised here. NumPy's error state and other context variables are the caller's.
    """
    if not threaded or n == 1 or n_threads() == 1:
        for i in range(n):
            work(i)
        return
    numbers = iter(range(n))  # `next` on it is atomic

    def drain() -> None:
        for i in numbers:
            work(i)

    with _blas_threads(1):  # else two pools of threads fight for the cores
        helpers = [_pool().submit(contextvars.copy_context().run, drain) for _ in range(min(n_threads(), n) - 1)]
        try:
            drain()
        finally:
            wait(helpers)  # all of them, whatever one raises: they write into the caller's arrays
            for helper in helpers:
                helper.result()


_lock = threading.Lock()  # of the two below
_own: list[tuple[LibController, int]] = []  # (BLAS, number of threads that nobody asked for)
_held: dict[object, int] = {}  # who holds BLAS to how many threads, oldest first

if hasattr(os, "register_at_fork"):  # a forked child has none of its parent's threads, and would wait for them, or their lock, forever
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)
    os.register_at_fork(after_in_child=_pool.cache_clear)


@contextmanager
def _blas_threads(n: int) -> Iterator[None]:
    """Within this block BLAS has n threads. Its number is one for the process, so blocks of several Python threads may overlap: the newest
    one still open counts, and BLAS gets its own number back with the end of the last."""
    block = object()
    _hold_blas(block, n)
    try:
        yield
    finally:
        _hold_blas(block, None)


def _hold_blas(block: object, n: int | None) -> None:
    """The block begins with n threads, or ends (None)."""
    with _lock:
        if not _held:
            _own[:] = [(library, library.get_num_threads()) for library in _blas()]
        if n is None:
            del _held[block]
        else:
            _held[block] = n
        newest = next(reversed(_held.values()), None)
        for library, own in _own:
            library.set_num_threads(own if newest is None else newest)


def parallel(work: Sequence[Callable[[], object]], *, n_flops: int) -> None:
    """Calls each of `work`, on all threads if n_flops, their arithmetic operations in total, make that worth it."""
    for_each(len(work), lambda i: work[i](), threaded=n_flops >= _THREADS_PAY_FLOPS)


def shares(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> list[Callable[[], object]]:
    """Products that together are out = a b for matrices, each a share of out's longer side: the larger operand is read once."""
    m, n = out.shape
    if m >= n:
        return [partial(np.matmul, a[mine], b, out=out[mine]) for mine in even_parts(m)]
    return [partial(np.matmul, a, b[:, mine], out=out[:, mine]) for mine in even_parts(n)]


def matmul(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """out = a b for matrices, each thread its share. In a worker, call np.matmul itself."""
    parallel(shares(a, b, out), n_flops=2 * a.size * out.shape[1])
    return out


def even_parts(n: int) -> list[slice]:
    """0 .. n cut into one part per thread (fewer if there is less than that)."""
    k = min(n_threads(), n)
    return [slice(n * i // k, n * (i + 1) // k) for i in range(k)]


def row_blocks(n_rows: int, row_bytes: int, work: Callable[[slice], object], *, elementwise: bool = False) -> None:
    """Calls work(rows) for equal slices that cover 0 .. n_rows, each of at most BLOCK_BYTES or one row; an even number, for two threads.

    elementwise   no number depends on others in its block: their size may then depend on the number of threads
    """
    most = _BYTES_OF_ONE_THREAD if elementwise and n_threads() == 1 else BLOCK_BYTES
    n = -(-n_rows * row_bytes // most)
    n = min(n_rows, n if n <= 1 else n + n % 2)
    blocks = [slice(n_rows * i // n, n_rows * (i + 1) // n) for i in range(n)]
    for_each(n, lambda i: work(blocks[i]), threaded=n_rows * row_bytes >= _THREADS_PAY_BYTES)


def row_sums(n_rows: int, row_bytes: int, work: Callable[[slice], tuple[Array, ...]]) -> tuple[Array, ...]:
    """Like row_blocks for work that returns arrays: their sums over all blocks, added in the order of the blocks."""
    parts: dict[int, tuple[Array, ...]] = {}  # by first row

    def block(rows: slice) -> None:
        parts[rows.start] = work(rows)

    row_blocks(n_rows, row_bytes, block)
    return tuple(sum(terms[1:], start=terms[0]) for terms in zip(*(parts[start] for start in sorted(parts)), strict=True))


def times_vector(a: np.ndarray, v: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """a (R, C) @ v, (C,) or (C, 1).

    For five float32 columns OpenBLAS's kernel for AVX-512 computes with parts of the stack that it has never set and does not use: the
    product is right, but what happens to be there may report an invalid value.
    """
    with np.errstate(invalid="ignore"):
        return np.matmul(a, v, out=out)
