"""Forward passes of a few rows, for decoding: where `available()` says so, without graph and without allocation.

The functions are those of `autograd/kernels/cpu/rows.py`. Elsewhere (CuPy, AUTOGRAD_KERNELS=reference) the ops do the same work.
"""

from autograd import backend
from autograd.dispatch import kernel_mode

__all__ = ["attention", "available", "gelu", "layer_norm", "linear", "preferred_layout"]

if backend.name == "numpy":
    from autograd.kernels.cpu.rows import attention, gelu, layer_norm, linear, preferred_layout


def available() -> bool:
    """Whether the functions of this module exist here and fast kernels are wanted."""
    return backend.name == "numpy" and kernel_mode() != "reference"
