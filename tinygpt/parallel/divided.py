"""What the ranks of a mesh hold of a model and its optimizer: how it is divided, trained together, and put together for a checkpoint.

    gradient    summed over the ranks of data; that of a tied matrix over the two stages that hold it, too
    norm        each weight counts once, whoever holds copies of it
    update      each rank, of its part
    checkpoint  that of one process: every array goes to the first rank, complete, by its name. Any mesh can resume from it

Source  Narayanan et al. 2021, arXiv:2104.04473, sections 2 and 3; Megatron-LM sums a tied matrix in the same way.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import numpy as np

from autograd import Array, backend
from autograd.optim import FlatOptimizer, Group, Muon
from autograd.threads import use_threads
from tinygpt.model_config import GPTConfig
from tinygpt.models.gpt import GPT
from tinygpt.models.protocols import Batch, Communicator
from tinygpt.parallel.communicator import check_same, tell
from tinygpt.parallel.data import crowded, peak_bytes_of_others, shards_of, threads_of
from tinygpt.parallel.initial import Later, Shapes
from tinygpt.parallel.mesh import Mesh, check_shape
from tinygpt.parallel.pipeline import Order, Pipeline, StagedGPT
from tinygpt.parallel.shared import Buffers
from tinygpt.parallel.split_state import SplitMatrices, cut_of, joined, part_of
from tinygpt.parallel.tensor import split
from tinygpt.parallel.zero import Sharded, sharded

_MAX_CHECKS = 1 << 24  # of one pass, in debug mode


class DividedGPT(StagedGPT):
    """The part that one rank of a mesh holds of a GPT which all have made alike; see `StagedGPT`."""

    def __init__(self, model: GPT, mesh: Mesh) -> None:
        super().__init__(model, mesh.pipeline)
        self.mesh = mesh
        self.shapes = {name: p.shape for name, p in self.empty().named_parameters()}  # of all, complete

    def owner(self, name: str) -> int:
        """The stage that a parameter is saved from: of the two with a tied matrix, the first."""
        if name.startswith("h."):
            return int(name.split(".")[1]) // len(self.layers)
        return 0 if name.startswith(("wte.", "wpe.", "ln_e.")) else self.n_stages - 1

    def counts(self, name: str) -> bool:
        """Whether a parameter of this rank counts in sums over the ranks of `mesh.copy`: once, whoever holds copies."""
        return self.owner(name) == self.stage and (self.mesh.tensor.rank == 0 or cut_of(name, self.config) is not None)

    def own_part(self, name: str, complete: Array) -> Array:
        """What this rank holds of a parameter, or of its optimizer's state."""
        array = backend.xp.asarray(complete)
        return array if self.mesh.shape.tensor == 1 else part_of(name, array, self.config, self.mesh.tensor)

    def gathered(self, name: str, own: Array | None) -> Array:
        """A parameter's complete array at the first rank; at others its shape, without memory. All call it together.

        own   this rank's part, an array of the backend, or None
        """
        mesh, owner = self.mesh, self.owner(name)
        if mesh.data.rank == 0 and owner == self.stage:
            assert own is not None, f"{name} belongs to this stage"
            complete = own if mesh.shape.tensor == 1 else backend.xp.ascontiguousarray(joined(name, own, self.config, mesh.tensor))
            if mesh.leads:
                return complete
            if mesh.tensor.rank == 0 and owner:
                mesh.pipeline.send(complete, 0).wait()
        elif mesh.leads:
            complete = backend.xp.empty(self.shapes[name], self.parameters()[0].dtype)
            mesh.pipeline.receive(complete, owner)
            return complete
        return backend.xp.broadcast_to(backend.xp.zeros((), self.parameters()[0].dtype), self.shapes[name])

    def complete(self) -> GPT | None:
        """The complete model at the first rank, None at others. All call it together."""
        model = self.empty() if self.mesh.leads else None
        mine, wanted = dict(self.named_parameters()), dict(model.named_parameters()) if model else {}
        for name in self.shapes:
            array = self.gathered(name, mine[name].data if name in mine else None)
            if model:
                wanted[name].data = array
        return model

    def empty(self) -> GPT:
        """A complete model without the memory of its weights."""
        return GPT(self.config, _init=Shapes(self.config))

    def take(self, name: str, complete: Array) -> None:
        """Copies this rank's part of a parameter, where it holds one."""
        if name in (mine := dict(self.named_parameters())):
            mine[name].data[...] = self.own_part(name, complete)


