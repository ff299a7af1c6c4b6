"""What finding copies is worth and costs: recall on planted pairs, by the exact index and by MinHash; seconds and memory on 100 MB.

    python benchmarks/curation_copies.py                     # two minutes
    python benchmarks/curation_copies.py --mb 1000           # memory at ten times the size
    python benchmarks/curation_copies.py --pairs 25 --mb 1   # seconds: does it run?

recall   1,000 pairs: a piece of 100 words of the default corpus, and the same one with words replaced, added and left out until the Jaccard
         similarity of their 5-word shingles, which is measured, is what it should be (up to 0.02). No piece has a tenth of its shingles in
         another. A pair is found if exactly one of its two documents is removed; a removal is wrong if it names a document outside the pair as
         the one that stays. With `similarity` 0.45 all pairs are near copies: what MinHash misses of what the index finds.
cost     the corpus of benchmarks/curation.py, with planted copies: each stage in a process of its own, one task after the other

Writes --output as JSON and prints the tables of docs/curation.md. Needs the extra curate.
"""

import functools
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from curation import make_corpus
from train_step import processor

from autograd.limits import peak_bytes, trim_heap
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.curate.copies import Folders, Repeated, remove_exact_copies, remove_repeated
from tinygpt.curate.documents import Document, read_shard, write_shard
from tinygpt.curate.executors import Function
from tinygpt.curate.heap import give_back_freed_memory
from tinygpt.curate.near import Near, remove_near_copies, shingles
from tinygpt.curate.pipeline import write_shards
from tinygpt.curate.report import StepReport
from tinygpt.data.corpora import load_corpus
from tinygpt.fields import PathName

SIMILARITIES = (0.5, 0.7, 0.8, 0.9)
TOLERANCE = 0.02
WORDS = 100  # of a piece


@dataclass(frozen=True)
class Config:
    pairs: int = 250
    """Planted pairs of each similarity."""
    mb: int = 100
    """Size of the corpus whose curation is timed, in MB; 0: none."""
    seed: int = 0
    """Of the pairs and of the corpus."""
    output: PathName = "benchmarks/results/curation_copies.json"
    """File for the report."""


# ---- planted pairs -----------------------------------------------------------------------------------------------------------------------


class Pair(NamedTuple):
    """Two texts, the similarity that was asked for, and the measured one."""

    first: str
    second: str
    wanted: float
    measured: float


@functools.cache
def default_corpus() -> list[list[str]]:
    """The words of its training documents."""
    return [document.text.split() for document in load_corpus("docs").train]


def jaccard(one: np.ndarray, two: np.ndarray) -> float:
    both = len(np.intersect1d(one, two, assume_unique=True))
    return both / (len(one) + len(two) - both)


def pieces(rng: np.random.Generator) -> Iterator[list[str]]:
    """Pieces of the default corpus, in random order, without those of which a tenth or more occurs in one that came before."""
    found = [words[start : start + WORDS] for words in default_corpus() for start in range(0, len(words) - WORDS + 1, WORDS)]
    seen: set[int] = set()
    for number in rng.permutation(len(found)).tolist():
        own = shingles(" ".join(found[number])).tolist()
        if len(own) > WORDS / 2 and 10 * len(seen.intersection(own)) < len(own):
            seen.update(own)
            yield found[number]


def changed(words: Sequence[str], vocabulary: Sequence[str], similarity: float, rng: np.random.Generator) -> tuple[str, float]:
    """A text with runs of one to four words replaced, added or left out, until it is no more alike than wanted; and how alike it is."""
    now, own, measured = list(words), shingles(" ".join(words)), 1.0
    while measured > similarity + TOLERANCE / 2:
        at, n, kind = int(rng.integers(len(now) - 4)), int(rng.integers(1, 5)), int(rng.integers(3))
        new = [vocabulary[i] for i in rng.integers(len(vocabulary), size=n)]
        now[at : at + n * (kind != 1)] = new if kind < 2 else []
        measured = jaccard(own, shingles(" ".join(now)))
    return " ".join(now), measured


