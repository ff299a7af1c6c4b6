"""The pages in docs/: their code runs and prints what they say, their numbers come from that code, no op is without its section."""

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import autograd as ag
from autograd import backend

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BACKWARD = DOCS / "backward"

pytestmark = pytest.mark.skipif(backend.name != "numpy", reason="the pages print NumPy's arrays")


def load_hooks():
    spec = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hooks = load_hooks()


def test_files_that_pages_name_are_there():
    name = re.compile(r"`((?:autograd|benchmarks|docs|examples|tests|tinygpt)/[\w./-]+\.\w+)`")
    named = {(page.name, file) for page in [*PAGES, ROOT / "README.md"] for file in name.findall(page.read_text(encoding="utf-8"))}
    assert len(named) > 50
    assert [(page, file) for page, file in sorted(named) if "FILE" not in file and not (ROOT / file).exists()] == []


def test_the_table_of_environment_variables_has_all():
    files = (file for package in ("autograd", "tinygpt") for file in (ROOT / package).rglob("*.py"))
    read = {name for file in files for name in re.findall(r"\b(?:AUTOGRAD|TINYGPT)_[A-Z\d_]+\b", file.read_text(encoding="utf-8"))}
    rows = re.findall(r"^\| `(\w+)` \|", sections(DOCS / "gpu.md")["Environment variables"], flags=re.MULTILINE)
    assert read == set(rows)


