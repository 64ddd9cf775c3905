import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import xarray as xr
import zarr

from hkm_dask.compute import runner as runner_module
from hkm_dask.compute.block_cache import host_cache
from hkm_dask.compute.cluster.connect import connect
from hkm_dask.compute.runner import Runner
from hkm_dask.config import Config, Level
from hkm_dask.data import store
from hkm_dask.data.rows import Rows
from hkm_dask.errors import ComputeError, InputError, StoreError
from hkm_dask.events import Event, subscribe
from hkm_dask.hierarchy import step as step_module
from hkm_dask.hierarchy.build import build_hierarchy
from hkm_dask.hierarchy.sampling.sample import sample
from hkm_dask.hierarchy.tree.tree import open_hierarchy
from hkm_dask.ingestion.ingest import ingest
from hkm_dask.kmeans.fit import Fit, Settings


def blobs(n: int = 400, d: int = 4, seed: int = 0) -> np.ndarray:
    """Unequal clusters, as the pools that are to be balanced have them."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(12, d)) * 4
    return (centers[(12 * rng.random(n) ** 3).astype(int)] + rng.normal(size=(n, d))).astype("f4")


def levels(*ks: int, **settings: Any) -> list[Level]:
    return [Level(n_clusters=k, **{"n_resamples": 2, "max_iter": 8, **settings}) for k in ks]


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Everything a tree holds, read by Zarr."""
    members = zarr.open_group(path, mode="r").members(max_depth=None)
    return {name: array[...] for name, array in members if isinstance(array, zarr.Array)}


def assert_same(one: Path, other: Path) -> None:
    first, second = arrays(one), arrays(other)
    assert set(first) == set(second)
    for name, values in first.items():
        assert values.tobytes() == second[name].tobytes(), name


@contextmanager
def heard() -> Iterator[list[Event]]:
    events: list[Event] = []
    with subscribe(events.append):
        yield events


