import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autograd import backend
from tests.tinygpt.helpers import tiny
from tinygpt import GPT
from tinygpt.data.tokenizer import CharacterTokenizer, WordTokenizer
from tinygpt.inference.beam import beam_search
from tinygpt.inference.decoding import TokenIterator, generate
from tinygpt.inference.likelihood import choose, token_nats
from tinygpt.inference.sampling import PerRowRNG, Sampling, candidates, penalized, sample, top_ids
from tinygpt.inference.text import IncrementalDetokenizer, TextStream, complete, complete_all
from tinygpt.models.gpt import generate_plain

TINY = tiny(vocab_size=17)


def rng():
    return np.random.default_rng(0)


@given(seed=st.integers(0, 1000), k=st.integers(1, 12))
def test_top_k_never_leaves_the_k_likeliest(seed, k):
    logits = np.random.default_rng(seed).standard_normal((50, 12))
    chosen = sample(logits, Sampling(1.5, top_k=k), rng())
    rank = (logits > np.take_along_axis(logits, chosen[:, None], 1)).sum(axis=1)
    assert (rank < k).all()


@given(seed=st.integers(0, 1000), p=st.floats(0.05, 1.0))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed, p):
    logits = np.random.default_rng(seed).standard_normal((12, 12)) * 3
    chosen = sample(logits, Sampling(1.0, top_k=0, top_p=p), rng())
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    mine = np.take_along_axis(probabilities, chosen[:, None], 1)
    likelier = np.where(probabilities > mine, probabilities, 0).sum(axis=1)
    assert (likelier < p + 1e-9).all()


def test_greedy_is_the_limit_of_low_temperature():
    logits = np.random.default_rng(1).standard_normal((200, 30))
    np.testing.assert_array_equal(sample(logits, Sampling(0.0), rng()), logits.argmax(axis=1))
    np.testing.assert_array_equal(sample(logits, Sampling(1e-4, top_k=0), rng()), logits.argmax(axis=1))


def test_samples_follow_the_distribution():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    chosen = sample(np.tile(np.log(p), (5_000, 1)), Sampling(1.0, top_k=0), rng())
    np.testing.assert_allclose(np.bincount(chosen, minlength=4) / 5_000, p, atol=0.025)
    hot = sample(np.tile(np.log(p), (5_000, 1)), Sampling(2.0, top_k=0), rng())
    np.testing.assert_allclose(np.bincount(hot, minlength=4) / 5_000, np.sqrt(p) / np.sqrt(p).sum(), atol=0.025)


def test_a_token_of_probability_zero_is_never_drawn():
    class Extreme:
        def random(self, n):
            return np.resize([0.0, np.nextafter(1, 0)], n)

    logits = np.array([[-np.inf, 0.0, 0.0, -np.inf]] * 2)
    np.testing.assert_array_equal(sample(logits, Sampling(1.0, top_k=0), Extreme()), [1, 2])


@pytest.mark.parametrize("bad, temperature", [(np.nan, 0.0), (np.nan, 0.8), (np.inf, 0.8)])
def test_logits_that_are_not_finite_end_the_text(bad, temperature):
    logits = np.zeros((2, 7), dtype=np.float32)
    logits[1, 3] = bad
    with pytest.raises(FloatingPointError, match=f"largest of row 1 is {bad}, expected a finite number; .* tinygpt verify"):
        sample(logits, Sampling(temperature=temperature), PerRowRNG(0, 2))
    logits[1, 3] = -np.inf  # a token that a caller forbids
    assert sample(logits, Sampling(temperature=temperature), PerRowRNG(0, 2))[1] != 3


def test_the_seed_decides_the_text_and_the_prompt_is_kept():
    model, ids = GPT(TINY), [[1, 2, 3], [4, 5, 6]]
    a, b, c = (generate(model, ids, 20, seed=s).ids for s in (0, 0, 1))
    assert a.shape == (2, 23) and np.array_equal(a, b) and not np.array_equal(a, c)
    np.testing.assert_array_equal(a[:, :3], ids)
    np.testing.assert_array_equal(model.generate(ids, 20, seed=0), a)
    assert model.training  # as it was before


def test_an_end_token_ends_its_row_only():
    model = GPT(TINY)
    free = generate(model, [[1], [2], [3]], 15, temperature=1.5, top_k=0).ids
    eos = int(free[0, 4])
    result = generate(model, [[1], [2], [3]], 15, temperature=1.5, top_k=0, eos_id=eos)
    for row, unbound, reason in zip(result.ids, free, result.stop_reason, strict=True):
        ends = np.flatnonzero(unbound[1:] == eos)
        assert reason == ("eos" if len(ends) else "length")
        if len(ends):
            np.testing.assert_array_equal(row[: ends[0] + 2], unbound[: ends[0] + 2])
            assert (row[ends[0] + 1 :] == eos).all()


