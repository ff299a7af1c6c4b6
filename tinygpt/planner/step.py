"""One update of a large model on many devices: how long each part takes, and what each device has to hold.

    job = Job(GPTConfig.preset("gpt3"), device("a100"), Mesh(data=6, tensor=8, pipeline=12), batch=1536)
    seconds(job).total, memory(job).total

data copies of the model compute different sequences, tensor devices share each matrix, pipeline devices hold some of the blocks each.
The main parts are derived in docs/planning.md; what no formula knows are `products`, `values` and `exposed` of a `Device`.

Source  Narayanan et al. 2021, arXiv:2104.04473 (the three axes, their traffic); Korthikanti et al. 2022, arXiv:2205.05198 (activations).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tinygpt.errors import InvalidInput
from tinygpt.model_config import GPTConfig
from tinygpt.planner.formulas import matrix_weights, ring
from tinygpt.planner.hardware import Device
from tinygpt.training.memory_budget import saved_by_block

Recompute = Literal["none", "attention", "full"]
_OPTIMIZER_BYTES = 30  # of memory traffic per weight: gradient, weights and moments read and written, and both copies of the weight
_SCORE_PASSES = 10  # over all scores of attention, forward and backward, where they are arrays


@dataclass(frozen=True)
class Mesh:
    """How many devices along each axis; their product is the number of devices."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1

    @property
    def n(self) -> int:
        return self.data * self.tensor * self.pipeline

    def __str__(self) -> str:
        return f"data={self.data},tensor={self.tensor},pipeline={self.pipeline}"


@dataclass(frozen=True)
class Job:
    """What is trained on what.

    batch        sequences of an update, of `config.n_positions` tokens each
    micro        sequences that one device computes at a time
    recompute    what the backward pass computes again instead of keeping it: nothing, attention's scores, or blocks
    fused        attention keeps no scores (FlashAttention), and skips those of later tokens
    sequence     tensor devices share norms and residuals, too (sequence parallelism)
    chunks       parts of the pipeline that a device holds, interleaved: they divide the bubble
    sharded      the data axis shares the optimizer's state (ZeRO stage 1)
    """

    config: GPTConfig
    device: Device
    mesh: Mesh = Mesh()
    batch: int = 1
    micro: int = 1
    recompute: Recompute = "none"
    fused: bool = True
    sequence: bool = False
    chunks: int = 1
    sharded: bool = True

    def __post_init__(self) -> None:
        c, m = self.config, self.mesh
        if min(m.data, m.tensor, m.pipeline, self.batch, self.micro, self.chunks) < 1:
            raise InvalidInput(f"mesh {m}, batch {self.batch}, micro-batch {self.micro}: expected at least 1 of each")
        for what, n, parts, axis in (
            ("heads", c.n_head, m.tensor, "tensor"), ("heads of keys and values", c.kv_heads, m.tensor, "tensor"),
            ("blocks", c.n_layer, m.pipeline, "pipeline"), ("sequences of a batch", self.batch, m.data * self.micro, "data x micro-batch"),
        ):  # fmt: skip
            if n % parts:
                raise InvalidInput(f"mesh {m}: {n} {what}, expected a multiple of {parts} ({axis}); change the mesh or the model")

    @property
    def micro_batches(self) -> int:
        """Of an update, on each device (M)."""
        return self.batch // self.mesh.data // self.micro

    @property
    def n_tokens(self) -> int:
        """Tokens of an update."""
        return self.batch * self.config.n_positions


class Parts(dict[str, float]):
    """Seconds or bytes, by what they are for."""

    @property
    def total(self) -> float:
        return sum(self.values())


