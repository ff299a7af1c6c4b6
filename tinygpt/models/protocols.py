"""What other parts of the library need of a model, a tokenizer, a source of batches: nothing more, whoever implements it."""

from typing import Protocol

import numpy as np


class Batches(Protocol):
    """What a model learns from, item by item: `tinygpt.data.windows.Windows` of a token stream, or `tinygpt.finetuning.classifier.LabelledBatches`.

    batch(which)   (ids, targets, ...) of the items numbered `which`: the arguments of the model's `loss`
    lengths        where items differ in length: (N,) tokens of each, so that micro-batches of similar ones can be made
    """

    def __len__(self) -> int: ...
    def batch(self, which: np.ndarray) -> tuple[np.ndarray, ...]: ...
