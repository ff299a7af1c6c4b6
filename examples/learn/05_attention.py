"""5. Attention: each token takes a weighted mean of the others, with weights that depend on what both of them are.

    python examples/learn/05_attention.py

A second. From dot products to one head (queries, keys and values that belong together), with every number printed. Letters: T positions,
C channels, D channels of a head.
"""

import numpy as np
from show import bar, heading, say, show


def softmax(s):
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


heading("step 1: no weights at all. Each token takes a mean of all tokens, weighted by how alike they are")
x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # (T, C) = (3, 2)
show("x (T, C) =", x, 0)
scores = x @ x.T  # (T, C) @ (C, T) -> (T, T): the dot product of each pair of rows
show("scores = x @ x.T (T, T) =", scores, 0)
print("score of tokens 0 and 2: 1 * 1 + 0 * 1 =", int(scores[0, 2]))

heading("step 2: from scores to weights. They should be positive and sum to 1")
show("scores / their sum (T, T) =", scores / scores.sum(axis=1, keepdims=True))
say("Simple, and it works here. But scores may be negative, and then a weight is, too, or the sum is 0:")
for s in ([2.0, 1.0, -1.0], [2.0, -1.0, -1.0]):
    total = sum(s)
    print(f"  scores {s}: sum {total:g}, ", [f"{v / total:.2f}" for v in s] if total else "nothing to divide by")
print("e^s is positive whatever s is. Softmax: e^s / sum(e^s)")
for s in ([2.0, 1.0, -1.0], [2.0, -1.0, -1.0]):
    print(f"  scores {s}: weights", softmax(np.array(s)).round(3).tolist())
large = np.array([1000.0, 999.0, 0.0], dtype=np.float32)
with np.errstate(over="ignore", invalid="ignore"):
    e = np.exp(large)
    show("  scores [1000, 999, 0], as the formula stands:", e / e.sum())
show("  with the largest score subtracted first:     ", softmax(large))
say(
    "e^1000 is larger than any number that the computer has. e^(s - largest) = e^s / e^largest is at most 1, and the fraction stays the same: "
    "above and below the line everything is divided by e^largest."
)
weights = softmax(scores)
show("weights = softmax(x @ x.T), rows sum to 1 (T, T) =", weights)
show("context vectors = weights @ x (T, C) =", weights @ x)
print(f"the first: {weights[0, 0]:.3f} * [1, 0] + {weights[0, 1]:.3f} * [0, 1] + {weights[0, 2]:.3f} * [1, 1]")

heading("step 3: why weights that can be trained. What is alike is not what is needed")
# "the cat that chased the dog slept": which word does "slept" need? Channels, here set by hand: an animal, an action, a subject, an object.
words, channels = ["cat", "chased", "dog", "slept"], ["animal", "action", "subject", "object"]
features = np.array([[1.0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 1], [0, 1, 0, 0]])  # (T, C)
show(f"{', '.join(channels)}? of: {' '.join(words)} (T, C) =", features, 0)
plain = softmax(features @ features.T)[3]  # (T,): the row of "slept"
print('weights of "slept" by likeness:     ', "  ".join(f"{w} {p:.2f}" for w, p in zip(words, plain, strict=True)))
Wq, Wk = np.zeros((4, 1)), np.zeros((4, 1))  # (C, D): what training could find
Wq[1, 0] = Wk[2, 0] = 2.0  # an action asks: who is a subject?
query, keys = (features @ Wq)[3, 0], (features @ Wk)[:, 0]
asked = softmax(query * keys)
print('weights of "slept" with query and key:', "  ".join(f"{w} {p:.2f}" for w, p in zip(words, asked, strict=True)))
sum_of_e = " + ".join(f"e^{score:g}" for score in query * keys)
say(
    f"Two verbs are alike, so without weights a verb looks at verbs. With a query and a key it finds what it asks for, here the "
    f"{channels[Wk.argmax()]}: the query of slept is {query:g}, the keys are {', '.join(f'{key:g}' for key in keys)}, a score is the product of both, "
    f"and e^{max(query * keys):g} / ({sum_of_e}) = {asked.max():.2f}."
)

heading("step 4: three roles. What a token asks for (query), what it offers (key), what it hands over (value)")
Wq, Wk, Wv = np.array([[2.0, 0], [0, 1]]), np.array([[0.0, 1], [1, 0]]), np.array([[1.0, 1], [0, 1]])  # (C, D) each, learned
q, k, v = x @ Wq, x @ Wk, x @ Wv  # (T, D) each
show("q = x @ Wq (T, D) =", q, 0)
show("k = x @ Wk (T, D) =", k, 0)
show("v = x @ Wv (T, D) =", v, 0)
scores = q @ k.T  # (T, D) @ (D, T) -> (T, T)
show("scores = q @ k.T: no longer symmetric (T, T) =", scores, 0)
weights = softmax(scores / np.sqrt(2))
show("weights = softmax(scores / sqrt(D)) (T, T) =", weights)
show("context vectors = weights @ v (T, D) =", weights @ v)

heading("step 5: why divide by sqrt(D). A dot product of D independent terms of variance 1 has variance D")
say(
    "Variance is the mean square, if the mean is 0. For two numbers (a + b)^2 = a^2 + b^2 + 2ab, and the mean of 2ab is 0 if they know "
    "nothing of each other: so variances add up, and a usual score is as large as sqrt(D)."
)
rng = np.random.default_rng(0)
print("    D   variance of q.k   after / sqrt(D)   largest of 8 weights, without and with")
for d in (4, 64, 1024):
    qs, ks = rng.standard_normal((2000, 1, d)), rng.standard_normal((2000, 8, d))
    dots = (qs @ ks.swapaxes(1, 2))[:, 0]  # (2000, 8)
    raw, scaled = softmax(dots).max(axis=-1).mean(), softmax(dots / np.sqrt(d)).max(axis=-1).mean()
    print(f"{d:5d} {dots.var():17.1f} {(dots / np.sqrt(d)).var():17.2f}   {raw:.3f} {bar(raw, 20):<20}  {scaled:.3f} {bar(scaled, 20)}")
say(
    "A weight near 1 is a softmax at its flat end. Of two scores with a gap, the larger one has the weight p = 1 / (1 + e^-gap), whose slope is "
    "e^-gap / (1 + e^-gap)^2 = p (1 - p). Nudge it by 0.01 and see how far its weight moves:"
)
for gap in (0.0, 2.0, 10.0, 30.0):
    p, moved = (softmax(np.array([s, 0.0]))[0] for s in (gap, gap + 0.01))
    print(f"  scores {gap:4.0f}, 0: weight {p:.6f}, moves by {moved - p:.7f}; 0.01 p (1 - p) = {0.01 * p * (1 - p):.7f}")
say("Where it does not move, training learns nothing. The slope is 0 at both ends, and largest at p = 1/2.")
