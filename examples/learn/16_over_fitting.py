"""16. Over-fitting: overlapping windows, models too big or trained too long, models too small, and early stopping.

    python examples/learn/16_over_fitting.py
    python examples/learn/16_over_fitting.py --plot over-fitting.png # with matplotlib: pip install -e ".[plot]"
    python examples/learn/16_over_fitting.py --updates 16            # seconds: shows that it runs

Less than 20 seconds of one core; a line takes one or two. Models learn 1,056 characters of the language manual and are measured on other parts of it. Losses are means over three
seeds, each with a training text of its own. Script 3 has windows and strides.
"""

import argparse

import numpy as np
from show import heading, say
from train import characters, draw_panels, small_gpt, train

from tinygpt.data.windows import Windows
from tinygpt.training.metrics import measure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw training and validation losses into this picture")
parser.add_argument("--updates", type=int, default=256, help="updates of each run, at least 16 (256)")
args = parser.parse_args()

T, BATCH, LENGTH, SEEDS, PATIENCE = 32, 8, 1056, 3, 3
CHECKS = np.array([n for n in (4, 8, 16, 32, 48, 64, *range(96, args.updates + 1, 32)) if n <= args.updates])
train_ids, held_out, V = characters()
TEXTS = [train_ids[seed * 20_000 :][:LENGTH] for seed in range(SEEDS)]
RATES = {4: 0.01, 16: 0.003, 64: 0.001}  # by channels: a wide model takes a lower rate (script 18)
validation, test = Windows(held_out[:1025], T), Windows(held_out[1025:5121], T)


class Run:
    """A model trained on windows `stride` apart of a text.

    losses    of the training text (its first LENGTH characters) and of the validation text at each of `checks`, (2, checks)
    stopped   which check early stopping keeps: the best of validation, before PATIENCE checks in a row that bring nothing
    test      losses of the test text there, and after the last update
    """

    def __init__(self, channels, text, seed, stride=T, checks=CHECKS):
        model = small_gpt(V, T, channels, seed)
        self.weights = model.config.n_parameters()
        losses, self.stopped, self.test = [], 0, [np.inf, np.inf]

        def check(n):
            if n not in checks:
                return
            losses.append([measure(model, part, 64).nats for part in (Windows(text[:LENGTH], T), validation)])
            now = len(losses) - 1
            if now - self.stopped <= PATIENCE and losses[now][1] <= losses[self.stopped][1]:
                self.stopped, self.test[0] = now, measure(model, test, 64).nats  # a run that stops keeps these weights

        options = {"peak": RATES[channels], "floor": RATES[channels], "warmup": 20, "seed": seed, "each": check}
        train(model, Windows(text, T, stride), args.updates, batch_size=BATCH, **options)
        self.test[1] = measure(model, test, 64).nats
        self.losses = np.array(losses).T


def mean(runs, of):
    return np.mean([of(run) for run in runs], axis=0)


heading(
    f"three sizes, {args.updates} updates of {BATCH} x {T} characters: losses (nats per character) at the update where early stopping stops, and at the end"
)
print(f"{'':<18}{'stopped':>8}{'training':>9}{'validation':>11}{'test':>7}   {'end:':<5}{'training':>9}{'validation':>11}{'test':>7}")
sizes, curves = {}, {}
for channels in RATES:
    sizes[channels] = runs = [Run(channels, text, seed) for seed, text in enumerate(TEXTS)]
    best, end = mean(runs, lambda run: run.losses[:, run.stopped]), mean(runs, lambda run: run.losses[:, -1])
    tests, updates = mean(runs, lambda run: run.test), mean(runs, lambda run: CHECKS[run.stopped])
    cells = f"{updates:8.0f}{best[0]:9.3f}{best[1]:11.3f}{tests[0]:7.3f}{'':8}{end[0]:9.3f}{end[1]:11.3f}{tests[1]:7.3f}"
    print(f"{channels:>2} channels {runs[0].weights:>6,}{cells}")
    for name, part in (("validation", 1), ("training", 0)):
        curves[f"{channels} channels ({name})"] = CHECKS, mean(runs, lambda run: run.losses)[part]
wins = {which: sum(big.test[which] < small.test[which] for big, small in zip(sizes[64], sizes[4], strict=True)) for which in (0, 1)}
print(f"64 channels better than 4 on the test text: stopped {wins[0]} of {SEEDS} seeds, at the end {wins[1]} of {SEEDS}")
say(
    "Too long: training loss falls to the end, validation loss has its minimum early and rises, with many weights farther. Too small: four channels "
    "cannot bring the training loss down either. Stopped early, the sizes differ much less, and not in order: more than the size, the time did the harm."
)

heading(f"the same on {len(train_ids):,} characters, of which no window comes twice: at the end, two seeds")
for channels in RATES:
    runs = [Run(channels, train_ids, seed, checks=CHECKS[-1:]) for seed in range(2)]
    end, tests = mean(runs, lambda run: run.losses[:, -1]), mean(runs, lambda run: run.test)
    print(f"{channels:>2} channels    validation {end[1]:.3f}    test {tests[1]:.3f}")
say("With enough text none is too big, and the smallest does worst: it is too small.")

heading("overlap, 64 channels: windows 32 apart (none) and 1 apart, by updates and by passes over the windows")
strides = {T: sizes[64], 1: [Run(64, text, seed, stride=1) for seed, text in enumerate(TEXTS)]}
print(f"{'stride':>6}{'windows':>9}{'updates':>9}{'passes':>8}{'training':>10}{'validation':>12}{'gap':>8}")
by_updates, by_passes = {}, {}
for stride, runs in strides.items():
    windows = (LENGTH - T - 1) // stride + 1
    passes, losses = CHECKS * BATCH / windows, mean(runs, lambda run: run.losses)
    for n, p, training, held in zip(CHECKS, passes, *losses, strict=True):
        if n in (4, 8, 32, 64, 128, 256):
            print(f"{stride:>6}{windows:>9,}{n:>9}{p:>8.2f}{training:10.3f}{held:12.3f}{held - training:8.3f}")
    for name, part in (("validation", 1), ("training", 0)):
        by_updates[f"stride {stride} ({name})"] = CHECKS, losses[part]
        by_passes[f"stride {stride} ({name})"] = passes, losses[part]
say(
    "gap: validation less training; below 0 at first, when nothing is learned yet and one text is a little harder than the other. passes: updates "
    "x 8 / windows. By passes, overlap over-fits: a pass is 32 times as many updates, and two of them show every character 64 times. By updates it does the reverse: "
    "the same text cut in other ways is harder to learn by heart."
)
if args.plot:
    loss = {"ylabel": "loss (nats per character)", "ylim": (0, 6)}
    panels = [(curves, loss | {"xlabel": "updates"}), (by_updates, loss | {"xlabel": "updates"})]
    draw_panels(args.plot, [*panels, (by_passes, loss | {"xlabel": "passes over the windows", "xscale": "log"})])
