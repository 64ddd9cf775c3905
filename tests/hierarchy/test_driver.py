"""Workers sort and choose, and the driver of a cluster holds and sends nothing that grows with the rows."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from distributed.comm.tcp import TCP

import hkm_dask as hkm
from hkm_dask.compute.cluster.cluster_runner import ClusterRunner
from hkm_dask.hierarchy import candidates, level_arrays
from hkm_dask.hierarchy.build import write_hierarchy
from hkm_dask.hierarchy.candidates import choose
from hkm_dask.hierarchy.sorting import external_sort, members
from tests.compute.conftest import two_processes, workers
from tests.hierarchy.sorting.test_external_sort import sorted_on, written_level
from tests.hierarchy.test_candidates import by_sorting, picked

__all__ = ["two_processes", "workers"]

LEVEL = {"n_clusters": 40, "max_iter": 2, "init": "random"}


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"n_resamples": 1}, {"n_resamples": 0, "n_splits": 3}], ids=["resample", "split"])
def test_neither_memory_nor_messages_of_the_driver_grow_with_the_rows(
    how: dict[str, int], workers: ClusterRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels, distances, members and what is resampled were 16 bytes a row, and what is split 40.

    The scheduler is in this process, too.
    """
    config = hkm.Config(levels=[hkm.Level(**LEVEL, **how)])
    sizes: list[int] = []
    write = TCP.write

    async def weighed(self: TCP, *args: object, **kwargs: object) -> int:
        n_bytes: int = await write(self, *args, **kwargs)  # type: ignore[arg-type]
        sizes.append(n_bytes)
        return n_bytes

    monkeypatch.setattr(TCP, "write", weighed)
    monkeypatch.setattr("hkm_dask.compute.runner._ONE_TASK_BYTES", 0)  # passes go over all workers
    rng, peaks, largest = np.random.default_rng(0), [], []
    for n in (1000, 20_000, 200_000):  # the first one imports
        rows = rng.normal(size=(n, 4)).astype("f4")
        pool = hkm.ingest(rows, tmp_path / f"{n}.zarr").path
        del rows
        sizes.clear()
        tracemalloc.start()
        write_hierarchy(pool, tmp_path / f"tree-{n}.zarr", config, client=workers.client)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        largest.append(max(sizes))
    stored = level_arrays.read_whole(tmp_path / "tree-200000.zarr" / "level_1" / "members_1")
    assert np.sort(stored).tolist() == list(range(200_000))
    print(peaks, largest)
    assert peaks[2] - peaks[1] < 360_000  # not two bytes a row; what Dask notes of more tasks takes some
    assert max(largest) < 50_000


def test_workers_sort_to_the_same_members(
    workers: ClusterRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (external_sort, members):
        monkeypatch.setattr(module, "n_at_once", lambda n_rows, runner: 1000)
    monkeypatch.setattr(level_arrays.layout, "chunk_rows", lambda n_rows, row_bytes: 512)
    expected = written_level(tmp_path / "level_1")
    np.testing.assert_array_equal(sorted_on(workers, tmp_path / "level_1"), expected)
    assert not list(Path(str(workers.array_store.folder)).glob("shares-*"))


def test_workers_choose_the_same_and_leave_nothing(workers: ClusterRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (candidates, external_sort):
        monkeypatch.setattr(module, "rows_at_once", lambda runner: 300)
    rng = np.random.default_rng(0)
    labels, keys = rng.integers(-1, 5, 3000).astype(np.int32), rng.integers(0, 40, 3000) / 8
    labels[:1500] = 2
    some = picked(labels, keys, 400, 3, workers.array_store)
    numbers = choose(some, 400, 3000, workers)
    expected = by_sorting(labels, keys, 400)
    assert numbers.read().tolist() == expected
    assert [numbers.position(row) for row in (0, 700, 3000)] == np.searchsorted(expected, [0, 700, 3000]).tolist()
    for scratch in (some, numbers):
        scratch.delete()
    assert not list(Path(str(workers.array_store.folder)).glob("*.npy"))
