"""What several tests of tinygpt use: a reporter that remembers, a record of a run made of functions, runs and checkpoints in one call."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from autograd import backend
from tinygpt import GPTConfig
from tinygpt.runs import layout
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.run import Run

TOKENS = np.tile(np.random.default_rng(0).integers(0, 11, 50), 10)
"""A stream that can be learned: 50 ids below 11, repeated."""


def tiny(**changes):
    """The smallest GPT that does everything: 11 tokens, as in TOKENS, and 8 positions; `changes` to its settings."""
    return GPTConfig(**{"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 8, "vocab_size": 11, **changes})


def weights(model):
    """Copies of all parameters on the host, by name."""
    return {name: np.array(backend.to_host(p.data)) for name, p in model.named_parameters()}


def new_run(path, name="x"):
    """The directory of a new run."""
    return Run.create(name, path or "").path


def save_checkpoint(run, step, model, optimizer, tokenizer, progress, *, best, keep=1):
    """Saves at once; returns the checkpoint's directory."""
    writer = Run(Path(run), keep=keep, background=False)
    writer.tokenizer = tokenizer
    writer.save(
        SimpleNamespace(model=model, optimizer=optimizer, result=SimpleNamespace(step=step), state_dict=lambda: progress), best=best
    )
    writer.finish()
    return writer.path / "checkpoints" / layout.read_pointer(writer.path, "last")


def checkpoint_directory(path, which="best"):
    return Checkpoint.open(path, which).path


def load(path, which="best"):
    checkpoint = Checkpoint.open(path, which)
    return checkpoint.language_model(), checkpoint.tokenizer()


def load_training(directory, trainer):
    return Checkpoint(Path(directory)).restore(trainer)


class Notes:
    """A `Reporter` that shows nothing and remembers everything."""

    def __init__(self):
        self.updates, self.evaluations, self.notes = [], [], []

    def update(self, metrics):
        self.updates.append(metrics)

    def evaluated(self, step, validation_nats, best):
        self.evaluations.append((step, validation_nats, best))

    def note(self, text):
        self.notes.append(text)

    @property
    def losses(self):
        """Training losses by step, validation losses by "validation <step>"."""
        return {m.step: m.loss_nats for m in self.updates} | {f"validation {step}": nats for step, nats, _ in self.evaluations}


class FunctionRecord:
    """A `Record` (see tinygpt/training/trainer.py) made of functions: save(best), roll_back(); `lines` holds what was logged."""

    def __init__(self, save=lambda best: None, roll_back=None):
        self.lines, self._save, self._roll_back = [], save, roll_back

    def log(self, values):
        self.lines.append(values)

    def save(self, trainer, *, best):
        self._save(best)

    def roll_back(self, trainer):
        if self._roll_back is None:
            raise FloatingPointError("roll back: no checkpoint")
        return str(self._roll_back())
