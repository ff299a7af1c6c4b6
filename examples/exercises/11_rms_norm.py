"""Exercise 11: RMS norm with 1 + weight, as in Gemma.

n = x r with r = 1 / sqrt(mean(x^2) + eps) along each row, y = n (1 + weight).

    python -m tinygpt exercise 11
"""

import numpy as np

import autograd as ag


class RMSNorm(ag.Op):
    @staticmethod
    def forward(x, weight):  # (N, C), (C,) -> (N, C)
        r = 1 / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-6)  # (N, 1)
        n = x * r
        return n * (1 + weight), (n, r, weight)

    @staticmethod
    def backward(saved, dy):
        n, r, weight = saved
        dn = dy * weight
        dx = r * (dn - n * (dn * n).mean(axis=1, keepdims=True))
        return dx, (dy * n).sum(axis=0)


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda x, weight: RMSNorm.apply(x, weight), {"x": rng.standard_normal((3, 4)), "weight": rng.standard_normal(4)}
