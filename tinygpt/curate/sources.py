"""Where documents come from: named sources, each a file, a folder or a data set, read in units that workers share.

    specs = [parse_spec("wiki=dump.xml.bz2,weight=0.3,license=CC BY-SA 4.0"), parse_spec("books/")]
    specs = read_specs("sources.toml")                                # the same, a table per source
    (wiki, books) = open_sources(specs)                               # lists the files; reads none of them
    for document in wiki.read(task=0, n_tasks=8, bad=BadInput("skip")): ...

One after the other, tasks 0 to n_tasks - 1 give the same documents in the same order for every n_tasks. What the formats are, and how each is
divided, is in formats.py.
"""

import contextlib
import hashlib
import itertools
import json
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, get_args

from tinygpt.curate.documents import Document
from tinygpt.curate.formats import COMPRESSED, KINDS, SUFFIXES, Unit, find_units
from tinygpt.curate.records import BadRecord, Record
from tinygpt.data.corpora import docs_texts, run_name, some_files, user_path
from tinygpt.errors import InvalidInput, MissingFile, did_you_mean
from tinygpt.fields import from_dict
from tinygpt.storage.checked_json import Json
from tinygpt.storage.durable import read_digest

Policy = Literal["stop", "skip"]
EXAMPLES = 5  # of what could not be read, for each kind
LICENSES = {  # of dumps that state none in the file, as their publishers state it
    "wikipedia": "CC BY-SA 4.0 and GFDL (dumps.wikimedia.org/legal.html)",
    "stackexchange": "CC BY-SA, the version of each post in its metadata",
    "docs": "NumPy: BSD-3-Clause; Python's documentation: PSF-2.0",
}
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # what file names are made of


@dataclass(frozen=True)
class SourceSpec:
    """What a user says of a source.

    name      as the report and the mixture call it
    path      a file, a folder, a data set saved to disk, or "docs", the text that every installation has
    kind      one of `tinygpt.curate.formats.KINDS`; "": by the name of each file
    weight    its share of the mixture in bytes, in proportion to the others' weights; None: in proportion to its size
    license   under which terms the text may be used: a note, copied to the output
    text      the field (column, key) with the text; id: the field with a name that is unique in its file; "": the number of line or row
    pattern   of a folder, only files of this pattern, such as "*.py", which are read as text unless `kind` says otherwise
    """

    name: str
    path: str
    kind: str = ""
    weight: float | None = None
    license: str = ""
    text: str = "text"
    id: str = ""
    pattern: str = ""

    def __post_init__(self) -> None:
        where = f"source {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise InvalidInput(f"{where}: expected letters, digits, dots, hyphens and underscores; write NAME=PATH")
        if not self.path or not self.text:
            raise InvalidInput(f"{where}: path {self.path!r}, text {self.text!r}, expected neither empty; name a file and a field")
        if self.kind and self.kind not in KINDS:
            raise InvalidInput(f"{where}: kind {self.kind!r}, expected one of {', '.join(KINDS)}; {did_you_mean(self.kind, KINDS)}")
        if self.weight is not None and not 0 < self.weight < float("inf"):
            raise InvalidInput(f"{where}: weight {self.weight}, expected more than 0; leave out a source that you do not want")


def parse_spec(given: str) -> SourceSpec:
    """A source from a command line: PATH or NAME=PATH, and then ,weight=.. ,license=.. ,kind=.. ,text=.. ,id=.. ,pattern=.. in any order.

    A path may hold commas and "=": only a known word with "=" after a comma ends it, and only a name without "/" in front of "=" is one.
    Raises ValueError for what `SourceSpec` refuses.
    """
    head, *parts = given.split(",")
    options: dict[str, Json] = {}
    key = ""
    for part in parts:
        word, equals, value = part.partition("=")
        if equals and word.strip() in ("kind", "weight", "license", "text", "id", "pattern"):
            key = word.strip()
            options[key] = value
        elif key:  # a license with a comma in it
            options[key] += f",{part}"
        else:
            head += f",{part}"
    name, equals, path = head.partition("=")
    if not equals or not _NAME.fullmatch(name) or user_path(head).exists():
        name, path = run_name(head), head
        for suffix in reversed(Path(path).suffixes):
            name = name.removesuffix(suffix if suffix.lower() in (*COMPRESSED, *SUFFIXES, ".xml") else "")
    if "weight" in options:
        try:
            options["weight"] = float(options["weight"])
        except ValueError:
            raise InvalidInput(f"source {name!r}: weight {options['weight']!r}, expected a number; such as weight=0.3") from None
    return SourceSpec(name, path, **options)


