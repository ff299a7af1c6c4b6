"""Generation with a cache of keys and values: the same tokens as without, whatever the model, the prompts and the length."""

import dataclasses
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from autograd.optim import AdamW
from tests.strategies import seeds
from tests.tinygpt.helpers import decoders, randomize
from tinygpt import GPT, GPTConfig
from tinygpt.inference import decoding as module
from tinygpt.inference.decoding import DecodingState, TokenIterator, generate, window_length
from tinygpt.inference.fast import FastDecoder, supports_fast_decoding
from tinygpt.inference.sampling import Sampling
from tinygpt.models.cache import KVCache
from tinygpt.models.gpt import CausalSelfAttention, generate_plain
from tinygpt.presets import PRESETS

FAKE = backend.name == "cupy"
TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=8, vocab_size=17)


def random_model(config, seed, dtype="float64"):
    return randomize(GPT(config, seed=seed), seed, dtype)


@contextmanager
def without_fast_decoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "supports_fast_decoding", lambda model: False)
        yield


gpt2s = st.builds(
    lambda layers, heads, d, positions, vocabulary, qkv_bias, tied: GPTConfig(
        n_layer=layers, n_head=heads, n_embd=heads * d, n_positions=positions, vocab_size=vocabulary, qkv_bias=qkv_bias, tie_word_embeddings=tied
    ),
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(1, 12), st.integers(2, 40), st.booleans(), st.booleans(),
)  # fmt: skip
configs = gpt2s | decoders()


@settings(max_examples=8 if FAKE else 200)
@given(config=configs, seed=seeds, lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), greedy=st.booleans(), rows=st.booleans())
def test_cached_is_uncached_token_for_token(config, seed, lengths, greedy, rows):
    """Past the context and in batches of different lengths, too; with the fast decoder and with the model's own layers."""
    model, rng = random_model(config, seed), np.random.default_rng(seed)
    prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in lengths]
    options = {"temperature": 0.0 if greedy else 1.0, "top_k": 0, "seed": list(range(len(lengths))), "alternatives": 1}
    plain = generate(model, prompts, 2 * config.n_positions + 3, use_cache=False, **options)
    if rows:
        cached = generate(model, prompts, 2 * config.n_positions + 3, **options)
    else:
        with without_fast_decoder():
            cached = generate(model, prompts, 2 * config.n_positions + 3, **options)
    np.testing.assert_array_equal(cached.ids, plain.ids)
    assert cached.n_slides == plain.n_slides
    for mine, other in zip(cached.infos, plain.infos, strict=True):
        np.testing.assert_allclose([i.log_prob for i in mine], [i.log_prob for i in other], atol=1e-10)


@settings(max_examples=8 if FAKE else 50)
@given(config=configs, seed=seeds, n=st.integers(1, 30), rows=st.booleans())
@example(  # amplifies rounding a hundred times
    config=GPTConfig(
        n_layer=3, n_head=3, n_embd=24, n_positions=3, vocab_size=29, tie_word_embeddings=False, norm="rms", norm_offset=1.0,
        norm_position="post", embedding_norm=True, n_kv_head=1, gated=True, n_inner=16, mlp_bias=False, window=1, window_pattern="SL",
    ),
    seed=1, n=1, rows=False,
)  # fmt: skip
def test_in_float32_logits_agree(config, seed, n, rows):
    """To rounding. A random model may amplify it (a norm of something small): then the cache may be as far from the exact logits as the plain
    computation is, several times at most."""
    model, rng = random_model(config, seed, "float32"), np.random.default_rng(seed)
    exact = GPT(config, seed=seed).eval()
    for p, q in zip(exact.parameters(), model.parameters(), strict=True):
        p.data = q.data.astype(np.float64)
    prompts = [rng.integers(0, config.vocab_size, n).tolist(), [1]]
    with without_fast_decoder() if not rows else pytest.MonkeyPatch.context():
        states = [DecodingState(model, prompts), *(DecodingState(m, prompts, use_cache=False) for m in (model, exact))]
    for _ in range(6):
        cached, plain, right = (np.array(state.logits()) for state in states)
        usual = 1e-5 * max(1, np.abs(right).max())
        np.testing.assert_allclose(cached, right, rtol=0, atol=max(usual, 4 * np.abs(plain - right).max()))
        for state in states:
            state.append(right.argmax(axis=1))


