"""Pictures of a graph, as SVG text: every value, gradient and shape, in a browser or a notebook, with no outside program.

    with ag.record():                 # keeps the numbers; otherwise they are freed when no op needs them
        loss = (x * w).sum()
        loss.backward()
    loss.draw("graph.svg")

Boxes are called what the code calls them: leaves by the caller's variables, a module's parameters by their name in it, results by the
variable that they were stored in, as in "loss = Sum". Without `record` the picture holds shapes, and numbers of the leaves only.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from html import escape
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from autograd import backend, nn
from autograd.core import Array, Node, Op, OpRecord, Tensor
from autograd.core import saved_arrays as saved_arrays

Item = Tensor | tuple[Node, int] | Array
"""What becomes a box: a tensor, output i of a node, or a constant."""
Key = tuple[Node, int] | int

MAX_BOXES = 200
_CHARACTER, _LINE, _PAD, _GAP_X, _GAP_Y = 7.3, 16, 8, 56, 14  # pixels, for 12-pixel monospace
_BLACK, _GREY, _BLUE, _VERMILION, _SKY = "#1a1a1a", "#595959", "#0072B2", "#B34700", "#E8F3FA"  # distinct for color-blind readers, too


SIGNS = {"MatMul": "@", "Multiply": "*", "Add": "+", "Subtract": "-", "Divide": "/", "Negate": "-", "Power": "**"}
"""An op's operator in Python, which its box shows: products of matrices and products element by element are not to be confused."""


class Picture(str):
    """SVG text that a notebook shows as a picture."""

    def _repr_svg_(self) -> str:
        return str(self)


class _Box:
    """A tensor (or constant) in the picture, and the op that made it."""

    def __init__(self, title: str, shape: str, inputs: list["_Box"], leaf: bool) -> None:
        self.title, self.shape, self.inputs, self.leaf = title, shape, inputs, leaf
        self.users: list[_Box] = []
        self.bend = False  # an invisible point that a long line passes through, so that it avoids the boxes on its way
        self.lines: list[tuple[str, str]] = []  # (text, color)
        self.column = self.row = self.x = self.y = 0.0

    @property
    def width(self) -> float:
        return 0 if self.bend else max(len(text) for text, _ in [(self.title + "  " + self.shape, ""), *self.lines]) * _CHARACTER + 2 * _PAD

    @property
    def height(self) -> float:
        return 0 if self.bend else (1 + len(self.lines)) * _LINE + 2 * _PAD - 4


def draw(tensor: Tensor, path: str | Path | None = None, *, names: Mapping[str, object] | None = None, digits: int = 3) -> Picture:
    """The graph behind `tensor` as SVG, from its leaves on the left to itself on the right; values above gradients.

    path     also write it there
    names    what to call leaves and results: {"x": x, "loss": loss}. Default: the variables where `draw` is called. A module there names
             its parameters, {"model": model} gives "h.0.attn.c_attn.weight", {"layer": layer} gives "layer.weight"
    digits   decimals of the numbers
    A leaf without a name has that of the argument that it is in the op, such as "weight"; a number is a "constant".
    Arrays of more than 16 numbers are shown by mean, standard deviation, least and greatest value.
    Raises RuntimeError if the graph has been freed by `backward` outside `record`, ValueError if it has more than 200 boxes.
    """
    if names is None:
        caller = sys._getframe(1)
        names = {**caller.f_locals, **{name: value for name, value in caller.f_globals.items() if name not in caller.f_locals}}
    boxes = _boxes(tensor, _named(names), digits)
    picture = Picture(_svg(_lay_out(boxes)))
    if path is not None:
        Path(path).write_text(picture, encoding="utf-8")
    return picture


def _named(names: Mapping[str, object]) -> dict[Key, str]:
    """Box -> name, for tensors and arrays, those in lists, and the parameters of modules. The first of several names counts."""
    found: dict[Key, str] = {}
    modules = [(name, value) for name, value in names.items() if isinstance(value, nn.Module)]
    items = [(name, value) for name, value in names.items() if name.strip("_")]
    items += [(f"{name}[{i}]", item) for name, value in items if isinstance(value, (list, tuple)) for i, item in enumerate(value)]
    for name, item in items:
        if isinstance(item, (Tensor, backend.device_array)):
            found.setdefault(_key(item), name)
    parts = {id(part) for _, module in modules for _, part in module.named_modules() if part is not module}
    roots = {id(module): (name, dict(module.named_parameters())) for name, module in modules if id(module) not in parts}
    own = Counter(parameter for _, parameters in roots.values() for parameter in parameters)
    for name, parameters in roots.values():
        for parameter, value in parameters.items():
            found.setdefault(_key(value), parameter if own[parameter] == 1 and "." in parameter else f"{name}.{parameter}")
    return found


