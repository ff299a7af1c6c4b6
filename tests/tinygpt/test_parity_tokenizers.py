"""Tokenizers of other programs: the same ids as Hugging Face's library on any text, and their files come back byte by byte."""

import functools
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tokenizers")

from tests.tinygpt.published_tokenizers import GAPS, KNOWN, LIBRARYS, OURS, WORDS, drawn_texts
from tinygpt import GPT, GPTConfig
from tinygpt.data.library_tokenizer import LibraryTokenizer
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer, encoder_tokenizer
from tinygpt.data.tokenizer_files import load_tokenizer
from tinygpt.data.windows import encode_documents, encode_pieces
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.inference.text import IncrementalDetokenizer, complete, prompt_ids
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.storage.safetensors import TEMPLATE_FOLDER, TOKENIZER_FILES
from tinygpt.weights.pretrained import end_fields, tokenizer_config

KINDS = OURS | LIBRARYS
PIECES = st.sampled_from([*WORDS, *GAPS, "<think>", "<mask>", "<|endoftext|>", "new", "new\nway", "\u0338"]) | st.sampled_from(KNOWN)
TEXTS = st.lists(PIECES, max_size=40).map("".join) | st.text(
    st.characters(codec="utf-8", categories=["L", "N", "P", "Z"], max_codepoint=0x2FFF)
)


@functools.cache
def pair(kind, folder):
    """A tokenizer of Hugging Face's library, and ours from its file."""
    directory = folder / kind
    directory.mkdir(exist_ok=True)
    theirs = KINDS[kind]()
    theirs.save(str(directory / "tokenizer.json"))
    theirs.encode_special_tokens = True  # a special token in a text stays text
    return theirs, load_tokenizer(directory)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(text=TEXTS)
def test_ids_are_those_of_the_library(folder, kind, text):
    theirs, ours = pair(kind, folder)
    assert type(ours) is (BPETokenizer if kind in OURS else LibraryTokenizer)
    expected = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text) == expected
    assert ours.encode_from_start(text)[: len(ours.start) + len(expected)] == [*ours.start, *expected]
    assert ours.decode(expected) == theirs.decode(expected, skip_special_tokens=False)
    assert ours.n_vocab == theirs.get_vocab_size()
    theirs.encode_special_tokens = False
    assert ours.encode(text, allow_special=True) == theirs.encode(text, add_special_tokens=False).ids
    assert theirs.encode(text).ids[: len(ours.start)] == list(ours.start)
    theirs.encode_special_tokens = True


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30)
@given(text=TEXTS, prompt=TEXTS)
def test_streamed_text_is_the_decoded_text(folder, kind, text, prompt):
    """Token by token after a prompt, characters of several tokens included; never half of one."""
    ours = pair(kind, folder)[1]
    before, ids = ours.encode(prompt), ours.encode(text)
    stream = IncrementalDetokenizer(ours, before=before[-1] if before else None)
    pieces = [stream.add(token) for token in ids]
    assert "\ufffd" not in "".join(pieces) or "\ufffd" in text
    stream.finish()
    whole = ours.decode([*before[-1:], *ids])[len(ours.decode(before[-1:])) :]
    if "\ufffd" not in ours.decode(before[-1:]):  # else the prompt ends within a character
        assert stream.text == whole


def test_each_byte_token_is_its_byte(folder):
    for kind in ("gemma", "llama2", "gpt2"):
        ours = pair(kind, folder)[1]
        for character in "€😀\u0928":
            assert b"".join(map(ours.token_bytes, ours.encode(character))).lstrip(b" ") == character.encode()
    gemma = pair("gemma", folder)[1]
    assert [gemma.token_bytes(id) for id in gemma.encode("€")] == [b"\xe2", b"\x82", b"\xac"]
    assert gemma.decode(gemma.encode("€")[:2]) == "\ufffd"
    assert [gemma.decode(gemma.encode(text)) for text in (" a", "a  b ")] == [" a", "a  b "]


# ---- other files -------------------------------------------------------------------------------------------------------------------------

