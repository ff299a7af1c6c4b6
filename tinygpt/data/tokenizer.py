"""Text to token ids and back: characters, words, and byte-level BPE (trained here, run by tiktoken).

    tokenizer = BPETokenizer.train(text, vocab_size=4096)
    ids = tokenizer.encode("The answer is")
    tokenizer.decode(ids)                     # "The answer is", always: byte-level BPE knows every text
    tokenizer.save("run/tokenizer"); tokenizer = load_tokenizer("run/tokenizer")     # tinygpt.data.tokenizer_files

How byte-level BPE works, in the order of this file: `count_words` cuts the text into words with GPT-2's pattern, `learn_merges` joins the
most frequent pair of neighbouring tokens again and again, and `BPETokenizer` encodes with the merges so learned.

Sources: Sennrich, Haddow and Birch 2016, arXiv:1508.07909 (BPE for words); Radford et al. 2019, "Language Models are Unsupervised
Multitask Learners" (the GPT-2 report), section 2.2 (BPE on bytes, never across kinds of characters).
"""

import abc
import hashlib
import heapq
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import regex
import tiktoken
from numpy.typing import NDArray

from tinygpt.data.wrapping import ROLES, Ids, Wrapped, Wrapping
from tinygpt.errors import DownloadFailed, InvalidInput, WrongType
from tinygpt.storage.checked_json import Json
from tinygpt.storage.safetensors import VOCABULARIES, write_files

END_OF_TEXT, UNKNOWN = "<|endoftext|>", "<unk>"
ENCODER_ROLES = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}  # BERT's names

# The GPT-2 report's way to cut text into words: English contractions; then letters, digits or other signs, each with at most one space in
# front; then white space, of which the last one is left to the word that follows.
GPT2_SPLIT = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# GPT-2 numbers the 256 bytes so that the visible ones of Latin-1 come first, and writes the others as the characters from U+0100 on:
# vocab.json and merges.txt then hold no blanks and no control characters ("Ġthe" is " the").
VISIBLE_BYTES = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
HIDDEN_BYTES = sorted(set(range(256)) - set(VISIBLE_BYTES))
BYTE_TOKENS = [bytes([byte]) for byte in VISIBLE_BYTES + HIDDEN_BYTES]
BYTE_TO_CHARACTER = {byte: chr(byte) for byte in VISIBLE_BYTES} | {byte: chr(256 + n) for n, byte in enumerate(HIDDEN_BYTES)}
CHARACTER_TO_BYTE = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}
# sha256 of GPT-2's own merges.txt (OpenAI's vocab.bpe): how a BPETokenizer knows that it is GPT-2's.
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's
MAX_WHITESPACE_RUN = 100_000  # characters; tiktoken's pattern recurses over a run of white space and panics on a million


