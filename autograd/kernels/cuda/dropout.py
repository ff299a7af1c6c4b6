"""Dropout on the GPU; kernel: dropout.cu."""

import numpy as np

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.module import contiguous, f32, flat_grid, i64, kernel, name_of, takes, u32, u64
from autograd.ops.dropout import Dropout, Mask, dropout_threshold


@kernel_for(Dropout)
class DropoutCUDA(Dropout):
    """The mask is hashed from each element's number inside the kernel, never stored. Reference: ops/dropout.py."""

    takes_half = True

    @staticmethod
    def supports(x: Array, *, p: float, seed: int, draw: int, start: int = 0) -> bool:
        return takes(x)

    @staticmethod
    def forward(x: Array, *, p: float, seed: int, draw: int, start: int = 0) -> tuple[Array, Mask]:
        return _masked(x, p, seed, draw, start), Mask(p, seed, draw, start)

    @staticmethod
    def backward(saved: Mask, dy: Array) -> Array:
        return _masked(contiguous(dy), *saved)


def _masked(x: Array, p: float, seed: int, draw: int, start: int) -> Array:
    y = xp.empty(x.shape, dtype=x.dtype)
    kernel("dropout.cu", "dropout", name_of(x.dtype))(
        *flat_grid(x.size, x.dtype), (y, x, i64(x.size), *mask_arguments(p, seed, draw, start))
    )
    return y


def mask_arguments(p: float, seed: int, draw: int, start: int) -> tuple[np.uint64, np.int64, np.uint32, np.float32]:
    """(key, start, threshold, scale) as kernels take them; the key is that of `random_bits` in backend/_cupy.py. p = 0: threshold 0."""
    key = int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0])
    threshold, scale = dropout_threshold(p)
    return u64(key), i64(start), u32(threshold), f32(scale)
