"""The fake device refuses what CuPy refuses, each by a test of its own. Runs under `pytest --fake-cupy`."""

import warnings

import numpy as np
import pytest

from autograd import backend
from autograd.backend import xp

if backend.name == "numpy" or "fake" not in xp.__version__:
    pytest.skip("about the fake device: pytest --fake-cupy", allow_module_level=True)

import cupyx

HOST = np.ones((2, 3), np.float32)


@pytest.fixture
def x():
    return xp.ones((2, 3), dtype=xp.float32)


@pytest.fixture
def b():
    if backend.bfloat16 is None:
        pytest.skip("needs ml_dtypes")
    return xp.ones((2, 3), dtype=backend.bfloat16)


# To and from the host ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("convert", [np.array, np.asarray, lambda x: np.concatenate([x, x]), np.sum], ids=["array", "asarray", "concatenate", "sum"])  # fmt: skip
def test_no_implicit_conversion(x, convert):
    with pytest.raises(TypeError, match=r"Implicit conversion to a NumPy array is not allowed|a device array; use cupy"):
        convert(x)


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + HOST, lambda x: HOST * x, lambda x: x @ HOST.T, lambda x: HOST.T @ x, lambda x: xp.maximum(x, HOST),
        lambda x: xp.concatenate([x, HOST]), lambda x: xp.where(x > 0, x, HOST), lambda x: np.exp(x), lambda x: x < HOST,
        lambda x: x.__iadd__(HOST), lambda x: x.__setitem__(0, HOST[0]), lambda x: x[np.array([0])], lambda x: xp.dot(HOST[0], x[0]),
        lambda x: xp.exp([1.0, 2.0]), lambda x: x + [1.0, 2.0, 3.0],
    ],
)  # fmt: skip
def test_no_mixing_with_host_arrays_and_lists(x, mix):
    with pytest.raises((TypeError, AttributeError)):
        mix(x)


def test_single_numbers_mix(x):
    for y in (x + 1, 2.0 * x, x / np.float32(3), np.float32(2) * x, x**2, x - True):
        assert y.dtype == np.float32 and isinstance(y, xp.ndarray)


def test_nothing_is_shared_with_the_host():
    host = np.zeros(3)
    array = xp.asarray(host)
    host[0] = 1
    array[1] = 2
    copy = xp.asnumpy(array)
    copy[2] = 3
    assert host.tolist() == [1, 0, 0] and array.tolist() == [0, 2, 0] and xp.asarray(array) is array


def test_reductions_and_elements_are_arrays_on_the_device(x):
    for y in (x.sum(), x.max(), xp.dot(x[0], x[0]), x[0, 0], x.mean(axis=0)[1], xp.sqrt(x.sum())):
        assert isinstance(y, xp.ndarray) and y.shape == ()
    element = x[1, 2]
    x[1, 2] = 5.0
    assert float(element) == 5.0, "an element is a view"


# Arguments, names, dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x.sum(where=x > 0), lambda x: x.mean(initial=0), lambda x: x.max(initial=0), lambda x: xp.exp(x, where=x > 0),
        lambda x: x.argsort(stable=True), lambda x: xp.var(x, correction=1), lambda x: xp.take(x, x, mode="clip"), lambda x: xp.add(x),
        lambda x: x.astype(float, device=0),
    ],
)  # fmt: skip
def test_arguments_that_cupy_lacks(x, call):
    with pytest.raises(TypeError, match=r"unexpected keyword|Wrong arguments"):
        call(x)


@pytest.mark.parametrize("name", ["errstate", "insert", "vecdot", "block", "geomspace", "no_such_name"])
def test_names_that_cupy_lacks(name):
    with pytest.raises(AttributeError, match=f"module 'cupy' has no attribute '{name}'"):
        getattr(xp, name)


@pytest.mark.parametrize("name", ["RawModule", "ElementwiseKernel"])
def test_kernels_are_not_imitated(name):
    with pytest.raises(AttributeError, match=f"the fake device does not imitate cupy.{name}"):
        getattr(xp, name)


