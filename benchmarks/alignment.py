"""What learning from preferences and from rewards changes, over several seeds: examples/align_dpo.py and examples/align_grpo.py.

    python benchmarks/alignment.py --what dpo --base runs/base --output benchmarks/results/dpo.json       # per seed about 5 minutes
    python benchmarks/alignment.py --what grpo --base runs/base --output benchmarks/results/grpo.json     # per seed twice about 5 minutes

dpo    per seed: a supervised start from the pretrained model --base, then DPO on the default pairs, with and without the chosen answers' own
       likelihood in the loss (--nll-weight 0 and 1): held-out pairs ranked right, log-probabilities of the chosen answers, own answers
grpo   per seed: a supervised start that solves some problems, then GRPO, and from the same start a training on the best answer of each group
       alone, with as many answers drawn: held-out problems solved by the likeliest tokens, by one draw, and by the best of a group

Seeds decide the split, the order, the adapters and the draws; intervals are 95 %, by Student's t over the seeds. Runs are kept below --runs,
and finished ones are not run again; one that was interrupted is resumed. Writes a JSON report to --output, and next to it, for grpo, the
curves of the first seed.
"""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.errors import InvalidInput
from tinygpt.fields import PathName
from tinygpt.runs.layout import list_checkpoints

EXAMPLES = Path(__file__).parents[1] / "examples"
VARIANTS = {"dpo": {"plain": [], "nll": ["--nll-weight", "1"]}, "grpo": {"grpo": [], "best-of-n": ["--weighting", "best-of-n"]}}
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, 97.5 %, of n - 1 degrees of freedom


@dataclass(frozen=True)
class Config:
    what: Literal["dpo", "grpo"] = "dpo"
    """Which of the two."""
    base: PathName = ""
    """Pretrained run or checkpoint to start from."""
    data: PathName = ""
    """grpo: the problems, as --data of the example; default: its own."""
    variants: tuple[str, ...] = ()
    """Some of: plain, nll (dpo); grpo, best-of-n (grpo). Default: both."""
    seeds: int = 3
    """How many seeds, from 0 on."""
    runs: PathName = "runs/alignment"
    """Directory for the runs."""
    output: PathName = ""
    """File for the report as JSON."""


def one(config: Config, variant: str, seed: int, start: str) -> tuple[dict[str, Any], str]:
    """results.json of one run of the example, and the start that it has made or was given."""
    directory = Path(config.runs) / f"{config.what}{f'-{config.data}' if config.data else ''}-{variant}-{seed}"
    if not (directory / "results.json").is_file():
        script = [sys.executable, str(EXAMPLES / f"align_{config.what}.py")]
        if list_checkpoints(directory):
            flags = ["--resume", str(directory)]
        else:
            shutil.rmtree(directory, ignore_errors=True)  # it has not come to a checkpoint
            flags = ["--base", start, "--seed", str(seed), "--run", str(directory), *VARIANTS[config.what][variant]]
            flags += ["--data", config.data] if config.data else []
        subprocess.run([*script, *flags], check=True)
    settings = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return json.loads((directory / "results.json").read_text(encoding="utf-8")), settings["base"]


