"""Small vocabularies of the kinds that llama.cpp runs, trained by the libraries that published ones were trained by, in the files of published models.

    write("gemma", directory, texts)      # config.json's model_type aside, all that load_tokenizer needs

Not a script: against_llama_cpp.py and text_against_llama_cpp.py use it, and so do the tests. Needs the extra `tokenizers`.
"""

import base64
import io
import json
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from tinygpt.data.sentence_pieces import BLANK, ModelFile

Json = dict[str, Any]
ADDED = ["\n\n", "\n\n\n", BLANK * 2, BLANK * 3, BLANK * 4, "<table>"]
"""What Gemma's vocabulary has in addition to what was learned: runs of white space, and HTML."""
TURNS = ["<start_of_turn>", "<end_of_turn>"]


def sentence_pieces(texts: Sequence[str], **options: object) -> bytes:
    """A SentencePiece model, as bytes of its file."""
    import sentencepiece

    model, settings = (
        io.BytesIO(),
        {"vocab_size": 700, "hard_vocab_limit": False, "character_coverage": 1.0, "minloglevel": 2, "num_threads": 1},
    )
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **settings | options)
    return model.getvalue()


def joined_pieces(texts: Sequence[str], **options: object) -> bytes:
    """BPE as Llama 2's and Gemma's: every character as it is, unknown ones as bytes."""
    plain = {
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "byte_fallback": True,
    }
    return sentence_pieces(texts, model_type="bpe", split_digits=True, **plain | options)


def _token(id: int, text: str, special: bool) -> Json:
    return {"id": id, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}


def _wrapped(start: Sequence[tuple[str, int]], end: Sequence[tuple[str, int]]) -> Json:
    """The step that puts special tokens (text, id) around a text."""
    name = lambda tokens: [{"SpecialToken": {"id": text, "type_id": 0}} for text, _ in tokens]  # noqa: E731
    named = {text: {"id": text, "ids": [id], "tokens": [text]} for text, id in (*start, *end)}
    single = [*name(start), {"Sequence": {"id": "A", "type_id": 0}}, *name(end)]
    return {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": named}


def _file(**parts: Any) -> Json:
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None, "decoder": None} | parts


def merges_of(pieces: Sequence[tuple[str, float, str]]) -> list[list[str]]:
    """Every way to cut a piece into two others, the best piece first: the merges that transformers makes of a SentencePiece model."""
    ids = {text: id for id, (text, _, _) in enumerate(pieces)}
    ways = [(score, text[:n], text[n:]) for text, score, _ in pieces for n in range(1, len(text)) if text[:n] in ids and text[n:] in ids]
    return [[left, right] for _, left, right in sorted(ways, key=lambda way: (way[0], len(way[1]), len(way[2])), reverse=True)]


Pieces = list[tuple[str, float, str]]
"""(text, score, type) by id, as in `ModelFile`."""