def read_specs(path: str | Path) -> list[SourceSpec]:
    """Sources from a TOML file, a table each: [wiki] path = "dump.xml.bz2", weight = 0.3, license = "CC BY-SA 4.0". Paths are relative to the
    file. Raises FileNotFoundError without it; ValueError, naming the table, for what is no TOML, for unknown keys and wrong values."""
    file = user_path(path)
    if not file.is_file():
        raise MissingFile(f"sources {str(path)!r}: no such file, expected a TOML file with a table for each source; check the path")
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: {error}, expected TOML; correct it there") from None
    specs = []
    for name, table in tables.items():
        if not isinstance(table, dict) or not isinstance(table.get("path"), str):
            raise InvalidInput(f'{path}: {name} = {table!r:.60}, expected a table with a path; write [{name}] and path = "..." below it')
        for key, value in table.items():
            if key not in SourceSpec.__dataclass_fields__:
                known = list(SourceSpec.__dataclass_fields__)
                raise InvalidInput(f"{path}: [{name}]: unknown key {key!r}, expected one of {', '.join(known)}; {did_you_mean(key, known)}")
            if key in SourceSpec.__dataclass_fields__ and isinstance(value, str) != (key != "weight"):
                rule = "a number" if key == "weight" else "a text"
                raise InvalidInput(f"{path}: [{name}] {key} = {value!r}, expected {rule}; correct it there")
        place = table["path"] if table["path"] == "docs" else str(file.parent / user_path(table["path"]))
        specs.append(from_dict(SourceSpec, {"name": name, **table, "path": place}))
    return specs


@dataclass
class BadInput:
    """What could not be read, counted by kind. policy: "stop" raises the first error, "skip" leaves out the record, or the rest of the file.

    counts     kind: how many ("damaged file", "missing file", "not an object", "missing field", ...)
    examples   kind: the first few messages
    empty      documents without text: left out under both policies
    """

    policy: Policy = "stop"
    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    empty: int = 0

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            raise InvalidInput(f"bad input: {self.policy!r}, expected stop or skip; {did_you_mean(self.policy, get_args(Policy))}")

    def found(self, problem: BadRecord) -> None:
        """Counts a problem, or raises it."""
        if self.policy == "stop":
            raise InvalidInput(f"{problem}, or leave out what is bad with --bad-input skip") from problem
        self.counts[problem.kind] += 1
        some = self.examples.setdefault(problem.kind, [])
        if len(some) < EXAMPLES:
            some.append(str(problem))


