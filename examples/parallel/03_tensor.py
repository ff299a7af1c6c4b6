"""Tensor parallelism: the two matrices of an MLP are divided among the ranks, the first by columns, the second by rows.

    mpiexec -n 2 python -m mpi4py examples/parallel/03_tensor.py   # pip install -e ".[mpi]"

01_data.py divides the rows of a batch, and every rank holds all weights. Here every rank computes all rows, with its own hidden units alone:

    y = gelu(x @ A) @ B + b  =  sum over ranks of gelu(x @ A_r) @ B_r,  + b        A = [A_1 A_2 ...] side by side, B_r below each other

A hidden unit needs its own column of A and its own row of B, so nothing is sent until the sum. In the backward pass the sum stands at the other
end: each rank knows what its hidden units say of dx. So one op enters (forward nothing, backward a sum) and one leaves (the reverse).
"""

import numpy as np

import autograd as ag
from autograd.optim import AdamW
from tinygpt.parallel.communicator import world

ranks = world()
n_in, n_hidden, n_out = 32, 128, 8
rng = np.random.default_rng(0)  # the same numbers everywhere, in float64: float32's rounding would hide small mistakes
A, B, b = rng.standard_normal((n_in, n_hidden)) / 6, rng.standard_normal((n_hidden, n_out)) / 11, np.zeros(n_out)
batches = rng.standard_normal((10, 64, n_in))
targets = np.sin(3 * batches[..., :n_out])  # what it learns


class Enter(ag.Op):
    """Forward  y = x          Backward  dx = sum over ranks of dy: each rank uses x, and all uses of an array add up."""

    @staticmethod
    def forward(x):
        return x, None

    @staticmethod
    def backward(saved, dy):
        dx = dy.copy()
        ranks.all_reduce(dx)
        return dx


class Leave(ag.Op):
    """Forward  y = sum over ranks of x          Backward  dx = dy: x is one term of the sum."""

    @staticmethod
    def forward(x):
        y = x.copy()
        ranks.all_reduce(y)
        return y, None

    @staticmethod
    def backward(saved, dy):
        return dy


def mlp(x: ag.Tensor, weights: dict[str, ag.Parameter]) -> ag.Tensor:
    h = ag.gelu(Enter.apply(x) @ weights["A"])  # some hidden units
    return Leave.apply(h @ weights["B"]) + weights["b"]  # b once, after the sum


def train(forward, weights: dict[str, ag.Parameter]) -> tuple[float, np.ndarray]:
    """(Loss of the last batch, its slope by the input) after ten updates."""
    optimizer = AdamW(weights.items(), lr=1e-2)
    for batch, target in zip(batches, targets, strict=True):
        optimizer.zero_grad()
        x = ag.Tensor(batch, requires_grad=True)
        error = forward(x, weights) - target
        loss = (error * error).mean()
        loss.backward()
        optimizer.step()
    return loss.item(), x.grad


n = [n_hidden * (rank + 1) // ranks.size - n_hidden * rank // ranks.size for rank in range(ranks.size)]
own = slice(sum(n[: ranks.rank]), sum(n[: ranks.rank + 1]))
mine = {"A": ag.Parameter(A[:, own].copy()), "B": ag.Parameter(B[own].copy()), "b": ag.Parameter(b.copy())}
full = {"A": ag.Parameter(A), "B": ag.Parameter(B), "b": ag.Parameter(b)}
loss, dx = train(mlp, mine)
expected, right = train(lambda x, w: ag.gelu(x @ w["A"]) @ w["B"] + w["b"], full)

differences = [dx - right, mine["A"].data - full["A"].data[:, own], mine["B"].data - full["B"].data[own], mine["b"].data - full["b"].data]
difference = ranks.agree(max(float(np.abs(d).max()) for d in differences))
if ranks.rank == 0:
    owner = [rank for rank in range(ranks.size) for _ in range(n[rank])]  # of each hidden unit
    units = "".join(str(owner[i * n_hidden // 48])[-1] for i in range(48))
    print(f"x     {'on every rank':^48}  what each rank holds, by its number:")
    print("\n".join(f"{name:<4}  {units}  {what}" for name, what in (("A", "columns"), ("h", "hidden units"), ("B.T", "rows of B"))))
    print(f"y     {'on every rank':^48}  the sum\n")
    print(f"{'rank':>6}  {'A':>9}  {'B':>9}  {'b':>3}  weights of {A.size + B.size + b.size:,}")
    for rank, units in enumerate(n):
        print(f"{rank:>6}  {f'{n_in} x {units}':>9}  {f'{units} x {n_out}':>9}  {n_out:>3}  {units * (n_in + n_out) + n_out:,}")
    print(f"loss {loss:.6f}, in one process {expected:.6f}; weights and dx after 10 updates differ by at most {difference:.0e}")
