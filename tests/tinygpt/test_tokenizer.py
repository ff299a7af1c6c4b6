"""Tokenizers: what comes back is what went in, BPE is learned and applied by the book, and bad input gets a clear error."""

import functools
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.data.tokenizer import (
    BYTE_TOKENS,
    END_OF_TEXT,
    MAX_WHITESPACE_RUN,
    BPETokenizer,
    CharacterTokenizer,
    Tokenizer,
    WordTokenizer,
    count_words,
    encoder_tokenizer,
    gpt2_tokenizer,
    learn_merges,
)
from tinygpt.data.tokenizer_files import load_tokenizer
from tinygpt.data.windows import encode_documents

STORY = "The cat sat on the mat.\nThe dog didn't (it stood), and <|endoftext|> is text; 12 cats, 123 mats!\n\n" * 3
DATA = Path(os.environ.get("TINYGPT_DATA") or Path(__file__).parents[3] / "shared" / "data")
GPT2_FILES = {
    "vocab.json": DATA / "tiktoken" / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    "merges.txt": DATA / "tiktoken" / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
}
needs_gpt2 = pytest.mark.skipif(
    not all(path.is_file() for path in GPT2_FILES.values()), reason="GPT-2's vocabulary is not in $TINYGPT_DATA/tiktoken"
)


@functools.cache
def small_bpe() -> BPETokenizer:
    return BPETokenizer.train(STORY, 320)


@functools.cache
def gpt2() -> BPETokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(DATA / "tiktoken"))
        return gpt2_tokenizer()


def trained() -> list[Tokenizer]:
    return [CharacterTokenizer.train(STORY), WordTokenizer.train(STORY), small_bpe()]


def error(text: str) -> str:
    """A pattern for `match` that finds the text as it is."""
    return re.escape(text)


# ---- learning merges ---------------------------------------------------------------------------------------------------------------------


def test_learn_merges_follows_the_example_of_the_bpe_paper() -> None:
    words = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    assert list(learn_merges(words, 6)) == [
        ((b"e", b"s"), 9),
        ((b"es", b"t"), 9),  # before (l, o), which is later in the order of bytes
        ((b"l", b"o"), 7),
        ((b"lo", b"w"), 7),
        ((b"e", b"w"), 6),
        ((b"ew", b"est"), 6),
    ]


def recount_merges(word_counts: dict[bytes, int], n_merges: int, min_frequency: int) -> Iterator[tuple[tuple[bytes, bytes], int]]:
    """BPE as one would write it down: count all pairs anew in every step."""
    words = {word: [bytes([byte]) for byte in word] for word in word_counts}
    for _ in range(n_merges):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, tokens in words.items():
            for pair in pairwise(tokens):
                pairs[pair] += word_counts[word]
        best, count = min(pairs.items(), key=lambda item: (-item[1], item[0]), default=((b"", b""), 0))
        if count < min_frequency:
            return
        yield best, count
        words = {word: merge(tokens, best) for word, tokens in words.items()}


def merge(tokens: list[bytes], pair: tuple[bytes, bytes]) -> list[bytes]:
    merged: list[bytes] = []
    for token in tokens:
        merged.append(token)
        if tuple(merged[-2:]) == pair:
            merged[-2:] = [b"".join(pair)]
    return merged


@given(
    st.dictionaries(st.text("abc", min_size=1, max_size=12).map(str.encode), st.integers(1, 9), max_size=8),
    st.integers(0, 30),
    st.integers(1, 4),
)
def test_incremental_counts_equal_recounting(words: dict[bytes, int], n_merges: int, min_frequency: int) -> None:
    assert list(learn_merges(words, n_merges, min_frequency)) == list(recount_merges(words, n_merges, min_frequency))


def test_learn_merges_counts_overlapping_pairs_and_joins_from_the_left() -> None:
    assert list(learn_merges({b"aaaaa": 1}, 3, min_frequency=1)) == [((b"a", b"a"), 4), ((b"aa", b"a"), 1), ((b"aa", b"aaa"), 1)]


def test_count_words_splits_as_gpt2() -> None:
    counts = count_words(["I'll see  2 cats.", " cats\n\n"])
    assert counts == {b"I": 1, b"'ll": 1, b" see": 1, b" ": 1, b" 2": 1, b" cats": 2, b".": 1, b"\n\n": 1}


def test_training_is_deterministic_and_ignores_how_the_text_is_divided_into_documents() -> None:
    lines = STORY.splitlines(keepends=True)
    assert BPETokenizer.train(iter(lines), 300).merges == BPETokenizer.train(lines[::-1], 300).merges
    assert BPETokenizer.train(STORY, 300).fingerprint() == BPETokenizer.train(STORY, 300).fingerprint()


def test_training_ends_at_the_vocabulary_size_or_at_the_minimum_frequency() -> None:
    assert BPETokenizer.train(STORY, 257).merges == []
    assert BPETokenizer.train(STORY, 300).n_vocab == 300
    calls: list[tuple[int, int]] = []
    stopped = BPETokenizer.train(STORY, 5000, min_frequency=4, progress=lambda done, wanted: calls.append((done, wanted)))
    assert 257 < stopped.n_vocab < 5000
    assert calls == [(n, 5000 - 257) for n in range(1, stopped.n_vocab - 256)]


