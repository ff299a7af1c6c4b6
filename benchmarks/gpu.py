"""Proves the GPU path on any NVIDIA GPU with one command, and measures it.

    python benchmarks/gpu.py

Needs CuPy; PyTorch too for the comparison; no network. Nine minutes at most: each section runs in a process of its own under a
time budget, and one that fails or runs out of time is reported, the others continue. After each section it prints what came out and
writes gpu-DEVICE-DATE.json and .md into benchmarks/results/, so an interruption loses no section that has ended. Exit code 1 if
something computed wrong or failed, 2 without a GPU.

    check         every CUDA kernel against its reference: fresh random inputs, odd sizes, outputs full of NaN beforehand. Each
                  kernel once, then more draws while there is time: within a minute it is known whether the backend works
    agreement     the same updates on the CPU and on the GPU: GPT, a Llama-like decoder, encoder, encoder-decoder, Muon; likelihoods
    speed         every CUDA kernel against the copy bandwidth, which is measured first, as is the rate of matrix products
    train         one training step of GPT-2 124M, T = 1024, at several batch sizes
    torch-eager   the same in PyTorch, bfloat16
    torch-compile the same compiled
    generate      tokens per second
    tests         a part of the test suite on the cupy backend

--sections runs only some, --quick uses small sizes, --dry-run prints the plan and needs no GPU. Warm-up, which includes the
compilation of kernels, is timed apart from what follows it.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import math
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
DEADLINE_S = 520.0  # of the nine minutes, what the sections share
BATCHES, CONTEXT = (16, 32, 64), 1024
GPT2_VOCAB = 50304  # 50257 rounded up to a multiple of 64, on both sides: matrix units like it
STEPS_PER_WAIT = 4
SHARE_WANTED = 0.8  # of the copy bandwidth, for a kernel that only moves memory
AGREEMENT_NATS = 1e-3  # between losses on the GPU and on the CPU, float32
AGREEMENT_OF_CURVES = 0.01  # of the loss, bfloat16

Row = dict[str, Any]
Report = Callable[..., None]  # report(**row): adds a row to the section's results at once, so a section that dies keeps what it had


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the proof: what it runs, for how long at most, with which variables."""

    run: Callable[[Report, argparse.Namespace], None]
    budget_s: float
    environment: dict[str, str]


# Kernels: right, then fast --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Call:
    """One call of an op on host arrays: float ones are cast to the dtype under test, integers stay."""

    op: str
    inputs: list[np.ndarray | None]
    options: dict[str, Any]
    needs: bool = False  # forward takes `needs`
    moved: tuple[float, float] = (2, 3)  # arrays of the first input's size that forward and backward must at least read or write


