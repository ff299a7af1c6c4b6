"""Which optimizer trains a model, as a `TrainConfig` says."""

from collections.abc import Sequence

from autograd import nn
from autograd.optim import SGD, Adam, AdamW, FlatOptimizer, Muon
from tinygpt.config import TrainConfig
from tinygpt.errors import InvalidInput
from tinygpt.models.protocols import Trainable


def make_optimizer(model: Trainable, config: TrainConfig) -> FlatOptimizer:
    """The optimizer of a model's trainable parameters, state at its start. Raises ValueError for Muon where no matrix of a block is trained."""
    assert isinstance(model, nn.Module)
    if config.optimizer == "sgd":
        return SGD(model, config.lr, config.momentum, config.weight_decay, nesterov=True)
    if config.optimizer == "muon":
        matrices = hidden_matrices(model)
        if not matrices:
            rule = "expected at least one, as Muon is for those; use adamw"
            raise InvalidInput(f"TrainConfig.optimizer: muon, but no matrix of the blocks is trained, {rule}")
        return Muon(
            model, config.lr, config.momentum, config.betas, weight_decay=config.weight_decay, matrices=matrices,
            adam_lr_scale=config.adam_lr_scale,
        )  # fmt: skip
    return {"adam": Adam, "adamw": AdamW}[config.optimizer](model, config.lr, config.betas, weight_decay=config.weight_decay)


def hidden_matrices(model: Trainable) -> dict[str, Sequence[int]]:
    """The trainable matrices of the blocks, and how many columns each of the matrices in one array has: queries, keys, values are three."""
    assert isinstance(model, nn.Module)
    c, found = model.config, dict[str, Sequence[int]]()
    queries, keys = c.n_head * c.channels_per_head, c.kv_heads * c.channels_per_head
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".h." in f".{name}." and module.weight.requires_grad:
            found[f"{name}.weight"] = (queries, keys, keys) if name.endswith("attn.c_attn") else (module.weight.shape[1],)
    return found
