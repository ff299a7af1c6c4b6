"""One case per op: how to draw its inputs and options, and what it must compute, written out in plain NumPy and `math`.

`test_ops.py` runs every case through the same checks; `test_every_op_has_a_case` there makes sure that none is missing.
"""

import itertools
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from autograd.backend import random_bits, to_host
from autograd.ops.activation import (
    GELU,
    GatedProduct,
    GELUExact,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    SoftCap,
    Softmax,
    SquaredReLU,
    Tanh,
)  # fmt: skip
from autograd.ops.attention import Attention
from autograd.ops.dropout import Dropout
from autograd.ops.elementwise import Add, Cast, Divide, Exp, Log, Maximum, Multiply, Negate, Power, Sqrt, Subtract, Where
from autograd.ops.embedding import Embedding
from autograd.ops.group import CopyToGroup, SplitLinearCrossEntropy, SumOverGroup
from autograd.ops.loss import CrossEntropy, LinearCrossEntropy
from autograd.ops.matmul import Linear, MatMul
from autograd.ops.normalization import LayerNorm, RMSNorm
from autograd.ops.reduce import LogSumExp, Max, Mean, Sum, Var
from autograd.ops.rotary import RotaryEmbedding
from autograd.ops.shape import BroadcastTo, Concatenate, Index, Reshape, Split, Stack, Transpose
from tests.strategies import broadcast_shapes, distinct, lengths, nonzero, normal, positive, seeds, shapes, some_axes, spread


@dataclass
class Case:
    """A call of an op's public function, options closed over."""

    call: Callable[..., Any]  # tensors -> tensor, or tuple of tensors
    expected: Callable[..., Any]  # the same on float64 host arrays
    arrays: list[np.ndarray]  # float64


CASES: dict[type[ag.Op], Callable[[str], st.SearchStrategy[Case]]] = {}
"""Op -> (scale of the shapes, "small" or "large") -> strategy of cases."""


def case(op: type[ag.Op]) -> Callable[[Any], Any]:
    """Registers a drawing function (draw, rng, scale) -> Case as the one for `op`."""

    def register(function: Callable[[st.DrawFn, np.random.Generator, str], Case]) -> Any:
        @st.composite
        def strategy(draw: st.DrawFn, scale: str) -> Case:
            return function(draw, np.random.default_rng(draw(seeds)), scale)

        assert op not in CASES, f"{op.__name__} has two cases"
        CASES[op] = strategy
        return function

    return register


def each(function: Callable[[float], float]) -> Callable[[np.ndarray], np.ndarray]:
    """A function of one number, applied to every element by itself."""
    return lambda x: np.array([function(float(v)) for v in x.flat]).reshape(x.shape)


# Elementwise ------------------------------------------------------------------------------------------------------------------


def unary(
    op: type[ag.Op], call: Callable[..., Any], function: Callable[[float], float], values: Callable[..., np.ndarray] = normal
) -> None:
    @case(op)
    def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
        return Case(call, each(function), [values(rng, draw(shapes(scale=scale, empty=True)))])


def binary(op: type[ag.Op], call: Callable[..., Any], function: Callable[..., Any], second: Callable[..., np.ndarray] = normal) -> None:
    @case(op)
    def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
        full = draw(shapes(scale=scale, empty=True))
        a, b = (full, full) if draw(st.booleans()) else (draw(broadcast_shapes(full)), draw(broadcast_shapes(full)))

        def expected(x: np.ndarray, y: np.ndarray) -> np.ndarray:
            x, y = np.broadcast_arrays(x, y)
            return np.array([function(float(u), float(v)) for u, v in zip(x.flat, y.flat, strict=True)]).reshape(x.shape)

        return Case(call, expected, [normal(rng, a), second(rng, b)])


