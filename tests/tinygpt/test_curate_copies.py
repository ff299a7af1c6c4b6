"""Copies that are removed: equal documents, lines and paragraphs, near copies; each held against its definition in Python's sets."""

import contextlib
import importlib
import io
import json
import re
import sys
import tempfile
import tracemalloc
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.strategies import seeds
from tinygpt.curate import copies, near, tables
from tinygpt.curate.copies import Best, Folders, Repeated, normal_line, normal_text, remove_exact_copies, remove_repeated
from tinygpt.curate.documents import Document, read_shard, write_shard
from tinygpt.curate.near import Near, choose_method, find_copies, remove_near_copies, shared_shingles, shingles
from tinygpt.data.ngrams import normal_words
from tinygpt.errors import InvalidInput, MissingPackage
from tinygpt.storage import durable

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


def run(function, n_tasks, name):
    return [list(function(task, n_tasks)) for task in range(n_tasks)]


def quiet(sentence):
    pass


def shards_of(documents, folder, n):
    """Documents in n shards, one after the other."""
    (folder / "in").mkdir()
    size = -(-len(documents) // n)
    for shard in range(n):
        write_shard(folder / "in" / f"{shard}.jsonl", documents[shard * size : (shard + 1) * size])
    return Folders(tuple(sorted((folder / "in").iterdir())), folder / "shards", folder / "tables")


def written(folders):
    return [document for path in sorted(folders.output.iterdir()) for document in read_shard(path)]


class Fast(durable.Disk):
    """Waits for no disk: these tests write thousands of small files."""

    def sync(self, descriptor):
        pass


def after(stage, documents, *arguments, n_shards=2, **options):
    """(documents that are left, report)."""
    with tempfile.TemporaryDirectory() as folder, durable.use_disk(Fast()):
        folders = shards_of(documents, Path(folder), n_shards)
        report = stage(folders, run, *arguments, **options)
        return written(folders), report


def documents_of(texts, **fields):
    return [Document(f"d{i:03}", text, **fields) for i, text in enumerate(texts)]


# ---- equal documents -----------------------------------------------------------------------------------------------------------------------

texts_with_copies = st.lists(st.sampled_from(["a b", "A  b", "a\nb", "a B\n", "é x", "e\u0301 x", "É  x", "c", "d d", ""]), max_size=12)


@settings(max_examples=30)
@given(texts_with_copies, st.integers(1, 3))
def test_equal_documents_leave_one_as_a_set_does(texts, n_shards):
    documents = documents_of(texts, metadata={"url": "u"})
    left, report = after(remove_exact_copies, documents, Best(("first",)), n_shards=n_shards)
    groups = defaultdict(list)
    for document in documents:
        groups[normal_text(document.text)].append(document)
    assert [document.id for document in left] == [group[0].id for group in groups.values()]
    for document in left:
        others = groups[normal_text(document.text)][1:]
        expected = {"copies": [{"id": other.id, "url": "u"} for other in others], "n_copies": len(others)} if others else {}
        assert document.metadata == {"url": "u", **expected}
    assert report.total.documents_in - report.total.documents_out == len(documents) - len(groups)
    assert report.cluster_sizes == Counter(len(group) for group in groups.values() if len(group) > 1)


@settings(max_examples=15)
@given(texts_with_copies, seeds)
def test_which_document_stays_does_not_depend_on_the_order(texts, seed):
    documents = documents_of(texts)
    shuffled = [documents[i] for i in np.random.default_rng(seed).permutation(len(documents))]
    one, two = (after(remove_exact_copies, some, Best(("longest",)))[0] for some in (documents, shuffled))
    assert sorted(document.text for document in one) == sorted(document.text for document in two)


def test_the_best_copy_is_chosen_by_rule():
    rows = [("web", "a  b", "2020-01-01"), ("books", "a b", ""), ("web", "a b ", "2021-06-01T10:00:00+02:00"), ("wiki", "A b", "yesterday")]
    documents = [Document(f"d{i}", text, source, {"date": date}) for i, (source, text, date) in enumerate(rows)]

    def best(*rules, **options):
        (document,), _ = after(remove_exact_copies, documents, Best(rules, **options))
        return document.id

    assert best("first") == "d0" and best("newest") == "d2" and best("oldest") == "d0"
    assert best("source", "newest", sources=("wiki", "books")) == "d3"
    assert best("source", "newest", sources=("web",)) == "d2"
    assert best("longest", "newest") == "d2" and best("longest", "first") == "d0"
    assert best("newest", "first", date="missing") == "d0"
    with pytest.raises(InvalidInput, match=r"rule for the best copy: 'newst', expected one of .*; did you mean 'newest'\?"):
        Best(("newst",))


def test_many_copies_are_counted_and_some_are_named(monkeypatch):
    monkeypatch.setattr(copies, "MOST_LISTED", 3)
    documents = documents_of(["same"] * 9, source="s") + [Document("other", "other")]
    (same, other), report = after(remove_exact_copies, documents, n_shards=4)
    assert same.metadata["n_copies"] == 8 and [copy["id"] for copy in same.metadata["copies"]] == ["d001", "d002", "d003"]
    assert same.metadata["copies"][0] == {"id": "d001", "source": "s"} and not other.metadata
    assert report.clusters[0].size == 9 and report.rules["exact copy"].examples[0].number == 9


def test_what_was_a_copy_of_a_copy_is_still_named():
    words = [f"w{i}" for i in range(60)]
    long, short = " ".join(words), " ".join(words[:55])
    documents = documents_of([short, long, short.upper(), "unlike"], metadata={})
    first, _ = after(remove_exact_copies, documents)
    (kept, _), report = after(remove_near_copies, first, say=quiet)
    assert kept.id == "d001" and kept.metadata["n_copies"] == 2
    assert kept.metadata["copies"] == [{"id": "d000"}, {"id": "d002"}] and report.cluster_sizes == {3: 1}


# ---- the tables ----------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 3).map(lambda i: i << 62)), max_size=20), st.integers(1, 9))
def test_partitions_divide_a_table(hashes, n):
    with tempfile.TemporaryDirectory() as folder:
        array = np.array(hashes, dtype=np.uint64)
        tables.write_table(Path(folder), "t", 0, array, position=np.arange(len(array)))
        parts = [tables.read_partition(Path(folder), "t", 1, part, n, ("hash", "position")) for part in range(n)]
    for part, rows in enumerate(parts):
        assert (tables.partition_of(rows["hash"], n) == part).all() and (array[rows["position"]] == rows["hash"]).all()
    assert sorted(np.concatenate([rows["position"] for rows in parts]).tolist()) == list(range(len(array)))


def test_a_table_of_objects_is_refused_unread(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        tables.load(tmp_path / "a.npy")


def test_partitions_decide_as_one_does(monkeypatch):
    rng = np.random.default_rng(0)
    documents = documents_of([" ".join(rng.choice(list("abc"), size=n)) for n in rng.integers(1, 5, size=60)])
    documents += documents_of([f"{text} end\n\n{text} of all" for text in rng.choice(["one two", "two", "three"], size=9)])
    documents = [replace(document, id=str(i)) for i, document in enumerate(documents)]
    lines = Repeated(2, 1, 1, 1, least_letters=0)
    one = [after(remove_exact_copies, documents), after(remove_repeated, documents, lines)]
    monkeypatch.setattr(copies, "n_partitions", lambda folder, table: 5)
    many = [after(remove_exact_copies, documents, n_shards=4), after(remove_repeated, documents, lines, n_shards=7)]
    assert [left for left, _ in one] == [left for left, _ in many]
    assert [report.to_json() for _, report in one] == [report.to_json() for _, report in many]


# ---- lines and paragraphs ------------------------------------------------------------------------------------------------------------------


def test_a_line_is_compared_without_case_digits_punctuation_and_accents():
    assert normal_line("  Page 3 of 10 -- (c) 2024!\n") == normal_line("page 7 OF 99 c 1999") == "page 0 of 00 c 0000"
    assert normal_line("Über uns - Café No. 5\t") == normal_line("U\u0308BER UNS, CAFE\u0301 no 7") == "uber uns cafe no 0"


def repeated_by_definition(texts, repeated):
    """Texts as `remove_repeated` should leave them."""
    lines, paragraphs = Counter(), defaultdict(list)
    for number, text in enumerate(texts):
        lines.update({normal_line(line) for line in text.split("\n")})
        for paragraph in {normal_line(paragraph) for paragraph in text.split("\n\n")}:
            paragraphs[paragraph].append(number)
    found = []
    for number, text in enumerate(texts):
        left = []
        for paragraph in text.split("\n\n"):
            words = normal_line(paragraph)
            late = paragraphs[words].index(number) >= repeated.paragraph_documents if repeated.paragraph_documents else False
            if not (late and len(words.replace(" ", "")) >= repeated.paragraph_letters):
                left.append(paragraph)

        def stays(line):
            many = repeated.line_documents and lines[normal_line(line)] > repeated.line_documents
            return not (many and len(normal_line(line).replace(" ", "")) >= repeated.line_letters)

        found.append("\n".join(line for line in "\n\n".join(left).split("\n") if stays(line)))
    return [re.sub("\n{2,}", "\n", text).strip("\n") for text in found]


paragraph = st.lists(st.sampled_from(["a", "B b", "ccc c"]), min_size=1, max_size=2).map("\n".join)
pages = st.lists(st.lists(paragraph, min_size=1, max_size=3).map("\n\n".join), min_size=1, max_size=7)


@settings(max_examples=40)
@given(pages, st.integers(0, 3), st.integers(0, 2), st.integers(1, 4), st.integers(1, 4))
def test_repeated_lines_and_paragraphs_go_as_defined(texts, line_documents, paragraph_documents, line_letters, paragraph_letters):
    repeated = Repeated(line_documents, paragraph_documents, line_letters, paragraph_letters, least_letters=0)
    left, report = after(remove_repeated, documents_of(texts), repeated, n_shards=3)
    assert [re.sub("\n{2,}", "\n", document.text).strip("\n") for document in left] == repeated_by_definition(texts, repeated)
    assert report.total.documents_out == len(texts)


def test_boilerplate_goes_and_the_rest_stays_as_it_is():
    menu, notice = "Home | About our company | Contact and imprint", "This site uses cookies to give you the best experience."
    own = ["One   story,\n\n\n  told at some length and with care.", "Another  story,\nwith\n\n\nits own empty lines and many words."]
    documents = documents_of([f"{menu}\n{text}\n{notice.upper()}" for text in own] + [f"{menu}\n{notice}\nToo little."])
    documents.append(Document("clean", "Nothing here  is \n\n\n repeated, so nothing changes.\n"))
    left, report = after(remove_repeated, documents, Repeated(line_documents=2, least_letters=20))
    assert [document.text for document in left] == [re.sub("\n{3,}", "\n\n", text) for text in own] + [documents[-1].text]
    assert report.kinds["repeated line"].count == 6 and report.rules["little left"].documents == 1
    assert (report.rules["little left"].examples[0].number, report.rules["little left"].examples[0].limit) == (9, 20)


def test_a_paragraph_stays_in_the_first_documents_and_per_source():
    text = "A paragraph that is long enough to be looked at, because it has so many letters that nobody who counts them would call it a short one."
    documents = [Document(f"d{i}", f"{text}\n\nOnly in number {'abcdef'[i]}.", "even" if i % 2 == 0 else "odd") for i in range(5)]
    for repeated, holders in (
        (Repeated(), "d0"),
        (Repeated(paragraph_documents=2), "d0 d1"),
        (Repeated(per_source=True), "d0 d1"),
        (Repeated(paragraph_documents=0), "d0 d1 d2 d3 d4"),
    ):
        left, _ = after(remove_repeated, documents, replace(repeated, least_letters=0))
        assert [document.id for document in left if text in document.text] == holders.split()
        assert all(document.text.endswith(f"Only in number {'abcdef'[i]}.") for i, document in enumerate(left))
    with pytest.raises(InvalidInput, match="line_letters: -1, expected at least 0"):
        Repeated(line_letters=-1)


# ---- near copies ---------------------------------------------------------------------------------------------------------------------------


def jaccard(one, two):
    return len(one & two) / len(one | two) if one | two else 0.0


def near_by_definition(sets, similarity, group):
    """(which stays instead of each, group of each), documents in order of preference."""
    copy_of, groups = list(range(len(sets))), list(range(len(sets)))
    for number, own in enumerate(sets):
        stays = [other for other in range(number) if copy_of[other] == other]
        alike = {other: jaccard(own, sets[other]) for other in stays}
        best = max(alike, key=lambda other: (alike[other], -other), default=None)
        if best is not None and alike[best] >= similarity:
            copy_of[number] = best
            continue
        for other in stays:
            if alike[other] >= group:
                old, new = max(groups[number], groups[other]), min(groups[number], groups[other])
                groups = [new if g == old else g for g in groups]
    return copy_of, groups


some_words = st.lists(st.sampled_from("abcde"), max_size=9).map(" ".join)


@given(st.lists(some_words, max_size=9), st.sampled_from([0.2, 0.5, 2 / 3, 0.75, 1.0]), st.sampled_from([0.1, 0.2, 0.5]), st.integers(1, 2))
def test_near_copies_equal_their_definition(texts, similarity, group, n_words):
    group = min(group, similarity)
    found = [shingles(text, n_words) for text in texts]
    holders = np.repeat(np.arange(len(texts)), [len(some) for some in found])
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *found])
    parts = [(hashes[hashes % 2 == rest], holders[hashes % 2 == rest]) for rest in (0, 1)]
    sizes = np.array([len(some) for some in found], dtype=np.int64)
    result = find_copies(shared_shingles(sizes, parts), similarity, group)
    copy_of, groups = near_by_definition([set(some.tolist()) for some in found], similarity, group)
    assert result.copy_of.tolist() == copy_of
    stays = [number for number in range(len(texts)) if copy_of[number] == number]
    assert [result.group[number] for number in stays] == [groups[number] for number in stays]


