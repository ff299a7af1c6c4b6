"""The judge that is trained here: what bad answers are made of, what is measured of it, and the commands from training to a table."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autograd import backend
from tests.strategies import seeds
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.evaluation import judge as judging
from tinygpt.evaluation.judge import Judge, by_scores, judge_text, measure_judge, measure_position, pairs_of, trivial_scores
from tinygpt.evaluation.judge_command import main
from tinygpt.evaluation.judge_training import JudgeConfig
from tinygpt.evaluation.statistics import _ranks, auc, kappa, kappa_interval, rank_correlation
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.finetuning.corruptions import GOOD, KINDS, TRAINED_KINDS, Judged, corrupted, judged_answers
from tinygpt.finetuning.instructions import Instruction
from tinygpt.finetuning.rows import plain
from tinygpt.finetuning.scoring import read_answers, token_f1, write_answers

pytestmark = pytest.mark.skipif(backend.name != "numpy", reason="the classifier's own tests run on the device")

ROOT = Path(__file__).parent.parent.parent

# Bad answers --------------------------------------------------------------------------------------------------------------------------------

WORDS = "the sum of all elements is not Return two minimum axis; a (first) value 3 array. with".split()
answers = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)
rows_of = st.lists(st.tuples(answers, answers), min_size=1, max_size=5).map(
    lambda texts: [Instruction(f"{question}?", answer, group=i) for i, (question, answer) in enumerate(texts)]
)


@given(rows=rows_of, kind=st.sampled_from(list(KINDS)), seed=seeds, draw=st.integers(0, 3))
def test_a_bad_answer_differs_from_the_right_one_and_follows_from_the_seed(rows, kind, seed, draw):
    for number, row in enumerate(rows):
        bad = corrupted(rows, number, kind, seed=seed, draw=draw)
        assert plain(bad) != plain(row.output) and bad == corrupted(rows, number, kind, seed=seed, draw=draw)
        assert bad == bad.strip()


@given(rows=rows_of, seed=seeds)
def test_each_kind_does_what_it_says(rows, seed):
    bad = {kind: corrupted(rows, 0, kind, seed=seed) for kind in KINDS}
    right = rows[0].output
    letters = lambda text: sorted(plain(text).replace(".", "").split())  # noqa: E731
    if bad["shuffled"]:
        assert letters(bad["shuffled"]) == letters(right) and (bad["shuffled"].endswith(".") or not right.endswith("."))
    if bad["truncated"]:
        assert right.startswith(bad["truncated"]) and not bad["truncated"].endswith(".")
    if bad["closed"]:
        assert bad["closed"].endswith(".") and right.startswith(bad["closed"][:-1])
    for kind in ("off-topic", "neighbor"):  # another row's answer, which says something else
        assert not bad[kind] or any(bad[kind] == row.output.strip() and token_f1(row.output, right) < 0.5 for row in rows[1:])
    if bad["repeated"]:
        assert len(bad["repeated"].split()) > len(right.split())
    if bad["negated"]:
        n = len(right.split())
        assert n - 1 <= len(bad["negated"].split()) <= n + 2
    if bad["number"]:
        assert len(bad["number"].split()) == len(right.split())


def test_bad_answers_by_example():
    rows = [
        Instruction("What does f.lower do?", "Return an array with all elements converted to lowercase.", group=0),
        Instruction("What does f.upper do?", "Give back the two largest values.", group=1),
        Instruction("What does g do?", "Draw samples.", group=2),
    ]
    made = {kind: [corrupted(rows, i, kind, seed=1) for i in range(3)] for kind in KINDS}
    assert made["neighbor"][0] == rows[1].output and made["echo"][2] == "What does g do."
    assert made["negated"][2] == "Do not draw samples." and made["negated"][1] == "Give back the two smallest values."
    assert made["number"][0] == made["number"][2] == "" and made["number"][1] != rows[1].output
    assert made["truncated"][2] == "" == made["closed"][2]  # two words: nothing to cut
    assert made["off-topic"][0] in (rows[1].output, rows[2].output)
    assert corrupted(rows[:1], 0, "off-topic", seed=0) == corrupted(rows[:1], 0, "spliced", seed=0) == ""
    texts = [j.answer for j in judged_answers(rows, ["off-topic"], seed=0, draws=2)]
    assert len(texts) == 12 and [j.good for j in judged_answers(rows, ["off-topic"], 0)] == [True, False] * 3
    same = [Instruction("a?", "x y z", group=4), Instruction("a?", "q r", group=4)]
    assert corrupted(same, 0, "off-topic", seed=0) == ""  # rows of a group ask the same


def test_kinds_that_do_not_exist_are_named():
    with pytest.raises(ValueError, match=r"kind 'shufled': unknown, expected some of shuffled, .*; did you mean 'shuffled'\?"):
        judged_answers([], ["shufled"], 0)
    with pytest.raises(ValueError, match=r"kinds of bad answers: none, expected at least one of shuffled"):
        JudgeConfig(kinds=())


# Statistics ---------------------------------------------------------------------------------------------------------------------------------

marks = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=30)


@settings(max_examples=20)
@given(pairs=marks)
def test_agreement_as_sklearn_and_scipy_have_it(pairs):
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra classify")
    from scipy.stats import spearmanr

    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    assume(len(set(a)) > 1 and len(set(b)) > 1)  # otherwise theirs are not defined
    labels = [1, 2, 3, 4, 5]
    assert kappa(a, b, labels) == pytest.approx(metrics.cohen_kappa_score(a, b, labels=labels), abs=1e-12)
    assert kappa(a, b, labels, "quadratic") == pytest.approx(metrics.cohen_kappa_score(a, b, labels=labels, weights="quadratic"), abs=1e-12)
    right = np.array(a) > np.median(a)
    if right.any() and not right.all():
        expected = metrics.roc_auc_score(right, b)
        groups = (np.flatnonzero(right), np.flatnonzero(~right))
        assert auc(np.array(b)[right], np.array(b)[~right], groups).mean == pytest.approx(expected, abs=1e-12)
    assert rank_correlation(a, b).mean == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_agreement_worked_out_elsewhere():
    # By scikit-learn 1.9: cohen_kappa_score, roc_auc_score; by SciPy 1.17: spearmanr.
    a, b = [1, 2, 3, 4, 5, 5, 3, 2], [1, 3, 3, 4, 4, 5, 2, 2]
    assert kappa(a, b, range(1, 6)) == pytest.approx(0.5294117647058824) and kappa(a, b, range(1, 6), "quadratic") == pytest.approx(
        0.8888888888888888
    )
    assert auc([3, 4, 5], [1, 3, 2], (range(3), range(3))).mean == pytest.approx(17 / 18)
    assert rank_correlation(a, b).mean == pytest.approx(0.882716049382716)
    assert _ranks(np.array([3.0, 1.0, 3.0, 2.0]), np.ones((1, 4))).tolist() == [[3.5, 1.0, 3.5, 2.0]]
    assert _ranks(np.array([3.0, 1.0, 2.0]), np.array([[2.0, 1.0, 0.0]]))[0, :2].tolist() == [2.5, 1.0]  # the first one twice
    assert all(np.isnan(x.low) for x in (kappa_interval([1], [1]), auc([1], [0])))  # one document says nothing of others
    assert auc([1, 1], [1, 1]).mean == 0.5 and rank_correlation([1, 1], [1, 2]).mean == 0


@settings(max_examples=5)
@given(seed=st.integers(0, 20))
def test_intervals_hold_the_value_and_widen_with_groups(seed):
    rng = np.random.default_rng(seed)
    base = np.repeat(rng.integers(1, 6, 30), 4)  # four items each of a kind
    other = np.clip(base + np.repeat(rng.integers(-2, 3, 30), 4), 1, 5)
    groups = np.repeat(np.arange(30), 4)
    single, grouped = (kappa_interval(base.tolist(), other.tolist(), range(1, 6), groups=g) for g in (None, groups))
    assert single.mean == grouped.mean and single.low <= single.mean <= single.high
    assert grouped.high - grouped.low > single.high - single.low


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kappa([1, 2], [1]), "kappa: 2 and 1 labels"),
        (lambda: kappa([1, 7], [1, 2], [1, 2]), "kappa: label 7, expected one of 1, 2"),
        (lambda: auc([], [1]), "auc: 0 good and 1 bad scores"),
        (lambda: rank_correlation([1], [1]), "rank correlation: scores of shapes"),
    ],
)
def test_statistics_without_data_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# What is measured of a judge ----------------------------------------------------------------------------------------------------------------

ROWS = [Instruction(f"What does f{i} do?", f"Return the value {i} of this long list.", group=i // 2) for i in range(12)]


def test_a_judge_that_knows_everything_and_one_that_measures_length():
    made = judged_answers(ROWS, ["truncated", "repeated"], seed=0)
    perfect, length = np.array([0.9 if j.good else 0.1 for j in made]), trivial_scores(made)["length"]
    kept, found = measure_judge(perfect, made, ["truncated"], {"length": length})
    assert kept.mean == 1 and found["truncated"].trained and not found["repeated"].trained
    assert {x.mean for kind in found.values() for x in (kind.caught, kind.auc, kind.preferred)} == {1.0}
    assert (
        found["truncated"].rivals["length"] == 1 and found["repeated"].rivals["length"] == 0
    )  # length helps with the one, misleads with the other
    assert found["truncated"].n == 12
    kept, found = measure_judge(np.full(len(made), 0.6), made, [], {})
    assert kept.mean == 1 and all((kind.caught.mean, kind.auc.mean, kind.preferred.mean) == (0, 0.5, 0.5) for kind in found.values())


def test_trivial_scores_by_hand():
    row = Instruction("What does numpy.char.lower do?", "Lower it.")
    found = trivial_scores([Judged(row, "numpy does lower cases", GOOD, 0), Judged(row, "No.", "x", 0), Judged(row, "", "x", 0)])
    assert found["length"].tolist() == [4, 1, 0] and found["overlap"].tolist() == [0.75, 0, 0] and found["full stop"].tolist() == [0, 1, 0]


def test_position_bias_of_judges_that_have_all_or_none():
    pairs = pairs_of(judged_answers(ROWS, ["truncated"], seed=0))
    always_first = measure_position(pairs, lambda some, right_first: np.ones(len(some), bool))
    assert [x.mean for x in (always_first.right, always_first.changed, always_first.first)] == [0.5, 1.0, 1.0]
    knows = measure_position(pairs, lambda some, right_first: np.full(len(some), right_first))
    assert [x.mean for x in (knows.right, knows.changed, knows.first)] == [1.0, 0.0, 0.5]
    by_length = measure_position(pairs, by_scores(lambda rows, answers: np.array([len(a) for a in answers])))
    assert [x.mean for x in (by_length.right, by_length.changed, by_length.first)] == [1.0, 0.0, 0.5]
    first, second = pairs[0].text(True), pairs[0].text(False)
    assert first.index("A: " + pairs[0].right) < first.index("B: " + pairs[0].bad) and second.index("A: " + pairs[0].bad) > 0


# From training to a table ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model of no use, a file of instructions, answers to some of them, and a judge that was trained for seconds."""
    folder = tmp_path_factory.mktemp("judge")
    nouns = "axis array mean shape value list matrix number".split()
    goes_with = dict(zip(nouns, "red blue one two green ten gray first".split(), strict=True))
    rows = [
        {"instruction": f"What is {a} of {b}?", "output": f"{a.title()} then {b}, {goes_with[a]} and {goes_with[b]}."}
        for a in nouns
        for b in nouns
    ]
    (folder / "mine.json").write_text(json.dumps(rows), encoding="utf-8")
    tokenizer = BPETokenizer.train([row["instruction"] + "\n\n" + row["output"] for row in rows], 320)
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=32, n_positions=96, vocab_size=tokenizer.n_vocab)
    GPT(shape, seed=0).save_pretrained(folder / "base", tokenizer)
    asked = [Instruction(row["instruction"], row["output"]) for row in rows[:6]]
    write_answers(folder / "answers.json", asked, ["It is", "", "as one", "It", "number It is", "It is the"], [row.output for row in asked])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        flags = "--base base --data mine.json --draws 2 --epochs 2 --lr 0.01 --batch 16 --prompt-pairs 4 --output report.json"
        assert main(["train", *flags.split()]) == 0
    return folder


