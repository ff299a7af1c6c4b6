"""Weights in and out: the checkpoints of several families as Hugging Face has them are read and written, llm.c's and nanoGPT's are read.

    model = GPT.from_pretrained("my-gpt2/")       # a directory: config.json and model.safetensors (one file, or shards with an index)
    model = GPT.from_pretrained("gpt2_124M.bin")  # llm.c
    model = GPT.from_pretrained("gpt2")           # fetched from Hugging Face's hub; needs the extra `hub`
    model = GPT.from_pretrained("HuggingFaceTB/SmolLM2-135M")  # of any family in config_json.py
    model.save_pretrained("my-gpt2/", tokenizer)
    model.save_pretrained("my-gpt2/", tokenizer, dtype="bfloat16", max_shard_size="5GB")

Reading goes in two steps. First every file's table of contents is read and checked, which says where each tensor is
(`StoredTensor`). Then names and shapes are compared with the model's, all differences reported at once, and each tensor is read
straight into its parameter, or into its part of one (`tinygpt/weights/family.py`): there is never a second copy of the weights. Nor is there
when they are written: tensors are made one by one.
"""

import dataclasses
import math
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from autograd import Array, Parameter, backend
from tinygpt.errors import InvalidInput, MissingFile, did_you_mean
from tinygpt.model_config import GPTConfig, ModelConfig
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.storage.checked_json import Json, read_json_object, to_json
from tinygpt.storage.safetensors import (
    DTYPES,
    FLOATS,
    ITEM_BYTES,
    WEIGHTS,
    Content,
    Deferred,
    StoredTensor,
    TensorFile,
    read_headers,
    read_into,
    read_tensor,
    remove_weights,
    sharded,
    some_names,
    write_files,
)
from tinygpt.weights.config_json import (
    KINDS,
    another_kind,
    architecture_of,
    config_fields,
    family_of,
    format_note,
    kind_of,
    named_family,
    read_config,
)
from tinygpt.weights.family import Family, Part, canonical_name, same
from tinygpt.weights.gpt2 import GPT2
from tinygpt.weights.hub import has_weights, locate, refuse_gguf, refuse_pickle
from tinygpt.weights.llmc import read_llm_c_header
from tinygpt.weights.seq2seq_keys import DECODING


class Storable(Protocol):
    """What reading and writing need of a model, or of a module that holds one. `pretrained_fields()`: more keys for config.json."""

    @property
    def config(self) -> ModelConfig: ...
    def named_parameters(self) -> Iterator[tuple[str, Parameter]]: ...


class StorableTokenizer(Protocol):
    """What writing needs of a `tinygpt.data.tokenizer.Tokenizer`."""

    model_class: str
    eos_id: int | None
    bos_id: int | None
    end_ids: tuple[int, ...]
    roles: dict[str, str]
    mask_id: int | None
    cls_id: int | None
    pad_id: int | None

    def token_bytes(self, id: int) -> bytes: ...
    def files(self) -> dict[str, bytes]: ...
    def check_directory(self, directory: Path) -> None: ...


M = TypeVar("M", bound=Storable)


