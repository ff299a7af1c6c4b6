"""What several tests of tinygpt use: a reporter that remembers, a record of a run made of functions, runs and checkpoints in one call."""

import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from tinygpt import GPT, GPTConfig
from tinygpt.runs import layout
from tinygpt.runs.checkpoint import Checkpoint
from tinygpt.runs.run import Run

TOKENS = np.tile(np.random.default_rng(0).integers(0, 11, 50), 10)
"""A stream that can be learned: 50 ids below 11, repeated."""


def tiny(**changes):
    """The smallest GPT that does everything: 11 tokens, as in TOKENS, and 8 positions; `changes` to its settings."""
    return GPTConfig(**{"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 8, "vocab_size": 11, **changes})


GEMMA = {
    "norm": "rms",
    "norm_offset": 1.0,
    "norm_position": "sandwich",
    "qk_norm": "head",
    "positions": "rotary",
    "activation": "gelu",
    "gated": True,
}
GEMMA |= {"qkv_bias": False, "attention_output_bias": False, "mlp_bias": False, "n_layer": 2, "n_kv_head": 1, "head_size": 6, "n_inner": 24}
GEMMA |= {
    "rope_theta": 1e6,
    "rope_local_theta": 1e4,
    "window": 5,
    "window_pattern": "SL",
    "embedding_scale": 4.0,
    "attention_scale": 9**-0.5,
}
"""Changes to a small GPT-2 that take most options at once, as Gemma 3 does."""


def check_by_differences(parameter, loss, rng):
    """The gradient that a float64 parameter has, along a random direction, against central differences of `loss()`."""
    u, h, middle = backend.to_device(rng.standard_normal(parameter.shape)), 1e-6, parameter.data
    claimed, values = float((parameter.grad * u).sum()), []
    for step in (h, -h):
        parameter.data = middle + step * u
        with ag.no_grad():
            values.append(loss().item())
    parameter.data = middle
    assert claimed == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-8)


def peak_of_loading(directory):
    """Bytes of NumPy's arrays at the peak of `GPT.from_pretrained`."""
    tracemalloc.start()
    try:
        GPT.from_pretrained(directory)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@st.composite
def decoders(draw, **changes):
    """Small legal configs with any of the options, together; `changes` to their fields."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    n_kv_head, group, d = draw(st.integers(1, 3)), draw(st.integers(1, 3)), pick(2, 4, 6, 8)
    n_head, own_size = n_kv_head * group, draw(st.booleans())
    fields = {
        "n_layer": draw(st.integers(1, 3)), "n_head": n_head, "n_embd": 2 * draw(st.integers(1, 8)) if own_size else n_head * d,
        "n_positions": draw(st.integers(1, 12)), "vocab_size": draw(st.integers(2, 40)), "n_kv_head": n_kv_head,
        "head_size": d if own_size else None, "norm": pick("layer", "rms", "rms_unweighted"),
        "norm_position": pick("pre", "post", "output", "sandwich"), "embedding_norm": pick(False, True),
        "positions": pick("learned", "sinusoidal", "rotary", "alibi", "none"), "qk_norm": pick("none", "head", "all"),
        "activation": pick("gelu", "gelu_exact", "relu", "silu", "squared_relu"), "gated": pick(False, True),
        "n_inner": pick(None, 1, 5, 16), "qkv_bias": pick(True, False), "attention_output_bias": pick(True, False),
        "mlp_bias": pick(True, False), "tie_word_embeddings": pick(True, False), "window": pick(None, 1, 2, 3, 7),
        "embedding_scale": pick(1.0, 2.5), "attention_scale": pick(None, 0.3), "logit_softcap": pick(None, 3.0),
        "attention_softcap": pick(None, 2.0),
    }  # fmt: skip
    if fields["attention_scale"]:
        fields["width_base"] = pick(0, 2, 5)
    if fields["norm"] == "rms":
        fields["norm_offset"] = pick(0.0, 1.0)
    if fields["norm_position"] == "pre":
        fields["parallel_residual"] = pick(False, True)
        fields["shared_norm"] = fields["parallel_residual"] and pick(False, True)
    if fields["window"]:
        fields["window_pattern"] = pick("", "SL", "SSL", *(["LS"] if changes.get("n_layer", fields["n_layer"]) > 1 else []))
    if fields["positions"] == "rotary":
        llama3 = {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        }
        fields["rope_theta"], fields["rope_fraction"] = pick(1e4, 20.0), pick(1.0, 2 / d)
        fields["rope_scaling"] = pick(None, {"rope_type": "linear", "factor": 2.0}, llama3)
        own = "L" in (fields | changes).get("window_pattern", "") or (fields["rope_theta"] == 1e4 and fields["rope_scaling"] is None)
        fields["rope_local_theta"] = pick(None, 100.0) if fields["window"] and own else None
    return GPTConfig(**{**fields, **changes})


def randomize(model, seed, dtype="float64"):
    """The model in evaluation mode, every number random and large enough that attention, norms and biases matter."""
    rng = np.random.default_rng(seed)
    for _, p in model.named_parameters():
        p.data = backend.to_device((rng.standard_normal(p.shape) * (0.4 if p.ndim > 1 else 0.2) + (p.ndim == 1) * 0.5).astype(dtype))
    return model.eval()


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
