"""Assertions that the tests of the engine share: closeness per dtype, fast kernels against the definition, which kernel ran."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

import autograd as ag
from autograd import backend, nn
from autograd.backend import to_device, to_host, xp
from autograd.testing import nodes_of
from tests.strategies import arranged

numpy_only = pytest.mark.skipif(backend.name != "numpy", reason="about NumPy's memory, promotion or error state")

VALUE_TOLERANCE = {"float64": 1e-10, "float32": 1e-4}
"""Relative to the largest value: an op against a formula that sums in another order."""

KERNEL_TOLERANCE = {"float64": 1e-9, "float32": 2e-5}
"""Relative to the largest value, or to 0.1 where all are smaller: what a kernel may add to four times the definition's own error."""


class Arranged(ag.Op):
    """The identity, in another order of memory: gives ops inputs, and gradients, that are not contiguous, and not writable."""

    @staticmethod
    def forward(x: Any, *, layout: str, dy_layout: str) -> tuple[Any, str]:
        return _locked(arranged(x, layout)), dy_layout

    @staticmethod
    def backward(layout: str, dy: Any) -> Any:
        return _locked(arranged(dy, layout))


def _locked(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        array.flags.writeable = False
    return array


def rearranging(call: Callable[..., Any], layouts: Sequence[str]) -> Callable[..., Any]:
    """`call` with its inputs in the given layouts (the last one is that of the incoming gradients)."""
    *ours, dy_layout = layouts

    def wrapped(*tensors: ag.Tensor) -> tuple[ag.Tensor, ...]:
        moved = [Arranged.apply(t, layout=layout, dy_layout="contiguous") for t, layout in zip(tensors, ours, strict=False)]
        outputs = call(*moved)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return tuple(Arranged.apply(out, layout="contiguous", dy_layout=dy_layout) for out in outputs)

    return wrapped


def assert_close(actual: Any, expected: Any) -> None:
    """Shapes equal, values close by the tolerance of `actual`'s dtype (NaN and infinities equal)."""
    actual, expected = to_host(actual), np.asarray(expected)
    tolerance = VALUE_TOLERANCE[actual.dtype.name]
    assert actual.shape == expected.shape, f"shape {actual.shape}, expected {expected.shape}"
    finite = np.abs(expected[np.isfinite(expected)])
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * max(1.0, finite.max(initial=0.0)))


def run(
    call: Callable[..., Any], arrays: Sequence[np.ndarray], dtype: str, mode: str, seed: int = 0, needs: Sequence[bool] | None = None
) -> tuple[list[np.ndarray], list[np.ndarray | None]]:
    """One forward and one backward pass with random cotangents: (outputs, gradients of the inputs)."""
    with ag.use_kernels(mode):
        wanted = needs or [True] * len(arrays)
        tensors = [ag.Tensor(to_device(a.astype(dtype)), requires_grad=need) for a, need in zip(arrays, wanted, strict=True)]
        outputs = call(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        rng = np.random.default_rng(seed)
        total: Any = 0.0
        for out in outputs:
            total = total + (out * to_device(rng.standard_normal(out.shape).astype(out.dtype))).sum()
        total.backward()
    return [to_host(out.data) for out in outputs], [None if t.grad is None else to_host(t.grad) for t in tensors]


def assert_kernels_agree(call: Callable[..., Any], arrays: Sequence[np.ndarray], dtype: str) -> None:
    """Values and gradients under the fast kernels equal those of the plain math.

    Judged against the plain math in float64: a kernel may err a few times as much as the definition does in the same dtype,
    and by a small share of the largest value besides. So cancellation, where both lose digits, is no failure; nor is a gradient
    of 1e-7 that should be 0 (a softmax of one element).
    """
    exact, plain, fast = (
        [*values, *gradients]
        for values, gradients in (run(call, arrays, "float64", "reference"), run(call, arrays, dtype, "reference"),
                                     run(call, arrays, dtype, "fast"))
    )  # fmt: skip
    for i, (e, p, f) in enumerate(zip(exact, plain, fast, strict=True)):
        assert e is not None and p is not None and f is not None
        assert f.shape == p.shape and f.dtype == p.dtype, f"result {i}: {f.shape} {f.dtype}, the definition gives {p.shape} {p.dtype}"
        error, plain_error = np.abs(f - e).max(initial=0.0), np.abs(p - e).max(initial=0.0)
        allowed = 4 * plain_error + KERNEL_TOLERANCE[dtype] * max(np.abs(e).max(initial=0.0), 0.1)
        assert error <= allowed, (
            f"result {i} of shape {f.shape}: off by {error:.3g}, the definition by {plain_error:.3g}, allowed {allowed:.3g}"
        )


def ops_in(*outputs: ag.Tensor) -> set[type[ag.Op]]:
    """The classes that recorded themselves in the graph of `outputs`."""
    return {node.op for node in nodes_of(*outputs)}


@contextlib.contextmanager
def counting(*kernels: type[ag.Op]) -> Iterator[dict[type[ag.Op], int]]:
    """Counts the forward calls of each class within the block: proof that a fast path was taken, or not."""
    calls = dict.fromkeys(kernels, 0)
    originals = {kernel: kernel.__dict__.get("forward") for kernel in kernels}

    def counted(kernel: type[ag.Op]) -> Any:
        original = kernel.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            calls[kernel] += 1
            return original(*args, **kwargs)

        return staticmethod(forward)

    for kernel in kernels:
        kernel.forward = counted(kernel)
    try:
        yield calls
    finally:
        for kernel, original in originals.items():
            if original is None:
                del kernel.forward
            else:
                kernel.forward = original


@contextlib.contextmanager
def takes_fast_path(kernel: type[ag.Op]) -> Iterator[None]:
    """Fails unless `kernel` itself ran within the block."""
    with counting(kernel) as calls:
        yield
    assert calls[kernel], f"{kernel.__name__} never ran: is it registered, does AUTOGRAD_KERNELS allow it, does supports() say yes?"


def tensor(array: Any, requires_grad: bool = True) -> ag.Tensor:
    """A leaf from host data, which is copied; requires a gradient unless told otherwise."""
    return ag.Tensor(xp.array(to_device(array)), requires_grad=requires_grad)


def linear_of(weight: np.ndarray, bias: np.ndarray | None = None) -> nn.Linear:
    """A linear layer with these values, in their dtype."""
    layer = nn.Linear(*weight.shape, bias=bias is not None, init=lambda shape: weight)
    if bias is not None:
        layer.bias.data = to_device(bias)
    return layer


def layer_norm_of(gamma: np.ndarray, beta: np.ndarray, eps: float = 1e-5) -> nn.LayerNorm:
    """A norm with these values, in their dtype."""
    layer = nn.LayerNorm(len(gamma), eps)
    layer.weight.data, layer.bias.data = to_device(gamma), backend.to_device(beta)
    return layer
