"""Tokenizers from files: ours, GPT-2's vocab.json with merges.txt, and the tokenizer.json of any published model.

    tokenizer = load_tokenizer("SmolLM2-135M/")

Byte-level BPE is run by our own `BPETokenizer` where that gives the ids of Hugging Face's `tokenizers` library on every text: a split pattern
that is known here, merges of which each makes one token in one way, no trimming around added tokens. Everything else (SentencePiece-like
vocabularies of Gemma or Llama 2, WordPiece, ...) is run by that library, an optional extra.
"""

from pathlib import Path
from reprlib import repr as _short  # repr, cut to what an error message can hold

import regex

from tinygpt.data.added_tokens import Added, check_vocabulary, read_added
from tinygpt.data.conventions import BERT, MARIAN, T5, Convention, convention_of
from tinygpt.data.library_tokenizer import LibraryTokenizer
from tinygpt.data.piece_files import load_pair, load_sentence_pieces, load_word_pieces
from tinygpt.data.tokenizer import (
    BYTE_TOKENS,
    CHARACTER_TO_BYTE,
    CHARACTERS_SPLIT,
    END_OF_TEXT,
    GPT2_SPLIT,
    UNKNOWN,
    BPETokenizer,
    CharacterTokenizer,
    Tokenizer,
    WordTokenizer,
    split_by,
    visible,
)
from tinygpt.data.wrapping import Wrapping
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.storage.checked_json import Json, read_json, read_json_object, read_text
from tinygpt.storage.safetensors import TEMPLATE_FOLDER, TOKENIZER_FILES

# How others cut text into words before BPE: GPT-4's pattern, with numbers cut after three digits (Llama 3, OLMo 2), after each (Qwen), or
# after two, with quantifiers that never give back (nanochat).
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT, QWEN_SPLIT = (_WORDS + digits + _SIGNS for digits in (r"\p{N}{1,3}", r"\p{N}"))
NANOCHAT_SPLIT = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
# SmolLM cuts out each digit, then cuts what is left by GPT-2's pattern; in one pattern, white space before a digit is as at the end of a text.
DIGITS_SPLIT = r"""\p{N}|'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"""
_PLAIN_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
_DIGITS = {"type": "Digits", "individual_digits": True}


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokenizer saved in a directory: tokenizer.json, or vocab.json and merges.txt with GPT-2's way to cut words, BERT's vocab.txt, T5's
    spiece.model, Marian's source.spm and target.spm. Ids are the file's.

    Tokens that were added later are read as well, from tokenizer.json, added_tokens.json, special_tokens_map.json and tokenizer_config.json;
    ids that end a generated text also from generation_config.json or config.json. The files are kept, and saved again unchanged.
    Raises FileNotFoundError if the files are not there, ValueError, naming the file, if they are no tokenizer or do not fit each other,
    ImportError for one that needs the library `tokenizers` or `sentencepiece`, where that is not installed.
    """
    directory = Path(directory)
    files = [directory / name for name in TOKENIZER_FILES if (directory / name).is_file()]
    data = {path.name: read_json_object(path) for path in files if path.suffix == ".json" and not path.name.endswith("vocab.json")}
    more, config = read_added(directory, data), data.get("tokenizer_config.json", {})
    model_config = directory / "config.json"
    convention = convention_of(config, read_json_object(model_config) if model_config.is_file() else {})
    vocab, merges, single = (directory / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
    apart = vocab.is_file() and merges.is_file()
    if convention is None and not single.is_file() and not apart:
        convention = _convention_by_files(directory, config)
    if convention is not None:
        more.assume(convention)
    if convention is MARIAN:
        tokenizer = load_pair(directory / "source.spm", config, more)
    elif single.is_file() and not (apart and _is_gpt2s(data["tokenizer.json"])):
        tokenizer = _load_single(single, data["tokenizer.json"], more)
    elif apart:
        tokenizer = _load_apart(vocab, merges, config, more)
    elif convention is BERT and (directory / "vocab.txt").is_file():
        tokenizer = load_word_pieces(directory / "vocab.txt", config, more)
    elif convention is T5 and (directory / "spiece.model").is_file():
        tokenizer = load_sentence_pieces(directory / "spiece.model", config, more)
    else:
        found = next((f"only {path.name}" for path in (vocab, merges) if path.is_file()), "no tokenizer")
        rule = "expected vocab.json and merges.txt, or tokenizer.json; write them with tokenizer.save(directory)"
        raise MissingFile(f"{directory}: {found}, {rule}")
    files += sorted(path for path in (directory / TEMPLATE_FOLDER).glob("*.jinja") if path.is_file())
    tokenizer.kept = {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}
    _read_roles(tokenizer, directory, data, more, convention)
    return tokenizer


def _convention_by_files(directory: Path, config: dict[str, Json]) -> Convention | None:
    """Whose vocabulary it is where no file says so. Raises ValueError where one does, and it is nobody's that can be read here."""
    by_file = {"vocab.txt": BERT, "spiece.model": T5, "source.spm": MARIAN}
    name = next((name for name in by_file if (directory / name).is_file()), None)
    if name is not None and (named := config.get("tokenizer_class")):
        rule = f"expected {by_file[name].name} for {name}, or tokenizer.json, which says how text is cut; not supported"
        raise InvalidInput(f"{directory / 'tokenizer_config.json'}: tokenizer_class {_short(named)}, {rule}")
    return by_file.get(name or "")


