"""What other parts of the library need of a model, of a source of batches, of helpers: nothing more, whoever implements it."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from autograd import Array, Parameter, RandomStream, Tensor, nn
from autograd.optim import FlatOptimizer
from tinygpt.config import GPTConfig
from tinygpt.model_config import ModelConfig
from tinygpt.storage.checked_json import Json

if TYPE_CHECKING:
    from tinygpt.models.cache import View


Batch = tuple[Array, ...]
"""The arguments of a model's `loss`: ids, targets, ...; host arrays with one row per item, or None."""


class Batches(Protocol):
    """What a model learns from, item by item: `tinygpt.data.windows.Windows` of a token stream, or `tinygpt.finetuning.classifier.LabeledBatches`.

    batch(which)   (ids, targets, ...) of the items numbered `which`: the arguments of the model's `loss`
    lengths        where items differ in length: (N,) tokens of each, so that micro-batches of similar ones can be made
    """

    def __len__(self) -> int: ...
    def batch(self, which: np.ndarray) -> Batch: ...


@runtime_checkable
class DrawnBatches(Protocol):
    """`Batches` in which part of an item is drawn at random, as which words of a text are masked.

    drawn(which, number)   the batch of the items `which`, drawn for micro-batch `number` of a run: a pure function of both, so that a run that
                           is resumed draws the same. `batch(which)` is the same at every call: for measuring
    """

    def drawn(self, which: np.ndarray, number: int) -> Batch: ...


@runtime_checkable
class KeepsState(Protocol):
    """`Batches` of which a checkpoint needs more than the number of the next one, as of answers that several updates learn from.

    state()             JSON values
    load_state(state)   restores what `state` gave
    """

    def state(self) -> dict[str, Json]: ...
    def load_state(self, state: dict[str, Json]) -> None: ...


class Trainable(Protocol):
    """What a trainer needs of a `Module`: GPT, Encoder and Seq2Seq (`tinygpt.models`) and the classifiers (`tinygpt.finetuning`) have it.

    loss(*batch)     mean loss over the targets of a batch that count, in nats, as a scalar
    n_classes        among how many tokens or labels each prediction chooses: a uniform guess costs ln n_classes; 0: nothing is chosen among
    dropout_stream   where all dropout masks come from; its seed and counter are part of a checkpoint
    """

    dropout_stream: RandomStream
    training: bool

    @property
    def config(self) -> ModelConfig: ...
    @property
    def n_classes(self) -> int: ...
    def loss(self, *batch: Array, **options: Array) -> Tensor: ...
    def set_compute_dtype(self, dtype: str) -> "Trainable": ...
    def set_z_loss(self, weight: float) -> "Trainable": ...
    def set_label_smoothing(self, share: float) -> "Trainable": ...
    def train(self, training: bool = True) -> object: ...
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...


@runtime_checkable
class Divided(Protocol):
    """A model of which this process holds a part, as `tinygpt.parallel.divided.DividedGPT`: all ranks call these methods together."""

    def complete(self) -> Trainable | None:
        """The model with all of its weights at the first rank, None at others."""

    def empty(self) -> Trainable:
        """A complete model without the memory of its weights, which says how they are called and shaped."""

    def take(self, name: str, complete: Array) -> None:
        """Copies this process's part of a parameter of the complete model, where it holds one."""


@runtime_checkable
class Classifies(Protocol):
    """A model whose predictions are right or wrong, as a classifier's are."""

    def loss_and_correct(self, *batch: Array) -> tuple[Tensor, int]:
        """What `loss` gives, and how many items of the batch got the right label."""


class Decodable(Protocol):
    """What generation and likelihoods need of a model: `tinygpt.models.gpt.GPT`, whose docstrings say what each part does.

    config    n_positions, vocab_size, and the shape of the key/value cache
    dtype     of the activations, where it is not that of the weights
    wte       the token embedding: its dtype is that of the weights
    lm_head   the output layer, (..., C) -> logits (..., V)
    """

    config: GPTConfig
    dtype: np.dtype
    wte: nn.Embedding

    @property
    def lm_head(self) -> nn.Module: ...
    def hidden(
        self, ids: ArrayLike, attention_mask: ArrayLike | None = None, cache: "View | None" = None, last_only: bool = False
    ) -> Tensor: ...
    def named_modules(self) -> Iterator[tuple[str, nn.Module]]: ...


class Sending(Protocol):
    """A message on its way: the array may be changed after `wait`."""

    def wait(self) -> None: ...


class Communicator(Protocol):
    """Ranks that work together. Arrays are contiguous; their shapes and dtypes agree on all ranks.

    rank, size     which one this is, 0 to size - 1; how many there are
    here           how many of them are on this machine
    kind           one process, threads, MPI or NCCL: for messages
    """

    rank: int
    size: int
    here: int
    kind: str

    def all_reduce(self, array: Array) -> None:
        """Replaces the array by the sum over all ranks."""

    def reduce_scatter(self, array: Array, lengths: Sequence[int]) -> Array:
        """The rank's own part of the sum of flat arrays; lengths: of each rank's part, in order. `array` may be overwritten."""

    def all_gather(self, part: Array, out: Array, lengths: Sequence[int]) -> None:
        """Fills the flat array `out` with the parts of all ranks, in order. `part` may be its own part of `out`."""

    def broadcast(self, array: Array, root: int = 0) -> None:
        """Replaces the array by that of rank `root`."""

    def send(self, array: Array, to: int) -> Sending:
        """Begins to send an array to a rank, which calls `receive`; messages between two ranks arrive in order."""

    def receive(self, array: Array, source: int) -> None:
        """Fills the array with the next message from a rank."""

    def agree(self, value: float) -> float:
        """The largest of all ranks' values: one rank that says 1 is enough."""

    def split(self, color: int) -> "Communicator":
        """The ranks that give the same color, in the order they have here."""


class GradientWorkers(Protocol):
    """Processes or devices that compute the gradients of an update together: `tinygpt.parallel.local.LocalWorkers`.

    n          how many, this process included
    note       what a user should know of the choice of n; empty: nothing
    ranks      the programs that train together, each with its own trainer and its own workers; one, unless `mpiexec` started them
    measuring  those of them that measure a loss on different batches: one for each copy of the model
    """

    n: int
    note: str
    ranks: Communicator
    measuring: Communicator

    def optimizer_class(self, cls: type[FlatOptimizer]) -> type[FlatOptimizer]:
        """What to make instead of an optimizer of that class: one whose state ranks share, or the same."""

    def gradients(self, optimizer: FlatOptimizer, batches: Sequence[Batch], shares: Sequence[float]) -> Array | None:
        """Adds to the gradients those of the sum of share times mean loss over the batches, and returns that sum. None, and nothing done,
        where this process computes these batches better (or as well) alone."""

    def first_found(self, text: str) -> str:
        """What the ranks have found in their parts of the model: the first text that is not empty."""

    def close(self) -> None:
        """Ends the other processes; the next `gradients` starts them again."""

    def peak_bytes(self) -> int:
        """The most memory that the other processes have held so far, without what they share with this one."""
