"""Exercise 7: embedding.

y = weight[ids]. The first row of the table is looked up twice here.

    python -m tinygpt exercise 7
"""

import numpy as np

import autograd as ag


class Embedding(ag.Op):
    @staticmethod
    def forward(weight, ids):  # (V, C), (N,) -> (N, C)
        return weight[ids], (weight.shape, ids)

    @staticmethod
    def backward(saved, dy):
        shape, ids = saved
        dweight = np.zeros(shape, dtype=dy.dtype)
        dweight[ids] += dy
        return dweight, None


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    ids = np.array([0, 2, 0, 3])
    return lambda weight: Embedding.apply(weight, ids), {"weight": rng.standard_normal((5, 3))}
