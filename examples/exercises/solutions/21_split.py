"""Solution of exercise 21: neighboring windows share half of their tokens, so shuffling windows puts one half into each part; cut the text first."""

import numpy as np


def split(ids, length, fraction, rng):
    """(training, validation): lists of windows, each an array of `length` ids; about `fraction` of the ids go to validation."""
    border = len(ids) - round(fraction * len(ids))
    parts = ids[:border], ids[border:]
    training, validation = ([part[start : start + length] for start in range(0, len(part) - length + 1, length // 2)] for part in parts)
    return training, validation


def laws(split, rng):
    """What must hold, whatever the text: what is looked at -> (found, expected)."""
    ids = np.arange(400)  # each id is its own position
    training, validation = split(ids, 8, 0.2, rng)
    sizes = {len(window) for window in training + validation}
    seen = np.unique(np.concatenate(training))
    held_out = np.unique(np.concatenate(validation))
    return {
        "tokens of a window": (sorted(sizes), [8]),
        "share of validation, in tenths": (round(10 * len(held_out) / (len(held_out) + len(seen))), 2),
        "tokens that are in both parts": (len(np.intersect1d(seen, held_out)), 0),
    }
