"""Step 1. What a gradient is: nudge an input, see how much the output moves.

python examples/engine/01_slopes.py
"""


class Number:
    def __init__(self, data):
        self.data = data

    def __add__(self, other):
        return Number(self.data + other.data)

    def __mul__(self, other):
        return Number(self.data * other.data)


# Try it ---------------------------------------------------------------------------------------------------------------


def f(a, b, c):
    return a * b + c * c


values = [2.0, -3.0, 10.0]
print("f(2, -3, 10) =", f(*map(Number, values)).data)
for i, name in enumerate("abc"):
    slopes = []
    for h in (1.0, 0.1, 1e-6):
        moved = values.copy()
        moved[i] += h
        slopes.append((f(*map(Number, moved)).data - f(*map(Number, values)).data) / h)
    print(f"slope along {name}, nudged by 1, 0.1, 0.000001:", "  ".join(f"{s:.5f}" for s in slopes))
print("One more run of f for each input. A model with a million weights would need a million runs for one gradient.")
