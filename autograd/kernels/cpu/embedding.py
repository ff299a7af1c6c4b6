"""The gradient of an embedding table, added to what is in the optimizer's buffer."""

import numpy as np

from autograd.backend import Array
from autograd.backend._numpy import _sums_of_equal_rows
from autograd.dispatch import kernel_for
from autograd.kernels.destination import Into, destinations
from autograd.ops.embedding import Embedding


@kernel_for(Embedding)
class EmbeddingInto(Embedding):
    """A tied table has the output layer's gradient already: only the rows that were looked up are added to it. Reference: ops/embedding.py."""

    destinations = staticmethod(destinations)

    @staticmethod
    def supports(weight: Array, ids: Array) -> bool:
        return weight.dtype in (np.float32, np.float64)

    @staticmethod
    def backward(  # type: ignore[override]  # `into`, see Op
        saved: tuple[Array, tuple[int, int]], dy: Array, *, into: Into = (None, None)
    ) -> tuple[Array, None]:
        ids, shape = saved
        if into[0] is None:
            return Embedding.backward(saved, dy)
        total = into[0].buffer
        if not into[0].filled:
            total[...] = 0
        rows, sums = _sums_of_equal_rows(ids.reshape(-1), dy.reshape(ids.size, shape[1]))
        total[rows] += sums
        return total, None
