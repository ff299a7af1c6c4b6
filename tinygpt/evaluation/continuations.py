"""Log-probabilities of continuations of a context, many at once: what multiple choice and next-word tasks come down to.

    score(model, [Request(context, [option, option, ...]), ...])   # ids -> a Score for each option

The options of a context are read in one row after it, each seeing the context and itself (`tinygpt.models.cache.Branches`): the context is
computed once, and the output layer at the options' tokens alone.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

import autograd as ag
from autograd import backend, inference, nn
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.models.cache import Branches
from tinygpt.models.protocols import Decodable

_TOKENS = 4096  # in a forward call, padding included
_LOGITS_BYTES = 64 << 20  # of one piece of the output layer's result


class Request(NamedTuple):
    """A context and what may follow it, as ids: at least one each."""

    context: Sequence[int]
    options: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Score:
    """log_prob: of a continuation's tokens together, in nats. greedy: whether each is the likeliest at its position. n_cut: ids that the model
    could not read, at the context's start, and at the end of a continuation longer than all it reads at once."""

    log_prob: float
    greedy: bool
    n_tokens: int
    n_cut: int = 0


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of a context and of what follows it: those of the joined text, divided where the context's own end.

    White space at the context's end counts as the continuation's start: byte-level tokens begin with it. An empty context is what texts
    begin with: the tokenizer's `start`, or its end token. Raises ValueError for a continuation without a token, and for an empty context with
    a tokenizer that has neither.
    """
    kept = context.rstrip()
    continuation, context = context[len(kept) :] + continuation, kept
    start = list(tokenizer.start)
    if not context and not start:
        if tokenizer.eos_id is None:
            rule = "a tokenizer with a token that texts begin or end with; give the task a context, or take a tokenizer of kind bpe"
            raise InvalidInput(f"an empty context with a tokenizer of kind {tokenizer.kind}, expected {rule}")
        start = [tokenizer.eos_id]
    n = len(tokenizer.encode(context, allow_special=True))
    ids = tokenizer.encode(context + continuation, allow_special=True)
    if not ids[n:]:
        raise InvalidInput(f"continuation {continuation!r:.80} after {context[-40:]!r}: no token of its own, expected at least one")
    return start + ids[:n], ids[n:]


def score(model: Decodable, requests: Sequence[Request], progress: Callable[[int], None] = lambda n: None) -> list[list[Score]]:
    """A `Score` for each option of each request.

    A context that is too long for an option loses ids at its start, an option longer than all that the model reads its end (`Score.n_cut`).
    progress: is told how many requests are finished, after each forward call. Raises ValueError for an empty context or option.
    """
    rows = [row for number, request in enumerate(requests) for row in _rows(model, number, request)]
    rows.sort(key=lambda row: -len(row.ids))  # the longest first: what takes most memory fails at once
    found: list[list[Score | None]] = [[None] * len(request.options) for request in requests]
    left = [len(request.options) for request in requests]
    with nn.evaluating(model), inference.mode():
        for batch in _batches(rows):
            for row, scores in zip(batch, _score_rows(model, batch), strict=True):
                for option, each in zip(row.options, scores, strict=True):
                    lost = len(requests[row.request].options[option]) - each.n_tokens
                    found[row.request][option] = replace(each, n_cut=each.n_cut + lost) if lost else each
                left[row.request] -= len(scores)
            progress(left.count(0))
    return [[each for each in scores if each is not None] for scores in found]


class _Row(NamedTuple):
    """Some options of a request after its context."""

    request: int
    options: list[int]
    ids: list[int]  # the context, then each option without its last token, which predicts nothing
    n_context: int
    n_cut: int
    targets: list[list[int]]  # the ids of each option


def _rows(model: Decodable, number: int, request: Request) -> Iterator[_Row]:
    """As many options in a row as the model has positions for: those of one length of the context."""
    most, alone = model.config.n_positions, model.config.positions == "alibi"  # whose distances are counted in columns
    by_cut: dict[int, list[int]] = {}
    for i, option in enumerate(request.options):
        if not len(request.context) or not len(option):
            found = f"a context of {len(request.context)} and an option of {len(option)} tokens"
            raise InvalidInput(f"score: {found}, expected at least one of each; give the item a context and an option")
        by_cut.setdefault(max(0, len(request.context) + min(len(option), most) - 1 - most), []).append(i)
    for cut, options in by_cut.items():
        context = list(request.context[cut:])
        row = _Row(number, [], list(context), len(context), cut, [])
        for i in options:
            ids = list(request.options[i][:most])
            if row.options and (alone or len(row.ids) + len(ids) - 1 > most):
                yield row
                row = _Row(number, [], list(context), len(context), cut, [])
            row.options.append(i)
            row.targets.append(ids)
            row.ids.extend(ids[:-1])
        yield row


def _batches(rows: Sequence[_Row]) -> Iterator[list[_Row]]:
    """Rows of similar length together."""
    start = 0
    while start < len(rows):
        n = max(1, _TOKENS // len(rows[start].ids))
        yield list(rows[start : start + n])
        start += n


def _score_rows(model: Decodable, rows: Sequence[_Row]) -> list[list[Score]]:
    t = len(rows[0].ids)  # the longest
    ids, positions = np.zeros((len(rows), t), dtype=np.int64), np.tile(np.arange(t), (len(rows), 1))
    branch = np.full((len(rows), t), -1)  # 0 in the context, 1, 2, ... in its continuations, -1 in padding, which sees itself
    picked: list[tuple[int, int]] = []  # (row, column) of the predictions
    for b, row in enumerate(rows):
        ids[b, : len(row.ids)], branch[b, : row.n_context] = row.ids, 0
        column = row.n_context
        for number, target in enumerate(row.targets, start=1):
            n = len(target) - 1
            branch[b, column : column + n] = number
            positions[b, column : column + n] = row.n_context + np.arange(n)
            picked += [(b, row.n_context - 1), *((b, column + i) for i in range(n))]
            column += n
        positions[b, column:] = 0
    mask = None
    if any(len(row.targets) > 1 for row in rows):
        mask = backend.to_device(((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))[:, None])  # (B, 1, T, T)
    hidden = model.hidden(ids, cache=Branches(positions, mask))  # (B, T, C)
    where = np.array(picked)
    targets = np.array([token for row in rows for target in row.targets for token in target])
    log_p, greedy = _log_probs(model, hidden[where[:, 0], where[:, 1]], targets)
    scores: list[list[Score]] = []
    start = 0
    for row in rows:
        scores.append([])
        for target in row.targets:
            end = start + len(target)
            scores[-1].append(Score(float(log_p[start:end].sum()), bool(greedy[start:end].all()), len(target), row.n_cut))
            start = end
    return scores


def _log_probs(model: Decodable, hidden: ag.Tensor, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) log-probabilities of targets, each predicted from its row of hidden (N, C), and whether each is the likeliest."""
    log_p, greedy = np.empty(len(targets)), np.empty(len(targets), dtype=bool)
    n = max(1, _LOGITS_BYTES // (4 * model.config.vocab_size))
    for start in range(0, len(targets), n):
        rows = slice(start, start + n)
        logits = ag.cast(model.lm_head(hidden[rows]), model.wte.weight.dtype)
        log_p[rows] = backend.to_host(ag.log_softmax(logits)[np.arange(len(targets[rows])), targets[rows]].data)
        greedy[rows] = backend.to_host(logits.data.argmax(axis=-1)) == targets[rows]
    return log_p, greedy
