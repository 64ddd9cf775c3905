"""Columns of the pool, and labels: their distribution in the draw compared with the pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hkm_dask.data.pool import Pool
from hkm_dask.view.report.axes import WIDTH, Scale, chart, path, rule, step_line, text, x_axis
from hkm_dask.view.report.markup import Markup, count, element, line, share, things

#: Most values shown of a column. A column with more distinct words or integers than `MAX_WORDS` or `MAX_WHOLE`, or with
#: fewer than four samples per value, is free text or a measurement, not a category.
N_VALUES, MAX_WORDS, MAX_WHOLE, LEAST_OF_EACH = 12, 1000, 50, 4
_BLOCK = 2**16
#: Label of rows without a value.
MISSING = "(missing)"
#: Most values, evenly spaced over the column, that the range of a histogram is estimated from; all values are counted.
_MOST_RANGED = 2**20

Rows = NDArray[np.int64] | None


@dataclass(frozen=True)
class Column:
    """One value per sample, read in pieces; `names` maps values to display names; `kinds` is True for labels."""

    name: str
    n: int
    read: Callable[[int, int], NDArray[Any]]
    take: Callable[[NDArray[np.int64]], NDArray[Any]]
    names: Mapping[str, str]
    kinds: bool = False

    def blocks(self) -> Iterable[NDArray[Any]]:
        """Yield the values in pieces."""
        return (self.read(start, min(start + _BLOCK, self.n)) for start in range(0, self.n, _BLOCK))


@dataclass(frozen=True)
class Values:
    """Shares of the values of a column in the pool, most frequent first, and in the draw."""

    name: str
    names: list[str]
    pool: NDArray[np.float64]
    draw: NDArray[np.float64] | None


@dataclass(frozen=True)
class Numbers:
    """Histogram of a column in the pool and in the draw, as shares per bin."""

    name: str
    edges: NDArray[np.float64]
    pool: NDArray[np.float64]
    draw: NDArray[np.float64] | None


def pool_columns(pool: Pool) -> list[Column]:
    """List all columns of a pool, masked where values are missing."""
    return [
        Column(name, pool.n_samples, partial(pool.column_piece, name), partial(pool.column, name), {})
        for name in pool.columns
    ]


def compare(column: Column, rows: Rows) -> Values | Numbers | None:
    """Compare the distribution of a column in the pool and in the draw; None for free text."""
    return _categories(column, rows) or _numbers(column, rows)


def _categories(column: Column, rows: Rows) -> Values | None:
    """Count the values; None if they are measurements or free text."""
    counts: Counter[object] = Counter()
    for block in column.blocks():
        if block.dtype.kind == "f":
            return None
        counts.update(block.tolist())
        if len(counts) > (MAX_WHOLE if block.dtype.kind in "iu" else MAX_WORDS) and not column.kinds:
            return None
    if len(counts) * LEAST_OF_EACH > column.n and not column.kinds:
        return None
    values = sorted(counts, key=lambda value: (-counts[value], str(value)))
    named = [line(column.names.get(str(value), str(value)), 40) or "(empty)" for value in values]
    named = [MISSING if value is None else name for value, name in zip(values, named, strict=True)]
    pool = np.array([counts[value] for value in values]) / column.n
    if rows is None:
        return Values(column.name, named, pool, None)
    drawn = Counter(column.take(rows).tolist())
    return Values(column.name, named, pool, np.array([drawn[value] for value in values]) / max(len(rows), 1))


def _numbers(column: Column, rows: Rows) -> Numbers | None:
    """Make a histogram between the 1st and 99th percentiles; values beyond are in the outermost bins."""
    step = -(-column.n // _MOST_RANGED)
    some = []
    for start, block in zip(range(0, column.n, _BLOCK), column.blocks(), strict=True):
        if block.dtype.kind not in "iuf":
            return None
        some.append(np.ma.compressed(block[-start % step :: step]).astype(np.float64))
    ranged = np.concatenate(some)
    ranged = ranged[np.isfinite(ranged)]
    if not len(ranged):
        return None
    low, high = np.quantile(ranged, [0.01, 0.99])
    if low == high:
        low, high = float(ranged.min()), float(ranged.max())
    edges = np.linspace(low, high if high > low else low + 1, 31)
    drawn = None if rows is None else _shares(_count(column.take(rows), edges))
    return Numbers(column.name, edges, _shares(sum(_count(block, edges) for block in column.blocks())), drawn)


def _count(values: NDArray[Any], edges: NDArray[np.float64]) -> Any:
    values = np.ma.compressed(values)
    finite = values[np.isfinite(values)]
    return np.histogram(np.clip(finite, edges[0], edges[-1]), edges)[0]


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    return counts / max(int(counts.sum()), 1)


def draw_column(column: Values | Numbers) -> Markup:
    """Draw the chart of one column."""
    body = _draw_values(column) if isinstance(column, Values) else _draw_numbers(column)
    detail = things(len(column.names), "value") if isinstance(column, Values) else "1st to 99th percentile of the pool"
    head = element("figcaption", element("b", line(column.name, 60)), " ", element("span", detail, class_="quiet"))
    return element("figure", head, body)


def _draw_values(column: Values) -> Markup:
    """Draw a line for each value, with dots at its shares of the pool and of the draw."""
    n = len(column.names)
    shown = n if n <= N_VALUES + 1 else N_VALUES
    others = [f"{count(n - shown)} others"] if shown < n else []
    names = column.names[:shown] + others
    pool, draw = (_gathered(shares, shown, n) for shares in (column.pool, column.draw))
    assert pool is not None
    x = Scale(0, max(max(pool), max(draw or [0.0])) or 1, 230, WIDTH - 150)
    marks, described = [], []
    for i, (name, *shares) in enumerate(zip(names, pool, *([] if draw is None else [draw]), strict=True)):
        y = 14 + 24.0 * i
        given = " → ".join(map(share, shares))
        marks += [text(216, y + 4, line(name, 28), "label", "end"), text(WIDTH - 132, y + 4, given, "label")]
        marks += [rule(230, y, WIDTH - 150, y), rule(x(shares[0]), y, x(shares[-1]), y, "change")]
        kinds = zip(shares, ("fill-pool", "fill-draw"), strict=False)
        marks += [element("circle", cx=x(of), cy=y, r=5.5, class_=kind) for of, kind in kinds]
        described.append(f"{name} {given}")
    order = "" if draw is None else " in the pool → in the draw"
    return chart(24 * len(names) + 8, marks, label=f"Shares of {line(column.name, 60)}{order}: {'; '.join(described)}")


def _gathered(shares: NDArray[np.float64] | None, shown: int, n: int) -> list[float] | None:
    if shares is None:
        return None
    return [*shares[:shown].tolist(), *([float(shares[shown:].sum())] if shown < n else [])]


def _draw_numbers(column: Numbers) -> Markup:
    kinds = ((column.pool, "area pool"), (column.draw, "line draw"))
    shown = [(shares, kind) for shares, kind in kinds if shares is not None]
    x = Scale(column.edges[0], column.edges[-1], 10, WIDTH - 10)
    y = Scale(0, max(float(shares.max()) for shares, _ in shown) or 1, 140, 10)
    marks = [path(step_line(column.edges.tolist(), shares.tolist(), x, y), kind) for shares, kind in shown]
    label = f"Histograms of {line(column.name, 60)}: the pool as an area, the draw as a line"
    return chart(165, marks, x_axis(x, 140, n=8), label=label)
