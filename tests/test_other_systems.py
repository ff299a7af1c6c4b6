"""The default run, saving and resuming on Windows and macOS, as far as Linux can play them (tests/other_systems.py)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMALL = "--n-layer 1 --n-head 2 --n-embd 16 --n-positions 32 --vocab-size 300 --micro-batch 4 --eval-batches 2 --sample-tokens 10".split()

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems are themselves")


def play(system, script, *flags, cwd):
    command = [
        sys.executable,
        str(ROOT / "tests" / "other_systems.py"),
        system,
        script if script == "tinygpt" else str(ROOT / script),
        *flags,
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0 and not any(word in done.stderr for word in ("Traceback", "warning", "error")), done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("system", ["windows", "macos"])
def test_a_run_is_trained_saved_resumed_checked_and_read(tmp_path, system):
    flags = [*SMALL, "--steps", "6", "--eval-every", "2", "--keep", "1", "--log-every", "1"]
    play(system, "examples/pretrain.py", *flags, "--stop-at", "3", "--processes", "1", cwd=tmp_path)
    out = play(system, "examples/pretrain.py", "--resume", "runs/docs-001", cwd=tmp_path)
    assert "step     6/6" in out
    checkpoints = tmp_path / "runs" / "docs-001" / "checkpoints"
    names = {p.name for p in checkpoints.iterdir()}
    assert (checkpoints / "last").read_text(encoding="utf-8") == "step-00000006\n" and "step-00000003" not in names and len(names) <= 4
    assert "OK" in play(system, "tinygpt", "verify", "runs/docs-001", cwd=tmp_path)
    assert play(system, "examples/generate.py", "--prompt", "numpy", "--max-new-tokens", "5", cwd=tmp_path).startswith("numpy")
    whole = tmp_path / "whole"
    whole.mkdir()
    play(system, "examples/pretrain.py", *flags, "--processes", "2", cwd=whole)


def test_the_doctor_reports(tmp_path):
    assert "numpy  works" in play("windows", "tinygpt", "doctor", cwd=tmp_path)
    assert "\n  failed" not in play("macos", "tinygpt", "doctor", cwd=tmp_path)


def test_the_stage_is_set(tmp_path):
    """The systems that are played lack what they should lack, so the tests above can fail."""
    (tmp_path / "probe.py").write_text(
        "import os\ntry:\n    import fcntl\nexcept ImportError:\n    print('no fcntl')\n"
        "print(os.name, hasattr(os, 'fork'), os.path.exists('probe.py'))\n"
        "file = open('held', 'w', encoding='utf-8')\n"
        "for change in (lambda: os.replace('held', 'x'), lambda: os.rename('.', '../y'), lambda: open('/proc/self/statm', encoding='utf-8')):\n"
        "    try:\n        change()\n    except OSError as error:\n        print(type(error).__name__)\n",
        encoding="utf-8",
    )
    out = play("windows", tmp_path / "probe.py", cwd=tmp_path)
    assert out.split() == "no fcntl nt False True PermissionError PermissionError FileNotFoundError".split()
