"""Exercise 13: one Newton-Schulz iteration, with which Muon makes a step orthogonal.

A = x x^T, y = 1.5 x - 0.5 A x. Each singular value s of x becomes 1.5 s - 0.5 s^3, which is 1 where s is 1.

    python -m tinygpt exercise 13
"""

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
        return 1.5 * dy - 0.5 * (a @ dy) + da @ x


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda x: NewtonSchulz.apply(x), {"x": rng.standard_normal((3, 4))}
