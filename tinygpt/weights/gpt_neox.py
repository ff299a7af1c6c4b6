"""GPT-NeoX: Pythia. Both branches read the same x, part of each head is turned, and queries, keys and values lie interleaved by head."""

import numpy as np

from tinygpt.model_config import GPTConfig
from tinygpt.weights.family import Family, Fields, Names, Part, rows_of
from tinygpt.weights.keys import ACTIVATION_NAMES, MORE, SIZES, read_activation, read_keys, read_object, rope_fields, write_keys, write_rope


def _interleaved(config: GPTConfig, kind: str) -> list[Part]:
    """query_key_value (H 3 D, C) has for each head its queries, keys and values; c_attn (C, 3 H D) all queries first."""

    def by_head(c_attn: np.ndarray) -> np.ndarray:
        columns = c_attn.reshape(*c_attn.shape[:-1], 3, config.n_head, config.channels_per_head).swapaxes(-3, -2)  # (C, H, 3, D)
        return rows_of(columns) if c_attn.ndim == 2 else columns

    return [Part(f"gpt_neox.layers.*.attention.query_key_value.{kind}", by_head)]


NAMES: Names = {
    "wte": "gpt_neox.embed_in",
    "h.*.ln_1": "gpt_neox.layers.*.input_layernorm",
    "h.*.attn.c_attn": _interleaved,
    "h.*.attn.c_proj": "gpt_neox.layers.*.attention.dense",
    "h.*.ln_2": "gpt_neox.layers.*.post_attention_layernorm",
    "h.*.mlp.c_fc": "gpt_neox.layers.*.mlp.dense_h_to_4h",
    "h.*.mlp.c_proj": "gpt_neox.layers.*.mlp.dense_4h_to_h",
    "ln_f": "gpt_neox.final_layer_norm",
    "lm_head": "embed_out",
}

_KEYS = {
    **SIZES, **MORE, "n_inner": "intermediate_size", "layer_norm_epsilon": "layer_norm_eps", "dropout": "hidden_dropout",
    "attn_pdrop": "attention_dropout",
}  # fmt: skip


def _read(fields: Fields) -> Fields:
    defaults = {"attention_bias": True, "use_parallel_residual": True, "layer_norm_eps": 1e-5, "tie_word_embeddings": False}
    fields = defaults | fields
    biased = fields["attention_bias"]
    older = {"rope_theta": fields.get("rotary_emb_base", 10_000.0), "partial_rotary_factor": fields.get("rotary_pct", 0.25)}
    rope = older | (read_object(fields, "rope_scaling") or read_object(fields, "rope_parameters"))
    fraction = rope.pop("partial_rotary_factor")
    fields = fields | {"partial_rotary_factor": None}  # where transformers 4 repeats rotary_pct
    return {
        "positions": "rotary", "rope_fraction": fraction, **rope_fields(rope, fields), "qkv_bias": biased, "attention_output_bias": biased,
        "parallel_residual": fields["use_parallel_residual"], "activation": read_activation(fields, "hidden_act", "gelu"),
        **read_keys(fields, _KEYS),
    }  # fmt: skip


def _write(config: GPTConfig) -> Fields:
    rope = write_rope(config)
    part = {"partial_rotary_factor": config.rope_fraction}
    return {
        "hidden_act": ACTIVATION_NAMES[config.activation], "use_parallel_residual": config.parallel_residual,
        "attention_bias": config.qkv_bias, "rope_parameters": rope["rope_parameters"] | part, "rotary_emb_base": config.rope_theta,
        "rotary_pct": config.rope_fraction, "rope_scaling": rope["rope_scaling"] and rope["rope_scaling"] | part,
        **write_keys(config, _KEYS),
    }  # fmt: skip


GPT_NEOX = Family(
    "gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification", _read, _write, NAMES, ("gpt_neox.",), {"lm_head": "embed_out"}
)
