"""The engine itself: tensors, the backward pass, what it keeps and frees, and what it refuses."""

import contextlib
import gc
import os
import re
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest

import autograd as ag
from autograd import backend, dispatch
from autograd.backend import to_device, to_host, xp
from autograd.ops.elementwise import Add
from tests.autograd.checks import assert_close, numpy_only, tensor

ROOT = Path(__file__).resolve().parents[2]


def probe():
    """A fresh op, the identity, with a list that grows by the incoming gradient of each backward call."""
    calls = []

    class Probe(ag.Op):
        @staticmethod
        def forward(x):
            return x + 0, None

        @staticmethod
        def backward(saved, dy):
            calls.append(dy)
            return dy

    return Probe.apply, calls


def run_python(code, **environment):
    """A fresh interpreter in the project's folder: (exit code, stdout, stderr)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOGRAD_", "PYTEST_"))}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**kept, **environment}, capture_output=True, text=True, encoding="utf-8", timeout=60
    )
    return result.returncode, result.stdout, result.stderr


# Tensors --------------------------------------------------------------------------------------------------------------------------


def test_what_a_tensor_shows():
    x = ag.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert (x.shape, x.ndim, x.size, x.dtype, len(x), x.is_leaf) == ((2, 3), 2, 6, np.float64, 2, True)
    y = x.sum()
    assert not y.is_leaf and y.requires_grad and y.item() == float(y) == int(y) == 15.0 and bool(y)
    assert isinstance(x.numpy(), np.ndarray) and x.numpy().tolist() == x.data.tolist()


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (lambda: ag.Tensor([1.0, 2.0]), "Tensor([1., 2.])"),
        (lambda: ag.Tensor([1.0, 2.0], requires_grad=True), "Tensor([1., 2.], requires_grad=True)"),
        (lambda: ag.Tensor([1.0, 2.0], requires_grad=True) * 2, "Tensor([2., 4.], op=Multiply)"),
        (lambda: ag.Tensor(3), "Tensor(3)"),
        (lambda: ag.Tensor(np.ones(2, np.float32)), "Tensor([1., 1.], dtype=float32)"),
        (lambda: ag.Parameter([1.0]), "Parameter([1.], requires_grad=True)"),
    ],
)
def test_repr(x, shown):
    assert repr(x()) == shown


@pytest.mark.parametrize(
    ("data", "dtype"),
    [(1, "int64"), (1.0, "float64"), ([1, 2], "int64"), (np.float32(1), "float32"), (np.ones(2, np.float16), "float16"), (True, "bool")],
)
def test_dtypes_are_numpys(data, dtype):
    assert ag.Tensor(data).dtype == dtype


@numpy_only
def test_an_array_is_not_copied():
    array = np.ones(3)
    x = ag.Tensor(array, requires_grad=True)
    assert x.data is array and x.detach().data is array and x.numpy() is array


def test_detach_stops_the_backward_pass():
    x = tensor([2.0, 3.0])
    (x * (x * x).detach()).sum().backward()
    assert x.grad.tolist() == [4.0, 9.0]
    assert not x.detach().requires_grad


def test_tensors_are_dictionary_keys():
    x, y = tensor([1.0]), tensor([1.0])
    assert {x: 1, y: 2}[x] == 1 and x != y


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ag.Tensor(tensor([1.0])), r"Tensor: a Tensor, expected an array, list or number; use tensor.detach\(\)"),
        (lambda: ag.Tensor([1j]), r"Tensor: dtype complex128, expected real numbers; convert the data first"),
        (
            lambda: ag.Tensor([1, 2], requires_grad=True),
            r"Tensor: requires_grad=True with dtype int64, expected floating point; use .astype",
        ),
        (lambda: ag.Tensor([True], requires_grad=True), r"Tensor: requires_grad=True with dtype bool, expected floating point"),
        (lambda: ag.Parameter(3), r"Tensor: requires_grad=True with dtype int64"),
    ],
)
def test_data_that_is_refused(call, message):
    with pytest.raises(TypeError, match=message):
        call()


@numpy_only
def test_strings_are_refused():
    with pytest.raises(TypeError, match=r"Tensor: dtype <U1, expected real numbers; convert the data first"):
        ag.Tensor(["a"])


def test_assignment_is_refused():
    x = tensor([1.0, 2.0])
    for assign in (lambda: x.__setitem__(0, 5.0), lambda: x.__setitem__(slice(None), 0)):
        with pytest.raises(
            TypeError, match=r"Tensor: assignment to elements, expected no change .*where, concatenate or stack, or change tensor.data"
        ):
            assign()


def test_implicit_conversion_is_refused():
    x = tensor([1.0, 2.0])
    for convert in (np.array, np.asarray, lambda t: np.array(t, dtype=float), lambda t: np.array([t, t])):
        with pytest.raises(
            TypeError, match=r"Tensor: implicit conversion to a NumPy array, expected an explicit one .*tensor.numpy\(\) or tensor.data"
        ):
            convert(x)


@pytest.mark.parametrize(
    ("call", "name", "instead"),
    [
        (np.mean, "mean", "autograd.mean, or tensor.data"),
        (lambda x: np.sum(x, axis=0), "sum", "autograd.sum, or tensor.data"),
        (np.max, "max", "autograd.max, or tensor.data"),
        (lambda x: np.concatenate([x, x]), "concatenate", "autograd.concatenate, or tensor.data"),
        (np.median, "median", "tensor.data"),
    ],
)
def test_numpys_functions_say_what_to_write(call, name, instead):
    x = tensor([1.0, 2.0])
    with pytest.raises(TypeError, match=rf"^np.{name}: a Tensor, expected an array .*; use {instead}$"):
        call(x)
    assert (np.shape(x), np.ndim(x), np.size(x)) == ((2,), 1, 2)


@numpy_only
def test_numpys_elementwise_functions_say_what_to_write():
    x, array = tensor([1.0, 2.0]), np.array([3.0, 4.0])
    with pytest.raises(TypeError, match=r"^np.exp: a Tensor, expected an array .*; use autograd.exp, or tensor.data$"):
        np.exp(x)
    with pytest.raises(TypeError, match=r"^np.floor: a Tensor, expected an array .*; use tensor.data$"):
        np.floor(x)
    with pytest.raises(TypeError, match=r"^np.equal: a Tensor"):
        array == x  # noqa: B015
    with pytest.raises(TypeError, match=r"^np.add: a Tensor.* use autograd.add"):
        np.add.reduce(x)
    with pytest.raises(TypeError, match=r"np.subtract into an array, as in array \+= tensor: a Tensor, expected an array; use tensor.data"):
        array -= x
    assert array.tolist() == [3.0, 4.0]


def test_a_format_is_that_of_the_number():
    assert f"{tensor([[2.0]]).sum():.3f}" == "2.000" and f"{tensor([[2.5]]):5.1f}" == "  2.5"
    x = tensor([1.0, 2.0])
    assert f"{x}" == repr(x)
    with pytest.raises(TypeError, match=r"format: '.3f' for a tensor of shape \(2,\), expected one element; format those of tensor.numpy"):
        f"{x:.3f}"


def test_membership_and_iteration_are_those_of_arrays():
    x = tensor([[1.0, 2.0], [3.0, 4.0]])
    assert 3.0 in x and 5.0 not in x and x.data[0, 1] in x
    first, second = x
    (2 * second).sum().backward()
    assert first.data.tolist() == [1.0, 2.0] and x.grad.tolist() == [[0, 0], [2, 2]]
    with pytest.raises(TypeError, match=r"Tensor: iteration over a single number, of shape \(\), expected at least one axis; use item"):
        list(tensor(1.0))


def test_equality_is_of_objects_and_says_so():
    x = tensor([1.0])
    assert x == x and x != tensor([1.0]) and x != None and x in [tensor([1.0]), x]  # noqa: E711
    for other in (1.0, 1, [1.0], x.data):
        with pytest.raises(TypeError, match=r"Tensor: == with a \w+, expected a tensor .*; use tensor.data == \.\.\."):
            x == other  # noqa: B015


def test_truth_of_many_elements():
    with pytest.raises(ValueError, match="truth value"):
        bool(tensor([1.0, 2.0]))


@pytest.mark.parametrize("make", [lambda a: a, to_device, lambda a: a.tolist()], ids=["host", "device", "list"])
def test_reflected_operands(make):
    x, array = tensor([[1.0, 2.0], [3.0, 4.0]]), np.array([[2.0, 4.0], [8.0, 16.0]])
    host = to_host(x.data)
    for result, right in (
        (make(array) + x, array + host), (make(array) - x, array - host), (make(array) * x, array * host), (make(array) / x, array / host),
        (x + make(array), array + host), (x - make(array), host - array), (x * make(array), array * host), (x / make(array), host / array),
        (make(array) @ x, array @ host), (x @ make(array), host @ array),
    ):  # fmt: skip
        assert isinstance(result, ag.Tensor) and result.requires_grad
        assert_close(result.data, right)


def test_reflected_numbers():
    x = tensor([1.0, 2.0])
    results = {"+": 3 + x, "-": 3 - x, "*": 3 * x, "/": 3 / x, "neg": -x, "pow": x**2}
    assert {k: v.data.tolist() for k, v in results.items()} == {
        "+": [4, 5], "-": [2, 1], "*": [3, 6], "/": [3, 1.5], "neg": [-1, -2], "pow": [1, 4],
    }  # fmt: skip
    with pytest.raises(TypeError, match=r"power: an exponent of type Tensor, expected a Python number; .* use exp\(b \* log\(a\)\)"):
        2**x
    assert (x ** np.float32(2)).data.tolist() == (x ** np.int64(2)).data.tolist() == [1, 4]


@pytest.mark.parametrize("sign", ["+", "-", "*", "/", "**", "@"])
@pytest.mark.parametrize("make", [ag.Parameter, ag.Tensor], ids=["parameter", "tensor"])
def test_in_place_operators_are_refused(sign, make):
    x = make(np.ones((2, 2)))
    names = {"x": x, "y": 2}
    for block in (contextlib.nullcontext(), ag.no_grad()):
        with block, pytest.raises(
            TypeError, match=rf"Tensor: {re.escape(sign)}= on a tensor, .*; write x.data {re.escape(sign)}= .*, x = x {re.escape(sign)} "
        ):  # fmt: skip
            exec(f"x {sign}= y", names)
    assert names["x"] is x and x.data.tolist() == [[1, 1], [1, 1]]
    x.data -= 0.5
    assert x.data.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_a_tensor_as_the_data_of_a_tensor_is_refused():
    x = ag.Parameter(np.ones(2))
    x.data = x - 0.1
    with pytest.raises(
        TypeError, match=r"Multiply: the data of a is a Tensor, expected an array; assign arrays, as in p.data = tensor.data"
    ):
        x * 2


def test_float32_stays_float32():
    x = tensor(np.ones(3, np.float32))
    for y in (x + 1, 2.0 * x, x / 3, x**2, x - np.ones(3, np.float32), x.mean(), x @ x, x * True):
        assert y.dtype == np.float32


@numpy_only
def test_float64_scalars_and_arrays_promote():
    x = tensor(np.ones(3, np.float32))
    for y in (x * np.float64(2), x + np.ones(3), np.float64(2) * x):
        assert y.dtype == np.float64


def test_comparisons_give_plain_boolean_arrays():
    x = tensor([1.0, 2.0, 3.0])
    for result, right in (
        (x < 2, [1, 0, 0]), (x <= 2, [1, 1, 0]), (x > 2, [0, 0, 1]), (x >= 2, [0, 1, 1]),
        (x < tensor([3.0, 2.0, 4.0]), [1, 0, 1]), (to_device(np.array([3.0, 2.0, 1.0])) <= x, [0, 1, 1]),
    ):  # fmt: skip
        assert isinstance(result, backend.device_array) and result.dtype == bool
        assert result.tolist() == [bool(r) for r in right]


# Gradients arrive --------------------------------------------------------------------------------------------------------------------


def test_gradients_accumulate_until_cleared():
    x = tensor([1.0, 2.0])
    (x * 2).sum().backward()
    (x * 3).sum().backward()
    assert x.grad.tolist() == [5.0, 5.0]
    x.grad = None
    (x * 4).sum().backward()
    assert x.grad.tolist() == [4.0, 4.0]


def test_diamonds():
    x = tensor(3.0)
    a, b = x * 2, x * x
    c = a * b  # 2 x^3
    d = c + a + c  # 4 x^3 + 2 x
    d.backward()
    assert x.grad.item() == 12 * 9 + 2


def test_deep_diamonds_are_walked_once():
    apply, calls = probe()
    x = tensor(1.0)
    y = apply(x)
    for _ in range(60):  # 2^60 paths
        y = y + y
    y.backward()
    assert x.grad.item() == 2.0**60 and len(calls) == 1


def test_one_tensor_used_many_times():
    x = tensor(np.ones(4))
    h = x * 2
    total = h
    for _ in range(99):
        total = total + h
    total.sum().backward()
    assert x.grad.tolist() == [200.0] * 4


def test_a_node_waits_for_all_its_gradients():
    """An old tensor used by an old op and by the newest one: its op must run once, after both."""
    apply, calls = probe()
    x = tensor([1.0])
    h = apply(x)
    long = h * 2
    for _ in range(5):
        long = long + 1
    (long * h).sum().backward()
    assert len(calls) == 1 and x.grad.tolist() == [7.0 + 2.0]


def test_gradients_never_share_memory():
    x, y = tensor(np.ones(3)), tensor(np.ones(3))
    dy = to_device(np.ones(3))
    (x + y).backward(dy)
    x.grad[0] = 100.0
    assert y.grad.tolist() == [1.0] * 3 and dy.tolist() == [1.0] * 3
    y.backward(dy)
    assert dy.tolist() == [1.0] * 3 and y.grad.tolist() == [2.0] * 3
    x.grad = None
    x.backward(dy)
    x.grad += 1
    assert dy.tolist() == [1.0] * 3


def test_sums_of_gradients_do_not_write_into_shared_arrays():
    """Add hands one dy to both parents; adding more to one of them must not reach the other."""
    x, y = tensor(np.ones(3)), tensor(np.ones(3))
    a, b = x * 1, y * 1
    both = a + b
    (both + a + a + a).sum().backward()
    assert x.grad.tolist() == [4.0] * 3 and y.grad.tolist() == [1.0] * 3


def test_gradients_are_arrays_even_of_single_numbers():
    x = tensor(2.0)
    (x * 3).backward()
    assert isinstance(x.grad, backend.device_array) and x.grad.shape == ()
    (x * 3).backward()
    assert isinstance(x.grad, backend.device_array) and x.grad.item() == 6.0


def test_gradients_are_contiguous():
    x = tensor(np.ones((3, 4)))
    x.T.sum(axis=0).sum().backward()
    assert x.grad.flags.c_contiguous


def test_broadcasting_is_undone():
    rng = np.random.default_rng(0)
    for shape in ((), (1,), (4,), (1, 4), (3, 1), (3, 4), (1, 1), (1, 3, 4), (2, 1, 1)):
        x = tensor(rng.standard_normal(shape))
        factor = rng.standard_normal((2, 3, 4))
        (x * factor).sum().backward()
        assert x.grad.shape == shape
        expected = np.zeros(shape)
        for place in np.ndindex(2, 3, 4):
            own = tuple(0 if n == 1 else i for n, i in zip(shape, place[3 - len(shape) :], strict=True))
            expected[own] += factor[place]
        assert_close(x.grad, expected)


def test_broadcasting_with_an_empty_axis():
    x = tensor(np.ones((1, 3)))
    (x * np.ones((0, 3))).sum().backward()
    assert x.grad.tolist() == [[0.0, 0.0, 0.0]]


def test_backward_from_an_array_of_gradients():
    x = tensor([1.0, 2.0, 3.0])
    (x * x).backward([1.0, 10.0, 100.0])
    (x * x).backward(ag.Tensor([1, 1, 1]))
    assert x.grad.tolist() == [4.0, 44.0, 606.0]


def test_backward_of_one_element_needs_no_dy():
    x = tensor([[2.0]])
    (x * x).backward()
    assert x.grad.tolist() == [[4.0]]
    x.backward()
    assert x.grad.tolist() == [[5.0]]


# Gradients that nobody needs -----------------------------------------------------------------------------------------------------------


def test_the_backward_pass_does_not_go_below_the_last_needed_tensor():
    frozen, calls_below = probe()
    wanted, calls_above = probe()
    x, weight = tensor([1.0, 2.0], requires_grad=False), tensor([3.0, 4.0])
    h = frozen(x)
    (wanted(h * weight)).sum().backward()
    assert len(calls_above) == 1 and not calls_below
    assert weight.grad.tolist() == [1.0, 2.0] and x.grad is None and h.is_leaf


def test_branches_below_detach_are_not_walked():
    apply, calls = probe()
    x = tensor([1.0, 2.0])
    (apply(x).detach() * x).sum().backward()
    assert not calls and x.grad.tolist() == [1.0, 2.0]


def test_needs_says_which_inputs_want_a_gradient():
    seen = []

    class Pair(ag.Op):
        @staticmethod
        def forward(a, b, c, *, factor, needs):
            seen.append(("forward", needs))
            return a * b * factor, (a, b)

        @staticmethod
        def backward(saved, dy, *, needs):
            seen.append(("backward", needs))
            return (saved[1] * dy if needs[0] else None, saved[0] * dy if needs[1] else None, None)

    a, b = tensor([1.0]), tensor([2.0], requires_grad=False)
    Pair.apply(a, b, 5, factor=1.0).backward()
    Pair.apply(b, a, None, factor=1.0).backward()
    with ag.no_grad():
        Pair.apply(a, b, None, factor=1.0)
    assert seen == [
        ("forward", (True, False, False)), ("backward", (True, False, False)), ("forward", (False, True, False)),
        ("backward", (False, True, False)), ("forward", (False, False, False)),
    ]  # fmt: skip
    assert Pair.forward_takes_needs and Pair.backward_takes_needs and not Add.forward_takes_needs


def test_no_grad():
    x = tensor([1.0])
    assert ag.is_recording()
    with ag.no_grad():
        assert not ag.is_recording()
        y = x * 2
        with ag.no_grad():
            pass
        assert not ag.is_recording()
    assert ag.is_recording() and not y.requires_grad and y.is_leaf
    with pytest.raises(ZeroDivisionError), ag.no_grad():
        raise ZeroDivisionError
    assert ag.is_recording() and (x * y).requires_grad


def test_freezing_by_the_flag():
    x, y = ag.Parameter([1.0]), ag.Parameter([2.0])
    x.requires_grad = False
    (x * y).backward()
    assert x.grad is None and y.grad.tolist() == [1.0]


# Depth, memory, freeing ------------------------------------------------------------------------------------------------------------------


def test_a_chain_of_20_000_nodes():
    x = tensor([1.0])
    y = x
    for _ in range(20_000):
        y = y + 1
    assert sys.getrecursionlimit() < 20_000
    y.backward()
    assert x.grad.tolist() == [1.0]


def test_a_chain_of_20_000_nodes_is_deleted_without_recursion():
    x = tensor([1.0])
    y = x
    for _ in range(20_000):
        y = y * x
    del y
    assert x.grad is None


@pytest.fixture
def without_gc():
    """Only reference counts free memory in such a test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_no_reference_cycles(without_gc):
    x, weight = tensor(np.ones((3, 4))), tensor(np.ones((4, 4)))
    for backward in (True, False):
        a, b = ag.split(ag.gelu(ag.linear(x, weight)), 2)
        loss = ag.cross_entropy(ag.softmax(a * b), [0, 1, 0])
        if backward:
            loss.backward()
        del a, b, loss
        assert gc.collect() == 0