def sections(path):
    """Heading -> text of each second-level section of a page."""
    parts = re.split(r"^## (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_a_page_runs_and_prints_what_it_says(page):
    text, pictures = hooks.run_page(page.read_text(encoding="utf-8"), page.name)
    for picture in pictures:
        assert picture.startswith("<svg") and picture.endswith("</svg>")
    if page.parent == BACKWARD:
        check_numbers_in_prose(text, page)


def check_numbers_in_prose(text, page):
    """A number of three decimals or more in the prose must occur in the page's code or in what it prints."""
    code = "\n".join(re.findall(r"^```.*?^```", text, flags=re.MULTILINE | re.DOTALL))
    prose = re.sub(r"^```.*?^```|https?://\S+|arXiv:\S+", "", text, flags=re.MULTILINE | re.DOTALL)
    known = set(re.findall(r"\d+\.\d+", code)) | {n.removesuffix("0") for n in re.findall(r"\d+\.\d+", code)}
    for number in re.findall(r"(?<![\d.])\d+\.\d{3,}(?![\d.])", prose):
        assert number in known, f"{page.name}: {number} is in no code block and no output"


def test_the_runner_notices_a_wrong_number_and_a_renamed_class():
    with pytest.raises(AssertionError, match="the page says\n3\nbut the code prints\n2"):
        hooks.run_page("```python\nprint(1 + 1)  # 3\n```\n", "page")
    with pytest.raises(AssertionError, match="prints\n2"):
        hooks.run_page("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n", "page")
    with pytest.raises(ValueError, match="no Softmax, expected a class or function"):
        hooks.run_page("[Softmax in autograd/ops/shape.py](../x)\n", "page")
    assert hooks.source("autograd/core.py", "Op.apply").startswith("@classmethod\ndef apply(cls")


# Every op has its section ------------------------------------------------------------------------------------------------------

OPS = sorted(set(ag.ops.__all__) - {"RandomStream"})


def module_and_class(op):
    """An op's file, and the class that the op's function applies."""
    cls = ag.ops.op_of(getattr(ag, op))
    return cls.__module__.rpartition(".")[2], cls.__name__


def test_pages_and_files_of_ops_are_the_same_list():
    files = {p.stem for p in (ROOT / "autograd" / "ops").glob("*.py")} - {"__init__"}
    assert {p.stem for p in BACKWARD.glob("*.md")} == files | {"index", "engine", "optimizer"}


def test_sections_and_ops_are_the_same_list():
    found = {heading for file in {module_and_class(op)[0] for op in OPS} for heading in sections(BACKWARD / f"{file}.md")}
    assert found - {"Exercises"} == set(OPS)


@pytest.mark.parametrize("op", OPS)
def test_a_section_is_complete(op):
    file, cls = module_and_class(op)
    text = sections(BACKWARD / f"{file}.md")[op]
    check_section(text, cls, f"autograd/ops/{file}.py")
    assert "save" in text.lower() and "check_grads(" in text and "<!-- picture: " in text
    assert re.search(r"\*\*(The f|F)ast ", (BACKWARD / f"{file}.md").read_text(encoding="utf-8"))


OPTIMIZERS = {"SGD": "SGDUpdate", "AdamW": "AdamWUpdate", "Adam": "Adam", "Muon": "MuonUpdate"}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_section_of_an_optimizer_is_complete(optimizer):
    text = sections(BACKWARD / "optimizer.md")[optimizer]
    cls = OPTIMIZERS[optimizer]
    check_section(text, cls, f"autograd/optim/{optimizer.lower().removesuffix('w')}.py")
    assert re.search(r"\b(12|16)\b bytes per weight", text) and re.search(r"arXiv:\d|\*\*Source\.\*\*", text)
    assert optimizer == "Adam" or "<!-- picture: " in text
    for kernel in ag.registered_kernels().get(getattr(ag.optim, cls), []):
        assert f"[{kernel.__name__} in autograd/kernels/cpu/optim.py]" in text


def test_every_optimizer_has_its_section():
    names = {name for name, cls in vars(ag.optim).items() if isinstance(cls, type) and issubclass(cls, ag.optim.FlatOptimizer)}
    assert names - {"FlatOptimizer"} == set(OPTIMIZERS) == set(sections(BACKWARD / "optimizer.md"))


def check_section(text, cls, path):
    """What a section about an op or optimizer holds: formula, memory in bytes, pitfalls, code that runs, the source, an exercise."""
    assert f"[{cls} in {path}]" in text  # the code, included from the source
    assert "**Formula.**" in text and "$" in text
    assert "emory.**" in text
    assert "**Pitfalls.**" in text
    assert "```python" in text
    assert "<details" in text and "Exercise: " in text


def test_the_index_of_ops_names_sections_classes_and_tests_that_exist():
    assert "<!-- index of ops -->" in (BACKWARD / "index.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\w+)\]\((\w+\.md)#(\w+)\) \| `(\w+)` \| `(\S+)` \| `(\S+)` \|$", hooks.index_of_ops(), flags=re.MULTILINE)
    assert [row[0] for row in rows] == OPS
    for name, page, anchor, cls, file, tests in rows:
        assert anchor == name and name in sections(BACKWARD / page)
        assert f"class {cls}(" in (ROOT / file).read_text(encoding="utf-8") and (ROOT / tests).is_file()


def test_a_new_op_touches_ten_files_at_most():
    page = (DOCS / "adding-an-op.md").read_text(encoding="utf-8")
    files = re.findall(r"^\| \d+ \| \[[^\]]+\]\(([^)]+)\) \|", sections(DOCS / "adding-an-op.md")["The files"], flags=re.MULTILINE)
    assert 5 < len(files) <= 10 and len(set(files)) == len(files)
    for test in re.findall(r"`(test_\w+)`", page):  # what fails if one is forgotten
        assert any(f"def {test}(" in path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))


# README, reading path, API -----------------------------------------------------------------------------------------------------


