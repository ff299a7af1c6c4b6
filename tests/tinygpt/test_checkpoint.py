import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from autograd import backend
from autograd.optim import AdamW
from tests.tinygpt.helpers import checkpoint_directory, load, new_run, save_checkpoint, weights
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.inference.beam import beam_search
from tinygpt.inference.decoding import generate
from tinygpt.inference.text import complete, complete_all
from tinygpt.inspect.explore import collect
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import integrity_errors, newest_run, status
from tinygpt.storage.durable import Lock
from tinygpt.weights.pretrained import StoredModel

TOKENIZER = CharacterTokenizer.train("abcdefgh\n")
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=TOKENIZER.n_vocab)


def save(run, step, *, best=False, model=None):
    model = model or GPT(TINY, seed=step)
    return save_checkpoint(run, step, model, AdamW(model), TOKENIZER, {"step": step}, best=best)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_weights_and_config_come_back_as_they_were(tmp_path, tied, qkv_bias):
    config = GPTConfig(
        n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=9, dropout=0.25, tie_word_embeddings=tied, qkv_bias=qkv_bias
    )
    model = GPT(config, seed=5)
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.config == config
    np.testing.assert_equal(weights(loaded), weights(model))


def test_chat_templates_with_names_are_kept_and_checked(tmp_path):
    """In a folder next to the tokenizer: through reading, saving, and a run's checkpoint, whose manifest lists them."""
    name, text = "additional_chat_templates/tools.jinja", b"{{ tools }}\r\n"
    model = GPT(TINY)
    model.save_pretrained(tmp_path / "published", TOKENIZER)
    (tmp_path / "published" / name).parent.mkdir()
    (tmp_path / "published" / name).write_bytes(text)
    (tmp_path / "published" / name).with_suffix(".txt").touch()
    tokenizer = Checkpoint.open(tmp_path / "published").tokenizer()
    assert tokenizer.kept[name] == text
    run = new_run(tmp_path / "run", "x")
    save_checkpoint(run, 1, model, AdamW(model), tokenizer, {"step": 1}, best=True)
    directory = checkpoint_directory(run)
    assert integrity_errors(directory) == [] and Checkpoint.open(run).tokenizer().kept == tokenizer.kept | {
        file.name: file.read_bytes() for file in directory.glob("tokenizer_config.json")
    }
    (directory / name).write_bytes(text[::-1])
    assert integrity_errors(directory) == [f"{name} is damaged: its sha256 is not the one in manifest.json"]


def test_the_file_has_gpt2s_keys_whatever_the_options(tmp_path):
    GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=12, vocab_size=9, qkv_bias=False)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["h.0.attn.c_attn.weight"].shape == (16, 48) and not tensors["h.0.attn.c_attn.bias"].any()
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "gpt2" and config["activation_function"] == "gelu_new" and config["qkv_bias"] is False
    assert {"n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "resid_pdrop", "embd_pdrop", "attn_pdrop"} <= config.keys()


def test_missing_unexpected_and_misshapen_tensors_are_listed_together(tmp_path):
    GPT(TINY).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["extra"] = tensors.pop("ln_f.weight")
    tensors["wpe.weight"] = np.zeros((3, 16), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"missing ln_f.weight \(16,\); unexpected extra \(16,\); wpe.weight of shape \(3, 16\) instead of"
    ):
        GPT.from_pretrained(tmp_path)


def test_a_directory_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file, expected one of a checkpoint"):
        GPT.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"neither a checkpoint nor a run with one"):
        load(tmp_path)
    GPT(TINY).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors, expected a checkpoint directory"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "lama"}', r"model_type 'lama', expected one of gpt2, llama, "),
        ("[1]", r"a JSON list, expected an object"),
        ("{", r"config.json: .*, expected valid JSON"),
        ("[" * 100_000, r"config.json: .*, expected valid JSON"),
    ],
)
def test_a_broken_config_is_one_clear_error(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        StoredModel(tmp_path)


def test_a_run_keeps_last_and_best_and_deletes_the_rest(tmp_path):
    run = new_run(tmp_path / "run", "x")
    save(run, 1, best=True)
    save(run, 2)
    save(run, 3)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best", "last", "step-00000001", "step-00000003"]
    assert checkpoint_directory(run).name == "step-00000001" and checkpoint_directory(run, "last").name == "step-00000003"
    model, tokenizer = load(run, "last")
    np.testing.assert_equal(weights(model), weights(GPT(TINY, seed=3)))
    assert tokenizer.decode(tokenizer.encode("cab")) == "cab"


def test_a_checkpoint_holds_what_a_resumed_run_needs(tmp_path):
    run = new_run(tmp_path / "run", "x")
    model = GPT(TINY)
    optimizer = AdamW(model)
    ids = np.zeros((1, 4), int)
    model.loss(ids, ids).backward()
    optimizer.step()
    path = save_checkpoint(run, 7, model, optimizer, TOKENIZER, {"step": 7, "dropout_draw": 3}, best=True)
    training = json.loads((path / "training.json").read_text(encoding="utf-8"))
    assert training == {"n_steps": 1, "step": 7, "dropout_draw": 3}
    moments = load_file(path / "training.safetensors")
    np.testing.assert_array_equal(moments["m.wpe.weight"], backend.to_host(optimizer.state_dict()["m"]["wpe.weight"]))
    assert {p.name for p in path.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "training.safetensors",
        "training.json",
        "tokenizer.json",
    }


def test_runs_are_numbered_and_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [new_run(None, "docs").name for _ in range(3)] == ["docs-001", "docs-002", "docs-003"]
    (tmp_path / "empty").mkdir()
    new_run("empty", "docs")
    with pytest.raises(FileExistsError, match=r"empty: already holds a run \(or other files\), expected a new or empty directory; choose"):
        new_run("empty", "docs")
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(FileExistsError, match="file: already holds"):
        new_run("file", "docs")


def test_the_newest_run_is_found_by_its_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"runs: no run with a checkpoint, expected one; train first: python examples/pretrain.py"):
        newest_run()
    first, second, empty = (new_run(None, "docs") for _ in range(3))
    save(second, 1)
    save(first, 1)
    os.utime(second / "checkpoints" / "last", (1, 1))
    assert newest_run() == first.relative_to(tmp_path) if first.is_absolute() else first
    assert empty.exists()


