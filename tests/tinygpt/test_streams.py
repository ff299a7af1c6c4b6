"""Texts larger than memory: the pieces are the whole, and little of it is in memory at once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autograd import backend
from benchmarks.reliability import FaultyDisk, read_large_text
from tests import fake_cupy
from tinygpt.data import streaming
from tinygpt.data.corpora import Corpus
from tinygpt.data.streaming import Part, StreamedCorpus, open_corpus, read_pieces, texts_for_tokenizer, token_stream
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer, WordTokenizer
from tinygpt.data.windows import encode_documents, write_tokens
from tinygpt.storage.checked_json import read_text
from tinygpt.storage.durable import use_disk

SAMPLE = "It was 1984, the clocks don't strike 13; naïve ☃☃ \n\n\tx  = 'a'   # ok\n" * 3
TOKENIZERS = [BPETokenizer.train(SAMPLE, 300), WordTokenizer.train(SAMPLE)]
texts = st.text(st.sampled_from("ab1 '\n\r\t.é☃\U0001f600\x00"), max_size=200) | st.text(st.characters(codec="utf-8"), max_size=60)
texts = texts.filter(lambda text: text.count("\0") < 16)  # more look like UTF-16


@given(text=texts, piece_bytes=st.integers(1, 40), bom=st.booleans())
def test_pieces_are_the_text_and_give_the_ids_of_the_whole(tmp_path_factory, text, piece_bytes, bom):
    path = tmp_path_factory.mktemp("pieces") / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf" * bom + text.encode())
    pieces = list(read_pieces(path, piece_bytes=piece_bytes))
    whole = read_text(path)
    assert "".join(pieces) == whole
    for tokenizer in TOKENIZERS:
        assert [id for piece in pieces for id in tokenizer.encode(piece)] == tokenizer.encode(whole)


@given(text=texts.filter(str.strip), cut=st.integers(0, 200))
def test_a_stretch_is_read_as_it_stands(tmp_path_factory, text, cut):
    path = tmp_path_factory.mktemp("stretch") / "x.txt"
    data = text.replace("\r", "").replace("\ufeff", "").encode()
    path.write_bytes(data)
    cut = min(cut, len(data))
    while cut and data[cut : cut + 1] and data[cut] & 0xC0 == 0x80:
        cut -= 1
    assert "".join([*read_pieces(path, 0, cut, 7), *read_pieces(path, cut, len(data), 7)]) == data.decode()


def test_text_that_is_not_utf8_is_named_with_its_place(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(b"fine text " * 10 + b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"x.txt: byte 0xe9 at offset 103 is not UTF-8, expected UTF-8 text; save the file as UTF-8"):
        list(read_pieces(path, piece_bytes=8))
    path.write_bytes(b"cut \xe2\x98")
    with pytest.raises(ValueError, match=r"byte 0xe2 at offset 4 is not UTF-8"):
        list(read_pieces(path, piece_bytes=3))


def test_a_line_without_white_space_is_cut_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "MAX_UNBROKEN", 100)
    (tmp_path / "x.txt").write_text("x" * 1000, encoding="utf-8")
    pieces = list(read_pieces(tmp_path / "x.txt", piece_bytes=30))
    assert "".join(pieces) == "x" * 1000 and max(map(len, pieces)) <= 130


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(streaming, "STREAM_BYTES", 0)
    monkeypatch.setattr(streaming, "PIECE_BYTES", 64)


def test_one_file_gives_its_last_lines_for_validation(tmp_path, everything_is_large):
    path = tmp_path / "x.txt"
    lines = [f"line {i} of the text\n" for i in range(200)]
    path.write_text("".join(lines), encoding="utf-8")
    corpus = open_corpus(path)
    assert isinstance(corpus, StreamedCorpus) and corpus.source.endswith("streamed")
    text = {split: "".join(piece for piece, _ in corpus.pieces(split)) for split in ("train", "validation")}
    assert text["train"] + text["validation"] == "".join(lines) and text["validation"].startswith("line ")
    assert 0.08 < corpus.n_bytes("validation") / path.stat().st_size < 0.1
    assert corpus.fingerprint != open_corpus(tmp_path / "x.txt", validation_fraction=0.5).name
    path.write_text("".join(lines) + "!", encoding="utf-8")
    assert open_corpus(path).fingerprint != corpus.fingerprint


def test_a_folder_gives_whole_files_and_copies_stay_together(tmp_path, everything_is_large):
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"document {i // 2}\n" * 50, encoding="utf-8")  # each twice
    corpus = open_corpus(tmp_path)
    contents = [{part.path.read_text(encoding="utf-8") for part in side} for side in (corpus.train, corpus.validation)]
    assert not contents[0] & contents[1] and len(corpus.train) + len(corpus.validation) == 20 and len(corpus.validation) == 2


def test_ids_come_from_a_file_that_is_written_once(tmp_path, everything_is_large):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(f"{name} and some more words \n" * 40, encoding="utf-8")
    corpus, tokenizer = open_corpus(tmp_path), TOKENIZERS[0]
    ids = token_stream(corpus, "train", tokenizer, tmp_path / "cache")
    assert isinstance(ids, np.memmap)
    whole = encode_documents([part.path.read_bytes()[part.start : part.end].decode() for part in corpus.train], tokenizer)
    np.testing.assert_array_equal(ids, whole)
    (file,) = (tmp_path / "cache").iterdir()
    before = file.stat().st_mtime_ns
    token_stream(corpus, "train", tokenizer, tmp_path / "cache")
    assert file.stat().st_mtime_ns == before
    assert set("".join(texts_for_tokenizer(corpus, "characters"))) == set("abc and some more words \n")
    assert CharacterTokenizer.train(texts_for_tokenizer(corpus, "characters")).n_vocab == len(set("abc and some more words \n"))


def test_a_sample_is_spread_over_the_text(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("".join(f"{i} " for i in range(10_000)), encoding="utf-8")
    corpus = StreamedCorpus("x", [Part(path, 0, path.stat().st_size)], [], "", "")
    corpus.pieces = lambda split: ((piece, False) for piece in read_pieces(path, piece_bytes=1000))
    sample = list(corpus.sample(10_000))
    assert 5_000 < sum(map(len, sample)) <= 12_000 and int(sample[-1].split()[-1]) > 7_000


def test_a_disk_that_fills_up_leaves_no_token_file(tmp_path):
    with use_disk(FaultyDisk("ENOSPC", 2)), pytest.raises(OSError, match="No space left"):
        write_tokens(tmp_path / "t.bin", [np.arange(9)] * 5, 100)
    assert not list(tmp_path.iterdir())


def test_small_text_stays_a_corpus(tmp_path):
    (tmp_path / "x.txt").write_text("some text\n" * 100, encoding="utf-8")
    assert isinstance(open_corpus(tmp_path / "x.txt"), Corpus)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what memory is in use")
def test_memory_does_not_grow_with_the_text(tmp_path):
    """A shorter form of the gigabyte of docs/reliability.md: four times the text, hardly more memory."""
    small, large = (read_large_text(tmp_path, n_bytes=n << 20, n_words=2_000, vocab_size=400) for n in (10, 40))
    assert large["tokens"] > 3 * small["tokens"] and large["peak"] < min(1.15 * small["peak"], 300 << 20), (small, large)


def test_a_pretraining_run_reads_a_streamed_corpus(tmp_path):
    root = Path(__file__).parent.parent.parent
    (tmp_path / "x.txt").write_text("".join(f"line {i} of a text\n" for i in range(3000)), encoding="utf-8")
    flags = (
        "--n-layer 1 --n-head 2 --n-embd 16 --n-positions 16 --vocab-size 300 --micro-batch 2 --eval-batches 2 --steps 2 --sample-tokens 4"
    )
    code = "import sys, runpy; from tinygpt.data import streaming; streaming.STREAM_BYTES = 0; sys.argv = sys.argv[1:]; "
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(root / "examples" / "pretrain.py"), "--corpus", "x.txt", "--run", "run", *flags.split()]
    environment = {**os.environ, "PYTHONPATH": str(root), "TINYGPT_CACHE": str(tmp_path / "cache"), **fake_cupy.of_processes()}
    for more in ([], ["--resume", "run", "--steps", "3"]):
        done = subprocess.run(
            [*(command if not more else command[:4]), *more], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and "streamed, fingerprint" in done.stdout, done.stderr
        assert f"backend    {backend.name} (" in done.stdout
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 2
