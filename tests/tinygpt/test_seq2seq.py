"""The encoder-decoder: what sees what, each source encoded once, the same targets with and without caches, files, errors."""

import dataclasses
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from tests.tinygpt.helpers import check_by_differences, randomize, weights
from tinygpt import GPT, Checkpoint, GPTConfig
from tinygpt.config import TrainConfig
from tinygpt.inference.beam import Beams
from tinygpt.inference.sampling import log_softmax
from tinygpt.inference.translate import cross_attention, search
from tinygpt.models import Seq2Seq
from tinygpt.models.seq2seq import CrossAttention, relative_buckets, shifted_right, translate_plain
from tinygpt.seq2seq_config import PRESETS, Seq2SeqConfig
from tinygpt.storage.safetensors import TensorFile, read_headers, read_tensor, write_files
from tinygpt.training.trainer import Trainer
from tinygpt.weights.config_json import ENCODER_DECODER, family_of
from tinygpt.weights.marian import MARIAN, OUR_SEQ2SEQ
from tinygpt.weights.t5 import T5

V, S, T = 23, 9, 7
QUICK = Seq2SeqConfig(n_layer=2, n_head=2, n_embd=8, n_positions=12, vocab_size=V, n_inner=12)
T5_LIKE = {
    name: PRESETS["t5-small"][name]
    for name in "norm norm_position positions bias embedding_scale attention_scale padding_trains layer_norm_epsilon".split()
}
KINDS = {"2017": {}, "marian": {"logits_bias": True, "activation": "silu"}, "t5": {**T5_LIKE, "head_size": 3, "output_scale": 8**-0.5}}
kinds = pytest.mark.parametrize("kind", KINDS)


