"""28. Pictures: a transformer need not be a language model. The same blocks read patches of an image.

    python examples/learn/28_vision.py                              # needs scikit-learn: pip install -e ".[classify]"
    python examples/learn/28_vision.py --plot digits.png            # with matplotlib: pip install -e ".[plot]"
    python examples/learn/28_vision.py --folds 5 --updates 3000     # minutes: the full measurement

Seconds. A vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) on scikit-learn's 1,797 digits of 8 x 8 pixels, against
logistic regression on the same split; then which patches it looks at, by attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928).
"""

import argparse
import sys

import numpy as np
from show import heading
from train import Items, draw_images, train

import autograd as ag
from autograd import nn
from autograd.optim import AdamW
from tinygpt import GPTConfig
from tinygpt.models.blocks import composed_blocks
from tinygpt.models.gpt import Initializer

try:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
except ImportError:
    sys.exit('error: scikit-learn is missing, expected it for images and baseline; pip install -e ".[classify]"')

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw three digits and what the model looks at into this picture")
parser.add_argument("--folds", type=int, default=1, choices=range(1, 6), help="how many of the five test sets (1)")
parser.add_argument("--updates", type=int, default=900, help="updates of each model (900)")
args = parser.parse_args()

P, C, BATCH, RATE = 2, 48, 64, 0.006  # pixels of a patch on each side; channels
pixels, digits = load_digits(return_X_y=True)
images = (pixels / 16).astype(np.float32).reshape(-1, 8, 8)  # (N, 8, 8), 0 to 1
n, T = 8 // P, (8 // P) ** 2  # patches on each side, and in all: the positions of the sequence


def patches(images):
    """(B, 8, 8) -> (B, T, P P): from left to right and from top to bottom, like words on a page."""
    return images.reshape(-1, n, P, n, P).swapaxes(2, 3).reshape(-1, T, P * P)


padded, shifts = np.pad(images, ((0, 0), (1, 1), (1, 1))), [(i, j) for i in range(3) for j in range(3)]
moved = np.stack([patches(padded[:, i : i + 8, j : j + 8]) for i, j in shifts], axis=1)  # (N, 9, T, P P): other pixels, same digit


class VisionTransformer(nn.Module):
    """Patches as vectors plus a learned row for each position; blocks in which all patches see each other; their mean; ten scores."""

    def __init__(self, seed):
        self.dropout_stream = ag.RandomStream(seed)
        shape = {"n_layer": 2, "n_head": 4, "n_embd": C, "n_positions": T, "vocab_size": 10, "initializer_range": C**-0.5}
        config = GPTConfig(**shape, dropout=0.1, attn_pdrop=0.0)
        init = Initializer(config, seed)
        self.patch = nn.Linear(P * P, C, init=lambda shape: init.normal(shape, 3))  # in a GPT: the table of tokens
        self.position = nn.Embedding(T, C, init=lambda shape: init.normal(shape, 3))
        self.h = composed_blocks(config, init, self.dropout_stream, causal=False)  # a GPT's blocks without its mask
        self.ln = nn.LayerNorm(C)
        self.head = nn.Linear(C, 10, init=init.normal)

    def forward(self, x):
        x = self.patch(ag.Tensor(2 * x - 1)) + self.position(np.arange(T))  # (B, T, P P) -> (B, T, C)
        for block in self.h:
            x = block(x)
        return self.head(self.ln(x).mean(axis=1))  # (B, T, C) -> (B, C) -> (B, 10)

    def loss(self, x, digits):
        return ag.cross_entropy(self(x), digits)

    def right(self, x, digits):  # the share of images whose digit gets the highest score
        with nn.evaluating(self), ag.no_grad():
            return (self(x).data.argmax(axis=1) == digits).mean()


def rollout(model, x):
    """How much of each patch reaches the mean at the end, by attention alone: (B, T), rows add up to 1.

    What a block passes on is half its input and half attention's, (I + A) / 2 with A the mean of the heads; blocks in a row are the product.
    """
    with nn.evaluating(model), ag.use_kernels("reference"), ag.record() as records:
        model(x)
    product = np.eye(T)
    for attention in (record.saved.weights.mean(axis=1) for record in records if record.op.__name__ == "Attention"):  # (B, T, T)
        product = (np.eye(T) + attention) / 2 @ product
    return product.mean(axis=1)


heading(f"{len(images):,} images, {args.folds} of five test sets; {args.updates} updates of {BATCH}: half a minute or less for each")
scores = []
for fold, (training, test) in enumerate(list(StratifiedKFold(5, shuffle=True, random_state=0).split(pixels, digits))[: args.folds]):
    regression = LogisticRegression(max_iter=1000).fit(pixels[training] / 16, digits[training])
    model = VisionTransformer(seed=fold)
    items = Items(moved[training].reshape(-1, T, P * P), np.repeat(digits[training], 9))
    optimizer = AdamW(model, lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)
    options = {"batch_size": BATCH, "peak": RATE, "floor": 0.0, "warmup": args.updates // 10, "seed": fold, "report": 150}
    _, seconds = train(model, items, args.updates, optimizer=optimizer, **options)
    x, answers = patches(images[test]), digits[test]
    scores.append((regression.score(pixels[test] / 16, answers), model.right(x, answers)))
    print(f"test set {fold}: logistic regression {scores[-1][0]:.1%}, transformer {scores[-1][1]:.1%}, {seconds.sum():.0f} s")
mean = np.mean(scores, axis=0)
print(f"mean: logistic regression {mean[0]:.1%} with {64 * 10 + 10:,} weights, transformer {mean[1]:.1%} with {model.n_parameters():,}")

heading(f"attention rollout: how often is the last model right if {T // 4} of the {T} patches are blank?")
seen = rollout(model, x)
orders = {"looked at most": -seen, "most ink": -x.mean(axis=2), "any": np.random.default_rng(0).random(seen.shape), "looked at least": seen}
for name, order in orders.items():
    blank = x.copy()
    np.put_along_axis(blank, np.argsort(order, axis=1)[:, : T // 4, None], 0, axis=1)
    print(f"{name:16} {model.right(blank, answers):.1%}")
print(f"none blank: {model.right(x, answers):.1%}; all patches in another order, the same for all images: ", end="")
print(f"{model.right(x[:, np.random.default_rng(2).permutation(T)], answers):.1%}")
if args.plot:
    shown = [int(np.flatnonzero(answers == digit)[0]) for digit in (0, 4, 7)]
    draw_images(args.plot, {"image": images[test[shown]], "looks at": seen[shown].reshape(-1, n, n)})
