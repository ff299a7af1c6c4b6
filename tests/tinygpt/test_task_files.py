"""Task files in the forms in which benchmarks are published, and rows that cannot be asked."""

import contextlib
import csv
import dataclasses
import json

import pytest

from tinygpt.errors import UserError
from tinygpt.evaluation.files import SHAPES, read_task

# Made rows in the forms of the published files; the words are ours.
ROWS = {
    "arc": {"id": "1", "question": {"stem": "What is cold?", "choices": [{"text": "ice", "label": "A"}, {"text": "fire", "label": "B"}]}, "answerKey": "A"},
    "arc, Hugging Face": {"question": "What is cold?", "choices": {"text": ["ice", "fire"], "label": ["1", "2"]}, "answerKey": "2"},
    "hellaswag": {
        "activity_label": "Cooking", "ctx_a": "A man cuts an onion.", "ctx_b": "he", "ctx": "A man cuts an onion. he",
        "endings": ["cries [substeps] a bit.", "sings.", "flies.", "sleeps."], "label": "0",
    },
    "piqa": {"goal": "Open a jar", "sol1": "turn the lid", "sol2": "turn the table", "label": 0},
    "mmlu": {"question": "2 + 2?", "choices": ["3", "4", "5", "6"], "answer": 1, "subject": "math"},
    "truthfulqa": {"question": "Is it so?", "mc1_targets": {"choices": ["No", "Yes"], "labels": [1, 0]}},
    "truthfulqa, own": {"question": "Is it so?", "mc1_targets": {"Yes": 0, "No": 1}},
    "truthfulqa-answers": {"Question": "Is it so?", "Best Answer": "No", "Correct Answers": "No; Never"},
    "squad": {"context": "Ada was born in 1815.", "question": "When?", "answers": {"text": ["1815", "in 1815", "1815"], "answer_start": [16, 13, 16]}},
    "gsm8k": {"question": "How many?", "answer": "2 * 600 = <<2*600=1200>>1200\n#### 1,200"},
    "lambada": {"text": "she looked up at the moon"},
}  # fmt: skip
EXPECTED = {
    "arc": ("Question: What is cold?\nAnswer:", (" ice", " fire"), 0),
    "arc, Hugging Face": ("Question: What is cold?\nAnswer:", (" ice", " fire"), 1),
    "hellaswag": ("Cooking: A man cuts an onion. He", (" cries a bit.", " sings.", " flies.", " sleeps."), 0),
    "piqa": ("Question: Open a jar\nAnswer:", (" turn the lid", " turn the table"), 0),
    "mmlu": ("2 + 2?\nA. 3\nB. 4\nC. 5\nD. 6\nAnswer:", (" A", " B", " C", " D"), 1),
    "truthfulqa": ("Q: Is it so?\nA:", (" No", " Yes"), 0),
    "truthfulqa, own": ("Q: Is it so?\nA:", (" Yes", " No"), 1),
    "truthfulqa-answers": ("Q: Is it so?\nA:", (" No", " Never"), 0),
    "squad": ("Ada was born in 1815.\n\nQuestion: When?\nAnswer:", (" 1815", " in 1815"), 0),
    "gsm8k": ("Question: How many?\nAnswer:", (" 1200",), 0),
    "lambada": ("she looked up at the", (" moon",), 0),
}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def asked_differently(row, n):
    """The row with a number in its question."""
    names = ("question", "stem", "ctx_a", "goal", "Question", "text")
    return {k: asked_differently(v, n) if isinstance(v, dict) and "stem" in v else f"{n} {v}" if k in names else v for k, v in row.items()}


@pytest.mark.parametrize("name", ROWS)
def test_published_forms_are_told_apart(tmp_path, name):
    task = read_task(write(tmp_path / "rows.jsonl", [ROWS[name]]))
    assert (task.items[0].contexts[0], task.items[0].options, task.items[0].right) == EXPECTED[name]
    rows = [asked_differently(ROWS[name], n) for n in range(20)]
    if name == "squad":
        rows = [row | {"context": f"{row['context']} {n // 2}"} for n, row in enumerate(rows)]  # two questions of each passage
    task = read_task(write(tmp_path / "rows.jsonl", rows))
    assert task.what.startswith(name.partition(",")[0] + ", 18 rows, 2 more")
    assert len(task.items) == 18 and len(task.examples) == 2 and not task.notes
    assert {item.group for item in task.items}.isdisjoint(item.group for item in task.examples)
    assert len({item.group for item in task.items}) == (9 if name == "squad" else 18)
    again = read_task(write(tmp_path / "rows.jsonl", [*rows, *rows[:3]]))
    assert again.fingerprint() == task.fingerprint() and again.notes == ["left out, because they repeat an earlier row: 3"]