@st.composite
def configs(draw):
    """Small legal configs with any of the options, together."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    n_head = draw(st.integers(1, 3))
    return Seq2SeqConfig(
        n_layer=pick(1, 2), n_decoder_layer=pick(None, 1, 3), n_head=n_head, n_embd=n_head * pick(2, 4), n_positions=12, vocab_size=V,
        n_inner=pick(None, 5), norm=pick("layer", "rms"), norm_position=pick("post", "pre"), layer_norm_epsilon=pick(1e-5, 1e-3),
        positions=pick("sinusoidal", "learned", "relative"), relative_buckets=pick(4, 8, 32), relative_distance=pick(17, 128),
        activation=pick("relu", "gelu", "gelu_exact", "silu"), gated=pick(False, True), bias=pick(True, False), head_size=pick(None, 3),
        attention_scale=pick(None, 1.0), embedding_scale=pick(None, 1.0), output_scale=pick(1.0, 0.5), tie_word_embeddings=pick(True, False),
        logits_bias=pick(False, True), start_id=pick(0, 2), pad_id=pick(0, V - 1), padding_trains=pick(False, True),
        banned_ids=pick((), (3,)), forced_first_id=pick(None, 5), forced_last_id=pick(None, 1),
    )  # fmt: skip


def made(kind="2017", seed=0, dtype="float64", **changes):
    return randomize(Seq2Seq(dataclasses.replace(QUICK, **{**KINDS[kind], **changes})), seed, dtype).eval()


def batch(seed=0, n=3):
    """(sources (n, S), targets (n, T), mask (n, S)): the second source is padded, the third target has ignored positions."""
    rng = np.random.default_rng(seed)
    sources, targets, mask = rng.integers(2, V - 1, (n, S)), rng.integers(2, V - 1, (n, T)), np.ones((n, S), bool)
    mask[1, 5:] = False
    targets[2, 4:] = -100
    return sources, targets, mask


def host(tensor):
    return backend.to_host(tensor.data)


# ---- shape -------------------------------------------------------------------------------------------------------------------------------


def test_presets_have_the_published_numbers_of_weights():
    n = {name: Seq2SeqConfig.preset(name).n_parameters() for name in PRESETS}
    assert n["t5-small"] == 60_506_624
    assert n["t5-v1.1-small"] == 76_961_152
    assert n["opus-mt"] - 58_101 == 73_886_208  # the bias is no weight there
    assert n["transformer-base"] == pytest.approx(65e6, rel=0.03)  # table 3 of the paper rounds
    assert n["transformer-big"] == pytest.approx(213e6, rel=0.03)


@given(configs())
def test_the_config_knows_every_parameter(config):
    shapes = config.outer_shapes()
    for stack, n_layer in (("encoder", config.n_layer), ("decoder", config.n_decoder_layers)):
        each = config.block_shapes(decoder=stack == "decoder")
        shapes |= {f"{stack}.h.{i}.{name}": shape for i in range(n_layer) for name, shape in each.items()}
    model = Seq2Seq(config)
    assert {name: p.shape for name, p in model.named_parameters()} == shapes
    assert model.n_parameters() == config.n_parameters()
    assert Seq2SeqConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_the_initial_loss_is_about_that_of_a_uniform_guess():
    for kind in KINDS:
        config = Seq2SeqConfig.preset("laptop", **KINDS[kind])
        if kind == "t5":
            config = dataclasses.replace(config, output_scale=128**-0.5, head_size=None)
        rng = np.random.default_rng(0)
        loss = Seq2Seq(config).loss(rng.integers(0, 512, (4, 20)), rng.integers(0, 512, (4, 20))).item()
        most = 2 if kind == "t5" else 1  # logits of variance 1; T5's last norm also lets the token that was read through
        assert np.log(512) < loss < np.log(512) + most, kind


# ---- what sees what ----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(configs(), st.integers(0, 99))
def test_padding_changes_nothing(config, seed):
    model = randomize(Seq2Seq(config), seed).eval()
    sources, targets, _ = batch(seed)
    inputs = shifted_right(targets, config.start_id, config.pad_id)
    alone = host(model(sources[:1, :5], inputs[:1]))
    for pad in (0, 2):
        right = np.concatenate([sources[:1, :5], np.full((1, 4), pad)], axis=1)
        left = np.concatenate([np.full((1, 4), pad), sources[:1, :5]], axis=1)
        for padded, mask in ((right, np.arange(S) < 5), (left, np.arange(S) >= 4)):
            both = np.concatenate([padded, sources[1:2]]), np.repeat(inputs[:1], 2, axis=0), np.stack([mask, np.ones(S, bool)])
            np.testing.assert_allclose(host(model(*both))[:1], alone, atol=1e-9)


@kinds
def test_a_target_sees_what_is_before_it_and_all_of_the_source(kind):
    model = made(kind)
    sources, targets, mask = batch()
    inputs = shifted_right(targets, 0, 0)
    before = host(model(sources, inputs, mask))
    later = inputs.copy()
    later[:, 4:] = (later[:, 4:] + 1) % V
    after = host(model(sources, later, mask))
    np.testing.assert_allclose(after[:, :4], before[:, :4], atol=1e-12)
    assert (np.abs(after[:, 4:] - before[:, 4:]).max(axis=-1) > 1e-6).all()
    for position in range(S):  # the first target depends on every token of the source, and every token of the encoder's output on it
        other = sources.copy()
        other[:, position] = 1
        changed = np.abs(host(model(other, inputs, mask)) - before)[:, 0].max(axis=-1) > 1e-9
        assert changed.tolist() == mask[:, position].tolist()
        hidden = np.abs(host(model.encode(other).hidden) - host(model.encode(sources).hidden)).max(axis=-1)
        assert (hidden > 1e-9).all()


def test_positions_matter_in_every_kind():
    for kind in [*KINDS, "learned"]:
        model = made(**({"positions": "learned"} if kind == "learned" else {"kind": kind}))
        logits = host(model([[4, 5, 6], [6, 5, 4]], [[0, 7, 8], [0, 7, 8]]))
        assert np.abs(logits[0] - logits[1]).max() > 1e-6


def test_buckets_of_distances_by_example():
    ahead = np.array([-200, -128, -16, -9, -8, -7, -1, 0, 1, 7, 8, 9, 16, 127, 300])
    assert relative_buckets(ahead, False, 32, 128).tolist() == [15, 15, 10, 8, 8, 7, 1, 0, 17, 23, 24, 24, 26, 31, 31]
    assert relative_buckets(ahead, True, 32, 128).tolist() == [31, 31, 16, 9, 8, 7, 1, 0, 0, 0, 0, 0, 0, 0, 0]


def test_sines_come_before_cosines():
    table = host(Seq2Seq(QUICK).encoder.wpe(np.arange(3)))
    np.testing.assert_allclose(
        table[2], [np.sin(2), np.sin(0.2), np.sin(0.02), np.sin(0.002), np.cos(2), np.cos(0.2), np.cos(0.02), np.cos(0.002)], rtol=1e-6
    )


# ---- loss --------------------------------------------------------------------------------------------------------------------------------


@kinds
def test_the_loss_is_the_cross_entropy_of_targets_that_count(kind):
    model = made(kind)
    sources, targets, mask = batch()
    logits = host(model(sources, shifted_right(targets, 0, 0), mask))
    counted = targets >= 0
    expected = -log_softmax(logits)[counted, targets[counted]].mean()
    assert model.loss(sources, targets, mask).item() == pytest.approx(expected, abs=1e-9)
    other = targets.copy()
    other[2, 4] = 5  # one more target counts
    assert model.loss(sources, other, mask).item() != pytest.approx(expected, abs=1e-4)


def test_targets_are_shifted_right():
    assert shifted_right([[5, 6, -100], [7, -100, -100]], 2, 3).tolist() == [[2, 5, 6], [2, 7, 3]]


@kinds
def test_every_gradient_is_that_of_differences(kind):
    model = made(kind, start_id=2)  # no padding is read where it counts
    sources, targets, mask = batch()
    loss = lambda: model.loss(sources, targets, mask)  # noqa: E731
    loss().backward()
    rng = np.random.default_rng(0)
    for _, p in model.named_parameters():
        check_by_differences(p, loss, rng)


def test_padding_learns_from_being_read_where_the_config_says_so():
    sources, targets, _ = batch()
    grads = {}
    for trains in (False, True):
        model = made(padding_trains=trains, tie_word_embeddings=False)
        model.loss(sources, targets).backward()
        grads[trains] = backend.to_host(model.wte.weight.grad)
    assert (grads[False][0] == 0).all()
    assert np.abs(grads[True][0]).max() > 1e-6  # start_id is padding here
    np.testing.assert_array_equal(grads[False][1:], grads[True][1:])


@kinds
def test_recomputed_blocks_give_the_same_gradients(kind):
    sources, targets, mask = batch()
    found = []
    for on in (False, True):
        model = made(kind, dtype="float32", dropout=0.2).recompute_blocks(on).train()
        loss = model.loss(sources, targets, mask)
        loss.backward()
        found.append([loss.item(), *(backend.to_host(p.grad) for p in model.parameters())])
    for without, with_recompute in zip(*found, strict=True):
        np.testing.assert_allclose(with_recompute, without, atol=1e-6)


def test_dropout_and_smoothed_labels_act_in_training_alone():
    sources, targets, mask = batch()
    model = made(dropout=0.3)
    exact = model.loss(sources, targets, mask).item()
    model.set_label_smoothing(0.1).set_z_loss(0.01)
    assert model.loss(sources, targets, mask).item() == exact
    drawn = [model.train().loss(sources, targets, mask).item() for _ in range(2)]
    assert drawn[0] != drawn[1]
    plain = made()
    smoothed = made().set_label_smoothing(0.1).train().loss(sources, targets, mask).item()
    log_p = log_softmax(host(plain(sources, shifted_right(targets, 0, 0), mask)))[targets >= 0]
    expected = -0.9 * log_p[np.arange(len(log_p)), targets[targets >= 0]] - 0.1 * log_p.mean(axis=1)
    assert smoothed == pytest.approx(expected.mean(), abs=1e-9)


class Reversed:
    """Sources of three to six tokens, and the same backwards."""

    def __len__(self):
        return 500

    def batch(self, which):
        sources, targets = np.zeros((len(which), 6), int), np.full((len(which), 7), -100)
        for row, i in enumerate(which):
            rng = np.random.default_rng(int(i))
            text = rng.integers(2, 12, rng.integers(3, 7))
            sources[row, : len(text)], targets[row, : len(text) + 1] = text, [*text[::-1], 1]
        return sources, targets, sources > 0


def test_it_learns_to_reverse_through_the_trainer(tmp_path):
    model = Seq2Seq(Seq2SeqConfig.preset("quick", n_layer=2, vocab_size=12, n_positions=16), seed=1)
    config = TrainConfig(steps=120, micro_batch=32, lr=5e-3, warmup_steps=20, weight_decay=0.0)
    trainer = Trainer(model, config, Reversed(), Reversed())
    for _ in range(config.steps):
        trainer.update()
    assert trainer.evaluate().nats < 0.5 < np.log(12)
    sources, targets, mask = Reversed().batch(np.arange(40))
    expected = [row[row >= 0].tolist() for row in targets]
    found = model.translate(sources, 10, attention_mask=mask)
    assert np.mean([a == b for a, b in zip(found, expected, strict=True)]) > 0.5
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.kind == ENCODER_DECODER and type(checkpoint.model()) is Seq2Seq
    assert checkpoint.model().translate(sources, 10, attention_mask=mask, n_beams=3) == model.translate(
        sources, 10, attention_mask=mask, n_beams=3
    )


# ---- decoding ----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(configs(), st.integers(0, 99), st.sampled_from([1, 2, 4]), st.sampled_from([0, 1, 3, 12]), st.sampled_from([1, 2, 32]))
def test_caches_and_batches_change_nothing(config, seed, n_beams, max_new_tokens, batch_size):
    model = randomize(Seq2Seq(config), seed)
    rng = np.random.default_rng(seed)
    sources = [rng.integers(0, V, n).tolist() for n in (3, 9, 1, 12)]
    found = search(model, sources, max_new_tokens, n_beams=n_beams, batch_size=batch_size)
    for source, beams in zip(sources, found, strict=True):
        (alone,) = search(model, [source], max_new_tokens, n_beams=n_beams, use_cache=False)
        assert [beam.ids for beam in beams] == [beam.ids for beam in alone]
        np.testing.assert_allclose([beam.score for beam in beams], [beam.score for beam in alone], atol=1e-8)
        assert len(beams) <= n_beams and all(1 <= len(beam.ids) <= max_new_tokens for beam in beams)
        assert all((beam.ids[-1] == config.eos_id) == (beam.stop_reason == "eos") for beam in beams)
    if n_beams == 1 and not (config.banned_ids or config.forced_first_id or config.forced_last_id):
        for source, beams in zip(sources, found, strict=True):
            assert translate_plain(model, source, max_new_tokens) == (beams[0].ids if beams else [])


@kinds
def test_each_source_is_encoded_once(kind, monkeypatch):
    model, counts = made(kind, dtype="float32"), {"encode": 0, "keys": 0, "decode": 0}

    def count(cls, name, key):
        plain = getattr(cls, name)

        def counting(self, *args, **options):
            counts[key] += 1
            return plain(self, *args, **options)

        monkeypatch.setattr(cls, name, counting)

    count(Seq2Seq, "encode", "encode")
    count(CrossAttention, "keys_values", "keys")
    count(Seq2Seq, "decode", "decode")
    found = search(model, [[4, 5, 6], [7, 8]], 12, n_beams=3)
    n_steps = max(len(beam.ids) for beams in found for beam in beams)
    assert counts["encode"] == 1 and counts["keys"] == QUICK.n_layer and counts["decode"] >= n_steps


def test_the_likeliest_target_is_found_by_many_beams():
    """Against all targets of up to three tokens."""
    model = randomize(Seq2Seq(dataclasses.replace(QUICK, vocab_size=4)), 0)
    source = [[2, 3, 2]]
    open_ends, complete = [()], []
    for _ in range(3):
        complete += [(*text, token) for text in open_ends for token in range(4) if token == 1 or len(text) == 2]
        open_ends = [(*text, token) for text in open_ends for token in range(4) if token != 1]

    def log_prob(text):
        logits = host(model(source, [[0, *text[:-1]]]))[0]
        return log_softmax(logits)[np.arange(len(text)), text].sum()

    for penalty in (0.0, 1.0, 3.0):
        scores = {text: log_prob(text) / len(text) ** penalty for text in complete}
        best = max(scores, key=scores.get)
        (beams,) = search(model, source, 3, n_beams=64, length_penalty=penalty)
        assert tuple(beams[0].ids) == best and beams[0].score == pytest.approx(scores[best])


def test_forced_and_banned_tokens():
    model = made(forced_first_id=7, forced_last_id=1, banned_ids=(5, 6))
    for beam in search(model, [[2, 3]], 6, n_beams=4)[0]:
        assert beam.ids[0] == 7 and (len(beam.ids) < 6 or beam.ids[-1] == 1) and not {5, 6} & set(beam.ids)
    free = made()
    (first,) = free.translate([[2, 3]], 1)
    (second,) = free.translate([[2, 3]], 1, banned_ids=first)
    assert first != second
    assert all(id < 4 for id in free.translate([[2, 3]], 8, n_tokens=4)[0])


def test_when_a_search_stops():
    """One end token, two beams; log-probabilities by hand."""
    first = np.log([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]])  # token 0 ends
    second = np.log([[0.6, 0.3, 0.1], [0.9, 0.05, 0.05]])
    stopped = {}
    for early in (False, True, "never"):
        beams = Beams(2, (0,), 50, length_penalty=3.0, early_stopping=early)
        beams.extend(first)
        assert not beams.done and beams.finished[0].ids == [0]
        beams.extend(second)
        stopped[early] = beams.done
        assert [beam.ids for beam in beams.finished] == [[2, 0], [1, 0]] or [beam.ids for beam in beams.finished] == [[1, 0], [2, 0]]
    assert stopped == {False: True, True: True, "never": False}  # after 50 tokens, 50^3 divides any log-probability to nearly 0


def test_cross_attention_is_that_of_the_model():
    sources, targets, mask = batch()
    for kind in KINDS:
        model = made(kind)
        p = cross_attention(model, sources, targets, mask)
        assert p.shape == (3, 2, 2, T, S)
        np.testing.assert_allclose(p.sum(axis=-1), 1, atol=1e-6)
        assert (p[1, ..., 5:] == 0).all()
        with ag.use_kernels("reference"), ag.record() as steps, ag.no_grad():
            model.loss(sources, targets, mask)
        by_shape = [step.saved.weights for step in steps if step.op.__name__ == "Attention" and step.inputs[1].shape[-2] == S]
        kept = [backend.to_host(a) for a in by_shape if a.shape[-2] == T]
        np.testing.assert_allclose(p, np.stack(kept, axis=1), atol=1e-6)


# ---- files -------------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(configs(), st.integers(0, 99))
def test_a_saved_model_is_read_back(tmp_path_factory, config, seed):
    directory = tmp_path_factory.mktemp("saved")
    model = randomize(Seq2Seq(config), seed, "float32").eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    again = Seq2Seq.from_pretrained(directory).eval()
    np.testing.assert_equal(weights(again), weights(model))
    sources, targets, mask = batch()
    assert again.loss(sources, targets, mask).item() == model.loss(sources, targets, mask).item()
    for name in ("start_id", "pad_id", "eos_id", "banned_ids", "forced_first_id", "forced_last_id", "padding_trains"):
        assert getattr(again.config, name) == getattr(config, name)


def test_families_describe_their_presets_and_the_rest_has_a_form_of_our_own(tmp_path):
    families = {name: family_of(Seq2SeqConfig.preset(name), ENCODER_DECODER) for name in PRESETS}
    assert [name for name, family in families.items() if family is T5] == ["t5-small", "t5-v1.1-small"]
    assert all(family is MARIAN for name, family in families.items() if not name.startswith("t5"))
    gated = Seq2Seq(dataclasses.replace(QUICK, gated=True))
    assert family_of(gated.config, ENCODER_DECODER) is OUR_SEQ2SEQ
    with pytest.warns(UserWarning, match="'tinygpt-seq2seq', which transformers cannot read: none of marian, t5 has gated True"):
        gated.save_pretrained(tmp_path)


def with_tensors(directory, more, without=()):
    """The directory's tensors and `more`, but for those of some names."""
    kept = {name: read_tensor(tensor).reshape(tensor.shape) for name, tensor in read_headers(directory).items() if name not in without}
    write_files(directory, {"model.safetensors": TensorFile(kept | more, {"format": "pt"})})


