"""Output layer and cross-entropy on the GPU; kernel: loss.cu."""

from functools import cache

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.matmul import column_sums, product
from autograd.kernels.cuda.module import MAX_THREADS, f32, i32, i64, kernel, name_of, row_threads, takes, width
from autograd.kernels.destination import Into, destinations
from autograd.ops.loss import LinearCrossEntropy

_STATIC_BYTES = 2048  # of shared memory per block: the kernel's own sums, and what the driver keeps
_LOGITS_BYTES = 1 << 30  # logits that exist at once, about: enough rows to keep the matrix products at full speed
_TILE = 256  # rows that a multiprocessor's part of a product has, at most


@kernel_for(LinearCrossEntropy)
class LinearCrossEntropyCUDA(LinearCrossEntropy):
    """Logits of a chunk of rows become their gradient in place, in one kernel between two matrix products. Reference: ops/loss.py.

    The loss is float32 whatever the inputs are, and dW is summed in float32. Saves dx (N, C) and dW (V, C), already divided by n; in float16,
    where small numbers times 1 / n would be 0, the backward pass divides, and chunks are as short as the reference's, so that dW stays finite.
    """

    destinations = staticmethod(destinations)

    @staticmethod
    def supports(x: Array, weight: Array, targets: Array, bias: Array | None = None, *, softcap: float = 0.0, **options: object) -> bool:
        arrays = (x, weight) if bias is None else (x, weight, bias)
        return takes(*arrays) and targets.dtype.name == "int64" and softcap == 0

    @staticmethod
    def forward(
        x: Array, weight: Array, targets: Array, bias: Array | None = None, *,
        n_counted: int, ignore_index: int, label_smoothing: float, chunk: int, softcap: float = 0.0, z_loss: float = 0.0,
        needs: tuple[bool, bool, bool, bool],
    ) -> tuple[Array, tuple[Array, ...]]:  # fmt: skip
        n, v = x.shape[0], weight.shape[0]
        narrow_range = x.dtype == xp.float16
        size = chunk if narrow_range else rows_at_once(n, v * x.dtype.itemsize)
        factor = 1.0 if narrow_range else 1 / n_counted
        losses = xp.empty(n, dtype="float32")
        dx = xp.empty(x.shape, dtype=x.dtype) if needs[0] else None
        dweight, dbias = None, xp.zeros(v, dtype="float32") if needs[3] else None
        for start in range(0, n, size):
            rows = slice(start, start + size)
            z = product(x[rows], weight.T)  # (chunk, V)
            if bias is not None:
                z += bias
            cross_entropy_in_place(
                losses[rows], z, targets[rows], ignore_index=ignore_index, label_smoothing=label_smoothing, z_loss=z_loss,
                gradient_scale=factor, want_gradient=any(needs),
            )  # fmt: skip
            if dx is not None:
                product(z, weight, dx[rows])
            if dbias is not None:
                dbias += column_sums(z)
            if needs[1]:
                dweight = product(z.T, x[rows], xp.empty(weight.shape, dtype="float32") if start == 0 else dweight, add=start > 0)
        return losses.sum() / n_counted, (dx, dweight, dbias, n_counted if narrow_range else 1)

    @staticmethod
    def backward(  # type: ignore[override]  # `into`, see Op
        saved: tuple[Array, ...], dy: Array, *, into: Into = (None,) * 4
    ) -> tuple[Array | None, Array | None, None, Array | None]:
        dx, dweight, dbias, n = saved
        dy = dy if n == 1 else dy / n
        dx, dbias = (d if d is None else xp.multiply(d, dy, out=d, casting="unsafe") for d in (dx, dbias))
        if dweight is not None:
            to = into[1]
            dweight = xp.multiply(dweight, dy, out=dweight if to is None or to.filled else to.buffer, casting="unsafe")
        return dx, dweight, None, dbias


def rows_at_once(n: int, row_bytes: int) -> int:
    """Rows of a chunk: of as few as possible, all are of one size, but for the last one, which may lack a part of a tile.

    With a size that depended on the limit alone, the last chunk would have any number of rows, for instance 749 of 32,768, and the others
    would need more memory than that many do.
    """
    n_chunks = -(-n * row_bytes // _LOGITS_BYTES)
    return -(-n // (n_chunks * _TILE)) * _TILE


def cross_entropy_in_place(
    losses: Array, z: Array, targets: Array, *, ignore_index: int, label_smoothing: float, z_loss: float, gradient_scale: float,
    want_gradient: bool,
) -> None:  # fmt: skip
    """Writes the losses (n,), float32, of logits z (n, V); z becomes its gradient times gradient_scale, if that is wanted."""
    n, v = z.shape
    n_processors, per_block, per_processor = _device()
    row_bytes = -(-v // width(z.dtype)) * 16
    cached = min(row_bytes, per_block - _STATIC_BYTES)
    # Two blocks on a multiprocessor, one of which moves memory while the other one waits, if their rows fit.
    two = 2 * (cached + _STATIC_BYTES) <= per_processor
    n_threads = min(MAX_THREADS // 2 if two else MAX_THREADS, row_threads(v, z.dtype))
    run = kernel("loss.cu", "cross_entropy_in_place", name_of(z.dtype))
    run.max_dynamic_shared_size_bytes = cached  # type: ignore[attr-defined]
    numbers = (i32(n), i32(v), i64(ignore_index), f32(label_smoothing), f32(z_loss), f32(gradient_scale), i32(want_gradient))
    # A row's numbers are the same whichever block has it, so the number of blocks may depend on the device.
    n_blocks = min(n, n_processors * max(1, min(per_processor // (cached + _STATIC_BYTES), MAX_THREADS // n_threads)))
    run((n_blocks,), (n_threads,), (losses, z, targets, *numbers, i32(cached // z.dtype.itemsize)), shared_mem=cached)


@cache
def _device() -> tuple[int, int, int]:
    """Multiprocessors; bytes of shared memory that a block may ask for, and that a multiprocessor has."""
    attributes = xp.cuda.Device().attributes  # type: ignore[attr-defined]
    names = ("MultiProcessorCount", "MaxSharedMemoryPerBlockOptin", "MaxSharedMemoryPerMultiprocessor")
    return tuple(attributes[name] for name in names)  # type: ignore[return-value]
