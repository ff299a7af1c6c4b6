"""GGUF files: read back with the library `gguf` and compared with the model, tensor by tensor; what is refused, and how.

That llama.cpp computes the same from them is checked by hand, with benchmarks/against_llama_cpp.py.
"""

import dataclasses
import json
import re
import sys

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.tinygpt.helpers import decoders, randomize
from tests.tinygpt.test_families import CONFIGS
from tinygpt import GPT, GPTConfig
from tinygpt.__main__ import main
from tinygpt.data.gguf_vocabulary import PRE_TOKENIZERS, chat_template, write_vocabulary
from tinygpt.data.tokenizer import GPT2_SPLIT, BPETokenizer, CharacterTokenizer, WordTokenizer, visible
from tinygpt.data.tokenizer_files import NANOCHAT_SPLIT, load_tokenizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.finetuning.encoder_classifier import EncoderClassifier
from tinygpt.models.encoder import Encoder
from tinygpt.models.seq2seq import Seq2Seq
from tinygpt.runs.export import export
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.weights.config_json import FAMILIES
from tinygpt.weights.gguf import write_gguf
from tinygpt.weights.gguf_targets import TARGETS, target_of

TEXT = "the cat sat on the mat; the dog sat on the log. " * 4
TOKENIZER = BPETokenizer.train(TEXT, 270)
SIZES = {"vocab_size": 275, "n_positions": 12}
KNOWN = [name for name in CONFIGS if name not in ("opt", "nanochat")]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8}


@pytest.fixture
def gguf():
    return pytest.importorskip("gguf", reason="needs the extra gguf")


def small(name, **changes):
    window = {"window": None} if name == "mistral" else {}
    return dataclasses.replace(CONFIGS[name], **{**SIZES, **window, **changes})


