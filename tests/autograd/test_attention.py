"""Laws of attention: what a query may see, and nothing else, in values and in gradients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd.backend import to_device, to_host
from autograd.ops.attention import Attention
from tests.autograd.checks import assert_close, assert_kernels_agree, numpy_only, takes_fast_path, tensor
from tests.strategies import seeds

pytestmark = pytest.mark.usefixtures("each_kernel_mode")

N = st.integers(1, 33)


def qkv(seed, n_queries, n_keys, lead=(2, 3), n_channels=4, key_lead=None):
    rng = np.random.default_rng(seed)
    q = rng.standard_normal((*lead, n_queries, n_channels))
    return [tensor(q), *(tensor(rng.standard_normal((*(key_lead or lead), n_keys, n_channels))) for _ in range(2))]


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


# Options ----------------------------------------------------------------------------------------------------------------------


@given(seed=seeds, n_keys=N, data=st.data())
def test_a_query_ignores_everything_before_its_window(seed, n_keys, data):
    n_queries, window = data.draw(st.integers(1, n_keys)), data.draw(st.integers(1, 40))
    t = data.draw(st.integers(0, n_queries - 1))
    last = t + n_keys - n_queries
    first = max(0, last - window + 1)
    q, k, v = qkv(seed, n_queries, n_keys)
    y = ag.scaled_dot_product_attention(q, k, v, causal=True, window=window)
    (y[:, :, t] * np.random.default_rng(seed).standard_normal((2, 3, 4))).sum().backward()
    _, dk, dv = gradients((q, k, v))
    inside = np.arange(first, last + 1)
    assert (np.delete(dk, inside, axis=2) == 0).all() and (np.delete(dv, inside, axis=2) == 0).all() and (dv[:, :, inside] != 0).all()
    alone = ag.scaled_dot_product_attention(q[:, :, t : t + 1], k[:, :, first : last + 1], v[:, :, first : last + 1])
    assert_close(y.data[:, :, t], to_host(alone.data)[:, :, 0])


@given(seed=seeds, n_keys=N)
def test_a_window_of_one_copies_the_values_and_a_wide_one_hides_nothing(seed, n_keys):
    q, k, v = qkv(seed, n_keys, n_keys)
    assert_close(ag.scaled_dot_product_attention(q, k, v, causal=True, window=1).data, to_host(v.data))
    wide = ag.scaled_dot_product_attention(q, k, v, causal=True, window=n_keys)
    assert_close(wide.data, to_host(ag.scaled_dot_product_attention(q, k, v, causal=True).data))


@given(seed=seeds, n_keys=N, data=st.data())
def test_with_options_too_fewer_queries_are_the_last_positions(seed, n_keys, data):
    n_queries = data.draw(st.integers(1, n_keys))
    options = {"causal": True, "window": data.draw(st.integers(0, 20)), "alibi": [0.5, 0.1, 2.0], "softcap": 1.5}
    q, k, v = qkv(seed, n_keys, n_keys, key_lead=(2, 1))
    whole = ag.scaled_dot_product_attention(q, k, v, **options)
    last = ag.scaled_dot_product_attention(q[:, :, n_keys - n_queries :], k, v, **options)
    assert_close(last.data, to_host(whole.data)[:, :, n_keys - n_queries :])


@given(seed=seeds, n_keys=N, n_key_heads=st.integers(1, 3), n_group=st.integers(1, 4))
def test_grouped_heads_are_repeated_heads_with_summed_gradients(seed, n_keys, n_key_heads, n_group):
    q, k, v = qkv(seed, 5, n_keys, lead=(2, n_key_heads * n_group), key_lead=(2, n_key_heads))
    repeated = [tensor(np.repeat(to_host(t.data), n_group, axis=1)) for t in (k, v)]
    y, right = ag.scaled_dot_product_attention(q, k, v), ag.scaled_dot_product_attention(q, *repeated)
    assert_close(y.data, to_host(right.data))
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    y.backward(dy)
    dq = to_host(q.grad)
    q.grad = None
    right.backward(dy)
    assert_close(dq, to_host(q.grad))
    for mine, theirs in zip((k, v), repeated, strict=True):
        assert_close(mine.grad, to_host(theirs.grad).reshape(2, n_key_heads, n_group, n_keys, 4).sum(axis=2))


@given(seed=seeds, n_keys=N)
def test_a_soft_cap_bounds_how_much_two_weights_differ(seed, n_keys):
    q, k, _ = qkv(seed, 3, n_keys)
    every = tensor(np.broadcast_to(np.eye(n_keys), (2, 3, n_keys, n_keys)))  # as values: the output is the weights
    q, k, cap = ag.concatenate([100 * q, np.zeros((2, 3, 3, n_keys))], axis=-1), ag.concatenate([k, every], axis=-1), 0.7
    v = ag.concatenate([np.zeros((2, 3, n_keys, 4)), every], axis=-1)
    weights = to_host(ag.scaled_dot_product_attention(q, k, v, softcap=cap).data)[..., 4:]
    assert (weights.max(axis=-1) <= np.exp(2 * cap) * weights.min(axis=-1) * (1 + 1e-9)).all()


@given(seed=seeds, n_keys=N)
def test_options_that_change_nothing(seed, n_keys):
    q, k, v = qkv(seed, n_keys, n_keys)
    right = to_host(ag.scaled_dot_product_attention(q, k, v, causal=True).data)
    for options in (
        {"scale": 0.5},
        {"softcap": 1e9},
        {"alibi": [0.0, 0.0, 0.0]},
        {"alibi": np.zeros(3)},
        {"alibi": to_device(np.zeros(3))},
    ):
        found = ag.scaled_dot_product_attention(q, k, v, causal=True, **options).data
        np.testing.assert_allclose(to_host(found), right, atol=1e-6)  # 1e9 tanh(s / 1e9) has lost digits


def test_steep_slopes_leave_only_the_nearest_key():
    q, k, v = qkv(0, 6, 6)
    y = ag.scaled_dot_product_attention(q, k, v, causal=True, alibi=[1e4] * 3)
    y.sum().backward()
    assert_close(y.data, to_host(v.data))
    assert_close(v.grad, np.ones(v.shape))


def test_slopes_are_those_of_the_paper():
    assert ag.alibi_slopes(8) == [1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64, 1 / 128, 1 / 256]
    np.testing.assert_allclose(ag.alibi_slopes(16), [2 ** (-i / 2) for i in range(1, 17)])
    assert ag.alibi_slopes(1) == [2**-8]
    for n in range(1, 40):
        assert len(ag.alibi_slopes(n)) == len(set(ag.alibi_slopes(n))) == n and all(0 < slope < 1 for slope in ag.alibi_slopes(n))
    with pytest.raises(ValueError, match=r"alibi_slopes: 0 heads, expected at least 1"):
        ag.alibi_slopes(0)


OPTIONS = {
    "grouped": {}, "window": {"window": 37}, "short window": {"window": 3}, "scale": {"scale": 0.3}, "softcap": {"softcap": 1.5},
    "alibi": {"alibi": ag.alibi_slopes(6)}, "all": {"window": 150, "scale": 0.4, "softcap": 2.0, "alibi": ag.alibi_slopes(6)},
}  # fmt: skip


@numpy_only
@pytest.mark.parametrize(("n_queries", "n_keys"), [(129, 129), (300, 300), (100, 300), (1, 300)])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_options_over_long_sequences(n_queries, n_keys, name, dropout):
    """Kernels cut long sequences into blocks; each must find its keys, its slopes and its part of the mask."""
    (kernel,) = ag.registered_kernels()[Attention]

    def call(q, k, v):
        options = {"causal": True, **OPTIONS[name], "dropout": dropout, "stream": ag.RandomStream(1)}
        return ag.scaled_dot_product_attention(q, k, v, **options)

    rng = np.random.default_rng(0)
    n_key_heads = 2 if name in ("grouped", "all") else 6
    arrays = [rng.standard_normal((2, 6, n_queries, 4)), *(rng.standard_normal((2, n_key_heads, n_keys, 4)) for _ in range(2))]
    with takes_fast_path(kernel):
        assert_kernels_agree(call, arrays, "float64")


@numpy_only
@pytest.mark.parametrize("shape", [(2, 1, 1, 300), (300, 300), (2, 6, 129, 300), (1, 6, 1, 1)])
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"causal": True, "window": 40, "softcap": 5.0}, {"dropout": 0.2}])
def test_masks_over_long_sequences(shape, options):
    """Padding, a mask per query, per head; some queries see no key at all, and one mask hides nothing."""
    (kernel,) = ag.registered_kernels()[Attention]
    n_queries = shape[-2] if shape[-2] > 1 else 129
    rng = np.random.default_rng(0)
    mask = rng.random(shape) < 0.6
    mask[..., -1:, :] = len(shape) == 4  # the last query of (300, 300) sees none

    def call(q, k, v):
        return ag.scaled_dot_product_attention(q, k, v, mask, **options, stream=ag.RandomStream(1))

    n_key_heads = 2 if shape[0] == 1 else 6
    arrays = [rng.standard_normal((2, 6, n_queries, 4)), *(rng.standard_normal((2, n_key_heads, 300, 4)) for _ in range(2))]
    for factor in (1, 300):  # with large scores the rows of a block need their own largest
        arrays[0] *= factor
        with takes_fast_path(kernel):
            assert_kernels_agree(call, arrays, "float64")


@numpy_only
@pytest.mark.parametrize("n_key_heads", [1, 3, 24])
def test_many_heads_that_share_a_key_head_are_cut_into_several_pieces(n_key_heads):
    """24 heads of 300 x 300 scores do not fit the cache at once: the heads of one key head are taken in turns, and their gradients added."""
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((1, 24, 300, 4)), *(rng.standard_normal((1, n_key_heads, 300, 4)) for _ in range(2))]
    assert_kernels_agree(lambda q, k, v: ag.scaled_dot_product_attention(q, k, v, causal=True, window=250), arrays, "float64")
    assert_kernels_agree(lambda q, k, v: ag.scaled_dot_product_attention(q, k, v, causal=True), arrays, "float64")


@numpy_only
def test_the_kernel_never_touches_keys_outside_the_windows_of_a_block():
    q, k, v = qkv(0, 400, 500)
    for t in (k, v):
        t.data[:, :, :91] = np.nan  # before the first window: 100 - 10 + 1
    with ag.use_kernels("fast"):
        y = ag.scaled_dot_product_attention(q, k, v, causal=True, window=10)
        y.backward(np.ones(y.shape))
        assert np.isfinite(y.data).all()
        for dx in gradients((q, k, v)):
            assert np.isfinite(dx).all()
        assert (k.grad[:, :, :91] == 0).all() and (v.grad[:, :, :91] == 0).all()
        for t in (k, v):
            t.data[:, :, 91:300] = np.nan  # seen by queries up to 208 alone, in the first blocks of 128
        y = ag.scaled_dot_product_attention(q, k, v, causal=True, window=10)
    assert np.isnan(y.data[:, :, :200]).all() and np.isfinite(y.data[:, :, 256:]).all()


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
        (((6, 3, 4), (4, 5, 4), (4, 5, 4)), {}, r"attention: q \(6, 3, 4\), k \(4, 5, 4\).*key heads .* whose number divides that of the query"),
        (((3, 3, 4), (5, 4), (5, 4)), {}, r"attention: q \(3, 3, 4\), k \(5, 4\)"),
        (((3, 4), (5, 4), (5, 4)), {"scale": 0.0}, r"attention: scale 0.0, expected a finite number > 0; leave it out"),
        (((3, 4), (5, 4), (5, 4)), {"softcap": -1.0}, r"attention: softcap -1.0, expected a finite number >= 0"),
        (((3, 4), (5, 4), (5, 4)), {"softcap": np.inf}, r"attention: softcap inf, expected a finite number >= 0"),
        (((3, 4), (5, 4), (5, 4)), {"window": -1, "causal": True}, r"attention: window -1, expected a whole number of keys, 0 for all"),
        (((3, 4), (5, 4), (5, 4)), {"window": 2.0, "causal": True}, r"attention: window 2.0, expected a whole number"),
        (((3, 4), (5, 4), (5, 4)), {"window": 2}, r"attention: window with causal=False, expected causal=True; it counts positions back"),
        (((2, 3, 4), (2, 5, 4), (2, 5, 4)), {"alibi": [1.0, 2.0]}, r"attention: alibi with causal=False, expected causal=True"),
        (((2, 3, 4), (2, 5, 4), (2, 5, 4)), {"alibi": [1.0], "causal": True}, r"attention: alibi of shape \(1,\) for q \(2, 3, 4\), expected \(2,\)"),
        (((3, 4), (5, 4), (5, 4)), {"alibi": [1.0], "causal": True}, r"attention: alibi of shape \(1,\) for q \(3, 4\), expected \(H,\); one slope"),
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
