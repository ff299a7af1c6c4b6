"""The families of published models without anybody else's library: which one a config is saved as, what their files may hold, what is
refused and how; and that a model of each trains, is fine-tuned and decodes fast. Against transformers: test_parity_families.py."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from autograd import backend
from autograd.optim import AdamW
from tests.tinygpt.helpers import Notes, decoders, peak_of_loading, randomize, weights
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.data.windows import Windows, encode_documents
from tinygpt.finetuning.classifier import GPTClassifier, LabeledBatches
from tinygpt.finetuning.common import fit
from tinygpt.inference.fast import supports_fast_decoding
from tinygpt.model_config import SIZES
from tinygpt.presets import PRESETS
from tinygpt.storage.safetensors import WEIGHTS
from tinygpt.weights import config_json
from tinygpt.weights.config_json import FAMILIES, family_of, read_config
from tinygpt.weights.family import canonical_name, meaning
from tinygpt.weights.pretrained import StoredModel

SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 16, "vocab_size": 29, "n_inner": 24}
GROUPED = {"n_kv_head": 1, "head_size": 8}


def small(preset, **changes):
    return GPTConfig.preset(preset, **SMALL, **changes)


GEMMA_3 = small("gemma-3-270m", **GROUPED, embedding_scale=4.0, attention_scale=8**-0.5, window=5, window_pattern="SL")
CONFIGS = {
    "gpt2": small("gpt2"),
    "llama": small("smollm2-135m", n_kv_head=1),
    "qwen2": small("qwen2.5-0.5b", n_kv_head=1),
    "qwen3": small("qwen3-0.6b", **GROUPED),
    "mistral": small("smollm2-135m", n_kv_head=1, window=5),
    "olmo2": small("olmo-2-1b"),
    "gemma": dataclasses.replace(GEMMA_3, qk_norm="none", norm_position="pre", attention_scale=None, window=None, window_pattern="", rope_local_theta=None, rope_theta=1e4),
    "gemma2": dataclasses.replace(GEMMA_3, qk_norm="none", rope_local_theta=None, attention_softcap=50.0, logit_softcap=30.0),
    "gemma3_text": GEMMA_3,
    "gpt_neox": small("pythia-14m"),
    "opt": small("opt-125m", norm_position="post"),
    "nanochat": small("nanochat-d20"),
}  # fmt: skip


def test_families_have_a_config_here_and_their_files_are_short():
    decoders = [family for family in FAMILIES if family.config is GPTConfig]
    assert list(CONFIGS) == [family.model_type for family in decoders]
    names = {Path(sys.modules[family.read.__module__].__file__) for family in FAMILIES}
    assert len({family.read.__module__ for family in decoders}) == 6
    for path in names:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 120, path


# ---- which family ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_each_is_saved_as_what_it_is_and_comes_back(tmp_path, name):
    config = CONFIGS[name]
    model = randomize(GPT(config), 0, "float32")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["model_type"] == name
    back = GPT.from_pretrained(tmp_path)
    assert meaning(back.config) == meaning(config) and back.config.options().keys() == config.options().keys()
    np.testing.assert_equal(weights(back), weights(model))


def test_the_presets_are_saved_as_their_families():
    expected = {
        "smollm2-135m": "llama", "llama-3.2-1b": "llama", "llama-2-70b": "llama", "qwen2.5-0.5b": "qwen2", "qwen3-0.6b": "qwen3",
        "pythia-14m": "gpt_neox", "olmo-2-1b": "olmo2", "gemma-3-270m": "gemma3_text", "gemma-3-1b": "gemma3_text", "nanochat-d20": "nanochat",
        "opt-125m": "gpt2",  # GPT-2's format has ReLU, too
        "gpt1": "opt",  # norms on the sums
        "falcon-7b": "tinygpt", "gpt3": "gpt2",
    }  # fmt: skip
    assert {name: family_of(GPTConfig.preset(name)).model_type for name in expected} == expected
    assert expected.keys() <= PRESETS.keys()


OPTIONS = [f.name for f in dataclasses.fields(GPTConfig) if f.name not in SIZES.split()]


@given(name=st.sampled_from(list(CONFIGS)), other=decoders(), changed=st.lists(st.sampled_from(OPTIONS), max_size=3))
def test_whatever_family_describes_a_config_reads_it_back(name, other, changed):
    """No option is lost on the way through any family's keys: for its own configs, and for those with a few options of others."""
    try:
        config = dataclasses.replace(CONFIGS[name], **{option: getattr(other, option) for option in changed})
    except ValueError:
        assume(False)
    path = Path("config.json")
    for family in FAMILIES:
        if family.describes(config):
            found = read_config(path, {"model_type": family.model_type} | family.write(config))
            assert meaning(found) == meaning(config)
    config = dataclasses.replace(config, dropout=0.1, attn_pdrop=0.2)
    fields = config_json.config_fields(config, None, {})
    assert read_config(path, fields).dropouts == {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.2}
    assert fields["model_type"] == family_of(config).model_type


