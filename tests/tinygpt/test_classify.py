"""The classifier: padding changes nothing, what is frozen stays, training learns, and the report's figures are what they are called."""

import dataclasses
import json
import math
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import autograd as ag
from autograd import backend
from autograd.optim import AdamW
from tests.autograd.checks import numpy_only
from tests.tinygpt.helpers import FunctionRecord, Notes, load, new_run, save_checkpoint, weights
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.data.windows import BatchOrder, Windows, pad
from tinygpt.finetuning.classifier import GPTClassifier, LabeledBatches, balanced_weights, encode, softmax
from tinygpt.finetuning.common import fit, n_trainable, set_trainable
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.finetuning.report import (
    Scores,
    ask_in_words,
    label_by_prompt,
    majority_baseline,
    plot_confusion,
    tfidf_baseline,
    worst_mistakes,
)
from tinygpt.runs.layout import newest_run
from tinygpt.runs.run import Run
from tinygpt.training.metrics import Result, measure
from tinygpt.training.trainer import Trainer

TOKENIZER = CharacterTokenizer.train("abcdefghijklmnopqrstuvwxyz :\nTLCx")
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=TOKENIZER.n_vocab)
LABELS = ["ham", "eggs", "spam"]


def classifier(seed=0, labels=LABELS, config=TINY, **options):
    return GPTClassifier(GPT(config, seed=seed), TOKENIZER, labels, seed=seed, **options)


poolings = st.sampled_from(["last", "mean", "first"])

# ---- padding -----------------------------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), n=st.integers(1, 8), padding=st.integers(1, 4), left=st.booleans(), pooling=poolings)
def test_logits_do_not_change_with_padding(seed, n, padding, left, pooling):
    rng = np.random.default_rng(seed)
    model = classifier(seed, pooling=pooling)
    ids, filler = rng.integers(0, 30, (2, n)), rng.integers(0, 30, (2, padding))
    padded = np.concatenate([filler, ids] if left else [ids, filler], axis=1)
    real = np.arange(n + padding) >= padding if left else np.arange(n + padding) < n
    with ag.no_grad():
        alone, among = model(ids).numpy(), model(padded, np.broadcast_to(real, padded.shape)).numpy()
    np.testing.assert_allclose(among, alone, atol=1e-5)


@settings(max_examples=20)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9), batch_size=st.integers(1, 5), seed=st.integers(0, 99), pooling=poolings
)
def test_predictions_do_not_depend_on_company_or_order(lengths, batch_size, seed, pooling):
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abcdefgh"), n)) for n in lengths]
    model = classifier(seed, pooling=pooling)
    together = model.predict(texts, batch_size=batch_size)
    alone = [model.predict([text]) for text in texts]
    np.testing.assert_allclose(together.probabilities, np.concatenate([p.probabilities for p in alone]), atol=1e-5)
    np.testing.assert_allclose(together.probabilities.sum(axis=1), 1, atol=1e-6)
    assert together.labels == [LABELS[i] for i in together.probabilities.argmax(axis=1)]


def test_pad_marks_what_is_real():
    ids, mask = pad([np.array([5, 6, 7]), np.array([8])])
    np.testing.assert_array_equal(ids, [[5, 6, 7], [8, 0, 0]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 0, 0]])


@pytest.mark.parametrize(("pooling", "matters"), [("last", [0, 1, 2]), ("mean", [0, 1, 2]), ("first", [0])])
def test_each_pooling_looks_where_it_says(pooling, matters):
    model, ids = classifier(pooling=pooling), np.array([[1, 2, 3]])
    changed = []
    with ag.no_grad():
        for i in range(3):
            other = ids.copy()
            other[0, i] = 9
            if not np.allclose(model(ids).numpy(), model(other).numpy(), atol=1e-7):
                changed.append(i)
    assert changed == matters


# ---- head, loss, gradients ---------------------------------------------------------------------------------------------------------------


