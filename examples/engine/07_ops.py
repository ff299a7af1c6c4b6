"""Step 7. An op is two pure functions on arrays, without the engine in them: to read, to test and to replace on their own.

python examples/engine/07_ops.py
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
    def __init__(self, data):
        self.data = np.asarray(data, dtype=float)
        self.op, self.saved, self.inputs = None, None, ()  # set by `Op.apply`
        self.grad = np.zeros_like(self.data)  # d output / d this, of the same shape, once backward has run
        self.serial = next(serials)  # a tensor is newer than all that it was made of

    def backward(self):
        self.grad = np.ones_like(self.data)
        reached, waiting = {self}, [self]
        while waiting:  # a list, not recursion: Python allows some thousand nested calls, a deep graph has more
            new = set(waiting.pop().inputs) - reached
            reached |= new
            waiting += new
        for tensor in sorted(reached, key=lambda tensor: -tensor.serial):
            if tensor.op is not None:
                dxs = tensor.op.backward(tensor.saved, tensor.grad)  # complete: all that use `tensor` are newer
                for parent, dx in zip(tensor.inputs, dxs, strict=True):
                    parent.grad = parent.grad + undo_broadcasting(dx, parent.data.shape)


class Op:
    """forward(*arrays) -> (y, what backward needs); backward(saved, dy) -> one gradient per input."""

    @classmethod
    def apply(cls, *inputs):
        y, saved = cls.forward(*(x.data for x in inputs))
        out = Tensor(y)
        out.op, out.saved, out.inputs = cls, saved, inputs
        return out


class Add(Op):
    def forward(a, b):
        return a + b, None

    def backward(saved, dy):
        return dy, dy


class Mul(Op):
    def forward(a, b):
        return a * b, (a, b)

    def backward(saved, dy):
        a, b = saved
        return dy * b, dy * a


class MatMul(Op):  # (N, I) @ (I, O)
    def forward(a, b):
        return a @ b, (a, b)

    def backward(saved, dy):
        a, b = saved
        return dy @ b.T, a.T @ dy


class Tanh(Op):
    def forward(x):
        y = np.tanh(x)
        return y, y  # not x: the slope 1 - y^2 needs y alone

    def backward(y, dy):
        return (dy * (1 - y * y),)


class Sum(Op):
    def forward(x):
        return x.sum(), x.shape

    def backward(shape, dy):
        return (np.broadcast_to(dy, shape),)


for name, op in {"__add__": Add, "__mul__": Mul, "__matmul__": MatMul, "tanh": Tanh, "sum": Sum}.items():
    setattr(Tensor, name, lambda *inputs, op=op: op.apply(*inputs))


# Try it ---------------------------------------------------------------------------------------------------------------

y, saved = Tanh.forward(np.array([0.0, 1.0]))
print("Tanh on plain arrays: y =", y.round(3), " dx =", Tanh.backward(saved, np.array([1.0, 1.0]))[0].round(3))

rng = np.random.default_rng(0)
x, w, b = (Tensor(rng.standard_normal(shape)) for shape in ((4, 3), (3, 2), (2,)))


def loss():
    return ((x @ w + b).tanh() * (x @ w + b).tanh()).sum()


loss().backward()
kept, h = b.data[0], 1e-6
b.data[0] = kept + h
up = loss().data
b.data[0] = kept - h
print(f"d loss / d b[0]: backward {b.grad[0]:.6f}, measured {(up - loss().data) / (2 * h):.6f}")
