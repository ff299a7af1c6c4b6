"""Exercise 3: adding a bias.

y = x + b: one bias for each channel, used in every row of every sequence. Here the op sums up the bias's gradient itself.

    python -m tinygpt exercise 3
"""

import autograd as ag


class AddBias(ag.Op):
    @staticmethod
    def forward(x, b):  # (B, T, C), (C,)
        return x + b, None

    @staticmethod
    def backward(saved, dy):
        return dy, dy[0].sum(axis=0)  # (B, T, C), (C,)


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda x, b: AddBias.apply(x, b), {"x": rng.standard_normal((2, 3, 4)), "b": rng.standard_normal(4)}
