"""Reading and writing GPT-2 weights: every format, every way in which a file can be wrong."""

import dataclasses
import json
import re
import struct
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import autograd as ag
from autograd import backend
from tests.strategies import seeds
from tests.tinygpt.helpers import decoders, load, peak_of_loading, randomize, weights
from tinygpt import GPT, GPTConfig
from tinygpt.data.tokenizer import BPETokenizer, CharacterTokenizer
from tinygpt.encoder_config import EncoderConfig
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.models import Encoder, Seq2Seq
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.storage import safetensors
from tinygpt.storage.safetensors import INDEX, read_into, read_safetensors_header
from tinygpt.weights import hub
from tinygpt.weights.hub import WEIGHTS, locate
from tinygpt.weights.pretrained import StoredModel, canonical_name

TINY = GPTConfig(n_layer=2, n_head=2, n_embd=16, n_positions=12, vocab_size=19)


def saved(directory, config=TINY, seed=3):
    """A saved model, its tensors as found in the file, and its weights."""
    model = GPT(config, seed=seed)
    for _, p in model.named_parameters():  # biases and norms, too, are numbers of their own
        p.data += backend.to_device(np.random.default_rng(p.size).standard_normal(p.shape, dtype=np.float32) * 0.1)
    model.save_pretrained(directory)
    return load_file(directory / WEIGHTS), weights(model)


def header_of(path):
    raw = path.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def write(path, header, data):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)


# ---- safetensors: the format -------------------------------------------------------------------------------------------------------------

DTYPES = {"<f8": np.float64, "<f4": np.float32, "<f2": np.float16}


