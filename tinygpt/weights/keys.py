"""Keys of config.json that several families share: sizes, activations, rotary positions, windows.

Functions that read raise ValueError for what GPT does not compute; `config_json.py` adds the file's path.
"""

from collections.abc import Callable

from tinygpt.errors import InvalidInput
from tinygpt.model_config import ROPE_KEYS, GPTConfig
from tinygpt.storage.checked_json import Json
from tinygpt.weights.family import Fields, meaning

SIZES = {
    "n_layer": "num_hidden_layers", "n_head": "num_attention_heads", "n_embd": "hidden_size", "n_positions": "max_position_embeddings",
    "vocab_size": "vocab_size",
}  # fmt: skip
MORE = {"initializer_range": "initializer_range", "tie_word_embeddings": "tie_word_embeddings"}


def read_keys(fields: Fields, keys: dict[str, str]) -> Fields:
    """Fields of GPTConfig that config.json has under other names (`keys`, by ours). Raises ValueError for a missing size."""
    found = {ours: fields[theirs] for ours, theirs in keys.items() if fields.get(theirs) is not None}
    for ours in SIZES:
        if ours not in found:
            raise InvalidInput(f"no {keys[ours]}, expected the model's size; fetch config.json again")
    return found


def read_number(fields: Fields, key: str, least: float, most: float = 1e9) -> Json:
    """A number that something is computed from. Raises ValueError for one out of range, and for what is none."""
    value: Json = fields.get(key)
    if type(value) not in (int, float) or not least <= value <= most:
        raise InvalidInput(f"{key} {value!r:.80}, expected a number from {least:g} to {most:g}; fetch config.json again")
    return value


def write_keys(config: GPTConfig, keys: dict[str, str]) -> Fields:
    """The other way: config.json's keys with the config's values, defaults filled in."""
    filled = meaning(config) | {"dropout": config.dropout, "attn_pdrop": config.dropouts["attn_pdrop"]}
    return {theirs: filled[ours] for ours, theirs in keys.items()}


def check_fixed(fields: Fields, fixed: Fields, why: str = "this variant is not supported") -> None:
    """Raises ValueError for keys with another value than the one that GPT computes with; null and absent count as that one."""
    for key, legal in fixed.items():
        if fields.get(key) not in (None, legal):
            raise InvalidInput(f"{key} {fields[key]!r:.80}, expected {legal}; {why}")


ACTIVATIONS = {
    "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "gelu": "gelu_exact", "relu": "relu", "silu": "silu", "swish": "silu",
    "relu2": "squared_relu",
}  # fmt: skip
"""By transformers' names."""
ACTIVATION_NAMES = {"gelu": "gelu_pytorch_tanh", "gelu_exact": "gelu", "relu": "relu", "silu": "silu", "squared_relu": "relu2"}


def read_activation(fields: Fields, key: str, default: str) -> str:
    """Raises ValueError for one that GPT does not compute."""
    name = default if fields.get(key) is None else fields[key]
    if name not in list(ACTIVATIONS):
        raise InvalidInput(f"{key} {name!r:.80}, expected one of {', '.join(ACTIVATIONS)}; this variant is not supported")
    return ACTIVATIONS[name]


def read_rope(fields: Fields, theta: float = 10_000.0) -> Fields:
    """rope_theta and rope_scaling. transformers 5 writes `rope_parameters`, which holds all; earlier versions `rope_theta` and `rope_scaling`."""
    given = read_object(fields, "rope_scaling") or read_object(fields, "rope_parameters")
    return rope_fields({"rope_theta": theta if fields.get("rope_theta") is None else fields["rope_theta"]} | given, fields)


def rope_fields(given: Fields, fields: Fields) -> Fields:
    """The same from one object with rope_type and numbers. Raises ValueError for scalings other than linear and llama3."""
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", *ROPE_KEYS):
        raise InvalidInput(
            f"rope_type {kind!r:.80}, expected default, {' or '.join(ROPE_KEYS)}; this way to stretch positions is not supported"
        )
    check_fixed(fields | given, {"partial_rotary_factor": 1.0})
    length = {"original_max_position_embeddings": fields.get("max_position_embeddings")}
    scaling = None if kind == "default" else {"rope_type": kind} | {k: (length | given).get(k) for k in sorted(ROPE_KEYS[kind])}
    return {"rope_theta": given["rope_theta"], "rope_scaling": scaling}


def write_rope(config: GPTConfig) -> Fields:
    """As transformers 5 and earlier versions have it."""
    scaling = config.rope_scaling or {"rope_type": "default"}
    return {
        "rope_parameters": {"rope_theta": config.rope_theta, **scaling}, "rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling,
    }  # fmt: skip


def read_object(fields: Fields, key: str) -> Fields:
    """An object within config.json; empty where it is null or absent. Raises ValueError for anything else."""
    value = fields.get(key)
    if not isinstance(value, dict | None):
        raise InvalidInput(f"{key} {value!r:.80}, expected an object with names and values; fetch config.json again")
    return dict(value or {})


FULL, SLIDING = "full_attention", "sliding_attention"


def read_windows(fields: Fields, has_window: Callable[[int], bool], window: Json) -> Fields:
    """window and window_pattern from `layer_types`. has_window: whether a layer has the window, by its number, where there is no such key."""
    types, n_layer = fields.get("layer_types"), int(read_number(fields, "num_hidden_layers", 1, 10_000))
    if types is None:
        types = [SLIDING if has_window(layer) else FULL for layer in range(n_layer)]
    if not isinstance(types, list) or not all(kind in (FULL, SLIDING) for kind in types):
        raise InvalidInput(f"layer_types {types!r:.120}, expected {FULL} or {SLIDING} for each layer; this variant is not supported")
    if len(types) != n_layer:
        raise InvalidInput(
            f"layer_types of {len(types)} layers, expected {n_layer}, num_hidden_layers; take config.json as it was published"
        )
    letters = "".join("S" if kind == SLIDING else "L" for kind in types)
    if window is None or "S" not in letters:
        return {"window": None, "window_pattern": ""}
    period = next(n for n in range(1, len(letters) + 1) if all(letters[i] == letters[i % n] for i in range(len(letters))))
    return {"window": window, "window_pattern": "" if letters[:period] == "S" else letters[:period]}


def write_windows(config: GPTConfig) -> list[str]:
    """layer_types."""
    return [FULL if config.window_of(layer) is None else SLIDING for layer in range(config.n_layer)]
