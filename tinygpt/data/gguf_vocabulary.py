"""A tokenizer as GGUF has it, for llama.cpp: tokens, merges or scores, the rule that cuts text into words, and the chat template.

llama.cpp knows how to cut words by a name, `tokenizer.ggml.pre`, not by a pattern, and refuses a file with a name that it does not know.
Vocabularies of other kinds than byte-level BPE: `tinygpt/data/gguf_pieces.py`.
"""

from collections import Counter

from tinygpt.data.gguf_pieces import Vocabulary, pieces_of_json, pieces_of_model
from tinygpt.data.jinja_templates import template_text
from tinygpt.data.library_tokenizer import LibraryTokenizer
from tinygpt.data.sentence_pieces import SentencePieceTokenizer
from tinygpt.data.tokenizer import GPT2_SPLIT, BPETokenizer, Tokenizer, visible
from tinygpt.data.tokenizer_files import DIGITS_SPLIT, LLAMA3_SPLIT, NANOCHAT_SPLIT, QWEN_SPLIT
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json

PRE_TOKENIZERS = {GPT2_SPLIT: "gpt-2", LLAMA3_SPLIT: "llama-bpe", QWEN_SPLIT: "qwen2", DIGITS_SPLIT: "smollm"}
"""By the pattern that cuts words, llama.cpp's name for it."""


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    """A tokenizer as llama.cpp runs it. Raises ValueError, saying why, for one that llama.cpp would run otherwise."""
    if len(tokenizer.wrapping.start) > 1 or len(tokenizer.wrapping.end) > 1:
        found = f"texts stand between the ids {tokenizer.wrapping.start} and {tokenizer.wrapping.end}"
        raise InvalidInput(f"export: {found}, expected one at most on each side; llama.cpp adds no more")
    if isinstance(tokenizer, BPETokenizer):
        return _byte_level(tokenizer)
    if isinstance(tokenizer, LibraryTokenizer):
        return pieces_of_json(tokenizer.data, tokenizer)
    if isinstance(tokenizer, SentencePieceTokenizer) and tokenizer.target is tokenizer:
        return pieces_of_model(tokenizer.file, tokenizer)
    rule = "expected byte-level BPE ('bpe' or 'gpt2'), SentencePiece or word pieces"
    raise InvalidInput(f"export: a tokenizer of kind {tokenizer.kind!r}, {rule}; train with --tokenizer bpe")


def _byte_level(tokenizer: BPETokenizer) -> Vocabulary:
    if tokenizer.split not in PRE_TOKENIZERS:
        found = "nanochat's pattern" if tokenizer.split == NANOCHAT_SPLIT else f"the pattern {tokenizer.split!r:.60}"
        rule = f"expected a rule that llama.cpp has: {', '.join(PRE_TOKENIZERS.values())}"
        raise InvalidInput(f"export: words are cut by {found}, {rule}; train a tokenizer with one of them")
    named = {id: (text, "USER_DEFINED") for text, id in tokenizer.added.items()}
    named |= {id: (text, "CONTROL") for text, id in tokenizer.special.items()}
    tokens = [named.get(id) or (visible(tokenizer.token_bytes(id)), "NORMAL") for id in range(tokenizer.n_vocab)]
    merges = [f"{visible(left)} {visible(right)}" for left, right in tokenizer.merges]
    pre, notes = PRE_TOKENIZERS[tokenizer.split], (_NFC,) if tokenizer.nfc else ()
    return Vocabulary("gpt2", tokens, pre=pre, merges=merges, options={"add_space_prefix": False}, notes=notes)


_NFC = "llama.cpp does not bring text into Unicode's normal form C, as this tokenizer does; give it such text"


def write_vocabulary(writer: Json, tokenizer: Tokenizer, n_rows: int) -> None:
    """Adds a tokenizer to gguf's writer.

    n_rows   of the model's embedding: ids without a token are filled up, special tokens beyond them (an image's) left out
    Raises as `vocabulary_of`, and ValueError for two tokens of the same text.
    """
    from gguf import TokenType

    made = vocabulary_of(tokenizer)
    tokens = made.tokens[:n_rows] + [(f"[PAD{id}]", "UNUSED") for id in range(len(made.tokens), n_rows)]
    repeated = [text for text, count in Counter(text for text, _ in tokens).items() if count > 1]
    if repeated:
        rule = "expected each text once, which llama.cpp insists on; rename the added token"
        raise InvalidInput(f"export: two tokens are written {repeated[0]!r}, {rule}")
    writer.add_tokenizer_model(made.model)
    writer.add_tokenizer_pre(made.pre)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([TokenType[kind] for _, kind in tokens])
    if made.scores is not None:
        writer.add_token_scores((made.scores + [0.0] * n_rows)[:n_rows])
    if made.merges is not None:
        writer.add_token_merges(made.merges)
    if made.charsmap:
        writer.add_precompiled_charsmap(made.charsmap)
    for name, value in made.options.items():
        writer.add_bool(f"tokenizer.ggml.{name}", value)
    _write_ends(writer, tokenizer, n_rows)
    if template := chat_template(tokenizer):
        writer.add_chat_template(template)


def _write_ends(writer: Json, tokenizer: Tokenizer, n_rows: int) -> None:
    """Ids with a part to play, and whether a text begins and ends with one; llama.cpp's own guesses are overruled."""
    start, end = tokenizer.wrapping.start, tokenizer.wrapping.end
    ends = [id for id in tokenizer.end_ids if id < n_rows]
    eos = next(iter(end), tokenizer.eos_id)
    begin = next((id for id in (*start, tokenizer.bos_id, tokenizer.cls_id, tokenizer.eos_id) if id is not None and id < n_rows), None)
    adders = [
        (writer.add_bos_token_id, begin),
        (writer.add_eos_token_id, eos),
        (writer.add_eot_token_id, next((id for id in ends if id != eos), None)),
        (writer.add_pad_token_id, tokenizer.pad_id),
        (writer.add_unk_token_id, tokenizer.unk_id),
        (writer.add_sep_token_id, tokenizer.sep_id),
        (writer.add_mask_token_id, tokenizer.mask_id),
    ]
    for add, id in adders:
        if id is not None and id < n_rows:
            add(id)
    writer.add_add_bos_token(bool(start) and begin in start)
    writer.add_add_eos_token(bool(end))


def chat_template(tokenizer: Tokenizer) -> str:
    """The chat template among the files that a tokenizer was read from; "" without one."""
    return template_text(tokenizer.kept) or ""
