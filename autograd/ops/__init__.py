"""The ops. Each is two pure functions on arrays under one formula, `forward` above `backward`.

Letters in shape comments, here and everywhere:

    B  sequences in a batch     T  positions in a sequence (queries)     S  positions attended to (keys)
    C  channels (n_embd)        H  attention heads                       D  channels of a head, C = H D
    V  vocabulary size          N  rows: all leading axes taken as one

`dx` is the gradient of the loss with respect to x, `dy` the one with respect to y; each has the shape of its array. In formulas @ is the
matrix product; all other products go element by element. The lower-case functions take tensors and check them; the classes take arrays.
"""

import sys
from collections.abc import Callable

from autograd.core import FUNCTIONS, Op, Operand, Tensor
from autograd.ops.activation import (
    gated_product,
    gelu,
    gelu_exact,
    log_softmax,
    relu,
    sigmoid,
    silu,
    soft_cap,
    softmax,
    squared_relu,
    tanh,
)  # fmt: skip
from autograd.ops.attention import scaled_dot_product_attention
from autograd.ops.dropout import RandomStream, dropout
from autograd.ops.elementwise import add, cast, divide, exp, log, maximum, multiply, negate, power, sqrt, subtract, where
from autograd.ops.embedding import embedding
from autograd.ops.group import copy_to_group, split_linear_cross_entropy, sum_over_group
from autograd.ops.loss import cross_entropy, linear_cross_entropy
from autograd.ops.matmul import linear, matmul
from autograd.ops.normalization import layer_norm, rms_norm
from autograd.ops.reduce import logsumexp, max, mean, sum, var
from autograd.ops.rotary import rotary_embedding
from autograd.ops.shape import broadcast_to, concatenate, index, reshape, split, stack, transpose

__all__ = [
    "RandomStream", "add", "broadcast_to", "cast", "concatenate", "copy_to_group", "cross_entropy", "divide", "dropout", "embedding", "exp",
    "gated_product", "gelu", "gelu_exact", "index", "layer_norm", "linear", "linear_cross_entropy", "log", "log_softmax", "logsumexp",
    "matmul", "max", "maximum", "mean", "multiply", "negate", "power", "relu", "reshape", "rms_norm", "rotary_embedding",
    "scaled_dot_product_attention", "sigmoid", "silu", "soft_cap", "softmax", "split", "split_linear_cross_entropy", "sqrt", "squared_relu",
    "stack", "subtract", "sum", "sum_over_group", "tanh", "transpose", "var",
    "where",
]  # fmt: skip


def op_of(function: Callable[..., object]) -> type[Op]:
    """The class behind a function of this package: the one of its file whose name ends its own, LayerNorm for `layer_norm`."""
    name, here = function.__name__.replace("_", ""), vars(sys.modules[function.__module__]).values()
    classes = [c for c in here if isinstance(c, type) and issubclass(c, Op) and c.__module__ == function.__module__]
    return sorted((c for c in classes if name.endswith(c.__name__.lower())), key=lambda c: len(c.__name__))[-1]


def _reflected(function: Callable[..., Tensor]) -> Callable[[Tensor, Operand], Tensor]:
    return lambda self, other: function(other, self)


def _varargs(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """NumPy's methods take `x.reshape(2, 3)` and `x.reshape((2, 3))` alike; so do ours."""
    return lambda self, *args: function(self, args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args)


def _in_place(sign: str) -> Callable[[Tensor, Operand], Tensor]:
    def refuse(self: Tensor, other: Operand) -> Tensor:
        raise TypeError(
            f"Tensor: {sign}= on a tensor, expected no change after creation (it would make a new tensor, and a parameter would keep its "
            f"numbers or leave its module); write x.data {sign}= ... to change the numbers, x = x {sign} ... for a new tensor"
        )

    return refuse


FUNCTIONS += __all__

_operators: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "add": ("+", add), "sub": ("-", subtract), "mul": ("*", multiply), "truediv": ("/", divide), "pow": ("**", power), "matmul": ("@", matmul),
}  # fmt: skip
for _name, (_sign, _function) in _operators.items():
    setattr(Tensor, f"__{_name}__", _function)
    setattr(Tensor, f"__r{_name}__", _reflected(_function))
    setattr(Tensor, f"__i{_name}__", _in_place(_sign))
for _name, _value in {
    "__neg__": negate, "__getitem__": index, "T": property(transpose), "reshape": _varargs(reshape),
    "transpose": _varargs(lambda x, order: transpose(x, order or None)), "sum": sum, "mean": mean, "max": max, "var": var,
}.items():  # fmt: skip
    setattr(Tensor, _name, _value)