@pytest.mark.parametrize(("kind", "prefix"), [("marian", "model."), ("t5", "")])
def test_files_as_older_versions_wrote_them(tmp_path, kind, prefix):
    """With the shared embedding up to four times, and with what was never used."""
    model = made(kind, dtype="float32")
    model.save_pretrained(tmp_path)
    embedding = weights(model)["wte.weight"]
    copies = {f"{prefix}{stack}.embed_tokens.weight": embedding for stack in ("encoder", "decoder")} | {"lm_head.weight": embedding}
    unused = {
        "marian": {f"model.{stack}.embed_positions.weight": np.ones((12, 8), np.float32) for stack in ("encoder", "decoder")},
        "t5": {"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": np.ones((32, 2), np.float32)},
    }[kind]
    with_tensors(tmp_path, copies | unused)
    np.testing.assert_equal(weights(Seq2Seq.from_pretrained(tmp_path)), weights(model))
    with_tensors(tmp_path, {}, without=["model.shared.weight", "shared.weight"])  # a copy is as good
    np.testing.assert_equal(weights(Seq2Seq.from_pretrained(tmp_path)), weights(model))
    with_tensors(tmp_path, copies | {f"{prefix}shared.weight": embedding, f"{prefix}decoder.embed_tokens.weight": embedding + 1})
    with pytest.raises(
        ValueError, match=r"decoder.embed_tokens.weight differs from shared.weight, expected equal ones; a model whose encoder and decoder"
    ):
        Seq2Seq.from_pretrained(tmp_path)


