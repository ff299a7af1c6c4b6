"""Linear layers on the GPU: cuBLAS multiplies, own kernels add the bias and sum its gradient; kernels: matmul.cu."""

from autograd.backend import Array, DType, xp
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.module import MAX_THREADS, STORAGE, contiguous, i32, i64, kernel, row_threads, rows_of, width
from autograd.ops.matmul import Linear

_ROW_BLOCKS = 1024  # rows are divided among at most so many blocks


@kernel_for(Linear)
class LinearCUDA(Linear):
    """The bias and the sum of its gradient at the speed of memory, which CuPy's own do not reach in 16 bits. Reference: ops/matmul.py."""

    @staticmethod
    def supports(x: Array, weight: Array, bias: Array | None) -> bool:
        return bias is not None and x.size > 0 and weight.size > 0 and x.dtype == weight.dtype == bias.dtype and x.dtype.name in STORAGE

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


def add_bias(y: Array, bias: Array) -> None:
    """y (..., C) += bias (C,), both contiguous."""
    n_rows, n_columns = rows_of(y.shape), y.shape[-1]
    run = kernel("matmul.cu", "add_bias", y.dtype.name)
    run(*_column_grid(n_rows, n_columns, y.dtype), (y, bias, i64(n_rows), i32(n_columns)))


def column_sums(x: Array) -> Array:
    """Sums over all axes but the last of a contiguous array, (..., C) -> (C,) in float32."""
    n_rows, n_columns = rows_of(x.shape), x.shape[-1]
    grid, block = _column_grid(n_rows, n_columns, x.dtype)
    parts = xp.empty((1, grid[1], n_columns), dtype="float32")
    kernel("matmul.cu", "column_sums", x.dtype.name)(grid, block, (parts, x, i64(n_rows), i32(n_columns)))
    return sum_parts(parts, parts.dtype)[0]


def sum_parts(parts: Array, dtype: DType) -> Array:
    """(k, n, C) float32 -> (k, C) in `dtype`: k times n sums that blocks have made of their rows, added in a fixed order."""
    k, n_parts, n_columns = parts.shape
    total = xp.empty((k, n_columns), dtype=dtype)
    run = kernel("matmul.cu", "sum_parts", "float32", total.dtype.name)
    run((-(-n_columns // 32), k), (MAX_THREADS,), (total, parts, i32(n_parts), i32(n_columns)))
    return total


def _column_grid(n_rows: int, n_columns: int, dtype: DType) -> tuple[tuple[int, int], tuple[int]]:
    """(grid, block) for kernels in which a thread keeps to its columns."""
    threads = row_threads(n_columns, dtype)
    return (-(-n_columns // (threads * width(dtype))), min(n_rows, _ROW_BLOCKS)), (threads,)