@given(
    shapes=st.lists(st.one_of(st.tuples(st.integers(0, 9)), st.tuples(st.integers(0, 9), st.integers(0, 9))), max_size=5),
    dtype=st.sampled_from(sorted(DTYPES)),
    seed=seeds,
)
def test_any_file_of_the_library_is_read_as_it_was(tmp_path_factory, shapes, dtype, seed):
    rng = np.random.default_rng(seed)
    tensors = {f"t{i}": rng.standard_normal(shape).astype(dtype) for i, shape in enumerate(shapes)}
    path = tmp_path_factory.mktemp("any") / WEIGHTS
    save_file(tensors, path)
    found = read_safetensors_header(path)
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        out = np.full(tensor.shape, np.nan, dtype=dtype)
        read_into(tensor, out)
        np.testing.assert_array_equal(out, tensors[name])


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    chunk=st.integers(1, 200),
    transposed=st.booleans(),
    kind=st.sampled_from(["F32", "F16", "BF16"]),
    seed=seeds,
)
def test_every_way_to_read_gives_the_same_numbers(tmp_path_factory, shape, chunk, transposed, kind, seed):
    """Straight, widened or transposed, in chunks of any size."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    bits = values.view(np.uint32)
    bits &= 0xFFFF0000  # what bfloat16 can hold
    if kind == "F16":
        values = values.astype(np.float16).astype(np.float32)
    stored = (values.view(np.uint32) >> 16).astype("<u2") if kind == "BF16" else values.astype(safetensors.FLOATS[kind])
    path = tmp_path_factory.mktemp("ways") / "numbers"
    path.write_bytes(b"junk" + stored.tobytes())
    tensor = safetensors.StoredTensor(path, 4, kind, shape, transposed)
    out = np.full(tensor.wanted_shape, np.nan, dtype=np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors, "CHUNK_BYTES", chunk)
        read_into(tensor, out)
    np.testing.assert_array_equal(out, values.T if transposed else values)


def test_half_precision_is_widened(tmp_path):
    tensors, _ = saved(tmp_path)
    save_file({name: array.astype(np.float16) for name, array in tensors.items()}, tmp_path / WEIGHTS)
    for name, array in weights(GPT.from_pretrained(tmp_path)).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, tensors[name].astype(np.float16))


def test_bfloat16_is_widened(tmp_path):
    tensors, _ = saved(tmp_path)
    header, data = {}, b""
    for name, array in tensors.items():
        half = (np.ascontiguousarray(array).view(np.uint32) >> 16).astype("<u2").tobytes()
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(half)]}
        data += half
    write(tmp_path / WEIGHTS, header, data)
    for name, array in weights(GPT.from_pretrained(tmp_path)).items():
        np.testing.assert_allclose(array, tensors[name], rtol=2**-7)
        assert not (np.ascontiguousarray(array).view(np.uint32) & 0xFFFF).any()


# ---- what is written ---------------------------------------------------------------------------------------------------------------------


def as_bfloat16(array):
    """The nearest number whose lower 16 bits are 0, of two equally near ones the even; in float64."""
    below = (np.ascontiguousarray(array).view(np.uint32) & 0xFFFF0000).view(np.float32)
    above = (below.view(np.uint32) + np.uint32(0x10000)).view(np.float32)
    near, far = (np.abs(array.astype(np.float64) - end.astype(np.float64)) for end in (below, above))
    even = (below.view(np.uint32) >> 16) % 2 == 0
    return np.where((near < far) | ((near == far) & even), below, above)


ROUNDED = {"float32": np.asarray, "float16": lambda array: array.astype(np.float16).astype(np.float32), "bfloat16": as_bfloat16}


def weight_files(directory):
    return {path.name for path in directory.iterdir() if "safetensors" in path.name}


SMALL = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_inner": 24, "vocab_size": 19}
GEMMA = {
    "n_kv_head": 1,
    "head_size": 8,
    "embedding_scale": 4.0,
    "attention_scale": 8**-0.5,
    "window": 5,
    "window_pattern": "SL",
    "n_layer": 2,
}
KINDS = {
    "gpt2": lambda: GPT(TINY, seed=0),
    "no bias": lambda: GPT(dataclasses.replace(TINY, qkv_bias=False), seed=0),
    "gpt_neox": lambda: GPT(GPTConfig.preset("pythia-14m", **SMALL), seed=0),
    "gemma3": lambda: GPT(GPTConfig.preset("gemma-3-270m", **SMALL | GEMMA), seed=0),
    "encoder": lambda: Encoder(EncoderConfig.preset("roberta-base", **SMALL), seed=0),
    "encoder-decoder": lambda: Seq2Seq(Seq2SeqConfig.preset("t5-small", **SMALL, output_scale=0.25), seed=0),
    "classifier": lambda: GPTClassifier(GPT(TINY, seed=0), CharacterTokenizer.train("abc"), ["yes", "no"]),
}


@pytest.mark.parametrize("kind", KINDS)
@given(dtype=st.sampled_from(sorted(ROUNDED)), size=st.sampled_from([None, 1, "0.7KB", "2kb", 5000, "1GB"]))
def test_any_dtype_and_any_size_of_files_is_read_back(tmp_path_factory, kind, dtype, size):
    directory, model = tmp_path_factory.mktemp("saved"), randomize(KINDS[kind](), 1, "float32")
    model.save_pretrained(directory, dtype=dtype, max_shard_size=size)
    tensors, files = safetensors.read_headers(directory), weight_files(directory)
    expected = {name: ROUNDED[dtype](array) for name, array in weights(model).items()}
    np.testing.assert_equal(weights(type(model).from_pretrained(directory)), expected)
    fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    assert fields["dtype"] == fields["torch_dtype"] == dtype and {t.dtype for t in tensors.values()} == {safetensors._NAMES[dtype]}
    total = sum(np.prod(t.shape, dtype=int) for t in tensors.values()) * safetensors.ITEM_BYTES[safetensors._NAMES[dtype]]
    most = {None: total, "0.7KB": 700, "2kb": 2000, "1GB": 10**9}.get(size, size)
    if total <= most:
        assert files == {WEIGHTS}
        return
    index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    assert index["metadata"] == {"total_size": total} and index["weight_map"].keys() == tensors.keys()
    n = len(files) - 1
    assert files == {INDEX} | {f"model-{i:05d}-of-{n:05d}.safetensors" for i in range(1, n + 1)} == {INDEX, *index["weight_map"].values()}
    held = [read_safetensors_header(directory / file) for file in sorted(files - {INDEX})]
    sizes = [
        sum(np.prod(t.shape, dtype=int) for t in file.values()) * total // sum(np.prod(t.shape, dtype=int) for t in tensors.values())
        for file in held
    ]
    assert all(n_bytes <= most or len(file) == 1 for n_bytes, file in zip(sizes, held, strict=True)) and sum(sizes) == total
    assert size == 1 or n < len(tensors)  # small ones share a file


@given(bits=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50))
def test_rounding_to_bfloat16(bits):
    array = np.array(bits, np.uint32).view(np.float32)
    rounded = np.left_shift(safetensors._to_bfloat16(array), 16, dtype=np.uint32).view(np.float32)
    np.testing.assert_array_equal(np.isnan(rounded), np.isnan(array))
    within = np.abs(array) <= safetensors._LARGEST["bfloat16"]  # NaN is not
    np.testing.assert_array_equal(rounded[within], as_bfloat16(array[within]))
    np.testing.assert_array_equal(np.signbit(rounded[within]), np.signbit(array[within]))


def test_what_was_read_in_sixteen_bits_is_written_back_bit_by_bit(tmp_path):
    GPT(TINY, seed=0).save_pretrained(tmp_path / "a", dtype="bfloat16")
    GPT.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b", dtype="bfloat16")
    GPT.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "c")
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in "ac"]
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes() and 1.5 < sizes[1] / sizes[0] < 2


@pytest.mark.parametrize(
    ("dtype", "number", "fix"), [("float16", -65505.0, "take float32 or bfloat16"), ("bfloat16", 3.4e38, "take float32")]
)
def test_a_number_beyond_the_dtype_is_named_before_anything_is_written(tmp_path, dtype, number, fix):
    saved(tmp_path, GPTConfig.preset("pythia-14m", **SMALL))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = GPT.from_pretrained(tmp_path)
    model.h[0].mlp.c_fc.weight.data[3, 5] = number
    found = re.escape(f"gpt_neox.layers.0.mlp.dense_h_to_4h.weight: {abs(number):g}, expected at most ") + rf"\S+ for {dtype}; {fix}$"
    with pytest.raises(ValueError, match=found):
        model.save_pretrained(tmp_path, dtype=dtype)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    model.save_pretrained(tmp_path)
    assert weights(GPT.from_pretrained(tmp_path))["h.0.mlp.c_fc.weight"][3, 5] == np.float32(number)


def test_a_save_leaves_no_files_of_an_earlier_one(tmp_path):
    (tmp_path / "model-card.safetensors").touch()  # somebody else's
    for seed, size in enumerate(["1KB", "4KB", None, "2KB", "1GB"]):
        model = GPT(TINY, seed=seed)
        model.save_pretrained(tmp_path, max_shard_size=size)
        written = weight_files(tmp_path) - {"model-card.safetensors"}
        assert written == (
            {WEIGHTS} if size in (None, "1GB") else {INDEX, *json.loads((tmp_path / INDEX).read_bytes())["weight_map"].values()}
        )
        np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), weights(model))
    assert (tmp_path / "model-card.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "bfloat"}, r"dtype: 'bfloat', expected one of float32, float16, bfloat16; did you mean 'bfloat16'"),
        ({"dtype": "float64"}, r"dtype: 'float64', expected one of"),
        ({"max_shard_size": "5 apples"}, r"max_shard_size: '5 apples', expected a number of bytes, or of TB, GB, MB or KB, above 0; for instance \"5GB\""),
        ({"max_shard_size": "5"}, r"max_shard_size: '5', expected"),
        ({"max_shard_size": 0}, r"max_shard_size: 0, expected"),
        ({"max_shard_size": True}, r"max_shard_size: True, expected"),
        ({"max_shard_size": "0.0001KB"}, r"max_shard_size: '0.0001KB', expected"),
    ],
)  # fmt: skip
def test_dtypes_and_sizes_that_are_none_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        GPT(TINY).save_pretrained(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(backend.name == "cupy", reason="counts the host's memory")
@pytest.mark.parametrize(
    ("preset", "dtype"), [("pythia-14m", "float32"), ("pythia-14m", "bfloat16"), ("smollm2-135m", "float16"), ("gpt2", "bfloat16")]
)
def test_writing_needs_a_tensor_twice_not_the_weights(tmp_path, monkeypatch, preset, dtype):
    monkeypatch.setattr(safetensors, "CHUNK_BYTES", 2**16)
    sizes = {"n_layer": 16, "n_head": 4, "n_embd": 128, "n_inner": 512, "n_positions": 64, "vocab_size": 500}
    model = GPT(GPTConfig.preset(preset, **sizes | ({"n_kv_head": 2} if preset == "smollm2-135m" else {})))
    tracemalloc.start()
    try:
        model.save_pretrained(tmp_path, dtype=dtype, max_shard_size="2MB")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.1 * 4 * model.n_parameters()


# ---- names, shards, other programs' files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["transformer.", "_orig_mod.", "module.", "module._orig_mod.transformer."])
def test_a_wrappers_prefix_is_ignored(tmp_path, prefix):
    tensors, expected = saved(tmp_path)
    save_file({prefix + name: array for name, array in tensors.items()}, tmp_path / WEIGHTS)
    np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), expected)
    assert canonical_name(prefix + "h.0.mlp.c_fc.bias") == "h.0.mlp.c_fc.bias"


def test_attentions_triangle_is_no_weight(tmp_path):
    tensors, expected = saved(tmp_path)
    tensors |= {"h.0.attn.bias": np.ones((1, 1, 12, 12), np.uint8), "h.1.attn.masked_bias": np.array(-1e4, np.float32)}
    save_file(tensors, tmp_path / WEIGHTS)
    np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), expected)


def shard(directory, tensors, n=3):
    """The tensors over n files with an index, as Hugging Face writes large models."""
    names = {name: f"model-{i % n + 1:05d}-of-{n:05d}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(names.values()):
        save_file({name: tensors[name] for name in tensors if names[name] == file}, directory / file)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}), encoding="utf-8")
    (directory / WEIGHTS).unlink()
    return names


def test_shards_are_read_through_their_index(tmp_path):
    tensors, expected = saved(tmp_path)
    shard(tmp_path, tensors)
    np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), expected)


def test_an_index_that_does_not_fit_its_shards_is_named(tmp_path):
    tensors, _ = saved(tmp_path)
    names = shard(tmp_path, tensors)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names | {"h.9.x": names["wte.weight"]}}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"lacks h.9.x, expected the tensors that model.safetensors.index.json lists"):
        GPT.from_pretrained(tmp_path)
    for wrong in ("../outside.safetensors", "absent.safetensors"):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"wte.weight": wrong}}), encoding="utf-8")
        with pytest.raises(ValueError, match=r"names '.*', expected a file next to it"):
            GPT.from_pretrained(tmp_path)
    for content, found in (("{}", "no weight_map from names to files"), ("[]", "index.json: a JSON list, expected an object")):
        (tmp_path / INDEX).write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=found):
            GPT.from_pretrained(tmp_path)


def test_a_tied_models_file_may_hold_the_head_if_it_is_the_same(tmp_path):
    tensors, expected = saved(tmp_path)
    save_file(tensors | {"lm_head.weight": tensors["wte.weight"]}, tmp_path / WEIGHTS)
    np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), expected)
    save_file({"lm_head.weight" if name == "wte.weight" else name: array for name, array in tensors.items()}, tmp_path / WEIGHTS)
    np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), expected)
    save_file(tensors | {"lm_head.weight": tensors["wte.weight"] + 1}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"lm_head.weight differs from wte.weight, expected equal ones .*tie_word_embeddings\": false"):
        GPT.from_pretrained(tmp_path)


LINEAR = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")


@pytest.mark.parametrize("bias", [True, False])
def test_nanogpts_names_and_orientation(tmp_path, bias):
    tensors, expected = saved(tmp_path)
    nanogpt = {f"_orig_mod.transformer.{n}": np.ascontiguousarray(a.T) if n.endswith(LINEAR) else a for n, a in tensors.items()}
    nanogpt["_orig_mod.lm_head.weight"] = tensors["wte.weight"]
    if not bias:
        nanogpt = {name: array for name, array in nanogpt.items() if not name.endswith(".bias")}
        expected = {name: array * (not name.endswith(".bias")) for name, array in expected.items()}
    save_file(nanogpt, tmp_path / WEIGHTS)
    arguments = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 12, "vocab_size": 19, "dropout": 0.2, "bias": bias}
    (tmp_path / "config.json").write_text(json.dumps(arguments), encoding="utf-8")
    model = GPT.from_pretrained(tmp_path)
    np.testing.assert_equal(weights(model), expected)
    assert model.config.n_positions == 12 and model.config.dropout == 0.2


def llm_c_file(path, tensors, version=3, magic=20240326):
    """llm.c's layout, with 5 rows of padding after the vocabulary."""
    header = np.zeros(256, "<i4")
    header[:8] = magic, version, 12, 19, 2, 2, 16, 24
    parts = [np.concatenate([tensors["wte.weight"], np.full((5, 16), 7, np.float32)]), tensors["wpe.weight"]]
    for part in ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"):
        for kind in ("weight", "bias"):
            parts += [tensors[f"h.{i}.{part}.{kind}"].T for i in range(2)]
    parts += [tensors["ln_f.weight"], tensors["ln_f.bias"]]
    numbers = np.concatenate([np.ascontiguousarray(p).reshape(-1) for p in parts])
    if version == 5:
        numbers = (numbers.view(np.uint32) >> 16).astype("<u2")
    path.write_bytes(header.tobytes() + numbers.tobytes())


