"""Optimizers against their update written out parameter by parameter, the flat buffer, clipping, groups, and state.

Muon's own: test_muon.py.
"""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd.backend import to_device, to_host
from autograd.core import record
from autograd.kernels.destination import destinations
from autograd.nn import Module
from autograd.optim import SGD, Adam, AdamW, AdamWUpdate, FlatOptimizer, Muon, SquaredNorm
from tests.autograd.checks import assert_close, layer_norm_of, linear_of, numpy_only, takes_fast_path
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


OPTIMIZERS = {"adamw": AdamW, "adam": Adam, "sgd": SGD, "nesterov": partial(SGD, nesterov=True), "muon": Muon}
each_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


def host_parameters(model):
    return {name: to_host(p.data).copy() for name, p in model.named_parameters()}


# The update -------------------------------------------------------------------------------------------------------------------------


def adamw_by_hand(w, g, state, *, t, lr, decay, l2=0.0):
    b1, b2, eps = 0.9, 0.95, 1e-8
    m, v = state.setdefault("m", 0 * w), state.setdefault("v", 0 * w)
    g = g + l2 * w
    state["m"], state["v"] = m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return w * (1 - lr * decay) - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def adam_by_hand(w, g, state, *, t, lr, decay):
    return adamw_by_hand(w, g, state, t=t, lr=lr, decay=0.0, l2=decay)


def sgd_by_hand(w, g, state, *, t, lr, decay, momentum=0.8, nesterov=False):
    g = g + decay * w
    state["m"] = momentum * state.get("m", 0.0) + g
    return w - lr * (g + momentum * state["m"] if nesterov else state["m"])


BY_HAND = {
    "adamw": (partial(AdamW, betas=(0.9, 0.95)), adamw_by_hand),
    "adam": (partial(Adam, betas=(0.9, 0.95)), adam_by_hand),
    "sgd": (partial(SGD, momentum=0.8), sgd_by_hand),
    "sgd without momentum": (partial(SGD, momentum=0.0), partial(sgd_by_hand, momentum=0.0)),
    "nesterov": (partial(SGD, momentum=0.8, nesterov=True), partial(sgd_by_hand, nesterov=True)),
}


@pytest.mark.usefixtures("each_kernel_mode")
@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("max_norm", [None, 0.1, 1e6])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_the_update_is_the_papers(name, max_norm, weight_decay):
    make, by_hand = BY_HAND[name]
    model, twin = Model(), Model()
    optimizer = make(model, weight_decay=weight_decay)
    state = {name: {} for name, _ in twin.named_parameters()}
    for t in range(1, 8):
        optimizer.lr = 0.01 * t
        optimizer.zero_grad()
        model.loss(t).backward()
        norm = optimizer.step(max_norm)

        twin.zero_grad()
        twin.loss(t).backward()
        gradients = {name: to_host(p.grad) for name, p in twin.named_parameters() if p.requires_grad}
        total = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        assert_close(norm, total)
        scale = 1.0 if max_norm is None else min(1.0, max_norm / (total + 1e-6))
        for key, p in twin.named_parameters():
            if key in gradients:
                decay = weight_decay * (p.ndim >= 2)
                p.data = to_device(by_hand(to_host(p.data), scale * gradients[key], state[key], t=t, lr=0.01 * t, decay=decay))
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert_close(mine.data, to_host(theirs.data))


@pytest.mark.usefixtures("each_kernel_mode")
@each_optimizer
def test_float32_stays_float32(make):
    model = Model(np.float32)
    optimizer = make(model, weight_decay=0.1)
    for max_norm in (None, 0.1):
        model.loss().backward()
        assert optimizer.step(max_norm).dtype == np.float32
    state = [a for arrays in optimizer.state_arrays().values() for a in arrays.values()]
    assert {a.dtype.name for a in (optimizer.weight, optimizer.gradient, *state)} == {"float32"}


@pytest.mark.usefixtures("each_kernel_mode")
@each_optimizer
def test_the_norm_of_an_update_is_what_it_changes(make):
    model = Model()
    optimizer = make(model, weight_decay=0.0, lr_scale={"second.weight": 0.5, "norm.bias": 3.0})
    for t in range(1, 5):
        optimizer.lr = 0.01 * t
        optimizer.zero_grad()
        model.loss(t).backward()
        before = to_host(optimizer.weight).copy()
        optimizer.step(max_norm=0.1)
        change = np.sqrt(((to_host(optimizer.weight) - before) ** 2).sum())
        assert optimizer.update_norm() == pytest.approx(change, rel=1e-9)
        assert optimizer.update_norm(piece=5) == pytest.approx(change, rel=1e-9)


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


