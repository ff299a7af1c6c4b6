"""20. Following instructions in miniature: rows of instruction and answer, a loss on the answer alone, and a model that stops when it is done.

    python examples/learn/20_instructions.py

Some ten seconds. A tiny GPT first learns to continue sentences of a made-up text, then to do what an instruction asks. Numbers and
words are few, so that every row can be read.
"""

import argparse

import numpy as np
from show import heading, say

import autograd as ag
from autograd.optim import AdamW, warmup_cosine
from tinygpt import GPT, GPTConfig

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--updates", type=int, default=250, help="of the fine-tuning")
UPDATES = parser.parse_args().updates
THINGS = "bat cat dog book lamp stone door bird".split()
WORDS = ["<end>", "<pad>", *THINGS, *"the a sees hit . repeat reverse first of last : ->".split()]
ID = {word: i for i, word in enumerate(WORDS)}
END, PAD, IGNORED = ID["<end>"], ID["<pad>"], -100
rng = np.random.default_rng(0)

# What is asked, and the right answer; a task has 8 x 8 x 8 rows, of which one in five is kept for the test.
TASKS = {
    "repeat": lambda w: ("repeat : {} {} {}", w),
    "reverse": lambda w: ("reverse : {} {} {}", w[::-1]),
    "first": lambda w: ("first of : {} {} {}", w[:1]),
    "last": lambda w: ("last of : {} {} {}", w[-1:]),
}
rows = [
    (name, f"{task(w)[0].format(*w)} ->".split(), task(w)[1])
    for name, task in TASKS.items()
    for w in ([a, b, c] for a in THINGS for b in THINGS for c in THINGS)
]
order = rng.permutation(len(rows))
test, validation, train = (
    [rows[i] for i in part] for part in (order[: len(rows) // 5], order[len(rows) // 5 : len(rows) // 4], order[len(rows) // 4 :])
)
heading(f"{len(rows)} rows in three parts: {len(train)} to train, {len(validation)} to choose with, {len(test)} for the last look")


def batch(rows, masked=True):
    """Inputs and targets (B, T). Rows differ in length: the short ones are filled up; what is no answer is no target."""
    texts = [[ID[w] for w in (*question, *answer)] + [END] for _, question, answer in rows]
    longest = max(map(len, texts))
    ids = np.array([t + [PAD] * (longest - len(t)) for t in texts])  # (B, T + 1)
    targets = ids[:, 1:].copy()
    for row, (_, question, answer) in enumerate(rows):
        targets[row, len(question) + len(answer) :] = IGNORED  # padding
        if masked:
            targets[row, : len(question) - 1] = IGNORED  # the instruction: it will be given, nobody has to predict it
    return ids[:, :-1], targets


inputs, targets = batch([next(r for r in train if r[0] == name) for name in ("reverse", "first")])
for x, y in zip(inputs, targets, strict=True):
    print("inputs ", " ".join(f"{WORDS[i]:>7}" for i in x))
    print("targets", " ".join(f"{WORDS[i] if i >= 0 else '.':>7}" for i in y))
say("A dot stands for -100: no target. The answer's first word is predicted from the arrow, and <end> is learned like a word.")


def answer(model, question, n=6):
    ids = [ID[w] for w in question]
    while len(ids) < len(question) + n and ids[-1] != END:
        with ag.no_grad():
            ids.append(int(model([ids]).data[0, -1].argmax()))
    return [WORDS[i] for i in ids[len(question) :] if i != END]


def right(title, model, rows):
    """The share of rows answered exactly, <end> included: printed by task and for all; returns the last."""
    shares = [np.mean([answer(model, q) == a for task, q, a in rows if task == name]) for name in TASKS]
    print(f"{title:<36}", *(f"{share:8.0%}" for share in (*shares, np.mean(shares))), flush=True)
    print("   it writes:", " ".join(rows[0][1]), "|", " ".join(answer(model, rows[0][1])))
    return np.mean(shares)


def fit(model, n_updates, next_batch, peak=5e-3):
    optimizer = AdamW(model, lr=peak, betas=(0.9, 0.95))
    for step in range(n_updates):
        optimizer.lr = warmup_cosine(step, peak=peak, warmup_steps=20, n_steps=n_updates)
        loss = model.loss(*next_batch())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
    return model


def sentences():
    """A text of sentences: `the cat sees a lamp .`"""
    choice = [rng.choice(words, (16, 3)) for words in (["the", "a"], THINGS, ["sees", "hit"], ["the", "a"], THINGS, ["."])]
    ids = np.array([ID[w] for w in np.stack(choice, axis=-1).reshape(-1)]).reshape(16, -1)  # (16, 18)
    return ids[:, :-1], ids[:, 1:]


def base():
    shape = {"n_layer": 2, "n_head": 4, "n_embd": 48, "n_positions": 24, "vocab_size": len(WORDS), "initializer_range": 48**-0.5}
    return fit(GPT(GPTConfig(**shape), seed=0), 100, sentences)


heading("before and after: the share of validation rows answered exactly, by greedy choice")
print(f"{'':<36}", *(f"{name:>8}" for name in (*TASKS, "all")))
right("pretrained on sentences", base(), validation)
tried = []
for title, masked in (("fine-tuned, loss on the answer", True), ("fine-tuned, loss on every word", False)):
    model = fit(base(), UPDATES, lambda m=masked: batch([train[i] for i in rng.integers(0, len(train), 32)], m))
    tried.append((right(title, model, validation), title, model))
_, _, model = max(tried, key=lambda row: row[0])
heading(f"the validation rows choose; and the {len(test)} test rows, once")
right("chosen; on the test rows", model, test)
say(
    "With a loss on every word, most of the gradient goes into predicting instructions, which are drawn at random: the task is learned later."
)
say("Compare with script 19: a head of two scores sorts texts; here the model keeps all its words and learns what to say.")
