"""A score sheet for people: one HTML page with answers in random order, and what comes back from it.

    write_sheet(read_answers(run), "sheet.html")            # the page; it needs no network and no other file
    ratings = read_ratings("ratings-anna.json")             # what it gives to download
    print(agreement(ratings, read_ratings("ratings-ben.json")).text())
    sides = by_side(ratings, read_answers(run))             # {"before": ..., "after": ...}: scores by record

Raters are blind: the page shows every answer by itself, in an order that a seed decides, and does not hold which model wrote it. That comes
from answers.json, when the scores are read back; a fingerprint in both files tells whether they belong together.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.evaluation.report import json_of
from tinygpt.evaluation.statistics import Interval, confusion, interval, kappa_interval
from tinygpt.finetuning.scoring import Answered
from tinygpt.storage.checked_json import Json, read_json, read_text
from tinygpt.storage.durable import replace_file

SCALE = {
    1: "useless: wrong, about something else, empty or unreadable",
    2: "mostly wrong, but about the right thing",
    3: "partly right: what matters is missing or wrong",
    4: "right, with a small lack of content or form",
    5: "as good as the correct answer",
}
GUIDELINES = """Score how well each answer does what the task asks. Go by what it says: another wording than the correct answer's is fine.
Neither length nor confidence counts. Score an answer by itself, not against the one before it.
If you hesitate between two scores, give the lower one. Skip nothing: an unreadable answer is a 1."""

SIDES = ("before", "after")  # of a record, in the order that numbers them


def _order(answers: Sequence[Answered], seed: int) -> list[tuple[int, str]]:
    """(record, side) of each answer on the sheet. before is left out where the records have none."""
    every = [(i, side) for i, answer in enumerate(answers) for side in SIDES if side == "after" or answer.before is not None]
    return [every[i] for i in np.random.default_rng([seed, len(every)]).permutation(len(every))]


def _fingerprint(answers: Sequence[Answered], seed: int) -> str:
    """Equal where the same sheet is made."""
    shown = [[a.row.instruction, a.row.input, a.row.output, a.before, a.after] for a in answers]
    return hashlib.sha256(json.dumps([seed, shown]).encode("ascii")).hexdigest()[:16]


def sheet_page(answers: Sequence[Answered], *, seed: int = 0, guidelines: str = GUIDELINES) -> str:
    """The page, as HTML. `<` in a text cannot end the script element that holds it."""
    items = []
    for record, side in _order(answers, seed):
        row, given = answers[record].row, answers[record].before if side == "before" else answers[record].after
        items.append({"question": record, "task": row.instruction, "input": row.input, "correct": row.output, "answer": given})
    scale = [{"score": score, "means": text} for score, text in SCALE.items()]
    data = {"sheet": _fingerprint(answers, seed), "seed": seed, "guidelines": guidelines.strip(), "scale": scale, "items": items}
    template = Path(__file__).with_name("sheet.html").read_text(encoding="utf-8")
    return template.replace("/*DATA*/null", json.dumps(data, ensure_ascii=True, allow_nan=False).replace("<", "\\u003c"))


def write_sheet(answers: Sequence[Answered], path: str | Path, *, seed: int = 0, guidelines: str = GUIDELINES) -> int:
    """Writes the page, and makes its folder; how many answers it shows. seed: decides their order, the same for all raters of a sheet."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_file(Path(path), sheet_page(answers, seed=seed, guidelines=guidelines))
    return len(_order(answers, seed))


@dataclass(frozen=True)
class Ratings:
    """What one rater gave.

    sheet       fingerprint of the sheet
    seed        of its order
    scores      by number on the sheet, 1 to 5; None where there is none
    questions   the record of each answer: answers to one question rise and fall together
    """

    path: str
    rater: str
    sheet: str
    seed: int
    scores: list[int | None]
    questions: list[int]

    @property
    def missing(self) -> list[int]:
        """Numbers of the answers without a score, from 0."""
        return [i for i, score in enumerate(self.scores) if score is None]


def read_ratings(path: str | Path) -> Ratings:
    """What the sheet's page gave to download. Raises FileNotFoundError; ValueError for a damaged file, and for scores outside 1 to 5."""
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"{path}: no such file, expected what a score sheet gave to download; check the path")
    found = read_json(path)
    fix = "download it from the sheet again"
    if not isinstance(found, dict):
        raise InvalidInput(f"{path}: a JSON {type(found).__name__}, expected an object; {fix}")
    kinds = {"sheet": str, "rater": str, "seed": int, "scores": list, "questions": list}
    for key, kind in kinds.items():
        if type(found.get(key)) is not kind:
            what = f"a {type(found[key]).__name__}" if key in found else "missing"
            raise InvalidInput(f"{path}: {key} is {what}, expected a {kind.__name__}; {fix}")
    scores, questions = found["scores"], found["questions"]
    if not scores or len(questions) != len(scores) or any(type(q) is not int or q < 0 for q in questions):
        raise InvalidInput(f"{path}: {len(scores)} scores and {len(questions)} questions, expected as many, numbered from 0; {fix}")
    for i, score in enumerate(scores):
        if score is not None and (type(score) is not int or score not in SCALE):
            raise InvalidInput(f"{path}: answer {i + 1}: score {score!r}, expected 1 to 5 or null; {fix}")
    return Ratings(str(path), found["rater"].strip() or path.stem, found["sheet"], found["seed"], scores, questions)


