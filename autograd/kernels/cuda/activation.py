"""GELU, gated products and softmax on the GPU; kernels: activation.cu, softmax.cu."""

from autograd.backend import DType, xp
from autograd.core import Array
from autograd.dispatch import kernel_for
from autograd.kernels.cuda.module import (
    WARP,
    Constants,
    contiguous,
    flat_grid,
    i32,
    i64,
    kernel,
    name_of,
    row_threads,
    rows_of,
    takes,
    width,
)
from autograd.ops.activation import ACTIVATIONS, GELU, GatedProduct, Softmax

_WARPS = 2  # of a block, where a warp takes a row
_IN_REGISTERS = 32  # numbers of a row that a thread holds, at most
LONGEST_IN_REGISTERS = 256 * _IN_REGISTERS  # columns; 256: MAX_THREADS of the kernels


def rows_in_registers(n_rows: int, n_columns: int, dtype: DType) -> tuple[tuple[int], tuple[int], Constants]:
    """(grid, block, constants) of kernels that hold rows of at most LONGEST_IN_REGISTERS columns in registers.

    Threads per row and 16-byte chunks per thread are powers of two: few kernels to compile for many lengths of rows.
    """
    warps = _power_of_two(-(-n_columns // (WARP * _IN_REGISTERS)))
    chunks = _power_of_two(-(-n_columns // (WARP * warps * width(dtype))))
    rows = _WARPS if warps == 1 else 1
    return (-(-n_rows // rows),), (WARP * warps * rows,), (("CHUNKS", chunks), ("ROW_THREADS", WARP * warps))


def _power_of_two(n: int) -> int:
    """The least that is not below n."""
    return 1 << (n - 1).bit_length()


@kernel_for(GELU)
class GELUCUDA(GELU):
    """One kernel per direction. Reference: ops/activation.py."""

    takes_half = True

    @staticmethod
    def supports(x: Array) -> bool:
        return takes(x)

    @staticmethod
    def forward(x: Array) -> tuple[Array, Array]:
        y = xp.empty(x.shape, dtype=x.dtype)
        kernel("activation.cu", "gelu_forward", name_of(x.dtype))(*flat_grid(x.size, x.dtype), (y, x, i64(x.size)))
        return y, x

    @staticmethod
    def backward(x: Array, dy: Array) -> Array:
        dx = xp.empty(x.shape, dtype=x.dtype)
        arguments = (dx, x, contiguous(dy), i64(x.size))
        kernel("activation.cu", "gelu_backward", name_of(x.dtype))(*flat_grid(x.size, x.dtype), arguments)
        return dx


@kernel_for(GatedProduct)
class GatedProductCUDA(GatedProduct):
    """One kernel per direction; it knows the activations by their numbers in ACTIVATIONS. Reference: ops/activation.py."""

    takes_half = True

    @staticmethod
    def supports(gate: Array, up: Array, *, activation: str) -> bool:
        return takes(gate, up)

    @staticmethod
    def forward(gate: Array, up: Array, *, activation: str) -> tuple[Array, tuple[Array, ...]]:
        y, number = xp.empty(gate.shape, dtype=gate.dtype), i32(list(ACTIVATIONS).index(activation))
        run = kernel("activation.cu", "gated_product_forward", name_of(gate.dtype))
        run(*flat_grid(gate.size, gate.dtype), (y, gate, up, i64(gate.size), number))
        return y, (gate, up, number)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array]:
        gate, up, number = saved
        dgate, dup = (xp.empty(gate.shape, dtype=gate.dtype) for _ in range(2))
        run = kernel("activation.cu", "gated_product_backward", name_of(gate.dtype))
        run(*flat_grid(gate.size, gate.dtype), (dgate, dup, gate, up, contiguous(dy), i64(gate.size), number))
        return dgate, dup


@kernel_for(Softmax)
class SoftmaxCUDA(Softmax):
    """Softmax over the last axis, one kernel per direction; rows that fit into registers are read once. Reference: ops/activation.py."""

    takes_half = True

    @staticmethod
    def supports(x: Array, *, axis: int) -> bool:
        return takes(x) and axis == x.ndim - 1

    @staticmethod
    def forward(x: Array, *, axis: int) -> tuple[Array, tuple[Array, ...]]:
        y, n_rows, n_columns = xp.empty(x.shape, dtype=x.dtype), rows_of(x.shape), x.shape[-1]
        if n_columns > LONGEST_IN_REGISTERS:
            run = kernel("softmax.cu", "softmax_forward_of_long_rows", name_of(x.dtype))
            run((n_rows,), (row_threads(n_columns, x.dtype),), (y, x, i32(n_columns)))
        else:
            grid, block, constants = rows_in_registers(n_rows, n_columns, x.dtype)
            run = kernel("softmax.cu", "softmax_forward", name_of(x.dtype), constants=constants)
            run(grid, block, (y, x, i64(n_rows), i32(n_columns)))
        return y, (y, axis)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> Array:
        y, _ = saved
        dx = xp.empty(y.shape, dtype=y.dtype)
        grid, block = (rows_of(y.shape),), (row_threads(y.shape[-1], y.dtype),)
        kernel("softmax.cu", "softmax_backward", name_of(y.dtype))(grid, block, (dx, y, contiguous(dy), i32(y.shape[-1])))
        return dx
