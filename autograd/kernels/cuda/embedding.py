"""The gradient of an embedding table on the GPU; kernels: embedding.cu."""

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.module import STORAGE, WARP, contiguous, i32, i64, kernel, width
from autograd.ops.embedding import Embedding

_CHUNK, _FAN, _SPAN = 1024, 32, 32  # as in the kernels: positions sorted by a block, runs merged at a time, positions summed by a warp
_MERGE_THREADS = 256
_MAX_WARPS = 8


@kernel_for(Embedding)
class EmbeddingCUDA(Embedding):
    """The lookup is the reference's; the gradient is summed without atomics, in a fixed order. Reference: ops/embedding.py."""

    @staticmethod
    def supports(weight: Array, ids: Array) -> bool:
        return weight.dtype.name in STORAGE and ids.dtype.name == "int64" and 0 < ids.size < 1 << 32 and weight.size > 0

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, None]:
        ids, (n_ids, n_channels) = saved
        n, dtype, dy = ids.size, dy.dtype.name, contiguous(dy)
        keys, n_spans = _sorted_keys(contiguous(ids), dtype), -(-n // _SPAN)
        dweight, parts = xp.empty((n_ids, n_channels), dtype=dy.dtype), xp.empty((n_spans, n_channels), dtype="float32")
        warps = -(-n_channels // (WARP * width(dy.dtype)))
        grid, block = (n_spans, -(-warps // _MAX_WARPS)), (WARP * min(warps, _MAX_WARPS),)
        arguments = (dweight, parts, dy, keys, i64(n), i64(n_ids), i32(n_channels))
        for name in ("embedding_backward", "embedding_long")[: 1 + (n > _SPAN)]:
            kernel("embedding.cu", name, dtype)(grid, block, arguments)
        return dweight, None


def _sorted_keys(ids: Array, dtype: str) -> Array:
    """id * 2^32 + position of every position, ascending."""
    n, run = ids.size, _CHUNK
    keys = xp.empty(n, dtype="uint64")
    kernel("embedding.cu", "embedding_sort", dtype)((-(-n // _CHUNK),), (_CHUNK // 2,), (keys, ids, i64(n)))
    while run < n:
        keys, unsorted = xp.empty(n, dtype="uint64"), keys
        merge = kernel("embedding.cu", "embedding_merge", dtype)
        merge((-(-n // _MERGE_THREADS),), (_MERGE_THREADS,), (keys, unsorted, i64(run), i64(n)))
        run *= _FAN
    return keys
