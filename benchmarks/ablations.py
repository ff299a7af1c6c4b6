"""What one change of the recipe gives: the same run with and without it, several seeds, after the same minutes or tokens.

    python benchmarks/ablations.py                         lists the switches
    python benchmarks/ablations.py cosine                  3.5 minutes for each side and seed: 21 minutes
    python benchmarks/ablations.py cosine dropout --seeds 0 1 2 3 4 --minutes 1
    python benchmarks/ablations.py cosine --unit tokens    all sides see as many tokens as the default run
    python benchmarks/ablations.py all --minutes 0.8       every switch: an hour

A switch changes the default recipe of examples/pretrain.py; its name says what changes. How many updates fit into the minutes is told by 60 of
each side, measured in turns of five before anything else: the learning rate's schedule has to know, and a machine that is busy later changes
no result. What costs no time, such as another schedule, gets as many updates as the run without it. Evaluation does not count. Reported is the loss with the change minus the loss without, in nats per token, over the seeds, with a
95 % interval (Student's t, paired by seed).

--text choice   validates on a tenth of the training text, groups of near-copies undivided, and trains on the rest: for choosing a recipe
--text report   validates on the validation text, which no choice has seen
"""

import dataclasses
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).parent))
from train_step import processor

from autograd.threads import n_threads
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.data.corpora import draw_groups, load_corpus
from tinygpt.data.tokenizer import train_tokenizer
from tinygpt.data.windows import Windows, encode_documents
from tinygpt.errors import InvalidInput, did_you_mean
from tinygpt.fields import PathName
from tinygpt.parallel.local import workers_for
from tinygpt.recipes import RECIPES
from tinygpt.training.metrics import measure
from tinygpt.training.trainer import Trainer

_PROBE = 60  # updates that tell a rate
_TOGETHER = 6  # switches whose rates are measured in the same turns
_COST_NOTHING = {"schedule", "adam_lr_scale", "betas", "momentum", "initializer_range", "weight_decay", "lr", "stride"}
_STUDENT_T = {3: 4.303, 4: 3.182, 5: 2.776}  # 97.5 % quantile by number of seeds

# Each: the settings of RECIPES["tinygpt"] that change, of the model and of training.
SWITCHES: dict[str, dict[str, Any]] = {
    "gpt2": {"recipe": "gpt2"},
    # Back from what the recipe has.
    "adamw 2e-3": {"optimizer": "adamw", "lr": 2e-3},
    "adamw 5e-3": {"optimizer": "adamw"},
    "learned positions": {"positions": "learned"},
    "cosine": {"schedule": "cosine"},
    "one rate": {"adam_lr_scale": 1.0},
    "beta 0.95": {"betas": (0.9, 0.95)},
    "momentum 0.95": {"momentum": 0.95},
    "initial 0.02": {"initializer_range": 0.02},
    # What it does without.
    "rms norm": {"norm": "rms"},
    "qk norm": {"qk_norm": "head"},
    "swiglu": {"activation": "silu", "gated": True, "n_inner": 344},
    "squared relu": {"activation": "squared_relu"},
    "no biases": {"qkv_bias": False, "attention_output_bias": False, "mlp_bias": False},
    "untied": {"tie_word_embeddings": False},
    "soft cap": {"logit_softcap": 15.0},
    "z-loss": {"z_loss": 1e-4},
    "dropout": {"dropout": 0.1},
    "overlap": {"stride": 32},
    "less decay": {"weight_decay": 0.03},
    "more decay": {"weight_decay": 0.3},
    "batch 16": {"micro_batch": 16},
    "3 layers": {"n_layer": 3},
    "6 layers": {"n_layer": 6},
    "192 channels": {"n_embd": 192},
}


@dataclass(frozen=True)
class Config:
    switches: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Names of switches; all: every one."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and data order; three to five."""
    minutes: float = 3.5
    """Of training, for each side and seed."""
    unit: Literal["time", "tokens"] = "time"
    """tokens: both sides train for as many tokens as the recipe's own updates, however long that takes."""
    text: Literal["choice", "report"] = "report"
    """Validation text."""
    output: PathName = "benchmarks/results/ablations.json"
    """Where the results go; those of other switches that it holds stay."""


class Side:
    """One of the two runs: a trainer, its seconds, and how many updates it makes."""

    def __init__(self, changes: Mapping[str, Any], seed: int, text: "Text", n_updates: int) -> None:
        model, training = with_changes(changes)
        self.training = dataclasses.replace(training, steps=n_updates, seed=seed)
        self.shape = dataclasses.replace(model, vocab_size=text.n_vocab)
        self.text, self.seconds = text, 0.0
        network = GPT(self.shape, seed=seed)
        train = Windows(text.train, self.shape.n_positions, self.training.stride or None)
        self.trainer = Trainer(network, self.training, train, None, workers_for(network, self.training))
        network.train()

    def turn(self, n_updates: int) -> float:
        """Makes that many updates, or those that are left; returns its seconds."""
        started, result = time.perf_counter(), self.trainer.result
        for _ in range(min(n_updates, self.training.steps - result.step)):
            self.trainer.update()
        self.trainer.optimizer.weight.sum()  # waits for a GPU
        taken = time.perf_counter() - started
        self.seconds += taken
        return taken

    def finish(self) -> dict[str, float]:
        """Ends the run; its validation loss in nats per token, and what it took."""
        nats = measure(self.trainer.model, Windows(self.text.validation, self.shape.n_positions), 32).nats
        self.trainer.close()
        result = self.trainer.result
        return {"nats": nats, "minutes": self.seconds / 60, "updates": result.step, "tokens": result.tokens_seen}


