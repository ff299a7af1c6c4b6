"""The doctor's report: complete on any machine, honest about what is missing, alive whatever fails."""

import os
import subprocess
import sys
from importlib import metadata

import pytest

from tinygpt import doctor

TITLES = ["tinygpt doctor", "versions", "machine", "BLAS and threads", "GPU", "backends", "optional libraries"]


def test_the_report_of_this_machine():
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("AUTOGRAD_", "OPENBLAS_"))} | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "tinygpt", "doctor"], capture_output=True, text=True, env=environment, encoding="utf-8")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    blocks = done.stdout.rstrip("\n").split("\n\n")
    assert [block.splitlines()[0] for block in blocks] == TITLES
    assert all(line.startswith("  ") for block in blocks for line in block.splitlines()[1:])
    assert "failed" not in "\n".join(line.split()[0] for block in blocks[1:] for line in block.splitlines()[1:])
    assert f"numpy          {metadata.version('numpy')}" in done.stdout
    assert "thread limits     OPENBLAS_NUM_THREADS=1" in done.stdout and "AUTOGRAD_BACKEND  not set" in done.stdout
    assert "numpy  works: numpy (AUTOGRAD_BACKEND=numpy): NumPy" in done.stdout


def rows_of(monkeypatch, **answers):
    """The report with some smoke tests answered beforehand: backend name -> (facts, error)."""
    monkeypatch.setattr(doctor, "_smoke_test", lambda name: answers[name])
    text, works = doctor.report()
    return text, works


FACTS = {"reason": "why", "first": 3.0, "last": 2.0, "seconds": 1.0}


def test_a_backend_that_fails_does_not_end_the_report(monkeypatch):
    for asked, expected in (("numpy", True), ("cupy", False), ("", True), ("tpu", False)):
        monkeypatch.setenv("AUTOGRAD_BACKEND", asked)
        text, works = rows_of(monkeypatch, numpy=(FACTS, ""), cupy=(None, "step 2, the CUDA driver, failed"))
        assert works is expected
        assert "numpy  works: why; loss 3.000 -> 2.000 in 5 steps" in text
        assert "cupy   does not run: step 2, the CUDA driver, failed" in text
        assert text.count("\n\n") == len(TITLES) - 1


def test_what_cupy_adds(monkeypatch):
    text, _ = rows_of(monkeypatch, numpy=(FACTS, ""), cupy=(FACTS | {"runtime": 13000, "memory": [3 << 30, 8 << 30]}, ""))
    assert "cupy   works: why, CUDA runtime 13.0, 3.0 GiB of 8.0 GiB free; loss 3.000 -> 2.000" in text


def test_a_section_that_fails_leaves_a_line(monkeypatch):
    def broken():
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "_machine", broken)
    text, works = rows_of(monkeypatch, numpy=(FACTS, ""), cupy=(FACTS, ""))
    assert works and "machine\n  failed  no such device" in text and "optional libraries" in text


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ImportError('step 1 failed; do that')", "step 1 failed; do that"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9; no message"),
        ("import sys; sys.exit(3)", "no message"),
    ],
)
def test_smoke_tests_that_fail(monkeypatch, code, message):
    monkeypatch.setattr(doctor, "_SMOKE_TEST", code)
    assert doctor._smoke_test("numpy") == (None, message)


def test_a_smoke_test_that_hangs(monkeypatch):
    monkeypatch.setattr(doctor, "_SMOKE_TEST", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_SMOKE_TEST_TIMEOUT_S", 0.2)
    facts, error = doctor._smoke_test("numpy")
    assert facts is None and error.startswith("no answer within")


def test_missing_libraries_get_one_command_each(monkeypatch):
    declared = [("tiktoken", None), ("matplotlib", "plot"), ("cupy-cuda12x", "cuda12"), ("cupy-cuda13x", "cuda13"), ("torch", "bench")]
    present = {"numpy": "2.4.0", "matplotlib": "3.11.0"}
    monkeypatch.setattr(doctor, "_requirements", lambda: declared)
    monkeypatch.setattr(doctor, "_version_of", present.get)
    monkeypatch.setattr(doctor, "_cuda_driver", lambda: "not installed")
    rows = doctor._optional()
    assert rows["plot"] == "matplotlib 3.11.0"
    assert rows["cuda12"] == 'cupy-cuda12x missing: pip install "tinygpt[cuda12]" (for drivers of CUDA 12)' and "cuda13" in rows
    assert all('missing: pip install "tinygpt[' + extra in row for extra, row in rows.items() if extra != "plot")
    monkeypatch.setattr(doctor, "_cuda_driver", lambda: "CUDA 13.1")
    rows = doctor._optional()
    assert rows["cuda13"] == 'cupy-cuda13x missing: pip install "tinygpt[cuda13]"' and "cuda12" not in rows
    present["cupy-cuda12x"] = "14.2.0"
    rows = doctor._optional()
    assert rows["cuda12"] == "cupy-cuda12x 14.2.0" and "cuda13" not in rows
    assert doctor._versions()["tiktoken"] == "missing: pip install tinygpt"


def test_run_from_a_copy_that_was_never_installed(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", absent)
    monkeypatch.setattr(doctor.metadata, "requires", absent)
    assert "pip install -e ." in doctor._versions()["tinygpt"] and "pip install -e ." in doctor._optional()["unknown"]


def test_the_machine_is_told_with_what_a_container_leaves_of_it(monkeypatch):
    files = {
        "/sys/fs/cgroup/cpu.max": "150000 100000\n",
        "/proc/self/cgroup": "0::/job\n",
        "/sys/fs/cgroup/job/memory.max": "4294967296\n",
        "/proc/meminfo": "MemTotal:  8388608 kB\nMemAvailable: 1048576 kB\n",
    }
    module = doctor._limits()
    monkeypatch.setattr(doctor, "_limits", lambda: module)
    for names in (vars(module), module.cpu_quota.__globals__):
        monkeypatch.setitem(names, "read", lambda path: files.get(path, ""))
    rows = doctor._machine()
    assert rows["cores"].endswith(" for this process, limited to the time of 1.5")
    assert rows["memory"] == "8.0 GiB, 1.0 GiB available" and rows["memory limit"] == "4.0 GiB (cgroup)"
    files.clear()
    rows = doctor._machine()
    assert rows["cores"].endswith(" for this process") and rows["memory limit"] == "none (cgroup)" and "available" not in rows["memory"]


def test_devices_as_nvidia_smi_lists_them(monkeypatch):
    def run(command, *, timeout_s):
        answer = "0, NVIDIA H100, 580.65, 9.0, 81559 MiB, 81000 MiB\n1, NVIDIA H100, 580.65, 9.0, 81559 MiB, 5 MiB\n"
        return subprocess.CompletedProcess(command, 0, answer, "")

    monkeypatch.setattr(doctor.shutil, "which", lambda name: name)
    monkeypatch.setattr(doctor, "_run", run)
    rows = doctor._gpu()
    assert rows["device 1"] == "NVIDIA H100, compute capability 9.0, 81559 MiB, 5 MiB free, driver 580.65"
    assert "devices" not in rows
    monkeypatch.setattr(
        doctor, "_run", lambda command, *, timeout_s: subprocess.CompletedProcess(command, 9, "", "no devices were found\n")
    )
    assert doctor._gpu()["devices"] == "no devices were found"
