"""Adam and AdamW."""

import math
from collections.abc import Iterable, Mapping

from autograd.backend import xp
from autograd.core import Array, Op
from autograd.nn import Module
from autograd.optim.flat import FlatOptimizer, Group, Named


class AdamWUpdate(Op):
    """One AdamW step on flat arrays, in place: an op without a backward, so that kernels can replace it.

    g = gradient * scale                       scale: the clip factor, 1 without clipping
    m = b1 m + (1 - b1) g                      running mean of the gradient
    v = b2 v + (1 - b2) g^2                    running mean of its square
    w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    Decay acts on the weight itself, not through the gradient: that is the W. The divisors undo the start of m and v at 0.

    Source  Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2; Kingma and Ba 2015, arXiv:1412.6980, section 3.
    """

    @staticmethod
    def forward(  # type: ignore[override]  # changes its arguments, and returns nothing
        weight: Array, gradient: Array, m: Array, v: Array, scale: Array, *,
        lr: float, betas: tuple[float, float], eps: float, decay: float, t: int,
    ) -> None:  # fmt: skip
        b1, b2 = betas
        g = gradient * scale
        m *= b1
        m += (1 - b1) * g
        v *= b2
        g *= g
        g *= 1 - b2
        v += g
        # The divisors of m and v are folded into the rate and eps: two passes over the array fewer.
        correction = math.sqrt(1 - b2**t)
        step = xp.sqrt(v, out=g)
        step += eps * correction
        xp.divide(m, step, out=step)
        step *= lr * correction / (1 - b1**t)
        if decay:
            weight *= 1 - lr * decay
        weight -= step


class AdamW(FlatOptimizer):
    """AdamW for a module's trainable parameters. Memory: two numbers per weight, m and v, in addition to weight and gradient.

    lr, betas, eps, weight_decay   as in the paper; see `FlatOptimizer` for the rest
    Raises ValueError for numbers out of range, and as `FlatOptimizer` does.
    Source  Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2.
    """

    def __init__(
        self, parameters: Module | Iterable[Named], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.01, lr_scale: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        check_adam(type(self).__name__, lr, betas, eps, weight_decay)
        super().__init__(parameters, lr, weight_decay, lr_scale)
        self.betas, self.eps = betas, eps
        self.m, self.v = self.new_state("m"), self.new_state("v")

    def update(self, group: Group, scale: Array) -> None:
        part, decay = group.part, self.weight_decay if group.kind == "decayed" else 0.0
        arrays = (self.weight[part], self.gradient[part], self.m[part], self.v[part], scale)
        adamw_update(arrays, self.lr * group.lr_scale, self.betas, self.eps, decay, self.n_steps)

    def last_change(self, group: Group, part: slice) -> Array:
        return adamw_change(self.m[part], self.v[part], self.lr * group.lr_scale, self.betas, self.eps, self.n_steps)


class Adam(AdamW):
    """Adam with weight decay as an L2 term in the loss, to compare: the term passes through m and v, so weights with large gradients hardly decay.

    g = gradient * scale + decay w, then as AdamW without decay. Arguments and memory: see `AdamW`; an update with decay needs a second gradient.
    Source  Kingma and Ba 2015, arXiv:1412.6980, algorithm 1; Loshchilov and Hutter 2019, arXiv:1711.05101, section 2, on what differs.
    """

    def update(self, group: Group, scale: Array) -> None:
        part, decay = group.part, self.weight_decay if group.kind == "decayed" else 0.0
        gradient = self.gradient[part] if not decay else self.gradient[part] * scale + decay * self.weight[part]
        arrays = (self.weight[part], gradient, self.m[part], self.v[part], 1.0 if decay else scale)
        adamw_update(arrays, self.lr * group.lr_scale, self.betas, self.eps, 0.0, self.n_steps)


def adamw_update(arrays: tuple[Array, ...], lr: float, betas: tuple[float, float], eps: float, decay: float, t: int) -> None:
    """`AdamWUpdate` of (weight, gradient, m, v, scale), by the kernel for them."""
    options = {"lr": lr, "betas": betas, "eps": eps, "decay": decay, "t": t}
    AdamWUpdate.dispatch(*arrays, **options).forward(*arrays, **options)  # type: ignore[call-arg, arg-type]


def adamw_change(m: Array, v: Array, lr: float, betas: tuple[float, float], eps: float, t: int) -> Array:
    """What step t has subtracted from the weights, decay aside."""
    change: Array = m / (1 - betas[0] ** t) / (xp.sqrt(v / (1 - betas[1] ** t)) + eps)
    return change * lr


def check_adam(name: str, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    """Raises ValueError for numbers that the paper excludes."""
    if not (lr >= 0 and weight_decay >= 0 and all(0 <= b < 1 for b in betas) and eps > 0):
        found = f"lr = {lr}, weight_decay = {weight_decay}, betas = {betas}, eps = {eps}"
        raise ValueError(f"{name}: {found}, expected lr and weight_decay >= 0, 0 <= betas < 1, eps > 0")
