"""The cupy backend: each way it can fail to start, the two sides of memory, bfloat16, TF32, and no waiting inside an op."""

import contextlib
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import autograd as ag
from autograd import backend, core, nn
from autograd.backend import to_device, to_host, xp
from autograd.ops.attention import Attention
from autograd.ops.elementwise import Cast, Exp
from autograd.ops.matmul import MatMul
from autograd.optim import SGD, Adam, AdamW, Muon
from tests import fake_cupy
from tests.autograd.checks import assert_close, numpy_only, tensor
from tests.autograd.test_core import run_python
from tests.strategies import seeds

on_device = pytest.mark.skipif(backend.name == "numpy", reason="about a device: pytest --fake-cupy, or AUTOGRAD_BACKEND=cupy with a GPU")
has_bfloat16 = pytest.mark.skipif(backend.bfloat16 is None, reason="this backend has no bfloat16")

FAKE = str(fake_cupy.FOLDER)
ON_FAKE = {"AUTOGRAD_BACKEND": "cupy", "PYTHONPATH": FAKE, "AUTOGRAD_KERNELS": "reference"}  # it runs no CUDA code


def on_fake(code, **environment):
    """A fresh interpreter with the fake device: (exit code, stdout, last line of stderr)."""
    status, out, error = run_python(code, **{**ON_FAKE, **environment})
    return status, out, (error.strip().splitlines() or [""])[-1]


@contextlib.contextmanager
def no_waiting():
    """Within this block CuPy raises DeviceSynchronized where something waits for the device."""
    import cupyx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy warns that it does not see all
        with cupyx.allow_synchronize(False):
            yield


# Starting -----------------------------------------------------------------------------------------------------------------------------


def test_the_fake_device_starts_and_says_what_it_is():
    status, out, _ = on_fake("from autograd import backend; print(backend.reason)")
    assert status == 0 and out.startswith("cupy (AUTOGRAD_BACKEND=cupy): CuPy 14") and out.strip().endswith("on fake device")


@pytest.mark.parametrize(
    ("change", "step", "cause", "fix"),
    [
        (
            "import builtins; real = builtins.__import__\n"
            "def broken(name, *rest):\n"
            "    if name == 'cupy': raise ImportError('libcudart.so.13: cannot open shared object file')\n"
            "    return real(name, *rest)\n"
            "builtins.__import__ = broken",
            "step 1, `import cupy`,", "libcudart.so.13", "for another CUDA; reinstall it",
        ),
        (
            "def fail(): raise RuntimeError('cudaErrorInsufficientDriver')\n"
            "cupy.cuda.runtime.getDeviceCount, cupy.cuda.runtime.driverGetVersion = fail, lambda: 12040",
            "step 2, the CUDA driver,", "the driver offers CUDA 12.4, this CuPy is built for 13.0", "install the CuPy build for your driver's CUDA",
        ),
        (
            "def fail(): raise RuntimeError('cudaErrorInsufficientDriver')\n"
            "cupy.cuda.runtime.getDeviceCount, cupy.cuda.runtime.driverGetVersion = fail, lambda: 0",
            "step 2, the CUDA driver,", "no NVIDIA driver is installed", "install or update the NVIDIA driver",
        ),
        (
            "def fail(): raise RuntimeError('cudaErrorNoDevice: no CUDA-capable device is detected')\ncupy.cuda.runtime.getDeviceCount = fail",
            "step 2, the CUDA driver,", "no CUDA-capable device", "CUDA_VISIBLE_DEVICES",
        ),
        ("cupy.cuda.runtime.getDeviceCount = lambda: 0", "step 3, counting devices,", "no CUDA device is visible", "CUDA_VISIBLE_DEVICES"),
        (
            "def fail(*a, **k): raise RuntimeError('CUDA_ERROR_NO_BINARY_FOR_GPU')\ncupy.ones = fail",
            "step 4, the first kernel,", "CUDA_ERROR_NO_BINARY_FOR_GPU", "reinstall CuPy for your CUDA version",
        ),
        (
            "def fail(*a, **k): raise cupy.OutOfMemoryError(512, 0)\ncupy.ones = fail",
            "step 4, the first kernel,", "Out of memory allocating 512 bytes", "another process fills the GPU",
        ),
        (
            "cupy.cuda.runtime.getDeviceProperties = lambda i: {'name': b'old device', 'major': 7}\nimport os; os.environ['AUTOGRAD_TF32'] = '1'",
            "AUTOGRAD_TF32=1", "old device has compute capability 7, TF32 needs 8", "unset AUTOGRAD_TF32",
        ),
    ],
    ids=["broken library", "old driver", "no driver", "no device", "no visible device", "first kernel", "full", "no TF32"],
)  # fmt: skip
def test_every_failure_to_start_has_its_own_message(change, step, cause, fix):
    status, _, last = on_fake(f"import cupy\n{change}\nimport autograd")
    assert status != 0 and last.startswith(f"error: AUTOGRAD_BACKEND=cupy: {step} failed (")
    for part in (cause, fix, "unset AUTOGRAD_BACKEND (or set it to numpy) to run on the CPU"):
        assert part in last, part


