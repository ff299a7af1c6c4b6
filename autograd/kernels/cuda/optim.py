"""AdamW and the gradient norm on the GPU; kernels: optim.cu."""

import math

from autograd import backend
from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.module import MAX_THREADS, f32, flat_grid, i32, i64, kernel, takes, u64
from autograd.optim import AdamWUpdate, SquaredNorm

_NORM_BLOCKS = 1024


@kernel_for(AdamWUpdate)
class AdamWUpdateCUDA(AdamWUpdate):
    """All arrays in one pass, the clip factor read where it was computed. Reference: optim.py."""

    @staticmethod
    def supports(*arrays: Array, **options: object) -> bool:
        return takes(*arrays[:4]) and bool(arrays[0].dtype.name == "float32")

    @staticmethod
    def forward(  # type: ignore[override]
        weight: Array, gradient: Array, m: Array, v: Array, scale: Array, *,
        lr: float, betas: tuple[float, float], eps: float, decay: float, t: int,
    ) -> None:  # fmt: skip
        b1, b2 = betas
        correction = math.sqrt(1 - b2**t)
        on_device = isinstance(scale, backend.device_array)
        clip = (scale.astype("float32", copy=False), f32(1)) if on_device else (u64(0), f32(scale))  # u64(0): a null pointer
        numbers = (b1, b2, 1 - b1, 1 - b2, eps * correction, 1 - lr * decay, lr * correction / (1 - b1**t))
        arguments = (weight, gradient, m, v, *clip, *(f32(x) for x in numbers), i64(weight.size))
        kernel("optim.cu", "adamw_update")(*flat_grid(weight.size, weight.dtype), arguments)


@kernel_for(SquaredNorm)
class SquaredNormCUDA(SquaredNorm):
    """A sum per block, then the sum of those: two kernels, always in the same order. Reference: optim.py."""

    @staticmethod
    def supports(x: Array) -> bool:
        return takes(x) and bool(x.dtype.name == "float32")

    @staticmethod
    def forward(x: Array) -> Array:
        (n_blocks,), block = flat_grid(x.size, x.dtype)
        n_blocks = min(n_blocks, _NORM_BLOCKS)
        parts, total = xp.empty(n_blocks, dtype=x.dtype), xp.empty((), dtype=x.dtype)
        kernel("optim.cu", "squared_norm_of_blocks")((n_blocks,), block, (parts, x, i64(x.size)))
        kernel("optim.cu", "squared_norm_total")((1,), (MAX_THREADS,), (total, parts, i32(n_blocks)))
        return total