# ---- what files may hold -----------------------------------------------------------------------------------------------------------------


def saved(directory, name):
    """A saved model of a family: its tensors as they are in the file, and its weights."""
    model = randomize(GPT(CONFIGS[name]), 1, "float32")
    model.save_pretrained(directory)
    return load_file(directory / WEIGHTS), weights(model)


def renamed(tensors, *pairs):
    for old, new in pairs:
        tensors = {name.replace(old, new, 1) if name.startswith(old) else name: array for name, array in tensors.items()}
    return tensors


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", [("model.", "")]),  # LlamaModel's
        ("llama", [("model.", "_orig_mod.model."), ("lm_head", "_orig_mod.lm_head")]),
        ("opt", [("model.decoder.", "decoder.")]),  # OPTModel's
        ("gpt_neox", [("gpt_neox.", "")]),
        ("gpt_neox", [("embed_out", "lm_head")]),  # transformers 5
    ],
)
def test_names_with_other_beginnings(tmp_path, family, names):
    tensors, expected = saved(tmp_path, family)
    changed = renamed(tensors, *names)
    assert changed.keys() != tensors.keys()
    save_file(changed, tmp_path / WEIGHTS)
    np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), expected)


def test_masks_and_angles_of_older_files_are_no_weights(tmp_path):
    tensors, expected = saved(tmp_path, "gpt_neox")
    layer = "gpt_neox.layers.0.attention."
    tensors |= {f"{layer}bias": np.ones((1, 1, 4, 4), np.uint8), f"{layer}masked_bias": np.array(-1e9, np.float32)}
    save_file(tensors | {f"{layer}rotary_emb.inv_freq": np.ones(2, np.float32)}, tmp_path / WEIGHTS)
    np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), expected)


def test_a_tied_head_may_be_in_the_file_if_it_is_the_same(tmp_path):
    tensors, expected = saved(tmp_path, "llama")
    assert "lm_head.weight" not in tensors
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, tmp_path / WEIGHTS)
    np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), expected)
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"lm_head.weight differs from embed_tokens.weight, expected equal ones"):
        GPT.from_pretrained(tmp_path)


def test_tensors_that_do_not_fit_are_listed_by_their_names(tmp_path):
    tensors, _ = saved(tmp_path, "llama")
    wrong = {name.replace("mlp.up_proj", "mlp.up_project"): array for name, array in tensors.items()}
    wrong["model.norm.weight"] = np.ones(3, np.float32)
    wrong["model.layers.0.self_attn.k_proj.weight"] = np.ones((16, 16), np.float32)
    save_file(wrong, tmp_path / WEIGHTS)
    with pytest.raises(ValueError) as caught:
        GPT.from_pretrained(tmp_path)
    message = str(caught.value)
    assert "missing layers.0.mlp.up_proj.weight (24, 16), layers.1.mlp.up_proj.weight (24, 16)" in message
    assert "unexpected layers.0.mlp.up_project.weight (24, 16)" in message and "norm.weight of shape (3,) instead of (16,)" in message
    assert "layers.0.self_attn.k_proj.weight of shape (16, 16) instead of (8, 16)" in message
    assert message.endswith("layers.0.mlp.up_project.weight: did you mean 'layers.0.mlp.up_proj.weight'?")


def test_opts_two_rows_of_padding_are_skipped(tmp_path):
    tensors, expected = saved(tmp_path, "opt")
    rows = tensors["model.decoder.embed_positions.weight"]
    assert rows.shape == (18, 16) and not rows[:2].any()
    np.testing.assert_array_equal(rows[2:], expected["wpe.weight"])
    rows[:2] = 7
    save_file(tensors, tmp_path / WEIGHTS)
    np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), expected)


@pytest.mark.skipif(backend.name == "cupy", reason="counts the host's memory")
@pytest.mark.parametrize("name", ["llama", "gpt_neox", "nanochat", "opt"])
def test_loading_needs_the_weights_once(tmp_path, name):
    config = dataclasses.replace(CONFIGS[name], n_layer=4, n_head=4, n_kv_head=4, n_embd=128, n_inner=512, vocab_size=2000)
    model = GPT(config)
    model.save_pretrained(tmp_path)
    weight_bytes = 4 * model.n_parameters()
    assert weight_bytes < peak_of_loading(tmp_path) < 1.3 * weight_bytes


# ---- what is refused ---------------------------------------------------------------------------------------------------------------------

