"""What the scripts from 14 on share: text as ids, script 10's loop with the library's parts, sizes of gradients, and the picture of a few curves."""

import platform
import pydoc_data.topics
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

import autograd as ag
from autograd.optim import AdamW, warmup_cosine
from autograd.threads import n_threads
from tinygpt import GPT, GPTConfig
from tinygpt.data.corpora import load_corpus
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.data.windows import BatchOrder
from tinygpt.training.step import train_step


def characters():
    """Python's language manual as ids of characters: training ids, validation ids (N,), and the number of characters that there are."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    alphabet, ids = np.unique(list(text), return_inverse=True)
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], len(alphabet)


def words(least=10):
    """The default corpus in small letters, as ids of its words: training texts, held-out texts (lists of (N,)), and the words by id.

    least   rarer words are left out. Frequent words have low ids.
    """
    corpus = load_corpus("docs")
    texts = [[re.findall("[a-z]+", document.text.lower()) for document in side] for side in (corpus.train, corpus.validation)]
    counts = Counter(word for text in texts[0] for word in text)
    vocabulary = sorted((word for word in counts if counts[word] >= least), key=lambda word: (-counts[word], word))
    number = {word: i for i, word in enumerate(vocabulary)}
    return *([np.array([number[word] for word in text if word in number], int) for text in side] for side in texts), vocabulary


def sub_words(n_vocab=1024):
    """The default corpus as ids of a byte-level BPE: training ids, validation ids (N,), and the tokenizer."""
    corpus = load_corpus("docs")
    texts = ["\n\n".join(document.text for document in side) for side in (corpus.train, corpus.validation)]
    tokenizer = BPETokenizer.train(texts[0][:300_000], n_vocab)
    return *(np.array(tokenizer.encode(text)) for text in texts), tokenizer


def middle_rank(rows, twins):
    """How many of the rows (V, C) of length 1 are nearer to one of two twins than the other one is: the median over twins (N, 2), both ways."""
    i, j = np.concatenate([twins, twins[:, ::-1]]).T
    cosines = rows[i] @ rows.T  # (2 N, V)
    nearer = cosines > cosines[np.arange(len(i)), j, None]
    nearer[np.arange(len(i)), i] = False  # the twin itself
    return np.median(nearer.sum(axis=1))


def small_gpt(n_vocab, context, channels=32, seed=0, **options):
    """One layer with four heads, for scripts that train many; its weights are drawn with 1 / sqrt(C), as script 7's. options: of GPTConfig."""
    shape = {"n_layer": 1, "n_head": 4, "n_embd": channels, "n_positions": context, "vocab_size": n_vocab}
    config = GPTConfig(**shape, initializer_range=channels**-0.5, **options)
    return GPT(config, seed=seed)


class Items:
    """Inputs and targets, arrays with a row for each item, in the form in which `train` takes windows."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def batch(self, which):
        return self.inputs[which], self.targets[which]


def train(model, windows, n_updates, *, batch_size, peak, warmup, floor=None, optimizer=None, seed=0, each=None, report=0):
    """Makes n_updates, with the same batches for every model. Returns training losses in nats per token and seconds, (n_updates,) each.

    floor       the last rate, a tenth of the peak if None; `peak` keeps the rate constant after the warm-up
    optimizer   AdamW if None
    seed        of the order of the windows
    each        called with the number of updates made (from 1) after each
    report      prints a line for each so many updates, for those who wait; 0: none
    """
    optimizer = optimizer or AdamW(model, lr=peak, betas=(0.9, 0.95), weight_decay=0.1)
    batches = BatchOrder(len(windows), batch_size, seed=seed).batches()
    losses, seconds = [], []
    for step in range(n_updates):
        started = time.perf_counter()
        optimizer.lr = warmup_cosine(step, peak=peak, warmup_steps=warmup, n_steps=n_updates, floor=floor)
        loss, _ = train_step(model, optimizer, [windows.batch(next(batches))], max_norm=1.0)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - started)
        if each:
            each(step + 1)
        if report and (step + 1) % report == 0:
            print(f"update {step + 1:5,} of {n_updates:,}: loss {np.mean(losses[-report:]):.3f}, the mean of {report}", flush=True)
    return np.array(losses), np.array(seconds)


def gradient_sizes(model, batch, factor=1.0):
    """Absolute values of the gradients of factor x loss, as far as they are not 0: {"activations": (n,), "weights": (n,)}."""
    with ag.record() as records:
        (model.loss(*batch) * factor).backward()
    pairs = [(x, dx) for record in records for x, dx in zip(record.inputs, record.dxs, strict=True) if dx is not None]
    sizes = {"activations": [], "weights": []}
    for x, dx in pairs:
        sizes["weights" if isinstance(x, ag.Parameter) else "activations"].append(np.abs(dx[dx != 0]))
    return {name: np.concatenate(parts) for name, parts in sizes.items()}


def by_power_of_two(sizes, low, high):
    """A curve of which part of the numbers (%) lies between each power of two and the next, from 2^low to 2^high."""
    counts = np.histogram(np.log2(sizes), np.arange(low, high + 1))[0]
    return np.arange(low, high) + 0.5, 100 * counts / len(sizes)


def smooth(losses, n=20):
    """Means over the last n losses, fewer at the start: a curve to look at."""
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    ends = np.arange(1, len(losses) + 1)
    starts = np.maximum(ends - n, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def machine():
    """What a measured time depends on, as a line: date, processor, threads, NumPy."""
    file = Path("/proc/cpuinfo")  # Linux; names alone ("Intel Xeon Processor") say little, so family and model, too
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", file.read_text(encoding="utf-8"), re.M)) if file.exists() else {}
    parts = [
        fields.get("model name", platform.machine()),
        *(f"{n.removeprefix('cpu ')} {fields[n]}" for n in ("cpu family", "model") if n in fields),
    ]
    return f"{time.strftime('%Y-%m-%d')}, {', '.join(parts)}, {n_threads()} threads, NumPy {np.__version__}"


# Okabe and Ito's colors, told apart by every eye; a marker each, for print in gray.
COLORS, MARKERS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999"), "osv^DPX*"


def pyplot():
    """matplotlib's, without a window; ends the script with a message where it is missing."""
    try:
        import matplotlib
    except ImportError:
        sys.exit('error: --plot: matplotlib is missing, expected it for pictures; pip install -e ".[plot]"')
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def draw(file, curves, xlabel, ylabel, title, *, span=None):
    """Writes a picture of curves {name: (x, y)}; a name with a variant in brackets, "post (no warm-up)", has the color of "post".

    span   x up to which the background is shaded, or from which and to which
    """
    draw_panels(file, [(curves, {"xlabel": xlabel, "ylabel": ylabel, "title": title})], span=span)