def test_what_no_op_saved_is_free_at_once(without_gc):
    x = tensor(np.ones(3))
    h = x + 1
    gone = weakref.ref(h.data)
    y = h + 1
    del h
    assert gone() is None
    y.sum().backward()


def test_saved_arrays_are_freed_on_the_way(without_gc):
    state = []

    class Watch(ag.Op):
        @staticmethod
        def forward(x):
            return x + 0, None

        @staticmethod
        def backward(saved, dy):
            state.append([ref() is None for ref in refs])
            return dy

    x = tensor(np.ones(1000))
    refs = []
    h = x
    for _ in range(3):
        h = Watch.apply(h)
        h = ag.tanh(h)  # saves its output
        refs.append(weakref.ref(h.data))
    loss = h.sum()
    del h
    assert [ref() is None for ref in refs] == [False] * 3
    loss.backward()
    assert state == [[False, False, True], [False, True, True], [True, True, True]]


def test_the_graph_is_freed_though_the_loss_is_kept(without_gc):
    x = tensor(np.ones(3))
    gone = weakref.ref(x)
    loss = (x * 2).sum()
    del x
    assert gone() is not None
    loss.backward()
    assert gone() is None and loss.item() == 6.0


def test_saved_arrays_go_with_the_tensor_if_backward_never_runs(without_gc):
    h = ag.tanh(tensor(np.ones(10)))
    gone = weakref.ref(h.data)
    y = h * h
    del h
    assert gone() is not None
    del y
    assert gone() is None


