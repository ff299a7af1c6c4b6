"""What each step of a curation did: counted per task, merged exactly, and shown as one page.

    report = StepReport("rules")
    report.add(document, outcome)          # for every document that a step or stage was given
    report.merge(other)                    # of another task: the sum is the same in any order
    report.to_json(); StepReport.from_json(...)

    Report(title, steps=[...], sources=[...], ...).to_json()

Everything that is kept of a document is an excerpt in which personal data is replaced by marks (`tinygpt.curate.privacy`), whatever the steps
of the curation are. Examples are those documents whose id has the smallest hash: a random choice that depends on nothing else.
"""

import hashlib
import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Self

from tinygpt.curate.documents import Document, Outcome
from tinygpt.curate.privacy import find, redact
from tinygpt.curate.rules.limits import RULES
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json

MOST_EXAMPLES = 5
MOST_CLUSTERS = 20
EXCERPT = 300  # characters
_MARGIN = 20_000  # characters on either side in which personal data is looked for: as long as `privacy` lets a key be
LINEAR_BINS, _PER_DECADE = 100, 16  # bins of 0.01 from -1 to 1, beyond that 16 for each factor of 10


def order_of(name: str) -> str:
    """16 hexadecimal digits of a name's hash: to order by them is to shuffle, always the same way."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def n_bytes(text: str) -> int:
    """Size in UTF-8. A half of a surrogate pair, which UTF-8 lacks, counts 3."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def bin_of(number: float) -> int:
    """The bin of a number: the same for every rule and task, so that sums of histograms are exact.

    Within -1..1 bins are 0.01 wide, beyond that there are 16 for each factor of 10. Bin b >= 0 holds edge(b) <= number < edge(b + 1), up to
    rounding in the ninth digit.
    """
    if abs(number) < 1:
        return math.floor(round(number * LINEAR_BINS, 9))
    beyond = math.floor(round(math.log10(abs(number)) * _PER_DECADE, 9))
    return LINEAR_BINS + beyond if number > 0 else -LINEAR_BINS - 1 - beyond


def edge(number: int) -> float:
    """The lower end of a bin."""
    if abs(number) <= LINEAR_BINS:
        return number / LINEAR_BINS
    size = 10 ** ((abs(number) - LINEAR_BINS) / _PER_DECADE)
    return size if number > 0 else -size


@dataclass(frozen=True)
class Listed(Outcome):
    """An outcome with single findings, each of which the report lists: flat objects of texts and numbers, {"item": "trivia 12", "words": ...}."""

    notes: tuple[Mapping[str, Json], ...] = ()


@dataclass
class Flow:
    """Documents and bytes of text (UTF-8) that came in and went out."""

    documents_in: int = 0
    bytes_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0

    def add(self, other: "Flow") -> None:
        self.documents_in += other.documents_in
        self.bytes_in += other.bytes_in
        self.documents_out += other.documents_out
        self.bytes_out += other.bytes_out


@dataclass(frozen=True, order=True)
class Example:
    """A document that shows what a rule does; `order` is the hash of its id. number: what decided; None where it is not finite."""

    order: str
    id: str
    excerpt: str
    number: float | None = None
    limit: float | None = None


def _few(examples: list[Example], new: Example) -> None:
    """Puts an example among the few with the smallest order, each document once."""
    at = bisect_left(examples, new.order, key=lambda example: example.order)
    if at < MOST_EXAMPLES and not (at < len(examples) and examples[at].order == new.order):
        examples.insert(at, new)
        del examples[MOST_EXAMPLES:]


def _wanted(examples: list[Example], order: str) -> bool:
    return len(examples) < MOST_EXAMPLES or order < examples[-1].order


def _count(total: dict[int, int], more: Mapping[int, int]) -> None:
    for number, n in more.items():
        total[number] = total.get(number, 0) + n


