"""Pairs to translate: numbers and dates in words, a user's files, token ids and batches."""

import re
from datetime import date

import numpy as np
import pytest

from tinygpt.data import pairs as module
from tinygpt.data.pairs import PADDING, Pair, PairBatches, encode_pairs, held_out, load_pairs, speakers, train_pair_tokenizer
from tinygpt.data.tokenizer_files import load_tokenizer
from tinygpt.data.windows import IGNORED, BatchOrder

ROWS = [(f"a {word} thing", f"ein {wort} Ding") for word, wort in zip("big red new old hot".split(), "großes rotes neues altes heißes".split(), strict=True)] * 4  # fmt: skip


@pytest.fixture
def spoken():
    for name in ("num2words", "babel"):
        pytest.importorskip(name, reason="numbers and dates in words need the extra translate")


def write(path, lines, encoding="utf-8"):
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return str(path)


def texts(pairs):
    return [(pair.source, pair.target) for pair in [*pairs.train, *pairs.validation, *pairs.test]]


# Numbers and dates ------------------------------------------------------------------------------------------------------------------


def test_numbers_and_dates_in_two_languages(spoken):
    (number, day), (zahl, tag) = speakers("en"), speakers("de")
    assert number(345_123) == "three hundred and forty-five thousand, one hundred and twenty-three"
    assert zahl(345_123) == "dreihundertfünfundvierzigtausendeinhundertdreiundzwanzig"
    assert day(date(2026, 11, 26)) == "Thursday, November the twenty-sixth, twenty twenty-six"
    assert tag(date(2026, 11, 26)) == "Donnerstag, der sechsundzwanzigste November zweitausendsechsundzwanzig"
    assert day(date(1905, 3, 1)) == "Wednesday, March the first, nineteen oh-five"
    assert tag(date(1905, 3, 1)) == "Mittwoch, der erste März neunzehnhundertfünf"


def test_test_numbers_are_in_no_training_pair(spoken):
    pairs = load_pairs("numbers-and-dates", seed=3, n_numbers=600)
    part_of = held_out(1_000_000, 3)
    numbers = {
        part: {int(pair.place.split()[1]) for pair in getattr(pairs, name) if pair.kind == "single numbers"}
        for part, name in enumerate(("train", "validation", "test"))
    }
    assert [len(found) for found in numbers.values()] == [600, 30, 60]
    assert all(part_of[n] == part for part, found in numbers.items() for n in found)
    # Sentences are made of the part's own numbers and dates: what stands between two separators of a test sentence is never in training.
    number, zahl = (speakers(language)[0] for language in ("en", "de"))
    held, learned = ({zahl(n) for n in numbers[part]} for part in (module.TEST, module.TRAIN))

    def pieces(side):
        return {
            piece for pair in side for piece in re.split(r", dann | und | oder |, ", pair.target) if not re.search("tag|woch|^der ", piece)
        }

    assert not pieces(pairs.test) & learned and pieces(pairs.test) <= held and pieces(pairs.train) <= learned
    dates = [{d for pair in side for d in re.findall(r"der \w+ \w+ \w+", pair.target)} for side in (pairs.train, pairs.test)]
    assert dates[0] and dates[1] and not dates[0] & dates[1]
    kinds = {pair.kind for pair in pairs.test}
    assert kinds == {"single numbers", "single dates", *(f"sentences of {n}" for n in range(2, 9))}
    short = [n for n in numbers[module.TRAIN] if n < 1000]
    assert len(short) > 60 and len(short) < 300
    assert max(len(pair.source.split()) for pair in pairs.train) <= 80
    assert number(7) == "seven"


def test_the_seed_decides_pairs_and_split(spoken):
    one, same, other = (load_pairs("numbers", seed=seed, n_numbers=100) for seed in (0, 0, 1))
    assert texts(one) == texts(same) != texts(other)
    assert all(pair.kind == "single numbers" for pair in one.train)
    shares = np.bincount(held_out(1_000_000, 0)) / 1_000_000
    assert shares.tolist() == [0.9, 0.05, 0.05]
    assert not np.array_equal(held_out(1000, 0), held_out(1000, 1))


