"""AdamW over one flat buffer, gradient clipping, and the learning-rate schedule."""

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TypedDict

from autograd.backend import xp
from autograd.core import Array, Op, Parameter, Tensor, is_half
from autograd.nn import Module


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


class SquaredNorm(Op):
    """Sum of squares of a flat array, as a 0-d array that stays on the device; an op so that kernels can replace it."""

    @staticmethod
    def forward(x: Array) -> Array:
        return xp.dot(x, x)


class AdamWState(TypedDict):
    """What a resumed run needs in addition to the weights: the step count, and moments by parameter name (views)."""

    n_steps: int
    m: dict[str, Array]
    v: dict[str, Array]


class AdamW:
    """AdamW for a module's trainable parameters, moved into one contiguous buffer.

    Weights, gradients and both moments are four flat arrays with one layout, weight-decayed parameters first (those with two or more axes:
    matrices and embeddings). Each parameter becomes a view of its part, so norm, update and saving are one pass over one array each.

    lr, betas, eps, weight_decay   as in the paper; `lr` may be set before each step by a schedule
    Raises ValueError if nothing is trainable or parameters mix dtypes.
    """

    def __init__(
        self, parameters: Module | Iterable[tuple[str, Parameter]], lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.01,
    ) -> None:  # fmt: skip
        if not (lr >= 0 and weight_decay >= 0 and all(0 <= b < 1 for b in betas) and eps > 0):
            found = f"lr = {lr}, weight_decay = {weight_decay}, betas = {betas}, eps = {eps}"
            raise ValueError(f"AdamW: {found}, expected lr and weight_decay >= 0, 0 <= betas < 1, eps > 0")
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.n_steps = 0
        self._module = parameters if isinstance(parameters, Module) else None
        named = list(parameters.named_parameters() if isinstance(parameters, Module) else parameters)
        if any(isinstance(item, Tensor) for item in named):
            raise TypeError("AdamW: parameters without names, expected a Module or (name, parameter) pairs; pass the model itself")
        once: dict[int, tuple[str, Parameter]] = {}  # a tied parameter may come under two names
        for name, p in named:
            if p.requires_grad:
                once.setdefault(id(p), (name, p))
        trainable = list(once.values())
        if not trainable:
            raise ValueError(f"AdamW: none of {len(named)} parameters requires a gradient, expected at least one; unfreeze some")
        dtypes = sorted({str(p.dtype) for _, p in trainable})
        if len(dtypes) > 1:
            raise ValueError(f"AdamW: parameters of dtypes {', '.join(dtypes)}, expected one; convert them before training")
        if is_half(trainable[0][1].data):
            rule = "expected float32 or float64 (small updates would be lost)"
            raise ValueError(f"AdamW: parameters of dtype {dtypes[0]}, {rule}; use autograd.cast where 16 bits are wanted")
        self.named_in_model_order = trainable
        self.named = sorted(trainable, key=lambda pair: pair[1].ndim < 2)  # stable: decayed first, else in model order
        self.n_decayed = sum(p.size for _, p in self.named if p.ndim >= 2)
        self.gradient = xp.empty(sum(p.size for _, p in self.named), dtype=dtypes[0])
        self.m, self.v = xp.zeros_like(self.gradient), xp.zeros_like(self.gradient)
        self.move_weights(xp.empty_like(self.gradient))

    def move_weights(self, target: Array) -> None:
        """Moves the weights into another flat array, for instance one in shared memory. Forgets the gradients."""
        xp.concatenate([p.data.reshape(-1) for _, p in self.named], out=target)
        self.weight = target
        bind_to_buffers([p for _, p in self.named], self.weight, self.gradient)
        self._views = [p.data for _, p in self.named]

    def zero_grad(self) -> None:
        """Forgets the gradients. Nothing is filled with zeros: the next first gradient overwrites."""
        for _, p in self.named:
            p.grad = None

    def gradient_norm(self) -> Array:
        """Euclidean norm of all gradients together, as a 0-d array (still on the device)."""
        self._check()
        return xp.sqrt(SquaredNorm.dispatch(self.gradient).forward(self.gradient))

    def step(self, max_norm: float | None = None, norm: Array | None = None) -> Array:
        """One update from the gradients that have been summed since `zero_grad`.

        max_norm   scale gradients so that their common norm is at most this (Pascanu et al. 2013, arXiv:1211.5063, algorithm 1), or None
        norm       the result of `gradient_norm`, if it has been computed already
        Returns the norm before clipping, 0-d. Raises RuntimeError naming parameters without a gradient, or frozen, added or replaced since.
        """
        norm = self.gradient_norm() if norm is None else norm
        scale = 1.0 if max_norm is None else xp.minimum(max_norm / (norm + 1e-6), 1.0).astype(self.weight.dtype)
        self.n_steps += 1
        for part, decay in ((slice(0, self.n_decayed), self.weight_decay), (slice(self.n_decayed, None), 0.0)):
            arrays = (self.weight[part], self.gradient[part], self.m[part], self.v[part], scale)
            if arrays[0].size:
                options = {"lr": self.lr, "betas": self.betas, "eps": self.eps, "decay": decay, "t": self.n_steps}
                AdamWUpdate.dispatch(*arrays, **options).forward(*arrays, **options)  # type: ignore[arg-type]
        return norm

    def _check(self) -> None:
        for (name, p), view in zip(self.named, self._views, strict=True):
            if not p.requires_grad:
                raise RuntimeError(f"AdamW: {name} was frozen after the optimizer was made, expected no change; make a new AdamW")
            if p.data is not view or not (p.grad is None or p.grad is p._gradient_buffer):
                fix = "write into it, as in parameter.data[...] = array"
                raise RuntimeError(f"AdamW: data or grad of {name} was replaced by another array, expected the optimizer's own; {fix}")
        missing = [name for name, p in self.named if p.grad is None]
        if missing:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise RuntimeError(f"AdamW: no gradient for {shown}, expected one for each; call loss.backward(), or freeze what is unused")
        mine = {id(p) for _, p in self.named}
        for name, p in self._module.named_parameters() if self._module is not None else ():
            if p.requires_grad and id(p) not in mine:
                raise RuntimeError(f"AdamW: {name} was added or thawed after the optimizer was made, expected no change; make a new AdamW")

    def state_dict(self) -> AdamWState:
        names, parameters = zip(*self.named, strict=True)
        m, v = (dict(zip(names, _parts(flat, parameters), strict=True)) for flat in (self.m, self.v))
        return {"n_steps": self.n_steps, "m": m, "v": v}

    def load_state_dict(self, state: AdamWState) -> None:
        """Restores what `state_dict` returned. Raises ValueError naming parameters that are missing, surplus or of another shape."""
        mine = self.state_dict()
        for given, own in ((state["m"], mine["m"]), (state["v"], mine["v"])):
            if given.keys() != own.keys():
                odd = sorted(given.keys() ^ own.keys())
                raise ValueError(f"AdamW.load_state_dict: moments of {odd[0]} on one side only, expected the same parameters")
            for name, moment in own.items():
                if given[name].shape != moment.shape:
                    raise ValueError(f"AdamW.load_state_dict: moment of {name} of shape {given[name].shape}, expected {moment.shape}")
                moment[...] = xp.asarray(given[name])
        self.n_steps = int(state["n_steps"])