@numpy_only
def test_backward_peaks_no_higher_than_a_few_arrays(without_gc):
    n, size = 40, 8 * 50_000
    y = tensor(np.ones(50_000))
    for _ in range(n):
        y = ag.tanh(y)
    loss = y.sum()
    del y
    tracemalloc.start()
    loss.backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * size, f"{peak / size:.1f} arrays at once"


def test_memory_is_steady_over_200_steps(without_gc):
    rng = np.random.default_rng(0)
    x, w, v = (tensor(rng.standard_normal(shape)) for shape in ((8, 16), (16, 16), (16, 4)))

    def step():
        for t in (x, w, v):
            t.grad = None
        a, b = ag.split(ag.layer_norm(x @ w, w[0], w[1]), 2)
        loss = ag.cross_entropy(ag.concatenate([a, ag.relu(b)], axis=1) @ v, np.arange(8) % 4)
        loss.backward()
        with ag.no_grad():
            ag.softmax(x @ w)

    def state():
        assert gc.collect() == 0, "cycles"  # and it empties Python's own lists of spare tuples, which grow at first
        return len(gc.get_objects()), tracemalloc.get_traced_memory()[0]

    for _ in range(10 if backend.name == "numpy" else 200):  # CuPy's lists of free blocks grow at first
        step()
    grown = []
    for _ in range(3):  # what leaks does so each time; Python's table of interned strings, say, is enlarged once, by megabytes
        tracemalloc.start()
        step()
        before, memory = state()
        for _ in range(200):
            step()
        after, memory_after = state()
        tracemalloc.stop()
        assert abs(after - before) < 20, f"{after - before} objects more after 200 steps"
        grown.append(memory_after - memory)
        if grown[-1] < 10_000:
            break
    assert min(grown) < 10_000, f"{grown} bytes more after 200 steps"