# ---- encoding and decoding ---------------------------------------------------------------------------------------------------------------


def test_every_unicode_scalar_value_survives() -> None:
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    assert small_bpe().decode(small_bpe().encode_array(everything)) == everything


@given(st.text())
def test_bpe_round_trip(text: str) -> None:
    ids = small_bpe().encode(text)
    assert small_bpe().decode(ids) == text
    assert small_bpe().decode_bytes(np.array(ids, dtype=np.int64)) == text.encode()
    assert b"".join(map(small_bpe().token_bytes, ids)) == text.encode()


@given(st.text(), st.text())
def test_character_round_trip(text: str, more: str) -> None:
    if text + more:
        tokenizer = CharacterTokenizer.train([text, more])
        assert tokenizer.n_vocab == len(set(text + more))
        assert tokenizer.decode(tokenizer.encode(more)) == more


@given(st.lists(st.text("ab\n .,", max_size=30), min_size=1), st.text("abc .\n", max_size=40))
def test_tiktoken_applies_our_merges_in_their_order(documents: list[str], text: str) -> None:
    documents.append("ab")
    tokenizer = BPETokenizer.train(documents, 300, min_frequency=1)
    expected: list[bytes] = []
    for word in re.findall(r" ?[a-z]+| ?[.,]+|\s+(?!\S)|\s+", text):
        tokens = [bytes([byte]) for byte in word.encode()]
        for pair in tokenizer.merges:
            tokens = merge(tokens, pair)
        expected += tokens
    assert [tokenizer.token_bytes(id) for id in tokenizer.encode(text)] == expected


def test_ids_are_laid_out_as_gpt2_does() -> None:
    assert [small_bpe().token_bytes(id) for id in range(256)] == BYTE_TOKENS
    assert BYTE_TOKENS[0] == b"!" and BYTE_TOKENS[188] == b"\x00" and BYTE_TOKENS[220] == b" "
    assert small_bpe().token_bytes(256) == b"".join(small_bpe().merges[0])
    assert small_bpe().eos_id == small_bpe().n_vocab - 1
    assert small_bpe().token_bytes(small_bpe().n_vocab - 1) == END_OF_TEXT.encode()


@pytest.mark.parametrize("tokenizer", trained()[1:], ids=repr)
def test_special_token_is_made_only_on_demand(tokenizer: Tokenizer) -> None:
    text = f"The cat{END_OF_TEXT}The dog"
    assert tokenizer.eos_id == tokenizer.n_vocab - 1
    assert tokenizer.eos_id not in tokenizer.encode(text)
    cat, dog = tokenizer.encode("The cat"), tokenizer.encode("The dog")
    assert tokenizer.encode(text, allow_special=True) == [*cat, tokenizer.eos_id, *dog]
    assert tokenizer.encode_array(text, allow_special=True).tolist() == [*cat, tokenizer.eos_id, *dog]


def test_characters_have_no_special_token() -> None:
    tokenizer = CharacterTokenizer.train(STORY)
    assert tokenizer.eos_id is None
    assert len(tokenizer.encode(END_OF_TEXT, allow_special=True)) == len(END_OF_TEXT)


def test_characters_are_numbered_by_code_point() -> None:
    tokenizer = CharacterTokenizer.train("hello é😀")
    assert tokenizer.characters == " ehloé😀"
    assert tokenizer.encode("hé😀") == [2, 5, 6]
    assert tokenizer.token_bytes(6) == "😀".encode()


def test_words_are_numbered_alphabetically_and_joined_readably() -> None:
    tokenizer = WordTokenizer.train("b a a, don't\nb a (c) [d]!", vocab_size=None)
    assert tokenizer.words == ["\n", "!", "(", ")", ",", "[", "]", "a", "b", "c", "d", "don't"]
    assert tokenizer.decode(tokenizer.encode("a,   b (c) [d]!\nDON'T  don't")) == "a, b (c) [d]!\n<unk> don't"
    limited = WordTokenizer.train("z b b a, don't\nz b (c) [d]!", vocab_size=4)  # the most frequent words, then in order
    assert limited.words == ["b", "z"] and limited.encode("z c b") == [1, 2, 0]
    assert limited.token_bytes(2) == b"<unk>"


def test_words_saved_in_order_of_frequency_keep_their_ids(tmp_path: Path) -> None:
    """Written by version 0.1, which numbered words by falling frequency: the model's embedding rows go by these ids."""
    vocabulary = {"the": 0, "cat": 1, ".": 2, "a": 3, "<unk>": 4, "<|endoftext|>": 5}
    written = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    WordTokenizer.train("any text").save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    special = [token | {"id": vocabulary[token["content"]]} for token in data["added_tokens"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data | {"model": written, "added_tokens": special}), encoding="utf-8")
    loaded = load_tokenizer(tmp_path)
    assert isinstance(loaded, WordTokenizer) and loaded.words == ["the", "cat", ".", "a"]
    assert loaded.encode("a cat. the dog<|endoftext|>", allow_special=True) == [3, 1, 2, 0, 4, 5]
    loaded.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"] == vocabulary


