"""LoRA: train low-rank matrices next to the frozen ones, save them alone, or merge them into the model.

    adapter = add_lora(model, LoraConfig(rank=8))      # freezes the model; only the new matrices are trained
    ...                                                # train as ever: an AdamW made now holds nothing else
    adapter.save("my-adapter")                         # adapter_config.json, adapter_model.safetensors: PEFT reads them
    with adapter.merged():                             # plain layers with the sum in them: no extra time, and any code can save them
        model.save_pretrained("my-model")
    adapter = load_lora(base_model, "my-adapter")

Why it is enough: what fine-tuning adds to a matrix W is close to a matrix of low rank, so it is looked for among products A B with few
columns in between. Why it is cheap: no gradient for W is formed, and no moments are kept for it.

Source  Hu et al. 2021, LoRA: low-rank adaptation of large language models, arXiv:2106.09685, section 4.1.
"""

import contextlib
import copy
import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

import autograd as ag
from autograd import Array, backend, nn
from tinygpt.errors import InvalidInput, MissingFile, did_you_mean
from tinygpt.finetuning.classifier import GPTClassifier
from tinygpt.models.gpt import GPT, OutputLayer
from tinygpt.storage.checked_json import read_json_object, to_json
from tinygpt.storage.safetensors import Content, TensorFile, read_metadata, read_safetensors_header, read_tensor, write_files

Model = GPT | GPTClassifier


@dataclass(frozen=True)
class LoraConfig:
    """Which layers get adapters, and their rank."""

    rank: int = 8
    """Columns of A and rows of B: how many directions each layer may change in (r)."""
    alpha: float = 16.0
    """The product A B counts alpha / rank times, so that the learning rate can stay when the rank changes."""
    dropout: float = 0.0
    """Probability of dropping each input of A while training."""
    targets: tuple[str, ...] = ("c_attn",)
    """Layers that get them, by the end of their names: c_attn, attn.c_proj, c_fc, mlp.c_proj; c_proj means both. And the embeddings, wte
    and wpe: worth it where the new texts use other words than the old ones."""

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.alpha < math.inf or not 0 <= self.dropout < 1 or not self.targets:
            raise InvalidInput(f"{self}: expected rank >= 1, alpha > 0, 0 <= dropout < 1 and at least one target; 8 and 16 are usual")


class LoraLinear(nn.Module):
    """A frozen linear layer and its trained correction: y = x W + b + s dropout(x) A B, with s = alpha / rank.

    weight (in, out), bias (out,) or None: the layer's own.  lora_A (in, rank), lora_B (rank, out)
    B starts at 0, so nothing changes before the first update; A starts at random, or no gradient could reach either.
    """

    def __init__(self, linear: nn.Linear, config: LoraConfig, stream: ag.RandomStream, rng: np.random.Generator) -> None:
        self.weight, self.bias = linear.weight, linear.bias
        n_in, n_out = linear.weight.shape
        a = rng.standard_normal((n_in, config.rank), dtype=np.float32) / np.float32(math.sqrt(n_in))
        self.lora_A = ag.Parameter(backend.to_device(a))
        self.lora_B = ag.Parameter(backend.to_device(np.zeros((config.rank, n_out), dtype=np.float32)))
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout, stream)

    def forward(self, x: ag.Tensor) -> ag.Tensor:
        y = ag.linear(x, nn.cast_like(self.weight, x), None if self.bias is None else nn.cast_like(self.bias, x))  # (..., out)
        thin = ag.linear(self.dropout(x), nn.cast_like(self.lora_A, x)) * self.scale  # (..., rank)
        return y + ag.linear(thin, nn.cast_like(self.lora_B, x))


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
        self.scale = config.alpha / config.rank

    def forward(self, ids: Array) -> ag.Tensor:
        thin = ag.embedding(self.lora_A, ids) * self.scale  # (..., rank)
        return ag.embedding(self.weight, ids) + ag.linear(thin, self.lora_B)


LoraLayer = LoraLinear | LoraEmbedding


