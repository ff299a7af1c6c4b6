"""Vocabularies of pieces as llama.cpp has them: SentencePiece's BPE ("llama"), T5's unigram model ("t5") and BERT's word pieces ("bert").

llama.cpp runs each by an algorithm of its own, from texts, types and scores of the tokens. What a tokenizer.json asks for beyond that is either
one of the few options that llama.cpp has, or the file is refused: ids would differ without a word.
Source  llama.cpp, src/llama-vocab.cpp (what it runs); Kudo and Richardson 2018, arXiv:1808.06226; Wu et al. 2016, arXiv:1609.08144, section 4.1.
"""

import base64
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from reprlib import repr as _short

from tinygpt.data.sentence_pieces import BLANK, UNIGRAM, ModelFile
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json

LATER_PREFIX = "llama.cpp puts a space in front of every text that does not follow ordinary text; this tokenizer puts none before a text that begins with one"


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    model     llama.cpp's name of the algorithm: gpt2 (byte-level BPE), llama, t5 or bert
    pre       its name of the rule that cuts words, for byte-level BPE
    tokens    (text, type) of each id; types are the names of gguf.TokenType
    scores    of each token, for llama and t5: the higher, the sooner joined, or the likelier
    merges    pairs in the order of joining, for gpt2
    options   further keys under `tokenizer.ggml.` that are true or false
    charsmap  SentencePiece's table that brings characters into normal form
    notes     where llama.cpp's ids differ from the tokenizer's
    """

    model: str
    tokens: list[tuple[str, str]]
    pre: str = "default"
    scores: list[float] | None = None
    merges: list[str] | None = None
    options: dict[str, bool] = field(default_factory=dict)
    charsmap: bytes = b""
    notes: tuple[str, ...] = ()


def refused(found: str, rule: str, fix: str = "") -> InvalidInput:
    return InvalidInput(f"export: {found}, expected {rule}; {fix or 'llama.cpp has no other'}")


# ---- tokenizer.json ----------------------------------------------------------------------------------------------------------------------


def pieces_of_json(data: dict[str, Json], tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a tokenizer.json that Hugging Face's library runs. Raises ValueError for what llama.cpp would cut otherwise."""
    kind = data["model"].get("type")
    makers = {"BPE": _joined_pieces, "Unigram": _unigram, "WordPiece": _word_pieces}
    if kind not in makers:
        raise refused(f"a tokenizer.json with the model {_short(kind)}", f"one of {', '.join(makers)}")
    return makers[kind](data, tokenizer)


def _steps(step: Json) -> list[Json]:
    """A step of tokenizer.json, or the steps of a sequence, without None."""
    if step is None:
        return []
    inner = step.get("normalizers", step.get("pretokenizers"))
    return [step] if inner is None else [each for part in inner for each in _steps(part)]


def _named(tokenizer: Tokenizer, texts: dict[int, str], kinds: dict[int, str]) -> list[tuple[str, str]]:
    """(text, type) by id: special tokens are CONTROL, so that text never becomes one, added ones USER_DEFINED, the one for what the vocabulary
    lacks UNKNOWN, others as `kinds` says, else NORMAL. Ids without a token are UNUSED."""
    kinds = kinds | dict.fromkeys(tokenizer.added.values(), "USER_DEFINED") | dict.fromkeys(tokenizer.special.values(), "CONTROL")
    texts = texts | {id: text for text, id in (tokenizer.added | tokenizer.special).items()}
    if tokenizer.unk_id is not None:
        kinds[tokenizer.unk_id] = "UNKNOWN"
    return [(texts[id], kinds.get(id, "NORMAL")) if id in texts else (f"[PAD{id}]", "UNUSED") for id in range(max(texts) + 1)]


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _joined_pieces(data: dict[str, Json], tokenizer: Tokenizer) -> Vocabulary:
    """SentencePiece's BPE: llama.cpp joins the neighbors whose joint text has the highest score, whatever they are; a merge has a pair.

    Both give the same ids where every way to cut a token in two is a merge, one after the other, as in files that were made from a
    SentencePiece model: then a token's score is minus the number of its first merge. Of equal scores llama.cpp takes the leftmost.
    """
    model = data["model"]
    for key, wanted in {"byte_fallback": True, "ignore_merges": False, "dropout": 0.0}.items():
        if (model.get(key) or type(wanted)()) != wanted:
            raise refused(f"{key} {model.get(key)!r} in tokenizer.json", f"{wanted!r}")
    prefix, split, notes = _blanks(data)
    vocabulary: dict[str, int] = model["vocab"]
    if lacking := [name for name in BYTES if name not in vocabulary]:
        raise refused(
            f"no token {lacking[0]} in the vocabulary", "one for each of the 256 bytes", "llama.cpp writes unknown characters with them"
        )
    runs = {text: id for text, id in tokenizer.added.items() if set(text) == {BLANK}}
    pairs = [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in model["merges"]]
    scores, tied = _scores(pairs, tokenizer.added)
    if tied:
        notes += (
            f"of {len(tied)} tokens, such as {_short(tied[0])}, llama.cpp joins the leftmost first, this tokenizer one before the other",
        )
    if crossing := next((text for text in scores if split and BLANK in text[1:]), None):
        raise refused(f"the token {_short(crossing)} across words", "none, as pre_tokenizer cuts before each word")
    _check_ways(vocabulary, set(pairs), scores, tokenizer.added)
    texts = {id: text for text, id in vocabulary.items() if text not in BYTES}
    texts |= {vocabulary[name]: name for name in BYTES}  # another text of the same id is its character
    named = _named(tokenizer, texts, dict.fromkeys((vocabulary[name] for name in BYTES), "BYTE"))
    for text, id in runs.items():  # blanks that were added as tokens are cut out of the text, where they are spaces
        named[id] = (" " * len(text), "USER_DEFINED")
    by_id = [float(scores.get(text, 0.0)) for text, _ in named]
    return Vocabulary("llama", named, scores=by_id, options={"add_space_prefix": prefix}, notes=notes)