def draw_panels(file, panels, *, span=None):
    """The same with several panels in a row, each (curves, what matplotlib's `Axes.set` takes: labels, title, scales)."""
    plt = pyplot()
    size = (7, 4.2) if len(panels) == 1 else (4.4 * len(panels), 4.8)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axis, (curves, settings) in zip(axes[0], panels, strict=True):
        names = list(dict.fromkeys(name.partition(" (")[0] for name in curves))
        lines = {name: iter(("-", "--", ":")) for name in names}
        for name, (x, y) in curves.items():
            base = name.partition(" (")[0]
            color, marker = COLORS[names.index(base)], MARKERS[names.index(base)]
            axis.plot(x, y, next(lines[base]), color=color, marker=marker, markersize=4, markevery=max(1, len(x) // 12), label=name)
        if span:
            axis.axvspan(*(span if isinstance(span, tuple) else (0, span)), color="#000000", alpha=0.06)
        axis.set(**settings)
        axis.grid(alpha=0.25)
        if len(panels) > 1:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=8)
    if len(panels) == 1:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(file, dpi=120)
    print("picture:", file)


def draw_words(file, kinds, points, title):
    """Writes a map of words {word: its kind} at points (N, 2)."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(7.5, 6), layout="constrained")
    names = list(dict.fromkeys(kinds.values()))
    for name, color, marker in zip(names, COLORS, MARKERS, strict=False):
        axis.scatter(*points[[kind == name for kind in kinds.values()]].T, color=color, marker=marker, s=22, label=name)
    unit, taken = np.ptp(points, axis=0) / (70, 35), []  # about a letter's size
    for word, at in zip(kinds, points, strict=True):  # a label goes right of its point, or left, or up or down where another one is
        for line, left in ((line, left) for line in (0, 1, -1, 2, -2) for left in (False, True)):
            low = at / unit + (-len(word) - 1 if left else 1, line)
            if not any(abs(low[1] - y) < 1 and low[0] < end and start < low[0] + len(word) for start, end, y in taken):
                break
        taken.append((low[0], low[0] + len(word), low[1]))
        side = {"xytext": (-5, 9 * line - 3), "ha": "right"} if left else {"xytext": (5, 9 * line - 3)}
        axis.annotate(word, at, textcoords="offset points", fontsize=8, **side)
    axis.set(title=title)
    axis.grid(alpha=0.25)
    axis.margins(0.12)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(file, dpi=120)
    print("picture:", file)


def draw_images(file, rows):
    """Writes a grid of pictures, rows {title of a row: arrays (n, n)}, dark where a number is large; each row has a scale of its own."""
    plt = pyplot()
    n_columns = max(map(len, rows.values()))
    figure, axes = plt.subplots(len(rows), n_columns, figsize=(1.6 * n_columns + 1, 1.7 * len(rows)), layout="constrained", squeeze=False)
    for line, (title, pictures) in zip(axes, rows.items(), strict=True):
        high = max(np.max(picture) for picture in pictures)
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, cmap="Blues" if len(picture) < 8 else "Greys", vmin=0, vmax=high)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(title, fontsize=8)
    figure.savefig(file, dpi=120)
    print("picture:", file)
