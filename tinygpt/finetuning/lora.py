"""LoRA: train low-rank matrices next to the frozen ones, save them alone, or merge them into the model.

    adapter = add_lora(model, LoraConfig(rank=8))      # freezes the model; only the new matrices are trained
    ...                                                # train as ever: an AdamW made now holds nothing else
    adapter.save("my-adapter")                         # adapter_config.json, adapter_model.safetensors: PEFT reads them
    with adapter.merged():                             # plain layers with the sum in them: no extra time, and any code can save them
        model.save_pretrained("my-model")
    with adapter.switched_off():                       # the model as it was before the adapter, bit for bit: a reference without a second model
        ...
    adapter = load_lora(base_model, "my-adapter")      # ours or PEFT's

Why it is enough: what fine-tuning adds to a matrix W is close to a matrix of low rank, so it is looked for among products A @ B with few
columns in between. Why it is cheap: no gradient for W is formed, and no moments are kept for it.

Source  Hu et al. 2021, LoRA: low-rank adaptation of large language models, arXiv:2106.09685, section 4.1.
"""

import contextlib
import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import autograd as ag
from autograd import Array, backend, nn
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.finetuning.adapter_names import (
    ALL,
    Columns,
    FileModule,
    Parts,
    families_of,
    file_modules,
    file_parts,
    named_parts,
    target_modules,
)
from tinygpt.finetuning.classifier import TextClassifier
from tinygpt.models.gpt import GPT, OutputLayer
from tinygpt.storage.checked_json import Json, read_json_object, to_json
from tinygpt.storage.safetensors import Content, TensorFile, read_metadata, read_safetensors_header, read_tensor, write_files
from tinygpt.weights.config_json import named_family
from tinygpt.weights.family import Family

Model = GPT | TextClassifier


