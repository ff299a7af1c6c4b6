"""Solution of exercise 22: the mean of squares forgets at beta2, and was divided as if it forgot at beta1."""

import math

import numpy as np


def adam(gradients, *, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-12):
    """The moves of one weight, one for each of its gradients, in order."""
    m = v = 0.0
    moves = []
    for t, g in enumerate(gradients):
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        moves.append(-lr * (m / (1 - beta1 ** (t + 1))) / (math.sqrt(v / (1 - beta2 ** (t + 1))) + eps))
    return moves


def laws(adam, rng):
    """What must hold, whatever the gradients: what is looked at -> (found, expected)."""
    g = rng.uniform(0.5, 2)
    x = rng.standard_normal(4) + 3
    m, v = (sum((1 - beta) * beta ** (3 - i) * x[i] ** power for i in range(4)) / (1 - beta**4) for beta, power in ((0.9, 1), (0.999, 2)))
    return {
        "first move, for any gradient": (np.array([adam([s])[0] for s in (g, 1000 * g, -0.001 * g)]), np.array([-0.1, -0.1, 0.1])),
        "moves of equal gradients": (np.array(adam([g] * 5)), np.full(5, -0.1)),
        "fourth move": (adam(x)[3], -0.1 * m / math.sqrt(v)),
    }