def test_no_cupy():
    status, _, error = run_python("import sys; sys.modules['cupy'] = None; import autograd", AUTOGRAD_BACKEND="cupy")
    assert status != 0 and "step 1, `import cupy`, failed" in error and 'pip install "tinygpt[cuda13]"' in error


def test_tf32_is_said_and_set():
    status, out, _ = on_fake(
        "from autograd import backend; import os; print(backend.reason, os.environ['CUPY_TF32'])", AUTOGRAD_TF32="1"
    )  # fmt: skip
    assert status == 0 and "on fake device, float32 products in TF32 1" in out
    status, _, error = run_python("import autograd", AUTOGRAD_TF32="1")
    assert status != 0 and "error: AUTOGRAD_TF32: 1, expected 0 on the CPU, which has no TF32 arithmetic; unset it, or set" in error
    status, _, last = on_fake("import autograd", AUTOGRAD_TF32="yes")
    assert status != 0 and "AUTOGRAD_TF32: 'yes', expected one of 0, 1; unset it for 0" in last


def test_a_full_device_says_what_was_asked_and_what_to_lower():
    code = """
import cupy
from autograd import backend
from tinygpt.cli import run
def main(): raise cupy.OutOfMemoryError(3 * 2**30, 2**30)
run(main)
"""
    status, _, last = on_fake(code)
    assert status == 1 and last.startswith("error: GPU memory: Out of memory allocating 3,221,225,472 bytes")
    for part in ("5,368,709,120 of 8,589,934,592 bytes are free", "lower --micro-batch or the context, --n-positions"):
        assert part in last


@pytest.mark.parametrize(("error", "said"), [(MemoryError("Unable to allocate 7.45 GiB"), "Unable to allocate 7.45 GiB"), (MemoryError(), "not enough")])  # fmt: skip
def test_a_full_host_says_what_to_lower(error, said):
    message = backend.memory_message(error)
    assert message.startswith(f"memory: {said}") and message.endswith("lower --micro-batch or the context, --n-positions")


# Two sides -----------------------------------------------------------------------------------------------------------------------------


@on_device
def test_a_host_array_handed_to_an_op_is_named():
    x, host = tensor(np.ones((2, 3), np.float32)), np.ones((3, 2), np.float32)
    message = (
        r"MatMul: b of shape \(3, 2\) is a NumPy array on the host, expected an array of the cupy backend; "
        r"move it with autograd.backend.to_device, or pass it inside a Tensor"
    )
    with pytest.raises(TypeError, match=message):
        MatMul.apply(x, host)
    x.data = host
    with pytest.raises(TypeError, match=r"Exp: x of shape \(3, 2\) is a NumPy array on the host"):
        Exp.apply(x)
    with pytest.raises(TypeError, match=r"Concatenate: input 1 of shape \(3, 2\) is a NumPy array"):
        ag.ops.shape.Concatenate.apply(tensor(np.ones((3, 2), np.float32)), host, axis=0)