@dataclass(frozen=True)
class LoraConfig:
    """Which layers get adapters, and their rank."""

    rank: int = 8
    """Columns of A and rows of B: how many directions each layer may change in (r)."""
    alpha: float = 16.0
    """The product A @ B counts alpha / rank times, so that the learning rate can stay when the rank changes."""
    dropout: float = 0.0
    """Probability of dropping each input of A while training."""
    targets: tuple[str, ...] = ("c_attn",)
    """Layers that get them: by role, q, k, v, o (attention's output), up, gate, down (of the MLP); or by the end of their names: c_attn, which
    is q, k and v with one A, attn.c_proj, c_fc, c_gate, mlp.c_proj; c_proj means both; a published family's names do as well. And the
    embeddings, wte and wpe: worth it where the new texts use other words than the old ones."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1 or not self.targets:
            raise InvalidInput(f"{self}: expected rank >= 1, alpha > 0, 0 <= dropout < 1 and at least one target; 8 and 16 are usual")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


class LowRank(nn.Module):
    """The trained correction of a linear layer, or of some of its outputs: s dropout(x) @ A @ B.

    lora_A (in, rank), lora_B (rank, columns); `columns`: which outputs
    B starts at 0, so nothing changes before the first update; A starts at random, or no gradient could reach either.
    """

    def __init__(self, n_in: int, columns: Columns, config: LoraConfig, stream: ag.RandomStream, rng: np.random.Generator) -> None:
        a = rng.standard_normal((n_in, config.rank), dtype=np.float32) / np.float32(math.sqrt(n_in))
        self.lora_A = ag.Parameter(backend.to_device(a))
        self.lora_B = ag.Parameter(backend.to_device(np.zeros((config.rank, columns[1] - columns[0]), dtype=np.float32)))
        self.scale, self.columns = config.scale, columns
        self.dropout = nn.Dropout(config.dropout, stream)

    def correction(self, x: ag.Tensor) -> ag.Tensor:
        thin = ag.linear(self.dropout(x), nn.cast_like(self.lora_A, x)) * self.scale  # (..., rank)
        return ag.linear(thin, nn.cast_like(self.lora_B, x))


class LoraLinear(LowRank):
    """A frozen linear layer and its trained correction: y = x @ W + b + s dropout(x) @ A @ B, with s = alpha / rank.

    weight (in, out), bias (out,) or None: the layer's own
    """

    def __init__(self, linear: nn.Linear, config: LoraConfig, stream: ag.RandomStream, rng: np.random.Generator) -> None:
        self.weight, self.bias = linear.weight, linear.bias
        super().__init__(linear.weight.shape[0], (0, linear.weight.shape[1]), config, stream, rng)

    @property
    def parts(self) -> dict[str, LowRank]:
        return {ALL: self}

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        y = ag.linear(x, nn.cast_like(self.weight, x), None if self.bias is None else nn.cast_like(self.bias, x))  # (..., out)
        return y + self.correction(x)


class LoraParts(nn.Module):
    """A frozen linear layer with corrections of some of its outputs, each with its own A and B: queries and values of c_attn, for instance.

    weight (in, out), bias (out,) or None: the layer's own.  q, k, v: those there are, a `LowRank` each
    """

    def __init__(
        self, linear: nn.Linear, config: LoraConfig, stream: ag.RandomStream, rng: np.random.Generator, parts: Mapping[str, Columns]
    ) -> None:
        self.weight, self.bias = linear.weight, linear.bias
        self.names = sorted(parts, key=lambda name: parts[name])
        for name in self.names:
            setattr(self, name, LowRank(linear.weight.shape[0], parts[name], config, stream, rng))

    @property
    def parts(self) -> dict[str, LowRank]:
        return {name: getattr(self, name) for name in self.names}

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        y = ag.linear(x, nn.cast_like(self.weight, x), None if self.bias is None else nn.cast_like(self.bias, x))  # (..., out)
        end, joined = 0, []
        for part in self.parts.values():
            start, stop = part.columns
            joined += [y[..., end:start]] if end < start else []
            joined.append(y[..., start:stop] + part.correction(x))
            end = stop
        return ag.concatenate(joined + ([y[..., end:]] if end < y.shape[-1] else []), axis=-1)


class LoraEmbedding(nn.Module):
    """A frozen embedding and its trained correction: y = W[ids] + s A[ids] B, with s = alpha / rank.

    weight (V, C): the embedding's own.  lora_A (V, rank), lora_B (rank, C)
    Here A starts at 0, so that an id which training never meets keeps its old row. As in PEFT, no dropout.
    """

    def __init__(self, embedding: nn.Embedding, config: LoraConfig, rng: np.random.Generator) -> None:
        self.weight = embedding.weight
        n_ids, n_out = embedding.weight.shape
        b = rng.standard_normal((config.rank, n_out), dtype=np.float32) / np.float32(math.sqrt(n_out))
        self.lora_A = ag.Parameter(backend.to_device(np.zeros((n_ids, config.rank), dtype=np.float32)))
        self.lora_B = ag.Parameter(backend.to_device(b))
        self.scale, self.columns = config.scale, (0, n_out)

    @property
    def parts(self) -> dict[str, "LoraEmbedding"]:
        return {ALL: self}

    def forward(self, ids: Array) -> ag.Tensor:
        thin = ag.embedding(self.lora_A, ids) * self.scale  # (..., rank)
        return ag.embedding(self.weight, ids) + ag.linear(thin, self.lora_B)


LoraLayer = LoraLinear | LoraParts | LoraEmbedding


def merged_layer(layer: LoraLayer) -> nn.Linear | nn.Embedding:
    """One plain layer that gives the same y (but for rounding, and without dropout)."""
    (n_in, n_out), weight = layer.weight.shape, layer.weight.data.copy()
    for part in layer.parts.values():
        weight[:, part.columns[0] : part.columns[1]] += part.scale * (part.lora_A.data @ part.lora_B.data)
    merged: nn.Linear | nn.Embedding
    if isinstance(layer, LoraEmbedding):
        merged = nn.Embedding(n_in, n_out, init=lambda _: weight)
    else:
        merged = nn.Linear(n_in, n_out, bias=False, init=lambda _: weight)
        merged.bias = layer.bias
    merged.weight.requires_grad = False
    return merged


class _Place(NamedTuple):
    """Where a layer hangs in the model: `getattr(parent, attribute)`; plain: the one that was there before, with the same frozen weights."""

    parent: nn.Module
    attribute: str
    layer: LoraLayer
    plain: nn.Linear | nn.Embedding

    def put(self, module: nn.Linear | nn.Embedding | LoraLayer) -> None:
        """Installs a layer there. A classifier's output layer, which it never uses, keeps sharing the weights of the embedding."""
        before = getattr(self.parent, self.attribute)
        setattr(self.parent, self.attribute, module)
        if isinstance(self.parent, GPT) and self.parent.lm_head.weight is before.weight:
            self.parent.lm_head = OutputLayer(module.weight)


