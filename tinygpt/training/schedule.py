"""The learning rate of each update, as a `TrainConfig` says."""

from dataclasses import fields, replace

from autograd.optim import warmup_constant, warmup_cosine, warmup_inverse_sqrt, warmup_stable_decay
from tinygpt.config import TrainConfig
from tinygpt.storage.checked_json import Json


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of the update that follows after `step` updates."""
    c = config
    floor = c.lr * c.final_lr_fraction
    if c.schedule == "cosine":
        return warmup_cosine(step, peak=c.lr, warmup_steps=c.warmup_steps, n_steps=c.steps, floor=floor)
    if c.schedule == "wsd":
        decay_steps = c.steps - c.decay_begins
        return warmup_stable_decay(
            step, peak=c.lr, warmup_steps=c.warmup_steps, n_steps=c.steps, decay_steps=decay_steps, floor=floor, shape=c.decay_shape
        )
    schedule = {"inverse-sqrt": warmup_inverse_sqrt, "constant": warmup_constant}[c.schedule]
    return schedule(step, peak=c.lr, warmup_steps=c.warmup_steps)


def resumed_note(config: TrainConfig, before: Json, step: int) -> str:
    """A warning if a run with wsd is resumed under another length or decay, and its learning rate had begun to fall already, or would have under
    the new one; else an empty string.

    before   the settings of the checkpoint, as `Trainer.state_dict` stores them
    step     updates made
    """
    names = ("schedule", "steps", "decay_fraction", "decay_shape")
    if not isinstance(before, dict) or config.schedule != "wsd" or before.get("schedule") != "wsd" or not step:
        return ""
    try:
        earlier = replace(config, **{f.name: before[f.name] for f in fields(config) if f.name in names})
    except (KeyError, TypeError, ValueError):  # of another version, or not written by a trainer
        return ""
    then, now = learning_rate(earlier, step - 1), learning_rate(config, step - 1)
    if then == now:
        return ""
    plateau = min(earlier.decay_begins, config.decay_begins)
    fix = f"resume from a checkpoint of update {plateau} or earlier (saved with --stop-at)" if plateau else "start a new run"
    return (
        f"resumed within the decay of schedule wsd: update {step} had learning rate {then:.2g}, where a run of --steps {config.steps} from the start "
        f"has {now:.2g}; for the same weights as such a run, {fix}"
    )
