"""26. Recurrent networks: one step again and again. Why the gradient vanishes or explodes on its way back, LSTM and GRU, convolution.

    python examples/learn/26_rnn.py
    python examples/learn/26_rnn.py --plot rnn.png                   # with matplotlib: pip install -e ".[plot]"
    python examples/learn/26_rnn.py --updates 20                     # seconds: shows that it runs

Seconds. First a step that you can check, then the gradient's way back in time, a memory test, and language models of equal size on
the characters of script 24's text. The cells are in recurrent.py, the counts in ngrams.py.
"""

import argparse

import numpy as np
from ngrams import Counts, KneserNey, as_ids, nats, paragraphs
from recurrent import GRU, LSTM, RNN, LanguageModel, convolution, hidden_for
from show import heading, say, show
from train import draw_panels, train

import autograd as ag
from autograd.optim import AdamW
from tinygpt import GPT, GPTConfig
from tinygpt.data.windows import Windows
from tinygpt.training.metrics import measure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw gradients and memory by distance into this picture")
parser.add_argument("--updates", type=int, default=250, help="of each language model (250)")
args = parser.parse_args()

heading("one unit, h = tanh(x w + h u), w = 1, u = 0.5; x = 1, 0, 0: and the gradient of the last h, step by step back in time")
w, u, states = 1.0, 0.5, [ag.Tensor(0.0, requires_grad=True)]
for x in (1.0, 0.0, 0.0):
    states.append(ag.tanh(x * w + states[-1] * u))
values = np.array([h.item() for h in states])
factors = u * (1 - values[1:] ** 2)  # dh_t / dh_{t-1}: the weight times the slope of tanh
show("h =", values)
show("dh[t] / dh[t - 1] = u (1 - h[t]^2) =", factors)
states[-1].backward()
print(f"their product {np.prod(factors):.6f}; back-propagation through time says dh[3] / dh[0] = {states[0].grad.item():.6f}")

H, T, rng = 64, 41, np.random.default_rng(0)
x_numbers, direction = rng.standard_normal((16, T, H)), rng.standard_normal((16, H))


def cell(kind, scale=None, gate_bias=None):
    """A cell with U drawn with scale / sqrt(H), or another bias of its first gate; as a function of x that gives the last output."""
    made = kind(H, H, ag.RandomStream(0))
    if scale:
        made.hidden.weight.data[...] = scale / np.sqrt(H) * np.random.default_rng(1).standard_normal((H, H))
    if gate_bias is not None:
        made.input.bias.data[:H] = gate_bias
    return lambda x: made(x)[1][0]


filters = rng.standard_normal((2, 5, H, H)) / np.sqrt(5 * H)
q, k, v = rng.standard_normal((3, H, H)) / np.sqrt(H)
WAYS = {
    "RNN (U x 0.5)": cell(RNN, scale=0.5), "RNN (U x 1)": cell(RNN, scale=1.0), "RNN (U x 2)": cell(RNN, scale=2.0),
    "LSTM (forget bias 0)": cell(LSTM, gate_bias=0.0), "LSTM (1)": cell(LSTM), "LSTM (3)": cell(LSTM, gate_bias=3.0), "GRU": cell(GRU),
    "convolution (2 of 5)": lambda x: convolution(convolution(x, filters[0]), filters[1])[:, -1],
    "attention": lambda x: ag.scaled_dot_product_attention(x @ q, x @ k, x @ v, causal=True)[:, -1],
}  # fmt: skip
heading("how much the last output depends on the input some steps before: length of the gradient, before any training")
print(f"{'steps before':<22}" + "".join(f"{d:>10}" for d in (0, 1, 5, 10, 20, 40)))
sizes = {}
for name, way in WAYS.items():
    x = ag.Tensor(x_numbers, requires_grad=True)  # (B, T, H)
    way(x).backward(direction)
    sizes[name] = np.sqrt((x.grad * x.grad).sum(axis=(0, 2)))[::-1]  # (T,), by distance
    print(f"{name:<22}" + "".join(f"{sizes[name][d]:10.1e}" for d in (0, 1, 5, 10, 20, 40)))
