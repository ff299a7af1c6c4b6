"""A classifier on an encoder: the interface of the GPT's, BERT's head, files that say the same; frozen, with adapters, resumed."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd import backend
from tests.tinygpt.helpers import Notes, check_by_differences, randomize, weights
from tinygpt import Checkpoint, Run, TrainConfig
from tinygpt.data.tokenizer import encoder_tokenizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.finetuning.classifier import GPTClassifier, LabeledBatches, encode
from tinygpt.finetuning.common import fit, n_trainable, set_trainable
from tinygpt.finetuning.encoder_classifier import EncoderClassifier
from tinygpt.finetuning.lora import LoraConfig, load_lora
from tinygpt.models import Encoder
from tinygpt.runs.verify import check_checkpoint
from tinygpt.weights.config_json import ENCODER_CLASSIFIER

LABELS = ["ham", "eggs", "spam"]
TEXTS = ["free money, click now", "eggs for lunch", "see you at ten"]
TOKENIZER = encoder_tokenizer(TEXTS * 3, 270)
TINY = EncoderConfig(
    n_layer=2, n_head=2, n_embd=16, n_positions=24, vocab_size=TOKENIZER.n_vocab, pad_id=TOKENIZER.pad_id, initializer_range=0.1
)  # fmt: skip


def classifier(seed=0, config=TINY, **options):
    return randomize(EncoderClassifier(Encoder(config), TOKENIZER, LABELS, **options), seed)


def host(tensor):
    return backend.to_host(tensor.data)


@settings(max_examples=20)
@given(st.integers(0, 99), st.integers(1, 8), st.integers(1, 4), st.sampled_from(["first", "mean"]), st.booleans())
def test_logits_do_not_change_with_padding(seed, n, padding, pooling, left):
    config = dataclasses.replace(TINY, count_padding=not left)
    model, rng = classifier(seed, config, pooling=pooling), np.random.default_rng(seed)
    ids = rng.integers(0, TINY.vocab_size - 4, (2, n))
    filler, mask = rng.integers(0, TINY.vocab_size, (2, padding)), np.ones_like(ids)
    halves = [(filler, 0 * filler), (ids, mask)] if left else [(ids, mask), (filler, 0 * filler)]
    padded, real = (np.concatenate([half[i] for half in halves], axis=1) for i in (0, 1))
    np.testing.assert_allclose(host(model(padded, real)), host(model(ids)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_the_head_computes_what_its_docstring_says(pooling):
    model, ids = classifier(pooling=pooling), np.array([[5, 6, 7, 0]])
    mask, w = np.array([[1, 1, 1, 0]]), weights(model)
    h = host(model.transformer.hidden(ids, mask))[0, :3]
    h = h[0] if pooling == "first" else h.mean(axis=0)
    y = np.tanh(h @ w["transformer.pooler.weight"] + w["transformer.pooler.bias"]) @ w["score.weight"] + w["score.bias"]
    np.testing.assert_allclose(host(model(ids, mask))[0], y, rtol=1e-9)


def test_gradients_are_those_of_finite_differences():
    model, rng = classifier(), np.random.default_rng(0)
    batch = LabeledBatches([rng.integers(0, 99, n) for n in (3, 7, 5)], np.array([0, 2, 1]), np.array([1.0, 2.0, 0.5])).batch(np.arange(3))
    model.loss(*batch).backward()
    for _, p in model.named_parameters():
        check_by_differences(p, lambda: model.loss(*batch), rng)


def test_the_encoder_gives_its_weights_and_keeps_its_head():
    """Weights are shared, so training the classifier changes them; a pooler of its own is taken over, else a new one is made."""
    encoder = Encoder(dataclasses.replace(TINY, tie_word_embeddings=False))
    model = EncoderClassifier(encoder, TOKENIZER, LABELS, seed=3)
    assert model.transformer.wte is encoder.wte and encoder.head is not None and encoder.config.head and not encoder.config.pooler
    assert not any(".head." in name for name, _ in model.named_parameters()) and not model.config.head and model.config.pooler
    assert model.n_parameters() == model.config.n_parameters() + 16 * 3 + 3
    np.testing.assert_equal(weights(EncoderClassifier(encoder, TOKENIZER, LABELS, seed=3)), weights(model))
    with_pooler = Encoder(dataclasses.replace(TINY, pooler=True))
    assert EncoderClassifier(with_pooler, TOKENIZER, LABELS).transformer.pooler is with_pooler.pooler
    assert all(p.requires_grad for p in with_pooler.parameters())


def test_texts_get_what_the_model_wants_around_them():
    """[CLS] text [SEP], also where a long text is cut."""
    (ids, cut), n_cut = encode(["see you", "free money, click now " * 9], TOKENIZER, 12, truncate=True)
    assert n_cut == 1 and len(cut) == 12
    for sequence in (ids, cut):
        assert (sequence[0], sequence[-1]) == (TOKENIZER.cls_id, TOKENIZER.sep_id)
        assert TOKENIZER.sep_id not in sequence[:-1]
    n = len(TOKENIZER.encode("free money, click now " * 9))
    with pytest.raises(ValueError, match=rf"text 0: {n + 2} tokens, expected at most 12, the model's context"):
        encode(["free money, click now " * 9], TOKENIZER, 12)


@pytest.mark.parametrize(
    "changes", [{}, {"count_padding": False}, {"positions": "rotary", "norm_position": "pre"}], ids=["bert", "roberta", "ours"]
)
@pytest.mark.filterwarnings("ignore:.*which transformers cannot read")
def test_a_saved_classifier_says_the_same(tmp_path, changes):
    model = EncoderClassifier(Encoder(dataclasses.replace(TINY, **changes)), TOKENIZER, LABELS, pooling="mean", seed=1).eval()
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.kind == ENCODER_CLASSIFIER and checkpoint.config == model.config
    for again in (checkpoint.model(), EncoderClassifier.from_pretrained(tmp_path)):
        assert type(again) is EncoderClassifier and (again.labels, again.pooling) == (LABELS, "mean")
        np.testing.assert_equal(weights(again), weights(model))
        np.testing.assert_array_equal(again.predict(TEXTS).probabilities, model.predict(TEXTS).probabilities)
    written = json.loads((tmp_path / "config.json").read_bytes())
    assert written["id2label"] == {"0": "ham", "1": "eggs", "2": "spam"} and written["pad_token_id"] == TOKENIZER.pad_id
    assert check_checkpoint(tmp_path) == ["cannot be resumed: no training.json with training.safetensors (it can be used and fine-tuned)"]
    with pytest.raises(ValueError, match=r"an encoder's classifier, expected a classifier; load it with EncoderClassifier.from_pretrained"):
        GPTClassifier.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"an encoder's classifier, expected an encoder; load it with EncoderClassifier.from_pretrained"):
        Encoder.from_pretrained(tmp_path)


def data(seed):
    """Texts whose label is their first word's."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, 48)
    texts = [f"{['free', 'eggs', 'see'][label]} {' '.join(rng.choice(['you', 'now', 'for', 'ten'], 3))}" for label in targets]
    return LabeledBatches(encode(texts, TOKENIZER, TINY.n_positions)[0], targets)


