"""The report of a curation: sums over tasks are exact, examples leak nothing, and the page shows what anybody may have written as text."""

import itertools
import json
import math
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd import backend
from tinygpt.curate.documents import Document, Outcome
from tinygpt.curate.histogram import columns, histogram
from tinygpt.curate.page import render, share, size, text, write_page
from tinygpt.curate.privacy import Redact
from tinygpt.curate.report import Curve, Listed, Report, RuleReport, SourceRow, StepReport, bin_of, edge, excerpt

NASTY = "<script>alert(1)</script><img src=x onerror=alert(2)>&amp;\"'</div></details><style>*{display:none}</style><!-- \u202e\x00\ud800"
TAME = re.sub(r"\S", "x", NASTY)  # of the same shape


def documents(n=60, nasty=""):
    return [Document(f"s{i % 3}/f.jsonl:{i}", f"{nasty}document {i} " + "word " * (i * i % 97), f"s{i % 3}") for i in range(n)]


def step(document):
    """Removes by two rules, changes some, lists some."""
    n = len(document.text.split())
    if n > 60:
        return Outcome(None, "long", n, 60)
    if n % 11 == 0:
        return Outcome(None, "eleven", math.inf, math.inf)
    if n % 3 == 0:
        changed = Document(document.id, document.text.replace("document", "a <EMAIL>"), document.source)
        return Outcome(changed, "long", n, 60, {"email": 2, "line": 1})
    return Listed(document, "long", n, 60, notes=({"document": document.id, "items": ["x, row 1"], "words": document.text[:20]},))


def reported(docs):
    report = StepReport("rules", {"most": 60})
    for document in docs:
        report.add(document, step(document))
    for document in docs[::7]:
        report.add_cluster(document, [f"{document.id}, copy {i}" for i in range(len(document.text) % 5)])
    return report


# Sums ------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.permutations(range(60)), st.lists(st.integers(0, 60), min_size=2, max_size=2))
def test_reports_of_tasks_add_up_in_any_order_and_division(order, cuts):
    docs = documents()
    expected = StepReport("rules", {"most": 60})
    for document in docs:
        expected.add(document, step(document))
    shuffled = [docs[i] for i in order]
    low, high = sorted(cuts)
    total = StepReport("rules", {"most": 60})
    for part in (shuffled[high:], shuffled[:low], shuffled[low:high]):
        report = StepReport("rules", {"most": 60})
        for document in part:
            report.add(document, step(document))
        total.merge(StepReport.from_json(json.loads(json.dumps(report.to_json()))))
    assert total.to_json() == expected.to_json()


def test_the_counts_are_right():
    docs = documents()
    report, outcomes = reported(docs), [step(d) for d in docs]
    gone = [(d, o) for d, o in zip(docs, outcomes, strict=True) if o.document is None]
    total = report.total
    assert (total.documents_in, total.documents_out) == (60, 60 - len(gone))
    assert total.bytes_in == sum(len(d.text) for d in docs) and total.bytes_out == sum(len(o.document.text) for o in outcomes if o.document)
    assert set(report.flows) == {"s0", "s1", "s2"} and sum(rule.documents for rule in report.rules.values()) == len(gone)
    long = report.rules["long"]
    assert long.limits == [60, 60] and sum(long.removed.values()) == long.documents == sum(o.rule == "long" for _, o in gone)
    assert sum(long.kept.values()) == sum(o.document is not None for o in outcomes)
    assert len(long.examples) == 5 and all(e.number > 60 == e.limit for e in long.examples)
    assert report.rules["eleven"].limits == [] and {e.number for e in report.rules["eleven"].examples} == {None}
    changed = [o for o in outcomes if o.counts]
    assert report.changed == len(changed) and (report.kinds["email"].count, report.kinds["email"].documents) == (
        2 * len(changed),
        len(changed),
    )
    assert all("a <EMAIL>" in e.excerpt for e in report.kinds["email"].examples)
    assert sum(report.cluster_sizes.values()) == 9 and [c.size for c in report.clusters] == sorted(
        (c.size for c in report.clusters), reverse=True
    )


def test_only_reports_of_one_step_are_merged():
    with pytest.raises(ValueError, match=r"report: 'b' with {}, expected 'a' with {}; merge reports of one step only"):
        StepReport("a").merge(StepReport("b"))
    for wrong in ({}, {**StepReport("a").to_json(), "rules": 3}, {**StepReport("a").to_json(), "other": 1}):
        with pytest.raises(ValueError, match=r"expected what StepReport.to_json writes"):
            StepReport.from_json(wrong)
    with pytest.raises(ValueError, match=r"expected what Report.to_json writes"):
        Report.from_json({"title": "t"})


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-200, 200).map(lambda i: i / 100)


