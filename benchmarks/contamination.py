"""Decontamination: which changes of an evaluation item it still finds, and what it takes from documents without items.

    python benchmarks/contamination.py          # half a minute

Items are passages of --words words from validation documents of the default corpus, one per document, written to a plain text file. Each is planted into a
training document at a random blank, changed in one of the ways of CHANGES. `found`: the step names the item. `left`: the longest run of the
item's words that is still in the document afterwards. The same training documents, with nothing planted, are the clean ones: which of them
the step changes, and how many of these really share 13 words in a row with an item, by comparing sets of tuples.

Writes --output as JSON, and prints the table of docs/curation.md.
"""

import json
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt.arguments import parse_args
from tinygpt.curate.contamination import Decontaminate
from tinygpt.curate.documents import Document
from tinygpt.data.corpora import load_corpus
from tinygpt.data.ngrams import N_WORDS, normal_words
from tinygpt.fields import PathName

Words = list[str]


def every(n: int) -> Callable[[Words], Words]:
    """Another word instead of every n-th, the last of each n."""
    return lambda words: [f"other{i}" if i % n == n - 1 else word for i, word in enumerate(words)]


CHANGES: dict[str, Callable[[Words], Words]] = {
    "as it is": lambda words: words,
    "in capitals": lambda words: [word.upper() for word in words],
    "without punctuation": lambda words: [plain for word in words if (plain := re.sub(r"[^\w\s]", "", word))],
    "a line break after every third word": lambda words: [word + "\n" * (i % 3 == 2) for i, word in enumerate(words)],
    "the first half": lambda words: words[: len(words) // 2],
    "every 20th word another": every(20),
    "every 14th word another": every(14),
    "every 13th word another": every(13),
    "every 8th word another": every(8),
}


@dataclass(frozen=True)
class Config:
    words: int = 40
    """Of an item."""
    seed: int = 0
    """Where items are planted."""
    output: PathName = "benchmarks/results/contamination.json"
    """File for the report; "" for none."""


def measured(config: Config) -> dict[str, Any]:
    corpus, rng = load_corpus("docs"), np.random.default_rng(config.seed)
    items = [words[: config.words] for d in corpus.validation if len(words := d.text.split()) >= 2 * config.words]
    training = [d.text for d in corpus.train if len(d.text) >= 2000]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "items.txt"
        file.write_text("\n\n".join(" ".join(item) for item in items), encoding="utf-8")
        step = Decontaminate((str(file),))
        rows = {name: planted(step, items, training, change, rng) for name, change in CHANGES.items()}
        runs = {run for item in items for run in runs_of(" ".join(item))}
        changed = [text for text in training if step(Document("clean", text)).document is None or step(Document("clean", text)).counts]
    shared = [text for text in training if runs & runs_of(text)]
    clean = {
        "documents": len(training),
        "changed": len(changed),
        "share a run": len(shared),
        "changed without": len(set(changed) - set(shared)),
    }
    return {"source": corpus.source, "items": len(items), "words": config.words, "changes": rows, "clean": clean}


def planted(
    step: Decontaminate, items: list[Words], training: list[str], change: Callable[[Words], Words], rng: np.random.Generator
) -> dict[str, float]:
    found, left, removed = 0, [], []
    for number, item in enumerate(items):
        words = training[number % len(training)].split(" ")
        at = int(rng.integers(len(words) + 1))
        text = " ".join([*words[:at], *change(item), *words[at:]])
        outcome = step(Document("d", text))
        named = {name for note in getattr(outcome, "notes", ()) for name in note["items"]}
        found += f"items.txt, paragraph {number + 1}" in named
        kept = outcome.document.text if outcome.document else ""
        left.append(longest(normal_words(" ".join(item)), normal_words(kept)))
        removed.append(len(text) - len(kept))
    return {"found": found / len(items), "longest left": max(left), "characters removed": round(float(np.median(removed)))}


def runs_of(text: str, n: int = N_WORDS) -> set[tuple[str, ...]]:
    words = normal_words(text)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def longest(one: Words, two: Words) -> int:
    """Words of the longest run that both have."""
    n = 0
    while n < len(one) and runs_of(" ".join(one), n + 1) & runs_of(" ".join(two), n + 1):
        n += 1
    return n


def table(result: dict[str, Any]) -> str:
    lines = ["| the planted item | found | longest run that is left, words | characters removed, median |", "|---|---|---|---|"]
    for name, row in result["changes"].items():
        lines.append(f"| {name} | {row['found']:.3f} | {row['longest left']} | {row['characters removed']:,} |")
    return "\n".join(lines)


def main() -> None:
    config = parse_args(Config(), __doc__)
    result = measured(config)
    if config.output:
        Path(config.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"{result['items']} items of {result['words']} words\n\n{table(result)}\n\nclean documents: {result['clean']}")


if __name__ == "__main__":
    main()
