"""GELU and softmax by blocks of rows."""

import numpy as np

from autograd.backend import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cpu.parallel import row_blocks, rows_of
from autograd.ops.activation import GELU, GELU_CUBIC, GELU_SCALE, Softmax


@kernel_for(GELU)
class GELUBlocked(GELU):
    """GELU and its slope in one pass over memory, while the block is in cache. Reference: ops/activation.py.

    Saves the slope instead of x: as many bytes, x can be freed, and the backward pass is one product.
    """

    @staticmethod
    def supports(x: Array) -> bool:
        return x.dtype in (np.float32, np.float64) and x.flags.c_contiguous

    @staticmethod
    def forward(x: np.ndarray, *, needs: tuple[bool] = (True,)) -> tuple[np.ndarray, np.ndarray | None]:
        y, slope = np.empty_like(x), np.empty_like(x) if needs[0] else None
        flat, flat_y, flat_slope = x.reshape(-1), y.reshape(-1), slope if slope is None else slope.reshape(-1)

        def block(part: slice) -> None:
            xs, out = flat[part], flat_y[part]
            np.multiply(xs, xs, out=out)
            if flat_slope is not None:
                slopes = flat_slope[part]
                np.multiply(out, 3 * GELU_CUBIC * GELU_SCALE, out=slopes)
            out *= GELU_SCALE * GELU_CUBIC
            out += GELU_SCALE
            out *= xs
            np.tanh(out, out=out)  # t = tanh(s (x + c x^3)) = tanh(x (s + s c x^2))
            if flat_slope is not None:
                # (1 + t) / 2 + x (1 - t^2) inner' / 2  =  (1 + t) / 2 (1 + x (1 - t) inner')
                slopes += GELU_SCALE
                slopes *= xs
                slopes *= 1 - out
                slopes += 1
            out += 1
            out *= 0.5
            if flat_slope is not None:
                slopes *= out
            out *= xs

        row_blocks(x.size, x.itemsize, block)
        return y, slope

    @staticmethod
    def backward(slope: np.ndarray, dy: np.ndarray) -> np.ndarray:
        dx = np.empty_like(slope)
        flat, flat_dy, flat_slope = dx.reshape(-1), dy.reshape(-1), slope.reshape(-1)
        row_blocks(slope.size, slope.itemsize, lambda part: np.multiply(flat_slope[part], flat_dy[part], out=flat[part]))
        return dx


@kernel_for(Softmax)
class SoftmaxBlocked(Softmax):
    """Softmax over the last axis, several rows at a time in cache. Reference: ops/activation.py."""

    @staticmethod
    def supports(x: Array, *, axis: int) -> bool:
        return x.dtype in (np.float32, np.float64) and axis == x.ndim - 1 and x.flags.c_contiguous and x.size > 0

    @staticmethod
    def forward(x: np.ndarray, *, axis: int) -> tuple[Array, tuple[Array, ...]]:
        y = np.empty(x.shape, dtype=x.dtype)
        rows, out = x.reshape(rows_of(x.shape), x.shape[-1]), y.reshape(rows_of(x.shape), x.shape[-1])

        def block(part: slice) -> None:
            o = out[part]
            _, total, good = exponentials(rows[part], o, each_row=False)
            if not good:
                _, total, _ = exponentials(rows[part], o, each_row=True)
            o /= np.where(total == 0, 1, total)

        row_blocks(len(rows), rows[0].nbytes, block)
        return y, (y, axis)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: np.ndarray) -> np.ndarray:
        y, _ = saved
        dx = np.empty(y.shape, dtype=y.dtype)
        shape = (rows_of(y.shape), y.shape[-1])
        ys, dys, out = y.reshape(shape), dy.reshape(shape), dx.reshape(shape)

        def block(part: slice) -> None:
            dots = np.einsum("ij,ij->i", dys[part], ys[part])
            np.subtract(dys[part], dots[:, None], out=out[part])
            out[part] *= ys[part]

        row_blocks(len(ys), ys[0].nbytes, block)
        return dx


# If a row's sum of e^(s - m) is below this, m is too large a shift for the row: its small terms would be subnormal numbers or 0.
_FAR_BELOW = 1e-20


def exponentials(s: np.ndarray, out: np.ndarray, *, each_row: bool) -> tuple[np.ndarray, np.ndarray, bool]:
    """out = e^(s - m), where m is the largest score of each row or of all rows; `out` may be s.

    Any m gives the same softmax as long as nothing overflows or vanishes, and one for all rows saves the slowest pass over s.
    Returns m, the sums of `out` over the last axis (..., 1), and whether they are accurate; otherwise call again with each_row=True.
    """
    m = s.max(axis=-1 if each_row else None, keepdims=True)
    finite = np.isfinite(m)
    np.subtract(s, np.where(finite, m, 0), out=out)
    np.exp(out, out=out)
    ones = np.ones(s.shape[-1], dtype=s.dtype)
    total = (out.reshape(-1, s.shape[-1]) @ ones).reshape(*s.shape[:-1], 1)  # BLAS sums short rows faster than NumPy
    return m, total, each_row or (bool(finite.all()) and bool(total.min() >= _FAR_BELOW))
