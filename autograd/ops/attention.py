"""Scaled dot-product attention, all heads at once."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from autograd import backend
from autograd.backend import ArrayLike, xp
from autograd.core import Array, Op, Tensor, broadcasts
from autograd.ops.activation import softmax_rows
from autograd.ops.dropout import Mask, RandomStream, check_probability, default_stream, dropout_mask
from autograd.ops.elementwise import as_tensor


class AttentionSaved(NamedTuple):
    q: Array  # (..., T, D)
    k: Array  # (..., S, D)
    v: Array  # (..., S, D)
    weights: Array  # (..., T, S), before dropout
    dropout: Mask


class Attention(Op):
    """Each query takes a weighted mean of the values; the weights say how well its key matches.

    Forward     s = q @ k^T / sqrt(D)                 scores, -inf where attention is masked
                p = softmax(s)                        weights, each row sums to 1
                y = (p * m) @ v                       m: dropout mask, 1 without dropout
    Backward    dv = (p * m)^T @ dy
                dp = (dy @ v^T) * m
                ds = p * (dp - sum(dp * p))           softmax, row by row
                dq = ds @ k / sqrt(D),  dk = ds^T @ q / sqrt(D)
    Where p = 0 (masked) ds = 0: no gradient reaches a masked key.
    Why 1 / sqrt(D): a dot product of D independent terms of variance 1 has variance D; dividing keeps softmax off its flat ends.

    Shapes      q (..., T, D), k and v (..., S, D) -> y (..., T, D); s, p (..., T, S); mask broadcasts to (..., T, S).
                Saves q, k, v, p.  A row that is masked throughout gives 0, with gradient 0.
    causal      query t attends to keys up to t + S - T: with fewer queries than keys, the queries are the last positions.
    Source      Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1.
    """

    @staticmethod
    def forward(
        q: Array, k: Array, v: Array, mask: Array | None, *, causal: bool, p: float = 0.0, seed: int = 0, draw: int = 0, start: int = 0
    ) -> tuple[Array, tuple[Array, ...]]:
        scale = 1 / math.sqrt(q.shape[-1])
        scores = (q @ k.swapaxes(-1, -2)) * scale  # (..., T, S)
        if causal:
            scores = xp.where(causal_mask(q.shape[-2], k.shape[-2]), scores, -xp.inf)
        if mask is not None:
            scores = xp.where(mask, scores, -xp.inf)
        weights = softmax_rows(scores, -1)
        dropped = weights * dropout_mask(weights.shape, weights.dtype, p, seed, draw, start) if p else weights
        return dropped @ v, AttentionSaved(q, k, v, weights, Mask(p, seed, draw, start))

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array, None]:
        q, k, v, weights, dropout = saved
        scale = 1 / math.sqrt(q.shape[-1])
        dweights = dy @ v.swapaxes(-1, -2)  # (..., T, S)
        dropped = weights
        if dropout.p:
            m = dropout_mask(weights.shape, weights.dtype, *dropout)
            dropped = weights * m
            dweights *= m
        dv = dropped.swapaxes(-1, -2) @ dy  # (..., S, D)
        dscores = weights * (dweights - (dweights * weights).sum(axis=-1, keepdims=True))
        dscores *= scale
        return dscores @ k, dscores.swapaxes(-1, -2) @ q, dv, None

    @staticmethod
    def flops(inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> int:
        q, k = inputs[:2]
        return 4 * math.prod(q) * k[-2]  # q @ k^T and p @ v, masked scores included: both are computed


def causal_mask(n_queries: int, n_keys: int) -> Array:
    """(T, S) booleans: True where query t may attend to key s, s <= t + S - T."""
    first = n_keys - n_queries
    return xp.arange(n_keys) <= xp.arange(first, first + n_queries)[:, None]


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: ArrayLike | None = None, *,
    causal: bool = False, dropout: float = 0.0, training: bool = True, stream: RandomStream | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q @ k^T / sqrt(D)) @ v.

    q (..., T, D), k and v (..., S, D), with equal leading axes, typically (B, H) -> (..., T, D)
    mask      booleans, or exact 0 and 1, that broadcast to (..., T, S), True where a query may attend to a key; a row without True gives zeros
    causal    query t attends to keys up to t + S - T only
    dropout   probability of dropping a weight, while `training`; `stream` gives the masks, by default as for `dropout`
    Raises ValueError, naming the shapes, where they do not fit, and for a mask of other numbers.
    """
    check_probability("attention", dropout)
    q, k, v = (as_tensor("attention", a) for a in (q, k, v))
    if q.ndim < 2 or k.shape != v.shape or q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1]:
        rule = "expected (..., T, D), (..., S, D), (..., S, D) with equal leading axes"
        raise ValueError(f"attention: q {q.shape}, k {k.shape}, v {v.shape}, {rule}; split the heads the same way")
    if k.shape[-2] == 0 or q.shape[-1] == 0:
        raise ValueError(f"attention: k of shape {k.shape}, expected at least one key and one channel; skip empty input")
    if causal and q.shape[-2] > k.shape[-2]:
        found = f"{q.shape[-2]} queries for {k.shape[-2]} keys with causal=True"
        raise ValueError(f"attention: {found}, expected no more queries than keys; pass the keys of the earlier positions too")
    device_mask, scores = None, (*q.shape[:-1], k.shape[-2])
    if mask is not None:
        device_mask = backend.to_device(backend.as_mask(mask, "attention"))
        if not broadcasts(device_mask.shape, scores):
            problem = f"a mask of shape {device_mask.shape}, expected one that broadcasts to {scores}"
            raise ValueError(f"attention: {problem}; True means that the query may attend to the key")
    if not (training and dropout):
        return Attention.apply(q, k, v, device_mask, causal=causal)
    return Attention.apply(q, k, v, device_mask, causal=causal, **(stream or default_stream).next_mask(dropout, scores)._asdict())
