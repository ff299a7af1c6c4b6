"""How much of each source is trained on, and in which order: a pure function of the sizes, the weights and the seed.

    mixture = mix({"wiki": Size(1_000, 3_000_000), "web": Size(80_000, 400_000_000)}, {"wiki": 0.3, "web": 0.7}, seed=0)
    mixture.sources[0].epochs                     # how often wiki is read
    mixture.part(k, 100)                          # the documents of the k-th hundredth of the training text, in their order
    mixture.appearances("wiki", numbers, 100)     # the parts that these documents of wiki are in

No state is kept: any part can be computed alone, on any machine, so what was interrupted continues exactly.

Source  weights and epochs: Brown et al. 2020, GPT-3, arXiv:2005.14165, table 2.2. Temperature: Arivazhagan et al. 2019, Massively multilingual
        neural machine translation in the wild, arXiv:1907.05019, section 4.2.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinygpt.errors import InvalidInput, did_you_mean

MANY_EPOCHS = 4  # repeating text up to so often is nearly as good as new text. Source  Muennighoff et al. 2023, arXiv:2305.16264


class Size(NamedTuple):
    """Documents of a source, and their size: bytes, or whatever the weights are shares of."""

    documents: int
    size: int


def shares(sizes: Mapping[str, float], weights: Mapping[str, float] | None = None, temperature: float = 1.0) -> dict[str, float]:
    """Each source's share of the training text; they add up to 1.

    weights       in proportion to these
    temperature   without weights, p_i ~ size_i ** (1 / T): 1 is in proportion to the sizes, and the larger T, the more equal
    Raises ValueError for weights that are not positive or of other sources, and for a temperature that is not positive.
    """
    if not temperature > 0:
        raise InvalidInput(f"temperature: {temperature}, expected more than 0; 1 takes sources in proportion to their sizes")
    if weights is not None and temperature != 1:
        raise InvalidInput(f"temperature: {temperature} with weights, expected one of them; leave the temperature at 1")
    if weights is not None and weights.keys() != sizes.keys():
        wrong = sorted(weights.keys() ^ sizes.keys())[0]
        rule = f"expected one for each of {', '.join(sizes)}"
        raise InvalidInput(f"weights: {', '.join(weights)}, {rule}; {did_you_mean(wrong, sizes, f'{wrong!r} is the difference')}")
    if empty := [name for name, size in sizes.items() if not size > 0]:
        raise InvalidInput(f"source {empty[0]!r}: no text is left of it, expected some to mix; leave the source out")
    if weights is None:
        largest = max(sizes.values())
        weights = {name: (size / largest) ** (1 / temperature) for name, size in sizes.items()}
    if not all(0 < weight < math.inf for weight in weights.values()):
        raise InvalidInput(f"weights: {dict(weights)}, expected all of them positive; leave out a source that you do not want")
    total = math.fsum(weights[name] for name in sizes)
    return {name: weights[name] / total for name in sizes}


def epochs(sizes: Mapping[str, float], parts: Mapping[str, float], total: float) -> dict[str, float]:
    """How often each source is read in `total` of training text: share x total / size."""
    return {name: parts[name] * total / size for name, size in sizes.items()}


@dataclass(frozen=True)
class Drawn:
    """A source in a mixture: its documents, its share of the size, and how many documents are drawn of it."""

    name: str
    documents: int
    size: int
    share: float
    drawn: int

    @property
    def epochs(self) -> float:
        return self.drawn / self.documents if self.documents else 0.0


class Place(NamedTuple):
    """A document of a mixture: number of its source, of the document in it, and when it comes, from 0 to 1. Sorted by (when, source)."""

    when: float
    source: int
    document: int


@dataclass(frozen=True)
class Mixture:
    """Draws of several sources, evenly interleaved. Draw t of a source that is drawn c times comes at (t + 1/2) / c of the way, so at each
    moment every source has been drawn within half a document of its proportion. Draws t with the same t // documents are an epoch: each
    document once, in an order of its own."""

    sources: tuple[Drawn, ...]
    seed: int = 0

    @property
    def documents(self) -> int:
        """Draws in all."""
        return sum(source.drawn for source in self.sources)

    def part(self, number: int, n_parts: int) -> list[Place]:
        """The draws of one of n_parts equal stretches, in order; put together, the parts are the same sequence for every n_parts."""
        places = list[Place]()
        for i, source in enumerate(self.sources):
            start, stop = (_first(source.drawn, k, n_parts) for k in (number, number + 1))
            t = np.arange(start, stop, dtype=np.int64)
            places += map(Place, self._when(i, t), itertools.repeat(i), self._document(i, t))
        return sorted(places)

    def appearances(self, name: str, documents: np.ndarray, n_parts: int) -> list[tuple[int, int, Place]]:
        """(index into `documents`, part, place) of each time that documents (N,) of a source, given by number, are drawn."""
        i = next(i for i, source in enumerate(self.sources) if source.name == name)
        source, found = self.sources[i], list[tuple[int, int, Place]]()
        for epoch in range(-(-source.drawn // source.documents)):
            t = epoch * source.documents + permuted(documents, source.documents, self._key(i, epoch), inverse=True)
            drawn = np.flatnonzero(t < source.drawn)
            t = t[drawn]
            parts = ((2 * t + 1) * n_parts // (2 * source.drawn)).tolist()
            places = map(Place, self._when(i, t), itertools.repeat(i), documents[drawn].tolist())
            found += zip(drawn.tolist(), parts, places, strict=True)
        return found

    def _when(self, i: int, t: np.ndarray) -> list[float]:
        when: list[float] = ((2 * t + 1) / (2 * self.sources[i].drawn)).tolist()
        return when

    def _document(self, i: int, t: np.ndarray) -> list[int]:
        n = self.sources[i].documents
        found = np.empty_like(t)
        for epoch in np.unique(t // n).tolist():
            which = t // n == epoch
            found[which] = permuted(t[which] % n, n, self._key(i, epoch))
        numbers: list[int] = found.tolist()
        return numbers

    def _key(self, i: int, epoch: int) -> int:
        text = f"{self.seed} {self.sources[i].name} {epoch}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _first(drawn: int, number: int, n_parts: int) -> int:
    """The first draw t with (t + 1/2) / drawn >= number / n_parts."""
    return max(0, -((n_parts - 2 * drawn * number) // (2 * n_parts)))


def mix(
    sizes: Mapping[str, Size], weights: Mapping[str, float] | None = None, *, temperature: float = 1.0, total: float = 0.0, seed: int = 0
) -> Mixture:
    """A mixture of sources; weights and temperature as in `shares`, of the sizes.

    total   size of the training text, 0: that of all sources together, so that without weights each document is read once
    Documents are drawn whatever their lengths, at least one of each source, so the shares of the sizes are met as closely as a random choice
    of documents does. Raises ValueError for what `shares` refuses, and for a negative total.
    """
    if not 0 <= total < math.inf:
        raise InvalidInput(f"mixture: a total of {total}, expected a size >= 0; 0 takes as much as the sources have together")
    each = {name: float(size.size) for name, size in sizes.items()}
    parts = shares(each, weights, temperature)
    total = total or math.fsum(each.values())
    read = epochs(each, parts, total)
    drawn = (Drawn(name, *sizes[name], parts[name], max(1, round(read[name] * sizes[name].documents))) for name in sizes)
    return Mixture(tuple(drawn), seed)


_ROUNDS = 8


def permuted(index: np.ndarray, n: int, key: int, *, inverse: bool = False) -> np.ndarray:
    """Where a pseudo-random permutation of range(n) takes each index (N,), int64, or where it brings it from; no table is made.

    A Feistel network on the smallest even number of bits that holds n - 1, repeated while the result is n or more.
    Source  Black and Rogaway 2002, Ciphers with arbitrary finite domains, section 3 ("cycle-walking").
    """
    half = max(1, -(-(n - 1).bit_length() // 2))
    mask = np.uint64((1 << half) - 1)
    keys = [_mixed(np.array([(key + r * 0x9E3779B97F4A7C15) % (1 << 64)], dtype=np.uint64)) for r in range(_ROUNDS)]
    value = np.array(index, dtype=np.uint64)
    waiting = np.arange(len(value))
    while len(waiting):
        left, right = value[waiting] >> np.uint64(half), value[waiting] & mask
        for round_key in reversed(keys) if inverse else keys:
            if inverse:
                left, right = right ^ (_mixed(left ^ round_key) & mask), left
            else:
                left, right = right, left ^ (_mixed(right ^ round_key) & mask)
        value[waiting] = left << np.uint64(half) | right
        waiting = waiting[value[waiting] >= n]
    return value.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Each 64-bit number as another that looks unrelated.  Source  SplitMix64's last steps: Steele, Lea and Flood 2014, OOPSLA, figure 17"""
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x
