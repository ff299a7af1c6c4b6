"""A curated corpus on the disk, as `python -m tinygpt curate` leaves it and `--corpus` takes it.

    corpus/manifest.json               sources with licenses, shares and epochs; every file with its size and sha256
    corpus/train/00000.jsonl.gz        documents in the order of the mixture, {"id", "text", "source", "metadata"} a line
    corpus/validation/00000.jsonl.gz   complete groups of near copies, none of which is in the training text

The files are written first and the manifest last, so a folder with a manifest is complete.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.fields import from_dict
from tinygpt.storage.checked_json import read_json_object, to_json
from tinygpt.storage.durable import read_digest, replace_file

MANIFEST = "manifest.json"
FORMAT, VERSION = "tinygpt curated corpus", 1
_FIX = "curate it again: python -m tinygpt curate INPUT --output FOLDER"


@dataclass(frozen=True)
class ShardFile:
    """A file of documents. n_bytes, sha256: of the file; text_bytes: of the texts in UTF-8; lines_sha256: of its decompressed content."""

    file: str
    documents: int
    text_bytes: int
    n_bytes: int
    sha256: str
    lines_sha256: str


@dataclass(frozen=True)
class CuratedSource:
    """What there is of a source. share: of the training text that was asked for, 0 to 1; drawn, drawn_bytes: with repetitions; documents and
    bytes: without them, and without the validation text."""

    name: str
    license: str
    documents: int
    bytes: int
    share: float
    drawn: int
    drawn_bytes: int
    validation_documents: int
    validation_bytes: int

    @property
    def epochs(self) -> float:
        """How often each document is in the training text, on average."""
        return self.drawn / self.documents if self.documents else 0.0


@dataclass(frozen=True)
class Manifest:
    """What is in a curated folder. settings: fingerprint of the curation's settings; seed: of the split and the order."""

    name: str
    seed: int
    validation_fraction: float
    settings: str
    sources: Sequence[CuratedSource]
    train: Sequence[ShardFile]
    validation: Sequence[ShardFile]

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of all decompressed lines in order: equal ones mean equal data."""
        lines = [f"{side} {shard.lines_sha256}" for side in ("train", "validation") for shard in getattr(self, side)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def describe(self) -> str:
        """The sources with shares, epochs and licenses, as a sentence for people."""
        epochs = [f"{source.epochs:.2g}" for source in self.sources]
        each = (
            f"{source.name} {source.share:.1%}, {n} epoch{'s' * (n != '1')}, license {source.license}"
            for source, n in zip(self.sources, epochs, strict=True)
        )
        return f"{len(self.sources)} source{'s' if len(self.sources) > 1 else ''}: {'; '.join(each)}"

    def write(self, folder: Path) -> None:
        """Writes manifest.json, which makes the folder one that `--corpus` takes."""
        values = {"format": FORMAT, "version": VERSION, "fingerprint": self.fingerprint, **asdict(self)}
        for source, entry in zip(self.sources, values["sources"], strict=True):
            entry["epochs"] = round(source.epochs, 4)
        replace_file(folder / MANIFEST, to_json(values))


def is_curated(path: Path) -> bool:
    """Whether a folder holds the manifest of a curation. A manifest.json of something else does not count."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        return False
    with manifest.open("rb") as file:
        return FORMAT.encode() in file.read(200)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a curated folder, its files there and of the right size.

    Raises FileNotFoundError, naming it, for a shard that is missing; ValueError for a manifest of another version, or with values that no
    curation writes, and for a shard of another size.
    """
    path = folder / MANIFEST
    values = read_json_object(path)
    if (values.get("format"), values.get("version")) != (FORMAT, VERSION):
        found = f"{values.get('format')!r}, version {values.get('version')!r:.50}"
        raise InvalidInput(f"{path}: {found}, expected {FORMAT!r}, version {VERSION}; {_FIX}, or use the tinygpt that wrote it")
    try:
        sources = [from_dict(CuratedSource, {k: v for k, v in entry.items() if k != "epochs"}) for entry in values["sources"]]
        train, validation = ([from_dict(ShardFile, entry) for entry in values[side]] for side in ("train", "validation"))
        name, seed, fraction, settings = (values[key] for key in ("name", "seed", "validation_fraction", "settings"))
        manifest = Manifest(name, seed, fraction, settings, sources, train, validation)
        matches = manifest.fingerprint == values["fingerprint"]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InvalidInput(f"{path}: {error!r}, expected what a curation writes; {_FIX}") from error
    if not matches:
        raise InvalidInput(f"{path}: files that do not give its fingerprint, expected those of the curation; it was changed: {_FIX}")
    for shard in [*manifest.train, *manifest.validation]:
        file = folder / shard.file
        if not file.is_file():
            raise MissingFile(f"{file}: no such file, expected it as {MANIFEST} lists it; restore it, or {_FIX}")
        if file.stat().st_size != shard.n_bytes:
            raise InvalidInput(f"{file}: {file.stat().st_size} bytes, expected {shard.n_bytes} as in {MANIFEST}; restore it, or {_FIX}")
    return manifest


def read_texts(path: Path, shard: ShardFile) -> Iterator[str]:
    """The texts of a shard, in order; its sha256 is checked first. Raises ValueError, naming the file, for another one."""
    if (found := read_digest(path).sha256) != shard.sha256:
        raise InvalidInput(f"{path}: sha256 {found[:12]}, expected {shard.sha256[:12]} as in {MANIFEST}; restore it, or {_FIX}")
    try:
        with gzip.open(path, "rb") as lines:
            for line in lines:
                yield json.loads(line)["text"]
    except (EOFError, OSError, zlib.error, ValueError, KeyError, TypeError) as error:  # it was written so
        raise InvalidInput(f"{path}: {error!r}, expected an object with a text a line; {_FIX}") from error
