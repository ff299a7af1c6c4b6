"""The array library of this process, chosen once by the environment.

AUTOGRAD_BACKEND   numpy (default) or cupy. Read here, once, at import: one backend per process.
AUTOGRAD_KERNELS   fast (default): ops run on the kernels of `autograd/kernels` where one fits; reference: the plain math of
                   `autograd/ops` everywhere; unmeasured: also kernels that no benchmark has justified yet.
AUTOGRAD_DEBUG     1: stop at the first non-finite output or gradient, naming the op.
AUTOGRAD_THREADS   number of CPU threads of the kernels; default: the cores this process may use.
AUTOGRAD_TF32      1: float32 matrix products on the GPU round their inputs to TF32. Faster and coarser; 0 (default) does not.

Everything else says `from autograd.backend import xp`. What `xp` cannot express is a function of the same name and arguments in
`_numpy.py` and `_cupy.py`, so no op holds an `if`. `to_device` and `to_host` are the only doors between the two memories.
"""

import os

__all__ = [
    "bfloat16",
    "check_backend",
    "compute_dtype",
    "debug",
    "device_array",
    "indices",
    "kernels",
    "memory_message",
    "name",
    "other_side",
    "out_of_memory_errors",
    "random_bits",
    "reason",
    "scatter_add",
    "synchronize",
    "to_device",
    "to_host",
    "xp",
]


def _choice(variable: str, default: str, legal: tuple[str, ...]) -> str:
    found = os.environ.get(variable, "").strip().lower() or default
    if found not in legal:
        raise ValueError(f"{variable}: {found!r}, expected one of {', '.join(legal)}; unset it for {default}")
    return found


name = _choice("AUTOGRAD_BACKEND", "numpy", ("numpy", "cupy"))
kernels = _choice("AUTOGRAD_KERNELS", "fast", ("fast", "reference", "unmeasured"))
debug = _choice("AUTOGRAD_DEBUG", "0", ("0", "1")) == "1"
_tf32 = _choice("AUTOGRAD_TF32", "0", ("0", "1")) == "1"

# Both modules have one shape: the same names with the same arguments (tests/autograd/test_backend.py compares them).
if name == "numpy":
    from autograd.backend._numpy import (
        bfloat16,
        check_backend,
        compute_dtype,
        device_array,
        indices,
        memory_message,
        other_side,
        out_of_memory_errors,
        random_bits,
        scatter_add,
        synchronize,
        to_device,
        to_host,
        xp,
    )
else:
    from autograd.backend._cupy import (  # type: ignore[assignment,no-redef]
        bfloat16,
        check_backend,
        compute_dtype,
        device_array,
        indices,
        memory_message,
        other_side,
        out_of_memory_errors,
        random_bits,
        scatter_add,
        synchronize,
        to_device,
        to_host,
        xp,
    )

_asked = "AUTOGRAD_BACKEND=" + name if os.environ.get("AUTOGRAD_BACKEND") else "the default, AUTOGRAD_BACKEND is not set"
reason = f"{name} ({_asked}): {check_backend(tf32=_tf32)}"
"""Why this backend runs and on what; every script prints it."""
