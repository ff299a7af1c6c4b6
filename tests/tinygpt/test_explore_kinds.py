"""The explorer's pages of an encoder and of an encoder-decoder: their numbers are the model's, and the page shows them in a browser."""

import base64
import os
import subprocess
import sys

import numpy as np
import pytest

import autograd as ag
from autograd import backend
from autograd.backend import to_host
from tests.tinygpt.test_explore import ROOT, TEXT, open_page, unpack
from tinygpt.data.tokenizer import BPETokenizer, encoder_tokenizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import InvalidInput
from tinygpt.inference.translate import cross_attention
from tinygpt.inspect.explore import collect, explore
from tinygpt.models import Encoder, Seq2Seq
from tinygpt.seq2seq_config import Seq2SeqConfig

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32}
SOURCE, TARGET, MASKED = "the low lamp", "is lower than the tower", "the low [MASK] is lower"
OF_SEQ2SEQ = {
    "transformer": {"n_decoder_layer": 3, "tie_word_embeddings": False},
    "t5": {"norm": "rms", "norm_position": "pre", "positions": "relative", "padding_trains": True, "tie_word_embeddings": False},
}


@pytest.fixture(scope="module")
def for_masks():
    return encoder_tokenizer([TEXT * 3], 300)


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(TEXT * 3, 280)


def louder(model):
    for p in model.parameters():
        p.data *= 3
    return model


def encoder(tokenizer, **changes):
    return louder(Encoder(EncoderConfig(**SIZES, vocab_size=tokenizer.n_vocab, **changes), seed=1))


def seq2seq(tokenizer, **changes):
    return louder(Seq2Seq(Seq2SeqConfig(**SIZES, vocab_size=tokenizer.n_vocab, **changes), seed=1))


def maps(view):
    """(layers, H, T, S) weights."""
    n, m = len(view["tokens"]), len(view["keys"])
    if view["causal"]:
        return np.array([[unpack(text, n) for text in layer] for layer in view["attention"]])
    flat = [[np.frombuffer(base64.b64decode(text), "<u2") / 65535 for text in layer] for layer in view["attention"]]
    return np.array(flat).reshape(len(flat), -1, n, m)


@pytest.mark.parametrize("changes", [{}, {"norm_position": "pre", "positions": "rotary", "norm": "rms"}], ids=["bert", "pre-norm"])
def test_an_encoder_with_a_mask(for_masks, changes):
    model = encoder(for_masks, **changes)
    data = collect(model, for_masks, MASKED)
    (view,) = data["views"]
    ids = np.array([data["ids"]])
    assert data["tokens"][0] == "[CLS]" and data["tokens"][-1] == "[SEP]" and view["keys"] == view["tokens"] and not view["causal"]
    p = to_host(ag.softmax(model(ids)).data)[0]
    for t, cell in enumerate(data["lens"][-1]):
        assert [q for _, q in cell["top"]] == pytest.approx(np.sort(p[t])[::-1][:8], rel=2e-3)
    at = data["tokens"].index("[MASK]")
    assert [t for t, answer in enumerate(data["answers"]) if answer is not None] == [at]
    probability, rank = data["lens"][-1][at]["next"]
    assert rank == 1 and data["loss"] == pytest.approx(-np.log(probability), rel=2e-3) and data["lens"][-1][0]["next"] is None
    weights = maps(view)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=2e-3)
    assert (weights[:, :, 0, 1:] > 0).any()  # the first token sees later ones
    assert all(value > 0 for value in data["gradients"]) and len(data["norms"]) == 3


def test_an_encoder_without_a_mask_is_asked_for_every_token(for_masks):
    model = encoder(for_masks)
    data = collect(model, for_masks, "the low lamp")
    ids = np.array([data["ids"]])
    assert data["answers"] == data["tokens"]
    assert data["loss"] == pytest.approx(model.loss(ids, ids).item(), rel=1e-5)
    assert "the token that stands there" in data["about"] and data["kind"] == "encoder"


@pytest.mark.parametrize("changes", OF_SEQ2SEQ.values(), ids=OF_SEQ2SEQ)
def test_an_encoder_decoder_with_a_target(tokenizer, changes):
    model = seq2seq(tokenizer, **changes)
    data = collect(model, tokenizer, SOURCE, TARGET)
    cross, own, source = data["views"]
    assert data["model"].startswith(f"2 + {model.config.n_decoder_layers} layers, 2 heads, 16 channels, ")
    source_ids, targets = (np.array([tokenizer.encode_wrapped(text).ids]) for text in (SOURCE, TARGET))
    assert cross["ids"] == own["ids"] == [0, *targets[0, :-1]] and source["ids"] == source_ids[0].tolist()
    assert "".join(cross["answers"]) == TARGET and "".join(cross["keys"]) == SOURCE and own["causal"] and not source["causal"]
    assert data["loss"] == pytest.approx(model.loss(source_ids, targets).item(), rel=1e-5)
    p = to_host(ag.softmax(model(source_ids, np.array([cross["ids"]]))).data)[0]
    for t, cell in enumerate(cross["lens"][-1]):
        assert cell["next"][0] == pytest.approx(p[t, targets[0, t]], rel=2e-3)
    np.testing.assert_allclose(maps(cross), cross_attention(model, source_ids, targets)[0], atol=2e-4)
    assert maps(cross).shape[0] == maps(own).shape[0] == len(cross["norms"]) - 1 == model.config.n_decoder_layers
    for view in data["views"]:
        np.testing.assert_allclose(maps(view).sum(axis=-1), 1, atol=2e-3)
    assert source["lens"] is None and set(source["answers"]) == {None}
    hidden = model.encode(source_ids).hidden  # after the last norm, which is the block's own only in a post-norm model
    if "norm" not in changes:
        assert source["norms"][-1] == pytest.approx(np.linalg.norm(to_host(hidden.data)[0], axis=-1), rel=1e-3)
    model.zero_grad()
    model.loss(source_ids, targets).backward()
    rows = np.linalg.norm(to_host(model.wte.weight.grad), axis=-1)
    model.zero_grad()
    once = [t for t, i in enumerate(source["ids"]) if [*source["ids"], *own["ids"], *targets[0]].count(i) == 1]
    assert once
    for t in once:
        assert source["gradients"][t] == pytest.approx(rows[source["ids"][t]], rel=2e-3)