def test_files_of_other_forms(tmp_path):
    (tmp_path / "mmlu.csv").write_text('"1, 2, then?",3,4,5,6,A\n2 + 2?,3,4,5,6,B\n', encoding="utf-8")
    task = read_task(tmp_path / "mmlu.csv")
    assert [item.right for item in task.items] == [0, 1] and task.items[0].contexts[0].startswith("1, 2, then?\nA. 3")
    assert task.items[0].shown == ("3", "4", "5", "6")
    (tmp_path / "table.csv").write_text("question,A,B,C,D,answer\n2 + 2?,3,4,5,6,B\n3 + 3?,3,4,5,6,D\n", encoding="utf-8")
    table = read_task(tmp_path / "table.csv")
    assert table.items[0] == dataclasses.replace(task.items[1], group=0) and [item.right for item in table.items] == [1, 3]
    unanswered = ROWS["squad"] | {"question": "Who?", "answers": {"text": [], "answer_start": []}}
    answered = read_task(write(tmp_path / "squad.jsonl", [unanswered, ROWS["squad"]]))
    assert len(answered.items) == 1 and answered.notes == ["left out, because they have no answer: 1"]
    with pytest.raises(ValueError, match=r"squad.jsonl: no question has an answer, expected some that have"):
        read_task(write(tmp_path / "squad.jsonl", [unanswered]))
    articles = [{"paragraphs": [{"context": "Ada was born in 1815.", "qas": [{"question": "When?", "id": "a", "answers": [{"text": "1815"}]},
                                                                            {"question": "Who?", "id": "b", "answers": []}]}]}]  # fmt: skip
    (tmp_path / "squad.json").write_text(json.dumps({"version": "1.1", "data": articles}), encoding="utf-8")
    assert len(read_task(tmp_path / "squad.json").items) == 1
    text = read_task(write(tmp_path / "t.jsonl", [ROWS["lambada"]]), kind="text")
    assert text.kind == "text" and text.items[0].options == ("she looked up at the moon",)


@pytest.mark.parametrize(
    ("row", "kind", "message"),
    [
        (ROWS["arc"] | {"answerKey": "E"}, "", r"line 2: answerKey 'E', expected one of \['A', 'B'\]; correct or remove the row"),
        (ROWS["piqa"] | {"label": 2}, "", "line 2: label 2, expected one of the 2 options, 0 to 1 or A to B"),
        (ROWS["mmlu"] | {"choices": ["3", " "]}, "", "line 2: choices .*, expected a list of at least 2 texts, none of them empty"),
        (
            {k: v for k, v in ROWS["mmlu"].items() if k != "answer"},
            "mmlu",
            "line 2: no field 'answer', expected question, choices or A, answer",
        ),
        (ROWS["gsm8k"] | {"answer": "1200"}, "", "line 2: answer '1200', expected a solution that ends with #### and its number"),
        (ROWS["hellaswag"] | {"endings": ["a", "a"]}, "", "line 2: choice: an option twice"),
        ({"text": "one"}, "lambada", "line 2: text 'one', expected at least two words"),
        (ROWS["piqa"] | {"label": float("nan")}, "", "line 2: label None, expected one of the 2 options"),
        (ROWS["piqa"] | {"label": "9" * 5000}, "", "line 2: label '9+, expected one of the 2 options"),
        (
            {k: v for k, v in ROWS["piqa"].items() if k != "label"},
            "",
            "line 2: label None, expected 0 or 1 in the row; PIQA's .* second file",
        ),
        (ROWS["piqa"] | {"goal": "a\ud800"}, "", "line 2: goal .*, expected Unicode text, no half of a character"),
        (ROWS["hellaswag"] | {"ctx_a": 5}, "", "line 2: ctx_a 5, expected a text that is not empty"),
        (ROWS["hellaswag"] | {"endings": ["[step]", "b"]}, "", "line 2: an option '', expected a text that is not empty"),
        (ROWS["mmlu"] | {"choices": [["3"], "4"]}, "", "line 2: choices .*, expected a list of at least 2 texts"),
        (ROWS["mmlu"] | {"choices": [str(n) for n in range(27)]}, "", "line 2: choices .*, expected at most 26, which have letters"),
        ({"context": "a", "options": [" b", " c"], "answer": True}, "", "line 2: answer True, expected one of the 2 options"),
        ({"context": "a", "options": [" b", " c"], "answer": 0, "passage": 5}, "", "line 2: passage 5, expected a text"),
    ],
)
def test_rows_that_cannot_be_asked(tmp_path, row, kind, message):
    name = kind or next(name for name, shape in SHAPES.items() if all(any(f in row for f in fields.split("|")) for fields in shape.fields))
    path = write(tmp_path / "rows.jsonl", [ROWS.get(name, {"context": "a", "options": [" b", " c"], "answer": 0}), row])
    with pytest.raises(ValueError, match=f"rows.jsonl: {message}"):
        read_task(path, kind)


