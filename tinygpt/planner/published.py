"""Steps that others have measured and published, and what the formulas of `tinygpt.planner.step` say about them.

Five rows fix the three numbers that no data sheet has; the others test them.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinygpt.model_config import GPTConfig
from tinygpt.planner.formulas import DAY
from tinygpt.planner.hardware import DEVICES
from tinygpt.planner.step import Job, Mesh, seconds, utilization


class Constants(NamedTuple):
    """Three fields of `Device` that no data sheet has."""

    products: float
    values: float
    exposed: float


@dataclass(frozen=True)
class Published:
    """A measured step. assumed: what the source does not say; fitted: whether the row fixed the constants."""

    name: str
    job: Job
    step: float
    source: str
    assumed: str = ""
    fitted: bool = False

    def utilization(self) -> float:
        return utilization(self.job, self.step)


def _gpt(n_layer: int, n_head: int, n_embd: int, vocab_size: int = 51_200, n_positions: int = 2048) -> GPTConfig:
    return GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=n_embd, vocab_size=vocab_size, n_positions=n_positions)


def _megatron_flops(config: GPTConfig, batch: int) -> float:
    """FLOPs of an update with blocks computed again: equation 3 of Narayanan et al. 2021."""
    length, depth, width, vocabulary = config.n_positions, config.n_layer, config.n_embd, config.vocab_size
    return 96 * batch * length * depth * width**2 * (1 + length / (6 * width) + vocabulary / (16 * depth * width))


def _megatron() -> list[Published]:
    """TFLOP/s per A100, blocks computed again, scores of attention in memory."""
    source, assumed = "Narayanan et al. 2021, arXiv:2104.04473, table 1", "micro-batch"
    rows = [  # weights in 1e9, heads, channels, blocks, tensor, pipeline, devices, batch, TFLOP/s
        (1.7, 24, 2304, 24, 1, 1, 32, 512, 137), (3.6, 32, 3072, 30, 2, 1, 64, 512, 138), (7.5, 32, 4096, 36, 4, 1, 128, 512, 142),
        (18.4, 48, 6144, 40, 8, 1, 256, 1024, 135), (39.1, 64, 8192, 48, 8, 2, 512, 1536, 138), (76.1, 80, 10_240, 60, 8, 4, 1024, 1792, 140),
        (145.6, 96, 12_288, 80, 8, 8, 1536, 2304, 148), (310.1, 128, 16_384, 96, 8, 16, 1920, 2160, 155),
        (529.6, 128, 20_480, 105, 8, 35, 2520, 2520, 163), (1008.0, 160, 25_600, 128, 8, 64, 3072, 3072, 163),
    ]  # fmt: skip
    found = []
    for size, heads, width, depth, tensor, pipeline, n, batch, rate in rows:
        config, mesh = _gpt(depth, heads, width), Mesh(n // tensor // pipeline, tensor, pipeline)
        micro = 4 if width < 3000 else 2 if width < 5000 else 1
        job = Job(config, DEVICES["a100"], mesh, batch, micro, "full", fused=False, sharded=False)
        step = _megatron_flops(config, batch) / (rate * 1e12 * n)
        found.append(Published(f"Megatron {size:g} B, {n} A100", job, step, source, assumed, size in (1.7, 76.1, 1008.0)))
    source = "the same, table 2"
    for n, rate in ((384, 153), (768, 149), (1536, 141)):
        config = _gpt(96, 96, 12_288)
        job = Job(config, DEVICES["a100"], Mesh(n // 96, 8, 12), 1536, 1, "full", fused=False, sharded=False)
        found.append(Published(f"GPT-3 175 B, {n} A100", job, _megatron_flops(config, 1536) / (rate * 1e12 * n), source, "mesh"))
    return found


def _korthikanti() -> list[Published]:
    source = "Korthikanti et al. 2022, arXiv:2205.05198, table 5"
    rows = [  # weights in 1e9, heads, channels, blocks, pipeline, batch, micro-batch, chunks, seconds
        (22, 64, 6144, 48, 1, 4, 4, 1, 1.10), (175, 96, 12_288, 96, 8, 64, 1, 3, 13.75),
        (530, 128, 20_480, 105, 35, 280, 1, 3, 37.83), (1000, 160, 25_600, 128, 64, 512, 1, 1, 71.49),
    ]  # fmt: skip
    found = []
    for size, heads, width, depth, pipeline, batch, micro, chunks, step in rows:
        job = Job(
            _gpt(depth, heads, width), DEVICES["a100"], Mesh(1, 8, pipeline), batch, micro, "attention",
            fused=False, sequence=True, chunks=chunks, sharded=False,
        )  # fmt: skip
        found.append(Published(f"Megatron {size} B, {8 * pipeline} A100", job, step, source, fitted=size == 175))
    return found


def _small() -> list[Published]:
    gpt2 = _gpt(12, 12, 768, 50_304, 1024)
    xl = _gpt(48, 25, 1600, 50_304, 1024)
    nano = dataclasses.replace(
        GPTConfig.preset("smollm2-135m"), n_layer=20, n_head=10, n_kv_head=10, n_embd=1280, n_inner=5120, vocab_size=65_536, n_positions=2048,
        gated=False, activation="squared_relu", tie_word_embeddings=False,
    )  # fmt: skip
    smol = dataclasses.replace(
        GPTConfig.preset("smollm2-135m"), n_layer=24, n_head=32, n_kv_head=32, n_embd=2048, n_inner=8192, n_positions=1024
    )
    llama = dataclasses.replace(GPTConfig.preset("llama-2-7b"), n_positions=1024)

    def job(config: GPTConfig, name: str, n: int, batch: int, micro: int, mesh: Mesh | None = None, sharded: bool = True) -> Job:
        return Job(config, DEVICES[name], mesh or Mesh(n), batch, micro, sharded=sharded)

    def at(job: Job, share: float) -> float:  # seconds, where the source says the utilization
        return utilization(job, 1.0) / share

    record = "modded-nanogpt, records/101324_llmc"
    build = "a public run of build-nanogpt with torch.compile"
    # Its README's commands for these models have 1,024 tokens, micro-batches of 4 and 32 of them in an update; that for Llama is for a mesh of
    # 4 x 2 x 2, and the 64 GPUs of the figure are taken as four times as many copies.
    picotron, pico = "picotron, README", "that its commands were measured; mesh of 64"
    pico_small, pico_large = job(smol, "h100", 8, 1024, 4), job(llama, "h100", 64, 2048, 4, Mesh(16, 2, 2))
    return [
        Published("llm.c 124 M, 8 H100", job(gpt2, "h100", 8, 512, 64), 0.139, record, fitted=True),
        Published("llm.c 124 M, 8 A100", job(gpt2, "a100", 8, 512, 64), 0.300, "llm.c, scripts/run_gpt2_124M.sh"),
        Published("llm.c 1558 M, 8 H100", job(xl, "h100", 8, 1024, 16), DAY / 32_000, "llm.c, discussion 677: 24 hours", "micro-batch"),
        Published("nanochat d20, 8 H100", job(nano, "h100", 8, 256, 32), 172.85 * 60 / 21_400, "a nanochat report: 172.85 minutes"),
        Published("PyTorch 124 M, A100", job(gpt2, "a100", 1, 512, 64), 512 * 1024 / 209e3, build),
        Published("PyTorch 124 M, H100", job(gpt2, "h100", 1, 512, 64), 512 * 1024 / 466e3, build),
        Published("PyTorch 124 M, H200", job(gpt2, "h200", 1, 512, 64), 1.05885, build),
        Published("picotron 1.7 B, 8 H100", pico_small, at(pico_small, 0.50), picotron, pico),
        Published("picotron Llama 2 7 B, 64 H100", pico_large, at(pico_large, 0.38), picotron, pico),
    ]


def published() -> list[Published]:
    """All rows."""
    return [*_megatron(), *_korthikanti(), *_small()]


def predicted(row: Published, constants: Constants | None = None) -> float:
    """Seconds of a row's step by the formulas."""
    job = row.job
    if constants:
        products, values, exposed = constants
        job = dataclasses.replace(job, device=dataclasses.replace(job.device, products=products, values=values, exposed=exposed))
    return seconds(job).total


def by_constant_utilization(rows: list[Published]) -> list[float]:
    """Seconds of each row's step if every device reached the same utilization: the geometric mean of the fitted rows."""
    share = float(np.exp(np.mean([np.log(row.utilization()) for row in rows if row.fitted])))
    return [row.step * row.utilization() / share for row in rows]


def fit(rows: list[Published], steps: int = 60) -> Constants:
    """The constants that make the logarithms of predicted and measured seconds of these rows agree best: Gauss-Newton, damped."""
    x = np.log([0.6, 100.0, 1.0])

    def errors(x: np.ndarray) -> np.ndarray:
        return np.array([np.log(predicted(row, Constants(*np.exp(x).tolist())) / row.step) for row in rows])

    for _ in range(steps):
        e = errors(x)
        slopes = np.stack([(errors(x + 1e-5 * unit) - e) / 1e-5 for unit in np.eye(3)], axis=1)
        x = x - np.linalg.solve(slopes.T @ slopes + 1e-6 * np.eye(3), slopes.T @ e)
    return Constants(*np.exp(x).tolist())
