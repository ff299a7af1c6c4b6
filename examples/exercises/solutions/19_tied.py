"""Solution of exercise 19: one gradient under two names was counted twice; whether two are one is a question of identity, not of equal numbers."""

import math

import numpy as np


def norm(gradients):
    """The length of the gradients {name: array}; arrays that are the same object belong to one weight."""
    distinct = {id(g): g for g in gradients.values()}
    return math.sqrt(sum(float((g * g).sum()) for g in distinct.values()))


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
