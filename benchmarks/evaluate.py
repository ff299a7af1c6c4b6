"""Scoring of multiple choice: seconds for 1,000 items at the default model, and GPT-2's smallest shape compared with lm-evaluation-harness.

    pip install -e ".[eval,bench,parity]" && python benchmarks/evaluate.py         # a quarter of an hour on two cores
    python benchmarks/evaluate.py --quick                                          # seconds, tiny models: shows that it runs

default model    1,000 items of four options, contexts of 80 tokens, options of 10, random ids and weights: seconds do not depend on them
124M             the harness calls its own model for transformers (`hf`, PyTorch) and ours through tinygpt/evaluation/lm_eval.py, with the same
                 random weights, the same ids and as many threads, float32. Before any timing both give the same log-probabilities to 1e-3.
                 A first round, which warms up, tries all batch sizes of the harness; those within a quarter of its best one are
                 measured in the rounds that count, each side in turn, and the one with the least median counts. Ours has no such setting.

Writes medians over the rounds and, in brackets, the least and the most; the ratio is that of the medians.
"""

import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ablations import machine

from autograd.threads import n_threads
from tinygpt import GPT, GPTConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.evaluation.continuations import Request, score
from tinygpt.fields import PathName
from tinygpt.recipes import RECIPES

N_OPTIONS, WITHIN = 4, 1.25
CASES = {"context 60, options of 30": (60, 30, 16), "context 600, options of 10": (600, 10, 4)}  # tokens, tokens, items
Ids = list[int]


@dataclass(frozen=True)
class Config:
    items: int = 1000
    """Of the default model."""
    rounds: int = 5
    """That count."""
    batches: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    """Batch sizes of the harness to choose from."""
    peers: bool = True
    """Compare with the harness, too."""
    quick: bool = False
    """Tiny models and few items: shows that it runs, measures nothing."""
    output: PathName = "benchmarks/results/evaluate.json"
    """Where the results go; with --quick nothing is written."""


def requests(n_items: int, context: int, option: int, n_vocab: int) -> list[Request]:
    rng = np.random.default_rng(0)
    return [
        Request(rng.integers(n_vocab, size=context).tolist(), rng.integers(n_vocab, size=(N_OPTIONS, option)).tolist())
        for _ in range(n_items)
    ]


def seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 3), "least": round(min(values), 3), "most": round(max(values), 3)}


def default_model(config: Config) -> dict[str, Any]:
    model = GPT(GPTConfig.preset("quick") if config.quick else RECIPES["tinygpt"][0], seed=0)
    context = 16 if config.quick else 80
    items = requests(8 if config.quick else config.items, context, 10, model.config.vocab_size)
    times = [seconds(lambda: score(model, items)) for _ in range(config.rounds + 1)]
    return {"items": len(items), "options": N_OPTIONS, "context": context, "option": 10, "seconds": spread(times[1:])}


class Sides:
    """Ours and the harness's model, on the same weights; each scores (context, continuation) pairs of ids."""

    def __init__(self, config: Config) -> None:
        import torch
        from lm_eval.models.huggingface import HFLM

        from tinygpt.evaluation.lm_eval import HarnessModel

        torch.set_num_threads(n_threads())
        self.threads = torch.get_num_threads()
        shape = GPTConfig.preset("quick", n_positions=1024) if config.quick else GPTConfig.preset("gpt2")
        model, tokenizer = GPT(shape, seed=0), BPETokenizer.train("the shape of an array " * 20, vocab_size=270)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.save_pretrained(folder, tokenizer)
            self.theirs = HFLM(pretrained=folder, dtype="float32", device="cpu")
        self.ours, self.n_vocab = HarnessModel(model, tokenizer), shape.vocab_size

    def of(self, pairs: Sequence[tuple[Any, Ids, Ids]], batch: int = 0) -> list[tuple[float, bool]]:
        """Ours with batch 0."""
        if not batch:
            return self.ours._loglikelihood_tokens(pairs)
        self.theirs.batch_size_per_gpu = batch
        found: list[tuple[float, bool]] = self.theirs._loglikelihood_tokens(pairs, disable_tqdm=True)
        return found


def compared(config: Config, sides: Sides, context: int, option: int, n_items: int) -> dict[str, Any]:
    """Seconds of both for one kind of item, and their ratio."""
    items = requests(2 if config.quick else n_items, context, option, sides.n_vocab)
    pairs = [(("", ""), list(item.context), list(ids)) for item in items for ids in item.options]
    mine, theirs = ([log_p for log_p, _ in sides.of(pairs, batch)] for batch in (0, 4))
    np.testing.assert_allclose(mine, theirs, atol=1e-3)
    batches = [batch for batch in config.batches if batch < 2 * len(pairs)]
    tried = {batch: seconds(lambda batch=batch: sides.of(pairs, batch)) for batch in batches}  # type: ignore[misc]
    batches = [batch for batch in batches if tried[batch] <= WITHIN * min(tried.values())]
    times: dict[int, list[float]] = {batch: [] for batch in (0, *batches)}
    for _ in range(config.rounds):
        for batch, taken in times.items():
            taken.append(seconds(lambda batch=batch: sides.of(pairs, batch)))  # type: ignore[misc]
    best = min(batches, key=lambda batch: statistics.median(times[batch]))
    return {
        "items": len(items), "options": N_OPTIONS, "first_round": {str(batch): round(taken, 3) for batch, taken in tried.items()},
        "ours_s": spread(times[0]), "harness_s": spread(times[best]), "batch": best,
        "ratio": round(statistics.median(times[best]) / statistics.median(times[0]), 2),
    }  # fmt: skip


def line(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} s ({found['least']:.2f} to {found['most']:.2f})"


def main() -> None:
    config = parse_args(Config(), __doc__)
    report: dict[str, Any] = {"default model": default_model(config)}
    rows = {"default model": f"{line(report['default model']['seconds'])} for {report['default model']['items']:,} items"}
    print(f"ours: {n_threads()} threads\n{table('default model', rows)}", flush=True)
    if config.peers:
        sides = Sides(config)
        print(f"the harness: {sides.threads} threads", flush=True)
        for name, (context, option, n_items) in CASES.items():
            found = report[name] = compared(config, sides, context, option, n_items)
            rows[name] = (
                f"ours {line(found['ours_s'])}, harness {line(found['harness_s'])} at batch {found['batch']}: {found['ratio']:.2f}x"
            )
            print(f"{name}: {rows[name]}", flush=True)
        report["threads"] = {"ours": n_threads(), "harness": sides.threads}
    print(table("scoring", rows))
    if config.quick:
        return
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report | {"machine": machine(), "date": time.strftime("%Y-%m-%d")}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