@pytest.mark.parametrize("n", [99, 600_001])
def test_too_few_and_too_many_numbers_are_refused(spoken, n):
    with pytest.raises(ValueError, match=rf"numbers: {n}, expected 100 to 600,000 different ones to learn from"):
        load_pairs("numbers", n_numbers=n)


def test_there_are_as_many_numbers_and_days_as_may_be_asked_for():
    numbers, days = (np.count_nonzero(held_out(n, 0) == module.TRAIN) for n in (module.LARGEST + 1, 73_049))
    assert (module.LAST_DAY - module.FIRST_DAY).days + 1 == 73_049
    assert numbers >= module.MOST_NUMBERS and days >= module.MOST_NUMBERS // 10


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "num2words", None)
    with pytest.raises(
        ImportError, match=r'num2words or babel is missing, expected them .*pip install "tinygpt\[translate\]", or give your own pairs'
    ):
        load_pairs("numbers")


# Files ------------------------------------------------------------------------------------------------------------------------------


def test_anki_and_tatoeba_and_moses_give_the_same_pairs(tmp_path):
    rows = [(f"{source} {i}", f"{target} {i}") for i, (source, target) in enumerate(ROWS)]
    anki = write(tmp_path / "deu.txt", (f"{s}\t{t}\tCC-BY 2.0 #{i} (a\u2028b)" for i, (s, t) in enumerate(rows)))
    tatoeba = write(tmp_path / "pairs.tsv", (f"{i}\t{s}\t{i + 900}\t{t}" for i, (s, t) in enumerate(rows)))
    plain = write(tmp_path / "plain.tsv", [f"{s}\t {t} " for s, t in rows] + ["", ""])
    sides = [write(tmp_path / f"corpus.{name}", (row[i] for row in rows)) for i, name in enumerate(("en", "de"))]
    found = [load_pairs(anki), load_pairs(tatoeba), load_pairs(plain), load_pairs(*sides)]
    assert all(texts(pairs) == texts(found[0]) and sorted(texts(pairs)) == sorted(rows) for pairs in found)
    assert found[0].notes == ["the first two columns taken, 1 more left out"] and "Tatoeba's numbers" in found[1].notes[0]
    assert found[2].notes == [] and found[3].source == f"files {sides[0]} and {sides[1]}" and found[3].files == tuple(sides)
    assert found[0].train[0].kind == "1 to 5 words" and re.fullmatch(r"line \d+", found[0].train[0].place)


