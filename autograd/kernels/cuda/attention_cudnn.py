"""Attention in 16 bits by cuDNN's fused kernels: scores never reach memory. Needs the package nvidia-cudnn-frontend."""

from collections import namedtuple
from functools import cache

from autograd.backend import xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.module import name_of
from autograd.ops.attention import Attention

try:
    import cudnn
except ImportError:
    cudnn = None  # without it, attention in 16 bits runs as AttentionCUDA, in float32

CuDNNSaved = namedtuple("CuDNNSaved", "q k v y statistics causal")
Layout = tuple[tuple[int, ...], tuple[int, ...]]  # shape, strides in elements


@kernel_for(Attention)
class AttentionCuDNN(Attention):
    """One fused kernel per direction, on strided views of the projection's output. Reference: ops/attention.py.

    Products are of bfloat16 or float16, sums and softmax float32. Saves q, k, v, y and the logarithm of each row's sum, (B, H, T, 1).
    Source  Dao 2023, arXiv:2307.08691; NVIDIA's cuDNN computes it.
    """

    takes_half = True

    @staticmethod
    def supports(q: Array, k: Array, v: Array, mask: Array | None, *, causal: bool, **options: object) -> bool:
        fits = q.ndim == 4 and q.shape == k.shape and q.shape[-2] >= _SHORTEST and q.shape[-1] % 8 == 0 and q.shape[-1] <= 128
        half = q.dtype == k.dtype == v.dtype and name_of(q.dtype) in ("bfloat16", "float16")
        return cudnn is not None and mask is None and not options and fits and half

    @staticmethod
    def forward(q: Array, k: Array, v: Array, mask: None, *, causal: bool, **none: object) -> tuple[Array, tuple[Array, ...]]:
        q, k, v = (_with_whole_rows(a) for a in (q, k, v))
        b, h, t, d = q.shape
        y = xp.empty((b, t, h, d), dtype=q.dtype).transpose(0, 2, 1, 3)  # so that joining the heads needs no copy
        statistics = xp.empty((*q.shape[:-1], 1), dtype="float32")
        _run("forward", (q, k, v), (y, statistics), causal)
        return y, CuDNNSaved(q, k, v, y, statistics, causal)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, Array, None]:
        q, k, v, y, statistics, causal = saved
        b, h, t, d = q.shape
        together = xp.empty((b, t, 3, h, d), dtype=q.dtype)  # as the projection's output: joining the three again needs no copy
        dq, dk, dv = (together[:, :, i].transpose(0, 2, 1, 3) for i in range(3))
        _run("backward", (q, k, v, y, _with_whole_rows(dy), statistics), (dq, dk, dv), causal)
        return dq, dk, dv, None


_SHORTEST = 64  # a plan is made once per shape, which takes longer than a few short rows do


def _with_whole_rows(x: Array) -> Array:
    """x, copied if its last axis is not contiguous in memory."""
    return x if x.strides[-1] == x.itemsize else xp.ascontiguousarray(x)


def _run(which: str, inputs: tuple[Array, ...], outputs: tuple[Array, ...], causal: bool) -> None:
    layouts = tuple((a.shape, tuple(s // a.itemsize for s in a.strides)) for a in (*inputs, *outputs))
    graph, tensors, n_bytes = plan(which, layouts, causal, 1 / inputs[0].shape[-1] ** 0.5, name_of(inputs[0].dtype))
    workspace: Array = xp.empty(max(n_bytes, 1), dtype="uint8")
    arrays: tuple[Array, ...] = (*inputs, *outputs)
    handle, cuda = _handle(), xp.cuda  # type: ignore[attr-defined]
    cudnn.set_stream(handle=handle, stream=cuda.get_current_stream().ptr)
    graph.execute({tensor: a.data.ptr for tensor, a in zip(tensors, arrays, strict=True)}, workspace.data.ptr, handle=handle)


@cache
def _handle() -> int:
    handle: int = cudnn.create_handle()
    return handle


@cache
def plan(
    which: str, layouts: tuple[Layout, ...], causal: bool, scale: float, dtype: str = "bfloat16", sm_version: int | None = None
) -> tuple["cudnn.pygraph", tuple["cudnn.tensor", ...], int]:
    """(graph, its tensors in the order of `layouts`, bytes of workspace). With sm_version, e.g. 90, described but not built: no GPU needed."""
    half, single = cudnn.data_type.HALF if dtype == "float16" else cudnn.data_type.BFLOAT16, cudnn.data_type.FLOAT
    target = {"handle": _handle()} if sm_version is None else {"sm_version": sm_version}
    graph = cudnn.pygraph(io_data_type=half, intermediate_data_type=single, compute_data_type=single, **target)

    def tensor(name: str, layout: Layout, dtype: "cudnn.data_type" = half) -> "cudnn.tensor":
        return graph.tensor(name=name, dim=list(layout[0]), stride=list(layout[1]), data_type=dtype)

    q, k, v = (tensor(name, layout) for name, layout in zip("qkv", layouts, strict=False))
    options = {"attn_scale": scale, "use_causal_mask": causal}
    if which == "forward":
        y, statistics = graph.sdpa(q=q, k=k, v=v, generate_stats=True, name="attention", **options)
        inputs: tuple[cudnn.tensor, ...] = (q, k, v)
        outputs = (y, statistics.set_data_type(single))
    else:
        y, dy, statistics = tensor("y", layouts[3]), tensor("dy", layouts[4]), tensor("statistics", layouts[5], single)
        outputs = graph.sdpa_backward(
            q=q, k=k, v=v, o=y, dO=dy, stats=statistics, use_deterministic_algorithm=True, name="attention_backward", **options
        )
        inputs = (q, k, v, y, dy, statistics)
    for out, (shape, strides) in zip(outputs, layouts[len(inputs) :], strict=True):
        out.set_output(True).set_dim(list(shape)).set_stride(list(strides))
    graph.validate()
    graph.build_operation_graph()
    if sm_version is None:
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
    return graph, (*inputs, *outputs), 0 if sm_version is not None else graph.get_workspace_size()
