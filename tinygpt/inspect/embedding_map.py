"""Rows of an embedding table as points: which are near each other by cosine, and a map of them in two dimensions.

Cosine and not distance: training makes the rows of frequent tokens longer or shorter than others, which says how common a token is and not
what it is like. So all rows are divided by their lengths first; then small distances and large cosines are the same thing.
"""

from collections.abc import Iterable
from itertools import islice

import numpy as np

from tinygpt.storage.checked_json import Json

MOST_SHOWN = 600
N_NEAREST = 10
_CHUNK = 256  # rows whose cosines with all others are in memory at once


def embedding_map(table: np.ndarray, order: Iterable[int]) -> dict[str, Json]:
    """A map of an embedding table (V, C), ready for JSON.

    order        rows to show, the first `MOST_SHOWN` different ones of it
    ids          the rows shown
    points       their coordinates [x, y] on the map, see `plane`
    shares       of the variance of all rows, what each of the two axes holds
    nearest      for each, the `N_NEAREST` rows of all V with the largest cosines, as [row, cosine]
    n_rows       V
    """
    rows = unit_rows(table)
    ids = np.fromiter(islice(dict.fromkeys(order), MOST_SHOWN), dtype=np.int64)
    points, shares = plane(rows, ids)
    near, cosines = nearest(rows, ids, N_NEAREST)
    return {
        "ids": ids.tolist(),
        "points": points.round(4).tolist(),
        "shares": shares.round(4).tolist(),
        "nearest": [[[i, c] for i, c in zip(*both, strict=True)] for both in zip(near.tolist(), cosines.round(4).tolist(), strict=True)],
        "n_rows": len(rows),
    }


def unit_rows(table: np.ndarray) -> np.ndarray:
    """The rows of a table (V, C), each divided by its length. A row of zeros stays as it is."""
    rows: np.ndarray = table.astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-20)
    return rows


def nearest(rows: np.ndarray, ids: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The n rows of (V, C) nearest to each row of ids (M,), itself left out: their numbers (M, n) and cosines (M, n), the largest first.

    rows   of length 1, see `unit_rows`. n: at most V - 1 are found
    """
    n, found = min(n, len(rows) - 1), []
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        cosines = rows[chunk] @ rows.T  # (M, V)
        cosines[np.arange(len(chunk)), chunk] = -2  # below every cosine
        best = np.sort(np.argpartition(-cosines, max(n - 1, 0), axis=1)[:, :n], axis=1)  # by number, for ties
        best = np.take_along_axis(best, np.argsort(-np.take_along_axis(cosines, best, 1), axis=1, kind="stable"), 1)
        found.append((best, np.take_along_axis(cosines, best, 1)))
    numbers, cosines = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return numbers, cosines


def plane(rows: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the rows of ids (M,) lie on the two axes along which all rows (V, C) vary most (principal components): (M, 2).

    Also the share of all variance that each axis holds, (2,). The axes are eigenvectors of the covariance, which has C x C numbers however
    many rows there are; the singular value decomposition of the centered rows gives the same ones. Their signs, which are free, are chosen so
    that the largest component is positive.
    """
    mean = rows.mean(axis=0)
    covariance = (rows.T @ rows / len(rows) - np.outer(mean, mean)).astype(np.float64)
    variances, axes = np.linalg.eigh(covariance)  # ascending
    axes = axes[:, ::-1][:, :2]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    found = np.zeros((len(ids), 2)), np.zeros(2)  # of a table of one column, the second axis holds nothing
    found[0][:, : axes.shape[1]] = (rows[ids] - mean) @ axes
    found[1][: axes.shape[1]] = np.maximum(variances[::-1][:2], 0) / max(variances.sum(), 1e-30)
    return found
