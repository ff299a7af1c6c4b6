"""Ops that work on each element separately. Binary ones broadcast as NumPy does; the engine sums gradients back to the inputs' shapes."""

from autograd import backend
from autograd.backend import DType, DTypeLike, xp
from autograd.core import Array, Movement, Op, Operand, Tensor


class Add(Op):
    """Forward     y = a + b
    Backward    da = dy,  db = dy
    Shapes      a, b broadcast to y.  Saves nothing.
    """

    takes_half = True  # one rounding either way

    @staticmethod
    def forward(a: Array, b: Array) -> tuple[Array, None]:
        return a + b, None

    @staticmethod
    def backward(saved: None, dy: Array) -> tuple[Array, Array]:
        return dy, dy


def _sum_of(a: Array, b: Array) -> Array:
    return Add.dispatch(a, b).forward(a, b)[0]


setattr(Op, "sum_of", staticmethod(_sum_of))  # noqa: B010  (mypy takes no assignment to a method)


class Subtract(Op):
    """Forward     y = a - b
    Backward    da = dy,  db = -dy
    Shapes      a, b broadcast to y.  Saves nothing.
    """

    @staticmethod
    def forward(a: Array, b: Array) -> tuple[Array, None]:
        return a - b, None

    @staticmethod
    def backward(saved: None, dy: Array, *, needs: tuple[bool, bool]) -> tuple[Array, Array | None]:
        return dy, -dy if needs[1] else None


class Multiply(Op):
    """Forward     y = a b
    Backward    da = dy b,  db = dy a
    Shapes      a, b broadcast to y.  Saves a and b (each only if the other needs a gradient).
    """

    @staticmethod
    def forward(a: Array, b: Array, *, needs: tuple[bool, bool]) -> tuple[Array, tuple[Array, Array]]:
        return a * b, (a if needs[1] else None, b if needs[0] else None)

    @staticmethod
    def backward(saved: tuple[Array, Array], dy: Array, *, needs: tuple[bool, bool]) -> tuple[Array | None, Array | None]:
        a, b = saved
        return dy * b if needs[0] else None, dy * a if needs[1] else None


class Divide(Op):
    """Forward     y = a / b
    Backward    da = dy / b,  db = -dy y / b
    Shapes      a, b broadcast to y.  Saves b and y.
    """

    @staticmethod
    def forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
        y = a / b
        return y, (b, y)

    @staticmethod
    def backward(saved: tuple[Array, Array], dy: Array, *, needs: tuple[bool, bool]) -> tuple[Array, Array | None]:
        b, y = saved
        da = dy / b
        return da, -da * y if needs[1] else None


class Negate(Op):
    """Forward     y = -x
    Backward    dx = -dy
    Shapes      any.  Saves nothing.
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, None]:
        return -x, None

    @staticmethod
    def backward(saved: None, dy: Array) -> Array:
        return -dy


class Power(Op):
    """Raise to a constant exponent c.

    Forward     y = x^c
    Backward    dx = dy c x^(c-1);  0 where c = 0, whatever x, and where x = 0 for 0 < c < 1, as for sqrt
    Shapes      any.  Saves x.
    Small integer exponents are products: NumPy's x**3 is a hundred times slower than x*x*x.
    """

    @staticmethod
    def forward(x: Array, *, exponent: float) -> tuple[Array, tuple[Array, float]]:
        return _raise(x, exponent), (x, exponent)

    @staticmethod
    def backward(saved: tuple[Array, float], dy: Array) -> Array:
        x, exponent = saved
        if exponent == 0:
            return xp.zeros_like(dy)
        if 0 < exponent < 1:  # the slope at 0 is infinite
            return xp.where(x == 0, 0, dy * (exponent * _raise(xp.where(x == 0, 1, x), exponent - 1)))
        return dy * (exponent * _raise(x, exponent - 1))


def _raise(x: Array, exponent: float) -> Array:
    if exponent in (0, 1, 2, 3, 4):
        y = xp.ones_like(x) if exponent == 0 else x.copy()
        for _ in range(int(exponent) - 1):
            y *= x
        return y
    return xp.power(x, float(exponent))


class Exp(Op):
    """Forward     y = e^x
    Backward    dx = dy y
    Shapes      any.  Saves y.
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        y = xp.exp(x)
        return y, y

    @staticmethod
    def backward(y: Array, dy: Array) -> Array:
        return dy * y


