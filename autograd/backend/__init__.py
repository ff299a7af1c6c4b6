"""The array library of this process, chosen once by the environment.

AUTOGRAD_BACKEND   numpy (default) or cupy. Read here, once, at import: one backend per process.
AUTOGRAD_KERNELS   fast (default): ops run on the kernels of `autograd/kernels` where one fits; reference: on the definitions in
                   `autograd/ops` everywhere.
AUTOGRAD_DEBUG     1: stop at the first non-finite output or gradient, naming the op.
AUTOGRAD_THREADS   number of CPU threads of the kernels; default: the cores this process may use.
AUTOGRAD_TUNE      1: on the GPU, matrix products of each shape are timed at first use with several algorithms, and the fastest is kept. Which one it
                   is can differ from run to run, and with it the last bits; 0 (default) takes the library's choice.
AUTOGRAD_TF32      1: float32 matrix products on the GPU round their inputs to TF32. Faster and coarser; 0 (default) does not.

All other code uses `from autograd.backend import xp`. What `xp` cannot express is a function of the same name and arguments in
`_numpy.py` and `_cupy.py`, so no op contains an `if`. `to_device` and `to_host` are the only doors between the two memories.
"""

import os

from autograd.backend._common import Array, ArrayLike, DType, DTypeLike, message_only


def _choice(variable: str, default: str, legal: tuple[str, ...]) -> str:
    found = os.environ.get(variable, "").strip().lower() or default
    if found not in legal:
        raise message_only(ValueError(f"{variable}: {found!r}, expected one of {', '.join(legal)}; unset it for {default}"))
    return found


name = _choice("AUTOGRAD_BACKEND", "numpy", ("numpy", "cupy"))
KERNEL_MODES = ("fast", "reference")
kernels = _choice("AUTOGRAD_KERNELS", "fast", KERNEL_MODES)
debug = _choice("AUTOGRAD_DEBUG", "0", ("0", "1")) == "1"
tf32 = _choice("AUTOGRAD_TF32", "0", ("0", "1")) == "1"
tune = _choice("AUTOGRAD_TUNE", "0", ("0", "1")) == "1"

# Both modules define the same names, those of `_numpy.__all__`, with the same arguments (tests/autograd/test_backend.py compares them).
if name == "numpy":
    from autograd.backend import _numpy as _module
    from autograd.backend._numpy import *  # noqa: F403
else:
    from autograd.backend import _cupy as _module  # type: ignore[no-redef]
    from autograd.backend._cupy import *  # noqa: F403

__all__ = [  # noqa: PLE0604
    "KERNEL_MODES", "Array", "ArrayLike", "DType", "DTypeLike", "as_mask", "debug", "kernels", "name", "reason", *_module.__all__,
]  # fmt: skip


def as_mask(mask: Array, what: str) -> Array:
    """Booleans, in the memory where `mask` lies, from booleans or exact 0 and 1. Raises ValueError for anything else."""
    mask = mask if hasattr(mask, "dtype") else _module.to_host(mask)
    flat = mask.reshape(-1)
    other = flat[:0] if mask.dtype == bool else flat[(flat != 0) & (flat != 1)]
    if other.size:
        raise ValueError(
            f"{what}: {other[0]} in a mask of shape {mask.shape}, expected booleans or 0 and 1, where 1 means attend and 0 do not; "
            "for the other convention, 0 for attend and -inf or -1e9 for do not, which is added to scores, pass mask == 0"
        )
    return mask.astype(bool)


_asked = "AUTOGRAD_BACKEND=" + name if os.environ.get("AUTOGRAD_BACKEND") else "the default, AUTOGRAD_BACKEND is not set"
reason = f"{name} ({_asked}): {_module.check_backend(tf32=tf32)}"
"""Which backend runs, why, and on what device; every script prints it."""
