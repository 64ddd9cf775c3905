"""Scales and axes of SVG charts: mapping of values to pixels, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hkm_dask.view.report.markup import Content, Markup, element, value

#: Widths of charts and of panels (several of which are side by side), in the units of their view boxes.
WIDTH, PANEL = 960.0, 300.0


@dataclass(frozen=True)
class Scale:
    """Linear or logarithmic map from values to pixels.

    >>> Scale(0, 10, 100, 200)(2.5), Scale(1, 100, 0, 50, log=True)(10)
    (125.0, 25.0)
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, x: float) -> float:
        """Return the position of a value."""
        low, high, at = (math.log(v) if self.log else float(v) for v in (self.low, self.high, x))
        return self.start + (self.stop - self.start) * (at - low) / ((high - low) or 1.0)

    def ticks(self, n: int = 5) -> list[float]:
        """Choose about `n` round numbers within the scale.

        >>> Scale(0, 9.5, 0, 1).ticks(), Scale(2, 3000, 0, 1, log=True).ticks()
        ([0.0, 2.0, 4.0, 6.0, 8.0], [10.0, 100.0, 1000.0])
        """
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            inside = [
                m * 10.0**e for e in range(first, last + 1) for m in (1, 2, 5) if self.low <= m * 10.0**e <= self.high
            ]
            decades = [tick for tick in inside if round(math.log10(tick), 6) % 1 == 0]
            chosen = decades if len(decades) >= 3 else inside
            return chosen[:: -(-len(chosen) // (n + 2)) or 1]
        raw = (self.high - self.low) / n or 1.0
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [(first + i) * step for i in range(int(self.high / step + 1e-9) - first + 1)]


def chart(height: float, *content: Content, label: str) -> Markup:
    """Make a full-width chart; `label` describes it to screen readers."""
    return element("div", _svg(WIDTH, height, content, label), class_="wide")


def panel(head: str, quiet: str, height: float, *content: Content, label: str) -> Markup:
    """Make one of several charts shown side by side, below a heading and a muted line."""
    caption = element("figcaption", element("b", head), element("br"), element("span", quiet, class_="quiet"))
    return element("figure", caption, _svg(PANEL, height, content, label))


def panels(made: Sequence[Markup]) -> Markup:
    """Arrange panels side by side, as many per row as fit."""
    return element("div", made, class_="panels")


def _svg(width: float, height: float, content: Content, label: str) -> Markup:
    box = f"0 0 {width:g} {height:g}"
    return element("svg", content, viewBox=box, role="img", aria_label=label, class_="chart", width=width)


def text(x: float, y: float, content: Content, class_: str | None = None, anchor: str | None = None) -> Markup:
    """Make a line of text whose baseline starts, ends or is centered at a point."""
    return element("text", content, x=float(x), y=float(y), class_=class_, text_anchor=anchor)


def rule(x1: float, y1: float, x2: float, y2: float, class_: str = "rule") -> Markup:
    """Make a straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def path(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Make a line through points."""
    steps = " L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("path", d=f"M{steps}", class_=class_)


def x_axis(scale: Scale, y: float, label: str = "", n: int = 5) -> Markup:
    """Make an axis with ticks below a chart, and its label."""
    ticks = [text(scale(tick), y + 16, value(tick), "tick", "middle") for tick in scale.ticks(n)]
    name = text((scale.start + scale.stop) / 2, y + 34, label, "tick", "middle") if label else None
    return element("g", rule(scale.start, y, scale.stop, y, "axis"), ticks, name)


def y_axis(scale: Scale, left: float, right: float, n: int = 4) -> Markup:
    """Make ticks to the left of a chart, with grid lines across it."""
    marks = [
        (rule(left, scale(tick), right, scale(tick)), text(left - 6, scale(tick) + 4, value(tick), "tick", "end"))
        for tick in scale.ticks(n)
    ]
    return element("g", marks)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions at least `gap` apart, within `low` and `high` if there is room.

    >>> spread([1, 1, 9], 2, 0, 10), spread([9, 9.5], 2, 0, 10)
    ([1.0, 3.0, 9.0], [8.0, 10.0])
    """
    places = np.array(wanted, float)
    steps = gap * np.arange(len(places))
    places = np.maximum.accumulate(np.maximum(places, low) - steps) + steps
    from_above = np.minimum(places, high) + steps[::-1]
    return (np.minimum.accumulate(from_above[::-1])[::-1] - steps[::-1]).tolist()


def step_line(edges: Sequence[float], heights: Sequence[float], x: Scale, y: Scale) -> list[tuple[float, float]]:
    """Return the outline of a histogram, starting and ending at 0."""
    points = [(x(edges[0]), y(0))]
    for left, right, height in zip(edges[:-1], edges[1:], heights, strict=True):
        points += [(x(left), y(height)), (x(right), y(height))]
    return [*points, (x(edges[-1]), y(0))]