binary(Add, lambda a, b: a + b, lambda a, b: a + b)
binary(Subtract, lambda a, b: a - b, lambda a, b: a - b)
binary(Multiply, lambda a, b: a * b, lambda a, b: a * b)
binary(Divide, lambda a, b: a / b, lambda a, b: a / b, nonzero)
unary(Negate, lambda x: -x, lambda v: -v)
unary(Exp, ag.exp, math.exp)
unary(Log, ag.log, math.log, positive)
unary(Sqrt, ag.sqrt, math.sqrt, positive)
unary(Tanh, ag.tanh, math.tanh)
unary(Sigmoid, ag.sigmoid, lambda v: 1 / (1 + math.exp(-v)))

ACTIVATION: dict[str, Callable[[float], float]] = {
    "relu": lambda v: v if v > 0 else 0.0,
    "gelu": lambda v: 0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))),
    "gelu_exact": lambda v: v * statistics.NormalDist().cdf(v),
    "silu": lambda v: v / (1 + math.exp(-v)),
    "squared_relu": lambda v: v * v if v > 0 else 0.0,
}

unary(ReLU, ag.relu, ACTIVATION["relu"], nonzero)
unary(GELU, ag.gelu, ACTIVATION["gelu"])
unary(GELUExact, ag.gelu_exact, ACTIVATION["gelu_exact"])
unary(SiLU, ag.silu, ACTIVATION["silu"])
unary(SquaredReLU, ag.squared_relu, ACTIVATION["squared_relu"], nonzero)


@case(GatedProduct)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    name = draw(st.sampled_from(sorted(ACTIVATION)))
    full = draw(shapes(scale=scale, empty=True))
    gate = (nonzero if "relu" in name else normal)(rng, full)
    return Case(
        lambda gate, up: ag.gated_product(gate, up, name), lambda gate, up: each(ACTIVATION[name])(gate) * up, [gate, normal(rng, full)]
    )


@case(SoftCap)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    cap = draw(st.sampled_from([0.7, 2, 30.0]))
    x = 2 * normal(rng, draw(shapes(scale=scale, empty=True)))
    return Case(lambda x: ag.soft_cap(x, cap), each(lambda v: cap * math.tanh(v / cap)), [x])


@case(Power)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    exponent = draw(st.sampled_from([0, 1, 2, 3, 4, 5, 2.0, -1, -2, 0.5, -0.5, 1.5]))
    values = positive if isinstance(exponent, float) else nonzero if exponent < 0 else normal
    return Case(lambda x: x**exponent, each(lambda v: v**exponent), [values(rng, draw(shapes(scale=scale, empty=True)))])


@case(Cast)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    """There and back through a wider format: nothing is rounded away, so differences can be measured. Rounding: test_elementwise.py."""
    if backend.name != "numpy":
        pytest.skip("CuPy has nothing wider than float64")

    def call(x: ag.Tensor) -> ag.Tensor:
        return ag.cast(ag.cast(x, np.float64 if x.dtype == np.float32 else np.longdouble), x.dtype)

    return Case(call, lambda x: x, [normal(rng, draw(shapes(scale=scale, empty=True)))])


@case(Maximum)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    full = draw(shapes(scale=scale, empty=True))
    a, b = draw(broadcast_shapes(full)), draw(broadcast_shapes(full))
    both = distinct(rng, (int(np.prod(a) + np.prod(b)),))  # no tie between any a and any b
    cut = int(np.prod(a))
    return Case(ag.maximum, lambda x, y: np.where(x > y, x, y), [both[:cut].reshape(a), both[cut:].reshape(b)])


@case(Where)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    full = draw(shapes(scale=scale, empty=True))
    mask = rng.random(draw(broadcast_shapes(full))) < 0.5
    arrays = [normal(rng, draw(broadcast_shapes(full))) for _ in range(2)]
    return Case(lambda a, b: ag.where(mask, a, b), lambda a, b: mask * a + ~mask * b, arrays)


# Reductions -------------------------------------------------------------------------------------------------------------------


