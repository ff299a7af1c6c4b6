"""CUDA kernels without a GPU: every `.cu` file compiles, and what it computes is compared by running it on the host.

On the host (`tests/cuda_host.py`) the same source runs thread by thread with real barriers, launched by the same Python as on a
GPU. What that cannot show: speed, and anything that depends on a device's own rounding (`exp`, fused multiply-add).
On a GPU, `test_ops.py` compares the same kernels as all others, and `benchmarks/gpu.py` measures them.
"""

import ast
import ctypes
import functools
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import autograd as ag
from autograd import backend, dispatch, optim
from autograd.backend import _numpy
from autograd.ops.activation import Softmax
from autograd.ops.attention import Attention
from autograd.ops.dropout import Dropout
from autograd.ops.elementwise import Cast
from autograd.ops.embedding import Embedding
from autograd.ops.loss import LinearCrossEntropy
from autograd.ops.matmul import Linear
from autograd.ops.normalization import LayerNorm, RMSNorm
from tests import cuda_host
from tests.autograd.checks import assert_close, numpy_only
from tests.autograd.test_ops import compare
from tests.test_gpu_benchmark import gpu


def registered_apart() -> tuple[dict[type, list[Any]], ModuleType]:
    """The CUDA kernels, registered in tables of their own so that no other test on NumPy meets them."""
    before, dispatch._kernels = dispatch._kernels, {}
    try:
        from autograd.kernels.cuda import attention_cudnn, matmul, module

        dispatch._kernels[Attention].remove(attention_cudnn.AttentionCuDNN)  # NVIDIA's code: it runs on a device alone
        dispatch._kernels[Linear].remove(matmul.LinearCuBLASLt)  # as well; see test_cupy_backend.py
        return dispatch._kernels, module
    finally:
        dispatch._kernels = before


pytestmark = numpy_only
KERNELS, module = registered_apart() if backend.name == "numpy" else ({}, ModuleType("unused"))
matmul: Any = sys.modules.get("autograd.kernels.cuda.matmul")
DIRECTORY = Path(ag.__file__).parent / "kernels" / "cuda"
FILES = sorted(path.name for path in DIRECTORY.glob("*.cu"))
TYPES = [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "float16"), ("bfloat16", "float32")]  # (storage, parameter)

each_file = pytest.mark.parametrize("file", FILES)
on_host = pytest.mark.skipif(cuda_host.COMPILER is None, reason="no g++: nothing to run CUDA kernels with on the host")


# They compile ----------------------------------------------------------------------------------------------------------------------


def types_of(file: str) -> list[tuple[str, str]]:
    return TYPES if "parameter" in (DIRECTORY / file).read_text(encoding="utf-8") else TYPES[:3]


def kernel_names(file: str) -> list[str]:
    return re.findall(r'extern "C" __global__ (?:__launch_bounds__\(.*?\) )?void (\w+)\(', (DIRECTORY / file).read_text(encoding="utf-8"))


