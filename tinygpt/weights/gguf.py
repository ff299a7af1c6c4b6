"""GGUF, llama.cpp's format: a language model, its sizes and its tokenizer in one file, which llama.cpp and the programs built on it run.

    write_gguf("model.gguf", model, lambda writer: write_vocabulary(writer, tokenizer, n_rows), dtype="float16")

Names of tensors and of metadata are those of the library `gguf`, which llama.cpp's authors publish (the extra `gguf`). What stands here is the
difference between its models and ours: which variants of a family it computes, the order of numbers that it expects, biases that it insists on.
Source  https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; llama.cpp, src/models/ (what is computed) and conversion/ (how files are made).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from autograd import backend
from autograd.positions import rotary_frequencies
from tinygpt.errors import InvalidInput, MissingPackage, PathExists
from tinygpt.model_config import GPTConfig
from tinygpt.storage.checked_json import Json
from tinygpt.storage.durable import replacing
from tinygpt.weights.config_json import OWN, family_of, format_note
from tinygpt.weights.family import Family, Part, canonical_name, meaning, turned
from tinygpt.weights.pretrained import Storable

DTYPES = ("float32", "float16", "bfloat16")
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # gguf's names
_FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
_MAX_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Target:
    """What llama.cpp makes of a family.

    arch        its name in gguf.MODEL_ARCH
    computes    field of GPTConfig -> the values that it computes with; for fields that the family leaves open, and llama.cpp does not
    own_head    whether a head may have another size than n_embd / n_head
    window      whether blocks may have a window
    llama3      whether rotary positions may be stretched as in Llama 3.1
    neighbors   whether it turns neighboring channels of a head, where we turn its halves: channels of queries and keys change their order
    own_output  whether it insists on an output matrix, even where that is the embedding's
    biases      linear layers of a block that it insists on a bias for: zeros where ours has none
    """

    arch: str
    computes: dict[str, tuple[Json, ...]] = field(default_factory=dict)
    own_head: bool = False
    window: bool = False
    llama3: bool = False
    neighbors: bool = False
    own_output: bool = False
    biases: tuple[str, ...] = ()


_SILU = {"activation": ("silu",)}
_NO_BIAS = {"attention_output_bias": (False,)}
_GELU: dict[str, tuple[Json, ...]] = {"activation": ("gelu",)}
_LLAMA = Target("LLAMA", _SILU, own_head=True, llama3=True, neighbors=True)
TARGETS = {
    "gpt2": Target("GPT2", _GELU, biases=("attn.c_attn",)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Target("QWEN2", _SILU),
    "qwen3": Target("QWEN3", _SILU | _NO_BIAS, own_head=True),
    "olmo2": Target("OLMO2", _SILU | _NO_BIAS, own_output=True),
    "gemma": Target("GEMMA", _GELU | _NO_BIAS | {"tie_word_embeddings": (True,)}, own_head=True),
    "gemma2": Target("GEMMA2", _GELU | _NO_BIAS | {"tie_word_embeddings": (True,)}, own_head=True, window=True),
    "gemma3_text": Target("GEMMA3", _GELU | _NO_BIAS, own_head=True, window=True),
    "gpt_neox": Target("GPTNEOX", {"activation": ("gelu_exact", "gelu")}, own_output=True, biases=("attn.c_attn", "attn.c_proj")),
}
"""By model_type."""


def library() -> ModuleType:
    """The library `gguf`. Raises ImportError, naming the extra, where it is not installed."""
    try:
        return import_module("gguf")
    except ImportError as error:
        rule = "expected the library with the names of llama.cpp's tensors"
        raise MissingPackage(f'export: gguf is missing, {rule}; pip install "tinygpt[gguf]"') from error


def target_of(config: GPTConfig) -> tuple[Family, Target]:
    """The family and llama.cpp's architecture for a model of this shape. Raises ValueError, saying why, for what llama.cpp does not compute."""
    family = family_of(config)
    if family in OWN:
        known = ", ".join(TARGETS)
        raise InvalidInput(f"export: {format_note(config).partition(': ')[2]}, expected a shape of {known}; llama.cpp computes no other")
    if family.model_type not in TARGETS:
        rule = f"expected one of {', '.join(TARGETS)}; llama.cpp has no such architecture"
        raise InvalidInput(f"export: a model of the family {family.model_type}, {rule}")
    target = TARGETS[family.model_type]
    for name, found, expected in _differences(config, family, target):
        raise InvalidInput(f"export: {name} {found!r}, expected {expected}; llama.cpp computes no other for {family.model_type}")
    return family, target


