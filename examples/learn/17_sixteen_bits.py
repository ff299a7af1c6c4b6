"""17. Sixteen bits: what float16 and bfloat16 round away, and the three remedies with which models are trained in them.

    python examples/learn/17_sixteen_bits.py --plot gradients.png     # the picture needs matplotlib: pip install -e ".[plot]"

Some ten seconds. On a GPU 16 bits are half the memory and a multiple of the speed. A CPU gains nothing from them, but can show what is lost.
"""

import argparse
import copy

import numpy as np
from show import heading, say
from train import by_power_of_two, characters, draw, gradient_sizes

from autograd.ops.matmul import Linear, MatMul
from autograd.optim import AdamW
from tinygpt import GPT, GPTConfig
from tinygpt.data.windows import BatchOrder, Windows
from tinygpt.training.metrics import measure

parser = argparse.ArgumentParser()
parser.add_argument("--plot", metavar="FILE", help="also draw the sizes of a model's gradients into this picture")
args = parser.parse_args()
np.seterr(over="ignore", invalid="ignore")  # what is too large becomes infinite: that is what we want to see


def float16(x):  # the nearest one, stored as float32 again
    return np.asarray(x, np.float32).astype(np.float16).astype(np.float32)


def bfloat16(x):
    """The nearest number with the upper 16 bits of a float32; of two equally near ones that with a last bit of 0. NumPy has no such type."""
    bits = np.asarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


FORMATS = {"float32": (np.float32, 8, 23, 127), "float16": (float16, 5, 10, 15), "bfloat16": (bfloat16, 8, 7, 127)}
heading("three formats: a sign, an exponent (the range), a fraction (the precision)")
print(f"{'':9}{'0.1 in bits':35}{'0.1 as stored':14}{'largest':>11}{'smallest':>10}{'next to 1':>11}")
for name, (rounded, exponent, fraction, bias) in FORMATS.items():
    bits = f"{np.float16(0.1).view(np.uint16):016b}" if name == "float16" else f"{rounded(0.1).view(np.uint32):032b}"
    largest, smallest, after_1 = (2 - 2.0**-fraction) * 2.0**bias, 2.0 ** (1 - bias - fraction), 1 + 2.0**-fraction
    print(f"{name:9}{bits[0]} {bits[1 : 1 + exponent]:9}{bits[1 + exponent :][:fraction]:24}", end="")
    print(f"{rounded(0.1):<14.10f}{largest:11.5g}{smallest:10.1e}{after_1:11.7f}")
say("bfloat16 has float32's range, 2 to 3 decimal digits; float16 3 to 4, up to (2 - 2^-10) 2^15 = 65,504, nothing between 0 and 6e-8.")

heading("weights: 1,000 updates of 0.0001 from a weight of 1")
for name, (rounded, *_) in FORMATS.items():
    weight = master = np.float32(1)
    for _ in range(1000):
        weight, master = rounded(weight - np.float32(1e-4)), master - np.float32(1e-4)
    print(f"{name:9} weight {weight:.4f}     a master weight in float32 {master:.4f}, its copy in {name} {rounded(master):.4f}")
say("Below 1 float16 has steps of 2^-11 = 0.00049; 0.0001 is less than half of one. Hence master weights in float32; products get a copy.")

heading("sums: 4,096 numbers added one by one, each sum rounded; and the same sum in float32, rounded at the end")
a, b = np.random.default_rng(0).standard_normal((2, 4096))
print(f"{'':17}{'exact':>9}{'float16':>10}{'then':>10}{'bfloat16':>10}{'then':>10}")
for name, terms in {"ones": np.ones(4096), "positive": np.abs(a), "products": a * b}.items():
    cells = [terms.sum()]
    for rounded in (float16, bfloat16):
        total = np.float32(0)
        for term in rounded(terms):
            total = rounded(total + term)
        cells += [total, rounded(rounded(terms).sum(dtype=np.float32))]
    print(f"{name:15}", "".join(f"{x:10.2f}" for x in cells))
say("A sum stops growing where half its spacing exceeds a term. So products take 16 bits and are added up in 32.")