def check_complete(ratings: Ratings, partial: bool) -> None:
    """Raises ValueError if scores are missing, unless that is allowed; and if there is none at all."""
    if (n := len(ratings.missing)) == len(ratings.scores) or (n and not partial):
        which = ", ".join(str(i + 1) for i in ratings.missing[:5]) + (", ..." if n > 5 else "")
        fix = "finish the sheet" + (", or use those that are there with --partial" if n < len(ratings.scores) else "")
        raise InvalidInput(f"{ratings.path}: {n} of {len(ratings.scores)} answers without a score ({which}), expected all scored; {fix}")


def by_side(ratings: Ratings, answers: Sequence[Answered], *, partial: bool = False) -> dict[str, dict[int, int]]:
    """Scores by record of "before" and of "after". Raises ValueError for ratings of other answers, and as `check_complete`."""
    if ratings.sheet != (mine := _fingerprint(answers, ratings.seed)):
        rule = f"{mine} as these answers have it"
        raise InvalidInput(
            f"{ratings.path}: ratings of sheet {ratings.sheet}, expected {rule}; name the answers.json that the sheet was made of"
        )
    order = _order(answers, ratings.seed)
    if len(order) != len(ratings.scores):
        raise InvalidInput(f"{ratings.path}: {len(ratings.scores)} scores, expected {len(order)}; download it from the sheet again")
    check_complete(ratings, partial)
    found: dict[str, dict[int, int]] = {side: {} for side in SIDES}
    for (record, side), score in zip(order, ratings.scores, strict=True):
        if score is not None:
            found[side][record] = score
    return found


@dataclass(frozen=True)
class Agreement:
    """How far two raters agree, over the n answers that both have scored. table (5, 5): the first one's scores by row, the second one's by column."""

    raters: tuple[str, str]
    n: int
    equal: Interval
    within_one: Interval
    kappa: Interval
    quadratic: Interval
    table: np.ndarray

    def text(self) -> str:
        """As a table for people."""
        lines = [
            f"{self.raters[0]} (rows) and {self.raters[1]} (columns), {self.n} answers; 95 % intervals draw questions",
            f"  same score              {self.equal}",
            f"  at most 1 apart         {self.within_one}",
            f"  Cohen's kappa           {self.kappa}",
            f"  kappa, quadratic        {self.quadratic}",
            "",
            "       " + "".join(f"{score:>6}" for score in SCALE),
        ]
        lines += [f"  {score:>5}" + "".join(f"{n:>6}" for n in row) for score, row in zip(SCALE, self.table, strict=True)]
        return "\n".join(lines)

    def fields(self) -> dict[str, Json]:
        """As JSON values."""
        values = {key: json_of(x) if isinstance(x, Interval) else x for key, x in vars(self).items()}
        return values | {"table": self.table.tolist(), "raters": list(self.raters)}


def agreement(a: Ratings, b: Ratings, *, partial: bool = False) -> Agreement:
    """Of two raters of one sheet. Raises ValueError for different sheets, for missing scores unless `partial`, and without a common answer."""
    if (a.sheet, len(a.scores)) != (b.sheet, len(b.scores)):
        found = f"{a.path} rates sheet {a.sheet} of {len(a.scores)} answers, {b.path} sheet {b.sheet} of {len(b.scores)}"
        raise InvalidInput(f"agreement: {found}, expected two raters of one sheet; give both the same page")
    for ratings in (a, b):
        check_complete(ratings, partial)
    both = [(x, y, q) for x, y, q in zip(a.scores, b.scores, a.questions, strict=True) if x is not None and y is not None]
    if not both:
        raise InvalidInput(f"agreement: no answer that {a.path} and {b.path} both score, expected at least one; score the same ones")
    x, y = [s for s, _, _ in both], [s for _, s, _ in both]
    groups, labels = [q for _, _, q in both], list(SCALE)
    distance = np.abs(np.subtract(x, y))
    return Agreement(
        (a.rater, b.rater), len(both), interval(distance == 0, groups), interval(distance <= 1, groups),
        kappa_interval(x, y, labels, groups=groups), kappa_interval(x, y, labels, "quadratic", groups), confusion(x, y, labels),
    )  # fmt: skip


def read_guidelines(path: str | Path) -> str:
    """Raises FileNotFoundError, and ValueError for an empty file."""
    if not Path(path).is_file():
        raise MissingFile(f"{path}: no such file, expected guidelines for raters as text; leave the flag out for the built-in ones")
    if not (text := read_text(path).strip()):
        raise InvalidInput(f"{path}: empty, expected guidelines for raters as text")
    return text
