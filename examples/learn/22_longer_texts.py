"""22. Past the training length: what learned, rotary, ALiBi and no positions do in texts longer than the ones trained on.

    python examples/learn/22_longer_texts.py
    python examples/learn/22_longer_texts.py --plot longer.png       # with matplotlib: pip install -e ".[plot]"
    python examples/learn/22_longer_texts.py --updates 300           # a minute or two

Some twenty seconds. Four models that differ in nothing but their positions are trained on windows of 64 characters and then read 256. The
table has the loss by position: where a model still predicts well, it can use longer texts than it was trained on. One seed.
"""

import argparse
import dataclasses

import numpy as np
from show import heading, say, show
from train import characters, draw, train

import autograd as ag
from tinygpt import GPT, GPTConfig
from tinygpt.data.windows import Windows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw the loss by position into this picture")
parser.add_argument("--updates", type=int, default=86, help="updates of each of the four models (86)")
args = parser.parse_args()

heading("rotary: pairs of channels of queries and keys are turned by an angle that grows with the position")
q, k = ag.Tensor([[[[1.0, 0.0]]]]), ag.Tensor([[[[1.0, 0.0]]]])  # (B, H, T, D), one pair of channels
for i, j in ((1, 0), (2, 1), (101, 100), (2, 0)):
    turned = [ag.rotary_embedding(x, np.array([[np.cos(p)]]), np.array([[np.sin(p)]])) for x, p in ((q, i), (k, j))]
    print(f"query at {i}, key at {j}: score {float((turned[0] * turned[1]).sum().item()):.3f}, cos({i - j}) = {np.cos(i - j):.3f}")
say(
    "The score depends on the distance alone: such positions are relative. This pair turns by an angle of 1 per position, others more slowly. A larger "
    "distance is an angle that training has not shown."
)

heading("ALiBi: a score loses slope times distance, and each head has a slope of its own")
slopes = ag.alibi_slopes(4)
show("slopes of four heads =", np.array(slopes), 4)
show("taken from the scores of a query at 4, first head =", slopes[0] * np.array([4.0, 3.0, 2.0, 1.0, 0.0]), 2)
say("Far tokens count less and less, so there is little to see in a longer text that training has not shown.")

T, LONG, C = 64, 256, 64
train_ids, validation_ids, V = characters()
windows = Windows(train_ids, T)
ids, targets = Windows(validation_ids, LONG, stride=32).batch(np.arange(80))  # they overlap, so every column is about the same text


def loss_by_position(model, n):
    """Nats per character at the first n positions, averaged over held-out windows. (n,)"""
    total = np.zeros(n)
    with ag.no_grad():
        for rows in np.array_split(np.arange(len(ids)), 20):
            nats = -ag.log_softmax(model(ids[rows, :n])).data  # (B, n, V)
            total += np.take_along_axis(nats, targets[rows, :n, None], axis=2)[..., 0].sum(axis=0)
    return total / len(ids)


def with_changes(model, **changes):
    """The same weights in a model with another config."""
    other = GPT(dataclasses.replace(model.config, **changes))
    for p, trained in zip(other.parameters(), model.parameters(), strict=True):
        p.data = trained.data
    return other


heading(f"trained on windows of {T} characters, {args.updates} updates; loss (nats per character) by position in held-out text")
models = {}
for positions in ("learned", "rotary", "alibi", "none"):
    n_positions = T if positions == "learned" else LONG  # learned ones are a table, whose rows beyond T no training would reach
    config = GPTConfig(n_layer=4, n_head=4, n_embd=C, n_positions=n_positions, vocab_size=V, positions=positions)
    models[positions] = GPT(config, seed=0)
    losses, _ = train(models[positions], windows, args.updates, batch_size=16, peak=3e-3, warmup=args.updates // 10)
    print(f"{positions} positions: trained, loss of the last 20 batches {losses[-20:].mean():.3f}", flush=True)
models["rotary (positions / 4)"] = with_changes(models["rotary"], rope_scaling={"rope_type": "linear", "factor": LONG / T})
models[f"rotary (window of {T})"] = with_changes(models["rotary"], window=T)

parts = [(0, 32), (32, 64), (64, 96), (96, 128), (128, 192), (192, 256)]
print(f"{'positions':<23}", " ".join(f"{f'{a + 1}-{b}':>8}" for a, b in parts), "  growth")
curves = {}
for name, model in models.items():
    nats = loss_by_position(model, model.config.n_positions)
    means = np.convolve(nats, np.full(32, 1 / 32), "valid")  # over 32 positions: as many as from window to window
    curves[name] = np.arange(len(means)) + 16.5, means
    cells = [f"{nats[a:b].mean():8.3f}" if b <= len(nats) else f"{'-':>8}" for a, b in parts]
    growth = f"{nats[192:].mean() - nats[32:64].mean():+8.3f}" if len(nats) == LONG else f"{'-':>8}"
    print(f"{name:<23}", " ".join(cells), growth)
try:
    models["learned"](ids[:1])
except ValueError as error:
    say(f"learned, position {T + 1}: {error}")
for text in (
    "Learned positions end: there is no row for the next one. (With more rows, those beyond the training length would be random.) Within the training "
    "length they are behind, too: every row of the table is learned by itself, and so few updates are not enough. GPT-2 had far more.",
    "Rotary positions are defined everywhere, but beyond the training length queries and keys are turned by angles that no weight has met.",
    "ALiBi holds its loss, because it hardly looks far: longer texts are read, but not used. Without positions, too, there are no new angles, "
    "but there are more tokens to share the attention among.",
    "Dividing the positions by 4 keeps the angles within what is known, but neighbors are now closer together than in training: that works after some "
    "more training (Chen et al. 2023, arXiv:2306.15595). A window of the training length in every layer needs none: no distance is new.",
):
    say(text)
if args.plot:
    draw(
        args.plot,
        curves,
        "position in the text",
        "loss (nats per character, means over 32)",
        f"trained on {T} characters (gray), read {LONG}",
        span=T,
    )
