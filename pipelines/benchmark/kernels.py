"""Micro-benchmarks of the inner loops, for pytest-benchmark: ``pytest pipelines/benchmark/kernels.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.hierarchy.sorting.external_sort import Records
from hkm_dask.hierarchy.sorting.members import order_of
from hkm_dask.kmeans.seeding.coreset import greedy_kmeans_plusplus, n_trials_for
from hkm_dask.search.cpu import kernels as cpu_kernels
from hkm_dask.search.cpu.engine import CpuIndex
from hkm_dask.search.cpu.operand import make_operand
from hkm_dask.search.geometry import Geometry, make_geometry

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

N_ROWS, N_CLUSTERS = 4096, 1024
NONE_STAYED = np.empty(0, np.bool_)
features = pytest.mark.parametrize("n_features", [64, 384, 1024])


class RowTile:
    """Rows, centroids near them, and the correct labels."""

    def __init__(self, n_features: int) -> None:
        rng = np.random.default_rng(0)
        spread = (1.0 / np.sqrt(np.arange(1, n_features + 1))).astype(np.float32)
        self.centroids = rng.standard_normal((N_CLUSTERS, n_features), dtype=np.float32) * spread
        noise = rng.standard_normal((N_ROWS, n_features), dtype=np.float32) * spread
        self.rows: NDArray[np.float32] = self.centroids[rng.integers(N_CLUSTERS, size=N_ROWS)] + np.float32(0.5) * noise
        with Runner() as runner:
            self.geometry: Geometry = make_geometry(ArrayRows(self.rows), runner, n_clusters=N_CLUSTERS)
        self.labels, self.distances = np.full(N_ROWS, -1, np.int32), np.full(N_ROWS, np.inf)
        CpuIndex(self.centroids, self.geometry).nearest(self.rows, self.labels, self.distances)

    def guess(self) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Return labels as after a previous iteration, most of them correct, and the distances to them."""
        labels, distances = self.labels.copy(), np.empty(N_ROWS)
        labels[::10] = (labels[::10] + 1) % N_CLUSTERS
        cpu_kernels.label_distances(self.rows, self.centroids, NONE_STAYED, labels, distances)
        return labels, distances


@features
def test_product_alone(benchmark: BenchmarkFixture, n_features: int) -> None:
    """Time the plain matrix product of rows and centroids, the reference for the searches."""
    tile = RowTile(n_features)
    centroids = np.ascontiguousarray(tile.centroids.T)
    out = np.empty((N_ROWS, N_CLUSTERS), np.float32)
    benchmark(np.dot, tile.rows, centroids, out=out)


@pytest.mark.parametrize("share", [0.0, 0.25])
@pytest.mark.parametrize("hinted", [False, True])
@features
def test_search(benchmark: BenchmarkFixture, n_features: int, hinted: bool, share: float) -> None:
    """Find nearest centroids, by all features (share 0) or by a quarter first, with or without previous labels."""
    tile = RowTile(n_features)
    head = int(share * n_features)
    search, operand = CpuIndex(tile.centroids, tile.geometry, head), make_operand(tile.rows, tile.geometry, head)
    labels, distances = np.empty(N_ROWS, np.int32), np.empty(N_ROWS)
    known = tile.guess() if hinted else (-1, np.inf)

    def run() -> None:
        labels[:], distances[:] = known
        search.nearest(tile.rows, labels, distances, operand)

    benchmark(run)
    np.testing.assert_array_equal(labels, tile.labels)


@features
def test_label_distances(benchmark: BenchmarkFixture, n_features: int) -> None:
    """Compute the distances to known centroids, in float64."""
    tile = RowTile(n_features)
    result = np.empty(N_ROWS)
    benchmark(cpu_kernels.label_distances, tile.rows, tile.centroids, NONE_STAYED, tile.labels, result)
    np.testing.assert_array_equal(result, tile.distances)


@features
def test_add_rows(benchmark: BenchmarkFixture, n_features: int) -> None:
    """Add rows to the fixed-point sums of their clusters."""
    tile = RowTile(n_features)
    sums, counts = np.zeros((N_CLUSTERS, n_features), np.int64), np.zeros(N_CLUSTERS, np.int64)
    scale = tile.geometry.scale / 2.0**20  # smaller, so that the rounds of the benchmark do not overflow
    benchmark(cpu_kernels.add_rows, tile.rows, tile.labels, np.empty(0, np.int64), scale, sums, counts)
    assert counts.sum() % N_ROWS == 0


@features
def test_greedy_walk(benchmark: BenchmarkFixture, n_features: int) -> None:
    """Run greedy k-means++ on a coreset of three points per cluster."""
    tile = RowTile(n_features)
    points, weights = tile.rows[: 3 * 512], np.ones(3 * 512, np.int64)
    options = {"key": stream_key(0), "n_trials": n_trials_for(512), "n_threads": 1}
    result, _ = benchmark(greedy_kmeans_plusplus, points, weights, 512, **options)
    assert len(np.unique(result)) == 512


def test_order_of(benchmark: BenchmarkFixture) -> None:
    """Sort the members of clusters by distance."""
    rng = np.random.default_rng(0)
    labels = rng.integers(10_000, size=1_000_000).astype(np.int32)
    keys = rng.random(1_000_000, dtype=np.float32).view(np.uint32).astype(np.uint64)
    order = benchmark(lambda: order_of(Records(np.arange(1_000_000), keys, labels.copy())))
    assert (np.diff(labels[order]) >= 0).all()
