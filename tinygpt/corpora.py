"""Texts to train on: the default corpus, named downloads, and files of your own, each split into training and validation text.

    corpus = load_corpus("docs")                                # what every installation already has; no network
    corpus = load_corpus("tinyshakespeare")                     # downloaded once, checked by sha256
    corpus = load_corpus("my.txt"), load_corpus("my_folder")    # UTF-8 text
    corpus.train, corpus.validation                             # lists of Document(name, text, group)

A validation text that is nearly a copy of a training text measures memory, not learning. So documents that share much of their wording
form a group, groups are never divided (see `group_near_copies`), and `residual_overlap` says how much wording the two sides still share.
"""

import difflib
import functools
import hashlib
import inspect
import os
import pkgutil
import platform
import tempfile
import types
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinygpt.download import cache_folder
from tinygpt.download import download as fetch_file


@dataclass(frozen=True)
class Document:
    """One text. Documents of the same group are near-copies of each other and on the same side of the split."""

    name: str
    text: str
    group: int


@dataclass
class Corpus:
    """A text collection, split.

    fingerprint    sha256, in hex, of all names and texts before the split: equal ones mean equal data
    source         where the text comes from, as a sentence for people
    """

    name: str
    train: list[Document]
    validation: list[Document]
    fingerprint: str
    source: str

    @functools.cached_property
    def residual_overlap(self) -> float:
        """Share of the 8-word pieces of the validation text, counted as often as they occur, that the training text contains too."""
        documents = self.train + self.validation
        shingles, document = _shingles([document.text for document in documents])
        in_train = document < len(self.train)
        seen = np.isin(shingles[~in_train], shingles[in_train])
        return float(seen.mean()) if seen.size else 0.0

    def n_bytes(self, split: Literal["train", "validation"]) -> int:
        """Size of one side in bytes of UTF-8."""
        return sum(len(document.text.encode()) for document in getattr(self, split))


@dataclass(frozen=True)
class Download:
    """A file on the network that is known by its sha256.

    member      name of the file inside the zip archive that the address gives; empty where it gives the file itself
    labelled    True for rows, which `tinygpt.labelled` and `tinygpt.instruct` read; else a corpus
    """

    file_name: str
    url: str
    sha256: str
    source: str
    member: str = ""
    labelled: bool = False


DOWNLOADS = {
    "tinyshakespeare": Download(
        file_name="tinyshakespeare.txt",
        url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        source="40,000 lines of Shakespeare's plays, collected for karpathy/char-rnn",
    ),
    "the-verdict": Download(
        file_name="the-verdict.txt",
        url="https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch02/01_main-chapter-code/the-verdict.txt",
        sha256="b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f",
        source="The Verdict, a short story by Edith Wharton (1908), from rasbt/LLMs-from-scratch",
    ),
    "sms-spam": Download(
        file_name="sms_spam.tsv",
        url="https://archive.ics.uci.edu/static/public/228/sms+spam+collection.zip",
        sha256="7d039a24a6083ed9ef0f806ebad56bbb976e3aeb8de05669173bfdc4996c239d",
        source="SMS Spam Collection, Almeida and Hidalgo 2011, UCI dataset 228, CC BY 4.0",
        member="SMSSpamCollection",
        labelled=True,
    ),
    "instructions": Download(
        file_name="instruction-data.json",
        url="https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json",
        sha256="7e09a9af353722ca15c18bc580f093f9c39d3178335a75177319cb1e1d163944",
        source="1,100 instructions and answers, from rasbt/LLMs-from-scratch, Apache-2.0",
        labelled=True,
    ),
}


