"""The stages of a curation, in the order in which they run: reading, steps on single documents, copies, and the output."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tinygpt.curate.documents import Document, Outcome
from tinygpt.curate.executors import Run
from tinygpt.curate.pipeline import SHARD_BYTES, merged, write_shards
from tinygpt.curate.report import KindReport, StepReport
from tinygpt.curate.sources import BadInput, Policy, Source
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json

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
    report.kinds |= {kind: KindReport(count, count) for kind, count in {**bad.counts, "empty": bad.empty}.items() if count}
    report.notes += [{"left out": kind, "problem": message} for kind, messages in bad.examples.items() for message in messages]
    return [report]