def test_arrays_have_the_smallest_type_that_holds_every_id() -> None:
    assert small_bpe().encode_array(STORY).dtype == small_bpe().dtype == np.uint16
    characters = "".join(map(chr, range(0x10000, 0x10000 + 65536)))
    assert CharacterTokenizer(characters).encode_array(characters).max() == 65535
    assert CharacterTokenizer(characters + "a").encode_array("a").dtype == np.uint32


@pytest.mark.parametrize("tokenizer", trained(), ids=repr)
def test_nothing_in_nothing_out(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("") == [] and tokenizer.encode_array("").shape == (0,)
    assert tokenizer.decode([]) == "" and tokenizer.decode_bytes(np.zeros(0, np.uint16)) == b""


def test_half_a_character_decodes_to_the_replacement_character() -> None:
    ids = BPETokenizer([]).encode("é")
    assert len(ids) == 2
    assert BPETokenizer([]).decode(ids[:1]) == "\ufffd" and BPETokenizer([]).decode_bytes(ids[:1]) == b"\xc3"


@pytest.mark.parametrize("whitespace", [" ", "\n", "\u3000", " \t"])
def test_a_million_blanks(whitespace: str) -> None:
    text = "a" + whitespace * (1_000_000 // len(whitespace)) + "b" + whitespace * MAX_WHITESPACE_RUN + "c"
    ids = small_bpe().encode_array(text)
    assert small_bpe().decode(ids) == text
    with_end = small_bpe().encode(text + END_OF_TEXT, allow_special=True)
    assert with_end == [*ids.tolist(), small_bpe().eos_id]


def test_whitespace_is_cut_only_where_it_must_be() -> None:
    text = "a" + " " * MAX_WHITESPACE_RUN + "b"
    encoding = small_bpe()._encoding
    assert small_bpe().encode(text) == encoding.encode_ordinary(text)
    longer = "a" + " " * (MAX_WHITESPACE_RUN + 1) + "b"
    assert small_bpe().encode(longer) == encoding.encode_ordinary(longer[: MAX_WHITESPACE_RUN + 1]) + encoding.encode_ordinary(" b")


@needs_gpt2
def test_gpt2_is_gpt2() -> None:
    assert (gpt2().kind, gpt2().n_vocab, gpt2().eos_id) == ("gpt2", 50257, 50256)
    assert gpt2().encode("Hello, I'm a language model,") == [15496, 11, 314, 1101, 257, 3303, 2746, 11]
    assert gpt2().merges[:2] == [(b" ", b"t"), (b" ", b"a")]


@needs_gpt2
@given(st.text() | st.lists(st.sampled_from(["'s", "'LL", " ", "\n", "\t", "é", "12", "!?", "\u3000", "the", "\x1c", "\x85"])).map("".join))
def test_gpt2_gives_tiktokens_ids(text: str) -> None:
    gpt2()
    assert gpt2().encode(text) == tiktoken.get_encoding("gpt2").encode_ordinary(text)


# ---- saving and loading ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", trained(), ids=repr)
def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    assert type(loaded) is type(tokenizer) and loaded.kind == tokenizer.kind
    assert loaded.fingerprint() == tokenizer.fingerprint() and repr(loaded) == repr(tokenizer)
    assert (loaded.n_vocab, loaded.eos_id) == (tokenizer.n_vocab, tokenizer.eos_id)
    assert loaded.encode(STORY) == tokenizer.encode(STORY)
    tokenizer.save(tmp_path / "new" / "folder")  # over itself


@given(st.text(min_size=1))
def test_any_characters_survive_json(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        CharacterTokenizer.train(text).save(folder)
        assert load_tokenizer(folder).decode(load_tokenizer(folder).encode(text)) == text


def test_fingerprints_tell_tokenizers_apart() -> None:
    kinds = [*trained(), CharacterTokenizer.train("ab"), CharacterTokenizer.train("abc"), BPETokenizer([]), BPETokenizer([(b"a", b"b")])]
    assert len({tokenizer.fingerprint() for tokenizer in kinds}) == len(kinds)
    assert re.fullmatch(r"BPETokenizer\(kind='bpe', n_vocab=258, fingerprint='[0-9a-f]{8}'\)", repr(BPETokenizer([(b"a", b"b")])))


def test_files_are_in_gpt2s_format(tmp_path: Path) -> None:
    BPETokenizer([(b" ", b"a"), (b" a", b"\n")]).save(tmp_path)
    assert (tmp_path / "merges.txt").read_bytes().decode() == "#version: 0.2\nĠ a\nĠa Ċ\n"
    vocabulary = json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8"))
    assert vocabulary["!"] == 0 and vocabulary["Ġ"] == 220 and vocabulary["ĠaĊ"] == 257 and vocabulary[END_OF_TEXT] == 258


@needs_gpt2
def test_hugging_faces_gpt2_files_load(tmp_path: Path) -> None:
    for name, path in GPT2_FILES.items():
        shutil.copy(path, tmp_path / name)
    loaded = load_tokenizer(tmp_path)
    assert loaded.kind == "gpt2" and loaded.fingerprint() == gpt2().fingerprint()
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "merges.txt").read_bytes() == GPT2_FILES["merges.txt"].read_bytes()
    assert json.loads((tmp_path / "again" / "vocab.json").read_bytes()) == json.loads(GPT2_FILES["vocab.json"].read_bytes())


@pytest.mark.parametrize("as_pairs", [True, False])
def test_hugging_faces_single_file_loads(as_pairs: bool, tmp_path: Path) -> None:
    small_bpe().save(tmp_path)
    merges = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    data = {
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": json.loads((tmp_path / "vocab.json").read_text(encoding="utf-8")),
            "merges": [merge.split(" ") if as_pairs else merge for merge in merges],
        },
    }
    write(tmp_path / "one", {"tokenizer.json": data})
    assert load_tokenizer(tmp_path / "one").fingerprint() == small_bpe().fingerprint()


# ---- encoders ----------------------------------------------------------------------------------------------------------------------------


def test_an_encoders_tokenizer_wraps_texts_as_bert_does(tmp_path: Path) -> None:
    tokenizer = encoder_tokenizer(STORY, 300)
    pad, cls, sep, mask = range(296, 300)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.n_vocab) == (pad, cls, sep, mask, 300)
    assert tokenizer.eos_id == sep and tokenizer.start == (cls,) and tokenizer.bos_id is tokenizer.unk_id is None
    assert tokenizer.merges == BPETokenizer.train(STORY, 297).merges
    a, b = tokenizer.encode("The cat"), tokenizer.encode("the dog")
    assert tokenizer.encode_wrapped("The cat") == ([cls, *a, sep], [0] * (len(a) + 2))
    assert tokenizer.encode_wrapped("The cat", "the dog") == ([cls, *a, sep, *b, sep], [0] * (len(a) + 2) + [1] * (len(b) + 1))
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint() and again.roles == tokenizer.roles and again.wrapping == tokenizer.wrapping
    assert (again.eos_id, again.mask_id, again.lstrip, again.end_ids) == (sep, mask, {"[MASK]"}, (sep,))
    assert encode_documents(["The cat", "the dog"], again).tolist() == [*a, sep, *b, sep]  # [CLS] opens windows, not documents


