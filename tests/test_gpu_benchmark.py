"""benchmarks/gpu.py as far as it goes without a GPU: on the fake device, its kernels on the host, its sections under the clock."""

import argparse
import importlib.util
import json
import sys
import time
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


def test_on_the_fake_device_every_kernel_is_right(fake_device, capsys):
    out = fake_device / "results"
    status = gpu.main(["--quick", "--out", str(out), "--sections", "check", "speed", "agreement", "train", "generate"])
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
    assert not [row for s in sections.values() for row in s["rows"] if "error" in row]
    names = {row["name"] for row in sections["speed"]["rows"]}
    assert {"copy", "GELUCUDA backward", "EmbeddingCUDA backward", "cross_entropy_in_place", "AdamWUpdateCUDA", "MuonUpdateCUDA"} <= names
    assert all(row["tokens_per_s"] > 0 and np.isfinite(row["loss"]) for row in sections["train"]["rows"])
    assert [row["ok"] for row in sections["agreement"]["rows"][:3]] == [True] * 3
    assert page.startswith("# GPU: ") and "fake device" in result["device"] and "check: " in page and result["date"] in page
    assert list(out.glob(".*")) == [], "no scratch is left"


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
        "check: 1 of 2 right",
        "torch-compile: stopped after 9 s, its time budget",
        "A (float32): 50% of the copy bandwidth, 80% wanted",
        "B = 16, bfloat16: 1.50 x torch-eager",
    ]
    assert gpu.failed(sections)
    result = {"device": "d", "date": "2026-01-02", "seconds": 3.0, "versions": {"python": "3"}, "verdicts": lines, "sections": sections}
    page = gpu.markdown(result)
    assert "| B | **no** | x \\| y |" in page and "**stopped after 9 s, its time budget**" in page and "- check: 1 of 2 right" in page


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