class _Place(NamedTuple):
    """Where a layer hangs in the model, `getattr(parent, attribute)`; the one that was there before, and the one with an adapter."""

    parent: nn.Module
    attribute: str
    plain: nn.Linear | nn.Embedding
    layer: LoraLayer

    def merged(self) -> nn.Linear | nn.Embedding:
        """A plain layer that gives the same y as the one with an adapter (but for rounding, and without dropout)."""
        merged = copy.copy(self.plain)
        merged.weight = ag.Parameter(self.plain.weight.data + self.layer.scale * (self.layer.lora_A.data @ self.layer.lora_B.data))
        merged.weight.requires_grad = False
        return merged

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
        """Puts plain layers into the model that hold W + s A B. The original layers are kept as they are, for `unmerge`."""
        for place in self._places.values():
            place.put(place.merged())
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

    def tensors(self) -> dict[str, np.ndarray]:
        """What `save` writes, by PEFT's names and in PEFT's (out, in) layout: A (rank, in), B (out, rank), and what else is trained."""
        found: dict[str, Array] = {}
        for name, layer in self.layers.items():
            found |= zip(_names_in_file(self.model, name, layer), (layer.lora_A.data.T, layer.lora_B.data.T), strict=True)
        found |= {_peft_name(self.model, name): p.data for name, p in self._also_trained().items()}
        return {name: np.ascontiguousarray(backend.to_host(array)) for name, array in found.items()}

    def files(self, base: str = "") -> dict[str, Content]:
        """What PEFT's `PeftModel.from_pretrained` reads; base: name or path of the model that the adapter belongs to, for people.

        A classifier's labels are noted in the metadata of the safetensors file, where PEFT does not look.
        """
        config = self.config
        fields = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM" if isinstance(self.model, GPT) else "SEQ_CLS",
            "base_model_name_or_path": base or None,
            **{"r": config.rank, "lora_alpha": config.alpha, "lora_dropout": config.dropout, "target_modules": list(config.targets)},
            "modules_to_save": sorted({name.rpartition(".")[0] for name in self._also_trained()}) or None,
            **{"bias": "none", "fan_in_fan_out": True, "inference_mode": True},  # fan_in_fan_out: GPT-2's layers are stored (in, out)
        }
        labels = {"labels": json.dumps(self.model.labels)} if isinstance(self.model, GPTClassifier) else {}
        tensors = TensorFile(self.tensors(), {"format": "pt", **labels})
        return {"adapter_model.safetensors": tensors, "adapter_config.json": to_json(fields)}

    def save(self, directory: str | Path, base: str = "") -> None:
        """Writes `files` into a directory, made where missing."""
        write_files(Path(directory), self.files(base))

    def _also_trained(self) -> dict[str, ag.Parameter]:
        """What is trained in full, in addition to the low-rank matrices: a classifier's head."""
        thin = {id(p) for layer in self.layers.values() for p in (layer.lora_A, layer.lora_B)}
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad and id(p) not in thin}


def add_lora(model: Model, config: LoraConfig | None = None, seed: int = 0) -> Adapter:
    """Freezes all weights of a model and replaces the layers that `config.targets` names by ones with matrices to train, drawn by `seed`.

    Call it before an optimizer is made. Raises ValueError if a target names no linear layer and no embedding, or an embedding whose weights
    are the output layer's too, or if the model has an adapter already.
    """
    config = config or LoraConfig()
    modules = dict(model.named_modules())
    if any(isinstance(module, LoraLayer) for module in modules.values()):
        fix = "merge that one permanently, or load the model again"
        raise InvalidInput(f"add_lora: the model has an adapter already, expected one at most; {fix}")
    for target in config.targets:
        if not _targets(model, (target,)):
            layers = [name for name, module in modules.items() if isinstance(module, (nn.Linear, nn.Embedding))]
            ends = sorted({end for name in layers for end in (name.rpartition(".")[2], ".".join(name.split(".")[-2:]))})
            fix = did_you_mean(target, ends, "name layers by the end of their names")
            raise InvalidInput(f"LoRA target {target!r}: no such linear layer or embedding, expected one of {', '.join(ends)}; {fix}")
    chosen = _targets(model, config.targets)
    if isinstance(model, GPT) and any(module.weight is model.lm_head.weight for module in chosen.values()):
        found = "its weights are shared with the output layer, expected an embedding with separate weights"
        fix = "leave wte out, or take a model with tie_word_embeddings False (a classifier uses no such layer and may have it)"
        raise InvalidInput(f"LoRA target 'wte': {found}; {fix}")

    for p in model.parameters():
        p.requires_grad = False
    rng, stream = np.random.default_rng([seed, 2]), model.dropout_stream
    places = {}
    for name, module in chosen.items():
        parent, _, attribute = name.rpartition(".")
        layer = LoraLinear(module, config, stream, rng) if isinstance(module, nn.Linear) else LoraEmbedding(module, config, rng)
        layer.train(module.training)
        places[name] = _Place(modules[parent], attribute, module, layer)
        places[name].put(layer)
    return Adapter(model, config, places)


