"""Marian and T5, both ways, against Hugging Face's transformers: options are drawn, models small and random, norms and biases perturbed.

What it saves, in any dtype and number of files, loads here and computes the same: logits, loss, gradients, greedy and beam search. What we
save loads there and computes the same.
"""

import json

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from autograd import backend
from tests.tinygpt.helpers import weights
from tinygpt import Checkpoint
from tinygpt.inference.translate import cross_attention, search
from tinygpt.models import Seq2Seq
from tinygpt.models.seq2seq import relative_buckets, shifted_right
from tinygpt.weights.marian import MARIAN
from tinygpt.weights.t5 import T5

if backend.name != "numpy":
    pytest.skip("the other side computes on the CPU", allow_module_level=True)
torch = pytest.importorskip("torch", reason="parity tests need the extra `parity`")
transformers = pytest.importorskip("transformers", reason="parity tests need the extra `parity`")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
torch.set_num_threads(1)  # the test runner's processes share the cores
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

V = 47
CLASSES = {"Marian": ("MarianMTModel", MARIAN), "T5": ("T5ForConditionalGeneration", T5)}


@st.composite
def drawn(draw, name):
    """Keys of config.json, of the options that the family has."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    heads, layers, decoder_layers = pick(1, 2, 3), pick(1, 2), pick(1, 2, 3)
    if name == "Marian":
        n_inner, pad = pick(12, 40), pick(0, V - 1)
        return {
            "vocab_size": V, "d_model": heads * pick(4, 8), "encoder_layers": layers, "decoder_layers": decoder_layers,
            "encoder_attention_heads": heads, "decoder_attention_heads": heads, "encoder_ffn_dim": n_inner, "decoder_ffn_dim": n_inner,
            "max_position_embeddings": 40, "activation_function": pick("swish", "gelu", "relu"), "scale_embedding": pick(True, False),
            "pad_token_id": pad, "decoder_start_token_id": pick(pad, 3), "eos_token_id": 1, "forced_eos_token_id": pick(1, None),
            "tie_word_embeddings": True, "init_std": 0.1,
        }  # fmt: skip
    return {
        "vocab_size": V, "d_model": pick(8, 24), "d_kv": pick(3, 8), "d_ff": pick(12, 40), "num_layers": layers,
        "num_decoder_layers": decoder_layers, "num_heads": heads, "decoder_start_token_id": 0, "tie_word_embeddings": pick(True, False),
        "feed_forward_proj": pick("relu", "gated-gelu", "gated-silu", "gelu"), "relative_attention_num_buckets": pick(8, 32),
        "relative_attention_max_distance": pick(20, 128), "layer_norm_epsilon": pick(1e-6, 1e-3), "initializer_factor": 1.0,
    }  # fmt: skip


def made(name, fields, seed):
    """Their model, with norms, biases and the bias of the logits that are numbers of their own; T5's output layer untied where it says so."""
    torch.manual_seed(seed)
    cls = getattr(transformers, CLASSES[name][0])
    model = cls._from_config(getattr(transformers, f"{name}Config")(**fields), attn_implementation="eager").eval()
    with torch.no_grad():
        if name == "T5" and not fields["tie_word_embeddings"]:
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        for parameter_name, p in model.named_parameters():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                p += torch.randn_like(p) * 0.2
        if name == "Marian":
            model.final_logits_bias += torch.randn_like(model.final_logits_bias) * 0.3
    return model


def loaded(directory, name):
    """Their model of a directory, computing in float32."""
    cls = getattr(transformers, CLASSES[name][0])
    return cls.from_pretrained(directory, attn_implementation="eager", dtype=torch.float32).eval()


def batch(config, seed):
    """(sources, attention mask, targets): padded on the right as their tokenizers do it, some targets ignored."""
    rng = np.random.default_rng(seed)
    sources, mask, targets = rng.integers(4, V - 1, (3, 22)), np.ones((3, 22), int), rng.integers(1, V - 1, (3, 13))
    mask[1, 15:] = mask[2, 6:] = 0
    sources[mask == 0] = config.pad_token_id
    targets[1, 8:] = targets[2, :2] = -100
    return sources, mask, targets


def theirs(model, sources, mask, targets, **options):
    return model(input_ids=torch.as_tensor(sources), attention_mask=torch.as_tensor(mask), labels=torch.as_tensor(targets), **options)


def check_logits(mine, other, seed):
    sources, mask, targets = batch(other.config, seed)
    with torch.no_grad():
        expected = theirs(other, sources, mask, targets, output_attentions=True)
    logits = expected.logits.numpy()
    assert logits.std() > 0.2  # far from even, so that agreeing means something
    inputs = shifted_right(targets, mine.config.start_id, mine.config.pad_id)
    np.testing.assert_allclose(mine(sources, inputs, mask).data, logits, atol=1e-4 * max(1, np.abs(logits).max()), rtol=0)
    looked = torch.stack(expected.cross_attentions, dim=1).numpy()
    np.testing.assert_allclose(cross_attention(mine, sources, targets, mask), looked, atol=1e-4)


