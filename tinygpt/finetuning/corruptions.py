"""Bad answers, made from good ones: what a judge is trained on, and kinds of badness that its training did not contain.

    made = judged_answers(rows, TRAINED_KINDS, seed=0)      # for each row its right answer, and one bad answer of each kind
    made[0].kind, made[0].answer                            # "good", ...

A kind of corruption changes the answer of a row, by a seed, to one that is worse; where it finds nothing to change it makes none. Answers of
other rows come from the rows that are given, so held-out rows are never mixed with those of a training.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tinygpt.errors import InvalidInput, did_you_mean
from tinygpt.finetuning.instructions import Instruction
from tinygpt.finetuning.rows import plain
from tinygpt.finetuning.scoring import token_f1

GOOD = "good"
_ALIKE = 0.5  # token F1 from which another row's answer may be right, too
_TRIES = 20  # draws until a corruption has to differ from the answer

Rng = np.random.Generator


@dataclass(frozen=True)
class Judged:
    """An answer to a row's question; kind: GOOD or the kind of corruption; row: the row's number in the list that it was made from."""

    question: Instruction
    answer: str
    kind: str
    row: int

    @property
    def good(self) -> bool:
        return self.kind == GOOD


def judged_answers(
    rows: Sequence[Instruction], kinds: Sequence[str], seed: int, draws: int = 1, times: Mapping[str, int] | None = None
) -> list[Judged]:
    """For each row and draw its answer, and one bad answer of each kind that applies; draws differ in what is drawn, good answers repeat.

    times   how many answers of a kind each draw makes, where it is not one
    Deterministic: what is made of a row depends on seed, draw, kind and the rows. Raises ValueError for an unknown kind.
    """
    check_kinds(kinds)
    made = []
    for draw in range(draws):
        for number, row in enumerate(rows):
            made.append(Judged(row, row.output.strip(), GOOD, number))
            for kind in kinds:
                n = (times or {}).get(kind, 1)
                bad = (corrupted(rows, number, kind, seed=seed, draw=draw * n + i) for i in range(n))
                made += [Judged(row, answer, kind, number) for answer in bad if answer]
    return made


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises ValueError without a kind, and for an unknown one."""
    if not kinds:
        raise InvalidInput(f"kinds of bad answers: none, expected at least one of {', '.join(KINDS)}")
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise InvalidInput(f"kind {unknown[0]!r}: unknown, expected some of {', '.join(KINDS)}; {did_you_mean(unknown[0], KINDS)}")


def corrupted(rows: Sequence[Instruction], number: int, kind: str, *, seed: int, draw: int = 0) -> str:
    """The bad answer of a kind to the row of that number, different from its right answer (but for case and white space); "" where the kind
    finds nothing to change."""
    right, rng = rows[number].output.strip(), np.random.default_rng([seed, draw, number, list(KINDS).index(kind)])
    for _ in range(_TRIES):
        bad = KINDS[kind](rows, number, rng).strip()
        if plain(bad) != plain(right):
            return bad
    return ""


# What training sees -----------------------------------------------------------------------------------------------------------------------


def shuffled(rows: Sequence[Instruction], number: int, rng: Rng) -> str:
    """The words in random order; the full stop stays at the end, and the capital at the beginning."""
    words, stop = _words(rows[number].output)
    words = [_uncapitalized(words[0]), *words[1:]] if words else []
    return _capitalized(" ".join(words[i] for i in rng.permutation(len(words)))) + stop


def truncated(rows: Sequence[Instruction], number: int, rng: Rng) -> str:
    """The first third to two thirds of the words, without a full stop: an answer that ran out of tokens."""
    return _beginning(rows[number].output, rng)


def off_topic(rows: Sequence[Instruction], number: int, rng: Rng) -> str:
    """The answer of another row, which says something else."""
    for other in map(int, rng.permutation(len(rows))[:_TRIES]):
        if _differs(rows, number, other):
            return rows[other].output
    return ""


# What it does not ---------------------------------------------------------------------------------------------------------------------------


def closed(rows: Sequence[Instruction], number: int, rng: Rng) -> str:
    """Truncated, and closed by a full stop: the missing stop no longer gives it away."""
    beginning = _beginning(rows[number].output, rng)
    return f"{beginning}." if beginning else ""


_OPPOSITES = [
    pair.split("/")
    for pair in (
        "minimum/maximum min/max smallest/largest smaller/larger smaller/greater less/greater lower/upper lowest/highest lowercase/uppercase "
        "first/last left/right beginning/end start/stop before/after above/below inner/outer row/column rows/columns horizontal/vertical "
        "true/false equal/different same/different all/none any/no with/without positive/negative real/imaginary even/odd add/subtract sum/difference "
        "product/quotient multiply/divide ascending/descending increasing/decreasing increase/decrease read/write load/save insert/delete "
        "append/remove join/split forward/backward input/output union/intersection valid/invalid good/bad hot/cold new/old big/small fast/slow "
        "high/low long/short happy/sad easy/difficult always/never more/fewer most/least one/several"
    ).split()
]
_OPPOSITE = {a: b for pair in _OPPOSITES for a, b in (pair, reversed(pair))}
_HELPERS = r"\b(is|are|was|were|can|will|should|must|has|have|does|do)\b(?! not)"


