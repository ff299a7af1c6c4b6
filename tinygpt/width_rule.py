"""The width rule: find the best learning rate of a narrow model, and keep it for a wide one.

    base = GPTConfig.preset("laptop")              # 128 channels: try learning rates here
    wide = at_width(base, 768, n_head=12)           # and train this one with the best

Without the rule the best rate falls with the width C, because an update changes all C inputs of a sum in the direction that the loss wants,
so that the sum moves C times as far as one of its terms. With m = channels / channels of the base, and with AdamW:

    hidden matrices     learning rate / m, initial deviation / sqrt(m)
    logits              (1 / m) x @ W^T: W, which the token embedding may share, keeps rate and deviation
    attention scores    q . k sqrt(d_base) / d instead of q . k / sqrt(d);  d, d_base: channels of a head, here and in the base
    embeddings, biases, norms    as in the base

What changes the model is in its config (`width_base`, `attention_scale`) and so in its checkpoints. Learning rates, Muon's too, are in
`tinygpt/training/optimizers.py`.

Source  Yang et al. 2022, Tensor programs V, arXiv:2203.03466, table 8 and section 4: maximal update parametrization, muP.
"""

import dataclasses
from fractions import Fraction

from tinygpt.errors import InvalidInput
from tinygpt.model_config import GPTConfig


def at_width(config: GPTConfig, n_embd: int, n_head: int | None = None) -> GPTConfig:
    """A config with n_embd channels, for which the best learning rate is about that of `config`.

    n_head   default: as many as keep the channels of a head. n_kv_head and n_inner grow in proportion.
    The base is `config`, or where that has a `width_base` itself, that. Raises ValueError where a number of heads or channels would be
    no integer.
    """
    factor = Fraction(n_embd, config.n_embd)
    heads = _grown(config, "n_head", factor) if n_head is None else n_head
    assert heads is not None
    if config.head_size is None and n_embd % heads:
        raise InvalidInput(f"at_width: n_embd {n_embd} with n_head {heads}, expected n_head to divide n_embd")
    more_heads = Fraction(heads, config.n_head)
    wide = dataclasses.replace(
        config, n_embd=n_embd, n_head=heads, head_size=_grown(config, "head_size", factor / more_heads),
        n_kv_head=_grown(config, "n_kv_head", more_heads), n_inner=_grown(config, "n_inner", factor),
    )  # fmt: skip
    before = config.channels_per_head
    scale = (config.attention_scale or before**-0.5) * before / wide.channels_per_head
    return dataclasses.replace(wide, width_base=config.width_base or config.n_embd, attention_scale=scale)


def _grown(config: GPTConfig, name: str, factor: Fraction) -> int | None:
    """A field times a factor; None where the config leaves it to other fields."""
    value = getattr(config, name)
    if value is None:
        return None
    if (value * factor).denominator != 1:
        rule = "expected an integer; choose n_embd as another multiple of the config's, or give n_head"
        raise InvalidInput(f"at_width: {name} {value} would become {float(value * factor):g}, {rule}")
    return int(value * factor)