@pytest.mark.exact
@settings(max_examples=4 if FAKE else 30)
@given(config=configs, seed=seeds, lengths=st.lists(st.integers(1, 20), min_size=2, max_size=4))
def test_a_row_is_the_same_alone_and_in_a_batch(config, seed, lengths):
    model, rng = random_model(config, seed), np.random.default_rng(seed)
    prompts = [rng.integers(0, config.vocab_size, n).tolist() for n in lengths]
    together = generate(model, prompts, 15, temperature=1.0, top_k=0, seed=[7 * i for i in range(len(lengths))])
    for i, prompt in enumerate(prompts):
        alone = generate(model, [prompt], 15, temperature=1.0, top_k=0, seed=7 * i)
        np.testing.assert_array_equal(together.sequences[i], alone.sequences[0])


def test_padding_on_the_left_is_invisible():
    model = random_model(TINY, 0)
    ids, mask = [[0, 0, 5, 6], [1, 2, 3, 4]], [[0, 0, 1, 1], [1, 1, 1, 1]]
    padded = generate(model, ids, 6, attention_mask=mask, temperature=0.0)
    ragged = generate(model, [[5, 6], [1, 2, 3, 4]], 6, temperature=0.0)
    np.testing.assert_array_equal(padded.ids, ragged.ids)
    np.testing.assert_array_equal(padded.ids[:, :4], ids)