@given(numbers)
def test_a_number_is_in_its_bin(x):
    b = bin_of(x)
    slack = 1e-8 * max(1.0, abs(x))
    assert edge(b) - slack <= x <= edge(b + 1) + slack and edge(b) < edge(b + 1)


@given(st.lists(numbers, min_size=1, max_size=20), st.lists(numbers, max_size=20), st.lists(numbers, max_size=2))
def test_the_picture_shows_every_document_and_the_limit(removed, kept, limits):
    rule = RuleReport(limits=sorted(limits))
    for found, values in ((rule.removed, removed), (rule.kept, kept)):
        for x in values:
            found[bin_of(x)] = found.get(bin_of(x), 0) + 1
    shown = columns(rule)
    assert 1 <= len(shown) <= 64 and all(a.high == b.low for a, b in itertools.pairwise(shown))
    assert (sum(c.removed for c in shown), sum(c.kept for c in shown)) == (len(removed), len(kept))
    for x in [*removed, *kept, *limits]:
        assert shown[0].low - 1e-8 * max(1, abs(x)) <= x <= shown[-1].high + 1e-8 * max(1, abs(x))
    picture = histogram(rule, "words")
    assert picture.count('<path class="limit"') == len(set(limits)) and "nan" not in picture and "inf" not in picture


# Excerpts ----------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 700), st.integers(0, 700))
def test_excerpts_hold_no_part_of_personal_data(at, around):
    values = ["anna.miller.of.the.long.name@example.org", "DE44500105175407324931", "AKIAIOSFODNN7EXAMPLE", "/home/zacharias/"]
    body = "lorem ipsum " * 60
    for value in values:
        shown = excerpt(f"{body[:at]} {value} {body[at:]}", around)
        assert not any(value[i : i + 6] in shown for i in range(len(value) - 5) if value[i : i + 6] != "/home/")
        assert len(shown) < 340


def test_examples_of_redaction_show_marks_only():
    report, redact = StepReport("privacy"), Redact()
    for i in range(9):
        document = Document(f"d{i}", "x " * 300 + f"write to anna{i}@example.org, or 8.8.{i}.1, card 4111 1111 1111 1111")
        report.add(document, redact(document))
    told = json.dumps(report.to_json())
    assert report.kinds["email"].count == 9 and "<EMAIL>" in told and "anna" not in told and "1111" not in told
    assert all("<CARD>" in e.excerpt for e in report.kinds["card"].examples)