def test_a_mask_stands_for_a_word_and_the_blank_before_it() -> None:
    tokenizer = encoder_tokenizer(STORY, 300)
    before, after = tokenizer.encode("The cat"), tokenizer.encode(" the mat")
    for gap in ("", " ", " \n\u3000"):
        assert tokenizer.encode(f"The cat{gap}[MASK] the mat", allow_special=True) == [*before, tokenizer.mask_id, *after]
    assert tokenizer.encode(" [MASK] [SEP]", allow_special=True) == [tokenizer.mask_id, *tokenizer.encode(" "), tokenizer.sep_id]
    assert tokenizer.mask_id not in tokenizer.encode("The [MASK]")


def test_texts_of_other_kinds_of_models_are_wrapped_in_nothing() -> None:
    tokenizer = small_bpe()
    assert tokenizer.mask_id is None and tokenizer.roles == {}
    assert tokenizer.encode_wrapped("The cat", "") == (ids := tokenizer.encode("The cat"), [0] * len(ids))
    assert tokenizer.encode_wrapped("") == ([], [])


def test_texts_longer_than_the_context() -> None:
    tokenizer = encoder_tokenizer(STORY, 300)
    n = len(tokenizer.encode("The cat sat"))
    assert len(tokenizer.encode_wrapped("The cat sat", n_positions=n + 2).ids) == n + 2
    found = error(f"encode: {n + 2} tokens, 2 of them around the text, expected at most {n + 1}, the model's context; shorten the text")
    with pytest.raises(ValueError, match=found):
        tokenizer.encode_wrapped("The cat sat", n_positions=n + 1)
    with pytest.raises(ValueError, match=error("vocab_size: 259, expected at least 260 (256 bytes, [PAD], [CLS], [SEP], [MASK])")):
        encoder_tokenizer(STORY, 259)


# ---- bad input ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", trained(), ids=repr)
def test_bad_text(tokenizer: Tokenizer) -> None:
    for encode in (tokenizer.encode, tokenizer.encode_array):
        with pytest.raises(ValueError, match=error(r"encode: lone surrogate '\ud83d' at position 4, expected Unicode text; ")):
            encode("The \ud83d cat")
        latin1 = "caf\u00e9".encode("latin-1").decode("utf-8", errors="surrogateescape")
        with pytest.raises(
            ValueError, match=error("encode: byte 0xe9 at position 3 is not UTF-8, expected UTF-8 text; convert it, for exam")
        ):
            encode(latin1)
        with pytest.raises(TypeError, match=error("encode: bytes, expected str; decode bytes with")):
            encode(b"The cat")  # type: ignore[arg-type]


@pytest.mark.parametrize("tokenizer", trained(), ids=repr)
def test_bad_ids(tokenizer: Tokenizer) -> None:
    n = tokenizer.n_vocab
    for ids, position in (([0, n], 1), ([-1], 0), (np.array([0, 0, 2**63], dtype=np.uint64), 2), ([n, -1], 0)):
        found = error(f"decode: id {ids[position]} at position {position}, expected 0 <= id < {n} (the size of the vocabulary); use the")
        for decode in (tokenizer.decode, tokenizer.decode_bytes):
            with pytest.raises(ValueError, match=found):
                decode(ids)
    with pytest.raises(ValueError, match=error(f"id {n} at position 0")):
        tokenizer.token_bytes(n)
    for ids, found in (
        ([[0, 1]], "list of shape (1, 2) and type int64"),
        ([0.5], "list of shape (1,) and type float64"),
        (np.array([True]), "ndarray of shape (1,) and type bool"),
        ("text", "str of shape ()"),
        (0, "int of shape ()"),
        ([[0], [0, 1]], "list"),
        ([2**70], "list"),
        (None, "NoneType"),
    ):
        with pytest.raises(TypeError, match=error(f"decode: {found}") + ".*expected token ids in one dimension"):
            tokenizer.decode(ids)  # type: ignore[arg-type]


