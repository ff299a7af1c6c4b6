"""19. Fine-tuning in miniature: a model that has learned to read is given a small new task.

    python examples/learn/19_fine_tuning.py

Some ten seconds. First a small GPT learns to continue text, without any labels. Then a few labeled passages teach it to tell two
kinds of text apart: Python's language manual and NumPy's docstrings. For comparison, the same model with random weights learns the same
task from the same labels: the difference is what pretraining was worth.
"""

import math
import pydoc_data.topics

import numpy as np
from show import bar, heading, say

import autograd as ag
from autograd.optim import AdamW, warmup_cosine
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import WordTokenizer

T, C, STEPS, KINDS = 24, 48, 300, ("manual", "NumPy")  # words in a passage at most, channels, updates of the pretraining

# Two kinds of text, each cut in three: 70 % to train, 15 % to choose settings (validation), 15 % for the last look (test).
manual = " ".join(pydoc_data.topics.topics[k] for k in sorted(pydoc_data.topics.topics)[:40])
numpy_docs = " ".join((getattr(np, k).__doc__ or "") for k in sorted(np.__all__) if callable(getattr(np, k)))
texts = [text[:150_000] for text in (manual, numpy_docs)]
tokenizer = WordTokenizer.train([text[:105_000] for text in texts], vocab_size=800)
SPLITS = {"training": (0, 105_000), "validation": (105_000, 127_500), "test": (127_500, 150_000)}
train, validation, test = ([np.array(tokenizer.encode(t[a:b])) for t in texts] for a, b in SPLITS.values())  # (N,) each
PAD = tokenizer.eos_id


def labeled(parts, counts, seed):
    """Passages of 8 to T words, `counts` of each kind: ids (B, T), the short ones filled up; numbers of words (B,); labels (B,)."""
    rng = np.random.default_rng(seed)
    starts = np.concatenate([rng.integers(0, len(part) - T, n) for part, n in zip(parts, counts, strict=True)])
    labels, lengths = np.repeat([0, 1], counts), rng.integers(8, T + 1, sum(counts))
    ids = np.array([parts[kind][start : start + T] for kind, start in zip(labels, starts, strict=True)])
    return np.where(np.arange(T) < lengths[:, None], ids, PAD), lengths, labels


heading(f"pretraining: continue the text, {STEPS} updates, no labels")
config, rng = GPTConfig(n_layer=2, n_head=4, n_embd=C, n_positions=T, vocab_size=tokenizer.n_vocab), np.random.default_rng(0)
model, random_start = GPT(config, seed=0), GPT(config, seed=0)
optimizer = AdamW(model, lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)  # script 10 has it written out, the schedule too
for step in range(1, STEPS + 1):
    rows = np.concatenate([part[rng.integers(0, len(part) - T - 1, 8)[:, None] + np.arange(T + 1)] for part in train])  # (16, T + 1)
    optimizer.lr = warmup_cosine(step - 1, peak=3e-3, warmup_steps=20, n_steps=STEPS)
    loss = model.loss(rows[:, :-1], rows[:, 1:])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step(max_norm=1.0)
    if step == 1 or step % 50 == 0:
        print(f"   step {step:3d}: loss of this batch {loss.item():.3f} nats per word (a uniform guess: {math.log(tokenizer.n_vocab):.3f})")

heading("rows with labels: balanced, of unequal lengths, filled up (padded)")
say("If 400 of 500 passages were from the manual, who always says `manual` would be right in 80 %. So: as many of each.")
for ids, n, label in zip(*labeled(train, (1, 1), 0), strict=True):
    print(f"   {KINDS[label]:<7} {n:2d} words: {tokenizer.decode(ids[:5])!r} ... and {T - n} times {tokenizer.decode([PAD])}")
say("The score is read at the last word, which alone has seen all of the passage: not at the last position, where only filling stands.")


def fine_tune(model, rows, steps=60, each=lambda step, scores: None):
    """Adds a head of two scores, trains it with the last block and the final norm; returns the scoring function and its weights."""
    for name, p in model.named_parameters():
        p.requires_grad = name.startswith(("h.1.", "ln_f."))  # the embeddings and the first block are frozen
    head = ag.Parameter(np.zeros((C, 2), dtype=np.float32))  # (C, 2); 0: it starts undecided
    bias = ag.Parameter(np.zeros(2, dtype=np.float32))
    trained = [*((n, p) for n, p in model.named_parameters() if p.requires_grad), ("head", head), ("bias", bias)]
    optimizer, rng, (ids, lengths, labels) = AdamW(trained, lr=1e-3, weight_decay=0.1), np.random.default_rng(1), rows

    def scores(ids, lengths):  # the stream before the output layer, (B, T, C), at each passage's last word (B, C)
        return model.hidden(ids)[np.arange(len(ids)), lengths - 1] @ head + bias  # (B, 2)

    for step in range(1, steps + 1):
        which = rng.integers(0, len(ids), 16)
        loss = ag.cross_entropy(scores(ids[which], lengths[which]), labels[which])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(max_norm=1.0)
        each(step, scores)
    return scores, sum(p.size for _, p in trained)


def share_right(scores, rows):
    with ag.no_grad():
        return (scores(*rows[:2]).data.argmax(axis=1) == rows[2]).mean()


last_look, choosing = labeled(test, (500, 500), 3), labeled(validation, (150, 150), 4)
start = {id(m): [p.data.copy() for p in m.parameters()] for m in (model, random_start)}


def again(m):  # each trial begins where pretraining ended
    for p, saved in zip(m.parameters(), start[id(m)], strict=True):
        p.data = saved.copy()
    return m


heading("how long? 40 rows; how many are right of them, and of the validation rows, after some updates")
few = labeled(train, (20, 20), 2)


def curve(step, scores):
    if step in (5, 10, 20, 40, 80, 160):
        a, b = share_right(scores, few), share_right(scores, choosing)
        print(f"   {step:3d} updates: training {a:6.1%} {bar(a, 16):<16}  validation {b:6.1%} {bar(b, 16)}")


fine_tune(again(model), few, 160, curve)
say("In the end only the training rows gain: they are learned by heart. 60 updates are enough.")

heading(f"a head of two scores instead of {tokenizer.n_vocab}: which kind of text is it? {len(last_look[2])} test passages")
print("   labels    from random weights    from pretrained weights    (by chance: 50 %)")
for n in (4, 20, 100):
    done = [fine_tune(again(m), labeled(train, (n, n), 2)) for m in (random_start, model)]
    print(f"   {2 * n:6d} {share_right(done[0][0], last_look):17.1%} {share_right(done[1][0], last_look):25.1%}")
block, norm = (sum(p.size for name, p in model.named_parameters() if p.requires_grad and name[:2] == part) for part in ("h.", "ln"))
print(f"   trained: {done[0][1]:,} of {model.n_parameters():,} weights and head: block {block:,}, last norm {norm}, head {2 * C + 2}")
say(f"With {len(last_look[2])} passages a share can be 2 points off by chance, and other labels give another model.")
