"""Step 6. Broadcasting: where NumPy stretched an input, its gradient is the sum over the stretched axes.

python examples/engine/06_broadcasting.py
"""

import itertools

import numpy as np

serials = itertools.count()


def undo_broadcasting(dx, shape):
    """Each element of a stretched input is used by several elements of the result: its gradient is the sum of theirs."""
    n_new = dx.ndim - len(shape)
    stretched = (*range(n_new), *(n_new + i for i, n in enumerate(shape) if n == 1 and dx.shape[n_new + i] != 1))
    return dx.sum(axis=stretched, keepdims=True).reshape(shape)


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
                dx = to_parent(tensor.grad)  # complete: all that use `tensor` are newer
                parent.grad = parent.grad + undo_broadcasting(dx, parent.data.shape)


# Try it ---------------------------------------------------------------------------------------------------------------

for shape in ((3,), (4, 1), (1, 3), (), (4, 3)):
    x, b = Tensor(np.arange(12.0).reshape(4, 3)), Tensor(np.ones(shape))
    (x * b).sum().backward()
    print(f"{shape!s:<7} stretched to (4, 3): gradient of shape {b.grad.shape!s:<7} {b.grad.reshape(-1).tolist()}")
print("One rule in the engine, and no operation has to think of it.")
