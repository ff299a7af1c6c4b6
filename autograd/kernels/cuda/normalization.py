"""Layer norm on the GPU; kernels: normalization.cu."""

from collections import namedtuple

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.matmul import sum_parts
from autograd.kernels.cuda.module import MAX_THREADS, contiguous, f32, i32, i64, kernel, row_threads, rows_of, takes, width
from autograd.ops.normalization import LayerNorm

_BACKWARD_BLOCKS = 1024  # partial sums of dgamma and dbeta, at most: enough blocks to fill a large GPU several times over

CUDASaved = namedtuple("CUDASaved", "x mean r gamma")


@kernel_for(LayerNorm, experimental=True)
class LayerNormCUDA(LayerNorm):
    """A row is read once and stays in registers; the normalized rows are recomputed, not saved. Reference: ops/normalization.py.

    gamma and beta may be float32 with bfloat16 activations. Saves x (..., C), mean and r (rows,) in float32, gamma.
    """

    takes_half = True

    @staticmethod
    def supports(x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5) -> bool:
        parameters = takes(gamma, beta) and gamma.dtype.name in (x.dtype.name, "float32")
        return takes(x) and parameters and x.shape[-1] <= MAX_THREADS * width(x.dtype)

    @staticmethod
    def forward(x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5) -> tuple[Array, tuple[Array, ...]]:
        n_rows, n_channels = rows_of(x.shape), x.shape[-1]
        y = xp.empty(x.shape, dtype=x.dtype)
        mean, r = (xp.empty(n_rows, dtype="float32") for _ in range(2))
        run = kernel("normalization.cu", "layer_norm_forward", x.dtype.name, gamma.dtype.name)
        run((n_rows,), (row_threads(n_channels, x.dtype),), (y, mean, r, x, gamma, beta, i32(n_channels), f32(eps)))
        return y, CUDASaved(x, mean, r, gamma)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
        x, mean, r, gamma = saved
        n_rows, n_channels = rows_of(x.shape), x.shape[-1]
        n_blocks = min(n_rows, _BACKWARD_BLOCKS)
        dx = xp.empty(x.shape, dtype=x.dtype)
        parts = [xp.empty((n_blocks, n_channels), dtype="float32") for _ in range(2)]
        run = kernel("normalization.cu", "layer_norm_backward", x.dtype.name, gamma.dtype.name)
        arguments = (dx, *parts, x, mean, r, gamma, contiguous(dy), i64(n_rows), i32(n_channels))
        run((n_blocks,), (row_threads(n_channels, x.dtype),), arguments)
        dgamma, dbeta = (sum_parts(part, gamma.dtype) for part in parts)
        return dx, dgamma, dbeta
