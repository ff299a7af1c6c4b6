"""One training step (forward, loss, backward, clipping, AdamW) compared with PyTorch: seconds, memory, and where the time goes.

    python benchmarks/train_step.py                     all sizes, about half an hour on two cores (extra `bench`)
    python benchmarks/train_step.py --sizes S M         some of them; the report keeps the others' last figures
    python benchmarks/train_step.py --sizes M --profile     our step by op, with the rate of matrix products in it and alone
    AUTOGRAD_THREADS=1 python benchmarks/train_step.py --sizes S M --profile     the same in one thread, as in each of several processes

Every side runs in a process of its own, so that its peak memory is its own, and the sides take turns, a few steps each, so that a
machine whose speed drifts moves them all. Same shapes, same random tokens, float32, no dropout unless said; before any timing each
size's loss is computed on both sides from the same weights and must agree to 1e-3. Writes benchmarks/results/train_step.json and .md.
"""

import dataclasses
import json
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

sys.path.insert(0, str(Path(__file__).parent))  # also where a side's process imports this file
from step_profile import products_of
from turns import Side

import autograd as ag
from autograd.limits import peak_bytes
from autograd.threads import n_threads
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.errors import InvalidInput
from tinygpt.parallel.local import workers_for
from tinygpt.training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Size:
    config: GPTConfig
    batch: int
    context: int
    turn: int
    """Steps that a side makes before it is the next one's turn."""
    one_at_a_time: bool = False
    """A new process for each turn: all sides together would not fit into memory."""


SIZES = {
    "S": Size(GPTConfig.preset("shakespeare"), 12, 64, 20),
    "M": Size(GPTConfig(n_layer=6, n_head=6, n_embd=384, n_positions=256, vocab_size=65), 16, 256, 2),
    "L": Size(GPTConfig.preset("gpt2"), 4, 256, 1),
    "XL": Size(GPTConfig.preset("gpt2"), 4, 1024, 1, one_at_a_time=True),
}

OURS, TORCH = "tinygpt", "PyTorch"
SIDES = (OURS, "threads", "processes", "reference", "recompute", "dropout", TORCH, "compiled", "bf16", "products")
"""tinygpt and variants of it: threads in one process, one process per thread, plain math, recomputed blocks, dropout 0.1; PyTorch
eager, compiled, under bf16 autocast; the matrix products of tinygpt's step alone, on all cores, through np.matmul."""


@dataclass(frozen=True)
class Config:
    sizes: tuple[str, ...] = tuple(SIZES)
    """S, M, L, XL."""
    sides: tuple[str, ...] = SIDES
    """Who takes part."""
    rounds: int = 5
    """How often each side gets its turn, after steps to warm up; XL takes two at most."""
    profile: bool = False
    """Our step by op instead of the comparison."""


# One side in its process ------------------------------------------------------------------------------------------------


def tokens(size: Size) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(0).integers(0, size.config.vocab_size, (size.batch, size.context + 1))
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


class OneBatch:
    """The same items in every batch."""

    def __init__(self, size: Size) -> None:
        self.size, self.ids_and_targets = size, tokens(size)

    def __len__(self) -> int:
        return self.size.batch

    def batch(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.ids_and_targets


def our_trainer(size: Size, side: str = OURS) -> Trainer:
    """What examples/pretrain.py makes; `trainer.update()` is a step."""
    config = dataclasses.replace(size.config, dropout=0.1) if side == "dropout" else size.config
    processes = {"processes": n_threads(), "threads": 1, "products": 1}.get(side, 0)
    training = TrainConfig(lr=1e-4, warmup_steps=0, final_lr_fraction=1.0, micro_batch=size.batch, processes=processes)
    model = GPT(config).train().recompute_blocks(side == "recompute")
    return Trainer(model, training, OneBatch(size), None, workers_for(model, training))


def torch_step(size: Size, side: str) -> tuple[Callable[[], float], int]:
    import torch
    from peers import TorchTrainer

    trainer = TorchTrainer(size.config, n_threads())
    n_weights = sum(p.numel() for p in trainer.model.parameters())
    if side == "compiled":
        trainer.model = torch.compile(trainer.model)
    ids, targets = tokens(size)

    def step() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=side == "bf16"):
            return trainer.update(ids, targets, 1e-4)

    return step, n_weights


