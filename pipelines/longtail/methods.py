"""Methods to draw N samples from a pool: the tree, and simpler ones."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN, AgglomerativeClustering
from sklearn.neighbors import NearestNeighbors

import hkm_dask as hkm
from pipelines.longtail.pools import Pool
from pipelines.longtail.studies import LARGER, in_proportion
from pipelines.longtail.trials import even_over

Rows = NDArray[np.int64]
Floats = NDArray[np.float64]
Method = Callable[[Pool, int], Rows]
N_NEIGHBORS = 20
#: Mean number of rows in the clusters within which SemDeDup looks for similar rows.
PRUNED_TOGETHER = 100
#: Limit of rows, because Ward linkage stores all pairs: 8 n² / 2 bytes.
MOST_PAIRED = 16_000


@functools.lru_cache(maxsize=2)
def radii(pool: Pool) -> Floats:
    """Return the distances of every row to its 1st … 20th nearest neighbor, of shape (n, 20)."""
    search = NearestNeighbors(n_neighbors=N_NEIGHBORS, algorithm="brute").fit(pool.embeddings)
    return np.asarray(search.kneighbors()[0], np.float64)


def uniform(pool: Pool, seed: int) -> Rows:
    """Draw uniformly."""
    return np.random.default_rng(seed).choice(len(pool.labels), pool.draw, replace=False)


def balanced(pool: Pool, seed: int) -> Rows:
    """Draw equally from each class, using the labels: an upper bound for methods without labels."""
    return even_over(pool.labels, pool.draw, np.random.default_rng(seed))


def k_means(pool: Pool, seed: int) -> Rows:
    """Run one k-means with as many clusters as rows to draw, and take one row of each."""
    labels = hkm.KMeans(n_clusters=pool.draw, random_state=seed).fit(pool.embeddings).labels_
    return even_over(np.asarray(labels, np.int64), pool.draw, np.random.default_rng(seed))


def isolated(pool: Pool, seed: int, *, neighbor: int, power: float) -> Rows:
    """Draw rows with probability ∝ radius^power, sequentially without replacement (Gumbel's trick)."""
    radius = np.maximum(radii(pool)[:, neighbor - 1], 1e-12)
    noise = np.random.default_rng(seed).gumbel(size=len(radius))
    return np.argsort(-(power * np.log(radius) + noise), kind="stable")[: pool.draw]


def k_center(pool: Pool, seed: int) -> Rows:
    """Start with a random row, then always add the row farthest from those drawn (Gonzalez 1985)."""
    x = pool.embeddings
    norms = np.square(x).sum(axis=1)
    rows = [int(np.random.default_rng(seed).integers(len(x)))]
    nearest = np.full(len(x), np.inf)
    while len(rows) < pool.draw:
        nearest = np.minimum(nearest, norms - 2 * (x @ x[rows[-1]]) + norms[rows[-1]])
        nearest[rows[-1]] = -np.inf
        rows.append(int(nearest.argmax()))
    return np.array(rows)


def semdedup(pool: Pool, seed: int) -> Rows:
    """Apply SemDeDup (arXiv:2303.09540) until the size is reached: drop the rows most similar to an earlier row.

    Similarity is compared within clusters, whose rows are sorted by distance to the centroid, the farthest first.
    """
    n_clusters = max(1, len(pool.labels) // PRUNED_TOGETHER)
    fitted = hkm.KMeans(n_clusters=n_clusters, random_state=seed).fit(pool.embeddings)
    labels = np.asarray(fitted.labels_)
    alike = np.empty(len(labels))
    for cluster in range(n_clusters):
        rows = np.flatnonzero(labels == cluster)
        x = pool.embeddings[rows]
        order = np.argsort(-np.square(x - fitted.cluster_centers_[cluster]).sum(axis=1), kind="stable")
        unit = x[order] / np.maximum(np.linalg.norm(x[order], axis=1, keepdims=True), 1e-12)
        earlier = np.tril(unit @ unit.T + 2, -1) - 2  # cosines to earlier rows; -2 elsewhere
        alike[rows[order]] = earlier.max(axis=1, initial=-2)
    return np.argsort(alike, kind="stable")[: pool.draw]


@functools.lru_cache(maxsize=2)
def _dense(pool: Pool) -> NDArray[np.int64]:
    """Return the clusters of DBSCAN, noise as -1, for the one of five radii that finds the most clusters."""
    fifth = radii(pool)[:, 4]
    found = [
        DBSCAN(eps=float(np.quantile(fifth, q)), min_samples=5, algorithm="brute").fit(pool.embeddings).labels_
        for q in (0.02, 0.05, 0.1, 0.2, 0.4)
    ]
    return max(found, key=lambda labels: int(labels.max()))


def dbscan(pool: Pool, seed: int) -> Rows:
    """Draw evenly from the clusters of DBSCAN and its noise."""
    return even_over(_dense(pool), pool.draw, np.random.default_rng(seed))


@functools.lru_cache(maxsize=2)
def _ward(pool: Pool) -> NDArray[np.int64]:
    return AgglomerativeClustering(n_clusters=pool.draw).fit(pool.embeddings).labels_


def agglomerative(pool: Pool, seed: int) -> Rows:
    """Take one row of each of N clusters by Ward linkage; raises MemoryError if the pairs do not fit."""
    if len(pool.labels) > MOST_PAIRED:
        raise MemoryError(f"{len(pool.labels)} rows are too many for all pairs")
    return even_over(_ward(pool), pool.draw, np.random.default_rng(seed))


def tree(pool: Pool, seed: int, *, config: Callable[[int], hkm.Config]) -> Rows:
    """Draw hierarchically from a tree."""
    settings = config(len(pool.labels)).model_copy(update={"seed": seed})
    with tempfile.TemporaryDirectory() as folder:
        built = hkm.build_hierarchy(pool.embeddings, Path(folder, "tree.zarr"), settings)
        return np.asarray(hkm.sample(built, pool.draw, seed=seed))


def larger(n_samples: int) -> hkm.Config:
    """Return a typical first choice: 15, 50 and 150 samples per cluster, and ten resamplings."""
    return hkm.Config.from_flags(in_proportion(n_samples, LARGER), n_resamples=10)


METHODS: dict[str, Method] = {
    "uniform": uniform,
    "one k-means": k_means,
    "isolated, r5^8": functools.partial(isolated, neighbor=5, power=8),
    "isolated, r20^16": functools.partial(isolated, neighbor=20, power=16),
    "isolated, r5^64": functools.partial(isolated, neighbor=5, power=64),
    "k-center": k_center,
    "SemDeDup": semdedup,
    "DBSCAN": dbscan,
    "agglomerative": agglomerative,
    "tree, larger clusters": functools.partial(tree, config=larger),
    "tree, as advised": functools.partial(tree, config=hkm.Config.advised),
    "balanced by labels": balanced,
}
