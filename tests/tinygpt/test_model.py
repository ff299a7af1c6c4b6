import dataclasses
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from autograd.optim import AdamW
from tests.strategies import seeds
from tests.tinygpt.helpers import decoders, randomize, weights
from tinygpt import GPT, GPTConfig
from tinygpt.models.blocks import ComposedBlock, composed_blocks
from tinygpt.models.gpt import Block, Initializer

FAKE = backend.name == "cupy"
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=31)


def logits_of(model, ids, mask=None):
    with ag.no_grad():
        return backend.to_host(model(ids, mask).data)


def test_the_model_has_the_weights_that_its_config_says():
    for tied in (True, False):
        for qkv_bias in (True, False):
            config = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=31, tie_word_embeddings=tied, qkv_bias=qkv_bias)
            model, blocks = GPT(config), {f"h.{i}.{name}": shape for i in range(2) for name, shape in config.block_shapes().items()}
            assert {name: p.shape for name, p in model.named_parameters()} == config.outer_shapes() | blocks
            assert model.n_parameters() == config.n_parameters()


@given(config=decoders())
def test_a_model_with_any_options_has_the_weights_that_its_config_says(config):
    model, blocks = GPT(config), {f"h.{i}.{name}": shape for i in range(config.n_layer) for name, shape in config.block_shapes().items()}
    assert {name: p.shape for name, p in model.named_parameters()} == config.outer_shapes() | blocks
    assert model.n_parameters() == config.n_parameters()
    assert all(isinstance(block, ComposedBlock if config.options() else Block) for block in model.h)


def test_parameters_have_gpt2s_names():
    names = [name for name, _ in GPT(TINY).named_parameters()]
    assert names[:2] == ["wte.weight", "wpe.weight"]
    assert [n for n in names if n.startswith("h.0.")] == [
        "h.0.ln_1.weight", "h.0.ln_1.bias", "h.0.attn.c_attn.weight", "h.0.attn.c_attn.bias", "h.0.attn.c_proj.weight",
        "h.0.attn.c_proj.bias", "h.0.ln_2.weight", "h.0.ln_2.bias", "h.0.mlp.c_fc.weight", "h.0.mlp.c_fc.bias",
        "h.0.mlp.c_proj.weight", "h.0.mlp.c_proj.bias",
    ]  # fmt: skip
    assert names[-2:] == ["ln_f.weight", "ln_f.bias"]


def test_initial_weights_are_gpt2s():
    model = GPT(GPTConfig(n_layer=8, n_head=4, n_embd=128, n_positions=64, vocab_size=500))
    weights = {name: backend.to_host(p.data) for name, p in model.named_parameters()}
    assert weights["wte.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert weights["h.3.attn.c_attn.weight"].std() == pytest.approx(0.02, rel=0.05)
    assert weights["h.3.mlp.c_proj.weight"].std() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
    assert not weights["h.3.mlp.c_proj.bias"].any() and (weights["ln_f.weight"] == 1).all()
    assert all(w.dtype == np.float32 for w in weights.values())


def test_the_seed_decides_the_weights():
    a, b, c = (backend.to_host(GPT(TINY, seed=s).wte.weight.data) for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)


def test_the_loss_starts_at_a_uniform_guess():
    ids = np.random.default_rng(0).integers(0, 31, (4, 13))
    assert GPT(TINY).loss(ids[:, :-1], ids[:, 1:]).item() == pytest.approx(math.log(31), rel=0.02)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), t=st.integers(1, 11))
def test_a_position_ignores_everything_after_it(seed, t):
    rng = np.random.default_rng(seed)
    model = GPT(TINY, seed=seed)
    ids = rng.integers(0, 31, (2, 12))
    changed = ids.copy()
    changed[:, t:] = rng.integers(0, 31, (2, 12 - t))
    np.testing.assert_allclose(logits_of(model, ids)[:, :t], logits_of(model, changed)[:, :t], atol=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), n=st.integers(1, 8), padding=st.integers(1, 4), left=st.booleans())
