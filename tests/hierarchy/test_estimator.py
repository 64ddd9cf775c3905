"""`HierarchicalKMeans` against `build_hierarchy`, and with other kinds of arrays."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import hkm_dask as hkm
from hkm_dask.errors import InputError

LEVELS = (30, 8, 3)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(c, 1 + c / 20, (300, 4)) for c in (0, 8, 30)]).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(x: np.ndarray) -> hkm.HierarchicalKMeans:
    return hkm.HierarchicalKMeans(LEVELS, n_resamples=(1, 2, 0), random_state=0).fit(x)


@parametrize_with_checks([hkm.HierarchicalKMeans(n_clusters=2, n_resamples=0, max_iter=5)])
def test_scikit_learn_accepts_it(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def test_it_is_the_tree_that_build_hierarchy_makes(
    x: np.ndarray, fitted: hkm.HierarchicalKMeans, tmp_path: Path
) -> None:
    config = hkm.Config.from_flags(LEVELS, n_resamples=(1, 2, 0), seed=0)
    tree = hkm.build_hierarchy(x, tmp_path / "tree.zarr", config)
    for t in (1, 2, 3):
        np.testing.assert_array_equal(fitted.tree_.hkm.labels(t), tree.hkm.labels(t))
    np.testing.assert_array_equal(fitted.cluster_centers_, tree["level_3/centroids"])
    np.testing.assert_array_equal(fitted.labels_, tree.hkm.labels(3))
    np.testing.assert_array_equal(fitted.sample(50, seed=3), hkm.sample(tree, 50, seed=3))
    assert fitted.n_iter_ >= 6


def test_prediction_follows_the_path_of_the_nearest_centroid(x: np.ndarray, fitted: hkm.HierarchicalKMeans) -> None:
    paths = fitted.predict_path(x)
    assert (paths.shape, paths.dtype) == ((len(x), 3), np.int32)
    np.testing.assert_array_equal(paths[5], fitted.tree_.hkm.path(5))
    np.testing.assert_array_equal(paths[:, -1], fitted.labels_)
    new = np.random.default_rng(1).normal(10, 9, (200, 4)).astype(np.float32)
    centroids = fitted.tree_["level_1/centroids"].to_numpy().astype(np.float64)
    nearest = ((new[:, None].astype(np.float64) - centroids) ** 2).sum(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(fitted.predict_path(new)[:, 0], nearest)
    np.testing.assert_array_equal(fitted.predict_path(new)[:, 1], fitted.tree_["level_2/labels"].to_numpy()[nearest])


def test_arrays_of_other_kinds_give_the_same_tree(x: np.ndarray, fitted: hkm.HierarchicalKMeans) -> None:
    lazy = da.from_array(x, chunks=(200, 4))
    for given in (lazy, xr.DataArray(x, dims=("word", "feature"))):
        hk = hkm.HierarchicalKMeans(LEVELS, n_resamples=(1, 2, 0), random_state=0).fit(given)
        np.testing.assert_array_equal(hk.labels_, fitted.labels_)
        np.testing.assert_array_equal(hk.cluster_centers_, fitted.cluster_centers_)
        np.testing.assert_array_equal(np.asarray(hk.predict_path(given)), fitted.predict_path(x))
    assert fitted.predict_path(lazy).chunks == ((200, 200, 200, 200, 100), (3,))
    assert fitted.predict_path(xr.DataArray(x, dims=("word", "feature"))).dims == ("word", "level")


def test_cosine_looks_at_directions_only(x: np.ndarray) -> None:
    hk = hkm.HierarchicalKMeans((6, 2), n_resamples=1, metric="cosine", random_state=0).fit(x)
    np.testing.assert_array_equal(hk.predict(x * 3), hk.labels_)


def test_a_tree_with_a_path_stays_and_is_taken_up_again(x: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "tree.zarr"
    hk = hkm.HierarchicalKMeans((9, 3), n_resamples=0, random_state=0, path=path).fit(x)
    assert hkm.open_hierarchy(path).hkm.n_clusters == (9, 3)
    before = path.stat().st_mtime_ns
    again = hkm.HierarchicalKMeans((9, 3), n_resamples=0, random_state=0, path=path).fit(x)
    assert path.stat().st_mtime_ns == before
    np.testing.assert_array_equal(again.labels_, hk.labels_)
    with pytest.raises(InputError, match="seed"):
        hkm.HierarchicalKMeans((9, 3), n_resamples=0, random_state=1, path=path).fit(x)
    replaced = hkm.HierarchicalKMeans((9, 3), n_resamples=0, random_state=1, path=path, restart=True).fit(x)
    assert replaced.tree_.attrs["seed"] == 1


def test_a_tree_without_a_path_is_in_memory_and_travels(x: np.ndarray, fitted: hkm.HierarchicalKMeans) -> None:
    assert fitted.tree_["level_1/labels"].chunks is None
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.predict(x), fitted.predict(x))
    np.testing.assert_array_equal(copied.sample(20), fitted.sample(20))


def test_a_fit_is_taken_from_a_tree(x: np.ndarray, fitted: hkm.HierarchicalKMeans, tmp_path: Path) -> None:
    settings = {"n_resamples": (1, 2, 0), "random_state": 4, "metric": "cosine"}
    hk = hkm.HierarchicalKMeans(LEVELS, path=tmp_path / "t.zarr", **settings).fit(x)
    for source in (tmp_path / "t.zarr", hk.tree_):
        taken = hkm.HierarchicalKMeans.from_tree(source)
        assert {name: value for name, value in taken.get_params().items() if name in settings} == settings
        assert (taken.n_clusters, taken.path, taken.n_iter_, taken.n_features_in_) == (LEVELS, None, hk.n_iter_, 4)
        np.testing.assert_array_equal(taken.labels_, hk.labels_)
        np.testing.assert_array_equal(taken.predict(x), hk.labels_)
        np.testing.assert_array_equal(taken.sample(20), hk.sample(20))
        np.testing.assert_array_equal(taken.transform(x[:9]), hk.transform(x[:9]))
    with pytest.raises(ValueError, match="5 features"):
        taken.predict(np.zeros((2, 5)))


def test_settings_of_levels_may_be_arrays(x: np.ndarray) -> None:
    plain, arrays = (
        hkm.HierarchicalKMeans(kind([20, 5]), n_splits=kind([2, 1]), n_resamples=kind([0, 1]), random_state=0).fit(x)
        for kind in (list, np.array)
    )
    np.testing.assert_array_equal(arrays.labels_, plain.labels_)


def test_distances_to_the_top(x: np.ndarray, fitted: hkm.HierarchicalKMeans) -> None:
    expected = np.linalg.norm(x[:50, None].astype(np.float64) - fitted.cluster_centers_, axis=2)
    np.testing.assert_allclose(fitted.transform(x[:50]), expected, rtol=1e-5)
    assert fitted.get_feature_names_out().tolist() == [f"hierarchicalkmeans{c}" for c in range(3)]
    copies = np.repeat(x[:2], 30, axis=0)
    few = hkm.HierarchicalKMeans(5, n_resamples=0, random_state=0).fit(copies)
    assert np.isnan(few.transform(x[:3])).sum() == 3 * 3
    assert few.score(copies) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_a_score_is_minus_the_squared_distances_to_the_top(x: np.ndarray, metric: str) -> None:
    hk = hkm.HierarchicalKMeans(LEVELS, n_resamples=0, metric=metric, random_state=0).fit(x)
    new = np.random.default_rng(1).normal(10, 9, (200, 4)).astype(np.float32)
    rows = new / np.linalg.norm(new, axis=1, keepdims=True) if metric == "cosine" else new
    centers = hk.cluster_centers_.astype(np.float64)
    squared = ((rows[:, None].astype(np.float64) - centers) ** 2).sum(axis=2).min(axis=1)
    assert hk.score(new) == pytest.approx(-squared.sum(), rel=1e-6)
    weights = np.arange(200) % 3
    assert hk.score(da.from_array(new, chunks=(70, 4)), sample_weight=weights) == pytest.approx(
        -weights @ squared, rel=1e-6
    )


def test_it_takes_part_in_a_search_and_in_a_pipeline(x: np.ndarray) -> None:
    search = GridSearchCV(
        hkm.HierarchicalKMeans(n_resamples=0, random_state=0), {"n_clusters": [(20, 2), (20, 8)]}, cv=2
    ).fit(x)
    assert search.best_params_ == {"n_clusters": (20, 8)}  # more centers are nearer
    steps = make_pipeline(StandardScaler(), hkm.HierarchicalKMeans((20, 3), n_resamples=0, random_state=0))
    table = steps.set_output(transform="pandas").fit_transform(pd.DataFrame(x, columns=list("abcd")))
    assert list(table) == [f"hierarchicalkmeans{c}" for c in range(3)]
    np.testing.assert_array_equal(steps.fit_predict(x), steps[-1].labels_)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_clusters": (10, 20)}, "n_clusters"),
        ({"n_clusters": 1000}, "n_clusters=1000"),
        ({"n_clusters": (5, 2), "n_resamples": (1, 2, 3)}, "n_resamples"),
        ({"n_clusters": 5, "metric": "l1"}, "metric='l1'"),
        ({"n_clusters": 5, "init": "greedy"}, "init='greedy'"),
    ],
)
def test_wrong_parameters_are_told(x: np.ndarray, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hkm.HierarchicalKMeans(**settings).fit(x)
