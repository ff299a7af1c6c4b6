"""24. Before neural networks: rules, and counting. Where word-by-word rules fail; n-grams, smoothing, and what counts cannot know.

    python examples/learn/24_n_grams.py
    python examples/learn/24_n_grams.py --plot n-grams.png           # with matplotlib: pip install -e ".[plot]"

Seconds. The text is Python's language manual in words, each paragraph once. The counts and their formulas are in ngrams.py.
"""

import argparse
import math
import re
from collections import Counter

import numpy as np
from ngrams import Counts, KneserNey, as_ids, grams, nats, paragraphs
from show import heading, say
from train import draw_panels

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw perplexity by n, and by how much of a context was seen, into this picture")
args = parser.parse_args()

heading("rules: English to German, word by word, then two rules")
WORDS = dict(zip("the a old red house book bank river i is of and have can read seen".split(),
                 "das ein alt rot Haus Buch Bank Fluss ich ist von und habe kann gelesen gesehen".split(), strict=True))  # fmt: skip
RULES = [(r"\b(alt|rot) (?=[A-Z])", r"\1e "), (r"\b(gelesen|gesehen) (.+)", r"\2 \1")]
SENTENCES = {
    "the house is old": "das Haus ist alt",
    "the old house is red": "das alte Haus ist rot",
    "i have read the book": "ich habe das Buch gelesen",
    "a red house": "ein rotes Haus",
    "i can read the book": "ich kann das Buch lesen",
    "i have seen the house and read the book": "ich habe das Haus gesehen und das Buch gelesen",
    "the bank of the river is old": "das Ufer des Flusses ist alt",
}
for n, title in enumerate(("words only", "+ adjective before a noun gets -e", "+ participle goes to the end")):
    found = {english: " ".join(WORDS[word] for word in english.split()) for english in SENTENCES}
    for rule in RULES[:n]:
        found = {english: re.sub(*rule, german) for english, german in found.items()}
    print(f"{title:<36} {sum(found[e] == german for e, german in SENTENCES.items())} of {len(SENTENCES)} right")
for english, german in SENTENCES.items():
    if found[english] != german:
        print(f"  {english}\n      rules: {found[english]}\n      right: {german}")
say(
    "Each rule has exceptions, which need rules: -es after `ein`, an infinitive after `can`, where a clause ends. `bank` needs the meaning of the sentence."
)

heading("counts: a text of four sentences, in pairs of words (2-grams)")
TEXT = "the dog sleeps . the dog eats . the cat sleeps . a bird sings .".split()
tiny = Counts(as_ids(TEXT, known := sorted(set(TEXT))), 2, len(known))
print(f"{'':<17}counts          add-one          interpolated   Kneser-Ney")
for first, second in (("the", "dog"), ("dog", "eats"), ("cat", "eats"), ("cat", "sings")):
    c, t = as_ids([first, second], known)
    n, of = tiny.runs[2][c, t], tiny.after[1][c,]
    values = [p((c,), t) for p in (tiny.share, tiny.add_one, tiny.interpolated, KneserNey(tiny))]
    cells = f"{n} / {of} = {values[0]:.3f}   {n + 1} / {of + len(known):>2} = {values[1]:.3f}   {values[2]:12.3f}   {values[3]:10.3f}"
    print(f"P({second:<5} | {first})   {cells}")
say(
    "By counts, a pair that was not seen has probability 0, and one of them makes the perplexity of any text infinite. Smoothing moves some "
    "probability to the unseen: the same for every pair (add-one), or by how likely the word is after a shorter context."
)


def words(parts):
    return re.findall(r"[a-z]+|\d+|[^\sa-z\d]", "\n".join(parts).lower())


