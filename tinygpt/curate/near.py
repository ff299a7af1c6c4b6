"""Near copies: documents that share most of their wording. The best one of them stays, and says where the others were.

    report = remove_near_copies(Folders(shards, output, work), run, Near(similarity=0.6), Best(("longest", "first")))

How alike two documents are is the Jaccard similarity of their shingles: of all runs of 5 words that one of them has, the share that both
have. Documents are taken in order of preference. One that is at least `similarity` alike to one that stays goes, and is named there; every
other stays. So whatever goes is a near copy of something that stays: it is never lost through a chain of ever less similar ones.

The index that finds those pairs is exact. Where it does not fit into memory, MinHash (`minhash.py`) first divides the documents into
clusters, and the same index decides within each: MinHash may miss a pair, but what is removed is alike by the exact number.

Sources  shingles: Broder 1997, "On the resemblance and containment of documents". Why two alike documents share one of their rarest shingles:
         Chaudhuri et al. 2006, "A primitive operator for similarity joins in data cleaning", section 4.1; Bayardo et al. 2007, "Scaling up
         all pairs similarity search".
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autograd.limits import memory_limit, resident_bytes
from tinygpt.curate.copies import (
    LONGEST,
    Best,
    Folders,
    Records,
    Removal,
    order_of_preference,
    remove,
    removed_rows,
    total,
    write_removed,
)
from tinygpt.curate.documents import read_shard
from tinygpt.curate.executors import Run
from tinygpt.curate.report import StepReport
from tinygpt.curate.tables import Array, column, load, n_partitions, range_of, read_partition, rows_of, save
from tinygpt.data.ngrams import run_numbers
from tinygpt.errors import InvalidInput, MissingPackage
from tinygpt.training.memory_budget import readable

NEAR = "near copies"
MOST_HOLDERS = 64  # of one shingle, that are looked at to find a document's group: pages of one template meet in the first ones
PART = 1 << 20  # shingles that are sorted at once
DOCUMENTS = 1 << 11  # whose shingles are counted at once
BASE_BYTES, SHINGLE_BYTES = 256 << 20, 32  # of memory, whatever there is to compare; and for each shingle that several documents hold
CLUSTERS_BYTES = 128 << 20  # of shingles, for one task, which holds a little more than twice as much


@dataclass(frozen=True)
class Near:
    """similarity   documents that are at least so alike (0 to 1) are near copies
    group        documents that stay, and are at least so alike, get the same `group` in their metadata, so that no split divides them
    n_words      words of a shingle; a shorter document has none, and only an equal one is its copy
    method       exact: the index alone; minhash: within clusters that MinHash finds; auto: exact, where it fits into memory
    memory_mb    what "fits" means: at most so much, and at most half of what is free
    """

    similarity: float = 0.6
    group: float = 0.3
    n_words: int = 5
    method: Literal["auto", "exact", "minhash"] = "auto"
    memory_mb: int = 1024

    def __post_init__(self) -> None:
        if not 0 < self.group <= self.similarity <= 1:
            raise InvalidInput(
                f"near copies: group {self.group}, similarity {self.similarity}, expected 0 < group <= similarity <= 1; the defaults are 0.3 and 0.6"
            )
        if self.n_words < 1:
            raise InvalidInput(f"near copies: n_words {self.n_words}, expected at least 1; the default is 5")


def shingles(text: str, n_words: int = 5) -> NDArray[np.uint64]:
    """The distinct shingles of a text, sorted, as 64-bit hashes: (S,). Words are lower case without punctuation."""
    return np.unique(run_numbers(text, n_words))


# ---- the index -----------------------------------------------------------------------------------------------------------------------------


class Shared(NamedTuple):
    """The shingles that more than one document holds, by document, the rarest first. Documents are in order of preference.

    sizes (N,) all shingles of each document; start (N + 1,) where its shared ones begin; number (E,) which; n different ones
    """

    sizes: NDArray[np.int64]
    start: NDArray[np.int64]
    number: NDArray[np.int32]
    n: int


class Found(NamedTuple):
    """copy_of (N,) the document that stays instead, itself if it is the one; similarity (N,) to it; group (N,) the best document of its group."""

    copy_of: NDArray[np.int32]
    similarity: NDArray[np.float64]
    group: NDArray[np.int32]


def shared_shingles(sizes: NDArray[np.int64], parts: Iterable[tuple[Array, Array]]) -> Shared:
    """Keeps what can make documents alike: shingles of two and more.

    parts   pairs (hashes, documents that hold them), so divided that equal hashes are in one part; each document has a hash once
    """
    holders, counts = [], []  # of each part: documents of its shared shingles, one shingle after the other; how many hold each
    for hashes, documents in parts:
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        start = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(hashes) else np.zeros(0, dtype=np.intp)
        count = np.diff(start, append=len(hashes)).astype(np.int32)
        holders.append(documents[order[np.repeat(count > 1, count)]].astype(np.int32))
        counts.append(count[count > 1])
        del hashes, documents, order, start, count  # the next part takes as much
    ends = np.cumsum([0, *map(len, counts)])
    n = int(ends[-1])
    rank = np.empty(n, dtype=np.int32)
    rank[np.argsort(np.concatenate(counts), kind="stable")] = np.arange(n, dtype=np.int32)  # the rarest get the smallest numbers
    keys, end = np.empty(sum(map(len, holders)), dtype=np.int64), 0
    for part, (first, last) in enumerate(pairwise(ends.tolist())):
        some = keys[end : (end := end + len(holders[part]))]
        some[:] = holders[part]
        some <<= 32
        some |= np.repeat(rank[first:last], counts[part])
        holders[part] = counts[part] = np.zeros(0, dtype=np.int32)
    keys.sort()
    start = np.searchsorted(keys, np.arange(len(sizes) + 1, dtype=np.int64) << 32)
    keys &= 0xFFFFFFFF
    return Shared(sizes, start, keys.astype(np.int32), n)


class _Postings:
    """Which documents hold a shingle: those that were added, at most so many for each shingle. Arrays as long as there are shingles are what
    the index takes most of its memory for: their numbers are as small as they can be."""

    def __init__(self, shared: Shared, ends: NDArray[np.int64], most: int) -> None:
        """Announces each document's shingles from its first one on to `ends` (N,)."""
        announced = np.zeros(shared.n, dtype=np.int32)
        for first in range(0, len(ends), DOCUMENTS):
            some = ends[first : first + DOCUMENTS]
            start = shared.start[first : first + len(some)]
            np.add.at(announced, shared.number[_ranges(start, some - start)], 1)
        np.minimum(announced, most, out=announced)
        n = int(announced.sum(dtype=np.int64))
        self._start = np.zeros(shared.n + 1, dtype=np.int32 if n < 1 << 31 else np.int64)
        np.cumsum(announced, out=self._start[1:], dtype=self._start.dtype)
        self._n: Array = np.zeros(shared.n, dtype=np.min_scalar_type(int(announced.max(initial=0))))
        self._documents = np.zeros(n, dtype=np.int32)

    def add(self, document: int, shingles: NDArray[np.int32]) -> None:
        """A document and its (distinct) shingles, which are among those that were announced."""
        at = self._start[shingles] + self._n[shingles]
        room = at < self._start[shingles + 1]
        self._documents[at[room]] = document
        self._n[shingles[room]] += 1

    def holders(self, shingles: NDArray[np.int32]) -> NDArray[np.int32]:
        """The documents that hold one of the shingles, sorted."""
        shingles = shingles[self._n[shingles] > 0]
        return np.unique(self._documents[_ranges(self._start[shingles], self._n[shingles].astype(np.int64))])


