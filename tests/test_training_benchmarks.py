"""benchmarks/ablations.py, recipes.py, train_step.py and muon.py: pairs, intervals, counts of updates and tables, with a small text."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from tests.benchmark_scripts import BENCHMARKS, fixture_of
from tinygpt import GPT, GPTConfig
from tinygpt.errors import InvalidInput
from tinygpt.recipes import RECIPES
from tinygpt.training.optimizers import hidden_matrices

NAMES = ("ablations", "recipes", "train_step", "muon")


benchmarks = fixture_of(*NAMES)


@pytest.fixture
def tiny(benchmarks, monkeypatch):
    """31 tokens again and again, models of one layer, rates from a few updates, one process."""
    ablations, tokens = benchmarks["ablations"], np.tile(np.arange(31), 60)
    text = ablations.Text(tokens, tokens[:200], 31)
    for module in (ablations, benchmarks["recipes"]):
        monkeypatch.setattr(module, "read_text", lambda which: text)
    monkeypatch.setattr(ablations, "_PROBE", 5)
    for name, (model, training) in list(RECIPES.items()):
        small = dataclasses.replace(model, n_layer=1, n_head=2, n_embd=16, n_positions=16)
        changed = dataclasses.replace(training, steps=16, warmup_steps=1, micro_batch=2, processes=1)
        monkeypatch.setitem(RECIPES, name, (small, changed))
    return text


def call(module, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, flags)])
    module.main()


def test_the_interval_is_students(benchmarks):
    interval = benchmarks["ablations"].interval
    assert interval([1.0, 2.0, 3.0]) == "+2.000 (-0.484 to +4.484)"  # 2 +- 4.3027 / sqrt(3), its quantile from the tables
    stats = pytest.importorskip("scipy.stats")
    for n in (3, 4, 5):
        found = np.random.default_rng(n).standard_normal(n)
        low, high = stats.t.interval(0.95, n - 1, found.mean(), stats.sem(found))
        assert interval(list(found)) == f"{found.mean():+.3f} ({low:+.3f} to {high:+.3f})"


@pytest.mark.parametrize("seeds", [(0, 1), (0, 0, 1), (0, 1, 2, 3, 4, 5)])
def test_an_interval_needs_three_to_five_different_seeds(benchmarks, monkeypatch, seeds):
    with pytest.raises(InvalidInput, match=r"seeds: 0 [ \d]+, expected three to five different ones"):
        call(benchmarks["ablations"], monkeypatch, "cosine", "--seeds", *seeds)


def test_an_unknown_switch_is_named(benchmarks, monkeypatch):
    with pytest.raises(InvalidInput, match=r"switch: 'cosin', expected all, or some of .*; did you mean 'cosine'"):
        call(benchmarks["ablations"], monkeypatch, "cosin")


def test_a_change_is_paired_with_the_run_without_it(benchmarks, tiny, monkeypatch, tmp_path, capsys):
    output = tmp_path / "ablations.json"
    call(benchmarks["ablations"], monkeypatch, "cosine", "batch 16", "--minutes", 0.0005, "--output", output)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert set(found) == {"cosine, time, report", "batch 16, time, report"} and found["cosine, time, report"]["changes"] == {
        "schedule": "cosine"
    }
    for entry in found.values():
        assert entry["seeds"] == [0, 1, 2] and len(entry["without"]) == len(entry["with"]) == 3
        assert entry["differences"] == [a["nats"] - b["nats"] for a, b in zip(entry["with"], entry["without"], strict=True)]
        assert len({run["updates"] for run in entry["without"]}) == 1 == len({run["updates"] for run in entry["with"]})
    out = capsys.readouterr().out
    assert "cosine             seed 2 " in out and "batch 16           " in out
    call(benchmarks["ablations"], monkeypatch, "cosine", "--unit", "tokens", "--output", output)
    found = json.loads(output.read_text(encoding="utf-8"))
    assert len(found) == 3  # what was there stays
    assert [run["tokens"] for run in found["cosine, tokens, report"]["with"]] == [16 * 2 * 16] * 3


def test_the_same_tokens_are_fewer_updates_of_a_larger_batch(benchmarks, tiny):
    ablations = benchmarks["ablations"]
    counts = ablations.n_updates(["batch 16", "6 layers"], ablations.Config(unit="tokens"), tiny)
    assert counts == {"without": 16, "batch 16": 2, "6 layers": 16}


def test_what_costs_no_time_gets_as_many_updates(benchmarks, tiny, monkeypatch):
    ablations = benchmarks["ablations"]
    monkeypatch.setattr(ablations, "rates", lambda changes, text, seed: [0.1, *(0.2 for _ in changes[1:])])
    counts = ablations.n_updates(["cosine", "swiglu", "more decay"], ablations.Config(minutes=1.0), tiny)
    assert counts == {"without": 600, "cosine": 600, "more decay": 600, "swiglu": 300}
    assert ablations.n_updates(["cosine"], ablations.Config(minutes=1.0), tiny) == {"without": 600, "cosine": 600}


def test_every_switch_changes_something(benchmarks):
    ablations = benchmarks["ablations"]
    base = ablations.with_changes({})
    assert base == RECIPES["tinygpt"] and ablations.with_changes({"recipe": "gpt2"}) == RECIPES["gpt2"]
    for name, changes in ablations.SWITCHES.items():
        assert ablations.with_changes(changes) != base, name


def test_the_recipes_take_turns_and_end_together(benchmarks, tiny, monkeypatch, tmp_path, capsys):
    output = tmp_path / "recipes.json"
    monkeypatch.setattr(benchmarks["recipes"], "rates", lambda changes, text, seed: [0.1, 0.125])
    call(benchmarks["recipes"], monkeypatch, "--shares", 1.0, 0.5, "--output", output)
    runs = json.loads(output.read_text(encoding="utf-8"))["runs"]
    assert list(runs) == ["gpt2", "tinygpt, 100% of the minutes", "tinygpt, 50% of the minutes"]
    assert [run["updates"] for run in runs["gpt2"]] == [16, 16, 16]
    assert [[run["updates"] for run in runs[name]] for name in list(runs)[1:]] == [[12] * 3, [6] * 3]
    assert "compared with gpt2" in capsys.readouterr().out


def test_figures_keep_the_machine_that_they_are_of(benchmarks):
    train_step = benchmarks["train_step"]
    machine = {
        "date": "2026-01-02",
        "processor": "A",
        "threads": 2,
        "blas": "openblas 1",
        "blas_pinned_by": [],
        "matmul_2048_gflops": 90,
        "numpy": "2",
    }
    side = {"median_s": 2.0, "peak_mb": 200.0, "state_mb": 50.0, "gflops": 100.0}
    first = {"machine": machine, "tinygpt": side, "PyTorch": side | {"median_s": 3.0, "gflops": 80.0}, "products": side | {"median_s": 1.6}}
    second = {"machine": machine | {"processor": "B"}, "tinygpt": side}
    text = train_step.markdown({"sizes": {"S": first, "M": second, "L": first}})
    assert "S, L: 2026-01-02, A, 2 threads" in text and "\nM: 2026-01-02, B, 2 threads" in text
    assert "| S | 1.50 x | - | - | - | - | - | - | 1.25 | 100 and 80 GFLOP/s |" in text
    assert "nan" not in text and "- and" not in text


def test_the_products_alone_are_those_of_the_step(benchmarks, monkeypatch):
    """As many multiplications and additions, in the same shapes."""
    from step_profile import Products, products_of

    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(shape, dtype=np.float32) for shape in ((6, 4), (4, 5), (3, 5, 4)))

    def step():
        np.matmul(a, b)
        np.matmul(np.matmul(c, b), a.T[:4, :5].T[:5])

    alone, seen = products_of(step), Products(min_flops=1)
    monkeypatch.setattr(np, "matmul", seen)
    seen.on = True
    step()
    wanted, seen.calls = sorted(str(call) for call, _ in seen.calls), []
    alone()
    assert sorted(str(call) for call, _ in seen.calls) == wanted


def test_half_of_a_symmetric_product_is_what_counts(benchmarks):
    """One matrix (C, C), five polynomials: x x^T and A A^T take half of 2 C^3 each, b A + c A^2 times x all of it."""
    from autograd.optim import Muon

    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=8, vocab_size=64))
    names = hidden_matrices(model)
    muon = Muon([(name, p) for name, p in model.named_parameters() if name in names], matrices=names)
    assert 1 / 2 < benchmarks["muon"].symmetric_cost(muon) / muon.cost() < 1


def test_the_page_shows_the_measured_differences(benchmarks):
    page = (BENCHMARKS.parent / "docs" / "ablations.md").read_text(encoding="utf-8")
    results = BENCHMARKS / "results"
    for name, entry in json.loads((results / "ablations.json").read_text(encoding="utf-8")).items():
        assert benchmarks["ablations"].interval(entry["differences"]) in page, name
    runs = json.loads((results / "recipes.json").read_text(encoding="utf-8"))["runs"]
    for name, entries in runs.items():
        pairs = [mine["nats"] - theirs["nats"] for mine, theirs in zip(entries, runs["gpt2"], strict=True)]
        assert name == "gpt2" or benchmarks["ablations"].interval(pairs) in page.replace("**", ""), name
