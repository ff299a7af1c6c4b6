"""Output layer and cross-entropy: softmax and its gradient row by row in cache, between two matrix products."""

import numpy as np

from autograd.backend import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cpu.parallel import for_each, matmul, row_blocks
from autograd.kernels.destination import Destination, Into, destinations
from autograd.limits import LOGITS_BYTES as _LOGITS_BYTES
from autograd.ops.loss import LinearCrossEntropy

_VOCABULARY_BLOCK = 4096


@kernel_for(LinearCrossEntropy)
class LinearCrossEntropyBlocked(LinearCrossEntropy):
    """Logits of a chunk of rows become their gradient in place, a few rows in cache at a time. Reference: ops/loss.py."""

    destinations = staticmethod(destinations)

    @staticmethod
    def supports(x: Array, weight: Array, targets: Array, bias: Array | None = None, **options: object) -> bool:
        same = x.dtype == weight.dtype and (bias is None or bias.dtype == x.dtype)
        return x.dtype in (np.float32, np.float64) and same and x.size > 0

    @staticmethod
    def forward(
        x: np.ndarray, weight: np.ndarray, targets: np.ndarray, bias: np.ndarray | None = None, *,
        n_counted: int, ignore_index: int, label_smoothing: float, chunk: int, softcap: float = 0.0, z_loss: float = 0.0,
        needs: tuple[bool, bool, bool, bool],
    ) -> tuple[Array, tuple[Array, ...]]:  # fmt: skip
        n, v = x.shape[0], weight.shape[0]
        most = max(1, min(chunk, _LOGITS_BYTES // (v * x.itemsize)))
        size = -(-n // -(-n // most))  # equal pieces: a last one of a few rows would read all the weights for them
        losses = np.empty(n, dtype=x.dtype)
        dx = np.empty_like(x) if needs[0] else None
        dweight = np.empty_like(weight) if needs[1] else None
        dbias = np.zeros_like(bias) if needs[3] else None
        for start in range(0, n, size):
            rows = slice(start, start + size)
            z = matmul(x[rows], weight.T, np.empty((len(x[rows]), v), dtype=x.dtype))  # (chunk, V)
            options = {"softcap": softcap, "label_smoothing": label_smoothing, "z_loss": z_loss}
            _losses_and_gradient(z, targets[rows], losses[rows], n_counted, ignore_index, bias, **options, want_gradient=any(needs))
            if dx is not None:
                matmul(z, weight, dx[rows])
            if dbias is not None:
                dbias += z.sum(axis=0)
            if dweight is not None:
                _fill_or_add_product(dweight, z, x[rows], first=start == 0)
            del z  # before the next piece is allocated
        return losses.sum() / n_counted, (dx, dweight, dbias)

    @staticmethod
    def backward(
        saved: tuple[Array, ...], dy: np.ndarray, *, into: Into = (None,) * 4
    ) -> tuple[np.ndarray | None, np.ndarray | None, None, np.ndarray | None]:
        dx, dweight, dbias = saved
        if dweight is not None and into[1] is not None:  # the largest array of all, on all threads
            dweight = _scaled_into(into[1], dweight, dy)
        elif dweight is not None and dy != 1:
            dweight = dweight * dy
        if dy != 1:  # the usual case is that the loss is the output: nothing to scale
            dx, dbias = (None if d is None else d * dy for d in (dx, dbias))
        return dx, dweight, None, dbias


def _scaled_into(into: Destination, gradient: np.ndarray, scale: np.ndarray) -> Array:
    """The destination's buffer, to which `scale` times the gradient has been added, or which is that."""
    flat, total = gradient.reshape(-1), into.buffer.reshape(-1)

    def block(part: slice) -> None:
        if into.filled:
            total[part] += flat[part] if scale == 1 else flat[part] * scale
        elif scale == 1:
            total[part] = flat[part]
        else:
            np.multiply(flat[part], scale, out=total[part])

    row_blocks(flat.size, flat.itemsize, block, elementwise=True)
    return into.buffer


def _losses_and_gradient(
    z: Array, targets: Array, losses: Array, n_counted: int, ignore_index: int, bias: Array | None, *,
    softcap: float, label_smoothing: float, z_loss: float, want_gradient: bool,
) -> None:  # fmt: skip
    """losses = cross-entropy of the rows of z, after bias and soft-cap where there are some; z becomes its gradient if wanted, else undefined.

    Without a soft-cap, label smoothing and z_loss that is (softmax(z) - onehot(target)) / n_counted.
    """
    counted = targets != ignore_index
    share = (counted / n_counted).astype(z.dtype)
    columns = np.where(counted, targets, 0)

    def block(part: slice) -> None:
        zs, cols = z[part], columns[part]
        index = np.arange(len(zs))
        if bias is not None:
            zs += bias
        if softcap:
            zs *= 1 / softcap
            np.tanh(zs, out=zs)
            slopes = 1 - zs * zs
            zs *= softcap
        largest = zs.max(axis=1, keepdims=True)
        zs -= largest
        toward = zs[index, cols]  # the mean of the shifted scores under w: at first all of w is at the target
        if label_smoothing:
            toward = (1 - label_smoothing) * toward + label_smoothing * zs.mean(axis=1)
        np.exp(zs, out=zs)
        total = zs.sum(axis=1, keepdims=True)
        log_total = np.log(total)
        nats, factor = log_total[:, 0] - toward, share[part, None] / total
        if z_loss:
            lse = log_total + largest
            nats += z_loss * (lse * lse)[:, 0]
            factor *= 1 + 2 * z_loss * lse
        losses[part] = np.where(counted[part], nats, 0)
        if want_gradient:
            zs *= factor
            if label_smoothing:
                zs -= share[part, None] * (label_smoothing / zs.shape[1])
            zs[index, cols] -= share[part] * (1 - label_smoothing)
            if softcap:
                zs *= slopes

    row_blocks(z.shape[0], z.shape[1] * z.itemsize, block)


def _fill_or_add_product(total: np.ndarray, a: np.ndarray, b: np.ndarray, *, first: bool) -> None:
    """total (V, C) = or += a^T b; summed in blocks of the vocabulary, so that no second (V, C) array exists."""
    if first:
        matmul(a.T, b, total)
        return
    blocks = range(0, len(total), _VOCABULARY_BLOCK)

    def block(i: int) -> None:
        part = slice(blocks[i], blocks[i] + _VOCABULARY_BLOCK)
        total[part] += np.matmul(a[:, part].T, b)

    for_each(len(blocks), block, threaded=True)
