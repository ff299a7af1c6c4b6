"""Ranks that fail: the job ends in time, says once which rank and why, and the last checkpoint can be read."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.reliability import kill_and_resume, rank_processes
from tests.tinygpt.mpi_helpers import ROOT, SMALL, corpus, mpiexec, needs_mpi, none_left, ranks_of_cpus, started  # noqa: F401 (a fixture)
from tinygpt.errors import InvalidInput, MissingPackage
from tinygpt.parallel import launch
from tinygpt.runs import layout
from tinygpt.runs.checkpoint import Checkpoint

pytestmark = ranks_of_cpus

FAULTS = ROOT / "tests/tinygpt/rank_faults.py"
LIMIT_S = 2
SAID = {
    "raise": "rank 1 of 3: OSError: no space",
    "exit": "rank 1 of 3 ends with 3|rank 1 has ended, and rank 0 waits for it",  # with and without -m mpi4py
    "return": "rank 1 has ended, and rank 0 waits for it",
    "kill": "rank 1 of 3 was killed",
    "_exit": "rank 1 of 3 was killed, or ended without a word",
    "start": "rank 1 of 3 was killed",  # before it has a witness: another rank's speaks for it
    "hang": r"rank 1 has not come for \d s, and rank 0 has waited 2 s \(all_reduce\), expected at most 2 s",
    "stop": "rank 1 does not answer",
    "deadlock": r"all ranks wait for each other \(rank 1: receive, rank 2: all_reduce\)",
}


@needs_mpi
@pytest.mark.parametrize(
    ("how", "module"),
    [*((how, "mpi4py") for how in SAID), ("raise", ""), ("exit", ""), ("kill", "")],
)
def test_the_job_ends_and_names_the_rank(how, module, tmp_path):
    when = tmp_path / "when"
    done = mpiexec(3, FAULTS, how, when, module=module, timeout=150, TINYGPT_RANK_LIMIT_S=str(LIMIT_S))
    assert time.monotonic() - float(when.read_text(encoding="utf-8")) < LIMIT_S + 10
    assert done.returncode != 0 and "not reached" not in done.stdout
    assert len(re.findall(f"^error: ({SAID[how]})", done.stderr, flags=re.MULTILINE)) == done.stderr.count("error: ") == 1, done.stderr


IN_A_SHELL = ["sh", "-c", '"$@"; exit $?', "sh"]
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the processes in /proc")


@needs_mpi
def test_a_rank_in_a_shell_is_named(tmp_path):
    """mpiexec knows the shell, whose child the rank is."""
    command, environment = started(2, FAULTS, "kill", tmp_path / "when")
    done = subprocess.run(
        [*command[:3], *IN_A_SHELL, *command[3:]], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert re.findall("^error: rank . of 2 .{20}", done.stderr, flags=re.MULTILINE) == ["error: rank 1 of 2 was killed, or ended"], (
        done.stderr
    )


@needs_mpi
@on_linux
@pytest.mark.parametrize("how", ["wait", "compute"])
def test_ranks_end_when_their_launcher_is_killed(how, tmp_path):
    """Which otherwise would compute, or wait for each other, for ever."""
    command, environment = started(2, FAULTS, how, tmp_path / "when", TINYGPT_TEST_JOB=str(tmp_path))
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as job:
        while not (tmp_path / "when").exists():
            time.sleep(0.02)
        ranks = rank_processes(job.pid)
        (launcher,) = {int(Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[1]) for pid in ranks}
        os.kill(launcher, signal.SIGKILL)
        assert len(ranks) == 2 and none_left(str(tmp_path))


@needs_mpi
@on_linux
def test_ranks_end_when_the_shell_of_one_is_killed(tmp_path):
    """mpiexec then kills the other shell, and waits for what the ranks might write, of which it knows nothing."""
    command, environment = started(2, FAULTS, "wait", tmp_path / "when", TINYGPT_TEST_JOB=str(tmp_path))
    with subprocess.Popen([*command[:3], *IN_A_SHELL, *command[3:]], env=environment, stderr=subprocess.DEVNULL) as job:
        while not (tmp_path / "when").exists():
            time.sleep(0.02)
        os.kill(rank_processes(job.pid)[0], signal.SIGKILL)
        assert none_left(str(tmp_path))


RANK = """
import os, signal, time
from tinygpt.parallel.witness import Witness
rank = int(os.environ["PMI_RANK"])
Witness(rank, 2, 2, "PMI_RANK", "resume", 0).joined()
time.sleep(1000 if rank == 0 else 1)
os.kill(os.getpid(), signal.SIGKILL)
"""
LAUNCHER = f"""
import os, subprocess, sys
ranks = [subprocess.Popen([sys.executable, "-c", {RANK!r}], env={{**os.environ, "PMI_RANK": rank}}) for rank in "01"]
print(*[process.wait() for process in ranks])
"""
"""Starts two ranks, one of which is killed, and waits for both."""


@on_linux
def test_where_the_launcher_does_not_end_the_others_the_witness_of_a_rank_that_was_killed_does():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LAUNCHER], env=environment, capture_output=True, text=True, timeout=10, check=False)
    assert done.stdout == "-9 -9\n"
    assert re.findall("^error: rank . of 2 .{20}", done.stderr, flags=re.MULTILINE) == ["error: rank 1 of 2 was killed, or ended"]


@needs_mpi
@pytest.mark.parametrize("module", ["mpi4py", ""])
def test_an_error_is_said_once_and_ends_the_job(corpus, module):  # noqa: F811
    done = mpiexec(2, ROOT / "examples/pretrain.py", "--corpus", "nowhere", module=module, cwd=corpus)
    assert done.returncode != 0
    assert len(re.findall(r"^error: rank 0 of 2: .*nowhere", done.stderr, flags=re.MULTILINE)) == done.stderr.count("error:") == 1


@needs_mpi
def test_a_rank_that_does_not_start(tmp_path):
    done = mpiexec(2, FAULTS, "late", tmp_path / "when", TINYGPT_RANK_LIMIT_S="1")
    assert done.returncode != 0 and done.stderr.count("error: ") == 1
    assert "error: rank 0 of 2: not all ranks have started after 2 s, expected them" in done.stderr


@needs_mpi
def test_wrong_flags_are_said_once(corpus):  # noqa: F811
    done = mpiexec(2, ROOT / "examples/pretrain.py", "--nonsense", cwd=corpus)
    assert done.returncode == 2 and done.stderr.count("Unrecognized options: --nonsense") == 1


@needs_mpi
@pytest.mark.parametrize(
    ("script", "first", "second", "found"),
    [
        ("parallel/train_3d", ["--mesh", "data=2"], ["--mesh", "tensor=2"], "--mesh 'tensor=2', the first has 'data=2'"),
        ("finetune_classifier", ["--trainable", "lora", "--rank", "4"], ["--trainable", "lora"], "--rank 8, the first has 4"),
        ("finetune_instructions", ["--trainable", "lora"], [], "--trainable 'all', the first has 'lora'"),
        ("pretrain", [], [], "AUTOGRAD_DEBUG 0, the first has 1"),
    ],
)
def test_ranks_with_other_settings_are_refused(corpus, script, first, second, found):  # noqa: F811
    """Named before the first operation that they decide on: otherwise ranks wait for each other, or MPI fails."""
    file, begun = ROOT / f"examples/{script}.py", time.monotonic()
    launcher = ("-env", "AUTOGRAD_DEBUG", "1") if "DEBUG" in found else ()  # of the first
    done = mpiexec(1, file, *first, ":", "-n", "1", sys.executable, "-m", "mpi4py", file, *second, cwd=corpus, launcher=launcher)
    assert done.returncode != 0 and done.stderr.count("error: ") == 1, done.stderr
    assert f"rank 1: {found}, expected the same settings, versions and data on all; start all with the same command" in done.stderr
    assert time.monotonic() - begun < 30


def full_disk_message(run, step):
    saved = f"{run}/checkpoints/step-{step:08d}"
    found = f"{run}: No space left on device, expected a directory that can be written to; the last intact checkpoint is {saved}"
    fix = f"free some space, or copy the run to another disk, and continue with --resume {run}"
    return rf"error: rank 0 of 2: checkpoint step-\d{{8}} was not saved: {re.escape(f'{found} (step {step}); {fix}')}"


@needs_mpi
@pytest.mark.parametrize("module", ["mpi4py", ""])
def test_a_full_disk_of_the_first_rank_ends_the_job(module, tmp_path):
    """In the middle of an update that takes long."""
    done = mpiexec(2, FAULTS, "full_disk", tmp_path, module=module)
    assert time.monotonic() - float((tmp_path / "when").read_text(encoding="utf-8")) < 10
    assert done.returncode != 0 and "Traceback" not in done.stderr and "was not saved" not in done.stdout
    assert re.findall("^.*error: .*", done.stderr, flags=re.MULTILINE) == re.findall(full_disk_message(tmp_path / "run", 2), done.stderr)
    assert Checkpoint.open(tmp_path / "run", "last").training["step"] == 2


SMALL_DISK = """mount -t tmpfs -o size=$1 full "$0" && shift && "$@"; code=$?; cp -a "$0/run" "$0-run"; exit $code"""
"""Runs a command with a small file system mounted at a directory, and then copies the run out of it: only this shell sees what is mounted."""


def can_mount(folder):
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "full", folder]
    return bool(shutil.which("unshare")) and subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode == 0


@needs_mpi
def test_a_file_system_that_fills_up(corpus):  # noqa: F811
    """A real one. A copy of the run continues, and ends with the bits of a run that had space."""
    (corpus / "full").mkdir()
    if not can_mount(corpus / "full"):
        pytest.skip("no right to mount a file system")
    script, flags = ROOT / "examples/parallel/train_3d.py", ["--mesh", "tensor=2", *SMALL, "--eval-every", "2", "--keep", "1"]
    assert mpiexec(2, script, *flags, "--steps", "6", "--run", "other", cwd=corpus).returncode == 0
    pages = [2 + path.stat().st_size // 4096 for path in (corpus / "other/checkpoints").rglob("*")]  # room for one checkpoint, not for two
    command, environment = started(2, script, *flags, "--steps", "6", "--run", "full/run")
    command = ["unshare", "-rm", "sh", "-c", SMALL_DISK, "full", str(4096 * sum(pages)), *command]
    done = subprocess.run(command, env=environment, cwd=corpus, capture_output=True, text=True, timeout=60, check=False)
    saved = corpus / "full-run/checkpoints"
    assert time.time() - (saved / "last").stat().st_mtime < 10
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert re.findall("^.*error: .*", done.stderr, flags=re.MULTILINE) == re.findall(full_disk_message("full/run", 2), done.stderr)
    assert [path.name for path in layout.list_checkpoints(corpus / "full-run")] == ["step-00000002"]
    assert mpiexec(2, script, "--resume", "full-run", cwd=corpus).returncode == 0
    for name in ("model.safetensors", "training.safetensors"):
        found, wanted = ((run / "step-00000006" / name).read_bytes() for run in (saved, corpus / "other/checkpoints"))
        assert found == wanted


@needs_mpi
def test_killed_at_random_instants_no_checkpoint_is_lost(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]))  # noqa: PTH120
    report = kill_and_resume(tmp_path, n_kills=3, seed=1, ranks=2)
    assert report.kills == 3 and report.lost == 0 and report.equal, report


@needs_mpi
@on_linux
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first(corpus, number):  # noqa: F811
    """SIGTERM as it may reach the ranks of several machines, one after the other; Ctrl-C as mpiexec passes it on."""
    endless = ["--steps", "100000", "--eval-every", "100000", "--run", "two"]
    command, environment = started(2, ROOT / "examples/pretrain.py", *SMALL, *endless)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "encoding": "utf-8"}
    with subprocess.Popen(command, cwd=corpus, env=environment, **pipes) as job:
        lines = iter(job.stdout)
        assert any(line.startswith("step") for line in lines)
        for pid in [job.pid] if number == signal.SIGINT else reversed(rank_processes(job.pid)):
            os.kill(pid, number)
            time.sleep(0.05)
        said = "".join(lines)
    assert f"stopped by {number.name}; resume with" in said and "error" not in said, said
    assert Checkpoint.open(corpus / "two", "last").training["step"] > 0 and job.returncode != 0


@pytest.mark.parametrize("given", ["soon", "-1", "nan", "inf"])
def test_a_time_limit_that_is_none(monkeypatch, given):
    monkeypatch.setenv("TINYGPT_RANK_LIMIT_S", given)
    with pytest.raises(InvalidInput, match=f"TINYGPT_RANK_LIMIT_S: '{given}', expected a number of seconds, 0 or more"):
        launch.limit_s()


NO_MPI = "import sys; sys.modules['mpi4py'] = None; from tinygpt.parallel.launch import connect; connect()"


@pytest.mark.parametrize(("variable", "what"), [("PMI", "MPICH"), ("OMPI_COMM_WORLD", "Open MPI")])
def test_no_mpi4py(variable, what):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), f"{variable}_SIZE": "2", f"{variable}_RANK": "0"}
    done = subprocess.run([sys.executable, "-c", NO_MPI], env=environment, capture_output=True, text=True, check=False)
    assert f"{MissingPackage.__name__}: {what}: 2 ranks were started, and mpi4py is missing" in done.stderr
    assert 'pip install "tinygpt[mpi]"' in done.stderr


@needs_mpi
def test_the_mpiexec_of_another_mpi():
    """Open MPI's variables, and mpi4py with MPICH: each process would train alone."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    program = "from tinygpt.parallel.launch import connect; connect()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert "Open MPI: 2 ranks were started, and mpi4py, with MPICH Version" in done.stderr
    assert "sees 1, expected one MPI for both; start with the mpiexec of that library" in done.stderr
