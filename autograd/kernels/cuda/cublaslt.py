"""Matrix products by cuBLASLt, called with ctypes: of 16-bit matrices into float32, added to what is there, with a bias.

CuPy binds cuBLAS, whose products do none of this: each would be one more pass over the result, which takes a third of the product's time and
more. cuBLASLt comes with CuPy's toolkit. What a call needs is made once per kind of call: a description of the product, a layout per matrix,
and an algorithm, the library's own choice; with AUTOGRAD_TUNE=1, the fastest of those that it offers. For a few kinds it chooses one that it then
does not support (seen with cuBLAS 13 on an H200, for small matrices of bfloat16): those go through CuPy.

cuBLASLt stores matrices by columns, CuPy by rows, and a matrix stored by rows is its transpose stored by columns: y = a b is computed as
y^T = b^T a^T, so that its A is our b.
Source  NVIDIA, cuBLAS 13 documentation, "Using the cuBLASLt API".
"""

import ctypes
import math
from collections.abc import Sequence
from ctypes import byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import NamedTuple

from autograd import backend
from autograd.backend import Array, xp
from autograd.kernels.cuda.module import name_of

# Numbers of library_types.h, cublas_api.h and cublasLt.h.
_TYPES = {"float32": 0, "float16": 2, "bfloat16": 14}
_COMPUTE_FLOAT32, _COMPUTE_TF32 = 68, 77
_TRANSPOSE_A, _TRANSPOSE_B, _EPILOGUE, _BIAS_ADDRESS, _BIAS_TYPE = 3, 4, 7, 8, 26  # attributes of a description
_PLAIN, _BIAS = 1, 4  # epilogues. The one that sums columns (BGRADA) is a kernel of its own inside, no faster than ours
_MAX_WORKSPACE, _MIN_ALIGNMENTS = 1, (5, 6, 7, 8)  # attributes of a preference
_WORKSPACE_BYTES = 32 * 1024 * 1024  # what NVIDIA advises from compute capability 9 on
_MAX_ALIGNMENT = 256
_N_CANDIDATES, _N_TRIALS = 8, 5  # when tuning


class _Found(ctypes.Structure):
    """An algorithm, as the heuristic describes it: cublasLtMatmulHeuristicResult_t."""

    _fields_ = [("algorithm", c_uint64 * 8), ("workspace", c_size_t), ("status", c_int), ("waves", c_float), ("reserved", c_int * 4)]


class Kind(NamedTuple):
    """What products must share to be computed in the same way.

    by_columns   whether a and b lie in memory by columns
    alignment    bytes by which all addresses can be divided
    """

    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]
    by_columns: tuple[bool, bool]
    dtype: str
    out_dtype: str
    has_bias: bool
    alignment: int


class _Plan:
    """The library's objects for one kind of product."""

    def __init__(self, description: c_void_p, layouts: tuple[c_void_p, c_void_p, c_void_p], candidates: Sequence[_Found]) -> None:
        self.description = description
        self.a, self.b, self.out = layouts
        self.candidates = candidates
        self.chosen: _Found | None = candidates[0]  # None: no algorithm of the library's works
        self.bias = c_void_p()  # its address, copied into the description before each call


_ONE, _ZERO = byref(c_float(1)), byref(c_float(0))


