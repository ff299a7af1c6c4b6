"""Solution of exercise 14: zeros after the softmax leave each row with less than 1, because later scores are in its sum; the mask belongs before it, as -inf."""

import numpy as np


def weights(scores):  # (T, T) -> (T, T)
    """The share of its attention that each token, a row, gives to each token, a column."""
    seen = np.where(np.tri(len(scores), dtype=bool), scores, -np.inf)
    p = np.exp(seen - seen.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def laws(weights, rng):
    """What must hold, whatever the scores: what is looked at -> (found, expected)."""
    scores = rng.standard_normal((5, 5))
    changed = scores + np.triu(rng.standard_normal((5, 5)), 1)  # what comes later, otherwise
    return {
        "sum of each row": (weights(scores).sum(axis=1), np.ones(5)),
        "weights of later tokens": (weights(scores)[np.triu_indices(5, 1)], np.zeros(10)),
        "weights after later scores were changed": (weights(changed), weights(scores)),
    }
