"""What every optimizer here is: weights, gradients and state in flat buffers, one contiguous array each."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

from autograd.backend import xp
from autograd.core import Array, Op, Parameter, Tensor, is_half
from autograd.nn import Module

Named = tuple[str, Parameter]


class SquaredNorm(Op):
    """Sum of squares of a flat array, as a 0-d array that stays on the device; an op so that kernels can replace it."""

    @staticmethod
    def forward(x: Array) -> Array:
        return xp.dot(x, x)


class Group(NamedTuple):
    """Parameters that are updated by one rule, next to each other in the buffers."""

    kind: str
    lr_scale: float  # multiplies the optimizer's learning rate
    part: slice  # of the flat buffers
    named: list[Named]


class FlatOptimizer:
    """A module's trainable parameters, moved into one contiguous buffer; the subclasses say how they are updated.

    Weights, gradients and state are flat arrays with one layout, parameters of one `Group` next to each other. Each parameter becomes a view
    of its part, so norm, update and saving are one pass over one array each.

    parameters   a module, or (name, parameter) pairs; frozen ones stay where they are
    lr           learning rate; may be set before each step by a schedule
    weight_decay of parameters with two or more axes, matrices and embeddings
    lr_scale     by parameter name, what its learning rate is multiplied with; 1 where there is none
    Raises ValueError if nothing is trainable, parameters mix dtypes, or `lr_scale` names a parameter that is not there or is below 0.
    """

    kinds: Sequence[str] = ("decayed", "plain")  # of groups, in the order of the buffers

    def __init__(
        self, parameters: Module | Iterable[Named], lr: float, weight_decay: float, lr_scale: Mapping[str, float] | None = None
    ) -> None:
        self.lr, self.weight_decay, self.n_steps = lr, weight_decay, 0
        self._class = type(self).__name__  # begins every message
        self._module = parameters if isinstance(parameters, Module) else None
        trainable = self._trainable(list(parameters.named_parameters() if isinstance(parameters, Module) else parameters))
        scale = dict(lr_scale or {})
        unknown = sorted(scale.keys() - {name for name, _ in trainable})
        if unknown:
            raise ValueError(f"{self._class}: lr_scale of {unknown[0]}, expected names of trainable parameters, such as {trainable[0][0]}")
        for name, by in scale.items():
            if not by >= 0:
                raise ValueError(f"{self._class}: lr_scale of {name} is {by}, expected a number >= 0")
        self.named_in_model_order = trainable

        def key(named: Named) -> tuple[int, float]:
            return self.kinds.index(self.kind_of(*named)), scale.get(named[0], 1.0)

        self.named = sorted(trainable, key=key)  # stable: by kind, else in model order
        self.groups: list[Group] = []
        end = 0
        for (kind, by), same in groupby(self.named, key=key):
            members, start = list(same), end
            end += sum(p.size for _, p in members)
            self.groups.append(Group(self.kinds[kind], by, slice(start, end), members))
        self.gradient = xp.empty(end, dtype=trainable[0][1].dtype)
        self._states: dict[str, tuple[Array, list[Named]]] = {}
        self.move_weights(xp.empty_like(self.gradient))

    def kind_of(self, name: str, parameter: Parameter) -> str:
        """Which of `kinds` a parameter is."""
        return "decayed" if parameter.ndim >= 2 else "plain"

    def _trainable(self, named: list[Named]) -> list[Named]:
        """Those that require a gradient, a tied one once. Raises as the class says."""
        cls = self._class
        if any(isinstance(item, Tensor) for item in named):
            raise TypeError(f"{cls}: parameters without names, expected a Module or (name, parameter) pairs; pass the model itself")
        once: dict[int, Named] = {}  # a tied parameter may come under two names
        for name, p in [(name, p) for name, p in named if p.requires_grad]:
            once.setdefault(id(p), (name, p))
        trainable = list(once.values())
        if not trainable:
            raise ValueError(f"{cls}: none of {len(named)} parameters requires a gradient, expected at least one; unfreeze some")
        dtypes = sorted({str(p.dtype) for _, p in trainable})
        if len(dtypes) > 1:
            raise ValueError(f"{cls}: parameters of dtypes {', '.join(dtypes)}, expected one; convert them before training")
        if is_half(trainable[0][1].data):
            rule = "expected float32 or float64 (small updates would be lost)"
            raise ValueError(f"{cls}: parameters of dtype {dtypes[0]}, {rule}; use autograd.cast where 16 bits are wanted")
        return trainable

    def new_state(self, key: str, kinds: Sequence[str] | None = None) -> Array:
        """A flat array of zeros with a number per weight of these kinds (default: all), which must be the last ones; saved under `key`."""
        named = [pair for group in self.groups if kinds is None or group.kind in kinds for pair in group.named]
        flat = xp.zeros(sum(p.size for _, p in named), dtype=self.gradient.dtype)
        self._states[key] = flat, named
        return flat

    def move_weights(self, target: Array) -> None:
        """Moves the weights into another flat array, for instance one in shared memory. Forgets the gradients."""
        xp.concatenate([p.data.reshape(-1) for _, p in self.named], out=target)
        self.weight = target
        self._bind()

    def move_gradients(self, target: Array) -> None:
        """Lets the backward pass write the gradients into another flat array from now on. Forgets those that are there."""
        self.gradient = target
        self._bind()

    def _bind(self) -> None:
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
        for group in self.groups:
            if group.part.stop > group.part.start:
                self.update(group, scale)
        return norm

    def update(self, group: Group, scale: Array) -> None:
        """Changes the weights and the state of a group by its gradients, which are multiplied by `scale` first."""
        raise NotImplementedError

    def last_change(self, group: Group, part: slice) -> Array:
        """What the last `step` subtracted from these weights, decay aside (in SGD and Adam it is part of the state); computed from the state."""
        raise NotImplementedError

    def update_norm(self, piece: int = 1 << 20) -> float:
        """Norm of what the last `step` subtracted from the weights, see `last_change`. It is computed again from the state, in pieces."""
        return math.sqrt(sum(self.squared_update_norm(group, piece) for group in self.groups))

    def weight_norm(self, piece: int = 1 << 20) -> float:
        """Norm of all weights together, computed in pieces."""
        parts = (self.weight[i : i + piece] for i in range(0, self.weight.size, piece))
        return math.sqrt(sum(float(xp.dot(part, part)) for part in parts))

    def squared_update_norm(self, group: Group, piece: int) -> float:
        total = 0.0
        for start in range(group.part.start, group.part.stop, piece):
            change = self.last_change(group, slice(start, min(start + piece, group.part.stop)))
            total += float(xp.dot(change, change))
        return total

    def cost(self) -> int:
        """Operations per step, those of a few passes over the buffers aside: 0, unless an optimizer multiplies matrices."""
        return 0

    def _check(self) -> None:
        _check_unchanged(self._class, self._module, self.named, self._views)

    def state_dict(self) -> dict[str, int | dict[str, Array]]:
        """What a resumed run needs in addition to the weights: `n_steps`, and each array of the state as {parameter name: view}."""
        return {"n_steps": self.n_steps, **self.state_arrays()}

    def state_arrays(self) -> dict[str, dict[str, Array]]:
        """The arrays of the state, each as {parameter name: view}."""
        arrays = {}
        for key, (flat, named) in self._states.items():
            names, parameters = [name for name, _ in named], [p for _, p in named]
            arrays[key] = dict(zip(names, _parts(flat, parameters), strict=True))
        return arrays

    def state_shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Of `state_arrays`, without the arrays."""
        return {key: {name: p.shape for name, p in named} for key, (_, named) in self._states.items()}

    def load_state_dict(self, state: Mapping[str, int | Mapping[str, Array]]) -> None:
        """Restores what `state_dict` returned. Raises ValueError naming what is missing, surplus or of another shape.

        The mappings may read an array when it is asked for: each is asked for once, and copied before the next.
        """
        for key, given in _checked_state(self._class, state, self.state_shapes()):
            self.load_state(key, given)
        n_steps = state["n_steps"]
        assert not isinstance(n_steps, Mapping), "n_steps of a state is a number"
        self.n_steps = int(n_steps)

    def load_state(self, key: str, given: Mapping[str, Array]) -> None:
        """Copies one array of the state, which comes by parameter name."""
        for name, moment in FlatOptimizer.state_arrays(self)[key].items():  # the views: a subclass may gather arrays from other ranks
            moment[...] = xp.asarray(checked_moment(self._class, name, given[name], moment.shape))

    def gather_gradients(self) -> None:
        """Makes the gradients complete, where ranks have kept the sum of their own part alone: for messages."""


