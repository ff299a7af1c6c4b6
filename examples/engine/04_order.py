"""Step 4. Each number once: newest first, so that everything that used a number has reported before the number passes on its gradient.

python examples/engine/04_order.py
"""

import itertools

visits = 0
serials = itertools.count()


class Number:
    def __init__(self, data, parents=()):
        self.data = data
        self.parents = parents  # pairs (number it was made of, slope toward it)
        self.grad = 0.0  # d output / d this, once backward has run
        self.serial = next(serials)  # a number is newer than all that it was made of

    def __add__(self, other):
        return Number(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other):
        return Number(self.data * other.data, ((self, other.data), (other, self.data)))  # d(ab)/da = b, d(ab)/db = a

    def backward(self):
        global visits
        self.grad = 1.0
        reached, waiting = {self}, [self]
        while waiting:  # a list, not recursion: Python allows some thousand nested calls, a deep graph has more
            new = {parent for parent, _ in waiting.pop().parents} - reached
            reached |= new
            waiting += new
        for number in sorted(reached, key=lambda number: -number.serial):
            visits += 1
            for parent, slope in number.parents:
                parent.grad += slope * number.grad  # complete: all that use `number` are newer


# Try it ---------------------------------------------------------------------------------------------------------------

a, b, c = Number(2.0), Number(-3.0), Number(10.0)
(a * b + c * c).backward()
print(f"slopes along a, b, c: {a.grad:g}, {b.grad:g}, {c.grad:g}")

print("doublings   slope        numbers visited")
for n in (1, 5, 15, 1000):
    x = Number(1.0)
    y = x
    for _ in range(n):
        y = y + y
    visits = 0
    y.backward()
    print(f"{n:9d}   {x.grad:<10.4g} {visits:17,}")
print("The cost of backward is now that of forward, whatever the shape of the graph. Ten thousand additions in a row work, too:")
x = y = Number(0.0)
for _ in range(10_000):
    y = y + x
y.backward()
print(f"slope {x.grad:,.0f}")
