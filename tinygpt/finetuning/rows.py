"""What labeled texts and instructions share: a data set of rows, groups of copies, and parts that divide no group."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Generic, Protocol, TypeVar

import numpy as np

from tinygpt.data.corpora import Document, load_corpus
from tinygpt.data.rows import Table
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json


class Located(Protocol):
    """A row: its location for messages ("line 7", "record 7", a document's name); rows of a group are never in different parts."""

    @property
    def place(self) -> str: ...
    @property
    def group(self) -> int: ...


Row = TypeVar("Row", bound=Located)
Shares = tuple[float, float, float]
"""Of training, validation and test rows."""


@dataclass
class Data(Generic[Row]):
    """Rows from one source.

    rows        to be split
    held_out    test rows that were fixed beforehand; where there are some, rows are split into training and validation only
    source      where they come from, as a sentence for people
    notes       what was guessed and what was left out, as sentences
    """

    name: str
    rows: list[Row]
    source: str
    held_out: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Split(Generic[Row]):
    train: list[Row]
    validation: list[Row]
    test: list[Row]


def complete_rows(table: Table, parse: Callable[[str, dict[str, Json]], Row | None], wanted: str, lacking: str) -> list[Row]:
    """What `parse` makes of each (place, values). Rows of which it makes None are left out, and counted in the notes as `lacking` says.

    Raises ValueError if there is no row with what is `wanted`.
    """
    parsed = [(place, parse(place, values)) for place, values in table.rows]
    rows, empty = [row for _, row in parsed if row is not None], [place for place, row in parsed if row is None]
    if not rows:
        raise InvalidInput(f"{table.path}: no row with {wanted}, expected some; check that it is the file that you mean")
    if empty:
        table.notes.append(f"{len(empty)} rows {lacking} left out ({', '.join(empty[:3])}{', ...' if len(empty) > 3 else ''})")
    return rows


def rows_of_docs(
    what: str, parse: Callable[[Document], Iterable[Row]], text: Callable[[Row], str], group: Callable[[list[str]], list[int]],
    repeated: str,
) -> tuple[list[Row], str, list[Row], list[str]]:  # fmt: skip
    """Rows of the corpus "docs", the fields of `Data` after its name: of rows whose texts are in one group only the first is kept.

    Test rows (`held_out`) come from the validation documents alone, and last: a model pretrained on that corpus has read the rest.
    """
    corpus = load_corpus("docs")
    train, test = ([row for document in side for row in parse(document)] for side in (corpus.train, corpus.validation))
    groups = group([plain(text(row)) for row in train + test])
    is_first = [groups.index(number) == i for i, number in enumerate(groups)]
    notes = ["test rows come from the validation documents of the corpus alone", f"{is_first.count(False)} {repeated} left out"]
    return list(compress(train, is_first)), f"{what}; {corpus.source}", list(compress(test, is_first[len(train) :])), notes


def plain(text: str) -> str:
    """The text without what does not make it another one: case, and the kind of white space."""
    return " ".join(text.casefold().split())


def group_equal(texts: Iterable[str]) -> list[int]:
    """The number of each text's group: equal texts have the same, numbers are given in order of appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(text, len(numbers)) for text in texts]


def split_groups(data: Data[Row], shares: Shares, seed: int, strata: Iterable[Collection[int]]) -> Split[Row]:
    """Training, validation and test rows, drawn by seed; groups are never divided, so the shares are met up to the size of a group.

    shares   of the rows; the last is not used where the data brings its own test rows
    strata   the groups, in sets that are dealt one after the other: within each the shares are met
    Raises ValueError if shares are not positive.
    """
    if not all(share > 0 for share in shares):
        raise InvalidInput(f"split: fractions {shares}, expected three positive shares, such as 0.7, 0.1, 0.2")
    n_parts = 2 if data.held_out else 3
    rng = np.random.default_rng(seed)
    part_of: dict[int, int] = {}
    for groups in strata:
        part_of |= deal_groups([row.group for row in data.rows if row.group in groups], shares[:n_parts], rng)
    sides = [[row for row in data.rows if part_of[row.group] == part] for part in range(n_parts)]
    return Split(sides[0], sides[1], data.held_out or sides[-1])


def deal_groups(groups: Sequence[int], shares: Sequence[float], rng: np.random.Generator) -> dict[int, int]:
    """The part of each group, given the group of each row (rows,): whole groups in random order, each to the first part that has room.

    shares   of the rows, one per part; met exactly unless large groups prevent it. No part stays empty if there are enough groups.
    """
    sizes = Counter(groups)  # in order of appearance
    if not sizes:
        return {}
    ends = np.rint(np.cumsum(shares) / sum(shares) * len(groups))
    room = np.diff(ends, prepend=0)  # (parts,) rows that each may still take
    drawn = [list(sizes)[i] for i in rng.permutation(len(sizes))]
    part_of: dict[int, int] = {}
    for group in drawn:
        fits = np.flatnonzero(room >= sizes[group])
        part_of[group] = int(fits[0] if len(fits) else room.argmax())
        room[part_of[group]] -= sizes[group]
    for empty in set(range(len(shares))) - set(part_of.values()):
        largest = Counter(part_of.values()).most_common(1)[0][0]
        part_of[next(group for group in reversed(drawn) if part_of[group] == largest)] = empty
    return part_of
