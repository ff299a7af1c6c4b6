"""However a training ends, if there is time to save it saves, and says why it ended."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRETRAIN = ROOT / "examples" / "pretrain.py"
FLAGS = (
    "--corpus c.txt --n-layer 1 --n-embd 16 --n-head 2 --n-positions 16 --micro-batch 4 --eval-every 100000 --sample-tokens 4 "
    "--vocab-size 300 --processes 1 --log-every 20 --run r --steps"
).split()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "c.txt").write_text("".join(f"the quick brown fox {i} jumps over the lazy dog\n" for i in range(300)), encoding="utf-8")
    return tmp_path


def start(folder, steps, *, stdout=subprocess.PIPE, before="", **options):
    """Starts a training; `before` is Python that its process runs first. SIGHUP acts as in a terminal, also where the tests run under nohup."""
    reset = "hasattr(signal, 'SIGHUP') and signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    run = f"import os, signal, sys; {reset}os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", run.replace("os.execv", before + "os.execv"), str(PRETRAIN), *FLAGS, str(steps)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OPENBLAS_NUM_THREADS": "1", "AUTOGRAD_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, **options)


def until_it_trains(process):
    for line in process.stdout:
        if line.startswith("step "):
            return
    raise AssertionError(process.stderr.read())


def last_step(folder):
    return int((folder / "r" / "checkpoints" / "last").read_text(encoding="utf-8").strip().removeprefix("step-"))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_run_after_it_has_saved(folder, name):
    number = getattr(signal, name)
    with start(folder, 100_000) as process:
        until_it_trains(process)
        process.send_signal(number)
        if name == "SIGHUP":
            process.send_signal(number)  # the kernel's, and the shell's
        out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number and err == "", err
    assert f"stopped by {name}; " in out and "--resume r" in out and last_step(folder) > 0


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX signals")
def test_nohup_is_obeyed(folder):
    with start(folder, 200, before="signal.signal(signal.SIGHUP, signal.SIG_IGN); ") as process:
        until_it_trains(process)
        process.send_signal(signal.SIGHUP)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "stopped by" not in out and last_step(folder) == 200, err


def test_a_reader_that_leaves_does_not_end_the_run(folder):
    with start(folder, 200) as process:
        until_it_trains(process)
        process.stdout.close()
        err = process.stderr.read()
        process.wait(timeout=120)
    assert process.returncode == 0 and err == "warning: <stdout> is gone (Broken pipe): continuing without it\n"
    assert last_step(folder) == 200 and len((folder / "r" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()) >= 11
    assert "sample after training" in (folder / "r" / "samples.txt").read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX terminals")
def test_a_terminal_that_closes_is_outlived_until_the_run_has_saved(folder):
    """Standard output and error on a terminal whose other end goes away: SIGHUP, and EIO for what is written."""
    ours, theirs = os.openpty()
    adopt = "import fcntl, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); os.dup2(1, 2); "  # the controlling terminal, errors too
    with start(folder, 100_000, stdout=theirs, start_new_session=True, before=adopt) as process:
        os.close(theirs)
        seen = b""
        while b"tokens/s" not in seen.partition(b"sample before")[2]:
            seen += os.read(ours, 4096)
        os.close(ours)
        process.wait(timeout=120)
    assert process.returncode == 128 + signal.SIGHUP and last_step(folder) > 0
