"""Pictures of the report as inline SVG: no script, no file, widths in percent so that they fit any screen.

Colours are classes or CSS variables of `report_template.html`, so the same markup serves light and dark. Hovering shows
`<title>`s.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from trainer.report_html import number

MAX_POINTS = 160
# Score bars show this range in percent at most; what lies beyond is cut.
_LOWEST_PERCENT, _HIGHEST_PERCENT = -50.0, 150.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreBar:
    """One task's normalised scores in percent; `interval` is the 95% confidence interval of `score`."""

    name: str
    score: float
    interval: tuple[float, float]
    neighbour: float | None


def score_bars(bars: Sequence[ScoreBar]) -> str:
    """One row a task: the score with its interval, the nearest neighbour below it, lines at 50% and 100%."""
    shown = [value for bar in bars for value in (bar.score, *bar.interval, bar.neighbour or 0.0)]
    low = max(_LOWEST_PERCENT, min(0.0, 10 * math.floor(min(shown) / 10)))
    high = min(_HIGHEST_PERCENT, max(110.0, 10 * math.ceil(max(shown) / 10)))

    def place(value: float) -> float:
        return 100 * (min(max(value, low), high) - low) / (high - low)

    marks = "".join(
        f'<line class="mark at{value}" x1="{place(value):.2f}%" x2="{place(value):.2f}%" y1="0" y2="100%"/>'
        for value in (0, 50, 100)
    )
    axis = "".join(f'<span style="left:{place(value):.2f}%">{value}%</span>' for value in (0, 50, 100))
    rows = "".join(_score_row(bar, place, marks) for bar in bars)
    return f'<div class="bars">{rows}<div class="bar axis"><span></span><div>{axis}</div><span></span></div></div>'


def _score_row(bar: ScoreBar, place: Callable[[float], float], marks: str) -> str:
    first, last = bar.interval
    title = f"{bar.name}: {number(bar.score)}%, 95% interval {number(first)} to {number(last)}%"
    kind = "score low" if bar.score < 50 else "score"
    shapes = _span(kind, place(0), place(bar.score), 7, 14)
    if bar.neighbour is not None:
        title += f"; nearest neighbour {number(bar.neighbour)}%"
        shapes += _span("neighbour", place(0), place(bar.neighbour), 23, 5)
    shapes += f'<line class="interval" x1="{place(first):.2f}%" x2="{place(last):.2f}%" y1="14" y2="14"/>'
    for end in bar.interval:
        shapes += f'<line class="interval" x1="{place(end):.2f}%" x2="{place(end):.2f}%" y1="10" y2="18"/>'
    return (
        f'<div class="bar"><span class="name">{escape(bar.name)}</span>'
        f'<svg role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>{marks}{shapes}'
        f'<rect class="hover" width="100%" height="100%"/></svg><b>{number(round(bar.score))}%</b></div>'
    )


def _span(kind: str, start: float, end: float, y: int, height: int) -> str:
    left, width = min(start, end), abs(end - start)
    return f'<rect class="{kind}" x="{left:.2f}%" width="{width:.2f}%" y="{y}" height="{height}" rx="2"/>'


