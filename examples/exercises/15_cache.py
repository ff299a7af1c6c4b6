"""Exercise 15: one token at a time, with a cache.

A model of one layer of attention reads tokens one by one and keeps their keys and values; it must compute what it computes for all at once.

    python -m tinygpt exercise 15
"""

import numpy as np


def step(x, positions, cache):  # (C,) -> (C,)
    """Attention's output for the next token x. positions (T, C) is added to tokens; cache = (keys, values), lists that grow."""
    keys, values = cache
    keys.append(x)
    values.append(x)
    h = x + positions[len(keys)]
    keys[-1], values[-1] = h, h
    return _attend(h, np.array(keys), np.array(values))


def _attend(q, k, v):  # (C,), (T, C), (T, C) -> (C,)
    scores = k @ q
    p = np.exp(scores - scores.max())
    return p @ v / p.sum()


def laws(step, rng):
    """What must hold, whatever the tokens: what is looked at -> (found, expected)."""
    x, positions, cache = rng.standard_normal((4, 3)), rng.standard_normal((6, 3)), ([], [])
    one_by_one = np.array([step(token, positions, cache) for token in x])
    h = x + positions[:4]
    at_once = np.array([_attend(h[t], h[: t + 1], h[: t + 1]) for t in range(4)])
    return {
        "tokens in the cache": (len(cache[0]), 4),
        "output of each token": (one_by_one, at_once),
    }
