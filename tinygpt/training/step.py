"""One training step on one page: micro-batches, loss, backward pass, gradient clipping, update.

    loss, norm = train_step(model, AdamW(model, lr=1e-3), batches, max_norm=1.0)

1. Micro-batches.  What an update learns from may need more memory than there is. It comes as a list of micro-batches: the gradient of a
   sum is the sum of the gradients, so `backward` adds each one's into the same arrays, and one at a time holds activations.
2. Loss.  `model.loss` is a mean over the targets of its micro-batch that count (padding and prompts do not). A micro-batch with more of
   them gets a larger share, so that every target weighs the same:

       L = sum_i s_i L_i      s_i = n_i / sum_j n_j      n_i: targets of micro-batch i that count

3. Backward pass.  dL/dw = sum_i s_i dL_i/dw: each loss is multiplied by its share before its backward pass. In float16 also by a scale, which
   the finished gradients are divided by, so that small ones on the way do not round to 0: see loss_scale.py.
4. Clip.  One bad batch must not throw the weights far: with g all gradients as one vector, g <- g min(1, max_norm / |g|), in its direction.
5. Update.  The optimizer moves the weights (AdamW: `autograd/optim/adam.py`), at the learning rate that the schedule has set.

Source  clipping: Pascanu, Mikolov and Bengio 2013, arXiv:1211.5063, algorithm 1.
"""

from collections.abc import Sequence
from typing import NamedTuple

from autograd import Array
from autograd.optim import FlatOptimizer
from tinygpt.data.windows import count_targets
from tinygpt.models.protocols import Batch, GradientWorkers, Trainable
from tinygpt.training.loss_scale import DynamicLossScale


def train_step(
    model: Trainable, optimizer: FlatOptimizer, batches: Sequence[Batch], *,
    max_norm: float = 0.0, workers: GradientWorkers | None = None, loss_scale: DynamicLossScale | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """One update from micro-batches. Returns (mean loss in nats per target, gradient norm before clipping), scalars on the device.

    max_norm     0: no clipping
    workers      processes that share the rows of each micro-batch; None: this process alone
    loss_scale   for a model that computes in float16: moves with each update, and skips those whose gradients overflow
    """
    loss = compute_gradients(model, optimizer, batches, workers, loss_scale)
    norm = optimizer.gradient_norm()
    if loss_scale is None or loss_scale.update(float(norm)):
        clip_and_update(optimizer, norm, max_norm)
    return loss, norm


def compute_gradients(
    model: Trainable, optimizer: FlatOptimizer, batches: Sequence[Batch], workers: GradientWorkers | None = None,
    loss_scale: DynamicLossScale | None = None,
) -> Array:  # fmt: skip
    """Steps 1 to 3: leaves the gradients in the optimizer's buffer and returns the mean loss, nats per target, on the device."""
    optimizer.zero_grad()
    n_targets = [count_targets(batch) for batch in batches]
    scale = loss_scale.of_update(len(batches)) if loss_scale else 1.0
    shares = [scale * n / sum(n_targets) for n in n_targets]
    loss = workers.gradients(optimizer, batches, shares) if workers else None
    if loss is None:
        loss = accumulate(model, [Shard(batch, share) for batch, share in zip(batches, shares, strict=True)])
    if scale != 1:
        optimizer.gradient *= 1 / scale
        loss = loss / scale
    return loss


def clip_and_update(optimizer: FlatOptimizer, norm: Array, max_norm: float) -> None:
    """Steps 4 and 5, in one pass over the flat buffers: the clip factor is multiplied in where the gradient is read."""
    optimizer.step(max_norm=max_norm or None, norm=norm)


class Shard(NamedTuple):
    """Some rows of a micro-batch."""

    batch: Batch
    share: float  # how much its mean loss counts in the loss of the update
    first_row: int = 0  # which row of the micro-batch its first one is, so that its dropout masks are those of the full micro-batch


def accumulate(model: Trainable, shards: Sequence[Shard]) -> Array:
    """Forward and backward pass of each shard; adds to the parameters' gradients. Returns the sum of share times loss."""
    total = 0.0
    for batch, share, first_row in shards:
        model.dropout_stream.first_row = first_row
        loss = model.loss(*batch)
        if share != 1:
            loss = loss * share
        loss.backward()
        total = total + loss.data
    return total
