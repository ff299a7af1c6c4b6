"""What a language model is trained on when it is not the next token: the base of `DPO` and `GRPO`."""

from collections.abc import Iterator
from typing import Self

import autograd as ag
from autograd import nn
from tinygpt.errors import InvalidInput
from tinygpt.models.gpt import GPT


class Objective(nn.Module):
    """A language model with another loss, as a `Trainable`: the trainer, its optimizer and its checkpoints see the weights of `policy` under
    their own names, so that what is saved is a language model.

    policy   the model; its weights are shared, not copied: training the objective changes them
    """

    def __init__(self, policy: GPT) -> None:
        self.policy = policy
        self.config, self.dropout_stream = policy.config, policy.dropout_stream

    def named_parameters(self) -> Iterator[tuple[str, ag.Parameter]]:
        return self.policy.named_parameters()

    def set_compute_dtype(self, dtype: str) -> Self:
        """As `GPT.set_compute_dtype`."""
        self.policy.set_compute_dtype(dtype)
        return self

    def set_z_loss(self, weight: float) -> Self:
        """Raises ValueError unless the weight is 0: the term belongs to the loss of the next token."""
        return self._none("z_loss", weight)

    def set_label_smoothing(self, share: float) -> Self:
        """Raises ValueError unless the share is 0, as `set_z_loss`."""
        return self._none("label_smoothing", share)

    def _none(self, name: str, value: float) -> Self:
        if value:
            raise InvalidInput(f"{type(self).__name__}: {name} {value}, expected 0; it is for the loss of the next token")
        return self
