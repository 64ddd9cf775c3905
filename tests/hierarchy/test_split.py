"""Splitting clusters: what travels, what is left behind, and the same bits wherever it runs."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkm_dask.compute.cluster import connect
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows
from hkm_dask.errors import StoreError
from hkm_dask.hierarchy.members import group_by_label
from hkm_dask.hierarchy.split import Split, split_clusters
from hkm_dask.kmeans.fit import Settings
from hkm_dask.kmeans.search.geometry import make_geometry

N, K, N_SPLITS = 4000, 12, 3


@pytest.fixture(scope="module")
def workers() -> Iterator[Runner]:
    with connect(workers=1, memory_limit="800MiB") as runner:
        yield runner


@pytest.fixture
def table(tmp_path: Path) -> NpyRows:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(K, 5))[rng.integers(0, K, N)] * 5 + rng.normal(size=(N, 5))
    np.save(tmp_path / "rows.npy", rows.astype("f4"))
    return NpyRows(tmp_path / "rows.npy")


def split(rows: Rows, runner: Runner) -> tuple[Split, np.ndarray]:
    labels = np.random.default_rng(1).integers(0, K, rows.n_rows).astype(np.int32)
    indptr, members = group_by_label(labels, np.zeros(rows.n_rows, np.float32), K)
    geometry = make_geometry(rows, runner, n_clusters=K)
    settings = Settings(N_SPLITS, max_iter=4, key=stream_key(3))
    return split_clusters(rows, indptr, members, settings, geometry=geometry, runner=runner), labels


def test_every_row_gets_the_nearest_part_of_its_cluster(table: NpyRows) -> None:
    with Runner(n_threads=2) as runner:
        outcome, labels = split(table, runner)
    rows, parts = table.read(0, N).astype("f8"), outcome.centroids.reshape(K, N_SPLITS, -1).astype("f8")
    squared = np.square(rows[:, None] - parts[labels]).sum(axis=2)
    np.testing.assert_array_equal(outcome.labels, labels * N_SPLITS + np.nanargmin(squared, axis=1))
    np.testing.assert_allclose(outcome.distances, np.nanmin(squared, axis=1), rtol=1e-6)


def test_threads_and_workers_give_the_same_bits(table: NpyRows, workers: Runner) -> None:
    with Runner(n_threads=2) as runner:
        expected, _ = split(table, runner)
    outcome, _ = split(table, workers)
    for name in ("centroids", "labels", "distances"):
        assert getattr(outcome, name).tobytes() == getattr(expected, name).tobytes()


def test_no_row_numbers_travel_with_the_tasks(table: NpyRows, workers: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    run = workers.map

    def weighed(task: Callable[[Any], Any], items: Sequence[Any], **others: Any) -> list[Any]:
        sent.extend(len(pickle.dumps((task, item))) for item in items)
        return run(task, items, **others)

    monkeypatch.setattr(workers, "map", weighed)
    split(table, workers)
    assert sent
    assert max(sent) < 4000 < 8 * N / 2


@pytest.mark.faults
@pytest.mark.parametrize("damaged", [True, False])
def test_splitting_leaves_no_file_whatever_happens(table: NpyRows, tmp_path: Path, damaged: bool) -> None:
    with Runner(n_threads=2, work_dir=tmp_path / "work") as runner:
        geometry = make_geometry(table, runner, n_clusters=K)
        labels = np.arange(N, dtype=np.int32) % K
        indptr, members = group_by_label(labels, np.zeros(N, np.float32), K)
        settings = Settings(N_SPLITS, max_iter=2)
        if damaged:
            with Path(table.path).open("rb+") as file:
                file.truncate(N * 10)
            with pytest.raises(StoreError):
                split_clusters(table, indptr, members, settings, geometry=geometry, runner=runner)
        else:
            split_clusters(table, indptr, members, settings, geometry=geometry, runner=runner)
        assert list((tmp_path / "work").iterdir()) == []


def test_rows_in_memory_are_split_as_those_of_a_file(table: NpyRows) -> None:
    with Runner(n_threads=1) as runner:
        outcome, _ = split(ArrayRows(table.read(0, N)), runner)
        expected, _ = split(table, runner)
    assert outcome.centroids.tobytes() == expected.centroids.tobytes()
    assert outcome.inertia == expected.inertia
