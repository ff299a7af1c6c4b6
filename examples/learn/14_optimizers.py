"""14. Optimizers: what decay as an L2 term does under Adam, four optimizers compared, and how far a step moves the weights.

    python examples/learn/14_optimizers.py
    python examples/learn/14_optimizers.py --plot optimizers.png     # with matplotlib: pip install -e ".[plot]"
    python examples/learn/14_optimizers.py --updates 5               # seconds: shows that it runs

Less than 20 seconds of one core; a line takes a few. The rate of each optimizer is chosen with one seed, its loss reported for three others.
"""

import argparse

import numpy as np
from show import heading, say, show
from train import characters, draw_panels, small_gpt, train

import autograd as ag
from autograd.optim import SGD, Adam, AdamW, Muon
from tinygpt.data.windows import Windows
from tinygpt.training.metrics import measure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw decay and update ratios into this picture")
parser.add_argument("--updates", type=int, default=100, help="updates of each run (100)")
args = parser.parse_args()

heading("weight decay two ways: weights of 1 with gradients +G, -G, +G, ... of size G = 10, 1, 0.1; 100 updates, rate 0.01, decay 0.1")
G = np.array([10.0, 1.0, 0.1])
for kind, name in ((AdamW, "AdamW, decay as an update rule"), (Adam, "Adam, decay as an L2 term")):
    w = ag.Parameter(np.ones((2, 3)))  # each weight twice, with opposite gradients: in the mean they cancel, and the decay is left
    toy = kind([("w", w)], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for n in range(100):
        toy.zero_grad()
        (w * np.array([G, -G]) * (-1.0) ** n).sum().backward()
        toy.step()
    show(f"{name}: w =", w.data.mean(axis=0))
term = np.ones(3)
for _ in range(100):
    term = term - 0.01 * 0.1 * term / np.sqrt(G**2 + (0.1 * term) ** 2)  # Adam: mean of the gradient / root of its mean square
show(f"by hand: {(1 - 0.01 * 0.1) ** 100:.3f}, and 100 times w - rate decay w / sqrt(G^2 + (decay w)^2) =", term)
say("Adam divides the term by the size of the gradient, too: a large gradient takes the decay away. At G = 1 both are about the same.")

T, BATCH, SEEDS = 32, 8, (1, 2, 3)
train_ids, validation_ids, V = characters()
windows, validation = Windows(train_ids, T), Windows(validation_ids, T)
KINDS = {"tokens": "wte", "positions": "wpe", "attention": "attn", "MLP": "mlp", "norms": "ln_"}  # a part of the names of their weights


def run(make, rate, seed=0):
    """Trains a model. Returns the optimizer, the validation loss, and |step| / |w| by kind of layer, (updates,) each."""
    model = small_gpt(V, T, seed=seed)
    optimizer = make(model)
    history = [optimizer.weight.copy()]  # one flat array
    options = {"optimizer": optimizer, "seed": seed, "each": lambda _: history.append(optimizer.weight.copy())}
    train(model, windows, args.updates, batch_size=BATCH, peak=rate, warmup=10, **options)
    names = np.repeat([name for name, _ in optimizer.named], [p.size for _, p in optimizer.named])  # of each number in it
    columns = [np.flatnonzero(np.char.endswith(names, "weight") & (np.char.find(names, part) >= 0)) for part in KINDS.values()]
    steps, before = np.diff(history, axis=0), np.array(history[:-1])
    ratios = [np.linalg.norm(steps[:, of], axis=1) / np.linalg.norm(before[:, of], axis=1) for of in columns]
    return optimizer, measure(model, validation, 64, 4).nats, dict(zip(KINDS, ratios, strict=True))


def adam(kind, decay):
    return lambda model: kind(model, betas=(0.9, 0.95), weight_decay=decay)


heading("the same on a model: length of the weights / length without decay, by eighths in the order of their gradients; last column: loss")
free, nats, _ = run(adam(AdamW, 0.0), 0.01)
size = np.sqrt(free.v[free.groups[0].part] / (1 - 0.95**args.updates))  # script 10's v, of the matrices, which come first
typical = float(np.median(size))
eighths = np.array_split(np.argsort(size), 8)  # of the weights, from those with small gradients to those with large ones
sizes, decays = [np.median(size[part]) for part in eighths], {}
print(f"{'gradient':<16}" + " ".join(f"{s:7.1e}" for s in sizes) + f"{nats:7.3f}")
for name, kind, decay in (("AdamW", AdamW, 0.3), ("Adam + L2", Adam, 0.3), ("Adam + L2", Adam, 0.3 * typical)):
    optimizer, nats, _ = run(adam(kind, decay), 0.01)
    left = [float(np.linalg.norm(optimizer.weight[part]) / np.linalg.norm(free.weight[part])) for part in eighths]
    decays[f"{name} ({decay:.1g})"] = sizes, left
    print(f"{name:<10}{decay:<6.1g}" + " ".join(f"{x:7.2f}" for x in left) + f"{nats:7.3f}")
say(
    f"The rule takes the same share of all weights, the term least where gradients are large. The last decay is 0.3 x the median, {typical:.5f}."
)

heading(f"four optimizers, {args.updates} updates of {BATCH} x {T} characters: validation loss at each rate, seed 0")
WAYS = {
    "SGD": (lambda model: SGD(model, momentum=0.9), (0.03, 0.1, 0.3, 1.0)),
    "Adam + L2": (adam(Adam, 0.1 * typical), (0.003, 0.01, 0.03, 0.1)),
    "AdamW": (adam(AdamW, 0.1), (0.003, 0.01, 0.03, 0.1)),
    "Muon": (lambda model: Muon(model), (0.003, 0.01, 0.03, 0.1)),
}
best, at_rates = {}, {}
for name, (make, rates) in WAYS.items():
    runs = [run(make, rate) for rate in rates]
    best[name] = rates[int(np.argmin([nats for _, nats, _ in runs]))]
    at_rates[name] = {rate: ratios for rate, (_, _, ratios) in zip(rates, runs, strict=True)}
    print(f"{name:<10}" + "".join(f"{rate:>8}: {nats:.3f}" for rate, (_, nats, _) in zip(rates, runs, strict=True)))
say("Each needs a rate of its own: at 0.003 Muon does worse than AdamW, at the best rate of each it does better.")

heading(f"at the best rate, seeds {SEEDS}: loss, its mean and memory in numbers per weight (weight, gradient, state)")
for name, (make, _) in WAYS.items():
    runs = [run(make, best[name], seed) for seed in SEEDS]
    nats = [nats for _, nats, _ in runs]
    numbers = 2 + sum(getattr(runs[0][0], key).size for key in ("m", "v") if hasattr(runs[0][0], key)) / runs[0][0].weight.size
    print(f"{name:<10} {best[name]:>6} " + " ".join(f"{x:8.3f}" for x in nats) + f" {np.mean(nats):8.3f} {numbers:10.2f}")

heading("update ratio |step| / |w|, decay included, mean over the updates after the warm-up; seed 0")
print(f"{'':<16}" + "".join(f"{kind:>10}" for kind in KINDS))
for name, rates in at_rates.items():
    for rate, rows in rates.items():
        if rate == best[name] or name == "AdamW":
            print(f"{name:<10}{rate:>6}" + "".join(f"{row[-args.updates * 9 // 10 :].mean():10.1e}" for row in rows.values()))
say(
    "A ratio of 1e-3 means: a thousand steps in one direction would replace the weights. A hundred move them by a tenth at most, so the best rates "
    "of these short runs have larger ratios. SGD's ratios follow the gradients and differ from layer to layer. The size of Adam's steps follows "
    "the rate, and Muon's are scaled to the same: all matrices move alike. Norms begin at 1 and matrices at 0.18: a smaller share of a norm."
)
if args.plot:
    x, kinds = np.arange(1, args.updates + 1), ("tokens", "attention", "MLP", "norms")
    curves = {f"{kind} ({name})": (x, at_rates[name][best[name]][kind]) for kind in kinds for name in ("AdamW", "SGD")}
    decay = {"xlabel": "size of the gradient (medians of eighths)", "ylabel": "norm of the weights / norm without decay", "ylim": (0, 1.02)}
    ratio = {"xlabel": "updates", "ylabel": "update ratio |step| / |w|", "yscale": "log", "title": "update ratios, each at its best rate"}
    draw_panels(args.plot, [(decays, decay | {"title": "weight decay two ways"}), (curves, ratio)])
