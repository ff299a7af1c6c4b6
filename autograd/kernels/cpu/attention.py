"""Attention by blocks of queries: scores for one block at a time, never a (T, S) array per head."""

import math
from collections import namedtuple
from collections.abc import Callable
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
_THREADS_PAY_SCORES = 100_000

BlockedSaved = namedtuple("BlockedSaved", "q k v y lse plan")


@kernel_for(Attention)
class AttentionBlocked(Attention):
    """Saves softmax statistics instead of the weights, which the backward pass recomputes. Reference: ops/attention.py.

    Forward     per block of queries: s = q @ k^T / sqrt(D) with keys up to the block's end, l = ln sum e^s, y = e^(s - l) @ v
    Backward    p = e^(s - l) again, then as in the reference; sum(dp * p) = sum(dy * y), which needs no (T, S) array

    One unit of work is some heads of one sequence, or several sequences if they are short: few, large NumPy calls,
    because threads contend for the interpreter lock after each. Gradients of keys and values are summed inside a unit, in a fixed order.
    Saves q, k, v, y and l (..., T): y is the array that the next layer saves anyway.
    Source      Dao et al. 2022, arXiv:2205.14135, section 3.1.
    """

    @staticmethod
    def supports(q: Array, k: Array, v: Array, mask: Array | None, **options: object) -> bool:
        plain = q.shape[:-2] == k.shape[:-2] and not options.keys() & {"scale", "window", "softcap", "alibi"}
        return (
            plain and q.ndim == 4 and mask is None and q.size > 0 and q.dtype in (np.float32, np.float64) and q.dtype == k.dtype == v.dtype
        )

    @staticmethod
    def forward(
        q: Array, k: Array, v: Array, mask: None, *, causal: bool, p: float = 0.0, seed: int = 0, draw: int = 0, start: int = 0, **_: object
    ) -> tuple[Array, tuple[Array, ...]]:
        plan = _Plan(q.shape, k.shape[2], q.itemsize, causal, (p, seed, draw, start))
        y = np.empty_like(q)  # in q's memory order, (B, T, H, D) in a GPT: merging the heads afterwards is then free
        lse = np.empty(q.shape[:3], dtype=q.dtype)

        def work(i: int) -> None:
            unit = plan.units[i]
            qs, vs = q[unit], v[unit]  # (B', H', T, D), (B', H', S, D)
            k_columns = _transposed(k[unit], plan.scale)
            for rows, end in plan.query_blocks:
                s = plan.scores(qs[:, :, rows], k_columns[..., :end], rows)  # (B', H', T', S')
                m, total, good = exponentials(s, s, each_row=False)
                if not good:  # some rows' scores are far below the others'
                    s = plan.scores(qs[:, :, rows], k_columns[..., :end], rows)
                    m, total, _ = exponentials(s, s, each_row=True)
                out = y[unit][:, :, rows]
                if p:
                    s *= plan.dropout_mask(unit, rows, end, s.dtype)
                np.matmul(s, vs[:, :, :end], out=out)
                out /= total
                np.log(total, out=total)
                lse[unit][:, :, rows] = (m + total)[..., 0]

        plan.run(work)
        return y, BlockedSaved(q, k, v, y, lse, plan)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, None]:
        q, k, v, y, lse, plan = saved
        dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)

        def work(i: int) -> None:
            unit = plan.units[i]
            qs, ks = q[unit], k[unit]
            k_columns, v_columns = _transposed(ks, plan.scale), _transposed(v[unit])
            # Blocks run from the last to the first: the last one has every key, so its products fill dk and dv; the others add.
            for rows, end in reversed(plan.query_blocks):
                last = rows.stop == plan.n_queries
                dys = dy[unit][:, :, rows]
                weights = plan.scores(qs[:, :, rows], k_columns[..., :end], rows)
                weights -= lse[unit][:, :, rows, None]
                np.exp(weights, out=weights)
                dweights = np.matmul(dys, v_columns[..., :end])
                dropped = weights
                if plan.p:
                    mask = plan.dropout_mask(unit, rows, end, weights.dtype)
                    dropped = weights * mask
                    dweights *= mask
                _fill_or_add(dv[unit][:, :, :end], dropped.swapaxes(-1, -2), dys, fill=last)
                dweights -= np.einsum("bhtd,bhtd->bht", dys, y[unit][:, :, rows])[..., None]
                dweights *= weights
                dweights *= plan.scale
                np.matmul(dweights, ks[:, :, :end], out=dq[unit][:, :, rows])
                _fill_or_add(dk[unit][:, :, :end], dweights.swapaxes(-1, -2), qs[:, :, rows], fill=last)

        plan.run(work)
        return dq, dk, dv, None


