"""Attention on the GPU by batched matrix products and one fused kernel per direction between them; kernels: attention.cu."""

import math
from collections import namedtuple

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda import attention_cudnn  # noqa: F401  registered first: the first choice where it fits
from autograd.kernels.cuda.activation import LONGEST_IN_REGISTERS, rows_in_registers
from autograd.kernels.cuda.dropout import mask_arguments
from autograd.kernels.cuda.module import STORAGE, contiguous, f32, i32, i64, kernel, rows_of, takes
from autograd.ops.attention import Attention

CUDASaved = namedtuple("CUDASaved", "q k v weights dropped rest")


@kernel_for(Attention)
class AttentionCUDA(Attention):
    """Scaling, mask, softmax and dropout in one kernel, in place. Reference: ops/attention.py.

    Computes in float32: CuPy has no batched product of bfloat16 matrices. Saves q, k, v, p, and p m where there is dropout.
    """

    takes_half = False

    @staticmethod
    def supports(q: Array, k: Array, v: Array, mask: Array | None, **options: object) -> bool:
        plain = mask is None and q.shape[:-2] == k.shape[:-2] and not options.keys() & {"scale", "window", "softcap", "alibi"}
        fits = k.shape[-2] <= LONGEST_IN_REGISTERS
        return plain and fits and q.size > 0 and k.size > 0 and q.dtype.name in STORAGE and q.dtype == k.dtype == v.dtype

    @staticmethod
    def forward(
        q: Array, k: Array, v: Array, mask: None, *, causal: bool, p: float = 0.0, seed: int = 0, draw: int = 0, start: int = 0, **_: object
    ) -> tuple[Array, tuple[Array, ...]]:
        weights = contiguous(xp.matmul(q, k.swapaxes(-1, -2)))  # scores at first, (..., T, S)
        assert takes(weights)
        dropped = xp.empty(weights.shape, dtype=weights.dtype) if p else weights
        rest = (*weights.shape[-2:], causal, 1 / math.sqrt(q.shape[-1]), mask_arguments(p, seed, draw, start))
        run_softmax("attention_softmax_forward", (weights, dropped), *rest)
        return xp.matmul(dropped, v), CUDASaved(q, k, v, weights, dropped, rest)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array, None]:
        q, k, v, weights, dropped, rest = saved
        dv = xp.matmul(dropped.swapaxes(-1, -2), dy)  # (..., S, D)
        dscores = contiguous(xp.matmul(dy, v.swapaxes(-1, -2)))  # the gradient of the weights at first, (..., T, S)
        run_softmax("attention_softmax_backward", (dscores, weights), *rest)
        return xp.matmul(dscores, k), xp.matmul(dscores.swapaxes(-1, -2), q), dv, None


def run_softmax(
    name: str, arrays: tuple[Array, Array], n_queries: int, n_keys: int, causal: bool, scale: float, mask: tuple[Array, ...]
) -> None:
    n_rows, dtype = rows_of(arrays[0].shape), arrays[0].dtype
    grid, block, constants = rows_in_registers(n_rows, n_keys, dtype)
    numbers = (i64(n_rows), i32(n_queries), i32(n_keys), i32(causal), f32(scale))
    kernel("attention.cu", name, dtype.name, constants=constants)(grid, block, (*arrays, *numbers, *mask))
