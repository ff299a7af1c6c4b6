"""Recipes of the default runs: a model's shape and how it is trained, chosen together. `examples/pretrain.py --recipe NAME`.

docs/ablations.md has what each setting of "tinygpt" gives in the same minutes, and what was tried and left out.
"""

import dataclasses
from typing import Literal

from tinygpt.config import TrainConfig
from tinygpt.encoder_config import EncoderConfig
from tinygpt.model_config import GPTConfig
from tinygpt.seq2seq_config import Seq2SeqConfig

RECIPES: dict[str, tuple[GPTConfig, TrainConfig]] = {
    # What gave the lowest validation loss in the minutes that 2,000 updates of "gpt2" take.
    "tinygpt": (
        GPTConfig.preset("laptop", positions="rotary", initializer_range=0.05),
        TrainConfig(
            steps=1600, optimizer="muon", lr=5e-3, adam_lr_scale=2.0, momentum=0.9, betas=(0.9, 0.99), schedule="wsd", decay_fraction=0.4,
            decay_shape="linear", final_lr_fraction=0.0, warmup_steps=50, micro_batch=8, eval_every=160,
        ),
    ),
    # GPT-2's model, and its optimizer with rates for a model of this size.
    "gpt2": (GPTConfig.preset("laptop"), TrainConfig(steps=2000, lr=2e-3, warmup_steps=100, micro_batch=8, eval_every=200)),
}  # fmt: skip

ENCODER_RECIPES: dict[str, tuple[EncoderConfig, TrainConfig]] = {
    # The same, for `examples/pretrain_encoder.py`; one text at a time, so no token types.
    "tinygpt": (
        EncoderConfig.preset(
            "laptop", norm_position="pre", embedding_norm=False, positions="rotary", activation="gelu", initializer_range=0.05, n_token_types=0,
        ),
        dataclasses.replace(RECIPES["tinygpt"][1], steps=3000, eval_every=500),
    ),
    # BERT's model, with AdamW and rates for a model of this size.
    "bert": (EncoderConfig.preset("laptop"), TrainConfig(steps=3000, lr=1e-3, warmup_steps=200, micro_batch=8, eval_every=500)),
}  # fmt: skip

ENCODER_MASKS: dict[str, tuple[Literal["token", "word"], float]] = {"tinygpt": ("word", 0.3), "bert": ("token", 0.15)}
"""What is masked, and which share of the tokens in training. BERT's is 15 %; twice as many targets a window teach a model faster that has
minutes (Wettig et al. 2022, arXiv:2202.08005, find 40 % better for larger ones, too)."""

TRANSLATION = (
    Seq2SeqConfig.preset("laptop", n_positions=160),
    TrainConfig(
        steps=3000, lr=2e-3, schedule="inverse-sqrt", warmup_steps=400, betas=(0.9, 0.98), weight_decay=0.0, label_smoothing=0.1,
        micro_batch=16, tokens_per_update=2 * 16 * 160, eval_every=300, log_every=25,
    ),
)  # fmt: skip
"""examples/translate.py: the transformer of 2017 with fewer layers and channels. Adam, warm-up and label smoothing are those of Vaswani et al.
2017, arXiv:1706.03762, sections 5.3 and 5.4; the rate is higher and the warm-up shorter, for a smaller model and fewer updates."""
