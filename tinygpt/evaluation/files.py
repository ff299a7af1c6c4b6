"""Task files that people have: the published shapes of well-known benchmarks, told apart by their fields, and plain ones of each kind.

    read_task("ARC-Challenge-Test.jsonl")          # a name of SHAPES is found by the fields of the first row
    read_task("mine.jsonl", kind="choice")         # {"context": "...", "options": ["...", "..."], "answer": 0}

Prompts are those of lm-evaluation-harness 0.4 where it has one for the set. A tenth of the rows, 64 at most, is kept apart by a fixed seed:
solved examples are drawn from these, and they are never scored.
"""

import csv
import dataclasses
import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from tinygpt.data.corpora import user_path
from tinygpt.data.rows import read_table
from tinygpt.errors import InvalidInput, MissingFile, did_you_mean
from tinygpt.evaluation.items import LETTERS, Item, Kind, Task, lettered
from tinygpt.evaluation.scores import METRICS
from tinygpt.storage.checked_json import Json, parse_json, read_text

Row = dict[str, Json]
_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_EXAMPLES = 64
_UNANSWERED: tuple[Json, ...] = (
    [],
    {"text": [], "answer_start": []},
    {"text": []},
)  # rows of SQuAD 2 that ask what the passage does not say


class _Wrong(Exception):
    """A field that is not as it has to be: its name, what was found, the rule."""

    def __init__(self, name: str, found: object, rule: str) -> None:
        super().__init__(f"{name} {found!r:.60}, expected {rule}")


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(name, value, "a text that is not empty")
    if _SURROGATE.search(value):
        raise _Wrong(name, value, "Unicode text, no half of a character")
    return value


def _texts(row: Row, name: str, least: int = 2) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or len(value) < least or not all(isinstance(each, str) and each.strip() for each in value):
        raise _Wrong(name, value, f"a list of at least {least} text{'s' if least > 1 else ''}, none of them empty")
    return [_text({name: each}, name) for each in value]


def _number(row: Row, name: str, n: int) -> int:
    """The number of the right one of n, as a number, in digits, or as a letter."""
    value = row.get(name)
    if isinstance(value, str) and value.strip().upper() in LETTERS[:n] and len(value.strip()) == 1:
        return LETTERS.index(value.strip().upper())
    if isinstance(value, str) and re.fullmatch(r"\d{1,4}", value.strip()):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas writes 1 as 1.0 where a number is missing elsewhere in the column
    if type(value) is not int or not 0 <= value < n:
        letters = f" or {LETTERS[0]} to {LETTERS[n - 1]}" if n <= len(LETTERS) else ""
        raise _Wrong(name, value, f"one of the {n} options, 0 to {n - 1}{letters}")
    return value


def _arc(row: Row) -> Item:
    """{"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}, or {"question", "choices": {"text": [], "label": []}, "answerKey"}."""
    question: Json = row["question"]
    choices: Json = row.get("choices")
    if isinstance(question, dict):
        question, choices = question.get("stem"), question.get("choices")
    if isinstance(choices, list) and all(isinstance(choice, dict) for choice in choices):
        choices = {key: [choice.get(key) for choice in choices] for key in ("text", "label")}
    if not isinstance(choices, dict) or not isinstance(question, str):
        raise _Wrong("choices", choices, "texts and labels")
    labels, options = choices.get("label"), _texts(choices, "text")
    if not isinstance(labels, list) or row.get("answerKey") not in labels or len(labels) != len(options):
        raise _Wrong("answerKey", row.get("answerKey"), f"one of {labels}")
    return Item("choice", (f"Question: {question}\nAnswer:",), tuple(f" {o}" for o in options), labels.index(row["answerKey"]))


def _hellaswag(row: Row) -> Item:
    def plain(text: str) -> str:
        return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")

    parted = isinstance(row.get("ctx_b"), str) and row.get("ctx_a")
    begin = f"{_text(row, 'ctx_a')} {row['ctx_b'].capitalize()}" if parted else _text(row, "ctx")
    label = f"{row['activity_label']}: " if isinstance(row.get("activity_label"), str) else ""
    endings = _texts(row, "endings")
    options = tuple(f" {plain(ending)}" for ending in endings)
    return Item("choice", (plain(label + begin),), options, _number(row, "label", len(endings)))


def _mmlu(row: Row) -> Item:
    """{"question", "choices": [...], "answer"}, or a table with the columns question, A, B, C, D, answer."""
    letters = list(itertools.takewhile(lambda letter: letter in row, LETTERS))
    options = tuple(_texts(row, "choices") if "choices" in row else [_text(row, letter) for letter in letters])
    if len(options) > len(LETTERS):
        raise _Wrong("choices", options, f"at most {len(LETTERS)}, which have letters")
    context = f"{_text(row, 'question').strip()}\n{lettered(options)}\nAnswer:"
    shown = tuple(f" {letter}" for letter in LETTERS[: len(options)])
    return Item("choice", (context,), shown, _number(row, "answer", len(options)), shown=options)


