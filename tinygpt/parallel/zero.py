"""ZeRO stage 1: each rank keeps the optimizer's state of its own part of the weights, and updates that part.

    reduce-scatter   each rank gets its part of the summed gradients        instead of an all-reduce, at half its cost
    update           of its part, with its part of the state                1 / N of the work and of the memory
    all-gather       of the new weights                                     the other half

The weights are those of data parallelism. AdamW's state is cut anywhere; Muon's matrices are dealt as they are, since each is orthogonalized
as one. A checkpoint holds all of the state, by name, as that of one process: another number of ranks can resume from it.

Source  Rajbhandari et al. 2020, arXiv:1910.02054, section 5.1 (P_os).
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import ClassVar

import numpy as np

from autograd import Array, backend
from autograd.optim import FlatOptimizer, Group, checked_moment
from tinygpt.models.protocols import Communicator


class Part:
    """The own part of a flat array that no rank holds all of; indexed as if it were complete.

    size     of the complete array
    pieces   (slice of it, start in `held`), in order
    """

    def __init__(self, size: int, pieces: Sequence[slice], dtype: np.dtype) -> None:
        self.size, starts = size, accumulate((piece.stop - piece.start for piece in pieces), initial=0)
        self.pieces = list(zip(pieces, starts, strict=False))
        self.held = backend.xp.zeros(sum(piece.stop - piece.start for piece in pieces), dtype)

    def __getitem__(self, part: slice) -> Array:
        if part.stop <= part.start:
            return self.held[:0]
        for piece, start in self.pieces:
            if piece.start <= part.start and part.stop <= piece.stop:
                return self.held[start + part.start - piece.start : start + part.stop - piece.start]
        raise IndexError(f"{part}: another rank's part")


class Sharded(FlatOptimizer):
    """Mixed into an optimizer's class by `sharded`: groups are divided among `ranks`, all else is the optimizer's own."""

    ranks: ClassVar[Communicator]

    def cuts(self, group: Group) -> list[int]:
        """Where a group's part ends for each rank: equal shares, of matrices that stay together the nearest end of one."""
        start, stop, size = group.part.start, group.part.stop, self.ranks.size
        ends = [start + (stop - start) * (i + 1) // size for i in range(size)]
        if group.kind == "matrix":
            allowed = np.array(list(accumulate((p.size for _, p in group.named), initial=start)))
            ends = [int(allowed[np.abs(allowed - end).argmin()]) for end in ends]
        return ends

    def own(self, group: Group) -> Group:
        """The rank's part of a group."""
        ends = [group.part.start, *self.cuts(group)]
        part, at = slice(ends[self.ranks.rank], ends[self.ranks.rank + 1]), group.part.start
        named = []
        for name, p in group.named:
            if part.start <= at and at + p.size <= part.stop:
                named.append((name, p))
            at += p.size
        return Group(group.kind, group.lr_scale, part, named)

    def lengths(self, group: Group) -> list[int]:
        ends = [group.part.start, *self.cuts(group)]
        return [stop - start for start, stop in pairwise(ends)]

    def new_state(self, key: str, kinds: Sequence[str] | None = None) -> Array:
        groups = [group for group in self.groups if kinds is None or group.kind in kinds]
        first = groups[0].part.start if groups else 0
        pieces = [self.own(group).part for group in groups]
        size = sum(group.part.stop - group.part.start for group in groups)
        part = Part(size, [slice(piece.start - first, piece.stop - first) for piece in pieces], self.gradient.dtype)
        self._states[key] = part, [pair for group in groups for pair in group.named]  # type: ignore[assignment]
        return part

    def sum_gradients(self) -> None:
        """Leaves the sum over all ranks in the own part of the gradients."""
        for group in self.groups:
            self.gradient[self.own(group).part] = self.ranks.reduce_scatter(self.gradient[group.part], self.lengths(group))

    def gradient_norm(self) -> Array:
        self._check()
        own = [self.gradient[self.own(group).part] for group in self.groups]
        squared = sum(backend.xp.dot(part, part) for part in own).reshape(1)
        self.ranks.all_reduce(squared)
        return backend.xp.sqrt(squared[0])

    def update(self, group: Group, scale: Array) -> None:
        own = self.own(group)
        if own.part.stop > own.part.start:
            super().update(own, scale)
        self.ranks.all_gather(self.weight[own.part], self.weight[group.part], self.lengths(group))

    def squared_update_norm(self, group: Group, piece: int) -> float:
        own = self.own(group)
        total = np.array([super().squared_update_norm(own, piece) if own.part.stop > own.part.start else 0.0])
        self.ranks.all_reduce(total)
        return float(total[0])

    def gather_gradients(self) -> None:
        for group in self.groups:
            self.ranks.all_gather(self.gradient[self.own(group).part], self.gradient[group.part], self.lengths(group))

    def state_arrays(self) -> dict[str, dict[str, Array]]:
        """All of the state, on the host, sent to the first rank, which saves it; nothing on the others. All of them call it."""
        arrays = {}
        for key, (part, named) in self._states.items():
            full = np.empty(part.size if self.ranks.rank == 0 else 0, self.gradient.dtype)
            for _, own, lengths in self.placed(key):
                self._send_to_first(part[own], full[own.start :], lengths)
            ends = list(accumulate((p.size for _, p in named), initial=0))
            arrays[key] = {name: full[ends[i] : ends[i + 1]].reshape(p.shape) for i, (name, p) in enumerate(named)} if full.size else {}
        return arrays if self.ranks.rank == 0 else {}

    def placed(self, key: str) -> Iterator[tuple[Group, slice, list[int]]]:
        """(group, the rank's own part of it in an array of the state, lengths of all ranks' parts)."""
        groups = [group for group in self.groups if group.named[0] in self._states[key][1]]
        first = groups[0].part.start if groups else 0
        for group in groups:
            own = self.own(group).part
            yield group, slice(own.start - first, own.stop - first), self.lengths(group)

    def _send_to_first(self, own: Array, full: np.ndarray, lengths: list[int]) -> None:
        """Fills `full` of the first rank, from the start of its own part on, with the parts of all."""
        if self.ranks.rank:
            if own.size:
                self.ranks.send(own, 0).wait()
            return
        ends = list(accumulate(lengths))
        full[: ends[0]] = backend.to_host(own)
        for rank, (start, stop) in enumerate(pairwise(ends), start=1):
            if stop > start:
                other = backend.xp.empty(stop - start, own.dtype)
                self.ranks.receive(other, rank)
                full[start:stop] = backend.to_host(other)

    def load_state(self, key: str, given: Mapping[str, Array]) -> None:
        """As in the base class; asks only for the arrays of which this rank holds a part."""
        part, named = self._states[key]
        ends = list(accumulate((p.size for _, p in named), initial=0))
        for (name, p), (start, stop) in zip(named, pairwise(ends), strict=True):
            both = [slice(max(piece.start, start), min(piece.stop, stop)) for piece, _ in part.pieces]
            both = [piece for piece in both if piece.stop > piece.start]
            if both:
                flat = checked_moment(self._class, name, given[name], p.shape).reshape(-1)
                for piece in both:
                    part[piece][...] = backend.xp.asarray(flat[piece.start - start : piece.stop - start])


def sharded(cls: type[FlatOptimizer], ranks: Communicator) -> type[FlatOptimizer]:
    """The class of an optimizer whose state these ranks share; the class itself for one rank."""
    return type(cls.__name__, (Sharded, cls), {"ranks": ranks}) if ranks.size > 1 else cls
