"""A model's weights in 16 bits, cast together at the start of each pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from autograd.backend import DType, xp
from autograd.core import Array, Narrowed, Op, Parameter, within
from autograd.dispatch import kernel_mode

if TYPE_CHECKING:
    from autograd.nn import Module


class CastWeights(Op):
    """All weights of a model in the dtype that it computes in.

    Forward     y_i = x_i in `dtype`; `again` writes the y_i anew when weights have changed
    Backward    none: each y_i stands in for its weight (`core.Narrowed`), to which gradients go at once, in float32 where they were summed in it
    Shapes      any.  Saves pairs of arrays, of a source and where it is cast to.
    Why together: weights that are neighbours in memory, as an optimizer's are, take one kernel on a GPU.
    """

    returns_tuple = True
    takes_half = True

    @staticmethod
    def forward(*xs: Array, dtype: DType) -> tuple[tuple[Array, ...], list[tuple[Array, Array]]]:
        ys = tuple(x.astype(dtype) for x in xs)
        return ys, list(zip(xs, ys, strict=True))

    @staticmethod
    def again(saved: list[tuple[Array, Array]]) -> None:
        for x, y in saved:
            y[...] = x


class _Cast:
    """The weights of a module in 16 bits, kept for the next time: making hundreds of arrays anew takes longer than casting them."""

    def __init__(self, parameters: list[Parameter], dtype: DType) -> None:
        self.made_for, self.sources = (kernel_mode(), dtype), [p.data for p in parameters]
        self.op = CastWeights.dispatch(*self.sources, dtype=dtype)
        arrays, self.saved = self.op.forward(*self.sources, dtype=dtype)
        self.narrowed = [Narrowed(array, parameter) for array, parameter in zip(arrays, parameters, strict=True)]

    def renewed(self, parameters: list[Parameter], dtype: DType) -> bool:
        """Casts again. False, and nothing done, if these are others, lie elsewhere, or one has been frozen or thawed."""
        same = self.made_for == (kernel_mode(), dtype) and len(parameters) == len(self.sources)
        for p, source, narrow in zip(parameters, self.sources, self.narrowed, strict=False) if same else ():
            same = same and p.data is source and narrow.parameter is p and narrow.requires_grad == p.requires_grad
        if same:
            self.op.again(self.saved)
        return same


_casts: "WeakKeyDictionary[Module, _Cast]" = WeakKeyDictionary()
_narrowed: ContextVar["Module | None"] = ContextVar("narrowed", default=None)
"""The module of the innermost `weights_in`."""


@contextmanager
def weights_in(module: "Module", dtype: DType) -> Iterator[None]:
    """Within this block the layers of `module` find their weights in `dtype`, cast once and together, not one by one at each use.

    Does nothing for float32, and inside of another such block.
    """
    done = dtype == xp.float32 or _narrowed.get() is module
    parameters = [] if done else [p for p in module.parameters() if p.narrow is None]
    if parameters:
        cast = _casts.get(module)
        if cast is None or not cast.renewed(parameters, dtype):
            cast = _casts[module] = _Cast(parameters, dtype)
        for parameter, narrow in zip(parameters, cast.narrowed, strict=True):
            parameter.narrow = narrow
    try:
        with within(_narrowed, module):
            yield
    finally:
        for parameter in parameters:
            parameter.narrow = None
