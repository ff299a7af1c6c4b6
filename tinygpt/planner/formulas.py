"""Training at scale in closed forms: arithmetic, communication, idle time, failures, money and energy. Each is derived in docs/planning.md.

N weights, D tokens, C FLOPs; n devices; times in seconds, sizes in bytes.
"""

import math
from statistics import NormalDist

from tinygpt.model_config import GPTConfig

HOUR, DAY = 3600.0, 86_400.0
TOKENS_PER_WEIGHT = 20.0
"""Hoffmann et al. 2022, arXiv:2203.15556, section 4: Chinchilla has 70 B weights and 1.4 T tokens, and their table 3 the same ratio."""


def training_flops(n_weights: float, n_tokens: float) -> float:
    """6 N D: a weight is multiplied and added once for each token forward (2), and twice backward (4). Kaplan et al. 2020, section 2.1."""
    return 6.0 * n_weights * n_tokens


def compute_optimal(flops: float) -> tuple[float, float]:
    """(N, D) with the lowest loss for a budget: D = 20 N and C = 6 N D, so N = sqrt(C / 120)."""
    n_weights = math.sqrt(flops / (6.0 * TOKENS_PER_WEIGHT))
    return n_weights, TOKENS_PER_WEIGHT * n_weights


def matrix_weights(config: GPTConfig) -> int:
    """Weights of the matrices of one block: those that a token multiplies."""
    return sum(math.prod(shape) for shape in config.block_shapes().values() if len(shape) == 2)


def flops_per_token(config: GPTConfig, context: int, *, causal: bool = True) -> float:
    """FLOPs of one token forward, exactly: 2 per weight of the matrices and of the output layer, and attention's two products.

    causal   scores of later tokens are never computed: on average half of them
    """
    attention = 4 * context * config.n_head * config.channels_per_head * (0.5 if causal else 1.0)
    return config.n_layer * (2 * matrix_weights(config) + attention) + 2 * config.vocab_size * config.n_embd


def ring(n: int, n_bytes: float, bandwidth: float, latency: float = 0.0) -> float:
    """Seconds of an all-reduce: each of n sends and receives n_bytes / n in 2 (n - 1) rounds, first sums, then results."""
    return 0.0 if n == 1 else 2 * (n - 1) * (n_bytes / n / bandwidth + latency)


def bubble(stages: int, micro_batches: int) -> float:
    """The share of a pipeline's time in which a stage waits: (P - 1) / (M + P - 1). Huang et al. 2019, arXiv:1811.06965, section 2.3."""
    return (stages - 1) / (micro_batches + stages - 1)


def straggling(n: int, jitter: float) -> float:
    """How much longer than one device's mean the slowest of n takes, as a share: jitter * z((n - 3/8) / (n + 1/4)), which grows as
    jitter * sqrt(2 ln n) does. Blom 1958: the expected largest of n normal numbers; z: the quantile of the normal distribution.

    jitter   the standard deviation of a device's step, as a share of its mean; steps are taken as normally distributed and independent
    """
    return jitter * NormalDist().inv_cdf((n - 0.375) / (n + 0.25)) if n > 1 else 0.0


def checkpoint_interval(save: float, between_failures: float) -> float:
    """Seconds of work between two checkpoints that lose the least: Daly 2006, equation 37, of which sqrt(2 d M) is Young's first order.

    save               d: seconds that a checkpoint stops training
    between_failures   M: mean seconds between two failures of the job
    """
    if save >= 2 * between_failures:
        return between_failures
    save = max(save, 1e-3)
    root = math.sqrt(save / (2 * between_failures))
    return math.sqrt(2 * save * between_failures) * (1 + root / 3 + root * root / 9) - save


def lost_to_failures(save: float, restart: float, between_failures: float) -> float:
    """The share of time that goes into checkpoints, restarts and work done twice, at the best interval: d / t + (t / 2 + r) / M."""
    interval = checkpoint_interval(save, between_failures)
    return min(1.0, save / (interval + save) + (interval / 2 + restart) / between_failures)


def energy_mwh(device_hours: float, watts: float, overhead: float) -> float:
    """Megawatt hours. overhead: power usage effectiveness, what the building draws per watt of its computers."""
    return device_hours * watts * overhead / 1e6
