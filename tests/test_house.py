"""Limits of size, of functions and classes, and of what types leave open. Each failure lists what to look at."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
FILES = sorted(path for package in ("autograd", "tinygpt") for path in (ROOT / package).rglob("*.py"))
FILES.append(ROOT / "examples" / "exercises" / "check.py")

MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_CLASS = 180
LONG_CLASSES = {"autograd/core.py"}  # the engine is one file

# Explicit Any: an alias at the top of a file for what Python's types cannot say, and nowhere else.
ALIASES = {"Array", "Json"}


def trees():
    for path in FILES:
        yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def longer(kinds, most):
    """Definitions of more lines than `most`, the longest first."""
    found = [
        (node.end_lineno - node.lineno + 1, f"{file}:{node.lineno} {node.name}")
        for file, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and node.end_lineno - node.lineno + 1 > most
    ]
    return [f"{n} lines: {where}" for n, where in sorted(found, reverse=True)]


def any_in(tree):
    """Lines with an explicit Any that is not the value of an allowed alias."""
    allowed = {
        id(name)
        for node in tree.body
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id in ALIASES
        for name in ast.walk(node)
    }
    return sorted({node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "Any" and id(node) not in allowed})


def test_functions_fit_on_a_screen():
    found = longer((ast.FunctionDef, ast.AsyncFunctionDef), MOST_LINES_OF_A_FUNCTION)
    assert not found, "\n".join(found)


def test_classes_have_one_topic():
    found = [line for line in longer(ast.ClassDef, MOST_LINES_OF_A_CLASS) if not any(f" {file}:" in line for file in LONG_CLASSES)]
    assert not found, "\n".join(found)


def test_any_stands_for_arrays_and_json_only():
    found = {file: any_in(tree) for file, tree in trees()}
    lines = [f"{len(where):3} {file}: lines {', '.join(map(str, where))}" for file, where in found.items() if where]
    assert not lines, "\n".join([f"{sum(map(len, found.values()))} lines with an explicit Any", *sorted(lines, reverse=True)])


def test_the_counts_count():
    tree = ast.parse(
        "from typing import Any\nArray = Any\nJson = dict[str, Any]\ndef f(x: Any) -> list[Any]: ...\ny: Any = 0\nOther = Any\n"
    )
    assert any_in(tree) == [4, 5, 6]
    assert len(FILES) > 80 and any(line.endswith(" Tensor") for line in longer(ast.ClassDef, 100))


def test_every_folder_of_the_packages_is_a_package():
    assert {str(path.parent) for path in FILES[:-1] if not (path.parent / "__init__.py").is_file()} == set()
