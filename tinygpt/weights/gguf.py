"""GGUF, llama.cpp's format: a model, its sizes and its tokenizer in one file, which llama.cpp and the programs built on it run.

    write_gguf("model.gguf", model, lambda writer: write_vocabulary(writer, tokenizer, n_rows), dtype="float16")

Names of tensors and of metadata are those of the library `gguf`, which llama.cpp's authors publish (the extra `gguf`). What stands here is the
difference between its models and ours: the order of numbers that it expects, biases that it insists on. Which it computes: gguf_targets.py.
Source  https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; llama.cpp, src/models/ (what is computed) and conversion/ (how files are made).
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from autograd import backend
from autograd.positions import rotary_frequencies
from tinygpt.encoder_config import EncoderConfig
from tinygpt.errors import InvalidInput, MissingPackage, PathExists
from tinygpt.model_config import GPTConfig, ModelConfig
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.storage.checked_json import Json
from tinygpt.storage.durable import replacing
from tinygpt.storage.safetensors import DTYPES
from tinygpt.weights.config_json import kind_of
from tinygpt.weights.family import Family, Part, canonical_name, same, turned
from tinygpt.weights.gguf_targets import TARGETS, Target, target_of
from tinygpt.weights.pretrained import Storable

POOLINGS = ("none", "mean", "cls")
_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}  # gguf's names
_FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16"}
_MAX_FLOAT16 = 65504.0


def library() -> ModuleType:
    """The library `gguf`. Raises ImportError, naming the extra, where it is not installed."""
    try:
        return import_module("gguf")
    except ImportError as error:
        rule = "expected the library with the names of llama.cpp's tensors"
        raise MissingPackage(f'export: gguf is missing, {rule}; pip install "tinygpt[gguf]"') from error


def write_gguf(
    path: str | Path, model: Storable, write_vocabulary: Callable[[Json], None], *, dtype: str = "float32", name: str = "",
    pooling: str = "mean",
) -> int:  # fmt: skip
    """Writes a model for llama.cpp; the number of tensors. The file appears under its name when all of it is on the disk.

    model              a GPT, an encoder, an encoder's classifier or an encoder-decoder
    write_vocabulary   given gguf's writer, adds the tokenizer: `tinygpt.data.gguf_vocabulary`
    dtype              of matrices: float32, float16 or bfloat16; norms, biases and positions stay float32, as llama.cpp wants them
    name               what the file says the model is called
    pooling            of an encoder: how llama.cpp makes one vector of those of a text's tokens, unless it is told another way; one of POOLINGS
    Raises FileExistsError for a file that exists, ValueError for a model that llama.cpp does not compute and for a weight that float16 does
    not hold, ImportError without the extra `gguf`.
    """
    path, config = Path(path), model.config
    for option, value, known in (("dtype", dtype, DTYPES), ("pooling", pooling, POOLINGS)):
        if value not in known:
            raise InvalidInput(f"export: {option} {value!r}, expected one of {', '.join(known)}")
    if path.exists():
        raise PathExists(f"{path}: exists, expected a new file; delete it, or choose another name")
    gguf = library()
    family, target = target_of(config, kind_of(type(config), hasattr(model, "labels")))
    arch = gguf.MODEL_ARCH[target.arch]
    with replacing(path) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[arch])
        try:
            writer.add_name(name or path.stem)
            writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[dtype]])
            _write_sizes(gguf, writer, model, family, pooling)
            write_vocabulary(writer)
            names, n = gguf.get_tensor_name_map(arch, _n_blocks(config)), 0
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


def _n_blocks(config: ModelConfig) -> int:
    return max(config.n_layer, config.n_decoder_layers) if isinstance(config, Seq2SeqConfig) else config.n_layer  # type: ignore[attr-defined]


def _stored_dtype(name: str, array: np.ndarray, dtype: str) -> str:
    """Vectors, and matrices that are added or looked up, stay as they are."""
    module = name.removesuffix(".weight").rpartition(".")[2]
    kept = ("wpe", "position_embeddings", "token_type_embeddings", "relative_attention_bias")
    return "float32" if array.ndim == 1 or module in kept else dtype


def _tensors(model: Storable, family: Family, target: Target) -> Iterator[tuple[str, np.ndarray]]:
    """(name as Hugging Face has it, float32 array as llama.cpp wants it) for each tensor of the file; matrices are (out, in)."""
    config = model.config
    heads = {"q_proj": config.n_head, "k_proj": config.kv_heads} if isinstance(config, GPTConfig) and target.neighbors else {}
    for name, p in _parameters(model, target):
        kind = name.rpartition(".")[2]
        for part in _parts(config, family, name, p):
            array = part.stored(p)
            module = part.name.rpartition(".")[0].removeprefix(target.prefix)
            projection = module.rpartition(".")[2]
            if projection in heads:
                array = _neighbors(array, heads[projection])
            if isinstance(config, GPTConfig) and p.ndim == 1 and kind == "weight":  # a norm's
                array = array + np.float32(config.norm_offset)
            if isinstance(config, Seq2SeqConfig) and name == "decoder.ln_f.weight":  # llama.cpp does not scale what the output layer reads
                array = array * np.float32(config.output_scale)
            yield f"{target.renamed.get(module, module)}.{kind}", array
    if isinstance(config, GPTConfig) and (config.rope_scaling or {}).get("rope_type") == "llama3":
        d, theta = config.channels_per_head, config.rope_theta
        factors = rotary_frequencies(d, theta=theta) / rotary_frequencies(d, theta=theta, scaling=config.rope_scaling)
        yield "rope_freqs.weight", factors.astype(np.float32)


def _parts(config: ModelConfig, family: Family, name: str, p: np.ndarray) -> list[Part]:
    """The tensors that hold a parameter: as in the family's files, except where those have another order, or rows that no token has."""
    module = name.rpartition(".")[0]
    if not family.names and name.startswith("h.") and p.ndim == 2:  # GPT-2's own files have (in, out)
        return [Part(name, turned)]
    parts = family.parts(config, name)
    if family.model_type == "gpt_neox" and module.endswith("c_attn"):  # all queries first, as we have them
        return [Part(part.name, turned) for part in parts]
    if module == "wpe":
        return [Part(part.name, same) for part in parts]
    return parts


