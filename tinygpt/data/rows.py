"""Rows of files, a user's own or downloads: txt, csv, tsv, json and jsonl, with the location of each row for messages."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinygpt.data.corpora import user_path
from tinygpt.data.download import DOWNLOADS, fetch
from tinygpt.errors import InvalidInput, MissingFile, did_you_mean
from tinygpt.storage.checked_json import Json, parse_json, read_text


@dataclass
class Table:
    """Rows of a file."""

    path: Path
    columns: list[str]
    rows: list[tuple[str, dict[str, Json]]]  # (place, values by column); the place is "line 7" or "record 7", for messages
    notes: list[str]  # what was guessed, as sentences


def find_file(name_or_path: str | Path, names: Sequence[str], *, cache: str | Path | None = None) -> tuple[Path, str]:
    """The file that is meant, and its source as a sentence for people: a download by its name, fetched if need be, or a file of the user's.

    names   all names that may be requested, for the message; the downloads among them are resolved here
    cache   folder for downloads; by default the user's cache folder
    Raises FileNotFoundError for an unknown name or path, with the nearest name; ConnectionError for a download that fails.
    """
    path, name = user_path(name_or_path), str(name_or_path)
    if name_or_path in names and name in DOWNLOADS:
        return fetch(name, cache=cache), f"{DOWNLOADS[name].source}, {DOWNLOADS[name].url}"
    if not path.is_file():
        known, fix = ", ".join(names), did_you_mean(name, names, "check the path")
        raise MissingFile(f"data {name!r}: no such file, expected one of {known}, or a txt, csv, tsv, json or jsonl file; {fix}")
    return path, f"file {name}"


def read_table(path: Path, usual: Iterable[str], asked: Iterable[str] = ()) -> Table:
    """Rows of a file whose name ends in .txt, .csv, .tsv, .json or .jsonl.

    usual   names that columns often have
    asked   names that the user gave columns; "" is none
    Columns are separated by commas (.csv) or tabs (.tsv, .txt), by what a first line `sep=` names, or else by the one sign of , ; | and
    tab that makes a table. Of a file with lines the first is a header if it holds a name that was asked for, or a usual one that does not
    come again below it, or if none of its cells comes again in its column. Without a header columns are named 1, 2, ...; who asks for a
    number says there is none. A column without a name has its number; one without anything in it is left out.
    JSON is a list of objects, one object per line, or lists or objects by column.
    Raises ValueError, naming file, row and problem, for other formats, ragged rows, a name twice, records that are no objects, no rows.
    """
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt"):
        lines, notes = _lines(path, read_text(path), "," if suffix == ".csv" else "\t")
        return _with_columns(path, lines, set(usual), {name for name in asked if name}, notes)
    if suffix in (".json", ".jsonl"):
        return _records(path, read_text(path))
    raise InvalidInput(f"{path}: format {suffix!r}, expected .txt, .csv, .tsv, .json or .jsonl; rename or convert the file")


_SIGNS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
_EMPTY = "{}: empty, expected rows; check that it is the file that you mean"
_Lines = list[tuple[str, list[str]]]  # (place, cells)


def _lines(path: Path, text: str, usual: str) -> tuple[_Lines, list[str]]:
    """The lines of a file as cells, and notes: separated by the usual sign, unless the file says or shows another."""
    said = re.match(r'"?sep=(.)"?\n', text)  # Excel's
    if said:
        return _cells(path, text[said.end() - 1 :], said[1]), [f"columns separated by {said[1]!r}, as the first line says"]
    found: dict[str, _Lines] = {}
    failures: dict[str, InvalidInput] = {}
    for sign in (usual, *(_SIGNS.keys() - {usual})):
        try:
            found[sign] = _cells(path, text, sign, quotes=sign != "\t" or usual == ",")
        except InvalidInput as error:
            failures[sign] = error
        if len(found.get(usual, [("", [])])[0][1]) > 1:
            return found[usual], []
    tables = [sign for sign, lines in found.items() if len(lines[0][1]) > 1]
    if len(tables) > 1:
        signs = " or ".join(f"{_SIGNS[sign]}s" for sign in sorted(tables))
        raise InvalidInput(f"{path}: columns separated by {signs}, expected one way to read it; write the line sep={tables[0]} at its top")
    if tables:
        return found[tables[0]], [f"columns separated by {_SIGNS[tables[0]]}s"]
    for sign in (usual, *sorted(failures)):
        if sign in failures and (sign == usual or sign in text.lstrip().partition("\n")[0]):
            raise failures[sign]
    return found[usual], []


def _cells(path: Path, text: str, sign: str, quotes: bool = True) -> _Lines:
    """The cells of each line that has any. Raises ValueError where their number changes, or a quote is not closed."""
    name = _SIGNS.get(sign, repr(sign))
    fix = f'put a text that holds a {name} into "quotes"' if quotes else f"save texts that hold a {name} as csv or jsonl"
    source = io.StringIO(text, newline="")
    reader = csv.reader(source, delimiter=sign, strict=quotes, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE)
    lines: _Lines = []
    last = 0  # line on which the row before ended: a quoted text may go over several
    try:
        for cells in reader:
            last = reader.line_num
            n = len(lines[0][1]) if lines else len(cells)
            if not any(cell.strip() for cell in cells[n:]):
                cells = cells[:n]
            if cells and len(cells) != n:
                raise InvalidInput(f"{path}: line {last}: {len(cells)} columns, expected {n} as in the first line; {fix}")
            if any(cell.strip() for cell in cells):
                lines.append((f"line {last}", cells))
    except csv.Error as error:
        if "unexpected end" in str(error):
            problem = 'a quote is opened and not closed, expected a " at the end of the text; write one within a text twice'
        elif "field limit" in str(error):
            problem = f"a text of over {csv.field_size_limit():,} characters, expected shorter ones; divide it"
        else:
            problem = f"{error}, expected columns as in the first line; {fix}"
        raise InvalidInput(f"{path}: line {last + 1}: {problem}") from None
    if not lines:
        raise InvalidInput(_EMPTY.format(path))
    return lines


def _with_columns(path: Path, lines: _Lines, usual: set[str], asked: set[str], notes: list[str]) -> Table:
    n = len(lines[0][1])
    kept = [i for i in range(n) if any(cells[i].strip() for _, cells in lines)]
    if n_empty := n - len(kept):
        notes.append(f"{n_empty} empty column{'s' if n_empty > 1 else ''} left out")
    first, *rest = [[cells[i] for i in kept] for _, cells in lines]
    again = [bool(cell.strip()) and cell in {cells[i] for cells in rest} for i, cell in enumerate(first)]
    named = any(cell.strip() in asked or (cell.strip().casefold() in usual and not twice) for cell, twice in zip(first, again, strict=True))
    has_header = not any(name.isdecimal() for name in asked) and (named or not any(again))
    columns = [(first[at].strip() if has_header else "") or str(i + 1) for at, i in enumerate(kept)]
    if len(set(columns)) < len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise InvalidInput(f"{path}: {lines[0][0]}: column {twice!r} twice, expected different names; rename one")
    notes.append(f"first line taken as {'the names of the columns' if has_header else 'data, columns named by number'}")
    rows = [(place, dict(zip(columns, cells, strict=True))) for (place, _), cells in zip(lines, [first, *rest], strict=True)]
    return Table(path, columns, rows[has_header:], notes)


def _records(path: Path, text: str) -> Table:
    whole, notes, is_jsonl = None, [], path.suffix.lower() == ".jsonl"
    lines = [(f"line {i}", line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    try:
        whole = parse_json(text, str(path), "repair it there", nan_is_null=True)
    except InvalidInput as error:
        if not is_jsonl and "Extra data" not in str(error):  # that is a value, and another below it
            raise
        notes = [] if is_jsonl else ["one object per line, as in a file named .jsonl"]
    if whole is None or (isinstance(whole, dict) and is_jsonl):
        records = [(place, parse_json(line, f"{path}: {place}", "repair it there", nan_is_null=True)) for place, line in lines]
    else:
        records = [(f"record {i}", record) for i, record in enumerate(_listed(path, whole), start=1)]
    for place, record in records:
        if not isinstance(record, dict):
            raise InvalidInput(f"{path}: {place}: a JSON {type(record).__name__}, expected an object; write each row as {{...}}")
    columns = list(dict.fromkeys(key for _, record in records for key in record))
    if not columns:
        raise InvalidInput(_EMPTY.format(path))
    return Table(path, columns, records, notes)


def _listed(path: Path, whole: Json) -> list[Json]:
    """The records of a JSON list, or of an object that holds columns (pandas and Hugging Face's datasets write these)."""
    if isinstance(whole, list):
        return whole
    values = list(whole.values()) if isinstance(whole, dict) else []
    names, rows = (whole.get(key) if isinstance(whole, dict) else None for key in ("columns", "data"))
    if isinstance(names, list) and isinstance(rows, list) and all(isinstance(row, list) and len(row) == len(names) for row in rows):
        return [dict(zip(map(str, names), row, strict=True)) for row in rows]
    if values and all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        return [{name: value[row] for name, value in whole.items()} for row in values[0]]
    if len(values) > 1 and all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        return [dict(zip(whole, row, strict=True)) for row in zip(*values, strict=True)]
    kind = type(whole).__name__ + (f" with {', '.join(map(repr, list(whole)[:5]))}" if values else "")
    raise InvalidInput(f"{path}: a JSON {kind}, expected a list of objects; save the rows as a list, or one object per line as jsonl")


def check_column(table: Table, name: str, option: str) -> None:
    """Raises ValueError, listing the columns that there are, if `name` is none of them; `option` is the flag that names it."""
    if name not in table.columns:
        fix = did_you_mean(name, table.columns, f"name one of them with {option}")
        raise InvalidInput(f"{table.path}: no column {name!r}, expected one of {', '.join(map(repr, table.columns))}; {fix}")


def text_in(table: Table, place: str, column: str, values: dict[str, Json]) -> str:
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
