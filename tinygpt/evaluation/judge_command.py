"""Judges of answers: people with a score sheet, a classifier that is trained here, and a language model elsewhere.

    python -m tinygpt judge sheet RUN --output sheet.html    the page on which people score RUN's answers, without knowing whose they are
    python -m tinygpt judge agreement A.json B.json          how far two raters agree: Cohen's kappa, plain and quadratic
    python -m tinygpt judge train --base RUN --data FILE     a classifier of good and bad answers, and what it can do on held-out documents
    python -m tinygpt judge score RUN                        every score of RUN's answers in one table, before and after fine-tuning

RUN is a run of examples/finetune_instructions.py, or an answers.json. More flags, which `python -m tinygpt judge NAME --help` explains:
sheet --seed --guidelines FILE; agreement --partial --output FILE; train --kinds --draws --seed --run --output FILE;
score --judge RUN --outside scores.json --ratings A.json B.json --partial --output FILE.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from tinygpt.arguments import parse_args
from tinygpt.errors import InvalidInput, MissingFile, did_you_mean
from tinygpt.evaluation.judge import REPORT, Judge
from tinygpt.evaluation.judge_training import question_hash, train
from tinygpt.evaluation.report import bounds, columns, json_of
from tinygpt.evaluation.sheet import GUIDELINES, SIDES, agreement, by_side, read_guidelines, read_ratings, write_sheet
from tinygpt.evaluation.statistics import Interval, difference, interval, rank_correlation
from tinygpt.fields import PathName, check_fields
from tinygpt.finetuning.scoring import Answered, read_answers, read_scores, token_f1
from tinygpt.runs.layout import newest_run
from tinygpt.storage.checked_json import Json, to_json
from tinygpt.storage.durable import replace_file
from tinygpt.weights.config_json import CLASSIFIER, ENCODER_CLASSIFIER

_Answers = Annotated[PathName, tyro.conf.Positional]


@dataclass(frozen=True)
class SheetConfig:
    answers: _Answers = ""
    """A run with answers.json, or such a file."""
    output: PathName = "sheet.html"
    """File for the page."""
    guidelines: PathName = ""
    """A text file with guidelines for raters; default: the built-in ones."""
    seed: int = 0
    """Decides the order of the answers. Raters who are to be compared get the same page."""

    def __post_init__(self) -> None:
        check_fields(self, {0: "seed"})


def sheet(argv: list[str]) -> None:
    """The command `judge sheet`."""
    config = parse_args(SheetConfig(), "A page on which people score answers, without knowing whose they are.", argv, _prog("sheet"))
    guidelines = read_guidelines(config.guidelines) if config.guidelines else GUIDELINES
    n = write_sheet(_read(config.answers), config.output, seed=config.seed, guidelines=guidelines)
    print(f"sheet      {config.output}: {n} answers in random order; open it in a browser, or send it to a rater")
    print(f"next: python -m tinygpt judge score {config.answers} --ratings FILE, with the file that the page gives to download")


@dataclass(frozen=True)
class AgreementConfig:
    ratings: Annotated[tuple[PathName, ...], tyro.conf.Positional] = ()
    """Two files that the score sheet gave to download."""
    partial: bool = False
    """Compare the answers that both have scored, though some are missing."""
    output: PathName = ""
    """File for the figures as JSON."""


def agree(argv: list[str]) -> None:
    """The command `judge agreement`."""
    config = parse_args(AgreementConfig(), "How far two raters of one score sheet agree.", argv, _prog("agreement"))
    if len(config.ratings) != 2:
        raise InvalidInput(
            f"agreement: {len(config.ratings)} files, expected two, one per rater; name those that the score sheet gave to download"
        )
    found = agreement(*map(read_ratings, config.ratings), partial=config.partial)
    print(found.text())
    if config.output:
        replace_file(Path(config.output), to_json(found.fields()))


@dataclass(frozen=True)
class ScoreConfig:
    answers: _Answers = ""
    """A run with answers.json, or such a file."""
    judge: PathName = ""
    """Run of a judge, from judge train; default: the newest one, if there is one."""
    outside: PathName = ""
    """Scores of an outside judge, 0 to 100, as finetune_instructions.py --scores reads them."""
    ratings: tuple[PathName, ...] = ()
    """People's scores: files that the score sheet gave to download."""
    partial: bool = False
    """Use ratings of which some are missing."""
    output: PathName = ""
    """File for the figures as JSON; default: judged.json next to the answers."""


@dataclass(frozen=True)
class Column:
    """What one judge gave, by record: before is empty where it did not score those answers."""

    before: dict[int, float]
    after: dict[int, float]


def score(argv: list[str]) -> None:
    """The command `judge score`."""
    config = parse_args(ScoreConfig(), "All scores of a run's answers in one table.", argv, _prog("score"))
    answers = _read(config.answers)
    judge = _open_judge(config.judge)
    found: dict[str, Column] = {"token F1": _by(lambda row, answer: token_f1(answer, row.output), answers)}
    notes: list[str] = []
    if judge:
        found["trained judge"] = _by_judge(judge, answers)
        notes += judge_notes(judge, answers)
    else:
        notes.append("no trained judge: python -m tinygpt judge train makes one")
    if config.outside:
        found["outside judge"] = Column({}, read_scores(config.outside, len(answers)))
    for ratings in map(read_ratings, config.ratings):
        sides = by_side(ratings, answers, partial=config.partial)
        found[_free(ratings.rater, found)] = Column(*({i: float(s) for i, s in sides[side].items()} for side in SIDES))
    print(score_table(found))
    if correlations := correlation_table(found):
        print("\n" + correlations)
    print("\n" + "\n".join(notes))
    where = Path(config.answers)
    output = Path(config.output) if config.output else (where if where.is_dir() else where.parent) / "judged.json"
    replace_file(output, to_json({name: _json(column) for name, column in found.items()} | {"notes": notes}))
    print(f"\nresults    {output}")