def _differences(config: GPTConfig, family: Family, target: Target) -> Iterator[tuple[str, Json, str]]:
    """(field, its value, what llama.cpp computes with) for each field that the family leaves open and llama.cpp does not."""
    filled, scaling = meaning(config), config.rope_scaling or {"rope_type": "default"}
    for name, values in target.computes.items():
        if filled[name] not in values:
            yield name, filled[name], " or ".join(map(repr, values))
    d, shared = config.channels_per_head, config.n_embd // config.n_head
    if d != shared and not target.own_head:
        yield "head_size", d, f"n_embd / n_head, {shared}"
    windows = [config.window_of(layer) for layer in range(config.n_layer)]
    if not target.window and any(window is not None and window < config.n_positions for window in windows):
        yield "window", config.window, f"none, or at least n_positions, {config.n_positions}"
    if scaling["rope_type"] == "llama3" and not target.llama3:
        yield "rope_type", "llama3", "default or linear"
    if family.model_type == "gemma3_text" and config.rope_scaling and config.window and config.rope_local_theta is None:
        yield "rope_scaling", config.rope_scaling, "none in blocks with a window"
    if family.model_type in ("gemma2", "gemma3_text"):
        largest = config.n_layer == {"gemma2": 46, "gemma3_text": 62}[family.model_type]  # the 27B models, which it knows by their depth
        if abs(filled["attention_scale"] * (expected := shared if largest else d) ** 0.5 - 1) > 1e-6:
            yield "attention_scale", filled["attention_scale"], f"1 / sqrt({expected})"
    for name in ("attention_softcap", "logit_softcap") if family.model_type == "gemma2" else ():
        if filled[name] is None:
            yield name, None, "a number"


def write_gguf(
    path: str | Path, model: Storable, write_vocabulary: Callable[[Json], None], *, dtype: str = "float32", name: str = ""
) -> int:
    """Writes a GPT for llama.cpp; the number of tensors. The file appears under its name when all of it is on the disk.

    write_vocabulary   given gguf's writer, adds the tokenizer: `tinygpt.data.gguf_vocabulary`
    dtype              of matrices: float32, float16 or bfloat16; norms, biases and positions stay float32, as llama.cpp wants them
    name               what the file says the model is called
    Raises FileExistsError for a file that exists, ValueError for a model that llama.cpp does not compute and for a weight that float16 does
    not hold, ImportError without the extra `gguf`.
    """
    path, config = Path(path), model.config
    if dtype not in DTYPES:
        raise InvalidInput(f"export: dtype {dtype!r}, expected one of {', '.join(DTYPES)}")
    if path.exists():
        raise PathExists(f"{path}: exists, expected a new file; delete it, or choose another name")
    assert isinstance(config, GPTConfig)
    gguf = library()
    family, target = target_of(config)
    arch = gguf.MODEL_ARCH[target.arch]
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[arch])
        try:
            writer.add_name(name or path.stem)
            writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
            _write_sizes(gguf, writer, config, family)
            write_vocabulary(writer)
            names, n = gguf.get_tensor_name_map(arch, config.n_layer), 0
            for theirs, array in _tensors(model, family, target):
                kind = gguf.GGMLQuantizationType[_TYPES[_stored_dtype(theirs, array, dtype)]]
                n_bytes = array.size * gguf.GGML_QUANT_SIZES[kind][1]
                writer.add_tensor_info(names.get_name(theirs, (".weight", ".bias")), array.shape, array.dtype, n_bytes, kind)
                n += 1
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for theirs, array in _tensors(model, family, target):  # again, so that one tensor at a time is in memory twice
                kind = _stored_dtype(theirs, array, dtype)
                if kind == "float16" and (largest := float(np.abs(array).max(initial=0))) > _MAX_FLOAT16:
                    rule = f"expected at most {_MAX_FLOAT16:g} for float16"
                    raise InvalidInput(f"export: {theirs} holds {largest:g}, {rule}; take --dtype bfloat16 or float32")
                writer.write_tensor_data(gguf.quantize(np.ascontiguousarray(array), gguf.GGMLQuantizationType[_TYPES[kind]]))
        finally:
            writer.close()
    return n


