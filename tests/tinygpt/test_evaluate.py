"""Items, tasks that code makes, and the command that scores a model on them."""

import dataclasses
import json
import math
import re
import shutil

import numpy as np
import pytest

from tinygpt import GPT, GPTConfig
from tinygpt.data.corpora import Document, load_corpus
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.data.windows import bigram_nats
from tinygpt.evaluation.baselines import Bigram
from tinygpt.evaluation.command import main
from tinygpt.evaluation.continuations import Request, score
from tinygpt.evaluation.items import Item, Task, corrupted, permuted, with_shots
from tinygpt.evaluation.overlap import looked_for, training_text
from tinygpt.evaluation.record import Record
from tinygpt.evaluation.report import Evaluated, ItemProgress, notes
from tinygpt.evaluation.scores import Kept, Result, _picked, evaluate
from tinygpt.evaluation.tasks import TASKS, _summaries, label_task, make_task
from tinygpt.finetuning.labeled import LabeledData, LabeledText
from tinygpt.inference.decoding import generate
from tinygpt.inference.likelihood import log_likelihood, token_nats
from tinygpt.inference.text import complete_all
from tinygpt.runs.checkpoint import Checkpoint

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


def test_functions_that_share_a_summary():
    """As some of NumPy's do: the four summaries of an item are different ones."""
    rest = "\n\n" + "It returns an array of the same shape, with another dtype where that is asked for, and else the same."
    texts = ["Sum.", "Product.", "Mean.", *["Deprecated."] * 20]
    items = list(_summaries([Document(f"f{i}", text + rest, i) for i, text in enumerate(texts)], 0))
    assert len(items) == len(texts)
    for item, text in zip(items, texts, strict=True):
        assert sorted(item.contexts) == sorted(f"{each}\n\n" for each in set(texts)) and item.contexts[item.right] == f"{text}\n\n"


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
        result = evaluate(model, tokenizer, Task(kind, [item, dataclasses.replace(item, group=1)], max_new_tokens=4))
        assert set(result.values) == {0, 1} and result.values[0] == result.values[1]
        assert np.isfinite(result.interval()).all()
    with pytest.raises(ValueError, match="task mixed: items of 2 kinds"):
        Task("mixed", [items["choice"], items["next"]])


def test_a_choice_goes_to_the_likelier_option(model, tokenizer):
    """The rules of length: by the sum a short option wins that loses per token."""
    item = Item("choice", ("the array has a",), (" shape", " shape and a type"), 0)
    values = evaluate(model, tokenizer, Task("t", [item])).values[0]
    assert values["sum"] == 1.0 and set(values) == {"per_token", "per_character", "sum"}


def test_what_is_finished_is_not_scored_again(model, tokenizer, monkeypatch):
    monkeypatch.setattr("tinygpt.evaluation.continuations._TOKENS", 200)  # several calls for the items that are scored together
    task = Task("t", [choice(n) for n in range(100)])
    seen, shares = [], []
    first = evaluate(model, tokenizer, task, finished=lambda number, kept: seen.append(number), progress=shares.append)
    assert seen == list(range(100)) and shares == sorted(shares) and shares[-1] == 100 and any(0 < n < 64 for n in shares)
    done = {n: Kept(first.values[n], cut=n == 3) for n in range(90)}
    again = evaluate(model, tokenizer, task, done=done, finished=lambda number, kept: seen.append(number))
    assert seen[100:] == list(range(90, 100)) and again.values == first.values and again.n_cut == 1


def test_errors_name_task_and_item(model, tokenizer):
    for item, message in (
        (Item("choice", ("a",), (" b", ""), 0), r"task t, item 1: continuation '' after 'a': no token of its own, expected at least one"),
        (
            Item("choice", ("",), (" b", " c"), 0),
            r"task t, item 1: an empty context with a tokenizer of kind characters, expected .*; give the",
        ),
        (
            Item("answer", ("",), ("b",)),
            r"task t, item 1: a prompt without a token, .*; a tokenizer of kind characters has no token to start",
        ),
        (Item("text", ("",), ("a",)), r"task t, item 1: likelihood: 1 tokens, expected at least 2"),
    ):
        letters = CharacterTokenizer(" abc") if "characters" in message or item.kind == "text" else tokenizer
        good = {"choice": choice(0), "answer": Item("answer", ("a",), ("b",)), "text": Item("text", ("",), ("abc",))}[item.kind]
        if letters is not tokenizer and item.kind == "choice":
            good = Item("choice", ("a",), (" b", " c"))
        with pytest.raises(ValueError, match=message):
            evaluate(model, letters, Task("t", [good, item], max_new_tokens=2))


