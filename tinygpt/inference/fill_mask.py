"""What an encoder says of masked words: the likeliest tokens for each mask of a text, and how often it is right on held-out windows.

for mask in fill_masks(model, tokenizer, "Return the [MASK] of an array", k=5):
    for token in mask: print(token.text, token.probability)
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from autograd import backend, inference, nn
from tinygpt.data.neighbor_counts import Guess
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.data.windows import IGNORED
from tinygpt.errors import InvalidInput
from tinygpt.inference.sampling import softmax
from tinygpt.models.encoder import Encoder
from tinygpt.models.protocols import Batches

_OTHERS = ("[MASK]", "<mask>")  # how other models' users write it


class Candidate(NamedTuple):
    """A token that may stand at a mask: its text, with the blank in front of it where it has one, and its probability."""

    text: str
    probability: float
    id: int


def fill_masks(model: Encoder, tokenizer: Tokenizer, text: str, k: int = 5) -> list[list[Candidate]]:
    """The k likeliest tokens for each mask token in a text, from the first mask to the last, likeliest first.

    Each mask is filled by itself, as if the others stayed masked: what is likeliest for each need not fit together.
    Raises ValueError for a text without a mask, for one longer than the context, for a tokenizer without a mask token, and for k below 1.
    """
    if tokenizer.mask_id is None:
        rule = "expected one with a mask token, such as [MASK] or <mask>; take an encoder's checkpoint"
        raise InvalidInput(f"tokenizer: {tokenizer} has no mask token, {rule}")
    if k < 1:
        raise InvalidInput(f"top_k: {k}, expected at least 1")
    mask = tokenizer.token_bytes(tokenizer.mask_id).decode()
    wrapped = tokenizer.encode_wrapped(text, n_positions=model.config.n_positions, allow_special=True)
    ids = np.array(wrapped.ids)
    places = np.flatnonzero(ids == tokenizer.mask_id)
    if not places.size:
        other = next((f", not {each}" for each in _OTHERS if each in text and each != mask), "")
        raise InvalidInput(f"text: no {mask} in {text[:60]!r}, expected at least one; write {mask}{other} where a word is missing")
    types = np.array(wrapped.token_types) if model.config.n_token_types > 1 else None
    with nn.evaluating(model), inference.mode():
        logits = backend.to_host(model(ids[None], token_types=None if types is None else types[None]).data)[0, places]
    p = softmax(logits)[:, : tokenizer.n_vocab]  # (masks, V); a model may have more rows than there are tokens
    order = np.argsort(-p, axis=1)[:, :k]
    return [[Candidate(tokenizer.decode([id]), float(row[id]), int(id)) for id in best] for row, best in zip(p, order, strict=True)]


def fill_in(tokenizer: Tokenizer, text: str, candidates: Sequence[Candidate]) -> str:
    """The text with one candidate for each of its masks, as the tokenizer writes it."""
    ids = np.array(tokenizer.encode(text, allow_special=True))
    ids[ids == tokenizer.mask_id] = [candidate.id for candidate in candidates]
    return tokenizer.decode(ids)


def measure_masked(model: Encoder, items: Batches, batch_size: int = 16) -> Guess:
    """Loss and accuracy over all items' targets, without dropout: the share of them that are the likeliest token. (Softmax is of the head's
    logits in float32.)"""
    nats, n_correct, n_targets = 0.0, 0, 0
    with nn.evaluating(model), inference.mode():
        for start in range(0, len(items), batch_size):
            ids, targets, *more = items.batch(np.arange(start, min(start + batch_size, len(items))))
            logits = backend.to_host(model(ids, *more).data)[targets != IGNORED].astype(np.float32)  # (N, V)
            right = targets[targets != IGNORED]
            top = logits.max(axis=1)
            nats += float(
                (np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(right)), right]).sum(dtype=np.float64)
            )
            n_correct += int((logits.argmax(axis=1) == right).sum())
            n_targets += len(right)
    return Guess(nats / n_targets, n_correct / n_targets)