def _piqa(row: Row) -> Item:
    if "label" not in row:
        raise _Wrong(
            "label", None, "0 or 1 in the row; PIQA's labels are published in a second file, a line for each row: write them into the rows"
        )
    options = tuple(f" {_text(row, name)}" for name in ("sol1", "sol2"))
    return Item("choice", (f"Question: {_text(row, 'goal')}\nAnswer:",), options, _number(row, "label", 2))


def _truthful_choice(row: Row) -> Item:
    targets = row["mc1_targets"]
    choices, labels = (
        (targets.get("choices"), targets.get("labels")) if isinstance(targets, dict) and "choices" in targets else (None, None)
    )
    if choices is None and isinstance(targets, dict):  # {"text": 1, "text": 0}
        choices, labels = list(targets), list(targets.values())
    if not isinstance(choices, list) or not isinstance(labels, list) or labels.count(1) != 1 or len(labels) != len(choices):
        raise _Wrong("mc1_targets", targets, "choices, of which one has label 1")
    options = _texts({"choices": choices}, "choices")
    return Item("choice", (f"Q: {_text(row, 'question')}\nA:",), tuple(f" {option}" for option in options), labels.index(1))


def _truthful_answer(row: Row) -> Item:
    row = {key.casefold().replace(" ", "_"): value for key, value in row.items()}
    correct = row.get("correct_answers")
    texts = [each.strip() for each in correct.split(";") if each.strip()] if isinstance(correct, str) else correct
    options = _texts({"correct_answers": texts}, "correct_answers", 1)
    return Item("answer", (f"Q: {_text(row, 'question')}\nA:",), tuple(f" {option}" for option in options))


def _lambada(row: Row) -> Item:
    before, _, word = _text(row, "text").strip().rpartition(" ")
    if not before:
        raise _Wrong("text", row["text"], "at least two words, the last of which is asked for")
    return Item("next", (before,), (f" {word}",))


def _squad(row: Row) -> Item:
    answers = row.get("answers")
    if isinstance(answers, list):
        answers = {"text": [each.get("text") for each in answers if isinstance(each, dict)]}
    options = tuple(dict.fromkeys(f" {each}" for each in _texts(answers if isinstance(answers, dict) else {}, "text", 1)))
    passage = _text(row, "context")
    return Item("answer", (f"{passage}\n\nQuestion: {_text(row, 'question')}\nAnswer:",), options, passage=passage)


def _gsm8k(row: Row) -> Item:
    result = re.search(r"####\s*(-?[\d,.]+)", _text(row, "answer"))
    if not result:
        raise _Wrong("answer", row["answer"], "a solution that ends with #### and its number")
    return Item("answer", (f"Question: {_text(row, 'question')}\nAnswer:",), (f" {result[1].replace(',', '')}",))


def _plain_choice(row: Row) -> Item:
    options = _texts(row, "options")
    context, passage = _text(row, "context"), _text(row, "passage") if row.get("passage") else ""
    return Item("choice", (context,), tuple(options), _number(row, "answer", len(options)), passage=passage)


def _plain_schema(row: Row) -> Item:
    contexts = _texts(row, "contexts")
    return Item("schema", tuple(contexts), (_text(row, "continuation"),), _number(row, "answer", len(contexts)))


def _plain_next(row: Row) -> Item:
    return Item("next", (_text(row, "context"),), (_text(row, "continuation"),)) if "context" in row else _lambada(row)


def _plain_answer(row: Row) -> Item:
    return Item("answer", (_text(row, "prompt"),), tuple(_texts(row, "answers", 1)))


def _plain_text(row: Row) -> Item:
    return Item("text", ("",), (_text(row, "text"),))


@dataclass(frozen=True)
class Shape:
    """A published form of rows: `fields` that a row of it has, of which each may be several joined by |; what the task needs besides items."""

    fields: tuple[str, ...]
    item: Callable[[Row], Item]
    more: dict[str, Json] = field(default_factory=dict)


_A_NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"