def test_without_a_target_the_model_translates(tokenizer):
    model = seq2seq(tokenizer)
    data = collect(model, tokenizer, SOURCE)
    (written,) = model.translate([tokenizer.encode_wrapped(SOURCE).ids], model.config.n_positions)
    assert data["views"][0]["ids"] == [0, *written][: len(written)] and "as the model translates" in data["about"]


def test_a_target_is_cut_by_the_tokenizer_of_its_language(tokenizer, monkeypatch):
    """Marian has a vocabulary file for each."""
    of_target = BPETokenizer.train(TARGET * 9, 262)
    monkeypatch.setattr(BPETokenizer, "target", of_target)
    own = collect(seq2seq(tokenizer), tokenizer, SOURCE, TARGET)["views"][1]
    assert own["ids"] == [0, *of_target.encode(TARGET)[:-1]] != [0, *tokenizer.encode(TARGET)[:-1]]


def test_what_cannot_be_shown_is_said(tokenizer, for_masks):
    with pytest.raises(InvalidInput, match=r"explore: the target 'x' for a model that reads one text, expected none; leave --target out"):
        collect(encoder(for_masks), for_masks, SOURCE, "x")
    with pytest.raises(InvalidInput, match=r"explore: a target of 33 tokens, expected 1 to 32 \(the model's context\), one at least"):
        collect(seq2seq(tokenizer), tokenizer, SOURCE, "zq" * 16 + "z")
    with pytest.raises(InvalidInput, match=r"explore: a prompt of \d+ tokens, expected 2 to 32"):
        collect(encoder(for_masks), for_masks, "zq" * 40)
    with pytest.raises(InvalidInput, match=r"explore: an encoder without a head for masked words, expected one that predicts them"):
        collect(encoder(for_masks, head=False), for_masks, SOURCE)


@pytest.mark.skipif(backend.name != "numpy", reason="the command starts a process of its own")
def test_the_command_on_a_checkpoint_directory(for_masks, tmp_path):
    encoder(for_masks).save_pretrained(tmp_path / "model", for_masks)
    command = [sys.executable, "-m", "tinygpt", "explore", "--run", "model", "--prompt", MASKED]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and "nats for each answer" in done.stdout, done.stderr
    assert "encoder" in (tmp_path / "explore.html").read_text(encoding="utf-8")


@pytest.mark.skipif(backend.name != "numpy", reason="a page is a page")
def test_in_a_browser_an_encoder_sees_both_ways(browser, for_masks, tmp_path):
    data = explore(encoder(for_masks), for_masks, MASKED, tmp_path / "page.html")
    page, errors = open_page(browser, tmp_path / "page.html", viewport={"width": 1280, "height": 900})
    at, weights = data["tokens"].index("[MASK]"), maps(data["views"][0])
    assert page.inner_text("#heading") == "Inside an encoder" and page.locator("#choice").is_hidden()
    assert f"token {at} of" in page.inner_text("#selected") and page.locator(".masked").is_hidden()  # the mask is selected first
    last = len(data["tokens"]) - 1
    box = page.locator("#big").bounding_box()
    page.locator("#big").hover(position={"x": box["width"] * (last + 0.5) / (last + 1), "y": box["height"] * 0.5 / (last + 1)})
    readout = page.inner_text("#readout")
    assert f"(0) attends to [SEP] ({last})" in readout
    assert float(readout.rpartition(":")[2].strip(" <%")) == pytest.approx(100 * weights[0, 0, 0, last], abs=0.06)
    page.hover(f".token >> nth={at}")
    assert page.inner_text("#lens tr >> nth=0").startswith("\tanswer: ") and "likeliest token at each mask" in page.inner_text("#about")
    assert errors == []
    page.close()


@pytest.mark.skipif(backend.name != "numpy", reason="a page is a page")
def test_in_a_browser_three_kinds_of_attention_can_be_chosen(browser, tokenizer, tmp_path):
    data = explore(seq2seq(tokenizer, n_decoder_layer=3), tokenizer, SOURCE, tmp_path / "page.html", target=TARGET)
    page, errors = open_page(browser, tmp_path / "page.html", viewport={"width": 1280, "height": 900})
    assert page.locator("#views option").all_inner_texts() == [view["name"] for view in data["views"]]
    for i, view in enumerate(data["views"]):
        page.select_option("#views", str(i))
        n, m, weights = len(view["tokens"]), len(view["keys"]), maps(view)
        assert page.locator("#bar .token").count() == n and page.locator("#maps button").count() == weights.shape[0] * weights.shape[1]
        assert page.locator("#keys .token").count() == (m if i == 0 else 0)
        assert page.evaluate("[$('big').width, $('big').height]") == [m, n]
        page.hover("#bar .token >> nth=1")
        row, shown = weights[0, 0, 1], page.inner_text("#readout")
        assert "attends to: " in shown and f"({row.argmax()}) " in shown.split("attends to:")[1].split(",")[0]
        assert page.locator("#predictions").is_visible() == (i < 2) and page.locator(".masked").is_visible() == view["causal"]
        height = page.locator("#big").bounding_box()["height"]
        assert height < 480  # a long target next to a short source does not make the page endless
    assert errors == []
    page.close()