class Divided(FlatOptimizer):
    """Mixed into an optimizer's class by `divided_optimizer`: updates the rank's part of `model`; sums and norms are those of the complete model."""

    model: ClassVar[DividedGPT]

    def sum_gradients(self) -> None:
        """Leaves the sum of the ranks' gradients here; where the state is sharded, in the own part."""
        model = self.model
        if model.tied:
            model.mesh.ends.all_reduce(model.wte.weight.grad)
        if isinstance(self, Sharded):
            super().sum_gradients()  # type: ignore[misc]
        else:
            model.mesh.data.all_reduce(self.gradient)

    @cached_property
    def _runs(self) -> list[tuple[slice, bool]]:
        """Parts of the flat buffers, each with whether it counts."""
        runs, at = list[tuple[slice, bool]](), 0
        for name, p in self.named:
            start, counts = (runs.pop()[0].start if runs and runs[-1][1] == self.model.counts(name) else at), self.model.counts(name)
            runs.append((slice(start, at + p.size), counts))
            at += p.size
        return runs

    def _within(self, part: slice, counting: bool) -> list[slice]:
        """What counts of a part of the flat buffers, or what does not."""
        cut = [slice(max(run.start, part.start), min(run.stop, part.stop)) for run, counts in self._runs if counts == counting]
        return [run for run in cut if run.start < run.stop]

    def _norm(self, flat: Array, parts: Sequence[slice], ranks: Communicator) -> Array:
        squared = backend.xp.zeros(1, flat.dtype)
        for part in parts:
            for run in self._within(part, True):
                squared += backend.xp.dot(flat[run], flat[run])
        ranks.all_reduce(squared)
        return backend.xp.sqrt(squared[0])

    def gradient_norm(self) -> Array:
        self._check()
        mesh = self.model.mesh
        if isinstance(self, Sharded):
            return self._norm(self.gradient, [self.own(group).part for group in self.groups], mesh.ranks)
        return self._norm(self.gradient, [slice(0, self.gradient.size)], mesh.copy)

    def weight_norm(self, piece: int = 1 << 20) -> float:
        return float(self._norm(self.weight, [slice(0, self.weight.size)], self.model.mesh.copy))

    def last_change(self, group: Group, part: slice) -> Array:
        """Without what counts elsewhere: the norm of the step asks for it."""
        change = super().last_change(group, part)
        for run in self._within(part, False):
            change[run.start - part.start : run.stop - part.start] = 0
        return change

    def update_norm(self, piece: int = 1 << 20) -> float:
        total = np.array([sum(self.squared_update_norm(group, piece) for group in self.groups)])
        self.model.mesh.copy.all_reduce(total)
        return math.sqrt(float(total[0]))

    def state_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Those of the complete model. All ranks call it together."""
        model, shapes = self.model, {}
        for key, own in super().state_shapes().items():
            held = np.array([name in own for name in model.shapes], np.int64)
            model.mesh.copy.all_reduce(held)
            shapes[key] = {name: shape for (name, shape), n in zip(model.shapes.items(), held.tolist(), strict=True) if n}
        return shapes

    def state_arrays(self) -> dict[str, dict[str, Array]]:
        """All of the state, on the host, at the first rank; nothing at others. All of them call it."""
        model, shapes, own = self.model, self.state_shapes(), super().state_arrays()
        if model.mesh.data.rank:  # where the state is sharded, those of the first coordinate have gathered it
            return {}
        complete: dict[str, dict[str, Array]] = {key: {} for key in shapes}
        for key, name in ((key, name) for key, named in shapes.items() for name in named):
            part = own[key].get(name)  # on the host where the state is sharded; ranks gather what is on their devices
            array = model.gathered(name, None if part is None else backend.to_device(part))
            if model.mesh.leads:
                complete[key][name] = backend.to_host(array)
        return complete if model.mesh.leads else {}

    def load_state(self, key: str, given: Mapping[str, Array]) -> None:
        """From complete arrays, of which each rank reads those that it holds, and takes its part."""
        super().load_state(key, OwnParts(self.model, [name for name, _ in self._states[key][1]], given))


class OwnParts(Mapping[str, Array]):
    """A rank's parts of complete arrays, cut when they are asked for."""

    def __init__(self, model: DividedGPT, names: Sequence[str], complete: Mapping[str, Array]) -> None:
        self.model, self.names, self.complete = model, names, complete

    def __getitem__(self, name: str) -> Array:
        return self.model.own_part(name, self.complete[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def divide(model: GPT, mesh: Mesh) -> DividedGPT:
    """This rank's part of a model that all ranks have made alike. Raises ValueError for layers or heads that cannot be divided."""
    part = DividedGPT(model, mesh)
    if mesh.shape.tensor > 1:
        split(part, mesh.tensor)
    return part


def make_divided(config: GPTConfig, seed: int, mesh: Mesh) -> DividedGPT:
    """This rank's part of `GPT(config, seed)`, which is never in memory: each parameter is drawn, as in one process, and what others hold of it
    is dropped before the next. So a model begins with the same weights on any mesh. Raises as `divide` does."""
    init = Later(config, seed)
    model = GPT(config, seed, _init=init)
    weights = init.draw(model)
    part = divide(model, mesh)
    del model
    mine = dict(part.named_parameters())
    for name, complete in weights:
        if name in mine:
            mine[name].data = part.own_part(name, complete)
    return part


def divided_optimizer(cls: type[FlatOptimizer], model: DividedGPT, share: Communicator | None = None) -> type[FlatOptimizer]:
    """The class of an optimizer for this rank's part of a model. share: the ranks that divide its state among them, too (ZeRO stage 1)."""
    mesh = model.mesh
    if mesh.shape.tensor > 1 and issubclass(cls, Muon):
        cls = type(cls.__name__, (SplitMatrices, cls), {"config": model.config, "group": mesh.tensor})
    if share is not None:
        cls = sharded(cls, share)
    return type(cls.__name__, (Divided, cls), {"model": model})


class MeshWorkers:
    """The ranks of a mesh, as a `GradientWorkers`: each has a `Trainer` for its part of the model.

    rows       of a micro-batch
    order      of the pipeline's passes
    shard      ranks of data share the optimizer's state, too (`tinygpt.parallel.zero`)
    Raises ValueError, on all ranks, where one has other settings than the first.
    """

    def __init__(self, model: DividedGPT, mesh: Mesh, rows: int, *, order: Order = "1f1b", shard: bool = False) -> None:
        check_same(mesh.ranks, {**vars(model.config), "micro_batch": rows, "order": order, "shard_optimizer": shard})
        check_shape(mesh.shape, model.config, rows)
        self.model, self.mesh, self.shard = model, mesh, shard
        self.ranks, self.measuring, self.n = mesh.ranks, mesh.data, mesh.shape.size
        self.pipeline = Pipeline(model, order)
        self.n_threads, self.note, self.buffers = threads_of(mesh.ranks), crowded(mesh.ranks), Buffers(mesh.data)
        for _, p in model.named_parameters():
            mesh.data.broadcast(p.data)

    def optimizer_class(self, cls: type[FlatOptimizer]) -> type[FlatOptimizer]:
        return divided_optimizer(cls, self.model, self.mesh.data if self.shard else None)

    def gradients(self, optimizer: FlatOptimizer, batches: Sequence[Batch], shares: Sequence[float]) -> Array:
        """As `GradientWorkers.gradients`, on each rank for its part of the model."""
        mesh, pipeline = self.mesh, self.pipeline
        assert isinstance(optimizer, Divided)
        self.note = self.buffers.move(optimizer, weights=self.shard) or self.note
        with use_threads(self.n_threads):
            loss = pipeline.accumulate(shards_of(batches, shares, mesh.data.size)[mesh.data.rank])
        if backend.debug:
            self._tell_failure()
        optimizer.sum_gradients()
        total = backend.xp.asarray(loss if mesh.tensor.rank == 0 else 0 * loss).reshape(1)
        mesh.ranks.all_reduce(total)
        return total[0]

    def _tell_failure(self) -> None:
        """Raises FloatingPointError on all ranks where an op of one has failed: of several, the one that one process would have met first."""
        n, failure = self.n, self.pipeline.failure
        first = self.ranks.agree(-float((failure.order * _MAX_CHECKS + failure.n_checks) * n + self.ranks.rank) if failure else -np.inf)
        if first > -np.inf:
            raise FloatingPointError(tell(self.ranks, failure.text if failure else "", int(-first) % n))

    def first_found(self, text: str) -> str:
        first = int(self.ranks.agree(self.n - self.ranks.rank if text else 0))
        return tell(self.ranks, text, self.n - first) if first else ""

    def close(self) -> None:
        """Ranks end with their programs."""

    def peak_bytes(self) -> int:
        return peak_bytes_of_others(self.ranks, self.buffers.others_bytes)
