"""Texts to train on: the default corpus, named downloads, and files of your own, each split into training and validation text.

    corpus = load_corpus("docs")                                # what every installation already has; no network
    corpus = load_corpus("tinyshakespeare")                     # downloaded once, checked by sha256
    corpus = load_corpus("my.txt"), load_corpus("my_folder")    # UTF-8 text
    corpus.train, corpus.validation                             # lists of Document(name, text, group)

A validation text that is nearly a copy of a training text measures memory, not learning. So documents that share much of their wording
form a group, and groups are never divided (see `group_near_copies`).
"""

import hashlib
import inspect
import pkgutil
import platform
import re
import types
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from tinygpt.arguments import expand_home
from tinygpt.data.download import DOWNLOADS, fetch
from tinygpt.data.near_copies import group_near_copies
from tinygpt.errors import InvalidInput, MissingFile, did_you_mean
from tinygpt.storage.checked_json import read_text

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Document:
    """One text. Documents of the same group are near-copies of each other and on the same side of the split."""

    name: str
    text: str
    group: int


@dataclass
class Corpus:
    """A text collection, split.

    name           for the run: see `run_name`
    fingerprint    sha256, in hex, of all names and texts before the split: equal ones mean equal data
    source         where the text comes from and which files were left out, as a sentence for people
    """

    name: str
    train: list[Document]
    validation: list[Document]
    fingerprint: str
    source: str

    def n_bytes(self, split: Split) -> int:
        """Size of one side in bytes of UTF-8."""
        return sum(len(document.text.encode()) for document in getattr(self, split))


def load_corpus(name_or_path: str | Path, *, validation_fraction: float = 0.1, seed: int = 0, cache: str | Path | None = None) -> Corpus:
    """Load a corpus and split it.

    name_or_path   "docs", the name of a download ("tinyshakespeare", "the-verdict"), a text file, or a folder with *.txt and *.md files at any
                   depth; `source` names what else it holds. Text is UTF-8, or UTF-16 or UTF-32 with a byte order mark; line ends become
                   \\n, empty documents are left out. For a folder of your own named docs write "./docs".
    validation_fraction   share of the text to validate on. One long text gives its last part, cut by characters, as nanoGPT does. Several
                   documents give entire groups of near-copies, drawn by seed, or each its last part where the groups are few and large.
    cache          folder for downloads; by default the user's cache folder

    "docs", the default corpus, is English that every installation has: the docstrings of NumPy's public modules and the language manual
    that comes with Python. It is the same on every platform, and changes with the versions of NumPy and Python.
    Raises ValueError for text that is empty, too short to split or not UTF-8, and for a fraction outside 0 to 1; FileNotFoundError for
    an unknown name or path; ConnectionError for a download that fails.
    """
    if not 0 < validation_fraction < 1:
        raise InvalidInput(f"validation_fraction: {validation_fraction}, expected more than 0 and less than 1; the default is 0.1")
    name, path = str(name_or_path), user_path(name_or_path)
    corpora = [name for name, download in DOWNLOADS.items() if not download.labeled]
    if name_or_path == "docs":
        texts, python = docs_texts(), platform.python_version()
        source = f"docstrings of the public modules of NumPy {np.__version__}, the language manual of Python {python} (pydoc_data.topics)"
    elif name_or_path in corpora:
        texts = {name: read_text(fetch(name, cache=cache))}
        source = f"{DOWNLOADS[name].source}, {DOWNLOADS[name].url}"
    elif path.exists():
        files, left_out = text_files(path)
        texts = {title: read_text(file) for title, file in files.items()}
        source = f"{f'{len(files)} text files in' if path.is_dir() else 'text file'} {name}{left_out}"
    else:
        known = ["docs", *corpora]
        fix = did_you_mean(name, known, "check the path")
        raise MissingFile(f"corpus {name!r}: no such file or folder, expected a path or one of {', '.join(known)}; {fix}")

    empty = [title for title, text in texts.items() if not text.strip()]
    texts = {title: text for title, text in texts.items() if text.strip()}
    source += some_files(empty, "empty")
    if not texts:
        raise InvalidInput(f"corpus {name!r}: empty, expected some text; check that it is the file or folder that you mean")
    digest = hashlib.sha256()
    for part in (part.encode() for item in texts.items() for part in item):
        digest.update(len(part).to_bytes(8, "little") + part)
    train, validation = _split(name, texts, validation_fraction, seed)
    return Corpus(run_name(name_or_path), train, validation, digest.hexdigest(), source)


def user_path(path: str | Path) -> Path:
    """A path that a user gave, with its `~` expanded."""
    return Path(expand_home(str(path)))


def run_name(name_or_path: str | Path) -> str:
    """What a run on this data is called by default: a file's or folder's own name, in letters, digits, dots, hyphens and underscores."""
    path = user_path(name_or_path).resolve()
    own = path.stem if path.is_file() else path.name
    return re.sub("[^A-Za-z0-9._-]+", "-", own).strip("-.") or "run"


