"""Our training step by op, and the rate of its matrix products compared with the same products alone: `train_step.py --profile`."""

import collections
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import autograd.core
from autograd.kernels.cpu.parallel import for_each, n_threads

_MIN_FLOPS = 1_000_000
"""Products smaller than this are dominated by the call, not by the arithmetic."""


class Products:
    """Stands in for np.matmul and notes shape, memory layout and seconds of every call, in each thread."""

    def __init__(self, min_flops: int = _MIN_FLOPS) -> None:
        self.matmul, self.min_flops = np.matmul, min_flops
        self.calls: list[tuple[tuple[Any, ...], float]] = []
        self.on = False
        self._lock = threading.Lock()

    def __call__(self, a: np.ndarray, b: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        started = time.perf_counter()
        y = self.matmul(a, b, *args, **kwargs)
        if self.on and 2 * y.size * a.shape[-1] >= self.min_flops:
            with self._lock:
                self.calls.append(((*_layout(a), *_layout(b)), time.perf_counter() - started))
        return y


def _layout(a: np.ndarray) -> tuple[Any, ...]:
    transposed = a.ndim >= 2 and a.strides[-1] > a.strides[-2]
    return a.shape, transposed, a.dtype.str


def _array(shape: tuple[int, ...], transposed: bool, dtype: str) -> np.ndarray:
    a = np.ones((*shape[:-2], shape[-1], shape[-2]) if transposed else shape, dtype=dtype)
    return a.swapaxes(-1, -2) if transposed else a


def _flops(call: tuple[Any, ...]) -> float:
    shape_a, shape_b = call[0], call[3]
    return 2.0 * np.prod(shape_a) * shape_b[-1]


def alone_s(matmul: Callable[..., Any], call: tuple[Any, ...]) -> float:
    """Seconds of this product with nothing else going on but the same one in every other thread."""
    operands = [(_array(*call[:3]), _array(*call[3:])) for _ in range(n_threads())]
    outs = [matmul(a, b) for a, b in operands]
    seconds: list[float] = []

    def one(i: int) -> None:
        started = time.perf_counter()
        matmul(*operands[i], out=outs[i])
        seconds.append(time.perf_counter() - started)

    for _ in range(5):
        for_each(n_threads(), one, threaded=True)
    return statistics.median(seconds)


def products_of(step: Callable[[], Any]) -> Callable[[], None]:
    """A function that multiplies what a step multiplies, through np.matmul: the same shapes and layouts, each product in every thread at once, a
    share of its calls each, with operands and results that exist already. Its seconds are those of the step's products alone, on all cores."""
    products = Products(min_flops=1)
    np.matmul = products  # type: ignore[assignment]
    try:
        step()
        products.on = True
        step()
    finally:
        np.matmul = products.matmul
    made = []
    for call, count in collections.Counter(call for call, _ in products.calls).items():
        operands = [(_array(*call[:3]), _array(*call[3:])) for _ in range(n_threads())]
        made.append((operands, [a @ b for a, b in operands], count))

    def alone() -> None:
        for operands, outs, count in made:

            def some(i: int, operands: Any = operands, outs: Any = outs, count: int = count) -> None:
                for _ in range(len(range(i, count, n_threads()))):
                    np.matmul(*operands[i], out=outs[i])

            for_each(n_threads(), some, threaded=True)

    return alone


@contextmanager
def timed_kernels(seconds: collections.Counter[str], calls: collections.Counter[str]) -> Iterator[None]:
    """Every forward and backward that the engine picks adds its time to `seconds`."""
    original, seen = autograd.dispatch.dispatch, {}

    def timed(name: str, f: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            result = f(*args, **kwargs)
            seconds[name] += time.perf_counter() - started
            calls[name] += 1
            return result

        return wrapper

    def dispatch(reference: type, *arrays: Any, **options: Any) -> Any:
        chosen = original(reference, *arrays, **options)
        if chosen not in seen:
            body = {
                w: staticmethod(timed(f"{chosen.__name__}.{w}", getattr(chosen, w))) for w in ("forward", "backward") if hasattr(chosen, w)
            }
            copy = type(chosen.__name__, (chosen,), body)
            for w in ("forward", "backward"):  # the wrapper's own arguments say nothing about `needs`
                setattr(copy, f"{w}_takes_needs", getattr(chosen, f"{w}_takes_needs", False))
            seen[chosen] = copy
        return seen[chosen]

    autograd.Op.dispatch = classmethod(dispatch)  # type: ignore[method-assign]
    try:
        yield
    finally:
        autograd.Op.dispatch = classmethod(original)  # type: ignore[method-assign]


def profile(name: str, step: Callable[[], Any], n_weights: int, n_steps: int = 5) -> str:
    """A table of one step's milliseconds by op, then of its matrix products."""
    products = Products()
    np.matmul = products  # type: ignore[assignment]
    seconds: collections.Counter[str] = collections.Counter()
    calls: collections.Counter[str] = collections.Counter()
    try:
        for _ in range(2):
            step()
        started = time.perf_counter()
        for _ in range(n_steps):
            step()
        plain_s = (time.perf_counter() - started) / n_steps
        with timed_kernels(seconds, calls):
            step()
            seconds.clear(), calls.clear(), products.calls.clear()
            products.on = True
            for _ in range(n_steps):
                step()
            products.on = False
    finally:
        np.matmul = products.matmul
    by_call: dict[tuple[Any, ...], list[float]] = {}
    for call, s in products.calls:
        by_call.setdefault(call, []).append(s)
    in_step_s = sum(sum(times) for times in by_call.values())
    expected_s = sum(alone_s(products.matmul, call) * len(times) for call, times in by_call.items())
    flops = sum(_flops(call) * len(times) for call, times in by_call.items())
    ceiling = _ceiling(products.matmul)
    rate = flops / in_step_s / 1e9 * n_threads()
    total = sum(seconds.values())
    lines = [f"{name}: {plain_s * 1e3:,.1f} ms a step, {n_weights:,} weights; by op:"]
    lines += [
        f"  {op:38} {s / n_steps * 1e3:9.2f} ms  {calls[op] / n_steps:5.0f} calls  {s / total:6.1%}" for op, s in seconds.most_common()
    ]
    products_s = in_step_s / n_steps / n_threads()
    lines.append(f"  {'outside ops (engine, copies)':38} {(plain_s - total / n_steps) * 1e3:9.2f} ms")
    lines.append(
        f"  matrix products of {_MIN_FLOPS:,} operations and more: {flops / n_steps / 1e9:,.1f} GFLOP, {products_s * 1e3:,.1f} ms = "
        f"{products_s / plain_s:.0%} of the step, {rate:,.0f} GFLOP/s = {expected_s / in_step_s:.0%} of the same products alone, "
        f"{rate / ceiling:.0%} of the ceiling ({ceiling:,.0f} GFLOP/s, 2048 cubed)"
    )
    return "\n".join(lines)


def _ceiling(matmul: Callable[..., Any]) -> float:
    call = ((2048, 2048), False, "<f4", (2048, 2048), False, "<f4")
    return _flops(call) / alone_s(matmul, call) / 1e9 * n_threads()


if __name__ == "__main__":
    print(__doc__)
