"""Checkpoints and run directories. A checkpoint is a Hugging Face GPT-2 directory; a run is a directory of checkpoints and logs.

    run/                        config.json, metrics.jsonl, loss.png, samples.txt; lock, while a process writes here
    run/checkpoints/step-00000100/
        config.json             the model's shape under GPT-2's keys
        model.safetensors       weights under GPT-2's names
        vocab.json, merges.txt  the tokenizer (or tokenizer.json)
        training.safetensors    the optimizer's moments
        training.json           step, best loss, random streams, position in the data
        manifest.json           size and sha256 of each of these files
    run/checkpoints/last, best  one line each: the name of a checkpoint

No pickle anywhere. A checkpoint appears by the rename of a finished, fsynced directory to a new name, and a pointer by
`os.replace`, so at every instant the last good one is whole (`tinygpt.storage.durable`; what has been tried on it: docs/reliability.md).
"""

import contextlib
import contextvars
import errno
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from autograd import backend
from autograd.optim import AdamW
from tinygpt.config import GPTConfig
from tinygpt.data.tokenizer import Tokenizer, gpt2_tokenizer, load_tokenizer
from tinygpt.errors import Diverged, InvalidInput, MissingFile, PathExists
from tinygpt.models.gpt import GPT
from tinygpt.storage import durable, safetensors
from tinygpt.storage.checked_json import Entries, to_json
from tinygpt.storage.checked_json import read_json_object as read_json
from tinygpt.storage.durable import Lock, read_digest, replace_file, write_file
from tinygpt.storage.safetensors import read_into, read_safetensors_header
from tinygpt.weights.gpt2 import CLASSIFIER, LANGUAGE_MODEL, architectures, load_weights
from tinygpt.weights.hub import HUB_NAMES, has_weights, locate

# Runs ---------------------------------------------------------------------------------------------------------------------


def new_run(directory: str | Path | None, name: str) -> Path:
    """Makes a run's directory, the one asked for or the next free `runs/<name>-001`, and locks it until this process ends.

    Raises FileExistsError if the directory already holds a run, so that nothing is overwritten; BlockingIOError if another process has
    it; other OSErrors, saying where, if it cannot be written to.
    """
    while True:
        path = Path(directory) if directory else _next_free(name)
        if path.exists() and (not path.is_dir() or Lock.held(path) or not _is_blank(path)):
            raise PathExists(
                f"{path}: already holds a run (or other files), expected a new or empty directory; choose another --run"
                + (f", or go on with it: --resume {path}" if is_pretrained(path) else "")
            )
        with writable(path):
            try:
                path.mkdir(parents=True, exist_ok=bool(directory))
            except FileExistsError:  # another process took this number a moment ago
                continue
            Lock(path).acquire()
            (path / "checkpoints").mkdir(exist_ok=True)
        return path


def is_pretrained(run: Path) -> bool:
    """Whether a directory is a run of pretraining, which can be resumed: fine-tunings note the model that they started from."""
    settings = run / "config.json"
    return (run / "checkpoints").is_dir() and not (settings.is_file() and "base" in read_json(settings))


def _is_blank(path: Path) -> bool:
    """True for a directory without content, or with what `new_run` makes before anything else."""
    return all(p.name == "lock" or (p.name == "checkpoints" and p.is_dir() and not any(p.iterdir())) for p in path.iterdir())


def _next_free(name: str) -> Path:
    taken = [int(p.name.rpartition("-")[2]) for p in Path("runs").glob(f"{name}-[0-9][0-9][0-9]")]
    return Path("runs") / f"{name}-{max(taken, default=0) + 1:03d}"


def open_run(directory: str | Path) -> Path:
    """A run to go on with, locked until this process ends and cleaned of what a crash has left unfinished.

    Raises FileNotFoundError if there is no run, BlockingIOError if another process has it.
    """
    path = Path(directory)
    if not (path / "checkpoints").is_dir():
        raise MissingFile(f"{path}: no checkpoints, expected the directory of a run; check the path, or start a new run without --resume")
    with writable(path):
        Lock(path).acquire()
        for place in (path, path / "checkpoints"):
            durable.remove_partial(place)
    return path