def _is_gpt2s(data: dict[str, Json]) -> bool:
    """Whether a tokenizer.json says no more than vocab.json and merges.txt next to it, and added tokens."""
    return not isinstance(data.get("model"), dict) or _split_of(data) == (GPT2_SPLIT, False)


def _read_roles(
    tokenizer: Tokenizer, directory: Path, data: dict[str, dict[str, Json]], more: Added, convention: Convention | None
) -> None:
    """Fills in which ids begin, end and pad texts."""
    tokenizer.set_roles(more.roles)
    if "tokenizer.json" in data and "model" in data["tokenizer.json"]:
        try:
            tokenizer.wrapping = Wrapping.read(data["tokenizer.json"].get("post_processor"))
        except (KeyError, IndexError, TypeError, ValueError):
            rule = "expected one of Hugging Face's tokenizers; restore the file"
            raise InvalidInput(
                f"{directory / 'tokenizer.json'}: post_processor {_short(data['tokenizer.json']['post_processor'])}, {rule}"
            ) from None
        if tokenizer.wrapping.end:  # which transformers' GPT2Tokenizer would leave out
            tokenizer.model_class = "PreTrainedTokenizerFast"
    elif convention is not None:
        tokenizer.wrapping = convention.wrapping(tokenizer.roles, tokenizer.special | tokenizer.added)
        tokenizer.model_class = convention.name
        if isinstance(tokenizer.target, Tokenizer) and tokenizer.target is not tokenizer:
            tokenizer.target.set_roles(more.roles, tokenizer.wrapping)
    elif data.get("tokenizer_config.json", {}).get("add_bos_token") is True and tokenizer.bos_id is not None:
        tokenizer.wrapping = Wrapping(start=(tokenizer.bos_id,))
    ends: list[Json] = []
    for path in (directory / name for name in ("generation_config.json", "config.json")):
        named = read_json_object(path).get("eos_token_id") if path.is_file() and not ends else None
        ends += named if isinstance(named, list) else [named]
        if any(not isinstance(end, int) for end in ends if end is not None):
            raise InvalidInput(f"{path}: eos_token_id {_short(named)}, expected an id or a list of ids; restore the file")
        ends = [end for end in ends if end is not None and end < tokenizer.n_vocab]  # GPT-2's in a model of another vocabulary: no token
    if tokenizer.eos_id is None:
        tokenizer.eos_id = next((end for end in ends if end in tokenizer.special.values()), None)
    tokenizer.end_ids = tuple(dict.fromkeys([*ends, *tokenizer.end_ids]))


def _load_apart(vocab: Path, merges: Path, config: dict[str, Json], more: Added) -> Tokenizer:
    """GPT-2's two files. Raises ValueError for those of a model that cuts words otherwise, which they do not say."""
    if str(config.get("tokenizer_class", "")).startswith("Qwen"):
        rule = "expected tokenizer.json with it, which says how Qwen cuts words; fetch it from the same model"
        raise InvalidInput(f"{vocab}: tokenizer_class {config['tokenizer_class']!r}, {rule}")
    lines = read_text(merges).split("\n")
    if lines[0].startswith("#version"):
        del lines[0]
    return _load_bpe(vocab, read_json(vocab), merges, [line for line in lines if line], more)


