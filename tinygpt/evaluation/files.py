"""Task files that people have: the published shapes of well-known benchmarks, told apart by their fields, and plain ones of each kind.

    read_task("ARC-Challenge-Test.jsonl")          # a name of SHAPES is found by the fields of the first row
    read_task("mine.jsonl", kind="choice")         # {"context": "...", "options": ["...", "..."], "answer": 0}

Prompts are those of lm-evaluation-harness 0.4 where it has one for the set. A tenth of the rows, 64 at most, is kept apart by a fixed seed:
solved examples are drawn from these, and they are never scored.
"""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from tinygpt.data.corpora import user_path
from tinygpt.data.rows import read_table
from tinygpt.errors import InvalidInput, MissingFile, did_you_mean
from tinygpt.evaluation.items import Item, Kind, Task
from tinygpt.storage.checked_json import Json, parse_json, read_text

Row = dict[str, Json]
_MOST_EXAMPLES = 64
_LETTERS = "ABCDEFGHIJ"


class _Wrong(Exception):
    """A field that is not as it has to be: its name, what was found, the rule."""

    def __init__(self, name: str, found: object, rule: str) -> None:
        super().__init__(f"{name} {found!r:.60}, expected {rule}")


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(name, value, "a text that is not empty")
    return value


def _texts(row: Row, name: str, least: int = 2) -> list[str]:
    value = row.get(name)
    if not isinstance(value, list) or len(value) < least or not all(isinstance(each, str) and each.strip() for each in value):
        raise _Wrong(name, value, f"a list of at least {least} texts, none of them empty")
    return value


def _number(row: Row, name: str, n: int) -> int:
    """The number of the right one of n, as a number, in digits, or as a letter."""
    value = row.get(name)
    if isinstance(value, str) and value.strip().upper() in _LETTERS[:n] and len(value.strip()) == 1:
        return _LETTERS.index(value.strip().upper())
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if type(value) is not int or not 0 <= value < n:
        raise _Wrong(name, value, f"one of the {n} options, 0 to {n - 1} or {_LETTERS[0]} to {_LETTERS[n - 1]}")
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

    begin = row["ctx_a"] + " " + row["ctx_b"].capitalize() if isinstance(row.get("ctx_b"), str) and row.get("ctx_a") else _text(row, "ctx")
    label = f"{row['activity_label']}: " if isinstance(row.get("activity_label"), str) else ""
    endings = _texts(row, "endings")
    options = tuple(f" {plain(ending)}" for ending in endings)
    return Item("choice", (plain(label + begin),), options, _number(row, "label", len(endings)))


def _mmlu(row: Row) -> Item:
    options = _texts(row, "choices")
    shown = "\n".join(f"{letter}. {option}" for letter, option in zip(_LETTERS, options, strict=False))
    context = f"{_text(row, 'question').strip()}\n{shown}\nAnswer:"
    return Item("choice", (context,), tuple(f" {letter}" for letter in _LETTERS[: len(options)]), _number(row, "answer", len(options)))


def _piqa(row: Row) -> Item:
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
    texts = [each.strip() for each in correct.split(";")] if isinstance(correct, str) else correct
    options = _texts({"correct_answers": texts}, "correct_answers", 1)
    return Item("answer", (f"Q: {_text(row, 'question')}\nA:",), tuple(f" {option}" for option in options if option))


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
    context, passage = _text(row, "context"), row.get("passage") or ""
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
    "mmlu": Shape(("question", "choices", "answer"), _mmlu),
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


def read_task(path: str | Path, kind: str = "") -> Task:
    """The task of a file of rows: .jsonl, .json or .csv.

    kind   a name of SHAPES; by default the first whose fields the first row has
    Raises FileNotFoundError without the file; ValueError, naming line and field, for a row without an answer, with an answer that is none of its
    options, with an empty text, and for a file whose fields say nothing.
    """
    path = user_path(path)
    if not path.is_file():
        raise MissingFile(f"--task-file {path}: no such file, expected a jsonl, json or csv file of items; check the path")
    read = _rows_of(path)
    name = kind or read.shape or _recognized(path, read.rows[0][1])
    if name not in SHAPES:
        raise InvalidInput(f"--kind {name!r}, expected one of {', '.join(SHAPES)}; {did_you_mean(name, SHAPES)}")
    shape, items = SHAPES[name], []
    for number, (place, row) in enumerate(read.rows):
        if kind and (missing := [names for names in shape.fields if not any(each in row for each in names.split("|"))]) and name != "next":
            raise InvalidInput(f"{path}: {place}: no field {missing[0]!r}, expected {', '.join(shape.fields)}, as --kind {name} has them")
        try:
            item = shape.item(row)
        except (_Wrong, InvalidInput, KeyError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else error
            raise InvalidInput(f"{path}: {place}: {what}; correct or remove the row") from None
        items.append(Item(item.kind, item.contexts, item.options, item.right, number, item.passage))
    order = np.random.default_rng([11, len(items)]).permutation(len(items)).tolist()
    n_examples = min(_MOST_EXAMPLES, len(items) // 10)
    scored, shown = sorted(order[n_examples:]), order[:n_examples]
    what = f"{name}, {len(scored):,} rows" + (f", {n_examples} more for solved examples" if n_examples else "")
    return Task(path.stem, [items[i] for i in scored], [items[i] for i in shown], what, f"file {path}", **shape.more)


def _rows_of(path: Path) -> _Read:
    if path.suffix.lower() == ".csv":
        lines = list(csv.reader(read_text(path).splitlines(keepends=True)))
        first = lines[0] if lines else []
        if len(first) >= 4 and first[-1].strip() in _LETTERS[: len(first) - 2]:  # MMLU's own files have no header
            rows = [(f"line {i}", {"question": c[0], "choices": c[1:-1], "answer": c[-1]}) for i, c in enumerate(lines, start=1) if c]
            return _Read(rows, "mmlu")
    if path.suffix.lower() == ".json" and (articles := _squad_articles(path)):
        return _Read(articles, "squad")
    table = read_table(path, ("question", "context", "text"))
    return _Read(table.rows)


def _squad_articles(path: Path) -> list[tuple[str, Row]]:
    """The questions of SQuAD's own file: {"data": [{"paragraphs": [{"context", "qas": [...]}]}]}. Those without an answer are left out."""
    whole = parse_json(read_text(path), str(path), "repair it there")
    if not isinstance(whole, dict) or not isinstance(whole.get("data"), list):
        return []
    found: list[tuple[str, Row]] = []
    for article in whole["data"]:
        for paragraph in article.get("paragraphs", []) if isinstance(article, dict) else []:
            for asked in paragraph.get("qas", []):
                row = {"context": paragraph.get("context"), "question": asked.get("question"), "answers": asked.get("answers")}
                if row["answers"]:
                    found.append((f"question {asked.get('id', len(found) + 1)}", row))
    return found


def _recognized(path: Path, row: Row) -> str:
    for name, shape in SHAPES.items():
        if all(any(each in row for each in names.split("|")) for names in shape.fields):
            return name
    kinds = ", ".join(get_args(Kind))
    rule = f"those of {', '.join(SHAPES)}"
    raise InvalidInput(f"{path}: fields {', '.join(map(repr, row))}, expected {rule}; rename them, and say --kind {kinds} if it is unclear")
