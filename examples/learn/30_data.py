"""30. Data: from a heap of texts to a corpus: filters, copies, privacy, mixture, and what it is worth.

    python examples/learn/30_data.py

Seconds. Each rule in a few lines, on a heap small enough to read; then a model of counts trained on clean and on dirty text.
"""

import hashlib
import re
from itertools import pairwise

import numpy as np
from ngrams import Counts, KneserNey, as_ids, nats, paragraphs
from show import heading, say

HEAP = {
    "manual": "The for statement is used to iterate over the elements of a sequence, such as a string, a tuple or a list, in order.",
    "the same": "The  for statement is used to iterate over the elements of a sequence, such as a string, a tuple or a list, in order. ",
    "nearly": "The for statement is used to iterate over the elements of any sequence, such as a string, a tuple or a list, in order.",
    "menu": "Home | Products | Login | Sign up | Cookies | Home | Products | Login",
    "shouting": "BUY NOW!!! $$$ >>> CLICK <<< !!! $$$ 100% FREE ### !!!",
    "stutter": "read more read more read more read more read more read more read more read more",
    "short": "See above.",
    "mail": "Mail anna.berg@example.org about card 4111111111111111 or order 4111111111111112, in the next two days.",
}

heading("rules: what almost no good text has (numbers as in Gopher, Rae et al. 2021, but for this heap's size)")


def broken_rule(text):
    words = text.split()
    if len(words) < 5:
        return f"{len(words)} words, fewer than 5"
    signs = sum(not any(c.isalpha() for c in word) for word in words) / len(words)
    if signs > 0.2:
        return f"{signs:.0%} of its words have no letter, more than 20 %"
    pairs = list(pairwise(words))
    repeated = 1 - len(set(pairs)) / len(pairs)
    if repeated > 0.2:
        return f"{repeated:.0%} of its pairs of words are repeated, more than 20 %"
    return None


kept = {}
for name, text in HEAP.items():
    reason = broken_rule(text)
    print(f"  {name:<9} {'removed: ' + reason if reason else 'kept'}")
    if not reason:
        kept[name] = text
say("A filter by a trained classifier has the same form: a number for each text, and a limit.")

heading("exact copies: equal after small letters and single spaces; one number (a hash) per text is enough")
seen = {}
for name, text in list(kept.items()):
    digest = hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:12]
    print(f"  {name:<9} {digest}", f"a copy of {seen[digest]!r}: removed" if digest in seen else "")
    if digest in seen:
        del kept[name]
    seen.setdefault(digest, name)

heading("near copies: the share of common runs of three words (Jaccard: common runs by all runs)")


def runs(text):
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


names = list(kept)
for i, name in enumerate(names):
    for other in [other for other in names[:i] if other in kept]:
        a, b = runs(kept[name]), runs(kept[other])
        alike = len(a & b) / len(a | b)
        print(f"  {name:<9} and {other:<9} {len(a & b):2d} of {len(a | b):2d} runs: {alike:.2f}", "removed" if alike > 0.6 else "")
        if alike > 0.6:
            del kept[name]
            break
say("With a million texts nobody compares all pairs: MinHash keeps a few numbers per text that agree as often as the runs do.")

heading("privacy: what has a form can be found; digits that pass the card's check sum (Luhn) are a card, others are not")


def luhn(digits):
    doubled = [sum(divmod(2 * int(d), 10)) if i % 2 else int(d) for i, d in enumerate(reversed(digits))]
    print(f"  {digits}, every second one doubled: {'+'.join(map(str, reversed(doubled)))} = {sum(doubled)}")
    return sum(doubled) % 10 == 0  # a card's sum is a multiple of 10


def card(match):
    return "[CARD]" if luhn(re.sub(r"\D", "", match[0])) else match[0]


kept["mail"] = re.sub(r"\b(?:\d[ -]?){15}\d\b", card, re.sub(r"[\w.]+@[\w.]+\w", "[EMAIL]", kept["mail"]))
print(" ", kept["mail"])

heading("mixture: how often each source is seen. GPT-3's, 300 billion tokens drawn")
for source, tokens, weight in (("web", 410, 60), ("linked pages", 19, 22), ("books 1", 12, 8), ("books 2", 55, 8), ("Wikipedia", 3, 3)):
    print(f"  {source:<13} {tokens:3d} billion tokens, share {weight:2d} %: seen {300 * weight / 100 / tokens:4.1f} times")
say("The shares add up to 101 by rounding. What is thought good is seen several times, most of the web not once.")

heading("what it is worth: a model of word pairs, the same number of words to learn from, tested on clean text")
texts = [" ".join(re.findall(r"[a-z']+|[.,]", text.lower())) for text in paragraphs()]
texts = [text for text in texts if len(text.split()) > 8]
rng = np.random.default_rng(0)
rng.shuffle(texts)
test, clean = texts[: len(texts) // 5], texts[len(texts) // 5 :]
vocabulary = sorted({word for text in clean for word in text.split()})
junk = [" ".join(rng.choice(vocabulary, 40)) for _ in clean]
copies = [clean[i] for i in rng.integers(0, 20, len(clean))]  # twenty texts, again and again
budget = sum(len(text.split()) for text in clean) // 2
test_ids = as_ids(" ".join(test).split(), vocabulary)
for title, parts in (("clean", (clean,)), ("half of it copies", (clean, copies)), ("half of it junk", (clean, junk))):
    mixed = " ".join(text for several in zip(*parts, strict=True) for text in several).split()[:budget]
    model = KneserNey(Counts(as_ids(mixed, vocabulary), 2, len(vocabulary) + 1))
    loss = nats(model, test_ids, 2)
    print(f"  {title:<18} {len(mixed):,} words: {loss:.3f} nats per word of clean text, perplexity {np.exp(loss):.0f}")
say("`python -m tinygpt curate` does all this with files of any size and reports what each step removed and why.")
