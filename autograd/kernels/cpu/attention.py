"""Attention by blocks of queries: scores for one block at a time, never a (T, S) array per head."""

import math
from collections import namedtuple
from functools import cache

import numpy as np

from autograd import backend
from autograd.backend import Array, DType
from autograd.dispatch import kernel_for
from autograd.kernels.cpu.activation import exponentials
from autograd.kernels.cpu.parallel import for_each
from autograd.ops.attention import Attention
from autograd.ops.dropout import dropout_threshold

_SCORES_BYTES = 512 * 1024  # scores that exist at once in a thread, over all its heads and sequences: they should stay in the L2 cache
_MAX_QUERIES = 128
_MIN_QUERIES_OF_WINDOW = 32  # n queries with a window w compute n (n + w) scores: blocks of w / 2 are fastest, but no shorter ones
_THREADS_PAY_SCORES = 100_000

BlockedSaved = namedtuple("BlockedSaved", "q k v y lse plan")


@kernel_for(Attention)
class AttentionBlocked(Attention):
    """Saves softmax statistics instead of the weights, which the backward pass recomputes. Reference: ops/attention.py.

    Forward     per block of queries: s = q @ k^T / sqrt(D) with the keys that the block may see, l = ln sum e^s, y = e^(s - l) @ v
    Backward    p = e^(s - l) again, then as in the reference; sum(dp * p) = sum(dy * y), which needs no (T, S) array

    One unit of work is some heads of one sequence, or several sequences if they are short: few, large NumPy calls,
    because threads contend for the interpreter lock after each. Gradients of keys and values are summed inside a unit, in a fixed order.
    Inside, query heads that share a key head have an axis of their own, (B, H_kv, G, T, D), along which keys and values are broadcast, not copied.
    A unit then has all G of them, G' at a time. Keys that no block sees, before the first window, are never read.
    A mask is added to the scores, 0 or -inf, in its own shape: padding's is a row per sequence. A row that sees no key has l = 0 and p = 0.
    Saves q, k, v, y and l (..., T): y is the array that the next layer saves anyway.
    Source      Dao et al. 2022, arXiv:2205.14135, section 3.1.
    """

    @staticmethod
    def supports(q: Array, k: Array, v: Array, mask: Array | None, **options: object) -> bool:
        return q.ndim == 4 and q.size > 0 and q.dtype in (np.float32, np.float64) and q.dtype == k.dtype == v.dtype

    @staticmethod
    def forward(
        q: Array, k: Array, v: Array, mask: Array | None, *, causal: bool, scale: float | None = None, window: int = 0, softcap: float = 0.0,
        alibi: tuple[float, ...] = (), p: float = 0.0, seed: int = 0, draw: int = 0, start: int = 0,
    ) -> tuple[Array, tuple[Array, ...]]:  # fmt: skip
        plan = _Plan(
            q, k.shape, mask, causal=causal, scale=scale, window=window, softcap=softcap, alibi=alibi, dropout=(p, seed, draw, start)
        )
        y = np.empty_like(q)  # in q's memory order, (B, T, H, D) in a GPT: merging the heads afterwards is then free
        lse = np.empty(q.shape[:3], dtype=q.dtype)
        qs, ys, lses = plan.grouped(q), plan.grouped(y), plan.grouped(lse)

        def work(i: int) -> None:
            unit, heads = plan.pieces[i]
            keys_of_unit, values = k[unit][:, :, None], v[unit][:, :, None]  # (B', H', 1, S, D)
            for rows, keys in plan.blocks:
                block = qs[unit][:, :, heads, rows] * plan.scale  # (B', H', G', T', D)
                s, _ = plan.scores(block, keys_of_unit, unit, heads, rows, keys)  # (B', H', G', T', S')
                m, total, good = exponentials(s, s, each_row=False)
                if not good:  # some rows' scores are far below the others'
                    s, _ = plan.scores(block, keys_of_unit, unit, heads, rows, keys)
                    m, total, _ = exponentials(s, s, each_row=True)
                    blind = total == 0
                    m[blind], total[blind] = 0, 1
                out = ys[unit][:, :, heads, rows]
                if p:
                    s *= plan.dropout_mask(unit, heads, rows, keys, s.dtype)
                np.matmul(s, values[..., keys, :], out=out)
                out /= total
                np.log(total, out=total)
                lses[unit][:, :, heads, rows] = (m + total)[..., 0]

        for_each(len(plan.pieces), work, threaded=plan.threaded)
        return y, BlockedSaved(q, k, v, y, lse, plan)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, None]:
        q, k, v, y, lse, plan = saved
        new = np.zeros_like if plan.window else np.empty_like
        dq, dk, dv = np.empty_like(q), new(k), new(v)
        qs, ys, lses, dqs, dys = (plan.grouped(x) for x in (q, y, lse, dq, dy))

        def work(i: int) -> None:
            unit = plan.units[i]
            keys_of_unit, values = k[unit][:, :, None], v[unit][:, :, None]
            # Blocks run from the last to the first: without a window the last one has every key, so its products fill dk and dv; the others add.
            fill = not plan.window
            for heads in plan.heads:
                for rows, keys in reversed(plan.blocks):
                    block, dyb = qs[unit][:, :, heads, rows] * plan.scale, dys[unit][:, :, heads, rows]  # (B', H', G', T', D)
                    weights, slope = plan.scores(block, keys_of_unit, unit, heads, rows, keys, wants_slope=True)
                    weights -= lses[unit][:, :, heads, rows, None]
                    np.exp(weights, out=weights)
                    dweights = np.matmul(dyb, values[..., keys, :].swapaxes(-1, -2))
                    dropped = weights
                    if plan.p:
                        mask = plan.dropout_mask(unit, heads, rows, keys, weights.dtype)
                        dropped = weights * mask
                        dweights *= mask
                    _fill_or_add(dv[unit][:, :, keys], _merged(dropped), _merged(dyb), fill=fill)
                    dweights -= np.einsum("bhgtd,bhgtd->bhgt", dyb, ys[unit][:, :, heads, rows])[..., None]
                    dweights *= weights
                    if slope is not None:
                        dweights *= slope
                    dq_block = dqs[unit][:, :, heads, rows]
                    np.matmul(dweights, keys_of_unit[..., keys, :], out=dq_block)
                    dq_block *= plan.scale
                    _fill_or_add(dk[unit][:, :, keys], _merged(dweights), _merged(block), fill=fill)
                    fill = False

        for_each(len(plan.units), work, threaded=plan.threaded)
        return dq, dk, dv, None


