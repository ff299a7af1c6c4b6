"""Decoders that no family of `tinygpt/weights/` reads, Falcon 7B and GPT-1: their models in transformers with random weights give the same
logits, loss, gradients and tokens here. And the presets have as many weights as the models of that shape in transformers.
"""

import numpy as np
import pytest

from autograd import backend
from tinygpt import GPT, GPTConfig

if backend.name != "numpy":
    pytest.skip("the other side computes on the CPU", allow_module_level=True)
torch = pytest.importorskip("torch", reason="parity tests need the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra `parity`")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
torch.set_num_threads(1)  # the test runner's processes share the cores

SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 32, "n_positions": 64, "vocab_size": 61}
NO_BIASES = {"qkv_bias": False, "attention_output_bias": False, "mlp_bias": False}
FALCON = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
MODELS = {  # name: (our fields, their class, theirs)
    "gpt1": ({"norm_position": "post"}, "OpenAIGPT", SMALL),
    "falcon 7b": (
        {"parallel_residual": True, "shared_norm": True, "positions": "rotary", "n_kv_head": 1, "activation": "gelu_exact", **NO_BIASES},
        "Falcon", {**FALCON, "attn_implementation": "eager", "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
}  # fmt: skip
NAMES = {  # theirs: ours
    "word_embeddings": "wte", "tokens_embed": "wte", "positions_embed": "wpe", "input_layernorm": "ln_1",
    "self_attention.query_key_value": "attn.c_attn", "self_attention.dense": "attn.c_proj", "mlp.dense_h_to_4h": "mlp.c_fc",
    "mlp.dense_4h_to_h": "mlp.c_proj",
}  # fmt: skip


def ours(cls, named):
    """Arrays under their names and in their orientation -> under ours."""
    found = {}
    for name, array in named.items():
        name = name.removeprefix("transformer.")
        for their_name, our_name in NAMES.items():
            name = name.replace(f"{their_name}.", f"{our_name}.")
        found[name] = array.T if cls == "Falcon" and name.startswith("h.") else array  # Falcon's matrices are (out, in)
    return found


@pytest.fixture(scope="module", params=MODELS)
def pair(request):
    """(their class, config, their model, ours with its weights)."""
    fields, cls, their_fields = MODELS[request.param]
    config, kind = GPTConfig(**SMALL, **fields), "LMHeadModel" if cls == "OpenAIGPT" else "ForCausalLM"
    torch.manual_seed(0)
    other = getattr(transformers, cls + kind)(getattr(transformers, f"{cls}Config")(**their_fields)).eval()
    with torch.no_grad():
        for p in other.parameters():
            p += torch.randn_like(p) * 0.1
    arrays = ours(cls, {name: p.detach().numpy() for name, p in other.named_parameters()})
    mine = GPT(config)
    parameters = dict(mine.named_parameters())
    assert {n: a.shape for n, a in arrays.items()} == {n: p.shape for n, p in parameters.items()}
    for name, p in parameters.items():
        p.data[...] = arrays[name]
    return cls, config, other, mine.eval()


def test_logits_agree(pair):
    _, config, other, mine = pair
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (2, 40))
    with torch.no_grad():
        expected = other(torch.as_tensor(ids)).logits.numpy()
    assert expected.std() > 0.3  # far from even, so that agreeing means something
    np.testing.assert_allclose(mine(ids).data, expected, atol=1e-4, rtol=0)


def test_loss_and_every_gradient_agree(pair):
    cls, config, other, mine = pair
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (2, 31))
    logits = other(torch.as_tensor(ids[:, :-1])).logits
    their_loss = torch.nn.functional.cross_entropy(logits.reshape(-1, config.vocab_size), torch.as_tensor(ids[:, 1:].reshape(-1)))
    other.zero_grad()
    their_loss.backward()
    mine.zero_grad()
    loss = mine.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    expected = ours(cls, {name: p.grad.numpy() for name, p in other.named_parameters()})
    for name, p in mine.named_parameters():
        assert np.linalg.norm(p.grad - expected[name]) <= 1e-4 * np.linalg.norm(expected[name]) + 1e-7, name


def test_greedy_continuations_agree_with_and_without_a_cache(pair):
    _, config, other, mine = pair
    ids = np.random.default_rng(2).integers(0, config.vocab_size, (1, 10))
    expected = other.generate(
        torch.as_tensor(ids), max_new_tokens=50, min_new_tokens=50, do_sample=False, pad_token_id=0, eos_token_id=None
    ).numpy()
    for use_cache in (True, False):
        np.testing.assert_array_equal(mine.generate(ids, 50, temperature=0.0, use_cache=use_cache), expected)


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("smollm2-135m", "Llama"), ("qwen2.5-0.5b", "Qwen2"), ("qwen3-0.6b", "Qwen3"), ("pythia-70m", "GPTNeoX"), ("olmo-2-1b", "Olmo2"),
        ("gemma-3-270m", "Gemma3"), ("nanochat-d20", "NanoChat"), ("falcon-7b", "Falcon"), ("falcon-40b", "Falcon"), ("falcon-180b", "Falcon"),
        ("gpt1", "OpenAIGPT"),
    ],
)  # fmt: skip
def test_parameters_are_as_many_as_those_of_transformers(name, others):
    """Its models of the same shape, without memory for the weights."""
    config = GPTConfig.preset(name)
    fields = {
        "vocab_size": config.vocab_size, "hidden_size": config.n_embd, "intermediate_size": config.inner_channels,
        "num_hidden_layers": config.n_layer, "num_attention_heads": config.n_head, "tie_word_embeddings": config.tie_word_embeddings,
    }  # fmt: skip
    if others == "Falcon":
        two = not config.shared_norm
        fields |= {"num_kv_heads": config.kv_heads, "new_decoder_architecture": two, "num_ln_in_parallel_attn": 2 if two else None}
    elif others == "OpenAIGPT":
        fields = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    elif others != "GPTNeoX":
        fields |= {"num_key_value_heads": config.kv_heads, "head_dim": config.channels_per_head}
    theirs = getattr(transformers, f"{others}TextConfig" if others == "Gemma3" else f"{others}Config")(**fields)
    with torch.device("meta"):
        model = getattr(transformers, f"{others}LMHeadModel" if others == "OpenAIGPT" else f"{others}ForCausalLM")(theirs)
    assert config.n_parameters() == sum(p.numel() for p in model.parameters())
