"""Every op through the same checks. The cases are in `cases.py`; kinks, laws and errors of each kind have files of their own."""

import importlib
import itertools
import pkgutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
import autograd.ops
from autograd import dispatch
from autograd.backend import to_device, to_host
from autograd.ops.activation import Tanh
from autograd.ops.elementwise import Cast
from autograd.ops.group import SplitLinearCrossEntropy
from autograd.ops.loss import CrossEntropy, LinearCrossEntropy
from autograd.testing import check_grads, nodes_of
from tests.autograd.cases import CASES, Case
from tests.autograd.checks import assert_close, assert_kernels_agree, counting, numpy_only, rearranging, run, takes_fast_path
from tests.strategies import layouts

# Without a gradient; test_optim.py, test_muon.py and, of CastWeights, test_cupy_backend.py compare their kernels.
WITHOUT_GRADIENT = {"AdamWUpdate", "MuonUpdate", "SGDUpdate", "SquaredNorm", "CastWeights"}

LOSSES = (CrossEntropy, LinearCrossEntropy, SplitLinearCrossEntropy)

pytestmark = pytest.mark.usefixtures("reference_kernels")  # tests of kernels ask for them
each_op = pytest.mark.parametrize("op", CASES, ids=lambda op: op.__name__)


def subclasses(cls: type) -> set[type]:
    return {cls, *(below for child in cls.__subclasses__() for below in subclasses(child))}


def drawn(op: type[ag.Op], data: st.DataObject, scale: str = "small") -> tuple[Case, list[str]]:
    """A case of `op`, and a memory layout for each input and for the incoming gradients."""
    case = data.draw(CASES[op](scale))
    return case, data.draw(st.lists(layouts, min_size=len(case.arrays) + 1, max_size=len(case.arrays) + 1))


def test_every_op_has_a_case():
    for module in pkgutil.iter_modules(autograd.ops.__path__, "autograd.ops."):
        importlib.import_module(module.name)
    defined = {op for op in subclasses(ag.Op) if op.__module__.startswith("autograd.ops.")}
    assert len(defined) > 30, "the walk finds the ops"
    assert defined == set(CASES), f"without a case: {sorted(op.__name__ for op in defined - set(CASES))}"


def test_every_function_finds_its_op():
    functions = [getattr(ag, name) for name in autograd.ops.__all__ if name != "RandomStream"]
    found = {function.__name__: autograd.ops.op_of(function) for function in functions}
    assert set(found.values()) == set(CASES) and len(set(found.values())) == len(found)
    for function in functions:
        assert found[function.__name__].__name__ in function.__code__.co_names, function.__name__


@each_op
@given(data=st.data())
def test_gradients(op: type[ag.Op], data: st.DataObject):
    case, order = drawn(op, data)
    check_grads(rearranging(case.call, order), *case.arrays)


@each_op
@given(data=st.data())
def test_values(op: type[ag.Op], data: st.DataObject):
    case, order = drawn(op, data)
    outputs = rearranging(case.call, order)(*(ag.Tensor(a) for a in case.arrays))
    expected = case.expected(*case.arrays)
    expected = expected if isinstance(expected, tuple) else (expected,)
    for out, right in zip(outputs, expected, strict=True):
        assert_close(out.data, right)


