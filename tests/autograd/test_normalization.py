"""Laws and errors of layer norm and RMS norm."""

import numpy as np
import pytest
from hypothesis import given

import autograd as ag
from autograd.backend import to_host
from tests.autograd.checks import assert_close, tensor
from tests.strategies import seeds, shapes, spread

pytestmark = pytest.mark.usefixtures("each_kernel_mode")


@given(seed=seeds, shape=shapes(least=1))
def test_rows_have_mean_zero_and_variance_one(seed, shape):
    x = spread(np.random.default_rng(seed), shape)
    y = to_host(ag.layer_norm(tensor(x), tensor(np.ones(shape[-1])), tensor(np.zeros(shape[-1])), eps=1e-12).data)
    assert_close(y.mean(axis=-1), np.zeros(shape[:-1]))
    if shape[-1] > 1:
        np.testing.assert_allclose(y.var(axis=-1), 1.0, rtol=1e-9)


@given(seed=seeds, shape=shapes(least=1))
def test_gradient_rows_sum_to_zero_at_gamma_one(seed, shape):
    rng = np.random.default_rng(seed)
    x = tensor(spread(rng, shape))
    y = ag.layer_norm(x, tensor(np.ones(shape[-1])), tensor(rng.standard_normal(shape[-1])))
    y.backward(rng.standard_normal(shape))
    assert_close(to_host(x.grad).sum(axis=-1), np.zeros(shape[:-1]))


@given(seed=seeds, shape=shapes(least=1))
def test_shifts_of_a_row_change_nothing(seed, shape):
    rng = np.random.default_rng(seed)
    x, shift = spread(rng, shape), np.round(8 * rng.standard_normal((*shape[:-1], 1)))
    parameters = [tensor(rng.standard_normal(shape[-1])) for _ in range(2)]
    moved, still = (ag.layer_norm(tensor(array), *parameters).data for array in (x + shift, x))
    np.testing.assert_allclose(to_host(moved), to_host(still), rtol=1e-9, atol=1e-9)


def test_a_constant_row_gives_beta_and_no_gradient_blows_up():
    x = tensor(np.full((2, 4), 3.0))
    gamma, beta = tensor(np.full(4, 2.0)), tensor([1.0, 2.0, 3.0, 4.0])
    y = ag.layer_norm(x, gamma, beta)
    y.backward(np.ones((2, 4)))
    assert to_host(y.data).tolist() == [[1.0, 2.0, 3.0, 4.0]] * 2
    assert_close(x.grad, np.zeros((2, 4)))
    assert to_host(gamma.grad).tolist() == [0.0] * 4 and to_host(beta.grad).tolist() == [2.0] * 4


def test_large_values_keep_their_digits():
    x = np.array([[1e4, 1e4 + 1, 1e4 + 2, 1e4 + 3]], np.float32)
    y = ag.layer_norm(tensor(x), tensor(np.ones(4, np.float32)), tensor(np.zeros(4, np.float32)))
    right = (x - x.mean()) / np.sqrt(1.25 + 1e-5)  # mean(x^2) - mean(x)^2 would lose every digit here
    np.testing.assert_allclose(to_host(y.data), right, rtol=1e-5)


def test_errors():
    x, one = tensor(np.ones((2, 3))), tensor(np.ones(3))
    with pytest.raises(ValueError, match=r"layer_norm: gamma \(2,\) for x \(2, 3\), expected \(3,\); one per channel"):
        ag.layer_norm(x, tensor(np.ones(2)), one)
    with pytest.raises(ValueError, match=r"layer_norm: beta \(1, 3\) for x \(2, 3\), expected \(3,\); one per channel"):
        ag.layer_norm(x, one, tensor(np.ones((1, 3))))
    for empty in (tensor(np.ones((2, 0))), tensor(1.0)):
        with pytest.raises(ValueError, match=r"layer_norm: x of shape .*, expected a last axis of at least 1; nothing to normalize"):
            ag.layer_norm(empty, one, one)


# RMS norm ---------------------------------------------------------------------------------------------------------------------------


@given(seed=seeds, shape=shapes(least=1))
def test_rms_norm_rows_have_mean_square_one_and_ignore_their_scale(seed, shape):
    rng = np.random.default_rng(seed)
    x, scale = spread(rng, shape), np.exp(rng.standard_normal((*shape[:-1], 1)))
    y, again = (to_host(ag.rms_norm(tensor(array), eps=1e-14).data) for array in (x, scale * x))
    np.testing.assert_allclose((y * y).mean(axis=-1), 1.0, rtol=1e-9)
    np.testing.assert_allclose(again, y, rtol=1e-9, atol=1e-9)


@given(seed=seeds, shape=shapes(least=1))
def test_rms_norm_gradient_has_no_component_along_the_row(seed, shape):
    rng = np.random.default_rng(seed)
    x = tensor(spread(rng, shape))
    ag.rms_norm(x, tensor(rng.standard_normal(shape[-1])), eps=1e-14).backward(rng.standard_normal(shape))
    assert_close((to_host(x.grad) * to_host(x.data)).sum(axis=-1), np.zeros(shape[:-1]))


@given(seed=seeds, shape=shapes(least=1))
def test_an_offset_is_added_to_the_weight(seed, shape):
    rng = np.random.default_rng(seed)
    array, weight, dy = spread(rng, shape), rng.standard_normal(shape[-1]), rng.standard_normal(shape)
    results = []
    for offset in (0.0, 1.0):
        x, w = tensor(array), tensor(weight + 1 - offset)
        y = ag.rms_norm(x, w, offset=offset)
        y.backward(dy)
        results.append((y.data, x.grad, w.grad))
    for plain, moved in zip(*results, strict=True):
        assert_close(moved, to_host(plain))


def test_a_row_of_zeros_gives_zeros_and_a_finite_gradient():
    x, weight = tensor(np.zeros((2, 4))), tensor(np.full(4, 2.0))
    y = ag.rms_norm(x, weight, eps=1e-4)
    y.backward(np.ones((2, 4)))
    assert not to_host(y.data).any() and not to_host(weight.grad).any()
    assert_close(x.grad, np.full((2, 4), 200.0))  # weight / sqrt(eps)


def test_rms_norm_errors():
    x = tensor(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"rms_norm: weight \(2,\) for x \(2, 3\), expected \(3,\); one per channel"):
        ag.rms_norm(x, tensor(np.ones(2)))
    with pytest.raises(ValueError, match=r"rms_norm: offset 1.0 without a weight, expected 0; it is added to the weight"):
        ag.rms_norm(x, offset=1.0)
    for empty in (tensor(np.ones((2, 0))), tensor(1.0)):
        with pytest.raises(ValueError, match=r"rms_norm: x of shape .*, expected a last axis of at least 1; nothing to normalize"):
            ag.rms_norm(empty)
