"""Pipeline parallelism: the blocks of a model are cut into stages, a rank holds one, and micro-batches pass through them one after another.

    stage 0     F0 F1 F2 F3          B0 B1 B2 B3             GPipe: all forward passes, then all backward passes
    stage 1        F0 F1 F2 F3 B0 B1 B2 B3
    stage 0     F0 F1    B0 F2 B1 F3 B2    B3                1F1B: backward as soon as possible, then forward and backward in turn
    stage 1        F0 B0 F1 B1 F2 B2 F3 B3

A stage waits while the first micro-batch comes down and the last one goes up: of M + P - 1 time slots it computes in M, so the bubble is
(P - 1) / (M + P - 1) for both. What differs is memory: GPipe keeps the activations of all M micro-batches, 1F1B those of at most P. The
micro-batches are those of gradient accumulation, in its order: the gradients, dropout masks included, are those of one process up to rounding.

Source  GPipe: Huang et al. 2019, arXiv:1811.06965, section 2; 1F1B: Narayanan et al. 2021, arXiv:2104.04473, section 2.2 (PipeDream-Flush).
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

import autograd as ag
from autograd import Array, backend, failures, nn
from tinygpt.errors import InvalidInput
from tinygpt.model_config import GPTConfig
from tinygpt.models.gpt import GPT
from tinygpt.models.protocols import Communicator, Sending
from tinygpt.training.step import Shard

T = TypeVar("T")
Order = Literal["1f1b", "gpipe"]


class Task(NamedTuple):
    """A forward (F) or backward (B) pass of a micro-batch through a stage."""

    kind: Literal["F", "B"]
    batch: int


def gpipe(stage: int, n_stages: int, n_batches: int) -> list[Task]:
    """What a stage computes, in order: every forward pass, then every backward pass."""
    return [Task("F", i) for i in range(n_batches)] + [Task("B", i) for i in range(n_batches)]


def one_forward_one_backward(stage: int, n_stages: int, n_batches: int) -> list[Task]:
    """As `gpipe`, with a backward pass after each forward pass as soon as micro-batch 0 can have come back."""
    ahead = min(n_stages - 1 - stage, n_batches)
    steady = [task for i in range(n_batches - ahead) for task in (Task("F", ahead + i), Task("B", i))]
    return [Task("F", i) for i in range(ahead)] + steady + [Task("B", i) for i in range(n_batches - ahead, n_batches)]


ORDERS: dict[Order, Callable[[int, int, int], list[Task]]] = {"1f1b": one_forward_one_backward, "gpipe": gpipe}


def bubble(n_stages: int, n_batches: int) -> float:
    """Share of the time in which a stage waits, where all passes of a kind take equally long."""
    return (n_stages - 1) / (n_batches + n_stages - 1)


class Elsewhere(nn.Module):
    """A part of the model that another rank holds."""

    recompute = False


class StagedGPT(GPT):
    """One stage of a GPT that all ranks of a pipeline have made alike: other blocks are `Elsewhere`; parameters keep their names.

    Embeddings are in the first stage, the last norm and the output layer in the last. If both use one matrix, each has a copy; the gradient is
    the sum of both (see `tied`), so the copies stay equal.

    first, last   whether this is the first stage, the last one
    layers        the blocks of this stage
    Takes the layers of the model, which is not to be used any more. Raises ValueError for layers that cannot be divided equally.
    """

    def __init__(self, model: GPT, pipe: Communicator) -> None:
        vars(self).update(vars(model))  # instead of making layers
        config, self.pipe, self.stage, self.n_stages = model.config, pipe, pipe.rank, pipe.size
        check_layers(config, self.n_stages)
        self.first, self.last = self.stage == 0, self.stage == self.n_stages - 1
        each = config.n_layer // self.n_stages
        self.layers = range(self.stage * each, (self.stage + 1) * each)
        self.h = [block if i in self.layers else Elsewhere() for i, block in enumerate(self.h)]  # type: ignore[misc, assignment]
        tied = config.tie_word_embeddings
        for name, kept in {
            "wte": self.first or (self.last and tied), "wpe": self.first, "ln_e": self.first, "ln_f": self.last, "lm_head": self.last,
        }.items():  # fmt: skip
            if not kept and getattr(self, name) is not None:
                setattr(self, name, Elsewhere())

    @property
    def tied(self) -> bool:
        """Whether this stage holds a copy of a matrix that another one holds, too."""
        return self.config.tie_word_embeddings and self.n_stages > 1 and (self.first or self.last)

    @property
    def activations(self) -> np.dtype:
        """Their dtype: without one set, that of the weights."""
        return self.dtype if self.dtype != np.float32 else self.parameters()[0].dtype

    def through(self, x: ag.Tensor | None, ids: np.ndarray) -> ag.Tensor:
        """What the stage makes of the output (B, T, C) of the stage before; the first one of ids (B, T)."""
        positions = np.arange(ids.shape[1])
        if self.first:
            x = self.embed(ids, positions)
        assert x is not None, "stages after the first get the output of the one before"
        turned = {"positions": positions} if self.config.positions == "rotary" else {}
        for layer in self.layers:
            block = self.h[layer]
            x = nn.recompute(partial(block, **turned), x, [self.dropout_stream]) if block.recompute else block(x, **turned)
        return self.ln_f(x) if self.last else x

    def loss(self, ids: ArrayLike, targets: ArrayLike, attention_mask: ArrayLike | None = None, *, ignore_index: int = -100) -> ag.Tensor:
        """As `GPT.loss`, without a graph, on all stages: they call it together. For evaluation; `Pipeline` trains."""
        ids, host = np.asarray(ids), np.zeros(1)
        if attention_mask is not None:
            raise InvalidInput("StagedGPT: an attention_mask, expected none: rows of equal length; train such texts with data parallelism")
        with ag.no_grad(), nn.weights_in(self, self.dtype):
            y = self.through(receive(self, ids, -1), ids)
            if self.last:
                host[0] = self.loss_of(y, targets, ignore_index=ignore_index).item()
            else:
                self.pipe.send(bits(y.data), self.stage + 1).wait()
        self.pipe.broadcast(host, self.n_stages - 1)
        return ag.Tensor(backend.to_device(host))


def check_layers(config: GPTConfig, n_stages: int) -> None:
    if config.n_layer % n_stages:
        fits = [n for n in range(1, config.n_layer + 1) if config.n_layer % n == 0]
        rule = f"expected pipeline to divide it: {', '.join(map(str, fits))}"
        raise InvalidInput(f"mesh: pipeline={n_stages} with n_layer {config.n_layer}, {rule}; change --mesh or --n-layer")


def bits(array: Array) -> Array:
    """The array as messages carry it: 16-bit numbers as bytes, since MPI knows no bfloat16."""
    return array.view(np.uint8) if array.dtype.itemsize == 2 else array


def receive(model: StagedGPT, ids: np.ndarray, side: int) -> ag.Tensor | None:
    """The activations (side -1: from the stage before) or their gradient (side 1) that a neighbor sends; None where there is no neighbor."""
    if not 0 <= model.stage + side < model.n_stages:
        return None
    array = backend.xp.empty((*ids.shape, model.config.n_embd), model.activations)
    model.pipe.receive(bits(array), model.stage + side)
    return ag.Tensor(array, requires_grad=side < 0)


class Pass(NamedTuple):
    """When a stage computed a task, in seconds on a clock that the processes of a machine share."""

    kind: Literal["F", "B"]
    batch: int
    start: float
    stop: float


class Failure(NamedTuple):
    """The first op with a number that is not finite, in debug mode. Smaller where one process would have met it earlier: by the pass, and by
    how many numbers had been checked in it."""

    order: int
    n_checks: int
    text: str


class Pipeline:
    """Computes the gradients of an update, stage by stage: each rank of `model.pipe` calls `accumulate` with the same micro-batches.

    passes    what the last call computed, and when
    held      the most micro-batches whose activations were held at once
    failure   in debug mode, where an op fails: this stage computes on, so that no other rank waits for it
    """

    def __init__(self, model: StagedGPT, order: Order = "1f1b") -> None:
        self.model, self.order = model, order
        self.passes: list[Pass] = []
        self.held = 0
        self.failure: Failure | None = None

    def accumulate(self, shards: Sequence[Shard]) -> Array:
        """As `tinygpt.training.step.accumulate`, for the parameters of this stage. Returns the loss in the last stage, 0 in the others."""
        model, stream, total = self.model, self.model.dropout_stream, backend.xp.zeros((), np.float64)
        begin, draws = stream.counter, draws_of(model)
        self.passes, self.held, self.failure = [], 0, None
        graphs: dict[int, tuple[ag.Tensor | None, ag.Tensor]] = {}  # of each micro-batch between its passes: input, output
        sent: deque[Sending] = deque()
        for kind, i in ORDERS[self.order](model.stage, model.n_stages, len(shards)):
            ids, stream.first_row = shards[i].batch[0], shards[i].first_row
            if kind == "F":
                x = receive(model, ids, -1)
                stream.counter = begin + i * sum(draws) + draws[0]
                y = self._timed("F", i, lambda x=x, i=i: self._forward(x, shards[i]))  # type: ignore[misc]
                graphs[i] = x, y
                self.held = max(self.held, len(graphs))
                if model.last:
                    total = total + y.data
                else:
                    self._send(sent, 1, y.data)
            else:
                x, y = graphs.pop(i)
                dy = receive(model, ids, 1)
                self._timed("B", i, lambda y=y, dy=dy: y.backward(None if dy is None else dy.data))  # type: ignore[misc]
                if x is not None:
                    self._send(sent, -1, x.grad)
        for message in sent:
            message.wait()
        stream.counter = begin + len(shards) * sum(draws)
        return total

    def _forward(self, x: ag.Tensor | None, shard: Shard) -> ag.Tensor:
        model = self.model
        ids, targets = shard.batch[:2]
        with nn.weights_in(model, model.dtype):
            y = model.through(x, ids)
            return model.loss_of(y, targets) * shard.share if model.last else y

    def _timed(self, kind: Literal["F", "B"], i: int, compute: Callable[[], T]) -> T:
        start = time.perf_counter()
        if backend.debug:
            with failures() as found, np.errstate(all="ignore"):
                result = compute()
            if found.first:
                stage, n = self.model.stage, self.model.n_stages
                failure = Failure(2 * n * i + (stage if kind == "F" else 2 * n - 1 - stage), *found.first)
                self.failure = min(failure, self.failure or failure)
        else:
            result = compute()
        self.passes.append(Pass(kind, i, start, time.perf_counter()))
        return result

    def _send(self, sent: deque[Sending], side: int, array: Array) -> None:
        """Begins to send, and waits only for messages that the neighbor must have got long ago: two stages that send to each other, each waiting
        until the other receives, would wait for ever."""
        model = self.model
        sent.append(model.pipe.send(bits(array), model.stage + side))
        while len(sent) > 2 * model.n_stages:
            sent.popleft().wait()


def draws_of(model: StagedGPT) -> tuple[int, int, int]:
    """How many dropout masks are drawn for a micro-batch by the stages before, by this one and by those behind."""
    p, config = model.config.dropouts, model.config
    if not model.training:
        return 0, 0, 0
    embedding, each = int(p["embd_pdrop"] > 0), int(p["attn_pdrop"] > 0) + 2 * int(p["resid_pdrop"] > 0)
    before = 0 if model.first else embedding + model.layers.start * each
    own = len(model.layers) * each + (embedding if model.first else 0)
    return before, own, embedding + config.n_layer * each - before - own
