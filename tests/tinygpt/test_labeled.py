"""Labeled texts: formats, guesses, bad input, balancing, the split, and the two named sets."""

import hashlib
import json
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.data import download as downloads
from tinygpt.data.corpora import load_corpus
from tinygpt.data.download import DOWNLOADS, Download, fetch
from tinygpt.data.rows import read_table
from tinygpt.finetuning.labeled import (
    SECTIONS,
    LabeledData,
    LabeledText,
    balance,
    check,
    doc_sections,
    group_copies,
    load_labeled,
    split,
)

SMS = Path(__file__).parent.parent.parent.parent / "shared" / "data"
ROWS = [("spam", 'WIN a "prize", now'), ("ham", "see you at 5"), ("spam", "call 0900"), ("ham", "ok, then")]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def data_of(rows, held_out=()):
    grouped = group_copies([LabeledText(text, label, f"line {i}") for i, (label, text) in enumerate(rows, start=1)])
    return LabeledData("test", grouped, "a test", held_out=list(held_out))


# ---- formats -----------------------------------------------------------------------------------------------------------------------------

FORMATS = {
    "plain.txt": "spam\tWIN a \"prize\", now\nham\tsee you at 5\n\nspam\tcall 0900\nham\tok, then\n",
    "header.tsv": "text\tlabel\nWIN a \"prize\", now\tspam\nsee you at 5\tham\ncall 0900\tspam\nok, then\tham",
    "quoted.csv": 'id,Category,Message\n1,spam,"WIN a ""prize"", now"\n2,ham,see you at 5\n3,spam,call 0900\n4,ham,"ok, then"\n',
    "windows.csv": '\ufeffv1,v2\r\nspam,"WIN a ""prize"", now"\r\nham,see you at 5\r\nspam,call 0900\r\nham,"ok, then"\r\n',
    "rows.json": json.dumps([{"label": label, "text": text} for label, text in ROWS]),
    "rows.jsonl": "".join(json.dumps({"text": text, "class": label, "n": 1}) + "\n\n" for label, text in ROWS),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    data = load_labeled(write(tmp_path / name, FORMATS[name]))
    assert [(row.label, row.text) for row in data.rows] == ROWS
    assert data.labels == ["ham", "spam"] and any("guessed" in note for note in data.notes)


def test_places_name_lines_and_records(tmp_path):
    assert [r.place for r in load_labeled(write(tmp_path / "a.txt", FORMATS["plain.txt"])).rows] == [
        "line 1",
        "line 2",
        "line 4",
        "line 5",
    ]
    assert load_labeled(write(tmp_path / "a.json", FORMATS["rows.json"])).rows[0].place == "record 1"
    assert load_labeled(write(tmp_path / "b.csv", 'text,label\n"two\nlines",a\nb,b\n')).rows[1].place == "line 4"


def test_quotes_in_a_tsv_mean_themselves(tmp_path):
    data = load_labeled(write(tmp_path / "a.tsv", 'ham\t"Hello\nham\tyou said "no"\nspam\t"\n'))
    assert [row.text for row in data.rows] == ['"Hello', 'you said "no"', '"']


def test_columns_can_be_named_also_by_number(tmp_path):
    path = write(tmp_path / "a.csv", "id,title,body,kind\n1,x,long one,a\n2,y,long two,b\n3,z,third,a\n")
    data = load_labeled(path, text_column="title", label_column="kind")
    assert [(row.text, row.label) for row in data.rows] == [("x", "a"), ("y", "b"), ("z", "a")] and not any(
        "guess" in n for n in data.notes
    )
    assert [row.text for row in load_labeled(path, label_column="kind").rows] == [
        "long one",
        "long two",
        "third",
    ]  # "body" is a known name
    path = write(tmp_path / "b.tsv", "7\tham\thello\n8\tham\tyou\n9\tspam\twin\n")
    assert [row.text for row in load_labeled(path, text_column="3", label_column="2").rows] == ["hello", "you", "win"]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("1\turgent\n0\tsee you\n1\twin\n", {"text_column": "2", "label_column": "1"}),  # a cell that looks like a column's number
        ("question\turgent\nstatement\tsee you\nquestion\twin\n", {}),  # a label that looks like a column's name
        ("a\turgent\nb\tsee you\nc\twin\n", {"text_column": "2", "label_column": "1"}),  # no cell comes again
    ],
)
def test_a_first_line_of_data_is_no_header(tmp_path, content, options):
    data = load_labeled(write(tmp_path / "a.tsv", content), **options)
    assert [row.text for row in data.rows] == ["urgent", "see you", "win"]
    assert [row.label for row in data.rows] == [line.split("\t")[0] for line in content.splitlines()]


