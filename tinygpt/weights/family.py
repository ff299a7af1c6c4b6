"""What a published family of models is, to the code that reads and writes its files: two functions for config.json, and a table of names.

Each family stands in a file of its own next to this one; `config_json.py` lists them. A parameter of ours is one tensor of a file or several,
each a view of it (`Part`): tensors are read straight into the views, and written from them, in whatever order their file has the numbers.
"""

import dataclasses
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tinygpt.model_config import GPTConfig, ModelConfig
from tinygpt.storage.checked_json import Json

Fields = dict[str, Json]  # of config.json, or of a model's config


@dataclass(frozen=True)
class Part:
    """A tensor of a file, as what it holds of one of our parameters.

    name   in the file
    view   our parameter -> what the tensor holds of it: a view, not a copy; its axes but the last are the tensor's rows
    skip   rows at the start of the tensor that belong to no parameter
    axes   axes of length 1 that the tensor has in front
    """

    name: str
    view: Callable[[np.ndarray], np.ndarray]
    skip: int = 0
    axes: int = 0

    def shape(self, parameter: np.ndarray) -> tuple[int, ...]:
        """The tensor's shape in the file."""
        view = self.view(parameter)
        rows, columns = (view.shape[:-1], view.shape[-1:]) if parameter.ndim == 2 else (view.shape, ())
        return (*(1,) * self.axes, self.skip + math.prod(rows), *columns)

    def stored(self, parameter: np.ndarray) -> np.ndarray:
        """The tensor as the file is to have it: a view where its axes are the parameter's, else a copy. Skipped rows are 0."""
        rows = self.view(parameter).reshape(-1, *self.shape(parameter)[self.axes + 1 :])
        rows = np.concatenate([np.zeros((self.skip, *rows.shape[1:]), rows.dtype), rows]) if self.skip else rows
        return rows[(None,) * self.axes] if self.axes else rows


Layout = Callable[[Json, str], list[Part]]
"""(the family's config, kind: weight or bias) -> the tensors of a module's parameter of that kind."""
Names = dict[str, str | Layout]


def same(parameter: np.ndarray) -> np.ndarray:
    return parameter


def turned(parameter: np.ndarray) -> np.ndarray:
    """PyTorch's linear layers have (out, in) where we have (in, out)."""
    return parameter.T


def rows_of(columns: np.ndarray) -> np.ndarray:
    """(in, ...out) -> (...out, in); a bias (...out) as it is. For columns that were split into several axes."""
    return np.moveaxis(columns, 0, -1)


def split_heads(config: Json) -> dict[str, tuple[int, int, int]]:
    """Where c_attn's columns have queries, keys and values: {"q": (first column, one past the last, heads), ...}. config: of any kind."""
    config = config if isinstance(config, GPTConfig) else config.blocks()
    d, h, h_kv = config.channels_per_head, config.n_head, config.kv_heads
    return {"q": (0, h * d, h), "k": (h * d, (h + h_kv) * d, h_kv), "v": ((h + h_kv) * d, (h + 2 * h_kv) * d, h_kv)}


def separate(pattern: str, queries: str = "q", keys: str = "k", values: str = "v") -> Layout:
    """c_attn as three layers, for queries, keys and values; `pattern` has {} for their names."""
    names = {"q": queries, "k": keys, "v": values}

    def parts(config: Json, kind: str) -> list[Part]:
        columns = split_heads(config)
        return [Part(f"{pattern.format(names[which])}.{kind}", _columns(start, stop)) for which, (start, stop, _) in columns.items()]

    return parts


