"""Crashes, full disks and failing hardware: at every instant the last good checkpoint is whole."""

import contextlib
import errno
import os
import random
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.reliability import FaultyDisk, kill_and_resume, save_under_faults
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import FunctionRecord, Notes, checkpoint_directory, load, new_run, save_checkpoint, weights
from tests.tinygpt.test_resume import FLAGS, SHAPE, TOKENIZER, pretrain, saver, text, trainer  # noqa: F401 (a fixture)
from tinygpt.runs.layout import integrity_errors, verify_integrity
from tinygpt.runs.run import Run
from tinygpt.storage.durable import Lock, replace_file, use_disk, write_file
from tinygpt.training.metrics import MetricsFile

CI_KILLS, CI_FAULTS = 20, 50


def save(run, t, *, best=True, keep=2):
    return save_checkpoint(run, t.result.step, t.model, t.optimizer, TOKENIZER, t.state_dict(), best=best, keep=keep)


@numpy_only
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_at_random_instants_no_checkpoint_is_lost_and_the_end_is_the_same(tmp_path):
    report = kill_and_resume(tmp_path, n_kills=CI_KILLS, seed=0)
    assert report.kills == CI_KILLS and report.lost == 0 and report.equal, report


def test_no_fault_of_the_disk_damages_a_checkpoint(tmp_path):
    report = save_under_faults(tmp_path, n_faults=CI_FAULTS, seed=0)
    assert (
        report.faults == CI_FAULTS and report.damaged == 0 and report.kinds >= {"ENOSPC", "EIO", "EDQUOT", "short write", "rename", "fsync"}
    )


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_is_told_training_goes_on_and_the_end_is_an_error(tmp_path, background):
    run = new_run(tmp_path / "run", "x")
    t, notes = trainer(steps=6, eval_every=2), Notes()
    checkpoints, checkpoint = saver(run, t, background=background, note=notes.note)

    def full_after_the_first(best):
        checkpoints.wait()
        with use_disk(FaultyDisk("ENOSPC", 3)) if t.result.step > 2 else contextlib.nullcontext():
            checkpoint(best)

    result = t.run(notes, FunctionRecord(full_after_the_first))
    assert result.step == 6  # nothing stopped it
    with pytest.raises(
        OSError, match=r"run: No space left on device, expected a directory that can be written to; free some space, or choose"
    ):
        checkpoints.finish()
    told = [note for note in notes.notes if "was not saved" in note]
    assert len(told) == 2 and re.search(
        r"step-00000004 was not saved: .*No space left on device.*; the last intact checkpoint is .*step-00000002; training continues",
        told[0],
    )
    assert checkpoint_directory(run, "last").name == "step-00000002" and not integrity_errors(checkpoint_directory(run, "last"))
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best", "last", "step-00000002"]


class Ended(BaseException):
    """Instead of the end of all ranks."""


def of_several_ranks(run):
    """What a run says that ends a job of several ranks."""
    said = []

    def end(message):
        said.append(message)
        if threading.current_thread() is threading.main_thread():
            raise Ended

    run.writer.end = end
    return said


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize(
    ("kind", "found", "fix"),
    [
        ("ENOSPC", "No space left on device", "free some space, or {}"),
        ("EDQUOT", ".*quota exceeded", "your quota is used up: delete something, or {}"),
        ("fsync", "Input/output error", r"the disk is failing \(see dmesg\): save what is on it, and {}"),
    ],
)
def test_several_ranks_end_with_the_first_checkpoint_that_cannot_be_written(tmp_path, background, kind, found, fix):
    t = trainer()
    run, checkpoint = saver(new_run(tmp_path / "run", "x"), t, background=background)
    said = of_several_ranks(run)
    for n_saved in (0, 1):
        t.update()
        with use_disk(FaultyDisk(kind, 1)), contextlib.suppress(Ended):
            checkpoint(True)
            run.wait()
        left = r"the last intact checkpoint is .*run/checkpoints/step-00000001 \(step 1\)" if n_saved else "there is no checkpoint yet"
        way_out = "copy the run to another disk, and continue with --resume .*run" if n_saved else "choose another --run, and start again"
        rule = f"{found}, expected a directory that can be written to; {left}; {fix.format(way_out)}"
        assert re.fullmatch(f"checkpoint step-0000000{n_saved + 1} was not saved: {run.path}: {rule}", said[n_saved]), said
        if not n_saved:
            checkpoint(True)
            run.wait()
    assert len(said) == 2 and not integrity_errors(checkpoint_directory(run.path, "last"))
    with pytest.raises(OSError, match=found):
        run.finish()