def test_llm_c_files(tmp_path):
    tensors, expected = saved(tmp_path)
    llm_c_file(tmp_path / "gpt2_124M.bin", tensors)
    model = GPT.from_pretrained(tmp_path / "gpt2_124M.bin")
    assert model.config == TINY
    np.testing.assert_equal(weights(model), expected)
    llm_c_file(tmp_path / "half.bin", tensors, version=5)
    for name, array in weights(GPT.from_pretrained(tmp_path / "half.bin")).items():
        np.testing.assert_allclose(array, expected[name], rtol=2**-7)


def test_llm_c_files_of_another_kind_are_named(tmp_path):
    tensors, _ = saved(tmp_path)
    path = tmp_path / "x.bin"
    llm_c_file(path, tensors, version=1)
    with pytest.raises(ValueError, match=r"x.bin: llm.c's version 1, expected 3 \(float32\) or 5"):
        GPT.from_pretrained(path)
    llm_c_file(path, tensors, magic=1)
    with pytest.raises(ValueError, match=r"x.bin: begins with 1, expected 20240326"):
        GPT.from_pretrained(path)
    llm_c_file(path, tensors)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"x.bin: [\d,]+ bytes, expected [\d,]+ for GPTConfig"):
        GPT.from_pretrained(path)


# ---- what is refused ---------------------------------------------------------------------------------------------------------------------


