"""The score sheet: raters are blind, its page works by keyboard and on a phone, and damaged or foreign results are named."""

import json
import re

import numpy as np
import pytest

from autograd import backend
from tinygpt.evaluation.judge_command import main
from tinygpt.evaluation.sheet import SCALE, agreement, by_side, read_guidelines, read_ratings, sheet_page, write_sheet
from tinygpt.finetuning.instructions import Instruction
from tinygpt.finetuning.scoring import read_answers, write_answers

pytestmark = pytest.mark.skipif(backend.name != "numpy", reason="a page is a page")
N = 8  # records, so 16 answers


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The records, and the file that holds them."""
    rows = [Instruction(f"Task {i} <b>&</b>", f"right {i}", "with an input" if i % 2 else "") for i in range(N)]
    path = tmp_path_factory.mktemp("answers") / "answers.json"
    write_answers(path, rows, [f"old {i}" if i else " " for i in range(N)], [f"new {i} </script>" for i in range(N)])
    return read_answers(path), path


def data_of(page):
    return json.loads(re.search(r"^const DATA = (.*);$", page, re.MULTILINE)[1])


def ratings(path, page, score, rater="anna", **changes):
    """A result as the page makes it: score(item) for each."""
    data = data_of(page)
    result = {"sheet": data["sheet"], "seed": data["seed"], "rater": rater, "scores": [score(item) for item in data["items"]]}
    path.write_text(json.dumps(result | {"questions": [item["question"] for item in data["items"]]} | changes), encoding="utf-8")
    return path


def test_the_page_holds_every_answer_once_and_not_who_wrote_it(answers):
    page = sheet_page(answers[0], seed=3)
    data = data_of(page)
    shown = [item["answer"] for item in data["items"]]
    assert sorted(shown) == sorted([a.before for a in answers[0]] + [a.after for a in answers[0]])
    assert {key for item in data["items"] for key in item} == {"question", "task", "input", "correct", "answer"}
    kinds = ["new" in text for text in shown]
    assert kinds not in (sorted(kinds), sorted(kinds)[::-1], [True, False] * N, [False, True] * N)  # neither first nor last nor in turns
    assert (
        data_of(sheet_page(answers[0], seed=3)) == data and [i["answer"] for i in data_of(sheet_page(answers[0], seed=4))["items"]] != shown
    )
    assert page.count("</script>") == 1  # texts cannot end the script
    assert "src=" not in page and "http" not in page  # nothing from elsewhere


def test_scores_find_their_way_back_to_the_models(answers, tmp_path):
    page = sheet_page(answers[0], seed=1)
    read = read_ratings(ratings(tmp_path / "anna.json", page, lambda item: 5 if "new" in item["answer"] else 1 + item["question"] % 4))
    assert by_side(read, answers[0]) == {"before": {i: 1 + i % 4 for i in range(N)}, "after": dict.fromkeys(range(N), 5)}


def test_agreement_of_two_raters(answers, tmp_path, capsys):
    page = sheet_page(answers[0])
    one = ratings(tmp_path / "one.json", page, lambda item: 1 + item["question"] % 5)
    other = ratings(tmp_path / "two.json", page, lambda item: min(5, 2 + item["question"] % 5), rater="ben")
    found = agreement(read_ratings(one), read_ratings(one))
    assert (found.n, found.equal.mean, found.kappa.mean, found.quadratic.low) == (2 * N, 1, 1, 1)
    found = agreement(read_ratings(one), read_ratings(other))
    assert found.within_one.mean == 1 and found.equal.mean == 2 / 16 and found.kappa.mean < 0.1 < 0.6 < found.quadratic.mean
    assert found.table.sum() == 16 and found.table[0, 1] == 4 and np.trace(found.table) == 2
    assert main(["agreement", str(one), str(other), "--output", str(tmp_path / "out.json")]) == 0
    out = capsys.readouterr().out
    assert "anna (rows) and ben (columns), 16 answers" in out and "kappa, quadratic" in out
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["table"][0] == [0, 4, 0, 0, 0]


def test_people_and_models_in_one_table(answers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.json", "b.json"):
        ratings(tmp_path / name, sheet_page(answers[0]), lambda item: 4 if "new" in item["answer"] else 2)
    assert main(["score", str(answers[1]), "--ratings", "a.json", "b.json", "--output", "judged.json"]) == 0
    assert "anna 2" in capsys.readouterr().out  # both raters have one name
    found = json.loads((tmp_path / "judged.json").read_text(encoding="utf-8"))
    assert found["anna"]["difference"] == {"mean": 2, "low": 2, "high": 2} and found["anna"]["before"]["mean"] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"sheet": "x"', "expected valid JSON"),
        ("[1]", "r.json: a JSON list, expected an object; download it from the sheet again"),
        ('{"sheet": "x"}', "r.json: rater is missing, expected a str"),
        ('{"sheet": "x", "rater": "a", "seed": 0, "scores": [], "questions": []}', "r.json: 0 scores and 0 questions"),
        ('{"sheet": "x", "rater": "a", "seed": 0, "scores": [1], "questions": [0, 1]}', "r.json: 1 scores and 2 questions"),
        ('{"sheet": "x", "rater": "a", "seed": 0, "scores": [6], "questions": [0]}', "answer 1: score 6, expected 1 to 5 or null"),
        ('{"sheet": "x", "rater": "a", "seed": 0, "scores": [true], "questions": [0]}', "answer 1: score True, expected 1 to 5"),
        ('{"sheet": "x", "rater": "a", "seed": "0", "scores": [1], "questions": [0]}', "r.json: seed is a str, expected a int"),
    ],
)
def test_damaged_results_are_named(tmp_path, text, message):
    (tmp_path / "r.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_ratings(tmp_path / "r.json")


def test_results_of_another_sheet_or_with_holes_are_named(answers, tmp_path):
    page = sheet_page(answers[0])
    whole = read_ratings(ratings(tmp_path / "a.json", page, lambda item: 3))
    holes = read_ratings(ratings(tmp_path / "b.json", page, lambda item: None if item["question"] == 2 else 3, rater=" "))
    none = read_ratings(ratings(tmp_path / "c.json", page, lambda item: None))
    other = read_ratings(ratings(tmp_path / "d.json", sheet_page(answers[0][:-1]), lambda item: 3))
    assert holes.rater == "b" and len(holes.missing) == 2
    with pytest.raises(ValueError, match=r"b.json: 2 of 16 answers without a score \(\d+, \d+\), expected all scored; .* --partial"):
        agreement(whole, holes)
    assert agreement(whole, holes, partial=True).n == 14 and len(by_side(holes, answers[0], partial=True)["after"]) == N - 1
    with pytest.raises(
        ValueError, match=r"c.json: 16 of 16 answers without a score \(1, 2, 3, 4, 5, ...\), expected all scored; finish the sheet$"
    ):
        agreement(whole, none, partial=True)
    with pytest.raises(
        ValueError, match=r"agreement: .*a.json rates sheet .* of 16 answers, .*d.json sheet .* of 14, expected two raters of one"
    ):
        agreement(whole, other)
    with pytest.raises(ValueError, match=r"d.json: ratings of sheet \w+, expected \w+ as these answers have it; name the answers.json"):
        by_side(other, answers[0])
    first, last = (
        read_ratings(ratings(tmp_path / f"{i}.json", page, lambda item, i=i: 3 if item["question"] % 2 == i else None)) for i in (0, 1)
    )
    with pytest.raises(ValueError, match=r"agreement: no answer that .* both score"):
        agreement(first, last, partial=True)
    with pytest.raises(FileNotFoundError, match=r"nowhere.json: no such file, expected what a score sheet gave"):
        read_ratings(tmp_path / "nowhere.json")


def test_guidelines_of_your_own(answers, tmp_path):
    (tmp_path / "rules.txt").write_text("Only <1> or 5.\n", encoding="utf-8")
    assert main(["sheet", str(answers[1]), "--guidelines", str(tmp_path / "rules.txt"), "--output", str(tmp_path / "s.html")]) == 0
    assert data_of((tmp_path / "s.html").read_text(encoding="utf-8"))["guidelines"] == "Only <1> or 5."
    (tmp_path / "rules.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rules.txt: empty, expected guidelines"):
        read_guidelines(tmp_path / "rules.txt")
    with pytest.raises(FileNotFoundError, match=r"none.txt: no such file, expected guidelines"):
        read_guidelines(tmp_path / "none.txt")


# In a browser -------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sheet(answers, tmp_path, browser):
    """Opens the page, and collects what a page must not do: errors, requests."""
    write_sheet(answers[0], tmp_path / "sheet.html", seed=1)
    wrong = []

    def open_sheet(context):
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if not request.url.startswith(("file:", "blob:")) else None)
        page.goto((tmp_path / "sheet.html").as_uri())
        page.wait_for_function("window.ready")
        return page

    yield open_sheet
    assert wrong == []


class TestInABrowser:
    def test_scoring_by_keyboard_undo_and_the_result(self, browser, sheet, answers, tmp_path):
        context = browser.new_context()
        page = sheet(context)
        assert page.inner_text("#number") == "Answer 1 of 16" and page.is_visible("#guidelines")
        page.keyboard.press("3")
        assert page.inner_text("#number") == "Answer 2 of 16" and "score 3" in page.inner_text("#says")
        page.keyboard.press("5")
        page.keyboard.press("u")  # takes the 5 back
        assert page.inner_text("#number") == "Answer 2 of 16" and page.inner_text("#progress") == "1 of 16 answers scored"
        page.keyboard.press("ArrowLeft")
        assert page.get_attribute("#scores button >> nth=2", "aria-pressed") == "true"
        page.keyboard.press("ArrowRight")
        for i in range(1, 16):
            page.keyboard.press(str(1 + i % 5))
        assert page.inner_text("#state") == "All answers have a score."
        page.click("#download")
        assert "name or initials" in page.inner_text("#says")
        page.keyboard.type("Änne 5")  # the 5 is part of the name, not a score
        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == "ratings-Änne-5.json"
        download.value.save_as(tmp_path / "r.json")
        read = read_ratings(tmp_path / "r.json")
        assert read.rater == "Änne 5" and read.scores == [3, *(1 + i % 5 for i in range(1, 16))]
        assert len(by_side(read, answers[0])["after"]) == N
        context.close()

    def test_scores_are_there_again_after_closing_the_page(self, browser, sheet):
        context = browser.new_context()
        page = sheet(context)
        page.keyboard.press("4")
        page.close()
        page = sheet(context)
        assert page.inner_text("#progress") == "1 of 16 answers scored" and page.inner_text("#number") == "Answer 2 of 16"
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#clear")
        assert page.inner_text("#progress") == "0 of 16 answers scored"
        page.evaluate("localStorage.setItem(key, '{\"scores\": [9')")  # damaged
        page.close()
        assert sheet(context).inner_text("#progress") == "0 of 16 answers scored"
        context.close()

    def test_texts_are_texts_and_everything_has_a_label(self, browser, sheet, answers):
        context = browser.new_context()
        page = sheet(context)
        shown = set()
        for _ in range(16):
            shown.add(page.inner_text("#answer"))
            assert page.inner_text("#task").startswith("Task ") and "<b>&</b>" in page.inner_text("#task")
            page.keyboard.press("ArrowRight")
        assert shown == {"(an empty answer)", *(f"old {i}" for i in range(1, N)), *(f"new {i} </script>" for i in range(N))}
        unnamed = page.eval_on_selector_all(
            "button, input, progress",
            "all => all.filter(e => !(e.ariaLabel || e.textContent.trim() || (e.labels && e.labels.length))).length",
        )
        assert unnamed == 0 and page.get_attribute("#says", "aria-live") == "polite"
        names = page.eval_on_selector_all("#scores button", "all => all.map(e => e.ariaLabel)")
        assert names == [f"Score {score}: {means}" for score, means in SCALE.items()]
        context.close()

    def test_on_a_phone(self, browser, sheet):
        context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        page = sheet(context)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        page.tap("#scores button >> nth=1")
        page.tap("#open")
        assert page.inner_text("#progress") == "1 of 16 answers scored"
        heights = page.eval_on_selector_all(".buttons button", "all => all.map(e => e.getBoundingClientRect().height)")
        assert min(heights) >= 40  # a finger hits it
        page.tap("#strip button >> nth=0")
        assert page.inner_text("#means").startswith("2: ")
        context.close()
