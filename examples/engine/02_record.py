"""Step 2. Each number remembers what it was made of, and the slope toward each of them.

python examples/engine/02_record.py
"""


class Number:
    def __init__(self, data, parents=()):
        self.data = data
        self.parents = parents  # pairs (number it was made of, slope toward it)

    def __add__(self, other):
        return Number(self.data + other.data, ((self, 1.0), (other, 1.0)))

    def __mul__(self, other):
        return Number(self.data * other.data, ((self, other.data), (other, self.data)))  # d(ab)/da = b, d(ab)/db = a


# Try it ---------------------------------------------------------------------------------------------------------------


def tree(number, names, depth=0):
    print("   " * depth + names.get(number, "made") + f" = {number.data:g}")
    for parent, slope in number.parents:
        print("   " * depth + f"   slope {slope:g} toward")
        tree(parent, names, depth + 1)


a, b, c = Number(2.0), Number(-3.0), Number(10.0)
tree(a * b + c * c, {a: "a", b: "b", c: "c"})
print("The record is a by-product of computing: no formula was differentiated, only one operation at a time.")
