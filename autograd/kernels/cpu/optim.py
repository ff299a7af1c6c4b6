"""AdamW and the gradient norm: one pass over the flat buffers, in blocks. Muon: a matrix per thread."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np

from autograd.backend import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cpu.parallel import parallel, row_blocks, row_sums
from autograd.optim import AdamWUpdate, MuonUpdate, Orthogonalize, SquaredNorm
from autograd.optim.muon import Coefficients, rms_scale


@kernel_for(AdamWUpdate)
class AdamWUpdateBlocked(AdamWUpdate):
    """The reference, block by block: weight, gradient, m and v are read from memory once. Reference: optim/adam.py."""

    @staticmethod
    def supports(*arrays: Array, **options: object) -> bool:
        return True

    @staticmethod
    def forward(weight: Array, gradient: Array, m: Array, v: Array, scale: Array, **options: Array) -> None:  # type: ignore[override]
        def block(part: slice) -> None:
            AdamWUpdate.forward(weight[part], gradient[part], m[part], v[part], scale, **options)

        row_blocks(weight.size, weight.itemsize, block, elementwise=True)


@kernel_for(SquaredNorm)
class SquaredNormBlocked(SquaredNorm):
    """Sums of blocks, added in order: threads, and less rounding than one long float32 sum. Reference: optim/flat.py."""

    @staticmethod
    def supports(x: Array) -> bool:
        return bool(x.size)

    @staticmethod
    def forward(x: Array) -> Array:
        (total,) = row_sums(x.size, x.itemsize, lambda part: (np.dot(x[part], x[part]),))
        return total


@kernel_for(MuonUpdate)
class MuonUpdateThreaded(MuonUpdate):
    """A matrix per thread, the largest first, its products in buffers of its own. Reference: optim/muon.py.

    NumPy computes x @ x.T for one array x by BLAS's `syrk`, half the operations; that is why A A is written A A^T here (A is symmetric).
    """

    @staticmethod
    def supports(*arrays: Array, **options: object) -> bool:
        return True

    @staticmethod
    def forward(  # type: ignore[override]
        weights: Sequence[Array], gradients: Sequence[Array], ms: Sequence[Array], scale: Array, *,
        lr: float, momentum: float, decay: float, coefficients: Coefficients,
    ) -> Array:  # fmt: skip
        costs = [Orthogonalize.cost(w.shape, coefficients) for w in weights]
        squares = np.zeros(len(weights), dtype=weights[0].dtype)

        def matrix(i: int) -> None:
            w, m = weights[i], ms[i]
            u = gradients[i] * scale
            u *= 1 - momentum
            m *= momentum
            m += u
            u += momentum * m
            step = orthogonal(u, coefficients)
            step *= lr * rms_scale(w.shape)
            if decay:
                w *= 1 - lr * decay
            w -= step
            squares[i] = np.vdot(step.T, step.T) if len(w) > w.shape[1] else np.vdot(step, step)  # in the order of memory: no copy

        largest_first = sorted(range(len(weights)), key=lambda i: -costs[i])
        parallel([partial(matrix, i) for i in largest_first], n_flops=sum(costs))
        return squares.sum()


def orthogonal(u: Array, coefficients: Coefficients) -> Array:
    """`Orthogonalize.forward` of one matrix, which it overwrites."""
    tall = u.shape[0] > u.shape[1]
    x = np.ascontiguousarray(u.T) if tall else u
    x *= 1 / (math.sqrt(np.vdot(x, x)) + 1e-7)
    n = len(x)
    gram, square, y = np.empty((n, n), x.dtype), np.empty((n, n), x.dtype), np.empty_like(x)
    for a, b, c in coefficients:
        np.matmul(x, x.T, out=gram)
        np.matmul(gram, gram.T, out=square)
        square *= c
        gram *= b
        square += gram
        square.reshape(-1)[:: n + 1] += a  # a x with the product
        np.matmul(square, x, out=y)
        x, y = y, x
    return x.T if tall else x
