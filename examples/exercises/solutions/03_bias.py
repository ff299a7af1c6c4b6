"""Solution of exercise 3: the bias is used in every sequence of the batch, not in the first one alone: the sum goes over both leading axes."""

import autograd as ag


class AddBias(ag.Op):
    @staticmethod
    def forward(x, b):  # (B, T, C), (C,)
        return x + b, None

    @staticmethod
    def backward(saved, dy):
        return dy, dy.sum(axis=(0, 1))  # (B, T, C), (C,)


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda x, b: AddBias.apply(x, b), {"x": rng.standard_normal((2, 3, 4)), "b": rng.standard_normal(4)}
