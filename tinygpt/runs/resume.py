"""Going on with a run: which settings come from it, which may change, and what has to be the same.

config = settings(PretrainConfig(...), __doc__)       # the command line; with --resume RUN the run's own settings are the defaults
start = starting_point(config)                        # the newest whole checkpoint, or None
"""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from tinygpt.cli import expand_home, parse_args
from tinygpt.config import GPTConfig, PretrainConfig, TrainConfig, from_dict, may_change
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.runs.checkpoint import checkpoint_directory, list_checkpoints, open_run, read_json
from tinygpt.training.metrics import environment

FREE, WITH_OVERRIDE = may_change(PretrainConfig, "free"), may_change(PretrainConfig, "override")


def settings(default: PretrainConfig, description: str | None, argv: list[str] | None = None) -> PretrainConfig:
    """The command line as settings. With --resume RUN, flags that are not given are the run's own.

    Raises ValueError for a flag that contradicts the run, naming both values and what may change; FileNotFoundError without that run.
    """
    argv = sys.argv[1:] if argv is None else argv
    run = expand_home(_value_of("--resume", argv))
    if not run:
        return parse_args(default, description, argv)
    stored = stored_settings(run)
    config = parse_args(stored, description, argv)
    check_changes(stored, config)
    return config


def stored_settings(run: str | Path) -> PretrainConfig:
    """The settings that a run began with, or was last resumed with. Raises ValueError for a file that holds other things."""
    path = Path(run) / "config.json"
    if not path.is_file():
        raise MissingFile(f"{run}: no config.json, expected the directory of a pretraining run; check the path")
    fields = read_json(path)
    known = {field.name for field in dataclasses.fields(PretrainConfig)}
    plain = {key: value for key, value in fields.items() if key in known}
    try:
        train = dict(plain.pop("train"))
        train["betas"] = tuple(train["betas"])
        model = GPTConfig.from_dict(dict(plain.pop("model")))
        return PretrainConfig(model=model, train=from_dict(TrainConfig, train), **plain)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: {error}, expected the settings of a pretraining run; restore the file") from error


def check_changes(stored: PretrainConfig, wanted: PretrainConfig) -> None:
    """Raises ValueError if `wanted` differs from `stored` in what may not change; see FREE and WITH_OVERRIDE."""
    before, now = _flat(stored), _flat(wanted)
    refused = []
    for name, value in now.items():
        if value == before[name] or name in FREE or (wanted.override and name in WITH_OVERRIDE):
            continue
        flag = "--" + name.replace("_", "-")
        refused.append(f"{flag} {value!r}, expected {before[name]!r} as in the run" + (" (or --override)" if name in WITH_OVERRIDE else ""))
    if refused:
        raise InvalidInput(
            f"resume: {'; '.join(refused)}; leave the flag out. May change freely: {', '.join(may_change(TrainConfig, 'free'))}; "
            f"with --override: {', '.join(WITH_OVERRIDE)}; for anything else start a new run"
        )


def starting_point(config: PretrainConfig) -> tuple[Path, Path | None]:
    """(the run's directory, locked; its last whole checkpoint, or None if it ended before the first one)."""
    run = open_run(config.resume)
    if not list_checkpoints(run):
        print(f"resume     {run} has no checkpoint yet: starting from step 0")
        return run, None
    directory = checkpoint_directory(run, "last")
    return run, directory


def check_data(config: PretrainConfig, training: dict[str, Any], fingerprint: str, where: Path) -> None:
    """Raises ValueError if the data is not what the run has learned from so far, unless --override says that it may differ."""
    found = training.get("corpus_fingerprint")
    if found != fingerprint and not config.override:
        raise InvalidInput(
            f"corpus {config.corpus!r}: sha256 {fingerprint[:12]}, expected {str(found)[:12]} as in {where}; the text has changed since "
            "the run began (the default corpus changes with the versions of NumPy and Python): restore it, or accept it with --override"
        )


def differences(training: dict[str, Any], processes: int) -> str:
    """Where this run on so many processes differs from the one that saved the checkpoint in what bits depend on, in words; empty if nowhere."""
    before = training.get("environment")
    if not isinstance(before, dict):
        return ""
    return "; ".join(f"{key} {now} (was {before.get(key)})" for key, now in environment(processes).items() if before.get(key) != now)


def _flat(config: PretrainConfig) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    return {**fields.pop("model"), **fields.pop("train"), **fields}


def _value_of(flag: str, argv: list[str]) -> str:
    """The value that a flag is given on the command line, before the rest is parsed."""
    for i, argument in enumerate(argv):
        if argument == flag and i + 1 < len(argv):
            return argv[i + 1]
        if match := re.fullmatch(f"{flag}=(.*)", argument):
            return match[1]
    return ""