def test_missing_unexpected_and_misshapen_are_listed_together_and_not_endlessly(tmp_path):
    tensors, _ = saved(tmp_path)
    for i in range(2):
        for name in [name for name in tensors if name.startswith(f"h.{i}.mlp")]:
            tensors[f"h.{i}.ffn." + name.rpartition("mlp.")[2]] = tensors.pop(name)
    tensors["wpe.weight"] = np.zeros((3, 16), np.float32)
    tensors["extra"] = np.zeros(4, np.int32)
    tensors |= {f"more.{i}": np.zeros(1, np.float32) for i in range(9)}
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ValueError) as caught:
        GPT.from_pretrained(tmp_path)
    message = str(caught.value)
    assert "missing h.0.mlp.c_fc.bias (64,), h.0.mlp.c_fc.weight (16, 64)" in message
    assert "unexpected extra (4,), h.0.ffn.c_fc.bias (64,)" in message and "and 10 more" in message
    assert "wpe.weight of shape (3, 16) instead of (12, 16)" in message


def test_other_dtypes_are_named(tmp_path):
    tensors, _ = saved(tmp_path)
    save_file(tensors | {"wpe.weight": tensors["wpe.weight"].astype(np.int32)}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"wpe.weight of dtype I32, expected the tensors of .* as F64, F32, F16, BF16"):
        GPT.from_pretrained(tmp_path)


