"""Which optimizer a TrainConfig makes, and which matrices of a model are Muon's."""

import numpy as np
import pytest

from autograd.backend import to_host
from autograd.optim import SGD, Adam, AdamW, Muon
from tests.tinygpt.helpers import tiny
from tinygpt import GPT, TrainConfig
from tinygpt.errors import InvalidInput
from tinygpt.finetuning.common import set_trainable
from tinygpt.training.optimizers import hidden_matrices, make_optimizer


@pytest.mark.parametrize(("name", "cls"), [("adamw", AdamW), ("adam", Adam), ("sgd", SGD), ("muon", Muon)])
def test_the_optimizer_has_the_settings_numbers(name, cls):
    config = TrainConfig(optimizer=name, lr=0.02, momentum=0.8, betas=(0.7, 0.9), weight_decay=0.3, adam_lr_scale=2.0)
    optimizer = make_optimizer(GPT(tiny()), config)
    assert type(optimizer) is cls and (optimizer.lr, optimizer.weight_decay, optimizer.n_steps) == (0.02, 0.3, 0)
    expected = {"momentum": 0.8, "betas": (0.7, 0.9), "adam_lr_scale": 2.0}
    assert all(getattr(optimizer, key, value) == value for key, value in expected.items())
    assert name != "sgd" or optimizer.nesterov


def test_muons_matrices_are_those_of_the_blocks_queries_keys_and_values_apart():
    model = GPT(tiny(n_layer=2))
    block = {"attn.c_attn": (16, 16, 16), "attn.c_proj": (16,), "mlp.c_fc": (64,), "mlp.c_proj": (16,)}
    assert hidden_matrices(model) == {f"h.{i}.{name}.weight": widths for i in range(2) for name, widths in block.items()}
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon"))
    rest = {name for g in optimizer.groups if g.kind != "matrix" for name, _ in g.named}
    assert {"wte.weight", "wpe.weight", "ln_f.weight", "h.0.attn.c_attn.bias"} <= rest
    assert rest | set(hidden_matrices(model)) == {name for name, _ in model.named_parameters()}


def test_of_a_decoder_with_fewer_keys_than_queries_and_a_gate():
    config = tiny(norm="rms", positions="rotary", n_kv_head=1, activation="silu", gated=True, n_inner=24, tie_word_embeddings=False)
    matrices = hidden_matrices(GPT(config))
    assert matrices["h.0.attn.c_attn.weight"] == (16, 8, 8) and matrices["h.0.mlp.c_gate.weight"] == matrices["h.0.mlp.c_fc.weight"] == (
        24,
    )
    assert not any("lm_head" in name or "wte" in name for name in matrices)


def test_a_muon_step_moves_queries_keys_and_values_as_far():
    """With one orthogonal matrix for all three, those with small gradients would share the rows' norm with the others."""
    model = GPT(tiny(), seed=3)
    optimizer = make_optimizer(model, TrainConfig(optimizer="muon", weight_decay=0.0, lr=0.01))
    weight = dict(model.named_parameters())["h.0.attn.c_attn.weight"]
    before = to_host(weight.data).copy()
    model.loss(np.arange(8)[None] % 11, (np.arange(8)[None] + 1) % 11).backward()
    optimizer.step()
    for change in np.split(to_host(weight.data) - before, 3, axis=1):
        assert np.linalg.svd(change, compute_uv=False)[0] == pytest.approx(0.01 * 0.2 * 4, rel=0.14)  # lr r, singular values of about 1


def test_muon_where_no_block_is_trained():
    adapted = GPT(tiny())
    set_trainable(adapted, "lora")
    with pytest.raises(InvalidInput, match=r"TrainConfig.optimizer: muon, but no matrix of the blocks is trained, expected .*; use adamw"):
        make_optimizer(adapted, TrainConfig(optimizer="muon"))
