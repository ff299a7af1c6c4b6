"""How a page of these docs is made: its Python runs, its pictures are drawn, its formulas become MathML, code comes from the source.

mkdocs calls `on_page_markdown` and `on_page_content`; the tests call `run_page`. What a page may hold, all of it readable as it stands:

    ```python ... ```                                       runs, one namespace per page; `print(x)  # [1. 2.]` must print that,
                                                            or a ```text block right below holds all that the block prints
    [Softmax in autograd/ops/activation.py](../../...)      alone on a line: replaced by the code of that class or function
    [examples/learn/02_tokens.py](../../...)                alone on a line: replaced by the whole file
    <!-- output: examples/learn/02_tokens.py -->            replaced by what the script prints (and the .svg that it draws)
    <!-- diff: examples/a.py examples/b.py -->              replaced by what the second file changes in the first, up to "# Try it"
    <!-- picture: y -->                                     replaced by y.draw(), with the names of the page's variables
    <!-- index of ops -->                                   replaced by a table of all ops
    <!-- modules of tinygpt -->                             replaced by a table of all public modules, and each module's docstrings
    $ ... $ and $$ ... $$                                   formulas
"""

import argparse
import ast
import contextlib
import difflib
import functools
import io
import os
import re
import struct
import subprocess
import sys
import tempfile
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

_PIECE = re.compile(
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```[ ]*$(?P<shown>\n\n```text\n.*?^```[ ]*$)?"
    r"|^\[(?P<name>[\w.]+) in (?P<file>[\w/]+\.py)\]\([^)\s]+\)[ ]*$"
    r"|^<!-- picture: (?P<picture>.+?) -->[ ]*$",
    flags=re.MULTILINE | re.DOTALL,
)
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?![\s$])([^$]+?)(?<!\s)\$(?![\w$])", flags=re.DOTALL)


def source(file: str, name: str) -> str:
    """The code of a class or function (or method, `Class.method`) in a file of the repository."""
    text = (ROOT / file).read_text(encoding="utf-8")
    body: list[ast.stmt] = ast.parse(text).body
    node = None
    for part in name.split("."):
        node = next((n for n in body if getattr(n, "name", None) == part), None)
        if node is None:
            raise ValueError(f"{file}: no {name}, expected a class or function of that name; was it renamed?")
        body = getattr(node, "body", [])
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno]))


def run_block(code: str, shown: str | None, namespace: dict, where: str) -> None:
    """Runs a block and compares what it prints with what the page says. Raises AssertionError where they differ."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, where, "exec"), namespace)
    printed = out.getvalue().rstrip("\n")
    expected = shown.strip("\n") if shown is not None else "\n".join(re.findall(r"print\(.*\)  # (.*)$", code, flags=re.MULTILINE))
    if [line.rstrip() for line in printed.split("\n")] != [line.rstrip() for line in expected.split("\n")]:
        raise AssertionError(f"{where}: the page says\n{expected}\nbut the code prints\n{printed}")


def run_page(markdown: str, where: str, pictures: list[str] | None = None) -> tuple[str, list[str]]:
    """Runs a page's blocks, in order. Returns the page with sources and pictures put in (as @@picture N@@), and the pictures.

    pictures   those that the page has already; new ones are added to them
    """
    namespace: dict = {"__name__": where}
    pictures = [] if pictures is None else pictures

    def piece(match: re.Match) -> str:
        if match["name"]:
            code = source(match["file"], match["name"])
            return f'```python title="{match["file"]}"\n{code}\n```'
        if match["picture"]:
            expression = match["picture"]
            drawn = eval(expression, namespace)
            pictures.append(str(drawn if isinstance(drawn, str) else drawn.draw(names=namespace)))
            return f"@@picture {len(pictures) - 1}@@"
        if match["language"] == "python":
            shown = None if match["shown"] is None else match["shown"].partition("```text\n")[2].rpartition("```")[0]
            line = markdown.count("\n", 0, match.start()) + 2
            run_block("\n" * (line - 1) + match["code"], shown, namespace, where)
        return match[0]

    return _PIECE.sub(piece, markdown), pictures


def formulas(markdown: str, stash: list[str]) -> str:
    """Replaces formulas outside code by @@formula N@@ and puts their MathML into `stash`."""
    from latex2mathml.converter import convert

    def one(match: re.Match) -> str:
        display = match[1] is not None
        mathml = convert(match[1] or match[2], display="block" if display else "inline")
        mathml = mathml.replace("<mi>&#x02032;</mi>", "<mo>&#x02032;</mo>")  # a prime set as an identifier is drawn too small to see
        stash.append(f'<span class="formula">{mathml}</span>' if display else mathml)
        return f"@@formula {len(stash) - 1}@@"

    parts = re.split(r"(^```.*?^```[ ]*$|`[^`\n]+`)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("`") else _FORMULA.sub(one, part) for part in parts)


