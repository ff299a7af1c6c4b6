"""Vocabularies of pieces in GGUF files: SentencePiece's, T5's and BERT's, read back with the library `gguf`; run as llama.cpp runs them, by three
short functions written from its description, they give the ids of the libraries that trained them.

That llama.cpp itself gives these ids is checked by hand, with benchmarks/text_against_llama_cpp.py.
"""

import dataclasses
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("gguf", reason="needs the extra gguf")
pytest.importorskip("tokenizers", reason="needs the extra tokenizers")
pytest.importorskip("sentencepiece", reason="needs the extra tokenizers")

import gguf

from benchmarks.llama_cpp_vocabularies import ADDED, KINDS, TURNS, joined_pieces, sentence_pieces, write
from tests.tinygpt.test_gguf import read
from tinygpt import GPT, GPTConfig
from tinygpt.data.gguf_vocabulary import vocabulary_of, write_vocabulary
from tinygpt.data.library_tokenizer import LibraryTokenizer
from tinygpt.data.sentence_pieces import BLANK, ModelFile, read_model
from tinygpt.data.tokenizer_files import load_tokenizer
from tinygpt.data.wrapping import Wrapping
from tinygpt.weights.gguf import write_gguf

TEXTS = (Path(__file__).parent.parent.parent / "docs" / "training.md").read_text(encoding="utf-8").split("\n")[:150]
STRINGS = st.lists(st.sampled_from(["the", " ", "  ", "   ", "\n\n", "\n\n\n", "loss", "Adam", "00", "<table>", "-", "é", "中", "😀", BLANK, "\t"]) | st.characters(max_codepoint=300, exclude_categories=["Cs"]), max_size=12).map("".join)  # fmt: skip
PLAIN = st.lists(st.sampled_from(["the", "loss", "training", "Adam", "rate"]) | st.text("abcdest .,-", min_size=1, max_size=5), max_size=8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(our tokenizer, metadata of its GGUF file by key under tokenizer.ggml.) for each kind."""
    folder = tmp_path_factory.mktemp("vocabularies")
    rules = folder / "rules.tsv"
    rules.write_text(RULES, encoding="utf-8")
    options = {kind: {"normalization_rule_tsv": str(rules)} if kind.startswith("t5") else {} for kind in KINDS}
    made = {kind: load_tokenizer(write(kind, folder / kind, TEXTS, **options[kind])) for kind in KINDS}
    return Files({kind: (*written(tokenizer, folder / f"{kind}.gguf"), rules) for kind, tokenizer in made.items()})


RULES = "9\t20\nA\t20\nC9\t45\n"
"""Tab and line feed are spaces, an accent goes; SentencePiece's own table takes the library gguf seconds to read."""


class Files(dict):
    def __repr__(self):  # which Hypothesis writes down, and these are long
        return "files"


def written(tokenizer, path, more_rows=3):
    n_rows = tokenizer.n_vocab + more_rows
    model = GPT(GPTConfig(n_layer=1, n_head=1, n_embd=2, n_positions=4, vocab_size=n_rows))
    write_gguf(path, model, lambda writer: write_vocabulary(writer, tokenizer, n_rows))
    metadata = read(gguf, path)[1]
    return tokenizer, {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items() if key.startswith("tokenizer.ggml.")}


def named(found, kind):
    return [text for text, type in zip(found["tokens"], found["token_type"], strict=True) if type == gguf.TokenType[kind]]


# ---- what llama.cpp does -----------------------------------------------------------------------------------------------------------------


def joined_by_score(found, text):
    """The neighbors whose joint text has the highest score are joined, the leftmost of equal ones, until none is a token; the rest are bytes.
    Added tokens are cut out before, the longest first."""
    ids = {token: id for id, token in enumerate(found["tokens"])}
    added = sorted(named(found, "USER_DEFINED"), key=len, reverse=True)
    fragments = [part for part in re.split("|".join(f"({re.escape(token)})" for token in added), text) if part] if added else [text]
    out, after_token = [], True
    for fragment in filter(None, fragments):
        if fragment in added:
            out, after_token = [*out, ids[fragment]], True
            continue
        parts = list((" " * (after_token and found["add_space_prefix"]) + fragment).replace(" ", BLANK))
        after_token = False
        while ways := [(-found["scores"][ids[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in ids]:
            i = min(ways)[1]
            parts[i : i + 2] = ["".join(parts[i : i + 2])]
        out += [id for part in parts for id in ([ids[part]] if part in ids else [ids[f"<0x{byte:02X}>"] for byte in part.encode()])]
    return out


def likeliest(found, text):
    """Of all ways to cut the words, each with a blank in front, the one with the highest sum of scores."""
    ids, words = {token: id for id, token in enumerate(found["tokens"])}, "".join(BLANK + word for word in text.split())
    unknown = min(score for score, kind in zip(found["scores"], found["token_type"], strict=True) if kind == gguf.TokenType.NORMAL) - 10
    best = [(0.0, [])]
    for end in range(1, len(words) + 1):
        ways = []
        for start in range(max(0, end - 20), end):
            score, before = best[start]
            if words[start:end] in ids:
                ways.append((score + found["scores"][ids[words[start:end]]], [*before, ids[words[start:end]]]))
            elif end == start + 1:
                repeated = before and before[-1] == found["unknown_token_id"]
                ways.append((score + unknown, before if repeated else [*before, found["unknown_token_id"]]))
        best.append(max(ways))
    return best[-1][1]


def longest_pieces(found, text):
    """Each word, in lower case if the file says so, begins with U+2581, and is cut into the longest tokens from its start on."""
    ids, out = {token: id for id, token in enumerate(found["tokens"])}, []
    for word in re.findall(r"[a-z]+|[^a-z\s]", text.lower() if found["normalizer.lowercase"] else text, re.IGNORECASE):
        rest, pieces = BLANK + word, []
        while rest and (n := next((n for n in range(len(rest), 0, -1) if rest[:n] in ids), 0)):
            pieces, rest = [*pieces, ids[rest[:n]]], rest[n:]
        out += [found["unknown_token_id"]] if rest else pieces
    return out


# ---- files -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_pieces_are_those_of_sentencepieces_file(files, kind):
    tokenizer, found, _ = files[kind]
    pieces = ModelFile.read(joined_pieces(TEXTS)).pieces if kind == "llama" else None
    n = tokenizer.n_vocab
    assert (found["model"], found["pre"]) == ("llama", "default")
    assert found["tokens"][n:] == [f"[PAD{id}]" for id in range(n, n + 3)] and found["token_type"][n:] == [gguf.TokenType.UNUSED] * 3
    assert sorted(named(found, "BYTE")) == [f"<0x{byte:02X}>" for byte in range(256)] and named(found, "UNKNOWN") == ["<unk>"]
    if kind == "llama":
        assert [(text, gguf.TokenType(type).name) for text, type in zip(found["tokens"], found["token_type"], strict=True)][:n] == [
            (text, type) for text, _, type in pieces
        ]
        joined = [id for id, (text, _, type) in enumerate(pieces) if type == "NORMAL" and len(text) > 1]
        by_ours, by_theirs = (sorted(joined, key=lambda id: -scores[id]) for scores in (found["scores"], [score for _, score, _ in pieces]))
        assert by_ours == by_theirs
        assert found["add_space_prefix"] and (found["bos_token_id"], found["eos_token_id"]) == (1, 2) and found["add_bos_token"]
    else:
        assert named(found, "CONTROL") == ["<pad>", "<eos>", "<bos>", *TURNS] and not found["add_space_prefix"]
        assert sorted(named(found, "USER_DEFINED")) == sorted(text.replace(BLANK, " ") for text in ADDED)
        assert [found["tokens"][found[f"{part}_token_id"]] for part in ("bos", "eos", "padding")] == ["<bos>", "<eos>", "<pad>"]


def test_a_unigram_model_is_written_from_either_file(files):
    (_, apart, rules), (single, found, _) = files["t5"], files["t5, tokenizer.json"]
    n, model = (
        single.n_vocab,
        ModelFile.read(sentence_pieces(TEXTS, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, normalization_rule_tsv=str(rules))),
    )
    assert found["model"] == apart["model"] == "t5" and n == len(model.pieces)
    for key in ("tokens", "scores", "token_type"):
        assert found[key][:n] == apart[key][:n]
    assert found["scores"][:n] == [score for _, score, _ in model.pieces]
    assert bytes(found["precompiled_charsmap"]) == bytes(apart["precompiled_charsmap"]) == model.charsmap != b""
    for each in (found, apart):
        assert (each["add_space_prefix"], each["remove_extra_whitespaces"], each["add_bos_token"], each["add_eos_token"]) == (
            True,
            True,
            False,
            True,
        )
        assert [each[f"{part}_token_id"] for part in ("padding", "eos", "unknown")] == [0, 1, 2]
    assert "<extra_id_0>" in named(apart, "CONTROL") and apart["tokens"].index("<extra_id_0>") == n + 99


def test_word_pieces_begin_words_with_a_sign(files):
    for kind, lower in (("bert", True), ("bert, cased", False)):
        tokenizer, found, _ = files[kind]
        vocabulary = tokenizer.data["model"]["vocab"]
        assert named(found, "CONTROL") == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        for text, id in vocabulary.items():
            if id > 4:
                assert found["tokens"][id] == (text[2:] if text.startswith("##") and text != "##" else BLANK + text)
        assert [found["tokens"][found[f"{part}_token_id"]] for part in ("bos", "seperator", "mask", "unknown", "padding")] == "[CLS] [SEP] [MASK] [UNK] [PAD]".split()  # fmt: skip
        assert (found["normalizer.lowercase"], found["normalizer.strip_accents"]) == (lower, lower) and found["model"] == "bert"


# ---- ids ---------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["llama", "gemma", "llama, later files"]), text=STRINGS)
def test_joined_by_score_pieces_have_the_same_ids(files, kind, text):
    tokenizer, found, _ = files[kind]
    if kind == "gemma":
        text = re.sub(f"{BLANK}+", "", text)  # for which it has tokens of its own
    if kind == "llama, later files":
        text = text.lstrip(f" {BLANK}")  # such a text gets no blank in front
    assert joined_by_score(found, text) == tokenizer.encode(text)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["t5", "t5, tokenizer.json"]), words=PLAIN)
def test_the_likeliest_pieces_have_the_same_ids(files, kind, words):
    tokenizer, found, _ = files[kind]
    ours, theirs = tokenizer.encode(" ".join(words)), likeliest(found, " ".join(words))
    assert ours == theirs or sum(found["scores"][id] for id in ours) == pytest.approx(sum(found["scores"][id] for id in theirs), abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(kind=st.sampled_from(["bert", "bert, cased"]), words=PLAIN)
def test_the_longest_word_pieces_have_the_same_ids(files, kind, words):
    tokenizer, found, _ = files[kind]
    assert longest_pieces(found, " ".join(words)) == tokenizer.encode(" ".join(words))


def test_merges_of_equal_score_share_it_and_are_told(files):
    """As Llama 2's runs of blanks: merges of one stand among those of another."""
    data = {text: id for id, text in enumerate(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"ab", "aa", "aaa", "ab", "aab"])}
    merges = [["a", "a"], ["a", "b"], ["aa", "a"], ["aa", "b"], ["a", "aa"], ["a", "ab"]]
    found = vocabulary_of(with_model(files["llama"][0], vocab=data, merges=merges))
    scores = {text: found.scores[data[text]] for text in ("aa", "ab", "aaa", "aab")}
    assert (
        scores == {"aa": 0, "ab": -1, "aaa": -2, "aab": -2} and "of 2 tokens, such as 'aaa', llama.cpp joins the leftmost" in found.notes[0]
    )


def load_json(data):
    made = LibraryTokenizer(Path("tokenizer.json"), data, {}, {}, (), eos="", why="")
    made.set_roles({}, Wrapping())
    return made


def with_model(tokenizer, **changes):
    data = tokenizer.data
    return load_json(data | {"added_tokens": [], "post_processor": None, "model": data["model"] | changes})


# ---- what is refused ---------------------------------------------------------------------------------------------------------------------


def changed(tokenizer, path, value):
    """A copy of the tokenizer with another value in its tokenizer.json."""
    data = tokenizer.data
    *parents, key = path.split(".")
    inner = data
    for parent in parents:
        inner = inner[parent]
    inner[key] = value
    made = load_json(data)
    made.special, made.added = dict(tokenizer.special), dict(tokenizer.added)
    made.set_roles(tokenizer.roles, tokenizer.wrapping)
    return made


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("llama", "model.byte_fallback", False, "byte_fallback False in tokenizer.json, expected True"),
        ("llama", "model.ignore_merges", True, "ignore_merges True in tokenizer.json, expected False"),
        ("llama", "normalizer", {"type": "NFC"}, "the step {'type': 'NFC'} in tokenizer.json, expected SentencePiece's"),
        ("llama", "normalizer", None, r"no step that writes spaces as U\+2581 in tokenizer.json"),
        ("llama, later files", "pre_tokenizer.split", True, "the token .* across words, expected none"),
        ("t5, tokenizer.json", "model.byte_fallback", True, "byte_fallback True in tokenizer.json, expected False for a unigram model"),
        ("t5, tokenizer.json", "normalizer", {"type": "NFKC"}, "the normalizer {'type': 'NFKC'} in tokenizer.json, expected none, or"),
        ("t5, tokenizer.json", "normalizer", None, "the pre_tokenizer .* expected Metaspace, alone or, with a Precompiled"),
        ("bert", "normalizer.handle_chinese_chars", False, "handle_chinese_chars False in tokenizer.json's normalizer, expected BERT's, with True"),
        ("bert", "pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer {'type': 'Whitespace'}, .* expected BertPreTokenizer and '##'"),
    ],
)  # fmt: skip
def test_what_llama_cpp_cuts_otherwise_is_refused(files, kind, path, value, message):
    with pytest.raises(ValueError, match=f"export: {message}"):
        vocabulary_of(changed(files[kind][0], path, value))


