"""The road to the transformer: accuracy against length for an RNN with one context vector, an RNN with attention, and a transformer.

    python benchmarks/road.py                           three models x three seeds x ten minutes, and the choice of rates: two hours
    python benchmarks/road.py --minutes 0.1 --seeds 0   shows that it runs

The data are the sentences of examples/translate.py: one to eight numbers and dates in English words, to be translated into German. Those of
the test sentences are in no sentence of training. The three models have as many weights (within 2 %), the same batches and the same minutes on
the clock. They take turns of a few seconds, so that a drifting machine moves all of them.

First the learning rate: each model is trained for a fifth of the minutes at each of four rates, on a seed of its own; the lowest loss on
validation pairs decides. A rate at the end of its range is marked. All have AdamW, a warm-up of 100 updates, then the rate falls linearly
to 0 with the share of the minutes that is used up. Nothing else was tuned, for none of them.

exact    sentences whose translation is right to the last letter
words    longest common subsequence of words, divided by the number of words of the longer of both texts

What has been measured with the same minutes is kept: a call with more seeds adds to it. The recurrent models are those of
examples/learn/27_seq2seq.py (GRU, encoder in both directions, Bahdanau's attention), the transformer that of Vaswani et al. with two layers.
Needs `pip install -e ".[translate,plot]"`.
"""

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(1, str(Path(__file__).parent.parent / "examples" / "learn"))
from ablations import machine
from recurrent import EncoderDecoder, hidden_for

import autograd as ag
from autograd.optim import AdamW
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.data.pairs import Pair, PairBatches, encode_pairs, load_pairs, train_pair_tokenizer
from tinygpt.data.tokenizer import BPETokenizer
from tinygpt.errors import InvalidInput
from tinygpt.fields import PathName
from tinygpt.models import Seq2Seq
from tinygpt.seq2seq_config import Seq2SeqConfig

CHANNELS, VOCABULARY, LONGEST = 128, 512, 256
TARGETS_PER_BATCH, POOL = 1_500, 2_048  # tokens of a batch, padding included; pairs among which those of similar length are put together
WARMUP, TURN_S = 100, 5.0
RATES = (1e-3, 2e-3, 4e-3, 8e-3)
CHOICE_SEED, CHOICE_SHARE = 100, 0.2
MODELS = ("one vector", "attention", "transformer")


@dataclass(frozen=True)
class Config:
    minutes: float = 10.0
    """Of training, for each model and seed."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and the order of the data."""
    rates: tuple[float, ...] = RATES
    """Learning rates to choose from, rising; one: no choice."""
    n_numbers: int = 30_000
    """Single numbers to learn from; there are two thirds as many sentences."""
    output: PathName = "benchmarks/results/road.json"
    """Where the results go; the picture is drawn next to them."""


