"""The default recipe compared with GPT-2's: the loss after the same minutes, and after 45 and 33 % of them.

    python benchmarks/recipes.py                20 minutes on two cores: three seeds

GPT-2's recipe trains for its own 2,000 updates; the default recipe for as many as fit into the given share of its minutes, by the rates of 60
updates of each, measured in turns. Then all take turns, so that a drifting machine moves all of them. Evaluation does not count. The loss is
that of the entire validation text, which no setting was chosen on.
"""

import json
import math
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablations import Side, interval, machine, rates, read_text

from tinygpt.arguments import parse_args
from tinygpt.cli import run, table
from tinygpt.fields import PathName
from tinygpt.recipes import RECIPES

_TURN = 20  # updates


@dataclass(frozen=True)
class Config:
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and data order."""
    shares: tuple[float, ...] = (1.0, 0.45, 0.33)
    """Of the minutes that GPT-2's recipe takes."""
    output: PathName = "benchmarks/results/recipes.json"
    """Where the report goes."""


def take_turns(sides: list[Side]) -> None:
    """Trains all to their end. One with more updates makes more of them in a turn, so that all end together."""
    fewest = min(side.training.steps for side in sides)
    while any(side.trainer.result.step < side.training.steps for side in sides):
        for side in sides:
            side.turn(math.ceil(_TURN * side.training.steps / fewest))


def main() -> None:
    config = parse_args(Config(), __doc__)
    text, ours = read_text("report"), "tinygpt, {:.0%} of the minutes".format
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in config.seeds:
        slow, fast = rates(({"recipe": "gpt2"}, {}), text, seed)
        n_updates = RECIPES["gpt2"][1].steps
        sides = {"gpt2": Side({"recipe": "gpt2"}, seed, text, n_updates)}
        sides |= {ours(share): Side({}, seed, text, int(share * n_updates * slow / fast)) for share in config.shares}
        take_turns(list(sides.values()))
        for name, side in sides.items():
            entry = side.finish()
            found.setdefault(name, []).append(entry)
            print(f"seed {seed}  {name:28} {entry['nats']:.4f} nats, {entry['updates']:,} updates, {entry['minutes']:.2f} minutes")
    rows = {}
    for name, entries in found.items():
        nats, minutes = ([entry[key] for entry in entries] for key in ("nats", "minutes"))
        share = statistics.mean(minutes) / statistics.mean(entry["minutes"] for entry in found["gpt2"])
        text_of = f"{statistics.mean(nats):.3f} nats, {statistics.mean(minutes):.2f} minutes ({share:.0%})"
        pairs = [mine - theirs["nats"] for mine, theirs in zip(nats, found["gpt2"], strict=True)]
        rows[name] = text_of if name == "gpt2" else f"{text_of}, {interval(pairs)} compared with gpt2"
    print(table("validation loss, mean over seeds", rows))
    path = Path(config.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {"summary": rows, "runs": found, "seeds": list(config.seeds), "machine": machine(), "date": time.strftime("%Y-%m-%d")}
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    run(main)
