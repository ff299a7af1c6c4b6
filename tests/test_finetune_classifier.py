"""The classifier example and the spam benchmark, run as a reader would run them, on tiny models."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tinygpt.helpers import load, new_run
from tinygpt import GPT, GPTConfig
from tinygpt.data import download
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.finetuning.labeled import balance, load_labeled, split
from tinygpt.finetuning.lora import load_lora

ROOT = Path(__file__).parent.parent
SMS = ROOT.parent / "shared" / "data"


def script(path, *flags, cwd, ok=True, typed=None):
    environment = {**os.environ, "COLUMNS": "200", "PYTHONIOENCODING": "utf-8", "TINYGPT_DATA": str(SMS)}
    done = subprocess.run(
        [sys.executable, str(ROOT / path), *flags],
        cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300, input=typed,
    )  # fmt: skip
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr


def example(*flags, **options):
    return script("examples/finetune_classifier.py", *flags, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a pretrained run (a model of no use, but of the right form) and labeled files."""
    folder = tmp_path_factory.mktemp("work")
    tokenizer = BPETokenizer.train([document.text for document in load_corpus("docs").validation], 400)
    run = new_run(folder / "runs" / "docs-001", "docs")
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=tokenizer.n_vocab)
    GPT(shape).save_pretrained(run / "checkpoints" / "step-00000001", tokenizer)
    for pointer in ("last", "best"):
        (run / "checkpoints" / pointer).write_text("step-00000001\n", encoding="utf-8")
    rows = [("fruit", f"a red apple and {n} pears") if n % 3 else ("tool", f"the hammer hit {n} nails") for n in range(60)]
    (folder / "mine.csv").write_text("what,kind\n" + "".join(f"{text},{label}\n" for label, text in rows), encoding="utf-8")
    (folder / "one.csv").write_text("text,label\n" + "a,b\nc,b\n" * 5, encoding="utf-8")
    (folder / "long.csv").write_text(f"text,label\n{'word ' * 99},a\n" + "b,a\nc,b\nd,a\ne,b\nf,b\n", encoding="utf-8")
    return folder


def test_your_own_file_becomes_a_classifier_with_a_report(folder):
    out = example("--data", "mine.csv", "--lr", "0.01", "--stratified", "--epochs", "8", "--warmup-steps", "2", cwd=folder)
    assert "texts guessed to be in column 'what', labels in 'kind'" in out and "docs-001" in out
    run = folder / "runs" / "mine-001"
    report = (run / "report.txt").read_text(encoding="utf-8")
    for part in (
        "labels      fruit 40 (67%), tool 20 (33%)", "fewer than 50 rows of fruit, tool", "42 training, 6 validation, 12 test rows",
        "Is the following text 'fruit'? Answer with 'yes' or 'no': 'a red apple and", "base model, zero-shot prompt", "base model, 2 solved examples", "logistic regression, TF-IDF", "precision", "true / predicted",
        "worst mistakes on test texts\nnone", "before (prompting) and after", "best validation loss",
    ):  # fmt: skip
        assert part in report and part in out
    # The width of the column depends on whether scikit-learn is there for its rows.
    assert re.search(r"most frequent label +0\.667  0\.500\n", report) and re.search(r"this classifier +1\.000  1\.000\n", report)
    assert {p.name for p in run.iterdir()} >= {"checkpoints", "config.json", "metrics.jsonl", "report.txt"}
    assert json.loads((run / "config.json").read_text(encoding="utf-8"))["labels"] == ["fruit", "tool"]

    long = "hammer " * 80
    out = example("--ask", "runs/mine-001", cwd=folder, typed=f"the hammer hit 7 nails\n{long}\n\nnot read\n")
    assert out.count("(cut: only the first 64 tokens are read)") == 1
    assert out.startswith("labels: fruit, tool.") and out.count("%") == 4 and "tool" in out.split("%")[1]


def test_the_default_data_needs_no_file(folder):
    flags = "--trainable last-block --epochs 1 --batch 64 --truncate --class-weights --balance under --pooling mean --prompt-texts 9"
    out = example(*flags.split(), "--run", "out", cwd=folder)
    for part in ("test rows come from the validation documents", "Examples", "See Also", "training   last-block:", "this classifier"):
        assert part in out
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    assert {"confusion.png", "loss.png"} <= {p.name for p in (folder / "out").iterdir()}


def test_without_a_run_a_small_model_is_pretrained_first(folder, tmp_path):
    flags = "--pretrain-steps 2 --epochs 1 --trainable lora --rank 2 --prompt-texts 3 --data".split()
    out = example(*flags, str(folder / "mine.csv"), cwd=tmp_path)
    assert "no pretrained run yet: pretraining a small model first" in out and "step     2/2" in out
    assert (tmp_path / "runs" / "docs-small-001" / "checkpoints" / "best").is_file()
    assert (tmp_path / "runs" / "mine-001" / "report.txt").is_file()
    # The checkpoint is the merged model, the adapter lies beside it: both say the same.
    merged = GPTClassifier.from_pretrained(tmp_path / "runs" / "mine-001")
    gpt, tokenizer = load(tmp_path / "runs" / "docs-small-001")
    apart = GPTClassifier(gpt, tokenizer, merged.labels)
    load_lora(apart, tmp_path / "runs" / "mine-001" / "adapter")
    texts = ["the hammer hit 3 nails", "a red apple"]
    np.testing.assert_allclose(apart.predict(texts).probabilities, merged.predict(texts).probabilities, atol=1e-5)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
