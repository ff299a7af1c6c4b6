"""Which class runs for an op: the reference, with the op's own two functions, or a kernel registered for it.

`Op.apply` asks `Op.dispatch`, to which the function below is attached. The files of `autograd/ops` never mention kernels.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import TypeVar

from autograd import backend
from autograd.core import Op, Operand, within

_kernels: dict[type[Op], list[type[Op]]] = {}
_mode: ContextVar[str] = ContextVar("kernels", default=backend.kernels)

K = TypeVar("K", bound=type[Op])


def kernel_for(reference: type[Op]) -> Callable[[K], K]:
    """Registers the decorated class, a subclass of `reference`, as a faster implementation of it.

    `kernel.supports(*arrays, **options)` decides call by call; where none says yes, the reference runs.
    """

    def register(kernel: K) -> K:
        if not issubclass(kernel, reference):
            raise TypeError(
                f"kernel_for: {kernel.__name__}, expected a subclass of {reference.__name__}; derive it from the op it speeds up"
            )
        kernel.reference = reference
        _kernels.setdefault(reference, []).append(kernel)
        return kernel

    return register


def dispatch(reference: type[Op], /, *arrays: Operand | None, **options: object) -> type[Op]:
    """The class to run for this call: the first registered kernel that supports it, else `reference` itself."""
    candidates = _kernels.get(reference)
    if candidates:
        for kernel in candidates if _mode.get() == "fast" else ():
            if kernel.supports(*arrays, **options):
                return kernel
    return reference


setattr(Op, "dispatch", classmethod(dispatch))  # noqa: B010  (mypy takes no assignment to a method)


def registered_kernels() -> dict[type[Op], list[type[Op]]]:
    """Each op that has kernels, with them, in order of preference."""
    return {reference: list(kernels) for reference, kernels in _kernels.items()}


def kernel_mode() -> str:
    """ "fast" or "reference": the mode of AUTOGRAD_KERNELS or of the innermost `use_kernels`."""
    return _mode.get()


def use_kernels(mode: str) -> AbstractContextManager[str]:
    """Within this block: "fast" or "reference" kernels, whatever AUTOGRAD_KERNELS says."""
    if mode not in backend.KERNEL_MODES:
        raise ValueError(f"use_kernels: {mode!r}, expected one of {', '.join(backend.KERNEL_MODES)}; see AUTOGRAD_KERNELS")
    return within(_mode, mode)
