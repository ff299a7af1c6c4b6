"""Exercise 9: attention of one head.

p = softmax(q k^T / sqrt D), y = p v. All formulas below are right; read which arrays they are written into.

    python -m tinygpt exercise 9
"""

import math

import numpy as np

import autograd as ag


class Attention(ag.Op):
    @staticmethod
    def forward(q, k, v):  # (T, D) each -> (T, D)
        s = q @ k.T / math.sqrt(q.shape[1])
        p = np.exp(s - s.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return p @ v, (q, k, v, p)

    @staticmethod
    def backward(saved, dy):
        q, k, v, p = saved
        dp = dy @ v.T
        ds = p
        ds *= dp - (dp * p).sum(axis=1, keepdims=True)
        ds /= math.sqrt(q.shape[1])
        return ds @ k, ds.T @ q, p.T @ dy


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda q, k, v: Attention.apply(q, k, v), {name: rng.standard_normal((4, 3)) for name in "qkv"}
