"""Gemma 1, 2 and 3 (text). Their norms multiply by 1 + weight, and embeddings are scaled by sqrt(C).

Gemma 2 and 3 have norms before and after each branch; `post_attention_layernorm` is the one on attention's output there, and before the MLP in
Gemma 1. Gemma 3 turns queries and keys by one theta in blocks with a window, and by another in those without.
"""

from tinygpt.errors import InvalidInput
from tinygpt.model_config import GPTConfig
from tinygpt.storage.checked_json import Json
from tinygpt.weights.family import Family, Fields, Names, meaning
from tinygpt.weights.keys import (
    ACTIVATION_NAMES,
    FULL,
    SLIDING,
    check_fixed,
    read_activation,
    read_number,
    read_object,
    read_windows,
    rope_fields,
    write_windows,
)
from tinygpt.weights.llama import NAMES, OUTPUT_NORMS, read_common, write_common

_DEFAULTS = {
    "num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0, "sliding_window": 4096,
}  # fmt: skip


def _read_gemma(fields: Fields, act: Json) -> Fields:
    """act: the activation's name in config.json."""
    check_fixed(fields, {"use_bidirectional_attention": False}, "a model that sees later tokens, too, generates no text")
    activation = read_activation({"hidden_activation": act}, "hidden_activation", "gelu_pytorch_tanh")
    scale = read_number(fields, "hidden_size", 1) ** 0.5
    return read_common(fields | {"hidden_act": None}) | {"norm_offset": 1.0, "embedding_scale": scale, "activation": activation}


def _read_gemma1(fields: Fields) -> Fields:
    """Its first files say gelu, and mean the approximation with tanh."""
    act = fields.get("hidden_act")
    return _read_gemma(_DEFAULTS | {"num_key_value_heads": 16} | fields, None if act == "gelu" else act)


def _read_gemma2(fields: Fields) -> Fields:
    fields = _DEFAULTS | fields
    return _read_gemma(fields, fields.get("hidden_activation")) | {
        "norm_position": "sandwich",
        "attention_scale": read_number(fields, "query_pre_attn_scalar", 1) ** -0.5,
        "attention_softcap": fields["attn_logit_softcapping"],
        "logit_softcap": fields["final_logit_softcapping"],
        **read_windows(fields, lambda layer: layer % 2 == 0, fields["sliding_window"]),
    }


def _write_gemma2(config: GPTConfig) -> Fields:
    return write_common(config) | {
        "hidden_activation": ACTIVATION_NAMES[config.activation],
        "query_pre_attn_scalar": round(meaning(config)["attention_scale"] ** -2),
        "attn_logit_softcapping": config.attention_softcap,
        "final_logit_softcapping": config.logit_softcap,
        "sliding_window": config.window or 4096,
        "layer_types": write_windows(config),
    }


def _read_gemma3(fields: Fields) -> Fields:
    check_fixed(fields, {"attn_logit_softcapping": None}, "Gemma 3 has no such cap, and transformers ignores it")
    own = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "sliding_window_pattern": 6, "sliding_window": 4096}
    fields = own | {"rope_theta": 1e6, "rope_local_base_freq": 1e4} | fields
    every = read_number(fields, "sliding_window_pattern", 1)  # the last of so many layers has no window
    read = _read_gemma2({key: value for key, value in fields.items() if key not in ("rope_parameters", "rope_scaling")})
    read |= {"qk_norm": "head"} | read_windows(fields, lambda layer: (layer + 1) % every != 0, fields["sliding_window"])
    nested = read_object(fields, "rope_parameters")
    full = {"rope_theta": fields["rope_theta"]} | read_object(nested, FULL) | read_object(fields, "rope_scaling")
    local = {"rope_theta": fields["rope_local_base_freq"]} | read_object(nested, SLIDING)
    everywhere, windowed = rope_fields(full, fields), rope_fields(local, fields)
    if read["window"] is None or everywhere == windowed:
        return read | everywhere
    if not read["window_pattern"]:  # every layer has the window
        return read | windowed
    if windowed["rope_scaling"] is not None:
        raise InvalidInput(f"rope_parameters {SLIDING} {local!r:.120}, expected rope_type default there; this variant is not supported")
    return read | everywhere | {"rope_local_theta": windowed["rope_theta"]}


def _write_gemma3(config: GPTConfig) -> Fields:
    """With the keys of transformers 5 and those of earlier versions, which had one scaling, for blocks without a window."""
    written = _write_gemma2(config)
    full = written["rope_parameters"]
    local = full if config.rope_local_theta is None else {"rope_type": "default", "rope_theta": config.rope_local_theta}
    return written | {"rope_parameters": {FULL: full, SLIDING: local}, "rope_local_base_freq": local["rope_theta"]}


_NORMS: Names = {**OUTPUT_NORMS, "h.*.ln_2": "model.layers.*.pre_feedforward_layernorm"}
GEMMA = Family("gemma", "GemmaForCausalLM", "GemmaForSequenceClassification", _read_gemma1, write_common, NAMES, ("model.",))
GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", "Gemma2ForSequenceClassification", _read_gemma2, _write_gemma2, NAMES | _NORMS, ("model.",))
GEMMA3 = Family(
    "gemma3_text", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification", _read_gemma3, _write_gemma3, NAMES | _NORMS, ("model.",)
)
