"""Beam search: the likeliest continuation that several parallel beams find.

beam_search(model, ids, 20, n_beams=4)[0].ids

`Beams` decides which extensions are kept, for a GPT here and for an encoder-decoder in translate.py.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tinygpt.errors import InvalidInput
from tinygpt.inference.decoding import DecodingState, end_tokens
from tinygpt.inference.sampling import log_softmax, top_ids
from tinygpt.models.protocols import Decodable

EarlyStopping = Literal[False, True, "never"]


@dataclass(frozen=True)
class Beam:
    """A continuation. ids: its new tokens, an end token included. score: log-probability / length ** length_penalty."""

    ids: list[int]
    log_prob: float
    score: float
    stop_reason: str


class Beams:
    """One search: its open ends, and the best finished texts so far.

    Every step extends each open end by every token and keeps the n_beams likeliest. One that ends, on an end token or at max_new_tokens, is
    set aside if it is among the n_beams likeliest. With one beam the search is greedy.

    length_penalty   the score divides by length to this power: above 0 it favors longer texts, whose log-probability is always lower
    early_stopping   True: the search stops with n_beams finished texts. False: when, in addition, the best open end would not beat the worst
                     of them if it ended where it is. "never": not before it could not at any length either
    done             the search has stopped; `finished` is then the result, best first
    Raises ValueError for fewer than one beam.
    Source  Graves 2012, arXiv:1211.3711, algorithm 1; length penalty, early stopping and ties as in Hugging Face's transformers.
    """

    def __init__(
        self,
        n_beams: int,
        ends: Collection[int],
        max_new_tokens: int,
        *,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
    ) -> None:
        if n_beams < 1:
            raise InvalidInput(f"n_beams: {n_beams}, expected at least 1; 1 is greedy")
        if early_stopping not in (False, True, "never"):
            raise InvalidInput(f"early_stopping: {early_stopping!r}, expected False, True or 'never'")
        self.n, self.ends, self.max_new_tokens = n_beams, ends, max_new_tokens
        self.length_penalty, self.early_stopping = length_penalty, True if n_beams == 1 else early_stopping
        self.open: list[list[int]] = [[] for _ in range(n_beams)]
        self.log_probs = np.full(n_beams, -np.inf)
        self.log_probs[0] = 0.0  # all are empty; only the first counts until they differ
        self.finished: list[Beam] = []
        self.done = max_new_tokens <= 0

    def extend(self, log_probs: np.ndarray) -> tuple[list[int], list[int]]:
        """From log_probs (n_beams, V) of the token after each open end: which ends are continued, by which tokens; n_beams of each."""
        totals = self.log_probs[:, None] + log_probs
        v, length, last = totals.shape[1], len(self.open[0]) + 1, len(self.open[0]) + 1 == self.max_new_tokens
        best = top_ids(totals.reshape(-1), min(self.n * (1 + max(len(self.ends), 1)), totals.size))  # enough that n_beams stay open
        still_open: list[tuple[int, int, float]] = []  # row, token, log-probability
        for rank, index in enumerate(best.tolist()):
            row, token, log_prob = index // v, index % v, float(totals.reshape(-1)[index])
            if log_prob == -math.inf:
                continue
            if token not in self.ends and not last:
                still_open.append((row, token, log_prob))
            elif rank < self.n:
                reason = "eos" if token in self.ends else "length"
                self.finished.append(Beam([*self.open[row], token], log_prob, self.score(log_prob, length), reason))
        self.finished = sorted(self.finished, key=lambda beam: -beam.score)[: self.n]
        still_open += [(row, token, -math.inf) for row, token, _ in still_open[:1]] * self.n  # for a vocabulary smaller than the beam
        self.done = last or not still_open or self._settled(still_open[0][2], length)
        if not still_open:
            return [], []
        kept = still_open[: self.n]
        self.log_probs = np.array([log_prob for _, _, log_prob in kept])
        self.open = [[*self.open[row], token] for row, token, _ in kept]
        return [row for row, _, _ in kept], [token for _, token, _ in kept]

    def score(self, log_prob: float, length: int) -> float:
        divisor: float = length**self.length_penalty
        return log_prob / divisor

    def _settled(self, best_open: float, length: int) -> bool:
        """Whether the finished texts are the result: there are n_beams, and no open end is expected to beat the worst of them."""
        if len(self.finished) < self.n:
            return False
        longest = self.max_new_tokens if self.early_stopping == "never" and self.length_penalty > 0 else length
        return self.early_stopping is True or self.score(best_open, longest) <= self.finished[-1].score


def beam_search(
    model: Decodable, ids: Sequence[int], max_new_tokens: int, *, n_beams: int = 4, length_penalty: float = 1.0,
    early_stopping: EarlyStopping = False, eos_id: int | Collection[int] | None = None, use_cache: bool = True, n_tokens: int | None = None,
) -> list[Beam]:  # fmt: skip
    """The best continuations of one prompt that a search with n_beams open ends finds, best first; see `Beams`.

    n_tokens   only ids below it are considered: a tokenizer's n_vocab, where the model has more rows than that
    Raises ValueError for fewer than one beam, and as `DecodingState` does.
    """
    beams = Beams(n_beams, end_tokens(eos_id), max_new_tokens, length_penalty=length_penalty, early_stopping=early_stopping)
    state = DecodingState(model, [list(ids)] * n_beams, use_cache=use_cache, max_new_tokens=max_new_tokens)
    while not beams.done:
        rows, tokens = beams.extend(log_softmax(state.logits()[:, :n_tokens]))
        if not beams.done:
            state.reorder(rows)
            state.append(tokens)
    return beams.finished
