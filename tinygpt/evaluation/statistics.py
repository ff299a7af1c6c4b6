"""How sure a score is: intervals of a mean over items, of the difference of two models on the same items, and the score centered on chance."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from tinygpt.errors import InvalidInput

_Z = 1.959964  # 97.5 % quantile of the normal distribution
_RESAMPLES = 2_000
_NUMBERS = 1 << 20  # of samples that are in memory at once


class Interval(NamedTuple):
    """A mean and where it lies with 95 % confidence; low and high are nan where one document alone says nothing of others."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})" if np.isfinite(self.low) else f"{self.mean:.3f}"


def interval(
    values: Sequence[float] | np.ndarray, groups: Sequence[int] | np.ndarray | None = None, seed: int = 0,
    weights: np.ndarray | None = None,
) -> Interval:  # fmt: skip
    """The mean of values (N,) with its 95 % interval.

    groups    (N,) equal where items share a document: then documents are drawn, not items, because their items rise and fall together
    weights   (N,) of the values in the mean, as the tokens of a text in nats per token; default: all alike
    Right or wrong answers (0 and 1) that share nothing have Wilson's interval, which holds near 0 and 1 too; all others a bootstrap's, from
    2,000 samples with replacement. Raises ValueError without values, or for groups of another length.
    Source  Wilson 1927, J. Am. Stat. Assoc. 22; Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13.
    """
    x = np.asarray(values, dtype=np.float64)
    g = np.arange(len(x)) if groups is None else np.asarray(groups)
    if x.ndim != 1 or not len(x) or g.shape != x.shape:
        raise InvalidInput(f"interval: values of shape {x.shape} and groups of shape {g.shape}, expected (N,) twice with N at least 1")
    if weights is None and len(np.unique(g)) == len(x) and np.isin(x, (0, 1)).all():
        return _wilson(float(x.mean()), len(x))
    return _of_mean(x, g, seed, weights)


def _of_mean(x: np.ndarray, groups: np.ndarray, seed: int, weights: np.ndarray | None) -> Interval:
    w = np.ones(len(x)) if weights is None else np.asarray(weights, dtype=np.float64)
    return bootstrap(np.stack([w * x, w], axis=1), lambda sums: sums[:, 0] / sums[:, 1], groups, seed)


def bootstrap(rows: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, seed: int = 0) -> Interval:
    """A statistic of the sum of rows (N, K), with its interval: groups are drawn with replacement, 2,000 times.

    statistic   of sums (R, K), one in each row -> (R,)
    """
    _, number = np.unique(groups, return_inverse=True)
    n, k = int(number.max()) + 1, rows.shape[1]
    sums = np.stack([np.bincount(number, weights=column, minlength=n) for column in np.asarray(rows, dtype=np.float64).T], axis=1)
    measured = float(statistic(sums.sum(axis=0)[None])[0])
    if n < 2:
        return Interval(measured, float("nan"), float("nan"))
    rng, found, at_once = np.random.default_rng([seed, len(rows)]), np.empty(_RESAMPLES), max(1, _NUMBERS // (n * k))
    for start in range(0, _RESAMPLES, at_once):
        part = found[start : start + at_once]
        part[:] = statistic(sums[rng.integers(n, size=(len(part), n))].sum(axis=1))
    low, high = np.quantile(found, (0.025, 0.975))
    return Interval(measured, float(low), float(high))


def _wilson(p: float, n: int) -> Interval:
    middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * (p * (1 - p) / n + _Z**2 / (4 * n * n)) ** 0.5
    return Interval(p, max(0.0, middle - half), min(1.0, middle + half))


def difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, groups: Sequence[int] | np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Interval:  # fmt: skip
    """The mean of a - b, item by item, with its interval: two models on the same items. An item's difficulty, which both share, drops out."""
    if len(a) != len(b):
        raise InvalidInput(f"difference: {len(a)} and {len(b)} items, expected the same ones; score both models on the same task files")
    x = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return _of_mean(x, np.arange(len(x)) if groups is None else np.asarray(groups), 0, weights)


def centered(score: float, chance: float) -> float:
    """(score - chance) / (1 - chance): 0 for guessing, 1 for perfect.  Source  Li et al. 2024, DataComp-LM, arXiv:2406.11794, section 3.5"""
    return (score - chance) / (1 - chance)


def kappa(a: Sequence[object], b: Sequence[object]) -> float:
    """Cohen's kappa of two raters' labels of the same items: their agreement beyond what their label frequencies give by chance. 1 where
    both always agree.  Source  Cohen 1960, A coefficient of agreement for nominal scales."""
    if len(a) != len(b) or not len(a):
        raise InvalidInput(f"kappa: {len(a)} and {len(b)} labels, expected as many, and at least one")
    agree = sum(x == y for x, y in zip(a, b, strict=True)) / len(a)
    by_chance = sum(list(a).count(label) * list(b).count(label) for label in set(a) | set(b)) / len(a) ** 2
    return 1.0 if agree == 1 else centered(agree, by_chance)