def by_rows(x: np.ndarray, axis: Any, keepdims: bool, function: Callable[[list[float]], float]) -> np.ndarray:
    """Applies `function` to the list of the elements that one element of the result comes from."""
    reduced = sorted(a % x.ndim for a in (range(x.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)))
    kept = [a for a in range(x.ndim) if a not in reduced]
    rows = x.transpose(kept + reduced).reshape(math.prod(x.shape[a] for a in kept), math.prod(x.shape[a] for a in reduced))
    result = np.array([function(row.tolist()) for row in rows])
    return result.reshape([1 if a in reduced else n for a, n in enumerate(x.shape) if keepdims or a in kept])


def reduction(
    op: type[ag.Op], call: Callable[..., Any], function: Callable[[list[float]], float], values: Any = normal, empty_rows: bool = False
) -> None:
    @case(op)
    def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
        full = draw(shapes(scale=scale, empty=True))
        axis, keepdims = draw(some_axes(full, empty_rows)), draw(st.booleans())
        return Case(lambda x: call(x, axis=axis, keepdims=keepdims), lambda x: by_rows(x, axis, keepdims, function), [values(rng, full)])


def mean_of(row: list[float]) -> float:
    return math.fsum(row) / len(row)


def variance_of(row: list[float]) -> float:
    center = mean_of(row)
    return mean_of([(v - center) ** 2 for v in row])


reduction(Sum, ag.sum, math.fsum, empty_rows=True)
reduction(Mean, ag.mean, mean_of)
reduction(Var, ag.var, variance_of)
reduction(Max, ag.max, max, distinct)
reduction(LogSumExp, ag.logsumexp, lambda row: math.log(math.fsum(math.exp(v) for v in row)))


# Shapes -----------------------------------------------------------------------------------------------------------------------


