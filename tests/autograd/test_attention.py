"""Laws of attention: what a query may see, and nothing else, in values and in gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd.backend import to_device, to_host
from tests.autograd.checks import assert_close, tensor
from tests.strategies import seeds

pytestmark = pytest.mark.usefixtures("each_kernel_mode")

N = st.integers(1, 33)


def qkv(seed, n_queries, n_keys, lead=(2, 3), n_channels=4):
    rng = np.random.default_rng(seed)
    return [tensor(rng.standard_normal((*lead, n, n_channels))) for n in (n_queries, n_keys, n_keys)]


def gradients(tensors):
    return [to_host(t.grad) for t in tensors]


@given(seed=seeds, n_keys=N, data=st.data())
def test_a_query_ignores_everything_after_it(seed, n_keys, data):
    n_queries = data.draw(st.integers(1, n_keys))
    t = data.draw(st.integers(0, n_queries - 1))
    last = t + n_keys - n_queries  # the last key that query t sees
    q, k, v = qkv(seed, n_queries, n_keys)
    y = ag.scaled_dot_product_attention(q, k, v, causal=True)
    (y[:, :, t] * np.random.default_rng(seed).standard_normal((2, 3, 4))).sum().backward()
    dq, dk, dv = gradients((q, k, v))
    assert (dk[:, :, last + 1 :] == 0).all() and (dv[:, :, last + 1 :] == 0).all()
    assert (np.delete(dq, t, axis=2) == 0).all()
    assert (dv[:, :, : last + 1] != 0).all()

    other = qkv(seed + 1, n_queries, n_keys)
    for mine, theirs in ((k, other[1]), (v, other[2])):
        mine.data[:, :, last + 1 :] = theirs.data[:, :, last + 1 :]
    assert_close(ag.scaled_dot_product_attention(q, k, v, causal=True).data[:, :, t], to_host(y.data)[:, :, t])


@given(seed=seeds, n_keys=N, data=st.data())
def test_fewer_queries_than_keys_are_the_last_positions(seed, n_keys, data):
    n_queries = data.draw(st.integers(1, n_keys))
    q, k, v = qkv(seed, n_keys, n_keys)
    whole = ag.scaled_dot_product_attention(q, k, v, causal=True)
    last = ag.scaled_dot_product_attention(q[:, :, n_keys - n_queries :], k, v, causal=True)
    assert_close(last.data, to_host(whole.data)[:, :, n_keys - n_queries :])


@given(seed=seeds, n_queries=N, n_keys=N)
def test_a_fully_masked_row_gives_zero_and_gradient_zero(seed, n_queries, n_keys):
    rng = np.random.default_rng(seed)
    mask = rng.random((n_queries, n_keys)) < 0.7
    blind = int(rng.integers(n_queries))
    mask[blind] = False
    q, k, v = qkv(seed, n_queries, n_keys)
    y = ag.scaled_dot_product_attention(q, k, v, mask)
    assert (to_host(y.data)[:, :, blind] == 0).all()
    dy = np.zeros(y.shape)
    dy[:, :, blind] = rng.standard_normal((2, 3, 4))
    y.backward(dy)
    for dx in gradients((q, k, v)):
        assert (dx == 0).all()


def test_everything_masked():
    q, k, v = qkv(0, 3, 5)
    y = ag.scaled_dot_product_attention(q, k, v, np.zeros((3, 5), bool), causal=True)
    y.sum().backward()
    assert (to_host(y.data) == 0).all() and all((dx == 0).all() for dx in gradients((q, k, v)))


@given(seed=seeds, n_queries=N, n_keys=N)
def test_masked_keys_get_no_gradient(seed, n_queries, n_keys):
    rng = np.random.default_rng(seed)
    seen = rng.random(n_keys) < 0.5
    q, k, v = qkv(seed, n_queries, n_keys)
    y = ag.scaled_dot_product_attention(q, k, v, seen)
    y.backward(rng.standard_normal(y.shape))
    _, dk, dv = gradients((q, k, v))
    assert (dk[:, :, ~seen] == 0).all() and (dv[:, :, ~seen] == 0).all()
    if seen.any():
        short = ag.scaled_dot_product_attention(q, k[:, :, seen], v[:, :, seen])
        assert_close(y.data, to_host(short.data))


def test_a_mask_of_the_causal_shape_is_causal():
    q, k, v = qkv(0, 5, 7)
    mask = np.tri(5, 7, 2, dtype=bool)
    assert_close(ag.scaled_dot_product_attention(q, k, v, mask).data, to_host(ag.scaled_dot_product_attention(q, k, v, causal=True).data))


@given(seed=seeds, n_keys=N)
def test_equal_keys_average_the_values(seed, n_keys):
    q, k, v = qkv(seed, 3, n_keys)
    k.data[...] = k.data[:, :, :1]
    y = ag.scaled_dot_product_attention(q, k, v)
    assert_close(y.data, np.broadcast_to(to_host(v.data).mean(axis=2, keepdims=True), y.shape))


@given(seed=seeds, n_keys=N)
def test_shifting_all_keys_changes_nothing(seed, n_keys):
    q, k, v = qkv(seed, 3, n_keys)
    y = ag.scaled_dot_product_attention(q, k, v)
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    y.backward(dy)
    moved = ag.scaled_dot_product_attention(q, k + 3.0, v)
    assert_close(moved.data, to_host(y.data))
    assert_close(to_host(k.grad).sum(axis=2), np.zeros((2, 3, 4)))


def test_large_scores_do_not_overflow():
    q, k, v = qkv(0, 4, 4)
    y = ag.scaled_dot_product_attention(1e4 * q, 1e4 * k, v, causal=True)
    y.sum().backward()
    assert np.isfinite(to_host(y.data)).all() and all(np.isfinite(dx).all() for dx in gradients((q, k, v)))


def test_dropout_on_the_weights_repeats_with_its_stream():
    q, k, v = qkv(0, 8, 8)
    stream = ag.RandomStream(3)
    first, second = (to_host(ag.scaled_dot_product_attention(q, k, v, dropout=0.5, stream=stream).data) for _ in range(2))
    assert stream.counter == 2 and (first != second).any()
    again = ag.scaled_dot_product_attention(q, k, v, dropout=0.5, stream=ag.RandomStream(3, 1))
    assert_close(again.data, second)
    plain = to_host(ag.scaled_dot_product_attention(q, k, v).data)
    assert (first != plain).any()
    for options in ({"dropout": 0.5, "training": False}, {"dropout": 0.0}):
        assert_close(ag.scaled_dot_product_attention(q, k, v, stream=stream, **options).data, plain)
    assert stream.counter == 2


def test_dropout_keeps_the_mean():
    q, k, v = qkv(0, 2, 3, lead=(1, 1))
    many = [q, k, v] = [ag.broadcast_to(t, (100, 100, *t.shape[2:])) for t in (q, k, v)]
    y = to_host(ag.scaled_dot_product_attention(*many, dropout=0.5, stream=ag.RandomStream(0)).data)
    plain = to_host(ag.scaled_dot_product_attention(*many).data)
    assert np.abs(y.mean(axis=(0, 1)) - plain[0, 0]).max() < 6 * y.std(axis=(0, 1)).max() / 100


def test_without_a_stream_every_mask_is_another():
    q, k, v = qkv(0, 8, 8)
    first, second = (to_host(ag.scaled_dot_product_attention(q, k, v, dropout=0.5).data) for _ in range(2))
    assert (first != second).any()


A = np.ones((2, 3, 4))


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((4,), (4,), (4,)), {}, r"attention: q \(4,\), k \(4,\), v \(4,\), expected \(..., T, D\), \(..., S, D\), \(..., S, D\) with equal"),
        (((3, 4), (5, 4), (6, 4)), {}, r"attention: q \(3, 4\), k \(5, 4\), v \(6, 4\)"),
        (((3, 4), (5, 2), (5, 2)), {}, r"split the heads the same way"),
        (((1, 3, 4), (2, 5, 4), (2, 5, 4)), {}, r"attention: q \(1, 3, 4\)"),
        (((3, 4), (0, 4), (0, 4)), {}, r"attention: k of shape \(0, 4\), expected at least one key and one channel; skip empty input"),
        (((3, 0), (5, 0), (5, 0)), {}, r"attention: k of shape \(5, 0\)"),
        (((3, 4), (2, 4), (2, 4)), {"causal": True}, r"attention: 3 queries for 2 keys with causal=True, expected no more queries than keys"),
        (((3, 4), (5, 4), (5, 4)), {"mask": np.full((3, 5), -1e9)}, r"attention: -1000000000.0 in a mask of shape \(3, 5\), expected "
         r"booleans or 0 and 1, where 1 means attend and 0 do not; for the other convention, 0 for attend and -inf or -1e9 .* pass mask == 0"),
        (((3, 4), (5, 4), (5, 4)), {"mask": [[0.0, np.nan, 1, 1, 1]]}, r"attention: nan in a mask"),
        (((3, 4), (5, 4), (5, 4)), {"mask": np.full((1, 5), 2)}, r"attention: 2 in a mask"),
        (((3, 4), (5, 4), (5, 4)), {"mask": np.ones((3, 4), bool)}, r"attention: a mask of shape \(3, 4\), expected one that "
         r"broadcasts to \(3, 5\); True means that the query may attend"),
        (((3, 4), (5, 4), (5, 4)), {"mask": np.ones((1, 3, 5), bool)}, r"attention: a mask of shape \(1, 3, 5\)"),
        (((3, 4), (5, 4), (5, 4)), {"dropout": 1.0}, r"attention: dropout probability 1.0, expected 0 <= p < 1"),
    ],
)  # fmt: skip
def test_errors(shapes, options, message):
    with pytest.raises(ValueError, match=message):
        ag.scaled_dot_product_attention(*(tensor(np.ones(shape)) for shape in shapes), **options)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "float32", "bool"])
def test_ones_and_zeros_are_a_mask_and_an_additive_one_becomes_one(dtype):
    rng = np.random.default_rng(0)
    q, k, v = (tensor(rng.standard_normal((2, 5, 4))) for _ in range(3))
    allowed = rng.random((5, 5)) < 0.5
    expected = to_host(ag.scaled_dot_product_attention(q, k, v, allowed).data)
    for mask in (allowed.astype(dtype), allowed.astype(dtype).tolist(), to_device(allowed.astype(dtype))):
        assert_close(ag.scaled_dot_product_attention(q, k, v, mask).data, expected)
    added = np.where(allowed, 0.0, -1e9)
    assert_close(ag.scaled_dot_product_attention(q, k, v, added == 0).data, expected)


def test_rows_far_apart_share_no_shift():
    """The blocked kernel shifts all rows' scores by one maximum where it can; here it must not."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 5, 4)).astype(np.float32) for _ in range(3))
    q *= np.array([1e-3, 1, 1e4, -1e4, 1], dtype=np.float32)[:, None]
    with ag.use_kernels("reference"):
        expected = to_host(ag.scaled_dot_product_attention(tensor(q), tensor(k), tensor(v)).data)
    with ag.use_kernels("fast"):
        found = to_host(ag.scaled_dot_product_attention(tensor(q), tensor(k), tensor(v)).data)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
