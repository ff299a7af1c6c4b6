"""How sure a score is: intervals of a mean over items, of the difference of two models on the same items, and the score centered on chance;
and how far two judges agree: Cohen's kappa, the area under the ROC curve, rank correlation."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json

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
    Right or wrong answers (0 and 1) that share nothing have Wilson's interval, which holds near 0 and 1 too; so have those that are all right
    or all wrong, for as many answers as there are documents, because all samples of them are the same. All others have a bootstrap's, from
    2,000 samples with replacement. Raises ValueError without values, or for groups of another length.
    Source  Wilson 1927, J. Am. Stat. Assoc. 22; Efron and Tibshirani 1993, An introduction to the bootstrap, chapter 13.
    """
    x = np.asarray(values, dtype=np.float64)
    g = np.arange(len(x)) if groups is None else np.asarray(groups)
    if x.ndim != 1 or not len(x) or g.shape != x.shape:
        raise InvalidInput(f"interval: values of shape {x.shape} and groups of shape {g.shape}, expected (N,) twice with N at least 1")
    n_groups = len(np.unique(g))
    alike = n_groups > 1 and (x == x[0]).all()
    if weights is None and (alike or n_groups == len(x)) and np.isin(x, (0, 1)).all():
        return _wilson(float(x.mean()), n_groups)
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
    return Interval(p, min(p, max(0.0, middle - half)), max(p, min(1.0, middle + half)))  # rounding must not exclude p


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


Weights = Literal["none", "quadratic"]


def kappa(a: Sequence[Json], b: Sequence[Json], labels: Sequence[Json] | None = None, weights: Weights = "none") -> float:
    """Cohen's kappa of two raters' labels of the same items: their agreement beyond what their label frequencies give by chance. 1 where
    both always agree.

    labels    all labels, in their order; default: those that occur, sorted
    weights   quadratic: a disagreement counts by the square of the distance of the two labels in that order, so 4 against 5 is a small one
    Raises ValueError for another number of labels, none, or one that is not among `labels`.
    Source  Cohen 1960, A coefficient of agreement for nominal scales; Cohen 1968, Weighted kappa.
    """
    table = confusion(a, b, labels)
    return float(_kappas(table[None].astype(np.float64), weights)[0])


def kappa_interval(
    a: Sequence[Json], b: Sequence[Json], labels: Sequence[Json] | None = None, weights: Weights = "none",
    groups: Sequence[int] | np.ndarray | None = None, seed: int = 0,
) -> Interval:  # fmt: skip
    """`kappa` with its 95 % interval, by bootstrap over items, or over groups of them, as `interval` draws them."""
    labels = sorted(set(a) | set(b)) if labels is None else labels
    k = len(labels)
    cells = np.eye(k * k)[_cells(a, b, labels)]  # (N, labels x labels) which cell of the confusion table an item adds to
    groups = np.arange(len(a)) if groups is None else np.asarray(groups)
    return bootstrap(cells, lambda sums: _kappas(sums.reshape(-1, k, k), weights), groups, seed)


def confusion(a: Sequence[Json], b: Sequence[Json], labels: Sequence[Json] | None = None) -> np.ndarray:
    """(labels, labels) how often the first rater gave the label of the row, and the second that of the column. Raises as `kappa`."""
    labels = sorted(set(a) | set(b)) if labels is None else labels
    k = len(labels)
    return np.bincount(_cells(a, b, labels), minlength=k * k).reshape(k, k)


def _cells(a: Sequence[Json], b: Sequence[Json], labels: Sequence[Json]) -> np.ndarray:
    """(N,) number of the cell of the confusion table, row by row, that each item adds to."""
    if len(a) != len(b) or not len(a):
        raise InvalidInput(f"kappa: {len(a)} and {len(b)} labels, expected as many, and at least one")
    number = {label: i for i, label in enumerate(labels)}
    if unknown := [label for label in (*a, *b) if label not in number]:
        raise InvalidInput(f"kappa: label {unknown[0]!r}, expected one of {', '.join(map(str, labels))}; check the ratings")
    return np.array([number[x] * len(labels) + number[y] for x, y in zip(a, b, strict=True)])