def _load_bpe(
    vocab_path: Path, vocabulary: Json, merges_path: Path, pairs: list[Json], more: Added, split: str = GPT2_SPLIT, nfc: bool = False
) -> BPETokenizer:
    """Raises ValueError for files that are damaged, and where the ids are not those of Hugging Face's library for certain."""
    for text, path in more.trimmed.items():
        if text in more.added or path == merges_path:
            raise InvalidInput(f"{path}: added token {text!r} with lstrip, rstrip or single_word, expected neither; not supported")
    for text in more.late if nfc else ():
        if not text.isspace():  # a combining character behind it would make something else of it, in normal form
            raise InvalidInput(
                f"{merges_path}: added token {text!r}, which is looked for in normal form C, expected white space; not supported"
            )
    merges = []
    for number, pair in enumerate(pairs, start=1):
        parts = pair.split(" ") if isinstance(pair, str) else pair
        try:
            left, right = (bytes([CHARACTER_TO_BYTE[character] for character in part]) for part in parts)
        except (TypeError, ValueError, KeyError):
            rule = "expected two tokens in GPT-2's letters for bytes; these are no merges of byte-level BPE"
            raise InvalidInput(f"{merges_path}: merge {number} is {_short(parts)}, {rule}") from None
        merges.append((left, right))
    vocabulary = check_vocabulary(vocab_path, vocabulary, more)
    ids = {token: vocabulary.get(visible(token)) for token in [*BYTE_TOKENS, *(left + right for left, right in merges)]}
    if missing := [visible(token) for token, id in ids.items() if id is None]:
        rule = f"expected one for each of the 256 bytes and {len(merges)} merges; take vocabulary and merges from the same tokenizer"
        raise InvalidInput(f"{vocab_path}: no id for {_short(missing[0])}, {rule}")
    special = dict(more.special)
    for text in vocabulary.keys() - {visible(token) for token in ids} - special.keys() - more.added.keys():
        # What the pattern cuts, like <s> or [PAD], no merge can make: a special token. Anything else should have been made by one.
        if len(regex.findall(split, text)) == 1:
            raise InvalidInput(f"{vocab_path}: {_short(text)} is made by no merge, expected none such; restore the missing merge")
        special[text] = vocabulary[text]
    try:
        made = BPETokenizer(
            merges, ids=ids, special=special, added=more.added, late=more.late, eos=more.end_among(special), split=split, nfc=nfc
        )  # fmt: skip
    except ValueError as error:
        raise InvalidInput(f"{merges_path}: {error}") from None
    made.lstrip = frozenset(more.lstrip)
    return made


def _split_of(data: dict[str, Json]) -> tuple[str, bool] | None:
    """The pattern by which a tokenizer.json of byte-level BPE cuts words, and whether it does so in normal form C; None: something else."""
    model, before = data["model"], data.get("pre_tokenizer")
    changes_ids = any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    normalizer = data.get("normalizer")
    if model.get("type") != "BPE" or changes_ids or normalizer not in (None, {"type": "NFC"}) or not isinstance(before, dict):
        return None
    steps = before.get("pretokenizers") if before.get("type") == "Sequence" else [before]
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        return None
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    if steps and steps[-1].get("type") == "ByteLevel":
        steps[-1] = {"use_regex": True, "add_prefix_space": True} | steps[-1]  # what the library takes where the file says nothing
    others = (LLAMA3_SPLIT, QWEN_SPLIT, NANOCHAT_SPLIT, DIGITS_SPLIT)  # each matches any character, so that both ways say the same
    known = {split: [[split_by(split, by_match=by_match), _PLAIN_BYTES] for by_match in (False, True)] for split in others}
    known[DIGITS_SPLIT].append([_DIGITS, _PLAIN_BYTES | {"use_regex": True}])
    known[GPT2_SPLIT] = [[_PLAIN_BYTES | {"use_regex": True}]]
    split = next((split for split, forms in known.items() if steps in forms), None)
    return None if split is None else (split, normalizer is not None)


def _load_single(path: Path, data: dict[str, Json], more: Added) -> Tokenizer:
    model = data.get("model")
    if not isinstance(model, dict):
        raise InvalidInput(f"{path}: no model, expected one of type 'WordLevel' or 'BPE'; this is no tokenizer file")
    kind = (model.get("type"), data.get("pre_tokenizer"), data.get("normalizer"))
    why = f"model {_short(kind[0])} with pre_tokenizer {_short(kind[1])}"
    if (how := _split_of(data)) and isinstance(model.get("merges"), list):
        try:
            return _load_bpe(path, model.get("vocab"), path, model["merges"], more, *how)
        except InvalidInput as error:  # damaged, or another reading of it than ours: the library knows
            why = str(error).removeprefix(f"{path}: ")
    split = next((s for s in (WordTokenizer.SPLIT, WordTokenizer.FORMER_SPLIT) if kind[1] == split_by(s, by_match=True)), None)
    if kind[0] != "WordLevel" or kind[2] is not None or not (split or kind[1] == CHARACTERS_SPLIT):
        return LibraryTokenizer(path, data, more.special, more.added, more.late, eos=more.end_among(more.special), why=why)
    check_vocabulary(path, model.get("vocab"), more)
    vocabulary = sorted(model["vocab"], key=model["vocab"].__getitem__)
    special = {text: id for text, id in more.special.items() if text not in model["vocab"]}
    if split:
        if (end := vocabulary[-2:]) != [UNKNOWN, END_OF_TEXT]:
            raise InvalidInput(f"{path}: ends with {_short(end)}, expected {UNKNOWN} and {END_OF_TEXT}; save the tokenizer again")
        return WordTokenizer(vocabulary[:-2], split=split, special=special, added=more.added)
    if vocabulary != sorted(vocabulary) or any(len(character) != 1 for character in vocabulary):
        raise InvalidInput(f"{path}: other tokens or another order, expected single characters by code point; save the tokenizer again")
    return CharacterTokenizer(vocabulary, special, more.added)
