"""What would training cost? Memory, time, communication, money and energy, from two cores to thousands of GPUs.

    python -m tinygpt plan --model gpt3 --tokens 300e9 --device a100 --devices 1024
    python -m tinygpt plan --flops 5.76e23 --device h100 --devices 512        the model and the tokens that make the most of a budget
    python -m tinygpt plan --model laptop --tokens 3e6 --batch-tokens 2048 --measure          this machine
    python -m tinygpt plan --table                                            compute-optimal sizes, and what they cost
    python -m tinygpt plan --published                                        steps that others have measured, and the prediction

All numbers are closed forms, derived in docs/planning.md; nothing is trained, except by --measure.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tinygpt.arguments import parse_args
from tinygpt.errors import InvalidInput
from tinygpt.fields import Json, PathName, check_fields
from tinygpt.model_config import GPTConfig
from tinygpt.parallel.launch import started_rank
from tinygpt.planner import formulas as f
from tinygpt.planner.hardware import DEVICES, Device, device
from tinygpt.planner.published import by_constant_utilization, predicted, published
from tinygpt.planner.step import Job, Mesh, Parts, best, enough, memory, seconds, traffic, utilization
from tinygpt.presets import PRESETS

COURSE = [
    (4e8, 1.92e19, 8.0e9), (1e9, 1.21e20, 20.2e9), (1e10, 1.23e22, 205.1e9), (6.7e10, 5.76e23, 1.5e12), (1.75e11, 3.85e24, 3.7e12),
    (2.8e11, 9.90e24, 5.9e12), (5.2e11, 3.43e25, 11.0e12), (1e12, 1.27e26, 21.2e12), (1e13, 1.30e28, 216.2e12),
]  # fmt: skip
"""The course's table of compute-optimal models, which is table 3 of Hoffmann et al. 2022: weights, FLOPs, tokens."""


DEFAULT_DEVICE = "h100"

MEASURED_TOKENS = 4096
"""That --measure computes at a time, at most."""


@dataclass(frozen=True)
class PlanConfig:
    model: str = ""
    """A preset (gpt2, gpt3, llama-2-7b ...), or a number of weights such as 7e9; default: the best size for --flops."""
    tokens: float = 0.0
    """Tokens to train on; default: 20 per weight."""
    flops: float = 0.0
    """A budget of FLOPs instead of --model and --tokens."""
    context: int = 0
    """Tokens of a sequence; default: the model's, at most 4096."""
    batch_tokens: float = 2**22
    """Tokens of an update."""
    device: str = ""
    """The processor: a100, h100, h200, laptop; default: h100."""
    devices: int = 0
    """How many of them; default: as few nodes of 8 GPUs as hold the run."""
    mesh: str = ""
    """data=D,tensor=T,pipeline=P, whose product is the number of devices; default: the fastest that fits."""
    micro: int = 1
    """Sequences at a time on a device, with --mesh."""
    recompute: Literal["none", "attention", "full"] = "none"
    """What the backward pass computes again, with --mesh."""
    rent: float = -1.0
    """Dollars per device and hour; default: the range of the device."""
    power_overhead: float = 1.1
    """What the building draws per watt of its computers (PUE)."""
    kg_per_kwh: float = 0.4
    """CO2 of the electricity."""
    device_failures: float = 5.0
    """Mean years between two failures of one device."""
    save_seconds: float = 60.0
    """How long a checkpoint stops training."""
    jitter: float = 0.0
    """Standard deviation of a device's step, as a share of its mean."""
    measure: bool = False
    """Measure this machine, instead of --device; under mpiexec with the ranks that it started, which share each update's sequences."""
    table: bool = False
    """The course's nine compute-optimal models, its costs and its energy, next to what these formulas say."""
    published: bool = False
    """Every published step, next to the prediction."""
    output: PathName = ""
    """A JSON file for the plan."""

    def __post_init__(self) -> None:
        check_fields(self, {0: "tokens flops context devices jitter save_seconds kg_per_kwh", 1: "micro batch_tokens power_overhead"})
        if self.device_failures <= 0:
            raise InvalidInput(f"--device-failures: {self.device_failures:g} years, expected more than 0; 5 is the default")
        other = next((flag for flag in ("mesh", "devices", "device") if getattr(self, flag)), "") if self.measure else ""
        if other:
            raise InvalidInput(f"--measure with --{other}, expected this machine alone; leave one of them out")
        if not self.mesh and (self.micro, self.recompute) != (1, "none"):
            found = f"--micro {self.micro}" if self.micro != 1 else f"--recompute {self.recompute}"
            raise InvalidInput(f"{found} without --mesh, expected a mesh; add --mesh, or leave both to the plan, which chooses them")


