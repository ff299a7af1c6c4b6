"""AdamW and the gradient norm on the GPU, kernels: optim.cu; Muon, whose work is matrix products."""

import math
from collections.abc import Iterator, Sequence

from autograd import backend
from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.module import MAX_THREADS, f32, flat_grid, i32, i64, kernel, takes, u64
from autograd.optim import AdamWUpdate, MuonUpdate, Orthogonalize, SquaredNorm
from autograd.optim.muon import Coefficients, rms_scale

_NORM_BLOCKS = 1024
_STACK_BYTES = 64 * 1024 * 1024  # of one stack of matrices, unless one alone is larger: bounds the memory of a Muon step


@kernel_for(AdamWUpdate)
class AdamWUpdateCUDA(AdamWUpdate):
    """All arrays in one pass, the clip factor read where it was computed. Reference: optim/adam.py."""

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
    """A sum per block, then the sum of those: two kernels, always in the same order. Reference: optim/flat.py."""

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


@kernel_for(MuonUpdate)
class MuonUpdateCUDA(MuonUpdate):
    """Matrices of one shape as stacks, in which a product is one launch for all of them. Reference: optim/muon.py."""

    @staticmethod
    def supports(*arrays: Array, **options: object) -> bool:
        return True

    @staticmethod
    def forward(  # type: ignore[override]
        weights: Sequence[Array], gradients: Sequence[Array], ms: Sequence[Array], scale: Array, *,
        lr: float, momentum: float, decay: float, coefficients: Coefficients,
    ) -> Array:  # fmt: skip
        total = xp.zeros((), dtype=weights[0].dtype)
        for numbers in _stacks(weights):
            u, m = (xp.stack([arrays[i] for i in numbers]) for arrays in (gradients, ms))
            u *= scale * (1 - momentum)
            m *= momentum
            m += u
            u += momentum * m
            steps = Orthogonalize.forward(u, coefficients=coefficients)
            steps *= lr * rms_scale(steps.shape[1:])
            for i, new_m, step in zip(numbers, m, steps, strict=True):
                w, old_m = weights[i], ms[i]
                old_m[...] = new_m
                if decay:
                    w *= 1 - lr * decay
                w -= step
            total = total + (steps * steps).sum()
        return total


def _stacks(arrays: Sequence[Array]) -> Iterator[list[int]]:
    """Numbers of arrays of one shape, as many as _STACK_BYTES hold, at least one."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, array in enumerate(arrays):
        by_shape.setdefault(array.shape, []).append(i)
    for numbers in by_shape.values():
        n = max(1, _STACK_BYTES // max(1, arrays[numbers[0]].nbytes))
        yield from (numbers[start : start + n] for start in range(0, len(numbers), n))
