"""ZeRO stage 1: the optimizer's state, twice as large as the weights, is divided among the ranks instead of copied.

    mpiexec -n 2 python -m mpi4py examples/parallel/02_zero.py   # pip install -e ".[mpi]"

01_data.py keeps all moments everywhere and makes every update N times. Here a rank keeps the moments of its part and updates only that:
the sum of gradients is cut in two, a reduce-scatter before the update and an all-gather of the weights after it, at the cost of one all-reduce.
"""

import math

import numpy as np

from autograd.optim import AdamW
from tinygpt import GPT, GPTConfig
from tinygpt.parallel.communicator import world

ranks = world()
model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=64), seed=0)
alone = GPT(model.config, seed=0)
for p in (*model.parameters(), *alone.parameters()):
    p.data = p.data.astype(np.float64)  # float32's rounding would hide small mistakes
ids = np.random.default_rng(0).integers(0, 64, (10, 12, 17))
betas, eps, lr = (0.9, 0.999), 1e-8, 1e-2

flat, reference = AdamW(model, lr=0.0), AdamW(alone, lr=lr, weight_decay=0.0)  # `flat` lends its buffers of weights and gradients
n = flat.weight.size
lengths = [n * (rank + 1) // ranks.size - n * rank // ranks.size for rank in range(ranks.size)]
start = n * ranks.rank // ranks.size
own = slice(start, start + lengths[ranks.rank])
m, v = np.zeros(lengths[ranks.rank]), np.zeros(lengths[ranks.rank])  # of the own part alone

for t, batch in enumerate(ids, start=1):
    mine = batch[ranks.rank :: ranks.size]
    flat.zero_grad()
    (model.loss(mine[:, :-1], mine[:, 1:]) * (len(mine) / len(batch))).backward()
    g = ranks.reduce_scatter(flat.gradient, lengths)  # the own part of the sum
    squared = np.array([g @ g])
    ranks.all_reduce(squared)  # clipping needs the norm of all of it: one number
    g = g * min(1.0, 1.0 / (math.sqrt(float(squared[0])) + 1e-6))
    m[:] = betas[0] * m + (1 - betas[0]) * g
    v[:] = betas[1] * v + (1 - betas[1]) * g * g
    flat.weight[own] -= lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    ranks.all_gather(flat.weight[own], flat.weight, lengths)  # everyone needs all weights for the next forward pass

    reference.zero_grad()
    alone.loss(batch[:, :-1], batch[:, 1:]).backward()
    reference.step(max_norm=1.0)

difference = ranks.agree(float(np.abs(flat.weight - reference.weight).max()))
if ranks.rank == 0:
    print(f"{'rank':>6}  {'weights':>9}  {'gradients':>9}  {'moments':>9}  updates")
    for rank, length in enumerate(lengths):
        print(f"{rank:>6}  {n:>9,}  {n:>9,}  {2 * length:>9,}  {sum(lengths[:rank]):,} to {sum(lengths[: rank + 1]) - 1:,}")
    print(f"weights after 10 updates differ from one process's by at most {difference:.0e}")
