"""7. Layer norm and residual connections: why a deep network can be trained at all.

    python examples/learn/07_layer_norm.py
    python examples/learn/07_layer_norm.py --plot gradients.png      # with matplotlib: pip install -e ".[plot]"

A few seconds. First layer norm on numbers that you can check, then the experiment: 24 layers, five ways to connect them, and how
large the gradient still is when it has come back to the first layer.
"""

import argparse

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
say(
    "Both rows give the same: adding a number to all of a row, or stretching it, changes nothing in y. So neither move may change the loss: "
    "the gradients of a row sum to 0, and so do their products with what stretching moves, x - mean."
)
y.backward(np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
show("dx for dy = 1 at the first channel (N, C) =", x.grad)
print("sum of each row of dx:", x.grad.sum(axis=1).round(12).tolist())
across = (x.grad * (x.data - x.data.mean(axis=1, keepdims=True))).sum(axis=1)
print("dx . (x - mean):", across.round(7).tolist(), "not quite 0: 1e-5 is added to each variance")

heading("GELU, the bend between two matrices: x for large x, 0 for very negative x, smooth in between")
u = np.array([-3.0, -1.0, 0.0, 1.0, 3.0])
show("x            =", u)
show("max(x, 0)    =", np.maximum(u, 0))
show("ag.gelu(x)   =", ag.gelu(ag.Tensor(u)))
show("GPT-2's form =", u * (1 + np.tanh(np.sqrt(2 / np.pi) * (u + 0.044715 * u**3))) / 2)
say("tanh(t) = (e^t - e^-t) / (e^t + e^-t), a smooth step from -1 to 1; GPT-2's form is the same curve to three digits.")

LAYERS, N, C = 24, 32, 64
heading(f"{LAYERS} layers, each f(x) = gelu(x W1) W2, and the size of the gradient on its way back")
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
        x = way(x, lambda h, W1=W1, W2=W2: ag.gelu(h @ W1) @ W2)  # (N, C); W1=W1: the matrices of this layer, not of the last one
    (x * rng.standard_normal((N, C))).sum().backward()
    return np.array([probe.grad for probe in probes])


say(
    "A sum of C products has the size sqrt(C) (script 5), so weights of size 1 / sqrt(inputs) keep x about as large as it was, but for the bend."
)
print("plain layers, weights ever larger: gradient at layer 1, and each layer's factor:")
for scale in (0.5, 1.0, 2.0, 4.0):
    first, *_, last = np.sqrt((gradients(lambda x, f: f(x), scale) ** 2).sum(axis=(1, 2)))
    verdict = "explodes" if first > last else "vanishes"
    print(f"  {scale:3g} / sqrt(inputs): {first:5.0e}, {(first / last) ** (1 / (LAYERS - 1)):6.3f} times as large, {verdict}")

sizes = {}
for scale in (1.0, 0.5):
    print()
    say(
        f"weights drawn with {scale:g} / sqrt(inputs): length of the gradient at five layers; powers of ten lost (or more) on the way from "
        "the last layer to the first; cosine between layer 1's gradients before and after the input moves by a tenth (1: the same direction, 0: a right angle)"
    )
    at = (1, *(LAYERS * i // 4 for i in range(1, 5)))
    print(f"{'layer':<31} {' '.join(f'{i:5}' for i in at)} {f'{LAYERS} to 1':<12}cosine")
    for name, way in WAYS.items():
        g, g_moved = gradients(way, scale), gradients(way, scale, moved=0.1)
        size = sizes[name, scale] = np.sqrt((g * g).sum(axis=(1, 2)))  # (LAYERS,)
        powers = np.log10(size[-1] / size[0])
        change = f"10^{abs(powers):.1f} {'lost' if powers > 0 else 'more'}"
        turned = (g[0] * g_moved[0]).sum() / np.sqrt((g[0] ** 2).sum() * (g_moved[0] ** 2).sum())
        numbers = " ".join(f"{size[i - 1]:5.0e}" for i in at)
        print(f"{name:<31} {numbers} {change:<12} {turned:5.2f}")

print()
say("Plain: every layer multiplies the gradient by its own factor, and many factors below 1 leave nothing to learn from.")
say(
    "Plain + norm: the size is back, but not the meaning: with every layer on its path, the gradient of the first layer turns with the "
    "input, so a step along it helps only near the point where it was taken."
)
say("Residual: `x +` is a road on which the gradient passes each layer unchanged. Without a norm, what the layers add to it piles up.")
say("Post-norm rescales that road at every layer. Pre-norm, GPT-2's way: the road itself stays free, and size and direction both last.")

if plot:
    from train import draw_panels

    curves = {name[:12].rstrip(): (np.arange(1, LAYERS + 1), sizes[name, 1.0]) for name in WAYS}
    axes = {"xlabel": "layer (1 is nearest the input)", "ylabel": "length of the gradient (loss units per unit of x)", "yscale": "log"}
    draw_panels(plot, [(curves, axes | {"title": f"{LAYERS} layers, weights drawn with 1 / sqrt(inputs)"})])