def test_too_long_is_cut_and_counted(model, tokenizer):
    """Also with eight solved examples, which do not fit next to the item."""
    long = TEXT[:1600]
    items = [Item("choice", (long,), (" shape", " type")), Item("choice", ("the",), (" shape", " type"))]
    result = evaluate(model, tokenizer, Task("t", items))
    assert result.cut == {0} and result.n_cut == 1
    examples = [Item("choice", (f"{n} {TEXT[:200]}",), (" shape", " type")) for n in range(8)]
    assert evaluate(model, tokenizer, Task("t", items, examples), n_shots=8).n_cut == 2
    answers = [Item("answer", (text,), ("x",)) for text in (long, "the")]
    assert evaluate(model, tokenizer, Task("t", answers, max_new_tokens=3)).cut == {0}
    with pytest.raises(ValueError, match="task t: 9 shots, expected at most 8, the solved examples"):
        evaluate(model, tokenizer, Task("t", items, examples), n_shots=9)


def test_an_answer_leaves_half_of_the_context_to_its_prompt(model, tokenizer, monkeypatch):
    """The model reads 256 tokens: where 256 are asked for, a prompt has 128 and the answer 128."""
    asked = []

    def complete(model, tokenizer, prompts, n_new, *arguments, **more):
        asked.append((max(map(len, prompts)), n_new))
        return complete_all(model, tokenizer, prompts, 1, *arguments, **more)

    monkeypatch.setattr("tinygpt.evaluation.scores.complete_all", complete)
    task = Task("t", [Item("answer", (text,), ("x",)) for text in (TEXT[:1600], "the shape")], max_new_tokens=256)
    result = evaluate(model, tokenizer, task)
    assert asked == [(128, 128)] and result.cut == {0}
    assert "t: answers are shortened, to at most 128 tokens instead of 256, half of what the model reads" in notes([Evaluated(result, {})])
    short = evaluate(model, tokenizer, dataclasses.replace(task, max_new_tokens=128))
    assert asked[1] == (128, 128) and "shortened" not in notes([Evaluated(short, {})])


def test_texts_count_together(model, tokenizer):
    """Bits per byte of all texts, not the mean of each one's; perplexity from the nats of all tokens."""
    task = Task("t", [Item("text", ("",), (TEXT[:n],), group=n) for n in (40, 700)])
    result = evaluate(model, tokenizer, task)
    both = [log_likelihood(model, tokenizer, item.options[0]) for item in task.items]
    assert result.interval().mean == pytest.approx(sum(x.nats for x in both) / math.log(2) / sum(x.n_bytes for x in both))
    found = result.every_metric()
    assert found["perplexity"] == pytest.approx(math.exp(sum(x.nats for x in both) / sum(x.n_tokens for x in both)))
    assert found["n_bytes"] == 740 and result.minus(result) == (0.0, 0.0, 0.0)
    assert math.isnan(evaluate(model, tokenizer, Task("one", task.items[:1])).interval().low)  # one document says nothing of others


def test_options_that_a_prompt_lists_change_their_order_there():
    item = Item("choice", ("Which?\nA. ice\nB. fire\nC. air\nAnswer:",), (" A", " B", " C"), 1, shown=("ice", "fire", "air"))
    turned = permuted(item)
    assert turned.options == item.options and turned.contexts != item.contexts
    assert turned.contexts[0].splitlines()[1 + turned.right] == f"{'ABC'[turned.right]}. fire"


