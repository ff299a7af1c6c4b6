"""6. Causal attention with several heads: nobody sees the future, and each head looks in its own way.

    python examples/learn/06_heads.py

A second. Letters: B sequences, T positions, C channels, H heads of D = C / H channels each.
"""

import numpy as np
from show import heading, say, show

import autograd as ag


def softmax(s):
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


heading("step 6: the causal mask. A token must not see what comes after it")
x = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])  # (T, C) = (3, 2), and the weights of script 5
Wq, Wk, Wv = np.array([[2.0, 0], [0, 1]]), np.array([[0.0, 1], [1, 0]]), np.array([[1.0, 1], [0, 1]])  # (C, D) each
scores = (x @ Wq) @ (x @ Wk).T / np.sqrt(2)  # (T, T)
allowed = np.tril(np.ones((3, 3), dtype=bool))  # (T, T)
show("allowed (T, T) =", allowed.astype(int))
masked = np.where(allowed, scores, -np.inf)  # e^-inf = 0
show("weights = softmax(scores, -inf where not allowed) (T, T) =", softmax(masked))
print("sum of each row:", softmax(masked).sum(axis=1).round(12).tolist())


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
    "Zeroing after the softmax leaks: the rest of the row tells how large the future was. Renormalizing (dividing by the sum again) fixes "
    "it on paper, but the future still decides by how much the past is rounded: next to e^200, e^1 is 0 in 32 bits, and 0 / 0 is nan (not "
    "a number). With minus infinity it never enters."
)

heading("order: what attention can know of it without a row for each position. Tokens A B C against B A C, output at C")
rng = np.random.default_rng(0)
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

heading("step 7: dropout. While training, a random share p of the numbers is set to 0, the rest scaled up by 1 / (1 - p)")
say("A model that cannot count on any single number has to spread what it knows: that is used against learning by heart (script 16).")
keep = rng.random((3, 3)) >= 0.5
show("first, on the weights: weights * keep / (1 - 0.5) (T, T) =", softmax(masked) * keep / 0.5)
out = softmax(masked) @ (x @ Wv)  # (T, D)
show("second, on what attention gives, y = weights @ v: y * keep / (1 - 0.5) (T, D) =", out * (rng.random(out.shape) >= 0.5) / 0.5)
rows = np.array([softmax(masked) * (rng.random((3, 3)) >= 0.5) / 0.5 for _ in range(4000)])
show("mean of 4,000 draws (T, T) =", rows.mean(axis=0), 2)
say("That is the weights themselves, but for chance: nothing has to change when dropout is off, after training.")

heading("step 8: several heads. Each looks in its own way, in its own D channels")
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


def split_heads(y):  # (B, T, C) -> (B, T, H, D) -> (B, H, T, D): products act on the last two axes, for every sequence and head at once
    return y.reshape(B, T, H, D).transpose(0, 2, 1, 3)


qkv = x @ np.concatenate([Wq, Wk, Wv], axis=1)  # one product (B, T, 3C) instead of 3 H small ones
q, k, v = (split_heads(part) for part in np.split(qkv, 3, axis=-1))  # (B, H, T, D) each
y = ag.scaled_dot_product_attention(ag.Tensor(q), ag.Tensor(k), ag.Tensor(v), causal=True)  # (B, H, T, D)
merged = y.data.transpose(0, 2, 1, 3).reshape(B, T, C)  # heads side by side again
show("heads one by one, stacked (B, T, C) =", stacked)
print(f"one matrix, reshaped, our own attention op: largest difference {np.abs(stacked - merged).max():.1e}, rounding")
assert np.allclose(stacked, merged)
say("A last matrix (C, C) mixes what the heads found: y = stacked @ Wo. Script 8 puts it all into a block.")
