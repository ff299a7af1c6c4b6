"""Turn a pretrained GPT, or an encoder, into a text classifier, and compare it with prompting and with simpler models.

    python examples/finetune_classifier.py

About three minutes on two CPU cores, no network. The task: given the beginning of a section of a NumPy docstring, tell which section
it is. Starts from the newest run under runs/ (python examples/pretrain.py makes one); if there is none, a small model is pretrained
first, which takes about a minute. Leaves a run directory with report.txt, confusion.png, loss.png and the classifier.

More: --base RUN starts from another run, of a GPT or of an encoder (examples/pretrain_encoder.py); --data FILE classifies your own texts
(txt, csv, tsv, json, jsonl; columns are guessed or named with --text-column and --label-column), --data sms-spam finds spam, --ask RUN
tries a trained classifier on what you type, --help lists every flag.
"""

import math
import time
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from autograd import backend
from tinygpt.cli import Progress, Report, exit_if_interrupted, prompt_lines, run, settings, table
from tinygpt.fields import FREE, PathName
from tinygpt.finetuning.classifier import LabeledBatches, TextClassifier, balanced_weights, encode, softmax
from tinygpt.finetuning.common import (
    FinetuneConfig,
    Trainable,
    any_starting_point,
    fingerprint,
    fit,
    length_limit,
    n_trainable,
    open_run,
    set_trainable,
    shorten,
    training_plan,
)
from tinygpt.finetuning.encoder_classifier import classifier_on, open_classifier
from tinygpt.finetuning.labeled import LabeledText, balance, check, load_labeled, split
from tinygpt.finetuning.lora import LoraConfig
from tinygpt.finetuning.report import (
    Scores,
    ask_in_words,
    label_by_prompt,
    majority_baseline,
    plot_confusion,
    tfidf_baseline,
    worst_mistakes,
)
from tinygpt.models import Encoder
from tinygpt.training.metrics import plot_loss


@dataclass(frozen=True)
class ClassifyConfig(FinetuneConfig):
    script: ClassVar[str] = "examples/finetune_classifier.py"
    data: PathName = "doc-sections"
    """doc-sections (text that every installation has), sms-spam, or a txt, csv, tsv, json or jsonl file."""
    text_column: str = ""
    """Column of the texts; by default guessed and reported."""
    label_column: str = ""
    """Column of the labels; by default guessed and reported."""
    trainable: Trainable = "all"
    """Weights to train: the new head, head and last block, all, or the head and low-rank adapters (LoRA)."""
    pooling: Literal["", "last", "mean", "first"] = ""
    """Input of the head: the last token (default for a GPT), the mean of all tokens, or the first token (default for an encoder: [CLS])."""
    balance: Literal["none", "under", "over"] = "none"
    """Balance the training rows by leaving out frequent labels' rows or repeating rare ones'."""
    class_weights: bool = False
    """Give every label the same total weight in the loss, however rare it is."""
    stratified: bool = False
    """Split within each label, so that its share is the same in all splits."""
    prompt_texts: int = field(default=100, metadata=FREE)
    """Number of test texts on which prompting the base model is tried."""
    seed: int = 0
    """Decides split, balance, initial head and order."""
    ask: PathName = field(default="", metadata=FREE)
    """A classifier's run: type texts and see their labels, no training."""