class Adapter:
    """The adapters of one model, by the names of their layers. Made by `add_lora` or `load_lora`."""

    def __init__(self, model: Model, config: LoraConfig, places: dict[str, _Place]) -> None:
        self.model, self.config, self._places = model, config, places
        self.layers = {name: place.layer for name, place in places.items()}
        self.is_merged = False

    def merge(self) -> None:
        """Puts plain layers into the model that hold W + s A @ B. The original layers are kept as they are, for `unmerge`."""
        for place in self._places.values():
            place.put(merged_layer(place.layer))
        self.is_merged = True

    def unmerge(self) -> None:
        """Puts the original layers back: not by subtraction, so every bit is what it was."""
        for place in self._places.values():
            place.put(place.layer)
        self.is_merged = False

    @contextlib.contextmanager
    def merged(self) -> Iterator[None]:
        """Within this block the model is merged; merge for good with `merge`."""
        if self.is_merged:
            yield
            return
        self.merge()
        try:
            yield
        finally:
            self.unmerge()

    @contextlib.contextmanager
    def switched_off(self) -> Iterator[None]:
        """Within this block the model is the one before the adapter, bit for bit. Raises ValueError while it is merged."""
        if self.is_merged:
            raise InvalidInput("switched_off: the adapter is merged, expected one that stands apart; call unmerge first")
        for place in self._places.values():
            place.put(place.plain)
        try:
            yield
        finally:
            self.unmerge()

    def _modules(self, base: str = "") -> tuple[Family, list[FileModule]]:
        """The modules of transformers that have adapters, by the names of the base's family, or the first that describes the model."""
        config, path = self.model.config, Path(base) / "config.json"
        families = families_of(config)
        named = named_family(path, read_json_object(path)) if base and path.is_file() else families[0]
        family = named if named in families else families[0]
        modules = file_modules(config, family, {name: layer.weight.shape for name, layer in self.layers.items()})
        return family, [m for m in modules if any(m.overlaps(part.columns) for part in self.layers[m.layer].parts.values())]

    def tensors(self, base: str = "") -> dict[str, np.ndarray]:
        """What `save` writes, by PEFT's names and in PEFT's (out, in) layout: A (rank, in), B (out, rank), and what else is trained.

        Several corrections of one module of transformers, as of GPT-2's c_attn, become one there, of a rank that is the sum of theirs.
        """
        found: dict[str, np.ndarray] = {}
        family, modules = self._modules(base)
        for module in modules:
            layer = self.layers[module.layer]
            parts = [part for part in layer.parts.values() if module.overlaps(part.columns)]
            a, b = ([backend.to_host(getattr(part, name).data) for part in parts] for name in ("lora_A", "lora_B"))
            if isinstance(layer, LoraEmbedding):
                both = (module.part.stored(a[0]).T, b[0].T)
            else:
                stored = [module.stored(each, part.columns, layer.weight.shape[1]) for each, part in zip(b, parts, strict=True)]
                both = (np.concatenate(a, axis=1).T, np.concatenate(stored, axis=1))
            found |= zip(_names_in_file(module, isinstance(layer, LoraEmbedding)), both, strict=True)
        for name, p in self._also_trained().items():
            for part in file_parts(self.model.config, family, name):
                found[f"{_PREFIX}{part.name}"] = part.stored(backend.to_host(p.data))
        return {name: np.ascontiguousarray(array) for name, array in found.items()}

    def files(self, base: str = "") -> dict[str, Content]:
        """adapter_config.json and adapter_model.safetensors, which PEFT's `PeftModel.from_pretrained` reads.

        base   name or path of the model that the adapter belongs to, for whoever reads the file; a directory also says how it names layers
        Our targets, and a classifier's labels, are noted in the metadata of the safetensors file, where PEFT does not look.
        """
        config, shapes = self.config, _layer_shapes(self.model)
        family, modules = self._modules(base)
        parts = {m.name: [p for p in self.layers[m.layer].parts.values() if m.overlaps(p.columns)] for m in modules}
        ranks = {name: sum(part.lora_A.shape[1] for part in held) for name, held in parts.items()}
        alphas = {name: held[0].scale * ranks[name] for name, held in parts.items()}
        trained = {part.name.rpartition(".")[0] for name in self._also_trained() for part in file_parts(self.model.config, family, name)}
        trained = {"classifier" if name.startswith("classifier.") else name for name in trained}  # PEFT keeps RoBERTa's two layers as one
        fields = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if isinstance(self.model, GPT) else "SEQ_CLS",
            "base_model_name_or_path": base or None,
            **{"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout},
            "rank_pattern": {name: rank for name, rank in ranks.items() if rank != config.rank},
            "alpha_pattern": {name: alpha for name, alpha in alphas.items() if alpha != config.alpha},
            "target_modules": target_modules(self.model.config, family, shapes, modules),
            "modules_to_save": sorted(trained) or None,
            **{"bias": "none", "fan_in_fan_out": not family.names, "inference_mode": True},  # GPT-2's layers are stored (in, out)
        }
        notes = {"labels": json.dumps(self.model.labels)} if isinstance(self.model, TextClassifier) else {}
        notes |= {"targets": json.dumps(config.targets)}
        return {
            "adapter_model.safetensors": TensorFile(self.tensors(base), {"format": "pt", **notes}),
            "adapter_config.json": to_json(fields),
        }

    def save(self, directory: str | Path, base: str = "") -> None:
        """Writes `files` into a directory, made where missing."""
        write_files(Path(directory), self.files(base))

    def _also_trained(self) -> dict[str, ag.Parameter]:
        """What is trained in full, in addition to the low-rank matrices: a classifier's head."""
        thin = {id(p) for layer in self.layers.values() for part in layer.parts.values() for p in (part.lora_A, part.lora_B)}
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad and id(p) not in thin}