def test_weights_have_hugging_faces_names():
    names = [name for name, _ in classifier().named_parameters()]
    assert names[:2] == ["transformer.wte.weight", "transformer.wpe.weight"] and names[-1] == "score.weight"
    assert "transformer.h.1.attn.c_attn.weight" in names and classifier().score.weight.shape == (3, 16)


def test_an_output_layer_of_its_own_is_left_behind_and_the_gpt_untouched():
    gpt = GPT(dataclasses.replace(TINY, tie_word_embeddings=False))
    before = weights(gpt)
    model = GPTClassifier(gpt, TOKENIZER, LABELS)
    assert not any("lm_head" in name for name, _ in model.named_parameters()) and model.config.tie_word_embeddings
    assert gpt.config.tie_word_embeddings is False and weights(gpt).keys() == before.keys()


@pytest.mark.parametrize("pooling", ["last", "mean", "first"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_those_of_finite_differences(pooling, weighted):
    model = classifier(1, pooling=pooling)
    rng = np.random.default_rng(0)
    for p in model.parameters():
        p.data = backend.to_device(backend.to_host(p.data).astype(np.float64) + 0.3 * rng.standard_normal(p.shape))
    ids, mask = pad([rng.integers(0, 30, n) for n in (3, 7, 1)])
    arguments = (ids, np.array([0, 2, 1]), mask, np.array([1.0, 3.0, 0.5]) if weighted else None)
    model.loss(*arguments).backward()
    for name, p in model.named_parameters():
        u, h, middle = backend.to_device(rng.standard_normal(p.shape)), 1e-6, p.data
        claimed, values = float((p.grad * u).sum()), []
        for step in (h, -h):
            p.data = middle + step * u
            with ag.no_grad():
                values.append(model.loss(*arguments).item())
        p.data = middle
        assert claimed == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-8), name


@given(seed=st.integers(0, 999), n=st.integers(1, 6))
@settings(max_examples=20)
def test_weights_count_a_text_as_if_it_stood_there_so_often(seed, n):
    rng = np.random.default_rng(seed)
    model, ids, targets, times = classifier(), rng.integers(0, 30, (n, 5)), rng.integers(0, 3, n), rng.integers(1, 4, n)
    repeated = model.loss(np.repeat(ids, times, axis=0), np.repeat(targets, times))
    assert model.loss(ids, targets, None, times).item() * n == pytest.approx(repeated.item() * times.sum(), rel=1e-5)
    assert model.loss(ids, targets, None, np.ones(n)).item() == pytest.approx(model.loss(ids, targets).item(), rel=1e-5)


def test_balanced_weights_give_every_label_the_same_say():
    targets = np.array([0, 0, 0, 1])
    assert [balanced_weights(targets, 2)[targets][targets == k].sum() for k in (0, 1)] == pytest.approx([2, 2])


def test_the_loss_starts_at_a_uniform_guess():
    model = classifier()
    ids = np.random.default_rng(0).integers(0, 30, (8, 6))
    assert model.loss(ids, np.arange(8) % 3).item() == pytest.approx(math.log(3), rel=0.1) and model.n_classes == 3


# ---- training ----------------------------------------------------------------------------------------------------------------------------


def task(n, seed):
    """Texts of random letters, labeled by the last one: what the whole model must carry to the end."""
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abc"), rng.integers(2, 10))) for _ in range(n)]
    return LabeledBatches(encode(texts, TOKENIZER, 12)[0], np.array(["abc".index(text[-1]) for text in texts]))


SETTINGS = TrainConfig(steps=60, lr=1e-2, warmup_steps=5, micro_batch=16, eval_every=20, log_every=20)


@pytest.mark.parametrize(
    ("which", "changes"),
    [
        ("head", {"score.weight"}),
        ("last-block", {"score.weight", "transformer.ln_f.weight", "transformer.h.1.mlp.c_fc.weight", "transformer.h.1.attn.c_attn.bias"}),
        (
            "all",
            {"score.weight", "transformer.ln_f.bias", "transformer.h.0.ln_1.weight", "transformer.wte.weight", "transformer.wpe.weight"},
        ),
        ("lora", {"score.weight", "transformer.h.0.attn.c_attn.lora_B", "transformer.h.1.attn.c_attn.lora_A"}),
    ],
)
def test_what_is_frozen_keeps_every_bit(which, changes):
    model = classifier()
    adapter = set_trainable(model, which, LoraConfig(rank=2))
    assert (adapter is not None) == (which == "lora")
    n = n_trainable(model)
    before = weights(model)
    fit(model, task(64, 0), task(16, 1), dataclasses.replace(SETTINGS, steps=3, eval_every=3), Notes())
    changed = {name for name, array in weights(model).items() if not np.array_equal(array, before[name])}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert changes <= changed <= trainable and n == sum(before[name].size for name in trainable)
    if which == "last-block":
        assert all(name.startswith(("score", "transformer.h.1.", "transformer.ln_f")) for name in changed)
    if which == "lora":
        assert all("c_attn.lora" in name or name == "score.weight" for name in changed)
    assert set_trainable(model, "all") is None and n_trainable(model) == model.n_parameters()


@pytest.mark.parametrize("saved", [True, False])
def test_training_learns_and_keeps_the_best_weights(tmp_path, saved):
    model, validation = classifier(), task(60, 1)
    run = Run.create("x", tmp_path / "run") if saved else None
    if run:
        run.tokenizer = TOKENIZER
    result = fit(model, task(200, 0), validation, SETTINGS, Notes(), run)
    assert result.best_validation_nats < 0.2 < result.first_loss_nats
    predicted = model.logits(validation.sequences).argmax(axis=1)
    assert (predicted == validation.targets).mean() > 0.9
    # Too high a learning rate ruins what was learned; the best weights survive, and training ends early.
    reporter = Notes()
    settings = dataclasses.replace(SETTINGS, lr=0.5, warmup_steps=0, eval_every=2, steps=40, patience=3, max_norm=0.0)
    run = Run.create("x", tmp_path / "ruined") if saved else None
    if run:
        run.tokenizer = TOKENIZER
    result = fit(model, task(200, 0), validation, settings, reporter, run)
    assert measure(model, validation, 16).nats == pytest.approx(result.best_validation_nats, rel=1e-5)
    assert result.stopped_early and result.step == result.best_step + 6 < 40
    assert any("stopped early: no better validation since step" in note for note in reporter.notes)


def test_accuracies_are_measured_at_each_evaluation_and_come_back_on_resume(tmp_path):
    model, train, validation, notes = classifier(), task(40, 0), task(24, 1), Notes()
    run = Run.create("x", tmp_path / "run")
    run.tokenizer = TOKENIZER
    trainer = Trainer(model, dataclasses.replace(SETTINGS, steps=6, eval_every=3), train, validation)
    result = run.train(trainer, notes)
    logged = map(json.loads, run.metrics.path.read_text(encoding="utf-8").splitlines())
    lines = [line for line in logged if "validation_nats" in line]
    assert [line["step"] for line in lines] == [3, 6] == [step for step, _, _ in result.accuracy_curve]
    for items, key in ((validation, "validation_accuracy"), (train, "training_accuracy")):
        if key == "training_accuracy":  # as many as validation has, in whole batches: a fixed sample
            size, n = SETTINGS.micro_batch, -(-len(validation) // SETTINGS.micro_batch)
            which = np.concatenate(list(BatchOrder(len(train), size, drop_last=False))[:n])
        else:
            which = np.arange(len(items))
        right = model.logits([items.sequences[i] for i in which]).argmax(axis=1) == items.targets[which]
        assert lines[-1][key] == pytest.approx(right.mean())
    assert any(note.startswith("step 3: accuracy ") and "on validation texts" in note for note in notes.notes)
    again = Result()
    run.metrics.truncate_after(3, again)
    assert again.accuracy_curve == result.accuracy_curve[:1]


def test_a_language_model_has_no_accuracy():
    model, run = GPT(TINY), FunctionRecord()
    windows = Windows(np.tile(np.arange(10), 20), 8)
    Trainer(model, TrainConfig(steps=1, micro_batch=2), windows, windows).run(Notes(), run)
    assert run.lines[-1].keys() == {"step", "validation_nats"}


def test_batches_hold_weights_by_label():
    batches = LabeledBatches([np.array([1, 2]), np.array([3])], np.array([1, 0]), np.array([0.5, 2.0]))
    ids, targets, mask, weights = batches.batch(np.array([1, 0]))
    assert ids.tolist() == [[3, 0], [1, 2]] and targets.tolist() == [0, 1] and mask.sum() == 3 and weights.tolist() == [0.5, 2.0]


# ---- saving ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.exact
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_saved_classifier_says_the_same(tmp_path, pooling, qkv_bias):
    model = classifier(3, pooling=pooling, config=dataclasses.replace(TINY, qkv_bias=qkv_bias))
    model.save_pretrained(tmp_path)
    loaded = GPTClassifier.from_pretrained(tmp_path)
    assert (loaded.labels, loaded.pooling, loaded.config) == (LABELS, pooling, model.config)
    texts = ["abc", "hello", "x"]
    np.testing.assert_array_equal(loaded.predict(texts).probabilities, model.predict(texts).probabilities)


def test_the_files_are_those_of_gpt2_for_sequence_classification(tmp_path):
    tokenizer = BPETokenizer.train("the cat sat on the mat, the cat sat", 270)
    gpt = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=12, vocab_size=tokenizer.n_vocab, qkv_bias=False))
    GPTClassifier(gpt, tokenizer, LABELS).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["GPT2ForSequenceClassification"] and config["pad_token_id"] == tokenizer.eos_id
    assert config["id2label"] == {"0": "ham", "1": "eggs", "2": "spam"} and config["label2id"]["spam"] == 2
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors["score.weight"].shape == (3, 16) and not tensors["transformer.h.0.attn.c_attn.bias"].any()


