"""A GPT to read, check and run, over the engine in `autograd/`. The files to read, in order: docs/reading-path.md.

from tinygpt import GPT, GPTConfig
model = GPT(GPTConfig.preset("laptop"))

The names below are loaded when first asked for, so that `python -m tinygpt doctor` can report on a backend that does not start.
"""

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from tinygpt.models import attached

if TYPE_CHECKING:
    from tinygpt.config import GPTConfig, PretrainConfig, TrainConfig
    from tinygpt.models.gpt import GPT
    from tinygpt.runs.checkpoint import Checkpoint
    from tinygpt.runs.run import Run

__all__ = ["GPT", "Checkpoint", "GPTConfig", "PretrainConfig", "Run", "TrainConfig"]

_HOME = {"GPT": "tinygpt.models.gpt", "GPTConfig": "tinygpt.config", "PretrainConfig": "tinygpt.config", "TrainConfig": "tinygpt.config"}
_HOME |= {"Checkpoint": "tinygpt.runs.checkpoint", "Run": "tinygpt.runs.run"}

attached.HOMES.update(
    generate="tinygpt.inference.decoding:generate_ids",
    summary="tinygpt.inspect.trace:summary",
    trace="tinygpt.inspect.trace:trace",
    save_pretrained="tinygpt.weights.pretrained:save_pretrained",
    from_pretrained="tinygpt.weights.pretrained:from_pretrained",
    GPT2ForSequenceClassification="tinygpt.finetuning.classifier:GPTClassifier",
    MarianMTModel="tinygpt.models.seq2seq:Seq2Seq",
    translate="tinygpt.inference.translate:translate",
    BertForMaskedLM="tinygpt.models.encoder:Encoder",
    BertForSequenceClassification="tinygpt.finetuning.encoder_classifier:EncoderClassifier",
)

_autograd = importlib.util.find_spec("autograd")
if _autograd is None or not (Path(_autograd.origin or "").parent / "ops" / "loss.py").is_file():
    raise ImportError(
        f"autograd: found {_autograd and _autograd.origin}, expected the package that comes with tinygpt; "
        "PyPI's unrelated `autograd` has the same name: pip uninstall autograd, then reinstall tinygpt"
    )


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'tinygpt' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
