"""Copies that are removed: of documents that are equal, and of lines and paragraphs that many documents share.

    report = remove_exact_copies(Folders(shards, output, work), run, Best(("source", "longest"), sources=("books", "web")))
    report = remove_repeated(Folders(shards, output, work), run, Repeated(line_documents=6))

Each is a few phases over shards; `run(function, n_tasks, name)` calls function(task, n_tasks) for every task, in any order and process, and
returns what they returned. What a phase leaves in `work` and `output` is the same however often it is stopped and started again.

A document that is kept says where its copies were: metadata "copies" [{"id", "source", "url"}, ...], at most 100 of them, and "n_copies".

Sources  equal lines and paragraphs: Wenzek et al. 2020 (CCNet), arXiv:1911.00359, section 3.1, normalization and 64-bit hashes as there; lines
         in more than 6 documents: Llama 3, arXiv:2407.21783, section 3.1.1. Not offered: C4's spans of three sentences (Raffel et al. 2020,
         arXiv:1910.10683, section 2.2) and suffix arrays (Lee et al. 2022, arXiv:2107.06499), which also cut copies out of the middle of sentences.
"""

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial, reduce
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinygpt.curate.documents import Document, Outcome, read_shard, write_shard
from tinygpt.curate.executors import Run
from tinygpt.curate.report import StepReport
from tinygpt.curate.tables import Array, hash_of, load, n_partitions, partition_of, read_partition, save, write_table
from tinygpt.errors import InvalidInput, did_you_mean
from tinygpt.storage.checked_json import Json
from tinygpt.storage.durable import replace_file

MOST_LISTED = 100  # copies whose ids the kept document names
RULES = ("source", "longest", "newest", "oldest", "first")
REMOVED = np.dtype([(name, "u4") for name in ("shard", "index", "kept_shard", "kept_index", "n")] + [("number", "f4")])
"""A document that goes, the one that stays instead of it, how many it stands for (itself and the copies that it names), the deciding number."""


@dataclass(frozen=True)
class Folders:
    """shards: what a stage reads. output: the folder for shards of the same names. work: a folder of its own for what its phases hand on."""

    shards: tuple[Path, ...]
    output: Path
    work: Path


@dataclass(frozen=True)
class Best:
    """Which of several copies is kept: the best by the first of these rules that tells them apart.

    rules      source: the one whose source stands first in `sources`; longest; newest, oldest: by the metadata's date, those without one last;
               first: the one that was read first. Where none decides, the smallest hash of the text does, whatever the order of the input.
    sources    names, the best first
    date       the key of the metadata that holds a date in ISO 8601
    """

    rules: tuple[str, ...] = ("longest", "first")
    sources: tuple[str, ...] = ()
    date: str = "date"

    def __post_init__(self) -> None:
        for rule in self.rules:
            if rule not in RULES:
                fix = did_you_mean(rule, RULES, f"choose among {', '.join(RULES)}")
                raise InvalidInput(f"rule for the best copy: {rule!r}, expected one of {', '.join(RULES)}; {fix}")

    def settings(self) -> dict[str, Json]:
        """All that decides, as JSON values."""
        return {"best": list(self.rules), "sources": list(self.sources), "date": self.date}

    def key(self, document: Document) -> tuple[int, ...]:
        """Numbers to sort by, the best document first; those with equal ones follow in the order in which they were read."""
        found: list[int] = []
        for rule in self.rules:
            if rule == "first":
                return (*found, 0)
            found.append(self._number(rule, document))
        return (*found, hash_of(document.text) - (1 << 63))

    def _number(self, rule: str, document: Document) -> int:
        if rule == "source":
            return self.sources.index(document.source) if document.source in self.sources else len(self.sources)
        if rule == "longest":
            return -len(document.text)
        try:
            date = datetime.fromisoformat(str(document.metadata.get(self.date, "")).strip())
        except ValueError:
            return 1 << 62
        seconds = int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())
        return seconds if rule == "oldest" else -seconds


LONGEST = Best()


def normal_text(text: str) -> str:
    """What two documents must have in common to be equal: the text but for case, white space and how accents are encoded."""
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


# ---- documents and what is known of them ---------------------------------------------------------------------------------------------------


