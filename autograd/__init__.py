"""Reverse-mode automatic differentiation over NumPy arrays (or CuPy's: AUTOGRAD_BACKEND=cupy), with every backward pass written out.

    import autograd as ag
    x = ag.Tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = (x * x).sum()
    loss.backward()
    x.grad                      # array([2., 4., 6.])

The engine is `autograd/core.py`; the ops, forward above backward under one formula each, are in `autograd/ops/`.
"""

from autograd import drawing as drawing  # gives tensors their method `draw`
from autograd import kernels as kernels  # registers the kernels of the backend in use
from autograd.core import Array, Op, OpRecord, Parameter, Tensor, is_recording, no_grad, record, watch_gradients
from autograd.dispatch import kernel_for, kernel_mode, registered_kernels, use_kernels
from autograd.finite import failures
from autograd.ops import *  # noqa: F403  (every op as a function; `autograd.ops.__all__` lists them)
from autograd.ops import __all__ as _op_names
from autograd.positions import alibi_slopes

__all__ = [  # noqa: PLE0604  (the names of the ops come from their own list)
    "Array", "Op", "OpRecord", "Parameter", "Tensor", "alibi_slopes", "failures", "is_recording", "kernel_for", "kernel_mode", "no_grad", "record",
    "registered_kernels", "use_kernels", "watch_gradients", *_op_names,
]  # fmt: skip
