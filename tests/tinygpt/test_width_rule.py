"""The width rule: what it sets, that what it sets is kept, and the coordinate check; and z-loss on its way from settings to gradients."""

import dataclasses
import math

import numpy as np
import pytest

import autograd as ag
from autograd import backend
from autograd.backend import to_host
from autograd.optim import AdamW
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import TOKENS, check_by_differences, randomize, tiny, weights
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.data.tokenizer import train_tokenizer
from tinygpt.data.windows import Windows
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.inference.fast import supports_fast_decoding
from tinygpt.models.gpt import generate_plain
from tinygpt.parallel.local import Replicas
from tinygpt.training.metrics import measure
from tinygpt.training.optimizers import hidden_matrices, make_optimizer, width_lr_scales
from tinygpt.training.step import Shard, accumulate, train_step
from tinygpt.training.trainer import Trainer
from tinygpt.weights.config_json import format_note
from tinygpt.width_rule import at_width

BASE = tiny(n_embd=32, n_head=2)  # heads of 16


@pytest.mark.parametrize(
    ("n_embd", "n_head", "heads", "scale"), [(128, None, 8, 16**-0.5), (128, 2, 2, 4 / 64), (128, 4, 4, 4 / 32), (16, None, 1, 16**-0.5)]
)
def test_what_the_rule_sets(n_embd, n_head, heads, scale):
    wide = at_width(BASE, n_embd, n_head)
    assert (wide.n_embd, wide.n_head, wide.width_base, wide.width_ratio) == (n_embd, heads, 32, n_embd / 32)
    assert wide.attention_scale == pytest.approx(scale) and GPT(wide).lm_head.scale == 32 / n_embd
    again = at_width(at_width(BASE, 64), n_embd, heads)
    assert again == dataclasses.replace(wide, attention_scale=again.attention_scale)  # in two steps as in one
    assert again.attention_scale == pytest.approx(scale)