def test_unknown_characters_are_all_shown() -> None:
    tokenizer = CharacterTokenizer.train("abc")
    with pytest.raises(ValueError, match=error("encode: 1 unknown character 'd' (first at position 1), expected only the 3 characters")):
        tokenizer.encode("adada")
    with pytest.raises(ValueError, match=error(r"encode: 3 unknown characters '\n', 'é', '\u200b' (first at position 3)")):
        tokenizer.encode("abc\né\u200bé")
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 30)))
    with pytest.raises(ValueError, match=error("encode: 30 unknown characters '一', ") + ".* and 20 more .*use BPE"):
        tokenizer.encode(many)


@pytest.mark.parametrize("train", [CharacterTokenizer.train, WordTokenizer.train, lambda texts: BPETokenizer.train(texts, 300)])
def test_bad_training_text(train) -> None:  # type: ignore[no-untyped-def]
    for empty in ("", [], ["", ""]):
        with pytest.raises(ValueError, match="train: empty text, expected at least one character; check"):
            train(empty)
    with pytest.raises(ValueError, match=error(r"train: lone surrogate '\udc00' at position 1")):
        train(["fine", "a\udc00"])
    with pytest.raises(TypeError, match="train: int, expected str"):
        train([1])


def test_bad_training_settings() -> None:
    with pytest.raises(ValueError, match=error("vocab_size: 256, expected at least 257 (256 bytes and <|endoftext|>); raise it")):
        BPETokenizer.train(STORY, 256)
    with pytest.raises(ValueError, match=error("vocab_size: 2, expected at least 3 (one word, <unk> and <|endoftext|>)")):
        WordTokenizer.train(STORY, 2)
    with pytest.raises(ValueError, match="min_frequency: 0, expected at least 1"):
        BPETokenizer.train(STORY, 300, min_frequency=0)
    for wrong in (300.0, "300", True):
        with pytest.raises(TypeError, match=f"vocab_size: {wrong!r}, expected an integer"):
            BPETokenizer.train(STORY, wrong)  # type: ignore[arg-type]


def test_bad_vocabularies() -> None:
    with pytest.raises(ValueError, match="characters: none, expected at least one"):
        CharacterTokenizer("")
    for words, twice in ((["a", "b", "a"], "a"), (["<unk>"], "<unk>")):
        with pytest.raises(ValueError, match=error(f"words: {twice!r} twice, expected each word once")):
            WordTokenizer(words)


@pytest.mark.parametrize(
    ("merges", "found"),
    [
        ([(b"a", b"bc")], "merge 1: b'bc' is no token yet, expected a byte or the result of an earlier merge; a merge is missing"),
        ([(b"a", b"b"), (b"", b"a")], "merge 2: b'' is no token yet"),
        ([("a", "b")], "merge 1: 'a' is no token yet"),
        ([(b"a", b"b"), (b"a", b"b")], "merge 2: makes b'ab' for the second time, expected once; remove the duplicate"),
        ([(b"a", b"b"), (b"b", b"c"), (b"ab", b"c"), (b"a", b"bc")], "merge 4: makes b'abc' for the second time"),
        ([(b"b", b"c"), (b"a", b"b"), (b"ab", b"c")], "merge 3: b'ab' never meets b'c', because an earlier merge joins bytes across"),
        ([(b"a", b"a"), (b"a", b"aa")], "merge 2: b'a' never meets b'aa'"),
    ],
)
def test_bad_merges(merges: list[tuple[bytes, bytes]], found: str) -> None:
    with pytest.raises(ValueError, match=error(found)):
        BPETokenizer(merges)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=8))
def test_merges_are_refused_exactly_if_bpe_does_not_reach_them(choices: list[tuple[int, int]]) -> None:
    tokens = [b"a", b"b", b"c"]
    merges: list[tuple[bytes, bytes]] = []
    for i, j in choices:
        left, right = tokens[i % len(tokens)], tokens[j % len(tokens)]
        parts = [bytes([byte]) for byte in left + right]
        for pair in merges:
            parts = merge(parts, pair)
        if parts == [left, right]:  # what BPE makes of these bytes before the new merge
            merges.append((left, right))
            tokens.append(left + right)
        else:
            with pytest.raises(ValueError, match=r"never meets|second time"):
                BPETokenizer([*merges, (left, right)])
    assert BPETokenizer(merges).merges == merges


def write(directory: Path, files: dict[str, object]) -> Path:
    directory.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name).write_text(text, encoding="utf-8", newline="\n")
    return directory


def bytes_and(*tokens: str) -> dict[str, int]:
    letters = [*(chr(b) for b in range(33, 127)), *(chr(b) for b in range(161, 173)), *(chr(b) for b in range(174, 256))]
    letters += [chr(256 + n) for n in range(256 - len(letters))]
    return {token: id for id, token in enumerate([*letters, *tokens])}


