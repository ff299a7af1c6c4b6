"""Likelihoods against a plain sum, beams against an exhaustive search."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from tests.strategies import seeds
from tests.tinygpt.test_cache import TINY, random_model
from tinygpt import GPTConfig
from tinygpt.data.tokenizer import CharacterTokenizer
from tinygpt.inference.beam import beam_search
from tinygpt.inference.decoding import generate
from tinygpt.inference.likelihood import Likelihood, choose, few_shot_prompt, log_likelihood, token_nats

SMALL = GPTConfig(n_layer=1, n_head=2, n_embd=8, n_positions=6, vocab_size=4)


def log_p(model, ids):
    """(V,) log-probabilities after ids, from the plain model."""
    with ag.no_grad():
        logits = backend.to_host(model([ids]).data)[0, -1]
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@settings(max_examples=15)
@given(seed=seeds, n=st.integers(2, 22), stride=st.integers(1, 8))
def test_each_token_is_predicted_once_from_enough_context(seed, n, stride):
    model, ids = random_model(TINY, seed % 5), np.random.default_rng(seed).integers(0, 17, n)
    nats = token_nats(model, ids, stride)
    assert nats.shape == (n - 1,)
    for i in range(n - 1):  # the first window reads from its start; later ones predict their last `stride` tokens
        window = 0 if i < 8 else (i - 8) // stride * stride + stride
        assert i - window >= min(i, 8 - stride)
        np.testing.assert_allclose(nats[i], -log_p(model, ids[window : i + 1])[ids[i + 1]], atol=1e-9)


def test_a_texts_likelihood_has_three_units():
    tokenizer = CharacterTokenizer.train("aé€z")
    model = random_model(GPTConfig(n_layer=1, n_head=2, n_embd=8, n_positions=6, vocab_size=4), 1)
    found = log_likelihood(model, tokenizer, "aé€z")
    assert found.n_tokens == 3 and found.n_bytes == 6  # without an end token, the first character has nothing before it
    assert found.perplexity == pytest.approx(math.exp(found.nats / 3))
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / 6)
    with pytest.raises(ValueError, match="bits_per_byte: unknown number of bytes"):
        _ = Likelihood(1.0, 2).bits_per_byte


def test_an_even_model_costs_the_logarithm_of_its_vocabulary():
    model = random_model(TINY, 0)
    model.ln_f.weight.data[...] = 0
    model.ln_f.bias.data[...] = 0
    np.testing.assert_allclose(token_nats(model, [1, 2, 3, 4]), math.log(17))


def best_by_force(model, prompt, n, ends, length_penalty):
    """The best score over every continuation of at most n tokens."""
    best = -math.inf
    for length in range(1, n + 1):
        for tokens in itertools.product(range(4), repeat=length):
            if any(t in ends for t in tokens[:-1]) or (length < n and tokens[-1] not in ends):
                continue
            total = sum(log_p(model, [*prompt, *tokens[:i]])[t] for i, t in enumerate(tokens))
            best = max(best, total / length**length_penalty)
    return best


@settings(max_examples=12)
@given(seed=st.integers(0, 1000), ends=st.sampled_from([(), (0,), (0, 2)]), penalty=st.sampled_from([0.0, 1.0]))
def test_a_beam_as_wide_as_the_tree_finds_the_best(seed, ends, penalty):
    model = random_model(SMALL, seed)
    beams = beam_search(model, [1, 3], 3, n_beams=64, length_penalty=penalty, eos_id=ends)
    assert beams[0].score == pytest.approx(best_by_force(model, [1, 3], 3, ends, penalty))
    assert all(a.score >= b.score for a, b in itertools.pairwise(beams))
    for beam in beams[:5]:
        total = sum(log_p(model, [1, 3, *beam.ids[:i]])[t] for i, t in enumerate(beam.ids))
        assert beam.log_prob == pytest.approx(total) and beam.score == pytest.approx(total / len(beam.ids) ** penalty)
        assert beam.stop_reason == ("eos" if beam.ids[-1] in ends else "length")


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), n=st.integers(1, 20))
def test_one_beam_is_greedy_and_the_cache_changes_nothing(seed, n):
    model = random_model(TINY, seed)
    (beam,) = beam_search(model, [1, 2], n, n_beams=1)
    np.testing.assert_array_equal(beam.ids, generate(model, [[1, 2]], n, temperature=0.0).sequences[0])
    cached, plain = (beam_search(model, [1, 2], n, n_beams=3, eos_id=5, use_cache=use) for use in (True, False))
    assert [b.ids for b in cached] == [b.ids for b in plain]


def test_options_are_compared_per_token():
    tokenizer = CharacterTokenizer.train("abcd")
    model = random_model(SMALL, 3)
    best, found = choose(model, tokenizer, "ab", ["a", "cd"])
    expected = [-log_p(model, [0, 1])[0], -(log_p(model, [0, 1])[2] + log_p(model, [0, 1, 2])[3]) / 2]
    np.testing.assert_allclose([f.nats_per_token for f in found], expected)
    assert best == ["a", "cd"][int(np.argmin(expected))]


def test_prompts_by_example():
    assert few_shot_prompt("up", [("hot", "cold")], task="Say the opposite.") == (
        "Say the opposite.\n\nInput: hot\nOutput: cold\n\nInput: up\nOutput:"
    )
    assert few_shot_prompt("up", names=("Q", "A")) == "Q: up\nA:"


def test_bad_input_is_named():
    model, tokenizer = random_model(TINY, 0), CharacterTokenizer.train("abcdefghijklmnopq")
    with pytest.raises(ValueError, match=r"stride: 9, expected 1 to 8, the model's context"):
        token_nats(model, [1, 2], 9)
    with pytest.raises(ValueError, match=r"likelihood: 1 tokens, expected at least 2"):
        token_nats(model, [1])
    with pytest.raises(ValueError, match=r"n_beams: 0, expected at least 1"):
        beam_search(model, [1], 1, n_beams=0)
    with pytest.raises(ValueError, match=r"choose: no option"):
        choose(model, tokenizer, "a", [])
    with pytest.raises(ValueError, match=r"choose: 8 tokens of prompt and 2 of 'ab', expected .* at most 9 together"):
        choose(model, tokenizer, "abcdefgh", ["ab"])