def negated(rows: Sequence[Instruction], number: int, rng: Rng) -> str:
    """The opposite: one word exchanged for its opposite, else "not" added or taken away."""
    text = rows[number].output.strip()
    found = [match for match in re.finditer(r"[A-Za-z]+", text) if match[0].casefold() in _OPPOSITE]
    if found:
        match = found[int(rng.integers(len(found)))]
        other = _OPPOSITE[match[0].casefold()]
        return text[: match.start()] + (_capitalized(other) if match[0][0].isupper() else other) + text[match.end() :]
    for pattern, replacement in ((r"\bnot ", ""), (_HELPERS, r"\1 not")):
        if re.search(pattern, text):
            return re.sub(pattern, replacement, text, count=1)
    return f"Do not {_uncapitalized(text)}" if text[:1].isupper() else ""


_NUMBERS = "zero one two three four five six seven eight nine ten".split()


def other_number(rows: Sequence[Instruction], number: int, rng: Rng) -> str:
    """One number, in digits or a word up to ten, exchanged for another one."""
    text = rows[number].output
    found = list(re.finditer(rf"\d+|\b({'|'.join(_NUMBERS)})\b", text, flags=re.IGNORECASE))
    if not found:
        return ""
    match = found[int(rng.integers(len(found)))]
    if match[0].isdigit():
        other = str(int(match[0][:9]) + int(rng.integers(1, 10)))
    else:
        word = _NUMBERS[(_NUMBERS.index(match[0].casefold()) + int(rng.integers(1, len(_NUMBERS)))) % len(_NUMBERS)]
        other = _capitalized(word) if match[0][0].isupper() else word
    return text[: match.start()] + other + text[match.end() :]


def repeated(rows: Sequence[Instruction], number: int, rng: Rng) -> str:
    """A run of two to four words, three times: what greedy decoding falls into."""
    words, stop = _words(rows[number].output)
    if len(words) < 2:
        return ""
    n = min(int(rng.integers(2, 5)), len(words))
    end = int(rng.integers(n, len(words) + 1))
    run = words[end - n : end]
    return " ".join([*words[:end], *run, *run, *words[end:]]) + stop


def neighbor(rows: Sequence[Instruction], number: int, rng: Rng) -> str:
    """The answer to the question that is most alike, by the share of runs of three characters in common, and is answered differently."""
    asked = _trigrams(rows[number])
    others = [_trigrams(row) for row in rows]
    alike = np.array([len(asked & other) / max(len(asked | other), 1) for other in others])
    for other in map(int, np.argsort(-alike, kind="stable")):
        if other != number and _differs(rows, number, other):
            return rows[other].output
    return ""


def echo(rows: Sequence[Instruction], number: int, rng: Rng) -> str:
    """The question again, as a statement: no answer has more words in common with it."""
    return rows[number].instruction.strip().rstrip("?!.:") + "."


def spliced(rows: Sequence[Instruction], number: int, rng: Rng) -> str:
    """The beginning of the answer, and the end of another row's."""
    beginning, other = _beginning(rows[number].output, rng), off_topic(rows, number, rng)
    words, stop = _words(other)
    return f"{beginning} {' '.join(words[len(words) // 2 :])}{stop}" if beginning and words else ""


KINDS: dict[str, Callable[[Sequence[Instruction], int, Rng], str]] = {
    "shuffled": shuffled, "truncated": truncated, "off-topic": off_topic,
    "closed": closed, "negated": negated, "number": other_number, "repeated": repeated, "neighbor": neighbor, "echo": echo, "spliced": spliced,
}  # fmt: skip
"""By name, in a fixed order: (rows, number of the row, random stream) -> an answer, "" where there is none."""

TRAINED_KINDS = ("shuffled", "truncated", "off-topic")


def _words(text: str) -> tuple[list[str], str]:
    """Words, and the punctuation that ends the text."""
    body = text.strip()
    end = re.search(r"[.!?]*$", body)
    stop = end[0] if end else ""
    return body[: len(body) - len(stop)].split(), stop


def _beginning(text: str, rng: Rng) -> str:
    """The first third to two thirds of the words, without punctuation at the end; "" of fewer than three words."""
    words, _ = _words(text)
    if len(words) < 3:
        return ""
    n = int(rng.integers(-(-len(words) // 3), 2 * len(words) // 3 + 1))
    return " ".join(words[:n]).rstrip(".,;:!?")


def _differs(rows: Sequence[Instruction], number: int, other: int) -> bool:
    """Whether another row's answer is to another question, and says something else."""
    return rows[other].group != rows[number].group and token_f1(rows[other].output, rows[number].output) < _ALIKE


def _trigrams(row: Instruction) -> set[str]:
    text = plain(f"{row.instruction} {row.input}")
    return {text[i : i + 3] for i in range(len(text) - 2)}


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]


def _uncapitalized(text: str) -> str:
    """Its first letter small, unless the second is a capital, too."""
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]