def seconds(job: Job) -> Parts:
    """Seconds of an update, of a device's own work and of what it waits for."""
    c, d, mesh, m = job.config, job.device, job.mesh, job.micro_batches
    tokens, t = job.micro * c.n_positions, mesh.tensor
    rate = d.flops * d.products
    passes = 4.0 if job.recompute == "full" else 3.0  # one forward, two backward
    attention = 4 * tokens * c.n_positions * c.n_head * c.channels_per_head * (0.5 if job.fused else 1.0) / t
    products = (passes * (2 * tokens * matrix_weights(c) / t + attention) + attention * (job.recompute == "attention")) / rate
    shared = 1 / t if job.sequence else 0.4 + 0.6 / t  # each tensor device has norms and residuals: an assumed 0.4 of what moves
    moved = tokens * c.n_embd * d.number * d.values * shared
    if not job.fused:
        moved += _SCORE_PASSES * tokens * c.n_positions * c.n_head * d.number / t
    traffic = moved * passes / 3 / d.bandwidth
    link = d.within if mesh.n <= d.per_node else d.between
    near = d.within if t <= d.per_node else d.between
    sums = (4 + 2 * (job.recompute == "full")) * ring(t, tokens * c.n_embd * d.number, near, d.latency)
    head = 3 * 2 * tokens * c.vocab_size * c.n_embd / t / rate + 8 * tokens * c.vocab_size / t / d.bandwidth
    per_stage = c.n_layer / mesh.pipeline
    stage = per_stage * (products + traffic + sums) + head / mesh.pipeline  # as if blocks and output layer were dealt evenly
    weights = weights_per_device(job)
    return Parts(
        products=m * per_stage * products,
        memory=m * per_stage * traffic,
        output=m * head / mesh.pipeline,
        tensor=m * per_stage * sums,
        messages=m * job.chunks * 2 * tokens * c.n_embd * d.number / link * (mesh.pipeline > 1),
        bubble=(mesh.pipeline - 1) / job.chunks * stage,
        data=d.exposed * ring(mesh.data, weights * d.number, link, d.latency),
        optimizer=weights / (mesh.data if job.sharded else 1) * _OPTIMIZER_BYTES / d.bandwidth,
    )


def traffic(job: Job) -> Parts:
    """Bytes that a device sends in an update: in a ring of n, 2 (n - 1) / n of each array that is summed."""
    c, d, mesh, m = job.config, job.device, job.mesh, job.micro_batches
    activations = job.micro * c.n_positions * c.n_embd * d.number
    sums = (4 + 2 * (job.recompute == "full")) * m * c.n_layer / mesh.pipeline
    return Parts(
        tensor=sums * 2 * (mesh.tensor - 1) / mesh.tensor * activations,
        messages=m * job.chunks * 2.0 * activations * (mesh.pipeline > 1),
        data=2 * (mesh.data - 1) / mesh.data * weights_per_device(job) * d.number,
    )


def weights_per_device(job: Job) -> float:
    """Of the stage that holds most: its blocks, and an embedding or the output layer."""
    c, mesh = job.config, job.mesh
    outer = sum(math.prod(shape) for shape in c.outer_shapes().values())
    ends = outer if mesh.pipeline == 1 else c.vocab_size * c.n_embd
    return ((c.n_parameters() - outer) / mesh.pipeline + ends) / mesh.tensor


def memory(job: Job) -> Parts:
    """Bytes of a device. Activations are those of the first stage, which holds those of as many micro-batches as there are stages."""
    c, d, mesh = job.config, job.device, job.mesh
    weights, tokens, t = weights_per_device(job), job.micro * c.n_positions, mesh.tensor
    in_flight = min(job.micro_batches, mesh.pipeline)
    blocks = c.n_layer / mesh.pipeline * in_flight
    scores = 0.0 if job.fused or job.recompute == "attention" else 2.5 * c.n_head * c.n_positions / t
    kept = saved_by_block(c)
    alone = 0.0 if job.sequence else min(5 * c.n_embd, kept) * (1 - 1 / t)  # what tensor devices do not share
    one = tokens * (kept / t + alone + scores)
    read = tokens * c.n_embd / (t if job.sequence else 1)
    return Parts(
        weights=weights * d.weight[0],
        gradients=weights * d.weight[1],
        optimizer=weights * d.weight[2] / (mesh.data if job.sharded else 1),
        activations=d.number * ((blocks * read + one) if job.recompute == "full" else blocks * one),
        logits=d.number * tokens * c.vocab_size / t,
    )


