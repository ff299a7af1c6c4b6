"""Scores of translations, and the table of them; what is drawn of cross-attention."""

import sys

import numpy as np
import pytest

from tinygpt.data.pairs import Pair, train_pair_tokenizer
from tinygpt.inference.translations import score_translations, scores_table, translate_texts
from tinygpt.inspect.cross_attention import Alignment, plot_cross_attention
from tinygpt.models import Seq2Seq
from tinygpt.seq2seq_config import Seq2SeqConfig

EXPECTED = ["der kleine rote Hund", "eine alte graue Katze schläft", "eins"]
GIVEN = ["der kleine rote Hund", "eine alte graue Katze", "Eins"]


def test_rows_that_no_token_has_are_never_chosen():
    """A model may have more rows than its tokenizer has tokens, as T5's."""
    tokenizer = train_pair_tokenizer([Pair("line 1", "red cat", "rote Katze", "")] * 4, 270)
    ids = {"start_id": tokenizer.pad_id, "pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}
    model = Seq2Seq(Seq2SeqConfig.preset("quick", vocab_size=tokenizer.n_vocab + 5, logits_bias=True, **ids))
    model.lm_head.bias.data[tokenizer.n_vocab + 2] = 100
    for n_beams in (1, 3):
        assert len(translate_texts(model, tokenizer, ["red cat", "cat"], n_beams=n_beams)) == 2


def test_exact_match_is_in_every_letter(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    scores = score_translations(GIVEN, EXPECTED)
    assert (scores.n, scores.exact_match, scores.bleu, scores.chrf) == (3, 1 / 3, None, None)
    assert scores.cells() == ["3", "33.3%", "-", "-"]


def test_bleu_and_chrf_are_sacrebleus():
    sacrebleu = pytest.importorskip("sacrebleu", reason="needs the extra translate")
    scores = score_translations(GIVEN, EXPECTED)
    assert scores.bleu == pytest.approx(sacrebleu.corpus_bleu(GIVEN, [EXPECTED]).score)
    assert scores.chrf == pytest.approx(sacrebleu.corpus_chrf(GIVEN, [EXPECTED]).score)
    perfect = score_translations(EXPECTED, EXPECTED)
    assert perfect.bleu == pytest.approx(100) and perfect.chrf == pytest.approx(100)
    assert score_translations(["eins", "zwei"], ["eins", "zwei"]).bleu is None  # no run of four words


def test_the_table_has_a_row_per_kind_and_one_for_all():
    table = scores_table(["short", "long", "short"], GIVEN, EXPECTED).splitlines()
    assert [line.split()[:3] for line in table[1:]] == [["short", "2", "50.0%"], ["long", "1", "0.0%"], ["all", "3", "33.3%"]]
    assert table[0].split() == ["texts", "exact", "match", "BLEU", "chrF"]


@pytest.mark.parametrize(("given", "expected"), [([], []), (["a"], ["a", "b"])])
def test_scores_need_a_reference_for_each(given, expected):
    with pytest.raises(
        ValueError, match=rf"score_translations: {len(given)} translations and {len(expected)} references, expected as many"
    ):
        score_translations(given, expected)


def test_the_picture_of_cross_attention(tmp_path):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    panels = [Alignment(["$1", "two"], ["ein", "s", "(end)"], np.full((3, 2), 0.5)), Alignment(["a"], ["b"], np.ones((1, 1)))]
    plot_cross_attention(panels, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'attention.png: matplotlib is missing, .*pip install "tinygpt\[plot\]"'):
        plot_cross_attention([], tmp_path / "attention.png")
