"""Sequences of which the loss counts some tokens only: answers, not the prompts that they follow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinygpt.data.windows import IGNORED, pad
from tinygpt.errors import InvalidInput
from tinygpt.models.protocols import Batch


@dataclass(frozen=True)
class Masked:
    """Token ids (T,), and for each whether the loss counts it (T,) booleans; the first is never predicted, so it never counts."""

    ids: np.ndarray
    counted: np.ndarray


class MaskedBatches:
    """Sequences as a trainer wants them: by number, padded to the longest of the batch.

    An end token is a target where it counts, even where padding has the same id: padding is recognized by position, not by id.
    Raises ValueError for a sequence without a token to train on.
    """

    def __init__(self, sequences: Sequence[Masked]) -> None:
        for i, sequence in enumerate(sequences):
            if not sequence.counted[1:].any():
                raise InvalidInput(f"row {i}: zero trainable tokens, expected at least one; all labels are masked: is the answer empty?")
        self.sequences = list(sequences)
        self.lengths = np.array([len(sequence.ids) for sequence in sequences])

    def __len__(self) -> int:
        return len(self.sequences)

    def batch(self, which: np.ndarray) -> Batch:
        """ids and targets (B, T): target t is the token after id t, or IGNORED where it is padding or masked."""
        some = [self.sequences[i] for i in which]
        rows, real = pad([sequence.ids for sequence in some])
        counted, _ = pad([sequence.counted for sequence in some])
        return rows[:, :-1], np.where(real[:, 1:] & counted[:, 1:].astype(bool), rows[:, 1:], IGNORED)
