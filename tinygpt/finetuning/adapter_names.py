"""Which layers LoRA corrects, by role, by our names or by those of a published family; and what adapter files call them.

A file of PEFT names the modules of transformers: Llama's q_proj, k_proj and v_proj are parts of our c_attn, GPT-NeoX's query_key_value is all of
it, in another order. The tables are those of the checkpoints (`tinygpt/weights/`).
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from tinygpt.errors import InvalidInput, did_you_mean
from tinygpt.model_config import ModelConfig
from tinygpt.weights.config_json import FAMILIES, OWN
from tinygpt.weights.family import Family, Part, canonical_name, split_heads, turned

ROLES = {
    "q": "attn.c_attn", "k": "attn.c_attn", "v": "attn.c_attn", "o": "attn.c_proj",
    "up": "mlp.c_fc", "gate": "mlp.c_gate", "down": "mlp.c_proj",
}  # fmt: skip
"""What a layer does -> its name in our blocks; queries, keys and values are columns of one layer."""
ALL = ""  # the name of the part of a layer that is all of it

Shapes = Mapping[str, tuple[int, ...]]  # (in, out) of the layers that can be corrected, by our names
Columns = tuple[int, int]  # first output channel, one past the last
Parts = dict[str, dict[str, Columns]]  # our layer -> what of it is corrected: ALL, or q, k, v


class FileModule(NamedTuple):
    """A module of transformers that holds one of our layers, or some of its columns.

    name      in its model there; `layer`: ours
    part      how its weight is ours
    columns   of our layer
    """

    name: str
    layer: str
    part: Part
    columns: Columns

    def overlaps(self, columns: Columns) -> bool:
        return self.columns[0] < columns[1] and columns[0] < self.columns[1]

    def stored(self, b: np.ndarray, columns: Columns, n_out: int) -> np.ndarray:
        """B (rank, columns) as the file has it: (out, rank), 0 for outputs that are not among the columns."""
        full = np.zeros((len(b), n_out), dtype=b.dtype)
        full[:, columns[0] : columns[1]] = b
        return self.part.stored(full)

    def loaded(self, stored: np.ndarray, columns: Columns, n_out: int) -> np.ndarray:
        """The other way: (out, rank) -> (rank, columns)."""
        full = np.zeros((stored.shape[1], n_out), dtype=stored.dtype)
        view = self.part.view(full)
        view[...] = stored.reshape(view.shape)
        return full[:, columns[0] : columns[1]]


def families_of(config: ModelConfig) -> list[Family]:
    """The families that describe a config, and may have named an adapter's layers; our own form, with our names, where none does."""
    return [family for family in FAMILIES if family.describes(config)] or [family for family in OWN if isinstance(config, family.config)]


def file_parts(config: ModelConfig, family: Family, parameter: str) -> list[Part]:
    """The tensors of a file that hold a parameter of ours; Hugging Face's GPT-2 holds the parts of ours in its `transformer`."""
    short = canonical_name(parameter)
    if family.names:
        return family.parts(config, short)
    matrix = short.startswith("h.") and short.endswith(".weight")
    return [
        dataclasses.replace(part, name=name_there(part.name), view=turned if matrix else part.view) for part in family.parts(config, short)
    ]


def name_there(name: str) -> str:
    return name if name.startswith("score.") else f"transformer.{name}"


def file_modules(config: ModelConfig, family: Family, shapes: Shapes) -> list[FileModule]:
    """What transformers calls layers of ours."""
    found = []
    for layer, (_, n_out) in shapes.items():
        for part in file_parts(config, family, f"{layer}.weight"):
            columns = np.zeros((1, n_out))
            part.view(columns)[...] = 1
            (held,) = columns[0].nonzero()
            found.append(FileModule(part.name.removesuffix(".weight"), layer, part, (int(held[0]), int(held[-1]) + 1)))
    return found


def named_parts(config: ModelConfig, families: Iterable[Family], shapes: Shapes, targets: Iterable[str]) -> Parts:
    """What the targets name: roles, or the end of names (PEFT's rule), ours or a family's. Raises ValueError for one that names nothing."""
    there = [module for family in families for module in file_modules(config, family, shapes)]
    heads = {role: (start, stop) for role, (start, stop, _) in split_heads(config).items()}
    roles = {columns: role for role, columns in heads.items()}
    found: Parts = {layer: {} for layer in shapes}
    for target in targets:
        whole = [layer for layer in shapes if _ends(layer, ROLES.get(target, target))]
        hits = [(layer, heads.get(target, (0, shapes[layer][1]))) for layer in whole]
        hits += [(module.layer, module.columns) for module in there if _ends(module.name, target)]
        if not hits:
            _refuse(target, shapes, there)
        for layer, columns in hits:
            found[layer][ALL if columns == (0, shapes[layer][1]) else roles[columns]] = columns
    return {
        layer: {ALL: parts[ALL]} if ALL in parts else dict(sorted(parts.items(), key=_by_columns))
        for layer, parts in found.items()
        if parts
    }


def _by_columns(item: tuple[str, Columns]) -> Columns:
    return item[1]


def _ends(name: str, target: str) -> bool:
    return f".{name}".endswith(f".{target}")


def _refuse(target: str, shapes: Shapes, there: Iterable[FileModule]) -> None:
    ends = sorted({end for name in shapes for end in (name.rpartition(".")[2], ".".join(name.split(".")[-2:]))})
    roles = [role for role, layer in ROLES.items() if any(name.endswith(layer) for name in shapes)]
    known = [*ends, *roles, *(module.name.rpartition(".")[2] for module in there)]
    fix = did_you_mean(target, known, "name layers by their role, or by the end of their names")
    rule = f"expected one of {', '.join(ends)}, or a role: {', '.join(roles)}"
    raise InvalidInput(f"LoRA target {target!r}: no such linear layer or embedding, {rule}; {fix}")


def target_modules(config: ModelConfig, family: Family, shapes: Shapes, adapted: Iterable[FileModule]) -> list[str]:
    """The shortest ends of names by which PEFT finds the adapted modules, and no others."""
    names = {module.name for module in adapted}
    others = {module.name for module in file_modules(config, family, shapes)} - names
    found = set()
    for name in names:
        words = name.split(".")
        ends = [".".join(words[-n:]) for n in range(1, len(words) + 1)]
        found.add(next(end for end in ends if not any(_ends(other, end) for other in others)))
    return sorted(found)
