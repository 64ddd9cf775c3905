"""`KMeans`, against scikit-learn, brute force, and itself on other kinds of arrays."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import sklearn.cluster
import xarray as xr
import zarr
from distributed import Client, LocalCluster
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils.estimator_checks import parametrize_with_checks

import hkm_dask as hkm
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.rows import ArrayRows, NpyRows
from hkm_dask.errors import InputError
from hkm_dask.kmeans.base import checked_weights, whole_weights
from hkm_dask.kmeans.inputs import rows_of
from hkm_dask.kmeans.predict import _rotation_pays
from hkm_dask.kmeans.seeding.d2_sampling import UpdateAndSample, sample_by_distance, sample_in_rounds
from hkm_dask.kmeans.seeding.random_rows import random_rows
from hkm_dask.search.geometry import Geometry, make_geometry

K = 12


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(K, 6)) * 3
    return (centers[rng.integers(0, K, 900)] + rng.normal(size=(900, 6))).astype(np.float32)


@pytest.fixture(scope="module")
def fitted(x: np.ndarray) -> hkm.KMeans:
    return hkm.KMeans(K, random_state=0).fit(x)


def brute_force(x: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels and squared distances, directly in float64."""
    squared = ((x[:, None].astype(np.float64) - centroids.astype(np.float64)) ** 2).sum(axis=2)
    return squared.argmin(axis=1), squared.min(axis=1)


def reasons(estimator: Any) -> dict[str, str]:
    return {
        "check_sample_weight_equivalence_on_dense_data": "seeds are drawn by row number, repeated rows have others; "
        "scikit-learn's KMeans fails here too. From the same start both agree to the bit (tested below)",
    }


@parametrize_with_checks([hkm.KMeans(n_clusters=2, max_iter=5)], expected_failed_checks=reasons)
def test_scikit_learn_accepts_it(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_from_the_same_start_it_ends_where_scikit_learn_does(x: np.ndarray, dtype: str) -> None:
    rows = x.astype(dtype)
    model = hkm.KMeans(K, init=rows[:K], tol=0, max_iter=300).fit(rows)
    reference = sklearn.cluster.KMeans(K, init=rows[:K].astype("f8"), n_init=1, tol=0, max_iter=300).fit(
        rows.astype("f8")
    )
    np.testing.assert_array_equal(model.labels_, reference.labels_)
    assert model.inertia_ == pytest.approx(reference.inertia_, rel=1e-5)
    np.testing.assert_allclose(model.cluster_centers_, reference.cluster_centers_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model.transform(rows), reference.transform(rows.astype("f8")), rtol=1e-4, atol=1e-4)
    assert model.score(rows) == pytest.approx(reference.score(rows.astype("f8")), rel=1e-5)


@pytest.mark.parametrize("max_iter", [1, 3, 300])
def test_labels_and_inertia_belong_to_the_final_centroids(x: np.ndarray, max_iter: int) -> None:
    km = hkm.KMeans(K, random_state=1, max_iter=max_iter).fit(x)
    labels, squared = brute_force(x, km.cluster_centers_)
    np.testing.assert_array_equal(km.labels_, labels)
    np.testing.assert_array_equal(km.predict(x), labels)
    np.testing.assert_array_equal(hkm.KMeans(K, random_state=1, max_iter=max_iter).fit_predict(x), labels)
    assert km.inertia_ == pytest.approx(squared.sum(), rel=1e-9)
    assert km.score(x) == pytest.approx(-km.inertia_, rel=1e-12)
    assert km.n_iter_ <= max_iter
    assert km.labels_.dtype == np.int32


def test_many_centroids_of_many_features_are_searched_as_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hkm_dask.kmeans.predict._ROTATION_PAYS", 0.0)
    assert _rotation_pays(3000, 100, 32)
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(3000, 32)) * 0.9 ** np.arange(32)).astype(np.float32)
    km = hkm.KMeans(100, random_state=0, max_iter=3).fit(x)
    labels, squared = brute_force(x, km.cluster_centers_)
    np.testing.assert_array_equal(km.labels_, labels)
    np.testing.assert_array_equal(km.predict(x), labels)
    assert km.inertia_ == pytest.approx(squared.sum(), rel=1e-9)