SHAPES = {
    "arc": Shape(("question", "answerKey"), _arc),
    "hellaswag": Shape(("endings", "label"), _hellaswag),
    "piqa": Shape(("goal", "sol1", "sol2"), _piqa),
    "truthfulqa": Shape(("question", "mc1_targets"), _truthful_choice),
    "truthfulqa-answers": Shape(("question|Question", "correct_answers|Correct Answers"), _truthful_answer, {"metric": "f1", "max_new_tokens": 64}),
    "mmlu": Shape(("question", "choices|A", "answer"), _mmlu),
    "squad": Shape(("context", "question", "answers"), _squad, {"metric": "f1"}),
    "gsm8k": Shape(("question", "answer"), _gsm8k, {"metric": _A_NUMBER, "max_new_tokens": 256, "stop": ("Question:",)}),
    "choice": Shape(("context", "options", "answer"), _plain_choice),
    "schema": Shape(("contexts", "continuation", "answer"), _plain_schema),
    "next": Shape(("context", "continuation"), _plain_next),
    "answer": Shape(("prompt", "answers"), _plain_answer),
    "lambada": Shape(("text",), _lambada),
    "text": Shape(("text",), _plain_text),
}  # fmt: skip
"""By name, in the order in which they are tried: a text alone is LAMBADA's, unless --kind text says that its likelihood is asked for."""


class _Read(NamedTuple):
    rows: Sequence[tuple[str, Row]]  # (place, fields)
    shape: str = ""  # where the file's form says it


def read_task(path: str | Path, kind: str = "", *, metric: str = "", max_new_tokens: int = 0) -> Task:
    """The task of a file of rows: .jsonl, .json or .csv. A row that repeats an earlier one is left out.

    kind     a name of SHAPES; by default the first whose fields the first row has
    metric, max_new_tokens   of generated answers, where they are not to be those of the form: see `tinygpt.evaluation.items.Task`
    Raises FileNotFoundError without the file; ValueError, naming line and field, for a row without an answer, with an answer that is none of its
    options, with an empty text, and for a file whose fields say nothing; for a metric of what is not generated, and one that is no expression.
    """
    path = user_path(path)
    if not path.is_file():
        raise MissingFile(f"--task-file {path}: no such file, expected a jsonl, json or csv file of items; check the path")
    read = _rows_of(path)
    name = kind or read.shape or _recognized(path, read.rows[0][1])
    if name not in SHAPES:
        raise InvalidInput(f"--kind {name!r}, expected one of {', '.join(SHAPES)}; {did_you_mean(name, SHAPES)}")
    rows = [(place, row) for place, row in read.rows if name != "squad" or row.get("answers") not in _UNANSWERED]
    if not rows:
        raise InvalidInput(f"{path}: no question has an answer, expected some that have; check the file")
    items = list(dict.fromkeys(_item(path, place, row, name, bool(kind)) for place, row in rows))
    more = SHAPES[name].more | _answers_as(items[0].kind, metric, max_new_tokens)
    scored, shown = _kept_apart(items)
    what = f"{name}, {len(scored):,} rows" + (f", {len(shown)} more for solved examples" if shown else "")
    left_out = {"they repeat an earlier row": len(rows) - len(items), "they have no answer": len(read.rows) - len(rows)}
    notes = [f"left out, because {why}: {n:,}" for why, n in left_out.items() if n]
    if joined := _joined(items):
        notes.append(f"options follow without white space, as in {joined!r}; begin them with a space where they are words")
    return Task(path.stem, scored, shown, what, f"file {path}", notes=notes, **more)


def _item(path: Path, place: str, row: Row, name: str, asked: bool) -> Item:
    """A row's item. Raises ValueError, naming its location. asked: whether --kind named the form."""
    shape = SHAPES[name]
    missing = [names for names in shape.fields if not any(each in row for each in names.split("|"))]
    if missing and name != "next":
        rule = f"{', '.join(shape.fields).replace('|', ' or ')}, as {f'--kind {name} has' if asked else f'the first row, of the form {name}, has'} them"
        raise InvalidInput(
            f"{path}: {place}: no field {' or '.join(map(repr, missing[0].split('|')))}, expected {rule}; correct or remove the row"
        )
    try:
        item = shape.item(row)
        if any(not option.strip() for option in item.options):
            raise _Wrong("an option", "", "a text that is not empty")
    except (_Wrong, InvalidInput, KeyError) as error:
        what = f"no field {error}" if isinstance(error, KeyError) else error
        raise InvalidInput(f"{path}: {place}: {what}; correct or remove the row") from None
    return item