def test_merges_that_leave_out_a_way_are_refused(files):
    """Byte-level BPE's trainer has one merge per token; llama.cpp would join others into it, too."""
    tokenizer = files["llama"][0]
    texts = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *"abc", "ab", "bc", "abc"]
    short = {"vocab": {text: id for id, text in enumerate(texts)}, "merges": [["a", "b"], ["b", "c"], ["ab", "c"]]}
    with pytest.raises(
        ValueError, match=r"no merge of 'a' and 'bc' in tokenizer.json, though 'abc' is a token, expected every way .*; give it a"
    ):
        vocabulary_of(with_model(tokenizer, **short))
    assert vocabulary_of(with_model(tokenizer, **short | {"merges": [*short["merges"], ["a", "bc"]]})).model == "llama"
    vocabulary = {text: id for text, id in tokenizer.data["model"]["vocab"].items() if text != "<0x41>"}
    merges = tokenizer.data["model"]["merges"]
    gap = with_model(tokenizer, vocab={text: id for id, text in enumerate(vocabulary)}, merges=merges)
    with pytest.raises(ValueError, match="no token <0x41> in the vocabulary, expected one for each of the 256 bytes"):
        vocabulary_of(gap)


def test_other_tokenizer_files_are_refused(files):
    level = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    with pytest.raises(ValueError, match=r"a tokenizer.json with the model 'WordLevel', expected one of BPE, Unigram, WordPiece"):
        vocabulary_of(load_json(files["llama"][0].data | {"added_tokens": [], "post_processor": None, "model": level}))
    bert = files["bert"][0]
    bare = changed(bert, "version", "1.0")
    bare.wrapping = Wrapping()
    with pytest.raises(ValueError, match=r"a text between the ids \(\) and \(\), expected cls_token and sep_token, 2 and 3"):
        vocabulary_of(bare)
    bare.wrapping, bare.added = bert.wrapping, {"MASK": 5}
    with pytest.raises(ValueError, match=r"the added token 'MASK' of letters alone, expected one with signs"):
        vocabulary_of(bare)
    bare.wrapping = dataclasses.replace(bert.wrapping, start=(2, 2))
    with pytest.raises(ValueError, match=r"texts stand between the ids \(2, 2\) and \(3,\), expected one at most on each side"):
        vocabulary_of(bare)


def test_sentencepiece_models_with_other_options_are_refused(files, tmp_path):
    tokenizer = files["t5"][0]
    for options, message in (
        ({"treat_whitespace_as_suffix": True}, "treat_whitespace_as_suffix True in the SentencePiece model, expected False"),
        ({"byte_fallback": True, "vocab_size": 900}, "byte_fallback in the SentencePiece model, expected none for a unigram model"),
        ({"model_type": "bpe"}, "a BPE model with 0 byte tokens, remove_extra_whitespaces True and a table of normal forms, expected 256, False and"),
    ):  # fmt: skip
        (tmp_path / "spiece.model").write_bytes(sentence_pieces(TEXTS, **options))
        tokenizer._library = read_model(tmp_path / "spiece.model")
        with pytest.raises(ValueError, match=f"export: {message}"):
            vocabulary_of(tokenizer)
    (tmp_path / "spiece.model").write_bytes(joined_pieces(TEXTS))
    tokenizer._library = read_model(tmp_path / "spiece.model")
    assert vocabulary_of(tokenizer).model == "llama"
