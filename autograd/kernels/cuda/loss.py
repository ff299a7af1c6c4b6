"""Output layer and cross-entropy on the GPU; kernel: loss.cu."""

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.matmul import column_sums, product
from autograd.kernels.cuda.module import f32, i32, i64, kernel, row_threads, takes
from autograd.kernels.destination import Into, destinations
from autograd.ops.loss import LinearCrossEntropy

_LOGITS_BYTES = 1 << 30  # logits that exist at once: enough rows to keep the matrix products at full speed


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
        size = chunk if narrow_range else max(1, _LOGITS_BYTES // (v * x.dtype.itemsize))
        factor = 1.0 if narrow_range else 1 / n_counted
        losses = xp.empty(n, dtype="float32")
        dx = xp.empty(x.shape, dtype=x.dtype) if needs[0] else None
        dweight, dbias = None, xp.zeros(v, dtype="float32") if needs[3] else None
        run = kernel("loss.cu", "cross_entropy_in_place", x.dtype.name)
        for start in range(0, n, size):
            rows = slice(start, start + size)
            z = product(x[rows], weight.T)  # (chunk, V)
            if bias is not None:
                z += bias
            numbers = (i32(v), i64(ignore_index), f32(label_smoothing), f32(z_loss), f32(factor), i32(any(needs)))
            run((z.shape[0],), (row_threads(v, x.dtype),), (losses[rows], z, targets[rows], *numbers))
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
            dweight = xp.multiply(dweight, dy, out=dweight if to is None or to.filled else to.buffer)
        return dx, dweight, None, dbias
