"""Each fast CPU kernel against its reference and against PyTorch's op, forward and backward: milliseconds, in turns.

    python benchmarks/ops.py            two minutes; extra `bench` for PyTorch's column

Shapes are those of GPT-2 124M at batch 4, context 256 (`--small`: of the laptop model). Writes benchmarks/results/ops.json and .md.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from turns import Side

import autograd as ag
from autograd.threads import n_threads
from tinygpt.arguments import parse_args
from tinygpt.cli import run

RESULTS = Path(__file__).parent / "results"
Pass = Callable[[], Any]

_PASSES = 7
"""Timed passes in one turn, after one to warm up."""


@dataclass(frozen=True)
class Config:
    small: bool = False
    """The laptop model's shapes instead of GPT-2's."""
    rounds: int = 3
    """Turns of each side."""


@dataclass(frozen=True)
class Case:
    """An op on inputs: ours on Tensors, PyTorch's on its own, both returning one array."""

    name: str
    inputs: list[np.ndarray]
    ours: Callable[..., ag.Tensor]
    torch: Callable[..., Any]


def cases(small: bool) -> list[Case]:
    b, t, c, h, v = (12, 64, 128, 4, 65) if small else (4, 256, 768, 12, 50257)
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    targets = rng.integers(0, v, b * t)
    ids = rng.integers(0, v, (b, t))

    def functional() -> Any:
        import torch

        return torch.nn.functional

    def torch_array(a: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(a)

    def torch_rotary(x: Any, cos: Any, sin: Any) -> Any:
        """As transformers computes it."""
        import torch

        x1, x2 = x.chunk(2, dim=-1)
        return x * torch.cat((cos, cos), -1) + torch.cat((-x2, x1), -1) * torch.cat((sin, sin), -1)

    heads = [normal(b, h, t, c // h) for _ in range(3)]
    near = np.tri(t, dtype=bool) & ~np.tri(t, k=-(t // 8), dtype=bool)
    angles = rng.random((t, c // h // 2), dtype=np.float32)
    return [
        Case(
            "linear",
            [normal(b, t, c), normal(c, 4 * c), normal(4 * c)],
            ag.linear,
            lambda x, w, bias: functional().linear(x, w.T, bias),
        ),
        Case(
            "layer_norm",
            [normal(b, t, c), normal(c), normal(c)],
            ag.layer_norm,
            lambda x, gamma, beta: functional().layer_norm(x, (c,), gamma, beta),
        ),
        Case("rms_norm", [normal(b, t, c), normal(c)], ag.rms_norm, lambda x, weight: functional().rms_norm(x, (c,), weight, 1e-6)),
        Case("gelu", [normal(b, t, 4 * c)], ag.gelu, lambda x: functional().gelu(x, approximate="tanh")),
        Case("gelu, exact", [normal(b, t, 4 * c)], ag.gelu_exact, lambda x: functional().gelu(x)),
        Case("silu", [normal(b, t, 4 * c)], ag.silu, lambda x: functional().silu(x)),
        Case(
            "gated product, silu",
            [normal(b, t, 8 * c // 3), normal(b, t, 8 * c // 3)],
            ag.gated_product,
            lambda gate, up: functional().silu(gate) * up,
        ),
        Case(
            "gated product, gelu",
            [normal(b, t, 8 * c // 3), normal(b, t, 8 * c // 3)],
            lambda gate, up: ag.gated_product(gate, up, "gelu"),
            lambda gate, up: functional().gelu(gate, approximate="tanh") * up,
        ),
        Case("softmax", [normal(b, h, t, t)], ag.softmax, lambda x: functional().softmax(x, dim=-1)),
        Case("dropout", [normal(b, t, 4 * c)], lambda x: ag.dropout(x, 0.1), lambda x: functional().dropout(x, 0.1)),
        Case(
            "attention, causal",
            heads,
            lambda q, k, v: ag.scaled_dot_product_attention(q, k, v, causal=True),
            lambda q, k, v: functional().scaled_dot_product_attention(q, k, v, is_causal=True),
        ),
        Case(
            "attention, 4 query heads a key head",
            [heads[0], *(x[:, : h // 4] for x in heads[1:])],
            lambda q, k, v: ag.scaled_dot_product_attention(q, k, v, causal=True),
            lambda q, k, v: functional().scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True),
        ),
        Case(
            "attention, window of an eighth",
            heads,
            lambda q, k, v: ag.scaled_dot_product_attention(q, k, v, causal=True, window=t // 8),
            lambda q, k, v: functional().scaled_dot_product_attention(q, k, v, attn_mask=torch_array(near)),
        ),
        Case(
            "rotary positions",
            [heads[0]],
            lambda x: ag.rotary_embedding(x, np.cos(angles), np.sin(angles)),
            lambda x: torch_rotary(x, torch_array(np.cos(angles)), torch_array(np.sin(angles))),
        ),
        Case(
            "linear + cross-entropy",
            [normal(b * t, c), 0.02 * normal(v, c)],
            lambda x, w: ag.linear_cross_entropy(x, w, targets),
            lambda x, w: functional().cross_entropy(x @ w.T, torch_array(targets)),
        ),
        Case("embedding", [normal(v, c)], lambda w: ag.embedding(w, ids), lambda w: functional().embedding(torch_array(ids), w)),
    ]


def our_passes(case: Case) -> tuple[Pass, Pass]:
    """(forward, forward and backward)."""
    tensors = [ag.Tensor(a, requires_grad=True) for a in case.inputs]
    with ag.no_grad():
        dy = np.ones_like(case.ours(*tensors).data)

    def both() -> None:
        for x in tensors:
            x.grad = None
        case.ours(*tensors).backward(dy)

    return lambda: case.ours(*tensors), both


def torch_passes(case: Case) -> tuple[Pass, Pass]:
    import torch

    torch.set_num_threads(n_threads())
    tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in case.inputs]
    dy = torch.ones_like(case.torch(*tensors))

    def both() -> None:
        for x in tensors:
            x.grad = None
        case.torch(*tensors).backward(dy)

    return lambda: case.torch(*tensors), both


def answers(side: str, small: bool) -> Callable[[int], list[tuple[float, float]]]:
    """Answers the number of a case with milliseconds of some forward passes, and of forward and backward passes."""

    def answer(i: int) -> list[tuple[float, float]]:
        case = cases(small)[i]
        with ag.use_kernels("reference" if side == "reference" else "fast"):
            passes = torch_passes(case) if side == "torch" else our_passes(case)
            return [(_ms(passes[0]), _ms(passes[1])) for _ in range(1 + _PASSES)][1:]

    return answer


def _ms(one: Pass) -> float:
    started = time.perf_counter()
    one()
    return 1e3 * (time.perf_counter() - started)


def measure(case: Case, i: int, sides: list[Side], rounds: int) -> dict[str, float]:
    """Median milliseconds of each side's forward pass, and of its forward and backward pass."""
    times: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            times[side.name] += side.ask(i)
    medians = {
        f"{name}_{which}_ms": statistics.median(pair[k] for pair in pairs)
        for name, pairs in times.items()
        for k, which in enumerate(("forward", "both"))
    }
    print(f"{case.name}: {', '.join(f'{key} {ms:.2f}' for key, ms in medians.items())}")
    return medians


def markdown(results: dict[str, dict[str, float]], shapes: str) -> str:
    lines = [f"Milliseconds, forward / forward and backward; {shapes}; {n_threads()} threads. `python benchmarks/ops.py`", ""]
    lines += ["| op | tinygpt | its reference | PyTorch | times PyTorch's speed |", "|---|---|---|---|---|"]
    for name, r in results.items():
        pairs = [
            f"{r.get(f'{s}_forward_ms', float('nan')):.2f} / {r.get(f'{s}_both_ms', float('nan')):.2f}"
            for s in ("fast", "reference", "torch")
        ]
        speed = [f"{r[f'torch_{w}_ms'] / r[f'fast_{w}_ms']:.2f}" for w in ("forward", "both") if f"torch_{w}_ms" in r]
        lines.append(f"| {name} | " + " | ".join(pairs) + f" | {' / '.join(speed)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    config = parse_args(Config(), __doc__)
    sides = [Side(name, answers, name, config.small) for name in ("fast", "reference", "torch")]
    results = {case.name: measure(case, i, sides, config.rounds) for i, case in enumerate(cases(config.small))}
    shapes = "the laptop model, batch 12, context 64" if config.small else "GPT-2 124M, batch 4, context 256"
    RESULTS.mkdir(exist_ok=True)
    name = "ops-small" if config.small else "ops"
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(markdown(results, shapes), encoding="utf-8")
    print(markdown(results, shapes))


if __name__ == "__main__":
    run(main)
