"""Linear layers on the GPU: cuBLASLt multiplies, adds the bias and adds to the weight's gradient in one kernel; without it, cuBLAS and own kernels, matmul.cu."""

from autograd.backend import Array, DType, xp
from autograd.dispatch import kernel_for
from autograd.kernels.cuda import cublaslt
from autograd.kernels.cuda.module import MAX_THREADS, STORAGE, WARP, contiguous, i32, i64, kernel, name_of, row_threads, rows_of, width
from autograd.kernels.destination import Into, destinations
from autograd.ops.matmul import Linear

_ROW_BLOCKS = 1024  # rows are divided among at most so many blocks
_WARPS, _SUM_BLOCKS = 16, 512  # of a block that sums columns; as many blocks as a large GPU runs at once, always: the bits depend on it


@kernel_for(Linear)
class LinearCuBLASLt(Linear):
    """One kernel forward, four backward. The weight's gradient is float32, written or added where the optimizer keeps it. Reference: ops/matmul.py."""

    destinations = staticmethod(destinations)

    @staticmethod
    def supports(x: Array, weight: Array, bias: Array | None) -> bool:
        fits = x.size > 0 and x.shape[-1] * x.itemsize % 16 == 0 and (bias is None or bias.dtype == x.dtype)
        return fits and cublaslt.takes(weight, weight.T) and x.dtype == weight.dtype

    @staticmethod
    def forward(x: Array, weight: Array, bias: Array | None, *, needs: tuple[bool, bool, bool]) -> tuple[Array, tuple[Array, ...]]:
        rows = contiguous(x).reshape(rows_of(x.shape), x.shape[-1])
        y = xp.empty((rows.shape[0], weight.shape[1]), dtype=x.dtype)
        cublaslt.multiply(rows, weight, y, bias=bias if bias is None else contiguous(bias))
        return y.reshape(*x.shape[:-1], weight.shape[1]), (rows if needs[1] else None, weight if needs[0] else None, x.shape)

    @staticmethod
    def backward(  # type: ignore[override]  # `into`, see Op
        saved: tuple[Array, ...], dy: Array, *, needs: tuple[bool, bool, bool], into: Into = (None,) * 3
    ) -> tuple[Array | None, Array | None, Array | None]:
        x, weight, shape = saved
        rows = contiguous(dy).reshape(rows_of(dy.shape), dy.shape[-1])
        dx = dweight = dbias = None
        if needs[0]:
            dx = xp.empty((rows.shape[0], shape[-1]), dtype=dy.dtype)
            cublaslt.multiply(rows, weight.T, dx)
            dx = dx.reshape(shape)
        if needs[1]:
            dweight = xp.empty((shape[-1], rows.shape[1]), dtype="float32") if into[1] is None else into[1].buffer
            cublaslt.multiply(x.T, rows, dweight, add=into[1] is not None and into[1].filled)
        if needs[2]:
            dbias = column_sums(rows, None if into[2] is None or into[2].filled else into[2].buffer)
        return dx, dweight, dbias


@kernel_for(Linear)
class LinearCUDA(Linear):
    """The bias and the sum of its gradient at the speed of memory, which CuPy's own do not reach in 16 bits. Reference: ops/matmul.py."""

    @staticmethod
    def supports(x: Array, weight: Array, bias: Array | None) -> bool:
        return bias is not None and x.size > 0 and weight.size > 0 and x.dtype == weight.dtype == bias.dtype and name_of(x.dtype) in STORAGE

    @staticmethod
    def forward(x: Array, weight: Array, bias: Array, *, needs: tuple[bool, bool, bool]) -> tuple[Array, tuple[Array, Array]]:
        y, saved = Linear.forward(x, weight, None, needs=needs)
        add_bias(y, contiguous(bias))
        return y, saved

    @staticmethod
    def backward(
        saved: tuple[Array, Array], dy: Array, *, needs: tuple[bool, bool, bool]
    ) -> tuple[Array | None, Array | None, Array | None]:
        dx, dweight, _ = Linear.backward(saved, dy, needs=(*needs[:2], False))
        return dx, dweight, column_sums(contiguous(dy)) if needs[2] else None


def product(a: Array, b: Array, out: Array | None = None, *, add: bool = False) -> Array:
    """a @ b of two matrices; into `out`, or added to it, if given, which may be float32 where a and b have 16 bits."""
    if out is None:
        out = xp.empty((a.shape[0], b.shape[1]), dtype=a.dtype)
    if cublaslt.takes(a, b):
        cublaslt.multiply(a, b, out, add=add)
    elif add:
        out += a @ b
    else:
        out[...] = a @ b
    return out


def add_bias(y: Array, bias: Array) -> None:
    """y (..., C) += bias (C,), both contiguous."""
    n_rows, n_columns = rows_of(y.shape), y.shape[-1]
    run = kernel("matmul.cu", "add_bias", name_of(y.dtype))
    run(*_column_grid(n_rows, n_columns, y.dtype), (y, bias, i64(n_rows), i32(n_columns)))


def column_sums(x: Array, out: Array | None = None) -> Array:
    """Sums over all axes but the last of a contiguous array, (..., C) -> (C,) in float32, or in the dtype of `out`, which they are written to."""
    n_rows, n_columns = rows_of(x.shape), x.shape[-1]
    n_slices = -(-n_columns // (WARP * width(x.dtype)))
    n_parts = max(1, min(-(-n_rows // _WARPS), _SUM_BLOCKS // n_slices))
    parts = xp.empty((1, n_parts, n_columns), dtype="float32")
    kernel("matmul.cu", "column_sums", name_of(x.dtype))((n_slices, n_parts), (WARP * _WARPS,), (parts, x, i64(n_rows), i32(n_columns)))
    return _summed(parts, xp.empty(n_columns, dtype="float32") if out is None else out)


def sum_parts(parts: Array, dtype: DType) -> Array:
    """(k, n, C) float32 -> (k, C) in `dtype`: k times n sums that blocks have made of their rows, added in a fixed order."""
    return _summed(parts, xp.empty((parts.shape[0], parts.shape[2]), dtype=dtype))


def _summed(parts: Array, total: Array) -> Array:
    k, n_parts, n_columns = parts.shape
    run = kernel("matmul.cu", "sum_parts", "float32", name_of(total.dtype))
    run((-(-n_columns // 32), k), (MAX_THREADS,), (total, parts, i32(n_parts), i32(n_columns)))
    return total


def _column_grid(n_rows: int, n_columns: int, dtype: DType) -> tuple[tuple[int, int], tuple[int]]:
    """(grid, block) for kernels in which a thread keeps to its columns."""
    threads = row_threads(n_columns, dtype)
    return (-(-n_columns // (threads * width(dtype))), min(n_rows, _ROW_BLOCKS)), (threads,)
