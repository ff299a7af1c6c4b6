"""Sources: files that other libraries wrote are read as they mean them, however the work is divided; and what is wrong with a file is named."""

import bz2
import csv
import gzip
import importlib.util
import inspect
import io
import json
import lzma
import zlib
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinygpt.curate import formats
from tinygpt.curate.documents import write_shard
from tinygpt.curate.markup import text_of_html
from tinygpt.curate.page import render
from tinygpt.curate.report import KindReport, Report
from tinygpt.curate.sources import BadInput, SourceSpec, open_sources, parse_spec, read_specs
from tinygpt.curate.stages import Reading
from tinygpt.data.corpora import docs_texts


def needs(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def source(path, **options):
    (found,) = open_sources([SourceSpec("s", str(path), **options)])
    return found


def read(path, bad=None, **options):
    return list(source(path, **options).read(bad=bad))


def texts(path, bad=None, **options):
    return [document.text for document in read(path, bad, **options)]


ROWS = [{"text": f"text {i}\nwith a second line, and “quotes”", "id": f"row-{i}", "n": i} for i in range(7)]


def write_rows(path, rows=ROWS):
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    writers = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    if path.suffix == ".zst":
        lines = pytest.importorskip("zstandard").ZstdCompressor(write_checksum=True).compress(lines)
    path.write_bytes(writers.get(path.suffix, bytes)(lines))
    return path


# What users say -------------------------------------------------------------------------------------------------------------


def test_a_source_is_a_path_with_a_name_and_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b,c.txt").write_text("text", encoding="utf-8")
    for given_, wanted in {
        "wiki=dump.xml.bz2,weight=0.3,license=CC BY-SA 4.0, see the page": SourceSpec(
            "wiki", "dump.xml.bz2", weight=0.3, license="CC BY-SA 4.0, see the page"
        ),
        "data/pages-01.jsonl.gz,text=content,id=url": SourceSpec("pages-01", "data/pages-01.jsonl.gz", text="content", id="url"),
        "code=src,pattern=*.py": SourceSpec("code", "src", pattern="*.py"),
        "a=b,c.txt": SourceSpec("a-b-c", "a=b,c.txt"),
        "docs": SourceSpec("docs", "docs"),
        "my data/": SourceSpec("my-data", "my data/"),
    }.items():
        assert parse_spec(given_) == wanted
    for given_, message in {
        "x,weight=much": r"source 'x': weight 'much', expected a number; such as weight=0.3",
        "x,weight=0": r"source 'x': weight 0.0, expected more than 0; leave out a source",
        "x,kind=jason": r"source 'x': kind 'jason', expected one of .*; did you mean 'json'\?",
        "x=,text=a": r"source 'x': path '', text 'a', expected neither empty",
    }.items():
        with pytest.raises(ValueError, match=message):
            parse_spec(given_)


def test_a_toml_file_has_a_table_for_each_source(tmp_path):
    path = tmp_path / "sources.toml"

    def written(text):
        path.write_text(text, encoding="utf-8")
        return read_specs(path)

    found = written(
        '[wiki]\npath = "wiki.jsonl"\nweight = 2\nlicense = "CC BY-SA 4.0"\ntext = "content"\n[docs]\npath = "docs"\nweight = 1.5'
    )
    assert found == [
        SourceSpec("wiki", str(tmp_path / "wiki.jsonl"), weight=2, license="CC BY-SA 4.0", text="content"),
        SourceSpec("docs", "docs", weight=1.5),
    ]
    for text, message in {
        "[wiki": r"sources.toml: .*, expected TOML; correct it there",
        'wiki = "a.txt"': r"sources.toml: wiki = 'a.txt', expected a table with a path; write \[wiki\] and path",
        '[wiki]\npath = "x"\nweigth = 1': r"sources.toml: \[wiki\]: unknown key 'weigth', expected one of .*; did you mean 'weight'\?",
        '[wiki]\npath = "x"\nweight = "1"': r"sources.toml: \[wiki\] weight = '1', expected a number",
        '[wiki]\npath = "x"\ntext = 1': r"sources.toml: \[wiki\] text = 1, expected a text",
    }.items():
        with pytest.raises(ValueError, match=message):
            written(text)
    with pytest.raises(FileNotFoundError, match=r"sources 'no.toml': no such file, expected a TOML file with a table for each source"):
        read_specs("no.toml")


def test_sources_that_cannot_be_are_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"source 's': .*nowhere: no such file or folder, expected a path, or docs"):
        source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"source 's': .*: no such document among 1 files, expected files of the formats text, jsonl, .*"):
        source(tmp_path)
    with pytest.raises(ValueError, match=r"expected files that match '\*.py'; check the path"):
        source(tmp_path, pattern="*.py")
    with pytest.raises(ValueError, match=r"sources: name 'a' twice, expected different ones; write NAME=PATH"):
        open_sources([SourceSpec("a", "x"), SourceSpec("a", "y")])
    with pytest.raises(ValueError, match=r"sources: no weight for b, expected one for each source or for none"):
        open_sources([SourceSpec("a", "x", weight=1.0), SourceSpec("b", "y")])
    with pytest.raises(ValueError, match=r"sources: none, expected at least one"):
        open_sources([])
    with pytest.raises(ValueError, match=r"bad input: 'skipp', expected stop or skip; did you mean 'skip'\?"):
        BadInput("skipp")


