"""Layers: ops together with the parameters that they need."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from textwrap import indent
from typing import Protocol

import autograd.ops as ops
from autograd import backend
from autograd.backend import ArrayLike, xp
from autograd.core import Array, Op, Parameter, Tensor, is_half, is_recording, no_grad
from autograd.narrow import weights_in as weights_in
from autograd.ops.activation import ACTIVATIONS, known_activation
from autograd.ops.dropout import RandomStream, default_stream
from autograd.positions import RotaryPositions as RotaryPositions
from autograd.positions import alibi_slopes as alibi_slopes
from autograd.positions import rotary_frequencies as rotary_frequencies
from autograd.positions import sinusoidal_positions as sinusoidal_positions


class Module:
    """A layer or model: the modules, parameters and lists of modules in its attributes are found by name.

    training    True after `train()`, False after `eval()`; dropout depends on it
    """

    training: bool = True
    forward: Callable[..., Tensor]

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(vars(self).get(name), Parameter) and not (value is None or isinstance(value, (Parameter, Module))):
            found = f"{type(self).__name__}.{name}: a {type(value).__name__} in place of a Parameter"
            rule = "expected a Parameter or None (it would no longer be trained or saved)"
            raise TypeError(f"{found}, {rule}; write {name}.data[...] = array to change its numbers")
        super().__setattr__(name, value)

    def __call__(self, *args: object, **kwargs: object) -> Tensor:
        if not hasattr(self, "forward"):
            raise NotImplementedError(f"{type(self).__name__}: no forward, expected one; define it in the subclass")
        return self.forward(*args, **kwargs)

    def __repr__(self) -> str:
        """A tree: this module's parameters (shapes) and settings, then the modules below it; equal neighbours in a list share a line."""
        own = []
        for name, value in vars(self).items():
            if isinstance(value, Parameter):
                own.append(f"{name} {value.shape}{'' if value.requires_grad else ' frozen'}")
            elif isinstance(value, (bool, int, float, str)) and name != "training":
                own.append(f"{name}={value}")
        lines = [f"{type(self).__name__}({', '.join(own)})"]
        for (_, tree), same in groupby(self.children(), key=lambda child: (child[0].rpartition(".")[0] or child[0], repr(child[1]))):
            first, *rest = [name for name, _ in same]
            lines.append(indent(f"{first}{f' to {rest[-1]}' if rest else ''}: {tree}", "  "))
        return "\n".join(lines)

    def children(self) -> Iterator[tuple[str, "Module"]]:
        """(name, module) for each module held directly; those in a list are named `list.0`, `list.1`, ..."""
        for name, value in vars(self).items():
            if isinstance(value, Module):
                yield name, value
            elif isinstance(value, (list, tuple)):
                for i, item in enumerate(value):
                    if isinstance(item, Module):
                        yield f"{name}.{i}", item

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, "Module"]]:
        """(dotted name, module) for this module (name "") and all below it."""
        yield prefix, self
        for name, child in self.children():
            yield from child.named_modules(f"{prefix}.{name}" if prefix else name)

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """(dotted name, parameter), each parameter once even if two modules hold it."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, value in vars(module).items():
                if isinstance(value, Parameter) and id(value) not in seen:
                    seen.add(id(value))
                    yield f"{prefix}.{name}" if prefix else name, value

    def parameters(self) -> list[Parameter]:
        return [parameter for _, parameter in self.named_parameters()]

    def n_parameters(self) -> int:
        """Number of weights, a tied one counted once."""
        return sum(parameter.size for parameter in self.parameters())

    def train(self, training: bool = True) -> "Module":
        """Switches dropout on (or off, as `eval` does) in this module and all below it."""
        for _, module in self.named_modules():
            module.training = training
        return self

    def eval(self) -> "Module":
        return self.train(False)

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for parameter in self.parameters():
            parameter.grad = None


class HasModules(Protocol):
    """A `Module`, or a protocol that describes one."""

    def named_modules(self) -> Iterator[tuple[str, Module]]: ...


class evaluating:
    """Context manager: within its block `model` and all below it are in evaluation mode; afterwards each module has its own mode again.

    May be kept and entered again, which is cheaper than making a new one: the modules are those at the time it was made.
    """

    def __init__(self, model: HasModules) -> None:
        self._modules = [module for _, module in model.named_modules()]
        self._before: list[list[bool]] = []

    def __enter__(self) -> None:
        self._before.append([module.training for module in self._modules])
        for module in self._modules:
            module.training = False

    def __exit__(self, *error: object) -> None:
        for module, training in zip(self._modules, self._before.pop(), strict=True):
            module.training = training


def cast_like(parameter: Parameter, x: Tensor) -> Tensor:
    """The parameter in the dtype that an op with `x` needs: cast if x has 16 bits, else itself. Parameters stay float32."""
    if not is_half(x.data):
        return parameter
    return parameter.narrow if parameter.narrow is not None else ops.cast(parameter, x.dtype)


Init = Callable[[tuple[int, ...]], Array]
"""Initial values of a matrix: takes its shape, gives an array; its dtype is the layer's."""


