import json
import re
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.tinygpt.test_faults import two_checkpoints
from tests.tinygpt.test_resume import SHAPE, TOKENIZER
from tinygpt import GPT
from tinygpt.runs.verify import check_checkpoint, main
from tinygpt.storage.checked_json import to_json


def said(capsys, path):
    status = main([str(path)])
    return status, capsys.readouterr().out


def test_a_run_in_order(tmp_path, capsys):
    run, _ = two_checkpoints(tmp_path)
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"st', encoding="utf-8")
    (run / "checkpoints" / ".partial-x").mkdir()
    status, out = said(capsys, run)
    assert status == 0 and out.splitlines() == [
        "step-00000001: intact, finite, resumable",
        "step-00000002 (last, best): intact, finite, resumable",
        "1 unfinished files of an interrupted save, which --resume removes: .partial-x",
        "run: interrupted at step 2 of 1000",
        "metrics.jsonl: 2 lines, 1 of them cut short or damaged (--resume drops them)",
        "OK",
    ]


def rewrite(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def nan(tensors):
    tensors[sorted(tensors)[0]][..., 0] = np.nan


def missing(tensors):
    del tensors["v.wpe.weight"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("model.safetensors", nan, r"holds \d+ numbers that are not finite"),
        ("training.safetensors", nan, r"holds \d+ numbers that are not finite"),
        ("training.safetensors", missing, r"cannot be resumed: training.safetensors lacks v.wpe.weight and 0 more"),
        ("model.safetensors", lambda t: t.pop("wpe.weight"), r"holds \d,\d+ weights, config.json describes \d,\d+"),
    ],
)
def test_what_a_checksum_cannot_know_is_found_too(tmp_path, name, change, message):
    """Files that are as they were saved, by a program that saved something wrong."""
    run, _ = two_checkpoints(tmp_path)
    directory = run / "checkpoints" / "step-00000002"
    (directory / "manifest.json").unlink()
    rewrite(directory / name, change)
    assert re.search(message, "; ".join(check_checkpoint(directory)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon"])
def test_the_state_of_each_optimizer_is_known(tmp_path, optimizer):
    run, _ = two_checkpoints(tmp_path, optimizer=optimizer)
    directory = run / "checkpoints" / "step-00000002"
    assert check_checkpoint(directory) == []
    (directory / "manifest.json").unlink()
    key = "m" if optimizer == "sgd" else "v"
    rewrite(directory / "training.safetensors", lambda tensors: tensors.pop(f"{key}.ln_f.bias"))
    expected = "m.ln_f.bias" if key == "m" else "v.ln_f.bias"
    found = "; ".join(check_checkpoint(directory))
    assert ("lacks " + expected in found) == (key == "v"), found  # without its m, the parameter is not known of: the model's file has it


def test_the_training_state_is_checked(tmp_path):
    run, _ = two_checkpoints(tmp_path)
    directory = run / "checkpoints" / "step-00000002"
    (directory / "manifest.json").unlink()
    state = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    del state["streams"]["dropout"]
    (directory / "training.json").write_bytes(to_json(state))
    assert "cannot be resumed" in check_checkpoint(directory)[0] and "streams.dropout.draw is None" in check_checkpoint(directory)[0]


def test_a_checkpoint_alone_and_damage_give_the_exit_code(tmp_path, capsys):
    GPT(SHAPE).save_pretrained(tmp_path / "alone", TOKENIZER)
    status, out = said(capsys, tmp_path / "alone")
    assert status == 1 and "cannot be resumed: no training.json with training.safetensors (it can be used and fine-tuned)" in out
    run, _ = two_checkpoints(tmp_path)
    (run / "checkpoints" / "step-00000002" / "config.json").write_bytes(b"{}")
    status, out = said(capsys, run)
    assert status == 1 and "BAD  step-00000002 (last, best): config.json has 2 bytes, expected " in out and out.endswith("FAILED\n")
    status, out = said(capsys, tmp_path / "nowhere")
    assert status == 1 and "no checkpoint, expected a run or a checkpoint; check the path" in out


def test_it_is_a_command(tmp_path):
    command = [sys.executable, "-m", "tinygpt", "verify"]
    assert subprocess.run(command, capture_output=True).returncode == 2
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and "python -m tinygpt verify runs/docs-001" in helped.stdout
