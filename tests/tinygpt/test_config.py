import dataclasses
import json
import math
from pathlib import Path

import pytest

from tinygpt.arguments import parse_args
from tinygpt.config import GPTConfig, PretrainConfig, TrainConfig
from tinygpt.models.cache import KVCache
from tinygpt.presets import PRESETS
from tinygpt.runs.settings import flat_settings


@pytest.mark.parametrize(
    ("name", "n"), [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)]
)
def test_parameter_counts_of_gpt2_are_exact(name, n):
    assert GPTConfig.preset(name).n_parameters() == n


@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("smollm2-135m", 134_515_008), ("llama-3.2-1b", 1_235_814_400), ("qwen2.5-0.5b", 494_032_768), ("qwen3-0.6b", 596_049_920),
        ("pythia-14m", 14_067_712), ("pythia-70m", 70_426_624), ("pythia-160m", 162_322_944), ("olmo-2-1b", 1_484_916_736),
        ("gemma-3-270m", 268_098_176), ("gemma-3-1b", 999_885_952), ("opt-125m", 125_239_296 - 2 * 768), ("nanochat-d20", 560_988_160),
        ("gpt1", 116_534_784), ("llama-2-7b", 6_738_415_616), ("llama-2-13b", 13_015_864_320), ("llama-2-70b", 68_976_648_192),
        ("falcon-7b", 6_921_720_704), ("falcon-40b", 41_303_293_952), ("falcon-180b", 178_557_088_768),
    ],
)  # fmt: skip
def test_parameter_counts_of_other_decoders_are_exact(name, n):
    """Published counts. OPT's file has two rows of positions more, which no token ever gets."""
    assert GPTConfig.preset(name).n_parameters() == n


@pytest.mark.parametrize(
    ("name", "billions"),
    [("small", 0.125), ("medium", 0.350), ("large", 0.760), ("xl", 1.3), ("2.7b", 2.7), ("6.7b", 6.7), ("13b", 13.0), ("", 175.0)],
)
def test_gpt3s_family_has_about_the_counts_of_its_paper(name, billions):
    """Brown et al. 2020, table 2.1, which rounds."""
    assert GPTConfig.preset(f"gpt3-{name}".rstrip("-")).n_parameters() == pytest.approx(billions * 1e9, rel=0.02)


def test_gpt3s_largest_by_the_formula():
    config = GPTConfig.preset("gpt3")
    c = config.n_embd
    assert config.n_parameters() == 96 * (12 * c * c + 13 * c) + (50_257 + 2048) * c + 2 * c == 174_604_259_328


def test_the_table_of_shapes_is_computed():
    """docs/decoders.md: every preset but those for first looks, with its sizes, its weights and its cache's bytes per token."""
    text = (Path(__file__).parents[2] / "docs" / "decoders.md").read_text(encoding="utf-8").split("## The shapes")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")][1:]
    expected = []
    for name in PRESETS.keys() - {"laptop", "shakespeare", "quick"}:
        c, cache = GPTConfig.preset(name), KVCache(GPTConfig.preset(name, n_positions=1, vocab_size=1), 1)
        heads = f"{c.n_head}" if c.kv_heads == c.n_head else f"{c.n_head} / {c.kv_heads}"
        numbers = (c.inner_channels, c.n_positions, c.vocab_size, c.n_parameters(), cache.keys.nbytes + cache.values.nbytes)
        expected.append([name, f"{c.n_layer}", f"{c.n_embd:,}", f"{heads} x {c.channels_per_head}", *(f"{n:,}" for n in numbers)])
    assert sorted(rows) == sorted(expected)


def test_untied_head_without_qkv_bias_has_the_published_count():
    assert GPTConfig.preset("gpt2", tie_word_embeddings=False, qkv_bias=False).n_parameters() == 163_009_536