def test_the_readme_is_short_and_says_what_to_install_first():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count("\n") <= 170
    assert text.index("Python 3.11") < text.index("pip install -e") < text.index("```python")
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def reading_path():
    """(file, the classes to read in it or [] for all of it, minutes) for each row of the reading path."""
    rows = re.findall(
        r"^\| \d+ \| \[([\w/]+\.py)\]\(\S+\)(?:: ([^|]+))? \| .* \| (\d+) \|$",
        (DOCS / "reading-path.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
    return [(file, re.findall(r"`(\w+)`", names), int(minutes)) for file, names, minutes in rows]


def test_the_reading_path_is_short():
    path = reading_path()
    assert len(path) > 12
    lines = 0
    for file, names, _ in path:
        texts = [hooks.source(file, name) for name in names] or [(ROOT / file).read_text(encoding="utf-8")]
        lines += sum(len(text.splitlines()) for text in texts)
    assert 2000 < lines <= 3100


def test_the_reading_path_covers_what_the_model_runs():
    import numpy as np

    from tinygpt import GPT, GPTConfig

    model = GPT(GPTConfig(n_layer=1, n_head=2, n_embd=8, n_positions=4, vocab_size=9, dropout=0.1))
    steps = model.trace(np.zeros((1, 4), dtype=int), np.zeros((1, 4), dtype=int)).steps
    read = {file: names for file, names, _ in reading_path()}
    classes = {cls: f"autograd/ops/{file}.py" for file, cls in map(module_and_class, OPS)}
    for op in {step.op for step in steps}:
        assert classes[op] in read and (not read[classes[op]] or op in read[classes[op]]), op


def test_the_readmes_short_table_is_the_reading_path():
    table = re.findall(r"^\| [\w ]+ \| (\[.*\)) \| (\d+) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    files = [file for cells, _ in table for file in re.findall(r"\]\(([\w/]+\.py)\)", cells)]
    path = reading_path()
    assert sorted(files) == sorted(file for file, *_ in path)
    minutes = {file: n for file, _, n in path}
    for cells, total in table:
        assert int(total) == sum(minutes[file] for file in re.findall(r"\]\(([\w/]+\.py)\)", cells))


def test_the_api_pages_name_every_public_module():
    for package in ("autograd", "tinygpt"):
        modules = {
            ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for path in (ROOT / package).rglob("*.py")
            if not path.stem.startswith("_") and "kernels" not in path.parts
        }
        page = (
            (DOCS / "api" / f"{package}.md").read_text(encoding="utf-8").replace("<!-- modules of tinygpt -->", hooks.modules_of("tinygpt"))
        )
        named = re.findall(r"^::: (\S+)$", page, flags=re.MULTILINE)
        assert modules - set(named) == set(), f"docs/api/{package}.md"
        assert len(modules) > 15 and len(named) == len(set(named))


# Questions and errors ----------------------------------------------------------------------------------------------------------


def texts_in_the_code():
    """Every string in the packages, neighbouring literals joined; what a placeholder stands for is written {}."""
    import ast

    for package in ("autograd", "tinygpt"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)


@pytest.fixture
def pythons_own_messages(tmp_path):
    """What Python and pip say where this project is not installed, or another package has its name."""
    script = "import importlib\nfor name in ('autograd', 'tinygpt'):\n    try: print(importlib.import_module(name).Tensor)\n    except Exception as e: print(e)\n"
    missing = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    (tmp_path / "autograd").mkdir()
    (tmp_path / "autograd" / "__init__.py").write_text("def grad(f): ...\n", encoding="utf-8")
    other = subprocess.run([sys.executable, "-S", "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    pip = importlib.util.find_spec("pip")
    if pip is None:
        return [missing, other, "requires a different Python"]
    return [missing, other, *(f.read_text(encoding="utf-8") for f in Path(pip.origin).parent.glob("_internal/resolution/**/*.py"))]


def test_the_words_that_the_faq_is_indexed_by_are_in_the_messages(pythons_own_messages):
    page = (DOCS / "faq.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \| \[[^\]]+\]\(#([\w-]+)\) \|$", page, flags=re.MULTILINE)
    assert len(rows) > 25
    code = [*texts_in_the_code(), *pythons_own_messages]
    headings = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^### (.+)$", page, flags=re.MULTILINE)}
    for words, anchor in rows:
        assert anchor in headings
        for phrase in re.findall(r"`([^`]+)`", words):
            assert any(phrase in text for text in code), f"faq.md: no message says {phrase!r}"


def test_links_between_pages_and_to_files_lead_somewhere():
    for page in [*PAGES, ROOT / "README.md", *(ROOT / "examples").rglob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


# The site ----------------------------------------------------------------------------------------------------------------------


def test_formulas_become_mathml_and_code_is_left_alone():
    pytest.importorskip("latex2mathml", reason="latex2mathml is not installed: pip install -e .[docs]")
    stash = []
    text = hooks.formulas("Let $x_i$ be, `$y$` code, 5 $ and 6 $.\n\n$$z = \\frac12$$\n\n```python\na = '$b$'\n```\n", stash)
    assert text == "Let @@formula 0@@ be, `$y$` code, 5 $ and 6 $.\n\n@@formula 1@@\n\n```python\na = '$b$'\n```\n"
    assert "<msub><mi>x</mi><mi>i</mi></msub>" in stash[0] and 'display="block"' in stash[1]


def test_whole_files_and_links_out_of_the_docs():
    text = hooks.whole_files("[examples/learn/show.py](../examples/learn/show.py)\n", [])
    assert text.startswith('```python title="examples/learn/show.py"\n"""How the scripts') and text.endswith("```\n")
    assert (
        hooks.without_links_to_files("see [`model.py`](../../tinygpt/models/gpt.py), [this](faq.md#x)")
        == "see `model.py`, [this](faq.md#x)"
    )


def test_every_script_of_the_path_has_its_page():
    scripts = sorted(p.name for p in (ROOT / "examples" / "learn").glob("[0-9]*.py"))
    for script in scripts:
        (page,) = (DOCS / "learn").glob(f"{script[:2]}-*.md")
        text = page.read_text(encoding="utf-8")
        assert f"[examples/learn/{script}]" in text and f"<!-- output: examples/learn/{script} " in text and "**Look for**" in text
        assert f"]({page.name})" in (DOCS / "learn" / "index.md").read_text(encoding="utf-8")
    assert len(list((DOCS / "learn").glob("*.md"))) == len(scripts) + 1
    minutes = [
        re.findall(r"^\| (\d+) \|.* \| (\d+) \|$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        for path in (DOCS / "learn" / "index.md", ROOT / "examples" / "learn" / "README.md")
    ]
    assert minutes[0] == minutes[1] and len(minutes[0]) == len(scripts)


def test_pictures_of_pages_are_written_as_svg(tmp_path):
    pages = [DOCS / "backward" / "matmul.md", DOCS / "index.md", DOCS / "tensor-parallel.md", DOCS / "learn" / "02-tokens.md"]
    run = [sys.executable, str(DOCS / "hooks.py"), "--pictures", str(tmp_path / "slides"), *map(str, pages)]
    done = subprocess.run(run, capture_output=True, text=True, encoding="utf-8", env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    written = sorted(p.relative_to(tmp_path / "slides").as_posix() for p in (tmp_path / "slides").rglob("*.svg"))
    assert written == ["backward/matmul-1.svg", "backward/matmul-2.svg", "index-1.svg", "tensor-parallel-1.svg"]
    assert len(done.stdout.split()) == 4
    for name in written:
        root = ET.fromstring((tmp_path / "slides" / name).read_text(encoding="utf-8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox")
    assert "y = MatMul @" in (tmp_path / "slides" / "backward" / "matmul-1.svg").read_text(encoding="utf-8")


def test_the_small_model_has_the_size_that_its_page_says():
    import dataclasses

    from tinygpt.recipes import RECIPES

    text = (DOCS / "benchmarks.md").read_text(encoding="utf-8").partition("### A small model")[2]
    vocabulary = re.search(r"pretrain.py --vocab-size (\d+) --steps 800 --run small", text)[1]
    n = dataclasses.replace(RECIPES["tinygpt"][0], vocab_size=int(vocabulary)).n_parameters()
    assert f"{n:,} weights" in text and f"has {4 * n / 1e6:.1f} MB" in text and 4 * n < 5e6


# Products ----------------------------------------------------------------------------------------------------------------------

_MATRIX = r"(?:d?[WUM](?:_(?:\w|\{[^}]*\}|\w+))?(?:\^T)?|[A-Za-z]\w*\^T|\w+ᵀ|W[₁₂])"
_BARE = re.compile(
    rf"(?<![A-Za-z\\]){_MATRIX}(?:\\,)? ?(?=[a-z]|\\sigma|\\mathrm|\()|(?<![a-zA-Z\\])[a-z)](?:_\w|_\{{[^}}]*\}})? (?:\\, ?)?{_MATRIX}(?![a-z])"
)


def bare_products(formula):
    """Products with a matrix (W, U, M, or what is transposed) that lack their sign."""
    return _BARE.findall(re.sub(r"\\(?:mathbin\{@\}|odot|cdot|qquad|quad|leftarrow|text\{[^}]*\})|@|⊙", " ; ", formula))


@pytest.mark.parametrize(
    ("formula", "bare"),
    [
        (r"y = x \mathbin{@} W^T + b", False), (r"y = x W^T", True), (r"\tanh(x_t W + h U)", True), (r"W_2\,\sigma(x)", True), (r"W_1 n(x)", True),
        (r"dW = x^T \mathbin{@} dy", False), (r"db = a^T dy", True), (r"x \odot W", False), ("q kᵀ / D", True), ("q @ kᵀ @ v", False), ("x W₁ + b₁", True),
        (r"\frac{dL}{n} (p - w)", False), (r"M_t \mathbin{@} q", False), (r"(M_t q)", True), (r"dW_v = \sum_t dy_t", False),
    ],
)  # fmt: skip
def test_a_bare_product_is_found(formula, bare):
    assert bool(bare_products(formula)) == bare


def test_products_of_matrices_have_their_sign():
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        formulas = [display or inline for display, inline in hooks._FORMULA.findall(text)]
        if page.name == "cheat-sheet.md":
            formulas += [cell for line in text.splitlines() if line.startswith("| ") for cell in line.split("|")]
        for formula in formulas:
            assert not bare_products(formula), (
                f"{page.name}: {formula}: a product of matrices without @, see docs/backward/index.md#notation"
            )


# Commands ----------------------------------------------------------------------------------------------------------------------


def commands():
    """(page, command) for every `python ...` in fences and in running text of the docs, the READMEs and the scripts' headers."""
    pages = [*PAGES, ROOT / "README.md", *(ROOT / "examples").rglob("*.md"), *(ROOT / "examples").rglob("*.py")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for line in re.findall(r"(?:^|&& |`|=\w+ )(python (?:-m )?[\w./]+[^`#\n]*)", text, flags=re.MULTILINE):
            yield page, line.strip()
        if page.suffix == ".py":
            for line in re.findall(r"^ +(python (?:-m )?[\w./]+[^#\n]*)", text.split('"""')[1], flags=re.MULTILINE):
                yield page, line.strip()


@functools.cache
def help_of(*program):
    done = subprocess.run([sys.executable, *program, "--help"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, program
    return done.stdout


def test_every_command_names_a_file_and_flags_that_exist():
    table = set(re.findall(r"^ *(\w+)", help_of("-m", "tinygpt"), flags=re.MULTILINE))
    helps: dict[str, str] = {}
    found = 0
    for page, command in commands():
        words = shlex.split(command)[1:]
        where = f"{page.relative_to(ROOT)}: {command}"
        if words[:2] == ["-m", "tinygpt"]:
            program, arguments, start = ROOT / "tinygpt" / "__main__.py", words[3:], words[:3]
            assert words[2] in table, where
        elif words[0] == "-m":
            program = ROOT / (words[1].replace(".", "/") + ".py")
            arguments, start = words[2:], ["-m", words[1]]
        else:
            program, arguments, start = ROOT / words[0], words[1:], [words[0]]
        if words[0] in ("docs/hooks.py",) or (words[0] == "-m" and not words[1].startswith(("tinygpt", "autograd"))):
            continue
        assert program.is_file(), where
        found += 1
        flags = [word.partition("=")[0] for word in arguments if word.startswith("--")]
        if flags and "learn" not in program.parts and "--help" not in flags:
            if command.split(" --")[0] not in helps:
                helps[command.split(" --")[0]] = help_of(*start)
            for flag in flags:
                assert flag in helps[command.split(" --")[0]], f"{where}: {flag}"
    assert found > 30


def test_in_a_browser_the_site_has_search_when_opened_from_a_folder(tmp_path, monkeypatch, browser):
    for name in ("mkdocs", "material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install -e .[docs]")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "1")
    pages = tmp_path / "pages"  # the site's own settings, on two short pages
    (pages / "deep").mkdir(parents=True)
    for name in ("extra.css", "iframe-worker.js"):
        shutil.copy(DOCS / name, pages)
    (pages / "index.md").write_text("# Start\n\nNothing here.\n", encoding="utf-8")
    (pages / "deep" / "page.md").write_text("# Deep\n\nThe rhinoceros is here.\n", encoding="utf-8")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[0]
    settings = settings.replace("docs_dir: docs", "docs_dir: pages").replace("hooks: [docs/", f"hooks: [{DOCS.as_posix()}/")
    (tmp_path / "mkdocs.yml").write_text(settings + "\nnav: [index.md]\n", encoding="utf-8")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict"], cwd=tmp_path, check=True)
    for start in ("index.html", "deep/page.html"):
        page = browser.new_page()
        asked = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.goto((tmp_path / "site" / start).as_uri())
        page.click(".md-search__input")
        page.keyboard.type("rhinoceros", delay=30)
        page.locator(".md-search-result__link").first.wait_for()
        assert page.locator(".md-search-result__link").first.get_attribute("href").partition("?")[0].endswith("deep/page.html")
        assert all(url.startswith(("file:", "data:", "blob:", "about:")) for url in asked)  # nothing is fetched


def test_pages_that_the_navigation_forgets_are_added(tmp_path):
    for name in ("index.md", "cache.md", "deep/page.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("# Title\n", encoding="utf-8")
    config = {"nav": [{"Start": "index.md"}], "docs_dir": str(tmp_path)}
    assert hooks.on_config(config)["nav"] == [{"Start": "index.md"}, {"More": ["cache.md", "deep/page.md"]}]
    assert hooks.on_config(config)["nav"][2:] == []  # all are named now


# Find your sentence of the course ----------------------------------------------------------------------------------------------


def what_a_row_shows(cell):
    """Of the second cell of a row: texts of its pages, scripts and commands, and the commands' words."""
    texts, starts = [], []
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", cell):
        page = DOCS / target if target else DOCS / "course.md"
        texts.append(page.read_text(encoding="utf-8"))
        slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^##+ (.+)$", texts[-1], flags=re.MULTILINE)]
        assert not anchor or anchor in slugs, f"{target}#{anchor}"
        if script := re.search(r"\[(examples/learn/\w+\.py)\]", texts[-1]):
            scripts = [ROOT / script[1], *(ROOT / "examples/learn").glob("[a-z]*.py")]
            texts += [path.read_text(encoding="utf-8") for path in scripts]
    for command in re.findall(r"`(?:mpiexec -n \d+ )?python ([^`]+)`", cell):
        words = shlex.split(command.removeprefix("-m mpi4py "))
        starts.append(words[: 3 if words[0] == "-m" else 1])
        texts += [(ROOT / words[0]).read_text(encoding="utf-8")] if words[0] != "-m" else []
    return texts, starts


def test_each_sentence_of_the_course_has_a_command_and_what_it_says_to_look_for_is_there():
    table = (DOCS / "course.md").read_text(encoding="utf-8").partition("## Often wrong")[0]
    rows = [re.split(r" \| ", line.strip("| ")) for line in table.splitlines() if line.startswith("| ") and "the course says" not in line]
    assert len(rows) >= 134 and all(len(row) == 3 for row in rows), [row for row in rows if len(row) != 3]
    missing = []
    for says, shown, look in rows:
        texts, starts = what_a_row_shows(shown)
        assert "(learn/" in shown or "`" in shown or "decoders.md#the-shapes" in shown or "finetuning.md#which" in shown, says
        for phrase in re.findall(r"`([^`]+)`", look):
            if phrase.startswith("python "):
                words = shlex.split(phrase)[1:]
                start = words[: 3 if words[0] == "-m" else 1]
                missing += [phrase for word in words if word.startswith("--") and word not in help_of(*start)]
            else:
                phrase = phrase.split(" ")[0] if phrase.startswith("--") else phrase
                if not any(phrase in text for text in texts) and not any(phrase in help_of(*start) for start in starts):
                    missing.append(f"{says}: {phrase}")
    assert missing == []


def calls_of(program, *pages):
    """The arguments of each call of a program in these pages, but for those with a RUN."""
    text = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in pages)
    calls = {m[1].partition("#")[0].strip() for m in re.finditer(rf"python {re.escape(program)}([^`\n]*)", text)}
    return sorted(shlex.split(call) for call in calls if "RUN" not in call)


def test_every_plan_of_the_readme_the_course_and_its_page_can_be_made(capsys):
    from tinygpt.arguments import parse_args
    from tinygpt.planner.command import PlanConfig, chosen, main

    plans = [
        argv for argv in calls_of("-m tinygpt plan", "README.md", "docs/course.md", "docs/planning.md", "docs/learn/29-scale.md") if argv
    ]
    assert len(plans) > 10
    for argv in plans:
        if "--measure" in argv:  # which takes seconds
            assert chosen(parse_args(PlanConfig(), None, argv))
        else:
            main(argv)
            assert capsys.readouterr().out, argv


def test_the_flags_of_each_pretraining_in_the_course_go_together():
    from tinygpt import PretrainConfig
    from tinygpt.cli import settings
    from tinygpt.recipes import RECIPES

    recipes = {name: PretrainConfig(recipe=name, model=model, train=train) for name, (model, train) in RECIPES.items()}
    trainings = calls_of("examples/pretrain.py", "docs/course.md", "docs/teaching.md")
    assert len(trainings) > 12
    for argv in trainings:
        settings(recipes["tinygpt"], "", argv, recipes=recipes)


# Glossary and cheat sheet ------------------------------------------------------------------------------------------------------

GLOSSARY_HAS = "Accumulation, Bits per byte, BLEU, Fingerprint, Logit lens, Micro-batch, Nats, Paired interval, Pooling, Residual stream"


def test_the_glossary_is_in_order_and_every_word_is_one_line_with_a_page():
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    entries = [re.fullmatch(r"- \*\*([^*]+)\.\*\* (.+) See \[[^\]]+\]\(([^)#]+)(#[\w-]+)?\)\.", line) for line in lines]
    assert all(entries), next(line for line, entry in zip(lines, entries, strict=True) if not entry)
    terms = [entry[1] for entry in entries]
    assert terms == sorted(terms, key=str.lower) and len(terms) == len(set(terms)) > 100
    assert set(GLOSSARY_HAS.split(", ")) <= set(terms)
    for entry in entries:
        assert (DOCS / entry[3]).is_file() and 1 <= len(re.findall(r"\.(?= [A-Z]|$)", entry[2])) <= 4, entry[1]
        title = (DOCS / entry[3]).read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        assert "learn/" not in entry[3] or f"[{title}]({entry[3]})" in entry[0], entry[1]  # numbers of scripts change
    assert re.findall(r"^## (.)$", text, flags=re.MULTILINE) == sorted({term[0].upper() for term in terms})


def test_the_cheat_sheets_count_of_weights_and_commands_are_right():
    from tinygpt import GPTConfig
    from tinygpt.__main__ import COMMANDS

    text = (DOCS / "cheat-sheet.md").read_text(encoding="utf-8")
    assert "V C + T C + 12 L C² + 13 L C + 2 C" in text
    c = GPTConfig()
    v, t, n, w = c.vocab_size, c.n_positions, c.n_layer, c.n_embd
    assert v * w + t * w + 12 * n * w**2 + 13 * n * w + 2 * w == c.n_parameters()
    assert set(re.findall(r"python -m tinygpt (\w+)", text)) <= COMMANDS.keys()
    assert all((ROOT / script).is_file() for script in re.findall(r"python (examples/\S+\.py)", text))
