"""Trees, draws and fits keep their bits: fingerprints of labels, members, centroids and draws.

They date from commit 3fa8cbf, before the engines. A change that alters one on purpose gives the reason in CHANGELOG.md
and takes the new value from the test's message. Only results that do not depend on the processor are here: Euclidean,
no inertia.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hkm_dask as hkm

pytestmark = pytest.mark.usefixtures("two_blas_threads")


def blobs(n: int, d: int, dtype: str, seed: int = 0) -> np.ndarray:
    """Groups of very different size and width, some rows twice and a few far away."""
    rng = np.random.default_rng(seed)
    centers, sizes = 4.0 * rng.normal(size=(40, d)), rng.geometric(0.1, 40)
    group = rng.choice(40, n, p=sizes / sizes.sum())
    rows = centers[group] + rng.uniform(0.1, 1.0, 40)[group, None] * rng.normal(size=(n, d))
    rows[: n // 50] = rows[n // 2 : n // 2 + n // 50]
    rows[-5:] *= 6.0
    return rows.astype(dtype)


def fingerprint(*arrays: Any) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array)
        digest.update(f"{values.dtype.str}{values.shape}".encode() + np.nan_to_num(values, nan=1e30).tobytes())
    return digest.hexdigest()[:16]


def tree_bits(rows: np.ndarray, folder: Path, levels: list[dict[str, Any]], **settings: Any) -> str:
    config = hkm.Config(
        levels=[hkm.Level(**{"max_iter": 6, "resample_size": 3} | level) for level in levels], **settings
    )
    tree = hkm.build_hierarchy(rows, folder / "tree.zarr", config)
    arrays = []
    for t in range(1, len(levels) + 1):
        level = tree[f"level_{t}"]
        arrays += [
            level[name].to_numpy() for name in ("labels", "distances", "centroids", f"members_{t}", "leaf_sizes")
        ]
    draws = [
        hkm.sample(tree, len(rows) // 10, strategy=strategy, within=within, seed=3)
        for strategy in ("hierarchical", "flat")
        for within in ("random", "closest", "furthest")
    ]
    return fingerprint(*arrays, *draws)


def fit_bits(rows: np.ndarray, n_clusters: int, sample_weight: np.ndarray | None = None) -> str:
    kmeans = hkm.KMeans(n_clusters, max_iter=8, tol=0.0, random_state=1)
    kmeans.fit(rows, sample_weight=sample_weight)
    return fingerprint(kmeans.labels_, kmeans.cluster_centers_, kmeans.n_iter_, kmeans.predict(rows[::7] * 0.9))


def levels_of(*n_clusters: int, n_resamples: int = 1, **first: Any) -> list[dict[str, Any]]:
    """Settings of levels with so many clusters; `first` are those of level 1 besides."""
    return [{"n_clusters": k, "n_resamples": n_resamples} | (first if i == 0 else {}) for i, k in enumerate(n_clusters)]


#: Fingerprint, then number of rows, of features, their type, and the levels.
TREES: dict[str, tuple[str, int, int, str, list[dict[str, Any]]]] = {
    "one level": ("b95f5fcc1c39714d", 2000, 16, "f4", levels_of(50)),
    "float16, pruned search": ("a040d89ba2e4224b", 6000, 64, "f2", levels_of(150, 20)),
    "three levels, two resamplings": ("87620b241c40635c", 3000, 32, "f4", levels_of(200, 60, 12, n_resamples=2)),
    "four levels": ("e73fa95bea7cbd99", 2500, 8, "f2", levels_of(300, 90, 30, 8)),
    "split clusters": ("e72a21512dd6be12", 3000, 16, "f4", levels_of(30, 12, n_splits=5)),
    "random members": ("fe7c6d3e74f3099e", 2000, 24, "f4", levels_of(80, 10, resample_strategy="random")),
    "k-means++": ("e551540044f3ff85", 1500, 16, "f4", levels_of(60, 9, init="k-means++")),
    "k-means||": ("a2b5aa049830b701", 2000, 16, "f4", levels_of(60, 9, init="k-means||")),
    "random rows": ("7b2008d34cee3d3a", 2000, 16, "f4", levels_of(60, 9, init="random")),
    "a plane": ("2a257c83d07cdbb6", 4000, 2, "f4", levels_of(120, 30)),
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_and_its_draws(name: str, tmp_path: Path) -> None:
    expected, n_rows, n_features, dtype, levels = TREES[name]
    assert tree_bits(blobs(n_rows, n_features, dtype), tmp_path, levels) == expected


def test_a_tree_of_a_subset(tmp_path: Path) -> None:
    path = tmp_path / "subset.npy"
    np.save(path, np.unique(np.random.default_rng(5).integers(0, 3000, 2000)))
    found = tree_bits(blobs(3000, 16, "f4"), tmp_path, levels_of(70, 10), subset=str(path))
    assert found == "dba90193ec9796d0"


def test_a_fit_with_weights() -> None:
    weights = np.random.default_rng(2).integers(0, 4, 3000).astype(float)
    assert fit_bits(blobs(3000, 48, "f4"), 70, weights) == "6b7aeb0aeac0e081"


@pytest.mark.filterwarnings("ignore:n_distinct_samples")
def test_a_fit_of_fewer_distinct_rows_than_clusters() -> None:
    assert fit_bits(np.repeat(blobs(40, 6, "f4"), 9, axis=0), 60) == "da28c547c9866308"