class Tokenizer(abc.ABC):
    """What every tokenizer can do. A token is a string of bytes; its id is its index in the vocabulary.

    kind        "characters", "words", "bpe", "gpt2", or "library" (`tinygpt.data.library_tokenizer`)
    n_vocab     size of the vocabulary; ids are 0 <= id < n_vocab
    eos_id      id of the token that ends a text: the one that files name, an encoder's [SEP], else <|endoftext|>; None where there is none
    dtype       smallest of uint16 and uint32 that holds every id: what token files are written in
    special     ids of tokens that text never becomes, unless `encode` is told to allow it
    added       ids of pieces of ordinary text that another program added to the vocabulary: one token wherever they stand
    late        which of both are looked for after the others: the added ones, unless the files say otherwise
    lstrip      special tokens that take the white space in front of them, as RoBERTa's <mask> does: " word" is one token, and so is its mask
    roles       special tokens by the part that they play, as files name it: {"mask_token": "[MASK]"}
    bos_id, pad_id, unk_id, cls_id, sep_id, mask_id   their ids; None where the files name none
    wrapping    ids that belong around every text, such as Llama's <|begin_of_text|> or BERT's [CLS] and [SEP]; most decoders have none
    end_ids     ids that end a generated text: `eos_id`, and those that a checkpoint's generation_config.json or config.json names
    kept        the files that it was read from, by name, which are saved again as they were: chat templates, for instance
    divisible   whether a text cut before white space has the ids of the undivided one; else documents are encoded in one piece
    model_class   how transformers calls its class for such a tokenizer
    """

    kind: str
    eos_id: int | None
    bos_id: int | None = None
    pad_id: int | None = None
    unk_id: int | None = None
    cls_id: int | None = None
    sep_id: int | None = None
    mask_id: int | None = None
    lstrip: frozenset[str] = frozenset()
    wrapping = Wrapping()
    divisible = True
    model_class = "PreTrainedTokenizerFast"

    def __init__(
        self, tokens: Iterable[bytes], special: Mapping[str, int], added: Mapping[str, int], rules: str = "", late: Collection[str] | None = None,
    ) -> None:  # fmt: skip
        """tokens: in the order of their ids; special and added ones that are not among them follow them. rules: what else decides ids."""
        self._tokens = list(tokens)
        self.special, self.added, self._rules = dict(special), dict(added), rules
        self.late = frozenset(added if late is None else late)
        self.end_ids: tuple[int, ...] = () if self.eos_id is None else (self.eos_id,)
        self.kept: dict[str, bytes] = {}
        self.roles: dict[str, str] = {}
        for text, id in sorted((self.special | self.added).items(), key=lambda item: item[1]):
            if id == len(self._tokens):
                self._tokens.append(text.encode())
            if not (text and 0 <= id < (n := len(self._tokens)) and self._tokens[id] == text.encode()):
                raise InvalidInput(f"added token {text!r}: id {id}, expected {n}, the next one; restore the file that adds it")

    @property
    def n_vocab(self) -> int:
        return len(self._tokens)

    @property
    def start(self) -> tuple[int, ...]:
        """Ids that belong in front of every text."""
        return self.wrapping.start

    @property
    def target(self) -> "Tokenizer":
        """The tokenizer of the texts that a translator writes: itself, unless both languages have files of their own (Marian)."""
        return self

    def set_roles(self, roles: Mapping[str, str], wrapping: Wrapping | None = None) -> None:
        """Says which special tokens play which part, and what belongs around a text."""
        ids = self.special | self.added
        self.roles = {role: token for role, token in roles.items() if token in ids}
        for name in ROLES:
            if name != "eos":
                setattr(self, f"{name}_id", ids.get(self.roles.get(f"{name}_token", "")))
        self.wrapping = wrapping or self.wrapping

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint16 if self.n_vocab <= 65536 else np.uint32)

    @abc.abstractmethod
    def _encode(self, text: str) -> Ids:
        """Ids of ordinary text that has passed `check_text`."""

    @abc.abstractmethod
    def _files(self) -> dict[str, str]:
        """The tokenizer as files: name and text of each."""

    def files(self) -> dict[str, bytes]:
        """The tokenizer as files, by name: those that it was read from, if it was."""
        return self.kept or {name: text.encode() for name, text in self._files().items()}

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer into a directory (made where missing), for `load_tokenizer`. Raises ValueError as `check_directory` does."""
        self.check_directory(Path(directory))
        write_files(Path(directory), self.files())

    def check_directory(self, directory: Path) -> None:
        """Raises ValueError where a directory already holds the files of another kind of tokenizer: `load_tokenizer` could not tell which."""
        for name in VOCABULARIES - self.files().keys():
            if (directory / name).exists():
                raise InvalidInput(f"{directory}: holds {name} of another tokenizer, expected a directory without; choose another one")

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of a text.

        Text is ordinary text: a literal <|endoftext|> in it becomes the special token only with allow_special=True (characters have
        none and ignore this). Of special tokens that begin at the same position, the longest counts.
        Raises TypeError if text is no str; ValueError, naming the position, for a lone surrogate and for unknown characters.
        """
        ids: list[int] = self.encode_array(text, allow_special=allow_special).tolist()
        return ids

    def encode_array(self, text: str, *, allow_special: bool = False) -> NDArray[np.integer]:
        """`encode` as an array of shape (tokens,) and type `dtype`: for entire corpora."""
        check_text("encode", text)
        whole = self.added | self.special
        if not whole:
            return np.array(self._encode(text), dtype=self.dtype)
        parts: list[str | int] = [text]
        for tokens in (whole.keys() - self.late, whole.keys() & self.late):
            allowed = tokens if allow_special else self.added.keys()
            parts = _cut_out(parts, {token: whole[token] for token in tokens}, allowed, self.lstrip)
        ids = [np.array([part] if isinstance(part, int) else self._encode(part), dtype=self.dtype) for part in parts]
        return np.concatenate(ids or [np.zeros(0, self.dtype)])

    def encode_from_start(self, text: str) -> list[int]:
        """Ids of a text that nothing stands before: `start`, then those of `encode`."""
        return [*self.start, *self.encode(text)]

    def encode_wrapped(
        self, text: str, second: str | None = None, *, n_positions: int | None = None, allow_special: bool = False
    ) -> Wrapped:
        """One text, or two, as an encoder reads them: [CLS] text [SEP] second [SEP], as `wrapping` says; ids and token types.

        Raises as `encode`, and ValueError for more than n_positions ids: the model's context, where it has a limit.
        """
        texts = [self.encode(each, allow_special=allow_special) for each in (text, second) if each is not None]
        return self.wrapping.wrap(*texts, n_positions=n_positions)

    def decode(self, ids: Ids) -> str:
        """Text of token ids. Bytes that are no UTF-8, as when a character is cut in half, become U+FFFD. Raises TypeError if ids are no
        integers in one dimension; ValueError for an id outside the vocabulary, naming it and the size."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Ids) -> bytes:
        """Bytes of token ids, exact where `decode` has to replace. Raises as `decode`."""
        return b"".join([self._tokens[id] for id in self._check_ids(ids)])

    def token_bytes(self, id: int) -> bytes:
        """Bytes of one token. Raises as `decode`."""
        return self._tokens[self._check_ids([id])[0]]

    def fingerprint(self) -> str:
        """sha256, in hex, of the kind and the vocabulary: equal fingerprints give equal ids on every text."""
        digest = hashlib.sha256(self.kind.encode())
        for token in self._tokens:
            digest.update(len(token).to_bytes(8, "little") + token)
        ends = f"end {self.wrapping.end}" if self.wrapping.end else ""
        digest.update((self._rules + (f"start {self.start}" if self.start else "") + ends).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(kind={self.kind!r}, n_vocab={self.n_vocab:,}, fingerprint={self.fingerprint()[:8]!r})"

    def _check_ids(self, ids: Ids) -> list[int]:
        try:
            array = np.asarray(ids)
        except (ValueError, OverflowError):  # ragged, or beyond 64 bits
            array = np.asarray(None)  # which the check below refuses
        if array.shape == (0,):
            return []
        if array.ndim != 1 or array.dtype.kind not in "iu":
            found = f"{type(ids).__name__} of shape {array.shape} and type {array.dtype}"
            raise WrongType(f"decode: {found}, expected token ids in one dimension; decode a batch row by row")
        outside = (array < 0) | (array >= self.n_vocab)
        if outside.any():
            found = f"id {array[np.argmax(outside)]} at position {np.argmax(outside)}"
            rule = f"expected 0 <= id < {self.n_vocab} (the size of the vocabulary)"
            raise InvalidInput(f"decode: {found}, {rule}; use the tokenizer that the model was trained with")
        checked: list[int] = array.tolist()
        return checked


def _cut_out(
    parts: Sequence[str | int], tokens: Mapping[str, int], allowed: Collection[str], lstrip: Collection[str] = ()
) -> list[str | int]:
    """Parts of a text, with the id of each of `tokens` where it stands; one that is not allowed stays text. Of those that begin at the
    same position the longest counts, and none overlaps an earlier one, as in Hugging Face's tokenizers. Those in `lstrip` take the white
    space before them."""
    if not tokens:
        return list(parts)
    pattern = re.compile("|".join(re.escape(token) for token in sorted(tokens, key=len, reverse=True)))
    cut: list[str | int] = []
    for part in parts:
        if isinstance(part, int):
            cut.append(part)
            continue
        end = 0
        for match in pattern.finditer(part):
            if match[0] in allowed:
                before = part[end : match.start()]
                cut += [before.rstrip(WHITE_SPACE) if match[0] in lstrip else before, tokens[match[0]]]
                end = match.end()
        cut.append(part[end:])
    return [part for part in cut if part != ""]


class CharacterTokenizer(Tokenizer):
    """One token per character, in the order of code points, as nanoGPT does. `encode` raises ValueError for characters not in training."""

    kind, eos_id = "characters", None

    def __init__(self, characters: Iterable[str], special: Mapping[str, int] = {}, added: Mapping[str, int] = {}) -> None:
        self.characters = "".join(sorted(set[str]().union(*map(set, characters))))  # one at a time: all may be larger than memory
        check_text("characters", self.characters)
        if not self.characters:
            raise InvalidInput("characters: none, expected at least one; give the text that the model shall learn")
        super().__init__([character.encode() for character in self.characters], special, added, _rules(special, added))
        self._codes = _code_points(self.characters)  # (characters,), ascending

    @classmethod
    def train(cls, texts: str | Iterable[str]) -> "CharacterTokenizer":
        """The characters of a text, or of several. Raises ValueError if there are none."""
        return cls(_texts(texts))

    def _encode(self, text: str) -> NDArray[np.integer]:
        codes = _code_points(text)  # (characters,)
        ids = np.searchsorted(self._codes, codes)
        unknown = self._codes[np.minimum(ids, len(self._codes) - 1)] != codes
        if unknown.any():
            found = list(dict.fromkeys(text[i] for i in np.flatnonzero(unknown)))
            shown = ", ".join(map(repr, found[:10])) + (f" and {len(found) - 10} more" if len(found) > 10 else "")
            problem = f"{len(found)} unknown character{'s' if len(found) > 1 else ''} {shown} (first at position {np.argmax(unknown)})"
            rule = f"expected only the {len(self._codes)} characters of the training text"
            raise InvalidInput(f"encode: {problem}, {rule}; leave them out, or use BPE, which knows every text")
        return ids

    def _files(self) -> dict[str, str]:
        return _single_file(self, _word_level(list(self.characters)), CHARACTERS_SPLIT, {"type": "Fuse"})


class WordTokenizer(Tokenizer):
    """One token per word, sign or line end; rarer words become <unk>. The way of the first chapters: simple, and it loses text.

    `train` numbers the words alphabetically (by code point); the last two ids are <unk> and <|endoftext|>. A saved vocabulary keeps its order.
    `decode` joins with spaces and leaves them out where English has none ("Hello , world !" is "Hello, world!").
    """

    kind = "words"
    # A word, perhaps with inner apostrophes (don't); or one sign; or one line end. Other white space only separates.
    # Combining marks belong to their word: Hindi has them in most words, and macOS writes é as e and an accent.
    SPLIT = r"[\p{L}\p{M}\p{N}_]+(?:['’][\p{L}\p{M}\p{N}_]+)*|[^\p{L}\p{M}\p{N}_\s]|\n"  # noqa: RUF001 (both apostrophes)
    FORMER_SPLIT = r"\w+(?:['’]\w+)*|[^\w\s]|\n"  # noqa: RUF001 (of models trained before)

    def __init__(self, words: Iterable[str], *, split: str = SPLIT, special: Mapping[str, int] = {}, added: Mapping[str, int] = {}) -> None:
        self.words, self.split = list(words), split
        self._find = (re if split == self.FORMER_SPLIT else regex).compile(split).findall
        check_text("words", "".join(self.words))
        vocabulary = [*self.words, UNKNOWN, END_OF_TEXT]
        self._ids = {word: id for id, word in enumerate(vocabulary)}
        if len(self._ids) < len(vocabulary):
            twice, _ = Counter(vocabulary).most_common(1)[0]
            raise InvalidInput(f"words: {twice!r} twice, expected each word once, without {UNKNOWN} and {END_OF_TEXT}; remove it")
        self.unknown_id: int = self._ids[UNKNOWN]
        self.eos_id: int = self._ids[END_OF_TEXT]
        rules = ("" if split == self.FORMER_SPLIT else split) + _rules(special, added)
        super().__init__([word.encode() for word in vocabulary], {END_OF_TEXT: self.eos_id, **special}, added, rules)

    @classmethod
    def train(cls, texts: str | Iterable[str], vocab_size: int | None = None) -> "WordTokenizer":
        """The most frequent words of a text, or of several; all of them if vocab_size (which counts the two special tokens) is None. Raises
        ValueError if the text is empty or vocab_size is below 3."""
        if vocab_size is not None:
            _check_integer("vocab_size", vocab_size, 3, f"one word, {UNKNOWN} and {END_OF_TEXT}")
        counts = Counter(chain.from_iterable(map(regex.compile(cls.SPLIT).findall, _texts(texts))))
        by_frequency = sorted(counts, key=lambda word: (-counts[word], word))
        return cls(sorted(by_frequency[: None if vocab_size is None else vocab_size - 2]))

    def _encode(self, text: str) -> list[int]:
        return [self._ids.get(word, self.unknown_id) for word in self._find(text)]

    def decode_bytes(self, ids: Ids) -> bytes:
        text = " ".join(self._tokens[id].decode() for id in self._check_ids(ids))
        text = re.sub(r" (?=[,.;:!?)\]}%\n])", "", text)  # no space before these
        text = re.sub(r"(?<=[(\[{\n]) ", "", text)  # nor after these
        return text.encode()

    def _files(self) -> dict[str, str]:
        return _single_file(self, _word_level([*self.words, UNKNOWN, END_OF_TEXT]), split_by(self.split, by_match=True), None)


def count_words(texts: str | Iterable[str]) -> Counter[bytes]:
    """How often each word occurs, words as GPT-2's pattern cuts them and as UTF-8 bytes. `texts`: one text, or an iterable of documents.

    BPE never merges across words, so these counts are all it needs to know of the text. Raises ValueError if there is no text.
    """
    counts = Counter(chain.from_iterable(map(regex.compile(GPT2_SPLIT).findall, _texts(texts))))
    return Counter({word.encode(): count for word, count in counts.items()})


def learn_merges(word_counts: Mapping[bytes, int], n_merges: int, min_frequency: int = 2) -> Iterator[tuple[tuple[bytes, bytes], int]]:
    """Learn BPE one merge at a time: yields ((left, right), count), the most frequent pair of neighbours in all words and its count.

    Each word starts as single bytes; each step joins one pair of tokens into a new token wherever it stands. Of equally frequent pairs
    the one first in the order of bytes wins: the counts alone decide. Ends after n_merges steps, or when no pair occurs min_frequency times.

    Counting all pairs again in each step would cost (words x merges). A step changes only the words that hold the merged pair, so
    `words_with` finds them, `pair_counts` is corrected by what they lose and gain, and a heap keeps the most frequent pair on top. An
    entry of the heap is a claim that may have become too high, never too low: it is checked when it surfaces.
    Source: Sennrich, Haddow and Birch 2016, arXiv:1508.07909, algorithm 1.
    """
    words = [[word[i : i + 1] for i in range(len(word))] for word in word_counts]  # each word as its tokens
    counts = list(word_counts.values())
    pair_counts: Counter[tuple[bytes, bytes]] = Counter()
    words_with: defaultdict[tuple[bytes, bytes], set[int]] = defaultdict(set)  # may name a word that has lost the pair since
    for n, (word, count) in enumerate(zip(words, counts, strict=True)):
        for pair in pairwise(word):
            pair_counts[pair] += count
            words_with[pair].add(n)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    for _ in range(n_merges):
        while heap and -heap[0][0] != pair_counts[heap[0][1]]:  # correct the claim on top until it is true
            _, pair = heap[0]
            heapq.heapreplace(heap, (-pair_counts[pair], pair))
        if not heap or -heap[0][0] < min_frequency:
            return
        negative_count, pair = heapq.heappop(heap)
        yield pair, -negative_count

        left, right = pair
        new_pairs = set()
        for n in words_with.pop(pair):
            for old in pairwise(words[n]):
                pair_counts[old] -= counts[n]
            words[n] = _join_pair(words[n], left, right)
            for new in pairwise(words[n]):
                pair_counts[new] += counts[n]
                if left + right in new:
                    words_with[new].add(n)
                    new_pairs.add(new)
        for new in new_pairs:
            heapq.heappush(heap, (-pair_counts[new], new))


def _join_pair(word: list[bytes], left: bytes, right: bytes) -> list[bytes]:
    """The tokens of a word with each `left, right`, from left to right, joined into one token."""
    joined: list[bytes] = []
    for token in word:
        if token == right and joined and joined[-1] == left:
            joined[-1] = left + right
        else:
            joined.append(token)
    return joined


class BPETokenizer(Tokenizer):
    """Byte-level BPE, as GPT-2's: the merges are ours to learn and read, tiktoken applies them.

    merges   pairs of tokens in the order in which they were learned
    ids      of the bytes, of what the merges make, and of special and added tokens, where they are not GPT-2's: 0..255 the bytes in
             GPT-2's order, then one per merge, and <|endoftext|> last
    eos      the special token that ends a text
    split    the pattern that cuts text into words; nfc: after Unicode's normal form C has been made of it, as for Qwen
    Every text can be encoded, and decodes to itself. `kind` is "gpt2" if the merges are GPT-2's, else "bpe".
    Raises ValueError if a merge uses a token that no earlier merge made, makes a token for the second time, or could never be reached.
    """

    def __init__(
        self, merges: Iterable[tuple[bytes, bytes]], *, ids: Mapping[bytes, int] | None = None, special: Mapping[str, int] = {},
        added: Mapping[str, int] = {}, late: Collection[str] | None = None, eos: str = END_OF_TEXT, split: str = GPT2_SPLIT, nfc: bool = False,
    ) -> None:  # fmt: skip
        self.merges, self.split, self.nfc = list(merges), split, nfc
        ranks = {token: id for id, token in enumerate(BYTE_TOKENS)}
        halves: dict[bytes, tuple[bytes, bytes]] = {}
        for number, (left, right) in enumerate(self.merges, start=1):
            for part in (left, right):
                if part not in ranks:
                    rule = "expected a byte or the result of an earlier merge; a merge is missing"
                    raise InvalidInput(f"merge {number}: {part!r} is no token yet, {rule}")
            if left + right in ranks:
                raise InvalidInput(f"merge {number}: makes {left + right!r} for the second time, expected once; remove the duplicate")
            if not _is_reachable(left, right, ranks, halves):
                found = f"{left!r} never meets {right!r}, because an earlier merge joins bytes across their border"
                rule = "expected merges in the order in which BPE learns them; do not reorder or mix merges"
                raise InvalidInput(f"merge {number}: {found}, {rule}")
            ranks[left + right], halves[left + right] = len(ranks), (left, right)

        ids, special = (ranks, {END_OF_TEXT: len(ranks)}) if ids is None else (ids, special)
        by_id = {id: token.encode() for token, id in {**special, **added}.items()} | {ids[token]: token for token in ranks}
        n_merged = len(ranks)
        assert sorted(by_id) == list(range(len(by_id)))
        of_rank = np.fromiter((ids[token] for token in ranks), dtype=np.int64, count=n_merged)
        self._id_of_rank = None if (of_rank == np.arange(n_merged)).all() else of_rank  # None: a token's id is its merge's number
        as_gpt2 = split == GPT2_SPLIT and not nfc
        self.is_laid_out_as_gpt2 = as_gpt2 and self._id_of_rank is None and special == {END_OF_TEXT: n_merged} and not added
        self.eos_id: int | None = special.get(eos)
        self.divisible = split == GPT2_SPLIT  # others leave line ends to signs in front of them
        self.model_class = "GPT2Tokenizer" if as_gpt2 else "PreTrainedTokenizerFast"
        is_gpt2 = len(self.merges) == 50_000 and hashlib.sha256(self._merges_text().encode()).hexdigest() == GPT2_MERGES_SHA256
        self.kind = "gpt2" if is_gpt2 else "bpe"
        rules = "" if self.is_laid_out_as_gpt2 else self._merges_text() + _rules(special, added) + ("" if as_gpt2 else f"{split} {nfc}")
        super().__init__([by_id[id] for id in sorted(by_id)], special, added, rules, late)
        self._encoding = tiktoken.Encoding(self.kind, pat_str=split, mergeable_ranks=ranks, special_tokens={})

    @classmethod
    def train(
        cls, texts: str | Iterable[str], vocab_size: int, *, min_frequency: int = 2, progress: Callable[[int, int], None] | None = None
    ) -> "BPETokenizer":
        """Learn a vocabulary from one text, or from an iterable of documents.

        vocab_size counts the 256 bytes, the merges and <|endoftext|>; it comes out smaller if no pair is left that occurs min_frequency
        times. `progress(merges learned, merges wanted)` is called after every merge.
        Raises ValueError if the text is empty, vocab_size below 257 or min_frequency below 1.
        """
        _check_integer("vocab_size", vocab_size, 257, f"256 bytes and {END_OF_TEXT}")
        _check_integer("min_frequency", min_frequency, 1, "a pair must occur to be merged")
        merges = []
        for pair, _ in learn_merges(count_words(texts), vocab_size - 257, min_frequency):
            merges.append(pair)
            if progress is not None:
                progress(len(merges), vocab_size - 257)
        return cls(merges)

    def _encode(self, text: str) -> NDArray[np.integer]:
        text = unicodedata.normalize("NFC", text) if self.nfc else text
        arrays = [self._encoding.encode_to_numpy(piece, disallowed_special=()) for piece in _cut_whitespace(text)]
        ranks = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        return ranks if self._id_of_rank is None else self._id_of_rank[ranks]

    def _files(self) -> dict[str, str]:
        if self.is_laid_out_as_gpt2:
            return {"vocab.json": json.dumps(self._vocabulary(), ensure_ascii=False), "merges.txt": self._merges_text()}
        merges = [[visible(left), visible(right)] for left, right in self.merges]
        model = {"type": "BPE", "unk_token": None, "vocab": self._vocabulary(), "merges": merges}
        roles = self.roles or ({} if self.eos_id is None else {"eos_token": self.token_bytes(self.eos_id).decode()})
        cut = {"type": "Sequence", "pretokenizers": [split_by(self.split, by_match=False), BYTES_SPLIT | {"use_regex": False}]}
        normalizer = {"type": "NFC"} if self.nfc else None
        files = _single_file(self, model, BYTES_SPLIT if self.split == GPT2_SPLIT else cut, BYTES_SPLIT, normalizer)
        return files | {"special_tokens_map.json": json.dumps(roles, ensure_ascii=False)}

    def _vocabulary(self) -> dict[str, int]:
        whole = {id: text for text, id in (self.added | self.special).items()}
        return {whole.get(id) or visible(token): id for id, token in enumerate(self._tokens)}

    def _merges_text(self) -> str:
        return "#version: 0.2\n" + "".join(f"{visible(left)} {visible(right)}\n" for left, right in self.merges)


def gpt2_tokenizer() -> BPETokenizer:
    """GPT-2's own tokenizer, 50,257 tokens.

    tiktoken fetches it once and keeps it in TIKTOKEN_CACHE_DIR (default: a temporary folder). ConnectionError if it cannot be fetched.
    """
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except (OSError, ValueError) as error:  # no network, or something else answered
        raise DownloadFailed(
            f"gpt2 tokenizer: not in tiktoken's cache and not fetched ({type(error).__name__}), expected network access at first use; "
            "connect once with TIKTOKEN_CACHE_DIR set to a folder to keep it in, or copy such a folder from another machine (its files are "
            "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6 and 6d1cbeee0f20b3d9449abfede4726ed8212e3aee), or train a tokenizer of your own"
        ) from error
    # tiktoken keeps the tokens, not the pairs they were made of; but of all ways to cut a token in two, BPE reaches only one
    ranks = {token: id for id, token in enumerate(BYTE_TOKENS)}
    halves: dict[bytes, tuple[bytes, bytes]] = {}
    for id in range(256, encoding.n_vocab - 1):
        token = encoding.decode_single_token_bytes(id)
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        halves[token] = next(cut for cut in cuts if ranks.keys() >= {*cut} and _is_reachable(*cut, ranks, halves))
        ranks[token] = id
    return BPETokenizer(halves.values())


def _is_reachable(left: bytes, right: bytes, ranks: Mapping[bytes, int], halves: Mapping[bytes, tuple[bytes, bytes]]) -> bool:
    """Whether BPE, given the bytes left + right, comes to the two tokens `left` and `right` side by side.

    merges.txt joins named pairs; tiktoken joins any neighbours whose bytes together are a token. The two agree if no token can come
    about in a second way. This holds for all that BPE learns, and is asked of every merge because files come from elsewhere too.

    So undo the merges inside `left` and `right`, the newest first, and look at the two tokens that touch at the border: if these make
    a token that is older than the merge just undone, BPE joined them across the border instead. Of equal merges it takes the leftmost
    first, so on the right side an equally old one counts as well.
    """
    while len(left) > 1 or len(right) > 1:
        if ranks[left] > ranks[right]:
            undone = ranks[left]
            left = halves[left][1]
        else:
            undone = ranks[right] + 1
            right = halves[right][0]
        if ranks.get(left + right, undone) < undone:
            return False
    return True


def _cut_whitespace(text: str) -> list[str]:
    """The text in pieces without a run of white space over MAX_WHITESPACE_RUN; nearly always the text itself."""
    if len(text) <= MAX_WHITESPACE_RUN:
        return [text]
    cuts = [0]
    for run in re.finditer(rf"(?<!\s)\s{{{MAX_WHITESPACE_RUN + 1},}}", text):
        cuts += range(run.start() + MAX_WHITESPACE_RUN, run.end(), MAX_WHITESPACE_RUN)
    return [text[start:end] for start, end in pairwise([*cuts, len(text)])]


def visible(token: bytes) -> str:
    """A token as vocab.json and merges.txt write it."""
    return "".join([BYTE_TO_CHARACTER[byte] for byte in token])


def split_by(pattern: str, *, by_match: bool) -> dict[str, Json]:
    """How Hugging Face's tokenizers library says: each match is a token (by_match: and the rest is left out)."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed" if by_match else "Isolated", "invert": by_match}


