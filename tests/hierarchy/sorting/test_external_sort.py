"""Sorting in shares, against NumPy's sort of everything; with ties, empty clusters and a dominant one."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from hkm_dask.compute.memory import budget_within
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.hierarchy import level_arrays
from hkm_dask.hierarchy.sorting import external_sort, members
from hkm_dask.hierarchy.sorting.external_sort import Records, Run, ScratchRun, find_splitters, shares_between

KEYS = st.sampled_from([0.0, 0.5, 0.5000001, 1.0, 3e300])
ROWS = st.lists(st.tuples(st.sampled_from([0, 1, 1, 1, 1, 3]), KEYS), min_size=1, max_size=60)


def in_runs(labels: NDArray[np.int32], keys: NDArray[np.uint64], size: int) -> list[Run]:
    rows = 3 * np.arange(len(labels))  # numbers with gaps, as of rows that were picked
    packed = SharedArray(array=Records(rows, keys, labels).packed())
    return [ScratchRun(packed, low, min(low + size, len(rows))) for low in range(0, len(rows), size)]


@given(ROWS, st.integers(1, 60), st.lists(st.integers(1, 59), max_size=5))
def test_shares_hold_the_rows_of_their_places(rows: list[tuple[int, float]], size: int, cuts: list[int]) -> None:
    labels = np.array([label for label, _ in rows], np.int32)
    keys = np.array([key for _, key in rows]).view(np.uint64)
    expected = 3 * np.lexsort((keys, labels))
    places = np.unique([0, *(cut for cut in cuts if cut < len(rows)), len(rows)])
    indptr = np.cumsum([0, *np.bincount(labels, minlength=4)])
    clusters = np.searchsorted(indptr, places[1:-1], side="right") - 1
    runs = in_runs(labels, keys, size)
    with Runner(n_threads=1) as runner:
        splitters = find_splitters(
            runs, clusters.astype(np.int32), places[1:-1] - indptr[clusters], key_bits=64, n_rows=3 * len(rows),
            runner=runner, stage="sort",
        )  # fmt: skip
        with shares_between(places, splitters, runs, runner=runner, stage="sort") as shares:
            assert [share.start for share in shares] == places[:-1].tolist()
            for share in shares:
                found = share.read().rows
                assert (np.diff(found) > 0).all()
                assert found.tolist() == sorted(expected[share.start : share.stop].tolist())


def written_level(folder: Path, n: int = 6000, chunk_rows: int = 256) -> NDArray[np.int64]:
    """Labels and distances of a level, most of one cluster; gives the members as NumPy sorts them."""
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 50, n).astype(np.int32)
    labels[: n // 2] = 7
    distances = rng.integers(0, 30, n).astype(np.float32)
    distances[labels < 0] = np.nan
    level_arrays.create_row_arrays(folder, 1, n, chunk_rows)
    level_arrays.write_row_arrays(folder, labels, distances)
    order = np.lexsort((distances, labels))
    return order[labels[order] >= 0]


def sort(runner: Runner, folder: Path) -> None:
    level_arrays.write_cluster_arrays(folder, 1, np.zeros((50, 2), np.float32), [np.ones(1)], runner)


def sorted_on(runner: Runner, folder: Path) -> NDArray[np.int64]:
    sort(runner, folder)
    found: NDArray[np.int64] = level_arrays.read_whole(folder / "members_1")
    return found


@pytest.mark.parametrize(("at_once", "chunk_rows"), [(10_000, 8192), (700, 8192), (700, 300), (300, 1000)])
def test_members_are_sorted_in_shares_of_any_size(
    at_once: int, chunk_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (external_sort, members):
        monkeypatch.setattr(module, "n_at_once", lambda n_rows, runner: at_once)
    monkeypatch.setattr(level_arrays.layout, "chunk_rows", lambda n_rows, row_bytes: chunk_rows)
    expected = written_level(tmp_path / "level_1")
    with Runner(n_threads=2, work_dir=tmp_path / "work") as runner:
        np.testing.assert_array_equal(sorted_on(runner, tmp_path / "level_1"), expected)
    assert not list(tmp_path.glob("work/*"))


def test_the_memory_of_a_sort_is_that_of_its_shares(tmp_path: Path) -> None:
    """Four times the rows take hardly more, though each has eight bytes in the members alone."""
    peaks = []
    with Runner(n_threads=1, memory_limit=400 << 20, work_dir=tmp_path) as runner:
        runner.memory_budget = budget_within(400 << 20) // 8
        for n in (70_000, 140_000, 560_000):  # the first one imports and compiles
            written_level(tmp_path / f"{n}" / "level_1", n, 1 << 16)
            tracemalloc.start()
            sort(runner, tmp_path / f"{n}" / "level_1")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[2] < 1.2 * peaks[1] < 12 * 560_000
