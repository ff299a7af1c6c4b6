"""Classifiers and assistants on every family: the same logits as transformers, also for padded batches, both ways; resuming changes no bit."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

pytest.importorskip("tokenizers")

from autograd import backend
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import Notes, weights
from tests.tinygpt.published_tokenizers import LIBRARYS, OURS
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.data.library_tokenizer import LibraryTokenizer
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.data.tokenizer_files import load_tokenizer
from tinygpt.data.windows import pad
from tinygpt.finetuning.classifier import GPTClassifier, LabeledBatches, encode
from tinygpt.finetuning.common import fit, set_trainable
from tinygpt.finetuning.instructions import Instruction, InstructionBatches, encode_instructions, generate_answers
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.presets import PRESETS
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.run import Run
from tinygpt.weights.config_json import CLASSIFIER

LABELS = ["ham", "eggs", "spam"]
FAMILIES = {  # transformers' names -> a preset of that family
    "GPT2": "gpt2", "Llama": "smollm2-135m", "Qwen2": "qwen2.5-0.5b", "Qwen3": "qwen3-0.6b", "GPTNeoX": "pythia-70m",
    "Gemma3Text": "gemma-3-270m", "OPT": "opt-125m",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Directories of two tokenizers: one of ours that puts nothing in front of a text, and Gemma's kind, which has a token for padding."""
    made = {}
    for kind in ("qwen", "gemma"):
        made[kind] = tmp_path_factory.mktemp(kind)
        (OURS | LIBRARYS)[kind]().save(str(made[kind] / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
    (made["gemma"] / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "{{ messages }}"}), encoding="utf-8")
    return made


def config_of(name, vocab_size):
    sizes = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": vocab_size, "n_positions": 32}
    sizes |= {key: n for key, n in {"n_inner": 24, "n_kv_head": 1, "head_size": 8}.items() if key in PRESETS[name]}
    config = GPTConfig.preset(name, **sizes)
    if name == "opt-125m":
        return dataclasses.replace(config, norm_position="post")  # else it is a GPT-2 with ReLU
    return dataclasses.replace(config, embedding_scale=4.0) if name == "gemma-3-270m" else config


def their_config(name, transformers, vocab_size):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "ffn_dim": 24}
    sizes |= {"intermediate_size": 24, "max_position_embeddings": 32, "vocab_size": vocab_size, "word_embed_proj_dim": 16}
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": vocab_size} if name == "GPT2" else sizes
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": 3}
    return getattr(transformers, f"{name}Config")(**sizes, **ends, num_labels=3, id2label=dict(enumerate(LABELS)))


def batch(seed, vocab_size):
    """Texts of several lengths, padded by 3 on either side, as transformers has them."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(4, vocab_size, rng.integers(1, 20)) for _ in range(5)]
    ids, mask = pad(rows)
    ids[~mask] = 3
    if seed % 2:
        ids, mask = (np.array([np.roll(row, int((~real).sum())) for row, real in zip(each, mask, strict=True)]) for each in (ids, mask))
    return ids, mask


def both_agree(mine, other, seeds):
    import torch

    mine.eval(), other.eval()
    for seed in seeds:
        ids, mask = batch(seed, mine.config.vocab_size)
        learned = {"position_ids": torch.as_tensor(np.maximum(mask.cumsum(axis=1) - 1, 0))} if type(other).__name__[:4] == "GPT2" else {}
        with torch.no_grad():  # GPT-2 there counts padding on the left as positions, unless it is told
            expected = other(torch.as_tensor(ids), attention_mask=torch.as_tensor(mask.astype(int)), **learned).logits.numpy()
        assert expected.std() > 0.02
        np.testing.assert_allclose(backend.to_host(mine(ids, mask).data), expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", FAMILIES)
def test_padded_batches_have_the_logits_of_transformers_both_ways(tmp_path, tokenizers, name):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = their_config(name, transformers, 600)
    theirs = getattr(transformers, f"{name}ForSequenceClassification")._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for p in theirs.parameters():
            p += torch.randn_like(p) * 0.2
    theirs.save_pretrained(tmp_path / "theirs")
    shutil.copy(tokenizers["qwen"] / "tokenizer.json", tmp_path / "theirs")
    checkpoint = Checkpoint.open(tmp_path / "theirs")
    assert checkpoint.kind == CLASSIFIER
    mine = checkpoint.model()
    assert isinstance(mine, GPTClassifier) and mine.labels == LABELS and mine.pad_id == 3
    both_agree(mine, theirs, range(4))

    mine.save_pretrained(tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_bytes())
    assert written["pad_token_id"] == 3 and written["id2label"] == {str(i): label for i, label in enumerate(LABELS)}
    back = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "back", attn_implementation="eager")
    assert type(back).__name__ == ("GPT2" if name == "OPT" else name) + "ForSequenceClassification"  # a pre-norm OPT is a GPT-2 with ReLU
    both_agree(mine, back, range(4))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["qwen", "gemma"])
def test_texts_are_read_as_transformers_reads_them(tmp_path, tokenizers, kind):
    """Tokens in front of a text and padding come from the tokenizer's files there and here."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    tokenizer = load_tokenizer(tokenizers[kind])
    mine = GPTClassifier(GPT(config_of("smollm2-135m", 600), seed=1), tokenizer, LABELS).eval()
    mine.save_pretrained(tmp_path)
    texts = ["the cat", "on mats, the cat sat.", "x"]
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    there = transformers.AutoTokenizer.from_pretrained(tmp_path)
    if there.pad_token is None:
        there.pad_token = there.convert_ids_to_tokens(mine.pad_id)
    assert there.pad_token_id == mine.pad_id == other.config.pad_token_id
    with torch.no_grad():
        expected = other(**there(texts, padding=True, return_tensors="pt", return_token_type_ids=False)).logits.softmax(-1).numpy()
    np.testing.assert_allclose(mine.predict(texts).probabilities, expected, atol=1e-5)
    with pytest.raises(ValueError, match="text 1: no token, expected at least one"):
        mine.predict(["a", ""])
    assert mine.predict(["the " * 100], truncate=True).n_cut == 1


