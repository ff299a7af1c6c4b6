"""The engine: tensors that record how they were computed, and the backward pass over that record.

An op is a pair of pure functions on arrays (`Op.forward`, `Op.backward`). `Op.apply` runs forward on the arrays inside its input
tensors and, when a gradient may be needed later, creates a `Node`: the op, what it saved, and an edge to the origin of each input.
`Tensor.backward` visits these nodes newest first, gives each the gradient of the loss with respect to its output, and passes on the
gradients of its inputs. This file knows no particular op; the files above it do not depend on how nodes are visited.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar, Self, TypeVar

from autograd import backend, variables
from autograd.backend import Array as Array
from autograd.backend import ArrayLike, DType, xp
from autograd.finite import check_finite

Value = TypeVar("Value")
_recording: ContextVar[bool] = ContextVar("recording", default=True)
_records: "ContextVar[list[OpRecord] | None]" = ContextVar("records", default=None)
_watchers: "ContextVar[tuple[Callable[[Tensor], None], ...]]" = ContextVar("watchers", default=())
_serial = itertools.count()


class Tensor:
    """An array that records the op that made it.

    data            the array; NumPy's dtype rules hold (float32 stays float32, lists of Python floats become float64)
    grad            after `backward()`: the gradient of the loss with respect to this tensor, an array of the same shape; only
                    leaves (tensors made by you, not by an op) with `requires_grad=True` keep one, and it adds up until cleared
    requires_grad   True if a gradient should flow to or through this tensor

    Operators and their broadcasting are NumPy's: + - * / ** @, comparisons (which give plain boolean arrays), slicing, `.T`.
    """

    __slots__ = ("__weakref__", "_gradient_buffer", "_node", "_output", "data", "grad", "requires_grad")
    data: Array
    grad: Array | None

    def __init__(self, data: ArrayLike, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            raise TypeError("Tensor: a Tensor, expected an array, list or number; use tensor.detach() for the same array without history")
        self.data = backend.to_device(data)
        if self.data.dtype.kind not in "fiub" and self.data.dtype != backend.bfloat16:
            hint = f" ({backend.name} here computes in no bfloat16)" if self.data.dtype.name == "bfloat16" else ""
            raise TypeError(f"Tensor: dtype {self.data.dtype}, expected real numbers{hint}; convert the data first")
        if requires_grad and not _is_float(self.data):
            raise TypeError(f"Tensor: requires_grad=True with dtype {self.data.dtype}, expected floating point; use .astype(float)")
        self.requires_grad = requires_grad
        self.grad = None
        self._node: Node | None = None
        self._output = 0
        self._gradient_buffer: Array | None = None  # set by the optimizer: where the first gradient is written to

    @property
    def is_leaf(self) -> bool:
        """True if no op made this tensor; leaves are where gradients are kept."""
        return self._node is None

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        body = repr(backend.to_host(self.data)).removeprefix("array(").removesuffix(")")
        if self._node is not None:
            return f"Tensor({body}, op={self._node.op.__name__})"
        return f"{type(self).__name__}({body}{', requires_grad=True' if self.requires_grad else ''})"

    def item(self) -> float:
        """The value of a one-element tensor as a Python number (waits for the device)."""
        return self.data.item()  # type: ignore[no-any-return]

    def numpy(self) -> Array:
        """The values as a NumPy array on the host; shares memory with `data` on the CPU."""
        return backend.to_host(self.data)

    def detach(self) -> "Tensor":
        """The same array in a new leaf: gradients stop here."""
        return Tensor(self.data)

    def backward(self, dy: Array | None = None) -> None:
        """Adds the gradient of this tensor to `.grad` of every leaf that it depends on and that requires one.

        dy   the gradient with respect to this tensor, of its shape; default 1, allowed only for a single element (a loss)
        Saved arrays are freed on the way, so a second call on the same graph raises RuntimeError.
        """
        if not self.requires_grad:
            fix = "set requires_grad=True on a leaf, and compute outside no_grad()"
            raise RuntimeError(f"backward: no input of this tensor requires a gradient, expected at least one; {fix}")
        if dy is None:
            if self.size != 1:
                raise ValueError(f"backward: a tensor of shape {self.shape}, expected one element; reduce it first or pass dy")
            dy = xp.ones(self.shape, dtype=self.dtype)
        else:
            dy = backend.to_device(_array(dy), dtype=self.dtype)
            if dy.shape != self.shape:
                raise ValueError(f"backward: dy of shape {dy.shape}, expected {self.shape}, that of the tensor")
        if self._node is None:
            _add_to_leaf(self, dy, own=False)
        else:
            _backward_pass(self._node, self._output, dy)

    def __setitem__(self, key: object, value: object) -> None:
        fix = "build the result with where, concatenate or stack, or change tensor.data of a leaf between steps"
        raise TypeError(f"Tensor: assignment to elements, expected no change after creation (saved arrays would no longer match); {fix}")

    def __array__(self, *args: object, **kwargs: object) -> Array:
        rule = "expected an explicit one (it would lose the gradient in silence)"
        raise TypeError(f"Tensor: implicit conversion to a NumPy array, {rule}; use tensor.numpy() or tensor.data")

    def __array_ufunc__(self, ufunc: Callable[..., object], method: str, *inputs: "Operand", **options: object) -> Array:
        """`array + tensor` is `Tensor.__radd__`; of NumPy's other functions, the error says what to write."""
        reflected = _REFLECTED.get(ufunc.__name__)
        if reflected and method == "__call__" and not options and not isinstance(inputs[0], Tensor):
            return getattr(self, reflected)(inputs[0])
        if options.get("out"):
            raise TypeError(f"np.{ufunc.__name__} into an array, as in array += tensor: a Tensor, expected an array; use tensor.data")
        raise _not_an_array(ufunc)

    if backend.name != "numpy":
        __array_ufunc__ = None  # type: ignore[assignment]  # what CuPy's operators ask for

    def __array_function__(self, function: Callable[..., object], types: object, args: Sequence[object], kwargs: object) -> object:
        if function.__name__ in ("ndim", "shape", "size") and len(args) == 1 and not kwargs:
            return getattr(self, function.__name__)
        raise _not_an_array(function)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __int__(self) -> int:
        return int(self.data)

    def __format__(self, form: str) -> str:
        if form and self.size != 1:
            raise TypeError(f"format: {form!r} for a tensor of shape {self.shape}, expected one element; format those of tensor.numpy()")
        return format(self.item(), form) if form else repr(self)

    def __iter__(self) -> "Iterator[Tensor]":
        if self.ndim == 0:
            raise TypeError("Tensor: iteration over a single number, of shape (), expected at least one axis; use item()")
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: "Operand") -> bool:
        return bool((self.data == _array(value)).any())

    # The differentiable operators and methods are attached by `autograd/ops/__init__.py`, which knows the ops; `draw` by `drawing.py`.

    if TYPE_CHECKING:
        shape: tuple[int, ...]
        dtype: DType
        ndim: int
        size: int
        T: "Tensor"

        def _binary(self, other: "Operand") -> "Tensor": ...
        def _reduction(self, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> "Tensor": ...
        def __pow__(self, exponent: float) -> "Tensor": ...
        def __neg__(self) -> "Tensor": ...
        def __getitem__(self, key: object) -> "Tensor": ...
        def reshape(self, *shape: int | Sequence[int]) -> "Tensor": ...
        def transpose(self, *axes: int | Sequence[int]) -> "Tensor": ...

        draw: Callable[..., str]
        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = _binary
        sum = mean = max = var = _reduction

    # Comparisons give plain boolean arrays: nothing flows back through them. `==` of tensors is identity, so they can be dict keys.

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (bool, int, float, backend.device_array, list, tuple)):
            raise TypeError(f"Tensor: == with a {type(other).__name__}, expected a tensor (== is identity); use tensor.data == ...")
        return self is other

    def __lt__(self, other: "Operand") -> Array:
        return self.data < _array(other)

    def __le__(self, other: "Operand") -> Array:
        return self.data <= _array(other)

    def __gt__(self, other: "Operand") -> Array:
        return self.data > _array(other)

    def __ge__(self, other: "Operand") -> Array:
        return self.data >= _array(other)


