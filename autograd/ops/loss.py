"""Losses for classification and language modelling, in nats (natural logarithm)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from autograd import backend
from autograd.backend import ArrayLike, xp
from autograd.core import Array, Op, Tensor, accumulator_dtype, float32_if_half
from autograd.ops.activation import SoftCap
from autograd.ops.elementwise import as_tensor


class CrossEntropySaved(NamedTuple):
    q: Array  # (N, V)
    targets: Array  # (N,)
    n_counted: int
    ignore_index: int
    label_smoothing: float


class CrossEntropy(Op):
    """Negative log-likelihood of the targets under softmax(z): how surprising they are to that distribution.

    Forward     loss = mean over counted rows of  -sum_v w_v ln p_v,  p = softmax(z)
                w = (1 - a) onehot(target) + a / V            a: label smoothing, 0 by default
    Backward    dz = dloss (p - w) / n                        n counted rows;  0 in rows that are ignored
    Why so simple: ln p_v = z_v - lse(z), the weights sum to 1, so -sum w ln p = lse(z) - sum w z, and the slope of lse is p.

    With z_loss = b > 0 the loss has the term  b mean over counted rows of lse(z)^2,  lse(z) = ln sum_v e^z_v. Softmax ignores a shift of
    z; the term pulls the sum of e^z to 1, so that logits stay small. Its slope is 2 b lse p / n: in dz, p becomes q = p (1 + 2 b lse).

    Shapes      z (N, V), targets (N,) integers -> scalar.  Saves q (N, V), which is p without z_loss, and targets (N,).
    Source      label smoothing: Szegedy et al. 2016, arXiv:1512.00567, section 7; a = 0.1 in Vaswani et al. 2017, arXiv:1706.03762, section 5.4.
                z_loss: Chowdhery et al. 2022, PaLM, arXiv:2204.02311, section 5, with b = 1e-4; Wortsman et al. 2023, arXiv:2309.14322,
                section 3.1.2, on when it helps.
    """

    takes_half = True  # and gives a float32 loss

    @staticmethod
    def forward(
        z: Array, targets: Array, *, n_counted: int, ignore_index: int, label_smoothing: float, z_loss: float = 0.0
    ) -> tuple[Array, CrossEntropySaved]:
        losses, q = _losses(z, targets, ignore_index, label_smoothing, z_loss)
        return losses.sum() / n_counted, CrossEntropySaved(q, targets, n_counted, ignore_index, label_smoothing)

    @staticmethod
    def backward(saved: CrossEntropySaved, dy: Array) -> tuple[Array, None]:
        q, targets, n_counted, ignore_index, label_smoothing = saved
        dz = _minus_target(q.copy(), targets, ignore_index, label_smoothing)
        dz *= dy / n_counted
        return dz, None


class LinearCrossEntropy(Op):
    """The output layer and its loss as one op, in chunks of rows: the (N, V) logits never exist at once.

    Forward     z = x @ W^T + b,  loss = cross-entropy of z       see CrossEntropy
    Backward    dz = dloss (q - w) / n,  dx = dz @ W,  dW = dz^T @ x,  db = sum of dz over rows       q = p, or with z_loss p (1 + 2 z_loss lse)
    With softcap > 0 the loss is that of softcap t,  t = tanh(z / softcap), and dz has the factor 1 - t^2: see SoftCap.
    The gradient is linear in dloss, so it is formed in the forward pass, while a chunk of logits exists, and only
    scaled in the backward pass. Under no_grad it is not formed.

    Shapes      x (N, C), W (V, C), targets (N,) integers, b (V,) or None -> scalar.  Saves dx (N, C), dW (V, C) and db (V,), each if needed.
    W is stored (out, in): GPT-2 ties it to the token embedding.
    """

    takes_half = True  # in the three products; softmax, loss and the sum of dW over chunks are float32

    @staticmethod
    def forward(
        x: Array, weight: Array, targets: Array, bias: Array | None = None, *,
        n_counted: int, ignore_index: int, label_smoothing: float, chunk: int, softcap: float = 0.0, z_loss: float = 0.0,
        needs: tuple[bool, bool, bool, bool],
    ) -> tuple[Array, tuple[Array | None, ...]]:  # fmt: skip
        total = xp.zeros((), dtype=accumulator_dtype(x))
        dx = xp.empty_like(x) if needs[0] else None
        dweight = xp.zeros_like(weight, dtype=accumulator_dtype(weight)) if needs[1] else None
        dbias = xp.zeros_like(bias, dtype=accumulator_dtype(bias)) if needs[3] else None
        for start in range(0, x.shape[0], chunk):
            rows = slice(start, start + chunk)
            z = x[rows] @ weight.T
            if bias is not None:
                z += bias
            if softcap:
                z, t = SoftCap.forward(float32_if_half(z), cap=softcap)
            losses, q = _losses(z, targets[rows], ignore_index, label_smoothing, z_loss)
            total = total + losses.sum()
            if not any(needs):
                continue
            dz = _minus_target(q, targets[rows], ignore_index, label_smoothing)
            if softcap:
                dz = SoftCap.backward(t, dz)
            if dbias is not None:
                dbias += dz.sum(axis=0)
            dz = dz.astype(x.dtype, copy=False)
            if dx is not None:
                dx[rows] = dz @ weight
            if dweight is not None:
                dweight += dz.T @ x[rows]
        return total / n_counted, (dx, dweight, dbias, n_counted)

    @staticmethod
    def backward(saved: tuple[Array | None, ...], dy: Array) -> tuple[Array | None, Array | None, None, Array | None]:
        dx, dweight, dbias, n_counted = saved
        scale = dy / n_counted
        dx, dweight, dbias = (None if d is None else d * scale for d in (dx, dweight, dbias))
        return dx, dweight, None, dbias

    @staticmethod
    def flops(inputs: Sequence[tuple[int, ...]], outputs: Sequence[tuple[int, ...]]) -> int:
        x, weight = inputs[:2]
        return 2 * math.prod(x) * weight[0]


def _losses(z: Array, targets: Array, ignore_index: int, label_smoothing: float, z_loss: float) -> tuple[Array, Array]:
    """Losses (N,), 0 in rows whose target is ignored, and q (N, V): probabilities p, with z_loss p (1 + 2 z_loss lse)."""
    counted = targets != ignore_index
    z = float32_if_half(z)
    largest = z.max(axis=1, keepdims=True)
    shifted = z - largest
    p = xp.exp(shifted)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    at_target = shifted[xp.arange(z.shape[0]), xp.where(counted, targets, 0)]
    losses = xp.log(total[:, 0]) - (1 - label_smoothing) * at_target
    if label_smoothing:
        losses -= label_smoothing * shifted.mean(axis=1)
    if z_loss:
        lse = xp.log(total) + largest  # (N, 1)
        losses += z_loss * (lse * lse)[:, 0]
        p *= 1 + 2 * z_loss * lse
    return xp.where(counted, losses, 0), p


def _minus_target(q: Array, targets: Array, ignore_index: int, label_smoothing: float) -> Array:
    """q - w in the memory of q (N, V); rows whose target is ignored become 0."""
    counted = targets != ignore_index
    q[xp.arange(q.shape[0]), xp.where(counted, targets, 0)] -= 1 - label_smoothing
    if label_smoothing:
        q -= label_smoothing / q.shape[1]
    q *= counted[:, None]
    return q


def cross_entropy(
    logits: Tensor, targets: ArrayLike, *, ignore_index: int = -100, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Mean cross-entropy in nats over the targets that are not `ignore_index`.

    logits (..., V), targets (...) host integers in [0, V) or equal to ignore_index -> scalar
    label_smoothing   share of the probability spread evenly over all classes, in [0, 1)
    z_loss   weight of an added term, the mean over the same rows of logsumexp(logits)^2; 0: none. PaLM: 1e-4
    Raises ValueError if shapes do not fit, a number or a target is out of range (naming it), or every target is ignored.
    """
    logits = as_tensor("cross_entropy", logits)
    if logits.ndim == 0:
        raise ValueError("cross_entropy: logits of shape (), expected (..., V); one score per class")
    shape, n_classes = logits.shape[:-1], logits.shape[-1]
    device_targets, options = as_targets("cross_entropy", targets, shape, n_classes, ignore_index, label_smoothing, z_loss)
    return CrossEntropy.apply(logits.reshape(device_targets.size, logits.shape[-1]), device_targets, **options)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: ArrayLike, bias: Tensor | None = None, *,
    ignore_index: int = -100, label_smoothing: float = 0.0, z_loss: float = 0.0, softcap: float = 0.0, chunk: int = 1024,
) -> Tensor:  # fmt: skip
    """cross_entropy(x @ weight.T + bias, targets) without holding the logits.

    x (..., C), weight (V, C), targets (...) host integers in [0, V) or equal to ignore_index, bias (V,) or None -> scalar, nats
    z_loss   as in cross_entropy; of the logits that the softcap has bounded
    softcap   bounds the logits to -softcap .. softcap by `soft_cap`; 0: no bound
    chunk   rows of logits that exist at once
    Raises ValueError as cross_entropy does, and for a negative or infinite softcap.
    """
    x, weight = as_tensor("linear_cross_entropy", x), as_tensor("linear_cross_entropy", weight)
    if x.ndim == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear_cross_entropy: x {x.shape} with weight {weight.shape}, expected (..., C) with (V, C); transpose it?")
    bias = None if bias is None else as_tensor("linear_cross_entropy", bias)
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear_cross_entropy: bias {bias.shape} with weight {weight.shape}, expected {weight.shape[:1]}; one per class")
    if not 0 <= softcap < math.inf:
        raise ValueError(f"linear_cross_entropy: softcap {softcap}, expected a positive number, or 0 for no bound")
    if chunk < 1:
        raise ValueError(f"linear_cross_entropy: chunk {chunk}, expected at least 1; it counts rows")
    device_targets, options = as_targets("linear_cross_entropy", targets, x.shape[:-1], len(weight), ignore_index, label_smoothing, z_loss)
    options["softcap"] = float(softcap)
    return LinearCrossEntropy.apply(x.reshape(device_targets.size, x.shape[-1]), weight, device_targets, bias, chunk=chunk, **options)


