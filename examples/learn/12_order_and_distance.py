"""12. Order and distance: two tasks that a transformer solves, one that needs the order of words and one that needs a word from far back.

    python examples/learn/12_order_and_distance.py

Some ten seconds: nine small models are trained, one or two seconds each. "I hit the bat with a baseball" and "I hit the baseball with a
bat" have the same words.
"""

import argparse

import numpy as np
from show import heading, say

import autograd as ag
from autograd.optim import AdamW, warmup_cosine
from tinygpt import GPT, GPTConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--updates", type=int, default=250, help="of each model")
UPDATES = parser.parse_args().updates
THINGS = ["bat", "baseball", "cat", "dog", "book", "lamp", "stone", "door"]
VOCABULARY = [*THINGS, "i", "hit", "the", "with", "a", ".", "what", "was", "?", "um", "well"]
ID = {word: i for i, word in enumerate(VOCABULARY)}


def order(n, rng, _):
    """`i hit the A with a B . what was hit ?` -> A. Each pair of things comes in both orders: 8 * 7 = 56 texts in all."""
    a, b = np.array([rng.choice(len(THINGS), 2, replace=False) for _ in range(n)]).T
    texts = [f"i hit the {THINGS[i]} with a {THINGS[j]} . what was hit ?" for i, j in zip(a, b, strict=True)]
    return np.array([[ID[word] for word in text.split()] for text in texts]), a  # (n, T), (n,)


def distance(n, rng, filler):
    """`the A . um well well ... what was the ?` -> A: with so many words of no meaning in between."""
    a = rng.integers(0, len(THINGS), n)
    between = rng.choice([ID["um"], ID["well"]], (n, filler))
    return np.hstack([np.full((n, 1), ID["the"]), a[:, None], np.full((n, 1), ID["."]), between, np.full((n, 1), ID["?"])]), a


def learned(task, filler=0, *, n_layer=2, positions="learned", view=0, seed=0):
    """The share of texts, drawn anew, that a model answers right after its updates; the answer is the token after the last one.

    The updates are script 10's, with the library's AdamW: zero_grad clears the gradients, step clips them and moves the weights.
    """
    rng = np.random.default_rng(seed)
    context = task(1, rng, filler)[0].shape[1]
    shape = {"n_layer": n_layer, "n_head": 2, "n_embd": 32, "n_positions": context, "vocab_size": len(VOCABULARY)}
    model = GPT(GPTConfig(**shape, positions=positions, initializer_range=32**-0.5), seed=seed)  # 1 / sqrt(C), as in script 7
    optimizer = AdamW(model, lr=3e-3, betas=(0.9, 0.95))
    for step in range(UPDATES):
        texts, answers = task(16, rng, filler)
        if view:
            texts = texts[:, -view:]  # what a model of a shorter view would see
        optimizer.lr = warmup_cosine(step, peak=3e-3, warmup_steps=20, n_steps=UPDATES)
        loss = ag.cross_entropy(model(texts)[:, -1], answers)  # only at the last position is something asked
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
    texts, answers = task(500, np.random.default_rng(seed + 1000), filler)
    with ag.no_grad():
        logits = model(texts[:, -view:] if view else texts)[:, -1]
    return (logits.data.argmax(axis=1) == answers).mean()


heading("order: `i hit the bat with a baseball . what was hit ?`")
print(f"{'':<46} right")
for title, options in (
    ("one layer, no positions", {"n_layer": 1, "positions": "none"}),
    ("one layer, a row for each position", {"n_layer": 1}),
    ("two layers, no positions (the mask alone)", {"n_layer": 2, "positions": "none"}),
):
    print(f"{title:<46} {learned(order, **options):6.1%}")
say(
    "One layer without positions sees which two things there are and not which one was hit: it can only guess, one of two, 50 %. A row for "
    "each position tells. So does, with two layers, the causal mask: in the first, the t-th word can take an even mean of all words up to itself, "
    "in which the first word's share is 1 / t; so the second layer can know t."
)

heading("distance: `the lamp . um well well um ... ?`, with more and more words in between")
print("words in between                                   4      16      48")
for title, view in (("attention over all of the text", 0), ("a view of the last 12 words", 12)):
    print(f"{title:<46}", *(f"{learned(distance, filler, n_layer=1, view=view):6.1%} " for filler in (4, 16, 48)))
say(
    "A query meets each key directly, so a word is as near as any other, whatever stands between. A model with a short view, such as "
    "n-grams, reads all 8 words of the first column, and guesses one of eight, 12.5 %, as soon as the word lies outside. Script 26 shows how far a recurrent network remembers."
)
