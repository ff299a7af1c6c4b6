"""This machine as a `Device`: what matrix products, memory, a training step and a sum over ranks reach here.

Ranks of `mpiexec` measure at the same time, so that what they share, cores and memory, is shared as in training; the slowest one's time counts.
"""

import dataclasses
import math
import os
import time
from collections.abc import Callable

import numpy as np

from autograd.limits import memory_limit
from autograd.optim import AdamW
from autograd.threads import n_threads, use_threads
from tinygpt.model_config import GPTConfig
from tinygpt.models.gpt import GPT
from tinygpt.parallel.communicator import world
from tinygpt.parallel.data import threads_of
from tinygpt.parallel.shared import SharesMemory, on_one_machine
from tinygpt.planner.formulas import matrix_weights
from tinygpt.planner.hardware import DEVICES, Device
from tinygpt.planner.step import Job, seconds


def measure(config: GPTConfig, micro: int, *, repeats: int = 5) -> Device:
    """As `_measure`, with the threads that a rank gets."""
    with use_threads(threads_of(world())):
        return _measure(config, micro, repeats)


def _measure(config: GPTConfig, micro: int, repeats: int) -> Device:
    """The CPU of this machine, training `config` with micro-batches of that many sequences.

    `products` is 1, since `flops` are measured on products of the model's own shapes; `values` is what remains of a measured step.
    """
    c = config
    tokens = micro * c.n_positions
    shapes = [shape for shape in c.block_shapes().values() if len(shape) == 2]
    rng = np.random.default_rng(0)
    pairs = [(rng.random((tokens, a), np.float32), rng.random((a, b), np.float32)) for a, b in shapes]
    flops = 2 * tokens * matrix_weights(c) / fastest(lambda: [x @ w for x, w in pairs], repeats)
    source = np.ones(1 << 24, np.float32)
    target = np.empty_like(source)
    bandwidth = 2 * source.nbytes / fastest(lambda: np.copyto(target, source), repeats)
    within, latency = link(repeats) if world().size > 1 else (bandwidth / 2, DEVICES["laptop"].latency)
    here = dataclasses.replace(
        DEVICES["laptop"], name="this machine", flops=flops, bandwidth=bandwidth, within=within, memory=float(memory_limit()[0]),
        latency=latency, per_node=max(os.cpu_count() or 1, world().here), products=1.0, values=0.0,
        source=f"measured here: {n_threads()} threads, {tokens} tokens at a time",
    )  # fmt: skip
    job = Job(c, here, batch=micro, micro=micro)
    step = step_seconds(c, micro, repeats)
    rest = step - seconds(job).total
    if rest < 0:  # in a step the products were faster than alone: another program was there, or they overlap
        fixed = seconds(dataclasses.replace(job, device=dataclasses.replace(here, flops=math.inf))).total
        return dataclasses.replace(here, flops=flops * (seconds(job).total - fixed) / max(step - fixed, 1e-9))
    return dataclasses.replace(here, values=rest * bandwidth / (c.n_layer * tokens * c.n_embd * here.number))


def link(repeats: int) -> tuple[float, float]:
    """(bytes/s in one direction, seconds of a message) that make the formula of a ring give the time of all-reduces: a long one, a short one.

    The long one lies where training has its gradients: in memory that the ranks share, if they are on one machine."""
    ranks, short, size = world(), np.zeros(1, np.float32), 1 << 23
    n, window = ranks.size, ranks.share(size, short.dtype) if isinstance(ranks, SharesMemory) and on_one_machine(ranks) else None
    long = np.zeros(size, np.float32) if window is None else window.own
    long[...] = 0
    latency = fastest(lambda: ranks.all_reduce(short), 10 * repeats) / (2 * (n - 1))
    took = fastest(lambda: ranks.all_reduce(long), repeats)
    if window is not None and isinstance(ranks, SharesMemory):
        ranks.close(window)
    return 2 * (n - 1) * long.nbytes / n / max(took - 2 * (n - 1) * latency, 1e-9), latency


def step_seconds(config: GPTConfig, micro: int, repeats: int = 5) -> float:
    """An update of one micro-batch with AdamW."""
    model = GPT(config, seed=0)
    optimizer = AdamW(model, lr=1e-4)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (micro, config.n_positions + 1))

    def update() -> None:
        optimizer.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
        optimizer.step(max_norm=1.0)

    return fastest(update, repeats)


def fastest(call: Callable[[], object], repeats: int) -> float:
    """Seconds of the fastest of that many calls, after one that is not counted. Ranks begin together, and the slowest counts."""
    call()
    times = []
    for _ in range(repeats):
        world().agree(0)
        start = time.perf_counter()
        call()
        times.append(world().agree(time.perf_counter() - start))
    return min(times)
