"""Scores of answers, and what goes to a judge and comes back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.finetuning.instructions import Instruction
from tinygpt.finetuning.scoring import exact_match, read_scores, score_answers, token_f1, write_answers

words = st.lists(st.sampled_from(["red", "blue", "one", "two"]), max_size=6).map(" ".join)


@given(one=words, two=words)
def test_f1_is_symmetric_bounded_and_1_for_the_same_words(one, two):
    assert token_f1(one, two) == token_f1(two, one) and 0 <= token_f1(one, two) <= 1
    assert (token_f1(one, two) == 1) == (sorted(one.split()) == sorted(two.split()))
    assert exact_match(one, two) == (one == two)


def test_scores_worked_out_by_hand():
    assert exact_match(" The  cat\nsat.", "the cat sat") and not exact_match("cat sat", "sat cat")
    assert not any(exact_match(*pair) for pair in (("", "A"), ("+", "-"), ("-5", "5"), ("3.5", "35")))
    assert token_f1("the cat sat down", "A cat sat") == pytest.approx(2 * 2 / (3 + 2))  # articles do not count
    assert token_f1("", "x") == 0 and token_f1("the", "") == 1
    scores = score_answers(["Red cat.", "no"], ["red cat", "yes"])
    assert (scores.n, scores.exact_match, scores.token_f1) == (2, 0.5, 0.5) and "exact match 50.0%, token F1 0.500, BLEU" in str(scores)
    with pytest.raises(ValueError, match=r"score_answers: 1 answers and 2 expected ones"):
        score_answers(["a"], ["b", "c"])


def test_bleu_is_sacrebleus():
    pytest.importorskip("sacrebleu", reason="needs the extra instruct")
    given = ["the cat sat on the mat", "a dog ran"]
    assert score_answers(given, given).bleu == pytest.approx(100)
    assert score_answers(["x y z"], ["a b c"]).bleu == 0


def test_without_sacrebleu_the_other_scores_remain(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    scores = score_answers(["a"], ["a"])
    assert scores.bleu is None and "not measured" in str(scores)


# ---- the judge ---------------------------------------------------------------------------------------------------------------------------

ROWS = [Instruction("Add.", "3", "1, 2", "record 1"), Instruction("Greet.", "Hello", "", "record 2")]


def test_answers_for_a_judge_and_the_way_back(tmp_path):
    path = tmp_path / "answers.json"
    write_answers(path, ROWS, ["?", "??"], ["3", "Hi"])
    records = json.loads(path.read_text(encoding="utf-8"))
    assert [record["id"] for record in records] == [0, 1]
    assert {k: records[0][k] for k in ("instruction", "input", "output", "before", "model_response", "place")} == {
        "instruction": "Add.", "input": "1, 2", "output": "3", "before": "?", "model_response": "3", "place": "record 1",
    }  # fmt: skip
    assert all(text in records[1]["judge_prompt"] for text in ("Greet.", "Hello", "Hi", "0 to 100"))

    scores = tmp_path / "scores.json"
    scores.write_text("[90, 10.5]", encoding="utf-8")
    assert read_scores(scores, 2) == {0: 90, 1: 10.5}
    scores.write_text(json.dumps([{"id": r["id"], "score": 50} for r in records[1:]]), encoding="utf-8")
    assert read_scores(scores, 2) == {1: 50}  # the judge may leave some out
    lines = tmp_path / "scores.jsonl"
    lines.write_text('{"id": 1, "score": 5}\n\n{"id": 0, "score": 6}\n', encoding="utf-8")
    assert read_scores(lines, 2) == {1: 5, 0: 6}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "expected valid JSON"),
        ('{"id": 0}', "scores.json: dict, expected a list of scores"),
        ("[]", "scores.json: empty, expected a list"),
        ("[1, 2, 3]", "entry 2: id 2, which no record has, expected each of 0 to 1 once"),
        ('[{"id": 0, "score": 1}, {"id": 0, "score": 2}]', "entry 1: id 0, again, expected each"),
        ('[{"id": "0", "score": 1}]', "entry 0: id '0', which no record has"),
        ('[{"id": [1], "score": 1}]', r"entry 0: id \[1\], which no record has"),
        ('[{"id": 0, "score": "good"}]', "entry 0: score 'good', expected a number from 0 to 100; ask the judge again"),
        ("[101, 3]", "entry 0: score 101, expected"),
        ("[true, 3]", "entry 0: score True, expected"),
    ],
)
def test_a_judges_nonsense_is_named(tmp_path, text, message):
    path = tmp_path / "scores.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_scores(path, 2)


def test_scores_that_are_not_there_or_cut_short_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scores.json: no such file, expected a judge's scores as JSON"):
        read_scores(tmp_path / "scores.json", 2)
    (tmp_path / "scores.jsonl").write_text('{"id": 0, "score": 6}\n\n{"id": 1, "sc', encoding="utf-8")
    with pytest.raises(ValueError, match=r"scores.jsonl: line 3: .*expected valid JSON"):
        read_scores(tmp_path / "scores.jsonl", 2)
