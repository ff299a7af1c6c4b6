"""benchmarks/scaling.py, prompting.py, finetuned_vs_prompted.py and evaluate.py: their fits, items and tables, and all of them with a few texts."""

import dataclasses
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.benchmark_scripts import BENCHMARKS, fixture_of
from tinygpt.data.corpora import Document
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.data.windows import encode_documents
from tinygpt.errors import InvalidInput
from tinygpt.evaluation.items import Item, Task, with_shots

NAMES = ("scaling", "prompting", "finetuned_vs_prompted", "evaluate")
TEXT = "the shape of the array is a tuple of numbers, and the type of its values is one of many. "


benchmarks = fixture_of(*NAMES)


@pytest.fixture
def tiny(benchmarks, monkeypatch):
    """A few documents instead of the corpus, a short context, and two windows an update."""
    trained = sys.modules["trained"]
    documents = [Document(f"d{i}", TEXT * 2 + f"{i} " * 9, i // 2) for i in range(12)]
    tokenizer = BPETokenizer.train(TEXT * 20, vocab_size=280)
    docs = trained.Docs(documents, encode_documents([TEXT * 6], tokenizer), tokenizer)
    monkeypatch.setattr(trained.Docs, "read", lambda: docs)
    for name in NAMES[:3]:
        module, context = benchmarks[name], 64 if name == "scaling" else 96
        monkeypatch.setattr(module, "shape_of", lambda layers, channels, _=0, n=context: trained.shape_of(layers, channels, n))
        monkeypatch.setattr(
            module,
            "training_for",
            lambda *settings, processes=1: dataclasses.replace(trained.training_for(*settings[:2], processes=1), micro_batch=2),
        )
    return docs


def choices(n, group_of=2):
    items = [Item("choice", (f"the shape {i} of the",), (" array", " type", " tuple"), i % 3, i // group_of) for i in range(n + 20)]
    return Task("copying", items[:n], items[n:])


def call(module, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", "--processes", "1", *map(str, flags)])
    module.main()


def test_sizes_have_the_default_models_rates_and_updates_its_tokens(benchmarks):
    trained = sys.modules["trained"]
    narrow, base = trained.shape_of(2, 64), trained.shape_of(4, 128)
    assert base == trained.MODEL and (narrow.n_head, narrow.width_base, narrow.width_ratio) == (2, 128, 0.5)
    assert trained.block_weights(base) == base.n_parameters() - base.vocab_size * 128
    for context in (128, 512):
        assert (
            plan := trained.training_for(1600, 3, context)
        ).micro_batch * context == 1024 and plan.warmup_steps == trained.TRAINING.warmup_steps


@pytest.mark.parametrize("with_floor", [False, True])
def test_the_fit_finds_the_law_that_made_the_points(benchmarks, monkeypatch, with_floor):
    scaling, x = benchmarks["scaling"], np.geomspace(1e5, 3e6, 4).repeat(2)
    monkeypatch.setattr(scaling, "_RESAMPLES", 400)
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(x)))
    y = ((1e9 / x) ** 0.1 + 1.5 * with_floor) * noise
    law = scaling.fitted(x.tolist(), y.tolist())
    plain, floored = law["power law"], law["with a floor"]
    assert law["floor_is_seen"] is with_floor
    if with_floor:
        assert floored["low"] <= 0.1 <= floored["high"] and plain["high"] < 0.1
        assert floored["floors"][0] <= 1.5 <= floored["floors"][1] and floored["error"] < plain["error"]
    else:
        assert plain["low"] < 0.1 < plain["high"] and plain["exponent"] == pytest.approx(0.1, abs=0.003)
        assert plain["scale"] == pytest.approx(1e9, rel=0.5)
    assert len(law["between neighbors"]) == 3


def test_the_fit_is_numpys_straight_line(benchmarks):
    x, y = np.array([1.0, 3, 10, 40]), np.array([5.0, 4.2, 3, 2.9])
    slope, start = np.polyfit(np.log(x), np.log(y), 1)
    law = benchmarks["scaling"].fit(x, y)
    assert law.exponent == pytest.approx(-slope) and np.allclose(law.at(x), np.exp(start) * x**slope)
    assert benchmarks["scaling"].fit(x, y, with_floor=True).error <= law.error
    assert not benchmarks["scaling"].floor_is_seen(x.tolist(), y.tolist())  # four points cannot show one
    flat = benchmarks["scaling"].fit(x, y.mean() + 1e-3 * np.array([1, -1, -1, 0.99]))  # its scale has no double
    assert abs(flat.exponent) < 1e-3 and np.isnan(flat.scale)
    with pytest.raises(InvalidInput, match=r"fit: 2 different x, expected at least 3; measure more sizes"):
        benchmarks["scaling"].fit([1, 2, 2], [3, 2, 2], with_floor=True)


@settings(max_examples=30)
@given(st.text("ab c\n", max_size=40), st.integers(1, 20))
def test_a_cut_text_is_a_start_that_fits(benchmarks, text, n):
    cut = benchmarks["prompting"].cut(text, n)
    assert text.startswith(cut) and len(cut) <= n and (cut or not text)


def test_items_are_shortened_and_asked_in_other_words(benchmarks):
    prompting = benchmarks["prompting"]
    item = Item("schema", ("Some heading here\n\n", "Another one\n\n"), ("one two three",), 1, 3, "one two three")
    alike = dataclasses.replace(item, contexts=("Some heading here\n\n", "Some heading there\n\n"))
    task = prompting.shortened(Task("summary", [item, alike], [item]), 13)
    assert [i.contexts for i in task.items] == [("Some heading\n\n", "Another one\n\n")] and task.items[0].options == ("one two three",)
    following = prompting.shortened(Task("next-word", [Item("next", ("three words stand",), (" there",))]), 9).items[0]
    assert following.contexts == ("stand",)
    named = prompting.reworded(task, prompting.WORDINGS["summary"]["with names"])
    assert with_shots(named, 0, 1).contexts[1].startswith("Summary: Another one\nDescription: one two")
    section = Item("schema", tuple(f"{n}\n---\n" for n in prompting.SECTIONS), ("a text ",), 2, 5)
    asked = prompting.WORDINGS["section"]["then Label:"](section)
    assert asked.contexts == ("a text\nLabel:",) and asked.options[asked.right] == " Notes" and asked.group == 5
    yes = Item("choice", ("",), (" yes", " no"), 1, passage="a {text}")
    texts = [way(yes).contexts[0] for way in prompting.WORDINGS["yes or no"].values()]
    assert [text.index("a {text}") < text.index("'yes'") for text in texts] == [False, True]


def test_scaling_keeps_what_is_trained(benchmarks, tiny, monkeypatch, tmp_path, capsys):
    scaling = benchmarks["scaling"]
    monkeypatch.setattr(scaling, "SIZES", ((1, 32), (2, 32), (1, 64)))
    monkeypatch.setattr(scaling, "BASE", (2, 32))
    monkeypatch.setattr(scaling, "SHARES", (0.4, 0.7))
    monkeypatch.setattr(scaling, "TASKS", ("copying",))
    monkeypatch.setattr(scaling, "_RESAMPLES", 20)
    monkeypatch.setattr(scaling, "make_task", lambda name: choices(8))
    monkeypatch.setattr(scaling, "draw", lambda rows, fits, file: None)
    flags = ["--seeds", 0, "--updates", 2, "--runs", tmp_path / "runs", "--output", tmp_path / "scaling.json"]
    call(scaling, monkeypatch, *flags)
    first, said = json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8")), capsys.readouterr().out
    assert said.count("training   ") == first["trainings"] == 7 and len(first["rows"]) == 9
    assert [row["tokens_seen"] for row in first["rows"]][:2] == [256, 256] and "| sizes: weights without embeddings |" in said
    tokens = [row["tokens"] for row in first["rows"] if row["curve"] == "text, same updates"]
    assert sorted(tokens)[0] < sorted(tokens)[1] < max(tokens)
    sizes = {row["block_weights"]: row for row in first["rows"] if row["curve"] == "sizes"}
    assert len(sizes) == 3 and first["fits"]["sizes"]["between neighbors"][1] == pytest.approx(
        np.log(sizes[sorted(sizes)[1]]["nats"] / sizes[max(sizes)]["nats"]) / np.log(max(sizes) / sorted(sizes)[1])
    )
    call(scaling, monkeypatch, *flags)
    assert "training   " not in capsys.readouterr().out
    assert json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))["rows"] == first["rows"]
    parts = [tiny.part(share, 3) for share in (0.4, 0.7, 1)]
    assert len(parts[0]) < len(parts[1]) < len(parts[2])


def test_prompting_and_fine_tuning_run(benchmarks, tiny, monkeypatch, tmp_path, capsys):
    prompting, tuned = benchmarks["prompting"], benchmarks["finetuned_vs_prompted"]
    for module in (prompting, tuned):
        monkeypatch.setattr(module, "SHOTS", (0, 2))
    monkeypatch.setattr(prompting, "WORDING_SHOTS", (0, 1))
    schema = Item("schema", ("the shape\n\n", "the type\n\n"), ("of the array is a tuple",), 1, passage="of the array")
    tasks = {
        "copying": choices(6), "section": Task("section", [Item("schema", tuple(f"{n}\n" for n in prompting.SECTIONS), ("a tuple",), 3)] * 4, [schema] * 3),
        "summary": Task("summary", [schema] * 4, [schema] * 3),
    }  # fmt: skip
    tasks["section"] = dataclasses.replace(tasks["section"], examples=tasks["section"].items)
    monkeypatch.setattr(prompting, "TASKS", dict.fromkeys(tasks, 0))
    monkeypatch.setattr(prompting, "make_task", tasks.__getitem__)
    yes = Item("choice", ("",), (" yes", " no"), 1, passage="the array")
    monkeypatch.setattr(prompting, "yes_or_no", lambda: Task("yes or no", [yes] * 4, [yes] * 2))
    monkeypatch.setattr(prompting, "draw", lambda report, file: None)
    flags = ["--updates", 2, "--runs", tmp_path / "runs"]
    call(prompting, monkeypatch, "--models", "1x32", "--output", tmp_path / "p.json", *flags)
    report, said = json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))["models"]["1x32"], capsys.readouterr().out
    assert list(report["shots"]["copying"]["shots"]) == ["0", "2"] and report["shots"]["copying"]["shots"]["0"]["difference"] == [0, 0, 0]
    assert report["wordings"]["yes or no"]["question last"]["1"]["by_answer"] in ([0], [1]) and "| section | then Label: | 1x32 |" in said
    with pytest.raises(InvalidInput, match="models: '1y32', expected layers x channels, such as 4x128"):
        call(prompting, monkeypatch, "--models", "1y32", *flags)

    rows = [tuned.LabeledText(f"{TEXT} {i}"[-40:], tuned.SECTIONS[i % 5], f"row {i}", i) for i in range(60)]
    monkeypatch.setattr(tuned, "load_labeled", lambda name: tuned.Split(rows[:40], rows[40:50], rows[50:]))
    monkeypatch.setattr(tuned, "split", lambda data, seed: data)
    monkeypatch.setattr(tuned, "tfidf", lambda parts: 0.5)
    same = ["--small", "1x32", "--large", "1x32", "--seeds", 0, 1, "--epochs", 1]
    call(tuned, monkeypatch, *same, "--updates", 2, 2, "--output", tmp_path / "t.json", "--runs", tmp_path / "runs")
    found, said = json.loads((tmp_path / "t.json").read_text(encoding="utf-8")), capsys.readouterr().out
    assert [each["training_rows"] for each in found["fine_tuned"]] == [40, 40] and found["test_rows"] == 10
    best = found["prompts"]["large"][found["best_prompt"]["large"]]
    assert best["validation"][0] == max(each["validation"][0] for each in found["prompts"]["large"].values())
    mean = np.mean([each["accuracy"] for each in found["fine_tuned"]])
    assert found["difference"][0] == pytest.approx(mean - best["test"][0], abs=1e-3) and "fine-tuned 1x32 minus prompted 1x32" in said


