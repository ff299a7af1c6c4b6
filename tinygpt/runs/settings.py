"""Settings of a run that is resumed: which come from it, which may change, and what has to be the same.

A field of a settings dataclass says itself what resuming may do to it: `field(metadata={"resume": "free"})` may change, "override" may
change with --override, all others are fixed.
"""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from tinygpt.config import GPTConfig, from_dict
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.storage.checked_json import read_json_object
from tinygpt.training.metrics import environment

Settings = TypeVar("Settings")


def stored_settings(kind: type[Settings], run: str | Path) -> Settings:
    """The settings that a run began with, or was last resumed with, as the dataclass `kind` of its script.

    Raises FileNotFoundError without config.json, ValueError for a run of another script and for a file that holds other things.
    """
    path = Path(run).expanduser() / "config.json"
    if not path.is_file():
        raise MissingFile(f"{run}: no config.json, expected the directory of a run; check the path")
    fields = read_json_object(path)
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    try:
        script = _script_of(fields)
        if script != kind.script:  # type: ignore[attr-defined]
            raise InvalidInput(f"a run of {script}, expected one of {kind.script}")  # type: ignore[attr-defined]
        settings: Settings = _build(kind, {key: value for key, value in fields.items() if key in known})
        return settings
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: {error}, expected the settings of a run of this script; use the run's own script") from error


def _script_of(fields: dict[str, Any]) -> str:
    """The script that wrote a config.json. Before it was noted there, a fine-tuning had a base, and a classifier labels."""
    before = "examples/finetune_classifier.py" if "labels" in fields else "examples/finetune_instructions.py"
    return str(fields.get("script", before if "base" in fields else "examples/pretrain.py"))


def _build(kind: Any, fields: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    values = dict(fields)
    for name, value in fields.items():
        if dataclasses.is_dataclass(hints.get(name)):
            values[name] = GPTConfig.from_dict(value) if hints[name] is GPTConfig else _build(hints[name], dict(value))
        elif isinstance(value, list):
            values[name] = tuple(value)
    return from_dict(kind, values)


def check_changes(stored: Any, wanted: Any) -> None:
    """Raises ValueError if `wanted` differs from `stored` in what resuming may not change."""
    before = {name: value for name, value, _ in flat_settings(stored)}
    refused = []
    for name, value, rule in flat_settings(wanted):
        if value == before[name] or rule == "free" or (wanted.override and rule == "override"):
            continue
        flag = "--" + name.replace("_", "-")
        refused.append(f"{flag} {value!r}, expected {before[name]!r} as in the run" + (" (or --override)" if rule == "override" else ""))
    if refused:
        by_rule = {
            rule: [name for name, _, r in flat_settings(wanted) if r == rule and name not in _WHERE] for rule in ("free", "override")
        }
        raise InvalidInput(
            f"resume: {'; '.join(refused)}; leave the flag out. May change freely: {', '.join(by_rule['free'])}; "
            f"with --override: {', '.join(by_rule['override'])}; for anything else start a new run"
        )


_WHERE = ("run", "resume", "override")


def flat_settings(settings: Any) -> Iterator[tuple[str, Any, str]]:
    """(name, value, rule) of every setting, those of nested dataclasses too."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from flat_settings(value)
        else:
            yield field.name, value, _rule(type(settings), field.name)


def _rule(kind: type, name: str) -> str:
    """What the field's metadata says, or that of the field which it overrides."""
    fields = (parent.__dataclass_fields__.get(name) for parent in kind.__mro__ if dataclasses.is_dataclass(parent))
    return next((field.metadata["resume"] for field in fields if field is not None and "resume" in field.metadata), "fixed")


def check_data(training: dict[str, Any], key: str, fingerprint: str, what: str, *, override: bool) -> None:
    """Raises ValueError if the data is not what the run has learned from so far, unless --override says that it may differ.

    training   what the checkpoint's training.json holds; `key` names the fingerprint in it
    what       the data, for the message
    """
    found = training.get(key)
    if found is not None and found != fingerprint and not override:
        raise InvalidInput(
            f"{what}: sha256 {fingerprint[:12]}, expected {str(found)[:12]} as when the run began; the text has changed since (the default "
            "corpus changes with the versions of NumPy and Python): restore it, or accept it with --override"
        )


def environment_changes(training: dict[str, Any], processes: int) -> str:
    """How this environment, with this number of processes, differs from that of the checkpoint in what the bits depend on; or empty."""
    before = training.get("environment")
    if not isinstance(before, dict):
        return ""
    return "; ".join(f"{key} {now} (was {before[key]})" for key, now in environment(processes).items() if before.get(key, now) != now)
