"""Clusters split on a device in batches: bitwise the same parts as one by one on the CPU."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hkm_dask.compute.block_cache import device_cache, host_cache
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans import fit_groups as batch
from hkm_dask.kmeans.fit import Settings
from hkm_dask.search.cuda.index import CudaIndex, Groups
from hkm_dask.search.cuda.operand import make_cuda_operand
from hkm_dask.search.geometry import make_geometry
from tests.emulated.plugin import Emulator
from tests.hierarchy.test_split import Parts, split_labels

D = 12
# Rows of each cluster: none, one, fewer than parts, few enough to walk over all, and enough to draw by D².
SIZES = (40, 0, 1, 3, 9, 70, 0, 25, 150)


def clusters(sizes: tuple[int, ...] = SIZES, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows in no order, and their clusters' members."""
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = rng.normal(size=(len(labels), D)) + 4 * rng.normal(size=(len(sizes), D))[labels]
    rows[labels == 4] = rows[labels == 4][0]  # copies of one row
    rows[np.flatnonzero(labels == 5)[::2]] *= 3
    members = np.argsort(labels, kind="stable")
    return rows.astype(dtype), np.concatenate([[0], np.cumsum(sizes)]), members


def parts(
    rows: np.ndarray, indptr: np.ndarray, members: np.ndarray, *, n_splits: int = 5, spherical: bool = False, **how: Any
) -> Parts:
    table = ArrayRows(rows)
    with Runner(n_threads=1) as runner:
        geometry = make_geometry(table, runner, n_clusters=n_splits, spherical=spherical)
        settings = Settings(n_splits, key=stream_key(3), **{"max_iter": 8, "tol": 0.0} | how)
        labels = np.empty(len(rows), np.int32)
        labels[members] = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        return split_labels(
            table, labels, n_clusters=len(indptr) - 1, settings=settings, geometry=geometry, runner=runner
        )  # fmt: skip


@pytest.fixture
def both(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Parts, Parts]]:
    """Split on the CPU, and on the device."""

    def compute(*args: Any, **kwargs: Any) -> tuple[Parts, Parts]:
        with monkeypatch.context() as patch:
            patch.setenv("HKM_DEVICE", "cpu")
            host_cache.clear()
            on_cpu = parts(*args, **kwargs)
        host_cache.clear()
        device_cache.clear()
        return on_cpu, parts(*args, **kwargs)

    return compute


def same(on_cpu: Parts, on_device: Parts) -> None:
    for name in ("centroids", "labels", "distances"):
        np.testing.assert_array_equal(getattr(on_device, name), getattr(on_cpu, name), err_msg=name)
        assert getattr(on_device, name).dtype == getattr(on_cpu, name).dtype
    assert on_device.inertia == on_cpu.inertia


# Every start and every type of rows; what one makes of rows does not depend on the other.
@pytest.mark.parametrize(
    ("init", "dtype"),
    [
        ("coreset", np.float16),
        ("coreset", np.float64),
        ("k-means||", np.float32),
        ("k-means||", np.float64),
        ("k-means++", np.float16),
        ("random", np.float32),
    ],
)
def test_parts_are_the_cpus(both: Callable[..., tuple[Parts, Parts]], dtype: type, init: str) -> None:
    same(*both(*clusters(dtype=dtype), init=init))


@pytest.mark.parametrize("init", ["coreset", "k-means++"])
def test_parts_beside_far_rows_are_the_cpus(both: Callable[..., tuple[Parts, Parts]], init: str) -> None:
    rows, indptr, members = clusters()
    rows[members[[3, 60, 200]]] *= np.float32(1e13)
    same(*both(rows, indptr, members, init=init, tol=1e-4))


def test_parts_on_the_sphere_are_the_cpus(both: Callable[..., tuple[Parts, Parts]]) -> None:
    rows, indptr, members = clusters()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    same(*both(rows, indptr, members, spherical=True))


def test_every_part_is_a_mean_and_every_row_is_in_the_nearest(cuda: Any) -> None:
    rows, indptr, members = clusters()
    actual = parts(rows, indptr, members, max_iter=50)
    wide = rows.astype(np.float64)
    for cluster, (low, high) in enumerate(itertools.pairwise(indptr)):
        in_cluster, centroids = members[low:high], actual.centroids[5 * cluster : 5 * cluster + 5].astype(np.float64)
        n_distinct = len(np.unique(rows[in_cluster], axis=0))
        assert (~np.isnan(centroids[:, 0])).sum() == min(5, n_distinct)
        squared = ((wide[in_cluster][:, None] - np.nan_to_num(centroids, nan=1e9)) ** 2).sum(axis=2)
        np.testing.assert_array_equal(actual.labels[in_cluster], 5 * cluster + squared.argmin(axis=1))
        for part in range(min(5, n_distinct)):
            own = wide[in_cluster][actual.labels[in_cluster] == 5 * cluster + part]
            np.testing.assert_allclose(own.mean(axis=0), centroids[part], atol=1e-5)