parts = paragraphs()
first_parts = parts[: len(parts) * 9 // 10]
training, held_out = words(first_parts), words(parts[len(first_parts) :])
known = [word for word, n in Counter(training).items() if n > 1]
ids, other, V = as_ids(training, known), as_ids(held_out, known), len(known) + 1  # id 0: a word seen once, or never
heading(f"{len(ids):,} words of {V:,} kinds; perplexity of {len(other):,} other words")
print(f"{'n':>2}{'n-grams':>10}{'seen':>8}{'context':>9}{'counts':>9}{'add-one':>9}{'interpolated':>14}{'Kneser-Ney':>12}")
perplexity, models = [], {}
for n in range(1, 6):
    counts = Counts(ids, n, V)
    models[n] = KneserNey(counts)
    seen, context = np.mean([(run in counts.runs[n], run[:-1] in counts.after[n - 1]) for run in grams(other, n)], axis=0)
    row = [math.exp(nats(p, other, n)) for p in (counts.share, counts.add_one, counts.interpolated, models[n])]
    perplexity.append(row)
    print(f"{n:>2}{len(counts.runs[n]):>10,}{seen:>8.1%}{context:>9.1%}{row[0]:9.1f}{row[1]:9.1f}{row[2]:14.1f}{row[3]:12.1f}")
say(
    "`seen`: n-grams of the other text that were counted; `context`: their first n - 1 words. Add-one gets worse with n: it gives V imagined "
    "words to each context, and most contexts have one or two real ones. Interpolated is worst at n = 1, where half of it is the same for all words."
)

heading("text sampled from n-grams, Kneser-Ney")
rng, names = np.random.default_rng(0), ["<other>", *known]
for n in (1, 2, 3, 5):
    drawn = as_ids(["the"], known)
    while len(drawn) < 24:
        p = np.array([models[n](tuple(drawn[max(0, len(drawn) - n + 1) :]) if n > 1 else (), token) for token in range(V)])
        drawn.append(int(rng.choice(V, p=p / p.sum())))
    say(f"{n}: " + " ".join(names[token] for token in drawn))

heading("what counts cannot know: perplexity of 5-grams by how many of the words before had been seen in this order")
reach = np.array([max(n for n in range(5) if counts.after[n][run[4 - n : 4]]) for run in grams(other, 5)])
surprise = np.array([-math.log(models[5](run[:4], run[4])) for run in grams(other, 5)])
by_reach = [math.exp(surprise[reach == n].mean()) for n in range(1, 5)]
for n, value in zip(range(1, 5), by_reach, strict=True):
    print(f"  {n} {np.mean(reach == n):10.1%} of the text   perplexity {value:6.1f}")
print("more text: how many contexts of four words had been counted, and the perplexity of 5-grams")
for part in (8, 4, 2, 1):
    some = Counts(as_ids(words(first_parts[::part]), known), 5, V)
    context = np.mean([run in some.after[4] for run in grams(other, 4)])
    print(f"  {some.runs[0][()]:>7,} words {context:6.1%}   perplexity {math.exp(nats(KneserNey(some), other, 5)):6.1f}")
order = rng.permutation(V)  # every word gets the number of another one
renamed = nats(KneserNey(Counts(order[ids].tolist(), 3, V)), order[other].tolist(), 3)
print(f"all words renamed at random, n = 3: the loss changes by {abs(renamed - nats(models[3], other, 3)):.0e}")
say(
    "Nothing changes, because counts only ask whether two words are the same. That `cat` is like `dog`, so that cats may eat, is not in them: above, "
    "P(eats | cat) is P(sings | cat). A model that has a row of numbers for each word (script 4) can treat similar words alike."
)
if args.plot:
    names = ("add-one", "interpolated", "Kneser-Ney")
    curves = {name: (np.arange(1, 6), np.array(perplexity)[:, i]) for i, name in enumerate(names, start=1)}
    left = {"xlabel": "n", "ylabel": "perplexity", "yscale": "log", "xticks": range(1, 6), "title": "smoothing"}
    right = {"xlabel": "words of the context that were counted", "xticks": range(1, 5), "ylim": 0, "title": "Kneser-Ney, n = 5"}
    draw_panels(args.plot, [(curves, left), ({"perplexity": (np.arange(1, 5), by_reach)}, right)])
