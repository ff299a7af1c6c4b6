"""Muon's update compared with what its arithmetic predicts, at the size of the default run and of GPT-2 124M.

    python benchmarks/muon.py            a minute on two cores, 3 GB

Predicted: `Muon.cost()`, the multiplications and additions of the Newton-Schulz iterations, at the rate of the largest of their products, b x
with b (C, C) and x (C, 4 C), through np.matmul with one product per thread. Two of the three products of an iteration are of a matrix with its own
transpose, for which BLAS needs half of them: predicted_half_s counts these halves. Measured: the update of all matrices of the blocks (momentum,
iterations, weight decay, step), and AdamW's of the same weights. Medians, in turns.
"""

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from train_step import processor

from autograd.kernels.cpu.parallel import for_each
from autograd.optim import AdamW, Muon
from autograd.threads import n_threads
from tinygpt import GPT, GPTConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.fields import PathName
from tinygpt.training.optimizers import hidden_matrices

SIZES = {"default run": GPTConfig.preset("laptop"), "GPT-2 124M": GPTConfig()}


@dataclass(frozen=True)
class Config:
    rounds: int = 7
    """How often each side takes its turn; a third of it at 124M."""
    output: PathName = "benchmarks/results/muon.json"
    """Where the report goes."""


def main() -> None:
    config = parse_args(Config(), __doc__)
    report: dict[str, object] = {
        "machine": f"{processor()}, {n_threads()} threads, NumPy {np.__version__}",
        "date": time.strftime("%Y-%m-%d"),
    }
    for name, shape in SIZES.items():
        rounds = config.rounds if shape.n_embd < 500 else max(2, config.rounds // 3)
        found = measure(shape, rounds)
        report[name] = found
        print(table(f"{name}, {shape.n_embd} channels", found))
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(shape: GPTConfig, rounds: int) -> dict[str, float]:
    model = GPT(dataclasses.replace(shape, vocab_size=64, n_positions=8))  # the blocks are what Muon updates
    names = hidden_matrices(model)
    blocks = [(name, p) for name, p in model.named_parameters() if name in names]
    rng = np.random.default_rng(0)
    muon = Muon(blocks, matrices=names)
    muon.gradient[...] = rng.standard_normal(muon.gradient.size, dtype=np.float32)
    adamw = AdamW([(name, type(p)(p.data.copy())) for name, p in blocks])
    adamw.gradient[...] = muon.gradient
    scale, c = np.float32(1.0), shape.n_embd
    sides = {
        "muon_s": lambda: [muon.update(group, scale) for group in muon.groups],
        "adamw_s": lambda: [adamw.update(group, scale) for group in adamw.groups],
        "product_s": product(c),
    }
    adamw.n_steps = 1
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds + 1):
        for side, call in sides.items():
            started = time.perf_counter()
            call()
            seconds[side].append(time.perf_counter() - started)
    median = {side: statistics.median(times[1:]) for side, times in seconds.items()}
    rate = n_threads() * _REPEATS * 2 * 4 * c**3 / median.pop("product_s")
    predicted = muon.cost() / rate
    half = predicted * symmetric_cost(muon) / muon.cost()
    figures = median | {"predicted_s": predicted, "times_predicted": median["muon_s"] / predicted}
    figures |= {"predicted_half_s": half, "times_predicted_half": median["muon_s"] / half}
    return {"operations": muon.cost(), "product_gflops": rate / 1e9} | {key: round(value, 4) for key, value in figures.items()}


def symmetric_cost(muon: Muon) -> int:
    """As `Muon.cost`, where x x^T and A A^T take half of their operations."""
    shapes = [sorted((p.shape[0], width)) for name, p in muon.named for width in muon.columns[name]]
    return sum(len(muon.coefficients) * (3 * short * short * long + short**3) for short, long in shapes)


_REPEATS = 20


def product(c: int) -> Callable[[], None]:
    """Multiplies (C, C) by (C, 4 C) in each thread, several times."""
    operands = [
        (np.ones((c, c), np.float32), np.ones((c, 4 * c), np.float32), np.empty((c, 4 * c), np.float32)) for _ in range(n_threads())
    ]

    def one(i: int) -> None:
        b, x, out = operands[i]
        for _ in range(_REPEATS):
            np.matmul(b, x, out=out)

    return lambda: for_each(n_threads(), one, threaded=True)


if __name__ == "__main__":
    run(main)
