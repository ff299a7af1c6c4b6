"""Checks a run directory, or a single checkpoint, and prints what it finds.

    python -m tinygpt verify runs/docs-001

For each checkpoint: files against the sizes and sha256 in its manifest, weights against the shape in config.json, every number
finite, the tokenizer, and whether training can resume from it. Exit code 0 if `last` and `best` are OK, 1 if not.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tinygpt.arguments import command_parser, expand_home
from tinygpt.config import GPTConfig
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.layout import integrity_errors, list_checkpoints, read_pointer, status
from tinygpt.storage.checked_json import Entries, read_json_object
from tinygpt.storage.durable import PARTIAL, Lock
from tinygpt.storage.safetensors import StoredTensor, read_chunks, read_safetensors_header
from tinygpt.weights.hub import has_weights

ERRORS = (ValueError, TypeError, OSError)


def check_checkpoint(directory: Path) -> list[str]:
    """What is wrong with one checkpoint directory; empty if nothing is."""
    found = integrity_errors(directory)
    if found:
        return found
    try:
        checkpoint = Checkpoint(directory)
        config, n = checkpoint.config, checkpoint.stored.n_weights
        described = config.n_parameters()
        if isinstance(config, GPTConfig) and not config.qkv_bias:
            described += config.n_layer * 3 * config.n_embd  # the format always has biases
        if n != described:
            found.append(f"model.safetensors holds {n:,} weights, config.json describes {described:,}")
        found += not_finite(checkpoint.stored.tensors)
        checkpoint.tokenizer()
    except ERRORS as error:
        found.append(str(error))
    return found + not_resumable(directory)


def not_finite(tensors: dict[str, StoredTensor]) -> list[str]:
    """Names the tensors that hold numbers that are not finite; reads them piece by piece."""
    bad = {name: sum(int((~np.isfinite(numbers)).sum()) for numbers in read_chunks(tensor)) for name, tensor in tensors.items()}
    return [f"{name} holds {n:,} numbers that are not finite" for name, n in bad.items() if n]


def _state_of(optimizer: str, name: str, m: StoredTensor | None) -> str:
    """The arrays of the optimizer's state for a parameter, a letter each. Muon has no v for what it updates itself: the blocks' matrices."""
    matrix = m is not None and len(m.shape) == 2 and ".h." in f".{name}"
    return "m" if optimizer == "sgd" or (optimizer == "muon" and matrix) else "mv"


def not_resumable(directory: Path) -> list[str]:
    """Why training cannot resume from here; empty if it can."""
    state, moments = directory / "training.json", directory / "training.safetensors"
    if not (state.is_file() and moments.is_file()):
        return ["cannot be resumed: no training.json with training.safetensors (it can be used and fine-tuned)"]
    try:
        entry = Entries(read_json_object(state), str(state))
        for keys in (("step",), ("n_steps",), ("tokens_seen",), ("streams", "data_order", "batches_drawn"), ("streams", "dropout", "draw")):
            entry.integer(*keys)
        held = read_safetensors_header(moments)
        names = {name[2:] for name in held if not name.startswith("w.")}
        optimizer = entry.text("train", "optimizer", default="adamw")  # the only one of earlier versions
        wanted = [f"{key}.{name}" for name in sorted(names) for key in _state_of(optimizer, name, held.get(f"m.{name}"))]
        lacking = [name for name in wanted if name not in held]
        if lacking:
            return [f"cannot be resumed: {moments.name} lacks {lacking[0]} and {len(lacking) - 1} more"]
        return not_finite(held)
    except ERRORS as error:
        return [f"cannot be resumed: {error}"]


def verify(path: Path) -> Iterator[tuple[bool, str]]:
    """(all well, a line to print) for all there is to say about a run, or about a checkpoint by itself."""
    checkpoints = [path] if has_weights(path) else list_checkpoints(path)
    if not checkpoints:
        yield False, f"{path}: no checkpoint, expected a run or a checkpoint; check the path"
        return
    named = {} if has_weights(path) else {which: read_pointer(path, which) for which in ("last", "best")}
    for directory in checkpoints:
        found, roles = check_checkpoint(directory), ", ".join(which for which, name in named.items() if name == directory.name)
        title = directory.name + (f" ({roles})" if roles else "") if named else str(path)
        yield not found or bool(named and not roles), f"{title}: {'; '.join(found) or 'intact, finite, resumable'}"
    if not named:
        return
    for which, name in named.items():
        if name not in {directory.name for directory in checkpoints}:
            yield which == "best" and not name, f"{which}: names {name or 'nothing'}, expected one of the checkpoints above"
    unfinished = [p.name for place in (path, path / "checkpoints") for p in place.glob(PARTIAL + "*")]
    if unfinished:
        yield True, f"{len(unfinished)} unfinished files of an interrupted save, which --resume removes: {', '.join(unfinished[:3])}"
    yield True, f"run: {status(path)}"
    metrics = path / "metrics.jsonl"
    if metrics.is_file():
        lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines()
        bad = 0
        for line in lines:
            try:
                json.loads(line)
            except (ValueError, RecursionError):
                bad += 1
        yield True, f"metrics.jsonl: {len(lines):,} lines" + (f", {bad} of them cut short or damaged (--resume drops them)" if bad else "")
    try:
        with Lock(path):
            pass
    except OSError as error:
        yield True, str(error).split(", expected")[0] if isinstance(error, BlockingIOError) else f"lock: {error}"


def main(argv: list[str] | None = None) -> int:
    """Prints what `verify` says; the exit code."""
    parser = command_parser("verify", __doc__)
    parser.add_argument("run", help="a run or checkpoint directory")
    path = expand_home(parser.parse_args(argv).run)
    failed = 0
    for fine, line in verify(Path(path)):
        failed |= not fine
        print(("" if fine else "BAD  ") + line)
    print("FAILED" if failed else "OK")
    return failed
