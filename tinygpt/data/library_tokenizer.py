"""Any tokenizer.json, run by Hugging Face's library `tokenizers`: for vocabularies that are no byte-level BPE which we can run ourselves."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinygpt.data.tokenizer import CHARACTER_TO_BYTE, Tokenizer, check_text
from tinygpt.data.wrapping import Ids
from tinygpt.errors import InvalidInput, MissingPackage
from tinygpt.storage.checked_json import Json


class LibraryTokenizer(Tokenizer):
    """A tokenizer.json as Hugging Face's library runs it; special tokens in a text stay text, as in all our tokenizers.

    path             of the file, for messages
    data             what it holds
    special, added   tokens that files name, by text; `late` as in `Tokenizer`
    eos              the special token that ends a text
    why              why we do not run it ourselves
    Unlike `decode` of the library, `decode_bytes` is exact where a character is cut in half, so that text can be streamed.
    Raises ImportError without the extra `tokenizers`, ValueError for a file that the library refuses.
    """

    kind, divisible = "library", False

    def __init__(
        self, path: Path, data: dict[str, Json], special: Mapping[str, int], added: Mapping[str, int], late: Collection[str], *, eos: str,
        why: str,
    ) -> None:  # fmt: skip
        text = json.dumps(data, ensure_ascii=False)
        self._library = _made(path, text, why)
        self._add(path, special, added, late)
        vocabulary: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        self.eos_id = special.get(eos)
        self._text = text
        self._decoder = _decoder_of(data.get("decoder"))
        tokens = [b""] * (max(vocabulary.values(), default=-1) + 1)  # an id without a token: no bytes
        for token, id in vocabulary.items():
            plain = self._decoder and self._decoder.token
            tokens[id] = plain(token) if plain else self._library.decode([id], skip_special_tokens=False).encode()
        super().__init__(tokens, {}, {}, text)
        self.special, self.added, self.late = dict(special), dict(added), frozenset(late)

    def _add(self, path: Path, special: Mapping[str, int], added: Mapping[str, int], late: Collection[str]) -> None:
        """Adds the tokens that only other files name. Raises ValueError for ids that do not follow those of the vocabulary."""
        import tokenizers

        known = {token.content: token for token in self._library.get_added_tokens_decoder().values()}
        for text, id in sorted({**special, **added}.items(), key=lambda item: item[1]):
            if text not in known or (text in special and not known[text].special):
                token = tokenizers.AddedToken(text, normalized=text in late, special=text in special)
                (self._library.add_special_tokens if text in special else self._library.add_tokens)([token])
            if self._library.token_to_id(text) != id:
                rule = f"expected {self._library.token_to_id(text)}, as the library counts; restore the file that adds it"
                raise InvalidInput(f"{path}: added token {text!r}: id {id}, {rule}")

    def _encode(self, text: str) -> Ids:
        found: list[int] = self._library.encode(text, add_special_tokens=False).ids
        return found

    def encode_array(self, text: str, *, allow_special: bool = False) -> NDArray[np.integer]:
        check_text("encode", text)
        self._library.encode_special_tokens = not allow_special
        return np.array(self._encode(text), dtype=self.dtype)

    def decode_bytes(self, ids: Ids) -> bytes:
        checked = self._check_ids(ids)
        if self._decoder is None:
            whole: str = self._library.decode(checked, skip_special_tokens=False)
            return whole.encode()
        first = [self._decoder.first(self._library.id_to_token(id) or "") for id in checked[:1]]
        joined = b"".join(first + [self._tokens[id] for id in checked[1:]])
        n = min(self._decoder.n_stripped, len(joined) - len(joined.lstrip(b" ")))
        return joined[n:]

    @property
    def data(self) -> dict[str, Json]:
        """What the tokenizer.json holds."""
        found: dict[str, Json] = json.loads(self._text)
        return found

    def _files(self) -> dict[str, str]:
        return {"tokenizer.json": self._text}


class _Decoder(NamedTuple):
    """How tokens become bytes: each, the first one of a text, and how many spaces in front of the text are left out."""

    token: Callable[[str], bytes]
    first: Callable[[str], bytes]
    n_stripped: int


def _decoder_of(decoder: Json) -> _Decoder | None:
    """What a tokenizer.json says of decoding, as exact bytes; None for what has none, which then the library decodes."""
    steps = decoder.get("decoders") if isinstance(decoder, dict) and decoder.get("type") == "Sequence" else [decoder]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return None
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"]:
        return _Decoder(_byte_level, _byte_level, 0)
    n_stripped = 0
    if kinds[-2:] == ["Fuse", "Strip"] and steps[-1].get("content") == " " and not steps[-1].get("stop"):
        n_stripped = int(steps[-1]["start"])
        kinds.pop()
    if not kinds or not set(kinds) <= {"Replace", "Metaspace", "ByteFallback", "Fuse"} or not all(map(_is_plain, steps)):
        return None
    pairs = [_replaced(step) for step in steps if step["type"] in ("Replace", "Metaspace")]
    removed = [step.get("replacement", "\u2581") for step in steps if step["type"] == "Metaspace" and step.get("prepend_scheme") != "never"]

    def token_bytes(token: str, at_start: bool = False) -> bytes:
        if "ByteFallback" in kinds and re.fullmatch("<0x[0-9A-F]{2}>", token):
            return bytes.fromhex(token[3:5])
        for old, new in pairs:
            token = token.replace(old, "" if at_start and old in removed else new)
        return token.encode()

    return _Decoder(token_bytes, lambda token: token_bytes(token, at_start=True), n_stripped)


def _is_plain(step: Json) -> bool:
    """Whether a step of decoding replaces a string, not a pattern, if it replaces anything."""
    return step["type"] != "Replace" or set(step.get("pattern", ())) == {"String"}


def _replaced(step: Json) -> tuple[str, str]:
    return (step["pattern"]["String"], step["content"]) if step["type"] == "Replace" else (step.get("replacement", "\u2581"), " ")


def _byte_level(token: str) -> bytes:
    """Of GPT-2's letters for bytes; an added token of other characters stands for itself."""
    found = [CHARACTER_TO_BYTE.get(character) for character in token]
    return token.encode() if None in found else bytes(byte for byte in found if byte is not None)


def _made(path: Path, text: str, why: str) -> Json:
    """The library's tokenizer, without cutting and padding, which files may ask for."""
    try:
        import tokenizers
    except ImportError as error:
        rule = "expected it for this tokenizer.json, which tinygpt cannot run by itself"
        raise MissingPackage(f"{path}: tokenizers is not installed, {rule} ({why}); pip install 'tinygpt[tokenizers]'") from error
    try:
        made = tokenizers.Tokenizer.from_str(text)
        made.no_padding()
        made.no_truncation()
        made.encode("a")
    except BaseException as error:  # its panics are no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        rule = "expected what CharacterTokenizer or WordTokenizer saves, or what Hugging Face's tokenizers reads"
        raise InvalidInput(f"{path}: {why} ({error}), {rule}; restore the file") from error
    return made