ADDED = {"special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
EXTRA = {
    "tokenizer_config.json": '{"eos_token": "<|endoftext|>", "bos_token": {"content": "<|begin|>"},   "chat_template": "{{ messages }}",'
    '"model_max_length": 100000000000000000000, "tokenizer_class": "PreTrainedTokenizerFast"}',
    "chat_template.jinja": "{% for m in messages %}<|im_start|>{{ m['content'] }}\r\n{% endfor %}",
    "special_tokens_map.json": '{"eos_token": "<|endoftext|>"}',
    "added_tokens.json": '{"<|pad|>": 500}',
    "generation_config.json": '{"eos_token_id": [1, 300], "temperature": 0.6}\n',
}


@pytest.fixture
def published(tmp_path, folder):
    """A model's directory as others publish it: the files of a tokenizer, and more."""
    made = pair("llama3", folder)[1]
    model = GPT(GPTConfig.preset("quick", vocab_size=512))
    model.save_pretrained(tmp_path / "model")
    for name, text in EXTRA.items():
        (tmp_path / "model" / name).write_bytes(text.encode())
    (tmp_path / "model" / "tokenizer.json").write_bytes(made.files()["tokenizer.json"])
    (tmp_path / "model" / "tokenizer.model").write_bytes(b"\x00\xff\x80 no text")
    (tmp_path / "model" / TEMPLATE_FOLDER).mkdir()
    for name in ("tools", "rag"):
        (tmp_path / "model" / TEMPLATE_FOLDER / f"{name}.jinja").write_bytes(
            b"{% for m in messages %}" + name.encode() + b"\r\n{% endfor %}"
        )
    return tmp_path / "model"


def same_files(directory, published):
    for name in TOKENIZER_FILES:
        if (published / name).exists():
            assert (directory / name).read_bytes() == (published / name).read_bytes(), name
    found, expected = ({path.name: path.read_bytes() for path in (folder / TEMPLATE_FOLDER).iterdir()} for folder in (directory, published))
    assert found == expected and len(found) == 2


def test_every_file_is_kept_and_saved_unchanged(tmp_path, published):
    checkpoint = Checkpoint.open(published)
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.start) == (1, 0, None, (0,))
    assert tokenizer.end_ids == (1, 300) and tokenizer.added == {"<|pad|>": 500}
    model.save_pretrained(tmp_path / "again", tokenizer)
    same_files(tmp_path / "again", published)
    fields = json.loads((tmp_path / "again" / "config.json").read_bytes())
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (0, [1, 300])
    again = Checkpoint.open(tmp_path / "again").tokenizer()
    assert again.fingerprint() == tokenizer.fingerprint() and again.end_ids == tokenizer.end_ids
    classifier = GPTClassifier(model, tokenizer, ["no", "yes"])
    classifier.save_pretrained(tmp_path / "classifier")
    same_files(tmp_path / "classifier", published)
    tokenizer.save(tmp_path / "alone")
    same_files(tmp_path / "alone", published)
    with pytest.raises(ValueError, match="of another tokenizer"):
        BPETokenizer.train("a b a b", 258).save(tmp_path / "alone")


def test_what_begins_and_ends_a_text(published):
    checkpoint = Checkpoint.open(published)
    model, tokenizer = checkpoint.language_model().eval(), checkpoint.tokenizer()
    assert prompt_ids(tokenizer, "the") == [0, *tokenizer.encode("the")] and prompt_ids(tokenizer, "") == [0]
    assert encode_documents(["a", "b"], tokenizer).tolist() == [0, *tokenizer.encode("a"), 1, 0, *tokenizer.encode("b"), 1]
    found = complete(model, tokenizer, "the", 30, seed=3)
    ends = [id for id in found.ids if id in (1, 300)]
    assert not ends and max(found.ids) < tokenizer.n_vocab
    model.wte.weight.data[300] *= 100  # the token that only generation_config.json calls an end is now the likeliest, or the last choice
    model.ln_f.bias.data[...] = model.wte.weight.data[300]
    found = complete(model, tokenizer, "the", 30, seed=3)
    assert found.stop_reason == "eos" and not found.ids