def main() -> None:
    config = settings(ClassifyConfig(), __doc__)
    if config.ask:
        ask(open_classifier(config.ask))
        return
    report = Report()
    print(f"backend    {backend.reason}")

    # Data, checked and split; then the model to start from.
    data = load_labeled(config.data, text_column=config.text_column, label_column=config.label_column)
    report.say("\n           ".join([f"data       {data.source}", *data.notes]))
    parts = split(data, config.fractions, seed=config.seed, stratified=config.stratified)
    model, tokenizer, base = any_starting_point(config, [row.text for row in parts.train], Progress)
    labels = data.labels
    classifier = classifier_on(model, tokenizer, labels, pooling=config.pooling, seed=config.seed)

    # As many tokens of each text as the model reads; padded to the longest of each batch.
    every_row = parts.train + parts.validation + parts.test
    lengths = [len(tokenizer.encode_wrapped(row.text).ids) for row in every_row]
    report.say(table("data", check(every_row, lengths, model.config.n_positions)))
    limit, cut = length_limit(config, model.config.n_positions, lengths[: len(parts.train)])
    parts.train = balance(parts.train, config.balance, config.seed)
    sequences, targets, n_cut = {}, {}, 0
    for name, rows in vars(parts).items():
        places = [f"{config.data}: {row.place}" for row in rows]
        sequences[name], n = encode([r.text for r in rows], tokenizer, limit, truncate=cut, places=places)
        targets[name] = classifier.label_ids([row.label for row in rows])
        n_cut += n
    lora = LoraConfig(config.rank, config.alpha, config.lora_dropout, config.targets)
    adapter = set_trainable(classifier, config.trainable, lora, config.seed)
    batch = min(config.batch, len(parts.train))
    micro_batch = 8 if batch % 8 == 0 else batch  # in micro-batches of similar lengths there is less padding
    plan = training_plan(config, len(parts.train), batch, micro_batch, model.config.n_positions)

    a_run = open_run(config, base, tokenizer, adapter, fingerprint(every_row), labels=labels, data_source=data.source)
    directory = a_run.path
    report.say(
        f"split by seed {config.seed}: {len(parts.train):,} training, {len(parts.validation):,} validation, {len(parts.test):,} test rows; "
        f"{n_cut} texts cut at {limit} tokens; base {base}"
    )

    # Before training: what prompting gives, and what simpler models give.
    texts, true = [row.text for row in parts.test], targets["test"]
    some = np.random.default_rng(config.seed).permutation(len(texts))[: max(config.prompt_texts, 1)]
    rivals, zero_shot = {}, np.zeros(0, int)
    if isinstance(model, Encoder):
        rivals["prompting"] = "not measured: an encoder does not continue a text"
    else:
        for shots in ([], one_of_each_label(parts.train, config.seed)):
            method = f"base model, {len(shots)} solved examples" if shots else "base model, zero-shot prompt"
            try:
                chosen, room = label_by_prompt(model, tokenizer, [texts[i] for i in some], labels, shots)
                zero_shot = zero_shot if shots else chosen
                rivals[method] = figures(Scores.of(labels, true[some], chosen)) + f"  ({len(some)} texts, their first {room} tokens)"
            except ValueError as error:  # the context is too short for them
                rivals[method] = f"not measured: {error}"
    rivals["most frequent label"] = figures(Scores.of(labels, true, majority_baseline(targets["train"], len(texts))))
    for analyzer in ("word", "characters"):
        method = f"logistic regression, TF-IDF, {analyzer}"
        try:
            predicted = tfidf_baseline([row.text for row in parts.train], targets["train"], texts, analyzer)
            rivals[method] = figures(Scores.of(labels, true, predicted))
        except (ImportError, ValueError) as error:  # scikit-learn is missing; or there are no words
            rivals[method] = f"not measured: {error}"
    report.say(table("before training: accuracy and balanced accuracy on test texts", rivals))

    if not isinstance(model, Encoder):
        asked = ask_in_words(model, tokenizer, texts[some[0]], labels[true[some[0]]])
        report.say(f"the base model, asked in words, continues the text rather than answering\n{asked}")

    # Training.
    weights = balanced_weights(targets["train"], len(labels)) if config.class_weights else None
    print(
        f"\ntraining   {config.trainable}: {n_trainable(classifier):,} of {classifier.n_parameters():,} weights, "
        f"{plan.steps} updates of {batch} texts"
    )

    train = LabeledBatches(sequences["train"], targets["train"], weights)
    validation = LabeledBatches(sequences["validation"], targets["validation"], weights)
    with Progress(plan.steps, unit="nats per text") as progress:
        result = fit(classifier, train, validation, plan, progress, a_run, config.override)
    exit_if_interrupted(result, f"no report yet; resume with: python {config.script} --resume {directory}")

    # After training: the same test texts.
    started = time.perf_counter()
    probabilities = softmax(classifier.logits(sequences["test"]))
    seconds = time.perf_counter() - started
    predicted = probabilities.argmax(axis=1)
    scores = Scores.of(labels, true, predicted)
    report.say(table("after training: accuracy and balanced accuracy on test texts", rivals | {"this classifier": figures(scores)}))
    report.say(scores.table())
    report.say(scores.confusion_table())
    report.say(
        "worst mistakes on test texts\n" + worst_mistakes(texts, true, probabilities, labels, places=[row.place for row in parts.test])
    )
    shown = [
        f"{labels[true[i]]:<{max(map(len, labels))}}  before: {labels[before]}, after: {labels[predicted[i]]} "
        f"({probabilities[i].max():.2f})  {shorten(texts[i], 60)}"
        for i, before in list(zip(some, zero_shot, strict=False))[:5]
    ]
    if shown:
        report.say("five test texts, before (prompting) and after\n" + "\n".join(shown))
    report.say(
        f"best validation loss {result.best_validation_nats:.3f} nats per text at step {result.best_step} of {result.step}; trained in "
        f"{result.seconds:.0f} s; {len(texts) / max(seconds, 1e-9):,.0f} test texts per second"
    )
    report.write(directory / "report.txt")
    try:
        plot_loss(result, directory / "loss.png", first_guess_nats=math.log(len(labels)), unit="nats per text")
        plot_confusion(scores, directory / "confusion.png")
    except ImportError as error:
        print(f"no pictures: {error}")
    print(f"\nreport     {directory / 'report.txt'}\nnext: python examples/finetune_classifier.py --ask {directory}")


def one_of_each_label(rows: list[LabeledText], seed: int) -> list[tuple[str, str]]:
    """The solved examples of the few-shot prompt: (text, label), drawn by seed."""
    drawn = np.random.default_rng(seed).permutation(len(rows))
    return [(text, label) for label, text in {rows[i].label: rows[i].text for i in drawn}.items()]


def figures(scores: Scores) -> str:
    return f"{scores.accuracy:.3f}  {scores.balanced_accuracy:.3f}"


def ask(classifier: TextClassifier) -> None:
    """Prints the label of each text typed in, until an empty line."""
    print(f"labels: {', '.join(classifier.labels)}. Type a text; an empty line ends.")
    for text in prompt_lines():
        try:
            answer = classifier.predict([text], truncate=True)
        except ValueError as error:
            print(f"error: {error}")
            continue
        if answer.n_cut:
            print(f"  (cut: only the first {classifier.config.n_positions} tokens are read)")
        probabilities = answer.probabilities[0]
        for i in np.argsort(-probabilities)[:5]:
            print(f"  {probabilities[i]:6.1%}  {classifier.labels[i]}")


if __name__ == "__main__":
    run(main)