class _Plan:
    """How the work is divided: into units, each some sequences and heads, and inside a unit into blocks of queries."""

    def __init__(self, shape: tuple[int, ...], n_keys: int, itemsize: int, causal: bool, dropout: tuple[float, int, int, int]) -> None:
        n_batch, self.n_head, self.n_queries, d = shape
        self.n_keys, self.causal = n_keys, causal
        self.p, self.seed, self.draw, self.start = dropout
        self.scale = 1 / math.sqrt(d)
        row_bytes = n_keys * itemsize
        block = max(1, min(self.n_queries, _MAX_QUERIES, _SCORES_BYTES // row_bytes))
        heads = max(1, min(self.n_head, _SCORES_BYTES // (block * row_bytes)))
        sequences = max(1, _SCORES_BYTES // (block * row_bytes * self.n_head)) if heads == self.n_head else 1
        sequences = min(sequences, -(-n_batch // 2))  # at least two units, for two threads
        self.units = [
            (slice(b, min(b + sequences, n_batch)), slice(h, min(h + heads, self.n_head)))
            for b in range(0, n_batch, sequences)
            for h in range(0, self.n_head, heads)
        ]
        rows = [slice(start, min(start + block, self.n_queries)) for start in range(0, self.n_queries, block)]
        ahead = n_keys - self.n_queries
        self.query_blocks = [(r, r.stop + ahead if causal else n_keys) for r in rows]  # with the keys that they may attend to
        self.threaded = n_batch * self.n_head * self.n_queries * n_keys > _THREADS_PAY_SCORES

    def run(self, work: Callable[[int], None]) -> None:
        for_each(len(self.units), work, threaded=self.threaded)

    def scores(self, q: np.ndarray, k_columns: np.ndarray, rows: slice) -> Array:
        """q @ k^T / sqrt(D), (B', H', T', S'); -inf where masked: only in the square at the block's end."""
        s = np.matmul(q, k_columns)
        if self.causal:
            n = rows.stop - rows.start
            s[..., -n:] += _not_ahead(n, s.dtype)
        return s

    def dropout_mask(self, unit: tuple[slice, slice], rows: slice, end: int, dtype: DType) -> Array:
        """The part of the reference's mask that belongs to this block, (B', H', T', S')."""
        threshold, scale = dropout_threshold(self.p)
        n = (rows.stop - rows.start) * self.n_keys
        sequences, heads = (range(part.start, part.stop) for part in unit)
        starts = [self.start + ((b * self.n_head + h) * self.n_queries + rows.start) * self.n_keys for b in sequences for h in heads]
        if starts[-1] - starts[0] == n * (len(starts) - 1):  # without gaps, as for short sequences
            bits = backend.random_bits(self.seed, self.draw, starts[0], n * len(starts))
        else:
            bits = np.stack([backend.random_bits(self.seed, self.draw, start, n) for start in starts])
        keep = bits.reshape(len(sequences), len(heads), -1, self.n_keys)[..., :end] >= threshold
        return keep.astype(dtype) * dtype.type(scale)


def _transposed(x: np.ndarray, scale: float = 1.0) -> Array:
    """scale x^T, (..., S, D) -> (..., D, S), copied: BLAS multiplies small matrices a third faster when neither is transposed."""
    return np.multiply(x.swapaxes(-1, -2), scale, order="C")


@cache
def _not_ahead(n: int, dtype: DType) -> Array:
    """(n, n): 0 on and below the diagonal, -inf above it."""
    return np.triu(np.full((n, n), -np.inf, dtype=dtype), k=1)


def _fill_or_add(out: np.ndarray, a: np.ndarray, b: np.ndarray, *, fill: bool) -> None:
    if fill:
        np.matmul(a, b, out=out)
    else:
        out += np.matmul(a, b)