@pytest.mark.parametrize(
    ("fields", "ends"),
    [({"eos_token_id": 7}, (7, 1)), ({"eos_token_id": [9, 1, 10**6]}, (9, 1)), ({}, (1,)), ({"eos_token_id": None}, (1,))],
)
def test_ends_from_config_where_there_is_no_generation_config(published, fields, ends):
    (published / "generation_config.json").unlink()
    config = json.loads((published / "config.json").read_bytes()) | {"eos_token_id": None}
    (published / "config.json").write_text(json.dumps(config | fields), encoding="utf-8")
    assert load_tokenizer(published).end_ids == ends
    (published / "config.json").write_text(json.dumps(config | {"eos_token_id": "</s>"}), encoding="utf-8")
    with pytest.raises(ValueError, match="eos_token_id '</s>', expected an id or a list of ids"):
        load_tokenizer(published)


def test_documents_in_pieces_have_the_ids_of_the_undivided_ones(folder):
    """Llama 3 leaves a line's end to the sign before it, Llama 2 begins each text with a blank: neither may be cut before white space."""
    documents = [["the cat.", "\nsat on"], [" mats!", " 12", "\n\n x"]]
    for kind in ("gpt2", "llama3", "llama2", "gemma"):
        ours = pair(kind, folder)[1]
        pieces = [(piece, n == len(parts)) for parts in documents for n, piece in enumerate(parts, 1)]
        expected = encode_documents(["".join(parts) for parts in documents], ours)
        np.testing.assert_array_equal(np.concatenate(list(encode_pieces(pieces, ours))), expected)


def test_padding_rows_are_normal_and_missing_rows_are_not(tmp_path, folder):
    made = pair("gemma", folder)[1]
    for rows, fine in ((made.n_vocab + 100, True), (made.n_vocab, True), (made.n_vocab - 1, False)):
        GPT(GPTConfig.preset("quick", vocab_size=rows)).save_pretrained(tmp_path / str(rows), made)
        if fine:
            assert Checkpoint.open(tmp_path / str(rows)).tokenizer().n_vocab == made.n_vocab
        else:
            with pytest.raises(ValueError, match=f"a tokenizer of {made.n_vocab} tokens, expected at most {rows}"):
                Checkpoint.open(tmp_path / str(rows)).tokenizer()
    beyond = ADDED | {"content": "<image>", "id": made.n_vocab}
    data = json.loads((tmp_path / str(made.n_vocab) / "tokenizer.json").read_bytes())
    (tmp_path / str(made.n_vocab) / "tokenizer.json").write_text(json.dumps(data | {"added_tokens": [*data["added_tokens"], beyond]}))
    assert Checkpoint.open(tmp_path / str(made.n_vocab)).tokenizer().special["<image>"] == made.n_vocab  # Gemma 3's: no text becomes it


def test_gpt2s_pair_of_files_next_to_another_split(tmp_path, folder):
    """SmolLM2's directory has vocab.json and merges.txt, too, which do not say that digits are cut apart."""
    theirs, ours = pair("smollm", folder)
    theirs.save(str(tmp_path / "tokenizer.json"))
    theirs.model.save(str(tmp_path))
    assert (tmp_path / "vocab.json").is_file() and load_tokenizer(tmp_path).encode("a  5") == ours.encode("a  5")
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path).encode("a  5") != ours.encode("a  5")  # as far as these two files say
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer_class 'Qwen2Tokenizer', expected tokenizer\.json with it"):
        load_tokenizer(tmp_path)


def test_opts_two_files_begin_texts_as_they_say(tmp_path, folder):
    theirs, _ = pair("gpt2", folder)
    theirs.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": true, "bos_token": "<|endoftext|>"}', encoding="utf-8")
    assert load_tokenizer(tmp_path).start == (0,)


def test_a_tokenizer_of_ours_writes_what_the_library_reads(tmp_path, folder):
    """Without the files that it came from: split, normal form and added tokens are in the one that is written."""
    from tokenizers import Tokenizer

    for kind in OURS:
        ours = pair(kind, folder)[1]
        kept, ours.kept = ours.kept, {}
        ours.save(tmp_path / kind)
        ours.kept = kept
        again = load_tokenizer(tmp_path / kind)
        for text in ("the 1234 e\u0301 cats!\n\n new\nway     x<think>", " we'LL 5"):
            assert again.encode(text) == ours.encode(text)
            if kind != "gpt2":
                theirs = Tokenizer.from_file(str(tmp_path / kind / "tokenizer.json"))
                assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text)


