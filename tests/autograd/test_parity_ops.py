"""Activations, gated products, norms and losses of today's decoders against PyTorch and transformers: values and gradients, random draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd import backend, nn
from tests.strategies import lengths, seeds, shapes, spread

if backend.name != "numpy":
    pytest.skip("the other side computes on the CPU", allow_module_level=True)
torch = pytest.importorskip("torch", reason="parity tests need the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra `parity`")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("each_kernel_mode")]

F = torch.nn.functional
ROUNDING = {"float64": 2**-52, "float32": 2**-23, "float16": 2**-10}
NAMES = {  # of transformers -> ours
    "relu": "relu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "silu": "silu", "swish": "silu",
    "relu2": "squared_relu",
}  # fmt: skip


def theirs(name):
    return transformers.activations.ACT2FN[name]


def assert_same(ours, other, arrays, n_roundings=16, seed=0):
    """Values, and gradients under a random dy, of a function of ours and one of theirs."""
    dtype = arrays[0].dtype
    mine, tensors = [ag.Tensor(a, requires_grad=True) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, right = ours(*mine), other(*tensors)
    dy = np.random.default_rng(seed).standard_normal(y.shape).astype(dtype)
    y.backward(dy)
    right.backward(torch.tensor(dy))
    for found, expected in [(y.data, right), *((t.grad, u.grad) for t, u in zip(mine, tensors, strict=True))]:
        expected = expected.detach().numpy().astype(np.float64)
        assert found.dtype == dtype and found.shape == expected.shape
        largest = np.abs(expected).max(initial=1.0)
        np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0, atol=n_roundings * ROUNDING[dtype.name] * largest)


def drawn(seed, dtype, *some_shapes, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(shape)).astype(dtype) for shape in some_shapes]


wide = st.sampled_from(["float32", "float64"])


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds, shape=shapes(), dtype=wide, scale=st.sampled_from([0.1, 1, 10]))
def test_activations(name, seed, shape, dtype, scale):
    assert_same(nn.activation(NAMES[name]), theirs(name), drawn(seed, dtype, shape, scale=scale), 64)


@pytest.mark.parametrize("name", NAMES)
@given(seed=seeds, shape=shapes(), dtype=wide)
def test_gated_products(name, seed, shape, dtype):
    def product(gate, up):
        return theirs(name)(gate) * up

    assert_same(lambda gate, up: ag.gated_product(gate, up, NAMES[name]), product, drawn(seed, dtype, shape, shape), 64)


@given(seed=seeds, shape=shapes(), dtype=wide, cap=st.sampled_from([0.5, 15, 30.0]))
def test_soft_cap(seed, shape, dtype, cap):
    assert_same(lambda x: ag.soft_cap(x, cap), lambda x: cap * torch.tanh(x / cap), drawn(seed, dtype, shape, scale=3 * cap))


@given(seed=seeds, shape=shapes(least=1), eps=st.sampled_from([1e-6, 1e-5]), weighted=st.booleans(), dtype=wide)
def test_rms_norm(seed, shape, eps, weighted, dtype):
    rng = np.random.default_rng(seed)
    arrays = [a.astype(dtype) for a in (spread(rng, shape), *([rng.standard_normal(shape[-1])] if weighted else []))]
    assert_same(
        lambda x, weight=None: ag.rms_norm(x, weight, eps), lambda x, weight=None: F.rms_norm(x, shape[-1:], weight, eps), arrays, 64
    )


def norms_of_families():
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.nanochat.modeling_nanochat import NanoChatRMSNorm
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

    return {"gemma3": (Gemma3RMSNorm, 1.0), "llama": (LlamaRMSNorm, 0.0), "olmo2": (Olmo2RMSNorm, 0.0), "nanochat": (NanoChatRMSNorm, None)}


@pytest.mark.parametrize("family", ["gemma3", "llama", "olmo2", "nanochat"])
@given(seed=seeds, n=lengths(), dtype=st.sampled_from(["float32", "float16"]))
def test_norms_of_families(family, seed, n, dtype):
    """In float16 Gemma and OLMo 2 round once, as we do; Llama rounds twice."""
    norm, offset = norms_of_families()[family]
    x, weight = drawn(seed, dtype, (3, n), (n,))
    other = norm(eps=1e-6) if offset is None else norm(n, 1e-6)
    if offset is not None:
        other.weight = torch.nn.Parameter(torch.tensor(weight))
    mine = ag.rms_norm(ag.Tensor(x), *([] if offset is None else [ag.Tensor(weight)]), eps=1e-6, offset=offset or 0.0)
    right = other(torch.tensor(x)).detach().numpy().astype(np.float64)
    n_roundings = 16 if dtype == "float32" else 1.5 if family == "llama" else 1.0
    np.testing.assert_allclose(mine.data.astype(np.float64), right, rtol=n_roundings * ROUNDING[dtype], atol=1e-6)


@given(
    seed=seeds,
    shape=shapes(),
    n_classes=lengths(),
    smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    ignored=st.sampled_from([-100, 0]),
    dtype=wide,
)
def test_cross_entropy_with_label_smoothing(seed, shape, n_classes, smoothing, ignored, dtype):
    targets = np.random.default_rng(seed).integers(0, n_classes, shape)
    targets.flat[1::3] = ignored
    if not (targets != ignored).any():
        return
    (z,) = drawn(seed, dtype, (*shape, n_classes), scale=3.0)
    flat = torch.tensor(targets.reshape(-1))

    def other(z):
        return F.cross_entropy(z.reshape(-1, n_classes), flat, ignore_index=ignored, label_smoothing=smoothing)

    assert_same(lambda z: ag.cross_entropy(z, targets, ignore_index=ignored, label_smoothing=smoothing), other, [z], 64)


@given(
    seed=seeds, n=lengths(), n_classes=lengths(), cap=st.sampled_from([0.0, 1.0, 30.0]), smoothing=st.sampled_from([0.0, 0.1]),
    z_loss=st.sampled_from([0.0, 1e-4, 0.1]), dtype=wide,
)  # fmt: skip
def test_linear_cross_entropy_with_a_softcap_and_z_loss(seed, n, n_classes, cap, smoothing, z_loss, dtype):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, n_classes, n)
    targets[1:][rng.random(n - 1) < 0.3] = -100
    counted = torch.tensor(targets != -100)

    def other(x, weight):
        logits = x @ weight.T
        logits = cap * torch.tanh(logits / cap) if cap else logits
        mean_square = (torch.logsumexp(logits, dim=-1)[counted] ** 2).mean()
        return F.cross_entropy(logits, torch.tensor(targets), label_smoothing=smoothing) + z_loss * mean_square

    def mine(x, weight):
        return ag.linear_cross_entropy(x, weight, targets, softcap=cap, label_smoothing=smoothing, z_loss=z_loss)

    assert_same(mine, other, drawn(seed, dtype, (n, 5), (n_classes, 5)), 64)
