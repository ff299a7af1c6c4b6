"""BERT and RoBERTa: encoders whose blocks have their norms after the sums; and the form of our own for encoders that neither describes.

In a file of a classifier there is no head for masked words, in one of masked words often no pooler; what there is, is read.
"""

import dataclasses
from functools import partial

from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import InvalidInput
from tinygpt.weights.family import Family, Fields, Layout, Names, Part, same, separate, turned
from tinygpt.weights.keys import ACTIVATION_NAMES, MORE, SIZES, check_fixed, read_activation, read_keys, read_number

_KEYS = {
    **SIZES, **MORE, "n_inner": "intermediate_size", "layer_norm_epsilon": "layer_norm_eps", "dropout": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob", "n_token_types": "type_vocab_size", "pad_id": "pad_token_id",
}  # fmt: skip
_DEFAULTS = {
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
}  # fmt: skip
_FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def _linear(name: str) -> Layout:
    """A layer outside the blocks: (out, in), as all of theirs."""
    return lambda config, kind: [Part(f"{name}.{kind}", turned)]


def _output(name: str) -> Layout:
    """Output matrix and bias. A file has the bias under two names where the matrix is not the embedding's; the second is the one in use."""

    def parts(config: EncoderConfig, kind: str) -> list[Part]:
        decoder = Part(f"{name}.decoder.{kind}", same)
        if kind == "weight":
            return [decoder]
        return [Part(f"{name}.{kind}", same)] + ([] if config.tie_word_embeddings else [decoder])

    return parts


def _after_padding(name: str) -> Layout:
    """RoBERTa's first token has the row after that of padding, pad_id: the rows before it belong to no token."""
    return lambda config, kind: [Part(f"{name}.{kind}", same, skip=config.pad_id + 1)]


def _body(prefix: str) -> Names:
    """What both families have under the same names, below `bert` or `roberta`."""
    block, embeddings = f"{prefix}.encoder.layer.*", f"{prefix}.embeddings"
    return {
        "wte": f"{embeddings}.word_embeddings",
        "wpe": f"{embeddings}.position_embeddings",
        "wtt": f"{embeddings}.token_type_embeddings",
        "ln_e": f"{embeddings}.LayerNorm",
        "h.*.attn.c_attn": separate(f"{block}.attention.self.{{}}", "query", "key", "value"),
        "h.*.attn.c_proj": f"{block}.attention.output.dense",
        "h.*.ln_1": f"{block}.attention.output.LayerNorm",
        "h.*.mlp.c_fc": f"{block}.intermediate.dense",
        "h.*.mlp.c_proj": f"{block}.output.dense",
        "h.*.ln_2": f"{block}.output.LayerNorm",
    }


BERT_NAMES: Names = {
    **_body("bert"),
    "head": _output("cls.predictions"),
    "head.c_fc": _linear("cls.predictions.transform.dense"),
    "head.ln": "cls.predictions.transform.LayerNorm",
    "pooler": _linear("bert.pooler.dense"),
    "score": _linear("classifier"),
}
ROBERTA_NAMES: Names = {
    **_body("roberta"),
    "wpe": _after_padding("roberta.embeddings.position_embeddings"),
    "head": _output("lm_head"),
    "head.c_fc": _linear("lm_head.dense"),
    "head.ln": "lm_head.layer_norm",
    "pooler": _linear("classifier.dense"),  # `roberta.pooler`, which old files of masked words have, was never trained
    "score": _linear("classifier.out_proj"),
}


def _read(fields: Fields, *, pad_id: int) -> Fields:
    """What both have under the same keys. pad_id: of a file that does not say."""
    check_fixed(fields, _FIXED)
    fields = _DEFAULTS | {"pad_token_id": pad_id} | {key: value for key, value in fields.items() if value is not None}
    read = read_keys(fields, _KEYS) | {"activation": read_activation(fields, "hidden_act", "gelu"), "embd_pdrop": fields.get("embd_pdrop")}
    read_number(fields, "type_vocab_size", 1)
    return read | ({"attn_pdrop": None} if read["attn_pdrop"] == read["dropout"] else {})


def _read_bert(fields: Fields) -> Fields:
    return _read(fields, pad_id=0)


def _read_roberta(fields: Fields) -> Fields:
    check_fixed(fields, {"hidden_act": "gelu"}, "the head for masked words has no other, and in our models it is that of the blocks")
    read = _read(fields, pad_id=1)
    n, unused = read_number(fields, "max_position_embeddings", 1), read_number(read, "pad_id", 0) + 1
    if n <= unused:
        rule = f"expected more than pad_token_id + 1 = {unused}, positions that no token has"
        raise InvalidInput(f"max_position_embeddings {n}, {rule}; fetch config.json again")
    return read | {"n_positions": n - unused, "count_padding": False}


def _write(config: EncoderConfig) -> Fields:
    filled = dataclasses.asdict(config) | config.filled() | {"attn_pdrop": config.blocks().dropouts["attn_pdrop"]}
    embd_pdrop = {} if config.embd_pdrop is None else {"embd_pdrop": config.embd_pdrop}  # a key of ours, which others ignore
    keys: Fields = {theirs: filled[ours] for ours, theirs in _KEYS.items()}
    return keys | embd_pdrop | {"hidden_act": ACTIVATION_NAMES[config.activation], "position_embedding_type": "absolute"}


def _write_roberta(config: EncoderConfig) -> Fields:
    return _write(config) | {"max_position_embeddings": config.n_positions + config.pad_id + 1}


_FIELDS = [f.name for f in dataclasses.fields(EncoderConfig)]


def _read_ours(fields: Fields) -> Fields:
    return {name: fields[name] for name in _FIELDS if name in fields}


_family = partial(Family, config=EncoderConfig, optional={"head.bias": "head", "pooler.bias": "pooler"})

BERT = _family(
    "bert", "BertForMaskedLM", "BertForSequenceClassification", _read_bert, _write, BERT_NAMES, ("bert.",),
    copies={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    ignored=r"embeddings\.position_ids|cls\.seq_relationship\.(weight|bias)",
)  # fmt: skip
ROBERTA = _family(
    "roberta", "RobertaForMaskedLM", "RobertaForSequenceClassification", _read_roberta, _write_roberta, ROBERTA_NAMES, ("roberta.",),
    copies={"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"},
    ignored=r"embeddings\.position_ids|pooler\.dense\.(weight|bias)",
)  # fmt: skip
OUR_ENCODER = Family(
    "tinygpt-encoder", "TinyGPTForMaskedLM", "TinyGPTEncoderForSequenceClassification", _read_ours, dataclasses.asdict, config=EncoderConfig
)
