"""Forward passes of a few rows into the caller's arrays: no graph, no allocation, nothing per head in Python.

For one row, memory bandwidth limits a matrix product, and BLAS uses its own threads: there is so little work between two products
that submitting it to threads of our own (some 70 microseconds) would cost more than it saves. For a few rows BLAS is at its worst: it
copies the matrix before it multiplies, which here takes most of the time, but a small block without a copy, or with one that stays in
the cache. So the product is computed in small blocks, divided among the threads, and the weights are read from memory once.

Formulas: the ops of the same names in autograd/ops. B rows; x (B, C) unless said.
"""

import math

import numpy as np

from autograd.backend import Array
from autograd.kernels.cpu.activation import POINTWISE
from autograd.kernels.cpu.parallel import even_parts, for_each
from autograd.ops.activation import GELU_CUBIC, GELU_SCALE

_FEW_ROWS = 16  # up to here products use small blocks of weights; with 32 rows one call of BLAS is as fast
_BLOCK_NUMBERS = 32 * 1024  # weights of one block, about: 16 to 64 outputs are equally good, 128 KB stay in every core's L2 cache
_THREADS_PAY_BYTES = 1024 * 1024  # of weights: below this, submitting half of them to a thread takes longer than reading them
_STRIP_ROWS = 128  # of a matrix that is transposed: 64 to 256 are equally good


def preferred_layout(weight: np.ndarray, n_rows: int) -> np.ndarray:
    """A weight (O, I) in the memory order that `linear` reads fastest for n_rows rows of x: itself if it has that order, else a copy.

    For one row the longer side is the contiguous one: a product is then few long reads instead of many short ones.
    For several rows each output's I weights are contiguous, as the blocks need them.
    """
    if n_rows == 1 and len(weight) >= weight.shape[1]:
        return weight if weight.flags.f_contiguous else _transposed(weight).T
    return weight if weight.flags.c_contiguous else _transposed(weight.T)


def _transposed(matrix: np.ndarray) -> np.ndarray:
    """matrix^T in a new array. In strips that fit the cache, ten times as fast as np.ascontiguousarray(matrix.T)."""
    out = np.empty((matrix.shape[1], matrix.shape[0]), dtype=matrix.dtype)
    starts = range(0, len(matrix), _STRIP_ROWS)

    def strip(k: int) -> None:
        rows = slice(starts[k], starts[k] + _STRIP_ROWS)
        out[:, rows] = matrix[rows].T

    for_each(len(starts), strip, threaded=matrix.nbytes >= _THREADS_PAY_BYTES)
    return out


def linear(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, out: np.ndarray, scratch: np.ndarray) -> None:
    """out (B, O) = x (B, I) weight^T + bias, for a weight (O, I), best in its `preferred_layout`. scratch holds O B numbers."""
    if len(x) == 1:
        np.dot(weight, x[0], out=out[0])
    elif len(x) <= _FEW_ROWS:
        _by_blocks(x, weight, out)
    else:  # the product as weight x^T: BLAS is up to 1.5 times as fast with few columns as with few rows
        product = scratch[: out.size].reshape(out.shape[1], out.shape[0])
        np.matmul(weight, x.T, out=product)
        np.copyto(out, product.T)
    if bias is not None:
        out += bias


