"""24. Pictures: a transformer is not a language model. The same blocks read patches of an image.

    python examples/learn/24_vision.py                              # needs scikit-learn: pip install -e ".[classify]"
    python examples/learn/24_vision.py --plot digits.png            # with matplotlib: pip install -e ".[plot]"
    python examples/learn/24_vision.py --folds 5 --updates 3000     # minutes: the full measurement

Seconds. A vision transformer (Dosovitskiy et al. 2020, arXiv:2010.11929) on scikit-learn's 1,797 digits of 8 x 8 pixels, against
logistic regression on the same split; then which patches it looks at, by attention rollout (Abnar and Zuidema 2020, arXiv:2005.00928).
"""

import argparse
import sys
import time

import numpy as np
from show import heading, say
from train import draw_images, train

import autograd as ag
from autograd import nn
from tinygpt import GPTConfig
from tinygpt.models.blocks import composed_blocks
from tinygpt.models.gpt import Initializer

try:
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
except ImportError:
    sys.exit('error: scikit-learn is missing, expected it for the images and the baseline; pip install -e ".[classify]"')

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw digits and what the model looks at into this picture")
parser.add_argument("--folds", type=int, default=1, choices=range(1, 6), help="how many of five test sets to measure on (1)")
parser.add_argument("--updates", type=int, default=900, help="updates of each model (900)")
args = parser.parse_args()

SIDE, P, C, BATCH, RATE = 8, 2, 48, 64, 0.006  # pixels of an image and of a patch on each side; channels
T = (SIDE // P) ** 2  # patches: the positions of the sequence
images, digits = load_digits(return_X_y=True)
images = (images.reshape(-1, SIDE, SIDE) / 16).astype(np.float32)  # (N, 8, 8), 0 to 1


def patches(images):
    """(B, 8, 8) -> (B, T, P P): from left to right and from top to bottom, like words on a page."""
    n = SIDE // P
    return images.reshape(-1, n, P, n, P).transpose(0, 1, 3, 2, 4).reshape(-1, T, P * P)


def shifted(images, rng):
    """Each image moved by -1, 0 or 1 pixel in both directions: other pixels, the same digit."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    down, right = rng.integers(0, 3, (2, len(images), 1)) + np.arange(SIDE)  # (B, 8) each
    return padded[np.arange(len(images))[:, None, None], down[:, :, None], right[:, None, :]]


class VisionTransformer(nn.Module):
    """Patches as vectors, plus a learned row for each position; blocks in which all patches see each other; the mean; ten scores."""

    def __init__(self, seed):
        self.dropout_stream = ag.RandomStream(seed)
        config = GPTConfig(n_layer=2, n_head=4, n_embd=C, n_positions=T, vocab_size=10, dropout=0.1, attn_pdrop=0.0, initializer_range=C**-0.5)
        init = Initializer(config, seed)
        self.patch = nn.Linear(P * P, C, init=lambda shape: init.normal(shape, 3))  # instead of a table of tokens
        self.position = nn.Embedding(T, C, init=lambda shape: init.normal(shape, 3))
        self.h = composed_blocks(config, init, self.dropout_stream, causal=False)  # a GPT's blocks without its mask
        self.ln = nn.LayerNorm(C)
        self.head = nn.Linear(C, 10, init=init.normal)

    def forward(self, images):
        x = self.patch(ag.Tensor(patches(images) * 2 - 1)) + self.position(np.arange(T))  # (B, T, P P) -> (B, T, C)
        for block in self.h:
            x = block(x)
        return self.head(self.ln(x).mean(axis=1))  # (B, T, C) -> (B, C) -> (B, 10)

    def loss(self, images, digits):
        return ag.cross_entropy(self(images), digits)
