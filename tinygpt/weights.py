"""Weights in and out: GPT-2 checkpoints of Hugging Face, llm.c and nanoGPT are read, Hugging Face's are written.

    model = GPT.from_pretrained("my-gpt2/")       # a directory: config.json and model.safetensors (one file, or shards with an index)
    model = GPT.from_pretrained("gpt2_124M.bin")  # llm.c
    model = GPT.from_pretrained("gpt2")           # fetched from Hugging Face's hub; needs the extra `hub`
    model.save_pretrained("my-gpt2/", tokenizer)

Reading goes in two steps. First every file's table of contents is read and checked, which says where each tensor lies
(`StoredTensor`). Then names and shapes are compared with the model's, all differences reported at once, and each tensor is read
straight into its parameter: there is never a second copy of the weights.

No pickle: loading one runs whatever code its author put into it.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from autograd import backend
from tinygpt import files
from tinygpt.config import GPTConfig
from tinygpt.files import save_tensors, to_json, write_file

LANGUAGE_MODEL, CLASSIFIER = "GPT2LMHeadModel", "GPT2ForSequenceClassification"  # architectures, by Hugging Face's names

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ["vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json"]

HUB_NAMES = {
    **{name: f"openai-community/{name}" for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")},
    "distilgpt2": "distilbert/distilgpt2",
}

CHUNK_BYTES = 8 * 1024 * 1024
"""How much of a tensor is in memory twice while it is widened, transposed or compared."""

# Where files lie ----------------------------------------------------------------------------------------------------------


def locate(path_or_name: str | Path) -> Path:
    """The directory or file of weights that is meant: an existing path, or a name on Hugging Face's hub, which is then fetched.

    Names are those in HUB_NAMES, or `owner/name`. Raises FileNotFoundError for anything else, ImportError without the extra `hub`,
    ConnectionError if the hub cannot be reached or has no such model.
    """
    path = Path(path_or_name)
    if path.exists():
        return path
    name = str(path_or_name)
    owner, _, rest = name.partition("/")
    if name not in HUB_NAMES and not (owner and rest and "/" not in rest and owner[0] not in ".~" and not Path(owner).exists()):
        raise FileNotFoundError(
            f"{name}: no such file or directory, expected weights on this machine, {', '.join(HUB_NAMES)}, or owner/name on Hugging Face's "
            "hub; check the path"
        )
    return _fetch(HUB_NAMES.get(name, name))


def _fetch(repository: str) -> Path:
    by_hand = f"fetch it where there is a network (hf download {repository} --local-dir FOLDER) and pass the folder's path"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            f"{repository}: huggingface_hub is not installed, expected it for names on the hub; pip install 'tinygpt[hub]', or {by_hand}"
        ) from error
    try:
        return Path(snapshot_download(repository, allow_patterns=["config.json", "model*.safetensors", INDEX, *TOKENIZER_FILES]))
    except Exception as error:  # whatever its HTTP library raises: all of it means that the files did not come
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ConnectionError(
            f"{repository}: not fetched ({reason}), expected the hub to answer; check the name and network, or {by_hand}"
        ) from error


def has_weights(path: Path) -> bool:
    """Whether `path` is a file of weights, or a directory that holds one (or an index of shards)."""
    return path.suffix == ".bin" if path.is_file() else (path / WEIGHTS).is_file() or (path / INDEX).is_file()


# Tables of contents -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not yet read.

    start        of its numbers, in bytes from the start of the file
    dtype        as safetensors names it: F32, F16, BF16, ...
    shape        as it is stored
    transposed   stored (out, in) where GPT-2 has (in, out)
    """

    path: Path
    start: int
    dtype: str
    shape: tuple[int, ...]
    transposed: bool = False

    @property
    def wanted_shape(self) -> tuple[int, ...]:
        """As GPT-2 has it."""
        return self.shape[::-1] if self.transposed else self.shape


FLOATS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}  # BF16: its 16 bits
_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}
_ITEM_BYTES |= {name: dtype.itemsize for name, dtype in FLOATS.items()}

_MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    The file: 8 bytes, the header's length N (little-endian); N bytes of JSON, {name: {dtype, shape, data_offsets: [begin, end]}}, offsets
    counted from the header's end; the numbers, without gaps. Raises ValueError, naming the file, for anything else.
    Source  https://github.com/huggingface/safetensors, section Format.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        n = int.from_bytes(file.read(8), "little")
        if size < 8 or n > min(size - 8, _MAX_HEADER_BYTES):
            raise _damaged(path, f"{size:,} bytes, of which the header claims {n:,}")
        raw = file.read(n)
    try:
        header = json.loads(raw, object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"a header that is no JSON ({error})") from error
    if not isinstance(header, dict):
        raise _damaged(path, f"a header that is a JSON {type(header).__name__}")
    header.pop("__metadata__", None)
    tensors = {name: _entry(path, name, fields, 8 + n) for name, fields in header.items()}
    end = 8 + n
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, math.prod(item[1].shape))):
        if tensor.start != end:
            raise _damaged(
                path,
                f"{name} begins at byte {tensor.start}, {'inside' if tensor.start < end else 'beyond'} the end of what precedes it, {end}",
            )
        end += math.prod(tensor.shape) * _ITEM_BYTES[tensor.dtype]
    if end != size:
        raise _damaged(path, f"{size:,} bytes, where its header describes {end:,}")
    return tensors


def _damaged(path: Path, found: str) -> ValueError:
    return ValueError(f"{path}: {found}, expected an intact safetensors file; fetch or save it again")


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _entry(path: Path, name: str, fields: Any, data: int) -> StoredTensor:
    """One entry of a safetensors header, each field checked; `data` is where the file's numbers begin."""
    try:
        dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        numbers = [begin, end, *shape]
        legal = all(type(number) is int and number >= 0 for number in numbers) and isinstance(shape, list)
        legal = legal and end - begin == math.prod(shape) * _ITEM_BYTES[dtype]
    except (TypeError, KeyError, ValueError):
        legal = False
    if not legal:
        raise _damaged(path, f"{name}: {json.dumps(fields)[:200]}")
    return StoredTensor(path, data + begin, dtype, tuple(shape))


def read_sharded_header(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of all shards that a directory's index names. Raises ValueError where index and shards disagree."""
    index = directory / INDEX
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise ValueError(f"{index}: no weight_map from names to files, expected one; fetch the index again")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(shard_of.values())):
        path = directory / shard
        if Path(shard).name != shard or not path.is_file():
            raise ValueError(f"{index}: names {shard!r}, expected a file beside it; fetch all shards into one directory")
        held = read_safetensors_header(path)
        claimed = {name for name, file in shard_of.items() if file == shard}
        if held.keys() != claimed:
            raise ValueError(
                f"{path}: holds {_some(held.keys() - claimed)} beyond its index and lacks {_some(claimed - held.keys())}, expected the tensors "
                f"that {INDEX} lists; fetch index and shards together"
            )
        tensors |= held
    return tensors


_LLM_C_MAGIC, _LLM_C_HEADER_BYTES = 20240326, 1024
_LLM_C_DTYPES = {3: "F32", 5: "BF16"}  # by version of the file


