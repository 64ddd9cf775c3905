"""Figures of a draw from a pool of image patches: contact sheets, cluster sizes, positions in the photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from hkm_dask.compute.matmul import matmul

DPI = 100  # figures are laid out in pixels, so that patches and photographs are shown at their resolution
MARGIN, _HEAD = 32, 96  # around a figure, and for a heading
INK, QUIET, PAPER = "#1f2328", "#656d76", "#ffffff"
RANDOM, CURATED = "#3b82c4", "#d9480f"
DOT = "#ffe14d"  # contrasts with darkened photographs
GROUPS = 40  # points that represent a draw in a panel of cluster sizes
FLOOR = 0.1  # lower limit of the size axis
LIGHTNESS = np.array([0.299, 0.587, 0.114])  # of red, green and blue, ITU-R BT.601


@dataclass(frozen=True)
class Draw:
    """One draw of patches, ready for plotting."""

    #: Its name, a line about it, and the color of the title.
    title: str
    caption: str
    color: str
    sheet: NDArray[np.uint8]  # (n, side, side, 3): patches of the contact sheet
    #: (n, 2) per photograph: centers of the patches drawn from it, as left and top in pixels.
    places: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class LevelSizes:
    """Number of patches in each cluster of one level, in the pool and in two draws."""

    #: (n_clusters,): patches in each cluster.
    pool: NDArray[np.int64]
    random: NDArray[np.int64]
    curated: NDArray[np.int64]
    color: NDArray[np.uint8]  # (n_clusters, 3): their mean color


def arrange(patches: NDArray[np.uint8], *, columns: int) -> NDArray[np.int64]:
    """Order patches (n, height, width, 3) for a contact sheet: dark columns at the left, cold colors at the top.

    Returns patch indices by position, shape (n // columns, columns); patches that do not fill a row are left out.

    >>> gray = np.array([9, 1, 5, 3], np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    >>> sorted(arrange(gray, columns=2)[:, 0].tolist()), sorted(arrange(gray, columns=2)[:, 1].tolist())
    ([1, 3], [0, 2])
    """
    rows = len(patches) // columns
    color = patches[: rows * columns].mean(axis=(1, 2))
    by_lightness = np.argsort(matmul(color, LIGHTNESS), kind="stable").reshape(columns, rows)
    warmth = color[:, 0] - color[:, 2]
    within = np.argsort(warmth[by_lightness], axis=1, kind="stable")
    return np.take_along_axis(by_lightness, within, axis=1).T


def contact_sheet(patches: NDArray[np.uint8], *, columns: int, scale: int = 2, gap: int = 2) -> NDArray[np.uint8]:
    """Arrange patches (n, height, width, 3) in a grid, in the order of `arrange`.

    Each is scaled up by `scale`, with `gap` white pixels between patches.

    >>> contact_sheet(np.zeros((6, 16, 16, 3), np.uint8), columns=3).shape
    (66, 100, 3)
    """
    large = patches[arrange(patches, columns=columns)].repeat(scale, axis=2).repeat(scale, axis=3)
    cells = np.pad(large, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows, columns, height, width, _ = cells.shape
    sheet = cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, 3)
    return sheet[: rows * height - gap, : columns * width - gap]


def draw_sheets(
    draws: Sequence[Draw], photographs: Sequence[NDArray[np.uint8]] = (), *, columns: int = 18, scale: int = 2
) -> Figure:
    """Draw the contact sheets of some draws side by side, with their positions in the photographs, if any, below.

    The photographs have the same size, (height, width, 3); `columns` and `scale` are as for `contact_sheet`.
    """
    sheets = [contact_sheet(draw.sheet, columns=columns, scale=scale) for draw in draws]
    height, width = sheets[0].shape[:2]
    below, small, strip = _HEAD + height + 12, 0, 0
    if photographs:
        small = (width - 8 * (len(photographs) - 1)) // len(photographs)
        strip = 12 + round(small * photographs[0].shape[0] / photographs[0].shape[1])
    figure = _figure(MARGIN + len(draws) * (width + MARGIN), _HEAD + height + strip + MARGIN)
    for number, (draw, sheet) in enumerate(zip(draws, sheets, strict=True)):
        left = MARGIN + number * (width + MARGIN)
        _heading(figure, left, 24, draw)
        axes = _axes(figure, left, _HEAD, width, height)
        axes.imshow(sheet, interpolation="nearest")
        axes.set_axis_off()
        for column, photo in enumerate(photographs):
            _place(figure, photo, draw.places[column], left + column * (small + 8), below, small)
    return figure


def draw_places(draws: Sequence[Draw], photographs: Sequence[NDArray[np.uint8]]) -> Figure:
    """Draw the positions of the patches of some draws as dots on the darkened photographs.

    Each draw is a row; the photographs have the same size, (height, width, 3).
    """
    height, width = photographs[0].shape[:2]
    row = _HEAD + height
    figure = _figure(MARGIN + len(photographs) * (width + MARGIN), len(draws) * row + MARGIN)
    for number, draw in enumerate(draws):
        _heading(figure, MARGIN, number * row + 24, draw)
        for column, photo in enumerate(photographs):
            left = MARGIN + column * (width + MARGIN)
            _place(figure, photo, draw.places[column], left, number * row + _HEAD, width)
    return figure


def draw_sizes(levels: Sequence[LevelSizes]) -> Figure:
    """Draw the cluster sizes of each level (level 1 first), and the number of patches drawn from each cluster."""
    left, top, width, height, gap = 88, 108, 400, 300, 24
    figure = _figure(left + len(levels) * (width + gap) + 8, top + height + 64)
    _text(figure, left, 22, "Cluster sizes at each level", size=17, weight="bold")
    _text(figure, left, 56, "bars: patches in the pool, in their mean color", size=11.5, color=QUIET)
    _text(figure, left + width + gap, 56, "●  of them in the random draw", size=11.5, color=RANDOM)
    _text(figure, left + width + gap + 264, 56, "●  in the curated draw", size=11.5, color=CURATED)
    largest = max(int(level.pool.max()) for level in levels)
    for number, level in enumerate(levels):
        axes = _axes(figure, left + number * (width + gap), top, width, height)
        _size_panel(axes, level)
        axes.set_ylim(FLOOR, 2 * largest)
        axes.set_title(f"level {number + 1}: {len(level.pool):,} clusters", loc="left", fontsize=11.5, color=INK)
        if number:
            axes.tick_params(labelleft=False)
        else:
            axes.set_ylabel("patches in a cluster", color=QUIET)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, at the pixel size it was laid out for."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=DPI, facecolor=PAPER)


def _size_panel(axes: Axes, level: LevelSizes) -> None:
    order = np.argsort(-level.pool, kind="stable")
    n_clusters = len(order)
    left, top = np.arange(n_clusters) + 0.5, level.pool[order].astype(float)
    bottom = np.full(n_clusters, FLOOR / 2)  # a logarithmic axis has no zero
    corners = np.stack([left, bottom, left + 1, bottom, left + 1, top, left, top], axis=1).reshape(n_clusters, 4, 2)
    bars = PolyCollection(list(corners), facecolors=level.color[order] / 255, linewidth=0)
    axes.add_collection(bars)
    axes.stairs(level.pool[order], np.arange(n_clusters + 1) + 0.5, color=INK, linewidth=0.8)  # sky is nearly white
    # At most GROUPS points per draw: one per cluster would be a cloud of ones and twos for 1,500 clusters.
    groups = np.array_split(np.arange(n_clusters), min(GROUPS, n_clusters))
    middle = [group.mean() + 1 for group in groups]
    for sizes, color in ((level.random, RANDOM), (level.curated, CURATED)):
        mean = [sizes[order[group]].mean() for group in groups]
        line = axes.plot(middle, mean, "o-", color=color, markersize=5, linewidth=1.3, markeredgewidth=0)
        line[0].set_path_effects([Stroke(linewidth=3, foreground=PAPER), Normal()])  # visible across bars of its color
    axes.set_yscale("log")
    axes.set_xlim(0.5, n_clusters + 0.5)
    axes.set_xlabel("clusters, largest first", color=QUIET)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=QUIET, labelsize=9, which="both")


def _place(
    figure: Figure, photo: NDArray[np.uint8], at: NDArray[np.float64], left: float, top: float, width: float
) -> None:
    """Draw one darkened photograph, `width` pixels wide, with a dot at each position."""
    height = width * photo.shape[0] / photo.shape[1]
    axes = _axes(figure, left, top, width, height)
    gray = matmul(photo, LIGHTNESS)[:, :, None]
    axes.imshow(((0.45 * photo + 0.55 * gray) * 0.42).astype(np.uint8), interpolation="lanczos")
    size = 5.5 * (width / photo.shape[1]) ** 1.5
    axes.scatter(at[:, 0], at[:, 1], s=size, color=DOT, linewidth=0)
    axes.set(xlim=(-0.5, photo.shape[1] - 0.5), ylim=(photo.shape[0] - 0.5, -0.5))
    axes.set_axis_off()


def _heading(figure: Figure, left: float, top: float, draw: Draw) -> None:
    _text(figure, left, top, draw.title, size=17, weight="bold", color=draw.color)
    _text(figure, left, top + 34, draw.caption, size=12, color=QUIET)


def _figure(width: float, height: float) -> Figure:
    """Create an empty figure, sized in pixels."""
    return Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=PAPER)


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Add axes to a figure, positioned in pixels from its top left corner."""
    w, h = figure.get_size_inches() * DPI
    return figure.add_axes((left / w, 1 - (top + height) / h, width / w, height / h))


def _text(
    figure: Figure, left: float, top: float, text: str, *, size: float, weight: str = "normal", color: str = INK
) -> None:
    """Add text to a figure, positioned in pixels from its top left corner."""
    w, h = figure.get_size_inches() * DPI
    figure.text(left / w, 1 - top / h, text, fontsize=size, fontweight=weight, color=color, va="top")
