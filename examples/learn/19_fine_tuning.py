"""19. Fine-tuning in miniature: a model that has learned to read is given a small new task.

    python examples/learn/19_fine_tuning.py

Some ten seconds. First a small GPT learns to continue text, without any labels. Then a few labeled passages teach it to tell two
kinds of text apart: Python's language manual and NumPy's docstrings. For comparison, the same model with random weights learns the same
task from the same labels: the difference is what pretraining was worth.
"""

import math
import pydoc_data.topics

import numpy as np
import show  # noqa: F401  (answers --help)

import autograd as ag
from autograd.optim import AdamW, warmup_cosine
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import WordTokenizer

T, C, STEPS = 24, 48, 300  # words in a passage, channels, updates of the pretraining

# Two kinds of text; the last 30 % of each is kept for the test.
manual = " ".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics)[:40])
numpy_docs = " ".join((getattr(np, k).__doc__ or "") for k in sorted(np.__all__) if callable(getattr(np, k)))
texts = [text[:150_000] for text in (manual, numpy_docs)]
early, late = [t[: len(t) * 7 // 10] for t in texts], [t[len(t) * 7 // 10 :] for t in texts]
tokenizer = WordTokenizer.train(early, vocab_size=800)
early, late = ([np.array(tokenizer.encode(t)) for t in part] for part in (early, late))  # (N,) each


def passages(stream, n, rng):
    starts = rng.integers(0, len(stream) - T - 1, n)
    return stream[starts[:, None] + np.arange(T + 1)]  # (n, T + 1)


def labeled(parts, n, seed):
    """n passages of each kind and their labels: (2n, T), (2n,)."""
    rng = np.random.default_rng(seed)
    return np.concatenate([passages(part, n, rng)[:, :T] for part in parts]), np.repeat([0, 1], n)


def new_model():
    return GPT(GPTConfig(n_layer=2, n_head=4, n_embd=C, n_positions=T, vocab_size=tokenizer.n_vocab), seed=0)


print(f"1. Pretraining: continue the text, {STEPS} updates, no labels")
model, rng = new_model(), np.random.default_rng(0)
optimizer = AdamW(model, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)  # script 10 has it written out, the schedule too
for step in range(1, STEPS + 1):
    rows = np.concatenate([passages(part, 8, rng) for part in early])  # (16, T + 1)
    optimizer.lr = warmup_cosine(step - 1, peak=3e-3, warmup_steps=20, n_steps=STEPS)
    loss = model.loss(rows[:, :-1], rows[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(max_norm=1.0)
    if step == 1 or step % 100 == 0:
        print(f"   step {step:3d}: loss {loss.item():.3f} nats per word (a uniform guess: {math.log(tokenizer.n_vocab):.3f})")


def fine_tune(model, x, y, steps=60):
    """Adds a head of two scores, trains it with the last block and the final norm; returns the scoring function and its weights."""
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith(("h.1.", "ln_f."))  # the embeddings and the first block are frozen
    head = ag.Parameter(np.zeros((C, 2), dtype=np.float32))  # (C, 2); 0: it starts undecided
    bias = ag.Parameter(np.zeros(2, dtype=np.float32))
    trained = [*((n, p) for n, p in model.named_parameters() if p.requires_grad), ("head", head), ("bias", bias)]
    optimizer, rng = AdamW(trained, lr=1e-3, weight_decay=0.1), np.random.default_rng(1)

    def scores(x):
        last = model.hidden(x)[:, -1]  # the stream before the output layer, (B, T, C) -> (B, C): only the last position has seen all
        return last @ head + bias  # (B, 2)

    for _ in range(steps):
        which = rng.integers(0, len(x), 16)
        loss = ag.cross_entropy(scores(x[which]), y[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
    return scores, sum(p.size for _, p in trained)


def share_right(scores, x, y):
    with ag.no_grad():
        return (scores(x).data.argmax(axis=1) == y).mean()


test_x, test_y = labeled(late, 500, seed=3)  # (1000, T), (1000,): text that neither step has seen
print(f"\n2. A head of two scores instead of {tokenizer.n_vocab}: which kind of text is it? {len(test_y)} test passages")
print("   labels    from random weights    from pretrained weights    (by chance: 50 %)")
random_start = new_model()
start = {id(m): [p.data.copy() for p in m.parameters()] for m in (model, random_start)}
for n in (4, 20, 100):
    x, y = labeled(early, n, seed=2)
    right = []
    for m in (random_start, model):
        for p, saved in zip(m.parameters(), start[id(m)], strict=True):
            p.data = saved.copy()  # each trial begins where pretraining ended
        scores, n_trained = fine_tune(m, x, y)
        right.append(share_right(scores, test_x, test_y))
    print(f"   {2 * n:6d} {right[0]:17.1%} {right[1]:25.1%}")
print(f"   trained in step 2: {n_trained:,} of {model.n_parameters():,} weights and head; the rest stayed frozen")
print(f"   With {len(test_y)} passages a share can be 2 points off by chance, and other labels give another")
print("   model: a small step down with more labels says nothing.")
