"""What models of every kind have: settings of training, and the methods that layers above give to them."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np
from numpy.typing import ArrayLike

import autograd as ag
from autograd import backend, nn
from tinygpt.errors import InvalidInput
from tinygpt.fields import Json
from tinygpt.models.attached import Attached

if TYPE_CHECKING:
    from pathlib import Path

    from tinygpt.data.tokenizer import Tokenizer


class Recomputable(Protocol):
    """A block that may keep its input alone for the backward pass; see `Model.recompute_blocks`."""

    recompute: bool


class Opened(Protocol):
    """A checkpoint that `tinygpt.runs.checkpoint.Checkpoint` has opened: the model's shape and where its weights are."""

    @property
    def config(self) -> Json: ...
    @property
    def stored(self) -> Json: ...


class Model(nn.Module):
    """A model before its layers: the constructors of its subclasses add them, and take the same arguments.

    dtype                     of activations and matrix products
    z_loss, label_smoothing   of the training loss, see `cross_entropy`; 0: none
    dropout_stream            where all dropout masks come from
    """

    config_class: type
    loss: Callable[..., ag.Tensor]
    h: Sequence[Recomputable]
    wte: nn.Embedding

    def __init__(self, config: Json, seed: int = 0, *, _empty: bool = False) -> None:
        self.config = config
        self.dtype: np.dtype = backend.compute_dtype("float32")
        self.z_loss = self.label_smoothing = 0.0
        self.dropout_stream = ag.RandomStream(seed)

    @property
    def n_classes(self) -> int:
        """How many tokens each prediction chooses from: a uniform guess costs ln(n_classes) nats."""
        n: int = self.config.vocab_size
        return n

    def set_compute_dtype(self, dtype: str) -> Self:
        """Switches activations and matrix products to "bfloat16" or "float16", or back to "float32"; returns the model.

        Weights, their gradients, statistics of norms, softmax and loss stay float32. Raises ValueError where there is no such arithmetic.
        """
        try:
            self.dtype = backend.compute_dtype(dtype)
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        return self

    def set_z_loss(self, weight: float) -> Self:
        """Sets the weight of z-loss, see `cross_entropy`; 0: none. It counts in training mode alone. Returns the model."""
        self.z_loss = weight
        return self

    def set_label_smoothing(self, share: float) -> Self:
        """Sets the share of label smoothing, see `cross_entropy`; 0: none. It counts in training mode alone. Returns the model."""
        self.label_smoothing = share
        return self

    def recompute_blocks(self, on: bool = True) -> Self:
        """Trades time for memory in training: every block keeps its input alone and computes the rest again in the backward pass.

        Gradients stay the same: bit for bit, but with cross-attention up to rounding, as those of the source are added up in another order. For single
        blocks set `model.h[i].recompute`. Returns the model.
        """
        for block in self.h:
            block.recompute = on
        return self

    @classmethod
    def from_checkpoint(cls, checkpoint: Opened) -> Self:
        """The model of an open checkpoint, which is of this kind: what `Checkpoint.model` calls."""
        model = cls(checkpoint.config, _empty=True)
        checkpoint.stored.load_into(model)
        return model

    # Methods of the layers above: tinygpt.inspect.trace, tinygpt.weights.pretrained.
    if TYPE_CHECKING:

        def summary(self, optimizer: str = "adamw") -> str: ...
        def trace(self, ids: ArrayLike, targets: ArrayLike | None = None, attention_mask: ArrayLike | None = None) -> object: ...
        def save_pretrained(
            self, directory: str | Path, tokenizer: Tokenizer | None = None, dtype: str = "float32", max_shard_size: int | str | None = None
        ) -> None: ...
        @classmethod
        def from_pretrained(cls, path_or_name: str | Path) -> Self: ...
    else:
        summary, trace, save_pretrained = Attached(), Attached(), Attached()
        from_pretrained = Attached(to_class=True)
