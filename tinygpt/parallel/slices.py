"""Gradients that are summed while the backward pass still computes others: those of a block, as soon as they are complete.

    backward     | block 3 | block 2 | block 1 | block 0 | embedding |
    sums                   | block 3 | block 2 | block 1 |  block 0  | embedding |
                                                                     ^ from here on processes wait, for what is left

A parameter's gradient is complete when the backward pass has added to it as often as it uses the parameter: twice, where embedding and output
layer are tied. The backward pass of one row tells how often that is.

Source  Li et al. 2020, PyTorch Distributed, arXiv:2006.15704, section 3.2.3.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Protocol, runtime_checkable

from autograd import Array, Parameter, Tensor, watch_gradients
from autograd.optim import FlatOptimizer
from tinygpt.errors import ProcessFailed
from tinygpt.models.protocols import Batch, Communicator, Sending, Trainable


class Slices:
    """Parts of an optimizer's flat gradient: the matrices of each block, each matrix of no block, and all vectors.

    named        an optimizer's parameters, in their order
    parts        the slices; parameters: of each
    counts       gradients of each slice in a backward pass, known after `learn`; order: in which the slices are complete
    """

    def __init__(self, named: Sequence[tuple[str, Parameter]]) -> None:
        self.parts, self.parameters, start = list[slice](), list[list[Parameter]](), 0
        for _, same in groupby(named, key=lambda pair: _block(pair[0]) if pair[1].ndim > 1 else ""):
            self.parameters.append([p for _, p in same])
            self.parts.append(slice(start, start := start + sum(p.size for p in self.parameters[-1])))
        self.slice_of = {id(p): i for i, each in enumerate(self.parameters) for p in each}
        self.counts: list[int] = []
        self.order: list[int] = []

    def learn(self, model: Trainable, row: Batch) -> None:
        """Computes the gradients of a row and drops them; what the parameters have stays, and so does the next dropout mask."""
        kept = [(p, p._gradient_buffer, p.grad) for each in self.parameters for p in each]
        draw, seen = model.dropout_stream.counter, list[int]()  # of each gradient, in which slice it is
        for p, _, _ in kept:
            p._gradient_buffer = p.grad = None

        def count(leaf: Tensor) -> None:
            if id(leaf) in self.slice_of:  # unlike a recomputed block's input
                seen.append(self.slice_of[id(leaf)])
                leaf.grad = None

        try:
            with watch_gradients(count):
                model.loss(*row).backward()
        finally:
            for p, buffer, grad in kept:
                p._gradient_buffer, p.grad = buffer, grad
            model.dropout_stream.counter = draw
        last = {i: when for when, i in enumerate(seen)}
        self.counts = [seen.count(i) for i in range(len(self.parts))]
        self.order = sorted(range(len(self.parts)), key=lambda i: last.get(i, len(seen)))

    @contextmanager
    def completing(self, done: Callable[[int], None]) -> Iterator[None]:
        """Calls `done` with the number of each slice, as soon as the backward pass within this block has completed it, or at the end."""
        seen = [0] * len(self.counts)

        def added(leaf: Tensor) -> None:
            i = self.slice_of.get(id(leaf))
            if i is None or not self.counts[i]:  # of what the first batch did not use nobody knows when it is complete
                return
            seen[i] += 1
            if seen[i] > self.counts[i]:
                found = f"{seen[i]} gradients for a block in one backward pass, expected {self.counts[i]}, as in the first one"
                raise ProcessFailed(f"sum of gradients: {found}; compute every batch in the same way")
            if seen[i] == self.counts[i]:
                done(i)

        with watch_gradients(added):
            yield
        for i, n in enumerate(seen):
            if n < self.counts[i] or not n:
                done(i)


def _block(name: str) -> str:
    """The block that a parameter is in, as h.3 or encoder.h.3; else its own module."""
    parts = name.split(".")
    numbered = [i for i, part in enumerate(parts) if part.isdecimal()]
    return ".".join(parts[: numbered[0] + 1] if numbered else parts[:-1])


@runtime_checkable
class SumsInBackground(Communicator, Protocol):
    """A `Communicator` that moves data while the program computes, as a GPU does. MPI libraries move it only while the program calls them."""

    def begin_all_reduce(self, array: Array) -> Sending:
        """Begins the sum of a device's array: it is there after `wait`. All ranks begin their sums in the same order."""


class SlicedSum:
    """The sum over all ranks of an optimizer's gradients, by slices. All ranks begin them in the same order: that of `Slices.learn`."""

    def __init__(self, ranks: SumsInBackground, optimizer: FlatOptimizer, model: Trainable, row: Batch) -> None:
        self.ranks, self.optimizer, self.slices = ranks, optimizer, Slices(optimizer.named)
        self.slices.learn(model, row)

    @contextmanager
    def after_backward(self) -> Iterator[None]:
        """At the end of this block the gradients are sums. The backward pass within it is the last that adds to them."""
        order, complete, sums = self.slices.order, set[int](), list[Sending]()

        def done(i: int) -> None:
            complete.add(i)
            while len(sums) < len(order) and order[len(sums)] in complete:
                sums.append(self.ranks.begin_all_reduce(self.optimizer.gradient[self.slices.parts[order[len(sums)]]]))

        with self.slices.completing(done):
            yield
        for one in sums:
            one.wait()