_OUTPUT = r"^<!-- output: (?P<command>.+?) -->[ ]*$"


def whole_files(markdown: str, pictures: list[str]) -> str:
    """Puts in whole scripts, `[examples/a.py](../examples/a.py)` alone on a line, and their output, `<!-- output: examples/a.py -->`.

    A picture that the script is told to draw, `<!-- output: examples/a.py --plot a.svg -->`, goes to `pictures` and below the output.
    """

    def script(match: re.Match) -> str:
        text = (ROOT / match["file"]).read_text(encoding="utf-8").rstrip("\n")
        name = Path(match["file"]).stem
        made = (ROOT / "notebooks" / f"{name}.ipynb").exists()
        link = f"[The same as a notebook](../notebooks/{name}.ipynb), for Jupyter or Colab.\n\n" if made else ""
        return f'{link}```python title="{match["file"]}"\n{text}\n```'

    def output(match: re.Match) -> str:
        text, drawn = run_script(match["command"])
        pictures.extend(drawn)
        shown = "".join(f"\n\n@@picture {i}@@" for i in range(len(pictures) - len(drawn), len(pictures)))
        return f"```text\n{text}\n```{shown}"

    markdown = re.sub(r"^\[(?P<file>[\w/]+\.py)\]\(\S+\)[ ]*$", script, markdown, flags=re.MULTILINE)
    markdown = re.sub(
        r"^<!-- diff: (\S+) (\S+) -->[ ]*$", lambda match: f"```diff\n{changes(match[1], match[2])}\n```", markdown, flags=re.MULTILINE
    )
    return re.sub(_OUTPUT, output, markdown, flags=re.MULTILINE)


def changes(old: str, new: str) -> str:
    """A unified diff of two scripts of the repository, of what stands above "# Try it"; their own docstrings are left out."""
    first, second = (
        (ROOT / file).read_text(encoding="utf-8").partition('"""\n\n')[2].partition("# Try it")[0].rstrip().splitlines()
        for file in (old, new)
    )
    return "\n".join(difflib.unified_diff(first, second, lineterm="", n=2)).partition("\n+++ \n")[2]


@functools.cache
def run_script(command: str) -> tuple[str, list[str]]:
    """What a script of the repository prints, and the .svg files that its arguments name."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", "OPENBLAS_NUM_THREADS": "1"}
    script, *arguments = command.split()
    with tempfile.TemporaryDirectory() as folder:
        full = [sys.executable, str(ROOT / script), *arguments]
        if re.match(r"examples/learn/\d\d_", script):  # as a notebook, whose cells are tried in this way
            full = [sys.executable, str(ROOT / "docs" / "notebooks.py"), "execute", script, *arguments]
        done = subprocess.run(full, env=environment, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=True)
        drawn = [(Path(folder) / name).read_text(encoding="utf-8") for name in arguments if name.endswith(".svg")]
    return done.stdout.strip("\n"), [svg[svg.index("<svg") :] for svg in drawn]  # without matplotlib's XML header


def index_of_ops() -> str:
    """A table of every op: its function (a link to its section), class, file and tests."""
    import autograd as ag

    rows = ["| op | class | file | tests of its own |", "|---|---|---|---|"]
    for name in ag.ops.__all__:
        if name != "RandomStream":
            cls = ag.ops.op_of(getattr(ag, name))
            file = cls.__module__.rpartition(".")[2]
            rows.append(f"| [{name}]({file}.md#{name}) | `{cls.__name__}` | `autograd/ops/{file}.py` | `tests/autograd/test_{file}.py` |")
    return "\n".join(rows)


def modules_of(package: str) -> str:
    """A table of a package's public modules by folder, then a `:::` line for each, which mkdocstrings replaces."""
    folders: dict[str, list[str]] = {}
    for path in sorted((ROOT / package).rglob("*.py"), key=lambda p: (len(p.parts), p)):
        if not path.stem.startswith("_"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            folders.setdefault(path.parent.relative_to(ROOT).as_posix(), []).append(name)
    rows = [f"| `{folder}` | " + ", ".join(f"[{n.rpartition('.')[2]}][{n}]" for n in names) + " |" for folder, names in folders.items()]
    each = "\n\n::: {}\n    options:\n      show_source: false"  # with the code, the page of tinygpt has 15 MB: too much for a phone
    return "\n".join(["| folder | modules |", "|---|---|", *rows]) + "".join(each.format(n) for names in folders.values() for n in names)


def without_links_to_files(markdown: str) -> str:
    """Links that leave docs/ (to code, to the README) become plain words: on the site there is nothing at their other end."""
    return re.sub(r"\[([^\]\n]+)\]\((?:\.\./)+(?:autograd|tinygpt|examples|tests|benchmarks|README)[^)\s]*\)", r"\1", markdown)


# What mkdocs calls ---------------------------------------------------------------------------------------------------------------


def on_config(config):
    """Pages that the navigation in mkdocs.yml does not name are added to it, under "More"."""
    named = set(re.findall(r"'([\w/.-]+\.md)'", repr(config["nav"])))
    docs = Path(config["docs_dir"])
    rest = sorted(p.relative_to(docs).as_posix() for p in docs.rglob("*.md"))
    rest = [page for page in rest if page not in named]
    if rest:
        config["nav"].append({"More": rest})
    return config


def on_files(files, config):
    """Pictures of measurements, which pages show from where the benchmarks write them, and notebooks become files of the site."""
    from mkdocs.structure.files import File

    for path in sorted(RESULTS.glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.name}", abs_src_path=str(path)))
    return files


def on_pre_build(config):
    """Scripts whose output pages show run on all cores at once: one after the other, as the pages come, they take most of the build."""
    pages = (path.read_text(encoding="utf-8") for path in sorted(Path(config["docs_dir"]).rglob("*.md")))
    commands = [match["command"] for page in pages for match in re.finditer(_OUTPUT, page, flags=re.MULTILINE)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run_script, dict.fromkeys(commands)))