class Records:
    """What a later phase must know of the documents of a shard, without reading it: the order of preference, and where copies were."""

    def __init__(self, best: Best) -> None:
        self.best = best
        self.index: list[int] = []
        self._keys: list[tuple[int, ...]] = []
        self._n: list[int] = []
        self._names: list[bytes] = []

    def add(self, index: int, document: Document) -> None:
        """A document, by its position in the shard."""
        self.index.append(index)
        self._keys.append(self.best.key(document))
        self._n.append(1 + int(document.metadata.get("n_copies", 0)))
        self._names.append(json.dumps(_listed(document), ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")

    def write(self, work: Path, table: str, shard: int, hashes: NDArray[np.uint64], **more: Array) -> NDArray[np.intp]:
        """Saves the table, and the names in their own order next to it; returns the order of the table's rows."""
        index = np.array(self.index, dtype=np.uint32)
        keys = np.array(self._keys, dtype=np.int64).reshape(len(index), len(self.best.key(Document("", ""))))
        order = write_table(work, table, shard, hashes, index=index, keys=keys, n=np.array(self._n, dtype=np.uint32), **more)
        replace_file(work / f"names-{shard:05d}.jsonl", self._names, writer=f"{os.getpid()}-")
        save(work / f"names-{shard:05d}-index.npy", index)
        save(work / f"names-{shard:05d}-start.npy", np.cumsum([0, *map(len, self._names)], dtype=np.int64))
        return order


def _listed(document: Document) -> list[dict[str, Json]]:
    """A document and the copies that it names, as those that will be kept instead of it name them."""
    url, group = (document.metadata.get(key) for key in ("url", "group"))
    own = {"id": document.id, **({"source": document.source} if document.source else {}), **({"url": url} if url else {})}
    own |= {"group": group} if group else {}  # for `_groups`
    return [own, *document.metadata.get("copies", [])][:MOST_LISTED]


def _names(work: Path, shard: int, indexes: Sequence[int]) -> Iterator[list[dict[str, Json]]]:
    """What `_listed` said of some documents of a shard, which are given in order."""
    known = load(work / f"names-{shard:05d}-index.npy")
    starts = load(work / f"names-{shard:05d}-start.npy")[np.searchsorted(known, indexes)]
    with (work / f"names-{shard:05d}.jsonl").open("rb") as file:
        for start in starts.tolist():
            file.seek(start)
            yield json.loads(file.readline().decode("utf-8", "surrogatepass"))


def order_of_preference(part: Mapping[str, Array], *groups: Array) -> NDArray[np.intp]:
    """The order that brings the best document to the front, within groups if there are some: those of the first array are the outermost."""
    return np.lexsort((part["index"], part["shard"], *part["keys"].T[::-1], *groups[::-1]))


def write_removed(work: Path, partition: int, rows: Array) -> None:
    """Saves what was decided (rows as REMOVED) in two orders: by the document that goes, and by the one that stays."""
    for name, shard, index in (("removed", "shard", "index"), ("kept", "kept_shard", "kept_index")):
        save(work / f"{name}-{partition:05d}.npy", rows[np.lexsort((rows["index"], rows["shard"], rows[index], rows[shard]))])


def rows_for(work: Path, name: str, field: str, shard: int) -> Array:
    """What all partitions have decided about the documents of a shard."""
    found = []
    for path in sorted(work.glob(f"{name}-[0-9]*.npy")):
        rows = load(path)
        start, stop = np.searchsorted(rows[field], [shard, shard + 1]).tolist()
        found.append(np.array(rows[start:stop]))
    return np.concatenate(found)


def _copies_of(work: Path, shard: int) -> dict[int, tuple[list[dict[str, Json]], int]]:
    """{position: (names of its copies, at most so many; how many there are)} for the documents of a shard that stay and had copies."""
    rows = rows_for(work, "kept", "kept_shard", shard)
    rows = rows[np.lexsort((rows["index"], rows["shard"]))]
    totals: dict[int, int] = {}
    wanted: dict[int, dict[int, int]] = {}  # {shard: {position of a copy: position of the one that stays}}
    for other, index, kept, n in rows[["shard", "index", "kept_index", "n"]].tolist():
        if totals.get(kept, 0) < MOST_LISTED:
            wanted.setdefault(other, {})[index] = kept
        totals[kept] = totals.get(kept, 0) + n
    found: dict[int, tuple[list[dict[str, Json]], int]] = {kept: ([], total) for kept, total in totals.items()}
    for other, positions in wanted.items():
        for kept, names in zip(positions.values(), _names(work, other, list(positions)), strict=True):
            found[kept][0].extend({key: value for key, value in name.items() if key != "group"} for name in names)
    return found


@dataclass(frozen=True)
class Removal:
    """What a removing phase is told: the stage, by which rule documents go, and its limit. groups: whether documents that stay get a group."""

    name: str
    settings: dict[str, Json]
    rule: str
    limit: float
    groups: bool = False


def remove(task: int, n_tasks: int, folders: Folders, removal: Removal) -> list[StepReport]:
    """Writes the task's shards without the documents that were decided to go."""
    report = StepReport(removal.name, removal.settings)
    folders.output.mkdir(parents=True, exist_ok=True)
    for shard in range(task, len(folders.shards), n_tasks):
        write_shard(folders.output / folders.shards[shard].name, _staying(folders, shard, removal, report))
    return [report]


def _staying(folders: Folders, shard: int, removal: Removal, report: StepReport) -> Iterator[Document]:
    gone = rows_for(folders.work, "removed", "shard", shard)
    numbers = dict(zip(gone["index"].tolist(), gone["number"].tolist(), strict=True))
    copies, groups = _copies_of(folders.work, shard), _groups(folders.work, shard) if removal.groups else {}
    for index, document in enumerate(read_shard(folders.shards[shard])):
        if index in numbers:
            report.add(document, Outcome(None, removal.rule, numbers[index], removal.limit))
            continue
        metadata = dict(document.metadata)
        if index in copies:
            names, n = copies[index]
            metadata["copies"] = [*metadata.get("copies", []), *names][:MOST_LISTED]
            metadata["n_copies"] = metadata.get("n_copies", 0) + n
            report.add_cluster(document, [name["id"] for name in names][:MOST_LISTED], n_others=n)
        if index in groups:
            metadata.setdefault("group", groups[index])  # that of its source comes first: answers to one question
        document = replace(document, metadata=metadata)
        report.add(document, Outcome(document, counts={"in a group": 1} if index in groups else {}))
        yield document


def _groups(work: Path, shard: int) -> dict[int, str]:
    """{position: name of its group} for the documents of a shard that resemble others which stay: the best one's id, or the
    group that its source gave it."""
    rows = rows_for(work, "group", "shard", shard)
    found: dict[int, str] = {}
    for first_shard in np.unique(rows["kept_shard"]).tolist():
        some = rows[rows["kept_shard"] == first_shard]
        firsts, which = np.unique(some["kept_index"], return_inverse=True)
        best = [names[0].get("group", names[0]["id"]) for names in _names(work, first_shard, firsts.tolist())]
        found |= {index: best[i] for index, i in zip(some["index"].tolist(), which.tolist(), strict=True)}
    return found


def total(reports: Iterable[list[StepReport]]) -> StepReport:
    """The one report of a phase."""
    return reduce(StepReport.merge, chain.from_iterable(reports))


# ---- equal documents -----------------------------------------------------------------------------------------------------------------------

EXACT = "exact copies"


def remove_exact_copies(folders: Folders, run: Run, best: Best = LONGEST) -> StepReport:
    """Of documents whose `normal_text` is equal (128 bits of its hash), the best one stays."""
    run(partial(_hash_texts, folders=folders, best=best), len(folders.shards), "exact-hash")
    n = n_partitions(folders.work, "exact")
    run(partial(_choose_equal, folders=folders), n, "exact-choose")
    removal = Removal(EXACT, best.settings(), "exact copy", 1)
    return total(run(partial(remove, folders=folders, removal=removal), len(folders.shards), "exact-remove"))


def _hash_texts(task: int, n_tasks: int, folders: Folders, best: Best) -> list[StepReport]:
    for shard in range(task, len(folders.shards), n_tasks):
        records, digests = Records(best), bytearray()
        for index, document in enumerate(read_shard(folders.shards[shard])):
            records.add(index, document)
            digests += hashlib.blake2b(normal_text(document.text).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        hashes = np.frombuffer(digests, dtype=np.uint64).reshape(-1, 2)
        records.write(folders.work, "exact", shard, hashes[:, 0], more=hashes[:, 1])
    return []


def _choose_equal(task: int, n_tasks: int, folders: Folders) -> list[StepReport]:
    part = read_partition(folders.work, "exact", len(folders.shards), task, n_tasks, ("hash", "more", "index", "n", "keys"))
    order = order_of_preference(part, part["hash"], part["more"])
    hashes = np.stack([part["hash"], part["more"]])[:, order]
    is_first = np.ones(len(order), dtype=bool)
    is_first[1:] = (hashes[:, 1:] != hashes[:, :-1]).any(axis=0)
    group = np.cumsum(is_first) - 1
    gone, kept = order[~is_first], order[np.flatnonzero(is_first)[group[~is_first]]]
    write_removed(folders.work, task, removed_rows(part, gone, kept, np.bincount(group)[group[~is_first]]))
    return []


def removed_rows(part: Mapping[str, Array], gone: Array, kept: Array, numbers: Array) -> Array:
    """Rows of REMOVED for documents of a partition that go, those that stay instead of them, and the numbers that decided."""
    rows = np.zeros(len(gone), dtype=REMOVED)
    for prefix, which in (("", gone), ("kept_", kept)):
        for field in ("shard", "index"):
            rows[prefix + field] = part[field][which]
    rows["n"], rows["number"] = part["n"][gone], numbers
    return rows


# ---- lines and paragraphs ------------------------------------------------------------------------------------------------------------------

REPEATED = "lines and paragraphs"
_PARAGRAPH_ENDS = re.compile(r"(\n(?:[^\S\n]*\n)+)")
_NO_LETTERS = re.compile(r"[\W\d_]+")
_MARKS = re.compile("[\u0300-\u036f]|[^\\w\\s]|_")  # accents, once they stand alone, and punctuation
_ASCII = {**{ord("0") + n: "0" for n in range(10)}, **{code: None for code in range(33, 128) if not chr(code).isalnum()}}


@dataclass(frozen=True)
class Repeated:
    """What counts as boilerplate.

    line_documents        a line that more documents hold is removed from all of them; 0: lines stay
    paragraph_documents   a paragraph stays in so many documents, those that were read first, and is removed from later ones; 0: paragraphs stay
    line_letters, paragraph_letters   a line or paragraph of fewer letters always stays: "Parameters", "}", rows of numbers
    per_source            counts within each source, not over all: what one site repeats is boilerplate there
    least_letters         a document that has fewer letters after it lost some is removed
    """

    line_documents: int = 6
    paragraph_documents: int = 1
    line_letters: int = 30
    paragraph_letters: int = 100
    per_source: bool = False
    least_letters: int = 100

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise InvalidInput(f"{name}: {value}, expected at least 0")

    @property
    def kinds(self) -> tuple[str, ...]:
        """The units that are looked at."""
        return ("paragraph",) * bool(self.paragraph_documents) + ("line",) * bool(self.line_documents)

    def most(self, kind: str) -> int:
        return self.line_documents if kind == "line" else self.paragraph_documents


def normal_line(text: str) -> str:
    """A line or paragraph as it is compared: lower case, digits as 0, no punctuation, no accents, single blanks (CCNet's normalization)."""
    if text.isascii():
        return " ".join(text.lower().translate(_ASCII).split())
    plain = _MARKS.sub("", unicodedata.normalize("NFD", text.lower()))
    return " ".join(re.sub(r"\d", "0", plain).split())


def n_letters(text: str) -> int:
    return len(_NO_LETTERS.sub("", text))


def _unit_hash(text: str, least: int, source: str) -> int:
    """The hash that a line or paragraph goes by; 0: too short to be looked at."""
    text = normal_line(text)
    enough = len(text) >= least and len(text) - text.count("0") - text.count(" ") >= least
    return max(1, hash_of(f"{source}\0{text}" if source else text)) if enough else 0


def remove_repeated(folders: Folders, run: Run, repeated: Repeated = Repeated()) -> StepReport:
    """Removes lines that many documents hold, and paragraphs that stood in earlier ones; then documents of which too little is left.

    Near copies must be gone before: the lines of a text with ten of them would count as boilerplate.
    """
    run(partial(_hash_units, folders=folders, repeated=repeated), len(folders.shards), "repeated-hash")
    n = max([n_partitions(folders.work, kind) for kind in repeated.kinds], default=1)
    run(partial(_find_repeated, folders=folders, repeated=repeated), n, "repeated-find")
    return total(run(partial(_remove_repeated, folders=folders, repeated=repeated, n=n), len(folders.shards), "repeated-remove"))


def _units(kind: str, text: str) -> list[str]:
    """Lines, or paragraphs each with the empty lines after it: all of the text."""
    if kind == "line":
        return text.splitlines(keepends=True)
    parts = [*_PARAGRAPH_ENDS.split(text), ""]
    return [paragraph + end for paragraph, end in zip(parts[::2], parts[1::2], strict=True)]


def _hashes(kind: str, units: Sequence[str], source: str, repeated: Repeated) -> NDArray[np.uint64]:
    least = repeated.line_letters if kind == "line" else repeated.paragraph_letters
    source = source if repeated.per_source else ""
    return np.fromiter((_unit_hash(unit, least, source) for unit in units), dtype=np.uint64, count=len(units))


def _hash_units(task: int, n_tasks: int, folders: Folders, repeated: Repeated) -> list[StepReport]:
    for shard in range(task, len(folders.shards), n_tasks):
        hashes: dict[str, list[NDArray[np.uint64]]] = {kind: [] for kind in repeated.kinds}
        for document in read_shard(folders.shards[shard]):
            for kind, found in hashes.items():
                distinct = np.unique(_hashes(kind, _units(kind, document.text), document.source, repeated))
                found.append(distinct[distinct > 0])
        for kind, found in hashes.items():
            index = np.repeat(np.arange(len(found), dtype=np.uint32), [len(some) for some in found])
            write_table(folders.work, kind, shard, np.concatenate([np.zeros(0, dtype=np.uint64), *found]), index=index)
    return []


def _find_repeated(task: int, n_tasks: int, folders: Folders, repeated: Repeated) -> list[StepReport]:
    """For each unit that more documents hold than may: from which document on it is removed, as shard * 2^32 + position."""
    for kind in repeated.kinds:
        part = read_partition(folders.work, kind, len(folders.shards), task, n_tasks, ("hash", "index"))
        order = np.argsort(part["hash"], kind="stable")  # shards come in order, and positions within each hash of a shard do
        hashes, most = part["hash"][order], repeated.most(kind)
        beyond = np.flatnonzero(
            hashes[most:] == hashes[: max(0, len(hashes) - most)]
        )  # such a row has another of the same hash `most` rows on
        beyond = beyond[np.unique(hashes[beyond], return_index=True)[1]]  # the first of each hash
        one_more = order[beyond + most]  # the first document that may not keep it
        since = (part["shard"][one_more].astype(np.uint64) << np.uint64(32)) + part["index"][one_more]
        save(folders.work / f"repeated-{kind}-{task:05d}-hash.npy", hashes[beyond])
        save(folders.work / f"repeated-{kind}-{task:05d}-since.npy", np.zeros_like(since) if kind == "line" else since)
    return []


class _Limits:
    """What `_find_repeated` has left, looked up on the disk."""

    def __init__(self, work: Path, kind: str, n: int) -> None:
        self._columns = [[load(work / f"repeated-{kind}-{part:05d}-{name}.npy") for name in ("hash", "since")] for part in range(n)]

    def is_removed(self, hashes: NDArray[np.uint64], position: int) -> NDArray[np.bool_]:
        """Which units go from the document at shard * 2^32 + position."""
        found = np.zeros(len(hashes), dtype=bool)
        parts = partition_of(hashes, len(self._columns))
        for part in np.unique(parts).tolist():
            known, since = self._columns[part]
            if len(known):
                which = np.flatnonzero(parts == part)
                row = np.minimum(np.searchsorted(known, hashes[which]), len(known) - 1)
                found[which] = (known[row] == hashes[which]) & (since[row] <= position)
        return found


def _remove_repeated(task: int, n_tasks: int, folders: Folders, repeated: Repeated, n: int) -> list[StepReport]:
    report = StepReport(REPEATED, asdict(repeated))
    limits = {kind: _Limits(folders.work, kind, n) for kind in repeated.kinds}

    def staying(shard: int) -> Iterator[Document]:
        for index, document in enumerate(read_shard(folders.shards[shard])):
            outcome = without_repeated(document, (shard << 32) + index, limits, repeated)
            report.add(document, outcome)
            if outcome.document is not None:
                yield outcome.document

    folders.output.mkdir(parents=True, exist_ok=True)
    for shard in range(task, len(folders.shards), n_tasks):
        write_shard(folders.output / folders.shards[shard].name, staying(shard))
    return [report]


def without_repeated(document: Document, position: int, limits: Mapping[str, _Limits], repeated: Repeated) -> Outcome:
    """A document without the units that go. Paragraphs are looked at first; what stays of them is divided into lines."""
    text, counts = document.text, {}
    for kind, limit in limits.items():
        units = _units(kind, text)
        gone = limit.is_removed(_hashes(kind, units, document.source, repeated), position)
        if gone.any():
            counts[f"repeated {kind}"] = int(gone.sum())
            text = "".join(unit for unit, is_gone in zip(units, gone.tolist(), strict=True) if not is_gone)
    if not counts:
        return Outcome(document)
    text = re.sub(r"\n{3,}", "\n\n", text).strip("\n")
    left = n_letters(text)
    if left < repeated.least_letters:
        return Outcome(None, "little left", left, repeated.least_letters, counts)
    return Outcome(replace(document, text=text), counts=counts)
