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
    q: Array  # (..., H, T, D)
    k: Array  # (..., H_kv, S, D)
    v: Array  # (..., H_kv, S, D)
    weights: Array  # (..., H, T, S), before dropout
    slope: Array | None  # (..., H, T, S), of the soft cap
    scale: float
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

    Options, in the order in which they act on the scores
    scale       instead of 1 / sqrt(D)
    softcap     s becomes c tanh(s / c): no score leaves (-c, c); ds gains the factor 1 - tanh(s / c)^2
    alibi       per head, a slope times (key's position - query's position) is added: far keys weigh less; a constant, so ds stays
    causal      query t attends to keys up to t + S - T: with fewer queries than keys, the queries are the last positions
    window      and only to the last `window` of those, itself included
    Grouped heads: with H_kv < H key heads, H / H_kv query heads in a row share one; its gradient is the sum of theirs.

    Shapes      q (..., H, T, D), k and v (..., H_kv, S, D) -> y (..., H, T, D); s, p (..., H, T, S); mask broadcasts to (..., H, T, S).
                Saves q, k, v, p and the soft cap's slope.  A row that is masked throughout gives 0, with gradient 0.
    Source      Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1; soft cap: Gemma 2, arXiv:2408.00118, section 2; ALiBi: Press et al. 2022,
                arXiv:2108.12409, section 3; window: Beltagy et al. 2020, arXiv:2004.05150, section 3.1; groups: Ainslie et al. 2023, arXiv:2305.13245.
    """

    @staticmethod
    def forward(
        q: Array, k: Array, v: Array, mask: Array | None, *, causal: bool, scale: float | None = None, window: int = 0, softcap: float = 0.0,
        alibi: tuple[float, ...] = (), p: float = 0.0, seed: int = 0, draw: int = 0, start: int = 0,
    ) -> tuple[Array, tuple[Array, ...]]:  # fmt: skip
        scale = scale or 1 / math.sqrt(q.shape[-1])
        scores = (q @ repeat_heads(k, q).swapaxes(-1, -2)) * scale  # (..., H, T, S)
        slope = None
        if softcap:
            t = xp.tanh(scores / softcap)
            scores, slope = softcap * t, 1 - t * t
        ahead = positions_ahead(q.shape[-2], k.shape[-2])
        if alibi:
            scores += backend.to_device(alibi, dtype=q.dtype)[:, None, None] * ahead.astype(q.dtype)
        if causal:
            visible = (ahead <= 0) & (ahead > -window) if window else ahead <= 0
            scores = xp.where(visible, scores, -xp.inf)
        if mask is not None:
            scores = xp.where(mask, scores, -xp.inf)
        weights = softmax_rows(scores, -1)
        dropped = weights * dropout_mask(weights.shape, weights.dtype, p, seed, draw, start) if p else weights
        return dropped @ repeat_heads(v, q), AttentionSaved(q, k, v, weights, slope, scale, Mask(p, seed, draw, start))

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array, None]:
        q, k, v, weights, slope, scale, dropout = saved
        dweights = dy @ repeat_heads(v, q).swapaxes(-1, -2)  # (..., H, T, S)
        dropped = weights
        if dropout.p:
            m = dropout_mask(weights.shape, weights.dtype, *dropout)
            dropped = weights * m
            dweights *= m
        dv = dropped.swapaxes(-1, -2) @ dy  # (..., H, S, D)
        dscores = weights * (dweights - (dweights * weights).sum(axis=-1, keepdims=True))
        if slope is not None:
            dscores *= slope
        dscores *= scale
        dk = dscores.swapaxes(-1, -2) @ q
        return dscores @ repeat_heads(k, q), sum_groups(dk, k.shape), sum_groups(dv, v.shape), None

    @staticmethod
    def flops(inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> int:
        q, k = inputs[:2]
        return 4 * math.prod(q) * k[-2]  # q @ k^T and p @ v, masked scores included: both are computed


def positions_ahead(n_queries: int, n_keys: int) -> Array:
    """(T, S) integers: how far key s lies ahead of query t, whose position is t + S - T. Negative for earlier keys."""
    first = n_keys - n_queries
    return xp.arange(n_keys) - xp.arange(first, first + n_queries)[:, None]


def repeat_heads(k: Array, q: Array) -> Array:
    """k (..., H_kv, S, D) with each head as often as q (..., H, T, D) has heads that share it: (..., H, S, D)."""
    return k if k.shape[:-2] == q.shape[:-2] else xp.repeat(k, q.shape[-3] // k.shape[-3], axis=-3)


def sum_groups(dk: Array, shape: tuple[int, ...]) -> Array:
    """dk (..., H, S, D), summed over the heads that share one: (..., H_kv, S, D), the given shape."""
    return dk if dk.shape == shape else dk.reshape(*shape[:-2], dk.shape[-3] // shape[-3], *shape[-2:]).sum(axis=-3)


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: ArrayLike | None = None, *,
    causal: bool = False, scale: float | None = None, window: int = 0, softcap: float = 0.0, alibi: ArrayLike | None = None,
    dropout: float = 0.0, training: bool = True, stream: RandomStream | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q @ k^T / sqrt(D)) @ v.

    q (..., T, D), k and v (..., S, D), with equal leading axes, typically (B, H) -> (..., T, D). The last leading axis of k and v, their
    heads, may be shorter, H_kv, if it divides that of q: query head h uses key head h // (H / H_kv).
    mask      booleans, or exact 0 and 1, that broadcast to (..., T, S), True where a query may attend to a key; a row without True gives zeros
    causal    query t attends to keys up to t + S - T only
    scale     factor of the scores, default 1 / sqrt(D)
    window    0, or w: query t attends to the w keys from t + S - T - w + 1 to t + S - T only (transformers' `sliding_window`); needs causal
    softcap   0, or c: scores become c tanh(s / c), before anything is added or masked
    alibi     slopes (H,), as of `alibi_slopes`: -slope times the distance from query to key is added to the scores; needs causal
    dropout   probability of dropping a weight, while `training`; `stream` gives the masks, by default as for `dropout`
    Raises ValueError, naming the shapes, where they do not fit, for a mask of other numbers, and for options that do not fit.
    """
    check_probability("attention", dropout)
    q, k, v = (as_tensor("attention", a) for a in (q, k, v))
    _check_shapes(q.shape, k.shape, v.shape)
    if causal and q.shape[-2] > k.shape[-2]:
        found = f"{q.shape[-2]} queries for {k.shape[-2]} keys with causal=True"
        raise ValueError(f"attention: {found}, expected no more queries than keys; pass the keys of the earlier positions too")
    device_mask, scores = None, (*q.shape[:-1], k.shape[-2])
    if mask is not None:
        device_mask = backend.to_device(backend.as_mask(mask, "attention"))
        if not broadcasts(device_mask.shape, scores):
            problem = f"a mask of shape {device_mask.shape}, expected one that broadcasts to {scores}"
            raise ValueError(f"attention: {problem}; True means that the query may attend to the key")
    options = _checked_options(q.shape, causal, scale, window, softcap, alibi)
    if training and dropout:
        options |= (stream or default_stream).next_mask(dropout, scores)._asdict()
    return Attention.apply(q, k, v, device_mask, **options)


