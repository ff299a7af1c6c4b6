"""8. The block and the model: put the parts together, and count every weight by hand.

    python examples/learn/08_model.py

A second. Letters: B sequences, T positions, C channels, H heads, V vocabulary.
"""

import numpy as np
from show import heading, say, show

import autograd as ag
from tinygpt import GPT, GPTConfig

config = GPTConfig(n_layer=2, n_head=2, n_embd=8, n_positions=6, vocab_size=10)
model = GPT(config, seed=0)
model.eval()  # no dropout
L, C, V, P = config.n_layer, config.n_embd, config.vocab_size, config.n_positions
ids = np.array([[3, 1, 4, 1], [5, 9, 2, 6]])  # (B, T)

heading("one block, step by step: attention on a normalized copy, added back; then the same with the MLP")
with ag.no_grad():  # no gradients wanted: nothing is saved for them
    x = model.wte(ids) + model.wpe(np.arange(ids.shape[1]))  # (B, T, C) + (T, C)
    print("x = token rows + position rows   ", x.shape)
    block = model.h[0]
    a = block.ln_1(x)
    print("a = norm(x)                      ", a.shape)
    a = block.attn(a)
    print("a = attention(a)                 ", a.shape, " the only step in which positions meet")
    x = x + a
    print("x = x + a                        ", x.shape, " the residual stream")
    m = block.ln_2(x)
    print("m = norm(x)                      ", m.shape)
    m = ag.gelu(block.mlp.c_fc(m))
    print("m = gelu(m @ W1 + b1)            ", m.shape, " four times as wide")
    m = block.mlp.c_proj(m)
    print("m = m @ W2 + b2                  ", m.shape)
    x = x + m
    print("x = x + m                        ", x.shape)
    same = block(model.wte(ids) + model.wpe(np.arange(ids.shape[1])))
    print("the model's own block gives the same:", np.allclose(x.data, same.data))

heading("every weight, by GPT-2's names")
say(
    "wte, wpe: word token and word position embeddings; h: the blocks; ln: layer norms; attn, mlp: the two parts of a block; c_attn: queries, keys "
    "and values in one matrix; c_fc, c_proj: into the part and out of it. weight is W and bias is b in x W + b."
)
for name, p in model.named_parameters():
    if not name.startswith("h.1"):  # the second block is like the first
        print(f"{name:<22} {p.shape!s:<9} {p.size:4d}")

heading(f"counted by formula, C = {C}, V = {V}, P = {P} positions, L = {L} layers")
parts = (C * 3 * C, 3 * C, C * C, C), (C * 4 * C, 4 * C, 4 * C * C, C)
attention, mlp, norms = *map(sum, parts), 2 * 2 * C
print(f"attention  C * 3C + 3C + C * C + C   = {' + '.join(map(str, parts[0])):<18} = {attention}")
print(f"MLP        C * 4C + 4C + 4C * C + C  = {' + '.join(map(str, parts[1])):<18} = {mlp}")
print(f"two norms  2 (C + C)                 = {norms}")
total = V * C + P * C + L * (attention + mlp + norms) + 2 * C
print(f"all        V * C + P * C + L ({attention} + {mlp} + {norms}) + 2C = {total}; the model says {model.n_parameters()}")
g = GPTConfig.preset("gpt2")
print(f"GPT-2's smallest, C = {g.n_embd}, V = {g.vocab_size:,}, P = {g.n_positions:,}, L = {g.n_layer}: {g.n_parameters():,}")
say("The output layer adds none: it is the token embedding, used the other way round, logits = x @ wte.T (tied weights).")
untied = GPTConfig.preset("gpt2", tie_word_embeddings=False).n_parameters()
print(f"With a matrix of its own it is V * C more, {untied:,}: {4 * untied / 1e6:.0f} MB at 4 bytes each")

heading("logits: one score per token of the vocabulary, at every position")
with ag.no_grad():
    logits = model(ids)  # (B, T, V)
    print("logits (B, T, V) =", logits.shape)
    p = ag.softmax(logits[0, -1])  # (V,)
show(f"probabilities of the token after {ids[0].tolist()} (V,) =", p)
print(f"sum {p.data.sum():.3f}; an untrained model finds all {V} tokens about equally likely")

heading("causal: changing the last token changes no logits before it")
other = ids.copy()
other[:, -1] = 0
with ag.no_grad():
    change = np.abs(model(other).data - logits.data).max(axis=(0, 2))  # (T,)
show("largest change at each position (T,) =", change)
