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
_DEFAULTS = {"layer_norm_eps": 1e-12, "type_vocab_size": 2, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
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
    return lambda config, kind: [Part(f"{name}.{kind}", same, skip=0 if config.count_padding else config.pad_id + 1)]


def _names(prefix: str, head: str, dense: str, norm: str, pooler: str, score: str) -> Names:
    block, embeddings = f"{prefix}.encoder.layer.*", f"{prefix}.embeddings"
    return {
        "wte": f"{embeddings}.word_embeddings",
        "wpe": _after_padding(f"{embeddings}.position_embeddings"),
        "wtt": f"{embeddings}.token_type_embeddings",
        "ln_e": f"{embeddings}.LayerNorm",
        "h.*.attn.c_attn": separate(f"{block}.attention.self.{{}}", "query", "key", "value"),
        "h.*.attn.c_proj": f"{block}.attention.output.dense",
        "h.*.ln_1": f"{block}.attention.output.LayerNorm",
        "h.*.mlp.c_fc": f"{block}.intermediate.dense",
        "h.*.mlp.c_proj": f"{block}.output.dense",
        "h.*.ln_2": f"{block}.output.LayerNorm",
        "head": _output(head),
        "head.c_fc": _linear(f"{head}.{dense}"),
        "head.ln": f"{head}.{norm}",
        "pooler": _linear(pooler),
        "score": _linear(score),
    }


def _read(fields: Fields, pad_id: int = 0) -> Fields:
    """pad_id: of a file that does not say."""
    check_fixed(fields, _FIXED)
    fields = _DEFAULTS | {"pad_token_id": pad_id} | {key: value for key, value in fields.items() if value is not None}
    read_number(fields, "type_vocab_size", 1)
    read = read_keys(fields, _KEYS) | {"activation": read_activation(fields, "hidden_act", "gelu"), "embd_pdrop": fields.get("embd_pdrop")}
    defaults = {"attn_pdrop": read["dropout"], "n_inner": 4 * read["n_embd"]}
    return read | {name: None for name, default in defaults.items() if read.get(name) == default}


def _read_roberta(fields: Fields) -> Fields:
    check_fixed(fields, {"hidden_act": "gelu"}, "the head for masked words has no other, and in our models it is that of the blocks")
    read = _read(fields, pad_id=1)
    n, unused = read_number(fields, "max_position_embeddings", 1), read_number(read, "pad_id", 0) + 1
    if n <= unused:
        rule = f"expected more than pad_token_id + 1 = {unused}, positions that no token has"
        raise InvalidInput(f"max_position_embeddings {n}, {rule}; fetch config.json again")
    return read | {"n_positions": n - unused, "count_padding": False}


def _write(config: EncoderConfig) -> Fields:
    unused = 0 if config.count_padding else config.pad_id + 1
    ours = dataclasses.asdict(config) | config.filled() | {"n_positions": config.n_positions + unused}
    ours["attn_pdrop"] = config.blocks().dropouts["attn_pdrop"]
    embd_pdrop = {} if config.embd_pdrop is None else {"embd_pdrop": config.embd_pdrop}  # a key of ours, which others ignore
    more = {"hidden_act": ACTIVATION_NAMES[config.activation], "position_embedding_type": "absolute"}
    return {theirs: ours[name] for name, theirs in _KEYS.items()} | embd_pdrop | more


def _read_ours(fields: Fields) -> Fields:
    return {f.name: fields[f.name] for f in dataclasses.fields(EncoderConfig) if f.name in fields}


_family = partial(Family, write=_write, config=EncoderConfig, optional={"head.bias": "head", "pooler.bias": "pooler"})
_OUTPUT = "cls.predictions"

BERT = _family(
    "bert", "BertForMaskedLM", "BertForSequenceClassification", _read, prefixes=("bert.",),
    names=_names("bert", _OUTPUT, "transform.dense", "transform.LayerNorm", "bert.pooler.dense", "classifier"),
    copies={f"{_OUTPUT}.decoder.weight": "bert.embeddings.word_embeddings.weight", f"{_OUTPUT}.decoder.bias": f"{_OUTPUT}.bias"},
    ignored=r"embeddings\.position_ids|cls\.seq_relationship\.(weight|bias)",
)  # fmt: skip
ROBERTA = _family(  # old files of masked words have a `roberta.pooler`, which was never trained: a classifier's is another
    "roberta", "RobertaForMaskedLM", "RobertaForSequenceClassification", _read_roberta, prefixes=("roberta.",),
    names=_names("roberta", "lm_head", "dense", "layer_norm", "classifier.dense", "classifier.out_proj"),
    copies={"lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"},
    ignored=r"embeddings\.position_ids|pooler\.dense\.(weight|bias)",
)  # fmt: skip
OUR_ENCODER = Family(
    "tinygpt-encoder", "TinyGPTForMaskedLM", "TinyGPTEncoderForSequenceClassification", _read_ours, dataclasses.asdict, config=EncoderConfig
)