def test_a_second_backward_says_so():
    x = tensor([1.0, 2.0])
    h = x * x
    loss, other = h.sum(), h.mean()
    loss.backward()
    message = r"backward: the graph at {} has been freed by an earlier backward pass, expected one backward per forward; run the forward pass again, or add the losses"
    with pytest.raises(RuntimeError, match=message.format("Sum")):
        loss.backward()
    with pytest.raises(RuntimeError, match=message.format("Multiply")):
        other.backward()
    assert x.grad.tolist() == [2.0, 4.0]


# What the backward pass refuses---------------------------------------------------------------------------------------------------------------


def test_backward_without_anything_to_do():
    message = r"backward: no input of this tensor requires a gradient, expected at least one; set requires_grad=True on a leaf, and compute outside no_grad"
    x = tensor([1.0])
    with ag.no_grad():
        y = x * 2
    for bad in (y, tensor([1.0], requires_grad=False), x.detach()):
        with pytest.raises(RuntimeError, match=message):
            bad.backward()


def test_backward_of_many_elements_needs_dy():
    y = tensor([1.0, 2.0]) * 2
    with pytest.raises(ValueError, match=r"backward: a tensor of shape \(2,\), expected one element; reduce it first or pass dy"):
        y.backward()
    for dy in (1.0, np.ones((1, 2)), np.ones(3)):
        with pytest.raises(ValueError, match=r"backward: dy of shape .*, expected \(2,\), that of the tensor"):
            y.backward(dy)
    y.backward(np.ones(2))


