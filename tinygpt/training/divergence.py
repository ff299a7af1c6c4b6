"""Loss spikes, and losses and gradients that are not finite: detection, diagnosis, and what to do about them."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from autograd import Parameter, backend
from autograd.optim import FlatOptimizer
from tinygpt.config import TrainConfig
from tinygpt.errors import Diverged
from tinygpt.storage.checked_json import Entries, Json

MAX_CONSECUTIVE = 10  # updates skipped, or roll-backs without an update between them, after which training stops all the same


class Divergence:
    """Watches the losses and gradient norms of a run and decides, by `TrainConfig.on_nan`, what follows when they are not finite."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.spikes = SpikeDetector()
        self.norms: deque[float] = deque(maxlen=20)  # before clipping, of the last updates
        self.n_failures = 0  # updates skipped or rolled back since the last good one

    def succeeded(self, step: int, loss_nats: float, norm: float) -> str:
        """Takes in an update with finite numbers. Returns a note if its loss is a spike, else an empty string."""
        self.n_failures, mean = 0, self.spikes.mean
        self.norms.append(norm)
        height = self.spikes.update(loss_nats)
        what = f"loss {loss_nats:.3f} is a spike, {height:.0f} standard deviations above the recent mean {mean:.3f}"
        return f"step {step}: {what}; if it does not fall again, lower --lr" if height else ""

    def failed(self, report: str, *, can_roll_back: bool) -> Literal["skip", "rollback"]:
        """What to do about an update that is not finite, its weights not yet changed. Raises FloatingPointError with the report to stop."""
        self.n_failures += 1
        choice, too_many = self.config.on_nan, self.n_failures > MAX_CONSECUTIVE
        if choice == "stop" or too_many or (choice == "rollback" and not can_roll_back):
            if choice != "stop" and too_many:
                report += f"; {MAX_CONSECUTIVE} updates in a row failed, so --on-nan {choice} gives up"
            kept = "the weights are as they were before this update and the last checkpoint is kept"
            fix = "resume from it with a lower --lr (--resume RUN --override --lr ...), or leave such updates out with --on-nan skip"
            raise Diverged(f"{report}; {kept}: {fix}")
        return choice

    def state_dict(self) -> dict[str, Json]:
        return {"spikes": asdict(self.spikes), "norms": list(self.norms)}

    def load_state_dict(self, entry: Entries) -> None:
        """Restores what `state_dict` gave. Raises ValueError, naming the entry, for values that it never gives."""
        mean, variance = (entry.number("spikes", key, default=0.0) for key in ("mean", "variance"))
        self.spikes = SpikeDetector(mean, variance, n=entry.integer("spikes", "n"), silent_until=entry.integer("spikes", "silent_until"))
        self.norms = deque((float(x) for x in entry.values.get("norms", []) if isinstance(x, float)), maxlen=20)
        self.n_failures = 0

    def diagnosis(
        self, optimizer: FlatOptimizer, replay: Callable[[], object], first_found: Callable[[str], str] | None = None, *,
        step: int, loss: float, norm: float,
    ) -> str:  # fmt: skip
        """What is known of an update whose loss or gradient is not finite, weights still as they were before it.

        replay        computes its gradients once more: it runs in debug mode, which names the first op that fails
        first_found   of what each rank has found in its part of the model, the first
        """
        optimizer.gather_gradients()
        bad_gradient, bad_weight = (first_bad_parameter(optimizer.named_in_model_order, what) for what in ("grad", "data"))
        if first_found:
            bad_gradient, bad_weight = first_found(bad_gradient), first_found(bad_weight)
        bad_op, lr, norms = first_bad_op(replay), optimizer.lr, list(self.norms)
        max_norm, dtype = self.config.max_norm, self.config.dtype
        cause = likely_cause(bad_weight=bad_weight, bad_op=bad_op, lr=lr, norms=norms, max_norm=max_norm, dtype=dtype)
        return (
            f"step {step}: loss {loss}, gradient norm {norm} (learning rate {lr:.2e}), expected finite numbers; "
            f"first bad parameter: {bad_gradient or 'none, each gradient is finite by itself'}; "
            f"first bad op: {bad_op or 'none by itself (a sum over micro-batches or squares overflowed)'}; likely cause: {cause}"
        )


@dataclass
class SpikeDetector:
    """Detects losses far above the running mean of the recent ones, in units of their running standard deviation.

    Mean and variance are exponential averages over about `memory` updates. Silent for the first `memory`, and for as many after a spike.
    """

    mean: float = 0.0
    variance: float = 0.0
    n: int = 0
    silent_until: int = 0
    memory: int = 50
    threshold: float = 6.0

    def update(self, loss_nats: float) -> float:
        """Takes in a loss. Returns how many standard deviations above the mean it is if that is a spike, else 0."""
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


def first_bad_parameter(named: Iterable[tuple[str, Parameter]], what: str) -> str:
    """The first parameter, in the model's order, whose `data` or `grad` holds a number that is not finite; empty if there is none."""
    for name, p in named:
        array = getattr(p, what)
        n = 0 if array is None else int((~backend.xp.isfinite(array)).sum())
        if n:
            return f"{name} ({n} of {p.size} values)"
    return ""


def first_bad_op(replay: Callable[[], object]) -> str:
    """Runs `replay`, which repeats the failed update without changing weights, in debug mode: the message of the first op to fail, or empty."""
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
    """The most probable cause, in words; `norms`: of the gradients of the previous updates, oldest first."""
    if bad_weight:
        return f"the weights themselves are not finite ({bad_weight}): they were loaded that way, or an update overflowed"
    usual = float(np.median(norms[:-3])) if len(norms) > 6 else math.nan
    if len(norms) > 6 and (recent := max(norms[-3:])) > 10 * usual:
        return f"training diverged: the gradient norm rose from {usual:.2g} to {recent:.2g}; the learning rate {lr:.1e} is too high"
    if max_norm == 0:
        return f"clipping is off (max_norm 0), so one large gradient at learning rate {lr:.1e} was enough"
    if dtype == "float16":
        return "the range of float16: try bfloat16 or float32"
    if not norms:
        return "the first update failed: the initial weights or the batch, not the learning rate"
    where = f" in {bad_op.split(':')[0]}" if bad_op else ""
    return f"an overflow{where}, most often from a learning rate that is too high ({lr:.1e})"
