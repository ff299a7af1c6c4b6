"""Nonlinear functions: tanh, sigmoid, ReLU and GELU element by element; softmax and log-softmax along an axis."""

import math

from autograd.backend import xp
from autograd.core import Array, Op, Tensor
from autograd.ops.elementwise import as_tensor, operand
from autograd.ops.reduce import axes

GELU_SCALE = math.sqrt(2 / math.pi)  # a Python float: a NumPy one would turn float32 into float64
GELU_CUBIC = 0.044715


class Tanh(Op):
    """Forward     y = tanh x
    Backward    dx = dy (1 - y^2)
    Shapes      any.  Saves y.
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        y = xp.tanh(x)
        return y, y

    @staticmethod
    def backward(y: Array, dy: Array) -> Array:
        return dy * (1 - y * y)


class Sigmoid(Op):
    """Forward     y = 1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2      the second form cannot overflow
    Backward    dx = dy y (1 - y)
    Shapes      any.  Saves y.
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        y = 0.5 * (1 + xp.tanh(0.5 * x))
        return y, y

    @staticmethod
    def backward(y: Array, dy: Array) -> Array:
        return dy * y * (1 - y)


class ReLU(Op):
    """Forward     y = max(x, 0)
    Backward    dx = dy where x > 0, else 0      at the kink x = 0 the slope is taken as 0
    Shapes      any.  Saves a mask (bool).
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        return xp.maximum(x, 0), x > 0

    @staticmethod
    def backward(positive: Array, dy: Array) -> Array:
        return dy * positive


class GELU(Op):
    """Gaussian error linear unit, in the tanh form that GPT-2 uses.

    Forward     t = tanh(s (x + c x^3)),  s = sqrt(2 / pi),  c = 0.044715
                y = x (1 + t) / 2
    Backward    dx = dy ((1 + t) / 2 + x (1 - t^2) s (1 + 3 c x^2) / 2)
    Why: product rule on x (1 + t) / 2; tanh' = 1 - t^2; the inner polynomial has slope s (1 + 3 c x^2).

    Shapes      any.  Saves x; t is computed again, which costs less than the memory of keeping it.
    Source      Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2.
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        t = xp.tanh(GELU_SCALE * (x + GELU_CUBIC * (x * x * x)))
        return 0.5 * x * (1 + t), x

    @staticmethod
    def backward(x: Array, dy: Array) -> Array:
        t = xp.tanh(GELU_SCALE * (x + GELU_CUBIC * (x * x * x)))
        slope = GELU_SCALE * (1 + 3 * GELU_CUBIC * (x * x))
        return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t * t) * slope)


class Softmax(Op):
    """Turns scores into probabilities along an axis.

    Forward     y = e^(x - m) / sum e^(x - m),  m = max(x)      the shift changes nothing but keeps e^ from overflowing
    Backward    dx = y (dy - sum dy y)
    Why: dy_i/dx_j = y_i (1[i = j] - y_j), so dx_j = y_j dy_j - y_j sum_i dy_i y_i. Adding a constant to a row
    changes no probability, and indeed each row of dx sums to 0.

    Shapes      any; rows along `axis`.  Saves y.
    A row that is -inf throughout (nothing allowed) gives zeros, with gradient 0.
    """

    @staticmethod
    def forward(x: Array, *, axis: int) -> tuple[Array, tuple[Array, int]]:
        y = softmax_rows(x, axis)
        return y, (y, axis)

    @staticmethod
    def backward(saved: tuple[Array, int], dy: Array) -> Array:
        y, axis = saved
        return y * (dy - (dy * y).sum(axis=axis, keepdims=True))


class LogSoftmax(Op):
    """Log-probabilities along an axis, without the cancellation of log(softmax(x)).

    Forward     y = x - m - ln sum e^(x - m),  m = max(x)
    Backward    dx = dy - e^y sum dy
    Shapes      any; rows along `axis`.  Saves y.
    """

    @staticmethod
    def forward(x: Array, *, axis: int) -> tuple[Array, tuple[Array, int]]:
        y = x - x.max(axis=axis, keepdims=True)
        y -= xp.log(xp.exp(y).sum(axis=axis, keepdims=True))
        return y, (y, axis)

    @staticmethod
    def backward(saved: tuple[Array, int], dy: Array) -> Array:
        y, axis = saved
        return dy - xp.exp(y) * dy.sum(axis=axis, keepdims=True)


def softmax_rows(x: Array, axis: int) -> Array:
    """Softmax on arrays: rows of -inf give 0 instead of NaN."""
    m = x.max(axis=axis, keepdims=True)
    y = xp.exp(x - xp.where(xp.isfinite(m), m, 0))
    total = y.sum(axis=axis, keepdims=True)
    y /= xp.where(total == 0, 1, total)
    return y


def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return Tanh.apply(operand("tanh", x))


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + e^-x), without overflow."""
    return Sigmoid.apply(operand("sigmoid", x))


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return ReLU.apply(operand("relu", x))


def gelu(x: Tensor) -> Tensor:
    """Gaussian error linear unit, tanh form."""
    return GELU.apply(operand("gelu", x))


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Probabilities along `axis`. Raises ValueError for an axis of length 0."""
    return _along("softmax", Softmax, x, axis)


def log_softmax(x: Tensor, axis: int = -1) -> Tensor:
    """Log-probabilities along `axis`. Raises ValueError for an axis of length 0."""
    return _along("log_softmax", LogSoftmax, x, axis)


def _along(name: str, op: type[Op], x: Tensor, axis: int) -> Tensor:
    x = as_tensor(name, x)
    (which,) = axes(axis, x.ndim)
    if x.shape[which] == 0:
        raise ValueError(f"{name}: shape {x.shape} has length 0 along axis {axis}, expected at least 1; skip empty input")
    return op.apply(x, axis=which)
