"""Models that several benchmarks train on the default corpus, or on part of it. A model that has been trained is kept and not trained again.

    docs = Docs.read()
    model = trained(folder, shape, training, docs, share=0.25)    # model.facts, model.path; Checkpoint.open(model.path)

Not a script: scaling.py, prompting.py and finetuned_vs_prompted.py use it.
"""

import dataclasses
import hashlib
import json
import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt import GPT, GPTConfig, TrainConfig
from tinygpt.cli import Progress
from tinygpt.data.corpora import Document, load_corpus
from tinygpt.data.tokenizer import Tokenizer, train_tokenizer
from tinygpt.data.windows import Windows, encode_documents
from tinygpt.evaluation.items import Task
from tinygpt.evaluation.scores import evaluate
from tinygpt.finetuning.common import KeepBest
from tinygpt.parallel.local import workers_for
from tinygpt.recipes import RECIPES
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.storage.durable import replace_file
from tinygpt.training.metrics import measure
from tinygpt.training.trainer import Trainer
from tinygpt.width_rule import at_width

MODEL, TRAINING = RECIPES["tinygpt"]
_CHECKED = 20  # batches of validation windows in an evaluation while training


@dataclass(frozen=True)
class Docs:
    """The default corpus as ids. The tokenizer is trained on all training documents, also where a model learns from a part of them."""

    train: Sequence[Document]
    validation: np.ndarray
    tokenizer: Tokenizer

    @classmethod
    def read(cls, n_vocab: int = MODEL.vocab_size) -> "Docs":
        corpus = load_corpus("docs")
        tokenizer = train_tokenizer("bpe", [document.text for document in corpus.train], n_vocab)
        return cls(corpus.train, encode_documents([document.text for document in corpus.validation], tokenizer), tokenizer)

    def part(self, share: float, seed: int) -> np.ndarray:
        """Ids of about that share of the training text: groups of near-copies in an order that the seed decides, so that a smaller part
        is contained in each larger one of the same seed."""
        if share == 1:
            return encode_documents([document.text for document in self.train], self.tokenizer)
        sizes: dict[int, int] = {}
        for document in self.train:
            sizes[document.group] = sizes.get(document.group, 0) + len(document.text)
        groups = np.array(list(sizes))[np.random.default_rng([seed, len(sizes)]).permutation(len(sizes))]
        before = np.cumsum([0, *(sizes[group] for group in groups)])[:-1]
        chosen = set(groups[before < share * sum(sizes.values())].tolist())
        return encode_documents([document.text for document in self.train if document.group in chosen], self.tokenizer)


@dataclass(frozen=True)
class Trained:
    """Where a model is, and what is known of it."""

    path: Path
    facts: dict[str, Any]


def shape_of(layers: int, channels: int, context: int = MODEL.n_positions) -> GPTConfig:
    """The default model with other layers and channels, heads of 32 channels, and the rates of the width rule."""
    config = dataclasses.replace(MODEL, n_layer=layers, n_positions=context)
    return config if channels == config.n_embd else at_width(config, channels)


def block_weights(shape: GPTConfig) -> int:
    """Weights without the embeddings, which Kaplan et al. count as N."""
    return shape.n_parameters() - shape.vocab_size * shape.n_embd


def training_for(updates: int, seed: int, context: int = MODEL.n_positions, processes: int = 0) -> TrainConfig:
    """The default recipe over other updates, each with as many tokens: its warm-up and its evaluations shrink with them."""
    micro_batch = TRAINING.micro_batch * MODEL.n_positions // context
    every = max(1, updates // 10)
    return dataclasses.replace(
        TRAINING, steps=updates, warmup_steps=min(max(10, updates // 32), updates), eval_every=every, log_every=every, eval_batches=_CHECKED,
        micro_batch=micro_batch, seed=seed, processes=processes,
    )  # fmt: skip


def trained(folder: Path, shape: GPTConfig, training: TrainConfig, docs: Docs, share: float = 1.0) -> Trained:
    """A model with the weights of its best evaluation: from the folder, or trained now and kept there.

    facts: weights, block_weights, tokens (of text), updates, tokens_seen, best_update, nats (per token, of all validation text), minutes,
    core_minutes (of this process)
    """
    shape = dataclasses.replace(shape, vocab_size=docs.tokenizer.n_vocab)
    settings = [dataclasses.asdict(shape), dataclasses.asdict(training) | {"processes": 0}, share, docs.tokenizer.fingerprint()]
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    path = folder / f"{shape.n_layer}x{shape.n_embd}-{share:g}-{training.steps}-{training.seed}-{key}"
    if (path / "facts.json").is_file():
        return Trained(path, json.loads((path / "facts.json").read_text(encoding="utf-8")))
    ids, model = docs.part(share, training.seed), GPT(shape, seed=training.seed)
    train, validation = (Windows(part, shape.n_positions) for part in (ids, docs.validation))
    trainer = Trainer(model, training, train, validation, workers_for(model, training))
    print(f"training   {path.name}: {shape.n_parameters():,} weights, {training.steps} updates, {len(ids):,} tokens of text", flush=True)
    used = time.process_time()
    best = KeepBest()
    with Progress(training.steps) as progress:
        result = trainer.run(progress, best)
    if result.interrupted:
        raise KeyboardInterrupt
    used = time.process_time() - used
    best.restore_best(trainer)
    facts = {
        "weights": shape.n_parameters(), "block_weights": block_weights(shape), "tokens": len(ids), "updates": training.steps,
        "tokens_seen": result.tokens_seen, "best_update": result.best_step, "nats": measure(model, validation, training.micro_batch).nats,
        "minutes": round(result.seconds / 60, 3), "core_minutes": round(used / 60, 3), "uniform_nats": round(math.log(shape.vocab_size), 4),
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no published family has this shape
        model.save_pretrained(path, docs.tokenizer)
    replace_file(path / "facts.json", json.dumps(facts, indent=1) + "\n")
    return Trained(path, facts)


@dataclass(frozen=True)
class Answers:
    """Right (1) or wrong (0) for each item of a task (N,), the document that each comes from, and how many items did not fit the context."""

    right: np.ndarray
    groups: np.ndarray
    n_cut: int


def answers(model: Trained, task: Task, n_shots: int = 0, seed: int = 0) -> Answers:
    """What a model gets right, by the metric that `python -m tinygpt evaluate` shows. Kept next to the model."""
    file = model.path / f"answers-{task.fingerprint()[:12]}-{n_shots}-{seed}.json"
    groups = np.array([item.group for item in task.items])
    if not file.is_file():
        checkpoint = Checkpoint.open(model.path)
        found = evaluate(checkpoint.language_model(), checkpoint.tokenizer(), task, n_shots=n_shots, seed=seed)
        replace_file(file, json.dumps({"task": task.name, "right": found.column().tolist(), "n_cut": found.n_cut}) + "\n")
    kept = json.loads(file.read_text(encoding="utf-8"))
    return Answers(np.array(kept["right"]), groups, kept["n_cut"])


def pyplot(file: Path) -> Any:
    """matplotlib's, or None, with a note, where it is missing."""
    try:
        import matplotlib
    except ImportError:
        print(f'{file.name}: no picture, matplotlib is missing; pip install -e ".[plot]" and call again, the results are kept')
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
