"""The formats that documents are read from, one reader each: records one after the other, with the position of each for messages.

    units, others = find_units(Path("folder"))            # what can be read on its own: a file, or a range of a large one
    for record in units[0].records(report): ...           # Record("line 17", {"text": ..., "url": ...})

    text            *.txt *.md, or any file of a pattern: one document, or several with <|endoftext|> between them, as TinyStories has it
    jsonl           *.jsonl *.ndjson: an object per line. A large file that is not compressed is divided by ranges of bytes
    json            *.json: a list of objects, in memory
    csv             *.csv *.tsv: the first line names the columns
    parquet         *.parquet: a large file is divided by its row groups
    dataset         a folder that `datasets.Dataset.save_to_disk` wrote
    warc            *.warc *.wet: pages of HTML, their main text extracted by trafilatura; or text, as Common Crawl's WET files have it
    wikipedia       *.xml with <mediawiki>: articles of a pages-articles dump, their wikitext stripped by mwparserfromhell
    stackexchange   *.xml with <posts>: questions and answers of a Posts.xml, their HTML as text

All but parquet, dataset and json may be compressed: .gz, .zst, .bz2, .xz. Such a file is one unit. Of one that ends early, what is there is
read; of one whose checksum is wrong, nothing: no one knows which of its lines are right.
"""

import bz2
import contextlib
import csv
import io
import itertools
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from tinygpt.curate.documents import open_compressed, unreadable
from tinygpt.curate.markup import Readable, read_posts, read_warc, read_wikipedia
from tinygpt.curate.records import BadRecord, Record, Report
from tinygpt.data.rows import read_table
from tinygpt.errors import InvalidInput, MissingPackage
from tinygpt.storage.checked_json import MAX_JSON_BYTES, Json, decode_text, parse_json, read_json_object

RANGE_BYTES = 32 << 20  # a larger file that can be divided is, into ranges of at least so much
MAX_RANGES = 16  # of a file: each counts the lines in front of it, so that errors and ids can name them
TEXT_BYTES = 64 << 20  # a longer text is cut into documents of so much
PIECE_CHARACTERS = 1 << 20  # of a longer text, read at once
BATCH_ROWS = 256  # of a Parquet or Arrow file, in memory at once
SEPARATOR = "<|endoftext|>"  # in a text: the next document begins
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
SUFFIXES = {
    ".txt": "text", ".md": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".warc": "warc", ".wet": "warc",
}  # fmt: skip


@dataclass(frozen=True)
class Unit:
    """A file, or the range of it from byte `start` to `end`. name: below the source's folder; n_bytes: of the range."""

    path: Path
    name: str
    kind: str
    n_bytes: int
    file_bytes: int
    start: int = 0
    end: int | None = None

    @property
    def has_own_text(self) -> bool:
        """Whether the format says itself what the text is, not a field."""
        return self.kind in ("text", "warc", "wikipedia", "stackexchange", "docs")

    def records(self, report: Report) -> Iterator[Record]:
        """Its records. One that is bad goes to `report` and is left out; BadRecord is raised where the rest of the file cannot be read."""
        n = 0
        try:
            if _is_checked_at_its_end(self.path):
                check(self.path)
            for record in KINDS[self.kind](self, report):
                n += 1
                yield record
        except FileNotFoundError as error:
            raise BadRecord("missing file", f"{self.path}: gone, expected the file that was there at the start; restore it") from error
        except _damaged(self) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's or the system's
                raise BadRecord("unreadable file", f"{self.path}: {error.strerror}, expected to read it; check disk and rights") from error
            problem = f"{self.path}: {str(error) or 'it ends early'}, expected an intact file; {n} records were read before"
            raise BadRecord("damaged file", f"{problem}; restore it") from error


def _damaged(unit: Unit) -> tuple[type[Exception], ...]:
    """What reading a damaged file raises, and a broken disk."""
    if unit.kind in ("parquet", "dataset"):
        return (OSError, _pyarrow(unit).ArrowException)
    return (OSError, EOFError, zlib.error, lzma.LZMAError, *unreadable(unit.path))


