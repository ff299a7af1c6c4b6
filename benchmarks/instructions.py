"""An assistant's held-out loss before and after its training, over several seeds of split and order.

    python benchmarks/instructions.py --base runs/base          # five times examples/finetune_instructions.py, 1 to 2 minutes each

Per seed: 1,100 instructions split 935/55/110, the example with its default settings from the pretrained model --base, and the loss on the
110 test rows in nats per token of their answers. Beside it the loss of a model with random weights on the same rows, before any training:
it knows nothing, so it should be the logarithm of the vocabulary's size.

The runs are written below --runs; an interrupted one must be removed first. Writes a JSON report to --output.
"""

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinygpt.arguments import parse_args
from tinygpt.cli import Progress, run, table
from tinygpt.errors import InvalidInput
from tinygpt.fields import PathName
from tinygpt.finetuning.common import FinetuneConfig, starting_point
from tinygpt.finetuning.instructions import InstructionBatches, encode_instructions, load_instructions, split_instructions
from tinygpt.training.metrics import measure

EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune_instructions.py"


@dataclass(frozen=True)
class Config:
    base: PathName = ""
    """Pretrained run or checkpoint to start from."""
    data: PathName = "instructions"
    """What to train on: as --data of the example."""
    seeds: int = 5
    """How many seeds, from 0 on."""
    runs: PathName = "runs/instructions"
    """Directory for the runs, one per seed. Finished ones that it holds already are not run again."""
    output: PathName = ""
    """File for the report as JSON."""


def losses(config: Config, seed: int) -> dict[str, float]:
    """Held-out loss before and after one run of the example, as its report has them."""
    directory = Path(config.runs) / f"seed-{seed}"
    options = {"data": config.data, "base": config.base, "seed": str(seed), "test-answers": "1", "run": str(directory)}
    if not (directory / "report.txt").is_file():
        subprocess.run([sys.executable, str(EXAMPLE), *(part for k, v in options.items() for part in (f"--{k}", v))], check=True)
    report = (directory / "report.txt").read_text(encoding="utf-8")
    return {side: float(re.findall(rf"^ *{side} +(\d+\.\d+) ", report, re.MULTILINE)[0]) for side in ("before", "after")}


def random_start(config: Config, seed: int) -> dict[str, float]:
    """Loss on the same test rows of a model that nobody has trained, and the logarithm of its vocabulary's size."""
    parts = split_instructions(load_instructions(config.data), seed=seed)
    texts = [f"{row.instruction}\n{row.input}\n{row.output}" for row in parts.train]
    gpt, tokenizer, _ = starting_point(FinetuneConfig(base="random", seed=seed), texts, Progress)
    test = encode_instructions(parts.test, tokenizer, gpt.config.n_positions, style="phi3", truncate=True)
    return {"random": measure(gpt, InstructionBatches(test), 16).nats, "ln_vocabulary": math.log(gpt.config.vocab_size)}


def main() -> None:
    config = parse_args(Config(), __doc__)
    if not config.base:
        raise InvalidInput("--base: none, expected a pretrained run or checkpoint; make one with python examples/pretrain.py --corpus docs")
    rows = [{"seed": seed, **losses(config, seed), **random_start(config, seed)} for seed in range(config.seeds)]
    for row in rows:
        row["lower"] = 1 - row["after"] / row["before"]
        row["random_off"] = row["random"] / row["ln_vocabulary"] - 1
    spread = {
        key: f"{np.mean(values):.4g} +- {np.std(values, ddof=min(1, len(values) - 1)):.2g}"
        for key, values in ((key, [row[key] for row in rows]) for key in rows[0] if key != "seed")
    }
    print(table(f"held-out loss in nats per token of the answers, {config.seeds} seeds, mean and standard deviation", spread))
    if config.output:
        Path(config.output).write_text(json.dumps({"data": config.data, "rows": rows, **spread}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
