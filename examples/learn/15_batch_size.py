"""15. Batch size: how noisy the gradient of a few windows is, the noise scale, and what small, large and growing batches reach.

    python examples/learn/15_batch_size.py
    python examples/learn/15_batch_size.py --plot batches.png        # with matplotlib: pip install -e ".[plot]"
    python examples/learn/15_batch_size.py --updates 8               # seconds: shows that it runs

Less than 20 seconds of one core; a line takes one or two. Rates are chosen with one seed, losses reported for two others.
"""

import argparse
import functools

import numpy as np
from show import heading, say
from train import characters, draw_panels, small_gpt, smooth, train

from autograd.optim import AdamW
from tinygpt.data.windows import Windows
from tinygpt.training.metrics import measure
from tinygpt.training.step import compute_gradients

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw cosines and losses into this picture")
parser.add_argument("--updates", type=int, default=48, help="updates of batches of 16 windows, at least 8; others by the same tokens (48)")
args = parser.parse_args()

T, N = 16, 256  # the gradients of N windows are computed one by one
SIZES, STOPS = (1, 4, 16, 64), (0, args.updates // 2 - 4, 4 * args.updates)
train_ids, validation_ids, V = characters()
windows, validation = Windows(train_ids, T), Windows(validation_ids, T)


def new(seed):
    model = small_gpt(V, T, seed=seed)
    return model, AdamW(model, betas=(0.9, 0.95), weight_decay=0.1)


def noise_scale(small, squared_small, big, squared_big):
    """tr(S) / |G|^2 from the mean squared lengths of gradients of small and of big batches, in windows."""
    squared = (big * squared_big - small * squared_small) / (big - small)  # |G|^2, of the gradient of endless text
    variance = (squared_small - squared_big) / (1 / small - 1 / big)  # tr(S), of one window's gradient: all numbers' variances added up
    return variance / squared


def cosines(model, optimizer):
    """Mean cosine of the gradients of batches of each size with that of the other windows of N; noise scales from each size and N."""
    rows = np.empty((N, optimizer.weight.size))
    for row, i in zip(rows, np.random.default_rng(0).permutation(len(windows))[:N], strict=True):
        compute_gradients(model, optimizer, [windows.batch(np.array([i]))])
        row[:] = optimizer.gradient
    total, found, scales = rows.sum(axis=0), [], []
    for size in SIZES:
        batches = rows.reshape(N // size, size, -1).mean(axis=1)
        others = (total - size * batches) / (N - size)
        lengths = np.linalg.norm(batches, axis=1)
        found.append(((batches * others).sum(axis=1) / lengths / np.linalg.norm(others, axis=1)).mean())
        scales.append(noise_scale(size, (lengths**2).mean(), N, (total @ total) / N**2))
    return found, scales


heading(f"cosine of a batch's gradient with that of the other windows of {N}, in brackets what B predicts; noise scale B in windows")
print("seed updates   loss " + "".join(f"{f'batch {b}':>13}" for b in SIZES) + "     B   from 64")
curves = {}
for seed in (0, 1):
    model, optimizer = new(seed)
    for start, stop in zip((0, *STOPS), STOPS, strict=False):
        options = {"peak": 0.01, "floor": 0.01, "warmup": 0 if start else 10, "optimizer": optimizer, "seed": seed + start}
        train(model, windows, stop - start, batch_size=16, **options)
        found, scales = cosines(model, optimizer)
        curves[f"after {stop} updates"] = SIZES, found
        predicted = [((1 + scales[0] / b) * (1 + scales[0] / (N - b))) ** -0.5 for b in SIZES]  # the others are noisy, too: twice
        cells = "".join(f"{c:6.2f} ({p:.2f})" for c, p in zip(found, predicted, strict=True))
        print(f"{seed:>4} {stop:>7} {measure(model, validation, 64, 4).nats:6.3f} {cells} {scales[0]:5.0f} {scales[-1]:9.0f}")
say(
    "A batch of B windows has as much noise as gradient. Far below B, twice the windows make a step twice as good; far above, hardly better. "
    "B is small at first, when all windows ask for the same, and grows: so may the batch."
)

U, SEEDS = args.updates, (1, 2)
RATES = {4: (0.001, 0.003, 0.01, 0.03), 16: (0.003, 0.01, 0.03, 0.1), 64: (0.003, 0.01, 0.03, 0.1)}


@functools.cache  # a batch of 16 counts for both
def run(plan, rate, seed=0):
    """Trains with (batch size, updates) after (batch size, updates); returns the loss and the training losses."""
    model, optimizer = new(seed)
    losses = []
    for phase, (size, n) in enumerate(plan):
        options = {"peak": rate, "floor": rate, "warmup": 0 if phase else 5, "optimizer": optimizer, "seed": seed + 10 * phase}
        losses.append(train(model, windows, n, batch_size=size, **options)[0])
    return measure(model, validation, 64, 4).nats, np.concatenate(losses)


heading("small and large batches: loss at each rate (seed 0), and at the best one with seeds 1 and 2")
drawn = {}
for title, updates in ((f"{16 * U} windows", {4: 4 * U, 16: U, 64: U // 4}), (f"{U} updates", {4: U, 16: U, 64: U})):
    drawn[title] = {}
    for size, n in updates.items():
        runs = [run(((size, n),), rate) for rate in RATES[size]]
        best = int(np.argmin([nats for nats, _ in runs]))
        cells = " ".join(f"{rate:>6}: {nats:.3f}" for rate, (nats, _) in zip(RATES[size], runs, strict=True))
        nats = [run(((size, n),), RATES[size][best], seed)[0] for seed in SEEDS]
        print(f"{title:<12} {size:>2} x {n:>3} {cells}  {nats[0]:.3f} {nats[1]:.3f}")
        drawn[title][f"batch {size}"] = np.arange(1, n + 1) * (size if title.endswith("windows") else 1), smooth(runs[best][1])
say(
    "For the same text small batches win: more steps; and the best rate grows with the batch. For as many steps large ones win: better steps."
)

heading(f"growing batches: {24 * U} windows, a third each in batches of 4, 16 and 64, rate 0.005, three seeds")
thirds = tuple((size, 8 * U // size) for size in (4, 16, 64))
for name, plan in (("growing", thirds), ("shrinking", thirds[::-1])):
    nats = [run(plan, 0.005, seed)[0] for seed in (0, *SEEDS)]
    print(f"{name:<10} {sum(n for _, n in plan)} updates  " + " ".join(f"{x:.3f}" for x in nats) + f"  mean {np.mean(nats):.3f}")
say("As many windows and updates, in another order: small batches do most where the gradient is clear, large ones where it is not.")
if args.plot:
    cosine = {"xlabel": "windows in the batch", "xscale": "log", "xticks": SIZES, "xticklabels": SIZES}
    cosine |= {"ylabel": "cosine with the gradient of many", "ylim": (0, 1.02)}
    loss = {"ylabel": "training loss (nats per character, smoothed)"}
    compared = [(panel, loss | {"xlabel": label}) for panel, label in zip(drawn.values(), ("windows read", "updates"), strict=True)]
    draw_panels(args.plot, [(curves, cosine), *compared])
