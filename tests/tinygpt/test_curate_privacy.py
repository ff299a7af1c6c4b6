"""Redaction finds what was planted and nothing else; decontamination finds an item however it is written, and leaves the rest alone."""

import hashlib
import importlib.util
import json
import pickle
import random
import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import strategies
from tinygpt.curate import contamination, privacy
from tinygpt.curate.contamination import Decontaminate, Decontamination, item_texts
from tinygpt.curate.documents import Document, read_shard, write_shard
from tinygpt.curate.privacy import KINDS, Redact, find, is_iban, luhn, make_key, redact
from tinygpt.curate.report import StepReport
from tinygpt.evaluation.items import Item

ROOT = Path(__file__).parent.parent.parent


def benchmark():
    spec = importlib.util.spec_from_file_location("redaction", ROOT / "benchmarks" / "redaction.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Redaction -------------------------------------------------------------------------------------------------------------------

SENTENCES = {
    "Write to anna@example.org or call 030 1234567.": "Write to <EMAIL> or call <PHONE>.",
    "メールはfoo@example.comです。電話は5272868387です。": "メールは<EMAIL>です。電話は<PHONE>です。",
    "'a@x.org', `a@x.org`, **a@x.org**, |a@x.org|, {a@x.org}": "'<EMAIL>', `<EMAIL>`, **<EMAIL>**, |<EMAIL>|, {<EMAIL>}",
    "https://x.org/?mail=a.b@x.org&c=1, https://x.org/a.b@x.org, a@x.org(work)": "https://x.org/?mail=<EMAIL>&c=1, https://x.org/<EMAIL>, <EMAIL>(work)",
    "...a@x.org, ~a.b@x.org!": "...<EMAIL>, ~<EMAIL>!",
    "müller@straße.de, o'neil+x@a-b.co.uk": "<EMAIL>, <EMAIL>",
    "(591)341-7776, 206.269.0743x9150, +1-780-563-6083x7783": "<PHONE>, <PHONE>, <PHONE>",
    "+49 (0) 9141 777631, (03449) 78690 und 04 15 39 15 00": "<PHONE>, <PHONE> und <PHONE>",
    "020 7946 0958 or 080-9141-7776 or +33 6 08 68 38 73": "<PHONE> or <PHONE> or <PHONE>",
    "1234 4111 1111 1111 1111 1234": "1234 <CARD> 1234",
    "3782 822463 10005, 3056-930902-5904, 0604 2351 5364": "<CARD>, <CARD>, <CARD>",
    "DE44 5001 0517 5407 3249 31, GB82WEST12345698765432": "<IBAN>, <IBAN>",
    "8.8.8.8 is the DNS server 8.8.8.8; 93.184.216.34:80": "8.8.8.8 is the DNS server <IP>; <IP>:80",
    "2606:4700::1111 and 2001:4860:4860:0:0:0:0:8888": "<IP> and <IP>",
    "postgres://joe:pa55@db.example.com/x": "postgres://<KEY>@db.example.com/x",
    'AWS_SECRET_ACCESS_KEY="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"': 'AWS_SECRET_ACCESS_KEY="<KEY>"',
    "https://hooks.slack.com/services/T000/B000/XXXX": "https://hooks.slack.com/services/<KEY>",
    "a -----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY----- b": "a <KEY> b",
    "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\nIIcut\n": "<KEY>",
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,12\n\nMHcCAQEE\nIIcut": "<KEY>",
    "/home/anna/x, /Users/bob, file:///home/c.d/e": "/home/<USER>/x, /Users/<USER>, file:///home/<USER>/e",
    r"C:\Users\Carl Maria\doc C:/Users/dora/x C:\\Users\\eve\\": r"C:\Users\<USER>\doc C:/Users/<USER>/x C:\\Users\\<USER>\\",
}
KEPT = [
    "version 1.0.0.1, numpy==1.26.4.1, Version 93.184.216.34 and v10.200.30.4",
    "192.168.0.1 10.0.0.1 127.0.0.1 192.0.2.7 ::1 2001:db8::1 fe80::1:2 fd00:1:2:3:4:5:6:7 std::vector x[2000::2] 12:34:56",
    "ISBN 0306406152, 978-0-306-40615-7, ISSN 0378-5955, Lynn 02139-4307, 7732-18-5",
    "2024-05-17 01.02.2023 20240517 1700000000 1700000000000 3.1415926535 x = +1.2345678 + 49",
    "4111111111111112 GB83WEST12345698765432 0123456789",
    "x@self.weight, q@k.transpose(1), hidden@weights.sum(0), x@w.T, https://git@github.com/a, icon@2x.png, react@16.8.0, git@github.com:a/b, @decorator",
    "/home/user/x /home/runner C:\\Users\\Public example.com/home/news /usr/home pk_live_1234567890abcdef sk-learn",
    hashlib.sha256(b"").hexdigest(),
    "call f(1234, 5678) 2 times; 555-0199",
    "doi:10.1016/0024-3795(87)90118-2, x + 41975630244216*z, 01:01:01.000001024, 0987654321, OID 1.3.101.112",
    "/home/index.js:3 and s3://{access_key}:{secret_key}@bucket/x",
]


@pytest.mark.parametrize("text", SENTENCES)
def test_marks_stand_for_the_values_and_nothing_else(text):
    assert redact(text).text == SENTENCES[text]
    assert sum(redact(text).counts.values()) == SENTENCES[text].count("<")


@pytest.mark.parametrize("text", KEPT)
def test_what_only_looks_like_personal_data_stays(text):
    assert redact(text) == (text, {})


def test_recall_and_precision_on_planted_values():
    pytest.importorskip("faker", reason="faker is not installed: pip install faker")
    result = benchmark().measured(400, seed=1)
    assert result["recall"] | {"phone": 1.0} == dict.fromkeys(("email", "phone", "card", "iban", "ip"), 1.0), result["missed"]
    assert result["recall"]["phone"] >= 0.95 and result["precision"] >= 0.99


def test_phone_numbers_of_all_countries():
    pytest.importorskip("phonenumbers", reason="phonenumbers is not installed: pip install phonenumbers")
    module = benchmark()
    for form, sentences in module.countries().items():
        missed, _ = module.misses_and_alarms(sentences)
        assert len(missed) <= {"international": 0.01, "national": 0.08}[form] * len(sentences), missed


def test_keys_and_home_paths_by_their_forms():
    module = benchmark()
    assert module.misses_and_alarms(module.forms(3, 400)) == ([], [])
    _, alarms = module.misses_and_alarms(module.clean(5, 600))
    assert len(alarms) <= 3


def test_the_committed_report_is_what_the_page_says():
    result = json.loads((ROOT / "benchmarks" / "results" / "redaction.json").read_text(encoding="utf-8"))
    assert result["n"] == 1000 and len(result["missed"]) == round(1000 * (1 - sum(result["recall"].values()) / 5))
    page = (ROOT / "docs" / "curation.md").read_text(encoding="utf-8")
    assert benchmark().table(result).partition("\n\n")[0] in page


@given(st.sampled_from(["4", "51", "2221", "34", "6011", "35", "36"]), strategies.seeds, st.sampled_from(["", " ", "-"]))
def test_cards_by_rule_are_found_with_separators(prefix, seed, sign):
    length = {"34": 15, "36": 14}.get(prefix, 16)
    body = prefix + "".join(random.Random(seed).choices(string.digits, k=length - len(prefix) - 1))
    digits = next(body + d for d in string.digits if luhn(body + d))
    groups = {15: (4, 6, 5), 14: (4, 6, 4)}.get(length, (4, 4, 4, 4))
    value = sign.join(digits[sum(groups[:i]) : sum(groups[: i + 1])] for i in range(len(groups)))
    assert redact(f"paid with {value}, thanks").text == "paid with <CARD>, thanks"
    wrong = digits[:-1] + str((int(digits[-1]) + 1) % 10)
    assert not luhn(wrong) and "<CARD>" not in redact(f"paid with {wrong}, thanks").text


@given(st.sampled_from(sorted(privacy._IBAN_LENGTHS.items())), strategies.seeds, st.booleans())
def test_ibans_by_rule_are_found_with_blanks(country, seed, grouped):
    code, length = country
    rest = "".join(random.Random(seed).choices(string.digits, k=length - 4))
    check = 98 - int("".join(str(int(c, 36)) for c in rest + code + "00")) % 97  # ISO 7064
    plain = f"{code}{check:02d}{rest}"
    value = " ".join(plain[i : i + 4] for i in range(0, length, 4)) if grouped else plain
    assert is_iban(value) and redact(f"to {value}.").text == "to <IBAN>."
    other = f"{code}{check % 97 + 2:02d}{rest}"
    assert not is_iban(other) or int(other[2:4]) % 97 == check % 97


_PARTS = [*SENTENCES, *KEPT, "phone", "Telefon:", " ", "-", ".", "1", "00", "+", "@", "/home/", "ab", "<EMAIL>", "版", "電話"]


@settings(max_examples=60)
@given(st.lists(st.sampled_from(_PARTS), max_size=7), st.text(max_size=12), st.sampled_from([b"", b"key"]))
def test_redacting_twice_changes_nothing(parts, text, key):
    once = redact("".join(parts) + text, key=key)
    assert redact(once.text, key=key) == (once.text, {})
    assert find(once.text) == [] and (bool(once.counts) or once.text == "".join(parts) + text)


@given(st.text(st.characters(exclude_categories=["Cs", "Nd"], exclude_characters="@/\\")))
def test_text_without_digits_signs_and_keys_is_never_changed(text):
    text = text.replace("-----BEGIN", "")
    assert any(sign in text for sign in privacy._TOKEN_SIGNS) or redact(text) == (text, {})


def test_stable_marks_need_the_key(tmp_path):
    make_key(tmp_path / "key")
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    text = "anna@example.org, ANNA@example.org, bob@example.org, 030 1234567, (030) 123 45 67"
    step = Redact(key_file=str(tmp_path / "key"))
    marks = [mark.strip() for mark in step(Document("a", text)).document.text.split(",")]
    assert marks[0] == marks[1] != marks[2] and marks[3] == marks[4] and all(len(mark.partition("_")[2]) == 9 for mark in marks)
    make_key(tmp_path / "other")
    other = Redact(key_file=str(tmp_path / "other"))
    assert other(Document("a", text)).document.text != step(Document("a", text)).document.text and other.settings() != step.settings()
    assert (tmp_path / "key").read_text().strip() not in json.dumps(step.settings())
    with pytest.raises(FileExistsError):
        make_key(tmp_path / "key")
    with pytest.raises(FileNotFoundError, match="expected the secret of stable marks"):
        Redact(key_file=str(tmp_path / "none")).settings()
    (tmp_path / "bad").write_text("secret")
    with pytest.raises(ValueError, match="no key, expected 64 hexadecimal digits"):
        Redact(key_file=str(tmp_path / "bad"))(Document("a", text))


def test_the_step_counts_and_cleans_metadata():
    step = pickle.loads(pickle.dumps(Redact(("email", "phone"))))
    document = Document("a", "a@b.org 8.8.4.200", "s", {"by": "x@y.org", "tags": ["c@d.org", 3], "n": {"m": None}})
    outcome = step(document)
    assert outcome.document == Document("a", "<EMAIL> 8.8.4.200", "s", {"by": "<EMAIL>", "tags": ["<EMAIL>", 3], "n": {"m": None}})
    assert outcome.counts == {"email": 3} and step.settings() == {"kinds": ["email", "phone"], "key": ""}
    named = [step(Document(f"s/{name}@example.org.jsonl:1", "", metadata={"a@b.org": 1})).document for name in ("anna", "emma")]
    assert named[0].id.startswith("s/<EMAIL>") and named[0].metadata == {"<EMAIL>": 1} and named[0].id != named[1].id
    clean = Document("b", "nothing here", "s")
    assert step(clean).document is clean
    with pytest.raises(ValueError, match=r"redact: kind 'e-mail', expected one of key, email.*did you mean 'email'"):
        Redact(("e-mail",))(document)
    assert set(KINDS) == set(privacy._FINDERS)


# Decontamination -------------------------------------------------------------------------------------------------------------

QUESTION = "Which of the three famous bridges over the river was the first to be closed for repairs in winter?"
FILLER = " ".join(f"filler{i} words{i * i} that nobody{i} asks{i + 7} about" for i in range(60))


def rows(path, *questions):
    items = [{"question": q, "choices": ["the old one", "the new one", "none", "both"], "answer": 1} for q in questions]
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return str(path)


@settings(max_examples=60)
@given(strategies.seeds, st.integers(0, 300), st.booleans())
def test_a_planted_item_is_found_however_it_is_written(tmp_path_factory, seed, at, first):
    file = rows(
        tmp_path_factory.getbasetemp() / "items.jsonl", "Some other question of enough words that nobody ever put anywhere?", QUESTION
    )
    rng = random.Random(seed)
    words = [rng.choice([str.lower, str.upper, str.title])(w) + rng.choice(["", ",", "!", '"']) for w in QUESTION.split()]
    planted = "".join(word + rng.choice([" ", "\n", "  ", "\t"]) for word in words)
    before, after = FILLER.split(" ")[:at], FILLER.split(" ")[at:]
    text = " ".join([*before, planted, *after])
    outcome = Decontaminate((file,))(Document("d", text))
    assert outcome.document is not None and [note["items"] for note in outcome.notes] == [["items.jsonl, row 2"]]
    left = outcome.document.text
    assert "closed" not in left.lower() and set(left.split()) <= set(FILLER.split())
    gone = len(text) - len(left)
    assert len(planted) <= gone <= len(planted) + 2 * (200 + 20) + 200  # and a piece too short to keep
    assert Decontaminate((file,))(outcome.document).document is outcome.document


def test_clean_documents_are_untouched(tmp_path):
    step = Decontaminate((rows(tmp_path / "items.jsonl", QUESTION),))
    for text in (FILLER, "Which of the three famous bridges over the river was the", "", QUESTION.replace("river", "sea")):
        document = Document("d", text)
        outcome = step(document)
        assert outcome.document is document and not outcome.counts


def test_what_is_left_decides(tmp_path):
    file = tmp_path / "held-out.txt"
    file.write_text(f"{QUESTION}\n\nA second paragraph, of just eight plain words.\n\nshort\n", encoding="utf-8")
    step = Decontaminate((str(file),))
    gone = step(Document("d", f"little before. {QUESTION} little after."))
    assert (gone.document, gone.rule, gone.limit) == (None, "rest", 200) and gone.notes[0]["items"] == ["held-out.txt, paragraph 1"]
    many = step(Document("d", (f"{FILLER} {QUESTION} " * 11)))
    assert (many.document, many.rule, many.number, many.limit) == (None, "pieces", 11, 10)
    some = step(Document("d", f"{FILLER} a second paragraph of just eight plain words {FILLER}"))
    first, second = some.document.text.split("\n\n")
    assert FILLER.startswith(first) and FILLER.endswith(second) and 200 <= len(FILLER) - len(first) < 230
    assert [name for name, _ in step.settings()["files"]] == ["held-out.txt"] and "words" in some.notes[0]
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "held-out.txt"
    other.write_text(QUESTION, encoding="utf-8")
    both = Decontaminate((str(file), str(other))).settings()["files"]
    assert [name for name, _ in both] == ["held-out.txt"] * 2 and both[0] != both[1]  # of one name, but not one file


def test_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"decontaminate .*none.txt: no such file"):
        Decontaminate((str(tmp_path / "none.txt"),))(Document("d", FILLER))
    (tmp_path / "short.txt").write_text("too short\n", encoding="utf-8")
    with pytest.raises(ValueError, match="1 texts of fewer than 8 words, expected longer ones"):
        Decontaminate((str(tmp_path / "short.txt"),))(Document("d", FILLER))


