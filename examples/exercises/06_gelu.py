"""Exercise 6: GELU.

u = s (x + c x^3), t = tanh u, y = x (1 + t) / 2.

    python -m tinygpt exercise 6
"""

import math

import numpy as np

import autograd as ag

S, C = math.sqrt(2 / math.pi), 0.044715


class GELU(ag.Op):
    @staticmethod
    def forward(x):
        t = np.tanh(S * (x + C * x * x * x))
        return x * (1 + t) / 2, (x, t)

    @staticmethod
    def backward(saved, dy):
        x, t = saved
        slope = S * (1 + C * x * x)  # of u
        return dy * ((1 + t) / 2 + x * (1 - t * t) * slope / 2)


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda x: GELU.apply(x), {"x": rng.standard_normal((3, 4))}