def test_every_preset_is_legal():
    for name in PRESETS:
        config = GPTConfig.preset(name)
        assert config.channels_per_head >= 8 and config.n_head % config.kv_heads == 0
        assert GPTConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_gpt2s_shapes_take_no_options_and_options_are_listed():
    for name in ("gpt2", "gpt2-xl", "laptop", "quick", "gpt3"):
        assert GPTConfig.preset(name).options() == {}
    assert GPTConfig(n_kv_head=12, head_size=64, n_inner=3072, tie_word_embeddings=False, dropout=0.1).options() == {}
    assert GPTConfig(positions="rotary", rope_theta=1e4, n_kv_head=4).options() == {"positions": "rotary", "n_kv_head": 4}
    assert GPTConfig(n_inner=3000).options() == {"n_inner": 3000}
    assert repr(GPTConfig()).endswith("initializer_range=0.02)") and repr(GPTConfig(window=8)).endswith("initializer_range=0.02, window=8)")


def test_blocks_with_a_window_follow_the_pattern():
    gemma = GPTConfig.preset("gemma-3-1b")
    assert [gemma.window_of(i) for i in range(12)] == 2 * [512, 512, 512, 512, 512, None]
    assert {GPTConfig(window=8).window_of(i) for i in range(12)} == {8} and GPTConfig().window_of(3) is None


