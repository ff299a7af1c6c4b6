"""Evaluation items that training text holds are cut out of it, and listed.

    step = Decontaminate(("arc.jsonl", "held_out.txt"))
    step(document)                          # the document without them, or removed where too little is left
    Decontamination(step)                   # the stage: first counts n-grams over all documents, so that common phrases stay

Source  Brown et al. 2020, arXiv:2005.14165, appendix C: words in lower case without punctuation; where training text and an item share a run of 13, the run
        and 200 characters on either side are removed; pieces under 200 characters are dropped; a document cut into more than 10 pieces is dropped;
        a run that more than 10 documents hold is a common phrase, and stays.
Ours    Items of 8 to 12 words are found by all of their words (`tinygpt.data.ngrams`). The pieces of a document stay one document, a blank line
        between them; cuts are made at white space.
"""

import functools
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tinygpt.curate.documents import Document, Outcome, read_shard
from tinygpt.curate.executors import Run
from tinygpt.curate.pipeline import apply_steps, merged
from tinygpt.curate.report import Listed, StepReport, excerpt
from tinygpt.data.ngrams import LEAST_WORDS, N_WORDS, NgramIndex
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.evaluation.files import read_task
from tinygpt.evaluation.items import Item
from tinygpt.storage.checked_json import Json, read_json, read_text, to_json
from tinygpt.storage.durable import replace_file

WINDOW = 200  # characters that go with a run, on either side; and what a piece has at least
MOST_PIECES = 10
MOST_ITEMS = 20  # named for each stretch
MOST_DOCUMENTS = 10  # that hold a run which is not a common phrase
_TABLES = (".jsonl", ".json", ".csv")
# What prompts put around the texts of a benchmark: labels at the beginning of a line, letters of options.
_LABEL = re.compile(r"(?m)^[ \t]*(?:Question|Answer|Q|A|[B-J])[:.][ \t]*")


class Indexed(NamedTuple):
    """The n-grams of all items, and for each indexed text the item that it comes from: "arc.jsonl, row 12"."""

    ngrams: NgramIndex
    items: list[str]


def item_texts(item: Item) -> list[str]:
    """What training text may hold of an item: question and answer in a row, and each of its texts; without labels such as "Question:"."""
    parts = [piece.strip() for context in item.contexts for piece in _LABEL.split(context) if piece.strip()]
    right = item.options[item.right if item.kind == "choice" else 0]
    solved = " ".join(piece.strip() for piece in _LABEL.split(item.solved) if piece.strip())
    return list(dict.fromkeys([solved, *parts, right.strip(), *([item.passage] if item.passage else [])]))


def _texts_of(path: Path) -> Iterable[tuple[str, str]]:
    """(item, text) of an evaluation file: rows of the shapes that `tinygpt.evaluation.files.read_task` knows, or paragraphs of a plain text."""
    if path.suffix.lower() in _TABLES:
        task = read_task(path)
        for item in sorted([*task.items, *task.examples], key=lambda item: item.group):
            yield from ((f"{path.name}, row {item.group + 1}", text) for text in item_texts(item))
    else:
        paragraphs = [paragraph for paragraph in re.split(r"\n\s*\n", read_text(path)) if paragraph.strip()]
        yield from ((f"{path.name}, paragraph {number}", paragraph) for number, paragraph in enumerate(paragraphs, start=1))


@functools.lru_cache(maxsize=2)
def _indexed(files: tuple[str, ...], hashes: tuple[str, ...], common: str) -> Indexed:
    """hashes: what the files hold, so that a changed file is read again."""
    rows = [row for file in files for row in _texts_of(Path(file))]
    ngrams = NgramIndex([text for _, text in rows], N_WORDS, LEAST_WORDS)
    if ngrams.n_short == ngrams.n_texts:
        found = f"{len(rows)} texts of fewer than {LEAST_WORDS} words"
        raise InvalidInput(f"decontaminate: {', '.join(files)}: {found}, expected longer ones; give files of questions or texts")
    if common:
        ngrams = ngrams.without(np.array([int(run, 16) for run in read_json(Path(common))["runs"]], dtype=np.uint64))
    return Indexed(ngrams, [item for item, _ in rows])


def _hash(file: str) -> str:
    if not Path(file).is_file():
        raise MissingFile(f"decontaminate {file}: no such file, expected one of evaluation items or of text; check the path")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


