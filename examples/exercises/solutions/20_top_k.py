"""Solution of exercise 20: the kept probabilities sum to less than 1, and the last one got what was missing; they are divided by their sum first."""

import numpy as np


def choose(p, k, u):
    """The token that a uniform random number 0 <= u < 1 picks; p (V,) are probabilities."""
    kept = np.argsort(-p, kind="stable")[:k]
    shares = np.cumsum(p[kept]) / p[kept].sum()
    return int(kept[min(np.searchsorted(shares, u, side="right"), k - 1)])


def laws(choose, rng):
    """What must hold, whatever the probabilities: what is looked at -> (found, expected)."""
    p, draws = rng.dirichlet(np.ones(6)), (np.arange(20_000) + 0.5) / 20_000  # as if drawn, without their noise
    found = {}
    for k in (1, 3, 6):
        shares = np.bincount([choose(p, k, u) for u in draws], minlength=6) / len(draws)
        kept = np.where(np.argsort(np.argsort(-p)) < k, p, 0)
        exact = kept / kept.sum()
        found[f"share of each token, k = {k}"] = (shares, np.where(np.abs(shares - exact) < 1e-3, shares, exact))
    return found
