"""21. Norms: where in a block, what post-norm needs, and why not across the batch.

    python examples/learn/21_norm_orders.py
    python examples/learn/21_norm_orders.py --plot norms.png         # with matplotlib: pip install -e ".[plot]"
    python examples/learn/21_norm_orders.py --updates 150            # about a minute

Some twenty seconds. First batch norm, on numbers that you can check. Then script 7's question with attention and real text: four orders of
norm and sum in one model of eight layers, the size of the gradient in each layer, and the loss with and without warm-up. One seed.
"""

import argparse

import numpy as np
from show import heading, say, show
from train import characters, draw, smooth, train

import autograd as ag
from tinygpt import GPT, GPTConfig
from tinygpt.data.windows import Windows
from tinygpt.training.metrics import measure

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw the training losses into this picture")
parser.add_argument("--updates", type=int, default=36, help="updates of each of the eight runs (36)")
args = parser.parse_args()

heading("batch norm: each channel to mean 0 and variance 1 over all tokens of all texts in the batch")
text = np.array([1.0, 2.0, 3.0])  # (T,): one channel of a text of three tokens
in_batch = {}
for other in ([4.0, 5.0, 9.0], [0.0, 0.0, 0.0]):
    batch = np.array([text, other])  # (B, T) = (2, 3)
    mean, variance = in_batch[tuple(other)] = batch.mean(), batch.var()
    show(f"[1 2 3] with {other}: mean {mean:.0f}, variance {variance:.3f} ->", (text - mean) / np.sqrt(variance))
mean, variance = np.mean(list(in_batch.values()), axis=0)  # what training has seen, averaged
show(f"at inference, averages of both, mean {mean:.1f} and variance {variance:.0f} ->", (text - mean) / np.sqrt(variance))
say(
    "The same text, three results: in training it depends on the other texts, and at inference, where there may be none, it is another one again."
)


def batch_norm(x):  # (B, T, C) -> (B, T, C)
    centered = x - x.mean(axis=(0, 1), keepdims=True)
    return centered / ag.sqrt((centered * centered).mean(axis=(0, 1), keepdims=True) + 1e-5)


def prediction(norm, x):
    """Probabilities of four tokens at each position: (B, T, C) -> (B, T, 4)."""
    return ag.softmax(norm(x) @ np.random.default_rng(1).standard_normal((8, 4)) / 4)


print()
ways = {"layer norm": lambda x: ag.layer_norm(x, ag.Tensor(np.ones(8)), ag.Tensor(np.zeros(8))), "batch norm": batch_norm}
for name, norm in ways.items():
    x = ag.Tensor(np.random.default_rng(0).standard_normal((2, 3, 8)), requires_grad=True)  # (B, T, C)
    prediction(norm, x)[0, 0, 0].backward()
    show(f"{name}: what moves text 0's prediction at position 0, by (text, position)", np.sqrt((x.grad**2).sum(axis=2)))
say("With batch norm the other text moves it, and so do the tokens that come later: the answers. A causal mask does not help against that.")

heading("four orders: where a branch f (attention or MLP) is normalized by n")
ORDERS = {"pre": "x + f(n(x))", "post": "n(x + f(x))", "output": "x + n(f(x))", "sandwich": "x + n(f(n(x)))"}
LAYERS, C, T, PEAK = 8, 64, 32, 3e-3
train_ids, validation_ids, V = characters()
windows, validation = Windows(train_ids, T), Windows(validation_ids, T)


def new_model(order):
    # Weights are drawn with 1 / sqrt(C), as in script 7: with GPT-2's 0.02 post-norm learns nothing here (try it).
    return GPT(GPTConfig(n_layer=LAYERS, n_head=4, n_embd=C, n_positions=T, vocab_size=V, norm_position=order, initializer_range=C**-0.5))


print(f"norm of the gradient of each layer's weights at the start; layers 1 (first) to {LAYERS}")
for order, formula in ORDERS.items():
    model = new_model(order)
    model.loss(*windows.batch(np.arange(64))).backward()
    sizes = [np.sqrt(sum(float((p.grad**2).sum()) for p in block.parameters())) for block in model.h]
    print(f"{order:<9} {formula:<15}", " ".join(f"{size:6.2f}" for size in sizes))

print()
say(
    f"loss in nats per character on held-out text after {args.updates} updates, peak rate {PEAK}, with "
    f"{args.updates // 4} updates of warm-up and without; one seed"
)
print(f"{'':25} {'with':>8} {'without':>8} {'lost':>8}   ms a step")
curves = {}
for order, formula in ORDERS.items():
    nats, milliseconds = [], []
    for warmup in (args.updates // 4, 0):
        model = new_model(order)
        losses, seconds = train(model, windows, args.updates, batch_size=16, peak=PEAK, warmup=warmup)
        curves[order if warmup else f"{order} (no warm-up)"] = np.arange(1, args.updates + 1), smooth(losses)
        nats.append(measure(model, validation, 64, 5).nats)
        milliseconds.append(1000 * np.median(seconds))
    print(f"{order:<9} {formula:<15} {nats[0]:8.3f} {nats[1]:8.3f} {nats[1] - nats[0]:8.3f} {np.mean(milliseconds):11.1f}", flush=True)
print()
for text in (
    "Pre-norm, GPT-2's order and Llama's: nothing but sums lies between input and output, and the model learns well either way.",
    "Post-norm, the order of the first transformers, loses most without a warm-up. Its last layers get as much gradient as its first ones "
    "(Xiong et al. 2020, arXiv:2002.04745, derive it), and large steps there, with few gradients seen, do harm. With a warm-up it learns, too.",
    "Output and sandwich normalize what a branch adds, so that no branch can outgrow the stream: OLMo 2 takes the one, Gemma 2 and 3 the other. "
    "In these few updates, at this rate and with one seed, they are behind; their models are far larger and train for long.",
):
    say(text)
if args.plot:
    draw(args.plot, curves, "updates", "training loss (nats per character)", f"{LAYERS} layers, four orders of norm and sum")