def test_transformers_reads_the_same_logits(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra parity")
    import torch

    tokenizer = BPETokenizer.train("the cat sat on the mat, the cat sat", 270)
    model = GPTClassifier(
        GPT(GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=tokenizer.n_vocab), seed=1), tokenizer, LABELS
    )
    model.save_pretrained(tmp_path)
    other = transformers.GPT2ForSequenceClassification.from_pretrained(tmp_path).eval()
    sequences, _ = encode(["the cat", "sat", "on the mat, sat"], tokenizer, 12)
    ids, mask = pad(sequences)
    with torch.no_grad():
        expected = other(torch.tensor(np.where(mask, ids, tokenizer.eos_id))).logits.numpy()
    np.testing.assert_allclose(model.logits(sequences), expected, atol=1e-5)
    assert other.config.id2label == {0: "ham", 1: "eggs", 2: "spam"}


def test_runs_of_classifiers_and_of_language_models_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gpt, model = GPT(TINY), classifier()
    pretrained, finetuned = new_run(None, "docs"), new_run(None, "mine")
    save_checkpoint(pretrained, 1, gpt, AdamW(gpt), TOKENIZER, {}, best=True)
    save_checkpoint(finetuned, 1, model, AdamW(model), TOKENIZER, {}, best=True)
    assert newest_run() == pretrained and newest_run(architecture="GPT2ForSequenceClassification") == finetuned
    assert GPTClassifier.from_pretrained(finetuned).labels == LABELS
    with pytest.raises(ValueError, match=r"a classifier, expected a language model; load it with GPTClassifier"):
        load(finetuned)
    with pytest.raises(
        ValueError, match=r"a language model, expected a classifier; train one: python examples/finetune_classifier\.py --base "
    ):
        GPTClassifier.from_pretrained(pretrained)


