"""Which optimizer trains a model, as a `TrainConfig` says, and the learning rates of the width rule."""

import math
from collections.abc import Sequence

from autograd import nn
from autograd.optim import SGD, Adam, AdamW, FlatOptimizer, Muon
from tinygpt.config import TrainConfig
from tinygpt.errors import InvalidInput
from tinygpt.models.protocols import Trainable


def make_optimizer(model: Trainable, config: TrainConfig) -> FlatOptimizer:
    """The optimizer of a model's trainable parameters, state at its start.

    Raises ValueError for Muon where no matrix of a block is trained, and for sgd with a model of the width rule.
    """
    assert isinstance(model, nn.Module)
    scales = width_lr_scales(model, config.optimizer)
    if config.optimizer == "sgd":
        return SGD(model, config.lr, config.momentum, config.weight_decay, nesterov=True)
    if config.optimizer == "muon":
        matrices = hidden_matrices(model)
        if not matrices:
            rule = "expected at least one, as Muon is for those; use adamw"
            raise InvalidInput(f"TrainConfig.optimizer: muon, but no matrix of the blocks is trained, {rule}")
        return Muon(
            model, config.lr, config.momentum, config.betas, weight_decay=config.weight_decay, matrices=matrices,
            adam_lr_scale=config.adam_lr_scale, lr_scale=scales,
        )  # fmt: skip
    adam = {"adam": Adam, "adamw": AdamW}[config.optimizer]
    return adam(model, config.lr, config.betas, weight_decay=config.weight_decay, lr_scale=scales)


def width_lr_scales(model: Trainable, optimizer: str) -> dict[str, float]:
    """By name, what the learning rate of hidden matrices is multiplied with by the width rule (`tinygpt/width_rule.py`); empty without it.

    A hidden matrix sums m times as many terms as in the base model, and an update must move the sum as far as there. With AdamW each entry
    moves by about lr in the direction of its gradient, and the terms add up: 1 / m. Muon's step has equal singular values of
    0.2 lr sqrt(larger side), which is how far it moves a sum of terms of size 1: 1 / sqrt(m).
    The decay of a weight per update is its own learning rate times weight_decay: that of hidden matrices is divided by as much.

    Raises ValueError for sgd, whose gradients change with the width, for embeddings as well.
    Source  Yang et al. 2022, arXiv:2203.03466, table 8; for Muon the spectral condition, Yang, Simon and Bernstein 2023, arXiv:2310.17813.
    """
    m = model.config.width_ratio
    if m == 1:
        return {}
    if optimizer == "sgd":
        found = f"sgd with width_base {model.config.width_base}"
        raise InvalidInput(f"TrainConfig.optimizer: {found}, expected adamw, adam or muon, whose steps the width rule knows; try adamw")
    return dict.fromkeys(hidden_matrices(model), 1 / math.sqrt(m) if optimizer == "muon" else 1 / m)


def hidden_matrices(model: Trainable) -> dict[str, Sequence[int]]:
    """The trainable matrices of the blocks, and how many columns each of the matrices in one array has: queries, keys, values are three."""
    assert isinstance(model, nn.Module)
    c, found = model.config, dict[str, Sequence[int]]()
    queries, keys = c.n_head * c.channels_per_head, c.kv_heads * c.channels_per_head
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".h." in f".{name}." and module.weight.requires_grad:
            found[f"{name}.weight"] = (queries, keys, keys) if name.endswith("attn.c_attn") else (module.weight.shape[1],)
    return found
