"""Layer norm by blocks of rows."""

from typing import Any

import numpy as np

from autograd.core import accelerates
from autograd.kernels.cpu.parallel import row_blocks, row_sums, rows_of
from autograd.ops.normalization import LayerNorm


@accelerates(LayerNorm)
class LayerNormBlocked(LayerNorm):
    """Rows in blocks that stay in cache through both passes, forward and backward. Reference: ops/normalization.py."""

    @staticmethod
    def supports(x: Any, gamma: Any, beta: Any, *, eps: float = 1e-5) -> bool:
        return x.dtype in (np.float32, np.float64) and x.dtype == gamma.dtype == beta.dtype and x.size > 0

    @staticmethod
    def forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, *, eps: float = 1e-5) -> tuple[np.ndarray, Any]:
        c = x.shape[-1]
        rows = x.reshape(rows_of(x.shape), c)
        n, y = np.empty(rows.shape, dtype=x.dtype), np.empty(rows.shape, dtype=x.dtype)
        r = np.empty((len(rows), 1), dtype=x.dtype)

        def block(part: slice) -> None:
            ns, rs, ys = n[part], r[part], y[part]
            np.einsum("ij->i", rows[part], out=rs[:, 0])
            rs *= 1 / c
            np.subtract(rows[part], rs, out=ns)
            np.einsum("ij,ij->i", ns, ns, out=rs[:, 0])  # a row's sum of squares without a temporary
            rs *= 1 / c
            rs += eps
            np.sqrt(rs, out=rs)
            np.divide(1, rs, out=rs)
            ns *= rs
            np.multiply(ns, gamma, out=ys)
            ys += beta

        row_blocks(len(rows), c * x.itemsize, block)
        return y.reshape(x.shape), (n.reshape(x.shape), r.reshape(*x.shape[:-1], 1), gamma)

    @staticmethod
    def backward(
        saved: Any, dy: np.ndarray, *, needs: tuple[bool, bool, bool] = (True, True, True)
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:  # fmt: skip
        n, r, gamma = saved
        c = n.shape[-1]
        shape = (rows_of(n.shape), c)
        ns, rs, dys = n.reshape(shape), r.reshape(-1, 1), dy.reshape(shape)
        dx = np.empty(shape, dtype=n.dtype)

        frozen = not (needs[1] or needs[2])

        def block(part: slice) -> tuple[np.ndarray, ...]:
            q, out = dys[part] * gamma, dx[part]
            a = np.einsum("ij,ij->i", q, ns[part])[:, None]
            a *= 1 / c
            b = np.einsum("ij->i", q)[:, None]
            b *= 1 / c
            np.multiply(ns[part], a, out=out)
            np.subtract(q, out, out=out)
            out -= b
            out *= rs[part]
            return () if frozen else (np.einsum("ij,ij->j", dys[part], ns[part]), dys[part].sum(axis=0))

        dgamma, dbeta = row_sums(len(ns), c * n.itemsize, block) or (None, None)
        return dx.reshape(n.shape), dgamma, dbeta