def saved_bytes(record: OpRecord) -> int:
    """Bytes of the arrays that an op saved for its backward pass, whether or not they are also referenced elsewhere."""
    return sum(array.nbytes for array in saved_arrays(record.saved))


def _boxes(tensor: Tensor, names: dict[Key, str], digits: int) -> list[_Box]:
    """All boxes, inputs before their results. A stack instead of recursion: graphs can be deep."""
    made: dict[Key, _Box] = {}  # in order
    roles: dict[Key, str] = {}  # what the op that uses an item calls it
    waiting: list[tuple[Item, bool]] = [(tensor, False)]
    while waiting:
        item, inputs_done = waiting.pop()
        if _key(item) in made:
            continue
        arguments = _arguments(item)
        inputs = [x for _, x in arguments]
        if not inputs_done:
            waiting.append((item, True))
            for argument, x in arguments:
                roles.setdefault(_key(x), argument)
            waiting += [(x, False) for x in reversed(inputs) if _key(x) not in made]
            if len(waiting) + len(made) > 4 * MAX_BOXES:
                break
            continue
        made[_key(item)] = _box(item, [made[_key(x)] for x in inputs], names.get(_key(item), ""), roles.get(_key(item), "tensor"), digits)
    if len(made) > MAX_BOXES or waiting:
        raise ValueError(f"draw: a graph of more than {MAX_BOXES} boxes, expected fewer; draw a part of it, or use model.trace")
    return list(made.values())


def _origin(item: Item) -> tuple[Node, int] | None:
    """The node that made an item, and which of its outputs the item is; None for leaves and constants."""
    if isinstance(item, Tensor):
        return None if item._node is None else (item._node, item._output)
    return item if isinstance(item, tuple) else None


def _key(item: Item) -> Key:
    """Tensors made by the same node at the same output are one box, whichever object refers to them."""
    return _origin(item) or id(item)


def _arguments(item: Item) -> list[tuple[str, Item]]:
    """What the op that made `item` was given, by its arguments' names: tensors and constants if it was recorded, else the edges left."""
    node, _ = _origin(item) or (None, 0)
    if node is None:
        return []
    if node.record is None and not node.edges:
        raise RuntimeError("draw: the graph has been freed by backward, expected one that was kept; use `with autograd.record():`")
    code = node.op.reference.forward.__code__
    given = node.edges if node.record is None else node.record.inputs
    names = [*code.co_varnames[: code.co_argcount], *(f"x{i}" for i in range(len(given)))]  # Concatenate and Stack take any number
    return [(name, x) for name, x in zip(names, given, strict=False) if x is not None]


def _box(item: Item, inputs: list[_Box], name: str, role: str, digits: int) -> _Box:
    node, output = _origin(item) or (None, 0)
    value: Array = None
    gradient: Array = None
    if node is None:
        value, gradient = (item.data, item.grad) if isinstance(item, Tensor) else (item, None)
        title = name or (role if getattr(value, "ndim", 0) or gradient is not None else "constant")
        shape: tuple[int, ...] = getattr(value, "shape", ())
    else:
        op = " ".join([op_name(node.op), *filter(None, [SIGNS.get(op_name(node.op))])])
        op += f" [{output}]" if len(node.output_shapes) > 1 else ""
        stored = node.record.names if node.record is not None else ()
        name = name or next(iter(stored[output:]), "")
        title = f"{name} = {op}" if name.strip("_") else op
        shape = node.output_shapes[output]
        if node.record is not None:
            value, gradient = node.record.outputs[output], node.record.dys[output]
        elif isinstance(item, Tensor):
            value = item.data
    box = _Box(title, str(shape), inputs, leaf=node is None)
    if value is not None:
        box.lines += [(line, _BLACK) for line in _numbers(value, digits)]
    if gradient is not None:
        first, *rest = _numbers(gradient, digits)
        box.lines += [(f"grad {first}", _VERMILION), *((f"     {line}", _VERMILION) for line in rest)]
    return box


def op_name(op: type[Op]) -> str:
    """The op's name; for a kernel, that of its op."""
    return op.reference.__name__


