"""Mixing: shares and epochs, each document as often as it should be, the same order from wherever one begins; and training on the result."""

import contextlib
import json
import runpy
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import seeds
from tests.tinygpt.helpers import checkpoint_directory
from tinygpt.curate.documents import Document, read_shard, write_shard
from tinygpt.curate.mixing import SIDES, Mixing, source_rows
from tinygpt.curate.mixture import Size, epochs, mix, permuted, shares
from tinygpt.data.curated import read_manifest
from tinygpt.data.streaming import CuratedCorpus, open_corpus, texts_for_tokenizer, token_stream
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.data.windows import encode_documents

ROOT = Path(__file__).parent.parent.parent
SIZES = st.lists(st.tuples(st.integers(1, 20), st.integers(20, 60)), min_size=1, max_size=3)  # documents, bytes of each


@st.composite
def mixtures(draw):
    sizes = {f"s{i}": Size(n, n * each) for i, (n, each) in enumerate(draw(SIZES))}
    weights = {name: draw(st.floats(0.2, 1)) for name in sizes} if draw(st.booleans()) else None
    temperature = 1.0 if weights else draw(st.sampled_from([0.5, 1.0, 3.0]))
    everything = sum(size.size for size in sizes.values())
    total = draw(st.sampled_from([0.0, 0.3, 4.0])) * everything
    return mix(sizes, weights, temperature=temperature, total=total, seed=draw(seeds))


# GPT-3's mixture ------------------------------------------------------------------------------------------------------------

GPT3 = {  # billions of tokens, share in percent, epochs as printed. Brown et al. 2020, table 2.2: "training for 300 billion tokens"
    "Common Crawl": (410, 60, 0.44), "WebText2": (19, 22, 2.9), "Books1": (12, 8, 1.9), "Books2": (55, 8, 0.43), "Wikipedia": (3, 3, 3.4),
}  # fmt: skip


def test_the_table_of_gpt3_follows_from_its_shares_as_far_as_its_rounding_allows():
    """Four of the five epochs lie between those of the extremes that round to the printed sizes and shares. WebText2's 2.9 does not: 19 billion
    tokens at 22 % of 300 billion are read 3.5 times."""
    sizes = {name: row[0] for name, row in GPT3.items()}
    percent = {name: row[1] for name, row in GPT3.items()}
    assert sum(percent.values()) == 101 and sum(sizes.values()) == 499
    ours = epochs(sizes, {name: p / 100 for name, p in percent.items()}, 300)
    assert {name: round(e, 2) for name, e in ours.items()} == {
        "Common Crawl": 0.44, "WebText2": 3.47, "Books1": 2.0, "Books2": 0.44, "Wikipedia": 3.0,
    }  # fmt: skip
    fits = {}
    for name, (size, share, printed) in GPT3.items():
        low, high = (epochs({name: size + s}, {name: (share - s) / 100}, 300)[name] for s in (0.5, -0.5))
        digit = 0.005 if printed < 1 else 0.05
        fits[name] = low - digit <= printed <= high + digit
    assert fits == {name: name != "WebText2" for name in GPT3}
    # and of a mixture, whose shares add up to 1
    mixture = mix({name: Size(100 * size, size) for name, size in sizes.items()}, percent, total=300)
    assert {s.name: round(s.epochs, 1) for s in mixture.sources} == {
        "Common Crawl": 0.4, "WebText2": 3.4, "Books1": 2.0, "Books2": 0.4, "Wikipedia": 3.0,
    }  # fmt: skip


# Shares ---------------------------------------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 10**9), min_size=1, max_size=6), temperature=st.floats(0.3, 50))
def test_temperature_makes_shares_more_equal_and_keeps_their_order(sizes, temperature):
    named = {str(i): float(size) for i, size in enumerate(sizes)}
    plain, found = shares(named), shares(named, temperature=temperature)
    assert sum(found.values()) == pytest.approx(1) and plain == pytest.approx({k: v / sum(sizes) for k, v in named.items()})
    largest, smallest = max(named, key=named.get), min(named, key=named.get)
    assert found[largest] / found[smallest] == pytest.approx((named[largest] / named[smallest]) ** (1 / temperature))