@numpy_only
def test_a_device_array_handed_to_an_op_is_named():
    class DeviceArray:
        __cuda_array_interface__, shape, dtype = None, (2,), np.dtype(float)

    with pytest.raises(TypeError, match=r"Exp: x of shape \(2,\) is an array on a GPU, expected an array of the numpy backend"):
        Exp.apply(DeviceArray())


@on_device
def test_ids_come_from_the_host():
    with pytest.raises(
        TypeError, match=r"embedding id: an array on the device, expected host integers, which are checked before they move"
    ):
        ag.embedding(tensor(np.ones((2, 3))), to_device(np.array([0, 1])))


def test_public_functions_take_host_arrays():
    x = tensor(np.ones((2, 3)))
    assert_close((x + np.ones(3)).data, np.full((2, 3), 2.0))
    assert_close(ag.linear(x, ag.Tensor(np.ones((3, 1)))).data, np.full((2, 1), 3.0))


# bfloat16 --------------------------------------------------------------------------------------------------------------------------------


@numpy_only
def test_numpy_refuses_16_bits_with_the_reason():
    for name in ("bfloat16", "float16"):
        with pytest.raises(
            ValueError, match=rf"dtype: {name}, expected float32 on the numpy backend, because NumPy has no {name} arithmetic"
        ):
            backend.compute_dtype(name)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    with pytest.raises(TypeError, match=r"Tensor: dtype bfloat16, expected real numbers \(numpy here computes in no bfloat16\)"):
        ag.Tensor(np.ones(2, ml_dtypes.bfloat16))
    with pytest.raises(TypeError, match=r"cast: to bfloat16, expected a floating-point dtype of the numpy backend"):
        ag.cast(tensor([1.0]), ml_dtypes.bfloat16)


def test_dtypes_that_are_none():
    assert backend.compute_dtype("float32") == np.float32
    with pytest.raises(ValueError, match=r"dtype: 'float64', expected float32, bfloat16 or float16; leave it out for float32"):
        backend.compute_dtype("float64")
    for dtype in (np.int64, bool):
        with pytest.raises(TypeError, match=r"cast: to (int64|bool), expected a floating-point dtype"):
            ag.cast(tensor([1.0]), dtype)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("backend._cupy.bfloat16 = None", "because CuPy has no bfloat16 without the package ml_dtypes; pip install ml_dtypes"),
        (
            "import cupy; cupy.cuda.runtime.getDeviceProperties = lambda i: {'name': b'old device', 'major': 7}",
            "on old device (compute capability 7), because bfloat16 units begin with 8; take --dtype float16, or leave it out",
        ),
    ],
)
def test_devices_without_half(change, message):
    pytest.importorskip("ml_dtypes")
    status, _, last = on_fake(f"from autograd import backend\n{change}\nbackend.compute_dtype('bfloat16')")
    assert status != 0 and last.startswith("ValueError: dtype: bfloat16, expected float32 or float16") and message in last


@pytest.mark.parametrize(("narrow", "wide"), [(np.float32, np.float64), (np.float16, np.float32)])
def test_cast_there_and_back(narrow, wide):
    x = tensor(np.array([1.0, 1 / 3], narrow))
    y = ag.cast(x, wide)
    assert y.dtype == wide and ag.cast(y, wide) is y
    (y * y).sum().backward()
    assert x.grad.dtype == narrow
    z = tensor(np.array([1.0, 1 / 3], wide))
    ag.cast(z, narrow).sum().backward()
    assert z.grad.dtype == wide and to_host(z.grad).tolist() == [1.0, 1.0]


def bf16(array, requires_grad=True):
    return ag.Tensor(to_device(array).astype(backend.bfloat16), requires_grad=requires_grad)


def as_float(array):
    return to_host(array.astype(np.float32))


