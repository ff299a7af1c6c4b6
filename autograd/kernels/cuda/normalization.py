"""Layer norm and RMS norm on the GPU; kernels: normalization.cu."""

from collections import namedtuple
from collections.abc import Callable

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.matmul import sum_parts
from autograd.kernels.cuda.module import WARP, contiguous, f32, i32, i64, kernel, name_of, rows_of, takes, width
from autograd.ops.normalization import LayerNorm, RMSNorm

# Partial sums of dgamma and dbeta, at most, by the bytes of an element: as many blocks as a large GPU, of 132 multiprocessors, runs at once.
_BACKWARD_BLOCKS = {2: 3 * 132, 4: 2 * 132}
_WARPS = 4  # of a block, at most; rows per block, where a warp holds a row
_IN_REGISTERS = 24  # numbers of a row that a thread holds, at most
_LONGEST = WARP * _WARPS * _IN_REGISTERS  # channels; longer rows are left to the definition

CUDASaved = namedtuple("CUDASaved", "x mean r gamma")


@kernel_for(LayerNorm)
class LayerNormCUDA(LayerNorm):
    """A row is read once and stays in registers; the normalized rows are recomputed, not saved. Reference: ops/normalization.py.

    Saves x (..., C), mean and r (rows,) in float32, gamma.
    """

    takes_half = True

    @staticmethod
    def supports(x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5) -> bool:
        return takes(x, gamma, beta) and x.shape[-1] <= _LONGEST

    @staticmethod
    def forward(x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5) -> tuple[Array, tuple[Array, ...]]:
        n_rows, n_channels = rows_of(x.shape), x.shape[-1]
        run, row_threads, rows = _by_rows("layer_norm_forward", x, gamma)
        y = xp.empty(x.shape, dtype=x.dtype)
        mean, r = (xp.empty(n_rows, dtype="float32") for _ in range(2))
        arguments = (y, mean, r, x, gamma, beta, i64(n_rows), i32(n_channels), f32(eps), i32(row_threads))
        run((-(-n_rows // rows),), (row_threads * rows,), arguments)
        return y, CUDASaved(x, mean, r, gamma)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
        x, mean, r, gamma = saved
        n_rows, n_channels = rows_of(x.shape), x.shape[-1]
        run, row_threads, rows = _by_rows("layer_norm_backward", x, gamma)
        n_blocks = min(-(-n_rows // rows), _BACKWARD_BLOCKS[x.itemsize])
        dx, parts = xp.empty(x.shape, dtype=x.dtype), xp.empty((2, n_blocks, n_channels), dtype="float32")
        arguments = (dx, parts, x, mean, r, gamma, contiguous(dy), i64(n_rows), i32(n_channels), i32(row_threads))
        run((n_blocks,), (row_threads * rows,), arguments)
        dgamma, dbeta = sum_parts(parts, parts.dtype)
        return dx, dgamma, dbeta


def _by_rows(name: str, x: Array, gamma: Array) -> tuple[Callable[..., None], int, int]:
    """(kernel, threads per row, rows per block): a warp per row if its channels fit into the warp's registers."""
    warps = 1 << max(0, (-(-x.shape[-1] // (WARP * _IN_REGISTERS)) - 1).bit_length())
    chunks = -(-x.shape[-1] // (WARP * warps * width(x.dtype)))
    run = kernel("normalization.cu", name, name_of(x.dtype), name_of(gamma.dtype), (("CHUNKS", chunks),))
    return run, WARP * warps, _WARPS if warps == 1 else 1


RMSNormCUDASaved = namedtuple("RMSNormCUDASaved", "x r weight offset")


@kernel_for(RMSNorm)
class RMSNormCUDA(RMSNorm):
    """A row is read once and stays in registers; the normalized rows are recomputed, not saved. Reference: ops/normalization.py.

    Saves x (..., C), r (rows,) in float32, weight.
    """

    takes_half = True

    @staticmethod
    def supports(x: Array, weight: Array | None, *, eps: float = 1e-6, offset: float = 0.0) -> bool:
        return takes(*(a for a in (x, weight) if a is not None)) and x.shape[-1] <= _LONGEST

    @staticmethod
    def forward(x: Array, weight: Array | None, *, eps: float = 1e-6, offset: float = 0.0) -> tuple[Array, tuple[Array, ...]]:
        n_rows, n_channels = rows_of(x.shape), x.shape[-1]
        if weight is None:
            weight, offset = xp.zeros(n_channels, dtype="float32"), 1.0
        run, row_threads, rows = _by_rows("rms_norm_forward", x, weight)
        y, r = xp.empty(x.shape, dtype=x.dtype), xp.empty(n_rows, dtype="float32")
        arguments = (y, r, x, weight, f32(offset), i64(n_rows), i32(n_channels), f32(eps), i32(row_threads))
        run((-(-n_rows // rows),), (row_threads * rows,), arguments)
        return y, RMSNormCUDASaved(x, r, weight, offset)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array]:
        x, r, weight, offset = saved
        n_rows, n_channels = rows_of(x.shape), x.shape[-1]
        run, row_threads, rows = _by_rows("rms_norm_backward", x, weight)
        n_blocks = min(-(-n_rows // rows), _BACKWARD_BLOCKS[x.itemsize])
        dx, parts = xp.empty(x.shape, dtype=x.dtype), xp.empty((1, n_blocks, n_channels), dtype="float32")
        arguments = (dx, parts, x, r, weight, f32(offset), contiguous(dy), i64(n_rows), i32(n_channels), i32(row_threads))
        run((n_blocks,), (row_threads * rows,), arguments)
        return dx, sum_parts(parts, parts.dtype)[0]
