"""Faster implementations of ops, registered with `kernel_for`: NumPy in cache-sized blocks over threads (cpu/), CUDA (cuda/).

Nothing here defines an op: reference, formula and derivation are in `autograd/ops/`, and every kernel is tested against its
reference. AUTOGRAD_KERNELS=reference disables them all.
"""

from autograd import backend

if backend.name == "numpy":
    from autograd.kernels import cpu as cpu
else:
    from autograd.kernels import cuda as cuda