def _kappas(tables: np.ndarray, weights: Weights) -> np.ndarray:
    """(N,) kappas of tables of counts (N, labels, labels): 1 - (weighted disagreements) / (those that chance gives)."""
    i = np.arange(tables.shape[1])
    w = (i[:, None] - i) ** 2 if weights == "quadratic" else (i[:, None] != i)
    chance = tables.sum(axis=2)[:, :, None] * tables.sum(axis=1)[:, None, :] / tables.sum(axis=(1, 2))[:, None, None]
    found, expected = (tables * w).sum(axis=(1, 2)), (chance * w).sum(axis=(1, 2))
    return 1 - np.where(found == 0, 0.0, found / np.where(expected == 0, 1.0, expected))


def _resampled(groups: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) the number of each item's group from 0, and (samples, groups) how often each sample of the bootstrap draws each group."""
    _, number = np.unique(groups, return_inverse=True)
    n = int(number.max()) + 1
    return number, np.random.default_rng([seed, len(groups)]).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)


def _middle(drawn: np.ndarray, n_groups: int) -> tuple[float, float]:
    if n_groups < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def auc(
    good: Sequence[float] | np.ndarray, bad: Sequence[float] | np.ndarray,
    groups: tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray] | None = None, seed: int = 0,
) -> Interval:  # fmt: skip
    """Area under the ROC curve: the probability that a good one scores above a bad one, ties counting half; 0.5 for a score without
    information. With its 95 % interval, by bootstrap.

    good, bad   scores, (N,) and (M,)
    groups      of the good and of the bad ones, drawn together; default: good and bad ones have one each, pairwise the same: N = M
    Raises ValueError without good or bad ones, and for groups of other lengths.
    Source  Hanley and McNeil 1982, The meaning and use of the area under a receiver operating characteristic (ROC) curve.
    """
    g, b = np.asarray(good, dtype=np.float64), np.asarray(bad, dtype=np.float64)
    of_good, of_bad = (np.arange(len(x)) for x in (g, b)) if groups is None else map(np.asarray, groups)
    if not len(g) or not len(b) or len(of_good) != len(g) or len(of_bad) != len(b):
        found = f"{len(g)} good and {len(b)} bad scores with {len(of_good)} and {len(of_bad)} groups"
        raise InvalidInput(f"auc: {found}, expected at least one of each, and as many groups")
    above = (g[:, None] > b) + 0.5 * (g[:, None] == b)  # (N, M)
    number, counts = _resampled(np.concatenate([of_good, of_bad]), seed)
    w, v = counts[:, number[: len(g)]].astype(np.float64), counts[:, number[len(g) :]].astype(np.float64)  # (samples, N), (samples, M)
    n = w.sum(axis=1) * v.sum(axis=1)
    drawn = ((w @ above) * v).sum(axis=1)[n > 0] / n[n > 0]  # a sample without good ones, or without bad ones, says nothing
    return Interval(float(above.mean()), *_middle(drawn, counts.shape[1]))


def rank_correlation(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, seed: int = 0) -> Interval:
    """Spearman's correlation of two judges' scores of the same items, whatever their scales: 1 where they order the items alike, 0 where one
    says nothing of the other (or one gives all the same score). With its 95 % interval, by bootstrap over items.

    Raises ValueError for fewer than two items, or another number of them. Source  Spearman 1904, Am. J. Psychol. 15, 72-101.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or len(x) < 2:
        raise InvalidInput(f"rank correlation: scores of shapes {x.shape} and {y.shape}, expected (N,) twice with N at least 2")
    _, counts = _resampled(np.arange(len(x)), seed)
    drawn = _rank_correlations(x, y, counts.astype(np.float64))
    return Interval(float(_rank_correlations(x, y, np.ones((1, len(x))))[0]), *_middle(drawn, counts.shape[1]))


def _rank_correlations(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(samples,) correlations of the ranks of x and y (N,) where item i occurs counts[:, i] times."""
    n = counts.sum(axis=1, keepdims=True)
    a, b = (_ranks(values, counts) - (n + 1) / 2 for values in (x, y))  # the mean of n ranks is (n + 1) / 2
    size = np.sqrt((counts * a * a).sum(axis=1) * (counts * b * b).sum(axis=1))
    return np.asarray((counts * a * b).sum(axis=1) / np.where(size > 0, size, 1.0))


def _ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(samples, N) the rank of each item from 1, where it occurs counts (samples, N) times; equal values share the mean of their ranks."""
    _, number = np.unique(values, return_inverse=True)
    equal = counts @ (number[:, None] == np.arange(number.max() + 1))  # (samples, values) how often each value occurs
    return np.asarray((np.cumsum(equal, axis=1) - (equal - 1) / 2)[:, number])