def planted_pairs(n: int, seed: int = 0) -> list[Pair]:
    """n pairs of each of SIMILARITIES; no document resembles one of another pair."""
    rng = np.random.default_rng(seed)
    vocabulary = sorted({word for words in default_corpus() for word in words if word.isalpha()})
    found: list[Pair] = []
    left = pieces(rng)
    for wanted in SIMILARITIES:
        for _ in range(n):
            words = next(left)
            second, measured = "", 0.0
            while abs(measured - wanted) > TOLERANCE:
                second, measured = changed(words, vocabulary, wanted, rng)
            found.append(Pair(" ".join(words), second, wanted, measured))
    return found


def in_this_process(function: Function, n_tasks: int, name: str) -> list[list[StepReport]]:
    def one(task: int) -> list[StepReport]:
        try:
            return list(function(task, n_tasks))
        finally:
            trim_heap()

    return [one(task) for task in range(n_tasks)]


def recall(pairs: Sequence[Pair], near: Near, folder: Path, n_shards: int = 8) -> dict[str, Any]:
    """What removing near copies makes of planted pairs: by similarity the share found and the share kept in one group; wrong removals."""
    documents = [Document(f"{number}/{side}", pair[side]) for number, pair in enumerate(pairs) for side in (0, 1)]
    (folder / "in").mkdir(parents=True)
    for shard in range(n_shards):
        write_shard(folder / "in" / f"{shard}.jsonl", documents[shard::n_shards])
    shards = tuple(sorted((folder / "in").iterdir()))
    remove_near_copies(Folders(shards, folder / "shards", folder / "tables"), in_this_process, near, say=lambda sentence: None)
    stays = {document.id: document for path in sorted((folder / "shards").iterdir()) for document in read_shard(path)}
    found, grouped = {s: [0, 0] for s in SIMILARITIES}, {s: [0, 0] for s in SIMILARITIES}
    for number, pair in enumerate(pairs):
        both = [stays.get(f"{number}/{side}") for side in (0, 1)]
        found[pair.wanted][0] += sum(document is None for document in both) == 1
        groups = {document.metadata.get("group") for document in both if document}
        grouped[pair.wanted][0] += all(both) and len(groups) == 1 and None not in groups
        found[pair.wanted][1] = grouped[pair.wanted][1] = found[pair.wanted][1] + 1
    copies = [(kept, copy["id"]) for kept, document in stays.items() for copy in document.metadata.get("copies", [])]
    wrong = sum(kept.partition("/")[0] != copy.partition("/")[0] for kept, copy in copies) + len(documents) - len(stays) - len(copies)
    return {
        "method": near.method,
        "similarity": near.similarity,
        "found": {str(s): of / n for s, (of, n) in found.items()},
        "grouped": {str(s): of / n for s, (of, n) in grouped.items()},
        "removed": len(documents) - len(stays),
        "wrong": wrong,
        "staying": sorted(stays),
    }


def recalls(pairs: Sequence[Pair], similarity: float, folder: Path) -> list[dict[str, Any]]:
    """Both methods; `beyond`: documents that MinHash removes and the index does not."""
    exact, minhash = (
        recall(pairs, Near(method=method, similarity=similarity), folder / f"{method}-{similarity}") for method in ("exact", "minhash")
    )
    minhash["beyond"] = len(set(exact.pop("staying")) - set(minhash.pop("staying")))
    return [exact, minhash]


# ---- time and memory ---------------------------------------------------------------------------------------------------------------------