def _is_checked_at_its_end(path: Path) -> bool:
    """Whether the checksum of compressed data comes after what it is of. Only bzip2's comes before a block is given out."""
    return path.suffix.lower() in (".gz", ".zst", ".xz")


def check(path: Path) -> None:
    """Raises what reading damaged data raises; not for a file that ends early, of which all that is there is right."""
    with contextlib.suppress(EOFError), open_file(path) as file:
        while file.read(1 << 20):
            pass


def _below(output: Path | None, path: Path) -> Path | None:
    """The folder as a path below the other one; None if it is not in it."""
    if output is None or (outer := path.resolve()) not in output.resolve().parents:
        return None
    return path / output.resolve().relative_to(outer)


def find_units(path: Path, kind: str = "", pattern: str = "", output: Path | None = None) -> tuple[list[Unit], list[str]]:
    """What there is to read at a path, sorted by name, and the names of other files there.

    kind      of all files; "": by their names, of XML by its beginning
    pattern   only the folder's files that match it, as texts if their kind is not given
    output    a folder below it that is no part of it
    Raises ValueError for a folder of several saved data sets.
    """
    if path.is_file():
        files = {path.name: path}
    elif (path / "dataset_dict.json").is_file():
        splits = ", ".join(sorted(folder.name for folder in path.iterdir() if folder.is_dir()))
        raise InvalidInput(f"{path}: data sets {splits}, expected one; name it: {path.name}/...")
    elif (path / "state.json").is_file() and (path / "dataset_info.json").is_file():
        entries = read_json_object(path / "state.json").get("_data_files") or []
        names = [entry["filename"] for entry in entries if isinstance(entry, dict) and isinstance(entry.get("filename"), str)]
        sizes = [_size(path / name) for name in names]
        return [Unit(path / name, name, "dataset", n, n) for name, n in zip(names, sizes, strict=True)], []
    else:
        found = (file for file in path.rglob(pattern or "*") if file.is_file())
        own = _below(output, path)
        files = {file.relative_to(path).as_posix(): file for file in found if not (own and file.is_relative_to(own))}
    units, others = [], []
    for name in sorted(files):
        file = files[name]
        found_kind = kind or ("text" if pattern else _kind_of(file, given=path.is_file()))
        if found_kind:
            units += _ranges(file, name, found_kind)
        else:
            others.append(name)
    return units, others


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _kind_of(path: Path, given: bool) -> str:
    """The kind of a file by its name; of XML by its beginning; "" for none. A file that was named, with an unknown suffix, is a text."""
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    last = suffixes[-1] if suffixes else ""
    if last != ".xml":
        return SUFFIXES.get(last, "text" if given and path.suffix.lower() not in COMPRESSED else "")
    try:
        with open_file(path) as file:
            beginning = file.read(4096)
    except _damaged(Unit(path, "", "xml", 0, 0)):
        return "wikipedia" if "pages-" in path.name else "stackexchange"  # reading it will say what is wrong
    return "wikipedia" if b"<mediawiki" in beginning else "stackexchange" if b"<posts" in beginning else ""


