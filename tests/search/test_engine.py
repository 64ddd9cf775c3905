"""A pass over a part: tiles hold the rows, cached labels are used once, the form of the search does not matter."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.partition import Part
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows
from hkm_dask.search.cpu import engine as cpu
from hkm_dask.search.cpu.tally import counting
from hkm_dask.search.engine import Assignment, RowTile, fold
from hkm_dask.search.geometry import Geometry
from hkm_dask.search.worker import worker_engine
from tests.search.inputs import geometry_of, rotation

BUDGET = 1 << 30


def turned(rows: np.ndarray, seed: int) -> Geometry:
    return geometry_of(rows, rotation(np.random.default_rng(seed), rows.shape[1]))


def pairs_of_centroids(n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows near centroids that come in close pairs, so that the second best is almost the best."""
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(k, d)).astype(np.float32)
    centroids[k // 2 :] = centroids[: k // 2] + np.float32(0.05)
    rows = centroids[rng.integers(0, k, n)] + 0.01 * rng.normal(size=(n, d)).astype(np.float32)
    return rows, centroids


def brute(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    wide = rows.astype(np.float64)
    squared = [((wide - c) ** 2).sum(1) for c in centroids.astype(np.float64)]
    return np.argmin(squared, axis=0)


def find_all(part: Part, geometry: Geometry, centroids: SharedArray) -> Assignment:
    engine = worker_engine()
    assignment = engine.unknown(part.stop - part.start)
    search = engine.search(part, geometry, "test", assignment)
    fold(part, engine, assignment, lambda tile: search.nearest(tile, centroids), geometry=geometry)
    return assignment


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 299), st.integers(1, 300)), max_size=4), st.booleans())
def test_rows_that_were_gathered_are_not_rotated_again(spans: list[tuple[int, int]], all_are_kept: bool) -> None:
    rows, centroids = pairs_of_centroids(300, 48, 40)
    source, geometry = ArrayRows(rows), turned(rows, 1)
    numbers = np.flatnonzero(np.random.default_rng(len(spans)).random(300) < 0.5)
    members = ArrayRows(rows[numbers])
    members.origin = source.key, numbers
    index, engine = SharedArray(array=centroids), worker_engine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "TILE_ROWS", 64)
        patch.setattr(cpu.CpuSearch, "form", lambda *_: 16)
        kept = {number for first, n in spans for number in range(first, min(first + n, 300))}
        for first, n in [*spans, *([(0, 300)] if all_are_kept else [])]:
            find_all(Part(source, (first, min(first + n, 300)), BUDGET), geometry, index)
        with counting() as tally:
            found = find_all(Part(members, (0, len(numbers)), BUDGET), geometry, index)
        # What is made of the centroids is there already, where rows were searched before.
        rotated = tally.projected if kept or all_are_kept else tally.projected - 40 * 48 * 48
        tiles = np.split(numbers, range(64, len(numbers), 64))
        assert rotated == sum(
            len(tile) * 48 * 48 for tile in tiles if not all_are_kept and not kept.issuperset(tile.tolist())
        )
    np.testing.assert_array_equal(engine.host(found.labels), brute(rows[numbers], centroids))


@settings(max_examples=40)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(1, 25), st.sampled_from(["f2", "f4", "f8"]))
def test_tiles_are_the_rows_in_float32(sizes: list[int], tile_rows: int, dtype: str) -> None:
    bounds = np.cumsum([7, *sizes])
    array = np.random.default_rng(0).normal(size=(bounds[-1] + 3, 4)).astype(dtype)
    part = Part(ArrayRows(array), tuple(bounds.tolist()), BUDGET)
    engine, geometry = worker_engine(), Geometry(np.zeros(4, np.float32), 10.0, len(array))
    assignment, at = engine.unknown(part.stop - part.start), 7

    def consume(tile: RowTile) -> None:
        nonlocal at
        assert tile.start == at
        assert tile.stop - tile.start <= tile_rows
        assert tile.rows.dtype == np.float32
        assert tile.rows.flags.c_contiguous
        np.testing.assert_array_equal(tile.rows, array[tile.start : tile.stop].astype(np.float32))
        assert np.shares_memory(tile.labels, assignment.labels[tile.start - 7 : tile.stop - 7])
        at = tile.stop

    def nothing_to_search(tile: RowTile) -> None:
        tile.distances[:] = 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "TILE_ROWS", tile_rows)
        total = fold(part, engine, assignment, nothing_to_search, consume, geometry=geometry)
    assert at == bounds[-1]
    assert total.total() / geometry.distance_scale == bounds[-1] - 7


def test_what_is_remembered_is_found_once_by_its_own_run() -> None:
    part = Part(ArrayRows(np.zeros((9, 2), np.float32)), (0, 9), BUDGET)
    other = Part(part.rows, (0, 5), BUDGET)
    engine = worker_engine()
    assert engine.pop(part, "lloyd", "run") is None
    engine.keep(part, "lloyd", "run", "what", 10)
    assert engine.pop(part, "cells", "run") is None
    assert engine.pop(other, "lloyd", "run") is None
    assert engine.pop(part, "lloyd", "another run") is None
    assert engine.pop(part, "lloyd", "run") == "what"
    # A task that dies half way has changed what it took; whoever repeats it must begin afresh.
    assert engine.pop(part, "lloyd", "run") is None
    engine.keep(Part(part.rows, part.bounds, 5), "lloyd", "run", "too much", 10)
    assert engine.pop(part, "lloyd", "run") is None
    host_cache.drop(part.rows.key)


