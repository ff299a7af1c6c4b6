"""A judge that is trained here: a classifier that tells good answers from bad ones, and an honest account of what it can do.

    judge = Judge.open("runs/judge-001")                    # python -m tinygpt judge train makes one
    judge.scores(rows, answers)                             # (N,) probability that each is a good one
    measure_judge(judge.scores, held_out, TRAINED_KINDS)    # per kind of corruption: what is caught, and the area under the curve

The pointwise judge reads one question and one answer. The pairwise one reads a question and two answers, and says which is better: there the
order can decide, and `measure_position` says how often it does. Figures count on held-out documents, and on kinds of corruption that the
training did not contain, because a classifier may learn how bad answers were made instead of what makes them bad.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.evaluation.statistics import Interval, auc, interval
from tinygpt.finetuning.classifier import TextClassifier, encode
from tinygpt.finetuning.corruptions import Judged
from tinygpt.finetuning.encoder_classifier import open_classifier
from tinygpt.finetuning.instructions import Instruction
from tinygpt.inference.likelihood import choose
from tinygpt.inference.sampling import softmax
from tinygpt.models.gpt import GPT
from tinygpt.storage.checked_json import Json, read_json_object

LABELS = ["bad", "good"]  # of the pointwise judge
SIDES = ["first", "second"]  # of the pairwise one
REPORT = "judge.json"  # in the judge's run: what was measured

Score = Callable[[Sequence[Instruction], Sequence[str]], np.ndarray]
"""Scores (N,) of answers to rows, more is better."""


def question_of(row: Instruction) -> str:
    """Instruction and input."""
    return row.instruction.strip() + (f"\n{row.input.strip()}" if row.input.strip() else "")


def judge_text(row: Instruction, answer: str) -> str:
    """What the pointwise judge reads."""
    return f"{question_of(row)}\n\n{answer.strip()}"


def pair_text(row: Instruction, first: str, second: str) -> str:
    """What the pairwise judge reads."""
    return f"{question_of(row)}\n\nA: {first.strip()}\n\nB: {second.strip()}"


@dataclass
class Judge:
    """A trained pointwise judge, and what its training has reported (judge.json)."""

    classifier: TextClassifier
    report: dict[str, Json] = field(default_factory=dict)
    n_cut: int = 0  # answers so far that were too long to be read to their end

    @classmethod
    def open(cls, path: str | Path) -> "Judge":
        """From its run. Raises FileNotFoundError without one, ValueError for a classifier of other things."""
        classifier = open_classifier(path)
        if classifier.labels != LABELS:
            found = f"{path}: a classifier of {', '.join(classifier.labels)}"
            raise InvalidInput(f"{found}, expected a judge, of {', '.join(LABELS)}; train one: python -m tinygpt judge train")
        report = Path(path) / REPORT
        return cls(classifier, read_json_object(report) if report.is_file() else {})

    def scores(self, rows: Sequence[Instruction], answers: Sequence[str]) -> np.ndarray:
        """(N,) the probability of "good" for each answer to its row, in 0 .. 1."""
        texts = [judge_text(row, answer) for row, answer in zip(rows, answers, strict=True)]
        sequences, n_cut = encode(texts, self.classifier.tokenizer, self.classifier.config.n_positions, truncate=True)
        self.n_cut += n_cut
        return softmax(self.classifier.logits(sequences))[:, LABELS.index("good")]


# What it can do -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KindReport:
    """What a judge does with one kind of bad answers.

    n           bad answers; each is held against the right answer to the same question
    trained     whether the training contained this kind
    caught      share that the judge calls bad
    auc         probability that a right answer scores above a bad one, of any two questions
    preferred   share of the bad answers below the right answer to the same question
    rivals      the AUC of trivial scores, by name
    """

    n: int
    trained: bool
    caught: Interval
    auc: Interval
    preferred: Interval
    rivals: dict[str, float]


def measure_judge(
    scores: np.ndarray, made: Sequence[Judged], trained: Sequence[str], rivals: dict[str, np.ndarray], threshold: float = 0.5
) -> tuple[Interval, dict[str, KindReport]]:
    """The share of right answers that the judge calls good, and a report for each kind of bad ones. Intervals draw documents.

    scores   (N,) of the answers `made`: 0.5 and more is good
    rivals   other scores (N,) of the same answers, more is better
    """
    good = np.array([j.good for j in made])
    row, group = np.array([j.row for j in made]), np.array([j.question.group for j in made])
    right_of = {int(row[i]): int(i) for i in np.flatnonzero(good)}  # the right answer to the same question
    found = {}
    for kind in dict.fromkeys(j.kind for j in made if not j.good):
        bad = np.flatnonzero([j.kind == kind for j in made])
        right = np.array([right_of[n] for n in row[bad].tolist()])
        groups = (group[right], group[bad])
        above = (scores[right] > scores[bad]) + 0.5 * (scores[right] == scores[bad])
        found[kind] = KindReport(
            len(bad), kind in trained, interval(scores[bad] < threshold, group[bad]), auc(scores[right], scores[bad], groups),
            interval(above, group[bad]), {name: auc(x[right], x[bad], groups).mean for name, x in rivals.items()},
        )  # fmt: skip
    return interval(scores[good] >= threshold, group[good]), found


def trivial_scores(made: Sequence[Judged]) -> dict[str, np.ndarray]:
    """Scores that need no model: words in the answer; share of them that occur in the question; whether it ends with a full stop."""
    words = [re.findall(r"[^\W_]+", j.answer.casefold()) for j in made]
    asked = [set(re.findall(r"[^\W_]+", question_of(j.question).casefold())) for j in made]
    return {
        "length": np.array([float(len(w)) for w in words]),
        "overlap": np.array([sum(word in q for word in w) / max(len(w), 1) for w, q in zip(words, asked, strict=True)]),
        "full stop": np.array([float(j.answer.rstrip().endswith((".", "!", "?"))) for j in made]),
    }


def likelihood_scores(gpt: GPT, tokenizer: Tokenizer, made: Sequence[Judged]) -> dict[str, np.ndarray]:
    """Scores by a language model as it is: minus the nats per token of an answer after its question ("likelihood", the perplexity's order),
    and how many nats per token the question saves against the answer alone ("gain"). An answer too long for the context loses its end."""
    after, alone = (_nats(gpt, tokenizer, made, with_question) for with_question in (True, False))
    return {"likelihood": -after, "gain": alone - after}


def _nats(gpt: GPT, tokenizer: Tokenizer, made: Sequence[Judged], with_question: bool) -> np.ndarray:
    nats = np.zeros(len(made))
    room = gpt.config.n_positions // 2
    of_row: dict[int, list[int]] = {}
    for i, j in enumerate(made):
        of_row.setdefault(j.row, []).append(i)
    for some in of_row.values():
        before = _cut(tokenizer, f"{question_of(made[some[0]].question)}\n\n", room) if with_question else "\n\n"
        found = choose(gpt, tokenizer, before, [_cut(tokenizer, made[i].answer.strip() or ".", room) for i in some])[1]
        nats[some] = [each.nats_per_token for each in found]
    return nats


def _cut(tokenizer: Tokenizer, text: str, n: int) -> str:
    """The text, or the first n of its tokens."""
    ids = tokenizer.encode(text)
    return text if len(ids) <= n else tokenizer.decode(ids[:n])


# Two answers at once ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A right and a bad answer to the same question."""

    question: Instruction
    right: str
    bad: str
    kind: str

    def text(self, right_first: bool) -> str:
        return pair_text(self.question, *((self.right, self.bad) if right_first else (self.bad, self.right)))


def pairs_of(made: Sequence[Judged]) -> list[Pair]:
    """Each bad answer with the right one to its question."""
    right = {j.row: j.answer for j in made if j.good}
    return [Pair(j.question, right[j.row], j.answer, j.kind) for j in made if not j.good]


@dataclass(frozen=True)
class Position:
    """What the order of two answers does to a pairwise verdict. Every pair is shown in both orders.

    right     share of right verdicts over both orders; 0.5 for guessing, and for a judge that looks at the order alone
    changed   share of the pairs whose verdict changes with the order
    first     share of verdicts for the answer that comes first; 0.5 without a bias
    """

    n: int
    right: Interval
    changed: Interval
    first: Interval


def measure_position(pairs: Sequence[Pair], prefers_first: Callable[[list[Pair], bool], np.ndarray]) -> Position:
    """prefers_first(pairs, right_first) says of each pair, shown with the right or with the bad answer first, whether the first one wins."""
    group = [pair.question.group for pair in pairs]
    right_first, bad_first = (np.asarray(prefers_first(list(pairs), order)).astype(float) for order in (True, False))
    return Position(
        len(pairs), interval((right_first + (1 - bad_first)) / 2, group), interval(right_first == bad_first, group),
        interval((right_first + bad_first) / 2, group),
    )  # fmt: skip


def by_pairs(classifier: TextClassifier) -> Callable[[list[Pair], bool], np.ndarray]:
    """Verdicts of a pairwise judge, for `measure_position`."""

    def prefers_first(pairs: list[Pair], right_first: bool) -> np.ndarray:
        texts = [pair.text(right_first) for pair in pairs]
        sequences, _ = encode(texts, classifier.tokenizer, classifier.config.n_positions, truncate=True)
        logits = classifier.logits(sequences)
        return np.asarray(logits[:, 0] > logits[:, 1])

    return prefers_first


def by_scores(score: Score) -> Callable[[list[Pair], bool], np.ndarray]:
    """Verdicts of a pointwise judge: each answer has its score, whatever stands before or after it."""

    def prefers_first(pairs: list[Pair], right_first: bool) -> np.ndarray:
        rows = [pair.question for pair in pairs]
        right, bad = score(rows, [pair.right for pair in pairs]), score(rows, [pair.bad for pair in pairs])
        return right > bad if right_first else bad > right

    return prefers_first


def by_prompt(gpt: GPT, tokenizer: Tokenizer) -> Callable[[list[Pair], bool], np.ndarray]:
    """Verdicts of a language model as it is: whether A or B is the likelier end of "The better answer is"."""

    def verdicts(pairs: list[Pair], right_first: bool) -> Iterator[bool]:
        for pair in pairs:
            ending = "\n\nThe better answer is"
            asked = _cut(tokenizer, pair.text(right_first), gpt.config.n_positions - len(tokenizer.encode(ending)) - 4)
            yield choose(gpt, tokenizer, asked + ending, [" A", " B"])[0] == " A"

    return lambda pairs, right_first: np.array(list(verdicts(pairs, right_first)))
