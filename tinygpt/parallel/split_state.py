"""Which part of each parameter a rank of a tensor-parallel group holds: split, joined again, and updated by an optimizer.

    part = part_of("h.0.mlp.c_fc.weight", full, config, group)            # a rank's columns; the optimizer's moments are split alike
    full = joined("h.0.mlp.c_fc.weight", part, config, group)             # on all ranks, which all call it
    optimizer = make_optimizer(model, settings, lambda cls: split_optimizer(cls, model, group))

An optimizer treats numbers one by one, and does so on parts as on the full parameters. Three things need all of a model: the norm of its
gradients, Muon's matrices, and a checkpoint.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import ClassVar

from autograd import Array, backend
from autograd.optim import FlatOptimizer, Group, Muon
from autograd.optim.muon import Orthogonalize, rms_scale
from tinygpt.config import GPTConfig
from tinygpt.errors import InvalidInput
from tinygpt.fields import multiples
from tinygpt.models.gpt import GPT
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


class SplitOptimizer(SplitMatrices):
    """Mixed into an optimizer's class by `split_optimizer`: norms are those of the full model, and so is the state in a checkpoint.

    copies   by name, how many ranks of the group hold the same numbers; 1 where it is not listed
    """

    copies: ClassVar[Mapping[str, int]]

    def gradient_norm(self) -> Array:
        """Of all parameters of the full model, each counted once."""
        self._check()
        squares = [self._squares(group, self.gradient[group.part]) for group in self.groups]
        return backend.xp.sqrt(self._total(squares))

    def update_norm(self, piece: int = 1 << 20) -> float:
        return float(backend.xp.sqrt(self._total([backend.xp.asarray(self.squared_update_norm(group, piece)) for group in self.groups])))

    def squared_update_norm(self, group: Group, piece: int) -> float:
        if group.kind == "matrix":
            return super().squared_update_norm(group, piece)
        return float(self._squares(group, self.last_change(group, group.part)))

    def _squares(self, group: Group, flat: Array) -> Array:
        """The sum of squares of an array with a number per weight of a group; where several ranks hold the same ones, a share of it."""
        total, end = backend.xp.zeros((), flat.dtype), 0
        for name, p in group.named:
            part = flat[end : end + p.size]
            end += p.size
            total = total + backend.xp.dot(part, part) / self.copies.get(name, 1)
        return total

    def _total(self, squares: list[Array]) -> Array:
        total = sum(squares, backend.xp.zeros((), self.gradient.dtype)).reshape(1)
        self.group.all_reduce(total)
        return total[0]

    def state_arrays(self) -> dict[str, dict[str, Array]]:
        """All of the state, as that of one process, gathered from the ranks: all of them call it."""
        own = super().state_arrays()
        return {key: {name: joined(name, a, self.config, self.group) for name, a in arrays.items()} for key, arrays in own.items()}

    def load_state(self, key: str, given: Mapping[str, Array]) -> None:
        """From complete arrays, of which each rank takes its part."""
        super().load_state(key, {name: part_of(name, array, self.config, self.group) for name, array in given.items()})


def split_optimizer(cls: type[FlatOptimizer], model: GPT, group: Communicator) -> type[FlatOptimizer]:
    """The class of an optimizer for a rank's part of a model, which `tinygpt.parallel.tensor.split` has left."""
    copies = {name: group.size for name, _ in model.named_parameters() if cut_of(name, model.config) is None}
    return type(cls.__name__, (SplitOptimizer, cls), {"config": model.config, "group": group, "copies": copies})
