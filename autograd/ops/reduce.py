"""Ops that combine many elements into one along some axes. `axis` and `keepdims` are NumPy's.

Each backward first puts the reduced axes back as length 1 (`_expand`); broadcasting does the rest.
"""

import math
import operator
from collections.abc import Sequence

from autograd.backend import xp
from autograd.core import Array, Op, Tensor
from autograd.ops.elementwise import as_tensor

Axis = int | tuple[int, ...] | None


def _expand(dy: Array, shape: tuple[int, ...], axis: tuple[int, ...]) -> Array:
    """A reduced array with its reduced axes back as length 1, whether or not keepdims kept them."""
    return dy.reshape([1 if i in axis else n for i, n in enumerate(shape)])


class Sum(Op):
    """Forward     y = sum of x over the axes
    Backward    dx = dy, repeated along the axes
    Shapes      x any; y without the axes (length 1 with keepdims).  Saves the shape of x.
    """

    @staticmethod
    def forward(x: Array, *, axis: tuple[int, ...], keepdims: bool = False) -> tuple[Array, tuple[tuple[int, ...], tuple[int, ...]]]:
        return x.sum(axis=axis, keepdims=keepdims), (x.shape, axis)

    @staticmethod
    def backward(saved: tuple[tuple[int, ...], tuple[int, ...]], dy: Array) -> Array:
        shape, axis = saved
        return xp.broadcast_to(_expand(dy, shape, axis), shape)


class Mean(Op):
    """Forward     y = mean of x over the axes, n elements each
    Backward    dx = dy / n, repeated along the axes
    Shapes      x any; y without the axes (length 1 with keepdims).  Saves the shape of x.
    """

    @staticmethod
    def forward(x: Array, *, axis: tuple[int, ...], keepdims: bool = False) -> tuple[Array, tuple[tuple[int, ...], tuple[int, ...]]]:
        return x.mean(axis=axis, keepdims=keepdims), (x.shape, axis)

    @staticmethod
    def backward(saved: tuple[tuple[int, ...], tuple[int, ...]], dy: Array) -> Array:
        shape, axis = saved
        return xp.broadcast_to(_expand(dy, shape, axis) / _count(shape, axis), shape)


class Var(Op):
    """Population variance (divides by n, as layer norm does).

    Forward     m = mean(x),  y = mean((x - m)^2)
    Backward    dx = dy 2 (x - m) / n      the path through m adds nothing: deviations sum to 0
    Shapes      x any; y without the axes (length 1 with keepdims).  Saves x - m.
    """

    @staticmethod
    def forward(x: Array, *, axis: tuple[int, ...], keepdims: bool = False) -> tuple[Array, tuple[Array, tuple[int, ...]]]:
        deviation = x - x.mean(axis=axis, keepdims=True)
        return (deviation * deviation).mean(axis=axis, keepdims=keepdims), (deviation, axis)

    @staticmethod
    def backward(saved: tuple[Array, tuple[int, ...]], dy: Array) -> Array:
        deviation, axis = saved
        return _expand(dy, deviation.shape, axis) * deviation * (2 / _count(deviation.shape, axis))


class Max(Op):
    """Forward     y = max of x over the axes
    Backward    dx = dy at the largest element; k equal ones get dy / k each
    Shapes      x any; y without the axes (length 1 with keepdims).  Saves a mask of x's shape (bool).
    """

    @staticmethod
    def forward(x: Array, *, axis: tuple[int, ...], keepdims: bool = False) -> tuple[Array, tuple[Array, tuple[int, ...]]]:
        y = x.max(axis=axis, keepdims=True)
        return y if keepdims else y.squeeze(axis), (x == y, axis)

    @staticmethod
    def backward(saved: tuple[Array, tuple[int, ...]], dy: Array) -> Array:
        largest, axis = saved
        share = _expand(dy, largest.shape, axis) / largest.sum(axis=axis, keepdims=True).astype(dy.dtype)
        return largest * share


class LogSumExp(Op):
    """The smooth maximum: log of a sum of exponentials.

    Forward     y = ln sum e^x = m + ln sum e^(x - m),  m = max(x)      the shift keeps e^(x - m) <= 1
    Backward    dx = dy e^(x - y) = dy softmax(x)
    Shapes      x any; y without the axes (length 1 with keepdims).  Saves x and y.
    A row that is -inf throughout gives -inf, with gradient 0.
    """

    @staticmethod
    def forward(x: Array, *, axis: tuple[int, ...], keepdims: bool = False) -> tuple[Array, tuple[Array, Array, tuple[int, ...]]]:
        m = x.max(axis=axis, keepdims=True)
        m = xp.where(xp.isfinite(m), m, 0)  # -inf - (-inf) would be NaN
        total = xp.exp(x - m).sum(axis=axis, keepdims=True)
        nothing = total == 0
        y = xp.where(nothing, -xp.inf, m + xp.log(xp.where(nothing, 1, total)))
        return y if keepdims else y.squeeze(axis), (x, y, axis)

    @staticmethod
    def backward(saved: tuple[Array, Array, tuple[int, ...]], dy: Array) -> Array:
        x, y, axis = saved
        return _expand(dy, x.shape, axis) * xp.exp(x - xp.where(xp.isfinite(y), y, 0))


def _count(shape: tuple[int, ...], axis: tuple[int, ...]) -> int:
    return math.prod(shape[a] for a in axis)


def axes(axis: int | Sequence[int] | None, ndim: int) -> tuple[int, ...]:
    """`axis` as NumPy takes it (None, one, several, negative) as a sorted tuple of non-negative axes."""
    if axis is None:
        return tuple(range(ndim))
    several = [operator.index(a) for a in (axis if isinstance(axis, Sequence) else (axis,))]
    for a in several:
        if not -ndim <= a < ndim:
            raise ValueError(f"axis: {a}, expected -{ndim} <= axis < {ndim} for an array of {ndim} dimensions")
    unique = sorted({a % ndim for a in several})
    if len(unique) != len(several):
        raise ValueError(f"axis: {axis} names an axis twice, expected each once")
    return tuple(unique)


def sum(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Sum over `axis` (all axes by default)."""
    x = as_tensor("sum", x)
    return Sum.apply(x, axis=axes(axis, x.ndim), keepdims=keepdims)


def mean(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis` (all axes by default). Raises ValueError where there is nothing to average."""
    return _not_empty(Mean, x, axis, keepdims)


def max(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Largest element over `axis` (all axes by default). Raises ValueError where there is none."""
    return _not_empty(Max, x, axis, keepdims)


def var(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """Population variance over `axis` (all axes by default). Raises ValueError where there is nothing to average."""
    return _not_empty(Var, x, axis, keepdims)


def logsumexp(x: Tensor, axis: Axis = None, keepdims: bool = False) -> Tensor:
    """ln of the sum of e^x over `axis` (all axes by default), without overflow. Raises ValueError where there is nothing to sum."""
    return _not_empty(LogSumExp, x, axis, keepdims)


def _not_empty(op: type[Op], x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    name = op.__name__.lower()
    x = as_tensor(name, x)
    which = axes(axis, x.ndim)
    if _count(x.shape, which) == 0:
        raise ValueError(f"{name}: shape {x.shape} has no elements along axis {axis}, expected at least one; skip empty input")
    return op.apply(x, axis=which, keepdims=keepdims)
