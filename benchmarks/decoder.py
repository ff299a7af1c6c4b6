"""A decoder of today, SmolLM2-135M's shape with random weights, compared with transformers: decoding one text, and a training step.

    pip install -e ".[bench,parity]" && python benchmarks/decoder.py

About six minutes on two cores. The weights are written once in the family's own format and read by both sides. Each side runs in a
process of its own and takes its turn in every round; a ratio is taken within a round, and the table gives the median (least to most).
Decoding: one text, a prompt of 32 tokens, greedy, float32. Training: forward, loss, backward, clipping and AdamW (fused in PyTorch) on
4 rows of 256 tokens, float32, in as many processes as every script takes, and in one with threads. Peak memory is that of all that train.

Afterwards each side computes, in turns again, nothing but the matrix products with weights that a token or a step needs (our step's: with
those of attention), by NumPy and by PyTorch on all threads. Nothing is faster than they are; those of decoding are bound by how fast the
machine reads memory, which is measured, too. Writes benchmarks/results/decoder.json.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # also where a side's process imports this file
from generate import read
from step_profile import products_of
from train_step import machine
from turns import Side

from autograd import nn
from autograd.limits import peak_bytes
from autograd.optim import AdamW
from autograd.threads import n_threads
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.inference.decoding import generate
from tinygpt.models.protocols import GradientWorkers
from tinygpt.parallel.local import workers_for
from tinygpt.training.step import train_step

RESULTS = Path(__file__).parent / "results"
BATCH, CONTEXT, PROMPT, LR = 4, 256, 32, 1e-4
READ_BYTES = 10 * 2**28  # 256 MB, more than caches hold, ten times


@dataclass(frozen=True)
class Options:
    preset: str = "smollm2-135m"
    """The shape, a name of `GPTConfig.preset` that transformers has as Llama."""
    rounds: int = 5
    """How often each side takes its turn."""
    new_tokens: int = 64
    """Tokens decoded in a turn."""
    steps: int = 2
    """Training steps in a turn."""
    quick: bool = False
    """A tiny model: shows that the script runs, measures nothing."""


def tokens(vocab_size: int, rows: int, n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, vocab_size, (rows, n))


def our_side(directory: str, task: str, processes: int = 0) -> Callable[[int], Any]:
    """Answers n with the seconds of n new tokens or training steps, 0 with the peak of memory in bytes, "products" with the seconds of a token's
    or a step's products, "read" with those of reading READ_BYTES of memory.

    processes   that train together; 0: as many as every script takes
    """
    model = GPT.from_pretrained(directory)
    prompt, rows = tokens(model.config.vocab_size, 1, PROMPT), tokens(model.config.vocab_size, BATCH, CONTEXT + 1)
    batch = [(rows[:, :-1], rows[:, 1:])]
    optimizer = AdamW(model.train(), lr=LR, weight_decay=0.1) if task == "training" else None
    workers = workers_for(model, TrainConfig(micro_batch=BATCH, processes=processes))

    def work(n: int, workers: GradientWorkers | None = workers) -> None:
        if optimizer is None:
            generate(model, prompt, n, temperature=0.0)
            return
        for _ in range(n):
            train_step(model, optimizer, batch, max_norm=1.0, workers=workers)

    def products_alone() -> Callable[[], None]:  # when asked for: the first token arranges the weights
        if optimizer is not None:
            return products_of(lambda: work(1, None))  # attention's, too
        layers = [layer.weight.data for _, layer in model.named_modules() if isinstance(layer, nn.Linear)]
        return products([*layers, model.lm_head.weight.data.T], 1, np.matmul, partial(np.ones, dtype=np.float32))

    def read_alone() -> Callable[[], object]:
        memory = np.ones(READ_BYTES // 40, np.float32)
        return lambda: read(memory)

    return timed(work, {"products": products_alone, "read": read_alone}, lambda: peak_bytes() + workers.peak_bytes())


def their_side(directory: str, task: str) -> Callable[[int], Any]:
    """As `our_side`, in transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(n_threads())
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    prompt = torch.as_tensor(tokens(model.config.vocab_size, 1, PROMPT))
    rows = torch.as_tensor(tokens(model.config.vocab_size, BATCH, CONTEXT + 1))
    ids, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=LR, weight_decay=0.1, fused=True) if task == "training" else None

    def work(n: int) -> None:
        if optimizer is None:
            options = {"max_new_tokens": n, "min_new_tokens": n, "do_sample": False, "pad_token_id": 0}
            model.eval().generate(prompt, attention_mask=torch.ones_like(prompt), **options)
            return
        for _ in range(n):
            optimizer.zero_grad(set_to_none=True)
            model(input_ids=ids, shift_labels=targets, labels=targets).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    def products_alone() -> Callable[[], None]:
        weights = [layer.weight.detach().T for layer in model.modules() if isinstance(layer, torch.nn.Linear)]  # the output layer's, too
        if optimizer is None:  # as its layers do for a row: torch.mm takes longer
            return products(weights, 1, lambda row, weight, out: torch.nn.functional.linear(row, weight.T), torch.ones)
        return products(weights, BATCH * CONTEXT, torch.mm, torch.ones)

    return timed(work, {"products": products_alone}, peak_bytes)