@given(n_positions=st.integers(1, 30), n_tokens=st.integers(1, 200))
def test_the_window_depends_on_the_count_alone(n_positions, n_tokens):
    """Growing by one token at a time, cut to its last half when it would exceed the context."""
    length = 0
    for _ in range(n_tokens):
        length += 1
        if length > n_positions:
            length = max(n_positions // 2, 1)
    assert window_length(n_tokens, n_positions) == length


def test_the_prompt_is_read_once_and_a_full_window_once_per_half(monkeypatch):
    reads, steps = [], []
    real_view = KVCache.view_for_prefill
    monkeypatch.setattr(KVCache, "view_for_prefill", lambda self, rows, n: (reads.append(n), real_view(self, rows, n))[1])
    real_step = KVCache.step
    monkeypatch.setattr(KVCache, "step", lambda self, positions: (steps.append(int(positions[0])), real_step(self, positions))[1])
    said = []
    with without_fast_decoder():
        result = generate(random_model(TINY, 1), [[1, 2, 3, 4, 5, 6]], 12, on_slide=lambda row, kept: said.append((row, kept)))
    assert reads == [6, 4, 4]
    assert steps == [6, 7, 4, 5, 6, 7, 4, 5, 6]
    reads.clear()
    with without_fast_decoder():
        generate(random_model(TINY, 1), [[1, 2, 3, 4, 5, 6], [1, 2, 3]], 1)
    assert reads == [5]  # rows of different lengths: all but their last tokens, which one step reads together
    assert said == [(0, 4), (0, 4)] and result.n_slides == 2


def test_a_prompt_beyond_the_context_is_read_as_if_it_had_been_generated():
    model = random_model(TINY, 2)
    long = generate(model, [[1, 2]], 30, temperature=0.0).ids[0]
    for cut in (9, 12, 13, 20):
        again = generate(model, [long[:cut]], len(long) - cut, temperature=0.0)
        np.testing.assert_array_equal(again.ids[0], long)


@pytest.mark.skipif(FAKE, reason="the fast decoder is NumPy's")
def test_the_fast_decoder_is_used_where_it_can_be_and_only_there():
    model = random_model(TINY, 3)
    assert supports_fast_decoding(model) and isinstance(DecodingState(model, [[1]]).decoder, FastDecoder)
    with ag.use_kernels("reference"):
        assert not supports_fast_decoding(model)

    class Adapted(type(model.h[0].mlp.c_fc)):
        pass

    model.h[0].mlp.c_fc.__class__ = Adapted
    assert not supports_fast_decoding(model)


@pytest.mark.skipif(FAKE, reason="the fast decoder is NumPy's")
@given(config=decoders())
def test_the_fast_decoder_knows_every_option(config):
    model = random_model(config, 0)
    assert supports_fast_decoding(model) and isinstance(DecodingState(model, [[0]]).decoder, FastDecoder)


@pytest.mark.skipif(FAKE, reason="the fast decoder is NumPy's")
@pytest.mark.parametrize("name", [name for name in PRESETS if not name.startswith(("gpt3", "llama-2"))])
def test_the_fast_decoder_is_taken_for_every_family(name):
    size = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": 17, "n_positions": 20}
    size |= {
        key: n for key, n in (("n_inner", 24), ("n_kv_head", 1), ("head_size", 8), ("window", 3)) if key in GPTConfig.preset(name).options()
    }
    model = random_model(GPTConfig.preset(name, **size), 1)
    assert supports_fast_decoding(model)
    cached, plain = (generate(model, [[1, 2], [3, 4, 5]], 30, temperature=0.0, use_cache=use_cache).ids for use_cache in (True, False))
    np.testing.assert_array_equal(cached, plain)


def turn_by_position(x, positions):
    """x (B, H, T, D) with the first and the second half of its channels turned by their position: a toy of rotary positions."""
    angle = np.asarray(positions)[:, None] * np.pi / 5  # (T, 1)
    a, b = ag.split(x, 2)
    cos, sin = (ag.Tensor(backend.to_device(f(angle).astype(x.dtype))) for f in (np.cos, np.sin))
    return ag.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


class Rotary(CausalSelfAttention):
    """Attention with an option that the fast decoder does not know: keys and queries depend on the position."""

    def forward(self, x, mask=None, cache=None, last_only=False):
        b, t, c = x.shape
        start = 0 if cache is None or t > 1 else self.position
        q, k, v = (part.reshape(b, t, self.n_head, -1).transpose(0, 2, 1, 3) for part in ag.split(self.c_attn(x), 3))
        q, k = (turn_by_position(part, start + np.arange(t)) for part in (q, k))
        if cache is not None:
            k, v = cache.update(k, v)
        if last_only:
            q, t = q[:, :, -1:], 1
        y = ag.scaled_dot_product_attention(q, k, v, mask, causal=True)
        return self.c_proj(y.transpose(0, 2, 1, 3).reshape(b, t, c))


def test_a_block_that_the_fast_decoder_does_not_know_takes_the_slow_path(monkeypatch):
    model = random_model(GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=40, vocab_size=17), 8)
    before = generate(model, [[1, 2, 3]], 20, temperature=0.0).ids
    for block in model.h:
        block.attn.__class__ = Rotary
    assert not supports_fast_decoding(model) and DecodingState(model, [[1]]).decoder is None
    real_step = KVCache.step

    def step(cache, positions):
        for block in model.h:
            block.attn.position = int(positions[0])
        return real_step(cache, positions)

    monkeypatch.setattr(KVCache, "step", step)
    cached, plain = (generate(model, [[1, 2, 3]], 20, temperature=0.0, use_cache=use_cache).ids for use_cache in (True, False))
    np.testing.assert_array_equal(cached, plain)
    assert not np.array_equal(plain, before)  # the option does something
    assert generate_plain(model, [1, 2, 3], 20, temperature=0.0) == plain[0].tolist()