for _name in ("shape", "dtype", "ndim", "size"):
    setattr(Tensor, _name, property(attrgetter(f"data.{_name}")))

Operand = Tensor | Array | ArrayLike
"""What ops take as an operand: a tensor, or a constant as an array, number or list of numbers."""

_REFLECTED = {
    "add": "__radd__", "subtract": "__rsub__", "multiply": "__rmul__", "divide": "__rtruediv__", "matmul": "__rmatmul__",
    "power": "__rpow__", "less": "__gt__", "less_equal": "__ge__", "greater": "__lt__", "greater_equal": "__le__",
}  # fmt: skip
"""NumPy's function for an operator between an array and a tensor -> the tensor's method."""

FUNCTIONS: list[str] = []
"""Names of the functions on tensors, for advice; `autograd/ops/__init__.py` fills it in."""


def _not_an_array(function: Callable[..., object]) -> TypeError:
    name = function.__name__
    instead = f"autograd.{name}, or tensor.data" if name in FUNCTIONS else "tensor.data"
    return TypeError(f"np.{name}: a Tensor, expected an array (the gradient would be lost); use {instead}")


class Parameter(Tensor):
    """A leaf that training changes; `autograd.nn.Module` finds parameters by this type."""

    __slots__ = ("narrow",)

    def __init__(self, data: ArrayLike) -> None:
        super().__init__(data, requires_grad=True)
        self.narrow: Narrowed | None = None  # this parameter in 16 bits, within `nn.weights_in`


