"""The forward passes of a few rows: the same numbers as the plain product, whichever way it is cut."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd import backend, inference
from tests.strategies import seeds

if backend.name != "numpy":
    pytest.skip("these functions are NumPy's", allow_module_level=True)


def check_linear(b, i, o, bias, by_rows, rng):
    x, weight, shift = rng.standard_normal((b, i)), rng.standard_normal((o, i)), rng.standard_normal(o) if bias else None
    stored = weight if by_rows else np.asfortranarray(weight)
    out = np.full((b, o), np.nan)
    inference.linear(x, stored, shift, out, np.empty(b * o))
    np.testing.assert_allclose(out, x @ weight.T + (0 if shift is None else shift), atol=1e-10)


@given(b=st.integers(1, 20), i=st.integers(1, 40), o=st.integers(1, 1500), bias=st.booleans(), by_rows=st.booleans(), seed=seeds)
def test_linear_is_the_plain_product(b, i, o, bias, by_rows, seed):
    check_linear(b, i, o, bias, by_rows or b > 1, np.random.default_rng(seed))


@given(b=st.integers(1, 3), i=st.integers(1, 300), o=st.integers(1, 300), stored_by_rows=st.booleans(), seed=seeds)
def test_arranged_is_the_same_matrix_with_the_right_side_contiguous(b, i, o, stored_by_rows, seed):
    weight = np.random.default_rng(seed).standard_normal((o, i))
    stored = weight if stored_by_rows else np.asfortranarray(weight)
    arranged = inference.preferred_layout(stored, b)
    np.testing.assert_array_equal(arranged, weight)
    assert arranged.flags.f_contiguous if b == 1 and o >= i else arranged.flags.c_contiguous
    assert inference.preferred_layout(arranged, b) is arranged


@given(b=st.integers(1, 3), c=st.integers(1, 50), seed=seeds)
def test_layer_norm_is_that_of_the_op(b, c, seed):
    rng = np.random.default_rng(seed)
    x, gamma, beta = rng.standard_normal((b, c)) * 3 + 5, rng.standard_normal(c), rng.standard_normal(c)
    out = np.full_like(x, np.nan)
    inference.layer_norm(x, gamma, beta, 1e-5, out, np.empty((b, 1)))
    np.testing.assert_allclose(out, ag.layer_norm(ag.Tensor(x), ag.Tensor(gamma), ag.Tensor(beta), 1e-5).data, atol=1e-9)


@given(
    b=st.integers(1, 3), n_key_heads=st.integers(1, 3), n_group=st.integers(1, 3), n_keys=st.integers(1, 40), d=st.integers(1, 9),
    scale=st.sampled_from([None, 0.3]), softcap=st.sampled_from([0.0, 0.8]), slopes=st.booleans(), hides=st.booleans(), seed=seeds,
)  # fmt: skip
def test_attention_is_that_of_the_op(b, n_key_heads, n_group, n_keys, d, scale, softcap, slopes, hides, seed):
    rng = np.random.default_rng(seed)
    h = n_key_heads * n_group
    q = rng.standard_normal((b, 3 * h * d))[:, : h * d].reshape(b, h, d)[:, :, None]  # a view, as the fast decoder's
    keys, values = (rng.standard_normal((b, n_key_heads, 50, d))[:, :, :n_keys] for _ in range(2))
    options = {"scale": scale, "softcap": softcap}
    alibi = ag.alibi_slopes(h) if slopes else None
    hidden = (np.arange(n_keys) < rng.integers(0, n_keys, (b, 1, 1, 1))) if hides else None  # (B, 1, 1, S)
    expected = ag.scaled_dot_product_attention(
        *(ag.Tensor(a) for a in (q, keys, values)), None if hidden is None else ~hidden, causal=True, alibi=alibi, **options
    )
    bias = None if alibi is None else np.array(alibi)[:, None, None] * np.arange(1 - n_keys, 1)
    out, scores, column = np.full((b, h, 1, d), np.nan), np.full((b, h, 1, 50), np.nan)[..., :n_keys], np.empty((b, h, 1, 1))
    inference.attention(q, keys, values, hidden, scores, column, out, bias=bias, **options)
    np.testing.assert_allclose(out, expected.data, atol=1e-10)


@given(b=st.integers(1, 3), h=st.integers(1, 3), half=st.integers(1, 9), rest=st.integers(0, 3), each=st.booleans(), seed=seeds)
def test_rotary_is_that_of_the_op(b, h, half, rest, each, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((b, h, 1, 2 * half + rest))
    angles = rng.standard_normal((b, 1, 1, half) if each else half)
    expected = ag.rotary_embedding(ag.Tensor(x), np.cos(angles), np.sin(angles)).data
    cos, sin = (np.stack(pair, axis=-2) for pair in ((np.cos(angles), np.cos(angles)), (-np.sin(angles), np.sin(angles))))
    turned, swapped = inference.halves(x[:, :, 0, : 2 * half])
    inference.rotary(turned, swapped, *(t[:, :, 0] if each else t for t in (cos, sin)), np.empty(turned.shape))
    np.testing.assert_allclose(x, expected, atol=1e-12)


@given(b=st.integers(1, 3), c=st.integers(1, 50), weighted=st.booleans(), seed=seeds)
def test_rms_norm_is_that_of_the_op(b, c, weighted, seed):
    rng = np.random.default_rng(seed)
    x, scale = rng.standard_normal((b, c)) + 1, rng.standard_normal(c) if weighted else None
    out = np.full_like(x, np.nan)
    inference.rms_norm(x, scale, 1e-6, out, np.empty((b, 1)))
    np.testing.assert_allclose(out, ag.rms_norm(ag.Tensor(x), scale, 1e-6).data, atol=1e-9)


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_exact", "silu", "squared_relu"])
@given(b=st.integers(1, 3), c=st.integers(1, 50), seed=seeds)
def test_activations_are_those_of_the_ops(name, b, c, seed):
    x = 3 * np.random.default_rng(seed).standard_normal((b, c))
    out = np.full_like(x, np.nan)
    inference.activate(name, x, out)
    np.testing.assert_allclose(out, getattr(ag, name)(ag.Tensor(x)).data, atol=1e-12)


@pytest.mark.parametrize("shape", [(8, 3072, 70), (8, 768, 3000), (16, 2000, 130), (2, 5000, 33), (17, 768, 700)])
def test_linear_over_threads_with_blocks_left_over(shape):
    check_linear(*shape, True, True, np.random.default_rng(0))
