"""A saved model, opened once: model, tokenizer and the state of training come from one object.

checkpoint = Checkpoint.open("runs/docs-001")          # a run's best checkpoint; or a directory, llm.c's file, a name on the hub
model, tokenizer = checkpoint.model(), checkpoint.tokenizer()
checkpoint.restore(trainer)
"""

import importlib
import math
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from autograd import Array, nn
from autograd.optim import FlatOptimizer
from tinygpt.config import GPTConfig
from tinygpt.data.tokenizer import Tokenizer, gpt2_tokenizer
from tinygpt.data.tokenizer_files import load_tokenizer
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.models.attached import HOMES
from tinygpt.models.gpt import GPT
from tinygpt.models.protocols import Divided
from tinygpt.runs.layout import integrity_errors, list_checkpoints, read_pointer, status, verify_integrity
from tinygpt.storage.checked_json import Entries, Json, read_json_object
from tinygpt.storage.safetensors import StoredTensor, read_safetensors_header, read_tensor
from tinygpt.training.trainer import Trainer
from tinygpt.weights.config_json import LANGUAGE_MODEL, another_kind
from tinygpt.weights.hub import HUB_NAMES, has_weights, locate
from tinygpt.weights.pretrained import StoredModel, read_array


class Checkpoint:
    """A checkpoint: located, checked against its manifest, its config.json and table of tensors read, each once.

    path      its directory, or llm.c's file
    run       the run that it belongs to, or None
    config    the model's shape
    kind      a key of `tinygpt.weights.config_json.KINDS`, by one of Hugging Face's names: GPT2LMHeadModel, GPT2ForSequenceClassification
    """

    def __init__(self, path: Path, run: Path | None = None) -> None:
        self.path, self.run = path, run
        self.stored = StoredModel(path)
        self.config = self.stored.config
        self.kind = self.stored.architecture

    @classmethod
    def open(cls, path_or_name: str | Path, which: str = "best") -> "Checkpoint":
        """The checkpoint meant by `path_or_name`: itself if it holds weights, else the `best` or `last` one of that run.

        Names on Hugging Face's hub (gpt2, owner/name) are fetched where nothing on this machine has that name. Of a run's checkpoints the
        newest intact one replaces a damaged one, with a warning. Raises FileNotFoundError if there is none, ValueError if none is intact.
        """
        path = Path(path_or_name).expanduser()
        if not path.exists() and (str(path_or_name) in HUB_NAMES or len(path.parts) == 2):
            path = locate(path_or_name)
        if has_weights(path):
            if path.is_dir():
                verify_integrity(path)
            return cls(path, path.parent.parent if path.parent.name == "checkpoints" else None)
        names = [read_pointer(path, which), read_pointer(path, "last"), *(p.name for p in reversed(list_checkpoints(path)))]
        damage = ""
        for directory in [path / "checkpoints" / name for name in dict.fromkeys(names) if name]:
            found = integrity_errors(directory)
            if not found:
                if damage:
                    warnings.warn(f"{damage}falling back to {directory}, the newest intact checkpoint", stacklevel=2)
                return cls(directory, path)
            damage += f"{directory}: {found[0]}; "
        if damage:
            fix = f"python -m tinygpt verify {path} lists all"
            raise InvalidInput(f"{path}: no intact checkpoint ({damage.removesuffix('; ')}), expected at least one; {fix}")
        fix = "an adapter: open the model that it belongs to" if (path / "adapter_config.json").is_file() else "check the path"
        raise MissingFile(f"{path}: neither a checkpoint nor a run with one, expected model.safetensors or checkpoints/last; {fix}")

    def model(self) -> nn.Module:
        """The model with its weights: a GPT, or the class that `tinygpt/__init__.py` names for another architecture."""
        if self.kind == LANGUAGE_MODEL:
            return self.language_model()
        module, name = HOMES[self.kind].split(":")
        made: nn.Module = getattr(importlib.import_module(module), name).from_checkpoint(self)
        return made

    def language_model(self) -> GPT:
        """Raises ValueError, saying what it is, for anything but a language model."""
        if self.kind != LANGUAGE_MODEL:
            raise another_kind(self.path, self.kind, LANGUAGE_MODEL)
        assert isinstance(self.config, GPTConfig)
        model = GPT(self.config, _empty=True)
        self.stored.load_into(model)
        return model

    def tokenizer(self) -> Tokenizer:
        """GPT-2's for llm.c's files. Raises ValueError if text can become a token that the model has no row for; fewer tokens than rows are
        normal (padding), and so are special ones beyond them (an image's in a Gemma without eyes)."""
        tokenizer = load_tokenizer(self.path) if self.path.is_dir() else gpt2_tokenizer()
        if not set(range(self.config.vocab_size, tokenizer.n_vocab)) <= set(tokenizer.special.values()):
            rule = f"at most {self.config.vocab_size}, the model's vocabulary"
            raise InvalidInput(f"{self.path}: a tokenizer of {tokenizer.n_vocab} tokens, expected {rule}; are its files another model's?")
        return tokenizer

    @cached_property
    def training(self) -> dict[str, Json]:
        """What training.json holds. Raises FileNotFoundError for a checkpoint that came without the state of training."""
        if not all((self.path / name).is_file() for name in ("training.json", "training.safetensors")):
            rule = "the training state of a run's checkpoint; one that came without it can be fine-tuned, not resumed"
            raise MissingFile(f"{self.path}: no training.json with training.safetensors, expected {rule}")
        return read_json_object(self.path / "training.json")

    def restore(self, trainer: Trainer, *, other_data: bool = False) -> dict[str, Json]:
        """Puts a trainer where the checkpoint was saved: weights, moments, random streams, position in the data, best score.

        The trainer must have been made for the same model and parameters, and, without `other_data`, for the same batches.
        Returns all of training.json. Raises ValueError, naming what differs, for another model's, optimizer's or data set's checkpoint.
        """
        where, path, optimizer = str(self.path / "training.json"), self.path / "training.safetensors", trainer.optimizer
        n_steps = Entries(self.training, where).integer("n_steps")
        stored = read_safetensors_header(path)
        saved = Entries(self.training, where).text("train", "optimizer", default="adamw")  # the only one of earlier versions
        if saved != trainer.config.optimizer:
            rule = f"that of {trainer.config.optimizer}, which trains now"
            raise InvalidInput(f"{path}: the state of the optimizer {saved}, expected {rule}; resume with --optimizer {saved}")
        weights = any(name.startswith("w.") for name in stored)
        if not weights and any(".lora_" in name for name, _ in optimizer.named):
            rule = "them, as newer versions save them; use the run's adapter folder, or fine-tune again"
            raise InvalidInput(f"{path}: holds no weights of the adapter, expected {rule}")
        wanted = {f"{key}.{name}": shape for key, shapes in optimizer.state_shapes().items() for name, shape in shapes.items()}
        check_state(path, stored, wanted | {f"w.{name}": p.shape for name, p in optimizer.named if weights})
        self.restore_weights(trainer)
        state = {key: _Stored({name: stored[f"{key}.{name}"] for name in shapes}) for key, shapes in optimizer.state_shapes().items()}
        optimizer.load_state_dict({"n_steps": n_steps, **state})
        trainer.load_state_dict(self.training, where, other_data=other_data)
        return self.training

    def restore_weights(self, trainer: Trainer) -> None:
        """The trained weights alone, for a trainer of the same model."""
        path = self.path / "training.safetensors"
        stored = read_safetensors_header(path) if path.is_file() else {}
        own = [(stored[f"w.{name}"], p) for name, p in trainer.optimizer.named if f"w.{name}" in stored]
        for tensor, p in own:
            read_array(tensor, p.data)
        if not own and isinstance(trainer.model, Divided):
            self.stored.load_into(trainer.model.empty(), trainer.model.take)
        elif not own:
            assert isinstance(trainer.model, nn.Module)
            self.stored.load_into(trainer.model)

    def describe(self) -> str:
        """Where it is, its step and validation loss, and how its run ended: what a script says of the model it has loaded."""
        if self.run is None or not (self.path / "training.json").is_file():
            return str(self.path)
        progress = read_json_object(self.path / "training.json")
        parts = [str(self.run), f"step {progress.get('step')}"]
        nats = progress.get("last_validation_nats")
        if isinstance(nats, float) and math.isfinite(nats):
            parts.append(f"validation loss {nats:.3f} nats")
        return ", ".join([*parts, status(self.run)])


