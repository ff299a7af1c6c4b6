"""Laws of rotary positions, and the tables of positions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd import nn
from autograd.backend import bfloat16, to_device, to_host, xp
from autograd.ops.rotary import RotaryEmbedding
from tests.autograd.checks import assert_close, assert_kernels_agree, numpy_only, takes_fast_path, tensor
from tests.strategies import seeds

pytestmark = pytest.mark.usefixtures("each_kernel_mode")

N = st.integers(1, 33)
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


def exact_tables(n, n_pairs):
    """cos and sin in float64."""
    angles = np.arange(n)[:, None] * nn.rotary_frequencies(2 * n_pairs)
    return np.cos(angles), np.sin(angles)


@given(seed=seeds, n=N, n_pairs=st.integers(1, 8), shift=st.integers(0, 20))
def test_products_of_queries_and_keys_depend_on_their_distance_only(seed, n, n_pairs, shift):
    rng = np.random.default_rng(seed)
    q, k = (tensor(np.broadcast_to(rng.standard_normal(2 * n_pairs), (n + shift, 2 * n_pairs))) for _ in range(2))  # one vector everywhere
    cos, sin = exact_tables(n + shift, n_pairs)
    turned_q, turned_k = (ag.rotary_embedding(t, cos, sin).data for t in (q, k))
    scores = to_host(turned_q @ turned_k.T)
    assert_close(xp.asarray(scores[shift:, shift:]), scores[:n, :n])


@given(seed=seeds, n=N, n_pairs=st.integers(1, 8), rest=st.integers(0, 5))
def test_a_rotation_keeps_lengths_and_turns_back(seed, n, n_pairs, rest):
    x = tensor(np.random.default_rng(seed).standard_normal((2, 3, n, 2 * n_pairs + rest)))
    cos, sin = exact_tables(n, n_pairs)
    y = ag.rotary_embedding(x, cos, sin)
    assert_close((y * y).sum(axis=-1).data, to_host((x * x).sum(axis=-1).data))
    assert_close(ag.rotary_embedding(y, cos, -sin).data, to_host(x.data))
    assert (to_host(y.data)[..., 2 * n_pairs :] == to_host(x.data)[..., 2 * n_pairs :]).all()
    assert_close(y.data[:, :, 0], to_host(x.data)[:, :, 0])  # position 0 stays
    dy = np.random.default_rng(seed).standard_normal(y.shape)
    y.backward(dy)
    assert_close(x.grad, to_host(ag.rotary_embedding(tensor(dy), cos, -sin).data))


def test_halves_are_pairs_not_neighbors():
    cos, sin = np.array([[0.0, 1.0]]), np.array([[1.0, 0.0]])  # the first pair by a quarter turn, the second not at all
    y = ag.rotary_embedding(tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), cos, sin)
    assert to_host(y.data).tolist() == [[-3.0, 2.0, 1.0, 4.0, 5.0]]


@numpy_only
@pytest.mark.parametrize("positions", [np.arange(300), np.arange(600).reshape(2, 300) % 310])
def test_long_sequences(positions):
    (kernel,) = ag.registered_kernels()[RotaryEmbedding]
    cos, sin = nn.RotaryPositions(16, fraction=0.5).tables(positions)
    heads_last = np.random.default_rng(0).standard_normal((2, 300, 40, 16))  # 2 MB in float64: several blocks
    with takes_fast_path(kernel):
        assert_kernels_agree(lambda x: ag.rotary_embedding(ag.transpose(x, (0, 2, 1, 3)), cos, sin), [heads_last], "float64")


@pytest.mark.parametrize("dtype", [np.float16, bfloat16])
def test_16_bits_are_rounded_once_by_float32_tables(dtype):
    if dtype is None:
        pytest.skip("no bfloat16 in this backend")
    cos, sin = nn.RotaryPositions(8).tables(np.arange(5))
    x = to_device(np.random.default_rng(0).standard_normal((1, 2, 5, 8)).astype(np.float32)).astype(dtype)
    y = ag.rotary_embedding(ag.Tensor(x), cos, sin)
    assert y.dtype == dtype
    right = ag.rotary_embedding(ag.Tensor(x.astype(np.float32)), cos, sin).data.astype(dtype)
    assert to_host(y.data).tobytes() == to_host(right).tobytes()


@pytest.mark.parametrize(
    ("x", "cos", "sin", "message"),
    [
        (
            (4,),
            (2,),
            (2,),
            r"rotary_embedding: x \(4,\), cos \(2,\), sin \(2,\), expected \(..., T, D\) and twice one shape that broadcasts",
        ),
        ((3, 4), (3, 3), (3, 3), r"with R <= D; one angle per position"),
        ((3, 4), (2, 2), (2, 2), r"rotary_embedding: x \(3, 4\), cos \(2, 2\)"),
        ((3, 4), (3, 2), (3, 1), r"rotary_embedding: x \(3, 4\), cos \(3, 2\), sin \(3, 1\)"),
        ((3, 4), (1, 3, 2), (1, 3, 2), r"rotary_embedding: x \(3, 4\), cos \(1, 3, 2\)"),
        ((3, 4), (), (), r"rotary_embedding: x \(3, 4\), cos \(\)"),
    ],
)
def test_errors(x, cos, sin, message):
    with pytest.raises(ValueError, match=message):
        ag.rotary_embedding(tensor(np.ones(x)), np.ones(cos), np.ones(sin))


# Tables -------------------------------------------------------------------------------------------------------------------------


@given(n_pairs=st.integers(1, 40), theta=st.sampled_from([10.0, 1e4, 5e5, 1e6]))
def test_frequencies_are_a_geometric_series(n_pairs, theta):
    found = nn.rotary_frequencies(2 * n_pairs, theta=theta)
    np.testing.assert_allclose(found, [theta ** (-2 * i / (2 * n_pairs)) for i in range(n_pairs)], rtol=1e-12)
    np.testing.assert_array_equal(nn.rotary_frequencies(4 * n_pairs, theta=theta, fraction=0.5), found)
    linear = {"type": "linear", "factor": 4}  # the older key
    np.testing.assert_allclose(nn.rotary_frequencies(2 * n_pairs, theta=theta, scaling=linear), found / 4)
    np.testing.assert_array_equal(nn.rotary_frequencies(2 * n_pairs, theta=theta, scaling={"rope_type": "default"}), found)


def test_llama3_scaling_keeps_short_waves_and_stretches_long_ones():
    plain, scaled = nn.rotary_frequencies(32, theta=500.0), nn.rotary_frequencies(32, theta=500.0, scaling=LLAMA3)
    waves = 2 * math.pi / plain
    assert (waves < 16).any() and (waves > 64).any() and ((waves > 16) & (waves < 64)).any()
    np.testing.assert_allclose(scaled[waves < 16], plain[waves < 16])
    np.testing.assert_allclose(scaled[waves > 64], plain[waves > 64] / 8)
    between = (waves > 16) & (waves < 64)
    assert ((scaled < plain) & (scaled > plain / 8))[between].all()


@given(n=st.integers(1, 100), seed=seeds)
def test_tables_are_cosines_and_sines_of_the_angles(n, seed):
    rotary = nn.RotaryPositions(6, theta=100.0)
    positions = np.random.default_rng(seed).integers(0, 3 * n, (2, n))
    for asked in (np.arange(n), positions, positions[0], np.arange(n, n + 2), np.arange(0)):
        cos, sin = rotary.tables(asked)
        angles = asked[..., None] * np.array([100.0 ** (-i / 3) for i in range(3)])
        angles = angles if asked.ndim == 1 else angles[:, None]  # one axis for all heads
        assert cos.dtype == sin.dtype == np.float32 and cos.shape == sin.shape == angles.shape
        np.testing.assert_allclose(to_host(cos), np.cos(angles), atol=1e-6)
        np.testing.assert_allclose(to_host(sin), np.sin(angles), atol=1e-6)


def test_angles_of_far_positions_have_all_their_digits():
    cos, _ = nn.RotaryPositions(4, theta=7.0).tables(np.array([10**6 + 1]))
    assert to_host(cos)[0, 1] == np.float32(math.cos((10**6 + 1) * 7.0**-0.5))


def test_a_table_is_computed_once():
    rotary = nn.RotaryPositions(4)
    rotary.tables(np.arange(50))
    kept = rotary._cos
    assert xp.shares_memory(rotary.tables(np.arange(10, 50))[0], kept) and rotary._cos is kept
    rotary.tables(np.array([50]))
    assert len(rotary._cos) == 100  # twice as long: decoding asks for one position more at a time


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.rotary_frequencies(7), r"rotary positions: 1.0 of 7 channels of a head, expected an even number of channels from 2 to 7"),
        (lambda: nn.rotary_frequencies(8, fraction=0.0), r"rotary positions: 0.0 of 8 channels"),
        (lambda: nn.rotary_frequencies(8, fraction=1.5), r"rotary positions: 1.5 of 8 channels"),
        (lambda: nn.rotary_frequencies(8, theta=0), r"rotary positions: theta 0, expected a finite number > 0"),
        (lambda: nn.rotary_frequencies(8, scaling={"rope_type": "yarn", "factor": 4}), r"rope_scaling: 'yarn', expected one of default, linear, llama3"),
        (lambda: nn.rotary_frequencies(8, scaling={"type": "dynamic", "factor": 4}), r"rope_scaling: 'dynamic', expected one of default, linear, llama3"),
        (lambda: nn.rotary_frequencies(8, scaling={"rope_type": "linear"}), r"rope_scaling: factor None for 'linear', expected a finite number > 0"),
        (lambda: nn.rotary_frequencies(8, scaling={**LLAMA3, "low_freq_factor": 4.0}), r"rope_scaling: low_freq_factor 4.0, expected less than high_freq_factor 4.0"),
        (lambda: nn.RotaryPositions(4).tables(np.array([0.5])), r"rotary positions: float64 positions of shape \(1,\), expected integers \(T,\) or \(B, T\)"),
        (lambda: nn.RotaryPositions(4).tables(np.array(3)), r"rotary positions: int64 positions of shape \(\)"),
        (lambda: nn.RotaryPositions(4).tables([3, -1]), r"rotary positions: position -1, expected >= 0"),
        (lambda: nn.sinusoidal_positions(3, 5), r"sinusoidal positions: 3 positions of 5 channels, expected n >= 0 and an even number"),
    ],
)  # fmt: skip
def test_errors_of_tables(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@given(n=st.integers(0, 50), half=st.integers(1, 20))
def test_sinusoids_are_those_of_the_paper(n, half):
    table = nn.sinusoidal_positions(n, 2 * half)
    assert table.dtype == np.float32 and table.shape == (n, 2 * half)
    for p in range(n):
        for i in range(half):
            angle = p / 10000 ** (2 * i / (2 * half))
            np.testing.assert_allclose(to_host(table)[p, 2 * i : 2 * i + 2], [math.sin(angle), math.cos(angle)], atol=1e-6)
