"""The recipes of the default run, and how --recipe and the other flags go together."""

import dataclasses

import numpy as np
import pytest

from autograd.optim import AdamW, Muon
from tinygpt import GPT, PretrainConfig, TrainConfig
from tinygpt.cli import settings
from tinygpt.data.windows import Windows
from tinygpt.model_config import GPTConfig
from tinygpt.recipes import RECIPES
from tinygpt.training.trainer import Trainer

SCRIPT = {name: PretrainConfig(model, train, recipe=name) for name, (model, train) in RECIPES.items()}


def read(*flags):
    return settings(SCRIPT["tinygpt"], "", list(flags), recipes=SCRIPT)


def test_the_flags_start_from_the_recipe():
    assert read() == SCRIPT["tinygpt"]
    assert read("--recipe", "gpt2") == read("--recipe=gpt2") == SCRIPT["gpt2"]
    changed = read("--lr", "0.5", "--recipe", "gpt2")
    assert changed == dataclasses.replace(SCRIPT["gpt2"], train=dataclasses.replace(RECIPES["gpt2"][1], lr=0.5))


def test_an_unknown_recipe_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        read("--recipe", "gpt3")
    assert end.value.code == 2
    assert "gpt3" in (text := "".join(capsys.readouterr())) and "tinygpt" in text and "gpt2" in text


def test_gpt2_is_gpt2():
    model, train = RECIPES["gpt2"]
    assert model == GPTConfig.preset("laptop") and not model.options()
    assert train == TrainConfig(steps=2000, lr=2e-3, warmup_steps=100, micro_batch=8, eval_every=200)


def test_the_default_is_the_recipe_that_was_measured():
    """Pages and README give figures of these settings: with others, run benchmarks/recipes.py and benchmarks/ablations.py again."""
    model, train = RECIPES["tinygpt"]
    assert model == GPTConfig.preset("laptop", positions="rotary", initializer_range=0.05)
    assert (train.steps, train.micro_batch, train.optimizer, train.lr, train.adam_lr_scale) == (1600, 8, "muon", 5e-3, 2.0)
    assert (train.momentum, train.betas, train.weight_decay, train.schedule, train.warmup_steps) == (0.9, (0.9, 0.99), 0.1, "wsd", 50)
    assert (train.decay_fraction, train.decay_shape, train.final_lr_fraction) == (0.4, "linear", 0.0)


@pytest.mark.parametrize("name", list(RECIPES))
def test_each_recipe_trains_and_names_itself(name):
    model, train = RECIPES[name]
    assert SCRIPT[name].recipe == name
    small = dataclasses.replace(model, n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=31)
    tokens = np.tile(np.arange(31), 40)
    config = dataclasses.replace(train, steps=30, warmup_steps=5, micro_batch=4, processes=1)
    trainer = Trainer(GPT(small), config, Windows(tokens, 16), None)
    assert isinstance(trainer.optimizer, Muon if train.optimizer == "muon" else AdamW)
    losses = [float(trainer.update()[0]) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.3
