"""Spam or not: a small GPT, fine-tuned, against TF-IDF + logistic regression on the same splits of the SMS Spam Collection.

    python benchmarks/sms_spam.py --base runs/base                  # our claim: 20 random splits, about a minute each
    python benchmarks/sms_spam.py --base runs/base --trainable lora --targets c_attn wte --lr 2e-3 --epochs 5 --splits 5
    python benchmarks/sms_spam.py --protocol published --base random --preset gpt2 --pooling last --epochs 5 --batch 8 --lr 5e-5 --splits 1
    python benchmarks/sms_spam.py --quick                           # seconds: does it run?

The third trains GPT-2's 124M shape from random weights as the book does, to compare with its figures: half an hour and more on two cores.

published   747 ham drawn from 4,827 and all 747 spam, shuffled (pandas' `sample`, seed 123), cut at 70 % and 80 % of the rows.
            Of the 300 test messages 36 are copies of training messages, so these figures flatter every method.
            Source  Raschka 2024, Build a Large Language Model (From Scratch), chapter 6.
clean       as many ham as spam among messages that differ, and equal messages (but for case and white space) never on two sides;
            another random split for each seed. The difference to the baseline is taken on each split, so that easy splits do not count.

Two 95 % intervals of the mean difference: the paired t interval over the k splits, and one that allows for splits that share their rows:
variance (1/k + test/training rows) instead of 1/k.
Source  Nadeau and Bengio 2003, Inference for the generalization error, section 3 (corrected resampled t-test).

Writes one JSON line per split to --out; splits that it holds already are not run again, and where it holds the same splits with other
settings, LoRA's beside full fine-tuning's, the differences are printed. Needs the extra classify (scikit-learn).
"""

import dataclasses
import json
import math
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from autograd import backend
from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.arguments import parse_args
from tinygpt.cli import exit_if_interrupted, run
from tinygpt.data.tokenizer import Tokenizer, gpt2_tokenizer, train_tokenizer
from tinygpt.fields import PathName
from tinygpt.finetuning.classifier import GPTClassifier, LabeledBatches, encode
from tinygpt.finetuning.common import Trainable, fit, n_trainable, set_trainable
from tinygpt.finetuning.labeled import LabeledData, LabeledText, Split, balance, load_labeled, split
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.finetuning.report import Scores, tfidf_baseline
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.training.metrics import Metrics


@dataclass(frozen=True)
class SpamConfig:
    protocol: Literal["published", "clean"] = "clean"
    """Which messages, and how they are split."""
    base: PathName = "random"
    """Run or checkpoint to start from, or "random"."""
    preset: str = "laptop"
    """Shape of a model with random weights; gpt2 takes GPT-2's tokenizer with it."""
    splits: int = 20
    """Random splits (clean) or seeds of the training (published)."""
    trainable: Trainable = "all"
    """What is trained."""
    rank: int = 8
    """LoRA's rank."""
    targets: tuple[str, ...] = ("c_attn",)
    """Layers that LoRA corrects."""
    pooling: Literal["last", "mean", "first"] = "mean"
    """Where the head looks."""
    epochs: int = 3
    """Passes over the training rows, at most."""
    batch: int = 16
    """Texts per update."""
    lr: float = 5e-4
    """Peak learning rate."""
    weight_decay: float = 0.1
    """AdamW's decay, on matrices only."""
    patience: int = 0
    """Evaluations (two per epoch) without a better one after which training ends. 0: never."""
    out: PathName = ""
    """File that a JSON line per split is added to."""
    quick: bool = False
    """A tiny model, few messages, two splits: only to see that it runs."""


class Quiet:
    """A reporter that says nothing."""

    def update(self, metrics: Metrics) -> None: ...
    def evaluated(self, step: int, validation_nats: float, best: bool) -> None: ...
    def note(self, text: str) -> None: ...


