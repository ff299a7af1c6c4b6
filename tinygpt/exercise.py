"""Checks an exercise: which input's gradient is wrong, where and by how much. What to mend is for you to find.

python -m tinygpt exercise        # the list, and how you stand
python -m tinygpt exercise 3      # one of them
"""

import importlib.util
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import autograd as ag
from autograd import backend
from tinygpt.arguments import command_parser
from tinygpt.errors import InvalidInput, MissingFile

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "exercises"

_STEP = 1e-5  # of the central difference, for numbers of about 1 in float64
_TOLERANCE = 1e-6  # relative to the largest gradient


@dataclass(frozen=True)
class Verdict:
    """What came out for one exercise.

    right   every gradient fits what moving the inputs shows, and backward changed no array that it was given
    lines   the same for people
    """

    right: bool
    lines: list[str]


def exercises(folder: Path = FOLDER) -> dict[int, Path]:
    """Number -> file. Raises FileNotFoundError where the folder holds none."""
    found = {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.py"))}
    if not found:
        raise MissingFile(
            f"{folder}: no exercises, expected files such as 01_tanh.py, which are in the source repository, not in the installed package; "
            "pass --folder CHECKOUT/examples/exercises"
        )
    return found


def check(path: Path, seed: int = 0) -> Verdict:
    """Runs the op of an exercise file on random inputs and compares each gradient with central differences, element by element."""
    try:
        function, arrays = _load(path)(np.random.default_rng(seed))
        dy, gradients, changed = _gradients(function, arrays)
    except Exception:
        last = traceback.format_exc().strip().splitlines()
        where = [line.strip() for line in last if str(path) in line][-1:]
        return Verdict(False, ["it does not run:", *(f"  {line}" for line in (*where, last[-1]))])
    lines, right = [], True
    for name in arrays:
        expected = _measured(function, arrays, name, dy)
        line, fits = _compare(name, gradients[name], expected)
        lines.append(line)
        right = right and fits
    if right and changed:
        lines.append(f"all gradients are right, but backward wrote into {changed}, which others may still need")
    return Verdict(right and not changed, lines)


def _load(path: Path) -> Callable[..., Any]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    inputs: Callable[..., Any] = module.inputs
    return inputs


def _gradients(function: Any, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, dict[str, np.ndarray], str]:
    """A random dy, the gradients by the exercise's backward, and which given array it changed ("" for none)."""
    tensors = {name: ag.Tensor(backend.to_device(x.copy()), requires_grad=True) for name, x in arrays.items()}
    with ag.record() as records:
        y = function(*tensors.values())
    dy = np.random.default_rng(1).standard_normal(y.shape)
    given = backend.to_device(dy.copy())
    kept = [a for step in records for a in ag.drawing.saved_arrays(step.saved)]
    before = [backend.to_host(a).copy() for a in kept]
    y.backward(given)
    changed = ""
    if not np.array_equal(backend.to_host(given), dy):
        changed = "dy"
    elif not all(np.array_equal(backend.to_host(a), b) for a, b in zip(kept, before, strict=True)):
        changed = "a saved array"
    elif not all(np.array_equal(backend.to_host(t.data), arrays[name]) for name, t in tensors.items()):
        changed = "an input"
    missing = [name for name, t in tensors.items() if t.grad is None]
    if missing:
        raise InvalidInput(f"no gradient for {', '.join(missing)}, expected one for each input")
    return dy, {name: backend.to_host(t.grad) for name, t in tensors.items()}, changed


def _measured(function: Any, arrays: dict[str, np.ndarray], name: str, dy: np.ndarray) -> np.ndarray:
    """The gradient of <dy, y> towards one input, by moving each of its elements to both sides."""

    def value(x: np.ndarray) -> float:
        with ag.no_grad():
            y = function(*(ag.Tensor(backend.to_device(x if n == name else a)) for n, a in arrays.items()))
        return float((backend.to_host(y.data) * dy).sum())

    gradient = np.zeros_like(arrays[name])
    for place in np.ndindex(*gradient.shape):
        up, down = arrays[name].copy(), arrays[name].copy()
        up[place] += _STEP
        down[place] -= _STEP
        gradient[place] = (value(up) - value(down)) / (2 * _STEP)
    return gradient


def _compare(name: str, found: np.ndarray, expected: np.ndarray) -> tuple[str, bool]:
    difference = np.abs(found - expected)
    wrong = ~(difference <= _TOLERANCE * max(1.0, float(np.abs(expected).max())))  # nan is wrong
    if not wrong.any():
        return f"gradient of {name} {found.shape}: right", True
    place = np.unravel_index(int(np.argmax(np.where(np.isnan(difference), np.inf, difference))), found.shape)
    at = ", ".join(str(int(i)) for i in place)
    rows = f", in rows {', '.join(map(str, np.flatnonzero(wrong.any(axis=1))))}" if found.ndim == 2 and not wrong.any(axis=1).all() else ""
    return (
        f"gradient of {name} {found.shape}: wrong in {int(wrong.sum())} of {found.size} places{rows}; worst at [{at}]: "
        f"backward says {found[place]:.4f}, moving {name}[{at}] gives {expected[place]:.4f}, off by {found[place] - expected[place]:+.4f}",
        False,
    )


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("exercise", __doc__)
    parser.add_argument("number", type=int, nargs="?", help="which exercise; none: all of them in short")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the exercise files are")
    arguments = parser.parse_args(argv)
    found = exercises(arguments.folder.expanduser())
    if arguments.number is not None and arguments.number not in found:
        raise InvalidInput(f"exercise: {arguments.number}, expected one of {min(found)} to {max(found)}; leave it out for the list")
    if arguments.number is None:
        verdicts = {n: check(path) for n, path in found.items()}
        for n, path in found.items():
            title = re.sub(r"Exercise \d+: ", "", path.read_text(encoding="utf-8").split('"""')[1].splitlines()[0]).rstrip(".")
            print(f"{n:2d}  {'mended' if verdicts[n].right else 'broken'}  {title:<40} {path.name}")
        print(f"{sum(v.right for v in verdicts.values())} of {len(found)} mended")
        return 0
    path = found[arguments.number]
    verdict = check(path)
    print(f"exercise {arguments.number}, {path}")
    print("\n".join(f"  {line}" for line in verdict.lines))
    print("mended: every gradient is right" if verdict.right else "not yet")
    return 0 if verdict.right else 1
