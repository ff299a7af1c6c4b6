"""Muon against its formula in plain NumPy; orthogonality; which matrices it takes, and AdamW's part of it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from autograd.backend import to_device, to_host
from autograd.nn import Embedding, Linear, Module
from autograd.optim import AdamW, Muon, MuonUpdate, Orthogonalize
from autograd.optim.muon import _POLAR_EXPRESS, POLAR_EXPRESS, QUINTIC, rms_scale
from tests.autograd.checks import assert_close, linear_of, takes_fast_path
from tests.autograd.test_optim import Model, host_parameters
from tests.strategies import seeds

BOUNDS = [(POLAR_EXPRESS, 0.87, 1.13), (QUINTIC, 0.68, 1.21)]
"""Where singular values from SMALLEST to 1 end, as the docstrings of the coefficients say."""
SMALLEST = 0.002
each_polynomial = pytest.mark.parametrize(("coefficients", "low", "high"), BOUNDS, ids=["polar express", "quintic"])
coefficients_of_both = st.sampled_from([POLAR_EXPRESS, QUINTIC])


def polynomials(s, coefficients):
    """The scalar functions that the iterations apply to each singular value."""
    for a, b, c in coefficients:
        s = a * s + b * s**3 + c * s**5
    return s


# The polynomials ----------------------------------------------------------------------------------------------------------------


@each_polynomial
def test_polynomials_end_within_the_documented_range(coefficients, low, high):
    s = np.union1d(np.linspace(SMALLEST, 1, 100_001), np.geomspace(SMALLEST, 1, 100_001))
    ends = polynomials(s, coefficients)
    assert low <= ends.min() < low + 0.01 and high - 0.01 < ends.max() <= high


def test_each_published_polynomial_is_made_for_the_range_that_the_one_before_leaves():
    """On [l, u] its values lie in [p(l), 2 - p(l)], as far below 1 as above: the next one's range. Algorithm 1 from l = 0.001 on."""
    low, high = 0.001, 1.0
    for polynomial in _POLAR_EXPRESS:
        s = np.union1d(np.linspace(low, high, 100_001), np.geomspace(low, high, 100_001))
        values = polynomials(s, [polynomial])
        assert values[0] + values[-1] == pytest.approx(2, abs=1e-9)
        assert values.min() == pytest.approx(values[0]) and values.max() == pytest.approx(values[-1])
        if low > 0.03 * high:  # no polynomial of degree 5 does better: the error is as large at four points, its sign changing
            errors = values - 1
            turns = errors[1:-1][np.diff(np.sign(np.diff(values))) != 0]
            assert len(turns) == 2
            np.testing.assert_allclose([errors[0], *turns, errors[-1]], abs(errors[0]) * np.array([-1, 1, -1, 1]), rtol=1e-6)
        low, high = values[0], values[-1]
    assert low > 0.87 and high < 1.13


def test_with_the_safety_rounding_after_each_polynomial_does_no_harm():
    """TF32 rounds to 11 bits. The published polynomials alone carry what leaves their range far away."""
    rng = np.random.default_rng(0)
    ends = []
    for coefficients in (POLAR_EXPRESS, _POLAR_EXPRESS):
        s = np.tile(np.linspace(SMALLEST, 0.99, 10_001), (20, 1))
        for polynomial in coefficients:
            s = polynomials(s, [polynomial]) * (1 + rng.uniform(-(2**-10), 2**-10, s.shape))
        ends.append((s.min(), s.max()))
    (low, high), (_, far) = ends
    assert low > 0.86 and high < 1.14 and far > 100


# The iteration -------------------------------------------------------------------------------------------------------------------


def matrix_of(kind, seed):
    """A random matrix of one of these kinds, float64."""
    rng = np.random.default_rng(seed)
    rows, columns = rng.integers(1, 40, 2)
    if kind == "square":
        return rng.standard_normal((rows, rows))
    if kind == "low rank":
        rank = rng.integers(1, 4)
        return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))
    if kind == "tall":
        return rng.standard_normal((rows + 60, rows))
    if kind == "wide":
        return rng.standard_normal((columns, columns + 60))
    return rng.standard_normal((rows, columns)) * {"tiny": 1e-6, "large": 1e6}[kind]