def _read(path: str) -> list[Answered]:
    if not path:
        raise MissingFile("answers: none named, expected a run with answers.json; make one with python examples/finetune_instructions.py")
    return read_answers(path)


def _open_judge(path: str) -> Judge | None:
    """The named judge, or the newest below runs/; None where there is none."""
    if path:
        return Judge.open(path)
    for architecture in (CLASSIFIER, ENCODER_CLASSIFIER):
        try:
            return Judge.open(newest_run(architecture=architecture, accept=lambda run: (run / REPORT).is_file()))
        except FileNotFoundError:
            continue
    return None


def _free(name: str, taken: dict[str, Column]) -> str:
    """The name, with a number where it is taken."""
    names = itertools.chain([name], (f"{name} {i}" for i in itertools.count(2)))
    return next(each for each in names if each not in taken)


def _by(score: Callable[[Json, str], float], answers: Sequence[Answered]) -> Column:
    before = {i: float(score(a.row, a.before)) for i, a in enumerate(answers) if a.before is not None}
    return Column(before, {i: float(score(a.row, a.after)) for i, a in enumerate(answers)})


def _by_judge(judge: Judge, answers: Sequence[Answered]) -> Column:
    sides = []
    for side in SIDES:
        given = {i: text for i, a in enumerate(answers) if (text := getattr(a, side)) is not None}
        scores = judge.scores([answers[i].row for i in given], list(given.values())) if given else np.zeros(0)
        sides.append(dict(zip(given, scores.tolist(), strict=True)))
    return Column(*sides)


def judge_notes(judge: Judge, answers: Sequence[Answered]) -> list[str]:
    """What to know before one believes a trained judge: its score of the correct answers, and how it did on held-out documents."""
    rows = [a.row for a in answers]
    correct = interval(judge.scores(rows, [row.output for row in rows]))
    notes = [f"trained judge: the correct answers themselves score {correct}; more than that says nothing"]
    report = judge.report
    if report.get("auc_unseen") is not None:
        kinds = report["kinds"]
        worst = min((kind for kind in kinds if not kinds[kind]["trained"]), key=lambda kind: kinds[kind]["auc"]["mean"])
        notes.append(
            f"trained judge: on held-out documents its mean AUC is {report['auc_unseen']:.3f} for kinds of bad answers that its training did not "
            f"contain (0.5: no information), the worst {kinds[worst]['auc']['mean']:.3f} ({worst})"
        )
    known = set(report.get("training_questions", []))
    if n := sum(question_hash(row) in known for row in rows):
        notes.append(
            f"trained judge: {n} of these {len(rows)} questions were in its training; its scores of their answers are not held out"
        )
    return notes


def _means(column: Column) -> dict[str, Interval | None]:
    """Means before and after, and of the difference over the records that have both; None where there are no scores."""
    both = [i for i in column.after if i in column.before]
    found = {side: interval(list(values.values())) if (values := getattr(column, side)) else None for side in SIDES}
    return found | {"difference": difference([column.after[i] for i in both], [column.before[i] for i in both]) if both else None}


def _json(column: Column) -> dict[str, Json]:
    return {"n": len(column.after)} | {key: json_of(mean) if mean else None for key, mean in _means(column).items()}


def score_table(found: dict[str, Column]) -> str:
    """One line per judge: means with 95 % intervals, and the difference record by record."""
    lines: list[tuple[str, ...]] = [("judge", "answers", "before", "95 %", "after", "95 %", "difference", "95 %")]
    for name, column in found.items():
        cells: list[str] = []
        for key, mean in _means(column).items():
            sign = "+" if key == "difference" else ""
            cells += [f"{mean.mean:{sign}.3f}", bounds(mean, sign)] if mean else ["", ""]
        lines.append((name, str(len(column.after)), *cells))
    return columns(lines)


def correlation_table(found: dict[str, Column]) -> str:
    """Rank correlation of each two judges, over the answers that both have scored, before and after apart: together they would correlate by
    what training changed, though neither judge tells one answer from the next. "" where no two have scored two answers."""
    lines = [("rank correlation of", "side", "answers", "", "95 %")]
    for (one, a), (other, b) in itertools.combinations(found.items(), 2):
        for side, x, y in zip(SIDES, (a.before, a.after), (b.before, b.after), strict=True):
            both = [i for i in x if i in y]
            if len(both) > 1:
                r = rank_correlation([x[i] for i in both], [y[i] for i in both])
                lines.append((f"{one}, {other}", side, str(len(both)), f"{r.mean:+.3f}", bounds(r, "+")))
    return columns(lines) if len(lines) > 1 else ""


COMMANDS: dict[str, Callable[[list[str]], None]] = {"sheet": sheet, "agreement": agree, "train": train, "score": score}


def _prog(name: str) -> str:
    return f"python -m tinygpt judge {name}"


def main(argv: list[str] | None = None) -> int:
    """The command `judge`: runs the part that the first argument names; the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        print(f"usage: python -m tinygpt judge {{{','.join(COMMANDS)}}} ...\n\n{__doc__}")
        return 0
    if name not in COMMANDS:
        print(f"error: judge {name!r}, expected one of {', '.join(COMMANDS)}; {did_you_mean(name, COMMANDS)}", file=sys.stderr)
        return 2
    COMMANDS[name](rest)
    return 0
