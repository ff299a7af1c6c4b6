"""7. Layer norm and residual connections: why a deep network can be trained at all.

    python examples/learn/07_layer_norm.py
    python examples/learn/07_layer_norm.py --plot gradients.png      # with matplotlib: pip install -e ".[plot]"

A few seconds. First layer norm on numbers that you can check, then the experiment: 24 layers, five ways to connect them, and how
large the gradient still is when it has come back to the first layer.
"""

import argparse
import sys

import numpy as np
from show import heading, say, show

import autograd as ag

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw the gradients of the first table into this picture")
plot = parser.parse_args().plot

heading("layer norm: each row to mean 0 and variance 1, then scale (gamma) and shift (beta), both learned")
x = ag.Tensor([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]], requires_grad=True)  # (N, C) = (2, 3)
gamma, beta = ag.Tensor([1.0, 1.0, 2.0], requires_grad=True), ag.Tensor([0.0, 0.0, 5.0], requires_grad=True)  # (C,)
show("x (N, C) =", x, 0)
say("row 1: mean 2, variance (1 + 0 + 1) / 3 = 2/3, so (x - 2) / sqrt(2/3) = -1.225, 0, 1.225")
y = ag.layer_norm(x, gamma, beta)  # (N, C)
show("y (N, C) =", y)
say("Both rows give the same: shifting a row, or stretching it, changes nothing. So the gradient has no part along either move:")
y.backward(np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
show("dx for dy = 1 at the first channel (N, C) =", x.grad)
print("sum of each row of dx:", x.grad.sum(axis=1).round(12).tolist())
across = (x.grad * (x.data - x.data.mean(axis=1, keepdims=True))).sum(axis=1)
print("dx . (x - mean), a hair off 0 because of eps:", across.round(7).tolist())

heading("GELU, the bend between two matrices: x for large x, 0 for very negative x, smooth in between")
u = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
show("x            =", u)
show("max(x, 0)    =", np.maximum(u, 0))
show("ag.gelu(x)   =", ag.gelu(ag.Tensor(u)))
show("tanh form    =", u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))) / 2)

heading("24 layers, each f(x) = gelu(x W1) W2, and the size of the gradient on its way back")
LAYERS, N, C = 24, 32, 64
WAYS = {
    "plain        x = f(x)": lambda x, f: f(x),
    "plain + norm x = f(norm(x))": lambda x, f: f(norm(x)),
    "residual     x = x + f(x)": lambda x, f: x + f(x),
    "post-norm    x = norm(x + f(x))": lambda x, f: norm(x + f(x)),
    "pre-norm     x = x + f(norm(x))": lambda x, f: x + f(norm(x)),
}


def norm(x):  # (N, C) -> (N, C)
    return ag.layer_norm(x, ag.Tensor(np.ones(C)), ag.Tensor(np.zeros(C)))


def gradients(way, scale, moved=0.0):
    """d loss / d x at the input of each layer, for a loss that asks for a random direction of the last output. (LAYERS, N, C)"""
    rng = np.random.default_rng(0)
    x = ag.Tensor(rng.standard_normal((N, C)) + moved * np.random.default_rng(1).standard_normal((N, C)))  # (N, C)
    probes = []
    for _ in range(LAYERS):
        probe = ag.Tensor(np.zeros((N, C)), requires_grad=True)  # adds nothing, but its gradient is that of x: a place to look
        probes.append(probe)
        x = x + probe
        W1 = ag.Tensor(rng.standard_normal((C, 4 * C)) * scale / np.sqrt(C))
        W2 = ag.Tensor(rng.standard_normal((4 * C, C)) * scale / np.sqrt(4 * C))
        x = way(x, lambda h, W1=W1, W2=W2: ag.gelu(h @ W1) @ W2)  # (N, C)
    (x * rng.standard_normal((N, C))).sum().backward()
    return np.array([probe.grad for probe in probes])


print("plain layers, weights ever larger: gradient at layer 1, and each layer's factor:")
for scale in (0.5, 1.0, 2.0, 4.0):
    first, *_, last = np.sqrt((gradients(lambda x, f: f(x), scale) ** 2).sum(axis=(1, 2)))
    verdict = "explodes" if first > last else "vanishes"
    print(f"  {scale:3g} / sqrt(inputs): {first:5.0e}, {(first / last) ** (1 / 23):6.3f} times as large, {verdict}")

sizes = {}
for scale in (1.0, 0.5):
    print()
    say(
        f"weights drawn with {scale:g} / sqrt(inputs): size of the gradient at layers 1, 6, 12, 18, 24; powers of ten between layers 24 "
        "and 1; last column: cosine between layer 1's gradients before and after the input moves by a tenth"
    )
    for name, way in WAYS.items():
        g, g_moved = gradients(way, scale), gradients(way, scale, moved=0.1)
        size = sizes[name, scale] = np.sqrt((g * g).sum(axis=(1, 2)))  # (LAYERS,)
        powers = np.log10(size[-1] / size[0])
        change = f"10^{abs(powers):.1f} {'lost' if powers > 0 else 'more'}"
        turned = (g[0] * g_moved[0]).sum() / np.sqrt((g[0] ** 2).sum() * (g_moved[0] ** 2).sum())
        numbers = " ".join(f"{size[i - 1]:5.0e}" for i in (1, 6, 12, 18, 24))
        print(f"{name:<31} {numbers} {change:<12} {turned:5.2f}")

print()
say("Plain: every layer multiplies the gradient by its own factor, and 24 factors below 1 leave nothing to learn from.")
say(
    "Plain + norm: the size is back, but not the meaning: with every layer on its path, the gradient of the first layer turns with the "
    "input, so a step along it helps only near the point where it was taken."
)
say("Residual: `x +` is a road on which the gradient passes each layer unchanged. Without a norm, what the layers add to it piles up.")
say("Post-norm rescales that road at every layer. Pre-norm, GPT-2's way: the road itself stays free, and size and direction both last.")

if plot:
    try:
        import matplotlib
    except ImportError:
        sys.exit('error: --plot: matplotlib is missing, expected it for pictures; pip install -e ".[plot]"')
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, color, marker in zip(WAYS, ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00"), "osv^D", strict=True):
        axis.semilogy(range(1, LAYERS + 1), sizes[name, 1.0], color=color, marker=marker, markersize=4, label=name[:12].rstrip())
    axis.set(xlabel="layer (1 is nearest the input)", ylabel="norm of the gradient (loss units per unit of x)")
    axis.legend(title="24 layers, weights 1 / sqrt(inputs)")
    figure.savefig(plot, dpi=120)
    print("picture:", plot)