def flat(found: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """All numbers of nested objects, by dotted names."""
    numbers: dict[str, float] = {}
    for key, value in found.items():
        if isinstance(value, dict):
            numbers |= flat(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[f"{prefix}{key}"] = value
    return numbers


def spread(values: list[float]) -> dict[str, float]:
    """Mean and 95 % interval over the seeds; without one for a single seed."""
    mean, n = float(np.mean(values)), len(values)
    half = T_95[n] * float(np.std(values, ddof=1)) / math.sqrt(n) if n in T_95 else math.nan
    return {"mean": round(mean, 4), **({} if math.isnan(half) else {"low": round(mean - half, 4), "high": round(mean + half, 4)})}


DPO_COLUMNS = {
    "held-out pairs ranked right": ("ranked_right", 100, 1),
    "of them truncated": ("ranked_right_by_kind.truncated", 100, 1),
    "closed": ("ranked_right_by_kind.closed", 100, 1),
    "echo": ("ranked_right_by_kind.echo", 100, 1),
    "not in training: off-topic": ("ranked_right_by_kind.off-topic", 100, 1),
    "spliced": ("ranked_right_by_kind.spliced", 100, 1),
    "neighbor": ("ranked_right_by_kind.neighbor", 100, 1),
    "negated": ("ranked_right_by_kind.negated", 100, 1),
    "repeated": ("ranked_right_by_kind.repeated", 100, 1),
    "shuffled": ("ranked_right_by_kind.shuffled", 100, 1),
    "log-probability of a chosen answer, nats": ("chosen_nats", 1, 1),
    "the same per token": ("chosen_nats_per_token", 1, 2),
    "log-probability of a rejected answer, nats": ("rejected_nats", 1, 1),
    "words of an own answer": ("words", 1, 1),
    "own answers that end as a sentence": ("finished", 100, 1),
}
GRPO_COLUMNS = {
    "likeliest tokens": ("greedy", 100, 1),
    "one draw": ("sampled", 100, 1),
    "best of 8 draws, by the checker": ("best_of_n", 100, 1),
    "tokens of an answer": ("tokens", 1, 2),
}


def rows_of_table(report: dict[str, Any]) -> list[str]:
    """The report as a Markdown table: mean and interval before, after and of the change, shares in percent; by variant."""
    lines = []
    for variant in VARIANTS[report["what"]]:
        if variant not in report:
            continue
        lines += [f"| {variant} | before | after | change |", "|---|---|---|---|"]
        for title, (name, factor, digits) in (DPO_COLUMNS if report["what"] == "dpo" else GRPO_COLUMNS).items():
            cells = []
            for side in ("before", "after", "change"):
                found = report[variant].get(f"{side}.{name}")
                if found is None:
                    break
                sign, (mean, *ends) = "+" * (side == "change"), [found[key] * factor for key in ("mean", "low", "high") if key in found]
                between = f" ({ends[0]:{sign}.{digits}f} to {ends[1]:{sign}.{digits}f})" if ends else ""
                cells.append(f"{mean:{sign}.{digits}f}{between}")
            else:
                lines.append(f"| {title} | {' | '.join(cells)} |")
        lines.append("")
    return lines[:-1]


def main() -> None:
    config = parse_args(Config(), __doc__)
    if not config.base:
        raise InvalidInput("--base: none, expected a pretrained run or checkpoint; make one with python examples/pretrain.py")
    variants = config.variants or tuple(VARIANTS[config.what])
    if unknown := [name for name in variants if name not in VARIANTS[config.what]]:
        raise InvalidInput(f"--variants: {unknown[0]!r}, expected some of {', '.join(VARIANTS[config.what])}")
    if config.seeds > max(T_95):
        raise InvalidInput(f"--seeds: {config.seeds}, expected 1 to {max(T_95)}")
    rows: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for seed in range(config.seeds):
        start = config.base
        for variant in variants:  # all of a seed from one start
            found, start = one(config, variant, seed, start)
            rows[variant].append(found)
    report: dict[str, Any] = {"what": config.what, "data": config.data or "default", "seeds": config.seeds}
    for variant, found in rows.items():
        numbers = [flat({key: value for key, value in each.items() if key in ("before", "after")}) for each in found]
        changes = [{f"change.{k[7:]}": each[f"after.{k[7:]}"] - v for k, v in each.items() if k.startswith("before.")} for each in numbers]
        together = [a | b for a, b in zip(numbers, changes, strict=True)]
        report[variant] = {name: spread([each[name] for each in together]) for name in together[0]} | {"runs": found}
    print("\n".join(["", *rows_of_table(report)]))
    if config.output:
        output = Path(config.output)
        output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        curves = Path(config.runs) / f"{config.what}{f'-{config.data}' if config.data else ''}-{variants[0]}-0" / "curves.png"
        if curves.is_file():
            shutil.copy(curves, output.with_suffix(".png"))


if __name__ == "__main__":
    run(main)