say(
    "A product of 40 factors. The RNN's vanishes, or explodes if its weights are twice as large. In the LSTM the factor is the forget gate's: it "
    "lasts if the gate begins near 1 (bias 3: 0.95), else it vanishes as well. Two convolutions of width 5 see 9 tokens, then nothing, exactly. "
    "Attention is one step away from everything."
)

heading("a memory test: the first of n tokens, one of eight, must be named after the last; right (%), chance 12.5, after 120 updates")


def remembers(n, kind, n_hidden, gate_bias=None):
    model, rng = LanguageModel(kind, 16, 16, n_hidden), np.random.default_rng(0)
    if gate_bias is not None:
        model.cell.input.bias.data[:n_hidden] = gate_bias
    optimizer = AdamW(model, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0)
    for batch in [32] * 120 + [500]:
        ids = np.concatenate([rng.integers(0, 8, (batch, 1)), rng.integers(8, 16, (batch, n - 1))], axis=1)  # the others only distract
        logits = model.out(model.cell(model.wte(ids))[1][0])  # (B, V), of the last state
        optimizer.zero_grad()
        ag.cross_entropy(logits, ids[:, 0]).backward()
        optimizer.step(max_norm=1.0)
    return 100 * (logits.data.argmax(axis=1) == ids[:, 0]).mean()  # of the last batch, before its update


recall, lengths = {}, (4, 8, 16, 32)
for name, how in {"RNN": (RNN, 64), "LSTM (1)": (LSTM, 32), "LSTM (3)": (LSTM, 32, 3.0), "GRU": (GRU, 36)}.items():
    recall[name] = [remembers(n, *how) for n in lengths]
    print(f"{name:<10}" + "".join(f"   n = {n}: {share:5.1f}" for n, share in zip(lengths, recall[name], strict=True)))

heading(f"language models on characters, {args.updates} updates of 16 x 32: weights, milliseconds per update, loss (nats per character)")
parts = paragraphs()
texts = "\n".join(parts[: len(parts) * 9 // 10]), "\n".join(parts[len(parts) * 9 // 10 :])
known = sorted(set(texts[0]))
ids, other = (as_ids(text, known) for text in texts)
V, windows, held_out = len(known) + 1, Windows(np.array(ids), 32), Windows(np.array(other), 32)
shape = {"n_layer": 1, "n_head": 4, "n_positions": 32, "vocab_size": V, "initializer_range": 0.1, "positions": "rotary"}
makers = {"RNN": (lambda n: LanguageModel(RNN, V, 32, n), 0.01), "LSTM": (lambda n: LanguageModel(LSTM, V, 32, n), 0.02)}
makers["transformer"] = (lambda n: GPT(GPTConfig(n_embd=n, **shape)), 0.01)
for name, (make, rate) in makers.items():
    model = make(hidden_for(make, 36_000, step=8))
    _, seconds = train(model, windows, args.updates, batch_size=16, peak=rate, warmup=10)
    print(f"{name:<12}{model.n_parameters():>8,}{1000 * np.median(seconds):8.1f}{measure(model, held_out, 64).nats:8.3f}")
counts = Counts(ids, 6, V)
print(f"{'6-grams':<12}{sum(map(len, counts.runs[1:])):>8,}  counts{nats(KneserNey(counts), other, 6):8.3f}")
say("Counts of 6 characters, five times as many numbers, are far ahead of networks that have trained for seconds; see the page.")
if args.plot:
    gradients = {name: (np.arange(T), np.where(row > 0, row, np.nan)) for name, row in sizes.items() if "bias 0" not in name}
    left = {"xlabel": "steps before", "ylabel": "norm of the gradient", "yscale": "log", "ylim": (1e-9, 1e5)}
    right = {"xlabel": "tokens (n)", "ylabel": "first token named (%)", "ylim": (0, 103)}
    draw_panels(args.plot, [(gradients, left), ({name: (lengths, row) for name, row in recall.items()}, right)])
