"""SentencePiece models, run by the library `sentencepiece`: T5's spiece.model, Marian's source.spm and target.spm.

    tokenizer = load_tokenizer("opus-mt-en-de/")
    source = tokenizer.encode_wrapped("A cat sat.")             # cut by source.spm
    text = tokenizer.target.decode(ids)                         # of the other language, cut by target.spm

Source: Kudo and Richardson 2018, arXiv:1808.06226 (SentencePiece); Junczys-Dowmunt et al. 2018, arXiv:1804.00344 (Marian).
"""

import hashlib
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tinygpt.data.tokenizer import Tokenizer
from tinygpt.data.wrapping import Ids
from tinygpt.errors import InvalidInput, MissingPackage, did_you_mean
from tinygpt.storage.checked_json import Json

BLANK = "\u2581"  # how SentencePiece writes a space
_LANGUAGE = re.compile(">>[^<>\\s]+<<")


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, and perhaps another program's numbers for its pieces.

    model            a `sentencepiece.SentencePieceProcessor`
    special, added   tokens that files name, by text
    eos              the special token that ends a text
    unknown          the one for what the vocabulary lacks
    ids              piece -> id, where a vocab.json says so (Marian); None: the model's own
    A text of Marian's may begin with the language to translate into: ">>fra<< A cat." Special tokens in a text stay text.
    """

    kind, divisible = "sentencepiece", False

    def __init__(
        self, model: Json, special: Mapping[str, int], added: Mapping[str, int], *, eos: str, unknown: str,
        ids: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        self._library, self._ids = model, ids
        if ids is None:
            pieces = [self._library.id_to_piece(id) for id in range(self._library.vocab_size())]
            tokens = [_piece_bytes(piece, self._library.is_byte(id)) for id, piece in enumerate(pieces)]
        else:
            pieces = sorted(ids, key=ids.__getitem__)
            tokens = [_piece_bytes(piece) for piece in pieces]
        self.languages = [piece for piece in pieces if _LANGUAGE.fullmatch(piece)] if ids is not None else []
        self.eos_id = special.get(eos)
        self._unknown = special.get(unknown, 0)
        rules = hashlib.sha256(model.serialized_model_proto()).hexdigest() + f"{sorted(special.items())}{sorted(added.items())}"
        super().__init__(tokens, special, added, rules)
        self._target: Tokenizer = self

    @property
    def target(self) -> Tokenizer:
        return self._target

    @property
    def file(self) -> "ModelFile":
        """What the model's file holds."""
        return ModelFile.read(self._library.serialized_model_proto())

    def with_target(self, target: "SentencePieceTokenizer") -> "SentencePieceTokenizer":
        """The same with a tokenizer of the other language."""
        self._target = target
        self._rules += target.fingerprint()
        return self

    def _encode(self, text: str) -> Ids:
        if self._ids is None:
            found: list[int] = self._library.encode(text)
            return found
        ids, code = self._ids, self._language(text)
        return [ids.get(piece, self._unknown) for piece in [*code, *self._library.encode(text[len("".join(code)) :], out_type=str)]]

    def _language(self, text: str) -> list[str]:
        """The language that a text begins with, as a list of one or none. Raises ValueError for one that the model does not know."""
        end = text.find("<<")
        if not text.startswith(">>") or end < 0:
            return []
        code = text[: end + 2]
        if self.languages and code not in self.languages and _LANGUAGE.fullmatch(code):
            raise InvalidInput(
                f"encode: language {code}, expected one of {_some(self.languages)}; {did_you_mean(code, self.languages, 'name one of them')}"
            )
        return [code]

    def decode_bytes(self, ids: Ids) -> bytes:
        """A text begins with a space that is not written: each word does."""
        return super().decode_bytes(ids).removeprefix(b" ")

    def _files(self) -> dict[str, str]:
        return {}  # a tokenizer of files keeps them


def _piece_bytes(piece: str, is_byte: bool = False) -> bytes:
    """Of a byte piece, such as <0xE2>, its byte; of others their text."""
    return bytes.fromhex(piece[3:5]) if is_byte else piece.replace(BLANK, " ").encode()


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def read_model(path: Path) -> Json:
    """The library's model. Raises ImportError without the library, ValueError for a file that it cannot read."""
    try:
        import sentencepiece
    except ImportError as error:
        fix = "pip install 'tinygpt[tokenizers]'"
        raise MissingPackage(f"{path}: sentencepiece is not installed, expected it for such a vocabulary; {fix}") from error
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
    except RuntimeError as error:
        raise InvalidInput(f"{path}: {error}, expected a SentencePiece model; restore the file") from error


UNIGRAM, BPE = 1, 2
_KINDS = ("NORMAL", "UNKNOWN", "CONTROL", "USER_DEFINED", "UNUSED", "BYTE")  # from 1 on


@dataclass(frozen=True)
class ModelFile:
    """What a SentencePiece model says that the library does not tell: the types of pieces, and how text is brought into normal form.

    pieces      (text, score, type) by id; types are NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED and BYTE
    algorithm   UNIGRAM or BPE
    charsmap    a table that brings characters into normal form; empty: they stay as they are
    The others are SentencePiece's options of that name.
    Source  https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto, whose field numbers these are.
    """

    pieces: list[tuple[str, float, str]]
    algorithm: int
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    treat_whitespace_as_suffix: bool

    @classmethod
    def read(cls, model: bytes) -> "ModelFile":
        """From the bytes of a file that the library has read."""
        pieces, trainer, normalizer = [], {}, {}
        for number, value in _fields(model):
            if number == 1:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece.get(2, bytes(4)))[0]
                pieces.append((piece[1].decode(), score, _KINDS[piece.get(3, 1) - 1]))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
        prefix, merged, escaped = (bool(normalizer.get(number, True)) for number in (3, 4, 5))
        return cls(pieces, trainer.get(3, UNIGRAM), normalizer.get(2, b""), prefix, merged, escaped, bool(trainer.get(24, False)))


def _fields(message: bytes) -> Iterator[tuple[int, Json]]:
    """(number, value) of a message of Protocol Buffers: an int, or bytes. Written out, it is shorter than what another library needs."""
    at = 0

    def varint() -> int:
        nonlocal at
        value, shift = 0, 0
        while True:
            byte, at = message[at], at + 1
            value, shift = value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        n = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
        yield key >> 3, message[at : at + n]
        at += n
