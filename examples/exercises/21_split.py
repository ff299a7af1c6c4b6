"""Exercise 21: training and validation windows.

A text is cut into windows that overlap by half. Windows of the validation part must show nothing that training has seen.

    python -m tinygpt exercise 21
"""

import numpy as np


def split(ids, length, fraction, rng):
    """(training, validation): lists of windows, each an array of `length` ids; about `fraction` of the ids go to validation."""
    windows = [ids[start : start + length] for start in range(0, len(ids) - length + 1, length // 2)]
    order = rng.permutation(len(windows))
    n = round(fraction * len(windows))
    return [windows[i] for i in order[n:]], [windows[i] for i in order[:n]]


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