def load_corpus(name_or_path: str | Path, *, validation_fraction: float = 0.1, seed: int = 0, cache: str | Path | None = None) -> Corpus:
    """Load a corpus and split it.

    name_or_path           "docs", the name of a download ("tinyshakespeare", "the-verdict"), a text file, or a folder with *.txt and
                           *.md files at any depth. All text is UTF-8; line ends become \\n, empty documents are left out. For a folder
                           of your own named docs write "./docs".
    validation_fraction    share of the text to validate on. One long text gives its last part, cut by characters, as nanoGPT does.
                           Several documents give whole groups of near-copies, drawn by seed, up to that many bytes; should that come
                           to less than half of them, because the groups are few and large, each document gives its last part.
    cache                  folder for downloads; by default the user's cache folder

    "docs", the default corpus, is English that every installation has: the docstrings of NumPy's public modules and the language manual
    that comes with Python. It is the same on every platform, and changes with the versions of NumPy and Python.

    Raises ValueError for text that is empty, too short to split or not UTF-8, and for a fraction outside 0 to 1; FileNotFoundError for
    an unknown name or path; ConnectionError for a download that fails.
    """
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction: {validation_fraction}, expected more than 0 and less than 1; the default is 0.1")

    name = str(name_or_path)
    corpora = [name for name, download in DOWNLOADS.items() if not download.labelled]
    if name_or_path == "docs":
        texts = _docs()
        source = (
            f"docstrings of the public modules of NumPy {np.__version__} and the language manual of Python {platform.python_version()} "
            "(pydoc_data.topics)"
        )
    elif name_or_path in corpora:
        texts = {name: read_text(fetch(name, cache=cache))}
        source = f"{DOWNLOADS[name].source}, {DOWNLOADS[name].url}"
    elif Path(name).is_dir():
        files = text_files(Path(name))
        texts = {file.relative_to(name).as_posix(): read_text(file) for file in files}
        source = f"{len(files)} text files in {name}"
    elif Path(name).exists():
        texts = {Path(name).name: read_text(Path(name))}
        source = f"text file {name}"
    else:
        known = ["docs", *corpora]
        close = difflib.get_close_matches(name, known, n=1)
        raise FileNotFoundError(
            f"corpus {name!r}: no such file or folder, expected a path or one of {', '.join(known)}; "
            + (f"did you mean {close[0]!r}?" if close else "check the path")
        )

    texts = {name: text for name, text in texts.items() if text.strip()}
    if not texts:
        raise ValueError(f"corpus {name!r}: empty, expected some text; check that it is the file or folder that you mean")
    digest = hashlib.sha256()
    for part in (part.encode() for item in texts.items() for part in item):
        digest.update(len(part).to_bytes(8, "little") + part)
    train, validation = _split(name, texts, validation_fraction, seed)
    return Corpus(name, train, validation, digest.hexdigest(), source)


# ---- the split ---------------------------------------------------------------------------------------------------------------------------


def group_near_copies(texts: Sequence[str]) -> list[int]:
    """Group numbers, from 0 in order of appearance, one per text: near-copies, and near-copies of near-copies, get the same.

    Two texts are near-copies if they are equal, or if they share more than half of the distinct 8-word shingles (runs of 8 words, words
    being what white space separates) of the one that has fewer.

    Cost: each text is compared only with those that an index of the shingles finds.
    Source: Broder 1997, "On the resemblance and containment of documents" (shingles, containment).
    """
    shingles, document = _shingles(texts)
    shingles, holders = np.divmod(np.unique(shingles * len(texts) + document), len(texts))  # each shingle of each text once, by shingle
    n_shingles = np.bincount(holders, minlength=len(texts))  # (texts,) distinct ones
    _, first, count = np.unique(shingles, return_index=True, return_counts=True)
    neighbours: list[list[NDArray[np.int64]]] = [[] for _ in texts]  # per text, for each shingle that it shares: all texts that hold it
    for start, n in zip(first[count > 1].tolist(), count[count > 1].tolist(), strict=True):
        for text in holders[start : start + n].tolist():
            neighbours[text].append(holders[start : start + n])

    parent = list(range(len(texts)))  # union-find: following parents leads to the first text of a group

    def first_of_group(text: int) -> int:
        while parent[text] != text:
            parent[text] = parent[parent[text]]  # shorten the way for the next time
            text = parent[text]
        return text

    equal: dict[str, int] = {}
    for text in range(len(texts)):
        near = [equal.setdefault(texts[text], text)]
        if neighbours[text]:
            shared = np.bincount(np.concatenate(neighbours[text]), minlength=len(texts))  # (texts,) shingles in common
            near += np.flatnonzero(2 * shared > np.minimum(n_shingles, n_shingles[text])).tolist()
        for other in near:
            one, two = first_of_group(text), first_of_group(other)
            parent[max(one, two)] = min(one, two)

    numbers: dict[int, int] = {}
    return [numbers.setdefault(first_of_group(text), len(numbers)) for text in range(len(texts))]