def test_labels_may_be_numbers_and_empty_texts_are_counted(tmp_path):
    data = load_labeled(write(tmp_path / "a.json", '[{"text": "a", "label": 1}, {"text": " ", "label": 0}, {"text": "b", "label": 2.0}]'))
    assert [row.label for row in data.rows] == ["1", "2"]
    assert "1 rows with an empty text left out (record 2)" in data.notes


TABLES = {  # as Excel, Kaggle, pandas and Hugging Face's datasets write them
    "semicolons.csv": ('text;label\ngood, really;pos\nbad;neg\n"fi;ne";pos\n', "columns separated by semicolons"),
    "headerless.csv": ("good, really;pos\nbad;neg\nfi\\;ne;pos\n".replace("\\;", ","), "columns separated by semicolons"),
    "sep.csv": ("sep=;\ntext;label\ngood, really;pos\nbad;neg\n", "columns separated by ';', as the first line says"),
    "quoted_sep.csv": ('"sep=|"\r\ntext|label\r\ngood, really|pos\r\nbad|neg\r\n', "columns separated by '|', as the first line says"),
    "tabs.csv": ("text\tlabel\ngood, really\tpos\nbad\tneg\n", "columns separated by tabs"),
    "bars.txt": ("label|text\npos|good, really\nneg|bad\n", "columns separated by bars"),
    "commas.tsv": ('label,text\npos,"good, really"\nneg,bad\n', "columns separated by commas"),
    "kaggle.csv": ('v1,v2,,,\npos,"good, really",,,\nneg,bad,,,\npos,ok,,,\n', "3 empty columns left out"),
    "trailing.csv": ('label,text\npos,"good, really",\nneg,bad,,\n,,\n', ""),
    "index.csv": (',text,label\n0,"good, really",pos\n1,bad,neg\n', ""),
    "lines.json": ('{"text": "good, really", "label": "pos"}\n{"text": "bad", "label": "neg"}\n', "one object per line, as in a file named .jsonl"),
    "list.jsonl": ('[{"text": "good, really", "label": "pos"},\n {"text": "bad", "label": "neg"}]\n', ""),
    "one.jsonl": ('{"text": "good, really", "label": "pos"}\n', ""),
    "columns.json": ('{"text": {"0": "good, really", "1": "bad"}, "label": {"0": "pos", "1": "neg"}}', ""),
    "lists.json": ('{"text": ["good, really", "bad"], "label": ["pos", "neg"]}', ""),
    "split.json": ('{"columns": ["text", "label"], "index": [0, 1], "data": [["good, really", "pos"], ["bad", "neg"]]}', ""),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_programs(tmp_path, name):
    content, note = TABLES[name]
    data = load_labeled(write(tmp_path / name, content))
    assert [(row.text, row.label) for row in data.rows[:2]] == [("good, really", "pos"), ("bad", "neg")][: len(data.rows)]
    assert len(data.rows) == (1 if name == "one.jsonl" else 3 if name[:4] in ("semi", "head", "kagg") else 2)
    assert not note or note in data.notes


def test_the_overflow_of_a_text_is_no_reason_to_refuse_a_table(tmp_path):
    """Kaggle's spam.csv: three nameless columns with something in a few rows."""
    path = write(tmp_path / "spam.csv", "v1,v2,,,\nham,see you, then,,\nspam,win,,,\nham,ok,,,\n")
    data = load_labeled(path, text_column="v2", label_column="v1")
    assert [(row.label, row.text) for row in data.rows] == [("ham", "see you"), ("spam", "win"), ("ham", "ok")]
    assert read_table(path, (), ("v1",)).columns == ["v1", "v2", "3"]


def test_utf16_as_excel_saves_it(tmp_path):
    (tmp_path / "a.txt").write_bytes("label\ttext\r\npos\tgood\r\nneg\tna\u00efve\r\n".encode("utf-16"))
    assert [row.text for row in load_labeled(tmp_path / "a.txt").rows] == ["good", "na\u00efve"]


def test_numbers_that_are_equal_are_one_label(tmp_path):
    rows = '{"text": "a", "label": 1}\n{"text": "b", "label": 1.0}\n{"text": "c", "label": 0.0}\n{"text": "d", "label": 0.5}\n'
    assert [row.label for row in load_labeled(write(tmp_path / "a.jsonl", rows)).rows] == ["1", "1", "0", "0.5"]
    truths = '{"text": "a", "label": true}\n{"text": NaN, "label": false}\n{"text": "c", "label": false}\n'
    data = load_labeled(write(tmp_path / "b.jsonl", truths))
    assert data.labels == ["False", "True"] and "1 rows with an empty text left out (line 2)" in data.notes


def test_labels_that_differ_in_writing_only_are_noted(tmp_path):
    data = load_labeled(write(tmp_path / "a.csv", "text,label\na,Spam\nb,spam\nc,1\nd,1.0\ne,ham\n"))
    assert data.labels == ["1", "1.0", "Spam", "ham", "spam"]
    end = "differ in writing only and count as different classes; write them alike if they are one"
    assert f"labels 'Spam' and 'spam' {end}" in data.notes and f"labels '1' and '1.0' {end}" in data.notes
    assert not any("differ" in note for note in load_labeled(write(tmp_path / "b.csv", "text,label\na,1.0\nb,2.0\n")).notes)


def test_a_path_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path / "a.csv", "text,label\na,b\nc,d\n")
    assert len(load_labeled("~/a.csv").rows) == 2


