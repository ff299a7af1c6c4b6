"""The scripts of the path as notebooks, cell by cell; `python docs/notebooks.py` writes notebooks/*.ipynb.

    python docs/notebooks.py execute examples/learn/02_tokens.py      runs one and prints what its cells print

The scripts are the source: they are short, plain and tested, and marks for cells would be noise in them. A cell begins at each
`heading(...)`; in scripts with fewer than two of those, at each paragraph of code. Outputs are not kept in the repository: the site
executes the notebooks and shows what they print.
"""

import ast
import os
import re
import sys
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted((ROOT / "examples" / "learn").glob("[0-9]*.py"))

SETUP = """\
# Finds the project, from a copy of the repository or from where this notebook lies in it.
import os
import sys
from itertools import pairwise
from pathlib import Path

root = next((p for p in (Path.cwd(), *Path.cwd().parents) if (p / "examples" / "learn").is_dir()), None) or Path(os.environ.get("TINYGPT", "tinygpt"))
if not (root / "examples" / "learn").is_dir():
    raise SystemExit("no examples/learn here: upload the repository as the folder `tinygpt` (in Colab: Files), or start Jupyter inside it")
sys.path[:0] = [str(root), str(root / "examples" / "learn")]
sys.argv = {argv}"""


def cells(script: Path) -> list[str]:
    """The script's code in parts, without its docstring."""
    text = script.read_text(encoding="utf-8")
    body = ast.parse(text).body
    lines = text.splitlines()
    begins = [node.lineno for node in body[1:] if _is_heading(node)]
    if len(begins) < 2:  # paragraphs: what stands behind an empty line, its comments included
        tops = {node.lineno for node in body[1:]} | {d.lineno for node in body[1:] for d in getattr(node, "decorator_list", [])}
        begins = [n for n in sorted(tops) if not lines[_with_comments(lines, n) - 2].strip()]
    begins = sorted({_with_comments(lines, n) for n in begins})
    first = body[0].end_lineno or 1
    edges = [first + 1, *(n for n in begins if n > first + 1), len(lines) + 1]
    parts = ("\n".join(lines[a - 1 : b - 1]).strip("\n") for a, b in pairwise(edges))
    return [part for part in parts if part.strip()]


def _is_heading(node: ast.stmt) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "heading"


def _with_comments(lines: list[str], number: int) -> int:
    """The first line, from 1, of the comments that stand right above a line."""
    while number > 1 and lines[number - 2].startswith("#"):
        number -= 1
    return number


def notebook(script: Path, arguments: tuple[str, ...] = ()):
    """The script as a notebook, `arguments` being those of its command line."""
    import jupytext

    title, _, rest = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))).partition("\n")
    rest = re.sub(r"^ *python .*\n?", "", rest, flags=re.MULTILINE).strip()
    markdown = "\n".join(f"# {line}".rstrip() for line in f"# {title}\n\n{rest}".splitlines())
    setup = SETUP.format(argv=repr([script.name, *arguments]).replace("'", '"'))
    percent = "\n\n".join([f"# %% [markdown]\n{markdown}", f"# %%\n{setup}", *(f"# %%\n{cell}" for cell in cells(script))])
    made = jupytext.reads(percent, fmt="py:percent")
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    made.metadata.pop("jupytext", None)
    for number, cell in enumerate(made.cells):
        cell["id"] = f"{script.stem}-{number}"
    return made


def executed(script: Path, arguments: tuple[str, ...], folder: Path) -> str:
    """What a script's notebook prints when it runs from top to bottom in a folder; raises CellExecutionError where a cell fails."""
    from nbclient import NotebookClient

    made = notebook(script, arguments)
    NotebookClient(made, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in made.cells for output in cell.get("outputs", ())]
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream" and output["name"] == "stdout")


def write(folder: Path = ROOT / "notebooks") -> list[Path]:
    """All of them, without outputs."""
    import nbformat

    folder.mkdir(exist_ok=True)
    written = []
    for script in SCRIPTS:
        written.append(folder / f"{script.stem}.ipynb")
        nbformat.write(notebook(script), written[-1])
    return written


if __name__ == "__main__":
    if set(sys.argv[1:]) & {"-h", "--help"}:
        print(__doc__)
    elif sys.argv[1:2] == ["execute"]:
        os.environ["TINYGPT"] = str(ROOT)
        print(executed(ROOT / sys.argv[2], tuple(sys.argv[3:]), Path.cwd()), end="")
    elif sys.argv[1:]:
        sys.exit(f"docs/notebooks.py: {' '.join(sys.argv[1:])}, expected no argument, or execute SCRIPT [OPTIONS]; see --help")
    else:
        print(f"{len(write())} notebooks in notebooks/")
