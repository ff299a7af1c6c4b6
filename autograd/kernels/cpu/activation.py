"""Activations, gated products and softmax by blocks."""

from collections.abc import Callable

import numpy as np

from autograd.backend import Array
from autograd.backend._erfc import erfc_polynomial
from autograd.dispatch import kernel_for
from autograd.kernels.cpu.parallel import row_blocks, rows_of, times_vector
from autograd.ops.activation import (
    GELU,
    GELU_CUBIC,
    GELU_SCALE,
    NORMAL_DENSITY,
    SQRT_HALF,
    GatedProduct,
    GELUExact,
    SiLU,
    Softmax,
)

# f(x, out, slope) on a block of flat arrays: out becomes f(x), and slope, unless it is None, f'(x).
Pointwise = Callable[[np.ndarray, np.ndarray, np.ndarray | None], object]


def logistic_by_tanh(z: np.ndarray) -> None:
    """z = a / 2 becomes 1 / (1 + e^-a) = (1 + tanh(a / 2)) / 2."""
    np.tanh(z, out=z)
    z += 1
    z *= 0.5


def logistic_by_exp(z: np.ndarray) -> None:
    """z = -a becomes 1 / (1 + e^-a)."""
    with np.errstate(over="ignore"):  # 1 / (1 + inf) is 0
        np.exp(z, out=z)
    z += 1
    np.divide(1, z, out=z)


def tanh_is_slow() -> bool:
    """Whether NumPy computes with AVX2 here: its tanh then takes twice as long as its exp, with AVX-512 two thirds of it.
    Not measured but looked up: after a measurement the next run could take the other formula, and get other bits."""
    found = np.lib.introspect.opt_func_info(func_name="^exp$", signature="float32").get("exp", {})
    return any(name in kind["current"] for kind in found.values() for name in ("AVX2", "X86_V3"))


_logistic, _INSIDE = (logistic_by_exp, -1.0) if tanh_is_slow() else (logistic_by_tanh, 0.5)


def _gelu(x: np.ndarray, out: np.ndarray, slope: np.ndarray | None) -> None:
    np.square(x, out=out)
    if slope is not None:
        np.multiply(out, 6 * GELU_CUBIC * GELU_SCALE, out=slope)
    out *= 2 * _INSIDE * GELU_SCALE * GELU_CUBIC
    out += 2 * _INSIDE * GELU_SCALE
    out *= x
    _logistic(out)  # p = 1 / (1 + e^(-2 z)) = (1 + tanh z) / 2,  z = s (x + c x^3)
    if slope is not None:  # p + x p' = p (1 + x (1 - p) 2 z')
        slope += 2 * GELU_SCALE
        slope *= x
        slope *= 1 - out
        slope += 1
        slope *= out
    out *= x


def _gelu_exact(x: np.ndarray, out: np.ndarray, slope: np.ndarray | None) -> None:
    t = np.abs(x)
    t *= 0.5 * SQRT_HALF
    t += 1
    np.divide(1, t, out=t)  # 1 / (1 + z / 2),  z = |x| / sqrt(2)
    first, second, *others = erfc_polynomial(x.dtype)
    np.multiply(t, first, out=out)
    out += second
    for coefficient in others:
        out *= t
        out += coefficient
    density = np.multiply(x, x)
    density *= -0.5
    np.exp(density, out=density)
    out *= density
    out *= 0.5  # erfc(z) / 2, the probability beyond |x|: what a sum of 1 and erf would round away
    if slope is not None:
        np.subtract(0.5, out, out=slope)
        np.copysign(slope, x, out=slope)
        slope += 0.5
        density *= x
        density *= NORMAL_DENSITY
        slope += density
    out *= np.abs(x, out=t)
    np.subtract(np.maximum(x, 0, out=t), out, out=out)  # x P(x) = max(x, 0) - |x| (1 - P(|x|))


def _silu(x: np.ndarray, out: np.ndarray, slope: np.ndarray | None) -> None:
    np.multiply(x, _INSIDE, out=out)
    _logistic(out)
    if slope is not None:
        np.subtract(1, out, out=slope)
        slope *= x
        slope += 1
        slope *= out
    out *= x


def _relu(x: np.ndarray, out: np.ndarray, slope: np.ndarray | None) -> None:
    if slope is not None:
        np.greater(x, 0, out=slope)
    np.maximum(x, 0, out=out)


def _squared_relu(x: np.ndarray, out: np.ndarray, slope: np.ndarray | None) -> None:
    np.maximum(x, 0, out=out)
    if slope is not None:
        np.add(out, out, out=slope)
    out *= out


POINTWISE: dict[str, Pointwise] = {
    "relu": _relu, "gelu": _gelu, "gelu_exact": _gelu_exact, "silu": _silu, "squared_relu": _squared_relu,
}  # fmt: skip


_HALF = 2
"""GELU, with few other arrays: for one thread a quarter is as fast, but two then contend for the interpreter lock, and take a third longer."""

_QUARTER = 4
"""Where a block means four or more arrays at once, each takes a quarter of BLOCK_BYTES, or the block would leave the L2 cache."""


