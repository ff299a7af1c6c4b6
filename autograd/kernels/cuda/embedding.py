"""The gradient of an embedding table on the GPU; kernel: embedding.cu."""

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.module import STORAGE, WARP, contiguous, i32, i64, kernel, width
from autograd.ops.embedding import Embedding

_BACKWARD_THREADS = 256  # 32 * N_WARPS of the kernel


@kernel_for(Embedding)
class EmbeddingCUDA(Embedding):
    """The lookup is the reference's; the gradient is summed without atomics, in a fixed order. Reference: ops/embedding.py."""

    @staticmethod
    def supports(weight: Array, ids: Array) -> bool:
        return weight.dtype.name in STORAGE and ids.dtype.name == "int64" and ids.size > 0 and weight.size > 0

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, None]:
        ids, shape = saved
        order = xp.argsort(ids.reshape(-1), kind="stable")
        sorted_ids = ids.reshape(-1)[order]
        dweight = xp.zeros(shape, dtype=dy.dtype)
        grid = (ids.size, -(-shape[1] // (WARP * width(dy.dtype))))
        arguments = (dweight, contiguous(dy), sorted_ids, order, i64(ids.size), i32(shape[1]))
        kernel("embedding.cu", "embedding_backward", dy.dtype.name)(grid, (_BACKWARD_THREADS,), arguments)
        return dweight, None