def test_scoring_is_measured(benchmarks, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--quick", "--no-peers", "--rounds", "1", "--output", str(tmp_path / "e.json")])
    benchmarks["evaluate"].main()
    assert "for 8 items" in capsys.readouterr().out and not (tmp_path / "e.json").exists()


def test_the_page_has_the_results_that_are_committed(benchmarks):
    page = (BENCHMARKS.parent / "docs" / "prompting.md").read_text(encoding="utf-8").replace("**", "")
    results = {name: json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8")) for name in NAMES[:3]}
    for report in results["prompting"]["models"].values():
        for task in report["shots"].values():
            assert " | ".join(f"{each['score'][0]:.3f}" for each in task["shots"].values()) in page
            assert not any(each["n_cut"] for each in task["shots"].values())
        for ways in report["wordings"].values():
            for way in ways.values():
                assert all(f"| {each['score'][0]:.3f} |" in page for each in way.values())
    for curve, law in results["scaling"]["fits"].items():
        f = law["power law"]
        assert (
            f"{f['exponent']:.3f} ({f['low']:.3f} to {f['high']:.3f}) | {', '.join(f'{x:.3f}' for x in law['between neighbors'])}" in page
        )
        assert not law["floor_is_seen"]
        for x, group in benchmarks["scaling"].by_x(results["scaling"]["rows"], curve):
            assert f"| {x:,.0f}" in page and f"| {np.mean([row['nats'] for row in group]):.3f} |" in page
    tuned = results["finetuned_vs_prompted"]
    assert f"ahead by {tuned['difference'][0]:.3f} ({tuned['difference'][1]:.3f} to {tuned['difference'][2]:.3f})" in page
    for each in (entry["test"][:3] for entry in tuned["prompts"]["large"].values()):
        assert f"{each[0]:.3f} ({each[1]:.3f} to {each[2]:.3f})" in page or f"{each[0]:.3f}" in page