SUPPORTED, DECODERS = ", ".join(family.model_type for family in FAMILIES), ", ".join(CONFIGS)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model_type": "mixtral", "num_local_experts": 8},
            r"model_type 'mixtral', expected one of gpt2, .*t5; mixtral: a mixture of experts: ",
        ),
        ({"model_type": "qwen3_moe"}, r"qwen3_moe: a mixture of experts"),
        ({"model_type": "deepseek_v3", "n_routed_experts": 256}, r"deepseek_v3: a mixture of experts"),
        ({"model_type": "gpt_oss", "num_local_experts": 32}, r"gpt_oss: a mixture of experts"),
        ({"model_type": "falcon"}, r"falcon: its projections are fused in an order that no table here describes"),
        ({"model_type": "phi3"}, r"phi3: its projections are fused"),
        ({"model_type": "gemma3"}, r"gemma3: reads pictures or sound, too: take the family's model for text alone"),
        ({"model_type": "bart"}, r"bart: an encoder-decoder that no table here describes"),
        ({"model_type": "distilbert"}, r"distilbert: an encoder"),
        ({"model_type": "mamba"}, r"mamba: not a transformer"),
        ({"model_type": "smollm3"}, r"smollm3: some of its blocks have no rotary positions"),
        ({"model_type": "llama4", "text_config": {"num_local_experts": 16}}, r"llama4: a mixture of experts"),
        ({"model_type": "x"}, r"; x: docs/checkpoints.md says what loads"),
        ({}, r"model_type None, expected one of gpt2, llama"),
        ({"model_type": ["llama"]}, r"model_type \['llama'\], expected one of"),
    ],
)
def test_other_architectures_are_refused_with_the_reason_and_what_is_supported(tmp_path, fields, message):
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        StoredModel(tmp_path)
    assert f"expected one of {SUPPORTED}; " in str(caught.value)


LLAMA3 = GPTConfig.preset("llama-3.2-1b").rope_scaling
VARIANTS = [
    ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantization_config 'gptq', expected float32, float16 or bfloat16"),
    ("llama", {"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantization_config 'bitsandbytes', .*take the files from which"),
    ("llama", {"quantization_config": {"group_size": 64, "bits": 4}}, r"config.json: quantization_config \{'group_size': 64, 'bits': 4\}, expected float32"),
    ("llama", {"quantization": {"group_size": 64, "bits": 4}}, r"config.json: quantization \{'group_size': 64, 'bits': 4\}, expected float32"),
    ("llama", {"compression_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}}, r"compression_config 'compressed-tensors', expected"),
    ("llama", {"quantization": "fp8"}, r"quantization 'fp8', expected float32"),
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, r"rope_type 'yarn', expected default, linear or llama3; .* not supported"),
    ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, r"rope_type 'dynamic'"),
    ("llama", {"rope_scaling": {"rope_type": "longrope"}}, r"rope_type 'longrope'"),
    ("llama", {"rope_scaling": "linear"}, r"rope_scaling 'linear', expected an object with names and values"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, r"rope_scaling: .*expected for llama3 a positive number for each of"),
    ("llama", {"partial_rotary_factor": 0.5}, r"partial_rotary_factor 0.5, expected 1.0"),
    ("llama", {"hidden_act": "tanh"}, r"hidden_act 'tanh', expected one of gelu_new, .*relu2; this variant is not supported"),
    ("llama", {"hidden_size": None}, r"no hidden_size, expected the model's size"),
    ("llama", {"attention_bias": "yes"}, r"config.json: GPTConfig.qkv_bias: 'yes', expected bool"),
    ("llama", {"num_key_value_heads": 3}, r"config.json: GPTConfig: n_kv_head 3 with n_head 2, expected n_kv_head to divide n_head"),
    ("qwen2", {"layer_types": ["chunked_attention"] * 2}, r"layer_types \['chunked_attention', .*\], expected full_attention or sliding_attention"),
    ("qwen2", {"layer_types": ["full_attention"] * 3}, r"config.json: layer_types of 3 layers, expected 2, num_hidden_layers; take config.json as"),
    ("gemma3_text", {"layer_types": ["sliding_attention"]}, r"layer_types of 1 layers, expected 2"),
    ("llama", {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}}, r"config.json: GPTConfig.rope_scaling: low_freq_factor 4.0 with high_freq_factor 4.0"),
    ("llama", {"rope_scaling": LLAMA3 | {"factor": True}}, r"config.json: GPTConfig.rope_scaling: .*'factor': True"),
    ("qwen2", {"layer_types": None, "num_hidden_layers": 10**9}, r"num_hidden_layers 1000000000, expected a number from 1 to 10000"),
    ("gemma3_text", {"use_bidirectional_attention": True}, r"use_bidirectional_attention True, expected False; a model that sees later tokens"),
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, r"attn_logit_softcapping 50.0, expected None; Gemma 3 has no such cap"),
    ("gemma3_text", {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}}, r"rope_parameters sliding_attention .*expected rope_type default"),
    ("gemma2", {"query_pre_attn_scalar": 0}, r"query_pre_attn_scalar 0, expected a number from 1"),
    ("opt", {"word_embed_proj_dim": 8}, r"word_embed_proj_dim 8, expected 16, hidden_size; .*\(project_in, project_out\) are not supported"),
    ("opt", {"_remove_final_layer_norm": True}, r"_remove_final_layer_norm True, expected False"),
    ("opt", {"layer_norm_elementwise_affine": False}, r"layer_norm_elementwise_affine False, expected True"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "message"), VARIANTS)
