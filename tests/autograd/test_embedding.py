"""Look-ups: repeated ids, ids out of range."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd.backend import to_host
from tests.autograd.checks import assert_close, tensor
from tests.strategies import seeds

WEIGHT = np.arange(8.0).reshape(4, 2)


def test_repeated_ids_accumulate_and_others_stay_zero():
    weight = tensor(WEIGHT)
    y = ag.embedding(weight, np.array([[1, 3], [1, 1]]))
    assert y.shape == (2, 2, 2)
    y.backward(np.arange(1.0, 9.0).reshape(2, 2, 2))
    assert to_host(weight.grad).tolist() == [[0.0, 0.0], [1.0 + 5 + 7, 2.0 + 6 + 8], [0.0, 0.0], [3.0, 4.0]]


@given(seed=seeds, n=st.integers(0, 300))
def test_gradient_is_the_one_hot_product(seed, n):
    rng = np.random.default_rng(seed)
    ids, dy = rng.integers(0, 7, n), rng.standard_normal((n, 3))
    weight = tensor(np.zeros((7, 3)))
    ag.embedding(weight, ids).backward(dy)
    assert_close(weight.grad, np.eye(7)[ids].T @ dy)


@pytest.mark.parametrize("ids", [2, [2, 0], np.array([2, 0], np.uint8), np.array([], np.int32), [], np.zeros((0, 5))])
def test_ids_of_every_kind(ids):
    weight = tensor(WEIGHT)
    y = ag.embedding(weight, ids)
    assert_close(y.data, WEIGHT[np.array(ids, int)])
    y.sum().backward()
    assert weight.grad.shape == WEIGHT.shape


@pytest.mark.parametrize(("ids", "place", "bad"), [([0, 4], r"\(1,\)", 4), ([[0, 1], [-1, 9]], r"\(1, 0\)", -1), (7, r"\(\)", 7)])
def test_ids_out_of_range(ids, place, bad):
    message = rf"embedding id: {bad} at position {place}, expected 0 <= id < 4; do the ids come from the tokenizer that the model was built"
    with pytest.raises(ValueError, match=message):
        ag.embedding(tensor(WEIGHT), ids)


def test_errors():
    with pytest.raises(TypeError, match=r"embedding id: float64 values, expected integers; convert with .astype\(int\)"):
        ag.embedding(tensor(WEIGHT), [1.0])
    with pytest.raises(TypeError, match="embedding: ids as a Tensor, expected host integers; pass the NumPy array itself"):
        ag.embedding(tensor(WEIGHT), tensor([1], requires_grad=False))
    with pytest.raises(ValueError, match=r"embedding: weight of shape \(2,\), expected \(V, C\); one row per id"):
        ag.embedding(tensor(WEIGHT[0]), [1])