def _columns(start: int, stop: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda parameter: parameter[..., start:stop].T


@dataclass(frozen=True)
class Family:
    """Models that share a `model_type`.

    model_type     as config.json has it
    architecture   the class of its language models in transformers
    classifier     that of its classifiers; None where transformers has none
    read           config.json's fields -> the config's; raises ValueError for what our model does not compute
    write          config -> config.json's fields; what the family has no key for is lost, and `describes` finds out
    names          our modules, with a * for the block's number -> theirs, a `Layout` where a name does not say it; others keep their names
    prefixes       what may stand before a name
    renamed        names that other versions of transformers gave -> those of `names`
    config         the class of its shapes: what kind of model it is
    copies         tensors of a file that repeat another one where embedding and output layer are tied -> that other one; equal, or refused
    optional       of each of our modules that a file may lack, a parameter -> the config's field, a bool, that says whether a model has it
    ignored        a pattern for names of tensors that have no use here
    unties         one of `copies`: where it differs from the other one, the output layer is not tied, whatever config.json says
    """

    model_type: str
    architecture: str
    classifier: str | None
    read: Callable[[Fields], Fields]
    write: Callable[[Json], Fields]
    names: Names = field(default_factory=dict)
    prefixes: tuple[str, ...] = ()
    renamed: dict[str, str] = field(default_factory=dict)
    config: type[ModelConfig] = GPTConfig
    copies: dict[str, str] = field(default_factory=dict)
    optional: dict[str, str] = field(default_factory=dict)
    ignored: str = ""
    unties: str = ""

    def parts(self, config: ModelConfig, name: str) -> list[Part]:
        """The tensors of a file that hold our parameter of that name."""
        module, _, kind = name.rpartition(".")
        block = re.match(r"(?:\w+\.)?h\.(\d+)\.", module)
        theirs = self.names.get(re.sub(r"\bh\.\d+\.", "h.*.", module), module if module == "score" or not self.names else None)
        assert theirs is not None, f"{self.model_type}: no name for {name}"
        found = theirs(config, kind) if callable(theirs) else [Part(f"{theirs}.{kind}", turned if block and self.names else same)]
        return [dataclasses.replace(part, name=part.name.replace("*", block[1])) for part in found] if block else found

    def canonical_name(self, name: str) -> str:
        """A tensor's name in a file without what wrappers, or this family's classes, put before it."""
        module, _, kind = without(_WRAPPERS + self.prefixes, name).rpartition(".")
        kind = _OLD_KINDS.get(kind, kind)
        return f"{self.renamed.get(module, module)}.{kind}" if module else kind

    def describes(self, config: ModelConfig) -> bool:
        """Whether this family's config.json says all of a config: what is written is read back as the same model."""
        if not isinstance(config, self.config):
            return False
        try:
            return meaning(self.config.from_dict(self.read(self.write(config)))) == meaning(config)
        except (ValueError, TypeError):
            return False


_OLD_KINDS = {"gamma": "weight", "beta": "bias"}  # of norms, in files that come from TensorFlow
_WRAPPERS = ("transformer.", "_orig_mod.", "module.")  # GPT2LMHeadModel, torch.compile, DistributedDataParallel


def without(prefixes: tuple[str, ...], name: str) -> str:
    while name.startswith(prefixes):
        name = name.partition(".")[2]
    return name


def canonical_name(name: str) -> str:
    """A parameter's name without what a wrapper put before it: `_orig_mod.transformer.wte.weight` is wte.weight."""
    return without(_WRAPPERS, name)


def meaning(config: ModelConfig) -> Fields:
    """A config's fields with the defaults filled in, layer by layer where layers differ: equal where two configs are the same model. Without
    dropout, which every family's config.json can have (`config_json.py`)."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]  # every config is a dataclass
    if not isinstance(config, GPTConfig):
        filled: Fields = getattr(config, "filled", dict)()  # defaults that depend on other fields
        return {name: value for name, value in (fields | filled).items() if name not in _DROPOUTS}
    d, windows = config.channels_per_head, [config.window_of(layer) for layer in range(config.n_layer)]
    everywhere = (config.rope_theta, config.rope_scaling)
    local = everywhere if config.rope_local_theta is None else (config.rope_local_theta, None)
    filled = {
        "n_kv_head": config.kv_heads, "head_size": d, "n_inner": config.inner_channels, "attention_scale": config.attention_scale or d**-0.5,
        "rope_theta": [everywhere if window is None else local for window in windows], "rope_fraction": int(d * config.rope_fraction),
        "rope_scaling": None, "rope_local_theta": None, "window": windows, "window_pattern": "",
    }  # fmt: skip
    return {name: value for name, value in (fields | filled).items() if name not in _DROPOUTS}


_DROPOUTS = ("dropout", "embd_pdrop", "attn_pdrop")
