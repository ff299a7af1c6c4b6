"""A tokenizer as GGUF has it, for llama.cpp: tokens, merges, the rule that cuts text into words, and the chat template.

llama.cpp knows how to cut words by a name, `tokenizer.ggml.pre`, not by a pattern, and refuses a file with a name that it does not know.
"""

import json
from collections import Counter

from tinygpt.data.tokenizer import GPT2_SPLIT, BPETokenizer, Tokenizer, visible
from tinygpt.data.tokenizer_files import DIGITS_SPLIT, LLAMA3_SPLIT, NANOCHAT_SPLIT, QWEN_SPLIT
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json

PRE_TOKENIZERS = {GPT2_SPLIT: "gpt-2", LLAMA3_SPLIT: "llama-bpe", QWEN_SPLIT: "qwen2", DIGITS_SPLIT: "smollm"}
"""By the pattern that cuts words, llama.cpp's name for it."""


def write_vocabulary(writer: Json, tokenizer: Tokenizer, n_rows: int) -> None:
    """Adds a tokenizer to gguf's writer.

    n_rows   of the model's embedding: ids without a token are filled up, special tokens beyond them (an image's) left out
    Raises ValueError for a tokenizer that is no byte-level BPE, or cuts words by a rule that llama.cpp does not have.
    """
    from gguf import TokenType

    pre = pre_tokenizer(tokenizer)
    assert isinstance(tokenizer, BPETokenizer)
    named = {id: (text, TokenType.USER_DEFINED) for text, id in tokenizer.added.items()}
    named |= {id: (text, TokenType.CONTROL) for text, id in tokenizer.special.items()}
    tokens = [named.get(id) or (visible(tokenizer.token_bytes(id)), TokenType.NORMAL) for id in range(min(n_rows, tokenizer.n_vocab))]
    tokens += [(f"[PAD{id}]", TokenType.UNUSED) for id in range(len(tokens), n_rows)]
    repeated = [text for text, count in Counter(text for text, _ in tokens).items() if count > 1]
    if repeated:
        rule = "expected each text once, which llama.cpp insists on; rename the added token"
        raise InvalidInput(f"export: two tokens are written {repeated[0]!r}, {rule}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_token_merges([f"{visible(left)} {visible(right)}" for left, right in tokenizer.merges])
    _write_ends(writer, tokenizer, n_rows)
    if template := chat_template(tokenizer):
        writer.add_chat_template(template)


def _write_ends(writer: Json, tokenizer: Tokenizer, n_rows: int) -> None:
    """Ids with a part to play, and whether a text begins with one; llama.cpp's own guesses are overruled."""
    ends = [id for id in tokenizer.end_ids if id < n_rows]
    begin = next((id for id in (tokenizer.bos_id, tokenizer.eos_id) if id is not None and id < n_rows), None)
    adders = [
        (writer.add_bos_token_id, begin),
        (writer.add_eos_token_id, tokenizer.eos_id),
        (writer.add_eot_token_id, next((id for id in ends if id != tokenizer.eos_id), None)),
        (writer.add_pad_token_id, tokenizer.pad_id),
        (writer.add_unk_token_id, tokenizer.unk_id),
    ]
    for add, id in adders:
        if id is not None and id < n_rows:
            add(id)
    writer.add_add_bos_token(begin is not None and tokenizer.start == (begin,))
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)


def pre_tokenizer(tokenizer: Tokenizer) -> str:
    """llama.cpp's name for the rule by which a tokenizer cuts words. Raises ValueError where it has none."""
    if not isinstance(tokenizer, BPETokenizer):
        fix = "train with --tokenizer bpe, or give a published model's own files to llama.cpp's convert_hf_to_gguf.py"
        raise InvalidInput(f"export: a tokenizer of kind {tokenizer.kind!r}, expected byte-level BPE ('bpe' or 'gpt2'); {fix}")
    if tokenizer.split not in PRE_TOKENIZERS:
        found = "nanochat's pattern" if tokenizer.split == NANOCHAT_SPLIT else f"the pattern {tokenizer.split!r:.60}"
        rule = f"expected a rule that llama.cpp has: {', '.join(PRE_TOKENIZERS.values())}"
        raise InvalidInput(f"export: words are cut by {found}, {rule}; train a tokenizer with one of them")
    if tokenizer.start and tokenizer.start != (tokenizer.bos_id,):
        raise InvalidInput(f"export: texts begin with the ids {tokenizer.start}, expected one at most, bos_token; not supported")
    return PRE_TOKENIZERS[tokenizer.split]


def chat_template(tokenizer: Tokenizer) -> str:
    """The chat template among the files that a tokenizer was read from: a file of its own, else tokenizer_config.json's; "" without one."""
    kept = tokenizer.kept
    if "chat_template.jinja" in kept:
        return kept["chat_template.jinja"].decode()
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = json.loads(kept[name]).get("chat_template") if name in kept else None
        if isinstance(found, list):  # several by name
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
        if isinstance(found, str):
            return found
    return ""
