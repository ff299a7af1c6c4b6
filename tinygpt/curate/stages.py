"""The stages of a curation, in the order in which they run: reading, steps on single documents, copies, and the output."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from tinygpt.curate.copies import Best, Folders, Repeated, remove_exact_copies, remove_repeated
from tinygpt.curate.documents import Document, Outcome
from tinygpt.curate.executors import Run
from tinygpt.curate.near import Near, choose_method, remove_near_copies
from tinygpt.curate.pipeline import SHARD_BYTES, merged, write_shards
from tinygpt.curate.report import KindReport, StepReport
from tinygpt.curate.sources import BadInput, Policy, Source
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json, read_json, to_json
from tinygpt.storage.durable import replace_file

READ_BYTES = 64 << 20  # of files that one task reads


@dataclass(frozen=True)
class Reading:
    """The documents of sources, in shards of about equal size: all later work is divided by them."""

    sources: tuple[Source, ...]
    bad_input: Policy = "stop"
    shard_bytes: int = SHARD_BYTES
    name: str = "read"

    def settings(self) -> dict[str, Json]:
        found = {source.name: source.describe() for source in self.sources}
        return {"sources": found, "bad_input": self.bad_input, "shard_bytes": self.shard_bytes}

    def run(self, inputs: Sequence[Path], work: Path, run: Run) -> Sequence[StepReport]:
        parts = [(source, part, n) for source in self.sources for n in [1 + source.n_bytes // READ_BYTES] for part in range(n)]
        (report,) = merged(run(partial(_read, self, tuple(parts), work / "shards"), len(parts), "read"))
        if not report.total.documents_in:
            raise InvalidInput(f"sources {', '.join(source.name for source in self.sources)}: no text, expected some; check what they name")
        return [report]


def _read(reading: Reading, parts: Sequence[tuple[Source, int, int]], output: Path, task: int, n_tasks: int) -> list[StepReport]:
    source, part, n = parts[task]
    report, bad = StepReport("read"), BadInput(reading.bad_input)

    def documents() -> Iterator[Document]:
        for document in source.read(part, n, bad):
            report.add(document, Outcome(document))
            yield document

    write_shards(output, f"{task:05d}", documents(), reading.shard_bytes)
    report.kinds |= {kind: KindReport(count, 0) for kind, count in {**bad.counts, "empty": bad.empty}.items() if count}
    report.notes += [{"left out": kind, "problem": message} for kind, messages in bad.examples.items() for message in messages]
    return [report]


@dataclass(frozen=True)
class ExactCopies:
    """Of equal documents the best one stays."""

    best: Best = field(default_factory=Best)
    name: str = "exact-copies"

    def settings(self) -> dict[str, Json]:
        return asdict(self.best)

    def run(self, inputs: Sequence[Path], work: Path, run: Run) -> Sequence[StepReport]:
        return [remove_exact_copies(_folders(inputs, work), run, self.best)]


@dataclass(frozen=True)
class RepeatedText:
    """Lines and paragraphs that many documents share go."""

    repeated: Repeated = field(default_factory=Repeated)
    name: str = "repeated-text"

    def settings(self) -> dict[str, Json]:
        return asdict(self.repeated)

    def run(self, inputs: Sequence[Path], work: Path, run: Run) -> Sequence[StepReport]:
        return [remove_repeated(_folders(inputs, work), run, self.repeated)]


@dataclass(frozen=True)
class NearCopies:
    """Of documents that are nearly equal the best one stays."""

    near: Near = field(default_factory=Near)
    best: Best = field(default_factory=Best)
    name: str = "near-copies"
    say: Callable[[str], None] = print

    def settings(self) -> dict[str, Json]:
        return {**asdict(self.near), "best": asdict(self.best)}

    def run(self, inputs: Sequence[Path], work: Path, run: Run) -> Sequence[StepReport]:
        # "auto" goes by the memory that is free now, which another time is not the same: what was chosen first stays.
        folders, kept = _folders(inputs, work), work / "method.json"
        if not kept.is_file():
            replace_file(kept, to_json(choose_method(folders.shards, self.near)[0]))
        return [remove_near_copies(folders, run, replace(self.near, method=read_json(kept)), self.best, say=self.say)]


def _folders(inputs: Sequence[Path], work: Path) -> Folders:
    return Folders(tuple(inputs), work / "shards", work / "tables")
