"""Corpora: the default one from what is installed, files and folders, downloads without a network, and the split by near-copies."""

import hashlib
import os
import re
import subprocess
import sys
from collections import defaultdict
from itertools import combinations
from pathlib import Path

import numpy as np
import pooch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.data import download as downloads
from tinygpt.data import streaming
from tinygpt.data.corpora import Corpus, Document, load_corpus, run_name
from tinygpt.data.download import Download, fetch
from tinygpt.data.near_copies import _shingles, group_near_copies
from tinygpt.data.streaming import open_corpus
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.storage.checked_json import read_text

DATA = Path(os.environ.get("TINYGPT_DATA") or Path(__file__).parents[3] / "shared" / "data")


def needs(file_name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (DATA / file_name).is_file(), reason=f"{file_name} is not in $TINYGPT_DATA")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise ConnectionRefusedError("no network in tests")

    monkeypatch.setattr(downloads, "download_file", fail)
    monkeypatch.delenv("TINYGPT_DATA", raising=False)


@pytest.fixture(scope="module")
def docs() -> Corpus:
    return load_corpus("docs")


def error(text: str) -> str:
    return re.escape(text)


# ---- the default corpus ------------------------------------------------------------------------------------------------------------------


def test_docs_is_what_it_says(docs: Corpus) -> None:
    assert f"NumPy {np.__version__}" in docs.source and "Python 3." in docs.source
    assert 2_000_000 < docs.n_bytes("train") + docs.n_bytes("validation") < 4_000_000
    assert docs.n_bytes("validation") == pytest.approx(0.1 * (docs.n_bytes("train") + docs.n_bytes("validation")), rel=0.05)
    documents = {document.name: document for document in docs.train + docs.validation}
    assert len(documents) == len(docs.train) + len(docs.validation) == len({document.text for document in documents.values()})
    assert documents["numpy.argsort"].text.startswith("Returns the indices that would sort an array.")
    assert documents["numpy.ndarray.argsort"].text.startswith("a.argsort(")
    assert "anonymous" in documents["python.lambda"].text
    for name in ("numpy.fft", "numpy.random.normal", "numpy.linalg.svd", "numpy.ma.MaskedArray.fill_value", "numpy.emath.log"):
        assert name in documents
    for longer_name in ("numpy.absolute", "numpy.ma.masked_array.fill_value", "numpy.lib.scimath.log"):
        assert longer_name not in documents
    assert sum(name.startswith("python.") for name in documents) > 50


def test_docs_has_no_text_that_depends_on_the_platform_or_is_private(docs: Corpus) -> None:
    for document in docs.train + docs.validation:
        assert "on this platform (" not in document.text
        assert not re.search(r"\._|\.f2py|\.distutils|\.tests|\.core\.|\.(float|int|uint|complex)\d+|jiffies|memusage", document.name)


def test_docs_is_the_same_every_time_and_split_once_by_seed(docs: Corpus) -> None:
    again, other = load_corpus("docs"), load_corpus("docs", seed=1)
    assert again == docs
    assert other.fingerprint == docs.fingerprint and other.validation != docs.validation


def test_docs_groups_are_never_divided(docs: Corpus) -> None:
    assert not {document.group for document in docs.train} & {document.group for document in docs.validation}
    side = {document.name: split for split in ("train", "validation") for document in getattr(docs, split)}
    assert side["numpy.sin"] == side["numpy.cos"] and side["numpy.sum"] == side["numpy.ma.sum"]
    fits = [f"numpy.polynomial.{module}fit" for module in ("hermite.herm", "hermite_e.herme", "laguerre.lag", "legendre.leg")]
    assert len({side[name] for name in fits}) == 1
    assert 0 < residual_overlap(docs) < 0.3


def test_bpe_learns_and_encodes_the_default_corpus(docs: Corpus) -> None:
    tokenizer = BPETokenizer.train((document.text for document in docs.train), 4096)
    assert tokenizer.n_vocab == 4096
    text = "".join(document.text for document in docs.validation)
    ids = tokenizer.encode_array(text)
    assert tokenizer.decode(ids) == text
    assert len(text.encode()) / len(ids) > 2.5  # bytes per token