kinds = st.sampled_from(["square", "low rank", "tall", "wide", "tiny", "large"])


@pytest.mark.usefixtures("each_kernel_mode")
@each_polynomial
@given(kind=kinds, seed=seeds)
def test_the_iteration_keeps_singular_vectors_and_makes_singular_values_one(coefficients, low, high, kind, seed):
    u = matrix_of(kind, seed)
    x = np.asarray(to_host(orthogonalized(u, coefficients)))
    left, s, right = np.linalg.svd(u, full_matrices=False)
    s = s / (np.linalg.norm(u) + 1e-7)
    ends = polynomials(s, coefficients)
    np.testing.assert_allclose(x, (left * ends) @ right, atol=1e-6)
    enough = s > SMALLEST  # smaller ones grow about a thousandfold at most
    assert (ends[enough] > low).all() and (ends[enough] < high).all() and (ends[~enough] < high).all()
    if enough.all() and kind in ("tall", "wide"):
        narrow = x.T @ x if kind == "tall" else x @ x.T
        assert np.abs(np.linalg.eigvalsh(narrow) - 1).max() < max(1 - low**2, high**2 - 1)


def orthogonalized(u, coefficients):
    """The step of one MuonUpdate without momentum, from weights of 0, undone to the orthogonal matrix: through whichever kernel is on."""
    w, g, m = to_device(np.zeros_like(u)), to_device(u.copy()), to_device(np.zeros_like(u))
    options = {"lr": 1.0, "momentum": 0.0, "decay": 0.0, "coefficients": coefficients}
    MuonUpdate.dispatch([w], [g], [m], 1.0, **options).forward([w], [g], [m], 1.0, **options)
    return -w / rms_scale(u.shape)


@given(seed=seeds, coefficients=coefficients_of_both)
def test_a_stack_is_its_matrices(seed, coefficients):
    u = np.random.default_rng(seed).standard_normal((2, 3, 7, 5))
    stack = to_host(Orthogonalize.forward(to_device(u), coefficients=coefficients))
    for index in np.ndindex(2, 3):
        assert_close(stack[index], to_host(Orthogonalize.forward(to_device(u[index]), coefficients=coefficients)))


@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (8, 5)])
def test_the_cost_counts_every_product(shape, monkeypatch):
    counted = []

    class Counting(np.ndarray):
        def __matmul__(self, other):
            counted.append(2 * self.shape[0] * self.shape[1] * other.shape[1])
            return np.matmul(self.view(np.ndarray), other.view(np.ndarray)).view(Counting)

    if backend.name != "numpy":
        pytest.skip("a subclass of NumPy's arrays")
    Orthogonalize.forward(np.ones(shape).view(Counting), coefficients=QUINTIC)
    assert Orthogonalize.cost(shape, QUINTIC) == sum(counted)


# The update --------------------------------------------------------------------------------------------------------------------------


def formula(w, g, m, scale, *, lr, momentum, decay, coefficients):
    """(weight, m) after one step, written out in float64."""
    w, g, m = (a.astype(np.float64) for a in (w, g, m))
    g = scale * g
    m = momentum * m + (1 - momentum) * g
    u = (1 - momentum) * g + momentum * m
    x = u / (np.sqrt((u * u).sum()) + 1e-7)
    for a, b, c in coefficients:
        x = a * x + b * (x @ x.T @ x) + c * (x @ x.T @ x @ x.T @ x)
    return w * (1 - lr * decay) - lr * 0.2 * np.sqrt(max(w.shape)) * x, m


