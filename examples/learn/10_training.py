"""10. The training loop, with nothing hidden: batches, forward, backward, AdamW written out, and the text it learns to write.

    python examples/learn/10_training.py

Some ten seconds; the first line of losses comes at once, then one for each 50 updates. The text is Python's own language manual, which
comes with every Python. Only the model is ours (script 8).
"""

import math
import pydoc_data.topics
import time

import numpy as np
import show  # noqa: F401  (answers --help)

import autograd as ag
from autograd.optim import warmup_cosine
from tinygpt import GPT, GPTConfig

# Text -> characters -> ids -> a training and a validation part.
text = "\n".join(pydoc_data.topics.topics[name] for name in ("if", "while", "for", "try", "with", "function", "class", "import"))
characters = sorted(set(text))
ids = np.array([characters.index(c) for c in text])  # (N,)
train, validation = ids[: len(ids) * 9 // 10], ids[len(ids) * 9 // 10 :]
T, B, V, STEPS = 32, 16, len(characters), 300
print(f"{len(text):,} characters, {V} different; {len(train):,} to train on, {len(validation):,} to validate with")

model = GPT(GPTConfig(n_layer=2, n_head=4, n_embd=64, n_positions=T, vocab_size=V), seed=0)
parameters = model.parameters()
m = [np.zeros_like(p.data) for p in parameters]  # AdamW: running mean of the gradient
v = [np.zeros_like(p.data) for p in parameters]  # AdamW: running mean of its square
b1, b2, eps, decay, peak, WARMUP = 0.9, 0.95, 1e-8, 0.1, 3e-3, 20
rng = np.random.default_rng(0)


def batch(stream):
    starts = rng.integers(0, len(stream) - T, B)  # (B,)
    rows = stream[starts[:, None] + np.arange(T + 1)]  # (B, T + 1): windows that start anywhere, script 3's order without the passes
    return rows[:, :-1], rows[:, 1:]  # inputs and targets (B, T), shifted by one


def validation_loss():
    with ag.no_grad():
        windows = validation[: len(validation) // (T + 1) * (T + 1)].reshape(-1, T + 1)
        return model.loss(windows[:, :-1], windows[:, 1:]).item()


def rate(step):
    """Learning rate of update `step`, counted from 0: a straight line up to the peak, then half a cosine down to a tenth of it."""
    if step < WARMUP:
        return peak * (step + 1) / WARMUP
    progress = (step - WARMUP) / (STEPS - 1 - WARMUP)  # from 0 to 1
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def write(prompt, n, shown):
    """The autoregressive loop: predict one token, append it, feed the longer text back in. Prints the first `shown` rounds."""
    dice, out = np.random.default_rng(0), [characters.index(c) for c in prompt]
    for i in range(n):
        with ag.no_grad():
            logits = model([out[-T:]])  # (1, up to T, V): the model reads no more than its context
        p = ag.softmax(logits[0, -1]).data.astype(float)  # (V,): only the last position predicts what is new
        new = int(dice.choice(V, p=p / p.sum()))  # drawn with these probabilities
        if i < shown:
            text = "".join(characters[j] for j in out)
            print(f"  read {text!r:<14} likeliest {characters[p.argmax()]!r} {p.max():.2f}, drawn {characters[new]!r} {p[new]:.2f}")
        out.append(new)
    return "".join(characters[j] for j in out)


assert all(math.isclose(rate(s), warmup_cosine(s, peak=peak, warmup_steps=WARMUP, n_steps=STEPS)) for s in range(STEPS))  # the library's
print("rate at updates 1, 10, 20, 21, 160, 300:", *(f"{rate(n - 1):.1e}" for n in (1, 10, 20, 21, 160, 300)))
print(f"a uniform guess costs ln {V} = {math.log(V):.3f} nats per character; the untrained model {validation_loss():.3f}")
print(f"{STEPS} updates follow, a line for each 50 of them: some ten seconds in all")
started = time.perf_counter()
for step in range(1, STEPS + 1):
    inputs, targets = batch(train)
    loss = model.loss(inputs, targets)  # forward: a number, and a graph of how it came about
    for p in parameters:
        p.grad = None  # gradients add up until cleared
    loss.backward()  # backward: p.grad for every parameter

    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in parameters))  # the length of all gradients as one long vector
    clip = min(1.0, 1.0 / norm)  # one bad batch must not throw the weights far away
    lr = rate(step - 1)
    for i, p in enumerate(parameters):
        g = p.grad * clip
        m[i] = b1 * m[i] + (1 - b1) * g
        v[i] = b2 * v[i] + (1 - b2) * g * g
        # Both means started at 0: divide that out. At step 1, m = 0.1 g and v = 0.05 g g, so this is g / |g|: 1 or -1 for every weight.
        step_size = (m[i] / (1 - b1**step)) / (np.sqrt(v[i] / (1 - b2**step)) + eps)  # eps: never divide by 0
        if p.ndim >= 2:  # matrices decay towards 0, biases and norms do not
            p.data *= 1 - lr * decay
        p.data -= lr * step_size
    if step == 1 or step % 50 == 0:
        print(f"step {step:3d}  training loss {loss.item():.3f}  validation {validation_loss():.3f}  norm {norm:.2f}  lr {lr:.1e}")
seconds = time.perf_counter() - started
print(f"{STEPS * B * T / seconds:,.0f} characters a second")
now = validation_loss()
print(f"e^{now:.3f} = {math.exp(now):.1f}: as unsure as a choice among so many characters; it began at {V}")
print("It writes, one character after the other:")
print(write("The ", 200, shown=8))