def uniform(shape: tuple[int, ...], fan: int | None = None, stream: RandomStream | None = None) -> Array:
    """float32 numbers, uniform between -1 / sqrt(fan) and 1 / sqrt(fan).

    fan      the number of inputs that each output adds up, default shape[0]
    stream   decides the numbers, by default the stream of the process
    """
    n, stream = math.prod(shape), stream or default_stream
    bits = backend.random_bits(stream.seed, stream.next_draw(), 0, 2 * n).astype(xp.float32)
    unit = (bits[:n] + bits[n:] / (1 << 16)) / (1 << 15) - 1  # two times 16 bits, from -1 to 1
    return (unit / math.sqrt(fan or shape[0] or 1)).reshape(shape)


class Linear(Module):
    """y = x @ W + b on the last axis. weight (in, out), bias (out,), at first 0, or None."""

    def __init__(self, n_in: int, n_out: int, bias: bool = True, *, init: Init = uniform) -> None:
        self.weight = Parameter(init((n_in, n_out)))
        self.bias = Parameter(xp.zeros(n_out, dtype=self.weight.dtype)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, cast_like(self.weight, x), None if self.bias is None else cast_like(self.bias, x))


class Embedding(Module):
    """One row of weight (V, C) per id."""

    def __init__(self, n_ids: int, n_channels: int, *, init: Init | None = None) -> None:
        shape = (n_ids, n_channels)
        self.weight = Parameter(init(shape) if init else uniform(shape, fan=n_channels))

    def forward(self, ids: ArrayLike) -> Tensor:
        return ops.embedding(self.weight, ids)


class LayerNorm(Module):
    """Normalizes the last axis. weight (C,), at first 1, scales and bias (C,), at first 0, shifts: gamma and beta of the op."""

    def __init__(self, n_channels: int, eps: float = 1e-5) -> None:
        self.weight = Parameter(xp.ones(n_channels, dtype=xp.float32))
        self.bias = Parameter(xp.zeros(n_channels, dtype=xp.float32))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, cast_like(self.weight, x), cast_like(self.bias, x), self.eps)


class RMSNorm(Module):
    """Divides the last axis by its root mean square, then multiplies by offset + weight. weight (C,), at first 1 - offset, or None."""

    def __init__(self, n_channels: int, eps: float = 1e-6, *, offset: float = 0.0, weight: bool = True) -> None:
        self.weight = Parameter(xp.full(n_channels, 1 - offset, dtype=xp.float32)) if weight else None
        self.eps, self.offset = eps, offset

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, None if self.weight is None else cast_like(self.weight, x), self.eps, self.offset)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of that name in `ACTIVATIONS`, as a function of a tensor. Raises ValueError for another name."""
    return ACTIVATIONS[known_activation("activation", name)].apply


class Dropout(Module):
    """Inverted dropout with probability p while training; masks come from `stream`."""

    def __init__(self, p: float, stream: ops.RandomStream) -> None:
        self.p = p
        self.stream = stream

    def forward(self, x: Tensor) -> Tensor:
        return ops.dropout(x, self.p, self.training, self.stream)


class Recompute(Op):
    """A function of x that is computed twice, so that nothing inside it is kept from the forward to the backward pass.

    Forward     y = f(x), not recorded
    Backward    f(x) again, recorded; then the backward pass of that small graph, which also reaches the parameters inside f
    Shapes      those of f.  Saves x and the draw numbers of the random streams, so that both computations use the same dropout masks.
    Costs one more forward pass, about a third of a training step; the memory of one block instead of all.
    Source      Chen et al. 2016, arXiv:1604.06174, section 3.
    """

    takes_half = True  # the ops inside decide

    @staticmethod
    def forward(x: Array, *, f: Callable[[Tensor], Tensor], streams: Sequence[RandomStream]) -> tuple[Array, tuple[Array, ...]]:
        draws = [stream.counter for stream in streams]
        with no_grad():
            y = f(Tensor(x))
        return y.data, (x, f, streams, draws)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> Array:
        x, f, streams, draws = saved
        now = [stream.counter for stream in streams]
        _set_draws(streams, draws)
        again = Tensor(x, requires_grad=True)
        f(again).backward(dy)
        _set_draws(streams, now)
        return again.grad


def _set_draws(streams: Sequence[RandomStream], draws: Sequence[int]) -> None:
    for stream, draw in zip(streams, draws, strict=True):
        stream.counter = draw


def recompute(f: Callable[[Tensor], Tensor], x: Tensor, streams: Sequence[RandomStream] = ()) -> Tensor:
    """f(x), computed a second time in the backward pass instead of kept: less memory, more time.

    f         a function of one tensor, for instance a Module; it must give the same result both times
    streams   the random streams that f draws dropout masks from
    """
    if not is_recording():
        return f(x)
    if not x.requires_grad:  # the parameters inside f may still need gradients
        x = Tensor(x.data, requires_grad=True)
    return Recompute.apply(x, f=f, streams=streams)
