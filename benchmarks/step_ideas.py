"""Ideas for the part of a training step that is not matrix products, each measured old and new in turns: docs/performance.md has the results.

    python benchmarks/step_ideas.py                          all of them, about two minutes on two cores (GPT-2 124M's shapes)
    python benchmarks/step_ideas.py --ideas logistic norm    some of them
    OPENBLAS_CORETYPE=Haswell NPY_DISABLE_CPU_FEATURES="X86_V4 AVX512_ICL AVX512_SPR" python benchmarks/step_ideas.py     as without AVX-512

Elementwise kernels: CPU time of one thread, which other jobs on the machine hardly change. What uses two threads, and steps: seconds.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from train_step import SIZES, our_trainer, processor

from autograd.kernels.cpu import activation, attention, embedding, loss, matmul, normalization, optim, parallel
from autograd.kernels.cpu.parallel import row_blocks, row_sums, times_vector
from autograd.kernels.destination import destinations
from autograd.threads import blas, use_threads
from tinygpt.arguments import parse_args
from tinygpt.cli import run
from tinygpt.errors import InvalidInput

Variants = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Config:
    ideas: tuple[str, ...] = ("logistic", "block", "one_thread", "scores", "sums", "norm", "clip", "threads", "loss", "written")
    """Which: see the functions of these names."""
    rounds: int = 9
    """How often each variant gets its turn."""


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def in_turns(variants: Variants, rounds: int, clock: Callable[[], float] = time.thread_time) -> str:
    """The median milliseconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, call in variants.items():
            started = clock()
            call()
            seconds[name] += [clock() - started] * (turn > 0)  # the first one warms up
    return ", ".join(f"{name} {statistics.median(times) * 1e3:.2f} ms" for name, times in seconds.items())


def logistic(rounds: int) -> None:
    """1 / (1 + e^-a), the heart of GELU and SiLU, by NumPy's tanh, its exp, and a rational tanh: a million numbers in blocks of 128 KB."""
    a, z = numbers(32, 32_768), np.empty(32_768, dtype=np.float32)

    def by(f: Callable[[np.ndarray], object], inside: float) -> Callable[[], None]:
        def call() -> None:
            for block in a:
                np.multiply(block, inside, out=z)
                f(z)

        return call

    print("  ", in_turns({"tanh": by(np_tanh, 0.5), "exp": by(np_exp, 1.0)}, rounds), "alone")
    ways = {"by tanh": (activation.logistic_by_tanh, 0.5), "by exp": (activation.logistic_by_exp, -1.0), "by rational": (by_rational, 0.5)}
    print("  ", in_turns({name: by(*way) for name, way in ways.items()}, rounds))
    x = np.linspace(-20, 20, 400_001).astype(np.float32)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    for name, (f, inside) in ways.items():
        found = x * np.float32(inside)
        f(found)
        print(f"   {name}: largest error {np.abs(found - exact).max():.1e}, relative to the value {np.abs(found / exact - 1).max():.1e}")


def np_tanh(z: np.ndarray) -> None:
    np.tanh(z, out=z)


def np_exp(z: np.ndarray) -> None:
    np.exp(z, out=z)


_ODD = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08, 1.48572235717979e-05,
        6.37261928875436e-04, 4.89352455891786e-03)  # fmt: skip
_EVEN = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def by_rational(z: np.ndarray) -> None:
    """As `logistic_by_tanh`, by the fraction of polynomials of degree 13 and 6 that Eigen takes for float32 (MathFunctionsImpl.h)."""
    np.clip(z, -7.9, 7.9, out=z)
    square, above, below = z * z, np.empty_like(z), np.empty_like(z)
    for total, (first, second, *others) in ((above, _ODD), (below, _EVEN)):
        np.multiply(square, first, out=total)
        total += second
        for coefficient in others:
            total *= square
            total += coefficient
    z *= above
    z /= below
    z += 1
    z *= 0.5


def block(rounds: int) -> None:
    """GELU and its slope, 1,024 x 3,072, by blocks: numbers that one NumPy call takes, one thread and two."""
    x = numbers(1024, 3072)
    for n in (1, 2):
        with use_threads(n):
            calls = {f"1/{k} of a block": lambda k=k: activation._with_slope(activation._gelu, x, True, k) for k in (1, 2, 4, 8)}
            print(f"   {n} threads:", in_turns(calls, rounds, time.perf_counter if n > 1 else time.thread_time))


def one_thread(rounds: int) -> None:
    """GELU and gated SiLU, 2,048 x 1,536, where one thread does all the work: bytes of a block (512 KB today)."""
    x, y = numbers(2, 2048, 1536)
    ops: Variants = {
        "GELU": lambda: activation.GELUBlocked.forward(x),
        "gated SiLU": lambda: activation.GatedProductBlocked.forward(x, y, activation="silu"),
    }
    with use_threads(1):
        for name, op in ops.items():
            print(f"   {name}:", in_turns(with_each(parallel, "_BYTES_OF_ONE_THREAD", (256, 512, 1024), op), rounds))