def _stored_dtype(name: str, array: np.ndarray, dtype: str) -> str:
    return "float32" if array.ndim == 1 or name == "wpe.weight" else dtype


def _tensors(model: Storable, family: Family, target: Target) -> Iterator[tuple[str, np.ndarray]]:
    """(name as Hugging Face has it, float32 array as llama.cpp wants it) for each tensor of the file; matrices are (out, in)."""
    config = model.config
    assert isinstance(config, GPTConfig)
    heads = {"q_proj": config.n_head, "k_proj": config.kv_heads}
    for name, p in _parameters(model, target):
        module, _, kind = name.rpartition(".")
        parts = family.parts(config, name)
        if not family.names and name.startswith("h.") and p.ndim == 2:  # GPT-2's own files have (in, out)
            parts = [Part(name, turned)]
        if family.model_type == "gpt_neox" and module.endswith("c_attn"):  # all queries first, as we have them
            parts = [Part(part.name, turned) for part in parts]
        for part in parts:
            array = part.stored(p)
            projection = part.name.rpartition(".")[0].rpartition(".")[2]
            if target.neighbors and projection in heads:
                array = _neighbors(array, heads[projection])
            if p.ndim == 1 and kind == "weight":  # a norm's
                array = array + np.float32(config.norm_offset)
            yield part.name, array
    if (config.rope_scaling or {}).get("rope_type") == "llama3":
        d, theta = config.channels_per_head, config.rope_theta
        factors = rotary_frequencies(d, theta=theta) / rotary_frequencies(d, theta=theta, scaling=config.rope_scaling)
        yield "rope_freqs.weight", factors.astype(np.float32)


def _parameters(model: Storable, target: Target) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameters by name, on the host, with those that llama.cpp insists on."""
    config, found = model.config, {}
    for name, p in model.named_parameters():
        host = backend.to_host(p.data)
        found[canonical_name(name)] = host.shape
        yield canonical_name(name), host
        if canonical_name(name) == "wte.weight" and config.tie_word_embeddings and target.own_output:
            yield "lm_head.weight", host
    assert isinstance(config, GPTConfig)
    for name in [f"h.{layer}.{module}" for layer in range(config.n_layer) for module in target.biases]:
        if f"{name}.bias" not in found:
            yield f"{name}.bias", np.zeros(found[f"{name}.weight"][1], dtype=np.float32)


def _neighbors(matrix: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows (H D, C) in the order in which llama.cpp turns pairs: channel i of a head's first half next to channel i of its second half."""
    return matrix.reshape(n_heads, 2, -1, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def _write_sizes(gguf: Json, writer: Json, config: GPTConfig, family: Family) -> None:
    """The metadata from which llama.cpp builds its graph."""
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(config.inner_channels)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.channels_per_head)
    writer.add_value_length(config.channels_per_head)
    (writer.add_layer_norm_eps if config.norm == "layer" else writer.add_layer_norm_rms_eps)(config.layer_norm_epsilon)
    if family.model_type == "gpt_neox":
        writer.add_parallel_residual(config.parallel_residual)
    if config.positions == "rotary":
        writer.add_rope_dimension_count(int(config.channels_per_head * config.rope_fraction))
        writer.add_rope_freq_base(config.rope_theta)
        if config.rope_scaling and config.rope_scaling["rope_type"] == "linear":
            writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(config.rope_scaling["factor"])
    windows = [config.window_of(layer) for layer in range(config.n_layer)]
    if TARGETS[family.model_type].window and config.window:
        writer.add_sliding_window(config.window)
        writer.add_sliding_window_pattern([window is not None for window in windows])
        writer.add_rope_freq_base_swa(config.rope_local_theta or config.rope_theta)
    if config.attention_softcap:
        writer.add_attn_logit_softcapping(config.attention_softcap)
    if config.logit_softcap:
        writer.add_final_logit_softcapping(config.logit_softcap)
