"""Solution of exercise 6: x^3 has the slope 3 x^2; the 3 was missing."""

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
        slope = S * (1 + 3 * C * x * x)  # of u
        return dy * ((1 + t) / 2 + x * (1 - t * t) * slope / 2)


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda x: GELU.apply(x), {"x": rng.standard_normal((3, 4))}