@each_file
def test_nvcc_compiles_without_spills(file, tmp_path):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc on PATH: nothing to compile CUDA with")
    targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    for types in types_of(file):
        command = [nvcc, *module.options(*types), *targets, "-fatbin", "-Xptxas=-v", "-Werror=all-warnings", "-o", tmp_path / "out", file]
        done = subprocess.run(command, cwd=DIRECTORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        spills = re.findall(r"Compiling entry function '(\w+)' for '(sm_\d+)'\n.*\n\s*(.*spill.*)", done.stderr)
        assert {(name, target) for name, target, _ in spills} == {(name, f"sm_{n}") for name in kernel_names(file) for n in (80, 90)}
        for name, target, line in spills:
            assert line == "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", f"{name} for {target}, {types}: {line}"


@functools.cache
def nvrtc() -> ctypes.CDLL | None:
    """The runtime compiler that CuPy uses: from NVIDIA's wheel, which has to load where it is installed, or the system's."""
    found = importlib.util.find_spec("nvidia")
    folders = [Path(p) for p in (found.submodule_search_locations or [])] if found else []
    wheels = sorted(str(f) for p in folders for pattern in ("*/lib/libnvrtc.so.*", "*/bin/nvrtc64*.dll") for f in p.glob(pattern))
    if wheels:
        return ctypes.CDLL(wheels[-1])
    for name in ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


@each_file
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_nvrtc_compiles(file, target):
    library = nvrtc()
    if library is None:
        pytest.skip("no NVRTC, which needs no GPU: pip install -e .[nvrtc]")
    for types in types_of(file):
        program = ctypes.c_void_p()
        assert library.nvrtcCreateProgram(ctypes.byref(program), module.source(file).encode(), file.encode(), 0, None, None) == 0
        options = [option.encode() for option in (*module.options(*types), f"-arch={target}", "-ftz=true")]
        status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        size = ctypes.c_size_t()
        library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        library.nvrtcGetProgramLog(program, log)
        library.nvrtcDestroyProgram(ctypes.byref(program))
        assert status == 0 and not log.value.strip(), log.value.decode()


@each_file
def test_the_header_of_each_file_says_what_it_is(file):
    text = (DIRECTORY / file).read_text(encoding="utf-8")
    header = "".join(line for line in text.splitlines(keepends=True)[: text[: text.index("#include")].count("\n")])
    for word in ("Reference: ", "// Layout  ", "// Bytes   "):
        assert word in header
    for name in re.findall(r"class(?:es)? (\w+)(?:(?:, | and )(\w+))?", header)[0]:
        assert not name or re.search(rf"class {name}\(", "".join(p.read_text(encoding="utf-8") for p in reference_files()))
    assert "<stdint.h>" not in text and kernel_names(file)


def reference_files() -> list[Path]:
    return [path for folder in ("ops", "optim") for path in (DIRECTORY.parent.parent / folder).glob("*.py")]


def test_the_package_ships_its_sources():
    pyproject = (DIRECTORY.parent.parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert '"kernels/cuda/*.cu"' in pyproject and '"kernels/cuda/*.cuh"' in pyproject


# They compute what the definitions do ------------------------------------------------------------------------------------------------

SMALL_DEVICE = 2, 20_000, 30_000  # multiprocessors, bytes of shared memory: blocks take several rows, and long rows do not fit
GUARD = 32  # elements of NaN on either side of every array


class Xp:
    """NumPy, except that new arrays are full of NaN and lie between guards; `offset` moves them off 16-byte boundaries."""

    def __init__(self, offset: int) -> None:
        self.offset = offset
        self.guarded: list[tuple[np.ndarray, slice]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, shape: Any, dtype: Any = "float64") -> np.ndarray:
        n = int(np.prod(shape))
        buffer = np.frombuffer(b"\xff" * (n + 2 * GUARD) * np.dtype(dtype).itemsize, dtype=dtype).copy()  # NaN as float and as bf16
        mine = slice(GUARD + self.offset, GUARD + self.offset + n)
        self.guarded.append((buffer, mine))
        return buffer[mine].reshape(shape)

    def zeros(self, shape: Any, dtype: Any = "float64") -> np.ndarray:
        array = self.empty(shape, dtype)
        array[...] = 0
        return array

    def place(self, array: np.ndarray) -> np.ndarray:
        """A copy between guards."""
        copy = self.empty(array.shape, array.dtype)
        copy[...] = array
        return copy

    def check(self) -> None:
        for buffer, mine in self.guarded:
            raw = buffer.view(np.uint8).reshape(-1, buffer.itemsize)
            assert (raw[: mine.start] == 255).all() and (raw[mine.stop :] == 255).all(), "written outside of an array"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Xp]:
    """Kernels run on the host, and are the only ones registered."""
    yield from on_the_host(monkeypatch, offset=0)


@pytest.fixture(params=[0, 1], ids=["aligned", "misaligned"])
def host_either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Xp]:
    """The same twice: arrays that start on 16 bytes, and one element further."""
    yield from on_the_host(monkeypatch, offset=request.param)


def on_the_host(monkeypatch: pytest.MonkeyPatch, offset: int) -> Iterator[Xp]:
    xp = Xp(offset)
    monkeypatch.setattr(module, "raw_module", cuda_host.RawModule)
    monkeypatch.setattr("autograd.kernels.cuda.loss._device", lambda: SMALL_DEVICE)
    monkeypatch.setattr(module, "STORAGE", module.STORAGE | {"uint16": "bf16"})  # NumPy has no bfloat16: its bits stand for it
    monkeypatch.setattr(dispatch, "_kernels", KERNELS)
    monkeypatch.setattr(backend, "random_bits", cupy_random_bits())
    for kernel in [kernel for several in KERNELS.values() for kernel in several]:
        monkeypatch.setattr(f"{kernel.__module__}.xp", xp)
    caches = (module.kernel, module._module, module.is_stored)
    for cached in caches:
        cached.cache_clear()
    yield xp
    for cached in caches:
        cached.cache_clear()
    xp.check()


def cupy_random_bits() -> Any:
    """`random_bits` of backend/_cupy.py, run on NumPy."""
    tree = ast.parse((Path(backend.__file__).parent / "_cupy.py").read_text(encoding="utf-8"))
    (function,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "random_bits")
    names: dict[str, Any] = {"np": np, "xp": np, "Array": np.ndarray}
    exec(compile(ast.Module([function], []), "_cupy.py", "exec"), names)

    def bits(*arguments: int) -> Any:
        with np.errstate(over="ignore"):
            return names["random_bits"](*arguments)

    return bits


@on_host
@pytest.mark.parametrize(
    "op", [op for op in KERNELS if op.__module__.startswith("autograd.ops") and op is not Cast], ids=lambda op: op.__name__
)
def test_kernels_equal_the_definition(op, host):
    (kernel,) = KERNELS[op]
    compare(op, kernel, n_small=15, n_large=4, dtypes=["float32"])  # the kernels take no float64