def bind_to_buffers(parameters: Sequence[Parameter], weight: Array, gradient: Array) -> None:
    """Makes each parameter a view of its part of two flat arrays: of its weights, and of the gradient that `backward` will write."""
    for p, mine, buffer in zip(parameters, _parts(weight, parameters), _parts(gradient, parameters), strict=True):
        p.data, p._gradient_buffer, p.grad = mine, buffer, None


def _parts(flat: Array, parameters: Sequence[Parameter]) -> list[Array]:
    """The part of a flat array that belongs to each parameter, in its shape."""
    starts = accumulate((p.size for p in parameters), initial=0)
    return [flat[start : start + p.size].reshape(p.shape) for start, p in zip(starts, parameters, strict=False)]


def _check_unchanged(cls: str, module: Module | None, named: Sequence[Named], views: Sequence[Array]) -> None:
    """Raises RuntimeError naming a parameter that is no longer the optimizer's, or has no gradient."""
    for (name, p), view in zip(named, views, strict=True):
        if not p.requires_grad:
            raise RuntimeError(f"{cls}: {name} was frozen after the optimizer was made, expected no change; make a new {cls}")
        if p.data is not view or not (p.grad is None or p.grad is p._gradient_buffer):
            fix = "write into it, as in parameter.data[...] = array"
            raise RuntimeError(f"{cls}: data or grad of {name} was replaced by another array, expected the optimizer's own; {fix}")
    missing = [name for name, p in named if p.grad is None]
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise RuntimeError(f"{cls}: no gradient for {shown}, expected one for each; call loss.backward(), or freeze what is unused")
    mine = {id(p) for _, p in named}
    for name, p in module.named_parameters() if module is not None else ():
        if p.requires_grad and id(p) not in mine:
            raise RuntimeError(f"{cls}: {name} was added or thawed after the optimizer was made, expected no change; make a new {cls}")


def _checked_state(
    cls: str, state: Mapping[str, int | Mapping[str, Array]], mine: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> list[tuple[str, Mapping[str, Array]]]:
    """(key, arrays by name) of a state, without `n_steps`. Raises ValueError for other keys or names than those of `mine`."""
    where, found = f"{cls}.load_state_dict", []
    if state.keys() != {"n_steps", *mine}:
        rule = f"expected {', '.join(sorted(['n_steps', *mine]))}; is it another optimizer's?"
        raise ValueError(f"{where}: a state of {', '.join(sorted(state))}, {rule}")
    for key, own in mine.items():
        given = state[key]
        assert isinstance(given, Mapping), f"{key} of a state is a mapping from names to arrays"
        if given.keys() != own.keys():
            odd = sorted(given.keys() ^ own.keys())
            raise ValueError(f"{where}: moments of {odd[0]} on one side only, expected the same parameters")
        found.append((key, given))
    return found


def checked_moment(cls: str, name: str, moment: Array, shape: tuple[int, ...]) -> Array:
    """The array. Raises ValueError where it has another shape."""
    if moment.shape != shape:
        raise ValueError(f"{cls}.load_state_dict: moment of {name} of shape {moment.shape}, expected {shape}")
    return moment
