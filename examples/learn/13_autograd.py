"""13. Autograd from nothing: reverse-mode differentiation on single numbers, then our engine on the same sums.

    python examples/learn/13_autograd.py

A second. Until now the gradients came out of a box; this is the box. A `Number` records which numbers it was made of, and for each
of them the slope: how much it changes per unit change of that one. Backward multiplies slopes along each path and adds the paths.
"""

import math

import numpy as np
from show import heading

import autograd as ag


class Number:
    def __init__(self, value, parents=()):
        self.value = value
        self.grad = 0.0  # d loss / d this, once backward has run
        self.parents = parents  # pairs (Number it was made of, slope towards it)

    def __add__(self, other):
        return Number(self.value + other.value, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other):
        return Number(self.value * other.value, ((self, other.value), (other, self.value)))  # d(ab)/da = b

    def tanh(self):
        t = math.tanh(self.value)
        return Number(t, ((self, 1 - t * t),))

    def exp(self):
        e = math.exp(self.value)
        return Number(e, ((self, e),))

    def log(self):
        return Number(math.log(self.value), ((self, 1 / self.value),))

    def backward(self):
        self.grad = 1.0  # d loss / d loss
        for number in reversed(in_order_of_making(self)):  # each number after all that were made from it
            for parent, slope in number.parents:
                parent.grad += slope * number.grad  # chain rule along a path; += adds the paths


def in_order_of_making(last):
    """All numbers that `last` depends on, parents before children. A list instead of recursion: depth is no limit.

    A number is met twice: first it goes back on the list, under its parents; when it is on top again, they are done, and it is next.
    """
    order, seen, waiting = [], set(), [(last, False)]
    while waiting:
        number, parents_done = waiting.pop()
        if parents_done:
            order.append(number)
        elif id(number) not in seen:
            seen.add(id(number))
            waiting.append((number, True))
            waiting += [(parent, False) for parent, _ in number.parents]
    return order


heading("one path: y = tanh(w x + b)")
w, x, b = Number(0.5), Number(2.0), Number(-1.0)
y = (w * x + b).tanh()
y.backward()
print(f"w x + b = 0.5 * 2 - 1 = 0, tanh(0) = {y.value}, slope of tanh (script 7) at 0 is 1 - 0^2 = 1")
print(f"dw = x = {w.grad}, dx = w = {x.grad}, db = {b.grad}")

heading("two paths: y = a a + a, so a is used three times")
a = Number(3.0)
product = a * a
y = product + a
y.backward()
for name, number in (("y", y), ("a a", product), ("a", a)):  # the order of the way back
    slopes = ", ".join(f"{slope:g}" for _, slope in number.parents) or "none: a start"
    print(f"  {name:<4} value {number.value:4.1f}   slopes towards what it was made of: {slopes:<14} gradient {number.grad:g}")
print(f"da = 3 * 1 + 3 * 1 from a a, whose gradient is 1, and 1 * 1 from the sum: {a.grad:g} = 2 a + 1")

heading("softmax and cross-entropy, from these five operations alone: loss = ln(e^z0 + e^z1 + e^z2) - z1")
z = [Number(math.log(v)) for v in (1.0, 2.0, 5.0)]
total = z[0].exp() + z[1].exp() + z[2].exp()
loss = total.log() + z[1] * Number(-1.0)
loss.backward()
print(f"loss = ln 8 - ln 2 = {loss.value:.4f}")
print("dz =", [round(n.grad, 4) for n in z], "  that is p - onehot: script 9 had it from a formula")
print(f"recorded: {len(in_order_of_making(loss))} numbers: three z, three e^z, two sums, ln, -1, -z1 and the loss")

heading("our engine: the same idea on whole arrays, one node for each op instead of one for each number")
t = ag.Tensor(np.log([[1.0, 2.0, 5.0]]), requires_grad=True)
ag.cross_entropy(t, np.array([1])).backward()
print("dz =", t.grad.round(4).tolist())
w, x, b = (ag.Tensor(v, requires_grad=True) for v in (0.5, 2.0, -1.0))
ag.tanh(w * x + b).backward()
print("dw, dx, db =", w.grad.item(), x.grad.item(), b.grad.item())

heading("any gradient can be checked by moving the input a little, h = 0.00001: (f(z + h) - f(z - h)) / 2h")
h, f = 1e-5, lambda z: math.log(sum(math.exp(v) for v in z)) - z[1]
values = [n.value for n in z]
for i in range(3):
    up, down = [v + h * (j == i) for j, v in enumerate(values)], [v - h * (j == i) for j, v in enumerate(values)]
    print(f"dz[{i}]: measured {(f(up) - f(down)) / (2 * h):8.5f}, backward {z[i].grad:8.5f}")
print("A much smaller h is no better: the difference of two nearly equal numbers is rounding.")
