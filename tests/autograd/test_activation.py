"""Laws, kinks, large numbers, masked rows and errors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd import backend, nn
from autograd.backend import to_host
from autograd.ops.activation import ACTIVATIONS
from tests.autograd.checks import assert_close, numpy_only, tensor
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


# Activations ------------------------------------------------------------------------------------------------------------------------

names = st.sampled_from(sorted(ACTIVATIONS))


@given(seed=seeds, shape=shapes(), name=st.sampled_from(["gelu", "gelu_exact", "silu"]))
def test_what_a_number_and_its_opposite_give_differs_by_the_number(seed, shape, name):
    """x P(x) with P(x) + P(-x) = 1."""
    x = 3 * np.random.default_rng(seed).standard_normal(shape)
    f = nn.activation(name)
    assert_close(to_host(f(tensor(x)).data) - to_host(f(tensor(-x)).data), x)


def test_the_two_forms_of_gelu_are_close_and_not_the_same():
    x = tensor(np.linspace(-6, 6, 1001))
    differences = np.abs(to_host(ag.gelu(x).data) - to_host(ag.gelu_exact(x).data))
    assert 4e-4 < differences.max() < 5e-4


@pytest.mark.exact
def test_gelu_takes_its_form_as_pytorch_does():
    x = tensor(np.linspace(-6, 6, 1001, dtype=np.float32))
    for approximate, function in (("tanh", ag.gelu), ("none", ag.gelu_exact)):
        assert to_host(ag.gelu(x, approximate).data).tobytes() == to_host(function(x).data).tobytes()
    with pytest.raises(ValueError, match=r'gelu: approximate \'erf\', expected "tanh" or "none"; "none" is the exact form, with erf'):
        ag.gelu(x, "erf")


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_activations_of_large_numbers_are_the_number_or_zero(name, dtype):
    x = tensor(np.array([-1e4, -50, 50, 1e4], dtype))
    y = nn.activation(name)(x)
    y.backward(np.ones(4))
    expected = np.array([0, 0, 2500, 1e8] if name == "squared_relu" else [0, 0, 50, 1e4])
    np.testing.assert_allclose(to_host(y.data), expected, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(to_host(x.grad), [0, 0, 100, 2e4] if name == "squared_relu" else [0, 0, 1, 1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_exact_gelu_keeps_digits_where_it_is_nearly_zero(dtype, request):
    if "reference" in request.node.name or backend.name == "cupy":  # without a kernel of its own
        pytest.skip("1 + erf rounds them away, in PyTorch too")
    x = tensor(np.array([-3.0, -4.0], dtype))
    np.testing.assert_allclose(to_host(ag.gelu_exact(x).data), [-4.04969e-03, -1.266850e-04], rtol=1e-5)


def test_slopes_at_zero():
    for name, slope in {"relu": 0, "squared_relu": 0, "gelu": 0.5, "gelu_exact": 0.5, "silu": 0.5}.items():
        x = tensor(np.zeros(3))
        y = nn.activation(name)(x)
        y.backward(np.ones(3))
        assert to_host(y.data).tolist() == [0, 0, 0], name
        assert_close(x.grad, np.full(3, slope))


@given(seed=seeds, shape=shapes(), name=names)
def test_a_gated_product_is_the_product_with_the_activation(seed, shape, name):
    rng = np.random.default_rng(seed)
    arrays, dy = [rng.standard_normal(shape) for _ in range(2)], rng.standard_normal(shape)
    results = []
    for function in (lambda gate, up: nn.activation(name)(gate) * up, lambda gate, up: ag.gated_product(gate, up, name)):
        gate, up = (tensor(a) for a in arrays)
        y = function(gate, up)
        y.backward(dy)
        results.append((y.data, gate.grad, up.grad))
    for plain, fused in zip(*results, strict=True):
        assert_close(fused, to_host(plain))


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_a_gated_product_with_a_frozen_input(needs):
    gate, up = (tensor(np.ones((2, 3)), need) for need in needs)
    ag.gated_product(gate, up).backward(np.ones((2, 3)))
    assert (gate.grad is not None, up.grad is not None) == needs


def test_gated_product_errors():
    one = tensor(np.ones((2, 3)))
    with pytest.raises(
        ValueError, match=r"gated_product: gate \(2, 3\) with up \(3,\), expected one shape; are both of the layer's inner width?"
    ):
        ag.gated_product(one, tensor(np.ones(3)))
    with pytest.raises(ValueError, match=r"gated_product: activation: 'swish', expected one of relu, gelu, gelu_exact, silu, squared_relu"):
        ag.gated_product(one, one, "swish")


@given(seed=seeds, shape=shapes(), cap=st.sampled_from([0.5, 1, 30.0]))
def test_soft_cap_keeps_small_numbers_and_bounds_large_ones(seed, shape, cap):
    x = np.random.default_rng(seed).standard_normal(shape)
    y = to_host(ag.soft_cap(tensor(100 * cap * x), cap).data)
    assert (np.abs(y) <= cap).all()
    small = 1e-4 * cap * x
    np.testing.assert_allclose(to_host(ag.soft_cap(tensor(small), cap).data), small, rtol=1e-6)


@pytest.mark.parametrize("cap", [0, -1.0, np.inf, np.nan])
def test_soft_cap_errors(cap):
    with pytest.raises(ValueError, match=r"soft_cap: cap .*, expected a positive number; leave the op out for no bound"):
        ag.soft_cap(tensor(np.ones(2)), cap)


@numpy_only
@pytest.mark.parametrize("by", ["logistic_by_tanh", "logistic_by_exp"])
def test_the_logistic_function_both_ways_is_exact_to_float32(by):
    from autograd.kernels.cpu import activation

    a = np.linspace(-200, 200, 100_001).astype(np.float32)
    z = a * np.float32(0.5 if by == "logistic_by_tanh" else -1)
    with np.errstate(all="raise", under="ignore"):
        getattr(activation, by)(z)
    exact = 1 / (1 + np.exp(-a.astype(np.float64)))
    assert np.abs(z - exact).max() <= 2**-23
    if by == "logistic_by_exp":  # also relative to small values
        normal = exact > 1e-37
        assert np.abs(z / exact - 1)[normal].max() < 1e-6
