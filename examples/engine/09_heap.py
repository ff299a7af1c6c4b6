"""Step 9. Newest first with a heap: no list of all nodes, and gradients that wait only as long as they must.

python examples/engine/09_heap.py
"""

import heapq
import itertools
import tracemalloc

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
        arrived = {self.node: np.ones_like(self.data)}  # per node: the gradient of its result, as far as it has come
        owned = set()  # nodes whose gradient is a sum made here; any other array may be shared and is not written to
        queue = [(-self.node.serial, self.node)]
        while queue:
            _, node = heapq.heappop(queue)  # the newest: all that use its result have been here
            dxs = node.op.backward(node.saved, arrived.pop(node))
            for edge, shape, dx in zip(node.edges, node.shapes, dxs, strict=True):
                if edge is None:
                    continue
                dx = undo_broadcasting(dx, shape)
                if isinstance(edge, Tensor):
                    edge.grad = dx.copy() if edge.grad is None else edge.grad + dx
                elif edge not in arrived:
                    arrived[edge] = dx
                    heapq.heappush(queue, (-edge.serial, edge))
                elif edge in owned:
                    arrived[edge] += dx
                else:
                    arrived[edge] = arrived[edge] + dx
                    owned.add(edge)
            node.saved, node.edges = None, []  # used once: a second backward pass needs a second forward pass


class Node:
    """One application of an op. It knows no tensor but leaves: a result that no op saved is freed when its variable goes."""

    def __init__(self, op, saved, inputs):
        self.op, self.saved = op, saved
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

x = Tensor(np.ones(1000), requires_grad=True)
y = x
for _ in range(10_000):
    y = y + x
tracemalloc.start()
y.sum().backward()
peak = tracemalloc.get_traced_memory()[1]
print(f"10,000 additions: gradient {x.grad[0]:,.0f}; memory of the backward pass at most {peak / 1e6:.1f} MB")
print(f"(all gradients together would be {10_000 * y.data.nbytes / 1e6:.0f} MB)")
a = Tensor(np.ones(3), requires_grad=True)
b = a + a  # Add.backward returns the same array twice
(b + b).sum().backward()
print("shared arrays are not written to: gradient", a.grad)
