"""Solution of exercise 13: x is in A = x x^T twice, so dA reaches it twice, once transposed; only one way was counted."""

import autograd as ag


class NewtonSchulz(ag.Op):
    @staticmethod
    def forward(x):
        a = x @ x.T
        return 1.5 * x - 0.5 * (a @ x), (x, a)

    @staticmethod
    def backward(saved, dy):
        x, a = saved
        da = -0.5 * (dy @ x.T)
        return 1.5 * dy - 0.5 * (a @ dy) + (da + da.T) @ x


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda x: NewtonSchulz.apply(x), {"x": rng.standard_normal((3, 4))}
