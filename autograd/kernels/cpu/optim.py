"""AdamW and the gradient norm: one pass over the flat buffers, in blocks."""

import numpy as np

from autograd.backend import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cpu.parallel import row_blocks, row_sums
from autograd.optim import AdamWUpdate, SquaredNorm


@kernel_for(AdamWUpdate)
class AdamWUpdateBlocked(AdamWUpdate):
    """The reference, block by block: weight, gradient, m and v are read from memory once. Reference: optim.py."""

    @staticmethod
    def supports(*arrays: Array, **options: object) -> bool:
        return True

    @staticmethod
    def forward(weight: Array, gradient: Array, m: Array, v: Array, scale: Array, **options: Array) -> None:  # type: ignore[override]
        def block(part: slice) -> None:
            AdamWUpdate.forward(weight[part], gradient[part], m[part], v[part], scale, **options)

        row_blocks(weight.size, weight.itemsize, block)


@kernel_for(SquaredNorm)
class SquaredNormBlocked(SquaredNorm):
    """Sums of blocks, added in order: threads, and less rounding than one long float32 sum. Reference: optim.py."""

    @staticmethod
    def supports(x: Array) -> bool:
        return bool(x.size)

    @staticmethod
    def forward(x: Array) -> Array:
        (total,) = row_sums(x.size, x.itemsize, lambda part: (np.dot(x[part], x[part]),))
        return total
