"""Exercise 4: the variance of each row.

m = mean of a row, y = mean of (x - m)^2. One number comes out of each row.

    python -m tinygpt exercise 4
"""

import autograd as ag


class Variance(ag.Op):
    @staticmethod
    def forward(x):  # (N, C) -> (N,)
        deviation = x - x.mean(axis=1, keepdims=True)
        return (deviation * deviation).mean(axis=1), deviation

    @staticmethod
    def backward(deviation, dy):
        n = deviation.size
        return dy[:, None] * 2 * deviation / n


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda x: Variance.apply(x), {"x": rng.standard_normal((3, 5))}
