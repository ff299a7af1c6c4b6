"""Exercise 14: attention's weights with a causal mask.

Row t of the weights is the softmax of scores[t, 0] to scores[t, t]: what comes later takes no part.

    python -m tinygpt exercise 14
"""

import numpy as np


def weights(scores):  # (T, T) -> (T, T)
    """The share of its attention that each token, a row, gives to each token, a column."""
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p = p / p.sum(axis=1, keepdims=True)
    return np.tril(p)


def laws(weights, rng):
    """What must hold, whatever the scores: what is looked at -> (found, expected)."""
    scores = rng.standard_normal((5, 5))
    changed = scores + np.triu(rng.standard_normal((5, 5)), 1)  # what comes later, otherwise
    return {
        "sum of each row": (weights(scores).sum(axis=1), np.ones(5)),
        "weights of later tokens": (weights(scores)[np.triu_indices(5, 1)], np.zeros(10)),
        "weights after later scores were changed": (weights(changed), weights(scores)),
    }
