"""Beam search: the likeliest continuation that several parallel beams find.

beam_search(model, ids, 20, n_beams=4)[0].ids
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from tinygpt.errors import InvalidInput
from tinygpt.inference.decoding import DecodingState, end_tokens
from tinygpt.inference.sampling import log_softmax, top_ids
from tinygpt.models.protocols import Decodable


@dataclass(frozen=True)
class Beam:
    """A continuation. ids: its new tokens, an end token included. score: log-probability / length ** length_penalty."""

    ids: list[int]
    log_prob: float
    score: float
    stop_reason: str


def beam_search(
    model: Decodable, ids: Sequence[int], max_new_tokens: int, *, n_beams: int = 4, length_penalty: float = 1.0,
    eos_id: int | Collection[int] | None = None, use_cache: bool = True, n_tokens: int | None = None,
) -> list[Beam]:  # fmt: skip
    """The best continuations of one prompt that a search with n_beams open ends finds, best first.

    Every step extends each open end by every token and keeps the n_beams likeliest. One that ends on an end token is set aside; the
    search stops when no open end can still beat the worst of n_beams finished ones. With one beam it is greedy.

    length_penalty   the score divides by length to this power: above 0 it favors longer texts, whose log-probability is always lower
    n_tokens         only ids below it are considered: a tokenizer's n_vocab, where the model has more rows than that
    Raises ValueError for fewer than one beam, and as `DecodingState` does.
    Source  Graves 2012, arXiv:1211.3711, algorithm 1; the length penalty in this form: Hugging Face's transformers.
    """
    if n_beams < 1:
        raise InvalidInput(f"n_beams: {n_beams}, expected at least 1; 1 is greedy")
    ends = end_tokens(eos_id)
    state = DecodingState(model, [list(ids)] * n_beams, use_cache=use_cache, max_new_tokens=max_new_tokens)
    n_prompt = len(ids)
    log_probs = np.full(n_beams, -np.inf)
    log_probs[0] = 0.0  # all rows are the prompt; only the first counts until they differ
    finished: list[Beam] = []
    for length in range(1, max_new_tokens + 1):
        totals = log_probs[:, None] + log_softmax(state.logits()[:, :n_tokens])  # (beams, V)
        v = totals.shape[1]
        best = top_ids(totals.reshape(-1), min(n_beams * (1 + len(ends)), totals.size))  # enough that n_beams stay open
        still_open: list[tuple[int, int, float]] = []  # row, token, log-probability
        for rank, index in enumerate(best.tolist()):
            row, token, log_prob = index // v, index % v, float(totals.reshape(-1)[index])
            if log_prob == -math.inf:
                continue
            if token not in ends:
                still_open.append((row, token, log_prob))
            elif rank < n_beams:
                finished.append(Beam([*state.rows[row][n_prompt:], token], log_prob, log_prob / length**length_penalty, "eos"))
        finished = sorted(finished, key=lambda beam: -beam.score)[:n_beams]
        if not still_open:
            break
        row, token, _ = still_open[0]
        still_open += [(row, token, -math.inf)] * n_beams  # for a vocabulary smaller than the beam
        rows, tokens, nexts = zip(*still_open[:n_beams], strict=True)
        state.reorder(rows)
        state.append(tokens)
        log_probs = np.array(nexts)
        if len(finished) == n_beams and log_probs[0] / length**length_penalty <= finished[-1].score:
            break
    else:
        for row, log_prob in enumerate(log_probs):
            if log_prob > -math.inf and max_new_tokens:
                beam = state.rows[row][n_prompt:]
                finished.append(Beam(beam, float(log_prob), float(log_prob) / len(beam) ** length_penalty, "length"))
    return sorted(finished, key=lambda beam: -beam.score)[:n_beams]
