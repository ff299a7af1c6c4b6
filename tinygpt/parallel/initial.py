"""Weights of a model of which a rank keeps a part: without memory until they are drawn or read, one parameter at a time."""

from collections.abc import Iterator

import numpy as np

from autograd import Array, backend
from tinygpt.model_config import GPTConfig
from tinygpt.models.gpt import GPT, Initializer


class Shapes(Initializer):
    """Matrices and embeddings that have a shape and no memory: a model made with these needs none on any device."""

    def __init__(self, config: GPTConfig, seed: int = 0) -> None:
        super().__init__(config, seed, empty=True)

    def normal(self, shape: tuple[int, ...], scale: float = 1.0) -> Array:
        return backend.xp.broadcast_to(backend.xp.zeros((), np.float32), shape)


class Later(Shapes):
    """Draws the weights after the model is made, one by one."""

    def __init__(self, config: GPTConfig, seed: int) -> None:
        super().__init__(config, seed)
        self._left: list[tuple[Array, float]] = []

    def normal(self, shape: tuple[int, ...], scale: float = 1.0) -> Array:
        array = super().normal(shape, scale)
        self._left.append((array, scale))
        return array

    def draw(self, model: GPT) -> Iterator[tuple[str, Array]]:
        """(name, its weights) of each parameter of a model made with this that is drawn; call it before the parameters are changed."""
        names = {id(p.data): name for name, p in model.named_parameters()}
        left = [(names[id(array)], array.shape, scale) for array, scale in self._left]
        return ((name, self.drawn(shape, scale)) for name, shape, scale in left)