def _numbers(value: Array, digits: int) -> list[str]:
    """An array as lines of text: the numbers themselves if they are few, else four statistics."""
    if not hasattr(value, "shape"):
        return [f"{value:g}"]
    host = backend.to_host(value)
    if host.size == 0:
        return ["empty"]
    if host.size > 16 or host.ndim > 2:
        x = host.astype(float)
        return [f"mean {x.mean():.{digits}g}, sd {x.std():.{digits}g}", f"{x.min():.{digits}g} to {x.max():.{digits}g}"]
    rows = host.reshape(-1, host.shape[-1]) if host.ndim else host.reshape(1, 1)
    text = [[str(v) if host.dtype.kind in "iub" else f"{v + 0.0:.{digits}f}" for v in row] for row in rows.tolist()]
    width = max(len(v) for row in text for v in row)
    return [" ".join(v.rjust(width) for v in row) for row in text]


def _lay_out(boxes: list[_Box]) -> list[_Box]:
    """Sets x and y: columns by depth, rows so that edges stay short. Returns the boxes and the bends of long lines.

    A box goes one column right of its last input; a leaf moves right, next to its first user.
    """
    for box in boxes:
        box.column = 1 + max((b.column for b in box.inputs), default=-1)
        for b in box.inputs:
            b.users.append(box)
    for box in boxes:
        if box.leaf and box.users:
            box.column = min(u.column for u in box.users) - 1
    for box in list(boxes):
        box.inputs = [_bent(b, box, boxes) for b in box.inputs]
    by_column = attrgetter("column")
    columns = [list(column) for _, column in groupby(sorted(boxes, key=by_column), by_column)]
    for repeat in range(5):
        for column in columns:
            if repeat:  # barycentre heuristic: each box moves to the mean row of its neighbours (Sugiyama et al. 1981)
                column.sort(key=lambda b: (fmean([n.row for n in (*b.inputs, *b.users)] or [b.row]), b.row))
            for row, box in enumerate(column):
                box.row = row
    tallest = max(sum(b.height + _GAP_Y for b in column) for column in columns)
    x = float(_PAD)
    for column in columns:
        y = _PAD + (tallest - sum(b.height + _GAP_Y for b in column)) / 2
        width = max(b.width for b in column)
        for box in column:
            box.x, box.y = x + (width / 2 if box.bend else 0), y
            y += box.height + _GAP_Y
        x += width + _GAP_X
    return boxes


def _bent(start: _Box, end: _Box, boxes: list[_Box]) -> _Box:
    """Leads a line from `start` to `end` through a bend in each column between them; returns the last bend, or `start`."""
    here = start
    while here.column + 1 < end.column:
        bend = _Box("", "", [here], leaf=False)
        bend.bend, bend.column = True, here.column + 1
        here.users, bend.users = [u for u in here.users if u is not end] + [bend], [end]
        boxes.append(bend)
        here = bend
    return here


def _svg(boxes: list[_Box]) -> str:
    shown = [box for box in boxes if not box.bend]
    width = max(b.x + b.width for b in boxes) + _PAD
    height = max(b.y + b.height for b in boxes) + _PAD
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" '
        f'role="img" font-family="ui-monospace, monospace" font-size="12">',
        f"<title>{escape(f'graph of {len(shown)} tensors, from {sum(b.leaf for b in shown)} leaves to {shown[-1].title}')}</title>",
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="white"/>',
    ]
    for box in boxes:
        for b in box.inputs:
            x1, y1, x2, y2 = b.x + b.width, b.y + b.height / 2, box.x, box.y + box.height / 2
            bend = max(20.0, (x2 - x1) / 2)
            parts.append(
                f'<path d="M{x1:.0f} {y1:.0f}C{x1 + bend:.0f} {y1:.0f} {x2 - bend:.0f} {y2:.0f} {x2:.0f} {y2:.0f}" fill="none" '
                f'stroke="{_GREY}"/>' + ("" if box.bend else f'<path d="M{x2:.0f} {y2:.0f}l-7 -4v8z" fill="{_GREY}"/>')
            )
    for box in shown:
        parts.append(
            f'<rect x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{box.height:.0f}" rx="4" '
            f'fill="{"white" if box.leaf else _SKY}" stroke="{_GREY if box.leaf else _BLUE}"/>'
        )
        y = box.y + _PAD + 8
        parts.append(
            f'<text x="{box.x + _PAD:.0f}" y="{y:.0f}" fill="{_BLACK}"><tspan font-weight="bold">{escape(box.title)}</tspan>'
            f'<tspan fill="{_GREY}">  {escape(box.shape)}</tspan></text>'
        )
        for text, color in box.lines:
            y += _LINE
            parts.append(f'<text x="{box.x + _PAD:.0f}" y="{y:.0f}" fill="{color}" xml:space="preserve">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>"])


setattr(Tensor, "draw", draw)  # noqa: B010  (a plain assignment would need the signature twice)
