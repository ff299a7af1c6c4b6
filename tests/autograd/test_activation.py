"""Laws, masked rows and errors of softmax and log-softmax."""

import numpy as np
import pytest
from hypothesis import given

import autograd as ag
from autograd.backend import to_host
from tests.autograd.checks import assert_close, tensor
from tests.strategies import seeds, shapes

pytestmark = pytest.mark.usefixtures("each_kernel_mode")


@given(seed=seeds, shape=shapes(least=1))
def test_softmax_rows_sum_to_one_and_ignore_shifts(seed, shape):
    rng = np.random.default_rng(seed)
    x = 3 * rng.standard_normal(shape)
    y = to_host(ag.softmax(tensor(x)).data)
    assert (y > 0).all()
    assert_close(y.sum(axis=-1), np.ones(shape[:-1]))
    for shift in (1e3, -1e3, rng.standard_normal((*shape[:-1], 1))):
        moved, still = (ag.softmax(tensor(array)).data for array in (x + shift, (x + shift) - shift))
        assert_close(moved, to_host(still))


@given(seed=seeds, shape=shapes(least=1))
def test_softmax_and_log_softmax_gradients_sum_to_zero_along_rows(seed, shape):
    rng = np.random.default_rng(seed)
    dy = rng.standard_normal(shape)
    for function in (ag.softmax, ag.log_softmax):
        x = tensor(3 * rng.standard_normal(shape))
        function(x).backward(dy)
        assert_close(to_host(x.grad).sum(axis=-1), np.zeros(shape[:-1]))


@given(seed=seeds, shape=shapes(least=1))
def test_exp_of_log_softmax_is_softmax(seed, shape):
    x = 3 * np.random.default_rng(seed).standard_normal(shape)
    assert_close(np.exp(to_host(ag.log_softmax(tensor(x)).data)), to_host(ag.softmax(tensor(x)).data))


def test_log_softmax_keeps_what_softmax_rounds_to_zero():
    x = tensor([[0.0, -2000.0]])
    assert to_host(ag.softmax(x).data).tolist() == [[1.0, 0.0]]
    assert to_host(ag.log_softmax(x).data).tolist() == [[0.0, -2000.0]]


def test_a_fully_masked_row_gives_zero_and_gradient_zero():
    x = tensor([[-np.inf, -np.inf, -np.inf], [-np.inf, 1.0, 1.0]])
    y = ag.softmax(x)
    y.backward(np.array([[1.0, 2.0, 3.0], [5.0, 1.0, 2.0]]))
    assert to_host(y.data).tolist() == [[0.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    assert to_host(x.grad).tolist() == [[0.0, 0.0, 0.0], [0.0, -0.25, 0.25]]


def test_log_softmax_with_masked_entries():
    x = tensor([[-np.inf, 0.0, 0.0]])
    y = ag.log_softmax(x)
    y.backward(np.array([[0.0, 1.0, 0.0]]))
    assert_close(y.data, np.array([[-np.inf, -np.log(2.0), -np.log(2.0)]]))
    assert_close(x.grad, np.array([[0.0, 0.5, -0.5]]))


def test_large_scores_do_not_overflow():
    x = tensor(np.array([[1e4, 1e4, -1e4]], np.float32))
    assert to_host(ag.softmax(x).data).tolist() == [[0.5, 0.5, 0.0]]


@pytest.mark.parametrize("function", [ag.softmax, ag.log_softmax])
def test_errors(function):
    with pytest.raises(
        ValueError, match=rf"{function.__name__}: shape \(2, 0\) has length 0 along axis -1, expected at least 1; skip empty"
    ):
        function(tensor(np.ones((2, 0))))
    with pytest.raises(ValueError, match=r"axis: 2, expected -2 <= axis < 2"):
        function(tensor(np.ones((2, 3))), axis=2)