@settings(max_examples=25)
@given(
    rows=st.lists(st.tuples(st.sampled_from("xyz"), st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1)), min_size=1)
)
def test_any_text_survives_json(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for label, text in rows), encoding="utf-8")
    kept = [(label, text) for label, text in rows if text.strip()]
    if kept:
        assert [(row.label, row.text) for row in load_labeled(path).rows] == kept


# ---- bad input ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "text,label\na,b\nc,d,e\n", {}, "a.csv: line 3: 3 columns, expected 2 as in the first line; put a text that holds a comma"),
        ("a.tsv", "ham\ta\tb\nham\tc\n", {}, "a.tsv: line 2: 2 columns, expected 3 as in the first line; save texts that hold a tab"),
        ("a.csv", 'text,label\n"a,b\n', {}, 'a.csv: line 2: a quote is opened and not closed, expected a " at the end'),
        ("a.csv", 'text,label\na,b\nc,"d\ne,f\ng,h\n', {}, "a.csv: line 3: a quote is opened and not closed"),
        ("a.csv", "text,text,label\na,b,c\n", {}, "a.csv: line 1: column 'text' twice, expected different names; rename one"),
        ("a.csv", "label;text\nx;a\ny;b;c\n", {}, "a.csv: line 3: 3 columns, expected 2 as in the first line; put a text that holds a semicolon"),
        ("a.csv", "label text\nx a\n", {}, "a.csv: columns 'label text', expected to recognize one of texts and one of labels"),
        ("a.csv", "text;label|x\na;b|y\nc;d|z\n", {}, "a.csv: columns separated by semicolons or bars, expected one way to read it; write the line sep="),
        ("a.csv", "sep=;\ntext;label\na;b;c\n", {}, "a.csv: line 3: 3 columns, expected 2"),
        ("a.csv", "text,label\na,b\n", {"text_column": "text", "label_column": "text"}, "column 'text' for texts and for labels, expected two"),
        ("a.json", r'[{"text": "\ud800 a", "label": "x"}]', {}, "record 1: text holds a lone surrogate, expected Unicode text"),
        ("a.json", r'[{"text": "a", "label": "\ud800"}]', {}, "record 1: label holds a lone surrogate, expected Unicode text"),
        ("a.csv", "text,label\na,b\n", {"text_column": "txt"}, "no column 'txt', expected one of 'text', 'label'; did you mean 'text'?"),
        ("a.csv", "text,label\na,b\n", {"label_column": "zz"}, "expected one of 'text', 'label'; name one of them with --label-column"),
        ("a.csv", "p,q,r\n1,2,3\n4,5,6\n", {}, "a.csv: columns 'p', 'q', 'r', expected to recognize one of texts and one of labels; name them"),
        ("a.csv", "text,label\na,x\nb,\n", {}, "a.csv: line 3: label is empty, expected one label"),
        ("a.json", '[{"text": "a", "label": "x"}, {"text": "b"}]', {}, "a.json: record 2: label is missing, expected one label"),
        ("a.json", '[{"text": "a", "label": "x"}, {"text": 5, "label": "x"}]', {}, "record 2: text is a int, expected a text"),
        ("a.json", '[{"text": "a", "label": ["x"]}]', {}, "record 1: label is a list, expected one label"),
        ("a.json", '{"text": "a"}', {}, "a.json: a JSON dict with 'text', expected a list of objects; save the rows as a list, or one object"),
        ("a.json", '{"train": [{"text": "a", "label": "b"}], "test": []}', {}, "a.json: a JSON dict with 'train', 'test', expected a list"),
        ("a.json", '{"columns": [["text"], {}], "data": 5}', {}, "a.json: a JSON dict with 'columns', 'data', expected a list"),
        ("a.json", '"x"', {}, "a.json: a JSON str, expected a list of objects"),
        ("a.json", '{"text": "a", "label": "b"}\n{"text": \n', {}, "a.json: line 2: Expecting value"),
        ("a.json", '[{"text": "a"}, \n{"text": ]', {}, "a.json: Expecting value: line 2"),
        ("a.json", '[{"text": "a", "label": 1}, {"text": "b", "label": true}]', {}, "labels True (record 2) and 1 (record 1), expected truth values"),
        ("a.jsonl", '{"text": "a", "label": NaN}\n', {}, "a.jsonl: line 1: label is null or NaN, expected one label"),
        ("a.jsonl", '{"text": "a", "label": Infinity}\n', {}, "a.jsonl: line 1: the number Infinity, expected valid JSON; repair it there"),
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": \n', {}, "a.jsonl: line 2: Expecting value"),
        ("a.jsonl", "[1]\n", {}, "a.jsonl: record 1: a JSON int, expected an object"),
        ("a.json", "[]", {}, "a.json: empty, expected rows"),
        ("a.csv", "", {}, "a.csv: empty, expected rows"),
        ("a.csv", "text,label\n ,x\n", {}, "a.csv: no row with text, expected some"),
        ("a.xlsx", "PK", {}, "a.xlsx: format '.xlsx', expected .txt, .csv, .tsv, .json or .jsonl; rename or convert"),
    ],
)  # fmt: skip
def test_bad_files_are_named_with_row_field_and_problem(tmp_path, name, content, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_labeled(write(tmp_path / name, content), **options)


def test_files_that_are_not_there_or_not_utf8(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"data 'sms_spam': no such file, expected one of doc-sections, sms-spam, .*did you mean"):
        load_labeled("sms_spam")
    (tmp_path / "a.csv").write_bytes("text,label\ncaf\u00e9,x\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a.csv: byte 0xe9 at offset 14 is not UTF-8"):
        load_labeled(tmp_path / "a.csv")


# ---- checking, balancing, splitting ------------------------------------------------------------------------------------------------------

labeled = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 30).map(lambda n: f"Text {n}")), min_size=12, max_size=80
).map(data_of)  # fmt: skip


