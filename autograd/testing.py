"""check_grads: compares a backward pass with finite differences of its forward pass. For the tests here, and for your own ops."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from autograd import backend
from autograd.backend import Array, ArrayLike
from autograd.core import Node, Tensor, saved_arrays

# Per dtype: the step of the central difference, relative to the inputs' size, and the relative error allowed.
# float64: truncation ~ h^2 and rounding ~ 1e-16 / h meet near 1e-5. float32 only shows gross errors: use float64 where you can.
_STEP = {"float64": 1e-5, "float32": 1e-2}
_TOLERANCE = {"float64": 1e-6, "float32": 3e-2}


def check_grads(fn: Callable[..., Tensor | tuple[Tensor, ...]], *arrays: ArrayLike, seed: int = 0, n_directions: int = 2) -> None:
    """Raises AssertionError, naming the input, if a gradient of `fn` at `arrays` is wrong.

    fn       takes as many tensors as there are arrays, returns a tensor or a tuple of tensors; must be smooth near `arrays`
             (no kink or tie within the step) and a pure function: the same inputs give the same outputs
    arrays   floating point, all of one dtype; pass integers and options by a closure

    For each input alone, `n_directions` times: a random direction u and a random cotangent dy, and the two sides of

        < dy, (fn(x + h u) - fn(x - h u)) / 2h >   =   < backward(dy), u >

    must agree. Random cotangents matter: with dy = 1 softmax and layer norm have gradient 0, and a wrong backward can pass.
    Also checked: gradients have their input's shape and dtype, and inputs, saved arrays and dy are not written to.
    """
    rng = np.random.default_rng(seed)
    inputs = [np.array(a) for a in arrays]
    dtypes = sorted({a.dtype.name for a in inputs})
    if len(dtypes) != 1 or dtypes[0] not in _STEP:
        raise TypeError(f"check_grads: inputs of dtypes {dtypes}, expected all float64 (or all float32); convert them first")
    step, tolerance = _STEP[dtypes[0]], _TOLERANCE[dtypes[0]]
    tensors = [Tensor(backend.to_device(a.copy()), requires_grad=True) for a in inputs]
    with protected(*(t.data for t in tensors)):
        outputs = _tuple(fn(*tensors))
        dys = [rng.standard_normal(out.shape).astype(out.dtype) for out in outputs]
        first, *rest = [(out * backend.to_device(dy)).sum() for out, dy in zip(outputs, dys, strict=True)]
        total = sum(rest, start=first)
        for node in nodes_of(total):
            node.op = _CheckedOp(node)  # type: ignore[assignment]
        total.backward()

    def value_at(position: int, moved: np.ndarray) -> float:
        here = [Tensor(backend.to_device(moved if i == position else a)) for i, a in enumerate(inputs)]
        return sum(float((backend.to_host(out.data).astype(np.float64) * dy).sum()) for out, dy in zip(_tuple(fn(*here)), dys, strict=True))

    for i, (x, tensor) in enumerate(zip(inputs, tensors, strict=True)):
        if tensor.grad is None:
            raise AssertionError(f"check_grads: input {i} of shape {x.shape} got no gradient, expected one; does fn use it?")
        gradient = backend.to_host(tensor.grad)
        assert gradient.shape == x.shape and gradient.dtype == x.dtype  # the engine refuses other shapes and casts; see _CheckedOp
        if x.size == 0:
            continue
        h = step * max(1.0, float(np.abs(x).max()))
        for _ in range(n_directions):
            u = rng.standard_normal(x.shape)
            u /= np.sqrt((u * u).sum())  # a unit direction: the step's length is h whatever the size
            plus, minus = (x + h * u).astype(x.dtype), (x - h * u).astype(x.dtype)
            measured = (value_at(i, plus) - value_at(i, minus)) / (2 * h)
            moved = (plus.astype(np.float64) - minus) / (2 * h)  # the direction as rounding left it
            claimed = float((gradient.astype(np.float64) * moved).sum())
            size = max(abs(measured), float(np.sqrt((gradient.astype(np.float64) ** 2).sum())), 1e-3)
            if not abs(measured - claimed) <= tolerance * size:
                found = f"backward says {claimed:.8g} along a random direction, expected {measured:.8g} by central difference"
                raise AssertionError(f"check_grads: input {i} of shape {x.shape}: {found}; the gradient of this input is wrong")


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> Sequence[Tensor]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def nodes_of(*outputs: Tensor) -> list[Node]:
    """Every application of an op that `outputs` depend on, newest first: the graph that `backward` would walk."""
    found: dict[int, Node] = {}
    waiting = [out._node for out in outputs if out._node is not None]
    while waiting:
        node = waiting.pop()
        if node.serial not in found:
            found[node.serial] = node
            waiting += [edge[0] for edge in node.edges if isinstance(edge, tuple)]
    return [found[serial] for serial in sorted(found, reverse=True)]


class _CheckedOp:
    """Replaces a node's op during one backward pass: the same backward, with dy and saved arrays protected and dtypes checked."""

    def __init__(self, node: Node) -> None:
        self.op, self.input_kinds = node.op, node.input_kinds

    def __getattr__(self, name: str) -> object:
        return getattr(self.op, name)

    def backward(self, saved: object, dy: Array, **options: object) -> Array | tuple[Array | None, ...]:
        arrived = list(saved_arrays(dy))
        with protected(*arrived, *saved_arrays(saved)):
            result = self.op.backward(saved, dy, **options)
        for i, (dx, kind) in enumerate(zip(result if isinstance(result, tuple) else (result,), self.input_kinds, strict=False)):
            # The engine casts gradients to their input's dtype, as it must after a promotion; here nothing else may need the cast.
            if kind is not None and dx is not None and dx.dtype not in (kind[1], *(a.dtype for a in arrived)):
                found = f"gradient of input {i} is {dx.dtype}, expected {kind[1]} like the input"
                cause = "a NumPy scalar or array of another dtype is mixed in"
                raise AssertionError(f"check_grads: {self.op.__name__}.backward: {found}; {cause}")
        return result


@contextlib.contextmanager
def protected(*arrays: Array) -> Iterator[None]:
    """Within this block the arrays must not change: read-only under NumPy, compared before and after elsewhere."""
    host = sorted((a for a in arrays if isinstance(a, np.ndarray)), key=lambda a: a.base is not None)  # a view thaws after its base
    device = [(a, backend.to_host(a).copy()) for a in arrays if not isinstance(a, np.ndarray)]
    before = [a.flags.writeable for a in host]
    for a in host:
        a.flags.writeable = False
    try:
        yield
    finally:
        for a, writeable in zip(host, before, strict=True):
            a.flags.writeable = writeable
    for a, copy in device:
        if not np.array_equal(backend.to_host(a), copy, equal_nan=True):
            raise AssertionError(f"protected: an array of shape {a.shape} was written to, expected no change; work on a copy")
