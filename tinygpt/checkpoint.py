"""Checkpoints and run directories. A checkpoint is a Hugging Face GPT-2 directory; a run is a directory of checkpoints and logs.

    run/                        config.json, metrics.jsonl, loss.png, samples.txt
    run/checkpoints/step-00000100/
        config.json             the model's shape under GPT-2's keys
        model.safetensors       weights under GPT-2's names
        vocab.json, merges.txt  the tokenizer (or tokenizer.json)
        training.safetensors    the optimizer's moments
        training.json           step, best loss, random streams, position in the data
    run/checkpoints/last, best  one line each: the name of a checkpoint

No pickle anywhere. A checkpoint appears by the rename of a finished, fsynced directory to a new name, and a pointer by
`os.replace`, so at every instant the last good one is whole.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from autograd import backend
from autograd.optim import AdamW
from tinygpt.config import GPTConfig
from tinygpt.model import GPT
from tinygpt.tokenizer import Tokenizer, gpt2_tokenizer, load_tokenizer
from tinygpt.weights import CLASSIFIER, HUB_NAMES, LANGUAGE_MODEL, has_weights, locate, read_json, write_json

# Runs ---------------------------------------------------------------------------------------------------------------------


def new_run(directory: str | Path | None, name: str) -> Path:
    """Makes a run's directory: the one asked for, or the next free `runs/<name>-001`.

    Raises FileExistsError if the directory already holds a run, so that nothing is overwritten.
    """
    if not directory:
        taken = [int(p.name.rpartition("-")[2]) for p in Path("runs").glob(f"{name}-[0-9][0-9][0-9]")]
        directory = Path("runs") / f"{name}-{max(taken, default=0) + 1:03d}"
    path = Path(directory)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path}: already holds a run (or other files), expected a new or empty directory; choose another --run")
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    return path


def newest_run(below: str | Path = "runs", architecture: str = LANGUAGE_MODEL) -> Path:
    """The run below `below` whose last checkpoint is the newest, among those of one architecture (as config.json names it).

    Raises FileNotFoundError, saying what to do, if there is none.
    """
    pointers = sorted(Path(below).glob("*/checkpoints/last"), key=lambda p: p.stat().st_mtime)
    pointers = [
        p
        for p in pointers
        if architecture in read_json(checkpoint_directory(p.parent.parent, "last") / "config.json").get("architectures", [])
    ]
    if not pointers:
        raise FileNotFoundError(f"{below}: no run with a checkpoint, expected one; train first: python examples/pretrain.py")
    return pointers[-1].parent.parent


def checkpoint_directory(path: str | Path, which: str = "best") -> Path:
    """The checkpoint meant by `path`: itself if it holds weights, else the `best` or `last` one of that run.

    GPT-2's names on Hugging Face's hub (gpt2, gpt2-medium, ...) are fetched where nothing on this machine has that name.
    """
    path = locate(path) if str(path) in HUB_NAMES else Path(path)
    if has_weights(path):
        return path
    for pointer in (path / "checkpoints" / which, path / "checkpoints" / "last"):
        if pointer.is_file():
            return pointer.parent / pointer.read_text(encoding="utf-8").strip()
    raise FileNotFoundError(
        f"{path}: neither a checkpoint nor a run with one, expected model.safetensors or checkpoints/last; check the path"
    )


def load(path: str | Path, which: str = "best") -> tuple[GPT, Tokenizer]:
    """Model and tokenizer of a checkpoint directory, or of a run's `best` or `last` checkpoint.

    Raises ValueError if the tokenizer has another number of tokens than the model.
    """
    directory = checkpoint_directory(path, which)
    if directory.is_dir() and CLASSIFIER in read_json(directory / "config.json").get("architectures", []):
        raise ValueError(f"{directory}: a classifier, expected a language model; load it with GPTClassifier.from_pretrained")
    model = GPT.from_pretrained(directory)
    return model, tokenizer_of(directory, model.config)


def tokenizer_of(directory: Path, config: GPTConfig) -> Tokenizer:
    """A checkpoint's tokenizer (GPT-2's for llm.c's files). Raises ValueError if it has another number of tokens than the model."""
    tokenizer = load_tokenizer(directory) if directory.is_dir() else gpt2_tokenizer()
    if tokenizer.n_vocab != config.vocab_size:
        raise ValueError(
            f"{directory}: a tokenizer of {tokenizer.n_vocab} tokens, expected {config.vocab_size}, the model's vocabulary; "
            "are its files another model's?"
        )
    return tokenizer


def save_checkpoint(
    run: Path, step: int, model: Any, optimizer: AdamW, tokenizer: Tokenizer, progress: dict[str, Any], *, best: bool
) -> Path:
    """Adds `checkpoints/step-...` to a run and points `last` (and `best`) at it; older ones that nothing points at are deleted.

    progress   JSON: whatever the training loop needs to go on (step, best loss, draws of the random streams, ...)
    """
    checkpoints = run / "checkpoints"
    name = f"step-{step:08d}"

    def write(directory: Path) -> None:
        from safetensors.numpy import save_file

        model.save_pretrained(directory, tokenizer)
        state = optimizer.state()
        moments = {f"{key}.{n}": np.ascontiguousarray(backend.to_host(a)) for key in ("m", "v") for n, a in state[key].items()}
        save_file(moments, directory / "training.safetensors")
        write_json(directory / "training.json", {"n_steps": state["n_steps"], **progress})

    if not (checkpoints / name).exists():
        _write_directory(checkpoints / name, write)
    for pointer in ("last", "best") if best else ("last",):
        _write_text(checkpoints / pointer, name + "\n")
    kept = {p.read_text(encoding="utf-8").strip() for p in (checkpoints / "last", checkpoints / "best") if p.is_file()}
    for old in checkpoints.glob("step-*"):
        if old.name not in kept:
            shutil.rmtree(old)
    return checkpoints / name


def _write_directory(final: Path, write: Callable[[Path], None]) -> None:
    """Fills a temporary directory beside `final`, makes it durable, and renames it: a crash leaves all of it or nothing."""
    temporary = Path(tempfile.mkdtemp(prefix=".partial-", dir=final.parent))
    try:
        write(temporary)
        for path in temporary.iterdir():
            _sync(path)
        _sync(temporary)
        temporary.chmod(0o755)  # mkdtemp makes it private
        temporary.rename(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(final.parent)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Makes a file or directory durable. Windows cannot open directories: there the rename alone has to do."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
