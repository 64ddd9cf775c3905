"""Icicle chart of a hierarchy: levels side by side, clusters as high as their share of the pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from hkm_dask.view.report import markup
from hkm_dask.view.report.axes import WIDTH, chart, text
from hkm_dask.view.report.facts import Facts, LevelFacts
from hkm_dask.view.report.markup import Markup, count, element, line, share, things
from hkm_dask.view.report.samples import Samples

_TOP, _HEIGHT, _GAP, _THIN = 40.0, 1000.0, 3.0, 1.6
_TEXT, _PICTURE = 13.0, 28.0  # least heights of a cell with a caption, and with thumbnails
#: Upper limits of the share of the draw over the share of the pool, and the cell classes up to each limit.
SHADES = ((0.5, "less2"), (0.8, "less1"), (1.25, "same"), (2.0, "more1"), (float("inf"), "more2"))


@dataclass(frozen=True)
class Cell:
    """One cluster, or (cluster None) `n` small ones of one parent, with its position and the samples shown in it."""

    level: int
    cluster: int | None
    n: int
    size: int
    drawn: int | None
    top: float
    height: float
    samples: tuple[int, ...]


def layout(tree: xr.DataTree, facts: Facts, *, pictures: bool) -> list[Cell]:
    """Place the clusters of all levels; children are beside their parent, the largest first."""
    cells: list[Cell] = []
    scale = _HEIGHT / facts.n_clustered
    width = _width(facts)

    def place(level: int, clusters: list[int], top: float) -> None:
        here = facts.levels[level - 1]
        for at, cluster in enumerate(clusters):
            height = scale * int(here.sizes[cluster])
            if height < _THIN and at + 1 < len(clusters):
                rest = clusters[at:]
                size = int(here.sizes[rest].sum())
                drawn = None if here.drawn is None else int(here.drawn[rest].sum())
                cells.append(Cell(level, None, len(rest), size, drawn, top, scale * size, ()))
                return
            n = _n_samples(height, width, pictures)
            near = tree.hkm.nearest_samples(level, cluster, n) if n else ()
            drawn = None if here.drawn is None else int(here.drawn[cluster])
            size = int(here.sizes[cluster])
            cells.append(Cell(level, cluster, 1, size, drawn, top, height, tuple(map(int, near))))
            if level > 1:
                place(level - 1, _largest_children(tree, facts, level, cluster).tolist(), top)
            top += height

    place(len(facts.levels), facts.top.order.tolist(), _TOP)
    return cells


def _largest_children(tree: xr.DataTree, facts: Facts, level: int, cluster: int) -> NDArray[np.int64]:
    """Return the non-empty children of a cluster (of level 2 or above), the largest first."""
    children = tree.hkm.children(level, cluster)
    sizes = facts.levels[level - 2].sizes[children]
    return children[np.argsort(-sizes, kind="stable")][: np.count_nonzero(sizes)]


def _width(facts: Facts) -> float:
    return (WIDTH + _GAP) / len(facts.levels) - _GAP


def _n_samples(height: float, width: float, pictures: bool) -> int:
    if not pictures:
        return 0 if height < _TEXT else min(int(height / 14), 8)
    return min(int(width - 50) // 30, 8) * min(int((height - 2) / 30), 3) if height >= _PICTURE + 4 else 0


def draw_icicle(cells: list[Cell], facts: Facts, samples: Samples) -> Markup:
    """Draw the cells that `layout` has placed."""
    n_levels, width = len(facts.levels), _width(facts)
    heads = []
    for level in reversed(facts.levels):
        x = (n_levels - level.number) * (width + _GAP)
        heads.append(text(x, 14, f"Level {level.number}", "head"))
        heads.append(text(x, 30, things(len(level.filled), "cluster"), "quiet"))
    drawn = [_draw(cell, facts, samples, (n_levels - cell.level) * (width + _GAP), width) for cell in cells]
    label = "Clusters of every level, each as high as its share of the pool; the level below is to the right"
    return chart(_TOP + _HEIGHT + 2, heads, drawn, label=label)


def shade(size: int, drawn: int | None, level: LevelFacts) -> str:
    """Return the CSS class of a cell, by the ratio of its shares of the draw and of the pool."""
    if level.drawn is None:
        return "same"
    ratio = (drawn or 0) / max(int(level.drawn.sum()), 1) / (size / int(level.sizes.sum()))
    return next(kind for limit, kind in SHADES if ratio < limit)


def _draw(cell: Cell, facts: Facts, samples: Samples, x: float, width: float) -> Markup:
    level = facts.levels[cell.level - 1]
    name = f"{cell.level}:{cell.cluster}" if cell.cluster is not None else things(cell.n, "smaller cluster")
    of_draw = "" if cell.drawn is None else f", {share(cell.drawn / max(facts.n_drawn, 1))} of the draw"
    title = f"{name}: {things(cell.size, 'sample')}, {share(cell.size / facts.n_clustered)} of the pool{of_draw}"
    height = max(cell.height - (0.8 if cell.height > 3 else 0.2), 0.3)
    kind = f"{'rest' if cell.cluster is None else 'cell'} {shade(cell.size, cell.drawn, level)}"
    box = element("rect", x=x, y=cell.top, width=width, height=height, class_=kind)
    inside = _inside(cell, name, samples, x, width) if cell.height >= _TEXT else None
    return element("g", element("title", title), box, inside)


def _inside(cell: Cell, name: str, samples: Samples, x: float, width: float) -> Sequence[Markup | None]:
    middle = cell.top + cell.height / 2 + 4
    if cell.cluster is None:
        return [text(x + 5, middle, name, "quiet")]
    first = cell.top + 11 if cell.height < 18 else cell.top + 14
    label = text(x + 5, first, name, "name")
    if samples.has_images and cell.samples:
        per_row = max(int(width - 50) // 30, 1)
        places = [(x + 48 + 30 * (i % per_row), cell.top + 2 + 30 * (i // per_row)) for i in range(len(cell.samples))]
        at = zip(cell.samples, places, strict=True)
        return [label, *(samples.picture(row, width=_PICTURE, x=left, y=top) for row, (left, top) in at)]
    indent = 12 + 7.1 * len(name)
    captions = [line(samples.caption(row), max(int((width - indent - 4) / 6.1), 3)) for row in cell.samples]
    return [label, *(text(x + indent, first + 14 * i, caption, "caption") for i, caption in enumerate(captions))]


def legend() -> Markup:
    """Make the legend of the cell colors."""
    names = ("less than half", "less", "about the same", "more", "more than twice")
    colors = zip((kind for _, kind in SHADES), names, strict=True)
    return markup.legend(colors, "Color: the draw's share of a cluster relative to the pool's")


def n_hidden(cells: list[Cell]) -> str:
    """Return a sentence with the number of clusters that are too small for their own cells; empty if none."""
    hidden = sum(cell.n for cell in cells if cell.cluster is None)
    return f" {count(hidden)} clusters too small to show are grouped." if hidden else ""
