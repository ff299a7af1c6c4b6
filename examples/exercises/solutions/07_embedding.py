"""Solution of exercise 7: with a repeated index, `+=` keeps only one of the additions; np.add.at does all of them."""

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
        np.add.at(dweight, ids, dy)
        return dweight, None


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    ids = np.array([0, 2, 0, 3])
    return lambda weight: Embedding.apply(weight, ids), {"weight": rng.standard_normal((5, 3))}