LLAMA3 = GPTConfig.preset("llama-3.2-1b").rope_scaling


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "rmsnorm"}, r"GPTConfig.norm: 'rmsnorm', expected layer, rms or rms_unweighted; did you mean 'rms'"),
        ({"norm_offset": 1.0}, r"GPTConfig.norm_offset: 1.0 with norm 'layer', expected norm rms, .*; leave it out, or take --norm rms"),
        ({"norm": "rms_unweighted", "norm_offset": 1.0}, r"norm_offset: 1.0 with norm 'rms_unweighted', expected norm rms"),
        ({"parallel_residual": True, "norm_position": "post"}, r"parallel_residual: True with norm_position 'post', expected norm_position pre"),
        ({"shared_norm": True}, r"shared_norm: True with parallel_residual False, expected parallel_residual"),
        ({"rope_theta": 1e6}, r"rope_theta: 1000000.0 with positions 'learned', expected positions rotary, .* --positions rotary"),
        ({"positions": "alibi", "rope_fraction": 0.5}, r"rope_fraction: 0.5 with positions 'alibi', expected positions rotary"),
        ({"rope_scaling": LLAMA3}, r"rope_scaling: .* with positions 'learned', expected positions rotary"),
        ({"positions": "rotary", "rope_local_theta": 1e4}, r"rope_local_theta: 10000.0 with window None, expected a window"),
        ({"positions": "rotary", "rope_fraction": 1.5}, r"rope_fraction: 1.5, expected 0 to 1, for an even number"),
        ({"positions": "rotary", "head_size": 7}, r"rope_fraction: 1.0, .* even number of channels; 7 channels of 7 would be rotated"),
        ({"positions": "rotary", "rope_fraction": 0.05}, r"3 channels of 64 would be rotated, change rope_fraction"),
        ({"positions": "rotary", "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"rope_type 'yarn', expected linear or llama3; no other"),
        ({"positions": "rotary", "rope_scaling": {"rope_type": "linear"}}, r"rope_scaling: \{\}, expected for linear a positive number .* factor"),
        ({"positions": "rotary", "rope_scaling": LLAMA3 | {"factor": 0}}, r"rope_scaling: .*'factor': 0.*, expected for llama3 a positive"),
        ({"positions": "rotary", "rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, r"low_freq_factor 4.0 with high_freq_factor 4.0, expected low < high"),
        ({"positions": "rotary", "rope_scaling": LLAMA3 | {"low_freq_factor": 5}}, r"rope_scaling: low_freq_factor 5 with high_freq_factor 4.0, expected"),
        ({"positions": "rotary", "rope_scaling": {"rope_type": "linear", "factor": True}}, r"rope_scaling: \{'factor': True\}, expected for linear a positive"),
        ({"positions": "rotary", "rope_local_theta": 20.0, "window": 8, "rope_theta": 1e6},
         r"rope_theta: 1000000.0 with rope_local_theta 20.0, expected the default, as every block has the window, .*; leave one of them out"),
        ({"positions": "rotary", "rope_local_theta": 20.0, "window": 8, "window_pattern": "SS", "rope_scaling": LLAMA3},
         r"rope_scaling: .* with rope_local_theta 20.0, expected the default"),
        ({"window": 4, "window_pattern": "LLS", "n_layer": 2}, r"window_pattern: 'LLS' with n_layer 2, expected an S among its first 2 letters, or no"),
        ({"n_kv_head": 5}, r"n_kv_head 5 with n_head 12, expected n_kv_head to divide n_head; try n_kv_head 4 or 6"),
        ({"n_kv_head": 0}, r"GPTConfig.n_kv_head: 0, expected at least 1"),
        ({"window_pattern": "SL"}, r"window_pattern: 'SL' with window None, expected a window, and a pattern .*; for instance window 256"),
        ({"window": 8, "window_pattern": "LL"}, r"window_pattern: 'LL' with window 8, expected"),
        ({"window": 8, "window_pattern": "SF"}, r"window_pattern: 'SF' with window 8, expected"),
        ({"positions": "sinusoidal", "n_embd": 7, "n_head": 1}, r"positions: 'sinusoidal' with n_embd 7, expected an even n_embd"),
        ({"logit_softcap": 0.0}, r"logit_softcap: 0.0, expected > 0; leave it out for the default"),
        ({"attention_scale": -1.0}, r"attention_scale: -1.0, expected > 0"),
        ({"embedding_scale": math.inf}, r"embedding_scale: inf, expected a finite number"),
    ],
)  # fmt: skip
def test_options_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**fields)


def test_options_with_little_effect_are_legal():
    """Every block with a theta of its own, a block after those with a window, a window of all positions."""
    GPTConfig(positions="rotary", rope_local_theta=20.0, window=8)
    GPTConfig(positions="rotary", rope_local_theta=20.0, rope_theta=1e6, rope_scaling=LLAMA3, window=8, window_pattern="LLS", n_layer=3)
    GPTConfig(window=1024), GPTConfig(window=4096)
    for name in ("gemma-3-270m", "gemma-3-1b"):
        GPTConfig.preset(name, n_layer=2, n_positions=16)


def test_options_are_flags():
    default = PretrainConfig(GPTConfig(n_head=4, n_embd=128), TrainConfig())
    flags = "--positions rotary --rope-scaling rope_type linear factor 8 --n-kv-head 2 --norm rms --gated --window 4 --logit-softcap 15"
    config = parse_args(default, None, flags.split()).model
    assert config == dataclasses.replace(
        default.model, positions="rotary", rope_scaling={"rope_type": "linear", "factor": 8.0}, n_kv_head=2, norm="rms", gated=True, window=4,
        logit_softcap=15.0,
    )  # fmt: skip


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
    "fields",
    [
        {"n_layer": "4"},
        {"n_layer": 4.0},
        {"n_layer": True},
        {"dropout": "0.1"},
        {"embd_pdrop": "0.1"},
        {"qkv_bias": 1},
        {"window": 4.0},
        {"gated": 1},
    ],
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
        "steps", "stop_at", "recompute", "shard_optimizer", "processes", "log_every", "eval_every", "eval_batches", "save_every", "keep", "patience", "on_nan",
        "sample_tokens", "run", "resume", "override", "deterministic_check",
    }  # fmt: skip
    assert set(override) == {
        "lr", "schedule", "final_lr_fraction", "decay_fraction", "decay_shape", "warmup_steps", "betas", "momentum", "adam_lr_scale",
        "weight_decay", "max_norm", "z_loss", "label_smoothing", "dtype", "corpus", "validation_fraction",
    }  # fmt: skip
    assert not {field.name for field in dataclasses.fields(GPTConfig)} & {*free, *override}  # the shape is the run's