def _parameters(model: Storable, target: Target) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameters by name, on the host, with those that llama.cpp insists on, without those that it has no use for: an encoder's head for
    masked words, and its pooler where no classifier follows."""
    config, found = model.config, {}
    unused = ("head.",) if hasattr(model, "labels") else ("head.", "pooler.")
    for name, p in model.named_parameters():
        name = canonical_name(name)
        if isinstance(config, EncoderConfig) and name.startswith(unused):
            continue
        host = backend.to_host(p.data)
        found[name] = host.shape
        yield name, host
        if name == "wte.weight" and config.tie_word_embeddings and target.own_output:
            yield "lm_head.weight", host
    for name in [f"h.{layer}.{module}" for layer in range(_n_blocks(config)) for module in target.biases]:
        if f"{name}.bias" not in found:
            yield f"{name}.bias", np.zeros(found[f"{name}.weight"][1], dtype=np.float32)


def _neighbors(matrix: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows (H D, C) in the order in which llama.cpp turns pairs: channel i of a head's first half next to channel i of its second half."""
    return matrix.reshape(n_heads, 2, -1, *matrix.shape[1:]).swapaxes(1, 2).reshape(matrix.shape)


def _write_sizes(gguf: Json, writer: Json, model: Storable, family: Family, pooling: str) -> None:
    """The metadata from which llama.cpp builds its graph."""
    config = model.config
    assert isinstance(config, GPTConfig | EncoderConfig | Seq2SeqConfig)
    blocks = config if isinstance(config, GPTConfig) else config.blocks()
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.n_layer)
    writer.add_context_length(config.n_positions)
    writer.add_embedding_length(config.n_embd)
    writer.add_feed_forward_length(blocks.inner_channels)
    writer.add_head_count(config.n_head)
    writer.add_head_count_kv(blocks.kv_heads)
    writer.add_key_length(blocks.channels_per_head)
    writer.add_value_length(blocks.channels_per_head)
    (writer.add_layer_norm_eps if config.norm == "layer" else writer.add_layer_norm_rms_eps)(config.layer_norm_epsilon)
    if isinstance(config, EncoderConfig):
        labels: list[str] = getattr(model, "labels", [])
        writer.add_causal_attention(False)
        writer.add_token_type_count(config.n_token_types)
        writer.add_pooling_type(gguf.PoolingType["RANK" if labels else pooling.upper()])
        if labels:
            writer.add_classifier_output_labels(labels)
    elif isinstance(config, Seq2SeqConfig):
        writer.add_decoder_block_count(config.n_decoder_layers)
        writer.add_decoder_start_token_id(config.start_id)
        writer.add_relative_attn_buckets_count(config.relative_buckets)
    else:
        _write_decoder(gguf, writer, config, family)


def _write_decoder(gguf: Json, writer: Json, config: GPTConfig, family: Family) -> None:
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
