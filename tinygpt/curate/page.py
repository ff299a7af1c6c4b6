"""The report of a curation as one HTML page: no script, nothing loaded from elsewhere; it opens from a folder, prints, and fits a phone.

    write_page("curated/report.html", report)

All texts come from documents that anybody may have written, so each goes through `text`; the page forbids scripts and requests besides.
"""

import html
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tinygpt.curate.histogram import histogram
from tinygpt.curate.report import Cluster, Curve, Example, KindReport, Report, RuleReport, SourceRow, StepReport
from tinygpt.storage.checked_json import Json
from tinygpt.storage.durable import replace_file

_SIGN = ("+", "\u2212")  # more came out, or less
MOST_ROWS = 200  # of a list of findings; report.json has all of them
_ABOUT = {
    "read": "Documents as the sources hold them.",
    "repair": "Text that was decoded with the wrong character set is repaired.",
    "language": "Documents in other languages are removed; by kind: how many documents are in which.",
    "rules": "Documents that break a rule of the profile are removed; the first rule that is broken counts.",
    "classifier": "Documents that are more like the bad examples than like the good ones are removed.",
    "privacy": "Personal data and secrets are replaced by marks. Names of people are not covered.",
    "exact copies": "Of documents that are equal, one stays.",
    "lines and paragraphs": "Lines and paragraphs that many documents share are removed.",
    "near copies": "Of documents that share most of their word runs, one stays.",
    "contamination": "What the evaluation files hold, too, is cut out, with 200 characters on either side.",
    "mix": "Documents are put in the order of training and divided into training and validation text.",
}


def write_page(path: str | Path, report: Report) -> None:
    """Writes the page: the old file or the new one is there, never a part."""
    replace_file(Path(path), render(report))


def render(report: Report) -> str:
    """The page as HTML."""
    report = Report.from_json(report.to_json())  # as report.json has it: sorted, and without names of users
    warnings = [*report.warnings, *(warning for step in report.steps for warning in step.warnings)]
    blocks = [
        _head(report),
        _warnings(list(dict.fromkeys(warnings))),
        _contents(report),
        _flow(report.steps),
        _sources(report.sources, report.steps),
        *(_step(step, f"step-{number}") for number, step in enumerate(report.steps, start=1)),
        _curves(report.curves),
        _settings(report),
    ]
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    return template.replace("<!-- title -->", text(report.title)).replace("<!-- body -->", "\n".join(block for block in blocks if block))


# Texts and numbers ---------------------------------------------------------------------------------------------------------------

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def text(value: object) -> str:
    """A value as HTML: no tags, no quotes, no signs that would turn the direction of what follows."""
    return html.escape(_CONTROL.sub("\ufffd", str(value)), quote=True)


def _n(number: float) -> str:
    """A count, or a measured number with three digits."""
    if number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"


