"""29. Scale: how much computing a model takes, what it is best spent on, and three ways to divide the work among devices.

    python examples/learn/29_scale.py

A second. Arithmetic for a pencil, then the three kinds of parallelism on small matrices, each held against one device.
"""

import numpy as np
from show import bar, heading, say, show

from tinygpt import GPTConfig

heading("the computing: 6 operations per weight and token. 2 forward (multiply, add), 4 backward (two gradients)")
N = GPTConfig.preset("gpt3").n_parameters()
D = 300e9
print(f"GPT-3: 6 N D = 6 * {N / 1e9:.1f} billion * 300 billion = {6 * N * D:.2e} operations")
per_second = 312e12 * 0.4
say(
    f"One GPU (an NVIDIA A100) makes 3.12e14 a second at best, in training say 40 % of that: {6 * N * D / per_second / 86400 / 365:.0f} years. "
    f"1,000 of them: {6 * N * D / per_second / 86400 / 1000:.0f} days, and at $2 an hour each:"
)
print(f"${6 * N * D / per_second / 3600 * 2 / 1e6:.1f} million, not billion")

heading("what to spend it on: Hoffmann et al. (2022) found that about 20 tokens per weight give the lowest loss for the money")
print("four rows of their table 3; weights and tokens in billions\noperations    weights     tokens    tokens for GPT-3's shape")
for flops in (1.92e19, 1.23e22, 5.76e23, 3.85e24):
    n = np.sqrt(flops / (6 * 20))  # 6 n (20 n) = flops
    print(f"{flops:10.2e} {n / 1e9:10.2f} {20 * n / 1e9:10.1f} {flops / (6 * N) / 1e9:14.2f}")
say(
    "GPT-3 saw 300 billion tokens, 1.7 per weight. Gopher (280 billion weights, 300 billion tokens) and Chinchilla (70 billion, 1,400 billion) took "
    "about the same computing, and Chinchilla was better."
)

heading("memory: weights, gradients and AdamW's two means, 4 bytes each")
for name, n in (("ours", GPTConfig.preset("laptop").n_parameters()), ("GPT-2", GPTConfig.preset("gpt2-xl").n_parameters()), ("GPT-3", N)):
    print(f"  {name:<6} {16 * n / 1e9:10.2f} GB, {16 * n / 80e9:8.2g} times what a GPU of 80 GB holds")
say("So a large model has to be divided, and not only its text.")

rng = np.random.default_rng(0)
x, target = rng.standard_normal((8, 6)), rng.standard_normal((8, 3))  # (B, I), (B, O)
W1, W2 = rng.standard_normal((6, 4)), rng.standard_normal((4, 3))  # an MLP without a bend: y = x W1 W2


def gradients(x, target, W1, W2):  # of the mean over rows of |y - target|^2 / 2
    h = x @ W1
    dy = (h @ W2 - target) / len(x)
    return x.T @ (dy @ W2.T), h.T @ dy


one = gradients(x, target, W1, W2)

heading("data parallelism: each device has all weights and a share of the batch; gradients are averaged (all-reduce)")
shares = [gradients(x[rows], target[rows], W1, W2) for rows in (slice(0, 4), slice(4, 8))]
mean = [(a + b) / 2 for a, b in zip(*shares, strict=True)]
print("mean of two devices' gradients equals one device's:", all(np.allclose(a, b) for a, b in zip(mean, one, strict=True)))
print(f"their sum, a usual mistake, is {(shares[0][0] + shares[1][0])[0, 0] / one[0][0, 0]:.1f} times as large: twice the step with SGD")

heading("tensor parallelism: each device has half of each matrix. W1 by columns, W2 by rows; one sum at the end")
parts = [x @ W1[:, half] @ W2[half] for half in (slice(0, 2), slice(2, 4))]  # (B, O) each
show("device 0 has x @ W1's left columns @ W2's upper rows (B, O), first row =", parts[0][0])
print("sum of both equals x @ W1 @ W2:", np.allclose(parts[0] + parts[1], x @ W1 @ W2))
say("Attention divides by heads in the same way. Two sums of (B, T, C) numbers per block and pass: this needs fast links.")

heading("pipeline parallelism: device 0 has the first layers, device 1 the next, ...; parts of a batch (micro-batches) follow each other")
say(
    "Time runs to the right, forward and then backward. A number is the micro-batch at work, a dot is waiting; the bar: the share of time at work."
)


def schedule(stages, micro):
    """Who works on which micro-batch when (GPipe: all forward, then all backward), and the share of idle time."""
    span = stages + micro - 1
    lines = []
    for s in range(stages):
        forward = ["."] * s + [str(m) for m in range(micro)] + ["."] * (stages - 1 - s)
        lines.append("".join(forward) + "".join(reversed(forward)).upper())
    return lines, sum(line.count(".") for line in lines) / (2 * span * stages)


for micro in (1, 4, 9):
    lines, idle = schedule(4, micro)
    print(f"{micro} micro-batch{'es' * (micro > 1)}, 4 stages: idle {idle:.0%}, by formula (P - 1) / (M + P - 1) = {3 / (micro + 3):.0%}")
    for s, line in enumerate(lines):
        print(f"   device {s}  {line[: len(line) // 2]} {line[len(line) // 2 :]}   {bar(1 - idle, 20)}")
say(
    "All three at once are 3D parallelism. examples/parallel has each with real processes, examples/parallel/train_3d.py trains the GPT "
    "so, and `python -m tinygpt plan` says what a run would take in time, memory, money and energy."
)
