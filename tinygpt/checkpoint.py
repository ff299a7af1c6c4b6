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

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from autograd import backend
from autograd.optim import AdamW
from tinygpt.config import GPTConfig
from tinygpt.model import GPT
from tinygpt.tokenizer import Tokenizer, load_tokenizer

LANGUAGE_MODEL, CLASSIFIER = "GPT2LMHeadModel", "GPT2ForSequenceClassification"  # architectures, by Hugging Face's names

# Weights ------------------------------------------------------------------------------------------------------------------


def save_pretrained(model: Any, directory: str | Path, tokenizer: Tokenizer | None = None, extra: dict[str, Any] | None = None) -> None:
    """Writes config.json, model.safetensors and, if given, the tokenizer's files into `directory` (made if need be).

    model   a GPT, or a module that holds one and has its `config`
    extra   more keys for config.json; they win over GPT-2's own
    """
    from safetensors.numpy import save_file

    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: np.ascontiguousarray(backend.to_host(p.data)) for name, p in model.named_parameters()}
    if not model.config.qkv_bias:  # GPT-2's format always has this bias
        for name in [name for name in weights if name.endswith(".attn.c_attn.weight")]:
            weights[name.removesuffix("weight") + "bias"] = np.zeros(3 * model.config.n_embd, dtype=np.float32)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    _write_json(directory / "config.json", gpt2_config(model.config, tokenizer) | (extra or {}))
    if tokenizer is not None:
        tokenizer.save(directory)


def load_weights(model: Any, directory: str | Path) -> None:
    """Reads model.safetensors into the model's parameters.

    Raises ValueError that lists missing, unexpected and wrongly shaped tensors together, FileNotFoundError without weights.
    """
    from safetensors.numpy import load_file

    path = Path(directory) / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{directory}: no model.safetensors, expected a checkpoint directory; pass one that save_pretrained wrote")
    found = load_file(path)
    if not model.config.qkv_bias:
        found = {name: array for name, array in found.items() if not name.endswith(".attn.c_attn.bias")}
    wanted = dict(model.named_parameters())
    problems = [f"missing {name} {p.shape}" for name, p in wanted.items() if name not in found]
    problems += [f"unexpected {name} {array.shape}" for name, array in found.items() if name not in wanted]
    problems += [
        f"{name} of shape {found[name].shape} instead of {p.shape}"
        for name, p in wanted.items()
        if name in found and found[name].shape != p.shape
    ]
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}, expected the tensors of {model.config}; is it another model's file?")
    for name, p in wanted.items():
        p.data[...] = backend.to_device(found[name].astype(p.dtype, copy=False))


def gpt2_config(config: GPTConfig, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """The model's shape under the keys of GPT-2's config.json."""
    fields = dataclasses.asdict(config)
    p = fields.pop("dropout")
    eos = None if tokenizer is None else tokenizer.eos_id
    return {
        "model_type": "gpt2",
        "architectures": [LANGUAGE_MODEL],
        "activation_function": "gelu_new",
        **fields,
        **{"resid_pdrop": p, "embd_pdrop": p, "attn_pdrop": p},
        **{"bos_token_id": eos, "eos_token_id": eos},
    }


def load_config(directory: str | Path) -> GPTConfig:
    """The shape in a checkpoint's config.json. Raises ValueError for another architecture than GPT-2's."""
    path = Path(directory) / "config.json"
    fields = read_json(path)
    if fields.get("model_type") != "gpt2":
        raise ValueError(f"{path}: model_type {fields.get('model_type')!r}, expected 'gpt2'; only GPT-2's architecture is supported")
    known = {f.name for f in dataclasses.fields(GPTConfig)}
    kept = {key: value for key, value in fields.items() if key in known}
    return GPTConfig(dropout=float(fields.get("resid_pdrop", 0.0)), **kept)


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


def newest_run(below: str | Path = "runs", architecture: str = LANGUAGE_MODEL, accept: Callable[[Path], bool] = lambda run: True) -> Path:
    """The run below `below` whose last checkpoint is the newest, among those of one architecture (as config.json names it).

    accept   says of a run's directory whether it may be chosen
    Raises FileNotFoundError, saying what to do, if there is none.
    """
    pointers = sorted(Path(below).glob("*/checkpoints/last"), key=lambda p: p.stat().st_mtime)
    pointers = [
        p
        for p in pointers
        if architecture in read_json(checkpoint_directory(p.parent.parent, "last") / "config.json").get("architectures", [])
        and accept(p.parent.parent)
    ]
    if not pointers:
        raise FileNotFoundError(f"{below}: no run with a checkpoint, expected one; train first: python examples/pretrain.py")
    return pointers[-1].parent.parent


def checkpoint_directory(path: str | Path, which: str = "best") -> Path:
    """The checkpoint directory meant by `path`: itself if it holds weights, else the `best` or `last` one of that run."""
    path = Path(path)
    if (path / "model.safetensors").is_file():
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
    if CLASSIFIER in read_json(directory / "config.json").get("architectures", []):
        raise ValueError(f"{directory}: a classifier, expected a language model; load it with GPTClassifier.from_pretrained")
    model = GPT.from_pretrained(directory)
    return model, tokenizer_of(directory, model.config)


def tokenizer_of(directory: Path, config: GPTConfig) -> Tokenizer:
    """A checkpoint's tokenizer. Raises ValueError if it has another number of tokens than the model."""
    tokenizer = load_tokenizer(directory)
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
        _write_json(directory / "training.json", {"n_steps": state["n_steps"], **progress})

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


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8", newline="\n")


def read_json(path: Path) -> dict[str, Any]:
    """A checkpoint's JSON file. Raises FileNotFoundError without one, ValueError, naming the file, if it holds no JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected one of a checkpoint; pass a directory that save_pretrained wrote")
    with _named(path):
        value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON {type(value).__name__}, expected an object; is it the right file?")
    return value


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}, expected valid JSON in UTF-8; restore the file") from error
