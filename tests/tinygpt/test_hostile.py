"""Files that somebody broke, or made to break us: each is one clear error, in bounded time and memory."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reliability import checkpoint_targets, mutate, read_mutated, text_targets
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import load
from tinygpt import GPT, GPTConfig
from tinygpt.data import download as downloads
from tinygpt.data.corpora import load_corpus
from tinygpt.data.download import DOWNLOADS, fetch
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.data.tokenizer_files import load_tokenizer
from tinygpt.finetuning.labeled import load_labeled
from tinygpt.runs.settings import stored_settings
from tinygpt.storage.checked_json import MAX_JSON_BYTES, read_json, read_text

ROOT = Path(__file__).parent.parent.parent
CI_MUTATIONS = 1000


@numpy_only
@pytest.mark.parametrize("targets", [checkpoint_targets, text_targets])
def test_a_mutated_file_is_refused_or_read_and_nothing_else_happens(tmp_path, targets):
    report = read_mutated(tmp_path, targets(tmp_path), CI_MUTATIONS)
    assert report.files == CI_MUTATIONS and report.refused > CI_MUTATIONS / 4  # it does find fault
    assert (report.crashes, report.too_much_memory, report.too_slow, report.unclear) == ([], [], [], []), report


def test_mutations_come_again_from_their_seed():
    import random

    data = b'{"a": 1, "b": [2, 3]}' * 10
    assert [mutate(data, random.Random(i)) for i in range(50)] == [mutate(data, random.Random(i)) for i in range(50)]
    assert len({mutate(data, random.Random(i)) for i in range(50)}) > 45


def test_the_harness_finds_crashes_hangs_memory_and_unclear_errors(tmp_path, monkeypatch):
    """A reader that does everything wrong is caught at it."""
    from benchmarks import reliability

    monkeypatch.setattr(reliability, "LIMIT_S", 0.01)
    monkeypatch.setattr(reliability, "FLOOR_BYTES", 1000)

    def crash(place):
        raise KeyError("oh")

    def unclear(place):
        raise ValueError("bad")

    def hungry(place):
        return bytearray(100_000)

    def slow(place):
        import time

        time.sleep(0.02)

    for reader, found in ((crash, "crashes"), (unclear, "unclear"), (hungry, "too_much_memory"), (slow, "too_slow")):
        report = read_mutated(tmp_path, {"x": ({"x": b"data"}, reader)}, 3)
        assert len(getattr(report, found)) == 3


# ---- no pickle ---------------------------------------------------------------------------------------------------------------------------


def test_no_module_can_read_a_pickle():
    for package in ("tinygpt", "autograd", "examples"):
        for path in (ROOT / package).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            assert not re.search(
                r"^\s*(import|from) (pickle|marshal|shelve|dill|joblib)\b|np\.load\(|allow_pickle=True|\.loads?_pickle", source, re.M
            ), path


def test_a_pickle_in_the_place_of_weights_is_refused_unread(tmp_path):
    GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, n_positions=4, vocab_size=5)).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(ValueError, match=r"model.safetensors: .*, expected an intact safetensors file; fetch or save it again"):
        GPT.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model.bin: pickled weights, expected model.safetensors, because reading a pickle runs any"
    ):
        GPT.from_pretrained(tmp_path)
    assert not Path("pwned").exists()


# ---- shapes and JSON ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"), [("n_positions", 10**9), ("vocab_size", 10**12), ("n_embd", 2 * 10**6), ("n_layer", 10**5), ("n_layer", 10**30)]
)
def test_an_absurd_shape_is_refused_before_anything_is_allocated(tmp_path, key, value):
    GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, n_positions=8, vocab_size=9)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"config.json: describes [\d,]+ weights, expected about 1,024, as many as the file of weights holds; take both"
    ):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "maximum recursion depth exceeded"),
        ('{"x": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"x": NaN}', "the number NaN"),
        ('{"x": -Infinity}', "the number -Infinity"),
        ('{"x": "\x00"}', "Invalid control character"),
        ("", "Expecting value"),
    ],
)
def test_json_beyond_reason_is_one_error(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"x.json: .*{message}.*, expected valid JSON; restore the file"):
        read_json(path)


def test_json_of_a_gigabyte_is_not_read(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ValueError, match=rf"x.json: {MAX_JSON_BYTES + 1} bytes, expected at most {MAX_JSON_BYTES}; is it the right file"):
        read_json(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_layer", "4", "GPTConfig.n_layer: '4', expected int"),
        ("lr", "fast", "TrainConfig.lr: 'fast', expected float"),
        ("steps", 1e3, "TrainConfig.steps: 1000.0, expected int"),
        ("on_nan", "hope", "TrainConfig.on_nan: 'hope', expected stop, skip or rollback"),
        ("betas", 3, "expected the settings of a run of this script"),
        ("typo", 1, "unknown key 'typo'"),
    ],
)
def test_a_run_s_settings_of_wrong_types_are_named(tmp_path, key, value, message):
    from dataclasses import asdict

    from tinygpt.config import PretrainConfig, TrainConfig

    fields = asdict(PretrainConfig(GPTConfig(), TrainConfig()))
    fields["model" if key == "n_layer" else "train"][key] = value
    (tmp_path / "config.json").write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"config.json: .*{message}"):
        stored_settings(PretrainConfig, tmp_path)


# ---- archives, tokenizers, texts -----------------------------------------------------------------------------------------------------------


def test_an_archive_cannot_write_outside_its_folder_nor_fill_the_memory(tmp_path, monkeypatch):
    member = DOWNLOADS["sms-spam"].member

    def archive(url, path, max_bytes):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("../../evil.txt", "x")
            file.writestr(member, b"\0" * 200_000)  # a bomb, if the limit is lower
        return path

    monkeypatch.delenv("TINYGPT_DATA", raising=False)
    monkeypatch.setattr(downloads, "download_file", archive)
    monkeypatch.setattr(downloads, "MAX_DOWNLOAD_BYTES", 100_000)
    with pytest.raises(ConnectionError) as raised:
        fetch("sms-spam", cache=tmp_path / "cache")
    assert f"{member}: more than 100,000 bytes, expected at most that" in str(raised.value.__cause__)
    assert not list(tmp_path.rglob("evil.txt")) and not (tmp_path.parent / "evil.txt").exists()


def test_merges_that_are_missing_or_double_are_named(tmp_path):
    tokenizer = BPETokenizer.train("the cat sat on the mat, the cat sat", 265)
    tokenizer.save(tmp_path)
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    for changed, message in (
        (lines[:1] + lines[2:], "merge|made by no merge|is no token yet"),
        (lines + lines[-1:], "for the second time, expected once; remove the duplicate"),
    ):
        (tmp_path / "merges.txt").write_text("".join(changed), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_tokenizer(tmp_path)


def test_nul_bytes_and_mixed_line_ends_are_text_like_any_other(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"one\r\ntwo\rthree\n\x00four\xc2\xa0" * 30)
    assert read_text(tmp_path / "x.txt") == "one\ntwo\nthree\n\x00four\xa0" * 30
    text = load_corpus(tmp_path / "x.txt").train[0].text
    tokenizer = BPETokenizer.train(text, 300)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_lone_surrogate_in_a_file_is_no_utf8(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"fine " * 30 + b"\xed\xa0\x80")
    with pytest.raises(ValueError, match=r"byte 0xed at offset 150 is not UTF-8, expected UTF-8 text"):
        load_corpus(tmp_path / "x.txt")


def test_a_line_of_a_million_characters_is_encoded(tmp_path):
    line = "".join(np.random.default_rng(0).choice(list("abcdef"), 1_000_000))
    tokenizer = BPETokenizer.train(line[:1000], 300)
    assert tokenizer.decode(tokenizer.encode_array(line)) == line


def test_ragged_rows_are_named(tmp_path):
    (tmp_path / "x.csv").write_text("text,label\na,b\nc,d,e\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x.csv: line 3: 3 columns, expected 2 as in the first line"):
        load_labeled(str(tmp_path / "x.csv"))


def test_a_script_ends_with_one_error_and_a_code(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("[" * 100_000, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "pretrain.py"), "--resume", "run"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT), "AUTOGRAD_BACKEND": "numpy"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: run") and done.stderr.count("\n") == 1
    with pytest.raises(FileNotFoundError, match="neither a checkpoint nor a run with one"):
        load(tmp_path)