SHAPES = [(1, 1), (3, 31), (2, 32), (5, 33), (4, 128), (2, 3, 129), (3, 1030)]


def bf16(x: np.ndarray) -> np.ndarray:
    """float32 -> the bits of bfloat16, to nearest, ties to even."""
    u = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def to_float(bits: np.ndarray) -> np.ndarray:
    """The bits of bfloat16 -> float64; other arrays as they are."""
    if bits.dtype != np.uint16:
        return bits.astype(np.float64)
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def assert_near(actual: np.ndarray, expected: np.ndarray, dtype: np.dtype[Any]) -> None:
    """Within the rounding of the storage type, relative to the largest value."""
    tolerance = 2.0**-7 if dtype == np.uint16 else 2.0**-10 if dtype == np.float16 else 2e-6
    actual = to_float(actual)
    assert actual.shape == expected.shape and np.isfinite(actual).all()
    assert np.abs(actual - expected).max() <= tolerance * max(1e-3, np.abs(expected).max())


def stored(xp: Xp, storage: str, *arrays: np.ndarray) -> list[np.ndarray]:
    return [xp.place(bf16(a) if storage == "bf16" else a.astype(np.float16 if storage == "f16" else np.float32)) for a in arrays]


each_storage = pytest.mark.parametrize("storage", ["float", "bf16", "f16"])
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


OWN_TESTS = {
    "Attention",
    "Cast",
    "Embedding",
    "Linear",
    "LinearCrossEntropy",
}  # below: they index, or multiply matrices, which the bits of bfloat16 cannot
CALLED = sorted({call.op for call in gpu.calls(np.random.default_rng(0), 2, 2)})


def test_the_benchmark_calls_every_op_that_has_kernels():
    assert set(CALLED) == {op.__name__ for op in KERNELS if op.__module__.startswith("autograd.ops")}


@on_host
@each_storage
@each_shape
@pytest.mark.parametrize("name", sorted(set(CALLED) - OWN_TESTS))
def test_rows_of_any_length_alignment_and_type(name, shape, storage, host_either, monkeypatch):
    op = next(op for op in KERNELS if op.__name__ == name)
    (kernel,) = KERNELS[op]
    rng = np.random.default_rng(0)
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    (call,) = gpu.calls(rng, rows, columns, only=name)
    inputs = [a.reshape(shape) if a.shape == (rows, columns) else a for a in call.inputs]
    options = call.options | ({"axis": len(shape) - 1} if "axis" in call.options else {})
    arrays = stored(host_either, storage, *inputs)
    exact = [to_float(a) for a in arrays]
    (dy,) = stored(host_either, storage, rng.standard_normal(op.forward(*exact, **options)[0].shape))
    assert kernel.supports(*arrays, **options)
    before = [a.copy() for a in (*arrays, dy)]
    results = []
    for descending in (False, True):
        monkeypatch.setattr(cuda_host, "descending", descending)
        y, saved = kernel.forward(*arrays, **options)
        gradients = kernel.backward(saved, dy)
        results.append([y, *(gradients if isinstance(gradients, tuple) else (gradients,))])
    for ascending, descending in zip(*results, strict=True):
        assert (ascending == descending).all(), "the order of the threads matters: a barrier is missing"
    y, saved = op.forward(*exact, **options)
    gradients = op.backward(saved, to_float(dy))
    expected = [y, *(gradients if isinstance(gradients, tuple) else (gradients,))]
    for actual, right in zip(results[0], expected, strict=True):
        assert_near(actual, right, arrays[0].dtype)
    assert all((a == b).all() for a, b in zip((*arrays, dy), before, strict=True)), "an input was written to"


@pytest.mark.parametrize(("op", "n_parameters"), [(LayerNorm, 2), (RMSNorm, 1)])
def test_norms_leave_parameters_of_another_dtype_to_the_definition(op, n_parameters):
    """Which gives float32 for 16-bit rows and float32 parameters; a model's parameters are cast first."""
    (kernel,) = KERNELS[op]
    half, single = np.ones(8, np.float16), np.ones(8, np.float32)
    for rows, parameters, taken in ((half, half, True), (half, single, False), (single, half, False)):
        assert kernel.supports(rows[None], *[parameters] * n_parameters) is taken


@on_host
@pytest.mark.parametrize("n_rows", [1, 1500])  # more rows than blocks
def test_rms_norm_of_bf16_rows_with_a_float_weight(n_rows, host):
    """As without a weight, where the kernel is given zeros."""
    (kernel,) = KERNELS[RMSNorm]
    rng = np.random.default_rng(1)
    x, dy = stored(host, "bf16", *(3 + rng.standard_normal((2, n_rows, 40))))
    (weight,) = stored(host, "float", rng.standard_normal(40))
    y, saved = kernel.forward(x, weight, offset=1.0)
    dx, dweight = kernel.backward(saved, dy)
    assert (y.dtype, dx.dtype, dweight.dtype) == (np.uint16, np.uint16, np.float32)
    right, saved = RMSNorm.forward(to_float(x), to_float(weight), offset=1.0)
    assert_near(y, right, x.dtype)
    for actual, right in zip((dx, dweight), RMSNorm.backward(saved, to_float(dy)), strict=True):
        assert_near(actual, right, actual.dtype if actual is dx else np.dtype("float32"))


