"""Recipes of the default run: a model's shape and how it is trained, chosen together. `examples/pretrain.py --recipe NAME`.

docs/ablations.md has what each setting of "tinygpt" gives in the same minutes, and what was tried and left out.
"""

from tinygpt.config import TrainConfig
from tinygpt.model_config import GPTConfig

RECIPES: dict[str, tuple[GPTConfig, TrainConfig]] = {
    # What gave the lowest validation loss after 3.5 minutes on two cores.
    "tinygpt": (
        GPTConfig.preset("laptop", positions="rotary"),
        TrainConfig(
            steps=1500, optimizer="muon", lr=5e-3, adam_lr_scale=2.0, betas=(0.9, 0.98), final_lr_fraction=0.0, warmup_steps=50,
            micro_batch=8, eval_every=150,
        ),
    ),
    # GPT-2's model, and its optimizer with rates for a model of this size.
    "gpt2": (GPTConfig.preset("laptop"), TrainConfig(steps=2000, lr=2e-3, warmup_steps=100, micro_batch=8, eval_every=200)),
}  # fmt: skip
