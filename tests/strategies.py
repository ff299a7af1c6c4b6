"""Hypothesis strategies: shapes, memory layouts, seeds.

Hypothesis draws only what is worth shrinking. The values come from `default_rng(seed)` at natural scale: drawn numbers would
shrink to zeros and ties, which are the kinks of half the ops and have tests of their own.
"""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from autograd.backend import xp

seeds = st.integers(0, 2**32 - 1)
layouts = st.sampled_from(["contiguous", "transposed", "strided", "reversed"])

_LENGTHS = {
    "small": st.one_of(st.integers(1, 33), st.sampled_from([1, 2, 3, 31, 32, 33])),  # one below, at and above a block of 32
    "large": st.sampled_from([127, 128, 129, 300]),  # what kernels with a minimum size need
}


def lengths(scale: str = "small") -> st.SearchStrategy[int]:
    """The length of an axis that an op works along."""
    return _LENGTHS[scale]


@st.composite
def shapes(draw: st.DrawFn, least: int = 0, most: int = 4, scale: str = "small", empty: bool = False) -> tuple[int, ...]:
    """least .. most axes: the last two of any length, leading ones short. With `empty`, one leading axis may be 0: no rows."""
    n = draw(st.integers(least, most))
    shape = [draw(st.integers(1, 3)) for _ in range(n - 2)] + [draw(lengths(scale)) for _ in range(min(n, 2))]
    if empty and n > 1 and draw(st.integers(0, 9)) == 9:
        shape[draw(st.integers(0, n - 2))] = 0
    return tuple(shape)


@st.composite
def broadcast_shapes(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that broadcasts to `shape`: some axes 1, leading ones left out."""
    stretched = [1 if draw(st.booleans()) else n for n in shape]
    return tuple(stretched[draw(st.integers(0, len(shape))) :])


@st.composite
def some_axes(draw: st.DrawFn, shape: tuple[int, ...], empty: bool = False) -> int | tuple[int, ...] | None:
    """An `axis` argument for `shape`: None, one, several, counted from either end; without `empty`, none of length 0."""
    usable = [a for a, n in enumerate(shape) if n or empty]
    if len(usable) == len(shape) and draw(st.integers(0, 3)) == 0:
        return None
    if not usable:
        return ()
    chosen = draw(st.lists(st.sampled_from(usable), unique=True, min_size=1))
    signed = tuple(a - len(shape) if draw(st.booleans()) else a for a in chosen)
    return signed[0] if len(signed) == 1 and draw(st.booleans()) else signed


def arranged(array: Any, layout: str) -> Any:
    """A copy of a device array with the same values in another order of memory; gaps hold NaN, so that reading them shows."""
    if array.ndim == 0:
        return xp.array(array)
    if layout == "transposed":
        return xp.array(array.T, order="C").T
    if layout == "strided":
        buffer = xp.full([2 * n for n in array.shape], xp.nan, dtype=array.dtype)
        view = buffer[tuple(slice(None, None, 2) for _ in array.shape)]
        view[...] = array
        return view
    if layout == "reversed":
        backwards = tuple(slice(None, None, -1) for _ in array.shape)
        return xp.array(array[backwards], order="C")[backwards]
    return xp.array(array, order="C")


# Values of one shape, each kind inside the smooth domain of some ops.


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """At least 0.3: for log, sqrt and real exponents."""
    return 0.3 + np.abs(rng.standard_normal(shape))


def nonzero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """At least 0.3 away from 0 on either side: for divisors and the kink of relu."""
    return positive(rng, shape) * rng.choice([-1.0, 1.0], shape)


def distinct(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Between -3 and 3, no two closer than the even spacing: for max, whose kinks are ties."""
    n = int(np.prod(shape))
    return (6.0 * (rng.permutation(n) + 0.5) / max(n, 1) - 3.0).reshape(shape)


def spread(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Rows of standard deviation about 1, never nearly constant: for layer norm, which magnifies rows that are."""
    order = rng.permuted(np.broadcast_to(np.linspace(-1.7, 1.7, shape[-1]), shape), axis=-1) if np.prod(shape) else np.zeros(shape)
    return order + 0.3 * rng.uniform(-1, 1, shape)