@pytest.mark.parametrize("name", ["smollm2-135m", "gemma-3-270m", "pythia-70m", "olmo-2-1b", "nanochat-d20", "gpt1"])
def test_other_decoders_become_classifiers(tmp_path, name):
    """A head on each learns to tell two words apart, and comes back from its directory."""
    size = {"n_layer": 2, "n_embd": 16, "n_head": 2, "vocab_size": TOKENIZER.n_vocab, "n_positions": 12}
    size |= {
        key: n for key, n in (("n_inner", 24), ("n_kv_head", 1), ("head_size", 8), ("window", 3)) if key in GPTConfig.preset(name).options()
    }
    model = GPTClassifier(GPT(GPTConfig.preset(name, **size), seed=1), TOKENIZER, LABELS[:2])
    (words, _), labels = encode(["ham", "egg", "a ham", "an egg"], TOKENIZER, 12), [0, 1, 0, 1]
    ids, mask = pad(words)
    optimizer = AdamW(model, lr=1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.loss(ids, np.array(labels), mask)
        loss.backward()
        optimizer.step(max_norm=1.0)
    assert loss.item() < 0.2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*which transformers cannot read")  # its window, or it has no classifier of this family
        model.save_pretrained(tmp_path)
    loaded = GPTClassifier.from_pretrained(tmp_path)
    (written,) = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["architectures"]
    assert written.endswith("ForSequenceClassification")
    np.testing.assert_array_equal(loaded.logits(words), model.logits(words))
    with pytest.raises(ValueError, match="a classifier, expected a language model"):
        load(tmp_path)


def test_a_head_saved_for_other_labels_is_refused(tmp_path):
    model = classifier()
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"label 'eel': not among those of the head, expected one of ham, eggs, spam; train a new head"):
        GPTClassifier.from_pretrained(tmp_path).label_ids(["ham", "eel"])
    assert model.label_ids(["spam", "ham"]).tolist() == [2, 0]
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["id2label"] = {"0": "ham", "1": "spam"}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=r"score.weight of shape \(3, 16\) instead of \(2, 16\)"):
        GPTClassifier.from_pretrained(tmp_path)