def test_shingles_are_runs_of_words():
    words = "The quick, brown fox jumps over the lazy dog. The quick brown fox jumps!".split()
    assert len(shingles(" ".join(words))) == len({tuple(normal_words(" ".join(words[i : i + 5]))) for i in range(len(words) - 4)}) == 9
    assert (shingles("a B c. d e") == shingles("A b c d E")).all() and not len(shingles("four words are few"))


def random_documents(seed, n=60):
    """Texts of 40 words, some of which share a part with one before."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(n):
        words = rng.integers(10_000, size=40)
        if texts and rng.random() < 0.6:
            other = texts[rng.integers(len(texts))]
            shared = rng.integers(41)
            words[:shared] = other[:shared]
        texts.append(words)
    return documents_of([" ".join(f"w{number}" for number in text) for text in texts])


@settings(max_examples=8)
@given(seeds, st.integers(1, 3))
def test_whatever_goes_is_a_near_copy_of_what_stays(seed, n_shards):
    documents = random_documents(seed)
    sets = {document.id: set(shingles(document.text).tolist()) for document in documents}
    left, report = after(remove_near_copies, documents, Near(), Best(("first",)), n_shards=n_shards, say=quiet)
    ids = [document.id for document in left]
    assert all(jaccard(sets[one], sets[two]) < 0.6 for one, two in combinations(ids, 2))
    named = {copy["id"]: document.id for document in left for copy in document.metadata.get("copies", [])}
    assert named.keys() == sets.keys() - set(ids) and all(jaccard(sets[one], sets[two]) >= 0.6 for one, two in named.items())
    groups = {document.id: document.metadata.get("group", document.id) for document in left}
    assert all(groups[one] == groups[two] for one, two in combinations(ids, 2) if jaccard(sets[one], sets[two]) >= 0.3)
    assert report.total.documents_out == len(left)


def peak_bytes(call):
    """What call() takes at most, in arrays and objects."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_the_index_takes_few_bytes_for_each_shingle(monkeypatch):
    """Two processes hold 128 MB of shingles each: at 8 bytes in a shingle and 40 in the index they would take 1.3 GB together."""
    monkeypatch.setattr(near, "PART", 1 << 13)

    def peak(n):
        rng = np.random.default_rng(0)
        found = rng.integers(2**64, size=(n, 230), dtype=np.uint64)
        found[1::2, 10:] = found[::2, 10:]  # each second one is a near copy of the one before
        hashes, holders = found.reshape(-1), np.repeat(np.arange(n, dtype=np.int32), 230)
        n_parts = 1 + found.size // near.PART
        which = tables.partition_of(hashes, n_parts)
        parts = ((hashes[which == part], holders[which == part]) for part in range(n_parts))
        return peak_bytes(lambda: find_copies(shared_shingles(np.full(n, 230), parts), 0.6, 0.3))

    assert (peak(1200) - peak(300)) / (900 * 230) < 22


