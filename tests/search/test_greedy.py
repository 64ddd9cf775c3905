"""The greedy walk, against a simple NumPy version with the same draws."""

import math

import numpy as np
import pytest

from hkm_dask.compute.keyed_random import random_uniform, stream_key
from hkm_dask.kmeans.seeding import coreset
from hkm_dask.kmeans.seeding.coreset import greedy_kmeans_plusplus, n_trials_for
from hkm_dask.search.cpu import greedy


def chosen_points(points: np.ndarray, weights: np.ndarray, k: int, key: int) -> np.ndarray:
    """Centers that the greedy walk chooses with as many trials as by default."""
    return greedy_kmeans_plusplus(points, weights, k, key=key, n_trials=n_trials_for(k), n_threads=1)[0]


def blobs(n: int, d: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) + 4 * rng.normal(size=(7, d))[rng.integers(0, 7, n)]).astype(np.float32)


def greedy_in_numpy(points: np.ndarray, weights: np.ndarray, k: int, draws: np.ndarray) -> list[int]:
    wide = points.astype(np.float64)
    between = ((wide[:, None] - wide[None]) ** 2).sum(2)
    mass = weights.astype(np.float64)
    chosen = [int(np.searchsorted(np.cumsum(mass), draws[0, 0] * mass.sum(), side="right"))]
    closest = between[chosen[0]]
    while len(chosen) < k and (closest > 0).any():
        reach = np.cumsum(mass * closest)
        trials = np.searchsorted(reach, draws[len(chosen)] * reach[-1], side="right")
        best = min(trials, key=lambda t: (mass * np.minimum(closest, between[t])).sum())
        chosen.append(int(best))
        closest = np.minimum(closest, between[best])
    return chosen


@pytest.mark.parametrize("d", [1, 3, 15, 16, 40])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_walk_equals_numpy_on_the_same_draws(d: int, weighted: bool) -> None:
    for seed in range(3):
        points = blobs(150, d, seed)
        weights = np.random.default_rng(seed).integers(1, 50, 150) if weighted else np.ones(150, np.int64)
        k, key = 20, stream_key(seed, "walk")
        n_trials = 2 + int(math.log(k))
        draws = random_uniform(key, np.arange(k * n_trials)).reshape(k, n_trials)
        actual = chosen_points(points, weights, k, key=key)
        assert actual.tolist() == greedy_in_numpy(points, weights, k, draws)


@pytest.mark.parametrize("d", [2, 20])
def test_far_from_the_origin_nothing_is_lost(d: int) -> None:
    points = blobs(100, d)
    near = chosen_points(points, np.ones(100, np.int64), 15, key=5)
    moved = (np.round(points * 256) / 256 + 1024).astype(np.float32)
    exact = np.round(points * 256) / 256
    assert chosen_points(exact.astype(np.float32), np.ones(100, np.int64), 15, key=5).tolist() == (
        chosen_points(moved, np.ones(100, np.int64), 15, key=5).tolist()
    )
    assert len(set(near.tolist())) == 15


@pytest.mark.parametrize("d", [2, 20])
def test_with_and_without_a_table_the_choice_is_the_same(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    points, weights = blobs(120, d), np.arange(1, 121)
    expected = chosen_points(points, weights, 30, key=9).tolist()
    monkeypatch.setattr(coreset, "_MATRIX_POINTS", 0 if d == 20 else coreset._MATRIX_POINTS)
    monkeypatch.setattr(coreset, "_TABLE_FEATURES", 0 if d == 2 else coreset._TABLE_FEATURES)
    assert chosen_points(points, weights, 30, key=9).tolist() == expected


@pytest.mark.parametrize("d", [2, 20])
def test_it_ends_when_no_point_is_left(d: int) -> None:
    points = np.repeat(blobs(6, d), [1, 5, 2, 9, 1, 3], axis=0)
    chosen = chosen_points(points, np.ones(21, np.int64), 15, key=1)
    assert len(chosen) == 6
    assert len(np.unique(points[chosen], axis=0)) == 6
    assert chosen_points(points[:1], np.ones(1, np.int64), 4, key=1).tolist() == [0]


@pytest.mark.parametrize("d", [2, 20])
def test_all_of_k_distinct_points_are_chosen(d: int) -> None:
    points = blobs(40, d)
    assert sorted(chosen_points(points, np.ones(40, np.int64), 40, key=2).tolist()) == list(range(40))


def test_a_point_without_weight_is_never_chosen() -> None:
    points, weights = blobs(60, 3), np.arange(60) % 2
    assert (chosen_points(points, weights, 30, key=2) % 2 == 1).all()


def test_pair_distances_are_those_of_the_grid() -> None:
    grid = np.random.default_rng(0).integers(-(2**20), 2**20, (9, 5)).astype(np.float64)
    norms, out = (grid * grid).sum(1), np.empty((4, 9), np.float32)
    greedy.pair_distances(grid[:4] @ grid.T, norms[:4], norms, 2.0**-20, out)
    wide = grid * 2.0**-20
    np.testing.assert_array_equal(out, ((wide[:4, None] - wide[None]) ** 2).sum(2).astype(np.float32))