def load_lora(model: Model, directory: str | Path) -> Adapter:
    """Adds a saved adapter, ours or PEFT's, to the model that it was trained for; a head that it contains is loaded, too.

    All of it is checked before the model is touched. Raises FileNotFoundError if there is none, ValueError for what is not plain LoRA, for
    a damaged file, for a head of other labels, and, listing them together, for tensors missing, unexpected or of other shapes.
    """
    directory = Path(directory)
    config = _read_config(directory / "adapter_config.json")
    if isinstance(model, GPT):  # full names, as PEFT writes them for "all-linear", begin with what holds our GPT's parts there
        config = dataclasses.replace(config, targets=tuple(target.removeprefix("transformer.") for target in config.targets))
    path = directory / "adapter_model.safetensors"
    if not path.is_file():
        raise MissingFile(f"{directory}: no adapter_model.safetensors, expected a saved adapter; write one with Adapter.save")
    try:
        labels = json.loads(read_metadata(path).get("labels", "null"))
        arrays = {name: read_tensor(tensor) for name, tensor in read_safetensors_header(path).items()}
    except (KeyError, ValueError) as error:
        raise InvalidInput(f"{path}: {error}, expected an intact safetensors file; copy or save it again") from error
    if isinstance(model, GPTClassifier) and labels not in (None, model.labels):
        fix = "make the classifier with the adapter's labels, or train a new one"
        raise InvalidInput(f"{path}: a head for {', '.join(labels)}, expected {', '.join(model.labels)}, in this order; {fix}")

    wanted: dict[str, tuple[int, ...]] = {}
    for name, module in _targets(model, config.targets).items():
        n_in, n_out = module.weight.shape
        wanted |= zip(_names_in_file(model, name, module), ((config.rank, n_in), (n_out, config.rank)), strict=True)
    own = {_peft_name(model, name): p for name, p in model.named_parameters()}
    wanted |= {name: own[name].shape for name in arrays if name in own}
    shapes = {name: array.shape for name, array in arrays.items()}
    problems = [f"missing {name} {shape}" for name, shape in wanted.items() if name not in shapes]
    problems += [f"unexpected {name} {shape}" for name, shape in shapes.items() if name not in wanted]
    problems += [f"{name} of shape {shapes[name]} instead of {right}" for name, right in wanted.items() if shapes.get(name, right) != right]
    if problems:
        some = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise InvalidInput(f"{path}: {some}, expected the tensors of an adapter for {model.config}; is it another model's?")

    adapter = add_lora(model, config)
    for name, layer in adapter.layers.items():
        for p, key in zip((layer.lora_A, layer.lora_B), _names_in_file(model, name, layer), strict=True):
            p.data[...] = backend.to_device(np.ascontiguousarray(arrays[key].T))
    for name, p in own.items():
        if name in arrays:
            p.data[...] = backend.to_device(arrays[name])
            p.requires_grad = True
    return adapter


# PEFT's ways to start an adapter that take what it starts with from the model's own weights: it fits those changed weights only.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def _read_config(path: Path) -> LoraConfig:
    """What an adapter_config.json says. Raises ValueError for what would change the result and is not supported."""
    fields = read_json_object(path)
    if fields.get("peft_type") != "LORA" or not all(key in fields for key in ("r", "lora_alpha", "target_modules")):
        found = f"peft_type {fields.get('peft_type')!r}"
        raise InvalidInput(f"{path}: {found}, expected 'LORA' with r, lora_alpha and target_modules; re-save it")
    plain = {"bias": "none", "use_rslora": False, "use_dora": False, "rank_pattern": {}, "alpha_pattern": {}, "layers_to_transform": None}
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
    try:
        numbers = int(fields["r"]), float(fields["lora_alpha"]), float(fields.get("lora_dropout", 0.0))
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{path}: {error}, expected r, lora_alpha and lora_dropout to be numbers; re-save it") from None
    return LoraConfig(*numbers, tuple(sorted(targets)))


def _targets(model: Model, targets: tuple[str, ...]) -> dict[str, nn.Linear | nn.Embedding]:
    """The layers of these names, by PEFT's rule: by the full name, or its end after a dot."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Embedding))}
    return {name: module for name, module in layers.items() if f".{name}".endswith(tuple(f".{target}" for target in targets))}


def _peft_name(model: Model, name: str) -> str:
    """A tensor's name in an adapter file; Hugging Face's language model holds our GPT's parts in its `transformer`."""
    return "base_model.model." + ("transformer." if isinstance(model, GPT) else "") + name


def _names_in_file(model: Model, name: str, layer: nn.Module) -> tuple[str, str]:
    """What PEFT calls A and B of the layer of this name."""
    embedding = isinstance(layer, (nn.Embedding, LoraEmbedding))
    ends = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    return _peft_name(model, f"{name}.{ends[0]}"), _peft_name(model, f"{name}.{ends[1]}")
