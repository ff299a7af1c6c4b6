"""Matrix products: where a GPT spends its arithmetic."""

import math
from collections.abc import Sequence

from autograd.backend import xp
from autograd.core import Array, Op, Operand, Tensor, accumulator_dtype
from autograd.ops.elementwise import as_tensor


class MatMul(Op):
    """Matrix product over the last two axes; leading axes are batches and broadcast.

    Forward     y_ij = sum_k a_ik b_kj
    Backward    da = dy @ b^T,  db = a^T @ dy
    Why: y_ij meets a_ik only through b_kj, so da_ik = sum_j dy_ij b_kj.
    Shapes      a (..., n, k), b (..., k, m) -> y (..., n, m).  Saves a and b (each only if the other needs a gradient).
    """

    @staticmethod
    def forward(a: Array, b: Array, *, needs: tuple[bool, bool]) -> tuple[Array, tuple[Array, Array]]:
        return xp.matmul(a, b), (a if needs[1] else None, b if needs[0] else None)

    @staticmethod
    def backward(saved: tuple[Array, Array], dy: Array, *, needs: tuple[bool, bool]) -> tuple[Array | None, Array | None]:
        a, b = saved
        da = xp.matmul(dy, b.swapaxes(-1, -2)) if needs[0] else None
        db = xp.matmul(a.swapaxes(-1, -2), dy) if needs[1] else None
        return da, db

    @staticmethod
    def flops(inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> int:
        return 2 * math.prod(outputs[0]) * inputs[0][-1]


class Linear(Op):
    """An affine map of the last axis, all rows in one matrix product.

    Forward     y = x @ W + b
    Backward    dx = dy @ W^T
                dW = x^T @ dy,  db = sum of dy       over all rows
    Shapes      x (..., I), W (I, O), b (O,) or None -> y (..., O).  Saves x (if W needs a gradient) and W (if x does).
    W is stored (in, out), as GPT-2 stores it.
    """

    takes_half = True  # the sums inside a matrix product are float32

    @staticmethod
    def forward(x: Array, weight: Array, bias: Array | None, *, needs: tuple[bool, bool, bool]) -> tuple[Array, tuple[Array, Array]]:
        y = (_rows(x) @ weight).reshape(*x.shape[:-1], weight.shape[1])
        if bias is not None:
            y += bias
        return y, (x if needs[1] else None, weight if needs[0] else None)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array, *, needs: tuple[bool, bool, bool]) -> tuple[Array | None, Array | None, Array | None]:
        x, weight = saved
        rows = _rows(dy)  # (N, O)
        dx = (rows @ weight.T).reshape(*dy.shape[:-1], weight.shape[0]) if needs[0] else None
        dweight = _rows(x).T @ rows if needs[1] else None
        dbias = rows.sum(axis=0, dtype=accumulator_dtype(rows)) if needs[2] else None
        return dx, dweight, dbias

    flops = staticmethod(MatMul.flops)


def rows_of(shape: tuple[int, ...]) -> int:
    """N for (..., C): the number of rows of an array whose last axis is the row."""
    return math.prod(shape[:-1])


def _rows(x: Array) -> Array:
    """(..., C) -> (N, C). The count is spelled out: -1 would be ambiguous for an empty array."""
    return x.reshape(rows_of(x.shape), x.shape[-1])


def matmul(a: Operand, b: Operand) -> Tensor:
    """a @ b as NumPy's: matrices in the last two axes, leading axes broadcast, a 1-D operand is a row (left) or a column (right).

    a (..., n, k), b (..., k, m) -> (..., n, m). Raises ValueError if k differs or an operand is a single number.
    """
    a, b = as_tensor("matmul", a), as_tensor("matmul", b)
    if a.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape}, expected at least one axis each; use * for numbers")
    if a.shape[-1] != b.shape[max(b.ndim - 2, 0)]:
        raise ValueError(f"matmul: shapes {a.shape} and {b.shape}, expected (..., n, k) and (..., k, m); transpose one of them?")
    if a.ndim == 1 and b.ndim == 1:
        return (a * b).sum()
    if a.ndim == 1:
        y = matmul(a.reshape(1, a.size), b)
        return y.reshape(*y.shape[:-2], y.shape[-1])
    if b.ndim == 1:
        y = matmul(a, b.reshape(b.size, 1))
        return y.reshape(y.shape[:-1])
    if b.ndim == 2 and a.ndim > 2:
        return Linear.apply(a, b, None)  # one product instead of one per batch, and no (batch, k, m) gradient
    return MatMul.apply(a, b)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ W + b on the last axis.

    x (..., I), weight (I, O), bias (O,) -> (..., O). Raises ValueError, naming the shapes, where they do not fit.
    """
    x, weight, bias = as_tensor("linear", x), as_tensor("linear", weight), None if bias is None else as_tensor("linear", bias)
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[0]:
        raise ValueError(f"linear: x {x.shape} with weight {weight.shape}, expected (..., in) with (in, out); transpose the weight?")
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"linear: bias {bias.shape} with weight {weight.shape}, expected ({weight.shape[1]},); one bias per output")
    return Linear.apply(x, weight, bias)
