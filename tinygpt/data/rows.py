"""Rows of files, a user's own or downloads: txt, csv, tsv, json and jsonl, with the place of each row for messages that name it."""

import csv
import difflib
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygpt.data.download import DOWNLOADS, fetch
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.storage.checked_json import read_text


@dataclass
class Table:
    """Rows of a file.

    rows     (place, values by column); the place is "line 7" or "record 7", for messages
    notes    what was guessed, as sentences
    """

    path: Path
    columns: list[str]
    rows: list[tuple[str, dict[str, Any]]]
    notes: list[str]


def find_file(name_or_path: str | Path, names: Sequence[str], *, cache: str | Path | None = None) -> tuple[Path, str]:
    """The file that is meant, and its source as a sentence for people: a download by its name, fetched if need be, or a file of the user's.

    names   all that may be asked for by name, for the message; of them, the downloads are found here
    cache   folder for downloads; by default the user's cache folder
    Raises FileNotFoundError for an unknown name or path, with the nearest name; ConnectionError for a download that fails.
    """
    if name_or_path in names and name_or_path in DOWNLOADS:
        download = DOWNLOADS[str(name_or_path)]
        return fetch(str(name_or_path), cache=cache), f"{download.source}, {download.url}"
    path = Path(name_or_path)
    if not path.is_file():
        close = difflib.get_close_matches(str(name_or_path), names, n=1)
        raise MissingFile(
            f"data {str(name_or_path)!r}: no such file, expected one of {', '.join(names)}, or a txt, csv, tsv, json or jsonl file; "
            + (f"did you mean {close[0]!r}?" if close else "check the path")
        )
    return path, f"file {name_or_path}"


def read_table(path: Path, usual: Iterable[str], asked: Iterable[str] = ()) -> Table:
    """Rows of a file whose name ends in .txt, .csv, .tsv, .json or .jsonl.

    usual   names that columns often have
    asked   names that the user gave columns; "" is none
    Of a file with lines the first is a header if it holds a name that was asked for, or a usual one that does not come again below it, or
    if none of its cells comes again in its column. Without a header columns are named 1, 2, ...; who asks for a number says there is none.
    Raises ValueError, naming file, row and problem, for another format, ragged rows, a column's name twice, records that are no objects and
    a file without rows.
    """
    suffix = path.suffix.lower()
    names = (set(usual), {name for name in asked if name})
    if suffix == ".csv":
        lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
        return _delimited(path, lines, names, 'put a text that holds a comma into "quotes"')
    if suffix in (".tsv", ".txt"):
        lines = csv.reader(io.StringIO(read_text(path), newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        return _delimited(path, lines, names, "save texts that hold a tab as csv or jsonl")
    if suffix == ".json":
        records = parse_json(path, "", read_text(path))
        if not isinstance(records, list):
            raise InvalidInput(f"{path}: a JSON {type(records).__name__}, expected a list of objects; or save one object per line as jsonl")
        return _records(path, [(f"record {i}", record) for i, record in enumerate(records, start=1)])
    if suffix == ".jsonl":
        numbered = [(f"line {i}", line) for i, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
        return _records(path, [(place, parse_json(path, f"{place}: ", line)) for place, line in numbered])
    raise InvalidInput(f"{path}: format {suffix!r}, expected .txt, .csv, .tsv, .json or .jsonl; rename or convert the file")


def _delimited(path: Path, reader: Any, names: tuple[set[str], set[str]], fix: str) -> Table:
    lines: list[tuple[str, list[str]]] = []
    last = 0  # line on which the row before ended: a quoted text may go over several
    try:
        for cells in reader:
            last = reader.line_num
            if cells:  # else a blank line
                lines.append((f"line {reader.line_num}", cells))
            if cells and len(cells) != len(lines[0][1]):
                raise InvalidInput(
                    f"{path}: line {reader.line_num}: {len(cells)} columns, expected {len(lines[0][1])} as in the first line; {fix}"
                )
    except csv.Error as error:
        if "unexpected end" in str(error):
            problem = 'a quote is opened and not closed, expected a " at the end of the text; write one within a text twice'
        elif "field limit" in str(error):
            problem = f"a text of over {csv.field_size_limit():,} characters, expected shorter ones; divide it"
        else:
            problem = f"{error}, expected columns as in the first line; {fix}"
        raise InvalidInput(f"{path}: line {last + 1}: {problem}") from None
    if not lines:
        raise InvalidInput(f"{path}: empty, expected rows; check that it is the file that you mean")
    first, *rest = [cells for _, cells in lines]
    usual, asked = names
    again = [cell in {cells[i] for cells in rest} for i, cell in enumerate(first)]
    named = any(cell.strip() in asked or (cell.strip().casefold() in usual and not twice) for cell, twice in zip(first, again, strict=True))
    has_header = not any(name.isdecimal() for name in asked) and (named or not any(again))
    columns = [cell.strip() for cell in first] if has_header else [str(i) for i in range(1, len(first) + 1)]
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise InvalidInput(f"{path}: {lines[0][0]}: column {twice!r} twice, expected different names; rename one")
    note = f"first line taken as {'the names of the columns' if has_header else 'data, columns named by number'}"
    rows = [(place, dict(zip(columns, cells, strict=True))) for place, cells in lines[has_header:]]
    return Table(path, columns, rows, [note])


def _records(path: Path, records: list[tuple[str, Any]]) -> Table:
    for place, record in records:
        if not isinstance(record, dict):
            raise InvalidInput(f"{path}: {place}: a JSON {type(record).__name__}, expected an object; write each row as {{...}}")
    columns = list(dict.fromkeys(key for _, record in records for key in record))
    if not columns:
        raise InvalidInput(f"{path}: empty, expected rows; check that it is the file that you mean")
    return Table(path, columns, records, [])


def parse_json(path: Path, place: str, text: str) -> Any:
    """What JSON text says. Raises ValueError, naming file and place ("line 3: "), if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: {place}{error}, expected valid JSON; repair it there") from None


def check_column(table: Table, name: str, option: str) -> None:
    """Raises ValueError, listing the columns that there are, if `name` is none of them; `option` is the flag that names it."""
    if name not in table.columns:
        close = difflib.get_close_matches(name, table.columns, n=1)
        fix = f"did you mean {close[0]!r}?" if close else f"name one of them with {option}"
        raise InvalidInput(f"{table.path}: no column {name!r}, expected one of {', '.join(map(repr, table.columns))}; {fix}")


def text_in(table: Table, place: str, column: str, values: dict[str, Any]) -> str:
    """The text in a row's column, "" where there is none (or null). Raises ValueError, naming row and column, for anything else."""
    value = values.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(f"{table.path}: {place}: {column} is a {type(value).__name__}, expected a text; correct or remove the row")
    return unicode_in(table, place, column, value)


def unicode_in(table: Table, place: str, column: str, text: str) -> str:
    """The text of a row's column. Raises ValueError, naming row and column, for half a character, which JSON can write and no file can hold."""
    if re.search("[\ud800-\udfff]", text):
        raise InvalidInput(f"{table.path}: {place}: {column} holds a lone surrogate, expected Unicode text; correct or remove the row")
    return text
