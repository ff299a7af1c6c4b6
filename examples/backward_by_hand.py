"""Gradients that you can check with a pencil: one neuron, one training example.

    python examples/backward_by_hand.py

A second. Prints each number of the forward pass, applies the chain rule by hand from the loss back, and shows that the engine gives
the same gradients.
"""

import argparse

import autograd as ag


def main() -> None:
    # A neuron with two inputs: z = w1 x1 + w2 x2 + b, then a squared error against the target 1.
    x = [1.0, 2.0]
    w = ag.Tensor([0.5, -0.25], requires_grad=True)
    b = ag.Tensor(0.5, requires_grad=True)
    target = 1.0

    z = w[0] * x[0] + w[1] * x[1] + b
    error = z - target
    loss = error * error
    print("forward")
    print(f"  z     = 0.5 * 1 + (-0.25) * 2 + 0.5 = {z.item():g}")
    print(f"  error = z - 1                       = {error.item():g}")
    print(f"  loss  = error^2                     = {loss.item():g}")

    # The chain rule, from the loss back. `d...` is the slope of the loss: its change per unit change of `...`.
    derror = 2 * error.item()  # loss = error^2
    dz = derror  # error = z - target moves as z does
    dw = [dz * x[0], dz * x[1]]  # z = w1 x1 + w2 x2 + b
    db = dz
    print("backward, by hand")
    print(f"  derror = 2 * error = {derror:g}")
    print(f"  dz     = derror    = {dz:g}")
    print(f"  dw     = dz * x    = [{dw[0]:g}, {dw[1]:g}]")
    print(f"  db     = dz        = {db:g}")

    loss.backward()
    print("backward, by the engine")
    print(f"  w.grad = [{w.grad[0]:g}, {w.grad[1]:g}]")
    print(f"  b.grad = {b.grad:g}")

    # A step against the gradient reduces the loss.
    w.data -= 0.1 * w.grad
    b.data -= 0.1 * b.grad
    z = w[0] * x[0] + w[1] * x[1] + b
    print(f"after one step of 0.1: z = {z.item():g}, loss = {((z - target) * (z - target)).item():g} (was {loss.item():g})")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
