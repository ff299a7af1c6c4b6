"""Which part of each parameter a rank of a tensor-parallel group holds, split and joined again, and how Muon updates such parts.

    part = part_of("h.0.mlp.c_fc.weight", full, config, group)            # a rank's columns; the optimizer's moments are split alike
    full = joined("h.0.mlp.c_fc.weight", part, config, group)             # on all ranks, which all call it

Heads and hidden units must divide: each takes part in matrix products of equal shapes, so ranks with more would be waited for. The vocabulary need
not, and seldom does (50,257 is odd): parts differ by a token at most. Rows of padding instead would be weights that no checkpoint has.
"""

from dataclasses import replace
from itertools import accumulate
from typing import ClassVar

from autograd import Array, backend
from autograd.optim import FlatOptimizer, Group, Muon
from autograd.optim.muon import Orthogonalize, rms_scale
from tinygpt.config import GPTConfig
from tinygpt.errors import InvalidInput
from tinygpt.fields import multiples
from tinygpt.models.protocols import Communicator

Cut = tuple[int, tuple[int, ...]]
"""How a parameter is split: along which axis, and the lengths of what lies next to each other there (queries, keys and values are three)."""


def bounds(length: int, rank: int, size: int) -> tuple[int, int]:
    """First and last + 1 of a rank's part: parts of neighbors may differ by one."""
    return length * rank // size, length * (rank + 1) // size


def cut_of(name: str, config: GPTConfig) -> Cut | None:
    """How the parameter of that name of the full model is split, or None: it is on all ranks."""
    *layer, kind = name.split(".")
    part, columns = ".".join(layer[-2:]), 1 if kind == "weight" else 0
    d = config.channels_per_head
    heads = (config.n_head * d, config.kv_heads * d, config.kv_heads * d)
    if part == "attn.c_attn":
        return columns, heads
    if part in ("mlp.c_fc", "mlp.c_gate"):
        return columns, (config.inner_channels,)
    if part in ("attn.c_proj", "mlp.c_proj") and kind == "weight":
        return 0, (heads[0] if part == "attn.c_proj" else config.inner_channels,)
    if part in ("attn.q_norm", "attn.k_norm") and config.qk_norm == "all":
        return 0, (heads[0] if part == "attn.q_norm" else heads[1],)
    return (0, (config.vocab_size,)) if part in ("wte", "lm_head") else None


def part_of(name: str, array: Array, config: GPTConfig, group: Communicator) -> Array:
    """The rank's own part, a copy, of a parameter of the full model, or of the optimizer's moment of it."""
    cut = cut_of(name, config)
    if cut is None:
        return backend.xp.array(array)
    axis, lengths = cut
    ends, pieces = list(accumulate(lengths)), []
    for end, length in zip(ends, lengths, strict=True):
        start, stop = (end - length + at for at in bounds(length, group.rank, group.size))
        pieces.append(array[start:stop] if axis == 0 else array[:, start:stop])
    return backend.xp.concatenate(pieces, axis=axis)


def joined(name: str, part: Array, config: GPTConfig, group: Communicator) -> Array:
    """The full parameter, or moment, from the parts of all ranks, which all call it: what `part_of` undoes."""
    cut = cut_of(name, config)
    if cut is None:
        return part
    axis, lengths = cut
    own = [stop - start for start, stop in (bounds(length, group.rank, group.size) for length in lengths)]
    ends = list(accumulate(own))
    first = backend.xp.moveaxis(part, axis, 0)
    pieces = [gathered(first[end - n : end], length, group) for end, n, length in zip(ends, own, lengths, strict=True)]
    return backend.xp.moveaxis(backend.xp.concatenate(pieces), 0, axis)


def gathered(part: Array, length: int, group: Communicator) -> Array:
    """The parts of all ranks one after the other along the first axis, which `bounds` has divided."""
    width = part[0].size if part.ndim > 1 else 1
    out = backend.xp.empty((length, *part.shape[1:]), part.dtype)
    lengths = [(stop - start) * width for start, stop in (bounds(length, rank, group.size) for rank in range(group.size))]
    group.all_gather(backend.xp.ascontiguousarray(part).reshape(-1), out.reshape(-1), lengths)
    return out