def read_llm_c_header(path: Path) -> tuple[GPTConfig, dict[str, StoredTensor]]:
    """Shape and tensors of llm.c's `gpt2_124M.bin` (version 3, float32, or 5, bfloat16).

    256 int32 (magic number, version, T, V, L, H, C, padded V), then the tensors in one fixed order, each for all layers at once;
    matrices are (out, in), and the token embedding has rows of padding at its end, which are left out.
    Raises ValueError for another kind of file or one of the wrong length. Source  https://github.com/karpathy/llm.c, train_gpt2.c.
    """
    with path.open("rb") as file:
        header = np.frombuffer(file.read(_LLM_C_HEADER_BYTES).ljust(_LLM_C_HEADER_BYTES, b"\0"), dtype="<i4")
    magic, version, t, v, n_layer, n_head, c, padded = (int(number) for number in header[:8])
    if magic != _LLM_C_MAGIC:
        raise (
            _pickled(path)
            if _is_pickle(path)
            else ValueError(
                f"{path}: begins with {magic}, expected {_LLM_C_MAGIC}, as llm.c's model files do; pass a Hugging Face directory or such a file"
            )
        )
    if version not in _LLM_C_DTYPES:
        raise ValueError(
            f"{path}: llm.c's version {version}, expected 3 (float32) or 5 (bfloat16); write it again with llm.c's train_gpt2.py"
        )
    config = GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=c, n_positions=t, vocab_size=v)
    dtype = _LLM_C_DTYPES[version]
    tensors: dict[str, StoredTensor] = {}
    start = _LLM_C_HEADER_BYTES
    for name, shape, stored in _llm_c_order(config, padded):
        transposed = len(shape) == 2 and name.startswith("h.")
        names = [name.replace("*", str(i)) for i in range(n_layer)] if "*" in name else [name]
        for full_name in names:
            tensors[full_name] = StoredTensor(path, start, dtype, shape, transposed)
            start += stored * _ITEM_BYTES[dtype]
    if start != path.stat().st_size:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes, expected {start:,} for {config}; fetch or write it again")
    return config, tensors