def calls(rng: np.random.Generator, rows: int, columns: int, *, only: str | None = None) -> Iterator[Call]:
    """Each op that has CUDA kernels, on about rows x columns elements."""

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def gated(activation: str) -> Call:
        return Call("GatedProduct", [normal(rows, columns), normal(rows, columns)], {"activation": activation}, moved=(3, 5))

    makers: dict[str, Callable[[], Call]] = {
        "Add": lambda: Call("Add", [normal(rows, columns), normal(rows, columns)], {}, moved=(3, 0)),
        "Cast": lambda: Call("Cast", [normal(rows, columns)], {"dtype": np.dtype("float32")}, moved=(3, 3)),
        # At least 16 columns: a single sum may cancel to nearly 0, and its roundings be large relative to it.
        "Linear": lambda: Call(
            "Linear", [normal(rows, 24), normal(24, 8 * -(-max(16, columns) // 8)), normal(8 * -(-max(16, columns) // 8))], {}, needs=True
        ),
        "GELU": lambda: Call("GELU", [normal(rows, columns)], {}),
        "Softmax": lambda: Call("Softmax", [normal(rows, columns)], {"axis": 1}),
        "LayerNorm": lambda: Call("LayerNorm", [3 + normal(rows, columns), normal(columns), normal(columns)], {}),
        "RMSNorm": lambda: Call("RMSNorm", [3 + normal(rows, columns), normal(columns)], {"offset": 1.0}),
        "GatedProduct": lambda: gated("silu"),
        **{f"GatedProduct with {a}": partial(gated, a) for a in ("relu", "gelu", "gelu_exact", "squared_relu")},
        "Dropout": lambda: Call("Dropout", [normal(rows, columns)], {"p": 0.2, "seed": 1, "draw": int(rng.integers(1000))}, moved=(2, 2)),
        "Embedding": lambda: Call(
            "Embedding", [normal(max(2, rows // 2), columns), rng.integers(0, max(2, rows // 2), rows)], {}, moved=(2, 1.5)
        ),
        "LinearCrossEntropy": lambda: Call(
            "LinearCrossEntropy",
            [normal(rows, 24), normal(columns, 24) / 5, np.where(np.arange(rows) % 7 == 3, -100, rng.integers(0, columns, rows)), None],
            {"n_counted": rows - len(range(3, rows, 7)), "ignore_index": -100, "label_smoothing": 0.0, "chunk": 1024},
            needs=True,
        ),
        "Attention": lambda: Call("Attention", [*(normal(2, 2, min(rows, columns), 8) for _ in range(3)), None], {"causal": True}),
        "Attention in 16 bits": lambda: Call(
            "Attention",
            [*(a.transpose(0, 2, 1, 3) for a in np.split(normal(2, max(64, min(rows, columns)), 6, 64), 3, axis=2)), None],
            {"causal": True},
        ),
        "Attention with dropout": lambda: Call(
            "Attention",
            [normal(2, 2, max(1, min(rows, columns) // 2), 8), *(normal(2, 2, min(rows, columns), 8) for _ in range(2)), None],
            {"causal": bool(rows % 2), "p": 0.1, "seed": 1, "draw": 2},
        ),
    }
    for name, make in makers.items():
        if only in (None, name):
            yield make()


def kernels_by_op() -> dict[str, tuple[Any, list[Any]]]:
    """Name of each op -> (the op, its kernels)."""
    import autograd as ag

    return {op.__name__: (op, list(kernels)) for op, kernels in ag.registered_kernels().items()}


@contextlib.contextmanager
def poisoned(xp: Any) -> Iterator[None]:
    """Within this block `xp.empty` gives arrays full of NaN: an element that a kernel forgets to write shows."""
    original = xp.empty

    def empty(*args: Any, **kwargs: Any) -> Any:
        array = original(*args, **kwargs)
        if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
            array.fill(float("nan"))
        return array

    xp.empty = empty
    try:
        yield
    finally:
        xp.empty = original


def forward_and_backward(op: Any, call: Call, arrays: list[Any], xp: Any, dy: Any = None) -> tuple[list[Any], Any]:
    """([y, gradients ...], dy); without a dy given, a random one of y's shape and dtype is drawn."""
    needs = {"needs": tuple(a is not None and a.dtype.name != "int64" for a in arrays)}
    y, saved = op.forward(*arrays, **call.options, **(needs if call.needs else {}))
    if dy is None:
        rng = np.random.default_rng(0)
        dy = xp.asarray(rng.standard_normal(y.shape, dtype=np.float32)).astype(y.dtype)
    gradients = op.backward(saved, dy, **(needs if op.backward_takes_needs else {}))
    return [y, *(g for g in (gradients if isinstance(gradients, tuple) else (gradients,)) if g is not None)], dy


def in_float64(array: Any, xp: Any) -> Any:
    """The same numbers in float64, by way of the host, where the conversion is plainly meant."""
    from autograd.backend import to_host

    return xp.asarray(np.asarray(to_host(array)).astype(np.float64))


def on_device(call: Call, xp: Any, dtype: Any) -> list[Any]:
    return [a if a is None else xp.asarray(a) if a.dtype.kind == "i" else xp.asarray(a).astype(dtype) for a in call.inputs]


def dtypes(xp: Any) -> list[Any]:
    """float32, and bfloat16 where the backend has it."""
    from autograd import backend

    return [np.dtype("float32"), *([backend.bfloat16] if backend.bfloat16 is not None else [])]


TOLERANCE = {"float32": 1e-5, "bfloat16": 2**-6, "float16": 2**-9}
"""Largest error relative to the largest value: some roundings of the storage type (2^-24, 2^-9, 2^-12)."""


FIRST_DRAW = (33, 65)  # odd, and more than a warp
CLOSING_S = 8.0  # of a section's budget, what its last draw may take


def check(report: Report, options: argparse.Namespace) -> None:
    """Every kernel against its reference in float64 on the same numbers: each once, then more draws as long as there is time."""
    from autograd.backend import xp

    end = time.perf_counter() + options.budget_s - CLOSING_S
    seed = int.from_bytes(os.urandom(4), "little")
    report(seed=seed)
    n_left_out = 0
    for name, draw in draws(np.random.default_rng(seed), xp, options.quick):
        if time.perf_counter() > end:
            n_left_out += 1
            continue
        try:
            draw(report)
        except Exception as error:
            report(draw=name, ok=False, error=one_line(error))
    if n_left_out:
        report(draws_left_out=n_left_out)


def draws(rng: np.random.Generator, xp: Any, quick: bool) -> Iterator[tuple[str, Callable[[Report], None]]]:
    """What is compared, the most telling first: each kernel on one draw, in 32 bits and then in 16, before any gets its second."""
    formats = [*dtypes(xp), np.dtype("float16")]
    for shape in [FIRST_DRAW, *([(1, 1)] if quick else [(1500, 768), (1, 1), (64, 3001), (3, 31), (7, 1023)])]:
        for dtype in formats:
            yield f"{shape}, {dtype}", partial(check_ops, rng=rng, xp=xp, shape=shape, dtype=dtype)
            if shape == FIRST_DRAW and dtype.name == "float32":
                yield "AdamW, 1001", partial(check_adamw, rng=rng, xp=xp, n=1001)
                yield "Muon", partial(check_muon, xp=xp, shapes=[(5, 33), (5, 33), (33, 5)])
    for n in [1, 5] if quick else [1, 5, 100_001, 30_000_001]:
        yield f"AdamW, {n}", partial(check_adamw, rng=rng, xp=xp, n=n)
    if not quick:
        yield "Muon, a block", partial(check_muon, xp=xp, shapes=block_matrices(768) * 2)


def check_ops(report: Report, *, rng: np.random.Generator, xp: Any, shape: tuple[int, int], dtype: Any) -> None:
    """The kernels of all ops on inputs of about this shape."""
    from autograd.backend import to_host

    table = kernels_by_op()
    for call in calls(rng, *shape):
        op, kernels = table[call.op]
        arrays = on_device(call, xp, dtype)
        for kernel in kernels:
            name = {"kernel": kernel.__name__, "shape": list(shape), "dtype": dtype.name}
            if (dtype.name != "float32" and not kernel.takes_half) or not kernel.supports(*arrays, **call.options):
                continue
            try:
                with poisoned(xp):
                    found, dy = forward_and_backward(kernel, call, arrays, xp)
                exact = [a if a is None or a.dtype.kind == "i" else in_float64(a, xp) for a in arrays]
                right, _ = forward_and_backward(op, call, exact, xp, in_float64(dy, xp))
                again, _ = forward_and_backward(kernel, call, arrays, xp, dy)
                report(**name, **compared(found, right, again, to_host, dtype.name))
            except Exception as error:
                report(**name, ok=False, error=one_line(error))


def compared(found: list[Any], right: list[Any], again: list[Any], to_host: Callable[[Any], np.ndarray], dtype: str) -> Row:
    """ok, the largest error relative to the largest value, and whether a second run gave the same bits."""
    error, same = 0.0, len(found) == len(right)
    for a, b, c in zip(found, right, again, strict=True):
        a, b, c = (np.asarray(to_host(array)).astype(np.float64) for array in (a, b, c))
        same &= a.shape == b.shape and np.array_equal(a, c)
        if a.shape == b.shape and a.size:
            difference = np.abs(a - b).max() / max(1e-1, np.abs(b).max())  # inputs are of size 1: where they cancel, rounding remains
            error = max(error, float(difference)) if math.isfinite(difference) else math.inf
    return {"ok": bool(same and error <= TOLERANCE[dtype]), "error_relative": error, "same_bits_again": bool(same)}


def check_adamw(report: Report, *, rng: np.random.Generator, xp: Any, n: int) -> None:
    """AdamW's update, and the norm of gradients, on n elements."""
    from autograd.backend import to_host

    table = kernels_by_op()
    host = [rng.standard_normal(n, dtype=np.float32) for _ in range(3)] + [rng.standard_normal(n, dtype=np.float32) ** 2]
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "decay": 0.1, "t": 3}
    op, kernels = table["AdamWUpdate"]
    for kernel in kernels:
        # One element in, so that the arrays do not begin on 16 bytes.
        runs = [[xp.asarray(np.pad(a, (1, 0)))[1:] for a in host] for _ in range(2)]
        exact = [xp.asarray(a.astype(np.float64)) for a in host]
        for arrays in runs:
            kernel.forward(*arrays, xp.asarray(np.float32(0.7)), **options)
        op.forward(*exact, float(np.float32(0.7)), **options)
        report(kernel=kernel.__name__, shape=[n], dtype="float32", **compared(runs[0], exact, runs[1], to_host, "float32"))
    op, kernels = table["SquaredNorm"]
    for kernel in kernels:
        x = xp.asarray(host[0])
        found, right, again = kernel.forward(x), op.forward(in_float64(x, xp)), kernel.forward(x)
        report(kernel=kernel.__name__, shape=[n], dtype="float32", **compared([found], [right], [again], to_host, "float32"))


def check_muon(report: Report, *, xp: Any, shapes: list[tuple[int, int]]) -> None:
    from autograd.backend import to_host
    from autograd.optim.muon import POLAR_EXPRESS

    op, kernels = kernels_by_op()["MuonUpdate"]
    muon: Row = {"lr": 0.01, "momentum": 0.95, "decay": 0.1, "coefficients": POLAR_EXPRESS}
    exact, *runs = (muon_arrays(shapes, xp, dtype) for dtype in ("float64", "float32", "float32"))
    right = op.forward(*exact, 0.7, **muon)
    for kernel in kernels:
        found, again = ([*chain(*arrays), kernel.forward(*arrays, xp.asarray(np.float32(0.7)), **muon)] for arrays in runs)
        name = {"kernel": kernel.__name__, "shape": list(shapes[0]), "dtype": "float32"}
        report(**name, **compared(found, [*chain(*exact), right], again, to_host, "float32"))


def block_matrices(n_channels: int) -> list[tuple[int, int]]:
    """Shapes of a GPT block's matrices: queries, keys, values, output, and the MLP's two."""
    return [(n_channels, n_channels)] * 4 + [(n_channels, 4 * n_channels), (4 * n_channels, n_channels)]


def muon_arrays(shapes: list[tuple[int, int]], xp: Any, dtype: str) -> list[list[Any]]:
    """Weights, gradients and moments, the same numbers in each dtype."""
    rng = np.random.default_rng(0)
    return [
        [xp.asarray((size * rng.standard_normal(shape, dtype=np.float32)).astype(dtype)) for shape in shapes] for size in (1.0, 1e-3, 1e-3)
    ]


def seconds_on_device(function: Callable[[], Any], *, repeats: int = 20) -> tuple[float, float]:
    """(seconds per call between events on the device, median; seconds of the first call, compilation included)."""
    from autograd import backend

    xp: Any = backend.xp
    cuda = xp.cuda
    started = time.perf_counter()
    function()
    backend.synchronize()
    first_s = time.perf_counter() - started
    function()
    times = []
    for _ in range(repeats):
        begin, end = cuda.Event(), cuda.Event()
        begin.record()
        function()
        end.record()
        end.synchronize()
        times.append(cuda.get_elapsed_time(begin, end) / 1000)
    return statistics.median(times), first_s


def speed(report: Report, options: argparse.Namespace) -> None:
    """Ceilings first, then each kernel as a share of them."""
    from autograd.backend import xp

    rng = np.random.default_rng(0)
    bandwidth = copy_bandwidth(report, xp, 1 << (20 if options.quick else 29))
    size = 128 if options.quick else 8192
    for dtype in dtypes(xp):
        a = xp.asarray(rng.standard_normal((size, size), dtype=np.float32)).astype(dtype)
        product_s, _ = seconds_on_device(lambda a=a: a @ a, repeats=10)
        report(name=f"matrix product {size}", dtype=dtype.name, ms=1e3 * product_s, tflop_per_s=2 * size**3 / product_s / 1e12)
    tokens = 16 if options.quick else 32 * CONTEXT
    shapes = {"GELU": (tokens, 3072), "GatedProduct": (tokens, 2048), "LayerNorm": (tokens, 768), "RMSNorm": (tokens, 768),
              "Softmax": (tokens * 3, 1024), "Dropout": (tokens, 768), "Embedding": (tokens, 768), "Add": (tokens, 768),
              "Cast": (tokens, 768)}  # fmt: skip
    for name, (rows, columns) in shapes.items():
        (call,) = calls(rng, rows, columns, only=name)
        if columns == 768 and name != "Embedding":  # eight batches: so much work that the time to launch it from Python does not show
            call.inputs = [a if a is None or a.shape != (rows, columns) else np.tile(a, (8, 1)) for a in call.inputs]
        for dtype in dtypes(xp):
            with reported_failure(report, name=name, dtype=dtype.name):
                time_op(report, call, xp, dtype, bandwidth)
    with reported_failure(report, name="kernels in place"):
        rows, classes, n_keys = (64, 500, 64) if options.quick else (8 * CONTEXT, GPT2_VOCAB, CONTEXT)
        time_in_place(report, xp, bandwidth, rows, classes, n_keys)
    with reported_failure(report, name="optimizer"):
        time_optimizer(report, xp, 10_000 if options.quick else 124_475_904, bandwidth)
    with reported_failure(report, name="Muon"):
        time_muon(report, xp, block_matrices(16 if options.quick else 768) * (2 if options.quick else 12))


def copy_bandwidth(report: Report, xp: Any, n_bytes: int) -> float:
    """Bytes read and written per second by the driver's own copy."""
    source, target = xp.zeros(n_bytes, dtype="uint8"), xp.zeros(n_bytes, dtype="uint8")
    copy_s, _ = seconds_on_device(lambda: xp.copyto(target, source))
    bandwidth = 2 * n_bytes / copy_s
    report(name="copy", bytes=2 * n_bytes, ms=1e3 * copy_s, gb_per_s=bandwidth / 1e9)
    return bandwidth


def time_op(report: Report, call: Call, xp: Any, dtype: Any, bandwidth: float) -> None:
    """Forward and backward of each kernel, and of the reference, on one call."""
    op, kernels = kernels_by_op()[call.op]
    arrays = on_device(call, xp, dtype)
    for kernel in kernels:
        if not kernel.supports(*arrays, **call.options):
            continue
        y, saved = kernel.forward(*arrays, **call.options)
        dy = xp.ones(y.shape, dtype=y.dtype)
        _, saved_by_op = op.forward(*arrays, **call.options)
        for direction, moved, arguments, arguments_of_op, keywords in (
            ("forward", call.moved[0], arrays, arrays, call.options),
            ("backward", call.moved[1], (saved, dy), (saved_by_op, dy), {}),
        ):
            fast, plain = getattr(kernel, direction), getattr(op, direction)
            if fast is plain:
                continue
            kernel_s, first_s = seconds_on_device(partial(fast, *arguments, **keywords))
            plain_s, _ = seconds_on_device(partial(plain, *arguments_of_op, **keywords), repeats=5)
            n_bytes = moved * y.size * dtype.itemsize
            report(**timed(f"{kernel.__name__} {direction}", dtype.name, n_bytes, kernel_s, bandwidth, first_s, plain_s))


def timed(name: str, dtype: str, n_bytes: float, kernel_s: float, bandwidth: float, first_s: float, plain_s: float | None = None) -> Row:
    row: Row = {"name": name, "dtype": dtype, "bytes": int(n_bytes), "ms": 1e3 * kernel_s, "gb_per_s": n_bytes / kernel_s / 1e9}
    row |= {"share_of_copy": n_bytes / kernel_s / bandwidth, "first_call_ms": 1e3 * first_s}
    return row if plain_s is None else row | {"plain_ms": 1e3 * plain_s, "times_plain": plain_s / kernel_s}


def time_in_place(report: Report, xp: Any, bandwidth: float, rows: int, classes: int, n_keys: int) -> None:
    """The kernels between matrix products, alone. They work in place, so each call takes the last one's output."""
    from autograd.kernels.cuda.attention import run_softmax
    from autograd.kernels.cuda.dropout import mask_arguments
    from autograd.kernels.cuda.loss import cross_entropy_in_place

    rng = np.random.default_rng(0)
    targets, losses = xp.asarray(rng.integers(0, classes, rows)), xp.empty(rows, dtype="float32")
    n_scores = rows * classes // n_keys // n_keys * n_keys  # rows of scores: as many elements as there are logits
    plain = {"ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0, "gradient_scale": 1 / rows, "want_gradient": True}
    for dtype in dtypes(xp):
        z = xp.asarray(rng.standard_normal((rows, classes), dtype=np.float32)).astype(dtype)
        scores = z.reshape(-1)[: n_scores * n_keys].reshape(n_scores, n_keys)
        p, rest = scores.copy(), (n_keys, n_keys, True, 0.125, mask_arguments(0.0, 0, 0, 0))  # causal, no dropout
        for name, moved, run, n in (
            ("cross_entropy_in_place", 2, partial(cross_entropy_in_place, losses, z, targets, **plain), z.size),
            (
                "attention_softmax_forward",
                1.5,
                partial(run_softmax, "attention_softmax_forward", (p, p), *rest),
                scores.size,
            ),  # half is read
            ("attention_softmax_backward", 2, partial(run_softmax, "attention_softmax_backward", (scores, p), *rest), scores.size),
        ):
            kernel_s, first_s = seconds_on_device(run)
            report(**timed(name, dtype.name, moved * n * dtype.itemsize, kernel_s, bandwidth, first_s))


def time_optimizer(report: Report, xp: Any, n: int, bandwidth: float) -> None:
    weight, gradient, m, v = (xp.full(n, 0.5, dtype="float32") for _ in range(4))
    scale = xp.asarray(np.float32(0.7))
    options = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "decay": 0.1, "t": 3}
    table = kernels_by_op()
    for name, n_bytes, arguments in (("AdamWUpdate", 28 * n, (weight, gradient, m, v, scale)), ("SquaredNorm", 4 * n, (gradient,))):
        op, kernels = table[name]
        keywords = options if name == "AdamWUpdate" else {}
        plain_s, _ = seconds_on_device(lambda o=op, a=arguments, k=keywords: o.forward(*a, **k), repeats=5)
        for kernel in kernels:
            kernel_s, first_s = seconds_on_device(lambda o=kernel, a=arguments, k=keywords: o.forward(*a, **k))
            report(**timed(kernel.__name__, "float32", n_bytes, kernel_s, bandwidth, first_s, plain_s))


def time_muon(report: Report, xp: Any, shapes: list[tuple[int, int]]) -> None:
    """A Muon step of all matrices of a GPT's blocks, by its arithmetic: nearly all of it is products."""
    from autograd.optim import Orthogonalize
    from autograd.optim.muon import POLAR_EXPRESS

    arrays, scale = muon_arrays(shapes, xp, "float32"), xp.asarray(np.float32(0.7))
    options = {"lr": 1e-4, "momentum": 0.95, "decay": 0.1, "coefficients": POLAR_EXPRESS}
    n_flops = sum(Orthogonalize.cost(shape, POLAR_EXPRESS) for shape in shapes)
    op, kernels = kernels_by_op()["MuonUpdate"]
    plain_s, _ = seconds_on_device(lambda: op.forward(*arrays, scale, **options), repeats=5)
    for kernel in kernels:
        kernel_s, first_s = seconds_on_device(lambda k=kernel: k.forward(*arrays, scale, **options))
        row: Row = {"name": kernel.__name__, "dtype": "float32", "ms": 1e3 * kernel_s, "tflop_per_s": n_flops / kernel_s / 1e12}
        report(**row, first_call_ms=1e3 * first_s, plain_ms=1e3 * plain_s, times_plain=plain_s / kernel_s)


# Training and generation -------------------------------------------------------------------------------------------------------


def gpt2(quick: bool) -> Any:
    from tinygpt import GPTConfig

    if quick:
        return GPTConfig(n_layer=2, n_head=2, n_embd=64, n_positions=32, vocab_size=512, dropout=0.0)
    return GPTConfig.preset("gpt2", vocab_size=GPT2_VOCAB, dropout=0.0)


def agreement(report: Report, options: argparse.Namespace) -> None:
    """The same updates of small models in child processes: the CPU first, then the GPU in float32 and in bfloat16.

    A child prints the numbers of each model as soon as it has them.
    """
    end = time.perf_counter() + options.budget_s - CLOSING_S
    on_cpu: dict[str, list[float]] = {}
    for backend_name, dtype in (("numpy", "float32"), ("cupy", "float32"), ("cupy", "bfloat16")):
        code = f"from benchmarks.gpu import print_numbers; print_numbers({dtype!r}, quick={options.quick})"
        status, out, error = run_within(
            [sys.executable, "-c", code],
            max(1.0, end - time.perf_counter()),
            {"AUTOGRAD_BACKEND": backend_name, "AUTOGRAD_KERNELS": "fast"},
        )
        found = {name: numbers for line in out.splitlines() for name, numbers in json.loads(line).items()}
        for name in AGREEING:
            row: Row = {"name": name, "backend": backend_name, "dtype": dtype}
            if name not in found:
                report(**row, ok=False, error="stopped: too slow" if status is None else one_line(error))
            elif backend_name == "numpy":
                on_cpu[name] = found[name]
                report(**row, ok=bool(np.isfinite(found[name]).all()), last=found[name][-1], numbers=found[name])
            elif name in on_cpu:
                report(**row, **agrees(found[name], on_cpu[name], dtype))
            else:
                report(**row, ok=False, error="the CPU has no numbers to compare with", numbers=found[name])


def agrees(found: list[float], right: list[float], dtype: str) -> Row:
    """Whether numbers of the GPU are those of the CPU, as closely as the dtype lets them be."""
    apart = np.abs(np.subtract(found, right))
    from_cpu, share = float(apart.max()), float((apart / np.abs(right)).max())
    ok = from_cpu <= AGREEMENT_NATS if dtype == "float32" else share <= AGREEMENT_OF_CURVES
    return {"ok": ok, "last": found[-1], "from_cpu_nats": from_cpu, "largest_share_apart": share, "numbers": found}


def print_numbers(dtype: str, *, quick: bool) -> None:
    """What a child of `agreement` does: a line of JSON for each of AGREEING, the quick ones first."""
    for name, numbers in AGREEING.items():
        print(json.dumps({name: numbers(dtype, quick)}), flush=True)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a small model is trained: for how many updates, at which of them its loss is compared."""

    n_updates: int = 30
    every: int = 1
    optimizer: Any = "adamw"
    lr: float = 3e-3


def losses(make: Callable[[], tuple[Any, Callable[[np.ndarray], Any]]], plan: Plan, dtype: str, quick: bool) -> list[float]:
    """The loss of a small model at every so many updates, on rows that count in steps: something to learn."""
    from tinygpt import TrainConfig
    from tinygpt.training.optimizers import make_optimizer

    model, loss_of = make()
    model.set_compute_dtype(dtype)
    optimizer = make_optimizer(model, TrainConfig(optimizer=plan.optimizer, lr=plan.lr))
    rng, found = np.random.default_rng(0), []
    for update in range(2 if quick else plan.n_updates):
        start, stride = rng.integers(0, 128, (8, 1)), rng.integers(1, 5, (8, 1))
        optimizer.zero_grad()
        loss = loss_of((start + stride * np.arange(65)) % 128)
        loss.backward()
        optimizer.step(max_norm=1.0)
        if quick or (update + 1) % plan.every == 0:
            found.append(loss.item())
    return found


SMALL = {"n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 64, "vocab_size": 128, "dropout": 0.0}


def decoder(**options: Any) -> tuple[Any, Callable[[np.ndarray], Any]]:
    from tinygpt import GPT, GPTConfig

    model = GPT(GPTConfig(**SMALL, **options), seed=0)
    return model, lambda ids: model.loss(ids[:, :-1], ids[:, 1:])


LLAMA = {"norm": "rms", "positions": "rotary", "activation": "silu", "gated": True, "n_inner": 96, "n_kv_head": 2, "qkv_bias": False}


def encoder() -> tuple[Any, Callable[[np.ndarray], Any]]:
    """An encoder that fills every sixth token in, with rows of several lengths."""
    from tinygpt.encoder_config import EncoderConfig
    from tinygpt.models.encoder import Encoder

    model = Encoder(EncoderConfig(**SMALL), seed=0)

    def loss(ids: np.ndarray) -> Any:
        ids = ids[:, :64]
        masked = np.arange(64) % 6 == ids[:, :1] % 6
        return model.loss(np.where(masked, 1, ids), np.where(masked, ids, -100), attention_mask=lengths(64))

    return model, loss


def seq2seq() -> tuple[Any, Callable[[np.ndarray], Any]]:
    """An encoder-decoder that writes a row backward, with sources of several lengths; without ReLU, whose corner makes a rounding grow."""
    from tinygpt.models.seq2seq import Seq2Seq
    from tinygpt.seq2seq_config import Seq2SeqConfig

    model = Seq2Seq(Seq2SeqConfig(**SMALL, activation="silu"), seed=0)
    return model, lambda ids: model.loss(ids[:, :32], ids[:, 31::-1], attention_mask=lengths(32))


def lengths(n: int) -> np.ndarray:
    """The mask of eight rows of n tokens, the last ones shorter."""
    return np.arange(n) < n - np.arange(8)[:, None]


def likelihoods(dtype: str, quick: bool) -> list[float]:
    """Log-probabilities of continuations of several lengths, as multiple choice is scored."""
    from tinygpt.evaluation.continuations import Request, score

    model, _ = decoder(**LLAMA, initializer_range=0.1)
    rng = np.random.default_rng(0)
    requests = [
        Request(rng.integers(128, size=n).tolist(), [rng.integers(128, size=size).tolist() for size in (1, 3, 8)])
        for n in range(5, 11 if quick else 55)
    ]
    return [option.log_prob for scores in score(model.set_compute_dtype(dtype), requests) for option in scores]


AGREEING: dict[str, Callable[[str, bool], list[float]]] = {
    "30 updates of a Llama-like decoder": partial(losses, partial(decoder, **LLAMA), Plan()),
    "30 updates of an encoder": partial(losses, encoder, Plan()),
    "30 updates of an encoder-decoder": partial(losses, seq2seq, Plan()),
    "30 updates of a GPT by Muon": partial(losses, decoder, Plan(optimizer="muon")),
    "likelihoods of continuations": likelihoods,
    "500 updates of a GPT": partial(losses, decoder, Plan(500, every=50, lr=1e-3)),
}


def train(report: Report, options: argparse.Namespace) -> None:
    """GPT-2 124M on random tokens: time of a whole update and peak memory, for each dtype, kernels and batch size."""
    import autograd as ag
    from autograd import backend
    from autograd.backend import xp
    from autograd.optim import AdamW
    from tinygpt import GPT

    config = gpt2(options.quick)
    pool = xp.get_default_memory_pool() if hasattr(xp, "get_default_memory_pool") else None
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (max(BATCHES), config.n_positions + 1))
    model = GPT(config, seed=0)
    optimizer = AdamW(model, lr=1e-4)

    def step(batch: int) -> Any:
        optimizer.zero_grad()
        loss = model.loss(ids[:batch, :-1], ids[:batch, 1:])
        loss.backward()
        optimizer.step(max_norm=1.0)
        return loss

    first, *others = reversed(dtypes(xp))  # bfloat16, where there is one
    cases = [(first, "fast", batch) for batch in batches(options)]
    cases += [(dtype, "fast", min(batches(options))) for dtype in others] + [(first, "reference", min(batches(options)))]
    for dtype, kernels, batch in cases:
        row = {"dtype": dtype.name, "kernels": kernels, "batch": batch, "context": config.n_positions}
        with reported_failure(report, **row), ag.use_kernels(kernels):
            if pool:
                pool.free_all_blocks()
            model.set_compute_dtype(dtype.name)
            times, warm_up_s, loss = steps(partial(step, batch), backend.synchronize, options)
            peak = pool.total_bytes() if pool else None
            report(**row, **rates(times, warm_up_s, batch * config.n_positions), loss=loss.item(), peak_bytes=peak)


def batches(options: argparse.Namespace) -> tuple[int, ...]:
    return (2,) if options.quick else BATCHES


def steps(step: Callable[[], Any], synchronize: Callable[[], None], options: argparse.Namespace) -> tuple[list[float], float, Any]:
    """(seconds per step, seconds of the warm-up, the last loss): two steps to warm up, then up to 20 or four seconds.

    Steps are timed by fours with one wait at their end, as in training, where nothing waits for the device after each step.
    """
    started = time.perf_counter()
    for _ in range(2):
        loss = step()
    synchronize()
    warm_up_s = time.perf_counter() - started
    times: list[float] = []
    while len(times) < (1 if options.quick else 5) and STEPS_PER_WAIT * sum(times) < 4:
        begin = time.perf_counter()
        for _ in range(STEPS_PER_WAIT):
            loss = step()
        synchronize()
        times.append((time.perf_counter() - begin) / STEPS_PER_WAIT)
    return times, warm_up_s, loss


def rates(times: list[float], warm_up_s: float, tokens: int) -> Row:
    median = statistics.median(times)
    return {
        "step_ms": 1e3 * median,
        "fastest_ms": 1e3 * min(times),
        "n_steps": STEPS_PER_WAIT * len(times),
        "tokens_per_s": tokens / median,
        "warm_up_s": warm_up_s,
    }


def generate(report: Report, options: argparse.Namespace) -> None:
    """Tokens per second from a prompt of 16 tokens, all sequences together."""
    import autograd as ag
    from autograd import backend
    from autograd.backend import xp
    from tinygpt import GPT

    config = gpt2(options.quick)
    new = 8 if options.quick else 64
    for dtype in dtypes(xp):
        for batch in (1, 2) if options.quick else (1, 16):
            row = {"dtype": dtype.name, "batch": batch, "new_tokens": new}
            with reported_failure(report, **row), ag.use_kernels("fast"):
                model = GPT(config, seed=0).set_compute_dtype(dtype.name)
                prompt = np.random.default_rng(0).integers(0, config.vocab_size, (batch, 16))
                begin = time.perf_counter()
                model.generate(prompt, 4)
                backend.synchronize()
                warm_up_s, begin = time.perf_counter() - begin, time.perf_counter()
                model.generate(prompt, new)
                backend.synchronize()
                report(**row, tokens_per_s=batch * new / (time.perf_counter() - begin), warm_up_s=warm_up_s)


def torch_eager(report: Report, options: argparse.Namespace) -> None:
    train_torch(report, options, compiled=False)


def torch_compile(report: Report, options: argparse.Namespace) -> None:
    train_torch(report, options, compiled=True)


def train_torch(report: Report, options: argparse.Namespace, *, compiled: bool, device: str = "cuda") -> None:
    """The same model and step in PyTorch as its users write it: bfloat16 autocast, flash attention, fused AdamW, TF32 elsewhere."""
    import torch

    torch.set_float32_matmul_precision("high")
    config = gpt2(options.quick)
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, config.vocab_size, (max(BATCHES), config.n_positions + 1))).to(device)
    report(name="PyTorch", version=torch.__version__)
    for batch in sorted(batches(options), reverse=True):  # the most telling first
        row = {"dtype": "bfloat16", "kernels": "compiled" if compiled else "eager", "batch": batch, "context": config.n_positions}
        with reported_failure(report, **row):
            torch.manual_seed(0)
            model = torch_gpt(config).to(device)
            if compiled:
                torch._dynamo.reset()  # each batch size gets kernels of its own
            run = torch.compile(model, dynamic=False) if compiled else model
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
            inputs, targets = ids[:batch, :-1].contiguous(), ids[:batch, 1:].contiguous()
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

            def step(run: Any = run, model: Any = model, optimizer: Any = optimizer, inputs: Any = inputs, targets: Any = targets) -> Any:
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast(device, dtype=torch.bfloat16):
                    loss = run(inputs, targets)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                return loss

            times, warm_up_s, loss = steps(step, synchronize, options)
            peak = torch.cuda.max_memory_allocated() if device == "cuda" else None
            report(**row, **rates(times, warm_up_s, batch * config.n_positions), loss=loss.item(), peak_bytes=peak)
        model = run = optimizer = step = loss = None  # type: ignore[assignment]


def torch_gpt(config: Any) -> Any:
    """GPT-2 in PyTorch: the forward pass returns the loss."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    c = config.n_embd

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(c), nn.LayerNorm(c)
            self.c_attn, self.c_proj = nn.Linear(c, 3 * c), nn.Linear(c, c)
            self.c_fc, self.mlp_proj = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)

        def forward(self, x: Any) -> Any:
            b, t, _ = x.shape
            q, k, v = (part.view(b, t, config.n_head, -1).transpose(1, 2) for part in self.c_attn(self.ln_1(x)).split(c, dim=2))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.c_proj(y.transpose(1, 2).reshape(b, t, c))
            return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))

    class GPT2(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(config.vocab_size, c), nn.Embedding(config.n_positions, c)
            self.h = nn.ModuleList(Block() for _ in range(config.n_layer))
            self.ln_f = nn.LayerNorm(c)
            self.apply(self._initialize)

        @staticmethod
        def _initialize(module: Any) -> None:
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

        def forward(self, ids: Any, targets: Any) -> Any:
            x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
            for block in self.h:
                x = block(x)
            logits = F.linear(self.ln_f(x), self.wte.weight)
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1))

    return GPT2()


TESTS = [f"tests/autograd/test_{name}.py" for name in "ops cupy_backend attention loss optim muon".split()]
TESTS += [f"tests/tinygpt/test_{name}.py" for name in "cupy_training encoder seq2seq generate evaluation loss_scale lora".split()]
"""What fits into the section's time; `AUTOGRAD_BACKEND=cupy pytest tests/autograd tests/tinygpt` runs all."""


def tests(report: Report, options: argparse.Namespace) -> None:
    """Tests of the engine and of each kind of model under cupy. They start processes on other backends where they mean to."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-n",
        str(max(1, min(14, (os.cpu_count() or 1) - 2))),
        "--maxfail=30",
        "-rfE",
        "--tb=line",
        *(["tests/autograd/test_activation.py"] if options.quick else TESTS),
    ]
    started = time.perf_counter()
    code, out, error = run_within(command, options.budget_s - 5, {})
    lines = out.strip().splitlines()
    if code is None:
        passed = sum(line.count(".") for line in lines if re.fullmatch(r"[.sxFE]+( *\[ *\d+%\])?", line.strip()))
        report(
            ok=False, result=f"not finished after {options.budget_s - 5:.0f} s; {passed} had passed", seconds=time.perf_counter() - started
        )
    else:
        report(ok=code == 0, result=lines[-1] if lines else one_line(error), seconds=time.perf_counter() - started)
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            report(ok=False, error=line)


CUPY = {"AUTOGRAD_BACKEND": "cupy"}
SECTIONS = {
    "check": Section(check, 55, CUPY),
    "agreement": Section(agreement, 75, CUPY),
    "speed": Section(speed, 60, CUPY),
    "train": Section(train, 45, CUPY),
    "torch-eager": Section(torch_eager, 30, {}),
    "torch-compile": Section(torch_compile, 100, {}),
    "generate": Section(generate, 30, CUPY),
    "tests": Section(tests, 125, CUPY),
}


# Running the sections, writing the report ------------------------------------------------------------------------------------


@contextlib.contextmanager
def reported_failure(report: Report, **row: Any) -> Iterator[None]:
    """An error within this block becomes a row (out of memory at one batch size, say), and the section goes on."""
    try:
        yield
    except Exception as error:
        report(**row, error=one_line(error))


def one_line(said: object) -> str:
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return re.sub(r"^[\w.]+(Error|Exception): ", "", lines[-1]) if lines else type(said).__name__


def run_within(command: list[str], timeout_s: float, environment: dict[str, str]) -> tuple[int | None, str, str]:
    """(exit code, or None if it was stopped, standard output, standard error). Whatever the command has started is stopped with it."""
    own_group: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
    process = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        encoding="utf-8", errors="replace", **own_group,
    )  # fmt: skip
    try:
        out, error = process.communicate(timeout=timeout_s)
        return process.returncode, out, error
    except BaseException as stop:
        if own_group:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        out, error = process.communicate()
        if not isinstance(stop, subprocess.TimeoutExpired):
            raise
        return None, out, error


INTERRUPTED = "interrupted"


def run_section(name: str, options: argparse.Namespace, timeout_s: float) -> Row:
    """Runs one section in a process of its own and collects what it has reported, also from one that was stopped or interrupted."""
    started = time.perf_counter()
    path = options.out / f".{name}.rows"
    path.unlink(missing_ok=True)
    command = [
        sys.executable,
        str(Path(__file__).resolve()),
        "--in-process",
        name,
        "--out",
        str(options.out),
        "--budget-s",
        f"{timeout_s:.1f}",
    ]
    command += ["--quick"] if options.quick else []
    problem = None
    try:
        code, _, error = run_within(command, timeout_s, SECTIONS[name].environment)
        if code is None:
            problem = f"stopped after {timeout_s:.0f} s, its time budget"
        elif code:
            problem = f"exit code {code}: {one_line(error)}"
    except KeyboardInterrupt:
        problem = INTERRUPTED
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return {"rows": rows, "problem": problem, "seconds": time.perf_counter() - started}


def in_process(name: str, options: argparse.Namespace) -> None:
    """What the child process does: the section itself, each row written as soon as it is known."""
    with (options.out / f".{name}.rows").open("a", encoding="utf-8") as file:

        def report(**row: Any) -> None:
            file.write(json.dumps(row) + "\n")
            file.flush()

        SECTIONS[name].run(report, options)


def probe() -> tuple[str | None, str]:
    """(what the backend runs on, "") or (None, why it cannot)."""
    code = "from autograd import backend; print(backend.reason)"
    status, out, error = run_within([sys.executable, "-c", code], 60, {"AUTOGRAD_BACKEND": "cupy"})
    return (out.strip(), "") if status == 0 else (None, "no answer within 60 s" if status is None else one_line(error))


def versions() -> Row:
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in ("tinygpt", "numpy", "cupy-cuda13x", "cupy-cuda12x", "torch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def markdown(result: Row) -> str:
    """The report as a page: what, where, when, then one table per section."""
    lines = [
        f"# GPU: {result['device']}",
        "",
        f"{result['date']}, {result['seconds']:.0f} s. " + ", ".join(f"{k} {v}" for k, v in result["versions"].items()),
        "",
    ]
    lines += [f"- {line}" for line in result["verdicts"]] + [""]
    for name, section in result["sections"].items():
        lines += [f"## {name}", "", f"{section['seconds']:.0f} s" + (f". **{section['problem']}**" if section["problem"] else ""), ""]
        lines += table(section["rows"])
    return "\n".join(lines).rstrip() + "\n"


def table(rows: list[Row]) -> list[str]:
    """A Markdown table of rows whose keys need not be the same."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return []
    body = ["| " + " | ".join(cell(row.get(key)) for key in columns) + " |" for row in rows]
    return ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *body, ""]


def cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value).replace("|", "\\|")


def verdict(name: str, section: Row) -> str:
    """What came out of a section, in a line: how much of it is right, what is not."""
    rows = section["rows"]
    checked = [row for row in rows if "ok" in row]
    wrong = [row for row in rows if row.get("ok") is False or ("error" in row and "ok" not in row)]
    said = f"{name}: {sum(row['ok'] for row in checked)} of {len(checked)} right" if checked else f"{name}: {len(rows)} results"
    if wrong:
        said += f"; {'the first wrong' if checked else f'{len(wrong)} failed, the first'}: "
        said += ", ".join(
            f"{key} {cell(value)}" for key, value in wrong[0].items() if key != "ok" and not (isinstance(value, list) and len(value) > 3)
        )
    said += "".join(f"; {row['draws_left_out']} draws left out, as time was short" for row in rows if "draws_left_out" in row)
    return f"{said}; {section['problem']}" if section["problem"] else said


def verdicts(sections: dict[str, Row]) -> list[str]:
    """What the figures come to, each in a line; only of what was measured."""
    lines = []
    for name, section in sections.items():
        if section["problem"] or any("ok" in row for row in section["rows"]):
            lines.append(verdict(name, section))
    shares = [row for row in rows_of(sections, "speed") if "share_of_copy" in row]
    for row in shares:
        if row["share_of_copy"] < SHARE_WANTED:
            lines.append(f"{row['name']} ({row['dtype']}): {row['share_of_copy']:.0%} of the copy bandwidth, {SHARE_WANTED:.0%} wanted")
    ours = {row["batch"]: row for row in rows_of(sections, "train") if row.get("kernels") == "fast" and row.get("dtype") == "bfloat16"}
    for rival in ("torch-eager", "torch-compile"):
        for row in rows_of(sections, rival):
            mine = ours.get(row.get("batch", 0), {}).get("tokens_per_s")
            if mine and row.get("tokens_per_s"):
                lines.append(f"B = {row['batch']}, bfloat16: {mine / row['tokens_per_s']:.2f} x {rival}")
    return lines


def rows_of(sections: dict[str, Row], name: str) -> list[Row]:
    return sections.get(name, {}).get("rows", [])


def failed(sections: dict[str, Row]) -> bool:
    return any(section["problem"] or any(row.get("ok") is False for row in section["rows"]) for section in sections.values())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="NAME", help=", ".join(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures nothing of interest")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the report goes")
    parser.add_argument("--in-process", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--budget-s", type=float, default=DEADLINE_S, metavar="S", help="seconds for all sections; default %(default)s")
    options = parser.parse_args(argv)
    options.out = options.out.expanduser().resolve()
    if options.in_process:
        in_process(options.in_process, options)
        return 0
    if options.dry_run:
        for name in options.sections:
            section = SECTIONS[name]
            print(
                f"{name:14} at most {section.budget_s:.0f} s  {(section.run.__doc__ or 'PyTorch, as its users write it').splitlines()[0]}"
            )
        print(f"all together at most {options.budget_s:.0f} s; report into {options.out}")
        return 0
    device, why = probe()
    if device is None:
        print(
            f"error: gpu.py: no GPU to measure ({why}), expected one NVIDIA GPU that CuPy can use; python -m tinygpt doctor says more",
            file=sys.stderr,
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    print(device, flush=True)
    return run_all(device, options)


def run_all(device: str, options: argparse.Namespace) -> int:
    """The sections one after the other; after each, its verdict is printed and the report of all so far written."""
    started, now = time.perf_counter(), datetime.datetime.now(datetime.UTC)
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower().rpartition(" on ")[2]).strip("-")
    path = options.out / f"gpu-{slug}-{now:%Y%m%d-%H%M}"
    result: Row = {"device": device, "date": now.date().isoformat(), "seconds": 0.0, "quick": options.quick, "versions": versions()}
    sections: dict[str, Row] = {}
    for name in options.sections:
        left_s = options.budget_s - (time.perf_counter() - started)
        if left_s < 5:
            sections[name] = {"rows": [], "problem": "not started: no time was left", "seconds": 0.0}
        else:
            sections[name] = run_section(name, options, min(SECTIONS[name].budget_s, left_s))
        result |= {"seconds": time.perf_counter() - started, "verdicts": verdicts(sections), "sections": sections}
        write(path, result)
        print(f"{verdict(name, sections[name])} ({sections[name]['seconds']:.0f} s)", flush=True)
        if sections[name]["problem"] == INTERRUPTED:
            break
    print("\n".join(["", *result["verdicts"], "", f"written: {path}.json and .md"]))
    return 1 if failed(sections) else 0


def write(path: Path, result: Row) -> None:
    """The report, as data and as a page; the last one is there until this one is complete."""
    for suffix, text in ((".json", json.dumps(result, indent=1) + "\n"), (".md", markdown(result))):
        unfinished = path.with_name(f".{path.name}{suffix}")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path.with_suffix(suffix))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `timeout` and job schedulers stop it: an interruption, too
    sys.exit(main())
