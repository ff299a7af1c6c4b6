"""11. Sampling: from one distribution to the next token, four ways.

    python examples/learn/11_sampling.py

A second. Always the same six tokens with probabilities 1/2, 1/4, 1/8, 1/16, 1/32, 1/32, so every number can be checked by hand.
"""

import numpy as np
from show import bar, heading, say

TOKENS = ["the", "a", "his", "one", "blue", "zebra"]
P = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 32])  # (V,)
logits = np.log(P)  # (V,): what a model would give; any constant may be added


def softmax(z):  # (V,) -> (V,)
    e = np.exp(z - z.max())
    return e / e.sum()


def table(title, p):
    entropy = sum(q * np.log(1 / q) for q in p if q > 0)
    print(f"{title:<17}", *(f"{q:6.3f}" for q in p), f"  {bar(entropy, 6):<11} {entropy:.2f} nats")


heading("the distribution, and how unsure it is: its entropy, the mean of ln(1 / p) with weights p (bar and number)")
print(" " * 17, *(f"{t:>6}" for t in TOKENS))
table("softmax(logits)", softmax(logits))
say(
    "By hand, in units of ln 2 = 0.693: 1/2 * 1 + 1/4 * 2 + 1/8 * 3 + 1/16 * 4 + 2/32 * 5 = 1.94, times 0.693 is 1.34. e^1.34 = 3.8: as unsure as "
    "a choice among 3.8 equally likely tokens (script 9)."
)

heading("temperature: divide the logits by it before the softmax")
for temperature in (2.0, 1.0, 0.5, 0.1):
    table(f"temperature {temperature:g}", softmax(logits / temperature))
say("Dividing logits by 1/2 doubles them, which squares the probabilities: 1/2 and 1/4 become 1/4 : 1/16 = 4 : 1.")
say("Towards 0 only the likeliest remains (greedy, always the same text); high temperatures even everything out.")

heading("top-k: keep the k likeliest, give what the others had to those kept")


def top_k(p, k):
    likeliest = np.argsort(-p, kind="stable")[:k]  # exactly k; of equal ones the first
    kept = np.zeros_like(p)
    kept[likeliest] = p[likeliest]
    return kept / kept.sum()


for k in (1, 2, 3, 5):
    table(f"top-k {k}", top_k(P, k))
say(
    "k = 2 keeps 1/2 + 1/4 = 3/4; divided by it: 2/3 and 1/3. k = 5 keeps one of the two that are equally likely, never six. Setting the other "
    "logits to minus infinity before the softmax, as is often done, gives the same."
)

heading("top-p: keep the fewest likeliest tokens that together reach p")


def top_p(p, share):
    order = np.argsort(-p, kind="stable")
    before = np.cumsum(p[order]) - p[order]  # what the likelier ones reach already
    kept = np.zeros_like(p)
    kept[order] = np.where(before < share, p[order], 0.0)
    return kept / kept.sum()


for share in (0.5, 0.8, 0.95):
    table(f"top-p {share:g}", top_p(P, share))
unsure = np.array([0.25, 0.22, 0.19, 0.14, 0.11, 0.09])
table("unsure model", unsure)
table("  top-k 2", top_k(unsure, 2))
table("  top-p 0.8", top_p(unsure, 0.8))
say(
    "k is a fixed number; p adapts: few tokens where the model is sure, many where it is not. Together they work in the order of this script: "
    "temperature, then top-k, then top-p."
)

heading("drawing: one uniform number u, and the first token whose running sum exceeds it")
running = np.cumsum(P)
print("running sums", *(f"{r:.4f}" for r in running))
for u in (0.3, 0.6, 0.99):
    print(f"u = {u:<5} -> {TOKENS[int(np.searchsorted(running, u, side='right'))]}")
rng = np.random.default_rng(0)
n = 10_000
counts = np.bincount(np.searchsorted(running, rng.random(n), side="right"), minlength=len(P))
print(f"{n:,} draws, shares:", *(f"{t} {c / n:.3f}" for t, c in zip(TOKENS, counts, strict=True)))