def test_logits_do_not_change_with_padding(seed, n, padding, left):
    rng = np.random.default_rng(seed)
    model = GPT(TINY, seed=seed)
    ids = rng.integers(0, 31, (1, n))
    filler, ones, zeros = rng.integers(0, 31, (1, padding)), np.ones((1, n)), np.zeros((1, padding))
    padded = np.concatenate([filler, ids] if left else [ids, filler], axis=1)
    mask = np.concatenate([zeros, ones] if left else [ones, zeros], axis=1)
    real = slice(padding, None) if left else slice(None, n)
    np.testing.assert_allclose(logits_of(model, padded, mask)[:, real], logits_of(model, ids), atol=1e-5)


def test_the_fused_loss_is_the_cross_entropy_of_the_logits():
    model = GPT(TINY)
    ids = np.random.default_rng(0).integers(0, 31, (3, 13))
    targets = ids[:, 1:].copy()
    targets[0, :5] = -100
    plain = ag.cross_entropy(model(ids[:, :-1]), targets)
    assert model.loss(ids[:, :-1], targets).item() == pytest.approx(plain.item(), rel=1e-6)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_of_every_parameter_match_central_differences(tied):
    config = GPTConfig(n_layer=1, n_head=2, n_embd=8, n_positions=6, vocab_size=11, tie_word_embeddings=tied)
    model = GPT(config, seed=3)
    rng = np.random.default_rng(0)
    for p in model.parameters():  # float64, and far enough from the start for every path to matter
        p.data = backend.to_device(backend.to_host(p.data).astype(np.float64) + 0.3 * rng.standard_normal(p.shape))
    ids = rng.integers(0, 11, (2, 7))
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    for name, p in model.named_parameters():
        u, h, middle = backend.to_device(rng.standard_normal(p.shape)), 1e-6, p.data
        claimed = float((p.grad * u).sum())
        values = []
        for step in (h, -h):
            p.data = middle + step * u
            with ag.no_grad():
                values.append(model.loss(ids[:, :-1], ids[:, 1:]).item())
        p.data = middle
        assert claimed == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-8), name


def test_dropout_works_in_training_only_and_follows_the_stream():
    config = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=31, dropout=0.3)
    ids = np.random.default_rng(0).integers(0, 31, (2, 12))
    model = GPT(config, seed=1)
    first, second = logits_of(model, ids), logits_of(model, ids)
    assert not np.array_equal(first, second)
    model.dropout_stream.counter = 0
    np.testing.assert_array_equal(logits_of(model, ids), first)
    model.eval()
    np.testing.assert_array_equal(logits_of(model, ids), logits_of(GPT(TINY, seed=1), ids))


def test_fast_and_reference_kernels_train_alike():
    ids = np.random.default_rng(0).integers(0, 31, (4, 13))
    curves = []
    for mode in ("fast", "reference"):
        with ag.use_kernels(mode):
            model = GPT(TINY, seed=0)
            optimizer = AdamW(model, lr=1e-2)
            losses = []
            for _ in range(50):
                optimizer.zero_grad()
                loss = model.loss(ids[:, :-1], ids[:, 1:])
                loss.backward()
                optimizer.step(max_norm=1.0)
                losses.append(loss.item())
            curves.append(losses)
    np.testing.assert_allclose(curves[0], curves[1], atol=1e-4)
    assert curves[0][-1] < curves[0][0] / 2


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([1, 2], None, r"GPT: ids of shape \(2,\), expected \(batch, positions\); "),
        ([[1] * 13], None, r"GPT: 13 positions, expected at most n_positions = 12; "),
        ([[1, 31]], None, r"embedding id: 31 at position \(0, 1\), expected 0 <= id < 31; "),
        ([[1, 2]], [[1]], r"GPT: attention_mask of shape \(1, 1\), expected \(1, 2\)"),
        (
            [[1, 2]],
            [[0, -1e9]],
            r"GPT: attention_mask: -1000000000.0 in a mask of shape \(1, 2\), expected booleans or 0 and 1, .* pass mask == 0",
        ),
    ],
)
def test_bad_input_is_named(ids, mask, message):
    with pytest.raises(ValueError, match=message):
        GPT(TINY)(ids, mask)