def stored_tensors(path: Path, family: Family = GPT2) -> dict[str, StoredTensor]:
    """The location of each tensor of a checkpoint, by the names of its family without what wrappers put before them.

    path   a Hugging Face directory (nanoGPT's names and orientation are understood, too) or llm.c's file
    Raises FileNotFoundError without weights, ValueError for damaged, pickled or quantized ones.
    """
    if path.is_file():
        return read_llm_c_header(path)[1]
    if not has_weights(path):
        for file in sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"), *path.glob("*.ckpt")]):
            raise refuse_pickle(file)
        for file in sorted(path.glob("*.gguf")):
            raise refuse_gguf(file)
        raise MissingFile(f"{path}: no {WEIGHTS}, expected a checkpoint directory; pass one that save_pretrained wrote")
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in read_headers(path).items():
        short = family.canonical_name(name)
        if short in tensors:
            raise InvalidInput(f"{tensor.path}: {short} under two names, expected one of them; remove the copy")
        if not _NO_WEIGHTS.fullmatch(short) and not re.fullmatch(family.ignored, short):
            tensors[short] = tensor
    # nanoGPT's matrices are (out, in), GPT-2's (in, out). The only one whose shape tells is c_attn: (3C, C) or (C, 3C).
    first = tensors.get("h.0.attn.c_attn.weight")
    if family is GPT2 and first is not None and len(first.shape) == 2 and first.shape[0] == 3 * first.shape[1]:
        turned = re.compile(r"h\..*(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
        return {name: dataclasses.replace(tensor, transposed=bool(turned.fullmatch(name))) for name, tensor in tensors.items()}
    return tensors


_NO_WEIGHTS = re.compile(r"(h|layers)\.\d+\.(attn|attention)\.(bias|masked_bias)|.*\.rotary_emb\.inv_freq")  # older files' masks and angles


class StoredModel:
    """A model on disk: its config.json, its shape and the location of each tensor, each read once.

    path_or_name   as `locate` takes it: a Hugging Face directory, nanoGPT's, llm.c's file, or a name on the hub
    Raises FileNotFoundError where there is none, ValueError for an architecture that is not supported, for a variant that our models do not
    compute, and for a shape far beyond the weights.
    """

    config: ModelConfig

    def __init__(self, path_or_name: str | Path) -> None:
        self.path = locate(path_or_name)
        if self.path.is_file():
            self.fields, self.family, self.config = {}, GPT2, read_llm_c_header(self.path)[0]
        else:
            where = self.path / "config.json"
            self.fields = read_json_object(where)
            self.family = named_family(where, self.fields)
            generation = self.path / "generation_config.json"
            if self.family.config is Seq2SeqConfig and generation.is_file():  # what it says, or leaves out, is what transformers does
                told = read_json_object(generation)
                self.fields |= {key: told.get(key) for key in DECODING}
            self.config = self._checked(self._as_stored(read_config(where, self.fields)))

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """By the names of their family. Raises as `stored_tensors` does."""
        return stored_tensors(self.path, self.family)

    @property
    def architecture(self) -> str:
        """As `architecture_of` has it."""
        return architecture_of(self.fields)

    @property
    def n_weights(self) -> int:
        """How many weights the file holds, as `config.n_parameters` counts them: no classifier's head, and no rows that belong to no token."""
        head = {part.name for kind in ("weight", "bias") for part in self._named(self.config, f"score.{kind}")}
        held = sum(math.prod(tensor.shape) for name, tensor in self.tensors.items() if name not in head)
        positions = self._named(self.config, "wpe.weight") if "wpe" in self.family.names else []
        return held - sum(part.skip * self.tensors[part.name].shape[1] for part in positions if part.name in self.tensors)

    def _as_stored(self, config: ModelConfig) -> ModelConfig:
        """The config of a model with those of the family's optional modules that the file has."""
        optional = self.family.optional if has_weights(self.path) else {}
        found: dict[str, Json] = {field: self._named(config, name)[0].name in self.tensors for name, field in optional.items()}
        if self.family.unties and has_weights(self.path):
            pair = (
                self.tensors.get(self.family.canonical_name(name)) for name in (self.family.unties, self.family.copies[self.family.unties])
            )
            output, embedding = pair
            if output is not None and embedding is not None and not output.equals(read_tensor(embedding)):
                found["tie_word_embeddings"] = False
        return type(config).from_dict(vars(config) | found)

    def _checked(self, config: ModelConfig) -> ModelConfig:
        """Raises ValueError for a shape far beyond the weights, before a model of it is made: a typing error, or an attack."""
        held = sum(math.prod(tensor.shape) for tensor in self.tensors.values()) if has_weights(self.path) else math.inf
        if config.n_parameters() > 2 * held + 10_000:
            rule = f"expected about {held:,}, as many as the file of weights holds; take both files from the same model"
            raise InvalidInput(f"{self.path / 'config.json'}: describes {config.n_parameters():,} weights, {rule}")
        return config

    def load_into(self, model: Storable, take: Callable[[str, Array], None] | None = None) -> None:
        """Reads the weights into a model's parameters, which decide what is expected.

        take   gets the name of each parameter, and its weights, which it may keep a part of: then the model's need no memory
        Biases that the file lacks are 0 where it says so (nanoGPT without biases). Raises ValueError that lists missing, unexpected and
        wrongly shaped tensors together, or for a damaged file, FileNotFoundError without weights.
        """
        stored, wanted = dict(self.tensors), {canonical_name(name): p for name, p in model.named_parameters()}
        config = model.config
        if self.family is GPT2 and isinstance(config, GPTConfig) and not config.qkv_bias:
            stored = {name: tensor for name, tensor in stored.items() if not name.endswith(".attn.c_attn.bias")}
        copies = self._without_copies(stored, config)
        zero = {name for name in wanted if self.fields.get("bias") is False and name.endswith(".bias") and name not in stored}
        parts = {name: self._named(config, name) for name in wanted if name not in zero}
        shapes = {part.name: part.shape(_without_memory(wanted[name].shape)) for name in parts for part in parts[name]}
        _compare(self.path, stored, shapes, config)

        def read(name: str) -> Array:
            out = backend.xp.empty(wanted[name].shape, np.float32) if take else wanted[name].data
            if name in zero:
                out[...] = 0
            else:
                read_parts([(stored[part.name], part) for part in parts[name]], out)
            return out

        for name in wanted:
            array = read(name)
            if take:
                take(name, array)
        for copied, copy, original in copies:
            name, part = next((name, part) for name in parts for part in parts[name] if part.name == original)
            if not copy.equals(part.stored(backend.to_host(read(name) if take else wanted[name].data))):
                rule = "expected equal ones where the output layer is tied to the embedding"
                fix = 'write "tie_word_embeddings": false into config.json'
                if "embed_tokens" in copied:
                    rule, fix = "expected equal ones", "a model whose encoder and decoder have embeddings of their own is not supported"
                raise InvalidInput(f"{copy.path}: {copied} differs from {original}, {rule}; {fix}")

    def _without_copies(self, stored: dict[str, StoredTensor], config: ModelConfig) -> list[tuple[str, StoredTensor, str]]:
        """Takes out of `stored` what repeats another tensor because it is tied to it: [(its name, copy, name of the other), ...]. One whose other the
        file lacks takes its name."""
        copies = {self.family.canonical_name(name): self.family.canonical_name(original) for name, original in self.family.copies.items()}
        if isinstance(config, GPTConfig):
            embedding, output = (self._named(config, f"{module}.weight")[0].name for module in ("wte", "lm_head"))
            copies = {output: embedding}
        found = []
        if not config.tie_word_embeddings:  # where a family has several copies, they are those of one embedding for all stacks
            copies = {name: original for name, original in copies.items() if self.family.unties not in ("", name)}
        for name, original in copies.items():
            if name in stored and original in stored:
                found.append((name, stored.pop(name), original))
            elif name in stored:
                stored[original] = stored.pop(name)
        return found

    def _named(self, config: ModelConfig, name: str) -> list[Part]:
        """The tensors that hold a parameter, by their names in `tensors`."""
        parts = self.family.parts(config, name)
        return [dataclasses.replace(part, name=self.family.canonical_name(part.name)) for part in parts]


def _without_memory(shape: tuple[int, ...]) -> np.ndarray:
    """An array to take views of, for their shapes."""
    return np.broadcast_to(np.float32(0), shape)


def read_parts(parts: Iterable[tuple[StoredTensor, Part]], out: Array) -> None:
    """Reads tensors into the parts of an array of the backend, on the host or the device, that they hold."""
    host = out if isinstance(out, np.ndarray) else np.empty(out.shape, dtype=np.float32)
    for tensor, part in parts:
        view = part.view(host)
        assert np.may_share_memory(view, host), f"{part.name}: read into a copy"
        skipped = part.skip * math.prod(tensor.shape[1:]) * ITEM_BYTES[tensor.dtype]
        if part.skip or view.shape != tensor.wanted_shape:
            tensor = dataclasses.replace(tensor, start=tensor.start + skipped, shape=view.shape)
        read_into(tensor, view)
    if host is not out:
        out[...] = backend.to_device(host)


def read_array(tensor: StoredTensor, out: Array) -> None:
    """Reads a tensor into an array of the backend, on the host or the device."""
    read_parts([(tensor, Part("", same))], out)


def _compare(path: Path, stored: dict[str, StoredTensor], wanted: dict[str, tuple[int, ...]], config: ModelConfig) -> None:
    """Raises ValueError that lists all differences between the tensors of a file and those of a model."""
    missing = [f"{name} {shape}" for name, shape in wanted.items() if name not in stored]
    unexpected = [f"{name} {tensor.wanted_shape}" for name, tensor in stored.items() if name not in wanted]
    both = [(name, stored[name], shape) for name, shape in wanted.items() if name in stored]
    misshapen = [f"{name} of shape {t.wanted_shape} instead of {shape}" for name, t, shape in both if t.wanted_shape != shape]
    strange = [f"{name} of dtype {t.dtype}" for name, t, _ in both if t.dtype not in FLOATS]
    kinds = (("missing ", missing), ("unexpected ", unexpected), ("", misshapen), ("", strange))
    problems = "; ".join(f"{kind}{some_names(names)}" for kind, names in kinds if names)
    if problems:
        fix = "is it another model's file?"
        if missing and unexpected:
            name = min(name for name in stored if name not in wanted)
            fix = f"{name}: {did_you_mean(name, [name for name in wanted if name not in stored], fix)}"
        raise InvalidInput(f"{path}: {problems}, expected the tensors of {config} as {', '.join(FLOATS)}; {fix}")


def pretrained_files(
    model: Storable, tokenizer: StorableTokenizer | None = None, dtype: str = "float32", max_shard_size: int | str | None = None
) -> dict[str, Content]:
    """The files of a Hugging Face checkpoint, by name: config.json, the weights and, if given, the tokenizer's. Arguments and errors: `save_pretrained`."""
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype: {dtype!r}, expected one of {', '.join(DTYPES)}; {did_you_mean(dtype, DTYPES)}")
    more: dict[str, Json] = ({} if tokenizer is None else end_fields(tokenizer)) | getattr(model, "pretrained_fields", dict)()
    config, kind = model.config, _kind(model, more)
    family = family_of(config, kind)
    weights: dict[str, np.ndarray | Deferred] = dict(_weights(model, family))
    if family is GPT2 and isinstance(config, GPTConfig) and not config.qkv_bias:  # whose format always has this bias
        for name in [name for name in weights if name.endswith(".attn.c_attn.weight")]:
            weights[name.removesuffix("weight") + "bias"] = np.zeros(3 * config.n_embd, dtype=np.float32)
    file = TensorFile(weights, {"format": "pt"}, dtype)
    file.check_range()
    stored_as = {"dtype": dtype, "torch_dtype": dtype}  # as transformers 5 and earlier versions have it
    fields = config_fields(config, None if tokenizer is None else tokenizer.eos_id, more) | stored_as
    files = sharded(file, max_shard_size) | {"config.json": to_json(fields)}
    if tokenizer is not None:
        files["tokenizer_config.json"] = to_json(tokenizer_config(tokenizer, model.config.n_positions))
        files |= tokenizer.files()  # those of a tokenizer that was read have that file, too, perhaps with a chat template
    return files


def _kind(model: Storable, more: dict[str, Json]) -> str:
    """The key of KINDS for a model with these further fields of config.json."""
    return kind_of(type(model.config), KINDS[architecture_of(more)].classifier)


def _weights(model: Storable, family: Family) -> Iterator[tuple[str, Deferred]]:
    """(name, array) for each tensor of a file; arrays share the model's memory where their order is the file's, or its transpose."""
    for name, p in model.named_parameters():
        ours = [Part(name, same)] if not family.names else family.parts(model.config, canonical_name(name))
        for part in ours:
            yield part.name, Deferred(part.shape(_without_memory(p.shape)), partial(_stored, part, p.data))


def _stored(part: Part, parameter: Array) -> np.ndarray:
    return part.stored(backend.to_host(parameter))


def save_pretrained(
    model: Storable,
    directory: str | Path,
    tokenizer: StorableTokenizer | None = None,
    dtype: str = "float32",
    max_shard_size: int | str | None = None,
) -> None:
    """Writes a checkpoint into `directory` (made if need be) that Hugging Face's transformers loads, model and tokenizer.

    dtype            in which the weights are stored: float32, float16 or bfloat16
    max_shard_size   bytes, or a text such as "5GB": where the weights have more, they come in several files with an index; None: one file
    The weights of an earlier save in the directory are deleted first. Warns where the model is one that no published family describes, which only
    tinygpt then reads. Raises ValueError for another dtype or size, and for a weight beyond the dtype's range.
    """
    directory = Path(directory)
    files = pretrained_files(model, tokenizer, dtype, max_shard_size)
    if note := format_note(model.config, _kind(model, getattr(model, "pretrained_fields", dict)())):
        warnings.warn(f"{directory}: {note}", stacklevel=2)
    if tokenizer is not None:
        tokenizer.check_directory(directory)
    remove_weights(directory)
    write_files(directory, files)


def end_fields(tokenizer: StorableTokenizer) -> dict[str, Json]:
    """Ids in config.json with which a text begins and ends, a list where there are several that end it; an encoder's padding, too."""
    ends = tokenizer.end_ids
    begin = next((id for id in (tokenizer.bos_id, tokenizer.cls_id, tokenizer.eos_id) if id is not None), None)
    padding = {} if tokenizer.mask_id is None else {"pad_token_id": tokenizer.pad_id}
    return {"bos_token_id": begin, "eos_token_id": list(ends) if len(ends) > 1 else next(iter(ends), None), **padding}


def tokenizer_config(tokenizer: StorableTokenizer, n_positions: int) -> dict[str, Json]:
    """What transformers' AutoTokenizer needs in addition to the vocabulary."""
    fields: dict[str, Json] = {"model_max_length": n_positions, "clean_up_tokenization_spaces": False}
    fields |= {"tokenizer_class": tokenizer.model_class} | ({"add_prefix_space": False} if tokenizer.model_class == "GPT2Tokenizer" else {})
    if tokenizer.mask_id is not None and tokenizer.model_class == "PreTrainedTokenizerFast":  # which has no token types by itself
        fields |= {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    if tokenizer.pad_id is not None:  # an encoder's or a translator's
        fields |= tokenizer.roles
    elif tokenizer.eos_id is not None:
        end = tokenizer.token_bytes(tokenizer.eos_id).decode()
        fields |= {"bos_token": end, "eos_token": end}
    return fields


def from_pretrained(cls: Callable[..., M], path_or_name: str | Path) -> M:
    """A model with the weights of a checkpoint: a Hugging Face directory, llm.c's file, or a name such as "gpt2". cls is GPT, or the class
    of another kind of model, with a `config_class`, whose class method this is. Raises as `StoredModel` and its `load_into`, and for a model of another kind."""
    stored = StoredModel(path_or_name)
    wanted = kind_of(getattr(cls, "config_class", GPTConfig))
    if stored.architecture != wanted:
        raise another_kind(stored.path, stored.architecture, wanted)
    model = cls(stored.config, _empty=True)
    stored.load_into(model)
    return model
