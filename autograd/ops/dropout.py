"""Dropout, and the counter-based stream that its masks come from."""

import math
from typing import NamedTuple

from autograd import backend
from autograd.backend import DType
from autograd.core import Array, Op, Tensor
from autograd.ops.elementwise import as_tensor

_RESOLUTION = 1 << 16  # masks are cut from 16-bit integers


class RandomStream:
    """Numbers the draws of one seed. A mask is a pure function of (seed, draw, element), so `counter` is all that resuming needs.

    seed        non-negative integer
    counter     how many masks have been drawn so far: the next draw's number
    first_row   for a part of a batch: the row (first axis) at which the part begins, so that it gets its rows of the batch's mask
    """

    def __init__(self, seed: int, counter: int = 0) -> None:
        if seed < 0 or counter < 0:
            raise ValueError(f"RandomStream: seed {seed}, counter {counter}, expected both >= 0")
        self.seed, self.counter, self.first_row = seed, counter, 0

    def next_draw(self) -> int:
        self.counter += 1
        return self.counter - 1

    def next_mask(self, p: float, shape: tuple[int, ...]) -> "Mask":
        """The next mask, for an array of `shape`: the full batch, or a part of it that begins at `first_row`."""
        return Mask(p, self.seed, self.next_draw(), start=self.first_row * math.prod(shape[1:]))

    def __repr__(self) -> str:
        return f"RandomStream(seed={self.seed}, counter={self.counter})"


class Mask(NamedTuple):
    """The arguments that reproduce a dropout mask, saved instead of it."""

    p: float  # probability of dropping an element
    seed: int
    draw: int  # number of the draw in the stream of that seed
    start: int  # its first element


class Dropout(Op):
    """Zero each element with probability p, scale the rest by 1 / (1 - p) so that the mean stays (inverted dropout).

    Forward     y = x m,  m = 0 with probability p, else 1 / (1 - p)
    Backward    dx = dy m
    Shapes      any.  Saves no mask: seed, draw and start give it again.
    Source      Srivastava et al. 2014, JMLR 15, section 4.
    """

    @staticmethod
    def forward(x: Array, *, p: float, seed: int, draw: int, start: int = 0) -> tuple[Array, Mask]:
        return x * dropout_mask(x.shape, x.dtype, p, seed, draw, start), Mask(p, seed, draw, start)

    @staticmethod
    def backward(saved: Mask, dy: Array) -> Array:
        return dy * dropout_mask(dy.shape, dy.dtype, *saved)


def dropout_mask(shape: tuple[int, ...], dtype: DType, p: float, seed: int, draw: int, start: int = 0) -> Array:
    """The mask of draw number `draw`, from element `start`, scaled: an array of `shape` holding 0 and 1 / (1 - p)."""
    threshold, scale = dropout_threshold(p)
    keep = backend.random_bits(seed, draw, start, math.prod(shape)) >= threshold
    return keep.reshape(shape).astype(dtype) * scale


def dropout_threshold(p: float) -> tuple[int, float]:
    """(threshold, scale): keep where a 16-bit integer is >= threshold, times scale; scale fits the rounded p, so the mean is exact."""
    threshold = round(p * _RESOLUTION)
    return threshold, _RESOLUTION / (_RESOLUTION - threshold)


default_stream = RandomStream(0)


def dropout(x: Tensor, p: float = 0.5, training: bool = True, stream: RandomStream | None = None) -> Tensor:
    """Inverted dropout; the identity unless `training`, or if p is 0.

    p        probability of zeroing, 0 <= p < 1, rounded to 1 / 65536
    stream   where the mask comes from; by default one stream of seed 0 for the process
    """
    check_probability("dropout", p)
    x = as_tensor("dropout", x)
    if not training or p == 0:
        return x
    return Dropout.apply(x, **(stream or default_stream).next_mask(p, x.shape)._asdict())


def check_probability(op: str, p: float) -> None:
    if not 0 <= p <= (_RESOLUTION - 1) / _RESOLUTION:
        raise ValueError(f"{op}: dropout probability {p}, expected 0 <= p < 1; p is the share that is dropped")
