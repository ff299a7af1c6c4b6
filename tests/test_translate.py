"""The translating example, run as a reader would run it, on a tiny model and a file of pairs; and its default data, where the extra is."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import checkpoint_directory
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import train_tokenizer

ROOT = Path(__file__).parent.parent
SHAPE = (
    "--n-layer 1 --n-head 2 --n-embd 16 --n-positions 32 --vocab-size 300 --micro-batch 8 --tokens-per-update 256 --beam-pairs 2".split()
)
FLAGS = [*SHAPE, *"--data pairs.tsv --steps 40 --eval-every 10 --log-every 5 --warmup-steps 2 --dropout 0.1".split()]


def start(folder, *flags):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOGRAD_", "PYTEST_"))}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "translate.py"), *flags],
        cwd=folder, env={**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip


def example(folder, *flags, ok=True, typed=None):
    process = start(folder, *flags)
    out, err = process.communicate(typed, timeout=300)
    assert (process.returncode == 0) == ok, out + err
    assert ok or err.count("\n") == 1, err
    return out if ok else err


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with pairs of one to six words, and a run on them that was never stopped."""
    folder = tmp_path_factory.mktemp("work")
    words = {"red": "rot", "green": "grün", "blue": "blau", "small": "klein"}
    rows = [((a, b, c) * n, n) for a in words for b in words for c in words for n in (1, 2)]
    lines = [f"{' '.join(row)} {n}\t{n} {' '.join(words[word] for word in reversed(row))}\tCC-BY\n" for row, n in rows]
    (folder / "pairs.tsv").write_text("".join(lines), encoding="utf-8")
    (folder / "out.txt").write_text(example(folder, *FLAGS, "--run", "done"), encoding="utf-8")
    return folder


def test_a_file_of_pairs_becomes_a_translator_with_a_report(folder):
    out, report = ((folder / name).read_text(encoding="utf-8") for name in ("out.txt", "done/report.txt"))
    for part in (
        "data       file pairs.tsv\n           the first two columns taken, 1 more left out",
        "pairs      116 for training, 6 for validation, 6 for the test", "1 + 1 layers, 2 heads, 16 channels, context 32, vocabulary ",
        "exact match", "beam search, 4 beams", " -> ", "test texts per second",
    ):  # fmt: skip
        assert part in report and part in out
    assert re.search(r"^1 to 5 words +\d  +\d", report, flags=re.MULTILINE) and re.search(r"^all +6 ", report, flags=re.MULTILINE)
    assert re.search(
        r"^updates    40, each \d+ pairs\noptimizer  Adam\w*: .*; the model's arithmetic is [\d.]+ GFLOP$", out, flags=re.MULTILINE
    )
    assert "step    40/40" in out and "next: python examples/translate.py --ask done" in out
    pytest.importorskip("matplotlib", reason="the pictures need the extra plot")
    assert {"attention.png", "loss.png"} <= {path.name for path in (folder / "done").iterdir()}


def test_what_is_typed_is_translated(folder):
    out = example(folder, "--ask", "done", typed=f"red green blue 1\n{'red ' * 40}\n\nnot read\n")
    assert out.startswith("Type a text; an empty line ends.") and out.count("> ") == 3
    assert re.search(r"error: .* positions, expected at most n_positions = 32", out)


@numpy_only
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_and_resumed_it_ends_as_if_it_had_never_been_stopped(folder):
    process = start(folder, *FLAGS, "--run", "parts")
    for line in process.stdout:
        if re.match(r"step +20/40 +validation", line):  # a checkpoint is being written now
            while not [*folder.glob("parts/checkpoints/step-*/manifest.json")] and process.poll() is None:  # and one has to be on the disk
                time.sleep(0.01)
            break
    process.kill()
    process.communicate()
    assert not (folder / "parts" / "report.txt").exists()
    assert re.search(r"resume     from \S+step-000000\d0, step \d0 of 40", example(folder, "--resume", "parts"))
    for which in ("best", "last"):
        one, two = (checkpoint_directory(folder / name, which) for name in ("done", "parts"))
        assert one.name == two.name
        for name in ("model.safetensors", "training.safetensors"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), (which, name)
    reports = [(folder / name / "report.txt").read_text(encoding="utf-8").split("best validation loss")[0] for name in ("done", "parts")]
    assert reports[0] == reports[1]


def test_what_does_not_fit_is_refused(folder):
    assert "resume: --n-embd 32, expected 16 as in the run" in example(folder, "--resume", "done", "--n-embd", "32", ok=False)
    message = example(folder, *FLAGS, "--n-positions", "6", "--tokens-per-update", "48", ok=False)
    assert re.search(r"pairs\.tsv: line \d+: (source|target) of \d+ tokens, expected at most 6, the model's context", message)
    process = start(folder, *FLAGS, "--n-beams", "0")
    assert "TranslateConfig.n_beams: 0, expected at least 1" in process.communicate(timeout=300)[1] and process.returncode
    tokenizer = train_tokenizer("characters", ["abc"], 10)
    GPT(GPTConfig(n_layer=1, n_head=1, n_embd=8, n_positions=8, vocab_size=tokenizer.n_vocab)).save_pretrained(folder / "gpt", tokenizer)
    assert "gpt: a language model, expected an encoder-decoder; load it with GPT.from_pretrained" in example(
        folder, "--ask", "gpt", ok=False
    )


def test_the_default_data_needs_no_file(tmp_path):
    for name in ("num2words", "babel"):
        pytest.importorskip(name, reason="numbers and dates in words need the extra translate")
    more = "--n-positions 60 --tokens-per-update 480 --leave-out-long --steps 2 --numbers 100 --warmup-steps 1".split()
    out = example(tmp_path, *SHAPE, *more)
    assert "numbers and dates in English and German words" in out and "single numbers" in out and "sentences of 2" in out
    assert (tmp_path / "runs" / "numbers-and-dates-001" / "report.txt").is_file()


def test_the_benchmark_runs(tmp_path):
    for name in ("num2words", "babel"):
        pytest.importorskip(name, reason="numbers and dates in words need the extra translate")
    command = [sys.executable, str(ROOT / "benchmarks" / "translate.py"), "--quick", "--output", "out.json"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert "minutes to 99%" in done.stdout and len(json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["seeds"]) == 2
