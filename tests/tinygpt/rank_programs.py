"""What the tests of ranks let every rank do, whatever the communicator: `test_ranks.py` runs them in threads and under mpiexec.

mpiexec -n 3 python -m mpi4py tests/tinygpt/rank_programs.py laws 5
"""

import json
import sys

import numpy as np

from autograd.backend import to_device, to_host
from tinygpt import GPT, GPTConfig
from tinygpt.config import TrainConfig
from tinygpt.data.windows import Windows
from tinygpt.parallel.communicator import tell, world
from tinygpt.parallel.data import DataParallel
from tinygpt.parallel.divided import Divided, MeshWorkers, divide
from tinygpt.parallel.mesh import Mesh, Shape
from tinygpt.parallel.shared import SharesMemory
from tinygpt.parallel.slices import SumsInBackground
from tinygpt.parallel.split_state import joined
from tinygpt.parallel.tensor import join
from tinygpt.training.metrics import measure
from tinygpt.training.optimizers import make_optimizer
from tinygpt.training.step import train_step


def laws(ranks, seed):
    """Every operation against what NumPy makes of all ranks' arrays, which each rank can draw."""
    shared = np.random.default_rng(seed)
    size, rank = ranks.size, ranks.rank
    for dtype in (np.float32, np.float64):
        lengths = shared.integers(0, 5, size).tolist()
        n = sum(lengths)
        given = shared.integers(-8, 8, (size, n)).astype(dtype)  # sums of integers have no rounding
        starts = np.cumsum([0, *lengths])
        own = slice(starts[rank], starts[rank + 1])

        array = to_device(given[rank].copy())
        ranks.all_reduce(array)
        np.testing.assert_array_equal(to_host(array), given.sum(0))

        if isinstance(ranks, SumsInBackground):
            arrays = [to_device(given[rank].copy()) for _ in range(2)]
            for one in [ranks.begin_all_reduce(array) for array in arrays][::-1]:
                one.wait()
            for array in arrays:
                np.testing.assert_array_equal(to_host(array), given.sum(0))

        part = ranks.reduce_scatter(to_device(given[rank].copy()), lengths)
        np.testing.assert_array_equal(to_host(part), given.sum(0)[own])

        out = to_device(np.zeros(n, dtype))
        out[own] = to_device(given[0][own])
        ranks.all_gather(out[own], out, lengths)
        np.testing.assert_array_equal(to_host(out), given[0])

        root = int(shared.integers(size))
        array = to_device(given[rank].copy())
        ranks.broadcast(array, root)
        np.testing.assert_array_equal(to_host(array), given[root])

        assert ranks.agree(float(given[rank].max(initial=-9))) == given.max(initial=-9)
        if size > 1:  # around the ring, two messages each, all sending first
            right, left = (rank + 1) % size, (rank - 1) % size
            sent = [ranks.send(to_device(message), right) for message in (given[rank], -given[rank])]
            for sign in (1, -1):
                array = to_device(np.zeros(n, dtype))
                ranks.receive(array, left)
                np.testing.assert_array_equal(to_host(array), sign * given[left])
            for message in sent:
                message.wait()
        colors = shared.integers(0, 2, size).tolist()
        some = ranks.split(colors[rank])
        array = to_device(given[rank].copy())
        some.all_reduce(array)
        same = [other for other in range(size) if colors[other] == colors[rank]]
        assert (some.size, some.rank) == (len(same), same.index(rank))
        np.testing.assert_array_equal(to_host(array), given[same].sum(0))
        assert tell(ranks, f"é from {rank}", root) == f"é from {root}"
    return "ok"


def many_laws(ranks, first):
    """Those of arrays in memory that the ranks share, too, where they can."""
    found = {laws(ranks, seed) for seed in range(first, first + 20)}
    if isinstance(ranks, SharesMemory):
        found |= {laws_in_shared_memory(ranks, seed) for seed in range(first, first + 20)}
    return " ".join(sorted(found))


def laws_in_shared_memory(ranks, seed):
    """Of parts of a window's row, several windows open; the rest of the row stays as it is. A closed one is an array like any other."""
    shared = np.random.default_rng(seed)
    size, rank, dtype = ranks.size, ranks.rank, np.dtype(shared.choice(["float32", "float64"]))
    lengths = shared.integers(0, [5, 40_000][seed % 2], size).tolist()
    first, n = int(shared.integers(3)), sum(lengths)
    part, starts = slice(first, first + n), np.cumsum([first, *lengths])
    own = slice(starts[rank], starts[rank + 1])
    given = shared.integers(-8, 8, (size, first + n + 2)).astype(dtype)
    other, window = ranks.share(7, dtype), ranks.share(first + n + 2, dtype)
    for closed in (False, True):
        if closed:
            ranks.close(window)
        total = given[rank].copy()
        total[part] = given[:, part].sum(0)
        window.own[...] = given[rank]
        ranks.all_reduce(window.own[part])
        np.testing.assert_array_equal(window.own, total)
        window.own[...] = given[rank]
        np.testing.assert_array_equal(ranks.reduce_scatter(window.own[part], lengths), given[:, own].sum(0))
        for mine in (window.own[own], given[0][own]):  # part of the row, or from elsewhere
            window.own[...] = given[rank]
            window.own[own] = given[0][own]
            ranks.all_gather(mine, window.own[part], lengths)
            np.testing.assert_array_equal(window.own[part], given[0][part])
            np.testing.assert_array_equal(window.own[part.stop :], given[rank][part.stop :])
    ranks.close(other)
    return "shared: ok"


