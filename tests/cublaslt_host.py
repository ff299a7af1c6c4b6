"""cuBLASLt on the host: the functions that `autograd/kernels/cuda/cublaslt.py` calls, on NumPy's memory, from what the descriptions say.

Matrices are read and written by columns, as the library does, so a wrong order, transpose or leading dimension gives wrong numbers.
"""

import ctypes
from typing import Any

import numpy as np

try:
    import ml_dtypes

    TYPES = {0: np.dtype(np.float32), 2: np.dtype(np.float16), 14: np.dtype(ml_dtypes.bfloat16)}
except ImportError:
    TYPES = {0: np.dtype(np.float32), 2: np.dtype(np.float16)}
SUCCESS, INVALID, NOT_SUPPORTED = 0, 7, 15


class Library:
    """As the `ctypes.CDLL`, for one thread. `calls` counts products; those of `refused` dtypes are not supported, though described."""

    def __init__(self) -> None:
        self._objects: dict[int, dict[Any, Any]] = {}
        self.calls = 0
        self.refused: set[str] = set()

    def _make(self, reference: Any, **values: Any) -> int:
        number = len(self._objects) + 1
        self._objects[number] = dict(values)
        reference._obj.value = number
        return SUCCESS

    def cublasLtCreate(self, handle: Any) -> int:
        return self._make(handle)

    def cublasLtMatmulDescCreate(self, description: Any, compute: int, scale: int) -> int:
        return self._make(description, compute=compute) if compute in (68, 77) and scale == 0 else INVALID

    def cublasLtMatmulDescSetAttribute(self, description: Any, attribute: int, value: Any, size: int) -> int:
        assert ctypes.sizeof(value._obj) == size == {3: 4, 4: 4, 7: 4, 8: 8, 26: 4}[attribute]
        self._objects[description.value][attribute] = value._obj.value
        return SUCCESS

    def cublasLtMatrixLayoutCreate(self, layout: Any, dtype: int, rows: Any, columns: Any, leading: Any) -> int:
        return self._make(layout, dtype=TYPES[dtype], shape=(rows.value, columns.value), leading=leading.value)

    def cublasLtMatmulPreferenceCreate(self, preference: Any) -> int:
        return self._make(preference)

    def cublasLtMatmulPreferenceSetAttribute(self, preference: Any, attribute: int, value: Any, size: int) -> int:
        assert ctypes.sizeof(value._obj) == size == {1: 8, 5: 4, 6: 4, 7: 4, 8: 4}[attribute]
        return SUCCESS

    def cublasLtMatmulPreferenceDestroy(self, preference: Any) -> int:
        return SUCCESS

    def cublasLtMatmulAlgoGetHeuristic(
        self, handle: Any, description: Any, a: Any, b: Any, c: Any, d: Any, preference: Any, n: int, found: Any, n_found: Any
    ) -> int:
        layouts = [self._objects[x.value] for x in (a, b, d)]
        if any(layout["leading"] * layout["dtype"].itemsize % 16 for layout in layouts):
            return NOT_SUPPORTED
        n_found._obj.value = n
        return SUCCESS

    def _matrix(self, address: int, layout: dict[str, Any]) -> np.ndarray:
        """A view of memory, rows x columns, stored by columns."""
        (rows, columns), leading, dtype = layout["shape"], layout["leading"], layout["dtype"]
        assert leading >= rows
        memory = (ctypes.c_char * (leading * columns * dtype.itemsize)).from_address(address)
        return np.frombuffer(memory, dtype).reshape(columns, leading)[:, :rows].T

    def cublasLtMatmul(self, handle: Any, description: Any, alpha: Any, a: int, of_a: Any, b: int, of_b: Any, beta: Any, c: int, of_c: Any,
                       d: int, of_d: Any, algorithm: Any, workspace: Any, n_workspace: int, stream: Any) -> int:  # fmt: skip
        product, layouts = self._objects[description.value], [self._objects[x.value] for x in (of_a, of_b, of_d)]
        if layouts[0]["dtype"].name in self.refused:
            return NOT_SUPPORTED
        left, right, out = (self._matrix(address, layout) for address, layout in zip((a, b, d), layouts, strict=True))
        left, right = left.T if product.get(3) else left, right.T if product.get(4) else right
        if left.shape[1] != right.shape[0] or out.shape != (left.shape[0], right.shape[1]) or c != d:
            return INVALID
        result = alpha._obj.value * (left.astype(np.float32) @ right.astype(np.float32))
        if beta._obj.value:
            result += beta._obj.value * out.astype(np.float32)
        epilogue = product.get(7, 1)
        if epilogue != 1:
            dtype = TYPES[product[26]]
            assert dtype == out.dtype
            vector = np.frombuffer((ctypes.c_char * (out.shape[0] * dtype.itemsize)).from_address(product[8]), dtype)
            assert epilogue == 4
            result += vector.astype(np.float32)[:, None]
        out[...] = result
        self.calls += 1
        return SUCCESS
