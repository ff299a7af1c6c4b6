"""Row lookup by index."""

from autograd import backend
from autograd.backend import ArrayLike
from autograd.core import Array, Movement, Tensor
from autograd.ops.elementwise import as_tensor


class Embedding(Movement):
    """One row of a table per id: the product of a one-hot matrix and the table, without building the one-hot matrix.

    Forward     y = weight[ids]
    Backward    dweight[v] = sum of dy over the positions where ids = v;  0 for rows that were not looked up
    Shapes      weight (V, C), ids (...) integers -> y (..., C).  Saves ids and the shape of weight.
    """

    @staticmethod
    def forward(weight: Array, ids: Array) -> tuple[Array, tuple[Array, tuple[int, int]]]:
        return weight[ids], (ids, weight.shape)

    @staticmethod
    def backward(saved: tuple[Array, tuple[int, int]], dy: Array) -> tuple[Array, None]:
        ids, shape = saved
        return backend.scatter_add(shape, ids.reshape(-1), dy.reshape(ids.size, shape[1])), None


def embedding(weight: Tensor, ids: ArrayLike) -> Tensor:
    """Rows of `weight` (V, C) for host integers `ids` (...): -> (..., C).

    Raises TypeError for ids that are no integers, ValueError naming the first id outside 0 .. V - 1.
    """
    weight = as_tensor("embedding", weight)
    if weight.ndim != 2:
        raise ValueError(f"embedding: weight of shape {weight.shape}, expected (V, C); one row per id")
    if isinstance(ids, Tensor):
        raise TypeError("embedding: ids as a Tensor, expected host integers; pass the NumPy array itself")
    device_ids, _ = backend.checked_indices(ids, weight.shape[0], what="embedding id")
    return Embedding.apply(weight, device_ids)