def one_stage(stage: str, shards: tuple[Path, ...], folder: Path) -> dict[str, Any]:
    """Runs a stage and measures it: in a process of its own, because a process's peak of memory never falls. It treats its memory as a worker
    does. Of a phase: CPU seconds, and the peak until its end."""
    seconds: dict[str, float] = {}
    peaks: dict[str, int] = {}
    give_back_freed_memory()

    def measured(function: Function, n_tasks: int, name: str) -> list[list[StepReport]]:
        started = time.process_time()
        reports = in_this_process(function, n_tasks, name)
        seconds[name], peaks[name] = round(time.process_time() - started, 1), peak_bytes() // 10**6
        return reports

    folders, started = Folders(shards, folder / "shards", folder / "tables"), time.process_time()
    if stage == "exact copies":
        report = remove_exact_copies(folders, measured)
    elif stage == "lines and paragraphs":
        report = remove_repeated(folders, measured, Repeated())
    else:
        method = "minhash" if "MinHash" in stage else "exact"
        report = remove_near_copies(folders, measured, Near(method=method), say=lambda sentence: print(f"  {sentence}", flush=True))
    row = {
        "stage": stage,
        "cpu_s": round(time.process_time() - started, 1),
        "peak_mb": peak_bytes() // 10**6,
        "phases": seconds,
        "peaks_mb": peaks,
    }
    row["tables_mb"] = sum(path.stat().st_size for path in (folder / "tables").rglob("*") if path.is_file()) // 10**6
    return row | {"documents_in": report.total.documents_in, "documents_out": report.total.documents_out}


STAGES = ("exact copies", "near copies, exact index", "near copies, MinHash", "lines and paragraphs")


def costs(mb: int, seed: int, folder: Path) -> dict[str, Any]:
    """Each stage, on what the one before has left."""
    made = make_corpus(folder / "raw", mb * 10**6, seed)
    lines = chain.from_iterable(path.open(encoding="utf-8") for path in sorted((folder / "raw").iterdir()))
    (folder / "read").mkdir()
    write_shards(folder / "read", "0", (Document(value["id"], value["text"]) for value in map(json.loads, lines)))
    inputs = {"exact copies": "read", "near copies, exact index": "exact copies", "near copies, MinHash": "exact copies"}
    rows = []
    for stage in STAGES:
        before = inputs.get(stage, "near copies, exact index")
        shards = tuple(sorted((folder / before / "shards" if before != "read" else folder / before).iterdir()))
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(one_stage, (stage, shards, folder / stage)))
        print(json.dumps(rows[-1]), flush=True)
    return {"mb": mb, "documents": dict(made), "processor": processor(), "stages": rows}


# ---- the report --------------------------------------------------------------------------------------------------------------------------


def tables(report: dict[str, Any]) -> str:
    """In Markdown."""
    head = " | ".join(f"{s}" for s in SIMILARITIES)
    lines = [f"| pairs found, by their similarity | {head} | wrong removals |", "|---|" + "---|" * (len(SIMILARITIES) + 1)]
    for row in report["recall"]:
        cells = " | ".join(f"{row['found'][str(s)]:.3f}" for s in SIMILARITIES)
        lines.append(f"| {row['method']}, near from {row['similarity']} on | {cells} | {row['wrong']} |")
    if "cost" in report:
        cost = report["cost"]
        n = sum(cost["documents"].values())
        lines += [
            "",
            f"| {cost['mb']} MB, {n:,} documents | documents left | CPU seconds | peak memory | on the disk |",
            "|---|---|---|---|---|",
        ]
        for row in cost["stages"]:
            lines.append(f"| {row['stage']} | {row['documents_out']:,} | {row['cpu_s']} | {row['peak_mb']} MB | {row['tables_mb']} MB |")
    return "\n".join(lines)


def main() -> None:
    config = parse_args(Config(), __doc__)
    with TemporaryDirectory() as folder:
        pairs = planted_pairs(config.pairs, config.seed)
        rows = [row for similarity in (0.45, Near().similarity) for row in recalls(pairs, similarity, Path(folder) / "pairs")]
        report: dict[str, Any] = {"settings": asdict(config), "recall": rows}
        if config.mb:
            (Path(folder) / "cost").mkdir()
            report["cost"] = costs(config.mb, config.seed, Path(folder) / "cost")
    if config.output:
        Path(config.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"\n{tables(report)}")


if __name__ == "__main__":
    run(main)
