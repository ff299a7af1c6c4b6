"""Labeled texts: read from files of several formats, checked, balanced, and split so that no text is in two splits.

    data = load_labeled("doc-sections")                     # what every installation already has; no network
    data = load_labeled("sms-spam")                         # downloaded once, checked by sha256
    data = load_labeled("my.csv", text_column="message")    # txt, csv, tsv, json, jsonl
    print(table("data", check(data.rows, lengths, limit)))    # counts, duplicates, conflicts; lengths in tokens
    parts = split(data, seed=0)                              # parts.train, parts.validation, parts.test

A test text that is a copy of a training text measures memory, not learning. So equal texts (but for case and white space) form a group,
and groups are never divided.
"""

import dataclasses
import functools
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tinygpt.data.corpora import Document
from tinygpt.data.near_copies import group_near_copies
from tinygpt.data.rows import Table, check_column, find_file, read_table, text_in, unicode_in
from tinygpt.errors import InvalidInput
from tinygpt.finetuning.rows import Data, Shares, Split, complete_rows, group_equal, plain, rows_of_docs, split_groups
from tinygpt.storage.checked_json import Json

SECTIONS = ("Parameters", "Returns", "Notes", "Examples", "See Also")  # the labels of doc-sections, as numpydoc names them
TEXT_NAMES = ("text", "message", "sentence", "content", "body", "review", "comment", "document", "passage", "question", "sms", "tweet")
LABEL_NAMES = ("label", "class", "category", "target", "sentiment", "topic", "tag", "intent")


@dataclass(frozen=True)
class LabeledText:
    """One text and its label; place and group as in `tinygpt.finetuning.rows.Located`."""

    text: str
    label: str
    place: str
    group: int = -1


class LabeledData(Data[LabeledText]):
    @property
    def labels(self) -> list[str]:
        """All labels, each once, sorted: the order of the head's outputs."""
        return sorted({row.label for row in self.rows + self.held_out})


def load_labeled(
    name_or_path: str | Path, *, text_column: str = "", label_column: str = "", near_copies: bool = False, cache: str | Path | None = None
) -> LabeledData:
    """Reads labeled texts. Rows whose text is empty are left out, and counted in `notes`.

    name_or_path                 "doc-sections", "sms-spam", or a file, as `tinygpt.data.rows.read_table` reads it
    text_column, label_column    names of the columns (or keys); by default guessed, and `notes` says how
    near_copies                  group texts that share much of their wording too (see `group_near_copies`), not only equal ones
    cache                        folder for downloads; by default the user's cache folder
    Raises ValueError, naming file, row, field and problem, for ragged rows, missing columns or values, texts that are no text and a file
    without rows; FileNotFoundError for an unknown name or path; ConnectionError for a download that fails.
    """
    if name_or_path == "doc-sections":
        return doc_sections()
    path, source = find_file(name_or_path, ["doc-sections", "sms-spam"], cache=cache)
    if name_or_path == "sms-spam":
        text_column, label_column = text_column or "2", label_column or "1"
    table = read_table(path, {*TEXT_NAMES, *LABEL_NAMES}, {text_column, label_column})
    text_column, label_column = _choose_columns(table, text_column, label_column)

    def parse(place: str, values: dict[str, Json]) -> LabeledText | None:
        row = LabeledText(text_in(table, place, text_column, values), _label(table, place, label_column, values), place)
        return row if row.text.strip() else None

    rows = complete_rows(table, parse, "text", "with an empty text")
    _check_alike(table, label_column, [row.label for row in rows])
    return LabeledData(str(name_or_path), group_copies(rows, near_copies=near_copies), source, notes=table.notes)


def group_copies(rows: Sequence[LabeledText], *, near_copies: bool = False) -> list[LabeledText]:
    """The rows with group numbers: texts that are equal but for case and white space get the same; with near_copies, similar ones too."""
    groups = (group_near_copies if near_copies else group_equal)([plain(row.text) for row in rows])
    return [dataclasses.replace(row, group=group) for row, group in zip(rows, groups, strict=True)]


