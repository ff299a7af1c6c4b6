"""Solution of exercise 1: the slope of tanh is 1 - y^2; the square was missing."""

import numpy as np

import autograd as ag


class Tanh(ag.Op):
    @staticmethod
    def forward(x):
        y = np.tanh(x)
        return y, y

    @staticmethod
    def backward(y, dy):
        return dy * (1 - y * y)


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda x: Tanh.apply(x), {"x": rng.standard_normal((3, 4))}