def published_split(data: LabeledData) -> Split:
    """The book's rows: `ham.sample(747, random_state=123)`, then spam, then `sample(frac=1, random_state=123)`."""
    ham, spam = ([row for row in data.rows if row.label == label] for label in ("ham", "spam"))
    rows = [ham[i] for i in np.random.RandomState(123).permutation(len(ham))[: len(spam)]] + spam
    rows = [rows[i] for i in np.random.RandomState(123).permutation(len(rows))]
    first, second = int(0.7 * len(rows)), int(0.7 * len(rows)) + int(0.1 * len(rows))
    return Split(rows[:first], rows[first:second], rows[second:])


def clean_split(data: LabeledData, seed: int) -> Split:
    """Each different message once, as many ham as spam, split by seed."""
    once = list({row.group: row for row in reversed(data.rows)}.values())
    return split(dataclasses.replace(data, rows=balance(once, "under", seed)), seed=seed)


def starting_point(config: SpamConfig, texts: list[str], seed: int) -> tuple[GPT, Tokenizer]:
    if config.base != "random":
        checkpoint = Checkpoint.open(config.base)
        return checkpoint.language_model(), checkpoint.tokenizer()
    tokenizer = gpt2_tokenizer() if config.preset == "gpt2" else train_tokenizer("bpe", texts, 300 if config.quick else 2048)
    preset = "quick" if config.quick else config.preset
    return GPT(GPTConfig.preset(preset, vocab_size=tokenizer.n_vocab, n_positions=256), seed=seed), tokenizer