def check_state(path: Path, stored: Mapping[str, StoredTensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises ValueError where a file holds another state than that of the parameters that are trained now, or a part of it."""
    for name, shape in wanted.items():
        found = stored[name].shape if name in stored else shape
        if found != shape and len(found) == len(shape) and all(own <= n and n % own == 0 for own, n in zip(found, shape, strict=True)):
            raise InvalidInput(f"{path}: {name} of shape {found}, a part of {shape}, as one rank of a mesh has it, {_COMPLETE}")
    if stored.keys() < wanted.keys():
        lacks = next(name for name in wanted if name not in stored)
        part = f"holds the state of {len(stored)} of {len(wanted)} arrays, without {lacks}: a part, as one rank of a mesh has it"
        raise InvalidInput(f"{path}: {part}, {_COMPLETE}, or were others frozen?")
    differ = sorted(stored.keys() ^ wanted.keys())
    differ += [name for name, shape in wanted.items() if name in stored and (stored[name].shape != shape or stored[name].dtype != "F32")]
    if differ:
        odd = f"{differ[0]} is in the file or in the model only, or of another shape or dtype, as are {len(differ) - 1} more"
        rule = "the moments of the parameters that are trained now; is it another model's file, or are others frozen?"
        raise InvalidInput(f"{path}: {odd}, expected {rule}")


_COMPLETE = "expected the complete state; parts cannot be joined here, so save a checkpoint on the mesh that trained, which gathers them"


class _Stored(Mapping[str, Array]):
    """Tensors by name, each read when it is asked for: of a divided state a rank reads its part, and no more than one of them at a time."""

    def __init__(self, tensors: dict[str, StoredTensor]) -> None:
        self.tensors = tensors

    def __getitem__(self, name: str) -> Array:
        return read_tensor(self.tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def training_arrays(optimizer: FlatOptimizer, *, weights: bool) -> dict[str, Array]:
    """Content of training.safetensors: the optimizer's state, and the `weights` of an adapter, which model.safetensors holds merged into others."""
    kept = {f"w.{name}": p.data for name, p in optimizer.named if weights}
    return {f"{key}.{name}": a for key, arrays in optimizer.state_arrays().items() for name, a in arrays.items()} | kept