class Bytes:
    """A stand-in tokenizer: ids are bytes, 256 ends a text."""

    n_vocab, eos_id, end_ids = 257, 256, (256,)

    def encode(self, text):
        return list(text.encode("utf-8"))

    encode_from_start = encode

    def decode_bytes(self, ids):
        return bytes(ids)


def stream_of(text, monkeypatch, *, stop=(), eos=False, limit=1000):
    ids = list(text.encode("utf-8")) + ([256] if eos else [])
    monkeypatch.setattr("tinygpt.inference.text.TokenIterator", lambda model, prompts, n, *a, **k: (np.array([i]) for i in ids[:n]))
    stream = TextStream(None, Bytes(), "x", limit, stop=stop)
    return list(stream), stream


def test_pieces_are_never_half_a_character(monkeypatch):
    pieces, stream = stream_of("aé€😀z", monkeypatch)
    assert pieces == ["a", "é", "€", "😀", "z"] and stream.text == "aé€😀z" and stream.stop_reason == "length"
    pieces, stream = stream_of("a😀", monkeypatch, limit=3)
    assert stream.text == "a\ufffd"  # cut in the middle: shown once, at the end


def test_stop_strings_are_not_shown_not_even_in_part(monkeypatch):
    pieces, stream = stream_of("one. two. END three", monkeypatch, stop=("END", "never"))
    assert "".join(pieces) == stream.text == "one. two. " and stream.stop_reason == "stop string"
    pieces, stream = stream_of("an EN and more", monkeypatch, stop=("END",))
    assert "".join(pieces) == stream.text == "an EN and more" and stream.stop_reason == "length"
    pieces, stream = stream_of("trailing EN", monkeypatch, stop=("END",))
    assert stream.text == "trailing EN"


def test_the_end_token_ends_the_text_and_is_not_shown(monkeypatch):
    _, stream = stream_of("done", monkeypatch, eos=True)
    assert stream.text == "done" and stream.stop_reason == "eos" and stream.ids == list(b"done")


@settings(max_examples=50)
@given(text=st.text(alphabet="ab", max_size=30), stop=st.text(alphabet="ab", min_size=1, max_size=4))
def test_text_ends_where_the_first_stop_string_begins(text, stop):
    with pytest.MonkeyPatch.context() as patch:
        _, stream = stream_of(text, patch, stop=(stop,))
    assert stream.text == text.partition(stop)[0]


def test_an_empty_prompt_starts_from_the_end_token():
    model = GPT(tiny(vocab_size=257))
    assert complete(model, Bytes(), "", 3).stop_reason in ("length", "eos")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature: -1.0, expected a finite number >= 0; "),
        ({"temperature": float("nan")}, r"temperature: nan, expected"),
        ({"top_k": -1}, r"top_k: -1, expected >= 0; "),
        ({"top_p": 0.0}, r"top_p: 0.0, expected 0 < top_p <= 1; "),
        ({"top_p": 1.1}, r"top_p: 1.1, expected 0 < top_p <= 1; "),
        ({"min_p": 1.1}, r"min_p: 1.1, expected 0 <= min_p <= 1; "),
        ({"repetition_penalty": 0.0}, r"repetition_penalty: 0.0, expected a finite number > 0; "),
    ],
)
def test_illegal_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        generate(GPT(TINY), [[1]], 1, **options)


