"""Items, tasks that code makes, and the command that scores a model on them."""

import json

import numpy as np
import pytest

from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.evaluation.command import main
from tinygpt.evaluation.items import Item, Task, corrupted, permuted, with_shots
from tinygpt.evaluation.scores import evaluate
from tinygpt.evaluation.tasks import TASKS, label_task, make_task
from tinygpt.finetuning.labeled import LabeledData, LabeledText

TEXT = "the array has a shape and a type. the shape of the array is two. 12 + 7 = 19 and 3 - 1 = 2. " * 30


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(TEXT, vocab_size=320)


@pytest.fixture(scope="module")
def model(tokenizer):
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=256, vocab_size=tokenizer.n_vocab, initializer_range=0.2)
    return GPT(shape, seed=3)


def choice(number, right=1):
    return Item("choice", (f"item {number}: the",), (" shape", " array", " type"), right, number, passage="")


@pytest.mark.parametrize("name", TASKS)
def test_tasks_made_by_code(name):
    task = make_task(name)
    least = {"summary": 100, "likelihood": 100}.get(name, 500)
    assert len(task.items) >= least and len(task.examples) == 64 and task.fingerprint() == make_task(name).fingerprint()
    assert len({(item.contexts, item.options) for item in task.items}) == len(task.items)
    scored = {item.solved for item in task.items}
    assert not any(example.solved in scored for example in task.examples)
    if task.kind in ("choice", "schema"):
        answers = np.bincount([item.right for item in task.items])
        assert task.chance == pytest.approx(1 / len(answers)) and (name == "section" or answers.min() > 0.6 * answers.max())


def test_arithmetic_is_right_and_copying_has_one_answer():
    for item in make_task("arithmetic").items:
        a, sign, b, _ = item.contexts[0].split()
        assert int(item.options[item.right]) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
    for item in make_task("copying").items:
        words = item.contexts[0].split()
        assert words[12:] == words[: len(words) - 12] and item.options[item.right].strip() == words[len(words) - 12]


def test_labeled_rows_become_yes_and_no():
    rows = [LabeledText(f"text {n}", "spam" if n % 3 == 0 else "ham", f"line {n}") for n in range(90)]
    task = label_task(LabeledData("mine", rows, "made"), "spam")
    assert task.chance == 0.5 and "Is the following text 'spam'? Answer with 'yes' or 'no'." in task.items[0].contexts[0]
    assert 0.4 < np.mean([item.right for item in task.items]) < 0.6
    with pytest.raises(ValueError, match="label 'spma': no row has it, expected one of ham, spam; did you mean 'spam'"):
        label_task(LabeledData("mine", rows, "made"), "spma")


def test_shots_come_from_the_examples():
    task = Task("t", [choice(n) for n in range(4)], [choice(n, 0) for n in range(10, 16)])
    item = with_shots(task, 2, 3)
    assert item.contexts[0].count(" shape\n\n") == 3 and item.contexts[0].endswith("item 2: the")
    assert item == with_shots(task, 2, 3) and item.contexts != with_shots(task, 2, 3, seed=1).contexts
    with pytest.raises(ValueError, match="task t: 7 shots, expected at most 6, the solved examples"):
        with_shots(task, 0, 7)


def test_controls_change_what_is_read_and_nothing_else():
    item = Item("schema", ("a\n", "b\n"), ("one two three four five",), 1, passage="one two three four five")
    other = corrupted(item)
    assert sorted(other.options[0].split()) == sorted(item.options[0].split()) and other.options != item.options
    assert other.contexts == item.contexts and other.right == 1 and corrupted(choice(1)) == choice(1)
    turned = permuted(choice(5))
    assert turned.options[turned.right] == choice(5).options[1] and permuted(item) == item


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("choice", ("a",), ("x",), 0), "choice: answer 0 of 1, expected one of at least 2"),
        (("choice", ("a",), ("x", "y"), 2), "choice: answer 2 of 2"),
        (("choice", ("a",), ("x", "x"), 0), "choice: an option twice"),
        (("answer", ("a",), ()), "answer: 1 contexts and 0 options"),
    ],
)
def test_items_that_ask_nothing(fields, message):
    with pytest.raises(ValueError, match=message):
        Item(*fields)


def test_every_kind_is_scored(model, tokenizer):
    items = {
        "choice": choice(0),
        "schema": Item("schema", ("the shape", "the type"), (" of the array",), 0),
        "next": Item("next", ("the array has a",), (" shape",)),
        "answer": Item("answer", ("12 + 7 =",), ("19", "nineteen")),
        "text": Item("text", ("",), (TEXT[:200],)),
    }
    for kind, item in items.items():
        result = evaluate(model, tokenizer, Task(kind, [item, item], max_new_tokens=4))
        assert set(result.values) == {0, 1} and result.values[0] == result.values[1]
        assert np.isfinite(result.interval()).all()
    with pytest.raises(ValueError, match="task mixed: items of 2 kinds"):
        Task("mixed", [items["choice"], items["next"]])


def test_a_choice_goes_to_the_likelier_option(model, tokenizer):
    """The rules of length: by the sum a short option wins that loses per token."""
    item = Item("choice", ("the array has a",), (" shape", " shape and a type"), 0)
    values = evaluate(model, tokenizer, Task("t", [item])).values[0]
    assert values["sum"] == 1.0 and set(values) == {"per_token", "per_character", "sum"}


def test_what_is_finished_is_not_scored_again(model, tokenizer):
    task = Task("t", [choice(n) for n in range(100)])
    seen = []
    first = evaluate(model, tokenizer, task, finished=lambda number, values, answer: seen.append(number))
    assert seen == list(range(100))
    again = evaluate(model, tokenizer, task, done={n: first.values[n] for n in range(90)}, finished=lambda n, v, a: seen.append(n))
    assert seen[100:] == list(range(90, 100)) and again.values == first.values


def test_the_command(model, tokenizer, tmp_path, capsys):
    folder = tmp_path / "model"
    model.save_pretrained(folder, tokenizer)
    flags = [str(folder), "--tasks", "copying", "section", "--limit", "6", "--output", str(tmp_path / "out")]
    main([*flags, "--compare", str(folder)])
    out = capsys.readouterr().out
    assert "copying  6 " in out and "+0.000      +0.000 to +0.000" in out and "which of five sections" in out
    (rows, *_) = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8")).values()
    assert [row["task"] for row in rows] == ["copying", "section"] and rows[0]["chance"] == 0.25 and rows[1]["items"] == 6
    assert set(rows[0]["controls"]) == {"passage shuffled", "options permuted"}
    n = len((tmp_path / "out/evaluation.jsonl").read_text(encoding="utf-8").splitlines())
    main(flags)
    assert len((tmp_path / "out/evaluation.jsonl").read_text(encoding="utf-8").splitlines()) == n + 5  # the seconds of five parts, no item
    with pytest.raises(ValueError, match=r"task 'sumary': unknown, expected one of .*; did you mean 'summary'"):
        main([str(folder), "--tasks", "sumary"])
