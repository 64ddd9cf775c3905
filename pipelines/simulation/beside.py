"""Figure 3 without resampling, with our k-means and with scikit-learn's at every level, on the same points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from hkm_dask.events import emit
from pipelines.simulation.figure3 import N_CLUSTERS, PAPER, THREE, TWO, hierarchy
from pipelines.simulation.measures import divergence, format_spread, spread
from pipelines.simulation.mixtures import plane_mixture

LEVELS = ((N_CLUSTERS,), TWO, THREE)


def by_scikit_learn(points: NDArray[np.float32], seed: int, n_clusters: Sequence[int]) -> NDArray[np.float64]:
    """Return the top centroids of a hierarchy of scikit-learn's k-means.

    Parameters
    ----------
    points : ndarray of float32, shape (n, 2)
    seed : int
    n_clusters : sequence of int
        Level 1 first.

    Returns
    -------
    ndarray of float64, shape (n_clusters[-1], 2)
    """
    centroids: NDArray[np.float64] = points.astype(np.float64)
    for k in n_clusters:
        one = KMeans(k, n_init=1, max_iter=PAPER["max_iter"], tol=PAPER["tol"], random_state=seed)
        centroids = one.fit(centroids).cluster_centers_
    return centroids


def run(out: Path, seeds: int, *, cases: Sequence[tuple[int, ...]] = LEVELS) -> tuple[dict[str, Any], list[Path]]:
    """Measure both for each seed.

    Parameters
    ----------
    out : Path
        Not used, as there is no plot.
    seeds : int
        Number of seeds, of data and initialization.
    cases : sequence of tuple of int, optional
        Clusters of each level.

    Returns
    -------
    numbers : dict
        By case: the divergence from uniform of both, and ours minus the reference.
    pictures : list of Path
        None.
    """
    numbers: dict[str, Any] = {}
    for done, levels in enumerate(cases, start=1):
        find = hierarchy(levels, **PAPER, n_resamples=0)
        ours = [divergence(find(plane_mixture(seed), seed)) for seed in range(seeds)]
        reference = [divergence(by_scikit_learn(plane_mixture(seed), seed, levels)) for seed in range(seeds)]
        numbers[", ".join(map(str, levels))] = {
            "ours": spread(ours),
            "scikit-learn": spread(reference),
            "difference": spread(np.subtract(ours, reference).tolist()),
        }
        emit("progress", stage="beside", done=done, total=len(cases))
    return numbers, []


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
    lines = [f"{'KL to uniform':20}{'ours':18}{'scikit-learn':18}{'ours - reference':16}{'its standard error'}"]
    for levels, one in numbers.items():
        error = one["difference"]["sd"] / np.sqrt(len(one["difference"]["values"]))
        lines.append(
            f"{levels:20}{format_spread(one['ours']):18}{format_spread(one['scikit-learn']):18}"
            f"{one['difference']['mean']:<+16.4f}{error:.4f}"
        )
    return "\n".join(lines)