@dataclass(frozen=True)
class Decontaminate:
    """The step. Raises FileNotFoundError for a missing file, ValueError for one without items of 8 words.

    files    evaluation files: .jsonl, .json and .csv of a known shape, everything else as plain text
    common   a file of n-grams that stay, which `Decontamination` makes; "": none
    """

    files: tuple[str, ...]
    common: str = ""
    name: str = "contamination"

    def settings(self) -> dict[str, Json]:
        """Files by name and content: where they are does not matter."""
        files = [[Path(file).name, _hash(file)[:16]] for file in self.files]  # two folders may hold files of one name
        return {"files": files, "words": N_WORDS, "window": WINDOW, "most_pieces": MOST_PIECES}

    def indexed(self) -> Indexed:
        return _indexed(self.files, tuple(map(_fingerprint, self.files)), self.common)

    def __call__(self, document: Document) -> Outcome:
        ngrams, items = self.indexed()
        text = document.text
        spans = ngrams.spans(text)
        if not spans:
            return Outcome(document)
        notes = tuple(
            {
                "document": document.id,
                "items": sorted({items[i] for i in ngrams.holders(text[start:end]).tolist()})[:MOST_ITEMS],
                "words": excerpt(text[start:end]),
            }
            for start, end in spans
        )
        pieces = _pieces(text, spans)
        long = [piece for piece in pieces if len(piece) >= WINDOW]
        counts = {"runs cut out": len(spans)}
        if len(pieces) > MOST_PIECES:
            return Listed(None, "pieces", len(pieces), MOST_PIECES, counts, notes=notes)
        if not long:
            return Listed(None, "rest", max(map(len, pieces), default=0), WINDOW, counts, notes=notes)
        return Listed(replace(document, text="\n\n".join(long)), counts=counts, notes=notes)


def _fingerprint(file: str) -> str:
    """Cheap, for every document: size and time of a file."""
    if not Path(file).is_file():
        return _hash(file)
    status = Path(file).stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def _pieces(text: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    """What is left of a text without the spans and the characters around them; where that would cut a word, the word goes, too."""
    pieces, at = [], 0
    for start, end in spans:
        first, last = max(0, start - WINDOW), min(len(text), end + WINDOW)
        while first > 0 and not text[first - 1].isspace():
            first -= 1
        while last < len(text) and not text[last].isspace():
            last += 1
        pieces.append(text[at:first].strip())
        at = max(at, last)
    return [piece for piece in [*pieces, text[at:].strip()] if piece]


@dataclass(frozen=True)
class Decontamination:
    """The stage: counts in how many documents each n-gram of the evaluation files occurs, then cuts out those that few hold.

    Copies should be gone by then: a text that occurs eleven times would make a common phrase of every run of 13 words in it.
    """

    step: Decontaminate
    name: str = "contamination"

    def settings(self) -> dict[str, Json]:
        """Raises ValueError for a file that cannot be read, before anything is done."""
        self.step.indexed()
        return self.step.settings() | {"most_documents": MOST_DOCUMENTS}

    def run(self, inputs: Sequence[Path], work: Path, run: Run) -> Sequence[StepReport]:
        counts, common = work / "counts", work / "common.json"
        counts.mkdir(exist_ok=True)
        run(partial(count_task, self.step, tuple(inputs), counts), len(inputs), "count")
        write_common(common, (counts / f"{task:05d}.json" for task in range(len(inputs))))
        step = replace(self.step, common=str(common))
        return merged(run(partial(apply_steps, (step,), tuple(inputs), work / "shards"), len(inputs), "apply"))


def count_task(step: Decontaminate, inputs: Sequence[Path], folder: Path, task: int, n_tasks: int) -> list[StepReport]:
    """Writes folder/TASK.json: {n-gram: documents of shard number `task` that hold it}, n-grams as hexadecimal numbers."""
    assert n_tasks == len(inputs)
    ngrams = step.indexed().ngrams
    counts: Counter[int] = Counter()
    for document in read_shard(inputs[task]):
        counts.update(ngrams.shared(document.text).tolist())
    replace_file(folder / f"{task:05d}.json", to_json({f"{run:016x}": n for run, n in sorted(counts.items())}), writer=f"{os.getpid()}-")
    return []


def write_common(path: Path, counts: Iterable[Path], most: int = MOST_DOCUMENTS) -> None:
    """Adds up what `count_task` wrote, and writes the n-grams that more than `most` documents hold."""
    total: Counter[str] = Counter()
    for file in counts:
        total.update(read_json(file))
    replace_file(path, to_json({"runs": sorted(run for run, n in total.items() if n > most)}))