def utilization(job: Job, step: float) -> float:
    """Model FLOPs / (what the devices could compute in a step of that many seconds); what is computed again does not count.

    Attention counts in full, as in the appendix of Chowdhery et al. 2022 (arXiv:2204.02311): 6 N + 12 L H D T per token.
    """
    c = job.config
    embedding = c.n_positions * c.n_embd if c.positions == "learned" else 0
    if not c.tie_word_embeddings:
        embedding += c.vocab_size * c.n_embd
    per_token = 6 * (c.n_parameters() - embedding) + 12 * c.n_layer * c.n_head * c.channels_per_head * c.n_positions
    return per_token * job.n_tokens / (step * job.mesh.n * job.device.flops)


def meshes(config: GPTConfig, n_devices: int, per_node: int) -> Iterator[Mesh]:
    """Every mesh of that many devices that divides the model; tensor devices stay in a node, since they exchange the most."""
    for tensor in range(1, min(per_node, n_devices) + 1):
        inside = n_devices <= per_node or per_node % tensor == 0
        if inside and n_devices % tensor == 0 and config.n_head % tensor == 0 and config.kv_heads % tensor == 0:
            rest = n_devices // tensor
            yield from (Mesh(rest // p, tensor, p) for p in range(1, rest + 1) if rest % p == 0 and config.n_layer % p == 0)


def best(config: GPTConfig, device: Device, n_devices: int, batch: int, *, share: float = 0.92) -> Job:
    """The fastest job that fits into `share` of each device's memory: over meshes, micro-batches and what is computed again.

    Raises ValueError where none fits, naming the one that needs the least memory.
    """
    jobs = possible(config, device, n_devices, batch)
    fitting = [job for job in jobs if memory(job).total <= share * device.memory]
    if not fitting:
        least = min(jobs, key=lambda job: memory(job).total)
        found = f"{memory(least).total / 1e9:.0f} GB at {least.mesh}"
        raise InvalidInput(f"{device.name}: {found}, expected at most {share * device.memory / 1e9:.0f} GB; take more devices")
    return min(fitting, key=lambda job: seconds(job).total)


def possible(config: GPTConfig, device: Device, n_devices: int, batch: int) -> list[Job]:
    """Every job of that many devices, whether it fits or not. Raises ValueError where no mesh divides batch and model."""
    jobs = []
    for mesh in meshes(config, n_devices, device.per_node):
        for micro in (1, 2, 4, 8, 16, 32, 64):
            if batch % (mesh.data * micro) == 0:
                jobs += [Job(config, device, mesh, batch, micro, recompute, sequence=mesh.tensor > 1) for recompute in ("none", "full")]
    if not jobs:
        raise InvalidInput(f"{n_devices} devices: no mesh divides {batch} sequences, {config.n_layer} blocks and {config.n_head} heads; "
                           "change the batch or the number of devices")  # fmt: skip
    return jobs


def enough(config: GPTConfig, device: Device, batch: int, *, share: float = 0.92) -> int:
    """The fewest devices that hold the training, in full nodes where these divide the model. Raises ValueError where no number does."""
    sizes = sorted({mesh.n * n for mesh in _of_one_copy(config, device.per_node) for n in range(1, batch + 1) if batch % n == 0})
    for n in [n for n in sizes if n % device.per_node == 0] or sizes:
        jobs = possible(config, device, n, batch)
        if any(memory(job).total <= share * device.memory for job in jobs):
            return n
    least = min(memory(job).total for job in jobs)
    raise InvalidInput(f"{device.name}: {least / 1e9:.0f} GB on each of {n} devices, as many as divide the model, expected at most "
                       f"{share * device.memory / 1e9:.0f} GB; take a smaller model or a larger device")  # fmt: skip


def _of_one_copy(config: GPTConfig, per_node: int) -> Iterator[Mesh]:
    """Every division of one copy of the model, within the rules of `meshes`."""
    for tensor in range(1, per_node + 1):
        if per_node % tensor == 0 and config.n_head % tensor == 0 and config.kv_heads % tensor == 0:
            yield from (Mesh(1, tensor, p) for p in range(1, config.n_layer + 1) if config.n_layer % p == 0)
