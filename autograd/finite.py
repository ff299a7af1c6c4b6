"""Debug mode's check of what ops compute: the first number that is not finite names its op."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from autograd import backend
from autograd.backend import Array, DType, xp

_failures: "ContextVar[Failures | None]" = ContextVar("failures", default=None)


@dataclass
class Failures:
    """What debug mode has found in a block of `failures()`: after how many checks the first op failed, and its message; None: no op has."""

    n_checks: int = 0
    first: tuple[int, str] | None = None


@contextmanager
def failures() -> Iterator[Failures]:
    """Within this block debug mode notes the first op that fails and computes on, with what is not finite: for ranks that compute an op
    together, as one that stopped would leave the others waiting."""
    found = Failures()
    token = _failures.set(found)
    try:
        yield found
    finally:
        _failures.reset(token)


def check_finite(where: str, array: Array | None, inputs: Sequence[tuple[tuple[int, ...], DType]]) -> None:
    """Raises FloatingPointError, or notes in a block of `failures()`, that `where` computed an array of floats that are not all finite."""
    noted = _failures.get()
    if noted is not None:
        noted.n_checks += 1
    if array is None or not hasattr(array, "dtype") or not (array.dtype.kind == "f" or array.dtype in (backend.bfloat16,)):
        return
    if bool(xp.isfinite(array).all()):
        return
    n = int((~xp.isfinite(array)).sum())
    shapes = ", ".join(f"{shape} {dtype}" for shape, dtype in inputs)
    found = f"{n} of {array.size} values of shape {array.shape} are not finite, expected finite numbers; inputs were {shapes}"
    message = f"{where}: {found}; this is the first op to fail (AUTOGRAD_DEBUG=1), look at what feeds it"
    if noted is None:
        raise FloatingPointError(message)
    noted.first = noted.first or (noted.n_checks, message)