@st.composite
def steps(draw, least=1, most=40):
    """Matrices with gradients and moments in float32, and options."""
    rng = np.random.default_rng(draw(seeds))
    shapes = [(draw(st.integers(least, most)), draw(st.integers(least, most))) for _ in range(draw(st.integers(1, 4)))]
    size = 10 ** draw(st.floats(-4, 1))
    lists = [[(f * rng.standard_normal(s)).astype(np.float32) for s in shapes] for f in (1.0, size, size)]
    options = {"lr": 10 ** draw(st.floats(-4, -1)), "momentum": draw(st.sampled_from([0.0, 0.9, 0.95]))}
    options |= {"decay": draw(st.sampled_from([0.0, 0.1])), "coefficients": draw(coefficients_of_both)}
    return *lists, np.float32(draw(st.sampled_from([1.0, 0.3]))), options


def update(lists, scale, options, dtype):
    """(weights, gradients, ms, what is returned) after one MuonUpdate."""
    arrays = [[to_device(a.astype(dtype)) for a in several] for several in lists]
    scale = to_device(np.asarray(scale, dtype))
    squared = MuonUpdate.dispatch(*arrays, scale, **options).forward(*arrays, scale, **options)
    assert {a.dtype.name for several in arrays for a in several} | {squared.dtype.name} == {dtype} and squared.shape == ()
    return *([to_host(a) for a in several] for several in arrays), float(squared)


@pytest.mark.usefixtures("each_kernel_mode")
@given(step=steps())
def test_in_float32_the_update_is_the_formula_to_1e_5(step):
    ws, gs, ms, scale, options = step
    new_ws, same_gs, new_ms, squared = update((ws, gs, ms), scale, options, "float32")
    total = 0.0
    for w, g, m, new_w, same_g, new_m in zip(ws, gs, ms, new_ws, same_gs, new_ms, strict=True):
        right_w, right_m = formula(w, g, m, scale, **options)
        np.testing.assert_allclose(new_w, right_w, rtol=0, atol=1e-5 * np.abs(right_w).max())
        np.testing.assert_allclose(new_m, right_m, rtol=0, atol=1e-5 * np.abs(right_m).max())
        assert (same_g == g).all(), "the gradient is read, not written"
        total += ((w.astype("f8") * (1 - options["lr"] * options["decay"]) - right_w) ** 2).sum()
    assert squared == pytest.approx(total, rel=1e-4)


@pytest.mark.usefixtures("each_kernel_mode")
@settings(max_examples=15)
@given(step=steps(least=16, most=90))
def test_so_is_the_orthogonal_step_itself(step):
    _, gs, _, _, options = step
    for g in gs:
        found = to_host(orthogonalized(g, options["coefficients"]))
        right, _ = formula(0 * g, g, 0 * g, 1.0, **options | {"lr": 1.0, "momentum": 0.0, "decay": 0.0})
        right /= -0.2 * np.sqrt(max(g.shape))
        assert np.linalg.norm(found - right) < 1e-5 * np.linalg.norm(right)


@given(step=steps(), dtype=st.sampled_from(["float32", "float64"]))
def test_kernels_equal_the_definition(step, dtype):
    ws, gs, ms, scale, options = step
    results = []
    for mode in ("reference", "fast"):
        with ag.use_kernels(mode):
            results.append(update((ws, gs, ms), scale, options, dtype))
    tolerance = {"float64": 1e-9, "float32": 2e-5}[dtype]
    for plain, fast in zip(*(result[:3] for result in results), strict=True):
        for p, f in zip(plain, fast, strict=True):
            np.testing.assert_allclose(f, p, rtol=0, atol=tolerance * max(1.0, np.abs(p).max()))
    assert results[1][3] == pytest.approx(results[0][3], rel=1e-4)


@pytest.mark.usefixtures("each_kernel_mode")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_gradient_of_zero_is_a_step_of_zero(dtype):
    w = np.random.default_rng(0).standard_normal((4, 6))
    (new_w,), _, (new_m,), squared = update(
        ([w], [0 * w], [0 * w]), 1.0, {"lr": 1.0, "momentum": 0.9, "decay": 0.0, "coefficients": QUINTIC}, dtype
    )
    assert (new_w == w.astype(dtype)).all() and (new_m == 0).all() and squared == 0


