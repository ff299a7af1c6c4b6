"""4. Attention in five steps: from plain dot products to what a GPT does.

    python examples/learn/04_attention.py

A second. Letters: B sequences, T positions, C channels, H heads of D = C / H channels each.
"""

import numpy as np
from show import bar, heading, say, show

import autograd as ag


def softmax(s):
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


heading("step 1: no weights at all. Each token takes a mean of all tokens, weighted by how alike they are")
x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # (T, C) = (3, 2)
show("x (T, C) =", x, 0)
show("scores = x @ x.T (T, T) =", x @ x.T, 0)
show("weights = softmax(scores), rows sum to 1 (T, T) =", softmax(x @ x.T))
show("y = weights @ x (T, C) =", softmax(x @ x.T) @ x)

heading("step 2: three roles. What a token asks for (query), what it offers (key), what it hands over (value)")
Wq, Wk, Wv = np.array([[2.0, 0], [0, 1]]), np.array([[0.0, 1], [1, 0]]), np.array([[1.0, 1], [0, 1]])  # (C, D) each, learned
q, k, v = x @ Wq, x @ Wk, x @ Wv  # (T, D) each
show("q (T, D) =", q, 0)
show("k (T, D) =", k, 0)
scores = q @ k.T  # (T, D) @ (D, T) -> (T, T)
show("scores = q @ k.T: no longer symmetric (T, T) =", scores, 0)

heading("step 3: why divide by sqrt(D). A dot product of D independent terms of variance 1 has variance D")
rng = np.random.default_rng(0)
print("    D   variance of q.k   after / sqrt(D)   largest of 8 weights, without and with")
for d in (4, 64, 1024):
    qs, ks = rng.standard_normal((2000, 1, d)), rng.standard_normal((2000, 8, d))
    dots = (qs @ ks.swapaxes(1, 2))[:, 0]  # (2000, 8)
    raw, scaled = softmax(dots).max(axis=-1).mean(), softmax(dots / np.sqrt(d)).max(axis=-1).mean()
    print(f"{d:5d} {dots.var():17.1f} {(dots / np.sqrt(d)).var():17.2f}   {raw:.3f} {bar(raw, 20):<20}  {scaled:.3f} {bar(scaled, 20)}")
say("A weight of 1 is a softmax at its flat end: its slope p (1 - p) is 0, and nothing is learned there.")

heading("step 4: the causal mask. A token must not see what comes after it")
allowed = np.tril(np.ones((3, 3), dtype=bool))  # (T, T)
show("allowed (T, T) =", allowed.astype(int))
scores = scores / np.sqrt(2)
masked = np.where(allowed, scores, -np.inf)  # e^-inf = 0
show("weights = softmax(scores, -inf where not allowed) (T, T) =", softmax(masked))


def first_row(score_of_the_future, how):
    """Weights of token 0, float32, when the future token 2 has this score. Token 0 may see only itself."""
    s = np.array([1.0, 2.0, score_of_the_future], dtype=np.float32)
    if how == "minus infinity":
        return softmax(np.where(allowed[0], s, np.float32(-np.inf)))
    p = softmax(s) * allowed[0]  # masked after the softmax: the future is in its sum already
    with np.errstate(invalid="ignore"):
        return p if how == "zero it" else p / p.sum()


print("weight of token 0 on itself (it should be 1), as the score of its future grows:")
print("                                 score 0   score 5   score 200")
for how in ("zero it", "zero it, renormalize", "minus infinity"):
    print(f"  {how:<28}", *(f"{first_row(s, how)[0]:9.4f}" for s in (0, 5, 200)))
say(
    "Zeroing after the softmax leaks: the rest of the row tells how large the future was. Renormalizing fixes it on paper, but "
    "the future still decides by how much the past is rounded, down to 0 / 0 = nan. With minus infinity it never enters."
)

heading("order: what attention can know of it without a row for each position. Tokens A B C against B A C, output at C")
a_b_c = rng.standard_normal((3, 2))  # (T, C): three tokens, no positions added


def attend(x, causal):  # (T, C) -> (T, C)
    s = (x @ Wq) @ (x @ Wk).T / np.sqrt(2)
    return softmax(np.where(allowed, s, -np.inf) if causal else s) @ (x @ Wv)


for causal in (False, True):
    first = [attend(x, causal) for x in (a_b_c, a_b_c[[1, 0, 2]])]  # the outputs of one layer, for both orders
    change = [np.abs(y[2] - z[2]).max() for y, z in (first, [attend(y, causal) for y in first])]
    print(f"{'causal mask' if causal else 'no mask':<12} change after one layer {change[0]:.4f}, after two {change[1]:.4f}")
say(
    "A weighted mean does not know the order of its terms. With a mask, what A and B took from each other depends on who came "
    "first, and a second layer sees that. So a causal stack can learn some order by itself; a row for each position gives it at once."
)

heading("step 5a: dropout on the weights. While training, some are set to 0 and the rest scaled up by 1 / (1 - p)")
keep = rng.random((3, 3)) >= 0.5
show("weights * keep / (1 - 0.5) (T, T) =", softmax(masked) * keep / 0.5)

heading("step 5b: several heads. Each looks in its own way, in its own D channels")
B, T, C, H = 1, 4, 6, 2
D = C // H
x = rng.standard_normal((B, T, C))
Wq, Wk, Wv = (rng.standard_normal((C, C)) for _ in range(3))
mask = np.tril(np.ones((T, T), dtype=bool))


def one_head(x, Wq, Wk, Wv):  # (B, T, C), (C, D) three times -> (B, T, D)
    q, k, v = x @ Wq, x @ Wk, x @ Wv
    return softmax(np.where(mask, q @ k.swapaxes(-1, -2) / np.sqrt(D), -np.inf)) @ v


columns = [slice(h * D, (h + 1) * D) for h in range(H)]
stacked = np.concatenate([one_head(x, Wq[:, c], Wk[:, c], Wv[:, c]) for c in columns], axis=-1)  # H x (B, T, D) -> (B, T, C)


def split_heads(y):  # (B, T, C) -> (B, T, H, D) -> (B, H, T, D)
    return y.reshape(B, T, H, D).transpose(0, 2, 1, 3)


qkv = x @ np.concatenate([Wq, Wk, Wv], axis=1)  # one product (B, T, 3C) instead of 3 H small ones
q, k, v = (split_heads(part) for part in np.split(qkv, 3, axis=-1))  # (B, H, T, D) each
y = ag.scaled_dot_product_attention(ag.Tensor(q), ag.Tensor(k), ag.Tensor(v), causal=True)  # (B, H, T, D)
merged = y.data.transpose(0, 2, 1, 3).reshape(B, T, C)  # heads side by side again
show("heads one by one, stacked (B, T, C) =", stacked)
print(f"one matrix, reshaped, our own attention op: largest difference {np.abs(stacked - merged).max():.1e}")
assert np.allclose(stacked, merged)
