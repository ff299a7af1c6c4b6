"""Checks an exercise: which gradient or which law does not hold, where and by how much. Finding the fix is up to you.

python -m tinygpt exercise        # the list, and your progress
python -m tinygpt exercise 3      # one of them; where tinygpt is installed from elsewhere: python examples/exercises/check.py 3
"""

import inspect
import re
import runpy
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import autograd as ag
from autograd import Array, backend
from tinygpt.arguments import command_parser
from tinygpt.cli import run
from tinygpt.errors import InvalidInput, MissingFile
from tinygpt.storage.checked_json import Json

FOLDER = Path(__file__).resolve().parent

Function = Callable[..., ag.Tensor]
Arrays = dict[str, np.ndarray]
_STEP = 1e-5  # of the central difference, for numbers of about 1 in float64
_TOLERANCE = {"float64": 1e-6, "float32": 1e-4}  # relative to the largest gradient


class Verdict(NamedTuple):
    """What came out for one exercise.

    right   of an op: every gradient has its input's shape and dtype and fits what moving the input shows, in float64 and in float32;
            backward changed no array that it was given; forward is the exercise's own. Of a function: every law of the exercise holds
    lines   the same for people
    """

    right: bool
    lines: list[str]


def exercises(folder: Path = FOLDER) -> dict[int, Path]:
    """Number -> file. Raises FileNotFoundError where the folder holds none."""
    found = {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.py"))}
    if not found:
        raise MissingFile(f"{folder}: no exercises, expected files such as 01_tanh.py; pass --folder CHECKOUT/examples/exercises")
    return found


def check(path: Path, seed: int = 0) -> Verdict:
    """Runs an exercise file on random inputs: an op's backward is compared with central differences, element by element, a function with its
    laws."""
    try:
        names = runpy.run_path(str(path))
        if "laws" in names:
            return _check_laws(path, names, seed)
        function, arrays = names["inputs"](np.random.default_rng(seed))
        y, dy, gradients, changed = _passes(function, arrays)
        expected = {name: _measured(function, arrays, name, dy) for name in arrays}
        single = {name: x.astype(np.float32) for name, x in arrays.items()}
        of_single = _passes(function, single)[2]
        own_forward = _is_as_given(path, seed, arrays, y)
    except Exception:
        last = traceback.format_exc().strip().splitlines()
        where = [line.strip() for line in last if str(path) in line][-1:]
        return Verdict(False, ["it does not run:", *(f"  {line}" for line in (*where, last[-1]))])
    if not own_forward:
        return Verdict(False, ["forward or inputs() computes something else than at first, expected a change in backward alone"])
    found = {name: _fault(name, gradients[name], x, expected[name]) for name, x in arrays.items()}
    lines = [f"gradient of {name} {x.shape}: {found[name] or 'right'}" for name, x in arrays.items()]
    if not any(found.values()):
        if changed:
            return Verdict(False, [*lines, f"all gradients are right, but backward wrote into {changed}, which others may still need"])
        found = {name: _fault(name, of_single[name], x, expected[name]) for name, x in single.items()}
        lines += [f"gradient of {name} {single[name].shape}, once more in float32: {fault}" for name, fault in found.items() if fault]
    return Verdict(not any(found.values()), lines)


def _check_laws(path: Path, names: dict[str, Json], seed: int) -> Verdict:
    """A function against the laws of its exercise: the solution's, so that nobody changes them to suit the function."""
    solution = FOLDER / "solutions" / path.name
    laws = (runpy.run_path(str(solution)) if solution.exists() else names)["laws"]
    functions = [names[name] for name in inspect.signature(laws).parameters if name != "rng"]
    outcome = {what: _differs(*pair) for what, pair in laws(*functions, np.random.default_rng(seed)).items()}
    return Verdict(not any(outcome.values()), [f"{what}: {fault or 'right'}" for what, fault in outcome.items()])


def _differs(found: Json, expected: Json) -> str:
    """How what a law looks at differs from what it expects; empty if it does not."""
    have, wanted = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    if have.shape != wanted.shape:
        return f"shape {have.shape}, expected {wanted.shape}"
    difference = np.abs(have - wanted)
    wrong = ~(difference <= _TOLERANCE["float64"] * max(1.0, float(np.abs(wanted).max(initial=0))))  # nan is wrong
    if not wrong.any():
        return ""
    if not have.shape:
        return f"{float(have):.6g}, expected {float(wanted):.6g}"
    worst = np.unravel_index(int(np.argmax(np.where(np.isnan(difference), np.inf, difference))), have.shape)
    at = ", ".join(str(int(i)) for i in worst)
    return f"wrong in {int(wrong.sum())} of {have.size} numbers; worst at [{at}]: {have[worst]:.6g}, expected {wanted[worst]:.6g}"


def _is_as_given(path: Path, seed: int, arrays: Arrays, y: np.ndarray) -> bool:
    """Whether inputs and output are those of the solution: a forward changed to suit a wrong backward is another exercise."""
    if not (solution := FOLDER / "solutions" / path.name).exists():
        return True
    function, given = runpy.run_path(str(solution))["inputs"](np.random.default_rng(seed))
    same = list(given) == list(arrays) and all(np.array_equal(given[name], arrays[name]) for name in given)
    return same and np.allclose(_forward(function, given), y, rtol=1e-9, atol=1e-12)


def _forward(function: Function, arrays: Arrays) -> np.ndarray:
    with ag.no_grad():
        return backend.to_host(function(*(ag.Tensor(backend.to_device(x)) for x in arrays.values())).data)


def _passes(function: Function, arrays: Arrays) -> tuple[np.ndarray, np.ndarray, dict[str, Array], str]:
    """The output, a random dy, what backward itself returns for each input, and which given array it changed ("" for none).

    Backward is called by hand: the engine would sum a gradient of a broadcast shape down to the input's.
    """
    tensors = {name: ag.Tensor(backend.to_device(x.copy()), requires_grad=True) for name, x in arrays.items()}
    with ag.record() as records:
        y = backend.to_host(function(*tensors.values()).data).copy()  # backward may write into it
    (step,) = records  # the exercise's op
    dy = np.asarray(np.random.default_rng(1).standard_normal(y.shape), dtype=y.dtype)
    given = [("dy", backend.to_device(dy.copy())), *(("a saved array", a) for a in ag.drawing.saved_arrays(step.saved))]
    given += [("an input", t.data) for t in tensors.values()]
    before = [backend.to_host(a).copy() for _, a in given]
    result = step.op.backward(step.saved, given[0][1])
    result = result if isinstance(result, tuple) else (result,)
    if len(result) != len(step.inputs):
        raise InvalidInput(f"backward: {len(result)} gradients, expected {len(step.inputs)}, one for each input of forward")
    changed = next((name for (name, a), b in zip(given, before, strict=True) if not np.array_equal(backend.to_host(a), b)), "")
    gradients = {name: dx for name, t in tensors.items() for x, dx in zip(step.inputs, result, strict=True) if x is t}
    return y, dy, gradients, changed


def _measured(function: Function, arrays: Arrays, name: str, dy: np.ndarray) -> np.ndarray:
    """The gradient of <dy, y> towards one input, by moving each of its elements to both sides."""
    gradient = np.zeros_like(arrays[name])
    for index in np.ndindex(*gradient.shape):
        up, down = arrays[name].copy(), arrays[name].copy()
        up[index] += _STEP
        down[index] -= _STEP
        gradient[index] = ((_forward(function, {**arrays, name: up}) - _forward(function, {**arrays, name: down})) * dy).sum() / (2 * _STEP)
    return gradient


def _fault(name: str, dx: Array, x: np.ndarray, expected: np.ndarray) -> str:
    """What is wrong with dx as the gradient of input x; empty if nothing is."""
    if not isinstance(dx, backend.device_array):
        return f"backward returned {'None' if dx is None else type(dx).__name__}, expected an array of this shape"
    found = backend.to_host(dx)
    if found.shape != x.shape or found.dtype != x.dtype:
        return f"backward returned shape {found.shape}, {found.dtype}, expected the input's own, {x.shape}, {x.dtype}"
    difference = np.abs(found - expected)
    wrong = ~(difference <= _TOLERANCE[x.dtype.name] * max(1.0, float(np.abs(expected).max())))  # nan is wrong
    if not wrong.any():
        return ""
    worst = np.unravel_index(int(np.argmax(np.where(np.isnan(difference), np.inf, difference))), found.shape)
    at = ", ".join(str(int(i)) for i in worst)
    rows = f", in rows {', '.join(map(str, np.flatnonzero(wrong.any(axis=1))))}" if found.ndim == 2 and not wrong.any(axis=1).all() else ""
    both = (
        f"backward says {found[worst]:.4f}, moving {name}[{at}] gives {expected[worst]:.4f}, off by {found[worst] - expected[worst]:+.4f}"
    )
    return f"wrong in {int(wrong.sum())} of {found.size} elements{rows}; worst at [{at}]: {both}"


def main(argv: list[str] | None = None) -> int:
    parser = command_parser("exercise", __doc__)
    parser.add_argument("number", type=int, nargs="?", help="which exercise; none: all of them in short")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the exercise files are")
    arguments = parser.parse_args(argv)
    found = exercises(arguments.folder.expanduser())
    if arguments.number not in (None, *found):
        raise InvalidInput(f"exercise: {arguments.number}, expected one of {min(found)} to {max(found)}; leave it out for the list")
    if arguments.number is None:
        verdicts = {n: check(path) for n, path in found.items()}
        for n, path in found.items():
            title = re.sub(r"Exercise \d+: ", "", path.read_text(encoding="utf-8").split('"""')[1].splitlines()[0]).rstrip(".")
            print(f"{n:2d}  {'fixed ' if verdicts[n].right else 'broken'}  {title:<40} {path.name}")
        print(f"{sum(v.right for v in verdicts.values())} of {len(found)} fixed")
        return 0
    path = found[arguments.number]
    verdict, is_function = check(path), "def laws(" in path.read_text(encoding="utf-8")
    end = f"fixed: every {'law holds' if is_function else 'gradient is right'}" if verdict.right else "not yet"
    print("\n".join([f"exercise {arguments.number}, {path}", *(f"  {line}" for line in verdict.lines), end]))
    return 0 if verdict.right else 1


if __name__ == "__main__":
    run(main)