def test_what_a_file_has_decides_on_optional_parts(tmp_path):
    made("marian", dtype="float32").save_pretrained(tmp_path)
    with_tensors(tmp_path, {}, without=["final_logits_bias"])
    assert not Seq2Seq.from_pretrained(tmp_path).config.logits_bias
    own = made("t5", dtype="float32", tie_word_embeddings=False, output_scale=1.0)
    own.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_bytes())
    assert (fields["tie_word_embeddings"], fields["scale_decoder_outputs"]) == (False, False)
    with_tensors(tmp_path, {f"{stack}.embed_tokens.weight": weights(own)["wte.weight"] for stack in ("encoder", "decoder")})
    for said in (fields, fields | {"tie_word_embeddings": True}, {k: v for k, v in fields.items() if k != "scale_decoder_outputs"}):
        file.write_text(json.dumps(said), encoding="utf-8")  # as it is, as transformers 5 writes it, as version 4 did
        again = Seq2Seq.from_pretrained(tmp_path)
        assert again.config == own.config
        np.testing.assert_equal(weights(again), weights(own))


def test_dropout_survives_the_files(tmp_path):
    for kind, more in (("2017", {"attn_pdrop": 0.0}), ("t5", {}), ("t5", {"embd_pdrop": 0.0, "attn_pdrop": 0.3})):
        model = Seq2Seq(dataclasses.replace(QUICK, **KINDS[kind], dropout=0.25, **more))
        model.save_pretrained(tmp_path)
        assert Seq2Seq.from_pretrained(tmp_path).config.dropouts == model.config.dropouts


