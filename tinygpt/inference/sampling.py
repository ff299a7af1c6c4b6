"""Choosing the next token from logits: temperature, top-k, top-p, min-p, repetition penalty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinygpt.errors import Diverged, InvalidInput


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the model's distribution. The rules apply in this order:

    repetition_penalty   logits of tokens that occurred already are divided by it where positive, multiplied where negative; 1: off
    temperature          divides the logits: below 1 prefers likely tokens more, above 1 less; 0: always the likeliest (greedy)
    top_k                only the k likeliest tokens; 0: all
    top_p                only the likeliest tokens that together reach this probability; 1: all
    min_p                only tokens with at least this share of the likeliest one's probability; 0: all
    Source  penalty: Keskar et al. 2019, arXiv:1909.05858, section 4.1; top_p: Holtzman et al. 2020, arXiv:1904.09751, section 3.1;
            min_p: Nguyen et al. 2024, arXiv:2407.01082, section 3
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name, legal, rule in (
            ("temperature", 0 <= self.temperature < float("inf"), "a finite number >= 0; 0 is greedy"),
            ("top_k", self.top_k >= 0, ">= 0; 0 allows all tokens"),
            ("top_p", 0 < self.top_p <= 1, "0 < top_p <= 1; 1 allows all tokens"),
            ("min_p", 0 <= self.min_p <= 1, "0 <= min_p <= 1; 0 allows all tokens"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "a finite number > 0; 1 leaves the logits alone"),
        ):
            if not legal:
                raise InvalidInput(f"{name}: {getattr(self, name)}, expected {rule}")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis of logits (..., V), on the host, float64."""
    p: np.ndarray = np.exp(np.subtract(logits, logits.max(axis=-1, keepdims=True), dtype=np.float64))
    p /= p.sum(axis=-1, keepdims=True)
    return p


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of `softmax`, which keep what it rounds to 0."""
    scores: np.ndarray = np.subtract(logits, logits.max(axis=-1, keepdims=True), dtype=np.float64)
    scores -= np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return scores


def sample(
    logits: np.ndarray, sampling: Sampling, rng: "np.random.Generator | PerRowRNG", seen: Sequence[Sequence[int]] | None = None
) -> np.ndarray:
    """One token per row of logits (B, V) -> (B,) int64; seen: ids per row. Raises FloatingPointError if a row's largest is not finite."""
    largest = logits.max(axis=-1)  # NaN if any is
    if not np.isfinite(largest).all():
        row = int(np.flatnonzero(~np.isfinite(largest))[0])
        fix = "the model's weights are damaged or overflow, python -m tinygpt verify RUN names the first that is not finite"
        raise Diverged(f"logits: the largest of row {row} is {largest[row]}, expected a finite number; {fix}")
    if sampling.repetition_penalty != 1 and seen is not None:
        logits = np.stack([penalized(row, ids, sampling.repetition_penalty) for row, ids in zip(logits, seen, strict=True)])
    if sampling.temperature == 0:
        return np.asarray(logits.argmax(axis=-1))
    uniform = rng.random(len(logits))
    return np.array([_draw(*candidates(row, sampling), u) for row, u in zip(logits, uniform, strict=True)], dtype=np.int64)


def penalized(logits: np.ndarray, seen: Sequence[int], penalty: float) -> np.ndarray:
    """A copy of logits (V,) in which tokens that were seen are less likely."""
    logits, ids = logits.copy(), np.unique(np.asarray(seen, dtype=np.int64))
    logits[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    return logits


def candidates(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may be drawn, ids ascending, and their probabilities, float64, from logits (V,) and temperature > 0."""
    ids = top_ids(logits, sampling.top_k) if 0 < sampling.top_k < len(logits) else np.arange(len(logits))
    p = softmax(logits[ids].astype(np.float64) / sampling.temperature)
    if sampling.top_p < 1:
        kept = _nucleus(p, sampling.top_p)
        ids, p = ids[kept], p[kept]
    if sampling.min_p > 0:
        kept = p >= sampling.min_p * p.max()
        ids, p = ids[kept], p[kept]
    order = np.argsort(ids)
    return ids[order], p[order] / p.sum()


def top_ids(logits: np.ndarray, k: int) -> np.ndarray:
    """The k likeliest tokens, likeliest first, from logits (V,): a partition finds them, and only these k are sorted."""
    ids = np.argpartition(logits, -k)[-k:]
    return ids[np.lexsort((ids, -logits[ids]))]


def _nucleus(p: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the likeliest tokens that together reach top_p. Usually few: more are sorted only while they do not suffice."""
    k = min(64, len(p))
    while True:
        likeliest = top_ids(p, k)
        reached = np.cumsum(p[likeliest])
        if k == len(p) or reached[-1] >= top_p:
            return likeliest[: np.searchsorted(reached, top_p) + 1]
        k = min(4 * k, len(p))


def _draw(ids: np.ndarray, p: np.ndarray, u: float) -> int:
    """The first id whose cumulative probability exceeds u times the total: never one of probability 0."""
    cumulative = np.cumsum(p)
    last = cumulative.argmax()  # rounding may carry u times the total up to the total itself
    return int(ids[min(np.searchsorted(cumulative, u * cumulative[-1], side="right"), last)])


class PerRowRNG:
    """One stream of random numbers per row, so that a row's text depends on its own seed alone, whatever batch it is in."""

    def __init__(self, seed: int | Sequence[int], n_rows: int) -> None:
        entropy = [[int(seed), row] for row in range(n_rows)] if isinstance(seed, (int, np.integer)) else [[int(s), 0] for s in seed]
        if len(entropy) != n_rows:
            raise InvalidInput(f"seed: {len(entropy)} seeds for {n_rows} prompts, expected one each; or pass a single number")
        if any(s < 0 for s, _ in entropy):
            raise InvalidInput(f"seed: {seed}, expected at least 0")
        self.generators = [np.random.default_rng(e) for e in entropy]

    def random(self, n: int) -> np.ndarray:
        return np.array([generator.random() for generator in self.generators[:n]])