def _ranges(start: Array, n: Array) -> NDArray[np.int64]:
    """The numbers start[0], start[0] + 1, ... (n[0] of them), then those from start[1] on, and so forth."""
    ends = np.cumsum(n)
    return np.repeat(start - ends + n, n) + np.arange(ends[-1] if len(ends) else 0)


def find_copies(shared: Shared, similarity: float, group: float) -> Found:
    """Which documents go because they are near copies of one that stays, and which that stay resemble each other.

    A document with S shingles that is at least t alike to another shares ceil(t S) with it or more. So it holds one of them among its first
    S - ceil(t S) + 1, and the other document among its own first, if both list their shingles in the same order: the rarest first, and few
    others hold it. Those that nobody else holds, which come first of all, need no index.
    """
    sizes, start, number, n = shared
    n_documents = len(sizes)
    alone = sizes - np.diff(start)  # shingles that no other document holds
    ends = [start[:-1] + np.maximum(sizes - np.ceil(least * sizes - 1e-9).astype(np.int64) + 1 - alone, 0) for least in (similarity, group)]
    copy_end, group_end = (np.minimum(end, start[1:]) for end in ends)
    copies, groups = _Postings(shared, copy_end, n_documents), _Postings(shared, group_end, MOST_HOLDERS)
    marked = np.zeros(n, dtype=bool)
    copy_of, alike, parent = np.arange(n_documents, dtype=np.int32), np.ones(n_documents), np.arange(n_documents, dtype=np.int32)
    for document in np.flatnonzero(group_end > start[:-1]).tolist():
        own = number[start[document] : start[document + 1]]
        for_copies, for_groups = own[: copy_end[document] - start[document]], own[: group_end[document] - start[document]]
        others = np.union1d(copies.holders(for_copies), groups.holders(for_groups))
        if len(others):
            marked[own] = True
            numbers = _similarities(document, others, shared, marked)
            marked[own] = False
            best = int(numbers.argmax())  # the most alike; among equals the better one
            if numbers[best] >= similarity:
                copy_of[document], alike[document] = others[best], numbers[best]
                continue
            for other in others[numbers >= group].tolist():
                one, two = _first(parent, document), _first(parent, other)
                parent[max(one, two)] = min(one, two)
        copies.add(document, for_copies)
        groups.add(document, for_groups)
    return Found(copy_of, alike, np.array([_first(parent, document) for document in range(n_documents)], dtype=np.int32))


