"""Adapters on every family, by role: PEFT computes the same from our files, and we from its, whatever it calls the layers."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import autograd as ag
from autograd import backend
from tests.tinygpt.helpers import check_by_differences, weights
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.finetuning.adapter_names import ROLES
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.finetuning.common import set_trainable
from tinygpt.finetuning.lora import LoraConfig, LoraParts, add_lora, load_lora
from tinygpt.presets import PRESETS

BPE = BPETokenizer.train("the cat sat on the mat, the cat sat", 270)
SIZES = {"n_layer": 2, "n_embd": 16, "n_head": 4, "vocab_size": BPE.n_vocab, "n_positions": 16}
FAMILIES = {  # presets -> names that PEFT knows their layers by
    "gpt2": ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"],
    "smollm2-135m": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "gate_proj", "down_proj"],
    "qwen2.5-0.5b": ["q_proj", "v_proj", "gate_proj", "self_attn.o_proj"],
    "qwen3-0.6b": ["q_proj", "k_proj", "down_proj"],
    "olmo-2-1b": ["q_proj", "v_proj", "o_proj"],
    "gemma-3-270m": ["q_proj", "v_proj", "up_proj", "down_proj"],
    "pythia-70m": ["query_key_value", "attention.dense", "dense_h_to_4h", "dense_4h_to_h"],
    "opt-125m": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    "nanochat-d20": ["q_proj", "k_proj", "v_proj", "fc1", "fc2"],
}
IDS = np.random.default_rng(0).integers(0, BPE.n_vocab, (2, 11))


def config_of(name):
    more = {"n_inner": 24, "n_kv_head": 2, "head_size": 8}
    sizes = SIZES | ({"n_head": 2} if name == "pythia-70m" else {})  # a quarter of 8 channels is turned
    config = GPTConfig.preset(name, **sizes, **{key: n for key, n in more.items() if key in PRESETS[name]})
    if name == "opt-125m":
        return dataclasses.replace(config, norm_position="post")  # else it is a GPT-2 with ReLU
    if name == "gemma-3-270m":
        return dataclasses.replace(config, embedding_scale=4.0, attention_scale=16**-0.5)
    return config


def drawn_array(rng, shape, scale):
    return backend.to_device((rng.normal(size=shape) * scale).astype(np.float32))


def drawn(name, seed):
    """A model whose norms and biases are numbers of their own, too."""
    model, rng = GPT(config_of(name), seed=seed), np.random.default_rng(seed)
    for p in model.parameters():
        p.data += drawn_array(rng, p.shape, 0.2)
    return model.eval()


def logits(model):
    with ag.no_grad():
        return model.eval()(IDS).numpy().copy()


def randomize(adapter, seed):
    rng = np.random.default_rng(seed)
    for layer in adapter.layers.values():
        for part in layer.parts.values():
            part.lora_A.data[...] = drawn_array(rng, part.lora_A.shape, 0.3)
            part.lora_B.data[...] = drawn_array(rng, part.lora_B.shape, 0.3)


def roles_of(name):
    return [role for role in ROLES if role != "gate" or GPTConfig.preset(name).gated]


TARGETS = st.lists(st.sampled_from(list(ROLES)), min_size=1, max_size=5, unique=True)


@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=6)
@given(targets=TARGETS, rank=st.integers(1, 3), alpha=st.sampled_from([1.0, 3.0, 8.0]), seed=st.integers(0, 99))
def test_roles_correct_what_they_say_and_nothing_else(tmp_path_factory, name, targets, rank, alpha, seed):
    targets = [role for role in targets if role in roles_of(name)] or ["q"]
    model = drawn(name, seed)
    before, plain = logits(model), weights(model)
    adapter = add_lora(model, LoraConfig(rank, alpha, targets=tuple(targets)), seed)
    np.testing.assert_array_equal(logits(model), before)
    randomize(adapter, seed)
    apart = logits(model)
    with adapter.merged():
        merged = weights(model)
        np.testing.assert_allclose(logits(model), apart, atol=2e-5 * max(1, np.abs(apart).max()))
    changed = {key for key, array in plain.items() if not np.array_equal(array, merged[key])}
    assert changed == {f"h.{i}.{ROLES[role]}.weight" for role in targets for i in range(2)}
    config = model.config
    heads = np.cumsum([0, *(n * config.channels_per_head for n in (config.n_head, config.kv_heads, config.kv_heads))])
    for i, role in enumerate("qkv"):
        key, columns = "h.0.attn.c_attn.weight", slice(heads[i], heads[i + 1])
        assert np.array_equal(plain[key][:, columns], merged[key][:, columns]) == (role not in targets)
    folder = tmp_path_factory.mktemp("adapter")
    adapter.save(folder)
    other = drawn(name, seed)
    loaded = load_lora(other, folder)
    np.testing.assert_array_equal(logits(other), logits(model))
    assert [list(layer.parts) for layer in loaded.layers.values()] == [list(layer.parts) for layer in adapter.layers.values()]
    assert {n for n, p in other.named_parameters() if p.requires_grad} == {n for n, p in model.named_parameters() if p.requires_grad}
    np.testing.assert_equal(loaded.tensors(), adapter.tensors())


def test_gradients_of_parts_are_those_of_finite_differences():
    model = drawn("smollm2-135m", 0)
    adapter = add_lora(model, LoraConfig(2, 3, targets=("k", "q", "gate")))
    randomize(adapter, 0)
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data = backend.to_device(backend.to_host(p.data).astype(np.float64))
    model.loss(IDS[:, :-1], IDS[:, 1:]).backward()
    layer = adapter.layers["h.0.attn.c_attn"]
    assert isinstance(layer, LoraParts) and list(layer.parts) == ["q", "k"]
    for part in layer.parts.values():
        for p in (part.lora_A, part.lora_B):
            check_by_differences(p, lambda: model.loss(IDS[:, :-1], IDS[:, 1:]), rng)


# ---- PEFT's files ------------------------------------------------------------------------------------------------------------------------


def theirs(model):
    import torch

    with torch.no_grad():
        return model.eval()(torch.as_tensor(IDS)).logits.numpy()


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=2e-5 * max(1, np.abs(expected).max()))


@pytest.mark.filterwarnings("ignore")  # PEFT's and PyTorch's own
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=3)
@given(data=st.data(), seed=st.integers(0, 99))
def test_peft_computes_the_same_from_our_file_and_we_from_its(tmp_path_factory, name, data, seed):
    peft, transformers = pytest.importorskip("peft", reason="needs the extra parity"), pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("both")
    model = drawn(name, seed)
    model.save_pretrained(folder / "base")
    plain = logits(model)
    targets = [role for role in data.draw(TARGETS) if role in roles_of(name)] or ["v"]
    adapter = add_lora(model, LoraConfig(data.draw(st.integers(1, 3)), 3.0, targets=tuple(targets)), seed)
    randomize(adapter, seed)
    adapter.save(folder / "ours", base=str(folder / "base"))
    other = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "ours")
    close(theirs(other), logits(model))
    assert not np.allclose(plain, logits(model), atol=1e-3)  # or this would prove nothing

    names = data.draw(st.lists(st.sampled_from(FAMILIES[name]), min_size=1, unique=True))
    pattern = {names[0]: 5} if data.draw(st.booleans()) else {}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules=names, fan_in_fan_out=name == "gpt2", init_lora_weights=False,
        rank_pattern=pattern, alpha_pattern=dict.fromkeys(pattern, 4),
    )  # fmt: skip
    other = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(folder / "base"), config)
    other.save_pretrained(folder / "peft")
    mine = drawn(name, seed)
    loaded = load_lora(mine, folder / "peft")
    close(logits(mine), theirs(other))
    loaded.save(folder / "again", base=str(folder / "base"))
    again, expected = (load_file(folder / which / "adapter_model.safetensors") for which in ("again", "peft"))
    np.testing.assert_equal(again, expected)
    other = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(folder / "base"), folder / "again")
    close(theirs(other), logits(mine))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["gpt2", "smollm2-135m", "pythia-70m", "gemma-3-270m"])
def test_a_classifiers_adapter_with_its_head_goes_both_ways(tmp_path, name):
    peft, transformers = pytest.importorskip("peft", reason="needs the extra parity"), pytest.importorskip("transformers")
    GPTClassifier(drawn(name, 1), BPE, ["a", "b", "c"], seed=1).save_pretrained(tmp_path / "base")
    model = GPTClassifier(drawn(name, 1), BPE, ["a", "b", "c"], seed=2)  # another head: the adapter must bring it
    adapter = set_trainable(model, "lora", LoraConfig(2, targets=("q", "v", "down")))
    randomize(adapter, 0)
    adapter.save(tmp_path / "ours", base=str(tmp_path / "base"))
    assert json.loads((tmp_path / "ours" / "adapter_config.json").read_bytes())["modules_to_save"] == ["score"]
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    other = peft.PeftModel.from_pretrained(base, tmp_path / "ours")
    close(theirs(other), logits(model))
    other.save_pretrained(tmp_path / "theirs")
    mine = GPTClassifier(drawn(name, 1), BPE, ["a", "b", "c"], seed=3)
    load_lora(mine, tmp_path / "theirs")
    np.testing.assert_allclose(logits(mine), logits(model), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "embedding"), [("pythia-70m", "embed_in"), ("olmo-2-1b", "embed_tokens")])
def test_embeddings_go_both_ways(tmp_path, name, embedding):
    peft, transformers = pytest.importorskip("peft", reason="needs the extra parity"), pytest.importorskip("transformers")
    model = drawn(name, 3)
    model.save_pretrained(tmp_path / "base")
    adapter = add_lora(model, LoraConfig(2, 3, targets=("wte", "v")))
    randomize(adapter, 3)
    adapter.save(tmp_path / "ours", base=str(tmp_path / "base"))
    other = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "ours")
    close(theirs(other), logits(model))
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=[embedding], init_lora_weights=False)
    other = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    other.save_pretrained(tmp_path / "peft", save_embedding_layers=False)
    mine = drawn(name, 3)
    load_lora(mine, tmp_path / "peft")
    close(logits(mine), theirs(other))


# ---- names and errors --------------------------------------------------------------------------------------------------------------------


def test_a_fused_layer_of_ours_is_three_modules_there_and_comes_back_as_one(tmp_path):
    model = drawn("smollm2-135m", 0)
    adapter = add_lora(model, LoraConfig(2, targets=("c_attn",)))
    randomize(adapter, 0)
    adapter.save(tmp_path)
    arrays = load_file(tmp_path / "adapter_model.safetensors")
    q, k = (f"base_model.model.model.layers.0.self_attn.{x}_proj.lora_A.weight" for x in "qk")
    assert np.array_equal(arrays[q], arrays[k]) and json.loads((tmp_path / "adapter_config.json").read_bytes())["target_modules"] == [
        "k_proj", "q_proj", "v_proj"
    ]  # fmt: skip
    other = drawn("smollm2-135m", 0)
    assert list(load_lora(other, tmp_path).layers["h.0.attn.c_attn"].parts) == [""]
    np.testing.assert_array_equal(logits(other), logits(model))
    arrays[k][0, 0] += 1
    path = tmp_path / "adapter_model.safetensors"
    save_file(arrays, path, {"format": "pt", "targets": '["c_attn"]'})
    with pytest.raises(ValueError, match=r"lora_A, rank or alpha of .*0\.self_attn\.q_proj and .*0\.self_attn\.k_proj differ"):
        load_lora(drawn("smollm2-135m", 0), tmp_path)
    save_file(arrays, path, {"format": "pt"})  # without our note they are three modules
    assert list(load_lora(drawn("smollm2-135m", 0), tmp_path).layers["h.0.attn.c_attn"].parts) == ["q", "k", "v"]


def test_queries_and_values_of_gpt2_are_one_module_of_a_higher_rank_there(tmp_path):
    model = drawn("gpt2", 0)
    adapter = add_lora(model, LoraConfig(2, 4, targets=("v", "q", "o")))
    randomize(adapter, 0)
    adapter.save(tmp_path)
    fields = json.loads((tmp_path / "adapter_config.json").read_bytes())
    assert fields["r"] == 2 and fields["rank_pattern"] == {f"transformer.h.{i}.attn.c_attn": 4 for i in range(2)}
    assert fields["target_modules"] == ["attn.c_proj", "c_attn"] and fields["fan_in_fan_out"] is True
    b = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"]
    fields["rank_pattern"] = {"c_attn": 3}
    (tmp_path / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn of rank 3 for q, v"):
        load_lora(drawn("gpt2", 0), tmp_path)
    assert b.shape == (48, 4) and not b[16:32].any() and b[:16, :2].any() and not b[:16, 2:].any() and not b[32:, :2].any()


def test_opts_names_where_the_base_is_an_opt(tmp_path):
    """A pre-norm OPT is a GPT-2 with ReLU to us; its adapter is to fit the files that it came from."""
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "vocab_size": 40,
        "max_position_embeddings": 16,
    }
    transformers.OPTForCausalLM(transformers.OPTConfig(**sizes, word_embed_proj_dim=16, pad_token_id=None)).save_pretrained(
        tmp_path / "base"
    )
    adapter = add_lora(GPT.from_pretrained(tmp_path / "base"), LoraConfig(2, targets=("q", "up")))
    assert "base_model.model.model.decoder.layers.0.fc1.lora_A.weight" in adapter.tensors(str(tmp_path / "base"))
    adapter.save(tmp_path / "adapter", base=str(tmp_path / "base"))
    assert load_lora(GPT.from_pretrained(tmp_path / "base"), tmp_path / "adapter").layers.keys() == adapter.layers.keys()
    assert "base_model.model.transformer.h.0.mlp.c_fc.lora_A.weight" in adapter.tensors()


def test_bad_targets_and_files_are_named(tmp_path):
    model = drawn("smollm2-135m", 0)
    with pytest.raises(ValueError, match=r"LoRA target 'qproj': .* or a role: q, k, v, o, up, gate, down; did you mean 'q_proj'"):
        add_lora(model, LoraConfig(targets=("qproj",)))
    with pytest.raises(ValueError, match=r"LoRA target 'gate': .* or a role: q, k, v, o, up, down; "):
        add_lora(drawn("gpt2", 0), LoraConfig(targets=("gate",)))
    adapter = add_lora(model, LoraConfig(2, targets=("q_proj", "c_fc")))
    assert list(adapter.layers["h.0.attn.c_attn"].parts) == ["q"] and "h.1.mlp.c_fc" in adapter.layers
    adapter.save(tmp_path)
    before = logits(drawn("pythia-70m", 0))
    other = drawn("pythia-70m", 0)
    with pytest.raises(ValueError, match=r"LoRA target 'q_proj'|missing .*, expected the tensors of an adapter for"):
        load_lora(other, tmp_path)
    np.testing.assert_array_equal(logits(other), before)
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_bytes())
    for key, value, found in (
        ("rank_pattern", {"q_(proj|x)": 3}, r"\{'q_\(proj\|x\)': 3\}, expected numbers > 0 by the ends of names"),
        ("alpha_pattern", {"q_proj": "x"}, r"\{'q_proj': 'x'\}, expected numbers > 0"),
        ("rank_pattern", {"q_proj": 3}, r"q_proj\.lora_A\.weight of shape \(2, 16\) instead of \(3, 16\)"),
    ):
        path.write_text(json.dumps(fields | {key: value}), encoding="utf-8")
        with pytest.raises(ValueError, match=found):
            load_lora(drawn("smollm2-135m", 0), tmp_path)