def test_labels_of_prompts_are_not_part_of_an_item():
    passage = "The passage has words."
    squad = Item("answer", (f"{passage}\n\nQuestion: Who wrote it?\nAnswer:",), (" Anna",), passage=passage)
    assert item_texts(squad) == [f"{passage} Who wrote it? Anna", passage, "Who wrote it?", "Anna"]
    mmlu = Item("choice", ("Why is it so?\nA. one\nB. two\nAnswer:",), (" A", " B"), 1)
    assert item_texts(mmlu) == ["Why is it so? one two B", "Why is it so?", "one", "two", "B"]


def test_the_stage_leaves_common_phrases(tmp_path):
    other = QUESTION.replace("bridges", "towers").replace("first", "last").replace("three", "two")
    step = Decontaminate((rows(tmp_path / "items.jsonl", QUESTION, other),))
    documents = [Document(f"d{i}", f"{FILLER} {QUESTION if i < 11 else other} {FILLER}") for i in range(13)]
    shards = [tmp_path / f"{n}.jsonl" for n in range(2)]
    for n, shard in enumerate(shards):
        write_shard(shard, documents[n::2])
    (tmp_path / "shards").mkdir()

    def run(function, n_tasks, name):
        return [pickle.loads(pickle.dumps(function))(task, n_tasks) for task in range(n_tasks)]

    (report,) = Decontamination(step).run(shards, tmp_path, run)
    found = {d.id: d.text for shard in sorted((tmp_path / "shards").iterdir()) for d in read_shard(shard)}
    assert {name for name, text in found.items() if "winter" not in text} == {"d11", "d12"}
    assert isinstance(report, StepReport) and report.changed == 2 and {note["document"] for note in report.notes} == {"d11", "d12"}
    assert Decontamination(step).settings()["most_documents"] == contamination.MOST_DOCUMENTS