def _similarities(document: int, others: NDArray[np.int32], shared: Shared, marked: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Jaccard similarities of a document, whose shingles are marked, to others: (len(others),)."""
    start, n = shared.start[others], shared.start[others + 1] - shared.start[others]
    hits = marked[shared.number[_ranges(start, n)]]
    both: NDArray[np.int64] = np.add.reduceat(hits, np.cumsum(n) - n, dtype=np.int64)
    found: NDArray[np.float64] = both / (shared.sizes[document] + shared.sizes[others] - both)
    return found


def _first(parent: NDArray[np.int32], document: int) -> int:
    """The first document of a group: union-find, with the way shortened for the next time."""
    while parent[document] != document:
        parent[document] = parent[parent[document]]
        document = int(parent[document])
    return document


# ---- the stage -----------------------------------------------------------------------------------------------------------------------------


def remove_near_copies(
    folders: Folders, run: Run, near: Near = Near(), best: Best = LONGEST, *, say: Callable[[str], None] = print
) -> StepReport:
    """Removes near copies. `say` gets a sentence before it starts: which method, how much memory that takes, how much is free.

    Raises ImportError, naming the extra, if MinHash is needed and datatrove is not installed.
    """
    method, sentence = choose_method(folders.shards, near)
    say(sentence)
    n_shards = len(folders.shards)
    if method == "minhash":
        try:
            from tinygpt.curate.minhash import find_clusters
        except ImportError as error:
            raise MissingPackage(f'MinHash: {error.name} is missing, expected datatrove; pip install "tinygpt[curate]"') from error
        find_clusters(folders, run, near.n_words)
    run(partial(_hash_shingles, folders=folders, near=near, best=best, clustered=method == "minhash"), n_shards, "near-hash")
    n = n_partitions(folders.work, "shingles", CLUSTERS_BYTES) if method == "minhash" else 1
    run(partial(_choose_near, folders=folders, near=near), n, "near-choose")
    settings = {**asdict(near), "method": method, **best.settings()}
    removal = Removal(NEAR, settings, "near copy", near.similarity, groups=True)
    return total(run(partial(remove, folders=folders, removal=removal), n_shards, "near-remove"))


def choose_method(shards: Sequence[Path], near: Near) -> tuple[Literal["exact", "minhash"], str]:
    """The method, and the sentence that says why: how much memory the index may take, estimated from the first shard, and what is free."""
    needed, limit = index_bytes(shards), memory_limit()[0] - resident_bytes()
    may = min(near.memory_mb << 20, limit // 2)
    method = near.method if near.method != "auto" else "exact" if needed <= may else "minhash"
    free = f"{readable(limit)} are free" if limit < 1 << 60 else "what is free is unknown"
    chosen = {"exact": "the exact index", "minhash": "MinHash, and the index within its clusters"}[method]
    return method, f"near copies: {chosen} (over all documents it takes at most {readable(needed)}, and may take {readable(may)}; {free})"


def index_bytes(shards: Sequence[Path]) -> int:
    """Memory that the exact index of all documents takes at most: when no shingle is unique. The number of shingles is that of the words,
    which the first shard that has some tells per byte of file."""
    for shard in shards:
        n_words = sum(len(document.text.split()) for document in read_shard(shard))
        if n_words:
            size = sum(path.stat().st_size for path in shards)
            return BASE_BYTES + SHINGLE_BYTES * int(n_words * size / shard.stat().st_size)
    return BASE_BYTES


def _hash_shingles(task: int, n_tasks: int, folders: Folders, near: Near, best: Best, clustered: bool) -> list[StepReport]:
    """Per shard: which documents are compared (with `clustered`, those that MinHash found), and their shingles, one document after the other."""
    for shard in range(task, len(folders.shards), n_tasks):
        clusters = _clusters(folders.work, shard) if clustered else {}
        records, groups, found = Records(best), [], []
        for index, document in enumerate(read_shard(folders.shards[shard])):
            if not clustered or index in clusters:
                records.add(index, document)
                groups.append(clusters.get(index, 0))
                found.append(shingles(document.text, near.n_words))
        sizes = np.array([len(some) for some in found], dtype=np.uint32)
        hashes = np.array(groups, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # odd: clusters stay apart, and spread over all ranges
        order = records.write(folders.work, "near", shard, hashes, size=sizes)
        save(
            folders.work / f"shingles-{shard:05d}.npy", np.concatenate([np.zeros(0, dtype=np.uint64), *(found[i] for i in order.tolist())])
        )
    return []


def _clusters(work: Path, shard: int) -> dict[int, int]:
    """{position: cluster} of a shard's documents, as MinHash leaves it."""
    path = work / "clusters" / f"{shard:06d}.clusters"
    pairs = np.fromfile(path, dtype="<u4").reshape(-1, 2) if path.exists() else np.zeros((0, 2), dtype=np.uint32)
    return dict(zip(*pairs.T.tolist(), strict=True))


def _choose_near(task: int, n_tasks: int, folders: Folders, near: Near) -> list[StepReport]:
    n_shards = len(folders.shards)
    part = read_partition(folders.work, "near", n_shards, task, n_tasks, ("index", "n", "size", "keys"))
    order = order_of_preference(part)
    number = np.empty(len(order), dtype=np.int32)  # of each row: its document's position in the order of preference
    number[order] = np.arange(len(order), dtype=np.int32)
    sizes = part["size"][order].astype(np.int64)
    found = find_copies(shared_shingles(sizes, _parts(folders.work, part, number, task, n_tasks)), near.similarity, near.group)
    is_gone = found.copy_of != np.arange(len(order))
    kept = found.copy_of[is_gone]
    write_removed(folders.work, task, removed_rows(part, order[is_gone], order[kept], found.similarity[is_gone]))
    staying = np.flatnonzero(~is_gone)
    staying = staying[np.bincount(found.group[staying], minlength=1)[found.group[staying]] > 1]
    groups = removed_rows(part, order[staying], order[found.group[staying]], np.zeros(len(staying)))
    save(folders.work / f"group-{task:05d}.npy", groups[np.lexsort((groups["index"], groups["shard"]))])
    return []


def _parts(work: Path, part: dict[str, Array], number: Array, partition: int, n: int) -> Iterator[tuple[Array, Array]]:
    """The shingles of a partition, and the numbers of the documents that hold them, by ranges of hashes that are sorted one at a time."""
    n_ranges = 1 + int(part["size"].sum()) // PART
    for which in range(n_ranges):
        yield _one_part(work, part, number, (partition, n), (which, n_ranges))  # nothing of it stays here


def _one_part(
    work: Path, part: dict[str, Array], number: Array, partition: tuple[int, int], hash_range: tuple[int, int]
) -> tuple[Array, Array]:
    lowest, highest = range_of(*hash_range)
    found, row = [], 0
    for shard in range(1 + int(part["shard"].max(initial=0))):
        rows = rows_of(work, "near", shard, *partition)
        ends = np.concatenate([[0], np.cumsum(column(work, "near", shard, "size"), dtype=np.int64)])
        hashes = load(work / f"shingles-{shard:05d}.npy")[ends[rows.start] : ends[rows.stop]]
        inside = np.flatnonzero(hashes - lowest <= highest - lowest)
        n_rows = rows.stop - rows.start
        holders = np.repeat(number[row : row + n_rows], part["size"][row : row + n_rows])
        row += n_rows
        found.append((hashes[inside], holders[inside]))
    hashes, holders = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return hashes, holders
