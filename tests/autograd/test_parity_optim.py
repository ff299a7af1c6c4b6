"""Optimizers against PyTorch's, step for step, over random draws of options: SGD, Adam and AdamW to 1e-6, Muon to PyTorch's bfloat16."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from autograd.optim import SGD, Adam, AdamW, Muon
from tests.strategies import seeds

if backend.name != "numpy":
    pytest.skip("the other side computes on the CPU", allow_module_level=True)
torch = pytest.importorskip("torch", reason="parity tests need the extra `parity`")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("each_kernel_mode")]

N_STEPS = 8
floats = st.sampled_from
common = {
    "seed": seeds,
    "lr": floats([1e-3, 0.02, 0.3]),
    "weight_decay": floats([0.0, 0.01, 0.3]),
    "max_norm": floats([None, 0.5, 100.0]),
    "dtype": floats(["float32", "float64"]),
}
betas = st.tuples(floats([0.0, 0.8, 0.9]), floats([0.9, 0.95, 0.999]))


def both(ours, theirs, seed, dtype, max_norm, shapes=((5, 3), (4,), (3, 7), ())):
    """Weights after each of some steps of an optimizer of ours and one of PyTorch's, from the same weights and gradients.

    ours(named parameters), theirs(those that decay, the others); each step has its own learning rate, as under a schedule.
    """
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    mine = [(f"w{i}", ag.Parameter(a.copy())) for i, a in enumerate(arrays)]
    tensors = [torch.nn.Parameter(torch.tensor(a)) for a in arrays]
    optimizer = ours(mine)
    other = theirs([t for t in tensors if t.ndim >= 2], [t for t in tensors if t.ndim < 2])
    peak = optimizer.lr
    for step in range(N_STEPS):
        gradients = [np.asarray(rng.standard_normal(a.shape) * rng.choice([0.1, 1, 10]), dtype) for a in arrays]
        optimizer.zero_grad()
        sum((p * g).sum() for (_, p), g in zip(mine, gradients, strict=True)).backward()
        for t, g in zip(tensors, gradients, strict=True):
            t.grad = torch.tensor(g)
        optimizer.lr = peak * (1 - step / N_STEPS)
        for group in other.param_groups:
            group["lr"] = optimizer.lr
        norm = optimizer.step(max_norm)
        if max_norm is not None:
            assert float(norm) == pytest.approx(float(torch.nn.utils.clip_grad_norm_(tensors, max_norm)), rel=1e-5)
        other.step()
        yield [p.data for _, p in mine], [t.detach().numpy() for t in tensors], arrays


def assert_same(steps):
    for mine, theirs, start in steps:
        for a, b, w in zip(mine, theirs, start, strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(1.0, float(np.abs(w).max())))


def groups(decayed, plain, weight_decay):
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


@given(**common, momentum=floats([0.0, 0.5, 0.95]), nesterov=st.booleans())
def test_sgd(seed, lr, weight_decay, max_norm, dtype, momentum, nesterov):
    nesterov = nesterov and momentum > 0  # PyTorch takes no other; without momentum it is the same

    def theirs(decayed, plain):
        return torch.optim.SGD(groups(decayed, plain, weight_decay), lr=lr, momentum=momentum, nesterov=nesterov)

    lr = min(lr, 0.02)  # gradients of 10 with momentum 0.95 would carry the weights far beyond 1
    assert_same(both(lambda named: SGD(named, lr, momentum, weight_decay, nesterov=nesterov), theirs, seed, dtype, max_norm))


@pytest.mark.parametrize("cls", [Adam, AdamW], ids=["adam", "adamw"])
@given(**common, betas=betas, eps=floats([1e-8, 1e-3]))
def test_adam_and_adamw(cls, seed, lr, weight_decay, max_norm, dtype, betas, eps):
    def theirs(decayed, plain):
        return getattr(torch.optim, cls.__name__)(groups(decayed, plain, weight_decay), lr=lr, betas=betas, eps=eps)

    assert_same(both(lambda named: cls(named, lr, betas, eps, weight_decay), theirs, seed, dtype, max_norm))


class Transposed:
    """torch.optim.Muon for matrices stored (in, out): it sees them as PyTorch's layers store them, (out, in)."""

    def __init__(self, tensors, **options):
        self.tensors = tensors
        self.views = [torch.nn.Parameter(t.detach().T.contiguous()) for t in tensors]
        self.optimizer = torch.optim.Muon(self.views, **options)
        self.param_groups = self.optimizer.param_groups

    def step(self):
        for view, t in zip(self.views, self.tensors, strict=True):
            view.grad = t.grad.T.contiguous()
        self.optimizer.step()
        for view, t in zip(self.views, self.tensors, strict=True):
            t.data.copy_(view.detach().T)


@settings(max_examples=10)
@given(
    seed=seeds, rows=st.integers(32, 64), columns=st.integers(32, 64), momentum=floats([0.0, 0.9, 0.95]), weight_decay=floats([0.0, 0.1])
)
def test_muon(seed, rows, columns, momentum, weight_decay):
    """The steps to 3e-2 of PyTorch's, which rounds every product to bfloat16, 8 bits. In smaller square matrices one singular value near 0
    is a larger share: it grows a few hundredfold, and the rounding with it."""
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch.optim.Muon is in PyTorch 2.9 and newer")
    lr, shapes = 0.02, ((rows, columns), (columns, rows), (rows, rows))

    def theirs(matrices, _):
        return Transposed(matrices, lr=lr, momentum=momentum, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    def ours(named):
        names = [name for name, _ in named]
        return Muon(named, lr, momentum, weight_decay=weight_decay, matrices=names, coefficients="quintic")

    before = None
    for mine, other, start in both(ours, theirs, seed, "float32", None, shapes):
        before = before or ([a.copy() for a in start], [a.copy() for a in start])
        for a, b, old_a, old_b in zip(mine, other, *before, strict=True):
            assert np.linalg.norm((a - old_a) - (b - old_b)) < 3e-2 * np.linalg.norm(b - old_b)
        before = [a.copy() for a in mine], [b.copy() for b in other]
