"""Lloyd's iteration by ranges of clusters gives the same bits as with all clusters at once."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hkm_dask.compute.partition import split_parts
from hkm_dask.compute.range_memory import range_offsets
from hkm_dask.compute.runner import Runner
from hkm_dask.compute.shared_arrays import SharedArrayStore
from hkm_dask.data.row_views import UnitRows
from hkm_dask.data.rows import ArrayRows, NpyRows, Rows
from hkm_dask.kmeans.lloyd import LloydStep, Progress, iterate
from hkm_dask.kmeans.ranges import FitByRanges, iterate_by_ranges, nearest_by_ranges, put_ranges
from hkm_dask.search.cpu.engine import CpuIndex
from hkm_dask.search.geometry import make_geometry
from hkm_dask.search.worker import worker_engine

Cut = Callable[[int], Runner]


def bits_of_both(
    rows: Rows, start: np.ndarray, runner: Runner, n_ranges: int, **options: object
) -> tuple[list[object], list[object], FitByRanges]:
    """What a k-means gives, of all clusters at once and by ranges."""
    spherical = isinstance(rows, UnitRows)
    geometry = make_geometry(rows, runner, n_clusters=len(start), spherical=spherical)
    how = {"geometry": geometry, "runner": runner, "max_iter": 8, "tol": 0.0, "r": 3, **options}
    steps: tuple[list[LloydStep], list[LloydStep]] = [], []
    whole = iterate(rows, start, on_iteration=lambda i, step: steps[0].append(step), **how)  # type: ignore[arg-type]
    ranges = put_ranges(start, n_ranges, runner.array_store, "start")
    shared = iterate_by_ranges(rows, ranges, on_iteration=lambda i, step: steps[1].append(step), **how)  # type: ignore[arg-type]
    of_steps = [[replace(step, centroids=None) for step in some] for some in steps]  # type: ignore[arg-type]
    assert shared.n_unused == np.isnan(whole.centroids[:, 0]).sum()
    return (
        [whole.centroids.tobytes(), whole.inertia.tobytes(), whole.n_relocated, of_steps[0]],
        [shared.centroids.read().tobytes(), shared.inertia.tobytes(), shared.n_relocated, of_steps[1]],
        shared,
    )


def rows_of(n: int, d: int, seed: int, *, copies: bool = False) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = (rng.normal(size=(n, d)) + 4 * rng.normal(size=(7, d))[rng.integers(0, 7, n)]).astype("f4")
    return np.round(rows) if copies else rows


@settings(deadline=None)
@given(
    n=st.integers(20, 300), d=st.integers(1, 40), k=st.integers(2, 90), n_ranges=st.integers(1, 12),
    n_parts=st.integers(1, 4), seed=st.integers(0, 99), copies=st.booleans(), spherical=st.booleans(),
    empty=st.booleans(),
)  # fmt: skip
@example(
    n=300, d=40, k=90, n_ranges=5, n_parts=3, seed=0, copies=False, spherical=False, empty=True,
)  # fmt: skip
@example(
    n=60, d=2, k=90, n_ranges=7, n_parts=2, seed=1, copies=True, spherical=False, empty=True,
)  # fmt: skip
@example(
    n=200, d=30, k=70, n_ranges=12, n_parts=4, seed=2, copies=False, spherical=True, empty=False,
)  # fmt: skip
def test_it_has_the_bits_of_all_clusters_at_once(
    n: int, d: int, k: int, n_ranges: int, n_parts: int, seed: int, copies: bool, spherical: bool, empty: bool,
    in_parts_once: Cut,
) -> None:  # fmt: skip
    x = rows_of(n, d, seed, copies=copies)
    if spherical:
        x[~x.any(axis=1)] = 1.0
    rng = np.random.default_rng(seed)
    start = x[rng.integers(0, n, k)].copy()
    if empty:  # far from all rows, or without a centroid
        start[:: max(2, k // 5)] += np.float32(1e3)
        start[k // 3] = np.nan
    rows: Rows = UnitRows(ArrayRows(x)) if spherical else ArrayRows(x)
    whole, shared, _ = bits_of_both(rows, start, in_parts_once(n_parts), min(n_ranges, k))
    assert whole == shared


@pytest.fixture(scope="module")
def in_parts_once() -> Cut:
    """Runners that cut every pass into so many parts, one of each kind."""

    class InParts(Runner):
        def __init__(self, n: int) -> None:
            super().__init__(n_threads=2)
            self.n = n

        def n_parts(self, flops: float, n_at_once: int | None = None) -> int:
            return self.n

    return functools.cache(InParts)


def test_rows_far_from_all_others_are_summed_in_split_units(runner: Runner) -> None:
    x = rows_of(500, 6, 3)
    x[::100] = 1e12
    whole, shared, _ = bits_of_both(ArrayRows(x), x[5:35].copy(), runner, 4)
    assert make_geometry(ArrayRows(x), runner, n_clusters=30).units.is_split
    assert whole == shared


def test_many_clusters_in_files_are_found_by_pruned_searches(tmp_path: Path) -> None:
    x = rows_of(4000, 32, 4).astype("f2")
    np.save(tmp_path / "x.npy", x)
    with Runner(n_threads=2, work_dir=tmp_path / "work") as runner:
        runner.keeps_in_files = lambda n_bytes: True  # type: ignore[method-assign]
        whole, shared, result = bits_of_both(NpyRows(tmp_path / "x.npy"), x[:900].astype("f4"), runner, 3, max_iter=3)
        assert whole == shared
        files = {file.name for file in (tmp_path / "work").glob("*.npy")}
        assert len(files) == 3  # those of the outcome, and no sums
        result.centroids.delete()
        assert not list((tmp_path / "work").glob("*.npy"))


@pytest.mark.parametrize("d", [2, 40])
def test_equally_near_centroids_of_two_ranges_go_by_the_lower_number(d: int, runner: Runner) -> None:
    x = rows_of(300, d, 5)
    centroids = np.concatenate([x[:70], x[:70], x[40:90]])
    geometry = make_geometry(ArrayRows(x), runner, n_clusters=len(centroids))
    part = split_parts(ArrayRows(x), 1, block_bytes=1 << 12, budget=1 << 20)[0]
    labels, distances = np.full(300, -1, np.int32), np.full(300, np.inf)
    CpuIndex(centroids, geometry).nearest(x, labels, distances)
    exact = ((x[:, None].astype("f8") - centroids) ** 2).sum(2).argmin(1)
    for n_ranges in (1, 3, 19):
        ranges = put_ranges(centroids, n_ranges, SharedArrayStore(), "c")
        found = nearest_by_ranges(part, worker_engine(), ranges, geometry, "assign")
        np.testing.assert_array_equal(found.labels, exact)
        np.testing.assert_array_equal(found.labels, labels)
        assert found.distances.tobytes() == distances.tobytes()


def test_going_on_from_an_interruption_gives_the_same_bits(runner: Runner) -> None:
    x = rows_of(400, 12, 6)
    rows, start = ArrayRows(x), x[:40].copy()
    start[3:9] = 1e3
    geometry = make_geometry(rows, runner, n_clusters=40)
    how = {"geometry": geometry, "runner": runner, "max_iter": 12, "tol": 1e-3}
    kept: list[tuple[np.ndarray, LloydStep]] = []
    whole = iterate_by_ranges(
        rows, put_ranges(start, 3, runner.array_store, "a"), **how,  # type: ignore[arg-type]
        on_iteration=lambda i, step: kept.append((step.centroids.read(), step)),  # type: ignore[union-attr]
    )  # fmt: skip
    for i, (centroids, step) in enumerate(kept[:-1], 1):
        ranges = put_ranges(centroids, 5, runner.array_store, f"b{i}")  # as many ranges as there are now
        again = iterate_by_ranges(
            rows, ranges, **how,  # type: ignore[arg-type]
            progress=Progress(ranges, tuple(whole.inertia[:i]), step.n_relocated, step.near_inertia),
        )  # fmt: skip
        assert again.centroids.read().tobytes() == whole.centroids.read().tobytes()
        assert again.inertia.tobytes() == whole.inertia.tobytes()


def test_ranges_differ_by_one_cluster_at_most() -> None:
    for k, n in [(10, 3), (7, 7), (1000, 13)]:
        sizes = np.diff(range_offsets(k, n))
        assert sizes.sum() == k
        assert sizes.max() - sizes.min() <= 1
