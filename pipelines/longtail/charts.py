"""Plots of the effect of levels, seeding, resampling and numbers of clusters on a draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hkm_dask.demo.pictures import CURATED, INK, PAPER, QUIET

GRAY = "#8b949e"
#: Colors that the color-blind can distinguish (Okabe and Ito); lines also differ by their markers.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
MARKERS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True)
class Line:
    """A row of a dot plot: name, values per panel and seed, whether it is a reference, and group."""

    name: str
    values: Sequence[NDArray[np.float64]]
    reference: bool = False
    group: str = ""


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=100, facecolor=PAPER, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _clean(axes: Axes, grid: Literal["x", "both"] = "x") -> None:
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis=grid, color="#e6e8eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, length=0)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, and as SVG beside it."""
    figure.savefig(path)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})


def _places(lines: Sequence[Line]) -> tuple[list[float], dict[str, float], float]:
    """Return the positions of the rows from the top down, those of the group names, and the total height."""
    at: list[float] = []
    groups: dict[str, float] = {}
    y = 0.0
    for line in lines:
        if line.group and line.group not in groups:
            y += 0.3 if groups else 0.0
            groups[line.group] = y
            y += 1
        at.append(y)
        y += 1
    return at, groups, y


def dots(path: Path, title: str, lines: Sequence[Line], panels: Sequence[str]) -> None:
    """Draw a row per setting and a panel per measure; every seed is a dot, the mean a vertical bar."""
    at, groups, height = _places(lines)
    width = 9 if len(panels) < 3 else 11  # at most the width of a page, so that it is not shrunk there
    figure = _figure(width, 1.2 + (0.34 if not groups else 0.27) * height)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    for i, name in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        _clean(axes)
        for y, line in zip(at, lines, strict=True):
            color = GRAY if line.reference else CURATED
            values = line.values[i]
            axes.plot(values, np.full(len(values), y), "o", color=color, alpha=0.35, markersize=6, markeredgewidth=0)
            mean = float(np.mean(values))
            axes.plot([mean, mean], [y - 0.3, y + 0.3], color=color, linewidth=2.5)
            axes.annotate(
                f"{mean:.3f}", (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=11, color=QUIET
            )
        ticks, labels = [*groups.values(), *at], [*groups, *(line.name for line in lines)]
        axes.set_yticks(ticks, labels if i == 0 else [""] * len(ticks))
        axes.tick_params(axis="y", labelcolor=INK, labelsize=11)
        for label in axes.get_yticklabels()[: len(groups)]:
            label.set_fontweight("bold")
        axes.set_title(name, loc="left", fontsize=11, color=QUIET)
        axes.set_ylim(height - 0.4, -0.6)
    save(figure, path)


def curves(
    path: Path, title: str, panels: Sequence[tuple[str, str, Sequence[tuple[str, Sequence[Any], NDArray[np.float64]]]]]
) -> None:
    """Draw panels of curves with the spread over seeds; values have the shape (n_points, n_seeds)."""
    figure = _figure(11, 4)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    for i, (name, label, series) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        _clean(axes, "both")
        for (legend, x, values), color, marker in zip(series, COLORS, MARKERS, strict=False):
            at = np.arange(len(x))  # equally spaced, because the settings are not on a continuous scale
            mean, spread = values.mean(axis=1), values.std(axis=1)
            axes.fill_between(at, mean - spread, mean + spread, color=color, alpha=0.15, linewidth=0)
            axes.plot(at, mean, color=color, marker=marker, markersize=5, label=legend)
            axes.set_xticks(at, [str(value) for value in x])
        axes.set_title(name, loc="left", fontsize=10, color=QUIET)
        axes.set_xlabel(label, color=QUIET)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)


def class_sizes(
    path: Path, sizes: NDArray[np.int64], levels: Sequence[tuple[str, NDArray[np.float64], NDArray[np.float64]]]
) -> None:
    """Plot the share of clusters of each class, and their mean size, against the size of the class (Fig. 4).

    Each of `levels` has a name, the clusters per class as a share of all, and their mean sizes over the overall mean.
    """
    figure = _figure(11, 4.4)
    title = "The deeper the tree, the less the clusters of a class follow its size"
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    names = ("share of the top-level clusters", "mean size of a cluster / mean of all")
    for i, name in enumerate(names):
        axes = figure.add_subplot(1, 2, i + 1)
        _clean(axes, "both")
        axes.set_xscale("log")
        axes.set_yscale("log")
        for (label, shares, mean_sizes), color, marker in zip(levels, COLORS, MARKERS, strict=False):
            values = (shares, mean_sizes)[i]
            seen = values > 0
            slope = np.polyfit(np.log(sizes[seen]), np.log(values[seen]), 1)
            axes.plot(sizes[seen], values[seen], marker, color=color, markersize=5, alpha=0.55, markeredgewidth=0)
            ends = np.array([sizes.min(), sizes.max()], dtype=float)
            fit = np.exp(np.polyval(slope, np.log(ends)))
            label = f"{label}: size$^{{{slope[0]:.2f}}}$"
            axes.plot(ends, fit, color=color, linewidth=2)
            axes.plot([], [], color=color, linewidth=2, marker=marker, markersize=5, label=label)  # for the legend
        axes.set_xlabel("samples in the class", color=QUIET)
        axes.set_title(name, loc="left", fontsize=10, color=QUIET)
        if i == 1:
            axes.set_ylim(bottom=axes.get_ylim()[0] / 15)  # room for the legend
        axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=INK)
    save(figure, path)


def gains(path: Path, title: str, groups: Sequence[str], rows: Mapping[str, Mapping[str, tuple[float, float]]]) -> None:
    """Draw a panel per group and a line per row: the mean, with an error bar of two standard errors on each side."""
    down = -(-len(groups) // 5)
    columns = -(-len(groups) // down)
    figure = _figure(2.2 * columns + 1.6, down * (0.2 * len(rows) + 0.6) + 0.6)
    figure.suptitle(title, x=0.01, ha="left", color=INK, fontsize=13, fontweight="bold")
    for i, group in enumerate(groups):
        axes = figure.add_subplot(down, columns, i + 1)
        _clean(axes)
        axes.axvline(0, color=INK, linewidth=1)
        for y, (name, of_groups) in enumerate(rows.items()):
            if group not in of_groups:
                continue
            mean, error = of_groups[group]
            color = CURATED if name.startswith("tree") else GRAY
            if np.isfinite(error):
                axes.plot([mean - 2 * error, mean + 2 * error], [y, y], color=color, linewidth=3, alpha=0.5)
            axes.plot([mean], [y], "o", color=color, markersize=5, markeredgewidth=0)
        axes.set_yticks(range(len(rows)), list(rows) if i % columns == 0 else [""] * len(rows))
        axes.tick_params(axis="y", labelcolor=INK, labelsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        # A pool from a file is shown by its file name, because a path is too long.
        axes.set_title(Path(group).name, loc="left", fontsize=10, color=QUIET)
    save(figure, path)
