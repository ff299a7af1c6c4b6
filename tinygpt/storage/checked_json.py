"""JSON and text that somebody else may have written, read with checks; and JSON as this project writes it."""

import json
import math
from pathlib import Path
from typing import Any

from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.storage.durable import write_file

MAX_JSON_BYTES = 64 << 20  # a vocabulary of a million tokens is a third of it


def read_json(path: Path) -> Any:
    """What a JSON file holds. Raises ValueError, naming the file, for one that is too large, not UTF-8, not JSON, nested beyond reason,
    or that holds numbers JSON does not have (NaN, Infinity) or that no computer wants (thousands of digits).
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise InvalidInput(f"{path}: {size} bytes, expected at most {MAX_JSON_BYTES}; is it the right file?")
    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: {error}, expected valid JSON in UTF-8; restore the file") from error


def _no_constant(name: str) -> Any:
    raise InvalidInput(f"the number {name}")


def to_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8")


class Entries:
    """Reads entries of a checkpoint's JSON, each checked: what is there may come from anywhere."""

    def __init__(self, values: Any, where: str) -> None:
        self.values, self.where = values, where

    def _find(self, *keys: str) -> Any:
        found = self.values
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def integer(self, *keys: str) -> int:
        found = self._find(*keys)
        if type(found) is not int or not 0 <= found < 1 << 62:
            raise InvalidInput(
                f"{self.where}: {'.'.join(keys)} is {found!r:.50}, expected an integer >= 0; use another checkpoint of the run"
            )
        return found

    def number(self, *keys: str, default: float) -> float:
        found = self._find(*keys)
        if found is None:
            return default
        if type(found) not in (int, float) or not abs(found) < math.inf:
            raise InvalidInput(
                f"{self.where}: {'.'.join(keys)} is {found!r:.50}, expected a finite number; use another checkpoint of the run"
            )
        return float(found)


def read_text(path: str | Path) -> str:
    """A UTF-8 file, with or without byte order mark, its line ends as \\n. Raises ValueError, naming file and byte, if it is not UTF-8."""
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{path}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8, expected UTF-8 text; "
            "save the file as UTF-8 in your editor, or leave it out if it is no text"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def write_json(path: Path, value: Any) -> None:
    write_file(path, [to_json(value)])


def read_json_object(path: Path) -> dict[str, Any]:
    """A checkpoint's JSON file. Raises FileNotFoundError without one, ValueError, naming the file, if it holds no JSON object."""
    if not path.is_file():
        raise MissingFile(f"{path}: no such file, expected one of a checkpoint; pass a directory that save_pretrained wrote")
    value = read_json(path)
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: a JSON {type(value).__name__}, expected an object; is it the right file?")
    return value