CHARACTERS_SPLIT = split_by(r"[\s\S]", by_match=False)
BYTES_SPLIT = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _word_level(tokens: list[str]) -> dict[str, Json]:
    return {"type": "WordLevel", "vocab": {token: id for id, token in enumerate(tokens)}, "unk_token": UNKNOWN}


def _single_file(
    tokenizer: Tokenizer, model: dict[str, Json], split: dict[str, Json], decoder: dict[str, Json] | None, normalizer: Json = None
) -> dict[str, str]:
    """tokenizer.json, as Hugging Face's tokenizers library reads it."""
    special = tokenizer.special | {token: id for token, id in model["vocab"].items() if token == UNKNOWN}
    flags = {"single_word": False, "rstrip": False}
    added = [
        {
            "id": id,
            "content": text,
            **flags,
            "lstrip": text in tokenizer.lstrip,
            "normalized": text in tokenizer.late,
            "special": text in special,
        }
        for text, id in sorted((special | tokenizer.added).items(), key=lambda item: item[1])
    ]
    data: dict[str, Json] = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": normalizer}
    around = tokenizer.wrapping.post_processor({id: text for text, id in special.items()})
    data |= {"pre_tokenizer": split, "post_processor": around, "decoder": decoder, "model": model}
    return {"tokenizer.json": json.dumps(data, ensure_ascii=False)}


