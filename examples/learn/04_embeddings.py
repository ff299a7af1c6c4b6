"""4. Embeddings: each token id becomes a row of numbers that training can change, and so does each position.

    python examples/learn/04_embeddings.py

A second. Three things to see: looking a row up is the same as multiplying by a one-hot row; adding a position's row makes the
same word different at different positions; and what an embedding that knows only distances would do instead.
"""

import numpy as np
from show import heading, say, show

import autograd as ag

V, C, T = 5, 3, 4  # vocabulary, channels, positions

heading("look-up equals one-hot times matrix")
table = ag.Tensor(np.arange(V * C, dtype=float).reshape(V, C) / 10, requires_grad=True)  # (V, C)
ids = np.array([2, 0, 2, 4])  # (T,)
show("table (V, C) =", table, 1)
show("ids (T,) =", ids)
onehot = np.eye(V)[ids]  # (T, V)
show("one-hot (T, V) =", onehot, 0)
looked_up = ag.embedding(table, ids)  # (T, C)
product = ag.matmul(onehot, table)  # (T, V) @ (V, C) -> (T, C)
show("look-up (T, C) =", looked_up, 1)
print("one-hot @ table gives the same:", np.array_equal(looked_up.data, product.data))

# There is no loss yet, so we pretend one: dy says by how much it would rise with each number of the result. `backward` then finds
# by how much it would rise with each number of the table: `table.grad`.
heading("backward: each row gets the gradients of all positions that looked it up")
dy = np.array([[1.0, 1, 1], [10, 10, 10], [100, 100, 100], [0, 0, 5]])  # (T, C), what arrives from above
looked_up.backward(dy)
show("dy (T, C) =", dy, 0)
show("dtable (V, C) =", table.grad, 0)
print("Row 2 was used at positions 0 and 2: 1 + 100 = 101. Rows 1 and 3 were not used: 0.")
table.grad = None
product.backward(dy)
show("through one-hot.T @ dy, the same:", table.grad, 0)

heading("positions: token 2 stands at positions 0 and 2, and its row is the same both times; a row per position tells them apart")
positions = ag.Tensor(np.array([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]), requires_grad=True)  # (T, C), learned in a GPT
x = ag.embedding(table, ids) + ag.embedding(positions, np.arange(T))  # (T, C) + (T, C)
show("token rows + position rows (T, C) =", x, 1)
print("positions 0 and 2, same token, now differ by", (x.data[2] - x.data[0]).tolist())
say("What a model can know of the order without such rows, and what not: script 6 measures it.")

heading("absolute against relative: shift the text by one position")
# An attention score is a dot product of two rows. With absolute positions it depends on where the text begins.
rng = np.random.default_rng(0)
token = rng.standard_normal((2, 8))  # two tokens, 8 channels
position = rng.standard_normal((10, 8))  # ten positions
bias = np.array([0.0, -0.5, -1.0, -1.5])  # relative: one number per distance, added to the score
for start in (0, 1, 2):
    i, j = start + 1, start  # the second token looks back at the first
    absolute = (token[1] + position[i]) @ (token[0] + position[j])
    relative = token[1] @ token[0] + bias[i - j]
    print(f"text at positions {j}, {i}: absolute score {absolute:7.3f}   relative score {relative:7.3f}")
say("A relative scheme sees the same pair wherever it stands. GPT-2 has absolute positions: it has to learn each one.")
say(f"That is also why its context ends: there is no row for position {len(position)} in a table of {len(position)}.")