@pytest.mark.parametrize("kernel", ag.registered_kernels().get(MuonUpdate, []), ids=lambda k: k.__name__)
def test_kernels_are_taken(kernel):
    optimizer = Muon(model := Model(np.float32))
    model.loss().backward()
    with ag.use_kernels("fast"), takes_fast_path(kernel):
        optimizer.step()


@pytest.mark.skipif(backend.name != "cupy", reason="test_cuda_kernels.py compares them on NumPy")
@settings(max_examples=20)
@given(step=steps(most=20))
def test_stacks_on_a_device_are_the_definition(step):
    from autograd.kernels.cuda.optim import MuonUpdateCUDA

    ws, gs, ms, scale, options = step
    results = []
    for op in (MuonUpdate, MuonUpdateCUDA):
        arrays = [[to_device(a.copy()) for a in several] for several in (ws, gs, ms)]
        squared = op.forward(*arrays, to_device(scale), **options)
        results.append([to_host(a) for several in arrays for a in several] + [to_host(squared)])
    for plain, stacked in zip(*results, strict=True):
        assert stacked.dtype == plain.dtype
        np.testing.assert_allclose(stacked, plain, rtol=1e-4, atol=2e-5 * max(1.0, np.abs(plain).max()))


# The optimizer -----------------------------------------------------------------------------------------------------------------------


def test_the_weights_of_linear_layers_by_default_each_once():
    optimizer = Muon(Model())  # its layers are under two names, one is frozen
    assert dict(optimizer.columns) == {"first.weight": (4,), "second.weight": (3,)}
    assert [(g.kind, [name for name, _ in g.named]) for g in optimizer.groups] == [
        ("matrix", ["first.weight", "second.weight"]),
        ("plain", ["scale", "first.bias", "norm.weight", "norm.bias", "second.bias"]),
    ]
    assert optimizer.m.size == 24 + 16 and optimizer.v.size == 16


class Tied(Module):
    """An output layer that holds an embedding's weight."""

    def __init__(self):
        self.embedding = Embedding(5, 5)
        self.hidden = linear_of(np.ones((5, 5), np.float32))
        self.output = linear_of(np.ones((5, 5), np.float32))
        self.output.weight = self.embedding.weight


def test_a_layer_tied_to_an_embedding_is_none_of_them():
    optimizer = Muon(Tied())
    assert list(optimizer.columns) == ["hidden.weight"]
    assert [g.kind for g in optimizer.groups] == ["matrix", "decayed"]


def test_a_single_layer():
    assert dict(Muon(Linear(3, 2, bias=False)).columns) == {"weight": (2,)}


def test_matrices_by_name_and_by_columns():
    assert dict(Muon(Model(), matrices=["second.weight"]).columns) == {"second.weight": (3,)}
    assert dict(Muon(Model(), matrices={"second.weight": (1, 2), "first.weight": ()}).columns) == {
        "second.weight": (1, 2),
        "first.weight": (4,),
    }
    pairs = list(Model().named_parameters())
    assert dict(Muon(pairs, matrices=(name for name in ["first.weight"])).columns) == {"first.weight": (4,)}


@pytest.mark.usefixtures("each_kernel_mode")
def test_columns_are_matrices_apart():
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((6, 14)), rng.standard_normal((9, 6))
    widths, ends = (6, 4, 4), (6, 10)
    joined = linear_of(weight.copy())
    parts = [linear_of(part.copy()) for part in np.split(weight, ends, axis=1)]
    optimizers = [Muon(joined, lr=0.1, matrices={"weight": widths})] + [Muon(part, lr=0.1) for part in parts]
    for _ in range(3):
        for layer, optimizer in zip((joined, *parts), optimizers, strict=True):
            optimizer.zero_grad()
            (ag.tanh(layer(ag.Tensor(to_device(x)))) ** 2).sum().backward()
            optimizer.step()
    for part, right in zip(np.split(to_host(joined.weight.data), ends, axis=1), parts, strict=True):
        assert_close(part, to_host(right.weight.data))
    assert optimizers[0].update_norm() == pytest.approx(np.sqrt(sum(o.update_norm() ** 2 for o in optimizers[1:])))
    assert optimizers[0].cost() == sum(o.cost() for o in optimizers[1:])
    whole = Muon(linear_of(weight.copy()), lr=0.1)
    assert whole.cost() > optimizers[0].cost()


