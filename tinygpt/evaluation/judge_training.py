"""`python -m tinygpt judge train`: a judge of answers, and what it can do on held-out documents.

    python -m tinygpt judge train                          # from the newest pretrained run, on questions about NumPy's functions
    python -m tinygpt judge train --base RUN --data FILE   # another model, your own instructions and answers
    python -m tinygpt judge train --kinds shuffled echo    # other kinds of bad answers to train on; the rest is held out

Good answers are the rows' own; bad ones are made from them (tinygpt/finetuning/corruptions.py). A run directory holds the judge, report.txt
and judge.json.
"""

import copy
import hashlib
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from autograd import backend
from tinygpt.cli import Progress, Report, exit_if_interrupted, settings
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.evaluation.judge import (
    LABELS,
    REPORT,
    SIDES,
    Judge,
    KindReport,
    Position,
    by_pairs,
    by_prompt,
    by_scores,
    judge_text,
    likelihood_scores,
    measure_judge,
    measure_position,
    pairs_of,
    question_of,
    trivial_scores,
)
from tinygpt.evaluation.report import bounds, columns, json_of
from tinygpt.evaluation.statistics import Interval
from tinygpt.fields import FREE, PathName, check_fields
from tinygpt.finetuning.classifier import LabeledBatches, TextClassifier, balanced_weights, encode
from tinygpt.finetuning.common import FinetuneConfig, any_starting_point, fingerprint, fit, open_run, set_trainable, training_plan
from tinygpt.finetuning.corruptions import KINDS, TRAINED_KINDS, Judged, check_kinds, judged_answers
from tinygpt.finetuning.encoder_classifier import classifier_on
from tinygpt.finetuning.instructions import Instruction, load_instructions, split_instructions
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.finetuning.rows import Shares, Split, plain
from tinygpt.models.encoder import Encoder
from tinygpt.models.gpt import GPT
from tinygpt.runs.run import Run
from tinygpt.storage.checked_json import Json, to_json
from tinygpt.storage.durable import replace_file
from tinygpt.training.metrics import Result

TIMES = {"off-topic": 3}  # bad answers per draw: what tells them is not in the answer alone, and takes longer to learn