def test_ctrl_c_ends_it_without_a_report(folder):
    flags = "--data mine.csv --epochs 100000 --patience 0 --prompt-texts 2 --run stopped".split()
    command = [sys.executable, str(ROOT / "examples" / "finetune_classifier.py"), *flags]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "finished, saving" in out and out.endswith(
        "no report yet; resume with: python examples/finetune_classifier.py --resume stopped\n"
    )
    assert not (folder / "stopped" / "report.txt").exists()
    GPTClassifier.from_pretrained(folder / "stopped")


def test_labels_and_texts_of_signs_alone(folder):
    """No word for the word baseline, no formula for the picture, and no space to shorten a text at."""
    rows = [(sign * (40 + n), label) for n in range(12) for sign, label in (("☀", "$1_$2"), ("☂", "a^b"))]
    (folder / "signs.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    out = example(*"--data signs.csv --truncate --stratified --epochs 1 --balance over --run signs".split(), cwd=folder)
    assert "24 (100%)" not in out and "$1_$2 12 (50%), a^b 12 (50%)" in out
    assert (folder / "signs" / "report.txt").is_file()
    pytest.importorskip("sklearn", reason="needs the extra classify")
    assert "logistic regression, TF-IDF, word" in out and "not measured: empty vocabulary" in out
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    assert (folder / "signs" / "confusion.png").is_file()


def test_the_data_table_counts_rows_not_the_copies_that_balance_them(folder):
    out = example(*"--data mine.csv --balance over --epochs 1 --run balanced --max-length 3".split(), cwd=folder)
    tokenizer = load(folder / "runs" / "docs-001")[1]
    parts = split(load_labeled(folder / "mine.csv"))
    rows = balance(parts.train, "over") + parts.validation + parts.test
    n_cut = sum(len(tokenizer.encode(row.text)) > 3 for row in rows)
    assert n_cut and f"{n_cut} texts cut at 3 tokens" in out
    assert "rows        60" in out and "duplicates  0 rows" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data one.csv", "labels: only ['b'] in 10 rows, expected at least 2 different"),
        ("--data long.csv", "long.csv: line 2: 298 tokens, expected at most 64"),
        ("--data mine.csv --label-column nothing", "mine.csv: no column 'nothing', expected one of 'what', 'kind'"),
        ("--data nowhere.csv", "data 'nowhere.csv': no such file"),
        ("--data mine.csv --base nowhere", "nowhere: neither a checkpoint nor a run with one"),
        ("--data mine.csv --alpha -1", "expected rank >= 1, alpha > 0"),
        ("--ask runs/docs-001", "a language model, expected a classifier; train one: python examples/finetune_classifier.py --base"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing(folder, flags, message):
    before = sorted(folder.glob("runs/*"))
    err = example(*flags.split(), cwd=folder, ok=False)
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert sorted(folder.glob("runs/*")) == before


def test_a_flag_that_makes_no_sense_is_named(folder):
    assert "batch: 0, expected at least 1" in example("--data", "mine.csv", "--batch", "0", cwd=folder, ok=False)


@pytest.mark.skipif(not (SMS / download.DOWNLOADS["sms-spam"].file_name).is_file(), reason="needs sms_spam.tsv")
def test_the_spam_benchmark(tmp_path, monkeypatch):
    pytest.importorskip("sklearn", reason="needs the extra classify")
    out = script("benchmarks/sms_spam.py", "--quick", "--out", "results.jsonl", cwd=tmp_path)
    assert "minus tfidf_word" in out and len((tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()) == 2

    monkeypatch.setenv("TINYGPT_DATA", str(SMS))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from sms_spam import clean_split, interval, published_split

    data = load_labeled("sms-spam")
    parts = published_split(data)
    assert [len(parts.train), len(parts.validation), len(parts.test)] == [1045, 149, 300]
    assert sum(row.text in {r.text for r in parts.train} for row in parts.test) == 36
    parts = clean_split(data, seed=1)
    assert [sum(row.label == label for side in vars(parts).values() for row in side) for label in ("ham", "spam")] == [642, 642]
    assert not {row.group for row in parts.train + parts.validation} & {row.group for row in parts.test}
    mean, half = interval(np.array([0.01, 0.03]), 0.0)  # two values: t is 12.7, the deviation of the mean 0.01
    assert mean == pytest.approx(0.02) and half == pytest.approx(0.127, rel=1e-2)


def test_the_spam_benchmark_compares_what_its_file_holds_of_the_same_splits(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from sms_spam import SpamConfig, compare, settings_of

    file = tmp_path / "two.jsonl"
    full, lora = SpamConfig(out=str(file)), SpamConfig(trainable="lora", out=str(file))
    accuracies = [(full, 0, 0.9), (full, 1, 0.8), (full, 2, 0.1), (lora, 0, 0.95), (lora, 1, 0.79)]
    file.write_text(
        "".join(json.dumps({**settings_of(c), "seed": seed, "accuracy": a}) + "\n" for c, seed, a in accuracies), encoding="utf-8"
    )
    compare(lora, [{"seed": 0, "accuracy": 0.95}, {"seed": 1, "accuracy": 0.79}])
    assert capsys.readouterr().out == (
        "all, rate 0.0005, 3 epochs, batch 16: 85.00% +- 7.07% on 2 of these splits; these minus those +2.00 +- 4.24 points\n"
    )