def check_text(what: str, text: object) -> None:
    if not isinstance(text, str):
        raise WrongType(f"{what}: {type(text).__name__}, expected str; decode bytes with data.decode('utf-8')")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at, byte = f"at position {error.start}", ord(text[error.start]) - 0xDC00
        if 0x80 <= byte <= 0xFF:  # how Python writes a byte of a command line or a standard input that it cannot decode
            rule = "is not UTF-8, expected UTF-8 text; convert it, for example with iconv -f latin1 -t utf-8"
            raise InvalidInput(f"{what}: byte 0x{byte:02x} {at} {rule}") from None
        fix = "read the text as UTF-8, or replace it with text.encode('utf-8', 'replace').decode('utf-8')"
        raise InvalidInput(f"{what}: lone surrogate {text[error.start]!r} {at}, expected Unicode text; {fix}") from None


def _rules(special: Mapping[str, int], added: Mapping[str, int]) -> str:
    """Added tokens, for a fingerprint; "" where there are none."""
    return repr((sorted(special.items()), sorted(added.items()))) if special or added else ""


def _texts(texts: str | Iterable[str]) -> Iterator[str]:
    """Each of the texts, checked; at the end an error if all were empty."""
    n_characters = 0
    for text in [texts] if isinstance(texts, str) else texts:
        check_text("train", text)
        n_characters += len(text)
        yield text
    if n_characters == 0:
        raise InvalidInput("train: empty text, expected at least one character; check the path and the filters of your corpus")