def as_targets(
    op: str, targets: ArrayLike, shape: tuple[int, ...], n_classes: int, ignore_index: int, label_smoothing: float, z_loss: float
) -> tuple[Array, dict[str, float]]:
    """Checks what both losses share; gives flat device targets and the options of the op."""
    if isinstance(targets, Tensor):
        raise TypeError(f"{op}: targets as a Tensor, expected host integers; pass the NumPy array itself")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"{op}: label_smoothing {label_smoothing}, expected 0 <= label_smoothing < 1; 0 switches it off")
    if not 0 <= z_loss < math.inf:
        raise ValueError(f"{op}: z_loss {z_loss}, expected a finite number >= 0; 0 switches it off, PaLM took 1e-4")
    ids, n_counted = backend.checked_indices(targets, n_classes, what=f"{op} target", ignore=ignore_index)
    if ids.shape != shape:
        raise ValueError(f"{op}: targets of shape {ids.shape}, expected {shape}; one target per row")
    if n_counted == 0:
        rule = f"expected at least one that is not {ignore_index} (ignored)"
        raise ValueError(f"{op}: none of {ids.size} targets counts, {rule}; is everything masked?")
    options = {"n_counted": n_counted, "ignore_index": ignore_index, "label_smoothing": label_smoothing, "z_loss": float(z_loss)}
    return ids.reshape(-1), options
