"""The tokens that a model wants around a text: none for GPT-2, `[CLS] a [SEP]` for BERT, `a </s>` for T5 and Marian."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json

Ids = Sequence[int] | NDArray[np.integer]  # of tokens, in one dimension

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
"""The parts that a special token can play, as transformers names them: {"mask_token": "[MASK]"}."""


class Wrapped(NamedTuple):
    """One text, or two, as a model reads them: ids and, as long, token types (0 for the first text, `second_type` for the second)."""

    ids: list[int]
    token_types: list[int]


@dataclass(frozen=True)
class Wrapping:
    """Ids around the texts that a model reads.

    one text      start, a, end                 BERT: [CLS] a [SEP]            T5: a </s>
    two texts     start, a, between, b, end     BERT: [CLS] a [SEP] b [SEP]    RoBERTa: <s> a </s> </s> b </s>
    second_type   the token type of b and of what follows it, 1 for BERT; everything before it has type 0
    """

    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    second_type: int = 0

    def wrap(self, first: Ids, second: Ids | None = None, *, n_positions: int | None = None) -> Wrapped:
        """The ids of one text, or of two, with what belongs around them, and their token types. Raises ValueError for more than n_positions."""
        before, after, type_after = [*self.start, *map(int, first)], [*self.end], 0
        if second is not None:
            before, after, type_after = [*before, *self.between], [*map(int, second), *after], self.second_type
        n, n_texts = len(before) + len(after), len(first) + (0 if second is None else len(second))
        if n_positions is not None and n > n_positions:
            found = f"{n} tokens" + (f", {n - n_texts} of them around the text" if n > n_texts else "")
            raise InvalidInput(f"encode: {found}, expected at most {n_positions}, the model's context; shorten the text or divide it")
        return Wrapped(before + after, [0] * len(before) + [type_after] * len(after))

    def post_processor(self, tokens: Mapping[int, str]) -> Json:
        """As tokenizer.json says it; None where there is nothing to say. tokens: the text of each id."""
        if self == Wrapping():
            return None

        def special(ids: tuple[int, ...], type: int) -> list[Json]:
            return [{"SpecialToken": {"id": tokens[id], "type_id": type}} for id in ids]

        first = [*special(self.start, 0), {"Sequence": {"id": "A", "type_id": 0}}]
        second: Json = {"Sequence": {"id": "B", "type_id": self.second_type}}
        pair = [*first, *special(self.between, 0), second, *special(self.end, self.second_type)]
        named = {tokens[id]: {"id": tokens[id], "ids": [id], "tokens": [tokens[id]]} for id in (*self.start, *self.between, *self.end)}
        return {"type": "TemplateProcessing", "single": first + special(self.end, 0), "pair": pair, "special_tokens": named}

    @classmethod
    def read(cls, processor: Json) -> "Wrapping":
        """What tokenizer.json's post_processor puts around texts. Raises KeyError, IndexError, TypeError or ValueError for a damaged one."""
        processor = processor if isinstance(processor, dict) else {}
        kind = processor.get("type")
        if kind == "Sequence":
            return next((found for part in processor["processors"] if (found := cls.read(part)) != cls()), cls())
        if kind == "TemplateProcessing":
            return cls._read_template(processor)
        if "cls" in processor:  # BertProcessing and RobertaProcessing
            cls_id, sep_id = int(processor["cls"][1]), int(processor["sep"][1])
            is_bert = kind == "BertProcessing"
            return cls((cls_id,), (sep_id,), (sep_id,) if is_bert else (sep_id, sep_id), int(is_bert))
        return cls()

    @classmethod
    def _read_template(cls, processor: dict[str, Json]) -> "Wrapping":
        def parts(template: Json) -> list[list[int]]:
            """Ids before the first text, after it, and after the second."""
            found: list[list[int]] = [[]]
            for part in template:
                if "Sequence" in part:
                    found.append([])
                else:
                    found[-1] += map(int, processor["special_tokens"][part["SpecialToken"]["id"]]["ids"])
            return found

        start, end = parts(processor["single"])
        pair = processor.get("pair") or []
        between = next(iter(parts(pair)[1:-1]), [])
        types = [int(part["Sequence"]["type_id"]) for part in pair if "Sequence" in part]
        return cls(tuple(start), tuple(end), tuple(between), types[-1] if len(types) > 1 else 0)
