"""Rotary positions: pairs of channels are turned by an angle that grows with the position."""

from autograd import backend
from autograd.backend import ArrayLike, xp
from autograd.core import Array, Op, Tensor, broadcasts, float32_if_half
from autograd.ops.elementwise import as_tensor


class RotaryEmbedding(Op):
    """Turn each pair of channels (x1, x2) by the angle of its position and frequency.

    Forward     y1 = x1 cos - x2 sin,  y2 = x2 cos + x1 sin
    Backward    dx1 = dy1 cos + dy2 sin,  dx2 = dy2 cos - dy1 sin     turned back: the rotation by the opposite angle
    x1 are the first R/2 channels, x2 the next R/2 (the layout of GPT-NeoX and Llama); channels from R on stay as they are.
    Why: turning query and key by their positions leaves their product depending on the distance between them only.

    Shapes      x, y (..., T, D); cos, sin broadcast to (..., T, R/2), R <= D.  Saves cos, sin: x is not needed.
    Source      Su et al. 2021, arXiv:2104.09864, section 3.2.
    """

    takes_half = True  # each product is of float32, and rounded once

    @staticmethod
    def forward(x: Array, cos: Array, sin: Array) -> tuple[Array, tuple[Array, ...]]:
        return rotated(x, cos, sin), (cos, sin)

    @staticmethod
    def backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, None, None]:
        cos, sin = saved
        return rotated(dy, cos, -sin), None, None


def rotated(x: Array, cos: Array, sin: Array) -> Array:
    """x with the pairs (channel i, channel i + R/2) turned by the angle whose cos and sin are given."""
    half = cos.shape[-1]
    y = xp.empty_like(x)
    x1, x2 = float32_if_half(x[..., :half]), float32_if_half(x[..., half : 2 * half])
    y[..., :half] = x1 * cos - x2 * sin
    y[..., half : 2 * half] = x2 * cos + x1 * sin
    y[..., 2 * half :] = x[..., 2 * half :]
    return y


def rotary_embedding(x: Tensor, cos: ArrayLike, sin: ArrayLike) -> Tensor:
    """Rotary position embedding of queries or keys.

    x          (..., T, D) -> the same shape
    cos, sin   arrays that broadcast to (..., T, R/2), such as (T, R/2) or (B, 1, T, R/2), of the angle at each position (T) for each pair
               of channels; `autograd.nn.RotaryPositions` makes them. R <= D: the channels from R on are not turned.
    Constants: no gradient reaches cos and sin. In 16-bit formats, cos and sin stay float32.
    Raises ValueError, naming the shapes, where they do not fit.
    """
    x = as_tensor("rotary_embedding", x)
    dtype = float32_if_half(x.data[..., :0]).dtype
    c, s = (backend.to_device(table, dtype=dtype) for table in (cos, sin))
    fits = x.ndim > 1 and c.ndim > 0 and 2 * c.shape[-1] <= x.shape[-1] and broadcasts(c.shape[:-1], x.shape[:-1])
    if not fits or c.shape != s.shape:
        raise ValueError(
            f"rotary_embedding: x {x.shape}, cos {c.shape}, sin {s.shape}, expected (..., T, D) and twice one shape that broadcasts to "
            "(..., T, R/2) with R <= D; one angle per position and pair of channels"
        )
    return RotaryEmbedding.apply(x, c, s)
