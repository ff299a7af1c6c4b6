"""What a run's directory holds and where; which of its checkpoints are intact; which run is the newest.

    run/                        config.json, metrics.jsonl, loss.png, samples.txt; lock, while a process writes here
    run/checkpoints/step-00000100/
        config.json             the model's shape under the keys of its family (GPT-2's, Llama's, ...)
        model.safetensors       weights under that family's names
        vocab.json, merges.txt  the tokenizer (or tokenizer.json), perhaps with additional_chat_templates/
        training.safetensors    the optimizer's moments
        training.json           step, best loss, random streams, position in the data
        manifest.json           size and sha256 of each of these files
    run/checkpoints/last, best  one line each: the name of a checkpoint

No pickle anywhere. A checkpoint appears by the rename of a finished, fsynced directory to a new name, and a pointer by
`os.replace`, so at every instant the last good one is intact (`tinygpt.storage.durable`; what was tried on it: docs/reliability.md).
"""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.storage.checked_json import Json, read_json_object
from tinygpt.storage.durable import Lock, read_digest
from tinygpt.storage.safetensors import TEMPLATE_FOLDER
from tinygpt.weights.config_json import ENCODER, LANGUAGE_MODEL, architecture_of
from tinygpt.weights.hub import has_weights

RUNS = Path("runs")  # below it new runs are made, and looked for
ELSEWHERE = "elsewhere.txt"  # in it: the runs that were made in other directories, a path per line

_NAME = re.compile(r"step-(\d+)(?:-(\d+))?")  # the second number: the same step, reached once more after a crash or a rollback


def list_checkpoints(run: Path) -> list[Path]:
    """The checkpoint directories of a run, oldest step first."""
    return sorted((p for p in (run / "checkpoints").glob("step-*") if _NAME.fullmatch(p.name)), key=step_and_repeat)


def step_and_repeat(directory: Path) -> tuple[int, ...]:
    """The numbers of a checkpoint's name."""
    return tuple(map(int, directory.name.split("-")[1:]))


def read_pointer(run: Path, which: str) -> str:
    """The checkpoint's name in a pointer file; empty if there is none. A name with anything else in it counts as none."""
    path = run / "checkpoints" / which
    name = path.read_bytes()[:100].decode("utf-8", errors="replace").strip() if path.is_file() else ""
    return name if _NAME.fullmatch(name) else ""


def integrity_errors(directory: Path) -> list[str]:
    """What is wrong with a checkpoint's files, by its manifest: missing, of another size, or of another sha256. Empty: intact. A directory
    without a manifest (another program's) passes if it has weights."""
    if not directory.is_dir():
        return ["missing, though a pointer names it"]
    manifest = directory / "manifest.json"
    if not manifest.is_file():
        return [] if has_weights(directory) else ["holds no model.safetensors"]
    try:
        listed = read_json_object(manifest).get("files")
    except (ValueError, OSError) as error:
        return [str(error)]
    if not isinstance(listed, dict) or not listed:
        return [f"{manifest}: no list of files, expected one; the checkpoint is damaged"]
    found = []
    for name, entry in listed.items():
        path = directory / name
        n_bytes, sha256 = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
        folder, _, file = name.rpartition("/")
        if folder not in ("", TEMPLATE_FOLDER) or Path(file).name != file or type(n_bytes) is not int or type(sha256) is not str:
            rule = "the name of a file next to it, with bytes, an integer, and sha256; the checkpoint is damaged"
            found.append(f"{manifest}: {name!r}: {entry!r:.100}, expected {rule}")
        elif not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != n_bytes:
            found.append(f"{name} has {path.stat().st_size} bytes, expected {n_bytes}")
        elif read_digest(path).sha256 != sha256:
            found.append(f"{name} is damaged: its sha256 is not the one in manifest.json")
    return found


def verify_integrity(directory: Path) -> None:
    """Raises ValueError, naming the file, if a checkpoint is damaged."""
    found = integrity_errors(directory)
    if found:
        raise InvalidInput(f"{directory}: {'; '.join(found)}, expected the files as they were saved; use another checkpoint of the run")