def _shingles(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two arrays with one entry per run of 8 words: its number (equal words, equal number) and the text that it stands in."""
    numbers: dict[str, int] = {}
    words = [np.array([numbers.setdefault(word, len(numbers)) for word in text.split()], dtype=np.int64) for text in texts]
    document = np.concatenate([np.full(len(text), number) for number, text in enumerate(words)])
    runs = np.concatenate(words)
    for n in (1, 2, 4):  # a run of 2 n words is two runs of n words, n apart: number these pairs, and runs of n become runs of 2 n
        if runs.size > n:
            runs = np.unique(runs[:-n] * (runs.max() + 1) + runs[n:], return_inverse=True)[1]
    inside = document[:-7] == document[7:]  # the run does not cross into the next text
    return runs[: inside.size][inside], document[: inside.size][inside]


def _split(name: str, texts: dict[str, str], fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Training and validation documents: whole groups where there are enough of them, else the last part of each text."""
    if len(texts) > 1:
        groups = group_near_copies(list(texts.values()))
        documents = [Document(title, text, group) for (title, text), group in zip(texts.items(), groups, strict=True)]
        sizes = np.bincount(groups, weights=[len(text.encode()) for text in texts.values()])  # bytes per group
        wanted = fraction * sizes.sum()
        # The order of drawing is a hash of seed and name, not a shuffle: a document that comes or goes leaves the others where they are.
        draw = {d.group: hashlib.sha256(f"{seed} {d.name}".encode()).digest() for d in reversed(documents)}  # by first name of the group
        chosen: set[int] = set()
        taken = 0.0
        for group in sorted(draw, key=draw.__getitem__):
            if taken + sizes[group] <= wanted:
                chosen.add(group)
                taken += sizes[group]
        if taken >= wanted / 2:
            return [d for d in documents if d.group not in chosen], [d for d in documents if d.group in chosen]

    train, validation = [], []
    for number, (title, text) in enumerate(texts.items()):
        cut = int(len(text) * (1 - fraction))
        train += [Document(title, text[:cut], 2 * number)] if text[:cut] else []
        validation += [Document(title, text[cut:], 2 * number + 1)] if text[cut:] else []
    if not train or not validation:
        n = sum(map(len, texts.values()))
        raise ValueError(f"corpus {name!r}: {n} characters, expected enough to validate on {fraction:.0%} of them; add text")
    return train, validation


# ---- the default corpus ------------------------------------------------------------------------------------------------------------------

NUMPY_MODULES = [
    "numpy", "numpy.char", "numpy.ctypeslib", "numpy.emath", "numpy.exceptions", "numpy.fft", "numpy.lib",
    "numpy.lib.array_utils", "numpy.lib.format", "numpy.lib.introspect", "numpy.lib.mixins", "numpy.lib.npyio",
    "numpy.lib.recfunctions", "numpy.lib.stride_tricks", "numpy.linalg", "numpy.ma", "numpy.polynomial",
    "numpy.polynomial.chebyshev", "numpy.polynomial.hermite", "numpy.polynomial.hermite_e", "numpy.polynomial.laguerre",
    "numpy.polynomial.legendre", "numpy.polynomial.polynomial", "numpy.polynomial.polyutils", "numpy.random", "numpy.rec",
    "numpy.strings", "numpy.testing", "numpy.typing",
]  # fmt: skip


def _docs() -> dict[str, str]:
    """The default corpus, sorted by name; each text once, under its shortest name (`numpy.argsort`, `python.lambda`)."""
    from pydoc_data.topics import topics

    names: defaultdict[str, list[str]] = defaultdict(list)  # text: the names that it is reached by
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a module that a coming NumPy deprecates is still good English
        for name, value in _numpy_objects():
            if isinstance(value.__doc__, str):
                names[inspect.cleandoc(value.__doc__).strip()].append(name)
    for topic, text in topics.items():
        names[text.strip()].append(f"python.{topic}")
    shortest = {min(known, key=lambda name: (name.count("."), len(name), name)): text for text, known in names.items()}
    return dict(sorted(shortest.items()))


def _numpy_objects() -> Iterator[tuple[str, Any]]:
    """NumPy's public modules, their functions and classes, and the methods and properties of these, each with its full name.

    Left out, because their text differs from platform to platform: the scalar types, and two functions that ask the operating system.
    Names are looked up with `vars`, which unlike `getattr` never wakes a deprecated one.
    """
    for module_name in NUMPY_MODULES:
        try:
            module = pkgutil.resolve_name(module_name)
        except (ImportError, AttributeError):  # not in this version of NumPy
            continue
        yield module_name, module
        for name in getattr(module, "__all__", vars(module)):
            value = vars(module).get(name)
            if name.startswith("_") or name in ("jiffies", "memusage") or isinstance(value, types.ModuleType | np.generic):
                continue
            if isinstance(value, type):
                if value.__module__.startswith("numpy") and not issubclass(value, np.generic):
                    yield f"{module_name}.{name}", value
                    for member_name, member in vars(value).items():
                        is_method = callable(member) or isinstance(member, classmethod | staticmethod)
                        if not member_name.startswith("_") and (is_method or inspect.isdatadescriptor(member)):
                            yield f"{module_name}.{name}.{member_name}", member
            elif callable(value) or type(value).__module__.startswith("numpy"):  # else a constant, with the docstring of int or float
                yield f"{module_name}.{name}", value


# ---- files and downloads -----------------------------------------------------------------------------------------------------------------


def read_text(path: str | Path) -> str:
    """A UTF-8 file, with or without byte order mark, its line ends as \\n. Raises ValueError, naming file and byte, if it is not UTF-8."""
    data = Path(path).read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8, expected UTF-8 text; "
            "save the file as UTF-8 in your editor, or leave it out if it is no text"
        ) from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def text_files(folder: Path) -> list[Path]:
    """All *.txt and *.md below a folder, by name. Raises ValueError if there are none."""
    files = sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.relative_to(folder).as_posix())
    texts = [path for path in files if path.suffix.lower() in (".txt", ".md")]
    if not texts:
        raise ValueError(f"folder {folder}: no text among {len(files)} files, expected *.txt or *.md; rename your text files so")
    return texts


