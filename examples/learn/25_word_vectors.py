"""25. Word vectors: ids and one-hot rows carry no meaning; vectors that predict a word's neighbors do.

    python examples/learn/25_word_vectors.py
    python examples/learn/25_word_vectors.py --plot words.png       # with matplotlib: pip install -e ".[plot]"

Seconds. Skip-gram with negative sampling (word2vec: Mikolov et al. 2013, arXiv:1310.4546, section 2) on the documentation that comes with
NumPy and Python; then the same questions to the token embeddings of a small GPT.
"""

import argparse

import numpy as np
from show import heading, say
from train import draw_words, middle_rank, small_gpt, sub_words, train, words

import autograd as ag
from autograd import nn
from autograd.optim import AdamW
from tinygpt.data.windows import Windows
from tinygpt.inspect.embedding_map import nearest, unit_rows

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--plot", metavar="FILE", help="also draw a map of some words into this picture")
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
rng = np.random.default_rng(args.seed)

C, REACH, K, BATCH, UPDATES, RATE = 48, 4, 5, 1024, 1500, 0.015  # REACH: words looked at on each side; K: noise words a pair
texts, held_out, vocabulary = words()  # as ids
V, number = len(vocabulary), {word: i for i, word in enumerate(vocabulary)}

heading(f"{V:,} words: by their ids, in order of frequency or of the alphabet, and as one-hot rows")
alphabet = {word: i for i, word in enumerate(sorted(vocabulary))}
for a, b in (("array", "arrays"), ("minimum", "maximum"), ("array", "poisson")):
    apart, onehot = [abs(ids[a] - ids[b]) for ids in (number, alphabet)], np.eye(V)[[number[a], number[b]]]
    print(f"{a + ', ' + b:20} ids {apart[0]:5,} apart, or {apart[1]:5,}   ", end="")
    print(f"one-hot: {np.linalg.norm(onehot[0] - onehot[1]):.3f} apart, cosine {onehot[0] @ onehot[1]:.3f}")
say("How far ids are apart is an accident of the order. One-hot rows are all equally far apart. Neither knows that two words are alike.")
share = np.bincount(np.concatenate(texts)) / sum(map(len, texts))
keep = np.minimum(1, np.sqrt(1e-3 / share))  # subsampling: the more frequent a word, the fewer of it are read
noise = np.cumsum(share**0.75)[:-1] / (share**0.75).sum()  # P(noise word <= i): rare words more often than they occur


def pairs(texts):
    """(a word, a neighbor of it) as ids (N, 2). Each word looks 1 to REACH words far, by chance: near ones count more."""
    sides = []
    for ids in texts:
        ids = ids[rng.random(len(ids)) < keep[ids]]
        far = rng.integers(1, REACH + 1, len(ids))
        for d in range(1, REACH + 1):
            sides += [(ids[:-d][far[:-d] >= d], ids[d:][far[:-d] >= d]), (ids[d:][far[d:] >= d], ids[:-d][far[d:] >= d])]
    return np.concatenate(sides, axis=1).T


class SkipGram(nn.Module):
    """Each word has two vectors: one for itself, one for when it is a neighbor. The score of a pair is their dot product."""

    def __init__(self):
        self.word = nn.Embedding(V, C, init=lambda shape: (rng.random(shape, dtype=np.float32) - 0.5) / C)
        self.neighbor = nn.Embedding(V, C, init=lambda shape: np.zeros(shape, np.float32))

    def loss(self, words, neighbors):
        """Mean over N pairs of -log sigmoid(score), plus -log sigmoid(-score) for each of K noise words instead of the neighbor."""
        others = np.concatenate([neighbors[:, None], np.searchsorted(noise, rng.random((len(words), K)))], axis=1)  # (N, 1 + K)
        scores = self.neighbor(others) @ self.word(words).reshape(-1, C, 1)  # (N, 1 + K, C) @ (N, C, 1) -> (N, 1 + K, 1)
        return -ag.log(ag.sigmoid(scores * np.array([[1]] + [[-1]] * K, np.float32))).sum() / len(words)


