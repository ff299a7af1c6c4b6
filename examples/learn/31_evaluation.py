"""31. Evaluation: is the model good, or was it lucky? Scores, chance, intervals, and answers that are written out.

    python examples/learn/31_evaluation.py

Seconds. A model of word pairs answers multiple choice; every score of the usual benchmarks is computed by hand.
"""

import math
import re
from collections import Counter

import numpy as np
from ngrams import Counts, KneserNey, as_ids, nats, paragraphs
from show import heading, say

texts = [re.findall(r"[a-z']+|[.,]", text.lower()) for text in paragraphs()]
texts = [words for words in texts if len(words) > 20]
rng = np.random.default_rng(0)
rng.shuffle(texts)
test, train = texts[:200], texts[200:]
vocabulary = sorted({word for words in train for word in words})
model = KneserNey(Counts(as_ids([w for words in train for w in words], vocabulary), 2, len(vocabulary) + 1))

heading("perplexity: e^loss on text that the model has not seen")
ids = as_ids([w for words in test for w in words], vocabulary)
loss = nats(model, ids, 2)
print(f"{len(ids):,} words: {loss:.3f} nats per word, perplexity {math.exp(loss):.0f}; by chance {len(vocabulary) + 1:,}")
say("It needs no labels, but models with other tokens cannot be compared by it: count per byte instead (bits per byte).")

heading("multiple choice: which of four pieces of five words continues the text? The likeliest one is the answer")


def score(context, option):
    """ln P(option | context), the sum over the option's words."""
    ids = as_ids([*context, *option], vocabulary)
    return nats(model, ids, 2, first=len(context)) * -len(option)


items = []
for i, words in enumerate(test):
    options = [other[10:15] for other in (words, *(test[j] for j in rng.choice(np.delete(np.arange(200), i), 3, replace=False)))]
    places = rng.permutation(4)
    items.append((words[:10], [options[p] for p in places], int(places.argmin())))
context, options, answer = items[0]
print("context:", " ".join(context))
chosen = max(range(4), key=lambda k: score(context, options[k]))
for k, option in enumerate(options):
    marks = [text for text, where in (("right", answer), ("the model's choice", chosen)) if k == where]
    print(f"  {'ABCD'[k]}: {' '.join(option):<42} {score(context, option):7.2f}  {', '.join(marks)}".rstrip())
right = np.array([max(range(4), key=lambda k, c=c, o=o: score(c, o[k])) == a for c, o, a in items])
print(f"right: {right.mean():.1%} of {len(right)}; chance 25 %; above chance (acc - 0.25) / 0.75 = {(right.mean() - 0.25) / 0.75:.1%}")

heading("how sure is that? Draw 200 items again and again from the 200, with repetition (bootstrap)")
means = np.sort([rng.choice(right, len(right)).mean() for _ in range(2000)])  # 2.5 % of them, 50, are cut off on each side
verdict = "better than chance" if means[50] > 0.25 else "chance is among them: nothing is shown"
print(f"95 % of the means lie between {means[50]:.1%} and {means[-51]:.1%}; {verdict}")
few = np.sort([rng.choice(right[:20], 20).mean() for _ in range(2000)])
print(f"with the first 20 items alone: {right[:20].mean():.1%}, between {few[50]:.1%} and {few[-51]:.1%}: they say next to nothing")

heading("a control: the context's words are shuffled. A model that reads loses, a model that looks at options alone does not")
shuffled = [(list(rng.permutation(c)), o, a) for c, o, a in items]
control = np.mean([max(range(4), key=lambda k, c=c, o=o: score(c, o[k])) == a for c, o, a in shuffled])
print(f"right with shuffled contexts: {control:.1%}")
say("Word pairs see only one word of the context, so they have little to lose. A GPT has more.")

heading("answers that are written out: exact match, F1 over words, BLEU")
reference = "the function returns a list of names".split()
answers = ["the function returns a list of names", "it returns a list", "it gives back the names", "the function returns a list of numbers"]


def f1(answer):
    common = (Counter(answer) & Counter(reference)).total()
    return 2 * common / (len(answer) + len(reference))


def bleu(answer):  # Papineni et al. 2002: common runs of 1 to 4 words, and a penalty for short answers; here 1 and 2
    shares = []
    for n in (1, 2):
        runs, known = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (answer, reference))
        shares.append((runs & known).total() / max(runs.total(), 1))
    return math.sqrt(math.prod(shares)) * min(1.0, math.exp(1 - len(reference) / len(answer)))


print(f"reference: {' '.join(reference)}\n{'':<40} exact    F1  BLEU-2")
for text in answers:
    words = text.split()
    print(f"  {text:<38} {int(words == reference):5d} {f1(words):5.2f} {bleu(words):7.2f}")
print("line 2 by hand: F1 = 2 * 3 / (4 + 7) = 0.55; BLEU-2 = sqrt(3/4 * 2/3) e^(1 - 7/4) = 0.33")
say("All three count words: line 3 is right and gets little, line 4 is wrong and gets much. Then people or a judge model have to read.")

heading("shots: examples in the prompt. Nothing is trained; zero-shot means no examples, the task may well be described")
shots = [("win a free phone now", "yes"), ("see you at eight", "no")]
for n in (0, 2):
    print("\n".join([f"  {n} shots:"] + [f"    Text: {t}\n    Spam? {a}" for t, a in shots[:n]] + ["    Text: call now to win\n    Spam?"]))
say(
    "`python -m tinygpt evaluate RUN` measures all of these on a trained model, with intervals, controls and items that the training text "
    "contains counted apart; docs/prompting.md has shots, wordings and sizes measured."
)
