"""The last stage: splits documents by groups, mixes the sources, and writes the folder that `--corpus` takes (tinygpt/data/curated.py).

Two passes, because each file of the output holds documents from all over the input. `scatter` writes the documents of a shard as one file,
ordered by the part of the output that they belong to; `gather` puts a part together. Where a document goes is a function of its number in its
source (tinygpt/curate/mixture.py), for which `count` counts documents first. In memory is one shard, or one part.
"""

import dataclasses
import gzip
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from tinygpt.curate.documents import Document, read_shard, write_shard
from tinygpt.curate.executors import Run
from tinygpt.curate.mixture import MANY_EPOCHS, Drawn, Mixture, Place, Size, mix, shares
from tinygpt.curate.report import Flow, SourceRow, StepReport, n_bytes
from tinygpt.data.curated import CuratedSource, Manifest, ShardFile
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json, read_json, to_json
from tinygpt.storage.durable import read_digest, remove_partial, replace_file

SIDES = ("train", "validation")
PART_BYTES = 16 << 20  # of text in a file of the output
MAX_PARTS = 1000  # files of a side; beyond 16 GB they are larger
Sizes = dict[str, dict[str, Size]]  # side: source: how much


@dataclass(frozen=True)
class Side:
    """A side of the split: its mixture, and the number of its files."""

    mixture: Mixture
    n_parts: int


