"""What both backends share: names for annotations, and errors of environment variables, raised before a script could handle them."""

import sys
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

__all__ = ["Array", "ArrayLike", "DType", "DTypeLike", "message_only"]

Array = Any
"""An array of the backend in use: `numpy.ndarray` or `cupy.ndarray`."""

DType = np.dtype
"""Of an array of either backend."""

Error = TypeVar("Error", bound=BaseException)


def message_only(error: Error) -> Error:
    """Makes this error, if nobody catches it, print its message without a traceback, which would add nothing to it."""
    before = sys.excepthook

    def show(kind: type[BaseException], uncaught: BaseException, traceback: TracebackType | None) -> None:
        if uncaught is error:
            print(f"error: {error}", file=sys.stderr)
        else:
            before(kind, uncaught, traceback)

    sys.excepthook = show
    return error
