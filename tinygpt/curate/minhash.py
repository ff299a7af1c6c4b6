"""Clusters of documents that may be near copies, by datatrove's MinHash: any number of documents, in little memory. Imported where it runs.

    find_clusters(folders, run, n_words=5)         # work/clusters/000000.clusters: pairs (position, cluster), for each shard that has some

The chance that two documents' smallest shingles under a random order are equal is their similarity s. Documents are compared by 25 groups of
5 such shingles: they meet if one group is equal, with a chance of 1 - (1 - s^5)^25: 0.55 at s = 0.5, 0.99 at 0.7, 0.9999 at 0.8.

Source   Broder 1997, "On the resemblance and containment of documents"; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", section 3.4.
         Signatures, sorting and pairs are datatrove's; shingles are ours, so that its clusters and the exact index mean the same ones.
"""

import os
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import numpy as np
from datatrove.data import Document as TroveDocument
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer
from loguru import logger
from numpy.typing import NDArray

from tinygpt.curate.copies import Folders
from tinygpt.curate.documents import read_shard
from tinygpt.curate.executors import Run
from tinygpt.curate.near import shingles
from tinygpt.curate.report import StepReport
from tinygpt.data.ngrams import normal_words
from tinygpt.errors import InvalidInput
from tinygpt.storage.durable import replace_file

N_BUCKETS, N_HASHES = 25, 5
ROWS = 1 << 10  # shingles whose 125 hashes are in memory at once: 1 MB, however long the document
PRIME = np.uint64((1 << 61) - 1)
BUFFER, LEAST = 1 << 16, 1 << 4  # signatures that are in memory of all shards together; of one at least
OTHER_FILES = 64  # than those of shards, that a process has open
PAIRS = 1 << 16  # that are joined at once


def find_clusters(folders: Folders, run: Run, n_words: int) -> None:
    """MinHash's three phases: signatures of each shard, pairs that share one (a task for each of 25), clusters of pairs (one task, which
    takes about 60 bytes of memory for each document that is in some pair)."""
    run(partial(_sign, folders=folders, n_words=n_words), len(folders.shards), "minhash-sign")
    run(partial(_pair, folders=folders, n_words=n_words), N_BUCKETS, "minhash-pair")
    run(partial(_cluster, folders=folders, n_words=n_words), 1, "minhash-cluster")


def _config(n_words: int) -> MinhashConfig:
    logger.disable("datatrove")
    # the hash is not used: shingles come as hashes. Its default wants another library
    return MinhashConfig(n_grams=n_words, num_buckets=N_BUCKETS, hashes_per_bucket=N_HASHES, hash_config=HashConfig(hash_fc="sha1"))


class _Words(WordTokenizer):  # type: ignore[misc]
    """datatrove's default for English is spaCy."""

    def word_tokenize(self, text: str) -> list[str]:
        return normal_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return text.splitlines()

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


class _Signature(MinhashDedupSignature):  # type: ignore[misc]
    """datatrove's signatures, of our shingles: the same numbers as its own function makes of them, in half the time, because it divides, and in
    blocks, because it takes 3 KB of memory for each word of a document."""

    def get_shingles(self, text: str) -> NDArray[np.uint64]:
        return shingles(text, self.config.n_grams).reshape(-1, 1)

    def get_signature(self, shingles: NDArray[np.uint64]) -> list[list[int]]:
        a, b = self.parameters
        smallest = np.full(a.shape[1], PRIME)
        for start in range(0, len(shingles), ROWS):
            x = shingles[start : start + ROWS] * a + b
            x = (x & PRIME) + (x >> np.uint64(61))  # modulo 2^61 - 1, up to one more of it
            np.subtract(x, PRIME, out=x, where=x >= PRIME)
            np.minimum(smallest, x.min(axis=0), out=smallest)
        return smallest.reshape(self.config.num_buckets, -1).tolist()  # type: ignore[no-any-return]


