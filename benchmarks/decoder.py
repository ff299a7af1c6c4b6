"""A decoder of today, SmolLM2-135M's shape with random weights, compared with transformers: decoding one text, and a training step.

    pip install -e ".[bench,parity]" && python benchmarks/decoder.py

About four minutes on two cores. The weights are written once in the family's own format and read by both sides. Each side runs in a
process of its own and takes its turn in every round; a ratio is taken within a round, and the table gives the median (least to most).
Decoding: one text, a prompt of 32 tokens, greedy, float32. Training: forward, loss, backward, clipping and AdamW (fused in PyTorch) on
4 rows of 256 tokens, float32. Peak memory is that of the process that trains. Writes benchmarks/results/decoder.json.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))  # also where a side's process imports this file
from train_step import machine
from turns import Side

from autograd.kernels.cpu.parallel import n_threads
from autograd.limits import peak_bytes
from autograd.optim import AdamW
from tinygpt import GPT, GPTConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.inference.decoding import generate

RESULTS = Path(__file__).parent / "results"
BATCH, CONTEXT, PROMPT, LR = 4, 256, 32, 1e-4


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


def our_side(directory: str, task: str) -> Callable[[int], Any]:
    """Answers n with the seconds of n new tokens or training steps, and 0 with the peak of memory in bytes."""
    model = GPT.from_pretrained(directory)
    prompt, rows = tokens(model.config.vocab_size, 1, PROMPT), tokens(model.config.vocab_size, BATCH, CONTEXT + 1)
    optimizer = AdamW(model.train(), lr=LR, weight_decay=0.1) if task == "training" else None

    def work(n: int) -> None:
        if optimizer is None:
            generate(model, prompt, n, temperature=0.0)
            return
        for _ in range(n):
            optimizer.zero_grad()
            model.loss(rows[:, :-1], rows[:, 1:]).backward()
            optimizer.step(max_norm=1.0)

    return timed(work)


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

    return timed(work)


def timed(work: Callable[[int], None]) -> Callable[[int], Any]:
    def answer(n: int) -> Any:
        if n == 0:
            return peak_bytes()
        started = time.perf_counter()
        work(n)
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
            sides = {name: Side(name, make, directory, task) for name, make in (("tinygpt", our_side), ("transformers", their_side))}
            seconds: dict[str, list[float]] = {name: [] for name in sides}
            for i in range(options.rounds + 1):
                for name, side in sides.items():
                    s = side.ask(n)
                    if i > 0:  # the first warms up
                        seconds[name].append(s / n)
            peaks = {name: side.ask(0) for name, side in sides.items()}
            for side in sides.values():
                side.close()
            unit = "ms per token" if task == "decoding" else "ms per step"
            for name, values in seconds.items():
                rows[f"{task}, {name}, {unit}"] = spread([1e3 * s for s in values], 1)
            ratios = [b / a for a, b in zip(seconds["tinygpt"], seconds["transformers"], strict=True)]
            rows[f"{task}, times as fast"] = spread(ratios, 2)
            if task == "training":
                rows["training, peak MB"] = f"{peaks['tinygpt'] / 2**20:,.0f} and {peaks['transformers'] / 2**20:,.0f}"
                rows["training, peak memory, ratio"] = f"{peaks['tinygpt'] / peaks['transformers']:.2f}"
            result["rounds"][task] = {"seconds": seconds, "peak_bytes": peaks}
    rows["machine"] = f"{result['machine']['processor']}, {n_threads()} threads, {result['machine']['matmul_2048_gflops']} GFLOP/s"
    print(table(f"{options.preset}, {config.n_parameters():,} weights, {options.rounds} rounds", rows))
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "decoder.json").write_text(json.dumps(result | {"table": rows}, indent=1) + "\n", encoding="utf-8")


def spread(values: list[float], digits: int) -> str:
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    run(main)