@pytest.mark.parametrize(("op", "n_parameters"), [(LayerNorm, 2), (RMSNorm, 1)])
def test_norms_leave_rows_that_are_too_long_to_the_definition(op, n_parameters):
    (kernel,) = KERNELS[op]
    for n, taken in ((3072, True), (3073, False)):
        assert kernel.supports(*(np.ones(s, np.float32) for s in ((2, n), *[n] * n_parameters))) is taken


@given(n=st.integers(1, 200_000), row_bytes=st.integers(2, 1 << 20))
@example(n=32 * 1024, row_bytes=2 * 50304)
def test_chunks_of_logits_are_of_one_size(n, row_bytes):
    from autograd.kernels.cuda.loss import _LOGITS_BYTES, _TILE, rows_at_once

    size = rows_at_once(n, row_bytes)
    n_chunks, fewest = -(-n // size), -(-n * row_bytes // _LOGITS_BYTES)
    assert size % _TILE == 0 and n_chunks <= fewest
    assert size * row_bytes < _LOGITS_BYTES + (_TILE + 1) * row_bytes
    assert n_chunks * size - n < n_chunks * _TILE


@on_host
def test_softmax_of_rows_of_minus_infinity_is_zero(host):
    x = np.full((2, 40), -np.inf, np.float32)
    x[1, 7] = 3.0
    (kernel,) = KERNELS[Softmax]
    y, _ = kernel.forward(host.place(x), axis=1)
    assert (y[0] == 0).all() and y[1, 7] == 1 and y.sum() == 1


@on_host
@pytest.mark.parametrize("n_columns", [40, 1030, 9001])  # a warp's row, a block's, one that registers do not hold
def test_softmax_keeps_nan_to_its_row(n_columns, host):
    x = np.zeros((3, n_columns), np.float32)
    x[1, n_columns // 2], x[2, 3] = np.nan, -np.inf
    (kernel,) = KERNELS[Softmax]
    y, _ = kernel.forward(host.place(x), axis=1)
    assert np.isnan(y[1]).all() and y[2, 3] == 0
    assert_close(y[0], np.full(n_columns, 1 / n_columns, np.float32))


def test_attention_to_more_keys_than_registers_hold_is_left_to_the_definition():
    (kernel,) = KERNELS[Attention]
    for n, taken in ((8192, True), (8193, False)):
        q, k = np.ones((1, 1, 1, 2), np.float32), np.ones((1, 1, n, 2), np.float32)
        assert kernel.supports(q, k, k, None, causal=True) is taken


@on_host
@pytest.mark.parametrize(("n_queries", "n_keys"), [(1, 1), (1, 40), (3, 40), (33, 33), (20, 130), (2, 1030)])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.2])
def test_attention_with_fewer_queries_than_keys(n_queries, n_keys, causal, p, host):
    (kernel,) = KERNELS[Attention]
    rng = np.random.default_rng(6)
    q, k, v, dy = (rng.standard_normal((2, 3, n, 8)).astype(np.float32) for n in (n_queries, n_keys, n_keys, n_queries))
    options = {"causal": causal, "p": p, "seed": 1, "draw": 2}
    assert kernel.supports(q, k, v, None, **options)
    y, saved = kernel.forward(q, k, v, None, **options)
    right, right_saved = Attention.forward(*(to_float(a) for a in (q, k, v)), None, **options)
    assert_near(y, right, q.dtype)
    for actual, expected in zip(kernel.backward(saved, dy)[:3], Attention.backward(right_saved, to_float(dy))[:3], strict=True):
        assert_near(actual, expected, q.dtype)


@on_host
@each_storage
def test_softmax_of_rows_longer_than_a_block_takes_at_once(storage, host):
    (kernel,) = KERNELS[Softmax]
    rng = np.random.default_rng(5)
    x, dy = stored(host, storage, *(np.linspace(-9, 9, 9001) + rng.standard_normal((2, 2, 9001))))  # the largest come last
    y, saved = kernel.forward(x, axis=1)
    right, _ = Softmax.forward(to_float(x), axis=1)
    assert_near(y, right, x.dtype)
    of_stored = Softmax.backward((to_float(y), 1), to_float(dy))
    assert_near(kernel.backward(saved, dy), of_stored, x.dtype)


