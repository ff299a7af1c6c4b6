"""GELU and softmax by blocks of rows."""

from typing import Any

import numpy as np

from autograd.core import accelerates
from autograd.kernels.cpu.parallel import row_blocks, rows_of
from autograd.ops.activation import GELU, GELU_CUBIC, GELU_SCALE, Softmax


@accelerates(GELU)
class GELUBlocked(GELU):
    """GELU in one pass over memory per direction: eight ufuncs on a block in cache. Reference: ops/activation.py."""

    @staticmethod
    def supports(x: Any) -> bool:
        return x.dtype in (np.float32, np.float64) and x.flags.c_contiguous

    @staticmethod
    def forward(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        flat, y = x.reshape(-1), np.empty(x.size, dtype=x.dtype)

        def block(part: slice) -> None:
            xs, out = flat[part], y[part]
            _tanh_of_inner(xs, out)
            out += 1
            out *= xs
            out *= 0.5

        row_blocks(x.size, x.itemsize, block)
        return y.reshape(x.shape), x

    @staticmethod
    def backward(x: np.ndarray, dy: np.ndarray) -> np.ndarray:
        flat, flat_dy, dx = x.reshape(-1), dy.reshape(-1), np.empty(x.size, dtype=x.dtype)

        def block(part: slice) -> None:
            xs, out = flat[part], dx[part]
            t = np.empty_like(xs)
            _tanh_of_inner(xs, t)
            # (1 + t) / 2 + x (1 - t^2) slope / 2  =  (1 + t) (1 + x (1 - t) slope) / 2
            np.multiply(xs, xs, out=out)
            out *= 3 * GELU_CUBIC * GELU_SCALE
            out += GELU_SCALE
            out *= xs
            out *= 1 - t
            out += 1
            t += 1
            out *= t
            out *= flat_dy[part]
            out *= 0.5

        row_blocks(x.size, x.itemsize, block)
        return dx.reshape(x.shape)


def _tanh_of_inner(x: np.ndarray, out: np.ndarray) -> None:
    """out = tanh(s (x + c x^3)) = tanh(x (s + s c x^2))."""
    np.multiply(x, x, out=out)
    out *= GELU_SCALE * GELU_CUBIC
    out += GELU_SCALE
    out *= x
    np.tanh(out, out=out)


@accelerates(Softmax)
class SoftmaxBlocked(Softmax):
    """Softmax over the last axis, several rows at a time in cache. Reference: ops/activation.py."""

    @staticmethod
    def supports(x: Any, *, axis: int) -> bool:
        return x.dtype in (np.float32, np.float64) and axis == x.ndim - 1 and x.flags.c_contiguous

    @staticmethod
    def forward(x: np.ndarray, *, axis: int) -> tuple[np.ndarray, Any]:
        y = np.empty(x.shape, dtype=x.dtype)
        rows, out = x.reshape(rows_of(x.shape), x.shape[-1]), y.reshape(rows_of(x.shape), x.shape[-1])

        def block(part: slice) -> None:
            o = out[part]
            m = rows[part].max(axis=1, keepdims=True)
            np.subtract(rows[part], np.where(np.isfinite(m), m, 0), out=o)
            np.exp(o, out=o)
            total = o.sum(axis=1, keepdims=True)
            o /= np.where(total == 0, 1, total)

        row_blocks(*_size(rows), block)
        return y, (y, axis)

    @staticmethod
    def backward(saved: Any, dy: np.ndarray) -> np.ndarray:
        y, _ = saved
        dx = np.empty(y.shape, dtype=y.dtype)
        shape = (rows_of(y.shape), y.shape[-1])
        ys, dys, out = y.reshape(shape), dy.reshape(shape), dx.reshape(shape)

        def block(part: slice) -> None:
            dots = np.einsum("ij,ij->i", dys[part], ys[part])
            np.subtract(dys[part], dots[:, None], out=out[part])
            out[part] *= ys[part]

        row_blocks(*_size(ys), block)
        return dx


def _size(rows: np.ndarray) -> tuple[int, int]:
    return rows.shape[0], rows.shape[1] * rows.itemsize
