"""Exercise 19: the norm of a gradient with tied weights.

Clipping needs the length of all gradients taken as one vector. The output layer is the embedding's own matrix, so one array has two names.

    python -m tinygpt exercise 19
"""

import math

import numpy as np


def norm(gradients):
    """The length of the gradients {name: array}; arrays that are the same object belong to one weight."""
    return math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))


def laws(norm, rng):
    """What must hold, whatever the gradients: what is looked at -> (found, expected)."""
    wte, fc, other = rng.standard_normal((5, 3)), rng.standard_normal((3, 4)), rng.standard_normal((5, 3))
    length = lambda *arrays: np.linalg.norm(np.concatenate([a.ravel() for a in arrays]))  # noqa: E731
    return {
        "norm without an output layer": (norm({"wte": wte, "fc": fc}), length(wte, fc)),
        "norm with an output layer of its own": (norm({"wte": wte, "fc": fc, "lm_head": other}), length(wte, fc, other)),
        "norm with one of the same numbers": (norm({"wte": wte, "lm_head": wte.copy()}), length(wte, wte)),
        "norm with a tied output layer": (norm({"wte": wte, "fc": fc, "lm_head": wte}), length(wte, fc)),
    }