# ---- bad input ---------------------------------------------------------------------------------------------------------------------------


def test_the_missing_extra_is_named(folder, monkeypatch):
    pair("gemma", folder)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        ImportError, match=r"tokenizer\.json: tokenizers is not installed, expected it.*pip install 'tinygpt\[tokenizers\]'"
    ):
        load_tokenizer(folder / "gemma")
    pair("qwen", folder)
    assert load_tokenizer(folder / "qwen").encode("a 12") == pair("qwen", folder)[1].encode("a 12")  # which needs no library


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<x>"}}]}}, "restore the file"),
        ({"model": {"type": "BPE", "vocab": 5, "merges": []}}, "restore the file"),
        ({"added_tokens": [ADDED | {"content": "<x>", "id": 9999}]}, "added token '<x>': id 9999"),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [5]}}, "restore the file"),
    ],
)
def test_damaged_files_are_named(tmp_path, folder, change, found):
    pair("gemma", folder)
    data = json.loads((folder / "gemma" / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer.json").write_text(json.dumps(data | change), encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json: .*" + found):
        load_tokenizer(tmp_path)


def test_what_cannot_be_encoded_is_said(folder):
    ours = pair("gemma", folder)[1]
    with pytest.raises(TypeError, match="encode: int, expected str"):
        ours.encode(5)
    with pytest.raises(ValueError, match="lone surrogate"):
        ours.encode("a\ud800")
    with pytest.raises(ValueError, match="expected 0 <= id < "):
        ours.decode([ours.n_vocab])
    assert CharacterTokenizer.train("ab").encode_from_start("ab") == [0, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_ids_for_what_we_save(tmp_path, folder, kind):
    """As its AutoTokenizer reads the directory; what stands in front of a text and tokens of tokenizer_config.json included."""
    transformers = pytest.importorskip("transformers")
    theirs, _ = pair(kind, folder)
    theirs.save(str(tmp_path / "tokenizer.json"))
    added = {str(theirs.get_vocab_size()): ADDED | {"content": "<|pad|>"}}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<|pad|>", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours = load_tokenizer(tmp_path)
    GPT(GPTConfig.preset("quick", vocab_size=ours.n_vocab)).save_pretrained(tmp_path / "saved", ours)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert other.pad_token_id == ours.pad_id == theirs.get_vocab_size() and len(other) == ours.n_vocab
    for text in [*drawn_texts(3, 100), "a<|endoftext|>b <bos> <|pad|>x", ""]:
        ids = ours.encode(text)
        assert ids == other(text, split_special_tokens=True, add_special_tokens=False)["input_ids"]
        assert ours.encode(text, allow_special=True) == other(text, add_special_tokens=False)["input_ids"]
        assert other(text, split_special_tokens=True)["input_ids"][: len(ours.start) + len(ids)] == ours.encode_from_start(text)
        assert ours.decode(ids) == other.decode(ids, clean_up_tokenization_spaces=False)


def test_transformers_reads_the_tokenizer_of_an_encoder_of_ours(tmp_path):
    """With its special tokens, the tokens around one text and two, and a mask that takes the blank before it."""
    transformers = pytest.importorskip("transformers")
    ours = encoder_tokenizer(drawn_texts(0, 400), 400)
    ours.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"} | end_fields(ours)), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(ours, 128)), encoding="utf-8")
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (other.pad_token, other.cls_token, other.sep_token, other.mask_token) == ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
    assert (other.mask_token_id, other.pad_token_id, len(other)) == (ours.mask_id, ours.pad_id, ours.n_vocab)
    assert other.model_max_length == 128 and other.eos_token is None
    texts = [*drawn_texts(4, 60), "the [MASK] sat", " [MASK]\n[MASK][SEP] [MASK]", ""]
    for first, second in zip(texts, texts[::-1], strict=True):
        for pair in ((first,), (first, second or "x")):  # transformers takes "" for no second text
            wrapped, there = ours.encode_wrapped(*pair, allow_special=True), other(*pair)
            assert wrapped == (there["input_ids"], there["token_type_ids"])
        assert ours.decode(ours.encode(first)) == other.decode(ours.encode(first), clean_up_tokenization_spaces=False)
