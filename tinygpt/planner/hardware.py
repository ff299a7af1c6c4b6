"""What a plan needs to know of a processor: a few numbers of its data sheet, and three that say how much of them training gets."""

from dataclasses import dataclass, replace

from tinygpt.errors import InvalidInput, did_you_mean

GB, TERA = 1e9, 1e12


@dataclass(frozen=True)
class Device:
    """A processor and its surroundings.

    flops       FLOP/s of matrix products in the dtype of training, without sparsity
    memory      bytes
    bandwidth   bytes/s between the processor and its memory
    within      bytes/s that one sends to the others of its node, in one direction
    between     bytes/s that one sends to another node
    per_node    devices of a node
    latency     seconds until a message of no bytes arrives
    watts       of the board; node_watts: its share of the power of the node's data sheet, processors and network included
    rent        dollars an hour, lowest and highest; price: dollars
    number      bytes of an activation, and of a gradient that is summed over devices: 2 for 16 bits
    weight      bytes per weight: the copy that computes, its gradient, and what the optimizer keeps (a 32-bit copy, two moments)
    products    the share of `flops` that matrix products reach
    values      numbers that move between processor and memory per channel, token and block, forward and backward, products aside
    exposed     how many times longer than by its formula the sum of gradients takes: below 1 where it overlaps with computing
    source      of these numbers
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    within: float
    between: float
    per_node: int
    watts: float
    node_watts: float
    rent: tuple[float, float]
    price: float
    latency: float = 5e-6
    number: int = 2
    weight: tuple[int, int, int] = (2, 4, 12)
    products: float = 0.6793
    values: float = 143.6
    exposed: float = 1.511
    source: str = ""


_A100 = Device(
    "a100", 312 * TERA, 80 * GB, 2039 * GB, 300 * GB, 25 * GB, 8, 400, 6500 / 8, (1.0, 2.0), 10_000,
    source="NVIDIA A100 80GB SXM and DGX A100 data sheets: 600 GB/s NVLink in both directions, 8 x 200 Gb/s InfiniBand, 6.5 kW a node; "
    "rent and price: the course's overview",
)  # fmt: skip
_H100 = Device(
    "h100", 989 * TERA, 80 * GB, 3350 * GB, 450 * GB, 50 * GB, 8, 700, 10_200 / 8, (3.0, 3.5), 30_000,
    source="NVIDIA H100 SXM and DGX H100 data sheets: 900 GB/s NVLink in both directions, 8 x 400 Gb/s InfiniBand, 10.2 kW a node; "
    "rent: 8 for $24 an hour (nanochat's report) to $28 (llm.c, discussion 677: $672 for 24 hours); price: an assumption",
)  # fmt: skip
_LAPTOP = Device(
    "laptop", 0.1 * TERA, 16 * GB, 40 * GB, 10 * GB, 0.1 * GB, 1, 45, 60, (0.0, 0.0), 1_000, number=4, weight=(4, 4, 8), products=0.6,
    exposed=1.0, source="an assumption: two to four cores with AVX2, float32; --measure takes this machine's own numbers",
)  # fmt: skip

DEVICES = {
    "a100": _A100,
    "h100": _H100,
    "h200": replace(_H100, name="h200", memory=141 * GB, bandwidth=4800 * GB, source="NVIDIA H200 SXM data sheet; the rest as the H100"),
    "laptop": _LAPTOP,
}
"""By name. `products`, `values` and `exposed` of the GPUs are fitted to the five rows of `tinygpt.planner.published` that are marked for it."""


def device(name: str) -> Device:
    """Raises ValueError for an unknown name, with the nearest one."""
    if name not in DEVICES:
        raise InvalidInput(f"device {name!r}: unknown, expected one of {', '.join(DEVICES)}; {did_you_mean(name, DEVICES)}")
    return DEVICES[name]