def _blanks(data: dict[str, Json]) -> tuple[bool, bool, tuple[str, ...]]:
    """How a tokenizer.json of SentencePiece's BPE writes spaces: whether each text gets one in front, whether words are cut apart, notes."""
    normalizers, befores = _steps(data.get("normalizer")), _steps(data.get("pre_tokenizer"))
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    prefixed = {"type": "Prepend", "prepend": BLANK}
    metaspace = next((step for step in befores if step.get("type") == "Metaspace" and step.get("replacement", BLANK) == BLANK), None)
    idle = (
        [{"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}]
        if replaced in normalizers
        else []
    )
    strange = [step for step in normalizers if step not in (replaced, prefixed)]
    strange += [step for step in befores if step is not metaspace and step not in idle]
    if strange or not (metaspace or replaced in normalizers):
        found = f"the step {_short(strange[0])}" if strange else "no step that writes spaces as U+2581"
        raise refused(f"{found} in tokenizer.json", "SentencePiece's: spaces written as U+2581, perhaps one in front")
    if metaspace is None:
        return prefixed in normalizers, False, ()
    scheme = metaspace.get("prepend_scheme", "always")
    return prefixed in normalizers or scheme != "never", metaspace.get("split", True), () if scheme == "never" else (LATER_PREFIX,)


def _scores(pairs: list[tuple[str, str]], added: Collection[str]) -> tuple[dict[str, int], list[str]]:
    """Of each text that merges join: minus the number of its first merge, and the texts that share one because their merges stand among each
    other's, as those of Llama 2's runs of blanks do."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, pair in enumerate(pairs):
        if (text := "".join(pair)) not in added:
            first.setdefault(text, number)
            last[text] = number
    scores: dict[str, int] = {}
    tied, start, end, before = [], -1, -1, ""
    for text, number in first.items():  # in the order of their first merges
        if number < end:
            tied += [text] if before in tied else [before, text]
        else:
            start = number
        scores[text], end, before = -start, max(end, last[text]), text
    return scores, tied


def _check_ways(vocabulary: dict[str, int], pairs: set[tuple[str, str]], scores: dict[str, int], added: Collection[str]) -> None:
    """Raises ValueError if llama.cpp could join two tokens into a third which no merge joins."""
    for text in vocabulary:
        if text in added:  # cut out before anything is joined
            continue
        for left, right in _ways(text):
            if all(len(part) == 1 or part in scores for part in (left, right)) and (left, right) not in pairs:
                raise refused(
                    f"no merge of {_short(left)} and {_short(right)} in tokenizer.json, though {_short(text)} is a token",
                    "every way to cut a token into two others among the merges, as llama.cpp joins by the token alone",
                    "give it a vocabulary of SentencePiece",
                )  # fmt: skip


def _ways(text: str) -> Iterator[tuple[str, str]]:
    return ((text[:n], text[n:]) for n in range(1, len(text)))


def _unigram(data: dict[str, Json], tokenizer: Tokenizer) -> Vocabulary:
    """T5's: of all ways to cut a text into pieces llama.cpp takes the one with the highest sum of scores, as the library does."""
    model = data["model"]
    if model.get("byte_fallback"):
        raise refused("byte_fallback True in tokenizer.json", "False for a unigram model")
    charsmap, befores = b"", _steps(data.get("pre_tokenizer"))
    for step in _steps(data.get("normalizer")):
        if step.get("type") != "Precompiled":
            raise refused(f"the normalizer {_short(step)} in tokenizer.json", "none, or SentencePiece's Precompiled")
        charsmap = base64.b64decode(step["precompiled_charsmap"])
    merged = bool(befores) and befores[0].get("type") == "WhitespaceSplit"
    words = befores[1:] if merged else befores
    if len(words) != 1 or words[0].get("type") != "Metaspace" or words[0].get("replacement", BLANK) != BLANK or (merged and not charsmap):
        rule = "Metaspace, alone or, with a Precompiled normalizer, behind WhitespaceSplit"
        raise refused(f"the pre_tokenizer {_short(data.get('pre_tokenizer'))} in tokenizer.json", rule)
    scheme = words[0].get("prepend_scheme", "always")
    if merged and scheme != "always":
        raise refused(f"prepend_scheme {scheme!r} behind WhitespaceSplit", "'always'")
    texts = {id: text for id, (text, _) in enumerate(model["vocab"])}
    if crossing := next((text for text in texts.values() if words[0].get("split", True) and BLANK in text[1:]), None):
        raise refused(f"the token {_short(crossing)} across words", "none, as pre_tokenizer cuts before each word")
    unknown = {} if model.get("unk_id") is None else {model["unk_id"]: "UNKNOWN"}
    named = _named(tokenizer, texts, {})
    named = [(text, unknown.get(id, kind)) for id, (text, kind) in enumerate(named)]
    scores = [float(model["vocab"][id][1]) if id < len(model["vocab"]) else 0.0 for id in range(len(named))]
    options = {"add_space_prefix": scheme != "never", "remove_extra_whitespaces": merged}
    notes = () if merged or scheme == "never" else (LATER_PREFIX,)
    return Vocabulary("t5", named, scores=scores, options=options, charsmap=charsmap, notes=notes)


def _word_pieces(data: dict[str, Json], tokenizer: Tokenizer) -> Vocabulary:
    """BERT's, as llama.cpp wants them: U+2581 in front of pieces that begin a word, nothing in front of those within one."""
    model, normalizer = data["model"], data.get("normalizer") or {}
    for key in ("clean_text", "handle_chinese_chars"):
        if normalizer.get(key) is not True:
            raise refused(f"{key} {normalizer.get(key)!r} in tokenizer.json's normalizer", "BERT's, with True")
    if (data.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer" or model.get("continuing_subword_prefix") != "##":
        found = f"pre_tokenizer {_short(data.get('pre_tokenizer'))}, continuing_subword_prefix {model.get('continuing_subword_prefix')!r}"
        raise refused(found, "BertPreTokenizer and '##'")
    if inside := next((text for text in (tokenizer.special | tokenizer.added) if text.isalnum()), None):
        raise refused(f"the added token {inside!r} of letters alone", "one with signs, as [SEP]", "llama.cpp would find it within words")
    lower = normalizer.get("lowercase", True) is not False
    accents = normalizer.get("strip_accents")
    texts = {}
    for text, id in model["vocab"].items():
        texts[id] = text[2:] if text.startswith("##") and len(text) > 2 else BLANK + text
        if texts[id].startswith(BLANK) and ((text.startswith("##") and len(text) > 2) or not text):
            raise refused(
                f"the token {text!r}", "none that continues a word with U+2581", "llama.cpp writes the beginning of a word with it"
            )
    named = _named(tokenizer, texts, {})
    if tokenizer.unk_id is not None:  # text never becomes it by being written
        named[tokenizer.unk_id] = (named[tokenizer.unk_id][0], "CONTROL")
    if tokenizer.wrapping.start != (tokenizer.cls_id,) or tokenizer.wrapping.end != (tokenizer.sep_id,):
        found = f"a text between the ids {tokenizer.wrapping.start} and {tokenizer.wrapping.end}"
        raise refused(found, f"cls_token and sep_token, {tokenizer.cls_id} and {tokenizer.sep_id}")
    options = {"normalizer.lowercase": lower, "normalizer.strip_accents": lower if accents is None else accents}
    return Vocabulary("bert", named, options=options)


# ---- SentencePiece's own file ------------------------------------------------------------------------------------------------------------


def pieces_of_model(model: ModelFile, tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a SentencePiece model. Raises ValueError for options that llama.cpp does not have."""
    for key, wanted in {"escape_whitespaces": True, "treat_whitespace_as_suffix": False}.items():
        if getattr(model, key) is not wanted:
            raise refused(f"{key} {getattr(model, key)} in the SentencePiece model", f"{wanted}")
    texts = {id: text for id, (text, _, _) in enumerate(model.pieces)}
    kinds = {id: kind for id, (_, _, kind) in enumerate(model.pieces)}
    named = _named(tokenizer, texts, kinds)
    scores = [model.pieces[id][1] if id < len(model.pieces) else 0.0 for id in range(len(named))]
    options = {"add_space_prefix": model.add_dummy_prefix}
    if model.algorithm == UNIGRAM:
        if "BYTE" in kinds.values():
            raise refused("byte_fallback in the SentencePiece model", "none for a unigram model")
        options["remove_extra_whitespaces"] = model.remove_extra_whitespaces
        return Vocabulary("t5", named, scores=scores, options=options, charsmap=model.charsmap)
    if model.charsmap or model.remove_extra_whitespaces or list(kinds.values()).count("BYTE") < 256:
        found = (
            f"a BPE model with {list(kinds.values()).count('BYTE')} byte tokens, remove_extra_whitespaces {model.remove_extra_whitespaces}"
        )
        found += f" and {'a' if model.charsmap else 'no'} table of normal forms"
        raise refused(found, "256, False and none, as Llama 2's")
    return Vocabulary("llama", named, scores=scores, options=options)