class Narrowed(Tensor):
    """A parameter in 16 bits: what layers compute with. Its gradient goes to the parameter, which has 32, and is not rounded on the way."""

    __slots__ = ("parameter",)

    def __init__(self, data: Array, parameter: Parameter) -> None:
        super().__init__(data, requires_grad=parameter.requires_grad)
        self.parameter = parameter


def leaf_of(tensor: Tensor) -> Tensor:
    """The tensor that keeps the gradient of this leaf: the parameter of a narrowed one, else itself."""
    return tensor.parameter if isinstance(tensor, Narrowed) else tensor


@dataclass(slots=True, eq=False)
class Node:
    """One application of an op, for the backward pass. Refers only to leaf tensors, so arrays that no op saved can be freed."""

    op: "type[Op]"
    saved: object
    edges: "tuple[Tensor | tuple[Node, int] | None, ...]"  # per input: a leaf, (node, which of its outputs), None: no gradient needed
    input_kinds: tuple[tuple[tuple[int, ...], DType] | None, ...]  # (shape, dtype), to undo broadcasting and promotion; None like its edge
    output_shapes: tuple[tuple[int, ...], ...]
    serial: int = field(default_factory=_serial.__next__)
    record: "OpRecord | None" = None  # inside record() only


@dataclass(slots=True, eq=False)
class OpRecord:
    """One application of an op inside `record`: nothing is freed, so that a picture or a trace can show its numbers.

    op            the class that ran: the op, or a kernel of it
    inputs        its arguments (tensors, arrays, numbers, None); `options`, its keyword arguments
    outputs       its results, arrays; `names` has the variables that they went into at once, one per output, or none
    saved         what forward kept for backward
    dys, dxs      after backward: the gradients that arrived, one per output (None where unused), and what it returned, one per input
    """

    op: "type[Op]"
    inputs: tuple[Tensor | Array, ...]
    options: dict[str, object]
    outputs: tuple[Array, ...]
    saved: Array
    dys: tuple[Array, ...]
    dxs: tuple[Array, ...]
    names: tuple[str, ...] = ()