def scores(rounds: int) -> None:
    """Attention forward and backward, one thread, 12 heads of 64 channels: bytes of scores that exist at once (512 KB today)."""
    with use_threads(1):
        for rows, positions in ((4, 256), (1, 1024)):
            q, k, v = numbers(3, rows, 12, positions, 64)

            def op(q: Any = q, k: Any = k, v: Any = v) -> None:
                y, saved = attention.AttentionBlocked.forward(q, k, v, None, causal=True)
                attention.AttentionBlocked.backward(saved, y)

            print(f"   {rows} x {positions}:", in_turns(with_each(attention, "_SCORES_BYTES", (128, 256, 512, 1024), op), rounds))


def with_each(module: Any, constant: str, kilobytes: tuple[int, ...], op: Callable[[], object]) -> Variants:
    """The same op with each of these sizes of a block."""

    def call(n: int) -> None:
        before = getattr(module, constant)
        setattr(module, constant, n * 1024)
        op()
        setattr(module, constant, before)

    return {f"{n} KB": partial(call, n) for n in kilobytes}


def norm(rounds: int) -> None:
    """Residual addition and layer norm in one pass, forward and backward, one thread."""
    for rows, c in ((1024, 768), (2048, 384), (384, 128)):
        print(f"   {rows} x {c}: {norms(rows, c, rounds)}")


def norms(rows: int, c: int, rounds: int) -> str:
    (x, y), gamma, plain = numbers(2, rows, c), np.ones(c, dtype=np.float32), normalization.LayerNormBlocked
    _, saved = plain.forward(x, gamma, gamma)
    forward: Variants = {"apart": lambda: plain.forward(x + y, gamma, gamma), "fused": lambda: sum_and_norm(x, y, gamma)}
    backward: Variants = {"apart": lambda: plain.backward(saved, x)[0] + y, "fused": lambda: norm_and_sum(saved, x, y)}
    with use_threads(1):
        return f"forward {in_turns(forward, rounds)}; backward {in_turns(backward, rounds)}"


def sum_and_norm(x: np.ndarray, y: np.ndarray, gamma: np.ndarray) -> Any:
    """x + y and its layer norm, while a block of the sum is in cache."""
    total, n, out, r = np.empty_like(x), np.empty_like(x), np.empty_like(x), np.empty((len(x), 1), dtype=x.dtype)
    mean = np.full((x.shape[1], 1), 1 / x.shape[1], dtype=x.dtype)

    def rows(part: slice) -> None:
        np.add(x[part], y[part], out=total[part])
        ns, rs = n[part], r[part]
        times_vector(total[part], mean, out=rs)
        np.subtract(total[part], rs, out=ns)
        np.vecdot(ns, ns, out=rs[:, 0])
        rs *= 1 / x.shape[1]
        rs += 1e-5
        np.sqrt(rs, out=rs)
        np.divide(1, rs, out=rs)
        ns *= rs
        np.multiply(ns, gamma, out=out[part])
        out[part] += gamma

    row_blocks(len(x), x[0].nbytes, rows)
    return total, out, n, r


def norm_and_sum(saved: Any, dy: np.ndarray, more: np.ndarray) -> Any:
    """The layer norm's backward pass plus the residual's gradient, while a block is in cache."""
    n, r, gamma = saved
    dx, weights = np.empty_like(n), gamma * (1 / n.shape[1])

    def rows(part: slice) -> tuple[np.ndarray, ...]:
        d, out = dy[part], dx[part]
        dn = np.multiply(d, n[part])
        mean_qn, mean_q = times_vector(dn, weights)[:, None], times_vector(d, weights)[:, None]
        sums = tuple(np.ones(len(d), dtype=d.dtype) @ terms for terms in (dn, d))
        np.multiply(n[part], mean_qn, out=out)
        out += mean_q
        np.multiply(d, gamma, out=dn)
        np.subtract(dn, out, out=out)
        out *= r[part]
        out += more[part]
        return sums

    return dx, row_sums(len(n), n[0].nbytes, rows)


