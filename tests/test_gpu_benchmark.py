"""benchmarks/gpu.py as far as it goes without a GPU: on the fake device, its kernels on the host, its sections under the clock."""

import argparse
import dataclasses
import importlib.util
import json
import signal
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

from tests import cuda_host

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("gpu_benchmark", ROOT / "benchmarks" / "gpu.py")
assert spec is not None and spec.loader is not None
gpu = importlib.util.module_from_spec(spec)
sys.modules["gpu_benchmark"] = gpu
spec.loader.exec_module(gpu)

FAKE_DEVICE = """
import os
import time
import cupy
from tests.cuda_host import RawModule
from tests.cublaslt_host import Library

class Event:
    def record(self):
        self.time = time.perf_counter()
    def synchronize(self):
        pass

cupy.RawModule = RawModule
cupy.cuda.Event = Event
cupy.cuda.get_elapsed_time = lambda begin, end: 1000 * (end.time - begin.time)
if os.environ.get("AUTOGRAD_BACKEND") == "cupy":
    from autograd.kernels.cuda import cublaslt
    library = Library()
    cublaslt.library = lambda: library
"""


@pytest.fixture
def fake_device(tmp_path, monkeypatch):
    """Child processes find a fake cupy whose kernels run on the host."""
    if cuda_host.COMPILER is None:
        pytest.skip("no g++: nothing to run CUDA kernels with on the host")
    site, cache = tmp_path / "site", tmp_path / "kernels"
    site.mkdir()
    cache.mkdir()
    monkeypatch.setenv("CUDA_HOST_CACHE", str(cache))
    (site / "sitecustomize.py").write_text(FAKE_DEVICE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", ":".join(map(str, (site, ROOT / "tests" / "fake_cupy", ROOT))))
    return tmp_path


def written(out):
    (file,) = out.glob("gpu-*.json")
    return json.loads(file.read_text(encoding="utf-8")), file.with_suffix(".md").read_text(encoding="utf-8")


def test_on_the_fake_device_every_kernel_is_right(fake_device, monkeypatch, capsys):
    out = fake_device / "results"
    # The host compiles and runs kernels more slowly than a GPU.
    monkeypatch.setattr(gpu, "SECTIONS", {name: dataclasses.replace(s, budget_s=5 * s.budget_s) for name, s in gpu.SECTIONS.items()})
    monkeypatch.setattr(gpu, "DEADLINE_S", 5 * gpu.DEADLINE_S)
    status = gpu.main(["--quick", "--out", str(out), "--sections", "check", "agreement", "speed", "train", "generate"])
    result, page = written(out)
    sections = result["sections"]
    assert status == 0 and not any(s["problem"] for s in sections.values()), capsys.readouterr().out + page
    checked = {row["kernel"] for row in sections["check"]["rows"] if "kernel" in row}
    assert checked == {"LinearCuBLASLt"} | {
        f"{op}CUDA"
        for op in (
            "Add Cast Linear GELU GatedProduct Softmax LayerNorm RMSNorm Dropout Embedding LinearCrossEntropy Attention AdamWUpdate SquaredNorm MuonUpdate".split()
        )
    }
    assert all(row["ok"] and row["same_bits_again"] for row in sections["check"]["rows"] if "kernel" in row)
    first_pass = takewhile(lambda row: row["shape"] in (list(gpu.FIRST_DRAW), [1001], [5, 33]), sections["check"]["rows"][1:])
    assert {row["kernel"] for row in first_pass} == checked, "each kernel once before any other draw"
    assert not [row for s in sections.values() for row in s["rows"] if "error" in row]
    names = {row["name"] for row in sections["speed"]["rows"]}
    assert {"copy", "GELUCUDA backward", "EmbeddingCUDA backward", "cross_entropy_in_place", "AdamWUpdateCUDA", "MuonUpdateCUDA"} <= names
    assert all(row["tokens_per_s"] > 0 and np.isfinite(row["loss"]) for row in sections["train"]["rows"])
    agreement = sections["agreement"]["rows"]
    assert [row["name"] for row in agreement] == 3 * list(gpu.AGREEING) and all(row["ok"] and len(row["numbers"]) >= 2 for row in agreement)
    printed = capsys.readouterr().out.splitlines()
    n_checked = len(sections["check"]["rows"]) - 1  # the first has the seed
    assert printed[1].startswith(f"check: {n_checked} of {n_checked} right (") and printed[2].startswith("agreement: 18 of 18 right ("), (
        printed
    )
    assert page.startswith("# GPU: ") and "fake device" in result["device"] and "check: " in page and result["date"] in page
    assert list(out.glob(".*")) == [], "no scratch is left"


def test_an_interruption_keeps_the_sections_that_have_ended(fake_device):
    """By the signal with which `timeout` and job schedulers stop a program."""
    out, command = fake_device / "results", [sys.executable, ROOT / "benchmarks" / "gpu.py", "--quick", "--sections", "generate", "speed"]
    with subprocess.Popen([*command, "--out", out], stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        line = ""
        while not line.startswith("generate: "):
            line = process.stdout.readline()
            assert line
        kept, _ = written(out)
        while not (out / ".speed.rows").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        rest = process.stdout.read()
    result, page = written(out)
    assert line.startswith("generate: 4 results (") and kept["sections"].keys() == {"generate"} and len(kept["verdicts"]) == 0
    assert process.returncode == 1 and result["sections"]["generate"] == kept["sections"]["generate"]
    assert result["sections"]["speed"]["problem"] == "interrupted" and "**interrupted**" in page and "speed: " in rest
    assert list(out.glob(".*")) == [], "no scratch is left"


def test_a_section_that_brings_all_down_leaves_the_report_of_those_before(tmp_path, monkeypatch, capsys):
    def run_section(name, *_):
        if name == "speed":
            raise OSError("no more processes")
        return {"rows": [{"kernel": "A", "ok": True}, {"kernel": "B", "shape": [5, 33], "ok": False}], "problem": None, "seconds": 1.0}

    monkeypatch.setattr(gpu, "run_section", run_section)
    monkeypatch.setattr(gpu, "probe", lambda: ("cupy on Some Card", ""))
    with pytest.raises(OSError, match="no more processes"):
        gpu.main(["--out", str(tmp_path), "--sections", "check", "speed"])
    result, page = written(tmp_path)
    assert result["sections"].keys() == {"check"} and page.startswith("# GPU: cupy on Some Card")
    expected = "check: 1 of 2 right; the first wrong: kernel B, shape [5, 33]"
    assert result["verdicts"] == [expected] and f"- {expected}" in page and f"{expected} (1 s)" in capsys.readouterr().out


def test_more_draws_than_there_is_time_for_are_counted(monkeypatch):
    def slow(report):
        report(kernel="A", ok=True)
        time.sleep(0.3)

    def broken(report):
        raise RuntimeError("illegal address")

    monkeypatch.setattr(gpu, "draws", lambda *_: [("one", broken), ("two", slow), ("three", slow), ("four", slow)])
    rows = []
    gpu.check(lambda **row: rows.append(row), options(None, budget_s=gpu.CLOSING_S + 0.2))
    assert rows[1:] == [{"draw": "one", "ok": False, "error": "illegal address"}, {"kernel": "A", "ok": True}, {"draws_left_out": 2}]
    line = gpu.verdict("check", {"rows": rows, "problem": None})
    assert line == "check: 1 of 2 right; the first wrong: draw one, error illegal address; 2 draws left out, as time was short"


def test_agreement_is_refused_to_other_numbers():
    right = [2.0, 1.0]
    for dtype, near, far in (("float32", 5e-4, 2e-3), ("bfloat16", 5e-3, 2e-2)):
        assert gpu.agrees([2.0, 1.0 + near], right, dtype)["ok"] and not gpu.agrees([2.0, 1.0 + far], right, dtype)["ok"]
    assert not gpu.agrees([2.0, float("nan")], right, "float32")["ok"]


def test_without_a_gpu_it_is_one_clear_error(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "probe", lambda: (None, "step 1, `import cupy`, failed"))
    assert gpu.main(["--out", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: gpu.py: no GPU to measure (step 1") and error.count("\n") == 1 and "tinygpt doctor" in error
    assert not (tmp_path / "none").exists()


def test_the_probe_says_why(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    device, why = gpu.probe()
    assert (device is None and "AUTOGRAD_BACKEND=cupy: step " in why) or "fake device" in str(device)


def test_the_plan_needs_no_gpu_and_fits_nine_minutes(capsys):
    assert gpu.main(["--dry-run"]) == 0
    plan = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in plan[:-1]] == list(gpu.SECTIONS)
    assert gpu.DEADLINE_S <= 9 * 60 - 15  # what is left pays for start and report
    assert sum(section.budget_s for section in gpu.SECTIONS.values()) <= gpu.DEADLINE_S
    assert all((ROOT / name).is_file() for name in gpu.TESTS)
    assert next(iter(gpu.SECTIONS)) == "check" and gpu.SECTIONS["check"].budget_s < 60


def options(out, **changes):
    return argparse.Namespace(**{"out": out, "quick": True, "budget_s": 60.0} | changes)


def test_a_section_that_fails_is_reported(fake_device):
    pytest.importorskip("torch")
    section = gpu.run_section("torch-eager", options(fake_device), 60)
    assert section["problem"].startswith("exit code 1: ") and gpu.failed({"torch-eager": section})


def test_a_section_that_takes_too_long_is_stopped_and_keeps_its_rows(tmp_path, monkeypatch):
    rows = tmp_path / ".check.rows"
    code = f"import pathlib, time; pathlib.Path({str(rows)!r}).write_text('{{\"ok\": true}}\\n'); time.sleep(60)"
    run = gpu.run_within
    monkeypatch.setattr(
        gpu, "run_within", lambda command, timeout_s, environment: run([sys.executable, "-c", code], timeout_s, environment)
    )
    section = gpu.run_section("check", options(tmp_path), 3.0)
    assert section["rows"] == [{"ok": True}] and section["problem"] == "stopped after 3 s, its time budget" and not rows.exists()


def test_stopping_stops_what_was_started(tmp_path):
    beat = tmp_path / "beat"
    inner = f"import time\nwhile True: open({str(beat)!r}, 'a').write('x'); time.sleep(0.05)"
    code, _, _ = gpu.run_within(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"], 2.0, {}
    )
    assert code is None and beat.exists()
    time.sleep(0.3)
    size = beat.stat().st_size
    time.sleep(0.5)
    assert beat.stat().st_size == size


def test_comparison_tells_right_from_wrong():
    right = [np.linspace(-1, 1, 9), np.ones(3)]
    same = [a.astype(np.float32) for a in right]
    good = gpu.compared(same, right, same, np.asarray, "float32")
    assert good["ok"] and good["same_bits_again"] and good["error_relative"] < 1e-6
    off = [same[0] + np.float32(1e-4), same[1]]
    unwritten = [same[0], np.array([1, np.nan, 1], np.float32)]
    for found, again in ((off, off), (unwritten, unwritten), (same, off), ([same[0], same[1][:2]], [same[0], same[1][:2]])):
        assert not gpu.compared(found, right, again, np.asarray, "float32")["ok"]


def test_verdicts_and_page_hold_only_what_was_measured():
    sections = {
        "check": {"rows": [{"kernel": "A", "ok": True}, {"kernel": "B", "ok": False, "error": "x | y"}], "problem": None, "seconds": 1.0},
        "speed": {"rows": [{"name": "A", "dtype": "float32", "share_of_copy": 0.5}], "problem": None, "seconds": 1.0},
        "train": {
            "rows": [{"kernels": "fast", "dtype": "bfloat16", "batch": 16, "tokens_per_s": 300.0}],
            "problem": None,
            "seconds": 1.0,
        },
        "torch-eager": {"rows": [{"batch": 16, "tokens_per_s": 200.0}, {"batch": 32, "error": "memory"}], "problem": None, "seconds": 1.0},
        "torch-compile": {"rows": [], "problem": "stopped after 9 s, its time budget", "seconds": 9.0},
    }
    lines = gpu.verdicts(sections)
    assert lines == [
        "check: 1 of 2 right; the first wrong: kernel B, error x \\| y",
        "torch-compile: 0 results; stopped after 9 s, its time budget",
        "A (float32): 50% of the copy bandwidth, 80% wanted",
        "B = 16, bfloat16: 1.50 x torch-eager",
    ]
    assert gpu.failed(sections)
    result = {"device": "d", "date": "2026-01-02", "seconds": 3.0, "versions": {"python": "3"}, "verdicts": lines, "sections": sections}
    page = gpu.markdown(result)
    assert "| B | **no** | x \\| y |" in page and "**stopped after 9 s, its time budget**" in page and "- check: 1 of 2 right; " in page


def test_pytorch_trains_the_same_model():
    pytest.importorskip("torch")
    from tinygpt import GPT

    rows = []
    gpu.train_torch(lambda **row: rows.append(row), options(None), compiled=False, device="cpu")
    assert "error" not in rows[-1] and rows[-1]["tokens_per_s"] > 0
    config = gpu.gpt2(quick=True)
    ours = GPT(config).n_parameters()
    assert ours == sum(p.numel() for p in gpu.torch_gpt(config).parameters())
    assert abs(rows[-1]["loss"] - np.log(config.vocab_size)) < 0.5