def pairs_of(folder, rng, n, n_shards):
    """Pairs of 2 n documents as datatrove's first phases leave them, in 25 files; each document in most of them."""
    (folder / "pairs").mkdir()
    for bucket in range(25):
        two = rng.integers(2 * n, size=(n, 2)) if n < 100 else np.arange(2 * n).reshape(n, 2)[rng.random(n) < 0.9]
        rows = np.stack([two[:, 0] % n_shards, two[:, 0] // n_shards, two[:, 1] % n_shards, two[:, 1] // n_shards], axis=1)
        (folder / "pairs" / f"{bucket:05d}_00.dups").write_bytes(rows.astype("<u4").tobytes())
    return Folders((Path("shard"),) * n_shards, folder, folder)


@settings(max_examples=8)
@given(seeds, st.integers(0, 40), st.integers(1, 4))
def test_clusters_are_the_librarys(seed, n, n_shards):
    pytest.importorskip("datatrove.pipeline.dedup.minhash", reason="the extra curate is not installed")
    from datatrove.pipeline.dedup.minhash import MinhashDedupCluster

    minhash = importlib.import_module("tinygpt.curate.minhash")
    with tempfile.TemporaryDirectory() as name, durable.use_disk(Fast()), contextlib.redirect_stderr(io.StringIO()):  # its progress bar
        folder = Path(name)
        minhash._cluster(0, 1, pairs_of(folder, np.random.default_rng(seed), n, n_shards), 5)
        config = minhash._config(5)
        MinhashDedupCluster(str(folder / "pairs"), str(folder / "theirs"), config=config, save_cluster_id=True, lines_to_buffer=8).run(
            None, 0, 1
        )
        theirs = {path.name: path.read_bytes() for path in (folder / "theirs").glob("*.clusters")}
        assert {path.name: path.read_bytes() for path in (folder / "clusters").iterdir()} == theirs


def test_clusters_take_few_bytes_for_each_document(tmp_path, monkeypatch):
    minhash = pytest.importorskip("tinygpt.curate.minhash", reason="the extra curate is not installed")
    monkeypatch.setattr(minhash, "PAIRS", 256)

    def peak(n):
        (tmp_path / str(n)).mkdir()
        folders = pairs_of(tmp_path / str(n), np.random.default_rng(0), n, 4)
        return peak_bytes(lambda: minhash._cluster(0, 1, folders, 5))

    assert (peak(4000) - peak(1000)) / 6000 < 90  # datatrove's own: 200, in objects of Python, which take more than they ask for


def test_there_may_be_more_shards_than_open_files(monkeypatch):
    resource = pytest.importorskip("resource", reason="Windows has no such limit")
    minhash = pytest.importorskip("tinygpt.curate.minhash", reason="the extra curate is not installed")
    limits, given = (64, 500), []
    monkeypatch.setattr(resource, "getrlimit", lambda what: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda what, new: given.append(new))
    minhash.allow_open_files(64)
    minhash.allow_open_files(500)
    assert given == [(500, 500)]
    with pytest.raises(InvalidInput, match=r"MinHash: at most 500 open files .*, expected at least 501, for a file of each shard; raise"):
        minhash.allow_open_files(501)


def test_near_copies_do_not_depend_on_the_order_nor_on_ranges(monkeypatch):
    documents = random_documents(0, 120)
    one, _ = after(remove_near_copies, documents, Near(), Best(("longest",)), say=quiet)
    monkeypatch.setattr(near, "PART", 100)
    shuffled = [documents[i] for i in np.random.default_rng(0).permutation(len(documents))]
    two, _ = after(remove_near_copies, shuffled, Near(), Best(("longest",)), n_shards=5, say=quiet)
    assert len(one) < len(documents)
    assert {d.id: d.metadata.get("group") for d in one} == {d.id: d.metadata.get("group") for d in two}
    assert {d.id: {c["id"] for c in d.metadata.get("copies", [])} for d in one} == {
        d.id: {c["id"] for c in d.metadata.get("copies", [])} for d in two
    }


def test_the_method_goes_by_memory_and_is_said_before_it_starts(tmp_path, monkeypatch):
    folders = shards_of(random_documents(0), tmp_path, 2)
    said = []
    remove_near_copies(folders, run, say=lambda sentence: said.append((sentence, (tmp_path / "tables").exists())))
    assert [
        (bool(re.search(r"the exact index \(.* at most \d+ MB, and may take 1\.0 GB; .* are free\)", sentence)), begun)
        for sentence, begun in said
    ] == [(True, False)]
    monkeypatch.setattr(near, "memory_limit", lambda: (near.resident_bytes() + (100 << 20), "a limit"))
    method, sentence = choose_method(folders.shards, Near())
    assert method == "minhash" and "MinHash" in sentence and "100 MB are free" in sentence
    assert choose_method(folders.shards, Near(method="exact"))[0] == "exact"
    monkeypatch.undo()
    assert choose_method(folders.shards, Near(memory_mb=100))[0] == "minhash"
    monkeypatch.setitem(sys.modules, "datatrove.data", None)
    monkeypatch.delitem(sys.modules, "tinygpt.curate.minhash", raising=False)
    with pytest.raises(MissingPackage, match=r"MinHash: datatrove.* is missing, expected datatrove; pip install \"tinygpt\[curate\]\""):
        remove_near_copies(folders, run, Near(method="minhash"), say=quiet)


def test_a_group_of_the_source_stays_and_others_join_it():
    words = [f"w{i}" for i in range(80)]
    texts = [" ".join(words[:60]), " ".join(words[30:80]), " ".join(words[30:75]), "unlike the others in all of its words"]
    documents = documents_of(texts, metadata={"group": "question 7"})
    documents = [documents[0], replace(documents[1], metadata={}), replace(documents[2], metadata={}), documents[3]]
    left, _ = after(remove_near_copies, documents, say=quiet)
    assert [(d.id, d.metadata["group"]) for d in left] == [("d000", "question 7"), ("d001", "question 7"), ("d003", "question 7")]
    assert left[1].metadata["copies"] == [{"id": "d002"}]


def test_numbers_out_of_range():
    with pytest.raises(
        InvalidInput, match=r"near copies: group 0.8, similarity 0.6, expected 0 < group <= similarity <= 1; the defaults are"
    ):
        Near(group=0.8)
    with pytest.raises(InvalidInput, match="near copies: n_words 0, expected at least 1; the default is 5"):
        Near(n_words=0)


@pytest.fixture(scope="module")
def planted():
    return importlib.import_module("curation_copies").planted_pairs(12)


def test_the_exact_index_finds_planted_pairs(planted, tmp_path):
    row = importlib.import_module("curation_copies").recall(planted, Near(method="exact"), tmp_path)
    assert row["found"] == {"0.5": 0, "0.7": 1, "0.8": 1, "0.9": 1} and row["grouped"]["0.5"] == 1 and row["wrong"] == 0


def test_minhash_finds_what_the_exact_index_finds(planted, tmp_path):
    pytest.importorskip("datatrove.pipeline.dedup.minhash", reason="the extra curate is not installed")
    exact, minhash = importlib.import_module("curation_copies").recalls(planted, 0.45, tmp_path)
    assert exact["found"] == {"0.5": 1, "0.7": 1, "0.8": 1, "0.9": 1} and exact["wrong"] == minhash["wrong"] == minhash["beyond"] == 0
    assert minhash["found"]["0.7"] >= 0.9 and minhash["found"]["0.8"] == minhash["found"]["0.9"] == 1 and 0.2 < minhash["found"]["0.5"] < 1


@given(seeds)
@settings(max_examples=5)
def test_signatures_are_the_librarys(seed):
    pytest.importorskip("datatrove.pipeline.dedup.minhash", reason="the extra curate is not installed")
    minhash = importlib.import_module("tinygpt.curate.minhash")
    step = minhash._Signature("unused", minhash._config(5), language=minhash._Words())
    found = np.random.default_rng(seed).integers(2**64, size=(1500, 1), dtype=np.uint64)
    for some in (found[:1], found[:100], found):
        assert step.get_signature(some) == minhash.MinhashDedupSignature.get_signature(step, some)


# ---- stopped and started again -------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_runs(folder, after_tasks):
    """A `run` that ends after so many tasks and whose marks of finished ones outlive it."""
    done = folder / "done"
    done.mkdir(exist_ok=True)

    def run(function, n_tasks, name):
        found = []
        for task in range(n_tasks):
            mark = done / f"{name}-{task}.json"
            if not mark.exists():
                if len(list(done.iterdir())) >= after_tasks:
                    function(task, n_tasks)  # all of its work, but not its mark
                    raise Killed
                report = [report.to_json() for report in function(task, n_tasks)]
                mark.write_text(json.dumps(report), encoding="utf-8")
            reports = json.loads(mark.read_text(encoding="utf-8"))
            found.append([copies.StepReport.from_json(report) for report in reports])
        return found

    return run


@pytest.mark.parametrize("method", ["equal", "lines", "exact", "minhash"])
def test_killed_at_any_task_and_started_again_gives_the_same(method, tmp_path):
    if method == "minhash":
        pytest.importorskip("datatrove.pipeline.dedup.minhash", reason="the extra curate is not installed")
    stage, arguments = {
        "equal": (remove_exact_copies, ()),
        "lines": (remove_repeated, (Repeated(1, 1, 1, 1, least_letters=10),)),
    }.get(method, (remove_near_copies, (Near(method=method),)))
    options = {"say": quiet} if stage is remove_near_copies else {}
    documents = [replace(document, text=document.text.replace(" w", "\nw")) for document in random_documents(3, 40)]
    (tmp_path / "once").mkdir()
    folders = shards_of(documents + [replace(documents[0], id="again")], tmp_path / "once", 2)
    report = stage(folders, run, *arguments, **options)
    expected = {path.name: path.read_bytes() for path in folders.output.iterdir()}
    other = Folders(folders.shards, tmp_path / "shards", tmp_path / "tables")
    for after_tasks in (0, 1, 3, 5, 12, 29):
        try:
            again = stage(other, killed_runs(tmp_path, after_tasks), *arguments, **options)
        except Killed:
            continue
    again = stage(other, killed_runs(tmp_path, 1000), *arguments, **options)
    assert {path.name: path.read_bytes() for path in other.output.iterdir()} == expected
    assert json.dumps(again.to_json()) == json.dumps(report.to_json())
