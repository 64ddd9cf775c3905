"""Labels for given centroids equal those of a brute-force search in float64, with any previous knowledge."""

from collections.abc import Callable

import numpy as np
import pytest

from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.runner import Runner
from hkm_dask.data.rows import ArrayRows
from hkm_dask.errors import InputError
from hkm_dask.kmeans.fit import Settings, fit
from hkm_dask.kmeans.predict import geometry_of, label_rows, nearest_labels
from hkm_dask.search.geometry import make_geometry

Cut = Callable[[int], Runner]


def normal(n: int, d: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def squared_distances(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return ((rows[:, None].astype(np.float64) - centroids.astype(np.float64)) ** 2).sum(2)


@pytest.mark.parametrize("d", [2, 7, 40])
def test_labels_are_the_nearest_and_the_lowest_of_equals(d: int, in_parts: Cut) -> None:
    rows, centroids = normal(300, d, 0), normal(20, d, 1)
    centroids[7] = centroids[3]
    centroids[5] = np.nan
    expected = np.nanargmin(squared_distances(rows, centroids), axis=1)
    for n_parts in (1, 3):
        labels = nearest_labels(ArrayRows(rows), centroids, runner=in_parts(n_parts))
        np.testing.assert_array_equal(labels, expected)


def test_the_inertia_counts_rows_by_weight(runner: Runner) -> None:
    rows, centroids = normal(200, 6, 0), normal(9, 6, 1)
    weights = np.random.default_rng(2).integers(1, 5, 200)
    geometry = make_geometry(ArrayRows(rows), runner, n_clusters=9, total_weight=int(weights.sum()), start=centroids)
    labeled = label_rows(ArrayRows(rows), centroids, geometry=geometry, runner=runner, weights=weights)
    expected = squared_distances(rows, centroids).min(1) @ weights
    assert labeled.inertia / geometry.distance_scale == pytest.approx(expected, rel=1e-12)


def test_labels_a_fit_remembers_do_not_change_the_answer(runner: Runner) -> None:
    rows = ArrayRows(normal(300, 6, 0))
    geometry = make_geometry(rows, runner, n_clusters=12)
    done = fit(rows, Settings(12), geometry=geometry, runner=runner)
    hinted = label_rows(rows, done.centroids, geometry=geometry, runner=runner, run=done.run)
    plain = label_rows(rows, done.centroids, geometry=geometry, runner=runner)
    np.testing.assert_array_equal(hinted.labels, plain.labels)
    assert hinted.inertia == plain.inertia


def test_one_pass_keeps_no_rotated_rows(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for them would take longer than all it could save."""
    monkeypatch.setattr("hkm_dask.kmeans.predict._ROTATION_PAYS", 0.0)
    monkeypatch.setattr("hkm_dask.kmeans.predict._ROTATION_PAYS_PER_CUBE", 0.0)
    rows, centroids = ArrayRows(normal(3000, 32, 0)), normal(100, 32, 1)
    with geometry_of(rows, centroids, runner=runner) as geometry:
        assert geometry.basis is not None
        labels = label_rows(rows, centroids, geometry=geometry, runner=runner).labels
        kept = [key for key in host_cache._groups.get(rows.key, {}) if "operand" in key]
    np.testing.assert_array_equal(labels, squared_distances(rows.read(0, 3000), centroids).argmin(1))
    assert not kept


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_rows_that_cannot_be_measured_are_refused(value: float, runner: Runner) -> None:
    rows = normal(30, 4, 0)
    rows[11, 2] = value
    with pytest.raises(InputError, match=r"max_abs=\S+ in rows 0:30 of array should be < \S+, without NaN or Inf"):
        nearest_labels(ArrayRows(rows), normal(3, 4, 1), runner=runner)


def test_rows_without_direction_are_refused(runner: Runner) -> None:
    rows = np.zeros((3, 4), np.float32)
    rows[0, 0] = 1.0
    with pytest.raises(InputError, match=r"n_zero_rows=2 in rows 0:3 of array should be 0 for metric='cosine'"):
        nearest_labels(ArrayRows(rows), np.eye(4, dtype=np.float32)[:2], runner=runner, spherical=True)