def histogram(
    edges: Sequence[float], kept: Sequence[int], dropped: Sequence[int], marks: Mapping[str, float | None]
) -> str:
    """Episodes by return: kept and dropped stacked, and vertical lines at the named returns of `marks`."""
    values = [*edges, *(value for value in marks.values() if value is not None)]
    low, high = min(values), max(values)
    tallest = max(1, *(k + d for k, d in zip(kept, dropped, strict=True)))

    def place(value: float) -> float:
        return 2 + 96 * (value - low) / (high - low) if high > low else 50.0

    shapes = ""
    for index, (k, d) in enumerate(zip(kept, dropped, strict=True)):
        x, width = place(edges[index]), place(edges[index + 1]) - place(edges[index])
        title = f"return {number(edges[index])} to {number(edges[index + 1])}: {k} kept, {d} dropped"
        bottom = 100.0
        columns = ""
        for kind, count in (("kept", k), ("dropped", d)):
            # A lone episode stays visible beside thousands.
            height = max(3.0, 96 * count / tallest) if count else 0.0
            bottom -= height
            columns += (
                f'<rect class="{kind}" x="{x:.2f}%" width="{width:.2f}%" y="{bottom:.1f}%" height="{height:.1f}%"/>'
            )
        hover = f'<rect class="hover" x="{x:.2f}%" width="{width:.2f}%" y="0" height="100%"/>'
        shapes += f"<g><title>{escape(title)}</title>{columns}{hover}</g>"
    for name, value in marks.items():
        if value is not None:
            x = place(value)
            shapes += (
                f'<line class="mark {name}" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="100%">'
                f"<title>{name} {number(value)}</title></line>"
            )
    return f'<svg class="histogram" role="img" aria-label="histogram of returns">{shapes}</svg>'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a chart: `values` [N], NaN where there is none."""

    name: str
    color: str
    values: np.ndarray
    dashed: bool = False


def curve_color(index: int) -> str:
    """Colours that differ as much as they can from those with nearby numbers, on light and on dark."""
    return f"hsl({(215 + index * 137.508) % 360:.0f} 62% {46 + 8 * (index % 2)}%)"


def line_chart(steps: np.ndarray, curves: Sequence[Curve], *, logarithmic: bool = False) -> str:
    """Curves over `steps` [N]; long ones are averaged to `MAX_POINTS`. With more than one curve each can be hidden."""
    first, last = (float(steps[0]), float(steps[-1])) if len(steps) else (0.0, 0.0)
    steps = _thin(steps)
    thinned = np.stack([_thin(curve.values) for curve in curves])  # [curves, points]
    finite = thinned[np.isfinite(thinned) & ((thinned > 0) | (not logarithmic))]
    if not len(finite) or len(steps) < 2:
        return '<p class="note">Too few points for a curve yet.</p>'
    low, high = float(finite.min()), float(finite.max())
    ticks = _log_ticks(low, high) if logarithmic else _ticks(min(0.0, low), high)
    low, high = (min(low, ticks[0]), max(high, ticks[-1])) if logarithmic else (ticks[0], max(high, ticks[-1]))
    transform = np.log10 if logarithmic else np.asarray

    def up(value: np.ndarray | float) -> np.ndarray:
        bottom, top = transform(low), transform(high)
        return (transform(np.maximum(value, low)) - bottom) / (top - bottom)

    x = 1000 * (steps - first) / (last - first)
    grid = "".join(
        f'<line class="grid" x2="1000" y1="{y:.1f}" y2="{y:.1f}"/>' for y in 1000 * (1 - up(np.array(ticks)))
    )
    lines = "".join(
        _polyline(index, curve, x, up(row)) for index, (curve, row) in enumerate(zip(curves, thinned, strict=True))
    )
    labels = "".join(
        f'<span class="y" style="bottom:{100 * float(up(tick)):.1f}%">{_short(tick)}</span>' for tick in ticks
    )
    for step in _ticks(first, last)[1:]:
        place = 100 * (step - first) / (last - first)
        if 0 < place <= 100:
            labels += f'<span class="x" style="left:{place:.1f}%">{_short(step)}</span>'
    return (
        f'<div class="plot"><svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img">{grid}{lines}'
        f"{_hover_columns(x, steps, curves, thinned)}</svg>{labels}</div>{_legend(curves) if len(curves) > 1 else ''}"
    )


def _polyline(index: int, curve: Curve, x: np.ndarray, height: np.ndarray) -> str:
    points = " ".join(f"{a:.1f},{1000 * (1 - b):.1f}" for a, b in zip(x, height, strict=True) if math.isfinite(b))
    dash = ' stroke-dasharray="5 3"' if curve.dashed else ""
    return f'<polyline data-curve="{index}" style="stroke:{curve.color}"{dash} points="{points}"/>'


def _hover_columns(x: np.ndarray, steps: np.ndarray, curves: Sequence[Curve], values: np.ndarray) -> str:
    edges = np.concatenate([[x[0]], (x[1:] + x[:-1]) / 2, [x[-1]]])
    columns = ""
    for index, step in enumerate(steps):
        lines = [f"{curve.name}: {number(float(values[row, index]))}" for row, curve in enumerate(curves)]
        title = escape("\n".join([f"step {step:,.0f}", *lines]))
        columns += (
            f'<rect class="hover" x="{edges[index]:.1f}" width="{edges[index + 1] - edges[index]:.1f}" height="1000">'
            f"<title>{title}</title></rect>"
        )
    return columns


def _legend(curves: Sequence[Curve]) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" checked data-curve="{index}"><i class="{"dashed" if curve.dashed else ""}" '
        f'style="color:{curve.color}"></i>{escape(curve.name)}</label>'
        for index, curve in enumerate(curves)
    )
    buttons = '<button type="button" data-all>all</button><button type="button">none</button>'
    return f'<div class="legend">{boxes}{buttons}</div>'


def _thin(values: np.ndarray) -> np.ndarray:
    """Means of at most `MAX_POINTS` stretches of equal length (the last may be shorter); NaNs do not count."""
    size = max(1, -(-len(values) // MAX_POINTS))
    parts = [part[np.isfinite(part)] for part in np.split(values, range(size, len(values), size))]
    return np.array([part.mean() if len(part) else math.nan for part in parts])


def _ticks(low: float, high: float) -> list[float]:
    """About four round numbers from `low` down to `high` up."""
    span = max(high - low, 1e-9)
    size = 10.0 ** math.floor(math.log10(span / 4))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if span / (size * factor) <= 5)
    first = math.floor(low / step)
    return [step * place for place in range(first, math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2s and 5s where there are few, around the range."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 3 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) >= 2 else [10.0**first, 10.0 ** (last + (first == last))]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")
