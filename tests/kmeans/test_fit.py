"""A whole k-means: the same bits with any threads and from any source, also when resumed; and hard cases."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.cluster import KMeans

from hkm_dask.compute import runner as runner_module
from hkm_dask.compute.block_cache import forget, host_cache
from hkm_dask.compute.keyed_random import stream_key
from hkm_dask.compute.placement import discard, gather
from hkm_dask.compute.runner import Runner
from hkm_dask.data import store
from hkm_dask.data.chunks import open_array
from hkm_dask.data.row_views import SubsetRows, UnitRows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows, ZarrRows
from hkm_dask.kmeans.fit import Fit, Hooks, Settings, fit
from hkm_dask.kmeans.lloyd import LloydStep, Progress, iterate
from hkm_dask.kmeans.seeding.seed import seed
from hkm_dask.search.geometry import make_geometry

Cut = Callable[[int], Runner]


def blobs(n: int, d: int, seed: int = 0, centers: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) + 3 * rng.normal(size=(centers, d))[rng.integers(0, centers, n)]).astype("f4")


def cluster_rows(
    rows: np.ndarray | Rows, settings: Settings, runner: Runner, *, spherical: bool = False, **options: object
) -> Fit:
    source = rows if isinstance(rows, Rows) else ArrayRows(rows)
    geometry = make_geometry(source, runner, n_clusters=settings.n_clusters, spherical=spherical)
    return fit(source, settings, geometry=geometry, runner=runner, **options)  # type: ignore[arg-type]


def same_bits(a: Fit, b: Fit) -> bool:
    return (a.centroids.tobytes(), a.inertia.tobytes(), a.n_relocated) == (
        b.centroids.tobytes(),
        b.inertia.tobytes(),
        b.n_relocated,
    )


def label(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    return np.argmin([((rows.astype(np.float64) - c) ** 2).sum(1) for c in centroids.astype(np.float64)], axis=0)


# -- what it is -------------------------------------------------------------------------------------------------------


def test_it_is_a_seeding_and_the_iteration_from_it(runner: Runner) -> None:
    rows = ArrayRows(blobs(500, 5))
    geometry = make_geometry(rows, runner, n_clusters=20)
    settings = Settings(20, max_iter=12, tol=1e-3, key=stream_key(7))
    actual = fit(rows, settings, geometry=geometry, runner=runner)
    start = seed(rows, 20, init="coreset", geometry=geometry, key=settings.key, runner=runner)
    expected = iterate(rows, start.centroids, geometry=geometry, runner=runner, max_iter=12, tol=1e-3)
    np.testing.assert_array_equal(actual.centroids, expected.centroids)
    np.testing.assert_array_equal(actual.inertia, expected.inertia)
    assert (actual.n_unused, actual.seconds > 0) == (0, True)


def test_it_is_as_good_as_scikit_learn(runner: Runner) -> None:
    rows = blobs(1500, 8, centers=25)
    actual = cluster_rows(rows, Settings(25, max_iter=100, tol=0.0), runner)
    reference = KMeans(25, n_init=1, tol=0, random_state=0, max_iter=100).fit(rows.astype(np.float64))
    assert actual.inertia[-1] <= 1.05 * reference.inertia_
    repeated = KMeans(25, init=actual.centroids.astype(np.float64), n_init=1, tol=0).fit(rows.astype(np.float64))
    assert repeated.inertia_ == pytest.approx(actual.inertia[-1], rel=1e-5)  # a fixed point of theirs, too
    np.testing.assert_array_equal(repeated.labels_, label(rows, actual.centroids))


def test_the_optimum_of_the_paper_is_found(runner: Runner) -> None:
    """5000 points in [0.9, 1.1], two at 2, two at 3 (arXiv:2405.15613 §3.2)."""
    rows = np.concatenate([np.linspace(0.9, 1.1, 5000), [2, 2, 3, 3]])[:, None].astype(np.float32)
    actual = [cluster_rows(rows, Settings(3, "k-means++", tol=0.0, key=stream_key(i)), runner) for i in range(20)]
    assert min(fit.inertia[-1] for fit in actual) == pytest.approx(5.17, abs=0.01)


# -- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["coreset", "k-means++", "k-means||", "random"])
@pytest.mark.parametrize("d", [2, 30])
def test_any_number_of_parts_gives_the_same_bits(init: str, d: int, in_parts: Cut) -> None:
    rows, settings = blobs(1200, d), Settings(66, init=init, max_iter=8, key=3)
    actual = [cluster_rows(rows, settings, in_parts(n)) for n in (1, 2, 8)]
    assert same_bits(actual[0], actual[1])
    assert same_bits(actual[0], actual[2])
    assert not same_bits(actual[0], cluster_rows(rows, replace(settings, key=4), in_parts(1)))


def test_any_number_of_threads_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "_HAND_OVER_FLOPS", 1.0)  # so that a pass is worth a task per thread
    rows, settings = blobs(1500, 24), Settings(64, max_iter=10)
    actual = []
    for n_threads in (1, 2, 8):
        with Runner(n_threads=n_threads) as threads:
            assert threads.n_parts(1e6) == n_threads
            actual.append(cluster_rows(rows, settings, threads))
    assert same_bits(actual[0], actual[1])
    assert same_bits(actual[0], actual[2])


@pytest.mark.parametrize("dtype", ["f2", "f4"])
def test_wherever_the_rows_lie_the_bits_are_the_same(dtype: str, tmp_path: Path, in_parts: Cut) -> None:
    array = blobs(900, 6).astype(dtype)
    np.save(tmp_path / "rows.npy", array)
    store.create_array(tmp_path, "a", shape=array.shape, dtype=array.dtype, chunks=(64, 6), dims=("sample", "feature"))
    open_array(tmp_path / "a").write(0, array)
    padded = np.zeros((1800, 6), dtype)
    padded[::2] = array
    sources: list[Rows] = [
        ArrayRows(array),
        NpyRows(tmp_path / "rows.npy"),
        ZarrRows(tmp_path, "a"),
        SubsetRows(ArrayRows(padded), np.arange(0, 1800, 2)),
    ]
    settings = Settings(30, max_iter=6)
    geometry = make_geometry(sources[0], in_parts(1), n_clusters=30)
    actual = [fit(rows, settings, geometry=geometry, runner=in_parts(3)) for rows in sources]
    assert all(same_bits(actual[0], other) for other in actual[1:])
    host_cache.clear()


def test_going_on_from_an_interruption_gives_the_same_bits(runner: Runner) -> None:
    rows, settings = blobs(600, 4), Settings(25, init="random", tol=1e-3)
    states: list[LloydStep] = []
    whole = cluster_rows(rows, settings, runner, hooks=Hooks(moved=states.append))
    assert len(states) > 3
    for i, moved in enumerate(states[:-1]):
        inertia = tuple(state.inertia for state in states[: i + 1])
        reports: list[int] = []
        resumed = cluster_rows(
            rows, settings, runner,
            progress=Progress(moved.centroids.get(), inertia, moved.n_relocated),
            hooks=Hooks(seeding=lambda *a: pytest.fail("seeded again"), iteration=lambda i, *_, t=reports: t.append(i)),
        )  # fmt: skip
        assert resumed.centroids.tobytes() == whole.centroids.tobytes()
        assert resumed.inertia.tobytes() == whole.inertia.tobytes()
        assert reports[0] == i + 2


def test_what_happens_is_told(runner: Runner) -> None:
    seeding: list[tuple[str, int, int]] = []
    iterations: list[int] = []
    actual = cluster_rows(
        blobs(500, 3), Settings(20, max_iter=5, tol=0.0), runner,
        hooks=Hooks(lambda *told: seeding.append(told), lambda i, *_: iterations.append(i)),
    )  # fmt: skip
    assert seeding[0] == ("draw", 1, 60)
    assert ("draw", 60, 60) in seeding
    assert seeding[-1] == ("refine", 2, 2)
    assert iterations == list(range(1, len(actual.inertia) + 1))


# -- what can hardly be clustered -------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["coreset", "k-means++", "k-means||", "random"])
@pytest.mark.parametrize("spherical", [False, True])
def test_fewer_distinct_rows_than_clusters(init: str, spherical: bool, runner: Runner) -> None:
    distinct = blobs(5, 8)
    rows: Rows = ArrayRows(np.resize(distinct, (203, 8)))
    if spherical:
        rows = UnitRows(rows)
    actual = cluster_rows(rows, Settings(12, init=init), runner, spherical=spherical)
    assert actual.n_unused == 7
    assert actual.inertia[-1] == pytest.approx(0, abs=1e-9)
    used = actual.centroids[~np.isnan(actual.centroids[:, 0])]
    assert np.abs(used[:, None] - rows.read(0, 5)).max(2).min(1).max() < 1e-6  # on the rows, none at the origin


@pytest.mark.parametrize("init", ["coreset", "k-means++", "k-means||", "random"])
def test_rows_without_variance(init: str, runner: Runner) -> None:
    actual = cluster_rows(np.full((90, 4), 0.3, np.float32), Settings(5, init=init), runner)
    assert (actual.n_unused, actual.inertia[-1]) == (4, 0)


@pytest.mark.parametrize("init", ["coreset", "k-means++", "k-means||", "random"])
@pytest.mark.parametrize(("n", "d"), [(1, 3), (70, 1), (150, 20)])
def test_as_many_clusters_as_rows(init: str, n: int, d: int, runner: Runner) -> None:
    rows = blobs(n, d)
    rows[-1] *= 1e4  # so far out that the others look alike from there
    actual = cluster_rows(rows, Settings(n, init=init), runner)
    assert actual.inertia[-1] == 0
    assert sorted(label(rows, actual.centroids)) == list(range(n))


def test_one_cluster_is_the_mean(runner: Runner) -> None:
    rows = blobs(300, 4)
    actual = cluster_rows(rows, Settings(1), runner)
    np.testing.assert_allclose(actual.centroids[0], rows.mean(0, dtype=np.float64), rtol=1e-6, atol=1e-7)


def test_unit_rows_have_unit_centroids(runner: Runner) -> None:
    rows = UnitRows(ArrayRows(blobs(500, 10)))
    actual = cluster_rows(rows, Settings(20), runner, spherical=True)
    np.testing.assert_allclose(np.linalg.norm(actual.centroids, axis=1), 1, atol=1e-6)
    assert (np.diff(actual.inertia) <= 1e-9).all()


# -- putting rows together --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fits", [True, False])
def test_chosen_rows_are_gathered(fits: bool, tmp_path: Path) -> None:
    array = blobs(400, 5).astype(np.float16)
    index = np.flatnonzero(np.random.default_rng(0).uniform(size=400) < 0.4)
    with Runner(n_threads=2, work_dir=tmp_path) as runner:
        if not fits:
            runner.memory_budget = 100
        rows = gather(ArrayRows(array), index, runner)
        assert isinstance(rows, ArrayRows if fits else NpyRows)
        assert rows.dtype == np.float16
        np.testing.assert_array_equal(rows.read(0, rows.n_rows), array[index])
        assert len(list(tmp_path.iterdir())) == (not fits)
        discard(rows)
        forget(rows.key)
    assert not list(tmp_path.iterdir())


def test_threads_need_no_copy(runner: Runner) -> None:
    rows = ArrayRows(blobs(10, 2))
    assert runner.place(rows) is rows