@on_device
@has_bfloat16
@given(seed=seeds)
def test_ops_on_bfloat16_are_float32_rounded_once(seed):
    """Results lie within one rounding (2^-8) of what float32 gives for the same numbers, and come back as bfloat16, gradients too."""
    rng = np.random.default_rng(seed)
    x, w, scores = rng.standard_normal((4, 6)), rng.standard_normal((6, 6)), rng.standard_normal((2, 3, 4, 6))
    for call, arrays in (
        (ag.gelu, [x]), (ag.softmax, [x]), (ag.log_softmax, [x]), (ag.exp, [x]), (ag.tanh, [x]), (ag.sum, [x]), (ag.mean, [x]), (ag.relu, [x]),
        (lambda a, b: a * b, [x, x]), (lambda a, b: a + b, [x, x]), (ag.linear, [x, w]), (ag.layer_norm, [x, w[0], w[1]]),
        (lambda a: ag.dropout(a, 0.5, stream=ag.RandomStream(seed)), [x]), (lambda a: ag.concatenate(ag.split(a, 2)), [x]),
        (lambda q: ag.scaled_dot_product_attention(q, q, q, causal=True), [scores]), (lambda a: a[[0, 0, 2]], [x]),
        (lambda a: ag.embedding(a, [0, 1, 1]), [x]),
    ):  # fmt: skip
        narrow = [bf16(a) for a in arrays]
        wide = [tensor(as_float(t.data)) for t in narrow]
        for tensors in (narrow, wide):
            y = call(*tensors)
            y.backward(np.ones(y.shape))
        y, right = call(*narrow), call(*wide)
        assert y.dtype == backend.bfloat16
        for mine, theirs in [(y.data, right.data), *((t.grad, u.grad) for t, u in zip(narrow, wide, strict=True))]:
            assert mine.dtype == backend.bfloat16
            np.testing.assert_allclose(as_float(mine), to_host(theirs), rtol=2**-7, atol=2**-7 * max(1.0, float(abs(theirs).max())))


@on_device
@has_bfloat16
def test_mixed_operands_give_float32():
    x, y = bf16(np.ones((2, 3))), tensor(np.ones((2, 3), np.float32))
    for z in (x * y, x + y, y / x, ag.where(np.eye(2, 3, dtype=bool), x, y), ag.layer_norm(x, y[0], y[1])):
        assert z.dtype == np.float32
    (x * y).sum().backward()
    assert x.grad.dtype == backend.bfloat16 and y.grad.dtype == np.float32


@on_device
@has_bfloat16
def test_losses_are_float32():
    rng = np.random.default_rng(0)
    x, weight, targets = rng.standard_normal((7, 4)), rng.standard_normal((5, 4)), rng.integers(0, 5, 7)
    fused = ag.linear_cross_entropy(bf16(x), bf16(weight), targets, chunk=3)
    plain = ag.cross_entropy(bf16(x @ weight.T), targets)
    right = ag.cross_entropy(tensor(x @ weight.T), targets).item()
    assert fused.dtype == plain.dtype == np.float32
    assert fused.item() == pytest.approx(right, rel=0.01) and plain.item() == pytest.approx(right, rel=0.01)


@on_device
@has_bfloat16
def test_parameters_and_their_gradients_stay_float32():
    rng = np.random.default_rng(0)
    layer = nn.Linear(4, 3)
    norm = nn.LayerNorm(3)
    y = norm(layer(bf16(rng.standard_normal((5, 4)))))
    assert y.dtype == backend.bfloat16
    y.backward(rng.standard_normal((5, 3)))
    for p in (*layer.parameters(), *norm.parameters()):
        assert p.dtype == p.grad.dtype == np.float32
    assert np.abs(to_host(layer.weight.grad)).max() > 0


@on_device
@has_bfloat16
def test_rounding_to_bfloat16():
    x = tensor(np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8], np.float32))
    y = Cast.apply(x, dtype=backend.bfloat16)
    assert as_float(y.data).tolist() == [1.0, 1.0, 1 + 2**-6]  # ties go to even
    y.backward(np.ones(3))
    assert x.grad.dtype == np.float32


