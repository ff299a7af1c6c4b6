"""A small model, fine-tuned, against a larger one that is only prompted: which section of a docstring is this?

    python benchmarks/finetuned_vs_prompted.py                  # about ten minutes on two cores
    python benchmarks/finetuned_vs_prompted.py --small 1x32 --large 1x32 --updates 20 20 --rows 40 --seeds 0 --runs out --output out.json  # a minute

Both models are pretrained here on the default corpus: the small one (2 x 64, layers x channels, context 128), which is then fine-tuned as in
examples/finetune_classifier.py on the training rows of doc-sections, and the large one (4 x 128, context 512), which is asked by a prompt: the
heading as it stands in a docstring, or "Label:" after the text, without and with four solved examples from the training rows. Of these
prompts the one that names most validation rows right counts; all are reported. The test rows come from the validation documents of the corpus,
which neither model has read, and are the same for both; the seed is that of the head, of the order and of the split into training and
validation rows. The small model is prompted, too, and TF-IDF with logistic regression is the model to beat.

What has been trained and scored is kept under --runs: a call that was stopped continues there. Needs the extra classify (scikit-learn).
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from ablations import machine
from prompting import shown
from trained import Answers, Docs, Trained, answers, shape_of, trained, training_for

from tinygpt.arguments import parse_args
from tinygpt.cli import Progress, run
from tinygpt.evaluation.items import Item, Task
from tinygpt.evaluation.statistics import difference, interval
from tinygpt.fields import PathName
from tinygpt.finetuning.classifier import GPTClassifier, LabeledBatches, encode
from tinygpt.finetuning.common import FinetuneConfig, fit, training_plan
from tinygpt.finetuning.labeled import SECTIONS, LabeledText, Split, load_labeled, split
from tinygpt.finetuning.report import tfidf_baseline
from tinygpt.runs.checkpoint import Checkpoint

N_EXAMPLES, SHOTS = 64, (0, 4)


@dataclass(frozen=True)
class Config:
    small: str = "2x64"
    """Layers x channels of the model that is fine-tuned."""
    large: str = "4x128"
    """Layers x channels of the model that is prompted."""
    updates: tuple[int, int] = (1000, 1600)
    """Of the pretraining of the small and of the large model, as scaling.py and prompting.py train them."""
    epochs: int = 3
    """Passes of fine-tuning over the training rows, at most."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the split into training and validation rows, of the head and of the order."""
    rows: int = 0
    """At most so many rows of each part, to see that it runs. 0: all."""
    processes: int = 0
    """That share a pretraining. 0: one per core."""
    runs: PathName = "runs/benchmarks"
    """Where pretrained models and their answers are kept."""
    output: PathName = "benchmarks/results/finetuned_vs_prompted.json"
    """Where the results go."""


def prompted(rows: Sequence[LabeledText], examples: Sequence[LabeledText], wording: str) -> Task:
    """Rows as items of a task, with examples to draw from."""

    def item(row: LabeledText) -> Item:
        right = SECTIONS.index(row.label)
        if wording == "heading":
            return Item("schema", tuple(f"{name}\n{'-' * len(name)}\n" for name in SECTIONS), (row.text,), right, row.group)
        return Item("choice", (f"{row.text}\nLabel:",), tuple(f" {name}" for name in SECTIONS), right, row.group)

    return Task(wording, [item(row) for row in rows], [item(row) for row in examples])


def fine_tuned(model: Trained, parts: Split[LabeledText], config: Config, seed: int) -> dict[str, Any]:
    """Which test rows a classifier on the model gets right, and what its training took. The base stays as it is."""
    checkpoint = Checkpoint.open(model.path)
    gpt, tokenizer = checkpoint.language_model(), checkpoint.tokenizer()
    classifier = GPTClassifier(gpt, tokenizer, sorted(SECTIONS), pooling="last", seed=seed)

    def batches(rows: Sequence[LabeledText]) -> LabeledBatches:
        ids, _ = encode([row.text for row in rows], tokenizer, gpt.config.n_positions, truncate=True)
        return LabeledBatches(ids, classifier.label_ids([row.label for row in rows]))

    train, validation, test = batches(parts.train), batches(parts.validation), batches(parts.test)
    settings = FinetuneConfig(epochs=config.epochs, seed=seed)
    plan = training_plan(settings, len(train), min(settings.batch, len(train)), min(8, len(train)), gpt.config.n_positions)
    started = time.perf_counter()
    with Progress(plan.steps, unit="nats per text") as progress:
        result = fit(classifier, train, validation, plan, progress)
    if result.interrupted:
        raise KeyboardInterrupt
    minutes = (time.perf_counter() - started) / 60
    right = classifier.logits(test.sequences).argmax(axis=1) == test.targets
    return {"seed": seed, "right": right.astype(int).tolist(), "minutes": round(minutes, 3), "training_rows": len(train)}


