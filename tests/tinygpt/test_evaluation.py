"""Scores of continuations, and intervals."""

import numpy as np
import pytest

import autograd as ag
from autograd import nn
from autograd.backend import to_host
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.evaluation.continuations import Request, encode_pair, score
from tinygpt.evaluation.statistics import centered, difference, interval, kappa

SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 16, "n_positions": 24, "vocab_size": 40, "initializer_range": 0.3}
KINDS = {
    "gpt2": {},
    "rotary": {"positions": "rotary", "norm": "rms", "n_kv_head": 2},
    "window": {"positions": "rotary", "window": 5, "window_pattern": "SL"},
    "alibi": {"positions": "alibi"},
    "soft caps": {"attention_softcap": 2.0, "logit_softcap": 3.0},
}


def one_by_one(model, context, option):
    """The definition: the last positions that fit, log-softmax of all logits, the option's tokens picked."""
    ids = [*context, *option]
    kept = ids[:-1][-model.config.n_positions :]
    with nn.evaluating(model), ag.no_grad():
        log_p = to_host(ag.log_softmax(model([kept])).data)[0, -len(option) :]
    return log_p[np.arange(len(option)), option].sum(), bool((log_p.argmax(-1) == option).all())


@pytest.mark.parametrize("kind", KINDS)
def test_packed_options_score_as_each_alone(kind):
    rng, model = np.random.default_rng(0), GPT(GPTConfig(**SIZES, **KINDS[kind]), seed=1)
    requests = []
    for _ in range(30):
        n_context, n_options = int(rng.integers(1, 30)), int(rng.integers(1, 5))
        options = [rng.integers(40, size=rng.integers(1, 9)).tolist() for _ in range(n_options)]
        requests.append(Request(rng.integers(40, size=n_context).tolist(), options))
    best = one_by_one(model, [1, 2], [int(np.argmax(to_host(model([[1, 2]]).data)[0, -1]))])
    assert best[1]  # the definition knows a greedy token
    done = []
    found = score(model, requests, done.append)
    assert done[-1] == len(requests)
    for request, scores in zip(requests, found, strict=True):
        for option, each in zip(request.options, scores, strict=True):
            log_p, greedy = one_by_one(model, request.context, option)
            assert abs(each.log_prob - log_p) < 1e-4 and each.greedy == greedy and each.n_tokens == len(option)
            assert each.n_cut == max(0, len(request.context) + len(option) - 1 - 24)


def test_a_greedy_continuation_is_known_as_one():
    model = GPT(GPTConfig(**SIZES), seed=1)
    text = model.generate([[3, 4, 5]], 6, temperature=0).tolist()[0]
    other = [*text[3:8], (text[8] + 1) % 40]
    assert [s.greedy for s in score(model, [Request(text[:3], [text[3:], other])])[0]] == [True, False]


def test_requests_that_cannot_be_scored():
    model = GPT(GPTConfig(**SIZES))
    for request in (Request([], [[1]]), Request([1], [[]])):
        with pytest.raises(ValueError, match=r"score: a context of \d and an option of \d tokens, expected at least one of each"):
            score(model, [request])


def test_a_continuation_longer_than_the_context_loses_its_end():
    model = GPT(GPTConfig(**SIZES), seed=1)
    long, short = score(model, [Request([1, 2, 3], [[5] * 30, [5] * 24])])[0]
    assert (long.log_prob, long.n_tokens, long.n_cut) == (short.log_prob, 24, 8) and short.n_cut == 2


def test_pairs_are_encoded_together():
    tokenizer = BPETokenizer.train("the cat sat on the mat. the cat ran. " * 20, vocab_size=300)
    context, option = encode_pair(tokenizer, "the cat ", "sat")
    assert tokenizer.decode(context) == "the cat" and tokenizer.decode(option) == " sat"
    assert encode_pair(tokenizer, "", "the")[0] == [tokenizer.eos_id]
    with pytest.raises(ValueError, match=r"continuation '' after 'the cat': no token of its own"):
        encode_pair(tokenizer, "the cat", "")
    with pytest.raises(ValueError, match=r"an empty context with a tokenizer of kind characters, expected .*; give the task a context"):
        encode_pair(CharacterTokenizer("ab"), "", "a")