# Kernels that take 16 bits alone -------------------------------------------------------------------------------------------------------


def near_the_definition(op, name, arrays, **options):
    """The kernel of that name against the definition in float64 on the same bfloat16 numbers, and against itself: the same bits again."""
    kernel = next((kernel for kernel in ag.registered_kernels().get(op, []) if kernel.__name__ == name), None)
    if kernel is None:
        pytest.skip("the fake device runs no CUDA code")
    if not kernel.supports(*arrays, **options):
        pytest.skip(f"{name} takes nothing here: its library is not installed")

    def exact(array):
        return xp.asarray(to_host(array).astype(np.float64)) if hasattr(array, "dtype") else array

    y, saved = kernel.forward(*arrays, **options)
    dy = xp.asarray(np.random.default_rng(1).standard_normal(y.shape).astype(np.float32)).astype(y.dtype)
    found = [[y, *kernel.backward(saved, dy)[:3]] for _ in range(2)]
    right, saved = op.forward(*map(exact, arrays), **options)
    expected = [right, *op.backward(saved, exact(dy))[:3]]
    for first, second, wanted in zip(*found, expected, strict=True):
        assert (to_host(first).view(np.uint16) == to_host(second).view(np.uint16)).all()
        first, wanted = to_host(first).astype(np.float64), to_host(wanted)
        assert np.abs(first - wanted).max() <= 2**-6 * np.abs(wanted).max()


@on_device
@has_bfloat16
@pytest.mark.parametrize("flat", [False, True])
def test_weights_cast_together_equal_those_cast_one_by_one(flat):
    """Values, and gradients but for rounding to 16 bits; `flat`: the weights lie in an optimizer's buffer, as in training."""
    results = []
    for together in (False, True):
        layers = [nn.Linear(5, 3), nn.Linear(3, 4, bias=False), nn.LayerNorm(4)]
        module = nn.Module()
        module.layers = layers
        rng = np.random.default_rng(0)
        for p in module.parameters():
            p.data[...] = to_device(rng.standard_normal(p.shape).astype(np.float32))
        optimizer = AdamW(module) if flat else None
        x = rng.standard_normal((2, 5)).astype(np.float32)
        for _ in range(2):  # gradients add up in float32
            with nn.weights_in(module, backend.bfloat16) if together else contextlib.nullcontext():
                y = layers[2](layers[1](layers[0](ag.cast(tensor(x), backend.bfloat16))))
            assert all(p.narrow is None for p in module.parameters())
            (ag.cast(y, np.float32) * ag.cast(y, np.float32)).sum().backward()
        gradients = [p.grad for p in module.parameters()]
        assert all(g.dtype == np.float32 for g in gradients) and (optimizer is None or float(optimizer.gradient_norm()) > 0)
        results.append([to_host(y.data).astype(np.float32), *map(to_host, gradients)])
    assert (results[0][0] == results[1][0]).all()
    for one_by_one, together in zip(*results, strict=True):
        assert np.abs(one_by_one - together).max() <= 2**-7 * np.abs(together).max()


@on_device
@has_bfloat16
def test_the_gradient_of_a_narrowed_weight_goes_to_the_parameter():
    """Of two backward passes: 1 each, per row; they add up in float32."""
    linear = nn.Linear(2, 1)
    linear.weight.data[...] = 1
    optimizer = AdamW(linear)
    x = to_device(np.array([[1.0, 0.0], [2.0**-20, 0.0]], np.float32)).astype(backend.bfloat16)
    with nn.weights_in(linear, backend.bfloat16):
        assert isinstance(linear.weight.narrow, core.Narrowed) and linear.weight.narrow.dtype == backend.bfloat16
        for _ in range(2):
            y = ag.cast(linear(core.Tensor(x)), np.float32)
            y.sum().backward()
    assert float(linear.bias.grad[0]) == 4 and linear.weight.grad is linear.weight._gradient_buffer
    assert float(optimizer.gradient_norm()) > 0 and linear.weight.narrow is None