def add_lora(model: Model, config: LoraConfig | None = None, seed: int = 0) -> Adapter:
    """Freezes all weights of a model and gives the layers that `config.targets` names matrices to train.

    model   its layers are replaced in place
    seed    decides the initial A
    Call it before an optimizer is made. Raises ValueError if a target names no linear layer and no embedding, or an embedding whose weights
    are the output layer's too, or if the model has an adapter already.
    """
    config = config or LoraConfig()
    return _install(model, config, named_parts(model.config, families_of(model.config), _layer_shapes(model), config.targets), seed)


def _layer_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """(in, out) of the layers that LoRA can correct, with or without a correction, by their names."""
    kinds = (nn.Linear, nn.Embedding, LoraLinear, LoraParts, LoraEmbedding)
    return {name: module.weight.shape for name, module in model.named_modules() if isinstance(module, kinds)}


def _install(model: Model, config: LoraConfig, chosen: Parts, seed: int = 0) -> Adapter:
    modules = dict(model.named_modules())
    if any(isinstance(module, LoraLayer) for module in modules.values()):
        fix = "merge that one permanently, or load the model again"
        raise InvalidInput(f"add_lora: the model has an adapter already, expected one at most; {fix}")
    if isinstance(model, GPT) and any(getattr(modules[name], "weight", None) is model.lm_head.weight for name in chosen):
        found = "its weights are shared with the output layer, expected an embedding with separate weights"
        fix = "leave wte out, or take a model with tie_word_embeddings False (a classifier uses no such layer and may have it)"
        raise InvalidInput(f"LoRA target 'wte': {found}; {fix}")

    for p in model.parameters():
        p.requires_grad = False
    rng, stream = np.random.default_rng([seed, 2]), model.dropout_stream
    places = {}
    for name, parts in chosen.items():
        parent, _, attribute = name.rpartition(".")
        module = modules[name]
        assert isinstance(module, nn.Linear | nn.Embedding)
        layer = _lora_layer(module, config, stream, rng, parts)
        layer.train(module.training)
        places[name] = _Place(modules[parent], attribute, layer, module)
        places[name].put(layer)
    return Adapter(model, config, places)


