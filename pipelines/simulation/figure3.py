"""Figure 3: evenness of 300 clusters of points in the plane, by method: divergence of their centroids from uniform."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN, AgglomerativeClustering

import hkm_dask as hkm
from hkm_dask.events import emit
from pipelines.simulation.drawing import write
from pipelines.simulation.figure3_pictures import draw_bars, draw_maps
from pipelines.simulation.measures import AXIS, SQUARE, divergence, format_spread, law_divergence, spread
from pipelines.simulation.mixtures import plane_density, plane_mixture

Points = NDArray[np.float32]

N_CLUSTERS = 300
# As in the paper (§4.2.2): its seeding, and 50 iterations unless converged earlier.
PAPER: dict[str, Any] = {"init": "k-means++", "tol": 0.0, "max_iter": 50}
MIN_SAMPLES = 3
RADII = np.geomspace(0.02, 0.06, 24)


@dataclass(frozen=True)
class Method:
    """A method to represent 9000 points by about 300.

    Attributes
    ----------
    name : str
    find : callable
        Gets the points and a seed; returns points of shape (n, 2).
    published : float or None
        Divergence in the paper's Figure 3.
    n_levels : int or None
        Number of levels of a hierarchy without resampling, to compute the theoretical law.
    """

    name: str
    find: Callable[[Points, int], NDArray[np.floating]]
    published: float | None = None
    n_levels: int | None = None


def hierarchy(n_clusters: Sequence[int], **settings: Any) -> Callable[[Points, int], Points]:
    """Return a function that computes the top centroids of a hierarchical k-means.

    Parameters
    ----------
    n_clusters : sequence of int
        Level 1 first.
    **settings
        Parameters of `hkm_dask.HierarchicalKMeans`.

    Returns
    -------
    callable
        Function of points and a seed.
    """

    def find(points: Points, seed: int) -> Points:
        centroids = hkm.HierarchicalKMeans(n_clusters, random_state=seed, **settings).fit(points).cluster_centers_
        return centroids[~np.isnan(centroids[:, 0])]

    return find


def agglomerative(points: Points, seed: int, *, linkage: str = "ward") -> NDArray[np.float64]:
    """Return the means of the 300 clusters of agglomerative clustering.

    Parameters
    ----------
    points : ndarray of float32, shape (n, 2)
    seed : int
        Not used.
    linkage : str, default="ward"

    Returns
    -------
    ndarray of float64, shape (300, 2)
    """
    return means(points, AgglomerativeClustering(N_CLUSTERS, linkage=linkage).fit_predict(points))


def dbscan(points: Points, seed: int, *, min_samples: int = MIN_SAMPLES) -> NDArray[np.float64]:
    """Return the means of the clusters of DBSCAN, with a radius that gives about 300.

    Parameters
    ----------
    points : ndarray of float32, shape (n, 2)
    seed : int
        Not used.
    min_samples : int, default=3
        With 4, there are 300 clusters only if more than half of the points are noise.

    Returns
    -------
    ndarray of float64, shape (n_clusters, 2)
        Without noise.
    """
    runs = [DBSCAN(eps=radius, min_samples=min_samples).fit_predict(points) for radius in RADII]
    return means(points, min(runs, key=lambda labels: abs(int(labels.max()) + 1 - N_CLUSTERS)))


def means(points: Points, labels: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the mean of every cluster.

    Parameters
    ----------
    points : ndarray of float32, shape (n, 2)
    labels : ndarray of int, shape (n,)
        Points labeled -1 are ignored.

    Returns
    -------
    ndarray of float64, shape (n_clusters, 2)
    """
    inside, kept = points[labels >= 0], labels[labels >= 0]
    return np.stack([np.bincount(kept, inside[:, i]) / np.bincount(kept) for i in (0, 1)], axis=1)


def _uniform(seed: int) -> NDArray[np.float64]:
    return np.random.default_rng((seed, 1)).uniform(-SQUARE, SQUARE, (N_CLUSTERS, 2))


def _all_points(points: Points, seed: int) -> Points:
    return points


TWO, THREE = (1500, 300), (3000, 1000, 300)
METHODS = (
    Method("data", _all_points, 0.942, 0),
    Method("DBSCAN", dbscan, 0.853),
    Method("agglomerative, Ward", agglomerative, 0.374),
    Method("agglomerative, average", partial(agglomerative, linkage="average")),
    Method("1 level", hierarchy((300,), **PAPER, n_resamples=0), 0.340, 1),
    Method("2 levels", hierarchy(TWO, **PAPER, n_resamples=0), 0.132, 2),
    Method("3 levels", hierarchy(THREE, **PAPER, n_resamples=0), 0.081, 3),
    Method("3 levels, m = 10", hierarchy(THREE, **PAPER, n_resamples=10, resample_size=2), 0.0418),
    Method("3 levels, m = 10, 10, 100", hierarchy(THREE, **PAPER, n_resamples=(10, 10, 100), resample_size=2)),
    Method("3 levels, m = 0, 0, 100", hierarchy(THREE, **PAPER, n_resamples=(0, 0, 100), resample_size=2)),
)
UNIFORM = Method(f"{N_CLUSTERS} uniform points", lambda points, seed: _uniform(seed), 0.040)
N_UNIFORM = 200  # draws, regardless of the number of seeds, because they are cheap
HIDDEN = ("agglomerative, average", "3 levels, m = 10, 10, 100")  # left out of the maps for lack of space


def run(out: Path, seeds: int, *, methods: Sequence[Method] = METHODS) -> tuple[dict[str, Any], list[Path]]:
    """Measure every method for each seed; plot the divergences, and the centroids of the first seed.

    Parameters
    ----------
    out : Path
        Folder for the plots.
    seeds : int
        Number of seeds, of data and initialization.
    methods : sequence of Method, optional

    Returns
    -------
    numbers : dict
        By method.
    pictures : list of Path
    """
    centroids_of: dict[str, list[NDArray[np.floating]]] = {method.name: [] for method in methods}
    for seed in range(seeds):
        points = plane_mixture(seed)
        for number, method in enumerate(methods, start=1):
            centroids_of[method.name].append(method.find(points, seed))
            emit("progress", stage="figure 3", done=seed * len(methods) + number, total=seeds * len(methods))
    centroids_of[UNIFORM.name] = [_uniform(seed) for seed in range(N_UNIFORM)]
    true_density = plane_density(AXIS)
    numbers = {
        method.name: {
            "kl": spread([divergence(centroids) for centroids in centroids_of[method.name]]),
            "n_clusters": spread([len(centroids) for centroids in centroids_of[method.name]]),
            "published": method.published,
            "law": None if method.n_levels is None else law_divergence(true_density, 0.5**method.n_levels),
        }
        for method in (*methods, UNIFORM)
    }
    first = {name: centroids[0] for name, centroids in centroids_of.items() if name not in HIDDEN}
    pictures = write(draw_maps(first), out, "figure3_maps") + write(draw_bars(numbers), out, "figure3_bars")
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
    lines = [f"{'KL to uniform':27}{'here':16}{'published':>10}{'law':>8}{'points':>8}"]
    for name, one in numbers.items():
        published, law = ("" if one[key] is None else f"{one[key]:.3g}" for key in ("published", "law"))
        lines.append(f"{name:27}{format_spread(one['kl']):16}{published:>10}{law:>8}{one['n_clusters']['mean']:8.0f}")
    return "\n".join(lines)