def one_input(name, backward, forward=lambda x: (x.sum(axis=0), None)):
    return type(name, (ag.Op,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


@pytest.mark.parametrize(
    ("shape", "gradient"),
    [((2, 3), (3,)), ((2, 3), (3, 2)), ((2, 3), ()), ((2, 3), (1, 3)), ((1,), ()), ((1, 1), (1,)), ((2,), (3,)), ((2, 3), (2, 1, 3))],
)
def test_a_gradient_of_a_wrong_shape(shape, gradient):
    op = one_input("Crooked", lambda saved, dy: xp.zeros(gradient))
    message = f"Crooked.backward: a gradient of shape {gradient} for input 0 of shape {shape}, expected the input's shape (or one"
    with pytest.raises(RuntimeError) as error:
        op.apply(tensor(np.ones(shape))).sum().backward()
    assert str(error.value).startswith(message) and "fix the op's backward" in str(error.value)


def test_the_input_of_a_wrong_gradient_is_named():
    op = one_input("Crooked", lambda saved, dy: (dy, xp.zeros(5)), lambda a, b: (a * b, None))
    with pytest.raises(RuntimeError, match=r"Crooked.backward: a gradient of shape \(5,\) for input 1 of shape \(3,\)"):
        op.apply(tensor(np.ones(3)), tensor(np.ones(3))).sum().backward()


def test_a_wrong_count_of_gradients():
    op = one_input("Short", lambda saved, dy: dy, lambda a, b: (a * b, None))
    with pytest.raises(RuntimeError, match=r"Short.backward: 1 gradients, expected 2, one per input; return None for inputs without one"):
        op.apply(tensor([1.0]), tensor([1.0])).backward()
    op = one_input("Long", lambda saved, dy: (dy, dy), lambda a: (a * 2, None))
    with pytest.raises(RuntimeError, match=r"Long.backward: 2 gradients, expected 1"):
        op.apply(tensor([1.0])).backward()


def test_a_missing_gradient():
    op = one_input("Silent", lambda saved, dy: (dy, None), lambda a, b: (a * b, None))
    with pytest.raises(RuntimeError, match=r"Silent.backward: None for input 1, expected its gradient; the input requires one"):
        op.apply(tensor([1.0]), tensor([1.0])).backward()
    op.apply(tensor([1.0]), tensor([1.0], requires_grad=False)).backward()


def test_several_outputs():
    received = []

    class Both(ag.Op):
        returns_tuple = True

        @staticmethod
        def forward(x):
            return (x + 1, x * 2), None

        @staticmethod
        def backward(saved, dys):
            received.append(tuple(None if dy is None else dy.tolist() for dy in dys))
            return sum(f * dy for f, dy in zip((1, 2), dys, strict=True) if dy is not None)

    x = tensor([1.0])
    Both.apply(x)[0].backward()
    Both.apply(x)[1].backward()
    first, second = Both.apply(x)
    (first + second + second).backward()
    assert received == [([1.0], None), (None, [1.0]), ([1.0], [2.0])]
    assert x.grad.tolist() == [1.0 + 2.0 + 5.0]


# Debug mode -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def debug(monkeypatch):
    monkeypatch.setattr(backend, "debug", True)
    with np.errstate(all="ignore"):
        yield


def test_debug_names_the_op_of_the_first_bad_output(debug):
    x = tensor([[0.0, 1.0]])
    message = (
        r"Log.forward: 1 of 2 values of shape \(1, 2\) are not finite, expected finite numbers; inputs were \(1, 2\) float64; "
        r"this is the first op to fail \(AUTOGRAD_DEBUG=1\), look at what feeds it"
    )
    with pytest.raises(FloatingPointError, match=message):
        ag.log(x)


def test_debug_names_the_op_of_the_first_bad_gradient(debug):
    x, y = tensor([0.0, 1e-300]), tensor([[1.0], [1.0]])
    z = (x + y) + x * 1e200 * 1e200  # small values with a slope of 1e400
    expected = r"Multiply.backward, gradient of input 0: 2 of 2 values of shape \(2,\) are not finite"
    with np.errstate(over="ignore"), pytest.raises(FloatingPointError, match=expected):
        z.sum().backward()


def test_debug_lets_finite_numbers_and_integers_pass(debug):
    x = tensor([1.0, 2.0])
    (ag.log(x) * ag.Tensor([1, 2]) + ag.embedding(tensor(np.ones((2, 2))), [0, 1])).sum().backward()


@numpy_only
def test_without_debug_bad_numbers_flow():
    with np.errstate(all="ignore"):
        assert to_host(ag.log(tensor([0.0])).data).tolist() == [-np.inf]


BAD_OUTPUT = "import autograd as ag; ag.log(ag.Tensor([0.0, -1.0]))"


def test_debug_is_switched_by_the_environment():
    code, _, error = run_python(BAD_OUTPUT, AUTOGRAD_DEBUG="1")
    assert code != 0 and "FloatingPointError: Log.forward: 2 of 2 values of shape (2,) are not finite" in error
    code, _, error = run_python(BAD_OUTPUT, AUTOGRAD_DEBUG="0")
    assert code == 0 and "FloatingPointError" not in error


# Kernels: the registry (what runs on it: test_ops.py) ----------------------------------------------------------------------------------------


@pytest.fixture
def kernels(monkeypatch):
    """An op and a kernel of it."""
    monkeypatch.setattr(dispatch, "_kernels", {})

    class Shown(ag.Op):
        @staticmethod
        def forward(x):
            return x + 0, None

        @staticmethod
        def backward(saved, dy):
            return dy

    @ag.kernel_for(Shown)
    class ForPairs(Shown):
        @staticmethod
        def supports(x):
            return x.shape == (2,)

    return Shown, ForPairs


@pytest.mark.parametrize(
    ("mode", "n", "expected"),
    [
        ("fast", 2, "ForPairs"), ("fast", 3, "Shown"), ("fast", 1, "Shown"),
        ("reference", 2, "Shown"), ("reference", 3, "Shown"),
    ],
)  # fmt: skip
def test_which_kernel_runs(kernels, mode, n, expected):
    reference = kernels[0]
    with ag.use_kernels(mode):
        y = reference.apply(tensor(np.ones(n)))
        assert y._node.op.__name__ == reference.dispatch(y.data).__name__ == expected
    y.sum().backward()


def test_registered_kernels_is_a_copy(kernels):
    reference, *registered = kernels
    ag.registered_kernels()[reference].clear()
    assert ag.registered_kernels() == {reference: registered}


def test_modes_nest_and_end():
    with ag.use_kernels("reference"):
        with ag.use_kernels("fast"):
            assert dispatch._mode.get() == "fast"
        assert dispatch._mode.get() == "reference"
    with (
        pytest.raises(ValueError, match=r"use_kernels: 'quick', expected one of fast, reference; see AUTOGRAD_KERNELS"),
        ag.use_kernels("quick"),
    ):
        pass


def test_a_kernel_must_derive_from_its_op():
    with pytest.raises(TypeError, match=r"kernel_for: Probe, expected a subclass of Add; derive it from the op it speeds up"):
        ag.kernel_for(Add)(type("Probe", (ag.Op,), {}))


# The environment ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "legal", "default"),
    [
        ("AUTOGRAD_BACKEND", "numpy, cupy", "numpy"),
        ("AUTOGRAD_KERNELS", "fast, reference", "fast"),
        ("AUTOGRAD_DEBUG", "0, 1", "0"),
    ],
)
def test_illegal_values_are_answered_with_the_legal_ones(variable, legal, default):
    code, _, error = run_python("import autograd", **{variable: "torch"})
    assert code != 0 and f"error: {variable}: 'torch', expected one of {legal}; unset it for {default}" in error


def test_values_are_forgiving_about_case_and_blanks():
    show = "from autograd import backend as b; print(b.name, b.kernels, b.debug)"
    assert run_python(show, AUTOGRAD_BACKEND=" NumPy ", AUTOGRAD_KERNELS="Reference", AUTOGRAD_DEBUG="")[1].split() == [
        "numpy",
        "reference",
        "False",
    ]
    assert run_python(show)[1].split() == ["numpy", "fast", "False"]


def test_the_reason_names_the_backend_and_who_chose_it():
    show = "from autograd import backend as b; print(b.reason)"
    assert run_python(show)[1].startswith("numpy (the default, AUTOGRAD_BACKEND is not set): NumPy 2")
    assert run_python(show, AUTOGRAD_BACKEND="numpy")[1].startswith("numpy (AUTOGRAD_BACKEND=numpy): NumPy 2")


# A module named cupy that breaks at one step after the other: {} is what getDeviceCount and the first product do.
FAKE_CUPY = """
import sys, types
import numpy
cupy = types.ModuleType("cupy")
cupy.__version__, cupy.ndarray, cupy.float32 = "0", numpy.ndarray, numpy.float32
class OutOfMemoryError(MemoryError): pass
def fail(text): raise RuntimeError(text)
class Zeros(numpy.ndarray):
    def __matmul__(self, other): {product}
def getDeviceCount(): {count}
cupy.ones = lambda shape, dtype: numpy.zeros(shape, dtype).view(Zeros)
cupy.cuda = types.SimpleNamespace(
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError), runtime=types.SimpleNamespace(getDeviceCount=getDeviceCount),
    Device=lambda n: types.SimpleNamespace(use=lambda: None),
)
sys.modules["cupy"] = cupy
import autograd
"""


@pytest.mark.parametrize(
    ("code", "step", "cause", "fix"),
    [
        (
            "import sys; sys.modules['cupy'] = None; import autograd",
            "step 1, `import cupy`,",
            "import of cupy halted",
            'pip install "tinygpt[cuda',
        ),
        (FAKE_CUPY.format(count="fail('driver too old')", product="pass"), "step 2, the CUDA driver,", "driver too old", "NVIDIA driver"),
        (
            FAKE_CUPY.format(count="return 0", product="pass"),
            "step 3, counting devices,",
            "no CUDA device is visible",
            "CUDA_VISIBLE_DEVICES",
        ),
        (FAKE_CUPY.format(count="return 1", product="fail('no nvrtc')"), "step 4, the first kernel,", "no nvrtc", "reinstall CuPy"),
        (
            FAKE_CUPY.format(count="return 1", product="return self"),
            "step 4, the first kernel,",
            "it computed a wrong sum",
            "nvidia-smi -q",
        ),
    ],
    ids=["import", "driver", "count", "kernel", "sum"],
)
def test_cupy_that_cannot_run_is_one_error_that_names_the_step(code, step, cause, fix):
    status, _, error = run_python(code, AUTOGRAD_BACKEND="cupy")
    last = error.strip().splitlines()[-1]
    assert status != 0 and last.startswith(f"error: AUTOGRAD_BACKEND=cupy: {step} failed (")
    for part in (cause, fix, "expected a working CUDA GPU", "unset AUTOGRAD_BACKEND (or set it to numpy) to run on the CPU"):
        assert part in last