def test_intervals_cover_the_truth_as_often_as_they_say():
    """10,000 simulated models of 500 items each, accuracy 0.25 to 0.95; and 300 with documents of 5 items that share their luck."""
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(0.25, 0.95, size=10_000)
    right = rng.binomial(500, accuracy)
    items = np.zeros(500)
    covered = 0
    for p, n in zip(accuracy, right, strict=True):
        items[:n], items[n:] = 1, 0
        _, low, high = interval(items)
        covered += low <= p <= high
    assert 0.94 <= covered / len(accuracy) <= 0.965
    alone = together = 0
    groups = np.repeat(np.arange(100), 5)
    for seed in range(300):
        items = np.repeat(rng.random(100) < 0.6, 5).astype(float)
        for grouped in (False, True):
            _, low, high = interval(items, groups if grouped else None, seed)
            together += grouped and low <= 0.6 <= high
            alone += not grouped and low <= 0.6 <= high
    assert together / 300 > 0.9 and alone / 300 < 0.75


def test_a_weighted_mean_is_that_of_all_tokens():
    """Nats per token of all texts together: sum of w x over sum of w, and the bootstrap draws both."""
    rng = np.random.default_rng(0)
    x, w = rng.random(60), rng.integers(1, 50, size=60).astype(float)
    shown = interval(x, weights=w)
    assert abs(shown.mean - (w * x).sum() / w.sum()) < 1e-12 and shown.low < shown.mean < shown.high
    drawn = [rng.integers(60, size=60) for _ in range(4000)]
    low, high = np.quantile([(w[i] * x[i]).sum() / w[i].sum() for i in drawn], (0.025, 0.975))
    assert abs(shown.low - low) < 0.02 and abs(shown.high - high) < 0.02
    assert difference(x, x - 0.25, weights=w).low == pytest.approx(0.25)
    together = interval(np.repeat(x, 2), np.repeat(np.arange(60), 2))
    assert together.mean == pytest.approx(x.mean()) and together.low == pytest.approx(interval(x).low, abs=0.01)


def test_one_document_says_nothing_of_others():
    assert np.isnan(interval([0.5]).low) and np.isnan(interval([0, 1], [7, 7]).high) and str(interval([0.5])) == "0.500"
    assert interval([1]).low == pytest.approx(0.2065, abs=1e-3)  # Wilson's, of one right answer


def test_documents_that_are_all_right_are_not_certain():
    """All samples of them are the same: Wilson's interval, for as many answers as there are documents."""
    groups = np.repeat(np.arange(10), 4)
    for value, bounds in ((1, (0.7225, 1.0)), (0, (0.0, 0.2775))):
        assert interval(np.full(40, value), groups) == pytest.approx((value, *bounds), abs=1e-4)
        assert interval(np.full(40, value), groups) == interval(np.full(10, value))
    assert all(low <= value <= high for n in range(2, 60) for value, low, high in [interval(np.ones(2 * n), np.arange(2 * n) // 2)])
    assert interval(np.full(40, 0.5), groups) == (0.5, 0.5, 0.5) and np.isnan(interval([1, 1], [7, 7]).low)


def test_a_paired_difference_is_surer_than_two_intervals():
    rng = np.random.default_rng(0)
    easy = rng.random(400)
    a, b = (easy < 0.6).astype(float), (easy < 0.55).astype(float)
    d = difference(a, b)
    assert d.low > 0 and abs(d.mean - (a.mean() - b.mean())) < 1e-12
    assert interval(a).low < interval(b).high
    with pytest.raises(ValueError, match="difference: 400 and 399 items"):
        difference(a, b[1:])


def test_centered_scores_and_agreement():
    assert centered(0.25, 0.25) == 0 and centered(1.0, 0.25) == 1 and centered(0.1, 0.5) == -0.8
    assert kappa([1, 2, 1, 2], [1, 2, 1, 2]) == 1 and abs(kappa([1, 1, 2, 2], [1, 2, 1, 2])) < 1e-12
    assert kappa("aab", "aab") == 1.0
    with pytest.raises(ValueError, match="kappa: 2 and 1 labels"):
        kappa([1, 2], [1])
