"""GPT against encoder, at equal weights and equal pretraining tokens: what each names right, and what a classifier on each gets right.

    python benchmarks/kinds.py                                          # about ten minutes a seed on two cores
    python benchmarks/kinds.py --seeds 0 --steps 20 --epochs 1 --width 16    # a minute, to see that it runs

For each seed: examples/pretrain.py and examples/pretrain_encoder.py on the default corpus, each with its own recipe, but the same number of
blocks, heads, channels, and tokens; then examples/finetune_classifier.py on the labeled rows of doc-sections from each, as it is. The seed is
that of pretraining, of the head and of the split: in a column, both kinds have the same rows.

The two have the same blocks. The encoder's weights come out a little higher: its head has a layer of its own, and its vocabulary a bias.

right tokens   GPT: the share of next tokens of the validation text that are its likeliest ones; encoder: of masked tokens. These are two tasks:
               the GPT sees what stands before a token, the encoder both sides of it, but with 15 % of the tokens missing
classifier     accuracy on the test rows

Writes --output as JSON, run by run, and prints the table of docs/encoders.md.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autograd import backend, inference, nn
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.data.corpora import load_corpus
from tinygpt.data.windows import Windows, encode_documents
from tinygpt.fields import PathName
from tinygpt.recipes import ENCODER_RECIPES
from tinygpt.runs.checkpoint import Checkpoint

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = {"GPT": "pretrain.py", "encoder": "pretrain_encoder.py"}


@dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of pretraining, of the classifier's head and of the split."""
    steps: int = ENCODER_RECIPES["tinygpt"][1].steps
    """Updates of pretraining."""
    micro_batch: int = ENCODER_RECIPES["tinygpt"][1].micro_batch
    """Windows per update."""
    width: int = ENCODER_RECIPES["tinygpt"][0].n_embd
    """Channels of both models."""
    epochs: int = 3
    """Passes of fine-tuning over the training rows."""
    data: PathName = "doc-sections"
    """Labeled rows."""
    output: PathName = "benchmarks/results/kinds.json"
    """File for the report."""


def main() -> None:
    config = parse_args(Config(), __doc__)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in config.seeds:
            for kind in SCRIPTS:
                rows.append({"seed": seed, "kind": kind, **measured(config, kind, seed, Path(folder))})
                print(json.dumps(rows[-1]), flush=True)
    if config.output:
        Path(config.output).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"\n{table(rows)}")


def measured(config: Config, kind: str, seed: int, folder: Path) -> dict[str, Any]:
    """One pretraining, and one classifier on it."""
    base = folder / f"{kind}-{seed}"
    same = [
        "--steps",
        config.steps,
        "--micro-batch",
        config.micro_batch,
        "--n-embd",
        config.width,
        "--eval-every",
        max(1, config.steps // 8),
    ]
    pretrained = script(SCRIPTS[kind], *same, "--seed", seed, "--run", base, cwd=folder)
    tuning = ["--base", base, "--data", config.data, "--seed", seed, "--epochs", config.epochs, "--prompt-texts", 1, "--truncate"]
    tuned = script("finetune_classifier.py", *tuning, "--run", folder / f"{kind}-{seed}-classifier", cwd=folder)
    return {
        "weights": int(found(r"model +([\d,]+) weights", pretrained).replace(",", "")),
        "right_tokens": next_tokens(base) if kind == "GPT" else float(found(r"encoder +([\d.]+)%", pretrained)) / 100,
        "minutes": float(found(r"time +([\d.]+) minutes", pretrained)),
        "classifier": float(found(r"this classifier +([\d.]+)", tuned)),
    }


def next_tokens(path: Path) -> float:
    """The share of the validation text's tokens that are the likeliest ones after those before them."""
    checkpoint = Checkpoint.open(path)
    model, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    ids = encode_documents([document.text for document in load_corpus("docs").validation], tokenizer)
    windows, n_right, n = Windows(ids, model.config.n_positions), 0, 0
    with nn.evaluating(model), inference.mode():
        for start in range(0, len(windows), 16):
            inputs, targets = windows.batch(np.arange(start, min(start + 16, len(windows))))
            n_right += int((backend.to_host(model(inputs).data).argmax(axis=2) == targets).sum())
            n += targets.size
    return n_right / n


def script(name: str, *flags: object, cwd: Path) -> str:
    """What an example prints."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, flags)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{name}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def found(pattern: str, text: str) -> str:
    """The last match's group."""
    return re.findall(pattern, text)[-1]


def table(rows: list[dict[str, Any]]) -> str:
    """In Markdown: of each kind the mean over the seeds, and the standard deviation between them."""
    lines = ["| kind | weights | right tokens | classifier |", "|---|---|---|---|"]
    for kind in SCRIPTS:
        mine = [row for row in rows if row["kind"] == kind]
        cells = [f"{mine[0]['weights']:,}"]
        for key in ("right_tokens", "classifier"):
            values = [100 * row[key] for row in mine]
            cells.append(f"{statistics.mean(values):.1f} % ± {statistics.stdev(values) if len(values) > 1 else 0:.1f}")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