def answers(side: str, size_name: str) -> Callable[[int | str | None], Any]:
    """Answers a number n with the seconds of n steps, None with what the process has held, and "gflops" with the rate of its library's
    product of 2048 x 2048 matrices on all cores."""
    size = SIZES[size_name]
    is_torch = side in (TORCH, "compiled", "bf16")
    if is_torch:
        import torch
    libraries_mb = peak_bytes() / 2**20  # not ru_maxrss: a new process inherits its parent's
    if is_torch:
        step, n_weights = torch_step(size, side)
        peak = peak_bytes
    else:
        trainer = our_trainer(size, side)
        n_weights, peak = trainer.model.n_parameters(), trainer.peak_bytes

        def step() -> float:
            return float(trainer.update()[0])

        if side == "products":
            step = products_of(step)  # type: ignore[assignment]

    mode = "reference" if side == "reference" else "fast"

    def answer(n: int | str | None) -> Any:
        if n == "gflops":
            return gflops(torch.mm if is_torch else np.matmul, torch.ones if is_torch else partial(np.ones, dtype=np.float32))
        if n is None:  # the state: weight, gradient and two moments, 4 bytes each
            return {"peak_mb": peak() / 2**20, "libraries_mb": libraries_mb, "state_mb": 16 * n_weights / 2**20}
        seconds = []
        with ag.use_kernels(mode):
            for _ in range(n):
                started = time.perf_counter()
                step()
                seconds.append(time.perf_counter() - started)
        return seconds

    return answer


def gflops(matmul: Callable[..., Any], ones: Callable[..., Any]) -> float:
    """Of a large product, the median of seven."""
    a, rates = ones((2048, 2048)), []
    for _ in range(7):
        started = time.perf_counter()
        matmul(a, a)
        rates.append(2 * 2048**3 / (time.perf_counter() - started) / 1e9)
    return statistics.median(rates)


