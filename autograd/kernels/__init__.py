"""Faster stand-ins for ops, registered with `kernel_for`: NumPy in cache-sized blocks over threads (cpu/), CUDA (cuda/).

Nothing here defines what an op means: reference, formula and derivation are in `autograd/ops/`, and every kernel is tested to
equal its reference. AUTOGRAD_KERNELS=reference leaves them all out.
"""

from autograd import backend

if backend.name == "numpy":
    from autograd.kernels import cpu as cpu
else:
    from autograd.kernels import cuda as cuda
