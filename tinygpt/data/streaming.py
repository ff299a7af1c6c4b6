"""Texts too large to hold in memory: read in pieces, split by position, written once as files of token ids.

    corpus = open_corpus("huge.txt")                                # StreamedCorpus above STREAM_BYTES, else Corpus
    ids = token_stream(corpus, "train", tokenizer)                  # an array, or a memory map of a file in the cache

A piece ends where a tokenizer would cut in any case, so the ids are those of the undivided text.
"""

import codecs
import hashlib
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygpt.data.corpora import Corpus, Split, draw_groups, load_corpus, run_name, text_files, user_path
from tinygpt.data.curated import Manifest, is_curated, read_manifest, read_texts
from tinygpt.data.download import DOWNLOADS, cache_folder
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.data.windows import encode_documents, encode_pieces, read_tokens, write_tokens
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import encoding_of, not_text

STREAM_BYTES = 64 << 20  # corpora above this are streamed; below it, text, its word counts and its ids fit anywhere
PIECE_BYTES = 4 << 20  # how much text is in memory at once
SAMPLE_BYTES = 32 << 20  # how much of a streamed corpus a tokenizer is trained on, in pieces evenly spaced over it
# Characters without white space after which a piece ends anyway: only there may ids differ from those of the undivided text.
MAX_UNBROKEN = 1 << 20


@dataclass(frozen=True)
class Part:
    """A range of bytes of a file that is one document."""

    path: Path
    start: int
    end: int


