"""Lloyd's iteration equals a six-line NumPy version and scikit-learn, with the same bits for any chunking."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.memory import TaskPlan
from hkm_dask.compute.partition import Part
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArray
from hkm_dask.data.row_views import UnitRows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows
from hkm_dask.kmeans import lloyd
from hkm_dask.kmeans.lloyd import AssignAndAdd, LloydResult, LloydStep, PartialSums, Progress, iterate, means
from hkm_dask.search.cpu.engine import CpuIndex
from hkm_dask.search.geometry import Geometry, make_geometry
from hkm_dask.search.worker import worker_engine

Cut = Callable[[int], Runner]


def blobs(n: int, d: int, seed: int = 0, centers: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) + 3 * rng.normal(size=(centers, d))[rng.integers(0, centers, n)]).astype("f4")


def run(
    rows: np.ndarray | Rows, start: np.ndarray, runner: Runner, *, geometry: Geometry | None = None, **options: object
) -> LloydResult:
    source = rows if isinstance(rows, Rows) else ArrayRows(rows)
    geometry = geometry or make_geometry(source, runner, n_clusters=len(start))
    settings = {"max_iter": 100, "tol": 0.0, **options}
    return iterate(source, np.array(start, np.float32), geometry=geometry, runner=runner, **settings)  # type: ignore[arg-type]


def label(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    squared = [((rows.astype(np.float64) - c) ** 2).sum(1) for c in centroids.astype(np.float64)]
    return np.argmin(np.where(np.isnan(squared), np.inf, squared), axis=0)


def same_bits(a: LloydResult, b: LloydResult) -> bool:
    return (a.centroids.tobytes(), a.inertia.tobytes(), a.n_relocated) == (
        b.centroids.tobytes(),
        b.inertia.tobytes(),
        b.n_relocated,
    )


# -- oracles ----------------------------------------------------------------------------------------------------------


def kmeans_in_numpy(x: np.ndarray, c: np.ndarray, n_iter: int) -> tuple[np.ndarray, list[float]]:
    inertia = []
    for _ in range(n_iter):
        squared = ((x[:, None] - c) ** 2).sum(2)
        inertia.append(squared.min(1).sum())
        c = np.stack([x[squared.argmin(1) == j].mean(0) for j in range(len(c))])
    return c, inertia


@pytest.mark.parametrize("d", [1, 2, 3, 4, 20])
@pytest.mark.parametrize("n_iter", [1, 5])
def test_it_equals_a_six_line_numpy_version(d: int, n_iter: int, runner: Runner) -> None:
    rows = blobs(400, d)
    start = rows[::40]
    actual = run(rows, start, runner, max_iter=n_iter)
    centroids, inertia = kmeans_in_numpy(rows.astype(np.float64), start.astype(np.float64), n_iter)
    np.testing.assert_allclose(actual.centroids, centroids, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(actual.inertia, inertia, rtol=1e-6)
    assert actual.n_relocated == 0


@pytest.mark.parametrize(("n", "d", "k"), [(900, 2, 30), (600, 10, 8), (3000, 32, 64), (2500, 40, 100)])
def test_it_ends_where_scikit_learn_ends(n: int, d: int, k: int, runner: Runner) -> None:
    rows = blobs(n, d, seed=k)
    start = rows[:k].copy()
    actual = run(rows, start, runner, max_iter=300)
    reference = KMeans(k, init=start.astype(np.float64), n_init=1, algorithm="lloyd", tol=0, max_iter=300).fit(
        rows.astype(np.float64)
    )
    np.testing.assert_array_equal(label(rows, actual.centroids), reference.labels_)
    assert actual.inertia[-1] == pytest.approx(reference.inertia_, rel=1e-5)
    np.testing.assert_allclose(actual.centroids, reference.cluster_centers_, atol=1e-5)


@pytest.mark.parametrize("dtype", ["f2", "f8"])
def test_other_dtypes_are_summed_widely(dtype: str, runner: Runner) -> None:
    rows = (700 + 50 * blobs(500, 20)).clip(300, 1000).astype(dtype)
    actual = run(rows, rows[:10].astype(np.float32), runner, max_iter=6)
    wide = rows.astype(np.float32).astype(np.float64)
    centroids, inertia = kmeans_in_numpy(wide, wide[:10], len(actual.inertia))
    np.testing.assert_allclose(actual.centroids, centroids, rtol=1e-5)
    np.testing.assert_allclose(actual.inertia, inertia, rtol=1e-5)


def test_unit_rows_have_unit_centroids(runner: Runner) -> None:
    rows = UnitRows(ArrayRows(blobs(500, 16)))
    x = rows.read(0, 500)
    geometry = make_geometry(rows, runner, n_clusters=9, spherical=True)
    actual = run(rows, x[:9], runner, geometry=geometry, max_iter=7)
    c = x[:9].astype(np.float64)
    for _ in range(7):
        nearest = (x @ c.T).argmax(1)  # on the sphere the nearest is the one at the smallest angle
        c = np.stack([x[nearest == j].astype(np.float64).mean(0) for j in range(9)])
        c /= np.linalg.norm(c, axis=1, keepdims=True)
    np.testing.assert_allclose(actual.centroids, c, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(actual.centroids, axis=1), 1, atol=1e-6)


def test_the_example_of_the_paper(runner: Runner) -> None:
    """5000 points in [0.9, 1.1], two at 2, two at 3: what looks right is not the optimum (arXiv:2405.15613 §3.2)."""
    rows = np.concatenate([np.linspace(0.9, 1.1, 5000), [2, 2, 3, 3]])[:, None].astype(np.float32)
    right = run(rows, [[1.0], [2.0], [3.0]], runner, max_iter=1)
    best = run(rows, [[0.95], [1.05], [2.5]], runner)
    assert right.inertia[0] == pytest.approx(16.67, abs=0.01)
    assert best.inertia[-1] == pytest.approx(5.17, abs=0.01)
    np.testing.assert_allclose(best.centroids.ravel(), [0.95, 1.05, 2.5], atol=1e-3)


# -- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [2, 32])
def test_any_number_of_parts_gives_the_same_bits(d: int, in_parts: Cut) -> None:
    rows = blobs(1500, d)
    actual = [run(rows, rows[:70], in_parts(n)) for n in (1, 2, 8)]
    assert same_bits(actual[0], actual[1])
    assert same_bits(actual[0], actual[2])


def test_parts_smaller_than_the_list_of_far_rows_relocate_the_same(in_parts: Cut) -> None:
    rows = blobs(64, 3)
    actual = [run(rows, np.repeat(rows[:2], 20, axis=0), in_parts(n)) for n in (1, 2, 8, 30)]
    assert actual[0].n_relocated > 16
    assert all(same_bits(actual[0], other) for other in actual[1:])


@settings(max_examples=15)
@given(st.permutations(range(8)), st.integers(0, 3))
def test_permuting_rows_permutes_labels(order: list[int], seed: int) -> None:
    rows = blobs(160, 5, seed)
    permutation = (np.array(order)[:, None] * 20 + np.arange(20)).ravel()[::-1]
    with Runner(n_threads=1) as one:
        geometry = make_geometry(ArrayRows(rows), one, n_clusters=8)
        a = run(rows, rows[:8], one, geometry=geometry)
        b = run(rows[permutation], rows[:8], one, geometry=geometry)
    assert same_bits(a, b)
    np.testing.assert_array_equal(label(rows, a.centroids)[permutation], label(rows[permutation], b.centroids))


def test_streamed_or_resident_the_bits_are_the_same(
    in_parts: Cut, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = blobs(3000, 32)
    np.save(tmp_path / "rows.npy", rows)
    on_disk = NpyRows(tmp_path / "rows.npy")
    expected = run(rows, rows[:80], in_parts(1))
    for budget in (0, 300_000, 1 << 30):
        cut = in_parts(2)
        geometry = make_geometry(on_disk, cut, n_clusters=80)
        monkeypatch.setattr("hkm_dask.compute.memory.plan_tasks", lambda *_, b=budget, **__: TaskPlan(2, 50_000, b))
        assert same_bits(run(on_disk, rows[:80], cut, geometry=geometry), expected)
        assert host_cache._used <= budget
        host_cache.clear()


def test_what_is_remembered_may_be_lost_at_any_time(in_parts: Cut) -> None:
    rows = blobs(800, 32)
    expected = run(rows, rows[:70], in_parts(2))
    actual = run(rows, rows[:70], in_parts(2), on_iteration=lambda i, moved: host_cache.clear() if i % 3 else None)
    assert same_bits(actual, expected)


def test_labels_of_an_older_iteration_are_good_for_a_hint_and_no_more(in_parts: Cut) -> None:
    rows = blobs(500, 6)
    geometry = make_geometry(ArrayRows(rows), in_parts(1), n_clusters=20)
    part = Part(ArrayRows(rows), (0, 500), 1 << 30)
    starts = [rows[:20].copy(), rows[100:120].copy(), rows[100:120].copy()]
    starts[2][0] = rows[200]  # between the last two only one centroid moved
    oldest, older, current = (SharedArray(array=start) for start in starts)
    AssignAndAdd(oldest, geometry, "run")(part)
    actual = AssignAndAdd(current, geometry, "run", before=older)(part)
    assert current.array is not None
    labels = label(rows, current.array)
    np.testing.assert_array_equal(actual.counts, np.bincount(labels, minlength=20))
    exact = [np.rint(rows[labels == j].astype(np.float64) * geometry.scale).sum(0) for j in range(20)]
    np.testing.assert_array_equal(actual.sums, np.array(exact).astype(np.int64))
    host_cache.clear()


def test_an_outcome_that_is_still_held_is_not_changed_by_a_repeated_task(in_parts: Cut) -> None:
    """Dask repeats tasks of a worker that died on another, where outcomes of the next pass may wait to be combined."""
    rows = blobs(500, 6)
    geometry = make_geometry(ArrayRows(rows), in_parts(1), n_clusters=20)
    part = Part(ArrayRows(rows), (0, 500), 1 << 30)
    first, second = (SharedArray(array=np.ascontiguousarray(rows[i : i + 20])) for i in (0, 100))
    held = [AssignAndAdd(first, geometry, "run")(part), AssignAndAdd(second, geometry, "run", before=first)(part)]
    kept = [(one.sums.tobytes(), one.counts.tobytes()) for one in held]
    repeated = AssignAndAdd(first, geometry, "run")(part)
    assert [(one.sums.tobytes(), one.counts.tobytes()) for one in held] == kept
    assert (repeated.sums.tobytes(), repeated.counts.tobytes()) == kept[0]
    host_cache.clear()


def test_weights_equal_repeated_rows(in_parts: Cut) -> None:
    rows = blobs(300, 6)
    weights = np.random.default_rng(0).integers(1, 6, 300)
    repeated = np.repeat(rows, weights, axis=0)
    for n in (1, 3):
        cut = in_parts(n)
        geometry = make_geometry(ArrayRows(rows), cut, n_clusters=15, total_weight=int(weights.sum()))
        a = run(rows, rows[:15], cut, geometry=geometry, weights=weights)
        b = run(repeated, rows[:15], cut, geometry=geometry)
        assert a.n_relocated == 0
        assert same_bits(a, b)


def test_going_on_from_an_interruption_gives_the_same_bits(runner: Runner) -> None:
    rows = blobs(400, 4)
    start = np.concatenate([rows[:20], np.repeat(rows[:1], 10, axis=0)])  # ten empty clusters to begin with
    for tol in (0.0, 1e-2, 0.99):
        states: list[tuple[np.ndarray, float, LloydStep]] = []
        whole = run(
            rows, start, runner, tol=tol,
            on_iteration=lambda i, moved, s=states: s.append((moved.centroids.get().copy(), moved.inertia, moved)),
        )  # fmt: skip
        assert whole.n_relocated
        assert [moved.last for _, _, moved in states] == [False] * (len(states) - 1) + [True]
        for i, (centroids, _, moved) in enumerate(states[:-1]):
            resumed = run(
                rows, centroids, runner, tol=tol,
                progress=Progress(centroids, tuple(inertia for _, inertia, _ in states[: i + 1]), moved.n_relocated),
            )  # fmt: skip
            assert resumed.centroids.tobytes() == whole.centroids.tobytes()
            assert resumed.inertia.tobytes() == whole.inertia.tobytes()


def some_totals(numbers: list[int], k: int = 3) -> PartialSums:
    """Totals of a part with these rows; the key of a row is drawn by its number, with ties."""
    rng = np.random.default_rng(sum(numbers))
    rows = np.array(numbers, np.int64)
    keys = -(rows * 7919 % 5).astype(np.float64)
    order = np.lexsort((rows, keys))[: lloyd._n_far(k)]
    sums, counts = rng.integers(-9, 9, (k, 2)), rng.integers(0, 9, k)
    return PartialSums(sums, counts, sum(numbers), -keys[order], rows[order])


@given(st.permutations(range(60)), st.integers(0, 60), st.integers(0, 60))
def test_totals_add_up_in_any_grouping_and_order(order: list[int], i: int, j: int) -> None:
    i, j = min(i, j), max(i, j)
    a, b, c = some_totals(order[:i]), some_totals(order[i:j]), some_totals(order[j:])
    whole = some_totals(order)
    for total in ((a + b) + c, a + (b + c), (c + a) + b):
        np.testing.assert_array_equal(total.sums, a.sums + b.sums + c.sums)
        np.testing.assert_array_equal(total.counts, a.counts + b.counts + c.counts)
        assert total.inertia == whole.inertia
        np.testing.assert_array_equal(total.far_rows, whole.far_rows)
        np.testing.assert_array_equal(total.far_distances, whole.far_distances)


def test_the_rows_furthest_away_are_kept_with_ties_to_the_lowest() -> None:
    distances = np.random.default_rng(0).integers(0, 6, 500).astype(np.float64)
    far, places = worker_engine().furthest(distances, 40)
    order = np.lexsort((np.arange(500), -distances))[:40]
    np.testing.assert_array_equal(places, order)
    np.testing.assert_array_equal(far, distances[order])
    assert sorted(worker_engine().furthest(distances[:3], 40)[1].tolist()) == [0, 1, 2]


# -- empty clusters ---------------------------------------------------------------------------------------------------


def test_empty_clusters_move_to_the_rows_furthest_away(runner: Runner) -> None:
    rows = np.array([[0], [1], [2], [3], [100]], np.float32)
    actual = run(rows, [[5], [1000], [2000]], runner, max_iter=1)
    # 100 is 95 from its centroid, 0 is 5: these two are given away, the mean of 1, 2 and 3 stays.
    assert actual.centroids.ravel().tolist() == [2, 100, 0]
    assert actual.n_relocated == 2
    assert actual.inertia.tolist() == [95**2 + 25 + 16 + 9 + 4]


def test_a_cluster_never_loses_its_last_row(runner: Runner) -> None:
    rows = np.array([[0], [10], [10.5]], np.float32)
    actual = run(rows, [[4], [10.25], [1000]], runner, max_iter=1)
    assert actual.centroids.ravel().tolist() == [0, 10.5, 10]  # 0 is furthest from its centroid, and alone
    assert actual.n_relocated == 1


def test_equally_far_rows_are_taken_in_order_and_copies_once(runner: Runner) -> None:
    rows = np.array([[-3], [3], [3], [-3], [0], [0]], np.float32)
    actual = run(rows, [[0], [50], [60], [70]], runner, max_iter=1)
    # -3 and 3 are given away once each; the third slot waits, since a copy would share a place with them.
    assert actual.centroids.ravel().tolist() == [0, -3, 3, 70]
    assert actual.n_relocated == 2
    done = run(rows, [[0], [50], [60], [70]], runner)
    assert np.isnan(done.centroids[3, 0])
    assert done.centroids[:3].ravel().tolist() == [0, -3, 3]
    assert done.inertia[-1] == 0


@pytest.mark.parametrize("seed", range(3))
def test_more_empty_clusters_than_far_rows_are_filled_in_turns(seed: int, runner: Runner) -> None:
    rows = blobs(120, 3, seed)
    actual = run(rows, np.repeat(rows[:1], 100, axis=0), runner)
    counts = np.bincount(label(rows, actual.centroids), minlength=100)
    assert counts.min() >= 1
    assert actual.n_relocated > 2 * lloyd._n_far(100)


def test_slots_without_a_centroid_are_filled(runner: Runner) -> None:
    rows = blobs(100, 3)
    start = np.full((5, 3), np.nan, np.float32)
    start[2] = rows[0]
    actual = run(rows, start, runner)
    assert np.bincount(label(rows, actual.centroids), minlength=5).min() >= 1


@pytest.mark.parametrize("seed", range(5))
def test_inertia_falls_but_for_relocations(seed: int, runner: Runner) -> None:
    rng = np.random.default_rng(seed)
    rows = blobs(500, 6, seed)
    start = rng.normal(size=(60, 6)).astype(np.float32) * 8  # many of them empty
    moved: list[LloydStep] = []
    actual = run(rows, start, runner, on_iteration=lambda i, m: moved.append(m))
    assert actual.n_relocated > 0
    assert moved[-1].at_rest
    for i in range(1, len(moved)):
        assert moved[i].inertia <= moved[i - 1].inertia * (1 + 1e-6) or moved[i - 1].n_relocated
    np.testing.assert_array_equal(actual.inertia, [m.inertia for m in moved])
    squared = ((rows.astype(np.float64) - moved[-2].centroids.array[label(rows, moved[-2].centroids.array)]) ** 2).sum()
    assert actual.inertia[-1] == pytest.approx(squared, rel=1e-9)


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_fewer_distinct_rows_than_clusters_leave_slots_unused(spherical: bool, seed: int, runner: Runner) -> None:
    """Copies whose fixed-point mean is not quite the row itself must not found clusters of their own."""
    rng = np.random.default_rng(seed)
    distinct = (rng.normal(size=(5, 8)) * 10.0 ** rng.integers(-9, 1, size=(5, 8))).astype(np.float32)
    rows: Rows = ArrayRows(distinct[np.append(np.arange(5), rng.integers(0, 5, 200))])
    if spherical:
        rows = UnitRows(rows)
    geometry = make_geometry(rows, runner, n_clusters=12, spherical=spherical)
    actual = run(rows, rows.read(0, 12), runner, geometry=geometry)
    used = ~np.isnan(actual.centroids).any(axis=1)
    assert used.sum() == 5
    assert np.isnan(actual.centroids[~used]).all()
    assert len(actual.inertia) < 8
    assert actual.inertia[-1] == pytest.approx(0, abs=1e-9)
    assert (np.bincount(label(rows.read(0, 205), actual.centroids), minlength=12)[used] > 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-30, 1e15])
def test_rows_without_variance_end_with_one_cluster(value: float, runner: Runner) -> None:
    rows = np.full((50, 30), value, np.float32)
    actual = run(rows, rows[:4], runner)
    np.testing.assert_array_equal(actual.centroids[0], rows[0])
    assert np.isnan(actual.centroids[1:]).all()
    assert actual.inertia[-1] == 0


@pytest.mark.parametrize("d", [1, 3, 30])
def test_as_many_clusters_as_rows_have_no_inertia(d: int, runner: Runner) -> None:
    rows = blobs(70, d)
    for start in (rows, np.repeat(rows[:7], 10, axis=0)):
        actual = run(rows, start, runner)
        assert actual.inertia[-1] == 0
        assert sorted(label(rows, actual.centroids)) == list(range(70))


# -- when it ends -----------------------------------------------------------------------------------------------------


def test_it_ends_by_tolerance_by_rest_or_by_the_cap(runner: Runner) -> None:
    rows = blobs(600, 5)
    exact = run(rows, rows[:30], runner)
    loose = run(rows, rows[:30], runner, tol=0.01)
    n = len(loose.inertia)
    np.testing.assert_array_equal(loose.inertia, exact.inertia[:n])
    falls = 1 - loose.inertia[1:] / loose.inertia[:-1]
    assert falls[-1] <= 0.01 < falls[:-1].min()
    assert len(run(rows, rows[:30], runner, max_iter=3).inertia) == 3
    assert len(run(rows, exact.centroids, runner).inertia) == 1  # nothing moves
    np.testing.assert_array_equal(run(rows, exact.centroids, runner).centroids, exact.centroids)


def test_it_does_not_end_before_a_relocation_has_shown(runner: Runner) -> None:
    rows = blobs(600, 5)
    start = np.concatenate([rows[:29], np.full((1, 5), 1e3, np.float32)])
    moved: list[LloydStep] = []
    run(rows, start, runner, tol=0.99, on_iteration=lambda i, m: moved.append(m))
    # The relocation shows in the second inertia, and what it is worth in the third.
    assert [m.n_relocated for m in moved] == [1, 0, 0]
    assert len(run(rows, rows[:30], runner, tol=0.99).inertia) == 2


def test_an_iteration_is_told_as_it_ends(runner: Runner) -> None:
    rows = blobs(200, 3)
    reports: list[tuple[int, LloydStep]] = []
    actual = run(rows, rows[:9], runner, max_iter=4, on_iteration=lambda i, moved: reports.append((i, moved)))
    assert [i for i, _ in reports] == [1, 2, 3, 4]
    assert [moved.last for _, moved in reports] == [False, False, False, True]
    assert [moved.n_unused for _, moved in reports] == [0] * 4
    np.testing.assert_array_equal(reports[-1][1].centroids.get(), actual.centroids)


def test_means_of_integers_are_exact() -> None:
    geometry = Geometry(np.zeros(2, np.float32), 4.0, 1 << 20)
    sums = np.array([[3, -6], [0, 0], [10, 10]]) * int(geometry.scale)
    np.testing.assert_array_equal(means(sums, np.array([3, 0, 4]), geometry), [[1, -2], [0, 0], [2.5, 2.5]])
    unit = Geometry(geometry.origin, 4.0, 1 << 20, spherical=True)
    np.testing.assert_allclose(
        means(sums, np.array([3, 0, 4]), unit), [[0.2**0.5, -(0.8**0.5)], [0, 0], [0.5**0.5, 0.5**0.5]], rtol=1e-7
    )


def test_the_search_and_the_iteration_agree_on_labels(runner: Runner) -> None:
    rows = blobs(900, 40)
    geometry = make_geometry(ArrayRows(rows), runner, n_clusters=64)
    actual = run(rows, rows[:64], runner, geometry=geometry)
    labels = np.full(900, -1, np.int32)
    CpuIndex(actual.centroids, geometry, 16).nearest(rows, labels, np.full(900, np.inf))
    np.testing.assert_array_equal(labels, label(rows, actual.centroids))
