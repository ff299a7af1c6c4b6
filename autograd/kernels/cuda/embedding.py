"""The gradient of an embedding table on the GPU; kernels: embedding.cu."""

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.matmul import sum_parts
from autograd.kernels.cuda.module import STORAGE, WARP, contiguous, i32, i64, kernel, width
from autograd.ops.embedding import Embedding

_CHUNK = 1024  # positions that a block sorts; CHUNK of the kernels
_MAX_IDS = (1 << 22) - 1  # an id and a position within a chunk in 32 bits
_BLOCKS = 1024  # that a large GPU needs to be busy: of smaller tables, several blocks share an id
_MAX_WARPS = 8


@kernel_for(Embedding)
class EmbeddingCUDA(Embedding):
    """The lookup is the reference's; the gradient is summed without atomics, in a fixed order. Reference: ops/embedding.py."""

    @staticmethod
    def supports(weight: Array, ids: Array) -> bool:
        fits = weight.shape[0] <= _MAX_IDS
        return fits and weight.dtype.name in STORAGE and ids.dtype.name == "int64" and ids.size > 0 and weight.size > 0

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, None]:
        ids, (n_ids, n_channels) = saved
        n_chunks = -(-ids.size // _CHUNK)
        keys, starts = xp.empty(n_chunks * _CHUNK, dtype="uint32"), xp.zeros((n_ids, n_chunks), dtype="uint16")
        arguments = (keys, starts, contiguous(ids), i64(ids.size), i32(n_chunks))
        kernel("embedding.cu", "embedding_sort", dy.dtype.name)((n_chunks,), (_CHUNK // 2,), arguments)
        n_groups = min(n_chunks, -(-_BLOCKS // n_ids))
        dweight = xp.empty((n_ids, n_channels), dtype=dy.dtype)
        parts = xp.empty((1, n_groups, n_ids * n_channels), dtype="float32") if n_groups > 1 else dweight
        warps = -(-n_channels // (WARP * width(dy.dtype)))
        grid, block = (n_ids * n_groups, -(-warps // _MAX_WARPS)), (WARP * min(warps, _MAX_WARPS),)
        arguments = (dweight, parts, contiguous(dy), keys, starts, i32(n_ids), i32(n_chunks), i32(n_channels))
        kernel("embedding.cu", "embedding_backward", dy.dtype.name)(grid, block, arguments)
        return (dweight if n_groups == 1 else sum_parts(parts, dy.dtype).reshape(dweight.shape)), None