def test_wrong_shares_are_refused():
    sizes = {"wiki": 5.0, "books": 7.0}
    for options, message in (
        ({"weights": {"wiki": 1.0}}, r"weights: wiki, expected one for each of wiki, books; 'books' is the difference|did you mean"),
        ({"weights": {"wiki": 1.0, "book": 2.0}}, r"expected one for each of wiki, books; did you mean 'books'\?"),
        ({"weights": {"wiki": 1.0, "books": 0.0}}, r"expected all of them positive; leave out a source"),
        ({"temperature": 0.0}, r"temperature: 0.0, expected more than 0; 1 takes sources in proportion"),
        ({"temperature": 2.0, "weights": {"wiki": 1.0, "books": 1.0}}, r"temperature: 2.0 with weights, expected one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            shares(sizes, **options)
    with pytest.raises(ValueError, match=r"source 'books': no text is left of it, expected some to mix"):
        shares({"wiki": 5.0, "books": 0.0})
    with pytest.raises(ValueError, match=r"mixture: a total of -1, expected a size >= 0; 0 takes as much"):
        mix({"wiki": Size(1, 5)}, total=-1)
    with pytest.raises(ValueError, match=r"validation_fraction: 1.0, expected more than 0 and less than 1"):
        Mixing(Path(), {}, validation_fraction=1.0)


# The order ------------------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 300), key=seeds)
def test_a_permutation_is_one_and_has_an_inverse(n, key):
    found = permuted(np.arange(n), n, key)
    np.testing.assert_array_equal(np.sort(found), np.arange(n))
    np.testing.assert_array_equal(permuted(found, n, key, inverse=True), np.arange(n))


def test_permutations_are_spread_evenly():
    """All 24 orders of four, over 2,400 keys: chi-square with 23 degrees of freedom exceeds 60 once in 26,000 times."""
    counts = Counter(tuple(permuted(np.arange(4), 4, key).tolist()) for key in range(2400))
    assert len(counts) == 24 and sum((n - 100) ** 2 / 100 for n in counts.values()) < 60


@given(mixture=mixtures())
def test_no_document_comes_twice_before_another_has_come_once(mixture):
    seen = {i: Counter() for i in range(len(mixture.sources))}
    for place in mixture.part(0, 1):
        count = seen[place.source]
        count[place.document] += 1
        n = mixture.sources[place.source].documents
        assert count[place.document] == -(-count.total() // n), "an epoch began before the one before had ended"
    for i, source in enumerate(mixture.sources):
        numbers = [seen[i][document] for document in range(source.documents)]
        assert sum(numbers) == source.drawn and max(numbers) - min(numbers) <= 1


@given(mixture=mixtures())
def test_proportions_hold_at_every_moment(mixture):
    taken, total = Counter(), mixture.documents
    for position, place in enumerate(mixture.part(0, 1), start=1):
        taken[place.source] += 1
        for i, source in enumerate(mixture.sources):
            assert abs(taken[i] - position * source.drawn / total) <= 1 + len(mixture.sources) / 2


@given(mixture=mixtures(), n_parts=st.integers(1, 12), data=st.data())
def test_the_order_is_the_same_from_wherever_one_begins(mixture, n_parts, data):
    everything = mixture.part(0, 1)
    parts = [mixture.part(k, n_parts) for k in range(n_parts)]
    assert [place for part in parts for place in part] == everything
    position = data.draw(st.integers(0, mixture.documents - 1))
    source = mixture.sources[place.source if (place := everything[position]) else 0]
    found = mixture.appearances(source.name, np.arange(source.documents), n_parts)
    assert sorted(found) == sorted(
        (place.document, k, place) for k, part in enumerate(parts) for place in part if mixture.sources[place.source] is source
    )


def test_another_seed_is_another_order_and_each_epoch_has_its_own():
    one, other = (mix({"a": Size(50, 50)}, total=100, seed=seed).part(0, 1) for seed in (0, 1))
    documents = [place.document for place in one]
    assert documents != [place.document for place in other] and documents[:50] != documents[50:]


# The folder -----------------------------------------------------------------------------------------------------------------


def _documents(n, seed=0):
    rng = np.random.default_rng(seed)
    for i in range(n):
        words = " ".join(f"{rng.choice(['a', 'b', 'c'])}{k}" for k in range(rng.integers(5, 60)))
        yield Document(f"s{i % 3}/{i}", f"document {i}: {words}\n", f"s{i % 3}", {"group": f"g{i // 2}"})


def _run(function, n_tasks, name):
    return [function(task, n_tasks) for task in range(n_tasks)]


def curated(folder, n=300, n_shards=3, **options):
    """A curated folder of small documents in three sources, and the report of mixing."""
    documents, inputs = list(_documents(n)), []
    for k in range(n_shards):
        inputs.append(folder / f"in-{k}.jsonl.gz")
        write_shard(inputs[-1], documents[k * n // n_shards : (k + 1) * n // n_shards])
    mixing = Mixing(folder / "out", {f"s{i}": f"license {i}" for i in range(3)}, **{"part_bytes": 1 << 13, **options})
    (report,) = mixing.run(inputs, folder / "work", _run)
    return folder / "out", report


def test_a_folder_holds_the_mixture_and_no_group_is_divided(tmp_path):
    folder, report = curated(tmp_path, weights={"s0": 0.6, "s1": 0.3, "s2": 0.1})
    manifest = read_manifest(folder)
    sides = {side: [d for shard in getattr(manifest, side) for d in read_shard(folder / shard.file)] for side in SIDES}
    groups = {side: {document.metadata["group"] for document in sides[side]} for side in SIDES}
    assert not groups["train"] & groups["validation"] and len(groups["train"] | groups["validation"]) > 140
    assert 0.05 < len(sides["validation"]) / 300 < 0.15 and len({d.id for d in sides["validation"]}) == len(sides["validation"])
    originals = {document.id: document for document in _documents(300)}
    for i, source in enumerate(manifest.sources):
        drawn = [document for document in sides["train"] if document.source == source.name]
        counts = Counter(document.id for document in drawn)
        assert all(originals[document.id] == document for document in drawn) and source.license == f"license {i}"
        assert max(counts.values()) - (min(counts.values()) if len(counts) == source.documents else 0) <= 1
        assert len(drawn) == source.drawn and sum(len(d.text.encode()) for d in drawn) == source.drawn_bytes
        assert source.drawn_bytes / sum(s.drawn_bytes for s in manifest.sources) == pytest.approx(source.share, abs=0.03)
        assert report.flows[source.name].documents_out == source.drawn + source.validation_documents
    assert [row.epochs for row in source_rows(manifest)] == [source.epochs for source in manifest.sources]
    assert len(manifest.train) > 3 and {d.source for d in read_shard(folder / manifest.train[0].file)} == {"s0", "s1", "s2"}


def test_the_output_does_not_depend_on_how_the_input_is_divided(tmp_path):
    for name, n_shards in (("a", 1), ("b", 7)):
        (tmp_path / name).mkdir()
        curated(tmp_path / name, n_shards=n_shards)
    one, other = (read_manifest(tmp_path / name / "out") for name in "ab")
    assert one == other and one.fingerprint == other.fingerprint
    for shard in [*one.train, *one.validation]:
        assert (tmp_path / "a" / "out" / shard.file).read_bytes() == (tmp_path / "b" / "out" / shard.file).read_bytes()
    assert all(source.epochs == 1 for source in one.sources)  # without weights each document once


def test_few_documents_are_split_all_the_same(tmp_path):
    folder, report = curated(tmp_path, n=4, n_shards=1, validation_fraction=1e-9, weights={"s0": 1.0, "s1": 1.0, "s2": 98.0})
    manifest = read_manifest(folder)
    assert sum(shard.documents for shard in manifest.validation) == 2  # a group of two
    assert any(
        "repetitions teach little" in warning or "no document of it is in the training text" in warning for warning in report.warnings
    )
    with pytest.raises(ValueError, match=r"validation_fraction: 0.999999999, no document is left to train on, .*; lower it"):
        curated(tmp_path, n=40, validation_fraction=1 - 1e-9)
    (tmp_path / "one").mkdir()
    with pytest.raises(ValueError, match="split: one group of near copies is left, expected at least two groups"):
        curated(tmp_path / "one", n=2, n_shards=1)


def test_a_source_of_validation_text_only_is_in_manifest_and_report(tmp_path):
    folder, report = curated(tmp_path, n=4, n_shards=1, validation_fraction=0.5, seed=4)
    manifest = read_manifest(folder)
    assert [(s.name, s.documents, s.validation_documents, s.epochs) for s in manifest.sources] == [
        ("s0", 1, 1, 1.0),
        ("s1", 1, 0, 1.0),
        ("s2", 0, 1, 0.0),
    ]
    assert {name: flow.documents_out for name, flow in report.flows.items()} == {"s0": 2, "s1": 1, "s2": 1}
    assert source_rows(manifest)[2].validation + source_rows(manifest)[2].documents == 1


def test_weights_and_temperature_are_checked_before_anything_is_done(tmp_path):
    for options, message in (
        ({"temperature": 0.0}, "temperature: 0.0, expected more"),
        ({"temperature": 2.0, "weights": {"a": 1.0}}, "with weights"),
    ):
        with pytest.raises(ValueError, match=message):
            Mixing(tmp_path, {"a": ""}, **options)


# Training on it -------------------------------------------------------------------------------------------------------------


def test_a_curated_folder_is_a_corpus_on_the_disk(tmp_path):
    folder, _ = curated(tmp_path)
    corpus = open_corpus(folder, validation_fraction=0.5)
    assert isinstance(corpus, CuratedCorpus) and corpus.name == "out" and corpus.fingerprint == read_manifest(folder).fingerprint
    assert "3 sources: s0 3" in corpus.source and "%, 1 epoch, license license 0" in corpus.source
    texts = {side: [d.text for shard in getattr(corpus.manifest, side) for d in read_shard(folder / shard.file)] for side in SIDES}
    assert {side: [text for text, ends in corpus.pieces(side) if ends] for side in SIDES} == texts
    assert corpus.n_bytes("train") == sum(len(text.encode()) for text in texts["train"])
    assert list(texts_for_tokenizer(corpus, "bpe")) == texts["train"]
    assert 50 < sum(len(text) for text in corpus.sample(2000)) < 4000
    tokenizer = BPETokenizer.train(texts["train"], 300)
    for side in SIDES:
        ids = token_stream(corpus, side, tokenizer, tmp_path / "cache")
        assert isinstance(ids, np.memmap)
        np.testing.assert_array_equal(ids, encode_documents(texts[side], tokenizer))


def test_a_folder_that_is_not_complete_is_refused(tmp_path):
    folder, _ = curated(tmp_path, n=30)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    shard = folder / manifest["train"][0]["file"]
    data = shard.read_bytes()

    def refused(message, kind=ValueError):
        with pytest.raises(kind, match=message):
            list(open_corpus(folder).pieces("train"))

    def changed(**values):
        (folder / "manifest.json").write_text(json.dumps(manifest | values), encoding="utf-8")

    shard.unlink()
    refused(r"00000.jsonl.gz: no such file, expected it as manifest.json lists it; restore it", FileNotFoundError)
    shard.write_bytes(data[:-1])
    refused(rf"00000.jsonl.gz: {len(data) - 1} bytes, expected {len(data)} as in manifest.json")
    shard.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    refused(r"00000.jsonl.gz: sha256 [0-9a-f]{12}, expected [0-9a-f]{12} as in manifest.json")
    shard.write_bytes(data)
    changed(version=2)
    refused(r"manifest.json: 'tinygpt curated corpus', version 2, expected 'tinygpt curated corpus', version 1; curate it again")
    changed(train=manifest["train"][:-1])
    refused(r"manifest.json: files that do not give its fingerprint, expected those of the curation")
    changed(train=[{"file": "x"}])
    refused(r"manifest.json: .*, expected what a curation writes")
    changed(format="something else")
    refused(r"no text among \d+ files, expected \*.txt or \*.md")


def test_a_run_on_a_curated_folder_resumes_bit_for_bit(tmp_path, monkeypatch, capsys):
    folder, _ = curated(tmp_path, weights={"s0": 0.5, "s1": 0.25, "s2": 0.25})
    flags = "--n-layer 1 --n-head 2 --n-embd 16 --n-positions 16 --vocab-size 300 --micro-batch 2 --eval-batches 2 --sample-tokens 4"
    new = [*flags.split(), "--eval-every", 3, "--steps", 6, "--processes", 1, "--corpus", folder]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed: pictures take longer than training here
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path / "cache"))

    def pretrain(*argv):
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, argv)])
        with contextlib.suppress(SystemExit):  # as after a signal, if it stops early
            runpy.run_path(str(ROOT / "examples" / "pretrain.py"), run_name="pretrain")["main"]()
        return capsys.readouterr().out

    pretrain(*new, "--run", "undisturbed")
    assert "curated folder" in pretrain(*new, "--run", "parts", "--stop-at", 3)
    assert "resume     from" in pretrain("--resume", "parts")
    for name in ("model.safetensors", "training.safetensors"):
        one, other = ((checkpoint_directory(tmp_path / run, "last") / name).read_bytes() for run in ("undisturbed", "parts"))
        assert one == other
    facts = json.loads((tmp_path / "parts" / "config.json").read_text(encoding="utf-8"))
    assert facts["corpus_fingerprint"] == read_manifest(folder).fingerprint and "license 2" in facts["corpus_source"]
