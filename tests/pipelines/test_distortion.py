"""One-dimensional k-means, against SciPy for single clusters, brute force, and KMeans for s = 2."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

import hkm_dask as hkm
from hkm_dask.errors import InputError
from pipelines.simulation.distortion import MAX_S, LineFit, fit_line, label_line

FLOATS = st.floats(-1e6, 1e6, allow_nan=False, width=32)


def distortion(x: NDArray[np.float64], centroids: NDArray[np.float64], s: float) -> float:
    return float((np.abs(x[:, None] - centroids).min(axis=1) ** s).sum())


def least(x: NDArray[np.float64], s: float) -> float:
    """The least distortion of one cluster, by scipy."""
    if x.min() == x.max():
        return 0.0
    scale = float(np.ptp(x))
    y = (x - x.min()) / scale
    found = minimize_scalar(lambda c: (np.abs(y - c) ** s).sum(), bounds=(0, 1), options={"xatol": 1e-12})
    return float(found.fun) * scale**s


def best_cut(x: NDArray[np.float64], n_clusters: int, s: float) -> float:
    """The least distortion of all ways to cut sorted numbers into so many intervals."""
    cuts = itertools.combinations(range(1, len(x)), n_clusters - 1)
    return min(sum(least(part, s) for part in np.split(x, list(cut))) for cut in cuts)


def is_settled(x: NDArray[np.float64], found: LineFit, s: float) -> bool:
    """Every centroid is the best one of the numbers nearest to it."""
    labels = np.abs(x[:, None] - found.centroids).argmin(axis=1)
    parts = [x[labels == j] for j in range(len(found.centroids))]
    return all(
        distortion(part, found.centroids[j : j + 1], s) <= least(part, s) * (1 + 1e-9) + 1e-300
        for j, part in enumerate(parts)
    )


@given(
    values=st.lists(FLOATS, min_size=1, max_size=40),
    s=st.one_of(st.sampled_from([2, 3, 4, 8, MAX_S]), st.floats(2, MAX_S)),
)
def test_one_centroid_is_what_scipy_finds(values: list[float], s: float) -> None:
    x = np.array(values)
    found = fit_line(x, 1, s=s)
    assert x.min() <= found.centroids[0] <= x.max()
    assert found.distortion <= least(x, s) * (1 + 1e-7)
    assert found.distortion == pytest.approx(distortion(x, found.centroids, s), rel=1e-9)
    assert found.converged


@pytest.mark.parametrize(("s", "expected"), [(2, 2.5), (3, 3.6602540378), (5, 4.3176513117), (MAX_S, 4.9114115063)])
def test_a_heap_of_numbers_pulls_less_the_larger_s(s: float, expected: float) -> None:
    # Three numbers at 0, one at 10: 3 c^(s-1) = (10 - c)^(s-1), so c = 10 / (1 + 3^(1/(s-1))).
    assert fit_line([0, 10, 0, 0], 1, s=s).centroids[0] == pytest.approx(expected, rel=1e-8)


@given(
    values=st.lists(FLOATS, min_size=4, max_size=30),
    n_clusters=st.integers(1, 6),
    s=st.sampled_from([2.0, 2.5, 4.0, 8.0]),
    init=st.sampled_from(["k-means++", "random"]),
)
def test_it_ends_where_nothing_can_move(values: list[float], n_clusters: int, s: float, init: str) -> None:
    x = np.sort(np.array(values))
    n_clusters = min(n_clusters, len(np.unique(x)))
    found = fit_line(values, n_clusters, s=s, init=init)
    assert found.converged
    assert (np.diff(found.centroids) > 0).all()
    assert (found.counts > 0).all()
    assert found.counts.sum() == len(x)
    assert (np.diff(found.history) <= 1e-9 * found.history[:-1]).all()
    assert is_settled(x, found, s)
    if n_clusters == len(np.unique(x)):
        assert found.distortion == 0


@pytest.mark.parametrize("s", [2, 4, 8])
def test_the_best_of_many_starts_is_the_best_of_all_cuts(s: float) -> None:
    for case in range(3):
        x = np.sort(np.random.default_rng(case).gamma(1.0, size=12))
        found = min(fit_line(x, 3, s=s, seed=seed).distortion for seed in range(20))
        assert found == pytest.approx(best_cut(x, 3, s), rel=1e-6)


def test_with_s_2_it_is_k_means() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(0, 1, 1500), rng.normal(9, 3, 500)])
    start = np.sort(rng.choice(x, 40, replace=False)).astype(np.float32)
    ours = fit_line(x.astype(np.float32), 40, init=start)
    theirs = hkm.KMeans(40, init=start[:, None], tol=0).fit(x.astype(np.float32)[:, None])
    assert ours.converged
    np.testing.assert_allclose(ours.centroids, np.sort(theirs.cluster_centers_[:, 0]), rtol=1e-5, atol=1e-6)
    assert ours.distortion == pytest.approx(theirs.inertia_, rel=1e-6)
    np.testing.assert_array_equal(label_line(x.astype(np.float32), ours.centroids), theirs.labels_)


def test_a_centroid_without_numbers_moves_to_the_furthest_one() -> None:
    # Nothing is nearest to 50; 30 is furthest from its own centroid.
    found = fit_line([0, 1, 2, 30, 100, 101], 3, init=[1, 50, 101])
    np.testing.assert_allclose(found.centroids, [1, 30, 100.5])
    assert found.counts.tolist() == [3, 1, 2]


def test_the_same_seed_and_any_order_give_the_same() -> None:
    x = np.random.default_rng(1).normal(size=400)
    one, same, other = fit_line(x, 20, seed=3), fit_line(x[::-1], 20, seed=3), fit_line(x, 20, seed=4)
    np.testing.assert_array_equal(one.centroids, same.centroids)
    assert not np.array_equal(one.centroids, other.centroids)


@pytest.mark.parametrize("s", [2, 4, 8])
def test_centroids_follow_the_law_from_k_means_plus_plus_and_the_data_from_random(s: int) -> None:
    # Two densities, 27 to 1: by the law p^(1/(1+s)) centroids are 3, 1.93 and 1.44 times as dense.
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.uniform(0, 1, 27_000), rng.uniform(1, 2, 1000)])
    ratio = {
        init: (found < 1).sum() / (found >= 1).sum()
        for init in ("k-means++", "random")
        for found in [fit_line(x, 300, s=s, init=init).centroids]
    }
    assert ratio["k-means++"] == pytest.approx(27 ** (1 / (1 + s)), rel=0.12)
    assert ratio["random"] > 10


def test_numbers_too_near_for_their_powers_still_found_clusters() -> None:
    x = np.array([0.0, 1e-200, 2e-200, 1.0])
    found = fit_line(x, 4, s=MAX_S)
    np.testing.assert_array_equal(found.centroids, x)


def test_it_says_when_it_did_not_converge() -> None:
    x = np.random.default_rng(0).normal(size=2000)
    found = fit_line(x, 50, init="random", max_iter=2)
    assert (found.n_iter, found.converged) == (2, False)
    assert found.distortion == pytest.approx(distortion_before_cut(x, found), rel=1e-12)


def distortion_before_cut(x: NDArray[np.float64], found: LineFit) -> float:
    """Of the clusters as they were cut last, which the centroids have moved in since."""
    parts = np.split(np.sort(x), np.cumsum(found.counts)[:-1])
    return float(sum(((part - c) ** 2).sum() for part, c in zip(parts, found.centroids, strict=True)))


def test_a_number_between_two_centroids_goes_to_the_lower() -> None:
    assert label_line([1.5, 1.5000001, -9, 9], np.array([1.0, 2.0, 3.0])).tolist() == [0, 1, 0, 2]


def test_problems_are_told_at_once() -> None:
    with pytest.raises(InputError) as caught:
        fit_line([[1.0, np.nan]], 0, s=1.5, init="grid", max_iter=0)
    assert [line.split("=")[0] for line in caught.value.problems] == [
        "n_clusters", "max_iter", "values.ndim", "s", "values", "init",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "settings", "said"),
    [
        ([1, 1, 2], {"n_clusters": 3}, "n_distinct=2 should be >= n_clusters=3"),
        ([], {"n_clusters": 1}, "n_distinct=0 should be >= n_clusters=1"),
        ([0, 1e60], {"n_clusters": 1, "s": 8}, "values.max() - values.min()=1e+60 should be less for s=8"),
        ([-1.7e308, 1.7e308], {"n_clusters": 1}, "values.max() - values.min()=inf should be less for s=2"),
        ([0, 1], {"n_clusters": 2, "init": [0]}, "init should be 2 finite numbers; its shape is (1,)"),
    ],
)
def test_what_cannot_be_clustered_is_refused(values: list[float], settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError) as caught:
        fit_line(values, **settings)  # type: ignore[arg-type]
    assert said in str(caught.value)