@pytest.mark.exact
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_recomputed_blocks_give_the_same_bits(dropout):
    ids = np.random.default_rng(0).integers(0, 11, (2, 9))

    def gradients(which):
        model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_head=2, n_layer=3, dropout=dropout), seed=1).train()
        for i in which:
            model.h[i].recompute = True
        losses = []
        for _ in range(2):  # the second pass proves that the dropout stream went on where it should
            loss = model.loss(ids[:, :-1], ids[:, 1:])
            loss.backward()
            losses.append(loss.item())
        return losses, {name: backend.to_host(p.grad) for name, p in model.named_parameters()}

    losses, expected = gradients([])
    for which in ([0], [1, 2], [0, 1, 2]):
        again, found = gradients(which)
        assert again == losses
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_recomputed_blocks_reach_parameters_under_frozen_input():
    model = GPT(GPTConfig(vocab_size=11, n_positions=8, n_embd=8, n_head=2, n_layer=2)).recompute_blocks()
    for embedding in (model.wte, model.wpe):
        embedding.weight.requires_grad = False
    model.loss([[1, 2, 3]], [[2, 3, 4]]).backward()
    assert all(p.grad is not None for p in model.h[0].parameters())


@pytest.mark.skipif(backend.name != "numpy", reason="tracemalloc counts host memory")
def test_recomputing_keeps_less():
    """Bytes alive after the forward pass, as tracemalloc counts NumPy's arrays."""

    def kept(recompute):
        model = GPT(GPTConfig(vocab_size=11, n_positions=64, n_embd=32, n_head=2, n_layer=6)).recompute_blocks(recompute)
        ids = np.zeros((8, 64), dtype=int)
        tracemalloc.start()
        loss = model.loss(ids, ids)
        alive, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert loss.item() > 0
        return alive

    assert kept(True) < 0.3 * kept(False)


def test_fast_kernels_train_along_the_reference_curve():
    """Fifty updates of nanoGPT's laptop model on learnable ids: every loss the same to 1e-4."""
    config = GPTConfig.preset("shakespeare", n_layer=2)
    rng = np.random.default_rng(0)
    batches = [np.cumsum(rng.integers(0, 3, (12, 65)), axis=1) % 65 for _ in range(50)]

    def curve(mode):
        model = GPT(config, seed=3).train()
        optimizer = AdamW(model, lr=1e-3)
        losses = []
        with ag.use_kernels(mode):
            for ids in batches:
                optimizer.zero_grad()
                loss = model.loss(ids[:, :-1], ids[:, 1:])
                loss.backward()
                optimizer.step(max_norm=1.0)
                losses.append(loss.item())
        return losses

    fast, reference = curve("fast"), curve("reference")
    assert fast[-1] < fast[0] - 0.5  # it learns, so the curve means something
    np.testing.assert_allclose(fast, reference, rtol=0, atol=1e-4)