# ---- bad input ---------------------------------------------------------------------------------------------------------------------------


def test_bad_input_is_named():
    model = classifier()
    with pytest.raises(
        ValueError, match=r"text 1: 13 tokens, expected at most 12, the model's context; shorten the text, or choose to cut"
    ):
        model.predict(["a", "a" * 13])
    with pytest.raises(ValueError, match=r"a.csv: line 7: no token, expected at least one"):
        encode([""], TOKENIZER, 12, places=["a.csv: line 7"])
    with pytest.raises(TypeError, match=r"predict: a str, expected a list of texts"):
        model.predict("hello")
    with pytest.raises(ValueError, match=r"GPTClassifier: attention_mask: 0.5 in a mask of shape \(1, 2\), expected booleans or 0 and 1"):
        classifier()([[1, 2]], [[1, 0.5]])
    with pytest.raises(ValueError, match=r"with a real token in every row"):
        model(np.zeros((2, 3), int), [[1, 1, 1], [0, 0, 0]])
    with pytest.raises(ValueError, match=r"labels: \['ham'\], expected at least 2 different names"):
        classifier(labels=["ham"])
    with pytest.raises(ValueError, match=r"pooling: 'max', expected one of last, mean, first"):
        classifier(pooling="max")
    with pytest.raises(ValueError, match=r"trainable: 'some', expected one of head, last-block, all, lora"):
        set_trainable(model, "some")
    with pytest.raises(ValueError, match=r"Scores: no predictions"):
        Scores.of(LABELS, np.array([], int), np.array([], int))


def test_cutting_is_a_choice_and_counted():
    sequences, n_cut = encode(["a" * 13, "b", "c" * 12], TOKENIZER, 12, truncate=True)
    assert [len(ids) for ids in sequences] == [12, 1, 12] and n_cut == 1
    assert classifier().predict(["a" * 40], truncate=True).probabilities.shape == (1, 3)
    assert classifier().predict([]).labels == []