# Formats, as other libraries write them -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst"])
def test_jsonl(tmp_path, name):
    found = read(write_rows(tmp_path / name))
    assert [document.text for document in found] == [row["text"] for row in ROWS]
    assert found[2].id == f"s/{name}:3" and found[2].source == "s" and found[2].metadata == {"id": "row-2", "n": 2}
    assert read(tmp_path / name, id="id")[2].id == f"s/{name}:row-2"


def test_text_files_and_folders(tmp_path):
    for name, text in {"b.txt": "b\r\nb", "sub/a.md": "# A", "c.py": "x = 1", "empty.txt": "", "blank.md": " \n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "utf16.txt").write_bytes("ä".encode("utf-16"))
    bad = BadInput()
    found = read(tmp_path, bad)
    assert [(d.id, d.text) for d in found] == [("s/b.txt", "b\nb"), ("s/sub/a.md", "# A"), ("s/utf16.txt", "ä")] and bad.empty == 2
    assert source(tmp_path).left_out == "; left out, because of no known format: 1 (c.py)"
    assert texts(tmp_path, pattern="*.py") == ["x = 1"] and texts(tmp_path / "c.py") == ["x = 1"]


def test_a_text_with_separators_is_several_documents_and_a_long_one_is_cut(tmp_path, monkeypatch):
    path = tmp_path / "stories.txt"
    path.write_text("\nOne day.\n<|endoftext|>\nTwo days.\n\nMore.\n<|endoftext|>\n", encoding="utf-8")
    assert [(d.id, d.text) for d in read(path)] == [("s/stories.txt:1", "One day."), ("s/stories.txt:2", "Two days.\n\nMore.")]
    monkeypatch.setattr(formats, "TEXT_BYTES", 30)
    monkeypatch.setattr(formats, "PIECE_CHARACTERS", 5)
    path.write_text("One day.\n<|endoftext|>\nTwo days.\n\nMore and more and more words.\n", encoding="utf-8")
    assert texts(path) == ["One day.", "Two days.", "More and more and more words."]
    path.write_text("x" * 100 + "<|endoftext|>y", encoding="utf-8")
    *cut, last = texts(path)
    assert "".join(cut) == "x" * 100 and max(map(len, cut)) <= 35 and last == "y"


def test_csv(tmp_path):
    for name, sign in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text", "n"], delimiter=sign)
            writer.writeheader()
            writer.writerows(ROWS)
    found = read(tmp_path)
    assert [document.text for document in found] == [row["text"] for row in ROWS] * 3
    assert found[1].id == "s/a.csv:4" and found[1].metadata == {"id": "row-1", "n": "1"}  # each text takes two lines


def test_a_quote_that_the_first_line_leaves_open_is_named(tmp_path):
    (tmp_path / "a.csv").write_text('text,"n\nb,1\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.csv: line 1: .*, expected quotes that are closed"):
        read(tmp_path)


def test_an_empty_group_is_none(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"text": f"text {i}", "group": group} for i, group in enumerate((None, "", 0, "x"))])
    assert [document.metadata.get("group") for document in read(tmp_path)] == [None, None, "s 0", "s x"]