def rates(changes: Sequence[Mapping[str, Any]], text: "Text", seed: int) -> list[float]:
    """Seconds per update of runs with these changes, the median of turns of five."""
    sides = [Side(each, seed, text, 10_000) for each in changes]
    seconds = [[side.turn(5) / 5 for side in sides] for _ in range(_PROBE // 5 + 1)]
    for side in sides:
        side.trainer.close()
    return [statistics.median(turns) for turns in zip(*seconds[1:], strict=True)]


@dataclass(frozen=True)
class Text:
    train: np.ndarray
    validation: np.ndarray
    n_vocab: int


def with_changes(changes: Mapping[str, Any]) -> tuple[GPTConfig, TrainConfig]:
    """The recipe that `changes` start from ("recipe" in them, or the default one), changed."""
    changes = dict(changes)
    model, training = RECIPES[changes.pop("recipe", "tinygpt")]
    of_model = {key: value for key, value in changes.items() if key in GPTConfig.__dataclass_fields__}
    of_training = {key: value for key, value in changes.items() if key not in of_model}
    return dataclasses.replace(model, **of_model), dataclasses.replace(training, **of_training)


def read_text(which: str) -> Text:
    corpus = load_corpus("docs")
    tokenizer = train_tokenizer("bpe", [d.text for d in corpus.train], RECIPES["tinygpt"][0].vocab_size)
    train, validation = corpus.train, corpus.validation
    if which == "choice":
        sizes: dict[str, float] = {}
        for d in train:
            sizes[str(d.group)] = sizes.get(str(d.group), 0.0) + len(d.text)
        chosen = set(draw_groups(sizes, 0.1, seed=1))
        train, validation = [d for d in train if str(d.group) not in chosen], [d for d in train if str(d.group) in chosen]
    return Text(*(encode_documents([d.text for d in part], tokenizer) for part in (train, validation)), tokenizer.n_vocab)


def n_updates(names: Sequence[str], config: Config, text: Text) -> dict[str, int]:
    """Updates of each side, "without" among them: in as many tokens as the default run has, or in the minutes."""
    if config.unit == "tokens":
        made = {"without": with_changes({})} | {name: with_changes(SWITCHES[name]) for name in names}
        per = {name: t.accumulation(m.n_positions) * t.micro_batch * m.n_positions for name, (m, t) in made.items()}
        return {name: made["without"][1].steps * per["without"] // each for name, each in per.items()}
    relative = {name: 1.0 for name in names if SWITCHES[name].keys() <= _COST_NOTHING}
    timed, plain = [name for name in names if name not in relative], []
    for some in (timed[i : i + _TOGETHER] for i in range(0, max(1, len(timed)), _TOGETHER)):
        first, *others = rates([{}, *(SWITCHES[name] for name in some)], text, config.seeds[0])
        plain.append(first)
        relative |= {name: other / first for name, other in zip(some, others, strict=True)}
    return {
        name: max(1, int(60 * config.minutes / (statistics.median(plain) * each))) for name, each in {"without": 1.0, **relative}.items()
    }


def trained(name: str, changes: Mapping[str, Any], config: Config, text: Text, n: int) -> list[dict[str, float]]:
    """What each seed's run gives after n updates."""
    found = []
    for seed in config.seeds:
        side = Side(changes, seed, text, n)
        side.turn(n)
        found.append(side.finish())
        print(f"{name:18} seed {seed} {found[-1]['nats']:.4f} nats, {n:,} updates, {found[-1]['minutes']:.2f} minutes", flush=True)
    return found


def interval(differences: list[float]) -> str:
    mean, n = statistics.mean(differences), len(differences)
    if n not in _STUDENT_T:
        return f"{mean:+.3f}"
    half = _STUDENT_T[n] * statistics.stdev(differences) / math.sqrt(n)
    return f"{mean:+.3f} ({mean - half:+.3f} to {mean + half:+.3f})"


def main() -> None:
    config = parse_args(Config(), __doc__)
    if len(set(config.seeds)) != len(config.seeds) or len(config.seeds) not in _STUDENT_T:
        given = " ".join(map(str, config.seeds))
        raise InvalidInput(f"seeds: {given}, expected three to five different ones; the interval needs them")
    names = list(SWITCHES) if "all" in config.switches else list(config.switches)
    for name in names:
        if name not in SWITCHES:
            raise InvalidInput(f"switch: {name!r}, expected all, or some of {', '.join(SWITCHES)}; {did_you_mean(name, SWITCHES)}")
    if not names:
        for name, changes in SWITCHES.items():
            print(f"{name:18} {', '.join(f'{key} {value}' for key, value in changes.items())}")
        return
    path = Path(config.output)
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    text = read_text(config.text)
    counts = n_updates(names, config, text)
    plain = trained("without", {}, config, text, counts["without"])
    for name in names:
        changed = trained(name, SWITCHES[name], config, text, counts[name])
        differences = [mine["nats"] - theirs["nats"] for mine, theirs in zip(changed, plain, strict=True)]
        entry = {"changes": {key: str(value) for key, value in SWITCHES[name].items()}, "seeds": list(config.seeds)}
        entry |= {"differences": differences, "without": plain, "with": changed, "unit": config.unit, "text": config.text}
        entry |= {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
        report[f"{name}, {config.unit}, {config.text}"] = entry
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"{name:18} {interval(differences)} nats", flush=True)


def machine() -> str:
    return f"{processor()}, {n_threads()} threads, Python {platform.python_version()}, NumPy {np.__version__}"


if __name__ == "__main__":
    run(main)
