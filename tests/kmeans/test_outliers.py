"""Rows far from all others: clustered as if they were absent, or refused by row number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans

import hkm_dask as hkm
from hkm_dask.compute.runner import Runner
from hkm_dask.data.row_views import SubsetRows
from hkm_dask.data.rows import ArrayRows, Rows
from hkm_dask.errors import InputError
from hkm_dask.events import Event, subscribe
from hkm_dask.kmeans.fit import Fit, Hooks, Settings, fit
from hkm_dask.kmeans.lloyd import LloydStep, Progress
from hkm_dask.kmeans.outliers import far_rows_warning
from hkm_dask.search.cpu.engine import CpuIndex
from hkm_dask.search.geometry import Geometry, make_geometry
from tests.hierarchy.test_split import split_labels

#: Rows, features and clusters; k-means of the second are searched with a pruned index.
SHAPES = {"small": (3000, 16, 30), "pruned": (3000, 32, 64), "large": (20_000, 16, 30)}
VALUES = [1e2, 1e4, 1e7, 1e8, 1e12, 1e15, 1e20, 1e30]
#: Squares of larger values leave float32.
REFUSED_FROM = 2.0**62 / 4
FIRST, SEEDS = 17, 3

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*too far out to share a cluster",
    "ignore:Number of distinct clusters:sklearn.exceptions.ConvergenceWarning",  # scikit-learn, which loses rows
)


def far_counts(shape: str) -> tuple[int, ...]:
    return 1, 10, SHAPES[shape][0] // 100


def ordinary(shape: str) -> np.ndarray:
    n, d, _ = SHAPES[shape]
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, d)) + 3 * rng.normal(size=(12, d))[rng.integers(12, size=n)]).astype(np.float32)


def with_far_rows(shape: str, value: float, n_far: int, dtype: str = "f4") -> tuple[np.ndarray, np.ndarray]:
    """Rows, some of them far away in directions of their own, and whether each is ordinary."""
    rows = ordinary(shape).astype(dtype)
    far = FIRST + 97 * np.arange(n_far)
    rows[far] = value * np.random.default_rng(1).uniform(0.3, 1.0, (n_far, rows.shape[1]))
    rows[far, 0] = value
    return rows, ~np.isin(np.arange(len(rows)), far)


def refusal(n_far: int) -> str:
    rows = rf"row {FIRST} of" if n_far == 1 else rf"{n_far} rows \({FIRST}, {FIRST + 97}, .*\) of"
    return rf"max_abs=\S+ in {rows} .* should be < \S+; leave th(at row|ose rows) out"


def inertia(rows: np.ndarray, centroids: np.ndarray, labels: np.ndarray) -> float:
    differences = rows.astype(np.float64) - centroids.astype(np.float64)[labels]
    return float(np.einsum("ij,ij->", differences, differences))


@pytest.fixture(scope="module")
def expected() -> Callable[[str, float, int], tuple[float, float]]:
    """Inertia of all rows and of the ordinary ones by scikit-learn's greedy k-means++, medians over seeds.

    It loses the ordinary rows itself beside the largest values: those are then clustered alone, with the clusters that
    the far ones leave.
    """
    actual: dict[tuple[str, float, int], tuple[float, float]] = {}

    def look(shape: str, value: float, n_far: int) -> tuple[float, float]:
        if (shape, value, n_far) not in actual:
            rows, is_ordinary = with_far_rows(shape, value, n_far, "f8")
            k = SHAPES[shape][2]
            fits = [KMeans(k, n_init=1, random_state=seed).fit(rows) for seed in range(SEEDS)]
            own = [inertia(rows[is_ordinary], fit.cluster_centers_, fit.labels_[is_ordinary]) for fit in fits]
            if value > 1e7 and n_far < k:
                alone = [KMeans(k - n_far, n_init=1, random_state=seed).fit(rows[is_ordinary]) for seed in range(SEEDS)]
                own = [fit.inertia_ for fit in alone]
            actual[shape, value, n_far] = float(np.median([fit.inertia_ for fit in fits])), float(np.median(own))
        return actual[shape, value, n_far]

    return look


Expected = Callable[[str, float, int], tuple[float, float]]

# -- k-means ----------------------------------------------------------------------------------------------------------


def assert_as_without_far_rows(shape: str, value: float, n_far: int, expected: Expected, **how: Any) -> None:
    rows, is_ordinary = with_far_rows(shape, value, n_far)
    if value >= REFUSED_FROM:
        with pytest.raises(InputError, match=refusal(n_far)):
            hkm.KMeans(SHAPES[shape][2], **how).fit(rows)
        return
    whole, own = [], []
    for seed in range(SEEDS):
        km = hkm.KMeans(SHAPES[shape][2], random_state=seed, **how).fit(rows)
        whole.append(inertia(rows, km.cluster_centers_, km.labels_))
        own.append(inertia(rows[is_ordinary], km.cluster_centers_, km.labels_[is_ordinary]))
        assert km.inertia_ == pytest.approx(whole[-1], rel=1e-6)
    np.testing.assert_array_equal(km.predict(rows), km.labels_)
    expected_whole, expected_own = expected(shape, value, n_far)
    assert np.median(own) <= 1.02 * expected_own
    if n_far < SHAPES[shape][2]:  # else nearly all clusters share few far rows, and luck decides by some per cent
        assert np.median(whole) <= 1.02 * expected_whole


# Every value and every number of far rows is tried, and not each with each.
@pytest.mark.parametrize(
    ("value", "n_far"),
    [
        pytest.param(value, n_far, marks=[pytest.mark.slow] * ((i + j) % 3 > 0))
        for i, value in enumerate(VALUES)
        for j, n_far in enumerate(far_counts("small"))
    ],
)
def test_kmeans_clusters_the_others_as_if_there_were_no_far_rows(value: float, n_far: int, expected: Expected) -> None:
    assert_as_without_far_rows("small", value, n_far, expected)


@pytest.mark.parametrize(("value", "n_far"), [(1e4, 10), (1e15, 30)])
def test_a_pruned_search_does_not_mind_far_rows(value: float, n_far: int, expected: Expected) -> None:
    assert_as_without_far_rows("pruned", value, n_far, expected)


@pytest.mark.slow
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("shape", "n_far"), [(shape, n) for shape in ("large", "pruned") for n in far_counts(shape)])
@pytest.mark.parametrize("init", ["coreset", "k-means++"])
def test_far_rows_of_any_kind(value: float, shape: str, n_far: int, init: str, expected: Expected) -> None:
    assert_as_without_far_rows(shape, value, n_far, expected, init=init)


@pytest.mark.parametrize("value", [1e7, 1e15])
@pytest.mark.parametrize(("n_far", "shape"), [(1, "small"), (10, "pruned")])
@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_every_seeding_bears_far_rows(value: float, n_far: int, shape: str, init: str, expected: Expected) -> None:
    rows, is_ordinary = with_far_rows(shape, value, n_far)
    km = hkm.KMeans(SHAPES[shape][2], init=init, random_state=0).fit(rows)
    assert km.inertia_ == pytest.approx(inertia(rows, km.cluster_centers_, km.labels_), rel=1e-6)
    own = inertia(rows[is_ordinary], km.cluster_centers_, km.labels_[is_ordinary])
    assert own <= 1.1 * expected(shape, value, n_far)[1]


@pytest.mark.parametrize(("dtype", "value"), [("f2", 1e2), ("f2", 1e4), ("f8", 1e8), ("f8", 1e15)])
def test_rows_of_any_type(dtype: str, value: float, expected: Expected) -> None:
    rows, is_ordinary = with_far_rows("small", value, 10, dtype)
    km = hkm.KMeans(30, random_state=0).fit(rows)
    looked_at = rows.astype(np.float32)
    assert km.inertia_ == pytest.approx(inertia(looked_at, km.cluster_centers_, km.labels_), rel=1e-6)
    own = inertia(looked_at[is_ordinary], km.cluster_centers_, km.labels_[is_ordinary])
    assert own <= 1.02 * expected("small", value, 10)[1]


@pytest.mark.parametrize("value", [1e4, 1e12, 1e15])
def test_weights_stand_for_copies_beside_far_rows(value: float) -> None:
    rows, is_ordinary = with_far_rows("small", value, 10)
    weights = np.random.default_rng(8).integers(1, 5, len(rows))
    start = start_with_shared_far_cluster(rows, is_ordinary)
    weighted = hkm.KMeans(13, init=start).fit(rows, sample_weight=weights)
    copies = hkm.KMeans(13, init=start).fit(np.repeat(rows, weights, axis=0))
    np.testing.assert_array_equal(weighted.labels_, copies.labels_[np.cumsum(weights) - 1])
    assert (weighted.n_iter_, weighted.inertia_) == (copies.n_iter_, pytest.approx(copies.inertia_, rel=1e-12))
    true = sum(
        inertia(rows[weights >= w], weighted.cluster_centers_, weighted.labels_[weights >= w]) for w in range(1, 5)
    )
    assert weighted.inertia_ == pytest.approx(true, rel=1e-6)
    assert -weighted.score(rows, sample_weight=weights) == pytest.approx(true, rel=1e-6)


# -- what far rows would drown ----------------------------------------------------------------------------------------


def narrow_groups(n_groups: int = 12, width: float = 0.01) -> np.ndarray:
    """Groups much narrower than they are far apart."""
    rng = np.random.default_rng(3)
    centers = 10 * rng.normal(size=(n_groups, 8))
    return (centers[np.arange(1200) % n_groups] + width * rng.normal(size=(1200, 8))).astype(np.float32)


@pytest.mark.parametrize("value", [1e7, 1e12, 1e15])
def test_sums_keep_what_is_narrow_beside_the_spread(value: float) -> None:
    rows = narrow_groups()
    rows[FIRST] = value
    km = hkm.KMeans(13, random_state=0).fit(rows)
    others = np.delete(np.arange(1200), FIRST)
    middles = np.stack([rows[others[others % 12 == g]].mean(0, dtype="f8") for g in range(12)])
    best = inertia(rows[others], middles, others % 12)
    assert km.inertia_ == pytest.approx(best, rel=1e-4)
    assert km.inertia_ == pytest.approx(inertia(rows, km.cluster_centers_, km.labels_), rel=1e-6)


def test_an_empty_cluster_is_refilled_beside_a_far_row() -> None:
    rows = narrow_groups()
    rows[FIRST] = 1e15
    others = np.delete(rows, FIRST, axis=0)
    start = np.repeat(rows[:1], 12, axis=0)  # all but one get no rows
    km = hkm.KMeans(13, init=np.concatenate([start, rows[FIRST : FIRST + 1]])).fit(rows)
    alone = hkm.KMeans(12, init=start).fit(others)
    np.testing.assert_array_equal(np.delete(km.labels_, FIRST), alone.labels_)
    np.testing.assert_allclose(km.cluster_centers_[:12], alone.cluster_centers_, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_rows_mostly_far_from_each_other(share: float) -> None:
    """As centroids are, above a level that gave most clusters to far rows."""
    rng = np.random.default_rng(4)
    rows = rng.normal(size=(200, 8)).astype(np.float32)
    n_far = int(share * 200)
    rows[:n_far] *= np.float32(1e15)
    km = hkm.KMeans(n_far + 20, random_state=0).fit(rows)
    true = inertia(rows, km.cluster_centers_, km.labels_)
    alone = KMeans(20, n_init=3, random_state=0).fit(rows[n_far:].astype("f8")).inertia_
    assert km.inertia_ == pytest.approx(true, rel=1e-6)
    assert 0 < true <= 1.1 * alone


@pytest.mark.parametrize("value", [1e7, 1e15])
def test_copies_are_told_from_rows_close_to_each_other_beside_a_far_one(value: float, runner: Runner) -> None:
    rows, _ = with_far_rows("small", value, 1)
    assert make_geometry(ArrayRows(rows), runner, n_clusters=30).resolution < 1e-8


@pytest.mark.parametrize("value", [1e4, 1e7, 1e15])
def test_a_far_centroid_does_not_make_all_others_be_measured(value: float, runner: Runner) -> None:
    rows, is_ordinary = with_far_rows("small", value, 2)
    centroids = np.concatenate([rows[is_ordinary][:200], rows[~is_ordinary]])
    labels, distances = np.full(3000, -1, np.int32), np.full(3000, np.inf)
    geometry = make_geometry(ArrayRows(rows), runner, n_clusters=202)
    n_measured = CpuIndex(centroids, geometry).nearest(rows, labels, distances)
    assert n_measured < 15 * len(rows)  # not 202
    wide = centroids.astype(np.float64)
    squared = np.stack([((row - wide) ** 2).sum(1) for row in rows.astype(np.float64)])
    np.testing.assert_array_equal(labels, squared.argmin(1))


# -- when to stop -----------------------------------------------------------------------------------------------------


def start_with_shared_far_cluster(rows: np.ndarray, is_ordinary: np.ndarray) -> np.ndarray:
    """Initial centroids: some ordinary rows, and one for all far rows together."""
    return np.concatenate([rows[is_ordinary][:12], rows[~is_ordinary].mean(0, keepdims=True)])


@pytest.mark.parametrize("value", [1e4, 1e8, 1e15])
def test_iteration_goes_on_while_ordinary_rows_do(value: float) -> None:
    rows, is_ordinary = with_far_rows("small", value, 10)
    start = start_with_shared_far_cluster(rows, is_ordinary)
    km = hkm.KMeans(13, init=start, tol=1e-4).fit(rows)
    alone = hkm.KMeans(12, init=start[:12], tol=1e-4).fit(rows[is_ordinary])
    assert alone.n_iter_ > 4
    assert km.n_iter_ == alone.n_iter_
    np.testing.assert_array_equal(km.labels_[is_ordinary], alone.labels_)
    np.testing.assert_allclose(km.cluster_centers_[:12], alone.cluster_centers_, rtol=1e-5, atol=1e-5)


def test_going_on_from_an_interruption_stops_at_the_same_iteration(runner: Runner) -> None:
    rows, is_ordinary = with_far_rows("small", 1e12, 10)
    start = start_with_shared_far_cluster(rows, is_ordinary)
    table, geometry = ArrayRows(rows), make_geometry(ArrayRows(rows), runner, n_clusters=13)
    states: list[LloydStep] = []

    def resumed(progress: Progress, hooks: Hooks | None = None) -> Fit:
        settings = Settings(13, tol=1e-4)
        return fit(table, settings, geometry=geometry, runner=runner, progress=progress, hooks=hooks)

    whole = resumed(Progress(start, (), 0), Hooks(moved=states.append))
    assert len(states) > 5
    for i, moved in enumerate(states[:-1]):
        history = tuple(state.inertia for state in states[: i + 1])
        again = resumed(Progress(moved.centroids.get(), history, moved.n_relocated, moved.near_inertia))
        assert again.inertia.tobytes() == whole.inertia.tobytes()
        assert again.centroids.tobytes() == whole.centroids.tobytes()


# -- hierarchies ------------------------------------------------------------------------------------------------------

LEVELS: dict[str, dict[str, Any]] = {
    "two levels": {},
    "resampled": {"n_resamples": 2},
    "random members": {"n_resamples": 1, "resample_strategy": "random"},
    "split": {"n_clusters": 5, "n_splits": 6},
}


def build(rows: np.ndarray, path: Path, **first: Any) -> Any:
    levels = [hkm.Level(**({"n_clusters": 30, "n_resamples": 0} | first)), hkm.Level(n_clusters=3, n_resamples=0)]
    return hkm.build_hierarchy(rows, path, hkm.Config(levels=levels))


def assert_distances_are_exact(tree: Any, rows: np.ndarray) -> None:
    for name in ("level_1", "level_2"):
        centroids, labels = tree[name]["centroids"].to_numpy(), tree[name]["labels"].to_numpy()
        true = ((rows[labels >= 0].astype("f8") - centroids[labels[labels >= 0]]) ** 2).sum(1)
        np.testing.assert_allclose(tree[name]["distances"].to_numpy()[labels >= 0], true, rtol=1e-6)
        rows = centroids


@pytest.mark.parametrize(
    ("kind", "value", "n_far"),
    [("two levels", value, n_far) for value, n_far in [(1e2, 10), (1e8, 1), (1e15, 10)]]
    + [("resampled", 1e15, 30), ("random members", 1e7, 10), ("split", 1e4, 10), ("split", 1e15, 30)],
)
def test_a_hierarchy_has_the_others_as_if_there_were_no_far_rows(
    kind: str, value: float, n_far: int, expected: Expected, tmp_path: Path
) -> None:
    rows, is_ordinary = with_far_rows("small", value, n_far)
    tree = build(rows, tmp_path / "tree.zarr", **LEVELS[kind])
    assert_distances_are_exact(tree, rows)
    level = tree["level_1"]
    own = inertia(rows[is_ordinary], level["centroids"].to_numpy(), level["labels"].to_numpy()[is_ordinary])
    if kind == "two levels":
        assert own <= 1.02 * expected("small", value, n_far)[1]
    history = level["inertia"].to_numpy()[0]  # of the first step, over all rows
    assert (np.diff(history[~np.isnan(history)]) <= 0).all()


@pytest.mark.parametrize("value", [1e20, 1e30])
@pytest.mark.parametrize("n_far", [1, 10])
def test_a_hierarchy_is_refused_before_anything_is_written(value: float, n_far: int, tmp_path: Path) -> None:
    rows, _ = with_far_rows("small", value, n_far)
    with pytest.raises(InputError, match=refusal(n_far)):
        build(rows, tmp_path / "tree.zarr")
    assert list(tmp_path.iterdir()) == []


def test_length_is_nothing_to_cosine(tmp_path: Path) -> None:
    rows, _ = with_far_rows("small", 1e30, 10)
    config = hkm.Config(levels=[hkm.Level(n_clusters=20, n_resamples=0)], metric="cosine")
    level = hkm.build_hierarchy(rows, tmp_path / "tree.zarr", config)["level_1"]
    unit = rows.astype("f8") / np.linalg.norm(rows.astype("f8"), axis=1, keepdims=True)
    true = inertia(unit, level["centroids"].to_numpy(), level["labels"].to_numpy())
    assert level["distances"].astype("f8").sum() == pytest.approx(true, rel=1e-6)
    km = hkm.KMeans(20, metric="cosine", random_state=0).fit(rows)
    assert km.inertia_ == pytest.approx(inertia(unit, km.cluster_centers_, km.labels_), rel=1e-6)
    assert km.inertia_ <= 1.02 * np.median([KMeans(20, random_state=seed).fit(unit).inertia_ for seed in range(SEEDS)])


@pytest.mark.parametrize("value", [1e4, 1e12])
def test_clusters_split_as_if_there_were_no_far_rows(value: float, runner: Runner) -> None:
    rows, is_ordinary = with_far_rows("small", value, 10)
    indptr, members = np.array([0, 1000, 3000]), np.random.default_rng(5).permutation(3000)
    labels = (np.argsort(members) >= 1000).astype(np.int32)
    geometry = make_geometry(ArrayRows(rows), runner, n_clusters=20)
    parts = split_labels(
        ArrayRows(rows), labels, n_clusters=2, settings=Settings(20), geometry=geometry, runner=runner
    )  # fmt: skip
    assert parts.inertia == pytest.approx(inertia(rows, parts.centroids, parts.labels), rel=1e-6)
    for cluster in range(2):
        own = members[indptr[cluster] : indptr[cluster + 1]]
        near = own[is_ordinary[own]]
        n_left = 20 - (len(own) - len(near))
        alone = np.median([KMeans(n_left, n_init=1, random_state=s).fit(rows[near]).inertia_ for s in range(SEEDS)])
        assert inertia(rows[near], parts.centroids, parts.labels[near]) <= 1.05 * alone


# -- warnings ---------------------------------------------------------------------------------------------------------


def warning(rows: Rows, runner: Runner, n_clusters: int = 20, **known: Any) -> str | None:
    geometry = make_geometry(rows, runner, n_clusters=n_clusters, **known)
    return far_rows_warning(rows, geometry, n_clusters=n_clusters, runner=runner)


@pytest.mark.parametrize("value", [1e4, 1e8, 1e15])
def test_far_rows_are_named(value: float, runner: Runner) -> None:
    rows, is_ordinary = with_far_rows("small", value, 1)
    assert str(warning(ArrayRows(rows), runner)).startswith(f"row {FIRST} of array lies too far out")
    rows, is_ordinary = with_far_rows("small", value, 10)
    many = "10 rows (17, 114, 211, 308, 405, …) of array lie too far out"
    assert str(warning(ArrayRows(rows), runner)).startswith(many)
    subset = SubsetRows(ArrayRows(rows), np.arange(100, 3000))
    assert str(warning(subset, runner)).startswith("9 rows (114, 211, 308, 405, 502, …) of array lie too far out")
    without = SubsetRows(ArrayRows(rows), np.flatnonzero(is_ordinary))
    assert warning(without, runner, mean=rows.mean(0), max_abs=value) is None  # what a pool knows of all its rows


def test_far_rows_are_warned_of_once(tmp_path: Path) -> None:
    rows, _ = with_far_rows("small", 1e8, 1)
    with pytest.warns(UserWarning, match=rf"row {FIRST} of array lies too far out to share a cluster: up to 1e\+08"):
        hkm.KMeans(20, max_iter=2, random_state=0).fit(rows)
    told: list[Event] = []
    with subscribe(told.append):
        build(rows, tmp_path / "tree.zarr")
    messages = [event.fields["message"] for event in told if event.kind == "warning"]
    assert [message[:26] for message in messages] == ["row 17 of array lies too f"]
    assert [event.kind for event in told].index("warning") < [event.kind for event in told].index("seeding")


@pytest.mark.parametrize(("scale", "n_told"), [(1.0, 0), (1e-15, 0), (1e-24, 1)])
def test_rows_too_close_together_for_float32_are_told(scale: float, n_told: int, tmp_path: Path) -> None:
    rows = (np.random.default_rng(0).normal(size=(100, 4)) * scale).astype(np.float32)
    told: list[Event] = []
    with subscribe(told.append):
        hkm.build_hierarchy(rows, tmp_path / "tree.zarr", hkm.Config.from_flags((10,), n_resamples=0))
    messages = [event.fields["message"] for event in told if event.kind == "warning"]
    assert len(messages) == n_told
    assert all("float32 cannot hold such small squared distances" in message for message in messages)


def test_ordinary_rows_are_not_passed_over_again(runner: Runner) -> None:
    class Counted(ArrayRows):
        n_read = 0

        def read(self, start: int, stop: int, out: np.ndarray | None = None) -> np.ndarray:
            self.n_read += stop - start
            return super().read(start, stop, out)

    rows = Counted(ordinary("large") + np.float32(100))
    geometry = make_geometry(rows, runner, n_clusters=20)
    before = rows.n_read
    assert far_rows_warning(rows, geometry, n_clusters=20, runner=runner) is None
    assert rows.n_read == before


def heavy_tails(n: int, d: int) -> np.ndarray:
    return np.random.default_rng(6).standard_t(3, size=(n, d)).astype(np.float32)


@pytest.mark.parametrize(
    "rows",
    [heavy_tails(20_000, 16), heavy_tails(2000, 1), np.exp(np.random.default_rng(7).normal(size=(5000, 8)))],
    ids=["Student's t", "Student's t, one feature", "lognormal"],
)
def test_heavy_tails_are_no_outliers(rows: np.ndarray, runner: Runner) -> None:
    assert warning(ArrayRows(rows.astype(np.float32)), runner) is None


def test_units_of_ordinary_rows_are_single(runner: Runner) -> None:
    geometry: Geometry = make_geometry(ArrayRows(ordinary("large")), runner, n_clusters=20)
    assert not geometry.units.is_split
    assert geometry.far_distance == np.inf
