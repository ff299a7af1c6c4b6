"""Marian: the encoder-decoder of 2017 as Helsinki's opus-mt models have it; and the form of our own for encoder-decoders of any other shape."""

import dataclasses

from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.weights.family import Family, Fields, Names, Part, same, separate
from tinygpt.weights.keys import ACTIVATION_NAMES, check_fixed, read_activation, read_keys
from tinygpt.weights.seq2seq_keys import read_decoding, without_defaults, write_decoding


def _linear_and_norms(stack: str, theirs: str) -> Names:
    """What encoder and decoder have in common. Their last norm of a block is the MLP's."""
    return {
        f"{stack}.h.*.attn.c_attn": separate(f"{theirs}.self_attn.{{}}_proj"),
        f"{stack}.h.*.attn.c_proj": f"{theirs}.self_attn.out_proj",
        f"{stack}.h.*.ln_1": f"{theirs}.self_attn_layer_norm",
        f"{stack}.h.*.mlp.c_fc": f"{theirs}.fc1",
        f"{stack}.h.*.mlp.c_proj": f"{theirs}.fc2",
        f"{stack}.h.*.ln_2": f"{theirs}.final_layer_norm",
    }


def _output(config: Seq2SeqConfig, kind: str) -> list[Part]:
    return [Part("lm_head.weight", same) if kind == "weight" else Part("final_logits_bias", same, axes=1)]


_CROSS = {"c_q": "q_proj", "c_k": "k_proj", "c_v": "v_proj", "c_proj": "out_proj"}
NAMES: Names = {
    "wte": "model.shared",
    **_linear_and_norms("encoder", "model.encoder.layers.*"),
    **_linear_and_norms("decoder", "model.decoder.layers.*"),
    **{f"decoder.h.*.cross.{ours}": f"model.decoder.layers.*.encoder_attn.{theirs}" for ours, theirs in _CROSS.items()},
    "decoder.h.*.ln_cross": "model.decoder.layers.*.encoder_attn_layer_norm",
    "lm_head": _output,
}

_KEYS = {
    "n_layer": "encoder_layers", "n_head": "encoder_attention_heads", "n_embd": "d_model", "n_positions": "max_position_embeddings",
    "vocab_size": "vocab_size", "n_decoder_layer": "decoder_layers", "n_inner": "encoder_ffn_dim", "dropout": "dropout",
    "attn_pdrop": "attention_dropout", "tie_word_embeddings": "tie_word_embeddings",
}  # fmt: skip
_SAME = {"decoder_attention_heads": "encoder_attention_heads", "decoder_ffn_dim": "encoder_ffn_dim", "decoder_vocab_size": "vocab_size"}
_FIXED = {
    "share_encoder_decoder_embeddings": True, "tie_word_embeddings": True, "normalize_before": False, "add_final_layer_norm": False,
    "normalize_embedding": False, "static_position_embeddings": True, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
    "activation_dropout": 0.0,
}  # fmt: skip
_DEFAULTS = {"dropout": 0.1, "attention_dropout": 0.0, "scale_embedding": False}


def _read(fields: Fields) -> Fields:
    check_fixed(fields, _FIXED, "this variant of Marian is not supported")
    check_fixed(fields, {theirs: fields.get(own) for theirs, own in _SAME.items()}, "encoder and decoder of one width are supported only")
    fields = _DEFAULTS | {key: value for key, value in fields.items() if value is not None}
    read = read_keys(fields, _KEYS) | read_decoding(fields) | {"logits_bias": True}
    return without_defaults(read) | {
        "activation": read_activation(fields, "activation_function", "gelu"),
        "embedding_scale": None if fields["scale_embedding"] else 1.0,
    }


def _write(config: Seq2SeqConfig) -> Fields:
    filled = vars(config) | config.filled() | {"attn_pdrop": config.dropouts["attn_pdrop"]}
    fields: Fields = {theirs: filled[ours] for ours, theirs in _KEYS.items()}
    fields |= {theirs: fields[own] for theirs, own in _SAME.items()}
    return fields | write_decoding(config) | {
        "activation_function": ACTIVATION_NAMES[config.activation], "scale_embedding": config.scale_of_embeddings != 1,
        "share_encoder_decoder_embeddings": True, "activation_dropout": 0.0,
    }  # fmt: skip


MARIAN = Family(
    "marian", "MarianMTModel", None, _read, _write, NAMES, ("model.",), config=Seq2SeqConfig,
    copies=dict.fromkeys(("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"), "model.shared.weight"),
    optional={"lm_head.bias": "logits_bias"}, ignored=r"(encoder|decoder)\.embed_positions\.weight",
)  # fmt: skip


def _read_ours(fields: Fields) -> Fields:
    return {f.name: fields[f.name] for f in dataclasses.fields(Seq2SeqConfig) if f.name in fields}


OUR_SEQ2SEQ = Family("tinygpt-seq2seq", "TinyGPTForConditionalGeneration", None, _read_ours, dataclasses.asdict, config=Seq2SeqConfig)
