"""Forward and backward passes of one update, accumulated over micro-batches."""

from collections.abc import Sequence
from typing import Any

Batch = tuple[Any, ...]
"""The arguments of a model's `loss`: arrays with one row per item, or None."""


Task = tuple[Batch, float, int]
"""A part of a batch: its rows, how much its mean loss counts, and which row of the batch its first one is."""


def accumulate(model: Any, tasks: Sequence[Task]) -> Any:
    """Adds the gradients of all tasks to those of the parameters. Returns the sum of the losses, each times its share."""
    total = 0.0
    for batch, share, first_row in tasks:
        model.dropout_stream.first_row = first_row
        loss = model.loss(*batch)
        if share != 1:
            loss = loss * share
        loss.backward()
        total = total + loss.data
    return total