GOOD = bytes_and("ab", "abc", END_OF_TEXT)
GOOD_MERGES = "#version: 0.2\na b\nab c\n"


def test_merges_are_read_with_windows_line_ends_and_without_version(tmp_path: Path) -> None:
    expected = BPETokenizer([(b"a", b"b"), (b"ab", b"c")]).fingerprint()
    for merges in (GOOD_MERGES, GOOD_MERGES.replace("\n", "\r\n"), "a b\nab c"):
        assert load_tokenizer(write(tmp_path, {"vocab.json": GOOD, "merges.txt": merges})).fingerprint() == expected


@pytest.mark.parametrize(
    ("vocabulary", "merges", "found"),
    [
        (GOOD, "a b\nab c\na b\n", "merges.txt: merge 3: makes b'ab' for the second time"),
        (GOOD, "ab c\na b\n", "merges.txt: merge 1: b'ab' is no token yet"),
        (GOOD, "ab c\n", "vocab.json: 'ab' is made by no merge, expected none such; restore the missing merge"),
        (GOOD, "a b\n", "vocab.json: 'abc' is made by no merge"),
        (
            bytes_and("ab", END_OF_TEXT, "abc"),
            "a b\n",
            "vocab.json: 'abc' is made by no merge, expected none such; restore the missing merge",
        ),
        (
            bytes_and("ab", END_OF_TEXT),
            GOOD_MERGES,
            "vocab.json: no id for 'abc', expected one for each of the 256 bytes and 2 merges; take",
        ),
        ({"a": 0, "b": 1}, "a b\n", "vocab.json: no id for '!', expected one for each of the 256 bytes and 1 merges"),
        (GOOD, "a b c\n", "merges.txt: merge 1 is ['a', 'b', 'c'], expected two tokens in GPT-2's letters for bytes"),
        (GOOD, "a b\nab\n", "merges.txt: merge 2 is ['ab'], expected two tokens"),
        (GOOD, "a b\nab 一\n", "merges.txt: merge 2 is ['ab', '一'], expected two tokens"),
        (GOOD | {"a": 0}, GOOD_MERGES, "vocab.json: id 0 for 'a', expected 1 (ids are 0, 1, 2, ...)"),
        (GOOD | {"x": 9999}, GOOD_MERGES, "vocab.json: id 88 for 'y', expected 87"),
        (GOOD | {"a": -1}, GOOD_MERGES, "vocab.json: id -1 for 'a', expected 0"),
        (GOOD | {"a": 1.5}, GOOD_MERGES, "vocab.json: id 1.5 for 'a', expected an integer"),
        (GOOD | {"a": True}, GOOD_MERGES, "vocab.json: id True for 'a', expected an integer"),
        (GOOD | {"a": None}, GOOD_MERGES, "vocab.json: id None for 'a', expected an integer"),
        (GOOD | {"\ud800": 1}, GOOD_MERGES, r"vocab.json: lone surrogate '\ud800' at position 0"),
        ([1, 2], GOOD_MERGES, "vocab.json: [1, 2], expected a vocabulary that maps tokens to ids"),
        ({}, GOOD_MERGES, "vocab.json: {}, expected a vocabulary"),
        ("{", GOOD_MERGES, "vocab.json: Expecting property name"),
        ("[" * 100_000, GOOD_MERGES, "vocab.json: maximum recursion depth"),
        ('{"a": ' + "9" * 5000 + "}", GOOD_MERGES, "vocab.json: Exceeds the limit"),
    ],
)
def test_bad_bpe_files(vocabulary: object, merges: str, found: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=error(f"{tmp_path / found}")):
        load_tokenizer(write(tmp_path, {"vocab.json": vocabulary, "merges.txt": merges}))


def test_files_that_are_not_utf8(tmp_path: Path) -> None:
    write(tmp_path, {"vocab.json": GOOD, "merges.txt": GOOD_MERGES})
    (tmp_path / "merges.txt").write_bytes(b"a b\n\xff\xfe")
    with pytest.raises(ValueError, match=error(f"{tmp_path / 'merges.txt'}: byte 0xff at offset 4 is not UTF-8, expected UTF-8 text")):
        load_tokenizer(tmp_path)


def test_bad_single_files(tmp_path: Path) -> None:
    CharacterTokenizer.train("abc").save(tmp_path / "characters")
    WordTokenizer.train("a b c").save(tmp_path / "words")
    characters = json.loads((tmp_path / "characters" / "tokenizer.json").read_text(encoding="utf-8"))
    words = json.loads((tmp_path / "words" / "tokenizer.json").read_text(encoding="utf-8"))
    bpe = {"model": {"type": "BPE", "vocab": GOOD, "merges": 5}, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}

    def with_vocabulary(data: dict[str, object], vocabulary: object) -> dict[str, object]:
        return data | {"model": {"type": "WordLevel", "vocab": vocabulary}}

    for data, found in (
        ([], "a JSON list, expected an object; is it the right file?"),
        ({"model": "BPE"}, "no model, expected one of type"),
        (bpe, "model 'BPE' with pre_tokenizer {'add_prefix_space': True, 'type': 'ByteLevel'} (data did not match"),
        (characters | {"normalizer": {"type": "Nonsense"}}, "model 'WordLevel' with pre_tokenizer"),
        (characters | {"pre_tokenizer": 5}, "model 'WordLevel' with pre_tokenizer 5 ("),
        (with_vocabulary(characters, {"a": 0, "b": 2}), "id 2 for 'b', expected 1"),
        (with_vocabulary(characters, {"b": 0, "a": 1}), "other tokens or another order, expected single characters by code point"),
        (with_vocabulary(characters, {"a": 0, "bc": 1}), "other tokens or another order"),
        (with_vocabulary(characters, None), "None, expected a vocabulary that maps tokens to ids"),
        (with_vocabulary(words, {"a": 0, "b": 1}) | {"added_tokens": []}, "ends with ['a', 'b'], expected <unk> and <|endoftext|>"),
        (with_vocabulary(words, {"a": 0, "b": 1}), "id 3 for '<unk>', expected 2"),
    ):
        with pytest.raises(ValueError, match=error(f"{tmp_path / 'bad' / 'tokenizer.json'}: {found}")):
            load_tokenizer(write(tmp_path / "bad", {"tokenizer.json": data}))


