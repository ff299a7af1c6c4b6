"""Modules: how parameters are found and named."""

import numpy as np
import pytest

import autograd as ag
from autograd.nn import Dropout, Embedding, LayerNorm, Linear, Module
from tests.autograd.checks import assert_close, tensor


class Block(Module):
    def __init__(self, rng):
        self.norm = LayerNorm(np.ones(4), np.zeros(4))
        self.fc = Linear(rng.standard_normal((4, 4)), np.zeros(4))
        self.dropout = Dropout(0.5, ag.RandomStream(0))

    def forward(self, x):
        return x + self.dropout(self.fc(self.norm(x)))


class Model(Module):
    def __init__(self, n_blocks=2, tied=True):
        rng = np.random.default_rng(0)
        self.embedding = Embedding(rng.standard_normal((5, 4)))
        self.h = [Block(rng) for _ in range(n_blocks)]
        self.head = Linear(rng.standard_normal((4, 5)))
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


def test_zero_grad_forgets():
    model = Model()
    model(np.array([0, 1])).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_are_their_ops():
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((2, 3)), rng.standard_normal((3, 4)), rng.standard_normal(4)
    assert_close(Linear(weight, bias)(tensor(x)).data, x @ weight + bias)
    assert_close(Linear(weight)(tensor(x)).data, x @ weight)
    assert Linear(weight).bias is None
    assert_close(Embedding(weight)([2, 0]).data, weight[[2, 0]])
    gamma, beta = rng.standard_normal(3), rng.standard_normal(3)
    normalized = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 0.1)
    assert_close(LayerNorm(gamma, beta, eps=0.1)(tensor(x)).data, gamma * normalized + beta)
    assert LayerNorm(gamma, beta).eps == 1e-5
    layer = Dropout(0.5, ag.RandomStream(3))
    assert_close(layer(tensor(x)).data, ag.dropout(tensor(x), 0.5, stream=ag.RandomStream(3)).numpy())
    assert_close(layer.eval()(tensor(x)).data, x)


def test_a_module_without_forward():
    class Empty(Module):
        pass

    with pytest.raises(NotImplementedError, match="Empty: no forward, expected one; define it in the subclass"):
        Empty()(1)
    assert Empty().n_parameters() == 0
