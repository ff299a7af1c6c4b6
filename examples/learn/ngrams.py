"""What scripts 24, 26, 30 and 31 share: a text without repeated paragraphs, counts of n-grams, and probabilities from them."""

import pydoc_data.topics
import re
from collections import Counter

import numpy as np


def paragraphs():
    """Python's language manual, each of its paragraphs once: several topics repeat those of others, which would make prediction too easy."""
    text = "\n\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
    return list(dict.fromkeys(" ".join(part.split()) for part in re.split(r"\n\s*\n", text) if part.strip()))


def as_ids(tokens, known):
    """Tokens as numbers: an id for each of `known`, in order, and 0 for all others."""
    numbers = {token: i for i, token in enumerate(known, start=1)}
    return [numbers.get(token, 0) for token in tokens]


def grams(ids, n):
    """All runs of n tokens, as tuples."""
    return zip(*(ids[i:] for i in range(n)), strict=False)


class Counts:
    """How often each run of 1 to `order` tokens occurs in a text, and three ways to make probabilities of it.

    runs[n]    run of n tokens -> how often
    after[n]   run of n tokens -> how often it is followed by a token
    """

    def __init__(self, ids, order, n_vocab):
        self.order, self.n_vocab = order, n_vocab
        self.runs = [Counter(grams(ids, n)) for n in range(order + 1)]
        self.runs[0] = Counter({(): len(ids)})
        self.after = [Counter(grams(ids[:-1], n)) for n in range(order)]
        self.after[0] = self.runs[0]

    def share(self, context, token):
        """N(context token) / N(context): 0 for what was never seen, also after a context that was never seen."""
        seen = self.after[len(context)][context]
        return self.runs[len(context) + 1][(*context, token)] / seen if seen else 0.0

    def add_one(self, context, token):
        """(N(context token) + 1) / (N(context) + V): as if each token had been seen once more everywhere. Laplace."""
        return (self.runs[len(context) + 1][(*context, token)] + 1) / (self.after[len(context)][context] + self.n_vocab)

    def interpolated(self, context, token, weight=0.5):
        """weight x share + (1 - weight) x the same with a context one token shorter; at the end 1 / V. Jelinek and Mercer 1980."""
        shorter = self.interpolated(context[1:], token, weight) if context else 1 / self.n_vocab
        return weight * self.share(context, token) + (1 - weight) * shorter if self.after[len(context)][context] else shorter


class KneserNey:
    """Interpolated Kneser-Ney, the best smoothing of n-grams (Chen and Goodman 1999, section 4): every count gives D of itself away,

        P(w | c) = max(N(c w) - D, 0) / N(c) + D N+(c) / N(c) P(w | c without its first token)

    with N+(c) the number of different tokens after c. Shorter contexts count differently: not how often "w" occurs but after how many different
    tokens. "Francisco" is frequent, but only after "San", so it is no good guess elsewhere. D = n1 / (n1 + 2 n2): how many counts are 1, and 2.
    """

    def __init__(self, counts):
        self.order, self.n_vocab = counts.order, counts.n_vocab
        # For the longest runs their counts; for shorter ones, how many different tokens stand before them.
        self.runs = [Counter(run[1:] for run in counts.runs[n + 1]) for n in range(counts.order)] + [counts.runs[counts.order]]
        self.total, self.different, self.discount = [], [], []
        for runs in self.runs[1:]:
            total, different = Counter(), Counter()
            for run, n in runs.items():
                total[run[:-1]] += n
                different[run[:-1]] += 1
            frequency = Counter(runs.values())
            self.total.append(total)
            self.different.append(different)
            self.discount.append(frequency[1] / (frequency[1] + 2 * frequency[2]) if frequency[1] else 0.5)

    def __call__(self, context, token):
        """P(token | context), context a tuple of at most order - 1 tokens."""
        n = len(context)
        shorter = self(context[1:], token) if n else 1 / self.n_vocab
        total = self.total[n][context]
        if not total:
            return shorter
        left, given = max(self.runs[n + 1][(*context, token)] - self.discount[n], 0), self.discount[n] * self.different[n][context]
        return (left + given * shorter) / total


def nats(probability, ids, order, first=0):
    """Mean of -ln P(token | the order - 1 tokens before) over ids[first:]; infinite if one is 0."""
    found = [probability(tuple(ids[max(0, i - order + 1) : i]), ids[i]) for i in range(first, len(ids))]
    with np.errstate(divide="ignore"):
        return float(-np.log(found).mean())