def test_methods_of_ufuncs(x):
    assert xp.add.reduce(x).tolist() == [2, 2, 2] and xp.multiply.accumulate(x).shape == (2, 3)
    for call in (xp.maximum.reduce, xp.maximum.accumulate, lambda x: xp.add.reduceat(x, [0]), lambda x: xp.maximum.at(x, 0, 1)):
        with pytest.raises(NotImplementedError):
            call(x)
    with pytest.raises(TypeError, match="dtype int64 is not supported"):
        xp.add.at(xp.zeros(3, dtype=xp.int64), xp.arange(2), 1)


@pytest.mark.parametrize(
    "call",
    [lambda x: x * np.float64(2), lambda x: np.sqrt(2 / np.pi) * x, lambda x: x * xp.arange(3), lambda x: x / np.int64(3), lambda x: xp.where(x > 0, x, xp.arange(3))],
)  # fmt: skip
def test_float64_that_nobody_asked_for(x, call):
    with pytest.raises(TypeError, match=r"float64 out of (bool, )?float32"):
        call(x)


def test_float64_that_was_asked_for(x):
    assert x.astype(float).sum().dtype == x.sum(dtype=float).dtype == (x + xp.ones(3)).dtype == np.float64
    assert (xp.arange(3) / 2).dtype == np.float64


def test_indices_out_of_range(x):
    for key in ([2], (0, xp.array([0, 3])), xp.array([-3])):
        with pytest.raises(IndexError, match="out of bounds"):
            x[key]
    assert x[xp.array([-1, 0])].shape == (2, 3)


def test_text_and_objects_have_no_place_there():
    for data in (["a"], [None]):
        with pytest.raises(ValueError, match="Unsupported dtype"):
            xp.array(data)


def test_flags_know_no_writeable(x):
    assert x.flags.c_contiguous and not x.T.flags.c_contiguous and not hasattr(x.flags, "writeable")


# bfloat16 ------------------------------------------------------------------------------------------------------------------------------


def test_bfloat16_promotes_as_in_cupy(x, b):
    for y in (b + 1.0, 2 * b, b * b, xp.exp(b), b.sum(), b.mean(axis=0), b @ b.T, b.max(), b.reshape(3, 2), xp.concatenate([b, b])):
        assert y.dtype == backend.bfloat16
    for y in (b + x, b * np.float32(2), xp.where(b > 0, b, 0.0), b.astype(xp.float32)):
        assert y.dtype == np.float32
    assert (b > 0).dtype == bool
    b += x
    assert b.dtype == backend.bfloat16 and float(b[0, 0]) == 2.0


def test_bfloat16_sums_in_float32_and_rounds_results(b):
    many = xp.ones(1000, dtype=backend.bfloat16)
    assert float(many.sum()) == 1000.0  # adding in bfloat16 would stop at 256
    assert float((b * 1.0)[0, 0] + 1 / 512) == 1.0


def test_bfloat16_products_of_stacks_are_refused(b):
    with pytest.raises(TypeError, match="data type 'E' not understood"):
        b.reshape(1, 2, 3) @ b.T
    with pytest.raises(TypeError, match="no loop for bfloat16"):
        xp.gcd(b, b)
    with pytest.raises(TypeError, match="dtype bfloat16 is not supported"):
        xp.add.at(b, xp.arange(2), 1)


# Waiting for the device ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wait",
    [
        float, bool, int, str, lambda x: x.item(), lambda x: x.tolist(), lambda x: x.get(), xp.asnumpy, lambda x: f"{x:.2f}",
        lambda x: x.reshape(1)[x.reshape(1) > 0], lambda x: xp.nonzero(x.reshape(1)), lambda x: xp.where(x.reshape(1) > 0),
        lambda x: xp.cuda.get_current_stream().synchronize(), lambda x: xp.cuda.Device().synchronize(), lambda x: [1, 2][x.astype(int)],
    ],
)  # fmt: skip
def test_waiting_is_seen(wait):
    x = xp.ones((), dtype=xp.float32)
    wait(x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with cupyx.allow_synchronize(False), pytest.raises(cupyx.DeviceSynchronized):
            wait(x)
    wait(x)


def test_work_that_waits_for_nothing(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with cupyx.allow_synchronize(False):
            y = xp.where(x > 0, x, 0).sum() + xp.asarray(HOST)[xp.array([0, 1])].max()
            assert y.shape == () and len(x) == 2