# ---- tokenizers of other programs --------------------------------------------------------------------------------------------------------


def test_ids_are_those_of_the_file_in_whatever_order(tmp_path: Path) -> None:
    """Special tokens first, last, in between, or none; and merges that are not numbered as they were learned."""
    expected = BPETokenizer([(b"a", b"b"), (b"ab", b"c")])
    text = "abc ab cab <s> <|endoftext|>"
    parts = [expected.token_bytes(id).decode() for id in expected.encode(text)]
    for n, tokens in enumerate((["<s>", "</s>", *GOOD], [*bytes_and(), "<s>", "abc", "[PAD]", "ab", "</s>"], [*bytes_and("ab", "abc")])):
        vocabulary = {token: id for id, token in enumerate(tokens)}
        directory = write(tmp_path / str(n), {"vocab.json": vocabulary, "merges.txt": GOOD_MERGES})
        tokenizer = load_tokenizer(directory)
        ids = tokenizer.encode(text)
        assert ids == [vocabulary[part.replace(" ", "Ġ")] for part in parts] and tokenizer.decode(ids) == text
        assert tokenizer.n_vocab == len(vocabulary) and tokenizer.eos_id == vocabulary.get(END_OF_TEXT)
        assert sorted(tokenizer.special) == sorted(vocabulary.keys() & {"<s>", "</s>", "[PAD]", END_OF_TEXT})
        for token, id in tokenizer.special.items():
            assert tokenizer.encode(f"ab{token}c", allow_special=True) == [vocabulary["ab"], id, vocabulary["c"]]
        assert tokenizer.fingerprint() != expected.fingerprint()
        tokenizer.save(tmp_path / f"{n} again")
        again = load_tokenizer(tmp_path / f"{n} again")
        assert again.fingerprint() == tokenizer.fingerprint() and again.encode(text) == ids and again.special == tokenizer.special


def test_the_end_token_is_the_one_that_the_files_name(tmp_path: Path) -> None:
    files = {"vocab.json": bytes_and("ab", "<s>", "</s>", END_OF_TEXT), "merges.txt": "a b\n"}
    write(tmp_path, files)
    assert load_tokenizer(tmp_path).eos_id == 259
    for name, content in (("special_tokens_map.json", {"eos_token": {"content": "</s>"}}), ("tokenizer_config.json", {"eos_token": "<s>"})):
        write(tmp_path / name[:-5], files | {name: content})
        assert load_tokenizer(tmp_path / name[:-5]).eos_id == 258 - (name[0] == "t")
    tokenizer = load_tokenizer(tmp_path / "special_tokens_map")
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").eos_id == 258
    write(tmp_path, {"special_tokens_map.json": {"eos_token": "<nowhere>"}})
    assert load_tokenizer(tmp_path).eos_id == 259


ADDED = {"content": "<pad>", "id": 259, "special": True}


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens.json": {"<pad>": 259, "new word": 260}, "special_tokens_map.json": {"pad_token": "<pad>"}},
        {"added_tokens.json": {"<pad>": 259, "new word": 260}, "special_tokens_map.json": {"additional_special_tokens": ["<pad>"]}},
        {"tokenizer.json": {"added_tokens": [ADDED, {"content": "new word", "id": 260, "special": False}]}},
        {"tokenizer_config.json": {"added_tokens_decoder": {"260": {"content": "new word"}, "259": {"content": "<pad>", "special": True}}}},
    ],
    ids=lambda files: "+".join(files),
)
def test_added_tokens_are_read_wherever_they_stand(files: dict[str, object], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, {"vocab.json": GOOD, "merges.txt": GOOD_MERGES} | files))
    assert tokenizer.n_vocab == 261 and tokenizer.eos_id == 258
    assert tokenizer.special == {END_OF_TEXT: 258, "<pad>": 259} and tokenizer.added == {"new word": 260}
    plain = BPETokenizer([(b"a", b"b"), (b"ab", b"c")])
    assert tokenizer.encode("a new word<pad>") == [*plain.encode("a "), 260, *plain.encode("<pad>")]
    assert tokenizer.encode("a new word<pad>", allow_special=True) == [*plain.encode("a "), 260, 259]
    assert tokenizer.decode([256, 260, 259]) == "abnew word<pad>"
    tokenizer.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").fingerprint() == tokenizer.fingerprint()