def test_check_counts_what_a_person_should_know():
    data = data_of([("a", "Same text"), ("a", "same  TEXT"), ("b", "same text"), ("a", "other")])
    found = check(data.rows, lengths=[2, 2, 2, 9], limit=8)
    assert (found["rows"], found["labels"], found["duplicates"].split(";")[0]) == (
        "4",
        "a 3 (75%), b 1 (25%)",
        "2 rows repeat an earlier text",
    )
    assert found["conflicts"] == "1 equal texts with different labels, as line 1 and line 3"
    assert found["lengths"] == "at most 9 tokens; 1 texts are longer than the context" and "fewer than 50 rows of a, b" in found["warning"]
    assert "conflicts" not in check(data.rows[:2], lengths=[2, 2], limit=8)


def test_near_copies_can_be_grouped_too():
    words = "you have won a prize of 1000 pounds call this number now 090"
    rows = [LabeledText(text, "spam", "") for text in (words + " 1", words + " 2", "something else")]
    assert [row.group for row in group_copies(rows)] == [0, 1, 2]
    assert [row.group for row in group_copies(rows, near_copies=True)] == [0, 0, 1]


@given(data=labeled, seed=st.integers(0, 99), how=st.sampled_from(["none", "under", "over"]))
def test_balancing_evens_out_the_labels_and_invents_nothing(data, seed, how):
    rows = balance(data.rows, how, seed)
    before, after = Counter(row.label for row in data.rows), Counter(row.label for row in rows)
    assert set(rows) <= set(data.rows) and after.keys() == before.keys() and rows == balance(data.rows, how, seed)
    if how == "under":
        assert set(after.values()) == {min(before.values())} and not Counter(rows) - Counter(data.rows)
    elif how == "over":
        assert set(after.values()) == {max(before.values())} and not Counter(data.rows) - Counter(rows)
    else:
        assert rows == data.rows


