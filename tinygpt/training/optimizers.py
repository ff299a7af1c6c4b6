"""Which optimizer trains a model, as a `TrainConfig` says, and the learning rates of the width rule."""

import math
from collections.abc import Callable, Sequence

from autograd import nn
from autograd.optim import SGD, Adam, AdamW, FlatOptimizer, Muon
from tinygpt.config import TrainConfig
from tinygpt.errors import InvalidInput
from tinygpt.model_config import GPTConfig
from tinygpt.models.protocols import Trainable


def make_optimizer(
    model: Trainable, config: TrainConfig, replace: Callable[[type[FlatOptimizer]], type[FlatOptimizer]] | None = None
) -> FlatOptimizer:
    """The optimizer of a model's trainable parameters, state at its start.

    replace   gives the class to make instead of the usual one
    Raises ValueError for Muon where no matrix of a block is trained, and for sgd with a model of the width rule.
    """
    assert isinstance(model, nn.Module)
    scales = width_lr_scales(model, config.optimizer)
    usual: type[FlatOptimizer] = {"sgd": SGD, "muon": Muon, "adam": Adam, "adamw": AdamW}[config.optimizer]
    cls: Callable[..., FlatOptimizer] = replace(usual) if replace else usual
    if config.optimizer == "sgd":
        return cls(model, config.lr, config.momentum, config.weight_decay, nesterov=True)
    if config.optimizer == "muon":
        matrices = hidden_matrices(model)
        if not matrices:
            rule = "expected at least one, as Muon is for those; use adamw"
            raise InvalidInput(f"TrainConfig.optimizer: muon, but no matrix of the blocks is trained, {rule}")
        return cls(
            model, config.lr, config.momentum, config.betas, weight_decay=config.weight_decay, matrices=matrices,
            adam_lr_scale=config.adam_lr_scale, lr_scale=scales,
        )  # fmt: skip
    return cls(model, config.lr, config.betas, weight_decay=config.weight_decay, lr_scale=scales)


def width_lr_scales(model: Trainable, optimizer: str) -> dict[str, float]:
    """By name, what the learning rate of hidden matrices is multiplied with by the width rule (`tinygpt/width_rule.py`); empty without it.

    A hidden matrix sums m times as many terms as in the base model, and an update must move the sum as far as there. With AdamW each entry
    moves by about lr in the direction of its gradient, and the terms add up: 1 / m. Muon's step has equal singular values of
    0.2 lr sqrt(larger side), which is how far it moves a sum of terms of size 1: 1 / sqrt(m).
    The decay of a weight per update is its own learning rate times weight_decay: that of hidden matrices is divided by as much.

    Raises ValueError for sgd, whose gradients change with the width, for embeddings as well.
    Source  Yang et al. 2022, arXiv:2203.03466, table 8; for Muon the spectral condition, Yang, Simon and Bernstein 2023, arXiv:2310.17813.
    """
    config = model.config
    if not isinstance(config, GPTConfig) or config.width_ratio == 1:  # the rule is for GPTs
        return {}
    m = config.width_ratio
    if optimizer == "sgd":
        found = f"sgd with width_base {config.width_base}"
        raise InvalidInput(f"TrainConfig.optimizer: {found}, expected adamw, adam or muon, whose steps the width rule knows; try adamw")
    return dict.fromkeys(hidden_matrices(model), 1 / math.sqrt(m) if optimizer == "muon" else 1 / m)


def hidden_matrices(model: Trainable) -> dict[str, Sequence[int]]:
    """The trainable matrices between embeddings and output layer, and how many columns each of the matrices in one array has: queries, keys and
    values of self-attention are three. Those of the blocks, of encoder and decoder; of an encoder also the layer in front of its output layer, and
    the pooler. Relative positions are a table, as embeddings are."""
    assert isinstance(model, nn.Module)
    found, modules = dict[str, Sequence[int]](), dict(model.named_modules())
    for name, module in modules.items():
        hidden = ".h." in f".{name}." or name.endswith(("head.c_fc", "pooler"))
        if isinstance(module, nn.Linear) and hidden and module.weight.requires_grad:
            width = module.weight.shape[1]
            thirds = getattr(modules[name.rpartition(".")[0]], "lengths", (width // 3,) * 3)  # GPT-2's are equally wide
            found[f"{name}.weight"] = thirds if name.endswith("attn.c_attn") else (width,)
    return found