@contextlib.contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turns the system's refusals to write below `path` into an error that says what to do; a lock that is held passes as it is."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as error:
        what_to_do = _WHAT_TO_DO.get(error.errno or 0, "choose another --run")
        explained = type(error)(f"{path}: {why(error)}, expected a place that can be written to; {what_to_do}")
        explained.errno = error.errno
        raise explained from error


_WHAT_TO_DO = {
    errno.ENOSPC: "free some space, or choose another --run",
    getattr(errno, "EDQUOT", errno.ENOSPC): "your quota is used up: delete something, or choose another --run",
    errno.EROFS: "the file system is read-only: choose another --run",
    errno.EACCES: "change its permissions, or choose another --run",
    errno.EPERM: "change its permissions, or choose another --run",
    errno.EFBIG: "the file is larger than the limit of this process or file system (ulimit -f): raise it, or choose another --run",
    errno.EIO: "the disk is failing (see dmesg): save what is on it, and choose another --run",
}


def why(error: OSError) -> str:
    """An OSError in words: the system's own, or its message."""
    return os.strerror(error.errno) if error.errno else str(error)


def newest_run(below: str | Path = "runs", architecture: str = LANGUAGE_MODEL, accept: Callable[[Path], bool] = lambda run: True) -> Path:
    """The run below `below` whose last checkpoint is the newest, among those of one architecture (as config.json names it).

    accept   says of a run's directory whether it may be chosen
    Raises FileNotFoundError, saying what to do, if there is none.
    """
    pointers = sorted(Path(below).glob("*/checkpoints/last"), key=lambda p: p.stat().st_mtime, reverse=True)
    for path in pointers:
        run = path.parent.parent
        last = path.parent / pointer(run, "last")
        if (last / "config.json").is_file() and architecture in architectures(last) and accept(run):
            return run
    raise MissingFile(f"{below}: no run with a checkpoint, expected one; train first: python examples/pretrain.py")


def checkpoint_directory(path: str | Path, which: str = "best") -> Path:
    """The checkpoint meant by `path`: itself if it holds weights, else the `best` or `last` one of that run.

    GPT-2's names on Hugging Face's hub (gpt2, gpt2-medium, ...) are fetched where nothing on this machine has that name.
    One that is damaged (see `problems`) is passed over, with a warning, for the newest whole one. Raises FileNotFoundError if there is no
    checkpoint, ValueError if none is whole.
    """
    path = locate(path) if str(path) in HUB_NAMES else Path(path)
    if has_weights(path):
        return path
    wanted = [name for name in (pointer(path, which), pointer(path, "last")) if name]
    every = list(dict.fromkeys([*wanted, *(p.name for p in reversed(list_checkpoints(path)))]))
    if not every:
        raise MissingFile(
            f"{path}: neither a checkpoint nor a run with one, expected model.safetensors or checkpoints/last; check the path"
        )
    damage: list[str] = []
    for name in every:
        directory = path / "checkpoints" / name
        found = problems(directory)
        if not found:
            if damage:
                warnings.warn(f"{'; '.join(damage)}; falling back to {directory}, the newest whole checkpoint", stacklevel=2)
            return directory
        damage.append(f"{directory}: {found[0]}")
    raise InvalidInput(
        f"{path}: no whole checkpoint ({'; '.join(damage)}), expected at least one; python -m tinygpt verify {path} lists all"
    )


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint directories of a run, oldest step first."""
    return sorted((p for p in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(p.name)), key=_number)


_NAME = re.compile(r"step-(\d+)(?:-(\d+))?")  # the second number: the same step, reached once more after a crash or a rollback


def _number(directory: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(directory.name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)


def pointer(run: Path, which: str) -> str:
    """The checkpoint's name in a pointer file; empty if there is none. A name with anything else in it counts as none."""
    path = run / "checkpoints" / which
    if not path.is_file():
        return ""
    name = path.read_bytes()[:100].decode("utf-8", errors="replace").strip()
    return name if _NAME.fullmatch(name) else ""


