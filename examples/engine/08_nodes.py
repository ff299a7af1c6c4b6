"""Step 8. The record apart from the tensors: only leaves are kept, only what needs a gradient is recorded, and what was used is freed.

python examples/engine/08_nodes.py
"""

import itertools

import numpy as np

serials = itertools.count()


def undo_broadcasting(dx, shape):
    """Each element of a stretched input is used by several elements of the result: its gradient is the sum of theirs."""
    n_new = dx.ndim - len(shape)
    stretched = (*range(n_new), *(n_new + i for i, n in enumerate(shape) if n == 1 and dx.shape[n_new + i] != 1))
    return dx.sum(axis=stretched, keepdims=True).reshape(shape)


recording = True


class no_grad:
    """Within this block nothing is recorded."""

    def __enter__(self):
        global recording
        self.before, recording = recording, False

    def __exit__(self, *_):
        global recording
        recording = self.before


class Tensor:
    def __init__(self, data, requires_grad=False):
        self.data = np.asarray(data, dtype=float)
        self.requires_grad = requires_grad
        self.node = None  # a leaf; else set by `Op.apply`
        self.grad = None  # leaves with requires_grad: d output / d this, of the same shape; adds up until cleared

    def backward(self):
        self.node.dy = np.ones_like(self.data)
        reached, waiting = {self.node}, [self.node]
        while waiting:  # a list, not recursion: Python allows some thousand nested calls, a deep graph has more
            new = {edge for edge in waiting.pop().edges if isinstance(edge, Node)} - reached
            reached |= new
            waiting += new
        for node in sorted(reached, key=lambda node: -node.serial):
            dxs = node.op.backward(node.saved, node.dy)  # complete: all that use this node's result are newer
            for edge, shape, dx in zip(node.edges, node.shapes, dxs, strict=True):
                if isinstance(edge, Node):
                    edge.dy = edge.dy + undo_broadcasting(dx, shape)
                elif edge is not None:
                    edge.grad = undo_broadcasting(dx, shape) + (0 if edge.grad is None else edge.grad)
            node.saved = node.dy = None  # used once: a second backward pass needs a second forward pass


class Node:
    """One application of an op. It knows no tensor but leaves: a result that no op saved is freed when its variable goes."""

    def __init__(self, op, saved, inputs):
        self.op, self.saved, self.dy = op, saved, 0.0
        self.edges = [None if not x.requires_grad else x.node or x for x in inputs]  # None, a node, or a leaf
        self.shapes = [x.data.shape for x in inputs]
        self.serial = next(serials)  # a node is newer than all that its result was made of


class Op:
    """forward(*arrays) -> (y, what backward needs); backward(saved, dy) -> one gradient per input."""

    @classmethod
    def apply(cls, *inputs):
        y, saved = cls.forward(*(x.data for x in inputs))
        out = Tensor(y, recording and any(x.requires_grad for x in inputs))
        out.node = Node(cls, saved, inputs) if out.requires_grad else None
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

x, w = Tensor(np.ones((4, 3))), Tensor(np.full((3, 2), 0.1), requires_grad=True)
y = (x @ w).tanh()
print("y was made by", y.node.op.__name__, "from", y.node.edges[0].op.__name__, "from", y.node.edges[0].edges[0], "and the leaf w")
y.sum().backward()
print("gradients: of x", x.grad, " of w", w.grad.round(3).tolist())
y = (x @ w).tanh()
y.sum().backward()
print("a second pass adds:     of w", w.grad.round(3).tolist())
print("what the first node saved is", "freed" if y.node.saved is None else "kept")
with no_grad():
    print("within no_grad the result has", "no record" if (x @ w).node is None else "a record")
