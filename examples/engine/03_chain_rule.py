"""Step 3. The chain rule, by recursion: multiply slopes along each path from the output, add what arrives.

python examples/engine/03_chain_rule.py
"""

visits = 0


class Number:
    def __init__(self, data, parents=()):
        self.data = data
        self.parents = parents  # pairs (number it was made of, slope toward it)
        self.grad = 0.0  # d output / d this, once backward has run

    def __add__(self, other):
        return Number(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other):
        return Number(self.data * other.data, ((self, other.data), (other, self.data)))  # d(ab)/da = b, d(ab)/db = a

    def backward(self, dy=1.0):
        global visits
        visits += 1
        self.grad += dy  # one path's share
        for parent, slope in self.parents:
            parent.backward(slope * dy)


# Try it ---------------------------------------------------------------------------------------------------------------

a, b, c = Number(2.0), Number(-3.0), Number(10.0)
(a * b + c * c).backward()
print(f"slopes along a, b, c: {a.grad:g}, {b.grad:g}, {c.grad:g}: those of step 1, in one pass")

print("doublings   slope   calls of backward")
for n in (1, 5, 10, 15):
    x = Number(1.0)
    y = x
    for _ in range(n):
        y = y + y
    visits = 0
    y.backward()
    print(f"{n:9d} {x.grad:7g} {visits:19,}")
print("Right, but every path is walked on its own, and paths double at each `y + y`.")
