"""Generation with GPT-2's smallest shape (124M random weights) compared with Hugging Face's transformers, on the same weights, in one run.

    pip install -e ".[bench,parity]" && python benchmarks/generate.py

About three minutes on two cores. After a round that warms up and does not count, each round measures both sides in turn, so that a
machine that is busy for a while is busy for both. The table gives medians over the rounds and, in brackets, the least and the most;
a ratio is taken within each round. Decoding one row reads every weight once per token, so memory decides: the table says how fast
this machine reads memory (a dot product of one large array with itself, on all threads) and what share of that decoding reaches.
One row and several rows want the weights laid out differently, so each has a model of its own here, as in a process of its own.
Loading is measured in a process of its own, whose memory is new; the file is in the system's cache.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl

sys.path.insert(0, str(Path(__file__).parent))
from train_step import processor

from autograd.kernels.cpu.parallel import even_parts, n_threads, parallel
from tinygpt import GPT, GPTConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.inference.decoding import DecodingState, generate

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    rounds: int = 5
    """How often everything is measured."""
    new_tokens: int = 100
    """Tokens generated after a prompt of 32; half as many for each row of a batch of 8."""
    peers: bool = True
    """Measure transformers, too."""
    quick: bool = False
    """A tiny model: shows that the script runs, measures nothing."""


def main() -> None:
    options = parse_args(Options(), __doc__)
    config = GPTConfig.preset("quick", n_positions=1024) if options.quick else GPTConfig.preset("gpt2")
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (8, config.n_positions))
    with tempfile.TemporaryDirectory() as directory:
        GPT(config).save_pretrained(directory)
        load_s = float(np.median([seconds_to_load(directory) for _ in range(options.rounds)]))
        model, model_8 = (GPT.from_pretrained(directory).eval() for _ in range(2))
        cases = ours(model, model_8, ids, options.new_tokens) | (theirs(directory, ids, options.new_tokens) if options.peers else {})
    memory = np.ones(64 * 1024 * 1024 // (64 if options.quick else 1), dtype=np.float32)
    cases["memory"] = lambda: read(memory)
    measured: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(options.rounds + 1):
        for name, case in cases.items():
            started = time.perf_counter()
            n = case()
            if i > 0:
                measured[name].append(n / (time.perf_counter() - started))
    report(options, config, model, measured, load_s)


def seconds_to_load(directory: str) -> float:
    """from_pretrained in a new process. Here, memory freed a moment ago would be used again, which is faster than what users see."""
    code = "import sys, time; from tinygpt import GPT; s = time.perf_counter(); GPT.from_pretrained(sys.argv[1]); print(time.perf_counter() - s)"
    return float(subprocess.run([sys.executable, "-c", code, directory], check=True, capture_output=True, text=True).stdout)


def read(memory: np.ndarray) -> float:
    """Reads an array far larger than the caches, each thread its part; returns the bytes."""
    for _ in range(10):
        parallel([lambda part=part: np.dot(memory[part], memory[part]) for part in even_parts(len(memory))], n_flops=2 * len(memory))
    return 10.0 * memory.nbytes


def ours(model: GPT, model_8: GPT, ids: np.ndarray, n: int) -> dict[str, Callable[[], float]]:
    """What is measured, as functions that return how many tokens they made (or read)."""

    def batch(model: GPT, rows: int, new: int) -> Callable[[], float]:
        return lambda: (generate(model, ids[:rows, :32], new, temperature=0.0), rows * new)[1]

    def prefill() -> float:
        DecodingState(model, [ids[0, :1000]]).logits()
        return 1000

    return {"tinygpt batch 1": batch(model, 1, n), "tinygpt batch 8": batch(model_8, 8, n // 2), "tinygpt prefill": prefill}


def theirs(directory: str, ids: np.ndarray, n: int) -> dict[str, Callable[[], float]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(n_threads())
    float32 = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    bfloat16 = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).eval()

    def batch(model: Any, rows: int, new: int) -> Callable[[], float]:
        prompt = torch.as_tensor(ids[:rows, :32])
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        return lambda: (model.generate(prompt, attention_mask=torch.ones_like(prompt), **options), rows * new)[1]

    def prefill() -> float:
        with torch.no_grad():
            float32(torch.as_tensor(ids[:1, :1000]), use_cache=True, logits_to_keep=1)
        return 1000

    return {
        "transformers float32 batch 1": batch(float32, 1, n),
        "transformers bfloat16 batch 1": batch(bfloat16, 1, n),
        "transformers float32 batch 8": batch(float32, 8, n // 2),
        "transformers float32 prefill": prefill,
    }


def report(options: Options, config: GPTConfig, model: GPT, measured: dict[str, list[float]], load_s: float) -> None:
    rates = {name: float(np.median(values)) for name, values in measured.items()}
    weight_bytes = 4 * (model.n_parameters() - config.n_positions * config.n_embd)  # all but the position table are read per token
    limit = max(measured["memory"]) / weight_bytes  # the best: a limit is not what neighbours left of it
    rows = {f"{name}, tokens/s": spread(values, 1) for name, values in measured.items() if name != "memory"}
    for peer in [name for name in rates if name.startswith("transformers")]:
        mine = "tinygpt " + peer.split(" ", 2)[2]
        rows[f"{mine} / {peer}"] = spread([a / b for a, b in zip(measured[mine], measured[peer], strict=True)], 2)
    rows["memory read, GB/s"] = f"{rates['memory'] / 1e9:.1f}, at best {max(measured['memory']) / 1e9:.1f}"
    rows["its limit for batch 1, tokens/s"] = f"{limit:.1f}, of which tinygpt reaches {rates['tinygpt batch 1'] / limit:.0%}"
    rows["from_pretrained in a new process, s"] = f"{load_s:.2f}"
    blas = [
        f"{b['internal_api']} {b.get('version')} ({b.get('architecture')})"
        for b in threadpoolctl.threadpool_info()
        if b["user_api"] == "blas"
    ]
    rows["machine"] = f"{processor()}, {n_threads()} threads, {platform.machine()}, NumPy {np.__version__}, {', '.join(blas)}"
    print(table(f"{model.n_parameters():,} weights, median of {options.rounds} rounds", rows))
    if not options.quick:
        result = {"date": date.today().isoformat(), "table": rows, "rounds": measured}
        (RESULTS / "generate.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8", newline="\n")


def spread(values: list[float], digits: int) -> str:
    return f"{np.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


if __name__ == "__main__":
    run(main)
