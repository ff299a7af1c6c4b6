"""JSON and text that somebody else may have written, read with checks; and JSON as this project writes it."""

import codecs
import json
import math
from pathlib import Path
from typing import Any

from tinygpt.errors import InvalidInput, MissingFile

Json = Any  # a value as JSON holds it
MAX_JSON_BYTES = 64 << 20  # a vocabulary of a million tokens is a third of it


def read_json(path: Path) -> Json:
    """What a JSON file holds. Raises ValueError, naming the file, for one that is too large, not UTF-8, not JSON, nested beyond reason, or
    with numbers that JSON lacks (NaN, Infinity) or that no computer wants (thousands of digits).
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise InvalidInput(f"{path}: {size} bytes, expected at most {MAX_JSON_BYTES}; is it the right file?")
    return parse_json(read_text(path), str(path), "restore the file")


def parse_json(text: str, where: str, fix: str, *, nan_is_null: bool = False) -> Json:
    """What JSON text says. Raises ValueError, naming `where` and what to do, for what `read_json` refuses; pandas writes null as NaN."""

    def constant(name: str) -> None:
        if not (nan_is_null and name == "NaN"):
            raise InvalidInput(f"the number {name}")

    try:
        return json.loads(text, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{where}: {error}, expected valid JSON; {fix}") from error


def to_json(value: Json) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode("utf-8")


class Entries:
    """Reads entries of a checkpoint's JSON, each checked, because the file may come from anywhere."""

    def __init__(self, values: Json, where: str) -> None:
        self.values, self.where = values, where

    def _find(self, *keys: str) -> Json:
        found = self.values
        for key in keys:
            found = found.get(key) if isinstance(found, dict) else None
        return found

    def _wrong(self, keys: tuple[str, ...], found: Json, rule: str) -> InvalidInput:
        return InvalidInput(f"{self.where}: {'.'.join(keys)} is {found!r:.50}, expected {rule}; use another checkpoint of the run")

    def integer(self, *keys: str) -> int:
        found = self._find(*keys)
        if type(found) is not int or not 0 <= found < 1 << 62:
            raise self._wrong(keys, found, "an integer >= 0")
        return found

    def number(self, *keys: str, default: float) -> float:
        found = self._find(*keys)
        if found is None:
            return default
        if type(found) not in (int, float) or not abs(found) < math.inf:
            raise self._wrong(keys, found, "a finite number")
        return float(found)

    def text(self, *keys: str, default: str) -> str:
        found = self._find(*keys)
        if found is not None and not isinstance(found, str):
            raise self._wrong(keys, found, "a text")
        return default if found is None else found


# Byte order marks, the longer ones first: UTF-32's begins like UTF-16's.
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_SAVE = "save the file as UTF-8 in your editor, or leave it out if it is no text"


def encoding_of(data: bytes, where: object) -> str:
    """The encoding that a byte order mark at the beginning of a text names; without one, UTF-8. Raises ValueError for bytes that are mostly
    zeros, or every other one: binary, or UTF-16 or UTF-32 without a mark. As UTF-8 they would decode to NULs. A stray zero passes.
    """
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return name
    zeros = [data[start:4096:2].count(0) for start in (0, 1)]
    n, of = sum(zeros), min(len(data), 4096)
    if n >= 16 and (2 * n > of or (16 * n >= of and 0 in zeros)):
        raise InvalidInput(f"{where}: {n} of the first {of} bytes are 0, as in UTF-16 without a byte order mark, expected UTF-8; {_SAVE}")
    return "utf-8"


def not_text(where: object, byte: int, offset: int, encoding: str = "utf-8") -> InvalidInput:
    """The error for a byte that text in this encoding does not have there."""
    name = encoding.upper()
    return InvalidInput(f"{where}: byte 0x{byte:02x} at offset {offset} is not {name}, expected {name} text; {_SAVE}")


def read_text(path: str | Path) -> str:
    """A text file in UTF-8, or UTF-16 or UTF-32 with a byte order mark; line ends as \\n. Raises ValueError with file, byte and offset."""
    return decode_text(Path(path).read_bytes(), path)


def decode_text(data: bytes, where: object) -> str:
    """The text of a file's bytes, as `read_text` has it; `where` names the file in errors."""
    encoding = encoding_of(data, where)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise not_text(where, data[error.start], error.start, encoding) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def read_json_object(path: Path) -> dict[str, Json]:
    """A checkpoint's JSON file. Raises FileNotFoundError without one, ValueError, naming the file, if it holds no JSON object."""
    if not path.is_file():
        raise MissingFile(f"{path}: no such file, expected one of a checkpoint; pass a directory that save_pretrained wrote")
    value = read_json(path)
    if not isinstance(value, dict):
        raise InvalidInput(f"{path}: a JSON {type(value).__name__}, expected an object; is it the right file?")
    return value
