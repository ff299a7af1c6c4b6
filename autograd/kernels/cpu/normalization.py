"""Layer norm and RMS norm by blocks of rows."""

from typing import NamedTuple

import numpy as np

from autograd.backend import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cpu.parallel import row_blocks, row_sums, rows_of, times_vector
from autograd.ops.normalization import LayerNorm, LayerNormSaved, RMSNorm


@kernel_for(LayerNorm)
class LayerNormBlocked(LayerNorm):
    """Rows in blocks that stay in cache through both passes, forward and backward. Reference: ops/normalization.py."""

    @staticmethod
    def supports(x: Array, gamma: Array, beta: Array, *, eps: float = 1e-5) -> bool:
        return x.dtype in (np.float32, np.float64) and x.dtype == gamma.dtype == beta.dtype and x.size > 0

    @staticmethod
    def forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, eps: float = 1e-5) -> tuple[Array, tuple[Array, ...]]:
        c = x.shape[-1]
        rows = x.reshape(rows_of(x.shape), c)
        n, y = np.empty(rows.shape, dtype=x.dtype), np.empty(rows.shape, dtype=x.dtype)
        r = np.empty((len(rows), 1), dtype=x.dtype)
        mean = np.full((c, 1), 1 / c, dtype=x.dtype)  # rows @ mean: BLAS sums short rows faster than NumPy

        def block(part: slice) -> None:
            ns, rs, ys = n[part], r[part], y[part]
            times_vector(rows[part], mean, out=rs)
            np.subtract(rows[part], rs, out=ns)
            np.vecdot(ns, ns, out=rs[:, 0])  # a row's sum of squares without a temporary
            rs *= 1 / c
            rs += eps
            np.sqrt(rs, out=rs)
            np.divide(1, rs, out=rs)
            ns *= rs
            np.multiply(ns, gamma, out=ys)
            ys += beta

        row_blocks(len(rows), c * x.itemsize, block)
        return y.reshape(x.shape), LayerNormSaved(n.reshape(x.shape), r.reshape(*x.shape[:-1], 1), gamma)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array, *, needs: tuple[bool, ...] = (True,) * 3) -> tuple[Array, Array | None, Array | None]:
        n, r, gamma = saved
        c = n.shape[-1]
        shape = (rows_of(n.shape), c)
        ns, rs, dys = n.reshape(shape), r.reshape(-1, 1), dy.reshape(shape)
        dx = np.empty(shape, dtype=n.dtype)
        weights = gamma * (1 / c)
        wants_sums = needs[1] or needs[2]

        def block(part: slice) -> tuple[np.ndarray, ...]:
            d, out = dys[part], dx[part]
            dn = np.multiply(d, ns[part])
            mean_qn, mean_q = times_vector(dn, weights)[:, None], times_vector(d, weights)[:, None]  # q = gamma dy
            sums = tuple(np.ones(len(d), dtype=d.dtype) @ terms for terms in (dn, d)) if wants_sums else ()
            np.multiply(ns[part], mean_qn, out=out)
            out += mean_q
            np.multiply(d, gamma, out=dn)
            np.subtract(dn, out, out=out)
            out *= rs[part]
            return sums

        dgamma, dbeta = row_sums(len(ns), c * n.itemsize, block) or (None, None)
        return dx.reshape(n.shape), dgamma, dbeta


class RMSNormBlockedSaved(NamedTuple):
    x: Array  # (..., C)
    r: Array  # (rows, 1)
    scale: Array | None  # (C,), offset + weight


@kernel_for(RMSNorm)
class RMSNormBlocked(RMSNorm):
    """Rows in blocks that stay in cache through both passes, forward and backward. Reference: ops/normalization.py.

    Saves x, which the residual stream keeps for a while anyway, and r instead of n: the forward pass writes y alone.
    """

    @staticmethod
    def supports(x: Array, weight: Array | None, *, eps: float = 1e-6, offset: float = 0.0) -> bool:
        return x.dtype in (np.float32, np.float64) and (weight is None or x.dtype == weight.dtype) and x.size > 0

    @staticmethod
    def forward(x: Array, weight: Array | None, *, eps: float = 1e-6, offset: float = 0.0) -> tuple[Array, tuple[Array, ...]]:
        c = x.shape[-1]
        rows = x.reshape(rows_of(x.shape), c)
        y, r = np.empty(rows.shape, dtype=x.dtype), np.empty((len(rows), 1), dtype=x.dtype)
        scale = weight if weight is None or offset == 0 else offset + weight

        def block(part: slice) -> None:
            rs = r[part]
            np.vecdot(rows[part], rows[part], out=rs[:, 0])  # a row's sum of squares without a temporary
            rs *= 1 / c
            rs += eps
            np.sqrt(rs, out=rs)
            np.divide(1, rs, out=rs)
            np.multiply(rows[part], rs, out=y[part])
            if scale is not None:
                y[part] *= scale

        row_blocks(len(rows), c * x.itemsize, block)
        return y.reshape(x.shape), RMSNormBlockedSaved(x, r, scale)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array, *, needs: tuple[bool, bool] = (True, True)) -> tuple[Array, Array | None]:
        x, r, scale = saved
        c = x.shape[-1]
        rows, dys = x.reshape(-1, c), dy.reshape(-1, c)
        dx = np.empty(rows.shape, dtype=x.dtype)
        weights = np.full(c, 1 / c, dtype=x.dtype) if scale is None else scale * (1 / c)

        def block(part: slice) -> tuple[np.ndarray, ...]:
            d, out = dys[part], dx[part]
            n = np.multiply(rows[part], r[part])
            np.multiply(d, n, out=out)
            mean_qn = times_vector(out, weights)[:, None]  # q = (offset + weight) dy
            sums = (np.ones(len(d), dtype=d.dtype) @ out,) if needs[1] else ()
            n *= mean_qn
            np.subtract(d if scale is None else np.multiply(d, scale, out=out), n, out=out)
            out *= r[part]
            return sums

        (dweight,) = row_sums(len(rows), c * x.itemsize, block) or (None,)
        return dx.reshape(x.shape), dweight