class Data:
    """Pairs as ids, and their batches."""

    def __init__(self, n_numbers: int) -> None:
        pairs = load_pairs("numbers-and-dates", n_numbers=n_numbers)
        self.tokenizer: BPETokenizer = train_pair_tokenizer(pairs.train, VOCABULARY)
        self.train, _ = self.encode(pairs.train)
        self.validation, _ = self.encode(pairs.validation)
        self.test, self.test_pairs = self.encode(pairs.test)
        self.end_id, self.pad_id = self.tokenizer.eos_id, self.tokenizer.pad_id

    def encode(self, pairs: Sequence[Pair]) -> tuple[PairBatches, list[Pair]]:
        sources, targets, kept = encode_pairs(pairs, self.tokenizer, LONGEST)
        return PairBatches(sources, targets, self.tokenizer.pad_id), kept

    def batches(self, seed: int) -> Iterator[np.ndarray]:
        """Which pairs each batch has, for ever: of similar length, about TARGETS_PER_BATCH tokens, in random order."""
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(len(self.train))
            for pool in np.array_split(order, max(1, len(order) // POOL)):
                parts = by_length(self.train, pool)
                for i in rng.permutation(len(parts)):
                    yield parts[i]


def n_parts(pair: Pair) -> int:
    """Numbers and dates of a pair, 1 to 8."""
    return (
        int(pair.kind.removeprefix("sentences of ")) if pair.kind.startswith("sentences of ") else 1
    )  # else "single numbers", "single dates"


def by_length(items: PairBatches, which: np.ndarray) -> list[np.ndarray]:
    """`which` in batches of similar length, each as long as TARGETS_PER_BATCH allows; at least one pair."""
    which = which[np.argsort(items.lengths[which], kind="stable")]
    parts, start = [], 0
    while start < len(which):
        n = 1
        while start + n < len(which) and (n + 1) * len(items.targets[which[start + n]]) <= TARGETS_PER_BATCH:
            n += 1
        parts.append(which[start : start + n])
        start += n
    return parts


def makers(data: Data) -> dict[str, Callable[[int], Any]]:
    """A function of the seed for each model. The transformer's size decides; the others get the number of units that comes closest."""
    n_vocab = data.tokenizer.n_vocab
    shape = Seq2SeqConfig.preset(
        "laptop", n_embd=CHANNELS, n_positions=LONGEST, vocab_size=n_vocab, start_id=data.pad_id, pad_id=data.pad_id, eos_id=data.end_id
    )

    def recurrent(attention: bool) -> Callable[[int], EncoderDecoder]:
        def make(n_hidden: int, seed: int = 0) -> EncoderDecoder:
            return EncoderDecoder(n_vocab, CHANNELS, n_hidden, attention=attention, start_id=data.pad_id, pad_id=data.pad_id, seed=seed)

        n_hidden = hidden_for(make, shape.n_parameters())
        return lambda seed: make(n_hidden, seed)

    return {"one vector": recurrent(False), "attention": recurrent(True), "transformer": lambda seed: Seq2Seq(shape, seed)}


class Side:
    """A model in training: its seconds so far, and how it is trained."""

    def __init__(self, model: Any, data: Data, seed: int, rate: float, seconds: float) -> None:
        self.model, self.data, self.rate, self.limit = model.train(), data, rate, seconds
        self.optimizer = AdamW(model, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.batches, self.seconds, self.updates, self.targets = data.batches(seed), 0.0, 0, 0

    def turn(self) -> None:
        """Trains for TURN_S seconds, or until the time is up."""
        until = min(self.seconds + TURN_S, self.limit)
        while self.seconds < until:
            started = time.perf_counter()
            done = self.seconds / self.limit
            self.optimizer.lr = self.rate * min((self.updates + 1) / WARMUP, 1 - done)
            batch = self.data.train.batch(next(self.batches))
            self.optimizer.zero_grad()
            loss = self.model.loss(*batch)
            loss.backward()
            self.optimizer.step(max_norm=1.0)
            self.updates += 1
            self.targets += int((batch[1] >= 0).sum())
            if not math.isfinite(loss.item()):
                self.seconds = self.limit  # lost: its validation loss will say so
            self.seconds += time.perf_counter() - started

    def validation_nats(self) -> float:
        total = n = 0.0
        self.model.eval()
        with ag.no_grad():
            for which in by_length(self.data.validation, np.arange(len(self.data.validation))):
                batch = self.data.validation.batch(which)
                counted = int((batch[1] >= 0).sum())
                total, n = total + self.model.loss(*batch).item() * counted, n + counted
        self.model.train()
        return total / n if math.isfinite(total) else math.inf

    def translations(self) -> list[str]:
        """Of the test's sources, in its order, greedy."""
        data, found = self.data, {}
        self.model.eval()
        for which in by_length(data.test, np.arange(len(data.test))):
            ids, _, mask = data.test.batch(which)
            most = min(LONGEST, 2 * max(len(data.test.targets[i]) for i in which) + 10)
            if isinstance(self.model, EncoderDecoder):
                rows = self.model.translate(ids, most, mask, end_id=data.end_id).tolist()
            else:
                rows = self.model.translate(ids, most, attention_mask=mask)
            for i, row in zip(which, rows, strict=True):
                text = row[: row.index(data.end_id)] if data.end_id in row else row
                found[int(i)] = data.tokenizer.decode([id for id in text if id != data.pad_id])
        return [found[i] for i in range(len(found))]


def in_turns(sides: Sequence[Side]) -> None:
    while any(side.seconds < side.limit for side in sides):
        for side in sides:
            side.turn()


def common_words(one: str, other: str) -> float:
    a, b = one.split(), other.split()
    same = sum(block.size for block in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks())
    return same / max(len(a), len(b), 1)


def scores(texts: Sequence[str], pairs: Sequence[Pair]) -> dict[str, Any]:
    """Shares by the number of parts."""
    groups: dict[int, list[tuple[bool, float, int]]] = {}
    for text, pair in zip(texts, pairs, strict=True):
        row = text == pair.target, common_words(text, pair.target), len(pair.source.split())
        groups.setdefault(n_parts(pair), []).append(row)
    rows = {str(n): [statistics.mean(column) for column in zip(*group, strict=True)] for n, group in sorted(groups.items())}
    return {name: {n: round(row[i], 4) for n, row in rows.items()} for i, name in enumerate(("exact", "words", "source_words"))} | {
        "n": {str(n): len(group) for n, group in sorted(groups.items())}
    }


def choose_rates(config: Config, data: Data, make: dict[str, Callable[[int], Any]]) -> dict[str, Any]:
    """For each model the validation loss at each rate, and the best."""
    chosen = {}
    for name in MODELS:
        seconds = 60 * config.minutes * CHOICE_SHARE
        sides = [Side(make[name](CHOICE_SEED), data, CHOICE_SEED, rate, seconds) for rate in config.rates]
        if len(sides) > 1:
            in_turns(sides)
        losses = {str(side.rate): round(side.validation_nats(), 4) for side in sides} if len(sides) > 1 else {}
        best = float(min(losses, key=lambda rate: losses[rate])) if losses else config.rates[0]
        at_the_end = len(losses) > 1 and best in (config.rates[0], config.rates[-1])
        chosen[name] = {"rate": best, "losses": losses, "at_the_end": at_the_end}
        note = "  at the end of the range" * at_the_end
        print(f"{name:12} rate {best:g}  {', '.join(f'{rate}: {loss:.3f}' for rate, loss in losses.items())}{note}", flush=True)
    return chosen


def measure_seed(seed: int, config: Config, data: Data, make: dict[str, Callable[[int], Any]], rates: dict[str, Any]) -> dict[str, Any]:
    sides = {name: Side(make[name](seed), data, seed, rates[name]["rate"], 60 * config.minutes) for name in MODELS}
    in_turns(list(sides.values()))
    found = {}
    for name, side in sides.items():
        found[name] = {
            "weights": side.model.n_parameters(), "updates": side.updates, "targets": side.targets,
            "minutes": round(side.seconds / 60, 3), "validation_nats": round(side.validation_nats(), 4),
            **scores(side.translations(), data.test_pairs),
        }  # fmt: skip
        exact = " ".join(f"{100 * share:5.1f}" for share in found[name]["exact"].values())
        print(
            f"{name:12} seed {seed} {side.updates:6,} updates {found[name]['validation_nats']:.3f} nats  exact by parts {exact}", flush=True
        )
    return found


def by_parts(runs: dict[str, Any], name: str, score: str) -> dict[str, list[float]]:
    """Number of parts -> the score of each seed."""
    rows = [run[name][score] for run in runs.values()]
    return {n: [row[n] for row in rows] for n in rows[0]}


def draw(runs: dict[str, Any], minutes: float, file: Path) -> None:
    """Both scores against the number of parts: means over the seeds, and the range of the seeds."""
    try:
        import matplotlib
    except ImportError:
        print('no picture: matplotlib is missing; pip install -e ".[plot]" and call again, the results are kept')
        return
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained", sharex=True)
    titles = {"exact": "sentences right to the last letter (%)", "words": "words right (%)"}
    source_words = {n: statistics.mean(values) for n, values in by_parts(runs, MODELS[0], "source_words").items()}
    for axis, (score, title) in zip(axes, titles.items(), strict=True):
        for name, color, marker in zip(MODELS, ("#E69F00", "#56B4E9", "#000000"), "sov", strict=True):
            rows = 100 * np.array(list(by_parts(runs, name, score).values()))  # (parts, seeds)
            x = np.array([int(n) for n in source_words])
            axis.plot(x, rows.mean(axis=1), color=color, marker=marker, markersize=5, label=name)
            axis.fill_between(x, rows.min(axis=1), rows.max(axis=1), color=color, alpha=0.2, linewidth=0)
        axis.set(title=title, ylim=(0, 103), xticks=x, xlabel="numbers and dates in a sentence (words of the source)")
        axis.set_xticklabels([f"{n}\n({words:.0f})" for n, words in source_words.items()])
        axis.grid(alpha=0.25)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"English to German, {minutes:g} minutes each, {len(runs)} seed{'s' * (len(runs) > 1)}", fontsize=11)
    figure.savefig(file, dpi=120)
    print("picture:", file)


def main() -> None:
    config = parse_args(Config(), __doc__)
    if not config.seeds or not config.minutes > 0 or list(config.rates) != sorted(set(config.rates)) or not config.rates:
        rule = "expected minutes > 0, at least one seed, and rates that rise"
        raise InvalidInput(f"road: minutes {config.minutes}, seeds {config.seeds}, rates {config.rates}, {rule}")
    path = Path(config.output)
    report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    settings = {"minutes": config.minutes, "n_numbers": config.n_numbers, "candidates": list(config.rates)}
    if report.get("settings") != settings:
        report = {"settings": settings, "runs": {}}
    data = Data(config.n_numbers)
    make = makers(data)
    print(f"{len(data.train):,} pairs; weights: " + ", ".join(f"{name} {make[name](0).n_parameters():,}" for name in MODELS), flush=True)
    report |= {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    report["rates"] = report.get("rates") or choose_rates(config, data, make)
    path.parent.mkdir(parents=True, exist_ok=True)
    for seed in config.seeds:
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")  # after each part: what is done stays
        if str(seed) not in report["runs"]:
            report["runs"][str(seed)] = measure_seed(seed, config, data, make, report["rates"])
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name in MODELS:
        exact = by_parts(report["runs"], name, "exact")
        print(f"{name:12} exact by parts " + " ".join(f"{n}: {100 * statistics.mean(shares):5.1f}" for n, shares in exact.items()))
    draw(report["runs"], config.minutes, path.with_suffix(".png"))


if __name__ == "__main__":
    with threadpool_limits(1, "blas"):  # a recurrent step's products are too small for BLAS's threads; large ones use the library's own
        run(main)