def json_of_joined(pieces: Pieces, form: str) -> Json:
    """tokenizer.json of a BPE model. form: "llama" (a space in front of every text), "metaspace" (the same in later files), or "gemma" (none)."""
    vocabulary = {text: id for id, (text, _, _) in enumerate(pieces)}
    added = [_token(id, text, kind != "USER_DEFINED") for id, (text, _, kind) in enumerate(pieces) if kind not in ("NORMAL", "BYTE")]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    steps: Json = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": BLANK}, replace]}}
    if form == "metaspace":
        steps = {"pre_tokenizer": {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "first", "split": False}}
    elif form == "gemma":
        before = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
        steps = {"normalizer": replace, "pre_tokenizer": before}
    back = [replace | {"pattern": {"String": BLANK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}]
    back += [] if form == "gemma" else [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    bpe = {"type": "BPE", "unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True, "vocab": vocabulary, "merges": merges_of(pieces)}
    begin = "<bos>" if form == "gemma" else "<s>"
    wrapped = _wrapped([(begin, vocabulary[begin])], [])
    return _file(added_tokens=added, post_processor=wrapped, decoder={"type": "Sequence", "decoders": back}, model=bpe, **steps)


def json_of_unigram(pieces: Pieces, charsmap: bytes) -> Json:
    """tokenizer.json of T5's kind."""
    added = [_token(id, text, True) for id, (text, _, kind) in enumerate(pieces) if kind != "NORMAL"]
    words = {"type": "Metaspace", "replacement": BLANK, "prepend_scheme": "always", "split": True}
    ids = [text for text, _, _ in pieces]
    return _file(
        added_tokens=added,
        normalizer={"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()},
        pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, words]},
        post_processor=_wrapped([], [("</s>", ids.index("</s>"))]),
        decoder=words,
        model={"type": "Unigram", "unk_id": ids.index("<unk>"), "vocab": [[text, score] for text, score, _ in pieces]},
    )


def word_pieces(texts: Sequence[str]) -> list[str]:
    """BERT's vocabulary, in the order of ids."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    vocabulary = made.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_NAMED_T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_GEMMA = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
_GEMMA_PIECES = {"bos_piece": "<bos>", "eos_piece": "<eos>", "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
_T5_IDS = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}


def _gemma(texts: Sequence[str]) -> Json:
    model = joined_pieces(texts, add_dummy_prefix=False, user_defined_symbols=ADDED, control_symbols=TURNS, **_GEMMA_PIECES)
    return {"tokenizer.json": json_of_joined(ModelFile.read(model).pieces, "gemma"), "tokenizer_config.json": _GEMMA}


def _t5(texts: Sequence[str], **options: object) -> Json:
    return {"config.json": {"model_type": "t5"}, "spiece.model": sentence_pieces(texts, **_T5_IDS, **options)}


def _t5_single(texts: Sequence[str], **options: object) -> Json:
    model = ModelFile.read(sentence_pieces(texts, **_T5_IDS, **options))
    return {"tokenizer.json": json_of_unigram(model.pieces, model.charsmap), "tokenizer_config.json": _NAMED_T5}


def _bert(texts: Sequence[str], **options: object) -> Json:
    lines = "".join(f"{token}\n" for token in word_pieces(texts))
    named = {"tokenizer_class": "BertTokenizer", **options}
    return {"config.json": {"model_type": "bert"}, "tokenizer_config.json": named, "vocab.txt": lines.encode()}


def _llama(texts: Sequence[str], form: str) -> Json:
    pieces = ModelFile.read(joined_pieces(texts)).pieces
    return {"tokenizer.json": json_of_joined(pieces, form), "tokenizer_config.json": _NAMED}


KINDS: dict[str, Callable[..., Json]] = {
    "llama": partial(_llama, form="llama"),
    "llama, later files": partial(_llama, form="metaspace"),
    "gemma": _gemma,
    "t5": _t5,
    "t5, tokenizer.json": _t5_single,
    "bert": _bert,
    "bert, cased": lambda texts: _bert(texts, do_lower_case=False),
}


def published(models: Path) -> dict[str, Json]:
    """The files of published vocabularies, by kind, from those that llama.cpp's repository has in its folder models/."""
    from gguf import GGUFReader, TokenType

    @cache
    def file(name: str) -> Any:
        return GGUFReader(models / f"ggml-vocab-{name}.gguf").fields

    def field(name: str, key: str) -> Any:
        return file(name)[f"tokenizer.ggml.{key}"].contents()

    def pieces(name: str) -> Pieces:
        kinds = [TokenType(kind).name for kind in field(name, "token_type")]
        return list(zip(field(name, "tokens"), field(name, "scores"), kinds, strict=True))

    llama = pieces("llama-spm")
    begun = [
        token if token.startswith("[") else token.removeprefix(BLANK) if token[0] == BLANK else f"##{token}"
        for token in field("bert-bge", "tokens")
    ]
    charsmap = bytes(value & 255 for value in field("nomic-bert-moe", "precompiled_charsmap"))
    return {
        "llama": {"tokenizer.json": json_of_joined(llama, "llama"), "tokenizer_config.json": _NAMED},
        "bert": {"config.json": {"model_type": "bert"}, "vocab.txt": "".join(f"{token}\n" for token in begun).encode()},
        "t5": {"tokenizer.json": json_of_unigram(pieces("nomic-bert-moe"), charsmap), "tokenizer_config.json": _NAMED_T5},
    }


def write(kind: str, directory: Path, texts: Sequence[str], **options: object) -> Path:
    """Trains the vocabulary on texts, and writes its files; the directory. options: to SentencePiece, for T5's kinds."""
    return write_files(directory, KINDS[kind](texts, **options))


def write_files(directory: Path, files: Json) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode())
    return directory