def bind_to_buffers(parameters: Sequence[Parameter], weight: Array, gradient: Array) -> None:
    """Makes each parameter a view of its part of two flat arrays: of its weights, and of the gradient that `backward` will write."""
    for p, mine, buffer in zip(parameters, _parts(weight, parameters), _parts(gradient, parameters), strict=True):
        p.data, p._gradient_buffer, p.grad = mine, buffer, None


def _parts(flat: Array, parameters: Sequence[Parameter]) -> list[Array]:
    """The part of a flat array that belongs to each parameter, in its shape."""
    starts = accumulate((p.size for p in parameters), initial=0)
    return [flat[start : start + p.size].reshape(p.shape) for start, p in zip(starts, parameters, strict=False)]


def warmup_cosine(step: int, *, peak: float, warmup_steps: int, n_steps: int, floor: float | None = None) -> float:
    """Learning rate of update number `step` (from 0): linear rise to `peak` over `warmup_steps`, then a half cosine down to `floor`.

    floor   reached at the last update, default peak / 10
    Source  Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5 (one period, no restart).
    """
    floor = peak / 10 if floor is None else floor
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if step >= n_steps - 1:
        return floor
    progress = (step - warmup_steps) / max(1, n_steps - 1 - warmup_steps)
    return floor + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - floor)
