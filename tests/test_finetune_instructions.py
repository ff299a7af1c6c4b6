"""The assistant's example, run as a reader would run it, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tinygpt.helpers import load, new_run
from tinygpt import GPT, GPTConfig
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.finetuning.instructions import encode_instructions, load_instructions, split_instructions
from tinygpt.finetuning.lora import load_lora
from tinygpt.runs.layout import is_pretraining_run, newest_run
from tinygpt.weights.pretrained import save_pretrained

ROOT = Path(__file__).parent.parent


def example(*flags, cwd, ok=True, typed=None):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "finetune_instructions.py"), *flags],
        cwd=cwd, env={**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8"}, capture_output=True, text=True, encoding="utf-8",
        timeout=300, input=typed,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pretrained run (a model of no use, but of the right form) and a file of instructions."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer = BPETokenizer.train([document.text for document in load_corpus("docs").validation], 400)
    run = new_run(folder / "runs" / "docs-001", "docs")
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=32, n_positions=96, vocab_size=tokenizer.n_vocab)
    save_pretrained(GPT(shape), run / "checkpoints" / "step-00000001", tokenizer)
    for pointer in ("last", "best"):
        (run / "checkpoints" / pointer).write_text("step-00000001\n", encoding="utf-8")
    rows = [{"instruction": f"Return {a} of {b}", "output": f"the {a}"} for a in ("axis", "array", "mean") for b in "abcdefghijklmnop"]
    (folder / "mine.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "long.json").write_text(json.dumps([*rows, {"instruction": "x", "output": "array " * 99}]), encoding="utf-8")
    (folder / "wide.json").write_text(json.dumps([{"instruction": f"array {i} " * 50, "output": "a"} for i in range(9)]), encoding="utf-8")
    return folder


def test_your_own_file_becomes_an_assistant_with_a_report(folder):
    out = example("--data", "mine.json", "--lr", "0.02", "--epochs", "24", "--patience", "20", "--warmup-steps", "2", cwd=folder)
    run = folder / "runs" / "mine-001"
    report = (run / "report.txt").read_text(encoding="utf-8")
    for part in (
        "48, 0 of them with an input", "fewer than 200 rows", "split by seed 0: 41 training, 2 validation, 5 test rows",
        "[prompt: masked]\n<|user|>\nReturn ", "[end: counts]\n<|endoftext|>", "on 5 test rows", "held-out prompts, before and after", "lower",
    ):  # fmt: skip
        assert part in report and part in out
    assert {p.name for p in run.iterdir()} >= {"answers.json", "checkpoints", "config.json", "metrics.jsonl", "report.txt"}
    records = json.loads((run / "answers.json").read_text(encoding="utf-8"))
    assert len(records) == 5 and all(record["before"] != record["model_response"] for record in records)
    assert sum(record["model_response"] == record["output"] for record in records) >= 4  # it has learned the rule
    # The next fine-tuning starts from the pretrained run again, not from this one; generation takes the newest of all.
    assert newest_run(folder / "runs") == run and newest_run(folder / "runs", accept=is_pretraining_run) == folder / "runs" / "docs-001"

    out = example("--ask", "runs/mine-001", cwd=folder, typed="Return mean of q\n" + "mean " * 200 + "\n\nnot read\n")
    assert out.startswith("Type an instruction") and "the mean" in out and "error: " in out

    (folder / "scores.json").write_text(json.dumps([{"id": 1, "score": 70}, {"id": 4, "score": 20}]), encoding="utf-8")
    out = example("--scores", "scores.json", "--run", "runs/mine-001", cwd=folder)
    assert "mean score 45.0 of 100 over 2 of 5 answers" in out and "worst" in out


def test_the_benchmark_over_seeds_measures_before_after_and_random_weights(folder):
    flags = "--data mine.json --base runs/docs-001 --seeds 2 --runs runs/seeds --output seeds.json".split()
    subprocess.run([sys.executable, str(ROOT / "benchmarks" / "instructions.py"), *flags], cwd=folder, check=True, timeout=300)
    report = json.loads((folder / "seeds.json").read_text(encoding="utf-8"))
    assert [row["seed"] for row in report["rows"]] == [0, 1]
    for row in report["rows"]:
        assert f"before  {row['before']:.3f}" in (folder / f"runs/seeds/seed-{row['seed']}/report.txt").read_text(encoding="utf-8")
        assert row["after"] < row["before"] and abs(row["random"] / row["ln_vocabulary"] - 1) < 0.02


def test_lora_leaves_an_adapter_and_a_merged_model(folder):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    flags = "--data mine.json --trainable lora --rank 2 --epochs 2 --lr 0.02 --run thin".split()
    out = example(*flags, cwd=folder)
    assert "training   lora: " in out and (folder / "thin" / "loss.png").is_file()
    merged, _ = load(folder / "thin")
    base, _ = load(folder / "runs" / "docs-001")
    adapter = load_lora(base, folder / "thin" / "adapter")
    named = json.loads((folder / "thin" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    assert (folder / named / "model.safetensors").is_file()  # PEFT opens what is named there
    adapter.merge()
    for (name, p), (other, q) in zip(merged.named_parameters(), base.named_parameters(), strict=True):
        assert name == other and abs(p.numpy() - q.numpy()).max() < 1e-6


def test_show_masked_prints_one_example_and_leaves_nothing(folder):
    before = sorted(folder.glob("runs/*"))
    rows = [{"instruction": f"Count to {n}", "output": "array " * n} for n in range(1, 16)]
    (folder / "counted.json").write_text(json.dumps(rows), encoding="utf-8")
    out = example("--data", "counted.json", "--show-masked", "--no-mask-prompt", cwd=folder)
    assert "[padding: masked]" in out  # the shortest of several rows is shown
    assert "[prompt: counts]" in out and "[answer: counts]" in out and "[end: counts]" in out
    assert sorted(folder.glob("runs/*")) == before


def test_long_answers_are_counted_before_they_are_cut(folder):
    out = example("--data", "long.json", "--truncate", "--show-masked", cwd=folder)
    assert "1 rows are longer than the 97 that fit" in out


def test_rows_are_cut_to_the_longest_training_row(folder):
    out = example("--data", "mine.json", "--epochs", "1", "--max-length", "longest-training", "--run", "cut", cwd=folder)
    tokenizer = load(folder / "runs" / "docs-001")[1]
    parts = split_instructions(load_instructions(folder / "mine.json"))
    lengths = {name: [len(s.ids) for s in encode_instructions(rows, tokenizer, 1000, style="phi3")] for name, rows in vars(parts).items()}
    longest = max(lengths["train"])
    n_cut = sum(n > longest for some in lengths.values() for n in some)
    assert f"{n_cut} answers cut at {longest} tokens" in out


@pytest.mark.parametrize("batch", [2, 6, 7])
def test_a_batch_is_what_was_asked_for(folder, batch):
    out = example("--data", "mine.json", "--batch", str(batch), "--epochs", "1", "--run", f"batch-{batch}", cwd=folder)
    assert f"updates of {batch} rows" in out


def test_the_default_data_needs_no_file_and_no_run(tmp_path):
    flags = "--pretrain-steps 2 --epochs 1 --test-answers 2 --max-new-tokens 4 --batch 64 --trainable last-block --run out".split()
    out = example(*flags, cwd=tmp_path)
    for part in ("no pretrained run yet", "test questions come from the validation documents", "What does numpy.", "nats per token"):
        assert part in out
    assert (tmp_path / "runs" / "docs-small-001" / "checkpoints" / "best").is_file() and (tmp_path / "out" / "report.txt").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data long.json", "long.json: record 49: "),
        ("--data wide.json --truncate", ": a prompt of "),
        ("--data nowhere.json", "data 'nowhere.json': no such file"),
        ("--data mine.json --output-column text", "mine.json: no column 'text', expected one of 'instruction', 'output'"),
        ("--data mine.json --trainable head", "trainable: 'head', expected one of last-block, all, lora"),
        ("--ask runs/docs-001", "expected"),
        ("--scores scores.json", "expected the answers that were judged; name their run with --run"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(folder, flags, message):
    before = sorted(folder.glob("runs/*"))
    err = example(*flags.split(), cwd=folder, ok=False)
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert sorted(folder.glob("runs/*")) == before


def test_a_flag_that_makes_no_sense_is_named(folder):
    assert "test_answers -5, max_new_tokens 64: expected >= 0 and >= 1" in example("--test-answers", "-5", cwd=folder, ok=False)