def _answers_as(kind: Kind, metric: str, max_new_tokens: int) -> dict[str, Json]:
    """What --metric and --max-new-tokens change in a task. Raises ValueError for a kind without answers, and for what is no expression."""
    given = {"metric": metric, "max_new_tokens": max_new_tokens}
    for name, value in given.items():
        if value and kind != "answer":
            raise InvalidInput(f"--{name.replace('_', '-')} {value!r}: items of kind {kind}, expected generated answers; leave it out")
    if metric and metric not in METRICS:
        try:
            re.compile(metric)
        except (re.error, RecursionError, OverflowError) as error:
            rule = f"{', '.join(METRICS)} or a regular expression"
            raise InvalidInput(f"--metric {metric!r}: {error}, expected {rule}; {did_you_mean(metric, METRICS, 'correct it')}") from None
        if metric.isidentifier():
            fix = did_you_mean(metric, METRICS, f"for the word itself write \\b{metric}\\b")
            raise InvalidInput(f"--metric {metric!r}: a word, expected {', '.join(METRICS)} or a regular expression; {fix}")
    return {name: value for name, value in given.items() if value}


def _kept_apart(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """(items to score, items for solved examples), with numbers of groups: what shares a passage is one group, and on one side."""
    numbers: dict[tuple[str, ...], int] = {}
    groups = [numbers.setdefault((item.passage,) if item.passage else (*item.contexts, *item.options), len(numbers)) for item in items]
    sizes, most = np.bincount(groups), min(_MOST_EXAMPLES, len(items) // 10)
    apart: list[int] = []
    for group in np.random.default_rng([11, len(numbers)]).permutation(len(numbers)).tolist():
        if sizes[apart].sum() + sizes[group] <= most:
            apart.append(group)
    numbered = [dataclasses.replace(item, group=group) for item, group in zip(items, groups, strict=True)]
    return [item for item in numbered if item.group not in apart], [item for group in apart for item in numbered if item.group == group]


def _joined(items: Sequence[Item]) -> str:
    """An example of a context that runs into its option; "" where white space or a sign stands between them, as in most rows."""
    ends = [(item.contexts[0][-12:], item.options[0][:12]) for item in items if item.kind in ("choice", "schema", "next")]
    found = [a + b for a, b in ends if a[-1:].isalnum() and a.isascii() and b[:1].isalnum() and b.isascii()]
    return found[0] if 2 * len(found) > len(ends) else ""


def _rows_of(path: Path) -> _Read:
    if path.suffix.lower() == ".csv" and (rows := _mmlu_csv(path)):
        return _Read(rows, "mmlu")
    if path.suffix.lower() == ".json" and (articles := _squad_articles(path)):
        return _Read(articles, "squad")
    return _Read(read_table(path, ("question", "context", "text")).rows)


def _mmlu_csv(path: Path) -> list[tuple[str, Row]]:
    """MMLU's own files have no header: question, options, the letter of the right one. [] for any other file. Raises ValueError, naming the
    line, for a row with another number of columns than the first."""
    reader, rows = csv.reader(io.StringIO(read_text(path), newline="")), []
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                rows.append((f"line {reader.line_num}", cells))
    except csv.Error:
        return []
    first = rows[0][1] if rows else []
    if len(first) < 4 or first[-1].strip() not in list(LETTERS[: len(first) - 2]):
        return []
    for place, cells in rows:
        if len(cells) != len(first):
            rule = f"expected {len(first)} as in the first row"
            raise InvalidInput(f"{path}: {place}: {len(cells)} columns, {rule}; correct or remove the row, and quote texts with commas")
    return [(place, {"question": c[0], "choices": c[1:-1], "answer": c[-1]}) for place, c in rows]


def _squad_articles(path: Path) -> list[tuple[str, Row]]:
    """The questions of SQuAD's own file: {"data": [{"paragraphs": [{"context", "qas": [...]}]}]}. Those without an answer are left out.
    [] for any other file."""
    try:
        whole = parse_json(read_text(path), str(path), "repair it there", nan_is_null=True)
    except InvalidInput:
        return []
    found: list[tuple[str, Row]] = []
    for article in _dicts(whole, "data"):
        for paragraph in _dicts(article, "paragraphs"):
            for asked in _dicts(paragraph, "qas"):
                row = {"context": paragraph.get("context"), "question": asked.get("question"), "answers": asked.get("answers")}
                if row["answers"]:
                    found.append((f"question {asked.get('id', len(found) + 1)}", row))
    return found


def _dicts(value: Json, name: str) -> list[dict[str, Json]]:
    """The objects in a list of that name."""
    found = value.get(name) if isinstance(value, dict) else None
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _recognized(path: Path, row: Row) -> str:
    for name, shape in SHAPES.items():
        if all(any(each in row for each in names.split("|")) for names in shape.fields):
            return name
    kinds = ", ".join(get_args(Kind))
    rule = f"those of {', '.join(SHAPES)}"
    raise InvalidInput(f"{path}: fields {', '.join(map(repr, row))}, expected {rule}; rename them, and say --kind {kinds} if it is unclear")