def test_files_that_are_no_tasks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--task-file .*: no such file, expected a jsonl, json or csv file of items"):
        read_task(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"fields 'a', expected those of arc, hellaswag"):
        read_task(write(tmp_path / "rows.jsonl", [{"a": "b"}]))
    with pytest.raises(ValueError, match=r"--kind 'chioce', expected one of .*; did you mean 'choice'"):
        read_task(tmp_path / "rows.jsonl", "chioce")


def test_rows_with_any_value_are_read_or_refused(tmp_path):
    values = [None, "", [], {}, "x", 5, [None], {"a": 1}, True, -1, 1e400, [["a"]], {"text": "a"}, {"choices": ["a"], "labels": None}, "\0"]
    for row in ROWS.values():
        for name in row:
            for value in values:
                path = write(tmp_path / "rows.jsonl", [row | {name: value}])
                with contextlib.suppress(UserError):
                    read_task(path)


@pytest.mark.parametrize(
    ("name", "data", "n"),
    [
        ("rows.jsonl", b"\xef\xbb\xbf" + b'{"text": "a b"}\r\n{"text": "a c"}\r\n', 2),
        ("rows.jsonl", '{"text": "a b"}\n'.encode("utf-16"), 1),
        ("rows.json", b'{"text": "a b"}\n{"text": "a c"}', 2),
        ("rows.csv", b"context;continuation\r\na;b\r\nc;d", 2),
        ("rows.csv", b'context,continuation\r\n"a\r\nb", c\r\nd, e\r\n', 2),
        ("rows.csv", b"question,choices,x,\na,b,c,\n", r"fields 'question', 'choices', 'x', expected those of arc"),
        ("rows.csv", b"q," + b"a" * 200_000 + b",b,c,d,A\n", "line 1: a text of over 131,072 characters"),
        ("rows.csv", b'"q\n2",a,b,c,d,A\nq,a,b,c,d,Z\n', "line 3: answer 'Z', expected one of the 4 options"),
        ("rows.csv", b"Who?,7,8,9,1,B\nWho?,7,8,0,1\n", "line 2: 5 columns, expected 6 as in the first row; correct or remove the row"),
        ("rows.json", b'{"data": [{"paragraphs": 5}, 7, {"paragraphs": [3, {"qas": [5]}]}]}', "a JSON object|a JSON dict"),
        ("rows.jsonl", bytes(range(256)) * 4, "byte 0x80 at offset 128 is not UTF-8"),
        ("rows.jsonl", b"", "empty, expected rows"),
    ],
)
def test_files_as_people_have_them(tmp_path, name, data, n):
    csv.field_size_limit(131_072)  # one for the process: curation allows more
    (tmp_path / name).write_bytes(data)
    if isinstance(n, int):
        assert len(read_task(tmp_path / name).items) == n
    else:
        with pytest.raises(ValueError, match=n):
            read_task(tmp_path / name)


def test_how_answers_of_a_file_are_compared(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"prompt": "12 + 7 =", "answers": ["19"]}])
    task = read_task(path, metric=r"(\d+)", max_new_tokens=5)
    assert (task.metric, task.max_new_tokens) == (r"(\d+)", 5) and read_task(path).metric == "exact_match"
    assert read_task(path, metric="bleu").fingerprint() != task.fingerprint()
    for metric, message in (("(", r"missing \), .*, expected exact_match, f1, bleu or a regular"), ("f2", "a word, .*; did you mean 'f1'")):
        with pytest.raises(ValueError, match=f"--metric .*: {message}"):
            read_task(path, metric=metric)
    with pytest.raises(ValueError, match="--max-new-tokens 5: items of kind next, expected generated answers"):
        read_task(write(tmp_path / "rows.jsonl", [ROWS["lambada"]]), max_new_tokens=5)


def test_options_that_run_into_the_context_are_noted(tmp_path):
    path = write(tmp_path / "rows.jsonl", [{"context": "The sky is", "options": ["blue", "red"], "answer": 0}])
    assert read_task(path).notes == [
        "options follow without white space, as in 'The sky isblue'; begin them with a space where they are words"
    ]