@pytest.mark.skipif(FAKE, reason="the fast decoder is NumPy's")
@pytest.mark.parametrize("change", ["flag", "method", "width", "dtype"])
def test_an_option_that_the_fast_decoder_does_not_know_takes_the_slow_path(change):
    """A further attribute of a known layer, another forward, another shape, a second dtype."""
    model = random_model(TINY, 9)
    assert supports_fast_decoding(model)
    mlp = model.h[1].mlp
    if change == "flag":
        model.h[0].attn.rope = True
    elif change == "method":
        real = mlp.forward
        mlp.forward = lambda x: real(x) * 2
    elif change == "width":
        mlp.c_fc.weight.data, mlp.c_fc.bias.data = mlp.c_fc.weight.data[:, :24].copy(), mlp.c_fc.bias.data[:24].copy()
        mlp.c_proj.weight.data = mlp.c_proj.weight.data[:24].copy()
    else:
        model.ln_f.bias.data = model.ln_f.bias.data.astype("float32")
    assert not supports_fast_decoding(model)
    cached, plain = (generate(model, [[1, 2], [3]], 12, temperature=0.0, use_cache=use_cache).ids for use_cache in (True, False))
    np.testing.assert_array_equal(cached, plain)


@pytest.mark.exact
@pytest.mark.skipif(FAKE, reason="the fast decoder is NumPy's")
def test_matrices_are_laid_out_once_and_an_optimizers_stay_in_place():
    model = GPT(dataclasses.replace(TINY, vocab_size=40))
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    wide, narrow, head = model.h[0].mlp.c_fc.weight, model.h[0].mlp.c_proj.weight, model.lm_head.weight
    untouched = wide.data
    DecodingState(model, [[1]])
    assert wide.data is untouched, "for one row a wide matrix stays as it is"
    assert narrow.data.flags.f_contiguous and narrow.shape == (64, 16)
    assert head.data.flags.f_contiguous and head is model.wte.weight and head.shape == (40, 16)
    first = [p.data for p in model.parameters()]
    DecodingState(model, [[2]])
    assert all(p.data is array for p, array in zip(model.parameters(), first, strict=True))
    DecodingState(model, [[1], [2]])
    assert wide.data.flags.f_contiguous and head.data.flags.c_contiguous
    DecodingState(model, [[1]])
    assert wide.data.flags.c_contiguous and head.data.flags.f_contiguous
    for name, p in model.named_parameters():
        np.testing.assert_array_equal(p.data, before[name])

    model = GPT(TINY)
    optimizer = AdamW(model, lr=0.1)
    generate(model, [[1], [2]], 2)
    ids = np.zeros((1, 4), int)
    model.loss(ids, ids).backward()
    optimizer.step()  # writes into its buffer: the model must still see it
    for p, view in zip((p for _, p in optimizer.named), optimizer._views, strict=True):
        assert p.data is view
    for prompts in ([[1]], [[1], [2]]):
        with_cache, without = (generate(model, prompts, 9, seed=1, use_cache=use_cache) for use_cache in (True, False))
        np.testing.assert_array_equal(with_cache.ids, without.ids)


@pytest.mark.skipif(FAKE, reason="the fast decoder is NumPy's")
def test_a_decoding_step_allocates_next_to_nothing():
    import tracemalloc

    model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=128, n_positions=64, vocab_size=5000)).eval()
    state = DecodingState(model, [[1] * 10])
    state.logits()
    tracemalloc.start()
    try:
        for _ in range(20):
            state.append([3])
            state.logits()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12_000  # views and small index arrays; one row of 4 C numbers alone would be 2 KB, the logits 20 KB


def test_the_cache_has_the_size_of_its_formula():
    config = GPTConfig(n_layer=3, n_head=2, n_embd=8, n_positions=5, vocab_size=7)
    cache = KVCache(config, 4)
    assert cache.keys.nbytes + cache.values.nbytes == 2 * 3 * 4 * 8 * 5 * 4


