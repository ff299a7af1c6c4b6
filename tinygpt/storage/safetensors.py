"""The safetensors format, in both directions: a header with the location of each tensor, then the tensors' bytes.

Reading goes in two steps: the header is read and checked (`StoredTensor`), then each tensor is read straight into its array. Writing, too: the
header comes from shapes, then one tensor after the other is made, converted to the file's dtype a few rows at a time, and written.
No pickle: loading one runs whatever code its author put into it.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tinygpt.errors import InvalidInput
from tinygpt.storage.checked_json import Json, read_json_object, to_json
from tinygpt.storage.durable import Chunk, write_file

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARIES = frozenset("vocab.json merges.txt tokenizer.json vocab.txt spiece.model source.spm target.spm target_vocab.json".split())
TOKENIZER_FILES = (
    *sorted(VOCABULARIES),
    *"tokenizer_config.json special_tokens_map.json added_tokens.json tokenizer.model chat_template.jinja".split(),
    *"chat_template.json generation_config.json".split(),
)
"""What else there may be next to them: a tokenizer, and how the model is to be used."""
TEMPLATE_FOLDER = "additional_chat_templates"
"""And in a folder: chat templates with names of their own, NAME.jinja."""
DTYPES = ("float32", "float16", "bfloat16")
"""Of weights, in files that are written."""
CHUNK_BYTES = 8 * 1024 * 1024  # how much of a tensor is in memory twice while it is widened, rounded, transposed or compared

_LARGEST = {"float16": 65504.0, "bfloat16": float.fromhex("0x1.fep127")}  # of the dtypes with a range below float32's

_MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit
# The format's names of dtypes: of those that are written; of those that are read, BF16 as its 16 bits; and of all, with their sizes.
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "uint8": "U8"}
FLOATS: dict[str, np.dtype] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}
ITEM_BYTES |= {name: dtype.itemsize for name, dtype in FLOATS.items()}


@dataclass(frozen=True)
class Deferred:
    """An array that is made when it is written, so that there is one copy at a time. The file's dtype decides how it is stored."""

    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]


