"""Where preferences and rewards start from: a pretrained model that has learned from right answers what an answer looks like.

DPO compares answers, and GRPO draws them, so both need a model whose answers are answers: "the SFT model" in their papers. It is trained here on the
prompts and right answers that the later training uses, kept as a run of its own, and that run is the base of the next step.

Source  Rafailov et al. 2023, arXiv:2305.18290, section 3, "SFT"; Ouyang et al. 2022, InstructGPT, arXiv:2203.02155, section 3.5.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

from tinygpt.config import TrainConfig
from tinygpt.data.corpora import run_name
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import Diverged, InvalidInput
from tinygpt.fields import check_fields
from tinygpt.finetuning.common import Display, Trainable, TuningConfig, starting_point
from tinygpt.finetuning.instructions import Instruction, InstructionBatches, Style, encode_instructions
from tinygpt.models.gpt import GPT
from tinygpt.parallel.local import workers_for
from tinygpt.runs.run import Run
from tinygpt.storage.checked_json import read_json_object
from tinygpt.training.trainer import Trainer

LOOK_EVERY = 10  # updates between two looks at what has been learned


def warm_start(
    gpt: GPT, tokenizer: Tokenizer, rows: Sequence[Instruction], config: TuningConfig, display: Display, *,
    base: str, name: str, style: Style, steps: int, lr: float = 1e-3, enough: Callable[[], float] | None = None, target: float = 1.0,
) -> Path:  # fmt: skip
    """Trains all weights of `gpt` on the rows' answers, for `steps` updates of 16 rows; returns the run that it is kept in.

    base, name   the model that `gpt` was read from; what the run is called
    enough       measures the model, every `LOOK_EVERY` updates: training ends at the first value of at least `target`
    Raises FloatingPointError for a loss that is not finite, KeyboardInterrupt, keeping nothing.
    """
    sequences = encode_instructions(rows, tokenizer, gpt.config.n_positions, style=style, truncate=True)
    micro_batch = min(16, len(sequences))
    schedule = "constant" if enough else "cosine"
    plan = TrainConfig(
        steps=steps, lr=lr, schedule=schedule, warmup_steps=min(20, steps // 4), weight_decay=0.0, micro_batch=micro_batch, seed=config.seed
    )
    trainer = Trainer(gpt, plan, InstructionBatches(sequences), None, workers_for(gpt, plan))
    found = math.nan
    with display:
        while trainer.result.step < steps and not found >= target:
            losses = [float(trainer.update()[0]) for _ in range(min(LOOK_EVERY, steps - trainer.result.step))]
            if not math.isfinite(losses[-1]):
                raise Diverged(f"warm start: loss {losses[-1]} at step {trainer.result.step}, expected a finite number; lower --warm-lr")
            found = enough() if enough else math.nan
            seen = f"  measured {found:.1%}, until {target:.0%}" if enough else ""
            display.note(f"warm start {trainer.result.step:>5}/{steps}  loss {losses[-1]:.3f} nats per token{seen}")
    trainer.close()
    gpt.eval()
    run = Run.create(name, background=False)
    run.keep_settings(config, script="warm start", base=base, prompt_style=style, warm_start_steps=trainer.result.step)
    run.tokenizer, run.facts = tokenizer, {"tokenizer_fingerprint": tokenizer.fingerprint()}
    run.save(trainer, best=True)
    run.log({"step": trainer.result.step, "ended": "finished"})
    run.ranks.agree(0)  # the file of the first is there
    return run.path


@dataclass(frozen=True)
class AlignConfig(TuningConfig):
    """Settings of learning from preferences and from rewards."""

    trainable: Trainable = "lora"
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("c_attn", "c_proj", "c_fc")
    prompt_style: Style = "phi3"
    """Prompt template, unless the base is an assistant, which has its own."""
    warm_steps: int = 200
    """Updates on right answers first, unless the base is an assistant already (at most, where they end at a measured value). 0: none."""
    warm_lr: float = 1e-3
    """Their learning rate."""
    max_new_tokens: int = 16
    """Longest answer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, {1: "max_new_tokens", 0: "warm_steps"})
        if not self.warm_lr > 0:
            raise InvalidInput(f"warm_lr: {self.warm_lr}, expected > 0; 1e-3 suits small models")


class Started(NamedTuple):
    """Model, tokenizer, the checkpoint that they come from, and the template of the prompts that it knows."""

    gpt: GPT
    tokenizer: Tokenizer
    base: str
    style: Style


def answering_start(
    config: AlignConfig, rows: Sequence[Instruction], reporter: Callable[[int], Display], *,
    enough: Callable[[GPT, Tokenizer], float] | None = None, target: float = 1.0,
) -> Started:  # fmt: skip
    """The model to start from, as `starting_point` finds it; one that is only pretrained is first trained on the rows' right answers.

    enough, target   as in `warm_start`
    """
    gpt, tokenizer, base = starting_point(config, [f"{row.instruction}\n{row.output}" for row in rows], reporter)
    style = read_json_object(path).get("prompt_style") if (path := _settings_of(base)).is_file() else None
    if style in get_args(Style):
        return Started(gpt, tokenizer, base, style)
    if not config.warm_steps:
        return Started(gpt, tokenizer, base, config.prompt_style)
    measure = None if enough is None else lambda: enough(gpt, tokenizer)
    name = f"{run_name(config.data)}-start"
    path = warm_start(
        gpt, tokenizer, rows, config, reporter(config.warm_steps), base=base, name=name, style=config.prompt_style,
        steps=config.warm_steps, lr=config.warm_lr, enough=measure, target=target,
    )  # fmt: skip
    print(f"warm start {path}")
    return Started(gpt, tokenizer, str(path), config.prompt_style)


def _settings_of(base: str) -> Path:
    """The settings of the run that a checkpoint belongs to."""
    path = Path(base)
    return (path.parent.parent if path.parent.name == "checkpoints" else path) / "config.json"
