"""Data parallelism in its plainest form: every rank computes some rows, the gradients are added up, all make the same update.

python examples/parallel/01_data.py                          # one rank: nothing to add
mpiexec -n 2 python -m mpi4py examples/parallel/01_data.py   # pip install -e ".[mpi]"
"""

import numpy as np

from autograd.optim import AdamW
from tinygpt import GPT, GPTConfig
from tinygpt.parallel.communicator import world

ranks = world()
model = GPT(GPTConfig(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=64), seed=0)  # the same weights everywhere
alone = GPT(model.config, seed=0)  # what one process would train, to compare with
for p in (*model.parameters(), *alone.parameters()):
    p.data = p.data.astype(np.float64)  # float32's rounding would hide small mistakes
ids = np.random.default_rng(0).integers(0, 64, (10, 12, 17))  # 10 batches of 12 rows, the same everywhere


def update(model: GPT, optimizer: AdamW, rows: np.ndarray, share: float, *, together: bool) -> float:
    optimizer.zero_grad()
    loss = model.loss(rows[:, :-1], rows[:, 1:]) * share  # the mean over the own rows counts as much as they are of all
    loss.backward()
    total = np.array([loss.item()])
    if together:
        ranks.all_reduce(optimizer.gradient)  # all gradients lie in one flat array: one sum an update
        ranks.all_reduce(total)
    optimizer.step(max_norm=1.0)  # every rank has the same sum, so every rank makes the same update
    return float(total[0])


optimizer, reference = AdamW(model, lr=1e-2), AdamW(alone, lr=1e-2)
for batch in ids:
    mine = batch[ranks.rank :: ranks.size]
    loss = update(model, optimizer, mine, len(mine) / len(batch), together=True)
    expected = update(alone, reference, batch, 1.0, together=False)

difference = ranks.agree(float(np.abs(optimizer.weight - reference.weight).max()))
if ranks.rank == 0:
    print(f"{'rank':>6}  {'weights':>9}  {'gradients':>9}  {'moments':>9}  rows of a batch")
    for rank in range(ranks.size):
        n = optimizer.weight.size
        print(f"{rank:>6}  {n:>9,}  {n:>9,}  {2 * n:>9,}  {', '.join(map(str, range(rank, 12, ranks.size)))}")
    print(f"loss {loss:.6f}, in one process {expected:.6f}; weights after 10 updates differ by at most {difference:.0e}")
