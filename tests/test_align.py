"""The two scripts of alignment, run as a reader would run them, on a tiny model."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tinygpt.helpers import load, new_run
from tinygpt import GPT, GPTConfig
from tinygpt.data.jinja_templates import saved_template
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.weights.pretrained import save_pretrained

ROOT = Path(__file__).parent.parent
WORDS = ["red", "green", "blue", "small", "large"]


def script(name, *flags, cwd, ok=True):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *flags],
        cwd=cwd, env={**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}, capture_output=True, text=True, encoding="utf-8",
        timeout=300,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pretrained run (a model of no use, but of the right form), pairs and problems."""
    folder = tmp_path_factory.mktemp("align")
    tokenizer = BPETokenizer.train(["User:\nAssistant:\nSay " + " ".join(WORDS)] * 3, 290)
    run = new_run(folder / "base", "docs")
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=48, vocab_size=tokenizer.n_vocab, initializer_range=0.4)
    save_pretrained(GPT(shape), run / "checkpoints" / "step-00000001", tokenizer)
    for pointer in ("last", "best"):
        (run / "checkpoints" / pointer).write_text("step-00000001\n", encoding="utf-8")
    pairs = [{"prompt": f"Say {a} {b}", "chosen": a, "rejected": b} for a in WORDS for b in WORDS if a != b]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), encoding="utf-8")
    (folder / "tie.jsonl").write_text(json.dumps(pairs[0]) + "\n" + json.dumps(pairs[1] | {"rejected": "red"}) + "\n", encoding="utf-8")
    rows = [{"question": f"Say {a} {b}", "answer": a} for a in WORDS for b in WORDS]
    (folder / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def test_preferences_leave_a_report_an_adapter_and_a_model_to_talk_to(folder):
    flags = (
        "--data pairs.jsonl --base base --run dpo --warm-steps 4 --batch 4 --epochs 2 --fractions 0.6 0.2 0.2 --max-new-tokens 4".split()
    )
    out = script("align_dpo.py", *flags, cwd=folder)
    report, results = ((folder / "dpo" / name).read_text(encoding="utf-8") for name in ("report.txt", "results.json"))
    for part in (
        "split by seed 0: 12 training, 4 validation, 4 test pairs",
        "ranked right",
        "did not improve",
        "answered before and after",
    ):
        assert part in report and part in out
    assert "first loss 0.693 nats; a uniform guess among 2" in out and "warm start     4/4" in out
    found = json.loads(results)
    assert set(found["before"]) == set(found["after"]) and 0 <= found["after"]["ranked_right"] <= 1 and len(found["answers"]) == 4
    assert (folder / "dpo" / "adapter" / "adapter_model.safetensors").is_file()
    _, tokenizer = load(folder / "dpo")
    assert saved_template(tokenizer).name == "plain"


def test_rewards_leave_a_report_and_curves_and_a_finished_run_is_resumed_for_longer(folder):
    flags = (
        "--data rows.json --base base --run grpo --warm-steps 5 --batch 3 --group 3 --epochs 1 --fractions 0.6 0.2 0.2 --max-new-tokens 3"
    )
    out = script("align_grpo.py", *flags.split(), cwd=folder)
    report = (folder / "grpo" / "report.txt").read_text(encoding="utf-8")
    for part in ("split by seed 0: 15 training, 5 validation, 5 test problems", "best of 3 draws, by the checker", "45 answers were drawn"):
        assert part in report and part in out
    assert "reward 0." in out and "KL 0.0000 nats per token" in out
    results = json.loads((folder / "grpo" / "results.json").read_text(encoding="utf-8"))
    assert results["before"]["best_of_n"] >= results["before"]["sampled"]
    out = script("align_grpo.py", "--resume", "grpo", "--epochs", "2", cwd=folder)
    assert "resume     from step 5 of 10" in out and "90 answers were drawn" in out


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("align_dpo.py", "--data tie.jsonl", "tie.jsonl: line 2: chosen and rejected are equal"),
        ("align_grpo.py", "--clip 2", "GRPO: clip 2.0, beta 0.02, expected 0 < clip < 1"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(folder, name, flags, message):
    before = sorted(folder.glob("*"))
    err = script(name, *flags.split(), cwd=folder, ok=False)
    text = " ".join(err.replace("│", " ").split())  # a setting is refused in the box of the flags
    assert message in text and ((err.startswith("error: ") and err.count("\n") == 1) or "Value error" in text)
    assert sorted(folder.glob("*")) == before


def test_the_pages_have_the_results_that_are_committed():
    spec = importlib.util.spec_from_file_location("alignment", ROOT / "benchmarks" / "alignment.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    for what, page in (("dpo", "preferences.md"), ("grpo", "rewards.md")):
        if not (file := ROOT / "benchmarks" / "results" / f"{what}.json").is_file():
            continue
        report = json.loads(file.read_text(encoding="utf-8"))
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        rows = benchmark.rows_of_table(report)
        assert len(rows) > 5 and all(row in text for row in rows)
