"""nanochat: norms without weights, also on the embeddings, squared ReLU, capped logits, and queries and keys that are turned backwards."""

from collections.abc import Callable

import numpy as np

from tinygpt.model_config import GPTConfig
from tinygpt.weights.family import Family, Fields, Names, Part, rows_of, split_heads
from tinygpt.weights.keys import ACTIVATION_NAMES, MORE, SIZES, read_activation, read_keys, read_rope, write_keys, write_rope


def _halves_swapped(config: GPTConfig, kind: str) -> list[Part]:
    """Turning a pair of channels (a, b) backwards is turning (b, a) forwards: the halves of each head change places, in queries and keys."""

    def view(which: str, start: int, stop: int, n_heads: int) -> Callable[[np.ndarray], np.ndarray]:
        def swapped(c_attn: np.ndarray) -> np.ndarray:
            columns = c_attn[..., start:stop]
            columns = columns.reshape(*columns.shape[:-1], n_heads, 2, -1)  # (C, H, half, D / 2)
            columns = columns if which == "v" else columns[..., ::-1, :]
            return rows_of(columns) if c_attn.ndim == 2 else columns

        return swapped

    return [Part(f"model.layers.*.self_attn.{which}_proj.{kind}", view(which, *columns)) for which, columns in split_heads(config).items()]


NAMES: Names = {
    "wte": "model.embed_tokens",
    "h.*.attn.c_attn": _halves_swapped,
    "h.*.attn.c_proj": "model.layers.*.self_attn.o_proj",
    "h.*.mlp.c_fc": "model.layers.*.mlp.fc1",
    "h.*.mlp.c_proj": "model.layers.*.mlp.fc2",
    "lm_head": "lm_head",
}

_KEYS = {
    **SIZES, **MORE, "n_kv_head": "num_key_value_heads", "head_size": "head_dim", "n_inner": "intermediate_size",
    "layer_norm_epsilon": "rms_norm_eps", "attn_pdrop": "attention_dropout",
}  # fmt: skip


def _read(fields: Fields) -> Fields:
    defaults = {"attention_bias": False, "final_logit_softcapping": 15.0, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
    fields = defaults | fields
    biased = fields["attention_bias"]
    return {
        "norm": "rms_unweighted", "embedding_norm": True, "positions": "rotary", "qk_norm": "head", **read_rope(fields),
        "activation": read_activation(fields, "hidden_act", "relu2"), "logit_softcap": fields["final_logit_softcapping"],
        "qkv_bias": biased, "attention_output_bias": biased, "mlp_bias": False,
        **read_keys(fields, _KEYS),
    }  # fmt: skip


def _write(config: GPTConfig) -> Fields:
    return {
        "hidden_act": ACTIVATION_NAMES[config.activation], "final_logit_softcapping": config.logit_softcap,
        "attention_bias": config.qkv_bias, **write_rope(config), **write_keys(config, _KEYS),
    }  # fmt: skip


NANOCHAT = Family("nanochat", "NanoChatForCausalLM", None, _read, _write, NAMES, ("model.",))