def test_files_that_could_not_be_read_are_no_documents(tmp_path):
    write_rows(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text("nonsense\n", encoding="utf-8")
    reading = Reading((source(tmp_path),), "skip")
    (tmp_path / "work" / "shards").mkdir(parents=True)
    (report,) = reading.run([], tmp_path / "work", lambda function, n, name: [function(task, n) for task in range(n)])
    assert report.kinds == {"not JSON": KindReport(1, 0)} and '>1</td><td class="n"></td>' in render(Report("", [report]))


def test_a_json_list(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS), encoding="utf-8")
    assert texts(tmp_path / "a.json") == [row["text"] for row in ROWS]


def test_the_text_that_every_installation_has():
    (docs,) = open_sources([parse_spec("docs")])
    found = {document.id: document.text for document in docs.read()}
    assert list(found) == sorted(found) and found["docs/docs:numpy.argsort"] == inspect.cleandoc(np.argsort.__doc__).strip()
    assert "BSD-3-Clause" in docs.describe()["license"]


def test_the_text_that_every_installation_has_is_numpys_whatever_else_is_imported(monkeypatch):
    before, numbers = docs_texts(), source("docs").describe()
    monkeypatch.setattr(np.sinc, "__doc__", f"{np.sinc.__doc__}\n\nA table of another library, as scipy.special adds one.")
    assert docs_texts() == before and source("docs").describe() == numbers


@needs("pyarrow")
def test_parquet(tmp_path, monkeypatch):
    import datetime

    import pyarrow
    from pyarrow import parquet

    when = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
    more = {"when": [when] * 7, "raw": [b"12"] * 7, "scores": [[1.5, float("nan")]] * 7, "meta": [{"a": 1}] * 7}
    table = pyarrow.table({**{key: [row[key] for row in ROWS] for key in ROWS[0]}, **more})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    found = read(tmp_path)
    assert [document.text for document in found] == [row["text"] for row in ROWS]
    assert found[4].id == "s/a.parquet:5" and found[4].metadata["n"] == 4
    assert found[0].metadata | {"n": 0} == {
        "id": "row-0", "n": 0, "when": "2024-05-01 00:00:00+00:00", "raw": "2 bytes", "scores": [1.5, None], "meta": {"a": 1},
    }  # fmt: skip
    monkeypatch.setattr(formats, "RANGE_BYTES", 500)
    divided = source(tmp_path)
    assert len(divided.units) > 2
    assert [document for task in range(4) for document in divided.read(task, 4)] == found


@needs("pyarrow", "datasets")
@pytest.mark.filterwarnings("ignore")
def test_data_sets_saved_to_disk(tmp_path):
    import datasets

    datasets.disable_progress_bars()
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "data", num_shards=2)
    assert texts(tmp_path / "data") == [row["text"] for row in ROWS]
    data.shuffle(seed=1).select(range(3)).save_to_disk(tmp_path / "some")
    assert texts(tmp_path / "some") == data.shuffle(seed=1)["text"][:3]
    datasets.DatasetDict(train=data, test=data).save_to_disk(tmp_path / "both")
    with pytest.raises(ValueError, match=r"both: data sets test, train, expected one; name it: both/\.\.\."):
        source(tmp_path / "both")
    assert len(texts(tmp_path / "both" / "train")) == 7


