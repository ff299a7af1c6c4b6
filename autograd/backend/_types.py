"""Names for annotations."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

__all__ = ["Array", "ArrayLike", "DType", "DTypeLike"]

Array = Any
"""An array of the backend in use: `numpy.ndarray` or `cupy.ndarray`."""

DType = np.dtype
"""Of an array of either backend."""
