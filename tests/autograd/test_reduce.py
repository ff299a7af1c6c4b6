"""Ties, infinities, axes and errors of the reductions."""

import numpy as np
import pytest

import autograd as ag
from autograd.backend import to_host
from autograd.testing import check_grads
from tests.autograd.checks import assert_close, tensor

REDUCTIONS = [ag.sum, ag.mean, ag.var, ag.max, ag.logsumexp]
NEED_ELEMENTS = [ag.mean, ag.var, ag.max, ag.logsumexp]


def test_max_shares_ties():
    x = tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]])
    y = x.max(axis=1)
    (y * np.array([4.0, 6.0])).sum().backward()
    assert to_host(y.data).tolist() == [3.0, 2.0]
    assert to_host(x.grad).tolist() == [[0.0, 2.0, 2.0], [2.0, 2.0, 2.0]]


def test_max_takes_ties_over_all_reduced_axes():
    x = tensor(np.full((2, 3), 7.0))
    x.max().backward()
    assert_close(x.grad, np.full((2, 3), 1 / 6))


def test_logsumexp_of_equal_values_shares():
    x = tensor([0.0, 0.0, 0.0, 0.0])
    y = ag.logsumexp(x)
    y.backward()
    assert_close(y.data, np.log(4.0))
    assert to_host(x.grad).tolist() == [0.25] * 4


def test_logsumexp_does_not_overflow_or_vanish():
    x = np.array([[1000.0, 1000.0], [-1000.0, -1000.0]])
    assert_close(ag.logsumexp(tensor(x), axis=1).data, x[:, 0] + np.log(2.0))


@pytest.mark.parametrize("keepdims", [False, True])
def test_logsumexp_of_nothing_is_minus_infinity_with_gradient_zero(keepdims):
    x = tensor([[-np.inf, -np.inf, -np.inf], [-np.inf, 0.0, 0.0]])
    y = ag.logsumexp(x, axis=1, keepdims=keepdims)
    y.sum().backward()
    assert to_host(y.data).reshape(-1).tolist() == [-np.inf, np.log(2.0)]
    assert to_host(x.grad).tolist() == [[0.0, 0.0, 0.0], [0.0, 0.5, 0.5]]


def test_var_of_equal_values_is_zero_with_gradient_zero():
    x = tensor([5.0, 5.0, 5.0])
    y = x.var()
    y.backward()
    assert y.item() == 0.0
    assert to_host(x.grad).tolist() == [0.0, 0.0, 0.0]


def test_var_divides_by_n_and_ignores_shifts():
    x = np.random.default_rng(0).standard_normal((4, 5))
    assert_close(ag.var(tensor(x), axis=0).data, x.var(axis=0))
    assert_close(ag.var(tensor(x + 100), axis=0).data, x.var(axis=0))
    assert_close(ag.var(tensor(x + 1e6), axis=0).data, (x + 1e6).var(axis=0))  # mean(x^2) - mean(x)^2 would keep 4 digits


@pytest.mark.parametrize("function", REDUCTIONS)
def test_axes_are_numpys(function):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    for axis, shape in ((None, ()), (1, (2, 4)), (-1, (2, 3)), ((0, 2), (3,)), ((-1, 0), (3,)), ((), (2, 3, 4)), ([0, 1], (4,))):
        assert function(tensor(x), axis=axis).shape == shape
    assert function(tensor(x), axis=(0, 2), keepdims=True).shape == (1, 3, 1)
    check_grads(lambda t: function(t, axis=(0, 2), keepdims=True) * t, x)


@pytest.mark.parametrize("function", REDUCTIONS)
def test_one_number_is_its_own_reduction(function):
    x = tensor(3.0)
    y = function(x)
    y.backward()
    assert y.item() == (0.0 if function is ag.var else 3.0)
    assert x.grad.shape == () and x.grad.item() == (0.0 if function is ag.var else 1.0)


def test_sum_of_nothing_is_zero():
    x = tensor(np.ones((0, 3)))
    y = x.sum(axis=0)
    y.sum().backward()
    assert y.data.tolist() == [0.0, 0.0, 0.0] and x.grad.shape == (0, 3)


@pytest.mark.parametrize("function", NEED_ELEMENTS)
@pytest.mark.parametrize("axis", [None, 0, (0, 1)])
def test_reducing_nothing(function, axis):
    with pytest.raises(
        ValueError, match=rf"{function.__name__}: shape \(0, 3\) has no elements along axis .*, expected at least one; skip"
    ):
        function(tensor(np.ones((0, 3))), axis=axis)
    assert function(tensor(np.ones((0, 3))), axis=1).shape == (0,)


@pytest.mark.parametrize("function", REDUCTIONS)
def test_axes_that_do_not_exist(function):
    x = tensor(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"axis: 2, expected -2 <= axis < 2 for an array of 2 dimensions"):
        function(x, axis=2)
    with pytest.raises(ValueError, match=r"axis: -3, expected -2 <= axis < 2"):
        function(x, axis=(0, -3))
    with pytest.raises(ValueError, match=r"axis: \(1, -1\) names an axis twice, expected each once"):
        function(x, axis=(1, -1))
    with pytest.raises(TypeError, match="integer"):
        function(x, axis=1.0)
