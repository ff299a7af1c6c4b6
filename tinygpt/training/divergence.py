"""What to say when the numbers go wrong: a loss that jumps, and the first loss or gradient that is not finite."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from autograd import backend

OnNan = ("stop", "skip", "rollback")
MAX_CONSECUTIVE = 10  # updates skipped, or rollbacks without an update between them, after which training stops all the same


@dataclass
class SpikeDetector:
    """Notices a loss far above the running mean of the recent ones, in units of their running standard deviation.

    Mean and variance are exponential averages with a memory of `memory` updates. The first `memory` updates only teach it, and after a
    notice it is silent for as long.
    """

    mean: float = 0.0
    variance: float = 0.0
    n: int = 0
    silent_until: int = 0
    memory: int = 50
    threshold: float = 6.0

    def sees(self, loss_nats: float) -> float:
        """Takes in a loss; returns how many standard deviations above the mean it is where that is a spike, else 0."""
        distance = loss_nats - self.mean
        spread = math.sqrt(self.variance)
        height = distance / spread if spread > 0 else 0.0
        self.n += 1
        share = 1 / min(self.n, self.memory)
        self.mean += share * distance
        self.variance = (1 - share) * (self.variance + share * distance * distance)
        if self.n <= self.memory or self.n < self.silent_until or height < self.threshold:
            return 0.0
        self.silent_until = self.n + self.memory
        return height

    def state(self) -> dict[str, Any]:
        return asdict(self)


def first_bad_parameter(named: Any, what: str) -> str:
    """The first parameter, in the model's order, whose `data` or `grad` holds a number that is not finite; empty if there is none."""
    for name, p in named:
        array = getattr(p, what)
        if array is not None and not bool(backend.xp.isfinite(array).all()):
            n = int((~backend.xp.isfinite(array)).sum())
            return f"{name} ({n} of {p.size} values)"
    return ""


def first_bad_op(replay: Any) -> str:
    """Runs `replay`, the update at fault without changing weights, in debug mode: the message of the first op to fail, or empty."""
    before, backend.debug = backend.debug, True
    try:
        with np.errstate(all="ignore"):
            replay()
    except FloatingPointError as error:
        return str(error).split(", expected finite numbers")[0]
    finally:
        backend.debug = before
    return ""


def likely_cause(*, bad_weight: str, bad_op: str, lr: float, norms: list[float], max_norm: float, dtype: str) -> str:
    """The likeliest reason, in words, from what is known.

    norms   gradient norms of the updates before, oldest first
    """
    if bad_weight:
        return f"the weights themselves are not finite ({bad_weight}): they were loaded so, or an update overflowed"
    usual = float(np.median(norms[:-3])) if len(norms) > 6 else math.nan
    if len(norms) > 6 and max(norms[-3:]) > 10 * usual:
        return (
            f"training diverged: the gradient norm rose from {usual:.2g} to {max(norms[-3:]):.2g}; the learning rate {lr:.1e} is too high"
        )
    if max_norm == 0:
        return f"clipping is off (max_norm 0), so one large gradient at learning rate {lr:.1e} was enough"
    if dtype != "float32":
        return f"the range of {dtype}: try float32"
    if not norms:
        return "the first update failed: the starting weights or the batch are to blame, not the learning rate"
    where = f" in {bad_op.split(':')[0]}" if bad_op else ""
    return f"an overflow{where}, most often from a learning rate that is too high ({lr:.1e})"