def _check_shapes(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...]) -> None:
    grouped = len(q) == len(k) > 2 and q[:-3] == k[:-3] and k[-3] > 0 and q[-3] % k[-3] == 0
    if len(q) < 2 or k != v or q[-1] != k[-1] or not (q[:-2] == k[:-2] or grouped):
        raise ValueError(
            f"attention: q {q}, k {k}, v {v}, expected (..., T, D), (..., S, D), (..., S, D) with equal leading axes, or with key heads "
            "(the last of these axes) whose number divides that of the query heads; split the heads the same way"
        )
    if k[-2] == 0 or q[-1] == 0:
        raise ValueError(f"attention: k of shape {k}, expected at least one key and one channel; skip empty input")


def _checked_options(
    q: tuple[int, ...], causal: bool, scale: float | None, window: int, softcap: float, alibi: ArrayLike | None
) -> dict[str, object]:
    """`causal`, and those of the others that change something."""
    if scale is None and window == softcap == 0 and alibi is None:  # as in GPT-2
        return {"causal": causal}
    for name, value, least in (("scale", 1.0 if scale is None else scale, "> 0"), ("softcap", softcap, ">= 0")):
        if not (0 < value < math.inf or (value == 0 and least == ">= 0")):
            raise ValueError(f"attention: {name} {value}, expected a finite number {least}; leave it out for the default")
    if not isinstance(window, int) or window < 0:
        raise ValueError(f"attention: window {window!r}, expected a whole number of keys, 0 for all of them")
    slopes: tuple[float, ...] = ()
    if alibi is not None:
        table = backend.to_host(alibi)
        if len(q) < 3 or table.shape != q[-3:-2]:
            raise ValueError(
                f"attention: alibi of shape {table.shape} for q {q}, expected ({q[-3] if len(q) > 2 else 'H'},); one slope per query head"
            )
        slopes = tuple(table.tolist())
    for name, given in (("window", bool(window)), ("alibi", alibi is not None)):
        if given and not causal:
            raise ValueError(f"attention: {name} with causal=False, expected causal=True; it counts positions back from the query's")
    chosen = {"scale": scale, "window": window, "softcap": softcap, "alibi": slopes}
    return {"causal": causal, **{name: value for name, value in chosen.items() if value}}