@on_host
@each_storage
@pytest.mark.parametrize("n_channels", [1, 33, 256, 300])
def test_embedding_gradient(n_channels, storage, host_either):
    (kernel,) = KERNELS[Embedding]
    rng = np.random.default_rng(2)
    ids = np.where(rng.random((5, 40)) < 0.5, 3, rng.integers(0, 9, (5, 40)))  # one id much more often than others
    ids[ids == 4] = 5  # and one never
    (dy,) = stored(host_either, storage, rng.standard_normal((5, 40, n_channels)))
    dweight, _ = kernel.backward((ids, (9, n_channels)), dy)
    expected, _ = Embedding.backward((ids, (9, n_channels)), to_float(dy))
    assert_near(dweight, expected, dy.dtype)
    assert (dweight[4] == 0).all()


@on_host
@pytest.mark.parametrize(("n", "n_ids", "kind"), [(1030, 700, "uniform"), (2100, 3, "uniform"), (2100, 90, "frequent"), (3000, 8000, "sorted"),
                                                  (96, 9, "one"), (130, 9, "one"), (33, 2, "one"), (64, 3, "blocks")])  # fmt: skip
def test_embedding_gradient_of_many_positions(n, n_ids, kind, host, monkeypatch):
    """Several sorted chunks, ids that fill the positions of several warps, ids that never occur."""
    (kernel,) = KERNELS[Embedding]
    rng = np.random.default_rng(n)
    drawn = rng.integers(0, n_ids, n)
    ids = {"uniform": drawn, "frequent": np.where(rng.random(n) < 0.4, 5, drawn), "sorted": np.sort(drawn), "one": np.full(n, n_ids // 2),
           "blocks": np.arange(n) // 32}[kind]  # fmt: skip
    (dy,) = stored(host, "float", rng.standard_normal((n, 5)))
    results = []
    for descending in (False, True):
        monkeypatch.setattr(cuda_host, "descending", descending)
        results.append(kernel.backward((ids, (n_ids, 5)), dy)[0])
    assert (results[0] == results[1]).all()
    assert_near(results[0], Embedding.backward((ids, (n_ids, 5)), to_float(dy))[0], dy.dtype)


@on_host
@pytest.mark.parametrize("n", [1, 1024, 1025, 33_000])  # at last, two merges
def test_positions_sorted_by_id(n, host):
    ids = np.random.default_rng(n).integers(0, 1 << 20, n) // 50 * 50
    keys = sys.modules["autograd.kernels.cuda.embedding"]._sorted_keys(host.place(ids), "float32")
    order = np.argsort(ids, kind="stable")
    assert (keys == (ids[order].astype(np.uint64) << np.uint64(32)) + order.astype(np.uint64)).all()


@on_host
@each_storage
@each_shape
def test_bias_and_its_gradient(shape, storage, host_either):
    rng = np.random.default_rng(5)
    y, bias = stored(host_either, storage, rng.standard_normal(shape), rng.standard_normal(shape[-1]))
    sums = matmul.column_sums(y)
    assert_near(sums, to_float(y).reshape(-1, shape[-1]).sum(axis=0), np.dtype("float32"))
    expected = to_float(y) + to_float(bias)
    matmul.add_bias(y, bias)
    assert_near(y, expected, y.dtype)


@on_host
@each_shape
def test_casts(shape, host_either):
    (kernel,) = KERNELS[Cast]
    (x,) = stored(host_either, "float", np.random.default_rng(7).standard_normal(shape))
    y, saved = kernel.forward(x, dtype=np.dtype(np.uint16))
    assert (y == bf16(x)).all() and (kernel.backward(saved, y) == to_float(y)).all()
    assert kernel.supports(x, dtype=y.dtype) and not kernel.supports(x, dtype=x.dtype)


@on_host
def test_columns_of_more_rows_than_blocks(host):
    (x,) = stored(host, "bf16", np.random.default_rng(6).standard_normal((2500, 70)))
    assert_near(matmul.column_sums(x), to_float(x).sum(axis=0), np.dtype("float32"))


@on_host
@each_storage
@pytest.mark.parametrize("n_classes", [2, 33, 1030, 9001])  # at last, more than each thread's first 16 bytes
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (0.01, 0.0), (0.01, 0.1)])
def test_cross_entropy_in_place(n_classes, storage, z_loss, smoothing, host_either, monkeypatch):
    rng = np.random.default_rng(3)
    z, targets = 5 * rng.standard_normal((6, n_classes)), rng.integers(0, n_classes, 6)
    targets[2] = -100
    (logits,) = stored(host_either, storage, z)
    z = to_float(logits)
    shifted = z - z.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    lse = (z - log_p)[:, :1]
    counted = targets != -100
    w = (1 - smoothing) * (np.arange(n_classes) == targets[:, None]) + smoothing / n_classes
    losses = np.where(counted, -(w * log_p).sum(axis=1) + z_loss * lse[:, 0] ** 2, 0)
    dz = (np.exp(log_p) * (1 + 2 * z_loss * lse) - w) * counted[:, None] * 0.5
    loss = sys.modules["autograd.kernels.cuda.loss"]
    options = {"ignore_index": -100, "label_smoothing": smoothing, "z_loss": z_loss, "gradient_scale": 0.5}
    for want in (False, True):
        found, before = host_either.empty(6, "float32"), logits.copy()
        loss.cross_entropy_in_place(found, logits, targets, **options, want_gradient=want)
        assert_near(found, losses, np.dtype("float32"))
        if not want:
            assert (logits == before).all()
    assert_near(logits, dz, logits.dtype)