# Groups and learning rates ---------------------------------------------------------------------------------------------------------------


def change_of_one_step(make, **options):
    model = Model()
    before = host_parameters(model)
    optimizer = make(model, lr=0.01, weight_decay=0.0, **options)
    model.loss().backward()
    optimizer.step()
    return {name: w - before[name] for name, w in host_parameters(model).items()}


@pytest.mark.usefixtures("each_kernel_mode")
@each_optimizer
def test_lr_scale_multiplies_the_learning_rate_of_a_parameter(make):
    scale = {"first.weight": 0.0, "second.weight": 2.0, "norm.weight": 0.5}
    plain, scaled = change_of_one_step(make), change_of_one_step(make, lr_scale=scale)
    for name in plain:
        assert_close(scaled[name], scale.get(name, 1.0) * plain[name])
    assert np.abs(plain["second.weight"]).max() > 0


def test_groups_are_ordered_by_kind_then_by_rate_then_as_in_the_model():
    scale = {"first.weight": 2.0, "norm.weight": 0.5, "second.bias": 0.5}
    optimizer = AdamW(Model(), lr_scale=scale)
    assert [(g.kind, g.lr_scale, g.part, [name for name, _ in g.named]) for g in optimizer.groups] == [
        ("decayed", 1.0, slice(0, 12), ["second.weight"]),
        ("decayed", 2.0, slice(12, 24), ["first.weight"]),
        ("plain", 0.5, slice(24, 31), ["norm.weight", "second.bias"]),
        ("plain", 1.0, slice(31, 40), ["scale", "first.bias", "norm.bias"]),
    ]
    assert [name for name, _ in optimizer.named] == [name for g in optimizer.groups for name, _ in g.named]
    assert [name for name, _ in optimizer.named_in_model_order] == ["scale", *[n for n in ORDER_IN_MODEL if n != "scale"]]


ORDER_IN_MODEL = ["scale", "first.weight", "first.bias", "norm.weight", "norm.bias", "second.weight", "second.bias"]


@each_optimizer
def test_lr_scale_of_a_parameter_that_is_not_trained(make):
    for name in ("frozen.weight", "frist.weight"):
        with pytest.raises(ValueError, match=rf"lr_scale of {name}, expected names of trainable parameters, such as scale"):
            make(Model(), lr_scale={name: 0.5})
    for by in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=rf"lr_scale of first.weight is {by}, expected a number >= 0"):
            make(Model(), lr_scale={"first.weight": by})


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


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": float("nan")}], ids=str)
def test_illegal_hyperparameters_of_sgd(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=rf"SGD: .*{name} = {value}.*, expected lr and weight_decay >= 0, 0 <= momentum < 1"):
        SGD(Model(), **options)


def test_the_base_class_updates_nothing():
    optimizer = FlatOptimizer(model := Model(), lr=0.1, weight_decay=0.0)
    model.loss().backward()
    with pytest.raises(NotImplementedError):
        optimizer.step()
    with pytest.raises(NotImplementedError):
        optimizer.update_norm()
    assert optimizer.cost() == AdamW(Model()).cost() == 0 < Muon(Model()).cost()


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


@pytest.mark.exact
@pytest.mark.usefixtures("each_kernel_mode")
@each_optimizer
def test_a_restored_optimizer_continues_bit_for_bit(make):
    model, twin = Model(), Model(seed=1)
    optimizer, other = make(model), make(twin)
    for seed in range(3):
        optimizer.zero_grad()
        model.loss(seed).backward()
        optimizer.step(max_norm=0.5)
    state = optimizer.state_dict()
    copies = {key: {name: to_host(a).copy() for name, a in arrays.items()} for key, arrays in optimizer.state_arrays().items()}
    assert state.keys() == {"n_steps", *copies} and all(a.any() for arrays in copies.values() for a in arrays.values())
    other.weight[...] = optimizer.weight
    twin.frozen.weight.data[...] = model.frozen.weight.data
    other.load_state_dict({"n_steps": state["n_steps"], **copies})
    for m, o in ((model, optimizer), (twin, other)):
        o.zero_grad()
        m.loss(5).backward()
        o.step(max_norm=1.0)
    assert other.n_steps == 4 and (to_host(other.weight) == to_host(optimizer.weight)).all()


