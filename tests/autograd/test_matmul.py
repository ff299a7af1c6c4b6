"""Products of every rank that NumPy allows, and errors."""

import contextlib

import numpy as np
import pytest

import autograd as ag
from autograd import inference
from autograd.backend import to_device, to_host
from autograd.ops.matmul import Linear
from autograd.testing import check_grads
from tests.autograd.checks import assert_close, numpy_only, ops_in, tensor

pytestmark = pytest.mark.usefixtures("each_kernel_mode")

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3,), (3,)),
        ((3,), (3, 4)),
        ((2, 3), (3,)),
        ((2, 3), (3, 4)),
        ((3,), (5, 3, 4)),
        ((5, 2, 3), (3,)),
        ((5, 2, 3), (3, 4)),
        ((2, 3), (5, 3, 4)),
        ((6, 1, 2, 3), (5, 3, 4)),
        ((1, 5, 2, 3), (6, 1, 3, 4)),
        ((0, 2, 3), (3, 4)),
        ((0, 3), (3, 4)),
        ((2, 0), (0, 4)),
    ],
)
def test_ranks_are_numpys(a, b):
    x, y = RNG.standard_normal(a), RNG.standard_normal(b)
    assert_close((tensor(x) @ tensor(y)).data, x @ y)
    check_grads(lambda s, t: s @ t, x, y)


def test_arrays_on_either_side():
    x, y = RNG.standard_normal((2, 3)), RNG.standard_normal((3, 2))
    assert_close((to_device(x) @ tensor(y)).data, x @ y)
    assert_close((tensor(x) @ y).data, x @ y)
    assert_close(ag.matmul(x.tolist(), y.tolist()).data, x @ y)


def test_batch_times_matrix_is_one_product():
    y = tensor(RNG.standard_normal((5, 2, 3))) @ tensor(RNG.standard_normal((3, 4)))
    assert [issubclass(op, Linear) for op in ops_in(y)] == [True]


def test_linear_without_bias():
    x, weight = RNG.standard_normal((5, 2, 3)), RNG.standard_normal((3, 4))
    assert_close(ag.linear(tensor(x), tensor(weight)).data, x @ weight)


@pytest.mark.parametrize("rows", [(1,), (64,), (65,), (2, 90)])
@pytest.mark.parametrize("recording", [True, False])
def test_linear_of_few_and_many_rows_with_and_without_gradients(rows, recording):
    x, weight, bias = RNG.standard_normal((*rows, 30)), RNG.standard_normal((30, 700)), RNG.standard_normal(700)
    with contextlib.nullcontext() if recording else ag.no_grad():
        assert_close(ag.linear(tensor(x), tensor(weight), tensor(bias)).data, x @ weight + bias)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda x: x @ x,
            r"matmul: shapes \(2, 3\) and \(2, 3\), expected \(..., n, k\) and \(..., k, m\)",
        ),
        (lambda x: x @ np.ones(2), r"matmul: shapes \(2, 3\) and \(2,\)"),
        (lambda x: x @ 2.0, r"matmul: shapes \(2, 3\) and \(\), expected at least one axis each; use \* for numbers"),
        (lambda x: 2.0 @ x, r"matmul: shapes \(\) and \(2, 3\)"),
        (
            lambda x: ag.linear(x, x),
            r"linear: x \(2, 3\) with weight \(2, 3\), expected \(..., in\) with \(in, out\); transpose the weight",
        ),
        (lambda x: ag.linear(x, x[0]), r"linear: x \(2, 3\) with weight \(3,\)"),
        (lambda x: ag.linear(x[0, 0], x), r"linear: x \(\) with weight \(2, 3\)"),
        (lambda x: ag.linear(x, x.T, x[0]), r"linear: bias \(3,\) with weight \(3, 2\), expected \(2,\); one bias per output"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(tensor(np.ones((2, 3))))


def test_operands_that_are_no_numbers():
    with pytest.raises(TypeError, match="matmul: an operand of type str"):
        ag.matmul(tensor([1.0]), "text")


@pytest.mark.exact
@pytest.mark.parametrize("n_rows", [1, 2, 9, 31, 64, 65, 200])
@pytest.mark.parametrize(("n_in", "n_out"), [(16, 16), (96, 100), (300, 770)])
def test_a_product_of_few_rows_is_the_same_bits_recorded_or_not(n_rows, n_in, n_out):
    x, weight, bias = (RNG.standard_normal(shape).astype(np.float32) for shape in ((n_rows, n_in), (n_in, n_out), n_out))
    recorded = to_host(ag.linear(*(ag.Tensor(a, requires_grad=True) for a in (x, weight, bias))).data)
    with ag.no_grad():
        np.testing.assert_array_equal(to_host(ag.linear(*map(ag.Tensor, (x, weight, bias))).data), recorded)
    with inference.mode():
        found = ag.linear(ag.Tensor(x, requires_grad=True), ag.Tensor(weight), ag.Tensor(bias))
    assert not found.requires_grad
    np.testing.assert_allclose(to_host(found.data), recorded, rtol=1e-4, atol=1e-4)


@numpy_only
def test_the_report_of_a_product_with_a_vector_is_not_trusted():
    """OpenBLAS may report an invalid value where there is none; one that is there is seen in the product."""
    from autograd.kernels.cpu.parallel import times_vector

    infinite = np.array([[np.inf, 1.0], [1.0, 2.0]], dtype=np.float32)
    with pytest.raises(FloatingPointError, match="invalid"):
        infinite @ np.array([0.0, 1.0], dtype=np.float32)
    np.testing.assert_array_equal(times_vector(infinite, np.array([0.0, 1.0], dtype=np.float32)), [np.nan, 2.0])