@pytest.mark.parametrize(
    ("option", "taken"), [({}, True), ({"z_loss": 1e-4}, True), ({"softcap": 30.0}, False), ({"label_smoothing": 0.1}, True)]
)
def test_capped_logits_are_left_to_the_definition(option, taken):
    (kernel,) = KERNELS[LinearCrossEntropy]
    arrays = np.ones((3, 2), np.float32), np.ones((4, 2), np.float32), np.zeros(3, np.int64)
    assert kernel.supports(*arrays, **{"label_smoothing": 0.0, "n_counted": 3} | option) is taken


@on_host
@pytest.mark.parametrize("n", [1, 5, 1024, 100_001])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("clip", ["number", "device"])
def test_adamw_and_norm(n, decay, clip, host_either):
    rng = np.random.default_rng(4)
    arrays = [rng.standard_normal(n) for _ in range(3)] + [rng.standard_normal(n) ** 2]
    mine = [host_either.place(a.astype(np.float32)) for a in arrays]
    exact = [a.astype(np.float32).astype(np.float64) for a in arrays]
    options = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "decay": decay, "t": 3}
    scale = 0.7 if clip == "number" else np.array(0.7, np.float32)
    gradient = mine[1].copy()
    with ag.use_kernels("fast"):
        update, norm = optim.AdamWUpdate.dispatch(*mine, scale, **options), optim.SquaredNorm.dispatch(mine[1])
    assert update.__name__ == "AdamWUpdateCUDA" and norm.__name__ == "SquaredNormCUDA"
    update.forward(*mine, scale, **options)
    optim.AdamWUpdate.forward(*exact, float(scale), **options)
    for actual, right in zip(mine, exact, strict=True):
        assert_near(actual, right, actual.dtype)
    assert (mine[1] == gradient).all()
    total = norm.forward(mine[1])
    assert total.shape == () and abs(total - (exact[1] ** 2).sum()) <= 1e-6 * (exact[1] ** 2).sum()
    assert norm.forward(mine[1]) == total


