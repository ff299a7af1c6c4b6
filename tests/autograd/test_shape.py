"""Shapes and indexing: multiple outputs, repeated elements, and errors."""

import numpy as np
import pytest

import autograd as ag
from autograd.backend import to_host
from autograd.testing import check_grads
from tests.autograd.checks import assert_close, numpy_only, tensor

RNG = np.random.default_rng(0)


def test_repeated_indices_accumulate():
    x = tensor([1.0, 2.0, 3.0])
    (x[[0, 2, 0, 0]] * np.array([1.0, 10.0, 100.0, 1000.0])).sum().backward()
    assert to_host(x.grad).tolist() == [1101.0, 0.0, 10.0]


def test_rows_by_two_index_arrays():
    x = tensor(RNG.standard_normal((4, 5)))
    rows, columns = np.array([0, 3, 3]), np.array([4, -1, -1])
    y = x[rows, columns]
    assert_close(y.data, to_host(x.data)[rows, columns])
    y.sum().backward()
    expected = np.zeros((4, 5))
    expected[0, 4], expected[3, 4] = 1.0, 2.0
    assert_close(x.grad, expected)


@pytest.mark.parametrize(
    "key",
    [
        np.int64(1),
        (1, np.int32(-1)),
        (slice(None), [0, 0, 1]),
        ([[0], [1]], [[0, 1, 2]]),
        (Ellipsis, [[True, False, True, False]] * 3),
        ([True, False], Ellipsis, None, 0),
        (None, Ellipsis, None),
        (0, slice(None), [1, 2]),  # NumPy puts the taken axis first when a slice stands between
        [],
        (),
    ],
    ids=repr,
)
def test_keys_of_every_kind(key):
    x = RNG.standard_normal((2, 3, 4))
    arrays = tuple(np.array(k) if isinstance(k, list) and k else k for k in key) if isinstance(key, tuple) else key
    assert_close(tensor(x)[key].data, x[arrays])
    check_grads(lambda t: t[key], x)


def test_iteration_gives_rows():
    x = tensor(np.arange(6.0).reshape(3, 2))
    assert len(x) == 3
    assert [row.data.tolist() for row in x] == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]


@numpy_only
def test_slices_and_transposes_are_views():
    x = tensor(RNG.standard_normal((4, 6)))
    for view in (x[1:3], x.T, x.reshape(24), ag.split(x, 2)[0], ag.broadcast_to(x, (2, 4, 6))):
        assert np.shares_memory(view.data, x.data)


@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_split_with_unused_parts(used):
    x = tensor(RNG.standard_normal((2, 6)))
    parts = ag.split(x, 3, axis=1)
    weights = RNG.standard_normal((3, 2, 2))
    total = 0.0
    for i in used:
        total = total + (parts[i] * weights[i]).sum()
    total.backward()
    expected = np.concatenate([weights[i] if i in used else np.zeros((2, 2)) for i in range(3)], axis=1)
    assert_close(x.grad, expected)


def test_split_part_used_twice():
    x = tensor(RNG.standard_normal((4,)))
    first, second = ag.split(x, 2)
    (first * second + first).sum().backward()
    host = to_host(x.data)
    assert_close(x.grad, np.concatenate([host[2:] + 1, host[:2]]))


def test_concatenate_and_stack_take_one_tensor_many_times():
    x = RNG.standard_normal((2, 3))
    check_grads(lambda t: ag.concatenate([t, t, 2 * t], axis=1), x)
    check_grads(lambda t: ag.stack([t, t], axis=-1), x)


def test_concatenate_takes_arrays_as_constants():
    x = tensor([[1.0, 2.0]])
    y = ag.concatenate([np.zeros((1, 2)), x])
    y.sum().backward()
    assert y.data.tolist() == [[0.0, 0.0], [1.0, 2.0]] and x.grad.tolist() == [[1.0, 1.0]]


def test_transposes():
    x = tensor(RNG.standard_normal((2, 3, 4)))
    assert x.T.shape == x.transpose().shape == (4, 3, 2)
    assert x.transpose(0, 2, 1).shape == x.transpose((0, 2, 1)).shape == x.transpose([0, -1, -2]).shape == (2, 4, 3)
    assert tensor(1.0).T.shape == ()


def test_reshape_forms():
    x = tensor(RNG.standard_normal((2, 6)))
    assert x.reshape(3, 4).shape == x.reshape((3, 4)).shape == x.reshape([3, -1]).shape == (3, 4)
    assert x.reshape(-1).shape == ag.reshape(x, 12).shape == (12,)
    assert tensor([5.0]).reshape(()).shape == tensor([5.0]).reshape().shape == ()
    assert tensor(np.ones((0, 3))).reshape(-1).shape == (0,)


