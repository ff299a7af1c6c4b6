"""Data parallelism: every rank holds a copy of the model, computes some rows of each micro-batch, and the gradients are added up.

    gradient of a batch = sum over ranks of (targets of its rows / targets of the batch) * gradient of its rows' mean loss

All ranks draw the same batches and start with the same weights; after the sum they make the same update. So weights are never sent again, and
the weights, the losses, clipping and the dropout masks are those of one process, up to rounding: each rank's rows get their part of the mask.

Source  Li et al. 2020, PyTorch Distributed, arXiv:2006.15704, section 2.2.
"""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise

import numpy as np

from autograd import Array, backend
from autograd.limits import peak_bytes
from autograd.optim import FlatOptimizer
from autograd.threads import n_threads, use_threads
from tinygpt.data.windows import count_targets
from tinygpt.errors import InvalidInput
from tinygpt.models.protocols import Batch, Communicator, Trainable
from tinygpt.parallel.communicator import check_same, tell
from tinygpt.parallel.shared import Buffers
from tinygpt.parallel.slices import SlicedSum, SumsInBackground
from tinygpt.parallel.zero import Sharded, sharded
from tinygpt.training.step import Shard, accumulate


def split(batch: Batch, n: int) -> list[tuple[int, Batch]]:
    """(first row, rows) of n parts of a batch, as equal as possible."""
    bounds = [len(batch[0]) * i // n for i in range(n + 1)]
    return [(start, tuple(None if array is None else array[start:stop] for array in batch)) for start, stop in pairwise(bounds)]


def first_with_targets(batch: Batch) -> tuple[int, Batch]:
    """(its number, the first row that has any)."""
    return next((i, row) for i, row in split(batch, len(batch[0])) if count_targets(row))


def shards_of(batches: Sequence[Batch], shares: Sequence[float], n: int) -> list[list[Shard]]:
    """For each of n its rows of every micro-batch, with their share of the update's loss.

    Who gets no targets computes the first row that has some, and counts it 0 times: so all draw as many dropout masks.
    """
    tasks: list[list[Shard]] = [[] for _ in range(n)]
    for batch, share in zip(batches, shares, strict=True):
        n_targets = count_targets(batch)
        for mine, (first_row, part) in zip(tasks, split(batch, n), strict=True):
            own = count_targets(part)
            if not own:
                first_row, part = first_with_targets(batch)
            mine.append(Shard(part, share * own / n_targets, first_row))
    return tasks


def threads_of(ranks: Communicator) -> int:
    """Of each rank: AUTOGRAD_THREADS, or its share of the cores."""
    return n_threads() if "AUTOGRAD_THREADS" in os.environ else max(1, min(n_threads(), (os.cpu_count() or 1) // ranks.here))


def crowded(ranks: Communicator) -> str:
    """What more ranks than cores cost; empty where there are not more."""
    here, cores = ranks.here, os.cpu_count() or 1
    if here <= cores or backend.name != "numpy":
        return ""
    return f"{here} ranks share {cores} cores and take turns: an update takes at least {here / cores:.3g} times as long"


def peak_bytes_of_others(ranks: Communicator, others_bytes: int) -> int:
    """The most memory that the other ranks have taken, together; all call it. others_bytes: of them that each seems to take (`Buffers`)."""
    own = peak_bytes()
    total = np.array([float(own - others_bytes)])
    ranks.all_reduce(total)
    return int(total[0]) - own


class DataParallel:
    """The ranks of a communicator, each with a copy of the model and a `Trainer` of its own. A `GradientWorkers`.

    shard    the ranks share the optimizer's state (`tinygpt.parallel.zero`)
    Makes the weights those of rank 0. Raises ValueError for micro-batches of fewer rows than there are ranks, and on all of them where one has
    other parameters, or has frozen others.
    """

    def __init__(self, model: Trainable, ranks: Communicator, rows: int, *, shard: bool = False) -> None:
        if rows < ranks.size:
            rule = f"expected at least {ranks.size}, one for each rank"
            raise InvalidInput(
                f"TrainConfig.micro_batch: {rows} rows, {rule}; take a larger one (--micro-batch, --batch), or start fewer ranks"
            )
        self.model, self.ranks, self.n, self.shard = model, ranks, ranks.size, shard
        self.measuring: Communicator = ranks
        self.n_threads, self.note, self.buffers = threads_of(ranks), crowded(ranks), Buffers(ranks)
        self._sliced: SlicedSum | None = None
        parameters = {name: f"{p.dtype} {p.shape}, {'trained' if p.requires_grad else 'frozen'}" for name, p in model.named_parameters()}
        check_same(ranks, parameters)
        for _, p in model.named_parameters():
            ranks.broadcast(p.data)

    def optimizer_class(self, cls: type[FlatOptimizer]) -> type[FlatOptimizer]:
        return sharded(cls, self.ranks) if self.shard else cls

    def gradients(self, optimizer: FlatOptimizer, batches: Sequence[Batch], shares: Sequence[float]) -> Array:
        """As `GradientWorkers.gradients`, on each rank: all gradients pass through sums over the optimizer's flat buffer."""
        self.note = self.buffers.move(optimizer, weights=self.shard) or self.note
        mine = shards_of(batches, shares, self.n)[self.ranks.rank]
        sliced, failure = self._sliced_sum(optimizer, batches[0]), ""
        try:
            with use_threads(self.n_threads):
                loss = accumulate(self.model, mine[:-1])
                with sliced.after_backward() if sliced else nullcontext():
                    loss = loss + accumulate(self.model, mine[-1:])
        except FloatingPointError as error:  # of an op that is looked at, on this rank alone
            failure = str(error)
        if backend.debug and (which := int(self.ranks.agree(self.n - self.ranks.rank if failure else 0))):
            raise FloatingPointError(tell(self.ranks, failure, root=self.n - which))
        if failure:
            raise FloatingPointError(failure)
        if isinstance(optimizer, Sharded):
            optimizer.sum_gradients()
        elif not sliced:
            self.ranks.all_reduce(optimizer.gradient)
        total = backend.xp.asarray(loss).reshape(1)
        self.ranks.all_reduce(total)
        return total[0]

    def _sliced_sum(self, optimizer: FlatOptimizer, batch: Batch) -> SlicedSum | None:
        """Where ranks can sum while they compute, and a rank that fails need not be waited for."""
        if not isinstance(self.ranks, SumsInBackground) or isinstance(optimizer, Sharded) or backend.debug:
            return None
        if self._sliced is None or self._sliced.optimizer is not optimizer:
            self._sliced = SlicedSum(self.ranks, optimizer, self.model, first_with_targets(batch)[1])
        return self._sliced

    def first_found(self, text: str) -> str:
        return text

    def close(self) -> None:
        """Ranks end with their programs."""

    def peak_bytes(self) -> int:
        return peak_bytes_of_others(self.ranks, self.buffers.others_bytes)