def _with_slope(f: Pointwise, x: np.ndarray, want_slope: bool, part_of_block: int) -> tuple[np.ndarray, np.ndarray | None]:
    """(f(x), f'(x) if wanted) by blocks."""
    y, slope = np.empty_like(x), np.empty_like(x) if want_slope else None
    flat, flat_y, flat_slope = x.reshape(-1), y.reshape(-1), None if slope is None else slope.reshape(-1)

    def block(part: slice) -> None:
        f(flat[part], flat_y[part], None if flat_slope is None else flat_slope[part])

    row_blocks(x.size, part_of_block * x.itemsize, block, elementwise=True)
    return y, slope


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a b for a contiguous a, by blocks."""
    out = np.empty_like(a)
    flat, flat_a, flat_b = out.reshape(-1), a.reshape(-1), b.reshape(-1)
    row_blocks(a.size, a.itemsize, lambda part: np.multiply(flat_a[part], flat_b[part], out=flat[part]), elementwise=True)
    return out


def _takes(*arrays: Array) -> bool:
    return all(x.dtype in (np.float32, np.float64) and x.dtype == arrays[0].dtype and x.flags.c_contiguous for x in arrays)


@kernel_for(GELU)
class GELUBlocked(GELU):
    """GELU and its slope in one pass over memory, while the block is in cache. Reference: ops/activation.py.

    Saves the slope instead of x: as many bytes, x can be freed, and the backward pass is one product.
    """

    @staticmethod
    def supports(x: Array) -> bool:
        return _takes(x)

    @staticmethod
    def forward(x: np.ndarray, *, needs: tuple[bool] = (True,)) -> tuple[np.ndarray, np.ndarray | None]:
        return _with_slope(_gelu, x, needs[0], _HALF)

    @staticmethod
    def backward(slope: np.ndarray, dy: np.ndarray) -> np.ndarray:
        return _product(slope, dy)


@kernel_for(GELUExact)
class GELUExactBlocked(GELUExact):
    """As GELUBlocked; erfc is a polynomial times the exponential that the slope needs anyway. Reference: ops/activation.py."""

    @staticmethod
    def supports(x: Array) -> bool:
        return _takes(x)

    @staticmethod
    def forward(x: np.ndarray, *, needs: tuple[bool] = (True,)) -> tuple[np.ndarray, np.ndarray | None]:
        return _with_slope(_gelu_exact, x, needs[0], _QUARTER)

    @staticmethod
    def backward(slope: np.ndarray, dy: np.ndarray) -> np.ndarray:
        return _product(slope, dy)


@kernel_for(SiLU)
class SiLUBlocked(SiLU):
    """As GELUBlocked. Reference: ops/activation.py."""

    @staticmethod
    def supports(x: Array) -> bool:
        return _takes(x)

    @staticmethod
    def forward(x: np.ndarray, *, needs: tuple[bool] = (True,)) -> tuple[np.ndarray, np.ndarray | None]:
        return _with_slope(_silu, x, needs[0], _QUARTER)

    @staticmethod
    def backward(slope: np.ndarray, dy: np.ndarray) -> np.ndarray:
        return _product(slope, dy)


@kernel_for(GatedProduct)
class GatedProductBlocked(GatedProduct):
    """Activation, its slope and the products in one pass over memory, while the block is in cache. Reference: ops/activation.py.

    Saves f(gate) and up f'(gate), what dy is multiplied by, instead of gate and up, which can be freed: as many bytes, and the
    backward pass computes no activation again.
    """

    @staticmethod
    def supports(gate: Array, up: Array, *, activation: str) -> bool:
        return _takes(gate, up)

    @staticmethod
    def forward(
        gate: np.ndarray, up: np.ndarray, *, activation: str, needs: tuple[bool, bool] = (True, True)
    ) -> tuple[Array, tuple[Array, ...]]:
        f, y = POINTWISE[activation], np.empty_like(gate)
        dgate, dup = (np.empty_like(gate) if need else None for need in needs)  # for dy = 1
        flat_gate, flat_up, flat_y = gate.reshape(-1), up.reshape(-1), y.reshape(-1)
        slopes, values = None if dgate is None else dgate.reshape(-1), flat_y if dup is None else dup.reshape(-1)

        def block(part: slice) -> None:
            slope = None if slopes is None else slopes[part]
            f(flat_gate[part], values[part], slope)
            if slope is not None:
                slope *= flat_up[part]
            np.multiply(values[part], flat_up[part], out=flat_y[part])

        row_blocks(gate.size, _QUARTER * gate.itemsize, block, elementwise=True)
        return y, (dgate, dup)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: np.ndarray) -> tuple[Array, ...]:
        return tuple(None if a is None else _product(a, dy) for a in saved)


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
    total = times_vector(out.reshape(-1, s.shape[-1]), ones).reshape(*s.shape[:-1], 1)  # BLAS sums short rows faster than NumPy
    return m, total, each_row or (bool(finite.all()) and bool(total.min() >= _FAR_BELOW))