def _by_blocks(x: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """out (B, O) = x (B, I) weight^T by blocks of 16 n outputs, all blocks of a thread in one NumPy call."""
    (b, i), o = x.shape, len(weight)
    per_block = max(16, _BLOCK_NUMBERS // i // 16 * 16)
    n_blocks = o // per_block
    covered = n_blocks * per_block
    if n_blocks:
        weights = weight[:covered].reshape(n_blocks, per_block, i).swapaxes(1, 2)  # (n_blocks, I, per_block)
        outs = out[:, :covered].reshape(b, n_blocks, per_block).swapaxes(0, 1)  # (n_blocks, B, per_block), a view
        parts = even_parts(n_blocks)
        threaded = weight.nbytes >= _THREADS_PAY_BYTES
        for_each(len(parts), lambda k: np.matmul(x, weights[parts[k]], out=outs[parts[k]]), threaded=threaded)
    if covered < o:
        np.matmul(x, weight[covered:].T, out=out[:, covered:])


def layer_norm(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, eps: float, out: np.ndarray, column: np.ndarray) -> None:
    """out = gamma (x - mean) / sqrt(var + eps) + beta; column is (B, 1), scratch."""
    c = x.shape[1]
    if len(x) == 1:  # mean and variance as plain numbers: half the calls
        np.subtract(x, np.add.reduce(x[0]) / c, out=out)
        out *= 1 / math.sqrt(np.dot(out[0], out[0]) / c + eps)
        out *= gamma
        out += beta
        return
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


def rms_norm(x: np.ndarray, scale: np.ndarray | None, eps: float, out: np.ndarray, column: np.ndarray) -> None:
    """out = scale x / sqrt(mean(x^2) + eps), for scale = offset + weight or None; column is (B, 1), scratch. Rows may be heads."""
    c = x.shape[1]
    if len(x) == 1:
        row = x[0]
        np.multiply(x, 1 / math.sqrt(float(np.dot(row, row)) / c + eps), out=out)
    else:
        np.vecdot(x, x, out=column[:, 0])
        column *= 1 / c
        column += eps
        np.sqrt(column, out=column)
        np.divide(x, column, out=out)
    if scale is not None:
        out *= scale


def activate(name: str, x: np.ndarray, out: np.ndarray) -> None:
    """out becomes f(x), another array than x, for the activation of that name."""
    POINTWISE[name](x, out, None)


def gated_silu(gate: np.ndarray, up: np.ndarray, scratch: np.ndarray) -> None:
    """up becomes silu(gate) up = (1 + tanh(g / 2)) g / 2 up, five passes where activation and product take six; gate is overwritten."""
    gate *= 0.5
    np.tanh(gate, out=scratch)
    scratch += 1
    scratch *= gate
    up *= scratch


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
    q: Array, keys: Array, values: Array, hidden: Array | None, scores: Array, column: Array, out: Array, *,
    scale: float | None = None, softcap: float = 0.0, bias: Array | None = None,
) -> None:  # fmt: skip
    """out (B, H, 1, D): one query per row and head attends to S keys.

    q        (B, H, 1, D), multiplied in place by `scale`, by default 1 / sqrt(D)
    keys, values   (B, H_kv, S, D), H_kv a divisor of H; with a sliding window, those inside it
    hidden   booleans (B, 1, 1, S), True where the row must not attend, or None
    scores   (B, H, 1, S) and column (B, H, 1, 1): scratch
    softcap  0, or c: scores become c tanh(s / c)
    bias     (H, 1, S) or (B, H, 1, S), added to the scores after that, as ALiBi does, or None
    """
    q *= scale or 1 / math.sqrt(q.shape[-1])
    b, n_head, _, s = scores.shape
    shared = keys.shape[1] < n_head
    groups = (b, keys.shape[1], n_head // keys.shape[1])
    if shared:  # one query at a time: BLAS would copy the keys before a product with a few; not so for the values, below
        np.matmul(q.reshape(*groups, 1, -1), keys.swapaxes(-1, -2)[:, :, None], out=scores.reshape(*groups, 1, s))
    else:
        np.matmul(q, keys.swapaxes(-1, -2), out=scores)
    if softcap:
        scores *= 1 / softcap
        np.tanh(scores, out=scores)
        scores *= softcap
    if bias is not None:
        scores += bias
    if hidden is not None:
        np.copyto(scores, -np.inf, where=hidden)
    np.maximum.reduce(scores, axis=-1, keepdims=True, out=column)
    scores -= column
    np.exp(scores, out=scores)
    np.add.reduce(scores, axis=-1, keepdims=True, out=column)
    if shared:
        np.matmul(scores.reshape(*groups, s), values, out=out.reshape(*groups, -1))
    else:
        np.matmul(scores, values, out=out)
    out /= column


def halves(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, [x2, x1]) for x (..., R) = [x1, x2]: views (..., 2, R/2) of the same numbers, for `rotary`."""
    split = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2)
    return split, split[..., ::-1, :]


def rotary(x: np.ndarray, swapped: np.ndarray, cos: np.ndarray, sin: np.ndarray, scratch: np.ndarray) -> None:
    """x (B, H, 2, R/2) is turned in place: x [cos, cos] + [x2, x1] [-sin, sin], three calls instead of six and their slices.

    x, swapped   from `halves`
    cos, sin     [cos, cos] and [-sin, sin], (2, R/2) or (B, 1, 2, R/2)
    scratch      (B, H, 2, R/2)
    """
    np.multiply(swapped, sin, out=scratch)
    x *= cos
    x += scratch