def check_divides(config: GPTConfig, size: int) -> None:
    """Raises ValueError where a model cannot be divided among so many ranks. The vocabulary need not divide: parts may differ by a token."""
    for name, n in (("n_head", config.n_head), ("n_kv_head", config.kv_heads), ("n_inner", config.inner_channels)):
        if n % size:
            fix = f"take a group of another size, or --{name.replace('_', '-')} {multiples(size, n)}"
            raise InvalidInput(f"tensor parallelism: {name} {n} on {size} ranks, expected a multiple, as each takes as many; {fix}")
    if config.vocab_size < size:
        raise InvalidInput(
            f"tensor parallelism: vocab_size {config.vocab_size} on {size} ranks, expected at least a token for each; start fewer"
        )


def own_shape(config: GPTConfig, group: Communicator) -> GPTConfig:
    """The shape of a model that has the rank's heads, hidden units and tokens alone."""
    first, end = bounds(config.vocab_size, group.rank, group.size)
    return replace(
        config, n_head=config.n_head // group.size, n_kv_head=config.kv_heads // group.size, head_size=config.channels_per_head,
        n_inner=config.inner_channels // group.size, vocab_size=end - first,
    )  # fmt: skip


class SplitMatrices(FlatOptimizer):
    """Mixed into an optimizer's class: Muon's matrices, of which the ranks of `group` have parts, are updated as the full ones are.

    config   of the full model
    """

    config: ClassVar[GPTConfig]
    group: ClassVar[Communicator]

    def update(self, group: Group, scale: Array) -> None:
        if group.kind == "matrix":
            self._update_matrices(group, scale)
        else:
            super().update(group, scale)

    def _update_matrices(self, group: Group, scale: Array) -> None:
        """`MuonUpdate` of parts: the momentum is that of the own part, but only a full matrix can be made orthogonal. So the ranks gather it, all
        compute the same, and each takes its part of the result. Memory: one full matrix at a time."""
        assert isinstance(self, Muon)
        matrices = [self.matrices_of(group, flat) for flat in (self.weight, self.gradient, self.m)]
        names = [name for name, _ in group.named for _ in self.columns[name]]
        squared, beta, lr = backend.xp.zeros((), self.weight.dtype), self.momentum, self.lr * group.lr_scale
        for name, w, gradient, m in zip(names, *matrices, strict=True):
            g = gradient * scale
            m *= beta
            m += (1 - beta) * g
            step = Orthogonalize.forward(self._full(name, (1 - beta) * g + beta * m), coefficients=self.coefficients)
            step *= lr * rms_scale(step.shape)
            squared = squared + (step * step).sum()
            w *= 1 - lr * self.weight_decay
            w -= self._own(name, step)
        self._squared_norms[group.part.start] = squared

    def _full(self, name: str, part: Array) -> Array:
        """One of the matrices of a parameter, from the parts of all ranks."""
        axis, lengths = cut_of(name, self.config) or (-1, ())
        if axis < 0:
            return part
        length = lengths[0] if axis == 0 else self.group.size * part.shape[1]
        return backend.xp.moveaxis(gathered(backend.xp.moveaxis(part, axis, 0), length, self.group), 0, axis)

    def _own(self, name: str, full: Array) -> Array:
        axis, _ = cut_of(name, self.config) or (-1, ())
        if axis < 0:
            return full
        start, stop = bounds(full.shape[axis], self.group.rank, self.group.size)
        return full[start:stop] if axis == 0 else full[:, start:stop]

    def squared_update_norm(self, group: Group, piece: int) -> float:
        """The rank's share of it: the sum over the ranks counts each number once."""
        squared = super().squared_update_norm(group, piece)
        return squared / self.group.size if group.kind == "matrix" else squared  # each rank has computed that of the full matrices