@on_device
def test_kernels_of_the_cpu_are_not_registered_for_arrays_on_a_device():
    before = ag.registered_kernels()
    with pytest.raises(ImportError, match=r"autograd.kernels.cpu: imported on the cupy backend, expected numpy; autograd.threads and"):
        import autograd.kernels.cpu.parallel  # noqa: F401
    assert ag.registered_kernels() == before


# cuBLASLt ---------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cublaslt():
    """The binding; on the fake device, with the library's functions on the host."""
    from autograd.kernels.cuda import cublaslt as binding
    from tests import cublaslt_host

    with pytest.MonkeyPatch.context() as monkeypatch:
        if "fake" in xp.__version__:
            library = cublaslt_host.Library()
            monkeypatch.setattr(binding, "library", lambda: library)
        elif binding.library() is None:
            pytest.skip("no cuBLASLt here")
        yield binding
    if "fake" in xp.__version__:
        binding._on_stream.cache_clear()
        binding._plan.cache_clear()


lengths = st.sampled_from([8, 16, 24, 40])


@on_device
@given(st.integers(1, 33), lengths, lengths, st.sampled_from(["float32", "float16", "bfloat16"]), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), seeds)  # fmt: skip
def test_products_of_cublaslt(cublaslt, n, k, m, name, a_by_columns, b_by_columns, wide, add, with_bias, seed):
    """In each layout of a and b, into the same dtype and float32, added or not, with a bias or without, against float64."""
    dtype = backend.bfloat16 if name == "bfloat16" else np.dtype(name)
    if dtype is None:
        return
    n = 8 * -(-n // 8) if a_by_columns else n
    rng = np.random.default_rng(seed)
    a, b, out, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((n, k), (k, m), (n, m), (m,)))
    out_dtype = np.dtype(np.float32) if wide else dtype
    a, b, out, bias = (to_device(x).astype(t) for x, t in ((a, dtype), (b, dtype), (out, out_dtype), (bias, out_dtype)))
    left = xp.ascontiguousarray(a.T).T if a_by_columns else a
    right = xp.ascontiguousarray(b.T).T if b_by_columns else b
    wanted = [to_host(x).astype(np.float64) for x in (a, b, out, bias)]
    expected = wanted[0] @ wanted[1] + add * wanted[2] + with_bias * wanted[3]
    assert cublaslt.takes(left, right)
    cublaslt.multiply(left, right, out, add=add, bias=bias if with_bias else None)
    error = np.abs(to_host(out).astype(np.float64) - expected).max()
    assert error <= {"float32": 1e-5, "float16": 2**-9, "bfloat16": 2**-6}[out_dtype.name] * max(1, np.abs(expected).max())


@on_device
def test_what_cublaslt_does_not_take(cublaslt):
    x = xp.zeros((8, 8), dtype="float32")
    assert cublaslt.takes(x, x) and cublaslt.takes(x[:1], x) and cublaslt.takes(x.T, x)
    assert not any(
        cublaslt.takes(a, b)
        for a, b in ((x, x.astype("float16")), (x[:, :3], x[:3]), (x, x[:, :5]), (x[::2, ::2], x[:4]), (x.astype("int64"), x))
    )
    assert not cublaslt.takes(xp.zeros((8, 3), dtype="float32"), xp.zeros((3, 8), dtype="float32"))


@on_device
def test_a_product_that_cublaslt_refuses_is_an_error(cublaslt):
    x = xp.zeros((8, 3), dtype="float32")
    with pytest.raises(
        RuntimeError,
        match=r"cuBLASLt: cublasLtMatmulAlgoGetHeuristic for Kind.*status 15 \(not supported\), expected 0; AUTOGRAD_KERNELS=reference",
    ):
        if "fake" not in xp.__version__:
            cublaslt._check("cublasLtMatmulAlgoGetHeuristic for Kind", 15)
        cublaslt.multiply(x, x.T, xp.zeros((8, 8), dtype="float32"))


