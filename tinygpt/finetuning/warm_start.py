"""Where preferences and rewards start from: a pretrained model that has learned from right answers what an answer looks like.

DPO compares answers, and GRPO draws them, so both need a model whose answers are answers: "the SFT model" in their papers. It is trained here on the
prompts and right answers that the later training uses, kept as a run of its own, and that run is the base of the next step.

Source  Rafailov et al. 2023, arXiv:2305.18290, section 3, "SFT"; Ouyang et al. 2022, InstructGPT, arXiv:2203.02155, section 3.5.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tinygpt.config import TrainConfig
from tinygpt.data.chat_templates import ChatTemplate, TemplateName, chat_template
from tinygpt.data.corpora import run_name
from tinygpt.data.jinja_templates import keep_template, saved_template
from tinygpt.data.tokenizer import Tokenizer
from tinygpt.errors import Diverged, InvalidInput
from tinygpt.fields import check_fields
from tinygpt.finetuning.common import Display, Trainable, TuningConfig, starting_point
from tinygpt.finetuning.conversations import Conversation, encode_conversations
from tinygpt.finetuning.masked import MaskedBatches
from tinygpt.models.gpt import GPT
from tinygpt.parallel.local import workers_for
from tinygpt.runs.run import Run
from tinygpt.training.trainer import Trainer

LOOK_EVERY = 5  # updates between two looks at what has been learned


def warm_start(
    gpt: GPT, tokenizer: Tokenizer, template: ChatTemplate, rows: Sequence[Conversation], config: TuningConfig, display: Display, *,
    base: str, name: str, steps: int, lr: float = 1e-3, enough: Callable[[], float] | None = None, target: float = 1.0,
) -> Path:  # fmt: skip
    """Trains all weights of `gpt` on the rows' answers, for `steps` updates of 16 rows; returns the checkpoint, in a run of its own.

    base, name   the model that `gpt` was read from; what the run is called
    enough       measures the model, every `LOOK_EVERY` updates: training ends at the first value of at least `target`
    Raises FloatingPointError for a loss that is not finite, KeyboardInterrupt, keeping nothing.
    """
    rendered = encode_conversations(rows, tokenizer, template, gpt.config.n_positions, truncate=True)
    sequences = [sequence.masked for sequence in rendered]
    micro_batch = min(16, len(sequences))
    plan = TrainConfig(
        steps=steps,
        lr=lr,
        schedule="constant" if enough else "cosine",
        warmup_steps=min(20, steps // 4),
        weight_decay=0.0,
        micro_batch=micro_batch,
        seed=config.seed,
    )
    trainer = Trainer(gpt, plan, MaskedBatches(sequences), None, workers_for(gpt, plan))
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
    run.keep_settings(config, script="warm start", base=base, warm_start_steps=trainer.result.step)
    run.tokenizer, run.facts = tokenizer, {"tokenizer_fingerprint": tokenizer.fingerprint()}
    run.save(trainer, best=True)
    run.log({"step": trainer.result.step, "ended": "finished"})
    run.ranks.agree(0)  # the file of the first is there
    assert run.last
    return run.last.path


@dataclass(frozen=True)
class AlignConfig(TuningConfig):
    """Settings of learning from preferences and from rewards."""

    trainable: Trainable = "lora"
    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = ("c_attn", "c_proj", "c_fc")
    template: TemplateName = "plain"
    """How turns are written, unless the base is an assistant, which has a template of its own."""
    warm_steps: int = 200
    """Updates on right answers first, unless the base is an assistant already; where they end at a measured value, at most. 0: none."""
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
    """Model, tokenizer, how turns are written, and the checkpoint that they come from."""

    gpt: GPT
    tokenizer: Tokenizer
    template: ChatTemplate
    base: str


def answering_start(
    config: AlignConfig, rows: Sequence[Conversation], reporter: Callable[[int], Display], *,
    enough: Callable[[GPT, Tokenizer, ChatTemplate], float] | None = None, target: float = 1.0,
) -> Started:  # fmt: skip
    """The model to start from, as `starting_point` finds it; one without a chat template of its own, which is only pretrained, is first trained
    on the rows' right answers, and its template is kept with it.

    enough, target   as in `warm_start`
    """
    gpt, tokenizer, base = starting_point(config, [message.content for row in rows for message in row.messages], reporter)
    if own := saved_template(tokenizer):
        return Started(gpt, tokenizer, own, base)
    template = chat_template(config.template, tokenizer)
    keep_template(tokenizer, template)
    if config.warm_steps:
        path = warm_start(
            gpt, tokenizer, template, rows, config, reporter(config.warm_steps), base=base, name=f"{run_name(config.data)}-start",
            steps=config.warm_steps, lr=config.warm_lr, enough=None if enough is None else lambda: enough(gpt, tokenizer, template), target=target,
        )  # fmt: skip
        print(f"warm start {path}")
        base = str(path)
    return Started(gpt, tokenizer, template, base)
