"""What the tests of ranks share: programs started by mpiexec, and a small corpus to train on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from autograd import backend

ROOT = Path(__file__).parent.parent.parent
MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
needs_mpi = pytest.mark.skipif(not (MPIEXEC and find_spec("mpi4py")), reason="no MPI: pip install -e .[mpi]")
ranks_of_cpus = pytest.mark.skipif(
    backend.name != "numpy", reason="ranks of CPUs, whose arrays MPI and threads exchange; of GPUs: test_nccl.py"
)
SMALL = ["--corpus", "text", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--n-positions", "16", "--vocab-size", "300",
         "--micro-batch", "4", "--sample-tokens", "4", "--eval-every", "5"]  # fmt: skip
"""Flags of examples/pretrain.py for a training of seconds on `corpus`."""
TWO_MACHINES = ("-launcher", "fork", "-hosts", "127.0.0.1:1,127.0.0.2:1")
"""For MPICH, two ranks are on two machines, which share no memory."""


def started(n, *command, module="mpi4py", launcher=(), **environment):
    """The command that runs a Python program as n ranks, and its environment."""
    flags = ["-m", module] if module else []
    environment.setdefault("UCX_LOG_LEVEL", "error")  # over TCP, MPICH warns at its end, on stdout, of messages of its own
    one_thread = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "AUTOGRAD_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return [MPIEXEC, *launcher, "-n", str(n), sys.executable, *flags, *map(str, command)], {**os.environ, **one_thread, **environment}


def mpiexec(n, *command, module="mpi4py", timeout=60, cwd=None, launcher=(), **environment):
    """Runs a Python program as n ranks, and sees that none is left."""
    job = f"{os.getpid()}-{time.monotonic_ns()}"
    full, variables = started(n, *command, module=module, launcher=launcher, TINYGPT_TEST_JOB=job, **environment)
    done = subprocess.run(full, env=variables, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=timeout)
    assert none_left(job), done.stderr
    return done


def none_left(job, within_s=10):
    """Whether all ranks of a job have ended, or do so in time. Their witnesses may take longer."""
    until = time.monotonic() + within_s
    while left := [int(entry.name) for entry in Path("/proc").glob("[0-9]*") if _is_rank(entry.name, job)]:  # empty but on Linux
        if time.monotonic() > until:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.05)
    return True


def _is_rank(pid, job):
    try:
        environment, command = (Path(f"/proc/{pid}/{name}").read_bytes() for name in ("environ", "cmdline"))
    except OSError:
        return False
    return f"TINYGPT_TEST_JOB={job}".encode() in environment and b"witness.py" not in command


@pytest.fixture
def corpus(tmp_path):
    words = "the shape of an array is a tuple of numbers and its size is their product".split()
    rng = np.random.default_rng(0)
    folder = tmp_path / "text"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(words, 200)), encoding="utf-8")
    return tmp_path