def test_bad_prompts_are_named():
    with pytest.raises(ValueError, match=r"an empty prompt, expected at least one token"):
        generate(GPT(TINY), np.zeros((1, 0), int), 1)
    with pytest.raises(ValueError, match=r"generate: 9 tokens, expected at most 8, the model's context; shorten the prompt, ask for fewer"):
        generate(GPT(TINY), [[1] * 9], 1, slide=False)
    with pytest.raises(ValueError, match=r"generate: 9 tokens, expected at most 8"):
        generate(GPT(TINY), [[1] * 7], 5, slide=False)
    for ids in ([[1, 17]], [[-1]]):
        with pytest.raises(ValueError, match=r"generate: prompt id: .* at position .*, expected 0 <= id < 17"):
            generate(GPT(TINY), ids, 1)
    with pytest.raises(TypeError, match=r"generate: prompt id: float64 values, expected integers"):
        generate(GPT(TINY), [[1.5]], 1)
    with pytest.raises(ValueError, match=r"an empty prompt"):
        generate(GPT(TINY), [[1], []], 1)
    with pytest.raises(ValueError, match=r"attention_mask of shape \(1, 2\), expected \(1, 1\)"):
        generate(GPT(TINY), [[1]], 1, attention_mask=[[1, 1]])
    with pytest.raises(ValueError, match=r"generate: attention_mask: -inf in a mask of shape \(1, 2\), expected booleans or 0 and 1"):
        generate(GPT(TINY), [[1, 2]], 1, attention_mask=[[0.0, -np.inf]])
    with pytest.raises(ValueError, match=r"max_new_tokens: -1, expected >= 0"):
        generate(GPT(TINY), [[1]], -1)
    with pytest.raises(ValueError, match=r"seed: 3 seeds for 2 prompts, expected one each"):
        generate(GPT(TINY), [[1], [2]], 1, seed=[1, 2, 3])
    with pytest.raises(ValueError, match=r"ids of shape \(2,\), expected \(batch, positions\)"):
        generate(GPT(TINY), [1, 2], 1)
    with pytest.raises(ValueError, match=r"stop: an empty string"):
        TextStream(None, Bytes(), "x", 1, stop=("",))


# ---- the caller's model ------------------------------------------------------------------------------------------------------------------


def modes(model):
    return [module.training for _, module in model.named_modules()]


class FailsAfter(type(GPT(TINY).lm_head)):
    """An output layer that raises at its second use."""

    def forward(self, x):
        self.n = getattr(self, "n", 0) + 1
        if self.n == 2:
            raise KeyError("in the middle")
        return super().forward(x)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("how", ["text", "tokens"])
def test_a_model_keeps_its_modes_while_text_is_generated_and_when_it_is_abandoned(use_cache, how):
    """Dropout stays on for whoever trains between two tokens, and no module's own mode is lost."""
    tokenizer = CharacterTokenizer.train("abcdefghijklmnopq")
    model = GPT(dataclasses.replace(TINY, dropout=0.5))
    model.h[0].mlp.eval()  # as a user does who trains the rest
    before = modes(model)
    expected = generate(GPT(TINY), [[1]], 6, use_cache=use_cache).sequences[0].tolist()  # the same weights without dropout

    def tokens():
        if how == "tokens":
            yield from (int(new[0]) for new in TokenIterator(model, [[1]], 6, use_cache=use_cache))
        else:
            yield from (tokenizer.encode(piece)[0] for piece in TextStream(model, tokenizer, "b", 6, use_cache=use_cache))

    found, iterator = [], tokens()
    for _ in range(3):
        found.append(next(iterator))
        assert modes(model) == before
        model.loss([[1, 2]], [[2, 3]]).backward()  # a training step in between
    assert found == expected[:3]  # no dropout in what is generated
    iterator.close()
    assert modes(model) == before


def test_a_model_keeps_its_modes_when_something_raises():
    model = GPT(TINY)
    model.lm_head.__class__ = FailsAfter
    tokenizer = CharacterTokenizer.train("abcdefghijklmnopq")
    for call in (
        lambda: generate(model, [[1]], 5),
        lambda: beam_search(model, [1], 5),
        lambda: token_nats(model, [1] * 30, 2),
        lambda: [choose(model, tokenizer, "a", ["b", "c"]) for _ in range(2)],
        lambda: generate_plain(model, [1], 5),
    ):
        model.lm_head.n = 0
        with pytest.raises(KeyError):
            call()
        assert all(modes(model))


# ---- options -----------------------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), share=st.floats(0.01, 1.0))
def test_min_p_keeps_what_is_likely_enough(seed, share):
    logits = np.random.default_rng(seed).standard_normal(40) * 2
    ids, p = candidates(logits, Sampling(1.0, top_k=0, min_p=share))
    full = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_array_equal(ids, np.flatnonzero(full >= share * full.max() * (1 - 1e-12)))
    np.testing.assert_allclose(p, full[ids] / full[ids].sum())


@given(seed=st.integers(0, 1000), n=st.integers(1, 600), p=st.floats(0.01, 1.0), spread=st.sampled_from([0.0, 0.1, 3.0]))
def test_the_nucleus_is_the_one_that_a_full_sort_finds(seed, n, p, spread):
    probabilities = np.exp(np.random.default_rng(seed).standard_normal(n) * spread)
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = candidates(np.log(probabilities), Sampling(1.0, top_k=0, top_p=p))[0]
    assert abs(len(kept) - (before < p).sum()) <= 1  # rounding at the border
    assert probabilities[kept].min() >= probabilities[order][min(len(kept), n) - 1] - 1e-12


