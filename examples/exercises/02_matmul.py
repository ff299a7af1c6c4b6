"""Exercise 2: a matrix product.

y = a b with a (n, k) and b (k, m). The matrices here are square, so every formula has the right shape.

    python -m tinygpt exercise 2
"""

import autograd as ag


class MatMul(ag.Op):
    @staticmethod
    def forward(a, b):
        return a @ b, (a, b)

    @staticmethod
    def backward(saved, dy):
        a, b = saved
        da = dy @ b.T
        db = dy @ a.T
        return da, db


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda a, b: MatMul.apply(a, b), {"a": rng.standard_normal((3, 3)), "b": rng.standard_normal((3, 3))}