# --- Algorithm 1 ------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    rows: np.ndarray
    settings: Settings
    centroids: np.ndarray


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Record what every k-means of a build is given and gives back."""
    recorded: list[Step] = []
    real = step_module.fit

    def fit(rows: Rows, settings: Settings, **options: Any) -> Fit:
        outcome = real(rows, settings, **options)
        recorded.append(Step(rows.read(0, rows.n_rows).astype("f4"), settings, outcome.centroids))
        return outcome

    monkeypatch.setattr(step_module, "fit", fit)
    return recorded


def brute_force(rows: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    squared = np.square(rows.astype("f8")[:, None] - centroids.astype("f8")).sum(axis=2)
    squared[np.isnan(squared)] = np.inf
    return squared.argmin(axis=1), squared.min(axis=1)


def closest(labels: np.ndarray, distances: np.ndarray, r: int, k: int) -> list[int]:
    """Rows of the r members of every cluster that are closest to its centroid."""
    chosen = [sorted(np.flatnonzero(labels == c).tolist(), key=lambda i: (distances[i], i))[:r] for c in range(k)]
    return sorted(row for rows in chosen for row in rows)


def check_against_plain_numpy(
    path: Path, rows: np.ndarray, config: Config, steps: list[Step], index: np.ndarray | None = None
) -> None:
    """Follow Algorithm 1 with the outcome of every k-means taken as given, and compare what is stored."""
    contents = arrays(path)
    n_total = len(rows)
    where = np.arange(n_total) if index is None else index
    leaves = np.ones(n_total, np.int64)
    for t, level in enumerate(config.levels, 1):
        own, k = steps[: level.n_resamples + 1], level.n_clusters
        steps = steps[level.n_resamples + 1 :]
        np.testing.assert_array_equal(own[0].rows, rows[where])
        for before, after in itertools.pairwise(own):
            labels, distances = brute_force(rows[where], before.centroids)
            r = max(2, len(where) // (2 * k)) if level.resample_size == "auto" else level.resample_size
            while len(closest(labels, distances, r, k)) < min(k, len(labels)):
                r += 1
            np.testing.assert_array_equal(after.rows, rows[where][closest(labels, distances, r, k)])
        assert len({step.settings.key for step in own}) == len(own)

        stored = {name.split("/")[1]: values for name, values in contents.items() if name.startswith(f"level_{t}/")}
        np.testing.assert_array_equal(stored["centroids"], own[-1].centroids)
        labels, distances = brute_force(rows[where], stored["centroids"])
        expected = np.full(n_total, -1)
        expected[where] = labels
        assert stored["labels"].tolist() == expected.tolist()
        assert stored["distances"][where].tolist() == distances.astype("f4").tolist()
        assert np.isnan(np.delete(stored["distances"], where)).all()
        assert stored["sizes"].tolist() == np.bincount(labels, minlength=k).tolist()
        below = np.zeros(k, np.int64)
        np.add.at(below, labels, leaves[where])
        assert stored["leaf_sizes"].tolist() == below.tolist()
        bounds = stored[f"indptr_{t}"]
        groups = [stored[f"members_{t}"][low:high].tolist() for low, high in itertools.pairwise(bounds)]
        near = np.full(n_total, np.nan, np.float32)
        near[where] = distances
        assert groups == [sorted(np.flatnonzero(expected == c).tolist(), key=lambda i: (near[i], i)) for c in range(k)]
        assert len(stored["inertia"]) == level.n_resamples + 1
        history = stored["inertia"][-1][~np.isnan(stored["inertia"][-1])]
        _, last = brute_force(own[-1].rows, own[-1].centroids)
        # The history holds the inertia before each update, so the last is at least that of the centroids it led to.
        assert last.sum() <= history[-1] * (1 + 1e-6)
        rows, leaves, n_total = stored["centroids"], below, k
        where = np.flatnonzero(stored["sizes"])
    assert not steps


@pytest.mark.parametrize(
    "settings",
    [
        levels(40, 12, 4),
        levels(30),
        levels(60, 30, 10, 3, resample_size=2),
        levels(40, 10, n_resamples=0),
        levels(60, 6, resample_size=1),
        levels(20, 5, init="random", max_iter=1),
        levels(20, 5, init="k-means++", tol=0, max_iter=100),
    ],
    ids=["auto", "one level", "four levels", "no resampling", "r too small", "random init", "to the end"],
)
def test_levels_are_those_of_the_algorithm(tmp_path: Path, steps: list[Step], settings: list[Level]) -> None:
    rows, config = blobs(), Config(levels=tuple(settings), seed=3)
    build_hierarchy(rows, tmp_path / "tree.zarr", config)
    check_against_plain_numpy(tmp_path / "tree.zarr", rows, config, steps)


def test_what_a_run_that_failed_held_does_not_count_against_the_next(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if event.kind == "level_started" and event.fields["level"] == 2:
            raise KeyboardInterrupt

    with subscribe(stop), pytest.raises(KeyboardInterrupt):
        build_hierarchy(blobs(), tmp_path / "tree.zarr", Config(levels=tuple(levels(40, 12))))
    assert host_cache.held == 0


@pytest.mark.parametrize("chunk_mb", [None, 0.0005])
def test_a_subset_of_a_pool_in_half_precision(tmp_path: Path, steps: list[Step], chunk_mb: float | None) -> None:
    rows = blobs().astype("f2")
    pool = ingest(rows, tmp_path / "pool.zarr", chunk_mb=chunk_mb)
    assert (pool.chunk_rows < 80) == (chunk_mb is not None)
    order = np.random.default_rng(0).permutation(400)[:150]
    index = np.sort(order[(order < 90) | (order > 200)])
    np.save(tmp_path / "idx.npy", np.random.default_rng(1).permutation(index))
    config = Config(levels=tuple(levels(20, 5)), subset=str(tmp_path / "idx.npy"))
    tree = build_hierarchy(pool, tmp_path / "tree.zarr", config)
    check_against_plain_numpy(tmp_path / "tree.zarr", rows.astype("f4"), config, steps, index)
    # Numbers map back to the pool.
    assert sample(tree, len(index)).tolist() == index.tolist()
    assert tree.hkm.path(int(index[0]))[0] == tree["level_1/labels"].values[index[0]]
    assert tree.attrs["pool"] == pool.path
    with pytest.raises(InputError, match="left out"):
        tree.hkm.path(100)


def test_cosine_is_the_algorithm_on_the_sphere(tmp_path: Path, steps: list[Step]) -> None:
    rows = blobs() * np.random.default_rng(1).uniform(0.1, 50, (400, 1)).astype("f4")
    config = Config(levels=tuple(levels(30, 8, 2)), metric="cosine")
    build_hierarchy(rows, tmp_path / "tree.zarr", config)
    unit = (rows / np.linalg.norm(rows.astype("f8"), axis=1, keepdims=True)).astype("f4")
    check_against_plain_numpy(tmp_path / "tree.zarr", unit, config, steps)
    for name, values in arrays(tmp_path / "tree.zarr").items():
        if name.endswith("centroids"):
            np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize("config", [(20, 5), {"levels": []}])
def test_what_is_no_config_is_refused(tmp_path: Path, config: Any) -> None:
    with pytest.raises(InputError, match=rf"config={type(config).__name__} should be a Config; make one with Config"):
        build_hierarchy(np.zeros((30, 2), np.float32), tmp_path / "tree.zarr", config)
    assert not list(tmp_path.iterdir())


def test_length_does_not_matter_to_cosine(tmp_path: Path) -> None:
    rows = blobs()
    config = Config(levels=tuple(levels(30, 8)), metric="cosine")
    build_hierarchy(rows, tmp_path / "one.zarr", config)
    # By powers of two, so that the unit rows are the same to the last bit.
    build_hierarchy(rows * np.exp2(np.arange(400) % 9)[:, None].astype("f4"), tmp_path / "other.zarr", config)
    assert_same(tmp_path / "one.zarr", tmp_path / "other.zarr")


def test_random_resampling_takes_r_members_of_every_cluster(tmp_path: Path, steps: list[Step]) -> None:
    rows = blobs()
    settings = levels(20, n_resamples=3, resample_size=4, resample_strategy="random")
    build_hierarchy(rows, tmp_path / "tree.zarr", Config(levels=tuple(settings)))
    drawn = []
    for before, after in itertools.pairwise(steps):
        labels, distances = brute_force(rows, before.centroids)
        numbers = [int(np.flatnonzero((rows == row).all(axis=1))[0]) for row in after.rows]
        assert (
            np.bincount(labels[numbers], minlength=20).tolist()
            == np.minimum(np.bincount(labels, minlength=20), 4).tolist()
        )
        assert numbers != closest(labels, distances, 4, 20)
        drawn.append(tuple(numbers))
    assert len(set(drawn)) == 3


def test_parts_of_a_split_cluster_share_its_rows(tmp_path: Path, steps: list[Step]) -> None:
    rows = blobs()
    config = Config(levels=(Level(n_clusters=10, n_splits=4, n_resamples=1), Level(n_clusters=6, n_resamples=1)))
    told: list[tuple[int, int]] = []
    with subscribe(lambda event: told.append((event.fields["done"], event.fields["total"]))
                   if event.kind == "splitting" else None):  # fmt: skip
        tree = build_hierarchy(rows, tmp_path / "tree.zarr", config)
    assert (told[0], told[-1], told) == ((0, 10), (10, 10), sorted(told))
    contents = arrays(tmp_path / "tree.zarr")
    coarse, _ = brute_force(rows, steps[1].centroids)
    centroids = contents["level_1/centroids"]
    assert centroids.shape == (40, 4)
    for row, label in enumerate(contents["level_1/labels"].tolist()):
        own = np.arange(4 * coarse[row], 4 * coarse[row] + 4)
        nearest, squared = brute_force(rows[row : row + 1], centroids[own])
        assert label == own[nearest[0]]
        assert contents["level_1/distances"][row] == np.float32(squared[0])
    sizes = np.bincount(contents["level_1/labels"], minlength=40)
    assert contents["level_1/sizes"].tolist() == sizes.tolist()
    assert (np.isnan(centroids[:, 0]) == (sizes == 0)).all()
    assert tree["level_2/leaf_sizes"].values.sum() == 400
    assert tree["level_2/labels"].shape == (40,)


def test_the_plan_holds_what_the_steps_cluster(tmp_path: Path) -> None:
    config = Config(levels=(Level(n_clusters=10, n_splits=4, n_resamples=1), Level(n_clusters=6, n_resamples=0)))
    with heard() as events:
        build_hierarchy(blobs(), tmp_path / "tree.zarr", config)
    (plan,) = (event.fields["levels"] for event in events if event.kind == "run_started")
    steps = [event.fields for event in events if event.kind == "step_started"]
    first = {step["level"]: (step["n"], step["k"]) for step in steps if step["step"] == 0}
    assert {t: (level["n"], level["k"]) for t, level in enumerate(plan, 1)} == first
    assert [level["n_splits"] for level in plan] == [4, 1]
    # The pass that labels the level ends before the clusters are split: their times are told apart.
    kinds = [event.kind for event in events if event.fields.get("level") == 1]
    assert kinds.index("splitting") > max(i for i, kind in enumerate(kinds) if kind == "assigned")


# --- the same whatever it runs on -------------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_bits(tmp_path: Path) -> None:
    rows, config = blobs(), Config(levels=tuple(levels(40, 10)))
    np.save(tmp_path / "rows.npy", rows)
    ingest(rows, tmp_path / "pool.zarr", chunk_mb=0.001)
    for name, given in [("a", rows), ("b", rows), ("c", tmp_path / "rows.npy"), ("d", tmp_path / "pool.zarr")]:
        build_hierarchy(given, tmp_path / f"{name}.zarr", config)
    for name in "bcd":
        assert_same(tmp_path / "a.zarr", tmp_path / f"{name}.zarr")


def test_another_seed_is_another_tree(tmp_path: Path) -> None:
    rows = blobs()
    for seed in (0, 1):
        build_hierarchy(rows, tmp_path / f"{seed}.zarr", Config(levels=tuple(levels(40, 10)), seed=seed))
    one, other = (arrays(tmp_path / f"{seed}.zarr")["level_1/centroids"] for seed in (0, 1))
    assert (one != other).any()


@pytest.mark.parametrize("settings", [{}, {"metric": "cosine"}])
@pytest.mark.parametrize("n_threads", [1, 3])
def test_any_number_of_tasks_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_threads: int, settings: dict[str, str]
) -> None:
    rows, config = blobs(), Config(levels=tuple(levels(40, 10)), **settings)
    build_hierarchy(rows, tmp_path / "one.zarr", config)
    # As many tasks as there are threads, however little there is to do, over several chunks.
    monkeypatch.setattr(runner_module, "_HAND_OVER_FLOPS", 1.0)
    monkeypatch.setattr(runner_module.os, "sched_getaffinity", lambda _: set(range(n_threads)))
    ingest(rows, tmp_path / "pool.zarr", chunk_mb=0.001)
    build_hierarchy(tmp_path / "pool.zarr", tmp_path / "other.zarr", config)
    assert_same(tmp_path / "one.zarr", tmp_path / "other.zarr")


# --- pools that are poor ----------------------------------------------------------------------------------------------


def test_fewer_distinct_rows_than_clusters(tmp_path: Path, steps: list[Step]) -> None:
    rows = np.repeat(np.float32([[0, 0], [0, 3], [4, 0], [9, 9], [5, 5]]), [50, 3, 10, 1, 6], axis=0)
    config = Config(levels=tuple(levels(8, 6, 2, n_resamples=1)))
    with heard() as events:
        tree = build_hierarchy(rows, tmp_path / "tree.zarr", config)
    warned = [event.fields["message"] for event in events if event.kind == "warning"]
    assert "level 1: only 5 distinct rows for n_clusters=8; 3 clusters remain unused" in warned
    assert "level 2: only 5 distinct rows for n_clusters=6; 1 clusters remain unused" in warned
    check_against_plain_numpy(tmp_path / "tree.zarr", rows, config, steps)
    used = tree["level_1/sizes"].values > 0
    assert sorted(map(tuple, tree["level_1/centroids"].values[used].tolist())) == sorted(
        {tuple(r) for r in rows.tolist()}
    )
    assert np.isnan(tree["level_1/centroids"].values[~used]).all()
    assert (tree["level_2/labels"].values[~used] == -1).all()
    assert sorted(sample(tree, 70).tolist()) == list(range(70))
    assert len(set(map(tuple, rows[sample(tree, 5)].tolist()))) == 5  # one of each


def test_rows_all_alike(tmp_path: Path) -> None:
    with heard() as events:
        tree = build_hierarchy(np.full((50, 3), 2.5, "f4"), tmp_path / "tree.zarr", Config(levels=tuple(levels(4, 2))))
    assert any("only 1 distinct rows" in str(event.fields.get("message")) for event in events)
    assert sorted(tree["level_1/sizes"].values.tolist()) == [0, 0, 0, 50]
    assert (tree["level_1/distances"].values == 0).all()
    assert len(sample(tree, 7)) == 7


def test_as_many_clusters_as_samples(tmp_path: Path) -> None:
    rows = blobs(30)
    tree = build_hierarchy(rows, tmp_path / "tree.zarr", Config(levels=tuple(levels(30, 30))))
    assert tree["level_1/sizes"].values.tolist() == [1] * 30
    assert (tree["level_1/distances"].values == 0).all()
    assert (tree["level_2/distances"].values == 0).all()
    assert sorted(map(tuple, tree["level_2/centroids"].values.tolist())) == sorted(map(tuple, rows.tolist()))


def test_one_sample(tmp_path: Path) -> None:
    tree = build_hierarchy(np.float32([[1, 2]]), tmp_path / "tree.zarr", Config(levels=tuple(levels(1, 1))))
    assert sample(tree, 1).tolist() == [0]
    assert tree.hkm.path(0) == (0, 0)


# --- what is told -----------------------------------------------------------------------------------------------------


def test_what_happens_is_told_in_order(tmp_path: Path) -> None:
    with heard() as events:
        build_hierarchy(blobs(), tmp_path / "tree.zarr", Config(levels=tuple(levels(20, 5, n_resamples=1, max_iter=3))))
    told = [(event.kind, event.fields.get("level"), event.fields.get("step")) for event in events]
    expected: list[Any] = [("run_started", None, None)]
    aside = {"seeding", "iteration", "compiling", "compiled"}
    for t in (1, 2):
        expected += [("level_started", t, None)]
        for step in (0, 1):
            expected += [("step_started", t, step), ("step_finished", t, step), ("assigned", t, step)]
        expected += [("level_finished", t, None)]
    assert [one for one in told if one[0] not in aside] == [*expected, ("run_finished", None, None)]
    plan = events[0].fields["levels"]
    assert [(level["n"], level["k"], level["d"], level["m"], level["r"]) for level in plan] == [
        (400, 20, 4, 1, 10),
        (20, 5, 4, 1, 2),
    ]
    contents = arrays(tmp_path / "tree.zarr")
    for t in (1, 2):
        for step in (0, 1):
            inertia = [
                e.fields["inertia"]
                for e in events
                if (e.kind, e.fields.get("level"), e.fields.get("step")) == ("iteration", t, step)
            ]
            assert contents[f"level_{t}/inertia"][step, : len(inertia)].tolist() == inertia
            assert np.isnan(contents[f"level_{t}/inertia"][step, len(inertia) :]).all()


@pytest.mark.parametrize("resample_size", ["auto", 1, 3])
def test_a_first_kmeans_foresees_the_members_of_the_resampling(tmp_path: Path, resample_size: Any) -> None:
    config = Config(levels=tuple(levels(40, 5, n_resamples=2, resample_size=resample_size, tol=0.0)))
    with heard() as events:
        build_hierarchy(blobs(), tmp_path / "tree.zarr", config)
    for t in (1, 2):
        of_level = [event for event in events if event.fields.get("level") == t]
        iterations = [event.fields for event in of_level if event.kind == "iteration"]
        started = [event.fields["n"] for event in of_level if event.kind == "step_started"]
        assert [fields["step"] for fields in iterations if "n_members" not in fields] == [
            fields["step"] for fields in iterations if fields["step"]
        ]
        foreseen = [fields["n_members"] for fields in iterations if not fields["step"]]
        assert foreseen[-1] == started[1]  # at rest: clusters are those of the iteration before


# --- what is there already --------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path) -> Callable[..., xr.DataTree]:
    """Build the same tree, with whatever is changed of it."""
    np.save(tmp_path / "idx.npy", np.arange(20, 90))

    def run(*, rows: np.ndarray | None = None, subset: str = "idx.npy", seed: int = 0, **options: Any) -> xr.DataTree:
        config = Config(levels=tuple(levels(12, 4)), seed=seed, subset=str(tmp_path / subset))
        return build_hierarchy(blobs(100) if rows is None else rows, tmp_path / "tree.zarr", config, **options)

    run()
    return run


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != "idx.npy"}


def test_the_same_again_is_complete_already(finished: Callable[..., xr.DataTree], tmp_path: Path) -> None:
    before = stamps(tmp_path)
    with heard() as events:
        tree = finished()
    assert [(event.kind, event.fields) for event in events] == [("resumed", {"what": "already complete"})]
    assert stamps(tmp_path) == before
    assert tree.hkm.n_clusters == (12, 4)


def test_the_same_subset_may_lie_elsewhere(finished: Callable[..., xr.DataTree], tmp_path: Path) -> None:
    np.save(tmp_path / "moved.npy", np.arange(89, 19, -1))
    assert finished(subset="moved.npy").hkm.n_clusters == (12, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed: 0 in the tree, 1 asked for"),
        ({"rows": blobs(100, seed=1)}, r"pool: contents \w{12} in the tree, \w{12} asked for"),
        ({"subset": "other.npy"}, r"subset: contents \w{12} in the tree, \w{12} asked for"),
    ],
)
def test_anything_else_is_refused_with_the_difference(
    finished: Callable[..., xr.DataTree], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    np.save(tmp_path / "other.npy", np.arange(20, 91))
    before = arrays(tmp_path / "tree.zarr")
    with pytest.raises(InputError, match=message) as error:
        finished(**change)
    assert len(error.value.problems) == 2
    assert "use restart=True" in error.value.problems[1]
    assert arrays(tmp_path / "tree.zarr").keys() == before.keys()
    tree = finished(**change, restart=True)
    assert tree.attrs["seed"] == change.get("seed", 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["idx.npy", "other.npy", "tree.zarr"]


@pytest.mark.faults
@pytest.mark.parametrize(("made", "message"), [(1, "make it again"), (3, "read it with a newer hkm_dask")])
def test_a_tree_of_another_version_is_refused_or_replaced(
    finished: Callable[..., xr.DataTree], tmp_path: Path, made: int, message: str
) -> None:
    store.create_group(tmp_path / "tree.zarr", {"format_version": made})
    with pytest.raises(StoreError, match=rf"format_version={made} should be 2 .*{message}"):
        finished()
    assert finished(restart=True).attrs["format_version"] == 2


@pytest.mark.faults
def test_what_was_begun_by_another_version_is_refused(finished: Callable[..., xr.DataTree], tmp_path: Path) -> None:
    (tmp_path / "tree.zarr").rename(tmp_path / "tree.zarr.wip")
    store.create_group(tmp_path / "tree.zarr.wip", {"format_version": 3, "complete": False})
    with pytest.raises(InputError, match=r"tree.zarr.wip: format_version=3 should be 2 .*; use restart=True"):
        finished()
    assert finished(restart=True).hkm.n_levels == 2


@pytest.mark.parametrize("kind", ["folder", "file", "pool"])
def test_what_is_no_tree_is_never_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "tree.zarr"
    if kind == "pool":
        ingest(blobs(50), target)
    elif kind == "folder":
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
    else:
        target.write_text("years of work")
    before = stamps(tmp_path)
    config = Config(levels=tuple(levels(5)))
    with pytest.raises((InputError, StoreError)):
        build_hierarchy(blobs(50), target, config)
    if kind != "pool":
        with pytest.raises(InputError, match="should be a store of hkm_dask to be overwritten"):
            build_hierarchy(blobs(50), target, config, restart=True)
    assert stamps(tmp_path) == before


@pytest.mark.parametrize("name", ["a folder/with spaces.zarr", "deep/er/tree.zarr", "ünïcode 树.zarr"])
def test_any_path_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    build_hierarchy(blobs(60), name, Config(levels=tuple(levels(6, 2))))
    assert len(sample(name, 10)) == 10
    assert len(sample(open_hierarchy(tmp_path / name), 10)) == 10


def test_refused_before_anything_is_made(tmp_path: Path) -> None:
    for given, config, message in [
        (blobs(30), Config(levels=tuple(levels(31))), "n_samples=30 should be >= levels.1.n_clusters=31"),
        (tmp_path / "absent.zarr", Config(levels=tuple(levels(3))), "absent.zarr is missing"),
        (blobs(30), Config(levels=tuple(levels(3)), subset="absent.npy"), "subset=absent.npy should be"),
    ]:
        with pytest.raises((InputError, StoreError), match=message):
            build_hierarchy(given, tmp_path / "new" / "tree.zarr", config)
    assert list(tmp_path.iterdir()) == []


def test_a_level_that_takes_too_much_memory_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    config = Config(levels=tuple(levels(5000, init="k-means++")))
    with pytest.raises(ComputeError, match=r"memory_limit=400MiB should be at least \d+MiB, seeding of level 1 needs"):
        build_hierarchy(np.zeros((20_000, 512), "f2"), tmp_path / "tree.zarr", config, memory_limit="400MiB")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [False, True], ids=["threads", "workers"])
def test_rows_refused_leave_nothing_in_the_way_of_a_mended_pool(tmp_path: Path, workers: bool) -> None:
    rows, config = blobs(), Config(levels=tuple(levels(10, 3, n_resamples=0)))
    far = rows.copy()
    far[17] = 1e20
    with connect(workers=1, memory_limit="800MiB") if workers else Runner(n_threads=1) as runner:
        with pytest.raises(InputError, match=r"max_abs=1e\+20 in row 17 .*; leave that row out"):
            build_hierarchy(far, tmp_path / "tree.zarr", config, client=runner.client)
        assert list(tmp_path.iterdir()) == []
        assert build_hierarchy(rows, tmp_path / "tree.zarr", config, client=runner.client).hkm.n_clusters == (10, 3)


def test_a_level_keeps_what_its_steps_took_those_of_earlier_runs_too(tmp_path: Path) -> None:
    x, config = np.random.default_rng(0).normal(size=(200, 3)), Config.from_flags((20, 4), n_resamples=1)

    def interrupt(event: Event) -> None:
        if event.kind == "step_finished":
            raise KeyboardInterrupt

    with subscribe(interrupt), pytest.raises(KeyboardInterrupt):
        build_hierarchy(x, tmp_path / "tree.zarr", config)
    events: list[Event] = []
    with subscribe(events.append):
        tree = build_hierarchy(x, tmp_path / "tree.zarr", config)
    again = [event.fields["seconds"] for event in events if event.kind == "step_finished"]
    assert len(again) == 3  # the first step of level 1 was kept
    for level, n_again in (("level_1", 1), ("level_2", 2)):
        took = tree[level].attrs["step_seconds"]
        assert len(took) == 2
        assert took[-n_again:] == [round(seconds, 3) for seconds in again[:n_again]]
        assert sum(took) <= tree[level].attrs["seconds"] + 0.002
        again = again[n_again:]


def test_without_a_configuration_the_advice_is_taken(tmp_path: Path) -> None:
    x = blobs(300)
    tree = build_hierarchy(x, tmp_path / "tree.zarr")
    assert tree.hkm.n_clusters == (60, 30, 10)
    assert Config.from_json(tree.attrs["config"]) == Config.advised(300)
    xr.testing.assert_identical(build_hierarchy(x, tmp_path / "tree.zarr"), tree)