def test_variants_that_are_not_computed_are_refused(tmp_path, name, change, message):
    saved(tmp_path, name)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | change
    path.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises((ValueError, TypeError), match=message):
        StoredModel(tmp_path)


def test_a_gemma_with_windows_alone_has_their_theta(tmp_path):
    """What config.json says of layers without a window is then of no layer."""
    saved(tmp_path, "gemma3_text")
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8")) | {"layer_types": ["sliding_attention"] * 2}
    assert fields["rope_parameters"]["full_attention"]["rope_theta"] == 1e6
    path.write_text(json.dumps(fields), encoding="utf-8")
    config = StoredModel(tmp_path).config
    assert (config.window, config.window_pattern, config.rope_theta, config.rope_local_theta) == (5, "", 1e4, None)


def test_llama_cpps_files_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), encoding="utf-8")
    saved(tmp_path, "llama")
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / "model-Q4.gguf").write_bytes(b"GGUF" + bytes(2000))
    for path in (tmp_path, tmp_path / "model-Q4.gguf"):
        with pytest.raises(
            ValueError, match=r"model-Q4.gguf: llama.cpp's format, expected model.safetensors, .* the repository from which"
        ):
            GPT.from_pretrained(path)


def test_what_no_family_describes_says_so(tmp_path):
    config = dataclasses.replace(CONFIGS["llama"], positions="alibi", rope_theta=1e4)
    with pytest.warns(
        UserWarning, match=rf"'tinygpt', which transformers cannot read: none of {DECODERS} has norm 'rms', positions 'alibi', "
    ):
        GPT(config).save_pretrained(tmp_path)
    assert GPT.from_pretrained(tmp_path).config.positions == "alibi"


# ---- everything else works with them -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def docs():
    """(windows of a few documents of the default corpus, how many tokens there are, the loss of guessing by their frequency)."""
    texts = [document.text[:400] for document in load_corpus("docs").train[:40]]
    tokenizer = BPETokenizer.train(texts, 300)
    ids = encode_documents(texts, tokenizer)
    p = np.bincount(ids) / len(ids)
    return Windows(ids, 16), tokenizer.n_vocab, -float(p[p > 0] @ np.log(p[p > 0]))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_of_each_family_trains_on_the_default_corpus_and_decodes_fast(docs, name):
    windows, n_vocab, by_frequency = docs
    model = GPT(dataclasses.replace(CONFIGS[name], vocab_size=n_vocab), seed=0)
    optimizer, rng, losses = AdamW(model, lr=1e-2), np.random.default_rng(0), []
    for _ in range(100):
        loss = model.loss(*windows.batch(rng.integers(0, len(windows), 16)))
        model.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(n_vocab), rel=0.02)
    assert np.mean(losses[-10:]) < by_frequency - 0.15  # it has learned what follows what
    if backend.name == "numpy":
        assert supports_fast_decoding(model.eval())
    assert model.generate([[1, 2, 3]], 30, temperature=0.0).shape == (1, 33)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_of_each_family_is_fine_tuned_as_a_classifier(tmp_path, name):
    tokenizer, rng = CharacterTokenizer.train("abcdefghijklmnopqrstuvwxyz"), np.random.default_rng(0)
    GPT(CONFIGS[name], seed=0).save_pretrained(tmp_path)
    model = GPTClassifier(GPT.from_pretrained(tmp_path), tokenizer, ["a", "b"])
    sequences = [rng.integers(0, 20, rng.integers(2, 10)) for _ in range(100)]
    rows = LabeledBatches(sequences, np.array([ids[-1] % 2 for ids in sequences]))
    result = fit(model, rows, rows, TrainConfig(steps=40, lr=1e-2, warmup_steps=5, micro_batch=16, eval_every=20, log_every=20), Notes())
    assert result.best_validation_nats < 0.7 * result.first_loss_nats
    names = {canonical_name(name) for name, _ in model.named_parameters()}
    assert "score.weight" in names and "lm_head.weight" not in names
