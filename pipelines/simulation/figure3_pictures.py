"""Plots of Figure 3: Voronoi cells and densities of the centroids by method, and bars of the divergences."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial import Voronoi

from pipelines.simulation.drawing import BLUE, GREEN, INK, ORANGE, QUIET, empty_figure, plain
from pipelines.simulation.measures import AXIS, SQUARE, density

MANY = 1000  # with more points than this, no cells are drawn
RATIOS = 2.0 ** np.arange(-3, 3.5, 0.5)  # color boundaries of the density
FAR = 50.0
PER_BAND = 5  # methods per row; more would be too small to read on a page


def cells(points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the borders of the Voronoi cells of points; those of outer cells extend far out.

    Parameters
    ----------
    points : ndarray of shape (n, 2)

    Returns
    -------
    ndarray of float64, shape (n_borders, 2, 2)
        Both ends of each border, x and y.
    """
    # Four points far away close the cells of all others.
    around = FAR * np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
    diagram = Voronoi(np.concatenate([np.asarray(points, np.float64), around]))
    ends = np.array(diagram.ridge_vertices)
    borders: NDArray[np.float64] = diagram.vertices[ends[ends.min(axis=1) >= 0]]
    return borders


def draw_maps(centroids_of: dict[str, NDArray[np.floating]]) -> Figure:
    """Draw the cells of the centroids, and below them the density estimates, in rows of `PER_BAND` methods.

    Parameters
    ----------
    centroids_of : dict of str to ndarray of shape (n, 2)

    Returns
    -------
    matplotlib.figure.Figure
    """
    n_bands = -(-len(centroids_of) // PER_BAND)
    figure = empty_figure(1000, 25 + 405 * n_bands)
    panels = figure.subplots(2 * n_bands, PER_BAND, squeeze=False)
    for panel in panels.ravel():
        panel.set_visible(False)
    colors, steps = colormaps["RdBu_r"].resampled(len(RATIOS) - 1), BoundaryNorm(RATIOS, len(RATIOS) - 1)
    for place, (name, points) in enumerate(centroids_of.items()):
        band, column = divmod(place, PER_BAND)
        above, below = panels[2 * band : 2 * band + 2, column]
        for panel in (above, below):
            panel.set_visible(True)
            _square(panel)
        _cells(above, points)
        above.set_title(name.replace(", ", ",\n", 1), fontsize=11, color=INK)
        estimate = density(points).T * len(AXIS) ** 2
        extent = (-SQUARE, SQUARE, -SQUARE, SQUARE)
        below.imshow(estimate, origin="lower", extent=extent, cmap=colors, norm=steps, interpolation="nearest")
        _square(below)
    bar = figure.colorbar(
        ScalarMappable(steps, colors), ax=panels, shrink=0.4, pad=0.01, extend="both", ticks=RATIOS[::2]
    )
    bar.ax.set_yticklabels([f"{ratio:g}" for ratio in RATIOS[::2]])
    bar.set_label("density, uniform = 1", fontsize=9, color=QUIET)
    bar.ax.tick_params(labelsize=9, colors=QUIET)
    return figure


def draw_bars(numbers: dict[str, Any]) -> Figure:
    """Draw the divergences as bars, with the standard deviation over seeds and the published values.

    Parameters
    ----------
    numbers : dict
        From `figure3.run`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    figure = empty_figure(1000, 90 + 38 * len(numbers))
    axes = figure.add_subplot()
    for row, one in enumerate(numbers.values()):
        kl = one["kl"]
        axes.barh(row, kl["mean"], color=BLUE, alpha=0.5, height=0.62)
        axes.errorbar(kl["mean"], row, xerr=kl["sd"], color=INK, capsize=3, linewidth=1.2)
        if one["published"] is not None:
            axes.plot(one["published"], row, "D", color=ORANGE, markersize=7)
        if one["law"] is not None:
            axes.plot(one["law"], row, "|", color=GREEN, markersize=19, markeredgewidth=3)
        axes.annotate(
            f"{kl['mean']:.3f}", (max(kl["mean"] + kl["sd"], one["published"] or 0), row), (10, 0),
            textcoords="offset points", va="center", color=INK, fontsize=10,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(0.019, 1.6)
    ticks = (0.02, 0.05, 0.1, 0.2, 0.5, 1)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(numbers)), list(numbers))
    axes.invert_yaxis()
    plain(axes)
    axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=INK)
    n_seeds = len(next(iter(numbers.values()))["kl"]["values"])
    axes.set_xlabel(
        f"KL divergence to uniform, mean ± sd, {n_seeds} seeds (logarithmic; evenly spread points have 0.019)",
        fontsize=10, color=QUIET,
    )  # fmt: skip
    axes.plot([], [], "D", color=ORANGE, markersize=7, label="published")
    axes.plot([], [], "|", color=GREEN, markersize=14, markeredgewidth=3, label="law: density$^{1/2^{levels}}$")
    axes.legend(loc="lower right", frameon=False, fontsize=10)
    return figure


def _cells(axes: Axes, points: NDArray[np.floating]) -> None:
    if len(points) > MANY:
        axes.plot(points[:, 0], points[:, 1], ",", color=BLUE, alpha=0.6, rasterized=True)
        return
    # A single line with gaps, which takes a tenth of the space of many lines in an SVG.
    borders = np.pad(cells(points), ((0, 0), (0, 1), (0, 0)), constant_values=np.nan).reshape(-1, 2)
    axes.plot(borders[:, 0], borders[:, 1], color=BLUE, linewidth=0.6)
    axes.plot(points[:, 0], points[:, 1], ".", color=ORANGE, markersize=2.5)


def _square(axes: Axes) -> None:
    axes.set(xlim=(-SQUARE, SQUARE), ylim=(-SQUARE, SQUARE), xticks=[], yticks=[], aspect="equal")
    axes.spines[:].set_color(QUIET)
