"""GPT-2, whose names are ours; and the form of our own for models that no published family describes."""

from tinygpt.errors import InvalidInput
from tinygpt.model_config import SIZES, GPTConfig
from tinygpt.weights.family import Family, Fields
from tinygpt.weights.keys import ACTIVATIONS, check_fixed, read_activation

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
_DROPOUTS = {"dropout": "resid_pdrop", "embd_pdrop": "embd_pdrop", "attn_pdrop": "attn_pdrop"}


def _read_sizes(fields: Fields) -> Fields:
    fields = fields | {name: fields[alias] for alias, name in _ALIASES.items() if alias in fields}
    sizes = {key: value for key, value in fields.items() if key in SIZES.split()}
    return sizes | {ours: fields.get(theirs, 0.1) for ours, theirs in _DROPOUTS.items()}


def _write_sizes(config: GPTConfig) -> Fields:
    return {name: getattr(config, name) for name in SIZES.split() if name != "dropout"} | config.dropouts


def _read_gpt2(fields: Fields) -> Fields:
    check_fixed(fields, _FIXED, "this variant of GPT-2 is not supported")
    return _read_sizes(fields) | {
        "activation": read_activation(fields, "activation_function", "gelu_new"),
        "n_inner": fields.get("n_inner"),
    }


def _write_gpt2(config: GPTConfig) -> Fields:
    activation = next(name for name, ours in ACTIVATIONS.items() if ours == config.activation)
    inner = {"n_inner": config.n_inner} if "n_inner" in config.options() else {}
    return {"activation_function": activation} | _write_sizes(config) | inner


def _read_ours(fields: Fields) -> Fields:
    options = fields.get("options")
    if not isinstance(options, dict) or options.keys() & set(SIZES.split()):
        raise InvalidInput(f"options {options!r}, expected those that save_pretrained wrote, by name; save the model again")
    return _read_sizes(fields) | options


def _write_ours(config: GPTConfig) -> Fields:
    return _write_sizes(config) | {"options": config.options()}


GPT2 = Family("gpt2", "GPT2LMHeadModel", "GPT2ForSequenceClassification", _read_gpt2, _write_gpt2)
OURS = Family("tinygpt", "TinyGPTForCausalLM", "TinyGPTForSequenceClassification", _read_ours, _write_ours)