@case(Reshape)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    x = normal(rng, draw(shapes(scale=scale)))
    new = draw(st.permutations(x.shape + (1,)))
    if draw(st.booleans()):
        new[draw(st.integers(0, len(new) - 1))] = -1

    def expected(a: np.ndarray) -> np.ndarray:
        out = np.empty([n if n != -1 else a.size // abs(math.prod(new)) for n in new])
        out.flat = list(a.flat)  # element by element, in the order of the last axis first
        return out

    as_method = draw(st.booleans())
    return Case(lambda t: t.reshape(*new) if as_method else ag.reshape(t, new), expected, [x])


@case(Transpose)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    x = normal(rng, draw(shapes(scale=scale, empty=True)))
    order = draw(st.permutations(range(x.ndim)))
    signed = [a - x.ndim if draw(st.booleans()) else a for a in order]

    def expected(a: np.ndarray) -> np.ndarray:
        out = np.empty([a.shape[i] for i in order])
        for place in np.ndindex(*a.shape):
            out[tuple(place[i] for i in order)] = a[place]
        return out

    return Case(lambda t: ag.transpose(t, signed), expected, [x])


@case(BroadcastTo)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    full = draw(shapes(scale=scale, empty=True))
    return Case(lambda x: ag.broadcast_to(x, full), lambda x: x + np.zeros(full), [normal(rng, draw(broadcast_shapes(full)))])


@case(Concatenate)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    first = draw(shapes(least=1, most=3, scale=scale))
    axis = draw(st.integers(-len(first), len(first) - 1))
    pieces = draw(st.lists(st.one_of(st.integers(0, 3), lengths(scale)), min_size=1, max_size=4))
    arrays = []
    for n in pieces:
        piece = list(first)
        piece[axis] = n
        arrays.append(normal(rng, tuple(piece)))

    def expected(*xs: np.ndarray) -> np.ndarray:
        rows = [row for x in xs for row in np.moveaxis(x, axis, 0)]
        return np.moveaxis(np.array(rows), 0, axis) if rows else xs[0]

    return Case(lambda *xs: ag.concatenate(xs, axis=axis), expected, arrays)


@case(Stack)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    one = draw(shapes(most=3, scale=scale, empty=True))
    axis = draw(st.integers(-len(one) - 1, len(one)))
    arrays = [normal(rng, one) for _ in range(draw(st.integers(1, 4)))]
    return Case(lambda *xs: ag.stack(xs, axis=axis), lambda *xs: np.moveaxis(np.array(xs), 0, axis), arrays)


@case(Split)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    n = draw(st.integers(1, 4))
    full = list(draw(shapes(least=1, most=3, scale=scale)))
    axis = draw(st.integers(-len(full), len(full) - 1))
    lengths = draw(st.lists(st.integers(0, 5), min_size=n - 1, max_size=n - 1)) + [full[axis]] if draw(st.booleans()) else [full[axis]] * n
    full[axis] = sum(lengths)
    given = lengths if len(set(lengths)) > 1 else n

    def expected(x: np.ndarray) -> tuple[np.ndarray, ...]:
        return tuple(np.split(x, np.cumsum(lengths)[:-1], axis=axis))

    return Case(lambda x: ag.split(x, given, axis=axis), expected, [normal(rng, tuple(full))])


@st.composite
def index_keys(draw: st.DrawFn, full: tuple[int, ...], rng: np.random.Generator) -> Any:
    """What stands in x[...]: integers, slices, integer arrays (with repeats), masks, None, an ellipsis."""
    if draw(st.integers(0, 5)) == 0:
        mask = rng.random(full[: draw(st.integers(1, len(full)))]) < 0.4
        return (Ellipsis, mask) if mask.ndim == len(full) and draw(st.booleans()) else mask
    n_used = draw(st.integers(0, len(full)))
    from_right = draw(st.booleans())
    together = draw(st.sampled_from([(3,), (5, 1), (2, 4), (0,)]))  # integer arrays must broadcast against each other
    keys: list[Any] = []
    for n in full[len(full) - n_used :] if from_right else full[:n_used]:
        kind = draw(st.sampled_from(["slice", "integer", "array"]))
        if kind == "slice" or n == 0:
            ends = [draw(st.none() | st.integers(-n - 1, n + 1)) for _ in range(2)]
            keys.append(slice(*ends, draw(st.sampled_from([None, 1, 2, -1, -3]))))
        elif kind == "integer":
            keys.append(draw(st.integers(-n, n - 1)))
        else:
            keys.append(rng.integers(-n, n, together))
    if from_right:
        keys.insert(0, Ellipsis)
    if draw(st.booleans()):
        keys.insert(draw(st.integers(0, len(keys))), None)
    return keys[0] if len(keys) == 1 and draw(st.booleans()) else tuple(keys)


@case(Index)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    full = draw(shapes(least=1, most=3, scale=scale, empty=True))
    key = draw(index_keys(full, rng))
    return Case(lambda x: x[key], lambda x: x[key], [normal(rng, full)])


# Products ---------------------------------------------------------------------------------------------------------------------


@case(MatMul)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    batch = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    if draw(st.integers(0, 9)) == 9:
        batch[0] = 0
    n, k, m = (draw(lengths(scale)) for _ in range(3))
    # A second factor without batch axes would be the business of Linear, unless the first has none either.
    a, b = draw(broadcast_shapes(tuple(batch))), tuple(batch[1:] if draw(st.booleans()) else batch)
    if not b and a:
        b = (1,)

    def expected(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        common = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        x, y = np.broadcast_to(x, (*common, n, k)), np.broadcast_to(y, (*common, k, m))
        out = np.zeros((*common, n, m))
        for i in range(k):
            out += x[..., :, i, None] * y[..., None, i, :]  # a sum of outer products: no matmul in sight
        return out

    return Case(lambda x, y: x @ y, expected, [normal(rng, (*a, n, k)), normal(rng, (*b, k, m))])


@case(Linear)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    rows = draw(shapes(most=3 if scale == "small" else 1, scale=scale, empty=True))
    n_in, n_out = draw(lengths(scale)), draw(lengths(scale))
    arrays = [normal(rng, (*rows, n_in)), normal(rng, (n_in, n_out))]
    if draw(st.booleans()):
        arrays.append(normal(rng, (n_out,)))

    def expected(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        out = np.zeros((*x.shape[:-1], n_out))
        for i in range(n_in):
            out += x[..., i, None] * weight[i]
        return out if bias is None else out + bias

    return Case(ag.linear, expected, arrays)


# Along rows: softmax and normalization ------------------------------------------------------------------------------------------


def softmax_row(row: list[float]) -> list[float]:
    total = math.fsum(math.exp(v) for v in row)
    return [math.exp(v) / total for v in row]


def along(x: np.ndarray, axis: int, function: Callable[[list[float]], list[float]]) -> np.ndarray:
    """Applies a function of a list to each row along `axis`."""
    out = np.empty_like(x)
    rows, results = np.moveaxis(x, axis, -1), np.moveaxis(out, axis, -1)
    for place in np.ndindex(*rows.shape[:-1]):
        results[place] = function(rows[place].tolist())
    return out


def row_wise(op: type[ag.Op], call: Callable[..., Any], function: Callable[[list[float]], list[float]]) -> None:
    @case(op)
    def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
        x = normal(rng, draw(shapes(least=1, scale=scale, empty=True)))
        axis = draw(st.sampled_from([a - b for a in range(x.ndim) if x.shape[a] for b in (0, x.ndim)]))
        return Case(lambda t: call(t, axis=axis), lambda a: along(a, axis, function), [2 * x])


row_wise(Softmax, ag.softmax, softmax_row)
row_wise(LogSoftmax, ag.log_softmax, lambda row: [math.log(p) for p in softmax_row(row)])


@case(LayerNorm)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    x = spread(rng, draw(shapes(least=1, scale=scale, empty=True)))
    eps = draw(st.sampled_from([1e-5, 1e-3]))

    def expected(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> np.ndarray:
        def normalized(row: list[float]) -> list[float]:
            center, width = mean_of(row), math.sqrt(variance_of(row) + eps)
            return [(v - center) / width for v in row]

        return along(x, -1, normalized) * gamma + beta

    return Case(
        lambda x, gamma, beta: ag.layer_norm(x, gamma, beta, eps), expected, [x, *(1 + normal(rng, x.shape[-1:]) for _ in range(2))]
    )


@case(RMSNorm)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    x = spread(rng, draw(shapes(least=1, scale=scale, empty=True)))
    eps, offset, weighted = draw(st.sampled_from([1e-6, 1e-3])), draw(st.sampled_from([0.0, 1.0])), draw(st.booleans())

    def expected(x: np.ndarray, weight: Any = 1.0) -> np.ndarray:
        def normalized(row: list[float]) -> list[float]:
            size = math.sqrt(mean_of([v * v for v in row]) + eps)
            return [v / size for v in row]

        return along(x, -1, normalized) * (offset + weight if weighted else 1.0)

    def call(x: ag.Tensor, weight: ag.Tensor | None = None) -> ag.Tensor:
        return ag.rms_norm(x, weight, eps, offset if weighted else 0.0)

    return Case(call, expected, [x, 1 + normal(rng, x.shape[-1:])] if weighted else [x])


# Dropout, embedding, attention ---------------------------------------------------------------------------------------------------


def kept(n: int, p: float, seed: int, draw: int) -> np.ndarray:
    """The mask as design and docstring promise it: 16 random bits per element, kept where they reach p, rescaled to mean 1."""
    bits = to_host(random_bits(seed, draw, 0, n)).astype(np.int64)
    threshold = round(p * 65536)
    return (bits >= threshold) * (65536 / (65536 - threshold))


@case(Dropout)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    x = normal(rng, draw(shapes(scale=scale, empty=True)))
    p, seed, number = draw(st.sampled_from([0.1, 0.5, 0.99])), draw(seeds), draw(st.integers(0, 100))
    return Case(
        lambda t: ag.dropout(t, p, stream=ag.RandomStream(seed, number)),
        lambda a: a * kept(a.size, p, seed, number).reshape(a.shape),
        [x],
    )


@case(Embedding)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    n_rows, n_channels = draw(lengths(scale)), draw(lengths(scale))
    ids = rng.integers(0, n_rows, draw(shapes(most=2, scale=scale, empty=True)))
    if ids.size > 1:
        ids.flat[0] = ids.flat[-1]  # at least one id comes twice

    def expected(weight: np.ndarray) -> np.ndarray:
        return (ids[..., None] == np.arange(n_rows)).astype(float) @ weight  # the one-hot product that an embedding is

    return Case(lambda weight: ag.embedding(weight, ids), expected, [normal(rng, (n_rows, n_channels))])


def attention_by_loops(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, allowed: np.ndarray, factors: np.ndarray,
    scale: float | None = None, softcap: float = 0.0, alibi: Any = None, window: int = 0,
) -> np.ndarray:  # fmt: skip
    """Query by query and key by key. allowed, factors (..., T, S): who may look where (window included), and the dropout mask."""
    out = np.zeros_like(q)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    for place in np.ndindex(*q.shape[:-1]):
        *lead, t = place
        if lead:
            lead[-1] = lead[-1] * k.shape[-3] // q.shape[-3]  # the key head that this query head shares
        seen = [s for s in range(k.shape[-2]) if allowed[(*place, s)]]
        if seen:
            scores = [math.fsum(q[place] * k[(*lead, s)]) * scale for s in seen]
            if softcap:
                scores = [softcap * math.tanh(score / softcap) for score in scores]
            if alibi:
                scores = [score - alibi[place[-2]] * (t + k.shape[-2] - q.shape[-2] - s) for s, score in zip(seen, scores, strict=True)]
            for s, weight in zip(seen, softmax_row(scores), strict=True):
                out[place] += weight * factors[(*place, s)] * v[(*lead, s)]
    return out


def attention_options(draw: st.DrawFn, rng: np.random.Generator, n_head: int | None, n_keys: int, causal: bool) -> dict[str, Any]:
    """Half of the time none; else any combination."""
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        return options
    if draw(st.booleans()):
        options["scale"] = draw(st.sampled_from([0.1, 1.0]))
    if draw(st.booleans()):
        options["softcap"] = draw(st.sampled_from([0.5, 2.0, 50.0]))
    if causal and draw(st.booleans()):
        options["window"] = draw(st.sampled_from([1, 2, n_keys // 2 + 1, n_keys, n_keys + 5]))
    if causal and n_head is not None and draw(st.booleans()):
        options["alibi"] = rng.uniform(-0.1, 1, n_head).tolist()
    return options


@case(Attention)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    lead = tuple(draw(st.lists(st.integers(1, 2), min_size=2 if scale == "large" else 0, max_size=2)))
    if lead and draw(st.integers(0, 9)) == 9:
        lead = (0, *lead[1:])
    key_lead = lead
    if lead and draw(st.integers(0, 2)) == 0:
        lead = (*lead[:-1], lead[-1] * draw(st.integers(2, 3)))
    n_keys, n_channels = draw(lengths(scale)), draw(st.sampled_from([1, 2, 7, 8, 16, 33]))
    causal = draw(st.booleans())
    n_queries = n_keys if draw(st.booleans()) else draw(st.integers(1, n_keys)) if causal else draw(lengths(scale))
    options = attention_options(draw, rng, lead[-1] if lead else None, n_keys, causal)
    scores = (*lead, n_queries, n_keys)
    mask = rng.random(draw(broadcast_shapes(scores))) < 0.8 if draw(st.integers(0, 2)) == 0 else None
    p, seed = draw(st.sampled_from([0.0, 0.0, 0.3])), draw(seeds)
    allowed = np.ones(scores, bool) if mask is None else np.broadcast_to(mask, scores).copy()
    for t, s in itertools.product(range(n_queries), range(n_keys)):
        position = t + n_keys - n_queries
        if causal and (s > position or s <= position - options.get("window", math.inf)):
            allowed[..., t, s] = False
    factors = kept(math.prod(scores), p, seed, 0).reshape(scores) if p else np.ones(scores)

    def call(q: ag.Tensor, k: ag.Tensor, v: ag.Tensor) -> ag.Tensor:
        return ag.scaled_dot_product_attention(q, k, v, mask, causal=causal, **options, dropout=p, stream=ag.RandomStream(seed))

    arrays = [normal(rng, (*lead, n_queries, n_channels)), *(normal(rng, (*key_lead, n_keys, n_channels)) for _ in range(2))]
    return Case(call, lambda q, k, v: attention_by_loops(q, k, v, allowed, factors, **options), arrays)


@case(RotaryEmbedding)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    x = normal(rng, draw(shapes(least=2, scale=scale, empty=True)))
    n_pairs = draw(st.integers(0, x.shape[-1] // 2))
    angles = 3 * normal(rng, (*draw(broadcast_shapes(x.shape[:-1])), n_pairs))
    cos, sin = np.cos(angles), np.sin(angles)

    def expected(x: np.ndarray) -> np.ndarray:
        y = x.copy()
        z = (x[..., :n_pairs] + 1j * x[..., n_pairs : 2 * n_pairs]) * np.exp(1j * angles)  # the rotation as a complex product
        y[..., :n_pairs], y[..., n_pairs : 2 * n_pairs] = z.real, z.imag
        return y

    return Case(lambda t: ag.rotary_embedding(t, cos, sin), expected, [x])


# Losses -------------------------------------------------------------------------------------------------------------------------


def mean_loss(z: np.ndarray, targets: np.ndarray, ignore_index: int, label_smoothing: float, z_loss: float) -> np.ndarray:
    """- sum of w log p, row by row: w is the smoothed one-hot row; and z_loss times the square of log sum exp."""
    losses = []
    for row, target in zip(z.reshape(-1, z.shape[-1]).tolist(), targets.reshape(-1).tolist(), strict=True):
        if target != ignore_index:
            logs = [math.log(p) for p in softmax_row(row)]
            lse = math.log(math.fsum(map(math.exp, row)))
            losses.append(-(1 - label_smoothing) * logs[target] - label_smoothing * mean_of(logs) + z_loss * lse * lse)
    return np.array(mean_of(losses))


def draw_targets(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> tuple[np.ndarray, int, dict[str, Any]]:
    """(targets, number of classes, options of a loss); some targets are ignored, at least one counts."""
    n_classes = draw(lengths(scale))
    targets = rng.integers(0, n_classes, draw(shapes(most=2 if scale == "small" else 1, scale=scale)))
    ignore_index = draw(st.sampled_from([-100, -1]))
    if targets.size > 1:
        ignored = rng.random(targets.shape) < draw(st.sampled_from([0.0, 0.5]))
        ignored.flat[0] = False
        targets[ignored] = ignore_index
    options = {"ignore_index": ignore_index, "label_smoothing": draw(st.sampled_from([0.0, 0.1]))}
    return targets, n_classes, options | {"z_loss": draw(st.sampled_from([0.0, 0.02, 0.3]))}


@case(CrossEntropy)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    targets, n_classes, options = draw_targets(draw, rng, scale)
    logits = 2 * normal(rng, (*targets.shape, n_classes))
    return Case(lambda z: ag.cross_entropy(z, targets, **options), lambda z: mean_loss(z, targets, **options), [logits])


@case(LinearCrossEntropy)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    targets, n_classes, options = draw_targets(draw, rng, scale)
    n_channels = draw(lengths(scale))
    chunk, softcap = draw(st.sampled_from([1, 2, 7, 32, 1024])), draw(st.sampled_from([0.0, 0.0, 1.5]))
    x = normal(rng, (*targets.shape, n_channels))
    weight = normal(rng, (n_classes, n_channels)) / math.sqrt(n_channels)
    bias = [normal(rng, (n_classes,))] if draw(st.booleans()) else []
    capped = each(lambda z: softcap * math.tanh(z / softcap)) if softcap else lambda z: z
    return Case(
        lambda x, weight, *bias: ag.linear_cross_entropy(x, weight, targets, *bias, **options, softcap=softcap, chunk=chunk),
        lambda x, weight, *bias: mean_loss(capped(np.einsum("...c,vc->...v", x, weight) + sum(bias)), targets, **options),
        [x, weight, *bias],
    )


# Between ranks: one of a group whose others are played here; with real ones: tests/tinygpt/test_tensor_parallel.py --------------------


class Alike:
    """A rank of a group in which all hold the same and compute the same."""

    rank = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def all_reduce(self, array: Any) -> None:
        array *= self.size

    def all_gather(self, part: Any, out: Any, lengths: Any) -> None:
        raise NotImplementedError


def through_a_group(op: type[ag.Op]) -> None:
    """Each rank enters and leaves: then the gradient of one rank is that of the result, which all have."""

    @case(op)
    def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
        group = Alike(draw(st.integers(1, 4)))

        def call(x: ag.Tensor) -> ag.Tensor:
            return ag.sum_over_group(ag.tanh(ag.copy_to_group(x, group)), group)

        return Case(call, lambda x: group.size * each(math.tanh)(x), [normal(rng, draw(shapes(scale=scale, empty=True)))])


through_a_group(CopyToGroup)
through_a_group(SumOverGroup)


class OthersFixed:
    """A rank of a group in which the logits of the others, (N, V - V_r), do not depend on what it holds."""

    def __init__(self, rank: int, logits: list[np.ndarray], targets: np.ndarray, n_classes: int) -> None:
        self.rank, self.size, self.parts = rank, len(logits), []
        for r, z in enumerate(logits):
            own = targets.reshape(-1) - n_classes * r // self.size
            here = (own >= 0) & (own < z.shape[1])
            at_target = np.where(here, z[np.arange(len(z)), np.where(here, own, 0)], 0)
            self.parts.append(np.stack([z.max(1), np.exp(z - z.max(1, keepdims=True)).sum(1), at_target, z.sum(1)]))

    def all_reduce(self, array: Any) -> None:
        pass

    def all_gather(self, part: Any, out: Any, lengths: Any) -> None:
        out[...] = backend.to_device(np.stack(self.parts).reshape(-1)).astype(out.dtype)
        out.reshape(self.size, -1)[self.rank] = part


@case(SplitLinearCrossEntropy)
def _(draw: st.DrawFn, rng: np.random.Generator, scale: str) -> Case:
    targets, n_classes, options = draw_targets(draw, rng, scale)
    size = draw(st.integers(1, min(3, n_classes)))
    rank, n_channels, softcap = draw(st.integers(0, size - 1)), draw(lengths(scale)), draw(st.sampled_from([0.0, 0.0, 1.5]))
    capped = each(lambda z: softcap * math.tanh(z / softcap)) if softcap else lambda z: z
    bounds = [n_classes * r // size for r in range(size + 1)]
    logits = [capped(normal(rng, (targets.size, end - start))) for start, end in itertools.pairwise(bounds)]
    group = OthersFixed(rank, logits, targets, n_classes)

    def expected(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        own = capped(np.einsum("...c,vc->...v", x, weight)).reshape(logits[rank].shape)
        z = np.concatenate([*logits[:rank], own, *logits[rank + 1 :]], axis=1)
        return mean_loss(z, targets, **options)

    weight = normal(rng, (bounds[rank + 1] - bounds[rank], n_channels)) / math.sqrt(n_channels)
    options_here = options | {"n_classes": n_classes, "softcap": softcap, "chunk": targets.size}  # of all rows, as the others' logits are
    return Case(
        lambda x, weight: ag.split_linear_cross_entropy(x, weight, targets, group, **options_here),
        expected, [normal(rng, (*targets.shape, n_channels)), weight],
    )  # fmt: skip
