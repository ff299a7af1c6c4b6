"""Label smoothing on its way from settings to gradients: it counts in training mode alone. Formula and gradient: tests/autograd/test_loss.py."""

import math

import numpy as np
import pytest

from autograd.backend import to_host
from autograd.optim import AdamW
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import TOKENS, check_by_differences, randomize, tiny
from tinygpt import GPT, TrainConfig
from tinygpt.data.tokenizer import train_tokenizer
from tinygpt.data.windows import Windows
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.parallel.local import Replicas
from tinygpt.training.step import Shard, accumulate
from tinygpt.training.trainer import Trainer


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def classifier():
    tokenizer = train_tokenizer("characters", ["abc"], 10)
    return randomize(GPTClassifier(GPT(tiny(vocab_size=tokenizer.n_vocab)), tokenizer, ["a", "b", "c"]), 0)


def test_a_language_model_smooths_in_training_mode_alone():
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 11, (2, 3, 8))
    model = randomize(GPT(tiny()), 0)
    plain, every = model.loss(ids, targets).item(), -log_softmax(to_host(model(ids).data)).mean()
    assert model.set_label_smoothing(0.1).loss(ids, targets).item() == plain
    assert model.train().loss(ids, targets).item() == pytest.approx(0.9 * plain + 0.1 * every, rel=1e-12)
    model.zero_grad()
    model.loss(ids, targets).backward()
    for name, p in model.named_parameters():
        if name in ("wte.weight", "h.0.attn.c_attn.weight", "ln_f.bias"):
            check_by_differences(p, lambda: model.loss(ids, targets), rng)
    assert model.set_label_smoothing(0.0).loss(ids, targets).item() == plain


@pytest.mark.parametrize("weighted", [False, True])
def test_a_classifier_smooths_its_labels_in_training_mode_alone(weighted):
    model, rng = classifier(), np.random.default_rng(0)
    ids, targets, real = rng.integers(0, 3, (4, 6)), np.array([0, 2, 1, 2]), np.ones((4, 6), bool)
    weights = np.array([0.5, 1.5, 1.0, 1.5]) if weighted else None
    batch = ids, targets, real, weights
    log_p = log_softmax(to_host(model(ids).data))
    share = (np.ones(4) if weights is None else weights) / 4
    plain = model.loss(*batch).item()
    assert plain == pytest.approx(-(share * log_p[np.arange(4), targets]).sum(), rel=1e-9)
    assert model.set_label_smoothing(0.2).loss(*batch).item() == plain
    smoothed = -(share * (0.8 * log_p[np.arange(4), targets] + 0.2 * log_p.mean(axis=1))).sum()
    assert model.train().loss(*batch).item() == pytest.approx(smoothed, rel=1e-9)
    model.zero_grad()
    model.loss(*batch).backward()
    check_by_differences(model.score.weight, lambda: model.loss(*batch), rng)


def test_a_trainer_sets_it_and_validation_is_without():
    windows, notes = Windows(TOKENS, 8), []
    config = TrainConfig(steps=1, micro_batch=4, label_smoothing=0.5, eval_every=1, warmup_steps=1)
    trainer = Trainer(GPT(tiny()), config, windows, windows)
    assert trainer.model.label_smoothing == 0.5
    assert trainer.evaluate().nats == pytest.approx(math.log(11), rel=0.01)

    class Notes:
        note = staticmethod(notes.append)

        def update(self, metrics): ...
        def evaluated(self, step, nats, best): ...

    trainer.run(Notes())
    assert any("nats, labels smoothed; a uniform guess among 11" in note for note in notes)


@numpy_only
def test_replicas_smooth_as_one_process_does():
    model = GPT(tiny()).train()
    optimizer = AdamW(model)
    batch = tuple(np.random.default_rng(0).integers(0, 11, (2, 5, 8)))
    copies = Replicas(model, optimizer, 2)
    try:
        for smoothing in (0.0, 0.3):  # may change from update to update
            model.set_label_smoothing(smoothing)
            optimizer.zero_grad()
            loss, gradient = float(accumulate(model, [Shard(batch, 1.0)])), optimizer.gradient.copy()
            optimizer.zero_grad()
            assert float(copies.gradients([batch], [1.0])) == pytest.approx(loss, rel=1e-5)
            np.testing.assert_allclose(optimizer.gradient, gradient, atol=1e-6 * max(1, np.abs(gradient).max()))
    finally:
        copies.close()


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_illegal_shares_are_named(share):
    with pytest.raises(ValueError, match=r"TrainConfig.label_smoothing: \S+, expected 0 <= label_smoothing < 1; 0 switches it off"):
        TrainConfig(label_smoothing=share)
