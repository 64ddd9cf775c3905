"""Searches are created once, belong to their arrays and geometry, and use the fastest form."""

from __future__ import annotations

import numpy as np
import pytest

from hkm_dask.compute.partition import Part
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows
from hkm_dask.search import int16_gemm, tuning
from hkm_dask.search.cpu import engine as cpu
from hkm_dask.search.cpu.engine import CpuIndex, choose_head
from hkm_dask.search.engine import RowTile
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.worker import worker_engine
from tests.search.inputs import geometry_of, spectrum


def index_of(
    rows: np.ndarray, centroids: SharedArray, geometry: Geometry, before: SharedArray | None = None
) -> CpuIndex:
    """The index a pass over these rows would use."""
    engine, part = worker_engine(), Part(ArrayRows(rows), (0, len(rows)), 1 << 30)
    assignment = engine.unknown(len(rows))
    tile = RowTile(0, len(rows), rows, assignment.labels, assignment.distances, np.empty(0, np.int64))
    index = engine.search(part, geometry, "test", assignment).index(tile, centroids, before)
    assert isinstance(index, CpuIndex)
    return index


def test_an_index_is_made_once_and_belongs_to_its_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    n_head = 16
    monkeypatch.setattr(cpu, "choose_head", lambda *args, **kwargs: n_head)
    rows = spectrum(300, 24)
    shared, other = SharedArray(array=rows[:70]), SharedArray(array=rows[:70].copy())
    geometry, turned = geometry_of(rows), geometry_of(rows, np.eye(24))
    first = index_of(rows, shared, geometry)
    assert first.n_head == 16
    assert index_of(rows, shared, geometry) is first
    actual = index_of(rows, shared, turned)
    assert actual is not first
    assert actual.geometry is turned
    assert index_of(rows, other, geometry) is not first


def test_a_new_array_at_an_old_address_is_not_taken_for_the_old_one() -> None:
    rows = spectrum(300, 24)
    geometry = geometry_of(rows)
    for i in range(20):  # the address of a dead array is often used again
        index = index_of(rows, SharedArray(array=rows[i : i + 5].copy()), geometry)
        np.testing.assert_array_equal(index.centroids, rows[i : i + 5])


def test_the_head_chosen_is_the_one_that_was_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = spectrum(500, 96)
    centroids, geometry = spectrum(80, 96, 1), geometry_of(rows)
    unknown = np.full(500, -1, np.int32), np.full(500, np.inf)
    monkeypatch.setattr(int16_gemm, "COLUMNS", 16)
    for fastest in (0, 16, 48, 96):
        tried = []

        def trial(search: CpuIndex, *args: object, fastest: int = fastest, tried: list[int] = tried) -> float:
            tried.append(search.n_head)
            return 1.0 + abs(search.n_head - fastest) if search.n_head else 2.0 * (fastest > 0) * 99

        monkeypatch.setattr(cpu, "search_seconds", trial)
        assert choose_head(rows, *unknown, centroids, geometry, kept=True) == fastest
        assert set(tried) <= {0, 16, 32, 48, 96}
    monkeypatch.undo()
    assert choose_head(rows, *unknown, centroids, geometry, kept=False) in (0, 96, *tuning._HEADS)
    assert choose_head(rows[:20], *unknown, centroids, geometry, kept=True) == 0
    assert choose_head(rows, *unknown, centroids, Geometry(geometry.origin, 1.0, 500), kept=True) == 0


def test_a_head_is_as_many_columns_as_are_multiplied_at_once_or_all() -> None:
    tried = []

    def seconds(n_head: int) -> float:
        tried.append(n_head)
        return abs(n_head - 180.0) if n_head else 999.0

    assert tuning.best_head(400, seconds, columns=64) == 192
    assert set(tried) == {0, 64, 128, 192, 400}


def test_what_moved_is_found_once_and_searched_alone() -> None:
    rows = spectrum(300, 24)
    before = SharedArray(array=rows[:50].copy())
    current = SharedArray(array=before.get().copy())
    current.get()[[3, 17]] += 1.0
    current.get()[5] = np.nan
    engine = worker_engine()
    moved = engine.moved(current, before)
    assert np.flatnonzero(moved).tolist() == [3, 5, 17]
    assert engine.moved(current, before) is moved
    geometry = geometry_of(rows)
    index = index_of(rows, current, geometry, before)
    assert index is index_of(rows, current, geometry, before)
    labels, distances = np.full(300, -1, np.int32), np.full(300, np.inf)
    index.nearest(rows, labels, distances)
    exact = ((rows[:, None].astype(np.float64) - current.get()[[3, 17]]) ** 2).sum(2)
    np.testing.assert_array_equal(labels, np.array([3, 17])[exact.argmin(1)])
