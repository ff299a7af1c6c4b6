"""Every `xp.name(...)` in the packages is a call that CuPy takes: by the checked-in table always, by CuPy itself where it is installed."""

import ast
import importlib
import inspect
import warnings
from pathlib import Path
from types import ModuleType

import pytest

import autograd
from autograd import backend
from tests.fake_cupy import cupy_api, make_api

ROOT = Path(autograd.__file__).parents[1]
API = cupy_api.read()


def calls(source: str) -> list[tuple[str, ast.Call]]:
    """(name, call) for each `xp.name(...)`; names with more dots are CuPy's own affairs, in backend/_cupy.py."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="xp"), attr=name)):
                found.append((name, node))
    return found


def names(source: str) -> set[str]:
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "xp"
    }


def problem(name: str, call: ast.Call, signature: inspect.Signature | None, ufunc: cupy_api.UFunc | None) -> str | None:
    """Why CuPy would refuse the call's arguments; None if it would not."""
    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        return None  # *args and **kwargs are not known here
    keywords = {k.arg: None for k in call.keywords if k.arg}
    if ufunc is not None:
        fits = ufunc.nin <= len(call.args) <= ufunc.nin + ufunc.nout and keywords.keys() <= {"out", "dtype", "casting"}
        return None if fits else f"{len(call.args)} arguments and {sorted(keywords)} for a ufunc of {ufunc.nin}"
    if signature is None:
        return "not a function"
    try:
        signature.bind(*call.args, **keywords)
    except TypeError as error:
        return str(error)
    return None


def sources() -> list[Path]:
    files = [path for package in ("autograd", "tinygpt") for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in files if "kernels/cpu" not in path.as_posix()]


def test_every_call_fits_the_table():
    problems, n_calls = [], 0
    for path in sources():
        source = path.read_text(encoding="utf-8")
        known = {*API.functions, *API.ufuncs, *API.others, "ndarray", "__version__"}
        problems += [f"{path.name}: xp.{name} is not in CuPy" for name in names(source) - known]
        for name, call in calls(source):
            if name not in API.others and name != "ndarray" and name in known:
                n_calls += 1
                why = problem(name, call, API.functions.get(name), API.ufuncs.get(name))
                problems += [f"{path.name}:{call.lineno}: xp.{name}: {why}"] if why else []
    assert not problems, "\n".join(problems)
    assert n_calls > 60, "the walk finds the calls"


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ("xp.sum(x, where=m)", "unexpected keyword argument 'where'"),
        ("xp.mean(x, initial=0)", "unexpected keyword argument 'initial'"),
        ("xp.max(x, initial=0)", "unexpected keyword argument 'initial'"),
        ("xp.argsort(x, stable=True)", "unexpected keyword argument 'stable'"),
        ("xp.var(x, correction=1)", "unexpected keyword argument 'correction'"),
        ("xp.take(x, i, mode='clip')", "unexpected keyword argument 'mode'"),
        ("xp.clip(x, min=0)", "unexpected keyword argument 'min'|missing a required argument"),
        ("xp.exp(x, where=m)", r"1 arguments and \['where'\] for a ufunc of 1"),
        ("xp.add(x)", "1 arguments"),
        ("xp.zeros()", "missing a required argument: 'shape'"),
        ("xp.insert(x, 0, 1)", "not a function"),
    ],
)
def test_the_check_finds_what_cupy_lacks(call, why):
    ((name, node),) = calls(call)
    found = problem(name, node, API.functions.get(name), API.ufuncs.get(name))
    assert found is not None and any(part in found for part in why.replace("\\", "").split("|"))


def real_cupy() -> ModuleType:
    """CuPy itself, which can be imported without a GPU; skips without it, and under the fake one."""
    if backend.name == "cupy" and "fake" in backend.reason:
        pytest.skip("the fake cupy stands in its place")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns where it sees no GPU
        return pytest.importorskip("cupy", reason="needs CuPy itself (importing it needs no GPU); the table is checked without", exc_type=ImportError)  # fmt: skip


def test_every_call_fits_cupy_itself():
    cupy = real_cupy()
    for path in sources():
        source = path.read_text(encoding="utf-8")
        for name in names(source):
            assert hasattr(cupy, name), f"{path.name}: xp.{name}"
        for name, call in calls(source):
            function = getattr(cupy, name)
            if isinstance(function, cupy.ufunc):
                why = problem(name, call, None, cupy_api.UFunc(function.nin, function.nout, True))
            elif inspect.isclass(function):
                continue
            else:
                why = problem(name, call, inspect.signature(function), None)
            assert why is None, f"{path.name}:{call.lineno}: xp.{name}: {why}"


def test_the_table_is_what_make_api_writes():
    cupy = real_cupy()
    if cupy.__version__ != API.version:
        pytest.skip(f"the table is of CuPy {API.version}, installed is {cupy.__version__}")
    pytest.importorskip("ml_dtypes", reason="without it CuPy has no bfloat16 loops")
    importlib.reload(make_api)
    written = Path(cupy_api.__file__).with_name("api.txt").read_text(encoding="utf-8")
    assert written.splitlines() == make_api.lines()
