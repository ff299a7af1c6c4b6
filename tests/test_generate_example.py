"""examples/generate.py, run as a reader would run it, on a tiny model."""

import json
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.weights.config_json import read_config

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    tokenizer = BPETokenizer.train("to be, or not to be: that is the question", 280)
    config = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=tokenizer.n_vocab)
    GPT(config).save_pretrained(directory, tokenizer)
    return directory


def test_the_few_shot_example_asks_with_and_without_examples(tmp_path):
    tokenizer = BPETokenizer.train("good bad review", 262)
    GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=256, vocab_size=tokenizer.n_vocab)).save_pretrained(tmp_path, tokenizer)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "few_shot.py"), "--run", str(tmp_path)], capture_output=True, text=True, timeout=300,
        encoding="utf-8", env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--- zero-shot, 0 examples ---" in done.stdout and "--- few-shot, 3 examples ---" in done.stdout
    assert len(re.findall(r"chosen: (good|bad); written freely: ", done.stdout)) == 2


@pytest.mark.parametrize("flags", [["--prompt", b"caf\xe9"], []], ids=["flag", "standard input"])
def test_latin1_gets_advice_for_users(model, flags):
    command = [sys.executable, str(ROOT / "examples" / "generate.py"), "--run", str(model), *flags]
    done = subprocess.run(command, input=b"caf\xe9\n", capture_output=True, timeout=300, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == (
        b"error: encode: byte 0xe9 at position 3 is not UTF-8, expected UTF-8 text; convert it, for example with iconv -f latin1 -t utf-8"
    )


def generate(model, *flags, typed="", ok=True, color=False):
    environment = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"} | ({"FORCE_COLOR": "1"} if color else {})
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "generate.py"), "--run", str(model), "--max-new-tokens", "40", *flags],
        env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300, input=typed,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_the_text_alone_goes_to_standard_output(model):
    out, err = generate(model, "--prompt", "to be")
    assert out.startswith("to be") and re.search(r"\[\d+ tokens, \d+ tokens/s, stopped by \w+\]", err) and "weights" in err
    assert "[the context is full: continuing with its last 8 tokens]" in err
    assert generate(model, typed="to be\n")[0] == out  # from standard input
    assert generate(model, "--prompt", "to be", "--no-use-cache")[0] == out
    assert generate(model, "--prompt", "to be", "--seed", "1")[0] != out


def test_tokens_are_colored_and_alternatives_shown(model):
    out, err = generate(model, "--prompt", "to be", "--colour", "--alternatives", "2", color=True)
    assert re.search(r"\x1b\[3[0-9;]+m", out)  # a foreground color, in as many shades as the terminal has
    n_tokens = int(re.search(r"\[(\d+) tokens", err)[1])
    text, heading, *lines = out.rstrip("\n").split("\n")[-n_tokens - 2 :]
    assert heading.split("  ")[0] == "chosen token" and heading.endswith("likeliest tokens at its position, likeliest first") and not text
    column = heading.index("likeliest")
    assert len(lines) == n_tokens > 5
    for line in lines:
        cells = re.findall(r"( *\d+\.\d%) ", line)
        assert len(cells) == 3 and line[column:].lstrip().startswith(cells[1].strip()) and float(cells[1][:-1]) >= float(cells[2][:-1])


def test_without_sliding_the_end_of_the_context_is_an_error(model):
    _, err = generate(model, "--prompt", "to be", "--no-slide", ok=False)
    assert "error: generate: 17 tokens, expected at most 16, the model's context" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "temperature: -1.0, expected a finite number >= 0"),
        (["--top-p", "0"], "top_p: 0.0, expected 0 < top_p <= 1"),
        (["--stop", ""], "stop: an empty string"),
        (["--run", "nowhere"], "nowhere: neither a checkpoint nor a run with one"),
    ],
)
def test_bad_input_is_one_clear_error(model, flags, message):
    _, err = generate(model, "--prompt", "x", *flags, ok=False)
    assert f"error: {message}" in err and "Traceback" not in err