@pytest.mark.skipif(backend.name != "numpy", reason="the fake device is this process's")
@pytest.mark.parametrize("source", ["tinygpt", "tinygpt.models.gpt", "tinygpt.finetuning.classifier"])
def test_methods_of_the_layers_above_are_there_however_the_class_is_imported(source):
    code = f"""
import sys
from {source} import GPT
early = {{m for m in sys.modules if m.startswith(("tinygpt.inference", "tinygpt.inspect"))}} if "finetuning" not in "{source}" else set()
assert not early, early  # imported when first used
names = ("generate", "summary", "trace", "save_pretrained", "from_pretrained")
assert all(getattr(GPT, name).__doc__ for name in names)
assert GPT.from_pretrained.__self__ is GPT and GPT.summary.__module__ == "tinygpt.inspect.trace"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr


# ---- options beyond GPT-2 ----------------------------------------------------------------------------------------------------------------


@pytest.mark.exact
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_composed_blocks_with_gpt2s_settings_compute_its_bits(dropout, qkv_bias):
    """Initial weights, loss, gradients and logits: what GPT-2 is made of, and what every other model is made of, are one arithmetic."""
    config = GPTConfig(n_layer=2, n_head=4, n_embd=32, n_positions=40, vocab_size=31, dropout=dropout, qkv_bias=qkv_bias)
    plain, composed = GPT(config, seed=5), GPT(config, seed=5)
    init = Initializer(config, 5)
    for shape in ((config.vocab_size, 32), (config.n_positions, 32)):
        init.normal(shape)
    composed.h = composed_blocks(config, init, composed.dropout_stream)
    before = weights(plain)
    for name, array in weights(composed).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    ids = np.random.default_rng(0).integers(0, 31, (3, 41))
    losses = [model.loss(ids[:, :-1], ids[:, 1:]) for model in (plain, composed)]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == losses[1].item()
    for (name, a), b in zip(plain.named_parameters(), composed.parameters(), strict=True):
        np.testing.assert_array_equal(backend.to_host(a.grad), backend.to_host(b.grad), err_msg=name)
    np.testing.assert_array_equal(logits_of(plain.eval(), ids[:, :-1]), logits_of(composed.eval(), ids[:, :-1]))


@settings(max_examples=8 if FAKE else 60)
@given(config=decoders(n_layer=2, n_positions=7), seed=seeds, dropout=st.sampled_from([0.0, 0.3]))
def test_gradients_with_any_options_match_central_differences(config, seed, dropout):
    """All parameters at once along one random direction; dropout's masks are the same in each pass."""
    model, rng = randomize(GPT(dataclasses.replace(config, dropout=dropout), seed=3), seed).train(), np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab_size, (2, 8))

    def loss():
        model.dropout_stream.counter = 0
        return model.loss(ids[:, :-1], ids[:, 1:])

    loss().backward()
    parameters = model.parameters()
    assert all(p.grad is not None and np.isfinite(backend.to_host(p.grad)).all() for p in parameters)
    directions = [backend.to_device(rng.standard_normal(p.shape)) for p in parameters]
    claimed = sum(float((p.grad * u).sum()) for p, u in zip(parameters, directions, strict=True))
    middle, values = [p.data for p in parameters], []
    for h in (1e-6, -1e-6, 5e-7, -5e-7):
        for p, m, u in zip(parameters, middle, directions, strict=True):
            p.data = m + h * u
        with ag.no_grad():
            values.append(loss().item())
    wide, narrow = (values[0] - values[1]) / 2e-6, (values[2] - values[3]) / 1e-6
    # Richardson's extrapolation: the norm of a branch that is nearly 0 bends so much that the error of order h^2 counts.
    assert claimed == pytest.approx((4 * narrow - wide) / 3, rel=1e-4, abs=1e-6)


@settings(max_examples=8 if FAKE else 60)
@given(config=decoders(n_positions=12), seed=seeds, t=st.integers(1, 11))
def test_with_any_options_a_position_ignores_everything_after_it(config, seed, t):
    model, rng = randomize(GPT(config), seed), np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab_size, (2, 12))
    changed = ids.copy()
    changed[:, t:] = rng.integers(0, config.vocab_size, (2, 12 - t))
    np.testing.assert_allclose(logits_of(model, ids)[:, :t], logits_of(model, changed)[:, :t], atol=1e-9)


@given(config=decoders(n_positions=12, window=2, window_pattern="", n_layer=2), seed=seeds)
def test_a_window_ends_what_a_position_sees(config, seed):
    """Two blocks with a window of 2 reach two positions back, and no further."""
    model, rng = randomize(GPT(config), seed), np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab_size, (1, 12))
    changed = ids.copy()
    changed[:, :9] = rng.integers(0, config.vocab_size, (1, 9))
    np.testing.assert_allclose(logits_of(model, ids)[:, 11:], logits_of(model, changed)[:, 11:], atol=1e-9)


