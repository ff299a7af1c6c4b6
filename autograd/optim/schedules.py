"""Learning-rate schedules: functions of the number of the update.

All rise linearly over the first `warmup_steps` updates, whose last one has the rate `peak`, because an optimizer's running means are poor
estimates at first. They differ in what comes after it. `step` counts from 0, so update number n_steps - 1 is the last.
"""

import math
from typing import Literal


def warmup_cosine(step: int, *, peak: float, warmup_steps: int, n_steps: int, floor: float | None = None) -> float:
    """Learning rate of update number `step` (from 0): linear rise to `peak` over `warmup_steps`, then a half cosine down to `floor`.

    floor   reached at the last update, default peak / 10
    Source  Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5 (one period, no restart).
    """
    floor = peak / 10 if floor is None else floor
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if step >= n_steps - 1:
        return floor
    progress = (step - warmup_steps) / max(1, n_steps - 1 - warmup_steps)
    return floor + 0.5 * (1 + math.cos(math.pi * progress)) * (peak - floor)


def warmup_stable_decay(
    step: int, *, peak: float, warmup_steps: int, n_steps: int, decay_steps: int, floor: float = 0.0,
    shape: Literal["1-sqrt", "linear"] = "1-sqrt",
) -> float:  # fmt: skip
    """Learning rate of update number `step` (from 0): linear rise to `peak`, a plateau there, then a fall over the last `decay_steps` updates.

    With p, the part of the decay that is done, from 0 at the plateau's last update to 1 at the last one of all:
    rate = floor + (peak - floor) s,  s = 1 - sqrt(p) for "1-sqrt", which falls fastest at first, or 1 - p for "linear"
    The plateau does not depend on n_steps: a run that is still on it may be given any length. Where the decay begins within the warm-up, the rate
    is the smaller of the two, and never reaches the peak.

    floor   reached at the last update
    Raises ValueError for a decay longer than the run.
    Source  WSD: Hu et al. 2024, MiniCPM, arXiv:2404.06395, section 4.2; the shapes: Hägele et al. 2024, arXiv:2405.18392, section 3.
    """
    if not 0 <= decay_steps <= n_steps:
        raise ValueError(f"warmup_stable_decay: decay_steps = {decay_steps}, expected 0 to n_steps = {n_steps}")
    rising = peak * (step + 1) / warmup_steps if step < warmup_steps else peak
    if step < n_steps - decay_steps:
        return rising
    if step >= n_steps - 1:
        return min(rising, floor)
    progress = (step - (n_steps - 1 - decay_steps)) / decay_steps
    return min(rising, floor + (peak - floor) * (1 - (math.sqrt(progress) if shape == "1-sqrt" else progress)))


def warmup_inverse_sqrt(step: int, *, peak: float, warmup_steps: int) -> float:
    """Learning rate of update number `step` (from 0): linear rise to `peak`, then a fall with the square root of the number of updates.

    rate = peak min(n / w, sqrt(w / n)),  n = step + 1, w = warmup_steps (at least 1)
    It does not depend on how many updates there will be; the rate halves each time that their number quadruples.

    Source  Vaswani et al. 2017, arXiv:1706.03762, section 5.3, whose peak is (d w)^(-1/2) for a model of d channels.
    """
    n, w = step + 1, max(1, warmup_steps)
    return peak * (n / w) if n < w else peak * math.sqrt(w / n)


def warmup_constant(step: int, *, peak: float, warmup_steps: int) -> float:
    """Learning rate of update number `step` (from 0): linear rise to `peak` over `warmup_steps`, then `peak`."""
    return peak * (step + 1) / warmup_steps if step < warmup_steps else peak