@dataclass(frozen=True)
class JudgeConfig(FinetuneConfig):
    script: ClassVar[str] = "python -m tinygpt judge train"
    data: PathName = "doc-questions"
    """doc-questions (text that every installation has), instructions, or a json, jsonl, csv, tsv or txt file of instructions and answers."""
    kinds: tuple[str, ...] = TRAINED_KINDS
    """Kinds of bad answers to train on; all the others are held out."""
    draws: int = 2
    """How many bad answers of each kind are made of a training row; three times as many that are off topic."""
    pairs: bool = field(default=True, metadata=FREE)
    """Also train a judge that compares two answers, to measure what their order does."""
    prompt_pairs: int = field(default=200, metadata=FREE)
    """Number of pairs on which the base model is prompted for a verdict."""
    fractions: Shares = (0.85, 0.05, 0.1)
    truncate: bool = True
    """Cut texts that are longer than the context; otherwise they are errors."""
    epochs: int = 2
    """Passes over the training answers, at most."""
    batch: int = 32
    """Answers per update."""
    lr: float = 1e-3
    output: PathName = field(default="", metadata=FREE)
    """Another file for what judge.json holds, less the list of training questions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {1: "draws", 0: "prompt_pairs"})
        check_kinds(self.kinds)


def train(argv: list[str] | None = None) -> None:
    """The command `judge train`."""
    config = settings(JudgeConfig(), __doc__, argv, prog="python -m tinygpt judge train")
    started, report = time.perf_counter(), Report()
    print(f"backend    {backend.reason}")
    data = load_instructions(config.data)
    report.say("\n           ".join([f"data       {data.source}", *data.notes]))
    parts = split_instructions(data, config.fractions, seed=config.seed)
    model, tokenizer, base = any_starting_point(config, [f"{question_of(row)}\n\n{row.output}" for row in parts.train], Progress)
    held_out = judged_answers(parts.test, list(KINDS), config.seed)
    rivals = trivial_scores(held_out) | (likelihood_scores(model, tokenizer, held_out) if isinstance(model, GPT) else {})
    untouched = copy.deepcopy(model)

    pointwise, result, run = train_pointwise(config, model, tokenizer, parts, base)
    exit_if_interrupted(result, f"no report yet; resume with: {config.script} --resume {run.path}")
    judge = Judge(pointwise)
    scores = judge.scores([j.question for j in held_out], [j.answer for j in held_out])
    kept, found = measure_judge(scores, held_out, config.kinds, rivals)
    report.say(kind_table(kept, found))
    positions = measure_positions(config, untouched, tokenizer, parts, held_out, judge)
    report.say(position_table(positions))

    seconds = time.perf_counter() - started
    judge.report = {
        "command": shlex.join([*config.script.split(), *(sys.argv[1:] if argv is None else argv)]), "base": base, "data": data.source,
        "rows": {name: len(rows) for name, rows in vars(parts).items()}, "trained_kinds": list(config.kinds), "seed": config.seed,
        "good_kept": json_of(kept), "kinds": {kind: _fields(each) for kind, each in found.items()},
        "auc_unseen": _mean(found, trained=False), "auc_seen": _mean(found, trained=True),
        "position": {name: _fields(each) for name, each in positions.items()}, "seconds": round(seconds, 1), "cut": judge.n_cut,
        "training_questions": sorted(question_hash(row) for row in parts.train + parts.validation),
    }  # fmt: skip
    replace_file(run.path / REPORT, to_json(judge.report))
    if config.output:
        replace_file(Path(config.output), to_json({key: value for key, value in judge.report.items() if key != "training_questions"}))
    report.say(f"{seconds:.0f} s; {judge.n_cut} of the answers were cut at the context of {pointwise.config.n_positions} tokens")
    report.write(run.path / "report.txt")
    print(f"\nreport     {run.path / 'report.txt'}\nnext: python -m tinygpt judge score RUN --judge {run.path}")


def question_hash(row: Instruction) -> str:
    """Tells whether two rows ask the same, but for case and white space."""
    return hashlib.sha256(plain(question_of(row)).encode("utf-8", "surrogatepass")).hexdigest()[:16]


# Training -----------------------------------------------------------------------------------------------------------------------------------


def train_pointwise(
    config: JudgeConfig, model: GPT | Encoder, tokenizer: Tokenizer, parts: Split[Instruction], base: str
) -> tuple[TextClassifier, Result, Run]:
    """Reads one answer, says good or bad; the run keeps it. Every label counts as much, though there are more bad answers."""
    made = [judged_answers(rows, config.kinds, config.seed, config.draws, TIMES) for rows in (parts.train, parts.validation)]
    texts = [[judge_text(j.question, j.answer) for j in some] for some in made]
    targets = [np.array([int(j.good) for j in some]) for some in made]
    classifier = classifier_on(model, tokenizer, LABELS, seed=config.seed)
    adapter = set_trainable(
        classifier, config.trainable, LoraConfig(config.rank, config.alpha, config.lora_dropout, config.targets), config.seed
    )
    run = open_run(config, base, tokenizer, adapter, fingerprint(texts), name="judge", labels=LABELS)
    return classifier, _fit(config, classifier, texts, targets, run), run


def train_pairwise(config: JudgeConfig, model: GPT | Encoder, tokenizer: Tokenizer, parts: Split[Instruction]) -> TextClassifier:
    """Reads two answers, says which is better. In training each pair stands in one order, drawn by seed: half of the time the right one is first."""
    rng, texts, targets = np.random.default_rng([config.seed, 2]), [], []
    for rows in (parts.train, parts.validation):
        pairs = pairs_of(judged_answers(rows, config.kinds, config.seed, -(-config.draws // 2), TIMES))  # twice as long
        right_first = rng.permutation(len(pairs)) % 2 == 0
        texts.append([pair.text(first) for pair, first in zip(pairs, right_first.tolist(), strict=True)])
        targets.append(np.where(right_first, SIDES.index("first"), SIDES.index("second")))
    classifier = classifier_on(model, tokenizer, SIDES, seed=config.seed)
    set_trainable(classifier, config.trainable, LoraConfig(config.rank, config.alpha, config.lora_dropout, config.targets), config.seed)
    result = _fit(config, classifier, texts, targets)
    exit_if_interrupted(result, "no report: the pairwise judge was not finished")
    return classifier


def _fit(
    config: JudgeConfig, classifier: TextClassifier, texts: Sequence[Sequence[str]], targets: Sequence[np.ndarray], run: Run | None = None
) -> Result:
    """On texts and targets of training and validation."""
    n_positions, batches = classifier.config.n_positions, []
    weights = balanced_weights(targets[0], classifier.n_classes)
    for some, numbers in zip(texts, targets, strict=True):
        sequences, _ = encode(some, classifier.tokenizer, n_positions, truncate=config.truncate)
        batches.append(LabeledBatches(sequences, numbers, weights))
    batch = min(config.batch, len(texts[0]))
    plan = training_plan(config, len(texts[0]), batch, 8 if batch % 8 == 0 else batch, n_positions)
    with Progress(plan.steps, unit="nats per answer") as progress:
        return fit(classifier, batches[0], batches[1], plan, progress, run, config.override)


def measure_positions(
    config: JudgeConfig, model: GPT | Encoder, tokenizer: Tokenizer, parts: Split[Instruction], held_out: Sequence[Judged], judge: Judge
) -> dict[str, Position]:
    """What the order of two answers does: to the base model when prompted, to a pairwise judge, and to the pointwise one. model: the base."""
    pairs, found = pairs_of(held_out), {}
    some = [pairs[i] for i in np.random.default_rng(config.seed).permutation(len(pairs))[: config.prompt_pairs]]
    if some and isinstance(model, GPT):
        found["base model, prompted"] = measure_position(some, by_prompt(model, tokenizer))
    if config.pairs:
        found["pairwise judge"] = measure_position(pairs, by_pairs(train_pairwise(config, model, tokenizer, parts)))
    found["pointwise judge"] = measure_position(pairs, by_scores(judge.scores))
    return found


# What it found --------------------------------------------------------------------------------------------------------------------------------


def _fields(report: KindReport | Position) -> dict[str, Json]:
    return {key: json_of(value) if isinstance(value, Interval) else value for key, value in vars(report).items()}


def _mean(found: dict[str, KindReport], trained: bool) -> float | None:
    values = [each.auc.mean for each in found.values() if each.trained is trained]
    return float(np.mean(values)) if values else None


def kind_table(kept: Interval, found: dict[str, KindReport]) -> str:
    """One line per kind of bad answers, those that training contained first."""
    names = list(next(iter(found.values())).rivals)
    lines: list[tuple[str, ...]] = [
        ("kind", "in training", "n", "caught", "95 %", "AUC", "95 %", "preferred", *(f"AUC of {name}" for name in names))
    ]
    for kind, each in sorted(found.items(), key=lambda item: not item[1].trained):
        shown = (f"{x:.3f}" for x in each.rivals.values())
        lines.append((
            kind, "yes" if each.trained else "no", str(each.n), f"{each.caught.mean:.3f}", bounds(each.caught), f"{each.auc.mean:.3f}",
            bounds(each.auc), f"{each.preferred.mean:.3f}", *shown,
        ))  # fmt: skip
    title = f"held-out documents: {kept.mean:.3f} ({bounds(kept)}) of the right answers are called good; and of bad ones, by kind"
    means = {which: _mean(found, trained) for which, trained in (("trained on", True), ("not trained on", False))}
    ends = [f"mean AUC of the kinds {which}: {mean:.3f}" for which, mean in means.items() if mean is not None]
    return "\n".join([title, columns(lines), *ends])


def position_table(positions: dict[str, Position]) -> str:
    """One line per judge."""
    lines: list[tuple[str, ...]] = [("pairs in both orders", "pairs", "right", "95 %", "verdict changes", "95 %", "for the first", "95 %")]
    for name, each in positions.items():
        numbers = (text for x in (each.right, each.changed, each.first) for text in (f"{x.mean:.3f}", bounds(x)))
        lines.append((name, str(each.n), *numbers))
    return columns(lines)
