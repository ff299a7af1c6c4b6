"""27. From one sequence to another: an encoder-decoder with one context vector, with attention, and without recurrence: the transformer.

    python examples/learn/27_seq2seq.py
    python examples/learn/27_seq2seq.py --plot seq2seq.png           # with matplotlib: pip install -e ".[plot]"
    python examples/learn/27_seq2seq.py --task reverse               # swap reverses the words of each pair, reverse all words
    python examples/learn/27_seq2seq.py --updates 20                 # seconds: shows that it runs

Seconds. Three models of equal size learn, for the same time, to say pairs of digits as Germans do, units before tens: 4 2 7 1 becomes
two forty one seventy. The recurrent models are in recurrent.py, the transformer is the library's.
"""

import argparse
import time

import numpy as np
from recurrent import EncoderDecoder, hidden_for
from show import heading, say
from train import draw_panels

from autograd.optim import AdamW
from tinygpt.models import Seq2Seq
from tinygpt.seq2seq_config import Seq2SeqConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw accuracy by length into this picture")
parser.add_argument("--task", choices=("swap", "reverse"), default="swap", help="the order of the words (swap)")
parser.add_argument("--updates", type=int, default=600, help="of the transformer; the others get the same processor time (600)")
args = parser.parse_args()

START, END, LONGEST, N_WEIGHTS = 0, 1, 5, 40_000  # LONGEST: pairs in a sequence
UNITS = "zero one two three four five six seven eight nine".split()
TENS = "nought ten twenty thirty forty fifty sixty seventy eighty ninety".split()
NAMES = ["<start>", "<end>", *"0123456789", *UNITS, *TENS]


def pairs(n_pairs, batch, rng):
    """Sources (batch, 2 n_pairs) and their targets with the end (batch, 2 n_pairs + 1)."""
    digits = rng.integers(0, 10, (batch, n_pairs, 2))
    words = digits + [NAMES.index("nought"), NAMES.index("zero")]  # (batch, n_pairs, 2): tens, units
    words = words[:, :, ::-1] if args.task == "swap" else words[:, ::-1, ::-1]
    return digits.reshape(batch, -1) + 2, np.concatenate([words.reshape(batch, -1), np.full((batch, 1), END)], axis=1)


def recurrent(attention):
    def make(n_hidden):
        return EncoderDecoder(len(NAMES), 32, n_hidden, attention=attention, start_id=START)

    return make(hidden_for(make, N_WEIGHTS))


def transformer(channels):
    config = Seq2SeqConfig(n_layer=1, n_head=4, n_embd=channels, n_positions=32, vocab_size=len(NAMES), start_id=START, eos_id=END)
    return Seq2Seq(config)


def train(model, seconds=None):
    """Makes args.updates, or as many as fit into `seconds` of processor time; returns how many, and the seconds."""
    optimizer, rng, started = AdamW(model, lr=0.0, betas=(0.9, 0.98), weight_decay=0.0), np.random.default_rng(0), time.process_time()
    n = done = taken = 0
    while done < 1:
        optimizer.lr = 0.01 * min(1.0, (n + 1) / 50, 2.05 - 2 * done)  # a warm-up, a plateau, and from half of the time on a fall
        optimizer.zero_grad()
        model.loss(*pairs(rng.integers(1, LONGEST + 1), 64, rng)).backward()
        optimizer.step(max_norm=1.0)
        n, taken = n + 1, time.process_time() - started
        done = taken / seconds if seconds else n / args.updates
    return n, taken


def accuracy(model, n_pairs):
    """Shares of sequences that are right to the last word, and of words. The likeliest word at each step is fed back."""
    source, target = pairs(n_pairs, 200, np.random.default_rng(n_pairs))
    n = target.shape[1]
    right = np.array([[*row, *[END] * (n - len(row))] for row in model.translate(source, n)]) == target
    return right.all(axis=1).mean(), right.mean()


heading("the task, and three models for it")
source, target = pairs(2, 1, np.random.default_rng(2))
print(f"{' '.join(NAMES[i] for i in source[0])} -> {' '.join(NAMES[i] for i in target[0])}")
models = {"transformer": transformer(hidden_for(transformer, N_WEIGHTS)), "one vector": recurrent(False), "attention": recurrent(True)}
for name, model in models.items():
    numbers = model.config.n_embd if name == "transformer" else model.decoder.n_hidden
    print(
        f"{name:<12}{model.n_parameters():>7,} weights; of the source, the decoder sees {numbers} numbers{' for each token' * (name != 'one vector')}"
    )

heading(
    f"sequences right to the last word (%) by digits in the source (training has at most {2 * LONGEST}); last column: words right (%) up to {2 * LONGEST} digits"
)
lengths = range(1, LONGEST + 2)
print(f"{'':<12}{'updates':>8}{'seconds':>9}   " + "".join(f"{2 * n:>7}" for n in lengths) + "    words")
curves, words, budget = {}, {}, None
for name, model in models.items():
    n, seconds = train(model, budget)
    budget = budget or seconds  # the transformer's
    found = np.array([accuracy(model, k) for k in lengths]).T * 100
    curves[name], words[name] = (2 * np.array(lengths), found[0]), (2 * np.array(lengths), found[1])
    print(f"{name:<12}{n:>8}{seconds:9.1f}   " + "".join(f"{x:7.1f}" for x in found[0]) + f"{found[1][:-1].mean():9.1f}")
say(
    "One vector has to hold all of the source, and the longer the source, the less it does. Attention gives each step its own mean of the encoder's "
    "states. Both read and write one step after the other. The transformer does all steps of a training batch at once, so it makes more updates "
    "in the same time (how many depends on your machine). Past the trained lengths it meets positions that it has never seen."
)

heading("where the recurrent decoder looks: its attention weights (%) over the source, a row for each word that it writes")
source, target = pairs(3, 1, np.random.default_rng(2))
written = models["attention"].translate(source, target.shape[1])
print(f"{'':<10}" + "".join(f"{NAMES[i]:>5}" for i in source[0]))
for word, row in zip(written[0], models["attention"].weights[0], strict=True):
    print(f"{NAMES[word]:<10}" + "".join(f"{100 * a:5.0f}" for a in row))
if args.plot:
    axes = {"xlabel": "digits in the source", "ylim": (0, 103), "xticks": list(curves["attention"][0])}
    titles = {"sequences right to the last word (%)": curves, "words right (%)": words}
    draw_panels(args.plot, [(lines, axes | {"title": title}) for title, lines in titles.items()])