@dataclass
class RuleReport:
    """A rule of a step: what it removed, and the numbers that it measured, as {bin: documents}, see `bin_of`."""

    documents: int = 0
    bytes: int = 0
    limits: list[float] = field(default_factory=list)  # lowest and highest: one and the same, unless the limit depends on the document
    removed: dict[int, int] = field(default_factory=dict)
    kept: dict[int, int] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)

    def measure(self, outcome: Outcome) -> None:
        if math.isfinite(outcome.limit):
            self.limits = [min([outcome.limit, *self.limits]), max([outcome.limit, *self.limits])]
        if math.isfinite(outcome.number):
            _count(self.removed if outcome.document is None else self.kept, {bin_of(outcome.number): 1})

    def merge(self, other: "RuleReport") -> None:
        self.documents += other.documents
        self.bytes += other.bytes
        if both := self.limits + other.limits:
            self.limits = [min(both), max(both)]
        _count(self.removed, other.removed)
        _count(self.kept, other.kept)
        for example in other.examples:
            _few(self.examples, example)


@dataclass
class KindReport:
    """Something that a step did to documents, or found in them: how often, in how many, with examples of those that it changed."""

    count: int = 0
    documents: int = 0
    examples: list[Example] = field(default_factory=list)

    def merge(self, other: "KindReport") -> None:
        self.count += other.count
        self.documents += other.documents
        for example in other.examples:
            _few(self.examples, example)


@dataclass(frozen=True)
class Cluster:
    """Copies of one text: the one that is kept, and where some of the others were (at most 20, by id); size counts all, the kept one too."""

    size: int
    kept: str
    excerpt: str
    others: list[str]

    @property
    def order(self) -> tuple[int, str, str]:
        return -self.size, order_of(self.kept), self.kept