heading(f"{UPDATES:,} updates of {BATCH:,} pairs, from (1 + K) ln 2 = {(1 + K) * np.log(2):.3f} down; then the words nearest by cosine")
model, found, losses = SkipGram(), pairs(texts), []
optimizer = AdamW(model, lr=RATE, weight_decay=0)
for update in range(UPDATES):
    optimizer.lr = RATE * (1 - update / UPDATES)
    optimizer.zero_grad()
    loss = model.loss(*found[rng.integers(0, len(found), BATCH)].T)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    if update == 0 or (update + 1) % 300 == 0:
        print(f"update {update + 1:5,}: loss {np.mean(losses[-100:]):.3f}, the mean of up to a hundred", flush=True)
rows = unit_rows(model.word.weight.data)
for word in ("chebyshev", "eigenvalues", "minimum", "poisson", "cos", "indexerror", "left", "file"):
    print(f"{word:12} {' '.join(vocabulary[i] for i in nearest(rows, np.array([number[word]]), 6)[0][0])}")

heading("better than chance?")
held = pairs(held_out)
noisy = np.stack([held[:, 0], np.searchsorted(noise, rng.random(len(held)))], axis=1)
new = ~(np.isin(held @ [V, 1], found @ [V, 1]) | np.isin(noisy @ [V, 1], found @ [V, 1]))  # training has seen neither pair
right = np.greater(*((model.word(i).data * model.neighbor(j).data).sum(axis=1) for i, j in (held.T, noisy.T)))
print(f"held-out text: a neighbor scores higher than a noise word in {right.mean():.1%} of {len(held):,}")
print(f"cases (chance 50%), and in {right[new].mean():.1%} of the {new.sum():,} where training has seen neither pair")
plurals = np.array([(number[word], number[word + "s"]) for word in vocabulary if len(word) > 2 and word + "s" in number])
print(f"{len(plurals)} words and their plurals: {middle_rank(rows, plurals):.0f} words are nearer (median; chance {V // 2:,})")
KINDS = {
    "polynomials": "chebyshev legendre hermite laguerre", "eigenvalues": "eigenvalues eigenvectors eigh symmetric hermitian",
    "extremes": "minimum maximum smallest largest", "errors": "typeerror valueerror indexerror attributeerror keyerror",
    "distributions": "normal poisson gamma geometric laplace cauchy binomial", "language": "statement expression clause keyword yield",
}  # fmt: skip
kind = {word: name for name, text in KINDS.items() for word in text.split() if word in number}
x = rows[[number[word] for word in kind]]  # (N, C)
best = nearest(x, np.arange(len(x)), 1)[0][:, 0]
same = np.array([[a == b for b in kind.values()] for a in kind.values()])
hits, chance = same[range(len(x)), best].mean(), (same.sum() / len(x) - 1) / (len(x) - 1)
print(f"{len(x)} words of {len(KINDS)} kinds: the nearest of them is of the same kind in {hits:.0%} (chance {chance:.0%})")

heading("token embeddings of a GPT of one layer, 1,024 sub-words: rows that it reads, and rows of its output layer")
ids, _, tokenizer = sub_words()
tokens = {tokenizer.token_bytes(i): i for i in range(tokenizer.n_vocab)}
gpt = small_gpt(len(tokens), 32, C, args.seed, tie_word_embeddings=False)
train(gpt, Windows(ids, 32), 200, batch_size=32, peak=0.01, warmup=20, report=50)
twins = np.array([(i, tokens[token[1:]]) for token, i in tokens.items() if token[:1] == b" " and len(token) > 2 and token[1:] in tokens])
for name, layer in (("read", gpt.wte), ("output", gpt.lm_head)):
    rows = unit_rows(layer.weight.data)
    rank = f"{middle_rank(rows, twins):.0f} are nearer (median; chance {len(rows) // 2})"
    print(f"{name:6} {len(twins)} tokens, and the same without the space: {rank}")
    for token in (b" the", b" True"):
        print(f"       {token.decode()!r:9}", *(repr(tokenizer.decode([i])) for i in nearest(rows, np.array([tokens[token]]), 6)[0][0]))
if args.plot:
    u, s, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)  # principal components: the axes along which the words vary most
    draw_words(args.plot, kind, u[:, :2] * s[:2], f"two of {C} axes, with {(s[:2] ** 2).sum() / (s**2).sum():.0%} of the variance")
