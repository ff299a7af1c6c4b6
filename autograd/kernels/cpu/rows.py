"""Forward passes of a few rows into arrays that the caller keeps: no graph, no allocation, nothing per head in Python.

For one row a matrix product is a walk through the weights, as fast as memory delivers them. Two things follow. Weights are wanted by
rows, (out, in): each output is then a dot product with numbers that lie side by side. And threads are left to BLAS: between two
products there is so little to do that handing work to threads of our own (some 50 microseconds) would cost more than it brings.

Formulas: the ops of the same names in autograd/ops. B rows; x (B, C) unless said.
"""

import math

import numpy as np

from autograd.ops.activation import GELU_CUBIC, GELU_SCALE


def by_rows(weight: np.ndarray) -> np.ndarray:
    """(out, in), each row contiguous, of a weight (in, out): a view where the weight lies that way already, else a copy."""
    return np.ascontiguousarray(weight.T)


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray, scratch: np.ndarray) -> None:
    """out (B, O) = x (B, I) weight^T + bias, for a weight (O, I) by rows; scratch has room for O B numbers.

    With several rows the product is made as weight x^T: BLAS is up to 1.5 times as fast that way round, few columns instead of few rows.
    """
    if len(x) == 1:
        np.dot(weight, x[0], out=out[0])
    else:
        product = scratch[: out.size].reshape(out.shape[1], out.shape[0])
        np.matmul(weight, x.T, out=product)
        np.copyto(out, product.T)
    if bias is not None:
        out += bias


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, out: np.ndarray, column: np.ndarray) -> None:
    """out = gamma (x - mean) / sqrt(var + eps) + beta; column is (B, 1)."""
    c = x.shape[1]
    np.add.reduce(x, axis=1, keepdims=True, out=column)
    column *= 1 / c
    np.subtract(x, column, out=out)
    np.vecdot(out, out, out=column[:, 0])
    column *= 1 / c
    column += eps
    np.sqrt(column, out=column)
    out /= column
    out *= gamma
    out += beta


def gelu(x: np.ndarray, scratch: np.ndarray) -> None:
    """x becomes gelu(x), tanh form; scratch is as large as x."""
    inner = scratch[: x.size].reshape(x.shape)
    np.multiply(x, x, out=inner)
    inner *= GELU_SCALE * GELU_CUBIC
    inner += GELU_SCALE
    inner *= x
    np.tanh(inner, out=inner)
    inner += 1
    inner *= 0.5
    x *= inner


def attention(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, hidden: np.ndarray | None, scores: np.ndarray, column: np.ndarray, out: np.ndarray
) -> None:  # fmt: skip
    """out (B, H, 1, D): one query per row and head looks at S keys.

    q        (B, H, 1, D), multiplied in place by 1 / sqrt(D)
    keys, values   (B, H, S, D)
    hidden   booleans (B, 1, 1, S), True where the row must not look, or None
    scores   (B, H, 1, S) and column (B, H, 1, 1): scratch
    """
    q *= 1 / math.sqrt(q.shape[-1])
    np.matmul(q, keys.swapaxes(-1, -2), out=scores)
    if hidden is not None:
        np.copyto(scores, -np.inf, where=hidden)
    np.maximum.reduce(scores, axis=-1, keepdims=True, out=column)
    scores -= column
    np.exp(scores, out=scores)
    np.add.reduce(scores, axis=-1, keepdims=True, out=column)
    np.matmul(scores, values, out=out)
    out /= column
