"""The pair of backend modules, and what an import brings along."""

import ast
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd import backend
from autograd.backend import to_device, to_host
from tests.autograd.checks import assert_close, numpy_only
from tests.autograd.test_core import run_python
from tests.strategies import seeds

HERE = Path(backend.__file__).parent


def public_names(module):
    """Name -> its parameters, if it is a function, of everything public at the top of a module's file; imports other than xp aside."""
    names = {}
    for statement in ast.parse((HERE / module).read_text(encoding="utf-8")).body:
        for node in statement.body if isinstance(statement, ast.Try) else [statement]:
            if isinstance(node, ast.FunctionDef):
                args = node.args
                defaults = [ast.unparse(d) for d in (*args.defaults, *(d for d in args.kw_defaults if d))]
                names[node.name] = ([a.arg for a in args.args], [a.arg for a in args.kwonlyargs], defaults)
            elif isinstance(node, ast.ClassDef):
                names[node.name] = None
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names.update({target.id: None for target in targets if isinstance(target, ast.Name) and target.id != "__all__"})
            elif isinstance(node, ast.Import):
                names.update({alias.asname: None for alias in node.names if alias.asname == "xp"})
    return {name: parameters for name, parameters in names.items() if not name.startswith("_")}


def test_both_backends_have_one_shape():
    numpy, cupy = public_names("_numpy.py"), public_names("_cupy.py")
    assert cupy.pop("BackendError", "missing") is None  # only a GPU can fail to be there
    assert numpy == cupy
    assert len(numpy) > 8


def test_all_lists_what_the_backends_offer():
    own = {"KERNEL_MODES", "Array", "ArrayLike", "DType", "DTypeLike", "as_mask", "debug", "kernels", "name", "reason"}
    assert set(backend.__all__) == set(public_names("_numpy.py")) | own
    assert all(hasattr(backend, name) for name in backend.__all__)
    assert set(ag.__all__) >= {"Tensor", "Parameter", "Op", "no_grad", "gelu", "layer_norm"} and all(
        hasattr(ag, name) for name in ag.__all__
    )
    assert len(set(ag.__all__)) == len(ag.__all__)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 5e-7), ("float64", 1e-14)])
@given(seed=seeds)
def test_erf_is_the_error_function(dtype, tolerance, seed):
    x = (3 * np.random.default_rng(seed).standard_normal(99)).astype(dtype)
    y = backend.erf(to_device(x))
    assert y.dtype == dtype
    np.testing.assert_allclose(to_host(y), [math.erf(v) for v in x.tolist()], rtol=0, atol=tolerance)


def test_erf_at_its_ends():
    x = np.array([-np.inf, -30.0, -6.0, 0.0, 6.0, 30.0, np.inf])
    np.testing.assert_allclose(to_host(backend.erf(to_device(x))), np.sign(x), rtol=0, atol=1e-14)
    assert np.isnan(to_host(backend.erf(to_device(np.array([np.nan]))))).all()


@numpy_only
def test_importing_the_engine_brings_numpy_and_threadpoolctl_at_most():
    code = (
        "import json, sys; before = set(sys.modules); import autograd, autograd.nn, autograd.optim; "
        "print(json.dumps(sorted({m.partition('.')[0] for m in set(sys.modules) - before} - sys.stdlib_module_names)))"
    )
    status, out, error = run_python(code)
    assert status == 0 and error == ""
    found = {name for name in json.loads(out.strip().splitlines()[-1]) if not name.startswith("_")}
    assert {"autograd", "numpy"} <= found <= {"autograd", "numpy", "threadpoolctl"}


def test_importing_the_engine_prints_nothing():
    assert run_python("import autograd, autograd.testing") == (0, "", "")


def test_doors_between_host_and_device():
    host = np.arange(6.0).reshape(2, 3)
    device = to_device(host)
    assert isinstance(device, backend.device_array) and to_device(device) is device
    assert isinstance(to_host(device), np.ndarray) and (to_host(device) == host).all()
    assert to_device([1, 2], dtype="float32").dtype == np.float32
    assert backend.synchronize() is None
    assert MemoryError in backend.out_of_memory_errors


@given(seed=seeds, n=st.integers(0, 200), n_rows=st.integers(1, 9), width=st.lists(st.integers(0, 3), max_size=2))
def test_scatter_add(seed, n, n_rows, width):
    rng = np.random.default_rng(seed)
    index, values = rng.integers(0, n_rows, n), rng.standard_normal((n, *width))
    expected = np.zeros((n_rows, *width))
    for i, row in zip(index, values, strict=True):
        expected[i] += row
    total = backend.scatter_add((n_rows, *width), to_device(index), to_device(values))
    assert_close(total, expected)
    assert backend.scatter_add((n_rows,), to_device(index), to_device(np.ones(n, np.float32))).dtype == np.float32


@given(seed=seeds, n=st.integers(1, 50))
def test_indices(seed, n):
    ids = np.random.default_rng(seed).integers(-1, n, (3, 4)).astype(np.int32)
    device, counted = backend.checked_indices(ids, n, ignore=-1)
    assert device.dtype == np.int64 and (to_host(device) == ids).all() and counted == (ids != -1).sum()
    assert backend.checked_indices([], n)[1] == 0 and backend.checked_indices(0, n)[0].shape == ()


def test_indices_out_of_range_name_the_first():
    with pytest.raises(ValueError, match=r"row: 9 at position \(1, 0\), expected 0 <= id < 9; do the ids come from the tokenizer"):
        backend.checked_indices([[0, 8], [9, -1]], 9, what="row")
    with pytest.raises(ValueError, match=r"index: -2 at position \(1,\), expected 0 <= id < 9 or -1 \(ignored\)"):
        backend.checked_indices([-1, -2], 9, ignore=-1)
    with pytest.raises(TypeError, match=r"index: bool values, expected integers; convert with .astype\(int\)"):
        backend.checked_indices([True], 9)