def test_what_decoding_is_told_comes_from_generation_config(tmp_path):
    made(dtype="float32", banned_ids=(3,), forced_last_id=1).save_pretrained(tmp_path)
    assert Seq2Seq.from_pretrained(tmp_path).config.banned_ids == (3,)
    (tmp_path / "generation_config.json").write_text('{"bad_words_ids": [[4], [5]], "forced_bos_token_id": 7}', encoding="utf-8")
    config = Seq2Seq.from_pretrained(tmp_path).config
    assert (config.banned_ids, config.forced_first_id, config.forced_last_id) == ((4, 5), 7, None)


def test_summary_and_trace():
    for kind in KINDS:
        model = made(kind, dtype="float32")
        assert "decoder.h.1.cross.c_k.weight" in model.summary() and f"{model.n_parameters():,}" in model.summary()
        sources, targets, mask = batch()
        steps = model.trace(sources, targets).steps
        assert {"encoder.h.0.attn.c_attn", "decoder.h.1.cross.c_k", "decoder.h.0.ln_cross"} <= {step.module for step in steps}
        assert steps[-1].op == "LinearCrossEntropy"
        assert model.loss(sources, targets, mask).item() > 0  # afterwards it is as before


# ---- errors ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_embd": 10, "n_head": 3}, r"Seq2SeqConfig: n_embd 10 with n_head 3, expected n_head to divide n_embd"),
        ({"n_embd": 9, "n_head": 3}, r"Seq2SeqConfig.positions: 'sinusoidal' with n_embd 9, expected an even n_embd"),
        ({"positions": "rotary"}, r"Seq2SeqConfig.positions: 'rotary', expected sinusoidal, learned or relative"),
        ({"n_decoder_layer": 0}, r"Seq2SeqConfig.n_decoder_layer: 0, expected at least 1"),
        ({"eos_id": 37_000}, r"Seq2SeqConfig.eos_id: 37000, expected 0 to 36999, an id of the vocabulary"),
        ({"banned_ids": (0, -1)}, r"Seq2SeqConfig.banned_ids: -1, expected 0 to 36999"),
        ({"relative_buckets": 6}, r"Seq2SeqConfig: relative_buckets 6, relative_distance 128, expected a multiple of 4"),
        ({"relative_distance": 16}, r"relative_buckets 32, relative_distance 16, expected a multiple of 4 .* T5 has 32 and 128"),
        ({"output_scale": 0.0}, r"Seq2SeqConfig.output_scale: 0.0, expected > 0"),
        ({"attention_scale": -1.0}, r"Seq2SeqConfig.attention_scale: -1.0, expected > 0"),
    ],
)
def test_bad_configs_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Seq2SeqConfig(**fields)