PAGE = "<html><head><title>T</title></head><body><nav><a href='/'>Home</a> | Menu</nav><article><h1>Title</h1>{}</article></body></html>"


def write_warc(path, pages):
    """pages: (status, content type, body)."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=path.suffix == ".gz")
        for i, (status, kind, body) in enumerate(pages):
            headers = StatusAndHeaders(status, [("Content-Type", kind)], protocol="HTTP/1.0")
            made = writer.create_warc_record(f"http://example.org/{i}", "response", payload=io.BytesIO(body), http_headers=headers)
            writer.write_record(made)
        text = "A café, as text.".encode()
        writer.write_record(writer.create_warc_record("http://example.org/t", "conversion", payload=io.BytesIO(text)))


@needs("warcio", "trafilatura")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the writer leaves its temporary files open
def test_warc(tmp_path):
    body = PAGE.format("".join(f"<p>Sentence {i} of a long text about a café, with enough words to be kept.</p>" for i in range(8)))
    pages = [
        ("200 OK", "text/html; charset=latin-1", body.encode("latin-1")), ("404 Not Found", "text/html", body.encode()),
        ("200 OK", "image/png", b"png"), ("200 OK", "text/html", body.encode("utf-8")),
    ]  # fmt: skip
    for name in ("a.warc", "a.warc.gz"):
        write_warc(tmp_path / name, pages)
        found = read(tmp_path / name)
        assert [document.id.rpartition(":")[2] for document in found] == ["1", "4", "5"]
        assert [document.metadata["url"][-1] for document in found] == ["0", "3", "t"] and found[2].text == "A café, as text."
        for document in found[:2]:
            assert "Sentence 7 of a long text about a café" in document.text and "Menu" not in document.text
    data = (tmp_path / "a.warc.gz").read_bytes()
    for n in (len(data) - 9, len(data) // 2):
        (tmp_path / "cut.warc.gz").write_bytes(data[:n])
        bad = BadInput("skip")
        assert texts(tmp_path / "cut.warc.gz", bad) and bad.counts == {"damaged file": 1}
    (tmp_path / "cut.warc").write_bytes((tmp_path / "a.warc").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"cut.warc: record 1 ends \d+ bytes early, expected an intact file; 0 records were read before"):
        read(tmp_path / "cut.warc")
    (tmp_path / "no.warc").write_bytes(b"hello\n")
    with pytest.raises(ValueError, match=r"no.warc: .*, expected WARC; 0 records were read before"):
        read(tmp_path / "no.warc")


WIKITEXT = """'''Kyoto''' ({{lang|ja|x}}) is a [[city|large city]] in [[Japan]].<ref>Book, p. 3</ref>
[[File:k.jpg|thumb|A [[temple]] ]]
{| class="wikitable"
|-
| cell
|}

