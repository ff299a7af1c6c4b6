"""Exercise 12: the gated product of Llama's MLP.

s = 1 / (1 + e^-gate), y = gate s up.

    python -m tinygpt exercise 12
"""

import numpy as np

import autograd as ag


class GatedProduct(ag.Op):
    @staticmethod
    def forward(gate, up):
        s = (1 + np.tanh(gate / 2)) / 2
        return gate * s * up, (gate, up, s)

    @staticmethod
    def backward(saved, dy):
        gate, up, s = saved
        dgate = dy * up * gate * s * (1 - s)
        return dgate, dy * (gate * s)


def inputs(rng):
    """The op as a function of tensors, and named arrays to try it on."""
    return lambda gate, up: GatedProduct.apply(gate, up), {"gate": rng.standard_normal((3, 4)), "up": rng.standard_normal((3, 4))}