def test_bleu_is_that_of_all_answers(model, tokenizer):
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs the extra instruct")
    rights = [("the shape of the array is two", "the array is a shape"), ("a type and a shape and an array",), ("12 + 7 = 19",)]
    items = [Item("answer", ("the",), right, group=n) for n, right in enumerate(rights)]
    result = Result(Task("t", items, metric="bleu"), 0)
    for n, given in enumerate(["the shape of the array is a shape", "a type and a shape", "the 12 + 7 = 19"]):
        result.add(n, Kept({"exact_match": 0.0, "f1": 0.5}, given))
    streams = [[right[i] if i < len(right) else None for right in rights] for i in range(2)]
    shown = result.interval()
    assert shown.mean == pytest.approx(sacrebleu.corpus_bleu(list(result.answers.values()), streams).score)
    assert 0 < shown.low < shown.mean < shown.high <= 100 and result.metric == "bleu" and result.minus(result) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("metric", "answer", "picked"),
    [
        (r"(\d[\d,]*)", "first 7, then 1,200 in all", "1200"),
        (r"x=(\d)|y=(\d)", "x=1 and y=2", "2"),
        (r"\b(?:yes|no)\b", "no, I mean yes!", "yes"),
        (r"\d", "none", ""),
        ("bleu", "  as it is ", "as it is"),
    ],
)
def test_what_is_compared_of_an_answer(metric, answer, picked):
    assert _picked(metric, answer) == picked


# The command -------------------------------------------------------------------------------------------------------------------

LINES = [
    f"line {n}: " + " ".join(np.random.default_rng(n).permutation(TEXT.split()[:12])) + f" and {n * 7} more of it, at the end"
    for n in range(60)
]


@pytest.fixture
def a_run(model, tokenizer, tmp_path):
    """A run's directory, with a corpus of a file: its last tenth is not trained on."""
    (tmp_path / "corpus.txt").write_text("\n".join(LINES), encoding="utf-8")
    path = tmp_path / "run" / "checkpoints" / "step-00000001"
    model.save_pretrained(path, tokenizer)
    corpus = load_corpus(tmp_path / "corpus.txt")
    config = {"corpus": str(tmp_path / "corpus.txt"), "validation_fraction": 0.1, "corpus_fingerprint": corpus.fingerprint}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.fixture
def no_picture(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr("tinygpt.evaluation.command.plot", lambda *arguments: None)


def rows_file(tmp_path, rows, name="rows.jsonl"):
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(tmp_path / name)


def test_the_command(model, tokenizer, tmp_path, capsys):
    folder = tmp_path / "model"
    model.save_pretrained(folder, tokenizer)
    flags = [str(folder), "--tasks", "copying", "section", "--limit", "6", "--output", str(tmp_path / "out")]
    main([*flags, "--compare", str(folder)])
    out = capsys.readouterr().out
    assert "copying  6 " in out and "+0.000      +0.000 to +0.000" in out and "which of five sections" in out
    assert "items were not looked for in the training text" in out and "no run with a config.json" in out
    report = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    rows = report[0]["tasks"]
    assert (
        len(report) == 2 and [row["task"] for row in rows] == ["copying", "section"] and rows[0]["chance"] == 0.25 and rows[1]["items"] == 6
    )
    assert set(rows[0]["controls"]) == {"passage shuffled", "options permuted"}
    n = len((tmp_path / "out/evaluation.jsonl").read_text(encoding="utf-8").splitlines())
    main(flags)
    assert len((tmp_path / "out/evaluation.jsonl").read_text(encoding="utf-8").splitlines()) == n + 5  # the seconds of five parts, no item
    with pytest.raises(ValueError, match=r"task 'sumary': unknown, expected one of .*; did you mean 'summary'"):
        main([str(folder), "--tasks", "sumary"])


def test_a_model_saved_again_is_scored_again(tokenizer, tmp_path, no_picture, capsys):
    shape = GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=64, vocab_size=tokenizer.n_vocab)
    found, rows = [], rows_file(tmp_path, [{"context": LINES[0], "continuation": " shape"}])
    for seed in (1, 2):
        GPT(shape, seed=seed).save_pretrained(tmp_path / "model", tokenizer)
        main([str(tmp_path / "model"), "--task-file", rows, "--output", str(tmp_path)])
        found.append(json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))[0]["tasks"][0]["all"]["log_prob"])
    assert found[0] != found[1]