== History ==
* first
* ''second''
[[Category:Cities]]"""


def write_wikipedia(path, pages):
    """pages: (title, namespace, redirect, wikitext), as MediaWiki exports them."""
    parts = ['<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/"><siteinfo><sitename>W</sitename></siteinfo>']
    for i, (title, namespace, redirect, text) in enumerate(pages):
        tag = '<redirect title="x" />' if redirect else ""
        escaped = text.replace("&", "&amp;").replace("<", "&lt;")
        parts.append(
            f"<page><title>{title}</title><ns>{namespace}</ns><id>{i + 10}</id>{tag}<revision><id>99</id><text>{escaped}</text></revision></page>"
        )
    path.write_bytes(bz2.compress("\n".join([*parts, "</mediawiki>"]).encode()))


@needs("mwparserfromhell")
def test_wikipedia(tmp_path):
    path = tmp_path / "x-pages-articles.xml.bz2"
    write_wikipedia(path, [("Kyoto", 0, False, WIKITEXT), ("Talk:Kyoto", 1, False, "talk"), ("Kioto", 0, True, "#REDIRECT [[Kyoto]]")])
    (document,) = read(path)
    assert document.text == "Kyoto is a large city in Japan.\n\nHistory\n- first\n- second".replace("Kyoto is", "Kyoto  is")
    assert document.metadata == {"title": "Kyoto", "page": "10"} and document.id == f"s/{path.name}:1"
    assert source(path).describe()["license"].startswith("CC BY-SA 4.0")
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(ValueError, match=r"x-pages-articles.xml.bz2: .*, expected an intact file|expected XML"):
        read(path)


def test_stack_exchange(tmp_path):
    body = "<p>Why is <code>a &lt; b</code> slow?</p>\n<pre><code>for x in y:\n    print(x)\n</code></pre><ul><li>one</li><li>two</li></ul>"
    rows = [
        {"Id": 1, "PostTypeId": 1, "Title": "Slow < fast?", "Body": body, "Score": 3, "ContentLicense": "CC BY-SA 4.0"},
        {"Id": 2, "PostTypeId": 2, "ParentId": 1, "Body": "<p>It is not.</p>", "Score": -1}, {"Id": 3, "PostTypeId": 4, "Body": "tag"},
    ]  # fmt: skip
    lines = ["<row " + " ".join(f"{key}={quoteattr(str(value))}" for key, value in row.items()) + " />" for row in rows]
    (tmp_path / "Posts.xml").write_text("\n".join(['<?xml version="1.0"?>', "<posts>", *lines, "</posts>"]), encoding="utf-8")
    question, answer = read(tmp_path)
    assert (
        question.text == "Slow < fast?\n\nWhy is a < b slow?\n\nfor x in y:\n    print(x)\n\n- one\n- two"
        and question.id == "s/Posts.xml:1"
    )
    assert answer.text == "It is not." and answer.metadata["group"] == question.metadata["group"] == "s question 1"
    assert (question.metadata["license"], answer.metadata["score"]) == ("CC BY-SA 4.0", -1)
    (tmp_path / "Posts.xml").write_text("<posts><row Id='1'", encoding="utf-8")
    with pytest.raises(ValueError, match=r"Posts.xml: unclosed token.*, expected XML; restore it, or unpack it again"):
        read(tmp_path)


@given(st.text("ab1 \n\té<>&;'\"", max_size=20))
def test_html_without_tags_is_its_text(text):
    import html

    assert text_of_html(html.escape(text)).split() == text.split()


# Division -------------------------------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(0, 40), max_size=30), n_tasks=st.integers(1, 9), range_bytes=st.integers(1, 400), data=st.data())
def test_all_tasks_together_read_everything_once_in_order(tmp_path_factory, lengths, n_tasks, range_bytes, data):
    folder = tmp_path_factory.mktemp("divided")
    wanted = []
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt"):
        rows = [{"text": f"{name} {i} " + "é" * n} for i, n in enumerate(lengths)]
        if name == "c.txt":
            (folder / name).write_text("a text", encoding="utf-8")
            wanted.append(("s/c.txt", "a text"))
            continue
        blank = "\n" * data.draw(st.integers(0, 2))
        lines = (blank + "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)).rstrip(
            "\n" * data.draw(st.integers(0, 1)) or " "
        )
        (folder / name).write_bytes(gzip.compress(lines.encode()) if name.endswith("gz") else lines.encode())
        wanted += [(f"s/{name}:{i + 1 + len(blank)}", row["text"]) for i, row in enumerate(rows)]
    before, formats.RANGE_BYTES = formats.RANGE_BYTES, range_bytes
    try:
        divided = source(folder)
    finally:
        formats.RANGE_BYTES = before
    found = [(document.id, document.text) for task in range(n_tasks) for document in divided.read(task, n_tasks)]
    assert found == wanted
    assert sorted(unit.name for task in range(n_tasks) for unit in divided.units_of(task, n_tasks)) == sorted(u.name for u in divided.units)


# What is wrong with a file --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.bz2", "a.jsonl.xz", "a.jsonl.zst"])
@pytest.mark.parametrize("fault", ["cut", "changed", "empty"])
def test_a_damaged_file_is_named_and_what_stands_before_it_is_kept(tmp_path, name, fault):
    rows = [{"text": f"{zlib.crc32(str(i).encode()):x}" * 40} for i in range(4000)]
    data = bytearray(write_rows(tmp_path / name, rows).read_bytes())
    if fault == "changed":
        for i in range(len(data) // 2, len(data) // 2 + 40):
            data[i] ^= 255
    (tmp_path / name).write_bytes(data if fault == "changed" else data[: len(data) * 3 // 4 if fault == "cut" else 0])
    write_rows(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match=rf"{name}: .*, expected .*; \d+ records were read before; restore it, or .*--bad-input skip"):
        read(tmp_path)
    bad = BadInput("skip")
    found = texts(tmp_path, bad)
    assert found[-7:] == [row["text"] for row in ROWS] and bad.counts == {"damaged file": 1} and name in bad.examples["damaged file"][0]
    kept = found[:-7]
    assert kept == [row["text"] for row in rows[: len(kept)]]
    assert len(kept) > 500 if fault == "cut" else not kept or "bz2" in name  # whose checksums are of blocks


@needs("pyarrow")
def test_a_damaged_parquet_file_is_named(tmp_path):
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({"text": [f"{zlib.crc32(str(i).encode()):x}" * 9 for i in range(3000)]})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=1000)
    write_rows(tmp_path / "b.jsonl")
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"a.parquet: .*, expected an intact file; 0 records were read before; restore it"):
        read(tmp_path)
    data[len(data) // 2 : len(data) // 2 + 200] = bytes(200)
    for content in (data[:3], b"", data):
        (tmp_path / "a.parquet").write_bytes(content)
        bad = BadInput("skip")
        found = texts(tmp_path, bad)
        assert found[-7:] == [row["text"] for row in ROWS] and bad.counts == {"damaged file": 1}


LINES = {
    "not JSON": (b'{"text": "a"', r"a.jsonl: line 2: .*, expected valid JSON; correct or remove the line"),
    "not an object": (b'["text"]', r"a.jsonl: line 2: a JSON list, expected an object \{\.\.\.\}; correct or remove the line"),
    "not UTF-8": (b'{"text": "caf\xe9"}', r"a.jsonl: line 2: .*0xe9.*, expected UTF-8; correct or remove the line"),
    "missing field": (
        b'{"texts": "a", "id": 1}',
        r"a.jsonl: line 2: no field 'text', expected it among 'texts', 'id'; did you mean 'texts'\?",
    ),
    "not a text": (b'{"text": 5}', r"a.jsonl: line 2: text is a int, expected a text; correct or remove the record"),
    "not Unicode": (rb'{"text": "a\ud800"}', r"a.jsonl: line 2: text holds a lone surrogate, expected Unicode text"),
    "not Unicode ": (rb'{"text": "a", "b": [{"\ud800": 1e999}]}', r"a.jsonl: line 2: another field than the text holds a lone surrogate"),
}


@pytest.mark.parametrize("kind", LINES)
def test_a_bad_line_is_named_or_left_out_and_counted(tmp_path, kind):
    line, message = LINES[kind]
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n' + line + b'\n\n{"text": null}\n{"text": "two"}\n')
    with pytest.raises(ValueError, match=message + ".*, or leave out what is bad with --bad-input skip"):
        read(tmp_path)
    bad = BadInput("skip")
    assert texts(tmp_path, bad) == ["one", "two"] and bad.empty == 1
    kind = kind.strip()  # two of one kind
    assert bad.counts == {kind: 1} and len(bad.examples[kind]) == 1


def test_fields_that_a_shard_cannot_hold_or_that_curation_writes(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "x": [{"y": 1e999}, -1e999, 2.5], "copies": 7, "n_copies": "many"}', encoding="utf-8")
    (document,) = read(tmp_path)
    assert document.metadata == {"x": [{"y": None}, None, 2.5], "original_copies": 7, "original_n_copies": "many"}
    write_shard(tmp_path / "out.jsonl", [document])


def test_a_field_that_is_named_is_asked_for(tmp_path):
    write_rows(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"no field 'content', expected it among 'text', 'id', 'n'; did you mean 'text'\?"):
        read(tmp_path, text="content")
    with pytest.raises(ValueError, match=r"no field 'key', expected it among 'text', 'id', 'n'; name one of them with id=\.\."):
        read(tmp_path, id="key")


def test_other_faults_of_files(tmp_path, monkeypatch):
    for name, content, message in (
        ("a.txt", b"caf\xe9 au lait", r"a.txt: byte 0xe9 at offset 3 is not UTF-8"),
        ("a.csv", b"text,n\na,1\nb,2,3\n", r"a.csv: line 3: 3 columns, expected 2 as in the first line; correct or remove the line"),
        ("a.csv", b'text,n\na,1\n"b,2\n', r"a.csv: line 3: unexpected end of data, expected quotes that are closed"),
        ("a.csv", b"text,n\ncaf\xe9,1\n", r"a.csv: .*0xe9.*, expected UTF-8; convert it with iconv"),
        ("a.json", b'{"text": 1}', r"a.json: a JSON object|a.json: .*expected"),
        ("a.txt", b"x" * 40 + b"caf\xe9 au lait", r"a.txt: .*UTF-8"),
        (
            "a.jsonl",
            b'{"text": "' + b"x" * 60 + b'"}',
            r"a.jsonl: line 1: more than 50 bytes, expected at most 50; is it one object per line",
        ),
    ):
        if content.startswith(b"xxx"):
            monkeypatch.setattr(formats, "TEXT_BYTES", 20)
        if content.startswith(b'{"text": "x'):
            monkeypatch.setattr(formats, "MAX_JSON_BYTES", 50)
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
        bad = BadInput("skip")
        read(tmp_path / name, bad)
        assert bad.counts.total() == 1


def test_a_file_that_vanishes_is_named(tmp_path):
    for name in ("a.jsonl", "b.jsonl.gz", "c.txt", "d.csv"):
        write_rows(tmp_path / name) if "json" in name else (tmp_path / name).write_text("text\nx\n", encoding="utf-8")
        found = source(tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match=rf"{name}: gone, expected the file that was there at the start; restore it"):
            list(found.read())
        bad = BadInput("skip")
        assert not list(found.read(bad=bad)) and bad.counts == {"missing file": 1}


def test_a_missing_library_is_named_with_its_extra(tmp_path, monkeypatch):
    import sys

    for name, library in (("a.parquet", "pyarrow"), ("a.warc", "trafilatura"), ("a-pages-articles.xml", "mwparserfromhell")):
        (tmp_path / name).write_bytes(b"<mediawiki>")
        monkeypatch.setitem(sys.modules, library, None)
        with pytest.raises(ImportError, match=rf'{name}: {library} is missing, expected it for .*; pip install "tinygpt\[curate-web\]"'):
            read(tmp_path / name, BadInput("skip"))


def test_an_unreadable_disk_is_not_damage(tmp_path, monkeypatch):
    write_rows(tmp_path / "a.jsonl")

    def broken(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(formats, "open_file", broken)
    with pytest.raises(ValueError, match=r"a.jsonl: Input/output error, expected to read it; check disk and rights"):
        read(tmp_path)
