"""Fine-tunings that are killed and resumed end as the one that was never stopped, bit for bit."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import GEMMA, checkpoint_directory, new_run
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.weights.pretrained import save_pretrained

ROOT = Path(__file__).parent.parent
CLASSIFIER = "--data rows.csv --epochs 4 --batch 8 --patience 9 --prompt-texts 2 --fractions 0.6 0.2 0.2 --base base".split()
ASSISTANT = (
    "--data rows.json --epochs 4 --batch 8 --patience 9 --test-answers 2 --max-new-tokens 4 --fractions 0.6 0.2 0.2 --base base".split()
)
CHAT = "--data chats.jsonl --epochs 4 --batch 8 --patience 9 --test-rows 2 --max-new-tokens 4 --fractions 0.6 0.2 0.2 --base base".split()
LORA = "--trainable lora --rank 2 --lora-dropout 0.2".split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    words = ["red", "green", "blue", "small", "large", "round", "flat", "heavy"]
    texts = [f"{a} {b} {c}" for a in words for b in words for c in words][:80]
    tokenizer = BPETokenizer.train(texts, 300)
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=tokenizer.n_vocab, dropout=0.1)
    for name, changes in (("base", {}), ("gemma", GEMMA)):
        run = new_run(folder / name)
        save_pretrained(GPT(dataclasses.replace(shape, **changes)), run / "checkpoints" / "step-00000001", tokenizer)
        for pointer in ("last", "best"):
            (run / "checkpoints" / pointer).write_text("step-00000001\n", encoding="utf-8")
    (folder / "rows.csv").write_text("text,label\n" + "".join(f"{t},{t[0]}\n" for t in texts), encoding="utf-8")
    rows = [{"instruction": f"Say {t}", "output": t.split()[0]} for t in texts]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    chats = [
        {
            "messages": [
                {"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, [f"Say {t}", *t.split()], strict=True)
            ]
        }
        for t in texts
    ]
    (folder / "chats.jsonl").write_text("\n".join(map(json.dumps, chats)), encoding="utf-8")
    return folder


def start(folder, script, *flags):
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AUTOGRAD_", "PYTEST_"))}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / script), *flags],
        cwd=folder, env={**kept, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8",
    )  # fmt: skip


def finish(folder, script, *flags):
    process = start(folder, script, *flags)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


@numpy_only
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("finetune_classifier.py", CLASSIFIER),
        ("finetune_classifier.py", CLASSIFIER + LORA),
        ("finetune_instructions.py", ASSISTANT),
        ("finetune_instructions.py", ASSISTANT + LORA),
        ("finetune_chat.py", CHAT + LORA),
        ("finetune_instructions.py", [*ASSISTANT[:-1], "gemma", *LORA]),
    ],
    ids=["classifier", "classifier-lora", "assistant", "assistant-lora", "chat-lora", "gemma-assistant-lora"],
)
def test_killed_and_resumed_it_ends_as_if_it_had_never_been_stopped(folder, request, script, flags):
    whole, parts = (f"{request.node.callspec.id}-{name}" for name in ("whole", "parts"))
    finish(folder, script, *flags, "--run", whole)
    process = start(folder, script, *flags, "--run", parts)
    for line in process.stdout:
        if (found := re.match(r"step +(\d+)/\d+ +validation", line)) and int(
            found[1]
        ) >= 12:  # a checkpoint is being written now, and one is on the disk
            break
    process.kill()
    process.communicate()
    assert not (folder / parts / "report.txt").exists()
    out = finish(folder, script, "--resume", parts)
    assert re.search(r"resume     from step \d+ of \d+", out)
    for which in ("best", "last"):
        one, two = (checkpoint_directory(folder / run, which) for run in (whole, parts))
        assert one.name == two.name
        for name in ("model.safetensors", "training.safetensors"):
            assert (one / name).read_bytes() == (two / name).read_bytes(), (which, name)
    for path in sorted((folder / whole / "adapter").glob("*.safetensors")):
        assert path.read_bytes() == (folder / parts / "adapter" / path.name).read_bytes()
    reports = [(folder / run / "report.txt").read_text(encoding="utf-8").split("best validation loss")[0] for run in (whole, parts)]
    assert reports[0] == reports[1]


def test_what_contradicts_the_run_or_has_changed_is_refused(folder):
    finish(folder, "finetune_classifier.py", *CLASSIFIER, "--run", "done")

    def refused(*flags):
        process = start(folder, *flags)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 1 and err.count("\n") == 1, err
        return err

    assert "--lr 0.1, expected 0.0005 as in the run (or --override)" in refused("finetune_classifier.py", "--resume", "done", "--lr", "0.1")
    assert "resume: --batch 4, expected 8 as in the run" in refused("finetune_classifier.py", "--resume", "done", "--batch", "4")
    assert "a run of examples/finetune_classifier.py, expected one of" in refused("finetune_instructions.py", "--resume", "done")
    assert "a run of examples/finetune_classifier.py, expected one of examples/pretrain.py" in refused("pretrain.py", "--resume", "done")
    rows = (folder / "rows.csv").read_text(encoding="utf-8")
    (folder / "rows.csv").write_text(rows.replace("blue", "pink"), encoding="utf-8")
    message = refused("finetune_classifier.py", "--resume", "done", "--epochs", "5")
    finish(folder, "finetune_classifier.py", "--resume", "done", "--epochs", "5", "--override", "--lr", "0.001")
    (folder / "rows.csv").write_text(rows, encoding="utf-8")
    assert "as when the run began; the text has changed since" in message
    out = finish(folder, "finetune_classifier.py", "--resume", "done", "--epochs", "6", "--override")
    assert re.search(r"resume     from step \d+ of \d+", out)
