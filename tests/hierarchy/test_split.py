"""Splitting clusters: data sent, files left, and the same bits wherever it runs."""

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

from hkm_dask.compute.cluster.connect import connect
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows
from hkm_dask.data.store import sweep_scratch
from hkm_dask.errors import StoreError
from hkm_dask.hierarchy import level_arrays, regroup
from hkm_dask.hierarchy import split as split_module
from hkm_dask.hierarchy.checkpoint import Checkpoints
from hkm_dask.hierarchy.sorting import external_sort
from hkm_dask.hierarchy.split import split_clusters
from hkm_dask.kmeans.fit import Settings
from hkm_dask.kmeans.fit_groups import fit_groups
from hkm_dask.search.geometry import Geometry, make_geometry

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


@dataclass(frozen=True)
class Parts:
    """What a level has after its clusters were split; see `split_clusters`."""

    centroids: np.ndarray
    labels: np.ndarray
    distances: np.ndarray
    inertia: float


def split_labels(
    rows: Rows, labels: np.ndarray, distances: np.ndarray | None = None, *, n_clusters: int, settings: Settings,
    chunk_rows: int = 1000, **others: Any,
) -> Parts:  # fmt: skip
    """Split clusters given by the labels of all rows, -1 for those that `rows` leaves out."""
    sizes = np.bincount(labels[labels >= 0], minlength=n_clusters)
    with TemporaryDirectory() as name:
        folder = Path(name) / "level_1"
        level_arrays.create_row_arrays(folder, 1, len(labels), chunk_rows)
        distances = np.zeros(len(labels), np.float32) if distances is None else distances
        level_arrays.write_row_arrays(folder, labels.astype(np.int32), distances)
        split_clusters(rows, folder, sizes, settings, level=1, **others)
        centroids = level_arrays.read_whole(folder / "centroids")
        labels, distances = (level_arrays.read_whole(folder / name) for name in ("labels", "distances"))
    return Parts(centroids, labels, distances, float(np.nansum(distances.astype("f8"))))


def split(rows: Rows, runner: Runner) -> tuple[Parts, np.ndarray]:
    labels = np.random.default_rng(1).integers(0, K, rows.n_rows).astype(np.int32)
    geometry = make_geometry(rows, runner, n_clusters=K)
    settings = Settings(N_SPLITS, max_iter=4, key=stream_key(3))
    return split_labels(rows, labels, n_clusters=K, settings=settings, geometry=geometry, runner=runner), labels


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
        settings = Settings(N_SPLITS, max_iter=2)
        run = partial(
            split_labels, table, np.arange(N) % K, n_clusters=K, settings=settings, geometry=geometry, runner=runner
        )
        if damaged:
            with Path(table.path).open("rb+") as file:
                file.truncate(N * 10)
            with pytest.raises(StoreError):
                run()
        else:
            run()
        assert list((tmp_path / "work").iterdir()) == []


def test_rows_in_memory_are_split_as_those_of_a_file(table: NpyRows) -> None:
    with Runner(n_threads=1) as runner:
        outcome, _ = split(ArrayRows(table.read(0, N)), runner)
        expected, _ = split(table, runner)
    assert outcome.centroids.tobytes() == expected.centroids.tobytes()
    assert outcome.inertia == expected.inertia


def one_by_one(
    rows: np.ndarray, labels: np.ndarray, distances: np.ndarray, settings: Settings, geometry: Geometry
) -> Parts:
    """Sort all members of each cluster at once with NumPy, and put them into a k-means of their own."""
    parts, found = np.full(len(labels), -1, np.int32), np.full(len(labels), np.nan, np.float32)
    centroids = np.full((K, N_SPLITS, rows.shape[1]), np.nan, np.float32)
    for c in range(K):
        members = np.flatnonzero(labels == c)
        members = members[np.lexsort((members, distances[members]))]
        if len(members):
            own = replace(settings, key=stream_key(settings.key, c))
            fit = fit_groups(
                rows[members], np.array([0, len(members)]), [own], geometry=geometry, memory_budget=1 << 28,
                batch_bytes=1 << 20,
            )  # fmt: skip
            centroids[c], parts[members], found[members] = fit.centroids, c * N_SPLITS + fit.labels, fit.distances
    return Parts(centroids.reshape(K * N_SPLITS, -1), parts, found, float(np.nansum(found.astype("f8"))))


