"""Runs and checkpoints that an earlier version wrote (tests/data/before) still open, verify and resume."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.autograd.checks import numpy_only
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.finetuning.lora import load_lora
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.verify import main as verify

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def before(tmp_path):
    return Path(shutil.copytree(ROOT / "tests" / "data" / "before", tmp_path / "before"))


@pytest.mark.parametrize(("run", "step"), [("pretrained", 8), ("classifier", 3), ("classifier-lora", 3), ("assistant", 10)])
def test_a_run_of_before_opens_and_verifies(before, run, step, capsys):
    assert verify([str(before / run)]) == 0, capsys.readouterr().out
    checkpoint = Checkpoint.open(before / run)
    assert checkpoint.training["step"] == checkpoint.training["best_step"] == step
    model = checkpoint.model()
    assert isinstance(model, GPTClassifier) == run.startswith("classifier") and model.config.n_embd == 8
    assert checkpoint.tokenizer().decode(checkpoint.tokenizer().encode("red flat")) == "red flat"


def test_an_adapter_of_before_loads(before):
    base = Checkpoint.open(before / "pretrained")
    classifier = GPTClassifier(base.language_model(), base.tokenizer(), ["cold", "warm"])
    assert load_lora(classifier, before / "classifier-lora" / "adapter").layers


def script(before, name, *flags):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *flags],
        cwd=before, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, encoding="utf-8", timeout=300,
    )  # fmt: skip


@numpy_only
@pytest.mark.parametrize(
    ("name", "flags", "last"),
    [
        ("pretrain.py", ("--resume", "pretrained", "--stop-at", "0"), "step-00000012"),
        ("finetune_classifier.py", ("--resume", "classifier", "--epochs", "3"), "step-00000015"),
        ("finetune_instructions.py", ("--resume", "assistant", "--epochs", "3"), "step-00000015"),
    ],
)
def test_a_run_of_before_resumes(before, name, flags, last):
    done = script(before, name, *flags)
    assert done.returncode == 0 and "\nresume     from " in done.stdout, done.stderr
    assert Checkpoint.open(before / flags[1], "last").path.name == last


@numpy_only
def test_an_adapter_that_was_saved_merged_only_says_that_it_cannot_be_resumed(before):
    done = script(before, "finetune_classifier.py", "--resume", "classifier-lora", "--epochs", "3")
    assert done.returncode == 1 and "holds no weights of the adapter" in done.stderr and done.stderr.count("\n") == 1
