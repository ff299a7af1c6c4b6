"""Stochastic gradient descent with momentum."""

from collections.abc import Iterable, Mapping

from autograd.core import Array, Op
from autograd.nn import Module
from autograd.optim.flat import FlatOptimizer, Group, Named


class SGDUpdate(Op):
    """One step of gradient descent with momentum on flat arrays, in place; an op so that kernels can replace it.

    g = gradient * scale + decay w      decay: an L2 term in the loss
    m = momentum m + g
    w = w - lr m, or with Nesterov's momentum w - lr (g + momentum m): the gradient once more, as if taken one step ahead

    Source  Sutskever et al. 2013, On the importance of initialization and momentum in deep learning, section 2, as PyTorch writes it
            (the learning rate outside of m).
    """

    @staticmethod
    def forward(  # type: ignore[override]  # changes its arguments, and returns nothing
        weight: Array, gradient: Array, m: Array, scale: Array, *, lr: float, momentum: float, nesterov: bool, decay: float
    ) -> None:
        g = gradient * scale
        if decay:
            g += decay * weight
        m *= momentum
        m += g
        if nesterov:
            g += momentum * m
            g *= lr
            weight -= g
        else:
            weight -= lr * m


class SGD(FlatOptimizer):
    """Gradient descent with momentum for a module's trainable parameters. Memory: one number per weight, m, in addition to weight and gradient.

    momentum    0: plain gradient descent
    nesterov    Nesterov's momentum
    weight_decay   an L2 term of matrices and embeddings; see `FlatOptimizer` for the rest
    Raises ValueError for numbers out of range, and as `FlatOptimizer` does.
    """

    def __init__(
        self, parameters: Module | Iterable[Named], lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0,
        nesterov: bool = False, lr_scale: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        if not (lr >= 0 and weight_decay >= 0 and 0 <= momentum < 1):
            found = f"lr = {lr}, weight_decay = {weight_decay}, momentum = {momentum}"
            raise ValueError(f"SGD: {found}, expected lr and weight_decay >= 0, 0 <= momentum < 1")
        super().__init__(parameters, lr, weight_decay, lr_scale)
        self.momentum, self.nesterov = momentum, nesterov
        self.m = self.new_state("m")
        self._scale: Array = 1.0

    def update(self, group: Group, scale: Array) -> None:
        part, decay = group.part, self.weight_decay if group.kind == "decayed" else 0.0
        arrays = (self.weight[part], self.gradient[part], self.m[part], scale)
        options = {"lr": self.lr * group.lr_scale, "momentum": self.momentum, "nesterov": self.nesterov, "decay": decay}
        SGDUpdate.dispatch(*arrays, **options).forward(*arrays, **options)  # type: ignore[arg-type]
        self._scale = scale

    def last_change(self, group: Group, part: slice) -> Array:
        change = self.m[part]
        if self.nesterov:  # the decay of weights is left out of it
            change = self.gradient[part] * self._scale + self.momentum * change
        return change * (self.lr * group.lr_scale)