def model_and_batches(seed, dtype, n_batches, dropout):
    config = GPTConfig(n_layer=2, n_head=2, n_embd=8, n_positions=6, vocab_size=16, dropout=dropout)
    model = GPT(config, seed=seed)
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    ids = np.random.default_rng(seed).integers(0, 16, (20, n_batches, 4, 7))
    targets = ids[..., 1:].copy()
    targets[np.random.default_rng(seed + 1).random(targets.shape) < 0.3] = -100  # parts differ in how many count
    targets[:, :, 1] = -100  # a row without any
    return model, ids[..., :-1], targets


def state_of(ranks, optimizer):
    """Copies of the optimizer's state, on all ranks: where they share it, the first alone gets all of it."""
    arrays, copies = optimizer.state_arrays(), {}
    for key, shapes in optimizer.state_shapes().items():
        copies[key] = {
            name: np.array(to_host(arrays[key][name])) if arrays else np.zeros(shape, optimizer.weight.dtype)
            for name, shape in shapes.items()
        }
        for array in copies[key].values():
            ranks.broadcast(array)
    return copies


def training(ranks, seed, dtype="float64", kind="adamw", n_batches=2, dropout=0.1, steps=10, shard=False):
    """Losses, all weights, and all of the optimizer's state after some updates with clipping: those of one process, whatever the number of ranks."""
    model, ids, targets = model_and_batches(seed, np.dtype(dtype), n_batches, dropout)
    if ranks.rank:
        for p in model.parameters():
            p.data *= 2  # the first rank's weights count
    workers = DataParallel(model, ranks, rows=4, shard=shard)
    settings = TrainConfig(optimizer=kind, lr=1e-2, weight_decay=0.1, steps=100)
    optimizer = make_optimizer(model, settings, workers.optimizer_class)
    losses = []
    for step in range(steps):
        loss, _ = train_step(model, optimizer, list(zip(ids[step % 20], targets[step % 20], strict=True)), max_norm=0.5, workers=workers)
        losses += [float(loss), optimizer.update_norm()]
        if step == steps // 2:  # as a run that is resumed
            state = state_of(ranks, optimizer)
            optimizer = make_optimizer(model, settings, workers.optimizer_class)
            optimizer.load_state_dict({"n_steps": step + 1, **state})
    items = Windows(np.random.default_rng(3).integers(0, 16, 200).astype(np.uint16), 6)
    state = [a for arrays in state_of(ranks, optimizer).values() for a in arrays.values()]
    return [
        *losses,
        measure(model, items, 3, ranks=ranks).nats,
        *optimizer.weight.tolist(),
        *np.concatenate([a.reshape(-1) for a in state]).tolist(),
    ]


def tensor_training(ranks, options, seed, dtype="float64", kind="adamw", n_batches=1, steps=10, dropout=0.1):
    """(losses and norms, all weights, all of the optimizer's state) after updates with clipping of a model that the ranks share by heads."""
    config = GPTConfig(**{"n_layer": 2, "n_head": 4, "n_embd": 16, "n_positions": 6, "vocab_size": 19, "dropout": dropout, **options})
    model, rng = GPT(config, seed=seed), np.random.default_rng(seed)
    for p in model.parameters():
        p.data = (p.data + 0.1 * rng.standard_normal(p.shape)).astype(dtype)  # biases and norms, too
    mesh = Mesh(Shape(tensor=ranks.size), ranks)
    part = divide(model, mesh)
    workers = MeshWorkers(part, mesh, 3)
    optimizer = make_optimizer(part, TrainConfig(optimizer=kind, lr=1e-2, weight_decay=0.1, steps=100), workers.optimizer_class)
    ids = rng.integers(0, config.vocab_size, (steps, n_batches, 3, 7))
    targets = ids[..., 1:].copy()
    targets[rng.random(targets.shape) < 0.3] = -100
    numbers = []
    for step in range(steps):
        loss, norm = train_step(part, optimizer, list(zip(ids[step, ..., :-1], targets[step], strict=True)), max_norm=0.5, workers=workers)
        numbers += [float(loss), float(norm), optimizer.update_norm()]
    weights = {name: p.data.tolist() for name, p in join(part, mesh.tensor).named_parameters()}
    own = super(Divided, optimizer).state_arrays()  # a checkpoint's is complete at the first rank alone
    return numbers, weights, {k: {n: joined(n, a, config, mesh.tensor).tolist() for n, a in state.items()} for k, state in own.items()}


if __name__ == "__main__":
    program, *arguments = sys.argv[1:]
    programs = {"laws": laws, "many_laws": many_laws, "training": training, "tensor": tensor_training}
    found = programs[program](world(), *map(json.loads, arguments))
    everywhere = [tell(world(), json.dumps(found), root) for root in range(world().size)]
    assert len(set(everywhere)) == 1, "ranks differ"  # bit for bit
    if world().rank == 0:
        print(everywhere[0])
