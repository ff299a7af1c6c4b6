"""AdamW against the update written out parameter by parameter, the flat buffer, clipping, and state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd.backend import to_device, to_host
from autograd.nn import Module
from autograd.optim import AdamW, AdamWUpdate, SquaredNorm
from tests.autograd.checks import assert_close, layer_norm_of, linear_of, takes_fast_path
from tests.strategies import seeds


class Model(Module):
    """Biases and norms between matrices, a tied weight and a frozen one."""

    def __init__(self, dtype=np.float64, seed=0):
        rng = np.random.default_rng(seed)
        self.first = linear_of(rng.standard_normal((3, 4)).astype(dtype), rng.standard_normal(4).astype(dtype))
        self.norm = layer_norm_of(np.ones(4, dtype), np.zeros(4, dtype))
        self.second = linear_of(rng.standard_normal((4, 3)).astype(dtype), rng.standard_normal(3).astype(dtype))
        self.frozen = linear_of(rng.standard_normal((3, 3)).astype(dtype))
        self.frozen.weight.requires_grad = False
        self.tied = self.first
        self.scale = ag.Parameter(np.array(0.5, dtype))

    def forward(self, x):
        return self.frozen(self.second(ag.tanh(self.norm(self.tied(x))))) * self.scale

    def loss(self, seed=0):
        rng = np.random.default_rng(seed)
        y = self(ag.Tensor(rng.standard_normal((5, 3)).astype(self.scale.dtype)))
        return (y * y).mean()


ORDER = ["first.weight", "second.weight", "scale", "first.bias", "norm.weight", "norm.bias", "second.bias"]


def host_parameters(model):
    return {name: to_host(p.data).copy() for name, p in model.named_parameters()}


# The update -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("each_kernel_mode")
@pytest.mark.parametrize("max_norm", [None, 0.1, 1e6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adamw_is_the_papers_update(max_norm, weight_decay):
    lr, b1, b2, eps = 0.01, 0.9, 0.95, 1e-8
    model, twin = Model(), Model()
    optimizer = AdamW(model, lr=lr, betas=(b1, b2), eps=eps, weight_decay=weight_decay)
    moments = {name: [np.zeros(p.shape), np.zeros(p.shape)] for name, p in twin.named_parameters()}
    for t in range(1, 8):
        optimizer.lr = lr = 0.01 * t
        optimizer.zero_grad()
        model.loss(t).backward()
        norm = optimizer.step(max_norm)

        twin.zero_grad()
        twin.loss(t).backward()
        gradients = {name: to_host(p.grad) for name, p in twin.named_parameters() if p.requires_grad}
        total = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        assert_close(norm, total)
        scale = 1.0 if max_norm is None else min(1.0, max_norm / (total + 1e-6))
        for name, p in twin.named_parameters():
            if name not in gradients:
                continue
            g, (m, v) = scale * gradients[name], moments[name]
            m[...] = b1 * m + (1 - b1) * g
            v[...] = b2 * v + (1 - b2) * g * g
            w = to_host(p.data) * (1 - lr * weight_decay * (p.ndim >= 2))
            p.data = to_device(w - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps))
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(mine.data, to_host(theirs.data))


@pytest.mark.usefixtures("each_kernel_mode")
def test_float32_stays_float32():
    model = Model(np.float32)
    optimizer = AdamW(model)
    for max_norm in (None, 0.1):
        model.loss().backward()
        assert optimizer.step(max_norm).dtype == np.float32
    assert {a.dtype.name for a in (optimizer.weight, optimizer.gradient, optimizer.m, optimizer.v)} == {"float32"}


@pytest.mark.usefixtures("each_kernel_mode")
def test_clipping_bounds_the_norm_and_leaves_small_ones_alone():
    model = Model()
    optimizer = AdamW(model, lr=0.0)
    model.loss().backward()
    norm = float(optimizer.gradient_norm())
    optimizer.step(max_norm=norm / 4)
    clipped = to_host(optimizer.m).copy()
    assert_close(np.sqrt((clipped**2).sum()), 0.1 * norm / 4 * norm / (norm + 1e-6))  # m = (1 - b1) g after one step
    optimizer.m[...] = 0
    optimizer.step(max_norm=norm * 4)
    assert_close(np.sqrt((to_host(optimizer.m) ** 2).sum()), 0.1 * norm)


@given(seed=seeds, n=st.sampled_from([1, 31, 33, 1000, 300_000]), dtype=st.sampled_from(["float32", "float64"]))
def test_kernels_of_the_update_equal_the_definition(seed, n, dtype):
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(n).astype(dtype) for _ in range(3)] + [rng.standard_normal(n).astype(dtype) ** 2]
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "decay": 0.1, "t": 3}
    scale = np.dtype(dtype).type(0.7)
    results = []
    for mode in ("reference", "fast"):
        mine = [to_device(a.copy()) for a in arrays]
        with ag.use_kernels(mode):
            AdamWUpdate.dispatch(*mine, scale, **options).forward(*mine, scale, **options)
            results.append([*mine, SquaredNorm.dispatch(mine[1]).forward(mine[1])])
    for plain, fast in zip(*results, strict=True):
        assert fast.dtype == dtype
        assert_close(fast, to_host(plain))
    for result in results:
        assert (to_host(result[1]) == arrays[1]).all(), "the gradient is read, not written"


@pytest.mark.parametrize(
    "kernel", [k for op in (AdamWUpdate, SquaredNorm) for k in ag.registered_kernels().get(op, [])], ids=lambda k: k.__name__
)
def test_kernels_of_the_update_are_taken(kernel):
    model = Model(np.float32)
    optimizer = AdamW(model)
    model.loss().backward()
    with ag.use_kernels("fast"), takes_fast_path(kernel):
        optimizer.step()


# The flat buffer -----------------------------------------------------------------------------------------------------------------------


def test_parameters_become_views_of_one_buffer_decayed_ones_first():
    model = Model()
    before = host_parameters(model)
    optimizer = AdamW(model)
    assert [name for name, _ in optimizer.named] == ORDER
    assert [g.part for g in optimizer.groups] == [slice(0, 24), slice(24, 40)]
    assert optimizer.weight.size == 12 + 12 + 1 + 4 + 4 + 4 + 3
    flat = np.concatenate([before[name].ravel() for name in ORDER])
    assert (to_host(optimizer.weight) == flat).all()
    for name, p in model.named_parameters():
        assert (to_host(p.data) == before[name]).all() and p.shape == before[name].shape
    optimizer.weight[...] = 7.0
    assert all((to_host(p.data) == 7.0).all() for name, p in model.named_parameters() if name != "frozen.weight")


def test_frozen_parameters_stay_where_they_are():
    model = Model()
    array, before = model.frozen.weight.data, host_parameters(model)["frozen.weight"]
    optimizer = AdamW(model, lr=0.1)
    model.loss().backward()
    optimizer.step()
    assert model.frozen.weight.data is array and (to_host(array) == before).all() and model.frozen.weight.grad is None


def test_gradients_are_views_of_one_buffer_and_are_not_filled_with_zeros():
    model = Model()
    optimizer = AdamW(model)
    optimizer.gradient[...] = 1e9
    model.loss().backward()
    first = to_host(optimizer.gradient).copy()
    assert np.abs(first).max() < 1e6, "the first gradient overwrites"
    model.loss().backward()
    assert_close(optimizer.gradient, 2 * first)
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    model.loss().backward()
    assert_close(optimizer.gradient, first)
    twin = Model()
    twin.loss().backward()
    for (name, p), (_, q) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        if name != "frozen.weight":
            assert_close(p.grad, to_host(q.grad))


def test_accumulated_micro_batches_are_the_gradient_of_the_sum():
    model, twin = Model(), Model()
    optimizer, other = AdamW(model), AdamW(twin)
    for seed in (1, 2, 3):
        (model.loss(seed) / 3).backward()
    ((twin.loss(1) + twin.loss(2) + twin.loss(3)) / 3).backward()
    assert_close(optimizer.gradient, to_host(other.gradient))
    optimizer.step()
    other.step()
    assert_close(optimizer.weight, to_host(other.weight))


def test_named_pairs_and_one_parameter_under_two_names():
    x = ag.Parameter(np.ones((2, 2)))
    y = ag.Parameter(np.ones(3))
    optimizer = AdamW([("y", y), ("x", x), ("again", x)], lr=0.1)
    assert [name for name, _ in optimizer.named] == ["x", "y"] and optimizer.weight.size == 7
    (x.sum() + y.sum()).backward()
    assert float(optimizer.step()) == pytest.approx(np.sqrt(7.0))
    assert (to_host(x.data) < 1).all() and (to_host(y.data) < 1).all()


def test_training_reduces_the_loss():
    model = Model()
    optimizer = AdamW(model, lr=0.02)
    start = model.loss().item()
    for _ in range(60):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step(max_norm=1.0)
    assert model.loss().item() < 0.05 * start


# Errors -----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": float("nan")},
        {"betas": (0.9, 1.0)},
        {"betas": (-0.1, 0.9)},
        {"eps": 0.0},
        {"eps": -1.0},
        {"weight_decay": -0.1},
    ],
    ids=str,
)
def test_illegal_hyperparameters(options):
    (name,) = options
    message = rf"AdamW: .*{name} = .*, expected lr and weight_decay >= 0, 0 <= betas < 1, eps > 0"
    with pytest.raises(ValueError, match=message):
        AdamW(Model(), **options)


def test_nothing_to_train():
    model = linear_of(np.ones((2, 2)))
    model.weight.requires_grad = False
    with pytest.raises(ValueError, match=r"AdamW: none of 1 parameters requires a gradient, expected at least one; unfreeze some"):
        AdamW(model)
    with pytest.raises(ValueError, match=r"AdamW: none of 0 parameters"):
        AdamW([])


def test_parameters_without_names():
    with pytest.raises(
        TypeError, match=r"AdamW: parameters without names, expected a Module or \(name, parameter\) pairs; pass the model itself"
    ):
        AdamW(Model().parameters())


def test_mixed_dtypes():
    model = linear_of(np.ones((2, 2)), np.ones(2, np.float32))
    with pytest.raises(
        ValueError, match=r"AdamW: parameters of dtype float16, expected float32 or float64 \(small updates would be lost\)"
    ):
        AdamW([("w", ag.Parameter(np.ones(2, np.float16)))])
    with pytest.raises(ValueError, match=r"AdamW: parameters of dtypes float32, float64, expected one; convert them before training"):
        AdamW(model)


def test_missing_gradients_are_named():
    model = Model()
    optimizer = AdamW(model)
    message = "AdamW: no gradient for first.weight, second.weight, scale, first.bias, norm.weight and 2 more, expected one for each; call loss.back"
    for call in (optimizer.step, optimizer.gradient_norm):
        with pytest.raises(RuntimeError, match=message):
            call()
    before = host_parameters(model)
    model.first(ag.Tensor(np.ones((2, 3)))).sum().backward()
    with pytest.raises(
        RuntimeError, match=r"AdamW: no gradient for second.weight, scale, norm.weight, norm.bias, second.bias, expected one"
    ):
        optimizer.step()
    assert optimizer.n_steps == 0 and all((to_host(p.data) == before[name]).all() for name, p in model.named_parameters())


def trained():
    model = Model()
    optimizer = AdamW(model)
    model.loss().backward()
    return model, optimizer


def test_freezing_afterwards():
    model, optimizer = trained()
    model.norm.weight.requires_grad = False
    with pytest.raises(
        RuntimeError, match=r"AdamW: norm.weight was frozen after the optimizer was made, expected no change; make a new AdamW"
    ):
        optimizer.step()


def test_thawing_afterwards():
    model, optimizer = trained()
    model.frozen.weight.requires_grad = True
    with pytest.raises(
        RuntimeError, match=r"AdamW: frozen.weight was added or thawed after the optimizer was made, expected no change; make a new"
    ):
        optimizer.step()


def test_adding_afterwards():
    model, optimizer = trained()
    model.more = linear_of(np.ones((2, 2)))
    with pytest.raises(RuntimeError, match=r"AdamW: more.weight was added or thawed after"):
        optimizer.step()


def test_arrays_replaced_afterwards():
    message = r"AdamW: data or grad of {} was replaced by another array, expected the optimizer's own; write into it, as in parameter.data\[...\] = array"
    model, optimizer = trained()
    model.second.bias.data = to_device(np.zeros(3))
    with pytest.raises(RuntimeError, match=message.format("second.bias")):
        optimizer.step()
    model, optimizer = trained()
    model.second.weight.grad = 0.5 * model.second.weight.grad
    with pytest.raises(RuntimeError, match=message.format("second.weight")):
        optimizer.step()
    model, optimizer = trained()
    AdamW(model)
    with pytest.raises(RuntimeError, match=message.format("first.weight")):
        optimizer.step()


# State --------------------------------------------------------------------------------------------------------------------------------------


def test_state_round_trip():
    model, optimizer = trained()
    optimizer.step()
    state = optimizer.state_dict()
    assert state["n_steps"] == 1 and list(state["m"]) == list(state["v"]) == ORDER
    assert state["m"]["first.weight"].shape == (3, 4) and state["v"]["scale"].shape == ()
    saved = {"n_steps": 1, **{key: {name: to_host(a).copy() for name, a in state[key].items()} for key in ("m", "v")}}

    twin = Model()
    for (_, p), value in zip(twin.named_parameters(), host_parameters(model).values(), strict=True):
        p.data[...] = to_device(value)
    other = AdamW(twin)
    other.load_state_dict(saved)
    for m, o in ((model, optimizer), (twin, other)):
        o.zero_grad()
        m.loss(5).backward()
        o.step(max_norm=1.0)
    assert other.n_steps == 2 and (to_host(other.weight) == to_host(optimizer.weight)).all()
    assert saved["m"]["first.weight"] is not other.m


@pytest.mark.parametrize("key", ["m", "v"])
def test_state_of_another_model(key):
    _, optimizer = trained()
    for change, message in (
        (
            lambda d: d.pop("norm.bias"),
            r"AdamW.load_state_dict: moments of norm.bias on one side only, expected the same parameters",
        ),
        (lambda d: d.update(more=np.ones(1)), r"AdamW.load_state_dict: moments of more on one side only"),
        (lambda d: d.update(scale=np.ones(3)), r"AdamW.load_state_dict: moment of scale of shape \(3,\), expected \(\)"),
    ):
        state = optimizer.state_dict()
        change(state[key])
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
