"""Small tokenizers of each kind that published models have, trained by Hugging Face's library."""

import json
import random
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tinygpt.data.tokenizer_files import LLAMA3_SPLIT, NANOCHAT_SPLIT, QWEN_SPLIT

WORDS = "the cat don't sat on 1234 mats THE'S we'LL e\u0301cole \u0928\u092e\u0938\u094d\u0924\u0947 \u05e9\u05b8 caf\u00e9 😀 ... x_1 <s> Ⅷ ½ \u017f's".split()
GAPS = [" ", " ", "  ", "   ", "\n", "\n\n", " \n", "\t", "\r\n", "\u3000", "\u00a0", "", ",", "5", "'"]
# Characters of Python's version of Unicode: the two sides know newer ones or not.
KNOWN = [chr(c) for c in range(0x110000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]


def drawn_texts(seed, n):
    """Words of several scripts, white space and single characters, in random order."""
    rng = random.Random(seed)
    pieces = [lambda: rng.choice(WORDS) + rng.choice(GAPS), lambda: KNOWN[rng.randrange(rng.choice([128, 500, len(KNOWN)]))]]
    return ["".join(rng.choice(pieces)() for _ in range(rng.randrange(30))) for _ in range(n)]


def byte_level(split, *, normalizer=None, start=(), special=("<|endoftext|>",), added=(), ignore_merges=False):
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer, made.normalizer, made.decoder = split, normalizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(drawn_texts(0, 400), trainer)
    made.add_tokens(list(added))
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    if start:
        template = processors.TemplateProcessing(single=f"{start}:0 $A:0", special_tokens=[(start, made.token_to_id(start))])
        made.post_processor = processors.Sequence([made.post_processor, template])
    return made


def by_pattern(pattern, behavior="isolated"):
    bytes_of_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior, invert=behavior == "removed"), bytes_of_words])


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPACES = [AddedToken(" " * n, normalized=True) for n in (6, 5, 4, 3)]
CHAT = [AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)]


def converted():
    """As Llama 3's file was made from its ranks: every way to cut a token into two others is a merge."""
    data = json.loads(byte_level(by_pattern(LLAMA3_SPLIT), ignore_merges=True).to_str())
    vocabulary = data["model"]["vocab"]
    ways = [(token[:n], token[n:]) for token in sorted(vocabulary, key=vocabulary.__getitem__) for n in range(1, len(token))]
    data["model"]["merges"] = [list(way) for way in ways if way[0] in vocabulary and way[1] in vocabulary]
    return Tokenizer.from_str(json.dumps(data))


def sentence_piece(model, *, prepend, start=""):
    """Blanks as \u2581, characters that are not in the vocabulary as their bytes: Gemma; with `prepend` Llama 2."""
    steps = [normalizers.Replace(" ", "\u2581")]
    made = Tokenizer(model)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *steps] if prepend else steps)
    made.pre_tokenizer = None if prepend else pre_tokenizers.Split(" ", "merged_with_previous")
    back = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *([decoders.Strip(" ", 1, 0)] if prepend else [])]
    made.decoder = decoders.Sequence(back)
    return finished(made, start)


def unigram():
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.normalizer = normalizers.NFKC()
    return finished(made, "")


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def finished(made, start):
    """Trained, with a token for each byte, which are ordinary entries of the vocabulary in published files."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *BYTES]
    if isinstance(made.model, models.Unigram):
        trainer = trainers.UnigramTrainer(vocab_size=700, special_tokens=special, unk_token="<unk>", show_progress=False)
    else:
        trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False, max_token_length=16)
    texts = [text for text in drawn_texts(0, 400) if text.isascii()]
    made.train_from_iterator(texts, trainer)
    data = json.loads(made.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in BYTES]
    data["model"] |= {"byte_fallback": True, **({"unk_token": "<unk>", "fuse_unk": True} if data["model"]["type"] == "BPE" else {})}
    made = Tokenizer.from_str(json.dumps(data))
    if start:
        made.post_processor = processors.TemplateProcessing(single=f"{start} $A", special_tokens=[(start, made.token_to_id(start))])
    return made


def word_piece():
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer, made.decoder = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
    )
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(drawn_texts(0, 200), trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False))
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


OURS = {  # run by our own BPE
    "gpt2": lambda: byte_level(GPT2),
    "llama3": lambda: byte_level(by_pattern(LLAMA3_SPLIT), start="<|begin|>", special=("<|begin|>", "<|endoftext|>"), ignore_merges=True),
    "olmo2": lambda: byte_level(by_pattern(LLAMA3_SPLIT, "removed")),
    "qwen": lambda: byte_level(by_pattern(QWEN_SPLIT), normalizer=normalizers.NFC(), added=CHAT),
    "nanochat": lambda: byte_level(by_pattern(NANOCHAT_SPLIT)),
    "smollm": lambda: byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2]), added=["new\nway", "new"]),
    "pythia": lambda: byte_level(GPT2, normalizer=normalizers.NFC(), added=SPACES),
}
LIBRARYS = {
    "gemma": lambda: sentence_piece(models.BPE(), prepend=False, start="<bos>"),
    "llama2": lambda: sentence_piece(models.BPE(), prepend=True, start="<bos>"),
    "llama3, converted": converted,
    "unigram": unigram,
    "word pieces": word_piece,
    "trimmed": lambda: byte_level(GPT2, added=[AddedToken("<mask>", lstrip=True)]),
    "prefix space": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "another pattern": lambda: byte_level(by_pattern(r"\w+|\W")),
}