def test_each_is_compared_once_and_under_its_own_name(a_run, model, tokenizer, tmp_path, no_picture):
    """A run, two of its checkpoints, and repeats of names and files."""
    other, run = a_run.with_name("step-00000002"), a_run.parent.parent
    model.save_pretrained(other, tokenizer)
    rows = rows_file(tmp_path, [{"context": LINES[0], "continuation": " shape"}])
    compared = [str(a_run), str(other), str(other), f"{other}/", "untrained", "untrained"]
    main([str(run), "--task-file", rows, rows, "--no-overlap", "--compare", *compared, "--output", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out/evaluation.json").read_text(encoding="utf-8"))
    assert [each["model"] for each in report] == [str(run), str(a_run), str(other), "untrained"]
    assert all(len(each["tasks"]) == 1 for each in report) and set(report[0]["tasks"][0]["minus"]) == {str(a_run), str(other), "untrained"}


def test_what_the_command_refuses(a_run, tmp_path):
    (tmp_path / "taken").write_text("", encoding="utf-8")
    for output in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(FileExistsError, match=r"--output .*taken is a file, expected a directory for the results; name another one"):
            main([str(a_run), "--tasks", "copying", "--limit", "1", "--output", str(output)])
    with pytest.raises(ValueError, match=r"--harness: --compare, --metric, expected --tasks alone, .*; leave out --compare"):
        main([str(a_run), "--harness", "--tasks", "x", "--compare", "untrained", "--metric", "f1"])


def test_stopped_in_a_control_and_continued(a_run, tmp_path, no_picture, monkeypatch):
    """Stopped after 64 of the 100 shuffled items: the table is the same as without a stop, and no item was scored twice."""
    rows = [{"context": line, "passage": line[8:], "options": [" shape", " type"], "answer": n % 2} for n, line in enumerate(LINES)]
    rows = [row | {"context": f"{k} {row['context']}"} for k in range(2) for row in rows]
    flags = [str(a_run), "--task-file", rows_file(tmp_path, rows), "--output"]
    seen = []

    def stop(progress, n_done):
        seen.append(progress.part)
        if "passage shuffled" in progress.part and n_done == 64:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ItemProgress, "update", stop)
        with pytest.raises(KeyboardInterrupt):
            main([*flags, str(tmp_path / "stopped")])
    main([*flags, str(tmp_path / "stopped")])
    main([*flags, str(tmp_path / "at once")])
    one, other = (json.loads((tmp_path / name / "evaluation.json").read_text(encoding="utf-8")) for name in ("stopped", "at once"))
    for row in (one[0]["tasks"][0], other[0]["tasks"][0]):
        assert row.pop("seconds") > 0 and row["items"] == 108 and row["controls"].keys() == {"passage shuffled", "options permuted"}
    assert one == other and any("passage shuffled" in part for part in seen) and not any("permuted" in part for part in seen)
    entries = [json.loads(line) for line in (tmp_path / "stopped/evaluation.jsonl").read_text(encoding="utf-8").splitlines()]
    items = [(entry["key"], entry["item"]) for entry in entries if "item" in entry]
    assert len(items) == len(set(items)) == 3 * 108


def test_a_record_with_other_lines(tmp_path):
    path = tmp_path / "evaluation.jsonl"
    good = {"model": "m", "key": "k", "item": 3, "values": {"sum": 1.0}, "answer": "a", "cut": True}
    nothing = [good | {"values": {"sum": float("nan")}}, good | {"item": 0, "values": {"sum": 10**400}}]
    elsewhere = [good | {"item": item} for item in (-1, 5, 2.0, True)] + [good | {"item": 1, "values": {"greedy": 1.0}}]
    others = [
        *map(json.dumps, nothing + elsewhere),
        '{"model": "m", "key": "k", "seconds": NaN}',
        "[1]",
        "null",
        '{"model": "m"}',
        '{"model": "m", "key": [1], "item": 0, "values": {}}',
        json.dumps(good | {"model": "other"}),
    ]
    path.write_text("\n".join([json.dumps(good), *others, '{"model": "m", "key": "k", "it']), encoding="utf-8")
    task = Task("t", [Item("schema", (f"a {n}", f"b {n}"), (" c",)) for n in range(5)])
    record = Record(path, "m")
    assert record.items("k", task) == {3: Kept({"sum": 1.0}, "a", True)} and record.seconds("k") == 0
    with record.adding("k") as keep:
        keep(4, Kept({"sum": 0.0}))
    again = Record(path, "m")
    assert set(again.items("k", task)) == {3, 4} and again.seconds("k") > 0


def test_items_that_were_trained_on_are_scored_apart(a_run, tmp_path, no_picture, capsys):
    texts = [LINES[0], LINES[5], LINES[59], "twelve words that no line of the corpus has in this order, ever", "too short"]
    main([str(a_run), "--task-file", rows_file(tmp_path, [{"text": text} for text in texts]), "--kind", "text"])
    out = capsys.readouterr().out
    assert re.search(r"rows  2 .*  2 .*  1\n\nclean and seen: looked for in the training text, text file", out)
    row = json.loads((tmp_path / "run/evaluation.json").read_text(encoding="utf-8"))[0]["tasks"][0]["training_text"]
    assert row["shares"] == [1.0, 1.0, 0.0, 0.0, None] and (row["clean"]["items"], row["seen"]["items"], row["too_short"]) == (2, 2, 1)
    (tmp_path / "corpus.txt").write_text("another text, of some length " * 9, encoding="utf-8")
    main([str(a_run), "--task-file", str(tmp_path / "rows.jsonl"), "--kind", "text"])
    assert re.search(
        r"not looked for in the training text: .* fingerprint .*, expected .*, that of the text it was", capsys.readouterr().out
    )
    with pytest.raises(ValueError, match=r"--compare bigram: .*fingerprint.*; without its text there is nothing to count"):
        main([str(a_run), "--tasks", "copying", "--compare", "bigram"])


def test_a_fine_tuned_run_was_trained_on_its_bases_text_and_its_rows(a_run, tmp_path):
    rows = [{"instruction": f"Say {n} things of the array that nobody has said before", "output": LINES[n]} for n in range(55, 60)]
    data = rows_file(tmp_path, rows, "data.jsonl")
    config = {"script": "examples/finetune_instructions.py", "base": str(a_run), "data": data, "fractions": [0.6, 0.2, 0.2], "seed": 0}
    tuned = tmp_path / "tuned" / "checkpoints" / "step-00000001"
    shutil.copytree(a_run, tuned)
    (tmp_path / "tuned/config.json").write_text(json.dumps(config), encoding="utf-8")
    text = training_text(Checkpoint.open(tuned))
    assert "3 instructions" in text.source and sum(ends for _, ends in text.pieces()) == 4
    chat = json.dumps(config | {"script": "examples/finetune_chat.py"})  # which reads the same rows as conversations
    (tmp_path / "tuned/config.json").write_text(chat, encoding="utf-8")
    assert "3 conversations" in training_text(Checkpoint.open(tuned)).source
    (tmp_path / "tuned/config.json").write_text(json.dumps(config | {"base": "random"}), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"tuned: its config.json names no corpus and no base with one, expected a run of a language model's"
    ):
        training_text(Checkpoint.open(tuned))


def test_what_is_looked_for():
    question = "Question: which of these is the one that we have asked for?\nAnswer:"
    assert looked_for(Item("choice", (question,), (" a", " b"))).split() == question.split()[1:-1]
    assert looked_for(Item("choice", ("Q: short?\nA:",), (" a", " b"), 1)).split() == ["short?", "b"]
    assert looked_for(Item("choice", ("x",), (" a", " b"), passage="what is read")) == "what is read"
    assert looked_for(Item("next", ("of words that stand in front of the last",), (" one",))).endswith("the last one")


def test_the_bigram_is_counted_as_in_the_loss_and_scored_as_a_model(a_run, tmp_path, tokenizer, capsys):
    rng = np.random.default_rng(0)
    train, held_out = rng.integers(0, 40, 900) // (1 + rng.integers(0, 3, 900)), rng.integers(0, 40, 300)
    bigram = Bigram(train, held_out, GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=16, vocab_size=60))
    assert token_nats(bigram, held_out).mean() == pytest.approx(bigram_nats(train, held_out, 60), abs=1e-5)
    (scores,) = score(bigram, [Request([1, 2, 3], [[4, 5], [6]])])
    alone = [-token_nats(bigram, [3, *option]).sum() for option in ([4, 5], [6])]
    assert [each.log_prob for each in scores] == pytest.approx(alone, abs=1e-5)
    first = np.bincount(train[1:][train[:-1] == 3], minlength=60) + bigram.k * (np.bincount(train, minlength=60) + 1) / 960
    assert generate(bigram, [[7, 3]], 1, temperature=0).ids[0, -1] == first.argmax()

    main([str(a_run), "--tasks", "arithmetic", "--limit", "10", "--no-controls", "--compare", "bigram", "untrained"])
    out = capsys.readouterr().out
    assert re.search(r"^task +\S*step-00000001 +bigram +difference +95 % +untrained +difference +95 %$", out, re.MULTILINE)
    report = json.loads((tmp_path / "run/evaluation.json").read_text(encoding="utf-8"))
    assert [model["model"] for model in report[1:]] == ["bigram", "untrained"] and set(report[0]["tasks"][0]["minus"]) == {
        "bigram",
        "untrained",
    }


