"""Near-copies: texts that share most of their shingles belong to one group, so that no split separates them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def group_near_copies(texts: Sequence[str]) -> list[int]:
    """Group numbers, from 0 in order of appearance, one per text: near-copies, and near-copies of near-copies, get the same.

    Two texts are near-copies if they are equal, or if they share more than half of the distinct 8-word shingles (runs of 8 words, words
    being what white space separates) of the one that has fewer.

    Cost: each text is compared only with those that an index of the shingles finds.
    Source: Broder 1997, "On the resemblance and containment of documents" (shingles, containment).
    """
    shingles, document = _shingles(texts)
    shingles, holders = np.divmod(np.unique(shingles * len(texts) + document), len(texts))  # each shingle of each text once, by shingle
    n_shingles = np.bincount(holders, minlength=len(texts))  # (texts,) distinct ones
    _, first, count = np.unique(shingles, return_index=True, return_counts=True)
    neighbours: list[list[NDArray[np.int64]]] = [[] for _ in texts]  # per text, for each shingle that it shares: all texts that hold it
    for start, n in zip(first[count > 1].tolist(), count[count > 1].tolist(), strict=True):
        for text in holders[start : start + n].tolist():
            neighbours[text].append(holders[start : start + n])

    parent = list(range(len(texts)))  # union-find: following parents leads to the first text of a group

    def first_of_group(text: int) -> int:
        while parent[text] != text:
            parent[text] = parent[parent[text]]  # shorten the way for the next time
            text = parent[text]
        return text

    equal: dict[str, int] = {}
    for text in range(len(texts)):
        near = [equal.setdefault(texts[text], text)]
        if neighbours[text]:
            shared = np.bincount(np.concatenate(neighbours[text]), minlength=len(texts))  # (texts,) shingles in common
            near += np.flatnonzero(2 * shared > np.minimum(n_shingles, n_shingles[text])).tolist()
        for other in near:
            one, two = first_of_group(text), first_of_group(other)
            parent[max(one, two)] = min(one, two)

    numbers: dict[int, int] = {}
    return [numbers.setdefault(first_of_group(text), len(numbers)) for text in range(len(texts))]


def _shingles(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two arrays with one entry per run of 8 words: its number (equal words, equal number) and the text that it stands in."""
    numbers: dict[str, int] = {}
    words = [np.array([numbers.setdefault(word, len(numbers)) for word in text.split()], dtype=np.int64) for text in texts]
    document = np.concatenate([np.full(len(text), number) for number, text in enumerate(words)])
    runs = np.concatenate(words)
    for n in (1, 2, 4):  # a run of 2 n words is two runs of n words, n apart: number these pairs, and runs of n become runs of 2 n
        if runs.size > n:
            runs = np.unique(runs[:-n] * (runs.max() + 1) + runs[n:], return_inverse=True)[1]
    inside = document[:-7] == document[7:]  # the run does not cross into the next text
    return runs[: inside.size][inside], document[: inside.size][inside]
