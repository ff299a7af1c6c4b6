"""A histogram of the numbers that a rule measured, as SVG, with the limit drawn."""

import itertools
import math
from typing import NamedTuple

from tinygpt.curate.report import LINEAR_BINS, RuleReport, bin_of, edge

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 640, 196, 48, 34, 28
_MOST_COLUMNS = 64


class Column(NamedTuple):
    """Numbers from `low` to below `high`: how many documents with such a number stayed, and how many were removed."""

    low: float
    high: float
    kept: int
    removed: int


def columns(rule: RuleReport) -> list[Column]:
    """Neighboring bins, from the lowest to the highest that is needed, empty ones too; as many together as leave 64 columns at most.

    Where numbers reach beyond -1..1, all bins within are two columns: their scale is another.
    """
    numbers = {*rule.kept, *rule.removed, *map(bin_of, rule.limits)}
    low, high = min(numbers), max(numbers) + 1
    fine = low >= -LINEAR_BINS and high <= LINEAR_BINS

    def is_edge(number: int) -> bool:
        return fine or number == 0 or abs(number) >= LINEAR_BINS

    if fine and low > 0:
        low = 0  # shares are seen from 0
    first = next(number for number in itertools.count(low, -1) if is_edge(number))
    last = next(number for number in itertools.count(high) if is_edge(number))
    edges = [edge(number) for number in range(first, last + 1) if is_edge(number)]
    together = math.ceil((len(edges) - 1) / _MOST_COLUMNS)
    edges = [*edges[:-1:together], edges[-1]]
    counts = [[0, 0] for _ in edges[1:]]
    for side, found in enumerate((rule.kept, rule.removed)):
        for number, n in found.items():
            middle = (edge(number) + edge(number + 1)) / 2
            counts[max(0, min(len(counts) - 1, sum(low <= middle for low in edges) - 1))][side] += n
    return [Column(low, high, *n) for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)]


def _at(x: float, shown: list[Column]) -> float:
    """Where a number stands, in columns from the left edge."""
    for i, column in enumerate(shown):
        if x < column.high:
            return i + max(0.0, (x - column.low) / (column.high - column.low))
    return float(len(shown))


def _ticks(shown: list[Column]) -> list[float]:
    """Round numbers in the range: steps of 1, 2 or 5 times a power of 10; beyond a factor of 30 powers of 10."""
    low, high = shown[0].low, shown[-1].high
    if (high > 1 and high / max(low, 1) >= 30) or low < -1:
        powers = [10.0**i for i in range(math.floor(math.log10(max(abs(low), abs(high)))) + 1)]
        every = math.ceil(len(powers) / 6)
        signed = [-p for p in powers[::-every] if low <= -p] + [0.0] * (low <= 0 <= high) + [p for p in powers[::every] if low <= p <= high]
        return signed
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (factor * step) <= 6)
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _short(x: float) -> str:
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= unit:
            return f"{x / unit:.3g}{name}"
    return f"{x:.3g}"


def histogram(rule: RuleReport, label: str) -> str:
    """The picture. label: HTML, what a screen reader is told."""
    shown = columns(rule)
    most = max(column.kept + column.removed for column in shown)
    wide, high = (_WIDTH - _LEFT - 8) / len(shown), _HEIGHT - _TOP - _BOTTOM
    ground = _TOP + high
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{ground}H{_WIDTH - 8}"/>']
    for i, column in enumerate(shown):
        x, y = _LEFT + i * wide, float(ground)
        for name, n in (("k", column.kept), ("g", column.removed)):
            if n:
                tall = max(1.5, high * n / most)  # what is there is seen
                y -= tall
                parts.append(f'<rect class="{name}" x="{x:.1f}" y="{y:.1f}" width="{max(1.0, wide - 1):.1f}" height="{tall:.1f}"/>')
    parts.append(
        f'<text x="{_LEFT - 5}" y="{_TOP + 10}" text-anchor="end">{_short(most)}</text><text x="{_LEFT - 5}" y="{ground}" text-anchor="end">0</text>'
    )
    for tick in _ticks(shown):
        x = _LEFT + _at(tick, shown) * wide
        parts.append(
            f'<path class="axis" d="M{x:.1f} {ground}v5"/><text x="{x:.1f}" y="{ground + 19}" text-anchor="middle">{_short(tick)}</text>'
        )
    for limit in dict.fromkeys(rule.limits):
        x = _LEFT + _at(limit, shown) * wide
        side = "end" if x > _WIDTH / 2 else "start"
        parts.append(
            f'<path class="limit" d="M{x:.1f} 6V{ground}"/><text class="limit" x="{x + (-5 if side == "end" else 5):.1f}" y="20" text-anchor="{side}">'
        )
        parts.append(f"limit {_short(limit)}</text>")
    return f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Numbers of {label}">{"".join(parts)}</svg>'
