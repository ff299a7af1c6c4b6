"""Every family's files, both ways, against Hugging Face's transformers: its options are drawn, its models small and random.

What it saves, in any dtype and number of files, loads here and computes the same, forward, backward and token by token; what we save loads
there and computes the same.
"""

import json
import re
import warnings

import numpy as np
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from autograd import backend
from tests.tinygpt.helpers import weights
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import CharacterTokenizer
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.weights import config_json
from tinygpt.weights.config_json import FAMILIES, config_fields, family_of

if backend.name != "numpy":
    pytest.skip("the other side computes on the CPU", allow_module_level=True)
torch = pytest.importorskip("torch", reason="parity tests need the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra `parity`")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
torch.set_num_threads(1)  # the test runner's processes share the cores
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

V, T = 61, 64
CONFIGS = {"gemma3_text": "Gemma3TextConfig", "gpt_neox": "GPTNeoXConfig", "nanochat": "NanoChatConfig", "opt": "OPTConfig"}
BY_NAME = {family.model_type: family for family in FAMILIES if family.config is GPTConfig}
ROPE = [
    {"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
]  # fmt: skip


def config_class(family):
    name = CONFIGS.get(family) or {"gpt2": "GPT2Config"}.get(family, f"{family.capitalize()}Config")
    if not hasattr(transformers, name):
        pytest.skip(f"this version of transformers has no {name}")
    return getattr(transformers, name)


@st.composite
def fields(draw, family):
    """Keys of a family's config.json, of the options that it has."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    n_kv, group, d, n_layer = pick(1, 2), pick(1, 2), pick(4, 8), pick(1, 2, 3)
    heads, act = n_kv * group, pick("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2")
    common = {
        "vocab_size": V, "hidden_size": heads * d, "num_hidden_layers": n_layer, "num_attention_heads": heads, "max_position_embeddings": T,
        "pad_token_id": None, "bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": pick(True, False),
    }  # fmt: skip
    if family == "gpt2":
        sizes = {"n_embd": heads * d, "n_layer": n_layer, "n_head": heads, "n_positions": T, "vocab_size": V, "n_inner": pick(None, 24)}
        return sizes | {
            "activation_function": act.replace("gelu_pytorch_tanh", "gelu_new"),
            "tie_word_embeddings": common["tie_word_embeddings"],
        }
    if family == "opt":
        more = {"ffn_dim": pick(24, 40), "do_layer_norm_before": pick(True, False), "enable_bias": pick(True, False)}
        return common | more | {"word_embed_proj_dim": heads * d, "activation_function": pick("relu", act)}
    if family == "gpt_neox":
        rope = pick(*ROPE) | {"rope_theta": pick(1e4, 50.0), "partial_rotary_factor": pick(0.5, 1.0)}
        more = {"use_parallel_residual": pick(True, False), "attention_bias": pick(True, False), "hidden_act": act, "rope_parameters": rope}
        return common | more | {"intermediate_size": pick(24, 40), "layer_norm_eps": pick(1e-5, 1e-3)}
    common |= {
        "intermediate_size": pick(24, 40), "num_key_value_heads": n_kv, "rms_norm_eps": pick(1e-6, 1e-3), "hidden_act": act,
        "rope_parameters": pick(*ROPE) | {"rope_theta": pick(1e4, 50.0)}, "attention_bias": pick(False, True),
    }  # fmt: skip
    types = [pick("sliding_attention", "full_attention") for _ in range(n_layer)]
    own_size = {"head_dim": pick(d, 12)}
    if family == "llama":
        return common | own_size | {"mlp_bias": pick(True, False)}
    if family in ("qwen2", "qwen3"):
        windows = {"use_sliding_window": pick(True, False), "sliding_window": 5, "max_window_layers": pick(0, 1)}
        return common | own_size | windows | (pick({}, {"layer_types": types}) if windows["use_sliding_window"] else {})
    if family == "mistral":
        return common | own_size | {"sliding_window": pick(None, 5)}
    if family == "nanochat":
        return common | own_size | {"hidden_act": pick("relu2", act), "final_logit_softcapping": pick(15.0, None, 2.0)}
    if family.startswith("gemma"):
        common |= {**own_size, "hidden_activation": act}
    if family in ("gemma2", "gemma3_text"):
        common |= {"sliding_window": 6, "layer_types": types, "query_pre_attn_scalar": pick(8, 20)}
        common |= {"final_logit_softcapping": pick(None, 3.0)}
    if family == "gemma2":
        common |= {"attn_logit_softcapping": pick(None, 5.0)}
    if family == "gemma3_text":
        common["rope_parameters"] = {
            "full_attention": common["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": 30.0},
        }
    return common | (own_size if family == "olmo2" else {})


def made(family, fields, seed):
    """Their model, with norms and biases that are numbers of their own."""
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config_class(family)(**fields), attn_implementation="eager").eval()
    with torch.no_grad():
        for p in model.parameters():
            p += torch.randn_like(p) * 0.2
    return model


def loaded(directory):
    """Their model of a directory, computing in float32."""
    auto = transformers.AutoModelForCausalLM
    return auto.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()


def greedy(model, ids):
    """Fifty tokens more, and how far the likeliest was ahead of the second at the least."""
    options = {"max_new_tokens": 50, "min_new_tokens": 50, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    options["attention_mask"] = torch.ones(ids.shape)  # or every 0 would count as padding
    out = model.generate(torch.as_tensor(ids), output_logits=True, return_dict_in_generate=True, **options)
    best = torch.stack(out.logits).topk(2).values
    return out.sequences.numpy(), float((best[..., 0] - best[..., 1]).min())


@pytest.mark.parametrize("family", BY_NAME)
@settings(max_examples=6, phases=[Phase.generate])
@given(data=st.data())
def test_the_same_model_there_and_here(tmp_path_factory, family, data):
    keys, seed = data.draw(fields(family)), data.draw(st.integers(0, 1000))
    dtype, shards = data.draw(st.sampled_from(["float32", "bfloat16", "float16"])), data.draw(st.booleans())
    there, back, again = (tmp_path_factory.mktemp(name) for name in ("there", "back", "again"))
    other = made(family, keys, seed).to(getattr(torch, dtype))
    other.save_pretrained(there, **({"max_shard_size": "1KB"} if shards else {}))
    assert (len(list(there.glob("*.safetensors"))) > 1) == shards
    other = loaded(there)  # `other.float()` would keep angles rounded to the dtype
    mine = GPT.from_pretrained(there).eval()
    check_logits(mine, other, atol=1e-4)
    check_loss_and_gradients(mine, other, BY_NAME[family], seed)
    check_tokens(mine, other, seed)

    form = {
        "dtype": data.draw(st.sampled_from(["float32", "bfloat16", "float16"])),
        "max_shard_size": data.draw(st.sampled_from([None, 1000, "2KB"])),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_json, "FAMILIES", (BY_NAME[family],))  # as this one, where one before it describes it, too
        mine.save_pretrained(back, **form)
        reread = GPT.from_pretrained(back).eval()
        reread.save_pretrained(again, **form)
    assert reread.config == mine.config
    rounded = {name: torch.as_tensor(array).to(getattr(torch, form["dtype"])).float().numpy() for name, array in weights(mine).items()}
    np.testing.assert_equal(weights(reread), rounded)
    files = {path.name: path.read_bytes() for path in back.iterdir()}
    assert files == {path.name: path.read_bytes() for path in again.iterdir()}
    assert (len(files) > 2) == (form["max_shard_size"] is not None)
    returned = loaded(back)
    assert type(returned) is type(other)
    assert transformers.AutoConfig.from_pretrained(back).dtype == getattr(torch, form["dtype"])
    with torch.no_grad():
        for p in other.parameters():
            p.copy_(p.to(getattr(torch, form["dtype"])))
    ids = torch.as_tensor(np.random.default_rng(3).integers(0, V, (2, 40)))
    with torch.no_grad():
        assert torch.equal(returned(ids).logits, other(ids).logits)


def check_logits(mine, other, atol):
    ids = np.random.default_rng(0).integers(0, V, (2, 40))
    with torch.no_grad():
        expected = other(torch.as_tensor(ids)).logits.numpy()
    assert expected.std() > 0.2  # far from even, so that agreeing means something
    np.testing.assert_allclose(mine(ids).data, expected, atol=atol, rtol=0)


def check_loss_and_gradients(mine, other, family, seed):
    ids = np.random.default_rng(seed).integers(0, V, (2, 31))
    logits = other(torch.as_tensor(ids[:, :-1])).logits
    their_loss = torch.nn.functional.cross_entropy(logits.reshape(-1, V), torch.as_tensor(ids[:, 1:].reshape(-1)))
    other.zero_grad()
    their_loss.backward()
    mine.zero_grad()
    loss = mine.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    theirs = {family.canonical_name(name): p.grad.numpy() for name, p in other.named_parameters()}
    for name, p in mine.named_parameters():
        for part in family.parts(mine.config, name):
            expected = theirs.pop(family.canonical_name(part.name))
            assert np.linalg.norm(part.stored(p.grad) - expected) <= 1e-4 * np.linalg.norm(expected) + 1e-7, part.name
    assert not theirs


def check_tokens(mine, other, seed):
    ids = np.random.default_rng(seed).integers(0, V, (1, 10))
    expected, ahead = greedy(other, ids)
    assume(ahead > 1e-4)  # else rounding chooses
    for use_cache in (True, False):
        np.testing.assert_array_equal(mine.generate(ids, 50, temperature=0.0, use_cache=use_cache), expected)


# ---- keys of earlier versions ------------------------------------------------------------------------------------------------------------

LLAMA3 = ROPE[2]
OLDER = {  # what transformers 4 wrote -> what that means
    "llama": ({"rope_theta": 500.0, "rope_scaling": LLAMA3}, {"rope_theta": 500.0, "rope_scaling": LLAMA3}),
    "qwen2": ({"rope_theta": 50.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
              {"rope_theta": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "gpt_neox": ({"rotary_pct": 0.5, "partial_rotary_factor": 0.5, "rotary_emb_base": 50}, {"rope_fraction": 0.5, "rope_theta": 50}),
    "gemma3_text": ({"rope_theta": 700.0, "rope_local_base_freq": 30.0, "sliding_window_pattern": 2, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
                    {"rope_theta": 700.0, "rope_local_theta": 30.0, "window_pattern": "SL", "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    "gemma": ({"hidden_act": "gelu"}, {"activation": "gelu"}),
}  # fmt: skip


@pytest.mark.parametrize("family", OLDER)
def test_files_of_earlier_versions_mean_the_same(tmp_path, family):
    keys, expected = OLDER[family]
    sizes = {
        "vocab_size": V,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "sliding_window": 5,
    }
    sizes |= {"max_position_embeddings": T, "head_dim": 8, "intermediate_size": 24, "pad_token_id": None}
    made(family, sizes, 0).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in written.items() if key not in ("rope_parameters", "layer_types", "hidden_act")}
    path.write_text(json.dumps({**kept, "model_type": family, **keys}), encoding="utf-8")
    mine = GPT.from_pretrained(tmp_path).eval()
    assert {name: getattr(mine.config, name) for name in expected} == expected
    check_logits(mine, loaded(tmp_path), atol=1e-4)


# ---- classifiers -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", BY_NAME)
def test_classifiers_there_and_here(tmp_path, family):
    """A base model of theirs with a head of ours; where they have no such class, our own form says so."""
    tokenizer = CharacterTokenizer.train("abcdefghijklmnopqrstuvwxyz")
    keys = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": T}
    keys |= {
        "intermediate_size": 24,
        "ffn_dim": 24,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "word_embed_proj_dim": 16,
        "pad_token_id": None,
    }
    keys["do_layer_norm_before"] = False  # or OPT is GPT-2 with another activation
    made(family, keys, 1).save_pretrained(tmp_path / "base")
    mine = GPTClassifier(GPT.from_pretrained(tmp_path / "base"), tokenizer, ["a", "b", "c"]).eval()
    ids = np.random.default_rng(0).integers(0, tokenizer.n_vocab, (2, 12))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mine.save_pretrained(tmp_path / "classifier")
    again = GPTClassifier.from_pretrained(tmp_path / "classifier").eval()
    np.testing.assert_array_equal(again(ids).data, mine(ids).data)
    if BY_NAME[family].classifier is None:
        assert any(f"it has no classifier for {family}" in str(warning.message) for warning in caught)
        return
    other = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier", attn_implementation="eager").eval()
    assert type(other).__name__ == BY_NAME[config_fields(mine.config, None, mine.pretrained_fields())["model_type"]].classifier
    with torch.no_grad():
        for row in ids:  # one by one: the character tokenizer has no end token, by which transformers finds the last real one
            np.testing.assert_allclose(mine(row[None]).data, other(torch.as_tensor(row[None])).logits.numpy(), atol=1e-4)


def test_the_names_of_classes_are_theirs():
    for family in FAMILIES:
        assert hasattr(transformers, family.architecture) or pytest.skip(f"this version of transformers has no {family.architecture}")
        assert family.classifier is None or hasattr(transformers, family.classifier)
        assert re.fullmatch(r"[a-z0-9_]+", family.model_type)
    assert not hasattr(transformers, "NanoChatForSequenceClassification")
    assert family_of(GPTConfig()) is BY_NAME["gpt2"]