def test_what_is_as_wide_as_the_inner_channels_grows_with_them():
    base = tiny(n_embd=32, n_head=4, n_kv_head=2, n_inner=48, head_size=16, attention_scale=0.1, gated=True)
    wide = at_width(base, 96)
    assert (wide.n_head, wide.n_kv_head, wide.n_inner, wide.head_size, wide.attention_scale) == (12, 6, 144, 16, 0.1)
    wide = at_width(base, 64, 4)
    assert (wide.n_head, wide.n_kv_head, wide.n_inner, wide.head_size, wide.attention_scale) == (4, 2, 96, 32, 0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: at_width(BASE, 40), r"at_width: n_head 2 would become 2.5, expected an integer; choose n_embd"),
        (lambda: at_width(BASE, 40, 3), r"at_width: n_embd 40 with n_head 3, expected n_head to divide n_embd"),
        (lambda: at_width(tiny(n_inner=33), 24, 2), r"at_width: n_inner 33 would become 49.5, expected an integer"),
        (lambda: tiny(n_embd=64, width_base=16),
         r"GPTConfig.width_base: 16 with attention_scale None, expected sqrt\(head size of the base\) / 32: 0.1768 if the base has heads of "
         r"32 channels too, 0.08839 if it has 2 heads too; or take tinygpt.width_rule.at_width"),
        (lambda: tiny(width_base=-1), r"GPTConfig.width_base: -1, expected at least 0"),
        (lambda: make_optimizer(GPT(at_width(BASE, 64)), TrainConfig(optimizer="sgd")),
         r"TrainConfig.optimizer: sgd with width_base 32, expected adamw, adam or muon, whose steps the width rule knows; try adamw"),
    ],
)  # fmt: skip
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "muon"])
def test_hidden_matrices_alone_have_another_learning_rate(optimizer):
    model = GPT(at_width(dataclasses.replace(BASE, n_layer=2), 128))
    scale = 0.5 if optimizer == "muon" else 0.25
    made = make_optimizer(model, TrainConfig(optimizer=optimizer, lr=0.1))
    by_name = {name: group.lr_scale for group in made.groups for name, _ in group.named}
    hidden = {f"h.{i}.{name}.weight" for i in range(2) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    assert hidden == set(hidden_matrices(model))
    assert by_name == {name: scale if name in hidden else 1.0 for name, _ in model.named_parameters()}
    assert width_lr_scales(GPT(BASE), optimizer) == width_lr_scales(GPT(at_width(BASE, 32)), optimizer) == {}


def test_a_classifier_keeps_the_rule_for_what_it_trains():
    tokenizer = train_tokenizer("characters", ["abc"], 10)
    classifier = GPTClassifier(GPT(at_width(tiny(vocab_size=tokenizer.n_vocab), 32)), tokenizer, ["a", "b"])
    scales = width_lr_scales(classifier, "adamw")
    assert len(scales) == 4 and all(name.startswith("transformer.h.0.") and scale == 0.5 for name, scale in scales.items())
    make_optimizer(classifier, TrainConfig(optimizer="adamw"))


def test_initial_weights():
    plain, wide = (weights(GPT(c, seed=3)) for c in (tiny(n_embd=256, vocab_size=99), at_width(tiny(n_embd=64, vocab_size=99), 256, 2)))
    for name, w in plain.items():
        factor = 0.5 if ".attn." in name or ".mlp." in name else 1.0
        np.testing.assert_allclose(wide[name], w * factor, rtol=1e-6, err_msg=name)  # the same draws


def test_the_base_itself_is_the_model_without_the_rule():
    ids = np.arange(8)[None]
    with ag.no_grad():
        a, b = (to_host(GPT(c, seed=1)(ids).data) for c in (BASE, at_width(BASE, 32)))
    if backend.name == "numpy":
        np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # a GPU has another kernel for attention without options
    assert at_width(BASE, 32).width_ratio == 1


def test_logits_and_loss_have_the_factor():
    wide = at_width(BASE, 128)
    ruled, plain = GPT(wide, seed=2).eval(), GPT(dataclasses.replace(wide, width_base=0), seed=2).eval()
    for (_, p), (_, q) in zip(plain.named_parameters(), ruled.named_parameters(), strict=True):
        p.data[...] = q.data
    ids, targets = np.random.default_rng(0).integers(0, 11, (2, 3, 8))
    with ag.no_grad():
        logits = to_host(ruled(ids).data)
        np.testing.assert_allclose(logits, to_host(plain(ids).data) / 4, rtol=1e-5, atol=1e-7)
        expected = ag.cross_entropy(ag.Tensor(logits), targets).item()
        assert ruled.loss(ids, targets).item() == pytest.approx(expected, rel=1e-6)


def test_gradients_match_central_differences():
    model = randomize(GPT(at_width(dataclasses.replace(BASE, logit_softcap=3.0), 64)), 0).train().set_z_loss(0.05)
    rng = np.random.default_rng(1)
    ids, targets = rng.integers(0, 11, (2, 2, 8))
    model.loss(ids, targets).backward()
    for _, p in model.named_parameters():
        check_by_differences(p, lambda: model.loss(ids, targets), rng)


@numpy_only
@pytest.mark.parametrize("changes", [{}, {"logit_softcap": 3.0, "norm": "rms", "positions": "rotary"}])
def test_the_fast_decoder_computes_the_same(changes):
    model = randomize(GPT(at_width(dataclasses.replace(BASE, n_positions=24, **changes), 64)), 4, "float32")
    assert supports_fast_decoding(model)
    for seed in range(3):
        mine = model.generate([[1, 2, 3]], max_new_tokens=15, seed=seed, temperature=1.0, top_k=0)[0].tolist()
        assert mine == generate_plain(model, [1, 2, 3], 15, seed=seed, temperature=1.0, top_k=0)


def test_a_checkpoint_keeps_the_rule(tmp_path):
    model = GPT(at_width(BASE, 64), seed=5)
    assert "has attention_scale 0.25, width_base 32, taken together" in format_note(model.config)
    with pytest.warns(UserWarning, match="model_type 'tinygpt'"):
        model.save_pretrained(tmp_path)
    again = GPT.from_pretrained(tmp_path)
    assert again.config == model.config and again.lm_head.scale == 0.5
    assert width_lr_scales(again, "adamw") == width_lr_scales(model, "adamw") != {}


# ---- the coordinate check ----------------------------------------------------------------------------------------------------------------

IDS, TARGETS = np.random.default_rng(0).integers(0, 50, (2, 16, 16))


def inside(model):
    """Attention's scores, the last block's output, and the logits."""
    block, d = model.h[-1], model.config.channels_per_head
    with ag.no_grad():
        x = model.embed(IDS, np.arange(16))
        q, k, _ = np.split(to_host(block.attn.c_attn(block.ln_1(x)).data).reshape(16, 16, -1, d), 3, axis=2)
        x = block(x)
        logits = model.lm_head(model.ln_f(x))
    scores = np.einsum("bihd,bjhd->bhij", q, k) * (model.config.attention_scale or d**-0.5)
    return [scores, to_host(x.data), to_host(logits.data)]


def changes(base, width, n_head, optimizer, rule):
    """How far the three move in four updates, mean over their numbers: (3,)."""
    shape = GPTConfig(n_layer=1, n_head=4, n_embd=base, n_positions=16, vocab_size=50, initializer_range=0.1)
    config = at_width(shape, width, n_head)
    model = GPT(config if rule else dataclasses.replace(config, width_base=0, attention_scale=None))
    before, made = inside(model), make_optimizer(model, TrainConfig(optimizer=optimizer, lr=0.005))
    for _ in range(4):
        train_step(model, made, [(IDS, TARGETS)])
    return np.array([np.abs(b - a).mean() for a, b in zip(before, inside(model), strict=True)])


@pytest.mark.parametrize("n_head", [None, 4], ids=["more heads", "wider heads"])
@pytest.mark.parametrize(("optimizer", "base"), [("adamw", 64), ("muon", 32)])
def test_the_coordinate_check(optimizer, base, n_head):
    """Four times as wide: with the rule all move about as far, without it, farther."""
    wide, narrow = ([changes(base, width, n_head, optimizer, rule) for rule in (True, False)] for width in (4 * base, base))
    with_rule, without = np.array(wide) / np.array(narrow)
    assert (with_rule > 0.5).all() and (with_rule < 1.5).all(), with_rule
    assert (without > (2 if optimizer == "adamw" else 1.5)).all(), without


# ---- z-loss ------------------------------------------------------------------------------------------------------------------------------


def test_z_loss_counts_in_training_mode_alone():
    rng = np.random.default_rng(0)
    ids, targets = rng.integers(0, 11, (2, 3, 8))
    model = randomize(GPT(tiny()), 0)
    plain = model.loss(ids, targets).item()
    logits = to_host(model(ids).data)
    assert model.set_z_loss(0.1).loss(ids, targets).item() == plain
    z_term = 0.1 * (np.log(np.exp(logits).sum(axis=-1)) ** 2).mean()
    assert model.train().loss(ids, targets).item() == pytest.approx(plain + z_term, rel=1e-12)
    assert model.set_z_loss(0.0).loss(ids, targets).item() == plain


def test_a_trainer_sets_it_and_validation_is_without():
    windows = Windows(TOKENS, 8)
    plain, with_term = (Trainer(GPT(tiny()), TrainConfig(steps=3, micro_batch=4, z_loss=z), windows, windows) for z in (0.0, 0.5))
    assert with_term.model.z_loss == 0.5
    assert plain.evaluate().nats == with_term.evaluate().nats == measure(GPT(tiny()), windows, 4).nats
    difference = float(with_term.update()[0]) - float(plain.update()[0])
    assert difference == pytest.approx(0.5 * math.log(11) ** 2, rel=0.05)  # scores are all near 0 at the start


def test_training_with_it_pulls_the_sum_of_exp_to_one():
    windows, found = Windows(TOKENS, 8), {}
    ids, _ = windows.batch(np.arange(20))
    for z_loss in (0.0, 0.3):
        trainer = Trainer(GPT(tiny()), TrainConfig(steps=60, lr=1e-2, warmup_steps=5, micro_batch=8, z_loss=z_loss), windows, None)
        for _ in range(60):
            trainer.update()
        with ag.no_grad():
            found[z_loss] = float(np.abs(to_host(ag.logsumexp(trainer.model(ids), axis=-1).data)).mean())
    assert found[0.3] < 0.5 * found[0.0]


def test_a_classifier_refuses_it():
    tokenizer = train_tokenizer("characters", ["abc"], 10)
    classifier = GPTClassifier(GPT(tiny(vocab_size=tokenizer.n_vocab)), tokenizer, ["a", "b"])
    assert classifier.set_z_loss(0.0) is classifier
    with pytest.raises(ValueError, match=r"GPTClassifier: z_loss 0.1, expected 0; it is for language models, whose vocabularies are large"):
        classifier.set_z_loss(0.1)


def test_illegal_settings_are_named():
    with pytest.raises(ValueError, match=r"TrainConfig.z_loss: -1.0, expected at least 0"):
        TrainConfig(z_loss=-1.0)


@numpy_only
def test_replicas_compute_the_gradients_of_one_process_with_both():
    """With the width rule as well, whose config they copy; z-loss may change from update to update."""
    model = GPT(at_width(BASE, 64)).train()
    optimizer = AdamW(model)
    copies = Replicas(model, optimizer, 2)
    try:
        batch = tuple(np.random.default_rng(0).integers(0, 11, (2, 5, 8)))
        losses = []
        for z_loss in (0.0, 0.3):
            model.set_z_loss(z_loss)
            optimizer.zero_grad()
            losses.append(float(accumulate(model, [Shard(batch, 1.0)])))
            gradient = optimizer.gradient.copy()
            optimizer.zero_grad()
            assert float(copies.gradients([batch], [1.0])) == pytest.approx(losses[-1], rel=1e-5)
            np.testing.assert_allclose(optimizer.gradient, gradient, atol=1e-6 * max(1, np.abs(gradient).max()))
        assert losses[1] > losses[0] + 0.1
    finally:
        copies.close()
