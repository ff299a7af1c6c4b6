"""The encoder: every token sees all others and no padding, the loss is that of masked positions, any option goes with any other."""

import dataclasses
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from tests.tinygpt.helpers import check_by_differences, randomize, weights
from tinygpt import GPT, Checkpoint, GPTConfig, models
from tinygpt.encoder_config import EncoderConfig
from tinygpt.models import Encoder
from tinygpt.recipes import RECIPES
from tinygpt.storage.checked_json import read_json_object, to_json
from tinygpt.storage.safetensors import TensorFile, read_headers, read_tensor, write_files
from tinygpt.training.step import train_step
from tinygpt.weights.bert import BERT, ROBERTA
from tinygpt.weights.config_json import ENCODER, family_of

V, T = 23, 9
QUICK = EncoderConfig(n_layer=2, n_head=2, n_embd=8, n_positions=T, vocab_size=V)


@st.composite
def encoders(draw, **changes):
    """Small legal configs with any of the options, together; `changes` to their fields."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    n_head = draw(st.integers(1, 3))
    fields = {
        "n_layer": draw(st.integers(1, 2)), "n_head": n_head, "n_embd": n_head * pick(4, 6), "n_positions": T, "vocab_size": V,
        "n_token_types": pick(0, 1, 2), "count_padding": pick(True, False), "pad_id": pick(0, 1, V - 1), "n_inner": pick(None, 5),
        "norm": pick("layer", "rms", "rms_unweighted"), "norm_position": pick("post", "pre", "output", "sandwich"),
        "embedding_norm": pick(True, False), "positions": pick("learned", "sinusoidal", "rotary", "none"), "gated": pick(False, True),
        "activation": pick("gelu_exact", "gelu", "relu", "silu", "squared_relu"), "tie_word_embeddings": pick(True, False),
        "pooler": pick(False, True), "layer_norm_epsilon": pick(1e-5, 1e-3), "dropout": pick(0.0, 0.1), "embd_pdrop": pick(None, 0.2),
        "attn_pdrop": pick(None, 0.3),
    }  # fmt: skip
    return EncoderConfig(**{**fields, **changes})


def made(config=QUICK, seed=0, **changes):
    return randomize(Encoder(dataclasses.replace(config, **changes)), seed)


def tokens(rng, *shape):
    """Ids that are no padding, for the configs above."""
    return rng.integers(2, V - 1, shape)


def host(tensor):
    return backend.to_host(tensor.data)


# ---- shape -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "n"),
    # RoBERTa's file has rows for two positions that no token has: they are no weights of ours
    [("bert-base", 109_514_298), ("bert-large", 335_174_458), ("roberta-base", 124_697_433 - 2 * 768)],
)
def test_presets_have_the_published_numbers_of_weights(name, n):
    assert EncoderConfig.preset(name).n_parameters() == n


def test_the_small_preset_has_about_the_weights_of_the_default_gpt():
    gpt = RECIPES["tinygpt"][0]
    encoder = EncoderConfig.preset("laptop")
    assert encoder.n_parameters() == pytest.approx(gpt.n_parameters(), rel=0.03)
    for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size"):
        assert getattr(encoder, name) == getattr(gpt, name)


@given(encoders())
def test_the_config_knows_every_parameter(config):
    model = Encoder(config)
    blocks = {f"h.{i}.{name}": s for i in range(config.n_layer) for name, s in config.blocks().block_shapes().items()}
    assert {name: p.shape for name, p in model.named_parameters()} == config.outer_shapes() | blocks
    assert model.n_parameters() == config.n_parameters()
    assert EncoderConfig.from_dict(dataclasses.asdict(config)) == config


def test_initial_weights_are_berts():
    """All matrices have the same deviation, projections back into the residual stream, too, where a norm follows their sum."""
    deviations = {name: float(np.std(a)) for name, a in weights(Encoder(EncoderConfig.preset("laptop", vocab_size=300))).items()}
    for name in ("wte.weight", "h.3.attn.c_proj.weight", "h.0.mlp.c_proj.weight", "head.c_fc.weight"):
        assert deviations[name] == pytest.approx(0.02, rel=0.03)
    pre = weights(Encoder(EncoderConfig.preset("laptop", vocab_size=300, norm_position="pre")))
    assert np.std(pre["h.3.attn.c_proj.weight"]) == pytest.approx(0.02 / np.sqrt(8), rel=0.03)


def test_an_untrained_encoder_guesses_evenly():
    model, ids = Encoder(EncoderConfig.preset("quick")).eval(), np.arange(64).reshape(2, 32)
    assert model.loss(ids, ids).item() == pytest.approx(np.log(512), rel=0.02)
    assert model.n_classes == 512 and model.trace(ids).flops > 0


# ---- what a position sees ----------------------------------------------------------------------------------------------------------------


@given(encoders(), st.integers(0, 100))
def test_every_position_sees_every_other(config, seed):
    model, ids = randomize(Encoder(config), seed), tokens(np.random.default_rng(seed), 1, 5)
    before = host(model.hidden(ids))
    assert model(ids).shape == (1, 5, V)
    for changed in (0, 4):
        other = ids.copy()
        other[0, changed] = ids[0, changed] % (V - 3) + 2
        assert (other != ids).any()
        assert (np.abs(host(model.hidden(other)) - before).max(axis=2) > 0).all()


@settings(max_examples=30)
@given(encoders(), st.integers(0, 100), st.integers(1, 6), st.integers(1, 3), st.sampled_from(["right", "left", "inside"]))
def test_padding_changes_nothing(config, seed, n, n_padding, side):
    """On the right always; elsewhere where padding does not take up positions, or positions act by distance, or not at all."""
    moved = side == "left" and config.positions in ("rotary", "none")
    if side != "right" and not moved and config.count_padding:
        config = dataclasses.replace(config, count_padding=False)
    rng = np.random.default_rng(seed)
    model, ids = randomize(Encoder(dataclasses.replace(config, pooler=True)), seed), tokens(rng, 2, n)
    at = {"right": [n] * n_padding, "left": [0] * n_padding, "inside": rng.integers(0, n + 1, n_padding)}[side]
    filler = rng.integers(0, V, n_padding)
    padded = np.insert(ids, at, filler, axis=1)
    mask = np.insert(np.ones_like(ids), at, 0, axis=1)
    types = rng.integers(0, config.n_token_types, ids.shape) if config.n_token_types else None
    padded_types = None if types is None else np.insert(types, at, 0, axis=1)
    real = mask[0] == 1
    close = {"rtol": 1e-9, "atol": 1e-5 if moved and config.positions == "rotary" else 1e-9}  # other angles, which are float32
    np.testing.assert_allclose(host(model(padded, mask, padded_types))[:, real], host(model(ids, None, types)), **close)
    np.testing.assert_allclose(host(model.pooled(padded, mask, padded_types)), host(model.pooled(ids, None, types)), **close)
    targets = np.where(rng.random(padded.shape) < 0.5, padded, -100) * mask - 100 * (1 - mask)
    targets[0, real] = 3
    loss, padded_loss = model.loss(ids, targets[:, real], None, types), model.loss(padded, targets, mask, padded_types)
    assert padded_loss.item() == pytest.approx(loss.item(), rel=1e-9, abs=close["atol"])


def test_bert_counts_padding_on_the_left_and_roberta_does_not():
    ids, mask = np.array([[5, 6, 7]]), np.array([[0, 0, 1, 1, 1]])
    padded = np.array([[0, 0, 5, 6, 7]])
    bert, roberta = made(), made(count_padding=False)
    assert np.abs(host(bert(padded, mask))[:, 2:] - host(bert(ids))).max() > 0.01
    np.testing.assert_allclose(host(roberta(padded, mask))[:, 2:], host(roberta(ids)), rtol=1e-9)
    np.testing.assert_array_equal(roberta.positions(padded, None), [[0, 0, 0, 1, 2]])  # pad_id is padding where no mask says what is


def test_token_types_are_added_to_the_embeddings():
    model, ids = made(), tokens(np.random.default_rng(0), 1, 6)
    types = np.array([[0, 0, 0, 1, 1, 1]])
    assert np.abs(host(model(ids, None, types)) - host(model(ids))).max() > 0.01
    np.testing.assert_array_equal(host(model(ids, None, 0 * types)), host(model(ids)))


def test_the_head_computes_what_its_docstring_says():
    model = made(activation="relu")
    h = ag.Tensor(np.random.default_rng(0).standard_normal((3, 8)))
    w = weights(model)
    y = np.maximum(host(h) @ w["head.c_fc.weight"] + w["head.c_fc.bias"], 0)
    y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-12) * w["head.ln.weight"] + w["head.ln.bias"]
    np.testing.assert_allclose(host(model.head(h)), y @ w["wte.weight"].T + w["head.bias"], rtol=1e-9)


# ---- loss and gradients ------------------------------------------------------------------------------------------------------------------


@given(encoders(), st.integers(0, 100))
def test_the_loss_of_masked_positions_is_that_of_all_logits(config, seed):
    model, rng = randomize(Encoder(config), seed), np.random.default_rng(seed)
    ids, targets = tokens(rng, 2, 7), np.full((2, 7), -100)
    which = rng.permutation(14)[: rng.integers(1, 15)]
    targets.reshape(-1)[which] = rng.integers(0, V, which.size)
    loss = model.loss(ids, targets)
    assert loss.item() == pytest.approx(ag.cross_entropy(model(ids), targets).item(), rel=1e-9)


def test_smoothing_and_z_loss_count_in_training_alone():
    model, ids = made().set_label_smoothing(0.2).set_z_loss(0.1), tokens(np.random.default_rng(0), 2, 5)
    plain = model.loss(ids, ids).item()
    smoothed = ag.cross_entropy(model(ids), ids, label_smoothing=0.2, z_loss=0.1).item()
    assert plain == pytest.approx(ag.cross_entropy(model(ids), ids).item(), rel=1e-9)
    assert model.train().loss(ids, ids).item() == pytest.approx(smoothed, rel=1e-9) != plain


@settings(max_examples=15)
@given(encoders(pooler=False), st.integers(0, 100))
def test_gradients_are_those_of_finite_differences(config, seed):
    # smooth activations: a kink between two values of the difference is no error
    config = dataclasses.replace(config, activation="gelu_exact", norm="layer")
    model, rng = randomize(Encoder(config), seed), np.random.default_rng(seed)
    ids, mask = tokens(rng, 2, 6), np.array([[1] * 6, [1] * 4 + [0] * 2])
    targets = np.where(mask & (rng.random(ids.shape) < 0.5), ids, -100)
    targets[0, 0] = 4

    def loss():
        return model.loss(ids, targets, mask)

    loss().backward()
    for _, p in model.named_parameters():
        check_by_differences(p, loss, rng)


def test_recomputed_blocks_have_the_same_gradients():
    ids, found = tokens(np.random.default_rng(0), 2, 6), []
    for on in (False, True):
        model = Encoder(dataclasses.replace(QUICK, dropout=0.2)).recompute_blocks(on).train()
        model.loss(ids, ids).backward()
        found.append({name: backend.to_host(p.grad) for name, p in model.named_parameters()})
    np.testing.assert_equal(*found)


def test_masked_words_leave_the_pooler_as_it_is():
    """An optimizer takes it for frozen, so that an encoder with a pooler can be trained further on masked words."""
    model = Encoder(dataclasses.replace(QUICK, pooler=True))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["pooler.weight", "pooler.bias"]


def test_masked_words_are_learned_from_both_sides():
    rng = np.random.default_rng(0)
    model = Encoder(EncoderConfig(n_layer=1, n_head=2, n_embd=32, n_positions=3, vocab_size=12))
    optimizer = ag.optim.AdamW(model, lr=5e-3)
    for _ in range(150):
        train_step(model, optimizer, [between(rng)])
    ids, targets = between(rng)
    answers = host(model.eval()(ids))[:, 1].argmax(axis=1)
    assert (answers == targets[:, 1]).mean() > 0.95


def between(rng):
    """(a, 11, b), a below 2 and b below 5, with the target 5 a + b in the middle."""
    a, b = rng.integers(0, 2, 64), rng.integers(0, 5, 64)
    ids, targets = np.stack([a, np.full(64, 11), b], axis=1), np.full((64, 3), -100)
    targets[:, 1] = 5 * a + b
    return ids, targets


# ---- files -------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(config=encoders(), seed=st.integers(0, 100))
def test_what_is_saved_comes_back(tmp_path_factory, config, seed):
    """As BERT or RoBERTa where one of them describes it, else in a form of our own, with a warning."""
    directory, model = tmp_path_factory.mktemp("saved"), randomize(Encoder(config), seed, "float32")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.save_pretrained(directory)
    own = family_of(config, ENCODER) not in (BERT, ROBERTA)
    assert [
        str(w.message) for w in caught if "which transformers cannot read: none of bert, roberta has" in str(w.message)
    ] != [] or not own
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.kind == ENCODER
    for again in (Encoder.from_pretrained(directory), checkpoint.model()):
        assert type(again) is Encoder and again.config == config
        np.testing.assert_equal(weights(again), weights(model))


def test_files_of_earlier_versions_are_understood(tmp_path):
    """gamma and beta, buffers of positions, the decoder's copies, the head for next sentences: as Google's files have them."""
    model = randomize(Encoder(dataclasses.replace(QUICK, pooler=True)), 1, "float32")
    model.save_pretrained(tmp_path)
    arrays = {name: read_tensor(tensor) for name, tensor in read_headers(tmp_path).items()}
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): a for name, a in arrays.items()}
    old["bert.embeddings.position_ids"] = np.arange(T, dtype=np.float32)[None]
    old["cls.predictions.decoder.weight"] = arrays["bert.embeddings.word_embeddings.weight"]
    old["cls.predictions.decoder.bias"] = arrays["cls.predictions.bias"]
    old |= {"cls.seq_relationship.weight": np.zeros((2, 8), np.float32), "cls.seq_relationship.bias": np.zeros(2, np.float32)}
    write_files(tmp_path / "old", {"model.safetensors": TensorFile(old, {}), "config.json": (tmp_path / "config.json").read_bytes()})
    again = Encoder.from_pretrained(tmp_path / "old")
    np.testing.assert_equal(weights(again), weights(model))
    old["cls.predictions.decoder.bias"] = old["cls.predictions.decoder.bias"] + 1
    write_files(tmp_path / "bad", {"model.safetensors": TensorFile(old, {}), "config.json": (tmp_path / "config.json").read_bytes()})
    with pytest.raises(ValueError, match=r"predictions.decoder.bias differs from cls.predictions.bias, expected equal ones"):
        Encoder.from_pretrained(tmp_path / "bad")


def test_an_encoder_without_a_head_loads_and_says_what_it_lacks(tmp_path):
    """A file of transformers' BertModel, which has no prefix before its names."""
    model = randomize(Encoder(dataclasses.replace(QUICK, pooler=True)), 1, "float32")
    model.save_pretrained(tmp_path)
    arrays = {name.removeprefix("bert."): read_tensor(t) for name, t in read_headers(tmp_path).items() if name.startswith("bert.")}
    write_files(tmp_path / "body", {"model.safetensors": TensorFile(arrays, {}), "config.json": (tmp_path / "config.json").read_bytes()})
    body, ids = Encoder.from_pretrained(tmp_path / "body"), np.array([[3, 4, 5]])
    assert not body.config.head and body.config.pooler
    np.testing.assert_array_equal(host(body.eval().pooled(ids)), host(model.pooled(ids)))
    with pytest.raises(ValueError, match="a model without a head for masked words, expected EncoderConfig"):
        body(ids)