def test_a_source_with_several_translations_is_in_one_part(tmp_path):
    rows = [(f"Hello {i // 3}" if i % 2 else f"hello  {i // 3}", f"Hallo {i}") for i in range(300)]
    pairs = load_pairs(write(tmp_path / "pairs.tsv", (f"{s}\t{t}" for s, t in rows)))
    sides = [{pair.source.lower().split()[1] for pair in part} for part in (pairs.train, pairs.validation, pairs.test)]
    assert [len(side) for side in sides] == [90, 5, 5] and len(set.union(*sides)) == 100


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a\tb", "c\t", "e\tf"], r"pairs\.tsv: line 2: empty target, expected text on both sides; remove the line$"),
        (["a\tb", " \td", "e\tf"], r"pairs\.tsv: line 2: empty source, expected text on both sides"),
        (["a\tb", "", "e\tf"], r"pairs\.tsv: line 2: no tab, expected one between source and target; two files"),
        (["a\tb", "c d"], r"pairs\.tsv: line 2: no tab"),
        ([], r"pairs\.tsv: empty, expected lines of text"),
        (["a\tb", "A\tc"], r"data: 1 different source texts, expected at least 3"),
    ],
)
def test_bad_lines_are_named(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        load_pairs(write(tmp_path / "pairs.tsv", lines))


def test_two_files_must_agree(tmp_path):
    source = write(tmp_path / "corpus.en", ["one", "two", "three", "four"])
    with pytest.raises(ValueError, match=r"corpus\.en: 4 lines, .*corpus\.de: 3, expected as many: line 4 has no translation; remove it"):
        load_pairs(source, write(tmp_path / "corpus.de", ["eins", "zwei", "drei"]))
    with pytest.raises(ValueError, match=r"corpus\.de: line 2: empty target, expected text on both sides; remove the lines"):
        load_pairs(source, write(tmp_path / "corpus.de", ["eins", "", "drei", "vier"]))
    with pytest.raises(ValueError, match=r"data: 3 names, expected a name, a file of pairs, or two files"):
        load_pairs(source, source, source)
    with pytest.raises(
        FileNotFoundError, match=r"data 'number': no such file, expected one of numbers-and-dates, numbers, .*did you mean 'numbers'\?"
    ):
        load_pairs("number")


def test_another_encoding_is_named_with_its_offset(tmp_path):
    path = write(tmp_path / "old.tsv", ["five\tfünf"], encoding="latin-1")
    with pytest.raises(
        ValueError, match=r"old\.tsv: byte 0xfc at offset 6 is not UTF-8.*iconv -f ISO-8859-1 -t UTF-8 \S*old\.tsv > new\.txt"
    ):
        load_pairs(path)


# Ids and batches --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def encoded():
    pairs = [Pair(f"line {i}", *row, "") for i, row in enumerate(ROWS, start=1)]
    tokenizer = train_pair_tokenizer(pairs, 280)
    return pairs, tokenizer, encode_pairs(pairs, tokenizer, 16)


def test_one_vocabulary_for_both_sides_with_end_and_padding(encoded, tmp_path):
    _, tokenizer, (sources, targets, _) = encoded
    assert tokenizer.n_vocab == 280 and (tokenizer.eos_id, tokenizer.pad_id) == (278, 279)
    assert {tokenizer.decode(tokenizer.encode(word)) for word in (" thing", " Ding")} == {" thing", " Ding"}
    assert all(len(tokenizer.encode(word)) == 1 for word in (" thing", " Ding"))
    assert all(ids[-1] == tokenizer.eos_id for ids in (*sources, *targets))
    assert [(tokenizer.decode(s[:-1]), tokenizer.decode(t[:-1])) for s, t in zip(sources, targets, strict=True)] == ROWS
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.fingerprint() == tokenizer.fingerprint() and again.special[PADDING] == again.pad_id == 279 and again.eos_id == 278


def test_batches_are_padded_and_end(encoded):
    _, tokenizer, (sources, targets, _) = encoded
    batches = PairBatches(sources, targets, tokenizer.pad_id)
    which = np.array([3, 0, 2])
    ids, wanted, mask = batches.batch(which)
    assert ids.shape == mask.shape and len(ids) == 3 and ids.dtype == wanted.dtype == np.int64 and mask.dtype == bool
    for row, i in enumerate(which):
        assert ids[row][mask[row]].tolist() == sources[i].tolist() and (ids[row][~mask[row]] == tokenizer.pad_id).all()
        n = len(targets[i])
        assert wanted[row, :n].tolist() == targets[i].tolist() and (wanted[row, n:] == IGNORED).all()
    assert len(batches) == len(ROWS) and batches.lengths.tolist() == [len(s) + len(t) for s, t in zip(sources, targets, strict=True)]
    order = BatchOrder(len(batches), 2, lengths=batches.lengths, together=10).epoch(0)
    assert (np.diff(batches.lengths[order]) >= 0).all()  # all twenty are of one update


def test_a_text_longer_than_the_context_is_named_or_left_out(encoded):
    pairs, tokenizer, (sources, targets, _) = encoded
    longest = max(map(len, targets))
    at = next(i for i, ids in enumerate(targets) if len(ids) == longest)
    files = ("corpus.en", "corpus.de")
    with pytest.raises(
        ValueError,
        match=rf"corpus\.de: line {at + 1}: target of {longest} tokens, expected at most {longest - 1}, the model's context; .*--leave-out-long",
    ):
        encode_pairs(pairs, tokenizer, longest - 1, files=files)
    kept = encode_pairs(pairs, tokenizer, longest - 1, files=files, leave_out_long=True)[2]
    assert 0 < len(kept) < len(pairs) and pairs[at] not in kept
    with pytest.raises(ValueError, match=r"corpus\.en: no pair within 2 tokens"):
        encode_pairs(pairs, tokenizer, 2, files=files, leave_out_long=True)
    assert max(map(len, sources)) <= longest
