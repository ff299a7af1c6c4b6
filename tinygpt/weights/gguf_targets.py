"""Which models llama.cpp computes: for each family that it knows, its name there and what it insists on or leaves out.

family, target = target_of(model.config)     # ValueError, saying why, for what it does not compute
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from tinygpt.errors import InvalidInput
from tinygpt.model_config import GPTConfig, ModelConfig
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.storage.checked_json import Json
from tinygpt.weights.config_json import LANGUAGE_MODEL, OWN, family_of, format_note
from tinygpt.weights.family import Family, meaning


@dataclass(frozen=True)
class Target:
    """What llama.cpp makes of a family.

    arch        its name in gguf.MODEL_ARCH
    computes    field of GPTConfig -> the values that it computes with; for fields that the family leaves open, and llama.cpp does not
    own_head    whether a head may have another size than n_embd / n_head
    window      whether blocks may have a window
    llama3      whether rotary positions may be stretched as in Llama 3.1
    neighbors   whether it turns neighboring channels of a head, where we turn its halves: channels of queries and keys change their order
    own_output  whether it insists on an output matrix, even where that is the embedding's
    biases      linear layers of a block that it insists on a bias for: zeros where ours has none
    prefix      of Hugging Face's names, which gguf's table of names does not have
    renamed     layers by Hugging Face's name, without the prefix -> the name under which gguf's table has them
    """

    arch: str
    computes: dict[str, tuple[Json, ...]] = field(default_factory=dict)
    own_head: bool = False
    window: bool = False
    llama3: bool = False
    neighbors: bool = False
    own_output: bool = False
    biases: tuple[str, ...] = ()
    prefix: str = ""
    renamed: dict[str, str] = field(default_factory=dict)


_SILU = {"activation": ("silu",)}
_NO_BIAS = {"attention_output_bias": (False,)}
_GELU: dict[str, tuple[Json, ...]] = {"activation": ("gelu",)}
_EITHER_GELU: dict[str, tuple[Json, ...]] = {"activation": ("gelu_exact", "gelu")}
_LLAMA = Target("LLAMA", _SILU, own_head=True, llama3=True, neighbors=True)
TARGETS = {
    "gpt2": Target("GPT2", _GELU, biases=("attn.c_attn",)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Target("QWEN2", _SILU),
    "qwen3": Target("QWEN3", _SILU | _NO_BIAS, own_head=True),
    "olmo2": Target("OLMO2", _SILU | _NO_BIAS, own_output=True),
    "gemma": Target("GEMMA", _GELU | _NO_BIAS | {"tie_word_embeddings": (True,)}, own_head=True),
    "gemma2": Target("GEMMA2", _GELU | _NO_BIAS | {"tie_word_embeddings": (True,)}, own_head=True, window=True),
    "gemma3_text": Target("GEMMA3", _GELU | _NO_BIAS, own_head=True, window=True),
    "gpt_neox": Target("GPTNEOX", _EITHER_GELU, own_output=True, biases=("attn.c_attn", "attn.c_proj")),
    "bert": Target("BERT", _EITHER_GELU, prefix="bert.", renamed={"pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"}),
    "roberta": Target("BERT", _EITHER_GELU, prefix="roberta."),
    "t5": Target("T5", {"relative_distance": (128,)}),
}
"""By model_type."""


def target_of(config: ModelConfig, kind: str = LANGUAGE_MODEL) -> tuple[Family, Target]:
    """The family and llama.cpp's architecture for a model of this shape. kind: a key of KINDS, for a classifier. Raises ValueError, saying
    why, for what llama.cpp does not compute."""
    family = family_of(config, kind)
    if family in OWN:
        known = ", ".join(TARGETS)
        raise InvalidInput(
            f"export: {format_note(config, kind).partition(': ')[2]}, expected a shape of {known}; llama.cpp computes no other"
        )
    if family.model_type not in TARGETS:
        rule = f"expected one of {', '.join(TARGETS)}; llama.cpp has no such architecture"
        raise InvalidInput(f"export: a model of the family {family.model_type}, {rule}")
    target = TARGETS[family.model_type]
    for name, found, expected in _differences(config, family, target):
        raise InvalidInput(f"export: {name} {found!r}, expected {expected}; llama.cpp computes no other for {family.model_type}")
    return family, target


def _differences(config: ModelConfig, family: Family, target: Target) -> Iterator[tuple[str, Json, str]]:
    """(field, its value, what llama.cpp computes with) for each field that the family leaves open and llama.cpp does not."""
    filled = meaning(config)
    for name, values in target.computes.items():
        if filled[name] not in values:
            yield name, filled[name], " or ".join(map(repr, values))
    if isinstance(config, Seq2SeqConfig) and config.activation != (expected := "gelu" if config.gated else "relu"):
        yield "activation", config.activation, f"{expected!r} where gated is {config.gated}"
    if isinstance(config, GPTConfig):
        yield from _of_decoders(config, filled, family, target)


def _of_decoders(config: GPTConfig, filled: Json, family: Family, target: Target) -> Iterator[tuple[str, Json, str]]:
    scaling = config.rope_scaling or {"rope_type": "default"}
    d, shared = config.channels_per_head, config.n_embd // config.n_head
    if d != shared and not target.own_head:
        yield "head_size", d, f"n_embd / n_head, {shared}"
    windows = [config.window_of(layer) for layer in range(config.n_layer)]
    if not target.window and any(window is not None and window < config.n_positions for window in windows):
        yield "window", config.window, f"none, or at least n_positions, {config.n_positions}"
    if scaling["rope_type"] == "llama3" and not target.llama3:
        yield "rope_type", "llama3", "default or linear"
    if family.model_type == "gemma3_text" and config.rope_scaling and config.window and config.rope_local_theta is None:
        yield "rope_scaling", config.rope_scaling, "none in blocks with a window"
    if family.model_type in ("gemma2", "gemma3_text"):
        largest = config.n_layer == {"gemma2": 46, "gemma3_text": 62}[family.model_type]  # the 27B models, which it knows by their depth
        if abs(filled["attention_scale"] * (expected := shared if largest else d) ** 0.5 - 1) > 1e-6:
            yield "attention_scale", filled["attention_scale"], f"1 / sqrt({expected})"
    for name in ("attention_softcap", "logit_softcap") if family.model_type == "gemma2" else ():
        if filled[name] is None:
            yield name, None, "a number"
