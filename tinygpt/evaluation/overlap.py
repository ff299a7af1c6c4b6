"""Has the model been trained on the items? The training text of its run, and how much of each item stands in it.

    text = training_text(Checkpoint.open("runs/docs-001"))
    shares = seen_shares(task.items, text)      # (N,) 0 to 1, nan for items too short to judge

An item is clean if no run of 13 words of it was trained on, and seen if at least one was: GPT-3's rule (Brown et al. 2020, arXiv:2005.14165,
appendix C), with the lengths of `tinygpt.data.ngrams`. It finds copies, not paraphrases, and takes a sentence that many texts have for a copy.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygpt.data.corpora import Corpus
from tinygpt.data.ngrams import LEAST_WORDS, normal_words, overlaps
from tinygpt.data.streaming import StreamedCorpus, open_corpus
from tinygpt.errors import InvalidInput, MissingFile, UserError
from tinygpt.evaluation.items import Item
from tinygpt.finetuning.conversations import load_conversations, split_conversations
from tinygpt.finetuning.instructions import load_instructions, split_instructions
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.storage.checked_json import Json, read_json_object

_LABELS = re.compile(r"^(?:Question|Answer|Q|A|Text):", re.MULTILINE)  # of prompts, which the training text of an item does not have


@dataclass(frozen=True)
class TrainingText:
    """What a model was trained on.

    source   as a sentence
    pieces   reads it: (piece of text, whether its document ends with it)
    corpus   the pretraining's
    """

    source: str
    pieces: Callable[[], Iterable[tuple[str, bool]]]
    corpus: Corpus | StreamedCorpus
    n_bytes: int


def training_text(checkpoint: Checkpoint) -> TrainingText:
    """The training documents of a run, as its settings say; of a fine-tuned one those of its base, and its rows.

    Raises FileNotFoundError for a checkpoint that belongs to no run, and where a run or its corpus is gone; ValueError for a corpus that is
    another than the run's by its fingerprint, and for a run that does not say what it was trained on.
    """
    if checkpoint.run is None or not (checkpoint.run / "config.json").is_file():
        raise MissingFile(f"{checkpoint.path}: no run with a config.json, expected one that names its corpus; published weights have none")
    config = read_json_object(checkpoint.run / "config.json")
    if "corpus" in config:
        return _pretraining(checkpoint.run, config)
    kinds = {"finetune_instructions.py": ("instructions", _instructions), "finetune_chat.py": ("conversations", _conversations)}
    script = Path(str(config.get("script"))).name
    if script in kinds and Path(str(config.get("base"))).exists():
        base = training_text(Checkpoint.open(config["base"]))
        what, read = kinds[script]
        rows = read(config)
        more = sum(len(text.encode()) for text, _ in rows)
        source = f"{base.source}; {len(rows):,} {what}, {config['data']}"
        return TrainingText(source, lambda: itertools.chain(base.pieces(), rows), base.corpus, base.n_bytes + more)
    raise InvalidInput(
        f"{checkpoint.run}: its config.json names no corpus and no base with one, expected a run of a language model's training"
    )


def _pretraining(run: Path, config: dict[str, Json]) -> TrainingText:
    corpus = open_corpus(config["corpus"], validation_fraction=config["validation_fraction"])
    if corpus.fingerprint != config.get("corpus_fingerprint"):
        found = f"corpus {config['corpus']!r} has the fingerprint {corpus.fingerprint[:12]}"
        rule = f"{str(config.get('corpus_fingerprint'))[:12]}, that of the text it was trained on"
        raise InvalidInput(f"{run}: {found}, expected {rule}; was a file changed, or NumPy or Python updated?")
    if isinstance(corpus, StreamedCorpus):
        return TrainingText(corpus.source, lambda: corpus.pieces("train"), corpus, corpus.n_bytes("train"))
    return TrainingText(corpus.source, lambda: ((document.text, True) for document in corpus.train), corpus, corpus.n_bytes("train"))


def _instructions(config: dict[str, Json]) -> list[tuple[str, bool]]:
    columns = {name: str(config.get(name, "")) for name in ("instruction_column", "input_column", "output_column")}
    parts = split_instructions(load_instructions(config["data"], **columns), tuple(config["fractions"]), seed=config["seed"])
    return [(f"{row.instruction}\n{row.input}\n{row.output}", True) for row in parts.train]


def _conversations(config: dict[str, Json]) -> list[tuple[str, bool]]:
    parts = split_conversations(load_conversations(config["data"]), tuple(config["fractions"]), seed=config["seed"])
    return [("\n".join(message.content for message in row.messages), True) for row in parts.train]


def looked_for(item: Item) -> str:
    """The text of an item that training text may hold: its passage; else the question, or with the answer where that is short."""
    if item.passage:
        return item.passage
    question = _LABELS.sub("", item.contexts[0])
    if item.kind in ("choice", "answer") and len(normal_words(question)) >= LEAST_WORDS:
        return question
    return _LABELS.sub("", item.solved)


def seen_shares(items: Sequence[Item], text: TrainingText) -> np.ndarray:
    """The share of each item's n-grams that the training text holds: (N,) 0 to 1, nan for items too short to judge. Reads it once."""
    return overlaps(map(looked_for, items), text.pieces())


@dataclass(frozen=True)
class Overlap:
    """Which items of a task the training text holds; see the module. shares: see `seen_shares`."""

    shares: np.ndarray

    @property
    def clean(self) -> list[int]:
        return np.flatnonzero(self.shares == 0).tolist()

    @property
    def seen(self) -> list[int]:
        return np.flatnonzero(self.shares > 0).tolist()

    @property
    def n_short(self) -> int:
        return int(np.isnan(self.shares).sum())


def find_overlap(tasks: Sequence[Sequence[Item]], checkpoint: Checkpoint) -> tuple[list[Overlap], str]:
    """For the items of each task, and a sentence on the text that they were looked for in; [] and why not, where that text cannot be had."""
    try:
        text = training_text(checkpoint)
    except (UserError, OSError, KeyError, TypeError) as error:
        return [], f"items were not looked for in the training text: {error}"
    shares = seen_shares([item for items in tasks for item in items], text)
    ends = np.cumsum([len(items) for items in tasks])[:-1]
    return [Overlap(part) for part in np.split(shares, ends)], f"clean and seen: looked for in the training text, {text.source}"
