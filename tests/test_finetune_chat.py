"""The chat's example, run as a reader would run it, on a tiny model; then talking to it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tinygpt.helpers import new_run
from tinygpt import GPT, GPTConfig
from tinygpt.__main__ import main as tinygpt
from tinygpt.data.jinja_templates import saved_template
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.weights.pretrained import save_pretrained

ROOT = Path(__file__).parent.parent


def example(*flags, cwd):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "finetune_chat.py"), *flags],
        cwd=cwd, env={**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}, capture_output=True, text=True, encoding="utf-8",
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pretrained run (a model of no use, but of the right form) and a file of conversations."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer = BPETokenizer.train("Return the axis of an array and the mean of that. User: Assistant: no more and then?\n" * 9, 320)
    run = new_run(folder / "runs" / "docs-001", "docs")
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=32, n_positions=128, vocab_size=tokenizer.n_vocab)
    save_pretrained(GPT(shape), run / "checkpoints" / "step-00000001", tokenizer)
    for pointer in ("last", "best"):
        (run / "checkpoints" / pointer).write_text("step-00000001\n", encoding="utf-8")
    turns = [[f"Return {a} of {b}", f"the {a}", "and then?", "no more"] for a in ("axis", "array", "mean") for b in "abcdefghijklmnop"]
    rows = [{"conversations": [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(each)]} for each in turns]
    (folder / "mine.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_a_base_becomes_something_to_talk_to(folder, monkeypatch, capsys):
    shown = example("--data", "mine.json", "--show-masked", "--template", "chatml", cwd=folder)
    assert "[mark: masked]\n<|im_start|>user\n[user: masked]\nReturn " in shown and "[end: counts]\n<|im_end|>\n" in shown
    out = example("--data", "mine.json", "--lr", "0.02", "--epochs", "5", "--warmup-steps", "2", "--max-new-tokens", "9", cwd=folder)
    run = folder / "runs" / "mine-001"
    report = (run / "report.txt").read_text(encoding="utf-8")
    for part in (
        "split by seed 0: 41 training, 2 validation, 5 test conversations", "template plain", "form of the rows: 48 in ShareGPT's",
        "[mark: masked]\nUser:\n", "[assistant: counts]\nthe ", "[end: counts]\n<|endoftext|>", "on 5 test conversations", "lower",
        "held-out turns, before and after", "follow-ups 0 of 5 exact",
    ):  # fmt: skip
        assert part in report and part in out
    assert {p.name for p in run.iterdir()} >= {"answers.json", "checkpoints", "config.json", "metrics.jsonl", "report.txt"}
    answers = json.loads((run / "answers.json").read_text(encoding="utf-8"))
    assert len(answers) == 10 and all(answer["before"] != answer["said"] for answer in answers)

    # The tokenizer's vocabulary is the base's, so that all that loads the base loads this; the template is saved next to it.
    tokenizer, base = (Checkpoint.open(folder / "runs" / name).tokenizer() for name in ("mine-001", "docs-001"))
    assert tokenizer.fingerprint() == base.fingerprint() and saved_template(tokenizer).name == "plain" and saved_template(base) is None

    monkeypatch.setattr("sys.stdin", io.StringIO(f"{answers[0]['question']}\n/new\n{answers[2]['question']}\n\nnot read\n"))
    monkeypatch.chdir(folder)  # the newest run that has learned conversations
    tinygpt(["chat", "--temperature", "0", "--max-tokens", "9"])
    said = capsys.readouterr()
    assert said.out == f"{answers[0]['said']}\n{answers[2]['said']}\n" and "mine-001" in said.err