def test_all_clusters_are_searched_at_once(cuda: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    n_searched: list[int] = []
    plain = CudaIndex.nearest_in_groups

    def counted(
        self: CudaIndex, rows: Any, labels: Any, distances: Any, operand: Any, groups: Groups, *rest: Any
    ) -> None:
        n_searched.append(int((np.diff(groups.columns) > 0).sum()))
        plain(self, rows, labels, distances, operand, groups, *rest)

    monkeypatch.setattr(CudaIndex, "nearest_in_groups", counted)
    rows, indptr, members = clusters((20,) * 30)
    parts(rows, indptr, members, n_splits=4, max_iter=6)
    assert n_searched[-1] == 30  # the labels
    # Some draw their centers in more passes, or rest after fewer iterations.
    assert np.mean(n_searched) > 10
    assert len(n_searched) < 40


def test_too_many_clusters_for_the_device_are_split_in_turns(
    cuda: Any, both: Callable[..., tuple[Parts, Parts]], emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    fit_batch = batch.fit_batch

    def counted(values: np.ndarray, bounds: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        tried.append(len(bounds) - 1)
        return fit_batch(values, bounds, *args, **kwargs)

    monkeypatch.setattr(batch, "fit_batch", counted)
    rows, indptr, members = clusters((60,) * 6)
    monkeypatch.setenv("HKM_DEVICE_MEMORY", "1GiB")  # which it has not
    cuda.get_default_memory_pool().free_all_blocks()
    emulator.limit_memory(cuda.get_default_memory_pool().used_bytes() + 60_000)
    same(*both(rows, indptr, members))
    assert tried[:2] == [6, 3]


def test_a_cluster_larger_than_a_batch_is_streamed(
    both: Callable[..., tuple[Parts, Parts]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runner, "batch_bytes", 1500)
    fit_batch = batch.fit_batch

    def small(values: np.ndarray, *args: Any, **kwargs: Any) -> Any:
        assert values.nbytes <= 3000
        return fit_batch(values, *args, **kwargs)

    monkeypatch.setattr(batch, "fit_batch", small)
    same(*both(*clusters()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("some", [False, True])
def test_the_nearest_in_a_group(cuda: Any, dtype: type, some: bool) -> None:
    rng = np.random.default_rng(1)
    sizes, n_columns = np.array([300, 1, 129, 70]), np.array([7, 3, 300, 1])
    n, m = sizes.sum(), n_columns.sum()
    rows, centroids = rng.normal(size=(n, 20)).astype(dtype), rng.normal(size=(m, 20)).astype(np.float32)
    centroids[[3, 12]] = np.nan
    centroids[200] = centroids[20]  # of two in one place it is the first
    of = np.repeat(np.arange(4), sizes)
    numbers = np.arange(m) * 2 + 5
    geometry = make_geometry(ArrayRows(rows), Runner(n_threads=1), n_clusters=20)
    device_rows = cuda.asarray(rows)
    labels, distances = cuda.full(n, -1, cuda.int32), cuda.full(n, cuda.inf)
    looked_at = np.flatnonzero(of != 2) if some else np.arange(n)
    lines = np.concatenate([[0], np.cumsum(np.where([True, True, not some, True], sizes, 0))])
    groups = Groups(
        cuda.asarray(of.astype(np.int32)), lines, np.concatenate([[0], np.cumsum(n_columns)]), numbers.astype(np.int32)
    )
    CudaIndex(centroids, geometry).nearest_in_groups(
        device_rows,
        labels,
        distances,
        make_cuda_operand(device_rows, geometry),
        groups,
        cuda.asarray(looked_at) if some else None,
    )
    squared = ((rows.astype(np.float64)[:, None] - centroids.astype(np.float64)) ** 2).sum(axis=2)
    squared[np.isnan(squared) | (np.repeat(np.arange(4), n_columns) != of[:, None])] = np.inf
    expected = np.where(np.isin(np.arange(n), looked_at), numbers[squared.argmin(axis=1)], -1)
    np.testing.assert_array_equal(labels.get(), expected)
    np.testing.assert_allclose(distances.get()[looked_at], squared.min(axis=1)[looked_at], rtol=1e-12)