def muon_matrices(rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Weights, gradients and moments as a flat buffer holds them: three matrices lie in one array, two shapes repeat."""
    found = []
    for size in (1.0, 1e-3, 1e-3):
        joined, *others = (size * rng.standard_normal(shape) for shape in ((6, 14), (6, 6), (3, 9), (9, 3), (3, 9)))
        found.append([joined[:, :6], joined[:, 6:10], joined[:, 10:], *others])
    return found


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("stack_bytes", [1, 500, 1 << 20])
def test_muon_in_stacks(dtype, decay, stack_bytes, host, monkeypatch):
    (kernel,) = KERNELS[optim.MuonUpdate]
    monkeypatch.setattr(f"{kernel.__module__}._STACK_BYTES", stack_bytes)
    lists, scale = muon_matrices(np.random.default_rng(5)), np.asarray(0.7, dtype)
    options = {"lr": 0.1, "momentum": 0.9, "decay": decay, "coefficients": optim.muon.POLAR_EXPRESS}
    mine, exact = ([[a.astype(to) for a in several] for several in lists] for to in (dtype, "float64"))
    with ag.use_kernels("fast"):
        assert optim.MuonUpdate.dispatch(*mine, scale, **options) is kernel
    squared = kernel.forward(*mine, scale, **options)
    right = optim.MuonUpdate.forward(*exact, float(scale), **options)
    assert squared.dtype == dtype and squared.shape == () and abs(squared - right) < 1e-5 * right
    for actual, expected in zip(mine, exact, strict=True):
        for a, e in zip(actual, expected, strict=True):
            assert_near(a, e, np.dtype("float32"))


def test_muon_multiplies_all_matrices_of_a_shape_at_once(host, monkeypatch):
    (kernel,) = KERNELS[optim.MuonUpdate]
    shapes, forward = [], optim.Orthogonalize.forward

    def counted(u: np.ndarray, **options: Any) -> np.ndarray:
        shapes.append(u.shape)
        return forward(u, **options)

    monkeypatch.setattr(optim.Orthogonalize, "forward", counted)
    options = {"lr": 0.1, "momentum": 0.9, "decay": 0.0, "coefficients": optim.muon.QUINTIC}
    kernel.forward(*muon_matrices(np.random.default_rng(5)), 1.0, **options)
    assert sorted(shapes) == [(1, 9, 3), (2, 3, 9), (2, 6, 4), (2, 6, 6)]
    shapes.clear()
    monkeypatch.setattr(f"{kernel.__module__}._STACK_BYTES", 8 * 24)  # one of 6 x 4 in float64
    kernel.forward(*muon_matrices(np.random.default_rng(5)), 1.0, **options)
    assert sorted(shapes) == [(1, 3, 9)] * 2 + [(1, 6, 4)] * 2 + [(1, 6, 6)] * 2 + [(1, 9, 3)]


@on_host
@pytest.mark.parametrize("start", [0, 3, 8])
def test_dropout_draws_the_backends_bits(start, host):
    (kernel,) = KERNELS[Dropout]
    y, _ = kernel.forward(host.place(np.ones(10_000, np.float32)), p=0.25, seed=7, draw=11, start=start)
    keep = cupy_random_bits()(7, 11, start, 10_000) >= 1 << 14
    assert_close(y, np.where(keep, np.float32(4 / 3), np.float32(0)))


@on_host
def test_bf16_rounds_to_nearest_even(host):
    x = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -(1 + 2**-8), 3.3895314e38, 1e-40, np.inf, np.nan, -0.0], np.float32)
    code = (
        module.source("dropout.cu")
        + 'extern "C" __global__ void rounded(bf16* y, const float* x) { from_float(x[threadIdx.x], y[threadIdx.x]); }\n'
    )
    y = np.zeros(32, np.uint16)
    cuda_host.RawModule(code).get_function("rounded")((1,), (32,), (y, np.pad(x, (0, 22))))
    with np.errstate(invalid="ignore"):
        assert (y[:10][~np.isnan(x)] == bf16(x)[~np.isnan(x)]).all()
    assert np.isnan(to_float(y)[8])


@on_host
def test_f16_is_numpys_float16_bit_for_bit(host):
    """All 65,536 of them to float, and to float16 what lies on, just above and just below the middle between two."""
    (kernel,) = KERNELS[Cast]
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    wide = kernel.backward(np.dtype("float32"), host.place(bits))
    assert wide.dtype == np.float32
    np.testing.assert_array_equal(wide, bits.astype(np.float32))
    finite = np.sort(np.unique(wide[np.isfinite(wide)]))
    middle = (finite[1:] + finite[:-1]) / 2
    around = np.concatenate([finite, middle, np.nextafter(middle, np.float32(np.inf)), np.nextafter(middle, np.float32(-np.inf))])
    extremes = np.array([65519.996, 65520.0, 1e30, -1e30, np.inf, -np.inf, np.nan, 1e-30, -0.0, 2.0**-25], np.float32)
    x = np.concatenate([around, extremes])
    narrow, _ = kernel.forward(host.place(x), dtype=np.dtype("float16"))
    with np.errstate(over="ignore"):
        expected = x.astype(np.float16)
    same = (narrow.view(np.uint16) == expected.view(np.uint16)) | (np.isnan(narrow) & np.isnan(expected))
    assert same.all(), (x[~same][:9], narrow[~same][:9], expected[~same][:9])
    assert not kernel.supports(bits, dtype=np.dtype(np.uint16)) and not kernel.supports(bits, dtype=np.dtype("float64"))


@on_host
def test_the_loss_of_float16_leaves_the_division_by_n_to_the_backward_pass(host, monkeypatch):
    """p / n of many rows would be 0 in float16. Gradients are those of the definition in float64, also with a loss scale as dy."""
    (kernel,) = KERNELS[LinearCrossEntropy]
    rng = np.random.default_rng(0)
    n, c, v = 3000, 8, 40
    x, weight = (a.astype(np.float16) for a in (rng.standard_normal((n, c)), 0.02 * rng.standard_normal((v, c))))
    targets = rng.integers(0, v, n)
    options = {"n_counted": 100 * n, "ignore_index": -100, "label_smoothing": 0.0, "chunk": 1024, "needs": (True, True, False, False)}
    right, saved = LinearCrossEntropy.forward(x.astype(np.float64), weight.astype(np.float64), targets, **options)
    expected = LinearCrossEntropy.backward(saved, np.float64(1024))
    loss, saved = kernel.forward(host.place(x), host.place(weight), targets, **options)
    assert kernel.supports(x, weight, targets, **options) and loss == pytest.approx(right, rel=1e-4)
    for found, exact in zip(kernel.backward(saved, np.array(1024, np.float32)), expected, strict=True):
        assert exact is None or np.abs(found - exact).max() < 3e-3 * np.abs(exact).max()


@on_host
@pytest.mark.parametrize("n_chunks", [1, 3])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_loss_with_a_bias_and_smoothed_labels(dtype, n_chunks, host, monkeypatch):
    from autograd.kernels.cuda import loss as launcher

    monkeypatch.setattr(launcher, "_TILE", 1)
    monkeypatch.setattr(launcher, "_LOGITS_BYTES", -(-9 * 37 * 4 // n_chunks))
    (kernel,) = KERNELS[LinearCrossEntropy]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((9, 5), (37, 5), (37,))]
    targets = rng.integers(0, 37, 9)
    targets[4] = -100
    options = {"n_counted": 8, "ignore_index": -100, "label_smoothing": 0.1, "chunk": 4, "z_loss": 0.01, "needs": (True, True, False, True)}
    x, weight, bias = (a.astype(np.float64) for a in arrays)
    right, saved = LinearCrossEntropy.forward(x, weight, targets, bias, **options)
    expected = LinearCrossEntropy.backward(saved, np.float64(2))
    x, weight, bias = map(host.place, arrays)
    assert kernel.supports(x, weight, targets, bias, **options)
    loss, saved = kernel.forward(x, weight, targets, bias, **options)
    tolerance = 3e-6 if dtype == np.float32 else 3e-3
    assert loss == pytest.approx(right, rel=tolerance)
    for found, exact in zip(kernel.backward(saved, np.array(2, np.float32)), expected, strict=True):
        assert exact is None or np.abs(found - exact).max() < tolerance * np.abs(exact).max()


@on_host
def test_every_kernel_has_run_on_the_host(host):
    """The tests above leave none out; here each is at least found in the launchers."""
    launchers = "".join(path.read_text(encoding="utf-8") for path in DIRECTORY.glob("*.py"))
    for file in FILES:
        for name in kernel_names(file):
            assert f'"{name}"' in launchers or name.startswith(("cast_to_", "cast_from_"))


# What goes wrong is said ---------------------------------------------------------------------------------------------------------------


def test_a_kernel_that_does_not_load_says_why(host, monkeypatch):
    def broken(code: str, options: tuple[str, ...]) -> Any:
        raise ImportError("no CUDA toolkit")

    monkeypatch.setattr(module, "raw_module", broken)
    with (
        ag.use_kernels("fast"),
        pytest.raises(RuntimeError, match=r"CUDA kernel gelu_forward of activation.cu for float32: not loaded \(no CUDA"),
    ):
        ag.gelu(ag.Tensor(np.ones(3, np.float32)))


@on_host
@pytest.mark.parametrize(
    ("body", "arguments", "message"),
    [
        ("if (threadIdx.x < 40) return; block_sum(1.0f);", (), "deadlock"),
        ("if (threadIdx.x == 0) __syncthreads(); else if (threadIdx.x < 33) block_sum(1.0f);", (), "deadlock"),
        ("", (np.int32(1),), "wrong number of arguments"),
    ],
)
def test_the_host_reports_deadlocks_and_wrong_arguments(body, arguments, message):
    code = module.source("dropout.cu") + f'extern "C" __global__ void wrong() {{ {body} }}\n'
    with pytest.raises(RuntimeError, match=message):
        cuda_host.RawModule(code).get_function("wrong")((1,), (64,), arguments)


@on_host
def test_the_host_is_strict_about_arguments():
    run = cuda_host.RawModule(module.source("activation.cu")).get_function("gelu_forward")
    x = np.ones((4, 4), np.float32)
    with pytest.raises(RuntimeError, match="argument 2 has the wrong size"):
        run((1,), (32,), (x, x, np.int32(16)))
    with pytest.raises(TypeError, match="argument 2 is a int"):
        run((1,), (32,), (x, x, 16))
    with pytest.raises(ValueError, match="argument 1 is not contiguous"):
        run((1,), (32,), (x, x.T[:2], np.int64(16)))


@on_host
def test_the_host_is_strict_about_dynamic_shared_memory():
    code = module.source("dropout.cu") + (
        'extern "C" __global__ void fill(float* y, int n) { extern __shared__ float s[]; '
        "for (int i = threadIdx.x; i < n; i += 32) y[i % 32] = s[i] = i; }\n"
    )
    run, y = cuda_host.RawModule(code).get_function("fill"), np.zeros(32, np.float32)
    run((2,), (32,), (y, np.int32(64)), shared_mem=256)
    assert (y == 32 + np.arange(32)).all()
    with pytest.raises(RuntimeError, match="written outside of the shared memory"):
        run((1,), (32,), (y, np.int32(65)), shared_mem=256)
    with pytest.raises(RuntimeError, match="60000 bytes of shared memory, expected at most 49152"):
        run((1,), (32,), (y, np.int32(64)), shared_mem=60_000)
    run.max_dynamic_shared_size_bytes = 60_000
    run((1,), (32,), (y, np.int32(64)), shared_mem=60_000)


@on_host
def test_the_host_shows_a_missing_barrier(monkeypatch):
    code = module.source("dropout.cu") + (
        'extern "C" __global__ void race(float* y) { __shared__ float s[64]; s[threadIdx.x] = threadIdx.x + 1.0f; '
        "y[threadIdx.x] = s[63 - threadIdx.x]; }\n"
    )
    results = []
    for descending in (False, True):
        monkeypatch.setattr(cuda_host, "descending", descending)
        results.append(np.zeros(64, np.float32))
        cuda_host.RawModule(code).get_function("race")((1,), (64,), (results[-1],))
    assert (results[0] != results[1]).any()


def test_numpys_random_bits_are_others():
    assert (_numpy.random_bits(7, 11, 0, 64) != cupy_random_bits()(7, 11, 0, 64)).any()