def test_one_tensor_under_two_names_is_refused(tmp_path):
    tensors, _ = saved(tmp_path)
    save_file(tensors | {"transformer.wpe.weight": tensors["wpe.weight"]}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match=r"wpe.weight under two names"):
        GPT.from_pretrained(tmp_path)


@given(data=st.data())
def test_a_truncated_or_tampered_file_is_one_clear_error(tmp_path_factory, data):
    """Cut anywhere, longer by any bytes, or with any field of its header changed: never accepted, never another kind of error."""
    path = tmp_path_factory.mktemp("tampered") / WEIGHTS
    save_file({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}, path)
    raw = path.read_bytes()
    header, numbers = header_of(path)
    how = data.draw(st.sampled_from(["cut", "longer", "field"]))
    if how == "cut":
        path.write_bytes(raw[: data.draw(st.integers(0, len(raw) - 1))])
    elif how == "longer":
        path.write_bytes(raw + bytes(data.draw(st.integers(1, 9))))
    else:
        name = data.draw(st.sampled_from(["a", "b"]))
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", None]))
        value = data.draw(
            st.one_of(st.none(), st.text(max_size=3), st.lists(st.integers(-5, 50), max_size=3), st.floats(), st.just([True, 2]))
        )
        if key is None:
            header[name] = value
        else:
            header[name][key] = value
        if header == header_of(path)[0]:
            return
        write(path, header, numbers)
    with pytest.raises(ValueError, match=r"model.safetensors: .*, expected an intact safetensors file; fetch or save it again"):
        read_safetensors_header(path)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[1]", "a header that is a JSON list"),
        (b"{", "a header that is no JSON"),
        (b"\xff\xfe", "a header that is no JSON"),
        (b"[" * 100_000, "a header that is no JSON"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', "occurs twice"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "inside the"),
        ({"a": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}}, "beyond the end of what precedes it"),
        ({"a": {"dtype": "F4", "shape": [1], "data_offsets": [0, 4]}}, r"a: .*F4"),
        ({"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}}, r"a: "),
        ({"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}, r"a: "),
    ],
)  # fmt: skip
def test_a_tampered_header_says_what_is_wrong(tmp_path, header, message):
    write(tmp_path / WEIGHTS, header, bytes(4))
    with pytest.raises(ValueError, match=message):
        read_safetensors_header(tmp_path / WEIGHTS)


def test_a_header_longer_than_the_file_is_not_read(tmp_path):
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ValueError, match=r"10 bytes, of which the header claims 1,152,921,504,606,846,976"):
        read_safetensors_header(tmp_path / WEIGHTS)


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    saved(tmp_path)
    tensor = read_safetensors_header(tmp_path / WEIGHTS)["wte.weight"]
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[: tensor.start + 7])
    with pytest.raises(ValueError, match=r"ends [\d,]+ bytes early"):
        read_into(tensor, np.empty(tensor.shape, np.float32))


