"""The key/value cache: what attention needs of earlier tokens, kept, so that each new token costs one row of work instead of all rows.

In a causal model nothing that comes later changes the keys and values of a token, so they are computed once. docs/cache.md tells what
is stored, how large it is, and how little the code of the model differs.

    cache = KVCache(model.config, n_rows=1)
    fill(model, cache, [0], [prompt[:-1]])                       # all tokens but the last
    h = model.hidden([[prompt[-1]]], cache=cache.step([len(prompt) - 1]))   # (1, 1, C): what the head needs for the next token

A token's slot is its position, in every row. Rows of different lengths need no padding: a mask hides the slots that a row has not reached.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

import autograd as ag
from autograd import backend
from tinygpt.config import GPTConfig


class KVCache:
    """Keys and values of all layers in two buffers, (n_layer, rows, H, n_slots, D) each, allocated once.

    n_slots   the most positions that a row will have; None: n_positions, the whole context
    Zeros, not whatever was in memory: a hidden slot has weight 0, and 0 times NaN would be NaN.
    """

    def __init__(self, config: GPTConfig, n_rows: int, dtype: Any = np.float32, n_slots: int | None = None) -> None:
        self.n_slots = config.n_positions if n_slots is None else min(n_slots, config.n_positions)
        shape = (config.n_layer, n_rows, config.n_head, self.n_slots, config.head_size)
        self.keys = backend.xp.zeros(shape, dtype=dtype)
        self.values = backend.xp.zeros(shape, dtype=dtype)

    @property
    def n_bytes(self) -> int:
        """2 x layers x rows x channels x slots x bytes per number."""
        return int(self.keys.nbytes + self.values.nbytes)

    def fill(self, rows: Sequence[int], n_tokens: int) -> "CacheView":
        """For a call with n_tokens tokens of each of `rows`, from position 0 on."""
        return CacheView(self, np.arange(n_tokens), None, _Fill(rows, n_tokens))

    def step(self, positions: Any) -> "CacheView":
        """For a call with one token of every row, at `positions` (rows,): each sees its own row's slots up to its own."""
        positions = np.asarray(positions)
        last = int(positions.max())
        mask = None
        if int(positions.min()) != last:
            mask = backend.to_device((np.arange(last + 1) <= positions[:, None])[:, None, None])  # (B, 1, 1, S)
        return CacheView(self, positions[:, None], mask, _Step(positions))

    def reorder(self, rows: Sequence[int], n_tokens: int) -> None:
        """Row i becomes a copy of row rows[i], as far as n_tokens: beam search drops some beams and doubles others."""
        moved = [i for i, row in enumerate(rows) if i != row]
        if moved:
            sources = [rows[i] for i in moved]
            for buffer in (self.keys, self.values):
                for layer in buffer:
                    layer[moved, :, :n_tokens] = layer[sources, :, :n_tokens]


class _Fill:
    """Writes slots 0 .. n_tokens - 1 of some rows; attention sees just these."""

    def __init__(self, rows: Sequence[int], n_tokens: int) -> None:
        self.rows, self.n_tokens = list(rows), n_tokens

    def __call__(self, buffer: Any, new: Any) -> Any:
        buffer[self.rows, :, : self.n_tokens] = new
        return new


class _Step:
    """Writes one slot of each row; attention sees all slots up to the last one in use."""

    def __init__(self, positions: np.ndarray) -> None:
        self.n = int(positions.max()) + 1
        self.rows, self.slots = backend.to_device(np.arange(len(positions))), backend.to_device(positions)

    def __call__(self, buffer: Any, new: Any) -> Any:
        buffer[self.rows, :, self.slots] = new[:, :, 0]
        return buffer[:, :, : self.n]


class CacheView:
    """The cache as one forward call uses it.

    positions   of the call's tokens, for the position embedding
    mask        booleans, True where a query may look, or None
    """

    def __init__(self, cache: KVCache, positions: np.ndarray, mask: Any, write: Any) -> None:
        self.cache, self.positions, self.mask, self.write = cache, positions, mask, write

    def layer(self, i: int) -> "LayerCache":
        return LayerCache(self.cache.keys[i], self.cache.values[i], self.write)


class LayerCache:
    """One layer's part: `update` stores the new keys and values and returns those that attention is to see."""

    def __init__(self, keys: Any, values: Any, write: Any) -> None:
        self.keys, self.values, self.write = keys, values, write

    def update(self, k: ag.Tensor, v: ag.Tensor) -> tuple[ag.Tensor, ag.Tensor]:
        """k and v (B, H, T, D) of the call's tokens -> those of all tokens that they may see, (B, H, S, D)."""
        return ag.Tensor(self.write(self.keys, k.data)), ag.Tensor(self.write(self.values, v.data))


def fill(model: Any, cache: KVCache, rows: Sequence[int], prompts: Sequence[Sequence[int]]) -> None:
    """Reads one prompt into each of `rows`, in one pass.

    Shorter prompts are padded on the right, where no real token looks: attention is causal. What the padding leaves in the cache is
    overwritten by the tokens that follow, or hidden. The last layer gives its keys and values and nothing else.
    """
    n_tokens = max(map(len, prompts))
    if n_tokens == 0:
        return
    ids = np.zeros((len(prompts), n_tokens), dtype=np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    view = cache.fill(rows, n_tokens)
    x = model.embed(ids, view.positions)
    *blocks, last = model.h
    for i, block in enumerate(blocks):
        x = block(x, None, view.layer(i))
    _, k, v = last.attn.heads(last.ln_1(x))
    view.layer(len(blocks)).update(k, v)
