"""Exercise 23: gradients of several ranks.

Each rank has the gradient of the mean loss over its own rows, the same number of rows each. Together they must make the step that one rank makes with all rows.

    python -m tinygpt exercise 23
"""

import numpy as np


def all_reduce(gradients):
    """What every rank has afterwards: a list of arrays, one for each rank, from the list of their own."""
    total = np.sum(gradients, axis=0)
    return [total.copy() for _ in gradients]


def laws(all_reduce, rng):
    """What must hold, whatever the rows: what is looked at -> (found, expected)."""
    x, y, w = rng.standard_normal((12, 3)), rng.standard_normal(12), rng.standard_normal(3)
    gradient = lambda rows: 2 * x[rows].T @ (x[rows] @ w - y[rows]) / len(rows)  # noqa: E731  (of the mean squared error)
    everything = gradient(np.arange(12))
    shared = {n: all_reduce([gradient(rows) for rows in np.split(np.arange(12), n)]) for n in (1, 2, 4)}
    same = {f"gradient on each of {n} ranks": (np.array(found), np.tile(everything, (n, 1))) for n, found in shared.items()}
    return same | {"ranks that share their array with another": (4 - len({id(g) for g in shared[4]}), 0)}
