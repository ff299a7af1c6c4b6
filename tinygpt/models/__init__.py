"""The kinds of models, loaded when first asked for: `from tinygpt.models import Encoder, Seq2Seq`."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tinygpt.models.encoder import Encoder as Encoder
    from tinygpt.models.gpt import GPT as GPT
    from tinygpt.models.seq2seq import Seq2Seq as Seq2Seq

_HOME = {
    "GPT": "tinygpt.models.gpt",
    "Encoder": "tinygpt.models.encoder",
    "Seq2Seq": "tinygpt.models.seq2seq",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'tinygpt.models' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
