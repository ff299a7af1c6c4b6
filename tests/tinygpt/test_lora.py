"""LoRA: nothing changes before training, only thin matrices learn, merging changes nothing, and PEFT reads and writes the same files."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import autograd as ag
from autograd import backend
from autograd.optim import AdamW
from tests.tinygpt.helpers import check_by_differences, weights
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.finetuning.lora import LoraConfig, LoraLinear, add_lora, load_lora

pytestmark = pytest.mark.exact

TOKENIZER = CharacterTokenizer.train("abcdefghijklmnopqrstuvwxyz ")
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=TOKENIZER.n_vocab)
UNTIED = dataclasses.replace(TINY, tie_word_embeddings=False)  # the language model whose token embedding LoRA may correct
LABELS = ["ham", "eggs", "spam"]
EVERYWHERE = ("c_attn", "c_proj", "c_fc")
IDS = np.random.default_rng(0).integers(0, TINY.vocab_size, (3, 9))


def logits(model, ids=IDS):
    was_training = model.training
    model.eval()
    with ag.no_grad():
        found = model(ids).numpy().copy()
    model.train(was_training)
    return found


def trained(config=None, seed=0, model=None):
    """A model and its adapter after a few updates."""
    model = model or GPT(TINY, seed=seed)
    adapter = add_lora(model, config, seed)
    optimizer = AdamW(model, lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        model.loss(IDS[:, :-1], IDS[:, 1:]).backward()
        optimizer.step()
    return model, adapter


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m", "pythia-70m", "olmo-2-1b", "nanochat-d20"])
def test_other_decoders_take_adapters(name):
    """Every linear layer, by the end of its name; merging gives the same logits."""
    size = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": TINY.vocab_size, "n_positions": 12}
    size |= {key: n for key, n in (("n_inner", 24), ("n_kv_head", 1), ("head_size", 8)) if key in GPTConfig.preset(name).options()}
    config = GPTConfig.preset(name, **size)
    targets = (*EVERYWHERE, *(["c_gate"] if config.gated else []))
    model, adapter = trained(LoraConfig(4, 8, targets=targets), model=GPT(config))
    assert len(adapter.layers) == 2 * (5 if config.gated else 4)
    before = logits(model)
    with adapter.merged():
        np.testing.assert_allclose(logits(model), before, atol=1e-5)


# ---- what is trained ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=15)
@given(rank=st.integers(1, 5), alpha=st.floats(0.5, 32), targets=st.sets(st.sampled_from(EVERYWHERE), min_size=1), seed=st.integers(0, 99))
def test_before_training_nothing_changes(rank, alpha, targets, seed):
    model = GPT(TINY, seed=seed)
    before = logits(model)
    add_lora(model, LoraConfig(rank, alpha, targets=tuple(targets)), seed)
    np.testing.assert_array_equal(logits(model), before)


@pytest.mark.parametrize("targets", [("c_attn",), ("attn.c_proj", "c_fc"), EVERYWHERE])
def test_only_the_thin_matrices_get_gradients_moments_and_changes(targets):
    plain = weights(GPT(TINY))
    model, adapter = trained(LoraConfig(rank=3, targets=targets))
    thin = {f"{name}.{which}" for name in adapter.layers for which in ("lora_A", "lora_B")}
    assert {name for name, p in model.named_parameters() if p.grad is not None} == thin
    assert AdamW(model).state_dict()["m"].keys() == thin
    after = weights(model)
    assert all(np.array_equal(after[name], array) for name, array in plain.items())
    assert all(after[f"{name}.lora_B"].any() for name in adapter.layers)
    shapes = {"attn.c_attn": (16, 48), "attn.c_proj": (16, 16), "mlp.c_fc": (16, 64), "mlp.c_proj": (64, 16)}
    ends = {name.partition("h.0.")[2]: layer for name, layer in adapter.layers.items() if "h.0." in name}
    for end, layer in ends.items():
        assert (layer.lora_A.shape, layer.lora_B.shape) == ((shapes[end][0], 3), (3, shapes[end][1]))
    expected = {end for end in shapes if any(end.endswith(target) for target in targets)}
    assert ends.keys() == expected


def test_gradients_are_those_of_finite_differences():
    model, adapter = trained(LoraConfig(rank=2, alpha=3, targets=(*EVERYWHERE, "wte", "wpe")), model=GPT(UNTIED))
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data = backend.to_device(backend.to_host(p.data).astype(np.float64))
        p.grad = p._gradient_buffer = None
    model.loss(IDS[:, :-1], IDS[:, 1:]).backward()
    for layer in adapter.layers.values():
        for p in (layer.lora_A, layer.lora_B):
            check_by_differences(p, lambda: model.loss(IDS[:, :-1], IDS[:, 1:]), rng)


def test_dropout_acts_on_the_correction_alone_and_only_while_training():
    model, adapter = trained(LoraConfig(dropout=0.5))
    quiet = logits(model)
    model.train()
    assert not np.allclose(model(IDS).numpy(), model(IDS).numpy())
    for layer in adapter.layers.values():
        layer.lora_B.data[...] = 0
    np.testing.assert_array_equal(model(IDS).numpy(), logits(model))
    assert not np.allclose(quiet, logits(model))


# ---- merging -----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=10)
@given(rank=st.integers(1, 5), targets=st.sets(st.sampled_from(EVERYWHERE), min_size=1), seed=st.integers(0, 99))
def test_merged_logits_are_equal_and_unmerging_restores_every_bit(rank, targets, seed):
    model, adapter = trained(LoraConfig(rank, targets=tuple(targets)), seed)
    before, apart = weights(model), logits(model)
    with adapter.merged():
        names = [name for name, _ in model.named_parameters()]
        assert names == [name for name, _ in GPT(TINY).named_parameters()]  # a plain GPT again
        np.testing.assert_allclose(logits(model), apart, atol=1e-5)
    after = weights(model)
    assert all(np.array_equal(after[name], array) for name, array in before.items()) and after.keys() == before.keys()
    np.testing.assert_array_equal(logits(model), apart)


def test_a_merged_model_is_saved_as_a_plain_one(tmp_path):
    model, adapter = trained()
    with adapter.merged():
        model.save_pretrained(tmp_path)
        merged = logits(model)
    np.testing.assert_array_equal(logits(GPT.from_pretrained(tmp_path)), merged)


@pytest.mark.parametrize("targets", [("wte",), ("wte", "wpe", "c_attn")])
def test_embeddings_are_corrected_merged_and_restored(targets):
    plain = weights(GPT(UNTIED))
    model, adapter = trained(LoraConfig(rank=3, targets=targets), model=GPT(UNTIED))
    assert {"wte", "wpe"} & adapter.layers.keys() == {"wte", "wpe"} & set(targets)
    after, apart = weights(model), logits(model)
    assert all(np.array_equal(after[name], array) for name, array in plain.items())
    assert not np.allclose(apart, logits(GPT(UNTIED)), atol=1e-3)
    met = np.isin(np.arange(TINY.vocab_size), IDS[:, :-1])
    np.testing.assert_array_equal(after["wte.lora_A"].any(axis=1), met)  # rows of tokens that never came stay as they were
    with adapter.merged():
        assert weights(model).keys() == plain.keys()
        np.testing.assert_allclose(logits(model), apart, atol=1e-5)
        assert model.lm_head.weight is not model.wte.weight
    np.testing.assert_array_equal(logits(model), apart)


def test_a_merged_classifier_with_a_corrected_embedding_is_saved_as_a_plain_one(tmp_path, bpe):
    model = GPTClassifier(bpe_gpt(bpe), bpe, LABELS)
    names = weights(model).keys()
    adapter = add_lora(model, LoraConfig(rank=2, targets=("wte",)))
    assert weights(model).keys() - names == {"transformer.wte.lora_A", "transformer.wte.lora_B"}
    adapter.layers["transformer.wte"].lora_A.data += 0.3
    apart = logits(model)
    with adapter.merged():
        assert weights(model).keys() == names
        model.save_pretrained(tmp_path)
        np.testing.assert_allclose(logits(model), apart, atol=1e-5)
    np.testing.assert_array_equal(logits(model), apart)
    np.testing.assert_allclose(logits(GPTClassifier.from_pretrained(tmp_path)), apart, atol=1e-5)
    assert not np.allclose(apart, logits(GPTClassifier(bpe_gpt(bpe), bpe, LABELS)), atol=1e-4)


# ---- adapters on disk --------------------------------------------------------------------------------------------------------------------


def test_a_saved_adapter_gives_the_same_logits_on_the_base_model(tmp_path):
    model, adapter = trained(LoraConfig(rank=3, alpha=5, dropout=0.1, targets=EVERYWHERE))
    adapter.save(tmp_path, base="somewhere")
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    base = GPT(TINY)
    loaded = load_lora(base, tmp_path)
    assert (loaded.config.rank, loaded.config.alpha, loaded.config.dropout) == (3, 5, 0.1) and set(loaded.config.targets) == set(EVERYWHERE)
    np.testing.assert_array_equal(logits(base), logits(model))
    arrays = load_file(tmp_path / "adapter_model.safetensors")
    assert arrays["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"].shape == (3, 16)
    assert arrays["base_model.model.transformer.h.1.mlp.c_proj.lora_B.weight"].shape == (16, 3)
    with adapter.merged():  # the same file in either state
        np.testing.assert_equal(adapter.tensors(), arrays)


def test_a_classifiers_adapter_brings_its_head(tmp_path):
    def fresh(seed):
        return GPTClassifier(GPT(TINY, seed=5), TOKENIZER, LABELS, seed=seed)

    model = fresh(1)
    adapter = add_lora(model)
    model.score.weight.requires_grad = True
    for p in (model.score.weight, *(layer.lora_B for layer in adapter.layers.values())):
        p.data += 0.1
    adapter.save(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))["modules_to_save"] == ["score"]
    other = fresh(2)
    load_lora(other, tmp_path)
    np.testing.assert_array_equal(logits(other), logits(model))
    assert {n for n, p in other.named_parameters() if p.requires_grad} == {n for n, p in model.named_parameters() if p.requires_grad}
    with pytest.raises(ValueError, match=r"a head for ham, eggs, spam, expected spam, eggs, ham, in this order; make the classifier with"):
        load_lora(GPTClassifier(GPT(TINY), TOKENIZER, LABELS[::-1]), tmp_path)


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train("the cat sat on the mat, the cat sat", 270)


def bpe_gpt(bpe):
    return GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=bpe.n_vocab), seed=4)


@pytest.mark.filterwarnings("ignore")  # PEFT's and PyTorch's own
@pytest.mark.parametrize("targets", [("c_attn",), EVERYWHERE])
def test_peft_reads_our_adapter_and_we_read_peft_s(tmp_path, bpe, targets):
    peft, transformers = pytest.importorskip("peft", reason="needs the extra parity"), pytest.importorskip("transformers")
    import torch

    def theirs(model):
        with torch.no_grad():
            return model.eval()(torch.tensor(IDS)).logits.numpy()

    bpe_gpt(bpe).save_pretrained(tmp_path / "base", bpe)
    model, adapter = trained(LoraConfig(rank=3, alpha=7, targets=targets), model=bpe_gpt(bpe))
    adapter.save(tmp_path / "ours", base=str(tmp_path / "base"))
    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    other = peft.PeftModel.from_pretrained(base, tmp_path / "ours")
    np.testing.assert_allclose(theirs(other), logits(model), atol=1e-5)
    assert not np.allclose(logits(model), logits(bpe_gpt(bpe)), atol=1e-3)  # or this would prove nothing

    base = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    names = "all-linear" if targets == EVERYWHERE else list(targets)  # PEFT then writes full names
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=3, target_modules=names, fan_in_fan_out=True, init_lora_weights=False)
    other = peft.get_peft_model(base, config)
    other.save_pretrained(tmp_path / "peft")
    mine = bpe_gpt(bpe)
    load_lora(mine, tmp_path / "peft")
    np.testing.assert_allclose(logits(mine), theirs(other), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [("c_attn",), ("c_attn", "wte", "wpe")])
def test_peft_reads_a_classifiers_adapter_and_we_read_it_back(tmp_path, bpe, targets):
    peft, transformers = pytest.importorskip("peft", reason="needs the extra parity"), pytest.importorskip("transformers")
    import torch

    GPTClassifier(bpe_gpt(bpe), bpe, LABELS, seed=1).save_pretrained(tmp_path / "base")
    model = GPTClassifier(bpe_gpt(bpe), bpe, LABELS, seed=2)  # another head: the adapter must bring it
    adapter = add_lora(model, LoraConfig(targets=targets))
    model.score.weight.requires_grad = True
    for layer in adapter.layers.values():
        layer.lora_A.data += 0.1
        layer.lora_B.data += 0.3
    adapter.save(tmp_path / "ours")
    base = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path / "base")
    other = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    with torch.no_grad():
        np.testing.assert_allclose(other(torch.tensor(IDS)).logits.numpy(), logits(model), atol=1e-5)
    other.save_pretrained(tmp_path / "theirs")
    mine = GPTClassifier(bpe_gpt(bpe), bpe, LABELS, seed=3)
    load_lora(mine, tmp_path / "theirs")
    np.testing.assert_array_equal(logits(mine), logits(model))


def test_merging_for_a_while_leaves_a_merged_model_merged():
    model, adapter = trained()
    adapter.merge()
    merged = logits(model)
    with adapter.merged():
        np.testing.assert_array_equal(logits(model), merged)
    assert adapter.is_merged and not any(isinstance(module, LoraLinear) for _, module in model.named_modules())


# ---- bad input ---------------------------------------------------------------------------------------------------------------------------


def test_bad_input_is_named_and_changes_nothing(tmp_path):
    model = GPT(TINY)
    with pytest.raises(
        ValueError, match=r"LoRA target 'c_atn': no such linear layer or embedding, expected one of attn.c_attn, .*; did you mean 'c_attn'"
    ):
        add_lora(model, LoraConfig(targets=("c_atn",)))
    with pytest.raises(ValueError, match=r"LoRA target 'wte': its weights are shared with the output layer, expected .*; leave wte out"):
        add_lora(model, LoraConfig(targets=("c_attn", "wte")))
    for wrong in ({"rank": 0}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": ()}):
        with pytest.raises(ValueError, match=r"expected rank >= 1, alpha > 0, 0 <= dropout < 1 and at least one target"):
            LoraConfig(**wrong)
    assert all(p.requires_grad for p in model.parameters())
    _, adapter = trained()
    with pytest.raises(ValueError, match="has an adapter already, expected one at most"):
        add_lora(adapter.model)

    with pytest.raises(FileNotFoundError, match=r"adapter_config.json: no such file"):
        load_lora(model, tmp_path)
    adapter.save(tmp_path)
    wider = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, n_positions=12, vocab_size=27))
    with pytest.raises(ValueError, match=r"h.0.attn.c_attn.lora_A.weight of shape \(8, 16\) instead of \(8, 32\).*is it another model's"):
        load_lora(wider, tmp_path)
    deeper = GPT(GPTConfig(n_layer=3, n_head=2, n_embd=16, n_positions=12, vocab_size=27))
    with pytest.raises(ValueError, match=r"missing base_model.model.transformer.h.2.attn.c_attn.lora_A.weight \(8, 16\)"):
        load_lora(deeper, tmp_path)
    for other in (wider, deeper):
        assert not any(isinstance(module, LoraLinear) for _, module in other.named_modules()) and other.wte.weight.requires_grad

    arrays = load_file(tmp_path / "adapter_model.safetensors")
    save_file(arrays | {"base_model.model.odd": np.zeros(3, dtype=np.float32)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"unexpected base_model.model.odd \(3,\)"):
        load_lora(model, tmp_path)
    path = tmp_path / "adapter_config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    for key, value, message in (
        ("use_rslora", True, "use_rslora True, expected False; only plain LoRA is supported"),
        ("bias", "all", "bias 'all', expected 'none'"),
        ("target_modules", "all-linear", "target_modules 'all-linear', expected a list of names"),
        ("peft_type", "IA3", "peft_type 'IA3', expected 'LORA'"),
        ("init_lora_weights", "pissa_niter_4", "init_lora_weights 'pissa_niter_4', expected a start that leaves the model's weights alone"),
        ("alora_invocation_tokens", [5], r"alora_invocation_tokens \[5\], expected None"),
        ("r", "x", r"adapter_config.json: invalid literal.*expected r, lora_alpha and lora_dropout to be numbers"),
    ):
        path.write_text(json.dumps(fields | {key: value}), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_lora(model, tmp_path)
    path.write_text(json.dumps(fields), encoding="utf-8")
    whole = (tmp_path / "adapter_model.safetensors").read_bytes()
    for n in (0, 5, len(whole) - 1):
        (tmp_path / "adapter_model.safetensors").write_bytes(whole[:n])
        with pytest.raises(ValueError, match=r"adapter_model.safetensors: .*, expected an intact safetensors file; copy or save it again"):
            load_lora(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_model.safetensors, expected a saved adapter"):
        load_lora(model, tmp_path)
