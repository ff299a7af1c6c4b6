"""Settings of a run that is resumed: which come from it, which may change, and what has to be the same.

A field of a settings dataclass says itself what resuming may do to it: `field(metadata={"resume": "free"})` may change, "override" may
change with --override, all others are fixed.
"""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.fields import Config, Settings, from_dict
from tinygpt.storage.checked_json import Json, read_json_object
from tinygpt.training.metrics import environment

_WHERE = ("run", "resume", "override")  # settings that are not the run's


def stored_settings(kind: type[Config], run: str | Path) -> Config:
    """The settings that a run began with, or was last resumed with, as the dataclass `kind` of its script. Raises FileNotFoundError without
    config.json, ValueError for a run of another script and for a file that holds other things."""
    path = Path(run).expanduser() / "config.json"
    if not path.is_file():
        raise MissingFile(f"{run}: no config.json, expected the directory of a run; check the path")
    fields = read_json_object(path)
    known = {field.name for field in dataclasses.fields(kind)}
    # Before a config.json named its script, a fine-tuning had a base, and a classifier labels.
    before = "examples/finetune_classifier.py" if "labels" in fields else "examples/finetune_instructions.py"
    script, wanted = fields.get("script", before if "base" in fields else "examples/pretrain.py"), getattr(kind, "script", "")
    try:
        if script != wanted:
            raise InvalidInput(f"a run of {script}, expected one of {wanted}")
        return _build(kind, {key: value for key, value in fields.items() if key in known})
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: {error}, expected the settings of a run of this script; use the run's own script") from error


def _build(kind: type[Config], fields: dict[str, Json]) -> Config:
    values, hints = dict(fields), typing.get_type_hints(kind)
    for name, value in fields.items():
        if dataclasses.is_dataclass(hints.get(name)):
            values[name] = _build(hints[name], dict(value))
        elif isinstance(value, list):
            values[name] = tuple(value)
    return from_dict(kind, values)


def check_changes(stored: Settings, wanted: Settings) -> None:
    """Raises ValueError if `wanted` differs from `stored` in what resuming may not change."""
    before = {name: value for name, value, _ in flat_settings(stored)}
    override, refused = getattr(wanted, "override", False), []
    for name, value, rule in flat_settings(wanted):
        if value == before[name] or rule == "free" or (override and rule == "override"):
            continue
        flag = "--" + name.replace("_", "-")
        refused.append(f"{flag} {value!r}, expected {before[name]!r} as in the run" + (" (or --override)" if rule == "override" else ""))
    if refused:
        rules = [(name, rule) for name, _, rule in flat_settings(wanted) if name not in _WHERE]
        free, with_override = (", ".join(name for name, r in rules if r == rule) for rule in ("free", "override"))
        fix = f"leave the flag out. May change freely: {free}; with --override: {with_override}; for anything else start a new run"
        raise InvalidInput(f"resume: {'; '.join(refused)}; {fix}")


def flat_settings(settings: Settings) -> Iterator[tuple[str, Json, str]]:
    """(name, value, rule) of every setting, those of nested dataclasses too."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from flat_settings(value)
        else:
            yield field.name, value, _rule(type(settings), field.name)


def _rule(kind: type, name: str) -> str:
    """What the field's metadata says, or that of the field which it overrides."""
    fields = (parent.__dataclass_fields__.get(name) for parent in kind.__mro__ if dataclasses.is_dataclass(parent))
    return next((field.metadata["resume"] for field in fields if field is not None and "resume" in field.metadata), "fixed")


def check_data(training: dict[str, Json], key: str, fingerprint: str, what: str, *, override: bool) -> None:
    """Raises ValueError, naming `what`, if its fingerprint is not the one of `key` in training.json, unless `override` allows that."""
    found = training.get(key)
    if found is not None and found != fingerprint and not override:
        why = "the text has changed since (the default corpus changes with the versions of NumPy and Python)"
        rule = f"{str(found)[:12]} as when the run began; {why}: restore it, or accept it with --override"
        raise InvalidInput(f"{what}: sha256 {fingerprint[:12]}, expected {rule}")


def environment_changes(training: dict[str, Json], processes: int) -> str:
    """How this environment, with this number of processes, differs from that of the checkpoint in what the bits depend on; or empty."""
    before = training.get("environment")
    if not isinstance(before, dict):
        return ""
    return "; ".join(f"{key} {now} (was {before[key]})" for key, now in environment(processes).items() if before.get(key, now) != now)
