"""config.json: a model's shape as GPT-2's format has it, as nanoGPT has it, and in a form of our own for what neither can say."""

from pathlib import Path

from tinygpt.errors import InvalidInput
from tinygpt.model_config import SIZES, GPTConfig
from tinygpt.storage.checked_json import Json

LANGUAGE_MODEL, CLASSIFIER = "GPT2LMHeadModel", "GPT2ForSequenceClassification"  # architectures, by Hugging Face's names
OURS = "tinygpt"  # model_type of a model that GPT-2's format cannot describe
_OUR_ARCHITECTURES = {LANGUAGE_MODEL: "TinyGPTForCausalLM", CLASSIFIER: "TinyGPTForSequenceClassification"}

_ALIASES = {  # GPT-2's names under those of other models, as transformers takes them
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
_FIXED = {  # variants that would change the result, with the value that GPT supports
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
_ACTIVATIONS = {"gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu", "silu": "silu", "swish": "silu"}
"""By transformers' names; the first of those that mean the same is written."""
_IN_GPT2 = {"activation", "n_inner"}
"""Options that GPT-2's format has a key for."""


def architecture_of(fields: dict[str, Json]) -> str:
    """CLASSIFIER or LANGUAGE_MODEL: the latter unless config.json says that it is a classifier."""
    named = fields.get("architectures")
    is_classifier = isinstance(named, list) and any(str(name).endswith("ForSequenceClassification") for name in named)
    return CLASSIFIER if is_classifier else LANGUAGE_MODEL


def model_type(config: GPTConfig) -> str:
    """Under which model_type a model of this shape is saved: gpt2, or `OURS`."""
    options = config.options()
    describable = options.keys() <= _IN_GPT2 and config.activation in _ACTIVATIONS.values()
    return "gpt2" if describable else OURS


def format_note(config: GPTConfig) -> str:
    """Who cannot read a checkpoint of this model, and why; empty where its format is a published one."""
    if model_type(config) != OURS:
        return ""
    why = ", ".join(f"{name} {value!r}" for name, value in config.options().items())
    return f"saved with model_type {OURS!r}, which transformers cannot read: GPT-2's format has no {why}"


def read_config(path: Path, fields: dict[str, Json]) -> GPTConfig:
    """The shape that the fields of the config.json at `path` describe: Hugging Face's GPT-2, nanoGPT's `model_args`, or our own form.

    Raises ValueError for another architecture, and for a variant that GPT does not compute.
    """
    fields = fields | {name: fields[alias] for alias, name in _ALIASES.items() if alias in fields}
    if "block_size" in fields and "model_type" not in fields:  # nanoGPT's
        shape = {key: fields[key] for key in ("n_layer", "n_head", "n_embd", "vocab_size") if key in fields}
        return GPTConfig(n_positions=fields["block_size"], dropout=fields.get("dropout", 0.0), **shape)
    kind = fields.get("model_type")
    if kind not in ("gpt2", OURS):
        raise InvalidInput(f"{path}: model_type {kind!r}, expected 'gpt2'; only GPT-2's architecture is supported")
    dropouts = {"dropout" if key == "resid_pdrop" else key: fields.get(key, 0.1) for key in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}
    known = set(SIZES.split()) - dropouts.keys()
    kept = {key: value for key, value in fields.items() if key in known}
    if dropouts["embd_pdrop"] == dropouts["attn_pdrop"] == dropouts["dropout"]:
        dropouts = {"dropout": dropouts["dropout"]}
    return GPTConfig.from_dict(dropouts | kept | (_our_options(path, fields) if kind == OURS else _gpt2_options(path, fields)))


def _our_options(path: Path, fields: dict[str, Json]) -> dict[str, Json]:
    options = fields.get("options")
    if not isinstance(options, dict) or options.keys() & set(SIZES.split()):
        raise InvalidInput(f"{path}: options {options!r}, expected those that save_pretrained wrote, by name; save the model again")
    return options


def _gpt2_options(path: Path, fields: dict[str, Json]) -> dict[str, Json]:
    for key, legal in _FIXED.items():
        if fields.get(key, legal) != legal:
            raise InvalidInput(f"{path}: {key} {fields[key]!r}, expected {legal}; this variant of GPT-2 is not supported")
    activation = fields.get("activation_function", "gelu_new")
    if activation not in _ACTIVATIONS:
        rule = f"expected one of {', '.join(_ACTIVATIONS)}; this variant of GPT-2 is not supported"
        raise InvalidInput(f"{path}: activation_function {activation!r}, {rule}")
    return {"activation": _ACTIVATIONS[activation]} | ({} if fields.get("n_inner") is None else {"n_inner": fields["n_inner"]})


def config_fields(config: GPTConfig, eos_id: int | None, more: dict[str, Json]) -> dict[str, Json]:
    """What config.json holds: the shape under the keys of GPT-2's, the tokenizer's end token, and `more`, such as a classifier's labels."""
    sizes = {name: getattr(config, name) for name in SIZES.split() if name != "dropout"} | config.dropouts
    ends = {"bos_token_id": eos_id, "eos_token_id": eos_id}
    options = config.options()
    if model_type(config) == "gpt2":
        activation = next(name for name, ours in _ACTIVATIONS.items() if ours == config.activation)
        named = {"model_type": "gpt2", "architectures": [LANGUAGE_MODEL], "activation_function": activation}
        return named | sizes | ({"n_inner": config.n_inner} if "n_inner" in options else {}) | ends | more
    architecture = _OUR_ARCHITECTURES[architecture_of(more)]
    return {"model_type": OURS} | sizes | {"options": options} | ends | more | {"architectures": [architecture]}
