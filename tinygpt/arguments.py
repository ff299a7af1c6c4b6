"""What the commands need of a command line before anything else is imported."""

import argparse
import dataclasses
import os
import sys
import typing
from collections.abc import Iterator

from tinygpt.fields import PATH, Config


def command_parser(command: str, description: str | None) -> argparse.ArgumentParser:
    """For commands without a dataclass: `python -m tinygpt COMMAND`, with the module's docstring as its help."""
    as_it_is = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(prog=f"python -m tinygpt {command}", description=description, formatter_class=as_it_is)


def expand_home(path: str) -> str:
    """`path` with a leading ~ or ~user as that home directory: a shell leaves it as it is after "=" and in quotes. An unknown user stays."""
    return os.path.expanduser(path)  # noqa: PTH111 (Path.expanduser raises where a user is unknown)


def parse_args(default: Config, description: str | None, argv: list[str] | None = None, prog: str | None = None) -> Config:
    """Reads the command line into a copy of the dataclass `default`; nested fields become plain flags, `~` in paths is expanded.

    An unknown flag ends the program with exit code 2 and a suggestion, --help with a list of all flags and defaults.
    """
    import tyro

    argv = sys.argv[1:] if argv is None else argv
    flags = {"--" + name.replace("_", "-") for name in _field_names(default)}
    for argument in argv:
        given = argument.partition("=")[0]
        plain = "--" + given.rpartition(".")[2].lstrip("-").lower().replace("_", "-")
        if given.startswith("-") and plain in flags and given.replace("_", "-") not in flags:  # --train.steps, -steps, --Steps
            print(f"error: {given}: no such flag, expected one that --help lists; did you mean {plain}?", file=sys.stderr)
            sys.exit(2)
    flat = (tyro.conf.OmitArgPrefixes,)
    return _expand_paths(tyro.cli(type(default), args=argv, default=default, description=description, prog=prog, config=flat))


def _field_names(config: Config) -> Iterator[str]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        yield from _field_names(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else [field.name]


def _expand_paths(config: Config) -> Config:
    changed: dict[str, object] = {}
    for name, kind in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changed[name] = _expand_paths(value)
        elif any(PATH in getattr(k, "__metadata__", ()) for k in (kind, *typing.get_args(kind))):  # a path, or several
            changed[name] = tuple(map(expand_home, value)) if isinstance(value, tuple) else expand_home(value)
    return dataclasses.replace(config, **changed) if changed else config
