"""What the scripts from 12 on share: text as ids, script 8's loop with the library's parts, and the picture of a few curves."""

import platform
import pydoc_data.topics
import re
import sys
import time
from pathlib import Path

import numpy as np

from autograd.kernels.cpu.parallel import n_threads
from autograd.optim import AdamW, warmup_cosine
from tinygpt import GPT, GPTConfig
from tinygpt.data.windows import BatchOrder
from tinygpt.training.step import train_step


def characters():
    """Python's language manual as ids of characters: training ids, validation ids (N,), and the number of characters that there are."""
    text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    alphabet, ids = np.unique(list(text), return_inverse=True)
    return ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :], len(alphabet)


def small_gpt(n_vocab, context, channels=32, seed=0):
    """One layer with four heads, for scripts that train many; its weights are drawn with 1 / sqrt(C), as script 5's."""
    config = GPTConfig(n_layer=1, n_head=4, n_embd=channels, n_positions=context, vocab_size=n_vocab, initializer_range=channels**-0.5)
    return GPT(config, seed=seed)


def train(model, windows, n_updates, *, batch_size, peak, warmup, floor=None, optimizer=None, seed=0, each=None):
    """Makes n_updates, with the same batches for every model. Returns training losses in nats per token and seconds, (n_updates,) each.

    floor       the last rate, a tenth of the peak if None; `peak` keeps the rate constant after the warm-up
    optimizer   AdamW if None
    seed        of the order of the windows
    each        called with the number of updates made (from 1) after each
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
    return np.array(losses), np.array(seconds)


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


def draw(file, curves, xlabel, ylabel, title, *, span=None):
    """Writes a picture of curves {name: (x, y)}; a name with a variant in brackets, "post (no warm-up)", has the color of "post".

    span   x up to which the background is shaded
    """
    draw_panels(file, [(curves, {"xlabel": xlabel, "ylabel": ylabel, "title": title})], span=span)


def draw_panels(file, panels, *, span=None):
    """The same with several panels in a row, each (curves, what matplotlib's `Axes.set` takes: labels, title, scales)."""
    try:
        import matplotlib
    except ImportError:
        sys.exit('error: --plot: matplotlib is missing, expected it for pictures; pip install -e ".[plot]"')
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (7, 4.2) if len(panels) == 1 else (4.4 * len(panels), 4.8)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    # Okabe and Ito's colors, told apart by every eye; a marker each, for print in gray.
    colors = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#0072B2", "#CC79A7", "#999999")
    for axis, (curves, settings) in zip(axes[0], panels, strict=True):
        names = list(dict.fromkeys(name.partition(" (")[0] for name in curves))
        lines = {name: iter(("-", "--", ":")) for name in names}
        for name, (x, y) in curves.items():
            base = name.partition(" (")[0]
            color, marker = colors[names.index(base)], "osv^DPX*"[names.index(base)]
            axis.plot(x, y, next(lines[base]), color=color, marker=marker, markersize=4, markevery=max(1, len(x) // 12), label=name)
        if span:
            axis.axvspan(0, span, color="#000000", alpha=0.06)
        axis.set(**settings)
        axis.grid(alpha=0.25)
        if len(panels) > 1:
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize=8)
    if len(panels) == 1:
        figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(file, dpi=120)
    print("picture:", file)