SMOLLM2 = {  # SmolLM2-135M's config.json, at another size
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "silu", "hidden_size": 48, "initializer_range": 0.041666666666666664, "intermediate_size": 64, "is_llama_config": True,
    "max_position_embeddings": 64, "mlp_bias": False, "model_type": "llama", "num_attention_heads": 3, "num_hidden_layers": 2,
    "num_key_value_heads": 1, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True,
}  # fmt: skip


REVISION = "93efa2f097d58c2a74874c7e644dbc9b0cee75a2"
BESIDES = {  # what else lies in its directory
    "generation_config.json": {"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 0, "transformers_version": "4.40.1"},
    "special_tokens_map.json": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
    "tokenizer_config.json": {"add_prefix_space": False, "model_max_length": 8192, "tokenizer_class": "GPT2Tokenizer", "vocab_size": 49152},
}


@pytest.mark.parametrize("where", ["folder", "hub cache"])
def test_a_directory_with_smollm2s_form_generates_by_the_name_of_the_hub(tmp_path, where):
    """Its config.json, a tokenizer.json with the same parts, and bfloat16 weights: as fetched with --local-dir under the model's name; and in two
    shards, where the hub's library keeps what it has fetched, without a network."""
    tokenizers = pytest.importorskip("tokenizers", reason="this tokenizer is trained by the extra `tokenizers`")
    directory = tmp_path / "HuggingFaceTB" / "SmolLM2-135M"
    if where == "hub cache":
        pytest.importorskip("huggingface_hub", reason="names of the hub need the extra `hub`")
        repository = tmp_path / "home" / "hub" / "models--HuggingFaceTB--SmolLM2-135M"
        directory = repository / "snapshots" / REVISION
    directory.mkdir(parents=True)
    other = smollm2s_tokenizer(tokenizers)
    other.save(str(directory / "tokenizer.json"))
    config = SMOLLM2 | {"vocab_size": other.get_vocab_size()}
    for name, content in ({"config.json": config} | BESIDES).items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    n_shards = 1
    if where == "hub cache":
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(REVISION, encoding="utf-8")
        n_shards = 2
    save_bfloat16(directory, read_config(directory / "config.json", config), n_shards)
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "generate.py"), "--run", "HuggingFaceTB/SmolLM2-135M", "--prompt", "Gravity is 9", "--temperature", "0"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = GPT.from_pretrained(directory).eval()
    ids = model.generate([other.encode("Gravity is 9").ids], 40, temperature=0.0, eos_id=0)[0]
    assert done.stdout.startswith(other.decode(ids.tolist())) and len(ids) > 20


def smollm2s_tokenizer(tokenizers):
    other = tokenizers.Tokenizer(tokenizers.models.BPE())
    bytes_of_words = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    other.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([tokenizers.pre_tokenizers.Digits(individual_digits=True), bytes_of_words])
    other.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], initial_alphabet=bytes_of_words.alphabet()
    )
    other.train_from_iterator(["Gravity is what 1234 apples are pulled by, and what pulls them is 9.81"] * 3, trainer)
    return other


def save_bfloat16(directory, config, n_shards):
    """Random weights of that shape under Llama's names, in model.safetensors, or in shards with their index."""
    model = GPT(config, seed=0)
    for _, p in model.named_parameters():
        p.data *= 4  # far from even logits
    model.save_pretrained(directory.parent / "float32")
    tensors = load_file(directory.parent / "float32" / "model.safetensors")
    files = {name: f"model-{1 + i % n_shards:05}-of-{n_shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        header, data = {}, b""
        for name in (name for name, its in files.items() if its == file):
            half = (np.ascontiguousarray(tensors[name]).view(np.uint32) >> 16).astype("<u2").tobytes()
            header[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [len(data), len(data) + len(half)]}
            data += half
        text = json.dumps(header).encode()
        (directory / (file if n_shards > 1 else "model.safetensors")).write_bytes(struct.pack("<Q", len(text)) + text + data)
    if n_shards > 1:
        index = {"metadata": {}, "weight_map": files}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
