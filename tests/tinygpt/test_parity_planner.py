"""The planner's count of FLOPs against PyTorch's counter on transformers' models."""

import pytest

from tinygpt.model_config import GPTConfig
from tinygpt.planner.formulas import flops_per_token

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e .[parity]")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e .[parity]")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            GPTConfig(n_layer=3, n_head=4, n_embd=32, n_positions=24, vocab_size=100),
            transformers.GPT2Config(n_layer=3, n_head=4, n_embd=32, n_positions=24, vocab_size=100),
        ),
        (
            GPTConfig.preset("smollm2-135m", n_layer=2, n_head=6, n_kv_head=2, n_embd=48, n_inner=80, n_positions=24, vocab_size=100),
            transformers.LlamaConfig(
                num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, hidden_size=48, intermediate_size=80,
                max_position_embeddings=24, vocab_size=100,
            ),
        ),
    ],
)  # fmt: skip
def test_flops(ours, theirs):
    from torch.utils.flop_counter import FlopCounterMode

    theirs._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(theirs)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros((2, 24), dtype=torch.long))
    rotary = 2 * 24 * ours.channels_per_head // 2 if ours.positions == "rotary" else 0  # the table of angles, a product there
    assert counter.get_total_flops() == pytest.approx(2 * 24 * flops_per_token(ours, 24, causal=False) + rotary, rel=1e-3)
