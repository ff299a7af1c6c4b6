"""Nonlinear functions: activations element by element, gated products of two arrays; softmax and log-softmax along an axis."""

import math
from typing import NamedTuple

from autograd import backend
from autograd.backend import xp
from autograd.core import Array, Op, Tensor
from autograd.ops.elementwise import as_tensor, operand
from autograd.ops.reduce import axes

GELU_SCALE = math.sqrt(2 / math.pi)  # a Python float: a NumPy one would turn float32 into float64
GELU_CUBIC = 0.044715
SQRT_HALF = math.sqrt(0.5)
NORMAL_DENSITY = 1 / math.sqrt(2 * math.pi)  # of the standard normal distribution at 0


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


class GELUExact(Op):
    """Gaussian error linear unit itself: x times the probability that a standard normal number is below x.

    Forward     y = x P(x),  P(x) = (1 + erf(x / sqrt(2))) / 2
    Backward    dx = dy (P(x) + x p(x)),  p(x) = e^(-x^2 / 2) / sqrt(2 pi)
    Why: product rule; the slope of a distribution function is its density.

    Shapes      any.  Saves x.
    Source      Hendrycks and Gimpel 2016, arXiv:1606.08415, section 2. Activation of BERT and GPT-NeoX.
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        return x * _normal_below(x), x

    @staticmethod
    def backward(x: Array, dy: Array) -> Array:
        density = NORMAL_DENSITY * xp.exp(-0.5 * (x * x))
        return dy * (_normal_below(x) + x * density)


class SiLU(Op):
    """Sigmoid linear unit, also called swish.

    Forward     y = x s,  s = 1 / (1 + e^-x)
    Backward    dx = dy s (1 + x (1 - s))
    Why: product rule; the slope of s is s (1 - s).

    Shapes      any.  Saves x.
    Source      Hendrycks and Gimpel 2016, arXiv:1606.08415, section 4; Ramachandran et al. 2017, arXiv:1710.05941.
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        return x * (0.5 * (1 + xp.tanh(0.5 * x))), x

    @staticmethod
    def backward(x: Array, dy: Array) -> Array:
        s = 0.5 * (1 + xp.tanh(0.5 * x))
        return dy * (s * (1 + x * (1 - s)))


class SquaredReLU(Op):
    """Forward     y = max(x, 0)^2
    Backward    dx = dy 2 max(x, 0)      no kink: the slope is 0 at 0 from both sides
    Shapes      any.  Saves max(x, 0).
    Source      So et al. 2021, Primer, arXiv:2109.08668, section 4.
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        r = xp.maximum(x, 0)
        return r * r, r

    @staticmethod
    def backward(r: Array, dy: Array) -> Array:
        return dy * (2 * r)


ACTIVATIONS: dict[str, type[Op]] = {"relu": ReLU, "gelu": GELU, "gelu_exact": GELUExact, "silu": SiLU, "squared_relu": SquaredReLU}
"""The activations of decoders by the names that configs use."""


class GatedProductSaved(NamedTuple):
    gate: Array
    up: Array
    activation: str


class GatedProduct(Op):
    """One half of a layer's outputs, through an activation f, scales the other: SwiGLU with f = SiLU, GeGLU with f = GELU.

    Forward     y = f(gate) up
    Backward    dgate = dy up f'(gate),  dup = dy f(gate)
    Why: product rule; `backward` of f turns the gradient of f(gate), which is dy up, into that of gate.

    Shapes      gate, up, y of one shape.  Saves gate and up; f(gate) is computed again.
    Source      Shazeer 2020, arXiv:2002.05202, section 2.
    """

    @staticmethod
    def forward(gate: Array, up: Array, *, activation: str) -> tuple[Array, tuple[Array, ...]]:
        a, _ = ACTIVATIONS[activation].forward(gate)
        return a * up, GatedProductSaved(gate, up, activation)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
        gate, up, activation = saved
        a, saved_a = ACTIVATIONS[activation].forward(gate)
        return ACTIVATIONS[activation].backward(saved_a, dy * up), dy * a


class SoftCap(Op):
    """Bounds scores to -cap .. cap and leaves small ones nearly as they are.

    Forward     y = cap t,  t = tanh(x / cap)
    Backward    dx = dy (1 - t^2)
    Why: 1 - t^2 is the slope of tanh; the factors cap and 1 / cap cancel.

    Shapes      any.  Saves t.
    Source      Gemma 2 2024, arXiv:2408.00118, section 2, "Logit soft-capping".
    """

    @staticmethod
    def forward(x: Array, *, cap: float) -> tuple[Array, Array]:
        t = xp.tanh(x / cap)
        return cap * t, t

    @staticmethod
    def backward(t: Array, dy: Array) -> Array:
        return dy * (1 - t * t)


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


def _normal_below(x: Array) -> Array:
    """The probability that a standard normal number is below x."""
    return 0.5 * (1 + backend.erf(SQRT_HALF * x))


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


def gelu(x: Tensor, approximate: str = "tanh") -> Tensor:
    """Gaussian error linear unit: in the tanh form ("tanh", as GPT-2 has it, `gelu_new` of transformers) or exact ("none", its `gelu`).

    Raises ValueError for another form.
    """
    if approximate not in ("tanh", "none"):
        raise ValueError(f'gelu: approximate {approximate!r}, expected "tanh" or "none"; "none" is the exact form, with erf')
    return gelu_exact(x) if approximate == "none" else GELU.apply(operand("gelu", x))


def gelu_exact(x: Tensor) -> Tensor:
    """Gaussian error linear unit with erf, `gelu` of transformers."""
    return GELUExact.apply(operand("gelu_exact", x))


def silu(x: Tensor) -> Tensor:
    """x / (1 + e^-x), without overflow."""
    return SiLU.apply(operand("silu", x))


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2."""
    return SquaredReLU.apply(operand("squared_relu", x))


def gated_product(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """f(gate) * up, with f a name of `ACTIVATIONS`. Raises ValueError for another name, or if the two differ in shape."""
    gate, up = as_tensor("gated_product", gate), as_tensor("gated_product", up)
    if gate.shape != up.shape:
        raise ValueError(f"gated_product: gate {gate.shape} with up {up.shape}, expected one shape; are both of the layer's inner width?")
    return GatedProduct.apply(gate, up, activation=known_activation("gated_product: activation", activation))


def known_activation(where: str, name: str) -> str:
    """The name itself. Raises ValueError if it is none of `ACTIVATIONS`."""
    if name not in ACTIVATIONS:
        raise ValueError(f"{where}: {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return name


def soft_cap(x: Tensor, cap: float) -> Tensor:
    """cap * tanh(x / cap): near x for small x, never beyond -cap .. cap. Raises ValueError unless cap is positive and finite."""
    if not 0 < cap < math.inf:
        raise ValueError(f"soft_cap: cap {cap}, expected a positive number; leave the op out for no bound")
    return SoftCap.apply(operand("soft_cap", x), cap=float(cap))


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