@dataclass(frozen=True)
class Mixing:
    """Splits, mixes and writes. folder: of the output; licenses and weights by source, weights empty: by temperature (see `mixture.mix`).

    total_bytes   of training text, repetitions included; 0: as much as there is
    settings_id   fingerprint of all settings of the curation, for the manifest
    """

    folder: Path
    licenses: Mapping[str, str]
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    temperature: float = 1.0
    total_bytes: int = 0
    validation_fraction: float = 0.1
    seed: int = 0
    settings_id: str = ""
    part_bytes: int = PART_BYTES
    name: str = "mix"

    def __post_init__(self) -> None:
        if not 0 < self.validation_fraction < 1:
            rule = "expected more than 0 and less than 1; the default is 0.1"
            raise InvalidInput(f"validation_fraction: {self.validation_fraction}, {rule}")
        shares(dict.fromkeys(self.weights or ["all"], 1.0), self.weights or None, self.temperature)  # what it refuses, it refuses now

    def settings(self) -> dict[str, Json]:
        names = ("temperature", "total_bytes", "validation_fraction", "seed", "part_bytes")
        return {"weights": dict(self.weights), **{name: getattr(self, name) for name in names}}

    def run(self, inputs: Sequence[Path], work: Path, run: Run) -> Sequence[StepReport]:
        """Writes the folder's files, and manifest.json when all of them are there."""
        inputs = tuple(inputs)
        threshold = int(self.validation_fraction * 2.0**64)
        counts = self._counts(inputs, work / "count", threshold, run)
        if not any(count["validation"] for count in counts):  # few documents: those of the group that comes first
            threshold = min(count["lowest"] for count in counts) + 1
            counts = self._counts(inputs, work / "count-again", threshold, run)
        plan = self._plan(counts)
        before = _offsets(counts)
        run(partial(_scatter, inputs, plan, before, self.seed, threshold, work / "scattered"), len(inputs), "scatter")
        parts = [(side, part) for side in SIDES for part in range(plan[side].n_parts)]
        run(partial(_gather, plan, parts, work, self.folder), len(parts), "gather")
        for side in SIDES:
            remove_partial(self.folder / side)  # of a run that was killed here
        return [self._finish(plan, [read_json(work / "gathered" / f"{side}-{part:05d}.json") for side, part in parts])]

    def _counts(self, inputs: Sequence[Path], folder: Path, threshold: int, run: Run) -> list[Json]:
        run(partial(_count, inputs, folder, self.seed, threshold), len(inputs), folder.name)
        return [read_json(folder / f"{number:05d}.json") for number in range(len(inputs))]

    def _plan(self, counts: Sequence[Json]) -> dict[str, Side]:
        """Both sides' mixtures: the training text as asked for, the validation text with each document once."""
        sizes: Sizes = {side: _sum(count[side] for count in counts) for side in SIDES}
        if not sizes["train"] and min(count["lowest"] for count in counts) < max(count["highest"] for count in counts):
            found, rule = (
                f"{self.validation_fraction}, no document is left to train on",
                "expected a smaller share of so few groups of near copies",
            )
            raise InvalidInput(f"validation_fraction: {found}, {rule}; lower it, into another --output")
        if not sizes["train"] or not sizes["validation"]:
            rule = "expected at least two groups of near copies, one for each side of the split"
            raise InvalidInput(f"split: one group of near copies is left, {rule}; add documents, or remove copies first")
        weights = {name: self.weights[name] for name in sizes["train"]} if self.weights else None  # of those that have any text left
        mixtures = {
            "train": mix(sizes["train"], weights, temperature=self.temperature, total=self.total_bytes, seed=self.seed),
            "validation": mix(sizes["validation"], seed=self.seed),
        }
        expected = {side: sum(s.size * s.epochs for s in mixture.sources) for side, mixture in mixtures.items()}
        return {side: Side(mixtures[side], min(MAX_PARTS, 1 + int(expected[side] // self.part_bytes))) for side in SIDES}

    def _finish(self, plan: Mapping[str, Side], parts: Sequence[Json]) -> StepReport:
        files: dict[str, list[ShardFile]] = {side: [] for side in SIDES}
        written: Sizes = {side: _sum(part["sources"] for part in parts if part["side"] == side) for side in SIDES}
        for part in parts:
            files[part["side"]].append(ShardFile(**part["file"]))
        report, sources = StepReport(self.name, self.settings()), []
        train = {source.name: source for source in plan["train"].mixture.sources}
        for name in sorted(train.keys() | written["validation"].keys()):
            source = train.get(name, Drawn(name, 0, 0, 0.0, 0))  # all of it may be validation text
            drawn, kept = (written[side].get(name, Size(0, 0)) for side in SIDES)
            sources.append(CuratedSource(
                source.name, self.licenses.get(source.name, "not stated"), source.documents, source.size, round(source.share, 6),
                drawn.documents, drawn.size, kept.documents, kept.size,
            ))  # fmt: skip
            n_in, bytes_in = source.documents + kept.documents, source.size + kept.size
            report.flows[source.name] = Flow(n_in, bytes_in, drawn.documents + kept.documents, drawn.size + kept.size)
            if source.epochs > MANY_EPOCHS:
                why = f"more than {MANY_EPOCHS} repetitions teach little (arXiv:2305.16264): lower its weight, or take less text in all"
                report.warnings.append(f"{source.name}: read {source.epochs:.1f} times; {why}")
        for name in sorted(self.licenses.keys() - train.keys()):
            report.warnings.append(
                f"{name}: no document of it is in the training text, and the other sources share its weight; add documents"
            )
        Manifest(
            self.folder.resolve().name, self.seed, self.validation_fraction, self.settings_id, sources, files["train"], files["validation"]
        ).write(self.folder)
        return report


def source_rows(manifest: Manifest) -> list[SourceRow]:
    """The final mixture, for the report: what is drawn of each source, with repetitions."""
    return [
        SourceRow(s.name, s.license, s.drawn, s.drawn_bytes, s.share, s.epochs, s.validation_documents, s.validation_bytes)
        for s in manifest.sources
    ]


def _sum(counts: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, Size]:
    total: dict[str, Size] = {}
    for count in counts:
        for name, (documents, size) in count.items():
            before = total.get(name, Size(0, 0))
            total[name] = Size(before.documents + documents, before.size + size)
    return dict(sorted(total.items()))


def _order(seed: int, document: Document) -> int:
    """Where a document's group comes when groups are drawn for validation, 0 to 2**64 - 1: a group that comes or goes leaves others alone."""
    group = document.metadata.get("group", document.id)
    return int.from_bytes(hashlib.sha256(f"{seed} {group}".encode()).digest()[:8], "big")


def _count(inputs: Sequence[Path], output: Path, seed: int, threshold: int, task: int, n_tasks: int) -> list[StepReport]:
    counts: dict[str, defaultdict[str, list[int]]] = {side: defaultdict(lambda: [0, 0]) for side in SIDES}
    lowest, highest = 1 << 64, -1
    for document in read_shard(inputs[task]):
        order = _order(seed, document)
        lowest, highest = min(lowest, order), max(highest, order)
        count = counts[SIDES[order < threshold]][document.source]
        count[0] += 1
        count[1] += n_bytes(document.text)
    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / f"{task:05d}.json", to_json({**counts, "lowest": lowest, "highest": highest}), writer=f"{os.getpid()}-")
    return []


def _offsets(counts: Sequence[Json]) -> list[dict[str, dict[str, int]]]:
    """For each shard: side: source: documents in the shards before it."""
    now: dict[str, dict[str, int]] = {side: {} for side in SIDES}
    found = []
    for count in counts:
        found.append({side: dict(of) for side, of in now.items()})
        for side in SIDES:
            for name, (documents, _) in count[side].items():
                now[side][name] = now[side].get(name, 0) + documents
    return found


def _scatter(
    inputs: Sequence[Path], plan: Mapping[str, Side], before: Sequence[Mapping[str, Mapping[str, int]]], seed: int, threshold: int,
    output: Path, task: int, n_tasks: int,
) -> list[StepReport]:  # fmt: skip
    """Writes a shard's documents, each as often as it is drawn, as compressed blocks: one for each part; and where the blocks are."""
    groups: defaultdict[tuple[str, str], list[Document]] = defaultdict(list)
    for document in read_shard(inputs[task]):
        groups[SIDES[_order(seed, document) < threshold], document.source].append(document)
    blocks: defaultdict[str, list[tuple[Place, Document]]] = defaultdict(list)
    for (side, source), documents in groups.items():
        numbers = before[task][side].get(source, 0) + np.arange(len(documents))
        for i, part, place in plan[side].mixture.appearances(source, numbers, plan[side].n_parts):
            blocks[f"{side}-{part:05d}"].append((place, documents[i]))
    index, end = dict[str, list[int]](), 0

    def chunks() -> Iterator[bytes]:
        nonlocal end
        for name in sorted(blocks):
            lines = [
                json.dumps([*place, {**vars(document), "metadata": dict(document.metadata)}], ensure_ascii=False)
                for place, document in blocks.pop(name)
            ]
            block = gzip.compress("\n".join(lines).encode(), 1, mtime=0)
            index[name] = [end, len(block)]
            end += len(block)
            yield block

    output.mkdir(parents=True, exist_ok=True)
    replace_file(output / f"{task:05d}.blocks", chunks(), writer=f"{os.getpid()}-")
    replace_file(output / f"{task:05d}.json", to_json(index), writer=f"{os.getpid()}-")
    return []


def _gather(
    plan: Mapping[str, Side], parts: Sequence[tuple[str, int]], work: Path, folder: Path, task: int, n_tasks: int
) -> list[StepReport]:
    """Writes a part of the output, and what the manifest says of it."""
    side, part = parts[task]
    rows: list[list[Json]] = []
    for path in sorted((work / "scattered").glob("[0-9]*.blocks")):
        start, size = read_json(path.with_suffix(".json")).get(f"{side}-{part:05d}", (0, 0))
        if size:
            with path.open("rb") as block:
                block.seek(start)
                rows += map(json.loads, gzip.decompress(block.read(size)).decode().split("\n"))
    rows.sort(key=lambda row: row[:3])
    documents = [Document(**row[3]) for row in rows]
    file = folder / side / f"{part:05d}.jsonl.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_shard(file, documents)
    written, lines = read_digest(file), hashlib.sha256()
    with gzip.open(file, "rb") as decompressed:
        while data := decompressed.read(1 << 20):
            lines.update(data)
    sizes: dict[str, list[int]] = {}
    for document in documents:
        size = sizes.setdefault(document.source, [0, 0])
        size[0] += 1
        size[1] += n_bytes(document.text)
    n_text = sum(size for _, size in sizes.values())
    name = f"{side}/{file.name}"
    entry = ShardFile(name, len(documents), n_text, written.n_bytes, written.sha256, lines.hexdigest())
    (work / "gathered").mkdir(parents=True, exist_ok=True)
    about = to_json({"side": side, "sources": sizes, "file": dataclasses.asdict(entry)})
    replace_file(work / "gathered" / f"{side}-{part:05d}.json", about, writer=f"{os.getpid()}-")
    return []
