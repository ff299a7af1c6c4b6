"""How the scripts of this path print an array: its name, its shape, its numbers."""

import sys

import numpy as np

import autograd as ag

if {"-h", "--help"} & set(sys.argv[1:]):
    print(sys.modules["__main__"].__doc__)
    sys.exit()


def show(name, value, digits=3):
    """Prints `name (shape)` and the numbers below it, one row per line; a single number or a short vector stays on the line."""
    array = np.asarray(value.data if isinstance(value, ag.Tensor) else value)
    if array.dtype.kind == "f":
        array = np.where(np.abs(array) < 0.5 * 10.0**-digits, 0.0, array)  # no "-0.000"
    text = np.array2string(array, precision=digits, suppress_small=True, floatmode="fixed", max_line_width=110)
    print(f"{name} {array.shape} {text}" if array.ndim < 2 else f"{name} {array.shape}\n{text}")


def heading(text):
    print(f"\n--- {text}")


def bar(value, per_unit, limit=60):
    """A bar of text, `per_unit` characters for each unit."""
    return "#" * max(0, min(limit, round(value * per_unit)))