class TensorFile:
    """A safetensors file before it is written: host arrays by name, and metadata. Its format: see `read_safetensors_header`.

    dtype   one of DTYPES, to which all arrays are rounded; "": each keeps its own
    """

    def __init__(self, arrays: Mapping[str, np.ndarray | Deferred], metadata: dict[str, str] | None = None, dtype: str = "") -> None:
        self.arrays, self.metadata, self.dtype = dict(arrays), metadata, dtype

    def copy(self) -> "TensorFile":
        """A copy with its own arrays: what is written later is the state at this moment."""
        return TensorFile({name: np.array(_made(array), order="C") for name, array in self.arrays.items()}, self.metadata, self.dtype)

    def n_bytes(self, name: str) -> int:
        """How many an array has in the file."""
        return math.prod(self.arrays[name].shape) * ITEM_BYTES[self._stored_as(name)]

    def _stored_as(self, name: str) -> str:
        array = self.arrays[name]
        return _NAMES[array.dtype.name if isinstance(array, np.ndarray) and not self.dtype else self.dtype]

    def chunks(self) -> Iterator[Chunk]:
        """What the file consists of, for `write_file`. Arrays are given up one after the other, so that a copy is freed as it is written."""
        header: dict[str, Json] = {"__metadata__": self.metadata} if self.metadata else {}
        end = 0
        for name, array in self.arrays.items():
            start, end = end, end + self.n_bytes(name)
            header[name] = {"dtype": self._stored_as(name), "shape": list(array.shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of 8
        yield len(text).to_bytes(8, "little")
        yield text
        arrays, self.arrays = self.arrays, {}
        while arrays:
            yield from _rounded(_made(arrays.pop(next(iter(arrays)))), self.dtype)

    def check_range(self) -> None:
        """Raises ValueError, naming the tensor, for a number beyond the file's dtype: before a file is written in vain."""
        largest = _LARGEST.get(self.dtype, math.inf)
        for name, array in self.arrays.items() if largest < math.inf else ():
            made = _made(array)
            found = max(float(made.max(initial=0)), -float(made.min(initial=0)))
            if found > largest:
                fix = "take " + " or ".join(dtype for dtype in DTYPES if _LARGEST.get(dtype, math.inf) > largest)
                raise InvalidInput(f"{name}: {found:g}, expected at most {largest:g} for {self.dtype}; {fix}")

    def split(self, most: int) -> list["TensorFile"]:
        """Files of at most so many bytes of numbers each, in the order of the arrays; a larger array has one of its own. As transformers does it."""
        done, current, n_bytes = [], dict[str, np.ndarray | Deferred](), 0
        for name, array in self.arrays.items():
            n = self.n_bytes(name)
            if n > most:
                done.append({name: array})
                continue
            if n_bytes + n > most:
                done.append(current)
                current, n_bytes = {}, 0
            current[name] = array
            n_bytes += n
        return [TensorFile(arrays, self.metadata, self.dtype) for arrays in [*done, current] if arrays]


Content = bytes | TensorFile  # what a file is to hold


def _made(array: np.ndarray | Deferred) -> np.ndarray:
    return array.make() if isinstance(array, Deferred) else array


def _rounded(array: np.ndarray, dtype: str) -> Iterator[np.ndarray]:
    """The bytes of an array as a dtype: all at once where it is stored as it is, else a few rows at a time."""
    if dtype in ("", array.dtype.name):
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return
    step = max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        rows = np.ascontiguousarray(array[start : start + step], dtype=np.float32)
        yield (_to_bfloat16(rows) if dtype == "bfloat16" else rows.astype(FLOATS[_NAMES[dtype]])).reshape(-1).view(np.uint8)


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers as 16 bits, rounded to nearest, ties to even; NaN stays NaN."""
    bits = array.view(np.uint32)
    nearest = (bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16
    return np.where(np.isnan(array), bits >> 16 | 0x40, nearest).astype("<u2")


def sharded(file: TensorFile, max_shard_size: int | str | None) -> dict[str, Content]:
    """The files of a checkpoint's weights by name: one, or shards and an index, where there is more than `max_shard_size`. None: one file.

    max_shard_size   bytes of numbers, or a text such as "5GB" (TB, GB, MB, KB, of 1000); an array that is larger has a file of its own
    Raises ValueError for a size that is none.
    """
    shards = [file] if max_shard_size is None else file.split(_bytes_of(max_shard_size))
    if len(shards) <= 1:
        return {WEIGHTS: file}
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard.arrays}
    total = sum(map(file.n_bytes, file.arrays))
    index = to_json({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})
    return dict(zip(names, shards, strict=True)) | {INDEX: index}


def _bytes_of(size: int | str) -> int:
    found = re.fullmatch(r"\s*(\d+\.?\d*)\s*([TGMK])B\s*", size, flags=re.IGNORECASE) if isinstance(size, str) else None
    n = int(float(found[1]) * 1000 ** ("KMGT".index(found[2].upper()) + 1)) if found else size
    if type(n) is not int or n < 1:
        raise InvalidInput(f'max_shard_size: {size!r}, expected a number of bytes, or of TB, GB, MB or KB, above 0; for instance "5GB"')
    return n


def remove_weights(directory: Path) -> None:
    """Deletes the files of a checkpoint's weights, those of an earlier save: a reader must not take one for part of another."""
    for path in [directory / INDEX, directory / WEIGHTS, *directory.glob("model-*.safetensors")]:  # the index first, which lists the others
        if path.name in (INDEX, WEIGHTS) or re.fullmatch(r"model-\d{5}-of-\d{5}\.safetensors", path.name):
            path.unlink(missing_ok=True)


def chunks_of(content: Content) -> Iterable[Chunk]:
    """For `write_file`, `replace_file` and `write_directory`."""
    return content.chunks() if isinstance(content, TensorFile) else [content]


def write_files(directory: Path, files: Mapping[str, Content]) -> None:
    """Writes files by name into a directory, made where missing; so is the folder of one that is named FOLDER/FILE."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        write_file(directory / name, chunks_of(content))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file, not yet read."""

    path: Path
    start: int  # of its numbers, in bytes from the start of the file
    dtype: str  # as safetensors names it: F32, F16, BF16, ...
    shape: tuple[int, ...]  # as it is stored
    transposed: bool = False  # stored (out, in) where GPT-2 has (in, out)

    @property
    def wanted_shape(self) -> tuple[int, ...]:
        """As GPT-2 has it."""
        return self.shape[::-1] if self.transposed else self.shape

    def equals(self, array: np.ndarray) -> bool:
        return all(np.array_equal(array[rows], numbers) for rows, numbers in _chunks(self))


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    The file: 8 bytes, the header's length N (little-endian); N bytes of JSON, {name: {dtype, shape, data_offsets: [begin, end]}}, offsets
    counted from the header's end; the numbers, without gaps. Raises ValueError, naming the file, for anything else.
    Source  https://huggingface.co/docs/safetensors and https://github.com/huggingface/safetensors, section Format.
    """
    header, start = _read_header(path)
    tensors = {name: _entry(path, name, fields, start) for name, fields in header.items() if name != "__metadata__"}
    end, size = start, path.stat().st_size
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, math.prod(item[1].shape))):
        if tensor.start != end:
            side = "inside" if tensor.start < end else "beyond"
            raise _damaged(path, f"{name} begins at byte {tensor.start}, {side} the end of what precedes it, {end}")
        end += math.prod(tensor.shape) * ITEM_BYTES[tensor.dtype]
    if end != size:
        raise _damaged(path, f"{size:,} bytes, where its header describes {end:,}")
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The free text entries of a safetensors file's header."""
    metadata = _read_header(path)[0].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _read_header(path: Path) -> tuple[dict[str, Json], int]:
    """The header as JSON, and where the numbers begin."""
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
    return header, 8 + n


def _damaged(path: Path, found: str) -> InvalidInput:
    return InvalidInput(f"{path}: {found}, expected an intact safetensors file; fetch or save it again")


def _no_name_twice(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InvalidInput("a name occurs twice")
    return result


def _entry(path: Path, name: str, fields: Json, data: int) -> StoredTensor:
    """One entry of a safetensors header, each field checked; `data` is where the file's numbers begin."""
    try:
        dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        legal = all(type(number) is int and number >= 0 for number in [begin, end, *shape]) and isinstance(shape, list)
        if legal and end - begin == math.prod(shape) * ITEM_BYTES[dtype]:
            return StoredTensor(path, data + begin, dtype, tuple(shape))
    except (TypeError, KeyError, ValueError):
        pass
    raise _damaged(path, f"{name}: {json.dumps(fields)[:200]}")


def read_headers(directory: Path) -> dict[str, StoredTensor]:
    """The tensors of a directory's one file, or of all shards that its index names. Raises ValueError where index and shards disagree."""
    if (directory / WEIGHTS).is_file():
        return read_safetensors_header(directory / WEIGHTS)
    index = directory / INDEX
    shard_of = read_json_object(index).get("weight_map")
    if not isinstance(shard_of, dict) or not all(isinstance(shard, str) for shard in shard_of.values()):
        raise InvalidInput(f"{index}: no weight_map from names to files, expected one; fetch the index again")
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(shard_of.values())):
        path = directory / shard
        if Path(shard).name != shard or not path.is_file():
            raise InvalidInput(f"{index}: names {shard!r}, expected a file next to it; fetch all shards into one directory")
        held = read_safetensors_header(path)
        claimed = {name for name, file in shard_of.items() if file == shard}
        if held.keys() != claimed:
            found = f"holds {some_names(held.keys() - claimed)} beyond its index and lacks {some_names(claimed - held.keys())}"
            raise InvalidInput(f"{path}: {found}, expected the tensors that {INDEX} lists; fetch index and shards together")
        tensors |= held
    return tensors


def some_names(names: Iterable[str], most: int = 8) -> str:
    """The first few of many, and how many more there are."""
    names = sorted(names)
    return (", ".join(names[:most]) or "none") + (f" and {len(names) - most} more" if len(names) > most else "")


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


def read_tensor(tensor: StoredTensor) -> np.ndarray:
    """A tensor copied to its own memory, float32. Raises KeyError for integers."""
    out = np.empty(tensor.wanted_shape, dtype=np.float32)
    read_into(tensor, out)
    return out


def read_chunks(tensor: StoredTensor) -> Iterator[np.ndarray]:
    """The tensor's numbers as they are stored, in order, CHUNK_BYTES or so at a time."""
    if tensor.dtype in FLOATS and tensor.shape:
        yield from (numbers for _, numbers in _chunks(tensor))


def _chunks(tensor: StoredTensor) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, their numbers) for the stored tensor, a few rows at a time."""
    dtype, (n_rows, *columns) = FLOATS[tensor.dtype], tensor.shape
    step = max(1, CHUNK_BYTES // max(1, math.prod(columns) * dtype.itemsize))
    with tensor.path.open("rb", buffering=0) as file:
        file.seek(tensor.start)
        for start in range(0, n_rows, step):
            raw = np.empty((min(step, n_rows - start), *columns), dtype=dtype)
            _fill(file, raw)
            if tensor.dtype == "BF16":
                raw = np.left_shift(raw, 16, dtype=np.uint32).view(np.float32)  # bfloat16 is the upper half of a float32
            yield slice(start, start + len(raw)), raw


def _fill(file: BinaryIO, array: np.ndarray) -> None:
    """Reads as many bytes as the array has, however many calls that takes."""
    buffer = memoryview(array.reshape(-1)).cast("B")  # type: ignore[arg-type]
    while buffer:
        n = file.readinto(buffer)  # type: ignore[attr-defined]
        if not n:
            raise InvalidInput(f"{file.name}: ends {len(buffer):,} bytes early, expected the file that its header describes; get it again")
        buffer = buffer[n:]