@on_device
@has_bfloat16
@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("wide", [False, True])
def test_a_choice_that_cublaslt_does_not_support_is_left_to_cupy(cublaslt, wide, add, monkeypatch):
    run, calls = cublaslt._run, []
    fake = "fake" in xp.__version__  # a device supports these: there the call is left out
    monkeypatch.setattr(cublaslt, "_run", lambda *args: calls.append(1) or (run(*args) if fake else False))
    if fake:
        monkeypatch.setattr(cublaslt.library(), "refused", {"bfloat16"})
    rng = np.random.default_rng(0)
    a, b = (to_device(rng.standard_normal(shape).astype(np.float32)).astype(backend.bfloat16) for shape in ((5, 48), (48, 16)))
    dtype = np.dtype(np.float32) if wide else backend.bfloat16
    bias, start = (to_device(rng.standard_normal(shape).astype(np.float32)).astype(dtype) for shape in (16, (5, 16)))
    cublaslt._plan.cache_clear()
    for n_calls in (1, 1):  # it is asked once
        out = start.copy()
        cublaslt.multiply(a, b, out, add=add, bias=bias)
        *added, left, right = (to_host(x).astype(np.float64) for x in (*([start] if add else []), bias, a, b))
        right = sum(added, start=left @ right)
        np.testing.assert_allclose(to_host(out).astype(np.float64), right, rtol=0, atol=2**-6 * np.abs(right).max())
        assert len(calls) == n_calls
    cublaslt._plan.cache_clear()


@on_device
def test_tuning_keeps_one_of_the_candidates(cublaslt, monkeypatch):
    monkeypatch.setattr(backend, "tune", True)
    if "fake" in xp.__version__:
        times = iter(range(100, 0, -1))
        event = type("Event", (), {"record": lambda self: None, "synchronize": lambda self: None})
        monkeypatch.setattr(xp.cuda, "Event", event, raising=False)
        monkeypatch.setattr(xp.cuda, "get_elapsed_time", lambda begin, end: next(times), raising=False)
    x = xp.ones((16, 16), dtype="float32")
    out = xp.ones((16, 16), dtype="float32")
    for add, total in ((True, 17), (True, 33), (False, 16)):
        cublaslt.multiply(x, x, out, add=add)
        assert (to_host(out) == total).all()
    together = x.data.ptr | out.data.ptr | 256
    plan = cublaslt._plan(cublaslt.Kind((16, 16), (16, 16), (False, False), "float32", "float32", False, together & -together))
    assert plan.candidates == [plan.chosen]


@on_device
@has_bfloat16
@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_a_linear_layer_by_cublaslt_writes_its_gradients_into_the_optimizers_buffer(cublaslt, name):
    from autograd.kernels.cuda.matmul import LinearCuBLASLt
    from autograd.kernels.destination import Destination

    dtype = backend.bfloat16 if name == "bfloat16" else np.dtype(name)
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (
        to_device(rng.standard_normal(s).astype(np.float32)).astype(dtype) for s in ((2, 5, 16), (16, 24), (24,), (2, 5, 24))
    )
    needs = (True, True, False)
    y, saved = LinearCuBLASLt.forward(x, weight, bias, needs=needs)
    exact = [to_host(a).astype(np.float64) for a in (x, weight, bias, dy)]
    assert LinearCuBLASLt.supports(x, weight, bias) and y.shape == (2, 5, 24)
    expected = np.einsum("bti,bto->io", exact[0], exact[3])
    for filled in (False, True):
        buffer = xp.full((16, 24), 3.0, dtype="float32")
        dx, dweight, _ = LinearCuBLASLt.backward(saved, dy, needs=needs, into=(None, Destination(buffer, filled), None))
        assert dweight is buffer and dx.shape == x.shape and dx.dtype == dtype
        assert np.abs(to_host(buffer) - expected - 3 * filled).max() < 1e-4
    error = np.abs(to_host(y).astype(np.float64) - exact[0] @ exact[1] - exact[2]).max()
    assert error < (0.05 if name == "bfloat16" else 1e-5) and np.abs(to_host(dx).astype(np.float64) - exact[3] @ exact[1].T).max() < 0.1