def _split(name: str, texts: dict[str, str], fraction: float, seed: int) -> tuple[list[Document], list[Document]]:
    """Training and validation documents: complete groups if there are enough of them, else the last part of each text."""
    if len(texts) > 1:
        groups = group_near_copies(list(texts.values()))
        documents = [Document(title, text, group) for (title, text), group in zip(texts.items(), groups, strict=True)]
        first = {d.group: d.name for d in reversed(documents)}  # a group's name is that of its first document
        sizes = np.bincount(groups, weights=[len(text.encode()) for text in texts.values()])
        if chosen := set(draw_groups({first[group]: size for group, size in enumerate(sizes.tolist())}, fraction, seed)):
            return [d for d in documents if first[d.group] not in chosen], [d for d in documents if first[d.group] in chosen]

    train, validation = [], []
    for number, (title, text) in enumerate(texts.items()):
        cut = int(len(text) * (1 - fraction))
        train += [Document(title, text[:cut], 2 * number)] if text[:cut] else []
        validation += [Document(title, text[cut:], 2 * number + 1)] if text[cut:] else []
    if not train or not validation:
        n = sum(map(len, texts.values()))
        raise InvalidInput(f"corpus {name!r}: {n} characters, expected enough to validate on {fraction:.0%} of them; add text")
    return train, validation


def draw_groups(sizes: Mapping[str, float], fraction: float, seed: int) -> list[str]:
    """Names of the groups (name: bytes) to validate on, drawn by seed, up to that fraction of all bytes; none if they come to less than half
    of it. The order of drawing is a hash of seed and name, not a shuffle: a group that comes or goes leaves the others where they are."""
    wanted, taken, chosen = fraction * sum(sizes.values()), 0.0, []
    for name in sorted(sizes, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        if taken + sizes[name] <= wanted:
            chosen.append(name)
            taken += sizes[name]
    return chosen if taken >= wanted / 2 else []


NUMPY_MODULES = """
char ctypeslib emath exceptions fft lib lib.array_utils lib.format lib.introspect lib.mixins lib.npyio lib.recfunctions
lib.stride_tricks linalg ma polynomial polynomial.chebyshev polynomial.hermite polynomial.hermite_e polynomial.laguerre
polynomial.legendre polynomial.polynomial polynomial.polyutils random rec strings testing typing
""".split()  # the public ones below `numpy`


def docs_texts() -> dict[str, str]:
    """The default corpus, sorted by name; each text once, under its shortest name (`numpy.argsort`, `python.lambda`)."""
    from pydoc_data.topics import topics

    names: defaultdict[str, list[str]] = defaultdict(list)  # text: the names that it is reached by
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a module that a coming NumPy deprecates is still good English
        for name, value in _numpy_objects():
            if isinstance(text := _docstring(value), str):
                names[inspect.cleandoc(text).strip()].append(name)
    for topic, text in topics.items():
        names[text.strip()].append(f"python.{topic}")
    shortest = {min(known, key=lambda name: (name.count("."), len(name), name)): text for text, known in names.items()}
    return dict(sorted(shortest.items()))


def _docstring(value: object) -> object:
    """A docstring as NumPy has it. Others may have rewritten that of a function which dispatches to other arrays (scipy.special adds a table to
    numpy.sinc's); its code still begins with its own."""
    code = getattr(inspect.unwrap(value), "__code__", None) if hasattr(value, "_implementation") and callable(value) else None
    own = code.co_consts[0] if code is not None and code.co_consts else None
    summary = own.strip().partition("\n")[0] if isinstance(own, str) else None
    return own if summary and isinstance(value.__doc__, str) and summary in value.__doc__ else value.__doc__


def _numpy_objects() -> Iterator[tuple[str, object]]:
    """NumPy's public modules, their functions and classes, and the methods and properties of these, each with its full name.

    Left out, because their text differs from platform to platform: the scalar types, and two functions that ask the operating system.
    Names are looked up with `vars`, which unlike `getattr` never wakes a deprecated one.
    """
    for module_name in ("numpy", *(f"numpy.{name}" for name in NUMPY_MODULES)):
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


def text_files(path: Path) -> tuple[dict[str, Path], str]:
    """A file, or all *.txt and *.md below a folder, by name; and what else there is, as a sentence. Raises ValueError if there are none."""
    if not path.is_dir():
        return {path.name: path}, ""
    files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    texts = {name: files[name] for name in sorted(files) if files[name].suffix.lower() in (".txt", ".md")}
    if not texts:
        raise InvalidInput(f"folder {path}: no text among {len(files)} files, expected *.txt or *.md; rename your text files so")
    return texts, some_files(sorted(files.keys() - texts.keys()), "not *.txt or *.md")


def some_files(names: list[str], why: str) -> str:
    """Files that are left out, for the end of a sentence: how many, why, and the first few names; "" for none."""
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"; left out, because {why}: {len(names)} ({shown})" if names else ""