def doc_sections(max_characters: int = 160) -> LabeledData:
    """NumPy's docstrings as a labeled set: the beginning of a section, and which of `SECTIONS` it came from. See `rows_of_docs`.

    max_characters   complete lines are used up to this length; a longer first line is cut
    """
    what, repeated = "the beginnings of sections of NumPy's docstrings", "near-copies of earlier texts"
    parse = functools.partial(_sections, max_characters=max_characters)
    return LabeledData("doc-sections", *rows_of_docs(what, parse, lambda row: row.text, group_near_copies, repeated))


def _sections(document: Document, max_characters: int) -> Iterator[LabeledText]:
    """numpydoc writes a section as its name, a line of dashes as long, and the body."""
    parts = re.split(r"^(\S.*)\n-{3,}[ \t]*$", document.text, flags=re.MULTILINE)  # text, name, body, name, body, ...
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        text = textwrap.dedent(body).strip()[: max_characters + 1]
        if len(text) > max_characters:
            text = text.rpartition("\n")[0] or text[:max_characters]  # whole lines
        if name in SECTIONS and len(text) >= 20:
            yield LabeledText(text.rstrip(), name, f"{document.name}, {name}", document.group)


def check(rows: Sequence[LabeledText], lengths: Sequence[int], limit: int) -> dict[str, str]:
    """What to know before training, as lines of a table. lengths: tokens of each text, uncut; limit: how many fit the context."""
    counts = Counter(row.label for row in rows).most_common()
    first: dict[str, LabeledText] = {}
    pairs = [(first.setdefault(plain(row.text), row), row) for row in rows]
    conflicts = [f"{one.place} and {other.place}" for one, other in pairs if one.label != other.label]
    lines = {
        "rows": f"{len(rows):,}",
        "labels": ", ".join(f"{label} {n:,} ({n / len(rows):.0%})" for label, n in counts),
        "duplicates": f"{len(rows) - len(first):,} rows repeat an earlier text; copies stay on one side of the split",
    }
    if conflicts:
        lines["conflicts"] = f"{len(conflicts):,} equal texts with different labels, as {conflicts[0]}"
    lines["lengths"] = f"at most {max(lengths):,} tokens; {sum(n > limit for n in lengths):,} texts are longer than the context"
    if rare := [label for label, n in counts if n < 50]:
        lines["warning"] = f"fewer than 50 rows of {', '.join(rare)}: expect figures that change a lot with the seed"
    return lines


def balance(rows: Sequence[LabeledText], how: Literal["none", "under", "over"], seed: int = 0) -> list[LabeledText]:
    """As many rows of each label, drawn by seed. "under" leaves out rows of the frequent labels, "over" repeats rows of the rare ones.

    Balance training rows only: test rows should be distributed as the texts that the classifier will meet. Raises ValueError for others.
    """
    if how not in ("none", "under", "over"):
        raise InvalidInput(f"balance: {how!r}, expected none, under or over; none keeps the rows as they are")
    if how == "none":
        return list(rows)
    rng = np.random.default_rng(seed)
    of_label = {label: [i for i, row in enumerate(rows) if row.label == label] for label in {row.label for row in rows}}
    sizes = [len(numbers) for numbers in of_label.values()]
    kept: list[int] = []
    for _, numbers in sorted(of_label.items()):
        if how == "under":
            kept += rng.permutation(numbers)[: min(sizes)].tolist()
        else:
            kept += numbers + rng.choice(numbers, max(sizes) - len(numbers)).tolist()
    return [rows[i] for i in sorted(kept)]


