"""4. Embeddings: each token id becomes a row of numbers that training can change, and so does each position.

    python examples/learn/04_embeddings.py

A second. Three things to see: looking a row up is the same as multiplying by a one-hot row; adding a position's row makes the
same word different at different positions; and what a number for each distance does instead.
"""

import numpy as np
from show import heading, say, show

import autograd as ag

V, C, T = 5, 3, 4  # vocabulary, channels, positions

heading("look-up equals one-hot times matrix")
table = ag.Tensor(np.arange(V * C, dtype=float).reshape(V, C) / 10, requires_grad=True)  # (V, C); its gradient will be wanted
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
say(
    "Row 2 was used at positions 0 and 2: if one of its numbers rises by 0.01, it rises in both, and the loss by 0.01 (1 + 100). So the "
    "gradient is 101. Rows 1 and 3 were not used: 0."
)
table.grad = None  # gradients add up until they are cleared
product.backward(dy)
show("through the product: one-hot.T @ dy, which adds up the same rows", table.grad, 0)

heading("positions: token 2 stands at positions 0 and 2, and its row is the same both times; a row per position tells them apart")
positions = ag.Tensor(np.array([[0.0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]), requires_grad=True)  # (T, C), learned in a GPT
x = ag.embedding(table, ids) + ag.embedding(positions, np.arange(T))  # (T, C) + (T, C)
show("token rows + position rows (T, C) =", x, 1)
print("positions 0 and 2, same token, now differ by", (x.data[2] - x.data[0]).tolist())
say("What a model can know of the order without such rows, and what not: script 6 measures it.")

heading("absolute against relative: shift the text by one position")
# Attention, the next script, compares two tokens by a dot product: their numbers multiplied one by one, and added up.
token, position = np.array([[1, 2], [3, 1]]), np.array([[0, 0], [1, 0], [0, 1], [2, 1]])  # two tokens, four positions; 2 channels
bias = np.array([0, -1, -2, -3])  # relative: one number for each distance, added to the dot product
for start in (0, 1, 2):
    i, j = start + 1, start  # token 1 stands behind token 0
    a, b = token[1] + position[i], token[0] + position[j]
    print(f"at positions {j}, {i}: absolute {a.tolist()} . {b.tolist()} = {a @ b:2d}", end="    ")
    print(f"relative {token[1].tolist()} . {token[0].tolist()} + ({bias[i - j]}) = {token[1] @ token[0] + bias[i - j]}")
say("By distance, a pair is the same wherever it stands. GPT-2 has a row for each position, and has to learn every one of them.")
say(f"That is also why its context ends: there is no row for position {len(position)} in a table of {len(position)}.")
