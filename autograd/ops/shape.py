"""Ops that move elements without changing them. Each backward moves the gradients back to where the elements came from."""

import builtins
import math
from collections.abc import Sequence
from itertools import accumulate
from types import EllipsisType

from autograd import backend
from autograd.backend import xp
from autograd.core import Array, Movement, Operand, Tensor, broadcasts
from autograd.ops.elementwise import as_tensor
from autograd.ops.reduce import axes

Key = tuple[int | slice | EllipsisType | Array | None, ...]
"""An index: of NumPy's kinds, with arrays of integers on the device."""


class Reshape(Movement):
    """Forward     y = x in another shape, same order of elements
    Backward    dx = dy in the shape of x
    Shapes      as many elements before as after.  Saves the shape of x.
    """

    @staticmethod
    def forward(x: Array, *, shape: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
        return x.reshape(shape), x.shape

    @staticmethod
    def backward(shape: tuple[int, ...], dy: Array) -> Array:
        return dy.reshape(shape)


class Transpose(Movement):
    """Forward     y[..., i, ...] = x with its axes in the order `order`
    Backward    dx = dy with the inverse order
    Shapes      y.shape[k] = x.shape[order[k]].  Saves the order.  A view: nothing is copied.
    """

    @staticmethod
    def forward(x: Array, *, order: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
        return x.transpose(order), order

    @staticmethod
    def backward(order: tuple[int, ...], dy: Array) -> Array:
        inverse = [order.index(i) for i in range(len(order))]
        return dy.transpose(inverse)


class BroadcastTo(Movement):
    """Forward     y = x, repeated along new axes and axes of length 1
    Backward    dx = dy summed over the repeats (done by the engine, as for every op that broadcasts)
    Shapes      x broadcasts to `shape`.  Saves nothing.
    """

    @staticmethod
    def forward(x: Array, *, shape: tuple[int, ...]) -> tuple[Array, None]:
        return xp.broadcast_to(x, shape), None

    @staticmethod
    def backward(saved: None, dy: Array) -> Array:
        return dy


class Concatenate(Movement):
    """Forward     y = x1, x2, ... joined along an axis
    Backward    dx_i = the part of dy that x_i became
    Shapes      equal but for the axis.  Saves where the parts end.
    """

    @staticmethod
    def forward(*xs: Array, axis: int) -> tuple[Array, tuple[list[int], int]]:
        return xp.concatenate(xs, axis=axis), (list(accumulate(x.shape[axis] for x in xs[:-1])), axis)

    @staticmethod
    def backward(saved: tuple[list[int], int], dy: Array) -> tuple[Array, ...]:
        ends, axis = saved
        return tuple(xp.split(dy, ends, axis=axis))


class Stack(Movement):
    """Forward     y = x1, x2, ... stacked along a new axis
    Backward    dx_i = slice i of dy
    Shapes      all equal.  Saves the axis.
    """

    @staticmethod
    def forward(*xs: Array, axis: int) -> tuple[Array, int]:
        return xp.stack(xs, axis=axis), axis

    @staticmethod
    def backward(axis: int, dy: Array) -> tuple[Array, ...]:
        return tuple(xp.moveaxis(dy, axis, 0))


class Split(Movement):
    """Cut into parts. One op with several outputs, so that its backward is one concatenation.

    Forward     y1, ..., yn = x cut along an axis
    Backward    dx = dy1, ..., dyn joined; 0 for parts that were not used
    Shapes      y_i as x, but of the i-th length along the axis.  Saves the shapes of the parts.
    """

    returns_tuple = True

    @staticmethod
    def forward(x: Array, *, lengths: tuple[int, ...], axis: int) -> tuple[tuple[Array, ...], tuple[list[tuple[int, ...]], int]]:
        parts = tuple(xp.split(x, list(accumulate(lengths))[:-1], axis=axis))
        return parts, ([part.shape for part in parts], axis)

    @staticmethod
    def backward(saved: tuple[list[tuple[int, ...]], int], dys: tuple[Array | None, ...]) -> Array:
        shapes, axis = saved
        like = next(dy for dy in dys if dy is not None)
        filled = [xp.zeros(shape, dtype=like.dtype) if dy is None else dy for shape, dy in zip(shapes, dys, strict=True)]
        return backend.join(filled, axis)


class Index(Movement):
    """Forward     y = x[key]
    Backward    dx = 0 but for dx[key] += dy; an element taken twice gets both gradients
    Shapes      as NumPy's indexing with integers, slices, None, ... and integer arrays.  Saves the key and the shape of x.
    """

    @staticmethod
    def forward(x: Array, *, key: Key) -> tuple[Array, tuple[Key, tuple[int, ...]]]:
        return x[key], (key, x.shape)

    @staticmethod
    def backward(saved: tuple[Key, tuple[int, ...]], dy: Array) -> Array:
        key, shape = saved
        if not any(isinstance(k, backend.device_array) for k in key):
            dx = xp.zeros(shape, dtype=dy.dtype)
            dx[key] = dy  # slices never take an element twice
            return dx
        # Where each element of y came from, as a flat position in x: found by indexing the positions themselves.
        n = math.prod(shape)
        came_from = xp.arange(n).reshape(shape)[key]
        return backend.scatter_add((n,), came_from.reshape(-1), dy.reshape(-1)).reshape(shape)


def reshape(x: Tensor, shape: int | Sequence[int]) -> Tensor:
    """x with another shape; one length may be -1. Raises ValueError if the number of elements differs."""
    x = as_tensor("reshape", x)
    new = (shape,) if isinstance(shape, int) else tuple(shape)
    known = math.prod(n for n in new if n != -1)
    fits = x.size == known if -1 not in new else new.count(-1) == 1 and known > 0 and x.size % known == 0
    if not fits:
        raise ValueError(f"reshape: {x.size} elements of shape {x.shape} into {new}, expected equal numbers")
    return Reshape.apply(x, shape=new)


def transpose(x: Tensor, order: Sequence[int] | None = None) -> Tensor:
    """x with its axes in another order (reversed by default). Raises ValueError unless `order` names each axis once."""
    x = as_tensor("transpose", x)
    new = tuple(reversed(range(x.ndim))) if order is None else tuple(a + x.ndim if a < 0 else a for a in order)
    if sorted(new) != list(range(x.ndim)):
        raise ValueError(f"transpose: axes {order} for shape {x.shape}, expected each of its {x.ndim} axes once")
    return Transpose.apply(x, order=new)


def broadcast_to(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x repeated to `shape`. Raises ValueError if it does not broadcast."""
    x = as_tensor("broadcast_to", x)
    new = tuple(shape)
    if not broadcasts(x.shape, new):
        raise ValueError(f"broadcast_to: shape {x.shape} to {new}, expected equal or 1 in each trailing axis; reshape first")
    return BroadcastTo.apply(x, shape=new)


def concatenate(xs: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors joined along an existing axis. Raises ValueError if there are none or other axes differ."""
    xs = _tensors("concatenate", xs)
    (axis,) = axes(axis, xs[0].ndim)
    rest = [x.shape[:axis] + x.shape[axis + 1 :] for x in xs]
    if any(r != rest[0] for r in rest):
        raise ValueError(f"concatenate: shapes {[x.shape for x in xs]}, expected equal but for axis {axis}")
    return Concatenate.apply(*xs, axis=axis)


def stack(xs: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one shape, stacked along a new axis. Raises ValueError if there are none or shapes differ."""
    xs = _tensors("stack", xs)
    if any(x.shape != xs[0].shape for x in xs):
        raise ValueError(f"stack: shapes {[x.shape for x in xs]}, expected all equal; use concatenate for unequal lengths")
    (axis,) = axes(axis, xs[0].ndim + 1)
    return Stack.apply(*xs, axis=axis)


def _tensors(op: str, xs: Sequence[Operand]) -> list[Tensor]:
    if not xs:
        raise ValueError(f"{op}: an empty list, expected at least one tensor")
    return [as_tensor(op, x) for x in xs]


def split(x: Tensor, n: int | Sequence[int], axis: int = -1) -> tuple[Tensor, ...]:
    """n equal parts along an axis, or parts of the given lengths. Raises ValueError if the length does not divide, or is not their sum."""
    x = as_tensor("split", x)
    (axis,) = axes(axis, x.ndim)
    length = x.shape[axis]
    if isinstance(n, (int, xp.integer)):
        if n < 1 or length % n:
            raise ValueError(f"split: length {length} of axis {axis} into {n} parts, expected a divisor; give the lengths of unequal parts")
        lengths = (length // n,) * n
    else:
        lengths = tuple(n)
        if not all(isinstance(part, (int, xp.integer)) for part in lengths):
            raise TypeError(f"split: {n!r}, expected a number of equal parts, or the length of each, as in split(x, [4, 2, 2])")
        if not lengths or min(lengths) < 0 or builtins.sum(lengths) != length:
            raise ValueError(f"split: lengths {list(lengths)} of axis {axis} of length {length}, expected their sum to be that")
    return Split.apply(x, lengths=lengths, axis=axis)  # type: ignore[return-value]  # a tuple


def index(x: Tensor, key: Array) -> Tensor:
    """x[key] with integers, slices, `...`, None, integer arrays and boolean host arrays.

    Raises IndexError naming the first position out of range, TypeError for tensors as indices.
    """
    x = as_tensor("index", x)
    keys = key if isinstance(key, tuple) else (key,)
    device_keys: list[Array] = []
    axis = 0
    if any(isinstance(k, Tensor) for k in keys):
        raise TypeError("index: a Tensor as index, expected integers, slices or integer arrays; pass tensor.data")
    keys = tuple(backend.to_host(k) if isinstance(k, list) else k for k in keys)
    n_taken = builtins.sum(k.ndim if _is_mask(k) else 1 for k in keys if k is not None and k is not Ellipsis)
    for k in keys:
        if k is None or k is Ellipsis:
            device_keys.append(k)
            axis += 0 if k is None else x.ndim - n_taken
        elif axis >= x.ndim:
            raise IndexError(f"index: {len(keys)} indices for shape {x.shape}, expected at most {x.ndim}")
        elif isinstance(k, (slice, int)):
            if isinstance(k, int) and not -x.shape[axis] <= k < x.shape[axis]:
                raise IndexError(f"index: {k} for axis {axis} of length {x.shape[axis]}, expected -{x.shape[axis]} <= i < {x.shape[axis]}")
            device_keys.append(k)
            axis += 1
        else:
            for positions in _positions(k, x.shape[axis:]):
                n = x.shape[axis]
                bad = positions[(positions < -n) | (positions >= n)]
                if bad.size:
                    raise IndexError(f"index: {bad[0]} for axis {axis} of length {n}, expected -{n} <= i < {n}")
                wrapped = positions + n * (positions < 0)  # NumPy's negative indices
                device_keys.append(backend.checked_indices(wrapped, n)[0])
                axis += 1
    return Index.apply(x, key=tuple(device_keys))


def _is_mask(k: Array) -> bool:
    return hasattr(k, "dtype") and k.dtype.kind == "b"


def _positions(k: Array, shape: tuple[int, ...]) -> Sequence[Array]:
    """An array index as integer host arrays, one per axis that it uses; a boolean mask becomes its True positions."""
    host = backend.to_host(k)
    if _is_mask(host):
        if host.shape != shape[: host.ndim]:
            raise IndexError(f"index: a boolean mask of shape {host.shape} for axes {shape}, expected their lengths")
        return host.nonzero()
    if host.size and host.dtype.kind not in "iu":
        raise TypeError(f"index: an array of {host.dtype}, expected integers, booleans or slices; convert with .astype(int)")
    return [host.astype("int64")]