def _lora_layer(
    module: nn.Module, config: LoraConfig, stream: ag.RandomStream, rng: np.random.Generator, parts: Mapping[str, Columns]
) -> LoraLayer:
    if isinstance(module, nn.Embedding):
        return LoraEmbedding(module, config, rng)
    assert isinstance(module, nn.Linear)
    return LoraLinear(module, config, stream, rng) if ALL in parts else LoraParts(module, config, stream, rng, parts)


def load_lora(model: Model, directory: str | Path) -> Adapter:
    """Adds a saved adapter, ours or PEFT's, to the model that it was trained for; a head that it contains is loaded, too.

    All of it is checked before the model is touched. Raises FileNotFoundError if there is none, ValueError for another method than LoRA,
    for options that we do not have, for a damaged file, for a head of other labels, and, listing them together, for tensors that are
    missing, unexpected or of other shapes.
    """
    directory = Path(directory)
    config, scales = _read_config(directory / "adapter_config.json")
    path = directory / "adapter_model.safetensors"
    labels, targets, arrays = _read_arrays(path)
    if isinstance(model, TextClassifier) and labels not in (None, model.labels):
        fix = "make the classifier with the adapter's labels, or train a new one"
        raise InvalidInput(f"{path}: a head for {', '.join(labels)}, expected {', '.join(model.labels)}, in this order; {fix}")
    if isinstance(targets, list) and targets:  # ours: q and v of GPT-2's c_attn, which PEFT knows as one module
        config = dataclasses.replace(config, targets=tuple(map(str, targets)))
    shapes, families = _layer_shapes(model), families_of(model.config)
    names = {name.partition(".lora_")[0] for name in arrays}
    family = next((f for f in families if any(_PREFIX + m.name in names for m in file_modules(model.config, f, shapes))), families[0])
    chosen = named_parts(model.config, [family], shapes, config.targets)
    modules = file_modules(model.config, family, {name: shapes[name] for name in chosen})
    held = [_Held(m, *scales.of(m.name), [part for part, columns in chosen[m.layer].items() if m.overlaps(columns)]) for m in modules]
    held = [each for each in held if each.parts]
    embeddings = {name for name, module in model.named_modules() if isinstance(module, nn.Embedding)}
    wanted = {name: shape for each in held for name, shape in each.shapes(shapes[each.module.layer], embeddings).items()}
    own = {f"{_PREFIX}{part.name}": (p, part) for name, p in model.named_parameters() for part in file_parts(model.config, family, name)}
    wanted |= {name: part.shape(_without_memory(p.shape)) for name, (p, part) in own.items() if name in arrays}
    _check_arrays(path, model, arrays, wanted, held)

    adapter = _install(model, config, chosen)
    for name, layer in adapter.layers.items():
        for part_name, part in layer.parts.items():
            _fill(layer, part, part_name, [each for each in held if each.module.layer == name and part_name in each.parts], arrays)
    for p, whole, array in ((*own[name], arrays[name]) for name in own.keys() & arrays.keys()):
        host = np.array(backend.to_host(p.data))
        view = whole.view(host)
        view[...] = array[whole.skip :].reshape(view.shape)
        p.data[...], p.requires_grad = backend.to_device(host), True
    return adapter