def is_pretraining_run(run: Path) -> bool:
    """Whether a directory is a run of pretraining: fine-tunings note the model that they started from."""
    settings = run / "config.json"
    return (run / "checkpoints").is_dir() and not (settings.is_file() and "base" in read_json_object(settings))


def status(run: Path) -> str:
    """How a run stands, for a person: "finished", "stopped early", "interrupted at step 5 of 9", "diverged after step 5", "in progress"."""
    ended = _ended(run)
    if ended in ("finished", "stopped early") or (run / "report.txt").is_file():
        return ended or "finished"
    progress: dict[str, Json] = {}
    with contextlib.suppress(ValueError, OSError):
        progress = read_json_object(run / "checkpoints" / read_pointer(run, "last") / "training.json")
    step, steps = progress.get("step"), (progress.get("train") or {}).get("steps")
    if steps is None or step == steps:
        return "finished"
    try:
        with Lock(run):  # does nothing where this process holds it
            pass
    except BlockingIOError:
        return f"in progress, step {step} of {steps}"
    except OSError:  # a directory that cannot be written to: nobody trains in it
        pass
    return f"diverged after step {step} of {steps}" if ended == "diverged" else f"interrupted at step {step} of {steps}"


def newest_run(
    below: str | Path = RUNS, architecture: str = LANGUAGE_MODEL,
    accept: Callable[[Path], bool] = lambda run: True, note: Callable[[str], None] = print,
) -> Path:  # fmt: skip
    """The run whose last checkpoint is the newest, among those of one architecture (as config.json names it), wherever it was made.

    A run that was interrupted, diverged or is in progress is taken only where no finished one is left; `note` is told of it. `accept` says
    of a run's directory whether it may be chosen. Raises FileNotFoundError, saying what to do, if there is none.
    """
    runs = [run for run in _every_run(Path(below)) if _holds(run, architecture) and accept(run)]
    runs.sort(key=lambda run: (run / "checkpoints" / "last").stat().st_mtime, reverse=True)
    if not runs:
        script = "examples/pretrain_encoder.py" if architecture == ENCODER else "examples/pretrain.py"
        raise MissingFile(f"{below}: no run with a checkpoint, expected one; train first: python {script}")
    chosen = next((run for run in runs if status(run) in ("finished", "stopped early")), runs[0])
    if chosen != runs[0]:
        note(f"note       {runs[0]} is newer but {status(runs[0])}; to take it: --run {runs[0]}")
    return chosen


def remember(run: Path) -> None:
    """Notes a run that is made in another directory than runs/ or the working one, so that `newest_run` finds it."""
    if run.resolve().parent not in (RUNS.resolve(), Path.cwd()) and run.resolve() not in _elsewhere(RUNS):
        with contextlib.suppress(OSError):  # where nothing can be written, --run has to name it
            RUNS.mkdir(exist_ok=True)
            with (RUNS / ELSEWHERE).open("a", encoding="utf-8") as file:
                file.write(f"{run.resolve()}\n")


def _elsewhere(below: Path) -> list[Path]:
    path = below / ELSEWHERE
    return [Path(line) for line in path.read_text(encoding="utf-8").splitlines() if line] if path.is_file() else []


def _every_run(below: Path) -> Iterator[Path]:
    """Every run with a checkpoint: in `below`, in the directory that holds it, and those that `remember` noted."""
    for folder in (below, below.parent):
        yield from (path.parent.parent for path in folder.glob("*/checkpoints/last"))
    yield from (run for run in _elsewhere(below) if (run / "checkpoints" / "last").is_file())


def _holds(run: Path, architecture: str) -> bool:
    path = run / "checkpoints" / read_pointer(run, "last") / "config.json"
    with contextlib.suppress(ValueError):  # a damaged run is none to start from
        return path.is_file() and architecture_of(read_json_object(path)) == architecture
    return False


def _ended(run: Path) -> str:
    """How training ended, by the last lines of metrics.jsonl, as far as they can be read; empty where they do not say."""
    path = run / "metrics.jsonl"
    for line in reversed(path.read_bytes()[-4096:].splitlines() if path.is_file() else []):
        with contextlib.suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and "ended" in values:
                return str(values["ended"])
    return ""
