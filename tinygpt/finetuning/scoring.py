"""How good answers are: scores by counting, and the files through which a judge outside can score them.

    score_answers(given, expected)                        # exact match, token F1, and BLEU where sacrebleu is installed
    write_answers("answers.json", rows, before, after)    # a list of records, each with the prompt for a judge
    read_scores("scores.json", n=len(rows))               # what the judge gave, 0 to 100 for each record

Counting compares words, not meaning: it tells better from worse on the same questions, no more. A judge (a person, or a large language
model run by other means) reads answers.json and writes scores.json; nothing here talks to one.
"""

import contextlib
import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygpt.errors import InvalidInput, MissingFile, MissingPackage
from tinygpt.finetuning.instructions import Instruction
from tinygpt.finetuning.rows import plain
from tinygpt.storage.checked_json import Json, parse_json, read_text


def normal_words(text: str) -> list[str]:
    """The words of a text, lower case, no punctuation or articles.  Source  SQuAD: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1"""
    text = text.casefold().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def exact_match(given: str, expected: str) -> bool:
    """Whether answers are equal but for case, white space and a final full stop: `normal_words` would take -5 for 5 and "A" for nothing."""
    return plain(given).removesuffix(".") == plain(expected).removesuffix(".")


def token_f1(given: str, expected: str) -> float:
    """Harmonic mean of the shares of words in common, 0 to 1; two answers without a word agree.  Source  as `normal_words`"""
    words, wanted = normal_words(given), normal_words(expected)
    if not words or not wanted:
        return float(words == wanted)
    common = (Counter(words) & Counter(wanted)).total()
    return 2 * common / (len(words) + len(wanted))


def bleu(given: Sequence[str], expected: Sequence[str]) -> float:
    """BLEU of all answers together, 0 to 100, as sacrebleu counts it by default. Raises ImportError, naming the extra, without it.

    Source  Papineni et al. 2002, BLEU; Post 2018, A call for clarity in reporting BLEU scores, arXiv:1804.08771
    """
    return float(_sacrebleu().BLEU().corpus_score(list(given), [list(expected)]).score)


def bleu_counts(given: Sequence[str], expected: Sequence[Sequence[str]]) -> np.ndarray:
    """What BLEU is computed from, by answer, each with its right answers: (N, 10) matching n-grams of 1 to 4 words, all n-grams, words of the
    answer, words of the right one. `bleu_of` their sum is the BLEU of the answers together. Raises ImportError as `bleu` does."""
    counter = _sacrebleu().BLEU(effective_order=True)  # which changes no count; without it a single sentence is warned of
    found = [counter.sentence_score(answer, list(right)) for answer, right in zip(given, expected, strict=True)]
    return np.array([[*each.counts, *each.totals, each.sys_len, each.ref_len] for each in found], dtype=np.float64).reshape(-1, 10)


def bleu_of(counts: np.ndarray) -> float:
    """BLEU, 0 to 100, of counts (10,), as sacrebleu's default smooths it; see `bleu_counts`."""
    numbers = [int(n) for n in counts.tolist()]
    return float(_sacrebleu().BLEU.compute_bleu(numbers[:4], numbers[4:8], *numbers[8:], smooth_method="exp").score)


def _sacrebleu() -> Json:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise MissingPackage('BLEU: sacrebleu is missing, expected it for this score; pip install "tinygpt[instruct]"') from error
    return metrics


@dataclass(frozen=True)
class AnswerScores:
    """n answers; shares of exact matches and mean token F1 (0 to 1); BLEU (0 to 100), None without sacrebleu."""

    n: int
    exact_match: float
    token_f1: float
    bleu: float | None

    def __str__(self) -> str:
        last = "not measured (sacrebleu is missing)" if self.bleu is None else f"{self.bleu:.1f}"
        return f"exact match {self.exact_match:.1%}, token F1 {self.token_f1:.3f}, BLEU {last}"


def score_answers(given: Sequence[str], expected: Sequence[str]) -> AnswerScores:
    """All scores of answers against the expected ones. Raises ValueError if there are none, or not as many."""
    if not given or len(given) != len(expected):
        raise InvalidInput(f"score_answers: {len(given)} answers and {len(expected)} expected ones, expected as many, and at least one")
    together = None
    with contextlib.suppress(ImportError):
        together = bleu(given, expected)
    n = len(given)
    return AnswerScores(n, sum(map(exact_match, given, expected)) / n, sum(map(token_f1, given, expected)) / n, together)


def judge_prompt(row: Instruction, answer: str) -> str:
    """What to ask a judge about one answer; it should reply with a number."""
    task = row.instruction + (f"\n{row.input}" if row.input.strip() else "")
    return (
        "Score a response to a task, given a correct answer. 100 is as good as the correct answer in content and form, 0 is of no use.\n\n"
        f"Task:\n{task}\n\nCorrect answer:\n{row.output}\n\nResponse:\n{answer}\n\nReply with one whole number from 0 to 100 and nothing else."
    )


def write_answers(path: str | Path, rows: Sequence[Instruction], before: Sequence[str], after: Sequence[str]) -> None:
    """Writes a JSON list with one record per row.

    id, place, instruction, input, output   the row; ids count from 0
    before, model_response                  the answers of the model as it was and as it is
    judge_prompt                            what to ask a judge about model_response
    A judge's scores.json: a list of {"id": 0, "score": 85}, or of bare numbers in the order of the records.
    """
    records = []
    for i, (row, old, new) in enumerate(zip(rows, before, after, strict=True)):
        asked = {"id": i, "place": row.place, "instruction": row.instruction, "input": row.input, "output": row.output}
        records.append(asked | {"before": old, "model_response": new, "judge_prompt": judge_prompt(row, new)})
    Path(path).write_text(json.dumps(records, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


def read_scores(path: str | Path, n: int) -> dict[int, float]:
    """A judge's scores by record id, of n; records without one are missing from the dict.

    path   JSON as `write_answers` describes it, or one such object per line (.jsonl)
    Raises FileNotFoundError; ValueError for what is no JSON, an unknown or repeated id, a score that is no number from 0 to 100.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"{path}: no such file, expected a judge's scores as JSON; check the path")
    text = read_text(path)
    if path.suffix == ".jsonl":
        lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        entries = [parse_json(line, f"{path}: line {i}", "repair it there") for i, line in lines]
    else:
        entries = parse_json(text, str(path), "repair it there")
    if not isinstance(entries, list) or not entries:
        raise InvalidInput(f"{path}: {'empty' if entries == [] else type(entries).__name__}, expected a list of scores; see write_answers")
    scores: dict[int, float] = {}
    for place, entry in enumerate(entries):
        id, score = (entry.get("id"), entry.get("score")) if isinstance(entry, dict) else (place, entry)
        if type(id) is not int or not 0 <= id < n or id in scores:
            found = f"id {id!r}, {'again' if type(id) is int and id in scores else 'which no record has'}"
            raise InvalidInput(f"{path}: entry {place}: {found}, expected each of 0 to {n - 1} once; are these other answers' scores?")
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 100:
            found = f"entry {place}: score {score!r}"
            raise InvalidInput(f"{path}: {found}, expected a number from 0 to 100; ask the judge again, or leave it out")
        scores[id] = float(score)
    return scores