# ---- the report --------------------------------------------------------------------------------------------------------------------------

outcomes = st.integers(1, 60).flatmap(
    lambda n: st.tuples(st.lists(st.integers(0, 2), min_size=n, max_size=n), st.lists(st.integers(0, 2), min_size=n, max_size=n))
).map(lambda pair: (np.array(pair[0]), np.array(pair[1])))  # fmt: skip


@given(outcomes)
def test_scores_are_counts_and_shares(outcome):
    true, predicted = outcome
    scores = Scores.of(LABELS, true, predicted)
    assert scores.confusion.sum() == len(true) and scores.accuracy == pytest.approx((true == predicted).mean())
    for k in range(3):
        assert scores.confusion[k].tolist() == [((true == k) & (predicted == j)).sum() for j in range(3)]
        p, r = scores.precision[k], scores.recall[k]
        assert scores.f1[k] == pytest.approx(2 * p * r / (p + r) if p + r else 0)
    assert scores.balanced_accuracy == pytest.approx(np.mean([(predicted[true == k] == k).mean() for k in set(true.tolist())]))


@given(outcomes)
@settings(max_examples=20)
@pytest.mark.filterwarnings("ignore")
def test_scores_are_those_of_scikit_learn(outcome):
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra classify")
    true, predicted = outcome
    scores = Scores.of(LABELS, true, predicted)
    np.testing.assert_array_equal(scores.confusion, metrics.confusion_matrix(true, predicted, labels=range(3)))
    assert scores.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(true, predicted))
    expected = metrics.precision_recall_fscore_support(true, predicted, labels=range(3), zero_division=0)
    np.testing.assert_allclose([scores.precision, scores.recall, scores.f1], expected[:3])


def test_the_report_reads_well():
    scores = Scores(["ham", "spam"], np.array([[8, 2], [1, 9]]))
    assert re.search(r"ham +0\.889 +0\.800 +0\.842 +10\n", scores.table())
    assert scores.confusion_table().splitlines()[1:] == [" 1  ham             8    2", " 2  spam            1    9"]
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8]])
    text = worst_mistakes(["right", "hardly\nwrong", "very wrong"], np.array([0, 0, 0]), probabilities, ["ham", "spam"], places=list("abc"))
    assert text == (
        "ham, taken for spam with probability 0.800 (c)\n    very wrong\nham, taken for spam with probability 0.600 (b)\n    hardly wrong"
    )
    assert worst_mistakes(["right"], np.array([0]), probabilities[:1], ["ham", "spam"]) == "none"


