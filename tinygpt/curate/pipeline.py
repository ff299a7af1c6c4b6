"""Runs the stages of a curation over shards, so that it can be stopped at any instant and started again.

    stages = [Reading(tuple(open_sources(specs))), Steps((language, rules, redaction)), ...]
    reports = run_stages(stages, Path("curated"), Executor("local", workers=2))

Each stage reads the shards of the one before and writes its own. A stage is done in phases, a phase in tasks, which share no memory and may
run on any machine that sees the folder. What has finished is marked on the disk (folder/work), and is not done again; what was written
half is written again, with the same bytes. A stage's shards are deleted once the next one is complete: on the disk are two copies at most.
"""

import contextlib
import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol

from tinygpt.curate.documents import Document, Step, read_shard, write_shard
from tinygpt.curate.executors import Executor, Function, Run
from tinygpt.curate.report import StepReport, n_bytes
from tinygpt.curate.rules import PROFILES, Limits
from tinygpt.errors import InvalidInput, MissingPackage, PathExists, WriteFailed
from tinygpt.storage.checked_json import Json, read_json, to_json
from tinygpt.storage.durable import Lock, remove_directory, remove_partial, replace_file

SHARD_BYTES = 16 << 20  # of text in a shard: what a task works on
FILTERS = ("language", "rules", "classifier")  # steps of which one expects that they remove something
MANY, SOME = 1000, 100  # documents, of which a filter should have removed at least one; of which one rule should not remove half


class Stage(Protocol):
    """What is done with the shards of the stage before."""

    @property
    def name(self) -> str: ...

    def settings(self) -> dict[str, Json]:
        """All that decides what it does, as JSON values."""
        ...

    def run(self, inputs: Sequence[Path], work: Path, run: Run) -> Sequence[StepReport]:
        """Writes shards to work/shards; what is needed between phases is kept elsewhere in `work`. A phase is a call of run(function, n_tasks,
        name). What its tasks write they may write again, the same, after they were stopped."""
        ...


@dataclass(frozen=True)
class Steps:
    """Steps that look at one document at a time, in one pass over each shard."""

    steps: tuple[Step, ...]
    name: str = "steps"

    def settings(self) -> dict[str, Json]:
        return {step.name: step.settings() for step in self.steps}

    def run(self, inputs: Sequence[Path], work: Path, run: Run) -> Sequence[StepReport]:
        return merged(run(partial(apply_steps, self.steps, tuple(inputs), work / "shards"), len(inputs), "apply"))


def apply_steps(steps: Sequence[Step], inputs: Sequence[Path], output: Path, task: int, n_tasks: int) -> list[StepReport]:
    """Puts the documents of shard number `task` through all steps; each sees what the one before has left."""
    assert n_tasks == len(inputs)
    reports = [StepReport(step.name, step.settings()) for step in steps]

    def kept() -> Iterator[Document]:
        for document in read_shard(inputs[task]):
            now: Document | None = document
            for step, report in zip(steps, reports, strict=True):
                if now is None:
                    break
                outcome = step(now)
                report.add(now, outcome)
                now = outcome.document
            if now is not None:
                yield now

    write_shard(output / inputs[task].name, kept())
    return reports


def write_shards(folder: Path, prefix: str, documents: Iterable[Document], shard_bytes: int = SHARD_BYTES) -> int:
    """Writes documents as shards prefix-00000.jsonl.gz, ... of at least shard_bytes of text each, the last one excepted; their number."""
    left = iter(documents)

    def some(first: Document) -> Iterator[Document]:
        yield first
        size = n_bytes(first.text)
        while size < shard_bytes and (document := next(left, None)) is not None:
            yield document
            size += n_bytes(document.text)

    number = 0
    while (first := next(left, None)) is not None:
        write_shard(folder / f"{prefix}-{number:05d}.jsonl.gz", some(first))
        number += 1
    return number


def run_stages(
    stages: Sequence[Stage],
    folder: Path,
    how: Executor,
    *,
    note: Callable[[str], None] = print,
    done: Callable[[Sequence[StepReport]], None] = lambda reports: None,
    keep: bool = False,
) -> list[StepReport]:
    """Does what is not done yet, and returns what each step did. note: gets a line as a phase begins; done: the reports of a stage that ended;
    keep: the shards of all stages stay.

    The caller holds the folder's lock and has compared its settings. Raises ValueError, naming the step, if one removed every document;
    OSError, saying that nothing is lost, for a full disk; what a task raised.
    """
    try:
        from tinygpt.curate.engine import run_tasks, workers
    except ImportError as error:
        raise MissingPackage(f'curate: {error.name} is missing, expected datatrove; pip install "tinygpt[curate]"') from error
    found: list[StepReport] = []
    inputs: list[Path] = []
    before: Path | None = None
    with full_disk(folder), workers():
        for number, stage in enumerate(stages):
            work = folder / "work" / f"{number:02d}-{stage.name}"
            complete = work / "report.json"

            def run(function: Function, n_tasks: int, name: str, stage: Stage = stage, work: Path = work) -> Iterator[list[StepReport]]:
                note(f"{stage.name}: {name}, {n_tasks} task{'s' if n_tasks > 1 else ''}")
                return run_tasks(function, n_tasks, work / "phases" / name, how)

            if not complete.is_file():
                (work / "shards").mkdir(parents=True, exist_ok=True)
                remove_partial(work / "shards")
                reports = stage.run(inputs, work, run)
                for report in reports:
                    check_removed_all(report)
                    if report.name in FILTERS:
                        warn_removed_none(report)
                        warn_of_rules(report)
                replace_file(complete, to_json([report.to_json() for report in reports]))
            if not keep:
                _clean(work, {"shards"})
                _clean(before, set()) if before is not None else None
            reports = [StepReport.from_json(values) for values in read_json(complete)]
            done(reports)
            found += reports
            before, inputs = work, sorted((work / "shards").glob("*.jsonl.*"))
    return found