@dataclass
class StepReport:
    """What one step did. All of it adds up: the sum of the reports of tasks is the report of one task that did everything.

    flows      per source
    rules      by name, those that removed something or measured it
    kinds      by name of what was done (`Outcome.counts`)
    notes      single findings, of `Listed` outcomes
    warnings   sentences for the top of the page, each once
    clusters   the largest groups of copies; cluster_sizes {size: groups} counts all
    """

    name: str
    settings: dict[str, Json] = field(default_factory=dict)
    flows: dict[str, Flow] = field(default_factory=dict)
    changed: int = 0
    rules: dict[str, RuleReport] = field(default_factory=dict)
    kinds: dict[str, KindReport] = field(default_factory=dict)
    notes: list[dict[str, Json]] = field(default_factory=list)
    clusters: list[Cluster] = field(default_factory=list)
    cluster_sizes: dict[int, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def total(self) -> Flow:
        total = Flow()
        for flow in self.flows.values():
            total.add(flow)
        return total

    @property
    def idle(self) -> list[str]:
        """The rules among its settings by which no document and no line was removed."""
        acted = {name for name, rule in self.rules.items() if rule.documents} | self.kinds.keys()
        return [name for name in RULES if name in self.settings and name not in acted]

    def add(self, document: Document, outcome: Outcome) -> None:
        """Counts one document that came in, and what became of it.

        A rule that removed it is counted with its number. An outcome with a document and a rule says that the rule measured this number and let
        the document pass: it is in the histogram alone.
        """
        kept, size = outcome.document, n_bytes(document.text)
        changed = kept is not None and kept.text != document.text
        flow = self.flows.setdefault(document.source, Flow())
        flow.documents_in += 1
        flow.bytes_in += size
        if kept is not None:
            flow.documents_out += 1
            flow.bytes_out += n_bytes(kept.text) if changed else size
            self.changed += changed
        if outcome.rule:
            rule = self.rules.setdefault(outcome.rule, RuleReport())
            rule.measure(outcome)
            if kept is None:
                rule.documents += 1
                rule.bytes += size
                if _wanted(rule.examples, order := order_of(document.id)):
                    numbers = (x if math.isfinite(x) else None for x in (outcome.number, outcome.limit))
                    _few(rule.examples, Example(order, document.id, excerpt(document.text), *numbers))
        for name, count in outcome.counts.items():
            kind = self.kinds.setdefault(name, KindReport())
            kind.count += count
            kind.documents += 1
            if kept is not None and changed and _wanted(kind.examples, order := order_of(document.id)):
                _few(kind.examples, Example(order, document.id, excerpt(kept.text, _changed_at(document.text, kept.text, name))))
        if isinstance(outcome, Listed):
            self.notes += map(dict, outcome.notes)

    def add_cluster(self, kept: Document, others: list[str], *, n_others: int | None = None) -> None:
        """Counts a group of copies, of which `kept` remains. others: ids, with what should be said of them; all, or n_others says how many."""
        size = 1 + (len(others) if n_others is None else n_others)
        _count(self.cluster_sizes, {size: 1})
        new = Cluster(size, kept.id, "", sorted(others)[:20])
        if len(self.clusters) < MOST_CLUSTERS or new.order < self.clusters[-1].order:  # an excerpt takes time
            new = replace(new, excerpt=excerpt(kept.text))
            self.clusters = sorted([*self.clusters, new], key=lambda c: c.order)[:MOST_CLUSTERS]

    def merge(self, other: "StepReport") -> Self:
        """Adds what another task did. Raises ValueError if its step or its settings are others."""
        if (self.name, self.settings) != (other.name, other.settings):
            found = f"{other.name!r} with {other.settings}"
            raise InvalidInput(f"report: {found}, expected {self.name!r} with {self.settings}; merge reports of one step only")
        for source, flow in other.flows.items():
            self.flows.setdefault(source, Flow()).add(flow)
        self.changed += other.changed
        for name, rule in other.rules.items():
            self.rules.setdefault(name, RuleReport()).merge(rule)
        for name, kind in other.kinds.items():
            self.kinds.setdefault(name, KindReport()).merge(kind)
        self.notes = self.notes + other.notes
        self.clusters = sorted(self.clusters + other.clusters, key=lambda c: c.order)[:MOST_CLUSTERS]
        _count(self.cluster_sizes, other.cluster_sizes)
        self.warnings += [warning for warning in other.warnings if warning not in self.warnings]
        return self

    def to_json(self) -> dict[str, Json]:
        """Plain values, the same for equal reports: names, notes and warnings in order."""
        values = asdict(self)
        for name in ("flows", "rules", "kinds", "cluster_sizes"):
            values[name] = dict(sorted(values[name].items()))
        for rule in values["rules"].values():
            rule |= {name: {str(number): n for number, n in sorted(rule[name].items())} for name in ("removed", "kept")}
        values["cluster_sizes"] = {str(size): n for size, n in values["cluster_sizes"].items()}
        values["notes"] = sorted(values["notes"], key=lambda note: sorted((k, str(v)) for k, v in note.items()))
        values["warnings"] = sorted(values["warnings"])
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Json]) -> "StepReport":
        """What `to_json` wrote. Raises ValueError for anything else."""
        try:
            rules, kinds = {}, {}
            for name, rule in values["rules"].items():
                counts = {side: {int(number): n for number, n in rule[side].items()} for side in ("removed", "kept")}
                rules[name] = RuleReport(**rule | counts | {"examples": [Example(**example) for example in rule["examples"]]})
            for name, kind in values["kinds"].items():
                kinds[name] = KindReport(**kind | {"examples": [Example(**example) for example in kind["examples"]]})
            return cls(
                **{
                    **values,
                    "flows": {source: Flow(**flow) for source, flow in values["flows"].items()},
                    "rules": rules,
                    "kinds": kinds,
                    "clusters": [Cluster(**cluster) for cluster in values["clusters"]],
                    "cluster_sizes": {int(size): n for size, n in values["cluster_sizes"].items()},
                }
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise InvalidInput(
                f"report of a step: {error!r}, expected what StepReport.to_json writes; delete the folder and run again"
            ) from None


@dataclass(frozen=True)
class Curve:
    """How well a score tells documents to keep from documents to remove, on held-out ones: the points of its ROC curve, both ends included.

    removed    shares of the bad documents that are removed, "true positives"
    lost       shares of the good ones that are removed with them, "false positives"
    chosen     the point of the threshold in use: (lost, removed)
    """

    name: str
    auc: float
    removed: tuple[float, ...]
    lost: tuple[float, ...]
    chosen: tuple[float, float] | None = None


@dataclass(frozen=True)
class SourceRow:
    """A source in the final mixture: documents and bytes that are drawn, its share of them (weight, 0 to 1), how often each of its documents is
    read for that (epochs), and documents and bytes to validate on."""

    name: str
    license: str = ""
    documents: int = 0
    bytes: int = 0
    weight: float | None = None
    epochs: float | None = None
    validation: int = 0
    validation_bytes: int = 0


@dataclass
class Report:
    """All of a curation.

    steps      in the order in which they ran
    sources    what is in the output, per source
    settings   what was asked for; versions {"tinygpt": ..., "datatrove": ...}
    warnings   sentences for the top; those of the steps come in addition
    """

    title: str
    steps: list[StepReport]
    sources: list[SourceRow] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    settings: dict[str, Json] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Json]:
        """Plain values. Personal data in ids, and names of users in all paths, are replaced by marks: a report is made to be shown."""
        values = asdict(self) | {"steps": [step.to_json() for step in self.steps]}
        for each in (values, *values["steps"]):
            each |= {name: _without_users(each[name]) for name in ("settings", "warnings", "notes") if name in each}
        for step in values["steps"]:
            for found in (*step["rules"].values(), *step["kinds"].values()):
                for example in found["examples"]:
                    example["id"] = redact(example["id"]).text
            for cluster in step["clusters"]:
                cluster["kept"], cluster["others"] = redact(cluster["kept"]).text, [redact(other).text for other in cluster["others"]]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Json]) -> "Report":
        """What `to_json` wrote. Raises ValueError for anything else."""
        try:
            curves = []
            for curve in values["curves"]:
                points: dict[str, Json] = {name: tuple(value) if isinstance(value, list) else value for name, value in curve.items()}
                curves.append(Curve(**points))
            steps = [StepReport.from_json(step) for step in values["steps"]]
            return cls(**{**values, "steps": steps, "curves": curves, "sources": [SourceRow(**row) for row in values["sources"]]})
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidInput(f"report: {error!r}, expected what Report.to_json writes; delete the folder and run again") from None


