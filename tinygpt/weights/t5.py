"""T5 and its version 1.1 (also Flan-T5): norms before the branches, no biases, relative positions, scores without 1 / sqrt(D).

`tie_word_embeddings` has said two things: whether the output layer is the embedding, and whether its input is scaled by 1 / sqrt(C), as T5
does and version 1.1 does not. From version 5 on transformers writes the second as `scale_decoder_outputs` and always says tied; then the
tensors of the file decide (`Family.unties`).
"""

from tinygpt.errors import InvalidInput
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.weights.family import Family, Fields, Layout, Names, Part, same, separate, turned
from tinygpt.weights.keys import ACTIVATION_NAMES, check_fixed, read_activation, read_keys
from tinygpt.weights.seq2seq_keys import read_decoding, without_defaults, write_decoding


def _relative(stack: str) -> Layout:
    """The table of all blocks stands in the first one's file names."""
    return lambda config, kind: [Part(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.{kind}", same)]


def _widening(name: str) -> Layout:
    """The MLP's first projection; with a gate it is the second of two."""
    return lambda config, kind: [Part(f"{name}.{'wi_1' if config.gated else 'wi'}.{kind}", turned)]


def _stack(stack: str, mlp: int) -> Names:
    """What encoder and decoder have in common. mlp: the MLP's number among a block's branches."""
    block = f"{stack}.block.*.layer"
    return {
        f"{stack}.relative": _relative(stack),
        f"{stack}.h.*.ln_1": f"{block}.0.layer_norm",
        f"{stack}.h.*.attn.c_attn": separate(f"{block}.0.SelfAttention.{{}}"),
        f"{stack}.h.*.attn.c_proj": f"{block}.0.SelfAttention.o",
        f"{stack}.h.*.ln_2": f"{block}.{mlp}.layer_norm",
        f"{stack}.h.*.mlp.c_gate": f"{block}.{mlp}.DenseReluDense.wi_0",
        f"{stack}.h.*.mlp.c_fc": _widening(f"{block}.{mlp}.DenseReluDense"),
        f"{stack}.h.*.mlp.c_proj": f"{block}.{mlp}.DenseReluDense.wo",
        f"{stack}.ln_f": f"{stack}.final_layer_norm",
    }


_CROSS = {"c_q": "q", "c_k": "k", "c_v": "v", "c_proj": "o"}
NAMES: Names = {
    "wte": "shared",
    **_stack("encoder", 1),
    **_stack("decoder", 2),
    "decoder.h.*.ln_cross": "decoder.block.*.layer.1.layer_norm",
    **{f"decoder.h.*.cross.{ours}": f"decoder.block.*.layer.1.EncDecAttention.{theirs}" for ours, theirs in _CROSS.items()},
    "lm_head": "lm_head",
}

_KEYS = {
    "n_layer": "num_layers", "n_head": "num_heads", "n_embd": "d_model", "n_positions": "n_positions", "vocab_size": "vocab_size",
    "n_decoder_layer": "num_decoder_layers", "n_inner": "d_ff", "head_size": "d_kv", "dropout": "dropout_rate",
    "layer_norm_epsilon": "layer_norm_epsilon", "relative_buckets": "relative_attention_num_buckets",
    "relative_distance": "relative_attention_max_distance",
}  # fmt: skip
_DEFAULTS = {
    "n_positions": 512, "dropout_rate": 0.1, "layer_norm_epsilon": 1e-6, "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128, "feed_forward_proj": "relu",
}  # fmt: skip
_FIXED: Fields = {
    "norm": "rms",
    "norm_position": "pre",
    "positions": "relative",
    "bias": False,
    "attention_scale": 1.0,
    "embedding_scale": 1.0,
    "padding_trains": True,
}


def _read(fields: Fields) -> Fields:
    check_fixed(fields, {"is_encoder_decoder": True, "is_decoder": False}, "an encoder or a decoder alone is not supported")
    fields = _DEFAULTS | {key: value for key, value in fields.items() if value is not None}
    read = (
        without_defaults(read_keys(fields, _KEYS)) | read_decoding({"decoder_start_token_id": fields.get("pad_token_id")} | fields) | _FIXED
    )
    kind = fields["feed_forward_proj"]
    if not isinstance(kind, str):
        raise InvalidInput(f"feed_forward_proj {kind!r:.80}, expected relu, or gated-gelu; fetch config.json again")
    gated = kind.startswith("gated-")
    name = {"feed_forward_proj": "gelu_new" if kind == "gated-gelu" else kind.removeprefix("gated-")}
    tied = fields.get("tie_word_embeddings", True)
    scaled = fields.get("scale_decoder_outputs", tied)
    return read | {
        "gated": gated, "activation": read_activation(name, "feed_forward_proj", "relu"), "tie_word_embeddings": tied,
        "output_scale": read["n_embd"] ** -0.5 if scaled else 1.0, **{key: fields[key] for key in _OURS if key in fields},
    }  # fmt: skip


_OURS = ("embd_pdrop", "attn_pdrop")  # keys of ours, which transformers ignores: T5 has one dropout for all


def _write(config: Seq2SeqConfig) -> Fields:
    if config.logits_bias:
        raise InvalidInput("logits_bias True, expected False; T5 has no such bias")
    filled = vars(config) | config.filled()
    fields: Fields = {theirs: filled[ours] for ours, theirs in _KEYS.items()} | write_decoding(config)
    activation = "gelu" if config.gated and config.activation == "gelu" else ACTIVATION_NAMES[config.activation]
    return fields | {
        "feed_forward_proj": f"gated-{activation}" if config.gated else activation, "tie_word_embeddings": config.tie_word_embeddings,
        "scale_decoder_outputs": config.output_scale != 1, **{key: getattr(config, key) for key in _OURS if getattr(config, key) is not None},
    }  # fmt: skip


T5 = Family(
    "t5", "T5ForConditionalGeneration", None, _read, _write, NAMES, config=Seq2SeqConfig,
    copies=dict.fromkeys(("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight"),
    ignored=r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight", unties="lm_head.weight",
)  # fmt: skip
