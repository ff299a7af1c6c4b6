"""Modules: how parameters are found and named."""

import numpy as np
import pytest

import autograd as ag
from autograd.backend import to_host
from autograd.nn import Dropout, Embedding, LayerNorm, Linear, Module, RMSNorm, activation, evaluating, uniform
from autograd.optim import AdamW
from tests.autograd.checks import assert_close, layer_norm_of, linear_of, tensor


class Block(Module):
    def __init__(self, rng):
        self.norm = layer_norm_of(np.ones(4), np.zeros(4))
        self.fc = linear_of(rng.standard_normal((4, 4)), np.zeros(4))
        self.dropout = Dropout(0.5, ag.RandomStream(0))

    def forward(self, x):
        return x + self.dropout(self.fc(self.norm(x)))


class Model(Module):
    def __init__(self, n_blocks=2, tied=True):
        rng = np.random.default_rng(0)
        self.embedding = Embedding(5, 4, init=rng.standard_normal)
        self.h = [Block(rng) for _ in range(n_blocks)]
        self.head = linear_of(rng.standard_normal((4, 5)))
        if tied:
            self.head.weight = self.embedding.weight
        self.scale = ag.Parameter(np.ones(()))
        self.notes = ["no", 1, None, np.ones(3), tensor([1.0])]

    def forward(self, ids):
        x = self.embedding(ids)
        for block in self.h:
            x = block(x)
        return (x * self.scale) @ self.head.weight.T


NAMES = [
    "scale", "embedding.weight",
    "h.0.norm.weight", "h.0.norm.bias", "h.0.fc.weight", "h.0.fc.bias",
    "h.1.norm.weight", "h.1.norm.bias", "h.1.fc.weight", "h.1.fc.bias",
]  # fmt: skip


def test_names_are_dotted_and_follow_gpt2():
    model = Model()
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert dict(model.named_parameters())["h.1.norm.weight"] is model.h[1].norm.weight
    assert [name for name, _ in model.named_modules()] == [
        "", "embedding", "h.0", "h.0.norm", "h.0.fc", "h.0.dropout", "h.1", "h.1.norm", "h.1.fc", "h.1.dropout", "head",
    ]  # fmt: skip
    assert [name for name, _ in model.h[0].named_parameters()] == ["norm.weight", "norm.bias", "fc.weight", "fc.bias"]


def test_a_tied_weight_comes_once_an_untied_one_twice():
    tied, untied = Model(), Model(tied=False)
    assert len(tied.parameters()) == len(NAMES) and len(untied.parameters()) == len(NAMES) + 1
    assert [name for name, _ in untied.named_parameters()][-1] == "head.weight"
    assert tied.n_parameters() == 5 * 4 + 2 * (4 + 4 + 16 + 4) + 1
    assert untied.n_parameters() == tied.n_parameters() + 20


def test_a_list_of_modules_may_be_a_tuple_or_empty():
    model = Model(n_blocks=1)
    model.h = (*model.h,)
    assert "h.0.fc.weight" in dict(model.named_parameters())
    model.h = []
    assert [name for name, _ in model.named_parameters()] == ["scale", "embedding.weight"]


def test_frozen_parameters_are_still_listed():
    model = Model()
    model.embedding.weight.requires_grad = False
    assert [name for name, _ in model.named_parameters()] == NAMES


def test_train_and_eval_reach_every_module():
    model = Model()
    ids = np.array([[0, 1, 4]])
    assert model.training and model.h[1].dropout.training
    assert model.eval() is model and not any(module.training for _, module in model.named_modules())
    assert_close(model(ids).data, model(ids).numpy())
    assert model.train() is model and all(module.training for _, module in model.named_modules())
    assert (model(ids).data != model(ids).data).any()
    assert not Model().eval().training and Model().training  # the class itself is not switched


def test_evaluating_restores_the_mode_of_each_module():
    model = Model()
    model.h[0].eval()  # as a user does who trains one half
    before = [module.training for _, module in model.named_modules()]

    def modes():
        return [module.training for _, module in model.named_modules()]

    with evaluating(model):
        assert not any(modes())
        with evaluating(model.h[1]):
            pass
        assert not any(modes())  # the inner block gives back what it found
        model.train()
    assert modes() == before
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert modes() == before

    def abandoned():
        with evaluating(model):
            yield not any(modes())

    steps = abandoned()
    assert next(steps) and not any(modes())
    steps.close()
    assert modes() == before


def test_zero_grad_forgets():
    model = Model()
    model(np.array([0, 1])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_are_their_ops():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((2, 3)), rng.standard_normal((3, 4)), rng.standard_normal(4)
    assert_close(linear_of(weight, bias)(tensor(x)).data, x @ weight + bias)
    assert_close(linear_of(weight)(tensor(x)).data, x @ weight)
    assert_close(Embedding(3, 4, init=lambda shape: weight)([2, 0]).data, weight[[2, 0]])
    gamma, beta = rng.standard_normal(3), rng.standard_normal(3)
    normalized = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 0.1)
    assert_close(layer_norm_of(gamma, beta, eps=0.1)(tensor(x)).data, gamma * normalized + beta)
    layer = Dropout(0.5, ag.RandomStream(3))
    assert_close(layer(tensor(x)).data, ag.dropout(tensor(x), 0.5, stream=ag.RandomStream(3)).numpy())
    assert_close(layer.eval()(tensor(x)).data, x)


