"""Layer norm and RMS norm on the GPU; kernels: normalization.cu."""

from collections import namedtuple

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.module import MAX_THREADS, contiguous, f32, i32, i64, kernel, row_threads, rows_of, takes, width
from autograd.ops.normalization import LayerNorm, RMSNorm

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
        dgamma, dbeta = (_sum_over_blocks(part, x, gamma) for part in parts)
        return dx, dgamma, dbeta


def _sum_over_blocks(parts: Array, x: Array, parameter: Array) -> Array:
    """The sum of parts (blocks, C) over the blocks, in their order, in the parameter's dtype."""
    n_blocks, n_channels = parts.shape
    total = xp.empty(n_channels, dtype=parameter.dtype)
    add = kernel("normalization.cu", "sum_blocks", x.dtype.name, parameter.dtype.name)
    add((-(-n_channels // 32),), (MAX_THREADS,), (total, parts, i32(n_blocks), i32(n_channels)))
    return total


RMSNormCUDASaved = namedtuple("RMSNormCUDASaved", "x r weight offset")


@kernel_for(RMSNorm, experimental=True)
class RMSNormCUDA(RMSNorm):
    """A row is read once and stays in registers; the normalized rows are recomputed, not saved. Reference: ops/normalization.py.

    The weight may be float32 with bfloat16 activations. Saves x (..., C), r (rows,) in float32, weight.
    """

    takes_half = True

    @staticmethod
    def supports(x: Array, weight: Array | None, *, eps: float = 1e-6, offset: float = 0.0) -> bool:
        fits = weight is None or (takes(weight) and weight.dtype.name in (x.dtype.name, "float32"))
        return takes(x) and fits and x.shape[-1] <= MAX_THREADS * width(x.dtype)

    @staticmethod
    def forward(x: Array, weight: Array | None, *, eps: float = 1e-6, offset: float = 0.0) -> tuple[Array, tuple[Array, ...]]:
        n_rows, n_channels = rows_of(x.shape), x.shape[-1]
        if weight is None:
            weight, offset = xp.zeros(n_channels, dtype="float32"), 1.0
        y, r = xp.empty(x.shape, dtype=x.dtype), xp.empty(n_rows, dtype="float32")
        run = kernel("normalization.cu", "rms_norm_forward", x.dtype.name, weight.dtype.name)
        run((n_rows,), (row_threads(n_channels, x.dtype),), (y, r, x, weight, f32(offset), i32(n_channels), f32(eps)))
        return y, RMSNormCUDASaved(x, r, weight, offset)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array]:
        x, r, weight, offset = saved
        n_rows, n_channels = rows_of(x.shape), x.shape[-1]
        n_blocks = min(n_rows, _BACKWARD_BLOCKS)
        dx, parts = xp.empty(x.shape, dtype=x.dtype), xp.empty((n_blocks, n_channels), dtype="float32")
        run = kernel("normalization.cu", "rms_norm_backward", x.dtype.name, weight.dtype.name)
        arguments = (dx, parts, x, r, weight, f32(offset), contiguous(dy), i64(n_rows), i32(n_channels))
        run((n_blocks,), (row_threads(n_channels, x.dtype),), arguments)
        return dx, _sum_over_blocks(parts, x, weight)