def test_the_cache_has_as_many_slots_as_the_call_can_need():
    model = random_model(TINY, 6)  # a context of 8
    for n_new, n_slots in ((0, 3), (2, 5), (5, 8), (100, 8)):
        assert TokenIterator(model, [[1], [1, 2, 3]], n_new).state.cache.n_slots == n_slots
    assert TokenIterator(model, [[1] * 9], 1).state.cache.n_slots == 5  # the window of 9 tokens has 4
    assert DecodingState(model, [[1]]).cache.n_slots == 8


def test_reordered_rows_go_on_as_the_rows_they_copy():
    model = random_model(TINY, 4)
    state, plain = DecodingState(model, [[1, 2], [3, 4], [5, 6]]), DecodingState(model, [[5, 6], [1, 2], [1, 2]], use_cache=False)
    state.logits()
    state.reorder([2, 0, 0])
    for tokens in ([7, 8, 9], [1, 2, 3]):
        state.append(tokens)
        plain.append(tokens)
        np.testing.assert_allclose(state.logits(), plain.logits(), atol=1e-10)


def test_filling_in_one_pass_equals_token_by_token():
    model = random_model(TINY, 5)
    at_once, one_by_one = KVCache(TINY, 1, np.float64), KVCache(TINY, 1, np.float64)
    with ag.no_grad():
        model.hidden([[3, 1, 4, 1, 5]], cache=at_once.view_for_prefill([0], 5), last_only=True)
        for position, token in enumerate([3, 1, 4, 1, 5]):
            model.hidden([[token]], cache=one_by_one.step([position]))
    for a, b in ((at_once.keys, one_by_one.keys), (at_once.values, one_by_one.values)):
        np.testing.assert_allclose(backend.to_host(a), backend.to_host(b), atol=1e-12)


@given(config=configs, seed=seeds, n=st.integers(1, 20))
def test_the_last_position_alone_is_that_of_all(config, seed, n):
    model, n = random_model(config, seed), min(n, config.n_positions)
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (2, n))
    with ag.no_grad():
        alone, all_of_them = (backend.to_host(model.hidden(ids, last_only=last).data) for last in (True, False))
    assert alone.shape == (2, 1, config.n_embd)
    np.testing.assert_allclose(alone, all_of_them[:, -1:], atol=1e-10)


def test_a_mask_with_a_cache_is_an_error():
    model = random_model(TINY, 0)
    with pytest.raises(ValueError, match=r"GPT: attention_mask of shape \(1, 2\) with a cache, expected None; leave padding out of ids"):
        model.hidden([[1, 2]], [[0, 1]], cache=KVCache(TINY, 1, np.float64).view_for_prefill([0], 2))


@settings(max_examples=8 if FAKE else 100)
@given(config=configs, seed=seeds, n=st.integers(1, 20), temperature=st.sampled_from([0.0, 0.7, 1.5]), top_k=st.sampled_from([0, 1, 3, 50]))
def test_the_plain_loop_gives_the_same_tokens(config, seed, n, temperature, top_k):
    """Within the context and beyond it, greedy and sampled from the same random numbers."""
    model = random_model(config, seed)
    prompt = np.random.default_rng(seed).integers(0, config.vocab_size, n).tolist()
    options = {"temperature": temperature, "top_k": top_k, "seed": seed}
    plain = generate_plain(model, prompt, 2 * config.n_positions + 3, **options)
    assert plain[:n] == prompt
    assert plain == model.generate([prompt], 2 * config.n_positions + 3, **options)[0].tolist()


@pytest.mark.exact
@given(seed=seeds)
def test_sampling_options_hold_with_a_cache(seed):
    model = random_model(TINY, seed % 7)
    for options in ({"min_p": 0.3}, {"repetition_penalty": 1.7}, {"top_p": 0.7, "top_k": 0}, {"top_k": 3}):
        a, b = (generate(model, [[1, 2], [3]], 12, seed=seed, use_cache=cached, **options).ids for cached in (True, False))
        np.testing.assert_array_equal(a, b)


def test_sampling_defaults_match_generates():
    assert Sampling() == Sampling(0.8, 50, 1.0, 0.0, 1.0)
