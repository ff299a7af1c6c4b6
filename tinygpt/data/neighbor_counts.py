"""What a masked word can be guessed from without a model: counts of the tokens next to it, in the training text.

    guesses = NeighborCounts(train_tokens, n_vocab).guess(ids, targets, unknown=(tokenizer.mask_id,))
    guesses["bigram"].nats, guesses["both neighbors"].accuracy

Two baselines, for the same targets as the model's, from the same rows: a neighbor that is masked there is not known here either.

    bigram           p(w | a)    = (n(a w) + k p(w)) / (n(a) + k)            a: the token in front, p(w): add-one unigram
    both neighbors   p(w | a, c) = (n(a w c) + m q(w)) / (n(a . c) + m)      c: the token behind
                     q(w) is proportional to p(w | a) p(w | c) / p(w): what both say if each speaks for itself

Where one neighbor is not known, the other decides; where none is, p(w). k and m are the best of several on the validation targets themselves,
for loss and for accuracy apart, which favors the baselines.

Source: back-off to the less specific counts as in MacKay and Peto 1995, A hierarchical Dirichlet language model, section 3; the product of
two conditionals over the marginal is naive Bayes with two observations.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from tinygpt.data.windows import IGNORED

_STRENGTHS = (10, 30, 100, 300)  # k: what p(w) weighs against the counts of one neighbor
_JOINT_STRENGTHS = (0.3, 3, 10)  # m: what q(w) weighs against the counts of both
_TUNED_ON = 1000  # targets that k and m are chosen on
_AT_ONCE = 256  # targets whose (targets, V) probabilities are in memory at once
_UNKNOWN = -1


class Guess(NamedTuple):
    """Mean cross-entropy in nats per target, and the share of targets that are the likeliest token."""

    nats: float
    accuracy: float


class CountTable:
    """How often each word follows, or stands next to, each context: of all (context, word) pairs those that occur."""

    def __init__(self, contexts: np.ndarray, words: np.ndarray, n_vocab: int) -> None:
        pairs, counts = np.unique(contexts * n_vocab + words, return_counts=True)
        self.words, self.counts = pairs % n_vocab, counts.astype(np.float32)
        self.contexts, self.starts = np.unique(pairs // n_vocab, return_index=True)
        self.ends = np.append(self.starts[1:], len(pairs))

    def rows(self, contexts: np.ndarray, n_vocab: int) -> np.ndarray:
        """(B, V) counts of each word in each of the contexts (B,)."""
        rows = np.zeros((len(contexts), n_vocab), dtype=np.float32)
        at = np.minimum(np.searchsorted(self.contexts, contexts), len(self.contexts) - 1)
        for row, i in zip(np.flatnonzero(self.contexts[at] == contexts), at[self.contexts[at] == contexts], strict=True):
            part = slice(self.starts[i], self.ends[i])
            rows[row, self.words[part]] = self.counts[part]
        return rows


class NeighborCounts:
    """Counts of tokens (N,) and of their neighbors, N >= 3."""

    def __init__(self, tokens: np.ndarray, n_vocab: int) -> None:
        tokens = np.asarray(tokens).astype(np.int64)
        self.n_vocab = n_vocab
        self.unigram = ((np.bincount(tokens, minlength=n_vocab) + 1) / (len(tokens) + n_vocab)).astype(np.float32)
        self.after = CountTable(tokens[:-1], tokens[1:], n_vocab)
        self.before = CountTable(tokens[1:], tokens[:-1], n_vocab)
        self.between = CountTable(tokens[:-2] * n_vocab + tokens[2:], tokens[1:-1], n_vocab)

    def guess(self, ids: np.ndarray, targets: np.ndarray, unknown: Sequence[int]) -> dict[str, Guess]:
        """Both baselines for rows (B, T) and their targets, as `MaskedWindows.batch` gives them; the first and the last column are marks, and tell
        nothing, nor does a neighbor that is one of `unknown`."""
        known = np.where(np.isin(ids, unknown), _UNKNOWN, ids)
        known[:, [0, -1]] = _UNKNOWN
        row, column = np.nonzero(targets != IGNORED)
        words, a, c = targets[row, column], known[row, column - 1], known[row, column + 1]
        some = np.random.default_rng(0).permutation(len(words))[:_TUNED_ON]
        found = {}
        for name, after, strengths in (
            ("bigram", np.full_like(c, _UNKNOWN), [(k, 0.0) for k in _STRENGTHS]),
            ("both neighbors", c, list(itertools.product(_STRENGTHS, _JOINT_STRENGTHS))),
        ):
            tried = {each: self._measure(words[some], a[some], after[some], *each) for each in strengths}
            for_nats, for_accuracy = min(tried, key=lambda s: tried[s].nats), max(tried, key=lambda s: tried[s].accuracy)
            nats, accuracy = (self._measure(words, a, after, *best) for best in (for_nats, for_accuracy))
            found[name] = Guess(nats.nats, accuracy.accuracy)
        return found

    def _measure(self, words: np.ndarray, a: np.ndarray, c: np.ndarray, k: float, m: float) -> Guess:
        nats, correct = 0.0, 0
        for part, p in self._probabilities(a, c, k, m):
            nats -= float(np.log(p[np.arange(len(p)), words[part]]).sum(dtype=np.float64))
            correct += int((p.argmax(axis=1) == words[part]).sum())
        return Guess(nats / len(words), correct / len(words))

    def _probabilities(self, a: np.ndarray, c: np.ndarray, k: float, m: float) -> Iterator[tuple[slice, np.ndarray]]:
        """Of each part of the targets, p(w | a, c): (B, V)."""
        for start in range(0, len(a), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            n_a, n_c = self.after.rows(a[part], self.n_vocab), self.before.rows(c[part], self.n_vocab)
            p = (n_a + k * self.unigram) / (n_a.sum(axis=1, keepdims=True) + k)  # unigram where the neighbor is not known
            if (c[part] != _UNKNOWN).any():
                p *= (n_c / self.unigram + k) / (n_c.sum(axis=1, keepdims=True) + k)  # p(w | c) / p(w)
                p /= p.sum(axis=1, keepdims=True)
                both = np.where((a[part] == _UNKNOWN) | (c[part] == _UNKNOWN), _UNKNOWN, a[part] * self.n_vocab + c[part])
                n_both = self.between.rows(both, self.n_vocab)
                p = (n_both + m * p) / (n_both.sum(axis=1, keepdims=True) + m)
            yield part, p