@pytest.mark.parametrize("header", ["", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,12AB\n\n"])
def test_no_excerpt_shows_the_inside_of_a_long_key(header):
    body = "\n".join(f"k3y{i:03d}" + "Ab0+" * 15 for i in range(50))
    text = f"words {'of a text ' * 40}\n-----BEGIN RSA PRIVATE KEY-----\n{header}{body}\n-----END RSA PRIVATE KEY-----\nafter it"
    assert not any("k3y" in excerpt(text, at) for at in range(0, len(text), 100))


def test_ids_notes_and_warnings_are_shown_without_personal_data():
    step = StepReport("read", warnings=["left out /home/hans/x.gz"], notes=[{"file": "/home/hans/x.gz"}])
    document = Document("s/anna@example.org:1", "text")
    step.add(document, Outcome(None, "long", 1, 1))
    step.add_cluster(document, ["s/anna@example.org:2"])
    told = json.dumps(Report("r", [step], warnings=["/home/hans"]).to_json())
    assert "hans" not in told and "anna" not in told and told.count("/home/<USER>") == 3 and told.count("s/<EMAIL>") == 3


# The page ----------------------------------------------------------------------------------------------------------------------


def full_report(nasty=""):
    steps = [StepReport("read")]
    docs = documents(nasty=nasty)
    for document in docs:
        steps[0].add(document, Outcome(document))
    rules = reported(docs)
    rules.warnings = [f"rules: kept all 60 documents{nasty}"]
    rules.rules[f"rule{nasty}"] = rules.rules["eleven"]
    rules.kinds[f"kind{nasty}"] = rules.kinds["line"]
    rules.settings = {"path": "/home/anna/x", nasty: [nasty]}
    curve = Curve(f"words{nasty}", 0.91, (0.0, 0.8, 1.0), (0.0, 0.1, 1.0), (0.1, 0.8))
    sources = [SourceRow(f"s0{nasty}", f"CC0{nasty}", 10, 2000, 0.6, 2.5, 4321, 98_700), SourceRow("s1")]
    return Report(
        f"Curation{nasty}", [*steps, rules], sources, [curve], {"a": nasty, "p": "C:\\Users\\Anna\\x"}, {f"v{nasty}": "1.0"}, ["first"]
    )


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name) for name, _ in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def tags_of(page):
    parser = Tags()
    parser.feed(page)
    return parser


def test_what_anybody_wrote_is_text():
    plain, nasty = tags_of(render(full_report(TAME))), tags_of(render(full_report(NASTY)))
    assert nasty.tags == plain.tags and nasty.attributes == plain.attributes  # not one element or attribute more
    assert not {"script", "img", "iframe", "link", "object"} & set(nasty.tags) and "onerror" not in dict(nasty.attributes).values()
    shown = "".join(nasty.texts)
    assert "<script>alert(1)</script>" in shown and not re.search("[\u202e\x00\ud800]", shown)


def test_the_page_says_what_the_report_holds(tmp_path):
    report = full_report()
    write_page(tmp_path / "report.html", report)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    shown = " ".join(" ".join(tags_of(page).texts).split())
    total = report.steps[-1].total
    assert f"60 documents ({size(report.steps[0].total.bytes_in)}) came in, {total.documents_out} (" in shown
    assert "2 warnings first rules: kept all 60 documents" in shown and shown.index("2 warnings") < shown.index("What each step left")
    for rule in report.steps[1].rules.values():
        for example in rule.examples:
            assert example.id in page
    assert "CC0" in page and "60 %" in shown and "2.5" in shown and "not stated" in shown  # license, weight, epochs
    assert "area under the curve 0.910" in shown and "removes 80 % of the bad documents, and 10 % of the good ones" in shown
    assert "in the training text validation weight" in shown and "4,321 98.7 KB" in shown
    assert "x, row 1" in shown and f"{sum(report.steps[1].cluster_sizes.values())} groups with" in shown
    assert "anna" not in page.lower() and "/home/&lt;USER&gt;/x" in page
    assert "http:" not in page and "https:" not in page and "url(" not in page and "@import" not in page
    assert Report.from_json(json.loads(json.dumps(report.to_json()))).to_json() == report.to_json()


def test_empty_reports_have_a_page():
    assert "0 documents (0 bytes) came in" in render(Report("Nothing", []))
    page = render(Report("One", [StepReport("read")]))
    assert "0 documents in, 0 out" in page and "warning" not in " ".join(tags_of(page).texts).split("Contents")[0].replace(".warnings", "")


def test_texts_and_sizes():
    assert text("a<b>&\"'\x1b\ufffd") == "a&lt;b&gt;&amp;&quot;&#x27;\ufffd\ufffd"
    assert [size(n) for n in (1, 999, 1000, 1_234_567, 1e9, 5e12)] == ["1 byte", "999 bytes", "1 KB", "1.23 MB", "1 GB", "5,000 GB"]
    assert [share(n, 1000) for n in (0, 0.5, 125, 500, 999.5)] == ["0\xa0%", "<\xa00.1\xa0%", "12.5\xa0%", "50\xa0%", ">\xa099.9\xa0%"]


@pytest.mark.skipif(backend.name != "numpy", reason="a page is a page")
@pytest.mark.parametrize("width, scheme", [(1200, "light"), (390, "dark")])
def test_in_a_browser_it_fits_and_asks_for_nothing(browser, tmp_path, width, scheme):
    path = tmp_path / "report.html"
    write_page(path, full_report(NASTY.replace("\ud800", "")))
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    problems = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.on("request", lambda request: problems.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", dark)[:3])) < 200) == (scheme == "dark")
    opened, closed = page.locator("details[open]").count(), page.locator("details:not([open])").count()
    page.locator("details:not([open]) > summary").first.click()
    assert (page.locator("details[open]").count(), closed > 3) == (opened + 1, True)
    bars = page.locator(".flow .bar .kept").evaluate_all("all => all.map(e => e.getBoundingClientRect().width)")
    assert len(bars) == 4 and bars[0] > bars[2] > 0
    page.click("nav a:has-text('rules')")
    assert page.evaluate("location.hash") == "#step-2"
    assert problems == []
    page.close()
