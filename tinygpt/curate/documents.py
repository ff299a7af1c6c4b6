"""What curation works on: documents in shards, and what a step makes of a document.

    for document in read_shard("00000.jsonl.gz"): ...           # one object per line: {"id", "text", "source", "metadata"}
    write_shard("00001.jsonl.zst", documents)                   # all of it on the disk, or nothing; the same documents give the same bytes
    outcome = step(document)                                    # kept, changed, or removed by a rule because of a number

The lines are those of datatrove's JsonlWriter (and of most published corpora), so its readers take a shard as it is.
"""

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, cast

from tinygpt.errors import InvalidInput, MissingFile, MissingPackage
from tinygpt.storage.checked_json import Json, parse_json
from tinygpt.storage.durable import replace_file

CHUNK_BYTES = 1 << 20  # how much text is compressed, and written, at once


@dataclass(frozen=True)
class Document:
    """A text and where it comes from.

    id         unique in the corpus, "wiki/pages.jsonl:17"
    source     the name of its source, which mixing and the report go by
    metadata   url, title, license, date, scores ...: JSON values, kept in the output
    """

    id: str
    text: str
    source: str = ""
    metadata: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a step made of a document.

    document   as it is now; None: removed, by `rule`, because `number` is beyond `limit`
    counts     what was done to it, by kind: {"email": 2}
    """

    document: Document | None
    rule: str = ""
    number: float = 0.0
    limit: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)


class Step(Protocol):
    """A step that looks at one document at a time: a frozen dataclass, because it travels to worker processes by pickle. What is heavy (a
    model) is loaded at the first call and kept for the process, not in the step."""

    @property
    def name(self) -> str: ...

    def settings(self) -> dict[str, Json]:
        """All that decides what it does, as JSON values: a folder of other settings is refused."""
        ...

    def __call__(self, document: Document) -> Outcome: ...


def read_shard(path: str | Path) -> Iterator[Document]:
    """The documents of a JSONL file, one after the other; compressed if its name ends in .gz or .zst.

    Raises FileNotFoundError without the file; ValueError, naming file and line, for damaged compression and for a line that is no object
    with a text and an id; ImportError, naming the extra, for .zst without zstandard.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFile(f"{path}: no such file, expected a shard of documents; run the command again, which makes what is missing")
    number = 0
    try:
        with open_compressed(path) as lines:
            for number, line in enumerate(lines, start=1):
                yield _document(line, path, number)
    except unreadable(path) as error:
        problem = f"{path}: {error or 'it ends early'}, expected compressed lines; {number} lines were read before"
        raise InvalidInput(f"{problem}, restore the file or leave it out") from error


def _document(line: bytes, path: Path, number: int) -> Document:
    where, fix = f"{path}: line {number}", "correct or remove the line"
    try:
        value = parse_json(line.decode("utf-8"), where, fix)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{where}: {error}, expected UTF-8; {fix}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{where}: a JSON {type(value).__name__}, expected an object; {fix}")
    name, text, source, metadata = (
        value.get(key, default) for key, default in (("id", None), ("text", None), ("source", ""), ("metadata", {}))
    )
    if not (isinstance(name, str) and isinstance(text, str) and isinstance(source, str) and isinstance(metadata, dict)):
        raise InvalidInput(
            f"{where}: {', '.join(value)}, expected texts id and text, and source (a text) and metadata (an object) or none; {fix}"
        )
    return Document(name, text, source, metadata)


def write_shard(path: str | Path, documents: Iterable[Document]) -> int:
    """Writes documents as JSONL, compressed if the name ends in .gz or .zst, and returns how many. All of it is on the disk then; if
    anything fails there is no file, or the one from before. Equal documents give equal bytes: no time stamps.

    Raises OSError if the disk fails; ValueError, naming the document, for text with half a character, which no file can hold.
    """
    path, n = Path(path), 0

    def lines() -> Iterator[bytes]:
        nonlocal n
        for n, document in enumerate(documents, start=1):  # noqa: B007 (counted)
            yield _line(document)

    replace_file(
        path, _compressed(path, _joined(lines())), writer=f"{os.getpid()}-"
    )  # a process that outlived its parent may write it, too
    return n


def _line(document: Document) -> bytes:
    value = {"id": document.id, "text": document.text, "source": document.source, "metadata": dict(document.metadata)}
    try:
        return (json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidInput(f"document {document.id!r}: a lone surrogate, expected Unicode text; correct or remove it") from None


def _joined(lines: Iterator[bytes]) -> Iterator[bytes]:
    waiting: list[bytes] = []
    size = 0
    for line in lines:
        waiting.append(line)
        size += len(line)
        if size >= CHUNK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    yield b"".join(waiting)


def _compressed(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Chunks as the name of the file says. Level 3: twice as fast as zlib's 6, and the files a tenth larger."""
    if path.suffix.lower() == ".zst":
        compressor = _zstandard(path).ZstdCompressor(level=3).compressobj()
    elif path.suffix.lower() == ".gz":
        compressor = zlib.compressobj(3, zlib.DEFLATED, 31)  # 31: gzip, with time 0 and no name in its header
    else:
        yield from chunks
        return
    for chunk in chunks:
        yield compressor.compress(chunk)
    yield compressor.flush()


def open_compressed(path: Path) -> IO[bytes]:
    """A file for reading, decompressed if its name ends in .gz or .zst. One that ends early raises EOFError, damaged data `unreadable(path)`."""
    if path.suffix.lower() in (".gz", ".zst") and not path.stat().st_size:
        raise EOFError("0 bytes")
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_Zstd(path), CHUNK_BYTES)
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def unreadable(path: Path) -> tuple[type[Exception], ...]:
    """What reading damaged compressed data raises."""
    return (EOFError, zlib.error, gzip.BadGzipFile, *((_zstandard(path).ZstdError,) if path.suffix.lower() == ".zst" else ()))


class _Zstd(io.RawIOBase):
    """Frames of zstd, one after the other. The library's own reader takes a frame that is cut off for the end of the file."""

    def __init__(self, path: Path) -> None:
        self._make = _zstandard(path).ZstdDecompressor().decompressobj
        self._file, self._frame, self._text = path.open("rb"), cast(Json, None), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Json) -> int:
        while not self._text and (data := self._file.read(CHUNK_BYTES // 8)):
            parts = []
            while data:
                self._frame = self._frame or self._make()
                parts.append(self._frame.decompress(data))
                data = self._frame.unused_data
                if self._frame.eof:
                    self._frame = None
            self._text = memoryview(b"".join(parts))
        if not self._text and self._frame is not None:
            raise EOFError("a zstd frame without its end")
        n = min(len(buffer), len(self._text))
        buffer[:n], self._text = self._text[:n], self._text[n:]
        return n

    def close(self) -> None:
        self._file.close()
        super().close()


def _zstandard(path: Path) -> Json:
    try:
        import zstandard
    except ImportError as error:
        raise MissingPackage(f'{path.name}: zstandard is missing, expected it for .zst; pip install "tinygpt[curate]"') from error
    return zstandard