@pytest.mark.parametrize(("name", "start"), [("pytorch_model.bin", b"PK\x03\x04"), ("ckpt.pt", b"\x80\x02"), ("model.pth", b"PK")])
def test_pickles_are_refused_with_a_way_to_convert_them(tmp_path, name, start):
    saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    (tmp_path / name).write_bytes(start + bytes(2000))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=rf"{name}: pickled weights, expected model.safetensors, because .* python -c \"import torch"):
            GPT.from_pretrained(path)


def test_a_directory_without_weights_is_named(tmp_path):
    saved(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors, expected a checkpoint directory"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "lama"}, r"model_type 'lama', expected one of gpt2, llama, .*; lama: docs/checkpoints.md says what loads"),
        ({"activation_function": "tanh"}, r"activation_function 'tanh', expected one of gelu_new, .*; this variant is not supported"),
        ({"scale_attn_by_inverse_layer_idx": True}, r"scale_attn_by_inverse_layer_idx True, expected False"),
        ({"n_inner": "17"}, r"n_inner: '17', expected int"),
        ({"model_type": "tinygpt"}, r"options None, expected those that save_pretrained wrote"),
        ({"model_type": "tinygpt", "options": {"norms": "rms"}}, r"unknown key 'norms', .*did you mean 'norm'"),
        ({"model_type": "tinygpt", "options": {"n_head": 3}}, r"options \{'n_head': 3\}, expected those that save_pretrained wrote"),
        ({"n_head": 3}, r"n_embd 16 with n_head 3, expected n_head to divide n_embd"),
    ],
)
def test_another_architecture_is_named(tmp_path, change, message):
    saved(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(fields | change), encoding="utf-8")
    with pytest.raises((ValueError, TypeError), match=message):
        StoredModel(tmp_path)


