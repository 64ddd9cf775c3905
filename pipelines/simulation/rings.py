"""Five rings of the same area with 20,000 to 300 points: a random draw, and draws from trees of clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import hkm_dask as hkm
from hkm_dask.events import emit
from pipelines.simulation.drawing import BLUE, INK, ORANGE, QUIET, empty_figure, write
from pipelines.simulation.measures import entropy, format_spread, spread
from pipelines.simulation.mixtures import RINGS, rings

LEVELS, N_RESAMPLES, RESAMPLE_SIZE = (1000, 300), 10, (15, 2)
SIZE = 1000
DRAWS = ("random", "1 level", "2 levels", "2 levels, resampled")


def run(out: Path, seeds: int) -> tuple[dict[str, Any], list[Path]]:
    """Draw 1000 of 29,700 points in four ways, count them by ring, and plot those of the first seed.

    Parameters
    ----------
    out : Path
        Folder for the plots.
    seeds : int
        Number of seeds, of data, tree and draw.

    Returns
    -------
    numbers : dict
        By draw: points per ring, and the entropy over the rings as a share of the maximum.
    pictures : list of Path
    """
    counts_of: dict[str, list[NDArray[np.int64]]] = {name: [] for name in DRAWS}
    for seed in range(seeds):
        points, ring = rings(seed)
        rows = _draw_rows(points, seed)
        for name in DRAWS:
            counts_of[name].append(np.bincount(ring[rows[name]], minlength=len(RINGS)))
        if seed == 0:
            shown = {"all": np.arange(len(points)), **rows}
            pictures = write(_draw(points, ring, shown), out, "rings")
        emit("progress", stage="rings", done=seed + 1, total=seeds)
    numbers = {
        "settings": {"levels": LEVELS, "n_resamples": N_RESAMPLES, "resample_size": RESAMPLE_SIZE, "size": SIZE},
        "pool": [n for n, _ in RINGS],
        "seeds": seeds,
        "draws": {
            name: {
                "per_ring": np.mean(counts, axis=0).tolist(),
                "entropy": spread([entropy(one) / np.log(len(RINGS)) for one in counts]),
            }
            for name, counts in counts_of.items()
        },
    }
    return numbers, pictures


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
    lines = [f"{'points per ring':21}" + "".join(f"{n:>8,}" for n in numbers["pool"]) + "   entropy, of 1"]
    for name, one in numbers["draws"].items():
        lines.append(
            f"{name:21}" + "".join(f"{n:8.1f}" for n in one["per_ring"]) + f"   {format_spread(one['entropy'], 3)}"
        )
    return "\n".join(lines)


def _draw_rows(points: NDArray[np.float32], seed: int) -> dict[str, NDArray[np.int64]]:
    """Return the rows of each draw."""
    ways: tuple[dict[str, Any], ...] = (
        {"n_clusters": LEVELS[-1:], "n_resamples": 0},
        {"n_clusters": LEVELS, "n_resamples": 0},
        {"n_clusters": LEVELS, "n_resamples": N_RESAMPLES, "resample_size": RESAMPLE_SIZE},
    )
    rows = {DRAWS[0]: np.random.default_rng(seed).choice(len(points), SIZE, replace=False)}
    for name, settings in zip(DRAWS[1:], ways, strict=True):
        rows[name] = hkm.HierarchicalKMeans(**settings, random_state=seed).fit(points).sample(SIZE, seed=seed)
    return rows


def _draw(points: NDArray[np.float32], ring: NDArray[np.int64], shown: dict[str, NDArray[np.int64]]) -> Figure:
    panels = {
        "all": ("29,700 points", QUIET),
        DRAWS[0]: ("1000 at random", BLUE),
        DRAWS[-1]: ("1000 curated", ORANGE),
    }
    figure = empty_figure(1320, 500)
    for axes, (name, (title, color)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        at = points[shown[name]]
        size = 1 if name == "all" else 6
        axes.scatter(at[:, 0], at[:, 1], s=size, color=color, linewidth=0, rasterized=name == "all")
        counts = ", ".join(f"{n:,}" for n in np.bincount(ring[shown[name]], minlength=len(RINGS)))
        axes.set_title(title, fontsize=13, color=INK)
        axes.set_xlabel(f"by ring, from within: {counts}", fontsize=10, color=INK)
        axes.set(aspect="equal", xlim=(-5.4, 5.4), ylim=(-5.4, 5.4), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    return figure