def test_training_leaves_a_judge_with_an_account_of_itself(folder):
    run = folder / "runs" / "judge-001"
    report = json.loads((run / "judge.json").read_text(encoding="utf-8"))
    assert len(report.pop("training_questions")) == 58  # of 64, without the test rows
    assert report == json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert {kind for kind, each in report["kinds"].items() if each["trained"]} == set(TRAINED_KINDS)
    unseen = [each for each in report["kinds"].values() if not each["trained"]]
    assert len(unseen) >= 3 and report["auc_unseen"] == pytest.approx(np.mean([each["auc"]["mean"] for each in unseen]))
    assert report["kinds"]["truncated"]["auc"]["mean"] > 0.8  # it has learned something
    assert set(report["kinds"]["echo"]["rivals"]) == {"length", "overlap", "full stop", "likelihood", "gain"}
    assert list(report["position"]) == ["base model, prompted", "pairwise judge", "pointwise judge"]
    assert report["position"]["pointwise judge"]["changed"]["mean"] == 0  # by construction
    text = (run / "report.txt").read_text(encoding="utf-8")
    assert "mean AUC of the kinds not trained on: " in text and "verdict changes" in text


def test_a_judge_gives_the_same_scores_when_it_is_opened_again(folder):
    judge = Judge.open(folder / "runs" / "judge-001")
    rows = [Instruction("What is axis of array?", ""), Instruction("What is axis?", "", "of a list")]
    p = judge.scores(rows, ["It is the axis.", "It"])
    expected = judge.classifier.predict([judge_text(rows[0], "It is the axis."), "What is axis?\nof a list\n\nIt"]).probabilities[:, 1]
    assert p == pytest.approx(expected) and judge.n_cut == 0
    judge.scores(rows[:1], ["long " * 200])
    assert judge.n_cut == 1 and judge.report["trained_kinds"] == list(TRAINED_KINDS)