@pytest.mark.parametrize("init", ["coreset", "k-means++", "k-means||", "random"])
def test_every_seeding_serves(x: np.ndarray, init: str) -> None:
    actual = [hkm.KMeans(K, init=init, random_state=seed).fit(x) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(actual[0].cluster_centers_, actual[1].cluster_centers_)
    assert not np.array_equal(actual[0].cluster_centers_, actual[2].cluster_centers_)
    best = sklearn.cluster.KMeans(K, n_init=10, random_state=0).fit(x).inertia_
    assert min(km.inertia_ for km in actual) < 1.6 * best


@pytest.mark.parametrize("kind", ["u1", "i2", "i8"])
def test_numbers_of_numpy_are_taken(x: np.ndarray, fitted: hkm.KMeans, kind: str) -> None:
    of_kind = np.dtype(kind).type
    km = hkm.KMeans(of_kind(K), max_iter=of_kind(100), random_state=of_kind(0)).fit(x)
    np.testing.assert_array_equal(km.cluster_centers_, fitted.cluster_centers_)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_whole_weights_are_repeated_rows(x: np.ndarray) -> None:
    weights = np.random.default_rng(5).integers(0, 4, len(x))
    weighted = hkm.KMeans(K, init=x[:K], tol=0).fit(x, sample_weight=weights)
    repeated = hkm.KMeans(K, init=x[:K], tol=0).fit(np.repeat(x, weights, axis=0))
    np.testing.assert_array_equal(weighted.cluster_centers_, repeated.cluster_centers_)
    np.testing.assert_array_equal(np.repeat(weighted.labels_, weights), repeated.labels_)
    assert weighted.inertia_ == repeated.inertia_
    np.testing.assert_array_equal(weighted.labels_, brute_force(x, weighted.cluster_centers_)[0])


def test_weights_give_what_scikit_learn_gives(x: np.ndarray) -> None:
    weights = np.random.default_rng(6).exponential(size=len(x))
    model = hkm.KMeans(K, init=x[:K], tol=0).fit(x, sample_weight=weights)
    reference = sklearn.cluster.KMeans(K, init=x[:K].astype("f8"), n_init=1, tol=0).fit(x.astype("f8"), None, weights)
    np.testing.assert_array_equal(model.labels_, reference.labels_)
    assert model.inertia_ == pytest.approx(reference.inertia_, rel=1e-4)
    np.testing.assert_allclose(model.cluster_centers_, reference.cluster_centers_, rtol=1e-3, atol=1e-3)
    assert model.score(x, sample_weight=weights) == pytest.approx(-model.inertia_, rel=1e-9)


@pytest.mark.parametrize("init", ["coreset", "k-means++", "k-means||", "random"])
def test_rows_of_no_weight_found_nothing(x: np.ndarray, init: str) -> None:
    far = np.concatenate([x, np.full((300, 6), 1000, np.float32)])
    weights = np.r_[np.ones(len(x)), np.zeros(300)]
    km = hkm.KMeans(K, init=init, random_state=0).fit(far, sample_weight=weights)
    plain = hkm.KMeans(K, init=init, random_state=0).fit(x)
    # The same draws: without these rows nothing differs but the geometry that rounding happens in.
    np.testing.assert_allclose(km.cluster_centers_, plain.cluster_centers_, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(km.labels_, brute_force(far, km.cluster_centers_)[0])


def draw(how: str, rows: ArrayRows, weights: SharedArray, runner: Runner) -> np.ndarray:
    """Draw about 20 rows, and give their numbers."""
    if how == "random":
        return random_rows(rows, 20, key=1, runner=runner, weights=weights)
    geometry = make_geometry(rows, runner, n_clusters=20, total_weight=int(weights.get().sum()))
    method = {"by distance": sample_by_distance, "in rounds": sample_in_rounds}[how]
    n = 20 if how == "by distance" else 4
    batches = method(rows, n, geometry=geometry, key=1, run="heavy", runner=runner, weights=weights)
    drawn = np.concatenate([batch.get() for batch in batches])
    return (rows.array[None] == drawn[:, None]).all(axis=2).argmax(axis=1)


@pytest.mark.parametrize("how", ["random", "by distance", "in rounds"])
def test_heavy_rows_are_drawn(how: str) -> None:
    x = np.random.default_rng(7).normal(size=(400, 3)).astype(np.float32)
    weights = np.where(np.arange(400) % 10 == 3, 10**6, 1)
    with Runner(n_threads=2) as runner:
        drawn = draw(how, ArrayRows(x), SharedArray(array=weights), runner)
    assert len(drawn) >= 10
    assert (drawn % 10 == 3).all()


def test_a_seeding_pass_counts_a_row_as_often_as_it_weighs(x: np.ndarray) -> None:
    weights = np.random.default_rng(5).integers(1, 4, len(x))
    actual = []
    for rows, shared in ((x, SharedArray(array=weights)), (np.repeat(x, weights, axis=0), None)):
        geometry = Geometry(np.zeros(6, np.float32), float(np.abs(x).max()), int(weights.sum()))
        task = UpdateAndSample((SharedArray(array=x[:K]),), geometry, "", 0, 0.0, with_sums=True, weights=shared)
        actual.append(task(Part(ArrayRows(rows), (0, len(rows)), 0)))
    assert actual[0].potential == actual[1].potential
    np.testing.assert_array_equal(actual[0].counts, actual[1].counts)
    np.testing.assert_array_equal(actual[0].sums, actual[1].sums)


def test_equal_weights_are_none(x: np.ndarray, fitted: hkm.KMeans) -> None:
    km = hkm.KMeans(K, random_state=0).fit(x, sample_weight=np.full(len(x), 0.1))
    np.testing.assert_array_equal(km.cluster_centers_, fitted.cluster_centers_)
    assert km.inertia_ == pytest.approx(0.1 * fitted.inertia_, rel=1e-4)


@pytest.mark.parametrize("scale", [1e-300, 1e-3, 1.0, 1e300])
def test_weights_keep_their_proportions(scale: float) -> None:
    weights = np.random.default_rng(8).random(1000) * scale
    whole, unit = whole_weights(weights)
    np.testing.assert_allclose(whole * unit, weights, atol=weights.mean() * 2.0**-13)
    assert whole.sum() < 2**37


def test_weights_that_are_lost_beside_the_largest_are_told(x: np.ndarray) -> None:
    weights = np.r_[1e9 + 0.5, np.ones(len(x) - 1)]
    with (
        pytest.warns(UserWarning, match="the weights of 899 of 900 samples count as 0, they are below 2"),
        pytest.raises(InputError, match="n_samples=1 should be >= n_clusters=12"),
    ):
        hkm.KMeans(K).fit(x, sample_weight=weights)
    hkm.KMeans(K, max_iter=1).fit(x, sample_weight=np.round(weights))  # whole numbers are exact


@pytest.mark.parametrize("bad", [np.ones(3), np.ones((4, 1)), [1, -1, 1, 1], [1, np.nan, 1, 1], [0, 0, 0, 0]])
def test_weights_that_are_none_are_refused(bad: Any) -> None:
    with pytest.raises(InputError, match="sample_weight"):
        checked_weights(bad, 4)


# -- arrays of all kinds -----------------------------------------------------------------------------------------------


def chunked_zarr(x: np.ndarray, folder: Path) -> zarr.Array:
    array = zarr.create_array(str(folder / "x.zarr"), shape=x.shape, chunks=(200, 6), dtype=x.dtype)
    array[...] = x
    return array


def npy(x: np.ndarray, folder: Path) -> str:
    np.save(folder / "x.npy", x)
    return str(folder / "x.npy")


def pool(x: np.ndarray, folder: Path) -> Any:
    return hkm.ingest([npy(x, folder)], folder / "pool.zarr")


KINDS: dict[str, Callable[[np.ndarray, Path], Any]] = {
    "dask": lambda x, _: da.from_array(x, chunks=(250, 4)),
    "xarray": lambda x, _: xr.DataArray(x, dims=("word", "feature"), coords={"word": np.arange(len(x)) * 2}),
    "xarray-dask": lambda x, _: xr.DataArray(x, dims=("word", "feature")).chunk({"word": 300}),
    "zarr": chunked_zarr,
    "npy": npy,
    "pool": pool,
    "list": lambda x, _: x.tolist(),
    "fortran": lambda x, _: np.asfortranarray(x),
    "rows": lambda x, folder: NpyRows(npy(x, folder)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_all_kinds_give_the_same_bits(x: np.ndarray, fitted: hkm.KMeans, tmp_path: Path, kind: str) -> None:
    given = KINDS[kind](x, tmp_path)
    km = hkm.KMeans(K, random_state=0).fit(given)
    np.testing.assert_array_equal(km.cluster_centers_, fitted.cluster_centers_)
    np.testing.assert_array_equal(km.labels_, fitted.labels_)
    assert (km.inertia_, km.n_iter_, km.n_features_in_) == (fitted.inertia_, fitted.n_iter_, 6)
    np.testing.assert_array_equal(np.asarray(km.predict(given)), fitted.labels_)
    np.testing.assert_allclose(np.asarray(km.transform(given)), fitted.transform(x), rtol=1e-4, atol=1e-4)
    assert km.score(given) == fitted.score(x)


@pytest.mark.parametrize("kind", [">f8", ">f4", ">f2", "i8", "u1", "list"])
def test_rows_of_any_type_have_the_bits_of_a_dask_array(kind: str) -> None:
    # Whole numbers that float32 cannot hold: their directions would be others if they were rounded to it first.
    x = np.random.default_rng(3).integers(1, 2**40 if kind in (">f8", "i8", "list") else 200, (60, 5))
    array = x.astype("f8" if kind == "list" else kind)
    given: Any = array.tolist() if kind == "list" else array
    km, reference = (
        hkm.KMeans(4, metric="cosine", random_state=0).fit(one) for one in (given, da.from_array(array, chunks=(7, 2)))
    )
    np.testing.assert_array_equal(km.cluster_centers_, reference.cluster_centers_)
    assert km.inertia_ == reference.inertia_
    distances, lazy = km.transform(given), km.transform(da.from_array(array))
    assert distances.dtype == lazy.dtype == ("f8" if array.dtype.itemsize == 8 else "f4")
    np.testing.assert_allclose(distances, lazy.compute(), rtol=1e-6)


def read(x: Any, memory_budget: int) -> None:
    """Read rows as `fit` does with so much memory."""
    with Runner(n_threads=1) as runner:
        runner.memory_budget = memory_budget
        with rows_of(x, runner):
            pass


@pytest.mark.parametrize("kind", ["array", "dask"])
def test_values_below_a_mask_are_no_data(x: np.ndarray, kind: str) -> None:
    masked = np.ma.masked_greater(x, 5.0)
    given = masked if kind == "array" else da.from_array(masked, chunks=(250, 6), asarray=False)
    message = r"n_masked=\d+ should be 0, masked values are missing; fill them, or leave such rows out"
    with pytest.raises(InputError, match=message):
        hkm.KMeans(K).fit(given)
    with pytest.raises(InputError, match=message):
        read(given, x.nbytes)  # a Dask array goes through a file
    unmasked = hkm.KMeans(K, random_state=0, max_iter=2).fit(np.ma.masked_array(x))
    with pytest.raises(InputError, match="n_masked"):
        np.asarray(unmasked.predict(given))


def test_dask_arrays_are_answered_lazily(x: np.ndarray, fitted: hkm.KMeans) -> None:
    given = da.from_array(x, chunks=(250, 3))
    labels, distances = fitted.predict(given), fitted.transform(given)
    assert (labels.chunks, labels.dtype) == (((250, 250, 250, 150),), np.int32)
    assert (distances.shape, distances.dtype) == ((900, K), np.float32)
    unknown = given[given[:, 0] > 0]
    np.testing.assert_array_equal(fitted.predict(unknown).compute(), fitted.labels_[x[:, 0] > 0])
    with pytest.raises(InputError, match="compute_chunk_sizes"):
        hkm.KMeans(K).fit(unknown)


def test_data_arrays_keep_their_samples(x: np.ndarray, fitted: hkm.KMeans) -> None:
    given = xr.DataArray(x, dims=("word", "feature"), coords={"word": [f"w{i}" for i in range(len(x))], "unit": "mm"})
    labels = fitted.predict(given)
    assert labels.sel(word="w7").item() == fitted.labels_[7]
    assert fitted.transform(given).dims == ("word", "cluster")
    assert isinstance(fitted.predict(given.chunk({"word": 100})).data, da.Array)


def test_what_is_too_large_for_memory_goes_through_a_file(x: np.ndarray, tmp_path: Path) -> None:
    given = da.from_array(x, chunks=(250, 4))
    with Runner(n_threads=2, work_dir=tmp_path) as runner:
        runner.memory_budget = x.nbytes
        with rows_of(given, runner) as rows:
            assert isinstance(rows, NpyRows)
            np.testing.assert_array_equal(rows.read(0, len(x)), x)
        assert not list(tmp_path.iterdir())


def test_data_frames_tell_their_features(x: np.ndarray) -> None:
    pd = pytest.importorskip("pandas")
    geometry = pd.DataFrame(x, columns=list("abcdef"))
    km = hkm.KMeans(K, random_state=0).fit(geometry)
    assert km.feature_names_in_.tolist() == list("abcdef")
    assert km.get_feature_names_out()[1] == "kmeans1"
    assert not hasattr(km.fit(da.from_array(x)), "feature_names_in_")


@pytest.mark.gpu
def test_cupy_arrays_are_taken(x: np.ndarray, fitted: hkm.KMeans) -> None:
    import cupy

    km = hkm.KMeans(K, random_state=0).fit(cupy.asarray(x))
    np.testing.assert_array_equal(km.labels_, fitted.labels_)
    np.testing.assert_array_equal(km.predict(cupy.asarray(x)), fitted.labels_)


@pytest.mark.parametrize("in_one_task", [True, False])
def test_a_cluster_gives_the_same_bits_and_is_kept_by_clones(
    x: np.ndarray, fitted: hkm.KMeans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_task: bool
) -> None:
    if not in_one_task:
        monkeypatch.setattr("hkm_dask.compute.runner._ONE_TASK_BYTES", 0)
    weights = np.arange(len(x)) % 3
    plain = hkm.KMeans(K, random_state=0).fit(x, sample_weight=weights)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Client(cluster) as client,
    ):
        km = clone(hkm.KMeans(K, random_state=0, client=client))
        assert km.client is client
        for given in (x, da.from_array(x, chunks=(300, 6)), npy(x, tmp_path)):
            km.fit(given)
            np.testing.assert_array_equal(km.cluster_centers_, fitted.cluster_centers_)
            np.testing.assert_array_equal(km.labels_, fitted.labels_)
            assert km.inertia_ == fitted.inertia_
        np.testing.assert_array_equal(km.predict(da.from_array(x, chunks=(300, 6))).compute(), fitted.labels_)
        np.testing.assert_array_equal(km.fit(x, sample_weight=weights).cluster_centers_, plain.cluster_centers_)
        assert pickle.loads(pickle.dumps(km)).client is None
        assert copy.copy(km).predict(x).tolist() == plain.labels_.tolist()


# -- cosine ------------------------------------------------------------------------------------------------------------


def test_cosine_is_l2_of_unit_rows(x: np.ndarray) -> None:
    km = hkm.KMeans(K, metric="cosine", random_state=0).fit(x)
    unit = x / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(km.cluster_centers_, axis=1), 1, rtol=1e-6)
    labels, squared = brute_force(unit.astype(np.float32), km.cluster_centers_)
    np.testing.assert_array_equal(km.labels_, labels)
    np.testing.assert_array_equal(km.predict(x * 7), labels)
    assert km.inertia_ == pytest.approx(squared.sum(), rel=1e-6)
    np.testing.assert_allclose(km.transform(x), euclidean_distances(unit, km.cluster_centers_), atol=1e-5)
    np.testing.assert_array_equal(km.predict(da.from_array(x, chunks=(100, 6))).compute(), labels)


def test_rows_without_direction_are_refused(x: np.ndarray) -> None:
    zero = np.concatenate([x, np.zeros((2, 6), np.float32)])
    with pytest.raises(InputError, match="n_zero_rows=2"):
        hkm.KMeans(K, metric="cosine").fit(zero)
    km = hkm.KMeans(K, metric="cosine", random_state=0).fit(x)
    for given in (zero, da.from_array(zero, chunks=(len(zero), 6))):
        for answer in (km.predict, km.transform):
            with pytest.raises(InputError, match=rf"n_zero_rows=2 in rows 0:{len(zero)} of .*array"):
                np.asarray(answer(given))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_clusters": 0}, "n_clusters=0 should be a whole number >= 1"),
        ({"n_clusters": 2.5}, "n_clusters=2.5 should be"),
        ({"max_iter": 0}, "max_iter=0 should be"),
        ({"tol": -1}, "tol=-1 should be >= 0"),
        ({"metric": "l1"}, "metric='l1' should be one of l2, cosine"),
        ({"init": "greedy"}, "init='greedy' should be one of coreset"),
        ({"init": np.zeros((3, 2))}, r"init.shape=\(3, 2\) should be \(8, 6\)"),
        ({"init": np.full((8, 6), np.nan)}, "init=NaN"),
        ({"init": len}, "init=builtin_function_or_method should be one of coreset, .*, or an array of numbers; use"),
        ({"init": np.full((8, 6), 1j)}, "init=ndarray should be one of"),
        ({"init": None}, "init=NoneType should be one of"),
        ({"random_state": -1}, "random_state=-1 should be a whole number from 0 to"),
        ({"random_state": 2**64}, "random_state=18446744073709551616 should be a whole number from 0 to"),
        ({"n_clusters": 901}, "n_samples=900 should be >= n_clusters=901"),
    ],
)
def test_wrong_parameters_are_told(x: np.ndarray, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hkm.KMeans(**settings).fit(x)


def test_all_wrong_parameters_are_told_at_once(x: np.ndarray) -> None:
    with pytest.raises(InputError) as caught:
        hkm.KMeans(0, tol=2, metric="l1").fit(x)
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_rows_that_are_not_finite_are_refused_from_anywhere(x: np.ndarray, fitted: hkm.KMeans, bad: float) -> None:
    broken = x.astype(np.float64)
    broken[17, 3] = bad
    for given in (broken, da.from_array(broken, chunks=(100, 6))):
        with pytest.raises(ValueError, match=r"NaN|finite|infinity"):
            hkm.KMeans(K).fit(given)
        with pytest.raises(ValueError, match=r"NaN|finite|infinity"):
            np.asarray(fitted.predict(given))


def test_other_widths_and_missing_fits_are_refused(x: np.ndarray, fitted: hkm.KMeans) -> None:
    for given in (x[:, :5], da.from_array(x[:, :5])):
        with pytest.raises(ValueError, match="X has 5 features, but KMeans is expecting 6"):
            fitted.predict(given)
    for method in (hkm.KMeans().predict, hkm.KMeans().transform, hkm.KMeans().score):
        with pytest.raises(NotFittedError):
            method(x)
    with pytest.raises(InputError, match="n_samples, n_features"):
        hkm.KMeans().fit(da.zeros(5))


def test_too_few_distinct_rows_are_warned_of() -> None:
    x = np.repeat(np.float32([[0, 0], [5, 5], [9, 0]]), 10, axis=0)
    with pytest.warns(ConvergenceWarning, match="n_distinct_samples=3 should be >= n_clusters=5"):
        km = hkm.KMeans(5, random_state=0).fit(x)
    assert np.isfinite(km.cluster_centers_).all()
    assert sorted(np.unique(km.labels_)) == [0, 1, 2]
    assert km.inertia_ == 0
    np.testing.assert_array_equal(km.predict(x), km.labels_)


def test_without_a_random_state_numpy_seeds_it(x: np.ndarray) -> None:
    fit = partial(hkm.KMeans(K, max_iter=1).fit, x)
    np.random.seed(0)  # noqa: NPY002 (scikit-learn's convention)
    first, second = fit().cluster_centers_.copy(), fit().cluster_centers_
    assert not np.array_equal(first, second)
    state = hkm.KMeans(K, max_iter=1, random_state=np.random.RandomState(0)).fit(x)
    np.testing.assert_array_equal(state.cluster_centers_, first)