REFUSED = [
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key', expected absolute"),
    ("bert", {"is_decoder": True}, "is_decoder True, expected False"),
    ("roberta", {"add_cross_attention": True}, "add_cross_attention True, expected False"),
    ("bert", {"hidden_act": "mish"}, "hidden_act 'mish', expected one of gelu_new"),
    ("roberta", {"hidden_act": "relu"}, "hidden_act 'relu', expected gelu; the head for masked words has no other"),
    ("roberta", {"max_position_embeddings": 1}, r"max_position_embeddings 1, expected more than pad_token_id \+ 1 = 1"),
    ("bert", {"type_vocab_size": 0}, "type_vocab_size 0, expected a number from 1"),
    ("bert", {"hidden_size": None}, "no hidden_size, expected the model's size"),
    ("distilbert", {}, "model_type 'distilbert', expected one of .*bert, roberta.*; distilbert: an encoder that no table here describes"),
]


@pytest.mark.parametrize(("family", "fields", "message"), REFUSED)
def test_variants_are_refused_by_name(tmp_path, family, fields, message):
    Encoder(dataclasses.replace(QUICK, count_padding=family != "roberta")).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_bytes(to_json(read_json_object(path) | {"model_type": family} | fields))
    with pytest.raises(ValueError, match=message):
        Encoder.from_pretrained(tmp_path)