@pytest.mark.parametrize("tokenizer", trained()[:2], ids=repr)
def test_tokens_added_to_characters_and_words(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    n = tokenizer.n_vocab
    data["added_tokens"] += [{"id": n, "content": "<pad>", "special": True}, {"id": n + 1, "content": "The cat", "special": False}]
    loaded = load_tokenizer(write(tmp_path, {"tokenizer.json": data}))
    assert loaded.n_vocab == n + 2 and loaded.eos_id == tokenizer.eos_id and loaded.fingerprint() != tokenizer.fingerprint()
    assert loaded.encode("The cat sat.") == [n + 1, *tokenizer.encode(" sat.")]
    assert loaded.encode("cat<pad>", allow_special=True) == [*tokenizer.encode("cat"), n]
    loaded.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").fingerprint() == loaded.fingerprint()


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"added_tokens.json": [1]}, "added_tokens.json: a JSON list, expected an object"),
        ({"added_tokens.json": {"<pad>": "259"}}, "added_tokens.json: added token {'content': '<pad>', 'id': '259'}"),
        ({"added_tokens.json": {"<pad>": 300}}, "vocab.json: id 300 for '<pad>', expected 259 (ids are 0, 1, 2, ...)"),
        ({"added_tokens.json": {"a": 259}}, "vocab.json: id 65 for 'b', expected 64 (ids are"),
        ({"added_tokens.json": {"": 259}}, "merges.txt: added token '': id 259"),
        ({"tokenizer.json": {"added_tokens": 5}}, "tokenizer.json: added_tokens is a int, expected a list; this is no tokenizer file"),
        (
            {"tokenizer_config.json": {"added_tokens_decoder": [1]}},
            "tokenizer_config.json: added_tokens_decoder is a list, expected a dict",
        ),
        ({"special_tokens_map.json": {"additional_special_tokens": [[1]]}, "added_tokens.json": {"x": 8}}, "vocab.json: id 8 for 'x'"),
        ({"tokenizer.json": {"added_tokens": ["<pad>"]}}, "tokenizer.json: added token '<pad>', expected one with content and id"),
        (
            {"tokenizer.json": {"added_tokens": [ADDED]}, "added_tokens.json": {"<pad>": 260}},
            "added_tokens.json: id 260 for '<pad>', expec",
        ),
        (
            {"tokenizer.json": {"added_tokens": [{"content": "x", "id": 259, "lstrip": True}]}},
            "tokenizer.json: added token 'x' with lstrip",
        ),
    ],
)
def test_bad_added_tokens(files: dict[str, object], found: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=error(f"{tmp_path / found}")):
        load_tokenizer(write(tmp_path, {"vocab.json": GOOD, "merges.txt": GOOD_MERGES} | files))


# ---- words with combining marks ----------------------------------------------------------------------------------------------------------


def test_combining_marks_belong_to_their_word() -> None:
    text = "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e e\u0301cole don\u2019t x_1\u00b2"  # Hindi; macOS's form of é
    tokenizer = WordTokenizer.train(text)
    assert len(tokenizer.encode(text)) == 5 and sorted(tokenizer.words) == sorted(text.split())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_word_tokenizers_saved_before_keep_their_ids(tmp_path: Path) -> None:
    text = "e\u0301cole \u0926\u0941 x!"
    before = WordTokenizer(["cole", "e", "\u0301", "!", "x"], split=WordTokenizer.FORMER_SPLIT)
    before.save(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert saved["pre_tokenizer"]["pattern"] == {"Regex": "\\w+(?:['\u2019]\\w+)*|[^\\w\\s]|\\n"}
    loaded = load_tokenizer(tmp_path)
    assert loaded.encode(text) == before.encode(text) == [1, 2, 0, 5, 5, 4, 3] and loaded.fingerprint() == before.fingerprint()
    assert loaded.fingerprint() != WordTokenizer(before.words).fingerprint()  # which would cut this text elsewhere


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=error(f"{tmp_path}: no tokenizer, expected vocab.json and merges.txt, or tokenizer.json")):
        load_tokenizer(tmp_path)
    write(tmp_path, {"vocab.json": GOOD})
    with pytest.raises(FileNotFoundError, match=error(f"{tmp_path}: only vocab.json, expected vocab.json and merges.txt")):
        load_tokenizer(tmp_path)


def test_two_tokenizers_never_share_a_directory(tmp_path: Path) -> None:
    small_bpe().save(tmp_path)
    with pytest.raises(
        ValueError, match=error(f"{tmp_path}: holds ") + "(vocab.json|merges.txt)" + error(" of another tokenizer, expected a")
    ):
        CharacterTokenizer.train("abc").save(tmp_path)
    WordTokenizer.train("a b").save(tmp_path / "words")
    with pytest.raises(ValueError, match=error("holds tokenizer.json of another tokenizer")):
        small_bpe().save(tmp_path / "words")


@pytest.mark.parametrize("cause", [ConnectionResetError("no network"), ValueError("Hash mismatch")])
def test_gpt2_without_network(cause: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise cause

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(ConnectionError, match=r"gpt2 tokenizer: not in tiktoken's cache and not fetched .*TIKTOKEN_CACHE_DIR"):
        gpt2_tokenizer()
