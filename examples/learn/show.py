"""How the scripts of this path print: an array as its name, its shape, its numbers; prose in lines that fit a column of the site."""

import sys
import textwrap

import numpy as np

import autograd as ag

WIDTH = 88  # characters in a line

if {"-h", "--help"} & set(sys.argv[1:]):
    print(sys.modules["__main__"].__doc__)
    sys.exit()


def show(name, value, digits=3):
    """Prints `name (shape)` and the numbers below it, one row per line; what fits stays on the line."""
    array = np.asarray(value.data if isinstance(value, ag.Tensor) else value)
    if array.dtype.kind == "f":
        array = np.where(np.abs(array) < 0.5 * 10.0**-digits, 0.0, array)  # no "-0.000"
    text = np.array2string(array, precision=digits, suppress_small=True, floatmode="fixed", max_line_width=WIDTH)
    title = f"{name} {array.shape}"
    print(title, text, sep=" " if array.ndim < 2 and len(title) + len(text) < WIDTH else "\n")


def heading(text):
    print("\n--- " + textwrap.fill(text, WIDTH - 4, subsequent_indent="    "))


def say(text):
    """Prose, a paragraph."""
    print(textwrap.fill(text, WIDTH))


def bar(value, per_unit, limit=60):
    """A bar of text, `per_unit` characters for each unit."""
    return "#" * max(0, min(limit, round(value * per_unit)))
