"""The explorer: its numbers equal the model's, and its page works in a browser, by mouse, by keyboard and on a phone."""

import base64
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

import autograd as ag
from autograd import backend
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.inspect.embedding_map import embedding_map
from tinygpt.inspect.explore import MAX_PAGE_BYTES, _saved, _shown, _text, _vectors, collect, explore, render

ROOT = Path(__file__).parent.parent.parent
TEXT = "the low lamp is lower than the tower.\nthe newest tower is the lowest. "
PROMPT = "the low lamp is <b>&"


@pytest.fixture(scope="module")
def tokenizer():
    return BPETokenizer.train(TEXT * 3, 280)


@pytest.fixture(scope="module")
def model(tokenizer):
    """With weights large enough that every number differs from 0 and from its neighbours."""
    return model_of(tokenizer)


def model_of(tokenizer, **options):
    size = {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": 64, "vocab_size": tokenizer.n_vocab, "tie_word_embeddings": False}
    config = GPTConfig(**size, **options)
    model = GPT(config, seed=1)
    for p in model.parameters():
        p.data *= 5
    return model


@pytest.fixture(scope="module")
def data(model, tokenizer):
    return collect(model, tokenizer, PROMPT)


def unpack(text, n):
    square = np.zeros((n, n))
    square[np.tril_indices(n)] = np.frombuffer(base64.b64decode(text), dtype="<u2") / 65535
    return square


def test_predictions_after_the_last_layer_are_the_models(model, data):
    ids = np.array([data["ids"]])
    p = backend.to_host(ag.softmax(model(ids)).data)[0]
    for t, prediction in enumerate(data["lens"][-1]):
        assert [q for _, q in prediction["top"]] == pytest.approx(np.sort(p[t])[::-1][:8], rel=2e-3)
        if t + 1 < ids.shape[1]:
            probability, rank = prediction["next"]
            assert probability == pytest.approx(p[t, ids[0, t + 1]], rel=2e-3)
            assert rank == (p[t] > p[t, ids[0, t + 1]]).sum() + 1
        else:
            assert prediction["next"] is None


def test_loss_and_streams_are_the_models(model, data):
    ids = np.array([data["ids"]])
    assert data["loss"] == pytest.approx(model.loss(ids[:, :-1], ids[:, 1:]).item(), rel=1e-5)
    x = model.wte(ids) + model.wpe(np.arange(ids.shape[1]))
    for depth in range(4):
        length = np.linalg.norm(backend.to_host(x.data)[0], axis=-1)
        assert data["norms"][depth] == pytest.approx(length, rel=1e-3)
        x = model.h[depth](x) if depth < 3 else x


def test_attention_is_the_models(model, data):
    ids = np.array([data["ids"]])
    n = ids.shape[1]
    x = model.wte(ids) + model.wpe(np.arange(n))
    for block, heads in zip(model.h, data["attention"], strict=True):
        qkv = backend.to_host(block.attn.c_attn(block.ln_1(x)).data)[0].astype(float)  # (T, 3C)
        q, k = (part.reshape(n, 2, 8).transpose(1, 0, 2) for part in np.split(qkv, 3, axis=-1)[:2])  # (H, T, D)
        scores = np.where(np.tri(n, dtype=bool), q @ k.swapaxes(1, 2) / math.sqrt(8), -np.inf)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        assert np.abs(np.array([unpack(text, n) for text in heads]) - p).max() < 2e-4
        x = block(x)


@pytest.mark.parametrize(
    "options",
    [
        {
            "norm": "rms",
            "positions": "rotary",
            "n_kv_head": 1,
            "activation": "silu",
            "gated": True,
            "qk_norm": "head",
            "embedding_scale": 2.0,
        },
        {"norm_position": "post", "positions": "alibi", "window": 3, "window_pattern": "SL", "embedding_norm": True},
        {"norm_position": "sandwich", "positions": "sinusoidal", "logit_softcap": 5.0},
    ],
)
def test_other_decoders_are_shown_too(tokenizer, options):
    model = model_of(tokenizer, **options)
    data, streams = collect(model, tokenizer, PROMPT), []
    for block in model.h:
        block.forward = lambda x, *rest, run=block.forward, **more: (streams.append(y := run(x, *rest, **more)), y)[1]
    test_predictions_after_the_last_layer_are_the_models(model, data)
    for found, y in zip(data["norms"][1:], streams[:3], strict=True):
        assert found == pytest.approx(np.linalg.norm(backend.to_host(y.data)[0], axis=-1), rel=1e-3)
    weights = np.array([[unpack(text, len(data["ids"])) for text in heads] for heads in data["attention"]])  # (layers, H, T, T)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=2e-3)
    assert "window" not in options or (weights[0] > 0).sum(axis=-1).max() == 3 < (weights[1] > 0).sum(axis=-1).max()
    test_gradients_are_the_models(model, data, tokenizer)


def test_gradients_are_the_models(model, data, tokenizer):
    """Of a token that occurs once, the gradient at its place is that of its row in the (untied) table."""
    ids = np.array([data["ids"]])
    model.zero_grad()
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    rows = np.linalg.norm(backend.to_host(model.wte.weight.grad), axis=-1)
    model.zero_grad()
    once = [t for t, i in enumerate(data["ids"]) if data["ids"].count(i) == 1 and t + 1 < len(data["ids"])]
    assert len(once) > 3
    for t in once:
        assert data["gradients"][t] == pytest.approx(rows[data["ids"][t]], rel=2e-3)
    assert data["gradients"][-1] == 0  # nothing after the last token is scored


def test_the_map_of_the_embeddings_is_the_tables(model, tokenizer, data):
    """Cosines as from the definition, points as from the singular value decomposition of the centered rows of length 1."""
    table, vectors = backend.to_host(model.wte.weight.data).astype(float), data["vectors"]
    rows = table / np.linalg.norm(table, axis=1, keepdims=True)
    shown, n = vectors["ids"], vectors["n_rows"]
    assert n == tokenizer.n_vocab == len(table) and sorted(shown) == list(range(n))
    assert shown[: len(set(data["ids"]))] == list(dict.fromkeys(data["ids"]))  # the prompt's first, then those of several bytes
    lengths = [len(tokenizer.token_bytes(i)) for i in shown if i not in data["ids"]]
    assert 1 not in lengths[: np.sum(np.array(lengths) > 1)] and lengths[-1] == 1
    for i, near in zip(shown, vectors["nearest"], strict=True):
        cosines = rows @ rows[i]
        cosines[i] = -np.inf
        assert [c for _, c in near] == pytest.approx(np.sort(cosines)[::-1][:10], abs=1e-4)
        assert [cosines[j] for j, _ in near] == pytest.approx([c for _, c in near], abs=1e-4)
        assert all(vectors["texts"][str(j)] == _text(tokenizer, j) for j, _ in [*near, (i, 0)])
    centered = rows - rows.mean(axis=0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    points = np.array(vectors["points"])
    for axis in (0, 1):
        expected = (u[:, axis] * s[axis])[shown]
        assert points[:, axis] * np.sign(points[0, axis]) == pytest.approx(expected * np.sign(expected[0]), abs=1e-3)
    assert vectors["shares"] == pytest.approx(s[:2] ** 2 / (s**2).sum(), abs=1e-3)


def test_of_a_large_vocabulary_a_part_is_on_the_map_and_all_of_it_is_searched(monkeypatch):
    monkeypatch.setattr("tinygpt.inspect.embedding_map.MOST_SHOWN", 3)
    monkeypatch.setattr("tinygpt.inspect.embedding_map._CHUNK", 2)
    table = np.array([[1, 0], [2, 0.1], [0, 0], [-1, 0], [0, 3], [0.5, 0.01]], dtype=np.float32)  # a row of zeros is near to none
    found = embedding_map(table, [5, 4, 5, 0, 1])
    assert found["ids"] == [5, 4, 0] and found["n_rows"] == 6
    assert [[i for i, _ in near] for near in found["nearest"]] == [[0, 1, 4, 2, 3], [1, 5, 0, 2, 3], [5, 1, 2, 4, 3]]
    assert found["nearest"][0][0][1] == pytest.approx(0.5 / math.hypot(0.5, 0.01), abs=1e-4) and found["nearest"][2][-1] == [3, -1.0]
    alone = embedding_map(np.ones((1, 1), dtype=np.float32), [0])
    assert alone == {"ids": [0], "points": [[0.0, 0.0]], "shares": [0.0, 0.0], "nearest": [[]], "n_rows": 1}


def test_embeddings_that_are_not_finite_have_no_map(tokenizer):
    table = backend.to_device(np.full((tokenizer.n_vocab + 3, 4), np.nan, dtype=np.float32))
    assert _vectors(table, tokenizer, [1]) is None
    table[: tokenizer.n_vocab] = 1.0  # rows without a token, padding, do not count
    assert _vectors(table, tokenizer, [1])["n_rows"] == tokenizer.n_vocab


def test_every_op_of_the_pass_is_there_with_formula_and_gradients(model, data):
    ids = np.array([data["ids"]])
    trace = model.trace(ids, ids)
    assert [(op["module"], op["op"]) for op in data["ops"]] == [(s.module, s.op) for s in trace.steps]
    norm = next(op for op in data["ops"] if op["op"] == "LayerNorm")
    assert [a["name"] for a in norm["inputs"]] == ["x", "gamma", "beta"]
    assert [a["name"] for a in norm["dx"]] == ["dx", "dgamma", "dbeta"] and [a["name"] for a in norm["dy"]] == ["dy"]
    assert norm["inputs"][0]["shape"] == [1, ids.shape[1], 16] == norm["outputs"][0]["shape"]
    assert "dx = r (q - mean(q) - n mean(q n))" in data["formulas"]["LayerNorm"]
    assert [a["name"] for a in norm["saved"]] == ["n", "r", "gamma"]
    saved = {op["op"]: [a["name"] for a in op["saved"]] for op in data["ops"]}
    assert saved["Attention"][:4] == ["q", "k", "v", "weights"] and saved["LinearCrossEntropy"] == ["dx", "dweight"]
    assert saved["Linear"] == ["x", "weight"] and saved["GELU"] == ["x"] and saved["Embedding"] == ["ids"] and saved["Add"] == []
    first = data["ops"][0]
    assert first["op"] == "Embedding"
    assert first["inputs"][0]["rows"][0] == pytest.approx(backend.to_host(model.wte.weight.data)[0, :5], rel=1e-3)


def test_saved_arrays_have_names_whatever_way_an_op_keeps_them():
    class Fields(NamedTuple):
        left: np.ndarray
        right: np.ndarray

    class Base(ag.Op):
        @staticmethod
        def backward(saved, dy):
            return dy

    class Unpacks(Base):
        @staticmethod
        def backward(kept, dy):
            a, (b, c) = kept
            return dy * a * b * c

    class Alone(Base):
        @staticmethod
        def backward(y, dy):
            return dy * y

    one, two = (backend.to_device(np.full(2, value)) for value in (1.0, 2.0))
    for op, saved, names in (
        (Base, Fields(one, two), ["left", "right"]),
        (Base, (one, two), ["saved 1", "saved 2"]),
        (Unpacks, (one, (1, 2)), ["a"]),
        (Alone, one, ["y"]),
        (Base, None, []),
    ):
        step = SimpleNamespace(op=op, saved=saved)
        assert [a["name"] for a in _shown(_saved(step))] == names


def test_the_model_is_left_as_it_was(model, tokenizer):
    marker = backend.to_device(np.ones(model.wte.weight.shape, dtype=np.float32))
    model.train()
    model.wte.weight.grad = marker
    collect(model, tokenizer, PROMPT)
    assert model.training and model.wte.weight.grad is marker and model.wpe.weight.grad is None
    model.eval()
    model.zero_grad()


def test_the_page_holds_everything_and_cannot_be_broken_by_its_text(model, tokenizer, tmp_path):
    prompt = "</script><script>alert(1)</script> the low\n\u2028☃"
    explore(model, tokenizer, prompt, tmp_path / "page.html", title="<i>")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("</script>") == 1 and "alert(1)</script" not in page
    assert not re.search(r"https?://|src=|@import|url\(", page)  # nothing from outside
    inside = re.search(r"^const data = (.*);$", page, re.MULTILINE)[1]
    assert json.loads(inside)["prompt"] == prompt


def test_prompts_that_cannot_be_shown_are_refused(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"explore: a prompt of 1 tokens, expected 2 to 64 \(the model's context\)"):
        explore(model, tokenizer, "t", tmp_path / "page.html")
    with pytest.raises(ValueError, match="a prompt of 65 tokens, expected 2 to 64"):
        explore(model, tokenizer, "t" * 65, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_page_that_would_be_too_large_is_refused(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("tinygpt.inspect.explore.MAX_PAGE_BYTES", 10_000)
    with pytest.raises(ValueError, match=r"explore: a page of [\d,]+ bytes for \d+ tokens, expected at most 10,000; shorten the prompt"):
        explore(model, tokenizer, PROMPT, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_only_an_earlier_page_is_overwritten(model, tokenizer, tmp_path):
    explore(model, tokenizer, PROMPT, tmp_path / "page.html")
    explore(model, tokenizer, PROMPT + " low", tmp_path / "page.html")
    (tmp_path / "notes.md").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match="already there and no page of this kind, expected a new file or an earlier page"):
        explore(model, tokenizer, PROMPT, tmp_path / "notes.md")
    assert (tmp_path / "notes.md").read_text(encoding="utf-8") == "mine"
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere, expected one; make it"):
        explore(model, tokenizer, PROMPT, tmp_path / "nowhere" / "page.html")


@pytest.mark.skipif(backend.name != "numpy", reason="the script starts a process of its own")
def test_the_script_on_a_checkpoint_directory(tmp_path):
    tokenizer = CharacterTokenizer.train(TEXT)
    GPT(GPTConfig.preset("quick", vocab_size=tokenizer.n_vocab)).save_pretrained(tmp_path / "model", tokenizer)
    command = [sys.executable, str(ROOT / "examples" / "explore.py"), "--run", "model", "--prompt"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([*command, "the lamp"], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and "8 tokens" in done.stdout, done.stderr
    assert (tmp_path / "explore.html").stat().st_size > 20_000
    done = subprocess.run([*command, "x"], cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and "error: encode: 1 unknown character 'x'" in done.stderr and "Traceback" not in done.stderr


# In a browser ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def six_layers(tmp_path_factory, tokenizer):
    """The page of a 6-layer model, and its numbers."""
    model = GPT(GPTConfig(n_layer=6, n_head=6, n_embd=48, n_positions=64, vocab_size=tokenizer.n_vocab), seed=0)
    for p in model.parameters():
        p.data *= 4
    path = tmp_path_factory.mktemp("page") / "six.html"
    return path, explore(model, tokenizer, TEXT * 2, path)


def open_page(browser, path, **options):
    errors = []
    page = browser.new_page(**options)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda request: errors.append(request.url) if not request.url.startswith("file:") else None)
    page.goto(path.as_uri())
    page.wait_for_function("window.readyAfterMs !== undefined")
    return page, errors


@pytest.mark.skipif(backend.name != "numpy", reason="a page is a page")
class TestInABrowser:
    def test_it_loads_quickly_and_without_errors(self, browser, six_layers):
        path, data = six_layers
        assert path.stat().st_size < MAX_PAGE_BYTES
        times = []
        for _ in range(3):  # another process may have the processor at one time, not at all
            page, errors = open_page(browser, path)
            times.append(page.evaluate("readyAfterMs"))
            assert errors == [] and page.locator(".token").count() == len(data["tokens"])
            page.close()
        assert min(times) < 1000

    def test_hover_click_and_numbers(self, browser, six_layers):
        path, data = six_layers
        page, errors = open_page(browser, path)
        n = len(data["tokens"])
        assert page.get_attribute(f".token >> nth={n - 2}", "aria-pressed") == "true"  # the last one that something follows
        assert page.inner_text("#selected").startswith(f"Selected: token {n - 2} of 0 to {n - 1}, ")
        assert page.inner_text("#selected").endswith("layer 1 of 6, head 1 of 6")
        page.hover(".token >> nth=5")
        assert page.get_attribute(".token >> nth=5", "aria-pressed") == "true"
        page.hover("#maps button >> nth=8")  # layer 2, head 3
        assert page.inner_text("#which") == "Layer 2, head 3"
        weights = unpack(data["attention"][1][2], n)[5]
        likeliest = int(weights.argmax())
        first = re.search(r"attends to: .*? \((\d+)\) ([\d.]+) %", page.inner_text("#readout"))
        assert weights[int(first[1])] == pytest.approx(weights[likeliest]) and float(first[2]) == pytest.approx(
            100 * weights[likeliest], abs=0.06
        )
        box = page.locator("#big").bounding_box()
        page.locator("#big").hover(position={"x": box["width"] * 2.5 / n, "y": box["height"] * 7.5 / n})
        readout = page.inner_text("#readout")
        assert f"({7}) attends to" in readout
        assert float(re.search(r"([\d.]+) %", readout)[1]) == pytest.approx(100 * unpack(data["attention"][1][2], n)[7, 2], abs=0.06)
        # the logit lens of token 7, last layer
        cell = page.locator("#lens tr").last.locator("td").nth(1).inner_text()
        assert float(re.search(r"([\d.]+) %", cell)[1]) == pytest.approx(100 * data["lens"][-1][7]["top"][0][1], abs=0.06)
        assert page.locator("#lens tr").count() == 1 + 7
        # step through an op
        number = next(op["number"] for op in data["ops"] if op["op"] == "LayerNorm")
        page.select_option("#ops", str(number))
        assert "gamma" in page.inner_text("#arrays")
        page.click("text=5 dx returned")
        shown = [float(x) for x in page.locator("#arrays figure").first.locator("td").all_inner_texts()[:5]]
        assert shown == pytest.approx(data["ops"][number]["dx"][0]["rows"][0], rel=6e-3)
        assert "dgamma" in page.inner_text("#arrays") and "Ba, Kiros" in page.inner_text("#formula")
        page.click("text=next op")
        assert page.input_value("#ops") == str(number + 1)
        assert errors == []
        page.close()

    def test_the_map_of_the_embeddings(self, browser, six_layers):
        path, data = six_layers
        page, errors = open_page(browser, path)
        vectors = data["vectors"]
        assert page.locator("#map > circle").count() == len(vectors["ids"])
        page.hover(".token >> nth=5")
        chosen = vectors["ids"].index(data["ids"][5])
        assert page.input_value("#words") == str(chosen)  # follows the selected token
        rows = page.locator("#nearest tr").all()[1:]
        assert len(rows) == len(vectors["nearest"][chosen]) == 10
        for row, (_, cosine) in zip(rows, vectors["nearest"][chosen], strict=True):
            assert row.inner_text().split()[-1] == f"{cosine:.3f}"
        page.locator("#nearest button").first.click()
        following = vectors["ids"].index(vectors["nearest"][chosen][0][0])
        assert page.input_value("#words") == str(following)
        assert page.locator("#marks circle").count() == 11 and page.locator("#marks text").count() >= 8
        page.select_option("#words", "0")
        x, y = (float(page.get_attribute("#marks circle.chosen", name)) for name in ("cx", "cy"))
        other = max(range(len(vectors["ids"])), key=lambda i: vectors["points"][i][0])  # alone at the right edge
        box = page.locator("#map").bounding_box()
        circles = page.eval_on_selector_all("#map > circle", "all => all.map(e => [+e.getAttribute('cx'), +e.getAttribute('cy')])")
        right, down = max(circles)
        assert (right, down) != (x, y) or other == 0
        page.locator("#map").click(position={"x": right * box["width"] / 600, "y": down * box["height"] / 430})
        assert page.input_value("#words") == str(other)
        assert errors == []
        page.close()

    def test_without_a_map_of_the_embeddings_the_rest_is_there(self, browser, six_layers, tmp_path):
        _, data = six_layers
        (tmp_path / "page.html").write_text(render({**data, "vectors": None}), encoding="utf-8")
        page, errors = open_page(browser, tmp_path / "page.html")
        page.hover(".token >> nth=5")
        assert not page.is_visible("#vectors") and page.is_visible("#ops") and errors == []
        page.close()

    def test_a_click_holds_what_hovering_would_change(self, browser, six_layers):
        path, _ = six_layers
        page, errors = open_page(browser, path)
        page.click(".token >> nth=5")
        page.click("#maps button >> nth=8")
        for other in (".token >> nth=9", "#maps button >> nth=20"):
            page.hover(other)
        page.locator("#big").hover(position={"x": 3, "y": 200})
        assert page.get_attribute(".token >> nth=5", "aria-pressed") == "true" and page.inner_text("#which") == "Layer 2, head 3"
        assert "token 5 of" in page.inner_text("#selected") and page.inner_text("#selected").count("(held)") == 2
        page.click(".token >> nth=5")  # lets go
        page.click("#maps button >> nth=8")
        page.hover(".token >> nth=9")
        page.hover("#maps button >> nth=20")
        assert page.get_attribute(".token >> nth=9", "aria-pressed") == "true" and page.inner_text("#which") == "Layer 4, head 3"
        assert errors == []
        page.close()

    def test_the_big_map_has_labels_a_scale_and_no_color_where_nothing_is_seen(self, browser, six_layers):
        path, data = six_layers
        page, errors = open_page(browser, path, viewport={"width": 1280, "height": 800})
        n, row = len(data["tokens"]), 11
        page.hover(f".token >> nth={row}")
        pixels = page.evaluate(
            "(() => { const c = $('big'); return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]; })()"
        )
        image = np.array(pixels).reshape(n, n, 4)[..., :3]
        weights = unpack(data["attention"][0][0], n)
        future = ~np.tri(n, dtype=bool)
        assert (image[future] == 236).all()  # neutral gray, in the selected row, too
        shades = 255 - np.sqrt(weights)[..., None] * [255, 171, 103]
        assert np.abs(image - shades)[~future].max() <= 1
        mark, square = page.locator("#row").bounding_box(), page.locator("#big").bounding_box()
        assert mark["x"] + mark["width"] == pytest.approx(square["x"] + square["width"] * (row + 1) / n, abs=3)  # not over the future
        assert mark["y"] + 2 == pytest.approx(square["y"] + square["height"] * row / n, abs=1)
        shown = page.eval_on_selector_all("#rows span", "all => all.filter(e => !e.hidden).map(e => [+e.dataset.token, e.className])")
        every = math.ceil(14 * n / square["width"])  # 14 pixels a label
        assert [t for t, _ in shown] == sorted({*range(0, n, every), row}) and [t for t, c in shown if c == "chosen"] == [row]
        assert page.locator("#columns span:visible").count() == math.ceil(n / every)
        assert page.inner_text("#ticks").split("%")[:-1] and [float(x) for x in re.findall(r"(\d+) %", page.inner_text("#ticks"))] == [
            0,
            5,
            25,
            50,
            100,
        ]
        for place, share in zip(page.locator("#ticks span").all(), (0, 0.05, 0.25, 0.5, 1), strict=True):
            box, ramp = place.bounding_box(), page.locator("#ramp").bounding_box()
            assert box["x"] + box["width"] / 2 == pytest.approx(ramp["x"] + ramp["width"] * math.sqrt(share), abs=2)
        assert errors == []
        page.close()

    @pytest.mark.parametrize("width", [1280, 1920])
    def test_the_lens_fits_on_a_screen_even_with_long_tokens(self, browser, six_layers, tmp_path, width):
        _, data = six_layers
        wide = [{**cell, "top": [["a very long token\x05", p] for _, p in cell["top"]]} for cell in data["lens"][0]]
        (tmp_path / "page.html").write_text(render({**data, "lens": [wide] * len(data["lens"])}), encoding="utf-8")
        page, errors = open_page(browser, tmp_path / "page.html", viewport={"width": width, "height": 800})
        inner, outer = page.evaluate("(() => { const e = $('lens').parentElement; return [e.scrollWidth, e.clientWidth]; })()")
        assert inner <= outer and page.evaluate("document.documentElement.scrollWidth") <= width
        cell = page.locator("#lens tr").last.locator("td").nth(1)
        assert cell.locator("span").nth(1).bounding_box()["width"] >= 40 and "<05>" in cell.inner_text()  # the percentage is not cut
        assert errors == []
        page.close()

    def test_text_on_the_shades_can_be_read(self, browser, six_layers):
        """Contrast of a token's text with its background, at least 4 (WCAG's 3 for large or bold text, 4.5 for small)."""
        path, data = six_layers
        page, _ = open_page(browser, path)
        worst = 21.0
        for t in range(0, len(data["tokens"]), 3):
            page.hover(f".token >> nth={t}")
            colors = page.eval_on_selector_all(
                ".token", "all => all.map(e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor])"
            )
            for text, ground in colors:
                light = [
                    sum(
                        w * ((v / 12.92) if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4)
                        for w, v in zip((0.2126, 0.7152, 0.0722), rgb, strict=True)
                    )
                    for rgb in ([int(float(x)) / 255 for x in re.findall(r"[\d.]+", color)[:3]] for color in (text, ground))
                ]
                worst = min(worst, (max(light) + 0.05) / (min(light) + 0.05))
        assert worst >= 4
        page.close()

    def test_by_keyboard_alone(self, browser, six_layers):
        path, data = six_layers
        page, errors = open_page(browser, path)
        page.keyboard.press("Tab")  # the chosen token is the first stop
        page.keyboard.press("Home")
        page.keyboard.press("ArrowRight")
        assert page.get_attribute(".token >> nth=1", "aria-pressed") == "true"
        assert page.evaluate("document.activeElement.textContent") == page.inner_text(".token >> nth=1")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")  # the second map
        assert page.inner_text("#which") == "Layer 1, head 2"
        page.focus("#big")
        page.keyboard.press("ArrowDown")
        assert page.get_attribute(".token >> nth=2", "aria-pressed") == "true"
        page.focus("#stages button >> nth=3")
        page.keyboard.press("Enter")
        assert page.inner_text("#says").startswith("Backward: the gradient of the loss with respect to its output")
        assert errors == [] and data
        page.close()

    def test_on_a_phone(self, browser, six_layers):
        path, _ = six_layers
        page, errors = open_page(browser, path, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390  # no sideways scrolling of the page
        page.tap(".token >> nth=3")
        assert page.get_attribute(".token >> nth=3", "aria-pressed") == "true"
        page.tap("#maps button >> nth=7")
        assert page.inner_text("#which") == "Layer 2, head 2"
        tops = page.eval_on_selector_all(
            "#rows span", "all => all.filter(e => !e.hidden && !e.className).map(e => e.getBoundingClientRect().top)"
        )
        assert min(np.diff(tops)) >= 11  # labels of 11 pixels do not overlap
        sizes = page.eval_on_selector_all(".token, .buttons button", "all => all.map(e => e.getBoundingClientRect().height)")
        assert min(sizes) >= 30  # a finger hits it
        assert errors == []
        page.close()


def test_render_refuses_numbers_that_json_cannot_hold(data):
    with pytest.raises(ValueError, match="JSON"):
        render({**data, "loss": float("nan")})