def check_loss_and_gradients(mine, other, family, seed):
    sources, mask, targets = batch(other.config, seed)
    their_loss = theirs(other, sources, mask, targets).loss
    other.zero_grad()
    their_loss.backward()
    mine.zero_grad()
    loss = mine.loss(sources, targets, mask)
    loss.backward()
    assert loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    expected = {family.canonical_name(name): p.grad for name, p in other.named_parameters()}
    for name, p in mine.named_parameters():
        for part in family.parts(mine.config, name):
            if part.name == "final_logits_bias":  # no parameter there
                continue
            here, there = part.stored(p.grad), expected.pop(family.canonical_name(part.name)).numpy()
            assert np.linalg.norm(here - there) <= 1e-4 * np.linalg.norm(there) + 1e-6, (
                part.name
            )  # rounding alone where it is 0, as of a key's bias
    assert all(name.endswith("embed_positions.weight") for name in expected)  # fixed, says the paper


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=10, phases=[Phase.generate])
@given(data=st.data())
def test_the_same_model_there_and_here(tmp_path_factory, name, data):
    fields, seed = data.draw(drawn(name)), data.draw(st.integers(0, 1000))
    dtype, shards = data.draw(st.sampled_from(["float32", "bfloat16", "float16"])), data.draw(st.booleans())
    there, back, again = (tmp_path_factory.mktemp(folder) for folder in ("there", "back", "again"))
    made(name, fields, seed).to(getattr(torch, dtype)).save_pretrained(there, **({"max_shard_size": "1KB"} if shards else {}))
    assert (len(list(there.glob("*.safetensors"))) > 1) == shards
    other, mine = loaded(there, name), Seq2Seq.from_pretrained(there).eval()
    assert mine.config.tie_word_embeddings == fields["tie_word_embeddings"]
    check_logits(mine, other, seed)
    check_loss_and_gradients(mine, other, CLASSES[name][1], seed)

    mine.save_pretrained(back)
    assert json.loads((back / "config.json").read_bytes())["model_type"] == name.lower()
    reread = Checkpoint.open(back).model()
    reread.save_pretrained(again)
    assert type(reread) is Seq2Seq and reread.config == mine.config
    np.testing.assert_equal(weights(reread), weights(mine))
    for file in ("config.json", "model.safetensors"):
        assert (back / file).read_bytes() == (again / file).read_bytes()
    check_logits(mine, loaded(back, name), seed + 1)


SEARCHES = [(1, 1.0, False), (4, 1.0, False), (4, 0.0, True), (4, 2.0, "never"), (3, -1.0, False)]
"""n_beams, length_penalty, early_stopping."""


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("seed", range(2))
def test_greedy_and_beam_search_find_the_same_targets(tmp_path, name, seed):
    """With and without forced and banned tokens; T5 of as many blocks in both stacks, as transformers' cache needs it."""
    if name == "Marian":
        fields = dict.fromkeys(("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads"), 2)
        fields |= {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40, "init_std": 0.5}
        fields |= {"pad_token_id": V - 1, "decoder_start_token_id": V - 1, "eos_token_id": 1, "forced_eos_token_id": 1 if seed else None}
    else:
        fields = {"d_model": 16, "d_kv": 5, "d_ff": 24, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
    other = made(name, {"vocab_size": V, "tie_word_embeddings": True, "scale_embedding": True, **fields}, seed)
    if seed:
        other.generation_config.bad_words_ids = [[other.config.pad_token_id], [5]]
        other.generation_config.forced_bos_token_id = 7
    if name == "Marian":
        other.final_logits_bias[0, 1] += 6  # so that some targets end early
    other.save_pretrained(tmp_path)
    mine = Seq2Seq.from_pretrained(tmp_path)
    sources, mask, _ = batch(other.config, seed)
    tensors, early_ends = {"input_ids": torch.as_tensor(sources), "attention_mask": torch.as_tensor(mask)}, set[bool]()
    for n_beams, penalty, early in SEARCHES:
        for most in (1, 14):
            options = {"length_penalty": penalty, "early_stopping": early} if n_beams > 1 else {}
            expected = other.generate(**tensors, num_beams=n_beams, max_new_tokens=most, do_sample=False, **options).numpy()[:, 1:]
            found = search(mine, sources, most, attention_mask=mask, n_beams=n_beams, length_penalty=penalty, early_stopping=early)
            for row, (beams, target) in enumerate(zip(found, expected.tolist(), strict=True)):
                ids = beams[0].ids
                assert target[: len(ids)] == ids, (n_beams, penalty, early, most, row)
                assert set(target[len(ids) :]) <= {other.config.pad_token_id, other.config.eos_token_id}  # fill: all have ended
                early_ends |= {len(ids) < 14} if most == 14 else set()
    assert early_ends == {True, False} or name == "T5"


def test_buckets_of_all_distances():
    ahead = np.arange(-600, 601)
    bucket = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket
    for n_buckets, distance in ((32, 128), (8, 20), (64, 1000), (4, 3)):
        for causal in (False, True):
            expected = bucket(torch.as_tensor(ahead), bidirectional=not causal, num_buckets=n_buckets, max_distance=distance).numpy()
            np.testing.assert_array_equal(relative_buckets(ahead, causal, n_buckets, distance), expected)