class _Plan:
    """How the work is divided: into units, each some sequences and key heads, and inside a unit into heads that share a key head, and blocks of
    queries with the keys that they may see; and how the scores of one block are computed."""

    def __init__(
        self, q: np.ndarray, key_shape: tuple[int, ...], mask: np.ndarray | None, *, causal: bool, scale: float | None, window: int, softcap: float,
        alibi: tuple[float, ...], dropout: tuple[float, int, int, int],
    ) -> None:  # fmt: skip
        n_batch, self.n_head, self.n_queries, d = q.shape
        _, n_key_head, self.n_keys, _ = key_shape
        self.causal, self.window, self.softcap = causal, window, softcap
        self.p, self.seed, self.draw, self.start = dropout
        self.scale = scale or 1 / math.sqrt(d)
        self.n_group = self.n_head // n_key_head
        self.mask = None if mask is None or mask.all() else self._added(mask, q.dtype)
        self.slopes = np.array(alibi, dtype=q.dtype).reshape(n_key_head, self.n_group, 1, 1) if alibi else None
        most = min(_MAX_QUERIES, max(_MIN_QUERIES_OF_WINDOW, window // 2)) if window else _MAX_QUERIES
        n_seen = min(self.n_keys, window + most) if window else self.n_keys
        row_bytes = n_seen * q.itemsize
        block = max(1, min(self.n_queries, most, _SCORES_BYTES // row_bytes))
        heads = max(1, min(self.n_head, _SCORES_BYTES // (block * row_bytes)))
        sequences = max(1, _SCORES_BYTES // (block * row_bytes * self.n_head)) if heads == self.n_head else 1
        sequences = min(sequences, -(-n_batch // 2))  # at least two units, for two threads
        key_heads, group = max(1, heads // self.n_group), min(heads, -(-self.n_group * n_batch * n_key_head // 2))
        self.units = [
            (slice(b, min(b + sequences, n_batch)), slice(h, min(h + key_heads, n_key_head)))
            for b in range(0, n_batch, sequences)
            for h in range(0, n_key_head, key_heads)
        ]
        self.heads = [slice(g, min(g + group, self.n_group)) for g in range(0, self.n_group, group)]
        self.pieces = [(unit, heads) for unit in self.units for heads in self.heads]  # of the forward pass, which adds nothing up
        self.first = self.n_keys - self.n_queries  # the position of query 0
        rows = [slice(start, min(start + block, self.n_queries)) for start in range(0, self.n_queries, block)]
        self.blocks = [(r, self._keys(r)) for r in rows]
        self.threaded = n_batch * self.n_head * self.n_queries * n_seen > _THREADS_PAY_SCORES

    def _added(self, mask: np.ndarray, dtype: DType) -> np.ndarray:
        """What a mask adds to the scores, 0 or -inf: (B or 1, H_kv or 1, G or 1, T or 1, S or 1)."""
        full = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        heads = (self.n_head // self.n_group, self.n_group) if full.shape[1] == self.n_head else (1, 1)
        added = np.zeros((full.shape[0], *heads, *full.shape[2:]), dtype=dtype)
        added[~full.reshape(added.shape)] = -np.inf
        return added

    def _keys(self, rows: slice) -> slice:
        """Those that some query in `rows` may attend to."""
        start = max(0, self.first + rows.start - self.window + 1) if self.window else 0
        return slice(start, rows.stop + self.first if self.causal else self.n_keys)

    def grouped(self, x: np.ndarray) -> np.ndarray:
        """(B, H, T, ...) as (B, H_kv, G, T, ...), a view: query heads that share a key head are neighbours."""
        return x.reshape(x.shape[0], -1, self.n_group, *x.shape[2:])

    def scores(
        self,
        q: np.ndarray,
        k: np.ndarray,
        unit: tuple[slice, slice],
        heads: slice,
        rows: slice,
        keys: slice,
        *,
        wants_slope: bool = False,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(scores of a block (B', H', G', T', S'), -inf where masked; the soft cap's slope, if there is a cap and it is wanted). q: times scale."""
        s, slope = np.matmul(q, k[..., keys, :].swapaxes(-1, -2)), None
        if self.softcap:
            s *= 1 / self.softcap
            np.tanh(s, out=s)
            slope = 1 - s * s if wants_slope else None
            s *= self.softcap
        if self.slopes is not None:
            ahead = np.arange(keys.start, keys.stop) - np.arange(self.first + rows.start, self.first + rows.stop)[:, None]
            s += self.slopes[unit[1], heads] * ahead.astype(s.dtype)
        if self.mask is not None:
            wanted = (*unit, heads, rows, keys)
            s += self.mask[tuple(slice(None) if n == 1 else part for n, part in zip(self.mask.shape, wanted, strict=True))]
        if self.causal:  # masked are only squares: one at the block's end, and with a window one at its start
            n = rows.stop - rows.start
            s[..., -n:] += _not_ahead(n, s.dtype)
            behind = self.first + rows.start - self.window + 1 - keys.start  # the first key that row 0 sees, 0 or less
            if self.window and behind > -n:
                s[..., :n] += _not_behind(n, behind, s.dtype)
        return s, slope

    def dropout_mask(self, unit: tuple[slice, slice], heads: slice, rows: slice, keys: slice, dtype: DType) -> Array:
        """The part of the reference's mask that belongs to this block, (B', H', G', T', S')."""
        threshold, scale = dropout_threshold(self.p)
        n = (rows.stop - rows.start) * self.n_keys
        sequences, key_heads, group = (range(part.start, part.stop) for part in (*unit, heads))
        matrices = [(b * self.n_head + h * self.n_group + g) for b in sequences for h in key_heads for g in group]
        starts = [self.start + (matrix * self.n_queries + rows.start) * self.n_keys for matrix in matrices]
        if starts[-1] - starts[0] == n * (len(starts) - 1):  # without gaps, as for short sequences
            bits = backend.random_bits(self.seed, self.draw, starts[0], n * len(starts))
        else:
            bits = np.stack([backend.random_bits(self.seed, self.draw, start, n) for start in starts])
        keep = bits.reshape(len(sequences), len(key_heads), len(group), -1, self.n_keys)[..., keys] >= threshold
        return keep.astype(dtype) * dtype.type(scale)


def _merged(x: np.ndarray) -> np.ndarray:
    """(B', H', G', T', N) -> (B', H', G' T', N): the heads that share a key head under each other, so that a product adds them up."""
    return x.reshape(*x.shape[:2], -1, x.shape[-1])


@cache
def _not_ahead(n: int, dtype: DType) -> Array:
    """(n, n): 0 on and below the diagonal, -inf above it."""
    return np.triu(np.full((n, n), -np.inf, dtype=dtype), k=1)


@cache
def _not_behind(n: int, first: int, dtype: DType) -> Array:
    """(n, n): -inf in row r before column first + r, 0 from there on."""
    return np.tril(np.full((n, n), -np.inf, dtype=dtype), k=first - 1)


def _fill_or_add(out: np.ndarray, a: np.ndarray, b: np.ndarray, *, fill: bool) -> None:
    """out = a^T b, or out += a^T b."""
    if fill:
        np.matmul(a.swapaxes(-1, -2), b, out=out)
    else:
        out += np.matmul(a.swapaxes(-1, -2), b)