def test_a_model_of_another_kind_says_what_to_use(tmp_path):
    Encoder(QUICK).save_pretrained(tmp_path / "encoder")
    GPT(GPTConfig(n_layer=1, n_head=1, n_embd=4, n_positions=4, vocab_size=5)).save_pretrained(tmp_path / "gpt")
    with pytest.raises(ValueError, match=r"encoder: an encoder, expected a language model; load it with .*examples/fill_mask.py"):
        GPT.from_pretrained(tmp_path / "encoder")
    with pytest.raises(ValueError, match=r"an encoder, expected a language model; load it with Encoder.from_pretrained"):
        Checkpoint.open(tmp_path / "encoder").language_model()
    with pytest.raises(
        ValueError, match=r"gpt: a language model, expected an encoder; load it with GPT.from_pretrained, or examples/generate"
    ):
        Encoder.from_pretrained(tmp_path / "gpt")


# ---- bad input ---------------------------------------------------------------------------------------------------------------------------


def test_bad_settings_are_named():
    for fields, message in [
        ({"n_embd": 10, "n_head": 4}, r"EncoderConfig: n_embd 10 with n_head 4, expected n_head to divide n_embd; try n_embd 8 or 12"),
        ({"pad_id": V}, f"EncoderConfig.pad_id: {V}, expected less than vocab_size = {V}"),
        ({"n_token_types": -1}, "EncoderConfig.n_token_types: -1, expected at least 0"),
        ({"positions": "alibi"}, "EncoderConfig.positions: 'alibi', expected learned, sinusoidal, rotary or none"),
        ({"dropout": 1.0}, "EncoderConfig.dropout: 1.0, expected 0 <= dropout < 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(QUICK, **fields)
    with pytest.raises(TypeError, match=r"EncoderConfig.head: 'yes', expected bool"):
        dataclasses.replace(QUICK, head="yes")
    with pytest.raises(ValueError, match=r"EncoderConfig.preset: 'bert-bse', expected one of bert-base, .*; did you mean 'bert-base'"):
        EncoderConfig.preset("bert-bse")
    with pytest.raises(ValueError, match="EncoderConfig: unknown key 'n_heads', expected one of"):
        EncoderConfig.from_dict({"n_heads": 2})


def test_bad_arguments_are_named():
    model, ids = made(), np.array([[3, 4, 5]])
    for arguments, message in [
        (([3, 4],), r"Encoder: ids of shape \(2,\), expected \(batch, positions\); wrap one sequence as \[ids\]"),
        ((np.zeros((1, T + 1), int),), f"Encoder: {T + 1} positions, expected at most n_positions = {T}; shorten the text"),
        ((ids, [[1, 1]]), r"Encoder: attention_mask of shape \(1, 2\), expected \(1, 3\), that of ids"),
        ((ids, [[1, 2, 1]]), "Encoder: attention_mask"),
        ((ids, None, [[0, 1]]), r"Encoder: token_types of shape \(1, 2\), expected \(1, 3\)"),
        ((ids, None, [[0, 1, 2]]), "embedding.* 2"),
        (([[3, V, 5]],), f"embedding.* {V}"),
    ]:
        with pytest.raises(ValueError, match=message):
            model(*arguments)
    with pytest.raises(ValueError, match="Encoder: token_types for a model with n_token_types 0, expected None; leave them out"):
        made(n_token_types=0)(ids, None, 0 * ids)
    with pytest.raises(ValueError, match=r"Encoder: targets of shape \(3,\), expected \(1, 3\), that of ids"):
        model.loss(ids, [3, 4, 5])
    with pytest.raises(ValueError, match=r"Encoder.loss: none of 3 targets counts, expected at least one that is not -100; mask a token"):
        model.loss(ids, np.full((1, 3), -100))
    with pytest.raises(ValueError, match=r"Encoder: a model without pooler, expected EncoderConfig\(pooler=True\)"):
        model.pooled(ids)
    with pytest.raises(AttributeError, match=r"module 'tinygpt.models' has no attribute 'Decoder'"):
        models.Decoder  # noqa: B018
