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


class RMSNormSaved(NamedTuple):
    n: Array  # (..., C)
    r: Array  # (..., 1)
    scale: Array | None  # (C,), offset + weight


class RMSNorm(Op):
    """Divide the last axis by its root mean square, then scale.

    Forward     n = x r,  r = 1 / sqrt(mean(x^2) + eps)     per row
                y = (offset + weight) n                       y = n without a weight
    Backward    q = (offset + weight) dy
                dx = r (q - n mean(q n))
                dweight = sum over rows of dy n
    Why one mean: rescaling a row (up to eps) leaves y unchanged, so dx has no component along n; shifting it does change y.
    offset 1, as in Gemma, has weights near 0, which weight decay pulls to a scale of 1 instead of 0.

    Shapes      x, y (..., C); weight (C,) or None.  Saves n (..., C), r (..., 1), offset + weight.
    16 bits     all of it in float32, y rounded once: as Gemma and OLMo 2 in transformers. Llama, Qwen and their like round n before
                they multiply by the weight, and so y twice: in float16 and bfloat16 their last bit may differ.
    Source      Zhang and Sennrich 2019, arXiv:1910.07467, section 4.
    """

    @staticmethod
    def forward(x: Array, weight: Array | None, *, eps: float = 1e-6, offset: float = 0.0) -> tuple[Array, tuple[Array, ...]]:
        r = 1 / xp.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)  # (..., 1)
        n = x * r
        scale = weight if weight is None or offset == 0 else offset + weight
        return n if scale is None else scale * n, RMSNormSaved(n, r, scale)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array | None]:
        n, r, scale = saved
        q = dy if scale is None else scale * dy
        dx = r * (q - n * (q * n).mean(axis=-1, keepdims=True))
        return dx, None if scale is None else (dy * n).sum(axis=tuple(range(dy.ndim - 1)))


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


def rms_norm(x: Tensor, weight: Tensor | None = None, eps: float = 1e-6, offset: float = 0.0) -> Tensor:
    """RMSNorm over the last axis, scaled by offset + weight, or by nothing if weight is None.

    x (..., C), weight (C,) -> (..., C). Raises ValueError if the weight does not fit x's last axis, it is empty, or there is an offset alone.
    """
    x = as_tensor("rms_norm", x)
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"rms_norm: x of shape {x.shape}, expected a last axis of at least 1; nothing to normalize")
    if weight is None:
        if offset:
            raise ValueError(f"rms_norm: offset {offset} without a weight, expected 0; it is added to the weight")
        return RMSNorm.apply(x, None, eps=eps)
    weight = as_tensor("rms_norm", weight)
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"rms_norm: weight {weight.shape} for x {x.shape}, expected ({x.shape[-1]},); one per channel")
    return RMSNorm.apply(x, weight, eps=eps, offset=offset)
