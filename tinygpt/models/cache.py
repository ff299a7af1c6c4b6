"""The key/value cache: attention's keys and values of earlier tokens are kept, so each new token costs one row of work instead of all rows.

In a causal model later tokens do not change the keys and values of a token, so they are computed once. More in docs/cache.md.

    cache = KVCache(model.config, n_rows=1)
    model.hidden([prompt[:-1]], cache=cache.view_for_prefill([0], len(prompt) - 1), last_only=True)   # all tokens but the last
    h = model.hidden([prompt[-1:]], cache=cache.step([len(prompt) - 1]))                # (1, 1, C): the output layer's input for the next

A token's slot is its position, in every row. Rows of different lengths need no padding: a mask hides the slots that a row has not reached.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike

import autograd as ag
from autograd import Array, backend
from tinygpt.config import GPTConfig


class KVCache:
    """Keys and values of all layers in two buffers, (n_layer, rows, H_kv, n_slots, D) each, allocated once.

    n_slots   the most positions that a row will have; None: n_positions, the model's context
    Bytes: 2 n_layer rows n_slots H_kv D times those of a number. A block with a window keeps all keys, too, and reads those in its window.
    Filled with zeros: a hidden slot has weight 0, but 0 times a NaN left in memory would be NaN.
    """

    def __init__(self, config: GPTConfig, n_rows: int, dtype: DTypeLike = np.float32, n_slots: int | None = None) -> None:
        self.n_slots = config.n_positions if n_slots is None else min(n_slots, config.n_positions)
        shape = (config.n_layer, n_rows, config.kv_heads, self.n_slots, config.channels_per_head)
        self.keys = backend.xp.zeros(shape, dtype=dtype)
        self.values = backend.xp.zeros(shape, dtype=dtype)

    def view_for_prefill(self, rows: Sequence[int], n_tokens: int) -> "CacheView":
        """For a call with n_tokens tokens of each of `rows`, from position 0 on.

        Shorter prompts are padded on the right, where no real token looks; what that leaves in the cache is overwritten later, or hidden.
        """
        rows = list(rows)

        def write(buffer: Array, new: Array) -> Array:
            buffer[rows, :, :n_tokens] = new
            return new

        return CacheView(self, np.arange(n_tokens), None, write)

    def step(self, positions: Sequence[int] | np.ndarray) -> "CacheView":
        """For a call with one token of every row, at `positions` (rows,): each sees its own row's slots up to its own."""
        positions = np.asarray(positions)
        last = int(positions.max())
        mask = None
        if int(positions.min()) != last:
            mask = backend.to_device((np.arange(last + 1) <= positions[:, None])[:, None, None])  # (B, 1, 1, S)
        rows, slots = backend.to_device(np.arange(len(positions))), backend.to_device(positions)

        def write(buffer: Array, new: Array) -> Array:
            buffer[rows, :, slots] = new[:, :, 0]
            return buffer[:, :, : last + 1]

        return CacheView(self, positions[:, None], mask, write)

    def reorder(self, rows: Sequence[int], n_tokens: int) -> None:
        """Row i becomes a copy of row rows[i], as far as n_tokens: beam search drops some beams and doubles others."""
        moved = [i for i, row in enumerate(rows) if i != row]
        if moved:
            sources = [rows[i] for i in moved]
            for buffer in (self.keys, self.values):
                for layer in buffer:
                    layer[moved, :, :n_tokens] = layer[sources, :, :n_tokens]


class CacheView(NamedTuple):
    """The cache as one forward call uses it."""

    cache: KVCache
    positions: np.ndarray  # of the call's tokens, for the position embedding
    mask: Array | None  # booleans, True where a query may look
    write: Callable[[Array, Array], Array]  # (a layer's buffer, new keys or values): stores these, returns those that attention sees

    def layer(self, i: int) -> "LayerCache":
        return LayerCache(self.cache.keys[i], self.cache.values[i], self.write, self.positions)


class LayerView(Protocol):
    """What attention needs of a layer's cache: `LayerCache`, `BranchLayer`.

    update   keys and values of the call's tokens -> those that attention sees
    within   a window and a mask -> those that hide the keys before each row's window
    """

    def update(self, k: ag.Tensor, v: ag.Tensor) -> tuple[ag.Tensor, ag.Tensor]: ...
    def within(self, window: int, mask: Array | None) -> tuple[int, Array | None]: ...


class View(Protocol):
    """What a model needs of a cache in one forward call: `CacheView`, `Branches`."""

    @property
    def positions(self) -> np.ndarray: ...
    @property
    def mask(self) -> Array | None: ...
    def layer(self, i: int) -> LayerView: ...


class LayerCache(NamedTuple):
    """One layer's part of a `CacheView`."""

    keys: Array
    values: Array
    write: Callable[[Array, Array], Array]
    positions: np.ndarray

    def update(self, k: ag.Tensor, v: ag.Tensor) -> tuple[ag.Tensor, ag.Tensor]:
        """k and v (B, H_kv, T, D) of the call's tokens -> those of all tokens that they may see, (B, H_kv, S, D)."""
        return ag.Tensor(self.write(self.keys, k.data)), ag.Tensor(self.write(self.values, v.data))

    def within(self, window: int, mask: Array | None) -> tuple[int, Array | None]:
        """A window (0: none) and a mask that hide from attention the keys before each row's window.

        Attention counts a window back from the last slot. Where rows are at different positions (there is a mask), that is only right for
        the longest one: then the mask hides them, and the window is 0.
        """
        if mask is None or not window:
            return window, mask
        first = backend.to_device(self.positions - window + 1)[:, None, None]  # (B, 1, 1, 1)
        return 0, mask & (backend.xp.arange(mask.shape[-1]) >= first)


class Branches(NamedTuple):
    """A context and several continuations of it in one row, for `GPT.hidden`, which takes it as `cache`: each continuation sees the context and
    itself, as if it stood there alone. Keys and values are those of the call; nothing is kept.

    positions   (B, T) of the call's tokens: a continuation's begin after the context
    mask        (B, 1, T, T) booleans, True where a query may look, in addition to what is causal; None where there is one continuation
    """

    positions: np.ndarray
    mask: Array | None

    def layer(self, i: int) -> "BranchLayer":
        return BranchLayer(self.positions)


class BranchLayer(NamedTuple):
    """One layer's part of `Branches`."""

    positions: np.ndarray

    def update(self, k: ag.Tensor, v: ag.Tensor) -> tuple[ag.Tensor, ag.Tensor]:
        return k, v

    def within(self, window: int, mask: Array | None) -> tuple[int, Array | None]:
        """As `LayerCache.within`: a window counts back by positions, not by columns of the row."""
        if mask is None or not window:
            return window, mask
        positions = backend.to_device(self.positions)
        return 0, mask & (positions[:, None, None, :] > positions[:, None, :, None] - window)
