"""18. The width rule: find the learning rate with a narrow model, keep it for a wide one.

    python examples/learn/18_width_rule.py
    python examples/learn/18_width_rule.py --plot width.png         # with matplotlib: pip install -e ".[plot]"
    python examples/learn/18_width_rule.py --updates 5              # seconds: shows that it runs

Seconds. First a sum that you can check by hand; then the coordinate check: how far the numbers inside a model move in a few updates, by its
width; then the loss by learning rate for three widths. Each with the rule and without it. One seed.
"""

import argparse
import dataclasses

import numpy as np
from show import heading, say, show
from train import characters, draw_panels, train

import autograd as ag
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.data.windows import Windows
from tinygpt.training.optimizers import make_optimizer
from tinygpt.width_rule import at_width

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw the coordinate check into this picture")
parser.add_argument("--updates", type=int, default=40, help="updates of each model of the last table (40)")
args = parser.parse_args()

heading("one step of a sum: y = x . w with C terms, x of 1 and -1, w drawn with deviation 1 / sqrt(C)")
for C in (4, 16, 64, 256):
    m, rng = C / 4, np.random.default_rng(C)
    x, w = rng.choice([-1.0, 1.0], C), rng.standard_normal(C) / C**0.5
    step = np.sign(x)  # Adam's first step against dw = dy x: every weight by the learning rate, in the direction of its gradient
    moved = [x @ (w - lr * step) - x @ w for lr in (0.1, 0.1 / m)]
    print(f"C = {C:3}   y = {x @ w:6.2f}   moved by {moved[0]:6.1f} at rate 0.1, by {moved[1]:5.1f} at 0.1 / m, m = {m:.0f}")
say(
    "At the start the C terms have random signs, and y is about 1 at every width. In a step all terms move to the same side, by C times the rate: "
    "256 * 0.1 = 25.6. Divided by m = C / 4, the rate that suits the narrow sum suits the wide one."
)

T, BATCH = 16, 16
train_ids, _, V = characters()
windows = Windows(train_ids, T)


def shape(base_width, width, rule):
    """The same small model at any width, heads of 16 channels; by the rule, else with nothing but other numbers of channels."""
    base = GPTConfig(n_layer=1, n_head=base_width // 16, n_embd=base_width, n_positions=T, vocab_size=V, initializer_range=base_width**-0.5)
    wide = at_width(base, width)
    return wide if rule else dataclasses.replace(wide, width_base=0, attention_scale=None)


heading("what the rule sets: a model tuned at 64 channels, made six times as wide")
config = shape(64, 384, rule=True)
rates = make_optimizer(GPT(config), TrainConfig(optimizer="adamw", lr=0.01)).groups
for group in rates:
    print(f"rate {0.01 * group.lr_scale:.5f}: {', '.join(name.removesuffix('.weight') for name, _ in group.named if '.bias' not in name)}")
print(
    f"0.01 * 64 / 384 = {0.01 * 64 / 384:.5f}; factor of the logits {1 / config.width_ratio:.3f}, of attention's scores {config.attention_scale:.3f}"
)
deviations = [float(p.data.std()) for p in (GPT(config).wte.weight, GPT(config).h[0].attn.c_attn.weight)]
show("initial deviation of embeddings and of queries, keys, values", np.array(deviations))

heading("the coordinate check: mean change of numbers inside, after four updates at one rate")
ids, targets = windows.batch(np.arange(BATCH))


def inside(model):
    """Attention's scores, the last block's output, the logits."""
    config, block = model.config, model.h[-1]
    with ag.no_grad():
        x = model.embed(ids, np.arange(T))  # (B, T, C)
        q, k, _ = np.split(block.attn.c_attn(block.ln_1(x)).data.reshape(BATCH, T, -1, config.channels_per_head), 3, axis=2)
        scores = np.einsum("bihd,bjhd->bhij", q, k) * (config.attention_scale or config.channels_per_head**-0.5)
        x = block(x)
        return {"attention scores": scores, "last block": x.data, "logits": model.lm_head(model.ln_f(x)).data}


WIDTHS, curves = (64, 128, 256, 512), {}
for rule in (True, False):
    for width in WIDTHS:
        model = GPT(shape(64, width, rule))
        before = inside(model)
        optimizer = make_optimizer(model, TrainConfig(optimizer="adamw", lr=0.005))
        train(model, windows, 4, batch_size=BATCH, peak=0.005, warmup=0, optimizer=optimizer)
        for name, after in inside(model).items():
            curves.setdefault(name if rule else f"{name} (no rule)", []).append(np.abs(after - before[name]).mean())
print(f"{'channels':28}", *(f"{width:8}" for width in WIDTHS), "    512 / 64")
for name, changes in curves.items():
    print(f"{name:28}", *(f"{change:8.3f}" for change in changes), f"{changes[-1] / changes[0]:12.2f}")
say("With the rule a wide model moves about as far as a narrow one in the same updates. Without it, the wider, the farther.")

heading("the loss by learning rate, three widths")
exponents = np.arange(-8, -3)
print(f"{'channels':20}", *(f"{f'2^{e}':>7}" for e in exponents), "   best rate")
for rule, widths in ((True, (16, 64, 128)), (False, (64, 128))):
    for width in widths:
        losses = []
        for e in exponents:
            model, peak = GPT(shape(16, width, rule)), 2.0**e
            optimizer = make_optimizer(model, TrainConfig(optimizer="adamw", lr=peak))
            run, _ = train(model, windows, args.updates, batch_size=BATCH, peak=peak, warmup=args.updates // 10, optimizer=optimizer)
            losses.append(run[-(args.updates // 4 + 1) :].mean())
        i = min(max(int(np.argmin(losses)), 1), len(losses) - 2)
        a, b, c = losses[i - 1 : i + 2]  # the lowest point of a parabola through the three best
        best = exponents[i] + (a - c) / (2 * (a - 2 * b + c)) if a + c > 2 * b else exponents[i]
        print(f"{f'{width}, rule' if rule else f'{width}, no rule':20}", *(f"{loss:7.3f}" for loss in losses), f"     2^{best:.1f}")
say(
    "nats per character, mean of the last quarter; best rate: the lowest point of a parabola through the three best; 2^-5 = 0.031. With the rule it "
    "stays near that of 16 channels, within a factor of two; without it, it falls, by more than half from 16 to 128. One seed."
)
if args.plot:
    x = np.log2(WIDTHS)
    axes = {"xticks": x, "xticklabels": WIDTHS, "yscale": "log", "xlabel": "channels", "ylabel": "mean change after four updates"}
    title = {"title": "the coordinate check: flat with the rule"}
    draw_panels(args.plot, [({name: (x, np.array(changes)) for name, changes in curves.items()}, axes | title)])
