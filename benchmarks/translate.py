"""Numbers in words, English to German: how many minutes of training until numbers that were never seen are translated without a mistake.

    python benchmarks/translate.py                     # three seeds, single numbers
    python benchmarks/translate.py --data numbers-and-dates --steps 2000 --every 250
    python benchmarks/translate.py --quick             # seconds: does it run?

The recipe of examples/translate.py. Each seed has its own held-out numbers, initial weights and order of batches. After every `--every`
updates all test pairs are translated greedily; a translation counts if it equals the reference in every letter. Minutes are those of the
updates alone. Writes a JSON report to --output. Needs the extra translate.
"""

import contextlib
import dataclasses
import json
import platform
import time
from dataclasses import dataclass
from pathlib import Path

from autograd import backend
from autograd.threads import n_threads
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.data.pairs import N_NUMBERS, PairBatches, encode_pairs, load_pairs, train_pair_tokenizer
from tinygpt.fields import PathName
from tinygpt.inference.translations import aligned, translate_texts
from tinygpt.models import Seq2Seq
from tinygpt.parallel.local import workers_for
from tinygpt.recipes import TRANSLATION
from tinygpt.training.trainer import Trainer

ENOUGH = 0.99  # of the single numbers


@dataclass(frozen=True)
class Config:
    data: PathName = "numbers"
    """numbers, or numbers-and-dates."""
    numbers: int = N_NUMBERS
    """Single numbers to learn from."""
    steps: int = 1000
    """Updates."""
    every: int = 100
    """Updates between tests."""
    seeds: int = 3
    """How many."""
    processes: int = 0
    """Processes that share each micro-batch. 0: as in the script."""
    quick: bool = False
    """Two seeds of two updates, of a small model."""
    output: PathName = ""
    """File for the report as JSON."""


@dataclass(frozen=True)
class Point:
    """After so many updates and minutes: the share of exact translations, by kind of text."""

    step: int
    minutes: float
    exact: dict[str, float]


def train(config: Config, seed: int) -> list[Point]:
    """One training, with what it had reached on the way."""
    shape, settings = TRANSLATION
    if config.quick:
        shape = dataclasses.replace(shape, n_layer=1, n_embd=16, n_head=2)
    pairs = load_pairs(config.data, seed=seed, n_numbers=config.numbers)
    tokenizer = train_pair_tokenizer(pairs.train, shape.vocab_size)
    ends = {"start_id": tokenizer.pad_id, "pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}
    shape = dataclasses.replace(shape, vocab_size=tokenizer.n_vocab, **ends)
    settings = dataclasses.replace(settings, steps=config.steps, seed=seed, processes=config.processes)
    model = Seq2Seq(shape, seed=seed)
    batches = PairBatches(*encode_pairs(pairs.train, tokenizer, shape.n_positions)[:2], tokenizer.pad_id)
    points, seconds = [], 0.0
    with contextlib.closing(Trainer(model, settings, batches, None, workers_for(model, settings))) as trainer:
        for step in range(1, config.steps + 1):
            model.train()
            started = time.perf_counter()
            loss, _ = trainer.update()
            float(loss)  # waits for the device
            seconds += time.perf_counter() - started
            if step % config.every == 0 or step == config.steps:
                given = translate_texts(model, tokenizer, [pair.source for pair in pairs.test])
                right: dict[str, list[bool]] = {}
                for pair, text in zip(pairs.test, given, strict=True):
                    right.setdefault(pair.kind, []).append(text == pair.target)
                points.append(Point(step, seconds / 60, {kind: sum(each) / len(each) for kind, each in right.items()}))
                shown = ", ".join(f"{kind} {share:.1%}" for kind, share in points[-1].exact.items())
                print(f"seed {seed}  update {step:>5}  {points[-1].minutes:5.2f} minutes  {shown}", flush=True)
    return points


def main() -> None:
    config = parse_args(Config(), __doc__)
    if config.quick:
        config = dataclasses.replace(config, steps=2, every=1, seeds=2, numbers=100)
    print(f"backend {backend.reason}; {n_threads()} threads")
    found = [train(config, seed) for seed in range(config.seeds)]
    rows = [["", f"minutes to {ENOUGH:.0%}", "updates", "minutes in all", "exact match at the end"]]
    for seed, points in enumerate(found):
        reached = next((p for p in points if p.exact["single numbers"] >= ENOUGH), None)
        first = [f"{reached.minutes:.2f}", f"{reached.step:,}"] if reached else ["not reached", "-"]
        rows.append([f"seed {seed}", *first, f"{points[-1].minutes:.2f}", f"{points[-1].exact['single numbers']:.1%}"])
    print(f"\nsingle numbers\n{aligned(rows)}")
    if config.output:
        machine = {"machine": platform.processor() or platform.machine(), "threads": n_threads(), "python": platform.python_version()}
        report = {"settings": dataclasses.asdict(config), **machine, "seeds": [[dataclasses.asdict(p) for p in points] for points in found]}
        Path(config.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
