"""Notebooks are made of the path's scripts: none is missing, none is out of date, none carries outputs; cells hold all of the code."""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def load():
    spec = importlib.util.spec_from_file_location("docs_notebooks", ROOT / "docs" / "notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notebooks = load()


@pytest.mark.parametrize("script", notebooks.SCRIPTS, ids=lambda s: s.stem)
def test_cells_hold_the_script(script):
    text = script.read_text(encoding="utf-8")
    code = ast.parse("\n".join(notebooks.cells(script)))
    assert ast.dump(code) == ast.dump(ast.Module(ast.parse(text).body[1:], []))
    assert len(notebooks.cells(script)) >= 3
    kept = json.loads((ROOT / "notebooks" / f"{script.stem}.ipynb").read_text(encoding="utf-8"))
    cells = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert ["".join(cell["source"]) for cell in cells[1:]] == notebooks.cells(script), "out of date: python docs/notebooks.py"
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_no_notebook_without_a_script():
    assert sorted(p.stem for p in (ROOT / "notebooks").glob("*")) == [s.stem for s in notebooks.SCRIPTS]


def test_written_as_kept(tmp_path):
    pytest.importorskip("jupytext", reason="jupytext is not installed: pip install -e .[docs]")
    for path in notebooks.write(tmp_path):
        assert path.read_text(encoding="utf-8") == (ROOT / "notebooks" / path.name).read_text(encoding="utf-8"), path.name