# ---- models beyond GPT-2 -----------------------------------------------------------------------------------------------------------------


@given(config=decoders(), seed=seeds, dropout=st.sampled_from([0.0, 0.1]))
def test_a_model_with_any_options_comes_back_as_it_was(tmp_path_factory, config, seed, dropout):
    config, directory = dataclasses.replace(config, dropout=dropout), tmp_path_factory.mktemp("model")
    model = randomize(GPT(config), seed, "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(directory)
    loaded = GPT.from_pretrained(directory).eval()
    assert (loaded.config.options(), repr(loaded.config)) == (config.options(), repr(config))
    np.testing.assert_equal(weights(loaded), weights(model))
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (2, config.n_positions))
    with ag.no_grad():
        np.testing.assert_array_equal(backend.to_host(loaded(ids).data), backend.to_host(model(ids).data))


def test_what_gpt2s_format_cannot_say_is_saved_as_tinygpt_with_a_warning(tmp_path):
    config = dataclasses.replace(TINY, positions="rotary", norm="rms")
    with pytest.warns(
        UserWarning,
        match=r"saved with model_type 'tinygpt', which transformers cannot read: none of gpt2, llama, .* has norm 'rms', positions 'rotary', taken together",
    ):
        GPT(config).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert fields["model_type"] == "tinygpt" and fields["architectures"] == ["TinyGPTForCausalLM"]
    assert fields["options"] == {"norm": "rms", "positions": "rotary"} and fields["n_embd"] == 16 and fields["resid_pdrop"] == 0.0


def test_matrices_of_ours_are_never_taken_for_nanogpts(tmp_path):
    """c_attn of shape (3 n, n) is turned in nanoGPT's files only."""
    config = GPTConfig(n_layer=1, n_head=1, n_embd=18, head_size=2, n_positions=4, vocab_size=9, positions="none")
    model = randomize(GPT(config), 0, "float32")
    assert model.h[0].attn.c_attn.weight.shape == (18, 6)
    with pytest.warns(UserWarning, match="model_type 'tinygpt'"):
        model.save_pretrained(tmp_path)
    np.testing.assert_equal(weights(GPT.from_pretrained(tmp_path)), weights(model))


