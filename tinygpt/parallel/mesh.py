"""A mesh of ranks: data x tensor x pipeline parallelism at once.

    mesh data=2,tensor=2,pipeline=2       a rank is a point: (data, tensor, pipeline)
    data       ranks with the same part of the model and other rows: their gradients are added up       once an update
    tensor     ranks that share each layer: their parts of its result are added up                      four times a layer and micro-batch
    pipeline   ranks with other layers: they pass activations on                                        twice a stage and micro-batch

Who talks most is closest: neighboring ranks share layers, then come those of data, and the stages of a pipeline are the farthest apart.

Source  Narayanan et al. 2021, arXiv:2104.04473, sections 2 and 3.
"""

from typing import NamedTuple

from tinygpt.errors import InvalidInput, did_you_mean
from tinygpt.model_config import GPTConfig
from tinygpt.models.protocols import Communicator
from tinygpt.parallel.communicator import OneRank, check_same, tell
from tinygpt.parallel.pipeline import check_layers
from tinygpt.parallel.split_state import check_divides

AXES = ("data", "tensor", "pipeline")


class Shape(NamedTuple):
    """How many ranks there are along each axis of a mesh."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1

    def __str__(self) -> str:
        return ",".join(f"{axis}={n}" for axis, n in zip(AXES, self, strict=True))

    @property
    def size(self) -> int:
        return self.data * self.tensor * self.pipeline


def parse(text: str) -> Shape:
    """The shape that `data=2,tensor=2,pipeline=2` means; an axis that is left out has one rank. Raises ValueError for anything else."""
    found: dict[str, int] = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        axis, _, n = part.partition("=")
        if axis not in AXES or axis in found or not n.isascii() or not n.isdigit() or int(n) < 1:
            hint = f"; {did_you_mean(axis, AXES)}" if axis not in AXES else ""
            rule = "expected data=N,tensor=N,pipeline=N, each at most once and N at least 1"
            raise InvalidInput(f"mesh: {part!r} in {text!r}, {rule}{hint}")
        found[axis] = int(n)
    return Shape(**found)


class Mesh:
    """This rank's point of a mesh, and the ranks along each axis through it.

    shape                    how many ranks there are along each axis
    ranks                    all of them
    data, tensor, pipeline   the ranks that differ from this one in that coordinate alone
    copy                     those that hold a copy of the model together: all with the same data coordinate
    Raises ValueError for a shape that does not multiply to the number of ranks, and where ranks have different ones.
    """

    def __init__(self, shape: Shape, ranks: Communicator) -> None:
        check_same(ranks, {"mesh": str(shape)})
        if shape.size != ranks.size:
            product = " x ".join(map(str, shape))
            fix = f"start {shape.size}: mpiexec -n {shape.size}, or change --mesh"
            raise InvalidInput(f"mesh: {shape} is {product} = {shape.size} ranks, expected {ranks.size}, as many as there are; {fix}")
        self.shape, self.ranks = shape, ranks
        rest, t = divmod(ranks.rank, shape.tensor)
        p, d = divmod(rest, shape.data)
        one = OneRank()
        self.data: Communicator = ranks.split(p * shape.tensor + t) if shape.data > 1 else one
        self.tensor: Communicator = ranks.split(p * shape.data + d) if shape.tensor > 1 else one
        self.pipeline: Communicator = ranks.split(d * shape.tensor + t) if shape.pipeline > 1 else one
        self.copy: Communicator = ranks.split(d) if shape.data > 1 else ranks
        ends = int(p in (0, shape.pipeline - 1))
        self.ends: Communicator = ranks.split((d * shape.tensor + t) * 2 + ends) if shape.pipeline > 1 else one

    @property
    def leads(self) -> bool:
        """Whether this is the rank at which a model is put together: the first."""
        return self.ranks.rank == 0

    def who(self) -> str:
        """The coordinates of each rank, one a line."""
        mine = f"data {self.data.rank}, tensor {self.tensor.rank}, pipeline {self.pipeline.rank}"
        return "\n".join(f"rank {rank}: {tell(self.ranks, mine, rank)}" for rank in range(self.ranks.size))


def check_shape(shape: Shape, config: GPTConfig, rows: int) -> None:
    """Raises ValueError for layers, heads or rows that cannot be divided like that."""
    check_layers(config, shape.pipeline)
    check_divides(config, shape.tensor)
    if rows < shape.data:
        rule = f"expected at least {shape.data}, one for each rank of data"
        raise InvalidInput(f"TrainConfig.micro_batch: {rows} rows with mesh {shape}, {rule}; take a larger one (--micro-batch)")