def _clean(work: Path, kept: set[str]) -> None:
    """Deletes what a stage that is complete has in its folder, but for its report and what is named."""
    remove_partial(work)
    for entry in work.iterdir():
        if entry.is_dir() and entry.name not in kept:
            remove_directory(entry)


def merged(reports: Iterable[Iterable[StepReport]]) -> list[StepReport]:
    """The reports of tasks as one for each step, in the order of steps."""
    found: dict[str, StepReport] = {}
    for report in chain.from_iterable(reports):
        found[report.name] = found[report.name].merge(report) if report.name in found else report
    return list(found.values())


def check_removed_all(report: StepReport) -> None:
    """Raises ValueError, naming the step and the rule that removed most, if documents came in and none is left."""
    total = report.total
    if total.documents_in and not total.documents_out:
        rules = sorted(report.rules.items(), key=lambda item: -item[1].documents)
        most = f", {rules[0][1].documents} of them by {rules[0][0]}" if rules else ""
        rule = "expected some to remain"
        raise InvalidInput(
            f"{report.name}: removed all {total.documents_in} documents{most}, {rule}; change its limits or leave it out, into another --output"
        )


def warn_removed_none(report: StepReport) -> None:
    """Adds a warning to the report of a filter that kept all of many documents."""
    total = report.total
    if total.documents_in >= MANY and total.documents_out == total.documents_in:
        report.warnings.append(f"{report.name}: kept all {total.documents_in:,} documents; does it look at the right thing?")


def warn_of_rules(report: StepReport) -> None:
    """Adds warnings that name a rule: one that removed half of some documents, or more; one with a limit of its user, by which nothing went."""
    n = report.total.documents_in
    for name, rule in sorted(report.rules.items()) if n >= SOME else ():
        if 2 * rule.documents >= n:
            does_it = "does it fit this text?"
            report.warnings.append(f"{report.name}: {name} alone removed {rule.documents:,} of {n:,} documents; {does_it}")
    profile = PROFILES.get(str(report.settings.get("profile")), Limits()).in_effect()
    for name in report.idle if n >= MANY and report.total.documents_out < n else ():
        if report.settings[name] != profile.get(name):
            flag = f"--{name.replace('_', '-')}" + f" {report.settings[name]:g}" * (not name.startswith("drop"))
            report.warnings.append(f"{report.name}: {flag} removed nothing from {n:,} documents; is it the limit that was meant?")


@contextlib.contextmanager
def full_disk(folder: Path) -> Iterator[None]:
    """Within this block an error because of a full disk says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
            free = shutil.disk_usage(folder).free
            rule = "expected space for two compressed copies of the text; make space and run the same command again, nothing that was finished is lost"
            raise WriteFailed(f"{folder}: {error.strerror}, {free:,} bytes are free, {rule}") from error
        raise


# ---- the folder --------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(folder: Path, settings: dict[str, Json], versions: dict[str, str]) -> Iterator[None]:
    """Holds the lock of an output folder within this block, after it has been made, or found to be of the same settings and versions.

    Raises BlockingIOError if another process holds it; ValueError, naming a setting or a library and both its values, if it was made with
    others; FileExistsError if it holds something else, or is a file.
    """
    now = {**settings, "versions": versions}
    if folder.exists() and not folder.is_dir():
        raise PathExists(f"{folder}: a file, expected a folder; choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "curation.json"
    if not path.is_file() and (
        others := [entry.name for entry in folder.iterdir() if entry.name != "lock" and not entry.name.startswith(".")]
    ):
        raise PathExists(
            f"{folder}: holds {others[0]} and no curation, expected an empty folder or one of this command; choose another --output"
        )
    with Lock(folder, "--output"):
        if path.is_file():
            began = read_json(path)
            check_settings(folder, {**began["settings"], "versions": began["versions"]}, now)
        else:
            with full_disk(folder):
                replace_file(path, to_json({"settings": settings, "fingerprint": fingerprint(now), "versions": versions}))
        yield


def fingerprint(settings: Json) -> str:
    """sha256, in hex, of settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def check_settings(folder: Path, stored: Json, now: Json) -> None:
    """Raises ValueError, naming the first setting that differs and both values."""
    old, new = dict(_flat(stored)), dict(_flat(json.loads(json.dumps(now))))
    for name in [*new, *old]:
        if old.get(name, _ABSENT) != new.get(name, _ABSENT):
            values = " and ".join(f"{values.get(name, _ABSENT)!r:.200} {when}" for values, when in ((old, "in the folder"), (new, "now")))
            fix = "give it the old value, choose another --output, or delete the folder to start again"
            rule = "expected the settings, files and versions that the folder was begun with"
            raise InvalidInput(f"{folder}: {name} is {values}, {rule}; {fix}")


class _Absent:
    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent()


def _flat(value: Json, name: str = "") -> Iterator[tuple[str, Json]]:
    """(a.b.c, value) for each value in nested objects; an empty object is a value."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
