"""Exercise 20: sampling among the k most probable.

The k most probable tokens are kept, and chosen among in the proportions that they have to each other.

    python -m tinygpt exercise 20
"""

import numpy as np


def choose(p, k, u):
    """The token that a uniform random number 0 <= u < 1 picks; p (V,) are probabilities."""
    kept = np.argsort(-p, kind="stable")[:k]
    return int(kept[min(np.searchsorted(np.cumsum(p[kept]), u, side="right"), k - 1)])


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