# ---- files and folders -------------------------------------------------------------------------------------------------------------------


def test_a_text_file_is_split_by_position(tmp_path: Path) -> None:
    text = "".join(map(chr, range(33, 133)))  # 100 characters, more bytes
    (tmp_path / "my text.txt").write_text(text, encoding="utf-8")
    for path in (tmp_path / "my text.txt", str(tmp_path / "my text.txt")):
        corpus = load_corpus(path, validation_fraction=0.25)
        assert corpus.train == [Document("my text.txt", text[:75], 0)]
        assert corpus.validation == [Document("my text.txt", text[75:], 1)]
        assert corpus.n_bytes("train") == 75 and corpus.n_bytes("validation") == len(text[75:].encode())
        assert corpus.name == "my-text" and corpus.source == f"text file {path}"


def test_a_folder_is_read_in_order_and_split_by_group(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for n in range(20):
        (tmp_path / ("sub" if n % 2 else "") / f"{n:02}.{'md' if n % 3 else 'TXT'}").write_text(f"{n} words " * 9, encoding="utf-8")
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    (tmp_path / "image.png").write_bytes(b"\xff\xff")
    corpus = load_corpus(tmp_path)
    names = [document.name for document in corpus.train + corpus.validation]
    expected = [f"{n:02}.{'md' if n % 3 else 'TXT'}" for n in range(0, 20, 2)]
    expected += [f"sub/{n:02}.{'md' if n % 3 else 'TXT'}" for n in range(1, 20, 2)]
    assert sorted(names) == expected and len(corpus.validation) == 2
    assert [d.name for d in corpus.train] == sorted(d.name for d in corpus.train)
    assert corpus.source == (
        f"21 text files in {tmp_path}; left out, because not *.txt or *.md: 1 (image.png); left out, because empty: 1 (empty.txt)"
    )
    for n in range(4):
        (tmp_path / "sub" / f"{n}.py").touch()
    assert "not *.txt or *.md: 5 (image.png, sub/0.py, sub/1.py, ...);" in load_corpus(tmp_path).source


def test_a_new_document_leaves_the_others_on_their_side(tmp_path: Path) -> None:
    for n in range(100):
        (tmp_path / f"{n}.txt").write_text(f"{n}", encoding="utf-8")
    before = {document.name for document in load_corpus(tmp_path).validation}
    (tmp_path / "new.txt").write_text("100", encoding="utf-8")
    after = {document.name for document in load_corpus(tmp_path).validation}
    assert len(before ^ after) <= 3


def test_a_folder_with_few_files_is_split_by_position(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 100, encoding="utf-8")
    corpus = load_corpus(tmp_path)
    assert [document.text for document in corpus.train] == ["a" * 90, "b" * 90, "c" * 90]
    assert [document.text for document in corpus.validation] == ["a" * 10, "b" * 10, "c" * 10]
    assert len({document.group for document in corpus.train + corpus.validation}) == 6


def test_fingerprint_knows_names_and_texts_but_not_the_split(tmp_path: Path) -> None:
    def fingerprint(name: str, text: str, **options: float) -> str:
        for path in tmp_path.iterdir():
            path.unlink()
        (tmp_path / name).write_text(text, encoding="utf-8")
        return load_corpus(tmp_path, **options).fingerprint  # type: ignore[arg-type]

    first = fingerprint("a.txt", "some text")
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert first == fingerprint("a.txt", "some text", validation_fraction=0.3, seed=5)
    assert len({first, fingerprint("b.txt", "some text"), fingerprint("a.txt", "some text."), fingerprint("a.txts.txt", "ome text")}) == 4


def test_a_run_is_named_after_the_path_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "my folder" / "v1.2"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("some text", encoding="utf-8")
    (tmp_path / "my folder" / ".b [x].txt").write_text("other text", encoding="utf-8")
    (tmp_path / "\u0442\u0435\u043a\u0441\u0442.txt").write_text("Cyrillic", encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for given_path, expected in {
        "docs": "docs", ".": "v1.2", "..": "my-folder", "a.txt": "a", "./a.txt": "a", "../v1.2/": "v1.2", "../.b [x].txt": "b-x",
        f"{folder}/": "v1.2", str(folder / "a.txt"): "a", "~": tmp_path.name, "~/my folder": "my-folder", "~/my folder/v1.2/a.txt": "a",
        "~/\u0442\u0435\u043a\u0441\u0442.txt": "run", "/": "run", "data set": "data-set",
    }.items():  # fmt: skip
        assert run_name(given_path) == expected == run_name(Path(given_path))
    assert load_corpus("~/my folder/v1.2/a.txt").name == load_corpus("a.txt").name == open_corpus("a.txt").name == "a"
    assert load_corpus("~/my folder").train and load_corpus("..").name == "my-folder"
    with pytest.raises(FileNotFoundError, match="corpus '~nobody/x': no such file or folder"):
        load_corpus("~nobody/x")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-32-be"])
@pytest.mark.parametrize(
    "text", ["It is plain English.\n", "\u042d\u0442\u043e \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0442\u0435\u043a\u0441\u0442.\n"]
)
def test_utf16_and_utf32_need_a_byte_order_mark(tmp_path: Path, encoding: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, path = text * 20, tmp_path / "x.txt"
    marked = text.encode(encoding) if encoding in ("utf-16", "utf-32") else ("\ufeff" + text).encode(encoding)
    path.write_bytes(marked)
    corpus = load_corpus(path)
    assert corpus.train[0].text + corpus.validation[0].text == text
    path.write_bytes(marked[:-1])
    with pytest.raises(
        ValueError, match=rf"x.txt: byte 0x.. at offset \d+ is not {encoding[:6].upper()}, expected {encoding[:6].upper()} text"
    ):
        load_corpus(path)
    monkeypatch.setattr(streaming, "STREAM_BYTES", 10)
    with pytest.raises(
        ValueError, match=rf"x.txt: {encoding[:6].upper()}, expected UTF-8 in a corpus above .*iconv -f {encoding[:6]} -t utf-8"
    ):
        open_corpus(path)
    path.write_bytes(text.encode(encoding.removesuffix("-be") + "-be"))
    for load in (load_corpus, open_corpus):
        with pytest.raises(
            ValueError, match=r"x.txt: \d+ of the first \d+ bytes are 0, as in UTF-16 without a byte order mark, expected UTF-8; save"
        ):
            load(path)


def test_binary_files_are_refused(tmp_path: Path) -> None:
    numbers = np.arange(1000, dtype=np.int32).tobytes()
    for name, data in (("a.txt", b"\x89PNG\r\n\x1a\n"), ("b.txt", numbers), ("c.txt", bytes(100)), ("d.txt", b"\x1f\x8b\x08" + numbers)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            ValueError, match=rf"{name}: .*expected UTF-8.*; save the file as UTF-8 in your editor, or leave it out if it is no"
        ):
            load_corpus(tmp_path / name)


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\xc3\xa9")
    assert read_text(tmp_path / "windows.txt") == "one\ntwo\nthree\né"


# ---- the split ---------------------------------------------------------------------------------------------------------------------------


def shingles_of(text: str) -> set[tuple[str, ...]]:
    words = text.split()
    return {tuple(words[i : i + 8]) for i in range(len(words) - 7)}


def grouped_by_definition(texts: list[str]) -> list[int]:
    """The definition, pair by pair."""
    shingles = [shingles_of(text) for text in texts]
    group = list(range(len(texts)))
    for a, b in combinations(range(len(texts)), 2):
        shared = len(shingles[a] & shingles[b])
        if texts[a] == texts[b] or 2 * shared > min(len(shingles[a]), len(shingles[b])):
            old, new = max(group[a], group[b]), min(group[a], group[b])
            group = [new if number == old else number for number in group]
    numbers: dict[int, int] = {}
    return [numbers.setdefault(number, len(numbers)) for number in group]


@given(st.lists(st.lists(st.sampled_from("ab"), max_size=16).map(" ".join), min_size=1, max_size=8))
def test_groups_equal_their_definition(texts: list[str]) -> None:
    assert group_near_copies(texts) == grouped_by_definition(texts)


def test_more_than_half_of_the_smaller_text_makes_a_group() -> None:
    words = [f"w{n}" for n in range(40)]
    half, more = words[:11] + ["x"] * 4, words[:12] + ["x"] * 3  # 8 shingles; 4 and 5 of them from `words`
    assert group_near_copies([" ".join(words), " ".join(half)]) == [0, 1]
    assert group_near_copies([" ".join(words), " ".join(more)]) == [0, 0]
    assert group_near_copies([" ".join(more), " ".join(words[20:]), "\n".join(words)]) == [0, 0, 0]  # through a third
    assert group_near_copies(["short", "shorter", "short"]) == [0, 1, 0]


def residual_overlap(corpus: Corpus) -> float:
    """Share of the 8-word pieces of the validation text, counted as often as they occur, that the training text contains too."""
    shingles, document = _shingles([document.text for document in corpus.train + corpus.validation])
    in_train = document < len(corpus.train)
    seen = np.isin(shingles[~in_train], shingles[in_train])
    return float(seen.mean()) if seen.size else 0.0


def test_residual_overlap_is_the_share_of_shingles_seen_in_training() -> None:
    def overlap(train: list[str], validation: list[str]) -> float:
        sides = [[Document("", text, n) for n, text in enumerate(texts)] for texts in (train, validation)]
        return residual_overlap(Corpus("", *sides, fingerprint="", source=""))

    words = [f"w{n}" for n in range(20)]
    assert overlap([" ".join(words)], [" ".join(words[:9] + ["x", "y"])]) == 2 / 4
    assert overlap([" ".join(words[:10]), " ".join(words[10:])], [" ".join(words)]) == 6 / 13  # none across two documents
    assert overlap([" ".join(words)], ["short"]) == 0


def test_no_group_is_larger_than_it_must_be(docs: Corpus) -> None:
    sizes: defaultdict[int, int] = defaultdict(int)
    for document in docs.train + docs.validation:
        sizes[document.group] += len(document.text)
    assert max(sizes.values()) < 0.15 * sum(sizes.values())


# ---- downloads ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A download named story, and its content."""
    content = b"Once upon a time there was a loss."
    download = Download("story.txt", "https://example.org/story", hashlib.sha256(content).hexdigest(), "a story")
    monkeypatch.setitem(downloads.DOWNLOADS, "story", download)
    return content


def test_a_download_is_looked_for_in_tinygpt_data_then_in_the_cache(story: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, cache = tmp_path / "own", tmp_path / "cache"
    for folder in (own, cache):
        folder.mkdir()
        (folder / "story.txt").write_bytes(story)
    assert fetch("story", cache=cache) == cache / "story.txt"
    monkeypatch.setenv("TINYGPT_DATA", str(own))
    assert fetch("story", cache=cache) == own / "story.txt"
    corpus = load_corpus("story", cache=cache)
    assert corpus.train[0].name == "story" and corpus.source == "a story, https://example.org/story"
    (own / "story.txt").unlink()
    assert fetch("story", cache=cache) == cache / "story.txt"


def test_a_download_is_fetched_into_the_cache_in_silence(
    story: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def retrieve(url: str, path: Path, sha256: str, max_bytes: int) -> Path:
        assert (url, sha256) == ("https://example.org/story", hashlib.sha256(story).hexdigest()) and max_bytes > len(story)
        path.write_bytes(story)
        return path

    monkeypatch.setattr(downloads, "download_file", retrieve)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path)
    monkeypatch.delenv("TINYGPT_CACHE", raising=False)
    assert fetch("story") == tmp_path / "story.txt"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("TINYGPT_CACHE", str(tmp_path / "elsewhere"))
    assert fetch("story") == tmp_path / "elsewhere" / "story.txt"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cause", [ConnectionRefusedError("no network"), ValueError("SHA256 hash of downloaded file does not match")])
def test_a_download_without_network(cause: Exception, story: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise cause

    monkeypatch.setattr(downloads, "download_file", fail)
    with pytest.raises(ConnectionError) as caught:
        load_corpus("story", cache=tmp_path)
    assert str(caught.value) == (
        f"corpus 'story': found nowhere and not downloaded ({type(cause).__name__}), expected https://example.org/story "
        f"(sha256 {hashlib.sha256(story).hexdigest()}); put the file as story.txt into {tmp_path}, or into a folder named by TINYGPT_DATA"
    )
    assert caught.value.__cause__ is cause


def test_a_changed_file_is_refused_wherever_it_lies(story: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "story.txt").write_bytes(story + b"!")
    found = hashlib.sha256(story + b"!").hexdigest()
    message = error(f"{tmp_path / 'story.txt'}: sha256 {found}, expected {hashlib.sha256(story).hexdigest()}; delete it, or replace it")
    with pytest.raises(ValueError, match=message):
        fetch("story", cache=tmp_path)
    monkeypatch.setenv("TINYGPT_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        fetch("story", cache=tmp_path / "elsewhere")


@needs("tinyshakespeare.txt")
def test_tinyshakespeare_is_split_as_nanogpt_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGPT_DATA", str(DATA))
    corpus = load_corpus("tinyshakespeare")
    text = (DATA / "tinyshakespeare.txt").read_text(encoding="utf-8")
    assert corpus.train == [Document("tinyshakespeare", text[: int(0.9 * len(text))], 0)]
    assert corpus.train[0].text + corpus.validation[0].text == text
    assert len(corpus.train[0].text) == 1_003_854 and len(corpus.validation[0].text) == 111_540


@needs("the-verdict.txt")
def test_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TINYGPT_DATA", str(DATA))
    corpus = load_corpus("the-verdict")
    assert len(corpus.train[0].text) + len(corpus.validation[0].text) == 20_479
    assert corpus.train[0].text.startswith("I HAD always thought Jack Gisburn")


# ---- bad input ---------------------------------------------------------------------------------------------------------------------------


def test_unknown_corpora() -> None:
    known = "expected a path or one of docs, tinyshakespeare, the-verdict; "
    for name, fix in (
        ("tiny-shakespeare", "did you mean 'tinyshakespeare'?"),
        ("doc", "did you mean 'docs'?"),
        ("no/file.txt", "check the"),
    ):
        with pytest.raises(FileNotFoundError, match=error(f"corpus '{name}': no such file or folder, {known}{fix}")):
            load_corpus(name)


def test_a_path_is_never_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="corpus 'docs': no such file"):
        load_corpus(Path("docs"))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("some text", encoding="utf-8")
    assert load_corpus("./docs").train[0].text == load_corpus(Path("docs")).train[0].text == "some tex"


def test_files_that_are_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("naïve".encode("latin-1"))
    for given_path in (path, tmp_path):
        with pytest.raises(ValueError, match=error(f"{path}: byte 0xef at offset 2 is not UTF-8, expected UTF-8 text; save the file as")):
            load_corpus(given_path)
    path.write_bytes(b"\xef\xbb\xbfabc\xff")
    with pytest.raises(ValueError, match="byte 0xff at offset 6 "):
        read_text(path)


def test_empty_corpora(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=error(f"folder {tmp_path}: no text among 0 files, expected *.txt or *.md; rename")):
        load_corpus(tmp_path)
    (tmp_path / "data.csv").write_text("a,b", encoding="utf-8")
    with pytest.raises(ValueError, match="no text among 1 files"):
        load_corpus(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n", encoding="utf-8")
    for path in (tmp_path, tmp_path / "empty.txt"):
        with pytest.raises(ValueError, match=error(f"corpus {str(path)!r}: empty, expected some text; check")):
            load_corpus(path)


def test_a_text_too_short_to_split(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    with pytest.raises(ValueError, match=error(f"corpus {str(tmp_path)!r}: 1 characters, expected enough to validate on 10% of them; add")):
        load_corpus(tmp_path)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 10, float("nan")])
def test_bad_fractions(fraction: float) -> None:
    with pytest.raises(ValueError, match=error(f"validation_fraction: {fraction}, expected more than 0 and less than 1")):
        load_corpus("docs", validation_fraction=fraction)


def test_importing_asks_no_network_and_loads_no_text() -> None:
    program = """
import sys
def audit(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(event)
sys.addaudithook(audit)
import tinygpt.data.corpora, tinygpt.data.tokenizer
assert not {"pooch", "requests", "pydoc_data.topics"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", program], check=True)