def one_split(config: SpamConfig, parts: Split, seed: int) -> dict[str, float]:
    """Accuracies on the test part, of the classifier and of the baselines, and seconds of training."""
    gpt, tokenizer = starting_point(config, [row.text for row in parts.train], seed)
    classifier = GPTClassifier(gpt, tokenizer, ["ham", "spam"], pooling=config.pooling, seed=seed)
    set_trainable(classifier, config.trainable, LoraConfig(rank=config.rank, targets=config.targets), seed)

    def batches(rows: list[LabeledText]) -> LabeledBatches:
        sequences, _ = encode([row.text for row in rows], tokenizer, gpt.config.n_positions, truncate=True)
        return LabeledBatches(sequences, classifier.label_ids([row.label for row in rows]))

    train, validation, test = batches(parts.train), batches(parts.validation), batches(parts.test)
    micro_batch = min(8, config.batch)
    per_epoch = len(train) // config.batch
    settings = TrainConfig(
        steps=config.epochs * per_epoch,
        lr=config.lr,
        warmup_steps=min(50, per_epoch),
        weight_decay=config.weight_decay,
        micro_batch=micro_batch,
        tokens_per_update=config.batch // micro_batch * micro_batch * gpt.config.n_positions,
        eval_every=-(-per_epoch // 2),  # rounded up
        patience=config.patience,
        log_every=config.epochs * per_epoch,
        seed=seed,
    )
    started = time.perf_counter()
    result = fit(classifier, train, validation, settings, Quiet())
    exit_if_interrupted(result, f"seed {seed}: interrupted, not recorded; the same command goes on with it")
    seconds = time.perf_counter() - started

    labels = classifier.labels
    found = {"accuracy": Scores.of(labels, test.targets, classifier.logits(test.sequences).argmax(axis=1)).accuracy}
    found["validation"] = Scores.of(labels, validation.targets, classifier.logits(validation.sequences).argmax(axis=1)).accuracy
    for analyzer in ("word", "characters"):
        predicted = tfidf_baseline([row.text for row in parts.train], train.targets, [row.text for row in parts.test], analyzer)
        found[f"tfidf_{analyzer}"] = Scores.of(labels, test.targets, predicted).accuracy
    return found | {"trainable_weights": n_trainable(classifier), "train_s": seconds, "n_train": len(train), "n_test": len(test)}


def interval(differences: np.ndarray, test_per_training_row: float) -> tuple[float, float]:
    """Mean of paired differences and half the width of its 95 % t interval; test_per_training_row is 0 for splits that share no rows."""
    from scipy import stats  # comes with scikit-learn

    k = len(differences)
    deviation = math.sqrt((1 / k + test_per_training_row) * float(differences.var(ddof=1)))
    return float(differences.mean()), float(stats.t.ppf(0.975, k - 1)) * deviation


def settings_of(config: SpamConfig) -> dict[str, object]:
    """What decides the result of a split."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(config).items() if key not in ("splits", "out")}


def finished(config: SpamConfig) -> list[dict[str, float]]:
    """Results that --out holds already, from the first split on: an interrupted run goes on where it was."""
    if not config.out or not Path(config.out).is_file():
        return []
    mine = settings_of(config)
    records = [json.loads(line) for line in Path(config.out).read_text(encoding="utf-8").splitlines()]
    results = [{k: v for k, v in r.items() if k not in mine} for r in records if all(r.get(k) == v for k, v in mine.items())]
    return [r for i, r in enumerate(results) if r["seed"] == i]


def compare(config: SpamConfig, results: list[dict[str, float]]) -> None:
    """Prints the paired differences to what else --out holds of the same messages and base: settings that differ in what is trained."""
    if not config.out or not Path(config.out).is_file():
        return
    mine = {result["seed"]: result["accuracy"] for result in results}
    others: dict[str, dict[int, float]] = {}
    for line in Path(config.out).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        same = all(record[key] == getattr(config, key) for key in ("protocol", "base", "quick"))
        if same and record["trainable"] != config.trainable and record["seed"] in mine:
            name = f"{record['trainable']}, rate {record['lr']:g}, {record['epochs']} epochs, batch {record['batch']}"
            others.setdefault(name, {})[record["seed"]] = record["accuracy"]
    for name, accuracies in others.items():
        theirs = np.array(list(accuracies.values()))
        differences = np.array([mine[seed] for seed in accuracies]) - theirs
        spreads = [values.std(ddof=min(1, len(values) - 1)) for values in (theirs, differences)]
        print(
            f"{name}: {theirs.mean():.2%} +- {spreads[0]:.2%} on {len(theirs)} of these splits; "
            f"these minus those {100 * differences.mean():+.2f} +- {100 * spreads[1]:.2f} points"
        )


def main() -> None:
    config = parse_args(SpamConfig(), __doc__)
    data = load_labeled("sms-spam")
    n_splits = 2 if config.quick else config.splits
    if config.quick:
        config = dataclasses.replace(config, epochs=1)
        data.rows = data.rows[:600]
    print(
        f"backend  {backend.reason}\nmachine  {platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}\n{config}\n"
    )

    results = finished(config)[:n_splits]
    for seed in range(len(results), n_splits):
        parts = published_split(data) if config.protocol == "published" else clean_split(data, seed)
        results.append({"seed": seed, **one_split(config, parts, seed)})
        print("  ".join(f"{key} {value:.4g}" for key, value in results[-1].items()), flush=True)
        if config.out:
            with Path(config.out).open("a", encoding="utf-8", newline="\n") as file:
                file.write(json.dumps(settings_of(config) | results[-1]) + "\n")

    print()
    for key in ("accuracy", "tfidf_word", "tfidf_characters"):
        values = np.array([result[key] for result in results])
        print(f"{key:<16}  {values.mean():.2%} +- {values.std(ddof=1) if n_splits > 1 else 0:.2%} over {n_splits}")
    compare(config, results)
    if config.protocol == "clean" and n_splits > 1:
        for key in ("tfidf_word", "tfidf_characters"):
            differences = np.array([result["accuracy"] - result[key] for result in results])
            print(f"minus {key:<16}  {100 * differences.mean():+.2f} points, 95 % intervals:")
            for name, shared in (("paired", 0.0), ("rows shared", results[0]["n_test"] / results[0]["n_train"])):
                mean, half = interval(differences, shared)
                print(f"      {name:<16}  {100 * (mean - half):+.2f} to {100 * (mean + half):+.2f}")


if __name__ == "__main__":
    run(main)
