"""Dropout by blocks: bits, comparison and product while the block is in cache."""

import numpy as np

from autograd import backend
from autograd.backend import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cpu.parallel import row_blocks
from autograd.ops.dropout import Dropout, Mask, dropout_threshold


@kernel_for(Dropout)
class DropoutBlocked(Dropout):
    """The reference's mask, generated block by block: the stream of bits has random access. Reference: ops/dropout.py."""

    @staticmethod
    def supports(x: Array, *, p: float, seed: int, draw: int, start: int = 0) -> bool:
        return x.dtype in (np.float32, np.float64) and x.flags.c_contiguous

    @staticmethod
    def forward(x: np.ndarray, *, p: float, seed: int, draw: int, start: int = 0) -> tuple[np.ndarray, Mask]:
        return _masked(x, p, seed, draw, start), Mask(p, seed, draw, start)

    @staticmethod
    def backward(saved: Mask, dy: np.ndarray) -> np.ndarray:
        return _masked(dy, *saved)


def _masked(x: np.ndarray, p: float, seed: int, draw: int, start: int) -> np.ndarray:
    threshold, scale = dropout_threshold(p)
    flat, y = x.reshape(-1), np.empty(x.size, dtype=x.dtype)

    def block(part: slice) -> None:
        keep = backend.random_bits(seed, draw, start + part.start, part.stop - part.start) >= threshold
        np.multiply(flat[part], keep, out=y[part])
        y[part] *= scale

    row_blocks(x.size, x.itemsize, block)
    return y.reshape(x.shape)
