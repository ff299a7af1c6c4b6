"""The checker is checked: a broken backward must fail it, a right one pass, whatever the seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd.backend import to_host, xp
from autograd.ops.activation import Softmax
from autograd.ops.elementwise import Multiply
from autograd.ops.matmul import MatMul
from autograd.ops.normalization import LayerNorm
from autograd.testing import check_grads, nodes_of, protected
from tests.autograd.checks import numpy_only, tensor
from tests.strategies import nonzero, normal, positive, seeds, shapes

WRONG = "the gradient of this input is wrong"


def op(forward, backward):
    """An op from two functions."""
    return type("Sample", (ag.Op,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def layer_norm_backward(saved, dy, *, without_mean=False, without_projection=False, wrong_mean=False):
    n, r, gamma = saved
    q = gamma * dy
    dx = q.copy()
    if not without_mean:
        dx -= q.mean(axis=0 if wrong_mean else -1, keepdims=True)
    if not without_projection:
        dx -= n * (q * n).mean(axis=-1, keepdims=True)
    return r * dx, (dy * n).sum(axis=0), dy.sum(axis=0)


def rows(seed=0, shape=(5, 4)):
    rng = np.random.default_rng(seed)
    return rng.standard_normal(shape), rng.standard_normal(shape[-1]), rng.standard_normal(shape[-1])


@given(seed=seeds)
def test_right_gradients_pass(seed):
    rng = np.random.default_rng(seed)
    check_grads(op(LayerNorm.forward, layer_norm_backward).apply, *rows(), seed=seed)
    check_grads(lambda x: ag.exp(x) * x, normal(rng, (3, 4)), seed=seed)
    check_grads(lambda x: ag.split(x, 2), normal(rng, (3, 4)), seed=seed)
    check_grads(lambda x, y: (x / y, ag.log(y), x), normal(rng, (3, 4)), positive(rng, (4,)), seed=seed)


@pytest.mark.parametrize("flaw", ["without_mean", "without_projection", "wrong_mean"])
@given(seed=seeds)
def test_layer_norm_with_a_term_missing_or_a_mean_over_the_wrong_axis(flaw, seed):
    broken = op(LayerNorm.forward, lambda saved, dy: layer_norm_backward(saved, dy, **{flaw: True}))
    with pytest.raises(
        AssertionError, match=r"check_grads: input 0 of shape \(5, 4\): backward says .*, expected .* by central difference"
    ):
        check_grads(broken.apply, *rows(), seed=seed)


@given(seed=seeds)
def test_a_gradient_that_is_right_for_ones_only(seed):
    """With dy = 1 a softmax has gradient 0, so a backward that always says 0 would pass a check seeded with ones."""
    silent = op(lambda x: (Softmax.forward(x, axis=-1)[0], None), lambda saved, dy: 0 * dy)
    with pytest.raises(AssertionError, match=WRONG):
        check_grads(silent.apply, rows()[0], seed=seed)
    forgets_dy = op(lambda x: (xp.exp(x), xp.exp(x)), lambda y, dy: y)
    with pytest.raises(AssertionError, match=WRONG):
        check_grads(forgets_dy.apply, rows()[0], seed=seed)


@given(seed=seeds)
def test_a_transposed_product(seed):
    x = np.random.default_rng(seed).standard_normal((2, 4, 4))

    def backward(saved, dy):
        a, b = saved
        return xp.matmul(dy, b), xp.matmul(a.swapaxes(-1, -2), dy)

    broken = op(lambda a, b: (xp.matmul(a, b), (a, b)), backward)
    with pytest.raises(AssertionError, match=r"input 0 of shape \(4, 4\)"):
        check_grads(broken.apply, x[0], x[1], seed=seed)
    check_grads(MatMul.apply, x[0], x[1], seed=seed)


@given(seed=seeds, factor=st.sampled_from([-1.0, 0.0, 0.999, 1.001, 2.0]))
def test_a_factor(seed, factor):
    broken = op(lambda x: (x * x, x), lambda x, dy: 2 * factor * x * dy)
    with pytest.raises(AssertionError, match=WRONG):
        check_grads(broken.apply, nonzero(np.random.default_rng(seed), (3, 4)), seed=seed)


@given(seed=seeds)
def test_the_broken_input_is_named(seed):
    broken = op(lambda a, b: (a * b, (a, b)), lambda saved, dy: (dy * saved[1], dy))
    with pytest.raises(AssertionError, match=r"check_grads: input 1 of shape \(4,\)"):
        check_grads(broken.apply, rows()[0], nonzero(np.random.default_rng(seed), (4,)), seed=seed)


@given(seed=seeds, shape=shapes(least=1, most=2))
def test_one_wrong_element_of_many(seed, shape):
    rng = np.random.default_rng(seed)
    factor = np.ones(shape)
    factor[tuple(rng.integers(n) for n in shape)] = -1.0
    x = nonzero(rng, shape)
    dropped = op(lambda x: (x * x, x), lambda x, dy: 2 * ag.Tensor(factor).data * x * dy)
    with pytest.raises(AssertionError, match=WRONG):
        check_grads(dropped.apply, x, seed=seed, n_directions=4)


def test_writing_into_dy():
    def backward(saved, dy):
        dy *= 2
        return dy

    with pytest.raises((AssertionError, ValueError), match=r"read-only|written to"):
        check_grads(op(lambda x: (2 * x, None), backward).apply, np.ones((2, 3)))


def test_writing_into_saved_arrays():
    def backward(x, dy):
        x *= dy
        return x

    with pytest.raises((AssertionError, ValueError), match=r"read-only|written to"):
        check_grads(op(lambda x: (0.5 * x * x, x.copy()), backward).apply, np.ones((2, 3)))


def test_writing_into_an_input():
    def forward(x):
        x *= 2
        return x, None

    with pytest.raises((AssertionError, ValueError), match=r"read-only|written to"):
        check_grads(op(forward, lambda saved, dy: 2 * dy).apply, np.ones((2, 3)))


@pytest.mark.parametrize(
    "backward", [lambda s, dy: dy[:1], lambda s, dy: dy.sum(), lambda s, dy: dy.T], ids=["rows", "scalar", "transposed"]
)
def test_a_wrong_shape(backward):
    with pytest.raises(RuntimeError, match=r"Sample.backward: a gradient of shape .* for input 0 of shape \(2, 3\)"):
        check_grads(op(lambda x: (x + 0, None), backward).apply, np.ones((2, 3)))


def test_a_wrong_dtype():
    drags_up = op(lambda x: (x + 0, None), lambda saved, dy: dy * xp.ones(3))  # float64 ones
    message = r"check_grads: Sample.backward: gradient of input 0 is float64, expected float32 like the input; a NumPy scalar"
    with pytest.raises(AssertionError, match=message):
        check_grads(drags_up.apply, np.ones((2, 3), np.float32))
    check_grads(drags_up.apply, np.ones((2, 3)))


def test_promotion_in_the_forward_pass_is_no_wrong_dtype():
    check_grads(lambda x: x * np.ones(3), np.ones((2, 3), np.float32))


def test_an_unused_input():
    with pytest.raises(AssertionError, match=r"check_grads: input 1 of shape \(3,\) got no gradient, expected one; does fn use it?"):
        check_grads(lambda x, y: x * 2, np.ones(2), np.ones(3))


@pytest.mark.parametrize("arrays", [(np.ones(2), np.ones(2, np.float32)), (np.ones(2, int),), (np.ones(2, np.float16),)])
def test_dtypes_that_it_does_not_take(arrays):
    with pytest.raises(TypeError, match=r"check_grads: inputs of dtypes .*, expected all float64 \(or all float32\); convert them first"):
        check_grads(lambda *xs: xs[0] * 2, *arrays)


def test_float32_finds_gross_errors():
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    check_grads(ag.tanh, x)
    with pytest.raises(AssertionError, match=WRONG):
        check_grads(op(lambda x: (xp.tanh(x), None), lambda saved, dy: dy).apply, x)


def test_the_seed_decides_and_inputs_are_left_alone():
    seen = []

    def record(x):
        seen.append(to_host(x.data).copy())
        return x * x

    x = np.ones((2, 3))
    for seed in (0, 0, 1):
        check_grads(record, x, seed=seed)
    n = len(seen) // 3
    first, again, other = seen[:n], seen[n : 2 * n], seen[2 * n :]
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    assert (x == 1).all() and x.flags.writeable


def test_no_elements_to_check():
    check_grads(lambda x: x * 2, np.ones((0, 3)))


@numpy_only
def test_protected_thaws_views_and_repeats():
    base = np.zeros(4)
    view = base[::2]
    with protected(view, base, base, view):
        for array in (base, view):
            with pytest.raises(ValueError, match="read-only"):
                array[0] = 1
    base[0] = view[1] = 1
    frozen = np.zeros(2)
    frozen.flags.writeable = False
    with protected(frozen):
        pass
    assert not frozen.flags.writeable


def test_protected_compares_what_cannot_be_locked():
    class DeviceArray:  # stands for an array of a library without a read-only flag
        def __init__(self, values):
            self.values, self.shape = np.array(values), (len(values),)

        def __array__(self, dtype=None, copy=None):
            return self.values

    array = DeviceArray([1.0, np.nan])
    with protected(array):
        pass
    with (
        pytest.raises(AssertionError, match=r"protected: an array of shape \(2,\) was written to, expected no change; work on a copy"),
        protected(array),
    ):
        array.values[0] = 2.0


def test_nodes_of_lists_the_graph_newest_first():
    x = tensor([1.0, 2.0])
    y = x * x
    z = ag.exp(y) + y
    nodes = nodes_of(z, y)
    assert [node.op.__name__ for node in nodes] == ["Add", "Exp", "Multiply"]
    assert nodes[-1].op is Multiply and nodes_of(x) == []
