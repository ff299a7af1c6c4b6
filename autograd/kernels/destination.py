"""Gradients that a kernel writes where the optimizer keeps them, instead of into an array that the engine copies there."""

from collections.abc import Sequence
from typing import NamedTuple

from autograd.core import Array, Node, Tensor, leaf_of


class Destination(NamedTuple):
    """Where the gradient of a leaf belongs: a part of the optimizer's buffer, or the gradient that it has, of the leaf's shape and dtype."""

    buffer: Array
    filled: bool  # it holds an earlier gradient, to add to; else what it holds means nothing


Into = Sequence[Destination | None]
"""A kernel with the class attribute `destinations = staticmethod(destinations)` has a keyword `into` in its backward, with one entry per input.
A gradient that it has written to the buffer, or added where that is filled, is returned as that very array; others as usual, in arrays that
nobody else holds."""


def destinations(node: Node) -> Into:
    """None for inputs without a buffer, for the second of two equal inputs, and inside `record`, which keeps what backward returned."""
    found: list[Destination | None] = [None] * len(node.edges)
    for i, edge in enumerate(node.edges if node.record is None else ()):
        if not isinstance(edge, Tensor) or any(edge is other for other in node.edges[:i]):
            continue
        leaf = leaf_of(edge)
        buffer = leaf._gradient_buffer if leaf.grad is None else leaf.grad
        if buffer is not None and buffer.flags.c_contiguous and (buffer.shape, buffer.dtype) == (leaf.shape, leaf.dtype):
            found[i] = Destination(buffer, leaf.grad is not None)
    return found