@contextmanager
def within(variable: ContextVar[Value], value: Value) -> Iterator[Value]:
    """Within this block the context variable has this value."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)


@contextmanager
def record() -> Iterator[list[OpRecord]]:
    """Within this block every application of an op is appended to the list that the block gets.

    For inspection, not for training: all arrays stay in memory as long as the list or a tensor made here does.
    """
    records: list[OpRecord] = []
    with within(_records, records):
        yield records


_FREED = object()


def _backward_pass(start: Node, output: int, dy: Array) -> None:
    """The backward pass from `start`, newest node first.

    A node is newer than all its inputs, so creation order is a topological order: when a node is popped, every gradient of its
    outputs has arrived. A heap keeps the order without recursion, so only memory limits the depth.
    """
    gradients: dict[Node, list[Array | None]] = {start: [None] * len(start.output_shapes)}
    gradients[start][output] = dy
    owned: set[tuple[Node, int]] = set()  # where a sum made here stands; any other array may be shared and is never written to
    queue = [(-start.serial, start)]
    while queue:
        _, node = heapq.heappop(queue)
        arrived = gradients.pop(node)
        for position, (dx, edge, kind) in enumerate(zip(_backward_of(node, arrived), node.edges, node.input_kinds, strict=True)):
            if edge is None or kind is None:
                continue
            if isinstance(edge, Tensor):
                leaf = leaf_of(edge)
                dx = _undo_broadcasting(dx, kind[0], dx.dtype if is_half(dx) else leaf.data.dtype, node.op, position)
                _add_to_leaf(leaf, dx, own=node.op.destinations is not None and node.record is None)
                continue
            dx = _undo_broadcasting(dx, *kind, node.op, position)
            parent, i = edge
            if parent not in gradients:
                gradients[parent] = [None] * len(parent.output_shapes)
                heapq.heappush(queue, (-parent.serial, parent))
            slots = gradients[parent]
            if slots[i] is None:
                slots[i] = dx
            elif edge in owned:
                slots[i] += dx
            else:
                slots[i] = Op.sum_of(slots[i], dx)
                owned.add(edge)
        node.edges = ()


def _backward_of(node: Node, arrived: list[Array | None]) -> tuple[Array, ...]:
    """Calls the op's backward with the gradients of its outputs, frees what it saved, checks the number of gradients returned."""
    where = f"{node.op.__name__}.backward"
    if node.saved is _FREED:
        problem = f"the graph at {node.op.__name__} has been freed by an earlier backward pass, expected one backward per forward"
        raise RuntimeError(f"backward: {problem}; run the forward pass again, or add the losses and call backward once")
    needs = tuple(edge is not None for edge in node.edges)
    options = {"needs": needs} if node.op.backward_takes_needs else {}
    arrived = arrived if node.op.takes_half else [float32_if_half(dy) for dy in arrived]
    dy = arrived[0] if len(node.output_shapes) == 1 and not node.op.returns_tuple else tuple(arrived)
    result = node.op.backward(node.saved, dy, **options, **({"into": node.op.destinations(node)} if node.op.destinations else {}))
    node.saved = _FREED
    result = result if isinstance(result, tuple) else (result,)
    if node.record is not None:
        node.record.dys, node.record.dxs = tuple(arrived), result
    if len(result) != len(node.edges):
        raise RuntimeError(f"{where}: {len(result)} gradients, expected {len(needs)}, one per input; return None for inputs without one")
    for i, dx in enumerate(result):
        if needs[i] and dx is None:
            raise RuntimeError(f"{where}: None for input {i}, expected its gradient; the input requires one")
        if backend.debug:
            check_finite(f"{where}, gradient of input {i}", dx, [s for s in node.input_kinds if s])
    return result


def _undo_broadcasting(dx: Array, shape: tuple[int, ...], dtype: DType, op: "type[Op]", position: int) -> Array:
    """Sums `dx` over the axes along which an input of `shape` was broadcast, and casts it back to the input's dtype.

    If y = broadcast(x), each element of x is used by several of y, so its gradient is the sum of theirs.
    """
    if dx.shape != shape:
        if not broadcasts(shape, dx.shape):
            found = f"a gradient of shape {dx.shape} for input {position} of shape {shape}"
            rule = "expected the input's shape (or one that it broadcasts to)"
            raise RuntimeError(f"{op.__name__}.backward: {found}, {rule}; fix the op's backward")
        n_new = dx.ndim - len(shape)
        stretched = tuple(range(n_new)) + tuple(n_new + i for i, n in enumerate(shape) if n == 1 and dx.shape[n_new + i] != 1)
        dx = dx.sum(axis=stretched, keepdims=True, dtype=accumulator_dtype(dx)).reshape(shape)
    return dx if dx.dtype == dtype else dx.astype(dtype)


def broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of `shape` broadcasts to the shape `to`."""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(shape[::-1], to[::-1], strict=False))


def _add_to_leaf(leaf: Tensor, dx: Array, *, own: bool) -> None:
    """The first gradient is copied (unless it is `own`, an array that nobody shares), later ones are added in place; unless a kernel has done it."""
    if own and (dx is leaf._gradient_buffer or dx is leaf.grad):
        leaf.grad = dx
    elif leaf.grad is not None:
        leaf.grad += dx
    elif leaf._gradient_buffer is not None:
        leaf._gradient_buffer[...] = dx
        leaf.grad = leaf._gradient_buffer
    elif own and dx.dtype == leaf.data.dtype and dx.flags.c_contiguous:
        leaf.grad = dx
    else:
        leaf.grad = xp.array(dx, dtype=leaf.data.dtype, order="C")  # not dx.copy(): NumPy's 0-d results are scalars, and .grad is an array
    for told in _watchers.get():
        told(leaf)


class Op:
    """A differentiable function as two pure functions on arrays. Subclass it, define the two, call `apply`.

    forward(*inputs, **options) -> (y, saved)     y may be a tuple of outputs; `saved` is whatever backward needs
    backward(saved, dy) -> gradients              one per input (a bare array if there is one input); None for an input without one

    `saved` is private to its class: a kernel's backward reads what the kernel's own forward saved. More than two arrays are a NamedTuple.

    Either may declare the keyword `needs`: one bool per input, True where a gradient will be needed (all False under no_grad); work for the
    others may be skipped. Neither may write into its inputs or `dy`. A gradient may have a broadcast shape: the engine undoes that.
    """

    returns_tuple: ClassVar[bool] = False
    """True if forward returns a tuple of outputs; backward then gets a tuple of dy, None where an output was not used."""

    takes_half: ClassVar[bool] = False
    """True for ops that store float16 and bfloat16 or multiply matrices of them. All others get float32: the engine converts the inputs,
    and rounds the output back if every floating-point input had one such dtype."""

    supports: ClassVar[Callable[..., bool]]
    """Of a kernel: whether it takes these arrays and options."""

    forward_takes_needs: ClassVar[bool] = False
    backward_takes_needs: ClassVar[bool] = False
    destinations: ClassVar[Callable[..., object] | None] = None  # of kernels: for `into` of backward, see kernels/destination.py

    reference: ClassVar["type[Op]"]
    """The op that a kernel implements; for an op, itself."""

    forward: ClassVar[Callable[..., tuple[Array, object]]]
    backward: ClassVar[Callable[..., Array | tuple[Array | None, ...]]]

    @staticmethod
    def flops(inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> int:
        """Floating-point operations of forward, from shapes: 2 per multiply-add of a matrix product; without one, 1 per output element."""
        return sum(math.prod(shape) for shape in outputs)

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.reference = cls
        for which in ("forward", "backward"):
            code = getattr(getattr(cls, which, None), "__code__", None)
            if code is not None:
                setattr(cls, f"{which}_takes_needs", "needs" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])

    @staticmethod
    def sum_of(a: Array, b: Array) -> Array:
        """a + b, of two gradients. `autograd/ops/elementwise.py` attaches its own op here, which may have a kernel."""
        return a + b

    @classmethod
    def dispatch(cls, *arrays: Operand | None, **options: object) -> "type[Self]":
        """The class to run for these arrays: this one. `autograd/dispatch.py` attaches the choice among kernels here."""
        return cls

    @classmethod
    def apply(cls, *inputs: Operand | None, **options: object) -> Tensor:
        """Runs the op on tensors (also arrays, Python numbers and None), recorded if a gradient can be needed. A tuple where `returns_tuple`."""
        arrays: list[Array] = [x.data if isinstance(x, Tensor) else x for x in inputs]
        needs = tuple([isinstance(x, Tensor) and x.requires_grad and _recording.get() for x in inputs])
        for position, array in enumerate(arrays):
            if not isinstance(array, _NATIVE):
                _check_device(cls, position, array)
        op = cls.dispatch(*arrays, **options)
        arrays, narrow = (arrays, None) if op.takes_half else _without_half(arrays)
        y, saved = op.forward(*arrays, **options, needs=needs) if op.forward_takes_needs else op.forward(*arrays, **options)
        ys = y if op.returns_tuple else (y,)
        if narrow is not None:
            ys = tuple([out.astype(narrow) if _is_float(out) else out for out in ys])
        if backend.debug:
            for out in ys:
                check_finite(f"{op.__name__}.forward", out, [(a.shape, a.dtype) for a in arrays if hasattr(a, "shape")])
        node = None
        if True in needs:
            sources: list[Array] = [x if need else None for x, need in zip(inputs, needs, strict=True)]
            edges = tuple([x if x is None or x._node is None else (x._node, x._output) for x in sources])
            kinds = tuple([None if x is None else (x.data.shape, x.data.dtype) for x in sources])
            node = Node(op, saved, edges, kinds, tuple([out.shape for out in ys]))
        records = _records.get()
        if records is not None:
            outputs, dys, dxs = tuple([xp.asarray(out) for out in ys]), (None,) * len(ys), (None,) * len(inputs)
            records.append(OpRecord(op, inputs, options, outputs, saved, dys, dxs, variables.assigned(len(ys))))
            if node is not None:
                node.record = records[-1]
        results = tuple([_output(out, node, i) for i, out in enumerate(ys)])
        return results if op.returns_tuple else results[0]  # type: ignore[return-value]


class Movement(Op):
    """An op that moves numbers and computes none: it takes 16-bit formats as they are, and counts no floating-point operations."""

    takes_half = True

    @staticmethod
    def flops(inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> int:
        return 0


def saved_arrays(saved: object) -> Iterator[Array]:
    """The arrays in what a forward pass saved (nested tuples, lists, dicts), each once."""
    seen: set[int] = set()
    waiting = [saved]
    while waiting:
        item = waiting.pop()
        if isinstance(item, (tuple, list, dict)):
            waiting += reversed(list(item.values()) if isinstance(item, dict) else item)
        elif isinstance(item, backend.device_array) and id(item) not in seen:
            seen.add(id(item))
            yield item


def _output(data: Array, node: Node | None, i: int) -> Tensor:
    out = Tensor.__new__(Tensor)
    out.data = data if isinstance(data, backend.device_array) else xp.asarray(data)  # NumPy's reductions give scalars
    out.grad = None
    out.requires_grad = node is not None
    out._node = node
    out._output = i
    out._gradient_buffer = None
    return out


def _array(x: Operand) -> Array:
    return x.data if isinstance(x, Tensor) else x


def _is_float(array: Array) -> bool:
    return array.dtype.kind == "f" or is_half(array)


_HALF = tuple(d for d in (xp.dtype("float16"), backend.bfloat16) if d is not None)


def is_half(x: object) -> bool:
    """True for arrays of a 16-bit format: float16, and ml_dtypes' bfloat16 (of kind V for NumPy) where the backend has it."""
    return hasattr(x, "dtype") and x.dtype in _HALF