SETTINGS = TrainConfig(steps=40, lr=1e-2, warmup_steps=10, micro_batch=12, eval_every=20, log_every=20)


@pytest.mark.parametrize("which", ["head", "last-block", "all", "lora"])
def test_what_is_frozen_keeps_every_bit(tmp_path, which):
    model = EncoderClassifier(Encoder(TINY, seed=1), TOKENIZER, LABELS, pooling="mean")
    adapter = set_trainable(model, which, LoraConfig(2, targets=("q", "v", "down")))
    before, n = weights(model), n_trainable(model)
    run = Run.create("x", tmp_path / "run", background=False)
    run.tokenizer, run.adapter = TOKENIZER, adapter
    result = fit(model, data(0), data(1), SETTINGS, Notes(), run)
    changed = {name for name, a in weights(model).items() if not np.array_equal(a, before[name])}
    head = {"score.weight", "score.bias", "transformer.pooler.weight", "transformer.pooler.bias"}
    inside = {
        "head": set(), "last-block": {name for name in before if name.startswith("transformer.h.1.")},
        "all": set(before) - head, "lora": {name for name in before if ".lora_" in name},
    }[which]  # fmt: skip
    assert changed == head | inside and n == sum(before[name].size for name in changed)
    saved = EncoderClassifier.from_pretrained(tmp_path / "run").eval()
    np.testing.assert_allclose(saved.logits(data(2).sequences), model.eval().logits(data(2).sequences), atol=1e-5)
    if which == "all":
        assert result.best_validation_nats < 0.5 and (model.logits(data(2).sequences).argmax(1) == data(2).targets).mean() > 0.9
    if adapter:
        adapter.save(tmp_path / "adapter")
        again = EncoderClassifier(Encoder(TINY, seed=1), TOKENIZER, LABELS, pooling="mean", seed=9)
        load_lora(again, tmp_path / "adapter")
        np.testing.assert_equal(weights(again), weights(model))
        fields = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
        assert fields["modules_to_save"] == ["bert.pooler.dense", "classifier"] and "query" in str(fields["target_modules"])


def test_bad_input_is_named():
    encoder = Encoder(TINY)
    with pytest.raises(ValueError, match=r"pooling: 'last', expected one of first, mean; first is the usual choice for this kind of model"):
        EncoderClassifier(encoder, TOKENIZER, LABELS, pooling="last")
    with pytest.raises(ValueError, match=r"labels: \['a'\], expected at least 2 different names"):
        EncoderClassifier(encoder, TOKENIZER, ["a"])
    model = EncoderClassifier(encoder, TOKENIZER, LABELS)
    with pytest.raises(
        ValueError, match=r"EncoderClassifier: ids \(1, 2\) with attention_mask \(1, 2\), expected .* a real token in every row"
    ):
        model(np.array([[1, 2]]), np.array([[0, 0]]))
    with pytest.raises(ValueError, match=r"EncoderClassifier: z_loss 0.1, expected 0; it is for language models"):
        model.set_z_loss(0.1)