def test_unknown_names_are_corrected():
    for wrong in (3, ["3"]):
        with pytest.raises(TypeError, match=r"Seq2SeqConfig.banned_ids: .*, expected integers; write them as \(3, 5\)"):
            Seq2SeqConfig(banned_ids=wrong)
    with pytest.raises(ValueError, match=r"Seq2SeqConfig.preset: 't5_small', expected one of .*; did you mean 't5-small'\?"):
        Seq2SeqConfig.preset("t5_small")
    with pytest.raises(ValueError, match=r"unknown key 'n_layers', .*did you mean 'n_layer'\?"):
        Seq2SeqConfig.from_dict({"n_layers": 3})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m([2, 3], [[0]]), r"Seq2Seq: source_ids of shape \(2,\), expected \(batch, positions\)"),
        (lambda m: m(np.zeros((2, 0), int), [[0], [0]]), r"source_ids of shape \(2, 0\), expected \(batch, positions\), none of them 0"),
        (lambda m: m(np.ones((1, 13), int), [[0]]), r"source_ids of 13 positions, expected at most n_positions = 12; shorten the text"),
        (lambda m: m([[2]], np.ones((1, 13), int)), r"target_ids of 13 positions, expected at most n_positions = 12"),
        (lambda m: m([[2], [3]], [[0]]), r"1 targets with 2 sources, expected one for each"),
        (lambda m: m([[V]], [[0]]), r"embedding id: 23 at position \(0, 0\), expected 0 <= id < 23"),
        (lambda m: m([[2, 3]], [[0]], [[1]]), r"attention_mask of shape \(1, 1\) with 1 tokens, expected \(1, 2\)"),
        (lambda m: m([[2], [3]], [[0], [0]], [[1], [0]]), r"attention_mask of shape .* with a token in every row; leave empty sources out"),
        (lambda m: m.loss([[2]], [3]), r"targets of shape \(1,\), expected \(batch, positions\)"),
        (lambda m: m.translate([[2], []], 3), r"translate: source 1 is empty, expected at least one token"),
        (lambda m: m.translate([[2]], 13), r"translate: max_new_tokens 13, expected 0 to 12, the model's n_positions"),
        (lambda m: m.translate([[2]], -1), r"translate: max_new_tokens -1, expected 0 to 12"),
        (lambda m: m.translate([[V]], 3), r"translate: source id"),
        (lambda m: m.translate([2], 3), r"translate: ids of shape \(1,\), expected \(batch, positions\)"),
        (lambda m: m.translate([[2]], 3, n_beams=0), r"n_beams: 0, expected at least 1"),
        (lambda m: m.translate([[2]], 3, n_beams=2, early_stopping="always"), r"early_stopping: 'always', expected False, True or 'never'"),
        (lambda m: m.translate([[2]], 3, batch_size=0), r"translate: batch_size 0, expected at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(made(dtype="float32"))


def test_relative_positions_have_no_last_one():
    model = made("t5", dtype="float32")
    assert model(np.ones((1, 30), int), np.ones((1, 20), int)).shape == (1, 20, V)
    assert len(model.translate([[2] * 30], 20)[0]) <= 20


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("marian", {"share_encoder_decoder_embeddings": False}, r"share_encoder_decoder_embeddings False, expected True"),
        ("marian", {"tie_word_embeddings": False}, r"tie_word_embeddings False, expected True"),
        ("marian", {"decoder_ffn_dim": 13}, r"decoder_ffn_dim 13, expected 12; encoder and decoder of one width"),
        ("marian", {"decoder_attention_heads": 4}, r"decoder_attention_heads 4, expected 2"),
        ("marian", {"decoder_vocab_size": 9}, r"decoder_vocab_size 9, expected 23"),
        ("marian", {"encoder_layerdrop": 0.1}, r"encoder_layerdrop 0.1, expected 0.0"),
        ("marian", {"normalize_before": True}, r"normalize_before True, expected False"),
        ("marian", {"activation_function": "mish"}, r"activation_function 'mish', expected one of"),
        ("marian", {"bad_words_ids": [[1, 2]]}, r"bad_words_ids \[\[1, 2\]\], expected words of one token each"),
        ("marian", {"eos_token_id": None}, r"no eos_token_id, expected an id of the vocabulary"),
        ("marian", {"encoder_layers": None}, r"no encoder_layers, expected the model's size"),
        ("marian", {"d_model": "8"}, r"n_embd '8', expected a number from 1"),
        ("marian", {"encoder_attention_heads": 0, "decoder_attention_heads": 0}, r"n_head 0, expected a number from 1"),
        ("t5", {"d_model": [8]}, r"n_embd \[8\], expected a number from 1"),
        ("t5", {"is_encoder_decoder": False}, r"is_encoder_decoder False, expected True; an encoder or a decoder alone"),
        ("t5", {"feed_forward_proj": "gated-mish"}, r"feed_forward_proj 'mish', expected one of"),
        ("t5", {"feed_forward_proj": 3}, r"feed_forward_proj 3, expected relu, or gated-gelu"),
    ],
)  # fmt: skip
def test_variants_that_are_not_computed_are_refused_by_name(tmp_path, kind, changes, message):
    made(kind, dtype="float32").save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | changes), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"config.json: {message}"):
        Seq2Seq.from_pretrained(tmp_path)