SETTINGS = TrainConfig(steps=8, lr=1e-2, warmup_steps=2, micro_batch=8, eval_every=4, log_every=4)


def items(tokenizer, seed):
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(["the", "cat", "sat", "on"], rng.integers(1, 6))) for _ in range(24)]
    return LabeledBatches(encode(texts, tokenizer, 32)[0], np.array([len(text) % 3 for text in texts]))


@numpy_only
@pytest.mark.parametrize("name", FAMILIES.values())
@pytest.mark.parametrize(("which", "kind"), [("all", "qwen"), ("lora", "gemma")])
def test_resuming_a_classifier_changes_no_bit(tmp_path, tokenizers, name, which, kind):
    folder = tmp_path
    tokenizer = load_tokenizer(tokenizers[kind])

    def go(path):
        model = GPTClassifier(GPT(config_of(name, 600), seed=1), tokenizer, LABELS)
        adapter = set_trainable(model, which, LoraConfig(2, dropout=0.2, targets=("q", "v", "down")))
        run = Run.resume(path) if path.exists() else Run.create("x", path)
        run.tokenizer, run.adapter = tokenizer, adapter
        result = fit(model, items(tokenizer, 0), items(tokenizer, 1), SETTINGS, Notes(), run)
        return model, result

    model, result = go(folder / "whole")
    shutil.copytree(folder / "whole", folder / "parts")
    checkpoints = folder / "parts" / "checkpoints"
    shutil.rmtree(checkpoints / "step-00000008")
    for pointer in ("last", "best"):
        (checkpoints / pointer).write_text("step-00000004\n", encoding="utf-8")
    again, resumed = go(folder / "parts")
    np.testing.assert_equal(weights(again), weights(model))
    assert resumed.best_validation_nats == result.best_validation_nats
    saved = Checkpoint.open(folder / "parts")
    assert type(saved.tokenizer()) is (LibraryTokenizer if kind == "gemma" else BPETokenizer)
    for file in tokenizers[kind].iterdir():  # a chat template, for instance
        assert (saved.path / file.name).read_bytes() == file.read_bytes()
    loaded = GPTClassifier.from_checkpoint(saved)
    words = [np.array(tokenizer.encode_from_start("the cat"))]
    np.testing.assert_allclose(loaded.logits(words), again.logits(words), atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES.values())
def test_instruction_tuning_with_a_tokenizer_of_gemmas_kind(tokenizers, name):
    tokenizer = load_tokenizer(tokenizers["gemma"])
    rows = [Instruction(f"say {word}", word) for word in ("cat", "the", "mats", "on")]
    config = dataclasses.replace(config_of(name, 600), n_positions=64)
    sequences = encode_instructions(rows, tokenizer, 64, style="phi3")
    assert sequences[0].ids[0] == tokenizer.bos_id and sequences[0].ids[-1] == tokenizer.eos_id
    gpt, batches = GPT(config, seed=3), InstructionBatches(sequences)
    plan = dataclasses.replace(SETTINGS, steps=30, lr=2e-2, micro_batch=4, eval_every=15, log_every=15)
    result = fit(gpt, batches, batches, plan, Notes())
    assert result.first_loss_nats == pytest.approx(np.log(600), rel=0.05) and result.best_validation_nats < 2.5
    answers = generate_answers(gpt, tokenizer, rows, style="phi3", max_new_tokens=8)
    assert len(answers) == 4 and not any("<eos>" in answer or "<bos>" in answer for answer in answers)