@pytest.mark.usefixtures("each_kernel_mode")
def test_the_rest_is_adamw():
    options = {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1, "lr_scale": {"first.weight": 0.0}}
    models = Model(), Model()
    optimizers = [Muon(models[0], lr=0.02, adam_lr_scale=0.5, matrices=["first.weight"], **options), AdamW(models[1], lr=0.01, **options)]
    for seed in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model.loss(seed).backward()
            optimizer.step(max_norm=0.1)
    found, right = (host_parameters(model) for model in models)
    for name in found:  # second.weight among them, a matrix that is not named
        assert_close(found[name], right[name])


def test_training_reduces_the_loss():
    model = Model()
    optimizer = Muon(model, lr=0.05, weight_decay=0.0)
    start = model.loss().item()
    for step in range(60):
        optimizer.lr = 0.05 * (1 - step / 60)
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step(max_norm=1.0)
    assert model.loss().item() < 0.05 * start


# Errors --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, r"Muon: momentum = 1.0, adam_lr_scale = 1.0, expected 0 <= momentum < 1, adam_lr_scale >= 0"),
        ({"adam_lr_scale": -1.0}, r"Muon: .*adam_lr_scale = -1.0, expected"),
        ({"lr": -1.0}, r"Muon: lr = -1.0, .*expected lr and weight_decay >= 0"),
        ({"coefficients": "cubic"}, r"Muon: coefficients 'cubic', expected 'polar express', 'quintic' or \(a, b, c\) for each iteration"),
        ({"coefficients": ()}, r"Muon: coefficients \(\), expected"),
        ({"coefficients": ((1.5, -0.5),)}, r"Muon: coefficients \(\(1.5, -0.5\),\), expected .* or \(a, b, c\)"),
        (
            {"matrices": []},
            r"Muon: no matrix among 7 trainable parameters, expected at least one: the weight of a Linear .*; use AdamW for",
        ),
        ({"matrices": ["frozen.weight"]}, r"Muon: matrices frozen.weight, expected names of trainable parameters, such as scale"),
        ({"matrices": ["scale"]}, r"Muon: matrices scale of shape \(\) as \(\), expected two axes, and positive numbers of columns"),
        ({"matrices": {"first.weight": (2, 1)}}, r"Muon: matrices first.weight of shape \(3, 4\) as \(2, 1\), expected .* that add up to"),
        ({"matrices": {"first.weight": (4, 0)}}, r"Muon: matrices first.weight of shape \(3, 4\) as \(4, 0\), expected"),
    ],
    ids=str,
)
def test_what_is_refused(options, message):
    model = Model()
    before = model.scale.data
    with pytest.raises(ValueError, match=message):
        Muon(model, **options)
    assert model.scale.data is before, "the parameters stay where they were"


def test_pairs_say_which_are_matrices():
    with pytest.raises(
        ValueError, match=r"Muon: \(name, parameter\) pairs without `matrices`, expected the names that are matrices; or pass the m"
    ):
        Muon(list(Model().named_parameters()))


def test_a_model_without_a_linear_layer():
    with pytest.raises(ValueError, match=r"Muon: no matrix among 1 trainable parameters"):
        Muon(Embedding(3, 2))


def test_nothing_to_train_comes_first():
    layer = Linear(3, 2, bias=False)
    layer.weight.requires_grad = False
    with pytest.raises(ValueError, match=r"Muon: none of 1 parameters requires a gradient"):
        Muon(layer)