@pytest.mark.parametrize("k", [2, 5, 25])
def test_the_confusion_matrix_is_drawn(tmp_path, k):
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    plot_confusion(Scores([f"label {i}" for i in range(k)], np.eye(k, dtype=int) * 7 + 1), tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_softmax_rows_sum_to_one_and_large_logits_do_no_harm():
    np.testing.assert_allclose(softmax(np.array([[1e4, 0.0], [0.0, 0.0]])), [[1, 0], [0.5, 0.5]])


# ---- baselines ---------------------------------------------------------------------------------------------------------------------------


def test_the_majority_baseline_says_always_the_same():
    assert majority_baseline(np.array([2, 0, 2]), 4).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("analyzer", ["word", "characters"])
def test_the_tfidf_baseline_learns_words(analyzer):
    pytest.importorskip("sklearn", reason="needs the extra classify")
    texts, targets = ["win a prize now", "call to win", "see you soon", "soon at home"] * 3, np.array([1, 1, 0, 0] * 3)
    assert tfidf_baseline(texts, targets, ["win", "home soon"], analyzer).tolist() == [1, 0]


def test_the_tfidf_baselines_words_keep_their_combining_marks():
    pytest.importorskip("sklearn", reason="needs the extra classify")
    hindi = ["\u0926\u0940", "\u0926\u093e"]  # each a letter and a mark: no word at all, if torn
    assert tfidf_baseline(hindi * 3, np.array([0, 1] * 3), [hindi[1], hindi[0]]).tolist() == [1, 0]


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(ImportError, match=r'baseline: scikit-learn is missing, .*pip install "tinygpt\[classify\]"'):
        tfidf_baseline(["a"], np.array([0]), ["b"])


def test_prompting_picks_the_label_that_the_model_finds_likeliest():
    config = dataclasses.replace(TINY, n_positions=64)
    gpt = GPT(config, seed=1)
    texts, labels = ["abc", "hello you", "x"], ["ab", "cde", "f"]
    chosen, room = label_by_prompt(gpt, TOKENIZER, texts, labels, [("xx", "ab")])
    assert room == (64 - len("Text: \nLabel: ab\n\nText: \nLabel:" + " cde")) // 2
    for text, choice in zip(texts, chosen, strict=True):  # the same by the definition, one sequence at a time
        scores = []
        for label in labels:
            prompt = TOKENIZER.encode(f"Text: xx\nLabel: ab\n\nText: {text}\nLabel:")
            answer = TOKENIZER.encode(f" {label}")
            ids = np.array([prompt + answer])
            scores.append(-gpt.loss(ids[:, :-1], np.where(np.arange(1, ids.size) < len(prompt), -100, ids[:, 1:])).item())
        assert choice == np.argmax(scores)
    assert set(chosen.tolist()) <= {0, 1, 2}
    with pytest.raises(ValueError, match=r"prompt: 17 tokens in addition to the texts, expected fewer than the context of 12; give fewer"):
        label_by_prompt(GPT(TINY), TOKENIZER, texts, labels)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), n_examples=st.integers(0, 2), n_positions=st.integers(40, 90))
def test_prompts_fill_the_context_and_never_exceed_it(seed, n_examples, n_positions):
    """With a tokenizer whose tokens depend on what stands before: a text that was cut takes more tokens than it was cut to."""
    rng = np.random.default_rng(seed)
    tokenizer = BPETokenizer.train("Text: é abc de\nLabel: x yy\n\n" * 3, 270)
    gpt = GPT(dataclasses.replace(TINY, vocab_size=tokenizer.n_vocab, n_positions=n_positions), seed=seed)
    texts = ["".join(rng.choice(list("abcdé e"), 60)) + "z" for _ in range(3)]
    examples = [("".join(rng.choice(list("abé d"), 30)) + "z", "x")] * n_examples
    try:
        chosen, room = label_by_prompt(gpt, tokenizer, texts, ["x", "yy"], examples)
    except ValueError as error:
        assert "give fewer examples" in str(error)
    else:
        assert chosen.shape == (3,) and room >= 1


def test_a_model_that_is_asked_in_words_goes_on_writing():
    tokenizer = BPETokenizer.train("Is the following text 'spam'? Answer with 'yes' or 'no': 'win a prize'", 300)
    gpt = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=16, n_positions=128, vocab_size=tokenizer.n_vocab))
    asked = ask_in_words(gpt, tokenizer, "win a prize", "spam", max_new_tokens=5)
    question = "Is the following text 'spam'? Answer with 'yes' or 'no': 'win a prize'\n"
    written = gpt.generate([tokenizer.encode(question)], 5, temperature=0.0)[0, len(tokenizer.encode(question)) :]
    assert asked == question + tokenizer.decode(written)
    assert "not asked: " in ask_in_words(GPT(TINY), TOKENIZER, "win", "spam")  # its characters lack some of the question's


@numpy_only
def test_a_checkpoint_knows_its_own_kind_of_model(tmp_path):
    """Without the classifier's module having been imported."""
    classifier().save_pretrained(tmp_path)
    code = (
        f"from tinygpt import Checkpoint; c = Checkpoint.open({str(tmp_path)!r}); print(c.kind, type(c.model()).__name__, c.model().labels)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split(maxsplit=2)[:2] == ["GPT2ForSequenceClassification", "GPTClassifier"], done.stderr
