"""What curation costs and is worth: the size of the extra, the dirt that is planted, what counts as copied, and the tables of the page."""

import importlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def benchmark():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("curation")


@given(st.text("ab\u00e9", max_size=12), st.text("ab\u00e9", max_size=20), st.integers(1, 6))
def test_a_window_is_known_if_its_bytes_are(benchmark, new, old, n):
    here, there = new.encode(), old.encode()
    windows = [[text[i : i + n] for i in range(len(text) - n + 1)] for text in (here, there)]
    hashes = [benchmark.windows_of(text, n).tolist() for text in (new, old)]
    assert [*map(len, hashes)] == [*map(len, windows)]
    assert bool({*hashes[0]} & {*hashes[1]}) == bool({*windows[0]} & {*windows[1]})


def test_a_text_is_a_copy_from_50_bytes_on(benchmark):
    rng = np.random.default_rng(0)
    old = "".join(rng.choice([*"abcdefghij"], size=300))
    known = np.unique(benchmark.windows_of(old))
    written = [f"x{old[100:149]}y", f"x{old[100:150]}y", old[250:], "", old]
    assert [benchmark.share_copied([text], known) for text in written] == [0, 1, 1, 0, 1]
    assert benchmark.share_copied(written, known) == 0.6


def test_the_dirty_corpus_has_the_dirt_that_the_page_says(benchmark):
    for name in ("num2words", "babel"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e .[translate]")
    n_clean = 45
    found = benchmark.dirty_corpus(0, n_clean)
    assert sum(d.source == "clean" for d in found) == n_clean
    by_source = Counter(d.source for d in found)
    assert by_source["junk"] == by_source["foreign"] == n_clean // 3
    copies = Counter(d.id.partition("/")[2] for d in found if d.id.startswith("exact"))
    assert len(copies) == n_clean // 5 and set(copies.values()) <= {*range(2, 21)}
    with_boilerplate = sum(any(text in d.text for text in benchmark._BOILERPLATE) for d in found if d.source == "clean")
    assert abs(with_boilerplate - n_clean / 3) < 4 * (n_clean * 2 / 9) ** 0.5
    assert len({d.id for d in found}) == len(found)


def test_the_extra_is_small_and_brings_no_torch(benchmark):
    found = benchmark.measure_size(("curate",))
    assert "numpy" in found["core"]["packages"] and found["core"]["mb"] > 30
    if "curate" not in found:
        pytest.skip("the extra curate is not installed: pip install -e .[curate]")
    assert found["curate"]["mb"] <= 170 and "datatrove" in found["curate"]["packages"]
    assert not {"torch", "scikit-learn", "pyarrow", "numpy"} & {*found["curate"]["packages"]}


def rows(benchmark, conditions, seeds=(0, 1, 2)):
    return [
        {"condition": c, "seed": seed, "updates": 1600, "documents": 1000, "bytes": 10**6, "epochs": 2.0, "bits_per_byte": 1.3 + i / 10 + seed / 100,
         "copied": 0.1, "memorized": 0.4 - i / 20}
        for i, c in enumerate(conditions) for seed in seeds
    ]  # fmt: skip


def test_the_tables_show_means_over_seeds(benchmark):
    made = rows(benchmark, ["as it is", "rules", "near-copies"])
    lines = benchmark.worth_table(made).splitlines()
    assert lines[2:4] == [
        "| as it is | 1,000 | 1.0 | 2.0 | 1.3100 ± 0.0100 | 10.0% | 40.0% |",
        "| rules | 1,000 | 1.0 | 2.0 | 1.4100 ± 0.0100 | 10.0% | 35.0% |",
    ]
    lee = next(line for line in benchmark.published_table(made).splitlines() if "Lee" in line)
    assert lee.endswith("| bits per byte 1.4100 to 1.5100, memorized 35.0% to 30.0% |")
    assert [line.count("|") for line in benchmark.published_table([]).splitlines()] == [4] * 6


def test_the_page_has_the_tables_of_the_results(benchmark):
    results = json.loads((ROOT / "benchmarks" / "results" / "curation.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "curation.md").read_text(encoding="utf-8")
    for name, table in benchmark.tables(results).items():
        assert table in page, f"{name}: `python benchmarks/curation.py tables` prints what docs/curation.md should have"
    costs = importlib.import_module("curation_copies")
    report = json.loads((ROOT / "benchmarks" / "results" / "curation_copies.json").read_text(encoding="utf-8"))
    for table in costs.tables(report).split("\n\n"):
        assert table in page, "`python benchmarks/curation_copies.py` prints what docs/curation.md should have"