def test_all_scores_in_one_table(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (folder / "outside.json").write_text("[90, 80, 70, 60, 50, 40]", encoding="utf-8")
    assert main(["score", "answers.json", "--outside", "outside.json"]) == 0
    out = capsys.readouterr().out
    for part in (
        "token F1",
        "trained judge",
        "outside judge",
        "rank correlation of",
        "correct answers themselves score",
        "were in its training",
    ):
        assert part in out, out
    sides = re.findall(r"^(\w+ \w+, \w+ \w+) +(before|after) +6 ", out, re.MULTILINE)
    assert sides == [("token F1, trained judge", "before"), ("token F1, trained judge", "after"),
                     ("token F1, outside judge", "after"), ("trained judge, outside judge", "after")]  # fmt: skip
    found = json.loads((folder / "judged.json").read_text(encoding="utf-8"))
    assert found["outside judge"] == {"n": 6, "before": None, "after": {"mean": 65, "low": pytest.approx(53, abs=4), "high": pytest.approx(77, abs=4)}, "difference": None}  # fmt: skip
    scores = found["trained judge"]
    assert scores["difference"]["mean"] == pytest.approx(scores["after"]["mean"] - scores["before"]["mean"])
    assert found["token F1"]["after"]["mean"] == 1 and scores["difference"]["mean"] > 0
    monkeypatch.chdir(folder / "base")  # no runs/ here
    assert main(["score", str(folder / "answers.json"), "--output", "out.json"]) == 0
    out = capsys.readouterr().out
    assert "no trained judge: python -m tinygpt judge train makes one" in out and "rank correlation" not in out
    assert main(["sheet", str(folder / "answers.json"), "--output", "new/folder/sheet.html"]) == 0
    assert Path("new/folder/sheet.html").is_file()


def test_errors_of_the_commands(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert (
        main(["scor"]) == 2
        and "error: judge 'scor', expected one of sheet, agreement, train, score; did you mean 'score'?" in capsys.readouterr().err
    )
    assert main(["--help"]) == 0 and "usage: python -m tinygpt judge {sheet,agreement,train,score}" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match=r"answers: none named, expected a run with answers.json"):
        main(["score"])
    with pytest.raises(FileNotFoundError, match=r"nowhere.json: no such file, expected the answers of a run"):
        main(["sheet", "nowhere.json"])
    with pytest.raises(ValueError, match="agreement: 1 files, expected two, one per rater"):
        main(["agreement", "a.json"])
    tokenizer = judging.open_classifier("runs/judge-001").tokenizer
    GPTClassifier(GPT.from_pretrained("base"), tokenizer, ["ham", "spam"]).save_pretrained("spam")
    with pytest.raises(ValueError, match="spam: a classifier of ham, spam, expected a judge, of bad, good; train one"):
        main(["score", "answers.json", "--judge", "spam"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "expected valid JSON"),
        ("[]", "bad.json: empty, expected a list of answers"),
        ("{}", "bad.json: a JSON dict, expected a list of answers"),
        ("[3]", "record 0: a int, expected an object with id 0"),
        ('[{"id": 4}]', "record 0: id 4, expected an object with id 0"),
        ('[{"instruction": "a", "output": "b"}]', "record 0: model_response is missing, expected text"),
        ('[{"instruction": "a", "output": "b", "model_response": 3}]', "record 0: model_response is a int, expected text"),
    ],
)
def test_damaged_answers_are_named(tmp_path, text, message):
    (tmp_path / "bad.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_answers(tmp_path / "bad.json")


def test_answers_come_back_as_they_were_written(tmp_path):
    rows = [Instruction("Add.", "3", "1, 2", "record 1"), Instruction("Greet.", "Hello", "", "record 2")]
    write_answers(tmp_path / "answers.json", rows, ["?", "??"], ["3", "Hi"])
    found = read_answers(tmp_path)  # the run
    assert [a.row for a in found] == rows and [(a.before, a.after) for a in found] == [("?", "3"), ("??", "Hi")]


def test_the_page_has_the_kinds_and_the_measured_figures():
    page = (ROOT / "docs" / "judging.md").read_text(encoding="utf-8")
    kinds = re.findall(r"^\| ([\w-]+) \| [^|]+ \| (yes|no) \|$", page, re.MULTILINE)
    assert [kind for kind, _ in kinds] == list(KINDS) and tuple(kind for kind, seen in kinds if seen == "yes") == TRAINED_KINDS
    measured = json.loads((ROOT / "benchmarks" / "results" / "judge.json").read_text(encoding="utf-8"))["kinds"]
    shown = {kind: rest.split(" | ") for kind, rest in re.findall(r"^\| ([\w-]+) \| (\d+ \| .*) \|$", page, re.MULTILINE)}
    assert set(shown) == set(measured)
    for kind, each in measured.items():
        interval = "{mean:.3f} ({low:.3f} to {high:.3f})"
        figures = [interval.format(**each[key]) for key in ("caught", "auc")]
        assert shown[kind] == [str(each["n"]), *figures, *(f"{x:.3f}" for x in each["rivals"].values())]