MAX_DOWNLOAD_BYTES = 64 << 20  # the largest of DOWNLOADS is about a megabyte


def fetch(name: str, *, cache: str | Path | None = None) -> Path:
    """Path of a download from DOWNLOADS: in the folder named by TINYGPT_DATA, else in the cache, else fetched into the cache.

    Raises ValueError if a file is found whose sha256 is wrong, ConnectionError if none is found and the download fails.
    """
    download = DOWNLOADS[name]
    cache = Path(cache) if cache is not None else cache_folder()
    for folder in (os.environ.get("TINYGPT_DATA"), cache):
        if folder and (path := Path(folder, download.file_name)).is_file():
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            if found != download.sha256:
                raise ValueError(f"{path}: sha256 {found}, expected {download.sha256}; delete it, or replace it by {download.url}")
            return path

    try:
        if download.member:
            return _fetch_member(download, cache)
        return fetch_file(download.url, cache / download.file_name, download.sha256, max_bytes=MAX_DOWNLOAD_BYTES)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:  # no network; or something else answered, and its sha256 is wrong
        raise ConnectionError(
            f"corpus {name!r}: found nowhere and not downloaded ({type(error).__name__}), expected {download.url} "
            f"(sha256 {download.sha256}); put the file as {download.file_name} into {cache}, or into a folder named by TINYGPT_DATA"
        ) from error


def _fetch_member(download: Download, cache: Path) -> Path:
    """Fetches a zip archive and keeps the one file of it that is wanted, if its sha256 is right."""
    with tempfile.TemporaryDirectory() as folder:
        archive = fetch_file(download.url, Path(folder) / "archive.zip", max_bytes=MAX_DOWNLOAD_BYTES)
        # Nothing is extracted, so no name in the archive can lead outside; one member is read, and no more of it than is allowed.
        with zipfile.ZipFile(archive) as members, members.open(download.member) as member:
            content = member.read(MAX_DOWNLOAD_BYTES + 1)
    if len(content) > MAX_DOWNLOAD_BYTES:
        raise ValueError(f"{download.member}: more than {MAX_DOWNLOAD_BYTES:,} bytes, expected at most that; the archive has changed")
    found = hashlib.sha256(content).hexdigest()
    if found != download.sha256:
        raise ValueError(f"{download.member}: sha256 {found}, expected {download.sha256}; the archive at {download.url} has changed")
    cache.mkdir(parents=True, exist_ok=True)
    partial = cache / f".{download.file_name}.partial"
    partial.write_bytes(content)
    return partial.replace(cache / download.file_name)
