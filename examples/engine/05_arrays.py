"""Step 5. Arrays instead of numbers: one record for a million multiplications, and a function instead of a slope.

python examples/engine/05_arrays.py
"""

import itertools

import numpy as np

serials = itertools.count()


class Tensor:
    def __init__(self, data, parents=()):
        self.data = np.asarray(data, dtype=float)
        self.parents = parents  # pairs (tensor it was made of, function from the gradient of this to the gradient of that)
        self.grad = np.zeros_like(self.data)  # d output / d this, of the same shape, once backward has run
        self.serial = next(serials)  # a tensor is newer than all that it was made of

    def __add__(self, other):
        return Tensor(self.data + other.data, ((self, lambda dy: dy), (other, lambda dy: dy)))

    def __mul__(self, other):
        return Tensor(self.data * other.data, ((self, lambda dy: dy * other.data), (other, lambda dy: dy * self.data)))

    def __matmul__(self, other):  # (N, I) @ (I, O): shapes leave one choice for each gradient, see docs/backward/matmul.md
        return Tensor(self.data @ other.data, ((self, lambda dy: dy @ other.data.T), (other, lambda dy: self.data.T @ dy)))

    def tanh(self):
        y = np.tanh(self.data)
        return Tensor(y, ((self, lambda dy: dy * (1 - y * y)),))

    def sum(self):
        return Tensor(self.data.sum(), ((self, lambda dy: dy * np.ones_like(self.data)),))

    def backward(self):
        self.grad = np.ones_like(self.data)
        reached, waiting = {self}, [self]
        while waiting:  # a list, not recursion: Python allows some thousand nested calls, a deep graph has more
            new = {parent for parent, _ in waiting.pop().parents} - reached
            reached |= new
            waiting += new
        for tensor in sorted(reached, key=lambda tensor: -tensor.serial):
            for parent, to_parent in tensor.parents:
                parent.grad = parent.grad + to_parent(tensor.grad)  # complete: all that use `tensor` are newer


# Try it ---------------------------------------------------------------------------------------------------------------

rng = np.random.default_rng(0)
x, w1, w2 = Tensor(rng.standard_normal((4, 3))), Tensor(rng.standard_normal((3, 5))), Tensor(rng.standard_normal((5, 2)))


def loss():
    y = (x @ w1).tanh() @ w2
    return (y * y).sum()


def measured(t, index, h=1e-6):
    """The slope of the loss along one element of t, by step 1's rule."""
    kept, losses = t.data[index], []
    for moved in (kept + h, kept - h):
        t.data[index] = moved
        losses.append(loss().data)
    t.data[index] = kept
    return (losses[0] - losses[1]) / (2 * h)


loss().backward()
for name, t in (("w1", w1), ("w2", w2)):
    print(f"d loss / d {name}[1, 1]: backward {t.grad[1, 1]:.6f}, measured {measured(t, (1, 1)):.6f}")
b = Tensor(np.zeros(3))
(x + b).sum().backward()
print(
    f"a bias of shape {b.data.shape} added to {x.data.shape} gets a gradient of shape {b.grad.shape}: wrong. The next step is about that."
)
