"""Linear layers: one matrix product per thread instead of one BLAS call over several threads."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import partial

import numpy as np

from autograd.backend import Array
from autograd.core import within
from autograd.dispatch import kernel_for
from autograd.kernels.cpu.parallel import even_parts, parallel, rows_of, shares
from autograd.kernels.destination import Into, destinations
from autograd.ops.matmul import Linear

_FEW_ROWS = 64  # up to here `few_rows_by_blas` leaves the product to BLAS: nothing else is large enough for our threads
_by_blas: ContextVar[bool] = ContextVar("few_rows_by_blas", default=False)


def few_rows_by_blas() -> AbstractContextManager[bool]:
    """Within this block BLAS divides products of a few rows among its own threads: faster between steps of decoding, which use them, too.
    Not read off `needs`: BLAS may round by how a product is divided (its AVX2 kernels do), and recording must change no value."""
    return within(_by_blas, True)


@kernel_for(Linear)
class LinearThreaded(Linear):
    """Each thread multiplies its share of the rows or outputs and adds the bias to it. Reference: ops/matmul.py.

    Why not BLAS: its threads keep spinning for a while after each call, on the cores that the next kernel's threads need. With one
    pool for everything, dx, dW and db of a layer are also submitted together.
    """

    destinations = staticmethod(destinations)

    @staticmethod
    def supports(x: Array, weight: Array, bias: Array) -> bool:
        return x.dtype in (np.float32, np.float64) and x.dtype == weight.dtype and x.size > 0 and weight.size > 0

    @staticmethod
    def forward(x: Array, weight: Array, bias: Array | None, *, needs: tuple[bool, bool, bool]) -> tuple[Array, tuple[Array, ...]]:
        rows = x.reshape(rows_of(x.shape), x.shape[-1])
        y = np.empty((len(rows), weight.shape[1]), dtype=x.dtype)

        def block(some: slice, outputs: slice) -> None:
            np.matmul(rows[some], weight[:, outputs], out=y[some, outputs])
            if bias is not None:
                y[some, outputs] += bias[outputs]

        every = slice(None)
        if len(y) <= _FEW_ROWS and _by_blas.get():
            block(every, every)
        else:  # By outputs, unless there are many more rows: half of the rows still reads all the weights.
            by_rows = 2 * len(y) >= 3 * y.shape[1]
            parts = [(mine, every) if by_rows else (every, mine) for mine in even_parts(y.shape[0 if by_rows else 1])]
            parallel([partial(block, *part) for part in parts], n_flops=2 * y.size * len(weight))
        return y.reshape(*x.shape[:-1], weight.shape[1]), (x if needs[1] else None, weight if needs[0] else None)

    @staticmethod
    def backward(  # type: ignore[override]  # `into`, see Op
        saved: tuple[Array, ...], dy: Array, *, needs: tuple[bool, bool, bool], into: Into = (None,) * 3
    ) -> tuple[Array | None, Array | None, Array | None]:
        x, weight = saved
        dys = dy.reshape(rows_of(dy.shape), dy.shape[-1])
        row_parts = even_parts(len(dys))
        work: list[Callable[[], object]] = []
        dx = dweight = None
        if needs[0]:
            dx = np.empty((len(dys), weight.shape[0]), dtype=dy.dtype)
            work += shares(dys, weight.T, dx)
        if needs[1]:
            xs = x.reshape(len(dys), x.shape[-1])
            target = into[1]
            dweight = np.empty((xs.shape[1], dys.shape[1]), dtype=dy.dtype) if target is None or target.filled else target.buffer
            work += shares(xs.T, dys, dweight)
        if needs[2]:
            sums = np.empty((len(row_parts), dys.shape[1]), dtype=dy.dtype)
            ones = np.ones(
                len(dys), dtype=dy.dtype
            )  # BLAS adds rows up in half to three quarters of the time of NumPy's sum, with less rounding
            work += [partial(np.matmul, ones[mine], dys[mine], out=sums[i]) for i, mine in enumerate(row_parts)]
        n_inputs = weight.shape[0] if needs[0] else x.shape[-1] if needs[1] else 1
        parallel(work, n_flops=2 * dys.size * n_inputs)
        return None if dx is None else dx.reshape(*dy.shape[:-1], -1), dweight, sums.sum(axis=0) if needs[2] else None
