"""Seeding: every method returns initial centroids as documented."""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.runner import Runner
from hkm_dask.data.row_views import UnitRows
from hkm_dask.data.rows import ArrayRows
from hkm_dask.kmeans.seeding import coreset
from hkm_dask.kmeans.seeding.seed import seed
from hkm_dask.search.geometry import make_geometry

Cut = Callable[[int], Runner]
INITS = ["coreset", "k-means++", "k-means||", "random"]


def blobs(n: int, d: int, seed: int = 0, centers: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) + 4 * rng.normal(size=(centers, d))[rng.integers(0, centers, n)]).astype("f4")


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("d", [2, 24])
def test_a_start_is_the_same_for_any_number_of_parts(init: str, d: int, in_parts: Cut) -> None:
    rows = blobs(900, d)
    geometry = make_geometry(ArrayRows(rows), in_parts(1), n_clusters=70)
    actual = [
        seed(ArrayRows(rows), 70, init=init, geometry=geometry, key=4, runner=in_parts(n)).centroids for n in (1, 2, 8)
    ]
    assert actual[0].shape == (70, d)
    assert actual[0].dtype == np.float32
    assert not np.isnan(actual[0]).any()
    assert len(np.unique(actual[0], axis=0)) == 70
    np.testing.assert_array_equal(actual[0], actual[1])
    np.testing.assert_array_equal(actual[0], actual[2])
    other = seed(ArrayRows(rows), 70, init=init, geometry=geometry, key=5, runner=in_parts(1)).centroids
    assert not np.array_equal(actual[0], other)
    if init in ("k-means++", "random"):
        assert {row.tobytes() for row in actual[0]} <= {row.tobytes() for row in rows}


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("n", [4, 40, 400])
def test_fewer_distinct_rows_than_clusters_leave_slots_empty_without_a_warning(
    init: str, n: int, runner: Runner
) -> None:
    distinct = blobs(3, 4)
    rows = ArrayRows(np.resize(distinct, (n, 4)))
    geometry = make_geometry(rows, runner, n_clusters=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        centroids = seed(rows, min(n, 8), init=init, geometry=geometry, key=2, runner=runner).centroids
    used = ~np.isnan(centroids).any(axis=1)
    assert used.any()
    assert np.isnan(centroids[~used]).all()
    distances = np.abs(centroids[used][:, None] - distinct).max(2).min(1)
    assert distances.max() < 1e-6  # on the rows, never at the origin
    if init != "random":
        assert used.sum() == 3


@pytest.mark.parametrize("init", INITS)
def test_unit_rows_start_at_unit_length(init: str, runner: Runner) -> None:
    rows = UnitRows(ArrayRows(blobs(600, 8)))
    geometry = make_geometry(rows, runner, n_clusters=40, spherical=True)
    centroids = seed(rows, 40, init=init, geometry=geometry, key=2, runner=runner).centroids
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)


def inertia(rows: np.ndarray, centroids: np.ndarray) -> float:
    return float(np.min([((rows - c) ** 2).sum(1) for c in centroids], axis=0).sum())


def test_the_coreset_starts_better_than_random_rows(runner: Runner) -> None:
    rows = blobs(3000, 6, centers=60)
    geometry = make_geometry(ArrayRows(rows), runner, n_clusters=60)
    cost = {
        init: np.mean(
            [inertia(rows, seed(ArrayRows(rows), 60, init=init, geometry=geometry, key=k, runner=runner).centroids)
             for k in range(4)]
        )
        for init in INITS
    }  # fmt: skip
    assert cost["coreset"] < cost["k-means++"] < cost["random"]
    assert cost["k-means||"] < cost["random"]


def test_hints_name_a_centroid_near_each_cell(runner: Runner) -> None:
    rows = ArrayRows(blobs(1000, 5))
    geometry = make_geometry(rows, runner, n_clusters=30)
    start = seed(rows, 30, init="coreset", geometry=geometry, key=1, runner=runner)
    assert start.hints is not None
    assert start.hints.min() >= 0
    assert start.hints.max() < 30
    cells = host_cache.get(rows.key, ("cells", 0, 1000))[1]
    guess = start.hints[cells.labels]
    squared = ((rows.array[:, None].astype(np.float64) - start.centroids) ** 2).sum(2)
    assert (guess == squared.argmin(1)).mean() > 0.6
    host_cache.drop(rows.key)


def test_how_far_it_got_is_told(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreset, "GROUP_POINTS", 40)
    for init in ("coreset", "k-means||"):
        reports: list[tuple[str, int, int]] = []
        rows = ArrayRows(blobs(800, 3))
        geometry = make_geometry(rows, runner, n_clusters=50)
        tell = partial(lambda told, *one: told.append(one), reports)
        seed(rows, 50, init=init, geometry=geometry, key=1, runner=runner, report=tell)
        phases = {phase: [one[1:] for one in reports if one[0] == phase] for phase, _, _ in reports}
        assert list(phases) == ["draw", "choose", "refine"][: 3 if init == "coreset" else 2]
        assert phases["draw"][0][0] == 1
        for told in phases.values():
            assert len({total for _, total in told}) == 1
        for phase in ("draw", "refine"):
            assert phases.get(phase, []) == sorted(phases.get(phase, []))
        (n_groups,) = {total for _, total in phases["choose"]}
        assert n_groups > 1
        assert [done for done, _ in phases["choose"]][: n_groups + 1] == list(range(n_groups + 1))
        assert phases.get("refine", [(2, 2)])[-1] == (2, 2)


@pytest.mark.parametrize("d", [3, 20])
def test_a_long_walk_tells_how_far_it_is_and_makes_the_same_choices(
    d: int, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ArrayRows(blobs(300, d))
    geometry = make_geometry(rows, runner, n_clusters=50)
    at_once = seed(rows, 50, init="k-means++", geometry=geometry, key=1, runner=runner).centroids
    # 300 points, 5 trials, 7 centers at a time; a table of distances has a term for each pair, coordinates d.
    monkeypatch.setattr(coreset, "_PIECE_TERMS", 7 * 300 * 5 * (1 if d == 20 else d))
    told: list[tuple[str, int, int]] = []
    tell = partial(lambda seen, *one: seen.append(one), told)
    piecewise = seed(rows, 50, init="k-means++", geometry=geometry, key=1, runner=runner, report=tell).centroids
    np.testing.assert_array_equal(piecewise, at_once)
    assert [one for one in told if one[0] == "walk"] == [("walk", done, 50) for done in range(7, 50, 7)]
    assert told[-1] == ("choose", 1, 1)