def test_labeled_texts_in_the_command(model, tokenizer, tmp_path, no_picture, capsys):
    model.save_pretrained(tmp_path / "model", tokenizer)
    rows = "".join(f"{'spam' if n % 3 else 'ham'};text number {n}\r\n" for n in range(60))
    (tmp_path / "mail.csv").write_bytes(b"\xef\xbb\xbfclass;message\r\n" + rows.encode())
    flags = [str(tmp_path / "model"), "--output", str(tmp_path), "--data", str(tmp_path / "mail.csv")]
    main([*flags, "--shots", "2"])
    assert "is spam  30 " in capsys.readouterr().out
    main([*flags, "--label", "ham", "--text-column", "message", "--limit", "1"])
    assert "is ham  1 " in capsys.readouterr().out
    (tmp_path / "mail.csv").write_text("class;message\na;one\nb;two\nb;three\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"--label: labels a, b, expected the one that is asked for, because none is spam; --label a"):
        main(flags)
    with pytest.raises(ValueError, match=r"--label, --text-column, --label-column: no --data, expected the file that they are said of"):
        main([*flags[:-2], "--tasks", "copying", "--label", "spam"])


def test_all_kinds_from_files(model, tokenizer, tmp_path, no_picture, capsys):
    model.save_pretrained(tmp_path / "model", tokenizer)
    rows = {
        "choice": {"context": "the shape of the", "options": [" array", " type"], "answer": 0},
        "schema": {"contexts": ["the shape", "the type"], "continuation": " of the array", "answer": "B"},
        "next": {"context": "the array has a", "continuation": " shape"},
        "answer": {"prompt": "12 + 7 =", "answers": ["19"]},
        "text": {"text": "the array has a shape and a type"},
    }
    for kind, row in rows.items():
        first = next(iter(row))
        many = [row | {first: [f"{n} {c}" for c in row[first]] if kind == "schema" else f"{n} {row[first]}"} for n in range(20)]
        more = ["--metric", r"(\d+)", "--max-new-tokens", "3"] if kind == "answer" else []
        flags = [
            "--task-file",
            rows_file(tmp_path, many),
            "--kind",
            kind,
            *more,
            "--output",
            str(tmp_path),
            "--shots",
            "0" if kind == "text" else "2",
        ]
        main([str(tmp_path / "model"), *flags])
        out = capsys.readouterr().out
        assert f"rows: {kind}, 18 rows, 2 more for solved examples" in out
        assert ("BLEU" in out) is (kind == "answer") and ("perplexity" in out) is (kind == "text")
        answers = [json.loads(line).get("answer", "") for line in (tmp_path / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()]
        assert all(answer.isdigit() or not answer for answer in answers)