def _read_arrays(path: Path) -> tuple[Json, Json, dict[str, np.ndarray]]:
    """(labels, targets, tensors) of an adapter's file; labels and targets are null in PEFT's."""
    if not path.is_file():
        raise MissingFile(f"{path.parent}: no {path.name}, expected a saved adapter; write one with Adapter.save")
    try:
        notes = read_metadata(path)
        labels, targets = (json.loads(notes.get(name, "null")) for name in ("labels", "targets"))
        return labels, targets, {name: read_tensor(tensor) for name, tensor in read_safetensors_header(path).items()}
    except (KeyError, ValueError) as error:
        raise InvalidInput(f"{path}: {error}, expected an intact safetensors file; copy or save it again") from error


class _Held(NamedTuple):
    """A module's entry in a file: the rank and alpha of its A and B, and the parts of our layer that these are made of, in equal shares."""

    module: FileModule
    rank: int
    alpha: float
    parts: list[str]

    @property
    def rank_of_each(self) -> int:
        return self.rank // len(self.parts)

    def shapes(self, layer: tuple[int, ...], embeddings: Collection[str]) -> dict[str, tuple[int, ...]]:
        """Of A and B, by their names; layer: our (in, out)."""
        names, module = _names_in_file(self.module, self.module.layer in embeddings), self.module
        if module.layer in embeddings:
            return dict(zip(names, ((self.rank, layer[0] + module.part.skip), (layer[1], self.rank)), strict=True))
        return dict(zip(names, ((self.rank, layer[0]), module.part.shape(_without_memory((self.rank, layer[1])))), strict=True))


def _without_memory(shape: tuple[int, ...]) -> np.ndarray:
    """An array to take views of, for their shapes."""
    return np.broadcast_to(np.float32(0), shape)


def _check_arrays(
    path: Path, model: Model, arrays: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], held: Sequence[_Held]
) -> None:
    """Raises ValueError that lists all differences between the tensors of a file and those of an adapter for the model."""
    problems = [f"missing {name} {shape}" for name, shape in wanted.items() if name not in arrays]
    problems += [f"unexpected {name} {array.shape}" for name, array in arrays.items() if name not in wanted]
    found = [(name, arrays[name].shape, shape) for name, shape in wanted.items() if name in arrays]
    problems += [f"{name} of shape {shape} instead of {right}" for name, shape, right in found if shape != right]
    problems += [f"{each.module.name} of rank {each.rank} for {', '.join(each.parts)}" for each in held if each.rank % len(each.parts)]
    first: dict[str, _Held] = {}
    for each in held if not problems else ():  # c_attn as one layer, of ours, is three modules with one A in other families' files
        other = first.setdefault(each.module.layer, each)
        a, b = (arrays.get(_names_in_file(e.module, False)[0], np.zeros(0)) for e in (other, each))
        if each.parts == [ALL] and (each[1:] != other[1:] or not np.array_equal(a, b)):
            problems.append(f"lora_A, rank or alpha of {other.module.name} and {each.module.name} differ")
    if problems:
        some = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise InvalidInput(f"{path}: {some}, expected the tensors of an adapter for {model.config}; is it another model's?")