def read(gguf, path):
    """(float32 tensors by name, metadata by key) of a file, as llama.cpp's library reads it."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type).reshape([int(n) for n in t.shape][::-1]) for t in reader.tensors}
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    return tensors, {key: field.contents() for key, field in reader.fields.items()}, kinds


def written(gguf, path, config, dtype="float32", tokenizer=TOKENIZER):
    model = randomize(GPT(config), 0, "float32")
    write_gguf(path, model, lambda writer: write_vocabulary(writer, tokenizer, config.vocab_size), dtype=dtype)
    return model, *read(gguf, path)


# ---- tensors -----------------------------------------------------------------------------------------------------------------------------

MODULES = {  # ours -> llama.cpp's
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "ln_1_out": "post_attention_norm", "ln_2_out": "post_ffw_norm", "attn.c_attn": "attn_qkv",
    "attn.q_norm": "attn_q_norm", "attn.k_norm": "attn_k_norm", "attn.c_proj": "attn_output", "mlp.c_gate": "ffn_gate", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip
OUTER = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}


def check_tensors(model, tensors, permuted):
    """Every number of the model stands where llama.cpp looks for it, and the file holds no tensor more."""
    config, left = model.config, dict(tensors)
    d, h, h_kv = config.channels_per_head, config.n_head, config.kv_heads
    for name, p in model.named_parameters():
        module, kind = name.rsplit(".", 1)
        ours = p.data + (config.norm_offset if p.ndim == 1 and kind == "weight" else 0)
        if not name.startswith("h."):
            np.testing.assert_array_equal(left.pop(f"{OUTER[module]}.{kind}"), ours)
            continue
        _, layer, module = module.split(".", 2)
        ours, prefix = ours.T, f"blk.{layer}."
        if module == "attn.c_attn" and f"{prefix}attn_q.weight" in tensors:
            for letter, n, rows in zip("qkv", (h, h_kv, h_kv), np.split(ours, [h * d, (h + h_kv) * d]), strict=True):
                theirs = left.pop(f"{prefix}attn_{letter}.{kind}")
                if permuted and letter != "v":  # pairs of neighbors are the halves of a head
                    pairs = theirs.reshape(n, d // 2, 2, *theirs.shape[1:])
                    theirs = np.concatenate([pairs[:, :, 0], pairs[:, :, 1]], axis=1).reshape(theirs.shape)
                np.testing.assert_array_equal(theirs, rows)
            continue
        np.testing.assert_array_equal(left.pop(f"{prefix}{MODULES[module]}.{kind}"), ours)
    return left


@pytest.mark.parametrize("name", KNOWN)
def test_each_family_is_read_back_tensor_by_tensor(gguf, tmp_path, name):
    model, tensors, metadata, _ = written(gguf, tmp_path / "model.gguf", small(name))
    config, arch = model.config, metadata["general.architecture"]
    left = check_tensors(model, tensors, permuted=arch == "llama")
    if name in ("olmo2", "gpt_neox") and config.tie_word_embeddings:
        np.testing.assert_array_equal(left.pop("output.weight"), model.wte.weight.data)
    assert not left
    assert arch == {"gemma3_text": "gemma3", "gpt_neox": "gptneox", "mistral": "llama"}.get(name, name)
    sizes = {
        "block_count": config.n_layer, "context_length": 12, "embedding_length": config.n_embd, "feed_forward_length": config.inner_channels,
        "attention.head_count": config.n_head, "attention.head_count_kv": config.kv_heads, "vocab_size": 275,
        "attention.key_length": config.channels_per_head, "attention.value_length": config.channels_per_head,
    }  # fmt: skip
    if config.positions == "rotary":
        sizes |= {"rope.dimension_count": int(config.channels_per_head * config.rope_fraction), "rope.freq_base": config.rope_theta}
    if name in ("gemma2", "gemma3_text"):
        sizes |= {"attention.sliding_window": 5, "attention.sliding_window_pattern": [True, False]}
    assert {key: metadata[f"{arch}.{key}"] for key in sizes} == sizes
    epsilon = metadata[f"{arch}.attention.layer_norm_{'' if config.norm == 'layer' else 'rms_'}epsilon"]
    assert epsilon == pytest.approx(config.layer_norm_epsilon)


def test_what_llama_cpp_insists_on_is_added(gguf, tmp_path):
    """Biases of zeros, an output matrix where ours is the embedding's, and factors for Llama 3.1's positions."""
    model, tensors, _, _ = written(gguf, tmp_path / "gpt2.gguf", small("gpt2", qkv_bias=False))
    left = check_tensors(model, tensors, permuted=False)
    assert sorted(left) == ["blk.0.attn_qkv.bias", "blk.1.attn_qkv.bias"] and not any(array.any() for array in left.values())
    neox = small("gpt_neox", tie_word_embeddings=True, qkv_bias=False, attention_output_bias=False)
    model, tensors, _, _ = written(gguf, tmp_path / "neox.gguf", neox)
    left = check_tensors(model, tensors, permuted=False)
    np.testing.assert_array_equal(left.pop("output.weight"), model.wte.weight.data)
    assert sorted(left) == sorted(f"blk.{layer}.attn_{which}.bias" for layer in range(2) for which in ("qkv", "output"))
    model, tensors, _, _ = written(gguf, tmp_path / "llama.gguf", small("llama", rope_scaling=LLAMA3, rope_theta=1e6))
    left = check_tensors(model, tensors, permuted=True)
    d, factors = model.config.channels_per_head, left.pop("rope_freqs.weight")
    wavelengths = 2 * np.pi * 1e6 ** (np.arange(0, d, 2) / d)
    assert not left and (factors[wavelengths < 2] == 1).all() and np.allclose(factors[wavelengths > 8], 8)
    _, _, metadata, _ = written(gguf, tmp_path / "linear.gguf", small("llama", rope_scaling={"rope_type": "linear", "factor": 2.0}))
    assert (metadata["llama.rope.scaling.type"], metadata["llama.rope.scaling.factor"]) == ("linear", 2.0)


@pytest.mark.parametrize(("dtype", "kind", "tolerance"), [("float16", "F16", 2**-11), ("bfloat16", "BF16", 2**-8)])
def test_sixteen_bits_round_matrices_and_nothing_else(gguf, tmp_path, dtype, kind, tolerance):
    model, tensors, metadata, kinds = written(gguf, tmp_path / "model.gguf", small("gpt2"), dtype)
    assert metadata["general.file_type"] == gguf.LlamaFileType[f"MOSTLY_{kind}"]
    assert {kinds[name] for name, t in tensors.items() if t.ndim == 2 and name != "position_embd.weight"} == {kind}
    assert {kinds[name] for name, t in tensors.items() if t.ndim == 1 or name == "position_embd.weight"} == {"F32"}
    np.testing.assert_allclose(tensors["token_embd.weight"], model.wte.weight.data, rtol=tolerance, atol=1e-7)
    np.testing.assert_allclose(tensors["blk.1.ffn_up.weight"], model.h[1].mlp.c_fc.weight.data.T, rtol=tolerance, atol=1e-7)
    model.h[0].mlp.c_fc.weight.data[0, 0] = 1e5
    vocabulary = lambda writer: write_vocabulary(writer, TOKENIZER, 275)  # noqa: E731
    if dtype == "float16":
        with pytest.raises(
            ValueError, match=r"h.0.mlp.c_fc.weight holds 100000, expected at most 65504 for float16; take --dtype bfloat16"
        ):
            write_gguf(tmp_path / "large.gguf", model, vocabulary, dtype=dtype)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]  # nothing half written is left
    else:
        write_gguf(tmp_path / "large.gguf", model, vocabulary, dtype=dtype)


# ---- encoders and encoder-decoders ---------------------------------------------------------------------------------------------------------

FEW = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_inner": 24, "vocab_size": 275, "n_positions": 12}
OTHERS = {
    "bert": EncoderConfig.preset("bert-base", **FEW, pooler=True),
    "roberta": EncoderConfig.preset("roberta-base", **FEW),
    "t5": Seq2SeqConfig.preset("t5-small", **FEW, n_decoder_layer=3, head_size=4, output_scale=0.25),
}
ENCODER_MODULES = {
    "attn.c_proj": "attn_output", "ln_1": "attn_output_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", "ln_2": "layer_output_norm",
}  # fmt: skip
ENCODER_OUTER = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "wtt": "token_types",
    "ln_e": "token_embd_norm",
    "pooler": "cls",
    "score": "cls.output",
}
T5_MODULES = {
    "attn.c_proj": "attn_o", "ln_1": "attn_norm", "ln_2": "ffn_norm", "ln_cross": "cross_attn_norm", "mlp.c_gate": "ffn_gate",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down", **{f"cross.c_{letter}": f"cross_attn_{letter}" for letter in "qkv"}, "cross.c_proj": "cross_attn_o",
}  # fmt: skip


def written_as(gguf, path, model, dtype="float32"):
    write_gguf(path, model, lambda writer: write_vocabulary(writer, TOKENIZER, 275), dtype=dtype)
    return read(gguf, path)


def check_blocks(model, tensors, modules, outer, stacks):
    """As `check_tensors`, for blocks under names such as encoder.h.0; stacks: what stands before theirs. What is left, of both sides."""
    left, unseen = dict(tensors), []
    for name, p in model.named_parameters():
        name = name.removeprefix("transformer.")
        module, kind = name.rsplit(".", 1)
        stack, _, inner = module.rpartition("h.")
        if not re.fullmatch(r"\d+\..*", inner):
            if module not in outer:
                unseen.append(name)
                continue
            ours = p.data.T if module in ("pooler", "score") else p.data
            np.testing.assert_array_equal(left.pop(f"{outer[module]}.{kind}"), ours)
            continue
        layer, _, inner = inner.partition(".")
        prefix, ours = f"{stacks[stack]}blk.{layer}.", p.data.T
        if inner == "attn.c_attn":
            for letter, rows in zip("qkv", np.split(ours, 3), strict=True):
                np.testing.assert_array_equal(left.pop(f"{prefix}attn_{letter}.{kind}"), rows)
        else:
            np.testing.assert_array_equal(left.pop(f"{prefix}{modules[inner]}.{kind}"), ours)
    return left, unseen


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoder_is_read_back_tensor_by_tensor(gguf, tmp_path, name):
    model = randomize(Encoder(OTHERS[name]), 0, "float32")
    tensors, metadata, kinds = written_as(gguf, tmp_path / "model.gguf", model, "float16" if name == "roberta" else "float32")
    if name == "roberta":
        assert {kinds[key] for key in ("position_embd.weight", "token_types.weight", "token_embd_norm.weight")} == {"F32"}
        assert kinds["blk.0.ffn_up.weight"] == "F16" and tensors["position_embd.weight"].shape == (12, 16)
        np.testing.assert_array_equal(tensors["position_embd.weight"], model.wpe.weight.data)
    else:
        left, unseen = check_blocks(model, tensors, ENCODER_MODULES, {k: v for k, v in ENCODER_OUTER.items() if k != "pooler"}, {"": ""})
        assert not left and all(name.startswith(("head.", "pooler.")) for name in unseen)
    assert metadata["general.architecture"] == "bert" and metadata["bert.pooling_type"] == gguf.PoolingType.MEAN
    expected = {"block_count": 2, "context_length": 12, "attention.head_count": 2, "feed_forward_length": 24, "attention.causal": False}
    assert {key: metadata[f"bert.{key}"] for key in expected} == expected
    assert metadata["bert.attention.layer_norm_epsilon"] == pytest.approx(OTHERS[name].layer_norm_epsilon)
    assert metadata["tokenizer.ggml.token_type_count"] == {"bert": 2, "roberta": 1}[name]


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_an_encoders_classifier_has_its_head_and_labels(gguf, tmp_path, name):
    model = randomize(EncoderClassifier(Encoder(OTHERS[name]), TOKENIZER, ["no", "perhaps", "yes"]), 0, "float32")
    tensors, metadata, _ = written_as(gguf, tmp_path / "model.gguf", model)
    left, unseen = check_blocks(model, tensors, ENCODER_MODULES, ENCODER_OUTER, {"": ""})
    assert not left and not unseen
    assert metadata["bert.pooling_type"] == gguf.PoolingType.RANK and metadata["bert.classifier.output_labels"] == ["no", "perhaps", "yes"]


@pytest.mark.parametrize("changes", [{}, {"gated": True, "activation": "gelu", "tie_word_embeddings": False, "output_scale": 1.0}])
def test_an_encoder_decoder_is_read_back_tensor_by_tensor(gguf, tmp_path, changes):
    model = randomize(Seq2Seq(dataclasses.replace(OTHERS["t5"], **changes)), 0, "float32")
    tensors, metadata, _ = written_as(gguf, tmp_path / "model.gguf", model)
    scale = model.config.output_scale  # llama.cpp does not multiply with it: the norm before does
    np.testing.assert_array_equal(tensors["dec.output_norm.weight"], model.decoder.ln_f.weight.data * np.float32(scale))
    tensors["dec.output_norm.weight"] = model.decoder.ln_f.weight.data
    outer = {"wte": "token_embd", "lm_head": "output", "encoder.ln_f": "enc.output_norm", "decoder.ln_f": "dec.output_norm"}
    outer |= {f"{stack}coder.relative": f"{stack}.blk.0.attn_rel_b" for stack in ("en", "de")}
    outer = {key: value.replace("en.", "enc.").replace("de.", "dec.") for key, value in outer.items()}
    left, unseen = check_blocks(model, tensors, T5_MODULES, outer, {"encoder.": "enc.", "decoder.": "dec."})
    assert not left and not unseen
    expected = {
        "block_count": 2, "decoder_block_count": 3, "attention.relative_buckets_count": 32, "decoder_start_token_id": 0,
        "attention.key_length": 4, "feed_forward_length": 24, "context_length": 12,
    }  # fmt: skip
    assert metadata["general.architecture"] == "t5" and {key: metadata[f"t5.{key}"] for key in expected} == expected


# ---- the tokenizer -----------------------------------------------------------------------------------------------------------------------


def test_our_tokenizer_is_read_back_token_by_token(gguf, tmp_path):
    _, _, metadata, _ = written(gguf, tmp_path / "model.gguf", small("gpt2"))
    get = lambda key: metadata[f"tokenizer.ggml.{key}"]  # noqa: E731
    n, end = TOKENIZER.n_vocab, TOKENIZER.eos_id
    assert (get("model"), get("pre")) == ("gpt2", "gpt-2")
    assert get("tokens")[:n] == [visible(TOKENIZER.token_bytes(id)) if id != end else "<|endoftext|>" for id in range(n)]
    assert get("tokens")[n:] == [f"[PAD{id}]" for id in range(n, 275)]
    control, unused, normal = gguf.TokenType.CONTROL, gguf.TokenType.UNUSED, gguf.TokenType.NORMAL
    assert get("token_type") == [control if id == end else normal if id < n else unused for id in range(275)]
    assert get("merges") == [f"{visible(left)} {visible(right)}" for left, right in TOKENIZER.merges]
    assert (get("bos_token_id"), get("eos_token_id"), get("add_bos_token"), get("add_eos_token")) == (end, end, False, False)
    assert "tokenizer.chat_template" not in metadata


@pytest.mark.parametrize("split", PRE_TOKENIZERS)
def test_other_rules_for_words_have_their_names(gguf, tmp_path, split):
    names = {"<|im_end|>": 270, "<|endoftext|>": 271, "<s>": 272}
    ids = {TOKENIZER.token_bytes(id): id for id in range(270) if id != TOKENIZER.eos_id}
    ids = {token: number for number, token in enumerate(ids)}
    special = {text: len(ids) + number for number, text in enumerate(names)}
    made = BPETokenizer(TOKENIZER.merges, ids=ids, special=special, added={"   ": len(ids) + 3}, eos="<|im_end|>", split=split)
    made.end_ids = (special["<|im_end|>"], special["<|endoftext|>"])
    made.set_roles({"bos_token": "<s>", "pad_token": "<|endoftext|>"}, dataclasses.replace(made.wrapping, start=(special["<s>"],)))
    _, _, metadata, _ = written(gguf, tmp_path / "model.gguf", small("llama", vocab_size=len(ids) + 3), tokenizer=made)
    found = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items() if key.startswith("tokenizer.ggml.")}
    parts = {"bos": "<s>", "eos": "<|im_end|>", "eot": "<|endoftext|>", "padding": "<|endoftext|>"}
    assert {part: found["tokens"][found[f"{part}_token_id"]] for part in parts} == parts
    assert found["pre"] == PRE_TOKENIZERS[split] and found["add_bos_token"] and len(found["tokens"]) == len(ids) + 3  # "   " has no row


def test_the_chat_template_is_kept(gguf, tmp_path):
    TOKENIZER.save(tmp_path)
    assert chat_template(load_tokenizer(tmp_path)) == ""
    several = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "{{ messages }}"}]
    for given_, expected in (("{% if x %}é", "{% if x %}é"), (several, "{{ messages }}")):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": given_}), encoding="utf-8")
        tokenizer = load_tokenizer(tmp_path)
        _, _, metadata, _ = written(gguf, tmp_path / f"{len(expected)}.gguf", small("gpt2"), tokenizer=tokenizer)
        assert chat_template(tokenizer) == metadata["tokenizer.chat_template"] == expected
    (tmp_path / "chat_template.jinja").write_text("of its own", encoding="utf-8")  # transformers 5 writes this file, and it counts
    assert chat_template(load_tokenizer(tmp_path)) == "of its own"


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (CharacterTokenizer.train(TEXT), r"a tokenizer of kind 'characters', expected byte-level BPE .*; train with --tokenizer bpe"),
        (WordTokenizer.train(TEXT, 20), r"a tokenizer of kind 'words', expected byte-level BPE .*, SentencePiece or word pieces"),
        (
            BPETokenizer(TOKENIZER.merges, split=NANOCHAT_SPLIT),
            r"words are cut by nanochat's pattern, expected .*: gpt-2, llama-bpe, qwen2",
        ),
        (
            BPETokenizer(TOKENIZER.merges, split=r"\s|\S+"),
            r"words are cut by the pattern '\\\\s\|\\\\S\+', expected a rule that llama.cpp has",
        ),
        (
            BPETokenizer(TOKENIZER.merges, ids={TOKENIZER.token_bytes(id): id for id in range(269)}, special={"Ġ": 269}, split=GPT2_SPLIT),
            r"two tokens are written 'Ġ', expected each text once",
        ),
    ],
)
def test_unknown_tokenizers_are_refused(gguf, tmp_path, tokenizer, message):
    with pytest.raises(ValueError, match=message):
        written(gguf, tmp_path / "model.gguf", small("gpt2", vocab_size=300), tokenizer=tokenizer)
    assert not list(tmp_path.iterdir())


# ---- what is refused ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (small("opt"), "a model of the family opt, expected one of gpt2, llama, .*; llama.cpp has no such architecture"),
        (small("nanochat"), "a model of the family nanochat, expected one of gpt2, llama"),
        (small("llama", positions="alibi", rope_theta=1e4), "none of gpt2, .* has norm 'rms', positions 'alibi'.*, expected a shape of gpt2, llama"),
        (small("gpt2", activation="relu"), "activation 'relu', expected 'gelu'; llama.cpp computes no other for gpt2"),
        (small("qwen2", head_size=4), "head_size 4, expected n_embd / n_head, 8"),
        (CONFIGS["mistral"], "window 5, expected none, or at least n_positions, 16"),
        (small("qwen3", rope_scaling=LLAMA3), "rope_type 'llama3', expected default or linear"),
        (small("qwen3", attention_output_bias=True, qkv_bias=True), "attention_output_bias True, expected False"),
        (small("gemma2", logit_softcap=None), "logit_softcap None, expected a number; llama.cpp computes no other for gemma2"),
        (small("gemma3_text", attention_scale=16**-0.5), r"attention_scale 0.25, expected 1 / sqrt\(8\)"),
        (dataclasses.replace(OTHERS["bert"], activation="relu"), "activation 'relu', expected 'gelu_exact' or 'gelu'; llama.cpp computes no other for bert"),
        (dataclasses.replace(OTHERS["bert"], norm_position="pre"), "none of bert, roberta has norm_position 'pre', .*, expected a shape of gpt2"),
        (dataclasses.replace(OTHERS["t5"], relative_distance=64), "relative_distance 64, expected 128; llama.cpp computes no other for t5"),
        (dataclasses.replace(OTHERS["t5"], activation="silu"), "activation 'silu', expected 'relu' where gated is False"),
        (Seq2SeqConfig.preset("opus-mt"), "a model of the family marian, expected one of gpt2, .*; llama.cpp has no such architecture"),
        (small("gemma3_text", rope_local_theta=None, rope_scaling={"rope_type": "linear", "factor": 2.0}), "rope_scaling .* in blocks with a window"),
    ],
)  # fmt: skip
def test_models_that_llama_cpp_does_not_compute_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        target_of(config)


def test_families_are_llama_cpps(gguf):
    for model_type, target in TARGETS.items():
        config = OTHERS[model_type] if model_type in OTHERS else small(model_type)
        assert target_of(config)[1] == target and target.arch in gguf.MODEL_ARCH.__members__
    assert {family.model_type for family in FAMILIES} - TARGETS.keys() == {"opt", "nanochat", "marian"}
    assert not {"OPT", "NANOCHAT", "MARIAN"} & gguf.MODEL_ARCH.__members__.keys()


@settings(max_examples=25)
@given(config=decoders(), name=st.sampled_from(KNOWN), changed=st.sets(st.sampled_from(["activation", "window", "rope_scaling", "qkv_bias", "tie_word_embeddings", "n_inner"])))  # fmt: skip
def test_any_model_is_written_completely_or_refused(gguf_or_skip, tmp_path_factory, config, name, changed):
    try:
        config = dataclasses.replace(small(name), **{field: getattr(config, field) for field in changed}, vocab_size=275)
        target = target_of(config)[1]
    except ValueError as error:
        assert "expected" in str(error)
        assume(False)
    path = tmp_path_factory.mktemp("drawn") / "model.gguf"
    model, tensors, _, _ = written(gguf_or_skip, path, config)
    left = check_tensors(model, tensors, permuted=target.neighbors)
    assert left.keys() <= {"output.weight", "rope_freqs.weight"} | {f"blk.{n}.attn_{m}.bias" for n in range(2) for m in ("qkv", "output")}


@pytest.fixture(scope="module")
def gguf_or_skip():
    return pytest.importorskip("gguf", reason="needs the extra gguf")


# ---- the command -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    randomize(GPT(small("gpt_neox")), 0, "float32").save_pretrained(tmp_path / "model", TOKENIZER)
    return tmp_path / "model"


def test_the_command_writes_a_file_and_never_over_one(gguf, checkpoint, tmp_path, capsys):
    output = tmp_path / "model.gguf"
    assert main(["export", str(checkpoint), str(output), "--dtype", "float16"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{output}: gpt_neox as gptneox, 28 tensors, float16, {output.stat().st_size:,} bytes; ")
    assert "tokens cut as gpt-2, no chat template" in said and "GELU with tanh" in said
    assert read(gguf, output)[1]["general.name"] == "model"
    before = output.read_bytes()
    with pytest.raises(FileExistsError, match=r"model.gguf: exists, expected a new file; delete it, or choose another name"):
        export(checkpoint, output)
    assert output.read_bytes() == before
    with pytest.raises(ValueError, match="dtype 'float8', expected one of float32, float16, bfloat16"):
        export(checkpoint, tmp_path / "other.gguf", dtype="float8")


def test_the_command_writes_a_directory_in_another_dtype(checkpoint, tmp_path, capsys):
    output = tmp_path / "half"
    arguments = ["export", str(checkpoint), str(output), "--dtype", "bfloat16", "--max-shard-size", "20KB"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--max-shard-size 20KB, expected it with --format safetensors; a GGUF file is one" in capsys.readouterr().err
    assert not output.exists() and main([*arguments, "--format", "safetensors"]) == 0
    sizes = [path.stat().st_size for path in output.glob("*.safetensors")]
    assert capsys.readouterr().out == f"{output}: gpt_neox, bfloat16, {sum(sizes):,} bytes of weights in {len(sizes)} files\n"
    assert len(sizes) > 1 and sum(sizes) < 0.6 * (checkpoint / "model.safetensors").stat().st_size
    expected = GPT.from_pretrained(checkpoint)
    for (name, p), (_, q) in zip(expected.named_parameters(), GPT.from_pretrained(output).named_parameters(), strict=True):
        np.testing.assert_allclose(q.numpy(), p.numpy(), rtol=2**-8, err_msg=name)
    assert load_tokenizer(output).n_vocab == TOKENIZER.n_vocab
    with pytest.raises(FileExistsError, match=r"half: exists, expected a new directory; delete it, or choose another name"):
        main([*arguments, "--format", "safetensors"])


def test_without_the_library_the_extra_is_named(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ImportError, match=r'gguf is missing, expected .*; pip install "tinygpt\[gguf\]"'):
        export(checkpoint, tmp_path / "model.gguf")


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_the_command_writes_encoders_and_encoder_decoders(gguf, tmp_path, capsys, name):
    model = randomize((Encoder if name == "bert" else Seq2Seq)(OTHERS[name]), 0, "float32")
    model.save_pretrained(tmp_path / "model", TOKENIZER)
    assert main(["export", str(tmp_path / "model"), str(tmp_path / "model.gguf"), "--pooling", "cls"]) == 0
    assert f"model.gguf: {name} as {name}, " in (said := capsys.readouterr().out) and ("GELU with tanh" in said) == (name == "bert")
    tensors, metadata, _ = read(gguf, tmp_path / "model.gguf")
    np.testing.assert_array_equal(tensors["token_embd.weight"], model.wte.weight.data)
    assert name == "t5" or metadata["bert.pooling_type"] == gguf.PoolingType.CLS
    with pytest.raises(ValueError, match="pooling 'sum', expected one of none, mean, cls"):
        export(tmp_path / "model", tmp_path / "other.gguf", pooling="sum")


def test_a_classifier_that_looks_elsewhere_is_refused(gguf, tmp_path):
    EncoderClassifier(Encoder(OTHERS["bert"]), TOKENIZER, ["no", "yes"], pooling="mean").save_pretrained(tmp_path / "model", TOKENIZER)
    with pytest.raises(
        ValueError, match=r"a classifier that looks at the mean of all tokens, expected the first one, .* with --pooling first"
    ):
        export(tmp_path / "model", tmp_path / "model.gguf")


def test_what_is_no_language_model_is_refused(gguf, tmp_path):
    from tinygpt.finetuning.classifier import GPTClassifier

    GPTClassifier(GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, **SIZES)), TOKENIZER, ["no", "yes"]).save_pretrained(
        tmp_path / "model", TOKENIZER
    )
    with pytest.raises(ValueError, match="a classifier, expected a language model"):
        export(tmp_path / "model", tmp_path / "model.gguf")