def test_rotated_rows_are_not_taken_from_another_geometry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "choose_head", lambda *args, **kwargs: 16)
    array, centroids = pairs_of_centroids(3000, 64, 128)
    part = Part(ArrayRows(array), (0, 3000), BUDGET)
    expected = brute(array, centroids)
    for seed in range(2):
        actual = find_all(part, turned(array, seed), SharedArray(array=centroids.copy()))
        np.testing.assert_array_equal(actual.labels, expected)
    assert any(key[0] == "operand" for key in host_cache._groups[part.rows.key])  # they were kept, so they could be
    host_cache.drop(part.rows.key)


@pytest.mark.parametrize(("n_own", "are_kept"), [(1500, True), (3000, False)])
def test_rotated_rows_are_kept_where_those_of_this_process_fit(
    n_own: int, are_kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "choose_head", lambda *args, **kwargs: 16)
    array, centroids = pairs_of_centroids(3000, 64, 128)
    part = Part(ArrayRows(array), (0, 1500), 1 << 20, n_own)  # all rows and the rotated ones: 1.4 MB
    find_all(part, turned(array, 0), SharedArray(array=centroids))
    assert any(key[0] == "operand" for key in host_cache._groups.get(part.rows.key, {})) is are_kept
    host_cache.drop(part.rows.key)


@pytest.mark.parametrize("budget", [0, 400_000, BUDGET])
@pytest.mark.parametrize("head", [0, 16, 32])
def test_streamed_or_resident_in_any_form_the_bits_are_the_same(
    budget: int, head: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "choose_head", lambda *args, **kwargs: head)
    monkeypatch.setattr(cpu, "TILE_ROWS", 500)
    array, centroids = pairs_of_centroids(3000, 64, 128)
    geometry, shared = turned(array, 0), SharedArray(array=centroids)
    np.save(tmp_path / "rows.npy", array)
    expected, actual = brute(array, centroids), []
    sources: list[Rows] = [ArrayRows(array), NpyRows(tmp_path / "rows.npy")]
    for rows in sources:
        part = Part(rows, (0, 700, 1500, 3000), budget)
        actual += [find_all(part, geometry, shared) for _ in range(2)]
        host_cache.drop(rows.key)
    for known in actual:
        np.testing.assert_array_equal(known.labels, expected)
        np.testing.assert_array_equal(known.distances, actual[0].distances)


def test_the_head_is_chosen_once_even_where_nothing_else_can_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    monkeypatch.setattr(cpu, "choose_head", lambda *args, **kwargs: chosen.append(kwargs["kept"]) or 16)
    monkeypatch.setattr(cpu, "TILE_ROWS", 500)
    array, centroids = pairs_of_centroids(3000, 64, 128)
    np.save(tmp_path / "rows.npy", array)
    rows = NpyRows(tmp_path / "rows.npy")
    part = Part(rows, tuple(range(0, 3001, 500)), 300_000)  # two of six blocks
    geometry = turned(array, 0)
    for _ in range(3):
        find_all(part, geometry, SharedArray(array=centroids.copy()))
    assert chosen == [False]
    host_cache.drop(rows.key)


def test_labels_known_before_give_upper_bounds() -> None:
    array, centroids = pairs_of_centroids(600, 64, 20)
    part, geometry, shared = (
        Part(ArrayRows(array), (0, 600), BUDGET),
        turned(array, 0),
        SharedArray(array=centroids),
    )
    engine = worker_engine()
    assignment = engine.unknown(600)
    search = engine.search(part, geometry, "test", assignment)

    def label(tile: RowTile) -> None:
        search.measure(tile, shared)
        assert np.isinf(tile.distances).all()
        tile.labels[:] = 3
        repeated = engine.search(part, geometry, "test", assignment)  # asks once what is known when its pass begins
        repeated.measure(tile, shared)
        np.testing.assert_allclose(tile.distances, ((array.astype(np.float64) - centroids[3]) ** 2).sum(1), rtol=1e-13)
        repeated.update(tile, shared)

    fold(part, engine, assignment, label, geometry=geometry)
    np.testing.assert_array_equal(assignment.labels, brute(array, centroids))
    host_cache.drop(part.rows.key)


lattice = st.tuples(st.integers(1, 25), st.integers(1, 8), st.sampled_from([1, 2, 4, 9])).flatmap(
    lambda s: st.tuples(
        *(
            hnp.arrays(np.float32, shape, elements=st.integers(-2, 2).map(float))
            for shape in [(s[0], s[2]), (s[1], s[2]), (s[1], s[2])]
        ),
        hnp.arrays(np.int8, s[1], elements=st.integers(0, 3)),
    )
)


@settings(max_examples=60)
@given(lattice)
def test_rows_are_labeled_again_from_what_moved_with_ties_to_the_lowest(
    data: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    """Some centroids stay, some move, some are lost and some are found, on a lattice where ties abound."""
    rows, before, after, fates = data
    before[fates == 2], after[fates == 3] = np.nan, np.nan
    after[fates == 0] = before[fates == 0]
    assume(not np.isnan(before).all() and not np.isnan(after).all())

    def exact(centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        squared = ((rows[:, None].astype(np.float64) - centroids) ** 2).sum(2)
        squared[np.isnan(squared)] = np.inf
        return squared.argmin(1), squared.min(1)

    part, geometry = Part(ArrayRows(rows), (0, len(rows)), 0), Geometry(rows.mean(0), 2.0, len(rows))
    labels, old = exact(before)
    engine, assignment = worker_engine(), Assignment(labels.astype(np.int32), old.copy())
    search = engine.search(part, geometry, "test", assignment)
    current, previous = SharedArray(array=after), SharedArray(array=before)
    fold(part, engine, assignment, lambda tile: search.update(tile, current, previous), geometry=geometry)
    expected = exact(after)
    np.testing.assert_array_equal(assignment.labels, expected[0])
    np.testing.assert_array_equal(assignment.distances, expected[1])
