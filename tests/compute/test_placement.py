"""Rows copied together: without row numbers in the graph, and without a file after a failure."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hkm_dask.compute import placement
from hkm_dask.compute.block_cache import forget, host_cache
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.compute.memory import StageBytes
from hkm_dask.compute.placement import discard, gather
from hkm_dask.compute.runner import Runner
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows
from hkm_dask.errors import StoreError
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.planning.phases import spent_so_far

N = 20_000
INDEX = np.flatnonzero(np.random.default_rng(0).uniform(size=N) < 0.4)


@pytest.fixture
def table(tmp_path: Path) -> NpyRows:
    np.save(tmp_path / "rows.npy", np.arange(3 * N, dtype=np.float32).reshape(N, 3))
    return NpyRows(tmp_path / "rows.npy")


def small_runner(work_dir: Path) -> Runner:
    """A runner on threads for which 100 KB of rows are too many to hold."""
    runner = Runner(n_threads=2, work_dir=work_dir)
    runner.memory_budget = 100_000
    return runner


def test_few_rows_are_gathered_in_memory(table: NpyRows) -> None:
    with Runner(n_threads=2) as runner:
        rows = gather(table, INDEX, runner)
    forget(rows.key)
    assert isinstance(rows, ArrayRows)
    assert rows.origin is None
    np.testing.assert_array_equal(rows.array, table.read(0, N)[INDEX])


def test_rows_that_are_gathered_know_where_from() -> None:
    source = ArrayRows(np.zeros((N, 64), np.float16))
    with Runner(n_threads=2) as runner:
        rows = gather(source, INDEX, runner)
    forget(rows.key)
    assert isinstance(rows, ArrayRows)
    assert rows.origin is not None
    assert rows.origin[0] == source.key
    np.testing.assert_array_equal(rows.origin[1], INDEX)


def test_rows_that_leave_no_room_for_what_is_done_with_them_are_gathered_in_a_file(table: NpyRows) -> None:
    with Runner(n_threads=2) as runner:
        runner.memory_budget = 100 << 20
        for n_bytes, kind in ((90 << 20, ArrayRows), (100 << 20, NpyRows)):
            rows = gather(table, INDEX, runner, StageBytes(n_bytes))
            assert isinstance(rows, kind)
            np.testing.assert_array_equal(rows.read(0, rows.n_rows), table.read(0, N)[INDEX])
            assert host_cache.held == (rows.n_rows * rows.row_bytes if kind is ArrayRows else 0)
            forget(rows.key)
            discard(rows)


def test_many_rows_are_gathered_in_a_file(table: NpyRows, tmp_path: Path) -> None:
    with small_runner(tmp_path / "work") as runner:
        rows = gather(table, INDEX, runner)
        np.testing.assert_array_equal(rows.read(0, rows.n_rows), table.read(0, N)[INDEX])
        discard(rows)
        assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("subset", [False, True])
def test_a_chunk_with_many_rows_to_gather_is_read_once(
    subset: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 64 MiB of a pool in a chunk, those asked for were copied 16 MiB at a time: each time the chunk was read."""
    monkeypatch.setattr(placement, "_RANGE_BYTES", 20_000)
    values = np.arange(30 * N, dtype=np.float32).reshape(-1, 3)
    pool = ingest(values, tmp_path / "pool.zarr", chunk_mb=1)
    rows: Rows = SubsetRows(pool.rows(), np.arange(0, 10 * N, 2)) if subset else pool.rows()
    numbers = np.flatnonzero(np.random.default_rng(0).uniform(size=rows.n_rows) < 0.9)
    with small_runner(tmp_path / "work") as runner:
        before = spent_so_far()
        gathered = gather(rows, numbers, runner)
        n_read = (spent_so_far() - before).read
        np.testing.assert_array_equal(gathered.read(0, len(numbers)), values[:: 2 if subset else 1][numbers])
        discard(gathered)
    n_positions = 2 * 3 * 18 * 20_000  # where numbers of each chunk begin and end, by halves, with an .npy's header
    assert n_read < 1.3 * values.nbytes + n_positions


@pytest.mark.faults
def test_a_gathering_that_fails_leaves_no_file(table: NpyRows, tmp_path: Path) -> None:
    with Path(table.path).open("rb+") as file:
        file.truncate(6 * N)
    with small_runner(tmp_path / "work") as runner:
        with pytest.raises(StoreError):
            gather(table, INDEX, runner)
        assert list((tmp_path / "work").iterdir()) == []


def test_no_row_numbers_travel_with_the_tasks(
    table: NpyRows, workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    run = workers.map

    def weighed(task: Callable[[Any], Any], items: Sequence[Any], *, stage: str) -> list[Any]:
        sent.extend(len(pickle.dumps((task, item))) for item in items)
        return run(task, items, stage=stage)

    monkeypatch.setattr(workers, "map", weighed)
    rows = gather(table, INDEX, workers)
    np.testing.assert_array_equal(rows.read(0, rows.n_rows), table.read(0, N)[INDEX])
    discard(rows)
    assert sent
    assert max(sent) < 2000 < 8 * len(INDEX) / workers.n_threads


def test_chosen_rows_are_gathered_by_the_workers(workers: ClusterRunner, tmp_path: Path) -> None:
    array = np.random.default_rng(1).normal(size=(500, 4)).astype("f4")
    np.save(tmp_path / "rows.npy", array)
    index = np.flatnonzero(np.random.default_rng(0).uniform(size=500) < 0.3)
    rows = gather(NpyRows(tmp_path / "rows.npy"), index, workers)
    assert isinstance(rows, NpyRows)
    np.testing.assert_array_equal(rows.read(0, rows.n_rows), array[index])
    discard(rows)
    assert not Path(rows.path).exists()