def check_losses(size_name: str) -> tuple[float, float]:
    """The loss of the same weights on both sides. Raises ValueError if they differ by more than 1e-3."""
    import torch
    from peers import TorchGPT

    size = SIZES[size_name]
    ours, theirs = GPT(size.config), TorchGPT(size.config)
    names = {".attn.": ".", "mlp.c_proj": "mlp_proj", "mlp.c_fc": "c_fc"}
    targets = dict(theirs.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            for old, new in names.items():
                name = name.replace(old, new)
            values = torch.from_numpy(np.asarray(parameter.data))
            targets[name].copy_(values.T if values.ndim == 2 and name.startswith("h.") else values)
        ids, labels = tokens(size)
        found, expected = ours.loss(ids, labels).item(), theirs(torch.from_numpy(ids), torch.from_numpy(labels)).item()
    if not abs(found - expected) < 1e-3:
        raise InvalidInput(
            f"train_step: loss {found} here and {expected} in PyTorch at size {size_name}, expected the same; correct the model"
        )
    return found, expected


# The comparison ---------------------------------------------------------------------------------------------------------


def compare(size_name: str, names: tuple[str, ...], rounds: int) -> dict[str, Any]:
    check = Side("check", partial(partial, check_losses))
    print(f"{size_name}: loss {check.ask(size_name)[0]:.4f} on both sides")
    check.close()
    size = SIZES[size_name]
    waiting = {} if size.one_at_a_time else {name: warm(name, size_name, 2) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    held: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for name in names:
            side = waiting[name] if waiting else warm(name, size_name, 1)
            seconds[name] += side.ask(size.turn)
            held[name] = side.ask(None)
            if not waiting:
                held[name] |= rate(name, side)
                side.close()
    for name, side in waiting.items():
        held[name] |= rate(name, side)
        side.close()
    result: dict[str, Any] = {"machine": machine()}
    for name, times in seconds.items():
        result[name] = {"median_s": statistics.median(times), "fastest_s": min(times), "n_steps": len(times), **held[name]}
        print(f"{size_name}: {name:10} {result[name]['median_s']:8.4f} s   peak {result[name]['peak_mb']:6,.0f} MB")
    return result


def rate(name: str, side: Side) -> dict[str, float]:
    """Of a library's products; after its peak of memory, which their operands would raise."""
    return {"gflops": side.ask("gflops")} if name in (OURS, TORCH) else {}


def warm(name: str, size_name: str, n_steps: int) -> Side:
    """A side in a new process, after its first steps."""
    side = Side(name, answers, name, size_name)
    side.ask(n_steps)
    return side


def machine() -> dict[str, Any]:
    blas = [
        f"{b['internal_api']} {b['version']}, {b.get('architecture')}" for b in threadpoolctl.threadpool_info() if b["user_api"] == "blas"
    ]
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    try:
        import torch

        versions["torch"] = torch.__version__
    except ImportError:
        pass
    return {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "threads": n_threads(),
        "blas": "; ".join(blas),
        "blas_pinned_by": [name for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE") if name in os.environ],
        "matmul_2048_gflops": round(gflops(np.matmul, partial(np.ones, dtype=np.float32))),
        **versions,
    }


def processor() -> str:
    """Its name and model number: names alone ("AMD EPYC") say little about speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(reversed([tuple(part.strip() for part in line.split(":", 1)) for line in lines if ":" in line]))
    return f"{fields.get('model name', platform.machine())}, family {fields.get('cpu family')}, model {fields.get('model')}"


def markdown(report: dict[str, Any]) -> str:
    """The report as tables: seconds, our speed as a multiple of each peer's, memory."""
    lines = ["| size | " + " | ".join(SIDES) + " |", "|---" * (len(SIDES) + 1) + "|"]
    variants = ("recompute", "dropout", "threads", "processes")
    speed = [
        "| size | PyTorch eager | compiled | bf16 | "
        + " | ".join(variants)
        + " | step / its products alone | products of NumPy and PyTorch |"
    ]
    speed.append("|---" * (6 + len(variants)) + "|")
    memory = ["| size | weights, gradients, moments | tinygpt peak (beyond them) | PyTorch peak (beyond them) | ratio | recompute |"]
    memory.append("|---|---|---|---|---|---|")
    for size, sides in report["sizes"].items():

        def s(side: str, sides: Any = sides) -> float:
            return sides[side]["median_s"] if side in sides else float("nan")

        def mb(side: str, sides: Any = sides) -> str:
            peak = sides.get(side, {}).get("peak_mb", float("nan"))
            return f"{peak:,.0f} ({peak - sides[OURS]['state_mb']:,.0f})"

        lines.append(f"| {size} | " + " | ".join(f"{s(side):.4g}" for side in SIDES) + " |")
        ratios = [f"{s(peer) / s(OURS):.2f} x" for peer in (TORCH, "compiled", "bf16")]
        costs = [f"{s(variant) / s(OURS):.2f} x the time" for variant in variants]
        rates = " and ".join(f"{sides.get(side, {}).get('gflops', float('nan')):.0f}" for side in (OURS, TORCH))
        speed.append(f"| {size} | " + " | ".join([*ratios, *costs, f"{s(OURS) / s('products'):.2f}", f"{rates} GFLOP/s"]) + " |")
        peaks = {side: sides[side]["peak_mb"] if side in sides else float("nan") for side in (OURS, TORCH, "recompute")}
        memory.append(
            f"| {size} | {sides[OURS]['state_mb']:,.0f} MB | {mb(OURS)} | {mb(TORCH)} | {peaks[OURS] / peaks[TORCH]:.2f} "
            f"| {mb('recompute')}, {peaks['recompute'] / peaks[TORCH]:.2f} |"
        )
    machines: dict[str, list[str]] = {}
    for size, sides in report["sizes"].items():
        machines.setdefault(described(sides["machine"]), []).append(size)
    head = "\n".join(f"{', '.join(of_them)}: {text}  " for text, of_them in machines.items())
    parts = [head, "Seconds per step, medians of turns:", "\n".join(lines), "Speed of tinygpt as a multiple of each:", "\n".join(speed)]
    text = "\n\n".join([*parts, "Peak memory, MB (in brackets: beyond weights, gradients and moments):", "\n".join(memory)]) + "\n"
    return re.sub(r"nan \(nan\), nan|nan and nan GFLOP/s|nan( x( the time)?)?", "-", text)  # what was left out


def described(m: dict[str, Any]) -> str:
    pinned = f" BLAS was pinned by {', '.join(m['blas_pinned_by'])}: slower than it could be." if m["blas_pinned_by"] else ""
    versions = f"NumPy {m['numpy']}, PyTorch {m.get('torch', 'absent')}"
    return f"{m['date']}, {m['processor']}, {m['threads']} threads, {m['blas']} ({m['matmul_2048_gflops']} GFLOP/s), {versions}.{pinned}"


def main() -> None:
    config = parse_args(Config(), __doc__)
    for chosen, legal in ((config.sizes, SIZES), (config.sides, SIDES)):
        for name in chosen:
            if name not in legal:
                raise InvalidInput(f"train_step: {name!r}, expected one of {', '.join(legal)}; see --help")
    if config.profile:
        from step_profile import profile

        print(f"{processor()}, one process with {n_threads()} threads")
        for name in config.sizes:
            trainer = our_trainer(SIZES[name], "threads")
            print(profile(name, trainer.update, trainer.model.n_parameters(), 1 if SIZES[name].one_at_a_time else 3))
        return
    report: dict[str, Any] = {"sizes": {}}
    file = RESULTS / "train_step.json"
    if file.exists():
        report = json.loads(file.read_text(encoding="utf-8"))
    if pinned := machine()["blas_pinned_by"]:
        print(f"BLAS is pinned by {', '.join(pinned)}: unset it for figures that mean something")
    sides = tuple(side for side in SIDES if side in {OURS, *config.sides})
    for name in config.sizes:
        rounds = min(config.rounds, 2) if name == "XL" else config.rounds
        report["sizes"][name] = compare(name, sides, rounds)
        report["sizes"] = {size: report["sizes"][size] for size in SIZES if size in report["sizes"]}
        RESULTS.mkdir(exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    run(main)