def _fill(layer: LoraLayer, part: LowRank | LoraEmbedding, name: str, held: list[_Held], arrays: Mapping[str, np.ndarray]) -> None:
    """Gives a part its A and B from the modules of a file that hold it: one, or several that share an A (ours, of c_attn as one layer)."""
    embedding, n_out = isinstance(layer, LoraEmbedding), layer.weight.shape[1]
    a, full = np.zeros(0), np.zeros((held[0].rank_of_each, n_out), dtype=np.float32)
    for each in held:
        a, b = (arrays[name] for name in _names_in_file(each.module, embedding))
        start = each.parts.index(name) * each.rank_of_each
        mine = slice(start, start + each.rank_of_each)
        a = a[:, each.module.part.skip :] if embedding else a[mine]
        full += b.T if embedding else each.module.loaded(b[:, mine], (0, n_out), n_out)
        part.scale = each.alpha / each.rank
    part.lora_A = ag.Parameter(backend.to_device(np.ascontiguousarray(a.T)))
    part.lora_B = ag.Parameter(backend.to_device(np.ascontiguousarray(full[:, part.columns[0] : part.columns[1]])))


# PEFT's ways to start an adapter that take what it starts with from the model's own weights: it fits those changed weights only.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class _Scales:
    """Rank and alpha of each module: those of most, and those of some, by the end of their names (PEFT's rank_pattern and alpha_pattern)."""

    rank: int
    alpha: float
    ranks: dict[str, int]
    alphas: dict[str, float]

    def of(self, name: str) -> tuple[int, float]:
        rank = next((rank for end, rank in self.ranks.items() if f".{name}".endswith(f".{end}")), self.rank)
        return rank, next((alpha for end, alpha in self.alphas.items() if f".{name}".endswith(f".{end}")), self.alpha)


def _read_config(path: Path) -> tuple[LoraConfig, _Scales]:
    """What an adapter_config.json says. Raises ValueError for what would change the result and is not supported."""
    fields = read_json_object(path)
    if fields.get("peft_type") != "LORA" or not all(key in fields for key in ("r", "lora_alpha", "target_modules")):
        found = f"peft_type {fields.get('peft_type')!r}"
        raise InvalidInput(f"{path}: {found}, expected 'LORA' with r, lora_alpha and target_modules; re-save it")
    plain = {"bias": "none", "use_rslora": False, "use_dora": False, "layers_to_transform": None}
    plain |= {"layer_replication": None, "alora_invocation_tokens": None}
    for key, value in plain.items():
        if fields.get(key, value) not in (value, None):
            raise InvalidInput(f"{path}: {key} {fields[key]!r}, expected {value!r}; only plain LoRA is supported")
    start = fields.get("init_lora_weights", True)
    if isinstance(start, str) and start.startswith(_CHANGE_THE_BASE):
        rule = "a start that leaves the model's weights alone, as true or 'gaussian'"
        fix = "convert the adapter with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        raise InvalidInput(f"{path}: init_lora_weights {start!r}, expected {rule}; {fix}")
    targets = fields["target_modules"]
    if not isinstance(targets, list):
        raise InvalidInput(f"{path}: target_modules {targets!r}, expected a list of names; write the names out")
    patterns = [fields.get(key) or {} for key in ("rank_pattern", "alpha_pattern")]
    for pattern in patterns:
        if not isinstance(pattern, dict) or not all(
            re.fullmatch(r"[\w.]+", end) and type(number) in (int, float) and number > 0 for end, number in pattern.items()
        ):
            raise InvalidInput(f"{path}: {pattern!r:.80}, expected numbers > 0 by the ends of names; write the names out")
    try:
        numbers = int(fields["r"]), float(fields["lora_alpha"]), float(fields.get("lora_dropout", 0.0))
        ranks, alphas = (
            {end: kind(number) for end, number in pattern.items()} for kind, pattern in zip((int, float), patterns, strict=True)
        )
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: {error}, expected r, lora_alpha and lora_dropout to be numbers; re-save it") from None
    return LoraConfig(*numbers, tuple(sorted(targets))), _Scales(numbers[0], numbers[1], ranks, alphas)


_PREFIX = "base_model.model."  # how PEFT's names of tensors begin


def _names_in_file(module: FileModule, embedding: bool) -> tuple[str, str]:
    """What PEFT calls A and B of a module."""
    ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    return f"{_PREFIX}{module.name}.{ends[0]}", f"{_PREFIX}{module.name}.{ends[1]}"
