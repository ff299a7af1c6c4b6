"""From a heap of files to a corpus to train on: what each step removed, why, and examples of it.

    python -m tinygpt curate                                       the default example: texts that come with the installed packages
    python -m tinygpt curate books/ wiki=dump.xml.bz2 --output my  own sources, by path or NAME=PATH
    python -m tinygpt curate books/ --profile prose --min-words 20 --language de --against arc.jsonl
    python -m tinygpt curate --sources sources.toml --near minhash --executor slurm --slurm-partition cpu

Leaves DIR/train and DIR/validation (compressed JSON lines), manifest.json, report.html and report.json. A run that was stopped, however, is
started again with the same command, and does what is missing. Steps: docs/curation.md.
"""

import json
import platform
import shutil
import sysconfig
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tinygpt.arguments import parse_args
from tinygpt.curate.copies import Best, Repeated
from tinygpt.curate.executors import Executor
from tinygpt.curate.mixing import Mixing, source_rows
from tinygpt.curate.near import Near
from tinygpt.curate.pipeline import Stage, Steps, fingerprint, full_disk, opened, run_stages, warn_removed_none
from tinygpt.curate.privacy import KINDS, Redact
from tinygpt.curate.report import Report, StepReport
from tinygpt.curate.rules import Limits, Profile, Rules
from tinygpt.curate.sources import Policy, Source, SourceSpec, open_sources, parse_spec, read_specs
from tinygpt.curate.stages import ExactCopies, NearCopies, Reading, RepeatedText
from tinygpt.data.curated import Manifest
from tinygpt.errors import InvalidInput
from tinygpt.fields import PathName, check_fields
from tinygpt.storage.checked_json import Json, to_json
from tinygpt.storage.durable import replace_file


@dataclass(frozen=True)
class CurateConfig:
    input: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Sources: PATH or NAME=PATH, then ,weight=.. ,license=.. ,kind=.. ,text=.. ,id=.. ,pattern=..; default: what the installation brings."""
    sources: PathName = ""
    """A TOML file with a table for each source, instead of INPUT."""
    output: PathName = "curated"
    """The folder of the corpus and its report."""
    bad_input: Policy = "stop"
    """At a damaged file or a wrong line: stop, or skip it and count it."""
    repair: bool = True
    """Repair texts that were decoded wrongly (ftfy)."""
    language: str = "en"
    """Keep texts in this language; empty: in all."""
    profile: Profile | Literal["none", ""] = ""
    """A set of rules; none: no rules; default: prose, for the default example docs."""
    rules: Limits = field(default_factory=Limits)
    redact: tuple[str, ...] = KINDS
    """Which personal data are replaced by marks; nothing after the flag: none."""
    redact_key: PathName = ""
    """A file with a secret: one value has one mark wherever it occurs."""
    exact: bool = True
    """Remove documents that equal another."""
    lines: int = 6
    """Remove a line that more documents hold; 0: lines stay."""
    paragraphs: int = 1
    """Keep a paragraph in so many documents; 0: paragraphs stay."""
    near: Literal["auto", "exact", "minhash", "none"] = "auto"
    """How near copies are found: by an exact index, by MinHash, or by whichever the memory allows."""
    similarity: float = 0.6
    """Jaccard similarity of five-word shingles from which on a document is a near copy."""
    against: tuple[PathName, ...] = ()
    """Evaluation files, whose items must not be in the training text."""
    temperature: float = 1.0
    """Without weights: sources in proportion to size^(1 / temperature)."""
    total_mb: float = 0.0
    """Size of the training text; 0: as much as there is."""
    validation_fraction: float = 0.1
    """Share of the text to validate on."""
    seed: int = 0
    """Decides the split and the order."""
    keep_work: bool = False
    """Keep the shards of every stage."""
    workers: Executor = field(default_factory=Executor)

    def __post_init__(self) -> None:
        check_fields(self, {0: "lines paragraphs total_mb seed"})
        if self.input and self.sources:
            raise InvalidInput(f"INPUT {self.input[0]!r} and --sources {self.sources}, expected one of them; write all sources into the file")


def main(argv: list[str] | None = None) -> None:
    """The command `curate`."""
    config = parse_args(CurateConfig(), __doc__, argv, prog="python -m tinygpt curate")
    sources = open_sources(read_specs(config.sources) if config.sources else [parse_spec(given) for given in config.input] or installed_texts())
    for source in sources:
        left_out = source.left_out.removeprefix("; ")
        print(f"source   {source.name}: {len(source.units):,} files, {_mb(source.n_bytes)}, license {source.license()}" + f"; {left_out}" * bool(left_out))
    folder = Path(config.output)
    stages = all_stages(config, sources)
    settings = {stage.name: stage.settings() for stage in stages}
    with opened(folder, settings, versions()):
        if not (folder / "report.json").is_file():
            reports = run_stages(stages, folder, config.where, note=_note, done=_done, keep=config.keep_work)
            with full_disk(folder):
                write_report(folder, reports, settings)
            if not config.keep_work:
                shutil.rmtree(folder / "work", ignore_errors=True)
        print("\n" + table(Report.read(folder)))
    print(f"\ncorpus   {folder}\nreport   {folder / 'report.html'}\nnext: python examples/pretrain.py --corpus {folder}")


def installed_texts() -> list[SourceSpec]:
    """The default example: text that comes with NumPy, with Python and with every installed package, and so with copies, addresses and markup."""
    site = sysconfig.get_path("purelib")
    return [
        SourceSpec("docs", "docs"),
        SourceSpec("readmes", site, pattern="*.dist-info/METADATA", license="that of each package"),
        SourceSpec("licenses", site, pattern="LICENSE*", license="that of each package"),
    ]


def all_stages(config: CurateConfig, sources: Sequence[Source]) -> list[Stage]:
    """What the settings ask for, in the order in which it runs."""
    profile = config.profile or ("prose" if config.input or config.sources else "docs")
    steps = []
    if config.repair:
        steps.append(Repair())
    if config.language:
        steps.append(Language(config.language))
    if profile != "none":
        steps.append(Rules(profile, config.rules))
    if config.redact:
        steps.append(Redact(config.redact, config.redact_key))
    best = Best(("source", "longest"), tuple(source.name for source in sources))
    stages: list[Stage] = [Reading(tuple(sources), config.bad_input)]
    if steps:
        stages.append(Steps(tuple(steps)))
    if config.exact:
        stages.append(ExactCopies(best))
    if config.lines or config.paragraphs:
        stages.append(RepeatedText(Repeated(config.lines, config.paragraphs)))
    if config.near != "none":
        stages.append(NearCopies(Near(config.similarity, min(0.3, config.similarity), method=config.near), best, say=_note))
    if config.against:
        stages.append(Decontamination(Decontaminate(config.against)))
    settings = {stage.name: stage.settings() for stage in stages}
    licenses = {source.name: source.license() for source in sources}
    weights = {source.name: source.spec.weight for source in sources if source.spec.weight is not None}
    mixing = Mixing(Path(config.output), licenses, weights, config.temperature, int(config.total_mb * 1e6), config.validation_fraction, config.seed, fingerprint(settings))
    return [*stages, mixing]
