"""Exercise 16: loss of a batch cut into micro-batches.

The loss of a batch is the mean over its tokens. A row may be padded, so micro-batches can hold different numbers of tokens.

    python -m tinygpt exercise 16
"""

import numpy as np


def loss(micro_batches):
    """micro_batches: a list of arrays, the nats of each token that counts."""
    return np.mean([nats.mean() for nats in micro_batches])


def laws(loss, rng):
    """What must hold, whatever the tokens: what is looked at -> (found, expected)."""
    nats = 3 + rng.standard_normal(12)
    cuts = {"one micro-batch": [], "three equal ones": [4, 8], "ones of 2 and 10 tokens": [2], "ones of 1, 1 and 10 tokens": [1, 2]}
    return {f"loss of {how}": (loss(np.split(nats, at)), nats.mean()) for how, at in cuts.items()}
