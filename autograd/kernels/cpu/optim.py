"""AdamW and the gradient norm: one pass over the flat buffers, in blocks."""

from typing import Any

import numpy as np

from autograd.dispatch import kernel_for
from autograd.kernels.cpu.parallel import row_blocks, row_sums
from autograd.optim import AdamWUpdate, SquaredNorm


@kernel_for(AdamWUpdate)
class AdamWUpdateBlocked(AdamWUpdate):
    """The reference, block by block: weight, gradient, m and v are read from memory once. Reference: optim.py."""

    @staticmethod
    def supports(*arrays: Any, **options: Any) -> bool:
        return True

    @staticmethod
    def forward(weight: np.ndarray, gradient: np.ndarray, m: np.ndarray, v: np.ndarray, scale: Any, **options: Any) -> None:
        row_blocks(
            weight.size, weight.itemsize, lambda part: AdamWUpdate.forward(weight[part], gradient[part], m[part], v[part], scale, **options)
        )


@kernel_for(SquaredNorm)
class SquaredNormBlocked(SquaredNorm):
    """Sums of blocks, added in order: threads, and less rounding than one long float32 sum. Reference: optim.py."""

    @staticmethod
    def supports(x: Any) -> bool:
        return x.size > 0

    @staticmethod
    def forward(x: np.ndarray) -> np.ndarray:
        (total,) = row_sums(x.size, x.itemsize, lambda part: (np.dot(x[part], x[part]),))
        return total