@settings(max_examples=8 if FAKE else 60)
@given(config=decoders(n_positions=12), seed=seeds, n=st.integers(1, 8), padding=st.integers(1, 4), left=st.booleans())
def test_with_any_options_logits_do_not_change_with_padding(config, seed, n, padding, left):
    model, rng = randomize(GPT(config), seed), np.random.default_rng(seed)
    ids = rng.integers(0, config.vocab_size, (1, n))
    filler, ones, zeros = rng.integers(0, config.vocab_size, (1, padding)), np.ones((1, n)), np.zeros((1, padding))
    padded = np.concatenate([filler, ids] if left else [ids, filler], axis=1)
    mask = np.concatenate([zeros, ones] if left else [ones, zeros], axis=1)
    real = slice(padding, None) if left else slice(None, n)
    np.testing.assert_allclose(logits_of(model, padded, mask)[:, real], logits_of(model, ids), atol=1e-6)


@pytest.mark.exact
@settings(max_examples=8 if FAKE else 40)
@given(config=decoders(n_layer=2, n_positions=8), seed=seeds, dropout=st.sampled_from([0.0, 0.3]))
def test_with_any_options_recomputed_blocks_give_the_same_bits(config, seed, dropout):
    found = []
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (2, 9))
    for recompute in (False, True):
        model = GPT(dataclasses.replace(config, dropout=dropout), seed=1).recompute_blocks(recompute)
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        found.append((loss.item(), [backend.to_host(p.grad) for p in model.parameters()]))
    assert found[0][0] == found[1][0]
    for a, b in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=8 if FAKE else 60)
@given(config=decoders(n_positions=12), seed=seeds, last_only=st.booleans())
def test_with_any_options_fast_and_reference_kernels_agree(config, seed, last_only):
    model, ids = randomize(GPT(config), seed), np.random.default_rng(seed).integers(0, config.vocab_size, (2, 12))
    with ag.no_grad():
        fast, reference = (ag.use_kernels(mode) for mode in ("fast", "reference"))
        with fast:
            a = backend.to_host(model.hidden(ids, last_only=last_only).data)
        with reference:
            b = backend.to_host(model.hidden(ids).data)
    np.testing.assert_allclose(a, b[:, -1:] if last_only else b, atol=1e-9)


def test_rotary_positions_know_distances_only():
    """A text behind other texts that it does not see is the same text: shifting all positions changes nothing."""
    config = dataclasses.replace(TINY, positions="rotary", rope_fraction=0.5)
    model = randomize(GPT(config), 0)
    q = model.h[0].attn
    x = ag.Tensor(np.random.default_rng(0).standard_normal((2, 6, 16)))
    with ag.no_grad():
        here, there = (backend.to_host(q(x, positions=np.arange(6) + shift).data) for shift in (0, 5))
        learned = backend.to_host(q(x, positions=np.zeros(6, int)).data)
    np.testing.assert_allclose(here, there, atol=1e-6)
    assert np.abs(here - learned).max() > 1e-2  # and do matter


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m", "pythia-70m", "olmo-2-1b", "nanochat-d20"])
def test_other_decoders_learn(name):
    size = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 31, "n_positions": 12}
    size |= {key: value for key, value in (("n_inner", 64), ("n_kv_head", 2), ("head_size", 8)) if key in GPTConfig.preset(name).options()}
    model = GPT(GPTConfig.preset(name, **size), seed=0)
    optimizer = AdamW(model, lr=1e-2)
    ids = np.random.default_rng(0).integers(0, 31, (4, 13))
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()
        optimizer.step(max_norm=1.0)
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(31), rel=0.05) and losses[-1] < losses[0] / 2
