"""Kinks, ties, dtypes and errors of the elementwise ops. Their values and gradients elsewhere: test_ops.py."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd.backend import to_host
from autograd.testing import check_grads
from tests.autograd.checks import assert_close, numpy_only, tensor

BINARY = [ag.add, ag.subtract, ag.multiply, ag.divide, ag.maximum]


def gradients(function, *values):
    tensors = [tensor(np.array(v, dtype=float)) for v in values]
    function(*tensors).sum().backward()
    return [to_host(t.grad) for t in tensors]


def test_sqrt_at_zero_has_gradient_zero():
    (dx,) = gradients(ag.sqrt, [0.0, 4.0])
    assert dx.tolist() == [0.0, 0.25]


def test_norm_at_the_origin_has_gradient_zero():
    (dx,) = gradients(lambda x: ag.sqrt((x * x).sum()), [0.0, 0.0, 0.0])
    assert dx.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("exponent", [0.5, 0.25])
def test_a_root_written_as_a_power_has_gradient_zero_at_zero(exponent):
    (dx,) = gradients(lambda x: x**exponent, [0.0, 1.0])
    assert dx.tolist() == [0.0, exponent]
    (dx,) = gradients(lambda x: (x * x).sum() ** exponent, [0.0, 0.0])
    assert dx.tolist() == [0.0, 0.0]


def test_relu_at_zero_has_gradient_zero():
    (dx,) = gradients(ag.relu, [-1.0, 0.0, -0.0, 2.0])
    assert dx.tolist() == [0.0, 0.0, 0.0, 1.0]


def test_maximum_shares_ties():
    da, db = gradients(ag.maximum, [1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    assert da.tolist() == [0.0, 0.5, 1.0]
    assert db.tolist() == [1.0, 0.5, 0.0]


def test_maximum_with_a_number_is_relu():
    x = np.linspace(-2, 2, 7)
    assert_close(ag.maximum(tensor(x), 0).data, np.where(x > 0, x, 0))
    (dx,) = gradients(lambda x: ag.maximum(0.0, x), x)
    assert dx.tolist() == [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("exponent", [0, 0.0])
def test_power_zero_has_gradient_zero_everywhere(exponent):
    (dx,) = gradients(lambda x: x**exponent, [-1.0, 0.0, 3.0])
    assert dx.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("exponent", [1, 2, 3, 4])
def test_whole_powers_at_zero(exponent):
    y, (dx,) = tensor([0.0]) ** exponent, gradients(lambda x: x**exponent, [0.0])
    assert y.item() == 0.0
    assert dx.tolist() == [1.0 if exponent == 1 else 0.0]


@numpy_only
def test_log_of_zero_says_so():
    with pytest.raises(FloatingPointError, match="divide by zero"):
        ag.log(tensor([0.0]))


def test_sigmoid_and_tanh_do_not_overflow():
    x = np.array([-1e4, -40.0, 0.0, 40.0, 1e4])
    assert to_host(ag.sigmoid(tensor(x)).data)[[0, 2, 4]].tolist() == [0.0, 0.5, 1.0]
    assert to_host(ag.tanh(tensor(x)).data)[[0, 2, 4]].tolist() == [-1.0, 0.0, 1.0]


@pytest.mark.usefixtures("each_kernel_mode")
@given(x=st.floats(-6, 6))
def test_gelu_is_near_the_exact_form(x: float):
    exact = 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
    assert abs(ag.gelu(tensor([x])).item() - exact) < 5e-4  # the tanh form's own error, Hendrycks and Gimpel 2016


@pytest.mark.usefixtures("each_kernel_mode")
def test_gelu_far_out_is_zero_or_the_identity():
    y = tensor([-100.0, 0.0, 100.0])
    out = ag.gelu(y)
    out.sum().backward()
    assert to_host(out.data).tolist() == [0.0, 0.0, 100.0]
    assert to_host(y.grad).tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("function", BINARY)
@pytest.mark.parametrize("number", [2, 0.5, True])
def test_python_numbers_do_not_change_the_dtype(function, number):
    x = tensor(np.ones(3, np.float32))
    for y in (function(x, number), function(number, x)):
        assert y.dtype == np.float32
        y.sum().backward()
    assert x.grad.dtype == np.float32


@pytest.mark.parametrize("function", BINARY)
def test_float64_arrays_promote_and_gradients_come_back_as_float32(function):
    x = tensor(np.full(3, 2.0, np.float32))
    y = function(x, np.full(3, 3.0))
    assert y.dtype == np.float64
    y.sum().backward()
    assert x.grad.dtype == np.float32


@numpy_only
def test_cast_rounds_forward_and_passes_gradients_back_in_the_old_dtype():
    x = tensor([1.0, 1.0 + 2.0**-30])
    y = ag.cast(x, "float32")
    assert y.dtype == np.float32 and y.data.tolist() == [1.0, 1.0]
    (y * np.array([2.0, 3.0], np.float32)).sum().backward()
    assert x.grad.dtype == np.float64 and x.grad.tolist() == [2.0, 3.0]
    assert ag.cast(x, np.float64) is x


@pytest.mark.parametrize("dtype", ["int64", bool])
def test_cast_to_what_carries_no_gradient(dtype):
    with pytest.raises(
        TypeError, match=r"cast: to (int64|bool), expected a floating-point dtype of the .* backend; use .data.astype for others"
    ):
        ag.cast(tensor([1.0]), dtype)


def test_integers_divide_to_floats():
    assert (tensor([1, 2], requires_grad=False) / 2).data.tolist() == [0.5, 1.0]


def test_one_tensor_on_both_sides():
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 2, (3, 4))
    for function in (lambda t: t * t, lambda t: t + t, lambda t: t - t, lambda t: t / t, lambda t: t @ t.T, lambda t: t.T @ t):
        check_grads(function, x)
    check_grads(lambda t: ag.where(np.eye(4, dtype=bool)[:3], t, t * t), x)


@pytest.mark.parametrize("function", BINARY)
@pytest.mark.parametrize("bad", [None, "text", b"bytes", 1j])
def test_operands_that_are_no_numbers(function, bad):
    message = f"{function.__name__}: an operand of type {type(bad).__name__}, expected a Tensor, array or number; convert it first"
    with pytest.raises(TypeError, match=message):
        function(tensor([1.0]), bad)


@pytest.mark.parametrize("exponent", [ag.Tensor([1.0]), np.ones(2), "2", None], ids=["tensor", "array", "text", "None"])
def test_power_of_a_variable_exponent(exponent):
    with pytest.raises(TypeError, match=r"power: an exponent of type .*, expected a Python number; .*use exp\(b \* log\(a\)\)"):
        ag.power(tensor([1.0, 2.0]), exponent)


@pytest.mark.parametrize("condition", [[0, 1], [0.0, 1.0], ag.Tensor([0.0, 1.0])], ids=["integers", "floats", "tensor"])
def test_where_wants_booleans(condition):
    with pytest.raises(TypeError, match=r"where: a condition of dtype (int64|float64), expected bool; compare first"):
        ag.where(condition, tensor([1.0, 2.0]), 0.0)


def test_where_takes_comparisons_and_lists():
    x = tensor([-1.0, 2.0])
    assert ag.where(x > 0, x, 0.0).data.tolist() == [0.0, 2.0]
    assert ag.where([True, False], x, 5).data.tolist() == [-1.0, 5.0]


def test_where_stops_gradients_of_what_was_not_chosen():
    x = tensor([0.0, 4.0])
    y = ag.where(x > 0, ag.sqrt(x), x)
    y.sum().backward()
    assert to_host(x.grad).tolist() == [1.0, 0.25]


@pytest.mark.parametrize("function", BINARY)
def test_shapes_that_do_not_broadcast(function):
    with pytest.raises(ValueError, match="broadcast"):
        function(tensor(np.ones((2, 3))), tensor(np.ones((2, 4))))
