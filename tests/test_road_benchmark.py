"""benchmarks/road.py: its batches and scores, and all of it with a few pairs for a second."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from tinygpt.data.pairs import Pair, PairBatches, Pairs

ROOT = Path(__file__).parent.parent


@pytest.fixture
def road(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))  # the script adds to it
    spec = importlib.util.spec_from_file_location("road_benchmark", ROOT / "benchmarks" / "road.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "road_benchmark", module)
    spec.loader.exec_module(module)
    return module


def few_pairs(n, first):
    words = {"one": "eins", "two": "zwei", "ten": "zehn", "six": "sechs"}
    pairs = []
    for i in range(first, first + n):
        sources = [list(words)[(i * 7 + k * k) % 4] for k in range(i % 8 + 1)]
        kind = f"sentences of {len(sources)}" if len(sources) > 1 else "single numbers"
        pairs.append(Pair(f"line {i}", ", ".join(sources), ", ".join(words[word] for word in sources), kind))
    return pairs


def test_batches_have_each_pair_once_and_are_as_large_as_allowed(road, monkeypatch):
    monkeypatch.setattr(road, "TARGETS_PER_BATCH", 20)
    lengths = [3, 30, 1, 5, 5, 9, 2, 4, 4]
    items = PairBatches([np.ones(n, int) for n in lengths], [np.ones(n, int) for n in lengths], 0)
    parts = road.by_length(items, np.arange(len(lengths)))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(lengths)))
    assert all(len(part) == 1 or len(part) * max(lengths[i] for i in part) <= 20 for part in parts) and [1] in [p.tolist() for p in parts]


def test_scores_are_by_the_number_of_parts(road):
    assert road.common_words("eins, zwei, drei", "eins, drei") == pytest.approx(2 / 3)
    assert road.common_words("", "") == 0 and road.common_words("zwei eins", "eins zwei") == 0.5
    pairs = few_pairs(16, 0)
    texts = [pair.target for pair in pairs]
    texts[9] = "zehn"
    scores = road.scores(texts, pairs)
    assert list(scores["exact"]) == [str(n) for n in range(1, 9)] and scores["n"] == {str(n): 2 for n in range(1, 9)}
    assert scores["exact"]["2"] == 0.5 and {share for n, share in scores["exact"].items() if n != "2"} == {1}
    assert scores["source_words"]["8"] == 8 and scores["words"]["2"] < 1


def test_it_runs_keeps_what_is_done_and_draws(road, monkeypatch, tmp_path, capsys):
    parts = [few_pairs(64, 0), few_pairs(16, 100), few_pairs(16, 200)]
    monkeypatch.setattr(road, "load_pairs", lambda name, n_numbers: Pairs(name, "", ("", ""), *parts))
    monkeypatch.setattr(road, "CHANNELS", 16)
    monkeypatch.setattr(road, "VOCABULARY", 280)
    monkeypatch.setattr(road, "TURN_S", 0.02)
    drawn = []
    monkeypatch.setattr(road, "draw", lambda runs, minutes, file: drawn.append((list(runs), file)))
    output = tmp_path / "road.json"

    def call(*seeds):
        flags = ["road.py", "--minutes", "0.001", "--rates", "0.002", "0.01", "--output", str(output), "--seeds", *seeds]
        monkeypatch.setattr(sys, "argv", flags)
        road.main()
        return json.loads(output.read_text(encoding="utf-8")), capsys.readouterr().out

    first, said = call("0")
    assert "  at the end of the range" in said and list(first["runs"]) == ["0"]
    weights = [run["weights"] for run in first["runs"]["0"].values()]
    assert list(first["runs"]["0"]) == list(road.MODELS) and max(weights) < 1.05 * min(weights)
    for name, run in first["runs"]["0"].items():
        assert run["updates"] > 0 and run["minutes"] >= 0.001 and len(run["exact"]) == 8, name
        assert first["rates"][name]["losses"].keys() == {"0.002", "0.01"}
    both, _ = call("0", "1")
    assert both["runs"]["0"] == first["runs"]["0"] and both["rates"] == first["rates"] and list(both["runs"]) == ["0", "1"]
    assert drawn == [(["0"], output.with_suffix(".png")), (["0", "1"], output.with_suffix(".png"))]
    with pytest.raises(ValueError, match=r"road: minutes 0.001, seeds .*, rates .*, expected minutes > 0"):
        monkeypatch.setattr(sys, "argv", "road.py --minutes 0.001 --rates 0.01 0.002".split())
        road.main()
