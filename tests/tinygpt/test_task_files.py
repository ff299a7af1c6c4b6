"""Task files in the forms in which benchmarks are published, and rows that cannot be asked."""

import json

import pytest

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


@pytest.mark.parametrize("name", ROWS)
def test_published_forms_are_told_apart(tmp_path, name):
    task = read_task(write(tmp_path / "rows.jsonl", [ROWS[name]] * 20))
    assert task.what.startswith(name.partition(",")[0] + ", 18 rows, 2 more")
    assert (task.items[0].contexts[0], task.items[0].options, task.items[0].right) == EXPECTED[name]
    assert len(task.items) == 18 and len(task.examples) == 2
    assert {item.group for item in task.items}.isdisjoint(item.group for item in task.examples)


def test_files_of_other_forms(tmp_path):
    (tmp_path / "mmlu.csv").write_text('"1, 2, then?",3,4,5,6,A\n2 + 2?,3,4,5,6,B\n', encoding="utf-8")
    task = read_task(tmp_path / "mmlu.csv")
    assert [item.right for item in task.items] == [0, 1] and task.items[0].contexts[0].startswith("1, 2, then?\nA. 3")
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
        ({k: v for k, v in ROWS["mmlu"].items() if k != "answer"}, "mmlu", "line 2: no field 'answer', expected question, choices, answer"),
        (ROWS["gsm8k"] | {"answer": "1200"}, "", "line 2: answer '1200', expected a solution that ends with #### and its number"),
        (ROWS["hellaswag"] | {"endings": ["a", "a"]}, "", "line 2: choice: an option twice"),
        ({"text": "one"}, "lambada", "line 2: text 'one', expected at least two words"),
    ],
)
def test_rows_that_cannot_be_asked(tmp_path, row, kind, message):
    name = kind or next(name for name, shape in SHAPES.items() if all(any(f in row for f in fields.split("|")) for fields in shape.fields))
    path = write(tmp_path / "rows.jsonl", [ROWS[name], row])
    with pytest.raises(ValueError, match=f"rows.jsonl: {message}"):
        read_task(path, kind)


def test_files_that_are_no_tasks(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"--task-file .*: no such file, expected a jsonl, json or csv file of items"):
        read_task(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"fields 'a', expected those of arc, hellaswag"):
        read_task(write(tmp_path / "rows.jsonl", [{"a": "b"}]))
    with pytest.raises(ValueError, match=r"--kind 'chioce', expected one of .*; did you mean 'choice'"):
        read_task(tmp_path / "rows.jsonl", "chioce")
