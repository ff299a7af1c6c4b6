"""Muon: gradient descent with momentum whose steps are made orthogonal, for the matrices of hidden layers."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Literal

from autograd.backend import xp
from autograd.core import Array, Op, Parameter
from autograd.nn import Linear, Module
from autograd.optim.adam import adamw_change, adamw_update, check_adam
from autograd.optim.flat import FlatOptimizer, Group, Named

Coefficients = Sequence[tuple[float, float, float]]

QUINTIC: Coefficients = ((3.4445, -4.7750, 2.0315),) * 5
"""Newton-Schulz with one polynomial, five times: singular values from 0.002 to 1 end between 0.68 and 1.21. Jordan et al. 2024, Muon."""

_POLAR_EXPRESS: Coefficients = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
POLAR_EXPRESS: Coefficients = tuple((a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in _POLAR_EXPRESS)
"""A polynomial for each of five iterations, each made for the range in which the one before leaves the singular values: from 0.002 to 1 they
end between 0.87 and 1.13. Outside of its range such a polynomial grows fast, and rounding leaves the range by a little: that is why each
takes x / 1.01, as in the published code. Amsel et al. 2025, arXiv:2505.16932, algorithm 1."""

_NAMED = {"polar express": POLAR_EXPRESS, "quintic": QUINTIC}


class Orthogonalize(Op):
    """The matrix with the same singular vectors, and singular values of about 1: the nearest one with orthonormal rows (or columns).

    x = u / (|u| + 1e-7)                        |u|: the root of the sum of squares, at least the largest singular value
    x = a x + (b A + c A A) x,  A = x x^T       once for each (a, b, c)
    A polynomial of odd powers in x acts on each singular value s by itself, s -> a s + b s^3 + c s^5, and needs products alone.
    With more rows than columns, x^T instead of x: the smaller A. Zero stays zero, and so do singular values of 0.

    Shapes  u (..., R, C) -> (..., R, C)
    Source  Jordan et al. 2024, Muon: an optimizer for hidden layers in neural networks; Bernstein and Newhouse 2024, arXiv:2409.20325.
    """

    @staticmethod
    def forward(u: Array, *, coefficients: Coefficients) -> Array:  # type: ignore[override]  # nothing is saved: there is no backward
        tall = u.shape[-2] > u.shape[-1]
        x = xp.swapaxes(u, -1, -2) if tall else u
        x = x / (xp.sqrt((x * x).sum(axis=(-2, -1), keepdims=True)) + 1e-7)
        for a, b, c in coefficients:
            gram = x @ xp.swapaxes(x, -1, -2)
            x = a * x + (b * gram + c * (gram @ gram)) @ x
        return xp.swapaxes(x, -1, -2) if tall else x

    @staticmethod
    def cost(shape: tuple[int, int], coefficients: Coefficients) -> int:
        """Multiplications and additions for one matrix: three products per (a, b, c), one of them between matrices of the shorter side."""
        short, long = sorted(shape)
        return len(coefficients) * (4 * short * short * long + 2 * short**3)


class MuonUpdate(Op):
    """One Muon step on a list of matrices, in place; an op so that kernels can replace it.

    g = gradient * scale
    m = momentum m + (1 - momentum) g
    u = (1 - momentum) g + momentum m        Nesterov's momentum: the gradient once more, as if taken one step ahead
    w = w (1 - lr decay) - lr r Orthogonalize(u)

    Why: a gradient is nearly of low rank, and a step along it moves a few directions far and most of them not at all. Here all move alike.
    The orthogonal matrix has entries of root mean square 1 / sqrt(max(R, C)). With r = 0.2 sqrt(max(R, C)) a step is as large as AdamW's
    usually are, and both can have one learning rate and decay (Liu et al. 2025, arXiv:2502.16982, section 2.2).
    """

    @staticmethod
    def forward(  # type: ignore[override]  # changes its arguments
        weights: Sequence[Array], gradients: Sequence[Array], ms: Sequence[Array], scale: Array, *,
        lr: float, momentum: float, decay: float, coefficients: Coefficients,
    ) -> Array:  # fmt: skip
        """Returns the squared norm of all that was subtracted, decay aside, 0-d."""
        total = xp.zeros((), dtype=weights[0].dtype)
        for w, gradient, m in zip(weights, gradients, ms, strict=True):
            g = gradient * scale
            m *= momentum
            m += (1 - momentum) * g
            step = Orthogonalize.forward((1 - momentum) * g + momentum * m, coefficients=coefficients)
            step *= lr * rms_scale(w.shape)
            if decay:
                w *= 1 - lr * decay
            w -= step
            total = total + (step * step).sum()
        return total


def rms_scale(shape: tuple[int, ...]) -> float:
    """Makes an orthogonal step as large as AdamW's usual ones: entries of root mean square 0.2."""
    return 0.2 * math.sqrt(max(shape))