def test_a_module_without_forward():
    class Empty(Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty: no forward, expected one; define it in the subclass"):
        Empty()(1)
    assert Empty().n_parameters() == 0


def test_layers_take_sizes_and_start_where_the_docs_say():
    linear, bare, embedding, norm = Linear(4, 1000), Linear(4, 2, bias=False), Embedding(1000, 25), LayerNorm(3)
    assert [p.shape for p in linear.parameters()] == [(4, 1000), (1000,)] and bare.bias is None
    assert embedding.weight.shape == (1000, 25) and norm.eps == 1e-5
    assert {p.dtype for layer in (linear, bare, embedding, norm) for p in layer.parameters()} == {np.dtype(np.float32)}
    assert not to_host(linear.bias.data).any() and not to_host(norm.bias.data).any() and (to_host(norm.weight.data) == 1).all()
    for weight, bound in ((linear.weight, 0.5), (embedding.weight, 0.2)):  # 1 / sqrt of what each output adds up
        values = to_host(weight.data).astype(float)
        assert 0.99 * bound < np.abs(values).max() <= bound and len(np.unique(values)) > 0.99 * values.size
        assert abs(values.mean()) < 6 * values.std() / np.sqrt(values.size)
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_rms_norm_starts_as_a_norm_without_a_weight():
    plain, moved, bare = RMSNorm(3), RMSNorm(3, 1e-5, offset=1.0), RMSNorm(3, weight=False)
    assert to_host(plain.weight.data).tolist() == [1, 1, 1] and to_host(moved.weight.data).tolist() == [0, 0, 0] and bare.weight is None
    assert plain.weight.dtype == moved.weight.dtype == np.float32 and not bare.parameters()
    assert (plain.eps, moved.eps, moved.offset) == (1e-6, 1e-5, 1.0)
    x = tensor(np.array([[3.0, 4.0, 12.0]], np.float32))
    for norm in (plain, moved, bare):
        y = norm(x)
        assert y.dtype == np.float32
        np.testing.assert_allclose(to_host(y.data), [np.array([3, 4, 12]) / np.sqrt(169 / 3)], rtol=1e-5)
    half = moved(ag.Tensor(to_host(x.data).astype("f2")))
    assert half.dtype == np.float16


def test_activations_have_names():
    x = tensor([-1.0, 2.0])
    for name in ("relu", "gelu", "gelu_exact", "silu", "squared_relu"):
        assert_close(activation(name)(x).data, to_host(getattr(ag, name)(x).data))
    with pytest.raises(ValueError, match=r"activation: 'gelu_new', expected one of relu, gelu, gelu_exact, silu, squared_relu"):
        activation("gelu_new")


def test_initial_values_are_decided_by_the_stream_or_by_init():
    one, same, other = (to_host(uniform((3, 4), stream=ag.RandomStream(seed))) for seed in (1, 1, 2))
    assert (one == same).all() and (one != other).any()
    assert (to_host(Linear(3, 4).weight.data) != to_host(Linear(3, 4).weight.data)).any()  # two layers of one network differ
    assert uniform((0, 3)).shape == (0, 3)
    layer = Linear(2, 3, init=lambda shape: np.full(shape, 7.0))
    assert (to_host(layer.weight.data) == 7).all() and layer.weight.dtype == layer.bias.dtype == np.float64


def test_a_module_prints_as_a_tree():
    model = Model()
    model.h[0].fc.weight.requires_grad = False
    assert repr(model) == (
        "Model(scale ())\n"
        "  embedding: Embedding(weight (5, 4))\n"
        "  h.0: Block()\n"
        "    norm: LayerNorm(weight (4,), bias (4,), eps=1e-05)\n"
        "    fc: Linear(weight (4, 4) frozen, bias (4,))\n"
        "    dropout: Dropout(p=0.5)\n"
        "  h.1: Block()\n"
        "    norm: LayerNorm(weight (4,), bias (4,), eps=1e-05)\n"
        "    fc: Linear(weight (4, 4), bias (4,))\n"
        "    dropout: Dropout(p=0.5)\n"
        "  head: Linear(weight (5, 4))"
    )
    assert "\n  h.0 to h.2: Block()\n" in repr(Model(n_blocks=3).eval())


def test_a_two_layer_network_learns_xor():
    class MLP(Module):
        def __init__(self, stream):
            self.hidden = Linear(2, 8, init=lambda shape: uniform(shape, stream=stream))
            self.out = Linear(8, 1, init=lambda shape: uniform(shape, stream=stream))

        def forward(self, x):
            return self.out(ag.tanh(self.hidden(x)))

    x, target = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32), np.array([[0], [1], [1], [0]], np.float32)
    model = MLP(ag.RandomStream(0))
    optimizer = AdamW(model, lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        error = model(tensor(x)) - tensor(target)
        (error * error).mean().backward()
        optimizer.step()
    np.testing.assert_allclose(to_host(model(tensor(x)).data), target, atol=0.05)


def test_a_parameter_does_not_leave_its_module_unnoticed():
    layer = linear_of(np.ones((2, 1)), np.zeros(1))
    with ag.no_grad():
        with pytest.raises(TypeError, match="Tensor: -= on a tensor"):
            layer.weight -= 0.1
        for other in (layer.weight - 0.1, np.ones((2, 1)), 1.0):
            with pytest.raises(
                TypeError, match=r"Linear.weight: a \w+ in place of a Parameter, expected .*; write weight.data\[...\] = array"
            ):
                layer.weight = other
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    layer.weight, layer.bias = ag.Parameter(np.zeros((2, 1))), None
    assert [name for name, _ in layer.named_parameters()] == ["weight"]