@dataclass(frozen=True)
class Source:
    """A source whose files are known. left_out: files of the folder that no reader takes, as the end of a sentence."""

    spec: SourceSpec
    units: tuple[Unit, ...]
    left_out: str = ""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def n_bytes(self) -> int:
        """Size of the files, compressed as they are."""
        return sum(unit.n_bytes for unit in self.units)

    def read(self, task: int = 0, n_tasks: int = 1, bad: BadInput | None = None) -> Iterator[Document]:
        """This task's documents: a run of units with about its share of the bytes. No more than one record is in memory at once, and of
        Parquet and Arrow files one batch.

        bad   counts what could not be read, or stops; default: stops
        Raises ValueError, naming file and line or row, for bad input with the policy "stop"; ImportError, naming the extra, for a format
        whose library is missing.
        """
        bad = bad or BadInput()
        for unit in self.units_of(task, n_tasks):
            for record in _records(unit, self.spec, bad):
                with _counted(bad):
                    document = _document(self.spec, unit, record)
                    if document.text.strip():
                        yield document
                    else:
                        bad.empty += 1

    def units_of(self, task: int, n_tasks: int) -> list[Unit]:
        """The units whose middle lies in the task's share of all bytes."""
        if not 0 <= task < n_tasks:
            raise InvalidInput(f"source {self.name!r}: task {task} of {n_tasks}, expected 0 to {n_tasks - 1}")
        sizes = [unit.n_bytes + 1 for unit in self.units]  # + 1: empty files are divided, too
        before, total = itertools.accumulate(sizes, initial=0), sum(sizes)
        return [u for u, start, size in zip(self.units, before, sizes, strict=False) if (2 * start + size) * n_tasks // (2 * total) == task]

    def describe(self) -> dict[str, Json]:
        """What the settings of the output say of it: the spec, and the files with a hash of their names and contents, which reads them once."""
        spec, files = self.spec, {(unit.name, _contents(unit)) for unit in self.units}
        return {
            "name": spec.name, "path": spec.path, "kinds": sorted({unit.kind for unit in self.units}), "license": self.license(),
            "weight": spec.weight, "text": spec.text, "id": spec.id, "files": len(files), "bytes": self.n_bytes,
            "sha256": hashlib.sha256(repr(sorted(files)).encode()).hexdigest(),
        }  # fmt: skip

    def license(self) -> str:
        """The note of the spec; without one, what the publishers of known dumps state."""
        kinds = {unit.kind for unit in self.units}
        return self.spec.license or (LICENSES.get(kinds.pop(), "not stated") if len(kinds) == 1 else "not stated")


def _contents(unit: Unit) -> str:
    """sha256 of a unit's file, or why there is none: reading it will say more."""
    if unit.kind == "docs":
        return hashlib.sha256(repr(docs_texts()).encode("utf-8", "surrogatepass")).hexdigest()
    try:
        known = unit.path.stat()
        return _digest(unit.path, known.st_size, known.st_mtime_ns)
    except OSError as error:
        return str(error.strerror)


@cache
def _digest(path: Path, n_bytes: int, changed_ns: int) -> str:
    return read_digest(path).sha256


def open_sources(specs: Iterable[SourceSpec], output: str | Path | None = None) -> list[Source]:
    """The sources with their files, in the order of the specs, without those in the folder `output`, which is being made. Raises FileNotFoundError for a path that does not exist; ValueError for a
    folder without a file that is read, for a name twice, and if some have a weight and others have none."""
    specs = list(specs)
    if not specs:
        raise InvalidInput("sources: none, expected at least one; name a file, a folder or docs")
    _check(specs)
    return [_open(spec, Path(output) if output else None) for spec in specs]


def _check(specs: Sequence[SourceSpec]) -> None:
    twice = [name for name, n in Counter(spec.name for spec in specs).items() if n > 1]
    if twice:
        raise InvalidInput(f"sources: name {twice[0]!r} twice, expected different ones; write NAME=PATH")
    without = [spec.name for spec in specs if spec.weight is None]
    if without and len(without) < len(specs):
        raise InvalidInput(f"sources: no weight for {', '.join(without)}, expected one for each source or for none; add ,weight=..")


def _open(spec: SourceSpec, output: Path | None) -> Source:
    path = user_path(spec.path)
    if spec.path == "docs" and not spec.kind:
        return Source(spec, (Unit(Path("docs"), "docs", "docs", 0, 0),))
    if not path.exists():
        fix = did_you_mean(spec.path, ["docs"], "check the path")
        raise MissingFile(f"source {spec.name!r}: {spec.path}: no such file or folder, expected a path, or docs; {fix}")
    units, others = find_units(path, spec.kind, spec.pattern, output)
    if not units:
        rule = f"expected files that match {spec.pattern!r}" if spec.pattern else f"expected files of the formats {', '.join(KINDS)}"
        fix = "check the path, or name the files with pattern=*.EXT, to be read as text"
        raise InvalidInput(f"source {spec.name!r}: {spec.path}: no such document among {len(others)} files, {rule}; {fix}")
    return Source(spec, tuple(units), some_files(others, "of no known format"))


def _records(unit: Unit, spec: SourceSpec, bad: BadInput) -> Iterator[Record]:
    """The records of a unit. An error of the file itself ends it."""
    if unit.kind == "docs":
        for name, text in docs_texts().items():
            yield Record(name, {"text": text})
        return
    with _counted(bad):
        yield from unit.records(bad.found)


@contextlib.contextmanager
def _counted(bad: BadInput) -> Iterator[None]:
    try:
        yield
    except BadRecord as problem:
        bad.found(problem)


def _plain(fields: dict[str, Json], where: str) -> dict[str, Json]:
    """Fields as a shard can hold them: infinity, which JSON lacks, is null. Half a character is a bad record."""
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except UnicodeEncodeError:
        rule = "expected Unicode text; correct or remove the record"
        raise BadRecord("not Unicode", f"{where}: another field than the text holds a lone surrogate, {rule}") from None
    except ValueError:
        return _plain({name: _finite(value) for name, value in fields.items()}, where)
    return fields


def _finite(value: Json) -> Json:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _document(spec: SourceSpec, unit: Unit, record: Record) -> Document:
    """A record as a document. Fields other than the text become metadata."""
    fields = dict(record.fields)
    where = f"{unit.path}: {record.place}" if record.place else str(unit.path)
    key = "text" if unit.has_own_text else spec.text
    values = {}
    for name in filter(None, (key, spec.id if not unit.has_own_text else "")):
        if name not in fields:
            fix = did_you_mean(name, fields, f"name one of them with {'text' if name == key else 'id'}=..")
            raise BadRecord(
                "missing field", f"{where}: no field {name!r}, expected it among {', '.join(map(repr, fields)) or 'none'}; {fix}"
            )
        values[name] = fields[name]
    text = fields.pop(key)
    fields = _plain(fields, where)
    for name in ("copies", "n_copies"):  # ours: `tinygpt.curate.copies` writes and reads them
        if name in fields:
            fields[f"original_{name}"] = fields.pop(name)
    if not isinstance(text, str | None):
        raise BadRecord("not a text", f"{where}: {key} is a {type(text).__name__}, expected a text; correct or remove the record")
    if text and re.search("[\ud800-\udfff]", text):
        raise BadRecord("not Unicode", f"{where}: {key} holds a lone surrogate, expected Unicode text; correct or remove the record")
    group = fields.pop("group", None)
    if group not in (None, ""):  # of posts about one question; another source may have the same number
        fields["group"] = f"{spec.name} {group}"
    place = str(values[spec.id]) if spec.id in values else record.place.rpartition(" ")[2]
    id = f"{spec.name}/{unit.name}:{place}" if place else f"{spec.name}/{unit.name}"
    return Document(id, text or "", spec.name, fields)
