"""Learning-rate schedules: functions of the number of the update."""

import math


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