def size(n: float) -> str:
    """Bytes for people: 1.3 MB is 1,300,000."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if n >= unit:
            return f"{n / unit:.3g} {name}" if n < 1000 * unit else f"{n / unit:,.0f} {name}"
    return f"{n:,.0f} bytes" if n != 1 else "1 byte"


def share(part: float, of: float) -> str:
    if not of or not part:
        return "0\u00a0%"
    percent = 100 * part / of
    shown = "< 0.1" if percent < 0.1 else "> 99.9" if 99.9 < percent < 100 else f"{percent:.1f}".removesuffix(".0")
    return shown.replace(" ", "\u00a0") + "\u00a0%"  # no break before the sign


def _s(n: int, word: str) -> str:
    return f"{n:,} {word}{'' if n == 1 else 's'}"


def _bar(kept: float, gone: float, of: float, thin: bool = False) -> str:
    parts = "".join(
        f'<span class="{name}" style="width:{100 * n / of:.3f}%"></span>' for name, n in (("kept", kept), ("gone", gone)) if of and n
    )
    return f'<div class="bar{" thin" * thin}" aria-hidden="true">{parts}</div>'


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: str) -> str:
    """Cells are HTML. numbers: a letter for each column: n number, w wide, t text, a name."""
    kinds = {"n": ' class="n"', "w": ' class="wide"', "t": "", "a": ' class="name"'}
    top = "".join(f'<th scope="col"{kinds["n"] * (kind == "n")}>{cell}</th>' for cell, kind in zip(head, numbers, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kinds[kind]}>{cell}</td>" for cell, kind in zip(row, numbers, strict=True)) + "</tr>\n" for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{top}</tr></thead><tbody>\n{body}</tbody></table></div>'


# The parts of the page -----------------------------------------------------------------------------------------------------------


class _Ends(NamedTuple):
    documents_in: int
    bytes_in: int
    documents_out: int
    bytes_out: int


def _ends(steps: Sequence[StepReport]) -> _Ends:
    """What came into the first step and out of the last."""
    if not steps:
        return _Ends(0, 0, 0, 0)
    first, last = steps[0].total, steps[-1].total
    return _Ends(first.documents_in, first.bytes_in, last.documents_out, last.bytes_out)


def _head(report: Report) -> str:
    ends = _ends(report.steps)
    left = f"{share(ends.documents_out, ends.documents_in)} of the documents and {share(ends.bytes_out, ends.bytes_in)} of the text"
    return (
        f"<header><h1>{text(report.title)}</h1>\n"
        f'<p class="big">{_s(ends.documents_in, "document")} ({size(ends.bytes_in)}) came in, '
        f"{ends.documents_out:,} ({size(ends.bytes_out)}) went out: {left}.</p></header>"
    )


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{text(warning)}</li>" for warning in warnings)
    return f'<section class="warnings" role="alert"><strong>{_s(len(warnings), "warning")}</strong><ul>{items}</ul></section>'


def _contents(report: Report) -> str:
    links = [("flow", "What each step left"), ("sources", "Sources and mixture")]
    links += [(f"step-{number}", step.name) for number, step in enumerate(report.steps, start=1)]
    links += [("roc", "How well scores tell good from bad")] * bool(report.curves) + [("settings", "Settings and versions")]
    return '<nav aria-label="Contents"><ul>' + "".join(f'<li><a href="#{to}">{text(name)}</a></li>' for to, name in links) + "</ul></nav>"


def _flow(steps: Sequence[StepReport]) -> str:
    ends = _ends(steps)
    rows = [
        '<div class="head">step</div><div class="head"></div><div class="head numbers">documents left</div><div class="head numbers">text left</div>'
    ]
    for number, step in enumerate(steps, start=1):
        total = step.total
        gone, cut = total.documents_in - total.documents_out, total.bytes_in - total.bytes_out
        bars = _bar(total.documents_out, max(0, gone), ends.documents_in) + _bar(total.bytes_out, max(0, cut), ends.bytes_in, thin=True)
        minus = f'<br><span class="dim">{_SIGN[gone > 0]}{abs(gone):,} ({share(abs(gone), total.documents_in)})</span>' if gone else ""
        less = f'<br><span class="dim">{_SIGN[cut > 0]}{size(abs(cut))} ({share(abs(cut), total.bytes_in)})</span>' if cut else ""
        rows.append(
            f'<div class="name"><a href="#step-{number}">{text(step.name)}</a></div><div class="bars">{bars}</div>'
            f'<div class="numbers">{total.documents_out:,}<span class="narrow"> documents</span>{minus}</div>'
            f'<div class="numbers">{size(total.bytes_out)}<span class="narrow"> of text</span>{less}</div>'
        )
    return (
        '<section><h2 id="flow">What each step left</h2>\n<p class="dim"><span class="key kept"></span>left <span class="key gone"></span>removed by this step. '
        "Thick bars: documents; thin bars: bytes of text. All bars are shares of what came in.</p>\n"
        f'<div class="flow">{"".join(rows)}</div></section>'
    )


def _sources(sources: Sequence[SourceRow], steps: Sequence[StepReport]) -> str:
    first = steps[0].flows if steps else {}
    total = sum(source.bytes for source in sources)
    divided = bool(sources)
    if not sources:
        last = steps[-1].flows if steps else {}
        sources = [SourceRow(name, "", flow.documents_out, flow.bytes_out) for name, flow in sorted(last.items())]
        total = sum(source.bytes for source in sources)
    rows = []
    for source in sources:
        came = first.get(source.name)
        weight = source.bytes / total if source.weight is None and total else source.weight or 0.0
        rows.append((
            text(source.name),
            text(source.license or "not stated"),
            f"{came.documents_in:,}<br>{size(came.bytes_in)}" if came else "",
            f"{source.documents:,}<br>{size(source.bytes)}",
            *([f"{source.validation:,}<br>{size(source.validation_bytes)}"] * divided),
            f"{share(weight, 1)}{_bar(weight, 0, 1)}",
            "" if source.epochs is None else f"{source.epochs:.3g}",
        ))  # fmt: skip
    kept = ("in the training text", "validation") if divided else ("in the corpus",)
    table = _table(("source", "license", "came in", *kept, "weight", "epochs"), rows, "atnnnn" + "n" * divided)
    about = "Weight: the source's share of the training text. Epochs: how often each of its documents is read for that."
    return f'<section><h2 id="sources">Sources and mixture</h2>\n<p class="dim">{about}</p>\n{table}</section>'


def _step(step: StepReport, anchor: str) -> str:
    total = step.total
    gone = total.documents_in - total.documents_out
    says = [f"{_s(total.documents_in, 'document')} in, {total.documents_out:,} out"]
    says += [f"{gone:,} removed ({share(gone, total.documents_in)})"] * (gone > 0)
    says += [f"{step.changed:,} changed ({share(step.changed, total.documents_in)})"] * bool(step.changed)
    about = f'<p class="dim">{_ABOUT[step.name]}</p>' if step.name in _ABOUT else ""
    parts = [f'<section><h2 id="{anchor}">{text(step.name)}</h2>{about}', f"<p>{'; '.join(says)}.</p>"]
    rules = sorted(step.rules.items(), key=lambda item: (-item[1].documents, item[0]))
    parts += [_rule(name, rule, total.documents_in, number == 0) for number, (name, rule) in enumerate(rules)]
    if step.idle:
        parts.append(f'<p class="dim">Removed nothing: {", ".join(map(text, step.idle))}.</p>')
    if step.kinds:
        parts.append(_kinds(step.kinds, total.documents_in))
    if step.cluster_sizes:
        parts.append(_clusters(step.clusters, step.cluster_sizes))
    if step.notes:
        parts.append(_notes(step.notes))
    if step.settings:
        parts.append(f"<details><summary>Settings of this step</summary>{_json(step.settings)}</details>")
    return "\n".join([*parts, "</section>"])


def _rule(name: str, rule: RuleReport, of: int, shown: bool) -> str:
    limits = " to ".join(_n(limit) for limit in dict.fromkeys(rule.limits))
    count = (
        f"{_s(rule.documents, 'document')} removed, {share(rule.documents, of)}, {size(rule.bytes)}"
        if rule.documents
        else "nothing removed"
    )
    inside = [_examples(rule.examples)]
    if len(rule.removed) + len(rule.kept) > 1:
        both = "blue: documents that stayed; orange: documents that it removed" if rule.kept else "numbers of the documents that it removed"
        caption = f"{both}; dashed: the limit, {limits}" if limits else both
        inside.insert(0, f"<figure>{histogram(rule, text(name))}<figcaption>{caption}</figcaption></figure>")
    elif limits:
        inside.insert(0, f'<p class="dim">Limit: {limits}</p>')
    what = f'<span class="count">{count}</span><span class="what">{text(name)}</span>'
    return f"<details{' open' * shown}><summary>{what}</summary>{''.join(inside)}</details>"


def _examples(examples: Sequence[Example]) -> str:
    items = []
    for example in examples:
        number = "" if example.number is None else f': <span class="number">{_n(example.number)}</span>'
        limit = "" if example.number is None or example.limit is None else f", limit {_n(example.limit)}"
        items.append(
            f'<li><div class="from">{text(example.id)}{number}{limit}</div><div class="text">{text(example.excerpt) or "(empty)"}</div></li>'
        )
    return f'<ul class="examples">{"".join(items)}</ul>' if items else ""


def _kinds(kinds: dict[str, KindReport], of: int) -> str:
    """What was done or found, most frequent first, with examples of changed documents."""
    ordered = sorted(kinds.items(), key=lambda item: (-item[1].count, item[0]))
    most = max(kind.count for _, kind in ordered)
    rows = [
        (
            text(name),
            f"{kind.count:,}",
            f"{kind.documents:,} ({share(kind.documents, of)})" if kind.documents else "",
            _bar(kind.count, 0, most),
        )
        for name, kind in ordered[:40]
    ]
    more = f'<p class="dim">and {_s(len(ordered) - 40, "kind")} more, in report.json</p>' if len(ordered) > 40 else ""
    table = _table(("", "how often", "in documents", ""), rows, "annw")
    shown = [
        f'<details><summary><span class="count">{_s(len(kind.examples), "example")}</span><span class="what">{text(name)}</span></summary>'
        f"{_examples(kind.examples)}</details>"
        for name, kind in ordered
        if kind.examples
    ]
    return "\n".join([f"<h3>By kind</h3>{table}{more}", *shown])


def _clusters(clusters: Sequence[Cluster], sizes: dict[int, int]) -> str:
    groups, documents = sum(sizes.values()), sum(n * number for n, number in sizes.items())
    spans = [(2, 2), (3, 3), (4, 5), (6, 10), (11, 20), (21, 100), (101, 1000), (1001, 10**12)]
    rows = []
    counts = [(low, high, sum(number for n, number in sizes.items() if low <= n <= high)) for low, high in spans]
    for low, high, number in counts:
        if number:
            name = f"{low:,}" if low == high else f"over {low - 1:,}" if high == 10**12 else f"{low:,} to {high:,}"
            rows.append((name, f"{number:,}", _bar(number, 0, max(n for *_, n in counts))))
    shown = []
    for cluster in clusters:
        others = "".join(f"<li>{text(other)}</li>" for other in cluster.others)
        left = cluster.size - 1 - len(cluster.others)
        more = f"<li>and {left:,} more</li>" if left else ""
        shown.append(
            f'<details><summary><span class="count">{_s(cluster.size, "document")}</span><span class="what">{text(cluster.kept)}</span></summary>'
            f'<p class="text">{text(cluster.excerpt)}</p><p class="dim">The others were:</p><ul>{others}{more}</ul></details>'
        )
    head = f"<h3>Groups of copies</h3><p>{_s(groups, 'group')} with {documents:,} documents; one of each stays.</p>"
    return "\n".join(
        [head, _table(("documents in a group", "groups", ""), rows, "anw"), f"<h3>The largest {_s(len(clusters), 'group')}</h3>", *shown]
    )


def _notes(notes: Sequence[dict[str, Json]]) -> str:
    names = list(dict.fromkeys(name for note in notes for name in note))
    rows = [[text(_flat(note.get(name, ""))) for name in names] for note in notes[:MOST_ROWS]]
    more = f'<p class="dim">and {len(notes) - MOST_ROWS:,} more, in report.json</p>' if len(notes) > MOST_ROWS else ""
    table = _table([text(name) for name in names], rows, ("w" + "t" * (len(names) - 2) + "w")[-len(names) :])
    return f'<details><summary><span class="count">{len(notes):,}</span><span class="what">List of findings</span></summary>{table}{more}</details>'


def _flat(value: Json) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _curves(curves: Sequence[Curve]) -> str:
    if not curves:
        return ""
    shown = []
    for curve in curves:
        left, top, side = 44, 12, 260
        points = " ".join(f"{left + side * x:.1f},{top + side * (1 - y):.1f}" for x, y in zip(curve.lost, curve.removed, strict=True))
        ticks = "".join(
            f'<text x="{left + side * v:.1f}" y="{top + side + 16}" text-anchor="middle">{v:g}</text>'
            f'<text x="{left - 6}" y="{top + side * (1 - v) + 4:.1f}" text-anchor="end">{v:g}</text>'
            for v in (0, 0.5, 1)
        )
        mark = says = ""
        if curve.chosen:
            x, y = curve.chosen
            mark = f'<circle cx="{left + side * x:.1f}" cy="{top + side * (1 - y):.1f}" r="5" class="g"/>'
            says = f" The threshold in use (dot) removes {share(y, 1)} of the bad documents, and {share(x, 1)} of the good ones with them."
        shown.append(
            f'<figure><svg viewBox="0 0 320 320" style="max-width:24rem" role="img" aria-label="ROC curve of {text(curve.name)}, area {curve.auc:.3f}">'
            f'<path class="axis" d="M{left} {top}V{top + side}H{left + side} M{left} {top + side}L{left + side} {top}"/>{ticks}'
            f'<text x="{left + side / 2}" y="{top + side + 36}" text-anchor="middle">good documents removed</text>'
            f'<text x="14" y="{top + side / 2}" text-anchor="middle" transform="rotate(-90 14 {top + side / 2})">bad documents removed</text>'
            f'<polyline points="{points}" fill="none" stroke="var(--kept)" stroke-width="2"/>{mark}</svg>'
            f"<figcaption><strong>{text(curve.name)}</strong>: area under the curve {curve.auc:.3f}. {says}</figcaption></figure>"
        )
    return f'<section><h2 id="roc">How well scores tell good from bad</h2>\n{"".join(shown)}</section>'


def _json(value: Json) -> str:
    return f"<pre>{text(json.dumps(value, indent=2, ensure_ascii=False, default=str))}</pre>"


def _settings(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    inside = f"<details><summary>All settings</summary>{_json(report.settings)}</details>" if report.settings else ""
    note = "Excerpts are shown with personal data replaced by marks. Examples are drawn by a hash of the document's id."
    return f'<section><h2 id="settings">Settings and versions</h2>\n<p>{text(versions)}</p>{inside}</section>\n<footer>{note}</footer>'
