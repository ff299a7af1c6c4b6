"""What the tests of meshes let every rank do: `test_mesh.py` runs it in threads and under mpiexec.

mpiexec -n 4 python -m mpi4py tests/tinygpt/mesh_programs.py '{"shape": [2, 1, 2]}'
"""

import functools
import json
import sys

import numpy as np

from tests.tinygpt.rank_programs import model_and_batches, state_of
from tinygpt import GPT, GPTConfig
from tinygpt.config import TrainConfig
from tinygpt.data.windows import Windows
from tinygpt.parallel.communicator import OneRank, tell, world
from tinygpt.parallel.divided import MeshWorkers, divide, make_divided
from tinygpt.parallel.mesh import Mesh, Shape
from tinygpt.training.metrics import measure, update_ratio
from tinygpt.training.optimizers import make_optimizer
from tinygpt.training.step import train_step
from tinygpt.training.trainer import Trainer


def mesh_training(
    ranks=None, shape=(1, 1, 1), *, seed=0, dtype="float64", optimizer="adamw", n_batches=2, dropout=0.1, steps=10, shard=False,
    order="1f1b", recompute=False, **more,
):  # fmt: skip
    """Losses and norms of updates with clipping, and at the first rank all weights and moments by name: those of one process on any mesh.

    ranks   None: a plain GPT in this process
    """
    config = GPTConfig(n_layer=2, n_head=2, n_embd=8, n_positions=6, vocab_size=16, dropout=dropout, **more)
    _, ids, targets = model_and_batches(seed, np.dtype(dtype), n_batches, dropout)
    model, workers = GPT(config, seed=seed).recompute_blocks(recompute), None
    if ranks:
        model = divide(model, Mesh(Shape(*shape), ranks))
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    if ranks:
        workers = MeshWorkers(model, model.mesh, rows=4, order=order, shard=shard)
    settings = TrainConfig(optimizer=optimizer, lr=1e-2, weight_decay=0.1, steps=100)
    flat = make_optimizer(model, settings, workers.optimizer_class if workers else None)
    losses, norms = [], []
    for step in range(steps):
        which = step % len(ids)
        loss, norm = train_step(model, flat, list(zip(ids[which], targets[which], strict=True)), max_norm=0.5, workers=workers)
        losses.append(float(loss))
        norms += [float(norm), flat.update_norm(), update_ratio(flat)]
        if step == steps // 2:  # as a run that is resumed: all ranks read the complete state
            state = state_of(ranks or OneRank(), flat)
            flat = make_optimizer(model, settings, workers.optimizer_class if workers else None)
            flat.load_state_dict({"n_steps": step + 1, **state})
    items = Windows(np.random.default_rng(3).integers(0, 16, 100).astype(np.uint16), 6)
    losses.append(measure(model, items, 3, ranks=workers.measuring if workers else None).nats)
    full, arrays = model.complete() if ranks else model, flat.state_arrays()
    state = {f"{key}.{name}": a.reshape(-1).tolist() for key, named in arrays.items() for name, a in named.items()}
    weights = {name: p.data.reshape(-1).tolist() for name, p in full.named_parameters()} if full else {}
    return {"losses": losses, "norms": norms, "draws": model.dropout_stream.counter, "weights": weights, "state": state if full else {}}


@functools.cache
def alone(**options):
    """What one process computes."""
    return mesh_training(None, **options)


def differences(found, expected):
    """The largest difference of weights and of the state."""
    assert found["weights"].keys() == expected["weights"].keys() and found["state"].keys() == expected["state"].keys()
    return [
        max(np.abs(np.subtract(found[what][name], expected[what][name])).max() for name in expected[what]) for what in ("weights", "state")
    ]


def tiny_trainer(ranks=None, shape=(1, 1, 1), config=None, shard=False):
    config = config or GPTConfig(n_layer=2, n_head=2, n_embd=8, n_positions=6, vocab_size=300)
    train, workers = TrainConfig(micro_batch=2, steps=4, lr=1e-2), None
    model = make_divided(config, 0, Mesh(Shape(*shape), ranks)) if ranks else GPT(config, seed=0)
    if ranks:
        workers = MeshWorkers(model, model.mesh, rows=2, shard=shard)
    return Trainer(model, train, Windows(np.arange(200) % 250, 6), None, workers)


if __name__ == "__main__":
    found = mesh_training(world(), **json.loads(sys.argv[1]))
    same = [
        {key: json.loads(tell(world(), json.dumps(found[key]), rank)) for key in ("losses", "norms", "draws")}
        for rank in range(world().size)
    ]
    assert all(each == same[0] for each in same), "ranks differ"
    if world().rank == 0:
        print(json.dumps(found))
