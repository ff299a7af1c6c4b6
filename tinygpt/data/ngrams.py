"""Which texts share runs of words: evaluation items that training text holds, and training documents that hold evaluation items.

    shares = overlaps(items, ((document.text, True) for document in corpus.train))     # (N,) 1: all of an item's n-grams were trained on
    index = NgramIndex(items)
    index.holders(document), index.spans(document)                                     # which items it holds a part of, and which part that is

Words are what white space separates, in lower case and without punctuation; an n-gram is a run of 13 of them, as in GPT-3's check (Brown et
al. 2020, arXiv:2005.14165, appendix C). GPT-3 takes shorter runs, of 8 words at least, for tasks whose shortest twentieth of items has fewer
words. Here each text decides for itself: one of 8 to 12 words is a single n-gram of its own length, one of fewer has none and is not judged.
So what is said of an item does not depend on which others are scored with it, and long items are not found by chance through short runs.

Texts in languages that do not separate words by white space need another tool.
"""

import functools
import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tinygpt.errors import InvalidInput

N_WORDS = 13
LEAST_WORDS = 8
_PUNCTUATION = re.compile(r"[^\w\s]|_")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplying by it loses nothing


def normal_words(text: str) -> list[str]:
    """The words of a text as they are compared; what is punctuation alone is none."""
    return _PUNCTUATION.sub("", unicodedata.normalize("NFC", text).lower()).split()


@functools.lru_cache(maxsize=1 << 19)
def _number(word: str) -> int:
    """64 bits, the same in every process."""
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _numbers(words: Sequence[str]) -> np.ndarray:
    return np.fromiter(map(_number, words), dtype=np.uint64, count=len(words))


def _runs(numbers: np.ndarray, n: int) -> np.ndarray:
    """A number for each run of n words: (W,) -> (W - n + 1,) uint64. Different runs share one with a chance of 2^-64: sum of number * factor^i."""
    k = len(numbers) - n + 1
    found = np.zeros(max(k, 0), dtype=np.uint64)
    for i in range(n if k > 0 else 0):
        found = found * _FACTOR + numbers[i : i + k]
    return found


class NgramIndex:
    """The n-grams of texts, sorted: 12 bytes for each.

    n, least   words of an n-gram; a text of least to n - 1 words is one n-gram. Raises ValueError unless 1 <= least <= n
    n_texts, n_short   how many texts, and how many of these have no n-gram because they are shorter than `least` words
    """

    def __init__(self, texts: Iterable[str], n: int = N_WORDS, least: int = LEAST_WORDS) -> None:
        if not 1 <= least <= n:
            raise InvalidInput(f"NgramIndex: n {n}, least {least}, expected 1 <= least <= n; the defaults are {N_WORDS} and {LEAST_WORDS}")
        self.n, self.n_texts, self.n_short = n, 0, 0
        parts: dict[int, list[np.ndarray]] = {}
        owners: dict[int, list[np.ndarray]] = {}
        for text in texts:
            numbers = _numbers(normal_words(text))
            length = min(n, len(numbers))
            if length < least:
                self.n_short += 1
            else:
                runs = _runs(numbers, length)
                parts.setdefault(length, []).append(runs)
                owners.setdefault(length, []).append(np.full(len(runs), self.n_texts, dtype=np.int32))
            self.n_texts += 1
        self._runs: dict[int, np.ndarray] = {}  # by length: (R,) uint64, sorted
        self._owners: dict[int, np.ndarray] = {}  # (R,) the text that each comes from
        for length, found in parts.items():
            runs = np.concatenate(found)
            order = np.argsort(runs, kind="stable")
            self._runs[length], self._owners[length] = runs[order], np.concatenate(owners[length])[order]

    def _hits(self, numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each length: (length, whether the index has each run of the text, where it has those that it has first)."""
        for length, known in self._runs.items():
            runs = _runs(numbers, length)
            first = np.minimum(np.searchsorted(known, runs), len(known) - 1)
            hit = known[first] == runs
            yield length, hit, first[hit]

    def holders(self, text: str) -> np.ndarray:
        """Numbers of the indexed texts, from 0, that share an n-gram with this one: sorted (M,)."""
        found = [np.zeros(0, dtype=np.int32)]
        for length, _, first in self._hits(_numbers(normal_words(text))):
            known, first = self._runs[length], np.unique(first)
            ends = np.searchsorted(known, known[first], side="right")
            found += [self._owners[length][a:b] for a, b in zip(first.tolist(), ends.tolist(), strict=True)]
        return np.unique(np.concatenate(found))

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where the text holds n-grams of the index: (first, after the last) character of each stretch, from left to right."""
        found = [(m.start(), m.end(), word) for m in re.finditer(r"\S+", text) if (word := "".join(normal_words(m[0])))]
        inside = np.zeros(len(found) + 1, dtype=bool)  # by word; the last one ends a stretch
        for length, hit, _ in self._hits(_numbers([word for _, _, word in found])):
            for i in range(length):
                inside[i : i + len(hit)] |= hit
        edges = np.flatnonzero(np.diff(np.concatenate([[False], inside]).astype(np.int8)))
        return [(found[a][0], found[b - 1][1]) for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)]

    def overlap(self, text: str) -> float:
        """The share of the text's n-grams, 0 to 1, that the index has; nan for a text without any, because it has fewer than n words."""
        numbers = _numbers(normal_words(text))
        runs = _runs(numbers, self.n)
        known = self._runs.get(self.n, np.zeros(0, dtype=np.uint64))
        return float(np.isin(runs, known).mean()) if len(runs) else float("nan")

    def seen_in(self, pieces: Iterable[tuple[str, bool]]) -> np.ndarray:
        """The share of each indexed text's n-grams that other texts hold: (N,) 0 to 1, nan for texts without any.

        pieces   (piece of text, whether its document ends with it): read once, one after the other, so that a corpus may be larger than memory
        """
        seen = {length: np.zeros(len(runs), dtype=bool) for length, runs in self._runs.items()}
        kept = np.zeros(0, dtype=np.uint64)  # the last words of a document that continues
        for piece, ends_document in pieces:
            numbers = np.concatenate([kept, _numbers(normal_words(piece))])
            for length, _, first in self._hits(numbers):
                seen[length][first] = True
            kept = numbers[:0] if ends_document else numbers[max(0, len(numbers) - self.n + 1) :]
        total, found = np.zeros(self.n_texts), np.zeros(self.n_texts)
        for length, owners in self._owners.items():
            total += np.bincount(owners, minlength=self.n_texts)
            same = np.searchsorted(self._runs[length], self._runs[length])  # equal runs lie together, and the first one is marked
            found += np.bincount(owners, weights=seen[length][same], minlength=self.n_texts)
        shares = np.full(self.n_texts, np.nan)
        shares[total > 0] = found[total > 0] / total[total > 0]
        return shares


def overlaps(texts: Iterable[str], pieces: Iterable[tuple[str, bool]], n: int = N_WORDS, least: int = LEAST_WORDS) -> np.ndarray:
    """The share of each text's n-grams that training text holds: see `NgramIndex.seen_in`."""
    return NgramIndex(texts, n, least).seen_in(pieces)