def float32_if_half(x: Array) -> Array:
    """16-bit arrays as float32, everything else unchanged: sums and exponentials need more bits or more range."""
    return x.astype(xp.float32) if is_half(x) else x


def accumulator_dtype(x: Array) -> type | DType:
    """The dtype for a sum of many elements of x: float32 for 16-bit formats, else their own dtype."""
    return xp.float32 if is_half(x) else x.dtype


def _without_half(arrays: list[Array]) -> tuple[list[Array], DType | None]:
    """(the inputs with float32 for 16-bit arrays, the dtype of all floating-point arrays among them if it is one of these)."""
    if not any(map(is_half, arrays)):
        return arrays, None
    dtypes = {a.dtype for a in arrays if hasattr(a, "dtype") and _is_float(a)}
    return [float32_if_half(a) for a in arrays], dtypes.pop() if len(dtypes) == 1 else None


_NATIVE = (backend.device_array, int, float, type(None))


def _check_device(op: "type[Op]", position: int, x: Array) -> None:
    """Raises TypeError, naming op and argument, for an array in the memory that the backend does not compute in, and for no array at all."""
    code = op.forward.__code__
    name = code.co_varnames[position] if position < code.co_argcount else f"input {position}"
    if isinstance(x, Tensor):
        raise TypeError(f"{op.__name__}: the data of {name} is a Tensor, expected an array; assign arrays, as in p.data = tensor.data")
    found = backend.foreign_device(x)
    if found:
        fix = "move it with autograd.backend.to_device, or pass it inside a Tensor"
        raise TypeError(f"{op.__name__}: {name} of shape {x.shape} is {found}, expected an array of the {backend.name} backend; {fix}")


def watch_gradients(told: Callable[[Tensor], None]) -> AbstractContextManager[object]:
    """Within this block `told` gets each leaf as soon as a backward pass has added to its gradient; so does who watches from outside."""
    return within(_watchers, (*_watchers.get(), told))


def no_grad() -> AbstractContextManager[bool]:
    """Within this block ops record nothing: less memory and time where no gradient is wanted (evaluation, generation)."""
    return within(_recording, False)


def is_recording() -> bool:
    """False inside `no_grad()`."""
    return _recording.get()
