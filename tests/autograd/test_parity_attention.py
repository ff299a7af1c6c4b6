"""Attention's options and rotary positions held against transformers and PyTorch, on random draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd import backend, nn
from tests.strategies import seeds

if backend.name != "numpy":
    pytest.skip("the other side computes on the CPU", allow_module_level=True)
torch = pytest.importorskip("torch", reason="parity tests need the extra `parity`")
pytest.importorskip("transformers", reason="parity tests need the extra `parity`")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("each_kernel_mode")]  # warnings are theirs
torch.set_num_threads(1)  # the test runner's processes share the cores


def same(ours, theirs, arrays, seed, atol=1e-9):
    """Values and gradients in float64, under one random gradient of the output."""
    mine, other = [ag.Tensor(a, requires_grad=True) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, right = ours(*mine), theirs(*other)
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    y.backward(dy)
    right.backward(torch.tensor(dy))
    for found, expected in [(y.data, right.detach()), *((t.grad, u.grad) for t, u in zip(mine, other, strict=True))]:
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=atol * max(1.0, float(expected.abs().max())))


@given(
    n_key_heads=st.integers(1, 3), n_group=st.integers(1, 3), n_keys=st.integers(1, 40), n_channels=st.integers(1, 8),
    scale=st.none() | st.floats(0.05, 2), softcap=st.none() | st.floats(0.5, 50), window=st.integers(0, 45), seed=seeds, data=st.data(),
)  # fmt: skip
def test_attention_of_gemma(n_key_heads, n_group, n_keys, n_channels, scale, softcap, window, seed, data):
    """Grouped heads, scale, soft cap, and `sliding_window` by the mask that transformers makes for Mistral and Gemma."""
    from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function
    from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward

    n_queries = data.draw(st.integers(1, n_keys))
    allowed = sliding_window_causal_mask_function(window) if window else causal_mask_function
    position, key = torch.arange(n_keys - n_queries, n_keys)[:, None], torch.arange(n_keys)
    mask = torch.where(allowed(0, 0, position, key), 0.0, -torch.inf).double()
    module = torch.nn.Module()
    module.num_key_value_groups, module.head_dim, module.training = n_group, n_channels, False

    def theirs(q, k, v):
        return eager_attention_forward(module, q, k, v, mask, scaling=scale, softcap=softcap)[0].transpose(1, 2)

    def ours(q, k, v):
        return ag.scaled_dot_product_attention(q, k, v, causal=True, scale=scale, softcap=softcap or 0.0, window=window)

    rng = np.random.default_rng(seed)
    q = rng.standard_normal((2, n_key_heads * n_group, n_queries, n_channels))
    k, v = rng.standard_normal((2, 2, n_key_heads, n_keys, n_channels))
    same(ours, theirs, [q, k, v], seed, atol=1e-5)  # their softmax is float32


@given(n_head=st.integers(1, 20), n_keys=st.integers(1, 20), seed=seeds, data=st.data())
def test_alibi_of_bloom(n_head, n_keys, seed, data):
    """Their slopes times the key's position, added to the scores: the same softmax as by distances."""
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    n_queries = data.draw(st.integers(1, n_keys))
    alibi = build_alibi_tensor(torch.ones(1, n_keys), n_head, torch.float64).reshape(1, n_head, 1, n_keys)
    position = torch.arange(n_keys - n_queries, n_keys)[:, None]
    bias = torch.where(torch.arange(n_keys) <= position, alibi, -torch.inf)
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal((2, n_head, n, 4)) for n in (n_queries, n_keys, n_keys)]
    same(
        lambda q, k, v: ag.scaled_dot_product_attention(q, k, v, causal=True, alibi=ag.alibi_slopes(n_head)),
        lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias),
        arrays, seed, atol=1e-6,  # their slopes are float32
    )  # fmt: skip


SCALINGS = st.one_of(
    st.none(),
    st.builds(lambda factor: {"rope_type": "linear", "factor": factor}, st.floats(1, 16)),
    st.builds(
        lambda factor, low, width, n: {
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": low + width,
            "original_max_position_embeddings": n,
        },
        st.floats(1, 32), st.floats(0.5, 2), st.floats(0.5, 4), st.sampled_from([16, 64, 8192]),
    ),
)  # fmt: skip


@given(
    half=st.integers(1, 16),
    theta=st.sampled_from([100.0, 1e4, 5e5]),
    scaling=SCALINGS,
    n=st.integers(1, 30),
    batched=st.booleans(),
    seed=seeds,
)
def test_rotary_positions_of_llama(half, theta, scaling, n, batched, seed):
    from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(
        head_dim=2 * half, hidden_size=4 * half, num_attention_heads=2, max_position_embeddings=10_000,
        rope_parameters={"rope_theta": theta, **(scaling or {"rope_type": "default"})},
    )  # fmt: skip
    rng = np.random.default_rng(seed)
    positions = rng.integers(0, 200, (2, n)) if batched else np.arange(n)
    their_cos, their_sin = LlamaRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float64), torch.tensor(positions).reshape(-1, n))
    cos, sin = nn.RotaryPositions(2 * half, theta=theta, scaling=scaling).tables(positions)
    np.testing.assert_allclose(cos.reshape(-1, n, half), their_cos[..., :half], atol=1e-4)  # their angles are float32, up to 200
    np.testing.assert_allclose(sin.reshape(-1, n, half), their_sin[..., :half], atol=1e-4)

    def theirs(q):
        both = (torch.tensor(np.tile(table, 2)).reshape(-1, n, 2 * half) for table in (cos, sin))
        return apply_rotary_pos_emb(q, q, *both)[0]

    same(lambda q: ag.rotary_embedding(q, cos, sin), theirs, [rng.standard_normal((2, 3, n, 2 * half))], seed)


@given(
    head_size=st.integers(1, 16).map(lambda n: 4 * n), fraction=st.sampled_from([0.25, 0.5, 0.75, 1.0]), n=st.integers(1, 30), seed=seeds
)
def test_rotary_positions_on_a_part_of_the_channels_of_gpt_neox(head_size, fraction, n, seed):
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXConfig, GPTNeoXRotaryEmbedding, apply_rotary_pos_emb

    head_size = 2 * head_size  # the part is even then, too
    config = GPTNeoXConfig(
        hidden_size=2 * head_size, num_attention_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": fraction},
    )  # fmt: skip
    their_tables = GPTNeoXRotaryEmbedding(config)(torch.zeros(1, dtype=torch.float64), torch.arange(n)[None])
    cos, sin = nn.RotaryPositions(head_size, fraction=fraction).tables(np.arange(n))
    same(
        lambda q: ag.rotary_embedding(q, cos, sin),
        lambda q: apply_rotary_pos_emb(q, q, *their_tables)[0],
        [np.random.default_rng(seed).standard_normal((2, 3, n, head_size))], seed, atol=1e-4,  # their angles are float32
    )  # fmt: skip
