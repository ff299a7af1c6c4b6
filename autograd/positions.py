"""Tables of positions: frequencies and angles of rotary positions, sinusoids, ALiBi's slopes. Constants, computed in float64."""

import math
from collections.abc import Mapping

import numpy as np

from autograd import backend
from autograd.backend import Array, ArrayLike

_SCALINGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
"""Kinds of rotary scaling, with the keys that each needs; the names are transformers'."""


def rotary_frequencies(
    head_size: int, *, theta: float = 10_000.0, fraction: float = 1.0, scaling: Mapping[str, object] | None = None
) -> np.ndarray:
    """Radians per position for each pair of channels, float64 (R/2,): theta^(-2 i / R), i = 0, 1, ...; R = int(head_size fraction).

    fraction   of the head's channels that are turned
    scaling    None, or transformers' `rope_scaling`, whose kind is under "rope_type" (in older files "type"):
               "default"   as None
               "linear"    divided by `factor`: positions between the trained ones (Chen et al. 2023, arXiv:2306.15595)
               "llama3"    wavelengths above original_max_position_embeddings / low_freq_factor are divided by `factor`, those below
                           original_max_position_embeddings / high_freq_factor kept, those between mixed (the code published with Llama 3.1)
    Raises ValueError for another kind, a missing key, or channels that cannot be paired.
    Source  Su et al. 2021, arXiv:2104.09864, section 3.2.2.
    """
    n_turned = int(head_size * fraction)
    if not 0 < fraction <= 1 or n_turned < 2 or n_turned % 2:
        raise ValueError(
            f"rotary positions: {fraction} of {head_size} channels of a head, expected an even number of channels from 2 to {head_size}"
        )
    if not 0 < theta < math.inf:
        raise ValueError(f"rotary positions: theta {theta}, expected a finite number > 0")
    frequencies: np.ndarray = float(theta) ** (-np.arange(0, n_turned, 2) / n_turned)
    kind, numbers = _checked_scaling(scaling)
    if kind == "linear":
        return frequencies / numbers["factor"]
    if kind == "llama3":
        low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
        n_turns = numbers["original_max_position_embeddings"] * frequencies / (2 * math.pi)  # over the context of the first training
        kept = np.clip((n_turns - low) / (high - low), 0, 1)
        return frequencies * (kept + (1 - kept) / numbers["factor"])
    return frequencies


def _checked_scaling(scaling: Mapping[str, object] | None) -> tuple[str, dict[str, float]]:
    """(kind, its numbers) of a `rope_scaling`."""
    kind = str((scaling or {}).get("rope_type", (scaling or {}).get("type", "default")))
    if scaling is None or kind == "default":
        return "default", {}
    if kind not in _SCALINGS:
        raise ValueError(f"rope_scaling: {kind!r}, expected one of default, {', '.join(_SCALINGS)}; other kinds compute other angles")
    numbers: dict[str, float] = {}
    for key in _SCALINGS[kind]:
        value = scaling.get(key)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise ValueError(f"rope_scaling: {key} {value!r} for {kind!r}, expected a finite number > 0; see the model's config.json")
        numbers[key] = float(value)
    if kind == "llama3" and numbers["low_freq_factor"] >= numbers["high_freq_factor"]:
        raise ValueError(
            f"rope_scaling: low_freq_factor {numbers['low_freq_factor']}, expected less than high_freq_factor {numbers['high_freq_factor']}"
        )
    return kind, numbers


class RotaryPositions:
    """Cosine and sine of every position's angles, computed once and kept, for `rotary_embedding`. No parameters.

    The arguments are those of `rotary_frequencies`. The table grows with the largest position asked for.
    """

    def __init__(
        self, head_size: int, *, theta: float = 10_000.0, fraction: float = 1.0, scaling: Mapping[str, object] | None = None
    ) -> None:
        self.frequencies = rotary_frequencies(head_size, theta=theta, fraction=fraction, scaling=scaling)
        self._cos: Array = None
        self._sin: Array = None
        self._grow(0)

    def _grow(self, n: int) -> None:
        angles = np.arange(n)[:, None] * self.frequencies  # float64: in float32, angles of far positions would lose their last digits
        self._cos, self._sin = (backend.to_device(f(angles).astype(np.float32)) for f in (np.cos, np.sin))

    def tables(self, positions: ArrayLike) -> tuple[Array, Array]:
        """(cos, sin), float32, for host integers `positions`: (T,) -> (T, R/2) each, (B, T) -> (B, 1, T, R/2), one axis for all heads.

        Raises ValueError for other shapes and for negative positions.
        """
        host = np.asarray(positions)
        if host.ndim not in (1, 2) or (host.size and host.dtype.kind not in "iu"):
            raise ValueError(f"rotary positions: {host.dtype} positions of shape {host.shape}, expected integers (T,) or (B, T)")
        if host.size and host.min() < 0:
            raise ValueError(f"rotary positions: position {host.min()}, expected >= 0; positions count from the start of the text")
        needed = int(host.max(initial=-1)) + 1
        if needed > len(self._cos):
            self._grow(max(needed, 2 * len(self._cos)))
        first = int(host[0]) if host.ndim == 1 and host.size else 0
        if host.ndim == 1 and np.array_equal(host, np.arange(first, first + host.size)):  # a view, as in training and decoding
            return self._cos[first : first + host.size], self._sin[first : first + host.size]
        index = backend.to_device(host if host.ndim == 1 else host[:, None])
        return self._cos[index], self._sin[index]


def sinusoidal_positions(n: int, n_channels: int) -> Array:
    """float32 table (n, n_channels): even channels sin(p / 10000^(2 i / C)), odd channels the cosine of the same angle.

    Raises ValueError for an odd number of channels. Source  Vaswani et al. 2017, arXiv:1706.03762, section 3.5.
    """
    if n < 0 or n_channels < 2 or n_channels % 2:
        raise ValueError(
            f"sinusoidal positions: {n} positions of {n_channels} channels, expected n >= 0 and an even number of channels >= 2"
        )
    angles = np.arange(n)[:, None] * 10_000.0 ** (-np.arange(0, n_channels, 2) / n_channels)  # (n, C/2)
    return backend.to_device(np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(n, n_channels).astype(np.float32))


def alibi_slopes(n_head: int) -> list[float]:
    """ALiBi's slope of each head: 2^(-8 / H), 2^(-16 / H), ..., 2^-8 where H is a power of 2.

    Otherwise those of the next smaller power of 2, P, and then every other one of the first of 2 P, as in the authors' code.
    Raises ValueError for no head. Source  Press et al. 2022, arXiv:2108.12409, section 3.
    """
    if n_head < 1:
        raise ValueError(f"alibi_slopes: {n_head} heads, expected at least 1")
    power = 1 << (n_head.bit_length() - 1)
    finer = [2 ** (-4 * i / power) for i in range(1, 2 * (n_head - power), 2)]
    return [2 ** (-8 * i / power) for i in range(1, power + 1)] + finer
