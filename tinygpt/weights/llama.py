"""Llama and the families that took its names: Qwen2, Qwen3, Mistral, OLMo 2. SmolLM, SmolLM2, TinyLlama and Llama 3 are `llama`, Qwen2.5 is `qwen2`.

Llama's `post_attention_layernorm` is the norm before the MLP; OLMo 2's is the one on attention's output.
"""

from tinygpt.model_config import GPTConfig
from tinygpt.weights.family import Family, Fields, Names, separate
from tinygpt.weights.keys import (
    ACTIVATION_NAMES,
    MORE,
    SIZES,
    SLIDING,
    read_activation,
    read_keys,
    read_number,
    read_rope,
    read_windows,
    write_keys,
    write_rope,
    write_windows,
)

NAMES: Names = {
    "wte": "model.embed_tokens",
    "h.*.ln_1": "model.layers.*.input_layernorm",
    "h.*.attn.c_attn": separate("model.layers.*.self_attn.{}_proj"),
    "h.*.attn.q_norm": "model.layers.*.self_attn.q_norm",
    "h.*.attn.k_norm": "model.layers.*.self_attn.k_norm",
    "h.*.attn.c_proj": "model.layers.*.self_attn.o_proj",
    "h.*.ln_2": "model.layers.*.post_attention_layernorm",
    "h.*.mlp.c_gate": "model.layers.*.mlp.gate_proj",
    "h.*.mlp.c_fc": "model.layers.*.mlp.up_proj",
    "h.*.mlp.c_proj": "model.layers.*.mlp.down_proj",
    "ln_f": "model.norm",
    "lm_head": "lm_head",
}
OUTPUT_NORMS: Names = {
    "h.*.ln_1_out": "model.layers.*.post_attention_layernorm",
    "h.*.ln_2_out": "model.layers.*.post_feedforward_layernorm",
}

KEYS = {
    **SIZES, **MORE, "n_kv_head": "num_key_value_heads", "head_size": "head_dim", "n_inner": "intermediate_size",
    "layer_norm_epsilon": "rms_norm_eps", "attn_pdrop": "attention_dropout",
}  # fmt: skip


def read_common(fields: Fields) -> Fields:
    """What all of them have: RMS norm, rotary positions, a gated MLP, biases in attention or nowhere."""
    fields = {"attention_bias": False, "rms_norm_eps": 1e-6, "tie_word_embeddings": False} | fields
    biased = fields["attention_bias"]
    return {
        "norm": "rms", "positions": "rotary", "gated": True, "activation": read_activation(fields, "hidden_act", "silu"),
        "qkv_bias": biased, "attention_output_bias": biased, "mlp_bias": False, **read_rope(fields), **read_keys(fields, KEYS),
    }  # fmt: skip


def write_common(config: GPTConfig) -> Fields:
    return {
        "hidden_act": ACTIVATION_NAMES[config.activation], "attention_bias": config.qkv_bias, **write_rope(config), **write_keys(config, KEYS),
    }  # fmt: skip


def _read_llama(fields: Fields) -> Fields:
    return read_common(fields) | {"mlp_bias": fields.get("mlp_bias", False)}


def _write_llama(config: GPTConfig) -> Fields:
    return write_common(config) | {"mlp_bias": config.mlp_bias}


def _read_qwen_windows(fields: Fields) -> Fields:
    """In layers from max_window_layers on, and only where use_sliding_window says so."""
    fields = {"max_window_layers": 28, "sliding_window": 4096, "use_sliding_window": False} | fields
    first = read_number(fields, "max_window_layers", 0)
    return read_windows(fields, lambda layer: layer >= first, fields["sliding_window"] if fields["use_sliding_window"] else None)


def _write_qwen_windows(config: GPTConfig) -> Fields:
    types = write_windows(config)
    has_window = SLIDING in types
    first = types.index(SLIDING) if has_window else config.n_layer
    return {"use_sliding_window": has_window, "sliding_window": config.window, "max_window_layers": first, "layer_types": types}


def _read_qwen2(fields: Fields) -> Fields:
    biases = {"qkv_bias": True, "attention_output_bias": False, "mlp_bias": False}
    return read_common({"num_key_value_heads": 32} | fields) | biases | _read_qwen_windows(fields)


def _write_qwen2(config: GPTConfig) -> Fields:
    return {name: value for name, value in write_common(config).items() if name != "attention_bias"} | _write_qwen_windows(config)


def _read_qwen3(fields: Fields) -> Fields:
    return read_common({"num_key_value_heads": 32, "head_dim": 128} | fields) | {"qk_norm": "head"} | _read_qwen_windows(fields)


def _write_qwen3(config: GPTConfig) -> Fields:
    return write_common(config) | _write_qwen_windows(config)


def _read_mistral(fields: Fields) -> Fields:
    return read_common({"num_key_value_heads": 8} | fields | {"attention_bias": False}) | {"window": fields.get("sliding_window", 4096)}


def _write_mistral(config: GPTConfig) -> Fields:
    return write_common(config) | {"sliding_window": config.window}


def _read_olmo2(fields: Fields) -> Fields:
    return read_common({"rms_norm_eps": 1e-5} | fields) | {"norm_position": "output", "qk_norm": "all"}


LLAMA = Family("llama", "LlamaForCausalLM", "LlamaForSequenceClassification", _read_llama, _write_llama, NAMES, ("model.",))
QWEN2 = Family("qwen2", "Qwen2ForCausalLM", "Qwen2ForSequenceClassification", _read_qwen2, _write_qwen2, NAMES, ("model.",))
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification", _read_qwen3, _write_qwen3, NAMES, ("model.",))
MISTRAL = Family("mistral", "MistralForCausalLM", "MistralForSequenceClassification", _read_mistral, _write_mistral, NAMES, ("model.",))
OLMO2 = Family("olmo2", "Olmo2ForCausalLM", "Olmo2ForSequenceClassification", _read_olmo2, write_common, NAMES | OUTPUT_NORMS, ("model.",))
