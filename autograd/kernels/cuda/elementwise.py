"""Addition and casts on the GPU; kernels: elementwise.cu."""

from itertools import accumulate

from autograd import backend
from autograd.backend import Array, DType, xp
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.module import contiguous, flat_grid, i64, is_stored, kernel, name_of, stored_as, takes
from autograd.narrow import CastWeights
from autograd.ops.elementwise import Add, Cast

_WIDENED = 2048  # elements that a block casts to float32, eight per thread


@kernel_for(Add)
class AddCUDA(Add):
    """16 bytes per thread, where CuPy's own sum takes one element: it matters in 16 bits. Reference: ops/elementwise.py."""

    @staticmethod
    def supports(a: Array, b: Array) -> bool:
        arrays = isinstance(a, backend.device_array) and isinstance(b, backend.device_array)
        return arrays and a.shape == b.shape and takes(a, b)

    @staticmethod
    def forward(a: Array, b: Array) -> tuple[Array, None]:
        y = xp.empty(a.shape, dtype=a.dtype)
        kernel("elementwise.cu", "add", name_of(a.dtype))(*flat_grid(a.size, a.dtype), (y, a, b, i64(a.size)))
        return y, None


@kernel_for(Cast)
class CastCUDA(Cast):
    """Eight elements per thread. Reference: ops/elementwise.py."""

    @staticmethod
    def supports(x: Array, *, dtype: DType) -> bool:
        return takes(x) and is_stored(dtype) and x.dtype.itemsize + dtype.itemsize == 6  # float32 and one of 16 bits

    @staticmethod
    def forward(x: Array, *, dtype: DType) -> tuple[Array, DType]:
        return _cast(x, dtype), x.dtype

    @staticmethod
    def backward(dtype: DType, dy: Array) -> Array:
        return _cast(contiguous(dy), dtype)


@kernel_for(CastWeights)
class CastWeightsCUDA(CastWeights):
    """One kernel for all weights that lie side by side in memory. Reference: narrow.py."""

    @staticmethod
    def supports(*xs: Array, dtype: DType) -> bool:
        return is_stored(dtype) and dtype.itemsize == 2 and all(takes(x) and x.dtype.itemsize == 4 for x in xs)

    @staticmethod
    def forward(*xs: Array, dtype: DType) -> tuple[tuple[Array, ...], list[tuple[Array, Array]]]:
        ys: dict[int, Array] = {}
        saved = []
        order = sorted(range(len(xs)), key=lambda i: xs[i].data.ptr)
        while order:
            run = [order.pop(0)]
            while order and _follows(xs[run[-1]], xs[order[0]]):
                run.append(order.pop(0))
            first, ends = xs[run[0]], list(accumulate(xs[i].size for i in run))
            source = xp.ndarray((ends[-1],), first.dtype, first.data)
            flat = _cast(source, dtype)
            saved.append((source, flat))
            for i, end in zip(run, ends, strict=True):
                ys[i] = flat[end - xs[i].size : end].reshape(xs[i].shape)
        return tuple(ys[i] for i in range(len(xs))), saved

    @staticmethod
    def again(saved: list[tuple[Array, Array]]) -> None:
        for source, flat in saved:
            _cast(source, flat.dtype, flat)


def _follows(a: Array, b: Array) -> bool:
    """True if b begins in memory where a ends, within one allocation."""
    return a.data.mem is b.data.mem and a.data.ptr + a.nbytes == b.data.ptr and a.dtype == b.dtype


def _cast(x: Array, dtype: DType, y: Array | None = None) -> Array:
    y = xp.empty(x.shape, dtype=dtype) if y is None else y
    if y.itemsize < x.itemsize:
        kernel("elementwise.cu", "cast_to_" + stored_as(y.dtype))(*flat_grid(x.size, y.dtype), (y, x, i64(x.size)))
    else:
        run = kernel("elementwise.cu", "cast_from_" + stored_as(x.dtype))
        run((-(-x.size // _WIDENED),), (_WIDENED // 8,), (y, x, i64(x.size)))
    return y