@pytest.mark.parametrize(("at_once", "chunk_rows"), [(10_000, 500), (300, 64), (97, 4000)])
def test_rows_come_together_and_go_back_in_shares_of_any_size(
    at_once: int, chunk_rows: int, table: NpyRows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a subset, with a cluster of half of it, one without rows, and distances that are often the same."""
    monkeypatch.setattr(regroup, "_LEAST_RUN", 1)
    monkeypatch.setattr(regroup, "_COPIED_BYTES", 5 * 4 * 7)
    for module in (external_sort, regroup):
        monkeypatch.setattr(module, "rows_at_once", lambda runner: at_once)
    rng = np.random.default_rng(1)
    labels, distances = rng.integers(0, K, N), rng.integers(0, 9, N).astype("f4")
    labels[: N // 2], labels[labels == 4] = 7, 3
    labels[rng.integers(0, N, N // 5)] = -1
    distances[labels < 0] = np.nan
    rows, settings = SubsetRows(table, np.flatnonzero(labels >= 0)), Settings(N_SPLITS, max_iter=2, key=stream_key(3))
    with Runner(n_threads=2, memory_limit=400 << 20) as runner:
        geometry = make_geometry(rows, runner, n_clusters=K)
        found = split_labels(
            rows, labels, distances, n_clusters=K, settings=settings, geometry=geometry, runner=runner,
            chunk_rows=chunk_rows,
        )  # fmt: skip
        expected = one_by_one(table.read(0, N), labels, distances, settings, geometry)
    for name in ("centroids", "labels", "distances"):
        assert getattr(found, name).tobytes() == getattr(expected, name).tobytes()


@pytest.mark.parametrize("altered", ["centroids", "found", None])
def test_clusters_that_were_split_are_not_split_again(
    altered: str | None, table: NpyRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_module, "_BATCHES_PER_ROUND", 1)
    n_split: list[int] = []
    n_done: list[int] = []

    def counted(values: np.ndarray, bounds: np.ndarray, *args: Any, **how: Any) -> Any:
        n_split.append(len(bounds) - 1)
        return fit_groups(values, bounds, *args, **how)

    def stop(done: int, total: int) -> None:
        n_done.append(done)
        if done > K // 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(split_module, "fit_groups", counted)
    labels, work = np.random.default_rng(1).integers(0, K, N), tmp_path / "work"
    with Runner(n_threads=2, work_dir=work) as runner:
        how: dict[str, Any] = {
            "n_clusters": K, "settings": Settings(N_SPLITS, max_iter=4, key=stream_key(3)), "runner": runner,
            "geometry": make_geometry(table, runner, n_clusters=K),
        }  # fmt: skip
        expected = split_labels(table, labels, **how)
        how["checkpoints"] = Checkpoints(work, "run", every=0)
        with pytest.raises(KeyboardInterrupt):
            split_labels(table, labels, report=stop, **how)
        sweep_scratch(work)
        n_split.clear()
        if altered is not None:
            with (work / f"level_1-split.{altered}").open("rb+") as file:
                file.seek(200)  # of the first cluster
                file.write(b"x")
        found = split_labels(table, labels, **how)
    n_left, n_split_again = K - n_done[-1], sum(n_split)
    assert n_split_again == n_left if altered is None else n_left < n_split_again < K
    assert found.labels.tobytes() == expected.labels.tobytes()
    assert found.centroids.tobytes() == expected.centroids.tobytes()
    assert list(work.iterdir()) == []
