import dataclasses
import math

import pytest

from tinygpt.config import PRESETS, GPTConfig, PretrainConfig, TrainConfig
from tinygpt.runs.settings import flat_settings


@pytest.mark.parametrize(
    ("name", "n"), [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)]
)
def test_parameter_counts_of_gpt2_are_exact(name, n):
    assert GPTConfig.preset(name).n_parameters() == n


def test_untied_head_without_qkv_bias_has_the_published_count():
    assert GPTConfig.preset("gpt2", tie_word_embeddings=False, qkv_bias=False).n_parameters() == 163_009_536


def test_every_preset_is_legal():
    for name in PRESETS:
        assert GPTConfig.preset(name).n_embd % GPTConfig.preset(name).n_head == 0


def test_heads_that_do_not_divide_give_the_nearest_legal_values():
    with pytest.raises(
        ValueError, match=r"n_embd 100 with n_head 6, expected n_head to divide n_embd; try n_embd 96 or 102, or n_head 5 or 10"
    ):
        GPTConfig(n_embd=100, n_head=6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layer": 0}, r"GPTConfig.n_layer: 0, expected at least 1"),
        ({"dropout": 1.0}, r"GPTConfig.dropout: 1.0, expected 0 <= dropout < 1; "),
        ({"attn_pdrop": -0.1}, r"GPTConfig.attn_pdrop: -0.1, expected 0 <= attn_pdrop < 1; "),
        ({"layer_norm_epsilon": 0.0}, r"layer_norm_epsilon 0.0, .*expected both > 0; "),
    ],
)
def test_illegal_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**fields)


@pytest.mark.parametrize(
    "fields", [{"n_layer": "4"}, {"n_layer": 4.0}, {"n_layer": True}, {"dropout": "0.1"}, {"embd_pdrop": "0.1"}, {"qkv_bias": 1}]
)
def test_wrong_types_are_named(fields):
    (name,) = fields
    with pytest.raises(TypeError, match=rf"GPTConfig.{name}: .*, expected (int|float|bool); "):
        GPTConfig(**fields)


def test_unknown_keys_and_presets_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"unknown key 'n_layers', .*did you mean 'n_layer'\?"):
        GPTConfig.from_dict({"n_layers": 4})
    with pytest.raises(ValueError, match=r"'gpt-2', expected one of .*did you mean 'gpt2'\?"):
        GPTConfig.preset("gpt-2")


def test_accumulation_follows_from_tokens_per_update():
    config = TrainConfig(micro_batch=4, tokens_per_update=1536)
    assert config.accumulation(128) == 3
    assert TrainConfig().accumulation(128) == 1
    with pytest.raises(ValueError, match=r"tokens_per_update: 1000, expected a multiple of .* 4 x 128 = 512; try 512 or 1024"):
        dataclasses.replace(config, tokens_per_update=1000).accumulation(128)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"steps": 0}, "TrainConfig.steps: 0, expected at least 1"), ({"seed": -1}, "TrainConfig.seed: -1, expected at least 0"),
     ({"final_lr_fraction": 1.5}, "TrainConfig.final_lr_fraction: 1.5, expected 0 to 1; "),
        ({"lr": 0.0}, "TrainConfig.lr: 0.0, expected > 0; "), ({"lr": math.inf}, "TrainConfig.lr: inf, expected a finite number"),
        ({"max_norm": math.nan}, "TrainConfig.max_norm: nan, expected a finite number"),
        ({"betas": (0.9, math.nan)}, r"TrainConfig.betas: \(0.9, nan\), expected 0 <= beta < 1 for both")],
)  # fmt: skip
def test_illegal_training_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


def test_what_resuming_may_change_is_noted_at_the_fields():
    rules = {name: rule for name, _, rule in flat_settings(PretrainConfig(GPTConfig(), TrainConfig()))}
    free, override = ([name for name, rule in rules.items() if rule == wanted] for wanted in ("free", "override"))
    assert set(free) == {
        "steps", "stop_at", "recompute", "processes", "log_every", "eval_every", "eval_batches", "save_every", "keep", "patience", "on_nan",
        "sample_tokens", "run", "resume", "override", "deterministic_check",
    }  # fmt: skip
    assert set(override) == {
        "lr", "final_lr_fraction", "warmup_steps", "betas", "weight_decay", "max_norm", "dtype", "corpus", "validation_fraction",
    }  # fmt: skip
    assert not {field.name for field in dataclasses.fields(GPTConfig)} & {*free, *override}  # the shape is the run's
