"""Dynamic loss scaling: how float16, which has nothing between 0 and 6e-8, holds gradients.

Gradients of a language model are small: many would round to 0. So the loss is multiplied by S, and with it, by the chain rule, every gradient
on the way back; those of the parameters, in float32, are divided by S before they are clipped and used. S is a power of two: both are exact.
The larger S, the less is lost, up to 65,504, where float16 ends. That limit moves while a model learns, so it is found by trying:

    some gradient is not finite         skip the update,  S <- S / 2
    `growth_interval` updates since     S <- 2 S

bfloat16 has the range of float32 and needs none of this; it has 3 bits less of precision.

Source  Micikevicius et al. 2018, arXiv:1710.03740, section 3.2; initial value and interval as in torch.amp.GradScaler.
"""

import math

from tinygpt.config import TrainConfig
from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Entries, Json

LARGEST = 2.0**40  # a bound only so that S L and S dL/dw stay far below the largest float32
LOWEST = 1.0  # a gradient that overflows unscaled is not small: scaling is not the cause
_RULE = f"expected a power of two from {LOWEST:g} to {LARGEST:.0f}"


class DynamicLossScale:
    """The scale of the loss, and the rule by which it moves.

    scale             S, a power of two
    growth_interval   updates without an overflow after which S doubles
    n_overflows       updates skipped so far
    Raises ValueError for a scale that is no power of two from 1 to 2^40, and an interval below 1.
    """

    def __init__(self, scale: float = 2.0**16, growth_interval: int = 2000) -> None:
        if not _is_scale(scale):
            raise InvalidInput(f"DynamicLossScale.scale: {scale}, {_RULE}; 65536 finds its way in a few updates")
        if growth_interval < 1:
            raise InvalidInput(f"DynamicLossScale.growth_interval: {growth_interval}, expected at least 1; 2000 suits most models")
        self.scale, self.growth_interval = float(scale), growth_interval
        self.n_good = self.n_overflows = 0  # n_good: updates since the scale last changed

    def of_update(self, n_batches: int) -> float:
        """What the loss of an update of n micro-batches is multiplied by: S, times n rounded up to a power of two. Each micro-batch counts
        1 / n or so, and without that factor its gradients would be n times smaller than those of an update of one."""
        return self.scale * 2.0 ** (n_batches - 1).bit_length()

    def update(self, norm: float) -> bool:
        """Takes in the norm of an update's gradients and moves the scale. True if they are finite: make the update; False: skip it."""
        if not math.isfinite(norm):
            self.scale, self.n_good = max(self.scale / 2, LOWEST), 0
            self.n_overflows += 1
            return False
        self.n_good += 1
        if self.n_good >= self.growth_interval:
            self.scale, self.n_good = min(self.scale * 2, LARGEST), 0
        return True

    def overflow(self, step: int, loss_nats: float, norm: float) -> str:
        """Halves the scale if that may be why an update's gradients are not finite, and returns a note of the update to skip. An empty string,
        and nothing done, where it cannot be: the loss is not finite either, or S is 1."""
        if not math.isfinite(loss_nats) or self.scale == LOWEST:
            return ""
        before = self.scale
        self.update(norm)
        skipped = f"update skipped, {self.n_overflows} so far"
        return f"step {step}: gradients overflow float16 at loss scale {before:g}, {skipped}; the scale is now {self.scale:g}"

    def state_dict(self) -> dict[str, Json]:
        return {"scale": self.scale, "growth_interval": self.growth_interval, "n_good": self.n_good, "n_overflows": self.n_overflows}

    def load_state_dict(self, state: dict[str, Json], where: str = "state") -> None:
        """Restores what `state_dict` gave. Raises ValueError, naming the entry, for values that it never gives."""
        entry = Entries(state, where)
        scale = entry.number("scale", default=0.0)
        if not _is_scale(scale):
            raise InvalidInput(f"{where}: scale is {scale}, {_RULE}; use another checkpoint of the run")
        self.scale, self.growth_interval = scale, max(entry.integer("growth_interval"), 1)
        self.n_good, self.n_overflows = entry.integer("n_good"), entry.integer("n_overflows")


def _is_scale(scale: float) -> bool:
    return LOWEST <= scale <= LARGEST and math.frexp(scale)[0] == 0.5


def loss_scale_for(config: TrainConfig) -> DynamicLossScale | None:
    """What `TrainConfig.dtype` needs: a scale for float16, None for the others."""
    return DynamicLossScale() if config.dtype == "float16" else None
