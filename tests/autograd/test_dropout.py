"""The random stream, and the laws of dropout masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd.backend import random_bits, to_host
from tests.autograd.checks import assert_close, tensor
from tests.strategies import seeds, shapes

pytestmark = pytest.mark.usefixtures("each_kernel_mode")

P = st.sampled_from([0.1, 0.25, 0.5, 0.9])


def bits(*args):
    return to_host(random_bits(*args))


@given(seed=seeds, draw=st.integers(0, 10), start=st.integers(0, 1000), n=st.integers(0, 100))
def test_any_part_of_the_stream_is_a_slice_of_the_whole(seed, draw, start, n):
    part = bits(seed, draw, start, n)
    assert part.dtype == np.uint16 and part.shape == (n,)
    assert (part == bits(seed, draw, 0, start + n)[start:]).all()


def test_far_places_of_the_stream_are_reached_at_once():
    assert (bits(1, 2, 10**15 + 3, 5) == bits(1, 2, 10**15, 8)[3:]).all()


def test_streams_differ_by_seed_and_draw():
    streams = {bits(seed, draw, 0, 64).tobytes() for seed in range(10) for draw in range(10)}
    assert len(streams) == 100


def test_bits_are_uniform():
    found = bits(0, 0, 0, 1 << 18)
    counts = np.bincount(found >> 8, minlength=256)  # 1024 expected in each, standard deviation 32
    assert np.abs(counts - 1024).max() < 6 * 32
    low = np.bincount(found & 255, minlength=256)
    assert np.abs(low - 1024).max() < 6 * 32
    follows = np.corrcoef(found[:-1].astype(float), found[1:])[0, 1]
    assert abs(follows) < 6 / np.sqrt(1 << 18)


@given(seed=seeds, draw=st.integers(0, 1000), p=P, shape=shapes())
def test_the_mask_is_a_function_of_seed_and_draw(seed, draw, p, shape):
    x = np.ones(shape)
    stream = ag.RandomStream(seed, draw)
    first = to_host(ag.dropout(tensor(x), p, stream=stream).data)
    second = to_host(ag.dropout(tensor(x), p, stream=stream).data)
    assert stream.counter == draw + 2
    again = ag.RandomStream(seed, draw)
    assert (to_host(ag.dropout(tensor(x), p, stream=again).data) == first).all()
    assert (to_host(ag.dropout(tensor(x), p, stream=again).data) == second).all()
    if x.size > 200:
        assert (first != second).any()
    assert set(np.unique(first)) <= {0.0, 65536 / (65536 - round(p * 65536))}


@given(seed=seeds, p=P)
def test_the_mask_does_not_depend_on_the_shape(seed, p):
    masks = [to_host(ag.dropout(tensor(np.ones(shape)), p, stream=ag.RandomStream(seed)).data) for shape in ((24,), (4, 6), (2, 3, 4))]
    assert (masks[0] == masks[1].ravel()).all() and (masks[0] == masks[2].ravel()).all()


@given(seed=seeds, p=P, rows=st.integers(1, 6), first=st.integers(0, 5))
def test_parts_of_a_batch_see_the_masks_of_the_whole(seed, p, rows, first):
    x = np.random.default_rng(seed).standard_normal((6, 3, 4))
    q = np.random.default_rng(seed).standard_normal((6, 2, 5, 4))
    part = slice(first, min(6, first + rows))

    def both(stream, part):
        attended = ag.scaled_dot_product_attention(*(tensor(q[part]) for _ in range(3)), causal=True, dropout=p, stream=stream)
        return to_host(ag.dropout(tensor(x[part]), p, stream=stream).data), to_host(attended.data)

    stream = ag.RandomStream(seed)
    stream.first_row = first
    for found, whole in zip(both(stream, part), both(ag.RandomStream(seed), slice(None)), strict=True):
        assert_close(found, whole[part])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_mean_and_share_are_kept(p):
    n = 1 << 18
    y = to_host(ag.dropout(tensor(np.ones(n)), p, stream=ag.RandomStream(0)).data)
    share = (y == 0).mean()
    assert abs(share - p) < 6 * np.sqrt(p * (1 - p) / n)
    assert abs(y.mean() - 1) < 6 * np.sqrt(p / (1 - p) / n)


@given(seed=seeds, p=P, shape=shapes())
def test_backward_uses_the_same_mask(seed, p, shape):
    x = tensor(np.full(shape, 2.0))
    y = ag.dropout(x, p, stream=ag.RandomStream(seed))
    dy = np.random.default_rng(seed).standard_normal(shape)
    y.backward(dy)
    assert_close(x.grad, dy * to_host(y.data) / 2)


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True), (0.0, False)])
def test_identity_in_eval(p, training):
    x = tensor(np.ones((3, 4)))
    stream = ag.RandomStream(0)
    assert ag.dropout(x, p, training=training, stream=stream) is x
    assert stream.counter == 0


def test_without_a_stream_every_mask_is_another():
    x = tensor(np.ones(256))
    first, second = (to_host(ag.dropout(x, 0.5).data) for _ in range(2))
    assert (first != second).any()


def test_reading_a_stream():
    stream = ag.RandomStream(7)
    assert (stream.next_draw(), stream.next_draw()) == (0, 1)
    assert repr(stream) == "RandomStream(seed=7, counter=2)"


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize("training", [True, False])
def test_probabilities_out_of_range(p, training):
    with pytest.raises(ValueError, match=rf"dropout: dropout probability {p}, expected 0 <= p < 1; p is the share that is dropped"):
        ag.dropout(tensor([1.0]), p, training=training)


@pytest.mark.parametrize(("seed", "counter"), [(-1, 0), (0, -1)])
def test_streams_out_of_range(seed, counter):
    with pytest.raises(ValueError, match=rf"RandomStream: seed {seed}, counter {counter}, expected both >= 0"):
        ag.RandomStream(seed, counter)