def test_the_state_of_another_optimizer():
    sgd, adamw, muon = SGD(Model()), AdamW(Model()), Muon(Model())
    assert list(muon.state_dict()["m"]) == ["first.weight", "second.weight", *ORDER[2:]] and list(muon.state_dict()["v"]) == ORDER[2:]
    with pytest.raises(
        ValueError, match=r"SGD.load_state_dict: a state of m, n_steps, v, expected m, n_steps; is it another optimizer's\?"
    ):
        sgd.load_state_dict(adamw.state_dict())
    with pytest.raises(ValueError, match=r"AdamW.load_state_dict: a state of m, n_steps, expected m, n_steps, v; is it"):
        adamw.load_state_dict(sgd.state_dict())
    with pytest.raises(ValueError, match=r"Muon.load_state_dict: moments of first.weight on one side only"):
        muon.load_state_dict(adamw.state_dict())


def test_the_state_is_named_by_parameter():
    _, optimizer = trained()
    optimizer.step()
    state = optimizer.state_dict()
    assert state["n_steps"] == 1 and list(state["m"]) == list(state["v"]) == ORDER
    assert state["m"]["first.weight"].shape == (3, 4) and state["v"]["scale"].shape == ()


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


@numpy_only
@pytest.mark.parametrize("n_backwards", [1, 2])
def test_gradients_written_into_the_buffer_are_those_that_would_be_copied(n_backwards):
    """The same bits with and without an optimizer's buffer: for a layer's weight, and for an embedding that is also the output layer's."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 11, (2, 5))
    table, bottom = (rng.standard_normal(shape).astype(np.float32) for shape in ((11, 4), (4, 4)))
    gradients = []
    for flat in (False, True):
        tied, square = ag.Parameter(table.copy()), ag.Parameter(bottom.copy())
        if flat:
            AdamW([("tied", tied), ("square", square)]).gradient[...] = np.nan
        for _ in range(n_backwards):
            x = ag.linear(ag.linear(ag.embedding(tied, ids), square), ag.linear(square, square))  # the last one: one leaf as both inputs
            loss = ag.linear_cross_entropy(x, tied, ids)
            (loss if n_backwards == 1 else loss * 0.5).backward()
        assert all((p.grad is p._gradient_buffer) == flat for p in (tied, square))
        gradients.append([tied.grad.copy(), square.grad.copy()])
    for copied, written in zip(*gradients, strict=True):
        np.testing.assert_array_equal(written, copied)


@pytest.mark.parametrize("flat", [False, True])
def test_a_gradient_that_is_handed_back_is_added_like_any_other(flat):
    p = ag.Parameter(np.ones(3, np.float32))
    if flat:
        AdamW([("p", p)])
    (p * 2).sum().backward()
    p.backward(p.grad)
    np.testing.assert_array_equal(to_host(p.grad), np.full(3, 4))
    (p + 1.0).backward(p.grad)  # Add returns dy itself
    np.testing.assert_array_equal(to_host(p.grad), np.full(3, 8))


@numpy_only
def test_a_gradient_in_another_layout_is_added_to():
    rng = np.random.default_rng(0)
    x, w, targets = rng.standard_normal((5, 4), np.float32), rng.standard_normal((7, 4), np.float32), np.arange(5)
    found = []
    for order in "CF":
        p = ag.Parameter(w.copy())
        p.grad = np.zeros((7, 4), np.float32, order=order)
        ag.linear_cross_entropy(ag.Tensor(x), p, targets).backward()
        found.append(p.grad)
    assert np.abs(found[0]).sum() > 1
    np.testing.assert_allclose(*found, rtol=1e-6)


@numpy_only
def test_a_kernel_writes_into_the_buffer_itself_but_not_inside_record():
    seen = []

    class Seen(ag.Op):
        destinations = staticmethod(destinations)

        @staticmethod
        def forward(x):
            return 2 * x, None

        @staticmethod
        def backward(saved, dy, *, into=(None,)):
            seen.append(into[0])
            return 2 * dy

    w = ag.Parameter(np.ones(3, np.float32))
    AdamW([("w", w)])
    Seen.apply(w).sum().backward()
    Seen.apply(w).sum().backward()
    assert [target.filled for target in seen] == [False, True] and all(target.buffer is w.grad for target in seen)
    np.testing.assert_array_equal(w.grad, np.full(3, 4, np.float32))
    with record():
        Seen.apply(w).sum().backward()
    w.grad = w.grad.copy()  # no longer the optimizer's, which will say so: nothing may be added to its buffer unseen
    Seen.apply(w).sum().backward()
    assert seen[2] is None and seen[3].filled and seen[3].buffer is w.grad is not w._gradient_buffer
    np.testing.assert_array_equal(w.grad, np.full(3, 8, np.float32))