def on_page_markdown(markdown, page, config, files):
    where = page.file.src_uri
    page.pictures = []
    markdown = markdown.replace("](../benchmarks/results/", "](results/").replace("<!-- index of ops -->", index_of_ops())
    markdown = re.sub(r"<!-- modules of (\w+) -->", lambda match: modules_of(match[1]), markdown)
    markdown = whole_files(markdown, page.pictures)
    markdown, _ = run_page(markdown, where, page.pictures)
    page.formulas = []
    return without_links_to_files(formulas(markdown, page.formulas))


def _size(src: str, page: str) -> tuple[float, float]:
    """Width and height, in pixels, of a picture that a page shows: of a .png from its header, of an .svg from its viewBox."""
    path = ROOT / "docs" / Path(page).parent / src
    path = path if path.exists() else RESULTS / Path(src).name
    if path.suffix == ".svg":
        _, _, width, height = map(float, re.search(r'viewBox="([^"]+)"', path.read_text(encoding="utf-8"))[1].split())
        return width, height
    return tuple(float(n) for n in struct.unpack(">II", path.read_bytes()[16:24]))


def in_boxes(content: str, page: str) -> str:
    """Pictures in boxes that scroll sideways: on a phone they keep a size at which their text can be read (extra.css)."""

    def box(match: re.Match) -> str:
        width, _ = _size(match[2], page)
        return f'<div class="picture" style="--width: {width:g}px">{match[1]}</div>'

    return re.sub(r'<p>(<img [^>]*src="([^"]+)"[^>]*>)</p>', box, content)


def on_page_content(content, page, config, files):
    content = in_boxes(content, page.file.src_uri)
    content = re.sub(r"(?:<p>)?@@picture (\d+)@@(?:</p>)?", lambda m: f'<div class="picture">{page.pictures[int(m[1])]}</div>', content)
    return re.sub(r"@@formula (\d+)@@", lambda m: page.formulas[int(m[1])], content)


# Pictures for slides -------------------------------------------------------------------------------------------------------------


def pictures_of(page: Path) -> list[str]:
    """The SVG pictures that a page shows: those that its blocks draw, those of its script, and files next to it. Runs what draws them."""
    text = page.read_text(encoding="utf-8")
    pictures = [(page.parent / name).read_text(encoding="utf-8") for name in re.findall(r"\]\(([\w/.-]+\.svg)\)", text)]
    text = re.sub(_OUTPUT, lambda match: match[0] if ".svg" in match["command"] else "", text, flags=re.MULTILINE)
    run_page(whole_files(text, pictures), page.name, pictures)
    return pictures


def main() -> None:
    """Runs pages, or writes their pictures."""
    about = "Runs pages of the docs and compares what they print; with --pictures, writes their pictures as SVG, for slides."
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("pages", nargs="*", type=Path, help="such as docs/backward/attention.md (default: all)")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="write FOLDER/attention-1.svg and so on; scripts of the path run for theirs"
    )
    args = parser.parse_args()
    for page in args.pages or sorted((ROOT / "docs").rglob("*.md")):
        if args.pictures is None:
            run_page(page.read_text(encoding="utf-8"), str(page))
            print(page, "ok")
            continue
        folder = args.pictures / page.resolve().parent.relative_to(ROOT / "docs") if ROOT in page.resolve().parents else args.pictures
        for number, picture in enumerate(pictures_of(page), 1):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{page.stem}-{number}.svg").write_text(picture, encoding="utf-8")
            print(folder / f"{page.stem}-{number}.svg")


if __name__ == "__main__":
    main()
