"""Keys of config.json that families of encoder-decoders share: what decoding is told, and defaults that follow from other fields."""

from tinygpt.errors import InvalidInput
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.weights.family import Fields
from tinygpt.weights.keys import read_number

_IDS = {
    "start_id": "decoder_start_token_id", "pad_id": "pad_token_id", "eos_id": "eos_token_id", "forced_first_id": "forced_bos_token_id",
    "forced_last_id": "forced_eos_token_id",
}  # fmt: skip

DECODING = ("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids")
"""Keys that transformers takes from generation_config.json, where there is one."""


def read_decoding(fields: Fields) -> Fields:
    """Ids that begin and end a target, pad it, and are never chosen. Raises ValueError for other words that are never to be chosen."""
    found: Fields = {}
    for ours, theirs in _IDS.items():
        value = fields.get(theirs)
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
        if value is None and ours in ("start_id", "pad_id", "eos_id"):
            raise InvalidInput(f"no {theirs}, expected an id of the vocabulary; fetch config.json again")
        if value is not None:
            found[ours] = read_number({theirs: value}, theirs, 0)
    banned = fields.get("bad_words_ids")
    words = [] if banned is None else banned
    if not isinstance(words, list) or not all(isinstance(word, list) and len(word) == 1 for word in words):
        raise InvalidInput(f"bad_words_ids {banned!r:.80}, expected words of one token each; longer ones are not supported")
    return found | {"banned_ids": [read_number({"bad_words_ids": id}, "bad_words_ids", 0) for (id,) in words]}


def write_decoding(config: Seq2SeqConfig) -> Fields:
    """The other way; keys without a value are left out."""
    found = {theirs: getattr(config, ours) for ours, theirs in _IDS.items() if getattr(config, ours) is not None}
    return found | ({"bad_words_ids": [[id] for id in config.banned_ids]} if config.banned_ids else {}) | {"is_encoder_decoder": True}


def without_defaults(read: Fields) -> Fields:
    """Fields of Seq2SeqConfig; those that say what would be so without them are None. Raises ValueError for sizes that are no numbers."""
    for name in ("n_layer", "n_embd", "n_head"):
        read_number(read, name, 1)
    defaults = {
        "n_decoder_layer": read["n_layer"], "n_inner": 4 * read["n_embd"], "head_size": read["n_embd"] / read["n_head"],
        "attn_pdrop": read["dropout"],
    }  # fmt: skip
    return read | {name: None for name, value in defaults.items() if read.get(name) == value}