@dataclass
class StreamedCorpus:
    """Like `tinygpt.data.corpora.Corpus`, but the texts stay in their files. fingerprint: sha256, in hex, of all names and bytes."""

    name: str
    train: list[Part]
    validation: list[Part]
    fingerprint: str
    source: str

    def n_bytes(self, split: Split) -> int:
        """Size of one side in bytes, as the files have it."""
        return sum(part.end - part.start for part in getattr(self, split))

    def pieces(self, split: Split) -> Iterator[tuple[str, bool]]:
        """(piece of text, whether its document ends with it), one after the other."""
        for part in getattr(self, split):
            pieces = read_pieces(part.path, part.start, part.end)  # none of them empty
            for piece, following in itertools.pairwise(itertools.chain(pieces, [""])):
                yield piece, not following

    def sample(self, n_bytes: int = SAMPLE_BYTES) -> Iterator[str]:
        """Training text up to n_bytes, in pieces evenly spaced over it."""
        every = max(1, -(-self.n_bytes("train") // n_bytes))
        return (piece for piece, _ in itertools.islice(self.pieces("train"), 0, None, every))


@dataclass
class CuratedCorpus(StreamedCorpus):
    """The documents of a curated folder, whose manifest says what they are. A Part is a file here, compressed; a piece is a document."""

    manifest: Manifest

    def n_bytes(self, split: Split) -> int:
        """Size of the texts of one side in UTF-8, repetitions included."""
        return sum(shard.text_bytes for shard in getattr(self.manifest, split))

    def pieces(self, split: Split) -> Iterator[tuple[str, bool]]:
        for part, shard in zip(getattr(self, split), getattr(self.manifest, split), strict=True):
            for text in read_texts(part.path, shard):
                yield text, True


def open_curated(folder: Path) -> CuratedCorpus:
    """A curated folder as a corpus. It was split when it was curated, by groups of near copies. Raises what `read_manifest` raises."""
    manifest = read_manifest(folder)
    train, validation = ([Part(folder / shard.file, 0, shard.n_bytes) for shard in side] for side in (manifest.train, manifest.validation))
    source = f"curated folder {folder}, {manifest.validation_fraction:.0%} for validation; {manifest.describe()}"
    return CuratedCorpus(run_name(folder), train, validation, manifest.fingerprint, source, manifest)


def read_pieces(path: Path, start: int = 0, end: int | None = None, piece_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """The text of a stretch of a UTF-8 file, line ends as \\n, in pieces that end before white space that follows something else. Raises
    ValueError, naming file and offset, if it is not UTF-8."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)  # keeps half a character, half a \r\n
    end = path.stat().st_size if end is None else end
    held = ""  # text after the last possible cut
    offset, at_start, final = start, start == 0, False
    with path.open("rb") as file:
        file.seek(start)
        while not final:
            data = file.read(min(piece_bytes, end - offset))
            if offset == 0 and (encoding := encoding_of(data, path)) != "utf-8":
                rule = f"expected UTF-8 in a corpus above {STREAM_BYTES >> 20} MiB, which is read in pieces"
                raise InvalidInput(f"{path}: {encoding.upper()}, {rule}; convert it: iconv -f {encoding} -t utf-8")
            final = offset + len(data) >= end or not data
            n_kept = len(decoder.getstate()[0])
            try:
                held += decoder.decode(data, final)
            except UnicodeDecodeError as error:
                raise not_text(path, error.object[error.start], offset - n_kept + error.start) from None
            if at_start and held:  # the file's first character, which may take more than one piece to come
                held, at_start = held.removeprefix("\ufeff"), False
            offset += len(data)
            cut = len(held) if final else _last_cut(held)
            if cut:
                yield held[:cut]
            held = held[cut:]


def _last_cut(text: str) -> int:
    """Where a text can be cut so that its ids stay the same: before the last white space that follows something else; 0 if nowhere."""
    # Backwards, so that the search ends at the first match: `.*\S(?=\s)` takes quadratic time if there is none.
    match = re.search(r"\s(?=\S)", text[: -MAX_UNBROKEN - 1 : -1])
    if match:
        return len(text) - match.start() - 1
    return len(text) if len(text) >= MAX_UNBROKEN else 0


def open_corpus(name_or_path: str | Path, *, validation_fraction: float = 0.1, seed: int = 0) -> Corpus | StreamedCorpus:
    """`tinygpt.data.corpora.load_corpus`, but files of yours above STREAM_BYTES in all stay where they are, and a folder that
    `python -m tinygpt curate` has written is read as its manifest says: it was split then, whatever the fraction is now."""
    path, name = user_path(name_or_path), str(name_or_path)
    if is_curated(path):
        return open_curated(path)
    if name != "docs" and name not in DOWNLOADS and path.exists() and 0 < validation_fraction < 1:
        files, left_out = text_files(path)
        if sum(file.stat().st_size for file in files.values()) > STREAM_BYTES:
            source = f"{len(files)} text files in {name}, streamed{left_out}"
            return _split(run_name(name_or_path), files, validation_fraction, seed, source)
    return load_corpus(name_or_path, validation_fraction=validation_fraction, seed=seed)


def texts_for_tokenizer(corpus: Corpus | StreamedCorpus, kind: str) -> Iterable[str]:
    """What a tokenizer of this kind is trained on: the training text (a sample of it, if streamed); an alphabet needs every character."""
    everything = kind == "characters"
    if isinstance(corpus, StreamedCorpus):
        both = itertools.chain(corpus.pieces("train"), corpus.pieces("validation"))
        return (piece for piece, _ in both) if everything else corpus.sample()
    return [document.text for document in (corpus.train + corpus.validation if everything else corpus.train)]


def _split(name: str, files: Mapping[str, Path], fraction: float, seed: int, source: str) -> StreamedCorpus:
    """A corpus of files by name, split: complete files drawn by seed if that comes close to the fraction, else the last part of each.

    Near-copies are not looked for, as in smaller corpora; files with equal bytes stay together. ValueError if not UTF-8, or too short."""
    digest = hashlib.sha256()
    groups: dict[str, list[Part]] = {}  # parts by content
    for title, path in files.items():
        content, n = hashlib.sha256(), 0
        for piece in read_pieces(path):  # which also checks that it is UTF-8
            content.update(piece.encode())
            n += len(piece)
        digest.update(len(title.encode()).to_bytes(8, "little") + title.encode() + content.digest())
        if n:
            groups.setdefault(content.hexdigest(), []).append(Part(path, 0, path.stat().st_size))
    every = [part for parts in groups.values() for part in parts]
    chosen = draw_groups({name: sum(part.end for part in parts) for name, parts in groups.items()}, fraction, seed)
    if chosen:
        validation = [part for name in chosen for part in groups[name]]
        train = [part for part in every if part not in validation]
    else:
        cuts = [_line_start(part, int(part.end * (1 - fraction))) for part in every]
        train = [Part(part.path, 0, cut) for part, cut in zip(every, cuts, strict=True) if cut]
        validation = [Part(part.path, cut, part.end) for part, cut in zip(every, cuts, strict=True) if cut < part.end]
    if not train or not validation:
        raise InvalidInput(f"corpus {name!r}: too short to validate on {fraction:.0%} of it, expected text on both sides; add text")
    return StreamedCorpus(name, train, validation, digest.hexdigest(), source)


def _line_start(part: Part, near: int) -> int:
    """The first byte of a line soon after `near`; where no line begins there, the first byte of a character."""
    with part.path.open("rb") as file:
        file.seek(near)
        data = file.read(min(1 << 16, part.end - near))
    newline = data[:-1].find(b"\n")
    if newline >= 0:
        return near + newline + 1
    return near + next((i for i, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)


def token_stream(corpus: Corpus | StreamedCorpus, split: Split, tokenizer: Tokenizer, cache: str | Path | None = None) -> np.ndarray:
    """Ids of one side of a corpus as one stream (N,), <|endoftext|> (where the tokenizer has it) after each document.

    A streamed corpus is encoded piece by piece into a file, found again by the fingerprints of text and tokenizer, and memory-mapped.
    cache   folder for these files; default: tokens/ in the user's cache folder
    """
    if not isinstance(corpus, StreamedCorpus):
        return encode_documents([document.text for document in getattr(corpus, split)], tokenizer)
    folder = Path(cache) if cache is not None else cache_folder() / "tokens"
    cut = f"{len(getattr(corpus, split))}-{corpus.n_bytes(split)}"  # which the fraction decides
    path = folder / f"{corpus.fingerprint[:16]}-{tokenizer.fingerprint()[:16]}-{split}-{cut}.bin"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_tokens(path, encode_pieces(corpus.pieces(split), tokenizer), tokenizer.n_vocab)
    return read_tokens(path, tokenizer.n_vocab)
