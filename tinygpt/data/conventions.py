"""What transformers' classes of tokenizers take for granted: their files often name no special token, and nothing around a text.

convention = convention_of(tokenizer_config, config)    # BERT's, RoBERTa's, T5's, Marian's, or None
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tinygpt.data.wrapping import Wrapping
from tinygpt.storage.checked_json import Json

_BERT = {"unk_token": "[UNK]", **{f"{role}_token": f"[{role.upper()}]" for role in ("sep", "pad", "cls", "mask")}}
_FAIRSEQ = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_PIECES = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class Convention:
    """What a class of tokenizers assumes.

    name          of the class in transformers; its other names, without Fast, are `also`
    model_types   of config.json, where no tokenizer_config.json names the class
    roles         special tokens by their part, for those that files do not name
    start, end, between   what belongs around texts, by role: see `Wrapping`
    lstrip        roles whose tokens take the white space before them
    """

    name: str
    model_types: tuple[str, ...]
    roles: dict[str, str]
    also: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    between: tuple[str, ...] = ()
    second_type: int = 0
    lstrip: tuple[str, ...] = field(default=())

    def wrapping(self, roles: Mapping[str, str], ids: Mapping[str, int]) -> Wrapping:
        """The ids around a text; a token that the vocabulary lacks is left out. roles: as files name them, or `self.roles`."""

        def of(names: tuple[str, ...]) -> tuple[int, ...]:
            return tuple(ids[roles[name]] for name in names if roles.get(name) in ids)

        return Wrapping(of(self.start), of(self.end), of(self.between), self.second_type)


_SEP, _CLS, _EOS = ("sep_token",), ("cls_token",), ("eos_token",)
BERT = Convention(
    "BertTokenizer", ("bert", "distilbert", "electra"), _BERT, also=("DistilBertTokenizer", "ElectraTokenizer"), start=_CLS, end=_SEP,
    between=_SEP, second_type=1,
)  # fmt: skip
ROBERTA = Convention(
    "RobertaTokenizer", ("roberta",), _FAIRSEQ | {"mask_token": "<mask>"}, start=_CLS, end=_SEP, between=_SEP * 2, lstrip=("mask_token",)
)
T5 = Convention("T5Tokenizer", ("t5", "mt5", "umt5"), _PIECES, also=("MT5Tokenizer",), end=_EOS, between=_EOS)
MARIAN = Convention("MarianTokenizer", ("marian",), _PIECES, end=_EOS)


def convention_of(tokenizer_config: Mapping[str, Json], config: Mapping[str, Json]) -> Convention | None:
    """By tokenizer_config.json's class, else by config.json's model_type; None for others, which files describe."""
    named = str(tokenizer_config.get("tokenizer_class") or "").removesuffix("Fast")
    for convention in (BERT, ROBERTA, T5, MARIAN):
        if named in (convention.name, *convention.also) or (not named and config.get("model_type") in convention.model_types):
            return convention
    return None
