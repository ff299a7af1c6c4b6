"""2. Tokens: a model reads numbers, so text is cut into pieces and each piece gets a number.

    python examples/learn/02_tokens.py

A second. Three ways to cut the same text: into words, into characters, and by byte-pair encoding (BPE), which starts from single bytes and
learns which neighbors to join. Look at what each does with a word that it has never seen, and at how many tokens each needs.
"""

import re
from collections import Counter
from itertools import pairwise

from show import heading, say

from tinygpt.data.tokenizer import END_OF_TEXT, BPETokenizer, CharacterTokenizer, WordTokenizer, count_words, learn_merges

TEXT = "the low lamp is lower than the tower. the newest tower is the lowest. show the new lamp."
NEW = "the slower lamp"  # "slower" is not in TEXT


def pieces(tokenizer, ids):
    return [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]


heading("words: one token per word; the vocabulary is the list of words seen, in alphabetical order")
words = WordTokenizer.train(TEXT)
for i in range(words.n_vocab):
    print(f"{i:3d} {words.token_bytes(i).decode():<13}", end="\n" if i % 5 == 4 else "")
print()
print("text:  ", TEXT[:36])
print("ids:   ", words.encode(TEXT[:36]))
print("back:  ", words.decode(words.encode(TEXT[:36])))

print("new:   ", NEW, "->", words.encode(NEW), "->", words.decode(words.encode(NEW)), " (what the word was is lost)")

print(
    "ids of low, lower, lowest, and of two that mean other things:", [words.encode(w)[0] for w in ("low", "lower", "lowest", "is", "lamp")]
)
print("lamp (2) is as near to low (3) as lower (4): an id is a rank in the alphabet, no meaning")

code = "if low:\n    show(lamp)"
print("white space dropped:", code.split(), " (cannot be put together again)")
print("white space kept:   ", re.findall(r"\s+|\w+|[^\w\s]", code))

two = f"show the lamp{END_OF_TEXT}show the tower"  # documents in one stream are kept apart by a special token
print("two documents:", words.encode(two, allow_special=True), f"({words.eos_id} is {END_OF_TEXT})")

heading("characters: a tiny vocabulary, nothing is unknown that is spelled with known letters, but sequences are long")
characters = CharacterTokenizer.train(TEXT)
print(f"vocabulary of {characters.n_vocab}: {characters.characters!r}")
print("new:   ", NEW, "->", characters.encode(NEW))

heading("byte-pair encoding: start with single bytes, then join the most frequent pair of neighbors, again and again")
# The text is cut into words first (a space belongs to the word after it), because BPE never joins across words.
counts = count_words(TEXT)
say("words and counts, a space written as _: " + ", ".join(f"{n} x {word.decode().replace(' ', '_')}" for word, n in counts.items()))
spelled = {word: [bytes([b]) for b in word] for word in counts}  # each word as its tokens: first, its bytes


def join(tokens, left, right):
    out = []
    for token in tokens:
        if out and out[-1] == left and token == right:
            out[-1] = left + right
        else:
            out.append(token)
    return out


def count_pairs():
    pairs = {}
    for word, tokens in spelled.items():
        for pair in pairwise(tokens):
            pairs[pair] = pairs.get(pair, 0) + counts[word]
    return pairs


def spell(word):
    return "|".join(token.decode() for token in spelled[word]).replace(" ", "_")


learned = list(learn_merges(counts, n_merges=10))  # the project's own, to compare with; fewer where no pair occurs twice
for number in range(len(learned)):
    pairs = count_pairs()
    best = min(pairs, key=lambda pair: (-pairs[pair], pair))  # most frequent; of equals, the first in the order of bytes
    if number == 6:
        say("all words now: " + ", ".join(f"{n} x {spell(word)}" for word, n in counts.items()))
    assert (best, pairs[best]) == learned[number]
    spelled = {word: join(tokens, *best) for word, tokens in spelled.items()}
    names = [part.decode().replace(" ", "_") for part in best]
    print(f"merge {number + 1:2d}: {names[0]:4} + {names[1]:3} stood side by side {pairs[best]} times;  _lower is {spell(b' lower')}")

heading("it is a method of compression (Gage 1994): aaabdaaabac, 11 signs")
tokens, signs = [bytes([b]) for b in b"aaabdaaabac"], {}
for sign, ((left, right), _) in zip("XYZ", learn_merges(Counter({b"aaabdaaabac": 1}), 3), strict=False):
    tokens, signs[left + right] = join(tokens, left, right), sign
    rule = "".join(signs.get(t, t.decode()) for t in (left, right))
    print(f"  {sign} = {rule}: {len(tokens)} signs, {''.join(signs.get(t, t.decode()) for t in tokens)}")

heading("the same, complete: 256 bytes, the merges, and the end-of-text token")
bpe = BPETokenizer.train(TEXT, vocab_size := 290)
full = " After them no pair occurs twice." * (bpe.n_vocab < vocab_size)
print(f"asked for {vocab_size}, got {bpe.n_vocab}: 256 bytes + {len(bpe.merges)} merges + 1.{full}")
print(f"GPT-2's: 256 bytes + 50,000 merges + 1 = {256 + 50_000 + 1:,}")
print("new:   ", NEW, "->", "|".join(pieces(bpe, bpe.encode(NEW))), "-> nothing is lost:", bpe.decode(bpe.encode(NEW)) == NEW)
say(
    '("the" at the start is three tokens: only " the", with its space, was frequent enough to become one.) '
    "The first BPE for translation put a mark at the end of each word, so that est</w> of lowest differs from the est of estimate. "
    "Here the space at the front of a word tells where words begin: no mark is needed, and decoding is putting pieces together."
)
print(f"any text at all: añb ☃ -> {len(bpe.encode('añb ☃'))} tokens, its bytes (2 for ñ, 3 for ☃) ->", bpe.decode(bpe.encode("añb ☃")))

heading("how long the same text becomes, and how large the vocabulary is")
for name, tokenizer in (("words", words), ("characters", characters), ("BPE", bpe)):
    print(f"{name:<11} {len(tokenizer.encode(TEXT)):3d} tokens, vocabulary {tokenizer.n_vocab:3d}")
say(
    "Here words look best, because the text has only twelve different ones. A large text never stops bringing new words, and in "
    "characters every text is long. Every position costs the model time, every entry of the vocabulary memory (a row of numbers, script 4): with "
    "BPE the number of merges chooses between the two."
)