def _check_integer(name: str, value: object, smallest: int, why: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise WrongType(f"{name}: {value!r}, expected an integer; write {smallest} or more")
    if value < smallest:
        raise InvalidInput(f"{name}: {value}, expected at least {smallest} ({why}); raise it")


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def train_tokenizer(kind: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """The tokenizer that `kind` names, fitted to `texts`: characters, words, bpe (up to vocab_size tokens), or GPT-2's own."""
    if kind == "characters":
        return CharacterTokenizer.train(texts)
    if kind == "words":
        return WordTokenizer.train(texts, vocab_size)
    if kind == "bpe":
        return BPETokenizer.train(texts, vocab_size)
    if kind == "gpt2":
        return gpt2_tokenizer()
    raise InvalidInput(f"tokenizer: {kind!r}, expected characters, words, bpe or gpt2; choose one of them")


def encoder_tokenizer(
    texts: str | Iterable[str], vocab_size: int, *, min_frequency: int = 2, progress: Callable[[int, int], None] | None = None
) -> BPETokenizer:
    """Byte-level BPE for an encoder: the last four of vocab_size ids are [PAD], [CLS], [SEP] and [MASK]. [SEP] ends a text (`eos_id`).

    [MASK] takes the white space before it, because a masked word has its blank inside: "the [MASK] of" is " the", "[MASK]", " of".
    Otherwise as `BPETokenizer.train`; vocab_size is at least 260.
    """
    _check_integer("vocab_size", vocab_size, 260, f"256 bytes, {', '.join(ENCODER_ROLES.values())}")
    merges = BPETokenizer.train(texts, vocab_size - 3, min_frequency=min_frequency, progress=progress).merges
    tokens = [*BYTE_TOKENS, *(left + right for left, right in merges)]
    special = {token: len(tokens) + n for n, token in enumerate(ENCODER_ROLES.values())}
    made = BPETokenizer(merges, ids={token: id for id, token in enumerate(tokens)}, special=special, eos="[SEP]")
    start, end = (special["[CLS]"],), (special["[SEP]"],)
    made.lstrip, made.model_class = frozenset({"[MASK]"}), "PreTrainedTokenizerFast"
    made.set_roles(ENCODER_ROLES, Wrapping(start, end, between=end, second_type=1))
    return made
