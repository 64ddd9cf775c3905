"""Searches are made once, belong to their arrays and geometry, and take the form that was fastest."""

from __future__ import annotations

import numpy as np
import pytest

from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.kmeans.search import tuning
from hkm_dask.kmeans.search.centroid_index import CentroidIndex
from hkm_dask.kmeans.search.geometry import Geometry
from hkm_dask.kmeans.search.tuning import choose_head, moved_from, search_for


def frame_of(rows: np.ndarray, basis: np.ndarray | None = None) -> Geometry:
    """A geometry with the principal directions, or a basis of one's own."""
    wide = rows.astype(np.float64) - rows.mean(0, dtype=np.float64)
    basis = np.linalg.eigh(wide.T @ wide)[1][:, ::-1] if basis is None else basis
    basis = np.ascontiguousarray(basis, np.float32)
    error = float(np.linalg.norm(basis.T.astype(np.float64) @ basis - np.eye(len(basis)), 2))
    mean = rows.mean(0, dtype=np.float64).astype(np.float32)
    return Geometry(mean, float(np.abs(rows).max()), len(rows), SharedArray(array=basis), error)


def spectrum(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    return ((rng.normal(size=(n, d)) * 0.9 ** np.arange(d)) @ turn + 1.0).astype(np.float32)


def test_a_search_is_made_once_and_belongs_to_its_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = spectrum(300, 24)
    shared, other = SharedArray(array=rows[:50]), SharedArray(array=rows[:50].copy())
    geometry, turned = frame_of(rows), frame_of(rows, np.eye(24))
    first = search_for(shared, geometry, 8)
    assert search_for(shared, geometry, 8) is first
    assert search_for(shared, geometry, 0) is not first
    found = search_for(shared, turned, 8)
    assert found is not first
    assert found.geometry is turned
    assert search_for(other, geometry, 8) is not first
    assert len(tuning._made) <= tuning._KEPT


def test_a_new_array_at_an_old_address_is_not_taken_for_the_old_one() -> None:
    rows = spectrum(300, 24)
    geometry = frame_of(rows)
    for i in range(20):  # the address of a dead array is often used again
        search = search_for(SharedArray(array=rows[i : i + 5].copy()), geometry, 0)
        np.testing.assert_array_equal(search.centroids, rows[i : i + 5])


def test_the_head_chosen_is_the_one_that_was_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = spectrum(500, 96)
    shared, geometry = SharedArray(array=spectrum(80, 96, 1)), frame_of(rows)
    unknown = np.full(500, -1, np.int32), np.full(500, np.inf)
    for fastest in (0, 16, 48, 96):
        tried = []

        def trial(search: CentroidIndex, *args: object, fastest: int = fastest, tried: list[int] = tried) -> float:
            tried.append(search.head)
            return 1.0 + abs(search.head - fastest) if search.head else 2.0 * (fastest > 0) * 99

        monkeypatch.setattr(tuning, "_trial", trial)
        assert choose_head(rows, *unknown, shared, geometry, kept=True) == fastest
        assert set(tried) <= {0, 16, 32, 48, 96}
    monkeypatch.undo()
    assert choose_head(rows, *unknown, shared, geometry, kept=False) in (0, 96, *tuning._HEADS)
    assert choose_head(rows[:20], *unknown, shared, geometry, kept=True) == 0
    assert choose_head(rows, *unknown, shared, Geometry(geometry.origin, 1.0, 500), kept=True) == 0


def test_what_moved_is_found_once_and_searched_alone() -> None:
    rows = spectrum(300, 24)
    before = SharedArray(array=rows[:50].copy())
    now = SharedArray(array=before.get().copy())
    now.get()[[3, 17]] += 1.0
    now.get()[5] = np.nan
    moved = moved_from(now, before)
    assert np.flatnonzero(moved).tolist() == [3, 5, 17]
    assert moved_from(now, before) is moved
    geometry = frame_of(rows)
    search = search_for(now, geometry, 8, before)
    assert search is search_for(now, geometry, 8, before)
    labels, distances = np.full(300, -1, np.int32), np.full(300, np.inf)
    search.nearest(rows, labels, distances)
    exact = ((rows[:, None].astype(np.float64) - now.get()[[3, 17]]) ** 2).sum(2)
    np.testing.assert_array_equal(labels, np.array([3, 17])[exact.argmin(1)])