def test_a_model_of_another_kind_is_refused(tmp_path):
    made(dtype="float32").save_pretrained(tmp_path / "s2s")
    GPT(GPTConfig.preset("quick")).save_pretrained(tmp_path / "gpt")
    with pytest.raises(ValueError, match=r"an encoder-decoder, expected a language model; load it with Seq2Seq.from_pretrained"):
        GPT.from_pretrained(tmp_path / "s2s")
    with pytest.raises(ValueError, match=r"a language model, expected an encoder-decoder; load it with GPT.from_pretrained"):
        Seq2Seq.from_pretrained(tmp_path / "gpt")


@pytest.mark.skipif(backend.name == "numpy", reason="16 bits are for the GPU")
@kinds
def test_sixteen_bits_give_about_the_same(kind):
    sources, targets, mask = batch()  # gelu, as rounding turns a relu of nearly 0 on or off
    exact = made(kind, dtype="float32", activation="gelu")
    expected = exact.loss(sources, targets, mask)
    expected.backward()
    for dtype in ("bfloat16", "float16"):
        model = made(kind, dtype="float32", activation="gelu").set_compute_dtype(dtype)
        loss = model.loss(sources, targets, mask)
        loss.backward()
        assert loss.item() == pytest.approx(expected.item(), rel=0.03)
        assert {p.grad.dtype.name for p in model.parameters()} == {"float32"}
        here, there = (np.concatenate([backend.to_host(p.grad).ravel() for p in m.parameters()]) for m in (model, exact))
        assert np.linalg.norm(here - there) < 0.05 * np.linalg.norm(there)
        assert model(sources, [[0, 3]] * 3, mask).dtype.name == dtype
        assert len(model.translate(sources, 5, attention_mask=mask, n_beams=2)) == 3
