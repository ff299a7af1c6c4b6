"""Passes without gradients at full speed: `mode()` for those through ops, and, where `available()` says so, functions of a few rows for
decoding, without graph and without allocation.

The functions are those of `autograd/kernels/cpu/rows.py`. Elsewhere (CuPy, AUTOGRAD_KERNELS=reference) the ops do the same work.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from autograd import backend
from autograd.core import no_grad
from autograd.dispatch import kernel_mode

__all__ = [
    "activate",
    "attention",
    "available",
    "gated_silu",
    "gelu",
    "halves",
    "layer_norm",
    "linear",
    "mode",
    "preferred_layout",
    "rms_norm",
    "rotary",
]

if backend.name == "numpy":
    from autograd.kernels.cpu.matmul import few_rows_by_blas
    from autograd.kernels.cpu.rows import (
        activate,
        attention,
        gated_silu,
        gelu,
        halves,
        layer_norm,
        linear,
        preferred_layout,
        rms_norm,
        rotary,
    )


def available() -> bool:
    """Whether the functions of this module exist here and fast kernels are wanted."""
    return backend.name == "numpy" and kernel_mode() != "reference"


@contextmanager
def mode() -> Iterator[None]:
    """`no_grad`, and products of a few rows the fastest way: on some processors with another rounding than a recorded pass has."""
    with no_grad(), few_rows_by_blas() if backend.name == "numpy" else nullcontext():
        yield