class Muon(FlatOptimizer):
    """Muon for the matrices of hidden layers, AdamW for the rest: embeddings, output layer, norms, biases.

        Muon(model)                                                          # all Linear layers
        Muon(model, matrices=["first.weight", "second.weight"])              # these
        Muon(model, matrices={"qkv.weight": (64, 64, 64), "out.weight": ()}) # the first holds three matrices

    matrices   names of the parameters that Muon updates; as a mapping, each with the numbers of columns of the matrices that lie in it next
               to each other (queries, keys, values), or () for one. By default the weights of all `Linear` layers that are not tied to another
               kind of layer: name them, without the output layer's, where that is one of its own
    lr         of both, as a step of either is about as large; adam_lr_scale multiplies AdamW's
    momentum   of Muon; betas, eps: of AdamW; weight_decay: of both
    coefficients   "polar express" (arXiv:2505.16932), "quintic" (Jordan 2024), or (a, b, c) for each iteration: see `Orthogonalize`

    Memory: one number per weight of the matrices, m; two for all others. See `FlatOptimizer` for the rest.
    Raises ValueError for numbers out of range, for no matrix at all, for `matrices` that are none or whose columns do not add up, and as
    `FlatOptimizer` does.
    Source  Jordan et al. 2024, Muon; Liu et al. 2025, arXiv:2502.16982, section 2.2, on learning rate and decay.
    """

    kinds = ("matrix", "decayed", "plain")

    def __init__(
        self, parameters: Module | Iterable[Named], lr: float = 2e-3, momentum: float = 0.95, betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8, weight_decay: float = 0.1, *, matrices: Mapping[str, Sequence[int]] | Iterable[str] | None = None,
        adam_lr_scale: float = 1.0, coefficients: Literal["polar express", "quintic"] | Coefficients = "polar express",
        lr_scale: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        check_adam("Muon", lr, betas, eps, weight_decay)
        if not 0 <= momentum < 1 or not adam_lr_scale >= 0:
            found = f"momentum = {momentum}, adam_lr_scale = {adam_lr_scale}"
            raise ValueError(f"Muon: {found}, expected 0 <= momentum < 1, adam_lr_scale >= 0")
        named = _linear_weights(parameters) if matrices is None else matrices
        self.columns: dict[str, Sequence[int]] = dict(named) if isinstance(named, Mapping) else dict.fromkeys(named, ())
        self.momentum, self.betas, self.eps, self.adam_lr_scale = momentum, betas, eps, adam_lr_scale
        self.coefficients = _known_coefficients(coefficients)
        super().__init__(parameters, lr, weight_decay, lr_scale)
        self.m, self.v = self.new_state("m"), self.new_state("v", kinds=("decayed", "plain"))
        self._n_matrix = self.m.size - self.v.size  # numbers of m before those that v has, too
        self._squared_norms: dict[int, Array] = {}  # of the last step of each group of matrices, by its start

    def _trainable(self, named: list[Named]) -> list[Named]:
        """As the base class, and completes `columns`: () becomes all of them. Raises ValueError for what is no matrix, or not as many columns."""
        trainable = super()._trainable(named)
        if not self.columns:
            rule = "expected at least one: the weight of a Linear layer, or what `matrices` names; use AdamW for a model without"
            raise ValueError(f"Muon: no matrix among {len(trainable)} trainable parameters, {rule}")
        shapes = {name: p.shape for name, p in trainable}
        for name, given in self.columns.items():
            if name not in shapes:
                raise ValueError(f"Muon: matrices {name}, expected names of trainable parameters, such as {trainable[0][0]}")
            shape = shapes[name]
            self.columns[name] = widths = tuple(given) or shape[1:]
            if len(shape) != 2 or sum(widths) != shape[1] or min(widths) < 1:
                rule = "expected two axes, and positive numbers of columns that add up to the second"
                raise ValueError(f"Muon: matrices {name} of shape {shape} as {widths}, {rule}")
        return trainable

    def kind_of(self, name: str, parameter: Parameter) -> str:
        return "matrix" if name in self.columns else super().kind_of(name, parameter)

    def matrices_of(self, group: Group, flat: Array) -> list[Array]:
        """Views of a group's part of a flat array, one for each matrix."""
        found, start = [], group.part.start
        for name, p in group.named:
            both = flat[start : start + p.size].reshape(p.shape)
            start += p.size
            ends = list(accumulate(self.columns[name]))
            found += [both[:, end - width : end] for end, width in zip(ends, self.columns[name], strict=True)]
        return found

    def update(self, group: Group, scale: Array) -> None:
        if group.kind == "matrix":
            arrays = [self.matrices_of(group, flat) for flat in (self.weight, self.gradient, self.m)]
            muon = {"momentum": self.momentum, "decay": self.weight_decay, "coefficients": self.coefficients}
            muon |= {"lr": self.lr * group.lr_scale}
            squared = MuonUpdate.dispatch(*arrays, scale, **muon).forward(*arrays, scale, **muon)  # type: ignore[call-arg, arg-type]
            self._squared_norms[group.part.start] = squared
            return
        part, decay = group.part, self.weight_decay if group.kind == "decayed" else 0.0
        adam = (self.weight[part], self.gradient[part], self.m[part], self.v[self._of_v(part)], scale)
        adamw_update(adam, self._adam_lr(group), self.betas, self.eps, decay, self.n_steps)

    def _of_v(self, part: slice) -> slice:
        return slice(part.start - self._n_matrix, part.stop - self._n_matrix)

    def _adam_lr(self, group: Group) -> float:
        return self.lr * self.adam_lr_scale * group.lr_scale

    def last_change(self, group: Group, part: slice) -> Array:
        return adamw_change(self.m[part], self.v[self._of_v(part)], self._adam_lr(group), self.betas, self.eps, self.n_steps)

    def squared_update_norm(self, group: Group, piece: int) -> float:
        if group.kind == "matrix":
            return float(self._squared_norms[group.part.start])
        return super().squared_update_norm(group, piece)

    def cost(self) -> int:
        """Operations per step of the products that make the steps orthogonal."""
        shapes = [(p.shape[0], width) for name, p in self.named for width in self.columns.get(name, ())]
        return sum(Orthogonalize.cost(shape, self.coefficients) for shape in shapes)


def _linear_weights(parameters: Module | Iterable[Named]) -> list[str]:
    """Names of the trainable weights of `Linear` layers, without those that another kind of layer holds, too: a tied embedding's."""
    if not isinstance(parameters, Module):
        raise ValueError("Muon: (name, parameter) pairs without `matrices`, expected the names that are matrices; or pass the module")
    linear, others = set[int](), set[int]()
    for _, module in parameters.named_modules():
        for key, p in vars(module).items():
            (linear if isinstance(module, Linear) and key == "weight" else others).add(id(p))
    return [name for name, p in parameters.named_parameters() if p.requires_grad and id(p) in linear - others]


def _known_coefficients(coefficients: str | Coefficients) -> Coefficients:
    """Those of a name, or the given ones. Raises ValueError for another name, and for what are no triples."""
    found = _NAMED.get(coefficients, ()) if isinstance(coefficients, str) else coefficients
    if not found or not all(len(triple) == 3 for triple in found):
        raise ValueError(f"Muon: coefficients {coefficients!r}, expected {', '.join(map(repr, _NAMED))} or (a, b, c) for each iteration")
    return found