def products(weights: list[Any], n_rows: int, multiply: Callable[..., Any], ones: Callable[[tuple[int, ...]], Any]) -> Callable[[], None]:
    """Computes all products of n_rows rows with weights (in, out): one each for a single row, as decoding does, else those of the backward pass, too."""
    rows, results = ({n: ones((n_rows, n)) for weight in weights for n in weight.shape} for _ in range(2))
    slopes = {} if n_rows == 1 else {tuple(weight.shape): ones(tuple(weight.shape)) for weight in weights}

    def compute() -> None:
        for weight in weights:
            i, o = weight.shape
            multiply(rows[i], weight, out=results[o])
            if slopes:
                multiply(rows[o], weight.T, out=results[i])
                multiply(rows[i].T, rows[o], out=slopes[i, o])

    return compute


def timed(
    work: Callable[[int], None], others: dict[str, Callable[[], Callable[[], object]]], peak: Callable[[], int]
) -> Callable[[Any], Any]:
    """others   by name: makes what is to be timed, when it is first asked for, so that it takes no memory before"""
    made: dict[str, Callable[[], object]] = {}

    def answer(question: int | str) -> Any:
        if question == 0:
            return peak()
        if isinstance(question, str) and question not in made:
            made[question] = others[question]()
        started = time.perf_counter()
        if isinstance(question, str):
            made[question]()
        else:
            work(question)
        return time.perf_counter() - started

    return answer


def main() -> None:
    options = parse_args(Options(), __doc__)
    small = {"n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 32, "n_inner": 64, "n_positions": 512, "vocab_size": 64}
    config = GPTConfig.preset(options.preset, **(small if options.quick else {}))
    rows: dict[str, str] = {}
    result: dict[str, Any] = {"machine": machine(), "preset": options.preset, "rounds": {}}
    with tempfile.TemporaryDirectory() as directory:
        GPT(config).save_pretrained(directory)
        for task, n in (("decoding", options.new_tokens), ("training", options.steps)):
            libraries = {name: Side(name, make, directory, task) for name, make in (("tinygpt", our_side), ("transformers", their_side))}
            sides = dict(libraries)
            if task == "training":
                sides["tinygpt in threads"] = Side("tinygpt in threads", our_side, directory, task, 1)
            seconds = {name: [s / n for s in values] for name, values in in_turns(sides, n, options.rounds).items()}
            peaks = {name: side.ask(0) for name, side in sides.items()}
            alone = in_turns(libraries, "products", options.rounds)
            reading = in_turns({"tinygpt": sides["tinygpt"]}, "read", options.rounds)["tinygpt"]
            for side in sides.values():
                side.close()
            result["rounds"][task] = {
                "seconds": seconds,
                "peak_bytes": peaks,
                "seconds_of_products": alone,
                "seconds_of_reading": reading,
            }
            rows |= rows_of(task, seconds, peaks, alone)
            if task == "decoding":
                rate = READ_BYTES / float(np.median(reading))
                rows["decoding, reading all weights once"] = f"{4e3 * config.n_parameters() / rate:.1f} ms, at {rate / 1e9:.1f} GB/s"
    rows["machine"] = f"{result['machine']['processor']}, {n_threads()} threads, {result['machine']['matmul_2048_gflops']} GFLOP/s"
    print(table(f"{options.preset}, {config.n_parameters():,} weights, {options.rounds} rounds", rows))
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "decoder.json").write_text(json.dumps(result | {"table": rows}, indent=1) + "\n", encoding="utf-8")


def in_turns(sides: dict[str, Side], question: Any, rounds: int) -> dict[str, list[float]]:
    """Each side's answers, one a round, without the first, which warms up."""
    answers = [[side.ask(question) for side in sides.values()] for _ in range(rounds + 1)][1:]
    return {name: list(values) for name, values in zip(sides, zip(*answers, strict=True), strict=True)}


def rows_of(task: str, seconds: dict[str, list[float]], peaks: dict[str, int], alone: dict[str, list[float]]) -> dict[str, str]:
    """Lines of the table."""
    rows, unit = {}, "ms per token" if task == "decoding" else "ms per step"
    for name, values in seconds.items():
        rows[f"{task}, {name}, {unit}"] = spread([1e3 * s for s in values], 1)
        if name in alone:
            rows[f"{task}, {name}, products alone"] = spread([1e3 * s for s in alone[name]], 1)
    rows[f"{task}, times as fast"] = spread([b / a for a, b in zip(seconds["tinygpt"], seconds["transformers"], strict=True)], 2)
    most = np.median(seconds["transformers"]) / np.median(alone["tinygpt"])
    rows[f"{task}, times as fast if only products took time"] = f"{most:.2f}"
    if task == "training":
        rows["training, peak MB"] = ", ".join(f"{name} {n / 2**20:,.0f}" for name, n in peaks.items())
        rows["training, peak memory, ratio"] = f"{peaks['tinygpt'] / peaks['transformers']:.2f}"
    return rows


def spread(values: list[float], digits: int) -> str:
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    run(main)
