"""3. Windows: one long stream of tokens becomes many short training examples, each with its own answers.

    python examples/learn/03_windows.py

A second. The task of a language model is: given the tokens so far, say the next one. So the answers (targets) are the inputs,
shifted by one. No human has to label anything.
"""

import numpy as np
from show import heading, say, show

from tinygpt.data.windows import BatchOrder, Windows

stream = np.arange(100, 114)  # pretend token ids; in order, so that you see at once where each came from
show("stream", stream)

heading("one window: inputs and targets, T = 4 tokens each, shifted by one")
inputs, targets = stream[0:4], stream[1:5]
show("inputs ", inputs)
show("targets", targets)
# One window holds T tasks at once, because at each position the model sees only what came before.
for t in range(4):
    print(f"  given {inputs[: t + 1].tolist()} predict {targets[t]}")

heading("stride: how far the next window starts from this one")
for stride in (4, 2, 1):
    windows = Windows(stream, context=4, stride=stride)
    x, y = windows.batch(np.arange(len(windows)))  # (windows, T) each
    print(f"stride {stride}: {len(windows)} windows {x.shape}, first {x[:, 0].tolist()}")
    # How often each token of the stream is a target: with stride = T once, with a smaller stride again and again.
    seen = np.bincount(y.reshape(-1) - 100, minlength=len(stream))
    print(f"          times each token is a target: {seen.tolist()}")
say(
    "With stride = T no target is seen twice in an epoch (one pass over all windows). Overlap gives more windows, not more text. Token 100 "
    "is never a target: nothing stands before it. Token 113 is one only with stride 1: with the others no window that fits ends there."
)

heading("how many windows: the last one needs one token more than it reads, for its last target")
n, t, s = len(stream), 4, 2
print(f"N = {n} tokens in all. Starts: 0, {s}, {2 * s}, ..., at most N - T - 1 = {n - t - 1}. How many that are:")
print(f"(N - T - 1) // stride + 1 = ({n} - {t} - 1) // {s} + 1 = {(n - t - 1) // s + 1}")

heading("batches: B windows side by side, in a random order; the same seed (any number) gives the same order again")
windows = Windows(stream, context=4, stride=2)
order = BatchOrder(len(windows), batch_size=2, seed=0)
for number, which in enumerate(order):
    x, y = windows.batch(which)
    print(f"batch {number}: windows {which.tolist()}")
    show("  inputs  (B, T) =", x)
    show("  targets (B, T) =", y)
say(
    f"{len(windows)} windows in batches of 2: {order.n_batches} batches; window {order.epoch(0)[-1]} is left over and waits for the next epoch, whose order is another (PyTorch: drop_last=True)."
)
print("epoch 0:", order.epoch(0).tolist(), " epoch 1:", order.epoch(1).tolist(), " epoch 0 again:", order.epoch(0).tolist())

heading("the same as a data loader: an object with a length and items, and a loop that makes batches of them")


class Dataset:
    def __len__(self):
        return len(windows)

    def __getitem__(self, i):
        inputs, targets = windows.batch(np.array([i]))
        return inputs[0], targets[0]  # (T,) each


dataset = Dataset()
print(f"{len(dataset)} items; item 2:", *(part.tolist() for part in dataset[2]))
for which in order.epoch(0)[:4].reshape(2, 2):
    x, y = (np.stack(parts) for parts in zip(*(dataset[i] for i in which), strict=True))  # (B, T) each
    print("batch", which.tolist(), "inputs", x.tolist())
say(
    "PyTorch's DataLoader is such a loop, with worker processes that prepare the next batches while the model computes. They help "
    "where an item has to be decoded or fetched. A window of ids is a slice of an array: it takes microseconds, and no worker."
)