def main(argv: list[str] | None = None) -> None:
    """The command `plan`."""
    config = parse_args(PlanConfig(), __doc__, argv, prog="python -m tinygpt plan")
    if config.table:
        print(course_table())
    elif config.published:
        print(published_table())
    else:
        plan(config)


def plan(config: PlanConfig) -> None:
    """Prints the plan, and writes it where --output says."""
    model, tokens = chosen(config)
    batch = max(1, round(config.batch_tokens / model.n_positions))
    if config.measure:
        from tinygpt.parallel.communicator import world
        from tinygpt.planner.measure import measure  # runs the engine

        micro = max(1, min(batch // world().size, MEASURED_TOKENS // model.n_positions))
        n = world().size
        job = Job(model, measure(model, micro), Mesh(data=n), micro * n * max(1, batch // (micro * n)), micro, sharded=False)
    else:
        processor = device(config.device or DEFAULT_DEVICE)
        if config.mesh:
            job = parsed_mesh(config, model, processor, batch)
        else:
            job = best(model, processor, config.devices or enough(model, processor, batch), batch)
    rows = Plan(config, job, tokens)
    print(rows.text())
    if config.output and not started_rank():
        Path(config.output).write_text(json.dumps(rows.fields(), indent=1) + "\n", encoding="utf-8")
        print(f"\nplan  {config.output}")


def chosen(config: PlanConfig) -> tuple[GPTConfig, float]:
    """The model and the number of tokens. Raises ValueError for a name that is neither a preset nor a number."""
    n_weights, tokens = f.compute_optimal(config.flops) if config.flops else (0.0, 0.0)
    if config.model in PRESETS:
        model = GPTConfig.preset(config.model)
    else:
        try:
            n_weights = float(config.model) if config.model else n_weights
        except ValueError:
            GPTConfig.preset(config.model)  # raises, with the nearest name
        if not n_weights:
            raise InvalidInput("plan: no model, expected --model NAME or WEIGHTS, or a budget; add --model gpt3, or --flops 1e21")
        model = of_size(n_weights)
    context = config.context or min(model.n_positions, 4096)
    model = GPTConfig.from_dict({**_fields(model), "n_positions": context})
    if config.flops and config.model:
        tokens = config.flops / (6 * model.n_parameters())
    return model, config.tokens or tokens or f.TOKENS_PER_WEIGHT * model.n_parameters()


def _fields(model: GPTConfig) -> dict[str, Json]:
    return {name: getattr(model, name) for name in model.__dataclass_fields__}


def of_size(n_weights: float, n_positions: int = 2048) -> GPTConfig:
    """A GPT of about that many weights: about 128 channels per block and heads of 128, as GPT-3's larger rows have them (Brown et al. 2020,
    table 2.1). Large ones have blocks and heads in multiples of 8, so that meshes divide them; small ones a small vocabulary."""
    if not 1e5 <= n_weights <= 1e15:
        raise InvalidInput(f"--model: {n_weights:g} weights, expected 1e5 to 1e15; write a preset's name or a number such as 7e9")
    large, tiny = n_weights > 3e9, n_weights < 1e8
    step, multiple, vocabulary = (1024, 8, 51_200) if large else (32, 1, 4096) if tiny else (128, 1, 51_200)
    shapes = []
    for width in range(step, 400 * step, step):
        blocks = max(1, round((n_weights - vocabulary * width) / (12 * width**2) / multiple)) * multiple
        size = 12 * width**2 * blocks + vocabulary * width
        shapes.append((abs(math.log(blocks * 128 / width)) + 20 * abs(math.log(size / n_weights)), width, blocks))
    _, width, blocks = min(shapes)
    n_head = width // 32 if tiny else width // 128
    return GPTConfig(n_layer=blocks, n_head=n_head, n_embd=width, vocab_size=vocabulary, n_positions=256 if tiny else n_positions)


def parsed_mesh(config: PlanConfig, model: GPTConfig, processor: Device, batch: int) -> Job:
    """The job of --mesh. Raises ValueError for axes that do not exist, or do not multiply to the number of devices."""
    axes = {"data": 1, "tensor": 1, "pipeline": 1}
    for part in config.mesh.split(","):
        name, _, n = part.partition("=")
        if name not in axes or not n.isdecimal() or int(n) < 1:
            raise InvalidInput(f"--mesh {config.mesh!r}: {part!r}, expected data=D,tensor=T,pipeline=P; write numbers from 1 on")
        axes[name] = int(n)
    mesh = Mesh(**axes)
    if config.devices not in (0, mesh.n):
        rule = f"a product of {config.devices}, the number of devices"
        raise InvalidInput(f"--mesh {config.mesh!r}: {mesh.n} devices, expected {rule}; change --mesh or --devices")
    return Job(model, processor, mesh, batch, config.micro, config.recompute, sequence=mesh.tensor > 1)


@dataclass(frozen=True)
class Plan:
    """A job, how long its tokens take, and what that costs."""

    config: PlanConfig
    job: Job
    tokens: float

    def fields(self) -> dict[str, Json]:
        """As JSON values: seconds, bytes, dollars, MWh, kg."""
        job, config = self.job, self.config
        parts, held, d = seconds(job), memory(job), job.device
        step = parts.total * (1 + f.straggling(job.mesh.n, config.jitter))
        n_steps = math.ceil(self.tokens / job.n_tokens)
        between = config.device_failures * 365 * f.DAY / job.mesh.n
        lost = f.lost_to_failures(config.save_seconds, 300.0, between)
        total = n_steps * step / max(1 - lost, 1e-3)
        hours = total / f.HOUR * job.mesh.n
        rent = d.rent if config.rent < 0 else (config.rent, config.rent)
        mwh = f.energy_mwh(hours, d.node_watts, config.power_overhead)
        n = job.config.n_parameters()
        return {
            "weights": n, "tokens": self.tokens, "flops_6nd": f.training_flops(n, self.tokens),
            "flops_exact": 3 * f.flops_per_token(job.config, job.config.n_positions, causal=False) * self.tokens,
            "device": d.name, "devices": job.mesh.n, "mesh": str(job.mesh), "micro": job.micro, "recompute": job.recompute,
            "updates": n_steps, "tokens_per_update": job.n_tokens, "seconds_per_update": parts, "step_seconds": step,
            "utilization": utilization(job, step), "bytes_per_device": held, "bytes_sent_per_update": traffic(job), "seconds": total, "device_hours": hours,
            "checkpoint_every_seconds": f.checkpoint_interval(config.save_seconds, between), "lost_to_failures": lost,
            "rent_dollars": [hours * price for price in rent], "buy_dollars": d.price * job.mesh.n, "energy_mwh": mwh,
            "co2_kg": mwh * 1000 * config.kg_per_kwh,
        }  # fmt: skip

    def text(self) -> str:
        """For a terminal."""
        x, job = self.fields(), self.job
        c, d, parts, held = job.config, job.device, seconds(job), memory(job)
        low, high = x["rent_dollars"]
        chosen_by_memory = "" if self.config.devices or self.config.mesh or self.config.measure else ", the fewest that hold it"
        idle = [f"{name} {parts[name] / parts.total:.1%}" for name in ("tensor", "messages", "bubble", "data") if parts[name]]
        waiting = sum(parts[name] for name in ("tensor", "messages", "bubble", "data"))
        lines = [
            f"model       {x['weights']:,} weights: {c.n_layer} blocks, {c.n_head} heads, {c.n_embd} channels, context {c.n_positions}",
            f"tokens      {x['tokens']:.3g} ({self.tokens / c.n_parameters():.1f} per weight), {x['updates']:,} updates of {job.n_tokens:,}",
            f"arithmetic  {x['flops_6nd']:.3g} FLOPs by 6 N D, {x['flops_exact']:.3g} counted",
            f"devices     {job.mesh.n} x {d.name}{chosen_by_memory}: {d.source}",
            f"mesh        {job.mesh}; {job.micro} sequences at a time, computed again: {job.recompute}",
            f"update      {x['step_seconds']:.3g} s, {job.n_tokens / x['step_seconds']:,.0f} tokens/s, utilization {x['utilization']:.1%}",
            bars(parts, "s"),
            f"waiting     {', '.join(idle) or 'for nobody'}",
            f"sends       {', '.join(f'{name} {n / 1e9:.3g} GB' for name, n in traffic(job).items() if n) or 'nothing'} per device and update",
            f"limit       {max(parts, key=parts.__getitem__)}; communication and bubbles take {waiting / parts.total:.1%} of the update",
            f"memory      {held.total / 1e9:.3g} GB of {d.memory / 1e9:.3g} GB per device",
            bars(Parts({k: v / 1e9 for k, v in held.items()}), "GB"),
            f"time        {duration(x['seconds'])}, {x['device_hours']:,.0f} device hours",
            f"failures    a checkpoint every {duration(x['checkpoint_every_seconds'])} loses {x['lost_to_failures']:.2%} of the time",
            f"rent        ${low:,.0f} to ${high:,.0f}" if high else "rent        not known: --rent",
            f"buy         ${x['buy_dollars']:,.0f} for the devices",
            f"energy      {x['energy_mwh']:,.3g} MWh at {d.node_watts:.0f} W a device and an overhead of {self.config.power_overhead:g}, "
            f"{x['co2_kg'] / 1000:,.3g} t CO2 at {self.config.kg_per_kwh:g} kg/kWh",
        ]
        return "\n".join(lines)


def bars(parts: Parts, unit: str, width: int = 40) -> str:
    """One bar per part."""
    names = max(map(len, parts))
    return "\n".join(
        f"            {name:<{names}}  {n:>9.3g} {unit}  {'#' * round(width * n / parts.total)}" for name, n in parts.items() if n
    )


def duration(seconds: float) -> str:
    """In a readable unit."""
    for unit, size in (("years", 365 * f.DAY), ("days", f.DAY), ("hours", f.HOUR), ("minutes", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def course_table() -> str:
    """The nine rows: what a budget is best spent on by the formulas and by the table, and what that costs on A100s at 40 %."""
    d = DEVICES["a100"]
    lines = ["weights   FLOPs       tokens    by D = C / 6N       best for the budget            A100 hours    rent, $"]
    for n, flops, tokens in COURSE:
        best_n, best_d = f.compute_optimal(flops)
        by_count = flops / (6 * n)
        hours = flops / (d.flops * 0.4) / f.HOUR
        lines.append(
            f"{_short(n):>7}   {flops:.2e}   {_short(tokens):>7}   {_short(by_count):>7} {by_count / tokens - 1:+6.1%}   "
            f"{_short(best_n):>7} {best_n / n - 1:+5.1%}, {_short(best_d):>7} {best_d / by_count - 1:+5.1%}   {hours:>12,.0f}   "
            f"{_short(hours * d.rent[0])} to {_short(hours * d.rent[1])}"
        )
    return "\n".join([*lines, "", *course_differences()])


def course_differences() -> list[str]:
    """Why the course's costs and energy are not these."""
    d = DEVICES["a100"]
    rate = d.flops * 0.4 * f.HOUR

    def tokens_for(dollars: float, price: float, n: float) -> float:
        return dollars / price * rate / (6 * n)

    flops = f.training_flops(1e11, f.TOKENS_PER_WEIGHT * 1e11)
    hours = flops / rate
    small = [_short(tokens_for(1.5e5, price, 1e10)) for price in (2.0, 1.0)]
    large = [_short(tokens_for(1.5e6, price, 1e11)) for price in (2.0, 1.0)]
    ten_billion = COURSE[2][1] / rate
    return [
        "67 B: 6 N D fits its FLOPs with 1.43 T tokens, not with 1.5 T; the other rows agree to 1 %.",
        f"Rent: at 40 % of an A100's 312 TFLOP/s the 10 B row takes {ten_billion:,.0f} hours, ${ten_billion:,.0f} to ${2 * ten_billion:,.0f} at "
        "$1 to $2.",
        f"The course's $150,000 for 10 B and $1,500,000 for 100 B buy {small[0]} to {small[1]} tokens and {large[0]} to {large[1]}: the same number "
        "for both sizes, so its figures hold the tokens fixed, where the compute-optimal table has 20 per weight.",
        f"100 B with 2 T tokens takes {hours:,.0f} hours: ${hours / 1e6:.1f} to ${2 * hours / 1e6:.1f} million, "
        f"{hours / 1000 / 24:,.0f} days on 1,000 A100s, which cost ${1000 * d.price / 1e6:.0f} million.",
        f"Energy: the boards alone, {d.watts:.0f} W each, draw {f.energy_mwh(hours, d.watts, 1.0):,.0f} MWh in these hours, which is the course's "
        f"1,000 MWh; with processors, network and a building's overhead of 1.1 it is {f.energy_mwh(hours, d.node_watts, 1.1):,.0f} MWh.",
    ]


def published_table() -> str:
    """Measured and predicted steps, and what one utilization for all would say."""
    rows = published()
    constant = by_constant_utilization(rows)
    lines = [f"{'':<28} {'measured':>10} {'predicted':>10} {'error':>8}   {'one utilization':>15}   source"]
    errors, others = [], []
    for row, other in zip(rows, constant, strict=True):
        step = predicted(row)
        if not row.fitted:
            errors.append(abs(step / row.step - 1))
            others.append(abs(other / row.step - 1))
        source = row.source + (f" (not said: {row.assumed})" if row.assumed else "") + (", fitted" if row.fitted else "")
        lines.append(
            f"{row.name:<28} {row.step:>8.3f} s {step:>8.3f} s {step / row.step - 1:>+8.1%}   {other / row.step - 1:>+15.1%}   {source}"
        )
    mean = f"{sum(errors) / len(errors):.1%} on average, at most {max(errors):.1%}"
    against = f"{sum(others) / len(others):.1%} and {max(others):.1%}"
    lines += ["", f"{len(errors)} rows that fixed nothing: wrong by {mean}; with the fitted rows' mean utilization: {against}"]
    return "\n".join(lines)


def _short(n: float) -> str:
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}" if n < 999.5 * size else f"{n / size:,.0f}{unit}"
    return f"{n:.3g}"