X = np.ones((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: x.reshape(4, 2), ValueError, r"reshape: 6 elements of shape \(2, 3\) into \(4, 2\), expected equal numbers"),
        (lambda x: x.reshape(-1, 4), ValueError, r"reshape: 6 elements of shape \(2, 3\) into \(-1, 4\)"),
        (lambda x: x.reshape(-1, -1), ValueError, r"reshape: 6 elements of shape \(2, 3\) into \(-1, -1\)"),
        (lambda x: x[:0].reshape(0, -1), ValueError, r"reshape: 0 elements of shape \(0, 3\) into \(0, -1\)"),
        (lambda x: x.transpose(0, 0), ValueError, r"transpose: axes \(0, 0\) for shape \(2, 3\), expected each of its 2 axes once"),
        (lambda x: x.transpose(0, 3), ValueError, r"transpose: axes \(0, 3\) for shape \(2, 3\), expected each of its 2 axes once"),
        (lambda x: x.transpose(0), ValueError, r"transpose: axes \(0,\) for shape \(2, 3\)"),
        (lambda x: ag.broadcast_to(x, (2, 4)), ValueError, r"broadcast_to: shape \(2, 3\) to \(2, 4\), expected equal or 1 in each"),
        (lambda x: ag.broadcast_to(x, (3,)), ValueError, r"broadcast_to: shape \(2, 3\) to \(3,\)"),
        (lambda x: ag.concatenate([]), ValueError, r"concatenate: an empty list, expected at least one tensor"),
        (lambda x: ag.stack([]), ValueError, r"stack: an empty list, expected at least one tensor"),
        (lambda x: ag.concatenate([x, x.T]), ValueError, r"concatenate: shapes \[\(2, 3\), \(3, 2\)\], expected equal but for axis 0"),
        (lambda x: ag.concatenate([x, x], axis=2), ValueError, r"axis: 2, expected -2 <= axis < 2"),
        (lambda x: ag.stack([x, x.T]), ValueError, r"stack: shapes \[\(2, 3\), \(3, 2\)\], expected all equal; use concatenate"),
        (lambda x: ag.stack([x, x], axis=3), ValueError, r"axis: 3, expected -3 <= axis < 3"),
        (lambda x: ag.split(x, 2), ValueError, r"split: length 3 of axis 1 into 2 parts, expected a divisor; give the lengths"),
        (lambda x: ag.split(x, [1.0, 2]), TypeError, r"split: \[1.0, 2\], expected a number of equal parts, or the length of each, as in"),
        (lambda x: ag.split(x, [1, 1]), ValueError, r"split: lengths \[1, 1\] of axis 1 of length 3, expected their sum to be that"),
        (lambda x: ag.split(x, [4, -1]), ValueError, r"split: lengths \[4, -1\] of axis 1 of length 3, expected their sum"),
        (lambda x: x.reshape(), ValueError, r"reshape: 6 elements of shape \(2, 3\) into \(\), expected equal numbers"),
        (lambda x: ag.split(x, 0), ValueError, r"split: length 3 of axis 1 into 0 parts"),
        (lambda x: x[2], IndexError, r"index: 2 for axis 0 of length 2, expected -2 <= i < 2"),
        (lambda x: x[0, -4], IndexError, r"index: -4 for axis 1 of length 3, expected -3 <= i < 3"),
        (lambda x: x[..., 3], IndexError, r"index: 3 for axis 1 of length 3"),
        (lambda x: x[:, [0, 3]], IndexError, r"index: 3 for axis 1 of length 3, expected -3 <= i < 3"),
        (lambda x: x[np.array([[0, -3]])], IndexError, r"index: -3 for axis 0 of length 2, expected -2 <= i < 2"),
        (lambda x: x[0, 0, 0], IndexError, r"index: 3 indices for shape \(2, 3\), expected at most 2"),
        (lambda x: x[x], TypeError, r"index: a Tensor as index, expected integers, slices or integer arrays; pass tensor.data"),
        (lambda x: x[1.0], TypeError, r"index: an array of float64, expected integers, booleans or slices; convert with .astype\(int\)"),
        (lambda x: x[[True, False, True]], IndexError, r"index: a boolean mask of shape \(3,\) for axes \(2, 3\), expected their lengths"),
    ],
)  # fmt: skip
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(tensor(X))