def _llm_c_order(config: GPTConfig, padded: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, how many numbers it takes in the file) in the file's order; a * in the name runs over the layers."""
    c = config.n_embd
    shape: tuple[int, ...]
    shapes: list[tuple[str, tuple[int, ...]]] = [("wpe.weight", (config.n_positions, c))]
    for part, shape in (
        ("ln_1", (c,)), ("attn.c_attn", (3 * c, c)), ("attn.c_proj", (c, c)),
        ("ln_2", (c,)), ("mlp.c_fc", (4 * c, c)), ("mlp.c_proj", (c, 4 * c)),
    ):  # fmt: skip
        shapes += [(f"h.*.{part}.weight", shape), (f"h.*.{part}.bias", shape[:1])]
    shapes += [("ln_f.weight", (c,)), ("ln_f.bias", (c,))]
    yield "wte.weight", (config.vocab_size, c), padded * c
    for name, shape in shapes:
        yield name, shape, math.prod(shape)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a checkpoint lies, by GPT-2's names.

    path   a Hugging Face directory (nanoGPT's names and orientation are understood, too) or llm.c's file
    Raises FileNotFoundError without weights, ValueError for damaged or pickled ones.
    """
    if path.is_file():
        return read_llm_c_header(path)[1]
    if not has_weights(path):
        for pickled in sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"), *path.glob("*.ckpt")]):
            raise _pickled(pickled)
        raise FileNotFoundError(f"{path}: no {WEIGHTS}, expected a checkpoint directory; pass one that save_pretrained wrote")
    found = read_safetensors_header(path / WEIGHTS) if (path / WEIGHTS).is_file() else read_sharded_header(path)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in found.items():
        short = canonical_name(name)
        if short in tensors:
            raise ValueError(f"{tensor.path}: {short} under two names, expected one of them; remove the copy")
        if not _is_causal_mask(short):
            tensors[short] = tensor
    return _as_gpt2_turns_them(tensors)


_PREFIXES = ("transformer.", "_orig_mod.", "module.")  # GPT2LMHeadModel, torch.compile, DistributedDataParallel


def canonical_name(name: str) -> str:
    """A tensor's name without what a wrapper put before it: `_orig_mod.transformer.wte.weight` is wte.weight."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


def _is_causal_mask(name: str) -> bool:
    """Older files hold attention's triangle of ones in each layer. It is no weight."""
    return name.startswith("h.") and name.endswith((".attn.bias", ".attn.masked_bias"))


def _as_gpt2_turns_them(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """nanoGPT's matrices are (out, in), GPT-2's (in, out). The only one whose shape tells is c_attn: (3C, C) or (C, 3C)."""
    first = tensors.get("h.0.attn.c_attn.weight")
    if first is None or len(first.shape) != 2 or first.shape[0] != 3 * first.shape[1]:
        return tensors
    matrices = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    return {
        name: dataclasses.replace(tensor, transposed=name.startswith("h.") and name.endswith(matrices)) for name, tensor in tensors.items()
    }


def _is_pickle(path: Path) -> bool:
    """PyTorch writes a zip archive with a pickle in it; before 2020, a bare pickle."""
    with path.open("rb") as file:
        return file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def _pickled(path: Path) -> ValueError:
    code = (
        f"import torch, safetensors.torch as s; w = torch.load('{path.name}', weights_only=True, map_location='cpu'); "
        f"s.save_file({{k: v.clone().contiguous() for k, v in w.get('model', w).items()}}, '{WEIGHTS}')"
    )
    return ValueError(
        f"{path}: pickled weights, expected {WEIGHTS}, because reading a pickle runs any code that its author put into it; if you trust "
        f'the file, convert it where PyTorch is installed: python -c "{code}"'
    )


# Reading ------------------------------------------------------------------------------------------------------------------


def load_weights(model: Any, path_or_name: str | Path, *, may_lack_biases: bool = False) -> None:
    """Reads a checkpoint's weights into the model's parameters.

    model             a GPT, or a module that holds one, with its `config`; its parameters decide what is expected
    path_or_name      as `locate` takes it
    may_lack_biases   biases that the file lacks are 0 (nanoGPT without biases)
    Raises ValueError that lists missing, unexpected and wrongly shaped tensors together, or for a damaged file, FileNotFoundError
    without weights.
    """
    path = locate(path_or_name)
    stored = stored_tensors(path)
    wanted = {canonical_name(name): p for name, p in model.named_parameters()}
    if not model.config.qkv_bias:
        stored = {name: tensor for name, tensor in stored.items() if not name.endswith(".attn.c_attn.bias")}
    head = stored.pop("lm_head.weight", None) if model.config.tie_word_embeddings else None
    if head is not None and "wte.weight" not in stored:
        stored["wte.weight"], head = head, None
    zero = [name for name in wanted if may_lack_biases and name.endswith(".bias") and name not in stored]
    _compare(path, stored, {name: p.shape for name, p in wanted.items() if name not in zero}, model.config)
    for name, p in wanted.items():
        if name in zero:
            p.data[...] = 0
        elif isinstance(p.data, np.ndarray):
            read_into(stored[name], p.data)
        else:
            host = np.empty(p.shape, dtype=np.float32)
            read_into(stored[name], host)
            p.data[...] = backend.to_device(host)
    if head is not None and not _equals(head, backend.to_host(wanted["wte.weight"].data)):
        raise ValueError(
            f"{head.path}: lm_head.weight differs from wte.weight, expected equal ones where the output layer is tied to the embedding; "
            'write "tie_word_embeddings": false into config.json'
        )


def _compare(path: Path, stored: dict[str, StoredTensor], wanted: dict[str, tuple[int, ...]], config: GPTConfig) -> None:
    """Raises ValueError that lists all differences between the tensors of a file and those of a model."""
    missing = [f"{name} {shape}" for name, shape in wanted.items() if name not in stored]
    unexpected = [f"{name} {tensor.wanted_shape}" for name, tensor in stored.items() if name not in wanted]
    both = [(name, stored[name], shape) for name, shape in wanted.items() if name in stored]
    misshapen = [
        f"{name} of shape {tensor.wanted_shape} instead of {shape}" for name, tensor, shape in both if tensor.wanted_shape != shape
    ]
    strange = [f"{name} of dtype {tensor.dtype}" for name, tensor, _ in both if tensor.dtype not in FLOATS]
    problems = [
        f"{kind}{_some(names)}"
        for kind, names in (("missing ", missing), ("unexpected ", unexpected), ("", misshapen), ("", strange))
        if names
    ]
    if problems:
        raise ValueError(
            f"{path}: {'; '.join(problems)}, expected the tensors of {config} as {', '.join(FLOATS)}; is it another model's file?"
        )


def _some(names: Iterable[str], most: int = 8) -> str:
    """The first few of many, and how many more there are."""
    names = sorted(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + rest


def read_into(tensor: StoredTensor, out: np.ndarray) -> None:
    """Fills `out` (wanted_shape) with a tensor's numbers; where dtype and order agree, straight from the file."""
    if not tensor.transposed and FLOATS[tensor.dtype] == out.dtype and tensor.dtype != "BF16" and out.flags.c_contiguous:
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(tensor.start)
            _fill(file, out)
        return
    target = out.T if tensor.transposed else out
    for rows, numbers in _chunks(tensor):
        target[rows] = numbers


def _equals(tensor: StoredTensor, array: np.ndarray) -> bool:
    return all(np.array_equal(array[rows], numbers) for rows, numbers in _chunks(tensor))


def read_chunks(tensor: StoredTensor) -> Iterator[np.ndarray]:
    """The tensor's numbers as they are stored, in order, CHUNK_BYTES or so at a time."""
    if tensor.dtype in FLOATS and tensor.shape:
        for _, numbers in _chunks(tensor):
            yield numbers


def _chunks(tensor: StoredTensor) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, their numbers) for the whole tensor as it is stored, a few rows at a time."""
    dtype, (n_rows, *columns) = FLOATS[tensor.dtype], tensor.shape
    step = max(1, CHUNK_BYTES // max(1, math.prod(columns) * dtype.itemsize))
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        for start in range(0, n_rows, step):
            raw = np.empty((min(step, n_rows - start), *columns), dtype=dtype)
            _fill(file, raw)
            yield slice(start, start + len(raw)), _widened_bfloat16(raw) if tensor.dtype == "BF16" else raw


def _widened_bfloat16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 is the upper half of a float32."""
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _fill(file: BinaryIO, array: np.ndarray) -> None:
    """Reads as many bytes as the array has, however many calls that takes."""
    buffer = memoryview(array.reshape(-1)).cast("B")  # type: ignore[arg-type]
    while buffer:
        n = file.readinto(buffer)  # type: ignore[attr-defined]
        if not n:
            raise ValueError(f"{file.name}: ends {len(buffer):,} bytes early, expected the file that its header described; fetch it again")
        buffer = buffer[n:]


# config.json --------------------------------------------------------------------------------------------------------------

_OUR_ARITHMETIC = {  # what other values would change, beside the values that GPT computes
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
}


def load_config(path_or_name: str | Path) -> GPTConfig:
    """The shape of a checkpoint: from a directory's config.json (Hugging Face's GPT-2 or nanoGPT's `model_args`), or llm.c's header.

    Raises ValueError for another architecture than GPT-2's, or a variant of it that GPT does not compute.
    """
    located = locate(path_or_name)
    if located.is_file():
        return read_llm_c_header(located)[0]
    path = located / "config.json"
    fields = read_json(path)
    if "block_size" in fields and "model_type" not in fields:
        return _checked(located, _nanogpt_config(fields))
    if fields.get("model_type") != "gpt2":
        raise ValueError(f"{path}: model_type {fields.get('model_type')!r}, expected 'gpt2'; only GPT-2's architecture is supported")
    for key, legal in _OUR_ARITHMETIC.items():
        if key in fields and fields[key] not in legal:
            raise ValueError(
                f"{path}: {key} {fields[key]!r}, expected {' or '.join(map(repr, legal))}; this variant of GPT-2 is not supported"
            )
    if fields.get("n_inner") not in (None, 4 * fields.get("n_embd", 768)):
        raise ValueError(f"{path}: n_inner {fields['n_inner']}, expected 4 n_embd; this variant of GPT-2 is not supported")
    known = {f.name for f in dataclasses.fields(GPTConfig)}
    kept = {key: value for key, value in fields.items() if key in known}
    return _checked(located, GPTConfig(**{"dropout": fields.get("resid_pdrop", 0.1)} | kept))


def _nanogpt_config(fields: dict[str, Any]) -> GPTConfig:
    shape = {key: fields[key] for key in ("n_layer", "n_head", "n_embd", "vocab_size") if key in fields}
    return GPTConfig(n_positions=fields["block_size"], dropout=fields.get("dropout", 0.0), **shape)


def _checked(directory: Path, config: GPTConfig) -> GPTConfig:
    """Raises ValueError for a shape far beyond the weights beside it, before anybody makes a model of it: a typing error, or an attack."""
    if has_weights(directory):
        held = sum(math.prod(tensor.shape) for tensor in stored_tensors(directory).values())
        if config.n_parameters() > 2 * held + 10_000:
            raise ValueError(
                f"{directory / 'config.json'}: describes {config.n_parameters():,} weights, expected about {held:,}, as many as lie beside it; "
                "take both files from the same model"
            )
    return config


def architectures(directory: Path) -> list[Any]:
    """The model classes that a checkpoint's config.json names, by Hugging Face's names."""
    named = read_json(directory / "config.json").get("architectures")
    return named if isinstance(named, list) else []


def lacks_biases(path_or_name: str | Path) -> bool:
    """Whether a checkpoint says that it has no biases, as nanoGPT's own training makes them."""
    path = locate(path_or_name) / "config.json"
    return path.is_file() and read_json(path).get("bias") is False


def gpt2_config(config: GPTConfig, tokenizer: Any = None) -> dict[str, Any]:
    """The model's shape under the keys of GPT-2's config.json."""
    fields = dataclasses.asdict(config)
    p = fields.pop("dropout")
    eos = None if tokenizer is None else tokenizer.eos_id
    return {
        "model_type": "gpt2",
        "architectures": [LANGUAGE_MODEL],
        "activation_function": "gelu_new",
        **fields,
        **{"resid_pdrop": p, "embd_pdrop": p, "attn_pdrop": p},
        **{"bos_token_id": eos, "eos_token_id": eos},
    }


# Writing ------------------------------------------------------------------------------------------------------------------


def save_pretrained(model: Any, directory: str | Path, tokenizer: Any = None, extra: dict[str, Any] | None = None) -> None:
    """Writes config.json, model.safetensors and, if given, the tokenizer's files into `directory` (made if need be).

    What is there can be loaded by Hugging Face's transformers, model and tokenizer.

    model   a GPT, or a module that holds one and has its `config`
    extra   more keys for config.json; they win over GPT-2's own
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: backend.to_host(p.data) for name, p in model.named_parameters()}
    if not model.config.qkv_bias:  # GPT-2's format always has this bias
        for name in [name for name in weights if name.endswith(".attn.c_attn.weight")]:
            weights[name.removesuffix("weight") + "bias"] = np.zeros(3 * model.config.n_embd, dtype=np.float32)
    save_tensors(directory / WEIGHTS, weights, {"format": "pt"})
    write_json(directory / "config.json", gpt2_config(model.config, tokenizer) | (extra or {}))
    if tokenizer is not None:
        tokenizer.save(directory)
        write_json(directory / "tokenizer_config.json", tokenizer_config(tokenizer, model.config.n_positions))


def tokenizer_config(tokenizer: Any, n_positions: int) -> dict[str, Any]:
    """What transformers' AutoTokenizer wants to know beside the vocabulary."""
    fields: dict[str, Any] = {"model_max_length": n_positions, "clean_up_tokenization_spaces": False}
    if tokenizer.kind in ("bpe", "gpt2"):
        fields |= {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    else:
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if tokenizer.eos_id is not None:
        end = tokenizer.token_bytes(tokenizer.eos_id).decode()
        fields |= {"bos_token": end, "eos_token": end}
    return fields


# JSON ---------------------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: Any) -> None:
    write_file(path, [to_json(value)])


def read_json(path: Path) -> dict[str, Any]:
    """A checkpoint's JSON file. Raises FileNotFoundError without one, ValueError, naming the file, if it holds no JSON object."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected one of a checkpoint; pass a directory that save_pretrained wrote")
    value = files.read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON {type(value).__name__}, expected an object; is it the right file?")
    return value
