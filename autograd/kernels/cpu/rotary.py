"""Rotary positions by blocks of positions."""

import numpy as np

from autograd.backend import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cpu.parallel import row_blocks
from autograd.ops.rotary import RotaryEmbedding


@kernel_for(RotaryEmbedding)
class RotaryEmbeddingBlocked(RotaryEmbedding):
    """y = x [cos, cos] + [x2, x1] [-sin, sin]: products over all R channels instead of halves. Reference: ops/rotary.py.

    NumPy's innermost loop is as long as the part of a row that is one piece in memory. Halves are short pieces; with all channels at once loops
    are twice as long and two products fewer, in blocks that stay in cache.
    """

    @staticmethod
    def supports(x: Array, cos: Array, sin: Array) -> bool:
        fits = x.ndim == 4 and x.dtype in (np.float32, np.float64) and x.dtype == cos.dtype and (cos.ndim < 3 or cos.shape[-3] == 1)
        return fits and x.size > 0 and x.shape[2] > 1  # for one position, as in decoding, the reference makes fewer calls

    @staticmethod
    def forward(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> tuple[Array, tuple[Array, ...]]:
        return _rotated(x, cos, sin), (cos, sin)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: np.ndarray) -> tuple[Array, None, None]:
        cos, sin = saved
        return _rotated(dy, cos, -sin), None, None


def _rotated(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    half = cos.shape[-1]
    n_batch, n_head, n_positions, d = x.shape
    y = np.empty_like(x)  # in x's memory order, (B, T, H, D) in a GPT
    y[..., 2 * half :] = x[..., 2 * half :]
    turned, out = x[..., : 2 * half], y[..., : 2 * half]
    shape = (*cos.shape[:-2], n_positions, half)
    c, s = (np.broadcast_to(table, shape) for table in (cos, sin))
    both, opposite = np.concatenate((c, c), axis=-1), np.concatenate((-s, s), axis=-1)

    def block(part: slice) -> None:
        xs, ys = turned[:, :, part], out[:, :, part]
        swapped = np.empty_like(xs)
        swapped[..., :half], swapped[..., half:] = xs[..., half:], xs[..., :half]
        swapped *= opposite[..., part, :]
        np.multiply(xs, both[..., part, :], out=ys)
        ys += swapped

    row_blocks(n_positions, n_batch * n_head * d * x.itemsize, block)
    return y