@given(data=labeled, seed=st.integers(0, 99), stratified=st.booleans())
def test_the_split_is_a_partition_that_never_divides_a_group(data, seed, stratified):
    try:
        parts = split(data, seed=seed, stratified=stratified)
    except ValueError as error:
        assert re.match(r"label '\w': \d different text|split: label '\w' has no training row|labels: only", str(error))
        return
    sides = [parts.train, parts.validation, parts.test]
    assert Counter(row for side in sides for row in side) == Counter(data.rows) and all(sides)
    groups = [{row.group for row in side} for side in sides]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert parts == split(data, seed=seed, stratified=stratified)
    largest = max(Counter(row.group for row in data.rows).values())
    if not stratified:
        for side, share in zip(sides, (0.7, 0.1, 0.2), strict=True):
            assert abs(len(side) - share * len(data.rows)) <= 2 * largest


def test_stratified_parts_have_each_labels_share():
    data = data_of([("rare" if i % 10 == 0 else "often", f"text {i}") for i in range(1000)])
    parts = split(data, seed=3, stratified=True)
    assert [Counter(row.label for row in side)["rare"] for side in (parts.train, parts.validation, parts.test)] == [70, 10, 20]
    assert [len(side) for side in (parts.train, parts.validation, parts.test)] == [700, 100, 200]
    assert split(data, seed=4).test != parts.test


def test_test_rows_that_were_fixed_beforehand_stay_so():
    held_out = [LabeledText("held", "a", "elsewhere")]
    parts = split(data_of([(label, f"{label} {i}") for label in "ab" for i in range(40)], held_out), seed=0)
    assert parts.test == held_out and (len(parts.train), len(parts.validation)) == (70, 10)


def test_data_that_cannot_be_split_says_why():
    with pytest.raises(ValueError, match=r"labels: only \['a'\] in 9 rows, expected at least 2 different; check the label column"):
        split(data_of([("a", f"{i}") for i in range(9)]))
    rows = [("a", f"{i}") for i in range(20)]
    with pytest.raises(
        ValueError, match=r"label 'b': 2 different texts, expected at least 3, one each for training, validation, test; add"
    ):
        split(data_of([*rows, ("b", "x"), ("b", "X"), ("b", "y")]))
    with pytest.raises(
        ValueError, match=r"split: label 'c' has no training row, expected each label there; split by another --seed, or with --stratified"
    ):
        split(data_of([*rows, *[("b", f"b{i}") for i in range(9)]], [LabeledText("t", "c", "")]))
    with pytest.raises(ValueError, match=r"split: fractions \(1, 0, 0\), expected three positive shares"):
        split(data_of([*rows, *[("b", f"b{i}") for i in range(9)]]), (1, 0, 0))
    with pytest.raises(ValueError, match=r"balance: 'both', expected none, under or over"):
        balance([], "both")