@pytest.mark.skipif(os.name == "nt", reason="about a signal that Windows lacks")
def test_several_ranks_end_with_the_checkpoint_of_a_signal(tmp_path):
    t, run = trainer(steps=9), Run.create("x", tmp_path / "run", background=False)
    run.tokenizer, said, notes = TOKENIZER, of_several_ranks(run), Notes()
    notes.update = lambda metrics: os.kill(os.getpid(), signal.SIGTERM) if metrics.step == 2 else None
    with use_disk(FaultyDisk("ENOSPC", 0)), pytest.raises(Ended):
        run.train(t, notes)
    assert t.result.step in (2, 3) and re.match(r"checkpoint step-0000000\d was not saved: .*No space left", said[0]) and len(said) == 1


@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="writes to /dev/full")
def test_metrics_that_cannot_be_written(tmp_path, n_ranks):
    """One process says so once and trains on; several ranks end."""
    t, run, notes = trainer(steps=5), Run.create("x", tmp_path / "run"), Notes()
    run.tokenizer, said = TOKENIZER, of_several_ranks(run) if n_ranks > 1 else []
    run.metrics.path.symlink_to("/dev/full")
    with pytest.raises(Ended) if n_ranks > 1 else contextlib.nullcontext():
        run.train(t, notes)
    told = said + [note for note in notes.notes if "metrics.jsonl" in note]
    problem = f"a line of metrics.jsonl was not written: {run.path}: No space left on device, expected .*; there is no checkpoint yet"
    assert len(told) == 1 and re.match(problem, told[0].replace("free some space, or choose another --run; ", "")), told
    assert t.result.step == (1 if n_ranks > 1 else 5) and (run.last is None) == (n_ranks > 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a limit of the system's own")
def test_no_half_of_a_line_of_metrics_is_left(tmp_path):
    import resource

    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.write({"step": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (metrics.path.stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            metrics.write({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    metrics.write({"step": 3})
    assert metrics.path.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 3}\n'


def test_a_checkpoint_written_in_the_background_is_the_state_of_its_instant(tmp_path):
    run, t = new_run(tmp_path / "run", "x"), trainer()
    t.update()
    wanted = {name: array.copy() for name, array in weights(t.model).items()}

    class Slow(FaultyDisk):
        def write(self, file, data):
            time.sleep(0.005)
            return super().write(file, data)

    checkpoints, checkpoint = saver(run, t)
    with use_disk(Slow("none", 0)):
        checkpoint(True)
    for _ in range(3):
        t.update()  # meanwhile
    checkpoints.finish()
    np.testing.assert_equal(weights(load(run)[0]), wanted)


@pytest.mark.skipif(os.name == "nt" or (hasattr(os, "geteuid") and os.geteuid() == 0), reason="permissions do not bind root")
def test_a_read_only_directory_is_named(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(
            PermissionError, match=r"Permission denied, expected a directory that can be written to; change its permissions"
        ):
            new_run(tmp_path / "run", "x")
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "Permission denied, expected a directory that can be written to; change its permissions, or choose another --run"),
        (errno.EROFS, "Read-only file system, expected .*; the file system is read-only: choose another --run"),
        (errno.EDQUOT, "quota exceeded, expected .*; your quota is used up: delete something, or choose another --run"),
        (errno.EFBIG, r"File too large, expected .*\(ulimit -f\): raise it"),
        (errno.EIO, r"Input/output error, expected .*; the disk is failing \(see dmesg\)"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="about the system's own words")
def test_what_the_system_refuses_is_said_with_what_to_do(tmp_path, monkeypatch, number, advice):
    def refuse(self, *args, **options):
        raise OSError(number, os.strerror(number), str(self))

    with monkeypatch.context() as patch, pytest.raises(OSError, match=rf"run: .*{advice}"):
        patch.setattr(Path, "mkdir", refuse)
        new_run(tmp_path / "run", "x")


@numpy_only
@pytest.mark.skipif(sys.platform != "linux", reason="a limit of the system's own")
def test_a_real_limit_on_file_size_ends_in_one_clear_error(tmp_path, text):  # noqa: F811
    limited = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.argv = sys.argv[1:]; "
    limited += "runpy.run_path(sys.argv[0], run_name='__main__')"
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", limited, str(root / "examples" / "pretrain.py"), *FLAGS, "--corpus", str(text), "--steps", "4"]
    done = subprocess.run(
        [*command, "--run", "run"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: run: File too large, expected a directory that can be written to" in done.stderr
    assert "step-00000004 was not saved" in done.stdout and "there is no checkpoint yet" in done.stdout


# ---- damaged checkpoints -----------------------------------------------------------------------------------------------------------------


def two_checkpoints(folder, **changes):
    run, t = new_run(folder / "run", "x"), trainer(**changes)
    for _ in range(2):
        t.update()
        save(run, t)
    return run, t


DAMAGE = {
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "training.json", "config.json", "tokenizer.json"])
def test_a_damaged_checkpoint_is_passed_over_for_the_newest_whole_one(tmp_path, name, how):
    run, _ = two_checkpoints(tmp_path)
    DAMAGE[how](run / "checkpoints" / "step-00000002" / name)
    with pytest.warns(UserWarning, match=rf"step-00000002: {re.escape(name)} .*; falling back to .*step-00000001, the newest intact"):
        assert checkpoint_directory(run, "last").name == "step-00000001"
    with pytest.warns(UserWarning, match="falling back"):
        load(run)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} .*, expected the files as they were saved; use another checkpoint"):
        verify_integrity(run / "checkpoints" / "step-00000002")
    if (name, how) != ("model.safetensors", "deleted"):  # without weights it is no checkpoint at all
        with pytest.raises(ValueError, match=rf"{re.escape(name)} .*, expected the files as they were saved"):
            load(run / "checkpoints" / "step-00000002")


@pytest.mark.parametrize("content", [b"", b"step-00000009\n", b"../../outside\n", b"\xff\xfe", b"step-00000002/../x"])
def test_a_pointer_that_names_nothing_is_passed_over(tmp_path, content):
    run, _ = two_checkpoints(tmp_path)
    for pointer in ("last", "best"):
        (run / "checkpoints" / pointer).write_bytes(content)
    context = pytest.warns(UserWarning, match="missing, though a pointer names it") if b"9" in content else contextlib.nullcontext()
    with context:
        assert checkpoint_directory(run, "last").name == "step-00000002"


def test_a_run_without_a_whole_checkpoint_says_what_is_wrong_with_each(tmp_path):
    run, _ = two_checkpoints(tmp_path)
    for directory in (run / "checkpoints").glob("step-*"):
        (directory / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no intact checkpoint \(.*00002: model.safetensors is missing; .*00001: model.*tinygpt verify"):
        checkpoint_directory(run)


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "expected valid JSON"),
        ('{"files": {}}', "no list of files, expected one; the checkpoint is damaged"),
        ('{"files": {"../x": {"bytes": 1, "sha256": ""}}}', "'../x': {'bytes': 1, 'sha256': ''}, expected the name of a file next to it"),
        (
            '{"files": {"x": {"bytes": "1", "sha256": ""}}}',
            "'x': {'bytes': '1', 'sha256': ''}, expected the name of a file next to it, with bytes, an integer, and sha256",
        ),
        ('{"files": {"x/y": {"bytes": 1, "sha256": ""}}}', "'x/y': {'bytes': 1, 'sha256': ''}, expected the name of a file next to it"),
        ('{"files": {"additional_chat_templates/": {"bytes": 1, "sha256": ""}}}', "additional_chat_templates/ is missing"),
        ('{"files": {"x": 3}}', "'x': 3, expected the name of a file next to it, with bytes, an integer, and sha256"),
    ],
)
def test_a_manifest_that_is_none_counts_as_damage(tmp_path, manifest, message):
    run, _ = two_checkpoints(tmp_path)
    directory = run / "checkpoints" / "step-00000002"
    (directory / "manifest.json").write_text(manifest, encoding="utf-8")
    assert message in integrity_errors(directory)[0]


def test_last_best_and_the_newest_are_kept(tmp_path):
    run, t = new_run(tmp_path / "run", "x"), trainer()
    checkpoints, checkpoint = saver(run, t, keep=3)
    for step in range(1, 8):
        t.update()
        checkpoint(step == 2)
    checkpoints.finish()
    names = [f"step-{step:08d}" for step in (2, 5, 6, 7)]
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["best", "last", *names]
    assert checkpoint_directory(run, "best").name == names[0] and checkpoint_directory(run, "last").name == names[-1]


def test_what_a_crash_left_unfinished_is_cleaned_and_metrics_go_back(tmp_path):
    run, t = two_checkpoints(tmp_path)
    (run / "checkpoints" / ".partial-step-00000003").mkdir()
    (run / ".partial-config.json").write_text("{", encoding="utf-8")
    metrics = MetricsFile(run / "metrics.jsonl")
    for step in (1, 2, 3):
        metrics.write({"step": step, "loss_nats": step / 2})
    with metrics.path.open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')  # the power went off here
    Run.resume(run)
    assert not list(run.rglob(".partial-*"))
    metrics.truncate_after(2, t.result)
    assert t.result.train_curve == [(1, 0.5), (2, 1.0)] and metrics.path.read_text(encoding="utf-8").count("\n") == 2


def test_two_processes_never_share_a_directory(tmp_path):
    run = new_run(tmp_path / "run", "x")
    code = f"from tinygpt.runs.run import Run; Run.resume({str(run)!r})"
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(root), "AUTOGRAD_BACKEND": "numpy"},
        capture_output=True,
        text=True,
    )
    assert f"in use by process {os.getpid()} on" in done.stderr and done.returncode == 1
    with pytest.raises(FileExistsError, match=r"already holds a run \(or other files\).*; choose another --run, or resume it: --resume"):
        new_run(run, "x")
    with pytest.raises(
        FileNotFoundError, match=r"nowhere: no checkpoints, expected the directory of a run; check the path, or start a new"
    ):
        Run.resume(tmp_path / "nowhere")
    Lock(run).acquire()  # the same process may ask again


# ---- the file layer ----------------------------------------------------------------------------------------------------------------------


def test_a_disk_that_takes_little_at_a_time_gets_all_of_it(tmp_path):
    data = random.Random(0).randbytes(10_000)
    with use_disk(FaultyDisk("short write", 0)):
        written = write_file(tmp_path / "x", [data[:77], b"", np.frombuffer(data[77:], dtype=np.uint8)])
    assert (tmp_path / "x").read_bytes() == data and written.n_bytes == 10_000


@pytest.mark.parametrize("after", range(4))
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, after):
    path = tmp_path / "x"
    replace_file(path, "old")
    for kind in ("ENOSPC", "fsync", "rename"):
        with use_disk(FaultyDisk(kind, after)), contextlib.suppress(OSError):
            replace_file(path, "new")
        assert path.read_text(encoding="utf-8") in ("old", "new")
        assert not list(tmp_path.glob(".partial-*"))


def test_a_disk_that_takes_nothing_is_an_error(tmp_path):
    class Stuck(FaultyDisk):
        def write(self, file, data):
            return 0

    with use_disk(Stuck("none", 0)), pytest.raises(OSError, match="the disk took 0 of 3 bytes, expected at least one; check the disk"):
        write_file(tmp_path / "x", [b"abc"])
