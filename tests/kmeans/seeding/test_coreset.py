"""Groups of neighbors, their assignment to centers, and seedings that use all distinct points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.kmeans.seeding import coreset
from hkm_dask.kmeans.seeding.coreset import (
    _take_turns,
    greedy_kmeans_plusplus,
    group_points,
    n_trials_for,
    seed_from_points,
)
from hkm_dask.search.geometry import Geometry


def chosen_points(points: np.ndarray, weights: np.ndarray, k: int, key: int) -> np.ndarray:
    """Centers that the greedy walk chooses with as many trials as by default."""
    return greedy_kmeans_plusplus(points, weights, k, key=key, n_trials=n_trials_for(k), n_threads=1)[0]


def blobs(n: int, d: int, centers: int = 9, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) + 9 * rng.normal(size=(centers, d))[rng.integers(centers, size=n)]).astype("f4")


def geometry_of(points: np.ndarray) -> Geometry:
    return Geometry(points.mean(axis=0), float(np.abs(points).max()), 10 * len(points))


def chosen(points: np.ndarray, weights: np.ndarray, k: int, runner: Runner, **settings: object) -> np.ndarray:
    """Centers without Lloyd iterations."""
    return seed_from_points(
        SharedArray(array=points),
        weights,
        k,
        geometry=geometry_of(points),
        key=3,
        runner=runner,
        n_iterations=0,
        **settings,
    )[0]


def inertia(points: np.ndarray, centroids: np.ndarray) -> float:
    return float(((points[:, None] - centroids[None]) ** 2).sum(2).min(1).sum())


def turns_by_hand(left: list[list[float]], draws: np.ndarray) -> list[int]:
    """What `take_turns` does, where every group was walked as far as it has points."""
    taken = [1] * len(left)
    for row in draws[len(left) :]:
        current = np.array([values[n - 1] for values, n in zip(left, taken, strict=True)])
        if current.sum() == 0:
            break
        drawn = [int(np.searchsorted(np.cumsum(current), u * current.sum(), side="right")) for u in row]
        gains = [left[g][taken[g] - 1] - left[g][taken[g]] for g in drawn]
        taken[drawn[int(np.argmax(gains))]] += 1
    return taken


@given(st.data())
def test_turns_are_taken_by_what_is_left(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    left = [[*np.sort(rng.random(n - 1))[::-1].tolist(), 0.0] for n in lengths]
    draws = rng.random((data.draw(st.integers(len(left), 60)), data.draw(st.integers(1, 4))))
    taken = _take_turns([np.array(values) for values in left], draws)
    assert taken.tolist() == turns_by_hand(left, draws)
    assert taken.sum() == min(len(draws), sum(lengths))
    # Walked less far, it says so wherever it matters, and never where it does not.
    cut = [np.array(values[: data.draw(st.integers(1, n))]) for values, n in zip(left, lengths, strict=True)]
    estimate = _take_turns(cut, draws)
    if (estimate <= [len(values) for values in cut]).all():
        assert estimate.tolist() == taken.tolist()


def test_sparse_groups_get_more_centers_than_their_share_of_the_points(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    dense, sparse = 0.05 * rng.normal(size=(1600, 3)), 5 + rng.normal(size=(200, 3))
    points = np.concatenate([dense, sparse]).astype(np.float32)
    weights = np.ones(len(points), np.int64)
    whole = (chosen(points, weights, 150, runner)[:, 0] > 2).sum()
    monkeypatch.setattr(coreset, "GROUP_POINTS", 300)
    grouped = (chosen(points, weights, 150, runner)[:, 0] > 2).sum()
    assert whole > 100  # of 150, though they are a ninth of the points
    assert abs(int(grouped) - int(whole)) < 12


@pytest.mark.parametrize("n", [10, 100, 101, 730])
def test_every_point_is_in_one_group_of_the_size(n: int) -> None:
    points = blobs(n, 5)
    groups = group_points(points, 100, key=1, geometry=geometry_of(points))
    assert max(map(len, groups)) <= 100
    assert sorted(np.concatenate(groups).tolist()) == list(range(n))
    repeated = group_points(points, 100, key=1, geometry=geometry_of(points))
    assert [g.tolist() for g in groups] == [g.tolist() for g in repeated]


def test_points_in_one_place_are_grouped_all_the_same() -> None:
    points = np.ones((250, 3), np.float32)
    groups = group_points(points, 100, key=1, geometry=geometry_of(points))
    assert sorted(np.concatenate(groups).tolist()) == list(range(250))
    assert max(map(len, groups)) <= 100


def test_groups_hold_neighbors() -> None:
    points = blobs(600, 4, centers=3)
    groups = group_points(points, 250, key=1, geometry=geometry_of(points))
    within = sum(float(((points[g] - points[g].mean(0)) ** 2).sum()) for g in groups)
    assert within < 0.7 * float(((points - points.mean(0)) ** 2).sum())


@pytest.mark.parametrize("d", [3, 20])
def test_walks_in_groups_are_about_as_good_as_one(d: int, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    points, weights = blobs(900, d, centers=40), np.random.default_rng(0).integers(1, 5, 900)
    whole = inertia(points, chosen(points, weights, 90, runner))
    monkeypatch.setattr(coreset, "GROUP_POINTS", 250)
    grouped = chosen(points, weights, 90, runner)
    assert len(np.unique(grouped, axis=0)) == 90
    assert inertia(points, grouped) < 1.15 * whole
    np.testing.assert_array_equal(
        chosen(points, weights, 90, runner, whole=True), chosen(points, weights, 90, runner, whole=True)
    )


def test_groups_with_few_distinct_points_leave_their_share_to_others(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    copies = np.repeat(rng.normal(size=(3, 4)), 60, axis=0) + 50
    points = np.concatenate([copies, rng.normal(size=(120, 4))]).astype(np.float32)
    monkeypatch.setattr(coreset, "GROUP_POINTS", 70)
    weights = np.ones(len(points), np.int64)
    actual = chosen(points, weights, 110, runner)
    assert not np.isnan(actual).any()
    assert len(np.unique(actual, axis=0)) == 110
    actual = chosen(points, weights, 140, runner)  # there are 123
    assert np.isnan(actual[:, 0]).sum() == 17
    assert len(np.unique(actual[:123], axis=0)) == 123


def test_points_without_weight_are_never_chosen(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    points, weights = blobs(300, 3), np.arange(300) % 2
    monkeypatch.setattr(coreset, "GROUP_POINTS", 60)
    actual = {row.tobytes() for row in chosen(points, weights, 80, runner)}
    assert actual <= {row.tobytes() for row in points[1::2]}


def test_an_outlier_does_not_make_the_others_one(runner: Runner) -> None:
    points = np.random.default_rng(0).normal(size=(400, 32)).astype(np.float32)
    points[7] = 1e6
    actual = chosen_points(points, np.ones(400, np.int64), 100, key=stream_key(0))
    assert len(set(actual.tolist())) == 100
    assert 7 in actual


@pytest.mark.parametrize("d", [8, 32])
@pytest.mark.parametrize("value", [1e3, 1e7, 1e12, 1e17])
@pytest.mark.parametrize("n_far", [1, 5])
def test_far_points_leave_the_others_to_be_told_apart(n_far: int, value: float, d: int) -> None:
    points, weights = blobs(60, d, centers=12), np.ones(60, np.int64)
    plain = inertia(points, points[chosen_points(points, weights, 12, key=stream_key(0))])
    far = (value * np.random.default_rng(1).normal(size=(n_far, d))).astype(np.float32)
    table = np.concatenate([points, far])
    actual = chosen_points(table, np.ones(len(table), np.int64), 12 + n_far, key=stream_key(0))
    assert set(range(60, 60 + n_far)) <= set(actual.tolist())
    assert inertia(points, points[actual[actual < 60]]) < 1.5 * plain


def test_what_the_coarse_grid_takes_for_one_is_told_apart() -> None:
    rng = np.random.default_rng(0)
    points = np.repeat(rng.normal(size=(30, 32)), 10, axis=0)
    points = (points + 1e-5 * rng.normal(size=points.shape)).astype(np.float32)
    actual = chosen_points(points, np.ones(300, np.int64), 200, key=stream_key(0))
    assert len(np.unique(points[actual], axis=0)) == 200


def test_coarse_distances_are_the_exact_ones_to_the_grid() -> None:
    points = blobs(300, 50).astype(np.float64)
    centered = points - points.mean(0)
    largest = float(np.linalg.norm(centered, axis=1).max())
    actual = coreset._coarse_pairs(centered, largest, 2)
    exact = ((points[:, None] - points[None]) ** 2).sum(2)
    np.testing.assert_allclose(actual, exact, atol=4 * np.sqrt(50) * largest * np.sqrt(exact.max()) / 32000)
    assert (np.diag(actual) == 0).all()