# ---- the named sets ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sections():
    return load_labeled("doc-sections")


def test_doc_sections_tests_on_documents_that_pretraining_does_not_see(sections):
    corpus = load_corpus("docs")
    side = {document.name: name for name in ("train", "validation") for document in getattr(corpus, name)}
    assert {side[row.place.rpartition(", ")[0]] for row in sections.rows} == {"train"}
    assert {side[row.place.rpartition(", ")[0]] for row in sections.held_out} == {"validation"}
    text = {document.name: document.text for document in corpus.train + corpus.validation}
    for row in sections.rows[::50] + sections.held_out[::20]:
        first_line = row.text.split("\n")[0]
        body = text[row.place.rpartition(", ")[0]].split(f"{row.label}\n---")[1]
        assert first_line in body and 20 <= len(row.text) <= 160


def test_doc_sections_has_five_classes_and_no_text_twice(sections):
    assert sections.labels == sorted(SECTIONS)
    for rows, least in ((sections.rows, 200), (sections.held_out, 20)):
        assert all(n >= least for n in Counter(row.label for row in rows).values())
    everything = sections.rows + sections.held_out
    assert check(everything, [1] * len(everything), 1)["duplicates"].startswith("0 rows")
    assert not any(row.text.startswith(SECTIONS) and row.text.split("\n")[0] in SECTIONS for row in everything)  # no heading gives it away
    assert doc_sections(80).rows != sections.rows and max(len(row.text) for row in doc_sections(80).rows) <= 80


@pytest.mark.skipif(not (SMS / "sms_spam.tsv").is_file(), reason="needs sms_spam.tsv")
def test_sms_spam(monkeypatch):
    monkeypatch.setenv("TINYGPT_DATA", str(SMS))
    data = load_labeled("sms-spam")
    assert Counter(row.label for row in data.rows) == {"ham": 4827, "spam": 747}
    assert len({row.text for row in data.rows if row.label == "spam"}) == 653
    assert any(row.text.startswith('"') for row in data.rows)
    parts = split(data, seed=0)
    assert not {row.group for row in parts.train} & {row.group for row in parts.test}


def archive(monkeypatch, member, content):
    def retrieve(url, path, max_bytes):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(member, content)
        return path

    monkeypatch.delenv("TINYGPT_DATA", raising=False)
    monkeypatch.setattr(downloads, "download_file", retrieve)


def test_a_file_inside_an_archive_is_checked_and_kept(tmp_path, monkeypatch):
    content = b"ham\thello\nham\tyou\nspam\twin\n"
    download = Download("sms_spam.tsv", "https://example.org/a.zip", hashlib.sha256(content).hexdigest(), "messages", "Inside", True)
    monkeypatch.setitem(downloads.DOWNLOADS, "sms-spam", download)
    archive(monkeypatch, "Inside", content)
    data = load_labeled("sms-spam", cache=tmp_path / "new")
    assert [row.label for row in data.rows] == ["ham", "ham", "spam"] and (tmp_path / "new" / "sms_spam.tsv").read_bytes() == content
    assert data.source == "messages, https://example.org/a.zip"


@pytest.mark.parametrize(("member", "content"), [("SMSSpamCollection", b"changed"), ("another name", b"")])
def test_an_archive_that_has_changed_is_refused(tmp_path, monkeypatch, member, content):
    archive(monkeypatch, member, content)
    with pytest.raises(ConnectionError, match=r"corpus 'sms-spam': found nowhere and not downloaded .*put the file as sms_spam.tsv into"):
        fetch("sms-spam", cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_labeled_set_is_no_corpus():
    assert DOWNLOADS["sms-spam"].labeled
    with pytest.raises(FileNotFoundError, match="corpus 'sms-spam': no such file or folder"):
        load_corpus("sms-spam")
