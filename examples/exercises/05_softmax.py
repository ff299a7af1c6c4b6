"""Exercise 5: softmax.

y_i = e^x_i / sum_k e^x_k along each row.

    python -m tinygpt exercise 5
"""

import numpy as np

import autograd as ag


class Softmax(ag.Op):
    @staticmethod
    def forward(x):  # (N, C) -> (N, C)
        e = np.exp(x - x.max(axis=1, keepdims=True))
        y = e / e.sum(axis=1, keepdims=True)
        return y, y

    @staticmethod
    def backward(y, dy):
        return dy * y * (1 - y)


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda x: Softmax.apply(x), {"x": rng.standard_normal((3, 4))}