def split(data: LabeledData, fractions: Shares = (0.7, 0.1, 0.2), *, seed: int = 0, stratified: bool = False) -> Split[LabeledText]:
    """Training, validation and test rows, as `tinygpt.finetuning.rows.split_groups` draws them.

    stratified    draw within each label, so that all parts have its share of each
    Raises ValueError as that does, and for a single label, one with fewer groups than parts, and one without a training row.
    """
    labels = sorted({row.label for row in data.rows})
    if len(labels) < 2:
        raise InvalidInput(f"labels: only {labels} in {len(data.rows)} rows, expected at least 2 different; check the label column")
    parts = ("training", "validation") if data.held_out else ("training", "validation", "test")
    for label in labels:
        if (n := len({row.group for row in data.rows if row.label == label})) < len(parts):
            found, rule = f"{n} different text{'s' if n > 1 else ''}", f"at least {len(parts)}, one each for {', '.join(parts)}"
            raise InvalidInput(f"label {label!r}: {found}, expected {rule}; add rows, or leave the label out")
    of_label: defaultdict[str, set[int]] = defaultdict(set)
    for group, label in {row.group: row.label for row in reversed(data.rows)}.items():  # a group counts for its first row's label
        of_label[label].add(group)
    parted = split_groups(data, fractions, seed, [of_label[label] for label in labels] if stratified else [set().union(*of_label.values())])
    if unseen := sorted({row.label for row in parted.validation + parted.test} - {row.label for row in parted.train}):
        fix = "split by another --seed" + ("" if stratified else ", or with --stratified")
        raise InvalidInput(f"split: label {unseen[0]!r} has no training row, expected each label there; {fix}")
    return parted


def _choose_columns(table: Table, text_column: str, label_column: str) -> tuple[str, str]:
    """The two columns: as requested, else by their names, else by their contents; a guess becomes a note."""
    for name, option in ((text_column, "--text-column"), (label_column, "--label-column")):
        if name:
            check_column(table, name, option)
    guessed = not (text_column and label_column)
    free = [column for column in table.columns if column not in (text_column, label_column)]
    text_column = text_column or next((c for c in free if c.casefold() in TEXT_NAMES), "")
    label_column = label_column or next((c for c in free if c.casefold() in LABEL_NAMES and c != text_column), "")
    free = [column for column in free if column not in (text_column, label_column)]
    if not (text_column or label_column) and len(free) == 2:  # labels repeat, texts do not
        n_different = [len({str(values.get(column)) for _, values in table.rows}) for column in free]
        if n_different[0] != n_different[1]:
            label_column, text_column = free if n_different[0] < n_different[1] else reversed(free)
    elif bool(text_column) != bool(label_column) and len(free) == 1:
        text_column, label_column = text_column or free[0], label_column or free[0]
    if text_column and text_column == label_column:
        raise InvalidInput(f"{table.path}: column {text_column!r} for texts and for labels, expected two different ones; name the other")
    if not text_column or not label_column:
        found, fix = f"columns {', '.join(map(repr, table.columns))}", "name them with --text-column and --label-column"
        raise InvalidInput(f"{table.path}: {found}, expected to recognize one of texts and one of labels; {fix}")
    if guessed:
        table.notes.append(f"texts guessed to be in column {text_column!r}, labels in {label_column!r}")
    return text_column, label_column


def _label(table: Table, place: str, column: str, values: dict[str, Json]) -> str:
    value = values.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes 1 as 1.0 where a number is missing elsewhere in the column
    label = "" if value is None else str(value).strip()
    if not label or isinstance(value, (list, dict)):
        found = f"a {type(value).__name__}" if label else "missing" if column not in values else "empty" if value == "" else "null or NaN"
        raise InvalidInput(f"{table.path}: {place}: {column} is {found}, expected one label; correct or remove the row")
    return unicode_in(table, place, column, label)


def _check_alike(table: Table, column: str, labels: Sequence[str]) -> None:
    """Notes labels that differ in writing only. Raises ValueError for true beside 1: which of them mean the same, nobody can tell."""
    kinds = {isinstance(values.get(column), bool): f"{values[column]} ({place})" for place, values in reversed(table.rows)
             if isinstance(values.get(column), bool | int | float)}  # fmt: skip
    if len(kinds) > 1:
        found = f"labels {kinds[True]} and {kinds[False]}"
        raise InvalidInput(f"{table.path}: {found}, expected truth values or numbers; write all of one kind")
    alike: defaultdict[str, set[str]] = defaultdict(set)
    for label in labels:
        alike[re.sub(r"^([+-]?\d+)\.0*$", r"\1", label.casefold())].add(label)
    for said in [" and ".join(map(repr, sorted(same))) for same in alike.values() if len(same) > 1]:
        table.notes.append(f"labels {said} differ in writing only and count as different classes; write them alike if they are one")
