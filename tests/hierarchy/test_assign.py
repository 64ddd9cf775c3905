from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hkm_dask.compute import runner as runner_module
from hkm_dask.compute.keyed_random import random_uniform
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data import store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.hierarchy.assign import Assigned, LevelRows, _hints, assign
from hkm_dask.search.geometry import make_geometry


@pytest.fixture(autouse=True)
def _many_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_HAND_OVER_FLOPS", 1.0)


def brute_force(rows: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest centroid by direct squared distances in float64, ties to the lowest index."""
    squared = np.square(rows.astype("f8")[:, None] - centroids.astype("f8")).sum(axis=2)
    return squared.argmin(axis=1), squared.min(axis=1)


def data(n: int = 500, d: int = 5, k: int = 17) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    # Whole numbers, so that there are ties between centroids and between members of a cluster.
    return rng.integers(-9, 9, (n, d)).astype("f4"), rng.integers(-9, 9, (k, d)).astype("f4")


def level_of(rows: Rows, n_total: int, k: int, chunk_rows: int = 1) -> LevelRows:
    with Runner(n_threads=1) as runner:
        return LevelRows(rows, n_total, make_geometry(rows, runner, n_clusters=k), chunk_rows)


def run(level: LevelRows, centroids: NDArray[np.float32], n_threads: int = 3, **options: object) -> Assigned:
    with Runner(n_threads=n_threads) as runner:
        return assign(level, centroids, run="x", runner=runner, **options)  # type: ignore[arg-type]


def make_arrays(folder: Path, n: int, chunk_rows: int) -> None:
    for name, dtype in (("labels", "i4"), ("distances", "f4")):
        store.create_array(folder, name, shape=(n,), dtype=dtype, chunks=(chunk_rows,), dims=("s",))


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("chunk_rows", [7, 64, 500, 4096])
def test_labels_are_the_nearest_centroids(tmp_path: Path, n_threads: int, chunk_rows: int) -> None:
    rows, centroids = data()
    make_arrays(tmp_path, 500, chunk_rows)
    assigned = run(level_of(ArrayRows(rows), 500, 17, chunk_rows), centroids, n_threads, folder=tmp_path)
    labels, distances = brute_force(rows, centroids)
    assert open_array(tmp_path / "labels").read(0, 500).tolist() == labels.tolist()
    assert open_array(tmp_path / "distances").read(0, 500).tolist() == distances.astype("f4").tolist()
    assert assigned.counts.tolist() == np.bincount(labels, minlength=17).tolist()
    assert assigned.chosen is None


@pytest.mark.parametrize("n_threads", [1, 4])
@pytest.mark.parametrize("r", [1, 3, 1000])
def test_the_closest_members_are_chosen_ties_to_the_lowest_row(r: int, n_threads: int) -> None:
    rows, centroids = data()
    assigned = run(level_of(ArrayRows(rows), 500, 17), centroids, n_threads, r=r)
    labels, distances = brute_force(rows, centroids)
    expected = [
        row
        for c in range(17)
        for row in sorted(np.flatnonzero(labels == c).tolist(), key=lambda i: (distances[i], i))[:r]
    ]
    assert assigned.chosen is not None
    assert assigned.chosen.read().tolist() == sorted(expected)


@pytest.mark.parametrize("n_threads", [1, 4])
def test_random_members_are_those_with_the_smallest_keys(n_threads: int) -> None:
    rows, centroids = data()
    assigned = run(level_of(ArrayRows(rows), 500, 17), centroids, n_threads, r=4, random_key=99)
    labels, _ = brute_force(rows, centroids)
    keys = random_uniform(99, np.arange(500))
    expected = [
        row for c in range(17) for row in sorted(np.flatnonzero(labels == c).tolist(), key=keys.__getitem__)[:4]
    ]
    assert assigned.chosen is not None
    assert assigned.chosen.read().tolist() == sorted(expected)


@pytest.mark.parametrize("chunk_rows", [8, 30, 128])
@pytest.mark.parametrize("rate", [0.02, 0.5, 1.0])
def test_rows_a_subset_leaves_out_are_told_apart(tmp_path: Path, chunk_rows: int, rate: float) -> None:
    rows, centroids = data()
    # Runs of whole chunks left out, at the beginning and in the middle too.
    index = np.flatnonzero(np.random.default_rng(1).random(500) < rate)
    index = index[(index >= 40) & ((index < 200) | (index > 300))]
    make_arrays(tmp_path, 500, chunk_rows)
    level = level_of(SubsetRows(ArrayRows(rows), index), 500, 17, chunk_rows)
    assigned = run(level, centroids, folder=tmp_path)
    labels, distances = brute_force(rows[index], centroids)
    expected = np.full(500, -1)
    expected[index] = labels
    assert open_array(tmp_path / "labels").read(0, 500).tolist() == expected.tolist()
    stored = open_array(tmp_path / "distances").read(0, 500)
    assert stored[index].tolist() == distances.astype("f4").tolist()
    assert np.isnan(np.delete(stored, index)).all()
    assert assigned.counts.sum() == len(index)
    open_array(tmp_path / "labels").check()


def test_centroids_that_are_none_are_never_found() -> None:
    rows, centroids = data()
    centroids[[0, 5, 16]] = np.nan
    assigned = run(level_of(ArrayRows(rows), 500, 17), centroids, r=2)
    assert assigned.counts[[0, 5, 16]].tolist() == [0, 0, 0]
    assert assigned.counts.sum() == 500


@pytest.mark.parametrize("n_threads", [1, 3])
def test_hints_are_the_nearest_centroids_of_those_before(n_threads: int) -> None:
    _, before = data()
    _, centroids = data(k=11)
    before[3], centroids[7] = np.nan, np.nan
    geometry = level_of(ArrayRows(data()[0]), 500, 11).geometry
    with Runner(n_threads=n_threads) as runner:
        hints = _hints(SharedArray(array=before), 17, SharedArray(array=centroids), geometry, runner)
    assert hints[3] == -1
    kept, used = np.delete(np.arange(17), 3), np.delete(np.arange(11), 7)
    assert hints[kept].tolist() == used[brute_force(before[kept], centroids[used])[0]].tolist()