@each_op
@given(data=st.data())
def test_float32_stays_float32(op: type[ag.Op], data: st.DataObject):
    case, _ = drawn(op, data)
    tensors = [ag.Tensor(a.astype(np.float32), requires_grad=True) for a in case.arrays]
    outputs = case.call(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    nodes = [node for node in nodes_of(*outputs) if issubclass(node.op, op)]
    assert nodes, f"{op.__name__} is not in the graph: the case tests something else"
    for out, right in zip(outputs, _tuple(case.expected(*case.arrays)), strict=True):
        assert out.dtype == np.float32
        assert_close(out.data, right)
    for node in nodes:
        assert not [a for a in _arrays(node.saved) if a.dtype == np.float64], "a float64 array is saved"
        dy = tuple(to_device(np.ones(shape, np.float32)) for shape in node.output_shapes)
        dy = (dy[0], *(None for _ in dy[1:])) if data.draw(st.booleans()) else dy  # outputs may go unused
        needs = {"needs": tuple(kind is not None for kind in node.input_kinds)} if node.op.backward_takes_needs else {}
        gradients = _tuple(node.op.backward(node.saved, dy if node.op.returns_tuple else dy[0], **needs))
        for dx, kind in zip(gradients, node.input_kinds, strict=True):
            if kind is not None:
                shape, dtype = kind
                assert dx.dtype == dtype and (dtype == np.float32 or op is Cast)
                assert np.broadcast_shapes(dx.shape, shape) == dx.shape, f"gradient of shape {dx.shape} for an input of shape {shape}"


@each_op
@given(data=st.data())
def test_frozen_inputs_change_nothing_for_the_others(op: type[ag.Op], data: st.DataObject):
    case, order = drawn(op, data)
    call = rearranging(case.call, order)
    values, gradients = run(call, case.arrays, "float64", "reference")
    for i, mode in itertools.product(range(len(case.arrays)), ("reference", "fast")):
        needs = [i == j for j in range(len(case.arrays))]
        values_i, gradients_i = run(call, case.arrays, "float64", mode, needs=needs)
        for out, same in zip(values_i, values, strict=True):
            assert_close(out, same)
        assert_close(gradients_i[i], gradients[i])
        assert [g is not None for g in gradients_i] == needs
    with ag.no_grad():
        outputs = call(*(ag.Tensor(a, requires_grad=True) for a in case.arrays))
    assert not nodes_of(*outputs)
    for out, same in zip(outputs, values, strict=True):
        assert_close(out.data, same)


@pytest.mark.parametrize(
    "call",
    [
        ag.softmax, ag.log_softmax, ag.sum, ag.mean, ag.max, ag.var, ag.logsumexp, ag.transpose, ag.exp, ag.gelu, ag.negate,
        lambda x: ag.reshape(x, 4), lambda x: ag.broadcast_to(x, (3, 2, 2)), lambda x: ag.split(x, 2), lambda x: ag.index(x, 0),
        lambda x: ag.stack([x, x]), lambda x: ag.linear(x, x, [1.0, 2.0]), lambda x: ag.layer_norm(x, [1.0, 2.0], [3.0, 4.0]),
        lambda x: ag.matmul(x, x), lambda x: ag.scaled_dot_product_attention(x, x, x), lambda x: ag.cross_entropy(x, [0, 1]),
        lambda x: ag.linear_cross_entropy(x, x, [0, 1]), lambda x: ag.embedding(x, [0, 1]), lambda x: ag.cast(x, "float32"),
        lambda x: ag.dropout(x, stream=ag.RandomStream(0)), lambda x: ag.rotary_embedding(x, [[0.6]], [[0.8]]),
    ],
)  # fmt: skip
def test_lists_and_arrays_are_constants(call):
    values = [[1.0, 2.0], [3.0, 5.0]]
    expected = [out.data.tolist() for out in _tuple(call(ag.Tensor(values)))]
    for x in (values, np.array(values)):
        assert [out.data.tolist() for out in _tuple(call(x))] == expected


@pytest.mark.usefixtures("each_kernel_mode")
@each_op
@settings(max_examples=25)
@given(data=st.data())
def test_float16_is_float32_rounded_once(op: type[ag.Op], data: st.DataObject):
    """Statistics, exponentials and sums of 16-bit numbers are float32: results lie within a rounding of what float32 gives for them."""
    case, _ = drawn(op, data)
    rng = np.random.default_rng(0)
    arrays = [a.astype(np.float16) for a in case.arrays]
    narrow, wide = ([ag.Tensor(a.astype(dtype), requires_grad=True) for a in arrays] for dtype in ("float16", "float32"))
    with np.errstate(over="ignore"):
        (y, *_), (right, *_) = outputs = _tuple(case.call(*narrow)), _tuple(case.call(*wide))
        dy = rng.standard_normal(y.shape).astype(np.float16)
        y.backward(dy)
        right.backward(dy)
        for mine, theirs in zip(*outputs, strict=True):
            assert mine.dtype == (np.float32 if op in LOSSES else np.float16)
            _within_a_rounding(mine.data, theirs.data)
        for t, u in zip(narrow, wide, strict=True):
            assert (t.grad is None) == (u.grad is None)
            if t.grad is not None:
                assert t.grad.dtype == np.float16
                _within_a_rounding(t.grad, u.grad)


def _within_a_rounding(mine: Any, right: Any) -> None:
    right = to_host(right)
    largest = max(1.0, float(np.abs(right).max(initial=0)))
    np.testing.assert_allclose(to_host(mine).astype("f4"), right.astype("f2").astype("f4"), rtol=2**-8, atol=2**-8 * min(largest, 6e4))


def test_float16_sums_do_not_stop_at_2048():
    x, bias = (ag.Tensor(np.ones(shape, np.float16), requires_grad=True) for shape in ((5000, 2), 2))
    assert x.sum(axis=0).data.tolist() == [5000, 5000] and x.mean().item() == 1
    (x + bias).backward(np.ones((5000, 2)))
    assert bias.grad.tolist() == [5000, 5000]
    weight, bias = (ag.Tensor(np.ones(shape, np.float16), requires_grad=True) for shape in ((2, 2), 2))
    ag.linear(x, weight, bias).backward(np.ones((5000, 2)))
    assert bias.grad.tolist() == [5000, 5000] and weight.grad.tolist() == [[5000, 5000], [5000, 5000]]
    table = ag.Tensor(np.ones((3, 2), np.float16), requires_grad=True)
    ag.embedding(table, np.ones(5000, int)).backward(np.ones((5000, 2)))
    assert table.grad.tolist() == [[0, 0], [5000, 5000], [0, 0]]


def test_float16_of_large_numbers():
    x = np.linspace(-300, 300, 64).astype(np.float16)[None]
    y = ag.layer_norm(ag.Tensor(x), ag.Tensor(np.ones(64, np.float16)), ag.Tensor(np.zeros(64, np.float16)))
    assert y.dtype == np.float16 and to_host(y.data).astype("f4").std() == pytest.approx(1, rel=1e-3)
    t = ag.Tensor(np.array([300, -300, 400], np.float16), requires_grad=True)
    ag.gelu(t).sum().backward()
    assert t.grad.tolist() == [1, 0, 1]
    assert ag.var(ag.Tensor(x)).item() == pytest.approx(float(x.astype("f8").var()), rel=1e-3)
    assert ag.logsumexp(ag.Tensor(np.full(5000, 11.0, np.float16))).item() == pytest.approx(11 + np.log(5000), rel=1e-3)


@pytest.mark.exact
@pytest.mark.usefixtures("each_kernel_mode")
@each_op
@settings(max_examples=15)
@given(data=st.data(), scale=st.sampled_from(["small", "large"]), dtype=st.sampled_from(["float32", "float64"]))
def test_values_are_the_same_bits_recorded_or_not(op: type[ag.Op], data: st.DataObject, scale: str, dtype: str):
    case = data.draw(CASES[op](scale))
    arrays = [a.astype(dtype) for a in case.arrays]
    recorded = [to_host(out.data) for out in _tuple(case.call(*(ag.Tensor(a, requires_grad=True) for a in arrays)))]
    with ag.no_grad():
        assert [to_host(out.data).tobytes() for out in _tuple(case.call(*map(ag.Tensor, arrays)))] == [out.tobytes() for out in recorded]
    for i in range(len(arrays)):  # nor does it matter what is frozen
        some = [ag.Tensor(a, requires_grad=i == j) for j, a in enumerate(arrays)]
        assert [to_host(out.data).tobytes() for out in _tuple(case.call(*some))] == [out.tobytes() for out in recorded]


# Fast kernels: whatever is registered is compared, by op, without a line to add here -----------------------------------------------

IN_16_BITS = {"AttentionCuDNN", "CastCUDA"}  # kernels that take nothing else: tested in test_cupy_backend.py
kernels = [
    (op, kernel)
    for op, several in ag.registered_kernels().items()
    for kernel in several
    if op.__name__ not in WITHOUT_GRADIENT and kernel.__name__ not in IN_16_BITS
]
each_kernel = pytest.mark.parametrize(("op", "kernel"), kernels, ids=lambda cls: cls.__name__)


def test_every_kernel_has_a_case():
    for op in ag.registered_kernels():
        assert op in CASES or op.__name__ in WITHOUT_GRADIENT, f"{op.__name__} has kernels but nothing compares them"


def compare(
    op: type[ag.Op], kernel: type[ag.Op], n_small: int = 50, n_large: int = 25, dtypes: Sequence[str] = ("float32", "float64")
) -> None:
    """Runs cases of `op` under fast and reference kernels; fails if they differ, or if `kernel` never ran."""

    @given(data=st.data(), dtype=st.sampled_from(dtypes))
    def small(data: st.DataObject, dtype: str) -> None:
        case, order = drawn(op, data)
        assert_kernels_agree(rearranging(case.call, order), case.arrays, dtype)
        assert_kernels_agree(case.call, case.arrays, dtype)

    @given(data=st.data(), dtype=st.sampled_from(dtypes))
    def large(data: st.DataObject, dtype: str) -> None:
        case = data.draw(CASES[op]("large"))
        assert_kernels_agree(case.call, case.arrays, dtype)

    parts = [settings(max_examples=n)(part) for n, part in ((n_small, small), (n_large, large)) if n]
    with counting(kernel) as calls:
        for _ in range(5):  # of a few cases a kernel that takes no broadcasting or no options may refuse all
            if not calls[kernel]:
                for part in parts:
                    part()
    assert calls[kernel], f"{kernel.__name__}: supports() refused every case; draw shapes that it takes"


@each_kernel
def test_fast_equals_reference(op: type[ag.Op], kernel: type[ag.Op]):
    compare(op, kernel)


@each_kernel
@given(data=st.data())
def test_fast_gradients(op: type[ag.Op], kernel: type[ag.Op], data: st.DataObject):
    case, order = drawn(op, data)
    with ag.use_kernels("fast"):
        check_grads(rearranging(case.call, order), *case.arrays)


@pytest.mark.parametrize(("n_queries", "n_keys"), [(127, 128), (129, 129), (300, 300), (100, 300), (1, 300)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_attention_over_long_sequences(n_queries, n_keys, causal, dropout):
    """Kernels cut long sequences into blocks; every block must add to the gradients of the keys that it saw."""

    def call(q, k, v):
        return ag.scaled_dot_product_attention(q, k, v, causal=causal, dropout=dropout, stream=ag.RandomStream(1))

    rng = np.random.default_rng(0)
    assert_kernels_agree(call, [rng.standard_normal((2, 2, n, 4)) for n in (n_queries, n_keys, n_keys)], "float64")


def temporary(monkeypatch: pytest.MonkeyPatch, reference: type[ag.Op], **members: Any) -> type[ag.Op]:
    """A kernel for `reference` that is registered for the length of one test."""
    monkeypatch.setattr(dispatch, "_kernels", {})
    return ag.kernel_for(reference)(type("Temporary", (reference,), {"supports": staticmethod(lambda *a, **o: True), **members}))


def test_the_comparison_passes_equal_kernels(monkeypatch: pytest.MonkeyPatch):
    kernel = temporary(monkeypatch, Tanh)
    compare(Tanh, kernel, n_small=5, n_large=0)


@pytest.mark.parametrize("broken", ["value", "gradient", "dtype", "never runs"])
def test_the_comparison_fails_other_kernels(monkeypatch: pytest.MonkeyPatch, broken: str):
    members: dict[str, Any] = {
        "value": {"forward": staticmethod(lambda x: (1.0001 * Tanh.forward(x)[0], Tanh.forward(x)[1]))},
        "gradient": {"backward": staticmethod(lambda y, dy: 1.0001 * Tanh.backward(y, dy))},
        "dtype": {"forward": staticmethod(lambda x: (Tanh.forward(x)[0].astype("float16"), Tanh.forward(x)[1]))},
        "never runs": {"supports": staticmethod(lambda *a, **o: False)},
    }[broken]
    kernel = temporary(monkeypatch, Tanh, **members)
    with pytest.raises(AssertionError, match="refused every case" if broken == "never runs" else "allowed|definition gives"):
        compare(Tanh, kernel, n_small=5, n_large=0)


def test_fast_path_can_be_asserted(monkeypatch: pytest.MonkeyPatch):
    kernel = temporary(monkeypatch, Tanh)
    x = ag.Tensor(np.ones(3))
    with ag.use_kernels("fast"), takes_fast_path(kernel):
        ag.tanh(x)
    with pytest.raises(AssertionError, match="Temporary never ran"), takes_fast_path(kernel), ag.use_kernels("reference"):
        ag.tanh(x)


def _tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _arrays(found: Any) -> list[Any]:
    if isinstance(found, (tuple, list)):
        return [a for item in found for a in _arrays(item)]
    return [found] if hasattr(found, "dtype") else []


@numpy_only
def test_numpy_is_strict():
    with pytest.raises(FloatingPointError, match="divide by zero"):
        np.ones(1) / np.zeros(1)
    with pytest.raises(FloatingPointError, match="divide by zero"):
        ag.log(ag.Tensor([0.0]))
    assert to_host(ag.exp(ag.Tensor([-1000.0])).data) == 0
