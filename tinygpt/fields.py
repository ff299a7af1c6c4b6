"""What every dataclass of settings has in common: where paths stand, what resuming may change, checks of its fields' types.

What resuming a run may change is noted at the field: `FREE` where no update depends on it, or only how many there are; `WITH_OVERRIDE`
where it changes the updates to come, but not what the weights are; nothing where it may not change.
"""

import dataclasses
import math
import typing
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar

from tinygpt.errors import InvalidInput, WrongType, did_you_mean

Json = Any  # the value of a setting, as JSON holds it


class Settings(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Json]]]


Config = TypeVar("Config", bound=Settings)

PATH = "path"  # a field that holds a path, or one of the names that may stand for it: on the command line `~` is expanded in it
PathName = Annotated[str, PATH]
FREE = {"resume": "free"}
WITH_OVERRIDE = {"resume": "override"}


def from_dict(cls: type[Config], fields: dict[str, Json]) -> Config:
    """A config dataclass from keys and values; unknown keys are errors that suggest the nearest known one."""
    known = {f.name for f in dataclasses.fields(cls)}
    for key in [key for key in fields if key not in known]:
        raise InvalidInput(f"{cls.__name__}: unknown key {key!r}, expected one of {', '.join(sorted(known))}; {did_you_mean(key, known)}")
    return cls(**fields)


def check_fields(config: Settings, smallest: dict[int, str]) -> None:
    """Raises TypeError unless each int, float and bool field holds one (an int passes for a float; None where the field allows it), ValueError
    for a number that is not finite, or smaller than the key of `smallest` under which its name stands, and for a string that is no choice."""
    what = type(config).__name__
    for f in dataclasses.fields(config):
        value, kind = getattr(config, f.name), _kind(f.type)
        if value is None and f.type in (int | None, float | None):
            continue
        legal = (float, int) if kind is float else kind
        if kind in (int, float, bool) and (not isinstance(value, legal) or (isinstance(value, bool) and kind is not bool)):
            raise WrongType(f"{what}.{f.name}: {value!r}, expected {kind.__name__}; write it without quotes")
        if kind is float and not math.isfinite(value):
            raise InvalidInput(f"{what}.{f.name}: {value}, expected a finite number")
        origin: Json = typing.get_origin(kind)
        if origin is Literal and value not in typing.get_args(kind):
            *others, last = choices = typing.get_args(kind)
            fix = did_you_mean(value, choices, f"{f.default} is the default") if isinstance(value, str) else "write one of them"
            raise InvalidInput(f"{what}.{f.name}: {value!r}, expected {', '.join(others)} or {last}; {fix}")
    for least, names in smallest.items():
        for name in names.split():
            value = getattr(config, name)
            if value is not None and value < least:
                raise InvalidInput(f"{what}.{name}: {value}, expected at least {least}")


def _kind(annotation: Json) -> Json:
    """A field's type, for `float | None` and `int | None` without the None."""
    return {int | None: int, float | None: float}.get(annotation, annotation)


def multiples(of: int, near: int) -> str:
    """The positive multiples of a number next to another, for a message."""
    below = near // of * of
    return " or ".join(str(n) for n in (below, below + of) if n)