def _without_users(value: Json) -> Json:
    if isinstance(value, str):
        return redact(value, ("user",)).text
    if isinstance(value, dict):
        return {name: _without_users(each) for name, each in value.items()}
    return [_without_users(each) for each in value] if isinstance(value, (list, tuple)) else value


def _changed_at(old: str, new: str, kind: str) -> int:
    """Where to look in a changed text: at the mark of this kind, else at the first difference."""
    at = new.find(f"<{kind.upper()}")
    return at if at >= 0 else next((i for i, (one, two) in enumerate(zip(old, new, strict=False)) if one != two), min(len(old), len(new)))


def excerpt(text: str, at: int = 0) -> str:
    """About 300 characters of a text around a position, white space as single blanks, personal data as marks."""
    start = max(0, at - EXCERPT // 3)
    end, first = start + EXCERPT, max(0, start - _MARGIN)
    parts = []
    here = start
    for found in find(text[first : end + _MARGIN]):
        a, b = first + found.start, first + found.end
        if b > here and a < end:  # one that begins or ends outside is not shown in part
            parts += [text[here:a], f"<{found.kind.upper()}>"]
            here = b
    shown = " ".join("".join([*parts, text[here : max(here, end)]]).split())
    return "… " * (start > 0) + shown + " …" * (end < len(text))