@on_device
@has_bfloat16
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 64, 8), (2, 3, 200, 64), (1, 2, 129, 128)])
def test_attention_by_cudnn(shape, causal):
    b, h, t, d = shape
    rng = np.random.default_rng(0)
    joined = to_device(rng.standard_normal((b, t, 3 * h * d)).astype(np.float32)).astype(backend.bfloat16)
    q, k, v = (part.reshape(b, t, h, d).transpose(0, 2, 1, 3) for part in xp.split(joined, 3, axis=-1))
    near_the_definition(Attention, "AttentionCuDNN", [q, k, v, None], causal=causal)


# Sums by row, and random bits: laws of both backends are in test_backend.py and test_dropout.py -------------------------------------------


@on_device
@given(seed=seeds, n=st.integers(1, 300), n_rows=st.integers(1, 20))
def test_scatter_add_waits_for_nothing_and_repeats(seed, n, n_rows):
    rng = np.random.default_rng(seed)
    index, values = to_device(rng.integers(0, n_rows, n)), to_device(rng.standard_normal((n, 3)).astype(np.float32))
    with no_waiting():
        first, second = (backend.scatter_add((n_rows, 3), index, values) for _ in range(2))
        bits = backend.random_bits(seed, 1, 5, n)
    assert (to_host(first) == to_host(second)).all() and bits.shape == (n,)


@on_device
def test_parts_of_one_array_are_joined_without_a_copy():
    whole = to_device(np.arange(24.0).reshape(2, 3, 4))
    parts = [whole[..., :2], whole[..., 2:]]
    joined = backend.join(parts, -1)
    assert joined.data.ptr == whole.data.ptr and joined.flags.c_contiguous
    assert_close(joined, to_host(whole))
    assert_close(backend.join(parts[::-1], -1), np.roll(to_host(whole), 2, axis=-1))
    assert_close(backend.join([parts[0], parts[0]], 1), np.concatenate([to_host(parts[0])] * 2, axis=1))


@on_device
@has_bfloat16
def test_scatter_add_of_bfloat16_adds_in_float32():
    total = backend.scatter_add((1, 1), to_device(np.zeros(1000, int)), xp.ones((1000, 1), dtype=backend.bfloat16))
    assert total.dtype == backend.bfloat16 and float(total[0, 0]) == 1000.0


@on_device
def test_random_bits_are_uniform():
    n = 1 << 16
    bits = to_host(backend.random_bits(3, 5, 0, n)).astype(float)
    assert abs(bits.mean() / 65535 - 0.5) < 6 * np.sqrt(1 / 12 / n)
    ones = np.unpackbits(to_host(backend.random_bits(3, 6, 0, n)).view(np.uint8)).mean()
    assert abs(ones - 0.5) < 6 * 0.5 / np.sqrt(16 * n)


@on_device
@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("make", [AdamW, Adam, SGD, Muon])
def test_a_step_of_an_optimizer_waits_for_nothing(make, max_norm):
    layer = nn.Linear(4, 3)
    optimizer = make(layer)
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    with no_waiting():
        loss = ag.cross_entropy(layer(ag.Tensor(x)), [0, 1, 2, 0, 1])
        loss.backward()
        norm = optimizer.step(max_norm)
        optimizer.zero_grad()
    assert isinstance(norm, backend.device_array) and norm.shape == () and norm.dtype == np.float32


def test_kernels_say_whether_they_take_bfloat16():
    assert core.Op.takes_half is False and Cast.takes_half is True


def test_the_fake_is_complete():
    assert {path.name for path in Path(FAKE).iterdir()} >= {"cupy", "cupyx", "api.txt", "make_api.py"}
