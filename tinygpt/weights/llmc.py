"""llm.c's container: all tensors of a GPT-2 in one file, in one fixed order."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tinygpt.config import GPTConfig
from tinygpt.errors import InvalidInput
from tinygpt.storage.safetensors import ITEM_BYTES, StoredTensor
from tinygpt.weights.hub import is_pickle, refuse_gguf, refuse_pickle

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
        if is_pickle(path):
            raise refuse_pickle(path)
        if header[:1].tobytes() == b"GGUF":
            raise refuse_gguf(path)
        rule = f"expected {_LLM_C_MAGIC}, as llm.c's model files do; pass a Hugging Face directory or such a file"
        raise InvalidInput(f"{path}: begins with {magic}, {rule}")
    if version not in _LLM_C_DTYPES:
        rule = "expected 3 (float32) or 5 (bfloat16); write it again with llm.c's train_gpt2.py"
        raise InvalidInput(f"{path}: llm.c's version {version}, {rule}")
    config = GPTConfig(n_layer=n_layer, n_head=n_head, n_embd=c, n_positions=t, vocab_size=v)
    tensors: dict[str, StoredTensor] = {}
    start, dtype = _LLM_C_HEADER_BYTES, _LLM_C_DTYPES[version]
    for name, shape, stored in _llm_c_order(config, padded):
        for i in range(n_layer if "*" in name else 1):
            transposed = len(shape) == 2 and name.startswith("h.")
            tensors[name.replace("*", str(i))] = StoredTensor(path, start, dtype, shape, transposed)
            start += stored * ITEM_BYTES[dtype]
    if start != path.stat().st_size:
        raise InvalidInput(f"{path}: {path.stat().st_size:,} bytes, expected {start:,} for {config}; fetch or write it again")
    return config, tensors


def _llm_c_order(config: GPTConfig, padded: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, how many numbers it takes in the file) in the file's order; a * in the name runs over the layers."""
    c = config.n_embd
    yield "wte.weight", (config.vocab_size, c), padded * c
    blocks = {f"h.*.{name}": shape[::-1] for name, shape in config.block_shapes().items()}  # in GPT-2's order, each matrix (out, in)
    for name, shape in {"wpe.weight": (config.n_positions, c), **blocks, "ln_f.weight": (c,), "ln_f.bias": (c,)}.items():
        yield name, shape, math.prod(shape)