@pytest.mark.parametrize(("name", "ours"), [("relu", "relu"), ("gelu", "gelu_exact"), ("swish", "silu"), ("gelu_pytorch_tanh", "gelu")])
def test_gpt2s_with_other_activations_and_widths_are_read_and_written(tmp_path, name, ours):
    config = dataclasses.replace(TINY, activation=ours, n_inner=24)
    _, expected = saved(tmp_path, config)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    assert fields["model_type"] == "gpt2" and fields["n_inner"] == 24
    path.write_text(json.dumps(fields | {"activation_function": name}), encoding="utf-8")
    loaded = GPT.from_pretrained(tmp_path)
    assert loaded.config == config
    np.testing.assert_equal(weights(loaded), expected)


def test_a_vocabulary_that_does_not_fit_the_tokenizer_is_refused(tmp_path):
    tokenizer = BPETokenizer.train("abab", 258)
    GPT(TINY).save_pretrained(tmp_path, tokenizer)
    with pytest.raises(ValueError, match=r"a tokenizer of 258 tokens, expected at most 19, the model's vocabulary"):
        load(tmp_path)


# ---- names on the hub --------------------------------------------------------------------------------------------------------------------


def test_a_mistyped_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_fetch", lambda name: pytest.fail(f"asked the hub for {name}"))
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    for name in ("nothing", "runs/nothing", "a/b/c", "/absent/x", "./x", "../x", "~/x"):
        with pytest.raises(FileNotFoundError, match=r"no such file or directory, expected weights on this machine, gpt2, "):
            locate(name)


def test_names_are_fetched(tmp_path, monkeypatch):
    asked = []

    class Hub:
        @staticmethod
        def snapshot_download(repository, allow_patterns):
            asked.append(repository)
            assert {"config.json", INDEX, "tokenizer.json", "additional_chat_templates/*.jinja"} <= set(allow_patterns)
            if repository == "owner/gone":
                raise RuntimeError("404: no such repository\nmore")
            return str(tmp_path)

    _, expected = saved(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub)
    np.testing.assert_equal(weights(GPT.from_pretrained("gpt2")), expected)
    assert locate("gpt2-xl") == locate("owner/name") == tmp_path
    assert asked == ["openai-community/gpt2", "openai-community/gpt2-xl", "owner/name"]
    with pytest.raises(
        ConnectionError, match=r"owner/gone: not fetched \(404: no such repository\), expected the hub to answer; .*hf download"
    ):
        locate("owner/gone")


def test_without_the_extra_the_message_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        ImportError, match=r"openai-community/gpt2: huggingface_hub is not installed, .*pip install 'tinygpt\[hub\]', or fetch"
    ):
        locate("gpt2")


@pytest.mark.skipif(backend.name == "cupy", reason="counts the host's memory")
@pytest.mark.parametrize("half", [False, True])
def test_loading_needs_the_weights_once(tmp_path, monkeypatch, half):
    """Never a second copy: beside the weights only a chunk, where numbers are widened."""
    model = GPT(GPTConfig(n_layer=4, n_head=4, n_embd=128, n_positions=64, vocab_size=5000))
    model.save_pretrained(tmp_path)
    if half:
        tensors = load_file(tmp_path / WEIGHTS)
        save_file({name: array.astype(np.float16) for name, array in tensors.items()}, tmp_path / WEIGHTS)
        monkeypatch.setattr(safetensors, "CHUNK_BYTES", 100_000)
    weight_bytes = 4 * model.n_parameters()
    assert weight_bytes < peak_of_loading(tmp_path) < 1.3 * weight_bytes
