"""The toy example of §3.2: k-means splits the group of 5000 and merges the rest; s = 4 and a second level do not."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import hkm_dask as hkm
from pipelines.simulation.distortion import fit_line
from pipelines.simulation.drawing import BLUE, INK, ORANGE, QUIET, empty_figure, plain, write
from pipelines.simulation.mixtures import toy

LEVELS = (100, 3)
# Initial centroids that lead to the two solutions of the paper: the desired one, and the optimum.
WANTED, OPTIMUM = (1.0, 2.0, 3.0), (0.95, 1.05, 2.5)


def run(out: Path, seeds: int) -> tuple[dict[str, Any], list[Path]]:
    """Cluster the toy data in five ways and plot the centroids.

    Parameters
    ----------
    out : Path
        Folder for the plots.
    seeds : int
        Number of k-means initializations; their most frequent result is one of the five ways.

    Returns
    -------
    numbers : dict
        Centroids and distortions of each way, and the number of initializations for each result of k-means.
    pictures : list of Path
    """
    x = toy()
    starts = [hkm.KMeans(3, random_state=seed).fit(x).cluster_centers_ for seed in range(seeds)]
    distortions = [f"{distortion(x, centroids, 2):.2f}" for centroids in starts]
    ends = Counter(distortions)
    usual = starts[distortions.index(ends.most_common(1)[0][0])]
    ways: dict[str, NDArray[np.floating]] = {
        "one for each heap": hkm.KMeans(3, init=np.reshape(WANTED, (3, 1))).fit(x).cluster_centers_,
        "k-means, usual end": usual,
        "k-means, optimum": hkm.KMeans(3, init=np.reshape(OPTIMUM, (3, 1))).fit(x).cluster_centers_,
        "k-means with s = 4": fit_line(x[:, 0], 3, s=4).centroids,
        f"{LEVELS[0]}, then {LEVELS[1]} clusters": hkm.HierarchicalKMeans(LEVELS, n_resamples=0, random_state=0)
        .fit(x)
        .cluster_centers_,
    }
    sorted_ways = {name: np.sort(np.ravel(centroids)).astype(np.float64) for name, centroids in ways.items()}
    numbers: dict[str, Any] = {
        "ways": {
            name: {
                "centroids": centroids.tolist(),
                "distortion": distortion(x, centroids, 2),
                "distortion_s4": distortion(x, centroids, 4),
            }
            for name, centroids in sorted_ways.items()
        },
        "ends": dict(ends.most_common()),
    }
    return numbers, write(_draw(numbers["ways"]), out, "toy")


def summarize(numbers: dict[str, Any]) -> str:
    """Format the numbers as text.

    Parameters
    ----------
    numbers : dict
        From `run`.

    Returns
    -------
    str
    """
    lines = [f"{'':26}{'centroids':>18}{'Σ|x-c|²':>10}{'Σ|x-c|⁴':>10}"]
    for name, way in numbers["ways"].items():
        where = ", ".join(f"{centroid:.2f}" for centroid in way["centroids"])
        lines.append(f"{name:26}{where:>18}{way['distortion']:10.2f}{way['distortion_s4']:10.3f}")
    ends = ", ".join(f"{distortion} from {n}" for distortion, n in numbers["ends"].items())
    return "\n".join([*lines, f"k-means ends at {ends} of {sum(numbers['ends'].values())} starts"])


def distortion(x: NDArray[np.floating], centroids: NDArray[np.floating], s: float) -> float:
    """Return the sum of the distances to the nearest centroid to the power s, in float64.

    Parameters
    ----------
    x : ndarray of shape (n,) or (n, 1)
    centroids : ndarray of shape (k,) or (k, 1)
    s : float

    Returns
    -------
    float
    """
    distances = np.abs(x.reshape(-1, 1).astype(np.float64) - centroids.reshape(1, -1)).min(axis=1)
    return float((distances**s).sum())


def _draw(ways: dict[str, Any]) -> Figure:
    figure = empty_figure(1000, 380)
    axes = figure.add_subplot()
    for row, way in enumerate(ways.values()):
        axes.plot([0.9, 1.1], [row, row], color=BLUE, linewidth=9, solid_capstyle="butt", alpha=0.45)
        axes.plot([2, 3], [row, row], "o", color=BLUE, markersize=8, alpha=0.45, markeredgewidth=0)
        axes.plot(way["centroids"], [row] * 3, "|", color=ORANGE, markersize=26, markeredgewidth=3)
        axes.annotate(f"{way['distortion']:.2f}", (3.4, row), va="center", ha="right", color=INK)
    for x, text, color in (
        (1, "5000 numbers", BLUE), (2, "2 numbers", BLUE), (3, "2 numbers", BLUE), (3.34, "$Σ(x-c)^2$", QUIET)
    ):  # fmt: skip
        axes.annotate(text, (x, -0.85), ha="center", va="center", color=color, annotation_clip=False)
    axes.set(xlim=(0.75, 3.45), ylim=(len(ways) - 0.4, -1.1))
    axes.set_yticks(range(len(ways)), list(ways), fontsize=10)
    plain(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=10, labelcolor=INK)
    axes.set_title("Where three centroids go (orange)", loc="left", fontsize=12, color=INK)
    return figure