def _ranges(path: Path, name: str, kind: str) -> list[Unit]:
    size = path.stat().st_size
    n = min(MAX_RANGES, max(1, size // RANGE_BYTES)) if kind in ("jsonl", "parquet") and path.suffix.lower() not in COMPRESSED else 1
    ends = [size * i // n for i in range(n + 1)]
    return [Unit(path, name, kind, end - start, size, start, end) for start, end in itertools.pairwise(ends)]


def open_file(path: Path) -> IO[bytes]:
    """A file for reading, decompressed if its name ends in .gz, .zst, .bz2 or .xz."""
    if path.suffix.lower() == ".bz2":
        return bz2.open(path, "rb")
    if path.suffix.lower() == ".xz":
        return lzma.open(path, "rb")
    return open_compressed(path)


def _text(unit: Unit, report: Report) -> Iterator[Record]:
    with open_file(unit.path) as file:
        data = file.read(TEXT_BYTES + 1)
        if len(data) <= TEXT_BYTES:
            try:
                parts: Iterator[str] = iter(decode_text(data, unit.path).split(SEPARATOR))
            except InvalidInput as error:
                raise BadRecord("not UTF-8", str(error)) from None
        else:
            file.seek(0)
            parts = _cut(file)
        texts = (part for part in parts if part.strip())
        try:
            first, second = next(texts, ""), next(texts, None)
            if second is None:
                yield Record("", {"text": first})
                return
            for number, text in enumerate(itertools.chain([first, second], texts), start=1):
                yield Record(f"document {number}", {"text": text.strip("\n")})
        except UnicodeDecodeError as error:
            raise BadRecord("not UTF-8", f"{unit.path}: {error}, expected UTF-8; convert it with iconv") from None


def _cut(file: IO[bytes]) -> Iterator[str]:
    """The documents of a long text: between separators, and where one is longer than TEXT_BYTES characters, up to its last blank line."""
    held = ""
    with io.TextIOWrapper(file, encoding="utf-8-sig") as text:
        while piece := text.read(PIECE_CHARACTERS):
            *complete, held = (held + piece).split(SEPARATOR)
            yield from complete
            if len(held) > TEXT_BYTES:
                cut = held.rfind("\n\n") + 2 if "\n\n" in held else len(held) - len(SEPARATOR)  # of which half may be there
                yield held[:cut]
                held = held[cut:]
    yield held


def _jsonl(unit: Unit, report: Report) -> Iterator[Record]:
    """A line belongs to the range in which it begins."""
    with open_file(unit.path) as file:
        number = 0
        if unit.start:
            number = _count_lines(file, unit.start - 1)
            file.readline()  # the rest of a line that begins in the range before
            number += 1
        position = file.tell() if unit.start else 0
        end = unit.end if unit.path.suffix.lower() not in COMPRESSED else None
        while end is None or position < end:
            line = file.readline(MAX_JSON_BYTES + 1)
            if not line:
                break
            position += len(line)
            number += 1
            place = f"line {number}"
            if len(line) > MAX_JSON_BYTES:
                rule = f"expected at most {MAX_JSON_BYTES:,}"
                raise BadRecord(
                    "line too long", f"{unit.path}: {place}: more than {MAX_JSON_BYTES:,} bytes, {rule}; is it one object per line?"
                )
            if line.strip():
                try:
                    yield Record(place, _object(line, f"{unit.path}: {place}"))
                except BadRecord as problem:
                    report(problem)


def _count_lines(file: IO[bytes], n_bytes: int) -> int:
    """Line ends among the next n_bytes, which are read."""
    n = 0
    while n_bytes and (data := file.read(min(n_bytes, 1 << 20))):
        n += data.count(b"\n")
        n_bytes -= len(data)
    return n


def _object(line: bytes, where: str) -> dict[str, Json]:
    fix = "correct or remove the line"
    try:
        value = parse_json(line.decode("utf-8-sig"), where, fix, nan_is_null=True)
    except UnicodeDecodeError as error:
        raise BadRecord("not UTF-8", f"{where}: {error}, expected UTF-8; {fix}") from None
    except InvalidInput as error:
        raise BadRecord("not JSON", str(error)) from None
    if not isinstance(value, dict):
        raise BadRecord("not an object", f"{where}: a JSON {type(value).__name__}, expected an object {{...}}; {fix}")
    return value


def _json(unit: Unit, report: Report) -> Iterator[Record]:
    try:
        table = read_table(unit.path, ())
    except InvalidInput as error:
        raise BadRecord("not JSON", str(error)) from None
    for place, fields in table.rows:
        yield Record(place, fields)


def _csv(unit: Unit, report: Report) -> Iterator[Record]:
    """Columns are separated by the one sign of , ; | and tab that the first line has most of."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_JSON_BYTES))  # one for the process; a text may be longer than its 131,072
    with open_file(unit.path) as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", newline="") as file:
        number = 0
        try:
            first = file.readline()
            sign = max(",;\t|", key=first.count)
            reader = csv.reader(itertools.chain([first], file), delimiter=sign, strict=True)
            header, number = [name.strip() for name in next(reader, [])], 1
            for cells in reader:
                place, number = f"line {number + 1}", reader.line_num
                if len(cells) == len(header):
                    yield Record(place, dict(zip(header, cells, strict=True)))
                elif cells:
                    rule = f"expected {len(header)} as in the first line; correct or remove the line"
                    report(BadRecord("ragged row", f"{unit.path}: {place}: {len(cells)} columns, {rule}"))
        except UnicodeDecodeError as error:
            raise BadRecord("not UTF-8", f"{unit.path}: {error}, expected UTF-8; convert it with iconv") from None
        except csv.Error as error:
            problem = f"{unit.path}: line {number + 1}: {error}, expected quotes that are closed, and doubled within a text"
            raise BadRecord("damaged file", f"{problem}; correct it there") from None


def _parquet(unit: Unit, report: Report) -> Iterator[Record]:
    """A row group belongs to the range in which its middle lies."""
    _pyarrow(unit)
    from pyarrow import parquet

    with parquet.ParquetFile(unit.path) as file:
        number = 0
        for i in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(i)
            columns = [group.column(c) for c in range(group.num_columns)]
            starts = [c.dictionary_page_offset or c.data_page_offset for c in columns]
            middle = min(starts, default=0) + sum(c.total_compressed_size for c in columns) // 2
            if unit.start <= middle < (unit.end or middle + 1):
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[i]):
                    yield from _rows(batch.to_pylist(), number)
                    number += batch.num_rows
            else:
                number += group.num_rows


def _dataset(unit: Unit, report: Report) -> Iterator[Record]:
    arrow = _pyarrow(unit)
    number = 0
    with arrow.memory_map(str(unit.path)) as file:
        for batch in arrow.ipc.open_stream(file):
            for start in range(0, batch.num_rows, BATCH_ROWS):
                rows = batch.slice(start, BATCH_ROWS).to_pylist()
                yield from _rows(rows, number)
                number += len(rows)


def _rows(rows: Sequence[dict[str, Json]], before: int) -> Iterator[Record]:
    for number, row in enumerate(rows, start=before + 1):
        yield Record(f"row {number}", {name: _as_json(value) for name, value in row.items()})


def _as_json(value: Json) -> Json:
    """A value of Arrow as JSON holds it: dates as texts, bytes as their number, not-a-number as null."""
    if isinstance(value, dict):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(entry) for entry in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return value if isinstance(value, str | int | None) else str(value)


def _pyarrow(unit: Unit) -> Json:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingPackage(f'{unit.path}: pyarrow is missing, expected it for {unit.kind}; pip install "tinygpt[curate-web]"') from error
    return pyarrow


class _Pieces:
    """A stream as other libraries read it. What stands in front of damaged data is read, and the damage shows afterwards in `error`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = cast(io.BufferedReader, file)
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        if self.error:
            return b""
        try:
            return self._file.read1(size)  # `read` loses what it has when it meets damage
        except Exception as error:
            self.error = error
            return b""


def _opened(read: Callable[[Readable, Path, Report], Iterator[Record]]) -> Callable[[Unit, Report], Iterator[Record]]:
    def records(unit: Unit, report: Report) -> Iterator[Record]:
        with open_file(unit.path) as file:
            pieces = _Pieces(file)
            try:
                yield from read(pieces, unit.path, report)
            finally:
                if pieces.error:
                    raise pieces.error

    return records


KINDS: dict[str, Callable[[Unit, Report], Iterator[Record]]] = {
    "text": _text, "jsonl": _jsonl, "json": _json, "csv": _csv, "parquet": _parquet, "dataset": _dataset,
    "warc": _opened(read_warc), "wikipedia": _opened(read_wikipedia), "stackexchange": _opened(read_posts),
}  # fmt: skip
"""Kind -> reader of a unit."""
