"""Step 10. The engine of this project: the ops of step 9 run in it as they are, with the same bits, and a network learns.

python examples/engine/10_today.py
"""

import contextlib
import io
import runpy
from pathlib import Path

import numpy as np

import autograd as ag
from autograd.core import Op

with contextlib.redirect_stdout(io.StringIO()):
    step9 = runpy.run_path(str(Path(__file__).parent / "09_heap.py"))


def in_autograd(name):
    """Step 9's pair of functions as an op of `autograd`: the form is the same."""
    pair = step9[name]
    return type(name, (Op,), {"forward": staticmethod(pair.forward), "backward": staticmethod(pair.backward)}).apply


class CrossEntropy(Op):
    """The mean over rows of -log softmax(logits)[target]: logits (N, V), targets (N,)."""

    @staticmethod
    def forward(logits, targets):
        e = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = e / e.sum(axis=1, keepdims=True)
        return -np.log(p[np.arange(len(p)), targets]).mean(), (p, targets)

    @staticmethod
    def backward(saved, dy):
        p, targets = saved
        dlogits = p.copy()
        dlogits[np.arange(len(p)), targets] -= 1  # probabilities minus truth
        return dlogits * (dy / len(p)), None  # None: no gradient for ids


# Try it ---------------------------------------------------------------------------------------------------------------

rng = np.random.default_rng(0)
x, w1, b1, w2 = (rng.standard_normal(shape) for shape in ((6, 4), (4, 5), (5,), (5, 3)))


def network(x, w1, b1, w2, add, matmul, tanh):
    return matmul(tanh(add(matmul(x, w1), b1)), w2)


ours = [step9["Tensor"](a, requires_grad=True) for a in (w1, b1, w2)]
out = network(step9["Tensor"](x), *ours, *(step9[name].apply for name in ("Add", "MatMul", "Tanh")))
out.sum().backward()
theirs = [ag.Tensor(a, requires_grad=True) for a in (w1, b1, w2)]
network(x, *theirs, *map(in_autograd, ("Add", "MatMul", "Tanh"))).sum().backward()
for name, a, b in zip(("w1", "b1", "w2"), ours, theirs, strict=True):
    print(f"gradient of {name} {a.grad.shape}: step 9 and autograd, same bits: {np.array_equal(a.grad, b.grad)}")

print("a network of these ops learns which of three rings a point lies in:")
angle, ring = rng.uniform(0, 2 * np.pi, 300), rng.integers(0, 3, 300)
points = np.stack([np.cos(angle), np.sin(angle)], axis=1) * (1 + ring)[:, None]
weights = [ag.Tensor(rng.standard_normal(s) * 0.5, requires_grad=True) for s in ((2, 32), (32,), (32, 3))]
for step in range(401):
    logits = network(points, *weights, *map(in_autograd, ("Add", "MatMul", "Tanh")))
    loss = CrossEntropy.apply(logits, ring)
    if step % 100 == 0:
        print(
            f"   step {step:3d}: loss {loss.item():.3f} (ln 3 = {np.log(3):.3f}), right {(logits.data.argmax(axis=1) == ring).mean():.0%}"
        )
    for w in weights:
        w.grad = None
    loss.backward()
    for w in weights:
        w.data -= 0.5 * w.grad
print("What autograd/core.py adds: 16-bit formats, ops with several results, faster versions of an op (kernels), a record to look")
print("into (record), an error for each wrong use, and arrays on a GPU (CuPy).")
