"""9. The loss: how surprised the model is by the token that came.

    python examples/learn/09_loss.py

A second. Cross-entropy with numbers to check by hand, what perplexity says, and why training starts at ln V.
"""

import math

import numpy as np
from show import heading, say, show

import autograd as ag
from tinygpt import GPT, GPTConfig

heading("from scores to surprise: three tokens, scores chosen so that e^score is 1, 2 and 5")
logits = ag.Tensor(np.log([[1.0, 2.0, 5.0]]), requires_grad=True)  # (N, V) = (1, 3)
p = ag.softmax(logits)  # (N, V)
show("probabilities 1/8, 2/8, 5/8 (N, V) =", p)
for target in range(3):
    loss = ag.cross_entropy(logits, np.array([target]))
    print(f"if token {target} comes: loss = -ln({p.data[0, target]:.3f}) = {loss.item():.3f} nats")
say(
    "A sure and right model pays 0, a model that gives the truth probability 0 pays infinitely much. Why a logarithm? The probability of a "
    "text is the product of its tokens' probabilities, and logarithms make a sum of it: ln(1/8 * 2/8) = ln 1/8 + ln 2/8."
)

heading("its gradient: probabilities minus truth")
ag.cross_entropy(logits, np.array([1])).backward()
show("dlogits for target 1 (N, V) =", logits.grad)
up = ag.Tensor(logits.data + [[0.0, 0.001, 0.0]])  # the check of script 13: move one score a little
moved = ag.cross_entropy(up, np.array([1])).item() - ag.cross_entropy(logits, np.array([1])).item()
print(f"measured: the score of token 1 rises by 0.001, and the loss by {moved:.6f}")
say("1/8 - 0, 2/8 - 1, 5/8 - 0: push the right one up, the others down by what they were given too much. The sum is 0.")

heading("several positions: the mean, and what is ignored does not count")
rows = ag.Tensor(np.log([[1.0, 2.0, 5.0], [5.0, 2.0, 1.0], [1.0, 1.0, 2.0]]))  # (3, 3)
targets = np.array([2, 1, -100])  # (3,): -100 says: no target here, as in the filled-up rows of script 20
by_hand = (-math.log(5 / 8) - math.log(2 / 8)) / 2
print(f"(-ln 5/8 - ln 2/8) / 2 = {by_hand:.4f}; the op says {ag.cross_entropy(rows, targets).item():.4f}")

heading("perplexity: e^loss, the number of equally likely tokens that would surprise as much")
for V in (2, 10, 50257):
    uniform = ag.cross_entropy(ag.Tensor(np.zeros((1, V))), np.array([0])).item()
    print(f"uniform guess over {V:>6,} tokens: loss ln({V}) = {uniform:.4f} nats, perplexity {math.exp(uniform):,.1f}")
print(f"The example above: perplexity e^{by_hand:.4f} = {math.exp(by_hand):.3f}, as unsure as a choice among {math.exp(by_hand):.1f}")

heading("why a new model starts at ln V")
V = 1000
model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=V), seed=0)
rng = np.random.default_rng(0)
ids, targets = rng.integers(0, V, (4, 16)), rng.integers(0, V, (4, 16))  # (B, T) each
with ag.no_grad():
    logits = model(ids)  # (B, T, V)
    loss = model.loss(ids, targets).item()
say(f"small weights give small logits: standard deviation {logits.data.std():.3f}, so all tokens are about equally likely")
print(f"loss {loss:.3f}, ln {V} = {math.log(V):.3f}")
model.wte.weight.data *= 30  # far too large a start
with ag.no_grad():
    loss = model.loss(ids, targets).item()
say(
    f"token embeddings 30 times larger: loss {loss:.1f}. The model is sure, and wrong. A first loss far above ln V means that something is "
    "wrong with the initial weights (or with the targets)."
)