T, B, (train_ids, validation_ids, V) = 32, 16, characters()
windows, validation = Windows(train_ids, T), Windows(validation_ids, T)
SHARE = B * T / 3.2e6  # an update of GPT-3 is 3.2 million tokens: what the loss of a batch of ours would be multiplied by
Linear.takes_half = MatMul.takes_half = False  # our ops shall add up in float32 and then round, as a GPU does: NumPy's way is slow
new = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=32, n_positions=T, vocab_size=V), seed=0)


def train(model, n, rate, *, first=0, dtype="float32", store=np.asarray, scale=1.0, double_after=10**9):
    """n updates of a copy. Returns it, the shares of weights that moved and of gradients that were 0, and the scale at each update."""
    model = copy.deepcopy(model)
    model.dtype = np.dtype(dtype)  # of activations and products; the weights stay float32
    optimizer, batches, shares, trace, n_good = AdamW(model, lr=rate), BatchOrder(len(windows), B).batches(first), [], [], 0
    optimizer.weight[...] = store(optimizer.weight)
    for _ in range(n):
        optimizer.zero_grad()
        (model.loss(*windows.batch(next(batches))) * (SHARE * scale)).backward()
        finite = bool(np.isfinite(optimizer.gradient).all())
        trace.append(f"{np.log2(scale):.0f}" + "*" * (not finite))
        if finite:
            optimizer.gradient /= SHARE * scale
            before = optimizer.weight.copy()
            optimizer.step(max_norm=1.0)
            optimizer.weight[...] = store(optimizer.weight)
            shares.append(((optimizer.weight != before).mean(), (optimizer.gradient == 0).mean()))
        n_good = n_good + 1 if finite else 0
        scale *= 0.5 if not finite else 2.0 if n_good % double_after == 0 else 1.0  # dynamic loss scaling
    model.dtype = np.dtype("float32")
    return model, *np.mean(shares, axis=0), trace


heading(f"gradients, of weights and of ops' results (activations): how many float16 holds, a batch being 1 / {1 / SHARE:,.0f} of an update")
(base, *_), curves = train(new, 200, 3e-3), {}
print(f"{'gradients of':14}{'loss scale':>11}{'rounded to 0':>14}{'with fewer digits':>19}{'infinite':>10}")
for name, sizes in gradient_sizes(base, windows.batch(np.arange(B)), SHARE).items():
    for power in (0, 16, 36):
        scaled = sizes * np.float32(2.0**power)
        lost, coarse, over = ((scaled <= 2.0**-25).mean(), (scaled < 2.0**-14).mean(), (float16(scaled) == np.inf).mean())
        print(f"{name:14}{f'2^{power}':>11}{lost:14.1%}{coarse - lost:19.1%}{over:10.1%}")
        curves[f"{name} (scale 2^{power})"] = by_power_of_two(scaled, -50, 25)
say("A factor of the loss is a factor of every gradient: it moves them to where float16 has its digits. Later they are divided again.")

heading("training: 60 updates from scratch; and 40 more, at a small rate, of a model trained before")
print(f"{'':22}{'loss':>8}{'moved':>8}{'zeros':>8}{'  later:':8}{'change':>10}{'moved':>8}")
WAYS = {"float32": {}, "weights in float16": {"store": float16}, "weights in bfloat16": {"store": bfloat16}}
WAYS |= {"computed in float16": {"dtype": "float16"}, "the same, loss scaled": {"dtype": "float16", "scale": 2.0**31, "double_after": 20}}
for name, options in WAYS.items():
    scratch, moved, zeros, trace = train(new, 60, 1e-3, **options)
    more, moved_later, *_ = train(base, 40, 3e-5, first=200, **options)
    loss, before, after = (measure(model, validation, 64, 5).nats for model in (scratch, base, more))
    print(f"{name:22}{loss:8.3f}{moved:8.1%}{zeros:8.1%}{'':8}{after - before:+10.4f}{moved_later:8.1%}", flush=True)
say(f"moved: weights that an update changed; zeros: gradients of 0. The scale from scratch as a power of 2, *: skipped: {' '.join(trace)}")
if args.plot:
    draw(args.plot, curves, "size, as a power of two", "gradients (%)", "Gray: 0 in float16, which ends at 2^16", span=(-50, -25))