class Log(Op):
    """Forward     y = ln x
    Backward    dx = dy / x
    Shapes      any.  Saves x.  At x = 0 both are infinite, and NumPy says so.
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        return xp.log(x), x

    @staticmethod
    def backward(x: Array, dy: Array) -> Array:
        return dy / x


class Sqrt(Op):
    """Forward     y = sqrt(x)
    Backward    dx = dy / (2 y);  0 where x = 0
    Shapes      any.  Saves y.
    At 0 the slope is infinite; 0 is chosen, so that a norm's gradient at the origin is 0 and not NaN.
    """

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        y = xp.sqrt(x)
        return y, y

    @staticmethod
    def backward(y: Array, dy: Array) -> Array:
        positive = y > 0
        return xp.where(positive, 0.5 * dy / xp.where(positive, y, 1), 0)


class Maximum(Op):
    """The larger of two, element by element.

    Forward     y = max(a, b)
    Backward    dy goes to the larger; where a = b, half to each
    Shapes      a, b broadcast to y.  Saves two masks of y's shape (bool).
    """

    @staticmethod
    def forward(a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
        return xp.maximum(a, b), (xp.greater(a, b), xp.equal(a, b))

    @staticmethod
    def backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
        a_larger, equal = saved
        da = dy * xp.where(equal, 0.5, a_larger.astype(dy.dtype))
        return da, dy - da


class Where(Op):
    """Choose by a condition.

    Forward     y = a where condition, else b
    Backward    da = dy where condition, else 0;  db = 0 where condition, else dy
    Shapes      condition (bool), a, b broadcast to y.  Saves condition.
    """

    @staticmethod
    def forward(condition: Array, a: Array, b: Array) -> tuple[Array, Array]:
        return xp.where(condition, a, b), condition

    @staticmethod
    def backward(condition: Array, dy: Array) -> tuple[None, Array, Array]:
        return None, xp.where(condition, dy, 0), xp.where(condition, 0, dy)


class Cast(Movement):
    """The same numbers in another floating-point format, rounded to the nearest where it is coarser.

    Forward     y = x in `dtype`
    Backward    dx = dy in the dtype of x         rounding has slope 0 or none; it is taken as the identity that it approximates
    Shapes      any.  Saves the dtype of x.
    Why: weights stay float32, so that small updates are not lost, and are cast where a matrix product wants bfloat16.
    Source      Micikevicius et al. 2018, arXiv:1710.03740, section 3.1.
    """

    @staticmethod
    def forward(x: Array, *, dtype: DType) -> tuple[Array, DType]:
        return x.astype(dtype, copy=False), x.dtype

    @staticmethod
    def backward(dtype: DType, dy: Array) -> Array:
        return dy.astype(dtype, copy=False)


def add(a: Operand, b: Operand) -> Tensor:
    """a + b, broadcasting."""
    return Add.apply(operand("add", a), operand("add", b))


def subtract(a: Operand, b: Operand) -> Tensor:
    """a - b, broadcasting."""
    return Subtract.apply(operand("subtract", a), operand("subtract", b))


def multiply(a: Operand, b: Operand) -> Tensor:
    """a * b, broadcasting."""
    return Multiply.apply(operand("multiply", a), operand("multiply", b))


def divide(a: Operand, b: Operand) -> Tensor:
    """a / b, broadcasting."""
    return Divide.apply(operand("divide", a), operand("divide", b))


def negate(x: Tensor) -> Tensor:
    """-x."""
    return Negate.apply(operand("negate", x))


def power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent for a constant exponent. Raises TypeError for a tensor exponent: write exp(exponent * log(x))."""
    if isinstance(exponent, xp.number):
        exponent = exponent.item()
    if not isinstance(exponent, (int, float)):
        raise TypeError(f"power: an exponent of type {type(exponent).__name__}, expected a Python number; for others use exp(b * log(a))")
    return Power.apply(operand("power", x), exponent=exponent)


def exp(x: Tensor) -> Tensor:
    """e to the x."""
    return Exp.apply(operand("exp", x))


def log(x: Tensor) -> Tensor:
    """Natural logarithm."""
    return Log.apply(operand("log", x))


def sqrt(x: Tensor) -> Tensor:
    """Square root; gradient 0 at 0."""
    return Sqrt.apply(operand("sqrt", x))


def maximum(a: Operand, b: Operand) -> Tensor:
    """The larger of a and b, element by element, broadcasting; ties share the gradient."""
    return Maximum.apply(operand("maximum", a), operand("maximum", b))


def where(condition: Operand, a: Operand, b: Operand) -> Tensor:
    """a where `condition` (a boolean array, no tensor) holds, else b; all three broadcast."""
    mask = operand("where", condition)
    mask = mask.data if isinstance(mask, Tensor) else backend.to_device(mask)
    if mask.dtype != bool:
        raise TypeError(f"where: a condition of dtype {mask.dtype}, expected bool; compare first, as in where(x > 0, a, b)")
    return Where.apply(mask, operand("where", a), operand("where", b))


def cast(x: Tensor, dtype: DTypeLike) -> Tensor:
    """x in another floating-point dtype; x itself if it has it already. Raises TypeError for a dtype that carries no gradient."""
    dtype = xp.dtype(dtype)
    if dtype.kind != "f" and dtype != backend.bfloat16:
        raise TypeError(f"cast: to {dtype}, expected a floating-point dtype of the {backend.name} backend; use .data.astype for others")
    x = as_tensor("cast", x)
    return x if x.dtype == dtype else Cast.apply(x, dtype=dtype)


def operand(op: str, x: Operand) -> Tensor | Array | float:
    """What an op accepts as an operand: tensors and Python numbers unchanged, arrays and lists moved to the device.

    Python numbers stay numbers because NumPy lets them take the array's dtype: float32 stays float32.
    """
    if isinstance(x, (Tensor, bool, int, float)):
        return x
    if isinstance(x, (complex, str, bytes)) or x is None:
        raise TypeError(f"{op}: an operand of type {type(x).__name__}, expected a Tensor, array or number; convert it first")
    return backend.to_device(x)


def as_tensor(op: str, x: Operand) -> Tensor:
    """What an op accepts where it asks for a tensor: arrays, lists and numbers too, as constants."""
    return x if isinstance(x, Tensor) else Tensor(operand(op, x))
