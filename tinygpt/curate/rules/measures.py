"""What the rules measure: one pure number per text. Definitions are those of datatrove's filters, which made FineWeb; names are the rules'.

    MEASURES["max_top_2_gram"](Text("so so so so"))     # 0.73: the share of characters in the most frequent pair of words

A measure reads a `Text`, which splits itself into words, lines and paragraphs once for all of them. A share of nothing is 0.
Where the definition leaves a choice, the docstring says what the papers have instead.
"""

from collections import Counter
from collections.abc import Callable
from functools import cached_property

import numpy as np
import regex
from numpy.typing import NDArray

from tinygpt.curate.words import words

_PARAGRAPHS, _LINES = regex.compile(r"\n{2,}"), regex.compile(r"\n+")
_SYMBOLS = regex.compile(r"[\p{P}\p{S}\p{C}]+")
_ENDS_SENTENCE = regex.compile(r"\p{Sentence_Terminal}")
STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])  # Rae et al. 2021, arXiv:2112.11446, appendix A.1.1
SHORT_LINE = 30  # characters: Penedo et al. 2024, arXiv:2406.17557, section 3.6


class Text:
    """A text, and its parts as far as somebody asked for them."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def words(self) -> list[str]:
        return words(self.text)

    @cached_property
    def word_counts(self) -> Counter[str]:
        return Counter(self.words)

    @cached_property
    def lengths(self) -> list[int]:
        """Characters of each word."""
        return list(map(len, self.words))

    @cached_property
    def spoken(self) -> tuple[int, int]:
        """(words, their characters) without those that are punctuation and symbols only."""
        n, characters = len(self.words), sum(self.lengths)
        for word in [word for word in self.word_counts if not word.isalnum()]:
            if _SYMBOLS.fullmatch(word):
                n -= self.word_counts[word]
                characters -= self.word_counts[word] * len(word)
        return n, characters

    @cached_property
    def lines(self) -> list[str]:
        """As str.splitlines: blank ones too."""
        return self.text.splitlines()

    @cached_property
    def full_lines(self) -> list[str]:
        """Lines between \\n that are not blank."""
        return [line for line in self.text.split("\n") if line.strip()]

    @cached_property
    def repeated_paragraphs(self) -> tuple[float, float]:
        """(share of paragraphs that came before, share of the text's characters in them)."""
        return self._repeated(_PARAGRAPHS.split(self.text.strip()))

    @cached_property
    def repeated_lines(self) -> tuple[float, float]:
        """As repeated_paragraphs, by line."""
        return self._repeated(_LINES.split(self.text))

    def _repeated(self, parts: list[str]) -> tuple[float, float]:
        n, characters = repeats(parts)
        return _share(n, len(parts)), _share(characters, len(self.text))

    @cached_property
    def runs(self) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """All runs of words, by one sort: (order, same). order (N,): the starts, sorted by the five words from there on, equal ones in the
        order of the text; same (5, N - 1): same[n - 1, i] says whether the n words from order[i] and from order[i + 1] are the same."""
        number = {word: i for i, word in enumerate(self.word_counts, start=1)}
        ids = np.array([*map(number.__getitem__, self.words), 0, 0, 0, 0], dtype=np.int64)  # 0: after the end
        columns = [ids[i : len(ids) - 4 + i] for i in range(5)]
        if len(number) < 6000:  # five of them fit into 63 bits
            key = columns[0]
            for column in columns[1:]:
                key = key * (len(number) + 1) + column
            order = np.argsort(key, kind="stable")
        else:
            order = np.lexsort(columns[::-1])
        of = ids[order + np.arange(5)[:, None]]  # (5, N)
        return order, np.logical_and.accumulate(of[:, 1:] == of[:, :-1])

    @cached_property
    def repeated_runs(self) -> tuple[list[int], float]:
        """(Starts of runs of 5 words that occur more than once, the share of characters in those words of them that came before).

        A repeated run of more than 5 words starts with such a run, and what came before of it is among these words: so no other starts
        matter to `duplicate_n_grams`, and no share of it is larger.
        """
        order, same = self.runs
        again = np.sort(order[1:][same[4]]).tolist()
        if not again:
            return [], 0.0
        characters = end = 0
        for start in again:
            characters += sum(self.lengths[max(start, end) : start + 5])
            end = start + 5
        return sorted({*again, *order[:-1][same[4]].tolist()}), _share(characters, len(self.text))


def _share(part: float, of: float) -> float:
    return part / of if of else 0.0


def repeats(parts: list[str]) -> tuple[int, int]:
    """How many parts came before, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0
    counts = Counter(parts)
    return len(parts) - len(counts), sum((n - 1) * len(part) for part, n in counts.items())


def top_n_gram(t: Text, n: int) -> float:
    """Share of characters (spaces between words included) in the most frequent run of n words; of several, in the first."""
    if len(t.words) < n:
        return 0.0
    order, same = t.runs
    repeated = same[n - 1].tobytes()  # 1 for each run that equals the one before, so the longest row of them is the most frequent run's
    row = max(repeated.split(b"\0"))
    most, start, at = len(row) + 1, len(t.words), repeated.find(row)
    while row and at >= 0:
        start = min(start, int(order[at : at + most].min()))
        at = repeated.find(row, at + most)
    start = start if row else 0
    return _share(most * (sum(t.lengths[start : start + n]) + n - 1), len(t.text))


def duplicate_n_grams(t: Text, n: int) -> float:
    """Share of characters in runs of n words that came before, each character once, from left to right. (Rae et al. count the first
    occurrence, too. datatrove compares letters without spaces: "a bc" and "ab c" are the same to it, and not to us.)"""
    seen: set[tuple[str, ...]] = set()
    end = characters = 0
    for start in t.repeated_runs[0]:
        gram = tuple(t.words[start : start + n])
        if start < end or len(gram) < n:
            continue
        if gram in seen:
            characters += sum(t.lengths[start : start + n])
            end = start + n
        seen.add(gram)
    return _share(characters, len(t.text))


def per_word(t: Text, *marks: str) -> float:
    return _share(sum(map(t.text.count, marks)), len(t.words))


def lines_that(t: Text, holds: Callable[[str], bool]) -> float:
    return _share(sum(map(holds, t.lines)), len(t.lines))


def alphabetic_words(t: Text) -> float:
    """Share of words, punctuation marks among them, with a letter."""
    without = sum(t.word_counts[word] for word in t.word_counts if not word.isalpha() and not any(map(str.isalpha, word)))
    return _share(len(t.words) - without, len(t.words))


def punctuated_lines(t: Text) -> float:
    """Share of lines that end with a mark that ends sentences, in any script."""
    return _share(sum(map(_is_punctuated, t.full_lines)), len(t.full_lines))


def _is_punctuated(line: str) -> bool:
    last = line[-1]
    return last in ".!?" if last.isascii() else _ENDS_SENTENCE.match(last) is not None


def _is_bullet(line: str) -> bool:
    return line.lstrip().startswith(("•", "-"))


def _ends_in_ellipsis(line: str) -> bool:
    return line.rstrip().endswith(("...", "…"))


def short_lines(t: Text) -> float:
    return _share(sum(len(line) <= SHORT_LINE for line in t.full_lines), len(t.full_lines))


def characters_in_repeated_lines(t: Text) -> float:
    return _share(repeats(t.full_lines)[1], len(t.text) - t.text.count("\n"))


def alphanumeric(t: Text) -> float:
    """Share of characters that are letters or digits."""
    return _share(sum(map(str.isalnum, t.text)), len(t.text))


MEASURES: dict[str, Callable[[Text], float]] = {
    "max_duplicate_paragraphs": lambda t: t.repeated_paragraphs[0],
    "max_duplicate_paragraph_characters": lambda t: t.repeated_paragraphs[1],
    "max_duplicate_lines": lambda t: t.repeated_lines[0],
    "max_duplicate_line_characters": lambda t: t.repeated_lines[1],
    "max_top_2_gram": lambda t: top_n_gram(t, 2),
    "max_top_3_gram": lambda t: top_n_gram(t, 3),
    "max_top_4_gram": lambda t: top_n_gram(t, 4),
    "max_duplicate_5_grams": lambda t: duplicate_n_grams(t, 5),
    "max_duplicate_6_grams": lambda t: duplicate_n_grams(t, 6),
    "max_duplicate_7_grams": lambda t: duplicate_n_grams(t, 7),
    "max_duplicate_8_grams": lambda t: duplicate_n_grams(t, 8),
    "max_duplicate_9_grams": lambda t: duplicate_n_grams(t, 9),
    "max_duplicate_10_grams": lambda t: duplicate_n_grams(t, 10),
    "min_words": lambda t: t.spoken[0],
    "max_words": lambda t: t.spoken[0],
    "min_mean_word": lambda t: _share(t.spoken[1], t.spoken[0]),
    "max_mean_word": lambda t: _share(t.spoken[1], t.spoken[0]),
    "max_hashes_per_word": lambda t: per_word(t, "#"),
    "max_ellipses_per_word": lambda t: per_word(t, "...", "…"),
    "max_bullet_lines": lambda t: lines_that(t, _is_bullet),
    "max_ellipsis_lines": lambda t: lines_that(t, _ends_in_ellipsis),
    "min_alphabetic_words": alphabetic_words,
    "min_stop_words": lambda t: len(STOP_WORDS & t.word_counts.keys()),
    "min_punctuated_lines": punctuated_lines,
    "max_short_lines": short_lines,
    "max_repeated_line_characters": characters_in_repeated_lines,
    "max_newlines_per_word": lambda t: _share(t.text.count("\n"), len(t.words)),
    "max_line_characters": lambda t: max(map(len, t.lines), default=0),
    "max_mean_line_characters": lambda t: _share(sum(map(len, t.lines)), len(t.lines)),
    "min_alphanumeric_characters": alphanumeric,
}
AT_MOST: dict[str, Callable[[Text], float]] = {
    "max_newlines_per_word": lambda t: _share(t.text.count("\n"), len(t.text.split())),  # each part holds a word
} | {
    f"max_duplicate_{n}_grams": lambda t: t.repeated_runs[1] for n in range(5, 11)
}  # what the measure cannot exceed, found faster: up to the limit, the measure need not be taken


def measure(text: str) -> dict[str, float]:
    """All numbers of a text, by rule."""
    t = Text(text)
    return {name: float(take(t)) for name, take in MEASURES.items()}
