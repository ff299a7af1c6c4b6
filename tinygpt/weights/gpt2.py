"""Weights in and out: GPT-2 checkpoints of Hugging Face, llm.c and nanoGPT are read, Hugging Face's are written.

    model = GPT.from_pretrained("my-gpt2/")       # a directory: config.json and model.safetensors (one file, or shards with an index)
    model = GPT.from_pretrained("gpt2_124M.bin")  # llm.c
    model = GPT.from_pretrained("gpt2")           # fetched from Hugging Face's hub; needs the extra `hub`
    model.save_pretrained("my-gpt2/", tokenizer)

Reading goes in two steps. First every file's table of contents is read and checked, which says where each tensor is
(`StoredTensor`). Then names and shapes are compared with the model's, all differences reported at once, and each tensor is read
straight into its parameter: there is never a second copy of the weights.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from autograd import Array, Parameter, backend
from tinygpt.config import GPTConfig
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.storage.checked_json import Json, read_json_object, to_json
from tinygpt.storage.safetensors import FLOATS, WEIGHTS, Content, StoredTensor, TensorFile, read_headers, read_into, some_names, write_files
from tinygpt.weights.config_json import OURS, architecture_of, config_fields, format_note, model_type, read_config
from tinygpt.weights.hub import has_weights, locate, refuse_pickle
from tinygpt.weights.llmc import read_llm_c_header


class Storable(Protocol):
    """What reading and writing need of a model: a GPT, or a module that holds one. `pretrained_fields()`: more keys for config.json."""

    @property
    def config(self) -> GPTConfig: ...
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...


class StorableTokenizer(Protocol):
    """What writing needs of a `tinygpt.data.tokenizer.Tokenizer`."""

    kind: str
    eos_id: int | None
    bos_id: int | None
    end_ids: tuple[int, ...]

    def token_bytes(self, id: int) -> bytes: ...
    def files(self) -> dict[str, bytes]: ...
    def check_directory(self, directory: Path) -> None: ...


M = TypeVar("M", bound=Storable)


def stored_tensors(path: Path, *, ours: bool = False) -> dict[str, StoredTensor]:
    """The location of each tensor of a checkpoint, by GPT-2's names.

    path   a Hugging Face directory (nanoGPT's names and orientation are understood, too) or llm.c's file
    ours   the directory's model_type is tinygpt, whose matrices are (in, out) whatever their shapes
    Raises FileNotFoundError without weights, ValueError for damaged or pickled ones.
    """
    if path.is_file():
        return read_llm_c_header(path)[1]
    if not has_weights(path):
        for file in sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"), *path.glob("*.ckpt")]):
            raise refuse_pickle(file)
        raise MissingFile(f"{path}: no {WEIGHTS}, expected a checkpoint directory; pass one that save_pretrained wrote")
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in read_headers(path).items():
        short = canonical_name(name)
        if short in tensors:
            raise InvalidInput(f"{tensor.path}: {short} under two names, expected one of them; remove the copy")
        if not (short.startswith("h.") and short.endswith((".attn.bias", ".attn.masked_bias"))):  # older files' causal masks: no weights
            tensors[short] = tensor
    # nanoGPT's matrices are (out, in), GPT-2's (in, out). The only one whose shape tells is c_attn: (3C, C) or (C, 3C).
    first = tensors.get("h.0.attn.c_attn.weight")
    if not ours and first is not None and len(first.shape) == 2 and first.shape[0] == 3 * first.shape[1]:
        turned = re.compile(r"h\..*(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
        return {name: dataclasses.replace(tensor, transposed=bool(turned.fullmatch(name))) for name, tensor in tensors.items()}
    return tensors


_PREFIXES = ("transformer.", "_orig_mod.", "module.")  # GPT2LMHeadModel, torch.compile, DistributedDataParallel


def canonical_name(name: str) -> str:
    """A tensor's name without what a wrapper put before it: `_orig_mod.transformer.wte.weight` is wte.weight."""
    while name.startswith(_PREFIXES):
        name = name.partition(".")[2]
    return name


class StoredModel:
    """A model on disk: its config.json, its shape and the location of each tensor, each read once.

    path_or_name   as `locate` takes it: a Hugging Face directory, nanoGPT's, llm.c's file, or a name on the hub
    Raises FileNotFoundError where there is none, ValueError for another architecture than GPT-2's, for a variant that GPT does not compute,
    and for a shape far beyond the weights.
    """

    def __init__(self, path_or_name: str | Path) -> None:
        self.path = locate(path_or_name)
        self.fields = {} if self.path.is_file() else read_json_object(self.path / "config.json")
        self.config = (
            read_llm_c_header(self.path)[0] if self.path.is_file() else self._checked(read_config(self.path / "config.json", self.fields))
        )

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """By GPT-2's names. Raises as `stored_tensors` does."""
        return stored_tensors(self.path, ours=self.fields.get("model_type") == OURS)

    @property
    def architecture(self) -> str:
        """As `architecture_of` has it."""
        return architecture_of(self.fields)

    def _checked(self, config: GPTConfig) -> GPTConfig:
        """Raises ValueError for a shape far beyond the weights, before a model of it is made: a typing error, or an attack."""
        held = sum(math.prod(tensor.shape) for tensor in self.tensors.values()) if has_weights(self.path) else math.inf
        if config.n_parameters() > 2 * held + 10_000:
            rule = f"expected about {held:,}, as many as the file of weights holds; take both files from the same model"
            raise InvalidInput(f"{self.path / 'config.json'}: describes {config.n_parameters():,} weights, {rule}")
        return config

    def load_into(self, model: Storable) -> None:
        """Reads the weights into a model's parameters, which decide what is expected.

        Biases that the file lacks are 0 where it says so (nanoGPT without biases). Raises ValueError that lists missing, unexpected and
        wrongly shaped tensors together, or for a damaged file, FileNotFoundError without weights.
        """
        stored = dict(self.tensors)
        wanted = {canonical_name(name): p for name, p in model.named_parameters()}
        if not model.config.qkv_bias:
            stored = {name: tensor for name, tensor in stored.items() if not name.endswith(".attn.c_attn.bias")}
        head = stored.pop("lm_head.weight", None) if model.config.tie_word_embeddings else None
        if head is not None and "wte.weight" not in stored:
            stored["wte.weight"], head = head, None
        zero = {name for name in wanted if self.fields.get("bias") is False and name.endswith(".bias") and name not in stored}
        _compare(self.path, stored, {name: p.shape for name, p in wanted.items() if name not in zero}, model.config)
        for name, p in wanted.items():
            if name in zero:
                p.data[...] = 0
            else:
                read_array(stored[name], p.data)
        if head is not None and not head.equals(backend.to_host(wanted["wte.weight"].data)):
            rule = "expected equal ones where the output layer is tied to the embedding"
            fix = 'write "tie_word_embeddings": false into config.json'
            raise InvalidInput(f"{head.path}: lm_head.weight differs from wte.weight, {rule}; {fix}")


def read_array(tensor: StoredTensor, out: Array) -> None:
    """Reads a tensor into an array of the backend, on the host or the device."""
    if isinstance(out, np.ndarray):
        read_into(tensor, out)
        return
    host = np.empty(out.shape, dtype=np.float32)
    read_into(tensor, host)
    out[...] = backend.to_device(host)


def _compare(path: Path, stored: dict[str, StoredTensor], wanted: dict[str, tuple[int, ...]], config: GPTConfig) -> None:
    """Raises ValueError that lists all differences between the tensors of a file and those of a model."""
    missing = [f"{name} {shape}" for name, shape in wanted.items() if name not in stored]
    unexpected = [f"{name} {tensor.wanted_shape}" for name, tensor in stored.items() if name not in wanted]
    both = [(name, stored[name], shape) for name, shape in wanted.items() if name in stored]
    misshapen = [f"{name} of shape {t.wanted_shape} instead of {shape}" for name, t, shape in both if t.wanted_shape != shape]
    strange = [f"{name} of dtype {t.dtype}" for name, t, _ in both if t.dtype not in FLOATS]
    kinds = (("missing ", missing), ("unexpected ", unexpected), ("", misshapen), ("", strange))
    problems = "; ".join(f"{kind}{some_names(names)}" for kind, names in kinds if names)
    if problems:
        raise InvalidInput(f"{path}: {problems}, expected the tensors of {config} as {', '.join(FLOATS)}; is it another model's file?")


def pretrained_files(model: Storable, tokenizer: StorableTokenizer | None = None) -> dict[str, Content]:
    """The files of a Hugging Face checkpoint, by name: config.json, model.safetensors and, if given, the tokenizer's."""
    weights = {name: backend.to_host(p.data) for name, p in model.named_parameters()}
    if not model.config.qkv_bias and model_type(model.config) == "gpt2":  # whose format always has this bias
        for name in [name for name in weights if name.endswith(".attn.c_attn.weight")]:
            weights[name.removesuffix("weight") + "bias"] = np.zeros(3 * model.config.n_embd, dtype=np.float32)
    more = ({} if tokenizer is None else end_fields(tokenizer)) | getattr(model, "pretrained_fields", dict)()
    fields = config_fields(model.config, None if tokenizer is None else tokenizer.eos_id, more)
    files: dict[str, Content] = {WEIGHTS: TensorFile(weights, {"format": "pt"}), "config.json": to_json(fields)}
    if tokenizer is not None:
        files["tokenizer_config.json"] = to_json(tokenizer_config(tokenizer, model.config.n_positions))
        files |= tokenizer.files()  # those of a tokenizer that was read have that file, too, perhaps with a chat template
    return files


def save_pretrained(model: Storable, directory: str | Path, tokenizer: StorableTokenizer | None = None) -> None:
    """Writes a checkpoint into `directory` (made if need be) that Hugging Face's transformers loads, model and tokenizer.

    Warns where the model is one that GPT-2's format cannot describe, which only tinygpt then reads.
    """
    directory = Path(directory)
    if note := format_note(model.config):
        warnings.warn(f"{directory}: {note}", stacklevel=2)
    files = pretrained_files(model, tokenizer)
    if tokenizer is not None:
        tokenizer.check_directory(directory)
    write_files(directory, files)


def end_fields(tokenizer: StorableTokenizer) -> dict[str, Json]:
    """Ids in config.json with which a text begins and ends: a list where there are several that end it."""
    ends = tokenizer.end_ids
    begin = tokenizer.eos_id if tokenizer.bos_id is None else tokenizer.bos_id
    return {"bos_token_id": begin, "eos_token_id": list(ends) if len(ends) > 1 else next(iter(ends), None)}


def tokenizer_config(tokenizer: StorableTokenizer, n_positions: int) -> dict[str, Json]:
    """What transformers' AutoTokenizer needs in addition to the vocabulary."""
    fields: dict[str, Json] = {"model_max_length": n_positions, "clean_up_tokenization_spaces": False}
    is_bpe = tokenizer.kind in ("bpe", "gpt2")
    fields |= {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False} if is_bpe else {"tokenizer_class": "PreTrainedTokenizerFast"}
    if tokenizer.eos_id is not None:
        end = tokenizer.token_bytes(tokenizer.eos_id).decode()
        fields |= {"bos_token": end, "eos_token": end}
    return fields


def from_pretrained(cls: Callable[..., M], path_or_name: str | Path) -> M:
    """A model with the weights of a checkpoint: a Hugging Face directory, llm.c's file, or a name such as "gpt2". cls is GPT, whose class
    method this is. Raises as `StoredModel` and its `load_into`."""
    stored = StoredModel(path_or_name)
    model = cls(stored.config, _empty=True)
    stored.load_into(model)
    return model