def prompts(model: Trained, parts: Split[LabeledText]) -> dict[str, dict[str, Answers]]:
    """By prompt: the validation rows and the test rows that it gets right."""
    examples = parts.train[:: max(1, len(parts.train) // N_EXAMPLES)][:N_EXAMPLES]
    found = {}
    for wording in ("heading", "Label:"):
        for n in SHOTS:
            sides = {"validation": parts.validation, "test": parts.test}
            found[f"{wording}, {n} shots"] = {side: answers(model, prompted(rows, examples, wording), n) for side, rows in sides.items()}
    return found


def best_prompt(found: dict[str, dict[str, Answers]]) -> str:
    return max(found, key=lambda name: float(found[name]["validation"].right.mean()))


def tfidf(parts: Split[LabeledText]) -> float:
    train, test = ([SECTIONS.index(row.label) for row in rows] for rows in (parts.train, parts.test))
    texts = [[row.text for row in rows] for rows in (parts.train, parts.test)]
    return float((tfidf_baseline(texts[0], np.array(train), texts[1]) == np.array(test)).mean())


def main() -> None:
    config = parse_args(Config(), __doc__)
    path, data, folder = Path(config.output), load_labeled("doc-sections"), Path(config.runs)
    parted = {seed: split(data, seed=seed) for seed in config.seeds}
    if config.rows:
        parted = {s: Split(*(rows[: config.rows] for rows in (p.train, p.validation, p.test))) for s, p in parted.items()}
    first = parted[config.seeds[0]]
    docs, models = Docs.read(), {}
    for side, name, context, updates in (("small", config.small, 128, config.updates[0]), ("large", config.large, 512, config.updates[1])):
        training = training_for(updates, 0, context, config.processes)
        models[side] = trained(folder, shape_of(*map(int, name.split("x")), context), training, docs)
    tuned = [fine_tuned(models["small"], parts, config, seed) for seed, parts in parted.items()]
    asked = {side: prompts(model, first) for side, model in models.items()}
    groups = np.array([row.group for row in first.test])
    right = np.mean([each["right"] for each in tuned], axis=0)
    best = {side: best_prompt(found) for side, found in asked.items()}
    rival = asked["large"][best["large"]]["test"].right
    rows: dict[str, Any] = {
        side: {name: {part: [round(x, 4) for x in interval(a.right, a.groups)] + [a.n_cut] for part, a in sides.items()} for name, sides in found.items()}
        for side, found in asked.items()
    }  # fmt: skip
    accuracies = [statistics.mean(each["right"]) for each in tuned]
    gain = difference(right, rival, groups)
    report = {
        "facts": {side: model.facts for side, model in models.items()}, "test_rows": len(first.test), "prompts": rows, "best_prompt": best,
        "fine_tuned": [{k: v for k, v in each.items() if k != "right"} | {"accuracy": round(a, 4)} for each, a in zip(tuned, accuracies, strict=True)],
        "difference": [round(x, 4) for x in gain], "tfidf": [round(tfidf(parts), 4) for parts in parted.values()],
        "machine": machine(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print("| model | weights without embeddings | how | accuracy on test rows |\n|---|---|---|---|")
    weights = {side: f"{model.facts['block_weights']:,}" for side, model in models.items()}
    spread = f"{statistics.mean(accuracies):.3f} ({', '.join(f'{a:.3f}' for a in accuracies)} by seed)"
    print(f"| {config.small} | {weights['small']} | fine-tuned on {len(first.train):,} rows | {spread} |")
    for side, name in (("large", config.large), ("small", config.small)):
        for prompt, sides in rows[side].items():
            mean, low, high, _ = sides["test"]
            mark = ", best on validation rows" if prompt == best[side] else ""
            print(f"| {name} | {weights[side]} | {prompt}{mark} | {mean:.3f} ({low:.3f} to {high:.3f}) |")
    print(f"| TF-IDF, logistic regression | | trained on {len(first.train):,} rows | {statistics.mean(report['tfidf']):.3f} |")
    print(f"\nfine-tuned {config.small} minus prompted {config.large} ({best['large']}): {shown(gain)}")


if __name__ == "__main__":
    run(main)
