"""Exercise 17: warm-up and cosine decay.

From step 1 the rate rises by equal amounts until it is `peak` at step `warmup`; from there half a cosine leads to 0 at step `n_steps`.

    python -m tinygpt exercise 17
"""

import math

import numpy as np


def rate(step, *, peak, warmup, n_steps):
    """The learning rate of step 1, 2, ..., n_steps."""
    rise = min(1.0, step / warmup)
    return peak * rise * (1 + math.cos(math.pi * step / n_steps)) / 2


def laws(rate, rng):
    """What must hold, whatever the settings: what is looked at -> (found, expected)."""
    peak, warmup, n_steps = rng.uniform(1e-4, 1), 5, 20
    rates = np.array([rate(step, peak=peak, warmup=warmup, n_steps=n_steps) for step in range(1, n_steps + 1)]) / peak
    return {
        "rises during warm-up, in fifths of the peak": (np.diff(rates[:warmup]) * warmup, np.ones(warmup - 1)),
        "largest rate, in peaks": (rates.max(), 1.0),
        "rate in the middle of the decay, in peaks": ((rates[11] + rates[12]) / 2, 0.5),
        "last rate": (rates[-1], 0.0),
    }
