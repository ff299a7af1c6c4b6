"""Names for annotations."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike as ArrayLike
from numpy.typing import DTypeLike as DTypeLike

Array = Any
"""An array of the backend in use: `numpy.ndarray` or `cupy.ndarray`."""

DType = np.dtype
"""Of an array of either backend."""