def clip(rounds: int) -> None:
    """The norm of 10 million gradients: from memory, as now, and while a block is in the cache, as a sum made where gradients are written."""
    g, m, v, w = numbers(4, 10_000_000)
    small = g[:65_536]
    options = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "decay": 0.1, "t": 10}
    with use_threads(1):
        calls: Variants = {
            "norm": lambda: optim.SquaredNormBlocked.forward(g),
            "norm in cache": lambda: [np.dot(small, small) for _ in range(g.size // small.size)],
            "AdamW": lambda: optim.AdamWUpdateBlocked.forward(w, g, m, np.abs(v, out=v), np.float32(0.5), **options),
        }
        print("  ", in_turns(calls, rounds))


def sums(rounds: int) -> None:
    """A bias's gradient, the sum of rows, by NumPy and by BLAS, one thread; two processes' gradients added by NumPy and by two threads."""
    for rows, c in ((2048, 1536), (1024, 768), (384, 128)):
        print(f"   {rows} x {c}: {row_sums_by(numbers(rows, c), rounds)}")
    for n in (810_000, 10_800_000, 124_400_000):
        print(f"   {n:,} gradients: {added_by(np.ones(n, dtype=np.float32), np.ones(n, dtype=np.float32), rounds)}")


def row_sums_by(x: np.ndarray, rounds: int) -> str:
    ones = np.ones(len(x), dtype=x.dtype)
    with use_threads(1):
        return in_turns({"NumPy": lambda: x.sum(axis=0), "BLAS": lambda: ones @ x}, rounds)


def added_by(total: np.ndarray, more: np.ndarray, rounds: int) -> str:
    def block(part: slice) -> None:
        total[part] += more[part]

    calls: Variants = {
        "NumPy": lambda: np.add(total, more, out=total),
        "blocks": lambda: row_blocks(total.size, total.itemsize, block, elementwise=True),
    }
    return in_turns(calls, rounds, time.perf_counter)


def threads(rounds: int) -> None:
    """Norms and GELU with one thread and with two, at the sizes S, M, L, XL of train_step.py: which op should take how many?"""
    least, parallel._THREADS_PAY_BYTES = parallel._THREADS_PAY_BYTES, 0
    for rows, c in ((768, 128), (4096, 384), (1024, 768), (4096, 768)):
        x, wide, gamma = numbers(rows, c), numbers(rows, 4 * c), np.ones(c, dtype=np.float32)
        _, saved = normalization.LayerNormBlocked.forward(x, gamma, gamma)

        def with_threads(n: int, f: Callable[..., object], *arrays: Any) -> Callable[[], None]:
            def call() -> None:
                with use_threads(n):
                    f(*arrays)

            return call

        ops: dict[str, tuple[Any, ...]] = {
            "norm": (normalization.LayerNormBlocked.forward, x, gamma, gamma),
            "its backward": (normalization.LayerNormBlocked.backward, saved, x),
            "GELU": (activation.GELUBlocked.forward, wide),
            "its backward ": (activation.GELUBlocked.backward, wide, wide),
        }
        for name, op in ops.items():
            calls: Variants = {"1 thread": with_threads(1, *op), "2 threads": with_threads(2, *op)}
            print(f"   {rows} x {c}, {name}:", in_turns(calls, rounds, time.perf_counter))
    parallel._THREADS_PAY_BYTES = least


def loss_rows(rounds: int) -> None:
    """Output layer and loss for 1,024 rows of GPT-2: rows of logits that exist at once (512 today)."""
    x, weight, targets = numbers(1024, 768), numbers(50257, 768) * np.float32(0.02), np.arange(1024)
    options = {"n_counted": 1024, "ignore_index": -100, "label_smoothing": 0.0, "needs": (True, True, False, False)}

    def at_once(rows: int) -> Callable[[], None]:
        def call() -> None:
            limit, loss._LOGITS_BYTES = loss._LOGITS_BYTES, rows * weight.shape[0] * 4
            loss.LinearCrossEntropyBlocked.forward(x, weight, targets, chunk=1024, **options)  # type: ignore[arg-type]
            loss._LOGITS_BYTES = limit

        return call

    print("  ", in_turns({f"{rows} rows": at_once(rows) for rows in (128, 256, 342, 512, 1024)}, min(rounds, 3), time.perf_counter))


def written(rounds: int) -> None:
    """Steps of GPT-2 124M on 1,024 tokens, in threads: gradients copied into the optimizer's buffer, or written there by the kernels."""
    trainer = our_trainer(SIZES["L"], "threads")
    kernels = (matmul.LinearThreaded, loss.LinearCrossEntropyBlocked, embedding.EmbeddingInto)

    def step(*takes: bool) -> Callable[[], None]:
        def call() -> None:
            for kernel, take in zip(kernels, takes, strict=True):
                kernel.destinations = staticmethod(destinations) if take else None  # type: ignore[assignment]
            trainer.update()

        return call

    calls: Variants = {
        "copied": step(False, False, False),
        "layers written": step(True, False, False),
        "all written": step(True, True, True),
    }
    print("  ", in_turns(calls, min(rounds, 4), time.perf_counter))


IDEAS: dict[str, Callable[[int], None]] = {
    "logistic": logistic, "block": block, "one_thread": one_thread, "scores": scores, "sums": sums, "norm": norm, "clip": clip, "threads": threads, "loss": loss_rows, "written": written,
}  # fmt: skip


def main() -> None:
    config = parse_args(Config(), __doc__)
    for name in config.ideas:
        if name not in IDEAS:
            raise InvalidInput(f"step_ideas: {name!r}, expected one of {', '.join(IDEAS)}; see --help")
    print(f"{processor()}; {blas()}; NumPy {'without' if activation.tanh_is_slow() else 'with'} AVX-512 or another processor's kernels")
    for name in config.ideas:
        print(f"{name}: {' '.join((IDEAS[name].__doc__ or '').split())}")
        IDEAS[name](config.rounds)


if __name__ == "__main__":
    run(main)
