"""Ops between the ranks of a group, each of which holds a part of a layer: what tensor parallelism is made of.

Every rank runs the same program on its own part. The loss of one rank reaches the weights of all, so some arrays have to be added up over the
group, some in the forward pass and some in the backward pass. Which ones, is all that these ops say.
"""

import math
from collections.abc import Sequence
from typing import Protocol

from autograd.backend import ArrayLike, xp
from autograd.core import Array, Op, Tensor, accumulator_dtype, float32_if_half
from autograd.ops.activation import SoftCap
from autograd.ops.elementwise import as_tensor
from autograd.ops.loss import LinearCrossEntropy, as_targets


class Group(Protocol):
    """What the ops need of ranks that work together; all of them make the same calls in the same order.

    rank, size                         which one this is, 0 to size - 1; how many there are
    all_reduce(array)                  replaces the array by the sum over all ranks
    all_gather(part, out, lengths)     fills the flat array `out` with the parts of all ranks, in order; lengths: of each
    """

    rank: int
    size: int

    def all_reduce(self, array: Array) -> None: ...
    def all_gather(self, part: Array, out: Array, lengths: Sequence[int]) -> None: ...


class CopyToGroup(Op):
    """Where an array that all ranks have enters layers of which each rank has a part.

    Forward     y_r = x                       on each rank r: nothing is sent
    Backward    dx = sum over ranks of dy_r
    Why the sum: each rank uses x in its own way, and an array that is used several times gets the sum of the gradients of all uses.

    Shapes      any, the same on all ranks.  Saves nothing.
    Source      Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, section 3: the op f.
    """

    @staticmethod
    def forward(x: Array, *, group: Group) -> tuple[Array, Group]:
        return x, group

    @staticmethod
    def backward(group: Group, dy: Array) -> Array:
        return _summed(dy, group)

    @staticmethod
    def flops(inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> int:
        return 0


class SumOverGroup(Op):
    """Where what the ranks have computed apart is added up, and all have it again.

    Forward     y = sum over ranks of x_r
    Backward    dx_r = dy                     on each rank r: nothing is sent
    Why no sum: x_r is one term of y, with slope 1, and dy is the same on all ranks.

    Shapes      any, the same on all ranks.  Saves nothing.
    Source      Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, section 3: the op g.
    """

    @staticmethod
    def forward(x: Array, *, group: Group) -> tuple[Array, None]:
        return _summed(x, group), None

    @staticmethod
    def backward(saved: None, dy: Array) -> Array:
        return dy


class SplitLinearCrossEntropy(Op):
    """The output layer and its loss where each rank has some rows of W, so some of the logits: nobody ever has all of them.

    Forward     z_r = x @ W_r^T,  m_r = max z_r,  s_r = sum e^(z_r - m_r)          per row, over the rank's own part of the vocabulary
                t_r = the target's logit, 0 where it is another rank's;  u_r = sum z_r
                the ranks gather these four numbers of each row instead of its V logits:
                m = max m_r,  lse = m + ln sum_r s_r e^(m_r - m)
                loss = mean over counted rows of  lse - (1 - a) sum_r t_r - a / V sum_r u_r           a: label smoothing
    Backward    dz_r = dloss (e^(z_r - lse) - w_r) / n,  dx_r = dz_r @ W_r,  dW_r = dz_r^T @ x        w_r: the own part of w
    With softcap and z_loss as in LinearCrossEntropy, whose numbers these are. dx is the sum of all dx_r: `split_linear_cross_entropy` puts
    CopyToGroup in front, which adds them up.

    Shapes      x (N, C), the same on all ranks, W_r (V_r, C), targets (N,) integers 0 .. V - 1 -> scalar, the same on all ranks.
                Saves dx_r (N, C) and dW_r (V_r, C), each if needed.
    Source      Shoeybi et al. 2019, Megatron-LM, arXiv:1909.08053, section 3, which adds up s_r and t_r as here.
    """

    takes_half = True  # in the three products; softmax, loss and the sum of dW over chunks are float32

    @staticmethod
    def forward(
        x: Array, weight: Array, targets: Array, *, group: Group, n_classes: int, n_counted: int, ignore_index: int,
        label_smoothing: float, chunk: int, softcap: float = 0.0, z_loss: float = 0.0, needs: tuple[bool, bool, bool],
    ) -> tuple[Array, tuple[Array | None, ...]]:  # fmt: skip
        total = xp.zeros((), dtype=accumulator_dtype(x))
        dx = xp.empty_like(x) if needs[0] else None
        dweight = xp.zeros_like(weight, dtype=accumulator_dtype(weight)) if needs[1] else None
        for start in range(0, x.shape[0], chunk):
            rows = slice(start, start + chunk)
            z = float32_if_half(x[rows] @ weight.T)
            if softcap:
                z, t = SoftCap.forward(z, cap=softcap)
            counted, own = targets[rows] != ignore_index, targets[rows] - own_classes(n_classes, group)[0]
            losses, dz = _of_parts(z, own, group, n_classes, label_smoothing, z_loss)
            total = total + xp.where(counted, losses, 0).sum()
            if not any(needs):
                continue
            dz *= counted[:, None]
            if softcap:
                dz = SoftCap.backward(t, dz)
            dz = dz.astype(x.dtype, copy=False)
            if dx is not None:
                dx[rows] = dz @ weight
            if dweight is not None:
                dweight += dz.T @ x[rows]
        return total / n_counted, (dx, dweight, n_counted)

    @staticmethod
    def backward(saved: tuple[Array | None, ...], dy: Array) -> tuple[Array | None, Array | None, None]:
        dx, dweight, n_counted = saved
        scale = dy / n_counted
        dx, dweight = (None if d is None else d * scale for d in (dx, dweight))
        return dx, dweight, None

    flops = staticmethod(LinearCrossEntropy.flops)


def _of_parts(z: Array, own: Array, group: Group, n_classes: int, label_smoothing: float, z_loss: float) -> tuple[Array, Array]:
    """Losses (N,), and q - w (N, V_r), from the own logits z (N, V_r) and the targets' columns in them: those of others lie outside."""
    rows, here = xp.arange(z.shape[0]), (own >= 0) & (own < z.shape[1])
    columns = xp.where(here, own, 0)
    largest = z.max(axis=1)
    p = xp.exp(z - largest[:, None])
    mine = xp.stack([largest, p.sum(axis=1), xp.where(here, z[rows, columns], 0), z.sum(axis=1)])
    parts = xp.empty((group.size, *mine.shape), dtype=mine.dtype)  # (ranks, 4, N)
    group.all_gather(mine.reshape(-1), parts.reshape(-1), [mine.size] * group.size)
    m = parts[:, 0].max(axis=0)
    log_total = xp.log((parts[:, 1] * xp.exp(parts[:, 0] - m)).sum(axis=0))
    losses = log_total - (1 - label_smoothing) * (parts[:, 2].sum(axis=0) - m)
    if label_smoothing:
        losses -= label_smoothing * (parts[:, 3].sum(axis=0) / n_classes - m)
    lse = m + log_total
    factor = xp.exp(largest - lse)
    if z_loss:
        losses += z_loss * lse * lse
        factor *= 1 + 2 * z_loss * lse
    p *= factor[:, None]
    p[rows, columns] -= (1 - label_smoothing) * here
    if label_smoothing:
        p -= label_smoothing / n_classes
    return losses, p


def own_classes(n_classes: int, group: Group) -> tuple[int, int]:
    """First and last + 1 of the rank's part of a vocabulary: parts of neighbors may differ by one, so every size can be divided."""
    return n_classes * group.rank // group.size, n_classes * (group.rank + 1) // group.size


def copy_to_group(x: Tensor, group: Group) -> Tensor:
    """x itself, whose gradient is the sum of those that the ranks of the group have for it. All ranks hold the same x."""
    return CopyToGroup.apply(as_tensor("copy_to_group", x), group=group)


def sum_over_group(x: Tensor, group: Group) -> Tensor:
    """The sum of the x of all ranks of the group, whose shapes agree; the gradient of each x is that of the sum."""
    return SumOverGroup.apply(as_tensor("sum_over_group", x), group=group)


def split_linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: ArrayLike, group: Group, *, n_classes: int,
    ignore_index: int = -100, label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float = 0.0, chunk: int = 1024,
) -> Tensor:  # fmt: skip
    """`linear_cross_entropy(x, W, targets)` of a W (V, C) whose rows V r / R to V (r + 1) / R, rounded down, are `weight` on rank r of R.

    x (..., C) and targets (...), the same on all ranks; weight (V_r, C); n_classes: V. The options are those of `linear_cross_entropy`.
    Returns the same scalar, in nats, on all ranks. Raises ValueError as that does, and for another number of rows than the rank's.
    """
    op = "split_linear_cross_entropy"
    x, weight = as_tensor(op, x), as_tensor(op, weight)
    first, end = own_classes(n_classes, group)
    if x.ndim == 0 or weight.shape != (end - first, x.shape[-1]) or first == end:
        expected = f"expected ({max(end - first, 1)}, {x.shape[-1] if x.ndim else 'C'}), rows {first} to {end - 1} of {n_classes}"
        raise ValueError(f"{op}: weight of shape {weight.shape} on rank {group.rank} of {group.size}, {expected}; split it by rows")
    if not 0 <= softcap < math.inf:
        raise ValueError(f"{op}: softcap {softcap}, expected a positive number, or 0 for no bound")
    if chunk < 1:
        raise ValueError(f"{op}: chunk {chunk}, expected at least 1; it counts rows")
    device_targets, options = as_targets(op, targets, x.shape[:-1], n_classes, ignore_index, label_smoothing, z_loss)
    options |= {"softcap": float(softcap), "n_classes": n_classes, "chunk": chunk}
    x = copy_to_group(x, group).reshape(device_targets.size, x.shape[-1])
    return SplitLinearCrossEntropy.apply(x, weight, device_targets, group=group, **options)


def _summed(array: Array, group: Group) -> Array:
    """The sum over all ranks, in new memory; the array itself where there is one rank."""
    if group.size == 1:
        return array
    total = xp.array(array, order="C")
    group.all_reduce(total)
    return total