def problems(directory: Path, names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with a checkpoint's files, by its manifest: missing, of another size, or of another sha256. Empty: all is well.

    names   only these files; by default all. A directory without a manifest (another program's) passes if it has weights.
    """
    if not directory.is_dir():
        return ["missing, though a pointer names it"]
    if not (directory / "manifest.json").is_file():
        return [] if has_weights(directory) else ["holds no model.safetensors"]
    try:
        listed = read_manifest(directory)
    except (ValueError, OSError) as error:
        return [str(error)]
    found = []
    for name, (n_bytes, sha256) in listed.items():
        if names is not None and name not in names:
            continue
        path = directory / name
        if not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != n_bytes:
            found.append(f"{name} has {path.stat().st_size} bytes, expected {n_bytes}")
        elif read_digest(path).sha256 != sha256:
            found.append(f"{name} is damaged: its sha256 is not the one in manifest.json")
    return found


def read_manifest(directory: Path) -> dict[str, tuple[int, str]]:
    """{file name: (size in bytes, sha256 in hex)} of a checkpoint. Raises ValueError for a manifest that is none."""
    path = directory / "manifest.json"
    listed = read_json(path).get("files")
    if not isinstance(listed, dict) or not listed:
        raise InvalidInput(f"{path}: no list of files, expected one; the checkpoint is damaged")
    for name, entry in listed.items():
        if Path(name).name != name or not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
            raise InvalidInput(
                f"{path}: {name!r}, expected names of files beside it, each with bytes and sha256; the checkpoint is damaged"
            )
        if type(entry.get("bytes")) is not int:
            raise InvalidInput(f"{path}: {entry.get('bytes')!r} bytes for {name}, expected an integer; the checkpoint is damaged")
    return {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}


def load(path: str | Path, which: str = "best") -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a checkpoint directory, or of a run's `best` or `last` checkpoint.

    Raises ValueError if the tokenizer has another number of tokens than the model, or if a file is not the one that was saved.
    """
    directory = checkpoint_directory(path, which)
    if directory.is_dir() and directory == Path(path):  # else its files have been checked on the way
        check_whole(directory)
    if directory.is_dir() and CLASSIFIER in architectures(directory):
        raise InvalidInput(f"{directory}: a classifier, expected a language model; load it with GPTClassifier.from_pretrained")
    model = GPT.from_pretrained(directory)
    return model, tokenizer_of(directory, model.config)


def check_whole(directory: Path) -> None:
    """Raises ValueError, naming the file, if a checkpoint is damaged."""
    found = problems(directory)
    if found:
        raise InvalidInput(f"{directory}: {'; '.join(found)}, expected the files as they were saved; use another checkpoint of the run")


def tokenizer_of(directory: Path, config: GPTConfig) -> Tokenizer:
    """A checkpoint's tokenizer (GPT-2's for llm.c's files). Raises ValueError if it has another number of tokens than the model."""
    tokenizer = load_tokenizer(directory) if directory.is_dir() else gpt2_tokenizer()
    if tokenizer.n_vocab != config.vocab_size:
        raise InvalidInput(
            f"{directory}: a tokenizer of {tokenizer.n_vocab} tokens, expected {config.vocab_size}, the model's vocabulary; "
            "are its files another model's?"
        )
    return tokenizer


# Saving -------------------------------------------------------------------------------------------------------------------


def save_checkpoint(
    run: Path, step: int, model: Any, optimizer: AdamW, tokenizer: Tokenizer, progress: dict[str, Any], *, best: bool, keep: int = 1
) -> Path:
    """Adds `checkpoints/step-...` to a run and points `last` (and `best`) at it; of the others the newest `keep` - 1 stay, and the best.

    progress   JSON: whatever the training loop needs to go on (step, best loss, draws of the random streams, ...)
    Raises OSError if it cannot be written: then all that was there before is as it was.
    """
    name = _free_name(run, step)

    def fill(directory: Path) -> None:
        _save_parts(directory, model, optimizer, tokenizer, progress)
        _write_manifest(directory)

    with writable(run):
        durable.write_directory(run / "checkpoints" / name, fill)
        _point_and_prune(run, name, best, keep)
    return run / "checkpoints" / name


def _save_parts(directory: Path, model: Any, optimizer: AdamW, tokenizer: Tokenizer, progress: dict[str, Any]) -> None:
    model.save_pretrained(directory, tokenizer)
    state = optimizer.state_dict()
    safetensors.save_tensors(
        directory / "training.safetensors", {f"{key}.{n}": backend.to_host(a) for key in ("m", "v") for n, a in state[key].items()}
    )
    write_file(directory / "training.json", [to_json({"n_steps": state["n_steps"], **progress})])


def _write_manifest(directory: Path) -> None:
    listed = {}
    for path in sorted(directory.iterdir()):
        _sync(path)  # the tokenizer's files come from its own `save`
        written = read_digest(path)
        listed[path.name] = {"bytes": written.n_bytes, "sha256": written.sha256}
    write_file(directory / "manifest.json", [to_json({"format": 1, "files": listed})])


def _free_name(run: Path, step: int) -> str:
    """A name that no checkpoint of the run has: one that is there is never replaced."""
    names = [f"step-{step:08d}", *(f"step-{step:08d}-{n}" for n in range(2, 10_000))]
    return next(name for name in names if not (run / "checkpoints" / name).exists())


def _point_and_prune(run: Path, name: str, best: bool, keep: int) -> None:
    checkpoints = run / "checkpoints"
    for which in ("best", "last") if best else ("last",):
        replace_file(checkpoints / which, name + "\n")
    kept = {name, pointer(run, "best")}
    newest = sorted(list_checkpoints(run), key=lambda p: (p.stat().st_mtime_ns, _number(p)), reverse=True)
    kept |= {p.name for p in newest[: max(keep, 1)]}
    for old in newest:
        if old.name not in kept:
            durable.remove_directory(old)


class Checkpoints:
    """A run's checkpoints while it trains: written by a thread from a copy, so that training goes on meanwhile.

    A checkpoint that cannot be written is told to `note` and costs nothing but itself: training goes on, the next one is tried, and what
    was there stays. `finish` waits, and raises if the last one was not written.

    keep         newest checkpoints to keep, besides the best
    background   False: `save` returns when all is on the disk
    """

    def __init__(self, run: Path, *, keep: int = 1, background: bool = True, note: Callable[[str], None] = print) -> None:
        self.run, self.keep, self.background, self.note = run, keep, background, note
        self.failure: OSError | None = None
        self.last_written: Path | None = None
        name = pointer(run, "last")
        if name:
            self.last_written = run / "checkpoints" / name
        self._thread: threading.Thread | None = None

    def save(self, step: int, model: Any, optimizer: AdamW, tokenizer: Tokenizer, progress: dict[str, Any], *, best: bool) -> None:
        """Copies the state and begins to write it. Waits for the checkpoint before, if that is still being written."""
        self.wait()
        name = _free_name(self.run, step)
        directory = self.run / "checkpoints" / f"{durable.PARTIAL}{name}"
        deferred: list[Callable[[], None]] = []
        token = safetensors.later.set(deferred)
        try:
            with writable(self.run):
                directory.mkdir()
                _save_parts(directory, model, optimizer, tokenizer, progress)
        except OSError as error:
            self._failed(name, directory, error)
            return
        finally:
            safetensors.later.reset(token)
        if not self.background:
            self._write(name, directory, deferred, best)
            return
        context = contextvars.copy_context()
        # A daemon: a second Ctrl-C ends the program at once, and what is half-written then is not yet a checkpoint.
        self._thread = threading.Thread(target=context.run, args=(self._write, name, directory, deferred, best), daemon=True)
        self._thread.start()

    def _write(self, name: str, directory: Path, later: list[Callable[[], None]], best: bool) -> None:
        final = self.run / "checkpoints" / name
        try:
            with writable(self.run):
                while later:
                    later.pop(0)()  # the copy is freed as soon as it is written
                _write_manifest(directory)
                durable.sync_directory(directory)
                durable.disk().rename(directory, final)
                durable.sync_directory(final.parent)
                _point_and_prune(self.run, name, best, self.keep)
        except OSError as error:
            self._failed(name, directory, error)
            return
        self.failure, self.last_written = None, final

    def _failed(self, name: str, directory: Path, error: OSError) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self.failure = error
        kept = f"the last whole checkpoint is {self.last_written}" if self.last_written else "there is no checkpoint yet"
        self.note(f"{name} was not saved: {error}; {kept}; training goes on and tries again at the next one")

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @contextlib.contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Around training: numbers that are not finite end it once what is being written is on the disk, naming the last good checkpoint."""
        try:
            yield
        except FloatingPointError as error:
            self.wait()
            raise Diverged(f"{error}; the last good checkpoint: {self.last_written or 'none was written yet'}") from error

    def finish(self) -> None:
        """Waits. Raises OSError if the last checkpoint was not written."""
        self.wait()
        if self.failure is not None:
            raise self.failure


def load_training(directory: str | Path, trainer: Any, *, other_data: bool = False) -> dict[str, Any]:
    """Puts a `tinygpt.training.trainer.Trainer` where the checkpoint was saved: weights, moments, random streams, position in the data, best score.

    The trainer must have been made for the same model and parameters, and, without `other_data`, for the same batches.
    Returns all of training.json.
    Raises ValueError, naming what differs, for another model's or another data set's checkpoint; FileNotFoundError without training state.
    """
    directory = Path(directory)
    if not (directory / "training.json").is_file() or not (directory / "training.safetensors").is_file():
        raise MissingFile(
            f"{directory}: no training.json with training.safetensors, expected the training state of a run's checkpoint; "
            "a checkpoint that came without one can be fine-tuned, not resumed"
        )
    progress = read_json(directory / "training.json")
    n_steps = Entries(progress, str(directory / "training.json")).integer("n_steps")
    moments = _read_moments(directory / "training.safetensors", trainer.optimizer)
    load_weights(trainer.model, directory)
    trainer.optimizer.load_state_dict({"n_steps": n_steps, **moments})
    trainer.load_state_dict(progress, str(directory / "training.json"), other_data=other_data)
    return progress


def _read_moments(path: Path, optimizer: AdamW) -> dict[str, dict[str, Any]]:
    """AdamW's moments as `AdamW.load_state_dict` takes them. Raises ValueError, before any is read, if they are another model's."""
    stored, state = read_safetensors_header(path), optimizer.state_dict()
    wanted = {f"{key}.{name}": a for key in ("m", "v") for name, a in state[key].items()}
    differ = sorted(stored.keys() ^ wanted.keys())
    differ += [name for name, a in wanted.items() if name in stored and (stored[name].shape != a.shape or stored[name].dtype != "F32")]
    if differ:
        raise InvalidInput(
            f"{path}: {differ[0]} is on one side only or of another shape or dtype, as are {len(differ) - 1} more, expected the moments of "
            "the parameters that are trained now; is it another model's file, or are others frozen?"
        )
    moments: dict[str, dict[str, Any]] = {"m": {}, "v": {}}
    for name, a in wanted.items():
        host = np.empty(a.shape, dtype=np.float32)
        read_into(stored[name], host)
        moments[name[0]][name[2:]] = host
    return moments


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        durable.disk().sync(descriptor)
    finally:
        os.close(descriptor)
