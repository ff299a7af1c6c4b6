"""OPT: GPT-2's shape with ReLU; its norms come after the sums in the 350M model, which has narrower embeddings, too, and is not supported."""

from tinygpt.errors import InvalidInput
from tinygpt.model_config import GPTConfig
from tinygpt.weights.family import Family, Fields, Names, Part, same, separate
from tinygpt.weights.keys import ACTIVATION_NAMES, SIZES, check_fixed, read_activation, read_keys, write_keys


def _after_two_rows(config: GPTConfig, kind: str) -> list[Part]:
    """Position 0 has row 2: the rows before it belonged to padding."""
    return [Part(f"model.decoder.embed_positions.{kind}", same, skip=2)]


NAMES: Names = {
    "wte": "model.decoder.embed_tokens",
    "wpe": _after_two_rows,
    "h.*.ln_1": "model.decoder.layers.*.self_attn_layer_norm",
    "h.*.attn.c_attn": separate("model.decoder.layers.*.self_attn.{}_proj"),
    "h.*.attn.c_proj": "model.decoder.layers.*.self_attn.out_proj",
    "h.*.ln_2": "model.decoder.layers.*.final_layer_norm",
    "h.*.mlp.c_fc": "model.decoder.layers.*.fc1",
    "h.*.mlp.c_proj": "model.decoder.layers.*.fc2",
    "ln_f": "model.decoder.final_layer_norm",
    "lm_head": "lm_head",
}

_KEYS = {
    **SIZES, "n_inner": "ffn_dim", "initializer_range": "init_std", "tie_word_embeddings": "tie_word_embeddings", "dropout": "dropout",
    "attn_pdrop": "attention_dropout",
}  # fmt: skip


def _read(fields: Fields) -> Fields:
    check_fixed(fields, {"layer_norm_elementwise_affine": True, "_remove_final_layer_norm": False})
    width = fields.get("word_embed_proj_dim")
    if width not in (None, fields.get("hidden_size")):
        rule = f"expected {fields.get('hidden_size')}, hidden_size"
        raise InvalidInput(
            f"word_embed_proj_dim {width!r:.80}, {rule}; embeddings of another width (project_in, project_out) are not supported"
        )
    fields = {"enable_bias": True, "do_layer_norm_before": True, "dropout": 0.1} | fields
    biased = fields["enable_bias"]
    return {
        "activation": read_activation(fields, "activation_function", "relu"), "embd_pdrop": 0.0, "qkv_bias": biased,
        "attention_output_bias": biased, "mlp_bias": biased, "norm_position": "pre" if fields["do_layer_norm_before"] else "post",
        "attn_pdrop": 0.0, **read_keys(fields, _KEYS),
    }  # fmt: skip


def _write(config: GPTConfig) -> Fields:
    return {
        "activation_function": ACTIVATION_NAMES[config.activation], "enable_bias": config.qkv_bias, "layerdrop": 0.0,
        "do_layer_norm_before": config.norm_position == "pre", "word_embed_proj_dim": config.n_embd, **write_keys(config, _KEYS),
    }  # fmt: skip


OPT = Family("opt", "OPTForCausalLM", "OPTForSequenceClassification", _read, _write, NAMES, ("model.", "decoder."))