@given(seed=st.integers(0, 1000), k=st.integers(1, 40))
def test_the_top_ids_are_those_of_a_full_sort(seed, k):
    logits = np.random.default_rng(seed).permutation(40).astype(np.float32)
    np.testing.assert_array_equal(top_ids(logits, k), np.argsort(-logits)[:k])


def test_the_repetition_penalty_halves_and_doubles():
    logits = np.array([2.0, -2.0, 3.0, -3.0])
    np.testing.assert_allclose(penalized(logits, [0, 1, 1], 2.0), [1.0, -4.0, 3.0, -3.0])
    np.testing.assert_allclose(logits, [2.0, -2.0, 3.0, -3.0])
    free, strict = (generate(GPT(TINY), [[1]], 7, temperature=0.0, repetition_penalty=r).ids[0] for r in (1.0, 1e9))
    assert len(set(strict)) == len(strict) and len(set(free)) < len(free)


def test_several_end_tokens():
    model = GPT(TINY)
    free = generate(model, [[1], [2]], 15, temperature=1.5, top_k=0).ids[:, 1:]
    ends = {int(free[0, 4]), int(free[1, 2])}
    result = generate(model, [[1], [2]], 15, temperature=1.5, top_k=0, eos_id=ends)
    for row, unbound in zip(result.sequences, free, strict=True):
        n = next(i for i, token in enumerate(unbound) if token in ends) + 1
        np.testing.assert_array_equal(row, unbound[:n])
    assert result.stop_reason == ["eos", "eos"]


def test_log_probabilities_are_the_models_own_whatever_the_sampling():
    model = GPT(TINY)
    result = generate(model, [[1, 2]], 5, temperature=3.0, top_k=2, alternatives=3)
    ids = result.ids[0]
    logits = backend.to_host(model.eval()([ids[:-1]]).data)[0, 1:].astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    for i, info in enumerate(result.infos[0]):
        assert info.id == ids[2 + i] and info.log_prob == pytest.approx(log_p[i, info.id], abs=1e-5)
        assert [a for a, _ in info.alternatives] == np.argsort(-log_p[i])[:3].tolist()
        np.testing.assert_allclose([p for _, p in info.alternatives], np.sort(log_p[i])[::-1][:3], atol=1e-5)
    assert generate(model, [[1]], 3).infos == [[]]


def test_no_new_tokens_is_the_prompt():
    result = generate(GPT(TINY), [[1, 2]], 0)
    np.testing.assert_array_equal(result.ids, [[1, 2]])
    assert result.stop_reason == ["length"] and result.sequences[0].size == 0


def test_several_texts_at_once_are_those_made_one_by_one():
    tokenizer = CharacterTokenizer.train("abcdefghijklmnopq")
    model = GPT(TINY)
    prompts, options = ["a", "bcd", "efghijklmno"], {"stop": ["e", "qq"], "alternatives": 1}
    sampling = Sampling(1.5, top_k=0)
    together = complete_all(model, tokenizer, prompts, 30, sampling, seed=[3, 4, 5], **options)
    for prompt, seed, found in zip(prompts, (3, 4, 5), together, strict=True):
        alone = TextStream(model, tokenizer, prompt, 30, sampling, seed=seed, **options)
        assert "".join(alone) == alone.text
        assert (found.text, found.ids, found.stop_reason) == (alone.text, alone.ids, alone.stop_reason)
        assert [i.id for i in found.infos] == [i.id for i in alone.infos] == found.ids
    assert "stop string" in {c.stop_reason for c in together}


@given(words=st.lists(st.sampled_from(["the", "cat", ",", ".", "(", ")", "\n", "sat"]), min_size=1, max_size=12))
def test_pieces_of_a_word_tokenizer_join_to_the_decoded_text(words):
    tokenizer = WordTokenizer.train("the cat , . ( ) \n sat")
    ids = [tokenizer.encode(word)[0] for word in words]
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.add(id) for id in ids] + [detokenizer.finish()]
    assert "".join(pieces) == detokenizer.text == tokenizer.decode(ids)


@pytest.mark.parametrize("seed", [-1, [0, -2]])
def test_a_negative_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"seed: .*-\d.*, expected at least 0"):
        PerRowRNG(seed, 2)