@cache
def library() -> ctypes.CDLL | None:
    """The library, None where CuPy's toolkit lacks it."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib

        found = ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)
    except (ImportError, RuntimeError, OSError):
        return None
    found.cublasLtMatmul.argtypes = [c_void_p] * 14 + [c_size_t, c_void_p]  # addresses are plain ints, which would be cut to 32 bits
    return found


def takes(a: Array, b: Array) -> bool:
    """True if a @ b can be computed here: matrices of one dtype, by rows or columns of a multiple of 16 bytes, which matrix units load at once."""
    if a.dtype != b.dtype or name_of(a.dtype) not in _TYPES or library() is None:
        return False
    lengths = b.shape[1] | b.shape[not _by_columns(b)] | a.shape[not _by_columns(a)]
    return lengths * a.itemsize % 16 == 0 and all(x.flags.c_contiguous or x.flags.f_contiguous for x in (a, b))


def _by_columns(x: Array) -> bool:
    """Whether a matrix lies in memory by columns; a single row or column lies both ways, and is taken as one long row or column."""
    return not x.flags.c_contiguous or (x.shape[1] == 1 and x.flags.f_contiguous)


def multiply(a: Array, b: Array, out: Array, *, add: bool = False, bias: Array | None = None) -> None:
    """out = a @ b in one kernel. a (n, k) and b (k, m) lie by rows or by columns, out (n, m) by rows.

    a and b have one dtype, out has it too or float32. `add` adds the product to out instead; bias (m,), of out's dtype, is added to each row.
    Raises RuntimeError where cuBLASLt refuses such a product, or fails.
    """
    addresses = (b.data.ptr, a.data.ptr, out.data.ptr, 0 if bias is None else bias.data.ptr)
    together = addresses[0] | addresses[1] | addresses[2] | addresses[3] | _MAX_ALIGNMENT
    types = (name_of(a.dtype), name_of(out.dtype), bias is not None, together & -together)
    plan = _plan(Kind(a.shape, b.shape, (_by_columns(a), _by_columns(b)), *types))
    if len(plan.candidates) > 1:
        _tune(plan, addresses, xp.empty(out.shape, dtype=out.dtype))
    if plan.chosen is not None and not _run(plan, plan.chosen, addresses, add):
        plan.chosen = None
    if plan.chosen is None:
        product = a.astype(out.dtype, copy=False) @ b.astype(out.dtype, copy=False)
        out[...] = sum((x for x in (out if add else None, bias) if x is not None), start=product)


def _run(plan: _Plan, algorithm: _Found, addresses: tuple[int, int, int, int], add: bool) -> bool:
    """False, and nothing written, if the library does not support its own choice."""
    lt, handle, workspace, stream = _on_stream(xp.cuda.get_current_stream().ptr)  # type: ignore[attr-defined]
    b, a, out, bias = addresses
    if bias:
        plan.bias.value = bias
        _check("cublasLtMatmulDescSetAttribute", lt.cublasLtMatmulDescSetAttribute(plan.description, _BIAS_ADDRESS, byref(plan.bias), 8))
    before = _ONE if add else _ZERO
    status = lt.cublasLtMatmul(
        handle, plan.description, _ONE, b, plan.b, a, plan.a, before, out, plan.out, out, plan.out, byref(algorithm), workspace,
        _WORKSPACE_BYTES, stream,
    )  # fmt: skip
    if status != _NOT_SUPPORTED:
        _check("cublasLtMatmul", status)
    return bool(status == 0)


def _tune(plan: _Plan, addresses: tuple[int, int, int, int], out: Array) -> None:
    """Runs each candidate on these matrices, into an `out` of its own, and keeps the fastest."""
    cuda = xp.cuda  # type: ignore[attr-defined]
    found: list[float] = []
    for candidate in plan.candidates:
        times: list[float] = []
        for _ in range(_N_TRIALS):
            begin, end = cuda.Event(), cuda.Event()
            begin.record()
            works = _run(plan, candidate, (*addresses[:2], out.data.ptr, addresses[3]), False)
            end.record()
            end.synchronize()
            times.append(cuda.get_elapsed_time(begin, end) if works else math.inf)
        found.append(min(times))
    plan.chosen = plan.candidates[found.index(min(found))]
    plan.candidates = [plan.chosen]


@cache
def _on_stream(stream: int) -> tuple[ctypes.CDLL, c_void_p, c_void_p, c_void_p]:
    """(library, handle, workspace, stream): products on one stream may share a workspace, those on two may not."""
    lt, handle = library(), c_void_p()
    assert lt is not None
    _check("cublasLtCreate", lt.cublasLtCreate(byref(handle)))
    _workspaces.append(xp.empty(_WORKSPACE_BYTES, dtype="uint8"))
    return lt, handle, c_void_p(_workspaces[-1].data.ptr), c_void_p(stream)


_workspaces: list[Array] = []


@cache
def _plan(kind: Kind) -> _Plan:
    """Describes such products and asks for algorithms."""
    lt, handle, *_ = _on_stream(xp.cuda.get_current_stream().ptr)  # type: ignore[attr-defined]
    description, preference = c_void_p(), c_void_p()
    compute = _COMPUTE_TF32 if kind.dtype == "float32" and backend.tf32 else _COMPUTE_FLOAT32
    _check("cublasLtMatmulDescCreate", lt.cublasLtMatmulDescCreate(byref(description), compute, _TYPES["float32"]))
    a_by_columns, b_by_columns = kind.by_columns
    attributes = {_TRANSPOSE_A: b_by_columns, _TRANSPOSE_B: a_by_columns, _EPILOGUE: _BIAS if kind.has_bias else _PLAIN}
    for attribute, value in (attributes | ({_BIAS_TYPE: _TYPES[kind.out_dtype]} if kind.has_bias else {})).items():
        status = lt.cublasLtMatmulDescSetAttribute(description, attribute, byref(c_int32(value)), 4)
        _check("cublasLtMatmulDescSetAttribute", status)
    layouts = (
        _layout(lt, kind.a_shape, a_by_columns, kind.dtype), _layout(lt, kind.b_shape, b_by_columns, kind.dtype),
        _layout(lt, (kind.a_shape[0], kind.b_shape[1]), False, kind.out_dtype),
    )  # fmt: skip
    _check("cublasLtMatmulPreferenceCreate", lt.cublasLtMatmulPreferenceCreate(byref(preference)))
    limits = {_MAX_WORKSPACE: c_uint64(_WORKSPACE_BYTES), **{which: c_uint32(kind.alignment) for which in _MIN_ALIGNMENTS}}
    for attribute, limit in limits.items():
        status = lt.cublasLtMatmulPreferenceSetAttribute(preference, attribute, byref(limit), ctypes.sizeof(limit))
        _check("cublasLtMatmulPreferenceSetAttribute", status)
    wanted = _N_CANDIDATES if backend.tune else 1
    results, n_found, (of_a, of_b, of_out) = (_Found * wanted)(), c_int(), layouts
    status = lt.cublasLtMatmulAlgoGetHeuristic(handle, description, of_b, of_a, of_out, of_out, preference, wanted, results, byref(n_found))
    lt.cublasLtMatmulPreferenceDestroy(preference)
    _check(f"cublasLtMatmulAlgoGetHeuristic for {kind}", status)
    return _Plan(description, layouts, list(results)[: n_found.value])


def _layout(lt: ctypes.CDLL, shape: tuple[int, ...], by_columns: bool, dtype: str) -> c_void_p:
    n_rows, n_columns = shape[::-1] if by_columns else shape  # as it lies in memory, by rows
    layout, lengths = c_void_p(), (c_uint64(n_columns), c_uint64(n_rows), c_int64(n_columns))
    _check("cublasLtMatrixLayoutCreate", lt.cublasLtMatrixLayoutCreate(byref(layout), _TYPES[dtype], *lengths))
    return layout


_NOT_SUPPORTED = 15
_STATUS = {1: "not initialized", 3: "out of memory", 7: "invalid value", 8: "this device is too old", 13: "execution failed",
           14: "internal error", _NOT_SUPPORTED: "not supported"}  # fmt: skip


def _check(what: str, status: int) -> None:
    """Raises RuntimeError unless the library's function has succeeded."""
    if status:
        found = f"status {status} ({_STATUS.get(status, 'see cublasStatus_t')})"
        raise RuntimeError(f"cuBLASLt: {what}: {found}, expected 0; AUTOGRAD_KERNELS=reference runs without it")