def _sign(task: int, n_tasks: int, folders: Folders, n_words: int) -> list[StepReport]:
    for shard in range(task, len(folders.shards), n_tasks):
        step = _Signature(str(folders.work / "signatures"), _config(n_words), language=_Words())
        step.run((TroveDocument(document.text, document.id) for document in read_shard(folders.shards[shard])), shard, len(folders.shards))
    return []


def _pair(task: int, n_tasks: int, folders: Folders, n_words: int) -> list[StepReport]:
    n = len(folders.shards)
    allow_open_files(n + OTHER_FILES)  # datatrove opens those of all shards at once
    signatures, pairs, lines = str(folders.work / "signatures"), str(folders.work / "pairs"), max(LEAST, BUFFER // n)
    step = MinhashDedupBuckets(signatures, pairs, config=_config(n_words), lines_to_buffer=lines)
    step.run(None, task, n_tasks)
    return []


def allow_open_files(n: int) -> None:
    """Lets this process have n files open, where the system limits them. Raises ValueError if the administrator's limit is less."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < n:
        if hard != resource.RLIM_INFINITY and hard < n:
            rule = f"expected at least {n:,}, for a file of each shard; raise the limit, or take --near exact"
            raise InvalidInput(f"MinHash: at most {hard:,} open files (ulimit -Hn), {rule}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (n, hard))


def _cluster(task: int, n_tasks: int, folders: Folders, n_words: int) -> list[StepReport]:
    """Numbers the clusters by their first documents, as datatrove's MinhashDedupCluster does in dictionaries, which take three times as much."""
    files = [np.memmap(path, "<u4", "r") for path in sorted((folders.work / "pairs").glob("*.dups")) if path.stat().st_size]
    known = np.zeros(0, dtype=np.uint64)  # all documents of pairs, as shard * 2^32 + position, sorted
    for file in files:
        known = np.union1d(known, np.concatenate([np.zeros(0, dtype=np.uint64), *map(np.unique, _documents(file))]))
    first = np.arange(len(known))
    for file in files:
        for some in _documents(file):
            join(first, *np.searchsorted(known, some).T)
        first[:] = roots(first, first)
    cluster = (np.cumsum(first == np.arange(len(known))) - 1)[first]
    (folders.work / "clusters").mkdir(exist_ok=True)
    ends = np.searchsorted(known, np.arange(len(folders.shards) + 1, dtype=np.uint64) << np.uint64(32)).tolist()
    for shard, (start, end) in enumerate(pairwise(ends)):
        if start < end:
            rows = np.stack([known[start:end] & np.uint64(0xFFFFFFFF), cluster[start:end].astype(np.uint64)], axis=1).astype("<u4")
            replace_file(folders.work / "clusters" / f"{shard:06d}.clusters", rows.tobytes(), writer=f"{os.getpid()}-")
    return []


def _documents(pairs: NDArray[np.uint32]) -> Iterator[NDArray[np.uint64]]:
    """Some pairs of datatrove's file after the other: (P, 2), P <= PAIRS."""
    rows = pairs.reshape(-1, 4)
    for start in range(0, len(rows), PAIRS):
        some = rows[start : start + PAIRS].astype(np.uint64)
        yield some[:, ::2] << np.uint64(32) | some[:, 1::2]


def join(first: NDArray[np.int64], one: NDArray[np.int64], two: NDArray[np.int64]) -> None:
    """Joins the sets that pairs of numbers are in, in place. first (N,): of each number a smaller one of its set, of the smallest itself."""
    while len(one):
        one, two = roots(first, one), roots(first, two)
        apart = one != two
        one, two = np.minimum(one, two)[apart], np.maximum(one, two)[apart]
        np.minimum.at(first, two, one)


def roots(first: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest number of the set of each."""
    while ((smaller := first[numbers]) != numbers).any():
        numbers = smaller
    return numbers
