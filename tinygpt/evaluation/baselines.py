"""What a model has to beat: the same architecture before training, and counts of token pairs. Both are scored as any model is.

Bigram(train_ids, validation_ids, config), untrained(config, seed)
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

import autograd as ag
from autograd import backend, nn
from tinygpt.config import GPTConfig
from tinygpt.data.neighbor_counts import CountTable
from tinygpt.data.windows import bigram_nats
from tinygpt.models.gpt import GPT

if TYPE_CHECKING:
    from tinygpt.models.cache import View

_STRENGTHS = (1, 3, 10, 30, 100, 300, 1000)  # what p(b) weighs against the counts: the best one on validation tokens is taken
_MOST_TOKENS = 20_000_000  # that are counted


def untrained(config: GPTConfig, seed: int = 0) -> GPT:
    """The model with the weights that its training began with, if that had this seed."""
    return GPT(config, seed=seed)


class Bigram(nn.Module):
    """p(b | a) = (count(a b) + k p(b)) / (count(a) + k), with add-one p(b): `bigram_nats`'s model as a `Decodable`.

    What stands for the hidden state of a token is its id, (B, T, 1), and the output layer looks up the counts of what followed it: so choices,
    next words, likelihoods and generation come from the code that scores every model.
    train, validation   (N,) ids; the second ones only choose k, which favors this baseline. At most 20 million each are used
    config              that of the model next to it: its context decides what is cut, so that both are asked the same
    """

    def __init__(self, train: np.ndarray, validation: np.ndarray, config: GPTConfig) -> None:
        train, validation = train[:_MOST_TOKENS], validation[:_MOST_TOKENS]
        self.config = GPTConfig(n_layer=1, n_head=1, n_embd=1, n_positions=config.n_positions, vocab_size=config.vocab_size)
        self.dtype = np.dtype(np.float32)
        self.wte = nn.Embedding(1, 1)  # nothing is looked up in it: its dtype is asked for
        self.k = min(_STRENGTHS, key=lambda k: bigram_nats(train, validation, config.vocab_size, (k,)))
        self.lm_head = _Followers(train, config.vocab_size, self.k)

    def hidden(
        self, ids: ArrayLike, attention_mask: ArrayLike | None = None, cache: "View | None" = None, last_only: bool = False
    ) -> ag.Tensor:
        """The ids themselves: nothing before a token counts."""
        tokens = np.asarray(ids, dtype=np.float64)[..., None]
        return ag.Tensor(backend.to_device(tokens[:, -1:] if last_only else tokens))


class _Followers(nn.Module):
    def __init__(self, tokens: np.ndarray, n_vocab: int, k: float) -> None:
        ids = np.asarray(tokens).astype(np.int64)
        self.k, self.n_vocab = k, n_vocab
        self.unigram = ((np.bincount(ids, minlength=n_vocab) + 1) / (len(ids) + n_vocab)).astype(np.float32)
        self.after = CountTable(ids[:-1], ids[1:], n_vocab)

    def forward(self, hidden: ag.Tensor) -> ag.Tensor:
        """(..., 1) ids -> (..., V) log-probabilities of what follows."""
        ids = backend.to_host(hidden.data)[..., 0].astype(np.int64)
        counts = self.after.rows(ids.reshape(-1), self.n_vocab)
        p = (counts + self.k * self.unigram) / (counts.sum(axis=1, keepdims=True) + self.k)
        return ag.Tensor(backend.to_device(np.log(p).reshape(*ids.shape, self.n_vocab)))
