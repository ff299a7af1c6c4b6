"""What a model is made of, and what one forward pass does: `model.summary()` and `model.trace(ids)`.

print(model.summary())
print(model.trace(ids))            # a table: step, shape, parameters, FLOPs, bytes saved for backward
"""

from collections.abc import Callable
from dataclasses import dataclass

import autograd as ag
from autograd import Array, nn
from autograd.drawing import op_name, saved_arrays
from tinygpt.errors import InvalidInput
from tinygpt.models.base import Model
from tinygpt.seq2seq_config import Seq2SeqConfig
from tinygpt.training.memory_budget import state_numbers
from tinygpt.training.optimizers import hidden_matrices

Steps = list[tuple[str, ag.OpRecord]]
"""Every op in order, with the dotted name of the module that ran it."""


@dataclass(frozen=True)
class TraceStep:
    """One op of a forward pass.

    module        dotted name of the module that ran it ("h.0.attn.c_attn"; "" for the model itself)
    op            class of the op
    shape         of its output (of the first, if there are several)
    n_parameters  weights among its inputs
    flops         floating-point operations of the forward pass: 2 per multiply-add of matrix products, else 1 per output element
    saved_bytes   of the memory that stays for backward because of this op: not counted are weights, ids and what an earlier op holds already
    """

    module: str
    op: str
    shape: tuple[int, ...]
    n_parameters: int
    flops: int
    saved_bytes: int


class Text(str):
    """A string that an interactive session shows as it is, line by line."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class Trace:
    """The steps of one forward pass; `print` and an interactive session show them as a table with their sums."""

    steps: list[TraceStep]

    @property
    def flops(self) -> int:
        return sum(step.flops for step in self.steps)

    @property
    def saved_bytes(self) -> int:
        return sum(step.saved_bytes for step in self.steps)

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [("module", "op", "shape", "parameters", "FLOPs", "saved bytes")]
        rows += [(s.module, s.op, str(s.shape), f"{s.n_parameters:,}", f"{s.flops:,}", f"{s.saved_bytes:,}") for s in self.steps]
        rows.append(("sum", "", "", "", f"{self.flops:,}", f"{self.saved_bytes:,}"))
        return _table(rows, n_left=3)


def trace(model: Model, ids: Array, targets: Array | None = None, attention_mask: Array | None = None) -> Trace:
    """The ops of one forward pass on ids (B, T), host integers, in order: up to the logits or, with targets (B, T), up to the loss.

    For an encoder-decoder ids (B, S) are the sources, and targets (B, T) are needed: raises ValueError without.
    attention_mask   as the model takes it; None: no padding
    """
    if targets is None and isinstance(model.config, Seq2SeqConfig):
        raise InvalidInput("trace: an encoder-decoder without targets, expected them; call model.trace(source_ids, targets)")
    found = []
    steps = watched(model, lambda: model(ids, attention_mask) if targets is None else model.loss(ids, targets, attention_mask))
    weights = {id(p) for p in model.parameters()}
    counted = {id(_memory_of(p.data)) for p in model.parameters()}
    for module, step in steps:
        kept = {id(m): m for m in map(_memory_of, saved_arrays(step.saved)) if m.dtype.kind not in "iu" and id(m) not in counted}
        counted.update(kept)
        n_parameters = sum(x.size for x in step.inputs if id(x) in weights)
        n_bytes = sum(m.nbytes for m in kept.values())
        flops = step.op.flops([x.shape for x in step.inputs if hasattr(x, "shape")], [y.shape for y in step.outputs])
        found.append(TraceStep(module, op_name(step.op), step.outputs[0].shape, n_parameters, flops, n_bytes))
    return Trace(found)


def watched(model: nn.Module, run: Callable[[], object]) -> Steps:
    """Calls `run` and gives every op of it, named by the modules of `model`."""
    modules = [(name, module) for name, module in model.named_modules() if name and hasattr(module, "forward")]
    running = [""]
    names: list[str] = []

    def name_steps() -> None:
        """What was recorded since the last call is of the module that is running."""
        names.extend([running[-1]] * (len(steps) - len(names)))

    def watch(name: str, forward: Callable[..., Array]) -> Callable[..., Array]:
        def watched_forward(*args: Array, **kwargs: Array) -> Array:
            name_steps()
            running.append(name)
            y = forward(*args, **kwargs)
            name_steps()
            running.pop()
            return y

        return watched_forward

    with ag.record() as steps:
        for name, module in modules:
            module.forward = watch(name, module.forward)
        try:
            run()
        finally:
            for _, module in modules:
                del module.forward  # the class's own again
    name_steps()
    return list(zip(names, steps, strict=True))


def summary(model: Model, optimizer: str = "adamw") -> Text:
    """A table of every parameter (shape, number of weights, trainable or frozen), with the sums that memory planning needs.

    optimizer   by the name that `TrainConfig` gives it
    """
    rows: list[tuple[str, ...]] = [("parameter", "shape", "weights", "")]
    rows += [(name, str(p.shape), f"{p.size:,}", "" if p.requires_grad else "frozen") for name, p in model.named_parameters()]
    n, itemsize = model.n_parameters(), model.parameters()[0].dtype.itemsize
    sizes = {name: p.size for name, p in model.named_parameters() if p.requires_grad}
    n_trainable, n_in_matrices = sum(sizes.values()), sum(sizes.get(name, 0) for name in hidden_matrices(model))
    state = state_numbers(optimizer, n_trainable, n_in_matrices)
    rows.append(("sum", "", f"{n:,}", ""))
    return Text(
        f"{_table(rows, n_left=2)}\n"
        f"{n_trainable:,} trainable, {n - n_trainable:,} frozen; weights {_mib(n * itemsize)}; "
        f"with gradients and the state of {optimizer} {_mib((n + n_trainable + state) * itemsize)}; plus activations: see trace(ids)"
    )


def _memory_of(array: Array) -> Array:
    """The array whose memory a view looks into: that is what stays alive as long as the view does."""
    while getattr(array, "base", None) is not None and hasattr(array.base, "dtype"):
        array = array.base
    return array


def _table(rows: list[tuple[str, ...]], n_left: int) -> str:
    """Text columns; the first n_left are left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) if i < n_left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.1f} MiB"
