"""Each published family is a config: its model in transformers with random weights gives the same logits, loss, gradients and tokens here.

The names are mapped by hand, in few lines; reading and writing their files is the business of `tinygpt/weights/`.
"""

import dataclasses

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
LLAMA = {"norm": "rms", "positions": "rotary", "activation": "silu", "gated": True, "n_inner": 48, "n_kv_head": 2, "qkv_bias": False}
LLAMA |= {"attention_output_bias": False, "mlp_bias": False, "tie_word_embeddings": False}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
THEIR_LLAMA = {"intermediate_size": 48, "num_key_value_heads": 2, "tie_word_embeddings": False}


def rope(theta, **more):
    return {"rope_type": "default", "rope_theta": theta, **more}


FAMILIES = {  # name: (our fields, their class, theirs)
    "llama": (
        {**LLAMA, "rope_theta": 500.0, "rope_scaling": LLAMA3}, "Llama",
        {**THEIR_LLAMA, "rms_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 500.0, **LLAMA3}},
    ),
    "llama, own head size, biases, tied, linear scaling": (
        {**LLAMA, "head_size": 12, "qkv_bias": True, "attention_output_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
         "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        "Llama", {**THEIR_LLAMA, "rms_norm_eps": 1e-5, "head_dim": 12, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
                  "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "qwen2": ({**LLAMA, "qkv_bias": True}, "Qwen2", {**THEIR_LLAMA, "rms_norm_eps": 1e-5, "rope_parameters": rope(1e4)}),
    "qwen2 with windows": (
        {**LLAMA, "qkv_bias": True, "window": 5, "window_pattern": "LSS"}, "Qwen2",
        {**THEIR_LLAMA, "rms_norm_eps": 1e-5, "rope_parameters": rope(1e4), "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": (
        {**LLAMA, "head_size": 16, "qk_norm": "head", "rope_theta": 1e6}, "Qwen3",
        {**THEIR_LLAMA, "rms_norm_eps": 1e-5, "head_dim": 16, "rope_parameters": rope(1e6)},
    ),
    "olmo2": (
        {**LLAMA, "n_kv_head": 4, "qk_norm": "all", "norm_position": "output", "rope_theta": 5e5}, "Olmo2",
        {**THEIR_LLAMA, "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_parameters": rope(5e5)},
    ),
    "gemma3": (
        {**LLAMA, "n_kv_head": 1, "head_size": 16, "norm_offset": 1.0, "norm_position": "sandwich", "qk_norm": "head", "activation": "gelu",
         "rope_theta": 1e6, "rope_local_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "window": 6, "window_pattern": "SSL",
         "embedding_scale": 32**0.5, "attention_scale": 20**-0.5, "tie_word_embeddings": True},
        "Gemma3", {**THEIR_LLAMA, "num_key_value_heads": 1, "head_dim": 16, "rms_norm_eps": 1e-5, "query_pre_attn_scalar": 20, "sliding_window": 6,
                   "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "tie_word_embeddings": True,
                   "rope_parameters": {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}, "sliding_attention": rope(1e4)}},
    ),
    "gpt_neox": (
        {"parallel_residual": True, "positions": "rotary", "rope_fraction": 0.25, "activation": "gelu_exact", "tie_word_embeddings": False},
        "GPTNeoX", {"intermediate_size": 128, "hidden_act": "gelu", "rope_parameters": rope(1e4, partial_rotary_factor=0.25)},
    ),
    "gpt_neox, one branch after the other": (
        {"positions": "rotary", "rope_fraction": 0.5, "activation": "relu", "n_inner": 40, "tie_word_embeddings": True}, "GPTNeoX",
        {"intermediate_size": 40, "hidden_act": "relu", "rope_parameters": rope(1e4, partial_rotary_factor=0.5), "use_parallel_residual": False,
         "tie_word_embeddings": True},
    ),
    "opt": ({"activation": "relu", "n_inner": 40}, "OPT", {"ffn_dim": 40, "word_embed_proj_dim": 32, "dropout": 0.0}),
    "opt, norms on the sums": (
        {"activation": "relu", "norm_position": "post"}, "OPT",
        {"ffn_dim": 128, "word_embed_proj_dim": 32, "dropout": 0.0, "do_layer_norm_before": False},
    ),
    "nanochat": (
        {**LLAMA, "n_inner": 128, "norm": "rms_unweighted", "embedding_norm": True, "qk_norm": "head", "activation": "squared_relu",
         "gated": False, "logit_softcap": 15.0},
        "NanoChat", {**THEIR_LLAMA, "intermediate_size": 128, "rms_norm_eps": 1e-5, "rope_parameters": rope(1e4)},
    ),
    "falcon 7b": (
        {"parallel_residual": True, "shared_norm": True, "positions": "rotary", "n_kv_head": 1, "activation": "gelu_exact", "qkv_bias": False,
         "attention_output_bias": False, "mlp_bias": False},
        "Falcon", {"rope_parameters": rope(1e4)},
    ),
    "gpt1": ({"norm_position": "post"}, "OpenAIGPT", {}),
}  # fmt: skip

NAMES = {  # theirs: ours
    "embed_tokens": "wte", "norm": "ln_f", "lm_head": "lm_head", "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2",
    "self_attn.o_proj": "attn.c_proj", "self_attn.q_norm": "attn.q_norm", "self_attn.k_norm": "attn.k_norm",
    "mlp.gate_proj": "mlp.c_gate", "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "embed_in": "wte", "embed_out": "lm_head", "attention.dense": "attn.c_proj", "mlp.dense_h_to_4h": "mlp.c_fc",
    "mlp.dense_4h_to_h": "mlp.c_proj", "embed_positions": "wpe", "self_attn.out_proj": "attn.c_proj", "self_attn_layer_norm": "ln_1",
    "fc1": "mlp.c_fc", "fc2": "mlp.c_proj", "word_embeddings": "wte", "self_attention.dense": "attn.c_proj", "tokens_embed": "wte",
    "positions_embed": "wpe",
}  # fmt: skip
OUTPUT_NORMS = {"post_attention_layernorm": "ln_1_out", "pre_feedforward_layernorm": "ln_2", "post_feedforward_layernorm": "ln_2_out"}


def ours(config, cls, named):
    """Arrays under their names and in their orientation -> under ours."""
    names, found, d = dict(NAMES), {}, config.channels_per_head
    if cls in ("Olmo2", "Gemma3"):
        names |= OUTPUT_NORMS
    for name, array in named.items():
        name = name.removeprefix("model.").removeprefix("decoder.").removeprefix("gpt_neox.").removeprefix("transformer.")
        layer = name.split(".")[1] if name.split(".")[0] in ("layers", "h") else None
        module, _, kind = name.removeprefix(f"layers.{layer}.").removeprefix(f"h.{layer}.").rpartition(".")
        if layer is None and module == "final_layer_norm":
            module = "ln_f"
        elif module == "final_layer_norm":
            module = "ln_2"
        if module == "embed_positions":
            array = array[2:]  # OPT's two rows for padding
        if cls == "GPTNeoX" and module == "attention.query_key_value":  # by head: query, key, value
            array = np.concatenate(np.split(array.reshape(config.n_head, 3, d, -1), 3, axis=1)).reshape(array.shape)
        if cls == "NanoChat" and module in ("self_attn.q_proj", "self_attn.k_proj"):  # turned the other way round
            array = array.reshape(-1, 2, d // 2, array.shape[-1]) * np.array([1, -1], np.float32)[:, None, None]
            array = array.reshape(-1, array.shape[-1])
        is_matrix = array.ndim == 2 and cls != "OpenAIGPT" and layer is not None
        array, before = array.T if is_matrix else array, "" if layer is None else f"h.{layer}."
        if module in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            found.setdefault(f"{before}attn.c_attn.{kind}", {})[module[10]] = array
            continue
        if module in ("attention.query_key_value", "self_attention.query_key_value"):
            module = "attn.c_attn"
        found[f"{before}{names.get(module, module)}.{kind}"] = array
    joined = {n: np.concatenate([a["q"], a["k"], a["v"]], axis=-1) if isinstance(a, dict) else a for n, a in found.items()}
    return {n: a for n, a in joined.items() if not (n == "lm_head.weight" and config.tie_word_embeddings)}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """(our class of theirs, config, their model, ours with its weights)."""
    fields, cls, more = FAMILIES[request.param]
    config = GPTConfig(**SMALL, **fields)
    if cls == "OpenAIGPT":
        their_fields, kind = dict(SMALL), "OpenAIGPTLMHeadModel"
    else:
        their_fields, kind = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}, f"{cls}ForCausalLM"
        their_fields |= {"max_position_embeddings": 64, "attn_implementation": "eager", **more}
    torch.manual_seed(len(request.param))
    their_config = getattr(transformers, "Gemma3TextConfig" if cls == "Gemma3" else f"{cls}Config")(**their_fields)
    other = getattr(transformers, kind)(their_config).eval()
    other.get_input_embeddings().padding_idx = None  # or that id's row would get no gradient
    with torch.no_grad():
        for p in other.parameters():
            p += torch.randn_like(p) * 0.1
    arrays = ours(config, cls, {name: p.detach().numpy() for name, p in other.named_parameters()})
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
    np.testing.assert_allclose(mine(ids).data, expected, atol=1e-4 * max(1, np.abs(expected).max()), rtol=0)


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
    expected = ours(config, cls, {name: p.grad.numpy() for name, p in other.named_parameters()})
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


def test_every_preset_that_is_built_is_one_of_these():
    """No family among the presets is left out of the comparison, options taken together."""
    compared = [set(GPTConfig(**SMALL, **fields).options()) for fields, _, _ in FAMILIES.values()]
    for name in (
        "smollm2-135m",
        "llama-3.2-1b",
        "qwen2.5-0.5b",
        "qwen3-0.6b",
        "pythia-70m",
        "olmo-2-1b",
        "gemma-3-1b",
        "opt-125m",
        "nanochat-d20",
    ):
        options = set(GPTConfig.preset(name).options()) - {"n_inner", "n_kv_head", "head_size", "rope_theta", "rope_scaling"}
        assert any(options <= one for one in compared), name
        assert dataclasses.replace(GPTConfig.preset(name), n_layer=1).options().keys() == GPTConfig.preset(name).options().keys()


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("smollm2-135m", "Llama"), ("qwen2.5-0.5b", "Qwen2"), ("qwen3-0.6b", "Qwen3"), ("pythia-70m", "GPTNeoX"), ("olmo-2-1b", "Olmo2"),
        ("gemma-3-270m", "Gemma3"), ("nanochat-d20", "NanoChat"), ("falcon-7b", "Falcon"), ("falcon-40b", "Falcon"), ("gpt1", "OpenAIGPT"),
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