def test_a_tokenizer_of_another_size_is_refused(tmp_path):
    GPT(TINY).save_pretrained(tmp_path, CharacterTokenizer.train("abcdefghij"))
    with pytest.raises(ValueError, match=r"a tokenizer of 10 tokens, expected at most 9, the model's vocabulary"):
        load(tmp_path)


def test_rows_without_a_token_are_never_drawn(tmp_path):
    """nanoGPT's 50304 rows for 50257 tokens: padding is drawn from like any token, unless it is left out."""
    padded, tokenizer = GPT(TINY), CharacterTokenizer.train("ab")
    padded.wte.weight.data[:2] *= 0.01  # the seven rows of padding are likelier by far
    padded.save_pretrained(tmp_path, tokenizer)
    model, tokenizer = load(tmp_path)
    assert tokenizer.n_vocab == 2 and model.config.vocab_size == 9
    assert generate(model, [[0]], 30, temperature=1.0).ids.max() > 1
    for options in ({"temperature": 1.0}, {"temperature": 0.0}, {"top_k": 8, "repetition_penalty": 1.5, "alternatives": 4}):
        result = generate(model, [[0]], 30, n_tokens=2, **options)
        assert result.ids.max() <= 1 and all(id < 2 for info in result.infos for token in info for id, _ in token.alternatives)
    assert set(complete(model, tokenizer, "a", 30, alternatives=3).text) <= set("ab")
    assert set("".join(c.text for c in complete_all(model, tokenizer, ["a", "ba"], 30))) <= set("ab")
    assert max(beam_search(model, [0], 10, n_beams=3, n_tokens=2)[0].ids) <= 1
    page = collect(model, tokenizer, "ab")
    assert any(token.startswith("<no token ") for depth in page["lens"] for place in depth for token, _ in place["top"])


def test_byte_level_tokenizers_travel_with_the_model(tmp_path):
    tokenizer = BPETokenizer.train("the cat sat on the mat, the cat sat", 270)
    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=12, vocab_size=tokenizer.n_vocab))
    model.save_pretrained(tmp_path, tokenizer)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["eos_token_id"] == config["bos_token_id"] == tokenizer.eos_id
    assert load(tmp_path)[1].encode("the cat") == tokenizer.encode("the cat")


def test_an_interrupted_run_is_not_preferred_to_a_finished_one_and_a_run_elsewhere_is_found(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    finished, interrupted = new_run(None, "docs"), new_run(None, "docs")
    for age, (run, step) in enumerate([(finished, 9), (interrupted, 5)]):
        save_checkpoint(run, step, model := GPT(TINY), AdamW(model), TOKENIZER, {"step": step, "train": {"steps": 9}}, best=True)
        os.utime(run / "checkpoints" / "last", (age, age))
    (interrupted / "metrics.jsonl").write_text('{"step": 5, "ended": "interrupted"}\n', encoding="utf-8")
    said = []
    assert newest_run(note=said.append) == finished
    assert said and f"{interrupted} is newer but " in said[0] and f"--run {interrupted}" in said[0]

    far = new_run(tmp_path / "far" / "away", "docs")  # neither below runs/ nor in the working directory
    save_checkpoint(far, 9, model := GPT(TINY), AdamW(model), TOKENIZER, {"step": 9, "train": {"steps": 9}}, best=True)
    assert newest_run() == far
    assert Checkpoint.open(far).describe() == f"{far}, step 9, finished"


def test_how_a_run_ended_is_said(tmp_path):
    run = new_run(tmp_path / "run")
    save_checkpoint(run, 5, model := GPT(TINY), AdamW(model), TOKENIZER, {"step": 5, "train": {"steps": 9}}, best=True)
    held = Lock(run).acquire()
    held.release()
    assert status(run) == "interrupted at step 5 of 9"
    for ended, words in (("diverged", "diverged after step 5 of 9"), ("stopped early", "stopped early"), ("finished", "finished")):
        (run / "metrics.jsonl").write_text('{"step": 5}\n' + json.dumps({"step": 5, "ended": ended}) + "\n", encoding="utf-8")
        assert status(run) == words
