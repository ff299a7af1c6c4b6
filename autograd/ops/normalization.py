"""Normalization of activations."""

from typing import NamedTuple

from autograd.backend import xp
from autograd.core import Array, Op, Tensor
from autograd.ops.elementwise import as_tensor


class LayerNormSaved(NamedTuple):
    n: Array  # (..., C)
    r: Array  # (..., 1)
    gamma: Array  # (C,)


class LayerNorm(Op):
    """Normalize the last axis to mean 0 and variance 1, then scale and shift.

    Forward     n = (x - mean(x)) r,  r = 1 / sqrt(var(x) + eps)     per row; var divides by C
                y = gamma n + beta
    Backward    q = gamma dy
                dx = r (q - mean(q) - n mean(q n))
                dgamma = sum over rows of dy n,  dbeta = sum over rows of dy
    Why two means: shifting a row, or rescaling it (up to eps), leaves y unchanged, so dx has no component along either direction.

    Shapes      x, y (..., C); gamma, beta (C,).  Saves n (..., C), r (..., 1), gamma.
    Source      Ba, Kiros and Hinton 2016, arXiv:1607.06450, section 3.
    """

    @staticmethod
    def forward(x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5) -> tuple[Array, tuple[Array, ...]]:
        n = x - x.mean(axis=-1, keepdims=True)
        r = 1 / xp.sqrt((n * n).mean(axis=-1, keepdims=True) + eps)  # (..., 1)
        n *= r  # n is ours, so writing in place is safe
        return gamma * n + beta, LayerNormSaved(n, r, gamma)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array]:
        n, r, gamma = saved
        rows = tuple(range(dy.ndim - 1))
        q = gamma * dy
        dx = r * (q - q.mean(axis=-1, keepdims=True) - n * (q * n).mean(axis=-1, keepdims=True))
        return dx, (dy * n).sum(axis=rows), dy.sum(axis=rows)


def layer_norm(x: Tensor, gamma: Tensor, beta: Tensor, eps: float = 1e-5) -> Tensor:
    """LayerNorm over the last axis.

    x (..., C), gamma and beta (C,) -> (..., C). Raises ValueError if gamma or beta does not fit x's last axis, or it is empty.
    """
    x, gamma, beta = (as_tensor("layer_norm", a) for a in (x, gamma, beta))
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"layer_norm: x of shape {x.shape}, expected a last axis of at least 1; nothing to normalize")
    for name, parameter in (("gamma", gamma), ("beta", beta)):
        if parameter.shape != x.shape[-1:]:
            raise ValueError(f"layer_norm: {name} {parameter.shape} for x {x.shape}, expected ({x.shape[-1]},); one per channel")
    return LayerNorm.apply(x, gamma, beta, eps=eps)
